"""Clusters of profiles by their angles, what they are rich in, and which of them look new or like an artefact."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform
from scipy.stats import false_discovery_control, hypergeom

from cytominer_tools.errors import InputError
from evaluation.metrics import Codes, label_codes
from evaluation.similarity import Floats, cosine

CUT = 1 - np.cos(np.pi / 3)  # rows within 60 degrees

Linkage = Literal["average", "single", "complete"]


def cluster(X: npt.ArrayLike, *, method: Linkage = "average", cut: float = CUT) -> tuple[Codes, Codes]:
    """Hierarchical clusters at a cosine distance, by default of 60 degrees.

    Parameters
    ----------
    X : array, shape (n, n_features), finite, no row of zeros
    method : "average", "single" or "complete"
    cut : float, from 0 to 2
        Rows are joined up to this distance (1 - cosine), itself included.

    Returns
    -------
    clusters : int array, shape (n,)
        From 0, the largest first; of equally large ones that of the first row.
    order : int array, shape (n,)
        Rows as a dendrogram would show them, neighbours alike.

    Raises
    ------
    InputError
        The method is not known, the cut is not between 0 and 2, or a row is no direction.

    References
    ----------
    The cut: Godinez et al. 2018, doi:10.1101/395954. Order: Bar-Joseph et al. 2001.
    """
    if method not in ("average", "single", "complete"):
        raise InputError(f'method={method!r}: expected "average", "single" or "complete"')
    if not 0 <= cut <= 2:
        raise InputError(f"cut={cut}: expected a cosine distance from 0 to 2")
    near = cosine(X)
    if near.n < 2:
        return np.zeros(near.n, dtype=np.int64), np.arange(near.n)
    away = np.maximum(1 - near.rows(0, near.n).astype(np.float64), 0)
    np.fill_diagonal(away, 0)
    flat = squareform(away, checks=False)
    tree = linkage(flat, method)
    # float32 holds a cosine to 6e-8
    found = fcluster(tree, cut + 1e-6, criterion="distance")
    _, first, inverse, counts = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    rank = np.argsort(np.lexsort((first, -counts)))
    return rank[inverse.reshape(-1)].astype(np.int64), leaves_list(optimal_leaf_ordering(tree, flat)).astype(np.int64)


def cluster_enrichment(
    clusters: npt.ArrayLike, labels: Sequence[object], *, background: Sequence[object] | None = None
) -> pd.DataFrame:
    """Labels that a cluster holds more often than the background, by the hypergeometric test.

    Parameters
    ----------
    clusters : int array, shape (n,)
    labels : n labels, or n lists of labels (GO terms of a gene); None, NaN or [] is no label
    background : labels or lists of labels, optional
        What the rows were drawn from, them included; by default themselves.

    Returns
    -------
    DataFrame, a row a cluster of two or more and a label that two or more of its rows have
        cluster, label, in_cluster, size, in_background, background, fold, p, q (Benjamini and Hochberg over all rows of
        the table); by cluster and p.

    Raises
    ------
    InputError
        Lengths differ, or the background has fewer rows with a label than the clusters.
    """
    codes = np.asarray(clusters)
    sets = [_labels(cell) for cell in labels]
    outer = sets if background is None else [_labels(cell) for cell in background]
    if len(sets) != len(codes):
        raise InputError(f"labels: got {len(sets)} for {len(codes)} rows; give one a row")
    total: dict[object, int] = {}
    for cell in outer:
        for label in cell:
            total[label] = total.get(label, 0) + 1
    rows = []
    for number in np.unique(codes):
        members = np.flatnonzero(codes == number)
        if len(members) < 2:
            continue
        inside: dict[object, int] = {}
        for member in members:
            for label in sets[member]:
                inside[label] = inside.get(label, 0) + 1
        for label, hits in inside.items():
            if hits < 2:
                continue
            known = total.get(label, 0)
            if known < hits or len(outer) < len(members):
                raise InputError(f"background: {label!r} is there {known} times, in cluster {number} {hits} times")
            p = float(hypergeom.sf(hits - 1, len(outer), known, len(members)))
            fold = hits / len(members) / (known / len(outer))
            rows.append((int(number), label, hits, len(members), known, len(outer), fold, p))
    names = ["cluster", "label", "in_cluster", "size", "in_background", "background", "fold", "p"]
    table = pd.DataFrame(rows, columns=names)
    table["q"] = false_discovery_control(table["p"]) if len(table) else np.empty(0)
    return table.sort_values(["cluster", "p", "label"], key=_sortable, ignore_index=True)


def _sortable(column: pd.Series) -> pd.Series:
    return column.map(str) if column.name == "label" else column


def _labels(cell: object) -> frozenset[object]:
    if cell is None or (isinstance(cell, float) and np.isnan(cell)) or cell is pd.NA:
        return frozenset()
    if isinstance(cell, list | tuple | set | frozenset | np.ndarray):
        return frozenset(cell)
    return frozenset([cell])


def class_similarity(X: npt.ArrayLike, labels: npt.ArrayLike, *, own: bool = False) -> Floats:
    """2 - cosine distance of each row to the nearest row of each class: from 0 (opposite) to 2 (same direction).

    Parameters
    ----------
    X : array, shape (n, n_features)
    labels : int array, shape (n,)
        Codes from 0; negative: not annotated.
    own : bool
        Whether an annotated row is its own nearest one, and so 2.

    Returns
    -------
    float array, shape (n, n_classes)
        NaN where a class has no (other) row.
    """
    near = cosine(X)
    codes = label_codes(labels, near.n)
    found = np.full((near.n, int(codes.max(initial=-1)) + 1), -np.inf)
    for start in range(0, near.n, 1024):
        block = near.rows(start, min(start + 1024, near.n)).astype(np.float64)
        if not own:
            block[np.arange(len(block)), start + np.arange(len(block))] = -np.inf
        for label in range(found.shape[1]):
            if (mine := codes == label).any():
                found[start : start + len(block), label] = block[:, mine].max(axis=1)
    return np.where(np.isfinite(found), 1 + np.clip(found, -1, 1), np.nan)


def cluster_table(
    X: npt.ArrayLike,
    clusters: npt.ArrayLike,
    treatments: Sequence[object],
    *,
    annotations: Sequence[object] | None = None,
    cut: float = CUT,
) -> pd.DataFrame:
    """What each cluster is: its size, whether one replicate of each treatment strayed into it, what is nearest to it.

    Parameters
    ----------
    X : array, shape (n, n_features)
    clusters : int array, shape (n,)
    treatments : n values
        Rows of one treatment are its replicates.
    annotations : n values, optional
        Class of a row, None or NaN for unknown.
    cut : float
        A cluster is novel if no annotated row outside it lies within this cosine distance of its mean direction and it
        holds none itself.

    Returns
    -------
    DataFrame, a row a cluster
        cluster, size, treatments, single_replicate (each of its treatments has other replicates, and all of them lie
        elsewhere: more likely an artefact), annotated (rows of a known class), nearest_class, similarity
        (2 - cosine distance to its nearest row), novel.
    """
    codes, X = np.asarray(clusters, dtype=np.int64), np.asarray(X, dtype=np.float64)
    if not len(codes) == len(X) == len(treatments):
        raise InputError(f"got {len(X)} profiles, {len(codes)} clusters and {len(treatments)} treatments; one a row")
    if not np.isfinite(X).all():
        raise InputError(f"row {int(np.flatnonzero(~np.isfinite(X).all(axis=1))[0])} is not finite; leave it out")
    X = X / np.maximum(np.abs(X).max(axis=1, keepdims=True, initial=0), np.finfo(np.float64).tiny)
    unit = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    name = pd.factorize(pd.Series(list(treatments)))[0]
    replicates = np.bincount(name[name >= 0], minlength=1)
    known = np.array([len(_labels(cell)) > 0 for cell in annotations]) if annotations is not None else None
    rows = []
    for number in np.unique(codes):
        inside = codes == number
        local = np.bincount(name[inside & (name >= 0)], minlength=len(replicates))
        present = local > 0
        row: dict[str, object] = {
            "cluster": int(number),
            "size": int(inside.sum()),
            "treatments": int(present.sum()),
            "single_replicate": bool(present.any() and (local[present] == 1).all() and (replicates[present] > 1).all()),
        }
        if known is not None and annotations is not None:
            mean = unit[inside].mean(axis=0)
            others = np.flatnonzero(known & ~inside)
            length = np.linalg.norm(mean)
            best, value = None, np.nan
            if len(others) and length > 0:
                near = unit[others] @ mean / length
                at = int(np.argmax(near))
                best, value = annotations[others[at]], 1 + float(near[at])
            holds = int((known & inside).sum())
            row |= {
                "annotated": holds,
                "nearest_class": best,
                "similarity": value,
                "novel": not holds and not value >= 2 - cut,
            }
        rows.append(row)
    return pd.DataFrame(rows)
