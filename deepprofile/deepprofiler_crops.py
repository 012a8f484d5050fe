"""DeepProfiler's own layout of single cells: a PNG a cell with its channels side by side, and sc-metadata.csv."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import imagecodecs
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cytominer_tools.columns import CELL, METADATA, PLATE, SITE, WELL, require_columns
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_folder, safe_name, sweep
from cytominer_tools.manifest import Manifest, PlateTable, digest, fingerprint
from cytominer_tools.tables import read_table, write_table
from cytominer_tools.threads import map_ahead, workers
from deepprofile.codes import find_column, plain_text
from deepprofile.crop_selection import chosen_cells
from deepprofile.crop_source import (
    CropSource,
    SiteSource,
    keep_earlier_parts,
    lacks_site,
    lost_cells,
    open_source,
    read_source,
    site_name,
)
from deepprofile.index import load_index
from deepprofile.locations import X, Y
from deepprofile.platemaps import plain_well
from deepprofile.preprocess import Preprocess
from deepprofile.sites import site_rows
from deepprofile.study import Study
from deepprofile.work import Done, log, progress

STAGE = "single-cells"
TABLE = "sc-metadata.csv"
# its columns, as DeepProfiler calls them
INDEX, NUCLEUS_X, NUCLEUS_Y = "index", "Nuclei_Location_Center_X", "Nuclei_Location_Center_Y"
KEY, TARGET, IMAGE = "Key", "Target", "Image_Name"
SPLIT = f"{METADATA}Split"
_BATCH = 32  # crops in memory for each thread, at most


class DeepProfilerCrops:
    """Single cells in DeepProfiler's layout, written by it or by `export_png`; read as `deepprofile.Crops` is.

    A mask, where the strips have one, is applied: pixels outside are 0. DeepProfiler stretched the 8 bits of each strip
    between its own minimum and maximum, so that crops differ from what profiling sees.

    Parameters
    ----------
    path : str or Path
        The folder of sc-metadata.csv.
    channels : sequence of str
        Those of a strip from left to right, which DeepProfiler's files do not name; `export_png` notes them, and then
        these are not looked at.

    Attributes
    ----------
    table : DataFrame, a row per crop
        In the order of sc-metadata.csv: plate, well and site from its column Key, cell, centre (px), and its other
        columns with ``Metadata_`` before them.
    channels : tuple of str
    preprocess : Preprocess
        What was cut and scaled by before the strips were stretched.
    illumination : dict or None
    shape : (H, W, C)
    dtype : uint8
    key : str
        Changes whenever a crop may have changed.

    Raises
    ------
    InputError
        sc-metadata.csv is missing, lacks columns or lists no cell; the first strip cannot be read, or does not hold as
        many channels.
    """

    scaled = True  # 0 to 255 stand for 0 to 1
    same_as_profiling = False
    dtype = np.dtype(np.uint8)

    def __init__(self, path: str | Path, channels: Sequence[str]):
        self.path = Path(path)
        file = self.path / TABLE
        found = read_table(file, metadata=True)
        require_columns(found, [KEY, NUCLEUS_X, NUCLEUS_Y, IMAGE], str(file))
        if found.empty:
            raise InputError(f"{file}: it lists no cell")
        self.table = _our_names(found, file)
        self._images = found[IMAGE].astype("str").tolist()
        self._rows = np.arange(len(found))
        plates = [Manifest.read(self.path / safe_name(plate), STAGE) for plate in self.table[PLATE].unique()]
        settings = plates[0].settings
        self.channels = tuple(settings["preprocess"]["channels"] if settings else channels)
        first, place = self._read(0), self.path / self._images[0]
        size, segments = first.shape[0], first.shape[1] // first.shape[0]
        if first.shape[1] % size or segments - len(self.channels) not in (0, 1):
            raise InputError(
                f"{place}: {size} x {first.shape[1]} px are {first.shape[1] / size:g} squares, "
                f"where {len(self.channels)} channels ({', '.join(self.channels)}) need as many, and one more for a "
                "mask; name the channels it was exported with under `channels`"
            )
        if size % 2 or not 8 <= size <= 2048:
            raise InputError(f"{place}: crops of {size} px; expected an even number from 8 to 2048")
        self.shape = (size, size, len(self.channels))
        self._strip, masked = first.shape, segments > len(self.channels)
        # bilinear, each channel stretched over its crop: DeepProfiler knows no other way
        own: dict[str, Any] = {"size": size, "mode": "interpolate", "normalize": "minmax", "mask": masked}
        self.preprocess = Preprocess.model_validate(
            settings["preprocess"] if settings else own | {"channels": self.channels}
        )
        self.illumination: dict[str, Any] | None = settings["illumination"] if settings else None
        made = [part.key for plate in plates for part in plate.parts.values()]
        self.key = digest([fingerprint([file], self.path), made])

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.shape))
        return f"DeepProfilerCrops({str(self.path)!r}): {len(self):,} crops of {size} ({', '.join(self.channels)})"

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """The crops of `rows`, in that order, uint8 (n, H, W, C); whatever indexes an array of row numbers does.

        Raises
        ------
        InputError
            A file is missing, damaged or of another size than the first; the message names it.
        """
        chosen = self._rows[rows]
        out = np.empty((chosen.size, *self.shape), np.uint8)
        for crop, row in zip(out, chosen.reshape(-1).tolist(), strict=True):
            strip = self._read(row)
            if strip.shape != self._strip:
                sizes = [f"{shape[0]} x {shape[1]}" for shape in (strip.shape, self._strip)]
                raise InputError(f"{self.path / self._images[row]}: {sizes[0]} px, where the first cell has {sizes[1]}")
            size, channels = self.shape[0], self.shape[2]
            crop[...] = np.moveaxis(strip[:, : size * channels].reshape(size, channels, size), 1, 2)
            mask = strip[:, size * channels :]
            if mask.size:
                if np.any((mask != 0) & (mask != 255)):
                    raise InputError(
                        f"{self.path / self._images[row]}: its last square is no mask, which has 0 and 255 alone; name "
                        f"all of its {channels + 1} channels under `channels`"
                    )
                crop[mask == 0] = 0
        return out.reshape(*chosen.shape, *self.shape)

    def network_input(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """What DeepProfiler trains on: the crops of `rows` over 255, float32 (n, H, W, C)."""
        return np.divide(self[rows], np.float32(255), dtype=np.float32)

    def _read(self, row: int) -> np.ndarray:
        path = self.path / self._images[row]
        try:
            strip = imagecodecs.png_decode(path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{path}: no such file, but {TABLE} lists it; export the cells again") from None
        except (imagecodecs.PngError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as PNG ({error}); export the cells again") from error
        if strip.dtype != np.uint8 or strip.ndim != 2:
            shape = " x ".join(map(str, strip.shape))
            raise InputError(f"{path}: {shape} of {strip.dtype}; expected a strip of grey values in 8 bits")
        return strip


@dataclass
class _Plate:
    source: CropSource
    table: PlateTable
    left: int = 0  # wells that are not yet made


@dataclass(frozen=True)
class _Well:
    plate: _Plate
    name: str
    key: str
    chosen: np.ndarray | None  # bool, of the cells as located; None: all


@dataclass(frozen=True)
class _Classes:
    """The column that DeepProfiler calls the target, and what it numbers its values."""

    column: str
    numbers: dict[Any, int]

    @classmethod
    def of(cls, study: Study, index: pd.DataFrame) -> "_Classes":
        if len(study.label) != 1:
            have = f"are {', '.join(study.label)}" if study.label else "there is none"
            raise InputError(
                f"train.label: DeepProfiler's files have the class of a cell in their names, from one column; {have}: "
                "name one, or set columns.treatment"
            )
        column = find_column(index, study.label[0], "train.label")
        return cls(column, {value: i for i, value in enumerate(sorted(cls._values(index[column]).unique()))})

    @staticmethod
    def _values(values: pd.Series) -> pd.Series:
        """A number stays one, and is sorted as one, where no value is missing; else text, "" where it is missing."""
        if pd.api.types.is_numeric_dtype(values) and values.notna().all():
            return values
        return values.map(lambda value: "" if pd.isna(value) else plain_text(value)).astype("str")

    def columns(self, index: pd.DataFrame) -> pd.DataFrame:
        """The target of each site, its number, and the split where the index has one; as in sc-metadata.csv."""
        values = self._values(index[self.column])
        found = {TARGET: values.map(self.numbers).astype(np.int64), self.column.removeprefix(METADATA): values}
        if SPLIT in index:
            found[SPLIT.removeprefix(METADATA)] = self._values(index[SPLIT])
        return pd.DataFrame(found, index=index.index)


def export_png(study: Study, *, strict: bool = False) -> Done:
    """Write single-cells/PLATE/WELL/SITE/TARGET@XxY.png and sc-metadata.csv, as DeepProfiler's export-sc does.

    A strip of 8 bits holds the channels from left to right, and with `crops.mask` the cell's mask. Crops are cut and
    scaled as `crops` says, with ``mode: interpolate`` and ``normalize: minmax`` as DeepProfiler does, and each strip is
    then stretched between its own minimum and maximum. TARGET is the place of the class among the sorted values of its
    column. Of two cells of a site at one point, the second has ``-CELL`` in its name, where DeepProfiler overwrites the
    first.

    Cells are chosen, and bad sites left out, as in `deepprofile.export.export_crops`. Wells that are current are left
    alone; sc-metadata.csv is there only while every PNG is as it says.

    Raises
    ------
    InputError
        As `export_crops`; the class is not one column; single-cells holds files of somebody else; with `strict`, also
        the first bad site.
    """
    index = load_index(study)
    classes = _Classes.of(study, index)
    folder = study.root / STAGE
    with study.writing(), progress("export", len(index), "sites") as advance:
        if (folder / TABLE).exists() and not any(folder.glob("*/manifest.json")):
            raise InputError(f"{folder}: it holds cells that were exported elsewhere; move them, or delete the folder")
        about = classes.columns(index)
        plates = [_open(study, index, name, classes) for name in index[PLATE].unique()]
        chosen = chosen_cells(study, index, [plate.source for plate in plates])
        todo = [well for plate in plates for well in _stale(study, plate, chosen, about, strict)]
        earlier = [(well.plate.source, well.plate.table, well.name) for well in todo]
        keep_earlier_parts(study, f"the crops in {folder}", earlier)
        if todo or any(plate.table.manifest.parts.keys() - plate.source.sites.keys() for plate in plates):
            (folder / TABLE).unlink(missing_ok=True)
        for plate in plates:
            if not plate.left:
                _finish(plate)
        advance(len(index) - sum(len(well.plate.source.sites[well.name]) for well in todo))
        # closed whatever happens: the threads of an error that is kept would go on
        with closing(map_ahead(lambda well: _make(study, well, about, strict), todo, 2 * workers())) as done:
            for well, (table, skipped) in zip(todo, done, strict=True):
                well.plate.table.write(well.name, well.key, table, skipped)
                well.plate.left -= 1
                if not well.plate.left:
                    _finish(well.plate)
                advance(len(well.plate.source.sites[well.name]))
        _write_table(folder, plates)
    parts = [part for plate in plates for part in plate.table.manifest.parts.values()]
    left_out = tuple(row for part in parts for row in part.skipped)
    return Done("export", len(todo), len(parts) - len(todo), sum(part.rows for part in parts), "crops", left_out)


def eight_bit_strips(crops: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
    """Crops with their channels side by side, each strip between its minimum, 0, and its maximum, 255, rounded down.

    Parameters
    ----------
    crops : float32 array, shape (n, H, W, C)
    masks : bool array, shape (n, H, W), optional
        Becomes the last square of each strip, and counts in its minimum and maximum.

    Returns
    -------
    uint8 array, shape (n, H, C * W) or (n, H, (C + 1) * W)
        0 where a strip has one value alone.

    References
    ----------
    DeepProfiler 0.3.1, imaging/cropping.py, unfold_channels.
    """
    planes = np.moveaxis(crops, 3, 2)
    if masks is not None:
        planes = np.concatenate([planes, masks[:, :, None]], axis=2, dtype=np.float32)
    strips = planes.reshape(*planes.shape[:2], planes.shape[2] * planes.shape[3])
    low = strips.min(axis=(1, 2), keepdims=True)
    span = strips.max(axis=(1, 2), keepdims=True) - low
    return ((strips - low) / np.where(span > 0, span, 1) * np.float32(255)).astype(np.uint8)


def _open(study: Study, index: pd.DataFrame, name: str, classes: _Classes) -> _Plate:
    table = PlateTable(study.root / STAGE / safe_name(name), STAGE)
    sweep(table.folder, below=False)  # not below: there may be millions of files
    settings = {
        "target": classes.column,
        "classes": digest([str(value) for value in classes.numbers]),
        "preprocess": study.preprocess.model_dump(mode="json"),
        "illumination": study.correction,
    }
    for change in table.manifest.expect(settings):
        log.info("export: plate %s: %s: it runs again", name, change)
    return _Plate(open_source(study, index, name), table)


def _stale(
    study: Study, plate: _Plate, chosen: Mapping[tuple[str, str], np.ndarray], about: pd.DataFrame, strict: bool
) -> list[_Well]:
    """The wells of `plate` that are not current."""
    manifest, todo = plate.table.manifest, []
    for name, sites in plate.source.sites.items():
        kept = chosen.get((plate.source.plate, name))
        said = None if kept is None else digest(np.flatnonzero(kept).tolist())
        labels = about.loc[sites.index].astype("str").to_numpy().tolist()
        key = manifest.key([*plate.source.inputs(study, name), said, labels])
        current = manifest.is_current(name, key) and (plate.table.folder / safe_name(name)).is_dir()
        if not current or (strict and lacks_site(manifest.parts[name])):
            todo.append(_Well(plate, name, key, kept))
    plate.left = len(todo)
    return todo


def _make(study: Study, well: _Well, about: pd.DataFrame, strict: bool) -> tuple[pa.Table, list[tuple[str, str]]]:
    """Write the strips of one well; its rows of sc-metadata.csv, and what was left out."""
    source, preprocess = well.plate.source, study.preprocess
    cells = source.located.read(well.name)
    if well.chosen is not None:
        cells = cells.filter(pa.array(well.chosen))
    skipped: list[tuple[str, str]] = []
    sites = source.sites[well.name]
    targets = site_rows(about.loc[sites.index])
    tables = [_rows(cells.slice(0, 0).to_pandas(), "", [], targets[0])]
    with atomic_folder(well.plate.table.folder / safe_name(well.name)) as made:
        for row, target in zip(site_rows(sites), targets, strict=True):
            here = cells.filter(pc.equal(cells[SITE], row[SITE])).to_pandas()
            if here.empty:
                continue
            site, what = read_source(study, row, strict=strict), site_name(row)
            if isinstance(site, str):
                skipped.append((what, site))
                continue
            kept = preprocess.keep(here[[X, Y]].to_numpy(), site.image.shape)
            skipped += lost_cells(preprocess, what, kept)
            here = here[kept]
            names = _names(target[TARGET], here)
            (made / safe_name(row[SITE])).mkdir()
            for name, strip in zip(names, _strips(preprocess, source, site, here), strict=True):
                # without options: a difference filter and run lengths, twice as fast as level 1 and smaller
                (made / safe_name(row[SITE]) / name).write_bytes(cv2.imencode(".png", strip)[1].tobytes())
            # DeepProfiler's key, which is also the folder
            key = "/".join(safe_name(part) for part in (source.plate, well.name, row[SITE]))
            tables.append(_rows(here, key, names, target))
    rows = pd.concat(tables[1:] or tables, ignore_index=True)
    return pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(), skipped


def _strips(preprocess: Preprocess, source: CropSource, site: SiteSource, cells: pd.DataFrame) -> Iterator[np.ndarray]:
    whole = preprocess.model_copy(update={"mask": False})  # the mask stands beside the crop
    xy, numbers = cells[[X, Y]].to_numpy(), cells[CELL].to_numpy()
    for start in range(0, len(xy), _BATCH):
        some = slice(start, start + _BATCH)
        crops = source.scale(whole, site, whole.cut(site.image, xy[some]))
        masks = None
        if site.labels is not None:
            masks = site.masks(whole, xy[some], numbers[some])
        yield from eight_bit_strips(crops, masks)


def _names(target: Any, cells: pd.DataFrame) -> list[str]:
    names: dict[str, None] = {}
    for x, y, cell in zip(cells[X].tolist(), cells[Y].tolist(), cells[CELL].tolist(), strict=True):
        name = f"{target}@{x}x{y}"
        names[f"{name}-{cell}.png" if f"{name}.png" in names else f"{name}.png"] = None
    return list(names)


def _rows(cells: pd.DataFrame, key: str, names: Sequence[str], target: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of sc-metadata.csv in the order of DeepProfiler's columns."""
    theirs = {CELL: INDEX, X: NUCLEUS_X, Y: NUCLEUS_Y}
    first = {name: cells[ours] for ours, name in theirs.items()}
    more = {str(n).removeprefix(METADATA): cells[n] for n in cells if n not in (*theirs, PLATE, WELL, SITE)}
    images = [f"{key}/{name}" for name in names]
    last: dict[str, Any] = {KEY: key, **target, IMAGE: images}
    rows = pd.DataFrame({**first, **{n: more[n] for n in more if n not in first and n not in last}, **last})
    # the types of a well without cells are those of others
    return rows.astype({KEY: "str", IMAGE: "str"} | {name: type(value) for name, value in target.items()})


def _finish(plate: _Plate) -> None:
    plate.table.finish(plate.source.sites)
    named = {safe_name(well) for well in plate.source.sites}
    for path in plate.table.folder.iterdir():
        if path.is_dir() and path.name not in named:
            shutil.rmtree(path)


def _write_table(folder: Path, plates: Iterable[_Plate]) -> None:
    """Write sc-metadata.csv from the tables of the plates, where it is not there or lists other wells."""
    sweep(folder, below=False)
    tables = [plate.table.read(well).to_pandas() for plate in plates for well in sorted(plate.source.sites)]
    found = pd.concat([table for table in tables if len(table)] or tables, ignore_index=True)
    found = found[[*(n for n in found if n != IMAGE), IMAGE]]
    path = folder / TABLE
    text = found.to_csv(index=False, lineterminator="\n")
    if not path.exists() or path.read_text("utf-8") != text:
        write_table(found, path)


def _our_names(found: pd.DataFrame, file: Path) -> pd.DataFrame:
    """The table of the crops from sc-metadata.csv."""
    keys = found[KEY].astype("str")
    # from the right: DeepProfiler makes a slash of each hyphen of a plate
    parts = {key: [unquote(part) for part in key.rsplit("/", 2)] for key in keys.unique()}
    if odd := [key for key, part in parts.items() if len(part) != 3]:
        raise InputError(f"{file}: {KEY} {odd[0]!r}: expected plate/well/site")
    columns: dict[str, Any] = {name: keys.map({k: p[i] for k, p in parts.items()}) for i, name in enumerate(_PLACE)}
    columns[WELL] = columns[WELL].map({well: plain_well(well) or well for well in columns[WELL].unique()})
    numbered = INDEX in found and pd.api.types.is_integer_dtype(found[INDEX])
    columns[CELL] = (found[INDEX] if numbered else found.groupby(KEY, sort=False).cumcount()).astype(np.int32)
    for theirs, ours in ((NUCLEUS_X, X), (NUCLEUS_Y, Y)):
        columns[ours] = pd.to_numeric(found[theirs], errors="coerce").astype(np.float64)
        if bad := columns[ours].isna().to_numpy().nonzero()[0].tolist():
            raise InputError(f"{file} row {bad[0] + 2}: {theirs} is {found[theirs].iloc[bad[0]]!r}, expected px")
    for name in found.columns.drop([KEY, NUCLEUS_X, NUCLEUS_Y, IMAGE, INDEX], errors="ignore"):
        ours = str(name) if str(name).startswith(METADATA) else f"{METADATA}{name}"
        if ours not in columns:
            columns[ours] = _truth(found[name])
    return pd.DataFrame(columns).astype(dict.fromkeys(_PLACE, "str"))


_PLACE = (PLATE, WELL, SITE)


def _truth(values: pd.Series) -> pd.Series:
    """`values` as booleans where they are the words of booleans."""
    return values == "True" if values.isin(["True", "False"]).all() else values
