"""DualMatchingPlan in scvi-tools' trainer: who moves, what counts, what is logged."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from dra_scvi import DRA, DRAVAE, DualMatchingPlan, TrainingDivergedError
from dra_scvi._training.plan import TERMS
from tests.helpers import QUIET

if TYPE_CHECKING:
    from anndata import AnnData

PLAYERS = ("autoencoder", "latent_discriminator", "data_discriminator")


def make(adata: AnnData, batch_key: str | None = "batch", **kwargs: Any) -> DRA:
    DRA.setup_anndata(adata, batch_key=batch_key)
    return DRA(adata, n_hidden=16, n_latent=4, n_hidden_discriminator=[16], **kwargs)


def player(name: str) -> str:
    owner = name.split(".")[0]
    return owner if owner in PLAYERS else "autoencoder"


class Trace(Callback):
    """Collect what the plan says of itself after every minibatch."""

    def __init__(self, *names: str) -> None:
        self.names, self.rows = names, []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.rows.append(tuple(float(getattr(pl_module, name)) for name in self.names))


def test_parameter_groups_cover_every_parameter_once(adata: AnnData) -> None:
    module = make(adata, prior="mixture").module
    groups = DualMatchingPlan(module).parameter_groups()
    assert tuple(groups) == PLAYERS
    found = [id(p) for group in groups.values() for p in group]
    assert sorted(found) == sorted(id(p) for p in module.parameters())
    for name, parameter in module.named_parameters():
        assert any(parameter is p for p in groups[player(name)]), name


def test_a_player_of_weight_zero_or_without_trainable_parameters_is_left_out(
    adata: AnnData,
) -> None:
    module = make(adata).module
    assert tuple(DualMatchingPlan(module, latent_weight=0).parameter_groups()) == (
        "autoencoder",
        "data_discriminator",
    )
    module.data_discriminator.requires_grad_(False)
    assert "data_discriminator" not in DualMatchingPlan(module).parameter_groups()


@pytest.mark.parametrize("mover", PLAYERS)
def test_each_group_moves_its_own_parameters_alone(adata: AnnData, mover: str) -> None:
    class OneMoves(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            for name, group in zip(PLAYERS, trainer.optimizers[0].param_groups, strict=True):
                group["weight_decay"] = 0.0
                if name != mover:
                    group["lr"] = 0.0

    model = make(adata, prior="normal")  # a mixture is also placed, by no optimizer
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    model.train(max_epochs=1, batch_size=64, callbacks=[OneMoves()], **QUIET)
    moved = {n for n, p in model.module.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    # dispersions are fitted once more at the end
    assert {player(n) for n in moved - {"px_r"}} == {mover}


def test_discriminators_ascend_and_the_autoencoder_descends(adata: AnnData) -> None:
    """Alone, a discriminator raises its divergence and the autoencoder lowers both."""

    def last_divergence(idle: tuple[str, ...], **plan: Any) -> tuple[float, float]:
        class Rest(Callback):
            def on_train_start(self, trainer: Any, pl_module: Any) -> None:
                for name, group in zip(PLAYERS, trainer.optimizers[0].param_groups, strict=True):
                    group["lr"] = 0.0 if name in idle else 5e-3

        torch.manual_seed(0)
        model = make(adata)
        plan = {"latent_weight": 50.0, "data_weight": 50.0, "min_kl_weight": 0.0, **plan}
        model.train(max_epochs=30, batch_size=64, plan_kwargs=plan, callbacks=[Rest()], **QUIET)
        latent = model.history["latent_divergence_train"].to_numpy(float).ravel()
        data = model.history["data_divergence_train"].to_numpy(float).ravel()
        return latent[-3:].mean() - latent[0], data[-3:].mean() - data[0]

    latent, data = last_divergence(idle=("autoencoder",))
    assert latent > 0.01
    assert data > 0.01
    latent, data = last_divergence(idle=PLAYERS[1:])
    assert latent < 0
    assert data < 0


def test_warm_ups_and_global_step_count_minibatches(adata: AnnData) -> None:
    model, trace = make(adata), Trace("global_step", "kl_weight")
    plan = {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 8}
    model.train(max_epochs=4, batch_size=45, plan_kwargs=plan, callbacks=[trace], **QUIET)
    steps, weights = zip(*trace.rows, strict=True)
    assert steps == tuple(range(1, 13))
    assert weights == pytest.approx([min(step / 8, 1) for step in steps])


def test_the_kl_warm_up_depends_on_epochs_and_batches_unless_told_otherwise(
    adata: AnnData,
) -> None:
    for batch_key, plan, expected in (
        (None, {}, [0, 0.5, 1, 1]),
        ("batch", {}, [0, 1, 1, 1]),
        ("batch", {"n_epochs_kl_warmup": 4}, [0, 0.25, 0.5, 0.75]),
    ):
        model = make(adata, batch_key)
        model.train(max_epochs=4, plan_kwargs=plan, **QUIET)
        assert model.history["kl_weight"].to_numpy(float).ravel() == pytest.approx(expected)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0)])
def test_history_has_every_term_whatever_the_weights(
    adata: AnnData, weights: tuple[float, float]
) -> None:
    model = make(adata)
    plan = dict(zip(("latent_weight", "data_weight"), weights, strict=True))
    model.train(max_epochs=2, plan_kwargs=plan, check_val_every_n_epoch=1, **QUIET)
    assert set(TERMS) <= set(model.history)
    assert {"validation_loss", "elbo_validation"} <= set(model.history)
    for name in TERMS:
        assert list(model.history[name].index) == [0, 1], name
    last = {name: float(frame.iloc[-1, 0]) for name, frame in model.history.items()}
    total = last["reconstruction_loss_train"] + last["kl_weight"] * last["kl_local_train"]
    total += weights[0] * last["latent_divergence_train"]
    total += weights[1] * last["data_divergence_train"]
    assert last["train_loss"] == pytest.approx(total, rel=1e-4)
    assert last["elbo_train"] == pytest.approx(
        last["reconstruction_loss_train"] + last["kl_local_train"], rel=1e-5
    )
    assert (last["latent_divergence_train"] == 0) == (weights[0] == 0)


def test_training_twice_appends_to_the_history(adata: AnnData) -> None:
    model = make(adata)
    for _ in range(2):
        model.train(max_epochs=2, **QUIET)
    assert all(len(model.history[name]) == 4 for name in TERMS)


def test_terms_of_each_step_are_logged_on_request(adata: AnnData) -> None:
    model = make(adata)
    model.train(max_epochs=2, batch_size=45, plan_kwargs={"on_step": True}, **QUIET)
    assert len(model.history["elbo_train_step"]) == 6


def test_means_over_an_epoch_weigh_minibatches_by_their_cells(adata: AnnData) -> None:
    """The reconstruction loss of a frozen model is the same for any size of minibatch."""
    frozen = {"lr": 0.0, "weight_decay": 0.0, "latent_weight": 0.0, "data_weight": 0.0}
    model = make(adata, dropout_rate=0.0, use_batch_norm="none")
    model.module.z_encoder.var_activation = torch.zeros_like
    values = []
    for batch_size in (150, 40):
        model.train(
            max_epochs=1, train_size=1.0, batch_size=batch_size, plan_kwargs=frozen, **QUIET
        )
        values.append(float(model.history["reconstruction_loss_train"].iloc[-1, 0]))
    assert values[1] == pytest.approx(values[0], rel=1e-3)


@pytest.mark.parametrize("divergence", ["bhattacharyya", "jensen-shannon"])
def test_divergence_stops_training_with_term_epoch_and_step(
    adata: AnnData, divergence: str
) -> None:
    model = make(adata, divergence=divergence)
    with pytest.raises(TrainingDivergedError, match=r"not finite in epoch \d+, step \d+") as info:
        model.train(max_epochs=20, plan_kwargs={"lr": 1e6}, **QUIET)
    assert info.value.term
    assert 0 <= info.value.epoch < 20
    assert str(pickle.loads(pickle.dumps(info.value))) == str(info.value)
    assert not model.is_trained


@pytest.mark.parametrize("term", ["latent_divergence", "data_divergence"])
def test_the_error_names_the_term_that_is_not_finite(
    adata: AnnData, term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(adata)
    matching = type(model.module).matching
    calls = []

    def spoiled(self: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        terms = matching(self, *args, **kwargs)
        return terms if len(calls) < 5 else {**terms, term: terms[term] * float("nan")}

    monkeypatch.setattr(type(model.module), "matching", spoiled)
    with pytest.raises(TrainingDivergedError) as info:
        model.train(max_epochs=4, batch_size=45, **QUIET)
    assert (info.value.term, info.value.epoch, info.value.step) == (f"{term}_train", 1, 1)


@pytest.mark.parametrize("how", ["plan", "trainer"])
def test_clipping_limits_each_players_gradient(adata: AnnData, how: str) -> None:
    norms = []

    class Norms(Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            for group in optimizer.param_groups:
                grads = [p.grad.flatten() for p in group["params"] if p.grad is not None]
                if grads:
                    norms.append(float(torch.cat(grads).norm()))

    clip: dict[str, Any] = {"gradient_clip_val": 0.01}
    clip = {"plan_kwargs": clip} if how == "plan" else clip
    make(adata).train(max_epochs=2, callbacks=[Norms()], **clip, **QUIET)
    assert norms
    assert max(norms) <= 0.0101
    assert sum(norm > 0.0099 for norm in norms) > 3, "the players are clipped each by itself"


def test_a_mixture_prior_starts_from_the_codes_when_it_is_time(adata: AnnData) -> None:
    started = []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            started.append(pl_module.module.prior.is_started)

    model = make(adata, prior="mixture", n_components=5)
    plan = {"prior_start": 0.5}
    model.train(max_epochs=4, plan_kwargs=plan, callbacks=[Watch()], **QUIET)
    assert started == [False, False, True, True]
    loc = model.module.prior.loc.detach().clone()
    model.train(max_epochs=4, plan_kwargs={**plan, "lr": 0.0}, **QUIET)
    torch.testing.assert_close(model.module.prior.loc.detach(), loc, atol=1e-4, rtol=0)


@pytest.mark.parametrize("within", [True, False])
def test_compositions_are_learned_where_batches_are_matched_within_components(
    adata: AnnData, within: bool
) -> None:
    model = make(adata, prior="mixture", n_components=5)
    assert torch.equal(model.module.composition.shares, torch.full((2, 5), 0.2))
    model.train(max_epochs=4, plan_kwargs={"within_components": within}, **QUIET)
    shares = model.module.composition.shares
    assert (float(shares.std()) > 1e-3) == within
    torch.testing.assert_close(shares.sum(1), torch.ones(2))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"plan_kwargs": {"optimizer": "AdamW"}}, id="adamw"),
        pytest.param(
            {
                "plan_kwargs": {
                    "optimizer": "Custom",
                    "optimizer_creator": lambda p: torch.optim.SGD(p, lr=1e-4),
                }
            },
            id="custom-optimizer",
        ),
        pytest.param({"precision": "bf16-mixed"}, id="bf16"),
        pytest.param({"accumulate_grad_batches": 2}, id="accumulated-gradients"),
        pytest.param({"early_stopping": True, "early_stopping_patience": 1}, id="early-stopping"),
        pytest.param(
            {"plan_kwargs": {"reduce_lr_on_plateau": True}, "check_val_every_n_epoch": 1},
            id="plateau",
        ),
        pytest.param({"batch_size": 67}, id="last-minibatch-of-one-cell"),
        pytest.param({"train_size": 1.0}, id="no-validation"),
        pytest.param({"max_steps": 3}, id="max-steps"),
        pytest.param({"load_sparse_tensor": True}, id="sparse-tensors"),
    ],
)
def test_scvi_tools_options_work(adata: AnnData, options: dict[str, Any]) -> None:
    model = make(adata)
    model.train(**{"max_epochs": 3, "batch_size": 45, **options}, **QUIET)
    latent = model.get_latent_representation()
    assert latent.shape == (150, 4)
    assert torch.isfinite(torch.as_tensor(latent)).all()


def test_negative_weights_are_refused(adata: AnnData) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        make(adata).train(max_epochs=1, plan_kwargs={"data_weight": -1.0}, **QUIET)


@pytest.mark.parametrize(("n_batch", "expected"), [(0, 1.0), (1, 1.0), (3, 10.0)])
def test_several_batches_are_matched_harder(n_batch: int, expected: float) -> None:
    module = DRAVAE(20, n_batch=n_batch)
    assert DualMatchingPlan(module).latent_weight == expected
    assert DualMatchingPlan(module, latent_weight=2.0).latent_weight == 2.0


# -- the plan by itself ------------------------------------------------------------------------


def spoiled(**values: float) -> torch.Tensor:
    """Return the terms of three minibatches, of which the second is spoiled."""
    steps = torch.ones(3, len(TERMS) + 1)
    for name, value in values.items():
        steps[1, TERMS.index(f"{name}_train")] = value
    steps[1, 0] = float("nan")
    return steps


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_of_several_bad_terms_the_last_is_named(value: float) -> None:
    """The loss and the evidence bound are sums: the term that spoils them comes after them."""
    plan = DualMatchingPlan(DRAVAE(20))
    plan._check_finite(torch.ones(3, len(TERMS) + 1))
    for names, culprit in (
        ((), "train_loss"),
        (("elbo",), "elbo_train"),
        (("elbo", "reconstruction_loss"), "reconstruction_loss_train"),
        (("elbo", "kl_local"), "kl_local_train"),
        (("elbo", "kl_local", "data_divergence"), "data_divergence_train"),
        (("latent_divergence", "data_divergence"), "data_divergence_train"),
    ):
        with pytest.raises(TrainingDivergedError) as info:
            plan._check_finite(spoiled(**dict.fromkeys(names, value)), first_step=5)
        assert (info.value.term, info.value.epoch, info.value.step) == (culprit, 0, 6)
        with pytest.raises(TrainingDivergedError) as info:
            plan._check_finite(spoiled(**dict.fromkeys(names, value)))
        assert info.value.step == 1


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW"])
def test_each_player_has_its_own_rate(optimizer: str) -> None:
    module = DRAVAE(20)
    rates = {"lr": 3e-3, "eps": 0.02, "weight_decay": 0.5}
    plan = DualMatchingPlan(module, optimizer=optimizer, discriminator_lr=7e-5, **rates)
    made = plan.get_optimizer_creator()(module.parameters())
    assert type(made) is getattr(torch.optim, optimizer)
    found = [(group["lr"], group["eps"], group["weight_decay"]) for group in made.param_groups]
    assert found == [(3e-3, 0.02, 0.5), (7e-5, 1e-8, 0.5), (7e-5, 1e-8, 0.5)]
    for group, name in zip(made.param_groups, PLAYERS, strict=True):
        expected = [p for n, p in module.named_parameters() if player(n) == name]
        assert [id(p) for p in group["params"]] == [id(p) for p in expected]


class Rates(Callback):
    """Note the learning rates at which each step is taken."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append([group["lr"] for group in optimizer.param_groups])


@pytest.mark.parametrize("start", [None, 0.0, 0.5, 1.0])
def test_learning_rates_fall_to_nothing(adata: AnnData, start: float | None) -> None:
    """In a line, from where they are told to, each its own; by default they stay."""
    noted = Rates()
    chosen = {} if start is None else {"lr_decay_start": start}
    plan_kwargs = {"lr": 0.01, "discriminator_lr": 0.003, **chosen}
    model = make(adata, batch_key=None)
    model.train(4, batch_size=16, callbacks=[noted], plan_kwargs=plan_kwargs, **QUIET)
    n_steps, start = len(noted.seen), 1.0 if start is None else start
    done = np.arange(n_steps) / n_steps
    falls = (1 - done) / (1 - start) if start < 1 else np.ones(n_steps)
    expected = np.minimum(1, falls)[:, None] * [0.01, 0.003, 0.003]
    assert n_steps > 8
    np.testing.assert_allclose(noted.seen, expected)


def test_learning_rates_are_left_to_whoever_lowers_them(adata: AnnData) -> None:
    noted = Rates()
    options = {"reduce_lr_on_plateau": True, "lr_scheduler_metric": "elbo_train"}
    make(adata, batch_key=None).train(4, callbacks=[noted], plan_kwargs=options, **QUIET)
    assert {rate for rate, *_ in noted.seen} == {DualMatchingPlan(DRAVAE(20)).lr}


@pytest.mark.parametrize("start", [-0.01, 1.01])
def test_the_fall_begins_while_training(start: float) -> None:
    with pytest.raises(ValueError, match="lr_decay_start must be between 0 and 1"):
        DualMatchingPlan(DRAVAE(20), lr_decay_start=start)


def test_a_custom_optimizer_has_one_rate() -> None:
    module = DRAVAE(20)
    plan = DualMatchingPlan(
        module, optimizer="Custom", optimizer_creator=lambda p: torch.optim.SGD(p, lr=0.3)
    )
    made = plan.get_optimizer_creator()(module.parameters())
    assert [group["lr"] for group in made.param_groups] == [0.3] * 3
    assert "eps" not in made.param_groups[1]


def test_defaults_are_as_documented() -> None:
    plan = DualMatchingPlan(DRAVAE(20))
    assert (plan.latent_weight, plan.data_weight, plan.discriminator_lr) == (1.0, 1.0, 1e-4)
    assert (plan.prior_start, plan.gradient_clip_val) == (0.25, None)
    assert plan.lr_decay_start == 1.0
    assert DualMatchingPlan(DRAVAE(20), latent_weight=0.0, data_weight=0.0).data_weight == 0.0


@pytest.mark.parametrize("name", ["latent_weight", "data_weight"])
def test_either_weight_must_not_be_negative(name: str) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        DualMatchingPlan(DRAVAE(20), **{name: -1e-9})


def test_a_frozen_part_has_no_weight_and_stops_decay() -> None:
    whole = DualMatchingPlan(DRAVAE(20))
    assert whole.weight_decay > 0
    for name in PLAYERS[1:]:
        module = DRAVAE(20)
        next(getattr(module, name).parameters()).requires_grad_(False)
        plan = DualMatchingPlan(module, latent_weight=3.0, data_weight=2.0)
        weights = {"latent_discriminator": plan.latent_weight}
        weights["data_discriminator"] = plan.data_weight
        other = next(one for one in weights if one != name)
        assert weights[name] == 0.0
        assert weights[other] == {PLAYERS[1]: 3.0, PLAYERS[2]: 2.0}[other]
        assert name not in plan.parameter_groups()
        assert plan.weight_decay == 0.0
        assert DualMatchingPlan(module, weight_decay=0.1).weight_decay == 0.1


def test_groups_of_a_compiled_module_are_the_same() -> None:
    module = DRAVAE(20)
    plan = DualMatchingPlan(module)
    names = {id(p): n for n, p in module.named_parameters()}
    expected = {k: [names[id(p)] for p in v] for k, v in plan.parameter_groups().items()}
    plan.module = torch.nn.ModuleDict({"_orig_mod": module})
    found = {k: [names[id(p)] for p in v] for k, v in plan.parameter_groups().items()}
    assert found == expected


@pytest.mark.parametrize("algorithm", [None, "norm", "value"])
def test_clipping_is_by_norm_or_by_value(algorithm: str | None) -> None:
    first, second = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second]}], lr=0.1)
    for own, given, limit in ((None, 0.5, 0.5), (0.5, None, 0.5), (9.0, 0.5, 0.5)):
        first.grad, second.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.1, -0.2])
        plan = DualMatchingPlan(DRAVAE(20), gradient_clip_val=own)
        plan.configure_gradient_clipping(optimizer, given, algorithm)
        clipped = [limit, limit] if algorithm == "value" else [0.6 * limit, 0.8 * limit]
        assert first.grad.tolist() == pytest.approx(clipped, rel=1e-4)
        assert second.grad.tolist() == pytest.approx([0.1, -0.2])


def test_without_a_limit_nothing_is_clipped() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([1e9])
    plan = DualMatchingPlan(DRAVAE(20))
    plan.configure_gradient_clipping(torch.optim.SGD([parameter], lr=0.1))
    assert parameter.grad.item() == 1e9


def with_trainer(plan: DualMatchingPlan, **values: Any) -> DualMatchingPlan:
    """Put a plan where a trainer says these things of itself."""
    defaults = {"max_epochs": 8, "current_epoch": 0, "global_rank": 0, "ckpt_path": None}
    plan._trainer = SimpleNamespace(**{**defaults, "precision": "32-true", **values})
    return plan


@pytest.mark.parametrize(
    ("n_batch", "max_epochs", "given", "expected"),
    [
        (1, 8, {}, 4),
        (1, 9, {}, 4),
        (1, 1, {}, 1),
        (1, None, {}, 1),
        (1, 3, {}, 1),
        (2, 8, {}, 1),
        (3, 8, {}, 1),
        (1, 8, {"n_epochs_kl_warmup": 3}, 3),
        (1, 8, {"n_epochs_kl_warmup": None}, None),
        (1, 8, {"n_steps_kl_warmup": 5}, None),
    ],
)
def test_the_length_of_the_warm_up(
    n_batch: int, max_epochs: int | None, given: dict[str, Any], expected: int | None
) -> None:
    plan = with_trainer(DualMatchingPlan(DRAVAE(20, n_batch=n_batch), **given))
    plan._trainer.max_epochs = max_epochs
    plan.on_fit_start()
    assert plan.n_epochs_kl_warmup == expected
    assert type(plan.n_epochs_kl_warmup) in (int, type(None))


@pytest.mark.parametrize(
    ("seed", "rank", "ckpt_path", "expected"),
    [
        (5, 0, None, 5),
        (5, 2, None, 7),
        (5, 2, "last.ckpt", 5),
        (2**63 - 1, 1, None, 0),
    ],
)
def test_processes_draw_differently_unless_they_go_on(
    seed: int, rank: int, ckpt_path: str | None, expected: int
) -> None:
    plan = with_trainer(DualMatchingPlan(DRAVAE(20)), global_rank=rank, ckpt_path=ckpt_path)
    torch.manual_seed(seed)
    torch.rand(3)
    state = torch.get_rng_state()
    plan.on_train_start()
    assert torch.initial_seed() == expected
    assert torch.equal(torch.get_rng_state(), state) == (seed == expected)


@pytest.mark.parametrize(
    ("max_epochs", "prior_start", "epoch"),
    [
        (8, 0.25, 1),
        (8, 0.5, 3),
        (8, 0.0, 0),
        (8, 0.8, 5),
        (8, 0.95, None),
        (8, 1.0, None),
        (3, 0.25, 0),
        (2, 0.25, 0),
        (1, 0.25, None),
        (None, 0.25, None),
    ],
)
def test_components_are_placed_after_one_epoch_that_is_not_the_last(
    max_epochs: int | None, prior_start: float, epoch: int | None
) -> None:
    module = DRAVAE(20, prior="mixture")
    plan = with_trainer(DualMatchingPlan(module, prior_start=prior_start), max_epochs=max_epochs)

    def epochs() -> list[int]:
        found = []
        for plan._trainer.current_epoch in range(max_epochs or 1):
            if plan._prior_starts_after_this_epoch:
                found.append(plan.current_epoch)
        return found

    assert epochs() == ([] if epoch is None else [epoch])
    module.prior.logits.requires_grad_(False)
    assert epochs() == [], "a prior that is frozen in part"
    module.prior.logits.requires_grad_(True)
    module.prior._started.fill_(True)
    assert epochs() == [], "a prior that has started"


def test_a_prior_that_was_placed_is_that_of_the_first_process() -> None:
    module = DRAVAE(20, prior="mixture")
    first = {name: value + 1 for name, value in module.prior.state_dict().items()}
    strategy = SimpleNamespace(
        broadcast=lambda state: first if state.keys() == first.keys() else state
    )
    plan = with_trainer(DualMatchingPlan(module), world_size=2, strategy=strategy)
    plan._codes.append(torch.randn(100, module.n_latent))
    plan.on_train_epoch_end()
    assert plan._codes == []
    for name, value in module.prior.state_dict().items():
        assert torch.equal(value, first[name].to(value)), name


def test_only_a_mixture_is_placed() -> None:
    plan = with_trainer(DualMatchingPlan(DRAVAE(20, prior="normal")), current_epoch=1)
    assert not plan._prior_starts_after_this_epoch


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cpu", "32-true", True),
        ("cuda:0", "32-true", True),
        ("mps", "32-true", False),
        ("cpu", "bf16-mixed", True),
        ("cuda:0", "16-mixed", False),
        ("mps", "16-mixed", False),
        ("cuda:0", None, True),
    ],
)
def test_steps_are_fused_where_they_can_be(
    device: str, precision: str | None, expected: bool
) -> None:
    plan = DualMatchingPlan(DRAVAE(20))
    if precision:
        with_trainer(plan, precision=precision)
    plan._device = torch.device(device)
    assert plan._can_fuse is expected
    if device == "cpu":
        made = plan.get_optimizer_creator()(plan.module.parameters())
        assert [group["fused"] for group in made.param_groups] == [expected] * 3


def test_on_other_devices_terms_are_checked_at_the_end_of_the_epoch() -> None:
    plan = with_trainer(DualMatchingPlan(DRAVAE(20)), world_size=1, current_epoch=3)
    plan._steps.extend(spoiled(kl_local=float("nan")))
    with pytest.raises(TrainingDivergedError) as info:
        plan.on_train_epoch_end()
    assert (info.value.term, info.value.epoch, info.value.step) == ("kl_local_train", 3, 1)


def test_terms_are_logged_under_their_names_for_steps_and_epochs(adata: AnnData) -> None:
    """Of every step on request, whose means over cells are those of the epoch."""
    names = [
        *("train_loss", "elbo_train", "reconstruction_loss_train", "kl_local_train"),
        *("kl_global_train", "latent_divergence_train", "data_divergence_train", "kl_weight"),
    ]
    assert list(TERMS) == names
    model = make(adata)
    model.train(2, train_size=1.0, batch_size=60, plan_kwargs={"on_step": True}, **QUIET)
    cells = torch.tensor([60.0, 60.0, 30.0]).repeat(2)
    for name in names:
        steps, epochs = model.history[f"{name}_step"], model.history[name]
        assert list(steps.index) == list(range(6)), name
        values = torch.tensor(steps.to_numpy(float).ravel())
        means = (values * cells).view(2, 3).sum(1) / 150
        assert epochs.to_numpy(float).ravel() == pytest.approx(means.tolist(), rel=1e-4, abs=1e-6)
    assert (model.history["kl_global_train"].to_numpy(float) == 0).all()
    assert "train_loss" in model.trainer.progress_bar_metrics
    assert "elbo_train" not in model.trainer.progress_bar_metrics
