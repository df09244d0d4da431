"""What scvi-tools registers of the counts: every value checked, genes in order, any matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField
from torch.utils.data import Subset

from dra_scvi._compat import is_minified
from dra_scvi._dataset import CountsDataset
from dra_scvi._validation import check_genes, validate_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from anndata import AnnData


class CountsField(LayerField):
    """The matrix of counts, of which scvi-tools' own field checks a sample of 20 values.

    Here every value is checked, whenever an AnnData is registered: for a new model, for one that
    is loaded, and for each getter that is handed other cells. Other cells must have the genes of
    the model, in its order.

    Parameters
    ----------
    layer
        Key of ``adata.layers``; ``adata.X`` when None.
    batch_key
        Column of ``adata.obs`` with batches, or None.
    allow_noninteger
        Turn the error about non-integer values into a warning.
    """

    def __init__(
        self, layer: str | None, batch_key: str | None = None, allow_noninteger: bool = False
    ) -> None:
        super().__init__(REGISTRY_KEYS.X_KEY, layer, is_count_data=False)
        self.batch_key = batch_key
        self.allow_noninteger = allow_noninteger

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Check the counts that a model is to learn from, and register them."""
        self._check_counts(adata, self.batch_key, to_train=True)
        return super().register_field(adata)

    def transfer_field(
        self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any
    ) -> dict[str, Any]:
        """Check genes and counts of cells that a model is used on, and register them."""
        genes = adata_target.var_names.astype(str)
        check_genes(list(genes), list(state_registry[self.COLUMN_NAMES_KEY].astype(str)))
        self._check_counts(adata_target, None, to_train=False)
        return super().register_field(adata_target)

    def _check_counts(self, adata: AnnData, batch_key: str | None, *, to_train: bool) -> None:
        if is_minified(adata):
            return  # there are none
        for part in getattr(adata, "adatas", [adata]):  # an AnnCollection has several
            validate_counts(
                part,
                self.attr_key,
                batch_key if part is adata else None,
                allow_noninteger=self.allow_noninteger,
                to_train=to_train,
            )


class CountsManager(AnnDataManager):
    """A manager that hands out SciPy's sparse arrays as the matrices that scvi-tools knows.

    Both share their memory, and the AnnData keeps its own.
    """

    def get_from_registry(self, registry_key: str) -> Any:
        """Return what is registered under a key."""
        data = super().get_from_registry(registry_key)
        if not isinstance(data, sparse.sparray):
            return data
        return sparse.csc_matrix(data) if data.format == "csc" else sparse.csr_matrix(data)

    def create_torch_dataset(
        self,
        indices: Sequence[int] | None = None,
        data_and_attributes: list[str] | dict[str, np.dtype] | None = None,
        load_sparse_tensor: bool = False,
    ) -> CountsDataset | Subset:
        """Return the registered data of chosen cells as rows to take minibatches from."""
        dataset = CountsDataset(
            self, getitem_tensors=data_and_attributes, load_sparse_tensor=load_sparse_tensor
        )
        return dataset if indices is None else Subset(dataset, indices)
