"""The outputs of training: each is tried, and what fails keeps no other from being written."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dra_scvi.cli._clusters import UMAP
from dra_scvi.cli._errors import Unfinished
from dra_scvi.cli._options import KEY_ADDED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from anndata import AnnData

    from dra_scvi._model.dra import DRA
    from dra_scvi.cli._command import Common
    from dra_scvi.cli._train_request import TrainRequest


class Saving:
    """Writes what training has led to; nothing of it may be lost."""

    def __init__(self, model: DRA, request: TrainRequest, common: Common) -> None:
        self.model, self.request, self.common = model, request, common
        self.error: Exception | None = None
        self.model_at: Path | None = None
        self.cells_at: Path | None = None
        self.is_logged = True

    def save_model(self) -> None:
        """Save the model where that was asked for, or under another name if need be."""
        wanted = self.request.model_dir
        if wanted is None:
            return
        try:
            self._save_at(wanted, overwrite=self.common.force)
        except Exception as error:  # noqa: BLE001 - whatever it was, the embedding comes next
            self.error = _named(error, wanted)
            self._rescue_model()

    def save_cells(self, write: Callable[[], None]) -> None:
        """Write INPUT with its embedding; if that fails, save the model it can be made with."""
        try:
            write()
            self.cells_at = self.request.output
        except Exception as error:  # noqa: BLE001 - training must not have been for nothing
            self.error = self.error or error
            self.cells_at = getattr(error, "kept", None)
            if self.model_at is None and self.cells_at is None:
                self._rescue_model()

    def compute(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return scores or other figures, or none where they cannot be computed."""
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - the embedding is worth more than its figures
            self.error = self.error or error
            return {}

    def log(self, write: Callable[[], None]) -> None:
        """Write the log, or the report."""
        try:
            write()
        except Exception as error:  # noqa: BLE001 - raised once the figures are written as well
            self.error = self.error or error
            self.is_logged = False

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Say what is there already where a signal ends the block."""
        try:
            yield
        except KeyboardInterrupt as error:
            self.is_logged = False  # what was being written, or is yet to be, is not there
            error.args = ("; ".join(self._kept()),)
            raise

    @property
    def failure(self) -> Exception | None:
        """The first error, with what is there all the same."""
        if self.error is None:
            return None
        return Unfinished(self.error, "; ".join(self._kept()))

    @property
    def is_complete(self) -> bool:
        """Whether embedding, model, log and report are there, under whatever name."""
        has_model = self.request.model_dir is None or self.model_at is not None
        return self.cells_at is not None and has_model and self.is_logged

    def finish(self) -> None:
        """Give up the checkpoint, now that the figures are written too, if everything is there."""
        if self.is_complete:
            self.request.checkpoint.unlink(missing_ok=True)

    def _kept(self) -> list[str]:
        kept = []
        if self.cells_at is not None:
            kept.append(f"the embedding is in {self.cells_at}")
        if self.model_at is not None:
            text = f"the trained model is in {self.model_at}"
            if self.cells_at is None:
                inputs = " ".join(map(str, self.request.input_paths))
                text += (
                    f": dra-scvi embed {inputs} --model {self.model_at} --output "
                    "OUT.h5ad embeds without training again"
                )
            kept.append(text)
        if self.request.checkpoint.exists() and not self.is_complete:
            kept.append(f"the checkpoint is in {self.request.checkpoint}, for --resume")
        return kept

    def _save_at(self, folder: Path, overwrite: bool = False) -> None:
        self.model.save(str(folder), overwrite=overwrite)
        self.model_at = folder
        self.common.say(f"wrote {folder}")

    def _rescue_model(self) -> None:
        """Save the model in the first of some places that takes it."""
        from dra_scvi._outputs.drafts import free_name

        name = self.request.model_dir or self.request.output.with_suffix(".model")
        for place in (name.parent, Path.cwd(), Path(tempfile.gettempdir())):
            folder = place / name.name
            try:
                self._save_at(free_name(folder) if folder.exists() else folder)
            except Exception:  # noqa: BLE001 - the next place may take it
                continue
            return


def write_report(
    model: DRA, adata: AnnData, figures: Mapping[str, Any], request: TrainRequest, common: Common
) -> None:
    """Write the page, where it was asked for."""
    from dra_scvi._outputs.files import write_text
    from dra_scvi.report._write import page

    if request.report is None:
        return
    text = page(
        model,
        adata,
        label_key=request.label_key,
        cluster_key=request.LEIDEN,
        use_rep=KEY_ADDED,
        umap_key=UMAP,
        seed=common.seed,
        title=request.input_name,
        scores={name: figures[name] for name in ("kmeans", "leiden") if name in figures},
        scored=figures.get("cells", "all"),
    )
    write_text(text, request.report, common.force)
    common.say(f"wrote {request.report}")


def _named(error: Exception, folder: Path) -> Exception:
    """Say of a folder that appeared meanwhile what the user may do about it."""
    taken = isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST)
    if isinstance(error, FileExistsError) or taken:
        return FileExistsError(f"{folder} was written by another process meanwhile and is left")
    return error
