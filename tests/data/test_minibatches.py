"""Tests of minibatches from resident data: the same as scvi-tools' own, wherever data lies."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scvi import settings as scvi_settings
from scvi.dataloaders import DataSplitter as UpstreamDataSplitter

from dra_scvi import DRA
from dra_scvi._data import minibatches as _data_splitting
from dra_scvi._data.minibatches import DataSplitter, Minibatches, Share
from dra_scvi._data.rows import (
    DenseRows,
    StoredRows,
    registered_rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData
    from scvi.data import AnnDataManager

FORMATS = {
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "dense": lambda x: x.toarray(),
    "float64": lambda x: sp.csr_matrix(x, dtype=np.float64),
    "uint16": lambda x: sp.csr_matrix(x, dtype=np.uint16),
    "int64": lambda x: x.toarray().astype(np.int64),
}


@pytest.fixture(autouse=True)
def _seeded_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every split the same cells; scvi-tools draws them from its own seed."""
    monkeypatch.setattr(type(scvi_settings), "seed", 0)


@pytest.fixture
def manager(adata: AnnData) -> Callable[..., AnnDataManager]:
    rng = np.random.default_rng(0)
    adata.obs["donor"] = rng.choice(["a", "b", "c"], adata.n_obs)
    adata.obs["age"] = rng.normal(size=adata.n_obs)
    adata.X = sp.csr_matrix(adata.X)

    def register(form: str = "csr") -> AnnDataManager:
        adata.X = FORMATS[form](adata.X)
        DRA.setup_anndata(
            adata,
            batch_key="batch",
            categorical_covariate_keys=["donor"],
            continuous_covariate_keys=["age"],
        )
        return DRA(adata).adata_manager

    return register


def _same(ours: Any, theirs: Any) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for key in mine:
            assert mine[key].dtype == other[key].dtype, key
            torch.testing.assert_close(mine[key], other[key], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:For sparse:UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("drop_last", [False, True])
def test_minibatches_are_those_of_scvi_tools(manager: Any, form: Any, drop_last: Any) -> None:
    registered = manager(form)
    options = {"train_size": 0.6, "validation_size": 0.3, "batch_size": 32, "drop_last": drop_last}
    splitters = [cls(registered, **options) for cls in (DataSplitter, UpstreamDataSplitter)]
    for splitter in splitters:
        splitter.setup()
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        epochs = []
        for splitter in splitters:
            torch.manual_seed(3)
            loader = getattr(splitter, name)()
            epochs.append(list(loader) + list(loader))
            assert len(loader) == len(epochs[-1]) // 2
        assert isinstance(getattr(splitters[0], name)(), Minibatches)
        _same(*epochs)


def test_the_random_state_after_an_epoch_is_that_of_scvi_tools(manager: Any) -> None:
    registered = manager()
    states = []
    for cls in (DataSplitter, UpstreamDataSplitter):
        splitter = cls(registered, train_size=0.9, batch_size=32)
        splitter.setup()
        torch.manual_seed(0)
        list(splitter.train_dataloader())
        list(splitter.val_dataloader())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@settings(max_examples=50, deadline=None)
@given(
    n_cells=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_every_cell_comes_once_an_epoch(
    n_cells: int, batch_size: int, shuffle: bool, drop_last: bool
) -> None:
    rows = {"X": DenseRows(torch.arange(n_cells)[:, None], torch.float32)}
    batches = Minibatches(rows, np.arange(n_cells), batch_size, shuffle, drop_last)
    sizes = [len(batch["X"]) for batch in batches]
    cells = torch.cat([batch["X"] for batch in batches]) if sizes else torch.empty(0, 1)
    assert len(batches) == len(sizes)
    assert len(cells.unique()) == len(cells)
    if drop_last:
        assert set(sizes) <= {batch_size}
        assert n_cells - len(cells) < batch_size
    else:
        assert len(cells) == n_cells
    if shuffle and batch_size > 1 and n_cells > 1:
        assert 1 not in sizes


def test_a_last_minibatch_of_one_cell_trains(adata: AnnData) -> None:
    DRA.setup_anndata(adata)
    model = DRA(adata)
    n_train = 33
    model.train(
        1,
        accelerator="cpu",
        train_size=n_train / adata.n_obs,
        batch_size=32,
        enable_progress_bar=False,
    )
    assert len(model.train_indices) == n_train
    assert np.isfinite(model.get_latent_representation()).all()


def in_file(adata: AnnData, path: Path, form: str) -> AnnData:
    """Return the same cells with counts that stay in a file, or in chunks."""
    if form == "dask":
        dask_array = pytest.importorskip("dask.array")
        adata.X = dask_array.from_array(adata.X.toarray(), chunks=(40, 40))
        return adata
    if form == "dense":
        adata.X = adata.X.toarray()
    if form == "zarr":
        zarr = pytest.importorskip("zarr")
        adata.write_zarr(path)
        stored = anndata.io.sparse_dataset(zarr.open(path)["X"])
        return anndata.AnnData(stored, obs=adata.obs, var=adata.var)
    adata.write_h5ad(path)
    return anndata.read_h5ad(path, backed="r")


FILES = ("csr", "dense", "zarr", "dask")


@pytest.mark.parametrize("form", FILES)
def test_cells_of_a_file_come_once_an_epoch_in_a_new_order(
    form: str, tmp_path: Path, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_data_splitting, "_ROWS_PER_BLOCK", 8)
    monkeypatch.setattr(_data_splitting, "_ROWS_HELD", 32)
    adata.X = sp.csr_matrix(adata.X)
    expected = adata.X.toarray()
    place = {row.tobytes(): i for i, row in enumerate(expected)}
    stored = in_file(adata, tmp_path / "cells", form)
    DRA.setup_anndata(stored, batch_key="batch")
    rows = registered_rows(DRA(stored).adata_manager)
    assert isinstance(rows["X"], StoredRows)
    cells = np.random.default_rng(0).permutation(150)[:120]
    minibatches = Minibatches(rows, cells, 10, shuffle=True)
    passes = []
    for _ in range(2):
        batches = list(minibatches)
        assert len(batches) == len(minibatches) == 12
        x = torch.cat([batch["X"] for batch in batches]).numpy()
        seen = [place[row.tobytes()] for row in x]
        batch_index = torch.cat([batch["batch"] for batch in batches]).numpy().ravel()
        codes = adata.obs["batch"].astype("category").cat.codes.to_numpy()
        np.testing.assert_array_equal(codes[seen], batch_index)
        passes.append(seen)
    assert passes[0] != passes[1]
    assert sorted(passes[0]) == sorted(passes[1])
    in_order = Minibatches(rows, cells, 50)
    x = torch.cat([batch["X"] for batch in in_order]).numpy()
    np.testing.assert_array_equal(x, expected[np.sort(cells)])


@pytest.mark.parametrize("form", FILES)
def test_a_file_trains_and_embeds_like_memory(form: str, tmp_path: Path, adata: AnnData) -> None:
    DRA.setup_anndata(adata)
    model = DRA(adata)
    model.train(1, accelerator="cpu", enable_progress_bar=False)
    expected = model.get_latent_representation()
    stored = in_file(adata.copy(), tmp_path / "cells", form)
    np.testing.assert_allclose(model.get_latent_representation(stored), expected, atol=1e-5)
    order = [100, 3, 7, 3]
    codes = model.get_latent_representation(stored, indices=order)
    np.testing.assert_allclose(codes, expected[order], atol=1e-5)
    DRA.setup_anndata(stored)
    model = DRA(stored)
    model.train(2, accelerator="cpu", check_val_every_n_epoch=1, enable_progress_bar=False)
    assert len(model.history["elbo_validation"]) == 2
    assert isinstance(model.trainer.train_dataloader, Minibatches)
    assert np.isfinite(model.get_latent_representation()).all()


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_processes_share_the_cells_of_an_epoch(is_stored: bool, shuffle: bool) -> None:
    x = np.arange(37, dtype=np.float32)[:, None]
    rows = {"X": StoredRows(x) if is_stored else DenseRows(torch.from_numpy(x), torch.float32)}
    shares = [
        [batch["X"] for batch in Minibatches(rows, np.arange(37), 5, shuffle, share=share)]
        for share in (Share(rank, 2, lambda _: 7) for rank in range(2))
    ]
    assert [len(batch) for batch in shares[0]] == [len(batch) for batch in shares[1]]
    seen = torch.cat([torch.cat(share) for share in shares]).ravel()
    assert len(seen) == 38
    assert sorted(set(seen.tolist())) == list(range(37))


@pytest.mark.parametrize("options", [{"load_sparse_tensor": True}, {"num_workers": 0}])
def test_options_of_the_loader_keep_the_loader_of_scvi_tools(manager: Any, options: Any) -> None:
    splitter = DataSplitter(manager(), batch_size=32, **options)
    splitter.setup()
    assert not isinstance(splitter.train_dataloader(), Minibatches)
    assert splitter._rows is None


def test_training_is_that_of_the_loader_of_scvi_tools(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = []
    for cls in (DataSplitter, UpstreamDataSplitter):
        monkeypatch.setattr(DRA, "_data_splitter_cls", cls)
        torch.manual_seed(0)
        DRA.setup_anndata(adata, batch_key="batch")
        model = DRA(adata)
        model.train(3, accelerator="cpu", batch_size=32, enable_progress_bar=False)
        codes.append(model.get_latent_representation())
    np.testing.assert_array_equal(*codes)


# -- places and processes ------------------------------------------------------------------------


def stored_cells(n_cells: int, size: int, shuffle: bool = True, **more: Any) -> list[list[int]]:
    """Return the cells of each minibatch of a file whose cells are numbers."""
    rows: Any = {"X": StoredRows(np.arange(n_cells, dtype=np.float32)[:, None])}
    batches = Minibatches(rows, np.arange(n_cells), size, shuffle, **more)
    return [batch["X"].ravel().int().tolist() for batch in batches]


def test_as_many_cells_of_a_file_as_are_held_come_from_whole_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (_data_splitting._ROWS_PER_BLOCK, _data_splitting._ROWS_HELD) == (128, 128 * 128)
    monkeypatch.setattr(_data_splitting, "_ROWS_PER_BLOCK", 4)
    monkeypatch.setattr(_data_splitting, "_ROWS_HELD", 12)
    batches = stored_cells(48, 3)
    assert [len(batch) for batch in batches] == [3] * 16
    held = [sorted(sum(batches[first : first + 4], [])) for first in range(0, 16, 4)]
    for cells in held:  # three blocks of four at a time, in any order
        blocks = [cells[start : start + 4] for start in (0, 4, 8)]
        assert all(block == list(range(block[0], block[0] + 4)) for block in blocks)
        assert all(block[0] % 4 == 0 for block in blocks)
    assert sorted(sum(held, [])) == list(range(48))
    assert sorted(sum(batches[:4], [])) != sum(batches[:4], [])
    # as many as can be held come as from memory, and so does what a large minibatch consists of
    torch.manual_seed(0)
    of_file = stored_cells(12, 5)
    torch.manual_seed(0)
    rows: Any = {"X": DenseRows(torch.arange(12.0)[:, None], torch.float32)}
    of_memory = Minibatches(rows, np.arange(12), 5, True)
    assert of_file == [batch["X"].ravel().int().tolist() for batch in of_memory]
    assert sorted(sum(stored_cells(48, 30), [])) == list(range(48))


def test_one_cell_and_cells_of_any_type() -> None:
    assert stored_cells(1, 5) == [[0]]
    rows: Any = {"X": DenseRows(torch.arange(5.0)[:, None], torch.float32)}
    cells = np.array([3, 1], dtype=np.int16)
    assert Minibatches(rows, cells, 2).indices.dtype == torch.int64


def test_processes_agree_on_an_order_by_a_seed_of_64_bits() -> None:
    seeds: list[int] = []

    def agree(seed: int) -> int:
        seeds.append(seed)
        return 5

    rows: Any = {"X": DenseRows(torch.arange(9.0)[:, None], torch.float32)}
    batches = Minibatches(rows, np.arange(9), 9, True, share=Share(0, 2, agree))
    ((batch,), _) = ([b["X"].ravel().int().tolist() for b in batches] for _ in range(2))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(5))
    assert batch == order[:5].tolist()
    assert max(seeds) > 2**32


def test_cells_of_a_file_are_read_as_many_at_a_time_as_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_data_splitting, "_ROWS_HELD", 12)
    read: list[int] = []
    hold = StoredRows.hold

    def noting(self: StoredRows, index: torch.Tensor) -> Any:
        read.append(len(index))
        return hold(self, index)

    monkeypatch.setattr(StoredRows, "hold", noting)
    for n_cells, size, expected in ((26, 5, [10, 10, 6]), (12, 5, [12]), (40, 20, [20, 20])):
        stored_cells(n_cells, size, shuffle=False)
        assert read == expected
        read.clear()


def trainer(device: str = "cpu", **more: Any) -> Any:
    strategy = SimpleNamespace(root_device=torch.device(device), broadcast=lambda value: value)
    return SimpleNamespace(**{"world_size": 1, "global_rank": 0, "strategy": strategy, **more})


def test_processes_split_the_cells_as_the_first_one_does(manager: Any) -> None:
    splitter = DataSplitter(manager(), train_size=0.6, validation_size=0.3, batch_size=32)
    splitter.trainer = trainer(world_size=2, global_rank=1)
    first = np.arange(3), np.arange(3, 5), np.arange(5, 6)
    splitter.trainer.strategy.broadcast = lambda _: first
    splitter.setup()
    assert (splitter.train_idx, splitter.val_idx, splitter.test_idx) == first
    splitter.trainer.strategy.broadcast = lambda seed: 3
    for loader, size in ((splitter.train_dataloader(), 2), (splitter.val_dataloader(), 1)):
        assert loader.share.rank == 1
        assert [len(batch["X"]) for batch in loader] == [size]


def test_where_minibatches_come_from_is_said(
    manager: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path, adata: AnnData
) -> None:
    registered = manager()
    stored = in_file(adata.copy(), tmp_path / "cells", "csr")
    DRA.setup_anndata(stored)
    of_file = DRA(stored).adata_manager
    with caplog.at_level("INFO", "dra_scvi"):
        for given, options in ((registered, {}), (registered, {"num_workers": 0}), (of_file, {})):
            splitter = DataSplitter(given, batch_size=7, **options)
            splitter.trainer = trainer()
            splitter.setup()
            splitter.train_dataloader()
    in_memory, by_others, in_place = (
        said for said in caplog.messages if said.startswith("Minibatches of 7 cells come from ")
    )
    assert in_memory.endswith("come from counts in memory (CSR, 0.0 MB).")
    assert by_others.endswith("come from scvi-tools' loader.")
    assert in_place.endswith("come from counts where they are stored (_CSRDataset).")


def test_an_accelerator_is_asked_for_room(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(_data_splitting, "registered_rows", lambda _, d: asked.append(d))
    for device in ("cpu", "cuda", None):
        splitter = DataSplitter(manager(), batch_size=32)
        splitter.trainer = None if device is None else trainer(device)
        assert splitter._rows is None
    assert asked == [None, torch.device("cuda"), None]


def test_the_loader_of_scvi_tools_gets_no_last_minibatch_of_one_cell(
    manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = manager()
    for n_cells, size, expected in (
        (33, 32, True),
        (32, 32, False),
        (34, 32, False),
        (1, 32, False),
    ):
        splitter = DataSplitter(registered, batch_size=size, num_workers=0)
        splitter.setup()
        splitter.train_idx = np.arange(n_cells)
        assert not splitter.drop_last
        loader = splitter.train_dataloader()
        assert splitter.drop_last is expected
        assert sum(len(batch["X"]) for batch in loader) == (32 if expected else n_cells)
    monkeypatch.setattr(scvi_settings, "dl_num_workers", 1)
    assert not DataSplitter(registered, batch_size=32)._may_be_resident
    monkeypatch.setattr(scvi_settings, "dl_num_workers", 0)
    assert DataSplitter(registered)._may_be_resident
    assert DataSplitter(registered)._batch_size == scvi_settings.batch_size
    assert DataSplitter(registered, distributed_sampler=False)._may_be_resident


def test_of_no_cells_there_are_no_minibatches(manager: Any) -> None:
    splitter = DataSplitter(manager(), train_size=1.0, batch_size=32, drop_last=True)
    splitter.setup()
    assert splitter._minibatches(np.array([], dtype=int)) is None
    assert isinstance(splitter._minibatches(np.array([3])), Minibatches)
    assert [len(batch["X"]) for batch in splitter.train_dataloader()] == [32] * 4
    splitter.val_idx = splitter.test_idx = np.arange(33)
    for loader in (splitter.val_dataloader(), splitter.test_dataloader()):
        assert [len(batch["X"]) for batch in loader] == [32, 1]  # all of them
