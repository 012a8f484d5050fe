"""Transformers that know which batch a row is of: a scope for the others, TVN, ComBat and Harmony."""

from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin, clone
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted, validate_data

from cytominer_tools import arrays
from cytominer_tools.arrays import Codes, Doubles, Floats
from cytominer_tools.errors import InputError
from cytominer_tools.harmony import harmonize
from cytominer_tools.transformers import PCA, Spherize, Standardize, control_rows

_FLOATS = [np.float64, np.float32]


def batch_codes(batch: Any, n: int) -> tuple[Codes, npt.NDArray[np.str_]]:
    """The batch of each row as a number, and the names of the batches (as text, sorted); all in one if None.

    Raises
    ------
    InputError
        Not `n` of them, or one is missing.
    """
    if batch is None:
        return np.zeros(n, np.int64), np.array(["all"])
    labels = pd.Series(np.asarray(batch))
    if len(labels) != n:
        raise InputError(f"batch: expected {n} labels, one a row; got {len(labels)}")
    if labels.isna().any():
        raise InputError(f"batch: {labels.isna().sum()} of {n} rows have none; leave them out or name one")
    codes, names = pd.factorize(labels.astype(str), sort=True)
    return codes, np.array(names, dtype=str)


def known_codes(batch: Any, n: int, names: npt.NDArray[np.str_], what: str = "batch") -> Codes:
    """The batch of each row as a number into `names`.

    Raises
    ------
    InputError
        One that is not in `names`: nothing was learnt of it.
    """
    codes, found = batch_codes(batch, n)
    places = pd.Index(names.tolist()).get_indexer(pd.Index(found.tolist()))
    if (places < 0).any():
        unseen = ", ".join(found[places < 0][:3])
        raise InputError(f"{what} {unseen} was not there when this was fitted; it knows {', '.join(names[:5])}")
    return np.asarray(places)[codes]


class PerBatch(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Another transformer, fitted to each batch (or plate) for itself, by its own control rows.

    Parameters
    ----------
    transformer : transformer with as many features out as in
        A copy of it is fitted to each batch.

    Attributes
    ----------
    batches_ : str array, shape (n_batches,)
    transformers_ : list of fitted transformers, one a batch
    """

    batches_: npt.NDArray[np.str_]
    transformers_: list[Any]

    def __init__(self, transformer: Any):
        self.transformer = transformer

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = get_tags(self.transformer).input_tags.allow_nan
        return tags

    def fit(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Self:
        """Learn from the control rows of each batch.

        Parameters
        ----------
        X : array or frame of floats, shape (n, n_features)
        y, well : ignored
        batch : labels, shape (n,), optional
            Compared as text; one batch if None.
        control : bool array, shape (n,), optional
            The rows to learn from; all of them if None.

        Raises
        ------
        InputError
            A row without a batch, a batch without control rows.
        """
        X = self._checked(X, reset=True)
        codes, self.batches_ = batch_codes(batch, len(X))
        control = np.ones(len(X), bool) if control is None else control_rows(control, len(X))
        self.transformers_ = []
        for name, rows in zip(self.batches_, arrays.members(codes), strict=True):
            if not control[rows].any():
                raise InputError(f"n_samples=0 control rows in batch {name}: there is nothing to learn from")
            self.transformers_.append(clone(self.transformer).fit(X[rows], control=control[rows]))
        return self

    def transform(self, X: Any, *, batch: Any = None) -> Any:
        """The rows of `X`, each by what was learnt of its batch.

        Raises
        ------
        InputError
            A batch that was not there, or a transformer that makes fewer features than it gets.
        """
        check_is_fitted(self)
        X = self._checked(X, reset=False)
        codes = known_codes(batch, len(X), self.batches_)
        out = np.empty_like(X)
        for code in np.unique(codes):
            rows = codes == code
            part = self.transformers_[code].transform(X[rows])
            if part.shape[1] != X.shape[1]:
                raise InputError(
                    f"{type(self.transformer).__name__} makes {part.shape[1]} features of {X.shape[1]} in batch "
                    f"{self.batches_[code]}; take one that makes as many as it gets"
                )
            out[rows] = part
        return out

    def fit_transform(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Any:
        """`fit`, then `transform` of the same rows."""
        return self.fit(X, batch=batch, control=control).transform(X, batch=batch)

    def _checked(self, X: Any, *, reset: bool) -> Floats:
        finite = "allow-nan" if get_tags(self).input_tags.allow_nan else True
        checked: Floats = validate_data(self, X, dtype=_FLOATS, ensure_all_finite=finite, reset=reset)
        return checked


class TVN(TransformerMixin, BaseEstimator):
    """Typical variation normalisation: principal components of the controls, whitened batch by batch.

    Features are scaled by the controls, turned into principal components of the controls, and these are centred, scaled
    and whitened in each batch by its own controls, with `ridge` added to the eigenvalues.

    Parameters
    ----------
    n_components : int, optional
        At most as many as the controls span; all of them by default.
    ridge : float, over 0
        In multiples of the mean eigenvalue of each batch, which is 1 after the scaling.

    Attributes
    ----------
    scaler_, pca_, whiten_ : fitted Standardize, PCA and PerBatch(Spherize)

    References
    ----------
    Ando, McLean, Berndl 2017, doi:10.1101/161422. The order of steps and the ridge of 0.5 are those of EFAAR,
    Celik et al. 2024, doi:10.1371/journal.pcbi.1012463. There scaling divides by n and the covariance by n - 1; here
    both divide by n - 1.
    """

    scaler_: Standardize
    pca_: PCA
    whiten_: PerBatch

    def __init__(self, n_components: int | None = None, *, ridge: float = 0.5):
        self.n_components = n_components
        self.ridge = ridge

    def fit(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Self:
        """Learn from the control rows of `X`; arguments and errors as in `PerBatch`."""
        X = validate_data(self, X, dtype=_FLOATS)
        self.scaler_ = Standardize().fit(X, control=control)
        self.pca_ = PCA(self.n_components).fit(self.scaler_.transform(X), control=control)
        whiten = PerBatch(Spherize(method="ZCA-cor", ridge=self.ridge))
        self.whiten_ = whiten.fit(self._components(X), batch=batch, control=control)
        return self

    def transform(self, X: Any, *, batch: Any = None) -> Any:
        """The components of the rows of `X`, whitened by what was learnt of their batch."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=_FLOATS, reset=False)
        return self.whiten_.transform(self._components(X), batch=batch)

    def fit_transform(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Any:
        """`fit`, then `transform` of the same rows."""
        return self.fit(X, batch=batch, control=control).transform(X, batch=batch)

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """PC1, PC2, ..."""
        check_is_fitted(self)
        return self.pca_.get_feature_names_out()

    def _components(self, X: Floats) -> Floats:
        found: Floats = self.pca_.transform(self.scaler_.transform(X))
        return found


class _Whole(OneToOneFeatureMixin, TransformerMixin, BaseEstimator, ABC):
    """A correction of all rows together, so that there is no `transform` of others."""

    def fit(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Self:
        """`fit_transform`, the result thrown away."""
        self.fit_transform(X, batch=batch, well=well, control=control)
        return self

    @abstractmethod
    def fit_transform(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Any:
        """Correct the rows of `X`.

        Parameters
        ----------
        X : array or frame of finite floats, shape (n, n_features)
        y, well : ignored
        batch : labels, shape (n,), optional
            With one batch, or None, there is nothing to correct.
        control : bool array, shape (n,), optional
            The rows that the batches are compared by; all of them if None.
        """

    def _corrected(self, X: Any, batch: Any) -> tuple[Floats, Codes, npt.NDArray[np.str_]]:
        X = validate_data(self, X, dtype=_FLOATS)
        codes, names = batch_codes(batch, len(X))
        self.n_batches_ = len(names)
        return X, codes, names


class ComBat(_Whole):
    """Take each batch's location and scale out of each feature, shrunk towards those of all features.

    Empirical Bayes. Where treatments are not spread evenly over batches it takes a part of them out too, unless
    it learns from `control` rows alone.

    Attributes
    ----------
    n_batches_ : int

    References
    ----------
    Johnson, Li, Rabinovic 2007, doi:10.1093/biostatistics/kxj037; parametric priors, no covariates.
    """

    n_batches_: int

    def fit_transform(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Any:
        """Correct the rows of `X`; arguments as in `Harmony`, but what is taken out is estimated on `control` rows.

        Raises
        ------
        InputError
            A batch with fewer than two control rows, one feature alone, or features constant in all batches.
        """
        X, codes, names = self._corrected(X, batch)
        if len(names) == 1:
            return X.copy()
        rows = np.ones(len(X), bool) if control is None else control_rows(control, len(X))
        if X.shape[1] < 2:
            raise InputError("n_features=1: ComBat learns from many features what a batch does to one")
        counts = np.bincount(codes[rows], minlength=len(names))
        if (few := counts < 2).any():
            raise InputError(f"batch {names[few][0]} has {counts[few][0]} control row(s); ComBat needs 2")
        return combat(X.astype(np.float64), codes, rows).astype(X.dtype)


def combat(rows: Doubles, codes: Codes, reference: npt.NDArray[np.bool_]) -> Doubles:
    """Rows less what ComBat learns of each batch from the reference rows; see `ComBat`.

    Parameters
    ----------
    rows : float64 array, shape (n, n_features)
    codes : int array, shape (n,)
        The batch of each row, 0 to n_batches - 1, each at least twice among the reference.
    reference : bool array, shape (n,)
    """
    known = codes[reference]
    counts = np.bincount(known)
    means = arrays.group_mean(rows[reference], known)
    grand = counts @ means / counts.sum()
    pooled = np.square(rows[reference] - means[known]).mean(axis=0)
    flat = pooled <= np.square(8 * np.finfo(float).eps * np.abs(rows[reference]).max(axis=0))
    scale = np.sqrt(np.where(flat, 1.0, pooled))
    scored = (rows - grand) / scale
    varying = ~flat
    if varying.sum() < 2:
        raise InputError(f"{varying.sum()} feature(s) vary within batches; ComBat needs 2")
    shift, spread = np.zeros_like(means), np.ones_like(means)
    for batch in range(len(counts)):
        part = scored[reference & (codes == batch)][:, varying]
        shift[batch, varying], spread[batch, varying] = _posterior(part)
        shift[batch, flat] = (means[batch, flat] - grand[flat]) / scale[flat]
    return (scored - shift[codes]) / np.sqrt(spread[codes]) * scale + grand


def _posterior(part: Doubles) -> tuple[Doubles, Doubles]:
    """Shift and variance of one batch, feature by feature, each shrunk towards those of all features."""
    n = len(part)
    mean, variance = part.mean(axis=0), part.var(axis=0, ddof=1)
    prior_mean, prior_variance = mean.mean(), mean.var(ddof=1)
    m, s2 = variance.mean(), variance.var(ddof=1)
    if m == 0:
        raise InputError(
            "the control rows of a batch are all equal, so that nothing is known of its scale; leave it out"
        )
    if s2 == 0 or prior_variance == 0:  # all features alike: nothing to weigh against each other
        return mean, variance
    shape, rate = 2 + m**2 / s2, m + m**3 / s2  # of the inverse gamma distribution with this mean and variance
    shift, spread = mean, variance
    for _ in range(1000):
        shifted = (n * prior_variance * mean + spread * prior_mean) / (n * prior_variance + spread)
        spreads = (rate + 0.5 * np.square(part - shifted).sum(axis=0)) / (n / 2 + shape - 1)
        change = max(
            np.abs((shifted - shift) / np.where(shift == 0, 1, shift)).max(),
            np.abs((spreads - spread) / np.where(spread == 0, 1, spread)).max(),  # 0 of what a batch has one value of
        )
        shift, spread = shifted, spreads
        if change < 1e-4:
            break
    return shift, spread


class Harmony(_Whole):
    """Move the batches onto each other, cluster by cluster, so that each cluster holds all batches.

    Made for some tens of principal components; a feature table goes through `PCA` first.

    Parameters
    ----------
    n_clusters : int, optional
        By default a thirtieth of the rows, at most 100.
    theta : float, 0 or more
        How much clusters of one batch are penalised.
    ridge : float, over 0
        Of the regression that says how far a batch is moved; larger moves less.
    sigma : float, over 0
        Width of the soft clusters.
    max_iter : int
    random_state : int
        Of the first clusters and of the order of updates.

    Attributes
    ----------
    n_batches_, n_iter_ : int

    References
    ----------
    Korsunsky et al. 2019, doi:10.1038/s41592-019-0619-0.
    """

    n_batches_: int
    n_iter_: int

    def __init__(
        self,
        n_clusters: int | None = None,
        *,
        theta: float = 2.0,
        ridge: float = 1.0,
        sigma: float = 0.1,
        max_iter: int = 10,
        random_state: int = 0,
    ):
        self.n_clusters = n_clusters
        self.theta = theta
        self.ridge = ridge
        self.sigma = sigma
        self.max_iter = max_iter
        self.random_state = random_state

    def fit_transform(self, X: Any, y: Any = None, *, batch: Any = None, well: Any = None, control: Any = None) -> Any:
        """Correct the rows of `X`.

        Parameters
        ----------
        X : array or frame of finite floats, shape (n, n_features)
        y, well, control : ignored
            All rows count.
        batch : labels, shape (n,), optional
            With one batch, or None, there is nothing to correct.

        Raises
        ------
        InputError
            A row without a batch, or more clusters than rows.
        """
        X, codes, names = self._corrected(X, batch)
        self.n_iter_ = 0
        if len(names) == 1:
            return X.copy()
        n_clusters = self.n_clusters or max(1, min(100, round(len(X) / 30)))
        if n_clusters > len(X):
            raise InputError(f"n_clusters={n_clusters}: there are {len(X)} rows")
        corrected, self.n_iter_ = harmonize(
            X.astype(np.float64),
            codes,
            n_clusters=n_clusters,
            theta=self.theta,
            ridge=self.ridge,
            sigma=self.sigma,
            max_iter=self.max_iter,
            rng=np.random.default_rng(self.random_state),
        )
        return corrected.astype(X.dtype)
