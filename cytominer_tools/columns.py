"""Which columns are features, what the key columns are called, and how a well is written."""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from cytominer_tools.errors import InputError

METADATA = "Metadata_"
PLATE, WELL, SITE, CELL = "Metadata_Plate", "Metadata_Well", "Metadata_Site", "Metadata_Cell"
COUNT = "Metadata_Count"
CELLPROFILER = ("Cells_", "Cytoplasm_", "Nuclei_", "Image_")

_WELL = re.compile(r"^([A-Za-z]{1,2})0*([1-9]\d?)$")


def metadata_columns(table: pd.DataFrame) -> list[str]:
    """The columns of `table` that start with ``Metadata_``, in their order."""
    return [name for name in map(str, table.columns) if name.startswith(METADATA)]


def feature_columns(table: pd.DataFrame, features: Sequence[str] | Literal["infer"] = "infer") -> list[str]:
    """The feature columns of `table`, in their order.

    Parameters
    ----------
    table : DataFrame
    features : list of names, or "infer"
        "infer": the columns with a CellProfiler prefix (Cells_, Cytoplasm_, Nuclei_, Image_) if there are any,
        otherwise every numeric column without ``Metadata_``.

    Raises
    ------
    InputError
        A named column is absent, or nothing looks like a feature.
    """
    if features != "infer":
        if absent := [name for name in features if name not in table.columns]:
            raise InputError(f"{len(absent)} feature column(s) are not in the table: {', '.join(absent[:5])}")
        return list(features)
    numeric = [
        str(name)
        for name, dtype in table.dtypes.items()
        if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)
    ]
    found = [n for n in numeric if n.startswith(CELLPROFILER)] or [n for n in numeric if not n.startswith(METADATA)]
    if not found:
        raise InputError(
            f"no feature columns among {', '.join(map(str, table.columns[:5]))}: expected numeric columns "
            "without Metadata_; name them with features="
        )
    return found


def well_name(well: str) -> str:
    """A well as row letters and two digits.

    >>> [well_name(w) for w in ("a1", "A01", "p24", "AF48")]
    ['A01', 'A01', 'P24', 'AF48']

    Raises
    ------
    InputError
        Not one or two letters and a number from 1 to 99.
    """
    match = _WELL.match(str(well).strip())
    if match is None:
        raise InputError(f"{well!r} is not a well; expected a row letter and a column number such as A01 or p24")
    return f"{match[1].upper()}{int(match[2]):02d}"


def well_place(well: str) -> tuple[int, int]:
    """Row and column of a well, counted from 0.

    >>> well_place("A01"), well_place("p24"), well_place("AF48")
    ((0, 0), (15, 23), (31, 47))

    Raises
    ------
    InputError
        As `well_name`.
    """
    name = well_name(well)
    letters = name[:-2]
    row = sum((ord(letter) - 64) * 26**i for i, letter in enumerate(reversed(letters)))
    return row - 1, int(name[-2:]) - 1


def require_columns(table: pd.DataFrame, columns: Sequence[str], place: str) -> None:
    """Raise one InputError that names every column of `columns` absent from `table` or there twice, read at `place`."""
    if absent := [name for name in columns if name not in table.columns]:
        have = ", ".join(map(str, table.columns[:12])) + (", ..." if table.shape[1] > 12 else "")
        raise InputError(f"{place}: no column {', '.join(map(repr, absent))}; it has {have}")
    if twice := [name for name in columns if isinstance(table[name], pd.DataFrame)]:
        raise InputError(f"{place}: the table has {table[twice[0]].shape[1]} columns {twice[0]!r}; leave one")


def require_values(table: pd.DataFrame, columns: Sequence[str], place: str) -> None:
    """As `require_columns`, and no cell is a list: such cells are not equal or unequal as a whole."""
    require_columns(table, columns, place)
    for name in columns:
        if table[name].dtype == object:
            for cell in table[name]:
                if isinstance(cell, list | set | dict | np.ndarray):
                    raise InputError(f"{place}: {name} holds {cell!r}; expected one value a row")
