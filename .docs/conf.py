"""Sphinx: the pages, tutorials as they are stored, and the docstrings of every public name."""

from __future__ import annotations

import os
import re
import shutil
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import faults  # noqa: E402 - it lies beside this file
import rooms  # noqa: E402

# Sphinx reads what lies below its own folder only
shutil.copytree(HERE.parent / "tutorials", HERE / "tutorials", dirs_exist_ok=True)

project = metadata("dra_scvi")["Name"]
release = version = metadata("dra_scvi")["Version"]
author = copyright = "The dra_scvi developers"
html_title = f"{project} {release}"
html_theme = "furo"
urls = dict(url.split(", ") for url in metadata("dra_scvi").get_all("Project-URL") or [])
if urls:
    html_theme_options = {
        "source_repository": urls["Repository"],
        "source_branch": "main",
        "source_directory": ".docs/",
    }

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["build"]

nb_execution_mode = "off"  # the tests run them
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False

# links into other projects take a network: DRA_SCVI_DOCS_ONLINE=1
if {"DRA_SCVI_DOCS_ONLINE", "READTHEDOCS"} & os.environ.keys():
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "python": ("https://docs.python.org/3", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable", None),
        "scvi": ("https://docs.scvi-tools.org/en/stable", None),
    }


def _cite(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Show a reference of scvi-tools' docstrings by its key; its bibliography is not ours."""
    lines[:] = [re.sub(r":cite:p:`(\w+)`", r"[\1]", line) for line in lines]


def _complete(app: Sphinx, page: str, source: list[str]) -> None:
    """Put in what is read off tests and code, and find the tutorials where they were copied."""
    text = source[0].replace("](../tutorials/", "](tutorials/")
    if page == "reliability":
        text = text.replace("{faults}", faults.table(faults.faults()))
    if page == "architecture":
        found = rooms.files()
        text = text.replace("{rooms}", rooms.table(found)).replace("{tree}", rooms.tree(found))
    source[0] = text


def setup(app: Sphinx) -> None:
    """Let docstrings and pages be put right before they are read."""
    app.connect("autodoc-process-docstring", _cite)
    app.connect("source-read", _complete)
