"""Save a model of each class with the codes that it gives, for later versions to load.

Run it once for a release, from the root of the repository: ``python tests/archive/make.py``.
What it writes is never changed afterwards: ``test_contract.py`` loads every folder here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scvi

import dra_scvi
from dra_scvi import DRA, PublishedDRA, datasets, presets

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def main() -> None:
    """Write one folder for each class, of this version and of this scvi-tools."""
    for cls in (DRA, PublishedDRA):
        folder = Path(__file__).parent / f"{dra_scvi.__version__}-{cls.__name__}"
        scvi.settings.seed = 0
        adata = datasets.synthetic(n_cells=60, n_genes=20, n_types=2, n_batches=2)
        cls.setup_anndata(adata, batch_key="batch")
        if cls is DRA:
            model = cls(adata, n_hidden=16, n_latent=4, n_hidden_discriminator=[16])
            model.train(max_epochs=3, batch_size=32, **QUIET)
        else:
            model = cls(adata, n_latent=2, n_hidden=[16], n_hidden_discriminator=[16])
            settings = presets.published(2).train | {"max_epochs": 2, "batch_size": 16}
            model.train(**settings, **QUIET)
        model.save(folder, save_anndata=True)
        np.save(folder / "latent.npy", model.get_latent_representation())


if __name__ == "__main__":
    main()
