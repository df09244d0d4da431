"""Print the lowest versions that pyproject.toml allows, one requirement a line.

    python .ci/lowest.py > lowest.txt && pip install ".[test]" --constraint lowest.txt

PyTorch is left out: of its old versions there are builds for CUDA alone, of gigabytes.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

LEFT_OUT = {"torch"}


def main() -> None:
    """Pin each requirement that names a version to begin with."""
    path = Path(__file__).parent.parent / "pyproject.toml"
    project = tomllib.loads(path.read_text())["project"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["test"]:
        name, lowest = re.match(r"([\w-]+)[^>]*(?:>=([\d.]+))?", requirement).groups()
        if lowest is None:
            raise SystemExit(f"{path.name}: {name} has no lowest version")
        if name not in LEFT_OUT:
            print(f"{name}=={lowest}")


if __name__ == "__main__":
    main()
