"""The README as package indexes show it: links and pictures by their absolute addresses."""

from __future__ import annotations

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")


class Readme(MetadataHookInterface):
    """Puts the README into the metadata when wheel and sdist are built."""

    def update(self, metadata: dict) -> None:
        """Add the README; the repository is the one among the project's addresses."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = absolute(text, metadata["urls"]["Repository"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def absolute(text: str, repository: str) -> str:
    """Point links at the repository, and pictures at the files themselves."""
    raw = repository.replace("//github.com/", "//raw.githubusercontent.com/")

    def replaced(link: re.Match[str]) -> str:
        place = f"{raw}/HEAD" if link[1] else f"{repository}/blob/HEAD"
        return f"{link[1]}[{link[2]}]({place}/{link[3]})"

    return LINK.sub(replaced, text)
