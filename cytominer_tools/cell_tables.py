"""Parquet files of cells that are larger than memory: aggregated and normalised a batch of rows at a time."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cytominer_tools import queries
from cytominer_tools.aggregation import OBJECT_COUNT, OBJECT_NUMBERS, check_aggregate_operation, reduced
from cytominer_tools.arrays import Codes, Doubles, Floats
from cytominer_tools.cellprofiler import cellprofiler_columns
from cytominer_tools.columns import METADATA, PLATE, WELL, require_columns
from cytominer_tools.errors import InputError, NoFileError, ProfileWarning
from cytominer_tools.files import atomic_path
from cytominer_tools.frames import Features, features_beside, group_codes, names, with_features
from cytominer_tools.summaries import Batches, Moments, group_median_mad, group_quantiles
from cytominer_tools.tables import parquet_writer
from cytominer_tools.threads import in_background, map_ahead, workers
from cytominer_tools.transformers import Robustize, RobustMAD, Standardize

METHODS = ("standardize", "robustize", "mad_robustize")
LISTS = "features"  # what deepprofile calls its column of lists

_VALUES = 2**24  # of a batch: 64 MB of float32; with thousands of columns smaller ones cost more than what they hold
_READ_AHEAD = 2**20  # bytes of a column in memory at once, however long its row group is
_ROW_GROUP = 2**26  # bytes: a row group that takes more is read a few rows at a time, others so many ahead
_HELD = 2**26  # bytes: a group that takes more is never in memory as a whole, to normalise it


@dataclass(frozen=True)
class CellTable:
    """Parquet files with the same columns, read one after another.

    Attributes
    ----------
    paths : tuple of Path
    schema : pyarrow.Schema
        Each column in a type that holds the values of all files.
    features, others : lists of names
    dtype : float32 if all features are, else float64
    array : str or None
        The column of lists of one length that holds all features, as deepprofile's cells.parquet has it; they are
        called ARRAY_0, ARRAY_1, ...
    largest : int
        Bytes of the largest row group, once it is decoded.
    """

    paths: tuple[Path, ...]
    schema: pa.Schema
    features: list[str]
    others: list[str]
    dtype: np.dtype
    array: str | None
    largest: int

    @classmethod
    def open(
        cls,
        source: str | Path | Sequence[str | Path],
        features: Features = "infer",
        keys: Sequence[str] = (),
        numbers: Sequence[str] = (),
    ) -> "CellTable":
        """The table in a file, a folder of files (by their names) or a list of files; no feature is a key or a number.

        Raises
        ------
        InputError
            No such file, not Parquet, files of different columns or of types that do not go together, an absent key,
            no features or such that are not numbers.
        """
        paths = _paths(source)
        schema = _common_schema(paths)
        empty = schema.empty_table().to_pandas()
        require_columns(empty, keys, str(paths[0]))
        if nested := [name for name in keys if pa.types.is_nested(schema.field(name).type)]:
            raise InputError(
                f"{paths[0]}: {nested[0]} is {schema.field(nested[0]).type}; expected text, numbers or dates as a key"
            )
        if (array := _array(schema, empty, features)) is not None:
            lists = schema.field(array).type
            chosen, kinds = [f"{array}_{i}" for i in range(lists.list_size)], {array: lists.value_type}
        else:
            chosen = [name for name in features_beside(empty, features, keys) if name not in numbers]
            kinds = {name: schema.field(name).type for name in chosen}
        if other := [name for name, kind in kinds.items() if not _is_number(kind)]:
            raise InputError(f"{paths[0]}: feature {other[0]} is {kinds[other[0]]}, expected numbers")
        narrow = all(kind in (pa.float32(), pa.float16(), pa.null()) for kind in kinds.values())
        others = [name for name in schema.names if name not in kinds]
        dtype = np.dtype("float32" if narrow else "float64")
        return cls(paths, schema, chosen, others, dtype, array, _largest(paths, len(chosen) * dtype.itemsize))

    def batches(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some features and other columns of all rows; as few rows at a time as 64 MB of features are.

        Raises
        ------
        InputError
            A value that the type of the column in all files does not hold.
        """
        others = set(self.others)  # `values` reads features of any type
        chosen = list(dict.fromkeys(name if self.array is None or name in others else self.array for name in columns))
        kinds = {name: self.schema.field(name).type for name in chosen if name in others}
        if self.largest <= _ROW_GROUP:
            # a list column is decoded by one thread, so several row groups are at a time
            ahead = min(workers(), max(1, _ROW_GROUP // max(1, self.largest)))
            tables = map_ahead(lambda job: (job[0], _row_group(*job, chosen)), self._row_groups(), ahead)
        else:
            tables = in_background(self._few_rows(chosen), 1)
        with closing(tables):
            for path, table in tables:
                odd = {name: kind for name, kind in kinds.items() if table.schema.field(name).type != kind}
                yield _cast(table, odd, path) if odd else table

    def _row_groups(self) -> Iterator[tuple[Path, pq.FileMetaData, int]]:
        for path in self.paths:
            about = pq.read_metadata(path)
            for group in range(about.num_row_groups):
                if about.row_group(group).num_rows:
                    yield path, about, group

    def _few_rows(self, columns: list[str]) -> Iterator[tuple[Path, pa.Table]]:
        size = max(256, _VALUES // max(1, len(self.features)))
        for path in self.paths:
            with pq.ParquetFile(path, buffer_size=_READ_AHEAD) as file:
                for group in range(file.num_row_groups):  # together they all stay in memory until the last is read
                    for batch in file.iter_batches(size, row_groups=[group], columns=columns):
                        yield path, pa.Table.from_batches([batch])

    def values(self, batch: pa.Table, features: Sequence[str]) -> Floats:
        """Features of a batch, shape (n, n_features); missing values are NaN."""
        if self.array is not None:
            column = batch[self.array].combine_chunks()
            if column.null_count:
                raise InputError(f"{self.array} is missing in {column.null_count} row(s); leave them out")
            rows = column.flatten().to_numpy(zero_copy_only=False).reshape(len(batch), len(self.features))
            if len(features) < len(self.features):
                rows = rows[:, pd.Index(self.features).get_indexer(pd.Index(features))]
            return rows.astype(self.dtype, copy=False)
        out = np.empty((len(features), len(batch)), dtype=self.dtype)
        for row, name in zip(out, features, strict=True):
            row[:] = batch[name].to_numpy()
        return out.T

    def in_turn(
        self, groups: "_Groups", picks: "Callable[[pa.Table], Any] | None" = None
    ) -> Iterator[tuple[int, Floats]]:
        """The number and the features of each group whose rows stand together, of those rows that are picked."""
        held: list[Floats] = []
        last = -1
        for codes, rows in _batches(self, groups, self.features, picks)(np.arange(len(self.features))):
            bounds = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
            for start, end in pairwise(bounds):
                if codes[start] != last and held:
                    yield last, held[0] if len(held) == 1 else np.concatenate(held)
                    held.clear()
                last = int(codes[start])
                held.append(rows[start:end])
        if held:
            yield last, np.concatenate(held)


class _Groups:
    """The keys of a table as numbers, in the order that they come in."""

    def __init__(self, by: Sequence[str]):
        self.by = list(by)
        self.numbers: dict[tuple[Any, ...], int] = {}
        self.keys: list[pa.Table] = []

    def codes(self, batch: pa.Table) -> Codes:
        """The number of the group of each row."""
        if not self.by:
            self.numbers.setdefault((), 0)
            return np.zeros(len(batch), dtype=np.int64)
        mixed = np.zeros(len(batch), dtype=np.int64)
        for name in self.by:
            column = batch[name].combine_chunks()
            found = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
            mixed = mixed * (len(found.dictionary) + 1) + found.indices.fill_null(len(found.dictionary)).to_numpy()
        _, first, inverse = np.unique(mixed, return_index=True, return_inverse=True)
        rows = batch.select(self.by).take(first)
        found_keys = list(zip(*(map(_key, column) for column in rows.to_pydict().values()), strict=True))
        new = []
        for i, key in enumerate(found_keys):  # null and NaN are one key, and so are 0 and -0
            if key not in self.numbers:
                self.numbers[key] = len(self.numbers)
                new.append(i)
        if new:
            self.keys.append(rows.take(new))
        return np.array([self.numbers[key] for key in found_keys], dtype=np.int64)[inverse]

    def __len__(self) -> int:
        return len(self.numbers)

    def table(self) -> pd.DataFrame:
        """The keys, a row a group, in the order of their numbers."""
        return pa.concat_tables(self.keys).to_pandas()


def _key(value: Any) -> Any:
    return None if value != value else value  # NaN is not equal to itself


def aggregate_parquet(
    source: str | Path | Sequence[str | Path],
    strata: str | Sequence[str] = (PLATE, WELL),
    features: Features = "infer",
    operation: str = "median",
    *,
    compute_object_count: bool = False,
) -> pd.DataFrame:
    """`aggregate` of Parquet files of any length: one row for each combination of `strata`.

    Where the rows of each group stand together, as the wells of a plate do, memory holds the cells of one group, and
    the result is that of `aggregate`. Where they do not, means come from sums in one pass, and medians from counts as
    in `normalize_parquet`.

    Files may hold a column in several types: whole numbers and decimals, float32 and float64, categories and text, or
    nothing at all in one of them. All are read in a type that holds the values of each.

    Parameters
    ----------
    source : path of a file or of a folder of files, or list of paths
    strata, operation
        As in `aggregate`.
    features : list of column names, or "infer"
        As in `aggregate`; or one column of lists of numbers, [NAME], whose features are called NAME_0, NAME_1, ...
        Where no column looks like CellProfiler's, "infer" takes the lists called features: deepprofile's cells.parquet.
    compute_object_count : bool
        Add Metadata_Object_Count, the rows of each group.

    Returns
    -------
    DataFrame
        `strata`, the count, features; groups sorted, a missing key last.

    Raises
    ------
    InputError
        As in `CellTable.open` and `aggregate`; groups in pieces and an operation that needs them whole.
    """
    operation, by = check_aggregate_operation(operation), names(strata)
    if not by:
        raise InputError("strata is empty: name the columns that identify a group, such as Metadata_Plate")
    table = CellTable.open(source, features, by, OBJECT_NUMBERS)
    groups = _Groups(by)
    counts, whole = _counted(table, groups, by, None)
    if len(counts) == 0:
        rows = np.empty((0, len(table.features)), dtype=table.dtype)
        keys = table.schema.empty_table().select(by).to_pandas()
    else:
        rows = (_whole if whole else _pieces)(table, groups, operation)
        keys = groups.table()
    order = np.argsort(group_codes(keys, by), kind="stable")
    keys = keys.iloc[order].reset_index(drop=True)
    if compute_object_count:
        keys[OBJECT_COUNT] = counts[order]
    return with_features(
        keys.drop(columns=[name for name in by if name in OBJECT_NUMBERS]), rows[order], table.features
    )


def _counted(
    table: CellTable, groups: _Groups, columns: Sequence[str], picks: Callable[[pa.Table], Any] | None
) -> tuple[Codes, bool]:
    """How many rows of each group are picked, and whether those of each stand together."""
    counts = np.zeros(0, dtype=np.int64)
    whole, last = True, -1
    for batch in table.batches(columns):
        codes = groups.codes(batch)
        counts = np.pad(counts, (0, len(groups) - len(counts)))
        if picks is not None:
            codes = codes[picks(batch)]
        begun = codes[np.diff(codes, prepend=last) != 0]
        whole = whole and not counts[begun].any() and len(np.unique(begun)) == len(begun)
        counts += np.bincount(codes, minlength=len(groups))
        last = int(codes[-1]) if len(codes) else last
    return counts, whole


def _whole(table: CellTable, groups: _Groups, operation: str) -> Floats:
    """Each group reduced once all of its rows are there."""
    out = np.empty((len(groups), len(table.features)), dtype=table.dtype)
    for code, rows in table.in_turn(groups):
        out[code] = reduced(rows, np.zeros(len(rows), dtype=np.int64), operation)[0]
    return out


def _pieces(table: CellTable, groups: _Groups, operation: str) -> Floats:
    """Each group from sums or counts that need no row twice."""
    features = table.features
    batches = _batches(table, groups, features, None)
    if operation == "mean":
        moments = Moments(len(groups), len(features))
        for codes, rows in batches(np.arange(len(features))):
            moments.add(codes, rows)
        return moments.mean_sd()[0].astype(table.dtype)
    if operation == "median":
        return group_quantiles(batches, len(groups), len(features), (50,), table.dtype)[0]
    raise InputError(
        f"operation={operation!r} needs the rows of a group together; sort the table by {', '.join(groups.by)}"
    )


def _batches(
    table: CellTable, groups: _Groups, features: Sequence[str], picks: Callable[[pa.Table], Any] | None
) -> Batches:
    """Some features of the rows that are picked, with the number of their group."""

    def batches(chosen: Codes) -> Iterator[tuple[Codes, Floats]]:
        wanted = [features[int(i)] for i in chosen]
        also = table.others if picks is not None else groups.by
        for batch in table.batches([*also, *wanted]):
            codes, rows = groups.codes(batch), table.values(batch, wanted)
            if picks is None:
                yield codes, rows
            elif (which := picks(batch)).any():
                yield codes[which], rows[which]

    return batches


def normalize_parquet(
    source: str | Path | Sequence[str | Path],
    output_file: str | Path,
    features: Features = "infer",
    samples: str = "all",
    method: Literal["standardize", "robustize", "mad_robustize"] = "standardize",
    mad_robustize_epsilon: float = 1e-18,
    *,
    by: str | Sequence[str] = (),
) -> Path:
    """`normalize` of Parquet files of any length, to another one, in memory that does not grow with their rows.

    A first pass over the columns that are no features counts the groups, and the last one makes the result. Between
    them one pass is enough for standardize, and for the others where the reference rows of each group stand together
    and take no more than 64 MB. Otherwise `summaries` find medians by counting: robustize reads each float32 feature
    2 times and mad_robustize 4 times, a float64 one twice as often, and with over 8 groups twice as often again, so 16
    times at most. It is done in blocks of features with 256 MB of counters, 1.5 MB a feature and group (6 kB with over
    8 groups; 2.3 times that for robustize), and each block reads the other columns as often: with thousands of groups
    sort the files by `by`. Centre and scale of all groups stay in memory, 16 bytes a feature and group.

    Parameters
    ----------
    source : path of a file or of a folder of files, or list of paths
    output_file : path, .parquet
    features
        As in `aggregate_parquet`; a column of lists stays one.
    method, mad_robustize_epsilon, by
        As in `normalize`.
    samples : "all", or a query of columns that are no features
        The rows to learn from.

    Returns
    -------
    Path
        `output_file`: metadata, columns that are neither, features, in the order of the rows.

    Raises
    ------
    InputError
        As in `CellTable.open` and `normalize`.
    """
    path = Path(output_file)
    if path.suffix != ".parquet":
        raise InputError(f"{path}: the suffix must be .parquet")
    if method not in METHODS:
        raise InputError(f"method={method!r}: expected one of {', '.join(METHODS)}; normalize() has the others")
    if mad_robustize_epsilon is None or not (np.isfinite(mad_robustize_epsilon) and mad_robustize_epsilon >= 0):
        raise InputError(f"mad_robustize_epsilon={mad_robustize_epsilon}: expected a finite number of 0 or more")
    table = CellTable.open(source, features, names(by))
    if not table.features:
        raise InputError(f"no feature beside {', '.join(names(by))}; name the features with features=")
    if path.resolve() in {one.resolve() for one in table.paths}:
        raise InputError(f"{path}: is what is read; write to another file")
    groups = _Groups(names(by))

    def picks(batch: pa.Table) -> Any:
        if samples == "all":
            return np.ones(len(batch), dtype=bool)
        return queries.select(batch.select(table.others).to_pandas(), samples).to_numpy()

    counts, whole = _counted(table, groups, table.others, picks)
    if not len(groups):
        raise InputError("the table has no rows")
    if not counts.all():
        key = ", ".join(f"{k}={v}" for k, v in groups.table().iloc[int(np.argmin(counts))].items()) if groups.by else ""
        raise InputError(
            f"the group {key} has no row picked by samples={samples!r}; leave it out or mend `by`"
            if groups.by
            else f"no row is picked by samples={samples!r}; look at the values of the columns it names"
        )
    scalers = [_scaler(method, mad_robustize_epsilon) for _ in range(len(groups))]
    if whole and counts.max() * len(table.features) * table.dtype.itemsize <= _HELD:
        with np.errstate(invalid="ignore"):  # infinite values are refused below
            for code, rows in table.in_turn(groups, picks):
                scalers[code]._learn(rows)
    else:
        batches = _batches(table, groups, table.features, picks)
        for scaler, center, spread in zip(scalers, *_statistics(table, len(groups), batches, method), strict=True):
            scaler._take(center, spread)
    blank = [np.flatnonzero(np.isnan(scaler.center_)) for scaler in scalers]
    lost = np.zeros(len(table.features), dtype=bool)
    if method == "mad_robustize" and (zero := np.any([scaler.zero_ for scaler in scalers], axis=0)).any():
        some = [table.features[int(i)] for i in np.flatnonzero(zero)]
        warnings.warn(
            f"mad_robustize: {len(some)} feature(s) have a MAD of 0 among the reference rows ({', '.join(some[:3])}); "
            "values off the median are missing",
            ProfileWarning,
            stacklevel=2,
        )
    metadata = [name for name in table.others if name.startswith(METADATA)]
    others = [*metadata, *(name for name in table.others if name not in set(metadata))]
    kind = pa.from_numpy_dtype(table.dtype)
    made = [pa.field(name, kind) for name in table.features]
    if table.array is not None:
        made = [pa.field(table.array, pa.list_(kind, len(table.features)))]
    schema = pa.schema([table.schema.field(name) for name in others] + made)
    with atomic_path(path) as part, parquet_writer(part, schema) as writer:
        for batch in table.batches(table.schema.names):
            codes, rows = groups.codes(batch), table.values(batch, table.features)
            if method != "mad_robustize" and (infinite := np.isinf(rows).any(axis=0)).any():
                bad = [table.features[int(i)] for i in np.flatnonzero(infinite)]
                raise InputError(
                    f"infinite values in {len(bad)} feature(s): {', '.join(bad[:5])}; drop or replace them first"
                )
            out = np.empty_like(rows)
            for code in np.unique(codes).tolist():
                which = codes == code if len(groups) > 1 else slice(None)
                out[which] = scalers[code]._apply(rows[which])
                lost[blank[code]] |= ~np.isnan(rows[which][:, blank[code]]).all(axis=0)
            arrow = [batch[name] for name in others]
            if table.array is not None:
                arrow.append(pa.FixedSizeListArray.from_arrays(pa.array(out.ravel()), type=schema.types[-1]))
            else:
                arrow += [pa.array(column) for column in out.T]
            writer.write_table(pa.Table.from_arrays(arrow, schema=schema))
    if lost.any():
        some = [table.features[int(i)] for i in np.flatnonzero(lost)]
        warnings.warn(
            f"{method}: {len(some)} feature(s) have no value among the reference rows of a group "
            f"({', '.join(some[:3])}), and so all of its values are missing",
            ProfileWarning,
            stacklevel=2,
        )
    return path


def _scaler(method: str, epsilon: float) -> Any:
    return {"mad_robustize": RobustMAD(epsilon), "robustize": Robustize()}.get(method, Standardize())


def _statistics(table: CellTable, n_groups: int, batches: Batches, method: str) -> tuple[Doubles, Doubles]:
    """Centre and spread of each feature in each group, shape (n_groups, n_features), from no more than some rows."""
    shape = n_groups, len(table.features)
    if method == "mad_robustize":
        return group_median_mad(batches, *shape, table.dtype)
    if method == "robustize":
        low, median, high = group_quantiles(batches, *shape, (25, 50, 75), table.dtype).astype(np.float64)
        return median, high - low
    moments = Moments(*shape)
    for codes, rows in batches(np.arange(shape[1])):
        moments.add(codes, rows)
    return moments.mean_sd(ddof=0)


def _paths(source: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    given = [Path(source)] if isinstance(source, str | Path) else [Path(one) for one in source]
    paths = []
    for path in given:
        if not path.exists():
            raise NoFileError(f"{path}: no such file")
        paths += sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not paths:
        raise InputError(f"{', '.join(map(str, given)) or 'source'}: no Parquet file in it")
    return tuple(paths)


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as parquet: {str(error).splitlines()[0]}") from error


def _common_schema(paths: Sequence[Path]) -> pa.Schema:
    """The columns of the first file, each in a type that holds its values in all of them."""
    first = _schema(paths[0])
    kinds = dict(zip(first.names, first.types, strict=True))
    seen = dict.fromkeys(kinds, paths[0])  # where a column has that type
    for path in paths[1:]:
        schema = _schema(path)
        if schema.equals(first):
            continue
        if sorted(schema.names) != sorted(first.names):
            raise InputError(f"{path}: its columns are not those of {paths[0]}; give tables of the same columns")
        for field in schema:
            name, known = field.name, kinds[field.name]
            if (common := _common_type(known, field.type)) is None:
                raise InputError(
                    f"{name} is {field.type} in {path} and {known} in {seen[name]}; write it in one type in all files"
                )
            if common != known:
                kinds[name], seen[name] = common, path
    return pa.schema([pa.field(name, kinds[name]) for name in first.names], metadata=first.metadata)


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """A type for the values of both, or None: text is no number, and a number neither yes nor no."""
    if one == other:
        return one
    one, other = (kind.value_type if pa.types.is_dictionary(kind) else kind for kind in (one, other))
    if any(map(pa.types.is_fixed_size_list, (one, other))):  # arrow makes one of no fixed size
        alike = pa.types.is_fixed_size_list(one) and pa.types.is_fixed_size_list(other)
        values = _common_type(one.value_type, other.value_type) if alike and one.list_size == other.list_size else None
        return None if values is None else pa.list_(values, one.list_size)
    if any(map(pa.types.is_integer, (one, other))) and any(map(pa.types.is_floating, (one, other))):
        return pa.float64()  # arrow takes float for int32, which does not hold it
    if sum(map(_is_bytes, (one, other))) == 1:
        return one if pa.types.is_null(other) else other if pa.types.is_null(one) else None
    fields = [pa.schema([pa.field("x", kind)]) for kind in (one, other)]
    try:
        return pa.unify_schemas(fields, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return None


def _array(schema: pa.Schema, empty: pd.DataFrame, features: Features) -> str | None:
    """The column of lists that the features are in, if they are: named, or called `features` beside no others."""
    lists = [f.name for f in schema if pa.types.is_fixed_size_list(f.type) and pa.types.is_floating(f.type.value_type)]
    if isinstance(features, str):
        return LISTS if features == "infer" and LISTS in lists and not cellprofiler_columns(empty) else None
    return features[0] if len(features) == 1 and features[0] in lists else None


def _largest(paths: Sequence[Path], width: int) -> int:
    """Bytes of the largest row group of rows of `width` bytes: what it says of itself may be of short codes."""
    files = [pq.read_metadata(path) for path in paths]
    groups = [file.row_group(group) for file in files for group in range(file.num_row_groups)]
    return max((max(group.total_byte_size, group.num_rows * width) for group in groups), default=0)


def _row_group(path: Path, about: pq.FileMetaData, group: int, columns: list[str]) -> pa.Table:
    with pq.ParquetFile(path, metadata=about) as file:
        return file.read_row_group(group, columns, use_threads=False)


def _is_number(kind: pa.DataType) -> bool:
    """Whether a column can be a feature: true and false are 1 and 0, and one without any value is missing."""
    types = pa.types
    return types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _cast(batch: pa.Table, kinds: Mapping[str, pa.DataType], path: Path) -> pa.Table:
    """`batch` with some columns in other types."""
    for name, kind in kinds.items():
        column = batch[name]
        if pa.types.is_dictionary(column.type) and not pa.types.is_dictionary(kind):
            column = column.cast(column.type.value_type)
        try:
            column = column.cast(kind)
        except pa.ArrowException as error:
            raise InputError(f"{path}: {name} is {kind} in other files, which does not hold it: {error}") from None
        batch = batch.set_column(batch.schema.get_field_index(name), name, column)
    return batch.replace_schema_metadata(None)  # pandas' words on the types that they were
