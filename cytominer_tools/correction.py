"""Correcting profiles for batches, well positions and cell counts, and any transformer on the features of a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.utils import get_tags

from cytominer_tools.batches import TVN, ComBat, Harmony
from cytominer_tools.columns import COUNT, PLATE, WELL, require_columns
from cytominer_tools.errors import InputError
from cytominer_tools.frames import (
    Features,
    group_labels,
    names,
    profile_features,
    reference_rows,
    require_finite,
    values,
)
from cytominer_tools.frames import with_features as joined
from cytominer_tools.loading import load_profiles
from cytominer_tools.output import options_of_suffix, output
from cytominer_tools.positions import CellCountRegression, MedianPolish, WellPosition

METHODS = ("tvn", "combat", "harmony", "well_position", "cell_count", "median_polish")


class Transformed(NamedTuple):
    """What `transform_profiles` made.

    Attributes
    ----------
    profiles : DataFrame
        The table with its features transformed.
    transformer : fitted transformer
    """

    profiles: pd.DataFrame
    transformer: Any


def transform_profiles(
    profiles: pd.DataFrame,
    transformer: Any,
    *,
    features: Features = "infer",
    samples: str = "all",
    batch: str | Sequence[str] = (),
) -> Transformed:
    """Fit `transformer` to the features of the rows that `samples` picks, and transform those of all rows.

    Parameters
    ----------
    profiles : DataFrame
        It is left alone.
    transformer : transformer of this package, not fitted
        Such as ``PCA(64)``, or ``PerBatch(Standardize())`` for a scope of its own for each batch.
    features : list of column names, or "infer"
    samples : "all", or a query such as ``Metadata_Compound == 'DMSO'``
        The wells to learn from.
    batch : column name or names
        Whose values together are the batch (or plate) of a row. Its Metadata_Well is its well.

    Returns
    -------
    Transformed
        Metadata, columns that are neither, features under the names that the transformer gives them.

    Raises
    ------
    InputError
        An absent column, a query that picks no row, missing or infinite values, or what the transformer cannot do.
    """
    chosen = profile_features(profiles, features)
    batches = names(batch)
    require_columns(profiles, batches, "profiles")
    if not chosen:
        raise InputError("there is no feature to transform; name some, or let the steps before drop fewer")
    rows, control = values(profiles, chosen), reference_rows(profiles, samples)
    if not get_tags(transformer).input_tags.allow_nan:
        require_finite(rows, chosen)
    scope = {
        "batch": group_labels(profiles, batches) if batches else None,
        "well": profiles[WELL].to_numpy() if WELL in profiles else None,
        "control": None if control.all() else control,
    }
    out = transformer.fit_transform(pd.DataFrame(rows, index=profiles.index, columns=chosen), **scope)
    columns = transformer.get_feature_names_out()
    others = profiles.drop(columns=chosen)
    made = np.array(out)  # not what a transformer may have passed through
    return Transformed(joined(others, made, [str(name) for name in columns]), transformer)


def correct(
    profiles: pd.DataFrame,
    method: str,
    *,
    features: Features = "infer",
    samples: str = "all",
    batch: str | Sequence[str] = (),
    count: str = COUNT,
    n_components: int | None = None,
    output_file: str | Path | None = None,
) -> pd.DataFrame:
    """Take out of each feature what batches, positions or cell counts put there.

    Parameters
    ----------
    profiles : DataFrame, or the path of a table
        It is left alone.
    method : "tvn", "combat", "harmony", "well_position", "cell_count" or "median_polish"
        See `TVN`, `ComBat`, `Harmony`, `WellPosition`, `CellCountRegression`, `MedianPolish`.
    features : list of column names, or "infer"
    samples : "all", or a query
        The wells to learn from; harmony always takes all.
    batch : column name or names
        Of tvn, combat and harmony; of median_polish the plate, by default Metadata_Plate.
    count : column name
        The number of cells, of cell_count.
    n_components : int, optional
        Of tvn.
    output_file : path, optional
        Where the result is written too, as its suffix says.

    Returns
    -------
    DataFrame
        The columns of `profiles`; after tvn features are PC1, PC2, ...

    Raises
    ------
    InputError
        Another method, no `batch` where one is needed, or what `transform_profiles` raises.
    """
    found = _corrected(load_profiles(profiles), method, features, samples, names(batch), count, n_components)
    if output_file is not None:
        output(found, output_file, **options_of_suffix(output_file))
    return found


def _corrected(
    profiles: pd.DataFrame,
    method: str,
    features: Features,
    samples: str,
    batches: list[str],
    count: str,
    n_components: int | None,
) -> pd.DataFrame:
    if method not in METHODS:
        raise InputError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    if method in ("tvn", "combat", "harmony") and not batches:
        raise InputError(f"{method}: name the column of the batch, such as batch={PLATE!r}")
    if method in ("well_position", "median_polish"):
        require_columns(profiles, [WELL], f"{method}: profiles")
    chosen = profile_features(profiles, features)
    if method == "cell_count":
        return _without_count(profiles, chosen, samples, count)
    transformer: Any = {
        "tvn": TVN(n_components),
        "combat": ComBat(),
        "harmony": Harmony(),
        "well_position": WellPosition(),
        "median_polish": MedianPolish(),
    }[method]
    if method == "median_polish":
        batches = batches or [PLATE]
    return transform_profiles(profiles, transformer, features=chosen, samples=samples, batch=batches).profiles


def _without_count(profiles: pd.DataFrame, chosen: list[str], samples: str, count: str) -> pd.DataFrame:
    require_columns(profiles, [count], "cell_count: profiles")
    both = [*(name for name in chosen if name != count), count]
    place = list(profiles.columns)
    found = transform_profiles(profiles, CellCountRegression(len(both) - 1), features=both, samples=samples).profiles
    found[count] = profiles[count]  # as it was, in its own type
    return found[place]
