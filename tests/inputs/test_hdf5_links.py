"""What an HDF5 file needs beside itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import pytest

from dra_scvi._inputs.hdf5_links import check_links

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def external_link(file: Any) -> None:
    file["group/elsewhere"] = h5py.ExternalLink("other.h5", "/x")


def external_storage(file: Any) -> None:
    file.create_dataset("group/elsewhere", shape=(3,), dtype="i4", external="/etc/hostname")


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((3,), "i4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
    file.create_virtual_dataset("group/elsewhere", layout)


def dangling(file: Any) -> None:
    file["group/elsewhere"] = h5py.SoftLink("/none")


def to_itself(file: Any) -> None:
    file["group/elsewhere"] = h5py.SoftLink("/group/elsewhere")


def circle(file: Any) -> None:
    file["group/elsewhere"] = h5py.SoftLink("/group")


def root(file: Any) -> None:
    file["group/elsewhere"] = file["/"]


def bomb(file: Any) -> None:
    inner = file["group"]
    for _ in range(40):
        outer, inner = inner, file.create_group(None)
        outer["elsewhere"] = outer["twin"] = inner


def unknown_filter(file: Any) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((3,))
    plist.set_filter(399, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((3,))
    h5py.h5d.create(file["group"].id, b"elsewhere", h5py.h5t.NATIVE_INT32, space, plist)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (external_link, r"a link to another file \(other.h5\)"),
        (external_storage, r"lie in another file \(/etc/hostname\)"),
        (virtual, "a virtual dataset"),
        (dangling, "leads nowhere"),
        (to_itself, "leads nowhere"),
        (circle, "a group that it lies in"),
        (root, "a group that it lies in"),
        (bomb, "again and again"),
        (unknown_filter, "filter 399 .*not installed here"),
    ],
)
def test_what_leads_out_of_a_file_or_round_in_it(
    make: Callable[[Any], None], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("group/data", data=[1, 2], chunks=True, compression="gzip")
        make(file)
    with pytest.raises(ValueError, match=reason) as caught:
        check_links(path)
    assert str(path) in str(caught.value)
    assert "/group/" in str(caught.value)


def test_links_within_a_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("group/data", data=[1, 2])
        file["soft"] = h5py.SoftLink("/group")
        file["hard"] = file["group"]
    check_links(tmp_path / "a.h5")
