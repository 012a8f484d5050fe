"""Features that DeepProfiler wrote, a file a site: aggregated to sites, wells or plates, or as single cells."""

import warnings
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import pandas as pd

from cytominer_tools import arrays
from cytominer_tools.aggregation import OPERATIONS, reduced
from cytominer_tools.columns import PLATE, SITE, WELL, metadata_columns, require_columns
from cytominer_tools.compat import as_peer
from cytominer_tools.errors import InputError, ProfileWarning
from cytominer_tools.files import safe_name
from cytominer_tools.frames import with_features
from cytominer_tools.normalization import normalize
from cytominer_tools.npz import SiteMetadata, load_npz_features, load_npz_locations, read_npz, site_features
from cytominer_tools.output import output
from cytominer_tools.tables import read_table, write_table
from cytominer_tools.threads import each

LEVELS = ("site", "well", "plate")
LOCATION = ("Location_Center_X", "Location_Center_Y")


class DeepProfilerData:
    """Which feature files a DeepProfiler project has, by its index.

    Parameters
    ----------
    index_file : path
        A table with Metadata_Plate, Metadata_Well and Metadata_Site, all of it read as text.
    profile_dir : path
        The folder of features; files are PLATE/WELL_SITE.npz in it, or PLATE/WELL/SITE.npz.
    filename_delimiter : str
        What stands between well and site: "_" or "/".
    file_extension : str

    Attributes
    ----------
    index_df : DataFrame
    filenames : list of PurePath
        After `build_filenames`.

    Raises
    ------
    InputError
        The index is absent or has not these columns.
    """

    filenames: list[PurePath]

    def __init__(
        self,
        index_file: str | Path,
        profile_dir: str | Path,
        filename_delimiter: str = "_",
        file_extension: str = ".npz",
    ):
        self.index_df = read_table(index_file, metadata=True).astype(str)
        require_columns(self.index_df, [PLATE, WELL, SITE], str(index_file))
        self.profile_dir = profile_dir
        self.filename_delimiter = filename_delimiter
        self.file_extension = file_extension if file_extension.startswith(".") else f".{file_extension}"

    def build_filenames(self) -> None:
        """Fill `filenames`, in the order of the index."""
        rows = self.index_df[[PLATE, WELL, SITE]].to_dict("records")
        self.filenames = [PurePath(f"{self.profile_dir}/{self.build_filename_from_index(row)}") for row in rows]

    def build_filename_from_index(self, row: Any) -> str:
        """The file of a row of the index, relative to `profile_dir`."""
        return f"{row[PLATE]}/{row[WELL]}{self.filename_delimiter}{row[SITE]}{self.file_extension}"

    def extract_filename_metadata(self, npz_file: str | PurePath, delimiter: str = "_") -> dict[str, str]:
        """Site, well and plate by the name of a file.

        Raises
        ------
        InputError
            The name does not have these parts.
        """
        path = PurePath(npz_file)
        if delimiter == "/":
            return {"site": path.stem, "well": path.parent.name, "plate": path.parent.parent.name}
        parts = path.stem.split(delimiter)
        if len(parts) < 2:
            raise InputError(f"{path}: expected a file called WELL{delimiter}SITE; set filename_delimiter")
        return {"site": parts[-1], "well": parts[-2], "plate": path.parent.name}


class AggregateDeepProfiler:
    """The median or mean of the cells of each site, well or plate of a DeepProfiler project.

    Parameters
    ----------
    deep_data : DeepProfilerData
    aggregate_operation : "median" or "mean"
    aggregate_on : "site", "well" or "plate"
    output_file : path, optional
        A folder, into which each group is written as a CSV too.
    compat : "pycytominer-1.7.1", optional
        A feature that is missing in one group is dropped for all.

    Attributes
    ----------
    file_aggregate : dict
        For each group its files and its site, well and plate; after `setup_aggregate`.
    aggregated_profiles : DataFrame
        After `aggregate_deep`.

    Raises
    ------
    InputError
        Another operation or level.
    """

    file_aggregate: dict[str, dict[str, Any]]
    aggregated_profiles: pd.DataFrame

    def __init__(
        self,
        deep_data: DeepProfilerData,
        aggregate_operation: str = "median",
        aggregate_on: str = "well",
        output_file: str | Path | None = None,
        *,
        compat: str | None = None,
    ):
        if aggregate_operation not in OPERATIONS:
            raise InputError(f"Input of aggregate_operation is incorrect, it must be {' or '.join(OPERATIONS)}")
        if aggregate_on not in LEVELS:
            raise InputError(f"Input of aggregate_on is incorrect, it must be {' or '.join(LEVELS)}")
        self.deep_data = deep_data
        self.aggregate_operation = aggregate_operation
        self.aggregate_on = aggregate_on
        self.output_file = output_file
        self.compat = compat

    def setup_aggregate(self) -> None:
        """Fill `file_aggregate`."""
        if not hasattr(self.deep_data, "filenames"):
            self.deep_data.build_filenames()
        self.file_aggregate = {}
        for path in self.deep_data.filenames:
            place = self.deep_data.extract_filename_metadata(path, self.deep_data.filename_delimiter)
            key = {
                "plate": place["plate"],
                "well": f"{place['plate']}/{place['well']}",
                "site": f"{place['plate']}/{place['well']}_{place['site']}",
            }[self.aggregate_on]
            group = self.file_aggregate.setdefault(key, {"files": []})
            group["files"].append(path)
            group["metadata"] = place

    def aggregate_deep(self) -> pd.DataFrame:
        """One row a group: what it was aggregated on and of, metadata that all its cells share, features in float64.

        A group without a file is left out, with a warning. Metadata that some group does not share is left out. A
        feature that is missing in a group is missing there, with a warning.

        Raises
        ------
        InputError
            No group has a file, a damaged file, or files of different features.
        """
        peer = as_peer(self.compat)
        if not hasattr(self, "file_aggregate"):
            self.setup_aggregate()
        position = f"Metadata_{self.aggregate_on.capitalize()}_Position"
        columns: list[str] = []
        profiles, metadata = [], []
        for key, group in self.file_aggregate.items():
            found = self._group(group["files"], columns)
            if found is None:
                _warn(f"No files for the key {key} could be found. This program will continue without it.")
                continue
            features, shared, columns = found
            profiles.append(features)
            metadata.append({"Metadata_Aggregate_On": self.aggregate_on, position: key} | shared)
            if self.output_file is not None:
                one = with_features(pd.DataFrame(metadata[-1:]), features, columns)
                write_table(one, Path(self.output_file) / f"{safe_name(key.replace('/', '_'))}.csv")
        if not profiles:
            raise InputError(f"{self.deep_data.profile_dir}: none of {len(self.file_aggregate)} groups has a file")
        rows, keys = np.concatenate(profiles), pd.DataFrame(metadata)
        holes = arrays.has_holes(rows)
        if holes.any() and peer:
            rows, columns = rows[:, ~holes], [columns[i] for i in np.flatnonzero(~holes)]
        elif holes.any():
            some = ", ".join(columns[i] for i in np.flatnonzero(holes)[:3])
            _warn(
                f"{holes.sum()} feature(s) are missing in some {self.aggregate_on} ({some}); they are kept, where "
                "pycytominer 1.7.1 drops them"
            )
        self.aggregated_profiles = with_features(keys.loc[:, keys.notna().all()], rows, columns)
        return self.aggregated_profiles

    def _group(
        self, paths: list[PurePath], columns: list[str]
    ) -> tuple[arrays.Doubles, dict[str, str], list[str]] | None:
        """The profile, the shared metadata and the feature names of the files of a group; None where there are none."""
        parts, metadata = [], []
        for path, found in zip(paths, each(_site, paths), strict=True):
            if found is None or len(found[0]) == 0:
                continue
            values, cells = found
            names = [f"{cells.prefix}_{i}" for i in range(values.shape[1])]
            if columns and names != columns:
                raise InputError(
                    f"{path}: holds {names[0]} .. {names[-1]}, other files {columns[0]} .. {columns[-1]}; "
                    "aggregate the features of one model at a time"
                )
            columns = names
            parts.append(values)
            metadata.append(cells.metadata)
        if not parts:
            return None
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        shared = {
            name: value
            for name, value in metadata[0].items()
            if all(other.get(name) == value for other in metadata[1:])
        }
        profile = reduced(rows, np.zeros(len(rows), dtype=np.int64), self.aggregate_operation)
        return profile.astype(np.float64), shared, columns


def _site(path: PurePath) -> tuple[arrays.Floats, SiteMetadata] | None:
    """The features of a file and what it says of its cells; None where there is no file."""
    try:
        return site_features(path, read_npz(Path(path), ("features", "metadata")))
    except FileNotFoundError:
        return None


class SingleCellDeepProfiler:
    """The single cells of a DeepProfiler project, with their places, as they are or normalised.

    Attributes
    ----------
    single_cells : DataFrame
        After `get_single_cells`.
    """

    single_cells: pd.DataFrame

    def __init__(self, deep_data: DeepProfilerData):
        self.deep_data = deep_data

    def get_single_cells(
        self, output: bool = False, location_x_col_index: int = 0, location_y_col_index: int = 1
    ) -> pd.DataFrame:
        """One row a cell: Location_Center_X and _Y (pixels), metadata as text, features.

        Parameters
        ----------
        output : bool
            Do not keep the table in `single_cells`.

        Raises
        ------
        InputError
            No file is there, or one is damaged.
        """
        if not hasattr(self.deep_data, "filenames"):
            self.deep_data.build_filenames()
        tables = []
        for path in self.deep_data.filenames:
            features = load_npz_features(Path(path))
            if len(features) == 0:
                _warn(f"No features could be found at {path}. This program will continue without them.")
                continue
            locations = load_npz_locations(Path(path), location_x_col_index, location_y_col_index)
            tables.append(pd.concat([locations, features], axis=1))
        if not tables:
            raise InputError(f"{self.deep_data.profile_dir}: none of {len(self.deep_data.filenames)} files is there")
        cells = pd.concat(tables, ignore_index=True)
        if not output:
            self.single_cells = cells
        return cells

    def normalize_deep_single_cells(
        self,
        location_x_col_index: int = 0,
        location_y_col_index: int = 1,
        image_features: bool = False,
        meta_features: Any = "infer",
        samples: str = "all",
        method: str = "standardize",
        output_file: str | Path | None = None,
        compression_options: Any = None,
        float_format: str | None = None,
        mad_robustize_epsilon: float = 1e-18,
        spherize_center: bool = True,
        spherize_method: Literal["PCA", "ZCA", "PCA-cor", "ZCA-cor"] = "ZCA-cor",
        spherize_epsilon: float = 1e-6,
    ) -> Any:
        """`normalize` of the single cells, their locations in front; a path with `output_file`."""
        if not hasattr(self, "single_cells"):
            self.get_single_cells(False, location_x_col_index, location_y_col_index)
        cells = self.single_cells
        known = {*metadata_columns(cells), *LOCATION}
        normalized = normalize(
            cells.drop(columns=list(LOCATION)),
            features=[name for name in cells.columns if name not in known],
            image_features=image_features,
            meta_features=meta_features,
            samples=samples,
            method=method,
            mad_robustize_epsilon=mad_robustize_epsilon,
            spherize_center=spherize_center,
            spherize_method=spherize_method,
            spherize_epsilon=spherize_epsilon,
        )
        table = pd.concat([cells[list(LOCATION)], normalized], axis=1)
        if output_file is None:
            return table
        return output(table, output_file, float_format=float_format, compression_options=compression_options)


def _warn(text: str) -> None:
    warnings.warn(text, ProfileWarning, stacklevel=3)
