"""Tables in and out: Parquet, CSV and CSV.gz by suffix, the same bytes for the same table; other text tables in."""

import csv
import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cytominer_tools.columns import METADATA, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path
from cytominer_tools.ledger import KEY

SUFFIXES = (".parquet", ".csv", ".csv.gz")
TEXT = (".tsv", ".txt", ".tsv.gz", ".txt.gz")  # read, but never written
_SEPARATORS = {"\t": "tab", ";": "semicolon", ",": "comma"}
_MISSING = ["", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None"]


def read_table(path: str | Path, *, metadata: bool = False) -> pd.DataFrame:
    """Read a table, its format named by the suffix (.parquet, .csv, .tsv, .txt; the text ones also with .gz).

    A text table is UTF-8, with a byte order mark or without; commas, semicolons or tabs separate its values, whichever
    its header holds most of. Plate, well and site stay text. Other ``Metadata_`` columns of a text table become
    numbers only where every value is one and none has a leading zero, so that compound 0012 stays 0012; the words NA,
    nan, null and None are missing values in such a column of numbers and text elsewhere. Empty text is missing in them,
    of Parquet too. With `metadata`, that is so of every column, whatever its name.

    Raises
    ------
    InputError
        The file is absent, of another format, not UTF-8, separated in one way in its header and in another below it,
        or cannot be parsed.
    """
    path = Path(path)
    kind = _format(path, (*SUFFIXES, *TEXT))
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if kind == ".parquet":
            return _text_keys(pq.read_table(path).to_pandas(), metadata=metadata)
        sep = separator(path)
        # pandas renames a second `a` to `a.1`, so the names are taken as they stand
        header = pd.read_csv(
            path, sep=sep, header=None, nrows=1, encoding="utf-8-sig", dtype=str, na_filter=False
        ).iloc[0]
        if twice := header[header.duplicated()].tolist():
            raise InputError(f"{path}: expected a header of distinct column names, {twice[0]!r} stands in it twice")
        head = pd.read_csv(path, sep=sep, nrows=1, encoding="utf-8-sig")
        if not isinstance(head.index, pd.RangeIndex):  # pandas would take the first column for an index
            raise InputError(f"{path}: its rows have more values than its header has names; mend the first line")
        columns = head.columns
        words = {name: str for name in columns if metadata or name.startswith(METADATA)}
        missing = {name: _MISSING for name in columns if name not in words}
        table = pd.read_csv(
            path,
            sep=sep,
            encoding="utf-8-sig",
            dtype=words,
            keep_default_na=False,
            na_values=missing,
            low_memory=False,
        )
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as {kind[1:]}: it is not UTF-8; save it as UTF-8") from error
    except (ValueError, OSError, EOFError, zlib.error) as error:  # the errors of pyarrow and pandas are ValueErrors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be read as {kind[1:]}: {reason}") from error
    for name in words:
        table[name] = table[name].fillna("")  # the end of a short row
        if name not in (PLATE, WELL, SITE):
            table[name] = _numbers_if_all(table[name])
    return table


def write_table(table: pd.DataFrame, path: str | Path, ledger: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write `table` without its index, atomically, in the format that the suffix names; return the path.

    `ledger` goes into the metadata of a Parquet file (see `ledger.read_ledger`); text has no place for it.

    Raises
    ------
    InputError
        Another suffix, a column of several types or of one that Parquet has not, a full disk or an unwritable folder.
    """
    path = Path(path)
    kind = _format(path)
    with atomic_path(path) as part:
        if kind == ".parquet":
            try:
                arrow = pa.Table.from_pandas(table, preserve_index=False)
            except (pa.ArrowException, TypeError, ValueError) as error:  # values of several types in one column
                why = ", ".join(map(str, error.args))
                raise InputError(f"{path}: the table cannot be written as Parquet: {why}; mend that column") from error
            if ledger:
                said = {KEY: json.dumps(list(ledger), sort_keys=True)}
                arrow = arrow.replace_schema_metadata((arrow.schema.metadata or {}) | said)
            write_parquet(arrow, part)
        elif kind == ".csv":
            table.to_csv(part, index=False, lineterminator="\n")
        else:
            # neither time nor (temporary) name in the header, or equal tables would differ in their bytes
            with part.open("wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file:
                file.write(table.to_csv(index=False, lineterminator="\n").encode())
    return path


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write one row group after another with the settings of every Parquet file of this project; not atomic."""
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table, row_group_size=max(1, len(table)))


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer whose bytes depend on the table alone; dictionaries only where values repeat (text)."""
    text = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=text or False)


def _format(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> str:
    for suffix in suffixes:
        if path.name.endswith(suffix):
            return suffix
    raise InputError(f"{path}: the suffix must be one of {', '.join(suffixes)}")


def separator(path: Path) -> str:
    """What separates the values of a text table: of tab, semicolon and comma the one its header holds most of."""
    with gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig") as f:
        lines = [line for line in (f.readline(1 << 20), f.readline(1 << 20)) if line.strip()]
    if not lines:
        return ","  # pandas says that it is empty
    found = {sep: [_fields(line, sep) for line in lines] for sep in _SEPARATORS}
    best = max(found, key=lambda sep: found[sep][0])
    if len(lines) == 2 and found[best][0] > 1 and found[best][1] == 1:
        for sep, (_, row) in found.items():
            if row == found[best][0]:
                raise InputError(
                    f"{path}: its header is separated by {_SEPARATORS[best]}s and the rows by {_SEPARATORS[sep]}s; "
                    "separate both in one way"
                )
    return best if found[best][0] > 1 else ","


def _fields(line: str, sep: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=sep)))
    except csv.Error:  # a field of over 131,072 characters: thousands of names that something else separates
        return 1


def _text_keys(table: pd.DataFrame, *, metadata: bool) -> pd.DataFrame:
    """Missing is "" in a key and NaN in other text, as in a CSV; a missing key would not be equal to itself."""
    keys = [name for name in (PLATE, WELL, SITE) if name in table]
    text = [str(n) for n in table.columns if n not in keys and (metadata or str(n).startswith(METADATA))]
    text = [name for name in text if pd.api.types.infer_dtype(table[name], skipna=True) == "string"]
    return table.assign(
        **{name: table[name].astype("str").where(table[name].notna(), "") for name in keys},
        **{name: table[name].mask(table[name] == "") for name in text},
    )


def _numbers_if_all(column: pd.Series) -> pd.Series:
    missing = column.isin(_MISSING)
    words = column[~missing]
    if words.str.match(r"^[+-]?(?:0\d|\d{16,}$)").any():  # 0012, or a barcode with more digits than a float holds
        return column.mask(column == "")
    numbers = pd.to_numeric(words, errors="coerce")
    if numbers.isna().any() or words.empty:
        return column.mask(column == "")
    return pd.to_numeric(numbers.reindex(column.index))
