"""Training: the same from the same seed, no weight moved or lost, and nothing odd begun."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from scvi.distributions import NegativeBinomial

from dra_scvi import DRA, PublishedDRA, TrainingDivergedError, benchmark, demo, metrics, tl
from dra_scvi._kernels.likelihood import count_log_prob
from tests.helpers import QUIET, SMALL, STRICT, cells, embed, equal, fit, invoke, weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData

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


@pytest.mark.parametrize(
    "precision", ["bf16-true", "16-true", "transformer-engine", "double", 8, 64.5]
)
def test_precisions_that_the_networks_do_not_have(precision: Any) -> None:
    """A precision that counts and networks cannot share is refused before any work."""
    words = f"precision={precision!r}: '32-true', '64-true', '16-mixed' or 'bf16-mixed' is needed"
    with pytest.raises(ValueError, match=words):
        fit(cells(), precision=precision)


@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf"), "1e-3", None])
@pytest.mark.parametrize("name", ["lr", "discriminator_lr"])
def test_rates_that_are_none(name: str, value: Any) -> None:
    """A learning rate that is no finite number of at least 0 is refused by its name."""
    with pytest.raises(ValueError, match=f"^{name}={value!r}: a finite number of at least 0"):
        fit(cells(), plan_kwargs={name: value})


@pytest.mark.parametrize("kwargs", ["lr=1e-3", ["lr"]])
def test_arguments_of_the_plan_that_are_no_dictionary(kwargs: Any) -> None:
    """Arguments of the plan that are no dictionary are refused by their name."""
    with pytest.raises(TypeError, match=r"^plan_kwargs=.*: a dictionary is needed"):
        fit(cells(), plan_kwargs=kwargs)


@pytest.mark.parametrize("name", ["gene_likelihood", "latent_distribution"])
def test_words_that_no_model_knows(name: str) -> None:
    """A misspelt likelihood or latent distribution is refused, and makes no other model."""
    adata = cells()
    DRA.setup_anndata(adata)
    with pytest.raises(ValueError, match=f"^{name} must be one of .*'normal'.*, not 'norm'"):
        DRA(adata, **SMALL, **{name: "norm"})


def test_dimensions_that_are_recorded() -> None:
    """adata.uns says how many dimensions an embedding has, whichever argument asked for them."""
    adata = cells()
    embed(adata, max_epochs=1, model_kwargs={"n_hidden": 16, "n_latent": 3})
    assert adata.uns["dra"]["params"]["n_latent"] == adata.obsm["X_dra"].shape[1] == 3


def test_what_is_frozen_stays() -> None:
    """Dispersions that are frozen, or have a rate of 0, stay; a whole frozen module is refused."""
    model = fit(cells())
    before = model.module.px_r.clone()
    model.train(max_epochs=1, batch_size=32, plan_kwargs={"lr": 0.0}, **QUIET)
    assert torch.equal(model.module.px_r, before)
    model.module.px_r.requires_grad_(False)
    model.train(max_epochs=1, batch_size=32, **QUIET)
    assert torch.equal(model.module.px_r, before)
    model.module.requires_grad_(False)
    with pytest.raises(ValueError, match="Every parameter of the module is frozen"):
        model.train(max_epochs=1, **QUIET)


def test_a_share_that_leaves_one_cell() -> None:
    """A train_size of which one cell is left is refused with their numbers."""
    with pytest.raises(ValueError, match="1 of 60 cells would be trained on"):
        fit(cells(), train_size=0.01)


def test_training_on_all_cells_and_once_more() -> None:
    """With train_size=1, and in a second training, dispersions are fitted to the cells there."""
    model = fit(cells(n_cells=65), train_size=1.0, batch_size=64)  # the last one with the others
    first = model.module.px_r.clone()
    assert (len(model.train_indices), model.trainer.global_step) == (65, 2)
    model.train(max_epochs=2, batch_size=32, train_size=0.5, validation_size=0.25, **QUIET)
    sizes = [len(cells) for cells in (model.train_indices, model.validation_indices)]
    assert sizes == [33, 16]
    moved = (model.module.px_r - first).abs()
    assert moved.max() > 2 * 2 * 1e-3  # more than two epochs of two steps at the usual rate
    assert model.generate(5).shape == (5, model.adata.n_vars)


def _seeded(name: str, adata: AnnData, seed: Any, path: Path) -> None:
    adata.obsm["X_dra"] = adata.X.toarray()[:, :3]
    calls: dict[str, Callable[[], Any]] = {
        "tl.dra": lambda: tl.dra(adata, seed=seed),
        "tl.cluster": lambda: tl.cluster(adata, seed=seed),
        "tl.suggest_resolution": lambda: tl.suggest_resolution(adata, seed=seed),
        "metrics": lambda: metrics.clustering(adata.obsm["X_dra"], adata.obs["batch"], seed=seed),
        "compare": lambda: benchmark.compare(adata, "cell_type", models="pca", seeds=[seed]),
        "demo": lambda: demo.run(path, seed=seed),
    }
    calls[name]()


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize(
    "name", ["tl.dra", "tl.cluster", "tl.suggest_resolution", "metrics", "compare", "demo"]
)
def test_seeds_that_not_every_generator_takes(name: str, seed: int, tmp_path: Path) -> None:
    """A seed that is negative, or of more than 32 bits, is refused in one sentence everywhere."""
    words = f"seeds? (must be at (least 0|most 4294967295)|takes whole numbers from 0), not {seed}"
    with pytest.raises(ValueError, match=words):
        _seeded(name, cells(), seed, tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_seeds_of_a_comparison_that_go_too_far(tmp_path: Path) -> None:
    """Seeds counted beyond the largest are refused as a wrong use, before INPUT is read."""
    done = invoke(
        "benchmark", tmp_path / "none.h5ad", "--label-key", "cell_type", "--seed", 2**32 - 2,
        "--seeds", 3, "-o", tmp_path / "table.csv",
    )  # fmt: skip
    assert done.exit_code == 2, done.stderr
    assert "--seed 4294967294: the seeds counted from it go beyond 4294967295" in done.stderr


@pytest.mark.parametrize("theta", [1.0, 1e4, 1e6])
def test_likelihood_of_genes_without_overdispersion(theta: float) -> None:
    """Genes next to Poisson: a cell's log-likelihood is right to seven digits, not to two."""
    generator = torch.Generator().manual_seed(0)
    mu = 10 ** (5 * torch.rand((20, 300), generator=generator) - 4)
    x, dispersion = torch.poisson(mu, generator=generator), torch.full((300,), theta)
    exact = NegativeBinomial(mu=mu.double(), theta=dispersion.double()).log_prob(x.double())
    found = count_log_prob(x, mu, dispersion)
    torch.testing.assert_close(found.double(), exact.sum(-1), rtol=5e-7, atol=0)
