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
