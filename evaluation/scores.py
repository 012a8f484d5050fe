"""Profiles and a label column to scores, each beside its baselines on the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd

from cytominer_tools.columns import COUNT, feature_columns, metadata_columns, require_values
from cytominer_tools.errors import InputError
from cytominer_tools.queries import select as select_rows
from evaluation.baselines import Null, can_move, permuted_labels
from evaluation.curves import percent_replicating
from evaluation.metrics import Codes, Consumer, Enrichment, Neighbours, PerQuery, R, TopPairs, sweep
from evaluation.precision import digests
from evaluation.similarity import Floats, Similarity, cosine, count_similarity, pearson
from evaluation.standing import RANKED, Standing

SIMILARITIES = {"cosine": cosine, "pearson": pearson}
BASELINES = ("permutation", "cell_count")
ROBUST, REPLICATING = "robust_enrichment", "percent_replicating"
METRICS = (*RANKED, ROBUST, REPLICATING)  # beside precision at R and enrichment, which are always there
_PERCENTILES = (97.5, 98.0, 98.5, 99.0, 99.5)  # of robust enrichment


@dataclass(frozen=True)
class Scores:
    """What `score` found, in plain frames of text and numbers.

    Attributes
    ----------
    table : DataFrame, one row a score
        score, labels, similarity, setting, value, n (queries with a match; of enrichment pairs, of percent replicating
        classes), reason (text; empty where the value is defined), chance, permutation_mean, permutation_95, p,
        cell_count, notes (text: why a baseline is NaN), across (text: the columns in which compared profiles differ).
    queries : DataFrame, one row a query, in the order of the profiles
        Its other metadata, label, precision_at_r, n_matches, n_candidates, first_rank; and, of the metrics that were
        asked for, average_precision.
    selection : DataFrame, one row a rule, in the order they were applied
        rule, rows_removed, rows_left, classes_left.
    """

    table: pd.DataFrame
    queries: pd.DataFrame
    selection: pd.DataFrame


@dataclass(frozen=True)
class _Measured:
    """One similarity; of each score the real labels first, then each permutation."""

    queries: PerQuery
    enrichment: Enrichment
    values: dict[str, Floats]
    average_precision: Floats | None
    classes: int  # behind percent replicating

    def value(self, name: str) -> float:
        """By the real labels."""
        return self.enrichment.odds_ratio if name == "enrichment" else float(self.values[name][0])


def score(
    profiles: pd.DataFrame,
    *,
    labels: str,
    features: Sequence[str] | Literal["infer"] = "infer",
    similarity: str = "cosine",
    metrics: Sequence[str] = (),
    exclude_same: str | Sequence[str] = (),
    select: str | None = None,
    min_class_size: int = 2,
    r: R = "matches",
    percentile: float = 99.5,
    permutations: int = 100,
    permute_within: str | None = None,
    counts: str = COUNT,
    baselines: Sequence[str] = BASELINES,
    seed: int = 0,
) -> Scores:
    """Precision at R and enrichment of `labels` among similar profiles, and what the same rows score by less.

    Rows are chosen first: `select`, then a known label, then a class of at least `min_class_size`. A label that is
    missing is no class. The result depends on the arguments alone, to the last byte, and not on the order of rows.

    Parameters
    ----------
    profiles : DataFrame, a row a profile
    labels : str
        The column whose equal values should lie close together, such as the MOA. Compared whole: "a|b" is not "a".
    features : list of names, or "infer"
    similarity : "cosine" or "pearson"
    metrics : names among "mean_average_precision", "nearest", "hit_s20", "precision_at_5", "precision_at_10", \
            "recall_at_5", "recall_at_10", "robust_enrichment" and "percent_replicating"
        What is scored beside precision at R and enrichment. "nearest" is the share of queries whose nearest candidate
        matches; "hit_s20" is that of `hit_curve`; "robust_enrichment" is the geometric mean over the percentiles 97.5
        to 99.5 of odds ratios with half a pair added to each count. "percent_replicating" is not permuted: by its own
        definition 5 % of random classes replicate.
    exclude_same : column name or names
        Pairs with the same value in any of them are no candidates; a missing value is shared with none.
    select : str, optional
        A pandas query for the rows to score.
    min_class_size : int
        Rows a label must have after the other rules.
    r : "matches" or "class_size"
        See `evaluation.metrics.precision_at_r`.
    percentile : float
        Where enrichment puts its threshold.
    permutations : int
        Number of label permutations.
    permute_within : str, optional
        Labels are shuffled among rows with the same value of this column, such as the plate (missing ones are one
        group), so that what the groups alone explain stays in the baseline. None: among all rows.
    counts : str
        The column of cell counts.
    baselines : names among "permutation" and "cell_count"
    seed : int

    Raises
    ------
    InputError
        A column is absent, a feature is missing or infinite, `select` keeps nothing, or a setting is not one above.
    """
    exclude_columns = [exclude_same] if isinstance(exclude_same, str) else list(exclude_same)
    within = [] if permute_within is None else [permute_within]
    require_values(profiles, [labels], "labels")
    require_values(profiles, exclude_columns, "exclude_same")
    require_values(profiles, within, "permute_within")
    if similarity not in SIMILARITIES:
        raise InputError(f"similarity {similarity!r} is not known; choose one of {', '.join(SIMILARITIES)}")
    if unknown := [name for name in metrics if name not in METRICS]:
        raise InputError(f"metric {unknown[0]!r} is not known; choose among {', '.join(METRICS)}")
    if unknown := [name for name in baselines if name not in BASELINES]:
        raise InputError(f"baseline {unknown[0]!r} is not known; choose among {', '.join(BASELINES)}")
    names = feature_columns(profiles, features)
    if not names:
        raise InputError('features: no names were given; name some columns, or write "infer"')

    kept, selection = _select(profiles, labels, select, min_class_size)
    X = finite_features(kept, names)
    similar = SIMILARITIES[similarity](X)
    order = _order(X, kept, [labels, *exclude_columns, *within, *([counts] if counts in kept else [])])
    kept, similar = kept.iloc[order].reset_index(drop=True), similar.take(order)
    codes = pd.factorize(kept[labels])[0].astype(np.int64)
    exclude = np.stack([_group(kept[c], missing=-1) for c in exclude_columns], axis=1) if exclude_columns else None
    if exclude is None:
        exclude = np.empty((len(kept), 0), dtype=np.int64)

    notes = []
    shuffled = np.empty((0, len(kept)), dtype=np.int64)
    if "permutation" in baselines:
        groups = _group(kept[permute_within], missing=-1) if permute_within is not None else None
        if len(kept) and not can_move(codes, groups):
            where = f"each {permute_within} holds one label" if within else "there is one label"
            notes.append(f"permutation: {where}, so nothing can be shuffled")
        else:
            shuffled = permuted_labels(codes, groups, n=permutations, rng=np.random.default_rng(seed))
    extra = list(dict.fromkeys(metrics))
    measure = partial(_measure, r=r, percentile=percentile, metrics=extra, seed=seed)
    measured = measure(similar, codes, shuffled, exclude)
    cells: _Measured | None = None
    if "cell_count" in baselines:
        try:
            cells = measure(count_similarity(cell_counts(kept, counts)), codes, shuffled[:0], exclude)
        except InputError as error:
            notes.append(f"cell_count: {str(error).splitlines()[0]}")

    shared = {"labels": labels, "similarity": similarity}
    queries, odds = measured.queries, measured.enrichment
    has_match = queries.n_matches > 0
    no_match = "" if has_match.any() else _no_match(len(kept), labels, exclude_columns, min_class_size)
    rows = []
    for name in ("precision_at_r", "enrichment", *extra):
        value, reason, n, chance, setting = measured.value(name), no_match, int(has_match.sum()), np.nan, ""
        if name == "precision_at_r":
            setting, chance = f"R = {'matches' if r == 'matches' else 'class size'}", _chance(queries, r)
        elif name == "enrichment":
            setting, reason, n = f"percentile = {percentile:g}", odds.reason, odds.n_pairs
            chance = np.nan if reason else 1.0
        elif name == ROBUST:
            setting, n = f"percentiles {_PERCENTILES[0]:g} to {_PERCENTILES[-1]:g}", odds.n_pairs
            if not reason and not odds.above_other + odds.below_other:
                reason = f"all of the {n} pairs share a label"
            value, chance = (np.nan, np.nan) if reason else (value, 1.0)
        elif name == REPLICATING:
            setting, n, chance = "95th percentile of 1000 draws", measured.classes, np.nan if reason else 0.05
            if not reason and np.isnan(value):
                reason = "no class has a null: there are fewer classes than profiles in one"
                chance = np.nan
        else:
            metric = RANKED[name]
            setting, matches = metric.setting, queries.n_matches[has_match]
            n = int(matches.sum()) if metric.by_match else n
            expected = metric.chance(matches, queries.n_candidates[has_match])
            chance = float(np.average(expected, weights=matches if metric.by_match else None)) if n else np.nan
        lost = "" if cells is None or name != "enrichment" or reason else cells.enrichment.reason
        # permutations that come out infinite still count, so p compares with what `value` would be, not with its NaN
        null = measured.values[name]
        rows.append(
            {
                "score": name,
                **shared,
                "setting": setting,
                "value": value,
                "n": n,
                "reason": reason,
                "chance": chance,
                **_baselines(null, value, cells.value(name) if cells and not no_match else np.nan, lost, notes),
                "across": ", ".join(exclude_columns),
            }
        )
    per_query = _queries(kept, labels, queries)
    if measured.average_precision is not None:
        per_query["average_precision"] = measured.average_precision
    per_query = per_query.iloc[np.argsort(order)].reset_index(drop=True)
    return Scores(pd.DataFrame(rows), per_query, selection)


def _measure(
    similarity: Similarity,
    codes: Codes,
    shuffled: Codes,
    exclude: Codes,
    *,
    r: R,
    percentile: float,
    metrics: Sequence[str],
    seed: int,
) -> _Measured:
    labellings = np.concatenate([codes[None, :], shuffled])
    near = Neighbours(codes, shuffled, exclude, r=r)
    top = TopPairs(len(codes), exclude, percentile=percentile)
    ranked = [name for name in metrics if name in RANKED]
    standing = Standing(labellings, ranked)
    more = TopPairs(len(codes), exclude, percentile=_PERCENTILES[0])
    asked: list[Consumer] = [near, top, *([standing] if ranked else []), *([more] if ROBUST in metrics else [])]
    sweep(similarity, exclude, asked)
    values = {"precision_at_r": near.means(), "enrichment": top.odds_ratios(labellings)}
    values |= dict(zip(ranked, standing.means(), strict=True))
    if ROBUST in metrics:
        values[ROBUST] = more.robust_odds_ratios(labellings, _PERCENTILES)
    classes = 0
    if REPLICATING in metrics:
        table = percent_replicating(similarity, codes, exclude=exclude, rng=np.random.default_rng(seed))
        table = table[table["null_95"].notna()]
        classes = len(table)
        values[REPLICATING] = np.array([table["replicates"].mean() if classes else np.nan])
    ap = "mean_average_precision"
    average = standing.values[ranked.index(ap), 0] if ap in ranked else None
    return _Measured(near.per_query(), top.enrichment(codes), values, average, classes)


def _select(
    profiles: pd.DataFrame, labels: str, query: str | None, min_class_size: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    kept = profiles.reset_index(drop=True)
    steps = [("profiles given", 0, len(kept), int(kept[labels].nunique()))]

    def keep(rule: str, chosen: pd.Series) -> None:
        nonlocal kept
        before, kept = len(kept), kept.loc[chosen.to_numpy(dtype=bool)]
        steps.append((rule, before - len(kept), len(kept), int(kept[labels].nunique())))

    if query is not None:
        keep(f"select: {query}", select_rows(kept, query))
        if kept.empty and len(profiles):
            raise InputError(f"select {query!r} keeps none of {len(profiles)} profiles; check the values it names")
    keep(f"{labels} is known", kept[labels].notna())
    size = kept.groupby(labels, observed=True)[labels].transform("size") if len(kept) else kept[labels].notna()
    keep(f"{labels} has at least {min_class_size} profiles", size >= min_class_size)
    columns = ["rule", "rows_removed", "rows_left", "classes_left"]
    return kept.reset_index(drop=True), pd.DataFrame(steps, columns=columns)


def _order(X: Floats, table: pd.DataFrame, columns: Sequence[str]) -> Codes:
    """An order that the rows decide, whatever theirs in the table: permutations of labels are then the same ones.

    Rows that tie are equal in all that is scored.
    """
    words = [pd.factorize(table[name].astype(object).map(str), sort=True)[0] for name in columns]
    return np.lexsort([*words, digests(X)]).astype(np.int64)


def finite_features(table: pd.DataFrame, names: Sequence[str]) -> Floats:
    """The features as float64, shape (n, n_features), or an InputError that names the first bad one."""
    chosen = table[list(names)]
    if not chosen.columns.is_unique:
        raise InputError(
            f"features: {chosen.columns[chosen.columns.duplicated()][0]} is there more than once; leave one"
        )
    for name, dtype in chosen.dtypes.items():
        if not pd.api.types.is_numeric_dtype(dtype):
            raise InputError(f"{name}: expected a column of numbers, got {dtype}; leave it out of features")
    X = chosen.to_numpy(dtype=np.float64, na_value=np.nan)
    if len(bad := np.flatnonzero(~np.isfinite(X).all(axis=0))):
        rows = int((~np.isfinite(X[:, bad[0]])).sum())
        more = f" ({len(bad)} features have some)" if len(bad) > 1 else ""
        raise InputError(
            f"{names[bad[0]]}: {rows} of {len(X)} values are missing or infinite{more}; "
            "drop such features or rows first (feature_select)"
        )
    return X


def cell_counts(table: pd.DataFrame, name: str) -> Floats:
    """The column of cell counts, shape (n,), or an InputError that says why there are none."""
    if name not in table:
        raise InputError(f"the profiles have no column {name}")
    try:
        return pd.to_numeric(table[name]).to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name}: expected cell counts, got {table[name].dtype}") from error


def _group(column: pd.Series, *, missing: int) -> Codes:
    codes = pd.factorize(column)[0].astype(np.int64)
    codes[codes < 0] = missing
    return codes


def _chance(queries: PerQuery, r: R) -> float:
    """Mean precision when candidates come in random order: the share of matches among them."""
    has_match = queries.n_matches > 0
    if not has_match.any():
        return np.nan
    matches, candidates = queries.n_matches[has_match], queries.n_candidates[has_match]
    asked = matches + (r == "class_size")
    return float((np.minimum(asked, candidates) * (matches / candidates) / asked).mean())


def _baselines(
    values: Floats, value: float, cells: float, cells_reason: str, notes: Sequence[str]
) -> dict[str, object]:
    null = Null(values[1:])
    # an infinite value is NaN in the table, but permutations either reach it or do not
    compare = values[0] if np.isinf(values[0]) else value
    told = list(notes)
    if np.isfinite(compare) and null.note:
        told.append(f"permutation: {null.note}")
    if cells_reason:
        told.append(f"cell_count: {cells_reason}")
    defined = not np.isnan(compare)
    return {
        "permutation_mean": null.mean if defined else np.nan,
        "permutation_95": null.mark_95 if defined else np.nan,
        "p": null.p(compare),
        "cell_count": cells,
        "notes": "; ".join(told),
    }


def _no_match(rows: int, labels: str, exclude_columns: Sequence[str], min_class_size: int) -> str:
    if not rows:
        return f"no profile is left: no {labels} has at least {min_class_size} profiles"
    if exclude_columns:
        return f"no match is left: all profiles of one {labels} share {' or '.join(exclude_columns)}, which is excluded"
    return f"no match: each {labels} has one profile"


def _queries(kept: pd.DataFrame, labels: str, queries: PerQuery) -> pd.DataFrame:
    keys = [name for name in metadata_columns(kept) if name != labels]
    return kept[keys].assign(
        label=kept[labels].astype(str),
        precision_at_r=queries.precision,
        n_matches=queries.n_matches,
        n_candidates=queries.n_candidates,
        first_rank=queries.first_rank,
    )
