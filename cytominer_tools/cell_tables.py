"""Parquet files of cells that are larger than memory: aggregated and normalised a batch of rows at a time."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cytominer_tools import queries
from cytominer_tools.aggregation import OBJECT_COUNT, check_aggregate_operation, reduced
from cytominer_tools.arrays import Codes, Floats
from cytominer_tools.columns import PLATE, WELL, metadata_columns, require_columns
from cytominer_tools.errors import InputError, NoFileError, ProfileWarning
from cytominer_tools.files import atomic_path
from cytominer_tools.frames import Features, group_codes, names, profile_features, with_features
from cytominer_tools.summaries import Batches, Moments, group_median_mad, group_quantiles
from cytominer_tools.tables import parquet_writer
from cytominer_tools.transformers import Robustize, RobustMAD, Standardize

METHODS = ("standardize", "robustize", "mad_robustize")

_VALUES = 2**22  # of a batch: 16 MB of float32
_READ_AHEAD = 2**20  # bytes of a column in memory at once, however long its row group is


@dataclass(frozen=True)
class CellTable:
    """Parquet files with the same columns, read one after another.

    Attributes
    ----------
    paths : tuple of Path
    schema : pyarrow.Schema
    features, others : lists of column names
    dtype : float32 if all features are, else float64
    """

    paths: tuple[Path, ...]
    schema: pa.Schema
    features: list[str]
    others: list[str]
    dtype: np.dtype

    @classmethod
    def open(cls, source: str | Path | Sequence[str | Path], features: Features = "infer") -> "CellTable":
        """The table in a file, a folder of files (by their names) or a list of files.

        Raises
        ------
        InputError
            No such file, not Parquet, files of different columns, no features or such that are not numbers.
        """
        paths = _paths(source)
        schema = _schema(paths[0])
        for path in paths[1:]:
            if _schema(path).names != schema.names:
                raise InputError(f"{path}: its columns are not those of {paths[0]}; give tables of the same columns")
        chosen = profile_features(schema.empty_table().to_pandas(), features)
        kinds = {name: schema.field(name).type for name in chosen}
        if other := [
            name for name, kind in kinds.items() if not (pa.types.is_floating(kind) or pa.types.is_integer(kind))
        ]:
            raise InputError(f"{paths[0]}: feature {other[0]} is {kinds[other[0]]}, expected numbers")
        narrow = all(kind in (pa.float32(), pa.float16()) for kind in kinds.values())
        known = set(chosen)
        others = [name for name in schema.names if name not in known]
        return cls(paths, schema, chosen, others, np.dtype("float32" if narrow else "float64"))

    def batches(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of all rows; as few rows at a time as 16 MB of features are."""
        size = max(256, _VALUES // max(1, len(self.features)))
        for path in self.paths:
            with pq.ParquetFile(path, buffer_size=_READ_AHEAD) as file:
                chosen = list(dict.fromkeys(columns))
                for group in range(file.num_row_groups):  # together they all stay in memory until the last is read
                    for batch in file.iter_batches(size, row_groups=[group], columns=chosen):
                        yield pa.Table.from_batches([batch])

    def values(self, batch: pa.Table, features: Sequence[str]) -> Floats:
        """Features of a batch, shape (n, n_features), each column in one piece; missing values are NaN."""
        out = np.empty((len(features), len(batch)), dtype=self.dtype)
        for row, name in zip(out, features, strict=True):
            row[:] = batch[name].to_numpy()
        return out.T


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
        if new := [i for i, key in enumerate(found_keys) if key not in self.numbers]:
            self.keys.append(rows.take(new))
            for i in new:
                self.numbers[found_keys[i]] = len(self.numbers)
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
    the result is that of `aggregate`. Where they do not, means and medians come from `summaries`, in several passes.

    Parameters
    ----------
    source : path of a file or of a folder of files, or list of paths
    strata, features, operation
        As in `aggregate`.
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
    table = CellTable.open(source, features)
    require_columns(table.schema.empty_table().to_pandas(), by, str(table.paths[0]))
    chosen = [name for name in table.features if name not in by]
    groups = _Groups(by)
    counts: dict[int, int] = {}
    whole, last = True, -1
    for batch in table.batches(by):
        codes = groups.codes(batch)
        starts = np.flatnonzero(np.diff(codes, prepend=last))
        for code in codes[starts].tolist():
            whole &= code == last or code not in counts
            last = code
            counts.setdefault(code, 0)
        for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
            counts[int(code)] += int(count)
    if not counts:
        rows = np.empty((0, len(chosen)), dtype=table.dtype)
        keys = table.schema.empty_table().select(by).to_pandas()
    else:
        rows = (_whole if whole else _pieces)(table, groups, chosen, operation)
        keys = groups.table()
    order = np.argsort(group_codes(keys, by), kind="stable")
    keys = keys.iloc[order].reset_index(drop=True)
    if compute_object_count:
        keys[OBJECT_COUNT] = np.array([counts[int(i)] for i in order], dtype=np.int64)
    return with_features(keys, rows[order], chosen)


def _whole(table: CellTable, groups: _Groups, features: list[str], operation: str) -> Floats:
    """Each group reduced once all of its rows are there."""
    out = np.empty((len(groups), len(features)), dtype=table.dtype)
    held: list[Floats] = []
    last = -1

    def close() -> None:
        if held:
            part = np.concatenate(held)
            out[last] = reduced(part, np.zeros(len(part), dtype=np.int64), operation)[0]
            held.clear()

    for batch in table.batches([*groups.by, *features]):
        codes, rows = groups.codes(batch), table.values(batch, features)
        bounds = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
        for start, end in pairwise(bounds):
            if codes[start] != last:
                close()
                last = int(codes[start])
            held.append(rows[start:end])
    close()
    return out


def _pieces(table: CellTable, groups: _Groups, features: list[str], operation: str) -> Floats:
    """Each group from sums or counts that need no row twice."""
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
    """`normalize` of Parquet files of any length, to another one, in memory that does not grow with them.

    Statistics come from `summaries`: two passes over the rows for a mean and its spread together with the result,
    three to nine for a median and its spread.

    Parameters
    ----------
    source : path of a file or of a folder of files, or list of paths
    output_file : path, .parquet
    features, method, mad_robustize_epsilon, by
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
    table = CellTable.open(source, features)
    if path.resolve() in {one.resolve() for one in table.paths}:
        raise InputError(f"{path}: is what is read; write to another file")
    empty = table.schema.empty_table().to_pandas()
    require_columns(empty, names(by), str(table.paths[0]))
    groups = _Groups(names(by))
    seen = np.zeros(0, dtype=np.int64)

    def picks(batch: pa.Table) -> Any:
        if samples == "all":
            return np.ones(len(batch), dtype=bool)
        return queries.select(batch.select(table.others).to_pandas(), samples).to_numpy()

    for batch in table.batches(table.others):
        codes, which = groups.codes(batch), picks(batch)
        found = np.bincount(codes[which], minlength=len(groups))
        found[: len(seen)] += seen
        seen = found
    if not len(groups):
        raise InputError("the table has no rows")
    if not seen.all():
        key = ", ".join(f"{k}={v}" for k, v in groups.table().iloc[int(np.argmin(seen))].items()) if groups.by else ""
        raise InputError(
            f"the group {key} has no row picked by samples={samples!r}; leave it out or mend `by`"
            if groups.by
            else f"no row is picked by samples={samples!r}; look at the values of the columns it names"
        )
    scalers = _fitted(table, groups, _batches(table, groups, table.features, picks), method, mad_robustize_epsilon)
    if method == "mad_robustize" and (zero := np.any([scaler.zero_ for scaler in scalers], axis=0)).any():
        some = [table.features[int(i)] for i in np.flatnonzero(zero)]
        warnings.warn(
            f"mad_robustize: {len(some)} feature(s) have a MAD of 0 among the reference rows ({', '.join(some[:3])}); "
            "values off the median are missing",
            ProfileWarning,
            stacklevel=2,
        )
    metadata = metadata_columns(empty)
    columns = [*metadata, *(name for name in table.others if name not in set(metadata)), *table.features]
    kind = pa.from_numpy_dtype(table.dtype)
    schema = pa.schema([table.schema.field(name) for name in columns if name not in set(table.features)])
    for name in table.features:
        schema = schema.append(pa.field(name, kind))
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
            arrow = [batch[name] for name in columns[: len(columns) - len(table.features)]]
            writer.write_table(pa.Table.from_arrays([*arrow, *(pa.array(column) for column in out.T)], schema=schema))
    return path


def _fitted(table: CellTable, groups: _Groups, batches: Batches, method: str, epsilon: float) -> list[Any]:
    """A scaler for each group."""
    shape = len(groups), len(table.features)
    if method == "mad_robustize":
        statistics = group_median_mad(batches, *shape, table.dtype)
        scalers: list[Any] = [RobustMAD(epsilon) for _ in range(len(groups))]
    elif method == "robustize":
        low, median, high = group_quantiles(batches, *shape, (25, 50, 75), table.dtype).astype(np.float64)
        statistics = median, high - low
        scalers = [Robustize() for _ in range(len(groups))]
    else:
        moments = Moments(*shape)
        for codes, rows in batches(np.arange(len(table.features))):
            moments.add(codes, rows)
        statistics = moments.mean_sd(ddof=0)
        scalers = [Standardize() for _ in range(len(groups))]
    for scaler, center, spread in zip(scalers, *statistics, strict=True):
        scaler._take(center, spread)
    return scalers


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
