"""Training that stops: what is left in the model, in the file, on the terminal."""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from dra_scvi import DRA, TrainingDivergedError, TrainingInterruptedError, tl
from dra_scvi._training import interrupts
from dra_scvi._training.diverged import LastGoodState
from dra_scvi._training.interrupts import InterruptCheckpoint, check_place
from tests.helpers import QUIET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

SMALL = {"n_hidden": 16, "n_latent": 4}


def make(adata: AnnData) -> DRA:
    DRA.setup_anndata(adata, batch_key="batch")
    return DRA(adata, **SMALL)


class At(Callback):
    """Do something to a training, once, in one of its epochs."""

    def __init__(self, epoch: int, act: Any) -> None:
        self.epoch, self.act = epoch, act

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            self.epoch = -1
            self.act(pl_module)


@pytest.fixture
def checkpoint(adata: AnnData, tmp_path: Path) -> Path:
    """Stop a training in its second epoch."""
    path = tmp_path / "state.ckpt"
    stop = At(1, lambda _: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(TrainingInterruptedError):
        embed(adata, path, callbacks=[stop])
    return path


def embed(adata: AnnData, path: Path, callbacks: Any = (), **changes: Any) -> None:
    train = {"enable_progress_bar": False, "callbacks": list(callbacks)}
    options = {"max_epochs": 3, "accelerator": "cpu", "model_kwargs": SMALL, "checkpoint": path}
    tl.dra(adata, train_kwargs=train, **{**options, "n_latent": 4, "model_kwargs": {}, **changes})


def test_going_on_from_a_damaged_checkpoint(adata: AnnData, checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2]):
        checkpoint.write_bytes(content)
        with pytest.raises(ValueError, match=r"state\.ckpt is corrupt or truncated, .*delete it"):
            embed(adata, checkpoint, resume=True)


def spoil(pl_module: Any) -> None:
    with torch.no_grad():
        pl_module.module.z_encoder.mean_encoder.weight[0, 0] = float("nan")


def test_the_model_goes_back_to_the_last_good_epoch(adata: AnnData) -> None:
    model, states = make(adata), []

    def keep(pl_module: Any) -> None:
        states.append([value.clone() for value in pl_module.module.state_dict().values()])

    with pytest.raises(TrainingDivergedError):
        model.train(max_epochs=5, callbacks=[At(2, keep), At(2, spoil)], **QUIET)
    found = list(model.module.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(found, states[0], strict=True))
    assert not model.module.training


def test_a_last_step_that_spoils_the_weights_is_no_success(adata: AnnData) -> None:
    class AtTheEnd(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            spoil(pl_module)

    model = make(adata)
    with pytest.raises(TrainingDivergedError, match="weights is not finite in epoch 0, step 0"):
        model.train(max_epochs=1, batch_size=150, callbacks=[AtTheEnd()], **QUIET)
    assert all(torch.isfinite(value).all() for value in model.module.state_dict().values())


def test_a_last_step_that_spoils_the_loss_is_no_success(adata: AnnData) -> None:
    model = make(adata)
    with pytest.raises(TrainingDivergedError, match="train_loss is not finite in epoch 0, step 0"):
        model.train(max_epochs=1, batch_size=150, plan_kwargs={"lr": 1e6}, **QUIET)


def test_cells_held_out_whose_loss_is_not_finite_are_told(adata: AnnData) -> None:
    DRA.setup_anndata(adata)
    model = DRA(adata, gene_likelihood="nb", **SMALL)
    evaluate = model.module.loss

    def loss(*args: Any, **kwargs: Any) -> Any:
        output = evaluate(*args, **kwargs)
        if not model.module.training:
            output.loss = output.loss * float("inf")
        return output

    model.module.loss = loss
    with pytest.raises(TrainingDivergedError, match="validation_loss is not finite"):
        model.train(max_epochs=2, check_val_every_n_epoch=1, **QUIET)


def test_looking_at_the_end_leaves_random_state_alone(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    for look in (True, False):
        if not look:  # what is compared with is a training without the look
            monkeypatch.setattr(LastGoodState, "_is_finite", lambda *_: True)
        torch.manual_seed(0)
        make(adata.copy()).train(max_epochs=2, **QUIET)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_errors_come_out_as_they_are(
    adata: AnnData, capsys: pytest.CaptureFixture[str], error: type[BaseException]
) -> None:
    def fail(_: Any) -> None:
        raise error("why")

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(error):
        make(adata).train(max_epochs=2, callbacks=[At(1, fail)], **QUIET)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert capsys.readouterr().out == ""


def test_training_again_after_a_divergence(adata: AnnData) -> None:
    model = make(adata)
    with pytest.raises(TrainingDivergedError):
        model.train(max_epochs=9, batch_size=32, plan_kwargs={"lr": 1e6}, **QUIET)
    model.train(max_epochs=2, **QUIET)
    assert np.isfinite(model.get_latent_representation()).all()


# -- signals and files, without a training ------------------------------------------------------


class Training:
    """What the callback needs of a trainer: it saves, counts epochs, and has one process."""

    world_size, is_global_zero, training = 1, True, True
    strategy = SimpleNamespace(root_device="cpu", reduce=lambda value, reduce_op: value)

    def __init__(self, callback: InterruptCheckpoint) -> None:
        self.callback, self.current_epoch, self.saved = callback, 3, []
        self.logger: Any = SimpleNamespace(history={})
        self.logged_metrics: dict[str, Any] = {}
        self.should_stop: bool | None = None
        self.optimizers: list[Any] = []
        self.fit_loop = SimpleNamespace(state_dict=lambda: {"epochs": 3})

    def save_checkpoint(self, path: Path) -> None:
        content: dict[str, Any] = {"epoch": self.current_epoch}
        self.callback.on_save_checkpoint(self, None, content)
        self.saved.append((path, content))
        self.callback.file.save_checkpoint(content, path)


@pytest.fixture
def callback(tmp_path: Path) -> InterruptCheckpoint:
    return InterruptCheckpoint(tmp_path / "state.ckpt")


@pytest.fixture
def training(callback: InterruptCheckpoint) -> Any:
    return Training(callback)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Answer both signals by noting them; what was there before comes back."""
    noted: list[int] = []
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    for signum in before:
        signal.signal(signum, lambda signum, _: noted.append(signum))
    yield noted
    for signum, handler in before.items():
        signal.signal(signum, handler)


BOTH = pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])


@BOTH
def test_a_signal_in_an_epoch_stops_at_its_end(
    callback: InterruptCheckpoint, training: Any, signum: int, heard: list[int]
) -> None:
    callback.on_train_start(training, None)
    with callback.signals():
        signal.raise_signal(signum)
        assert callback.signum == signum
        with pytest.raises(TrainingInterruptedError) as caught:
            callback.on_train_epoch_end(training, None)
        assert (caught.value.signum, caught.value.epochs) == (signum, 4)
        assert (caught.value.path, caught.value.problem) == (callback.path, None)
        ((path, content),) = training.saved
        assert (path, content["is_complete"]) == (callback.path, False)
        with pytest.raises(KeyboardInterrupt):  # a second one does not wait
            signal.raise_signal(signum)
    signal.raise_signal(signum)
    assert heard == [signum]
    assert callback._previous == {}


@BOTH
def test_a_signal_outside_of_epochs_is_that_of_who_had_it(
    callback: InterruptCheckpoint, training: Any, signum: int, heard: list[int]
) -> None:
    with callback.signals():
        signal.raise_signal(signum)
        assert (heard, callback.signum) == ([signum], None)
    callback.on_train_start(training, None)
    with callback.signals():
        callback.on_exception(training, None, RuntimeError())
        signal.raise_signal(signum)
    assert heard == [signum] * 2
    signal.raise_signal(signum)
    assert heard == [signum] * 3


@BOTH
def test_a_signal_after_the_last_epoch(
    callback: InterruptCheckpoint, training: Any, signum: int, heard: list[int]
) -> None:
    callback.on_train_start(training, None)
    with callback.signals():
        callback.on_train_end(training, None)
        ((path, content),) = training.saved
        assert (path, content["is_complete"]) == (callback.path, True)
        assert not callback._is_training
        with pytest.raises(TrainingInterruptedError) as caught:
            signal.raise_signal(signum)
        assert (caught.value.signum, caught.value.epochs) == (signum, 3)
    assert heard == []
    callback = InterruptCheckpoint(callback.path)
    training = Training(callback)
    callback.signum = signum  # it came in the last epoch
    with pytest.raises(TrainingInterruptedError) as caught:
        callback.on_train_end(training, None)
    assert (caught.value.signum, caught.value.epochs) == (signum, 3)


def test_handlers_that_lightning_sets_are_set_once_more(
    callback: InterruptCheckpoint, training: Any, heard: list[int]
) -> None:
    with callback.signals():
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        callback.on_train_start(training, None)
        for signum in (signal.SIGINT, signal.SIGTERM):
            assert signal.getsignal(signum) == callback._answer
    with pytest.raises(ZeroDivisionError), callback.signals():
        raise ZeroDivisionError
    signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]


def test_signals_come_to_the_main_thread_alone(callback: InterruptCheckpoint) -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with callback.signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_the_state_is_kept_once_in_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: clock[0])
    assert InterruptCheckpoint(str(tmp_path / "a")).every_seconds == 60
    callback = InterruptCheckpoint(tmp_path / "state.ckpt", every_seconds=10)
    training: Any = Training(callback)
    for clock[0], n in ((110.0, 0), (111.0, 1), (121.0, 1), (122.0, 2), (123.0, 2)):
        callback.on_train_epoch_end(training, None)
        assert len(training.saved) == n, clock[0]


def test_a_state_that_cannot_be_written_is_told(
    callback: InterruptCheckpoint, training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = rf"^the state of training could not be written to {callback.path} \(.*full.*\); train"
    monkeypatch.setattr(callback.file, "save_checkpoint", lambda *_: None)
    callback.file.problem = OSError("full")
    callback.every_seconds = -1
    with pytest.warns(UserWarning, match=words):
        callback.on_train_epoch_end(training, None)
    with pytest.warns(UserWarning, match=words):
        callback.on_train_end(training, None)
    callback.signum, callback.every_seconds = signal.SIGTERM, 1e9
    with pytest.raises(TrainingInterruptedError) as caught:
        callback.on_train_epoch_end(training, None)
    assert caught.value.problem == "full"


def test_what_a_checkpoint_has_to_be_of_is_noted(
    callback: InterruptCheckpoint, training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(interrupts, "training_identity", lambda *args: asked.append(args) or 7)
    plan: Any = SimpleNamespace(state_dict=lambda: {"w": 1})
    callback.setup(training, plan, "fit")
    assert (callback.file.identity, callback.file.form) == ({}, {})
    model: Any = object()
    callback.owner = (model, 3)
    callback.setup(training, plan, "fit")
    assert asked == [(model, plan, training, 3)]
    form = {"state_dict": {"w": 1}, "loops": {"fit_loop": {"epochs": 3}}}
    assert (callback.file.identity, callback.file.form) == (7, form)
    callback.on_train_start(training, plan)
    assert callback.file.form == {}


def test_optimizers_are_looked_at_where_a_state_was_read(
    callback: InterruptCheckpoint, training: Any
) -> None:
    callback.on_train_start(training, None)
    callback._is_training = False
    callback.file.is_restoring = True
    content = {"is_complete": True, "optimizer_states": [{}, {}], "history": {}}
    callback.on_load_checkpoint(training, None, content)
    assert training.should_stop is True
    with pytest.raises(ValueError, match="number of optimizers is 2, not 0"):
        callback.on_train_start(training, None)
    assert callback.file.is_restoring
    callback.on_load_checkpoint(training, None, {**content, "optimizer_states": []})
    callback.on_train_start(training, None)
    assert not callback.file.is_restoring
    assert callback._is_training


# -- the history --------------------------------------------------------------------------------


def frame(name: str, places: list[int], values: list[float], unit: str = "epoch") -> Any:
    return pd.DataFrame({name: values}, index=pd.Index(places, name=unit))


def test_the_history_that_is_kept_comes_back(callback: InterruptCheckpoint, training: Any) -> None:
    training.logger.history = {
        "a": frame("a", [0, 1, 2], [0.5, 1.5, 2.5]),
        "done": frame("done", [2, 3], [1.0, 2.0]),
        "step": frame("step", [10], [1.0], "step"),
        "a_validation": frame("a_validation", [1], [7.0]),
    }
    training.logged_metrics = {
        "a": torch.tensor(3.5),
        "new": torch.tensor(1.0),
        "done": torch.tensor(9.0),
        "step": torch.tensor(9.0),
        "a_validation": torch.tensor(9.0),
    }
    content: dict[str, Any] = {}
    callback.on_save_checkpoint(training, None, content)
    assert content["history"] == {
        "a": ("epoch", [0, 1, 2, 3], [0.5, 1.5, 2.5, 3.5]),
        "done": ("epoch", [2, 3], [1.0, 2.0]),
        "step": ("step", [10], [1.0]),
        "a_validation": ("epoch", [1], [7.0]),
        "new": ("epoch", [3], [1.0]),
    }
    assert type(content["history"]["new"][2][0]) is float
    other: Any = Training(callback)
    callback.on_load_checkpoint(other, None, {**content, "optimizer_states": []})
    assert other.should_stop is False
    assert other.logger.history.keys() == content["history"].keys()
    expected = frame("a", [0, 1, 2, 3], [0.5, 1.5, 2.5, 3.5])
    found = other.logger.history["a"]
    pd.testing.assert_frame_equal(found.astype(float), expected)
    assert found["a"].dtype == object  # as scvi-tools keeps them


def test_the_history_is_that_of_the_first_process_while_it_trains(
    callback: InterruptCheckpoint, training: Any
) -> None:
    training.logged_metrics = {"a": torch.tensor(1.0)}
    training.training = False
    assert interrupts._history(training) == {}
    training.training = True
    for logger in (None, SimpleNamespace(), SimpleNamespace(history=None)):
        training.logger = logger
        assert interrupts._history(training) == {"a": ("epoch", [3], [1.0])}
    training.is_global_zero = False
    assert interrupts._history(training) == {}
    content = {"is_complete": False, "optimizer_states": [], "history": {"a": ("epoch", [0], [1])}}
    for is_first, logger in ((False, SimpleNamespace(history={})), (True, None)):
        training.is_global_zero, training.logger = is_first, logger
        callback.on_load_checkpoint(training, None, content)
        assert not getattr(logger, "history", None)


# -- the place ----------------------------------------------------------------------------------


def forbidden(*_: Any, **__: Any) -> None:
    raise PermissionError(errno.EPERM, "not permitted")


def test_a_place_for_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (None, b"", b"dra_scvi checkpoint 1\n"):
        path = tmp_path / "state.ckpt"
        if content is not None:
            path.write_bytes(content)
        check_place(path)
        assert os.listdir(tmp_path) == ([] if content is None else ["state.ckpt"])
        assert content is None or path.read_bytes() == content
    path.write_bytes(b"text")
    words = rf"^checkpoint='{path}' is a file of another kind, or of an earlier version, and would"
    with pytest.raises(ValueError, match=words):
        check_place(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a file of another kind"):
        check_place(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError, match=f"^checkpoint='{tmp_path}' is a folder; name a "):
        check_place(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        check_place(tmp_path / "none" / "state.ckpt")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", forbidden)
        with pytest.raises(PermissionError, match=f"not permitted: '{path.with_name('new')}'"):
            check_place(path.with_name("new"))
    long = tmp_path / ("n" * 256)
    with pytest.raises(OSError, match=f"File name too long: '{long}'") as caught:
        check_place(long)
    assert caught.value.errno == errno.ENAMETOOLONG
