"""Where matches stand: above a percentile of all pairs, or among the neighbours of each query, at every depth."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytominer_tools.errors import InputError
from evaluation.metrics import Codes, exclude_codes, label_codes, sweep
from evaluation.similarity import Floats, Floats32, Similarity

_BLOCK_PAIRS = 1 << 22


class PairOrder:
    """Order statistics of the similarities of unordered pairs, from two readings and no list of pairs.

    Parameters
    ----------
    similarity : Similarity of n rows
    labels : int array, shape (n,)
        Negative: missing, which matches nothing.
    among : "all" or "others"
        The pairs that are ordered: all, or those that do not match.
    exclude : int array, shape (n, k), optional
        Pairs that share a code of it (negative ones aside) do not exist.

    Attributes
    ----------
    n : int
        Number of pairs that are ordered.
    matched : float32 array
        Similarity of each matching pair.
    rows : int array
        The first row of each matching pair.
    """

    def __init__(
        self, similarity: Similarity, labels: Codes, *, among: Literal["all", "others"], exclude: Codes | None = None
    ):
        self.similarity, self.labels, self.among, self.exclude = similarity, labels, among, exclude
        self._counts = np.zeros(1 << 16, dtype=np.int64)
        matched, rows = [], []
        for start, values, match in self._blocks():
            at = np.nonzero(match)
            matched.append(values[at])
            rows.append(at[0] + start)
            chosen = values[values > -np.inf] if among == "all" else values[(values > -np.inf) & ~match]
            self._counts += np.bincount(_keys(chosen), minlength=1 << 16)
        self.matched = np.concatenate(matched) if matched else np.empty(0, dtype=np.float32)
        self.rows = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
        self.n = int(self._counts.sum())

    def _blocks(self):  # type: ignore[no-untyped-def]
        n = self.similarity.n
        step = max(1, _BLOCK_PAIRS // max(n, 1))
        for start in range(0, n, step):
            stop = min(start + step, n)
            values = self.similarity.tile(slice(start, stop), slice(start, None))
            if not np.isfinite(values).all():
                raise InputError(
                    f"{self.similarity.name}: a similarity is not finite; leave out the rows that cause it"
                )
            values[:, : stop - start][np.tri(stop - start, dtype=bool)] = -np.inf
            if self.exclude is not None:
                for codes in self.exclude.T:
                    same = (codes[start:stop, None] == codes[None, start:]) & (codes[start:stop, None] >= 0)
                    values[same] = -np.inf
            match = self.labels[start:stop, None] == self.labels[None, start:]
            match &= (values > -np.inf) & (self.labels[start:stop, None] >= 0)
            yield start, values, match

    def marks(self, shares: Sequence[float], *, twice: bool = False) -> tuple[Floats, Codes]:
        """Quantiles (linear), and how many pairs are strictly above each.

        Parameters
        ----------
        shares : numbers from 0 to 1
        twice : bool
            As if each pair were there as (a, b) and as (b, a).
        """
        if not self.n:
            return np.full(len(shares), np.nan), np.zeros(len(shares), dtype=np.int64)
        at = np.asarray(shares, dtype=np.float64) * ((2 if twice else 1) * self.n - 1)
        low = np.floor(at).astype(np.int64)
        weight = at - low
        high = np.minimum(low + 1, (2 if twice else 1) * self.n - 1)
        if twice:
            low, high = low // 2, high // 2
        before = np.cumsum(self._counts) - self._counts
        bins = np.unique(np.searchsorted(before + self._counts, np.concatenate([low, high]), side="right"))
        wanted = np.zeros(1 << 16, dtype=bool)
        wanted[bins] = True
        parts: dict[int, list[Floats32]] = {int(b): [] for b in bins}
        for _, values, match in self._blocks():
            chosen = values[values > -np.inf] if self.among == "all" else values[(values > -np.inf) & ~match]
            keys = _keys(chosen)
            near = wanted[keys]
            chosen, keys = chosen[near], keys[near]
            for b in bins:
                parts[int(b)].append(chosen[keys == b])
        ranked = {b: np.sort(np.concatenate(part)) for b, part in parts.items()}

        def value(place: int) -> tuple[float, int]:
            b = int(np.searchsorted(before + self._counts, place, side="right"))
            found = ranked[b][place - before[b]]
            return float(found), int(before[b] + np.searchsorted(ranked[b], found, side="right"))

        thresholds, above = np.empty(len(at)), np.empty(len(at), dtype=np.int64)
        for k, (i, j, share) in enumerate(zip(low.tolist(), high.tolist(), weight.tolist(), strict=True)):
            (small, upto), (large, upto_large) = value(i), value(j)
            thresholds[k] = small + (large - small) * share
            above[k] = self.n - (upto_large if thresholds[k] >= large else upto)
        return thresholds, above


def _keys(values: Floats32) -> npt.NDArray[np.uint16]:
    """The upper half of a float as a number of the same order."""
    bits = (values + np.float32(0)).view(np.uint32)
    flip = np.where(bits >> np.uint32(31), np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    return ((bits ^ flip) >> np.uint32(16)).astype(np.uint16)


def enrichment_curve(
    similarity: Similarity,
    labels: npt.ArrayLike,
    percentiles: Sequence[float] = (97.5, 98.0, 98.5, 99.0, 99.5),
    *,
    exclude: npt.ArrayLike | None = None,
) -> pd.DataFrame:
    """Odds of a match above each percentile over the odds below, plain and robust.

    Parameters
    ----------
    similarity : Similarity of n rows
    labels, exclude
        As in `evaluation.metrics.precision_at_r`.
    percentiles : numbers between 0 and 100

    Returns
    -------
    DataFrame, a row a percentile
        percentile, threshold, odds_ratio (NaN where a count it is divided by is 0), robust (half a pair is added to
        each of the four counts, so that it is always a number), robust_low and robust_high (its 95 % interval if pairs
        were independent, which they are not: the true one is wider), above_match, above_other, below_match,
        below_other.

    Raises
    ------
    InputError
        A percentile is out of range.

    References
    ----------
    Haldane 1956 and Anscombe 1956, doi:10.1111/j.1469-1809.1955.tb01285.x and doi:10.1093/biomet/43.3-4.461.
    """
    if bad := [p for p in percentiles if not 0 < p < 100]:
        raise InputError(f"percentiles: {bad[0]} is not between 0 and 100, such as 99.5")
    labels = label_codes(labels, similarity.n)
    pairs = PairOrder(similarity, labels, among="all", exclude=exclude_codes(exclude, similarity.n))
    thresholds, above = pairs.marks([p / 100 for p in percentiles])
    a = np.array([(pairs.matched > t).sum() for t in thresholds], dtype=np.float64)
    b = above - a
    c = len(pairs.matched) - a
    d = pairs.n - a - b - c
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = np.where(b * c > 0, a * d / (b * c), np.nan)
    counts = np.stack([a, b, c, d]) + 0.5
    robust = np.log(counts[0] * counts[3] / (counts[1] * counts[2]))
    spread = 1.959963984540054 * np.sqrt((1 / counts).sum(axis=0))
    if not pairs.n:
        robust = spread = np.full(len(a), np.nan)
    table = {"percentile": list(percentiles), "threshold": thresholds, "odds_ratio": plain, "robust": np.exp(robust)}
    table |= {"robust_low": np.exp(robust - spread), "robust_high": np.exp(robust + spread)}
    names = ("above_match", "above_other", "below_match", "below_other")
    return pd.DataFrame(table | {n: v.astype(np.int64) for n, v in zip(names, (a, b, c, d), strict=True)})


def robust_enrichment(curve: pd.DataFrame) -> float:
    """The geometric mean over percentiles of `enrichment_curve`'s robust odds ratio: one number, always defined.

    >>> robust_enrichment(pd.DataFrame({"robust": [2.0, 8.0]}))
    4.0
    """
    return float(np.exp(np.log(curve["robust"]).mean()))


@dataclass(frozen=True)
class MatchRanks:
    """Where every match stands among the candidates of its query, the nearest first.

    Attributes
    ----------
    query : int array, shape (n_matches,)
        Rows, not decreasing.
    above : int array, shape (n_matches,)
        Candidates that are strictly more similar.
    level : int array, shape (n_matches,)
        Candidates that are as similar, the match itself among them: 1 without ties.
    n_candidates : int array, shape (n,)
        Of each row.
    """

    query: Codes
    above: Codes
    level: Codes
    n_candidates: Codes

    @cached_property
    def n_matches(self) -> Codes:
        """Of each row."""
        return np.bincount(self.query, minlength=len(self.n_candidates))

    def within(self, depth: npt.ArrayLike) -> Floats:
        """Expected number of matches among the first `depth` (one for all rows or one a row) candidates of each row."""
        places = np.broadcast_to(np.asarray(depth, dtype=np.float64), self.n_candidates.shape)[self.query]
        share = np.clip((places - self.above) / self.level, 0, 1)
        return np.bincount(self.query, share, minlength=len(self.n_candidates)).astype(np.float64)

    def take(self, rows: npt.ArrayLike) -> "MatchRanks":
        """Only some queries, among the same candidates (how a subset is averaged: `rows` are booleans)."""
        kept = np.asarray(rows, dtype=bool)
        chosen = kept[self.query]
        return MatchRanks(
            self.query[chosen], self.above[chosen], self.level[chosen], np.where(kept, self.n_candidates, 0)
        )


class _Ranked:
    """Reads `MatchRanks` off blocks of rows."""

    def __init__(self, labels: Codes):
        self.labels = labels
        self.parts: list[tuple[Codes, Codes, Codes]] = []
        self.candidates = np.zeros(len(labels), dtype=np.int64)

    def add(self, start: int, block: Floats32) -> None:
        codes = self.labels[start : start + len(block)]
        candidate = block > -np.inf
        self.candidates[start : start + len(block)] = candidate.sum(axis=1)
        match = (codes[:, None] == self.labels[None, :]) & candidate & (codes[:, None] >= 0)
        row, column = np.nonzero(match)
        values = block[row, column]
        edges = np.searchsorted(row, np.arange(len(block) + 1))
        above, level = np.empty(len(row), dtype=np.int64), np.empty(len(row), dtype=np.int64)
        ranked = np.sort(block, axis=1)
        for at in np.flatnonzero(np.diff(edges)):
            mine = slice(edges[at], edges[at + 1])
            right = np.searchsorted(ranked[at], values[mine], side="right")
            above[mine] = ranked.shape[1] - right
            level[mine] = right - np.searchsorted(ranked[at], values[mine], side="left")
        self.parts.append((row + start, above, level))


def match_ranks(similarity: Similarity, labels: npt.ArrayLike, *, exclude: npt.ArrayLike | None = None) -> MatchRanks:
    """The place of every match in the list of its query's neighbours, from which precision, recall and hits follow.

    Parameters
    ----------
    similarity : Similarity of n rows
    labels, exclude
        As in `evaluation.metrics.precision_at_r`.
    """
    consumer = _Ranked(label_codes(labels, similarity.n))
    sweep(similarity, exclude_codes(exclude, similarity.n), [consumer])
    if not consumer.parts:
        nothing = np.empty(0, dtype=np.int64)
        return MatchRanks(nothing, nothing, nothing, consumer.candidates)
    query, above, level = (np.concatenate(part) for part in zip(*consumer.parts, strict=True))
    return MatchRanks(query, above, level, consumer.candidates)


def precision_recall_curve(ranks: MatchRanks, depths: Sequence[int] = (1, 5, 10, 20, 50)) -> pd.DataFrame:
    """Precision and recall at each depth, the mean over queries with a match.

    Returns
    -------
    DataFrame, a row a depth
        k, precision, recall, chance (the precision of random order), n (queries with a match); NaN without any.

    Raises
    ------
    InputError
        A depth is below 1.
    """
    if bad := [k for k in depths if k < 1]:
        raise InputError(f"depths: {bad[0]} is below 1")
    has = ranks.n_matches > 0
    matches, candidates = ranks.n_matches[has], ranks.n_candidates[has]
    rows = []
    for k in depths:
        hits = ranks.within(k)[has]
        chance = np.minimum(k, candidates) * matches / np.maximum(candidates, 1) / k
        values = [float(v.mean()) if len(v) else np.nan for v in (hits / k, hits / np.maximum(matches, 1), chance)]
        rows.append({"k": k, **dict(zip(("precision", "recall", "chance"), values, strict=True)), "n": int(has.sum())})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class HitCurve:
    """Hit@k: the places of all matches of all queries together.

    Attributes
    ----------
    histogram : DataFrame
        first (place of the bin's first neighbour, from 1), hits (expected, where ties straddle bins).
    curve : DataFrame
        share (of the list of neighbours, 0 to 1), excess: matches up to there beyond those of random order, as a
        share of all matches; 0 at both ends, and everywhere for random order.
    s20 : float
        5 times the area under the first fifth of `curve`: 0 for random order, 0.9 at best.
    first : dict
        Share of matches within the first 0.01, 0.05 and 0.2 of the list.
    n : int
        Matches.
    """

    histogram: pd.DataFrame
    curve: pd.DataFrame
    s20: float
    first: dict[float, float]
    n: int


def hit_curve(ranks: MatchRanks, *, bin_width: int = 5, points: int = 101) -> HitCurve:
    """Histogram, normalised accumulated curve and single number of hit@k; NaN without matches.

    Each match counts as spread over the places that its ties allow, so that random order is a straight line.

    Parameters
    ----------
    ranks : MatchRanks
    bin_width : int
        Places a bin of the histogram.
    points : int
        Of the curve, both ends included.
    """
    if bin_width < 1 or points < 2:
        raise InputError(f"bin_width={bin_width}, points={points}: expected at least 1 and 2")
    n = len(ranks.query)
    edges = np.arange(0, int(ranks.n_candidates.max(initial=0)) + bin_width, bin_width)
    upto = np.array([np.clip((e - ranks.above) / ranks.level, 0, 1).sum() for e in edges])
    length = ranks.n_candidates[ranks.query]
    low, high = ranks.above / np.maximum(length, 1), (ranks.above + ranks.level) / np.maximum(length, 1)

    def share(x: float) -> float:
        return float(np.clip((x - low) / (high - low), 0, 1).mean()) if n else np.nan

    def area(x: float) -> float:
        ramp = (np.maximum(x - low, 0) ** 2 - np.maximum(x - high, 0) ** 2) / (2 * (high - low))
        return float(ramp.mean()) if n else np.nan

    grid = np.linspace(0, 1, points)
    return HitCurve(
        pd.DataFrame({"first": edges[:-1] + 1, "hits": np.diff(upto)}),
        pd.DataFrame({"share": grid, "excess": [share(x) - x for x in grid]}),
        (area(0.2) - 0.2**2 / 2) / 0.2,
        {x: share(x) for x in (0.01, 0.05, 0.2)},
        n,
    )


def percent_replicating(
    similarity: Similarity,
    labels: npt.ArrayLike,
    *,
    exclude: npt.ArrayLike | None = None,
    draws: int = 1000,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Median similarity inside each class, and the 95th percentile of it for as many rows of different classes.

    The mean of the column `replicates` is percent replicating; with MOAs as labels, consensus profiles as rows and the
    compound in `exclude` it is percent matching.

    Parameters
    ----------
    similarity : Similarity of n rows
    labels, exclude
        As in `evaluation.metrics.precision_at_r`.
    draws : int
        Random sets behind a percentile, one set of them for each size of class; which they are depends on the order of
        rows.

    Returns
    -------
    DataFrame, a row a class with a pair
        label (its code), n (rows), median, null_95 (NaN where there are fewer classes than rows), replicates (bool).

    Raises
    ------
    InputError
        `draws` is below 20.
    """
    if draws < 20:
        raise InputError(f"draws={draws}: a 95th percentile needs at least 20")
    labels, outside = label_codes(labels, similarity.n), exclude_codes(exclude, similarity.n)

    def median(rows: Codes) -> float:
        near = similarity.take(rows).rows(0, len(rows)).astype(np.float64)
        kept = np.triu(np.ones(near.shape, dtype=bool), 1)
        for codes in outside[rows].T:
            kept &= (codes[:, None] != codes[None, :]) | (codes[:, None] < 0)
        return float(np.median(near[kept])) if kept.any() else np.nan

    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    by_class = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[by_class], classes)
    marks: dict[int, float] = {}
    rows = []
    for label, size in zip(classes.tolist(), counts.tolist(), strict=True):
        value = median(np.flatnonzero(labels == label)) if size > 1 else np.nan
        if np.isnan(value):
            continue
        if size not in marks:
            marks[size] = np.nan
            if size <= len(classes):
                null = []
                for _ in range(draws):
                    chosen = rng.permutation(len(classes))[:size]
                    null.append(median(by_class[first[chosen] + rng.integers(0, counts[chosen])]))
                marks[size] = float(np.nanquantile(null, 0.95)) if not np.isnan(null).all() else np.nan
        rows.append({"label": label, "n": size, "median": value, "null_95": marks[size]})
    table = pd.DataFrame(rows, columns=["label", "n", "median", "null_95"])
    return table.assign(replicates=table["median"] > table["null_95"])
