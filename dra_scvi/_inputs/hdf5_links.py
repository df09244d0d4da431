"""What an HDF5 file needs beside itself: links, storage and parts in other files are refused.

The library follows them without a word, to read and to write, so that cells from elsewhere would
change or publish files that their reader never named.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

import h5py

from dra_scvi._exceptions import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# a file whose groups are reached so much more often than they exist is made to keep readers busy
MOST_VISITS = 1_000
VISITS_PER_OBJECT = 10
ANEW = "If you trust it, read it in Python and write it anew"


def check_links(path: Path) -> None:
    """Check that an HDF5 file refers to nothing outside of itself, and that its links have an end.

    Links within the file may lead to one object by several names, as long as they make no circle.
    The values of datasets may not lie elsewhere, nor need a filter that is not installed. An
    :class:`InputError` names the place in the file; a plain ValueError means damage.
    """
    with h5py.File(path, "r") as file:
        try:
            n_objects = _check_objects(file.id)
            _check_paths(file.id, MOST_VISITS + VISITS_PER_OBJECT * n_objects)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        except (OSError, RuntimeError, KeyError) as error:
            text = str(error.args[0] if error.args else error)
            raise ValueError(f"{path}: its links cannot be followed ({text})") from error


def _check_objects(root: Any) -> int:
    """Look at every object once, by hard links alone; return how many there are."""
    seen: set[int] = set()
    waiting = [("", root)]
    while waiting:
        name, item = waiting.pop()
        address = h5py.h5o.get_info(item).addr
        if address in seen:
            continue
        seen.add(address)
        if isinstance(item, h5py.h5d.DatasetID):
            _check_storage(name, item)
        for child, key, kind in _links(name, item):
            if kind == h5py.h5l.TYPE_HARD:
                waiting.append((child, h5py.h5o.open(item, key)))
            elif kind == h5py.h5l.TYPE_EXTERNAL:
                target = item.links.get_val(key)[0].decode(errors="replace")
                raise ValueError(f"{child} is a link to another file ({target}). {ANEW}.")
            elif kind != h5py.h5l.TYPE_SOFT:
                raise ValueError(f"{child} is a link of an unknown kind ({kind}). {ANEW}.")
    return len(seen)


def _check_paths(root: Any, most: int) -> None:
    """Go along every path, as readers do, once it is known that none leaves the file."""
    waiting = [("", root, frozenset([h5py.h5o.get_info(root).addr]))]
    n_visits = 0
    while waiting:
        name, group, above = waiting.pop()
        for child, key, _ in _links(name, group):
            n_visits += 1
            try:
                item = h5py.h5o.open(group, key)
            except (KeyError, OSError, RuntimeError) as error:
                raise ValueError(f"{child} is a link that leads nowhere. Remove it.") from error
            if not isinstance(item, h5py.h5g.GroupID):
                continue
            address = h5py.h5o.get_info(item).addr
            if address in above:
                raise ValueError(f"{child} is a link to a group that it lies in. Remove it.")
            waiting.append((child, item, above | {address}))
        if n_visits > most:
            top = "/".join(name.split("/")[:3])
            raise ValueError(f"{top} links the same groups again and again. {ANEW}.")


def _links(name: str, item: Any) -> Iterator[tuple[str, bytes, int]]:
    """Path, key and kind of what lies in a group, and nothing for other objects."""
    if isinstance(item, h5py.h5g.GroupID):
        for key in item:
            yield f"{name}/{key.decode(errors='replace')}", key, item.links.get_info(key).type


def _check_storage(name: str, dataset: Any) -> None:
    plist = dataset.get_create_plist()
    if plist.get_external_count():
        target = plist.get_external(0)[0].decode(errors="replace")
        raise ValueError(f"the values of {name} lie in another file ({target}). {ANEW}.")
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        raise ValueError(f"{name} is a virtual dataset, made of parts of others. {ANEW}.")
    for place in range(plist.get_nfilters()):
        code, *_, label = plist.get_filter(place)
        if not _is_installed(code):
            text = label.decode(errors="replace")
            raise ValueError(
                f"{name} is compressed by filter {code} ({text}), which is not installed here: "
                "pip install hdf5plugin, or write the file with gzip or lzf."
            )


def _is_installed(code: int) -> bool:
    if not h5py.h5z.filter_avail(code):
        with contextlib.suppress(ImportError):  # which makes its filters known
            importlib.import_module("hdf5plugin")
    return bool(h5py.h5z.filter_avail(code))
