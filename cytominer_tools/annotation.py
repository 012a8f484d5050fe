"""What was done to each well: joining plate maps and other metadata to profiles."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cytominer_tools.cellprofiler import cellprofiler_columns
from cytominer_tools.columns import METADATA, metadata_columns, require_columns
from cytominer_tools.compat import as_peer
from cytominer_tools.errors import InputError, ProfileWarning
from cytominer_tools.frames import names, require_names
from cytominer_tools.loading import load_platemap, load_profiles
from cytominer_tools.output import write_to_file_if_user_specifies_output_details

_BROAD = re.compile(r"BRD[-N][A-Z0-9]+")
_CLEAN = {f"Image_Metadata_{name}": f"{METADATA}{name}" for name in ("Plate", "Well", "Site")}


@write_to_file_if_user_specifies_output_details
def annotate(
    profiles: pd.DataFrame,
    platemap: pd.DataFrame,
    join_on: str | Sequence[Any] = ("Metadata_well_position", "Metadata_Well"),
    output_file: str | Path | None = None,
    output_type: str | None = "csv",
    add_metadata_id_to_platemap: bool = True,
    format_broad_cmap: bool = False,
    clean_cellprofiler: bool = True,
    external_metadata: pd.DataFrame | None = None,
    external_join_on: str | Sequence[str] | None = None,
    compression_options: str | dict[str, Any] | None = None,
    float_format: str | None = None,
    cmap_args: dict[str, str] | None = None,
    platemap_sep: str | None = None,
    *,
    compat: str | None = None,
) -> pd.DataFrame:
    """Put the columns of a plate map, and of further metadata, beside the profiles of its wells.

    Rows come in the order of the plate map; profiles that it does not name come last, with missing metadata, and a
    warning says which. A well that it names twice is there twice, with a warning. A missing key names a missing key, as
    in a merge of pandas, of external metadata too.

    Parameters
    ----------
    profiles, platemap : DataFrame, or the path of a table
    join_on : two column names, or two lists of column names
        That of the plate map (as it is called after `add_metadata_id_to_platemap`), then that of the profiles.
    output_file, output_type, compression_options, float_format
        As in `output`; with `output_file` the result is written and its path returned.
    add_metadata_id_to_platemap : bool
        Put ``Metadata_`` in front of the plate map's names.
    clean_cellprofiler : bool
        Call Image_Metadata_Plate, _Well and _Site Metadata_Plate, _Well and _Site.
    external_metadata : DataFrame or path, optional
        Joined by `external_join_on`, every row kept; a name that is taken gets the ending _external.
    format_broad_cmap, cmap_args
        Add the columns of `annotate_cmap`; deprecated by pycytominer too.
    platemap_sep : str, optional
        What separates the values of a plate map file.
    compat : "pycytominer-1.7.1", optional
        Profiles that the plate map does not name are dropped, and of equal rows one is kept after external metadata.

    Raises
    ------
    InputError
        An absent column, one of `external_metadata` and `external_join_on` alone, or no well in common.
    """
    peer = as_peer(compat)
    profiles = load_profiles(profiles)
    require_names(profiles)
    platemap = load_platemap(platemap, add_metadata_id_to_platemap, platemap_sep)
    require_names(platemap)
    if isinstance(join_on, str) or len(join_on) != 2:
        raise InputError(f"join_on={join_on!r}: expected two, the column of the plate map and that of the profiles")
    if (external_metadata is None) != (external_join_on is None):
        raise InputError("Both `external_metadata` and `external_join_on` must be provided together.")
    left, right = names(join_on[0]), names(join_on[1])
    require_columns(platemap, left, "platemap")
    require_columns(profiles, right, "profiles")
    _require_comparable(platemap, left, profiles, right)
    annotated = platemap.merge(profiles, left_on=left, right_on=right, how="inner", suffixes=("_platemap", None))
    if not peer:
        annotated = _with_unnamed(annotated, platemap, left, profiles, right)
    if left != right:
        annotated = annotated.drop(columns=[name for name in left if name not in right])
    if format_broad_cmap:
        options = cmap_args or {}
        annotated = annotate_cmap(
            annotated, right[0], options.get("cell_id", "unknown"), options.get("perturbation_mode", "none")
        )
    if external_metadata is not None and external_join_on is not None:
        annotated = _with_external(annotated, external_metadata, names(external_join_on), peer)
    if clean_cellprofiler:
        annotated = cp_clean(annotated)
    metadata = metadata_columns(annotated)
    known = set(metadata)
    return annotated[[*metadata, *(name for name in annotated.columns if name not in known)]]


def cp_clean(profiles: pd.DataFrame) -> pd.DataFrame:
    """The table with Image_Metadata_Plate, _Well and _Site called Metadata_Plate, _Well and _Site."""
    return profiles.rename(columns=_CLEAN)


def prepare_external_metadata_for_annotate(external_metadata: pd.DataFrame) -> pd.DataFrame:
    """A copy with ``Metadata_`` in front of every name but those of features and of Image_Metadata_ columns."""
    kept = {*cellprofiler_columns(external_metadata, image_features=True), *metadata_columns(external_metadata)}
    kept |= {name for name in external_metadata.columns if str(name).startswith("Image_Metadata_")}
    return external_metadata.rename(
        columns={name: f"{METADATA}{name}" for name in external_metadata.columns if name not in kept}
    )


def annotate_cmap(
    annotated: pd.DataFrame, annotate_join_on: str, cell_id: str = "unknown", perturbation_mode: str = "none"
) -> pd.DataFrame:
    """Add the columns by which the Connectivity Map calls things; deprecated by pycytominer too.

    Parameters
    ----------
    annotated : DataFrame with Metadata_broad_sample
    annotate_join_on : str
        The column of wells.
    cell_id : str
        The cell line, where Metadata_cell_id does not say it.
    perturbation_mode : "none", "chemical" or "genetic"

    Raises
    ------
    InputError
        Another mode, or no Metadata_broad_sample.
    """
    warnings.warn("annotate_cmap is deprecated by pycytominer", DeprecationWarning, stacklevel=2)
    if perturbation_mode not in (modes := ("none", "chemical", "genetic")):
        raise InputError(f"perturbation mode must be one of {', '.join(modes)}, got {perturbation_mode!r}")
    require_columns(annotated, ["Metadata_broad_sample", annotate_join_on], "annotate_cmap")
    table = annotated.copy()
    sample = table["Metadata_broad_sample"]
    found = [_BROAD.search(name) if isinstance(name, str) else None for name in sample]
    table["Metadata_pert_id"] = [match[0] if match else np.nan for match in found]
    table["Metadata_pert_mfc_id"] = sample
    table["Metadata_pert_well"] = table[annotate_join_on]
    table["Metadata_pert_id_vendor"] = ""
    if "Metadata_pert_iname" in table:
        table["Metadata_pert_mfc_desc"] = table["Metadata_pert_iname"]
        table["Metadata_pert_name"] = table["Metadata_pert_iname"]
    if "Metadata_cell_id" not in table:
        table["Metadata_cell_id"] = cell_id
    if perturbation_mode == "chemical":
        control = sample.isna() | (sample == "DMSO")
        table["Metadata_broad_sample_type"] = np.where(control, "control", "trt")
        table["Metadata_broad_sample"] = sample.mask(control, "DMSO")
        table["Metadata_broad_sample_type"] = table["Metadata_broad_sample_type"].mask(sample == "empty", "empty")
        for dose in ("Metadata_mmoles_per_liter", "Metadata_mg_per_ml"):
            if dose in table:
                table[dose] = table[dose].mask(control, 0)
        if "Metadata_solvent" in table:
            table["Metadata_pert_vehicle"] = table["Metadata_solvent"]
    if perturbation_mode == "genetic" and "Metadata_pert_name" in table:
        table["Metadata_broad_sample_type"] = np.where(table["Metadata_pert_name"] == "EMPTY", "control", "trt")
    if "Metadata_broad_sample_type" in table:
        table["Metadata_pert_type"] = table["Metadata_broad_sample_type"]
    else:
        table["Metadata_pert_type"] = table["Metadata_broad_sample_type"] = ""
    return table


def _with_unnamed(
    annotated: pd.DataFrame, platemap: pd.DataFrame, left: list[str], profiles: pd.DataFrame, right: list[str]
) -> pd.DataFrame:
    """Warn of wells named twice, and add those that the plate map does not name."""
    twice = platemap.duplicated(left, keep=False) & _keys(platemap, left).isin(_keys(profiles, right))
    if twice.any():
        _warn(
            f"annotate: the plate map names {_some(platemap.loc[twice, left])} more than once; "
            "each of their profiles is there as often"
        )
    unnamed = ~_keys(profiles, right).isin(_keys(platemap, left))
    if not unnamed.any():
        return annotated
    if unnamed.all():
        raise InputError(
            f"annotate: no profile is on the plate map: {' + '.join(right)} is {_some(profiles[right])} in the "
            f"profiles, {' + '.join(left)} is {_some(platemap[left])} in the plate map; mend join_on or how "
            "wells are written"
        )
    _warn(
        f"annotate: the plate map does not name {_some(profiles.loc[unnamed, right])} ({unnamed.sum()} of "
        f"{len(profiles)} profiles); they are kept without its metadata, where pycytominer 1.7.1 drops them"
    )
    return pd.concat([annotated, profiles[unnamed]], ignore_index=True)


def _with_external(annotated: pd.DataFrame, external: Any, on: list[str], peer: bool) -> pd.DataFrame:
    table = prepare_external_metadata_for_annotate(load_profiles(external))
    require_columns(table, on, "external_metadata")
    require_columns(annotated, on, "external_join_on: the annotated profiles")
    if peer:
        joined = annotated.merge(table, on=on, how="left", suffixes=(None, "_external"))
        return joined.reset_index(drop=True).drop_duplicates()
    table = table.drop_duplicates()
    again = table.duplicated(on, keep=False) & _keys(table, on).isin(_keys(annotated, on))
    if again.any():
        _warn(
            f"annotate: the external metadata names {_some(table.loc[again, on])} more than once; "
            "each of their profiles is there as often"
        )
    return annotated.merge(table, on=on, how="left", suffixes=(None, "_external")).reset_index(drop=True)


def _require_comparable(platemap: pd.DataFrame, left: list[str], profiles: pd.DataFrame, right: list[str]) -> None:
    if len(left) != len(right):
        raise InputError(
            f"join_on: {len(left)} column(s) of the plate map and {len(right)} of the profiles; give as many of both"
        )
    for one, other in zip(left, right, strict=True):
        text = [not pd.api.types.is_numeric_dtype(column.dtype) for column in (platemap[one], profiles[other])]
        if text[0] != text[1]:
            raise InputError(
                f"join_on: {one} is {'text' if text[0] else 'a number'} in the plate map and {other} "
                f"{'text' if text[1] else 'a number'} in the profiles; make both text"
            )


def _keys(table: pd.DataFrame, columns: list[str]) -> pd.Series:
    if len(columns) == 1:
        return table[columns[0]]
    return pd.Series(list(table[columns].itertuples(index=False, name=None)), index=table.index)


def _some(keys: pd.DataFrame) -> str:
    found = [" ".join(map(str, row)) for row in keys.drop_duplicates().head(4).itertuples(index=False, name=None)]
    return ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")


def _warn(text: str) -> None:
    warnings.warn(text, ProfileWarning, stacklevel=5)
