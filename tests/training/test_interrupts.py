"""Training that stops: what is left in the model, in the file, on the terminal."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from dra_scvi import DRA, TrainingDivergedError, TrainingInterruptedError, tl
from dra_scvi._training.diverged import LastGoodState
from tests.helpers import QUIET

if TYPE_CHECKING:
    from pathlib import Path

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
