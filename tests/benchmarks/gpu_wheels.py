"""Collect the wheels that `gpu.py` needs on a machine that reaches no package index.

    python tests/benchmarks/gpu_wheels.py wheels

What that machine has is left out: large libraries and what they need, or, with `--has`, what its
`pip freeze` lists; of that, what does not suit comes along all the same. Versions are those that
are installed here, in an environment with the same Python. On the other machine, in the root of
this repository and with the wheels there:

    python -m pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site python tests/benchmarks/gpu.py --json gpu.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]
USUAL = ("torch", "numba", "lightning", "pandas", "scikit-learn", "h5py", "numpy", "scipy")
# large, or with large needs, and never imported by what gpu.py runs
UNUSED = ("igraph", "leidenalg", "pooch", "pynndescent", "rdata", "seaborn", "statsmodels")
UNUSED += ("tensorboard", "umap-learn")
MOST_BYTES = 64 * 2**20
SOURCE_ALONE = ("docrep",)  # on the index, and pure Python
GLIBC = (17, 24, 26, 27, 28, 31, 34, 35)


def needs(name: str, extras: frozenset[str], python: str) -> Iterator[Requirement]:
    """Yield what an installed package needs on Linux."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"sys_platform": "linux", "platform_system": "Linux"}
    environment["platform_machine"] = "x86_64"
    for line in requires(name) or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(
            marker.evaluate({**environment, "extra": extra}) for extra in (extras or {""})
        ):
            yield requirement


def reached(
    names: Mapping[str, frozenset[str]], python: str, there: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return packages, and what they need in turn, with their versions here.

    Parameters
    ----------
    names
        Names, each with its extras.
    python
        Version of Python that they are for.
    there
        Packages with their versions, where known, that are not looked into.
    """
    there = there or {}
    found: dict[str, str] = {}
    left = dict(names)
    while left:
        name, extras = left.popitem()
        found[name] = version(name)
        for requirement in needs(name, extras, python):
            other = canonicalize_name(requirement.name)
            has = there.get(other)
            suits = has == "" or (has and requirement.specifier.contains(has, prereleases=True))
            if not suits and other not in found:
                left[other] = left.get(other, frozenset()) | frozenset(requirement.extras)
    return found


def missing(has: Mapping[str, str], python: str) -> dict[str, str]:
    """Return packages that are to be imported beside those that are there."""
    return reached({"dra-scvi": frozenset()}, python, {**has, **dict.fromkeys(UNUSED, "")})


def listed(file: Path | None, python: str) -> dict[str, str]:
    """Return packages of a machine, with versions if known; the usual ones without its list."""
    if file is None:
        return dict.fromkeys(reached(dict.fromkeys(USUAL, frozenset()), python), "")
    pairs = (line.partition("==") for line in file.read_text().split())
    return {canonicalize_name(name): found for name, _, found in pairs}


def collect(folder: Path, packages: Mapping[str, str], python: str) -> None:
    """Download wheels, and build those that are not on the index."""
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC]
    platforms += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64"]
    pip = [sys.executable, "-m", "pip"]
    pinned = {name: f"{name}=={found}" for name, found in packages.items()}
    pinned["dra-scvi"] = str(ROOT)
    built = [pinned.pop(name) for name in ("dra-scvi", *SOURCE_ALONE) if name in pinned]
    target = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    download = [*pip, "download", "--quiet", "--no-deps", *target, *platforms]
    subprocess.run([*download, f"--dest={folder}", *pinned.values()], check=True)
    build = [*pip, "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", *built]
    subprocess.run(build, check=True)


def main() -> None:
    """Print what was collected, and how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the wheels go")
    here = "{}.{}".format(*sys.version_info)
    parser.add_argument("--python", default=here, help="of the machine with the GPU")
    parser.add_argument("--has", type=Path, metavar="FILE", help="its `pip freeze`")
    parser.add_argument("--list", action="store_true", help="say what it lacks, download nothing")
    arguments = parser.parse_args()
    packages = missing(listed(arguments.has, arguments.python), arguments.python)
    if arguments.list:
        print(*(f"{name}=={found}" for name, found in sorted(packages.items())), sep="\n")
        return
    collect(arguments.folder, packages, arguments.python)
    sizes = {path.name: path.stat().st_size for path in sorted(arguments.folder.glob("*.whl"))}
    for name, size in sizes.items():
        print(f"{size / 2**20:6.2f} MiB  {name}")
    total = sum(sizes.values())
    print(f"{total / 2**20:6.2f} MiB  in all, {len(sizes)} wheels")
    if total > MOST_BYTES:
        sys.exit(f"more than {MOST_BYTES / 2**20:.0f} MiB: name more of what is there with --has")


if __name__ == "__main__":
    main()
