"""Where the cells are: found by a locator plugin, or read from files; one table a plate."""

import inspect
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cytominer_tools.columns import CELL, METADATA, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.files import safe_name
from cytominer_tools.manifest import PlateTable, fingerprint
from cytominer_tools.tables import read_table
from deepprofile.index import load_index, sites_by_well
from deepprofile.registry import load
from deepprofile.sites import image_fingerprint, site_image, site_rows
from deepprofile.study import Study
from deepprofile.work import Done, log, map_ahead, progress, workers

STAGE = "locations"
X, Y = "Metadata_Location_X", "Metadata_Location_Y"
# as CellProfiler and DeepProfiler name them, tried in this order
_CENTRES = (
    ("Nuclei_Location_Center_X", "Nuclei_Location_Center_Y"),
    ("Location_Center_X", "Location_Center_Y"),
    ("Nuclei_AreaShape_Center_X", "Nuclei_AreaShape_Center_Y"),
    ("AreaShape_Center_X", "AreaShape_Center_Y"),
    (X, Y),
    ("x", "y"),
)


@dataclass(frozen=True)
class _Site:
    row: Mapping[str, str]
    cells: pd.DataFrame | None  # x, y and the locator's other columns
    why: str = ""  # where there are none because the site is bad


def locate_cells(study: Study, *, strict: bool = False) -> Done:
    """Write locations/PLATE/cells.parquet: a row per cell with its key, its centre (px) and the locator's columns.

    A site whose image cannot be read, or whose location file is missing, is left out and reported.

    Raises
    ------
    InputError
        The locator or a setting is unknown; with `strict`, also the first bad site.
    """
    index = load_index(study)
    locate = None if study.locate.files else _locator(study)
    settings = location_settings(study)
    made = kept = rows = 0
    skipped: list[tuple[str, str]] = []
    with study.writing(), progress("locate", len(index), "sites") as advance:
        for plate in index[PLATE].unique():
            wells = sites_by_well(index, plate)
            table = plate_locations(study, plate)
            for change in table.manifest.expect(settings):
                log.info("locate: plate %s: %s: it runs again", plate, change)
            keys = {well: table.manifest.key(_inputs(study, sites)) for well, sites in wells.items()}
            current = [well for well in wells if table.manifest.is_current(well, keys[well])]
            if strict:  # a bad site of an earlier run is read again, and refused
                current = [well for well in current if not table.manifest.parts[well].skipped]
            todo = [well for well in wells if well not in current]
            advance(sum(len(wells[well]) for well in current))
            queue = [row for well in todo for row in site_rows(wells[well])]
            # closed whatever happens: the threads of an error that is kept would go on
            with closing(map_ahead(lambda row: _find(study, locate, row), queue, 2 * workers())) as found:
                for well in todo:
                    sites = []
                    for _ in range(len(wells[well])):
                        sites.append(next(found))
                        advance(1)
                    bad = [(f"{plate} {well} site {s.row[SITE]}", s.why) for s in sites if s.cells is None]
                    if strict and bad:
                        raise InputError(f"{bad[0][0]}: {bad[0][1]}")
                    table.write(well, keys[well], _table(sites), bad)
            table.finish(wells)
            made, kept = made + len(todo), kept + len(wells) - len(todo)
            for part in table.manifest.parts.values():
                rows += part.rows
                skipped += part.skipped
    return Done("locate", made, kept, rows, "cells", tuple(skipped))


def plate_locations(study: Study, plate: str) -> PlateTable:
    """The locations of `plate`, as far as they are made."""
    return PlateTable(study.root / STAGE / safe_name(plate), STAGE)


def read_located(study: Study, row: Mapping[str, str]) -> pd.DataFrame:
    """The cells of one site from the files that `locate.files` names.

    Returns
    -------
    DataFrame
        x and y, float64, px, in the order of the file; no rows where the file has none.

    Raises
    ------
    InputError
        No file, no columns of centres, or text in them.
    """
    path = _location_path(study, row)
    table = read_table(path)
    centres = [(study.locate.x, study.locate.y)] if study.locate.x and study.locate.y else list(_CENTRES)
    for x, y in centres:
        if x in table and y in table:
            break
    else:
        have = ", ".join(map(str, table.columns[:8]))
        raise InputError(f"{path}: no columns of cell centres; it has {have}; name them in locate.x and locate.y")
    cells = pd.DataFrame({name: pd.to_numeric(table[column], errors="coerce") for name, column in (("x", x), ("y", y))})
    bad = (~np.isfinite(cells.to_numpy(float))).any(axis=1).nonzero()[0]
    if len(bad):
        raise InputError(f"{path} row {bad[0] + 2}: {x}, {y} are {list(table[[x, y]].iloc[bad[0]])}, expected numbers")
    return cells.astype(np.float64)


def _locator(study: Study) -> Any:
    locate = load("deepprofile.locators", study.locate.method)
    try:
        inspect.signature(locate).bind(None, channels=(), pixel_size_um=None, **study.locate.params)
    except TypeError as error:
        raise InputError(f"locate.params: {error}; `deepprofile models` lists the parameters") from None
    return locate


def _location_path(study: Study, row: Mapping[str, str]) -> Path:
    template = str(study.locate.files)
    try:
        name = template.format(plate=row[PLATE], well=row[WELL], site=row[SITE])
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"locate.files {template!r}: only {{plate}}, {{well}} and {{site}} are filled in") from error
    return study.path(name)


def location_settings(study: Study) -> dict[str, Any]:
    if study.locate.files:
        return study.locate.model_dump(include={"files", "x", "y"})
    channel = _channel(study)
    return {
        **study.locate.model_dump(include={"method", "params"}),
        "channel": channel,
        "column": study.channels[channel],
        "pixel_size_um": study.images.pixel_size_um,
        "size": list(study.images.size) if study.images.size else None,
    }


def _channel(study: Study) -> str:
    return study.locate.channel or next(iter(study.channels))


def _inputs(study: Study, sites: pd.DataFrame) -> list[Any]:
    if study.locate.files:
        return fingerprint([_location_path(study, row) for row in site_rows(sites)], study.root)
    return image_fingerprint(study, sites, [_channel(study)])


def _find(study: Study, locate: Any, row: Mapping[str, str]) -> _Site:
    try:
        if locate is None:
            return _Site(row, read_located(study, row))
        channel = _channel(study)
        image = site_image(study, row, [channel])
    except InputError as error:
        return _Site(row, None, str(error))
    pixels, size = image.astype(np.float32), study.images.pixel_size_um
    # the image is sound, so what the locator refuses is a parameter, and would be refused at every site
    cells, _ = locate(pixels, channels=(channel,), pixel_size_um=size, **study.locate.params)
    return _Site(row, cells)


def _table(sites: list[_Site]) -> pa.Table:
    frames = []
    for site in sites:
        if site.cells is not None:
            cells = site.cells
            key = {PLATE: site.row[PLATE], WELL: site.row[WELL], SITE: site.row[SITE]}
            frame = pd.DataFrame({**key, CELL: np.arange(len(cells), dtype=np.int32)}, index=cells.index)
            more = [name for name in cells.columns if name not in ("x", "y")]
            renamed = cells[more].rename(columns=lambda name: f"{METADATA}{name.capitalize()}")
            frames.append(frame.assign(**{X: cells["x"].astype(float), Y: cells["y"].astype(float)}).join(renamed))
    if not frames:  # every site is bad: the columns of the key alone
        columns = {PLATE: "str", WELL: "str", SITE: "str", CELL: "int32", X: "float64", Y: "float64"}
        frames = [pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in columns.items()})]
    table = pa.Table.from_pandas(pd.concat(frames, ignore_index=True), preserve_index=False).replace_schema_metadata()
    text = [pa.field(f.name, pa.string()) if f.name in (PLATE, WELL, SITE) else f for f in table.schema]
    return table.cast(pa.schema(text))
