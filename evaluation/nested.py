"""Choosing among ways to make profiles, and what the choice is worth: nested splits by compound."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytominer_tools.errors import InputError
from evaluation.curves import match_ranks
from evaluation.metrics import Codes, exclude_codes, label_codes
from evaluation.similarity import Similarity
from evaluation.standing import average_precisions


@dataclass(frozen=True)
class Search:
    """What `nested_search` found.

    Attributes
    ----------
    table : DataFrame, a row a way, the best first
        name, mean_average_precision (over all queries; of the first one it is too good, since it was chosen by it), n
        (queries), chosen (splits in which it was the best on the other compounds).
    held_out : float
        Mean average precision of whatever was the best on the other compounds, on compounds that had no say: the honest
        value of the winner. NaN where no split could be scored.
    splits : DataFrame, a row a split
        split, chosen, others (its value on the compounds that chose), held_out (its value on the others), n (queries
        held out).
    """

    table: pd.DataFrame
    held_out: float
    splits: pd.DataFrame


def nested_search(
    ways: Mapping[str, Similarity],
    labels: npt.ArrayLike,
    compounds: npt.ArrayLike,
    *,
    exclude: npt.ArrayLike | None = None,
    folds: int = 5,
    repeats: int = 3,
    rng: np.random.Generator,
) -> Search:
    """Rank ways to make the same profiles, by mean average precision, and score the choice on compounds left out of it.

    In each split a fold of the compounds is held out. The others, scored among themselves, choose; held-out profiles
    are then queries among all. Every compound is held out once a repeat.

    Parameters
    ----------
    ways : similarities of the same n profiles, by name
    labels : int array, shape (n,)
        As in `evaluation.metrics.precision_at_r`.
    compounds : int array, shape (n,)
        Profiles of one compound are on one side.
    exclude : int array, shape (n,) or (n, k), optional
        As in `evaluation.metrics.precision_at_r`.
    folds, repeats : int
        Of the splits.

    Raises
    ------
    InputError
        There is no way, their sizes differ, or there are fewer compounds than folds.

    References
    ----------
    Cawley & Talbot 2010, jmlr.org/papers/v11/cawley10a.html.
    """
    if not ways:
        raise InputError("there is nothing to choose from; name two recipes or more")
    n = next(iter(ways.values())).n
    if sizes := {name: way.n for name, way in ways.items() if way.n != n}:
        name, size = next(iter(sizes.items()))
        raise InputError(f"{name}: {size} profiles, and {next(iter(ways))} has {n}; give the same ones")
    codes, outside = label_codes(labels, n), exclude_codes(exclude, n)
    group = np.unique(np.asarray(compounds), return_inverse=True)[1].reshape(-1)
    count = int(group.max(initial=-1)) + 1
    if not 2 <= folds <= count or repeats < 1:
        raise InputError(f"folds={folds}, repeats={repeats}: expected 2 to {count} (compounds), and 1 or more")
    whole = {name: _scores(way, codes, outside) for name, way in ways.items()}
    rows: list[tuple[int, str, float, float, int]] = []
    for _ in range(repeats):
        fold_of = rng.permutation(count) % folds
        for fold in range(folds):
            held = fold_of[group] == fold
            rest = np.flatnonzero(~held)
            inner = {name: _mean(_scores(way.take(rest), codes[rest], outside[rest])) for name, way in ways.items()}
            best = max(inner, key=lambda name: np.nan_to_num(inner[name], nan=-1.0))
            values = whole[best][held]
            n_queries = int((~np.isnan(values)).sum())
            rows.append((len(rows) + 1, best, inner[best], _mean(values), n_queries))
    splits = pd.DataFrame(rows, columns=["split", "chosen", "others", "held_out", "n"])
    table = pd.DataFrame(
        {
            "name": list(ways),
            "mean_average_precision": [_mean(values) for values in whole.values()],
            "n": [int((~np.isnan(values)).sum()) for values in whole.values()],
            "chosen": [int((splits["chosen"] == name).sum()) for name in ways],
        }
    )
    table = table.sort_values("mean_average_precision", ascending=False, kind="stable").reset_index(drop=True)
    scored = splits[splits["n"] > 0]
    held_out = float(np.average(scored["held_out"], weights=scored["n"])) if len(scored) else np.nan
    return Search(table, held_out, splits)


def _scores(similarity: Similarity, codes: Codes, outside: Codes) -> npt.NDArray[np.float64]:
    return average_precisions(match_ranks(similarity, codes, exclude=outside))


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else np.nan
