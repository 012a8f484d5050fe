"""Average precision of profiles and groups under rules of who matches whom; no pair table but the matches themselves.

A positive pair agrees in all of `pos_sameby` and differs in each of `pos_diffby`, a negative pair likewise. Each
profile ranks its positives among its negatives. Columns, rules and values are those of copairs 0.5.5; ties and p are
ours.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.special import digamma
from scipy.stats import false_discovery_control

from cytominer_tools.columns import require_columns, require_values
from cytominer_tools.errors import InputError
from evaluation.metrics import Codes, text_codes
from evaluation.nulls import Pairing, label_null, peer_null
from evaluation.similarity import Floats, Floats32, Similarity, Some, Tiled, cosine, pearson

Ties = Literal["fair", "positives_first"]
Distance = str | Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.ArrayLike]

_TILE = 1152
_FEW = 24  # up to so many positives a profile, counting above each is cheaper than sorting


@dataclass(frozen=True)
class Rules:
    """Which pairs of n rows are positive and which negative, as integer codes.

    Attributes
    ----------
    pos_same, neg_same : int array, shape (n,)
        Equal in a pair (one code for all the columns together).
    pos_diff, neg_diff : int arrays, shape (n, k)
        Unequal in a pair, each of them.
    """

    pos_same: Codes
    pos_diff: Codes
    neg_same: Codes
    neg_diff: Codes

    def positive_pairs(self) -> tuple[Codes, Codes]:
        """Query and partner of every positive pair, in both directions, sorted by query."""
        order = np.argsort(self.pos_same, kind="stable")
        edges = np.flatnonzero(np.diff(self.pos_same[order], prepend=-1, append=-1))
        queries, partners = [], []
        for start, stop in itertools.pairwise(edges):
            if stop - start < 2:
                continue
            members = order[start:stop]
            unlike = ~np.eye(len(members), dtype=bool)
            for codes in self.pos_diff[members].T:
                unlike &= codes[:, None] != codes[None, :]
            i, j = np.nonzero(unlike)
            queries.append(members[i])
            partners.append(members[j])
        if not queries:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        query, partner = np.concatenate(queries), np.concatenate(partners)
        by = np.lexsort((partner, query))
        return query[by], partner[by]

    def positives(self, rows: Codes, columns: Codes) -> npt.NDArray[np.bool_]:
        """Whether each of `rows` and each of `columns` are a positive pair; shape (rows, columns)."""
        return _pairs(self.pos_same, self.pos_diff, rows, columns)

    def negatives(self, rows: Codes, columns: Codes) -> npt.NDArray[np.bool_]:
        """Whether each of `rows` and each of `columns` are a negative pair; shape (rows, columns)."""
        return _pairs(self.neg_same, self.neg_diff, rows, columns)


def _pairs(same: Codes, diff: Codes, rows: Codes, columns: Codes) -> npt.NDArray[np.bool_]:
    found = rows[:, None] != columns[None, :]
    if same.any():
        found &= same[rows, None] == same[None, columns]
    for codes in diff.T:
        found &= codes[rows, None] != codes[None, columns]
    return found


def average_precision(
    meta: pd.DataFrame,
    feats: pd.DataFrame | npt.ArrayLike,
    pos_sameby: Sequence[str],
    pos_diffby: Sequence[str],
    neg_sameby: Sequence[str],
    neg_diffby: Sequence[str],
    batch_size: int = 20000,
    distance: Distance = "cosine",
    progress_bar: bool = True,
    *,
    ties: Ties = "fair",
) -> pd.DataFrame:
    """How well each profile ranks its positives above its negatives, as copairs 0.5.5 computes it.

    Parameters
    ----------
    meta : DataFrame, a row a profile
    feats : array or DataFrame, shape (n, n_features), finite; rows in the order of `meta`
    pos_sameby, pos_diffby, neg_sameby, neg_diffby : lists of columns of `meta`
        A positive pair agrees in all of the first and differs in each of the second; negative pairs likewise.
    batch_size, progress_bar
        Taken for the peer's sake: blocks have a fixed size here, and there is nothing to wait for.
    distance : str or function
        "cosine", "abs_cosine", "correlation", "euclidean", "manhattan", "chebyshev", another name that
        scipy.spatial.distance.cdist takes, or a function of two arrays of n rows that gives n similarities.
    ties : "fair" or "positives_first"
        "fair": the expectation over random orders of equal similarities. "positives_first": the peer's, by which
        equal profiles score 1.

    Returns
    -------
    DataFrame, a row a profile
        `meta` and n_pos_pairs, n_total_pairs, average_precision, normalized_average_precision; a profile without
        positives has NaN. ``attrs["average_precision"]`` keeps the unit rows, one float64 copy of `feats`, for the
        null of `mean_average_precision`.

    Raises
    ------
    InputError
        A column is absent or has missing values, a feature is not finite, a row has no direction, no pair is positive
        or none is negative.

    References
    ----------
    Kalinin et al. 2025, doi:10.1038/s41467-025-60306-2. Ties: McSherry & Najork 2008, doi:10.1007/978-3-540-78646-7_38.
    """
    meta, rules, similarity, settings = _prepared(meta, feats, pos_sameby, pos_diffby, neg_sameby, neg_diffby, distance)
    query, partner = rules.positive_pairs()
    if not len(query):
        raise InputError(_no_pairs("positive", pos_sameby, pos_diffby))
    scores, n_positive, n_negative, tied = _scores(similarity, rules.negatives, query, partner, query, len(meta), ties)
    if not n_negative.any():
        raise InputError(_no_pairs("negative", neg_sameby, neg_diffby))
    meta["n_pos_pairs"] = n_positive
    meta["n_total_pairs"] = n_positive + n_negative
    meta["average_precision"] = scores
    meta["normalized_average_precision"] = normalized_ap(scores, n_positive, n_positive + n_negative)
    keys = [rules.pos_same, rules.neg_same, *rules.pos_diff.T, *rules.neg_diff.T, digests(feats)]
    order = np.lexsort(keys)
    place = np.zeros(len(meta), dtype=np.int64)
    place[order[1:]] = np.cumsum(np.any([key[order[1:]] != key[order[:-1]] for key in keys], axis=0))
    meta.attrs["average_precision"] = Pairing(settings, similarity, rules, place, scores, tied)
    return meta


def multilabel_average_precision(
    meta: pd.DataFrame,
    feats: pd.DataFrame | npt.ArrayLike,
    pos_sameby: Sequence[str],
    pos_diffby: Sequence[str],
    neg_sameby: Sequence[str],
    neg_diffby: Sequence[str],
    multilabel_col: str,
    batch_size: int = 20000,
    distance: Distance = "cosine",
    progress_bar: bool = True,
    *,
    ties: Ties = "fair",
) -> pd.DataFrame:
    """Average precision of every profile for each of its labels, where `multilabel_col` holds lists.

    Positives of a profile for a label share that label; negatives share none with it. Arguments, values and errors are
    those of `average_precision`; the signature is that of copairs.map.multilabel.

    Returns
    -------
    DataFrame, a row for each profile and label
        `meta` with one label in `multilabel_col`, and the columns of `average_precision`; by label, then by profile.

    Raises
    ------
    InputError
        `multilabel_col` is in neither `pos_sameby` nor `pos_diffby`, or a cell of it is no list.
    """
    if multilabel_col not in pos_sameby or multilabel_col not in [*neg_sameby, *neg_diffby]:
        raise InputError(
            f"multilabel_col {multilabel_col!r}: put it into pos_sameby, and into neg_diffby (or neg_sameby)"
        )
    require_columns(meta, [multilabel_col], "multilabel_col")
    labels = meta[multilabel_col].reset_index(drop=True)
    if bad := [i for i, cell in enumerate(labels) if isinstance(cell, str) or not np.iterable(cell)]:
        raise InputError(f"{multilabel_col}: row {bad[0]} is {labels[bad[0]]!r}; expected a list of labels, or []")
    names = sorted({label for cell in labels for label in cell}, key=lambda label: (str(label), str(type(label))))
    holds = np.zeros((len(labels), len(names)), dtype=np.float32)
    place = {label: k for k, label in enumerate(names)}
    for i, cell in enumerate(labels):
        holds[i, [place[label] for label in cell]] = 1
    plain = [[c for c in by if c != multilabel_col] for by in (pos_sameby, pos_diffby, neg_sameby, neg_diffby)]
    meta = meta.drop(columns=multilabel_col)
    meta, rules, similarity, _ = _prepared(
        meta, feats, plain[0], plain[1], plain[2], plain[3], distance, needs_rule=False
    )
    shared = multilabel_col in neg_sameby

    def negatives(rows: Codes, columns: Codes) -> npt.NDArray[np.bool_]:
        return rules.negatives(rows, columns) & ((holds[rows] @ holds[columns].T > 0) == shared)

    entries, queries, partners, heads = [], [], [], []
    count: int = 0
    for k in range(len(names)):
        members = np.flatnonzero(holds[:, k])
        one, other = np.nonzero(rules.positives(members, members))
        used, local = np.unique(one, return_inverse=True)
        entries.append(local.reshape(-1).astype(np.int64) + count)
        queries.append(members[one])
        partners.append(members[other])
        heads.append(pd.DataFrame({"row": members[used], multilabel_col: names[k]}))
        count += len(used)
    if not count:
        raise InputError(_no_pairs("positive", pos_sameby, pos_diffby))
    query, partner, entry = (np.concatenate(part) for part in (queries, partners, entries))
    scores, n_positive, n_by_row, _ = _scores(similarity, negatives, query, partner, entry, count, ties)
    if not n_by_row.any():
        raise InputError(_no_pairs("negative", neg_sameby, neg_diffby))
    head = pd.concat(heads, ignore_index=True)
    n_total = n_positive + n_by_row[head["row"].to_numpy()]
    head = head.assign(n_pos_pairs=n_positive, n_total_pairs=n_total, average_precision=scores)
    head["normalized_average_precision"] = normalized_ap(scores, n_positive, n_total)
    return meta.iloc[head["row"]].reset_index(drop=True).join(head.drop(columns="row"))


def mean_average_precision(
    ap_scores: pd.DataFrame,
    sameby: Sequence[str],
    null_size: int,
    threshold: float,
    seed: int,
    progress_bar: bool = True,
    max_workers: int | None = None,
    cache_dir: object = None,
    *,
    null: Literal["labels", "copairs"] = "labels",
) -> pd.DataFrame:
    """Mean of the average precision of each group, with p and Benjamini-Hochberg's correction.

    Parameters
    ----------
    ap_scores : DataFrame of `average_precision`; rows may have been left out, not renumbered
    sameby : columns that make a group
    null_size : int
        Random draws behind a p.
    threshold : float
        Below which p is marked, such as 0.05.
    seed : int
    progress_bar, max_workers, cache_dir
        Taken for the peer's sake: nothing is cached, so that a p depends on the arguments alone.
    null : "labels" or "copairs"
        "labels": the profiles of the group change places with its negatives, all of these exchanges if they are 50,000
        or fewer, otherwise `null_size` of them; keyed by the seed and the shape of the group, and blind to the order of
        rows and to other groups. "copairs": the peer's, which compares a mean of several values with the spread of
        one and so rejects 1 % of true nulls at 5 %; with the seeds that it would use on a fresh cache.

    Returns
    -------
    DataFrame, a row a group with positives
        `sameby`, mean_average_precision, indices, mean_normalized_average_precision, p_value, corrected_p_value,
        below_p, below_corrected_p.

    Raises
    ------
    InputError
        A column is absent, no profile has an average precision, or `null="labels"` and the table has lost its profiles.
    """
    found = _with_p(ap_scores, sameby, null_size, seed, null)
    found["corrected_p_value"] = false_discovery_control(found["p_value"])
    return _marked(found, threshold)


def mean_average_precision_hierarchical(
    ap_scores: pd.DataFrame,
    sameby: Sequence[str],
    null_size: int,
    threshold: float,
    seed: int,
    hierarchical_by: Sequence[str],
    progress_bar: bool = True,
    max_workers: int | None = None,
    cache_dir: object = None,
    *,
    null: Literal["labels", "copairs"] = "labels",
    group_p: Literal["simes", "min"] = "simes",
) -> pd.DataFrame:
    """As `mean_average_precision`, corrected between families first (compounds) and then inside them (doses).

    Parameters
    ----------
    hierarchical_by : columns, some but not all of `sameby`, that make a family
    group_p : "simes" or "min"
        The p of a family: Simes', which allows for its size, or the peer's smallest one, which does not.

    Returns
    -------
    DataFrame, a row a group
        Also stage1_p_value, stage1_corrected_p_value and stage1_significant (at 0.05) of its family; inside a family
        that is not significant corrected_p_value is 1.

    Raises
    ------
    InputError
        `hierarchical_by` is not a proper part of `sameby`.
    """
    family = [hierarchical_by] if isinstance(hierarchical_by, str) else list(hierarchical_by)
    if not set(family) < set(_names(sameby)):
        raise InputError(f"hierarchical_by {family}: expected some, not all, of sameby {_names(sameby)}")
    found = _with_p(ap_scores, sameby, null_size, seed, null)
    codes = found.groupby(family, observed=True, sort=True).ngroup().to_numpy()
    parts = [np.flatnonzero(codes == k) for k in range(codes.max() + 1)]
    p = found["p_value"].to_numpy()
    first = np.array([(false_discovery_control(p[part]) if group_p == "simes" else p[part]).min() for part in parts])
    corrected = false_discovery_control(first)
    found["stage1_p_value"], found["stage1_corrected_p_value"] = first[codes], corrected[codes]
    found["stage1_significant"] = corrected[codes] <= 0.05
    found["corrected_p_value"] = 1.0
    for k, part in enumerate(parts):
        if corrected[k] <= 0.05:
            found.loc[part, "corrected_p_value"] = false_discovery_control(p[part])
    return _marked(found, threshold)


def digests(feats: pd.DataFrame | npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """A number for each profile that depends on it alone, equal for equal ones; it puts rows into one order."""
    X = np.ascontiguousarray(feats, dtype=np.float64)
    keys = [blake2b(row.tobytes(), digest_size=8).digest() for row in X + 0.0]
    return np.frombuffer(b"".join(keys), dtype=">u8").astype(np.uint64)


def normalized_ap(scores: npt.ArrayLike, n_positive: npt.ArrayLike, n_total: npt.ArrayLike) -> Floats:
    """(AP - expected) / (1 - expected), from -1 to 1: 0 for random orders, 1 for a perfect one.

    >>> normalized_ap([1.0, 0.0], [3, 3], [19, 19]).round(3).tolist()
    [1.0, -0.383]
    """
    expected = expected_ap(n_positive, n_total)
    return np.clip((np.asarray(scores) - expected) / np.maximum(1 - expected, 1e-10), -1, 1)


def expected_ap(n_positive: npt.ArrayLike, n_total: npt.ArrayLike) -> Floats:
    """Mean average precision of n_positive hits in random order among n_total.

    >>> expected_ap(3, 19).round(6).item()
    0.277087
    """
    hits, total = np.asarray(n_positive, dtype=np.float64), np.asarray(n_total, dtype=np.float64)
    harmonic = digamma(total + 1) + np.euler_gamma
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = ((hits - 1) / (total - 1) * (total - harmonic) + harmonic) / total
    return np.where(hits == 0, 0.0, np.where(hits == total, 1.0, mean))


def _names(columns: Sequence[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)


def _no_pairs(kind: str, same: Sequence[str], diff: Sequence[str]) -> str:
    rule = " and ".join(
        f"{word} {', '.join(_names(columns))}"
        for word, columns in (("agrees in", same), ("differs in", diff))
        if len(columns)
    )
    return f"no {kind} pair: no pair of profiles {rule}; check those columns"


def _prepared(
    meta: pd.DataFrame,
    feats: pd.DataFrame | npt.ArrayLike,
    pos_sameby: Sequence[str],
    pos_diffby: Sequence[str],
    neg_sameby: Sequence[str],
    neg_diffby: Sequence[str],
    distance: Distance,
    *,
    needs_rule: bool = True,
) -> tuple[pd.DataFrame, Rules, Similarity, dict[str, Any]]:
    columns = dict(
        zip(
            ("pos_sameby", "pos_diffby", "neg_sameby", "neg_diffby"),
            map(_names, (pos_sameby, pos_diffby, neg_sameby, neg_diffby)),
            strict=True,
        )
    )
    for kind in ("pos", "neg"):
        same, diff = columns[f"{kind}_sameby"], columns[f"{kind}_diffby"]
        if needs_rule and not same and not diff:
            raise InputError(f"{kind}_sameby and {kind}_diffby are both empty; name the columns that make such a pair")
        if both := set(same) & set(diff):
            raise InputError(
                f"{min(both)!r} is in {kind}_sameby and in {kind}_diffby; no pair agrees and differs in it"
            )
    for place, names in columns.items():
        require_values(meta, names, place)
        if lost := [name for name in names if meta[name].isna().any()]:
            rows = int(meta[lost[0]].isna().sum())
            raise InputError(f"{place}: {lost[0]} is missing in {rows} of {len(meta)} rows; leave those out or fill in")
    if len(meta) != len(feats):  # type: ignore[arg-type]
        raise InputError(f"meta has {len(meta)} rows and feats has {len(feats)}; expected a row of each for a profile")  # type: ignore[arg-type]
    kept = meta.reset_index(drop=True).copy()
    code = {name: text_codes(kept[name])[0] for names in columns.values() for name in names}

    def together(names: list[str]) -> Codes:
        if not names or not len(kept):
            return np.zeros(len(kept), dtype=np.int64)
        stacked = np.stack([code[name] for name in names], axis=1)
        return np.unique(stacked, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def apart(names: list[str]) -> Codes:
        return np.stack([code[n] for n in names], axis=1) if names else np.empty((len(kept), 0), dtype=np.int64)

    rules = Rules(
        together(columns["pos_sameby"]),
        apart(columns["pos_diffby"]),
        together(columns["neg_sameby"]),
        apart(columns["neg_diffby"]),
    )
    X = feats.to_numpy() if isinstance(feats, pd.DataFrame) else np.asarray(feats)
    settings = {**columns, "distance": distance if isinstance(distance, str) else "function"}
    return kept, rules, similarity_of(X, distance), settings


@dataclass(frozen=True)
class _Absolute(Tiled):
    of: Similarity

    @property
    def name(self) -> str:
        return f"abs_{self.of.name}"

    @property
    def n(self) -> int:
        return self.of.n

    def tile(self, rows: Some, columns: slice) -> Floats32:
        return np.abs(self.of.tile(rows, columns))

    def take(self, items: Codes) -> Similarity:
        return _Absolute(self.of.take(items))


@dataclass(frozen=True)
class _Rounded(Tiled):
    """What the peer sorts by: 1 minus a similarity in float32, which makes ties of what differs by less than 6e-8."""

    of: Similarity

    @property
    def name(self) -> str:
        return self.of.name

    @property
    def n(self) -> int:
        return self.of.n

    def tile(self, rows: Some, columns: slice) -> Floats32:
        return -(np.float32(1) - self.of.tile(rows, columns))

    def take(self, items: Codes) -> Similarity:
        return _Rounded(self.of.take(items))


@dataclass(frozen=True)
class _Measured(Tiled):
    """Similarities that are no products: scipy's distances, or a function of the caller's."""

    name: str
    X: npt.NDArray[Any]
    measure: Callable[[npt.NDArray[Any], npt.NDArray[Any]], Floats]

    @property
    def n(self) -> int:
        return len(self.X)

    def tile(self, rows: Some, columns: slice) -> Floats32:
        return self.measure(self.X[rows], self.X[columns]).astype(np.float32)

    def take(self, items: Codes) -> Similarity:
        return _Measured(self.name, self.X[items], self.measure)


def similarity_of(X: npt.NDArray[Any], distance: Distance) -> Similarity:
    """The similarity that copairs calls `distance`: 1 / (1 + d) for distances, 1 - d for jaccard and hamming.

    Raises
    ------
    InputError
        The name is unknown, or depends on which rows come together (mahalanobis, seuclidean).
    """
    if distance == "cosine":
        return cosine(X)
    if distance == "abs_cosine":
        return _Absolute(cosine(X))
    if distance == "correlation":
        return pearson(X)
    if X.ndim != 2:
        raise InputError(f"shape {X.shape}: expected a row for each profile and a column for each feature")
    if not np.isfinite(X).all():
        bad = int(np.flatnonzero(~np.isfinite(X).all(axis=1))[0])
        raise InputError(f"row {bad} is not finite; fill in or drop the feature or the row first")
    if callable(distance):
        return _Measured("function", X, lambda a, b: _each_pair(distance, a, b))
    if distance in ("mahalanobis", "seuclidean"):
        raise InputError(f"distance {distance!r} depends on which rows come together; whiten the features instead")
    metric = {"manhattan": "cityblock"}.get(distance, distance)
    try:
        cdist(X[:1], X[:1], metric)
    except ValueError as error:
        raise InputError(f"distance {distance!r} is not known: {error}") from error
    if metric in ("jaccard", "hamming"):
        return _Measured(distance, X, lambda a, b: 1 - cdist(a, b, metric))
    return _Measured(distance, X, lambda a, b: 1 / (1 + cdist(a, b, metric)))


def _each_pair(measure: Callable[..., npt.ArrayLike], a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Floats:
    return np.stack([np.asarray(measure(np.broadcast_to(row, b.shape), b), dtype=np.float64) for row in a])


def _scores(
    similarity: Similarity,
    negatives: Callable[[Codes, Codes], npt.NDArray[np.bool_]],
    query: Codes,
    partner: Codes,
    entry: Codes,
    n_entries: int,
    ties: Ties,
) -> tuple[Floats, Codes, Codes, npt.NDArray[np.bool_]]:
    """Average precision, number of positives and presence of ties of each entry, and negatives of each row."""
    if ties not in ("fair", "positives_first"):
        raise InputError(f'ties={ties!r}: expected "fair" or "positives_first"')
    n = similarity.n
    if ties == "positives_first":
        similarity = _Rounded(similarity)
    by_query = np.argsort(query, kind="stable")
    query, partner, entry = query[by_query], partner[by_query], entry[by_query]
    first = np.searchsorted(query, np.arange(n + 1))
    value = np.empty(len(query), dtype=np.float32)
    above, level = np.zeros(len(query), dtype=np.int64), np.zeros(len(query), dtype=np.int64)
    n_negative = np.zeros(n, dtype=np.int64)
    edges = [*list(range(0, n, _TILE)), n]
    blocks = [slice(a, b) for a, b in itertools.pairwise(edges)]
    tiles = {}
    # positives first: what they are compared with comes in any order
    for rows in blocks:
        mine = slice(first[rows.start], first[rows.stop])
        homes = partner[mine] // _TILE
        for home in np.unique(homes):
            columns = blocks[home]
            at = np.flatnonzero(homes == home) + mine.start
            if len(blocks) == 1:
                tiles[0] = similarity.tile(rows, columns)
                value[at] = tiles[0][query[at], partner[at]]
            elif len(at) * 64 > (rows.stop - rows.start) * (columns.stop - columns.start):
                value[at] = similarity.tile(rows, columns)[query[at] - rows.start, partner[at] - columns.start]
            else:
                value[at] = _of_pairs(similarity, query[at], partner[at])
    order = np.lexsort((-value.astype(np.float64), entry, query))
    query, entry, value = query[order], entry[order], value[order]
    for i, rows in enumerate(blocks):
        for columns in blocks[i:]:
            tile = tiles[0] if tiles else similarity.tile(rows, columns)
            if not np.isfinite(tile).all():
                raise InputError(f"{similarity.name}: a similarity is not finite; leave out the rows that cause it")
            mask = negatives(np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop))
            np.copyto(tile, -np.inf, where=~mask)
            _count(tile, mask, rows, first, value, above, level, n_negative)
            if columns != rows:
                _count(np.ascontiguousarray(tile.T), mask.T, columns, first, value, above, level, n_negative)
    counts = np.bincount(entry, minlength=n_entries)
    tied = np.bincount(entry, level, minlength=n_entries) > 0
    return _means(entry, value, above, level, counts, ties), counts, n_negative, tied


def _of_pairs(similarity: Similarity, a: Codes, b: Codes) -> Floats32:
    """Similarity of some pairs; a row of the queries at a time where a tile would hold mostly others."""
    found = np.empty(len(a), dtype=np.float32)
    edges = np.flatnonzero(np.diff(a, prepend=-1, append=-1))
    for start, stop in itertools.pairwise(edges):
        low, high = int(b[start:stop].min()), int(b[start:stop].max()) + 1
        if high - low <= 4 * (stop - start):
            found[start:stop] = similarity.tile(slice(a[start], a[start] + 1), slice(low, high))[0, b[start:stop] - low]
        else:
            for at in range(start, stop):
                found[at] = similarity.tile(slice(a[at], a[at] + 1), slice(b[at], b[at] + 1))[0, 0]
    return found


def _count(
    tile: Floats32,
    mask: npt.NDArray[np.bool_],
    rows: slice,
    first: Codes,
    value: Floats32,
    above: Codes,
    level: Codes,
    n_negative: Codes,
) -> None:
    """Add the negatives of a tile that are above each positive of its rows, and those level with it."""
    n_negative[rows] += np.count_nonzero(mask, axis=1)
    starts = first[rows.start : rows.stop]
    sizes = first[rows.start + 1 : rows.stop + 1] - starts
    few = int(sizes.max(initial=0)) <= _FEW
    if few:
        greater = np.empty(tile.shape, dtype=bool)
        for k in range(int(sizes.max(initial=0))):
            has = np.flatnonzero(sizes > k)
            part = tile if len(has) == len(tile) else tile[has]
            out = greater[: len(has)]
            at = starts[has] + k
            mark = value[at][:, None]
            strict = np.count_nonzero(np.greater(part, mark, out=out), axis=1)
            above[at] += strict
            level[at] += np.count_nonzero(np.greater_equal(part, mark, out=out), axis=1) - strict
        return
    ranked = np.sort(tile, axis=1)
    width = tile.shape[1]
    for row in np.flatnonzero(sizes):
        mine = slice(starts[row], starts[row] + sizes[row])
        right = np.searchsorted(ranked[row], value[mine], side="right")
        above[mine] += width - right
        level[mine] += right - np.searchsorted(ranked[row], value[mine], side="left")


def _means(entry: Codes, value: Floats32, above: Codes, level: Codes, counts: Codes, ties: Ties) -> Floats:
    """Mean over the positives of an entry, which come nearest first, of the precision at their places."""
    # within an entry positives come nearest first; entries of one query are interleaved with nothing
    new = np.diff(entry, prepend=-1) != 0
    begin = np.maximum.accumulate(np.where(new, np.arange(len(entry)), 0))
    nth = np.arange(len(entry)) - begin + 1
    precision = nth / (nth + above)
    if ties == "fair" and level.any():
        tied = np.flatnonzero(level)
        runs = np.flatnonzero(np.concatenate([[True], (np.diff(entry[tied]) != 0) | (np.diff(value[tied]) != 0)]))
        for run in np.split(tied, runs[1:]):
            hits, places = len(run), len(run) + int(level[run[0]])
            before = int(nth[run[0]]) - 1
            place = np.arange(places)
            expected = before + 1 + place * (hits - 1) / (places - 1)
            precision[run] = (expected / (before + above[run[0]] + 1 + place)).sum() / places
    with np.errstate(invalid="ignore"):
        return np.bincount(entry, precision, minlength=len(counts)) / counts


def _with_p(
    ap_scores: pd.DataFrame, sameby: Sequence[str], null_size: int, seed: int, null: Literal["labels", "copairs"]
) -> pd.DataFrame:
    if null not in ("labels", "copairs"):
        raise InputError(f'null={null!r}: expected "labels" or "copairs"')
    if null_size < 1:
        raise InputError(f"null_size={null_size}: expected 1 or more, such as 10000")
    names = _names(sameby)
    require_columns(
        ap_scores, ["average_precision", "normalized_average_precision", "n_pos_pairs", "n_total_pairs"], "ap_scores"
    )
    require_columns(ap_scores, names, "sameby")
    pairing = ap_scores.attrs.get("average_precision")
    scored = ap_scores[ap_scores["average_precision"].notna() & (ap_scores["n_pos_pairs"] > 0)]
    places = scored.index.to_numpy()
    scored = scored.reset_index(drop=True)
    if scored.empty:
        raise InputError("ap_scores: no profile has an average precision; none of them has a positive pair")
    code = scored.groupby(names, observed=True, sort=True).ngroup().to_numpy()
    keys = scored.loc[code >= 0, names].assign(_code=code[code >= 0]).drop_duplicates("_code").sort_values("_code")
    members = [np.flatnonzero(code == k) for k in keys["_code"]]
    ap = scored["average_precision"].to_numpy()
    normalized = scored["normalized_average_precision"].to_numpy()
    found = keys[names].reset_index(drop=True)
    found["mean_average_precision"] = [ap[part].mean() for part in members]
    found["indices"] = [part.tolist() for part in members]
    found["mean_normalized_average_precision"] = [normalized[part].mean() for part in members]
    if null == "copairs":
        found["p_value"] = peer_null(
            ap, scored[["n_pos_pairs", "n_total_pairs"]].to_numpy(), members, size=null_size, seed=seed
        )
        return found
    if not isinstance(pairing, Pairing):
        raise InputError(
            "ap_scores has lost its profiles (it was read from a file, joined, or has several labels a profile), which "
            'labels are permuted among; compute average_precision in the same session, or ask for null="copairs"'
        )
    if not pairing.holds(places, ap):
        raise InputError(
            "ap_scores: its index no longer tells which profile a row is (reset_index or a join?); "
            'leave rows out without renumbering them, or ask for null="copairs"'
        )
    found["p_value"] = label_null(pairing, [places[part] for part in members], size=null_size, seed=seed)
    return found


def _marked(found: pd.DataFrame, threshold: float) -> pd.DataFrame:
    found["below_p"] = found["p_value"] < threshold
    found["below_corrected_p"] = found["corrected_p_value"] < threshold
    return found
