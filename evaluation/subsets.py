"""Parts of a set of treatments that are scored by themselves: the largest classes, and the strong phenotypes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytominer_tools.columns import require_columns
from cytominer_tools.errors import InputError
from cytominer_tools.tables import write_table
from evaluation.curves import enrichment_curve, hit_curve, match_ranks, precision_recall_curve
from evaluation.metrics import exclude_codes, label_codes
from evaluation.similarity import Floats, Similarity, pearson


def largest_classes(labels: npt.ArrayLike, n: int = 50, *, ties: Literal["in", "out"] = "in") -> npt.NDArray[np.bool_]:
    """Rows of the n largest classes (the thesis's Top50).

    Parameters
    ----------
    labels : int array, shape (rows,)
        Negative: no class.
    n : int
    ties : "in" or "out"
        Classes as large as the n-th one, if not all of them fit: all in, or all out.

    Raises
    ------
    InputError
        `n` is below 1.
    """
    if n < 1 or ties not in ("in", "out"):
        raise InputError(f'n={n}, ties={ties!r}: expected 1 or more classes, and "in" or "out"')
    codes = label_codes(labels, len(np.asarray(labels)))
    names, counts = np.unique(codes[codes >= 0], return_counts=True)
    if len(names) <= n:
        return codes >= 0
    ranked = np.sort(counts)[::-1]
    edge = ranked[n - 1]
    chosen = counts >= edge if ties == "in" or ranked[n] < edge else counts > edge
    return np.isin(codes, names[chosen])


def phenotype_strength(
    profiles: npt.ArrayLike, controls: npt.ArrayLike, *, rule: Literal["distance", "correlation"] = "distance"
) -> Floats:
    """How far treatments are from controls; higher is stronger.

    Parameters
    ----------
    profiles : array, shape (n, n_features)
        Consensus of treatments, spherized on controls.
    controls : array, shape (m, n_features)
        Control wells, spherized.
    rule : "distance" or "correlation"
        "distance": the length of a profile from the mean control, which after spherizing is the Mahalanobis distance.
        "correlation": minus its mean Pearson correlation with the control wells, the reading of the thesis's rule;
        after spherizing that is close to noise around 0.

    Raises
    ------
    InputError
        Widths differ, or there are no controls.
    """
    X, D = np.asarray(profiles, dtype=np.float64), np.asarray(controls, dtype=np.float64)
    if X.ndim != 2 or D.ndim != 2 or X.shape[1] != D.shape[1]:
        raise InputError(f"profiles of shape {X.shape} and controls of {D.shape}: expected the same features")
    if not len(D):
        raise InputError("there are no controls; check the query that selects them")
    for what, rows in (("profile", X), ("control", D)):
        if not np.isfinite(rows).all():
            bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise InputError(f"{what} {bad} is not finite; fill in or drop the feature or the row first")
    if rule == "distance":
        return np.linalg.norm(X - D.mean(axis=0), axis=1)
    if rule != "correlation":
        raise InputError(f'rule={rule!r}: expected "distance" or "correlation"')
    both = pearson(np.concatenate([X, D]))
    return -both.tile(slice(0, len(X)), slice(len(X), None)).mean(axis=1, dtype=np.float64)


def strongest(strength: npt.ArrayLike, n: int) -> npt.NDArray[np.bool_]:
    """The n rows of highest strength; of equal ones at the edge, the first."""
    values = np.asarray(strength, dtype=np.float64)
    if not 0 < n <= len(values):
        raise InputError(f"n={n}: expected 1 to {len(values)}")
    if np.isnan(values).any():
        raise InputError(f"strength: {int(np.isnan(values).sum())} of {len(values)} are missing; leave those rows out")
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(-values, kind="stable")[:n]] = True
    return chosen


def subset_scores(
    similarity: Similarity,
    labels: npt.ArrayLike,
    inside: npt.ArrayLike,
    *,
    exclude: npt.ArrayLike | None = None,
    depths: Sequence[int] = (5, 10, 20),
    percentile: float = 99.5,
) -> pd.DataFrame:
    """Scores of all rows, of a subset and of the rest, each as its metric asks.

    Precision and recall keep the full set as candidates and are averaged over the subset's queries, since a subset may
    leave a class of one. Enrichment and hit@k are computed anew among the rows of the subset.

    Parameters
    ----------
    similarity : Similarity of n rows
    labels, exclude
        As in `evaluation.metrics.precision_at_r`.
    inside : booleans, shape (n,)
    depths : ints
        Of precision and recall.
    percentile : float

    Returns
    -------
    DataFrame, three rows a score
        subset ("all", "in", "out"), score, setting, candidates ("full set" or "subset"), value, n.
    """
    codes, outside = label_codes(labels, similarity.n), exclude_codes(exclude, similarity.n)
    chosen = np.asarray(inside, dtype=bool)
    if chosen.shape != (similarity.n,):
        raise InputError(f"inside: expected {similarity.n} booleans, one a row; got shape {chosen.shape}")
    ranks = match_ranks(similarity, codes, exclude=outside)
    rows = []
    for name, kept in (("all", np.ones(similarity.n, dtype=bool)), ("in", chosen), ("out", ~chosen)):
        for row in precision_recall_curve(ranks.take(kept), depths).itertuples():
            for score, value in (("precision", row.precision), ("recall", row.recall)):
                rows.append((name, score, f"k = {row.k}", "full set", value, row.n))
        own = ranks.take(kept)
        has = own.n_matches > 0
        at_r = own.within(np.maximum(own.n_matches, 1))[has] / own.n_matches[has]
        rows.append(
            (name, "precision", "R = matches", "full set", float(at_r.mean()) if has.any() else np.nan, int(has.sum()))
        )
        places = np.flatnonzero(kept)
        part = similarity.take(places)
        curve = enrichment_curve(part, codes[places], [percentile], exclude=outside[places]).iloc[0]
        pairs = int(curve[["above_match", "above_other", "below_match", "below_other"]].sum())
        rows.append((name, "enrichment", f"percentile = {percentile:g}", "subset", float(curve["odds_ratio"]), pairs))
        hits = hit_curve(match_ranks(part, codes[places], exclude=outside[places]))
        rows.append((name, "hit_s20", "first 20 %", "subset", hits.s20, hits.n))
    return pd.DataFrame(rows, columns=["subset", "score", "setting", "candidates", "value", "n"])


def write_treatments(
    path: Path, treatments: pd.DataFrame, strength: npt.ArrayLike, chosen: npt.ArrayLike, column: str
) -> str:
    """Write the chosen treatments with their strength, strongest first, and return the query that selects their wells.

    A study takes the file as `export.treatments` and `train.treatments`, and the query as `export.query` and
    `train.select`.

    Parameters
    ----------
    path : Path
        .csv, .csv.gz or .parquet
    treatments : DataFrame, a row a treatment
    strength : array, shape (n,)
    chosen : booleans, shape (n,)
    column : str
        What names a treatment, in the profiles and in the index.

    Raises
    ------
    InputError
        The column is absent, a chosen treatment has no name, or none is chosen.
    """
    require_columns(treatments, [column], "treatments")
    kept = treatments.loc[np.asarray(chosen, dtype=bool), [column]].assign(
        Metadata_Strength=np.asarray(strength, dtype=np.float64)[np.asarray(chosen, dtype=bool)]
    )
    if kept.empty or kept[column].isna().any():
        raise InputError(f"{column}: no treatment is chosen" if kept.empty else f"{column}: a chosen one has no name")
    kept = kept.sort_values("Metadata_Strength", ascending=False, kind="stable").reset_index(drop=True)
    write_table(kept, path)
    quoted = column if column.isidentifier() else f"`{column}`"
    return f"{quoted} in {kept[column].drop_duplicates().tolist()!r}"


def split_labels(labels: pd.Series, separator: str = "|") -> pd.Series:
    """Composite labels as lists for `multilabel_average_precision`: "a|b" is both a and b; a missing one is [].

    Elsewhere labels are compared whole, so that "a|b" matches only itself, as in the thesis.

    >>> split_labels(pd.Series(["a|b|", None])).tolist()
    [['a', 'b'], []]
    """

    def parts(cell: object) -> list[str]:
        return [part.strip() for part in str(cell).split(separator) if part.strip()]

    return labels.map(lambda cell: parts(cell) if pd.notna(cell) else [])
