"""Profiles and their scores as one HTML page that works without a network; see `report`."""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytominer_tools.columns import METADATA, PLATE, WELL, feature_columns, require_columns
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path
from cytominer_tools.queries import select
from evaluation.embedding import neighbour_map, principal_components
from evaluation.figures import natural
from evaluation.plates import plate_format, well_places
from evaluation.report_parts import (
    Wells,
    activity,
    class_precision,
    dose_responses,
    edge_tests,
    excluded,
    plain_columns,
    replicate_similarity,
    score_curves,
    score_intervals,
    similarity_tree,
    treatment_names,
    usable,
)
from evaluation.similarity import Floats, cosine

MOST_TREATMENTS = 700  # in the matrix of similarities, which grows with their square
_SPACE = 3_500_000  # bytes for plate heatmaps of features and for montages, of all profiles together
_MISSING = 65535


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
    left_out: Sequence[Mapping[str, Any]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    features: Sequence[str] | Literal["infer"] = "infer"


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
    comparison: pd.DataFrame | None = None,
    settings: str = "",
    seed: int = 0,
) -> Path:
    """Write one HTML page with all figures, to be opened in any browser, without a network and without this package.

    What cannot be drawn says why in a sentence. The same arguments give the same bytes, on one machine and with the
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
    comparison : DataFrame, optional
        A row a run, shown as it is.
    settings : str
        Shown as it is.
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
    plotly = _plotly()
    space = _SPACE // len(given)
    sets = [_payload(result, columns, seed, space) for result in given]
    data = {"title": title, "columns": _said(columns), "sets": sets}
    page = _page(title, given, columns, data, plotly, quality, comparison, settings, seed)
    with atomic_path(Path(path)) as part:
        part.write_text(page, "utf-8", newline="\n")
    return Path(path)


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise InputError("report: install the extra report, `pip install 'deepprofile[report]'` (plotly)") from error
    return str(get_plotlyjs())


def _said(columns: Columns) -> dict[str, Any]:
    short = {name: _short(getattr(columns, name)) for name in ("concentration", "moa", "batch")}
    return short | {"treatment": ", ".join(map(_short, columns.by)), "controls": columns.controls}


def _short(column: str | None) -> str:
    """A column as a heading.

    >>> _short("Metadata_broad_sample")
    'broad sample'
    """
    return "" if column is None else column.removeprefix(METADATA).replace("_", " ")


# --- what the page draws -------------------------------------------------------------------------------------------


def _payload(result: Result, columns: Columns, seed: int, space: int) -> dict[str, Any]:
    require_columns(result.wells, [PLATE, WELL, *columns.by], f"wells of {result.name}")
    if result.wells.empty:
        raise InputError(f"wells of {result.name}: there are no rows; look at the stages before")
    table = result.wells.reset_index(drop=True)
    names = feature_columns(table, result.features)
    named = [name for name in (columns.concentration, columns.moa, columns.batch, *columns.exclude_same) if name]
    require_columns(table, named, f"wells of {result.name}")
    control = np.zeros(len(table), dtype=bool)
    if columns.controls is not None:
        control = select(table, columns.controls).to_numpy(dtype=bool)
    treatment = treatment_names(table, columns.by).to_numpy(dtype=object)
    X = table[names].to_numpy(dtype=np.float64, na_value=np.nan)
    good = usable(X)
    wells = Wells(
        table[good].reset_index(drop=True),
        X[good],
        treatment[good],
        control[good],
        int((~good).sum()),
        columns.exclude_same,
    )
    levels = sorted(set(treatment[treatment != ""]), key=natural)
    at = {name: place for place, name in enumerate(levels)}
    montages = _montages(result.montages, levels, space // 3)
    replicates = _part(_replicates, wells, seed, at)
    active = _part(_activity, wells, seed, at)
    data = {
        "name": result.name,
        "treatments": _treatments(result, columns, levels, treatment, control),
        "wells": _wells(result, columns, wells, good, names, control, treatment, at, space - space // 3),
        "maps": {
            "wells": _maps(wells.X, np.flatnonzero(good), seed),
            "treatments": _part(_treatment_maps, result, columns, at, seed),
        },
        "left": wells.left,
        "similarity": _part(_similarity, result, columns, at),
        "replicates": replicates,
        "activity": active,
        "classes": _part(_classes, result, columns, seed),
        "doses": _part(_doses, wells, columns),
        "curves": _curves(result, columns),
        "training": _part(_training, result),
        "montages": montages,
    }
    return data


def _part(make: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What `make` returns, or the sentence that says why there is nothing."""
    try:
        return make(*arguments)
    except InputError as error:
        return {"why": str(error)}


def _treatments(
    result: Result,
    columns: Columns,
    levels: list[str],
    treatment: npt.NDArray[np.object_],
    control: npt.NDArray[np.bool_],
) -> dict[str, Any]:
    table = result.wells.reset_index(drop=True)
    codes = pd.Categorical(treatment, categories=levels).codes
    known = codes >= 0
    count = np.bincount(codes[known], minlength=len(levels))
    controls = np.bincount(codes[known & control], minlength=len(levels))
    moa = [""] * len(levels)
    if columns.moa is not None:
        first = table[columns.moa].where(known).groupby(treatment, sort=False).first()
        moa = ["" if pd.isna(first.get(name)) else str(first[name]) for name in levels]
    compound = treatment_names(table, [name for name in columns.by if name != columns.concentration] or columns.by)
    of = dict(zip(treatment, compound, strict=True))
    return {
        "name": levels,
        "moa": moa,
        "compound": [of[name] for name in levels],
        "wells": count.tolist(),
        "control": (controls == count).astype(int).tolist(),
    }


def _wells(
    result: Result,
    columns: Columns,
    wells: Wells,
    good: npt.NDArray[np.bool_],
    features: list[str],
    control: npt.NDArray[np.bool_],
    treatment: npt.NDArray[np.object_],
    at: dict[str, int],
    space: int,
) -> dict[str, Any]:
    """Each well's place, and the columns that heatmaps show and points are coloured by."""
    table = result.wells.reset_index(drop=True)
    row, column = well_places(table[WELL])
    shape = plate_format(row, column)
    plates = sorted(table[PLATE].astype(str).unique(), key=natural)
    shown: list[dict[str, Any]] = []
    numbers: dict[str, tuple[str, Floats]] = {}  # a name in the page -> what it is, values
    if columns.controls is not None:
        words = np.where(control, "control", "treated").astype(object)
        shown.append(_category("control", words))
    shown.append(_category("plate", table[PLATE].astype(str).to_numpy(dtype=object)))
    ordered = [name for name in (columns.moa, columns.batch) if name]
    # a row that is the treatment's own name has as many levels as there are treatments
    for name in dict.fromkeys([*ordered, *plain_columns(table, columns.by)]):
        values = table[name]
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            numbers[_short(name)] = ("", values.to_numpy(dtype=np.float64, na_value=np.nan))
        else:
            words = values.astype("object").map(lambda value: "" if pd.isna(value) else str(value))
            shown.append(_category(_short(name), words.to_numpy(dtype=object)))
    if columns.concentration is not None and pd.api.types.is_numeric_dtype(table[columns.concentration]):
        dose = table[columns.concentration].to_numpy(dtype=np.float64, na_value=np.nan)
        numbers[_short(columns.concentration)] = ("", dose)
    numbers["row"] = ("", row + 1.0)
    numbers["column"] = ("", column + 1.0)
    places = {"row", "column"}
    precision = result.queries.get("replicates")
    if precision is not None and {PLATE, WELL, "precision_at_r"} <= set(precision.columns):
        keys = table[[PLATE, WELL]].astype(str).merge(
            precision[[PLATE, WELL, "precision_at_r"]].astype({PLATE: str, WELL: str}), on=[PLATE, WELL], how="left"
        )
        if len(keys) == len(table):
            numbers["precision at R"] = ("of the well's replicates", keys["precision_at_r"].to_numpy(float))
    if wells.control.any():
        strength = np.full(len(table), np.nan)
        middle = wells.X[wells.control].mean(axis=0)
        strength[good] = np.linalg.norm(wells.X - middle, axis=1)
        numbers["distance from controls"] = ("length of the profile from the mean control well", strength)
    pool = _features(result, table, features)
    tests = edge_tests(
        pd.concat([table[[PLATE, WELL]], pd.DataFrame({k: v for k, (_, v) in [*numbers.items(), *pool.items()]})], axis=1),
        control,
        [name for name in [*numbers, *pool] if name not in places],
    )
    ranked = sorted(pool, key=lambda name: (np.nan_to_num(tests.found[name].p, nan=2.0), natural(name)))
    most = max(4, space // (len(table) * 8 // 3 + 200))
    kept = ranked[:most]
    for name, (about, values) in [*numbers.items(), *((name, pool[name]) for name in kept)]:
        one = {"name": name, "about": about, "numbers": _packed(values), "feature": name in pool}
        if name in tests.found:
            test = tests.found[name]
            one["edge"] = {
                "higher": _number(test.higher),
                "p": _number(test.p),
                "edge": test.n_edge,
                "inner": test.n_inner,
                "why": test.reason,
            }
        shown.append(one)
    return {
        "plates": plates,
        "shape": list(shape),
        "plate": _codes(table[PLATE].astype(str).map({name: i for i, name in enumerate(plates)}).to_numpy()),
        "row": _codes(row),
        "column": _codes(column),
        "treatment": _codes(np.array([at.get(name, -1) for name in treatment])),
        "control": _codes(control.astype(int)),
        "columns": shown,
        "among": tests.among,
        "tested": len(tests.found),
        "features": [len(kept), len(pool)],
    }


def _features(result: Result, table: pd.DataFrame, features: list[str]) -> dict[str, tuple[str, Floats]]:
    """What each feature is, normalized and before, and its values, for `_wells` to choose from."""
    pool = {name: ("normalized", _finite(table[name])) for name in features}
    if result.raw is not None:
        raw = result.raw.astype({PLATE: str, WELL: str})
        found = table[[PLATE, WELL]].astype(str).merge(raw, on=[PLATE, WELL], how="left")
        if len(found) == len(table):  # a row a well
            for name in feature_columns(result.raw, result.features):
                pool[f"{name}, raw"] = ("before normalization", _finite(found[name]))
    return pool


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


def _named_treatments(result: Result, columns: Columns) -> tuple[pd.DataFrame, Floats, list[str]]:
    """The consensus profiles that have a direction, with the names of their treatments."""
    if result.treatments is None or result.treatments.empty:
        raise InputError("there are no treatment profiles")
    table = result.treatments.reset_index(drop=True)
    require_columns(table, columns.by, f"treatments of {result.name}")
    X = table[feature_columns(table, result.features)].to_numpy(dtype=np.float64, na_value=np.nan)
    names = treatment_names(table, columns.by)
    good = usable(X) & (names != "").to_numpy()
    if not good.any():
        raise InputError("no treatment profile is finite and has a direction")
    return table[good].reset_index(drop=True), X[good], names[good].tolist()


def _treatment_maps(result: Result, columns: Columns, at: dict[str, int], seed: int) -> dict[str, Any]:
    _, X, names = _named_treatments(result, columns)
    kept = np.array([name in at for name in names])
    return _maps(X[kept], np.array([at[name] for name in names if name in at]), seed)


def _similarity(result: Result, columns: Columns, at: dict[str, int]) -> dict[str, Any]:
    table, X, names = _named_treatments(result, columns)
    moa = [""] * len(names)
    if columns.moa is not None and columns.moa in table:
        moa = ["" if pd.isna(value) else str(value) for value in table[columns.moa]]
    rows = [i for i, name in enumerate(names) if name in at]
    total = len(rows)
    if total > MOST_TREATMENTS:  # whole classes, the largest first; then the others by name
        size = {label: moa.count(label) for label in set(moa)}
        rows.sort(key=lambda i: (moa[i] == "", -size[moa[i]], natural(moa[i]), natural(names[i])))
        rows = rows[:MOST_TREATMENTS]
    if len(rows) < 2:
        raise InputError(f"{len(rows)} treatment: a similarity needs at least 2")
    near = cosine(X[rows]).rows(0, len(rows)).astype(np.float64)
    tree = similarity_tree(near)
    by_class = sorted(
        range(len(rows)), key=lambda i: (moa[rows[i]] == "", natural(moa[rows[i]]), natural(names[rows[i]]))
    )
    off = near[~np.eye(len(rows), dtype=bool)]
    limit = float(np.abs(np.quantile(off, [0.01, 0.99])).max()) or 1.0
    steps = np.clip(np.round(near / limit * 127), -127, 127).astype(np.int8)
    return {
        "treatments": [at[names[i]] for i in rows],
        "total": total,
        "limit": _number(limit),
        "cosine": _text64(steps.tobytes()),
        "by_class": by_class,
        "tree": tree.order.tolist(),
        "across": [[_number(value) for value in bracket] for bracket in tree.across],
        "up": [[_number(value) for value in bracket] for bracket in tree.up],
    }


def _replicates(wells: Wells, seed: int, at: dict[str, int]) -> dict[str, Any]:
    found, null = replicate_similarity(wells, seed=seed)
    return {
        "treatment": [at[name] for name in found["treatment"]],
        "median": [_number(value) for value in found["median"]],
        "null_95": [_number(value) for value in found["null_95"]],
        "n": found["n"].tolist(),
        "null": [_number(value) for value in null],
        "percent": _number(100 * float(found["replicates"].mean())),
        "apart": [_short(name) for name in wells.exclude],
    }


def _activity(wells: Wells, seed: int, at: dict[str, int]) -> dict[str, Any]:
    found = activity(wells, seed=seed)
    return {"treatment": [at[name] for name in found["treatment"]], **_precisions(found)}


def _classes(result: Result, columns: Columns, seed: int) -> dict[str, Any]:
    if columns.moa is None:
        raise InputError("no column says which class a treatment is of (columns.moa)")
    table, X, _ = _named_treatments(result, columns)
    if columns.moa not in table:
        raise InputError(f"the treatment profiles have no column {columns.moa}")
    known = table[columns.moa].notna().to_numpy()
    found = class_precision(X[known], table.loc[known, columns.moa].astype(str).tolist(), seed=seed)
    return {"label": found["label"].tolist(), **_precisions(found)}


def _precisions(found: pd.DataFrame) -> dict[str, Any]:
    return {
        "map": [_number(value) for value in found["mean_average_precision"]],
        "p": [_number(value) for value in found["p_value"]],
        "q": [_number(value) for value in found["q_value"]],
        "n": found["n"].tolist(),
    }


def _doses(wells: Wells, columns: Columns) -> dict[str, Any]:
    if columns.concentration is None:
        raise InputError("no column says at what concentration a well was treated (columns.concentration)")
    named = [name for name in columns.by if name != columns.concentration]
    if not named:
        raise InputError("a treatment is named by its concentration alone")
    concentration = pd.to_numeric(wells.table[columns.concentration], errors="coerce").to_numpy(float)
    compound = treatment_names(wells.table, named).to_numpy(dtype=object)
    found, controls = dose_responses(wells, compound, concentration)
    rows = []
    for one in found:
        grid = np.geomspace(one.concentrations.min(), one.concentrations.max(), 40)
        curve = one.fit(grid)
        rows.append(
            {
                "compound": one.compound,
                "x": [_number(value) for value in one.concentrations],
                "y": [_number(value) for value in one.responses],
                "grid": [_number(value) for value in grid] if np.isfinite(curve).all() else [],
                "curve": [_number(value) for value in curve] if np.isfinite(curve).all() else [],
                "ec50": _number(one.fit.ec50),
                "low": _number(one.fit.ec50_low),
                "high": _number(one.fit.ec50_high),
                "why": one.fit.reason,
            }
        )
    return {
        "compounds": rows,
        "control": [_number(value) for value in np.quantile(controls, [0.05, 0.5, 0.95])],
        "n_controls": len(controls),
    }


def _curves(result: Result, columns: Columns) -> dict[str, Any]:
    found = {}
    for level, profiles, keys in (
        ("replicates", result.wells, [PLATE, WELL]),
        ("treatments", result.treatments, list(columns.by)),
    ):
        queries = result.queries.get(level)
        exclude = columns.exclude_same if level == "replicates" else ()
        found[level] = _part(_level_curves, result, profiles, queries, keys, exclude)
    return found


def _level_curves(
    result: Result, profiles: pd.DataFrame | None, queries: pd.DataFrame | None, keys: list[str], exclude: Sequence[str]
) -> dict[str, Any]:
    if profiles is None or queries is None:
        raise InputError("these profiles were not scored")
    if queries.empty:
        raise InputError("no profile was left to score; the selection below says why")
    # the column by which they were scored is called label there
    scored = queries.assign(**{name: queries["label"] for name in keys if name not in queries})
    labels_of = {
        tuple(map(str, key)): label
        for key, label in zip(scored[keys].itertuples(index=False), scored["label"], strict=True)
    }
    found = [labels_of.get(tuple(map(str, key))) for key in profiles[keys].itertuples(index=False)]
    rows = [place for place, label in enumerate(found) if label is not None]
    labels = [str(found[place]) for place in rows]
    if len(rows) < 2:
        raise InputError("the scored profiles are not among these; run `deepprofile score` again")
    names = feature_columns(profiles, result.features)
    X = profiles[names].to_numpy(dtype=np.float64, na_value=np.nan)[rows]
    if not usable(X).all():
        raise InputError("a scored profile is not finite, or zero throughout, so it has no direction")
    curves = score_curves(X, pd.factorize(pd.Series(labels))[0].astype(np.int64), excluded(profiles.iloc[rows], exclude))
    return {
        "n": curves.n,
        "labels": len(set(labels)),
        "precision": _columns(curves.precision, ["k", "precision", "recall", "chance"]),
        "enrichment": _columns(curves.enrichment, ["percentile", "robust", "robust_low", "robust_high"]),
        "hits": _columns(curves.hits, ["share", "excess"]),
        "s20": _number(curves.s20),
    }


def _training(result: Result) -> dict[str, Any]:
    if result.history is None or result.history.empty:
        raise InputError("these features are not of a network that was trained here")
    wanted = ["epoch", "loss", "val_loss", "accuracy", "val_accuracy", "learning_rate"]
    return _columns(result.history, [name for name in wanted if name in result.history])


def _montages(montages: Mapping[str, npt.NDArray[np.uint8]], levels: list[str], space: int) -> dict[str, Any]:
    """JPEG strips in the order in which they were given, as many as there is room for."""
    known = set(levels) | {""}
    strips, used = {}, 0
    for name, cells in montages.items():
        if name not in known or not len(cells):
            continue
        if cells.ndim != 4 or cells.shape[3] != 3 or cells.dtype != np.uint8:
            raise InputError(f"montage {name!r}: got {cells.dtype} of shape {cells.shape}, expected uint8 (n, h, w, 3)")
        picture = _jpeg(np.concatenate(list(cells), axis=1))
        if strips and used + len(picture) > space:
            break
        strips[name] = picture
        used += len(picture)
    if not any(strips):
        return {"why": "no cell images were given"}
    return {"strips": strips, "given": sum(1 for name in montages if name), "n": len(next(iter(montages.values())))}


def _jpeg(picture: npt.NDArray[np.uint8]) -> str:
    from PIL import Image  # with matplotlib

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=85, subsampling=0)
    return _text64(file.getvalue())


# --- numbers as text -----------------------------------------------------------------------------------------------


def _number(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _columns(table: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    return {name: [_number(value) for value in table[name]] for name in names}


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


def _codes(values: npt.ArrayLike) -> str:
    """Whole numbers below 65,535 in 16 bits; a negative one is missing."""
    codes = np.asarray(values).astype(np.int64)
    return _text64(np.where(codes < 0, _MISSING, codes).astype("<u2").tobytes())


def _category(name: str, words: npt.NDArray[np.object_]) -> dict[str, Any]:
    levels = sorted({str(word) for word in words if word}, key=natural)
    at = {word: place for place, word in enumerate(levels)}
    return {"name": name, "levels": levels, "codes": _codes(np.array([at.get(word, -1) for word in words]))}


def _text64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


# --- the page ------------------------------------------------------------------------------------------------------


def _page(
    title: str,
    results: list[Result],
    columns: Columns,
    data: dict[str, Any],
    plotly: str,
    quality: pd.DataFrame | None,
    comparison: pd.DataFrame | None,
    settings: str,
    seed: int,
) -> str:
    inner = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # inside a script element only these could end it
    inner = inner.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    code = files("evaluation").joinpath("report.js").read_text("utf-8")
    style = files("evaluation").joinpath("report.css").read_text("utf-8")
    plotly = plotly.replace("</script", "<\\/script")
    hashes = " ".join(
        f"'sha256-{_text64(hashlib.sha256(text.encode('utf-8')).digest())}'" for text in (plotly, code)
    )
    # whatever a name or a setting holds, only these two scripts run, and nothing is fetched
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "form-action 'none'; base-uri 'none'"
    )
    body = [
        _scores(results, seed),
        _comparison(comparison),
        *_FIGURES,
        _quality(quality),
        _selection(results),
        _left_out(results),
        _provenance(results, settings),
    ]
    parts = [(name, heading, html) for name, heading, html in body]
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in parts)
    sections = "\n".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>\n{html}\n</section>' for name, heading, html in parts
    )
    several = "" if len(results) > 1 else " hidden"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<div class="controls">
<label{several}>Profiles <select id="set"></select></label>
<label>Treatment <input id="treatment" list="treatments" autocomplete="off" placeholder="choose, or click a point"></label>
<datalist id="treatments"></datalist>
<button id="clear" type="button" disabled>Clear</button>
</div>
<p id="chosen" role="status"></p>
</header>
<nav>{links}</nav>
<noscript><p>The figures need JavaScript; the tables do not.</p></noscript>
<main>
{sections}
</main>
<script type="application/json" id="data">{inner}</script>
<script>{plotly}</script>
<script>{code}</script>
</body>
</html>
"""


def _figure(name: str, heading: str, caption: str, controls: str = "", panels: int = 1) -> tuple[str, str, str]:
    plots = "".join(f'<div class="plot" id="{name}-plot{i or ""}"></div>' for i in range(panels))
    kind = ' class="panels"' if panels != 1 else ""
    chosen = f'<div class="controls">{controls}</div>' if controls else ""
    note = f'<p class="note" id="{name}-note"></p>'
    return name, heading, f"<figure>{chosen}<div{kind}>{plots}</div>{note}<figcaption>{caption}</figcaption></figure>"


def _choice(name: str, words: str) -> str:
    return f'<label>{words} <select id="{name}"></select></label>'


_FIGURES = (
    _figure(
        "curves",
        "Score curves",
        "Left: of each profile's k nearest others by cosine, the share with its label (precision), and of its matches "
        "the share among them (recall); means over profiles; dotted: precision of random order. Middle: odds ratio of "
        "sharing a label above each percentile of similarity over below, half a pair added to each count; the band is "
        "its 95 % interval if pairs were independent, which they are not: the true one is wider; dotted: 1, chance. "
        "Right: matches found within a share of the list of neighbours, beyond those of random order (0, dotted).",
        _choice("curves-level", "Profiles"),
        3,
    ),
    _figure(
        "plates",
        "Plates",
        "Each square is a well where it stands on its plate, empty where there is none. “Mean by position” is the mean "
        "over all plates. The edge test compares the outermost rows and columns with the other wells of the same plate "
        "(van Elteren's test, two-sided); without an effect, an edge well is the higher one in 50 % of pairs.",
        _choice("plates-column", "Column") + _choice("plates-view", "Show"),
    ),
    _figure(
        "map",
        "Map of profiles",
        "Each point is a normalized well, or a treatment (median of its wells). PCA keeps distances as far as the "
        "shares of variance on its axes say. In UMAP near points are alike; distances between far ones mean nothing.",
        _choice("map-level", "Points") + _choice("map-method", "Axes") + _choice("map-colour", "Colour"),
    ),
    _figure(
        "similarity",
        "Similarity of treatments",
        "Cosine similarity of treatment profiles: 1 is the same direction, 0 unrelated (white), -1 the opposite. Colours "
        "end at the 99th percentile of what is off the diagonal. Ordered by class, or as a tree of average linkage shows "
        "them; the height of a bracket is the cosine distance at which its two branches meet.",
        _choice("similarity-order", "Order"),
    ),
    _figure(
        "replicates",
        "Replicates",
        "Median Pearson correlation between the wells of each treatment (blue), and the same after five times shuffling "
        "which well had which treatment (grey), as shares of all values. Controls are left out. Percent replicating "
        "counts treatments above the 95th percentile of as many random wells of different treatments.",
    ),
    _figure(
        "activity",
        "Activity",
        "Mean average precision: 1 if all wells of a treatment find each other before any control (all treatments of a "
        "class before any other). p is of exchanging labels; the dotted line is p = 0.05; coloured where "
        "Benjamini-Hochberg's q is below 0.05.",
        _choice("activity-level", "Show"),
    ),
    _figure(
        "doses",
        "Dose response",
        "Distance of each well from the mean control (after spherizing in standard deviations of the controls), and a "
        "logistic curve of four parameters. Grey: the middle 90 % of the controls. Bar: EC50 with its 95 % interval.",
        _choice("doses-compound", "Compound"),
        6,
    ),
    (
        "cells",
        "Cells",
        '<figure><div id="cells-plot"></div><p class="note" id="cells-note"></p><figcaption>The cells nearest to the mean '
        "profile of the treatment, beside those nearest to the mean of the controls; the same scale of brightness in "
        "all.</figcaption></figure>",
    ),
    _figure(
        "training",
        "Training",
        "Loss and accuracy of single cells by epoch, and the learning rate. The loss of validation is plain: without "
        "label smoothing and L2. Validation accuracy says how well cells are told apart, not how good the profiles are.",
        "",
        3,
    ),
)


def _scores(results: list[Result], seed: int) -> tuple[str, str, str]:
    rows: list[list[str]] = []
    notes: list[str] = []
    extra: list[str] = []
    known = [
        *("profiles", "score", "labels", "similarity", "setting", "value", "n", "reason", "chance"),
        *("permutation_mean", "permutation_95", "p", "cell_count", "notes", "low", "high"),
    ]
    for result in results:
        if result.scores is not None:
            extra += [name for name in map(str, result.scores.columns) if name not in [*known, *extra]]
    head = ["Profiles", "Score", "Value", "95 % interval", "Chance", "Permuted: mean (95 %)", "p", "Cell count"]
    head += [_short(name) for name in extra] + ["n"]
    for result in results:
        for row in (result.scores if result.scores is not None else pd.DataFrame()).to_dict("records"):
            level = str(row.get("profiles", ""))
            what = f"{level} by {_short(str(row['labels']))}".strip()
            name = f"{result.name}: {what}" if len(results) > 1 else what
            low, high = row.get("low", np.nan), row.get("high", np.nan)
            if row["score"] == "precision_at_r" and level in result.queries and pd.isna(low):
                found = score_intervals(result.queries[level], seed=seed)
                low, high = found.low, found.high
            value = row["value"]
            count = row.get("cell_count", np.nan)
            rows.append(
                [
                    name,
                    f"{_short(str(row['score'])).replace(' at r', ' at R')} ({row['setting']})",
                    _said_number(value),
                    "–" if pd.isna(low) else f"{_said_number(low)} to {_said_number(high)}",
                    _said_number(row.get("chance", np.nan)),
                    f"{_said_number(row.get('permutation_mean', np.nan))} "
                    f"({_said_number(row.get('permutation_95', np.nan))})",
                    _said_number(row.get("p", np.nan)),
                    _said_number(count),
                    *(_said_number(row.get(column, np.nan)) for column in extra),
                    _said_number(row["n"]),
                ]
            )
            if pd.notna(value) and pd.notna(count) and value <= count:
                notes.append(f"{name}, {row['score']}: no better than the cell count alone")
            notes += [f"{name}, {row['score']}: {row[key]}" for key in ("reason", "notes") if _is_text(row.get(key))]
    if not rows:
        return "scores", "Scores", "<p>These profiles were not scored.</p>"
    caption = (
        "Each score beside its baselines on the same rows. Chance: the expected value of random profiles. Permuted: "
        "labels shuffled (within plates for wells), mean and 95th percentile; p is the share of shuffles that score as "
        "high. Cell count: similarity by the number of cells alone. The interval redraws whole classes (bootstrap). "
        "n counts profiles for precision, pairs of profiles for enrichment; – is undefined."
    )
    return "scores", "Scores", _table(head, rows, caption) + _list(notes)


def _comparison(comparison: pd.DataFrame | None) -> tuple[str, str, str]:
    if comparison is None or comparison.empty:
        return "comparison", "Comparison", "<p>No runs were compared (`deepprofile compare` writes compare.csv).</p>"
    head = [_short(str(name)) for name in comparison.columns]
    rows = [[_said_number(value) for value in row] for row in comparison.itertuples(index=False)]
    return "comparison", "Comparison", _table(head, rows, "As `compare` wrote it.")


def _quality(quality: pd.DataFrame | None) -> tuple[str, str, str]:
    if quality is None or quality.empty:
        return "quality", "Image quality", "<p>Sites were not read for their quality (illumination.qc).</p>"
    head = [_short(str(name)) for name in quality.columns]
    rows = [[_said_number(value) for value in row] for row in quality.itertuples(index=False)]
    return "quality", "Image quality", _table(head, rows, "Sites of each plate. Nothing is left out by these numbers.")


def _selection(results: list[Result]) -> tuple[str, str, str]:
    rows = []
    for result in results:
        for row in (result.selection if result.selection is not None else pd.DataFrame()).to_dict("records"):
            level = str(row.get("profiles", ""))
            name = f"{result.name}: {level}" if len(results) > 1 else level
            rows.append([name, *(_said_number(row[key]) for key in ("rule", "rows_removed", "rows_left", "classes_left"))])
    if not rows:
        return "selection", "Selection before scoring", "<p>Nothing was scored, so nothing was selected.</p>"
    head = ["Profiles", "Rule", "Removed", "Left", "Classes left"]
    return "selection", "Selection before scoring", _table(head, rows, "Rules in the order in which they were applied.")


def _left_out(results: list[Result]) -> tuple[str, str, str]:
    rows = []
    for result in results:
        for group in result.left_out:
            first = ", ".join(map(str, group["first"]))
            more = group["count"] - len(group["first"])
            rows.append([str(group["reason"]), f"{group['count']:,}", first + (f" and {more:,} more" if more > 0 else "")])
    rows = [list(row) for row in dict.fromkeys(map(tuple, rows))]
    if not rows:
        return "left", "Left out", "<p>Nothing was left out.</p>"
    return "left", "Left out", _table(["Why", "Count", "What"], rows, "Sites, cells and wells that no result is made of.")


def _provenance(results: list[Result], settings: str) -> tuple[str, str, str]:
    parts = []
    for result in results:
        rows = [[name, value] for name, value in _flat(result.provenance)]
        if rows:
            heading = f"<h3>{escape(result.name)}</h3>" if len(results) > 1 else ""
            parts.append(heading + _table(["Setting", "Value"], rows, "How these profiles were made."))
    if settings:
        parts.append(f"<details><summary>study.yaml</summary><pre>{escape(settings)}</pre></details>")
    return "provenance", "Provenance", "\n".join(parts) or "<p>No settings were given.</p>"


def _flat(found: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in found.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            rows.append((f"{prefix}{name}", text))
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    top = "".join(f'<th scope="col">{escape(word)}</th>' for word in head)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="table"><table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
        f'<p class="caption">{escape(caption)}</p>'
    )


def _list(notes: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(notes))
    return f"<ul>{lines}</ul>" if lines else ""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _said_number(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or pd.isna(value):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.3g}"
