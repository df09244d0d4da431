"""How far generated cells can be told from real ones, by a classifier and by what genes do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from dra_scvi._argument_kinds import check_kinds, check_number, check_seed
from dra_scvi._exceptions import InvalidCountsError
from dra_scvi._threads import own_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Points = NDArray[np.floating]

N_TREES = 100
N_FOLDS = 5
# correlations and kernels of more would fill the memory
MOST_GENES = 500
MOST_CELLS = 2_000
LEAST_CELLS = 10
TINY = 1e-12


def realism(
    real: Any,
    generated: Any,
    reference: Any = None,
    n_components: int = 30,
    n_neighbors: int = 5,
    seed: int = 0,
) -> dict[str, float]:
    """Compare generated cells with real ones that no model was trained on.

    Counts are scaled to the median depth of the real cells and put through ``ln(1 + x)``. Cells
    are compared on principal components of `reference`, which neither side has had a part in;
    as many are drawn from both sides.

    Parameters
    ----------
    real
        Counts of cells that were held out: an AnnData, a sparse or a dense matrix,
        ``(n_cells, n_genes)``.
    generated
        Generated counts, of the same genes in the same order.
    reference
        Other real cells, to which components are fitted, such as those of the training; `None`
        for a half of `real`, drawn at random, which then takes no other part.
    n_components
        Number of principal components.
    n_neighbors
        Which neighbour's distance is the radius of a cell's neighbourhood.
    seed
        Seed of draws, components and classifier.

    Returns
    -------
    Dictionary with

    - ``"accuracy"``: share of cells that a random forest tells rightly to be real or generated,
      by 5-fold cross-validation; 0.5 is ideal, 1 is the worst;
    - ``"precision"``: share of generated cells that lie in the neighbourhood of a real one;
    - ``"coverage"``: share of real cells with a generated one in their neighbourhood; both are
      below 1 also where nothing differs (coverage by ``2^-n_neighbors``, about);
    - ``"mmd"``: squared maximum mean discrepancy, unbiased, under a Gaussian kernel as wide as
      the median distance between real cells; 0 is ideal, chance takes it below;
    - ``"means"``, ``"variances"``: mean absolute difference over genes, of normalised values;
    - ``"zeros"``: mean absolute difference of the share of zeros of a gene;
    - ``"correlations"``: mean absolute difference over pairs of genes, of the 500 that vary most
      among real cells;
    - ``"depth"``: Kolmogorov-Smirnov distance of the total counts of cells, in [0, 1].

    Raises
    ------
    TypeError
        When counts are no matrix of numbers.
    ValueError
        When genes differ, there are too few cells, or counts are negative, not finite or not
        whole (:class:`~dra_scvi.InvalidCountsError`).

    References
    ----------
    Naeem, M. F. et al. (2020). Reliable fidelity and diversity metrics for generative models.
    ICML.

    Gretton, A. et al. (2012). A kernel two-sample test. J. Mach. Learn. Res. 13, 723-773.

    Examples
    --------
    >>> import numpy as np
    >>> from dra_scvi import metrics
    >>> rng = np.random.default_rng(0)
    >>> real, same = rng.poisson(2, (400, 20)), rng.poisson(2, (200, 20))
    >>> scores = metrics.realism(real, same)
    >>> 0.4 < scores["accuracy"] < 0.6, scores["coverage"] > 0.9
    (True, True)
    >>> metrics.realism(real, 2 * same)["depth"] > 0.9
    True
    """
    check_kinds(realism, locals())
    from scipy.stats import ks_2samp

    check_number(n_components, "n_components", least=1)
    check_number(n_neighbors, "n_neighbors", least=1)
    check_seed(seed)
    rng = np.random.default_rng(seed)
    sides = _checked_sides(real, generated, reference)
    if reference is None:
        order = rng.permutation(sides[0].shape[0])
        sides += [sides[0][np.sort(order[1::2])]]
        sides[0] = sides[0][np.sort(order[::2])]
    _check_enough(sides, max(LEAST_CELLS, n_neighbors + 1))
    n_cells = min(side.shape[0] for side in sides[:2])
    drawn = [side[np.sort(rng.permutation(side.shape[0])[:n_cells])] for side in sides[:2]]
    depth = float(np.median(_totals(drawn[0])))
    logs = [_log_scaled(side, depth) for side in (*drawn, sides[2])]
    first, second = _components(logs, n_components, seed)
    return {
        "accuracy": _accuracy(first, second, seed),
        **_neighborhoods(first, second, n_neighbors),
        "mmd": _mmd(first[:MOST_CELLS], second[:MOST_CELLS]),
        **_gene_distances(*logs[:2]),
        "zeros": float(np.abs(_zeros(drawn[0]) - _zeros(drawn[1])).mean()),
        "depth": float(ks_2samp(*map(_totals, drawn)).statistic),
    }


def _checked_sides(real: Any, generated: Any, reference: Any) -> list[sparse.csr_matrix]:
    """Return counts as CSR, once they are counts of the same genes."""
    given = {"real": real, "generated": generated}
    if reference is not None:
        given["reference"] = reference
    names = getattr(real, "var_names", None)
    sides = {argument: _counts(values, argument) for argument, values in given.items()}
    for argument, values in given.items():
        own = getattr(values, "var_names", None)
        n_genes, wanted = sides[argument].shape[1], sides["real"].shape[1]
        if n_genes != wanted:
            raise ValueError(f"{argument} has {n_genes} genes and real has {wanted}.")
        if names is not None and own is not None and list(own) != list(names):
            raise ValueError(
                f"{argument} does not have the genes of real in their order; pass "
                f"{argument}[:, real.var_names]."
            )
    return list(sides.values())


def _counts(values: Any, argument: str) -> sparse.csr_matrix:
    matrix = values.X if hasattr(values, "var_names") else values
    try:
        counts = sparse.csr_matrix(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{argument} must be an AnnData or a matrix of counts, not {type(values).__name__}"
        ) from error
    if not np.isfinite(counts.data).all() or (counts.data < 0).any():
        raise ValueError(f"{argument} holds values that are negative or not finite: no counts.")
    broken = counts.data[counts.data != np.rint(counts.data)]
    if len(broken):
        raise InvalidCountsError(
            f"{argument} holds {len(broken)} values that are not whole (first: {broken[0]:.4g}), "
            "as log-normalised ones; pass counts, such as those in a layer. Round what was "
            "corrected or estimated."
        )
    return counts


def _check_enough(sides: list[sparse.csr_matrix], least: int) -> None:
    for side, argument in zip(sides, ("real", "generated", "reference"), strict=True):
        if side.shape[0] < least:
            raise ValueError(
                f"{side.shape[0]} cells of {argument} are too few to compare: at least {least} "
                "are needed (twice as many of real where no reference is given)."
            )


def _totals(counts: sparse.csr_matrix) -> Points:
    return np.asarray(counts.sum(axis=1)).ravel()


def _zeros(counts: sparse.csr_matrix) -> Points:
    return 1 - (counts > 0).sum(axis=0).A1 / counts.shape[0]


def _log_scaled(counts: sparse.csr_matrix, depth: float) -> Points:
    """Scale every cell to one depth, and take ``ln(1 + x)``; a cell without counts stays 0."""
    scale = depth / np.maximum(_totals(counts), 1.0)
    return np.log1p(counts.multiply(scale[:, None]).toarray()).astype(np.float32)


def _components(logs: list[Points], n_components: int, seed: int) -> list[Points]:
    """Put both sides on principal components of the third set."""
    from sklearn.decomposition import PCA

    n = min(n_components, *(size - 1 for size in logs[2].shape))
    with own_threads():
        pca = PCA(max(n, 1), random_state=seed).fit(logs[2])
        return [pca.transform(side) for side in logs[:2]]


def _accuracy(real: Points, generated: Points, seed: int) -> float:
    """Cross-validated share of cells that a random forest tells rightly."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    points = np.concatenate([real, generated])
    is_real = np.arange(len(points)) < len(real)
    forest = RandomForestClassifier(N_TREES, random_state=seed)
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    with own_threads():
        return float(cross_val_score(forest, points, is_real, cv=folds).mean())


def _neighborhoods(real: Points, generated: Points, n_neighbors: int) -> dict[str, float]:
    """Precision and coverage of Naeem et al. (2020), equations 4 and 8."""
    from sklearn.metrics import pairwise_distances_chunked
    from sklearn.neighbors import NearestNeighbors

    with own_threads():
        itself = NearestNeighbors(n_neighbors=n_neighbors + 1).fit(real).kneighbors(real)[0]
        radius = itself[:, -1]
        parts = [
            ((distance <= radius).any(axis=1), (distance <= radius).any(axis=0))
            for distance in pairwise_distances_chunked(generated, real)
        ]
    precise = np.concatenate([part[0] for part in parts])
    covered = np.any([part[1] for part in parts], axis=0)
    return {"precision": float(precise.mean()), "coverage": float(covered.mean())}


def _mmd(real: Points, generated: Points) -> float:
    """Unbiased squared maximum mean discrepancy, Gretton et al. (2012), equation 3."""
    from sklearn.metrics import pairwise_distances
    from sklearn.metrics.pairwise import rbf_kernel

    n = len(real)
    with own_threads():
        median = float(np.median(pairwise_distances(real)[np.triu_indices(n, 1)]))
        gamma = 0.5 / max(median * median, TINY)
        within = sum(
            (rbf_kernel(side, gamma=gamma).sum() - n) / (n * (n - 1)) for side in (real, generated)
        )
        return float(within - 2 * rbf_kernel(real, generated, gamma=gamma).mean())


def _gene_distances(real: Points, generated: Points) -> dict[str, float]:
    """Mean absolute differences of what is known of genes, and of pairs of them."""
    variances = [side.var(axis=0, dtype=np.float64) for side in (real, generated)]
    most = np.argsort(-variances[0], kind="stable")[:MOST_GENES]
    correlations = [_correlations(side[:, most]) for side in (real, generated)]
    pairs = np.triu_indices(len(most), 1)
    difference = np.abs(correlations[0] - correlations[1])[pairs]
    means = [side.mean(axis=0, dtype=np.float64) for side in (real, generated)]
    return {
        "means": float(np.abs(means[0] - means[1]).mean()),
        "variances": float(np.abs(variances[0] - variances[1]).mean()),
        "correlations": float(difference.mean()) if len(difference) else 0.0,
    }


def _correlations(values: Points) -> Points:
    """Correlate columns; one that does not vary is correlated with none."""
    centred = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(centred, axis=0)
    scaled = centred / np.where(length > 0, length, 1.0)
    return scaled.T @ scaled
