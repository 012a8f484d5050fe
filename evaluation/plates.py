"""Plates as grids of wells, and whether a measurement depends on how near a well is to the edge."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm, rankdata

from cytominer_tools.columns import PLATE, WELL, require_columns, well_name
from cytominer_tools.errors import InputError
from evaluation.similarity import Floats

FORMATS = ((8, 12), (16, 24), (32, 48))  # rows and columns of plates of 96, 384 and 1536 wells

Places = npt.NDArray[np.int64]


def require_places(table: pd.DataFrame, where: str) -> None:
    """Raise an InputError, which says `where`, unless every row has a plate and a well."""
    require_columns(table, [PLATE, WELL], where)
    for name in (PLATE, WELL):
        if lacking := int(table[name].isna().sum()):
            raise InputError(
                f"{where}: {lacking} of {len(table)} rows have no {name}; give it, or leave these rows out"
            )


def well_places(wells: pd.Series) -> tuple[Places, Places]:
    """Row and column of each well, from 0.

    >>> [place.tolist() for place in well_places(pd.Series(["A01", "p24", "AF48"]))]
    [[0, 15, 31], [0, 23, 47]]

    Raises
    ------
    InputError
        One is not a well such as A01.
    """
    names = [well_name(well) for well in wells]
    letters = [name.rstrip("0123456789") for name in names]
    row = [ord(word[-1]) - 65 + 26 * (ord(word[0]) - 64) * (len(word) - 1) for word in letters]
    column = [int(name[len(word) :]) - 1 for name, word in zip(names, letters, strict=True)]
    return np.array(row, dtype=np.int64), np.array(column, dtype=np.int64)


def plate_format(row: npt.ArrayLike, column: npt.ArrayLike) -> tuple[int, int]:
    """Rows and columns of the smallest plate of 96, 384 or 1536 wells that has all these places.

    >>> plate_format([0, 7], [0, 11]), plate_format([0], [12])
    ((8, 12), (16, 24))

    Raises
    ------
    InputError
        A place is outside of a plate of 1536 wells.
    """
    lowest, last = int(np.max(row, initial=0)), int(np.max(column, initial=0))
    for rows, columns in FORMATS:
        if lowest < rows and last < columns:
            return rows, columns
    raise InputError(f"row {lowest + 1}, column {last + 1}: plates of 96, 384 and 1536 wells are known, up to AF48")


@dataclass(frozen=True)
class EdgeEffect:
    """Whether values on the outermost rows and columns of plates differ from those inside.

    Attributes
    ----------
    higher : float
        The chance that an edge well has a higher value than an inner well of its plate; 0.5 without an effect.
    p : float
        Two-sided, of van Elteren's test: Wilcoxon's rank sums within plates, added up.
    n_edge, n_inner : int
        Wells, on plates that have both.
    reason : str
        Why there is no p; empty where there is one.
    """

    higher: float
    p: float
    n_edge: int
    n_inner: int
    reason: str


def edge_effect(values: npt.ArrayLike, plates: npt.ArrayLike, edge: npt.ArrayLike) -> EdgeEffect:
    """Compare edge wells with inner wells of the same plate.

    Give wells of one treatment, the controls as a rule: where treatments have fixed places, the edge differs from the
    inside for their sake.

    Parameters
    ----------
    values : float array, shape (n,)
        NaN are left out.
    plates : array, shape (n,)
    edge : bool array, shape (n,)

    Raises
    ------
    InputError
        Lengths differ.

    References
    ----------
    van Elteren 1960; ties as in the rank-sum test with midranks.
    """
    y, names = np.asarray(values, dtype=np.float64), np.asarray(plates)
    outer = np.asarray(edge, dtype=bool)
    if not y.shape == names.shape == outer.shape or y.ndim != 1:
        raise InputError(f"edge_effect: expected lists of one length, got {y.shape}, {names.shape} and {outer.shape}")
    excess = variance = pairs = wins = 0.0
    n_edge = n_inner = 0
    for name in pd.unique(names):
        mine = (names == name) & np.isfinite(y)
        here = outer[mine]
        n, m = int(here.sum()), int((~here).sum())
        if not n or not m:
            continue
        ranks = rankdata(y[mine])
        total = n + m
        centred = float(ranks[here].sum()) - n * (total + 1) / 2
        excess += centred / (total + 1)
        variance += n * m / (total * (total - 1)) * float(((ranks - (total + 1) / 2) ** 2).sum()) / (total + 1) ** 2
        wins += float(ranks[here].sum()) - n * (n + 1) / 2
        pairs += n * m
        n_edge, n_inner = n_edge + n, n_inner + m
    if not pairs:
        return EdgeEffect(np.nan, np.nan, n_edge, n_inner, "no plate has wells both on its edge and inside")
    if variance <= 0:
        return EdgeEffect(np.nan, np.nan, n_edge, n_inner, "all values of a plate are equal")
    return EdgeEffect(wins / pairs, float(2 * norm.sf(abs(excess) / np.sqrt(variance))), n_edge, n_inner, "")


def edge_wells(wells: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whether each well is in the outermost row or column of its plate's format; all plates have the largest one.

    Raises
    ------
    InputError
        There is no column Metadata_Plate or Metadata_Well, or a well cannot be read.
    """
    require_columns(wells, [PLATE, WELL], "wells")
    row, column = well_places(wells[WELL])
    rows, columns = plate_format(row, column)
    return np.asarray((row == 0) | (row == rows - 1) | (column == 0) | (column == columns - 1))


def plate_grid(row: Places, column: Places, values: Floats, shape: tuple[int, int]) -> Floats:
    """The mean of `values` at each place of a plate, shape `shape`; NaN where there is none.

    >>> plate_grid(np.array([0, 0, 1]), np.array([1, 1, 0]), np.array([1.0, 3.0, 5.0]), (2, 2)).tolist()
    [[nan, 2.0], [5.0, nan]]
    """
    known = np.isfinite(values)
    at = row[known] * shape[1] + column[known]
    size = shape[0] * shape[1]
    total, count = np.bincount(at, values[known], minlength=size), np.bincount(at, minlength=size)
    return np.divide(total, count, out=np.full(size, np.nan), where=count > 0).reshape(shape)
