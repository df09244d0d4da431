"""Saved models: whole and equal when loaded, refused when damaged, safe while they are written."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scvi import settings
from scvi.train import SaveCheckpoint

from dra_scvi import DRA, GeneMismatchError, PublishedDRA, UntrustedModelError
from dra_scvi.cli import program
from tests.helpers import N_CELLS, N_GENES, STRICT, cells, equal, fit, tree, weights

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = STRICT

ARCHIVE = Path(__file__).parents[1] / "archive"


@pytest.fixture(scope="module")
def model() -> DRA:
    return fit(cells(), batch_key="batch")


@pytest.fixture
def folder(model: DRA, tmp_path: Path) -> Path:
    """Save a model."""
    model.save(tmp_path / "model")
    return tmp_path / "model"


def test_reorder_load(model: DRA, folder: Path) -> None:
    """Genes in another order: put in order by name when loading, refused elsewhere."""
    adata = cells()
    permuted = adata[:, np.random.default_rng(0).permutation(N_GENES)].copy()
    names = list(permuted.var_names)
    loaded = DRA.load(folder, adata=permuted, accelerator="cpu")
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    assert list(permuted.var_names) == names
    other = adata.copy()
    other.var_names = ["new", *adata.var_names[1:]]
    with pytest.raises(GeneMismatchError, match="first: 'gene_0'"):
        DRA.load(folder, adata=other)
    for use in (model.get_latent_representation, lambda a: DRA.load_query_data(a, str(folder))):
        with pytest.raises(GeneMismatchError, match="not in the model's order"):
            use(permuted.copy())


def test_fewer_genes(model: DRA, folder: Path) -> None:
    """Genes of the model that the data lack: refused, with their number and the first."""
    fewer = cells()[:, 3:].copy()
    for use in (model.get_latent_representation, lambda adata: DRA.load(folder, adata=adata)):
        with pytest.raises(ValueError, match=r"3 of the model's 12 genes .*first: 'gene_0'"):
            use(fewer.copy())


def test_new_batch(model: DRA) -> None:
    """A batch that the model has not seen: refused by name."""
    adata = cells()
    adata.obs["batch"] = ["unseen"] * N_CELLS
    with pytest.raises(ValueError, match="unseen"):
        model.get_latent_representation(adata)


def test_trunc_file(folder: Path) -> None:
    """A model file cut off at any length: refused as corrupt or truncated."""
    file = folder / "model.pt"
    whole = file.read_bytes()
    for length in np.linspace(0, len(whole) - 1, 20).astype(int):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="corrupt or truncated"):
            DRA.load(folder, adata=cells())
    file.write_bytes(whole)
    DRA.load(folder, adata=cells(), accelerator="cpu")


def test_bitflip(folder: Path) -> None:
    """One flipped bit anywhere in a model file: refused as corrupt or truncated."""
    file = folder / "model.pt"
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for place, bit in zip(rng.integers(0, len(whole), 50), rng.integers(0, 8, 50), strict=True):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(bit)
        file.write_bytes(flipped)
        with pytest.raises(ValueError, match="corrupt or truncated"):
            DRA.load(folder, adata=cells())


class Hostile:
    """What is pickled as a call of :func:`os.system`."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_hostile_pickle(folder: Path, tmp_path: Path) -> None:
    """Code hidden in a saved model: refused and not run, unless `trusted=True`."""
    content = torch.load(folder / "model.pt", weights_only=False)
    content["attr_dict"]["extra_"] = Hostile(f"touch {tmp_path / 'executed'}")
    torch.save(content, folder / "model.pt")
    (folder / "manifest.json").unlink()
    for use in (
        lambda: DRA.load(folder, adata=cells()),
        lambda: DRA.load_registry(folder),
        lambda: DRA.load_query_data(cells(), folder),
        lambda: DRA.prepare_query_anndata(cells(), folder),
    ):
        with pytest.raises(UntrustedModelError, match=r"(posix|nt)\.system"):
            use()
    result = CliRunner().invoke(program, ["info", str(folder)])
    assert result.exit_code == 65
    assert not (tmp_path / "executed").exists()
    DRA.load(folder, adata=cells(), accelerator="cpu", trusted=True)
    assert (tmp_path / "executed").exists()


def test_missing_file(tmp_path: Path) -> None:
    """A model folder that is not there or is empty: an error that says which."""
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'none'} does not exist"):
        DRA.load(tmp_path / "none", adata=cells())
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} holds no model\.pt"):
        DRA.load(tmp_path, adata=cells())


def test_exists(model: DRA, folder: Path) -> None:
    """Saving over a model: refused without `overwrite=True`; the old model is left alone."""
    before = tree(folder)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.save(folder)
    assert tree(folder) == before


def test_failed_overwrite(
    model: DRA, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills while saving: an error; the old model is intact, nothing is left."""

    def half_a_file(content: Any, path: str, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk is full")

    def no_sync(descriptor: int) -> None:
        raise OSError("disk is full")

    expected, before = weights(model), tree(tmp_path)
    for module, name, fail in ((torch, "save", half_a_file), (os, "fsync", no_sync)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(OSError, match="disk is full"):
                model.save(folder, overwrite=True)
            with pytest.raises(OSError, match="disk is full"):
                model.save(tmp_path / "new")
        assert tree(tmp_path) == before
        assert equal(weights(DRA.load(folder, adata=cells(), accelerator="cpu")), expected)


def test_kill_save(
    model: DRA, folder: Path, tmp_path: Path, in_child: Callable[[Callable], int]
) -> None:
    """A process killed while it saves: the old or the new model, whole, and no remains."""
    other = fit(cells(), batch_key="batch")
    known = [weights(model), weights(other)]
    start = time.perf_counter()
    model.save(folder, overwrite=True, save_anndata=True)
    duration = time.perf_counter() - start

    def save_forever() -> None:
        while True:
            for one in (other, model):
                one.save(folder, overwrite=True, save_anndata=True)

    for attempt in range(20):
        child = in_child(save_forever)
        time.sleep(random.Random(attempt).uniform(0, 5 * duration))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = weights(DRA.load(folder, adata=cells(), accelerator="cpu"))
        assert any(equal(found, expected) for expected in known)
    model.save(folder, overwrite=True)
    assert {path.name for path in folder.iterdir()} == {"model.pt", "adata.h5ad", "manifest.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_concurrent_save(model: DRA, tmp_path: Path, in_child: Callable[[Callable], int]) -> None:
    """Two processes that save to one folder: one of the two models, whole."""
    other = fit(cells(), batch_key="batch")

    def save_often(one: DRA) -> None:
        for _ in range(10):
            one.save(tmp_path / "model", overwrite=True)

    children = [in_child(lambda one=one: save_often(one)) for one in (model, other)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    found = weights(DRA.load(tmp_path / "model", adata=cells(), accelerator="cpu"))
    assert equal(found, weights(model)) or equal(found, weights(other))
    assert set(tree(tmp_path)) == {"model/model.pt", "model/manifest.json"}


def test_round_trip(model: DRA, folder: Path) -> None:
    """A model saved and loaded: every weight and the embedding to the last bit."""
    loaded = DRA.load(folder, adata=cells(), accelerator="cpu")
    expected, found = model.module.state_dict(), loaded.module.state_dict()
    assert expected.keys() == found.keys()
    for part in ("latent_discriminator", "data_discriminator", "prior"):
        assert any(name.startswith(part) for name in found), part
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )


def test_old_model() -> None:
    """Models saved by older versions: loaded, with the embedding they had."""
    folders = sorted(path.parent for path in ARCHIVE.glob("*/latent.npy"))
    assert folders
    for folder in folders:
        cls = {"DRA": DRA, "PublishedDRA": PublishedDRA}[folder.name.split("-")[1]]
        loaded = cls.load(folder, accelerator="cpu")
        found = loaded.get_latent_representation()
        np.testing.assert_allclose(found, np.load(folder / "latent.npy"), rtol=1e-4, atol=1e-5)


def test_save_checkpoint_keeps_a_finished_model(tmp_path: Path) -> None:
    """What SaveCheckpoint keeps has fitted dispersions, and training goes on as without it."""
    made = []
    for callbacks in ([], [SaveCheckpoint(dirpath=tmp_path, monitor="elbo_validation")]):
        settings.seed = 0
        train = {"max_epochs": 4, "check_val_every_n_epoch": 2, "callbacks": callbacks}
        made.append(fit(cells(), **train))
    settings.seed = None
    assert equal(weights(made[0]), weights(made[1]))
    kept = {path.name[:7]: path for path in tmp_path.iterdir()}
    loaded = DRA.load(kept["epoch=3"], adata=made[1].adata, accelerator="cpu")
    assert torch.equal(loaded.module.px_r, made[1].module.px_r)
