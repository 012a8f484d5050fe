"""What a study found as one page, report.html: profiles, scores, pictures of cells, quality and settings."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytominer_tools.columns import CELL, METADATA, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.manifest import Manifest
from cytominer_tools.queries import select
from cytominer_tools.tables import read_table
from deepprofile.crop_source import open_source, read_source
from deepprofile.features import plate_features
from deepprofile.index import load_index
from deepprofile.intensities import STAGE as ILLUMINATION
from deepprofile.locations import plate_locations
from deepprofile.profiles import CONSENSUS, WELLS, final_wells, read_profiles, stale_scores
from deepprofile.quality import OUT_OF_FOCUS, SATURATED, WHY
from deepprofile.sites import site_rows
from deepprofile.study import NAME, Study
from deepprofile.work import by_reason, log
from evaluation.comparison import PAIRS, Comparison
from evaluation.report_parts import Result, treatment_names
from evaluation.reports import report
from evaluation.subsets import phenotype_strength

FILE = "report.html"
CELLS = 8  # of a treatment
MOST_MONTAGES = 60  # treatments whose cells are looked for, the strongest first
_WELLS = 5  # of a treatment in which cells are looked for, on as many plates
# of the channels in turn
_COLOURS = {
    "blue": (0.0, 0.2, 1.0),
    "green": (0.0, 1.0, 0.0),
    "red": (1.0, 0.0, 0.0),
    "orange": (1.0, 0.6, 0.0),
    "magenta": (1.0, 0.0, 1.0),
    "cyan": (0.0, 1.0, 1.0),
}


def write_report(study: Study, path: str | Path | None = None) -> Path:
    """Write report.html of all sets of features of a study, with each of its recipes; see `evaluation.report`.

    Parameters
    ----------
    study : Study
    path : str or Path, optional
        By default report.html in the folder of the study.

    Raises
    ------
    InputError
        The profiles are not made, nothing says what a treatment is, or plotly is not installed.
    """
    by = study.consensus
    if not by:
        raise InputError("study.yaml: no column says what a treatment is; set columns.treatment or columns.compound")
    index = load_index(study)
    warnings: list[str] = []
    results = [_result(one, index, warnings) for set_ in study.feature_sets for one in set_.recipe_sets]
    columns = study.columns
    return report(
        study.root / FILE if path is None else path,
        results,
        by=by,
        concentration=columns.concentration,
        moa=columns.moa,
        batch=columns.batch,
        controls=study.controls,
        exclude_same=study.scores.exclude_same,
        title=study.root.name,
        quality=_quality(study, index),
        comparison=_compared(study, warnings),
        settings=(study.root / NAME).read_text("utf-8") if (study.root / NAME).exists() else "",
        warnings=warnings,
        seed=study.seed,
    )


def _result(study: Study, index: pd.DataFrame, warnings: list[str]) -> Result:
    manifest, treatments = read_profiles(study, CONSENSUS, "deepprofile run")
    wells, raw = (read_table(study.profiles_folder / name) for name in (final_wells(study), WELLS))
    found: dict[str, pd.DataFrame] = {}
    for level in ("replicates", "treatments"):
        if (path := study.scores_folder / f"queries_{level}.csv").exists():
            found[level] = read_table(path)
    scores, selection = (
        read_table(path) if (path := study.scores_folder / name).exists() else None
        for name in ("scores.csv", "selection.csv")
    )
    card_file = study.features / "card.json"
    card = json.loads(card_file.read_text("utf-8")) if card_file.exists() else {}
    weights = card.get("weights")
    history = study.models / str(weights) / "history.csv"
    name = f"{study.profile.name}, {study.profiles.recipe}"
    if scores is not None and (how := stale_scores(study, manifest)):
        warnings.append(f"The scores of {name} were {how}: run `deepprofile score`.")
    return Result(
        name,
        wells,
        treatments,
        raw,
        scores,
        selection,
        found,
        read_table(history) if weights and history.is_file() else None,
        _montages(study, index, wells),
        _legend(list(study.channels)),
        _left_out(study, index, manifest),
        {"recipe": study.profiles.model_dump(mode="json"), "model": card},
        [name for name in map(str, wells.columns) if not name.startswith(METADATA)],
    )


def _compared(study: Study, warnings: list[str]) -> Comparison | None:
    """What `deepprofile compare` wrote to scores/, if it did."""
    path = study.root / "scores" / "compare.json"
    if not path.exists():
        return None
    try:
        told = json.loads(path.read_text("utf-8"))
        runs, made_of = told["runs"], told["made_of"]
        # a curve that is nowhere defined has no numbers, only nulls
        curves = {
            run: {name: pd.DataFrame(rows).astype(float) for name, rows in named.items()}
            for run, named in told["curves"].items()
        }
        tables = [pd.DataFrame(told[name]) for name in ("runs", "pairs", "selection")]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a comparison of this version; run `deepprofile compare` again") from error
    here = [row for row in runs if row["study"] == study.root.name and row["recipe"] is not None]
    folders = {row["run"]: study.root / "profiles" / row["model"] / row["recipe"] for row in here}
    parts = {run: Manifest.read(folder, "profiles").parts for run, folder in folders.items()}
    if old := [run for run, made in parts.items() if CONSENSUS not in made or made[CONSENSUS].key != made_of.get(run)]:
        warnings.append(f"The comparison was made before the profiles of {', '.join(old)}: run `deepprofile compare`.")
    pairs = tables[1] if len(tables[1]) else pd.DataFrame(columns=PAIRS)
    return Comparison(tables[0], pairs, curves, tables[2], pd.DataFrame())


def _left_out(study: Study, index: pd.DataFrame, profiles: Manifest) -> list[dict[str, Any]]:
    plates = [str(plate) for plate in index[PLATE].unique()]
    tables = [
        table.manifest for plate in plates for table in (plate_locations(study, plate), plate_features(study, plate))
    ]
    skipped = [row for manifest in (*tables, profiles) for part in manifest.parts.values() for row in part.skipped]
    return by_reason(dict.fromkeys(skipped))


def _quality(study: Study, index: pd.DataFrame) -> pd.DataFrame | None:
    rows = []
    for plate in index[PLATE].unique():
        path = study.root / ILLUMINATION / f"{plate}_sites.parquet"
        if path.exists():
            table = pd.read_parquet(path)
            saturated, focus = table.filter(regex="^Saturated_"), table.filter(regex="^FocusZ_")
            rows.append(
                {
                    "plate": plate,
                    "sites": len(table),
                    f"over {SATURATED:.0%} saturated": int((saturated > SATURATED).any(axis=1).sum()),
                    f"out of focus (robust z < {OUT_OF_FOCUS:g})": int((focus < OUT_OF_FOCUS).any(axis=1).sum()),
                    "unreadable": int((table[WHY] != "").sum()),
                }
            )
    return pd.DataFrame(rows) if rows else None


# --- pictures of cells ---------------------------------------------------------------------------------------------


def _montages(study: Study, index: pd.DataFrame, wells: pd.DataFrame) -> dict[str, npt.NDArray[np.uint8]]:
    """Cells nearest to the mean of each treatment, and of the controls (""), as the network sees them; else nothing."""
    if study.profile.files is not None:
        return {}
    features = [name for name in map(str, wells.columns) if not name.startswith(METADATA)]
    X = wells[features].to_numpy(np.float64)
    names = treatment_names(wells, study.consensus)
    control = (
        np.zeros(len(wells), dtype=bool) if study.controls is None else select(wells, study.controls).to_numpy(bool)
    )
    strength = phenotype_strength(X, X[control]) if control.any() else np.linalg.norm(X, axis=1)
    treated = ~control & (names != "").to_numpy()
    strongest = (
        pd.Series(strength[treated])
        .groupby(names[treated].to_numpy())
        .median()
        .sort_values(ascending=False, kind="stable")
    )
    groups = {"": wells[control]} if control.any() else {}
    groups |= {str(name): wells[treated & (names == name).to_numpy()] for name in strongest.index[:MOST_MONTAGES]}
    try:
        pictures = dict(_typical_cells(study, index, groups))
    except InputError as error:
        log.warning("report: no pictures of cells, as %s", error)
        return {}
    if not pictures:
        return {}
    reference = pictures.get("", np.concatenate(list(pictures.values())))
    low, high = np.percentile(reference, [1, 99.7], axis=(0, 1, 2))
    return {name: _coloured(crops, low, high) for name, crops in pictures.items()}


def _typical_cells(
    study: Study, index: pd.DataFrame, groups: Mapping[str, pd.DataFrame]
) -> Iterator[tuple[str, np.ndarray]]:
    """The crops of each group's typical cells, float32 (n, H, W, C), 0 to 1."""
    sources: dict[str, Any] = {}
    scale: np.ndarray | None = None
    for name, members in groups.items():
        cells, features = _cells(study, _spread(members))
        if not len(cells):
            continue
        if scale is None:  # of the first group, which are the controls where there are some
            scale = np.maximum(features.std(axis=0), 1e-6)
        away = (((features - features.mean(axis=0)) / scale) ** 2).sum(axis=1)
        chosen = cells.iloc[np.argsort(away, kind="stable")[:CELLS]]
        crops = []
        for key, rows in chosen.groupby([PLATE, WELL, SITE], sort=True):
            plate, well, site = map(str, key)
            if plate not in sources:
                sources[plate] = open_source(study, index, plate, located=False)
            row = next(one for one in site_rows(sources[plate].sites[well]) if one[SITE] == site)
            read = read_source(study, row)
            if isinstance(read, str):
                continue
            xy = rows[[f"{METADATA}Location_X", f"{METADATA}Location_Y"]].to_numpy(np.float64)
            cut = read.cut(study.preprocess, xy, rows[CELL].to_numpy(np.int64))
            crops.append(sources[plate].scale(study.preprocess, read, cut))
        if crops:
            yield name, np.concatenate(crops)


def _spread(members: pd.DataFrame) -> pd.DataFrame:
    """A few wells, of different plates where there are some."""
    turn = members.groupby(PLATE, sort=False).cumcount().to_numpy()
    return members.iloc[np.sort(np.argsort(turn, kind="stable")[:_WELLS])]


def _cells(study: Study, members: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    keys, features = [], []
    for plate, well in zip(members[PLATE], members[WELL], strict=True):
        table = plate_features(study, str(plate)).read(str(well))
        if len(table):
            values = table["features"].combine_chunks()
            features.append(np.asarray(values.flatten(), np.float32).reshape(len(table), values.type.list_size))
            keys.append(table.drop_columns("features").to_pandas())
    if not keys:
        return pd.DataFrame(), np.empty((0, 0), np.float32)
    return pd.concat(keys, ignore_index=True), np.concatenate(features)


def _colours(channels: int) -> list[str]:
    return ["white"] if channels == 1 else [list(_COLOURS)[at % len(_COLOURS)] for at in range(channels)]


def _legend(channels: list[str]) -> str:
    said = [f"{name} {colour}" for name, colour in zip(channels, _colours(len(channels)), strict=True)]
    return f"Crops as the network sees them: {', '.join(said)}."


def _coloured(crops: np.ndarray, low: np.ndarray, high: np.ndarray) -> npt.NDArray[np.uint8]:
    """Channels as colours that add up, (n, H, W, 3)."""
    bright = np.clip((crops - low) / np.maximum(high - low, 1e-6), 0, 1).astype(np.float32)
    colours = np.array([_COLOURS.get(name, (1.0, 1.0, 1.0)) for name in _colours(crops.shape[-1])], dtype=np.float32)
    mixed = bright @ colours / max(1.0, float(colours.sum(axis=0).max()) / 2)
    return np.round(255 * np.clip(mixed, 0, 1)).astype(np.uint8)
