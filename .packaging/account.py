"""Say under which account the repository is published, and put it in everywhere.

    python .packaging/account.py          # the account, and where it stands
    python .packaging/account.py NAME     # puts NAME where the placeholder OWNER stood

It is defined in pyproject.toml, under project.urls. Other files that need it cannot look it up
there: this program changes them all, and a test finds any that says something else.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDER = "OWNER"
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9]|-(?=[A-Za-z0-9])){0,38}")  # as GitHub allows
ADDRESS = re.compile(r"(?:github\.com|githubusercontent\.com|ghcr\.io)/([\w-]+)/dra_scvi\b")


def account() -> str:
    """Return the account in the address of the repository."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return ADDRESS.search(project["urls"]["Repository"])[1]


def texts() -> dict[Path, str]:
    """Read every text file of the checkout but this one."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = {}
    for path in sorted({ROOT / name for name in names.split("\0") if name} - {Path(__file__)}):
        try:
            found[path] = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # no text; removed
            continue
    return found


def places(name: str) -> list[str]:
    """List the lines in which an account stands."""
    word = re.compile(rf"\b{re.escape(name)}\b")
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path, text in texts().items()
        for number, line in enumerate(text.splitlines(), start=1)
        if word.search(line)
    ]


def put(name: str) -> None:
    """Write a name wherever the placeholder stands."""
    for path, text in texts().items():
        changed = re.sub(rf"\b{PLACEHOLDER}\b", name, text)
        if changed != text:
            path.write_text(changed, encoding="utf-8")


def main() -> None:
    """Run the program."""
    match sys.argv[1:]:
        case []:
            print(account(), *places(account()), sep="\n")
        case [name] if NAME.fullmatch(name):
            put(name)
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
