"""The published program: its split, minibatches, schedule, inert parts and failure, one by one."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scvi import REGISTRY_KEYS
from torch import nn

from dra_scvi import InvalidCountsError, PublishedDRA, TrainingDivergedError, presets
from dra_scvi._published.networks import _Affine
from dra_scvi._published.plan import PublishedPlan, _Windows, published_split
from tests.helpers import QUIET

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData


def make(adata: AnnData, **kwargs: Any) -> PublishedDRA:
    PublishedDRA.setup_anndata(adata)
    defaults = {"n_latent": 2, "n_hidden": [16, 12], "n_hidden_discriminator": [8, 6]}
    return PublishedDRA(adata, **{**defaults, **kwargs})


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def batch_of(adata: AnnData, n: int = 32) -> dict[str, torch.Tensor]:
    return {
        REGISTRY_KEYS.X_KEY: torch.as_tensor(adata.X[:n].toarray()),
        REGISTRY_KEYS.BATCH_KEY: torch.zeros(n, 1, dtype=torch.long),
        REGISTRY_KEYS.LABELS_KEY: torch.zeros(n, 1, dtype=torch.long),
    }


@pytest.mark.parametrize(
    ("n_cells", "sizes"),
    [
        (3005, (2404, 601)),
        (44808, (35846, 8962)),
        (68579, (54863, 13716)),
        (73233, (58586, 14647)),
    ],
)
def test_the_split_has_the_published_sizes(n_cells: int, sizes: tuple[int, int]) -> None:
    train, test = published_split(n_cells)
    assert (len(train), len(test)) == sizes
    np.random.seed(0)  # noqa: NPY002 - the oracle
    order = np.random.permutation(n_cells)  # noqa: NPY002
    np.testing.assert_array_equal(np.concatenate([train, test]), order)


def test_minibatches_are_windows_that_miss_the_last_cell() -> None:
    windows = list(_Windows(n_train=20, batch_size=5, n_windows=2000))
    assert len(windows) == 2000
    assert all(np.array_equal(np.diff(w), np.ones(4)) for w in windows)
    starts = {w[0] for w in windows}
    assert starts == set(range(15))
    assert max(w[-1] for w in windows) == 18


def test_an_epoch_counts_test_cells_too(adata: AnnData) -> None:
    model = make(adata)
    model.train(max_epochs=3, batch_size=32, **QUIET)
    # 150 // 32 = 4 minibatches: 4 autoencoder, 2 latent, 2 generator and 4 data steps
    assert model.trainer.fit_loop.total_batch_idx + 1 == 12
    assert model.trainer.global_step == 3 * (4 + 2 + 2 + 4)
    np.testing.assert_array_equal(model.test_indices, published_split(150)[1])
    assert len(model.validation_indices) == 0


def test_input_is_log2_as_a_share_of_the_maximum_of_the_whole_matrix(adata: AnnData) -> None:
    model = make(adata)
    counts = adata.X.toarray()
    expected = np.log2(1 + counts) / np.log2(1 + counts).max()
    found = model.module.transform(torch.as_tensor(counts)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    library = np.log(expected[published_split(150)[0]].sum(1))
    assert float(model.module.library_mean) == pytest.approx(library.mean(), rel=1e-5)
    assert float(model.module.library_var) == pytest.approx(library.var(), rel=1e-5)


def test_the_loss_is_zinb_on_scaled_logs_and_the_kl_of_the_library_alone(adata: AnnData) -> None:
    from scvi.distributions import ZeroInflatedNegativeBinomial
    from torch.distributions import Normal, kl_divergence

    model = make(adata)
    module, batch = model.module.eval(), batch_of(adata)
    plan = PublishedPlan(module)
    inference, generative, output = plan.forward(batch, loss_kwargs=plan.loss_kwargs)
    x = module.transform(batch[REGISTRY_KEYS.X_KEY])
    scale, zi_logits, _ = module.decoder(inference["z"])
    zinb = ZeroInflatedNegativeBinomial(
        mu=inference["library"].exp() * scale, theta=module.px_r.exp(), zi_logits=zi_logits
    )
    prior = Normal(module.library_mean, module.library_var.sqrt())
    kl_library = kl_divergence(inference["ql"], prior).sum(-1)
    expected = (-zinb.log_prob(x).sum(-1) + kl_library).mean()
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize(
    ("batch_idx", "moved"),
    [
        (0, {"z_encoder", "decoder", "px_r", "latent_discriminator", "data_discriminator"}),
        (1, {"z_encoder", "decoder", "px_r", "data_discriminator"}),
        (3, {"z_encoder", "decoder", "px_r", "latent_discriminator", "data_discriminator"}),
    ],
)
def test_the_latent_discriminator_steps_in_every_third_minibatch(
    adata: AnnData, batch_idx: int, moved: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(adata)
    plan = PublishedPlan(model.module)
    optimizers = plan.configure_optimizers()
    monkeypatch.setattr(PublishedPlan, "optimizers", lambda self: optimizers)
    monkeypatch.setattr(PublishedPlan, "manual_backward", lambda self, loss: loss.backward())
    before = weights(model.module)
    plan.training_step(batch_of(adata), batch_idx)
    after = weights(model.module)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name.split(".")[0] for name in changed} == moved
    assert not any("decoder.reconstruction" in name for name in changed)


def test_the_generator_moves_the_encoder_alone_and_never_its_library(adata: AnnData) -> None:
    model = make(adata)
    plan = PublishedPlan(model.module)
    loss = plan._generator_loss(batch_of(adata))
    encoder = dict(model.module.z_encoder.named_parameters())
    gradients = torch.autograd.grad(loss, list(encoder.values()), allow_unused=True)
    reached = {n for n, g in zip(encoder, gradients, strict=True) if g is not None and g.any()}
    assert reached
    assert not any(name.startswith("library") for name in reached)


def test_the_second_discriminator_moves_nothing_but_itself(adata: AnnData) -> None:
    model = make(adata)
    loss = PublishedPlan(model.module)._data_loss(batch_of(adata))
    named = dict(model.module.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    reached = {n for n, g in zip(named, gradients, strict=True) if g is not None}
    assert {name.split(".")[0] for name in reached} == {"data_discriminator"}


@pytest.mark.parametrize(
    ("flag", "last", "other"), [(False, nn.Dropout, _Affine), (True, _Affine, nn.Dropout)]
)
def test_batch_norm_on_puts_an_affine_map_in_the_place_of_dropout(
    adata: AnnData, flag: bool, last: type[nn.Module], other: type[nn.Module]
) -> None:
    module = make(adata, batch_norm=flag).module
    stacks = [
        module.z_encoder.hidden,
        module.decoder.hidden,
        module.latent_discriminator[0],
        module.data_discriminator[0],
    ]
    for stack in stacks:
        assert [type(layer) for layer in stack] == [nn.Linear, nn.LeakyReLU, last] * 2
    assert not any(isinstance(layer, (nn.BatchNorm1d, other)) for layer in module.modules())


def test_networks_have_the_published_widths(adata: AnnData) -> None:
    PublishedDRA.setup_anndata(adata)
    module = PublishedDRA(adata, n_latent=2).module

    def widths(layers: torch.nn.Module) -> list[int]:
        return [m.out_features for m in layers.modules() if isinstance(m, torch.nn.Linear)]

    assert widths(module.z_encoder.hidden) == [512] * 4
    assert widths(module.z_encoder.library) == [2]
    assert widths(module.latent_discriminator) == [32] * 4 + [1]
    assert widths(module.data_discriminator) == [32] * 4 + [1]
    slopes = {m.negative_slope for m in module.modules() if isinstance(m, torch.nn.LeakyReLU)}
    assert slopes == {0.2}
    rates = {m.p for m in module.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.1}


def test_one_sample_of_the_codes_differs_from_their_mean(adata: AnnData) -> None:
    model = make(adata)
    model.train(max_epochs=1, batch_size=32, **QUIET)
    mean, sample = (model.get_latent_representation(give_mean=flag) for flag in (True, False))
    assert mean.shape == sample.shape == (150, 2)
    assert not np.allclose(mean, sample)


def test_divergence_stops_training_and_is_named(adata: AnnData) -> None:
    model = make(adata)
    with pytest.raises(TrainingDivergedError, match=r"epoch \d+, step \d+") as info:
        model.train(max_epochs=50, batch_size=32, plan_kwargs={"lr": 1e4}, **QUIET)
    assert info.value.term in PublishedPlan.LOSSES


def test_save_and_load_keep_the_embedding(adata: AnnData, tmp_path: Path) -> None:
    model = make(adata)
    model.train(max_epochs=1, batch_size=32, **QUIET)
    model.save(tmp_path / "model")
    # on other cells, whose maximum is another: the input keeps its scale
    few = adata[:40].copy()
    few.X.data[:] = np.minimum(few.X.data, 2)
    loaded = PublishedDRA.load(tmp_path / "model", adata=few, accelerator="cpu")
    np.testing.assert_allclose(
        loaded.get_latent_representation(), model.get_latent_representation(few), atol=1e-6
    )


def test_too_few_cells_for_a_window_are_refused(adata: AnnData) -> None:
    with pytest.raises(ValueError, match="120.*150 cells.*Lower batch_size"):
        make(adata).train(max_epochs=1, batch_size=128, **QUIET)


def test_cells_without_counts_are_refused(adata: AnnData) -> None:
    adata.X[7] = 0
    adata.X.eliminate_zeros()
    with (
        pytest.warns(UserWarning, match="no counts|without counts|all-zero|zero"),
        pytest.raises(InvalidCountsError, match="1 cells have no counts"),
    ):
        make(adata)


@pytest.mark.parametrize("n_latent", [2, 10, 20])
def test_the_preset_runs_on_real_counts(
    real_data: Callable[[str], AnnData], n_latent: int
) -> None:
    adata = real_data("zeisel_ewce_3005x200")
    settings = presets.published(n_latent)
    PublishedDRA.setup_anndata(adata)
    model = PublishedDRA(adata, **settings.model)
    model.train(**{**settings.train, "max_epochs": 1}, **QUIET)
    assert len(model.test_indices) == 601
    sample = model.get_latent_representation(indices=model.test_indices, give_mean=False)
    assert sample.shape == (601, n_latent)
    assert np.isfinite(sample).all()


def test_training_on_scaled_logs_raises_no_warning_about_their_support(adata: AnnData) -> None:
    model = make(adata)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*support of the distribution.*")
        model.train(max_epochs=1, batch_size=32, **QUIET)
