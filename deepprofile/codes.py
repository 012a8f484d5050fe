"""Values of metadata columns as names and numbers, whatever their type."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd

from cytominer_tools.columns import METADATA
from cytominer_tools.errors import InputError
from deepprofile.problems import named


def label_columns(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """`columns` as the table has them; an InputError where it does not, or where there is none."""
    if not columns:
        raise InputError("train.label: no column; name one or more, or set columns.treatment in study.yaml")
    return [find_column(table, name, "train.label") for name in columns]


def class_codes(table: pd.DataFrame, columns: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The values of `columns` together: their sorted names, and the place of each row's among them.

    Returns
    -------
    names : tuple of str
    codes : int64 array, shape (n_rows,); -1 where a column is empty

    Raises
    ------
    InputError
        The table has no row, or no row has all the columns filled.
    """
    if table.empty:
        raise InputError("there are no crops to train on; export some with `deepprofile export`")
    names, codes = text_codes(table[columns[0]])
    for column in columns[1:]:
        more, second = text_codes(table[column])
        raw, pairs = pd.factorize(np.where((codes < 0) | (second < 0), -1, codes * max(1, len(more)) + second))
        texts = ["" if pair < 0 else f"{names[pair // len(more)]} | {more[pair % len(more)]}" for pair in pairs]
        names, codes = _sorted(texts, raw)
    if not names:
        raise InputError(
            f"train.label {', '.join(columns)}: it is empty for all {len(table):,} cells; fill it in the index and "
            "export again, or choose another label"
        )
    return names, codes


def text_codes(column: pd.Series) -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct values of `column` as sorted text, and the place of each row's among them; -1 where it is empty.

    A whole number has no decimals, whatever the type of the column: 10.0 is "10".
    """
    raw, values = pd.factorize(column)
    return _sorted([plain_text(value) for value in values], raw)


def plain_text(value: Any) -> str:
    """`value` as a name.

    >>> [plain_text(v) for v in (10.0, 3.3333, 0.1 + 0.2, 7, "DMSO")]
    ['10', '3.3333', '0.3', '7', 'DMSO']
    """
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.12g}"
    return str(value)


def find_column(table: pd.DataFrame, name: str, key: str, also: Sequence[str] = ()) -> str:
    """The column of `table` called `name`, or that with ``Metadata_`` before it.

    Raises
    ------
    InputError
        There is none; it says so of `key`, where it was asked for, and which columns there are, and what `also`.
    """
    for candidate in (name, METADATA + name):
        if candidate in table.columns:
            return candidate
    raise InputError(f"{key}: {no_value(name, [*also, *map(str, table.columns)], 'column')}")


def no_value(name: str, known: Sequence[str], what: str) -> str:
    """That `name` is none of `known`, which of them is meant perhaps, and some of them.

    >>> no_value("dsmo", ["DMSO", "taxol"], "class")
    "no class 'dsmo', is it 'DMSO'?; there are DMSO, taxol"
    """
    lower = {one.lower(): one for one in reversed(known)} | {
        one.lower().removeprefix(METADATA.lower()): one for one in reversed(known)
    }
    close = get_close_matches(name.lower(), lower, 1)
    return f"no {what} {name!r}{f', is it {lower[close[0]]!r}?' if close else ''}; there are {named(known, 12)}"


def _sorted(texts: Sequence[str], raw: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Codes into `texts`, where some may be equal or blank, as codes into its distinct texts in order."""
    names = sorted({text for text in texts if text.strip()})
    place = {name: i for i, name in enumerate(names)}
    return tuple(names), np.array([*(place.get(text, -1) for text in texts), -1])[raw]
