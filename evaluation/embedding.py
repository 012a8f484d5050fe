"""Profiles as points in a few dimensions, to be looked at."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cytominer_tools.errors import InputError
from evaluation.similarity import Floats


@dataclass(frozen=True)
class Components:
    """Principal components.

    Attributes
    ----------
    points : float array, shape (n, k)
    explained : float array, shape (k,)
        The share of the variance of all features that each holds.
    """

    points: Floats
    explained: Floats


def principal_components(X: npt.ArrayLike, k: int = 4) -> Components:
    """The first `k` principal components, or as many as there are.

    Parameters
    ----------
    X : array, shape (n, n_features), finite
    k : int

    Raises
    ------
    InputError
        Fewer than three rows, all are equal, a value is not finite, or `k` is below 1.

    Notes
    -----
    A component points where its largest loading is positive, so that the same profiles are the same picture.
    """
    rows: Floats = np.asarray(X, dtype=np.float64)
    if k < 1 or not np.isfinite(rows).all():
        raise InputError(f"k={k}: expected 1 or more" if k < 1 else "a profile is not finite; leave it out or fill in")
    if len(rows) < 3:
        raise InputError(f"{len(rows)} profiles: components need at least 3")
    unit = np.abs(rows).max(initial=0) or 1.0  # squares of very large or small numbers are no numbers
    rows = rows / unit
    rows = rows - rows.mean(axis=0)
    total = float((rows**2).sum())
    if total == 0:
        raise InputError("all profiles are equal, so they have no components")
    wide = rows.shape[1] > len(rows)
    sizes, vectors = np.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    sizes, vectors = sizes[::-1][:k], vectors[:, ::-1][:, :k]
    kept = sizes > 1e-12 * sizes[0]
    sizes, vectors = sizes[kept], vectors[:, kept]
    loadings = rows.T @ vectors if wide else vectors
    signs = np.sign(loadings[np.abs(loadings).argmax(axis=0), np.arange(len(sizes))])
    points = vectors * np.sqrt(sizes) if wide else rows @ vectors
    return Components(points * signs * unit, sizes / total)


def neighbour_map(X: npt.ArrayLike, *, seed: int = 0) -> Floats:
    """UMAP of the profiles by cosine, shape (n, 2): near points are alike, far ones tell nothing by their distance.

    Raises
    ------
    InputError
        umap-learn is not installed, a value is not finite, or there are fewer than five rows.
    """
    rows = np.asarray(X, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise InputError("a profile is not finite; leave it out or fill in")
    if len(rows) < 5:
        raise InputError(f"{len(rows)} profiles: UMAP needs at least 5")
    try:
        # takes seconds: umap imports TensorFlow where that is installed, for a class that is not used here; it has no
        # switch for it, and to hide a module from one import hides it from other threads too
        from umap import UMAP
    except ImportError as error:
        raise InputError("UMAP: install the extra umap, `pip install 'deepprofile[umap]'`") from error
    near = min(15, len(rows) - 1)
    # one thread: only then does a seed give the same map
    fitted = UMAP(n_components=2, n_neighbors=near, metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(fitted.fit_transform(rows), dtype=np.float64)
