"""Mean average precision of groups that mean nothing: profiles change places with their negatives, all ways or some."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import combinations
from math import comb
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from evaluation.metrics import Codes
from evaluation.similarity import Floats, Similarity

_ENUMERATED = 50_000  # exchanges that are tried one and all
_POOL = 1024  # profiles that random exchanges draw from where there are more
_CHUNK = 1 << 22  # numbers held at a time

Counts = npt.NDArray[np.int32]


class PairRules(Protocol):
    """Who is a positive pair and who a negative one, as in `evaluation.precision.Rules`."""

    def positives(self, rows: Codes, columns: Codes) -> npt.NDArray[np.bool_]:
        """Shape (rows, columns)."""

    def negatives(self, rows: Codes, columns: Codes) -> npt.NDArray[np.bool_]:
        """Shape (rows, columns)."""

    @property
    def neg_same(self) -> Codes:
        """Equal in a negative pair, shape (n,)."""


class Pairing(dict[str, Any]):
    """The profiles and rules behind average precisions, carried in the attrs of their table.

    `place` puts profiles into an order that is theirs, whatever that of the rows; equal ones that the rules do not tell
    apart share a place.

    To pandas it is a plain dict of settings, so that the table can be written to a file; it is never copied.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        similarity: Similarity,
        rules: PairRules,
        place: Codes,
        scores: Floats,
        tied: npt.NDArray[np.bool_],
    ):
        super().__init__(settings)
        self.similarity, self.rules, self.place, self.scores, self.tied = similarity, rules, place, scores, tied

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pairing":
        return self

    def holds(self, rows: npt.NDArray[Any], scores: Floats) -> bool:
        """Whether row numbers and scores of a table are still those that were computed."""
        if rows.dtype.kind not in "iu" or len(np.unique(rows)) != len(rows):
            return False
        known = (rows >= 0) & (rows < len(self.scores))
        return bool(known.all()) and np.array_equal(self.scores[rows], scores)


def label_null(pairing: Pairing, groups: Sequence[Codes], *, size: int, seed: int) -> Floats:
    """p of the mean average precision of each group: the share of exchanges of profiles that reach it.

    If the labels of a group mean nothing, its profiles and their negatives could have changed places (within the
    columns that negatives share, such as the plate). Where every member has all others as positives and everything else
    as negatives, the value is read off ranks; all exchanges are tried if they are at most 50,000, otherwise `size`
    random ones and the one that was seen. Ties are broken at random, once for all exchanges.

    Parameters
    ----------
    pairing : Pairing
    groups : list of int arrays
        Rows of the profiles.
    size : int
        Number of random exchanges.
    seed : int

    Returns
    -------
    float array, shape (n_groups,)
    """
    return np.array(list(_each(pairing, groups, size, seed)), dtype=np.float64)


def _each(pairing: Pairing, groups: Sequence[Codes], size: int, seed: int) -> Iterator[float]:
    shared: dict[bytes, _Ranks] = {}
    nulls: dict[tuple[bytes, int], Floats] = {}
    every = np.arange(pairing.similarity.n)
    order = np.argsort(pairing.place, kind="stable")
    slot = np.argsort(order)
    for group in groups:
        group = group[np.argsort(pairing.place[group], kind="stable")]
        negative = pairing.rules.negatives(group, every)
        positive = pairing.rules.positives(group, every)
        opposed, close = np.asarray(negative.any(axis=0)), np.asarray(positive.any(axis=0))
        close[group] = True
        special, others = order[close[order]], order[opposed[order]]
        simple = (
            len(special) == len(group) > 1
            and bool((negative == opposed).all())
            and bool((positive[:, group] | np.eye(len(group), dtype=bool)).all())
            and not (opposed & close).any()
        )
        if not simple:
            yield _by_exchange(pairing, group, special, others, size, seed)
            continue
        k, total = len(group), len(group) + len(others)
        whole = total == len(every)
        base = order if whole else others
        pool = max(_POOL, 1 << (2 * k - 1).bit_length())  # of this group alone, whatever others are asked for
        key = (b"" if whole else base.tobytes()) + pool.to_bytes(8, "little")
        if key not in shared:
            if len(shared) > 3:
                shared.clear()
            shared[key] = _Ranks(pairing.similarity, base, pool, seed)
        ranks = shared[key]
        above = ranks.within if whole else ranks.beside(group)
        # a value with ties is their expectation, which exchanges would have to take too: it is read as theirs are
        if not whole or len(ranks.pool) == total:
            seen = float(_mean_ap(above, (slot[group] if whole else np.arange(k))[None, :])[0])
        else:
            seen = ranks.value(group) if pairing.tied[group].any() else float(pairing.scores[group].mean())
        if whole and (key, k) in nulls:
            null = nulls[key, k]
        else:
            null = ranks.null(above, k, size, inside=whole)
            if whole:
                nulls[key, k] = null
        reached = int((null >= seen - 1e-12).sum())
        # all exchanges contain the one that was seen; random ones do not
        every_one = comb(total, k) <= _ENUMERATED and total <= _POOL
        yield reached / len(null) if every_one else (1 + reached) / (1 + len(null))


class _Ranks:
    """Ranks among the profiles of `base`, for groups drawn from them, or from them and a group beside them."""

    def __init__(self, similarity: Similarity, base: Codes, size: int, seed: int):
        self.similarity, self.base, self.seed = similarity, base, seed
        rng = np.random.default_rng([seed, len(base)])
        self.pool = base if len(base) <= size else base[np.sort(rng.permutation(len(base))[:size])]
        self.draws: dict[tuple[int, int], Codes] = {}

    @cached_property
    def _ranked(self) -> npt.NDArray[np.float32]:
        """The similarities of each profile of the pool to the others of `base`, rising."""
        return self._others(self.pool, self.similarity.tile(self.pool, slice(None)))

    @cached_property
    def _pairs(self) -> tuple[npt.NDArray[np.float32], Counts, Counts]:
        """Similarity of all pairs of the pool, how many of `base` are above each, and how many above or level."""
        near = self.similarity.take(self.pool).rows(0, len(self.pool))
        np.fill_diagonal(near, -np.inf)
        return near, *_counts(self._ranked, near)

    @cached_property
    def within(self) -> Counts:
        """How many of `base` are above each pair of the pool."""
        _, low, high = self._pairs
        return self._untied(low, high)

    def _others(self, rows: Codes, near: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        block = near[:, self.base]
        own = rows[:, None] == self.base[None, :]
        block[own] = np.inf  # nobody is above oneself, and no pair is with oneself
        block.sort(axis=1)
        return block[:, : block.shape[1] - int(own.any())]

    def _untied(self, low: Counts, high: Counts) -> Counts:
        tied = np.maximum(high - low - 1, 0)  # a pair is level with itself; more than that is a tie
        if tied.any():
            rng = np.random.default_rng([self.seed, len(self.base), len(low)])
            low = low + (rng.random(low.shape) * (tied + 1)).astype(np.int32)
        return low

    def value(self, group: Codes) -> float:
        """Mean average precision of a group, which is part of `base`."""
        near = self.similarity.tile(group, slice(None))
        ranked, near = self._others(group, near), near[:, group]
        np.fill_diagonal(near, -np.inf)
        return float(_mean_ap(self._untied(*_counts(ranked, near)), np.arange(len(group))[None, :])[0])

    def null(self, above: Counts, k: int, size: int, *, inside: bool) -> Floats:
        """Mean average precision of choices of k profiles, from `within`, or from `beside` a group of as many."""
        first = 0 if inside else k
        total = len(self.base) + first
        if (size, k) not in self.draws:
            if comb(total, k) <= _ENUMERATED and total <= _POOL:
                draws = np.array(list(combinations(range(total), k)), dtype=np.int64)
            else:
                draws = _distinct(np.random.default_rng([self.seed, total, k]), size, k, total, first, len(self.pool))
            if len(self.draws) > 7:
                self.draws.clear()
            self.draws[size, k] = draws
        draws = self.draws[size, k]
        step = max(1, _CHUNK // (k * k))
        return np.concatenate([_mean_ap(above, draws[at : at + step]) for at in range(0, len(draws), step)])

    def beside(self, group: Codes) -> Counts:
        """How many of `base` and `group` are above each pair of the group and the pool, in this order.

        Among the pool only the group comes new, so that what `base` adds is not counted again for each group.
        """
        k = len(group)
        row = self.similarity.tile(group, slice(None))
        pool, *counted = self._pairs
        near = np.empty((k + len(pool), k + len(pool)), dtype=np.float32)
        near[:k] = row[:, np.concatenate([group, self.pool])]
        np.fill_diagonal(near[:k, :k], -np.inf)
        near[k:, :k], near[k:, k:] = near[:k, k:].T, pool
        own, others = _counts(self._others(group, row), near[:k]), _counts(self._ranked, near[k:, :k])
        low, high = (np.empty(near.shape, dtype=np.int32) for _ in range(2))
        for found, mine, theirs, shared in zip((low, high), own, others, counted, strict=True):
            found[:k], found[k:, :k], found[k:, k:] = mine, theirs, shared
        _count_more(near, low, high, k)
        return self._untied(low, high)


def _counts(ranked: npt.NDArray[np.float32], near: npt.NDArray[np.float32]) -> tuple[Counts, Counts]:
    """How many of each row of `ranked`, which rises, are above each of the same row of `near`, and above or level."""
    low, high = (np.empty(near.shape, dtype=np.int32) for _ in range(2))
    for at, (row, values) in enumerate(zip(ranked, near, strict=True)):
        low[at] = len(row) - np.searchsorted(row, values, side="right")
        high[at] = len(row) - np.searchsorted(row, values, side="left")
    return low, high


def _count_more(near: npt.NDArray[np.float32], low: Counts, high: Counts, k: int) -> None:
    """Add to the counts of each pair those of the first `k` profiles that are above it."""
    above, level = (np.zeros(near.shape, dtype=np.int16) for _ in range(2))
    for column in near[:, :k].T:
        above += column[:, None] > near
        level += column[:, None] == near
    low += above
    high += above
    high += level


def _distinct(rng: np.random.Generator, size: int, k: int, total: int, first: int, pool: int) -> npt.NDArray[np.int64]:
    """`size` draws of k different places out of `total`; those from `first` on are stood for by `pool` places."""
    found = np.empty((size, k), dtype=np.int64)
    if k * k < min(total, pool):
        again = np.arange(size)
        while len(again):
            draws = rng.integers(0, total, (len(again), k))
            found[again] = np.where(draws < first, draws, first + (draws - first) % pool)
            ordered = np.sort(found[again], axis=1)
            again = again[(ordered[:, 1:] == ordered[:, :-1]).any(axis=1)]
        return found
    step = max(1, _CHUNK // (first + pool))
    for start in range(0, size, step):
        rows = min(step, size - start)
        ahead = rng.hypergeometric(first, total - first, k, rows)[:, None] if first else np.zeros((rows, 1))
        chosen = np.empty((rows, first + pool), dtype=bool)
        chosen[:, :first] = np.argsort(np.argsort(rng.random((rows, first)), axis=1), axis=1) < ahead
        chosen[:, first:] = np.argsort(np.argsort(rng.random((rows, pool)), axis=1), axis=1) < k - ahead
        found[start : start + rows] = np.nonzero(chosen)[1].reshape(rows, k)
    return found


def _mean_ap(above: Counts, draws: npt.NDArray[np.int64]) -> Floats:
    """Mean average precision of drawn groups, from how many profiles are above each pair."""
    k = draws.shape[1]
    others = np.array([[j for j in range(k) if j != i] for i in range(k)], dtype=np.int64).reshape(k, k - 1)
    total = np.zeros(len(draws))
    place = np.arange(k - 1)
    for i in range(k):
        ranks = np.sort(above[draws[:, i, None], draws[:, others[i]]], axis=1)
        ranks = np.maximum.accumulate(ranks - place, axis=1) + place  # two that tied may have got one place
        total += ((place + 1) / (ranks + 1)).mean(axis=1)
    return total / k


def _by_exchange(pairing: Pairing, group: Codes, special: Codes, others: Codes, size: int, seed: int) -> float:
    """p where pairs depend on more than the group: profiles move among all the places, within shared columns."""
    items = np.concatenate([special, np.setdiff1d(others, special, assume_unique=True)])
    # of equal profiles those of the group first: the others are interchangeable
    items = items[np.lexsort((~np.isin(items, group), pairing.place[items]))]
    rng = np.random.default_rng([seed, len(items), len(group)])
    near = pairing.similarity.take(items).rows(0, len(items))
    ties = rng.permutation(len(items))  # which of two equal ones comes first
    ranks = np.empty(near.shape, dtype=np.int64)
    ranks[:, ties] = np.argsort(np.argsort(-near[:, ties], axis=1, kind="stable"), axis=1)
    slot = {item: place for place, item in enumerate(items.tolist())}
    queries = np.array([slot[item] for item in group.tolist()])
    positive = pairing.rules.positives(group, items)
    negative = pairing.rules.negatives(group, items)
    strata = np.unique(pairing.rules.neg_same[items], return_inverse=True)[1].reshape(-1)
    home = np.argsort(strata, kind="stable")

    def statistic(moved: npt.NDArray[np.int64]) -> Floats:
        total = np.zeros(len(moved))
        for at, yes, no in zip(queries, positive, negative, strict=True):
            columns = np.flatnonzero(yes | no)
            values = ranks[moved[:, at, None], moved[:, columns]]
            order = np.argsort(values, axis=1)
            hit = yes[columns][order]
            total += (np.cumsum(hit, axis=1) / np.arange(1, len(columns) + 1) * hit).sum(axis=1) / yes.sum()
        return total / len(queries)

    seen = statistic(np.arange(len(items))[None, :])[0]
    reached, step = 0, max(1, _CHUNK // len(items))
    for start in range(0, size, step):
        rows = min(step, size - start)
        moved = np.empty((rows, len(items)), dtype=np.int64)
        # sorting random numbers within each stratum shuffles it
        draws = np.argsort(strata[None, :] + rng.random((rows, len(items))), axis=1)
        moved[:, home] = draws
        reached += int((statistic(moved) >= seen - 1e-12).sum())
    return (1 + reached) / (1 + size)


def peer_null(scores: Floats, counts: Codes, groups: Sequence[Codes], *, size: int, seed: int) -> Floats:
    """p of mean average precisions as copairs 0.5.5 has them on a fresh cache.

    Every (positives, pairs) has one null of `size` random orders, in float32, with a seed below 8096 by its place among
    all that occur; a group is compared, strictly, with the mean of its members' nulls draw by draw. Members with the
    same counts share one null, so that nothing is averaged out and p is too high.

    Parameters
    ----------
    scores : float array, shape (n,)
    counts : int array, shape (n, 2)
        Positives and all pairs of each.
    groups : list of int arrays
    """
    shapes, which = np.unique(counts, axis=0, return_inverse=True)
    which = which.reshape(-1)
    seeds = np.random.default_rng(seed).integers(8096, size=len(shapes))
    nulls = np.stack([_random_ap(int(m), int(n), size, int(s)) for (m, n), s in zip(shapes, seeds, strict=True)])
    reached = [int((nulls[which[g]].mean(axis=0) > scores[g].mean()).sum()) for g in groups]
    return (np.array(reached) + 1) / (size + 1)


def _random_ap(positives: int, total: int, size: int, seed: int) -> npt.NDArray[np.float32]:
    """Average precision of `size` random orders, from the stream of shuffles that the peer draws."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // total)
    kind = np.uint16 if total < 1 << 16 else np.uint32
    found = []
    for start in range(0, size, step):
        places = np.tile(np.arange(total, dtype=kind), (min(step, size - start), 1))
        rng.permuted(places, axis=1, out=places)
        hits = np.sort(places[:, :positives], axis=1)
        precision: npt.NDArray[Any] = np.arange(1, positives + 1, dtype=np.float32) / np.add(hits, 1)
        found.append((precision.sum(axis=1) / positives).astype(np.float32))
    return np.concatenate(found)
