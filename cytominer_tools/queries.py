"""Pandas queries from a file, evaluated as data: no scopes, no `@`, no methods but those that compare."""

import ast
import re
from collections.abc import Callable, Hashable, Mapping
from difflib import get_close_matches
from typing import NoReturn

import pandas as pd

from cytominer_tools.errors import InputError

# a query may come from a stranger's study, and a method such as to_pickle would write a file
METHODS = frozenset({"isin", "isna", "notna", "between", "startswith", "endswith", "contains", "lower", "upper"})

# a string, a column in backticks, a comment, or one of the operators that pandas takes for words
_TOKEN = re.compile(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"|`([^`\n]*)`|#[^\n]*|[&|@\n]")
_WORDS = {"&": " and ", "|": " or ", "\n": " "}
_PLAIN = (ast.Expression, ast.BoolOp, ast.Compare, ast.UnaryOp, ast.BinOp, ast.List, ast.Tuple, ast.keyword, ast.Load)
_OPERATORS = (ast.boolop, ast.unaryop, ast.cmpop, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Mod)


def select(table: pd.DataFrame, query: str) -> pd.Series:
    """True for the rows of `table` that a pandas query picks.

    Parameters
    ----------
    table : DataFrame, n rows
    query : str
        Such as ``Metadata_Compound == 'DMSO'``; a column name with a space goes between backticks. It may compare,
        calculate, say ``and``, ``or``, ``not``, ``in`` and call the `METHODS` of a column (or of its ``.str``).

    Returns
    -------
    Series of bool, length n, on the index of `table`; where the answer is missing it is False.

    Raises
    ------
    InputError
        The query uses `@`, anything else than the above, an unknown column, or does not parse.
    """
    if not isinstance(query, str):
        raise InputError(f"query {query!r}: expected text such as \"Metadata_Compound == 'DMSO'\"")
    short = query if len(query) <= 200 else query[:200] + "..."

    def refuse(why: str) -> NoReturn:
        raise InputError(f"query {short!r}: {why}")

    try:
        text, quoted = _tokens(query)
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if type(error) is ValueError:
            refuse(str(error))
        reason = error.msg if isinstance(error, SyntaxError) else "too deep"
        refuse(f"{reason}; it should read like Metadata_Compound == 'DMSO'")
    columns = {str(name): name for name in table.columns}
    used: dict[str, str] = {}  # name in the query -> column
    _check(tree, columns, quoted, used, refuse)
    try:
        data = table[[columns[name] for name in used.values()]].set_axis(list(used), axis="columns")
        # pandas sees what was checked, not the text; and both scopes are given, or it would look names up in here
        chosen = data.eval(ast.unparse(tree), engine="python", local_dict={}, global_dict={})
    except Exception as error:  # pandas raises its own, ValueError, SyntaxError, TypeError, KeyError ...
        raise InputError(f"query {short!r} fails: {error}; the columns are {_some(columns)}") from error
    if not isinstance(chosen, pd.Series) or pd.api.types.infer_dtype(chosen, skipna=True) not in ("boolean", "empty"):
        refuse("it does not say yes or no for each row; compare a column with a value")
    return chosen.astype("boolean").fillna(False).astype(bool)


def _tokens(query: str) -> tuple[str, dict[str, str]]:
    """The query as Python: & and | as the words pandas takes them for, a name for each column in backticks."""
    quoted: dict[str, str] = {}

    def one(match: re.Match[str]) -> str:
        token = match[0]
        if token == "@":
            raise ValueError("@ is not allowed; write the value itself")
        if token[0] == "`":
            name = f"BACKTICKS_{len(quoted)}"
            quoted[name] = match[1]
            return f" {name} "
        return "" if token[0] == "#" else _WORDS.get(token, token)

    return _TOKEN.sub(one, query), quoted


def _check(
    tree: ast.AST,
    columns: Mapping[str, Hashable],
    quoted: dict[str, str],
    used: dict[str, str],
    refuse: Callable[[str], NoReturn],
) -> None:
    """Refuse every node but those that compare values; note the columns in `used`."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            used[node.id] = name = quoted.get(node.id, node.id)
            if name not in columns:
                close = get_close_matches(name, columns, 1)
                refuse(
                    f"no column {name!r}{f', is it {close[0]!r}?' if close else ''}; the columns are {_some(columns)}"
                )
        elif isinstance(node, ast.Constant):
            if not isinstance(node.value, str | int | float | None):
                refuse(f"{ast.unparse(node)} is not a number or text")
        elif isinstance(node, ast.Attribute):
            if id(node) in called:
                if node.attr not in METHODS:
                    refuse(f".{node.attr}() is not allowed; use comparisons or {', '.join(sorted(METHODS))}")
            elif node.attr != "str":
                refuse(f".{node.attr} is not allowed; a name with a dot or a space goes between backticks")
        elif isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Attribute):
                refuse(f"the function {ast.unparse(node.func)}() is not allowed; compare columns with values")
        elif isinstance(node, ast.BinOp) and _has_text(node):
            refuse("text can be compared, not calculated with")  # 'x' * 999999999 and '%999999999d' % 1
        elif not isinstance(node, _PLAIN + _OPERATORS):
            refuse(f"{type(node).__name__} is not allowed; compare columns with values, joined by and, or, not")


def _has_text(node: ast.BinOp) -> bool:
    return any(isinstance(n, ast.Constant) and isinstance(n.value, str) for n in ast.walk(node))


def _some(columns: Mapping[str, Hashable]) -> str:
    return ", ".join(list(columns)[:12]) + (", ..." if len(columns) > 12 else "")
