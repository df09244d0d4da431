"""The README's figure and numbers, from the stored rows: python tests/benchmarks/figure.py.

Draws .docs/lead.svg and prints the numbers that the README holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dra_scvi import benchmark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results"
FIGURE = ROOT / ".docs" / "lead.svg"
CHOSEN, UNSEEN, GREY = "#0072B2", "#D55E00", "#5F5F5F"
METRICS = {"nmi": "by k-means", "leiden_nmi": "by Leiden"}
MODELS = {"pca": "PCA", "fa": "factor analysis", "scvi": "scVI", "dra": "**DRA**"}
CHOSEN_ON = {
    "zeisel_descend_1464x1000": "zeisel, 3 types",
    "worm_neuron_4186x13488": "worm neurons",
    "pbmc4k_4271x2000": "pbmc4k",
    "kang_ifnb_2800x14053": "kang, two conditions",
    "zeisel_ewce_3005x200": "zeisel, 200 genes",
    "pbmc_facs_3774x16791": "pbmc, FACS",
    "sc_mixology_5batches": "cell lines, five batches",
    "human_kidney_young_5685x2000": "human kidney",
}
# a half of the sets of protocol.csv, drawn before anything was measured: .docs/comparing.md
FIRST_HALF = (
    "pbmc4k_4271x2000",
    "worm_neuron_4186x13488",
    "zeisel_descend_1464x1000",
    "zeisel_ewce_3005x200",
    "pbmc_three_chemistries_1200x1767",
    "sc_mixology_5batches",
)
NOT_CHOSEN_ON = {"spectra": "breast tumours", "pbmc68k": "pbmc68k"}


class Lead(NamedTuple):
    """How far DRA is ahead of scVI, with the ends of a 95% interval."""

    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{signed(self.difference)} ({signed(self.low)} to {signed(self.high)})"


def signed(score: float) -> str:
    """Write a difference of scores as the tables do, `+.031`."""
    text = f"{score:+.3f}".replace("0.", ".", 1)
    return text[1:] if text[1:] == ".000" else text


def rows(name: str) -> pd.DataFrame:
    """Read a table of results."""
    return pd.read_csv(RESULTS / f"{name}.csv")


def lead(table: pd.DataFrame, metric: str = "nmi", baseline: str = "scvi") -> Lead:
    """Subtract a baseline from DRA: the mean over data sets and dimensions, and its interval."""
    row = benchmark.summary(table, baseline, metric).set_index("model").loc["dra"]
    return Lead(*(float(row[name]) for name in Lead._fields))


def set_means(table: pd.DataFrame) -> pd.DataFrame:
    """Average the seeds of every model on each data set: models have unequal numbers of them."""
    finished = table[table["status"] == "ok"].groupby(["dataset", "model"], sort=False)
    means = finished.mean(numeric_only=True).assign(seed=0)
    return finished.first().assign(**means).reset_index()


def share_of_time(table: pd.DataFrame) -> Lead:
    """Divide DRA's CPU time by scVI's: the geometric mean over data sets, and its interval."""
    logs = lead(table.assign(log=np.log(table["cpu_seconds"])), "log")
    return Lead(*np.exp(logs))


def not_chosen() -> pd.DataFrame:
    """Read the rows of ten dimensions of the sets on which nothing was chosen."""
    table = rows("unseen")
    return table[table["n_latent"] == 10]


def claims() -> dict[str, str]:
    """Compute the README's reasons for and against: numbers with their intervals."""
    k10, unseen, protocol = rows("k10"), not_chosen(), set_means(rows("protocol"))
    cost = share_of_time(k10)
    last = protocol[~protocol["dataset"].isin(FIRST_HALF)]
    with_batches = protocol[protocol["integration_total"].notna()]
    ranks = benchmark.ranks(protocol[protocol["model"] != "harmony"]).set_index("model")["rank"]
    shown = ("dra", "scvi-short", "scvi", "pca")
    return {
        "mean ranks, twelve sets": (
            "{:.1f}, that of scVI trained as briefly {:.1f}, of scVI {:.1f}, of PCA {:.1f}"
        ).format(*ranks[list(shown)]),
        "k-means, last six sets": str(lead(last)),
        "purity, last six sets": str(lead(last, "purity")),
        "scib total, four sets": str(lead(with_batches, "integration_total")),
        "k-means, eight sets": str(lead(k10)),
        "silhouette, eight sets": str(lead(k10, "silhouette")),
        "scib total, with batch_key": str(lead(rows("batches"), "integration_total")),
        "CPU time": f"{cost.difference:.2f} ({cost.low:.2f} to {cost.high:.2f})",
        "Leiden, eight sets": str(lead(k10, "leiden_nmi")),
        "k-means, nothing chosen": str(lead(unseen)),
        "Leiden, nothing chosen": str(lead(unseen, "leiden_nmi")),
    }


def table() -> list[str]:
    """Write the README's table of results, a line for each model."""
    k10, unseen = rows("k10"), not_chosen()
    lines = []
    for model, title in MODELS.items():
        scores = []
        for runs in (k10, unseen):
            means = runs[runs["model"] == model].groupby("dataset")[[*METRICS, "ari"]].mean()
            scores += [f"{value:.3f}".removeprefix("0") for value in means.mean()]
        seconds = k10[k10["model"] == model].groupby("dataset")["cpu_seconds"].mean().mean()
        lines.append(
            f"| {' | '.join([title, *scores, f'{seconds:.{0 if seconds > 1 else 1}f}'])} |"
        )
    return lines


def leads(metric: str) -> list[tuple[str, Lead, str] | None]:
    """List what the figure shows, from top to bottom; None leaves a gap."""
    k10, unseen = rows("k10"), not_chosen()
    found: list[tuple[str, Lead, str] | None] = [
        (title, lead(one(k10, name), metric), CHOSEN) for name, title in CHOSEN_ON.items()
    ]
    found += [("mean of eight sets", lead(k10, metric), CHOSEN), None]
    found += [
        (title, lead(one(unseen, name), metric), UNSEEN) for name, title in NOT_CHOSEN_ON.items()
    ]
    return [*found, ("mean of these two", lead(unseen, metric), UNSEEN)]


def described(shown: dict[str, list[tuple[str, Lead, str] | None]]) -> str:
    """Write down what the figure shows, for those who cannot see it, and for a test."""
    lines = []
    for metric, found in shown.items():
        lines += [f"DRA minus scVI, NMI {METRICS[metric]}"]
        lines += [f"{title}: {value}" for title, value, _ in filter(None, found)]
    return "\n".join(lines)


def one(table: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Take the rows of one data set."""
    return table[table["dataset"] == dataset]


def draw(axes: Axes, metric: str, shown: list[tuple[str, Lead, str] | None]) -> None:
    """Draw every lead as a point on its interval; means as diamonds."""
    axes.axvline(0, color=GREY, linewidth=0.8)
    ticks, labels = [], []
    for place, found in enumerate(shown):
        if found is None:
            continue
        title, (difference, low, high), colour = found
        is_mean = title.startswith("mean")
        axes.plot([low, high], [place, place], color=colour, linewidth=2 if is_mean else 1.2)
        axes.plot(difference, place, "D" if is_mean else "o", color=colour, markersize=5)
        ticks.append(place)
        labels.append(title)
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel(f"DRA minus scVI, NMI {METRICS[metric]}")


def main() -> None:
    """Draw the figure and print the numbers."""
    shown = {metric: leads(metric) for metric in METRICS}
    style = {"svg.fonttype": "none", "svg.hashsalt": "lead", "font.size": 9}
    keys = {"settings were chosen on these sets": CHOSEN, "nothing was chosen on these": UNSEEN}
    handles = [Line2D([], [], color=colour, marker="o", ms=5) for colour in keys.values()]
    with mpl.rc_context(style):
        figure = Figure(figsize=(7.6, 4.4), layout="constrained")
        panels = figure.subplots(1, len(shown), sharex=True, sharey=True)
        for axes, (metric, found) in zip(panels, shown.items(), strict=True):
            draw(axes, metric, found)
        panels[0].invert_yaxis()
        figure.legend(handles, list(keys), loc="outside upper right", ncols=2, frameon=False)
        figure.savefig(FIGURE, metadata={"Date": None, "Description": described(shown)})
    print("\n".join([*(f"{name}: {text}" for name, text in claims().items()), *table()]))


if __name__ == "__main__":
    main()
