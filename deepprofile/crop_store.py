"""The crop store: an Arrow file a well and a table a plate that says where in it each crop lies; docs/crop-store.md."""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cytominer_tools.columns import CELL, PLATE, SITE, WELL, metadata_columns
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path, safe_name
from cytominer_tools.manifest import PlateTable, digest
from cytominer_tools.tables import write_parquet
from deepprofile.parts import plate_lock
from deepprofile.preprocess import Preprocess

if TYPE_CHECKING:
    from deepprofile.deepprofiler_crops import DeepProfilerCrops

STAGE = "crops"
FORMAT_VERSION = 1
ABOUT = b"deepprofile.crops"  # JSON in the schema metadata of every file of the store
SITES = "sites.parquet"
MEND = "run `deepprofile export` again"
# columns beside those of the cells
CROP, FILE, OFFSET, LENGTH, IMAGE_TYPE = "crop", "file", "offset", "length", "image_type"
LEVELS = "levels"  # of the image that a crop is from, where crops are scaled by them
_INNER = {FILE, OFFSET, LENGTH, IMAGE_TYPE, LEVELS}  # what the table of a store does not show
_KEY = "key"  # of a well's part, in SITES
ONE_TYPE = "with export.depth original all must be of one type: set it to uint8, or convert the images"
_END = b"ARROW1"  # of an Arrow file
_OPEN = 128  # files at once; a store may have a hundred thousand, a process on macOS may open 256


class Crops:
    """The crops of a store, read by row number; any number of threads may read at once.

    Parameters
    ----------
    path : str or Path
        The folder `crops` of a study.
    plates : sequence of str, optional
        Only the crops of these.

    Attributes
    ----------
    table : DataFrame, a row per crop
        Plate, well, site (text), cell, centre (px), the other columns of the locations, and the ``Metadata_`` columns
        of the index. Plates in the order of the index, wells sorted, sites in the order of the index, cells as located.
    channels : tuple of str
        Their order is that of the last axis.
    preprocess : Preprocess
        What the crops were cut by, and with depth uint8 scaled by.
    illumination : dict or None
        The correction of the images they were cut from.
    shape : (H, W, C)
    dtype : numpy dtype
        uint8, uint16 or float32.
    same_as_profiling : bool
        True: what `network_input` gives is what profiling gives the network under the same settings.
    scaled : bool
        True with depth uint8: 0 to 255 stand for 0 to 1 of the network's input. False where the values are counts.
    compression : str
        As `export.compression` says.
    key : str
        Changes whenever a crop may have changed, but not with the columns of the index.

    Raises
    ------
    InputError
        There is no store, or it is empty, of another format version, not finished, or one of its tables is damaged.
    """

    same_as_profiling = True

    def __init__(self, path: str | Path, plates: Sequence[str] | None = None):
        self.path = Path(path)
        sites = _read_sites(self.path)
        if plates is not None:
            sites = sites[sites[PLATE].isin(list(plates))]
        wells = sites.drop_duplicates([PLATE, WELL])
        by_plate = [
            (str(plate), dict(zip(group[WELL], group[_KEY], strict=True)))
            for plate, group in wells.groupby(PLATE, sort=False)
        ]
        tables = [table for plate, keys in by_plate if len(table := _read_plate(self.path, plate, keys))]
        if not tables:
            raise InputError(f"{self.path}: the store holds no crops; look at `export` in study.yaml and at locations")
        about = [json.loads(table.schema.metadata[ABOUT]) for table in tables]
        cells = pa.concat_tables([table.replace_schema_metadata() for table in tables], promote_options="default")
        self._names, self._file_of = _codes(cells[FILE])
        self._offset, self._length = cells[OFFSET].to_numpy(), cells[LENGTH].to_numpy()
        self._files = _Files(self.path)
        types, self._type_of = _codes(cells[IMAGE_TYPE])
        self._types = [np.dtype(name) for name in types]
        self._levels = _levels(tables, about)
        self._rows = np.arange(len(cells))
        self.table = with_metadata(cells.drop_columns(list(_INNER & {*cells.column_names})).to_pandas(), sites)
        self.preprocess = Preprocess.model_validate(about[0]["preprocess"])
        self.channels = self.preprocess.channels
        self.illumination: dict[str, Any] | None = about[0]["illumination"]
        self.shape = (self.preprocess.size, self.preprocess.size, len(self.channels))
        self.scaled = about[0]["depth"] == "uint8"
        self.compression: str = about[0]["compression"]
        self.dtype = self._one_dtype()
        self.key = digest(wells[[PLATE, WELL, _KEY]].to_numpy().tolist())

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.shape))
        wells = self.table[[PLATE, WELL]].drop_duplicates()
        return (
            f"Crops({str(self.path)!r}): {len(self):,} crops of {size} {self.dtype} ({', '.join(self.channels)}), "
            f"{len(wells):,} wells of {wells[PLATE].nunique()} plate(s), compression {self.compression}"
        )

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """The crops of `rows`, in that order, (n, H, W, C) of `dtype`; whatever indexes an array of row numbers does.

        Raises
        ------
        InputError
            A file is missing, truncated or damaged; the message names it.
        """
        chosen = self._rows[rows]
        out = np.empty((chosen.size, *self.shape), self.dtype)
        wanted = chosen.reshape(-1)
        for i in np.lexsort((self._offset[wanted], self._file_of[wanted])):  # each file is opened once, read forward
            self._fill(out[i], wanted[i])
        return out.reshape(*chosen.shape, *self.shape)

    def network_input(self, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """What profiling gives the network for `rows`: float32, (n, H, W, C).

        With depth ``original`` bit for bit; with ``uint8`` at most 0.5 / 255 away.
        """
        crops = self[rows]
        if self.scaled:
            return np.divide(crops, np.float32(255), dtype=np.float32)
        wanted = self._rows[rows]
        levels = None if self._levels is None else self._levels[0][self._levels[1][wanted]]
        types = self._type_of[wanted]
        if len(self._types) == 1:
            return self.preprocess.scale(crops, levels, self._types[0])
        out = np.empty(crops.shape, np.float32)
        for one in np.unique(types):
            mine = types == one
            out[mine] = self.preprocess.scale(crops[mine], None if levels is None else levels[mine], self._types[one])
        return out

    def _one_dtype(self) -> np.dtype:
        """The type of the crops; an older part may have another one than those that were made with the last export."""
        if self.scaled:
            return np.dtype(np.uint8)
        if self.illumination is not None or self.preprocess.mode == "interpolate":
            return np.dtype(np.float32)
        if len(self._types) > 1:
            raise InputError(f"{self.path}: crops of {' and '.join(map(str, self._types))} images; {ONE_TYPE}")
        return self._types[0]

    def _fill(self, out: np.ndarray, row: int) -> None:
        name, start, length = self._names[self._file_of[row]], int(self._offset[row]), int(self._length[row])
        pixels = out.reshape(-1).view(np.uint8).data
        frame = bytearray(0 if self.compression == "none" else length)
        target = memoryview(frame) if frame else pixels
        if self._files.read_into(name, start, target) != len(target):
            raise self._damaged(row, "is truncated")
        if not frame:
            return
        try:
            # its header says how much comes out, which must be known before it does
            if int.from_bytes(frame[4:8], "little") != len(pixels):
                raise self._damaged(row, "is damaged")
            imagecodecs.blosc_decode(frame, out=pixels)
        except imagecodecs.BloscError as error:
            raise self._damaged(row, "is damaged") from error

    def _damaged(self, row: int, what: str) -> InputError:
        where = " ".join(str(self.table[name].iat[row]) for name in (PLATE, WELL, SITE, CELL))
        path = self.path / self._names[self._file_of[row]]
        return InputError(f"{path}: {what}, at the crop of {where}; delete the file and {MEND}")


def open_crops(path: str | Path, channels: tuple[str, ...]) -> "Crops | DeepProfilerCrops":
    """The crops in the folder `path`: our own store, or single cells that DeepProfiler exported (sc-metadata.csv).

    DeepProfiler's files do not name their `channels`, so that they are taken to be these.
    """
    if (Path(path) / "sc-metadata.csv").is_file():
        from deepprofile.deepprofiler_crops import DeepProfilerCrops

        return DeepProfilerCrops(path, channels)
    return Crops(path)


class _Files:
    """The last few files that were read, kept open; one that another thread still reads is closed when it is done."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.open: OrderedDict[str, _File] = OrderedDict()
        self.lock = threading.Lock()

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        """Fill `out` from byte `start` on; how many bytes there were."""
        with self.lock:
            file = self.open.pop(name, None)
            if file is not None:
                self.open[name] = file
        if file is None:  # outside of the lock, as opening may take long
            file = _File(self.folder / name)
            with self.lock:
                self.open[name] = file
                if len(self.open) > _OPEN:
                    self.open.popitem(last=False)
        return file.read_into(start, out)


class _File:
    """A file that any number of threads may read at once; closed when nobody holds it."""

    def __init__(self, path: Path):
        self.number = -1
        try:
            self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file, but the store has crops in it; {MEND}") from None
        self.lock = threading.Lock()

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)

    def read_into(self, start: int, out: memoryview) -> int:
        done = 0
        while done < len(out) and (n := self._read(out[done:], start + done)):
            done += n
        return done

    def _read(self, view: memoryview, start: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self.number, [view], start)
        with self.lock:  # Windows
            os.lseek(self.number, start, os.SEEK_SET)
            data = os.read(self.number, len(view))
        view[: len(data)] = data
        return len(data)


def with_metadata(cells: pd.DataFrame, sites: pd.DataFrame) -> pd.DataFrame:
    """`cells` with the ``Metadata_`` columns of their site; a column that both have is the cells'."""
    key = [PLATE, WELL, SITE]
    more = [name for name in metadata_columns(sites) if name in key or name not in cells]
    return cells.merge(sites[more], on=key, how="left", validate="m:1")


def plate_crops(folder: Path, plate: str, together: Path | None = None) -> PlateTable:
    """The table of one plate in the store at `folder`, as far as it is made.

    For a process that makes some of its wells while others make the rest, `together` is the folder of the study.
    """
    place = folder / safe_name(plate)
    return PlateTable(place, STAGE, None if together is None else plate_lock(together, place))


def part_name(well: str, key: str) -> str:
    """The file of a well: with its key, so that a table never meets crops that it was not made with."""
    return f"{safe_name(well)}-{key[:8]}.arrow"


def is_whole(path: Path) -> bool:
    """Whether `path` is a file of crops that ends as one."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_END), os.SEEK_END)
            return file.read() == _END
    except OSError:
        return False


def write_part(path: Path, about: Mapping[str, Any], batches: Iterable[tuple[pa.Table, np.ndarray]]) -> pa.Table | None:
    """Write the crops of a well, one batch in memory at a time.

    Parameters
    ----------
    path : Path
        Of the Arrow file.
    about : JSON value
        Kept in the schema metadata; its `compression` is that of the crops.
    batches : (table of n cells, crops (n, H, W, C))
        All tables have one schema, and all crops one shape and type.

    Returns
    -------
    Table, a row per crop
        The tables with the columns file, offset and length (bytes); None, and no file, where there are no crops.
    """
    batches = iter(batches)
    if (first := next(batches, None)) is None:
        return None
    kept = []
    with atomic_path(path) as part:
        cells, crops = first
        shape, dtype = crops.shape[1:], crops.dtype
        said = json.dumps({**about, "shape": shape, "dtype": dtype.name}, sort_keys=True)
        kind = encode_crops(crops[:0], about["compression"]).type
        schema = cells.schema.append(pa.field(CROP, kind, nullable=False)).with_metadata({ABOUT: said})
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for cells, crops in chain([first], batches):
                kept.append(cells)
                columns = [column.combine_chunks() for column in cells.columns]
                encoded = encode_crops(crops, about["compression"])
                writer.write_batch(pa.record_batch([*columns, encoded], schema=schema))
        offset, length = _extents(part)
    table = pa.concat_tables(kept)
    for name, values in ((FILE, pa.repeat(path.name, len(table))), (OFFSET, offset), (LENGTH, length)):
        table = table.append_column(name, pa.array(values))
    return table


def write_sites(folder: Path, sites: pd.DataFrame, keys: Mapping[tuple[str, str], str]) -> None:
    """Keep what is known of the sites of the store, and under which key the part of each (plate, well) belongs to it.

    A store is finished when every well has that key, so that one which is made again is not taken for either.
    """
    kept = sites[metadata_columns(sites)]
    kept = kept.assign(**{_KEY: [keys[plate, well] for plate, well in zip(kept[PLATE], kept[WELL], strict=True)]})
    said = {ABOUT: json.dumps({"format_version": FORMAT_VERSION})}
    with atomic_path(folder / SITES) as path:
        write_parquet(pa.Table.from_pandas(kept, preserve_index=False).replace_schema_metadata(said), path)


def store_keys(folder: Path) -> dict[tuple[str, str], str]:
    """The key of each (plate, well) as the last export wants it; one that its part does not have is not finished.

    Raises
    ------
    InputError
        There is no store, or one of another format version.
    """
    sites = _read_sites(folder).drop_duplicates([PLATE, WELL])
    return dict(zip(zip(sites[PLATE], sites[WELL], strict=True), sites[_KEY], strict=True))


def _read_sites(folder: Path) -> pd.DataFrame:
    path = folder / SITES
    if not path.is_file():
        raise InputError(
            f"{folder}: there is no crop store, nor a finished export of DeepProfiler's (sc-metadata.csv); run "
            "`deepprofile export`, with --format png for the latter"
        )
    table = _read_parquet(path)
    version = json.loads((table.schema.metadata or {}).get(ABOUT, b"{}")).get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {version}, this deepprofile reads {FORMAT_VERSION}; update it, or delete {folder} "
            "and run `deepprofile export`"
        )
    return table.to_pandas()


def _read_plate(folder: Path, plate: str, keys: Mapping[str, str]) -> pa.Table:
    table = plate_crops(folder, plate)
    parts = table.manifest.parts
    lacking = [well for well, key in keys.items() if well not in parts or parts[well].key != key]
    path = table.folder / "cells.parquet"
    if lacking or any(parts[well].file != path.name for well in keys):
        raise InputError(
            f"{folder}: plate {plate} is not finished, {len(lacking)} of {len(keys)} wells are not as the last export "
            f"wants them{f', first {lacking[0]}' if lacking else ''}; {MEND}"
        )
    cells = _read_parquet(path)
    names = pc.binary_join_element_wise(safe_name(plate), cells[FILE], "/")  # relative to the store
    return cells.set_column(cells.schema.get_field_index(FILE), FILE, names)


def _read_parquet(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            return file.read()
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be read, missing or damaged ({reason}); delete it and {MEND}") from error


def _levels(tables: Sequence[pa.Table], about: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray] | None:
    """Low and high counts by channel, float32 (k, 2, C), and which of them each crop is scaled by; None where none."""
    if all(LEVELS in table.column_names for table in tables):
        rows = np.concatenate([table[LEVELS].combine_chunks().flatten().to_numpy() for table in tables])
        distinct, which = np.unique(rows.reshape(sum(map(len, tables)), -1), axis=0, return_inverse=True)
        return distinct.reshape(len(distinct), 2, -1), which.ravel()
    if about[0]["levels"] is None:
        return None
    levels = np.array([one["levels"] for one in about], np.float32)
    return levels, np.repeat(np.arange(len(tables)), [len(table) for table in tables])


def encode_crops(crops: np.ndarray, compression: str) -> pa.Array:
    """Crops (n, H, W, C) as bytes in C order: of fixed size as they are, or each a Blosc-1 frame of LZ4."""
    if compression == "none":
        flat = pa.py_buffer(np.ascontiguousarray(crops))
        width = int(np.prod(crops.shape[1:])) * crops.itemsize
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(crops), [None, flat])
    # a pixel is an item, so that the bits of one channel come to stand together: 12 % smaller than value by value
    pixel = f"V{crops.shape[3] * crops.itemsize}"
    frames = [
        imagecodecs.blosc_encode(
            crop.reshape(-1).view(pixel), 5, compressor="lz4", shuffle="bitshuffle", blocksize=crop.nbytes
        )
        for crop in crops
    ]
    return pa.array(frames, pa.large_binary())


def _extents(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """First byte in the file and number of bytes of each crop, int64."""
    starts, lengths = [], []
    with pa.memory_map(str(path)) as source:
        base = source.read_buffer().address
        source.seek(0)
        reader = pa.ipc.open_file(source)
        for i in range(reader.num_record_batches):
            column = reader.get_batch(i).column(CROP)
            if pa.types.is_fixed_size_binary(column.type):
                data, width = column.buffers()[1], column.type.byte_width
                ends = np.arange(len(column) + 1) * width
            else:
                _, offsets, data = column.buffers()
                ends = np.frombuffer(offsets, np.int64)[: len(column) + 1]
            starts.append(data.address - base + ends[:-1])
            lengths.append(np.diff(ends))
    return np.concatenate(starts), np.concatenate(lengths)


def _codes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The distinct values of a column of text in the order they occur, and the place of each row's, int32."""
    values = column.unique()
    return values.to_pylist(), pc.index_in(column, value_set=values).to_numpy()
