"""What CellProfiler calls things: compartments, their columns, and how its tables of objects are linked."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from cytominer_tools.columns import METADATA, metadata_columns
from cytominer_tools.errors import InputError, ProfileWarning

COMPARTMENTS = ("Cells", "Nuclei", "Cytoplasm")

# columns that CellProfiler writes into a table of objects and that say which object it is, not how it looks
_KNOWN_METADATA = {
    "cells": [
        "Children_Cytoplasm_Count",
        "Children_ResizeCells_Count",
        "Number_Object_Number",
        "Parent_Nuclei",
        "ImageNumber",
        "ObjectNumber",
    ],
    "nuclei": [
        "Children_Cells_Count",
        "Children_Cytoplasm_Count",
        "Children_ResizeNuclei_Count",
        "Neighbors_FirstClosestObjectNumber_2",
        "Neighbors_SecondClosestObjectNumber_2",
        "Number_Object_Number",
        "ImageNumber",
        "ObjectNumber",
    ],
    "cytoplasm": ["Number_Object_Number", "Parent_Nuclei", "Parent_Cells", "ImageNumber", "ObjectNumber"],
}

LinkingColumns = dict[str, dict[str, str]]


def cellprofiler_columns(
    table: pd.DataFrame, compartments: Sequence[str] = COMPARTMENTS, *, image_features: bool = False
) -> list[str]:
    """The columns whose name starts with a compartment, as pycytominer chooses them; none is an empty list.

    Columns that hold nested values (image crops), and Image_ columns that are not numbers, are no features.
    """
    prefixes = tuple(name.title() for name in compartments) + (("Image",) if image_features else ())
    found = []
    for name, kind in table.dtypes.items():
        if not (isinstance(name, str) and name.startswith(prefixes)):
            continue
        if name.startswith("Image_") and not pd.api.types.is_numeric_dtype(kind):
            continue
        if pd.api.types.is_object_dtype(kind) and not table[name].dropna().map(pd.api.types.is_scalar).all():
            continue
        found.append(name)
    return found


def infer_cp_features(
    population_df: pd.DataFrame,
    compartments: str | Sequence[str] = COMPARTMENTS,
    metadata: bool = False,
    image_features: bool = False,
) -> list[str]:
    """The CellProfiler feature columns of a table, or with `metadata` its ``Metadata_`` columns.

    Raises
    ------
    InputError
        There are none.
    """
    if metadata:
        found = metadata_columns(population_df)
    else:
        chosen = convert_compartment_format_to_list(compartments)
        found = cellprofiler_columns(population_df, chosen, image_features=image_features)
    if not found:
        wanted = METADATA if metadata else f"{', '.join(convert_compartment_format_to_list(compartments))}"
        raise InputError(
            f"no features or metadata found: no column starts with {wanted}; name the columns, as in features=[...]"
        )
    return found


def convert_compartment_format_to_list(compartments: str | Sequence[str]) -> list[str]:
    """The compartments as a list; one name stands for a list of one."""
    return [compartments] if isinstance(compartments, str) else list(compartments)


def label_compartment(cp_features: Sequence[str], compartment: str, metadata_cols: Sequence[str]) -> list[str]:
    """Each name with its compartment in front, or with ``Metadata_`` where it is one of `metadata_cols`.

    Raises
    ------
    InputError
        Another compartment than Cells, Cytoplasm, Nuclei, Image or Barcode.
    """
    known = ("Cells", "Cytoplasm", "Nuclei", "Image", "Barcode")
    if (compartment := compartment.title()) not in known:
        raise InputError(f"compartment={compartment!r}: provide valid compartment, one of {', '.join(known)}")
    return [f"{METADATA}{name}" if name in metadata_cols else f"{compartment}_{name}" for name in cp_features]


def get_default_compartments() -> list[str]:
    """The tables of objects that Cell Painting pipelines write."""
    return ["cells", "cytoplasm", "nuclei"]


def check_compartments(compartments: str | Sequence[str]) -> None:
    """Warn where a compartment is not one of the three of Cell Painting."""
    chosen = convert_compartment_format_to_list(compartments)
    if other := [name for name in chosen if name not in get_default_compartments()]:
        warnings.warn(f"Non-canonical compartment detected: {', '.join(other)}", ProfileWarning, stacklevel=2)


def load_known_metadata_dictionary(metadata_file: str | Path | None = None) -> dict[str, list[str]]:
    """Columns of each compartment that identify an object; from a tab-separated file of two columns if one is given.

    Raises
    ------
    InputError
        A line of the file does not hold two values.
    """
    if metadata_file is None:
        return {compartment: list(names) for compartment, names in _KNOWN_METADATA.items()}
    found: dict[str, list[str]] = {}
    for line in Path(metadata_file).read_text("utf-8-sig").splitlines()[1:]:
        if not line.strip():
            continue
        if len(pair := line.strip().split("\t")) != 2:
            raise InputError(f"{metadata_file}: expected compartment, tab, feature; got {line!r}")
        found.setdefault(pair[0].lower(), []).append(pair[1])
    return found


def get_default_linking_cols() -> LinkingColumns:
    """Which column of one table of objects names the object of another."""
    return {
        "cytoplasm": {"cells": "Cytoplasm_Parent_Cells", "nuclei": "Cytoplasm_Parent_Nuclei"},
        "cells": {"cytoplasm": "ObjectNumber"},
        "nuclei": {"cytoplasm": "ObjectNumber"},
    }


def assert_linking_cols_complete(
    linking_cols: Literal["default"] | LinkingColumns = "default",
    compartments: Literal["default"] | list[str] = "default",
) -> None:
    """Check that every compartment is linked, and each link is given in both directions.

    Raises
    ------
    InputError
        Otherwise.
    """
    links = get_default_linking_cols() if linking_cols == "default" else linking_cols
    chosen = get_default_compartments() if compartments == "default" else compartments
    if not isinstance(links, dict):
        raise InputError(f"linking_cols must be a dictionary or 'default', got {type(links).__name__}")
    if not isinstance(chosen, list):
        raise InputError(f"compartments must be a list or 'default', got {type(chosen).__name__}")
    named = {*links, *(other for others in links.values() for other in others)}
    if unknown := sorted(named - set(chosen)):
        raise InputError(f"{unknown[0]} compartment not found. Check the specified compartments")
    pairs = Counter("-".join(sorted([one, other])) for one, others in links.items() for other in others)
    if single := [pair for pair, count in pairs.items() if count != 2]:
        raise InputError(f"Missing column identifier between {single[0]}")
    if absent := sorted(set(chosen) - named):
        raise InputError(f"All compartments must be specified in the linking_cols, {', '.join(absent)} is missing")


def provide_linking_cols_feature_name_update(
    linking_cols: Literal["default"] | LinkingColumns = "default",
) -> dict[str, str]:
    """New names for the linking columns once they are used: the same with ``Metadata_`` in front."""
    links = get_default_linking_cols() if linking_cols == "default" else linking_cols
    return {name: f"{METADATA}{name}" for others in links.values() for name in others.values()}
