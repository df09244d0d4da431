"""Names of files and folders on the command line: spelled out, and refused where they are none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dra_scvi._outputs.rehearsal import Kind, Output

__all__ = ["FileName", "FolderName", "JsonName", "PathName", "to_write"]


class PathName(click.Path):
    """A name of something to read; ``~`` is the home folder, also where no shell replaced it."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Refuse what is no name."""
        text = os.fspath(value)
        if not text.strip():
            self.fail("an empty name.", param, ctx)
        if any(ord(character) < ord(" ") for character in text):
            self.fail(f"{text!r} has a line break or another control character in it.", param, ctx)
        return Path(text).expanduser() if _has_home(text) else Path(text)


class FolderName(PathName):
    """A name of a folder to be written."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Refuse the home of nobody as well."""
        path = super().convert(value, param, ctx)
        if os.fspath(path).startswith("~"):
            self.fail(f"{os.fspath(path)!r} begins with a user who is not there.", param, ctx)
        return path


class FileName(FolderName):
    """A name of a file to be written."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Refuse names of folders as well."""
        if os.fspath(value).endswith(("/", os.sep)):
            self.fail(f"{os.fspath(value)!r} names a folder; name a file in it.", param, ctx)
        return super().convert(value, param, ctx)


class JsonName(FileName):
    """A name of a file to be written, or ``-``."""

    name = "path"

    def convert(  # type: ignore[override]
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Leave the name of standard output as it is."""
        return "-" if value == "-" else str(super().convert(value, param, ctx))


def to_write(option: str, path: Path | None, kind: Kind = "file") -> list[Output]:
    """Describe an output that may not have been asked for."""
    from dra_scvi._outputs.rehearsal import Output

    return [] if path is None else [Output(option, path, kind)]


def _has_home(text: str) -> bool:
    return text.startswith("~") and os.path.expanduser(text) != text
