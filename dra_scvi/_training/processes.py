"""Training in several processes: the cells of each, what they agree on, and how they stop."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed

from dra_scvi._exceptions import TrainingDivergedError
from dra_scvi._module.matching import scale_gradient
from dra_scvi._threads import n_cores

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lightning.pytorch import Trainer
    from torch import Tensor

EARLY_STOPPING = {
    "monitor": "elbo_validation",
    "min_delta": 0.0,
    "patience": 45,
    "warmup_epochs": 0,
    "mode": "min",
}


def n_processes(settings: Mapping[str, Any]) -> int:
    """Tell how many processes the arguments of a trainer ask for; 1 where that is left open.

    >>> n_processes({"devices": 2, "num_nodes": 2}), n_processes({"devices": [0]}), n_processes({})
    (4, 1, 1)
    """
    devices = settings.get("devices", 1)
    if isinstance(devices, str):
        devices = int(devices) if devices.isdecimal() else devices.split(",")
    number = len(devices) if isinstance(devices, list | tuple) else devices
    return max(1, number) * settings.get("num_nodes", 1)


@contextlib.contextmanager
def trainer_settings(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the arguments of training as several processes need them; of one, as they are.

    Several devices mean DDP. Parameters that a step does not use, as in scVI's encoder of library
    sizes, need to be looked for. Early stopping, which scvi-tools leaves out, works: what it
    watches is a mean over all processes. The history is kept in a temporary folder, where
    scvi-tools would leave it in the folder that it runs in.
    """
    settings = dict(given)
    _check_cores(settings)
    if n_processes(settings) > 1:
        settings.setdefault("strategy", "ddp")
    strategy = settings.get("strategy")
    if not isinstance(strategy, DDPStrategy) and "ddp" not in str(strategy):
        yield settings
        return
    if isinstance(strategy, str) and "find_unused_parameters" not in strategy:
        settings["strategy"] = f"{strategy}_find_unused_parameters_true"
    _keep_early_stopping(settings)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "early_stopping was automatically disabled")
        settings.setdefault("log_save_dir", folder)
        yield settings


def _check_cores(settings: Mapping[str, Any]) -> None:
    """Refuse more processes than a machine without an accelerator has cores; two are for trials.

    Each holds a copy of the counts and is started as a program of its own.
    """
    n_devices = n_processes({**settings, "num_nodes": 1})
    on_cpu = settings.get("accelerator", "auto") == "cpu" or not torch.accelerator.is_available()
    room = max(2, n_cores())
    if on_cpu and n_devices > room:
        raise ValueError(
            f"devices={settings['devices']}: on a CPU each is a process of its own, and there is "
            f"room for {room} here."
        )


def _keep_early_stopping(settings: dict[str, Any]) -> None:
    """Hand over as a callback what scvi-tools' trainer would switch off."""
    from scvi.train import LoudEarlyStopping

    options = {
        name: settings.pop(f"early_stopping_{name}", default)
        for name, default in EARLY_STOPPING.items()
    }
    if settings.pop("early_stopping", False):
        watch = LoudEarlyStopping(**options)
        settings["callbacks"] = [*settings.get("callbacks", ()), watch]
        settings.setdefault("check_val_every_n_epoch", 1)


def gathered_scores(scores: Tensor, trainer: Trainer) -> Tensor:
    """Return the scores of all processes, as many of each, in one row as if one had made them all.

    A loss of all the scores is the same in every process. DDP takes the mean of its gradients,
    each of which knows the way to the scores of one process only: these are multiplied by the
    number of processes here, and the mean becomes the sum.
    """
    if trainer.world_size == 1:
        return scores
    rows = [torch.empty_like(scores) for _ in range(trainer.world_size)]
    distributed.all_gather(rows, scores.detach().contiguous())
    rows[trainer.global_rank] = scale_gradient(scores, trainer.world_size)
    return torch.cat(rows)


def share_buffers(module: torch.nn.Module, trainer: Trainer) -> None:
    """Give every process the first one's buffers: DDP does so at the begin of a step only."""
    if trainer.world_size == 1:
        return
    own = dict(module.named_buffers())
    first = trainer.strategy.broadcast({name: value.cpu() for name, value in own.items()})
    for name, value in own.items():
        value.copy_(first[name])


def share_state(module: torch.nn.Module, trainer: Trainer) -> None:
    """Give every process the first one's parameters and buffers of a small module."""
    if trainer.world_size > 1:
        state = {name: value.cpu() for name, value in module.state_dict().items()}
        module.load_state_dict(trainer.strategy.broadcast(state))


@contextlib.contextmanager
def failing_together(trainer: Trainer) -> Iterator[None]:
    """Raise the divergence of one process in all, which would wait for it for ever."""
    error = None
    try:
        yield
    except TrainingDivergedError as raised:
        error = raised
    if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(
        error is not None, all=False
    ):
        error = next(found for found in gathered(error, trainer) if found is not None)
    if error is not None:
        raise error


def highest(value: float, trainer: Trainer) -> int:
    """Return the highest of a number in all processes."""
    strategy = trainer.strategy
    return int(
        strategy.reduce(torch.tensor(int(value), device=strategy.root_device), reduce_op="max")
    )


def gathered(value: Any, trainer: Trainer) -> list[Any]:
    """Return an object of every process, by rank."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(values, value)
    return values
