"""Precision at R and enrichment of labels among the most similar pairs; arrays in, numbers or reasons out.

Rows of similarity pass once, in blocks of about 4 million pairs; every labelling (the real one and its permutations) is
read off the same blocks. Peak memory is 100 to 300 MB for a block and its ranking (most where classes are large), plus
12 bytes for each pair above the percentile (0.5 % of n**2 / 2; twice that while they are sorted), plus 20 bytes x n for
each labelling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, floor
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytominer_tools.errors import InputError
from evaluation.similarity import Floats, Floats32, Similarity

Codes = npt.NDArray[np.int64]
R = Literal["matches", "class_size"]

_BLOCK_PAIRS = 1 << 22
_SLACK = 1.5  # times the pairs that are kept may be held before the lowest go


@dataclass(frozen=True)
class PerQuery:
    """One value for each of n rows, each in turn the query.

    Attributes
    ----------
    precision : float array, shape (n,)
        Share of matches among the first R candidates; NaN for a query without a match.
    first_rank : float array, shape (n,)
        Expected rank, from 1, of the first match; NaN for a query without a match.
    n_matches, n_candidates : int arrays, shape (n,)
        Other rows that are not excluded, with the query's label and in all.
    """

    precision: Floats
    first_rank: Floats
    n_matches: Codes
    n_candidates: Codes


@dataclass(frozen=True)
class Enrichment:
    """Odds of a match above the threshold over the odds below it.

    Attributes
    ----------
    odds_ratio : float
        (above_match / above_other) / (below_match / below_other); NaN where undefined.
    reason : str
        Why it is undefined, in words; empty when it is not.
    threshold : float
        The percentile of the similarities of all pairs; NaN without pairs.
    above_match, above_other, below_match, below_other : int
        Unordered pairs; `above` is strictly above the threshold.
    n_pairs : int
        Their sum.
    """

    odds_ratio: float
    reason: str
    threshold: float
    above_match: int
    above_other: int
    below_match: int
    below_other: int
    n_pairs: int


def precision_at_r(
    similarity: Similarity,
    labels: npt.ArrayLike,
    *,
    exclude: npt.ArrayLike | None = None,
    r: R = "matches",
    block_rows: int | None = None,
) -> PerQuery:
    """Share of matches among the R nearest candidates of each query.

    Ties are fair: each value is its expectation over random orders of equally similar candidates (hypergeometric at the
    R-th place), so nothing depends on the order of rows.

    Parameters
    ----------
    similarity : Similarity of n rows
    labels : int array, shape (n,)
        Codes; rows match when theirs are equal. A negative code is a missing label: such a row is no query and never a
        match, but it remains a candidate.
    exclude : int array, shape (n,) or (n, k), optional
        Codes such as the plate; pairs that share any of the k are not candidates. A negative code is shared with none.
    r : "matches" or "class_size"
        R is the number of matches, so that a perfect neighbourhood scores 1, or that number + 1, which counts the query
        itself and caps a class of two at 0.5 (the reading of the LINCS thesis).
    block_rows : int, optional
        Rows of similarity at a time; changes memory, not results.

    Raises
    ------
    InputError
        Lengths differ, the similarity is not finite, or `r` is neither word.
    """
    labels, exclude = label_codes(labels, similarity.n), exclude_codes(exclude, similarity.n)
    neighbours = Neighbours(labels, np.empty((0, similarity.n), dtype=np.int64), exclude, r=r)
    sweep(similarity, exclude, [neighbours], block_rows=block_rows)
    return neighbours.per_query()


def enrichment(
    similarity: Similarity,
    labels: npt.ArrayLike,
    *,
    exclude: npt.ArrayLike | None = None,
    percentile: float = 99.5,
    block_rows: int | None = None,
) -> Enrichment:
    """Odds ratio of sharing a label for the most similar pairs, each unordered pair counted once.

    Parameters
    ----------
    similarity : Similarity of n rows
    labels, exclude, block_rows
        As in `precision_at_r`. A pair with a missing label is a pair that does not match.
    percentile : float, between 0 and 100
        The threshold is this percentile of all candidate pairs (linear interpolation, as np.quantile in float64).

    Raises
    ------
    InputError
        Lengths differ, the similarity is not finite, or the percentile is out of range.
    """
    labels, exclude = label_codes(labels, similarity.n), exclude_codes(exclude, similarity.n)
    top = TopPairs(similarity.n, exclude, percentile=percentile)
    sweep(similarity, exclude, [top], block_rows=block_rows)
    return top.enrichment(labels)


class Consumer(Protocol):
    """Something that reads every block of similarity once."""

    def add(self, start: int, block: Floats32) -> None:
        """Read rows from `start` on; pairs that are not candidates are -inf."""


def sweep(
    similarity: Similarity, exclude: Codes, consumers: Sequence[Consumer], *, block_rows: int | None = None
) -> None:
    """Show every block of rows of `similarity`, with -inf for pairs that are not candidates, to each consumer.

    Raises
    ------
    InputError
        A similarity is not finite.
    """
    n = similarity.n
    step = block_rows or max(1, _BLOCK_PAIRS // max(n, 1))
    for start in range(0, n, step):
        stop = min(start + step, n)
        block = similarity.rows(start, stop)
        if not np.isfinite(block).all():
            bad = start + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
            raise InputError(f"{similarity.name}: row {bad} has a similarity that is not finite; leave that row out")
        for codes in exclude.T:
            block[(codes[start:stop, None] == codes[None, :]) & (codes[start:stop, None] >= 0)] = -np.inf
        block[np.arange(stop - start), np.arange(start, stop)] = -np.inf
        for consumer in consumers:
            consumer.add(start, block)


class Neighbours:
    """Precision at R of one labelling per query, and of many others on average, from one reading of the similarity.

    Parameters
    ----------
    labels : int array, shape (n,)
    others : int array, shape (n_labellings, n)
        Permutations of `labels`, say. Neighbours and their ties are found once; only labels differ.
    exclude : int array, shape (n, k)
    r : "matches" or "class_size"
    """

    def __init__(self, labels: Codes, others: Codes, exclude: Codes, *, r: R = "matches"):
        if r not in ("matches", "class_size"):
            raise InputError(f'r={r!r}: expected "matches" or "class_size"')
        n = len(labels)
        self.labellings = np.concatenate([labels[None, :], others]).astype(np.int32)
        groups = _subsets(exclude)
        self.matches = np.stack([_others_alike(codes, groups) for codes in self.labellings]).astype(np.int32)
        self.candidates = _others_alike(np.zeros(n, dtype=np.int64), groups)
        self.extra = int(r == "class_size")
        self.precision = np.full(self.labellings.shape, np.nan)
        self.first_rank = np.full(n, np.nan)

    def add(self, start: int, block: Floats32) -> None:
        rows = slice(start, start + len(block))
        wanted = self.matches[:, rows] + self.extra
        # the places that count: none beyond the candidates, and as many as any labelling asks for
        places = np.minimum(wanted, self.candidates[rows])
        places[self.matches[:, rows] == 0] = 0
        if not len(block) or not (depth := int(places.max())):
            return
        order, first, last, width = _ranking(block, depth)
        self._first_ranks(rows, block)
        for codes, place, ask, out in zip(self.labellings, places, wanted, self.precision[:, rows], strict=True):
            asked = np.flatnonzero(place)
            if not len(asked):
                continue
            k = place[asked].astype(np.int64)
            at = asked * width + k - 1
            begin, end = first[at], last[at]  # the run of ties that holds place k is begin:end
            # one flat list of the first `end` neighbours of every query, then sums over its stretches
            edges = np.concatenate([[0], np.cumsum(end)])
            flat = np.arange(edges[-1]) + np.repeat(asked * width - edges[:-1], end)
            same = codes[order[flat]] == np.repeat(codes[rows][asked], end)
            total = np.concatenate([[0], np.cumsum(same)])
            sure = total[edges[:-1] + begin] - total[edges[:-1]]
            tied = total[edges[1:]] - total[edges[:-1] + begin]
            out[asked] = (sure + (k - begin) * tied / (end - begin)) / ask[asked]

    def _first_ranks(self, rows: slice, block: Floats32) -> None:
        codes = self.labellings[0]
        same = (codes[rows, None] == codes[None, :]) & (block > -np.inf)
        best = np.where(same, block, -np.inf).max(axis=1, keepdims=True)
        at_best = block == best
        above, tied = (block > best).sum(axis=1), at_best.sum(axis=1)
        hits = (at_best & same).sum(axis=1)
        # the first of m matches among t tied candidates in random order is expected at (t + 1) / (m + 1)
        self.first_rank[rows] = np.where(self.matches[0, rows] > 0, above + (tied + 1) / (hits + 1), np.nan)

    def per_query(self) -> PerQuery:
        """The first labelling, a value for each query."""
        return PerQuery(self.precision[0], self.first_rank, self.matches[0].astype(np.int64), self.candidates)

    def means(self) -> Floats:
        """Mean over queries with a match: first the labels, then each of the others; NaN where there is none."""
        counts = (~np.isnan(self.precision)).sum(axis=1)
        return np.where(counts > 0, np.nansum(self.precision, axis=1) / np.maximum(counts, 1), np.nan)


def _joined(parts: list[Any]) -> Any:
    """The parts as one array; the list is empty afterwards."""
    found = np.concatenate(parts)
    parts.clear()
    return found


class TopPairs:
    """The pairs above a percentile of similarity, found once for any number of labellings.

    Parameters
    ----------
    n : int
    exclude : int array, shape (n, k)
    percentile : float, between 0 and 100
    """

    def __init__(self, n: int, exclude: Codes, *, percentile: float = 99.5):
        if not 0 < percentile < 100:
            raise InputError(f"percentile={percentile}: expected a number between 0 and 100, such as 99.5")
        self.percentile = percentile
        self.groups = _subsets(exclude)
        self.n_pairs = int(_others_alike(np.zeros(n, dtype=np.int64), self.groups).sum()) // 2
        at = percentile / 100 * (self.n_pairs - 1)
        self._below, self._weight = floor(at), at - floor(at)
        # from the order statistic just below the threshold up; only pairs above it need a name, so ties with it may go
        self._keep = self.n_pairs - self._below
        self._bound = -np.inf
        self._parts: list[tuple[Floats32, npt.NDArray[np.int32], npt.NDArray[np.int32]]] = []
        self._held = 0

    def add(self, start: int, block: Floats32) -> None:
        """Read rows from `start` on; only the part right of the diagonal counts."""
        if not self.n_pairs:
            return
        part = np.triu(block[:, start:] > self._bound, k=1)
        i, j = np.nonzero(part)
        values = block[i, j + start]
        self._parts.append((values, (i + start).astype(np.int32), (j + start).astype(np.int32)))
        self._held += len(values)
        if self._held > _SLACK * self._keep:
            self._trim()

    def _trim(self) -> None:
        if len(self._parts) == 1 and self._held <= self._keep:
            return
        # one array at a time: there are millions of pairs, and this is where memory is highest
        columns: list[list[Any]] = [list(column) for column in zip(*self._parts, strict=True)]
        self._parts = []
        values = _joined(columns[0])
        kept = np.ones(len(values), dtype=bool)
        if len(values) > self._keep:
            self._bound = np.partition(values, len(values) - self._keep)[len(values) - self._keep]
            kept = values > self._bound
            kept[np.flatnonzero(values == self._bound)[: self._keep - int(kept.sum())]] = True
        self._parts = [(values[kept], _joined(columns[1])[kept], _joined(columns[2])[kept])]
        self._held = len(self._parts[0][0])

    def pairs(self) -> tuple[float, npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The threshold, NaN without pairs, and the two rows of every pair above it."""
        if not self.n_pairs:
            nothing = np.empty(0, dtype=np.int32)
            return np.nan, nothing, nothing
        self._trim()
        values, i, j = self._parts[0]
        low, high = np.sort(np.partition(values, range(min(2, len(values))))[:2].astype(np.float64))[[0, -1]]
        threshold = float(
            high - (high - low) * (1 - self._weight) if self._weight >= 0.5 else low + (high - low) * self._weight
        )
        above = values > threshold
        return threshold, i[above], j[above]

    def enrichment(self, labels: Codes) -> Enrichment:
        """The odds ratio for one labelling, with its counts."""
        threshold, i, j = self.pairs()
        a, b, c, d = self._table(labels, i, j)
        value = np.nan if self._too_few else odds(a, b, c, d)
        reason = "" if np.isfinite(value) else self._reason(threshold, a, b, c, d)
        return Enrichment(np.nan if reason else value, reason, threshold, a, b, c, d, self.n_pairs)

    def odds_ratios(self, labellings: Codes) -> Floats:
        """The odds ratio for each row of `labellings`: inf where only b * c is 0, NaN for 0 / 0."""
        if self._too_few:
            return np.full(len(labellings), np.nan)
        _, i, j = self.pairs()
        return np.array([odds(*self._table(labels, i, j)) for labels in labellings], dtype=np.float64)

    def robust_odds_ratios(self, labellings: Codes, percentiles: Sequence[float]) -> Floats:
        """Of each row of `labellings` the geometric mean over `percentiles` of odds ratios, half a pair in each count.

        The percentiles rise, and none is below that of the pairs; NaN without pairs.
        """
        if not self.n_pairs:
            return np.full(len(labellings), np.nan)
        self._trim()
        values, i, j = self._parts[0]
        at = np.asarray(percentiles, dtype=np.float64) / 100 * (self.n_pairs - 1)
        low = np.floor(at).astype(np.int64) - self._below
        high = np.minimum(low + 1, len(values) - 1)
        ranked = np.partition(values, np.unique([low, high])).astype(np.float64)
        thresholds = ranked[low] + (ranked[high] - ranked[low]) * (at - np.floor(at))
        level = np.searchsorted(thresholds, values.astype(np.float64)).astype(np.int8)  # thresholds a pair is above
        above = _at_least(np.bincount(level, minlength=len(at) + 1))
        found = np.empty(len(labellings))
        for k, labels in enumerate(labellings):
            match = (labels[i] == labels[j]) & (labels[i] >= 0)
            a = _at_least(np.bincount(level[match], minlength=len(at) + 1))
            matches = int(_others_alike(labels, self.groups).sum()) // 2
            b, c = above - a, matches - a
            counts = np.stack([a, b, c, self.n_pairs - a - b - c]) + 0.5
            found[k] = np.exp(np.log(counts[0] * counts[3] / (counts[1] * counts[2])).mean())
        return found

    @property
    def _too_few(self) -> bool:
        """Whether the share above the percentile is less than one pair."""
        return self.n_pairs * (100 - self.percentile) < 100 - 1e-9

    def _table(self, labels: Codes, i: npt.NDArray[np.int32], j: npt.NDArray[np.int32]) -> tuple[int, int, int, int]:
        matches = int(_others_alike(labels, self.groups).sum()) // 2
        above = int(((labels[i] == labels[j]) & (labels[i] >= 0)).sum())
        return above, len(i) - above, matches - above, self.n_pairs - len(i) - (matches - above)

    def _reason(self, threshold: float, a: int, b: int, c: int, d: int) -> str:
        if not self.n_pairs:
            return "no pairs: fewer than two rows, or every pair is excluded"
        share = 100 - self.percentile
        if self._too_few:
            return (
                f"{_count(self.n_pairs, 'pair')}: the top {round(share, 9):g} % is less than one pair; "
                f"at least {ceil(round(100 / share, 6))} are needed"
            )
        if not a + c:
            return f"none of the {self.n_pairs} pairs shares a label"
        if not b + d:
            return f"all of the {self.n_pairs} pairs share a label"
        if not a + b:
            return f"no pair is above the threshold: the highest similarities tie at {threshold + 0.0:.4g}"
        where = "above the threshold"
        if not b:
            return f"infinite: {f'the one pair {where} is a match' if a == 1 else f'all {a} pairs {where} are matches'}"
        return f"infinite: {f'the one match is {where}' if a == 1 else f'all {a} matches are {where}'}"


def odds(a: int, b: int, c: int, d: int) -> float:
    """(a / b) / (c / d); inf where only b * c is 0, NaN where a * d is 0 too.

    >>> odds(2, 1, 1, 2), odds(1, 0, 1, 2), odds(0, 0, 1, 2)
    (4.0, inf, nan)
    """
    if b * c:
        return a * d / (b * c)
    return np.inf if a * d else np.nan


def _at_least(counts: Codes) -> Codes:
    """How many are at 1 or more, at 2 or more, and so on, from how many are at 0, 1, ..."""
    return np.cumsum(counts[:0:-1])[::-1]


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _ranking(block: Floats32, depth: int) -> tuple[Codes, Codes, Codes, int]:
    """The first `depth` columns of each row, nearest first, and all that tie with the last of them.

    Returns
    -------
    order, first, last : flat int arrays, (rows x width)
        Column; and where the run of equal similarities that it belongs to begins and ends.
    width : int
    """
    far = -block
    edge = np.partition(far, depth - 1, axis=1)[:, depth - 1, None]
    # what is no candidate is inf here; a row with fewer candidates than `depth` never asks beyond them
    row, column = np.nonzero((far <= edge) & (far < np.inf))
    counts = np.bincount(row, minlength=len(far))
    width = max(depth, int(counts.max()))
    # the few that remain of each row, side by side; shorter rows end in inf
    at = row * width + np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    near = np.full((len(far), width), np.inf, dtype=np.float32)
    names = np.zeros(near.shape, dtype=np.int64)
    near.flat[at], names.flat[at] = far[row, column], column
    inner = np.argsort(near, axis=1)
    order, far = np.take_along_axis(names, inner, axis=1), np.take_along_axis(near, inner, axis=1)
    place = np.arange(width)
    new = np.ones(far.shape, dtype=bool)
    new[:, 1:] = far[:, 1:] > far[:, :-1]
    first = np.maximum.accumulate(np.where(new, place, 0), axis=1)
    ends = np.ones(far.shape, dtype=bool)
    ends[:, :-1] = new[:, 1:]
    last = np.minimum.accumulate(np.where(ends, place + 1, width)[:, ::-1], axis=1)[:, ::-1]
    return order.ravel(), first.ravel(), last.ravel(), width


def text_codes(values: pd.Series) -> tuple[Codes, list[Any]]:
    """Codes in the order of the texts of values, whatever that of the rows; -1 for a missing one. And the values."""
    codes, names = pd.factorize(values)
    order = sorted(range(len(names)), key=lambda at: str(names[at]))
    rank = np.empty(len(names) + 1, dtype=np.int64)
    rank[order], rank[-1] = np.arange(len(names)), -1
    return rank[codes], [names[at] for at in order]


def label_codes(labels: npt.ArrayLike, n: int) -> Codes:
    labels = np.asarray(labels)
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise InputError(f"labels: expected {n} integer codes, one a row; got {labels.dtype} of shape {labels.shape}")
    return labels.astype(np.int64)


def exclude_codes(exclude: npt.ArrayLike | None, n: int) -> Codes:
    if exclude is None:
        return np.empty((n, 0), dtype=np.int64)
    exclude = np.asarray(exclude)
    if exclude.ndim == 1:
        exclude = exclude[:, None]
    if exclude.ndim != 2 or len(exclude) != n or exclude.dtype.kind not in "iu":
        raise InputError(f"exclude: expected integer codes of shape ({n}, k); got {exclude.dtype} of {exclude.shape}")
    return exclude.astype(np.int64)


def _subsets(exclude: Codes) -> list[tuple[int, Codes]]:
    """Each subset of the columns, as (sign, one code a row; -1 where any of its columns is negative)."""
    groups = []
    for size in range(exclude.shape[1] + 1):
        for chosen in combinations(range(exclude.shape[1]), size):
            part = exclude[:, list(chosen)]
            codes = np.zeros(len(exclude), dtype=np.int64)
            if size and len(part):
                codes = np.unique(part, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
            codes[(part < 0).any(axis=1)] = -1
            groups.append(((-1) ** size, codes))
    return groups


def _others_alike(labels: npt.NDArray[np.integer], groups: list[tuple[int, Codes]]) -> Codes:
    """For each row the number of other rows with its label that share no exclude code: inclusion and exclusion."""
    total = np.zeros(len(labels), dtype=np.int64)
    if not len(labels):
        return total
    for sign, codes in groups:
        known = (labels >= 0) & (codes >= 0)
        both = labels[known] * (codes.max() + 1) + codes[known]
        _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
        total[known] += sign * (counts[inverse.reshape(-1)] - 1)
    return total
