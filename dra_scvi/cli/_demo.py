"""The demo command: the main job on counts that ship with scanpy."""

from __future__ import annotations

from pathlib import Path

import click

from dra_scvi.cli._command import Common, command
from dra_scvi.cli._options import FolderName
from dra_scvi.cli._result import Result


@command("demo")
@click.option(
    "-o",
    "--output",
    type=FolderName(),
    default=Path("dra-scvi-demo"),
    metavar="DIR",
    help="Folder for the results.",
)
def demo(common: Common, output: Path) -> Result:
    """Embed 700 blood cells with PCA, scVI and DR-A, and compare the three.

    The counts ship with scanpy: nothing is downloaded. DIR gets pbmc68k.h5ad, umap.png,
    training.png and metrics.json; a sentence on stderr says what follows from each result.

    Example: dra-scvi demo
    """
    from dra_scvi import demo as job
    from dra_scvi._outputs.files import atomic_folder

    common.rehearse({}, ("--output", output, "results"))
    common.say("embedding 700 cells with PCA, scVI and DR-A")
    with atomic_folder(output, common.force) as temporary:
        figures = job.run(temporary, common.seed, common.accelerator, common.shows_bar)
    conclusions = figures.pop("conclusions")
    common.say(f"wrote {output}")
    rows = [
        {
            "embedding": job.TITLES[name],
            "k-means NMI": scores["kmeans"]["nmi"],
            "k-means ARI": scores["kmeans"]["ari"],
            "Leiden NMI": scores["leiden"]["nmi"],
            "Leiden ARI": scores["leiden"]["ari"],
        }
        for name, scores in figures["embeddings"].items()
    ]

    def conclude() -> None:
        for sentence in conclusions:
            common.say(sentence)

    title = "Agreement of clusters with cell types"
    return Result(figures, title, rows, at_end=conclude)
