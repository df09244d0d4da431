"""Training: the same from the same seed, and no weight moved or lost that should not be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from scvi.distributions import NegativeBinomial

from dra_scvi import DRA, PublishedDRA, TrainingDivergedError
from dra_scvi._kernels.likelihood import count_log_prob
from tests.helpers import QUIET, SMALL, STRICT, cells, embed, equal, fit, weights

pytestmark = STRICT


def test_same_seed() -> None:
    """The same seed: the same embedding to the last bit, whatever ran before."""
    adata, other = cells(), cells(seed=1)
    DRA.setup_anndata(other)
    first = embed(adata)
    np.random.rand(3)  # noqa: NPY002 - whatever state the generators are in
    torch.rand(3)
    adata, other = cells(), cells(seed=1)
    DRA.setup_anndata(adata, batch_key="batch")
    DRA.setup_anndata(other)
    np.testing.assert_array_equal(embed(adata), first)
    assert not np.array_equal(embed(adata, seed=1), first)


class LargeSteps(Callback):
    """Let training diverge in its third epoch; keep the weights that each epoch begins with."""

    def __init__(self) -> None:
        self.states: list[list[torch.Tensor]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.states.append([v.clone() for v in pl_module.module.state_dict().values()])
        if trainer.current_epoch == 2:
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = 1e6


def test_diverge(capsys: pytest.CaptureFixture[str]) -> None:
    """Training that diverges: an error with epoch, step and term; the last good weights stay."""
    for cls, plan in ((DRA, {}), (PublishedDRA, {"lr": 1e-4})):
        adata, watch = cells(), LargeSteps()
        cls.setup_anndata(adata)
        found = cls(adata, **(SMALL if cls is DRA else {}))
        options = {"batch_size": 16, "callbacks": [watch], "plan_kwargs": plan}
        with pytest.raises(TrainingDivergedError, match=r"\w+ is not finite in epoch \d+") as e:
            found.train(max_epochs=50, **options, **QUIET)
        assert e.value.epoch >= 2
        assert e.value.step >= 0
        assert equal(weights(found), watch.states[e.value.epoch])
        assert all(torch.isfinite(value).all() for value in weights(found))
        assert not found.is_trained
    adata = cells()
    with pytest.raises(TrainingDivergedError):  # the only step there is
        fit(adata, max_epochs=1, batch_size=64, plan_kwargs={"lr": 1e6})
    assert capsys.readouterr().out == ""


class Trace(Callback):
    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.rows.append((trainer.global_step, float(pl_module.kl_weight)))


def test_step_count() -> None:
    """Schedules by steps: they count minibatches, not the optimizers of three players."""
    trace = Trace()
    plan = {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 8}
    fit(cells(), max_epochs=4, batch_size=18, plan_kwargs=plan, callbacks=[trace])
    steps, kl_weights = zip(*trace.rows, strict=True)
    assert steps == tuple(range(1, 13))
    assert kl_weights == pytest.approx([min(step / 8, 1) for step in steps])


PLAYERS = ("autoencoder", "latent_discriminator", "data_discriminator")


class OneMoves(Callback):
    def __init__(self, mover: str) -> None:
        self.mover = mover

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for name, group in zip(PLAYERS, trainer.optimizers[0].param_groups, strict=True):
            group["weight_decay"] = 0.0
            group["lr"] = 1e-2 if name == self.mover else 0.0


def test_param_groups() -> None:
    """Learning rates of the three players: each moves its own weights and no others."""
    for mover in PLAYERS:
        adata = cells()
        DRA.setup_anndata(adata)
        found = DRA(adata, prior="normal", **SMALL)
        before = {n: p.detach().clone() for n, p in found.module.named_parameters()}
        found.train(max_epochs=1, callbacks=[OneMoves(mover)], **QUIET)
        moved = {n for n, p in found.module.named_parameters() if not torch.equal(p, before[n])}
        owners = {name.split(".")[0] for name in moved - {"px_r"}}  # fitted at the end
        assert {o if o in PLAYERS else "autoencoder" for o in owners} == {mover}


class Norms(Callback):
    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            grads = [p.grad.flatten() for p in group["params"] if p.grad is not None]
            if grads:
                self.norms.append(float(torch.cat(grads).norm()))


def test_clip() -> None:
    """Clipping of gradients, asked for in either place: the gradients are clipped."""
    limit = {"gradient_clip_val": 0.01}
    for options in ({"plan_kwargs": limit}, limit):
        watch = Norms()
        fit(cells(), callbacks=[watch], **options)
        assert max(watch.norms) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("theta", [1.0, 1e4, 1e6])
def test_likelihood_of_genes_without_overdispersion(theta: float) -> None:
    """Genes next to Poisson: a cell's log-likelihood is right to seven digits, not to two."""
    generator = torch.Generator().manual_seed(0)
    mu = 10 ** (5 * torch.rand((20, 300), generator=generator) - 4)
    x, dispersion = torch.poisson(mu, generator=generator), torch.full((300,), theta)
    exact = NegativeBinomial(mu=mu.double(), theta=dispersion.double()).log_prob(x.double())
    found = count_log_prob(x, mu, dispersion)
    torch.testing.assert_close(found.double(), exact.sum(-1), rtol=5e-7, atol=0)
