"""Many rows to one: cells to wells, replicates to a consensus."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cytominer_tools import arrays
from cytominer_tools.arrays import Codes
from cytominer_tools.columns import PLATE, WELL, require_columns
from cytominer_tools.compat import as_peer
from cytominer_tools.correlations import check_correlation_method, weighted_replicates
from cytominer_tools.errors import InputError, ProfileWarning
from cytominer_tools.frames import (
    Features,
    features_beside,
    group_codes,
    names,
    profile_features,
    require_names,
    values,
    with_features,
)
from cytominer_tools.loading import load_profiles
from cytominer_tools.output import write_to_file_if_user_specifies_output_details

OPERATIONS: Mapping[str, Callable[..., arrays.Floats]] = {
    "median": arrays.group_median,
    "mean": arrays.group_mean,
    "trimmed_mean": arrays.group_trimmed_mean,
}
SPREADS = ("mad", "covariance")
OBJECT_COUNT = "Metadata_Object_Count"

_MOST = 100_000  # columns of covariances
OBJECT_NUMBERS = ("ImageNumber", "ObjectNumber")  # numeric, but no feature
_MODZ: dict[str, Any] = {"method": "spearman", "min_weight": 0.01, "precision": 4}


@write_to_file_if_user_specifies_output_details
def aggregate(
    population_df: pd.DataFrame,
    strata: str | Sequence[str] = (PLATE, WELL),
    features: Features = "infer",
    image_features: bool = False,
    operation: str = "median",
    output_file: str | Path | None = None,
    output_type: str | None = "csv",
    compute_object_count: bool = False,
    object_feature: str = "Metadata_ObjectNumber",
    subset_data_df: pd.DataFrame | None = None,
    compression_options: str | dict[str, Any] | None = None,
    float_format: str | None = None,
    *,
    keep: Sequence[str] = (),
    spread: str | Sequence[str] = (),
    compat: str | None = None,
) -> pd.DataFrame:
    """One row for each combination of `strata`: the median, mean or trimmed mean of its rows.

    Groups are sorted by their key, a missing value is a key of its own (last), missing features are skipped, and only
    strata, `keep` and features survive. float32 features stay float32.

    Parameters
    ----------
    population_df : DataFrame, or the path of a table
        A row per cell, site or well.
    strata : list of column names
    features : list of column names, or "infer"
    image_features : bool
        Whether "infer" takes the numeric Image_ columns too.
    operation : "median", "mean" or "trimmed_mean"
        The last without the lowest and the highest tenth of the values of each feature.
    output_file, output_type, compression_options, float_format
        As in `output`; with `output_file` the result is written and its path returned.
    compute_object_count : bool
        Add Metadata_Object_Count: the rows of a group in which `object_feature` is not missing.
    subset_data_df : DataFrame, optional
        Only the rows that agree with one of its rows in all of its columns.
    keep : list of column names
        Further columns for the result, placed after the strata; each must have one value in each group.
    spread : "mad", "covariance" or both
        How the rows of a group differ, to the right of the features: FEATURE_MAD (`arrays.median_mad`), and
        FEATURE_Cov_OTHER (divided by n - 1) for every two features and each with itself. Two kinds of cells in a well
        change them where the median stays [1]_.
    compat : "pycytominer-1.7.1", optional
        Its object counts: missing where a key is.

    Returns
    -------
    DataFrame
        `strata`, the count, `keep`, features; index 0 to n_groups - 1. Without rows, the same columns and no row.

    Raises
    ------
    InputError
        An absent or non-numeric column, another operation, a `keep` column with two values in a group (a missing
        value next to another one counts as different), or too many covariances.

    References
    ----------
    .. [1] Rohban et al. 2019, doi:10.1038/s41467-019-10154-8.
    """
    peer = as_peer(compat)
    population_df = load_profiles(population_df)
    require_names(population_df)
    strata, keep = names(strata), names(keep)
    if not strata:
        raise InputError("strata is empty: name the columns that identify a group, such as Metadata_Plate")
    counted = [object_feature] if compute_object_count else []
    require_columns(population_df, [*strata, *keep, *counted], "table to aggregate")
    operation = check_aggregate_operation(operation)
    if subset_data_df is not None:
        population_df = _subset(population_df, subset_data_df)
    chosen = features_beside(population_df, features, [*strata, *keep], image_features=image_features)
    chosen = [name for name in chosen if name not in OBJECT_NUMBERS]

    codes = group_codes(population_df, strata)
    _, first = np.unique(codes, return_index=True)
    for name in keep:
        _require_constant(population_df, name, strata, codes, first)
    rows = values(population_df, chosen)
    columns, found = chosen, [reduced(rows, codes, operation)]
    for name in names(spread):
        more, part = _spread(rows, codes, chosen, name)
        columns, found = [*columns, *more], [*found, part]
    keys = population_df[[*strata, *keep]].iloc[first].reset_index(drop=True)
    if compute_object_count:
        keys.insert(len(strata), OBJECT_COUNT, _counts(population_df, object_feature, strata, codes, peer))
    keys = keys.drop(columns=[name for name in strata if name in OBJECT_NUMBERS])
    return with_features(keys, np.concatenate(found, axis=1, dtype=rows.dtype, casting="same_kind"), columns)


@write_to_file_if_user_specifies_output_details
def consensus(
    profiles: pd.DataFrame,
    replicate_columns: str | Sequence[str] = (PLATE, WELL),
    operation: str = "median",
    features: Features = "infer",
    output_file: str | Path | None = None,
    output_type: str | None = "csv",
    compression_options: str | dict[str, Any] | None = None,
    float_format: str | None = None,
    modz_args: Mapping[str, Any] | None = None,
    *,
    keep: Sequence[str] = (),
    compat: str | None = None,
) -> pd.DataFrame:
    """One profile for each combination of `replicate_columns`: median, mean, or replicates weighted by agreement.

    Parameters
    ----------
    profiles : DataFrame, or the path of a table
    replicate_columns, features, keep, output_file, output_type, compression_options, float_format
        As in `aggregate`.
    operation : "median", "mean", "trimmed_mean" or "modz"
    modz_args : dict, optional
        method ("spearman"), min_weight (0.01) and precision (4), as in `modz`.

    Raises
    ------
    InputError
        As in `aggregate` and `modz`.
    """
    profiles = load_profiles(profiles)
    if check_consensus_operation(operation) != "modz":
        return aggregate(profiles, replicate_columns, features, operation=operation, keep=keep, compat=compat)
    as_peer(compat)
    if unknown := sorted(set(modz_args or {}) - set(_MODZ)):
        raise InputError(f"modz_args: unknown {', '.join(unknown)}; expected {', '.join(_MODZ)}")
    options = _MODZ | dict(modz_args or {})
    if keep:
        raise InputError(f"keep goes with operation {', '.join(OPERATIONS)}")
    return modz(
        profiles,
        replicate_columns,
        features,
        method=str(options["method"]),
        min_weight=float(options["min_weight"]),
        precision=int(options["precision"]),
    )


def modz(
    population_df: pd.DataFrame,
    replicate_columns: str | Sequence[str],
    features: Features = "infer",
    method: str = "spearman",
    min_weight: float = 0.01,
    precision: int = 4,
) -> pd.DataFrame:
    """Moderated z-score: the sum of the replicates of each group, weighted by how well each agrees with the others.

    Parameters
    ----------
    population_df : DataFrame, a row a replicate
    replicate_columns : list of column names
        What replicates share; a missing value is a key of its own, the last.
    features : list of column names, or "infer"
    method : "spearman", "pearson" or "kendall"
    min_weight, precision
        As in `correlations.replicate_weights`; weights of 4 digits need not add up to 1.

    Returns
    -------
    DataFrame
        `replicate_columns`, features (float64). A missing value counts as 0, an infinite one makes its group infinite;
        replicates of one feature, or all without a correlation, weigh the same.

    Raises
    ------
    InputError
        An absent or non-numeric column, no rows.
    """
    by = names(replicate_columns)
    population_df = load_profiles(population_df)
    if not by:
        raise InputError("replicate_columns is empty: name the columns that replicates share")
    require_columns(population_df, by, "replicate_columns not in input dataframe")
    known = check_correlation_method(method)
    chosen = [name for name in profile_features(population_df, features) if name not in by]
    if len(population_df) == 0:
        raise InputError("population_df must include at least one sample")
    codes = group_codes(population_df, by)
    members = list(arrays.members(codes))
    rows = weighted_replicates(values(population_df, chosen), members, known, min_weight, precision)
    _, first = np.unique(codes, return_index=True)
    return with_features(population_df[by].iloc[first].reset_index(drop=True), rows, chosen)


def modz_base(
    population_df: pd.DataFrame, method: str = "spearman", min_weight: float = 0.01, precision: int = 4
) -> pd.Series:
    """`modz` of all rows of a table whose columns are all features; a Series on their names.

    Raises
    ------
    InputError
        No rows.
    """
    if len(population_df) == 0:
        raise InputError("population_df must include at least one sample")
    require_names(population_df)
    chosen = list(population_df.columns)
    everything = [slice(0, len(population_df))]
    rows = values(population_df, chosen)
    known = check_correlation_method(method)
    return pd.Series(weighted_replicates(rows, everything, known, min_weight, precision)[0], index=chosen)


def check_aggregate_operation(operation: str) -> str:
    """ "median", "mean" or "trimmed_mean", in lower case.

    Raises
    ------
    InputError
        Anything else.
    """
    if (lower := operation.lower()) not in OPERATIONS:
        raise InputError(f"operation={operation!r}: expected one of {', '.join(OPERATIONS)}")
    return lower


def check_consensus_operation(operation: str) -> str:
    """ "median", "mean", "trimmed_mean" or "modz", in lower case.

    Raises
    ------
    InputError
        Anything else.
    """
    if (lower := operation.lower()) not in (*OPERATIONS, "modz"):
        raise InputError(f"operation={operation!r}: expected one of {', '.join(OPERATIONS)}, modz")
    return lower


def reduced(rows: arrays.Floats, codes: Codes, operation: str) -> arrays.Floats:
    """One row a group by an operation of `OPERATIONS`, missing values left out; shapes as in `arrays.group_median`."""
    reduce = OPERATIONS[operation]
    holes = arrays.has_holes(rows)
    if not holes.any():
        return reduce(rows, codes)
    out = np.empty((int(codes.max()) + 1, rows.shape[1]), dtype=rows.dtype)
    out[:, ~holes] = reduce(rows[:, ~holes], codes)
    grouped = pd.DataFrame(rows[:, holes]).groupby(codes)
    out[:, holes] = (grouped.agg(_trimmed_mean) if operation == "trimmed_mean" else grouped.agg(operation)).to_numpy()
    return out


def _trimmed_mean(column: pd.Series) -> Any:
    known = column.dropna().to_numpy()[:, None]
    return arrays.group_trimmed_mean(known, np.zeros(len(known), dtype=np.int64)).item() if len(known) else np.nan


def _spread(rows: arrays.Floats, codes: Codes, features: list[str], name: str) -> tuple[list[str], arrays.Doubles]:
    """The columns of one of `SPREADS`, and their values."""
    if name not in SPREADS:
        raise InputError(f"spread={name!r}: expected one of {', '.join(SPREADS)}")
    n_groups = int(codes.max()) + 1 if len(codes) else 0
    if name == "mad":
        columns = [f"{feature}_MAD" for feature in features]
        return columns, arrays.group_mad(rows, codes) if n_groups else np.empty((0, len(columns)))
    n = len(features)
    if (total := n * (n + 1) // 2) > _MOST:
        raise InputError(f"spread: {total:,} covariances of {n:,} features; name fewer by features=")
    columns = [f"{features[i]}_Cov_{features[j]}" for i, j in zip(*np.triu_indices(n), strict=True)]
    if not arrays.has_holes(rows).any():
        return columns, arrays.group_covariance(rows, codes)
    pairs = pd.DataFrame(rows.astype(np.float64)).groupby(codes).cov().to_numpy().reshape(n_groups, n, n)
    return columns, pairs[:, *np.triu_indices(n)]


def _subset(table: pd.DataFrame, subset: pd.DataFrame) -> pd.DataFrame:
    on = subset.columns.tolist()
    require_columns(table, on, "subset_data_df")
    return subset.merge(table, how="inner", on=on).reindex(columns=table.columns)


def _counts(table: pd.DataFrame, name: str, strata: list[str], codes: Codes, peer: bool) -> pd.Series:
    counts = table[name].notna().groupby(codes).sum().astype("int64")
    keyless = table[strata].isna().any(axis=1).groupby(codes).any()
    if peer and keyless.any():
        return counts.astype("float64").mask(keyless)
    if keyless.any():
        warnings.warn(
            f"{OBJECT_COUNT}: {keyless.sum()} group(s) have a missing key, for which pycytominer 1.7.1 has no count",
            ProfileWarning,
            stacklevel=4,
        )
    return counts


def _require_constant(table: pd.DataFrame, name: str, strata: list[str], codes: Codes, first: Codes) -> None:
    found, _ = pd.factorize(table[name], use_na_sentinel=False)
    if (differs := found != found[first][codes]).any():
        row = int(np.argmax(differs))
        group = ", ".join(f"{key}={table[key].iloc[row]}" for key in strata)
        both = table[name].iloc[[first[codes[row]], row]].tolist()
        raise InputError(
            f"keep: {name} is not constant in the group {group}: {both}; add it to the strata or leave it out"
        )
