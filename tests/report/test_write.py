"""The page holds everything in one file, whatever names are in the data, and reads on a phone."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from dra_scvi import DRA, report, tl
from tests.helpers import cells, fit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import anndata

HOSTILE = "<script>alert('x')</script>"
AMPERSAND = '"A" & <b>B</b> $\\frac$'
VOID = {"meta", "img", "br", "hr", "link", "input"}
SECTIONS = ["input", "training", "map", "clusters", "scores", "next", "settings"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")


class Page(HTMLParser):
    """Elements of a page, each closed where it has to be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), tag
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def hostile() -> anndata.AnnData:
    """Cells of which every name is one that a page or a plot could stumble over."""
    adata = cells(n_types=3)
    adata.var_names = [HOSTILE, AMPERSAND, "MT-ND1", *adata.var_names[3:]]
    adata.obs["batch"] = adata.obs["batch"].astype(str).replace({"batch_0": HOSTILE})
    kinds = adata.obs["cell_type"].astype(str).replace({"type_0": AMPERSAND, "type_1": HOSTILE})
    adata.obs["my <i>type</i>"] = kinds
    return adata


def with_clusters(adata: anndata.AnnData) -> anndata.AnnData:
    """Clusters that are the types, each with a gene of its own."""
    codes, _ = pd.factorize(adata.obs["cell_type"])
    adata.obs["leiden"] = pd.Categorical([f"{code} {HOSTILE}" for code in codes])
    counts = adata.X.toarray()
    for code in range(3):
        counts[codes == code, code] += 20
    adata.X = counts
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    return adata


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    return with_clusters(hostile())


@pytest.fixture(scope="module")
def model(adata: anndata.AnnData) -> DRA:
    model = fit(adata, batch_key="batch")
    adata.obsm["X_dra"] = model.get_latent_representation()
    return model


@pytest.fixture(scope="module")
def path(model: DRA, adata: anndata.AnnData, folder: Path) -> Path:
    before = adata.copy()
    report.write(model, adata, folder / "report.html", label_key="my <i>type</i>")
    assert adata.obs.equals(before.obs)
    assert list(adata.obsm) == list(before.obsm)
    assert list(adata.uns) == list(before.uns)
    return folder / "report.html"


@pytest.fixture(scope="module")
def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_page_is_whole(page: Page, path: Path) -> None:
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert [part["id"] for part in page.all("section")] == SECTIONS
    assert [link["href"] for link in page.all("a")] == [f"#{name}" for name in SECTIONS]
    assert len(page.all("h1")) == 1
    assert page.all("html") == [{"lang": "en"}]


def test_nothing_is_loaded(page: Page, path: Path) -> None:
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert all(str(value).startswith(("#", "data:image/png;base64,")) for value in addresses)
    assert not re.search(r"@import|url\(", path.read_text())
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "iframe", "object"})
    [policy] = [m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in str(policy["content"])


def test_figures_are_told_in_words(page: Page) -> None:
    images = page.all("img")
    assert len(images) == 6  # three of training; cluster, batch and label
    for image in images:
        assert len(str(image["alt"])) > 20
    assert sum("UMAP of 60 cells" in str(image["alt"]) for image in images) == 3
    assert len(page.all("figcaption")) == 6


def test_maps_are_coloured_by_their_columns(page: Page) -> None:
    for image, number in zip(page.all("img")[3:], (3, 2, 3), strict=True):
        png = base64.b64decode(str(image["src"]).partition(",")[2])
        pixels = (imread(io.BytesIO(png))[..., :3] * 255).astype(int).reshape(-1, 3)
        bright = pixels[np.ptp(pixels, axis=1) > 50]
        colours, sizes = np.unique(bright // 4, axis=0, return_counts=True)
        assert (sizes > 0.1 * len(bright)).sum() == number, image["alt"]


def test_names_are_shown_as_they_are(page: Page, path: Path) -> None:
    for name in (HOSTILE, AMPERSAND, "my <i>type</i>", f"0 {HOSTILE}"):
        assert name in page.words
    assert HOSTILE not in path.read_text()
    assert {tag for tag, _ in page.elements}.isdisjoint({"i", "b"})


def test_page_reads_on_a_phone(page: Page) -> None:
    views = [meta for meta in page.all("meta") if meta.get("name") == "viewport"]
    assert views == [{"name": "viewport", "content": "width=device-width, initial-scale=1"}]
    n_boxes = sum(box.get("class") == "scroll" for box in page.all("div"))
    assert n_boxes == len(page.all("table")) + len(page.all("img"))


def test_markers_are_those_of_the_clusters(page: Page, model: DRA, adata: Any) -> None:
    rows = re.split(r"elsewhere", page.words)[1]
    for number, gene in enumerate((HOSTILE, AMPERSAND, "MT-ND1")):
        assert f"{number} {HOSTILE}{gene}" in rows.replace(f"{HOSTILE} {gene}", f"{HOSTILE}{gene}")


def test_quality_is_that_of_the_counts(page: Page, adata: anndata.AnnData) -> None:
    counts = adata.X
    assert "Cells60" in page.words
    assert f"Share of zeros{(counts == 0).mean():.1%}" in page.words
    assert f"Counts per cell{np.median(counts.sum(1)):,.0f} (median" in page.words
    assert f"Genes found per cell{np.median((counts > 0).sum(1)):,.0f} (median" in page.words
    share = np.median(100 * counts[:, 2] / counts.sum(1))
    assert f"Mitochondrial counts, % per cell{share:.1f} (median" in page.words


def test_same_page_twice(path: Path, model: DRA, adata: Any, folder: Path) -> None:
    report.write(model, adata, folder / "again.html", label_key="my <i>type</i>")
    assert (folder / "again.html").read_bytes() == path.read_bytes()


def test_file_that_exists_is_kept(path: Path, model: DRA, adata: Any) -> None:
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="replace=True"):
        report.write(model, adata, path)
    assert path.read_bytes() == before


def test_without_clusters_labels_and_curves(tmp_path: Path) -> None:
    adata = cells()
    fit(adata).save(str(tmp_path / "model"))
    model = DRA.load(str(tmp_path / "model"), adata=adata, accelerator="cpu")
    adata.obsm["X_dra"] = model.get_latent_representation()
    report.write(model, adata, tmp_path / "loaded.html")
    assert len(Page((tmp_path / "loaded.html").read_text()).all("img")) == 3  # curves are saved
    model.history_ = None
    report.write(model, adata, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert [part["id"] for part in page.all("section")] == SECTIONS
    assert page.all("img") == []
    for words in (
        "dra_scvi.tl.cluster(adata) finds them",
        "curves of its training were not kept",
        "No labels were given",
        "No batches were named",
    ):
        assert words in page.words


def test_resolution_that_was_suggested_is_explained(
    model: DRA, adata: anndata.AnnData, tmp_path: Path
) -> None:
    suggested = adata.copy()
    found = tl.cluster(suggested, seed=3)
    assert found is not None
    report.write(model, suggested, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert f"Leiden at resolution {found.resolution:g}" in page.words
    assert f"{found.resolution:g} (chosen)" in page.words
    told = "No resolution gave clusters" in page.words
    assert told != found.is_stable


def test_folder_that_is_not_there(model: DRA, adata: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="create it first"):
        report.write(model, adata, tmp_path / "no" / "report.html")


@pytest.mark.parametrize("key", ["label_key", "use_rep"])
def test_names_that_are_not_there(key: str, model: DRA, adata: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=key):
        report.write(model, adata, tmp_path / "report.html", **{key: "nowhere"})
    assert list(tmp_path.iterdir()) == []


# -- in a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> str:
    found = [path for name in BROWSERS if (path := shutil.which(name))]
    if not found:
        pytest.skip("there is no Chromium or Chrome here to look at the page with")
    return found[0]


PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images];
  const wide = [...document.querySelectorAll("body *")].filter(
    (e) => !e.closest(".scroll *, pre *") && e.getBoundingClientRect().right > innerWidth + 1);
  parent.postMessage(JSON.stringify({
    width: innerWidth, page: document.documentElement.scrollWidth, n: images.length,
    drawn: images.filter((i) => i.naturalWidth > 0).length,
    wide: wide.map((e) => e.tagName)}), "*");
});</script></body>"""
# a frame may be as narrow as a phone, which a window of Chrome may not
FRAME = """<!DOCTYPE html><html><body>
<script>addEventListener("message", (e) => {{ document.body.dataset.found = e.data; }});</script>
<iframe src="probed.html" width="{width}" height="800" frameborder="0"></iframe></body></html>"""


@pytest.fixture
def look(browser: str, tmp_path: Path) -> Iterator[Any]:
    def run(path: Path, *options: str) -> str:
        command = [
            browser,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}"),
            *(*options, path.as_uri()),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def framed(text: str, width: int, folder: Path) -> Path:
    """Write a page that is asked how it looks, and one that shows it in a frame."""
    (folder / "probed.html").write_text(text.replace("</body>", PROBE))
    (folder / "frame.html").write_text(FRAME.format(width=width))
    return folder / "frame.html"


@pytest.mark.parametrize("width", [360, 1100])
def test_in_a_browser(path: Path, look: Any, width: int, tmp_path: Path) -> None:
    # the policy of the page itself lets no script run
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
    seen = Page(look(framed(text, width, tmp_path), "--window-size=1200,900", "--dump-dom"))
    found = json.loads(str(seen.all("body")[0]["data-found"]))
    assert found.pop("page") <= width  # nothing to scroll sideways but boxes
    assert found == {"width": width, "n": 6, "drawn": 6, "wide": []}


def test_no_script_runs_in_a_browser(path: Path, look: Any, tmp_path: Path) -> None:
    frame = framed(path.read_text(), 1100, tmp_path)
    assert "data-found" not in Page(look(frame, "--dump-dom")).all("body")[0]


def test_what_is_no_model_of_this_package_is_refused(adata: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model must be a trained DRA, not str"):
        report.write("model", adata, tmp_path / "report.html")


def test_missing_folder_is_told_before_the_work(model: DRA, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the output folder .* does not exist"):
        report.write(model, "cells.h5ad", tmp_path / "missing" / "report.html")
