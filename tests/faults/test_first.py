"""The reliability contract: one test for each fault that a user, a file or a machine can cause."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from scipy import sparse

from dra_scvi import (
    DRA,
    GeneMismatchError,
    InvalidCountsError,
    PublishedDRA,
    TrainingDivergedError,
    TrainingInterruptedError,
    UntrustedModelError,
    metrics,
)
from dra_scvi.cli import program
from tests.helpers import (
    N_CELLS,
    N_GENES,
    QUIET,
    SMALL,
    assert_trained,
    cells,
    embed,
    equal,
    fit,
    tree,
    weights,
    with_value,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.filterwarnings("error"),
    # Lightning's remarks on trainings as small as these, and what it uses of torch
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*log_every_n_steps"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Sparse (invariant checks|CSR tensor support)"),
    # anndata's use of pandas
    pytest.mark.filterwarnings("ignore:The '[a-z._]+' option is deprecated:DeprecationWarning"),
    # scvi-tools' remarks, where dra_scvi has an answer
    pytest.mark.filterwarnings("ignore:Category . in .* has fewer than 3 cells"),
    pytest.mark.filterwarnings("ignore:Last batch will have a small size"),
    pytest.mark.filterwarnings("ignore:`var_names` for the loaded `model` does not match"),
]

ARCHIVE = Path(__file__).parents[1] / "archive"


@pytest.fixture(scope="module")
def model() -> DRA:
    return fit(cells(), batch_key="batch")


@pytest.fixture
def folder(model: DRA, tmp_path: Path) -> Path:
    """Save a model."""
    model.save(tmp_path / "model")
    return tmp_path / "model"


# -- counts ------------------------------------------------------------------------------------


def test_nan() -> None:
    """NaN in the counts: refused before training, with layer, cell and gene."""
    adata = cells()
    adata.layers["counts"] = with_value(np.nan).X
    adata.X = sparse.csr_matrix(adata.layers["counts"])
    places = {"adata.X": None, "adata.layers['counts']": "counts"}
    for where, layer in places.items():
        with pytest.raises(InvalidCountsError) as caught:
            DRA.setup_anndata(adata, layer=layer)
        text = f"{where} holds 1 NaN value (first: cell 'cell_7', gene 'gene_3')"
        assert text in str(caught.value)
        assert caught.value.report["nan"]["count"] == 1
    assert not adata.uns


def test_inf() -> None:
    """Infinite counts: refused, with cell and gene."""
    for value in (np.inf, -np.inf):
        with pytest.raises(InvalidCountsError, match=r"1 infinite value .*'cell_7'.*'gene_3'"):
            DRA.setup_anndata(with_value(value))


@settings(max_examples=60, deadline=None)
@given(
    row=st.integers(0, N_CELLS - 1),
    column=st.integers(0, N_GENES - 1),
    convert=st.sampled_from([np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array]),
)
def test_negative(row: int, column: int, convert: Callable[[Any], Any]) -> None:
    """One negative count anywhere, dense or sparse: refused, with cell and gene."""
    adata = with_value(-1, row, column)
    adata.X = convert(adata.X)
    place = f"1 negative value .*'cell_{row}', gene 'gene_{column}'"
    with pytest.raises(InvalidCountsError, match=place):
        DRA.setup_anndata(adata)


def test_noninteger() -> None:
    """Counts with fractions: refused, or taken with one warning if `allow_noninteger=True`."""
    rng = np.random.default_rng(0)
    for row, column in zip(
        rng.integers(0, N_CELLS, 100), rng.integers(0, N_GENES, 100), strict=True
    ):
        adata = with_value(1.5, row, column)
        with pytest.raises(InvalidCountsError, match="1 non-integer value"):
            DRA.setup_anndata(adata)
    with pytest.warns(UserWarning, match="1 non-integer value") as caught:
        found = fit(adata, setup={"allow_noninteger": True})
    assert len([w for w in caught if "integer" in str(w.message)]) == 1
    assert_trained(found)


def test_lognorm() -> None:
    """Log-normalised values in place of counts: refused, naming the layer that holds integers."""
    adata = cells()
    adata.layers["counts"] = adata.X.copy()
    adata.layers["other"] = adata.X.log1p()
    adata.X = adata.X.log1p()
    with pytest.raises(InvalidCountsError, match="looks log-normalised") as caught:
        DRA.setup_anndata(adata)
    assert "(integers are in: layer='counts')" in str(caught.value)


def test_empty_cell() -> None:
    """Cells without counts: a warning that names the first; training stays finite."""
    adata = cells()
    matrix = adata.X.toarray()
    matrix[[4, 9]] = 0
    adata.X = matrix
    with pytest.warns(UserWarning, match=r"2 cells have no counts \(first: 'cell_4'\)"):
        found = fit(adata)
    assert_trained(found)


def test_empty_gene(caplog: pytest.LogCaptureFixture) -> None:
    """A gene without counts: told in the log; training stays finite."""
    adata = cells()
    matrix = adata.X.toarray()
    matrix[:, 5] = 0
    adata.X = matrix
    with caplog.at_level("INFO", logger="dra_scvi"):
        found = fit(adata)
    assert "adata.X: 1 gene has no counts." in caplog.messages
    assert_trained(found)


def test_zero_batch() -> None:
    """A batch whose cells have no counts at all: refused by name."""
    adata = cells()
    matrix = adata.X.toarray()
    matrix[(adata.obs["batch"] == adata.obs["batch"].iloc[0]).to_numpy()] = 0
    adata.X = matrix
    with pytest.raises(InvalidCountsError, match=f"of batch '{adata.obs['batch'].iloc[0]}'"):
        DRA.setup_anndata(adata, batch_key="batch")


def test_one_batch() -> None:
    """A batch column with one value: trained on; scores of integration are refused."""
    adata = cells()
    adata.obs["batch"] = "the only one"
    found = fit(adata, batch_key="batch")
    assert_trained(found)
    assert found.history["latent_divergence_train"].to_numpy().any()
    assert found.history["data_divergence_train"].to_numpy().any()
    scores = metrics.clustering(found.get_latent_representation(), adata.obs["cell_type"])
    assert np.isfinite(list(scores.values())).all()
    assert not any("batch" in name for name in scores)
    with pytest.raises(ValueError, match="batch"):
        metrics.integration(adata.X.toarray(), adata.obs["cell_type"], adata.obs["batch"])


def test_singleton() -> None:
    """A batch of one cell: a warning; training stays finite."""
    adata = cells()
    adata.obs["donor"] = ["a"] + ["b"] * (N_CELLS - 1)
    with pytest.warns(UserWarning, match="fewer than 3 cells"):
        found = fit(adata, batch_key="donor")
    assert_trained(found)


def test_huge() -> None:
    """Counts above 2**24, which 32-bit floats round: a warning; training stays finite."""
    adata = with_value(1e9, dtype=np.int64)
    with pytest.warns(UserWarning, match=r"counts up to 1000000000; above 2\*\*24"):
        found = fit(adata)
    assert_trained(found)


# -- keys, names and shapes --------------------------------------------------------------------


def test_missing_key() -> None:
    """A column that is not there: refused, with the name that was probably meant."""
    for argument in ("batch_key", "labels_key", "size_factor_key"):
        with pytest.raises(KeyError, match="did you mean 'batch'"):
            DRA.setup_anndata(cells(), **{argument: "bach"})
    with pytest.raises(KeyError, match="did you mean 'batch'"):
        DRA.setup_anndata(cells(), categorical_covariate_keys=["batch", "Batches"])


def test_missing_layer() -> None:
    """A layer that is not there: refused, with the layers that are."""
    adata = cells()
    adata.layers["counts"], adata.layers["raw"] = adata.X, adata.X
    with pytest.raises(KeyError, match="did you mean 'counts'") as caught:
        DRA.setup_anndata(adata, layer="count")
    assert "Available: 'counts', 'raw'." in str(caught.value)


def test_nan_batch() -> None:
    """Cells without a batch: refused, with their number and how to drop them."""
    adata = cells()
    adata.obs["donor"] = pd.Categorical(["a", None, None] + ["b"] * (N_CELLS - 3))
    with pytest.raises(ValueError, match=r"2 of 60 cells without a value.*notna\(\)\]\.copy"):
        DRA.setup_anndata(adata, batch_key="donor")


def test_dup_genes() -> None:
    """Gene names that repeat: refused, naming the first and the remedy."""
    adata = cells()
    adata.var_names = ["a", "a", *adata.var_names[2:]]
    with pytest.raises(ValueError, match=r"first: 'a'.*var_names_make_unique"):
        DRA.setup_anndata(adata)


def test_dup_cells(model: DRA) -> None:
    """Cell names that repeat: a warning; the embedding is unchanged."""
    adata = cells()
    expected = model.get_latent_representation(adata.copy())
    adata.obs_names = ["same"] * N_CELLS
    with pytest.warns(UserWarning, match="59 cell names repeat"):
        found = model.get_latent_representation(adata)
    np.testing.assert_array_equal(found, expected)
    with pytest.warns(UserWarning, match="59 cell names repeat"):
        assert_trained(fit(adata))


def test_view() -> None:
    """A view of an AnnData: refused, with the advice to copy it."""
    with pytest.raises(ValueError, match=r"adata\.copy\(\)"):
        DRA.setup_anndata(cells()[:20])


def test_csr_array() -> None:
    """SciPy's sparse arrays: the embedding that sparse matrices give; the data are left alone."""
    expected = embed(cells())
    for convert in (sparse.csr_array, sparse.csc_array):
        adata = cells()
        adata.X = convert(adata.X)
        before = adata.X.copy()
        np.testing.assert_array_equal(embed(adata), expected)
        assert type(adata.X) is convert
        assert (before != adata.X).nnz == 0
        found = fit(adata, load_sparse_tensor=convert is sparse.csr_array)
        assert found.get_normalized_expression().shape == adata.shape


def test_csc() -> None:
    """Counts by column (CSC): advice to convert; the same embedding."""
    adata = cells()
    adata.X = sparse.csc_matrix(adata.X)
    with pytest.warns(UserWarning, match="formatted as CSR"):
        found = embed(adata)
    np.testing.assert_allclose(found, embed(cells()), rtol=1e-5, atol=1e-5)


def test_dtypes() -> None:
    """Counts as integers or floats of any width: the same embedding to the last bit."""
    for make in (lambda x: x, lambda x: x.toarray()):
        expected = None
        for dtype in (np.float32, np.int64, np.float64, np.uint16):
            adata = cells()
            adata.X = make(adata.X).astype(dtype)
            found = embed(adata)
            expected = found if expected is None else expected
            np.testing.assert_array_equal(found, expected)


def test_backed(model: DRA, tmp_path: Path) -> None:
    """A backed file: trained on and embedded as it is on disk, and not changed."""
    expected = model.get_latent_representation(cells())
    for name, matrix in {"csr": cells().X, "dense": cells().X.toarray()}.items():
        adata, path = cells(), tmp_path / f"{name}.h5ad"
        adata.X = matrix
        adata.write_h5ad(path)
        before = path.read_bytes()
        backed = anndata.read_h5ad(path, backed="r")
        found = model.get_latent_representation(backed)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert_trained(fit(backed, batch_key="batch"))
        backed.file.close()
        assert path.read_bytes() == before


def test_dask() -> None:
    """Dask arrays, dense or sparse: the same embedding, and still dask afterwards."""
    array = pytest.importorskip("dask.array")
    expected = embed(cells())
    for convert in (np.asarray, sparse.csr_matrix):
        adata = cells()
        adata.X = array.from_array(adata.X.toarray(), chunks=(17, N_GENES)).map_blocks(convert)
        np.testing.assert_allclose(embed(adata), expected, rtol=1e-3, atol=1e-4)
        assert isinstance(adata.X, array.Array)


def test_zero_cells() -> None:
    """No cells: refused."""
    with pytest.raises(InvalidCountsError, match="no cells"):
        DRA.setup_anndata(cells()[:0].copy())


def test_one_cell(model: DRA) -> None:
    """Fewer than three cells to train on: refused; one cell to embed: embedded."""
    for number in (1, 2):
        with pytest.raises(InvalidCountsError, match=f"only {number} cells?; at least 3"):
            DRA.setup_anndata(cells()[:number].copy())
    assert_trained(fit(cells()[:3].copy()))
    assert model.get_latent_representation(cells()[:1].copy()).shape == (1, 4)


def test_last_batch_1() -> None:
    """A last minibatch of one cell: training stays finite."""
    for options in ({}, {"load_sparse_tensor": True}, {"batch_size": 2}):
        adata = cells(n_cells=65)
        assert_trained(fit(adata, train_size=1.0, **{"batch_size": 32, **options}))


def test_n_var_1() -> None:
    """A single gene: trained on, and decoded in the right shape."""
    adata = cells(n_genes=1)
    adata.X = adata.X.toarray() + 1
    found = fit(adata)
    assert_trained(found)
    assert found.get_normalized_expression().shape == (N_CELLS, 1)


def test_unfitted() -> None:
    """A getter before training: an error that says to train."""
    adata = cells()
    DRA.setup_anndata(adata)
    with pytest.raises(RuntimeError, match="train"):
        DRA(adata, **SMALL).get_latent_representation()


def test_not_mutated() -> None:
    """Counts, layers and columns of the user: the same bytes after training as before."""
    for convert in (np.array, np.asfortranarray, sparse.csr_matrix, sparse.csc_array):
        adata = cells()
        adata.X = convert(adata.X.toarray())
        adata.layers["other"] = adata.X.copy()
        adata.obsm["X_own"] = np.ones((N_CELLS, 2))
        before, matrix = adata.copy(), adata.X
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            fit(adata, batch_key="batch").get_latent_representation()
        pd.testing.assert_frame_equal(adata.obs[before.obs.columns], before.obs)
        pd.testing.assert_frame_equal(adata.var, before.var)
        for found, expected in zip(
            (adata.X, adata.layers["other"]), (before.X, before.layers["other"]), strict=True
        ):
            assert type(found) is type(expected)
            assert found.dtype == expected.dtype
            assert _bytes(found) == _bytes(expected)
        assert _bytes(matrix) == _bytes(before.X)
        assert set(adata.layers) == set(before.layers)
        assert set(adata.obsm) == {"X_own"}
        assert all(name.startswith("_scvi") for name in {*adata.obs} - {*before.obs})


def _bytes(matrix: Any) -> list[bytes]:
    if sparse.issparse(matrix):
        return [part.tobytes() for part in (matrix.data, matrix.indices, matrix.indptr)]
    return [np.ascontiguousarray(matrix).tobytes()]


# -- saved models ------------------------------------------------------------------------------


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


# -- training ----------------------------------------------------------------------------------


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


class Stop(Callback):
    """Send a signal to this process, in some epoch."""

    def __init__(self, signum: int, epoch: int) -> None:
        self.signum, self.epoch = signum, epoch

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            self.epoch = -1
            os.kill(os.getpid(), self.signum)


def test_resume(source: Path, killed: Killed, tmp_path: Path) -> None:
    """A training stopped or killed: resumed to the last bit of one without a stop."""
    for preset in (None, "published"):
        options = {"max_epochs": 5, "preset": preset, "batch_key": "batch"}
        options |= {"model_kwargs": {}, "checkpoint": tmp_path / "ckpt"}
        expected = embed(cells(), **options)
        stopped = cells()
        stop = {"callbacks": [Stop(signal.SIGINT, epoch=2)]}
        with pytest.raises(TrainingInterruptedError):
            embed(stopped, train_kwargs=stop, **options)
        np.testing.assert_array_equal(embed(stopped, resume=True, **options), expected)
    assert killed.codes["kill"] == -signal.SIGKILL
    assert_resumes(source, killed, "kill")


def test_interrupt(source: Path, killed: Killed, tmp_path: Path) -> None:
    """Ctrl-C: KeyboardInterrupt, or a checkpoint where one was asked for, and exit code 130."""
    adata = cells()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(adata, callbacks=[Stop(signal.SIGINT, epoch=1)], max_epochs=4)
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(TrainingInterruptedError, match="after 2 epochs"):
        embed(
            adata,
            checkpoint=tmp_path / "ckpt",
            train_kwargs={"callbacks": [Stop(signal.SIGINT, epoch=1)]},
        )
    assert (tmp_path / "ckpt").exists()
    assert killed.codes["int"] == 130
    assert_resumes(source, killed, "int")


def test_sigterm(source: Path, killed: Killed) -> None:
    """SIGTERM from a scheduler: a checkpoint and exit code 143; `--resume` goes on from it."""
    assert killed.codes["term"] == 143
    assert_resumes(source, killed, "term")


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
        owners = {name.split(".")[0] for name in moved}
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


# -- command line ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "cells.h5ad"
    cells().write_h5ad(path)
    return path


def train_command(source: Path, folder: Path, *options: object) -> list[str]:
    args = ["train", source, "--output", folder / "out.h5ad", "--json", folder / "out.json"]
    args += ["--label-key", "cell_type", "--batch-size", 32, "--max-epochs", 4, "--quiet"]
    return [str(arg) for arg in (*args, "--accelerator", "cpu", "--threads", 1, *options)]


def invoke(*args: object) -> Any:
    return CliRunner().invoke(program, [str(arg) for arg in args])


STOPS = """
import json, os, signal, sys
from dra_scvi import tl
from dra_scvi._training import interrupts as _checkpoint
from dra_scvi import cli

commands, codes = json.loads(sys.argv[1]), {}

class Stopping(_checkpoint.InterruptCheckpoint):
    signum = None

    def __init__(self, path):
        super().__init__(path, every_seconds=0.0 if Stopping.kill else 60.0)

    def on_train_batch_start(self, trainer, *_):
        if trainer.current_epoch == 2 and Stopping.signal:
            os.kill(os.getpid(), Stopping.signal)
            Stopping.signal = None

tl.InterruptCheckpoint = Stopping
signals = {"whole": None, "int": signal.SIGINT, "term": signal.SIGTERM, "kill": signal.SIGKILL}
for name, signum in signals.items():
    Stopping.signal, Stopping.kill = signum, name == "kill"
    sys.argv = ["dra-scvi", *commands[name]]
    try:
        cli.main()
    except SystemExit as end:
        print(json.dumps([name, end.code or 0]), flush=True)
"""


class Killed(NamedTuple):
    """Exit codes of commands in another process, each stopped in another way; their folders."""

    codes: dict[str, int]
    folders: dict[str, Path]
    stderr: str


@pytest.fixture(scope="module")
def killed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Train in another process: to the end, and until SIGINT, SIGTERM and SIGKILL."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("whole", "int", "term", "kill")}
    commands = {name: train_command(source, folder) for name, folder in folders.items()}
    result = subprocess.run(
        [sys.executable, "-c", STOPS, json.dumps(commands)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        timeout=300,
        check=False,
    )
    codes = dict(json.loads(line) for line in result.stdout.splitlines() if line.startswith("["))
    return Killed({**codes, "kill": result.returncode}, folders, result.stderr)


def assert_resumes(source: Path, killed: Killed, name: str) -> None:
    """Go on from the checkpoint, and end where the command that was not stopped ended."""
    folder = killed.folders[name]
    assert [path.name for path in folder.iterdir()] == [".out.h5ad.ckpt"], killed.stderr
    result = invoke(*train_command(source, folder, "--resume"))
    assert result.exit_code == 0, result.stderr
    assert tree(folder) == tree(killed.folders["whole"])


def test_cli_codes(source: Path, killed: Killed, tmp_path: Path) -> None:
    """Failing commands: one line on stderr, nothing on stdout, an exit code for each cause."""
    bad, output = tmp_path / "bad.h5ad", tmp_path / "out.h5ad"
    with_value(-1).write_h5ad(bad)
    (tmp_path / "old.h5ad").touch()
    train = ("train", "--quiet", "--output", output, "--accelerator", "cpu")
    failures: dict[int, tuple[object, ...]] = {
        2: (*train, source, "--max-epochs", 0),
        65: (*train, bad),
        66: (*train, tmp_path / "none.h5ad"),
        70: (*train, source, "--max-epochs", 9, "--learning-rate", 1e6),
        73: ("train", source, "--output", tmp_path / "old.h5ad"),
    }
    running = {
        code: subprocess.Popen(
            [sys.executable, "-m", "dra_scvi", *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for code, args in failures.items()
    }
    for code, process in running.items():
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == code, stderr
        assert stdout == ""
        assert stderr.startswith("dra-scvi: error: ")
        assert stderr.count("\n") == 1, stderr
    assert not output.exists()
    assert killed.stderr.count("\n") == 2  # one line each for SIGINT and SIGTERM, none for the end
    assert "Traceback" not in killed.stderr
    debug = invoke(*train, bad, "--debug")
    assert debug.exit_code == 65
    assert "Traceback" in debug.stderr


def test_cli_atomic(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that fails while it writes: outputs whole or not at all, old ones kept."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk is full")

    command = train_command(source, tmp_path, "--model-dir", tmp_path / "model")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        assert invoke(*command).exit_code == 1
    # the model failed, the others did not, and the checkpoint is kept for it
    kept = {"out.h5ad", "out.json", ".out.h5ad.ckpt"}
    assert set(tree(tmp_path)) == kept
    for name in kept:
        (tmp_path / name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr("dra_scvi._outputs.files.open_hdf5", fail)
        assert invoke(*command).exit_code == 1
    saved = {"out.json", "model/model.pt", "model/manifest.json"}
    assert set(tree(tmp_path)) == {*saved, ".out.h5ad.ckpt"}
    (tmp_path / "out.json").unlink()
    shutil.rmtree(tmp_path / "model")
    assert invoke(*command).exit_code == 0
    before = tree(tmp_path)
    assert set(before) == {"out.h5ad", "out.json", "model/model.pt", "model/manifest.json"}
    for name in ("out.h5ad", "out.json"):
        (tmp_path / name).write_bytes(b"precious")
        changed = tree(tmp_path)
        assert invoke(*command).exit_code == 73
        assert tree(tmp_path) == changed
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        assert invoke(*command, "--force").exit_code == 1
    assert tree(tmp_path)["model/model.pt"] == changed["model/model.pt"]
    assert invoke(*command, "--force").exit_code == 0
    after = tree(tmp_path)
    assert {name: after[name] for name in ("out.h5ad", "out.json")} == {
        name: before[name] for name in ("out.h5ad", "out.json")
    }


def test_cli_determ(source: Path, killed: Killed, tmp_path: Path) -> None:
    """The same command twice: the same bytes in every output."""
    assert killed.codes["whole"] == 0, killed.stderr
    assert invoke(*train_command(source, tmp_path)).exit_code == 0
    assert set(tree(tmp_path)) == {"out.h5ad", "out.json"}
    assert tree(tmp_path) == tree(killed.folders["whole"])


# -- older versions ----------------------------------------------------------------------------


def test_old_model() -> None:
    """Models saved by older versions: loaded, with the embedding they had."""
    folders = sorted(path.parent for path in ARCHIVE.glob("*/latent.npy"))
    assert folders
    for folder in folders:
        cls = {"DRA": DRA, "PublishedDRA": PublishedDRA}[folder.name.split("-")[1]]
        loaded = cls.load(folder, accelerator="cpu")
        found = loaded.get_latent_representation()
        np.testing.assert_allclose(found, np.load(folder / "latent.npy"), rtol=1e-4, atol=1e-5)
