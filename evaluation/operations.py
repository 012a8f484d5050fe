"""The six operations of cytominer-eval, from rows of similarity instead of a table of pairs.

Values are the peer's (at its last commit, 2022), so that old numbers can be checked. Three of its ways are kept because
numbers depend on them: metadata is compared as text, so that missing values are one group called "nan"; every pair
counts twice except in replicate_reproducibility, which makes p of enrichment far too small; and hit@k has a place too
many. What crashed is defined: a group without replicates is NaN.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import fisher_exact, rankdata
from threadpoolctl import threadpool_limits

from cytominer_tools.columns import require_columns
from cytominer_tools.errors import InputError
from evaluation.curves import PairOrder
from evaluation.metrics import Codes, odds
from evaluation.precision import digests
from evaluation.scores import finite_features
from evaluation.similarity import Floats, Floats32, Similarity, held, pearson, precomputed

OPERATIONS = ("replicate_reproducibility", "precision_recall", "grit", "mp_value", "enrichment", "hitk")
_AT_ONCE = 64  # groups of mp_value
_HELD = 1 << 26  # similarities kept in memory, 256 MB; above that rows are made when they are read


def evaluate(
    profiles: pd.DataFrame,
    features: Sequence[str],
    meta_features: Sequence[str],
    replicate_groups: Sequence[str] | str | dict[str, str],
    operation: str = "replicate_reproducibility",
    groupby_columns: Sequence[str] = ("Metadata_broad_sample",),
    similarity_metric: str = "pearson",
    replicate_reproducibility_quantile: float = 0.95,
    replicate_reproducibility_return_median_cor: bool = False,
    precision_recall_k: int | Sequence[int] = 10,
    grit_control_perts: Sequence[str] = ("None",),
    grit_replicate_summary_method: str = "mean",
    mp_value_params: dict[str, Any] | None = None,
    enrichment_percentile: float | Sequence[float] = 0.99,
    hitk_percent_list: Sequence[float] | Literal["all"] = (2, 5, 10),
) -> Any:
    """Evaluate profiles with one of cytominer-eval's operations: its signature and its results.

    Parameters
    ----------
    profiles : DataFrame, a row a profile
    features : names of feature columns, all finite
    meta_features : names of metadata columns, among them all that are named below
    replicate_groups : list of names, or what the operation takes
        Profiles that agree in all of them are replicates. "grit": {"profile_col": .., "replicate_group_col": ..};
        "mp_value": one name.
    operation : one of "replicate_reproducibility", "precision_recall", "grit", "mp_value", "enrichment", "hitk"
    groupby_columns : names
        "precision_recall", "hitk": pairs are ranked within a group of profiles.
    similarity_metric : "pearson", "spearman" or "kendall"
    replicate_reproducibility_quantile : float
        Of the similarities of pairs that are no replicates.
    replicate_reproducibility_return_median_cor : bool
        Return the median similarity of each group too.
    precision_recall_k : int or list
        Pairs that count.
    grit_control_perts : values of the profile column (grit) or of the replicate column (mp_value)
    grit_replicate_summary_method : "mean" or "median"
    mp_value_params : dict
        nb_permutations (100); rescale_pca, which changes nothing; rng, a numpy Generator or RandomState
        (a Generator of seed 0).
    enrichment_percentile : float or list, as a share of 1
    hitk_percent_list : list of percentages, or "all"

    Returns
    -------
    replicate_reproducibility : float, or (float, DataFrame)
    precision_recall : DataFrame of the group, k, precision, recall; recall is NaN without replicates
    grit : DataFrame of perturbation, group, grit; NaN where the group has no other profile
    mp_value : DataFrame of the replicate column, mp_value
    enrichment : DataFrame of enrichment_percentile, threshold, ods_ratio, p-value
    hitk : (list of ranks of replicates, from 0, dict of scores)

    Raises
    ------
    InputError
        A column is absent, a feature is not finite, a row is constant, controls are fewer than two, a profile of grit
        is in two groups, or a setting is not one above.

    References
    ----------
    github.com/cytomining/cytominer-eval. mp-value: Hutz et al. 2013, doi:10.1177/1087057112469257.
    """
    if operation not in OPERATIONS:
        raise InputError(f"operation {operation!r} is not known; choose one of {', '.join(OPERATIONS)}")
    require_columns(profiles, list(meta_features), "meta_features")
    require_columns(profiles, list(features), "features")
    profiles = profiles.reset_index(drop=True)
    if operation == "grit":
        if not isinstance(replicate_groups, dict) or set(replicate_groups) != {"profile_col", "replicate_group_col"}:
            raise InputError(
                'replicate_groups: grit expects {"profile_col": a column, "replicate_group_col": a column}'
            )
        replicates = [replicate_groups["profile_col"], replicate_groups["replicate_group_col"]]
    elif operation == "mp_value" and isinstance(replicate_groups, str):
        replicates = [replicate_groups]
    elif isinstance(replicate_groups, str | dict):
        raise InputError(f"replicate_groups: {operation} expects a list of columns, got {replicate_groups!r}")
    else:
        replicates = list(replicate_groups)
    if not replicates:
        raise InputError("replicate_groups: no column was named")
    require_columns(profiles, replicates, "replicate_groups")
    if operation == "mp_value":
        if len(replicates) != 1:
            raise InputError("replicate_groups: mp_value expects one column")
        return _mp_value(profiles, list(features), replicates[0], grit_control_perts, mp_value_params or {})

    if operation in ("precision_recall", "hitk"):
        require_columns(profiles, list(groupby_columns), "groupby_columns")
        by = list(groupby_columns)
    else:
        by = replicates[:1] if operation == "grit" else []
    # groups of rows are stretches, so that a block of rows is a group
    groups, keys = _groups(profiles, by)
    order = np.argsort(groups, kind="stable")
    profiles, groups = profiles.iloc[order].reset_index(drop=True), groups[order]
    codes, _ = _groups(profiles, replicates)
    similarity = _similarity(finite_features(profiles, list(features)), similarity_metric)
    if operation == "replicate_reproducibility":
        return _reproducibility(
            similarity,
            profiles[replicates],
            codes,
            replicate_reproducibility_quantile,
            replicate_reproducibility_return_median_cor,
        )
    if operation == "enrichment":
        return _enrichment(similarity, codes, np.atleast_1d(enrichment_percentile).tolist())
    if operation == "grit":
        return _grit(similarity, profiles, replicates, groups, grit_control_perts, grit_replicate_summary_method)
    if operation == "hitk":
        return _hitk(similarity, codes, groups, hitk_percent_list)
    return _precision_recall(similarity, codes, groups, keys, np.atleast_1d(precision_recall_k).tolist())


def _groups(table: pd.DataFrame, columns: list[str]) -> tuple[Codes, pd.DataFrame]:
    """A code for each row in the order of the texts of its columns, and the texts of each code."""
    if not columns:
        return np.zeros(len(table), dtype=np.int64), pd.DataFrame()
    text = pd.DataFrame({name: table[name].astype(object).map(str) for name in columns})
    grouped = text.groupby(columns, sort=True)
    keys = text.assign(_code=grouped.ngroup()).drop_duplicates("_code").sort_values("_code")
    return grouped.ngroup().to_numpy().astype(np.int64), keys[columns].reset_index(drop=True)


def _similarity(X: Floats, metric: str) -> Similarity:
    if metric == "pearson":
        found = pearson(X)
    elif metric == "spearman":
        found = pearson(rankdata(X, axis=1))
    elif metric == "kendall":
        return precomputed(_kendall(X), "kendall")
    else:
        raise InputError(f"similarity_metric {metric!r} is not known; choose one of pearson, spearman, kendall")
    return held(found, metric) if found.n**2 <= _HELD else found


def _kendall(X: Floats) -> Floats:
    """Tau-b: the cosine of the signs of all differences between two features, a feature at a time."""
    both, own = np.zeros((len(X), len(X))), np.zeros(len(X))
    for at in range(X.shape[1] - 1):
        signs = np.sign(X[:, at + 1 :] - X[:, at : at + 1]).astype(np.float32)  # sums of at most 2**24 ones are exact
        both += signs @ signs.T
        own += np.abs(signs).sum(axis=1)
    if len(flat := np.flatnonzero(own == 0)):
        raise InputError(f"row {flat[0]} is constant, so it has no correlation; leave that profile out")
    return both / np.sqrt(own[:, None] * own[None, :])


def _reproducibility(
    similarity: Similarity, groups: pd.DataFrame, codes: Codes, quantile: float, medians: bool
) -> float | tuple[float, pd.DataFrame]:
    if not 0 < quantile <= 1:
        raise InputError(f"replicate_reproducibility_quantile={quantile}: expected more than 0 and at most 1")
    pairs = PairOrder(similarity, codes, among="others")
    if not len(pairs.matched):
        raise InputError(f"no replicates: no two profiles agree in {', '.join(groups.columns)}")
    share = float((pairs.matched > pairs.marks([quantile])[0][0]).mean()) if pairs.n else np.nan
    if not medians:
        return share
    text = groups.astype(object).map(str).iloc[pairs.rows].reset_index(drop=True)
    table = text.assign(similarity_metric=pairs.matched.astype(np.float64))
    return share, table.groupby(list(groups.columns), sort=True)["similarity_metric"].median().reset_index()


def _enrichment(similarity: Similarity, codes: Codes, percentiles: list[float]) -> pd.DataFrame:
    if bad := [p for p in percentiles if not 0 <= p <= 1]:
        raise InputError(f"enrichment_percentile={bad[0]}: expected a share from 0 to 1, such as 0.99")
    pairs = PairOrder(similarity, codes, among="all")
    if not pairs.n:
        raise InputError("one profile has no pairs; give two or more")
    thresholds, above = pairs.marks(percentiles, twice=True)
    rows = []
    for share, threshold, high in zip(percentiles, thresholds, above, strict=True):
        # the peer's table holds every pair as (a, b) and as (b, a)
        a = 2 * int((pairs.matched > threshold).sum())
        c = 2 * len(pairs.matched) - a
        b = 2 * int(high) - a
        d = 2 * pairs.n - a - b - c
        p = fisher_exact([[a, b], [c, d]], alternative="greater")[1]
        rows.append(
            {"enrichment_percentile": share, "threshold": threshold, "ods_ratio": odds(a, b, c, d), "p-value": p}
        )
    return pd.DataFrame(rows)


def _stretches(similarity: Similarity, groups: Codes) -> Iterator[tuple[slice, Floats32]]:
    """Each group of rows against all, itself at minus infinity."""
    edges = np.flatnonzero(np.diff(groups, prepend=-1, append=groups[-1] + 1 if len(groups) else 0))
    step = max(1, _HELD // (16 * max(similarity.n, 1)))
    held, start = np.empty((0, 0), dtype=np.float32), 0
    for low, high in itertools.pairwise(edges):
        if high > start + len(held):
            start = int(low)
            held = similarity.rows(start, min(max(start + step, int(high)), similarity.n))
            held[np.arange(len(held)), np.arange(start, start + len(held))] = -np.inf
        yield slice(int(low), int(high)), held[low - start : high - start]


def _precision_recall(
    similarity: Similarity, codes: Codes, groups: Codes, keys: pd.DataFrame, sizes: list[int]
) -> pd.DataFrame:
    if bad := [k for k in sizes if k < 1 or int(k) != k]:
        raise InputError(f"precision_recall_k={bad[0]}: expected whole numbers from 1 on")
    hits, total = np.zeros((len(sizes), len(keys))), np.zeros(len(keys))
    for group, (rows, block) in enumerate(_stretches(similarity, groups)):
        values = block.ravel()
        mine = block[(codes[rows, None] == codes[None, :]) & (block > -np.inf)]
        total[group] = len(mine)
        n = len(values) - len(block)
        places = [len(values) - k for k in sizes if k < n]
        ranked = np.partition(values, places) if places else values
        for at, k in enumerate(sizes):
            if k >= n:
                hits[at, group] = len(mine)
                continue
            mark = ranked[len(values) - k]
            # of equal pairs at the last place, the share that random order would bring in
            level = np.count_nonzero(values == mark)
            rest = (k - np.count_nonzero(values > mark)) * np.count_nonzero(mine == mark) / level
            hits[at, group] = np.count_nonzero(mine > mark) + rest
    frames = [
        keys.assign(k=k, precision=found / k, recall=np.where(total > 0, found / np.maximum(total, 1), np.nan))
        for k, found in zip(sizes, hits, strict=True)
    ]
    return pd.concat(frames, ignore_index=True)


def _hitk(
    similarity: Similarity, codes: Codes, groups: Codes, percents: Sequence[float] | Literal["all"]
) -> tuple[list[int], dict[float, float]]:
    found: list[npt.NDArray[np.int64]] = []
    n_groups = 0
    for rows, block in _stretches(similarity, groups):
        n_groups += 1
        same = (codes[rows, None] == codes[None, :]) & (block > -np.inf)
        values = np.sort(block.ravel())
        mine = np.sort(block[same])[::-1]
        high = len(values) - np.searchsorted(values, mine, side="right")
        level = len(values) - np.searchsorted(values, mine, side="left") - high
        ranks = high.copy()
        # equal similarities: hits lie where random order would put them on average
        if len(mine) and level.max() > 1:
            starts = np.flatnonzero(np.concatenate([[True], mine[1:] != mine[:-1]]))
            size = np.diff(np.append(starts, len(mine)))
            nth = np.arange(len(mine)) - np.repeat(starts, size) + 1
            ranks = high + np.round(nth * (level + 1) / (np.repeat(size, size) + 1) - 1).astype(np.int64)
        found.append(ranks)
    hits = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
    if isinstance(percents, str):
        if percents != "all":
            raise InputError(f'hitk_percent_list={percents!r}: expected percentages, or "all"')
        each = np.bincount(hits, minlength=n_groups)[:n_groups]
        return hits.tolist(), dict(enumerate(np.cumsum(each - len(hits) / max(n_groups, 1)).tolist()))
    if bad := [p for p in np.atleast_1d(percents) if not 0 <= p <= 100]:
        raise InputError(f"hitk_percent_list: {bad[0]} is no percentage")
    scores = {p: int((hits <= p * n_groups / 100).sum()) - int(p * len(hits) / 100) for p in np.atleast_1d(percents)}
    return hits.tolist(), {getattr(p, "item", lambda p=p: p)(): score for p, score in scores.items()}


def _grit(
    similarity: Similarity,
    profiles: pd.DataFrame,
    columns: list[str],
    groups: Codes,
    controls: Sequence[str],
    summary: str,
) -> pd.DataFrame:
    if summary not in ("mean", "median"):
        raise InputError(f'grit_replicate_summary_method={summary!r}: expected "mean" or "median"')
    name, family = (profiles[c].astype(object).map(str).to_numpy() for c in columns)
    is_control = np.isin(name, [str(c) for c in controls])
    if not is_control.any():
        raise InputError(f"grit_control_perts: no {columns[0]} is {' or '.join(map(str, controls))}")
    profile = pd.factorize(name)[0]
    kind = pd.factorize(family)[0]
    rows = []
    for at, block in _stretches(similarity, groups):
        if (kind[at] != kind[at.start]).any():
            raise InputError(
                f"{columns[0]} {name[at.start]} is in several groups of {columns[1]}; grit needs one for each profile"
            )
        control = block[:, is_control].astype(np.float64)
        control = control[control > -np.inf]
        if len(control) < 2:
            raise InputError(f"grit_control_perts: {len(control)} pair(s) with a control; at least 2 are needed")
        partner = (kind == kind[at.start]) & (profile != profile[at.start])
        score = np.nan
        if partner.any() and (spread := control.std()) > 0:
            z = (block[:, partner].astype(np.float64) - control.mean()) / spread
            score = float(z.mean() if summary == "mean" else np.median(z))
        rows.append({"perturbation": name[at.start], "group": family[at.start], "grit": score})
    return pd.DataFrame(rows, columns=["perturbation", "group", "grit"])


def _mp_value(
    profiles: pd.DataFrame, features: list[str], column: str, controls: Sequence[str], params: dict[str, Any]
) -> pd.DataFrame:
    if unknown := set(params) - {"rescale_pca", "nb_permutations", "rng"}:
        raise InputError(f"mp_value_params: {min(unknown)!r} is not known; it takes rescale_pca, nb_permutations, rng")
    rng = params.get("rng", np.random.default_rng(0))
    draws = params.get("nb_permutations", 100)
    if draws < 1:
        raise InputError(f"nb_permutations={draws}: expected 1 or more")
    X = finite_features(profiles, features)
    if isinstance(rng, np.random.Generator):  # the peer's generators permute rows as they come
        order = np.argsort(digests(X), kind="stable")
        profiles, X = profiles.iloc[order].reset_index(drop=True), X[order]
    is_control = profiles[column].isin(list(controls)).to_numpy()
    if is_control.sum() < 2:
        raise InputError(
            f"grit_control_perts: {is_control.sum()} row(s) of {column} are controls; at least 2 are needed"
        )
    control = X[is_control]
    # missing values are no group here, in the peer as well
    groups = [(value, part.index.to_numpy()) for value, part in profiles.groupby(column, sort=True, observed=True)]
    found: list[float] = []
    # thousands of matrices of some twenty rows: a thread a group, none inside one
    with threadpool_limits(1), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(groups), _AT_ONCE):
            some = [rows for _, rows in groups[start : start + _AT_ONCE]]
            # drawn here, in the order of groups, so that threads change nothing
            members = [_members(len(rows), len(rows) + len(control), draws, rng) for rows in some]
            found += pool.map(lambda rows, member: _mp(X[rows], control, member), some, members)
    return pd.DataFrame({column: [value for value, _ in groups], "mp_value": found}, columns=[column, "mp_value"])


def _members(k: int, n: int, draws: int, rng: Any) -> npt.NDArray[np.bool_]:
    """Which of n rows are called the profiles: the first k, then in each of `draws` permutations."""
    member = np.zeros((draws + 1, n), dtype=bool)
    member[:, :k] = True
    if isinstance(rng, np.random.Generator):
        rng.permuted(member[1:], axis=1, out=member[1:])
    else:  # numpy's older generator, of which the peer draws one permutation at a time
        for row in member[1:]:
            row[:] = rng.permutation(member[0])
    return member


def _mp(pert: Floats, control: Floats, member: npt.NDArray[np.bool_]) -> float:
    """Share of permutations whose squared Mahalanobis distance from the controls reaches that of the profiles."""
    joined = np.concatenate([pert, control])
    n = len(joined)
    joined = joined - joined.mean(axis=0)
    gram = joined @ joined.T
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    total = values.sum()
    if not total:
        return 1.0
    # the fewest components that hold 90 % of the variance
    r = min(int(np.searchsorted(np.cumsum(values / total), 0.9, side="right")) + 1, n)
    scores = vectors[:, :r] * np.sqrt(values[:r])
    distance = _mahalanobis(scores, member)
    # numerically equal is equal: a permutation that leaves the labels as they are
    return float((distance[1:] >= distance[0] * (1 - 1e-9)).mean())


def _mahalanobis(scores: Floats, member: npt.NDArray[np.bool_]) -> Floats:
    """Squared distance of the members' mean from the others, in their covariance; for each row of `member`.

    By the others' products: with C their centred rows and d the difference of means, d'(C'C/n)^+ d = n |(C')^+ d|^2,
    and C C' plus a constant has an inverse while the others are no more than the components and a mean. Otherwise
    the covariance itself has one.
    """
    n, r = scores.shape
    k = int(member[0].sum())
    m = n - k
    products = scores @ scores.T
    found = np.empty(len(member))
    step = max(1, (1 << 16) // (n * n))  # what a core's cache holds
    for start in range(0, len(member), step):
        order = np.argsort(~member[start : start + step], axis=1, kind="stable")
        if r >= m:
            both = products.ravel().take(order[:, k:, None] * n + order[:, None, :])
            outer, inner = both[:, :, k:], both[:, :, :k].mean(axis=2)
            mean = outer.mean(axis=2)
            right = inner - mean
            right -= right.mean(axis=1, keepdims=True)
            gram = outer - mean[:, :, None] - mean[:, None, :] + mean.mean(axis=1)[:, None, None]
            constant = np.trace(gram, axis1=1, axis2=2)[:, None, None] / m**2
            found[start : start + step] = m * (_solve(gram + constant, right[:, :, None]) ** 2).sum(axis=(1, 2))
        else:
            rows = scores[order[:, k:]]
            center = rows.mean(axis=1, keepdims=True)
            away = scores[order[:, :k]].mean(axis=1) - center[:, 0]
            rows = rows - center
            scatter = rows.transpose(0, 2, 1) @ rows
            found[start : start + step] = m * (away[:, None, :] @ _solve(scatter, away[:, :, None]))[:, 0, 0]
    return found


def _solve(a: Floats, b: Floats) -> Floats:
    try:
        return np.asarray(np.linalg.solve(a, b), dtype=np.float64)
    except np.linalg.LinAlgError:  # duplicated rows
        return np.asarray(np.linalg.pinv(a, hermitian=True) @ b, dtype=np.float64)
