"""DRA and scVI on a GPU: equal to the CPU, steps a second, launches, memory, time to a quality.

    python tests/benchmarks/gpu.py                                # within four minutes
    python tests/benchmarks/gpu.py --minutes 8 --json gpu.json
    python tests/benchmarks/gpu.py --device cpu --quick           # the same code, in seconds

Sections come in order of worth; what the time does not suffice for is skipped with a line that
says so, what fails is a row with the reason. All cells are simulated, about 7 % of their counts
above zero.

- `agreement`: 20 steps from one start on CPU and device, all noise drawn on the CPU: the largest
  difference of a loss, as a share of it, and of a code, in standard deviations of codes.
- `speed`: steps a second, epoch ends included, and the peak of the device's memory (on a CPU, of
  the process'). Data are `resident` on the device, or `streamed` to it minibatch by minibatch, as
  scVI's always are.
- `launches`: of a step: operations, kernels, copies, waits of the host for the device, and the
  milliseconds that the device was busy.
- `quality`: seconds until held-out ELBO and reconstruction are those that a short run of scVI
  ends with, at the same epochs and size of minibatches.
- `after training`: seconds that follow the last step of DRA, those that the first generated
  cells, or saving, take besides, and cells embedded a second.
- `large`: `speed` of 25 times as many cells.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import logging
import platform
import resource
import sys
import time
import warnings
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

START = time.monotonic()  # importing counts

import anndata  # noqa: E402
import numpy as np  # noqa: E402
import scipy.sparse as sp  # noqa: E402
import scvi  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.callbacks import Callback  # noqa: E402
from scvi.model import SCVI  # noqa: E402
from torch.distributions import normal  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from dra_scvi import DRA  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COLUMNS = ("section", "model", "cells", "batch", "precision", "data", "what", "value")
PRECISIONS = {"float32": "32-true", "bf16": "bf16-mixed"}
STREAMED = {"datasplitter_kwargs": {"pin_memory": True}}  # takes scvi-tools' loader
NEVER = 10_000  # epochs: a callback ends training, and schedules stay at their beginning


class BareDRA(DRA):
    """DRA without what comes after training, which has a row of its own."""

    def _calibrate(self) -> None:
        pass


MODELS: dict[str, type[SCVI]] = {"scVI": SCVI, "DRA": BareDRA}


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    cells: int = 20_000
    large: int = 500_000
    genes: int = 2_000
    batches: tuple[int, ...] = (128, 1_024, 8_192)
    agreement_cells: int = 2_560
    agreement_steps: int = 20
    warm_up: int = 10
    steps: int = 200
    seconds: float = 1.5
    epochs: int = 20


QUICK = Sizes(
    cells=240,
    large=480,
    genes=30,
    batches=(32,),
    agreement_cells=120,
    agreement_steps=3,
    warm_up=1,
    steps=3,
    epochs=2,
)


def counts(n_cells: int, n_genes: int, n_distinct: int = 20_000) -> sp.csr_matrix:
    """Gamma-Poisson counts of twenty types; beyond `n_distinct` cells come again, in any order."""
    rng = np.random.default_rng(0)
    profiles = rng.gamma(0.3, 1.0, n_genes) * np.exp(rng.normal(0, 0.7, (20, n_genes)))
    profiles = (profiles / profiles.sum(1, keepdims=True)).astype(np.float32)
    n_distinct = min(n_cells, n_distinct)
    parts = []
    for start in range(0, n_distinct, 2_000):
        types = rng.integers(20, size=min(2_000, n_distinct - start))
        depth = rng.lognormal(np.log(n_genes / 8), 0.4, (len(types), 1)).astype(np.float32)
        noise = rng.standard_gamma(2.0, (len(types), n_genes), dtype=np.float32) / 2
        parts.append(sp.csr_matrix(rng.poisson(profiles[types] * depth * noise).astype("f4")))
    matrix = sp.vstack(parts, format="csr")
    return matrix if n_cells == n_distinct else matrix[rng.integers(n_distinct, size=n_cells)]


class Report:
    """Rows, printed as they come and written as JSON, and the time that is left."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.deadline = START + 60 * arguments.minutes
        self.json: Path | None = arguments.json
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self.machine = _machine(arguments.device)
        print(", ".join(f"{name} {value}" for name, value in self.machine.items()))
        print(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)

    def add(self, value: Any, **labels: Any) -> None:
        """Add a row."""
        row = {name: labels.get(name, "") for name in COLUMNS[:-1]} | {"value": value}
        self.rows.append(row)
        shown = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row.values()]
        print(f"| {' | '.join(shown)} |", flush=True)
        self.write()

    def run(self, what: str, seconds: float, measure: Callable[[], object]) -> None:
        """Measure what takes about so many seconds, or say why that cannot be."""
        left = self.deadline - time.monotonic()
        if left < seconds:
            self.skipped.append(what)
            print(f"skipped: {what} ({max(left, 0):.0f} s left of the time)", flush=True)
            return
        try:
            measure()
        except Exception as error:  # noqa: BLE001 - what follows is to be measured all the same
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.add(reason, section="failure", what=what)

    def write(self) -> None:
        """Write all there is so far."""
        if self.json is not None:
            took = time.monotonic() - START
            content = {"machine": self.machine, "seconds": took, "rows": self.rows}
            self.json.write_text(json.dumps({**content, "skipped": self.skipped}, indent=1))


def _machine(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    packages = ("torch", "lightning", "scvi-tools", "dra_scvi")
    return {"device": name} | {package: version(package) for package in packages}


class Clock(Callback):
    """Time some steps after a warm-up, by the clock on the wall, and end the training."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.n, self.start, self.per_second = 0, 0.0, float("nan")

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Count."""
        self.n += 1
        timed = self.n - self.sizes.warm_up
        if timed == 0:
            synchronize()
            self.start = time.perf_counter()
        late = timed > 0 and time.perf_counter() - self.start > self.sizes.seconds
        if timed == self.sizes.steps or late:
            synchronize()
            self.per_second = timed / (time.perf_counter() - self.start)
            trainer.should_stop = True


class Losses(Callback):
    """Keep the loss of some steps, and end the training."""

    def __init__(self, n_steps: int) -> None:
        self.n_steps, self.values = n_steps, []

    def on_train_batch_end(self, trainer: Any, plan: Any, outputs: Any, *_: Any) -> None:
        """Keep it on its device."""
        self.values.append(outputs["loss"].detach())
        trainer.should_stop = len(self.values) == self.n_steps


class Profile(Callback):
    """Profile some steps after a warm-up, and end the training."""

    def __init__(self, sizes: Sizes) -> None:
        self.first, self.n = sizes.warm_up, 0
        self.n_steps = min(10, sizes.steps)
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self.profile = profile(activities=activities)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Count."""
        self.n += 1
        if self.n == self.first:
            synchronize()
            self.profile.start()
        if self.n == self.first + self.n_steps:
            synchronize()
            self.profile.stop()
            trainer.should_stop = True


class Watch(Callback):
    """Note the held-out losses after each epoch, and when; end training at a target or too late.

    Parameters
    ----------
    deadline
        Time to end at, by :func:`time.monotonic`.
    target
        Losses that are to be reached, all of them.
    """

    LOSSES = ("elbo_validation", "reconstruction_loss_validation")

    def __init__(self, deadline: float, target: dict[str, float] | None = None) -> None:
        self.deadline, self.target = deadline, target
        self.seconds: list[float] = []
        self.trace: dict[str, list[float]] = {name: [] for name in self.LOSSES}

    def on_train_start(self, *_: Any) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        """Note."""
        for name, values in self.trace.items():
            values.append(float(trainer.callback_metrics[name]))
        self.seconds.append(time.perf_counter() - self.start)
        there = self.target and all(map(np.isfinite, map(self.reached, self.LOSSES)))
        trainer.should_stop = bool(there) or time.monotonic() > self.deadline

    def reached(self, name: str) -> float:
        """Seconds until a loss was no greater than its target, or infinity."""
        found = (
            second
            for second, value in zip(self.seconds, self.trace[name], strict=True)
            if value <= self.target[name]
        )
        return next(found, float("inf"))


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def noise_of_the_cpu(module: torch.nn.Module) -> Iterator[None]:
    """Draw codes and samples of the prior on the CPU, so that every device sees the same."""
    drawn, prior = normal._standard_normal, getattr(module, "prior", None)

    def standard_normal(shape: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return drawn(shape, torch.float32, torch.device("cpu")).to(device, dtype)

    def sample(n_samples: int) -> torch.Tensor:
        on_cpu = copy.deepcopy(prior).cpu()
        return type(prior).sample(on_cpu, n_samples).to(prior._origin.device)

    normal._standard_normal = standard_normal
    if prior is not None:
        prior.sample = sample
    try:
        yield
    finally:
        normal._standard_normal = drawn
        if prior is not None:
            del prior.sample


class Bench:
    """The sections, over cells that are simulated and registered once."""

    def __init__(self, arguments: argparse.Namespace, report: Report) -> None:
        self.device: str = arguments.device
        self.sizes = QUICK if arguments.quick else Sizes()
        self.report = report

    @cached_property
    def adata(self) -> anndata.AnnData:
        """Cells of the usual number."""
        return self._registered(self.sizes.cells)

    @cached_property
    def large(self) -> anndata.AnnData:
        """Many cells."""
        return self._registered(self.sizes.large)

    def _registered(self, n_cells: int) -> anndata.AnnData:
        adata = anndata.AnnData(counts(n_cells, self.sizes.genes))
        for cls in MODELS.values():
            start = time.perf_counter()
            cls.setup_anndata(adata)
            took = time.perf_counter() - start
        what = "seconds to register"
        self.report.add(took, section="data", model="DRA", cells=n_cells, what=what)
        return adata

    def fit(
        self,
        model: SCVI,
        callback: Callback,
        epochs: int = NEVER,
        device: str | None = None,
        precision: str = "float32",
        **options: Any,
    ) -> SCVI:
        """Train with a callback that ends it."""
        accelerator = "gpu" if (device or self.device) == "cuda" else "cpu"
        model.train(
            epochs,
            accelerator=accelerator,
            devices=1,
            precision=PRECISIONS[precision],
            callbacks=[callback],
            enable_progress_bar=False,
            **{"train_size": 1.0, **options},
        )
        return model

    # -- sections ------------------------------------------------------------------------------

    def agreement(self, name: str, precision: str) -> None:
        """Compare losses and codes with those on a CPU in single precision."""
        (expected, codes), (losses, others) = (
            self._steps(name, device, precision)
            for device, precision in (("cpu", "float32"), (self.device, precision))
        )
        labels = {"section": "agreement", "model": name, "precision": precision}
        labels |= {"cells": self.sizes.agreement_cells, "batch": self.sizes.batches[0]}
        report = partial(self.report.add, **labels)
        difference = np.abs(losses - expected) / np.abs(expected)
        report(float(difference.max()), what=f"loss, largest of {len(losses)} steps")
        report(float(difference[0]), what="loss, first step")
        report(float((np.abs(others - codes) / codes.std(0)).max()), what="codes")

    def _steps(self, name: str, device: str, precision: str) -> tuple[np.ndarray, np.ndarray]:
        scvi.settings.seed = 0
        adata = anndata.AnnData(self.adata.X[: self.sizes.agreement_cells])
        MODELS[name].setup_anndata(adata)
        model, losses = MODELS[name](adata, dropout_rate=0.0), Losses(self.sizes.agreement_steps)
        with noise_of_the_cpu(model.module):
            self.fit(
                model, losses, device=device, precision=precision, batch_size=self.sizes.batches[0]
            )
        values = torch.stack(losses.values).cpu().double().numpy()
        return values, model.get_latent_representation()

    def speed(
        self, name: str, batch: int, precision: str, data: str, section: str = "speed"
    ) -> None:
        """Measure steps a second, and the peak of memory."""
        adata = self.large if section == "large" else self.adata
        labels = {"section": section, "model": name, "cells": adata.n_obs, "batch": batch}
        report = partial(self.report.add, **labels, precision=precision, data=data)
        clock = Clock(self.sizes)
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        options = STREAMED if (name, data) == ("DRA", "streamed") else {}
        self.fit(MODELS[name](adata), clock, precision=precision, batch_size=batch, **options)
        report(clock.per_second, what="steps a second")
        report(clock.per_second * batch, what="cells a second")
        report(self._peak_memory(), what="peak memory, MB")

    def _peak_memory(self) -> float:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() / 1e6
        unit = 1 if sys.platform == "darwin" else 1_024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6

    def launches(self, name: str, precision: str) -> None:
        """Count what a step asks of the device."""
        callback, batch = Profile(self.sizes), self.sizes.batches[0]
        self.fit(MODELS[name](self.adata), callback, precision=precision, batch_size=batch)
        labels = {"section": "launches", "model": name, "cells": self.adata.n_obs, "batch": batch}
        report = partial(self.report.add, **labels, precision=precision)
        n_steps, averages = callback.n_steps, callback.profile.key_averages()
        on_device = [e for e in averages if e.device_type != torch.autograd.DeviceType.CPU]
        on_host = [e for e in averages if e.device_type == torch.autograd.DeviceType.CPU]
        copies = [e for e in on_device if e.key.startswith(("Memcpy", "Memset"))]
        kernels = [e for e in on_device if e not in copies]
        waits = [e for e in on_host if "Synchronize" in e.key]
        operations = [e for e in on_host if e.key.startswith("aten::")]
        for what, events in (
            ("operations", operations),
            ("kernels", kernels),
            ("copies", copies),
            ("waits", waits),
        ):
            report(sum(event.count for event in events) / n_steps, what=f"{what} a step")
        busy = sum(event.self_device_time_total for event in on_device)
        report(busy / n_steps / 1e3, what="device busy, ms a step")
        longest = sorted(kernels or operations, key=lambda e: -_own_time(e))[:5]
        for event in longest:
            report(_own_time(event) / n_steps / 1e3, what=f"ms a step: {event.key[:60]}")

    def quality(self) -> None:
        """Measure the seconds until the held-out losses that scVI ends with."""
        epochs, batch = self.sizes.epochs, self.sizes.batches[0]
        labels = {"section": "quality", "cells": self.adata.n_obs, "batch": batch}
        report = partial(self.report.add, **labels, precision="float32")
        target: dict[str, float] | None = None
        for name, share in (("scVI", 0.5), ("DRA", 1.0)):
            left = self.report.deadline - time.monotonic()
            scvi.settings.seed = 0
            watch = Watch(time.monotonic() + share * left, target)
            options = {"batch_size": batch, "train_size": 0.9, "check_val_every_n_epoch": 1}
            self.fit(MODELS[name](self.adata), watch, epochs=epochs, **options)
            target = watch.target = target or {n: v[-1] for n, v in watch.trace.items()}
            report(watch.seconds[-1], model=name, what=f"seconds of {len(watch.seconds)} epochs")
            for loss, values in watch.trace.items():
                report(values[-1], model=name, what=f"{loss}, last")
                seconds = watch.reached(loss)
                value = seconds if np.isfinite(seconds) else "not reached"
                report(value, model=name, what=f"{loss}, seconds to scVI's last")

    def after_training(self) -> None:
        """Measure what follows training, and how fast cells are embedded."""
        batch = self.sizes.batches[0]
        for name, cls in MODELS.items():
            clock = Clock(self.sizes)
            model = self.fit(cls(self.adata), clock, batch_size=batch)
            labels = {"section": "after training", "model": name, "cells": self.adata.n_obs}
            report = partial(self.report.add, **labels, precision="float32")
            if isinstance(model, DRA):
                report(
                    _seconds(partial(DRA._calibrate, model)), what="seconds to learn from codes"
                )
            model.get_latent_representation()  # warm-up
            seconds = _seconds(model.get_latent_representation)
            report(self.adata.n_obs / seconds, what="cells embedded a second")

    # -- all of them ---------------------------------------------------------------------------

    def run(self) -> None:
        """Go through the sections in order of worth, each with what it takes in seconds."""
        sizes, try_ = self.sizes, self.report.run
        first, *others = sizes.batches
        scale = sizes.seconds + 2
        for precision in PRECISIONS:
            for name in MODELS:
                what = f"agreement of {name} in {precision}"
                try_(what, scale + 4, partial(self.agreement, name, precision))
        self._speeds("speed", (first,), scale)
        for name, precision in (("DRA", "float32"), ("scVI", "float32"), ("DRA", "bf16")):
            what = f"launches of {name} in {precision}"
            try_(what, scale + 2, partial(self.launches, name, precision))
        self._speeds("speed", others, scale)
        try_("quality", 10 * scale, self.quality)
        try_("after training", 3 * scale, self.after_training)
        try_("large cells", 5 * scale, lambda: self.large)
        if "large" in vars(self):
            self._speeds("large", sizes.batches, scale + 2)

    def _speeds(self, section: str, batches: tuple[int, ...] | list[int], seconds: float) -> None:
        for batch in batches:
            for precision in PRECISIONS:
                for name, data in (("scVI", "streamed"), ("DRA", "resident"), ("DRA", "streamed")):
                    what = f"{section} of {name}, minibatches of {batch}, {precision}, {data}"
                    measure = partial(self.speed, name, batch, precision, data, section)
                    self.report.run(what, seconds, measure)


def _own_time(event: Any) -> float:
    """Microseconds on the device, or on the host where there is none."""
    return event.self_device_time_total or event.self_cpu_time_total


def _seconds(run: Callable[[], object]) -> float:
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print a table, and write it as JSON where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--minutes", type=float, default=4.0, help="time for all of it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here as well")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, in seconds")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA here; --device cpu --quick tries the code")
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "scvi", "dra_scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    report = Report(arguments)
    Bench(arguments, report).run()
    report.write()
    print(f"\n{time.monotonic() - START:.0f} s in all, {len(report.skipped)} measurements skipped")


if __name__ == "__main__":
    main()
