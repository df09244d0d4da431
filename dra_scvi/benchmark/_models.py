"""The models that are compared, each from raw counts to an embedding with its own defaults."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dra_scvi._data.columns import unknown_key
from dra_scvi._data.variable_genes import log_normalised

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from dra_scvi.benchmark._cells import Cells


Embed = Callable[["AnnData", int, int], "ArrayLike"]

DIGEST_BYTES = 6
HARMONY_COMPONENTS = 30
UNTOLD, TOLD_KEY = "untold", "_told_types"
TALKATIVE = ("lightning.pytorch", "lightning.fabric", "scvi", "dra_scvi")


@dataclass(frozen=True)
class Task:
    """How one run is to be made."""

    n_latent: int
    seed: int
    batch_key: str | None
    max_epochs: int | None
    accelerator: str
    told: NDArray[np.object_] | None = None  # types that the model may see, UNTOLD for others


class Embedded(NamedTuple):
    """An embedding, ``(n_cells, n_latent)``, and the epochs that it took, if any."""

    points: NDArray[np.floating]
    epochs: int | None = None


@dataclass(frozen=True)
class Contender:
    """A model by its name in the table.

    Parameters
    ----------
    embed
        From counts, a copy that it may write to, and a task to an embedding.
    is_linear
        Whether it has fewer dimensions than cells and genes.
    is_deterministic
        Whether the seed does not matter.
    takes_epochs
        Whether the number of epochs can be set.
    sees_labels
        Whether it is told the types of half of the cells, and is scored on the others.
    facts
        From cells and dimensions to what else decides the embedding: defaults and versions.
    needs
        From its name and the name of the batches to an error where it cannot run.
    """

    name: str
    embed: Callable[[AnnData, Task], Embedded]
    is_linear: bool = False
    is_deterministic: bool = False
    takes_epochs: bool = False
    sees_labels: bool = False
    facts: Callable[[Cells, int], Mapping[str, Any]] = lambda cells, n_latent: {}
    needs: Callable[[str, str | None], None] = lambda name, batch_key: None

    def check(self, batch_key: str | None) -> None:
        """Check, before any work, that the model has what it needs here: libraries, batches."""
        self.needs(self.name, batch_key)

    def settings(self, cells: Cells, n_latent: int) -> str:
        """Digest what decides the embedding besides the task, such as default epochs."""
        facts = dict(self.facts(cells, n_latent))
        text = json.dumps(facts, sort_keys=True, default=repr)
        return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def resolve(models: str | Sequence[str] | Mapping[str, str | Embed]) -> list[Contender]:
    """Find the models that are meant by names, or by what they are called in the table.

    >>> [contender.name for contender in resolve(["pca", "scvi"])]
    ['pca', 'scvi']
    >>> resolve("scvii")
    Traceback (most recent call last):
    ...
    ValueError: models='scvii' is not a built-in model; did you mean 'scvi'? Available: ...
    """
    if isinstance(models, str):
        models = [models]
    named = dict(models) if isinstance(models, Mapping) else dict(zip(models, models, strict=True))
    if not named:
        raise ValueError("models is empty: name at least one.")
    if len(named) < len(models):
        raise ValueError(f"models names one twice: {', '.join(models)}.")
    return [_contender(str(name), model) for name, model in named.items()]


def _contender(name: str, model: str | Embed) -> Contender:
    if callable(model):
        return _custom(name, model)
    if model not in BUILT_IN:
        raise ValueError(unknown_key("models", model, "a built-in model", BUILT_IN))
    return Contender(name, **BUILT_IN[model])


def _custom(name: str, function: Embed) -> Contender:
    def embed(counts: AnnData, task: Task) -> Embedded:
        return Embedded(np.asarray(function(counts, task.n_latent, task.seed)))

    return Contender(name, embed)


def _pca(counts: AnnData, task: Task) -> Embedded:
    """Plain principal components, of which ARPACK finds the same whatever the seed."""
    import scanpy as sc

    logs = log_normalised(counts)
    sc.pp.pca(logs, n_comps=task.n_latent, svd_solver="arpack", random_state=0)
    return Embedded(logs.obsm["X_pca"])


def _fa(counts: AnnData, task: Task) -> Embedded:
    from sklearn.decomposition import FactorAnalysis

    model = FactorAnalysis(task.n_latent, svd_method="randomized", random_state=task.seed)
    return Embedded(model.fit_transform(log_normalised(counts).X.toarray()))


def _harmony(counts: AnnData, task: Task) -> Embedded:
    """Integrate principal components, whose number is Harmony's own whatever was asked for."""
    import harmonypy
    import scanpy as sc

    logs = log_normalised(counts)
    n_comps = min(HARMONY_COMPONENTS, min(logs.shape) - 1)
    sc.pp.pca(logs, n_comps=n_comps, svd_solver="arpack", random_state=0)
    harmony = harmonypy.run_harmony(
        logs.obsm["X_pca"], logs.obs, [task.batch_key], random_state=task.seed, verbose=False
    )
    return Embedded(harmony.Z_corr)


def _harmony_needs(name: str, batch_key: str | None) -> None:
    if batch_key is None:
        raise ValueError(
            f"model {name!r} integrates batches: name their column with batch_key, or leave the "
            "model out."
        )
    if importlib.util.find_spec("harmonypy") is None:
        raise ImportError(f'model {name!r} needs harmonypy: pip install "dra_scvi[scib]"')


def _upstream(name: str, counts: AnnData, task: Task, is_short: bool = False) -> Embedded:
    """Embed with a model of scvi-tools."""
    from dra_scvi._training.runner import seeded

    with seeded(task.seed), _quiet():
        model = _trained(name, counts, task, is_short)
        return Embedded(model.get_latent_representation(), model.trainer.max_epochs)


def _trained(name: str, counts: AnnData, task: Task, is_short: bool = False) -> Any:
    """Train a model of scvi-tools as its defaults say, or for as many epochs as DRA."""
    model_cls = _upstream_class(name)
    max_epochs = task.max_epochs
    if is_short and max_epochs is None:
        n_batch = 1 if task.batch_key is None else counts.obs[task.batch_key].nunique()
        max_epochs = _dra_epochs(counts.n_obs, task.n_latent, n_batch)
    model_cls.setup_anndata(counts, batch_key=task.batch_key)
    model = model_cls(counts, n_latent=task.n_latent)
    model.train(max_epochs=max_epochs, accelerator=task.accelerator, enable_progress_bar=False)
    return model


def _scanvi(counts: AnnData, task: Task) -> Embedded:
    """Train scVI, and from its weights, as scvi-tools advises, scANVI, which is told types."""
    from scvi.model import SCANVI

    from dra_scvi._training.runner import seeded

    with seeded(task.seed), _quiet():
        before = _trained("SCVI", counts, task)
        counts.obs[TOLD_KEY] = task.told
        model = SCANVI.from_scvi_model(before, UNTOLD, labels_key=TOLD_KEY)
        model.train(accelerator=task.accelerator, enable_progress_bar=False)
        epochs = before.trainer.max_epochs + model.trainer.max_epochs
        return Embedded(model.get_latent_representation(), epochs)


def _upstream_class(name: str) -> Any:
    import scvi

    return getattr(scvi.model, name, None) or getattr(scvi.external, name, None)


def _upstream_needs(of: str, name: str, batch_key: str | None) -> None:
    if _upstream_class(of) is None:
        raise ImportError(
            f"model {name!r} needs scvi-tools 1.5 or later, which has scvi.external.{of}, and "
            f"Python 3.12; this is scvi-tools {version('scvi-tools')}: "
            'pip install "scvi-tools>=1.5"'
        )


def _dra_epochs(n_obs: int, n_latent: int, n_batch: int) -> int:
    from dra_scvi._model.epochs import default_max_epochs

    return default_max_epochs(n_obs, n_latent=n_latent, n_batch=n_batch)


def _dra(counts: AnnData, task: Task) -> Embedded:
    from dra_scvi import tl

    with _quiet():
        model = tl.dra(
            counts,
            batch_key=task.batch_key,
            n_latent=task.n_latent,
            seed=task.seed,
            max_epochs=task.max_epochs,
            accelerator=task.accelerator,
            train_kwargs={"enable_progress_bar": False},
        )
    return Embedded(counts.obsm["X_dra"], model.trainer.max_epochs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what trainers say of every run out of a table of many."""
    levels = {name: logging.getLogger(name).level for name in TALKATIVE}
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _upstream_facts(
    name: str, cells: Cells, n_latent: int, is_short: bool = False
) -> dict[str, Any]:
    epochs = {"epochs": _epochs(cells, n_latent)} if is_short else {}
    return {**_facts(_upstream_class(name)), **epochs}


def _scanvi_facts(cells: Cells, n_latent: int) -> dict[str, Any]:
    return {
        "before": _upstream_facts("SCVI", cells, n_latent),
        **_facts(_upstream_class("SCANVI")),
    }


def _dra_facts(cells: Cells, n_latent: int) -> dict[str, Any]:
    from dra_scvi._model.dra import DRA

    epochs = _epochs(cells, n_latent)
    return {**_facts(DRA), "dra_scvi": version("dra_scvi"), "epochs": epochs}


def _epochs(cells: Cells, n_latent: int) -> int:
    return _dra_epochs(cells.counts.n_obs, n_latent, cells.n_batches)


def _harmony_facts(cells: Cells, n_latent: int) -> dict[str, Any]:
    return {"harmonypy": version("harmonypy"), "components": HARMONY_COMPONENTS}


def _facts(model_cls: Any) -> dict[str, Any]:
    """Collect the defaults of a model and of its training, and the version they are from."""
    return {
        "model": _defaults(model_cls),
        "module": _defaults(model_cls._module_cls),
        "plan": _defaults(model_cls._training_plan_cls),
        "train": _defaults(model_cls.train, of_class=False),
        "scvi_tools": version("scvi-tools"),
    }


def _defaults(of: Any, of_class: bool = True) -> dict[str, str]:
    parameters = inspect.signature(of.__init__ if of_class else of).parameters.values()
    return {p.name: repr(p.default) for p in parameters if p.default is not p.empty}


def _of_scvi_tools(name: str, **options: Any) -> dict[str, Any]:
    return {
        "embed": partial(_upstream, name, **options),
        "takes_epochs": True,
        "facts": partial(_upstream_facts, name, **options),
        "needs": partial(_upstream_needs, name),
    }


BUILT_IN: dict[str, dict[str, Any]] = {
    "pca": {"embed": _pca, "is_linear": True, "is_deterministic": True},
    "fa": {"embed": _fa, "is_linear": True},
    "harmony": {"embed": _harmony, "facts": _harmony_facts, "needs": _harmony_needs},
    "scvi": _of_scvi_tools("SCVI"),
    "scvi-short": _of_scvi_tools("SCVI", is_short=True),
    "ldvae": _of_scvi_tools("LinearSCVI"),
    "drvi": _of_scvi_tools("DRVI"),
    "jointembedding": _of_scvi_tools("JointEmbeddingSCVI"),
    "scanvi": {
        "embed": _scanvi,
        "takes_epochs": True,
        "sees_labels": True,
        "facts": _scanvi_facts,
    },
    "dra": {"embed": _dra, "takes_epochs": True, "facts": _dra_facts},
}
