"""Where the cells are: found by a locator plugin, or read from files; one table a plate."""

import inspect
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import tifffile

from cytominer_tools.columns import CELL, METADATA, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path, safe_name
from cytominer_tools.manifest import Part, PlateTable, fingerprint
from cytominer_tools.threads import map_ahead, workers
from deepprofile.illumination import Correction
from deepprofile.index import load_index, sites_by_well
from deepprofile.intensities import plate_correction
from deepprofile.location_files import Labels, LocationFiles, misfit
from deepprofile.location_files import X as X
from deepprofile.location_files import Y as Y
from deepprofile.outlines import Outlines
from deepprofile.parts import Share, dealt_sites, dealt_wells, plate_lock
from deepprofile.registry import load
from deepprofile.sites import image_fingerprint, site_image, site_rows
from deepprofile.study import Study
from deepprofile.work import Done, keep_earlier, log, progress

STAGE = "locations"


@dataclass(frozen=True)
class _Site:
    row: Mapping[str, str]
    cells: pd.DataFrame | None  # x, y and the locator's other columns
    labels: bytes | None = None  # the TIFF of the label image, where it is kept
    why: str = ""  # where there are no cells because the site is bad


def locate_cells(study: Study, *, strict: bool = False, share: Share | None = None) -> Done:
    """Write locations/PLATE/cells.parquet: a row per cell with its key, its centre (px) and the locator's columns.

    A site whose image cannot be read, or whose location file is missing, is left out and reported; what is wrong with
    a file of many sites is reported once. The other columns, such as Metadata_Area (px**2) and Metadata_Border, are
    float64, bool or text whatever the site. With `locate.labels` the label image of each site is kept too, for
    `read_labels`. With `share` only its wells are looked at, where other processes have the rest.

    Raises
    ------
    InputError
        The locator or a setting is unknown; with `strict`, also the first bad site.
    """
    index = load_index(study)
    files = LocationFiles(study, index) if study.locate.files else None
    find = _locator_finder(study) if files is None else _files_finder(study, files)
    settings = location_settings(study)
    made = kept = rows = 0
    skipped: list[tuple[str, str]] = []
    dealt = dealt_wells(index, share)
    with study.writing(share), progress("locate", dealt_sites(index, dealt), "sites") as advance:
        for plate, mine in dealt.items():
            wells = sites_by_well(index, plate)
            table = plate_locations(study, plate, share)
            for change in table.manifest.expect(settings):
                log.info("locate: plate %s: %s: it runs again", plate, change)
            light = None if files is not None else plate_correction(study, plate)
            keys = {well: table.manifest.key(_inputs(study, files, sites, light)) for well, sites in wells.items()}
            current = [well for well in wells if table.manifest.is_current(well, keys[well])]
            if study.locate.labels:
                current = [w for w in current if _has_labels(study, table.manifest.parts[w], wells[w])]
            if strict:  # a bad site of an earlier run is read again, and refused
                current = [well for well in current if not table.manifest.parts[well].skipped]
            todo = [well for well in wells if well in mine and well not in current]
            parts = table.manifest.parts
            earlier = [row for well in todo if well in parts and parts[well].rows for row in site_rows(wells[well])]
            keep_earlier(f"the cells of plate {plate}, in {table.folder},", earlier, lambda row: find(row).why)
            advance(sum(len(wells[well]) for well in current if well in mine))
            queue = [row for well in todo for row in site_rows(wells[well])]
            # closed whatever happens: the threads of an error that is kept would go on
            with closing(map_ahead(find, queue, 2 * workers())) as found:
                for well in todo:
                    sites = []
                    for _ in range(len(wells[well])):
                        sites.append(next(found))
                        advance(1)
                    bad = [(_what(s.row), s.why) for s in sites if s.cells is None]
                    if strict and bad:
                        raise InputError(f"{bad[0][0]}: {bad[0][1]}")
                    _write_labels(study, table, well, sites)
                    table.write(well, keys[well], _table(sites), bad)
            parts = dict(table.manifest.parts)  # of this process, before it knows of others
            if table.complete(keys):
                _sweep_labels(study, plate, index[index[PLATE] == plate])
            made, kept = made + len(todo), kept + len(mine) - len(todo)
            for well in sorted(mine):
                rows += parts[well].rows
                skipped += parts[well].skipped
    return Done("locate", made, kept, rows, "cells", _told_once(skipped))


def plate_locations(study: Study, plate: str, share: Share | None = None) -> PlateTable:
    """The locations of `plate`, as far as they are made; with `share`, for a process that makes some of them."""
    folder = study.root / STAGE / safe_name(plate)
    return PlateTable(folder, STAGE, None if share is None else plate_lock(study.root, folder))


def read_located(study: Study, row: Mapping[str, str]) -> pd.DataFrame:
    """The cells of one site from the files that `locate.files` names; for many sites, `LocationFiles` reads each once.

    Returns
    -------
    DataFrame
        x and y, float64, px, in the order of the file, and where it has them area and border; no rows where the file
        has none.

    Raises
    ------
    InputError
        No file, no columns of centres, or text in them.
    """
    return LocationFiles(study).read(row).cells


def find_cells(study: Study, row: Mapping[str, str]) -> tuple[pd.DataFrame, Labels | None]:
    """The cells of one site as `locate_cells` would find or read them now, and their label image where there is one.

    Raises
    ------
    InputError
        The locator or a setting is unknown, the image cannot be read, or the location file is bad.
    """
    if study.locate.files:
        found = LocationFiles(study).read(row)
        return found.cells, found.labels
    channels = located_channels(study)
    pixels = site_image(study, row, channels).astype(np.float32)
    cells, labels = _locator(study)(
        pixels, channels=channels, pixel_size_um=study.images.pixel_size_um, **study.locate.params
    )
    return cells, labels


def read_labels(study: Study, row: Mapping[str, str]) -> Labels:
    """The label image of one site, as `locate_cells` keeps it with `locate.labels`.

    A crop with its neighbours masked is that of the pixels whose label is the cell's own, ``Metadata_Cell + 1``; what
    the labels outline (nuclei or whole cells) is what the locator or the label files do.

    Returns
    -------
    int32 array, shape (height, width)
        0 is background; i + 1 is the cell whose Metadata_Cell is i.

    Raises
    ------
    InputError
        There is none: it was not kept, or the site was left out.
    """
    path = label_path(study, row)
    if not path.is_file():
        raise InputError(f"{path}: no label image; set locate.labels to true and run `deepprofile locate`")
    return tifffile.imread(path).astype(np.int32)


def label_path(study: Study, row: Mapping[str, str]) -> Path:
    """Where the label image of one index row is kept."""
    return _label_folder(study, row[PLATE]) / f"{safe_name(row[WELL])}_{safe_name(row[SITE])}.tif"


def _locator(study: Study) -> Any:
    locate = load("deepprofile.locators", study.locate.method)
    try:
        inspect.signature(locate).bind(None, channels=(), pixel_size_um=None, **study.locate.params)
    except TypeError as error:
        raise InputError(f"locate.params: {error}; `deepprofile models` lists the parameters") from None
    return locate


def location_settings(study: Study) -> dict[str, Any]:
    """What study.yaml says about locations; not whether labels are kept, which changes no cell."""
    size = list(study.images.size) if study.images.size else None
    if study.locate.files:
        named = {"files", "object", "x", "y", *(["outlines"] if study.locate.outlines else [])}
        return {**study.locate.model_dump(include=named), "size": size}
    channels = located_channels(study)
    return {
        **study.locate.model_dump(include={"method", "params"}),
        "channel": channels if len(channels) > 1 else channels[0],
        "column": [study.channels[name] for name in channels] if len(channels) > 1 else study.channels[channels[0]],
        "pixel_size_um": study.images.pixel_size_um,
        "size": size,
    } | ({} if study.correction is None else {"illumination": study.correction})


def located_channels(study: Study) -> list[str]:
    """The channels the locator sees, nuclei first."""
    seen = study.locate.channel or next(iter(study.channels))
    return [seen] if isinstance(seen, str) else list(seen)


def _inputs(study: Study, files: LocationFiles | None, sites: pd.DataFrame, light: Correction | None) -> list[Any]:
    if files is not None:  # with the sites: one file may hold all of them
        rows = site_rows(sites)
        lines = Outlines(study).inputs(rows) if study.locate.outlines else []
        inputs = [fingerprint([*files.inputs(rows), *lines], study.root), [[row[SITE] for row in rows]]]
        # what `_misfit` reads: a site left out for the size of its image is looked at again when that is mended
        return inputs if study.images.size else [*inputs, image_fingerprint(study, sites, [next(iter(study.channels))])]
    images: list[Any] = image_fingerprint(study, sites, located_channels(study))
    return images if light is None else [images, light.digest]


def _locator_finder(study: Study) -> Callable[[Mapping[str, str]], _Site]:
    locate, channels, size = _locator(study), located_channels(study), study.images.pixel_size_um

    def find(row: Mapping[str, str]) -> _Site:
        try:
            pixels = site_image(study, row, channels).astype(np.float32)
        except InputError as error:
            return _Site(row, None, why=str(error))
        # the image is sound, so what the locator refuses is a parameter, and would be refused at every site
        cells, labels = locate(pixels, channels=channels, pixel_size_um=size, **study.locate.params)
        if not study.locate.labels:
            return _Site(row, cells)
        if labels is None:
            raise InputError(f"locate.labels: the locator {study.locate.method} makes no label image; set it to false")
        shape, highest = np.shape(labels), int(np.max(labels, initial=0))
        if shape != pixels.shape[:2] or highest > len(cells):
            raise InputError(
                f"locate.method {study.locate.method}: a label image of shape {shape} with labels up to {highest} "
                f"beside {len(cells)} rows; expected {pixels.shape[:2]}, and label i + 1 for row i"
            )
        return _Site(row, cells, _tiff(labels))

    return find


def _files_finder(study: Study, files: LocationFiles) -> Callable[[Mapping[str, str]], _Site]:
    outlines = Outlines(study) if study.locate.outlines else None

    def find(row: Mapping[str, str]) -> _Site:
        try:
            cells, labels = files.read(row)
            if outlines is not None:
                labels = outlines.regions(row)
            if why := _misfit(study, row, cells, labels):
                raise InputError(f"{files.path(row)}: {why}")
        except InputError as error:
            return _Site(row, None, why=str(error))
        return _Site(row, cells, _tiff(labels) if study.locate.labels and labels is not None else None)

    return find


def _misfit(study: Study, row: Mapping[str, str], cells: pd.DataFrame, labels: Labels | None) -> str:
    """Why the cells cannot be those of the image, "" where they can or where no image can be read.

    Where `images.size` is not set, the first channel of the site is read for its size.
    """
    shape = study.images.size
    if shape is None:
        try:
            shape = site_image(study, row, [next(iter(study.channels))], corrected=False).shape[:2]
        except InputError:
            return ""
    return misfit(cells, labels, shape)


def _what(row: Mapping[str, str]) -> str:
    return f"{row[PLATE]} {row[WELL]} site {row[SITE]}"


def _told_once(skipped: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """One line for the sites that were left out for the same reason: a file they share."""
    places: dict[str, list[str]] = {}
    for what, why in skipped:
        places.setdefault(why, []).append(what)
    more = {why: f" and {len(sites) - 1} more site(s)" if len(sites) > 1 else "" for why, sites in places.items()}
    return tuple((sites[0] + more[why], why) for why, sites in places.items())


def _label_folder(study: Study, plate: str) -> Path:
    return study.root / STAGE / safe_name(plate) / "labels"


def _tiff(labels: Any) -> bytes:
    """The compressed file, made in the thread that found the cells: what waits to be written is small."""
    small = np.max(labels, initial=0) < 2**16
    file = BytesIO()
    tifffile.imwrite(file, np.asarray(labels).astype(np.uint16 if small else np.int32), compression="zlib")
    return file.getvalue()


def _write_labels(study: Study, table: PlateTable, well: str, sites: list[_Site]) -> None:
    """Replace the label images of a well; it is forgotten before, so that a kill leaves no older cells beside them."""
    paths = [label_path(study, site.row) for site in sites]
    if not study.locate.labels and not any(path.exists() for path in paths):
        return
    table.forget(well)
    for path, site in zip(paths, sites, strict=True):
        if site.labels is None:
            path.unlink(missing_ok=True)
        else:
            with atomic_path(path) as part:
                part.write_bytes(site.labels)


def _has_labels(study: Study, part: Part, sites: pd.DataFrame) -> bool:
    without = {what for what, _ in part.skipped}
    return all(_what(row) in without or label_path(study, row).exists() for row in site_rows(sites))


def _sweep_labels(study: Study, plate: str, sites: pd.DataFrame) -> None:
    """Delete the label images of sites that are gone, all of them where none are kept."""
    folder = _label_folder(study, plate)
    if not study.locate.labels:
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.is_dir():
        names = {label_path(study, row).name for row in site_rows(sites)}
        for path in folder.iterdir():
            if path.name not in names:
                path.unlink()


def _table(sites: list[_Site]) -> pa.Table:
    frames = []
    for site in sites:
        # those without cells are passed over: the types of an empty table are accidents
        if site.cells is not None and len(site.cells):
            cells = site.cells
            key = {PLATE: site.row[PLATE], WELL: site.row[WELL], SITE: site.row[SITE]}
            frame = pd.DataFrame({**key, CELL: np.arange(len(cells), dtype=np.int32)}, index=cells.index)
            frame = frame.assign(**{X: cells["x"].astype(float), Y: cells["y"].astype(float)})
            for name in cells.columns:
                if name in ("x", "y"):
                    continue
                column = name if name.startswith(METADATA) else f"{METADATA}{name.capitalize()}"
                if column in frame:
                    raise InputError(f"the locator's column {name!r} would be {column}, which is taken; rename it")
                frame[column] = _one_type(cells[name])
            frames.append(frame)
    if not frames:  # no site has cells, or every site is bad: the columns of the key alone
        columns = {PLATE: "str", WELL: "str", SITE: "str", CELL: "int32", X: "float64", Y: "float64"}
        frames = [pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in columns.items()})]
    table = pa.Table.from_pandas(pd.concat(frames, ignore_index=True), preserve_index=False).replace_schema_metadata()
    text = [f.with_type(pa.string()) if pa.types.is_large_string(f.type) else f for f in table.schema]
    keys = [pa.field(f.name, pa.string()) if f.name in (PLATE, WELL, SITE) else f for f in text]
    return table.cast(pa.schema(keys))


def _one_type(values: pd.Series) -> pd.Series:
    """bool, float64 or text: a count that is whole at one site and missing at another must not change the type."""
    if pd.api.types.is_bool_dtype(values):
        return values
    return values.astype(float) if pd.api.types.is_numeric_dtype(values) else values.astype("str")
