"""Profiles as frames with named columns: aggregate cells to wells, spherize wells, summarise replicates."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from cytominer_tools import arrays
from cytominer_tools.arrays import Codes, Floats
from cytominer_tools.columns import PLATE, WELL, feature_columns, require_columns
from cytominer_tools.errors import InputError
from cytominer_tools.transformers import Spherize

Features = Sequence[str] | Literal["infer"]

_REDUCE = {"median": arrays.group_median, "mean": arrays.group_mean}
_OBJECT_NUMBERS = ("ImageNumber", "ObjectNumber")  # numeric, never a feature


def aggregate(
    population_df: pd.DataFrame,
    strata: Sequence[str] = (PLATE, WELL),
    features: Features = "infer",
    operation: str = "median",
    *,
    keep: Sequence[str] = (),
) -> pd.DataFrame:
    """One row for each combination of `strata`: the median or mean of its rows.

    As pycytominer 1.7.1: groups are sorted by their key, a missing value is a key of its own (last), missing
    features are skipped, and only strata and features survive. Unlike it, float32 features stay float32.

    Parameters
    ----------
    population_df : DataFrame
        A row per cell, site or well.
    strata : list of column names
    features : list of column names, or "infer"
    operation : "median" or "mean"
    keep : list of column names
        Further columns for the result, placed after the strata; each must have one value in each group.

    Returns
    -------
    DataFrame
        `strata`, `keep`, features; index 0 to n_groups - 1.

    Raises
    ------
    InputError
        An absent or non-numeric column, another operation, or a `keep` column with two values in a group (a missing
        value next to another one counts as different).
    """
    strata, keep = _names(strata), _names(keep)
    if not strata:
        raise InputError("strata is empty: name the columns that identify a group, such as Metadata_Plate")
    require_columns(population_df, [*strata, *keep], "table to aggregate")
    if (reduce := _REDUCE.get(operation.lower())) is None:
        raise InputError(f"operation={operation!r}: expected one of {', '.join(_REDUCE)}")
    chosen = feature_columns(population_df, features)
    if features == "infer":
        chosen = [name for name in chosen if name not in (*strata, *keep, *_OBJECT_NUMBERS)]
    if twice := set(chosen) & {*strata, *keep}:
        raise InputError(f"both a feature and a key: {', '.join(sorted(twice))}; leave it out of features=")

    codes = population_df.groupby(strata, dropna=False, sort=True, observed=True).ngroup().to_numpy()
    _, first = np.unique(codes, return_index=True)
    for name in keep:
        _require_constant(population_df, name, strata, codes, first)
    values = _values(population_df, chosen)
    holes = np.isnan(values.min(axis=0, initial=np.inf))
    if holes.any():
        reduced = np.empty((len(first), len(chosen)), dtype=values.dtype)
        reduced[:, ~holes] = reduce(values[:, ~holes], codes)
        grouped = pd.DataFrame(values[:, holes]).groupby(codes)
        reduced[:, holes] = grouped.agg(operation.lower()).to_numpy()
    else:
        reduced = reduce(values, codes)
    keys = population_df[[*strata, *keep]].iloc[first].reset_index(drop=True)
    return pd.concat([keys, pd.DataFrame(reduced, columns=chosen)], axis=1)


def consensus(
    profiles: pd.DataFrame,
    replicate_columns: Sequence[str] = (PLATE, WELL),
    operation: str = "median",
    features: Features = "infer",
    *,
    keep: Sequence[str] = (),
) -> pd.DataFrame:
    """One profile for each combination of `replicate_columns`; all else as in `aggregate`."""
    return aggregate(profiles, replicate_columns, features, operation, keep=keep)


class Spherized(NamedTuple):
    """What `spherize` did.

    Attributes
    ----------
    profiles : DataFrame
        The table with spherized features.
    dropped : list of str
        The features left out because controls do not vary in them.
    transformer : Spherize
        Fitted; carries the number of controls, the eigenvalues (rank) and the gains.
    """

    profiles: pd.DataFrame
    dropped: list[str]
    transformer: Spherize


def spherize(
    profiles: pd.DataFrame,
    *,
    control: pd.Series,
    features: Features = "infer",
    method: Literal["ZCA", "ZCA-cor"] = "ZCA-cor",
    ridge: float = 1.0,
    min_variance: float = 1e-6,
) -> Spherized:
    """Drop the features in which controls do not vary, then spherize all rows by the control rows.

    Parameters
    ----------
    profiles : DataFrame
        Wells of all plates of a study at once.
    control : Series of bool, on the index of `profiles`
        Such as `queries.select` makes it.
    features : list of column names, or "infer"
    method, ridge
        As in `Spherize`.
    min_variance : float
        A feature is dropped when its variance over the controls is at most this part of its variance over all rows
        (see `arrays.low_variance`); the ratio has no unit.

    Returns
    -------
    Spherized
        Its `profiles` have the rows and columns of the input in their order, less the dropped features.

    Raises
    ------
    InputError
        Missing or infinite values, a `control` that is not boolean or of another index, fewer than two controls, or
        no feature left.
    """
    if control.dtype != bool or not control.any():
        raise InputError(f"{control.name}: expected booleans, some True; got {control.unique()[:3].tolist()}")
    if not control.index.equals(profiles.index):
        raise InputError(f"{control.name}: its index is not that of the profiles; make it from the same table")
    chosen = feature_columns(profiles, features)
    values = _values(profiles, chosen)
    _require_finite(values, chosen)
    rows = control.to_numpy()
    low = arrays.low_variance(values, values[rows], min_variance)
    dropped = [chosen[i] for i in np.flatnonzero(low)]
    kept = [chosen[i] for i in np.flatnonzero(~low)]
    if not kept:
        raise InputError(f"none of {len(chosen)} features varies among {rows.sum()} control rows; check the controls")
    part = pd.DataFrame(values[:, ~low] if dropped else values, index=profiles.index, columns=kept)
    transformer = Spherize(method=method, ridge=ridge).fit(part, control=rows)
    scored = pd.DataFrame(transformer.transform(part), index=profiles.index, columns=kept)
    gone = set(dropped)
    order = [name for name in profiles.columns if name not in gone]
    return Spherized(pd.concat([profiles.drop(columns=chosen), scored], axis=1)[order], dropped, transformer)


def _names(columns: Sequence[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)


def _values(table: pd.DataFrame, features: list[str]) -> Floats:
    """The features as one array, float32 if all of them fit it, else float64; missing values are NaN."""
    part = table[features]
    parsed = {}
    for name in (name for name, dtype in part.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)):
        try:
            parsed[str(name)] = pd.to_numeric(part[name]).astype("float64")
        except (ValueError, TypeError) as error:
            raise InputError(f"feature {name}: expected numbers, {error}; leave it out of features=") from None
    part = part.assign(**parsed)
    narrow = all(dtype in ("float32", "float16") for dtype in part.dtypes)
    return part.to_numpy(dtype="float32" if narrow else "float64", na_value=np.nan)


def _require_finite(values: Floats, features: list[str]) -> None:
    if not (np.isfinite(values.min(axis=0)) & np.isfinite(values.max(axis=0))).all():  # the whole mask only if needed
        bad = ~np.isfinite(values)
        names = [features[i] for i in np.flatnonzero(bad.any(axis=0))]
        raise InputError(
            f"missing or infinite values in {len(names)} feature(s), {bad.any(axis=1).sum()} of {len(values)} rows: "
            f"{', '.join(names[:5])}; drop those features or rows first"
        )


def _require_constant(table: pd.DataFrame, name: str, strata: list[str], codes: Codes, first: Codes) -> None:
    values, _ = pd.factorize(table[name], use_na_sentinel=False)
    if (differs := values != values[first][codes]).any():
        row = int(np.argmax(differs))
        group = ", ".join(f"{key}={table[key].iloc[row]}" for key in strata)
        found = table[name].iloc[[first[codes[row]], row]].tolist()
        raise InputError(
            f"keep: {name} is not constant in the group {group}: {found}; add it to the strata or leave it out"
        )
