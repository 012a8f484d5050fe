"""CellProfiler's table of images: fields a well, its image features and counts, beside profiles."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cytominer_tools.aggregation import aggregate
from cytominer_tools.columns import METADATA, require_columns
from cytominer_tools.errors import InputError

SITE_COUNT = "Metadata_Site_Count"


def aggregate_fields_count(image_df: pd.DataFrame, strata: Sequence[str], fields_of_view_feature: str) -> pd.DataFrame:
    """Metadata_Site_Count: how many fields of view each combination of `strata` has."""
    require_columns(image_df, [*strata, fields_of_view_feature], "image table")
    counts = image_df.groupby(list(strata), observed=True)[fields_of_view_feature].count()
    return counts.reset_index().rename(columns={fields_of_view_feature: SITE_COUNT})


def aggregate_image_count_features(
    df: pd.DataFrame,
    image_features_df: pd.DataFrame,
    image_cols: Sequence[str],
    strata: Sequence[str],
    count_prefix: str = "Count",
) -> tuple[pd.DataFrame, list[str]]:
    """`df` with the sums of the Metadata_Count columns of each group, and the columns that are done by this."""
    counts = _counts(image_features_df, count_prefix)
    sums = image_features_df[sorted({*strata, *counts})].groupby(list(strata), dropna=False, observed=True).sum()
    return df.merge(sums.reset_index(), on=list(strata), how="left"), sorted({*image_cols, *counts})


def aggregate_image_features(
    df: pd.DataFrame,
    image_features_df: pd.DataFrame,
    image_feature_categories: Sequence[str],
    image_cols: Sequence[str],
    strata: Sequence[str],
    aggregation_operation: str,
    count_prefix: str = "Count",
) -> pd.DataFrame:
    """`df` with the image features of each group: counts are added up, others are averaged as the operation says."""
    if count_prefix in image_feature_categories:
        df, done = aggregate_image_count_features(df, image_features_df, image_cols, strata)
    else:
        done = [*image_cols, *_counts(image_features_df, count_prefix)]
    if not set(image_feature_categories) - {count_prefix}:
        return df
    others = image_features_df.drop(columns=[name for name in done if name in image_features_df])
    features = sorted(set(others.columns) - set(strata))
    result = aggregate(others, list(strata), features, operation=aggregation_operation)
    return df.merge(result, on=list(strata), how="left")


def check_fields_of_view_format(fields_of_view: str | Sequence[int]) -> str | list[int]:
    """Fields of view as "all" or a list of int.

    Raises
    ------
    TypeError
        Anything else.
    """
    if isinstance(fields_of_view, str) and fields_of_view == "all":
        return fields_of_view
    if not isinstance(fields_of_view, list):
        raise TypeError(f"Variable of type list expected, however type {type(fields_of_view)} was passed.")
    try:
        return [int(field) for field in fields_of_view]
    except ValueError as error:
        raise TypeError(f"Variables of type int expected in fields_of_view: {error}") from None


def check_fields_of_view(data_fields_of_view: Sequence[int], input_fields_of_view: Sequence[int]) -> None:
    """Raise InputError that names the fields of view that the image table does not have."""
    if absent := [field for field in input_fields_of_view if field not in set(data_fields_of_view)]:
        raise InputError(
            f"fields_of_view {', '.join(map(str, absent[:5]))}: some of the input fields of view are not present in "
            "the image table"
        )


def check_image_features(image_features: Sequence[str], image_columns: Sequence[str]) -> None:
    """Raise InputError that names the categories of which the image table has no column."""
    prefixed = any(name.split("_")[0] == "Image" for name in image_columns)
    parts = [name.split("_") for name in image_columns if not prefixed or "_" in name]
    known = {part[int(prefixed)] for part in parts}
    if absent := [name for name in image_features if name not in known]:
        raise InputError(
            f"{', '.join(absent)}: some of the input image features are not present in the image table; it has "
            f"{', '.join(sorted(known)[:12])}"
        )


def extract_image_features(
    image_feature_categories: Sequence[str], image_df: pd.DataFrame, image_cols: Sequence[str], strata: Sequence[str]
) -> pd.DataFrame:
    """The columns of some categories, called Image_ (counts Metadata_), beside `image_cols` and `strata`.

    Raises
    ------
    InputError
        The table has no column of a category.
    """
    check_image_features(image_feature_categories, list(image_df.columns))
    features = image_df.loc[:, image_df.columns.str.startswith(tuple(image_feature_categories))]
    features = features.rename(columns=_image_name)
    return pd.concat([image_df[np.union1d(list(image_cols), list(strata)).tolist()], features], axis=1)


def _image_name(name: str) -> str:
    if name.startswith("Count_"):
        return f"{METADATA}{name}"
    return name if name.startswith("Image_") else f"Image_{name}"


def _counts(table: pd.DataFrame, prefix: str) -> list[str]:
    return [name for name in table.columns if name.startswith(f"{METADATA}{prefix}")]
