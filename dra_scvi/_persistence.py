"""Saving and loading of models: scvi-tools' methods, around checked folders and genes in order."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any, Literal, Self

from anndata import AnnData
from scvi.model.base import ArchesMixin, BaseModelClass

from dra_scvi._compat import download
from dra_scvi._docstrings import with_parameters_of
from dra_scvi._model_folder import MODEL, atomic_save, checked_copy, read_model
from dra_scvi._transfer import TransferMixin
from dra_scvi._validation import check_genes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


def in_gene_order(adata: AnnData, genes: Sequence[str]) -> AnnData:
    """Return the data with their genes in the order of a model.

    Parameters
    ----------
    adata
        Left as it is; where the order differs, a copy is returned.
    genes
        Genes of the model.

    Raises
    ------
    GeneMismatchError
        When the data lack genes of the model, or have others.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> adata = AnnData(np.array([[1, 2]]), var=pd.DataFrame(index=["a", "b"]))
    >>> in_gene_order(adata, ["b", "a"]).X
    array([[2, 1]])
    """
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
        """
        facts = {"class": type(self).__name__, "genes": list(map(str, self.get_var_names()))}
        with atomic_save(dir_path, prefix or "", overwrite, facts) as draft:
            super().save(str(draft), prefix, True, *args, **kwargs)

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
        """Load a model, once its files are found to be undamaged and free of foreign code.

        What NumPy and pandas build from a file is trusted: the check stops code that a file names
        itself.

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
        if backup_url is not None:
            download(backup_url, str(dir_path), (prefix or "") + MODEL)
        with checked_copy(
            dir_path, prefix or "", trusted=trusted, with_data=adata is None
        ) as copy:
            if isinstance(adata, AnnData):
                adata = in_gene_order(adata, read_model(copy, prefix or "")["var_names"])
            return super().load(
                str(copy), adata, accelerator, device, prefix, None, *args, **kwargs
            )

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
        with checked_copy(dir_path, prefix or "") as copy:
            return BaseModelClass.load_registry(str(copy), prefix)

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
        if not isinstance(reference_model, str | os.PathLike):
            return ArchesMixin.prepare_query_anndata(adata, reference_model, *args, **kwargs)
        with checked_copy(reference_model) as copy:
            return ArchesMixin.prepare_query_anndata(adata, str(copy), *args, **kwargs)
