"""DualMatchingPlan in scvi-tools' trainer: who moves, what counts, what is logged."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from dra_scvi import DRA, DRAVAE, DualMatchingPlan, TrainingDivergedError
from dra_scvi._training_plan import TERMS

if TYPE_CHECKING:
    from anndata import AnnData

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
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
    assert {player(n) for n in moved} == {mover}


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
