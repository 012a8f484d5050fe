"""DeepProfiler's feature files: a .npz a site with features, locations and metadata, written and read."""

import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from cytominer_tools.columns import CELL, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_folder, atomic_path, safe_name, sweep
from cytominer_tools.manifest import Manifest, fingerprint
from cytominer_tools.npz import feature_array
from cytominer_tools.npz import read_npz as read_arrays
from cytominer_tools.threads import map_ahead, workers
from deepprofile.crop_source import site_name
from deepprofile.features import CARD, feature_settings, plate_features
from deepprofile.index import load_index, sites_by_well
from deepprofile.locations import X, Y
from deepprofile.platemaps import plain_well, well_spellings
from deepprofile.sites import site_rows
from deepprofile.study import Study, template_fields
from deepprofile.work import Done, keep_earlier, log, progress

STAGE = "npz"
MODEL = "Metadata_Model"
# below the folder of a plate: DeepProfiler 0.2, and since 0.3
LAYOUTS = {"site": "{well}_{site}.npz", "granular": "{well}/{site}.npz"}


@dataclass(frozen=True)
class SiteFeatures:
    """What a feature file holds."""

    features: np.ndarray  # float32 (n, d)
    locations: np.ndarray | None  # float64 (n, 2): x and y, px; None where the file has none
    metadata: dict[str, Any]  # the row of the index, and Metadata_Model


def read_npz(path: str | Path) -> SiteFeatures:
    """Read one feature file; nothing in it is executed, see `cytominer_tools.plain_pickle`.

    Raises
    ------
    InputError
        No such file, damaged, without `features`, or with more than plain values in its pickled parts.
    """
    path = Path(path)
    try:
        found = read_arrays(path, ("features", "locations", "metadata"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    features, metadata = feature_array(path, found), found.get("metadata", {})
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: metadata is a {type(metadata).__name__}; expected a dict")
    locations = found.get("locations")
    if locations is not None:
        try:
            locations = np.asarray(locations[:, :2], np.float64)
        except (IndexError, TypeError, ValueError):
            raise InputError(f"{path}: locations are no columns of numbers; expected x and y, px") from None
        if locations.shape != (len(features), 2):
            raise InputError(f"{path}: {len(locations)} locations for {len(features)} cells; make it again")
    return SiteFeatures(features.astype(np.float32, copy=False), locations, {str(k): v for k, v in metadata.items()})


def write_npz(path: Path, found: SiteFeatures) -> None:
    """Write one feature file as DeepProfiler does: compressed, the metadata as a pickled dict."""
    arrays: dict[str, Any] = {"features": found.features, "metadata": np.array(found.metadata, object)}
    if found.locations is not None:
        arrays["locations"] = found.locations
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def export_npz(study: Study, folder: Path, layout: Literal["site", "granular"] = "granular") -> Done:
    """Write the single-cell features of `study` as DeepProfiler's files, one a site.

    FOLDER/PLATE/WELL/SITE.npz, as DeepProfiler 0.3 and later, or with ``layout="site"`` FOLDER/PLATE/WELL_SITE.npz, as
    0.2. `metadata` is the row of the index and Metadata_Model, the name of the model. As there, a site without cells
    has no file. Plates that are current are left alone.

    Raises
    ------
    InputError
        The features are not made, or `folder` holds files of somebody else.
    """
    index, folder = load_index(study), Path(folder)
    manifest = Manifest.read(folder, STAGE)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "manifest.json").exists():
        raise InputError(f"{folder}: it holds files that this command has not written; give it an empty folder")
    manifest.expect({"layout": layout, "model": study.profile.name})
    made, plates = 0, list(index[PLATE].unique())
    with study.writing(), progress(STAGE, len(index), "sites") as advance:
        manifest.save()  # first, so that what a kill leaves is known for ours
        sweep(folder, below=False)
        for plate in plates:
            wells, table = sites_by_well(index, plate), plate_features(study, plate)
            # all but the hash of the weights, for which the network would have to be built
            table.manifest.require(wells, table.manifest.settings | feature_settings(study), "deepprofile profile")
            rows = {well: [_metadata(study, row) for row in site_rows(sites)] for well, sites in wells.items()}
            key = manifest.key([[table.manifest.parts[well].key for well in wells], rows])
            if manifest.is_current(plate, key):
                advance(sum(map(len, rows.values())))
                continue

            def write(well: str) -> int:
                return _write_well(place, layout, table.read(well).to_pandas(), wells[well], rows[well])  # noqa: B023

            with atomic_folder(folder / safe_name(plate)) as place, closing(map_ahead(write, wells, workers())) as done:
                written = 0
                for well, n in zip(wells, done, strict=True):
                    written += n
                    advance(len(rows[well]))
            manifest.record(plate, key, safe_name(plate), written)
            made += 1
    rows_written = sum(manifest.parts[plate].rows for plate in plates)
    return Done(STAGE, made, len(plates) - made, rows_written, f"sites in {folder}")


def import_features(study: Study, *, strict: bool = False) -> Done:
    """Make features/MODEL/PLATE/cells.parquet of the files that `profile.files` names; the stages after it go on there.

    The key of a cell is its row in the file. Sites without a file are left out and reported: DeepProfiler writes none
    where there is no cell. So are cells with features that are not finite, which it has of boxes off the image.

    Raises
    ------
    InputError
        No file can be used, or features differ in width; with `strict`, also the first site that is left out.
    """
    index = load_index(study)
    files = _Files(study)
    first = files.first(site_rows(index))
    settings = feature_settings(study) | {"width": first["width"]}
    with study.writing(), progress("profile", len(index), "sites") as advance:
        with atomic_path(study.features / "card.json") as path:
            path.write_text(json.dumps(first, indent=1) + "\n", "utf-8")
        todo: list[tuple[str, str, str]] = []
        tables = {plate: plate_features(study, plate) for plate in index[PLATE].unique()}
        sites = {plate: sites_by_well(index, plate) for plate in tables}
        for plate, table in tables.items():
            for change in table.manifest.expect(settings):
                log.info("profile: plate %s: %s: it runs again", plate, change)
            for well, here in sites[plate].items():
                key = table.manifest.key(fingerprint([files.path(row) for row in site_rows(here)], study.root))
                part = table.manifest.parts.get(well)
                if not table.manifest.is_current(well, key) or (strict and part and part.skipped):
                    todo.append((plate, well, key))
        advance(len(index) - sum(len(sites[plate][well]) for plate, well, _ in todo))
        had = [
            row
            for plate, well, _ in todo
            if well in tables[plate].manifest.parts and tables[plate].manifest.parts[well].rows
            for row in site_rows(sites[plate][well])
        ]
        keep_earlier(f"the features in {study.features}", had, files.refusal)

        def read(one: tuple[str, str, str]) -> tuple[pa.Table, list[tuple[str, str]]]:
            return files.well(site_rows(sites[one[0]][one[1]]), first, strict)

        with closing(map_ahead(read, todo, 2 * workers())) as done:
            for (plate, well, key), (cells, skipped) in zip(todo, done, strict=True):
                tables[plate].write(well, key, cells, skipped)
                advance(len(sites[plate][well]))
        for plate, table in tables.items():
            table.finish(sites[plate])
    done_parts = [part for table in tables.values() for part in table.manifest.parts.values()]
    left_out = tuple(row for part in done_parts for row in part.skipped)
    unit = f"cells x {first['width']} features"
    return Done(
        "profile", len(todo), len(done_parts) - len(todo), sum(part.rows for part in done_parts), unit, left_out
    )


class _Files:
    """The files that `profile.files` names."""

    def __init__(self, study: Study):
        self.study, self.template = study, str(study.profile.files)
        if "site" not in template_fields("profile.files", self.template, ("plate", "well", "site")):
            raise InputError(f"profile.files {self.template!r}: each site has a file; put {{site}} into the name")

    def path(self, row: Mapping[str, str]) -> Path:
        """The file of one row of the index; of well A1 or a01, or of site 1 for 01, where there is that one alone."""
        sites = [row[SITE], *([str(int(row[SITE]))] if row[SITE].isdecimal() else [])]
        keys = [{"plate": row[PLATE], "well": w, "site": s} for w, s in product(well_spellings(row[WELL]), sites)]
        keys += [{name: safe_name(value) for name, value in key.items()} for key in keys]
        names = dict.fromkeys(self.template.format(**key) for key in keys)
        paths = [self.study.path(name) for name in names]
        return next((path for path in paths if path.is_file()), paths[0])

    def first(self, rows: Iterable[Mapping[str, str]]) -> dict[str, Any]:
        """The card: what all files have in common, from the first that can be read.

        Raises
        ------
        InputError
            None can be, or its features are not those of the channels of the study, side by side.
        """
        study, why = self.study, ""
        for row in rows:
            path = self.path(row)
            try:
                found = read_npz(path)
            except InputError as error:
                why = why or str(error)
                continue
            width = found.features.shape[1]
            if study.profile.mode == "repeat_channel" and width % len(study.channels):
                raise InputError(
                    f"{path}: {width} features are not those of {len(study.channels)} channels side by side; mend "
                    "`channels`, or leave profile.mode out"
                )
            made_by = found.metadata.get(MODEL)
            known = {"model": study.profile.name, "network": made_by, "width": width}
            return known | feature_settings(study) | {"channels": list(study.channels), "made_by": "DeepProfiler"}
        raise InputError(f"profile.files: no site has a file that can be used, the first: {why}")

    def refusal(self, row: Mapping[str, str]) -> str:
        try:
            read_npz(self.path(row))
        except InputError as error:
            return str(error)
        return ""

    def well(
        self, rows: list[dict[str, str]], card: Mapping[str, Any], strict: bool
    ) -> tuple[pa.Table, list[tuple[str, str]]]:
        """The cells of one well and what is left out of it."""
        width, tables = int(card["width"]), []
        skipped: list[tuple[str, str]] = []
        for row in rows:
            path = self.path(row)
            try:
                found = read_npz(path)
                _require_site(path, found.metadata, row)
            except InputError as error:
                if strict:
                    raise
                skipped.append((site_name(row), str(error)))
                continue
            if found.features.shape[1] != width:
                raise InputError(
                    f"{path}: {found.features.shape[1]} features a cell, where the first file has {width}; give each "
                    "model a study of its own"
                )
            finite = np.isfinite(found.features).all(axis=1)
            if lost := int((~finite).sum()):
                skipped.append((f"{site_name(row)}: {lost} of {len(finite)} cells", "their features are not finite"))
            tables.append(_cells(row, found, finite))
        table = pa.concat_tables(tables or [_cells(rows[0], SiteFeatures(np.empty((0, width), np.float32), None, {}))])
        return table.replace_schema_metadata({CARD: json.dumps(card, sort_keys=True)}), skipped


def _cells(row: Mapping[str, str], found: SiteFeatures, kept: np.ndarray | None = None) -> pa.Table:
    kept = np.ones(len(found.features), bool) if kept is None else kept
    n, width = int(kept.sum()), found.features.shape[1]
    nowhere = np.full((len(kept), 2), np.nan)
    xy = (nowhere if found.locations is None else found.locations)[kept]
    columns: dict[str, Any] = {name: pa.array([row[name]] * n, pa.string()) for name in (PLATE, WELL, SITE)}
    columns[CELL] = np.flatnonzero(kept).astype(np.int32)
    columns[X], columns[Y] = xy[:, 0], xy[:, 1]
    values = pa.array(found.features[kept].ravel(), pa.float32())
    columns["features"] = pa.FixedSizeListArray.from_arrays(values, width)
    return pa.table(columns)


def _require_site(path: Path, metadata: Mapping[str, Any], row: Mapping[str, str]) -> None:
    """Refuse a file that says it is of another site than its name."""
    for name in (PLATE, WELL, SITE):
        said = metadata.get(name)
        if said is not None and _same_name(str(said)) != _same_name(row[name]):
            raise InputError(f"{path}: it says that its {name} is {said!r}, and is looked up for {row[name]!r}")


def _same_name(name: str) -> str:
    return plain_well(name) or (str(int(name)) if name.isdecimal() else name)


def _metadata(study: Study, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of the index as DeepProfiler keeps it: plain values, "" where there is none, sites as numbers."""
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
    known = {name: "" if pd.isna(value) else value for name, value in plain.items()}
    known = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in known.items()}
    site = str(row[SITE])
    return known | {SITE: int(site) if site == str(_whole(site)) else site, MODEL: study.profile.name}


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _write_well(
    place: Path, layout: str, cells: pd.DataFrame, sites: pd.DataFrame, metadata: list[dict[str, Any]]
) -> int:
    """Write the files of the sites of one well that have cells; how many those are."""
    written = 0
    for row, about in zip(site_rows(sites), metadata, strict=True):
        here = cells[cells[SITE] == row[SITE]]
        if here.empty:
            continue
        path = place / LAYOUTS[layout].format(well=safe_name(row[WELL]), site=safe_name(row[SITE]))
        path.parent.mkdir(exist_ok=True)
        features = np.stack(here["features"].tolist()).astype(np.float32)
        write_npz(path, SiteFeatures(features, here[[X, Y]].to_numpy(np.float64), about))
        written += 1
    return written
