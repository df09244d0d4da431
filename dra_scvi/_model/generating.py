"""Generated cells: codes and depths drawn anew, decoded, and counts drawn from what is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS

from dra_scvi._argument_kinds import check_kinds, check_number, check_seed
from dra_scvi._module.neighborhood import evenly_spaced
from dra_scvi._threads import within_own_threads
from dra_scvi._training.runner import TURNS

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from dra_scvi._module.cell_mixture import Drawn
    from dra_scvi._module.dravae import DRAVAE

# of these the population is learned, and of each batch at least so many, as far as there are
POPULATION_CELLS = 10_000
CELLS_OF_A_BATCH = 50
# from the posterior of a cell, which few cells do not tell enough of by one draw each
MOST_DRAWS = 4
# that are decoded at a time
VALUES_AT_ONCE = 2**22
COVARIATES = {
    "cont_covs": (REGISTRY_KEYS.CONT_COVS_KEY, "continuous_covariate_keys"),
    "cat_covs": (REGISTRY_KEYS.CAT_COVS_KEY, "categorical_covariate_keys"),
}


class GeneratingMixin:
    """Models that make cells like those that they were trained on."""

    module: DRAVAE

    @within_own_threads
    def generate(
        self, n_cells: int, batch: str | Sequence[str] | None = None, seed: int = 0
    ) -> AnnData:
        """Make cells that are like those of the training, and are none of them.

        Code and depth of a cell are drawn together from a mixture of Gaussians that is fitted to
        those that the training cells had at the end of the training
        (:class:`~dra_scvi._module.cell_mixture.Population`), counts from what the decoder makes of
        them. Cells are decoded some at a time: what takes memory are the counts.

        A query (:meth:`load_query_data`) that has been trained makes cells of its own. Covariates
        are those of randomly drawn cells of the same batch among the model's.

        Parameters
        ----------
        n_cells
            Number of cells.
        batch
            Batch, or batches, that they are of; `None` for all of the training. Of several, each
            has its share of the cells that it had in training.
        seed
            Seed of all that is drawn; the global random state is left as it is. The same seed
            gives the same cells on one kind of device.

        Returns
        -------
        AnnData with counts in ``X`` (CSR, float32, whole numbers), the genes of the model, and

        - ``obs``: ``"component"``, the Gaussian that code and depth came from; ``"depth"``, the
          total that was drawn for a cell and that its counts add up to in expectation; columns of
          batch, size factor and covariates, where the model has them, under their own names;
        - ``obsm["codes"]``: codes, in the coordinates of the decoder;
        - ``uns["generated"]``: model, versions, seed, and what was asked for.

        Raises
        ------
        KeyError
            When a batch is not one of those that the model was last trained on.
        RuntimeError
            When the model is not trained.
        ValueError
            When the model makes no counts (``gene_likelihood="normal"``), needs a label for each
            cell (``dispersion="gene-label"``), has covariates but no cells to take them from, or
            knows of no population of cells, as one that an earlier version saved.

        Examples
        --------
        >>> import dra_scvi
        >>> adata = dra_scvi.datasets.synthetic(n_cells=200, n_genes=50)
        >>> dra_scvi.DRA.setup_anndata(adata)
        >>> model = dra_scvi.DRA(adata, n_latent=5)
        >>> model.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
        >>> generated = model.generate(100)
        >>> generated.shape, generated.X.format, generated.obsm["codes"].shape
        ((100, 50), 'csr', (100, 5))
        """
        check_kinds(GeneratingMixin.generate, locals())
        check_number(n_cells, "n_cells", least=1)
        check_seed(seed)
        self._check_if_trained(warn=False)  # type: ignore[attr-defined]
        self._check_generates()
        wanted = self._wanted_batches(batch)
        device = self.module.device
        with TURNS, torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            shares = self.module.population.sizes[wanted].double()
            batches = wanted[torch.multinomial(shares, n_cells, replacement=True)]
            drawn = self.module.population.sample(batches)
            rows = self._covariate_rows(batches)
            counts, codes = self._decode(drawn, batches, rows)
        generated = AnnData(counts, obs=self._obs(drawn, batches, rows))
        fields = self.registry["field_registries"]  # type: ignore[attr-defined]
        genes = fields[REGISTRY_KEYS.X_KEY]["state_registry"]["column_names"]
        generated.var_names = list(map(str, genes))
        generated.obsm["codes"] = codes
        generated.uns["generated"] = {
            "model": type(self).__name__,
            "dra_scvi": version("dra_scvi"),
            "scvi_tools": version("scvi-tools"),
            "seed": int(seed),
            "n_cells": int(n_cells),
            "batches": [str(name) for name in self._batch_names[wanted.numpy()]],
        }
        return generated

    # -- what is learned -----------------------------------------------------------------------

    def _learn_population(self, adata: AnnData) -> None:
        """Draw codes and depths of the model's cells from their posterior, for the mixture."""
        all_batches = self._batch_numbers()
        cells = _some_of_each(all_batches)
        n_draws = min(MOST_DRAWS, max(1, POPULATION_CELLS // len(cells)))
        loader = self._make_data_loader(adata, cells, batch_size=512)  # type: ignore[attr-defined]
        parts = []
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(0)
            for tensors in loader:
                batches = tensors[REGISTRY_KEYS.BATCH_KEY].view(-1)
                for _ in range(n_draws):
                    drawn = (*self.module.code_and_depth(tensors), batches)
                    parts.append([part.cpu() for part in drawn])
        codes, log_depths, batches = (torch.cat(part) for part in zip(*parts, strict=True))
        sizes = torch.tensor(all_batches)  # a copy: whose it is may change it
        self.module.population.keep(codes, log_depths, batches, sizes)

    # -- what is refused -----------------------------------------------------------------------

    def _check_generates(self) -> None:
        module = self.module
        if module.gene_likelihood == "normal":
            raise ValueError(
                "A model with gene_likelihood='normal' makes no counts; train one with 'zinb', "
                "'nb' or 'poisson' to generate cells."
            )
        if module.dispersion == "gene-label":
            raise ValueError(
                "A model with dispersion='gene-label' needs the label of every cell, and "
                "generated cells have none; train one with another dispersion to generate cells."
            )
        if not module.population.sizes.any():
            raise ValueError(
                "This model knows nothing of the codes and depths of its training cells: it was "
                "saved by an earlier version, or trained without an AnnData. Train it again to "
                "generate cells."
            )
        given = [key for _, name in COVARIATES.values() for key in self._setup(name) or ()]
        if given and self.adata is None:  # type: ignore[attr-defined]
            raise ValueError(
                f"This model has covariates ({', '.join(map(repr, given))}), and generated cells "
                "take theirs from cells of the model, which has none at hand: load it with its "
                "AnnData, DRA.load(..., adata=adata)."
            )

    def _setup(self, argument: str) -> Any:
        return self.registry["setup_args"].get(argument)  # type: ignore[attr-defined]

    @property
    def _batch_names(self) -> NDArray[Any]:
        fields = self.registry["field_registries"]  # type: ignore[attr-defined]
        state = fields[REGISTRY_KEYS.BATCH_KEY]["state_registry"]
        return np.asarray(state["categorical_mapping"])

    def _batch_numbers(self) -> NDArray[np.int64]:
        """Batch of each of the model's own cells."""
        manager = self.adata_manager  # type: ignore[attr-defined]
        return np.asarray(manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY), np.int64).ravel()

    def _wanted_batches(self, batch: Any) -> Tensor:
        """Return the numbers of the batches that are asked for, each once."""
        known = torch.nonzero(self.module.population.sizes).ravel()
        if batch is None:
            return known
        if self._setup("batch_key") is None:
            raise ValueError(f"batch={batch!r}: the model was set up without a batch_key.")
        is_one = isinstance(batch, str) or not isinstance(
            batch, Sequence | np.ndarray | pd.Index | pd.Series
        )
        names = [batch] if is_one else list(batch)
        numbers = {str(name): i for i, name in enumerate(self._batch_names)}
        there = {name: i for name, i in numbers.items() if i in known.tolist()}
        missing = [name for name in names if str(name) not in there]
        if missing or not names:
            what = f"there is no batch {missing[0]!r}" if missing else "names no batch"
            raise KeyError(
                f"batch={batch!r}: {what} among the cells that the model was last trained on; "
                f"choose from {', '.join(map(repr, there))}."
            )
        return torch.tensor(sorted({there[str(name)] for name in names}))

    # -- what is made --------------------------------------------------------------------------

    def _covariate_rows(self, batches: Tensor) -> NDArray[np.int64] | None:
        """Draw, for each cell, one of the model's own cells whose covariates it takes."""
        if not any(self._setup(name) for _, name in COVARIATES.values()):
            return None
        self._validate_anndata()  # type: ignore[attr-defined]
        own = self._batch_numbers()
        rows = np.empty(len(batches), dtype=np.int64)
        for batch in batches.unique().tolist():
            members = np.flatnonzero(own == batch)
            if not len(members):
                raise ValueError(
                    f"The cells of the model have none of batch {str(self._batch_names[batch])!r} "
                    "to take covariates from: name batches that they have."
                )
            chosen = (batches == batch).numpy()
            rows[chosen] = members[torch.randint(len(members), (int(chosen.sum()),)).numpy()]
        return rows

    @torch.inference_mode()
    def _decode(
        self, drawn: Drawn, batches: Tensor, rows: NDArray[np.int64] | None
    ) -> tuple[sparse.csr_matrix, NDArray[np.float32]]:
        """Draw counts, some cells at a time."""
        covariates = {}
        for argument, (key, name) in COVARIATES.items():
            if rows is not None and self._setup(name):
                manager = self.adata_manager  # type: ignore[attr-defined]
                values = np.asarray(manager.get_from_registry(key))[rows]
                covariates[argument] = torch.as_tensor(values)
        module, counts, codes = self.module, [], []
        for cells in torch.arange(len(batches)).split(max(1, VALUES_AT_ONCE // module.n_input)):
            given = {argument: values[cells] for argument, values in covariates.items()}
            z, px = module.decode(
                drawn.codes[cells],
                drawn.log_depths[cells],
                batch_index=batches[cells, None],
                **given,
            )
            counts.append(sparse.csr_matrix(px.sample().float().cpu().numpy()))
            codes.append(z.float().cpu().numpy())
        return sparse.vstack(counts, format="csr"), np.concatenate(codes)

    def _obs(self, drawn: Drawn, batches: Tensor, rows: NDArray[np.int64] | None) -> pd.DataFrame:
        depth = drawn.log_depths.exp().numpy()
        obs = pd.DataFrame(index=[f"generated_{i}" for i in range(len(batches))])
        if (key := self._setup("batch_key")) is not None:
            names = self._batch_names
            obs[key] = pd.Categorical.from_codes(batches.numpy(), categories=names)
        if rows is not None:
            own = self.adata.obs.iloc[rows]  # type: ignore[attr-defined]
            for _, name in COVARIATES.values():
                for key in self._setup(name) or ():
                    obs[key] = own[key].array
        if (key := self._setup("size_factor_key")) is not None:
            obs[key] = depth
        obs["component"] = pd.Categorical(drawn.components.numpy())
        obs["depth"] = depth
        return obs


def _some_of_each(batches: NDArray[Any]) -> NDArray[np.int64]:
    """Choose cells of each batch, evenly spaced, in order."""
    share = POPULATION_CELLS / len(batches)
    chosen = []
    for batch in np.unique(batches):
        members = np.flatnonzero(batches == batch)
        wanted = max(int(share * len(members)), CELLS_OF_A_BATCH)
        chosen.append(members[evenly_spaced(len(members), wanted).numpy()])
    return np.sort(np.concatenate(chosen))
