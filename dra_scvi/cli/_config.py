"""Options from a YAML file: `--config`, which every command takes."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dra_scvi.cli._options import CommaSeparated

if TYPE_CHECKING:
    from collections.abc import Iterator

    import yaml

MOST_BYTES = 2**16
CONFIG = "dra_scvi.config"  # where a command finds the file that was named


def config_option() -> click.Option:
    """Make the option; it is eager, so that the other options find what the file says."""
    return click.Option(
        ["--config"],
        type=click.Path(path_type=Path),
        metavar="FILE.yaml",
        is_eager=True,
        expose_value=False,
        callback=_read,
        help="Take options from this file, as in 'n-latent: 20'; those given here win.",
    )


def _read(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Make what the file says the defaults of the command."""
    if path is None or ctx.resilient_parsing:
        return
    ctx.meta[CONFIG] = path
    options = _options(ctx.command)
    values: dict[str, Any] = {}
    for key, node in _pairs(path):
        option = options.get(key.replace("-", "_"))
        if option is None or option.name is None:
            known = [name.replace("_", "-") for name in options]
            match = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
            hint = f"; did you mean {match[0]!r}?" if match else "."
            raise click.UsageError(f"{path}: {key}: no such option{hint}", ctx)
        if option.name in values:
            raise click.UsageError(f"{path}: {key}: given twice.", ctx)
        try:
            text = _text(node, option)
            if text is not None:
                option.process_value(ctx, text)
                values[option.name] = text
        except click.UsageError as error:
            raise click.UsageError(f"{path}: {key}: {error.message}", ctx) from error
    ctx.default_map = {**(ctx.default_map or {}), **values}


def _options(command: click.Command) -> dict[str, click.Option]:
    """Options of a command by their names, with underscores and without leading dashes."""
    return {
        name.lstrip("-").replace("-", "_"): option
        for option in command.params
        if isinstance(option, click.Option) and not option.is_eager
        for name in option.opts
        if name.startswith("--")
    }


def _pairs(path: Path) -> Iterator[tuple[str, yaml.Node]]:
    """Keys and values of a file, values as they are written: 1.10 stays 1.10."""
    import yaml

    if path.exists() and not path.is_file():
        raise click.UsageError(f"{path}: not a file.")  # of a pipe, reading might never end
    try:
        if path.stat().st_size > MOST_BYTES:
            raise click.UsageError(f"{path}: too long for a file of options.")
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror or error}.") from error
    except RecursionError as error:
        raise click.UsageError(f"{path}: lists lie too deep in each other.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path}: not YAML: {error}.") from error
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise click.UsageError(f"{path}: not a mapping of options to values as 'n-latent: 20' is.")
    for key, value in root.value:
        yield str(key.value) if isinstance(key, yaml.ScalarNode) else "a key", value


def _text(node: yaml.Node, option: click.Option) -> str | None:
    """Write a value as on the command line; `None` for a value of null."""
    import yaml

    takes_several = isinstance(option.type, CommaSeparated)
    if isinstance(node, yaml.SequenceNode) and takes_several:
        # a list in a list may, by an alias, hold itself
        parts = [_text(item, option) for item in node.value if isinstance(item, yaml.ScalarNode)]
        if len(parts) == len(node.value):
            return ",".join(part for part in parts if part is not None)
    if not isinstance(node, yaml.ScalarNode):
        wanted = "one value, or a list of values," if takes_several else "one value"
        raise click.UsageError(f"{wanted} is wanted.")
    kind = node.tag.rpartition(":")[-1]
    if kind == "null":
        return None
    if kind == "bool" and not option.is_flag:
        raise click.UsageError(
            f"{node.value!r} means true or false in YAML, and this option takes neither; "
            "put a name in quotes."
        )
    return str(node.value)
