"""Draws method.svg, the picture of the page on the method: python tutorials/draw_method.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, RED, GREEN = "#0072B2", "#D55E00", "#009E73"
GREY, PURPLE = "#5F5F5F", "#8A4B86"
CLUSTERS = ((-0.55, 0.35, BLUE), (0.5, 0.5, RED), (0.1, -0.55, GREEN))


def box(axes: Axes, x: float, y: float, text: str, colour: str, width: float = 1.7) -> None:
    """Draw a rounded box with its middle at (x, y)."""
    corner = x - width / 2, y - 0.36
    axes.add_patch(
        FancyBboxPatch(
            corner, width, 0.72, "round,pad=0.02,rounding_size=0.12", fc=colour, ec="none"
        )
    )
    axes.text(x, y, text, ha="center", va="center", color="white", fontsize=10, linespacing=1.3)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw a straight arrow."""
    style = {"arrowstyle": "-|>", "color": GREY, "lw": 1.6, "mutation_scale": 13}
    axes.annotate("", end, start, arrowprops={**style, "shrinkA": 0, "shrinkB": 0})


def heatmap(axes: Axes, x: float, y: float, values: np.ndarray) -> None:
    """Draw a matrix of cells and genes as an image."""
    extent = (x - 0.5, x + 0.5, y - 0.6, y + 0.6)
    axes.imshow(values, extent=extent, cmap="Blues", aspect="auto", vmin=0, vmax=4)


def cloud(axes: Axes, x: float, y: float, rng: np.random.Generator, n: int, size: float) -> None:
    """Draw codes of three types."""
    for dx, dy, colour in CLUSTERS:
        points = rng.normal(0, 0.13, (n, 2)) + (x + dx, y + dy)
        axes.scatter(*points.T, s=size, color=colour, linewidths=0, alpha=0.8)


def prior(axes: Axes, x: float, y: float) -> None:
    """Draw a mixture of Gaussians as rings."""
    for dx, dy, colour in CLUSTERS:
        for radius in (0.1, 0.2, 0.3):
            middle = x + 0.75 * dx, y + 0.75 * dy
            ring = Circle(middle, radius, fill=False, ec=colour, lw=1.2, alpha=1 - 2 * radius)
            axes.add_patch(ring)


def corner(axes: Axes, *points: tuple[float, float]) -> None:
    """Draw an arrow along straight lines."""
    axes.plot(*zip(*points[:-1], strict=True), color=GREY, lw=1.6, solid_joinstyle="round")
    arrow(axes, points[-2], points[-1])


def profiles(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Make up counts of three types, and what a decoder would say of them."""
    means = np.repeat(rng.gamma(0.8, 1.6, (3, 9)), 5, axis=0)
    return rng.poisson(means).astype(float), means


def draw() -> Figure:
    """Draw the way of a minibatch: autoencoder below, both discriminators above."""
    rng = np.random.default_rng(3)
    figure = Figure(figsize=(10, 4.1))
    axes = figure.add_axes((0, 0, 1, 1))
    counts, means = profiles(rng)
    heatmap(axes, 0.75, 1.1, counts)
    heatmap(axes, 9.25, 1.1, means)
    cloud(axes, 5.0, 1.1, rng, n=25, size=9)
    prior(axes, 2.6, 2.95)
    box(axes, 2.65, 1.1, "encoder\nq(z | x, b)", GREY)
    box(axes, 7.35, 1.1, "decoder\np(x | z, ℓ, b)", GREY)
    box(axes, 5.0, 2.95, "latent discriminator\ncodes or prior?", PURPLE, width=2.3)
    box(axes, 8.35, 2.95, "data discriminator\nmeans or data?", PURPLE, width=2.3)
    for start, end in ((1.35, 1.72), (3.55, 4.12), (5.88, 6.42), (8.28, 8.65)):
        arrow(axes, (start, 1.1), (end, 1.1))
    arrow(axes, (3.35, 2.95), (3.78, 2.95))
    arrow(axes, (5.0, 2.0), (5.0, 2.53))
    arrow(axes, (9.25, 1.8), (9.25, 2.53))
    corner(axes, (0.75, 1.8), (0.75, 3.8), (8.35, 3.8), (8.35, 3.38))
    for x, y, text in (
        (0.75, 0.38, "counts x, batch b"),
        (5.0, 0.2, "codes z"),
        (9.25, 0.38, "means x̂"),
        (2.6, 2.12, "prior p(z)"),
    ):
        axes.text(x, y, text, ha="center", va="center", fontsize=10)
    axes.set(xlim=(0, 10), ylim=(0, 4.1))
    axes.set_axis_off()
    return figure


if __name__ == "__main__":
    with mpl.rc_context({"svg.hashsalt": "dra_scvi", "font.family": "DejaVu Sans"}):
        path = Path(__file__).with_name("method.svg")
        draw().savefig(path, metadata={"Date": None}, transparent=False)
