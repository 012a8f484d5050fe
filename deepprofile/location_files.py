"""Cell centres from files: tables, CellProfiler's databases and label images; a file is what its suffix says."""

import csv
import gzip
import re
import sqlite3
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from scipy import ndimage

from cytominer_tools.columns import CELL, METADATA, PLATE, SITE, WELL, well_name
from cytominer_tools.errors import InputError
from deepprofile.images import read_image
from deepprofile.index import load_index
from deepprofile.platemaps import well_spellings
from deepprofile.sites import site_rows
from deepprofile.study import LOCATION_DATABASES, LOCATION_LABELS, Study, template_fields
from deepprofile.work import log

X, Y = "Metadata_Location_X", "Metadata_Location_Y"
KEYS = (PLATE, WELL, SITE)
_IMAGE, _TABLE = "_image", "_table"
_KEPT = 4  # tables in memory at a time; the plates of a study come one after the other
_LARGEST = 2**24  # label images of 32 bit pass through float32
_SEPARATORS = re.compile(r"[;\t]")

Labels = npt.NDArray[np.int32]


class Located(NamedTuple):
    """The cells of one site."""

    cells: pd.DataFrame  # x, y (px) and where the file has them area (px**2), border, ..
    labels: Labels | None  # i + 1 is row i of `cells`; None where the file is a table


class LocationFiles:
    """What `locate.files` names. A table that holds many sites is read once, and a few of them are kept.

    Parameters
    ----------
    study : Study
    index : DataFrame, optional
        The sites of the study, looked at only where a table does not say the site of a row.

    Raises
    ------
    InputError
        The template has other fields than {plate}, {well} and {site}.

    Notes
    -----
    CellProfiler counts pixels from 0 and gives the centre of a pixel as a whole number, as this project does, so its
    centres are taken as they are. Location_Center comes before AreaShape_Center: until CellProfiler 3 the latter was
    the pixel deepest inside the object, not its centroid.
    """

    def __init__(self, study: Study, index: pd.DataFrame | None = None):
        self.study = study
        self.template = str(study.locate.files)
        self.fields = template_fields("locate.files", self.template, ("plate", "well", "site"))
        self._index = index
        self._lock = Lock()
        self._tables: OrderedDict[Path, Future[_Table | InputError]] = OrderedDict()
        self._masks = 0

    def path(self, row: Mapping[str, str]) -> Path:
        """The file of one index row; well A1, a01 or a1 where there is that and no A01."""
        wells = well_spellings(row[WELL]) if "well" in self.fields else [row[WELL]]
        names = (self.template.format(plate=row[PLATE], well=well, site=row[SITE]) for well in wells)
        first = self.study.path(next(names))
        if first.exists():
            return first
        return next((path for name in names if (path := self.study.path(name)).exists()), first)

    def inputs(self, rows: Iterable[Mapping[str, str]]) -> list[Path]:
        """Every file that the cells of `rows` depend on, each once."""
        paths = dict.fromkeys(self.path(row) for row in rows)
        companions = [self._image_table(path) for path in paths] if self.fields != {"plate", "well", "site"} else []
        return [*paths, *(path for path in dict.fromkeys(companions) if path is not None)]

    def read(self, row: Mapping[str, str]) -> Located:
        """The cells of one index row, in the order of the file.

        Raises
        ------
        InputError
            No file, it cannot be read, it has no columns of centres, text or NaN in them, or no row can be this site.
        """
        path = self.path(row)
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        if path.suffix.lower() in LOCATION_LABELS:
            labels, mask = read_label_image(path)
            if mask:
                self._say_mask(path)
            return Located(label_table(labels), labels)
        table = self._table(path)
        if isinstance(table, InputError):
            raise InputError(str(table))
        return Located(table.pick(row, whole=self.fields != {"plate", "well", "site"}), None)

    def _table(self, path: Path) -> "_Table | InputError":
        with self._lock:
            future = self._tables.get(path)
            first = future is None
            if future is None:
                future = self._tables[path] = Future()
                while len(self._tables) > _KEPT:
                    self._tables.popitem(last=False)
        if first:
            try:
                future.set_result(self._load(path))
            except InputError as error:  # kept too: a bad file is read once, and said once
                future.set_result(error)
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _load(self, path: Path) -> "_Table":
        locate = self.study.locate
        database = path.suffix.lower() in LOCATION_DATABASES
        source, image = _database(path, locate.object) if database else (_file(path), None)
        x, y = self._centres(source)
        found = {key: name for key in KEYS if (name := _key_column(source.columns, key))}
        number = _first(source.columns, ("ImageNumber", "Metadata_ImageNumber", "Image_ImageNumber"))
        batch = _first(source.columns, ("TableNumber", "Metadata_TableNumber", "Image_TableNumber"))
        area = _first(source.columns, (f"{locate.object}_AreaShape_Area", "AreaShape_Area", "Area", "area"))
        more = {"area": area} if area else {}
        if x == X and CELL in source.columns:  # our own: its QC columns too
            more = {
                name: name for name in source.columns if name.startswith(METADATA) and name not in (*KEYS, CELL, X, Y)
            }
        picked = {**found, **({_IMAGE: number} if number else {}), **({_TABLE: batch} if batch else {})}
        raw = source.fetch(list(dict.fromkeys([x, y, *more.values(), *picked.values()])))
        cells = pd.DataFrame({"x": _numbers(raw[x]), "y": _numbers(raw[y])})
        for name, column in more.items():
            if (values := _measure(raw[column])) is not None:
                cells[name] = values
        off = np.flatnonzero(~np.isfinite(cells[["x", "y"]].to_numpy()).all(axis=1))
        bad = {int(i): _not_numbers(source, int(i), x, y, raw) for i in off}
        keys = pd.DataFrame({name: raw[column] for name, column in picked.items()}, index=raw.index)
        lacking = [key for key in KEYS if key not in found and _word(key) not in self.fields]
        known = None
        if lacking and number:
            if image is None and not database and (beside := self._image_table(path)) and beside.is_file():
                image = _file(beside)
            if image is not None:
                keys, listed = _joined(source, keys, image, [key for key in KEYS if key not in found])
                columns = [key for key in KEYS if key in keys]
                known = {tuple(row) for row in listed[columns].itertuples(index=False)} if not found else None
        for key in KEYS:
            if key in keys:
                keys[key] = _plain(key, keys[key])
        columns = [key for key in KEYS if key in keys]
        if lacking := [key for key in lacking if key not in keys]:
            self._told_apart(path, source, columns, lacking)
        return _Table(source.place, columns, cells, keys, bad, known)

    def _centres(self, source: "_Source") -> tuple[str, str]:
        locate = self.study.locate
        if locate.x and locate.y:
            names = [(locate.x, locate.y)]
        else:
            ours, stems = (X, Y), ("Location_Center", "AreaShape_Center")
            names = [
                (f"{p}{s}_X", f"{p}{s}_Y")
                for s in stems
                for p in (f"{locate.object}_", "", f"Metadata_{locate.object}_")
            ]
            names += [ours, ("x", "y"), ("X", "Y"), ("centroid-1", "centroid-0")]  # the last two are scikit-image's
        for x, y in names:
            if x in source.columns and y in source.columns:
                return x, y
        have = ", ".join(source.columns[:8]) + (", ..." if len(source.columns) > 8 else "")
        if any(_SEPARATORS.search(name) for name in source.columns):
            raise InputError(f"{source.place}: its header is {have!r}: not separated by commas; save it as plain CSV")
        like = [name for name in source.columns if re.search(r"Center_X$|centroid|^x", name, re.IGNORECASE)][:4]
        close = f"; {', '.join(like)} look like centres" if like else ""
        raise InputError(
            f"{source.place}: no columns of cell centres; it has {have}; name them in locate.x and locate.y{close}"
        )

    def _image_table(self, path: Path) -> Path | None:
        """The Image table that CellProfiler exports beside the table of objects."""
        head, found, tail = path.name.rpartition(self.study.locate.object)
        return path.with_name(f"{head}Image{tail}") if found and path.suffix.lower() not in LOCATION_LABELS else None

    def _told_apart(self, path: Path, source: "_Source", columns: list[str], lacking: list[str]) -> None:
        """Refuse a table in which several sites of the study have the same rows."""
        with self._lock:
            if self._index is None:
                self._index = load_index(self.study)
        rows = [row for row in site_rows(self._index) if self.path(row) == path]
        if len({tuple(row[key] for key in columns) for row in rows}) < len(rows):
            words = " and ".join(_word(key) for key in lacking)
            fields = " and ".join(f"{{{_word(key)}}}" for key in lacking)
            raise InputError(
                f"{source.place}: {len(rows)} sites share this file, and no column (such as Metadata_Site or "
                f"Image_Metadata_Site) says the {words} of a row; add one, or put {fields} in locate.files"
            )

    def _say_mask(self, path: Path) -> None:
        with self._lock:
            self._masks += 1
            if self._masks == 1:
                log.info(
                    "locate: %s holds one value besides 0: a mask, of which each connected part (8 neighbours) is "
                    "taken as a cell, so cells that touch are one; so are others of its kind",
                    path,
                )


def read_label_image(path: Path) -> tuple[Labels, bool]:
    """A label image with its labels renumbered 1, 2, .. in their order; of a mask, its connected parts.

    Returns
    -------
    labels : int32 array, shape (height, width)
        0 is background.
    mask : bool
        The image has one value besides 0 in several parts, which became labels.

    Raises
    ------
    InputError
        It cannot be read, or holds what is no label: fractions, negative or very large numbers.
    """
    image = read_image(path)
    low, high = float(image.min()), float(image.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high >= _LARGEST or (image != np.floor(image)).any():
        raise InputError(f"{path}: not a label image: expected whole numbers from 0 (background) to {_LARGEST - 1}")
    flat = image.astype(np.int32)
    present = np.flatnonzero(np.bincount(flat.ravel()))
    present = present[present > 0]
    if len(present) == 1:
        parts, n = ndimage.label(flat > 0, np.ones((3, 3)))
        return parts.astype(np.int32), n > 1
    renumbered = np.zeros(int(high) + 1, np.int32)
    renumbered[present] = np.arange(1, len(present) + 1)
    return renumbered[flat], False


def label_table(labels: Labels) -> pd.DataFrame:
    """A row a label 1, 2, ..: x, y (centroid, px), area (px**2) and border (it touches the edge of the image)."""
    rows, columns = np.nonzero(labels)
    owner = labels[rows, columns] - 1
    n = int(labels.max(initial=0))
    area = np.bincount(owner, minlength=n).astype(float)
    border = np.zeros(n + 1, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        border[edge] = True
    x, y = np.bincount(owner, columns, n) / area, np.bincount(owner, rows, n) / area
    return pd.DataFrame({"x": x, "y": y, "area": area, "border": border[1:]})


def off_image(cells: pd.DataFrame, shape: Sequence[int], margin: float = 0.0) -> npt.NDArray[np.bool_]:
    """Which centres lie more than `margin` px off an image of `shape` (height, width)."""
    x, y = cells["x"].to_numpy(), cells["y"].to_numpy()
    low, right, below = -0.5 - margin, shape[1] - 0.5 + margin, shape[0] - 0.5 + margin
    return ~((x >= low) & (x < right) & (y >= low) & (y < below))


def exchanged(cells: pd.DataFrame, shape: Sequence[int]) -> str:
    """The words for x and y that seem exchanged, "" where they do not: some leave the image, and none the other way.

    A square image cannot tell, nor can cells that all lie in the square both ways share.
    """
    other = cells.rename(columns={"x": "y", "y": "x"})
    if not off_image(cells, shape, 1.0).any() or off_image(other, shape).any():
        return ""
    return (
        f"x and y seem exchanged: all {len(cells)} fit the image ({shape[0]} x {shape[1]}, height x width) the other "
        "way round; set locate.x and locate.y"
    )


def misfit(cells: pd.DataFrame, labels: Labels | None, shape: Sequence[int]) -> str:
    """Why the cells of a site cannot be those of its image of `shape` (height, width); "" where they can."""
    if labels is None:
        return exchanged(cells, shape)
    if labels.shape == tuple(shape[:2]):
        return ""
    height, width = labels.shape
    return f"labels of {height} x {width} pixels, the image is {shape[0]} x {shape[1]} (height x width)"


@dataclass(frozen=True)
class _Source:
    """One table somewhere: its columns, and a function that reads some of them."""

    place: str
    columns: list[str]
    fetch: Callable[[list[str]], pd.DataFrame]
    first: int  # the number of its first row, as people count


@dataclass(frozen=True)
class _Table:
    """A table of cells as it is kept: numbers, and where the rows of each site are."""

    place: str
    columns: list[str]  # the part of the key that the table (or its Image table) says
    cells: pd.DataFrame
    keys: pd.DataFrame
    bad: dict[int, str]
    known: set[tuple[str, ...]] | None  # the sites of the Image table
    _rows: dict[tuple[str, ...], npt.NDArray[np.intp]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.columns:
            groups = self.keys.groupby(self.columns, sort=False, dropna=False).indices
            self._rows.update({key if isinstance(key, tuple) else (key,): rows for key, rows in groups.items()})
        elif len(self.cells):
            self._rows[()] = np.arange(len(self.cells))

    def pick(self, row: Mapping[str, str], *, whole: bool) -> pd.DataFrame:
        """The cells of one site; `whole` where the file is shared by several sites."""
        key = tuple(_plain_value(name, row[name]) for name in self.columns)
        rows = self._rows.get(key)
        if rows is None:
            self._explain(key, whole=whole)
            return self.cells.iloc[:0]
        if wrong := [self.bad[i] for i in rows.tolist() if i in self.bad]:
            raise InputError(wrong[0])
        numbers = [name for name in (_TABLE, _IMAGE) if name in self.keys]
        if _IMAGE in numbers and len(images := self.keys[numbers].iloc[rows].drop_duplicates()) > 1:
            said = ", ".join(map(str, images[_IMAGE].head(3)))
            raise InputError(
                f"{self.place}: the cells of this site are of {len(images)} images (ImageNumber {said}), and no column "
                "says which is meant; put one image's cells in a file, or add a column Metadata_Site"
            )
        return self.cells.iloc[rows].reset_index(drop=True)

    def _explain(self, key: tuple[str, ...], *, whole: bool) -> None:
        """Return where the site has no cell; raise where the table is not about it at all."""
        words = " ".join(f"{_word(name)} {value}" for name, value in zip(self.columns, key, strict=True))
        if self.known is not None:
            if key not in self.known:
                raise InputError(f"{self.place}: its Image table has no {words}")
            return
        if not len(self.cells):
            if whole:
                raise InputError(f"{self.place}: holds no cell at all")
            return
        for n, name in enumerate(self.columns):
            have = {k[n] for k in self._rows}
            if key[n] not in have or (name == WELL and key[: n + 1] not in {k[: n + 1] for k in self._rows}):
                some = ", ".join(sorted(have)[:5]) + (", ..." if len(have) > 5 else "")
                raise InputError(f"{self.place}: no row of {words}; its {_word(name)}s are {some}")


def _file(path: Path) -> _Source:
    """A CSV, CSV.gz or Parquet file; a CSV stays text, so that what is wrong in it can be said."""
    kind = "parquet" if path.suffix.lower() == ".parquet" else "csv"

    def fetch(columns: list[str]) -> pd.DataFrame:
        with _told(path, kind):
            if kind == "parquet":
                return pq.read_table(path, columns=columns).replace_schema_metadata().to_pandas()
            text = pc.ConvertOptions(include_columns=columns, column_types=dict.fromkeys(columns, pa.string()))
            # not threaded: only so does the error of a row with too many values name the row
            return pc.read_csv(path, pc.ReadOptions(use_threads=False), convert_options=text).to_pandas()

    with _told(path, kind):
        if kind == "parquet":
            names = pq.read_schema(path).names
        else:
            opened = gzip.open if path.suffix.lower() == ".gz" else open
            with opened(path, "rt", encoding="utf-8-sig", newline="") as lines:
                names = next((line for line in csv.reader(lines) if line), [])
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise InputError(f"{path}: expected a header of distinct column names, {twice[0]!r} stands in it twice")
    return _Source(str(path), names, fetch, 1 if kind == "parquet" else 2)


def _database(path: Path, name: str) -> tuple[_Source, _Source | None]:
    """The object table `name` and the Image table of a CellProfiler or cytominer-database SQLite file."""

    def run(command: str) -> list[tuple[Any, ...]]:
        with _told(path, "SQLite"), closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as base:
            base.execute("PRAGMA trusted_schema = OFF")  # a view of a stranger calls no function with side effects
            return base.execute(command).fetchall()

    def source(table: str) -> _Source:
        def fetch(columns: list[str]) -> pd.DataFrame:
            rows = run(f"SELECT {', '.join(map(_quoted, columns))} FROM {_quoted(table)}")
            return pd.DataFrame.from_records(rows, columns=columns)

        columns = [str(row[1]) for row in run(f"PRAGMA table_info({_quoted(table)})")]
        return _Source(f"{path} table {table}", columns, fetch, 1)

    tables = [str(row[0]) for row in run("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY 1")]

    def find(*ends: str) -> str | None:
        for end in ends:
            match = [t for t in tables if t.lower() == end.lower() or t.lower().endswith(f"_{end.lower()}")]
            exact = [t for t in match if t.lower() == end.lower()]
            if len(exact or match) > 1:
                raise InputError(f"{path}: {' and '.join(match)} could both be meant; keep one experiment in a file")
            if match:
                return (exact or match)[0]
        return None

    objects = find(name, f"Per_{name}", "Per_Object")
    if objects is None:
        raise InputError(f"{path}: no table {name}; it has {', '.join(tables[:8]) or 'none'}; set locate.object")
    images = find("Image", "Per_Image")
    return source(objects), source(images) if images else None


@contextmanager
def _told(path: Path, kind: str) -> Iterator[None]:
    """Turn the errors of a reader into an InputError that names the file."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        yield
    except InputError:
        raise
    # those of pyarrow are ValueErrors or OSErrors
    except (ValueError, OSError, EOFError, zlib.error, csv.Error, sqlite3.Error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise InputError(f"{path}: cannot be read as {kind}: {reason}") from error


def _joined(
    source: _Source, keys: pd.DataFrame, image: _Source, wanted: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`keys` with the `wanted` columns that the Image table has for each row's image, and the Image table's keys."""
    names = {key: name for key in wanted if (name := _key_column(image.columns, key))}
    number = _first(image.columns, ("ImageNumber", "Metadata_ImageNumber", "Image_ImageNumber"))
    batch = _first(image.columns, ("TableNumber", "Metadata_TableNumber", "Image_TableNumber"))
    if number is None:
        raise InputError(f"{image.place}: no column ImageNumber to join {source.place} by")
    both = {_IMAGE: number, **({_TABLE: batch} if batch and _TABLE in keys else {})}
    picked = {**both, **names}
    raw = image.fetch(list(dict.fromkeys(picked.values())))
    listed = pd.DataFrame({name: raw[column] for name, column in picked.items()}, index=raw.index)
    for name in both:
        listed[name], keys[name] = _plain(name, listed[name]), _plain(name, keys[name])
    for name in names:
        listed[name] = _plain(name, listed[name])
    listed = listed.drop_duplicates()
    if (twice := listed[listed.duplicated(list(both))]).shape[0]:
        lacks = "" if _TABLE in both else "; TableNumber, which would tell them apart, is not in both tables"
        raise InputError(f"{image.place}: ImageNumber {twice[_IMAGE].iloc[0]} stands for several images{lacks}")
    return keys.merge(listed, on=list(both), how="left", validate="m:1"), listed


def _key_column(columns: list[str], key: str) -> str | None:
    word = key.removeprefix(METADATA)
    usual = [f"{stem}{word}{end}" for end in ("", "_x") for stem in (METADATA, f"Image_{METADATA}", "Image_", "")]
    lower = {name.lower(): name for name in reversed(columns)}
    return next((lower[name.lower()] for name in usual if name.lower() in lower), None)


def _word(key: str) -> str:
    return key.removeprefix(METADATA).lower()


def _first(columns: list[str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _plain(key: str, values: pd.Series) -> pd.Series:
    """Keys as they are compared: site 01, 1 and 1.0 are one, and so are wells A1 and A01; missing is ""."""
    return values.map({value: _plain_value(key, value) for value in values.unique()}).fillna("").astype("str")


def _plain_value(key: str, value: object) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return ""
    text = str(value).strip()
    if re.fullmatch(r"\d+\.0+", text):
        text = text.partition(".")[0]
    if key == WELL:
        try:
            return well_name(text)
        except InputError:
            return text
    return text.lstrip("0") or "0" if key != PLATE and text.isdigit() else text


def _numbers(values: pd.Series) -> pd.Series:
    try:
        return pd.to_numeric(values, errors="coerce").astype(float)
    except TypeError:  # lists and the like
        return pd.Series(np.nan, index=values.index)


def _measure(values: pd.Series) -> pd.Series | None:
    """A QC column as bool or numbers, None where it is text."""
    if values.dtype == bool:
        return values
    if values.empty:
        return values.astype(float)
    if set(values.unique()) <= {"True", "False"}:
        return values == "True"
    numbers = _numbers(values)
    return None if numbers.isna().all() and not values.isna().all() else numbers


def _not_numbers(source: _Source, i: int, x: str, y: str, raw: pd.DataFrame) -> str:
    values = list(raw[[x, y]].iloc[i])
    mixed = "; is the separator a comma in every row?" if any(_SEPARATORS.search(str(v)) for v in values) else ""
    return f"{source.place} row {i + source.first}: {x}, {y} are {values}, expected numbers{mixed}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
