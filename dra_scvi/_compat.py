"""The few names that dra_scvi needs from private parts of scvi-tools, in one place."""

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
]
