"""Saving and loading of models: scvi-tools' methods, around checked folders and genes in order."""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import pyro
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.model.base import ArchesMixin, BaseModelClass

from dra_scvi._argument_kinds import check_call, check_kinds
from dra_scvi._compat import download
from dra_scvi._data.query import check_genes
from dra_scvi._docstrings import with_parameters_of
from dra_scvi._exceptions import UntrustedModelError
from dra_scvi._folder.manifest import MODEL, check_prefix
from dra_scvi._folder.read import checked_copy, legacy_copy, read_model, read_values
from dra_scvi._folder.write import atomic_save
from dra_scvi._model.transfer import TransferMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd


def in_gene_order(adata: AnnData, genes: Sequence[str]) -> AnnData:
    """Return data with the genes of a model, in its order: a copy where they have another."""
    given, needed = list(map(str, adata.var_names)), list(map(str, genes))
    if given == needed or sorted(given) != sorted(needed) or not adata.var_names.is_unique:
        check_genes(given, needed)
        return adata
    ordered = adata[:, needed]
    return ordered.to_memory() if adata.isbacked else ordered.copy()


class PersistenceMixin(ArchesMixin, BaseModelClass):
    """Models whose saves are whole, and loaded only when they are undamaged and harmless.

    A save stays one of scvi-tools', which its own functions read.
    """

    @with_parameters_of(BaseModelClass.save, leave_out=["dir_path", "overwrite"])
    def save(
        self,
        dir_path: str | os.PathLike[str],
        prefix: str | None = None,
        overwrite: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Save the model, whole or not at all.

        The folder is what scvi-tools writes and `manifest.json`, with checksums, versions and the
        order of the genes. Where saving fails, or is killed, an older model in it stays intact.

        Parameters
        ----------
        dir_path
            Folder to write.
        overwrite
            Whether the folder may exist. Files of other names in it are left alone.
        {parameters}

        Raises
        ------
        FileExistsError
            When the folder exists and may not be overwritten.
        ValueError
            When `prefix` is not the beginning of a file name.
        """
        facts = {"class": type(self).__name__, "genes": list(map(str, self.get_var_names()))}
        with atomic_save(dir_path, prefix or "", overwrite, facts) as draft:
            with pyro.get_param_store().scope():  # whose content is of other models
                super().save(str(draft), prefix, True, *args, **kwargs)
            _warn_of_what_is_not_plain(draft / f"{prefix or ''}{MODEL}")

    @classmethod
    @with_parameters_of(BaseModelClass.load, leave_out=["dir_path", "adata"])
    def load(
        cls,
        dir_path: str | os.PathLike[str],
        adata: AnnData | Literal[False] | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        backup_url: str | None = None,
        *args: Any,
        trusted: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load a model, once its files are found to be undamaged; no code in them is run.

        Of a pickle of other people only plain values are taken: numbers, strings, containers,
        arrays and tensors, each checked, and written anew before scvi-tools opens them. Cells
        saved with the model may lie in no other file.

        Parameters
        ----------
        dir_path
            Folder of the model.
        adata
            Cells to work on; `None` for those saved with the model, `False` for none. Where their
            genes are in another order than the model's, the model is given a copy in its order.
        trusted
            Whether to load a model that would import what no model needs. It can run any code: be
            sure of where it comes from.
        {parameters}

        Raises
        ------
        FileNotFoundError
            When there is no model.
        ValueError
            When a file is corrupt or truncated.
        UntrustedModelError
            When the model would run code of somebody else; nothing of it was run.
        GeneMismatchError
            When genes of the model are missing from `adata`, or others are there.
        """
        given = (accelerator, device, prefix, backup_url)
        check_call(cls.load, dir_path, adata, *given, *args, trusted=trusted, **kwargs)
        prefix = check_prefix(prefix)
        if backup_url is not None:
            download(backup_url, os.path.expanduser(dir_path), prefix + MODEL)
        with checked_copy(dir_path, prefix, trusted=trusted, with_data=adata is None) as copy:
            if isinstance(adata, AnnData):
                adata = in_gene_order(adata, read_model(copy, prefix)["var_names"])
            load = functools.partial(super().load, str(copy))
            given = (accelerator, device, prefix, None)
            try:
                return load(adata, *given, *args, **kwargs)
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError):
                _check_buildable(functools.partial(load, False, *given, *args, **kwargs), dir_path)
                raise

    @staticmethod
    def load_registry(dir_path: str | os.PathLike[str], prefix: str | None = None) -> dict:
        """Return the registry of a saved model, checked as in :meth:`load`.

        Parameters
        ----------
        dir_path
            Folder of the model.
        prefix
            What the names of its files begin with.
        """
        with checked_copy(dir_path, prefix) as copy:
            return BaseModelClass.load_registry(str(copy), prefix)

    @staticmethod
    @functools.wraps(BaseModelClass.view_setup_args)
    def view_setup_args(dir_path: str | os.PathLike[str], prefix: str | None = None) -> None:
        AnnDataManager.view_setup_method_args(PersistenceMixin.load_registry(dir_path, prefix))

    @classmethod
    @functools.wraps(BaseModelClass.convert_legacy_save.__func__)
    def convert_legacy_save(
        cls,
        dir_path: str | os.PathLike[str],
        output_dir_path: str | os.PathLike[str],
        overwrite: bool = False,
        prefix: str | None = None,
        **save_kwargs: Any,
    ) -> None:
        check_kinds(PersistenceMixin.convert_legacy_save, locals())
        output = os.path.expanduser(output_dir_path)
        with legacy_copy(dir_path, prefix) as copy:
            super().convert_legacy_save(str(copy), output, overwrite, prefix, **save_kwargs)

    @classmethod
    @functools.wraps(TransferMixin.load_query_data.__func__)  # type: ignore[attr-defined]
    def load_query_data(
        cls,
        adata: AnnData | None = None,
        reference_model: str | os.PathLike[str] | BaseModelClass | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Self:
        if not isinstance(reference_model, str | os.PathLike):
            return super().load_query_data(adata, reference_model, *args, **kwargs)
        with checked_copy(reference_model) as copy:
            return super().load_query_data(adata, str(copy), *args, **kwargs)

    @staticmethod
    @functools.wraps(ArchesMixin.prepare_query_anndata)
    def prepare_query_anndata(
        adata: AnnData,
        reference_model: str | os.PathLike[str] | BaseModelClass,
        *args: Any,
        **kwargs: Any,
    ) -> AnnData | pd.Index | None:
        check_call(ArchesMixin.prepare_query_anndata, adata, reference_model, *args, **kwargs)
        if not isinstance(reference_model, str | os.PathLike):
            return ArchesMixin.prepare_query_anndata(adata, reference_model, *args, **kwargs)
        with checked_copy(reference_model) as copy:
            return ArchesMixin.prepare_query_anndata(adata, str(copy), *args, **kwargs)


def _warn_of_what_is_not_plain(file: Path) -> None:
    """Say at once when only those who trust a model will be able to load it."""
    try:
        read_values(file, file)
    except UntrustedModelError as error:
        held = ", ".join(error.names) or "more than plain values"
        warnings.warn(
            f"An attribute of the model holds {held}: it can be loaded with trusted=True alone.",
            stacklevel=3,
        )


def _check_buildable(load: Callable[[], Any], path: str | os.PathLike[str]) -> None:
    """Tell a file that describes no model from cells that do not suit it."""
    try:
        load()
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{Path(path)} holds no model that can be built with these versions of dra_scvi and "
            f"scvi-tools ({type(error).__name__}: {error})."
        ) from error
