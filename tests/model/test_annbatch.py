"""Counts that annbatch reads, in the versions that scvi-tools knows and in those after."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scvi.model import SCVI

from dra_scvi import DRA, datasets
from dra_scvi._compat import with_any_annbatch

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = {"batch_size": 16, "chunk_size": 8, "preload_nchunks": 4, "preload_to_gpu": False}
QUIET: dict[str, Any] = {"enable_progress_bar": False, "accelerator": "cpu", "max_epochs": 1}


def loader_of_before(to_torch: bool | None = None, to: str | None = None) -> str:
    return f"before: to_torch={to_torch}, to={to}"


def loader_of_today(to: str | None = None, batch_size: int = 1) -> str:
    return f"today: to={to}, batch_size={batch_size}"


def make_loader(**options: Any) -> str:
    """Call annbatch as scvi-tools 1.5 does."""
    from annbatch import Loader

    return str(Loader(to_torch=True, **options))


def test_the_loader_is_asked_for_tensors_by_the_name_that_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = SimpleNamespace(Loader=loader_of_before)
    monkeypatch.setitem(sys.modules, "annbatch", module)  # type: ignore[arg-type]
    assert with_any_annbatch(make_loader)() == "before: to_torch=True, to=None"
    module.Loader = loader_of_today
    assert with_any_annbatch(make_loader)(batch_size=3) == "today: to=torch, batch_size=3"
    with pytest.raises(TypeError, match="unknown"):
        with_any_annbatch(make_loader)(unknown=3)
    assert module.Loader is loader_of_today


def test_what_is_missing_is_still_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "annbatch", None)
    with pytest.raises(ImportError, match="annbatch"):
        with_any_annbatch(make_loader)()


def embedding(module: Any) -> np.ndarray:
    model = DRA(registry=module.registry, n_hidden=8, n_latent=3)
    model.train(datamodule=module, **QUIET)
    return np.asarray(model.get_latent_representation(dataloader=module.inference_dataloader()))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    pytest.importorskip("annbatch", reason='annbatch: pip install "dra_scvi[scale]"')
    if not hasattr(SCVI, "setup_annbatch"):
        pytest.skip("scvi-tools 1.5 is the first that reads by annbatch")
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for seed, path in enumerate(paths):
        adata = datasets.synthetic(n_cells=64, n_genes=20, n_batches=2, seed=seed, n_types=2)
        adata.obs = adata.obs.astype(str)
        adata = adata[np.argsort(adata.obs["cell_type"])].copy()  # sampling by class needs runs
        adata.write_h5ad(path)
    return [str(path) for path in paths]


def test_training_on_cells_in_memory(files: list[str]) -> None:
    import anndata

    cells = [anndata.read_h5ad(path) for path in files]
    codes = embedding(DRA.setup_annbatch(adatas=cells, batch_key="batch", **OPTIONS))
    assert codes.shape == (128, 3)
    assert np.isfinite(codes).all()


@pytest.mark.parametrize("by_class", [False, True], ids=["in order", "by class"])
def test_training_on_a_collection_of_files(
    files: list[str], tmp_path: Path, by_class: bool
) -> None:
    pytest.importorskip("zarrs", reason='annbatch\'s collections: pip install "annbatch[zarrs]"')
    sampling = {"use_class_sampler": True, "labels_key": "cell_type"} if by_class else {}
    store = str(tmp_path / "cells.zarr")
    module = DRA.setup_annbatch(store, files, batch_key="batch", **OPTIONS, **sampling)
    codes = embedding(module)
    assert codes.shape == (128, 3)
    assert np.isfinite(codes).all()


def test_a_loader_of_ones_own(files: list[str]) -> None:
    import anndata
    from annbatch import Loader
    from scvi.dataloaders import AnnbatchDataModule

    cells = [anndata.read_h5ad(path) for path in files]
    for part in cells:
        part.X = part.X.toarray()
    loader = Loader(**OPTIONS, to="torch").add_adatas(cells)
    module = AnnbatchDataModule(
        loader, batch_key="batch", model_name="DRA", var_names=list(cells[0].var_names), **OPTIONS
    )
    assert embedding(module).shape == (128, 3)
