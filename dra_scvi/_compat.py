"""The few names that dra_scvi needs from private parts of scvi-tools, in one place."""

import functools
from collections.abc import Callable
from inspect import signature
from typing import Any
from unittest import mock

import rich.pretty  # noqa: F401  # scvi-tools uses it without importing it
from scvi.data._constants import _MANAGER_UUID_KEY as MANAGER_UUID_KEY
from scvi.data._download import _download as download
from scvi.data._utils import _get_adata_minify_type as minified_type
from scvi.data._utils import _is_minified as is_minified
from scvi.data._utils import registry_key_to_default_dtype as default_dtype
from scvi.module._constants import MODULE_KEYS

__all__ = [
    "MANAGER_UUID_KEY",
    "MODULE_KEYS",
    "default_dtype",
    "download",
    "is_minified",
    "minified_type",
    "with_any_annbatch",
]


def with_any_annbatch(setup: Callable[..., Any]) -> Callable[..., Any]:
    """Let scvi-tools' ``setup_annbatch`` make a loader of annbatch 0.3 and later as well.

    scvi-tools 1.5 asks the loader for tensors by ``to_torch=True``, which became ``to="torch"``.
    """

    @functools.wraps(setup)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            import annbatch
        except ImportError:
            return setup(*args, **kwargs)  # which says what is missing
        loader = annbatch.Loader
        if "to_torch" in signature(loader).parameters:
            return setup(*args, **kwargs)

        def make(*, to_torch: bool, **options: Any) -> Any:
            return loader(**{"to": "torch" if to_torch else None} | options)

        with mock.patch.object(annbatch, "Loader", make):
            return setup(*args, **kwargs)

    return run
