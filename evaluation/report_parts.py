"""What a report shows, as tables and arrays; `evaluation.figures_profiles` draws them too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.cluster.hierarchy import dendrogram, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from cytominer_tools.columns import METADATA, PLATE, WELL
from cytominer_tools.errors import InputError
from evaluation.comparison import enrichment_interval
from evaluation.curves import enrichment_curve, hit_curve, match_ranks, percent_replicating, precision_recall_curve
from evaluation.dose import DoseResponse, fit_dose_response
from evaluation.metrics import Codes, text_codes
from evaluation.plates import EdgeEffect, edge_effect, edge_wells
from evaluation.precision import average_precision, mean_average_precision
from evaluation.similarity import Floats, cosine, pearson
from evaluation.statistics import Interval, bootstrap
from evaluation.subsets import phenotype_strength

DEPTHS = (1, 2, 3, 5, 10, 15, 20, 30, 50)
PERCENTILES = (95.0, 96.0, 97.0, 97.5, 98.0, 98.5, 99.0, 99.5, 99.9)
LEAST_DOSES = 4  # concentrations for a curve of four parameters
MOST_FITS = 30  # which take up to a second each
MOST_CONTROLS = 200  # wells that treatments are told from; time grows with their square
_SHUFFLES = 5
_NULL = 10000  # draws behind a p of mean average precision


def treatment_names(table: pd.DataFrame, by: Sequence[str]) -> pd.Series:
    """One word for each row: the values of `by` with a comma between them; empty where the first is missing.

    >>> table = pd.DataFrame({"drug": ["a", None], "um": [1.5, 2.0]})
    >>> treatment_names(table, ["drug", "um"]).tolist()
    ['a, 1.5', '']
    """
    words = [
        table[name].map(
            lambda value: "" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)
        )
        for name in by
    ]
    joined = words[0].astype("object")
    for more in words[1:]:
        joined = joined.where(more == "", joined + ", " + more)
    return joined.where(words[0] != "", "")


@dataclass(frozen=True)
class Result:
    """Profiles of one model and recipe, their scores, and how they came about; all but `name` and `wells` may lack.

    Attributes
    ----------
    name : str
    wells : DataFrame, a row a well
        Normalized profiles (level 4): Metadata_Plate, Metadata_Well, other metadata, features.
    treatments : DataFrame, a row a treatment
        Consensus profiles (level 5).
    raw : DataFrame, a row a well
        The wells before they were normalized (level 3).
    scores, selection : DataFrame
        `evaluation.Scores.table` and `.selection`, with a first column `profiles` ("replicates" or "treatments").
    queries : mapping of "replicates" and "treatments" to DataFrame
        `evaluation.Scores.queries`.
    history : DataFrame, a row an epoch
        epoch, loss, accuracy, val_loss, val_accuracy, learning_rate.
    montages : mapping of treatment to array, uint8, shape (n, height, width, 3)
        Cells; a treatment is called as in `treatment_names`, and the controls "".
    cells : str
        What the colours of `montages` are.
    left_out : sequence of mappings
        reason, count, first (the first few that it is true of).
    provenance : mapping
        Settings and versions; values are text, numbers, lists or mappings.
    """

    name: str
    wells: pd.DataFrame
    treatments: pd.DataFrame | None = None
    raw: pd.DataFrame | None = None
    scores: pd.DataFrame | None = None
    selection: pd.DataFrame | None = None
    queries: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    history: pd.DataFrame | None = None
    montages: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    cells: str = ""
    left_out: Sequence[Mapping[str, Any]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    features: Sequence[str] | Literal["infer"] = "infer"


@dataclass(frozen=True)
class Wells:
    """Profiles of wells that have a direction, and what the report knows of each.

    Attributes
    ----------
    table : DataFrame, a row a well
    X : float array, shape (n, n_features), finite, no row of zeros
    treatment : array of str, shape (n,)
        Empty where it is not given.
    control : bool array, shape (n,)
    exclude : tuple of str
        Columns in which a match must differ.
    """

    table: pd.DataFrame
    X: Floats
    treatment: npt.NDArray[np.object_]
    control: npt.NDArray[np.bool_]
    exclude: tuple[str, ...] = ()


def usable(X: Floats) -> npt.NDArray[np.bool_]:
    """Which rows are finite and not zero throughout."""
    return np.asarray(np.isfinite(X).all(axis=1) & (X != 0).any(axis=1))


def score_interval(queries: pd.DataFrame, score: str = "precision_at_r", *, seed: int = 0) -> Interval:
    """A mean over `queries` (of `evaluation.score`) and its 95 % interval; whole classes are redrawn.

    `score` is precision_at_r or mean_average_precision; NaN for any other, and where the queries do not have it.
    """
    column = score.removeprefix("mean_")
    if score not in ("precision_at_r", "mean_average_precision") or column not in queries or queries.empty:
        return Interval(np.nan, np.nan, np.nan, 0)
    groups, _ = text_codes(queries["label"])
    return bootstrap(queries[column].to_numpy(float), groups=groups, rng=np.random.default_rng(seed))


@dataclass(frozen=True)
class Curves:
    """Precision and recall by depth, enrichment by percentile, hits by share of the list; see `evaluation.curves`."""

    precision: pd.DataFrame
    enrichment: pd.DataFrame
    hits: pd.DataFrame
    s20: float
    n: int  # profiles
    interval: tuple[float, float]  # of enrichment at the percentile 99.5; classes are redrawn


def score_curves(X: Floats, labels: Codes, exclude: Codes | None = None, *, seed: int = 0) -> Curves:
    """The curves behind the scores of the rows of `X`, by cosine.

    Raises
    ------
    InputError
        No two rows share a label, or there is one class.
    """
    near = cosine(X)
    ranks = match_ranks(near, labels, exclude=exclude)
    if not len(ranks.query):
        raise InputError("no two of the scored profiles share a label, so nothing can be found")
    if len(np.unique(labels[labels >= 0])) < 2:
        raise InputError("all scored profiles share one label, so every neighbour is a match")
    most = int(ranks.n_candidates.max())
    hits = hit_curve(ranks)
    return Curves(
        precision_recall_curve(ranks, [k for k in DEPTHS if k <= most]),
        enrichment_curve(near, labels, PERCENTILES, exclude=exclude),
        hits.curve,
        hits.s20,
        len(X),
        enrichment_interval(near, labels, exclude=exclude, seed=seed),
    )


def replicate_similarity(wells: Wells, *, seed: int = 0) -> tuple[pd.DataFrame, Floats]:
    """Median correlation of the wells of each treatment, and the same after shuffling which well had which treatment.

    Returns
    -------
    table : DataFrame, a row a treatment of two wells or more, without controls
        treatment, n, median (Pearson), null_95 (of as many wells of different treatments), replicates (bool).
    null : float array
        Medians after five shuffles.

    Raises
    ------
    InputError
        No treatment has two wells.
    """
    chosen = np.flatnonzero((wells.treatment != "") & ~wells.control)
    names, codes = _factorized(wells.treatment[chosen])
    if len(chosen) < 2 or np.bincount(codes, minlength=1).max() < 2:
        raise InputError("no treatment has two wells or more with a profile, so there are no replicates to compare")
    near, rng = pearson(wells.X[chosen]), np.random.default_rng(seed)
    outside = excluded(wells.table.iloc[chosen], wells.exclude)
    found = percent_replicating(near, codes, exclude=outside, rng=rng)
    if found.empty:
        raise InputError(f"no two wells of a treatment differ in {' and '.join(wells.exclude)}, as scores ask for")
    found.insert(0, "treatment", [names[code] for code in found["label"]])
    null = [
        percent_replicating(near, rng.permutation(codes), exclude=outside, draws=20, rng=rng)["median"]
        for _ in range(_SHUFFLES)
    ]
    return found.drop(columns="label"), np.concatenate(null).astype(np.float64)


def activity(wells: Wells, *, seed: int = 0) -> pd.DataFrame:
    """Whether the wells of each treatment find each other before they find controls: mean average precision and its p.

    Of more than 200 control wells 200 are drawn at random.

    Returns
    -------
    DataFrame, a row a treatment of two wells or more
        treatment, mean_average_precision, p_value, q_value (Benjamini and Hochberg), n.

    Raises
    ------
    InputError
        There are no controls, or no treatment has two wells.
    """
    if not wells.control.any():
        raise InputError("no control well has a profile, so that nothing says what no effect looks like")
    named = ((wells.treatment != "") & ~wells.control) | _drawn(wells.control, MOST_CONTROLS, seed)
    names, codes = _factorized(wells.treatment[named])
    control = wells.control[named]
    table = wells.table.loc[named, list(wells.exclude)].reset_index(drop=True)
    # a control is nobody's replicate here: it is only what others are told from
    table["treatment"] = np.where(control, len(names) + np.arange(len(control)), codes)
    table["control"] = control
    found = average_precision(
        table, wells.X[named], ["treatment"], list(wells.exclude), [], ["control"], progress_bar=False
    )
    result = mean_average_precision(found, ["treatment"], _NULL, 0.05, seed, progress_bar=False)
    result = result.assign(n=[len(rows) for rows in result["indices"]])
    result["treatment"] = [names[code] for code in result["treatment"]]
    renamed = result.rename(columns={"corrected_p_value": "q_value"})
    return renamed[["treatment", "mean_average_precision", "p_value", "q_value", "n"]]


def class_precision(X: Floats, labels: Sequence[Any], *, seed: int = 0) -> pd.DataFrame:
    """Whether the treatments of each class find each other before those of other classes.

    Returns
    -------
    DataFrame, a row a class of two or more
        label, mean_average_precision, p_value, q_value, n.
    """
    names, codes = _factorized(np.asarray(labels, dtype=object))
    table = pd.DataFrame({"label": codes})
    found = average_precision(table, X, ["label"], [], [], ["label"], progress_bar=False)
    result = mean_average_precision(found, ["label"], _NULL, 0.05, seed, progress_bar=False)
    result = result.assign(n=[len(rows) for rows in result["indices"]])
    result["label"] = [names[code] for code in result["label"]]
    renamed = result.rename(columns={"corrected_p_value": "q_value"})
    return renamed[["label", "mean_average_precision", "p_value", "q_value", "n"]]


@dataclass(frozen=True)
class Tree:
    """Average linkage of profiles by cosine distance.

    Attributes
    ----------
    order : int array, shape (n,)
        Rows as the tree shows them, neighbours alike.
    across, up : float arrays, shape (n - 1, 4)
        A bracket a merge: places among the ordered rows (0 is the first) and heights (cosine distance).
    """

    order: Codes
    across: Floats
    up: Floats


def similarity_tree(near: Floats) -> Tree:
    """The tree of a matrix of cosines, shape (n, n), n >= 2."""
    away = np.maximum(1 - near.astype(np.float64), 0)
    np.fill_diagonal(away, 0)
    flat = squareform(away, checks=False)
    joined = optimal_leaf_ordering(linkage(flat, "average"), flat)
    drawn = dendrogram(joined, no_plot=True, color_threshold=0)
    across, up = np.array(drawn["icoord"]), np.array(drawn["dcoord"])
    return Tree(np.array(drawn["leaves"], dtype=np.int64), (across - 5) / 10, up)


@dataclass(frozen=True)
class Dose:
    """The responses of one compound and the curve through them, None where none was fitted."""

    compound: str
    concentrations: Floats
    responses: Floats
    fit: DoseResponse | None


def dose_responses(
    wells: Wells, compound: npt.NDArray[np.object_], concentration: Floats, *, most_fits: int = MOST_FITS
) -> tuple[list[Dose], Floats]:
    """Distance from the controls against concentration, for every compound with four concentrations or more.

    Parameters
    ----------
    wells : Wells
    compound : array of str, shape (n,)
    concentration : float array, shape (n,)
        Not positive or NaN: not a dose.
    most_fits : int
        Curves are fitted to so many compounds, those with the largest response at any concentration first.

    Returns
    -------
    doses : list of Dose
        The lowest EC50 first, then those without one, then those without a curve, each by the largest response.
    controls : float array
        The responses of the controls; a curve that spans less than three of their robust standard deviations is flat.

    Raises
    ------
    InputError
        No controls, or no compound with enough concentrations.
    """
    if not wells.control.any():
        raise InputError("no control well has a profile, so that there is no distance from them")
    dosed = ~wells.control & (compound != "") & np.isfinite(concentration) & (concentration > 0)
    strength = phenotype_strength(wells.X, wells.X[wells.control])
    table = pd.DataFrame({"compound": compound, "c": concentration, "y": strength})[dosed]
    doses = table.groupby("compound")["c"].nunique()
    enough = doses[doses >= LEAST_DOSES].index
    if not len(enough):
        raise InputError(
            f"a curve needs at least {LEAST_DOSES} concentrations of a compound, the most that one has here is "
            f"{int(doses.max()) if len(doses) else 0}"
        )
    table = table[table["compound"].isin(enough)]
    largest = table.groupby(["compound", "c"])["y"].median().groupby("compound").max()
    rest = strength[wells.control]
    spread = 1.4826 * float(np.median(np.abs(rest - np.median(rest))))
    found = []
    for place, name in enumerate(largest.sort_values(ascending=False, kind="stable").index):
        c, y = (table.loc[table["compound"] == name, key].to_numpy(np.float64) for key in ("c", "y"))
        fit = fit_dose_response(c, y, bounds=None, least_span=max(3 * spread, 1e-9)) if place < most_fits else None
        found.append(Dose(str(name), c, y, fit))
    found.sort(key=lambda one: (one.fit is None, np.inf if one.fit is None or np.isnan(one.fit.ec50) else one.fit.ec50))
    return found, rest


@dataclass(frozen=True)
class EdgeTests:
    """`edge_effect` of some columns."""

    among: str  # which wells were compared, in words
    found: dict[str, EdgeEffect]


def edge_tests(table: pd.DataFrame, control: npt.NDArray[np.bool_], values: Mapping[str, Floats]) -> EdgeTests:
    """`edge_effect` of each of `values` among the controls; among all wells where no plate has controls on both sides.

    Parameters
    ----------
    table : DataFrame, a row a well, with Metadata_Plate and Metadata_Well
    control : bool array, shape (n,)
    values : mapping of names to float arrays, shape (n,)
    """
    edge = edge_wells(table)
    plates = table[PLATE].to_numpy(dtype=object)
    both = set(plates[control & edge]) & set(plates[control & ~edge])
    rows = control if both else np.ones(len(table), dtype=bool)
    found = {name: edge_effect(column[rows], plates[rows], edge[rows]) for name, column in values.items()}
    return EdgeTests("control wells" if both else "all wells, whose treatments may differ by place", found)


def plain_columns(table: pd.DataFrame, but: Sequence[str] = ()) -> list[str]:
    """The metadata columns that a figure can colour by: all but plate, well and `but`, with a value somewhere."""
    hidden = {PLATE, WELL, *but}
    return [
        str(name)
        for name in table.columns
        if str(name).startswith(METADATA) and str(name) not in hidden and table[name].notna().any()
    ]


def excluded(table: pd.DataFrame, columns: Sequence[str]) -> Codes | None:
    """Codes of `columns`, shape (n, n_columns), a missing value shared with none; None without columns."""
    if not columns:
        return None
    return np.stack([pd.factorize(table[name])[0] for name in columns], axis=1).astype(np.int64)


def _drawn(chosen: npt.NDArray[np.bool_], most: int, seed: int) -> npt.NDArray[np.bool_]:
    """At most `most` of the rows that are chosen."""
    rows = np.flatnonzero(chosen)
    kept = np.zeros(len(chosen), dtype=bool)
    kept[np.random.default_rng(seed).permutation(rows)[:most]] = True
    return kept


def _factorized(words: npt.NDArray[np.object_]) -> tuple[list[str], Codes]:
    codes, names = pd.factorize(pd.Series(words, dtype="object"), sort=True)
    return [str(name) for name in names], codes.astype(np.int64)
