"""Where the cells of each image are, put beside the metadata of the images."""

import sqlite3
from pathlib import Path
from typing import Any

import pandas as pd

from cytominer_tools.columns import PLATE, SITE, WELL, require_columns
from cytominer_tools.errors import InputError, NoFileError
from cytominer_tools.tables import read_table, write_table


class CellLocation:
    """Adds CellCenters to a table of images: for each one a list of its cells' numbers and centres (pixels).

    Parameters
    ----------
    metadata_input : DataFrame or path (.csv, .parquet)
        A row an image, with the `image_key` columns.
    single_cell_input : path, or ``sqlite:///`` and a path
        SQLite with tables Image and Nuclei.
    augmented_metadata_output : path, optional
        A Parquet file to write; one that exists is kept unless `overwrite`.
    image_column, object_column, table_column, image_key, cell_x_loc, cell_y_loc
        Columns of these tables.
    """

    def __init__(
        self,
        metadata_input: pd.DataFrame,
        single_cell_input: str | Path,
        augmented_metadata_output: str | Path | None = None,
        overwrite: bool = False,
        image_column: str = "ImageNumber",
        object_column: str = "ObjectNumber",
        table_column: str = "TableNumber",
        image_key: list[str] | None = None,
        cell_x_loc: str = "Nuclei_Location_Center_X",
        cell_y_loc: str = "Nuclei_Location_Center_Y",
    ):
        self.metadata_input = metadata_input
        self.single_cell_input = single_cell_input
        self.augmented_metadata_output = augmented_metadata_output
        self.overwrite = overwrite
        self.image_column = image_column
        self.object_column = object_column
        self.table_column = table_column
        self.image_key = [PLATE, WELL, SITE] if image_key is None else image_key
        self.cell_x_loc = cell_x_loc
        self.cell_y_loc = cell_y_loc

    def add_cell_location(self) -> Any:
        """The table with CellCenters, or the path it was written to.

        Raises
        ------
        InputError
            A file, table or column is absent.
        """
        target = self.augmented_metadata_output
        if target is not None and Path(target).expanduser().exists() and not self.overwrite:
            return str(target)
        metadata = self.metadata_input
        if not isinstance(metadata, pd.DataFrame):
            metadata = read_table(Path(metadata).expanduser(), metadata=True).astype(str)
        require_columns(metadata, self.image_key, "metadata: the image index")
        table = metadata.merge(self._nested(), on=self.image_key, how="left")
        return table if target is None else str(write_table(table, Path(target).expanduser()))

    def _nested(self) -> pd.DataFrame:
        cells = self._cells()
        keys = [*self.image_key, self.image_column, self.table_column]
        names = [self.object_column, self.cell_x_loc, self.cell_y_loc]
        rows = []
        for key, part in cells.groupby(keys):
            values = (part[name].tolist() for name in names)
            rows.append([*key, [dict(zip(names, cell, strict=True)) for cell in zip(*values, strict=True)]])
        return pd.DataFrame(rows, columns=[*keys, "CellCenters"])

    def _cells(self) -> pd.DataFrame:
        path = Path(str(self.single_cell_input).removeprefix("sqlite:///")).expanduser()
        if path.suffix != ".sqlite":
            raise InputError(f"{path}: single_cell file must be a SQLite file, called .sqlite")
        if not path.is_file():
            raise NoFileError(f"{path}: no such file")
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            on = [self.image_column, self.table_column]
            nuclei = self._table(
                connection, path, "Nuclei", [*on, self.object_column, self.cell_x_loc, self.cell_y_loc]
            )
            images = self._table(connection, path, "Image", [*on, *self.image_key])
        finally:
            connection.close()
        images[self.image_key] = images[self.image_key].astype(str)
        numbers = dict.fromkeys([*on, self.object_column], "int64")
        centers = dict.fromkeys([self.cell_x_loc, self.cell_y_loc], "float64")
        return nuclei.merge(images, on=on).astype(numbers | centers)

    @staticmethod
    def _table(connection: sqlite3.Connection, path: Path, table: str, columns: list[str]) -> pd.DataFrame:
        have = [row[1] for row in connection.execute(f"pragma table_info({table})")]
        if absent := [name for name in columns if name not in have]:
            raise InputError(f"{path}: no column {', '.join(absent)} in table {table}")
        chosen = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
        return pd.read_sql(f"select {chosen} from {table}", connection)
