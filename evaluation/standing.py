"""Scores that follow from the places of matches, of one labelling and of many others by one reading of similarity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from evaluation.curves import MatchRanks
from evaluation.metrics import Codes
from evaluation.precision import expected_ap
from evaluation.similarity import Floats, Floats32

_FIRST = 0.2  # the share of the list that hit_s20 reads


@dataclass(frozen=True)
class RankMetric:
    """A score of the places of a query's matches.

    Attributes
    ----------
    setting : str
        What a table says about it.
    per_query : function of MatchRanks
        A value for each row, whatever it is for a row without a match.
    chance : function of two int arrays
        What is expected of random order, a value a query, from the numbers of its matches and of its candidates.
    by_match : bool
        The mean is over matches, not over queries.
    """

    setting: str
    per_query: Callable[[MatchRanks], Floats]
    chance: Callable[[Codes, Codes], Floats]
    by_match: bool = False


def average_precisions(ranks: MatchRanks) -> Floats:
    """Average precision of each query; equally similar candidates count as in random order.

    Source: McSherry & Najork 2008, doi:10.1007/978-3-540-78646-7_38.
    """
    order = np.lexsort((ranks.above, ranks.query))
    query, above, level = ranks.query[order], ranks.above[order], ranks.level[order]
    counts = ranks.n_matches
    if not len(query):
        return np.full(len(counts), np.nan)
    places = np.arange(len(query))
    nth = places - (np.cumsum(counts) - counts)[query]
    precision = (nth + 1) / (above + 1)
    if (tied := np.flatnonzero(level > 1)).size:
        same = (np.diff(query[tied]) == 0) & (np.diff(above[tied]) == 0)
        for run in np.split(tied, np.flatnonzero(~same) + 1):
            place = np.arange(int(level[run[0]]))
            hits = nth[run[0]] + 1 + place * (len(run) - 1) / (len(place) - 1)
            precision[run] = (hits / (above[run[0]] + 1 + place)).mean()
    with np.errstate(invalid="ignore"):
        return np.bincount(query, precision, minlength=len(counts)) / counts


def _precision(ranks: MatchRanks, k: int) -> Floats:
    return ranks.within(k) / k


def _recall(ranks: MatchRanks, k: int) -> Floats:
    with np.errstate(invalid="ignore"):
        return ranks.within(k) / ranks.n_matches


def _random_precision(matches: Codes, candidates: Codes, k: int) -> Floats:
    return np.minimum(k, candidates) * matches / candidates / k


def _random_recall(matches: Codes, candidates: Codes, k: int) -> Floats:
    return np.minimum(k, candidates) / candidates


def _s20(ranks: MatchRanks) -> Floats:
    """Of each query what `evaluation.curves.hit_curve` calls s20."""
    length = np.maximum(ranks.n_candidates[ranks.query], 1)
    low, high = ranks.above / length, (ranks.above + ranks.level) / length
    ramp = (np.maximum(_FIRST - low, 0) ** 2 - np.maximum(_FIRST - high, 0) ** 2) / (2 * (high - low))
    counts = ranks.n_matches
    with np.errstate(invalid="ignore"):
        area = np.bincount(ranks.query, ramp, minlength=len(counts)) / counts / _FIRST
    return np.round(area - _FIRST / 2, 14)  # what random order scores is 0, not 1e-17


RANKED = {
    "mean_average_precision": RankMetric("ties averaged", average_precisions, expected_ap),
    "nearest": RankMetric("k = 1", partial(_precision, k=1), partial(_random_precision, k=1)),
    "hit_s20": RankMetric("first 20 %", _s20, lambda matches, candidates: np.zeros(len(matches)), by_match=True),
    "precision_at_5": RankMetric("k = 5", partial(_precision, k=5), partial(_random_precision, k=5)),
    "precision_at_10": RankMetric("k = 10", partial(_precision, k=10), partial(_random_precision, k=10)),
    "recall_at_5": RankMetric("k = 5", partial(_recall, k=5), partial(_random_recall, k=5)),
    "recall_at_10": RankMetric("k = 10", partial(_recall, k=10), partial(_random_recall, k=10)),
}


class Standing:
    """Reads `metrics` of every labelling off blocks of rows; a consumer of `evaluation.metrics.sweep`.

    Parameters
    ----------
    labellings : int array, shape (n_labellings, n)
        Negative: missing, which matches nothing.
    metrics : names in `RANKED`

    Attributes
    ----------
    values : float array, shape (n_metrics, n_labellings, n)
        NaN for a query without a match.
    matches : int array, shape (n_labellings, n)
    """

    def __init__(self, labellings: Codes, metrics: Sequence[str]):
        self.metrics = [RANKED[name] for name in metrics]
        self.values = np.full((len(metrics), *labellings.shape), np.nan)
        self.matches = np.zeros(labellings.shape, dtype=np.int64)
        self.labellings = labellings
        self._members = []
        for codes in labellings:
            order = np.argsort(codes, kind="stable")
            sizes = np.bincount(codes + 1, minlength=2)  # a missing label is the class before the first
            self._members.append((order, np.cumsum(sizes) - sizes, sizes))

    def add(self, start: int, block: Floats32) -> None:
        rows = slice(start, start + len(block))
        above, level = _places(block)
        candidates = np.count_nonzero(block > -np.inf, axis=1)
        for at, (codes, (order, first, sizes)) in enumerate(zip(self.labellings, self._members, strict=True)):
            own = codes[rows] + 1
            counts = np.where(own > 0, sizes[own], 0)
            query = np.repeat(np.arange(len(block)), counts)
            within = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
            partner = order[np.repeat(first[own], counts) + within]
            is_candidate = block[query, partner] > -np.inf
            query, partner = query[is_candidate], partner[is_candidate]
            ranks = MatchRanks(query, above[query, partner], level[query, partner], candidates)
            has = ranks.n_matches > 0
            self.matches[at, rows] = ranks.n_matches
            for out, metric in zip(self.values, self.metrics, strict=True):
                out[at, rows] = np.where(has, metric.per_query(ranks), np.nan)

    def means(self) -> Floats:
        """Shape (n_metrics, n_labellings): over queries with a match, or over matches; NaN where there is none."""
        found = np.full(self.values.shape[:2], np.nan)
        for k, metric in enumerate(self.metrics):
            known = ~np.isnan(self.values[k])
            weights = np.where(known, self.matches if metric.by_match else 1, 0)
            total = weights.sum(axis=1)
            sums = (np.where(known, self.values[k], 0) * weights).sum(axis=1)
            found[k] = np.where(total > 0, sums / np.maximum(total, 1), np.nan)
        return found


def _places(block: Floats32) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each pair how many of its row are more similar, and how many are as similar, itself included."""
    order = np.argsort(-block, axis=1)
    ranked = np.take_along_axis(block, order, axis=1)
    new = np.ones(block.shape, dtype=bool)
    new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    place = np.arange(block.shape[1], dtype=np.int32)
    first = np.maximum.accumulate(np.where(new, place, 0), axis=1)
    ends = np.ones(block.shape, dtype=bool)
    ends[:, :-1] = new[:, 1:]
    last = np.minimum.accumulate(np.where(ends, place + 1, len(place))[:, ::-1], axis=1)[:, ::-1]
    above, level = np.empty_like(order), np.empty_like(order)
    np.put_along_axis(above, order, first, axis=1)
    np.put_along_axis(level, order, last - first, axis=1)
    return above, level
