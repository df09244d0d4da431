"""Files from elsewhere, kept once downloaded."""

from __future__ import annotations

import lzma
import struct
import zlib
from pathlib import Path

# what reading such a file raises that was cut off, or is another
CORRUPT = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    NotImplementedError,
    EOFError,
    OSError,
    lzma.LZMAError,
    zlib.error,
    struct.error,
)


def download(name: str, url: str, file: str) -> Path:
    import pooch

    try:
        saved = pooch.retrieve(url, known_hash=None, fname=file, path=pooch.os_cache("dra_scvi"))
    except OSError as error:
        raise ConnectionError(
            f"Could not download the {name} data ({type(error).__name__}); download {url} "
            "elsewhere and pass it as path=."
        ) from error
    return Path(saved)
