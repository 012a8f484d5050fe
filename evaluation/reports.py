"""Profiles and their scores as one HTML page that works without a network; see `report`."""

import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytominer_tools.columns import PLATE, WELL, feature_columns, require_columns
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path
from cytominer_tools.queries import select
from evaluation.comparison import SCORES, Comparison
from evaluation.embedding import neighbour_map, principal_components
from evaluation.figures import natural
from evaluation.metrics import text_codes
from evaluation.plates import EdgeEffect, plate_format, require_places, well_places
from evaluation.report_page import body_of, page_of, short
from evaluation.report_parts import (
    MOST_FITS,
    Result,
    Wells,
    activity,
    class_precision,
    dose_responses,
    edge_tests,
    excluded,
    plain_columns,
    replicate_similarity,
    score_curves,
    similarity_tree,
    treatment_names,
    usable,
)
from evaluation.similarity import Floats, cosine
from evaluation.subsets import phenotype_strength

MOST_TREATMENTS = 700  # in all matrices of similarities, which grow with their square
LARGEST = 10_000_000  # bytes of the page; figures of further profiles are left out before it is larger
_SPACE = 2_500_000  # bytes for plate heatmaps of features and for montages, of all profiles together
_NEAREST = 5  # treatments that are named for each
# what is left out first, with what the page calls it
_PARTS = {
    "features": "plate heatmaps of features",
    "maps": "maps",
    "similarity": "similarity",
    "doses": "dose response",
    "montages": "cells",
    "replicates": "replicates",
    "activity": "activity",
    "classes": "activity of classes",
    "curves": "score curves",
}
_MISSING = 65535


@dataclass(frozen=True)
class Columns:
    """What the columns of profiles mean; `by` names a treatment, `controls` is a pandas query."""

    by: tuple[str, ...]
    concentration: str | None = None
    moa: str | None = None
    batch: str | None = None
    controls: str | None = None
    exclude_same: tuple[str, ...] = ()


def report(
    path: str | Path,
    results: Result | Sequence[Result],
    *,
    by: Sequence[str],
    concentration: str | None = None,
    moa: str | None = None,
    batch: str | None = None,
    controls: str | None = None,
    exclude_same: Sequence[str] = (),
    title: str = "Profiles",
    quality: pd.DataFrame | None = None,
    comparison: Comparison | None = None,
    settings: str = "",
    warnings: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Write one HTML page with all figures, to be opened in any browser, without a network and without this package.

    What cannot be drawn says why in a sentence. Before the page passes 10 MB, figures are left out, those of the last
    results first; it says which, at its top. The same arguments give the same bytes, on one machine and with the
    same versions. Figures are drawn by plotly.js, which stands in the page: the extra `report`.

    Parameters
    ----------
    path : str or Path
    results : Result, or several to choose from in the page
    by : list of str
        The columns whose values together name one treatment.
    concentration, moa, batch : str, optional
        Columns.
    controls : str, optional
        A pandas query for the control wells.
    exclude_same : list of str
        Wells that share one of these columns are no replicates, as in the scores.
    title : str
    quality : DataFrame, optional
        A row a plate, shown as it is.
    comparison : Comparison, optional
        What `evaluation.compare_runs` returns; its table may have more columns.
    settings : str
        Shown as it is.
    warnings : list of str
        Sentences at the top of the page, such as that scores are older than the profiles beside them.
    seed : int
        Of p, intervals and UMAP.

    Raises
    ------
    InputError
        plotly is not installed, there are no results or no wells, or a column is absent.
    """
    given = [results] if isinstance(results, Result) else list(results)
    if not given:
        raise InputError("results: expected at least one Result")
    columns = Columns(tuple(by), concentration, moa, batch, controls, tuple(exclude_same))
    if not columns.by:
        raise InputError("by: name at least one column that says what a treatment is")
    space = _SPACE // len(given)
    most = int(MOST_TREATMENTS / len(given) ** 0.5)
    sets = [_payload(_subject(result, columns, seed, most), space) for result in given]
    about = {"title": title, "columns": _said(columns), "runs": _runs(comparison)}
    plotly = _plotly()
    body = body_of(given, sets, quality=quality, comparison=comparison, settings=settings, seed=seed)

    def page(data: str, words: Sequence[str]) -> str:
        return page_of(title, body, data, plotly, warnings=[*warnings, *words], several=len(given) > 1)

    rest = len(page("", ["x" * 300] * (1 + len(sets))).encode())  # of which a sentence on what is left out
    whole = page(*_fitted(about, sets, LARGEST - rest))
    with atomic_path(Path(path)) as part:
        part.write_text(whole, "utf-8", newline="\n")
    return Path(path)


def _fitted(about: dict[str, Any], sets: list[dict[str, Any]], room: int) -> tuple[str, list[str]]:
    """The data of the page as text of at most `room` bytes, and in words what was left out for that."""
    left: dict[str, list[str]] = {}
    text = _data(about, sets)
    for one in reversed(sets):
        for part, called in _PARTS.items():
            if len(text) <= room:
                break
            if _without(one, part):
                left.setdefault(one["name"], []).append(called)
                text = _data(about, sets)
    words = [f"{name}: {', '.join(parts)}" for name, parts in left.items()]
    if words:
        limit = f"{LARGEST / 1e6:g} MB"
        words = [f"Left out to keep this page below {limit}: {'; '.join(words)}. A report of fewer profiles has them."]
        if len(text) > room:
            words.append(f"Even so it is larger than {limit}, as there are very many wells.")
    return text, words


def _without(one: dict[str, Any], part: str) -> bool:
    """Leave a part out; whether it was there."""
    why = {"why": f"it is left out, to keep this page below {LARGEST / 1e6:g} MB"}
    if part == "features":
        columns, (kept, known) = one["wells"]["columns"], one["wells"]["features"]
        one["wells"]["columns"] = [column for column in columns if "feature" not in column]
        one["wells"]["features"] = [0, known]
        return bool(kept)
    if part in ("maps", "curves"):
        there = any("why" not in found for found in one[part].values())
        one[part] = dict.fromkeys(one[part], why)
        return there
    there = "why" not in one[part]
    if there:
        one[part] = why
    return there


class _Packed(str):
    """Numbers or a picture in base64, which the page holds once however often it is shown."""

    __slots__ = ()


def _data(about: dict[str, Any], sets: list[dict[str, Any]]) -> str:
    """What report.js reads, as JSON: numbers and pictures stand in `texts`, and lists of treatments in `treatments`,
    once for all sets that share them.
    """
    texts: dict[str, int] = {}
    treatments: list[dict[str, Any]] = []

    def shared(value: Any) -> Any:
        if isinstance(value, _Packed):
            return texts.setdefault(str(value), len(texts))
        if isinstance(value, dict):
            return {name: shared(one) for name, one in value.items()}
        return [shared(one) for one in value] if isinstance(value, list) else value

    made = []
    for one in sets:
        if one["treatments"] not in treatments:
            treatments.append(one["treatments"])
        made.append(shared(one) | {"treatments": treatments.index(one["treatments"])})
    whole = {**about, "sets": made, "treatments": treatments, "texts": list(texts)}
    text = json.dumps(whole, allow_nan=False, separators=(",", ":"))
    # inside a script element only these could end it
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _runs(comparison: Comparison | None) -> dict[str, Any] | None:
    """The scores of a comparison and the curves behind them, a list a run."""
    if comparison is None:
        return None
    table, curves = comparison.table, comparison.curves
    drawn = {
        "enrichment": ["percentile", "robust"],
        "precision_recall": ["k", "precision", "chance"],
        "hits": ["share", "excess"],
    }
    ends = [(score, [score, f"{score}_low", f"{score}_high"]) for score in SCORES]
    return {
        "names": table["run"].tolist(),
        "scores": {score: [_numbers(pd.to_numeric(table[name])) for name in names] for score, names in ends},
        "curves": {
            name: [_columns(curves[run][name], columns) for run in table["run"]] for name, columns in drawn.items()
        },
    }


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise InputError("report: install the extra report, `pip install 'deepprofile[report]'` (plotly)") from error
    return str(get_plotlyjs())


def _said(columns: Columns) -> dict[str, Any]:
    names = {name: short(getattr(columns, name)) for name in ("concentration", "moa", "batch")}
    return names | {"treatment": ", ".join(short(name) for name in columns.by)}


# --- what the page draws -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Subject:
    """A result as the parts of the page read it."""

    result: Result
    columns: Columns
    seed: int
    table: pd.DataFrame  # wells, numbered from 0
    features: list[str]
    treatment: npt.NDArray[np.object_]  # of each row of `table`; empty where it is not given
    control: npt.NDArray[np.bool_]
    good: npt.NDArray[np.bool_]  # rows that `wells` has
    wells: Wells
    levels: list[str]  # the treatments, in their order in the page
    most: int  # of them in the matrix of similarities

    @property
    def at(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.levels)}

    def of(self, table: pd.DataFrame) -> list[str]:
        """The features that `table` has too; a recipe may drop some at each level."""
        return [name for name in self.features if name in table]


def _subject(result: Result, columns: Columns, seed: int, most: int) -> _Subject:
    place = f"wells of {result.name}"
    named = [name for name in (columns.concentration, columns.moa, columns.batch, *columns.exclude_same) if name]
    require_places(result.wells, place)
    require_columns(result.wells, [*columns.by, *named], place)
    if result.wells.empty:
        raise InputError(f"{place}: there are no rows; look at the stages before")
    table = result.wells.reset_index(drop=True)
    features = feature_columns(table, result.features)
    control = np.zeros(len(table), dtype=bool)
    if columns.controls is not None:
        control = select(table, columns.controls).to_numpy(dtype=bool)
    treatment = treatment_names(table, columns.by).to_numpy(dtype=object)
    X = table[features].to_numpy(dtype=np.float64, na_value=np.nan)
    good = usable(X)
    kept = table[good].reset_index(drop=True)
    wells = Wells(kept, X[good], treatment[good], control[good], columns.exclude_same)
    levels = sorted(set(treatment[treatment != ""]), key=natural)
    return _Subject(result, columns, seed, table, features, treatment, control, good, wells, levels, most)


def _payload(one: _Subject, space: int) -> dict[str, Any]:
    return {
        "name": one.result.name,
        "treatments": _treatments(one),
        "wells": _wells(one, space - space // 3),
        "maps": {
            "wells": _part(_maps, one.wells.X, np.flatnonzero(one.good), one.seed),
            "treatments": _part(_treatment_maps, one),
        },
        "left": int((~one.good).sum()),
        "similarity": _part(_similarity, one),
        "replicates": _part(_replicates, one),
        "activity": _part(_activity, one),
        "classes": _part(_classes, one),
        "doses": _part(_doses, one),
        "curves": _curves(one),
        "training": _part(_training, one.result),
        "montages": _montages(one.result.montages, one.result.cells, one.levels, space // 3),
    }


def _part(make: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What `make` returns, or the sentence that says why there is nothing."""
    try:
        return make(*arguments)
    except InputError as error:
        return {"why": str(error)}


def _treatments(one: _Subject) -> dict[str, Any]:
    codes = np.asarray(pd.Categorical(one.treatment, categories=one.levels).codes)
    known = codes >= 0
    count = np.bincount(codes[known], minlength=len(one.levels))
    controls = np.bincount(codes[known & one.control], minlength=len(one.levels))
    moa = [""] * len(one.levels)
    if one.columns.moa is not None:
        first = one.table[one.columns.moa].groupby(one.treatment, sort=False).first()
        moa = ["" if pd.isna(first[name]) else str(first[name]) for name in one.levels]
    apart = [name for name in one.columns.by if name != one.columns.concentration]
    compound = treatment_names(one.table, apart or one.columns.by)
    of = dict(zip(one.treatment, compound, strict=True))
    return {
        "name": one.levels,
        "moa": moa,
        "compound": [of[name] for name in one.levels],
        "wells": count.tolist(),
        "control": (controls == count).astype(int).tolist(),
    }


def _wells(one: _Subject, space: int) -> dict[str, Any]:
    """Each well's place, and the columns that heatmaps show and points are coloured by."""
    row, column = well_places(one.table[WELL])
    plate = one.table[PLATE].astype(str).to_numpy(dtype=object)
    plates = sorted(set(plate), key=natural)
    words, numbers = _metadata(one)
    shown = [_category("plate", plate), *(_category(name, column) for name, column in words.items())]
    shown += [
        _numeric(name, "", _finite(pd.Series(place + 1)), None) for name, place in (("row", row), ("column", column))
    ]
    features = _features(one)
    values = {name: found for name, (_, found) in [*numbers.items(), *features.items()]}
    tests = edge_tests(one.table, one.control, values)
    ranked = sorted(features, key=lambda name: (np.nan_to_num(tests.found[name].p, nan=2.0), natural(name)))
    most = max(4, space // (len(one.table) * 8 // 3 + 200))
    shown += [_numeric(name, about, found, tests.found[name]) for name, (about, found) in numbers.items()]
    for name in ranked[:most]:
        shown.append(_numeric(name, *features[name], tests.found[name]) | {"feature": 1})
    return {
        "plates": plates,
        "shape": list(plate_format(row, column)),
        "plate": _codes(np.array([plates.index(name) for name in plate])),
        "row": _codes(row),
        "column": _codes(column),
        "treatment": _codes(np.array([one.at.get(name, -1) for name in one.treatment])),
        "control": _codes(one.control.astype(int)),
        "columns": shown,
        "among": tests.among,
        "tested": len(tests.found),
        "features": [min(most, len(ranked)), len(ranked)],
    }


def _metadata(one: _Subject) -> tuple[dict[str, npt.NDArray[np.object_]], dict[str, tuple[str, Floats]]]:
    """Columns of words; and columns of numbers, with what they are."""
    words: dict[str, npt.NDArray[np.object_]] = {}
    numbers: dict[str, tuple[str, Floats]] = {}
    if one.columns.controls is not None:
        words["control"] = np.where(one.control, "control", "treated").astype(object)
    names = [one.columns.moa, one.columns.batch, *plain_columns(one.table, one.columns.by), one.columns.concentration]
    for name in dict.fromkeys(name for name in names if name):
        values = one.table[name]
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            numbers[short(name)] = "", _finite(values)
        elif name != one.columns.concentration:
            known = values.astype("object").map(lambda value: "" if pd.isna(value) else str(value))
            words[short(name)] = known.to_numpy(dtype=object)
    precision = one.result.queries.get("replicates")
    if precision is not None and {PLATE, WELL, "precision_at_r"} <= set(precision.columns):
        found = _beside(one.table, precision[[PLATE, WELL, "precision_at_r"]])
        if found is not None:
            numbers["precision at R"] = "of the well among all wells", _finite(found["precision_at_r"])
    if one.wells.control.any():
        strength = np.full(len(one.table), np.nan)
        strength[one.good] = phenotype_strength(one.wells.X, one.wells.X[one.wells.control])
        numbers["distance from controls"] = "length of the profile from the mean control well", strength
    return words, numbers


def _beside(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame | None:
    """The rows of `other` for the wells of `table`, in their order; None if a well has several."""
    keys = [PLATE, WELL]
    found = table[keys].astype("str").merge(other.astype(dict.fromkeys(keys, "str")), on=keys, how="left")
    return found if len(found) == len(table) else None


def _features(one: _Subject) -> dict[str, tuple[str, Floats]]:
    """What each feature is, normalized and before, and its values."""
    pool = {name: ("normalized", _finite(one.table[name])) for name in one.features}
    raw = None if one.result.raw is None else _beside(one.table, one.result.raw)
    if raw is not None:
        for name in one.of(raw):
            pool[f"{name}, raw"] = ("before normalization", _finite(raw[name]))
    return pool


def _numeric(name: str, about: str, values: Floats, test: EdgeEffect | None) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "about": about, "numbers": _packed(values)}
    if test is not None:
        column["edge"] = {"higher": _number(test.higher), "p": _number(test.p), "why": test.reason}
        column["edge"] |= {"edge": test.n_edge, "inner": test.n_inner}
    return column


def _finite(column: pd.Series) -> Floats:
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)


def _maps(X: Floats, rows: npt.NDArray[np.int64], seed: int) -> dict[str, Any]:
    try:
        found = principal_components(X)
    except InputError as error:
        return {"why": str(error)}
    axes = [f"PC{i + 1} ({share:.0%} of the variance)" for i, share in enumerate(found.explained)]
    shown = [{"name": "PCA", "axes": axes, "points": [_packed(column) for column in found.points.T]}]
    note = ""
    try:
        near = neighbour_map(X, seed=seed)
        shown.append({"name": "UMAP", "axes": ["UMAP 1", "UMAP 2"], "points": [_packed(column) for column in near.T]})
    except InputError as error:
        note = str(error)
    return {"rows": _codes(rows), "maps": shown, "note": note}


def _named_treatments(one: _Subject) -> tuple[pd.DataFrame, Floats, list[str]]:
    """The consensus profiles that have a direction, with the names of their treatments."""
    if one.result.treatments is None or one.result.treatments.empty:
        raise InputError("there are no treatment profiles")
    table = one.result.treatments.reset_index(drop=True)
    require_columns(table, one.columns.by, f"treatments of {one.result.name}")
    X = table[one.of(table)].to_numpy(dtype=np.float64, na_value=np.nan)
    names = treatment_names(table, one.columns.by)
    good = usable(X) & (names != "").to_numpy()
    if not good.any():
        raise InputError("no treatment profile is finite and has a direction")
    return table[good].reset_index(drop=True), X[good], names[good].tolist()


def _treatment_maps(one: _Subject) -> dict[str, Any]:
    _, X, names = _named_treatments(one)
    kept = np.array([name in one.at for name in names])
    return _maps(X[kept], np.array([one.at[name] for name in names if name in one.at]), one.seed)


def _similarity(one: _Subject) -> dict[str, Any]:
    table, X, names = _named_treatments(one)
    moa = [""] * len(names)
    if one.columns.moa is not None and one.columns.moa in table:
        moa = ["" if pd.isna(value) else str(value) for value in table[one.columns.moa]]
    rows = [i for i, name in enumerate(names) if name in one.at]
    total = len(rows)
    if total > one.most:  # of the largest classes; then the others by name
        size = {label: moa.count(label) for label in set(moa)}
        rows.sort(key=lambda i: (moa[i] == "", -size[moa[i]], natural(moa[i]), natural(names[i])))
        rows = rows[: one.most]
    if len(rows) < 2:
        raise InputError(f"{len(rows)} treatment: a similarity needs at least 2")
    near = cosine(X[rows]).rows(0, len(rows)).astype(np.float64)
    known = [i for i, name in enumerate(names) if name in one.at]
    tree = similarity_tree(near)
    by_class = sorted(
        range(len(rows)), key=lambda i: (moa[rows[i]] == "", natural(moa[rows[i]]), natural(names[rows[i]]))
    )
    off = near[~np.eye(len(rows), dtype=bool)]
    limit = float(np.abs(np.quantile(off, [0.01, 0.99])).max()) or 1.0
    steps = np.clip(np.round(near / limit * 127), -127, 127).astype(np.int8)
    return {
        "treatments": [one.at[names[i]] for i in rows],
        "total": total,
        "limit": _number(limit),
        "cosine": _text64(steps.tobytes()),
        "nearest": _nearest(X[known], np.array([one.at[names[i]] for i in known])),
        "by_class": by_class,
        "tree": tree.order.tolist(),
        "across": [_numbers(bracket) for bracket in tree.across],
        "up": [_numbers(bracket) for bracket in tree.up],
    }


def _nearest(X: Floats, treatments: npt.NDArray[np.int64]) -> dict[str, Any]:
    """The treatments most like each, by the cosine itself: the matrix is rounded, and ends at its percentile."""
    near = cosine(X)
    most = min(_NEAREST, len(X) - 1)
    who, how = np.empty((len(X), most), dtype=np.int64), np.empty((len(X), most))
    for start in range(0, len(X), 1024):
        block = near.rows(start, min(start + 1024, len(X))).astype(np.float64)
        block[np.arange(len(block)), start + np.arange(len(block))] = -np.inf
        best = np.argsort(-block, axis=1, kind="stable")[:, :most]
        who[start : start + len(block)] = treatments[best]
        how[start : start + len(block)] = np.take_along_axis(block, best, axis=1)
    return {"of": _codes(treatments), "most": most, "who": _codes(who.ravel()), "cosine": _packed(how.ravel())}


def _replicates(one: _Subject) -> dict[str, Any]:
    found, null = replicate_similarity(one.wells, seed=one.seed)
    return {
        "treatment": [one.at[name] for name in found["treatment"]],
        "median": _numbers(found["median"]),
        "null_95": _numbers(found["null_95"]),
        "n": found["n"].tolist(),
        "null": _packed(null),
        "percent": _number(100 * float(found["replicates"].mean())),
        "apart": [short(name) for name in one.wells.exclude],
    }


def _activity(one: _Subject) -> dict[str, Any]:
    found = activity(one.wells, seed=one.seed)
    return {"treatment": [one.at[name] for name in found["treatment"]], **_precisions(found)}


def _classes(one: _Subject) -> dict[str, Any]:
    if one.columns.moa is None:
        raise InputError("no column says which class a treatment is of (columns.moa)")
    table, X, _ = _named_treatments(one)
    if one.columns.moa not in table:
        raise InputError(f"the treatment profiles have no column {one.columns.moa}")
    known = table[one.columns.moa].notna().to_numpy()
    found = class_precision(X[known], table.loc[known, one.columns.moa].astype(str).tolist(), seed=one.seed)
    return {"label": found["label"].tolist(), **_precisions(found)}


def _precisions(found: pd.DataFrame) -> dict[str, Any]:
    return {
        "map": _numbers(found["mean_average_precision"]),
        "p": _numbers(found["p_value"]),
        "q": _numbers(found["q_value"]),
        "n": found["n"].tolist(),
    }


def _doses(one: _Subject) -> dict[str, Any]:
    if one.columns.concentration is None:
        raise InputError("no column says at what concentration a well was treated (columns.concentration)")
    named = [name for name in one.columns.by if name != one.columns.concentration]
    if not named:
        raise InputError("a treatment is named by its concentration alone")
    concentration = pd.to_numeric(one.wells.table[one.columns.concentration], errors="coerce").to_numpy(float)
    compound = treatment_names(one.wells.table, named).to_numpy(dtype=object)
    found, controls = dose_responses(one.wells, compound, concentration)
    rows: list[dict[str, Any]] = []
    for dose in found:
        fit, grid = dose.fit, np.geomspace(dose.concentrations.min(), dose.concentrations.max(), 40)
        curve = np.full(1, np.nan) if fit is None else fit(grid)
        drawn = np.isfinite(curve).all()
        rows.append(
            {
                "compound": dose.compound,
                "x": _numbers(dose.concentrations),
                "y": _numbers(dose.responses),
                "grid": _numbers(grid) if drawn else [],
                "curve": _numbers(curve) if drawn else [],
                "ec50": None if fit is None else _number(fit.ec50),
                "low": None if fit is None else _number(fit.ec50_low),
                "high": None if fit is None else _number(fit.ec50_high),
                "why": "no curve was fitted" if fit is None else fit.reason,
            }
        )
    return {
        "compounds": rows,
        "control": _numbers(np.quantile(controls, [0.05, 0.5, 0.95])),
        "n_controls": len(controls),
        "fits": MOST_FITS,
    }


def _curves(one: _Subject) -> dict[str, Any]:
    result, columns = one.result, one.columns
    return {
        "replicates": _part(_level_curves, one, "replicates", result.wells, [PLATE, WELL], columns.exclude_same),
        "treatments": _part(_level_curves, one, "treatments", result.treatments, list(columns.by), ()),
    }


def _level_curves(
    one: _Subject, level: str, profiles: pd.DataFrame | None, keys: list[str], exclude: Sequence[str]
) -> dict[str, Any]:
    queries = one.result.queries.get(level)
    if profiles is None or queries is None:
        raise InputError("these profiles were not scored")
    if queries.empty:
        raise InputError("no profile was left to score; the selection below says why")
    # the column by which they were scored is called label there
    scored = queries.assign(**{name: queries["label"] for name in keys if name not in queries})
    labels_of = {
        tuple(map(str, key)): str(label)
        for key, label in zip(scored[keys].itertuples(index=False), scored["label"], strict=True)
    }
    found = [labels_of.get(tuple(map(str, key))) for key in profiles[keys].itertuples(index=False)]
    rows = [place for place, label in enumerate(found) if label is not None]
    if len(rows) < 2:
        raise InputError("the scored profiles are not among these; run `deepprofile score` again")
    X = profiles[one.of(profiles)].to_numpy(dtype=np.float64, na_value=np.nan)[rows]
    if not usable(X).all():
        raise InputError("a scored profile is not finite, or zero throughout, so it has no direction")
    labels, classes = text_codes(pd.Series([found[place] for place in rows]))
    curves = score_curves(X, labels, excluded(profiles.iloc[rows], exclude), seed=one.seed)
    return {
        "n": curves.n,
        "labels": len(classes),
        "precision": _columns(curves.precision, ["k", "precision", "recall", "chance"]),
        "enrichment": _columns(curves.enrichment, ["percentile", "robust", "robust_low", "robust_high"]),
        "hits": _columns(curves.hits, ["share", "excess"]),
        "s20": _number(curves.s20),
        "interval": _numbers(curves.interval),
    }


def _training(result: Result) -> dict[str, Any]:
    if result.history is None or result.history.empty:
        raise InputError("these features are not of a network that was trained here")
    wanted = ["epoch", "loss", "val_loss", "accuracy", "val_accuracy", "learning_rate"]
    return _columns(result.history, [name for name in wanted if name in result.history])


def _montages(
    montages: Mapping[str, npt.NDArray[np.uint8]], about: str, levels: list[str], space: int
) -> dict[str, Any]:
    """JPEG strips in the order in which they were given, as many as there is room for, each [name, picture].

    They are no object of JavaScript, which would put names that are whole numbers first.
    """
    known = set(levels) | {""}
    strips: list[list[str]] = []
    used = 0
    for name, cells in montages.items():
        if name not in known or not len(cells):
            continue
        if cells.ndim != 4 or cells.shape[3] != 3 or cells.dtype != np.uint8:
            raise InputError(f"montage {name!r}: got {cells.dtype} of shape {cells.shape}, expected uint8 (n, h, w, 3)")
        picture = _jpeg(np.concatenate(list(cells), axis=1))
        if strips and used + len(picture) > space:
            break
        strips.append([name, picture])
        used += len(picture)
    if not any(name for name, _ in strips):
        return {"why": "no cell images were given"}
    return {"strips": strips, "given": sum(1 for name in montages if name), "about": about}


def _jpeg(picture: npt.NDArray[np.uint8]) -> _Packed:
    from PIL import Image  # with matplotlib

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=85, subsampling=0)
    return _text64(file.getvalue())


# --- numbers as text -----------------------------------------------------------------------------------------------


def _number(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [_number(value) for value in values]


def _columns(table: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    return {name: _numbers(table[name]) for name in names}


def _packed(values: Floats) -> dict[str, Any]:
    """Numbers in 65,535 steps, NaN apart; whole numbers stay whole where they span fewer."""
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    if not known.any():
        return {"lo": 0, "step": 0, "whole": 0, "data": _codes(np.full(len(values), -1))}
    low, high = float(values[known].min()), float(values[known].max())
    whole = bool((values[known] == np.round(values[known])).all()) and high - low < _MISSING
    step = 1.0 if whole else (high - low) / (_MISSING - 1)
    with np.errstate(invalid="ignore"):
        steps = np.where(known, np.round((values - low) / (step or 1.0)), -1)
    return {"lo": low, "step": step, "whole": int(whole), "data": _codes(steps)}


def _codes(values: npt.ArrayLike) -> _Packed:
    """Whole numbers below 65,535 in 16 bits; a negative one is missing."""
    codes = np.asarray(values).astype(np.int64)
    return _text64(np.where(codes < 0, _MISSING, codes).astype("<u2").tobytes())


def _category(name: str, words: npt.NDArray[np.object_]) -> dict[str, Any]:
    levels = sorted({str(word) for word in words if word}, key=natural)
    at = {word: place for place, word in enumerate(levels)}
    return {"name": name, "levels": levels, "codes": _codes(np.array([at.get(word, -1) for word in words]))}


def _text64(data: bytes) -> _Packed:
    return _Packed(base64.b64encode(data).decode("ascii"))
