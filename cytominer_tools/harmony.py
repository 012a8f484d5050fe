"""Harmony's arithmetic: soft clusters that hold all batches, and what moves each batch onto the others in them."""

import numpy as np
from sklearn.cluster import KMeans

from cytominer_tools.arrays import Codes, Doubles

_ROUNDS = 20  # of soft k-means in each iteration, at most
_WINDOW = 3  # of them whose objectives are compared
_CLUSTERED, _MOVED = 1e-5, 1e-4  # relative changes of the objective that count as none
_BLOCKS = 20  # the rows are assigned in as many parts, so that each part sees where the others went


def harmonize(
    rows: Doubles,
    codes: Codes,
    *,
    n_clusters: int,
    theta: float,
    ridge: float,
    sigma: float,
    max_iter: int,
    rng: np.random.Generator,
) -> tuple[Doubles, int]:
    """Rows with their batches moved onto each other, and after how many iterations.

    Parameters
    ----------
    rows : float64 array, shape (n, n_features)
    codes : int array, shape (n,)
        The batch of each row, 0 to n_batches - 1.
    n_clusters, theta, ridge, sigma, max_iter
        As in `cytominer_tools.Harmony`.

    References
    ----------
    Korsunsky et al. 2019, doi:10.1038/s41592-019-0619-0, algorithms 1 to 3 of the supplement.
    """
    batches = np.eye(int(codes.max()) + 1)[codes]  # (n, b)
    share = batches.mean(axis=0)
    unit = _unit(rows)
    clusters = KMeans(n_clusters, n_init=4, max_iter=25, random_state=int(rng.integers(2**31)))
    centres = _unit(clusters.fit(unit).cluster_centers_)
    distance = 2 * (1 - unit @ centres.T)
    soft = _normalised(-distance / sigma)
    corrected, last = rows, np.inf
    for done in range(1, max_iter + 1):
        soft, objective = _cluster(unit, soft, batches, share, theta, sigma, rng)
        corrected = rows - _shift(rows, soft, batches, ridge)
        unit = _unit(corrected)
        if abs(last - objective) < _MOVED * abs(last) and np.isfinite(last):
            return corrected, done
        last = objective
    return corrected, max_iter


def _cluster(
    unit: Doubles, soft: Doubles, batches: Doubles, share: Doubles, theta: float, sigma: float, rng: np.random.Generator
) -> tuple[Doubles, float]:
    """Soft assignment (n, k) of rows to clusters that avoid holding one batch alone, and its objective."""
    soft = soft.copy()
    objectives: list[float] = []
    for _ in range(_ROUNDS):
        distance = 2 * (1 - unit @ _unit(soft.T @ unit).T)
        expected, observed = np.outer(soft.sum(axis=0), share), soft.T @ batches  # (k, b)
        for block in np.array_split(rng.permutation(len(unit)), _BLOCKS):
            expected -= np.outer(soft[block].sum(axis=0), share)
            observed -= soft[block].T @ batches[block]
            penalty = theta * np.log((expected + 1) / (observed + 1))
            soft[block] = _normalised(-distance[block] / sigma + batches[block] @ penalty.T)
            expected += np.outer(soft[block].sum(axis=0), share)
            observed += soft[block].T @ batches[block]
        entropy = sigma * (soft * np.log(np.maximum(soft, np.finfo(float).tiny))).sum()
        mixing = sigma * theta * (observed * np.log((observed + 1) / (expected + 1))).sum()
        objectives.append(float((soft * distance).sum() + entropy + mixing))
        if len(objectives) > _WINDOW:
            before, now = sum(objectives[-_WINDOW - 1 : -1]), sum(objectives[-_WINDOW:])
            if abs(before - now) < _CLUSTERED * abs(before):
                break
    return soft, objectives[-1]


def _shift(rows: Doubles, soft: Doubles, batches: Doubles, ridge: float) -> Doubles:
    """How far each row is off by its batch: a ridge regression in each cluster, weighted by the assignment."""
    design = np.concatenate([np.ones((len(rows), 1)), batches], axis=1)
    penalty = ridge * np.eye(design.shape[1])
    penalty[0, 0] = 0  # what all batches share is not shrunk, nor taken out
    out = np.zeros_like(rows)
    for weights in soft.T:
        weighted = design * weights[:, None]
        effects = np.linalg.solve(weighted.T @ design + penalty, weighted.T @ rows)
        out += weighted[:, 1:] @ effects[1:]
    return out


def _normalised(logits: Doubles) -> Doubles:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    normalised: Doubles = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def _unit(rows: Doubles) -> Doubles:
    """Rows of length 1; a row of zeros stays one."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Doubles = rows / np.where(length == 0, 1, length)
    return unit
