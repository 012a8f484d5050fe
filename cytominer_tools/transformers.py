"""Normalisations as scikit-learn transformers: learnt on control rows, applied to any rows."""

import copy
import warnings
from abc import ABC, abstractmethod
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtri
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.preprocessing import QuantileTransformer
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data

from cytominer_tools import arrays
from cytominer_tools.arrays import Floats
from cytominer_tools.compat import as_peer
from cytominer_tools.errors import InputError, ProfileWarning

METHODS = ("PCA", "ZCA", "PCA-cor", "ZCA-cor")
ZERO_MAD = ("nan", "zero", "error", "epsilon")
FEW_CONTROLS = 16

_NEGLIGIBLE = 1e-6  # an epsilon below only keeps a division from failing


class Scaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator, ABC):
    """(x - center_) / scale_, feature by feature, learnt on control rows.

    Missing values are left out of what is learnt and stay missing; infinite ones are an error.

    Attributes
    ----------
    center_, scale_ : float64 arrays, shape (n_features,)
    """

    center_: npt.NDArray[np.float64]
    scale_: npt.NDArray[np.float64]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Self:
        """Learn from the control rows of `X`.

        Parameters
        ----------
        X : array or frame of floats, shape (n, n_features)
        y, batch, well : ignored
            Every normaliser of the project accepts them.
        control : bool array, shape (n,), optional
            The rows to learn from; all of them if None.

        Raises
        ------
        InputError
            No control rows.
        """
        X = self._checked(X, reset=True)
        reference = X if control is None else X[control_rows(control, len(X))]
        if len(reference) == 0:
            raise InputError("n_samples=0 control rows: there is nothing to learn from")
        self._learn(reference)
        return self

    def transform(self, X: Any) -> Any:
        """Scale the rows of `X`; float32 stays float32."""
        check_is_fitted(self)
        return self._apply(self._checked(X, reset=False))

    def _checked(self, X: Any, *, reset: bool) -> Floats:
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan", reset=reset)
        checked: Floats = X
        return checked

    @abstractmethod
    def _learn(self, reference: Floats) -> None:
        """Learn from the rows of the controls."""

    @abstractmethod
    def _take(self, center: arrays.Doubles, spread: arrays.Doubles) -> None:
        """Learn from the statistics of the controls, which may be too many for memory."""

    def _apply(self, X: Floats) -> Floats:
        return arrays.scaled(X, self.center_, self.scale_)


class Standardize(Scaler):
    """Mean 0 and variance 1 (divided by n) on the controls; a feature constant there is only centred.

    As scikit-learn's StandardScaler, but learnt in float64 from some of the rows.
    """

    def _learn(self, reference: Floats) -> None:
        if len(reference) == 1:
            self._take(reference[0].astype(np.float64), np.zeros(reference.shape[1]))
        else:
            self._take(*arrays.mean_sd(reference, ddof=0))

    def _take(self, center: arrays.Doubles, spread: arrays.Doubles) -> None:
        self.center_, self.scale_ = center, np.where(spread == 0, 1.0, spread)


class Robustize(Scaler):
    """Median 0 and distance between the quartiles 1 on the controls; where that distance is 0 it is only centred."""

    def _learn(self, reference: Floats) -> None:
        self._take(*arrays.median_iqr(reference))

    def _take(self, center: arrays.Doubles, spread: arrays.Doubles) -> None:
        self.center_, self.scale_ = center, np.where(spread < 10 * np.finfo(np.float64).eps, 1.0, spread)


class RobustMAD(Scaler):
    """(x - median) / (MAD + epsilon), both of the controls; see `arrays.median_mad`.

    Parameters
    ----------
    epsilon : float
        Added to the MAD, in the unit of the feature.
    zero_mad : "nan", "zero", "error" or "epsilon"
        What becomes of a feature whose MAD is 0 (over half of the controls equal), so that nothing says how far is far:
        rows at the median are 0, the others missing ("nan") or 0 ("zero"); an error; or divided by epsilon, as
        pycytominer does ("epsilon"), which makes values of 1e18. An epsilon of 1e-6 or more is taken for a scale, and
        then this plays no part.

    Attributes
    ----------
    center_, scale_ : float64 arrays, shape (n_features,)
    zero_ : bool array, shape (n_features,)
        The features without a scale.
    """

    zero_: npt.NDArray[np.bool_]

    def __init__(self, epsilon: float = 1e-18, *, zero_mad: Literal["nan", "zero", "error", "epsilon"] = "nan"):
        self.epsilon = epsilon
        self.zero_mad = zero_mad

    def _learn(self, reference: Floats) -> None:
        if self.zero_mad not in ZERO_MAD:
            raise InputError(f"zero_mad={self.zero_mad!r}: expected one of {', '.join(ZERO_MAD)}")
        if not (np.isfinite(self.epsilon) and self.epsilon >= 0):
            raise InputError(f"epsilon={self.epsilon}: expected a finite number of 0 or more")
        self._take(*arrays.median_mad(reference))
        if self.zero_mad == "error" and self.zero_.any():
            raise InputError(
                f"MAD of 0 among {len(reference)} control rows in {self.zero_.sum()} feature(s): "
                f"{_some_names(self, self.zero_)}; drop them first"
            )

    def _take(self, center: arrays.Doubles, spread: arrays.Doubles) -> None:
        self.center_, self.scale_ = center, spread + self.epsilon
        self.zero_ = (spread == 0) & (self.epsilon < _NEGLIGIBLE)

    def transform(self, X: Any) -> Any:
        """Scale the rows of `X`; a frame stays a frame, and float32 float32."""
        return _like(X, super().transform(X), None)

    def _apply(self, X: Floats) -> Floats:
        out = super()._apply(X)
        if self.zero_mad != "epsilon" and self.zero_.any():
            away = X[:, self.zero_] - self.center_[self.zero_]
            other = np.nan if self.zero_mad == "nan" else np.where(np.isnan(away), np.nan, 0.0)
            out[:, self.zero_] = np.where(away == 0, 0.0, other)
        return out


class InverseNormalTransform(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Each feature by its quantile among the controls, mapped to the normal distribution, within +-5.2.

    Between the quantiles it is linear; that is scikit-learn's QuantileTransformer, not a rank formula. A feature
    that is constant among the controls is -5.2 up to that value and 5.2 above it.

    Parameters
    ----------
    n_quantiles : int
        At most the number of control rows.
    random_state : int, RandomState or None
        Which 10,000 rows it learns from if there are more.
    """

    def __init__(self, n_quantiles: int = 1000, random_state: Any = None):
        self.n_quantiles = n_quantiles
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Self:
        """Learn the quantiles of the control rows; arguments as in the other normalisers.

        Raises
        ------
        InputError
            No control rows, or fewer than one quantile.
        """
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan")
        reference = X if control is None else X[control_rows(control, len(X))]
        if len(reference) == 0:
            raise InputError("n_samples=0 control rows: there is nothing to learn from")
        if self.n_quantiles < 1:
            raise InputError(f"n_quantiles={self.n_quantiles}: expected 1 or more")
        self.n_quantiles_ = min(self.n_quantiles, len(reference))
        transformer = QuantileTransformer(
            n_quantiles=self.n_quantiles_, output_distribution="normal", random_state=self.random_state
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)  # a feature without a value stays so
            self.transformer_ = transformer.fit(reference)
        return self

    def transform(self, X: Any) -> Floats:
        """Map the rows of `X`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan", reset=False)
        out: Floats = self.transformer_.transform(X)
        return out


class InverseNormal(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Each feature by its rank among the controls, mapped to the normal distribution (Blom).

    A rank r among n becomes the normal quantile of (r - 3/8) / (n + 1/4); equal values share the mean of their ranks.
    `InverseNormalTransform` is pycytominer's: it goes by quantiles, and the largest value becomes 5.2 whatever n is.

    Attributes
    ----------
    sorted_ : float array, shape (n_controls, n_features)

    References
    ----------
    Blom 1958, *Statistical Estimates and Transformed Beta-Variables*; as in the JUMP recipe, Arevalo et al. 2024,
    doi:10.1038/s41467-024-50613-5, which ranks equal values in random order.
    """

    sorted_: Floats

    def fit(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Self:
        """Keep the control rows of `X`, each feature sorted; arguments and errors as in the other normalisers."""
        X = validate_data(self, X, dtype=[np.float64, np.float32])
        reference = X if control is None else X[control_rows(control, len(X))]
        if len(reference) == 0:
            raise InputError("n_samples=0 control rows: there is nothing to learn from")
        self.sorted_ = np.sort(reference, axis=0)
        return self

    def transform(self, X: Any) -> Floats:
        """Map the rows of `X`; a value between two controls gets a rank between theirs."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        n = len(self.sorted_)
        out = np.empty_like(X)
        for i, known in enumerate(self.sorted_.T):
            rank = (np.searchsorted(known, X[:, i], "left") + np.searchsorted(known, X[:, i], "right") + 1) / 2
            out[:, i] = ndtri((rank - 0.375) / (n + 0.25))
        return out


class PCA(TransformerMixin, BaseEstimator):
    """Principal components of the controls, strongest first, each with its largest loading positive; not scaled.

    Parameters
    ----------
    n_components : int, optional
        At most as many as the controls span; all of them by default.

    Attributes
    ----------
    mean_ : float64 array, shape (n_features,)
    eigenvalues_ : float64 array, shape (n_components,)
        The variance of the controls along each component.
    axes_ : float64 array, shape (n_components, n_features)
    """

    mean_: npt.NDArray[np.float64]
    eigenvalues_: npt.NDArray[np.float64]
    axes_: npt.NDArray[np.float64]

    def __init__(self, n_components: int | None = None):
        self.n_components = n_components

    def fit(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Self:
        """Learn from the control rows of `X`; arguments as in the other normalisers.

        Raises
        ------
        InputError
            Fewer than one component, fewer than two control rows, or all of them equal.
        """
        X = validate_data(self, X, dtype=[np.float64, np.float32])
        reference = X if control is None else X[control_rows(control, len(X))]
        if self.n_components is not None and self.n_components < 1:
            raise InputError(f"n_components={self.n_components}: expected 1 or more")
        self.mean_, _ = arrays.mean_sd(reference)
        eigenvalues, axes = arrays.principal_axes(reference - self.mean_)
        if len(axes) == 0:
            raise InputError("no spread among the reference rows: all of them are equal; choose other controls")
        self.eigenvalues_, self.axes_ = eigenvalues[: self.n_components], _signed(axes[: self.n_components])
        return self

    def transform(self, X: Any) -> Any:
        """The components of the rows of `X`, shape (n, n_components)."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        out = ((rows - self.mean_) @ self.axes_.T).astype(rows.dtype)
        return _like(X, out, self.get_feature_names_out())

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """PC1, PC2, ..."""
        check_is_fitted(self)
        return np.array([f"PC{i}" for i in range(1, len(self.axes_) + 1)], dtype=object)


class Spherize(TransformerMixin, BaseEstimator):
    """Learn how control rows vary together, and remove that from any rows (whitening).

    Parameters
    ----------
    epsilon : float, 0 or more
        Added to the singular values of the controls, as pycytominer does. With more features than controls it stretches
        directions that no control spans as much as the weakest one that they do; `ridge` is the better choice.
    center : bool
        Whether to subtract the mean first.
    method : "ZCA", "PCA", "ZCA-cor" or "PCA-cor"
        -cor divides each feature by its sd on the controls first, so that units, and any step before it that
        scales and shifts whole features, cancel; without it features should share one unit. PCA turns the features
        into principal components, strongest first, each with its largest loading positive; ZCA leaves them where they
        were.
    return_numpy : bool
        Make an array even of a frame.
    ridge : float, 0 or more, optional
        In place of `epsilon`: added to every eigenvalue of the controls' covariance, in multiples of their mean over
        all directions. 1 suits most data; see `arrays.spherizing_gains` for the formula and for why.
    compat : "pycytominer-1.7.1", optional
        With `epsilon` and fewer independent features than columns, stretch the empty directions by 1 / epsilon.

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
    fold. A feature that is constant on the controls is an InputError with -cor, which cannot scale it:
    centring it alone would let its unit in and setting it to 0 would hide it. `normalization.spherize` drops such
    features. Without -cor it is only an unseen direction, which the ridge bounds.
    """

    mean_: npt.NDArray[np.float64]
    scale_: npt.NDArray[np.float64]
    eigenvalues_: npt.NDArray[np.float64]
    axes_: npt.NDArray[np.float64]
    gains_: npt.NDArray[np.float64]
    rest_gain_: float
    n_controls_: int

    def __init__(
        self,
        epsilon: float = 1e-6,
        center: bool = True,
        method: Literal["PCA", "ZCA", "PCA-cor", "ZCA-cor"] = "ZCA",
        return_numpy: bool = False,
        *,
        ridge: float | None = None,
        compat: str | None = None,
    ):
        self.epsilon = epsilon
        self.center = center
        self.method = method
        self.return_numpy = return_numpy
        self.ridge = ridge
        self.compat = compat

    def fit(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Self:
        """Learn from the control rows of `X`.

        Parameters
        ----------
        X : array or frame of finite floats, shape (n, n_features)
        y, batch, well : ignored
            Every normaliser of the project accepts them.
        control : bool array, shape (n,), optional
            The rows to learn from; all of them if None.

        Raises
        ------
        InputError
            An unknown method, unfit epsilon or ridge, fewer than two controls, controls that do not vary.
        """
        if self.method not in METHODS:
            raise InputError(f"method={self.method!r}: expected one of {', '.join(METHODS)}")
        if self.method.endswith("-cor") and not self.center:
            raise InputError(f"{self.method} requires center=True: a correlation is of centred features")
        if self.ridge is None and not (np.isfinite(self.epsilon) and self.epsilon >= 0):
            raise InputError(f"epsilon={self.epsilon}: expected a finite number of 0 or more")
        peer = as_peer(self.compat)
        X = validate_data(self, X, dtype=[np.float64, np.float32])
        reference = X if control is None else X[control_rows(control, len(X))]
        if (n := len(reference)) < 2:
            raise InputError(
                f"n_samples={n} control rows: spherizing needs at least 2, and {FEW_CONTROLS} to be useful"
            )
        mean, sd = arrays.mean_sd(reference, ddof=1 if self.ridge is not None else 0)
        self.mean_ = mean if self.center else np.zeros_like(mean)
        if self.method.endswith("-cor"):
            if (flat := sd == 0).any():
                raise InputError(
                    f"no spread among {n} control rows in {flat.sum()} feature(s): "
                    f"{_some_names(self, flat)}; drop them first"
                )
            self.scale_ = sd
        else:
            self.scale_ = np.ones_like(sd)
        self.eigenvalues_, self.axes_ = arrays.principal_axes((reference - self.mean_) / self.scale_)
        self.n_controls_ = n
        if self.ridge is not None:
            self.gains_, self.rest_gain_ = arrays.spherizing_gains(self.eigenvalues_, X.shape[1], self.ridge)
        else:
            unseen: Literal["smallest", "epsilon"] = "epsilon" if peer and n > X.shape[1] else "smallest"
            self.gains_, self.rest_gain_ = arrays.epsilon_gains(
                self.eigenvalues_, n, X.shape[1], self.epsilon, unseen=unseen
            )
        if self.method.startswith("PCA"):
            self.axes_ = _signed(self.axes_)
        self._warn(n, X.shape[1], peer)
        return self

    def with_ridge(self, ridge: float) -> "Spherize":
        """What was learnt, with another ridge; nothing is decomposed again.

        Raises
        ------
        InputError
            This one was fitted with an epsilon, or `ridge` is negative.
        """
        check_is_fitted(self)
        if self.ridge is None:
            raise InputError("this was fitted with epsilon; fit it with ridge= to change the ridge")
        other = copy.copy(self)
        other.ridge = ridge
        other.gains_, other.rest_gain_ = arrays.spherizing_gains(self.eigenvalues_, len(self.mean_), ridge)
        return other

    def _warn(self, n: int, n_features: int, peer: bool) -> None:
        rank = len(self.eigenvalues_)
        if self.ridge is None and rank < n_features and not peer:
            left = f"{n} control rows span {rank} of {n_features} directions"
            if n > n_features:
                left += ", so some features depend on others (pycytominer 1.7.1 stretches what differs by 1 / epsilon)"
            warnings.warn(
                f"spherize: {left}; the others are stretched {self.rest_gain_:.3g} times, like the weakest one seen; "
                "drop features or use Spherize(ridge=1)",
                ProfileWarning,
                stacklevel=3,
            )
        elif n < FEW_CONTROLS and not peer:
            warnings.warn(
                f"spherizing learns from {n} control rows; under {FEW_CONTROLS} it follows their noise, "
                "so fit it over more plates or use a larger ridge",
                ProfileWarning,
                stacklevel=3,
            )

    def transform(self, X: Any) -> Any:
        """Spherize the rows of `X`; float32 stays float32, and a frame a frame unless `return_numpy`."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        if self.method.startswith("ZCA"):
            out = arrays.spherize(rows, self.mean_, self.scale_, self.axes_, self.gains_, self.rest_gain_)
        else:
            axes = arrays.completed(self.axes_) if self.rest_gain_ else self.axes_
            gains = np.full(len(axes), self.rest_gain_)
            gains[: len(self.gains_)] = self.gains_
            out = arrays.scaled(rows, self.mean_, self.scale_) @ (axes.T * gains).astype(rows.dtype)
        return out if self.return_numpy else _like(X, out, self.get_feature_names_out())

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """PC1, PC2, ... after PCA, else the names that came in."""
        check_is_fitted(self)
        if self.method.startswith("PCA"):
            return np.array([f"PC{i}" for i in range(1, self.n_features_in_ + 1)], dtype=object)
        found: npt.NDArray[np.object_] = _check_feature_names_in(self, input_features)
        return found


def _signed(axes: arrays.Doubles) -> arrays.Doubles:
    """`axes`, each turned so that its largest entry is positive."""
    largest = np.abs(axes).argmax(axis=1)
    return axes * np.sign(axes[np.arange(len(axes)), largest])[:, None]


def _like(X: Any, out: Any, names: Any) -> Any:
    """`out` as a frame on the index of `X` where that is a frame and `out` is not one by `set_output` already."""
    if not isinstance(X, pd.DataFrame) or isinstance(out, pd.DataFrame):
        return out
    return pd.DataFrame(out, index=X.index, columns=X.columns if names is None else names, copy=False)


def _some_names(fitted: Any, which: npt.NDArray[np.bool_]) -> str:
    found = np.asarray(getattr(fitted, "feature_names_in_", np.arange(len(which))))[which]
    return ", ".join(map(str, found[:5]))


def control_rows(control: Any, n: int) -> npt.NDArray[np.bool_]:
    """`control` as an array of `n` booleans.

    Raises
    ------
    InputError
        It is something else.
    """
    rows = np.asarray(control)
    if rows.dtype != bool or rows.shape != (n,):
        raise InputError(f"control: expected {n} booleans, one a row; got {rows.dtype} of shape {rows.shape}")
    return rows
