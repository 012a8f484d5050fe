"""Transformers for what a well's place and its number of cells do to its profile."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from cytominer_tools import arrays
from cytominer_tools.arrays import Codes, Doubles, Floats
from cytominer_tools.batches import batch_codes, known_codes
from cytominer_tools.columns import well_name
from cytominer_tools.errors import InputError
from cytominer_tools.transformers import control_rows

_FLOATS = [np.float64, np.float32]
_ROUNDS = 10  # of median polish; it settles after a few


class WellPosition(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Subtract the mean of all wells at the same position, over all plates.

    Where a treatment has one position on all plates it takes the treatment out as well.

    Attributes
    ----------
    wells_ : str array, shape (n_positions,)
    means_ : float64 array, shape (n_positions, n_features)
    """

    wells_: npt.NDArray[np.str_]
    means_: Doubles

    def fit(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Self:
        """Learn the mean of each position.

        Parameters
        ----------
        X : array or frame of finite floats, shape (n, n_features)
        y, batch : ignored
        well : labels such as A01, shape (n,), optional
            All at one position if None.
        control : bool array, shape (n,), optional
            The rows to learn from; all of them if None.
        """
        X = validate_data(self, X, dtype=_FLOATS)
        rows = np.ones(len(X), bool) if control is None else control_rows(control, len(X))
        if not rows.any():
            raise InputError("n_samples=0 control rows: there is nothing to learn from")
        if well is not None and len(well) != len(X):
            raise InputError(f"well: expected {len(X)} names, one a row; got {len(well)}")
        codes, self.wells_ = batch_codes(None if well is None else np.asarray(well)[rows], int(rows.sum()))
        self.means_ = arrays.group_mean(X[rows], codes).astype(np.float64)
        return self

    def transform(self, X: Any, *, well: Any = None) -> Any:
        """The rows of `X` less the mean of their position; a position that was not there is an InputError."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=_FLOATS, reset=False)
        codes = known_codes(well, len(X), self.wells_, "well")
        return (X - self.means_[codes]).astype(X.dtype)

    def fit_transform(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Any:
        """`fit`, then `transform` of the same rows."""
        return self.fit(X, well=well, control=control).transform(X, well=well)


class CellCountRegression(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """What a line over the number of cells does not say of each feature: the residual of least squares.

    Parameters
    ----------
    count : int
        Which column of `X` is the number of cells; it stays as it is.

    Attributes
    ----------
    slope_, intercept_ : float64 arrays, shape (n_features,)
        Per cell and at no cells; 0 for the count itself, and where all counts are equal the intercept is the mean.
    """

    slope_: Doubles
    intercept_: Doubles

    def __init__(self, count: int = 0):
        self.count = count

    def fit(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Self:
        """Learn the lines of the control rows of `X`; arguments as in `WellPosition`, of which it ignores `well`."""
        X = validate_data(self, X, dtype=_FLOATS)
        if not 0 <= self.count < X.shape[1]:
            raise InputError(f"count={self.count}: X has columns 0 to {X.shape[1] - 1}")
        reference = X[control_rows(control, len(X))] if control is not None else X
        if len(reference) == 0:
            raise InputError("n_samples=0 control rows: there is nothing to learn from")
        mean = reference.mean(axis=0, dtype=np.float64)
        away = reference[:, self.count] - mean[self.count]
        spread = np.square(away).sum()
        slope = away @ (reference - mean) / spread if spread > 0 else np.zeros_like(mean)
        intercept = mean - slope * mean[self.count]
        slope[self.count] = intercept[self.count] = 0
        self.slope_, self.intercept_ = slope, intercept
        return self

    def transform(self, X: Any) -> Any:
        """The residuals of the rows of `X`, and their counts."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=_FLOATS, reset=False)
        lines = self.intercept_ + X[:, [self.count]].astype(np.float64) * self.slope_
        return (X - lines).astype(X.dtype)


class MedianPolish(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Subtract from each plate its median, and what its rows and columns differ by (Tukey's median polish, B score).

    Where most wells of a row or column hold one treatment it takes the treatment out as well.

    Attributes
    ----------
    batches_ : str array, shape (n_plates,)
    overall_ : float64 array, shape (n_plates, n_features)
    rows_, columns_ : float64 arrays, shape (n_plates, n_rows or n_columns, n_features)
        NaN where a plate has no well to learn from.

    References
    ----------
    Tukey 1977, *Exploratory Data Analysis*; Brideau et al. 2003, doi:10.1177/1087057103258285.
    """

    batches_: npt.NDArray[np.str_]
    overall_: Doubles
    rows_: Doubles
    columns_: Doubles

    def fit(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Self:
        """Learn the effects of each plate.

        Parameters
        ----------
        X : array or frame of finite floats, shape (n, n_features)
        y : ignored
        batch : labels of plates, shape (n,), optional
            One plate if None.
        well : names such as A01, shape (n,), optional
            Without them only the median of a plate is taken out.
        control : bool array, shape (n,), optional
            The rows to learn from; all of them if None.
        """
        X = validate_data(self, X, dtype=_FLOATS)
        known = np.ones(len(X), bool) if control is None else control_rows(control, len(X))
        codes, self.batches_ = batch_codes(batch, len(X))
        row, column = _places(well, len(X))
        shape = (len(self.batches_), row.max() + 1, column.max() + 1)
        self.overall_ = np.empty((shape[0], X.shape[1]))
        self.rows_ = np.empty((shape[0], shape[1], X.shape[1]))
        self.columns_ = np.empty((shape[0], shape[2], X.shape[1]))
        for plate in range(shape[0]):
            which = known & (codes == plate)
            if not which.any():
                raise InputError(f"n_samples=0 control rows in batch {self.batches_[plate]}: nothing to learn from")
            effects = _polish(X[which].astype(np.float64), row[which], column[which], shape[1], shape[2])
            self.overall_[plate], self.rows_[plate], self.columns_[plate] = effects
        return self

    def transform(self, X: Any, *, batch: Any = None, well: Any = None) -> Any:
        """The residuals of the rows of `X`; a plate, row or column that was not there is an InputError."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=_FLOATS, reset=False)
        codes = known_codes(batch, len(X), self.batches_)
        row, column = _places(well, len(X))
        outside = (row >= self.rows_.shape[1]) | (column >= self.columns_.shape[1])
        row, column = np.where(outside, 0, row), np.where(outside, 0, column)
        effects = self.overall_[codes] + self.rows_[codes, row] + self.columns_[codes, column]
        if (unseen := outside | np.isnan(effects).any(axis=1)).any():
            first = int(np.argmax(unseen))
            place = "" if well is None else f", well {np.asarray(well)[first]}"
            raise InputError(
                f"batch {self.batches_[codes[first]]}{place}: its row or column was not there when this was fitted"
            )
        return (X - effects).astype(X.dtype)

    def fit_transform(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Any:
        """`fit`, then `transform` of the same rows."""
        return self.fit(X, batch=batch, well=well, control=control).transform(X, batch=batch, well=well)


def _places(well: Any, n: int) -> tuple[Codes, Codes]:
    """Row and column of each well, counted from 0; all at (0, 0) if there are none."""
    if well is None:
        return np.zeros(n, np.int64), np.zeros(n, np.int64)
    names = [well_name(str(name)) for name in np.asarray(well)]
    if len(names) != n:
        raise InputError(f"well: expected {n} names, one a row; got {len(names)}")
    letters = [name[:-2] for name in names]
    rows = [ord(each[-1]) - 65 + 26 * (ord(each[0]) - 64 if len(each) == 2 else 0) for each in letters]
    return np.array(rows), np.array([int(name[-2:]) - 1 for name in names])


def _polish(values: Floats, row: Codes, column: Codes, n_rows: int, n_columns: int) -> tuple[Doubles, Doubles, Doubles]:
    """Overall (d,), row (n_rows, d) and column (n_columns, d) effects of wells (n, d); NaN where there is no well."""
    overall = np.zeros(values.shape[1])
    by_row, by_column = np.full((n_rows, values.shape[1]), np.nan), np.full((n_columns, values.shape[1]), np.nan)
    here, there = np.unique(row), np.unique(column)
    by_row[here], by_column[there] = 0, 0
    left = values.copy()
    for _ in range(_ROUNDS):
        for effects, places, codes in ((by_row, here, row), (by_column, there, column)):
            medians = np.zeros_like(effects)
            medians[places] = arrays.group_median(left, np.searchsorted(places, codes))
            left -= medians[codes]
            effects[places] += medians[places]
            centre = np.median(effects[places], axis=0)
            effects[places] -= centre
            overall += centre
    return overall, by_row, by_column
