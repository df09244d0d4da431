"""What scripts here share that go on with a table of runs on the labelled sets."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

WITH_BATCHES = (
    "pbmc_three_chemistries_1200x1767",
    "sc_mixology_5batches",
    "kang_ifnb_2800x14053",
    "baron_pancreas_7162x1000",
)
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def parsed(parser: ArgumentParser) -> Namespace:
    """Add `--data` and `--summary`, parse, and refuse to run without a folder of data."""
    parser.add_argument("--data", type=Path, default=os.environ.get("DRA_SCVI_DATA"))
    parser.add_argument("--summary", action="store_true", help="only summarise the table")
    arguments = parser.parse_args()
    if not arguments.summary and arguments.data is None:
        parser.error("--data or the environment variable DRA_SCVI_DATA must name a folder")
    return arguments


def begun(parser: ArgumentParser, table: Path) -> Namespace:
    """Parse, with `--table` as well, and go on quietly and in one thread."""
    parser.add_argument("--table", type=Path, default=table)
    arguments = parsed(parser)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    return arguments
