"""From frames with named columns to arrays: which columns are features, their values, the rows a query picks."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytominer_tools import queries
from cytominer_tools.arrays import Codes, Doubles, Floats
from cytominer_tools.cellprofiler import cellprofiler_columns
from cytominer_tools.columns import feature_columns
from cytominer_tools.errors import InputError

Features = Sequence[str] | Literal["infer"]

_MISSING = {"", "na", "n/a", "nan", "none", "null"}


def profile_features(table: pd.DataFrame, features: Features = "infer", *, image_features: bool = False) -> list[str]:
    """The feature columns of a table of profiles, in their order.

    "infer" is pycytominer's rule where it finds any (Cells_, Nuclei_, Cytoplasm_, with `image_features` also numeric
    Image_), otherwise every numeric column without ``Metadata_``.

    Raises
    ------
    InputError
        Column names that are not text or stand twice, a named column that is absent, nothing that looks like a feature.
    """
    require_names(table)
    if not isinstance(features, str):
        return feature_columns(table, list(features))
    if features != "infer":
        raise InputError(f"features={features!r}: expected a list of column names, or 'infer'")
    return cellprofiler_columns(table, image_features=image_features) or feature_columns(table)


def features_beside(
    table: pd.DataFrame, features: Features, keys: Sequence[str], *, image_features: bool = False
) -> list[str]:
    """`profile_features` without `keys`: those that look like a feature, such as the number of a plate, are none.

    Raises
    ------
    InputError
        As in `profile_features`; a key that is named as a feature too.
    """
    chosen = profile_features(table, features, image_features=image_features)
    both = set(chosen) & set(keys)
    if both and not isinstance(features, str):
        raise InputError(f"both a feature and a key: {', '.join(sorted(both))}; leave it out of features=")
    return [name for name in chosen if name not in both]


def require_names(table: pd.DataFrame) -> None:
    """Raise InputError unless the column names are text, each of them once."""
    if other := [name for name in table.columns if not isinstance(name, str)]:
        raise InputError(
            f"{len(other)} column name(s) are not text: {', '.join(map(repr, other[:3]))}; "
            "rename them, such as by table.columns = table.columns.astype(str)"
        )
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()].tolist()
        raise InputError(f"{len(twice)} column name(s) stand twice: {', '.join(twice[:3])}; rename or drop one of each")


def values(table: pd.DataFrame, features: Sequence[str]) -> Floats:
    """The features as one array, float32 if all of them fit it, else float64; missing values are NaN.

    Not a copy where the columns lie side by side in one block, so the caller must not write into it. In a column of
    text the words NA, nan, none, null and nothing are missing values.

    Raises
    ------
    InputError
        A column that does not hold numbers.
    """
    places = table.columns.get_indexer(pd.Index(features))
    in_a_row = len(places) > 0 and (np.diff(places) == 1).all()
    part = table.iloc[:, int(places[0]) : int(places[-1]) + 1] if in_a_row else table.take(places, axis=1)
    kinds = part.dtypes.to_numpy()
    numeric = {kind: pd.api.types.is_numeric_dtype(kind) for kind in set(kinds)}  # thousands of columns, a few kinds
    if any(map(pd.api.types.is_complex_dtype, numeric)):
        name = next(str(name) for name, kind in part.dtypes.items() if pd.api.types.is_complex_dtype(kind))
        raise InputError(f"feature {name}: expected real numbers, it is {part.dtypes[name]}; take a part of it")
    parsed = {}
    for i in np.flatnonzero([not numeric[kind] for kind in kinds]):
        name = str(part.columns[int(i)])
        column = part[name].astype(object)
        words = column.map(lambda value: isinstance(value, str) and value.strip().lower() in _MISSING)
        try:
            parsed[name] = pd.to_numeric(column.mask(words.astype(bool), np.nan)).astype("float64")
        except (ValueError, TypeError) as error:
            raise InputError(f"feature {name}: expected numbers, {error}; leave it out of features=") from None
    if parsed:
        part = part.assign(**parsed)
    narrow = all(kind in ("float32", "float16") for kind in numeric)
    return part.to_numpy(dtype="float32" if narrow else "float64", na_value=np.nan)


def reference_rows(table: pd.DataFrame, samples: str) -> npt.NDArray[np.bool_]:
    """Which rows of `table` a query picks; all of them for "all".

    Raises
    ------
    InputError
        The query does not parse or picks no row.
    """
    if not isinstance(samples, str):
        raise InputError(f"samples={samples!r}: expected 'all' or a query such as \"Metadata_Compound == 'DMSO'\"")
    if len(table) == 0:
        raise InputError("the table has no rows")
    if samples == "all":
        return np.ones(len(table), dtype=bool)
    rows = queries.select(table, samples).to_numpy()
    if not rows.any():
        raise InputError(f"no row is picked by samples={samples!r}; look at the values of the columns it names")
    return rows


def group_codes(table: pd.DataFrame, by: Sequence[str]) -> Codes:
    """A number for each row, 0 to n_groups - 1 in the sorted order of the keys; a missing key is a key, the last.

    Raises
    ------
    InputError
        Keys that are lists or such.
    """
    try:
        codes: Codes = table.groupby(list(by), dropna=False, sort=True, observed=True).ngroup().to_numpy()
    except TypeError as error:
        raise InputError(f"{', '.join(by)}: expected text, numbers or dates as keys; {error}") from None
    return codes


def group_labels(table: pd.DataFrame, by: Sequence[str]) -> pd.Series:
    """The values of the columns `by` of each row as one text; missing where one of them is."""
    labels = table[by[0]].astype(object)
    for name in by[1:]:
        labels = labels.astype(str) + "\x1f" + table[name].astype(str)
    return labels.where(table[list(by)].notna().all(axis=1))


def require_finite(rows: Floats, features: Sequence[str]) -> None:
    """Raise InputError that names the features with a missing or infinite value."""
    if not (np.isfinite(rows.min(axis=0)) & np.isfinite(rows.max(axis=0))).all():  # the whole mask only if needed
        bad = ~np.isfinite(rows)
        names = [features[int(i)] for i in np.flatnonzero(bad.any(axis=0))]
        raise InputError(
            f"missing or infinite values in {len(names)} feature(s), {bad.any(axis=1).sum()} of {len(rows)} rows: "
            f"{', '.join(names[:5])}; drop those features or rows first"
        )


def names(columns: str | Sequence[str]) -> list[str]:
    """`columns` as a list; one name stands for a list of one."""
    return [columns] if isinstance(columns, str) else list(columns)


def with_features(others: pd.DataFrame, features: Floats | Doubles, columns: Sequence[str]) -> pd.DataFrame:
    """`others`, and to the right of it the features, on its index; not a copy of them."""
    table = pd.DataFrame(features, index=others.index, columns=list(columns), copy=False)
    return pd.concat([others, table], axis=1)
