"""The manager of registered data: the one door to them, where what changed in place is refused."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager, AnnTorchDataset
from torch.utils.data import Subset

from dra_scvi._compat import MANAGER_UUID_KEY, default_dtype
from dra_scvi._data.matrices import cast
from dra_scvi._data.unchanged import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from numpy.typing import NDArray
    from scvi.data.fields import AnnDataField
    from scvi.model.base import BaseModelClass


class CountsDataset(AnnTorchDataset):
    """scvi-tools' data set, without two faults of it.

    From a file it reads rows in ascending order, which leaves the results of getters out of step
    with the `indices` they were asked for; and it cannot read sparse blocks of a dask array.
    """

    def __getitem__(
        self, indexes: int | list[int] | NDArray[np.int64] | slice
    ) -> dict[str, NDArray | torch.Tensor]:
        """Fetch the data of cells, shape ``(n_cells, ...)`` each."""
        rows = super().__getitem__(indexes)
        for key, values in rows.items():
            if not self.load_sparse_tensor:
                dense = values.toarray() if sparse.issparse(values) else values
                rows[key] = dense.astype(self.keys_and_dtypes[key], copy=False)
        in_file = self.adata_manager.adata.isbacked
        if not in_file or self.load_sparse_tensor or not isinstance(indexes, list | np.ndarray):
            return rows
        rank = np.argsort(np.argsort(indexes))
        return {key: values[rank] for key, values in rows.items()}


class CountsManager(AnnDataManager):
    """A manager that looks whether data are still what was registered, before they are read.

    What it hands out is cast to types that every reader knows, and SciPy's sparse arrays are
    matrices. The AnnData keeps its own.
    """

    _snapshot: Snapshot

    def register_fields(
        self, adata: AnnData, source_registry: dict | None = None, **transfer_kwargs: Any
    ) -> None:
        """Register each field, and keep what it was."""
        super().register_fields(adata, source_registry, **transfer_kwargs)
        if not hasattr(self, "_snapshot"):
            self._snapshot = self._take_snapshot()

    def register_new_fields(self, fields: list[AnnDataField]) -> None:
        """Register further fields, as minified data have."""
        super().register_new_fields(fields)
        self._snapshot = self._take_snapshot()

    def validate(self) -> None:
        """Refuse data that changed since they were registered; register what others undid."""
        self._assert_anndata_registered()
        self._snapshot.check(self.adata)
        self.adata.uns.setdefault(MANAGER_UUID_KEY, "")
        super().validate()
        self._snapshot.check_read(self.adata)

    def _take_snapshot(self) -> Snapshot:
        fields = {field.registry_key: field for field in self.fields if not field.is_empty}
        layer = fields.pop(REGISTRY_KEYS.X_KEY).attr_key
        if not isinstance(self.adata, AnnData):  # an AnnCollection has no columns of its own
            return Snapshot(self.adata, layer)
        fields.pop(REGISTRY_KEYS.MINIFY_TYPE_KEY, None)
        read = [(field.attr_name, field.attr_key) for field in fields.values()]
        fields.pop(REGISTRY_KEYS.LABELS_KEY, None)  # cells may be annotated anew
        sources: list[str] = []
        for key in fields:
            state = self.get_state_registry(key)
            sources += [state.original_key] if "original_key" in state else []
            sources += [*state.get("field_keys", ()), *state.get("columns", ())]
        return Snapshot(self.adata, layer, sources, read)

    def get_from_registry(self, registry_key: str) -> Any:
        """Return what is registered under a key."""
        data = cast(super().get_from_registry(registry_key), default_dtype(registry_key))
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
        self.validate()
        dataset = CountsDataset(
            self, getitem_tensors=data_and_attributes, load_sparse_tensor=load_sparse_tensor
        )
        return dataset if indices is None else Subset(dataset, indices)


def forget_with(model: BaseModelClass) -> None:
    """Let go of the AnnData with the model: scvi-tools would hold both registries for ever."""
    manager, cls = model.adata_manager, type(model)

    def forget(identity: str) -> None:
        cls._per_instance_manager_store.pop(identity, None)
        if cls._setup_adata_manager_store.get(manager.adata_uuid) is manager:
            del cls._setup_adata_manager_store[manager.adata_uuid]

    weakref.finalize(model, forget, model.id).atexit = False


@contextlib.contextmanager
def registered(model: BaseModelClass, adata: AnnData) -> Iterator[None]:
    """Register other cells with a model for the time of a block.

    A getter that is handed them does so too, says so, and holds them as long as the model lives.
    """
    manager = model.adata_manager.transfer_fields(adata)
    model._register_manager_for_instance(manager)
    try:
        yield
    finally:
        del model._per_instance_manager_store[model.id][manager.adata_uuid]
