"""What lies near a profile, or opposite to it: neighbours with p, calls of a class, ranks of targets."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import false_discovery_control
from sklearn.isotonic import IsotonicRegression

from cytominer_tools.errors import InputError
from evaluation.metrics import Codes, exclude_codes, label_codes
from evaluation.nearest import nearest_class
from evaluation.similarity import Floats, cosine

_FEW = 10  # calls that a confidence is learned from
_BLOCK = 1024


def nearest_profiles(
    queries: npt.ArrayLike,
    candidates: npt.ArrayLike,
    null: npt.ArrayLike,
    *,
    k: int = 10,
    reverse: bool = False,
    exclude: npt.ArrayLike | None = None,
) -> pd.DataFrame:
    """The k candidates nearest to each query by the cosine, or those that point the other way.

    Parameters
    ----------
    queries, candidates : arrays, shape (n, n_features) and (m, n_features), finite, no row of zeros
    null : float array
        Similarities of pairs that have nothing to do with each other, such as `unrelated_similarities`.
    k : int
    reverse : bool
        The least similar first: what undoes a phenotype.
    exclude : bool array, shape (n, m), optional
        Pairs that are none, such as a query and itself.

    Returns
    -------
    DataFrame, k rows a query at most
        query, rank (from 1), candidate (row numbers), similarity, p (share of unrelated pairs that are as similar, or
        as opposite), q (Benjamini and Hochberg over all candidates of the query).

    Raises
    ------
    InputError
        Widths differ, `k` is below 1, or there is no unrelated pair.
    """
    A, B = np.asarray(queries, dtype=np.float64), np.asarray(candidates, dtype=np.float64)
    if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[1]:
        raise InputError(f"queries of shape {A.shape} and candidates of {B.shape}: expected the same features")
    if k < 1:
        raise InputError(f"k={k}: expected 1 or more neighbours")
    sign = -1.0 if reverse else 1.0
    unrelated = np.sort(sign * np.asarray(null, dtype=np.float64))
    if not len(unrelated):
        raise InputError("there is no unrelated pair that a similarity could be compared with")
    both = cosine(np.concatenate([A, B]))
    rows = []
    for start in range(0, len(A), _BLOCK):
        block = both.tile(slice(start, min(start + _BLOCK, len(A))), slice(len(A), None)).astype(np.float64)
        for at, values in enumerate(block):
            allowed = np.arange(len(B)) if exclude is None else np.flatnonzero(~np.asarray(exclude)[start + at])
            if not len(allowed):
                continue
            score = sign * values[allowed]
            reached = len(unrelated) - np.searchsorted(unrelated, score, side="left")
            p = (1 + reached) / (1 + len(unrelated))
            q = false_discovery_control(p)
            order = np.argsort(-score, kind="stable")[:k]
            rows += [
                (start + at, rank, int(allowed[one]), float(values[allowed[one]]), float(p[one]), float(q[one]))
                for rank, one in enumerate(order, 1)
            ]
    return pd.DataFrame(rows, columns=["query", "rank", "candidate", "similarity", "p", "q"])


def unrelated_similarities(
    X: npt.ArrayLike, labels: npt.ArrayLike, groups: npt.ArrayLike | None = None, *, most: int = 1_000_000
) -> Floats:
    """Similarities of pairs of different known classes, or of all pairs where no two classes are known.

    Parameters
    ----------
    X : array, shape (n, n_features)
    labels : int array, shape (n,)
        Negative: not known.
    groups : int array, shape (n,), optional
        Pairs that share one, such as the compound, are left out.
    most : int
        Rows are thinned, evenly, until there are at most so many pairs.
    """
    near = cosine(X)
    codes = label_codes(labels, near.n)
    outside = exclude_codes(groups, near.n)
    known = np.flatnonzero(codes >= 0)
    if len(np.unique(codes[known])) < 2:
        known, codes = np.arange(near.n), np.arange(near.n)
    step = max(1, int(np.ceil(len(known) / (1 + np.sqrt(2 * most)))))
    chosen = known[::step]
    values = near.take(chosen).rows(0, len(chosen)).astype(np.float64)
    apart = np.triu(codes[chosen][:, None] != codes[chosen][None, :], 1)
    for column in outside[chosen].T:
        apart &= (column[:, None] != column[None, :]) | (column[:, None] < 0)
    return values[apart]


def class_calls(
    X: npt.ArrayLike, labels: npt.ArrayLike, names: Sequence[str], *, exclude: npt.ArrayLike | None = None, k: int = 1
) -> pd.DataFrame:
    """Call the class of every profile by its nearest annotated ones, with the confidence that such calls deserve.

    Confidence is how often calls of such similarity are right among annotated profiles, each called without itself (and
    its compound): a monotone regression of right on similarity, so it never falls as similarity rises.

    Parameters
    ----------
    X : array, shape (n, n_features), finite, no row of zeros
    labels : int array, shape (n,)
        Negative: to be called.
    names : the class of each label
    exclude : int array, shape (n,) or (n, j), optional
        Codes such as the compound; rows that share one do not vote for each other.
    k : int
        Neighbours that vote.

    Returns
    -------
    DataFrame, a row a profile
        known (name or None), called (name or None), similarity (to the nearest voter), confidence (NaN where fewer than
        10 annotated profiles could be called), right (expected, of annotated ones).

    Raises
    ------
    InputError
        No profile is annotated, or `k` is below 1.

    References
    ----------
    Isotonic regression as calibration: Zadrozny & Elkan 2002, doi:10.1145/775047.775151.
    """
    near = cosine(X)
    codes = label_codes(labels, near.n)
    annotated = np.flatnonzero(codes >= 0)
    if not len(annotated):
        raise InputError("no profile is annotated, so that none can be called")
    outside = exclude_codes(exclude, near.n)
    found = nearest_class(near, codes, exclude=outside, k=k)
    called, similarity = found.called.copy(), found.similarity.copy()
    for row in np.flatnonzero(
        codes < 0
    ).tolist():  # such a row is no query of nearest_class: give it a label of its own
        called[row], similarity[row] = _call(near.tile(slice(row, row + 1), slice(None))[0], codes, outside, row, k)
    confidence = np.full(near.n, np.nan)
    tested = ~np.isnan(found.correct)
    if tested.sum() >= _FEW:
        learned = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        learned.fit(found.similarity[tested], found.correct[tested])
        has = ~np.isnan(similarity)
        confidence[has] = learned.predict(similarity[has])
    return pd.DataFrame(
        {
            "known": [names[c] if c >= 0 else None for c in codes],
            "called": [names[c] if c >= 0 else None for c in called],
            "similarity": similarity,
            "confidence": confidence,
            "right": found.correct,
        }
    )


def _call(values: npt.NDArray[np.float32], codes: Codes, outside: Codes, row: int, k: int) -> tuple[int, float]:
    voter = codes >= 0
    for column in outside.T:
        voter &= (column != column[row]) | (column < 0)
    places = np.flatnonzero(voter)
    if not len(places):
        return -1, np.nan
    nearest = places[np.argsort(-values[places], kind="stable")[:k]]
    votes = np.bincount(codes[nearest])
    support = np.bincount(codes[nearest], values[nearest].astype(np.float64))
    best = np.flatnonzero(votes == votes.max())
    return int(best[np.argmax(support[best])]), float(values[nearest[0]])


def target_ranks(similarity: npt.ArrayLike, targets: npt.ArrayLike) -> pd.DataFrame:
    """Where the known targets of each compound stand among all genes.

    Parameters
    ----------
    similarity : array, shape (n_compounds, n_genes)
    targets : bool array, of that shape
        Whether a gene is a target of the compound.

    Returns
    -------
    DataFrame, a row a compound with a target
        compound (row number), targets, best_rank (expected, from 1, over random orders of equal similarities), p (of
        so good a best rank among random genes).

    Raises
    ------
    InputError
        Shapes differ, or a similarity is not finite.
    """
    values, known = np.asarray(similarity, dtype=np.float64), np.asarray(targets, dtype=bool)
    if values.shape != known.shape or values.ndim != 2:
        raise InputError(f"similarity of shape {values.shape} and targets of {known.shape}: expected the same, 2-d")
    if not np.isfinite(values).all():
        raise InputError("similarity: a value is missing or infinite; leave out profiles that have none")
    rows = []
    for at in np.flatnonzero(known.any(axis=1)):
        best = values[at, known[at]].max()
        above, tied = int((values[at] > best).sum()), int((values[at] == best).sum())
        hits = int((values[at, known[at]] == best).sum())
        rank = above + (tied + 1) / (hits + 1)
        count, genes = int(known[at].sum()), values.shape[1]
        # equal similarities count against the target: none of them among the first is all of them among the others
        left = max(genes - above - tied, 0)
        none = np.prod([max(left - j, 0) / (genes - j) for j in range(count)])
        rows.append((int(at), count, rank, float(1 - none)))
    return pd.DataFrame(rows, columns=["compound", "targets", "best_rank", "p"])
