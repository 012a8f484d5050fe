"""Feature sets side by side: such as CellProfiler's and a network's, of the same wells."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cytominer_tools.arrays import mean_variance
from cytominer_tools.columns import PLATE, WELL, metadata_columns, require_columns
from cytominer_tools.errors import InputError, ProfileWarning
from cytominer_tools.frames import Features, names, profile_features, reference_rows, values, with_features
from cytominer_tools.loading import load_profiles
from cytominer_tools.output import options_of_suffix, output


def concatenate(
    tables: Sequence[pd.DataFrame | str | Path],
    *,
    on: str | Sequence[str] = (PLATE, WELL),
    samples: str = "all",
    scale: bool = True,
    features: Features = "infer",
    output_file: str | Path | None = None,
) -> pd.DataFrame:
    """Join the features of several tables of profiles by their key, each set scaled to the same size.

    Normalise or spherize each table first: within a set nothing is scaled, so that of raw features the largest rule.

    Parameters
    ----------
    tables : list of DataFrames or paths
        Two or more, whose feature names differ.
    on : column name or names
        The key: once in each table.
    samples : "all", or a query on the first table
        The rows whose spread is the size of a set.
    scale : bool
        Divide each set by the root of its summed variances over those rows, so that all sets weigh the same in a
        distance whatever their units and numbers of features. Zero stays zero.
    features : list of column names, or "infer"
        Of the first table; those of the others are inferred.
    output_file : path, optional
        Where the result is written too, as its suffix says.

    Returns
    -------
    DataFrame
        The rows of the first table that all others have, in its order: its metadata, metadata that only others have,
        and the features of each. A row that is not in all tables is left out with a `ProfileWarning`.

    Raises
    ------
    InputError
        One table alone, an absent or repeated key, a feature name in two tables, no row in common, a set without
        spread, or with infinite values where it is to be scaled.
    """
    read = [load_profiles(table) for table in tables]
    if len(read) < 2:
        raise InputError(f"{len(read)} table(s) to concatenate: expected two or more")
    key = names(on)
    for number, table in enumerate(read, 1):
        require_columns(table, key, f"table {number}")
        if (twice := table.duplicated(key)).any():
            row = ", ".join(map(str, table.loc[twice, key].iloc[0]))
            raise InputError(
                f"table {number}: the key {row} stands {(twice.sum())} time(s) too often; aggregate it first"
            )
    sets = [profile_features(read[0], features), *map(profile_features, read[1:])]
    seen: dict[str, int] = {}
    for number, own in enumerate(sets, 1):
        if both := [name for name in own if seen.setdefault(name, number) != number]:
            raise InputError(
                f"{both[0]} is a feature of tables {seen[both[0]]} and {number}; rename the columns of one"
            )
    first, *others = read
    keys = [pd.MultiIndex.from_frame(table[key].astype(str)) for table in read]
    common = np.logical_and.reduce([keys[0].isin(other) for other in keys[1:]])
    _say_what_is_lost(keys, common)
    metadata = first.loc[common, metadata_columns(first)]
    parts = [values(first, sets[0])[common]]
    for table, other, own in zip(others, keys[1:], sets[1:], strict=True):
        rows = other.get_indexer(keys[0][common])
        for name in metadata_columns(table):
            if name not in metadata:
                metadata = metadata.assign(**{name: table[name].to_numpy()[rows]})
        parts.append(values(table, own)[rows])
    if scale:
        reference = reference_rows(metadata, samples)
        parts = [part / _size(part[reference], number) for number, part in enumerate(parts, 1)]
    joined = with_features(metadata, np.concatenate(parts, axis=1), [name for own in sets for name in own])
    if output_file is not None:
        output(joined, output_file, **options_of_suffix(output_file))
    return joined


def _size(reference: Any, number: int) -> Any:
    if np.isinf(reference).any():
        raise InputError(f"table {number}: infinite values among its features, which say no size; drop or replace them")
    variance = mean_variance(reference, ddof=0)[1] if len(reference) > 1 else np.zeros(1)
    size = np.sqrt(np.nansum(variance))
    if not size > 0:
        raise InputError(
            f"table {number}: its features do not vary among {len(reference)} rows, so they cannot be scaled"
        )
    return reference.dtype.type(size)


def _say_what_is_lost(keys: list[pd.MultiIndex], common: Any) -> None:
    if not common.any():
        a, b = (", ".join(map(str, key[0])) if len(key) else "nothing" for key in keys[:2])
        raise InputError(f"the tables have no row in common: the first holds {a}, the second {b}; mend the keys")
    lost = [len(key) - int(common.sum()) for key in keys]
    if any(lost):
        counts = ", ".join(f"{n} of table {number}" for number, n in enumerate(lost, 1) if n)
        warnings.warn(
            f"concatenate: rows that are not in all tables are left out, {counts}", ProfileWarning, stacklevel=3
        )
