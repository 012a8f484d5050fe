"""CellProfiler's single cells in SQLite, as cytominer-database writes it: merged, or aggregated to profiles."""

import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cytominer_tools.aggregation import OBJECT_COUNT, aggregate, check_aggregate_operation
from cytominer_tools.annotation import annotate
from cytominer_tools.cellprofiler import (
    LinkingColumns,
    assert_linking_cols_complete,
    check_compartments,
    get_default_compartments,
    get_default_linking_cols,
    infer_cp_features,
    provide_linking_cols_feature_name_update,
)
from cytominer_tools.columns import PLATE, WELL, metadata_columns, require_columns
from cytominer_tools.errors import InputError, NoFileError, ProfileWarning
from cytominer_tools.image_table import (
    aggregate_fields_count,
    aggregate_image_features,
    check_fields_of_view,
    check_fields_of_view_format,
    extract_image_features,
)
from cytominer_tools.normalization import normalize
from cytominer_tools.output import output

_PREFIX = "sqlite:///"


class SingleCells:
    """The tables of one SQLite file of single cells.

    Parameters
    ----------
    sql_file : str
        A path, or ``sqlite:///`` and a path. It is opened for reading only.
    strata : list of column names of the image table
        What a profile is of.
    aggregation_operation : "median" or "mean"
    output_file : path, optional
        Where `aggregate_profiles` writes.
    compartments : list of table names
    compartment_linking_cols : dict
        Which column of one table names the object of another; see `get_default_linking_cols`.
    merge_cols : list of column names
        Which image an object is of.
    image_cols : list of column names
        What is taken of the image table, beside `strata`.
    add_image_features, image_feature_categories
        Take the image features of these categories too.
    features : list of column names, or "infer"
    load_image_data : bool
        Read the image table at once.
    image_table_name : str
    subsample_frac, subsample_n, subsampling_random_state
        Take this part of the cells of each group, or this number (drawn with replacement).
    fields_of_view : list of int, or "all"
    fields_of_view_feature, object_feature : column names
    default_datatype_float : type
        Of the features of a merged table.

    Raises
    ------
    InputError
        There is no such file, or compartments and links do not fit together.
    """

    image_df: pd.DataFrame
    image_features_df: pd.DataFrame

    def __init__(
        self,
        sql_file: str,
        strata: Sequence[str] = (PLATE, WELL),
        aggregation_operation: str = "median",
        output_file: str | Path | None = None,
        compartments: Sequence[str] | None = None,
        compartment_linking_cols: LinkingColumns | None = None,
        merge_cols: Sequence[str] = ("TableNumber", "ImageNumber"),
        image_cols: Sequence[str] = ("TableNumber", "ImageNumber", "Metadata_Site"),
        add_image_features: bool = False,
        image_feature_categories: Sequence[str] | None = None,
        features: str | Sequence[str] = "infer",
        load_image_data: bool = True,
        image_table_name: str = "image",
        subsample_frac: float = 1.0,
        subsample_n: str | int = "all",
        subsampling_random_state: int | None = None,
        fields_of_view: str | list[int] = "all",
        fields_of_view_feature: str = "Metadata_Site",
        object_feature: str = "Metadata_ObjectNumber",
        default_datatype_float: Any = np.float64,
    ):
        self.compartments = get_default_compartments() if compartments is None else list(compartments)
        check_compartments(self.compartments)
        links = get_default_linking_cols() if compartment_linking_cols is None else compartment_linking_cols
        assert_linking_cols_complete(links, self.compartments)
        if not 0 < subsample_frac <= 1:
            raise InputError(f"subsample_frac={subsample_frac} must be between 0 and 1")
        if add_image_features and image_feature_categories is None:
            raise InputError("If add_image_features is True, image_feature_categories must be specified")
        self.compartment_linking_cols = links
        self.linking_col_rename = provide_linking_cols_feature_name_update(links)
        self.sql_file = sql_file
        self.strata = list(strata)
        self.aggregation_operation = check_aggregate_operation(aggregation_operation)
        self.output_file = output_file
        self.merge_cols = list(merge_cols)
        self.image_cols = list(image_cols)
        self.add_image_features = add_image_features
        self.image_feature_categories = list(image_feature_categories or [])
        self.features = features
        self.load_image_data = load_image_data
        self.image_table_name = image_table_name
        self.subsample_frac = subsample_frac
        self.subsample_n = subsample_n
        self.subsampling_random_state = subsampling_random_state
        self.fields_of_view = check_fields_of_view_format(fields_of_view)
        self.fields_of_view_feature = fields_of_view_feature
        self.object_feature = object_feature
        self.default_datatype_float = default_datatype_float
        self.subset_data_df: pd.DataFrame | None = None
        self.is_aggregated = self.is_subset_computed = self.image_data_loaded = False
        if subsample_n != "all":
            self.set_subsample_n(subsample_n)
        path = Path(str(sql_file).removeprefix(_PREFIX))
        if not path.is_file():
            raise NoFileError(f"{path}: no such file")
        self.conn = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        if load_image_data:
            self.load_image()

    def close(self) -> None:
        """Let go of the file."""
        self.conn.close()

    def set_output_file(self, output_file: str | Path) -> None:
        """Where `aggregate_profiles` writes."""
        self.output_file = output_file

    def set_subsample_frac(self, subsample_frac: float) -> None:
        """The part of the cells of each group to take."""
        self.subsample_frac = subsample_frac
        self._check_subsampling()

    def set_subsample_n(self, subsample_n: str | int) -> None:
        """The number of cells of each group to take."""
        try:
            self.subsample_n = int(subsample_n)
        except ValueError:
            raise InputError(f"subsample_n={subsample_n!r} must be an integer or coercable") from None
        self._check_subsampling()

    def set_subsample_random_state(self, random_state: int) -> None:
        """The seed of subsampling."""
        self.subsampling_random_state = random_state

    def _check_subsampling(self) -> None:
        if self.subsample_frac != 1 and self.subsample_n != "all":
            raise InputError("Do not set both subsample_frac and subsample_n")

    # --- tables

    def load_image(self, image_table_name: str | None = None) -> None:
        """Read the image table: `image_df`, and `image_features_df` where image features are asked for.

        Raises
        ------
        InputError
            It has not these columns, fields of view or features.
        """
        table = self._read(image_table_name or self.image_table_name)
        require_columns(table, [*self.image_cols, *self.strata], f"{self.sql_file}, {self.image_table_name}")
        chosen = np.ones(len(table), dtype=bool)
        if not isinstance(self.fields_of_view, str):
            check_fields_of_view(table[self.fields_of_view_feature].tolist(), self.fields_of_view)
            chosen = table[self.fields_of_view_feature].isin(self.fields_of_view).to_numpy()
        if self.add_image_features:
            found = extract_image_features(self.image_feature_categories, table, self.image_cols, self.strata)
            self.image_features_df = found[chosen]
        self.image_df = table.loc[chosen, np.union1d(self.image_cols, self.strata).tolist()]
        self.image_data_loaded = True

    def count_sql_table_rows(self, table: str) -> int:
        """The number of rows of a table."""
        return int(self.conn.execute(f"select count(*) from {quoted(table)}").fetchone()[0])

    def get_sql_table_col_names(self, table: str) -> list[str]:
        """The columns of a table.

        Raises
        ------
        InputError
            There is no such table.
        """
        names = [str(row[1]) for row in self.conn.execute(f"pragma table_info({quoted(table)})")]
        if not names:
            raise InputError(f"{self.sql_file}: no table {table!r}")
        return names

    def split_column_categories(self, col_names: Sequence[str]) -> tuple[list[str], list[str]]:
        """Metadata columns, and feature columns: those that start with a compartment."""
        prefixes = tuple(name.lower() for name in self.compartments)
        features = [name for name in col_names if name.lower().startswith(prefixes)]
        return [name for name in col_names if name not in set(features)], features

    def load_compartment(self, compartment: str) -> pd.DataFrame:
        """A table of objects: metadata, then features in `default_datatype_float`."""
        names = self.get_sql_table_col_names(compartment)
        if not isinstance(self.features, str):
            names = [name for name in names if name in self.features]
        metadata, features = self.split_column_categories(names)
        table = self._read(compartment, [*metadata, *features])
        return pd.concat([table[metadata], table[features].astype(self.default_datatype_float)], axis=1)

    def _read(
        self, table: str, columns: Sequence[str] | None = None, where: str = "", values: Sequence[Any] = ()
    ) -> Any:
        self.get_sql_table_col_names(table)
        chosen = "*" if columns is None else ", ".join(map(quoted, columns))
        return pd.read_sql(f"select {chosen} from {quoted(table)}{where}", self.conn, params=list(values))

    # --- counts and subsamples

    def count_cells(
        self,
        compartment: str = "cells",
        merge_cols: Sequence[str] = ("TableNumber", "ImageNumber"),
        object_col: str = "ObjectNumber",
        image_count_col: str = "Count_Cells",
        count_subset: bool = False,
    ) -> pd.DataFrame:
        """cell_count: the cells of each group, by the image table's counts where it has them, else by objects.

        Raises
        ------
        InputError
            `count_subset` before there is a subset.
        """
        check_compartments([compartment])
        if count_subset:
            if not (self.is_aggregated and self.subset_data_df is not None):
                raise InputError("count_subset: get_subsample() and aggregate_profiles() first")
            counts = self.subset_data_df.groupby(self.strata)[self.object_feature].count()
            return counts.reset_index(name="cell_count")
        if image_count_col in self.get_sql_table_col_names(self.image_table_name):
            image_counts = self._read(self.image_table_name, [*self.merge_cols, image_count_col])
            table = self.image_df.merge(image_counts, how="inner", on=self.merge_cols)
            return table.groupby(self.strata)[image_count_col].sum().reset_index(name="cell_count")
        if not merge_cols or not object_col:
            raise InputError("count_cells: merge_cols and object_col must each name a column")
        table = self.image_df.merge(
            self._read(compartment, [*merge_cols, object_col]), how="inner", on=list(merge_cols)
        )
        return table.groupby(self.strata)[object_col].count().reset_index(name="cell_count")

    def subsample_profiles(self, df: pd.DataFrame, rename_col: bool = True) -> pd.DataFrame:
        """Some rows of `df`, as `subsample_frac` or `subsample_n` says."""
        if self.subsampling_random_state is None:
            self.set_subsample_random_state(int(np.random.default_rng().integers(10_000)))
        seed = self.subsampling_random_state
        if self.subsample_frac == 1:
            some = df.sample(n=int(self.subsample_n), replace=True, random_state=seed)
        else:
            some = df.sample(frac=self.subsample_frac, random_state=seed)
        return some.rename(columns=self.linking_col_rename) if rename_col else some

    def get_subsample(
        self, df: pd.DataFrame | None = None, compartment: str = "cells", rename_col: bool = True
    ) -> None:
        """Draw cells of each group into `subset_data_df`."""
        check_compartments(compartment)
        if df is None:
            df = self._read(compartment, [*self.merge_cols, "ObjectNumber"])
        objects = self.image_df.merge(df, how="inner", on=self.merge_cols)
        parts = [self.subsample_profiles(part, rename_col) for _, part in objects.groupby(self.strata)]
        self.subset_data_df = pd.concat(parts, ignore_index=True)
        self.is_subset_computed = True

    # --- profiles

    def aggregate_compartment(
        self,
        compartment: str,
        compute_subsample: bool = False,
        compute_counts: bool = False,
        add_image_features: bool = False,
        n_aggregation_memory_strata: int = 1,
    ) -> pd.DataFrame:
        """The profiles of one table of objects, read a few groups at a time."""
        check_compartments(compartment)
        if (self.subsample_frac < 1 or self.subsample_n != "all") and compute_subsample:
            self.get_subsample(compartment=compartment)
        if not self.image_data_loaded:
            self.load_image()
        parts = []
        for objects in self._objects(compartment, n_aggregation_memory_strata):
            table = self.image_df.merge(objects, how="inner", on=self.merge_cols)
            table = table.rename(columns=self.linking_col_rename)
            infer = isinstance(self.features, str)
            part = aggregate(
                table,
                self.strata,
                infer_cp_features(table, compartment) if infer else list(self.features),
                operation=self.aggregation_operation,
                compute_object_count=compute_counts,
                object_feature=self.object_feature,
                subset_data_df=self.subset_data_df,
            )
            if compute_counts and self.fields_of_view_feature not in self.strata:
                part = self._with_images(part, add_image_features)
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    def _images(self, add_image_features: bool) -> pd.DataFrame:
        """What the image table says of each group: the number of sites, and image features."""
        images = aggregate_fields_count(self.image_df, self.strata, self.fields_of_view_feature)
        if add_image_features:
            images = aggregate_image_features(
                images,
                self.image_features_df,
                self.image_feature_categories,
                self.image_cols,
                self.strata,
                self.aggregation_operation,
            )
        return images

    def _with_images(self, part: pd.DataFrame, add_image_features: bool) -> pd.DataFrame:
        part = self._images(add_image_features).merge(part, on=self.strata, how="right")
        known = [*metadata_columns(part), *infer_cp_features(part, image_features=True)]
        return part[[*(name for name in self.strata if name not in known), *known]]

    def _objects(self, compartment: str, n: int) -> Iterator[pd.DataFrame]:
        """The objects of the images of `n` groups at a time."""
        if n < 1:
            raise InputError(f"n_aggregation_memory_strata={n}: must be > 0")
        names = None
        if not isinstance(self.features, str):
            # what identifies an object comes along, whichever features are chosen
            known = self.get_sql_table_col_names(compartment)
            wanted = {*self.merge_cols, *self.linking_col_rename, *self.features}
            names = [name for name in known if name in wanted]
        groups = [part[self.merge_cols].drop_duplicates() for _, part in self.image_df.groupby(self.strata)]
        columns = ", ".join(map(quoted, self.merge_cols))
        one = f"({', '.join('?' * len(self.merge_cols))})"
        for start in range(0, len(groups), n):
            images = pd.concat(groups[start : start + n]).to_numpy(dtype=object).tolist()
            where = f" where ({columns}) in (values {', '.join([one] * len(images))})"
            yield self._read(compartment, names, where, [value for image in images for value in image])

    def aggregate_profiles(
        self,
        compute_subsample: bool = False,
        output_file: str | Path | None = None,
        compression_options: Any = None,
        float_format: str | None = None,
        n_aggregation_memory_strata: int = 1,
    ) -> Any:
        """One profile a group, the features of all compartments side by side; a path if it is written.

        A group without objects in one compartment has missing values there, with a warning; pycytominer drops it. Its
        number of objects, which are those of the first compartment, may be 0. Without any object there is no profile.
        """
        if output_file is not None:
            self.set_output_file(output_file)
        first, *others = self.compartments
        table = self.aggregate_compartment(
            first,
            compute_subsample=compute_subsample,
            compute_counts=True,
            add_image_features=self.add_image_features,
            n_aggregation_memory_strata=n_aggregation_memory_strata,
        )
        for compartment in others:
            n = n_aggregation_memory_strata
            other = self.aggregate_compartment(compartment, n_aggregation_memory_strata=n)
            both = table.merge(other, on=self.strata, how="inner")
            if len(both) < max(len(table), len(other)):
                _warn(f"{compartment}: some groups have no objects; their features are missing")
                both = self._filled(table.merge(other, on=self.strata, how="outer"))
            table = both
        if table.empty:
            _warn("no group has an object in any compartment, and so there are no profiles")
        self.is_aggregated = True
        if self.output_file is None:
            return table
        return output(table, self.output_file, compression_options=compression_options, float_format=float_format)

    def _filled(self, table: pd.DataFrame) -> pd.DataFrame:
        """`table` with what is known of groups without an object in the first compartment."""
        found = {OBJECT_COUNT: table[OBJECT_COUNT].fillna(0).astype("int64")}
        if self.fields_of_view_feature not in self.strata:
            images = table[self.strata].merge(self._images(self.add_image_features), on=self.strata, how="left")
            found |= {name: images[name] for name in map(str, images.columns) if name not in self.strata}
        return table.assign(**found)

    def merge_single_cells(
        self,
        compute_subsample: bool = False,
        sc_output_file: str | Path | None = None,
        compression_options: Any = None,
        float_format: str | None = None,
        single_cell_normalize: bool = False,
        normalize_args: dict[str, Any] | None = None,
        platemap: Any = None,
        **kwargs: Any,
    ) -> Any:
        """One row a cell, the features of all compartments side by side; a path if it is written.

        Objects without a partner in another compartment are left out, with a warning.

        Parameters
        ----------
        single_cell_normalize, normalize_args
            Pass the table through `normalize`.
        platemap, kwargs
            Pass it through `annotate`.
        """
        cells: pd.DataFrame | None = None
        done: set[frozenset[str]] = set()
        suffixes: list[str] = []
        for left, links in self.compartment_linking_cols.items():
            for right, column in links.items():
                if (pair := frozenset((left, right))) in done:
                    continue
                done.add(pair)
                suffixes += [f"_{left}", f"_{right}"]
                if cells is None:
                    cells = self._first(left, compute_subsample)
                other = self.load_compartment(right)
                merged = cells.merge(
                    other,
                    left_on=[*self.merge_cols, column],
                    right_on=[*self.merge_cols, self.compartment_linking_cols[right][left]],
                    suffixes=(f"_{left}", f"_{right}"),
                )
                if len(merged) < len(cells):
                    _warn(
                        f"{len(cells) - len(merged)} object(s) of {left} have no partner in {right}; they are left out"
                    )
                cells = merged
        if cells is None:
            raise InputError("compartment_linking_cols is empty: it says how the tables are linked")
        keys = [*self.merge_cols, *self.linking_col_rename]
        self.full_merge_suffix_rename = {
            f"{key}{suffix}": f"Metadata_{key}{suffix}" for key in keys for suffix in ("", *suffixes)
        }
        if not self.image_data_loaded:
            self.load_image()
        table = self.image_df.merge(cells, on=self.merge_cols, how="right")
        table = table.rename(columns=self.linking_col_rename).rename(columns=self.full_merge_suffix_rename)
        if single_cell_normalize:
            options = dict(normalize_args or {})
            if options.get("features", "infer") == "infer":
                options["features"] = infer_cp_features(table, self.compartments)
            table = normalize(table, **options)
        if platemap is not None:
            table = annotate(table, platemap, **kwargs)
        if sc_output_file is None:
            return table
        return output(table, sc_output_file, compression_options=compression_options, float_format=float_format)

    def _first(self, compartment: str, compute_subsample: bool) -> pd.DataFrame:
        cells = self.load_compartment(compartment)
        if not compute_subsample:
            return cells
        self.get_subsample(cells, rename_col=False)
        if self.subset_data_df is None:
            return cells
        chosen = self.subset_data_df[[name for name in self.subset_data_df if name in cells.columns]]
        return chosen.reindex(columns=cells.columns)


def quoted(name: str) -> str:
    """A name of a table or column in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _warn(text: str) -> None:
    warnings.warn(text, ProfileWarning, stacklevel=3)
