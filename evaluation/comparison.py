"""Several runs on the same profiles: scores with intervals, paired tests over the same queries, overlaid curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from cytominer_tools.columns import require_columns, require_values
from cytominer_tools.errors import InputError
from cytominer_tools.ledger import features_of
from evaluation.curves import MatchRanks, enrichment_curve, hit_curve, match_ranks, precision_recall_curve
from evaluation.figures import GREY, INK, STYLE
from evaluation.metrics import Codes, Neighbours, TopPairs, sweep, text_codes
from evaluation.scores import SIMILARITIES, finite_features
from evaluation.similarity import Floats, Similarity
from evaluation.standing import average_precisions
from evaluation.statistics import wilcoxon

SCORES = ("enrichment", "precision_at_r", "mean_average_precision")
PAIRS = ["score", "run", "against", "difference", "low", "high", "p", "test"]
_TITLES = {
    "enrichment": "Enrichment (odds ratio)",
    "precision_at_r": "Precision at R",
    "mean_average_precision": "Mean average precision",
}
_PERCENTILES = (95.0, 96.0, 97.0, 97.5, 98.0, 98.5, 99.0, 99.5)
_DEPTHS = (1, 2, 3, 5, 10, 20, 50)
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")  # Okabe & Ito


@dataclass(frozen=True)
class Comparison:
    """Runs that were scored on the same profiles.

    Attributes
    ----------
    table : DataFrame, a row a run
        run, labels, similarity, n (queries), n_classes, features, and for enrichment, precision_at_r and
        mean_average_precision the value and the ends of its interval (_low, _high); reason (why enrichment is NaN).
    pairs : DataFrame, a row a score and two runs
        score, run, against, difference (of enrichment the ratio), low, high, p, test.
    curves : dict, run -> name -> DataFrame
        "enrichment" (see `enrichment_curve`), "precision_recall" and "hits" (share, excess).
    selection : DataFrame, a row a rule
        rule, rows_left.
    queries : DataFrame, a row a query
        The key, label, and for each run its precision_at_r and average_precision.
    """

    table: pd.DataFrame
    pairs: pd.DataFrame
    curves: dict[str, dict[str, pd.DataFrame]]
    selection: pd.DataFrame
    queries: pd.DataFrame


@dataclass(frozen=True)
class _Scored:
    precision: Floats  # a query each, NaN without a match
    average: Floats
    top: npt.NDArray[np.int64]  # classes of the pairs above the percentile, shape (n_pairs, 2)
    odds_ratio: float
    reason: str
    ranks: MatchRanks
    similarity: Similarity


def compare_runs(
    runs: Mapping[str, pd.DataFrame],
    *,
    key: Sequence[str],
    labels: str,
    exclude_same: Sequence[str] = (),
    similarity: str = "cosine",
    percentile: float = 99.5,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Score each run on the profiles that all of them have, and compare the runs two by two.

    Intervals and the test of enrichment redraw whole classes, the same ones for every run, since profiles of a class
    depend on each other; the threshold of enrichment stays where it is. Precision and average precision are tested by
    Wilcoxon's signed ranks over queries, which takes these as independent, so its p is too small for large classes.

    Parameters
    ----------
    runs : DataFrames by name, a row a profile
        Each with the columns of `key`, of which no two rows are equal, and its own features: the other columns
        of numbers without ``Metadata_``. The label is that of the
        first run that has one for the key.
    key : columns that name a profile, such as the compound and its concentration
    labels : column whose equal values should lie close together
    exclude_same : columns
        Pairs that share one of them are not compared; those of the first run count.
    similarity : "cosine" or "pearson"
    percentile : float
        Of enrichment.
    draws : int
        Of classes.
    level : float
        Of the intervals, such as 0.95.
    seed : int

    Raises
    ------
    InputError
        No run, a column that is absent, a key twice, no common profile of a class of two or more, or a feature that is
        missing or infinite.

    References
    ----------
    Wilcoxon: `evaluation.statistics.wilcoxon`. Resampling of whole groups: Davison & Hinkley 1997, section 3.8.
    """
    if not runs:
        raise InputError("there is nothing to compare; name a study or a file of profiles")
    if similarity not in SIMILARITIES:
        raise InputError(f"similarity {similarity!r} is not known; choose one of {', '.join(SIMILARITIES)}")
    if not 0 < level < 1 or draws < 1:
        raise InputError(f"level={level}, draws={draws}: expected a share such as 0.95, and 1 or more")
    tables, meta, selection = _aligned(runs, list(key), labels, list(exclude_same))
    codes, names = text_codes(meta[labels])
    exclude = np.empty((len(meta), 0), dtype=np.int64)
    if exclude_same:
        exclude = np.stack([pd.factorize(meta[name])[0].astype(np.int64) for name in exclude_same], axis=1)
    scored = {
        run: _score(SIMILARITIES[similarity](X), codes, exclude, percentile=percentile) for run, X in tables.items()
    }
    weights, candidates = _weights(len(names), draws, seed), _class_pairs(codes, exclude, len(names))
    drawn = {run: _drawn(one, codes, candidates, weights) for run, one in scored.items()}
    rows = []
    for run, one in scored.items():
        row: dict[str, Any] = {"run": run, "labels": labels, "similarity": similarity}
        row |= {"n": int((~np.isnan(one.precision)).sum()), "n_classes": len(names), "features": tables[run].shape[1]}
        values = dict(zip(SCORES, (one.odds_ratio, _mean(one.precision), _mean(one.average)), strict=True))
        for score, value in values.items():
            low, high = _ends(drawn[run][score], level) if np.isfinite(value) else (np.nan, np.nan)
            low, high = min(low, value), max(high, value)  # draws count half a pair more than the value
            row |= {score: value, f"{score}_low": low, f"{score}_high": high}
        rows.append(row | {"reason": one.reason})
    pairs = [
        row
        for a, b in combinations(scored, 2)
        for row in _paired(b, a, scored[b], scored[a], drawn[b], drawn[a], level)
    ]
    queries = meta[list(dict.fromkeys([*key, labels]))].copy()
    for run, one in scored.items():
        queries[f"{run} precision_at_r"], queries[f"{run} average_precision"] = one.precision, one.average
    return Comparison(
        pd.DataFrame(rows),
        pd.DataFrame(pairs, columns=PAIRS),
        {run: _curves(one, codes, exclude) for run, one in scored.items()},
        selection,
        queries,
    )


def _aligned(
    runs: Mapping[str, pd.DataFrame], key: list[str], labels: str, exclude: list[str]
) -> tuple[dict[str, Floats], pd.DataFrame, pd.DataFrame]:
    """The features of each run in the order of one table of keys and labels, and what led to it."""
    keyed: dict[str, pd.DataFrame] = {}
    known: dict[str, object] = {}
    for run, table in runs.items():
        require_values(table, [*key, *([labels] if labels in table else [])], run)
        index = pd.Index(_texts(table, key))
        if twice := index[index.duplicated()].unique().tolist():
            what = twice[0].replace("\x1f", " ")
            raise InputError(f"{run}: {len(twice)} profiles stand in it more than once, first {what}")
        keyed[run] = table.set_axis(index, axis=0)
        if labels in table:
            for name, value in keyed[run][labels].dropna().items():
                known.setdefault(str(name), value)
    if not known:
        raise InputError(f"{labels}: no run has this column, or it is empty")
    first = next(iter(keyed.values()))
    require_columns(first, exclude, "exclude_same")
    steps = [(f"profiles of {run}", len(table)) for run, table in keyed.items()]
    common = [name for name in first.index if all(name in table.index for table in keyed.values())]
    steps.append(("in all runs", len(common)))
    common = [name for name in common if name in known]
    steps.append((f"{labels} is known", len(common)))
    tables = {}
    directed = np.ones(len(common), dtype=bool)
    for run, table in keyed.items():
        part = table.loc[common]
        names = _numbers(part, [*key, labels, *exclude])
        if not names:
            raise InputError(f"{run}: it has no features, that is columns of numbers without Metadata_")
        tables[run] = finite_features(part, names) if common else np.empty((0, 1))
        directed &= np.ptp(tables[run], axis=1) > 0 if len(common) else True
    steps.append(("no profile of zeros in any run", int(directed.sum())))
    label = pd.Series([known[name] for name in common], dtype=object)
    size = label[directed].map(label[directed].value_counts())
    kept = np.flatnonzero(directed)[(size > 1).to_numpy(dtype=bool)]
    steps.append((f"{labels} has at least 2 profiles", len(kept)))
    if not len(kept):
        told = "; ".join(f"{rule}: {rows}" for rule, rows in steps)
        raise InputError(f"nothing is left to compare ({told}); are the profiles of the same {' and '.join(key)}?")
    meta = first.loc[[common[at] for at in kept], [*key, *[name for name in exclude if name not in key]]]
    meta = meta.reset_index(drop=True)
    meta[labels] = label.iloc[kept].reset_index(drop=True)
    return {run: X[kept] for run, X in tables.items()}, meta, pd.DataFrame(steps, columns=["rule", "rows_left"])


def _numbers(table: pd.DataFrame, known: list[str]) -> list[str]:
    """The features of a table: its columns of numbers without ``Metadata_`` that have no other role."""
    features = set(features_of(table))
    return [
        name
        for name, dtype in zip(table.columns, table.dtypes, strict=True)
        if name in features and name not in known and pd.api.types.is_numeric_dtype(dtype)
    ]


def _texts(table: pd.DataFrame, key: list[str]) -> list[str]:
    """The key of each row as text, so that 1.0 of a CSV is 1 of a Parquet file."""
    columns = []
    for name in key:
        values = table[name]
        if pd.api.types.is_float_dtype(values):
            columns.append([f"{value:.12g}" for value in values])
        else:
            columns.append(["" if pd.isna(value) else str(value) for value in values])
    return ["\x1f".join(row) for row in zip(*columns, strict=True)]


def _score(similarity: Similarity, codes: Codes, exclude: Codes, *, percentile: float) -> _Scored:
    near = Neighbours(codes, np.empty((0, len(codes)), dtype=np.int64), exclude)
    top = TopPairs(len(codes), exclude, percentile=percentile)
    sweep(similarity, exclude, [near, top])
    found = top.enrichment(codes)
    _, i, j = top.pairs()
    ranks = match_ranks(similarity, codes, exclude=exclude)
    classes = np.stack([codes[i], codes[j]], axis=1)
    precision = near.per_query().precision
    return _Scored(precision, average_precisions(ranks), classes, found.odds_ratio, found.reason, ranks, similarity)


def enrichment_interval(
    similarity: Similarity,
    labels: Codes,
    *,
    exclude: Codes | None = None,
    percentile: float = 99.5,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of the enrichment of one run, as `compare_runs` makes it: whole classes are redrawn.

    Parameters
    ----------
    similarity : Similarity
    labels : int array, shape (n,), from 0
    exclude : int array, shape (n, n_columns), optional
        Pairs that share a value of a column are not compared; negative: shared with none.
    """
    apart = np.empty((len(labels), 0), dtype=np.int64) if exclude is None else exclude
    top = TopPairs(len(labels), apart, percentile=percentile)
    sweep(similarity, apart, [top])
    _, i, j = top.pairs()
    classes = int(labels.max()) + 1
    candidates = _class_pairs(labels, apart, classes)
    pairs = np.stack([labels[i], labels[j]], axis=1)
    return _ends(_drawn_odds_ratios(pairs, candidates, _weights(classes, draws, seed)), level)


def _weights(classes: int, draws: int, seed: int) -> Floats:
    """How often each class is drawn, shape (draws, classes)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(classes, np.full(classes, 1 / classes), size=draws).astype(np.float64)


def _class_pairs(codes: Codes, exclude: Codes, classes: int) -> Floats:
    """Candidate pairs of rows, each counted as (a, b) and (b, a), by their two classes: shape (classes, classes)."""
    kept = np.zeros((classes, classes))
    for i in range(len(codes)):
        alike = (exclude[i] == exclude) & (exclude[i] >= 0)
        others = ~alike.any(axis=1)
        others[i] = False
        kept[codes[i]] += np.bincount(codes[others], minlength=classes)
    return kept


def _drawn(one: _Scored, codes: Codes, candidates: Floats, weights: Floats) -> dict[str, Floats]:
    """Each score for each draw of classes, shape (n_draws,)."""
    classes = len(candidates)
    found = {}
    for name, values in (("precision_at_r", one.precision), ("mean_average_precision", one.average)):
        known = ~np.isnan(values)
        sums = np.bincount(codes[known], values[known], minlength=classes)
        counts = np.bincount(codes[known], minlength=classes)
        with np.errstate(invalid="ignore"):
            found[name] = (weights @ sums) / (weights @ counts)
    found["enrichment"] = _drawn_odds_ratios(one.top, candidates, weights)
    return found


def _drawn_odds_ratios(top: npt.NDArray[np.int64], candidates: Floats, weights: Floats) -> Floats:
    """Enrichment of each draw of classes; `top` are the classes of the pairs on top, shape (n_pairs, 2)."""
    counts = np.zeros(candidates.shape)
    np.add.at(counts, (top[:, 0], top[:, 1]), 1.0)
    a, b = _weighted(counts + counts.T, weights)
    matches, others = _weighted(candidates, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        # half a pair, so that a draw without other pairs on top is large and not infinite
        return np.asarray((a + 0.5) * (others - b + 0.5) / ((b + 0.5) * (matches - a + 0.5)))


def _weighted(pairs: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Pairs within a class and between classes, of each draw: a class drawn twice is two classes."""
    own = np.diagonal(pairs)
    between = ((weights @ (pairs - np.diag(own))) * weights).sum(axis=1) / 2
    return (weights @ own) / 2, between


def _mean(values: Floats) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else np.nan


def _ends(values: Floats, level: float) -> tuple[float, float]:
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _paired(
    run: str,
    against: str,
    one: _Scored,
    other: _Scored,
    draws: dict[str, Floats],
    against_draws: dict[str, Floats],
    level: float,
) -> list[dict[str, Any]]:
    rows = []
    for score in SCORES:
        row: dict[str, Any] = {"score": score, "run": run, "against": against}
        if score == "enrichment":
            change = draws[score] / against_draws[score]
            row |= {"difference": _ratio(one.odds_ratio, other.odds_ratio), "test": "ratio, classes redrawn"}
            defined = np.isfinite(row["difference"])
            # the share of draws on the other side of 1, both ways
            tail = 1 + min(int((change <= 1).sum()), int((change >= 1).sum()))
            p = min(1.0, 2 * tail / (1 + len(change)))
        else:
            values, others = (
                (one.precision, other.precision) if score == "precision_at_r" else (one.average, other.average)
            )
            change = draws[score] - against_draws[score]
            row |= {"difference": _mean(values) - _mean(others), "test": "Wilcoxon, two-sided"}
            defined = np.isfinite(row["difference"])
            p = wilcoxon(values, others, alternative="two-sided").p
        low, high = _ends(change, level) if defined else (np.nan, np.nan)
        low, high = min(low, row["difference"]), max(high, row["difference"])  # as of one run
        rows.append(row | {"low": low, "high": high, "p": p if defined else np.nan})
    return rows


def _ratio(one: float, other: float) -> float:
    return one / other if other > 0 else np.nan


def _curves(one: _Scored, codes: Codes, exclude: Codes) -> dict[str, pd.DataFrame]:
    return {
        "enrichment": enrichment_curve(one.similarity, codes, _PERCENTILES, exclude=exclude),
        "precision_recall": precision_recall_curve(one.ranks, [k for k in _DEPTHS if k < max(len(codes), 2)]),
        "hits": hit_curve(one.ranks).curve,
    }


def comparison_figure(comparison: Comparison) -> Figure:
    """The runs of a comparison: each score with its interval, and below the curves of all runs.

    Raises
    ------
    InputError
        There is no run.
    """
    table = comparison.table
    if table.empty:
        raise InputError("the comparison has no runs")
    runs = table["run"].tolist()
    colours = list(_COLOURS[: len(runs)])
    if len(runs) > len(_COLOURS):
        colours = [mpl.colors.to_hex(mpl.colormaps["viridis"](x)) for x in np.linspace(0, 0.92, len(runs))]
    lines = np.arange(len(runs))
    with mpl.rc_context(STYLE):
        rows = 0.7 + 0.3 * len(runs)
        figure = Figure(figsize=(10, rows + 3.1), layout="constrained", facecolor="white")
        axes = figure.subplots(2, 3, gridspec_kw={"height_ratios": [rows, 3.0]})
        for axis, score in zip(axes[0], SCORES, strict=True):
            values = table[score].to_numpy(dtype=float)
            low, high = (table[f"{score}_{end}"].to_numpy(dtype=float) for end in ("low", "high"))
            axis.hlines(lines, low, high, color=colours, linewidth=2)
            axis.scatter(values, lines, c=colours, s=36, zorder=3)
            axis.set_title(_TITLES[score], loc="left", fontsize=9, fontweight="bold")
            axis.set_ylim(len(runs) - 0.5, -0.5)
            axis.set_yticks(lines, runs if score == SCORES[0] else [""] * len(runs), fontsize=8)
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="x", color="#e4e4e4", linewidth=0.7)
            axis.set_axisbelow(True)
            if score == "enrichment" and (values > 0).any():
                axis.set_xscale("log")
            if not np.isfinite(values).any():
                reason = str(table["reason"].iloc[0]) if score == "enrichment" else ""
                axis.text(
                    0.02,
                    0.5,
                    "undefined" + (":\n" + "\n".join(wrap(reason, 40)) if reason else ""),
                    transform=axis.transAxes,
                    va="center",
                    fontsize=7,
                    style="italic",
                    color=GREY,
                )
                axis.set_xticks([])
        drawn = (
            ("enrichment", "percentile", "robust", "Enrichment", "percentile of similarity", "odds ratio"),
            ("precision_recall", "k", "precision", "Precision", "k nearest profiles", "mean over profiles"),
            ("hits", "share", "excess", "Hits beyond chance", "share of the list of neighbours", "share of matches"),
        )
        for axis, (name, x, y, title, xlabel, ylabel) in zip(axes[1], drawn, strict=True):
            for run, colour in zip(runs, colours, strict=True):
                curve = comparison.curves[run][name]
                axis.plot(curve[x], curve[y], color=colour, label=run, linewidth=1.4)
            if name == "precision_recall":
                curve = comparison.curves[runs[0]][name]
                axis.plot(curve[x], curve["chance"], color=INK, linewidth=0.8, linestyle=":", label="chance")
                axis.set_xscale("log")
                axis.set_xticks(curve[x], curve[x].astype(str))
                axis.minorticks_off()
            if name == "enrichment":
                axis.set_yscale("log")
            axis.set_title(title, loc="left", fontsize=9, fontweight="bold")
            axis.set(xlabel=xlabel, ylabel=ylabel)
        handles, names = axes[1][1].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False, fontsize=8)
    return figure
