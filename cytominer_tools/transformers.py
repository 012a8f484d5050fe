"""Normalisations as scikit-learn transformers: learnt on control rows, applied to any rows."""

import warnings
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from cytominer_tools import arrays
from cytominer_tools.arrays import Floats
from cytominer_tools.errors import InputError, ProfileWarning

METHODS = ("ZCA", "ZCA-cor")
FEW_CONTROLS = 16


class Spherize(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Learn how control rows vary together, and remove that from any rows (ZCA whitening with a ridge).

    Parameters
    ----------
    method : "ZCA-cor" or "ZCA"
        ZCA-cor divides each feature by its sd on the controls first, so that units, and any step before it that
        scales and shifts whole features, cancel. ZCA only centres, for features that share one unit.
    ridge : float, 0 or more
        Added to every eigenvalue of the controls' covariance, in multiples of their mean over all directions. See
        `arrays.spherizing_gains` for the formula and for why it is 1.

    Attributes
    ----------
    mean_, scale_ : float64 arrays, shape (n_features,)
    eigenvalues_ : float64 array, shape (rank,)
    axes_ : float64 array, shape (rank, n_features)
    gains_ : float64 array, shape (rank,)
    rest_gain_ : float
        The gain of directions that no control spans; 0 where there are none.
    n_controls_ : int

    Notes
    -----
    The rows it was fitted on come out shorter and less correlated than other control rows: score controls out of
    fold. A feature that is constant on the controls is an InputError with ZCA-cor, which cannot scale it:
    centring it alone would let its unit in and setting it to 0 would hide it. `frames.spherize` drops such features.
    With ZCA it is only an unseen direction, which the ridge bounds.
    """

    mean_: npt.NDArray[np.float64]
    scale_: npt.NDArray[np.float64]
    eigenvalues_: npt.NDArray[np.float64]
    axes_: npt.NDArray[np.float64]
    gains_: npt.NDArray[np.float64]
    rest_gain_: float
    n_controls_: int

    def __init__(self, *, method: Literal["ZCA", "ZCA-cor"] = "ZCA-cor", ridge: float = 1.0):
        self.method = method
        self.ridge = ridge

    def fit(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Self:
        """Learn from the control rows of `X`.

        Parameters
        ----------
        X : array or frame of finite floats, shape (n, n_features)
        y : ignored
        batch, well : ignored
            Every normaliser of the project accepts them.
        control : bool array, shape (n,), optional
            The rows to learn from; all of them if None.

        Raises
        ------
        InputError
            An unknown method or unfit ridge, fewer than two controls, controls that do not vary.
        """
        if self.method not in METHODS:
            raise InputError(f"method={self.method!r}: expected one of {', '.join(METHODS)}")
        X = validate_data(self, X, dtype=[np.float64, np.float32])
        reference = X if control is None else X[_control_rows(control, len(X))]
        if (n := len(reference)) < 2:
            raise InputError(
                f"n_samples={n} control rows: spherizing needs at least 2, and {FEW_CONTROLS} to be useful"
            )
        self.mean_, sd = arrays.mean_sd(reference)
        if self.method == "ZCA":
            self.scale_ = np.ones_like(sd)
        else:
            if (flat := sd == 0).any():
                names = np.asarray(getattr(self, "feature_names_in_", np.arange(len(sd))))[flat]
                raise InputError(
                    f"no spread among {n} control rows in {len(names)} feature(s): "
                    f"{', '.join(map(str, names[:5]))}; drop them first"
                )
            self.scale_ = sd
        self.eigenvalues_, self.axes_ = arrays.principal_axes((reference - self.mean_) / self.scale_)
        self.gains_, self.rest_gain_ = arrays.spherizing_gains(self.eigenvalues_, X.shape[1], self.ridge)
        self.n_controls_ = n
        if n < FEW_CONTROLS:
            warnings.warn(
                f"spherizing learns from {n} control rows; under {FEW_CONTROLS} it follows their noise, "
                "so fit it over more plates or use a larger ridge",
                ProfileWarning,
                stacklevel=2,
            )
        return self

    def transform(self, X: Any) -> Floats:
        """Spherize the rows of `X`; float32 stays float32."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return arrays.spherize(X, self.mean_, self.scale_, self.axes_, self.gains_, self.rest_gain_)


def _control_rows(control: Any, n: int) -> npt.NDArray[np.bool_]:
    rows = np.asarray(control)
    if rows.dtype != bool or rows.shape != (n,):
        raise InputError(f"control: expected {n} booleans, one a row; got {rows.dtype} of shape {rows.shape}")
    return rows
