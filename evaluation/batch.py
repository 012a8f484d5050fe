"""How much of profiles is batch, plate or position: shares with their expectation, on controls held out of any fit."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import f as f_distribution

from cytominer_tools.columns import WELL, feature_columns, require_columns, well_name
from cytominer_tools.errors import InputError
from evaluation.curves import enrichment_curve
from evaluation.metrics import Codes, text_codes
from evaluation.nearest import nearest_class
from evaluation.precision import digests
from evaluation.scores import SIMILARITIES, finite_features
from evaluation.similarity import Floats

HeldOut = Callable[[Codes], Floats]
WELL_ROW, WELL_COLUMN = "well row", "well column"


def group_association(
    controls: pd.DataFrame,
    by: Sequence[str],
    *,
    features: Sequence[str] | Literal["infer"] = "infer",
    similarity: str = "pearson",
    percentile: float = 99.5,
    held_out: HeldOut | None = None,
    folds: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Whether control wells resemble those of their own batch, plate or position more than others.

    The odds ratio is the thesis's batch enrichment score. Of 26,000 top pairs a value of 1,000 may mean a hundred of
    another batch, so the counts and shares stand beside it. A correction fitted on these wells makes them unlike each
    other by construction; give it as `held_out`, and every well is scored by fits that have not seen it.

    Parameters
    ----------
    controls : DataFrame, a row a control well, before the correction if there is a `held_out`
    by : columns, or "well row" and "well column", which are read off Metadata_Well
    features : list of names, or "infer"
    similarity : "cosine" or "pearson"
    percentile : float
        The top pairs are above it.
    held_out : function, optional
        Takes the places of some wells in `controls`, rising, and returns their corrected features, by a fit on others.
        Pairs are then within a fold, and counts are summed over folds.
    folds : int
    seed : int
        Of the folds.

    Returns
    -------
    DataFrame, a row a column of `by`
        by, similarity, percentile, n (wells), folds (0 without `held_out`), pairs, same, top_same, top_other, top_share
        (of the top pairs, those of one group), expected_share (of all pairs), odds_ratio (half a pair added to each
        count), nearest_share (wells whose nearest one is of their group), nearest_expected, reason (empty where
        defined).

    Raises
    ------
    InputError
        A column is absent, a feature is not finite, or folds are fewer than 2 or more than a third of the wells.
    """
    names = feature_columns(controls, features)
    if similarity not in SIMILARITIES:
        raise InputError(f"similarity {similarity!r} is not known; choose one of {', '.join(SIMILARITIES)}")
    codes = {name: group_codes(controls, name) for name in by}
    X = finite_features(controls, names)
    n = len(X)
    if not n:
        raise InputError("there are no controls; check the query that selects them")
    counts = {name: np.zeros(4, dtype=np.int64) for name in by}
    nearest: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in by}
    for part, corrected in held_out_folds(X, list(codes.values()), held_out, folds, seed):
        near = SIMILARITIES[similarity](corrected)
        for name in by:
            local = codes[name][part]
            table = enrichment_curve(near, local, [percentile])
            counts[name] += table[["above_match", "above_other", "below_match", "below_other"]].to_numpy()[0]
            found = nearest_class(near, local)
            size = np.bincount(local[local >= 0], minlength=1)
            known = local >= 0
            chance = np.where(known, (size[np.maximum(local, 0)] - 1) / max(int(known.sum()) - 1, 1), np.nan)
            # a well whose group has one member here is never right, by chance neither
            nearest[name].append(np.stack([np.where(known, np.nan_to_num(found.correct), np.nan), chance]))
    rows = []
    for name in by:
        a, b, c, d = counts[name].tolist()
        rates = np.concatenate(nearest[name], axis=1)
        share, expected = rates[:, ~np.isnan(rates[0])].mean(axis=1) if (codes[name] >= 0).any() else (np.nan, np.nan)
        defined = a + c > 0 and b + d > 0 and a + b > 0
        reason = (
            ""
            if defined
            else (
                "no well has one"
                if not (codes[name] >= 0).any()
                else "no two wells share one"
                if not a + c
                else "all wells share one"
                if not b + d
                else "no pair is above the percentile"
            )
        )
        half = (a + 0.5) * (d + 0.5) / ((b + 0.5) * (c + 0.5))
        rows.append(
            {
                "by": name,
                "similarity": similarity,
                "percentile": percentile,
                "n": n,
                "folds": 0 if held_out is None else folds,
                "pairs": a + b + c + d,
                "same": a + c,
                "top_same": a,
                "top_other": b,
                "top_share": a / (a + b) if a + b else np.nan,
                "expected_share": (a + c) / max(a + b + c + d, 1),
                "odds_ratio": half if defined else np.nan,
                "nearest_share": float(share),
                "nearest_expected": float(expected),
                "reason": reason,
            }
        )
    return pd.DataFrame(rows)


def held_out_folds(
    X: Floats, codes: Sequence[Codes], held_out: HeldOut | None, folds: int, seed: int
) -> list[tuple[Codes, Floats]]:
    """The places of wells in folds that each are held out once, and what `held_out` makes of them; without it, of all.

    Folds, and wells within them, are in an order that features and codes decide, whatever that of the rows.

    Raises
    ------
    InputError
        Folds are fewer than 2 or more than a third of the wells.
    """
    n, order = len(X), np.lexsort([*codes, digests(X)]).astype(np.int64)
    if held_out is None:
        return [(order, X[order])]
    if not 2 <= folds <= n // 3:
        raise InputError(f"folds={folds}: expected 2 to {n // 3}, for at least 3 of {n} wells in each")
    found = []
    for part in np.array_split(np.random.default_rng(seed).permutation(n), folds):
        places = order[np.sort(part)]
        rising = np.sort(places)
        found.append((places, held_out(rising)[np.searchsorted(rising, places)]))
    return found


def group_codes(table: pd.DataFrame, name: str) -> Codes:
    """The groups of a column, or of the rows or columns of wells, as codes in one order; -1 where there is none."""
    if name in (WELL_ROW, WELL_COLUMN):
        require_columns(table, [WELL], name)
        wells = table[WELL].map(well_name)
        values = wells.str.extract(r"^([A-Z]+)(\d+)$")[0 if name == WELL_ROW else 1]
    else:
        require_columns(table, [name], "by")
        values = table[name]
    return text_codes(values)[0]


def component_association(
    profiles: pd.DataFrame,
    by: Sequence[str],
    *,
    features: Sequence[str] | Literal["infer"] = "infer",
    components: int = 10,
) -> pd.DataFrame:
    """Principal components: the variance each holds, and how much of that is between batches, plates or positions.

    Parameters
    ----------
    profiles : DataFrame, a row a profile
    by : columns, or "well row" and "well column"
    features : list of names, or "infer"
    components : int
        At most this many.

    Returns
    -------
    DataFrame, a row a component and column
        component (from 1), explained (share of the variance of the profiles), by, r2 (share of the component's variance
        that is between groups), expected_r2 ((groups - 1) / (n - 1), of random groups), p (of the F test, which takes
        wells as independent), n; NaN where there is one group, or one row in each.
    """
    names = feature_columns(profiles, features)
    codes = {name: group_codes(profiles, name) for name in by}
    X = finite_features(profiles, names)
    scores = component_scores(X, len(X))
    total = float((scores**2).sum())
    rows = []
    for k, score in enumerate(scores.T[:components]):
        for name in by:
            known = codes[name] >= 0
            own = np.unique(codes[name][known], return_inverse=True)[1].reshape(-1)
            counts, n = np.bincount(own), int(known.sum())
            values = score[known] - (score[known].mean() if n else 0)
            groups, spread = len(counts), float((values**2).sum())
            r2 = p = np.nan
            # the scores of wells without a part in the component are rounding noise
            if 1 < groups < n and spread > 1e-24 * float((score**2).sum()):
                r2 = float((group_sums(values[:, None], own)[:, 0] ** 2 / counts).sum() / spread)
                ratio = r2 / (groups - 1) / max((1 - r2) / (n - groups), 1e-300)
                p = float(f_distribution.sf(ratio, groups - 1, n - groups))
            rows.append(
                {
                    "component": k + 1,
                    "explained": float((score**2).sum() / total),
                    "by": name,
                    "r2": r2,
                    "expected_r2": (groups - 1) / (n - 1) if n > 1 and groups else np.nan,
                    "p": p,
                    "n": n,
                }
            )
    return pd.DataFrame(rows)


def component_scores(X: Floats, components: int) -> Floats:
    """The first principal components of the rows of `X`, shape (n, components), fewer where there are fewer.

    In the unit of the largest value, so that no square is out of the range of numbers.

    Raises
    ------
    InputError
        Fewer than three rows, one that is not finite, or all are equal.
    """
    if len(X) < 3:
        raise InputError(f"{len(X)} profiles: components need at least 3")
    if bad := int((~np.isfinite(X)).any(axis=1).sum()):
        raise InputError(f"{bad} of {len(X)} profiles are not finite; drop such features first")
    X = X / np.maximum(np.abs(X).max(initial=0), np.finfo(np.float64).tiny)
    left, sizes, _ = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    if not sizes.max(initial=0) > 1e-12:
        raise InputError("all profiles are equal, so they have no components")
    kept = sizes[:components] > 1e-12 * sizes[0]
    return np.asarray((left * sizes)[:, : int(kept.sum())])


def group_sums(values: Floats, groups: Codes) -> Floats:
    """Sums of rows by group, shape (n_groups, n_columns)."""
    found = np.zeros((int(groups.max()) + 1, values.shape[1]))
    np.add.at(found, groups, values)
    return found
