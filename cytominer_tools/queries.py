"""Pandas queries from a file, evaluated as data: no scopes, no `@`, no methods but those that compare."""

import re

import pandas as pd

from cytominer_tools.errors import InputError

# a query may come from a stranger's study, and a method such as to_pickle would write a file
METHODS = frozenset({"isin", "isna", "notna", "between", "str", "startswith", "endswith", "contains", "lower", "upper"})

_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|`[^`]*`")


def select(table: pd.DataFrame, query: str) -> pd.Series:
    """True for the rows of `table` that a pandas query picks.

    Parameters
    ----------
    table : DataFrame, n rows
    query : str
        Such as ``Metadata_Compound == 'DMSO'``; a column name with a space goes between backticks.

    Returns
    -------
    Series of bool, length n, on the index of `table`; a missing value is False.

    Raises
    ------
    InputError
        The query uses `@`, a call that does not compare, an unknown column, or does not parse.
    """
    bare = _QUOTED.sub(" ", query)
    if "@" in bare:
        raise InputError(f"query {query!r}: @ is not allowed; write the value itself")
    if bad := [name for name in re.findall(r"\.\s*([A-Za-z_]\w*)", bare) if name not in METHODS]:
        raise InputError(f"query {query!r}: .{bad[0]} is not allowed; use comparisons or {', '.join(sorted(METHODS))}")
    if bad := [name for name in re.findall(r"(?<![.\w])([A-Za-z_]\w*)\s*\(", bare) if name not in ("and", "or", "not", "in")]:
        raise InputError(f"query {query!r}: the function {bad[0]}() is not allowed; compare columns with values")
    try:
        # both None-like scopes are given, or pandas would look names up in this function
        chosen = table.eval(query, engine="python", local_dict={}, global_dict={})
    except Exception as error:  # pandas raises its own, ValueError, SyntaxError, TypeError, KeyError ...
        have = ", ".join(map(str, table.columns[:12]))
        raise InputError(f"query {query!r} fails: {error}; the columns are {have}") from error
    if not isinstance(chosen, pd.Series) or not pd.api.types.is_bool_dtype(chosen.dtype):
        raise InputError(f"query {query!r} does not say yes or no for each row; compare a column with a value")
    return chosen.fillna(False).astype(bool)
