"""Whether batches are mixed among the profiles around each profile: kBET, LISI, and scores of them with baselines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import chi2

from cytominer_tools.columns import COUNT, feature_columns
from cytominer_tools.errors import InputError
from evaluation.baselines import Null, permuted_labels
from evaluation.batch import HeldOut, component_scores, group_codes, group_sums, held_out_folds
from evaluation.metrics import Codes, exclude_codes, label_codes, sweep
from evaluation.scores import SIMILARITIES, cell_counts, finite_features
from evaluation.similarity import Floats, Floats32, Similarity, count_similarity, distances

KBET, LISI, COMPONENTS = MIXING = ("kbet", "lisi", "component_association")
_REJECTED = 0.05
_PERPLEXITY = 30
_COMPONENTS = 10
_MOST_LEVEL = 1 << 23  # equally near neighbours beyond k, of all rows together: 230 MB
SETTINGS = {
    KBET: f"p < {_REJECTED}",
    LISI: f"perplexity = {_PERPLEXITY} at most",
    COMPONENTS: f"{_COMPONENTS} components at most",
}


@dataclass(frozen=True)
class _Near:
    """The nearest rows of each, one below the other: row, neighbour, and how much of a place it has.

    Equally near ones at the last place share it, so that the order of rows changes nothing.
    """

    n: int
    row: Codes
    neighbour: Codes
    weight: Floats
    distance: Floats

    def count(self, labels: Codes, weight: Floats) -> Floats:
        """The weight of each label around each row, shape (n, n_labels)."""
        groups = int(labels.max()) + 1
        found = np.bincount(self.row * groups + labels[self.neighbour], weight, minlength=self.n * groups)
        return np.asarray(found, dtype=np.float64).reshape(self.n, groups)


class _Nearest:
    def __init__(self, k: int):
        self.k = k
        self.parts: list[tuple[Codes, Codes, Floats, Floats32]] = []
        self.level = 0

    def add(self, start: int, block: Floats32) -> None:
        edge = np.partition(block, block.shape[1] - self.k, axis=1)[:, block.shape[1] - self.k, None]
        row, column = np.nonzero(block >= edge)
        self.level += len(row) - self.k * len(block)
        if self.level > _MOST_LEVEL:
            raise InputError(f"too many of {block.shape[1]} profiles are equal or equally near to weigh all neighbours")
        value = block[row, column]
        tied = value == edge[row, 0]
        level = np.bincount(row, tied, minlength=len(block))
        places = self.k - np.bincount(row, ~tied, minlength=len(block))
        self.parts.append((row + start, column, np.where(tied, (places / level)[row], 1.0), value))


def _near(similarity: Similarity, k: int) -> _Near:
    nearest = _Nearest(k)
    sweep(similarity, exclude_codes(None, similarity.n), [nearest])
    row, neighbour, weight, value = (np.concatenate(part) for part in zip(*nearest.parts, strict=True))
    return _Near(similarity.n, row, neighbour, weight, distances(similarity, value))


def _rejections(near: _Near, labels: Codes, k: int) -> Floats:
    """p of each row: the chi-square test of the labels around it against those of all rows."""
    expected = np.bincount(labels) / len(labels) * k
    seen = near.count(labels, near.weight)
    return np.asarray(chi2.sf(((seen - expected) ** 2 / expected).sum(axis=1), len(expected) - 1))


def _shares(near: _Near, perplexity: float) -> Floats:
    """How much each neighbour counts: exp(-b distance), of sum 1, with the b of each row that gives its perplexity."""
    first = np.full(near.n, np.inf)
    np.minimum.at(first, near.row, near.distance)
    away = near.distance - first[near.row]
    low, high, beta = np.zeros(near.n), np.full(near.n, np.inf), np.ones(near.n)
    for _ in range(60):
        share = np.exp(-beta[near.row] * away)
        total = np.bincount(near.row, near.weight * share)
        entropy = np.log(total) + beta * np.bincount(near.row, near.weight * share * away) / total
        even = entropy > np.log(perplexity)
        low, high = np.where(even, beta, low), np.where(even, high, beta)
        beta = np.where(np.isinf(high), 2 * beta, (low + high) / 2)
    return near.weight * share / total[near.row]


def _effective(near: _Near, labels: Codes, share: Floats) -> Floats:
    return np.asarray(1 / (near.count(labels, share) ** 2).sum(axis=1))


def _batches(similarity: Similarity, labels: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], Codes, int]:
    """Which rows have a batch, their batches from 0 on, and how many there are."""
    found = label_codes(labels, similarity.n)
    known = found >= 0
    codes = np.unique(found[known], return_inverse=True)[1].reshape(-1).astype(np.int64)
    return known, codes, int(codes.max(initial=-1)) + 1


def _kbet_places(rows: int, batches: int) -> int:
    return max(10, round(rows / batches / 4))


def _require_power(sizes: Codes, k: int) -> None:
    """That most rows would be rejected if groups, of these sizes, lay wholly apart."""
    falling = np.argsort(-sizes, kind="stable")
    rejected = 0
    for own, size in enumerate(sizes):
        # around a row: its own group, then whole others; the largest ones differ least from what is expected
        order = np.concatenate([[own], falling[falling != own]])
        room = sizes[order] - (np.arange(len(sizes)) == 0)
        seen, expected = np.clip(k - np.cumsum(room) + room, 0, room), k * sizes[order] / sizes.sum()
        chi = float(((seen - expected) ** 2 / expected).sum())
        rejected += size if chi2.sf(chi, len(sizes) - 1) < _REJECTED else 0
    if 2 * rejected < sizes.sum():
        raise InputError(
            f"{k} neighbours of each of {sizes.sum()}, groups of at most {sizes.max()}: "
            f"most would have p of {_REJECTED} or more even if groups lay wholly apart"
        )


def mixing(similarity: Similarity, labels: npt.ArrayLike, *, k: int | None = None) -> tuple[float, Floats]:
    """kBET: the share of rows whose k nearest ones hold batches in other proportions than all rows do, at p < 0.05.

    Parameters
    ----------
    similarity : Similarity of n rows
    labels : int array, shape (n,)
        Batches; a row without one (negative) is left out.
    k : int, optional
        By default a quarter of the mean size of a batch, and at least 10.

    Returns
    -------
    rejected : float
        About 0.05 where large batches are mixed, less where small ones are; 1 where they lie apart, less where some are
        smaller than `k`; NaN with one batch.
    p : float array, shape (n,)

    Raises
    ------
    InputError
        `k` is not below the number of rows, or most rows would not be rejected even if batches lay wholly apart, such
        as with two batches of nine rows or fewer.

    References
    ----------
    Büttner et al. 2019, doi:10.1038/s41592-018-0254-1.
    """
    known, codes, batches = _batches(similarity, labels)
    p = np.full(similarity.n, np.nan)
    if batches < 2:
        return np.nan, p
    k = _kbet_places(len(codes), batches) if k is None else k
    if not 1 <= k < len(codes):
        raise InputError(f"k={k}: expected fewer neighbours than the {len(codes)} rows with a batch")
    _require_power(np.bincount(codes), k)
    p[known] = _rejections(_near(similarity.take(np.flatnonzero(known)), k), codes, k)
    return float((p[known] < _REJECTED).mean()), p


def lisi(similarity: Similarity, labels: npt.ArrayLike, *, perplexity: float = 30) -> tuple[float, Floats]:
    """Local inverse Simpson's index: how many batches there are, in effect, around each row.

    Parameters
    ----------
    similarity : Similarity of n rows
        Distances are those of rows of unit length for a cosine or correlation, otherwise minus the similarity.
    labels : int array, shape (n,)
        Batches; a row without one (negative) is left out.
    perplexity : float
        Neighbours that count, in effect; three times as many are weighted.

    Returns
    -------
    median : float
        1 where batches lie apart, up to their number where they are mixed; NaN with one batch.
    index : float array, shape (n,)

    Raises
    ------
    InputError
        The perplexity is below 1, or not less than a third of the rows.

    References
    ----------
    Korsunsky et al. 2019, doi:10.1038/s41592-019-0619-0.
    """
    known, codes, batches = _batches(similarity, labels)
    index = np.full(similarity.n, np.nan)
    if batches < 2:
        return np.nan, index
    k = int(3 * perplexity)
    if perplexity < 1 or k >= len(codes):
        raise InputError(
            f"perplexity={perplexity:g}: expected 1 or more, and less than a third of the {len(codes)} rows"
        )
    near = _near(similarity.take(np.flatnonzero(known)), k)
    index[known] = _effective(near, codes, _shares(near, perplexity))
    return float(np.median(index[known])), index


def mixing_scores(
    controls: pd.DataFrame,
    by: Sequence[str],
    *,
    metrics: Sequence[str] = MIXING,
    features: Sequence[str] | Literal["infer"] = "infer",
    similarity: str = "cosine",
    held_out: HeldOut | None = None,
    folds: int = 5,
    permutations: int = 100,
    counts: str | None = COUNT,
    seed: int = 0,
) -> pd.DataFrame:
    """How much of control wells is their batch, plate or position, each score beside its baselines on the same rows.

    Parameters
    ----------
    controls : DataFrame, a row a control well, before the correction if there is a `held_out`
    by : columns, or "well row" and "well column"; each is scored by itself
    metrics : names among "kbet", "lisi" and "component_association"
        "kbet": the share of wells that `mixing` rejects. "lisi": the median of `lisi`, of perplexity 30, or a third of
        the other wells where those are fewer. "component_association": the share of the variance of the first 10
        principal components that is between groups.
    features : list of names, or "infer"
    similarity : "cosine" or "pearson"
        Of kbet and lisi.
    held_out, folds
        As in `evaluation.group_association`; wells are then compared within a fold.
    permutations : int
        Of the groups among the wells of a fold.
    counts : str, optional
        The column of cell counts: the same scores of its logarithm alone. None: without this baseline.
    seed : int
        Of folds and permutations.

    Returns
    -------
    DataFrame, a row a column of `by` and metric
        The columns of `evaluation.Scores.table`, with the column of `by` as labels and wells as n. High kbet and
        component_association and low lisi mean a batch effect; p and permutation_95 look that way.

    Raises
    ------
    InputError
        A column is absent, a feature is not finite, a metric or similarity is not known, there are no controls, or
        folds are fewer than 2 or more than a third of the wells.
    """
    names = feature_columns(controls, features)
    if similarity not in SIMILARITIES:
        raise InputError(f"similarity {similarity!r} is not known; choose one of {', '.join(SIMILARITIES)}")
    if unknown := [name for name in metrics if name not in MIXING]:
        raise InputError(f"metric {unknown[0]!r} is not known; choose among {', '.join(MIXING)}")
    codes = {name: group_codes(controls, name) for name in by}
    X = finite_features(controls, names)
    if not len(X):
        raise InputError("there are no controls; check the query that selects them")
    parts = held_out_folds(X, list(codes.values()), held_out, folds, seed)
    cells, note = None, ""
    try:
        if counts is not None:
            cells = cell_counts(controls, counts)
            count_similarity(cells)  # none is missing or negative
    except InputError as error:
        cells, note = None, f"cell_count: {str(error).splitlines()[0]}"
    rows = []
    for name, groups in codes.items():
        rng = np.random.default_rng(seed)
        profiled, counted = [], []
        for part, points in parts:
            known = np.flatnonzero(groups[part] >= 0)
            own = np.unique(groups[part][known], return_inverse=True)[1].reshape(-1).astype(np.int64)
            labellings = np.concatenate([own[None], permuted_labels(own, n=permutations, rng=rng)])
            profiled.append(_Fold(points[known], partial(SIMILARITIES[similarity], points[known]), labellings))
            if cells is not None:
                some = cells[part][known]
                counted.append(_Fold(np.log1p(some)[:, None], partial(count_similarity, some), own[None]))
        rows += [
            {"score": metric, "labels": name, "similarity": similarity, **_row(metric, profiled, counted, note)}
            for metric in metrics
        ]
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Fold:
    points: Floats
    similarity: Callable[[], Similarity]
    labellings: Codes  # the groups, then permutations of them: shape (n_labellings, n)


def _row(metric: str, profiled: list[_Fold], counted: list[_Fold], note: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("permutation_mean", "permutation_95", "p", "cell_count"), np.nan)
    n = sum(len(fold.points) for fold in profiled)
    row: dict[str, Any] = {"setting": SETTINGS[metric], "value": np.nan, "n": n, "reason": "", "chance": np.nan}
    row |= {**nothing, "notes": note, "across": ""}
    try:
        found = _values(metric, profiled)
    except InputError as error:
        return row | {"reason": str(error)}
    worse = -1.0 if metric == LISI else 1.0  # the direction of a batch effect
    null = Null(worse * found[1:])
    row |= {"value": float(found[0]), "p": null.p(worse * found[0])}
    row |= {"permutation_mean": worse * null.mean, "permutation_95": worse * null.mark_95}
    if metric == COMPONENTS:
        row["chance"] = (
            sum(int(fold.labellings[0].max()) * len(fold.points) / (len(fold.points) - 1) for fold in profiled) / n
        )
    if counted:
        try:
            row["cell_count"] = float(_values(metric, counted)[0])
        except InputError as error:
            row["notes"] = f"cell_count: {error}"
    return row


def _values(metric: str, folds: list[_Fold]) -> Floats:
    """The metric of each labelling."""
    each = []
    for fold in folds:
        try:
            each.append(_fold_values(metric, fold))
        except InputError as error:
            raise InputError(f"in a fold: {error}" if len(folds) > 1 else str(error)) from error
    found = np.concatenate(each, axis=1)
    return np.median(found, axis=1) if metric == LISI else found.mean(axis=1)


def _fold_values(metric: str, fold: _Fold) -> Floats:
    """A value for each labelling and well."""
    n, sizes = len(fold.points), np.bincount(fold.labellings[0])
    if len(sizes) < 2:
        raise InputError("all wells share one" if len(sizes) else "no well has one")
    if sizes.max() < 2:
        raise InputError("no two wells share one")
    if metric == COMPONENTS:
        scores = component_scores(fold.points, _COMPONENTS)
        total = float((scores**2).sum())
        between = [(group_sums(scores, labels) ** 2 / sizes[:, None]).sum() for labels in fold.labellings]
        # rounded: nothing between groups is 0, not 1e-32
        return np.repeat(np.round(np.array(between)[:, None] / total, 14), n, axis=1)
    if metric == KBET:
        k = _kbet_places(n, len(sizes))
        if k >= n:
            raise InputError(f"{n} wells to compare: {k} neighbours of each need at least {k + 1}")
        _require_power(sizes, k)
        near = _near(fold.similarity(), k)
        return np.stack([_rejections(near, labels, k) < _REJECTED for labels in fold.labellings])
    perplexity = min(_PERPLEXITY, (n - 1) // 3)
    if perplexity < 2:
        raise InputError(f"{n} wells to compare: at least 7 are needed")
    near = _near(fold.similarity(), 3 * perplexity)
    share = _shares(near, perplexity)
    return np.stack([_effective(near, labels, share) for labels in fold.labellings])
