"""The few names that dra_scvi needs from private parts of scvi-tools, in one place."""

from scvi.data._utils import _is_minified as is_minified
from scvi.module._constants import MODULE_KEYS

__all__ = ["MODULE_KEYS", "is_minified"]
