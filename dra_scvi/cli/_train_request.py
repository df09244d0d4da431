"""What the train command is asked for, and what its options forbid each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import click

from dra_scvi.cli._options import check_file_key, name_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from dra_scvi.cli._command import Common

PUBLISHED_DIMENSIONS = (2, 10, 20)


@dataclass(frozen=True)
class TrainRequest:
    """Options of ``train``; `None` leaves a setting to the model."""

    input_paths: tuple[Path, ...]
    file_key: str | None
    output: Path
    model_dir: Path | None
    layer: str | None
    batch_key: str | None
    label_key: str | None
    categorical_covariate_keys: list[str] | None
    continuous_covariate_keys: list[str] | None
    n_genes: int | None
    n_latent: int
    preset: Literal["published"] | None
    max_epochs: int | None
    early_stopping: bool
    batch_size: int | None
    learning_rate: float | None
    beta1: float | None
    n_hidden: list[int] | None
    n_hidden_discriminator: list[int] | None
    dropout_rate: float | None
    leak: float | None
    batch_norm: bool | None
    prior: str | None
    divergence: str | None
    gene_likelihood: str | None
    dispersion: str | None
    metrics_log: Path | None
    resume: bool
    devices: int
    nodes: int
    out_of_core: bool | None
    leiden: bool
    resolution: float | None
    umap: bool
    report: Path | None

    MODEL = (
        "n_hidden",
        "n_hidden_discriminator",
        "dropout_rate",
        "leak",
        "batch_norm",
        "prior",
        "divergence",
        "gene_likelihood",
        "dispersion",
    )
    LEIDEN = "leiden"
    COVARIATES = ("categorical_covariate_keys", "continuous_covariate_keys")
    PUBLISHED_ONLY = ("beta1", "leak", "batch_norm")
    NOT_PUBLISHED = (
        *("out_of_core", *COVARIATES, "divergence", "gene_likelihood", "dispersion"),
        "early_stopping",
    )

    def check_usage(self) -> None:
        """Refuse options that contradict each other."""
        if self.metrics_log is not None and self.label_key is None:
            raise click.UsageError("--metrics-log needs --label-key.")
        self._check_columns()
        check_file_key(self.file_key, self.input_paths)
        self._check_clusters()
        if self.dispersion == "gene-batch" and self.batch_key is None:
            raise click.UsageError("--dispersion gene-batch needs --batch-key.")
        if self.dispersion is not None and self.gene_likelihood == "poisson":
            raise click.UsageError("--gene-likelihood poisson has no dispersion to choose.")
        if self.preset is None:
            for name in self.PUBLISHED_ONLY:
                if getattr(self, name) is not None:
                    raise click.UsageError(f"{_option(name)} needs --preset published.")
            return
        if self.devices * self.nodes > 1:
            raise click.UsageError("--preset published runs on one device.")
        if self.n_latent not in PUBLISHED_DIMENSIONS:
            raise click.UsageError(
                f"--preset published takes --n-latent 2, 10 or 20, not {self.n_latent}."
            )
        given = [_option(name) for name in self.NOT_PUBLISHED if getattr(self, name)]
        if self.prior == "mixture":
            given.append("--prior mixture")
        if given:
            raise click.UsageError(f"{given[0]} cannot be chosen with --preset published.")

    def rehearse(self, common: Common) -> None:
        """Check that everything can be written."""
        common.rehearse(
            name_inputs(self.input_paths),
            ("--output", self.output, "file"),
            ("the checkpoint", self.checkpoint, "table"),
            ("--model-dir", self.model_dir, "folder"),
            ("--metrics-log", self.metrics_log, "log"),
            ("--report", self.report, "file"),
        )

    def _check_columns(self) -> None:
        """Refuse a column whose effect would be taken out twice."""
        for name in self.COVARIATES:
            for key in getattr(self, name) or ():
                if self.columns.count(key) > 1:
                    raise click.UsageError(
                        f"{_option(name)} {key}: the column is named as batch or covariate "
                        "elsewhere, too; name it once."
                    )

    def _check_clusters(self) -> None:
        if not self.adds_leiden:
            if self.resolution is not None:
                raise click.UsageError("--resolution needs --leiden or --report.")
            return
        named = {"label_key": [self.label_key], "batch_key": [self.batch_key]}
        for name, keys in {**named, **self.covariate_keys}.items():
            if self.LEIDEN in (keys or ()):
                by = "--leiden" if self.leiden else "--report"
                raise click.UsageError(
                    f"{_option(name)} {self.LEIDEN}: {by} writes a column of this name; give the "
                    "column of INPUT another one."
                )

    @property
    def covariate_keys(self) -> dict[str, list[str] | None]:
        """Columns of covariates, by the arguments that name them."""
        return {name: getattr(self, name) for name in self.COVARIATES}

    @property
    def columns(self) -> list[str]:
        """Columns that training reads: batches and covariates."""
        batches = [] if self.batch_key is None else [self.batch_key]
        return batches + [key for keys in self.covariate_keys.values() for key in keys or ()]

    @property
    def input_name(self) -> str:
        """What the cells are called by."""
        return ", ".join(path.name for path in self.input_paths)

    @property
    def adds_leiden(self) -> bool:
        """Whether clusters are written; those that a report shows are."""
        return self.leiden or self.report is not None

    @property
    def adds_umap(self) -> bool:
        """Whether the UMAP is written."""
        return self.umap or self.report is not None

    @property
    def checkpoint(self) -> Path:
        """File in which the state of training is kept."""
        return self.output.with_name(f".{self.output.name}.ckpt")

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of the model, those that were given."""
        values = {name: getattr(self, name) for name in self.MODEL}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def plan_kwargs(self) -> dict[str, Any]:
        """Arguments of the training plan; those of a preset are kept unless given."""
        from dra_scvi import presets

        preset = presets.published(self.n_latent).train["plan_kwargs"] if self.preset else {}
        given = {"lr": self.learning_rate, "beta1": self.beta1}
        return preset | {name: value for name, value in given.items() if value is not None}

    def train_kwargs(self, common: Common) -> dict[str, Any]:
        """Arguments of training, those that were given."""
        kwargs: dict[str, Any] = {"enable_progress_bar": common.shows_bar}
        if self.plan_kwargs:
            kwargs["plan_kwargs"] = self.plan_kwargs
        if self.batch_size is not None:
            kwargs["batch_size"] = self.batch_size
        if self.early_stopping:
            kwargs["early_stopping"] = True
        if self.devices * self.nodes > 1:
            kwargs |= {"devices": self.devices, "num_nodes": self.nodes}
        return kwargs


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
