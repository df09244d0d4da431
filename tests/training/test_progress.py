"""Training says how it is set up and how far it is, and is silent where a bar says it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dra_scvi import DRA
from dra_scvi._training import progress as _progress
from dra_scvi._training.progress import ProgressLines

if TYPE_CHECKING:
    from anndata import AnnData


def trainer(epoch: int, bar: bool = False) -> Any:
    return SimpleNamespace(
        current_epoch=epoch,
        max_epochs=50,
        callback_metrics={"train_loss": torch.tensor(612.34)},
        progress_bar_callback=SimpleNamespace(is_enabled=bar),
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    return now


def run(clock: list[float], first: int = 0, bar: bool = False) -> None:
    """Go through 26 epochs of 4 seconds each."""
    lines, plan = ProgressLines(), torch.nn.Module()
    lines.on_train_start(trainer(first, bar), plan)
    for epoch in range(first, first + 26):
        lines.on_train_epoch_start(trainer(epoch, bar), plan)
        clock[0] += 4


def test_progress_has_rate_and_time_left(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "dra_scvi"):
        run(clock)
    assert caplog.messages[0] == "Epoch 3 of 50 done: loss 612.3, 4.0 s an epoch, 3 min left."
    assert caplog.messages[1] == "Epoch 8 of 50 done: loss 612.3, 4.0 s an epoch, 3 min left."
    assert [text.split()[1] for text in caplog.messages] == ["3", "8", "18"]


def test_rate_of_a_resumed_run_is_its_own(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "dra_scvi"):
        run(clock, first=20)
    assert caplog.messages[0] == "Epoch 23 of 50 done: loss 612.3, 4.0 s an epoch, 108 s left."


def test_no_lines_beside_a_bar(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "dra_scvi"):
        run(clock, bar=True)
    assert caplog.messages == []


def test_settings_and_source_are_logged(
    adata: AnnData, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    DRA.setup_anndata(adata)
    model = DRA(adata, n_latent=2)
    monkeypatch.setattr(ProgressLines.__init__, "__defaults__", (0.0,))
    plan = {"lr": 5e-4, "discriminator_lr": 1e-5}
    with caplog.at_level("INFO", "dra_scvi"):
        model.train(
            max_epochs=2,
            accelerator="cpu",
            batch_size=64,
            plan_kwargs=plan,
            enable_progress_bar=False,
        )
    setting, source, progress = [
        record.getMessage() for record in caplog.records if record.name == "dra_scvi"
    ]
    assert setting == (
        "Training for 2 epochs on cpu, learning rate 0.0005, of the discriminators 1e-05."
    )
    assert source.startswith("Minibatches of 64 cells come from counts in memory (")
    assert progress.startswith("Epoch 1 of 2 done: loss ")
