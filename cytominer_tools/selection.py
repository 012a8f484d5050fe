"""Which features to drop, and why: constant, correlated, incomplete, extreme, noisy, or on a list."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytominer_tools import arrays
from cytominer_tools.arrays import Floats
from cytominer_tools.blocklist import Blocklist, get_blocklist_features
from cytominer_tools.compat import as_peer
from cytominer_tools.correlations import check_correlation_method, correlated_pairs, drop_of_each_pair, ranks
from cytominer_tools.errors import InputError, ProfileWarning
from cytominer_tools.frames import Features, profile_features, reference_rows, require_names, values
from cytominer_tools.loading import load_profiles
from cytominer_tools.output import write_to_file_if_user_specifies_output_details

OPERATIONS = (
    "variance_threshold",
    "frequency_threshold",
    "correlation_threshold",
    "drop_na_columns",
    "blocklist",
    "drop_outliers",
    "noise_removal",
)


@write_to_file_if_user_specifies_output_details
def feature_select(
    profiles: pd.DataFrame,
    features: Features = "infer",
    image_features: bool = False,
    samples: str = "all",
    operation: str | Sequence[str] = "variance_threshold",
    output_file: str | Path | None = None,
    output_type: str | None = "csv",
    na_cutoff: float = 0.05,
    corr_threshold: float = 0.9,
    corr_method: str = "pearson",
    freq_cut: float = 0.05,
    unique_cut: float = 0.01,
    compression_options: str | dict[str, Any] | None = None,
    float_format: str | None = None,
    blocklist: str | list[str] | Blocklist | None = None,
    blocklist_name: str | list[str] | None = None,
    blocklist_file: str | None = None,
    outlier_cutoff: float = 500.0,
    noise_removal_perturb_groups: str | list[Any] | None = None,
    noise_removal_stdev_cutoff: float | None = None,
    min_variance: float = 1e-6,
    *,
    reasons: bool = False,
    compat: str | None = None,
) -> Any:
    """Drop features by one operation after another, each looking at those that the earlier ones left.

    Parameters
    ----------
    profiles : DataFrame, or the path of a table
    features : list of column names, or "infer"
    image_features : bool
        Whether "infer" takes the numeric Image_ columns too.
    samples : "all", or a query
        The rows to decide by.
    operation : name or list of names
        variance_threshold, frequency_threshold, correlation_threshold, drop_na_columns (`get_na_columns`), blocklist
        (`get_blocklist_features`), drop_outliers (`drop_outlier_features`), noise_removal; each is a function.
    output_file, output_type, compression_options, float_format
        As in `output`; with `output_file` the result is written and its path returned.
    reasons : bool
        Return a second frame too: feature, operation and reason of each that is dropped. A Parquet file has it in its
        ledger (`read_ledger`).
    compat : "pycytominer-1.7.1", optional
        Its correlation_threshold and noise_removal; see there.

    Returns
    -------
    DataFrame
        `profiles` less the dropped features.

    Raises
    ------
    InputError
        An unknown operation, or what the operations raise.
    """
    as_peer(compat)
    operations = [operation] if isinstance(operation, str) else operation
    if not isinstance(operations, list | tuple):
        raise InputError(f"operation={operation!r}: must be a list or string")
    if unknown := [name for name in operations if name not in OPERATIONS]:
        raise InputError(f"operation {', '.join(map(repr, unknown))} not supported. Choose of {', '.join(OPERATIONS)}")
    profiles = load_profiles(profiles)
    if "noise_removal" in operations and (noise_removal_perturb_groups is None or noise_removal_stdev_cutoff is None):
        raise InputError("noise_removal: must provide both noise_removal_perturb_groups and noise_removal_stdev_cutoff")
    left = profile_features(profiles, features, image_features=image_features)
    blocked = "stands on the block list"
    drop: dict[str, Callable[[list[str]], dict[str, str]]] = {
        "variance_threshold": lambda some: _low_variance(profiles, some, samples, min_variance),
        "frequency_threshold": lambda some: _few_values(profiles, some, samples, freq_cut, unique_cut),
        "correlation_threshold": lambda some: _correlated(
            profiles, some, samples, corr_threshold, corr_method, compat, 4
        ),
        "drop_na_columns": lambda some: _incomplete(profiles, some, samples, na_cutoff),
        "blocklist": lambda _: dict.fromkeys(
            get_blocklist_features(blocklist, blocklist_name, profiles, blocklist_file), blocked
        ),
        "drop_outliers": lambda some: _extreme(profiles, some, samples, outlier_cutoff),
        "noise_removal": lambda some: _noisy(
            profiles,
            noise_removal_perturb_groups or [],
            some,
            samples,
            float(noise_removal_stdev_cutoff or 0),
            compat,
            4,
        ),
    }
    gone: dict[str, tuple[str, str]] = {}
    for name in operations:
        if not left and name != "blocklist":
            break
        gone = {feature: (name, why) for feature, why in drop[name](left).items()} | gone
        left = [feature for feature in left if feature not in gone]
    selected = profiles[[name for name in profiles.columns if name not in gone]]
    if not reasons:
        return selected
    rows = [(name, *gone[name]) for name in profiles.columns if name in gone]
    return selected, pd.DataFrame(rows, columns=["feature", "operation", "reason"])


def variance_threshold(
    population_df: pd.DataFrame, features: Features = "infer", samples: str = "all", min_variance: float = 1e-6
) -> list[str]:
    """The features whose variance (divided by n, missing values left out) is at most `min_variance`.

    Raises
    ------
    InputError
        A negative or other threshold, infinite values, or no feature that is over it.
    """
    return list(_low_variance(population_df, features, samples, min_variance))


def _low_variance(table: pd.DataFrame, features: Features, samples: str, min_variance: float) -> dict[str, str]:
    """As each of the functions below: the features that go, and why."""
    if not isinstance(min_variance, int | float) or min_variance < 0:
        raise InputError(f"min_variance={min_variance!r}: expected a number that is non-negative")
    chosen, rows = _reference(table, features, samples)
    if (infinite := np.isinf(np.fmax.reduce(np.abs(rows), axis=0))).any():
        bad = [chosen[i] for i in np.flatnonzero(infinite)]
        raise InputError(f"infinite values in {len(bad)} feature(s): {', '.join(bad[:5])}; drop or replace them first")
    variance = arrays.mean_variance(rows, ddof=0)[1] if len(rows) > 1 else np.zeros(len(chosen))
    low = ~(variance > min_variance)
    if low.all():
        raise InputError(f"No feature in X meets the variance threshold {min_variance:.5f}: none of {len(chosen)}")
    return {chosen[i]: f"variance {variance[i]:.3g}, at most {min_variance:g}" for i in np.flatnonzero(low)}


def frequency_threshold(
    population_df: pd.DataFrame,
    features: Features = "infer",
    samples: str = "all",
    freq_cut: float = 0.05,
    unique_cut: float = 0.01,
) -> list[str]:
    """The features that hardly vary: few values, or one value nearly always.

    Parameters
    ----------
    freq_cut : float, 0 to 1
        A feature goes whose second most frequent value is less than this part as frequent as its most frequent one.
    unique_cut : float, 0 to 1
        A feature goes whose values are less than this part of the rows different.

    Raises
    ------
    InputError
        A cut outside 0 to 1.
    """
    return list(_few_values(population_df, features, samples, freq_cut, unique_cut))


def _few_values(
    table: pd.DataFrame, features: Features, samples: str, freq_cut: float, unique_cut: float
) -> dict[str, str]:
    for name, cut in (("freq_cut", freq_cut), ("unique_cut", unique_cut)):
        _require_part(name, cut)
    chosen, rows = _reference(table, features, samples)
    n = len(rows)
    out = {}
    for name, column in zip(chosen, np.asarray(rows).T, strict=True):
        lengths = _run_lengths(column)
        if (second := _second_to_first(lengths)) < freq_cut:
            out[name] = f"its second value is {second:.3g} times as frequent as its first, under {freq_cut:g}"
        elif len(lengths) / n < unique_cut:
            out[name] = f"{len(lengths)} different values in {n} rows, under {unique_cut:g} of them"
    return out


def calculate_frequency(feature_column: pd.Series) -> float:
    """How often the second most frequent value of a column stands in it, in parts of the most frequent one."""
    counts = feature_column.value_counts().to_numpy()
    return _second_to_first(counts)


def correlation_threshold(
    population_df: pd.DataFrame,
    features: Features = "infer",
    samples: str = "all",
    threshold: float = 0.9,
    method: str = "pearson",
    *,
    compat: str | None = None,
) -> list[str]:
    """Of each two features that correlate by more than `threshold`, the one that correlates more with all others.

    Correlation counts by its size, and of two features that correlate equally with the others the one later in the
    alphabet goes, so that the order of columns does not matter.

    Parameters
    ----------
    threshold : float, 0 to 1
    method : "pearson", "spearman" or "kendall"
        Missing values leave a row out of those pairs they are part of.
    compat : "pycytominer-1.7.1", optional
        Only positive correlations count, and ties go by rounding errors and the order of columns.

    Returns
    -------
    list of str
        In the order of the columns.

    Raises
    ------
    InputError
        A threshold outside 0 to 1, another method.
    """
    return list(_correlated(population_df, features, samples, threshold, method, compat, 3))


def _correlated(
    table: pd.DataFrame, features: Features, samples: str, threshold: float, method: str, compat: str | None, level: int
) -> dict[str, str]:
    peer, known = as_peer(compat), check_correlation_method(method)
    _require_part("threshold", threshold)
    chosen, rows = _reference(table, features, samples)
    if peer:
        gone = _as_pycytominer_drops(rows, threshold, known)
        return {chosen[i]: f"r over {threshold:g} with another feature" for i in np.flatnonzero(gone)}
    pairs = correlated_pairs(rows, threshold, known)
    gone = drop_of_each_pair(pairs, np.array(chosen))
    if (pairs.r < 0).any():
        positive = pairs.r > 0
        kept = drop_of_each_pair(
            pairs._replace(first=pairs.first[positive], second=pairs.second[positive], r=pairs.r[positive]),
            np.array(chosen),
        )
        if more := [chosen[i] for i in np.flatnonzero(gone & ~kept)]:
            warnings.warn(
                f"correlation_threshold: {len(more)} feature(s) go for a correlation under -{threshold:g} "
                f"({', '.join(more[:3])}); pycytominer 1.7.1 keeps them",
                ProfileWarning,
                stacklevel=level,
            )
    closest: dict[int, tuple[float, int]] = {}
    order = np.argsort(np.abs(pairs.r), kind="stable")  # the strongest of each comes last, and stays
    for one, other, r in zip(pairs.first[order].tolist(), pairs.second[order].tolist(), pairs.r[order], strict=True):
        closest[one], closest[other] = (r, other), (r, one)
    return {
        chosen[i]: f"r = {closest[i][0]:.3g} with {chosen[closest[i][1]]}, over {threshold:g}"
        for i in np.flatnonzero(gone).tolist()
    }


def determine_high_cor_pair(correlation_row: pd.Series, sorted_correlation_pairs: pd.Index) -> str:
    """Of the features pair_a and pair_b of a row, the one that stands later among those sorted by their correlation."""
    first, second = str(correlation_row["pair_a"]), str(correlation_row["pair_b"])
    place = sorted_correlation_pairs.get_indexer_for(pd.Index([first, second]))
    return first if place[0] > place[1] else second


def get_pairwise_correlation(population_df: pd.DataFrame, method: str = "pearson") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Correlation of all columns: as a matrix, and below its diagonal as rows of pair_a, pair_b, correlation.

    Raises
    ------
    InputError
        Another method than pearson, spearman, kendall, or a column that is no number or stands twice.
    """
    known = check_correlation_method(method)
    require_names(population_df)
    names = list(population_df.columns)
    r = _correlations(values(population_df, names), known)
    first, second = np.nonzero(np.tril(np.ones_like(r, dtype=bool), k=-1) & ~np.isnan(r))
    pairs = {
        "pair_a": population_df.columns[first],
        "pair_b": population_df.columns[second],
        "correlation": r[first, second],
    }
    return pd.DataFrame(r, index=names, columns=names), pd.DataFrame(pairs)


def get_na_columns(
    population_df: pd.DataFrame, features: Features = "infer", samples: str = "all", cutoff: float = 0.05
) -> list[str]:
    """The features of which more than `cutoff` (0 to 1) of the rows are missing.

    Raises
    ------
    InputError
        A cutoff outside 0 to 1.
    """
    return list(_incomplete(population_df, features, samples, cutoff))


def _incomplete(table: pd.DataFrame, features: Features, samples: str, cutoff: float) -> dict[str, str]:
    _require_part("cutoff", cutoff)
    chosen, rows = _reference(table, features, samples)
    missing = {chosen[i]: np.isnan(rows[:, i]).sum() / len(rows) for i in np.flatnonzero(arrays.has_holes(rows))}
    return {
        name: f"{part:.3g} of its values are missing, over {cutoff:g}"
        for name, part in missing.items()
        if part > cutoff
    }


def drop_outlier_features(
    population_df: pd.DataFrame, features: Features = "infer", samples: str = "all", outlier_cutoff: float = 500
) -> list[str]:
    """The features with a value over `outlier_cutoff` or under -`outlier_cutoff`."""
    return list(_extreme(population_df, features, samples, outlier_cutoff))


def _extreme(table: pd.DataFrame, features: Features, samples: str, cutoff: float) -> dict[str, str]:
    chosen, rows = _reference(table, features, samples)
    size = np.abs(np.stack([np.fmax.reduce(rows, axis=0), np.fmin.reduce(rows, axis=0)])).max(axis=0)
    return {chosen[i]: f"reaches {size[i]:.4g}, over {cutoff:g}" for i in np.flatnonzero(size > cutoff)}


def noise_removal(
    population_df: pd.DataFrame,
    noise_removal_perturb_groups: str | Sequence[Any],
    features: Features = "infer",
    samples: str = "all",
    noise_removal_stdev_cutoff: float = 0.8,
    *,
    compat: str | None = None,
) -> list[str]:
    """The features whose sd (divided by n) within a perturbation is over a cutoff in the mean of all perturbations.

    Parameters
    ----------
    noise_removal_perturb_groups : column name, or a list, one a row
        Which rows are replicates; a row without one is left out. A list may be as long as the table or as its rows
        that `samples` picks.
    compat : "pycytominer-1.7.1", optional
        A list is put beside the rows by their index, not in order; where that is not 0, 1, ... it finds nothing.

    Raises
    ------
    InputError
        No such column, or a list of another length.
    """
    return list(
        _noisy(
            population_df, noise_removal_perturb_groups, features, samples, noise_removal_stdev_cutoff, compat, level=3
        )
    )


def _noisy(
    table: pd.DataFrame,
    noise_removal_perturb_groups: str | Sequence[Any],
    features: Features,
    samples: str,
    cutoff: float,
    compat: str | None,
    level: int,
) -> dict[str, str]:
    peer = as_peer(compat)
    which = reference_rows(table, samples)
    chosen, rows = _reference(table, features, samples)
    if isinstance(noise_removal_perturb_groups, str):
        if noise_removal_perturb_groups not in table:
            raise InputError(f"{noise_removal_perturb_groups} not found. Are you sure it is a metadata column?")
        groups = table.loc[which, noise_removal_perturb_groups].reset_index(drop=True)
    elif isinstance(noise_removal_perturb_groups, list):
        groups = pd.Series(noise_removal_perturb_groups)
        if len(groups) == len(which) != len(rows) and not peer:
            groups = groups[which].reset_index(drop=True)
        if len(groups) != len(rows):
            raise InputError(
                f"noise_removal_perturb_groups: the length of input list, {len(groups)}, is not equivalent to your "
                f"data, {len(rows)} rows"
            )
        index = table.index[which]
        if not index.equals(pd.RangeIndex(len(rows))):
            if peer:
                groups = groups.reindex(index).reset_index(drop=True)
            else:
                warnings.warn(
                    "noise_removal: the list is taken in the order of the rows; pycytominer 1.7.1 goes by an index "
                    "that is not 0, 1, ... here, and so removes other features or none",
                    ProfileWarning,
                    stacklevel=level,
                )
    else:
        raise TypeError("noise_removal_perturb_groups must be a list, one a row, or the name of a column")
    codes, _ = pd.factorize(groups)
    known = codes >= 0
    spread = pd.DataFrame(rows[known]).groupby(codes[known]).std(ddof=0).mean().to_numpy()
    return {
        chosen[i]: f"sd {spread[i]:.3g} within perturbations, over {cutoff:g}" for i in np.flatnonzero(spread > cutoff)
    }


def count_na_features(population_df: pd.DataFrame, features: Sequence[str]) -> pd.DataFrame:
    """How many values of each feature are missing: column num_na, on the names."""
    return pd.DataFrame(population_df[list(features)].isna().sum(), columns=["num_na"])


def _reference(table: pd.DataFrame, features: Features, samples: str) -> tuple[list[str], Floats]:
    which = reference_rows(table, samples)
    chosen = profile_features(table, features)
    rows = values(table, chosen)
    return chosen, rows if which.all() else rows[which]


def _require_part(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"{name}={value} variable must be between (0 and 1)")


def _run_lengths(column: Floats) -> arrays.Codes:
    """How often each value stands in a column, missing ones left out."""
    ordered = np.sort(column)  # missing values come last
    ordered = ordered[: len(ordered) - int(np.isnan(ordered).sum())]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else np.zeros(0, int)
    return np.diff(np.append(starts, len(ordered)))


def _second_to_first(counts: Any) -> float:
    if len(counts) < 2:
        return 0.0
    second, first = np.partition(counts, -2)[-2:]
    return float(second / first)


def _correlations(rows: Floats, method: Any) -> arrays.Doubles:
    """All correlations in float64; NaN where there is none."""
    if len(rows) < 2:
        return np.full((rows.shape[1], rows.shape[1]), np.nan)
    if not np.isfinite(rows).all() or method == "kendall":
        found: arrays.Doubles = pd.DataFrame(np.where(np.isfinite(rows), rows, np.nan)).corr(method=method).to_numpy()
        return found
    with np.errstate(divide="ignore", invalid="ignore"):  # a feature without spread has no correlation
        return np.atleast_2d(np.corrcoef(ranks(rows.T) if method == "spearman" else rows.T))


def _as_pycytominer_drops(rows: Floats, threshold: float, method: Any) -> npt.NDArray[np.bool_]:
    r = _correlations(rows, method)
    order = pd.DataFrame(np.abs(r)).sum().sort_values().index.to_numpy()
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    with np.errstate(invalid="ignore"):
        first, second = np.nonzero(np.tril(r > threshold, k=-1))
    gone = np.zeros(len(place), dtype=bool)
    gone[np.where(place[first] > place[second], first, second)] = True
    return gone
