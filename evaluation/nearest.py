"""Calls of a class by the nearest profiles, with the query's own compound and batch left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytominer_tools.columns import feature_columns, require_values
from cytominer_tools.errors import InputError
from evaluation.metrics import Codes, exclude_codes, label_codes, sweep
from evaluation.scores import SIMILARITIES, finite_features
from evaluation.similarity import Floats, Floats32, Similarity


@dataclass(frozen=True)
class Calls:
    """What the neighbours of each of n rows say.

    Attributes
    ----------
    called : int array, shape (n,)
        The label most of them have; -1 without a candidate, or for a row without a label.
    correct : float array, shape (n,)
        Expected share of correct calls over random orders of equally similar neighbours, so between 0 and 1 only for
        ties; NaN for a row without a label, or with no candidate of its label (it cannot be right).
    similarity : float array, shape (n,)
        Of the nearest candidate.
    """

    called: Codes
    correct: Floats
    similarity: Floats

    @property
    def n(self) -> int:
        """Rows that could be called right."""
        return int((~np.isnan(self.correct)).sum())

    @property
    def accuracy(self) -> float:
        """Mean of `correct`; NaN if `n` is 0."""
        return float(np.nanmean(self.correct)) if self.n else np.nan


class _Voters:
    def __init__(self, labels: Codes, k: int):
        n = len(labels)
        self.labels, self.k = labels, k
        self.called = np.full(n, -1, dtype=np.int64)
        self.correct, self.nearest = np.full(n, np.nan), np.full(n, np.nan)

    def add(self, start: int, block: Floats32) -> None:
        known = self.labels >= 0
        block[:, ~known] = -np.inf
        width = min(self.k, block.shape[1])
        if not width:
            return
        edge = np.partition(block, block.shape[1] - width, axis=1)[:, block.shape[1] - width]
        for row, values in enumerate(block):
            at, mark = start + row, edge[row]
            sure = np.flatnonzero((values > mark) & (values > -np.inf))
            level = np.flatnonzero((values == mark) & (values > -np.inf))
            if self.labels[at] < 0 or not len(sure) + len(level):
                continue
            self.nearest[at] = values.max()
            candidates = values > -np.inf
            places = min(self.k - len(sure), len(level))
            # equally near ones at the last place share it
            weight = np.concatenate([np.ones(len(sure)), np.full(len(level), places / max(len(level), 1))])
            near = np.concatenate([sure, level])
            votes = np.bincount(self.labels[near], weight)
            best = np.flatnonzero(votes > votes.max() - 1e-9)
            if len(best) > 1:  # the nearer side wins
                support = np.bincount(self.labels[near], weight * values[near], minlength=len(votes))[best]
                best = best[support > support.max() - 1e-9]
            self.called[at] = best[0]
            if (self.labels[candidates] == self.labels[at]).any():
                own = self.labels[at]
                if self.k == 1:
                    self.correct[at] = (votes[own] if own < len(votes) else 0) / votes.sum()
                else:
                    self.correct[at] = (own in best) / len(best)


def nearest_class(
    similarity: Similarity, labels: npt.ArrayLike, *, exclude: npt.ArrayLike | None = None, k: int = 1
) -> Calls:
    """The class that the k nearest candidates have; a majority, then the nearer side.

    Parameters
    ----------
    similarity : Similarity of n rows
    labels : int array, shape (n,)
        A row without a label (negative) is neither called nor a neighbour.
    exclude : int array, shape (n,) or (n, j), optional
        As in `evaluation.metrics.precision_at_r`: the compound gives NSC, compound and batch NSCB.
    k : int

    Raises
    ------
    InputError
        `k` is below 1.
    """
    if k < 1:
        raise InputError(f"k={k}: expected 1 or more neighbours")
    voters = _Voters(label_codes(labels, similarity.n), k)
    sweep(similarity, exclude_codes(exclude, similarity.n), [voters])
    return Calls(voters.called, voters.correct, voters.nearest)


@dataclass(frozen=True)
class MoaAccuracy:
    """How often the nearest treatment of another compound has the same MOA.

    Attributes
    ----------
    table : DataFrame, a row a rule
        rule ("all": every other treatment; "NSC": not the same compound; "NSCB": nor the same batch), similarity,
        accuracy, n, left_out (treatments with no candidate of their MOA), chance (random calls), median_class (median
        over MOAs), reason (empty where defined).
    classes : DataFrame, a row a rule and MOA
        rule, label, accuracy, n.
    confusion : dict of DataFrame
        For each rule: true MOA in rows, called MOA in columns, numbers of treatments.
    calls : DataFrame, a row a treatment and rule
        rule, row (in the table given), label, called, correct, similarity.
    """

    table: pd.DataFrame
    classes: pd.DataFrame
    confusion: dict[str, pd.DataFrame]
    calls: pd.DataFrame


def moa_accuracy(
    treatments: pd.DataFrame,
    *,
    labels: str,
    compound: str,
    batch: str | None = None,
    features: Sequence[str] | Literal["infer"] = "infer",
    similarity: str = "cosine",
    k: int = 1,
) -> MoaAccuracy:
    """Leave-one-compound-out MOA accuracy (NSC), also without the query's batch (NSCB), with confusion matrices.

    Parameters
    ----------
    treatments : DataFrame, a row a treatment (compound and concentration), such as a consensus
    labels, compound, batch : columns
        A missing label leaves the row out; a missing batch is shared with none.
    features : list of names, or "infer"
    similarity : "cosine" or "pearson"
    k : int
        Neighbours that vote.

    Raises
    ------
    InputError
        A column is absent, or a feature is missing or infinite.

    References
    ----------
    Ljosa et al. 2013, doi:10.1177/1087057113503553; NSCB: Ando et al. 2017, doi:10.1101/161422.
    """
    require_values(treatments, [labels, compound, *([batch] if batch else [])], "treatments")
    if similarity not in SIMILARITIES:
        raise InputError(f"similarity {similarity!r} is not known; choose one of {', '.join(SIMILARITIES)}")
    rows = np.flatnonzero(treatments[labels].notna().to_numpy())
    kept = treatments.iloc[rows].reset_index(drop=True)
    codes, known = pd.factorize(kept[labels], sort=True)
    names = [str(name) for name in known]
    near = SIMILARITIES[similarity](finite_features(kept, feature_columns(kept, features)))
    outside = {c: pd.factorize(kept[c])[0].astype(np.int64) for c in [compound, *([batch] if batch else [])]}
    rules = {"all": [], "NSC": [compound]} | ({"NSCB": [compound, batch]} if batch else {})
    table, classes, confusion, calls = [], [], {}, []
    for rule, columns in rules.items():
        exclude = np.stack([outside[c] for c in columns], axis=1) if columns else None
        found = nearest_class(near, codes.astype(np.int64), exclude=exclude, k=k)
        scored = ~np.isnan(found.correct)
        per_class = pd.Series(found.correct).groupby(codes).agg(["mean", "count"])
        reason = "" if found.n else f"no {labels} has treatments that are not excluded from each other"
        table.append(
            {
                "rule": rule,
                "similarity": similarity,
                "accuracy": found.accuracy,
                "n": found.n,
                "left_out": int((~scored).sum()),
                "chance": _chance(codes[scored], codes),
                "median_class": float(per_class["mean"].median()),
                "reason": reason,
            }
        )
        classes += [
            {"rule": rule, "label": names[c], "accuracy": mean, "n": int(count)}
            for c, mean, count in per_class.itertuples()
        ]
        counts = np.zeros((len(names), len(names)), dtype=np.int64)
        np.add.at(counts, (codes[scored], found.called[scored]), 1)
        confusion[rule] = pd.DataFrame(counts, index=names, columns=names)
        calls.append(
            pd.DataFrame(
                {
                    "rule": rule,
                    "row": rows,
                    "label": [names[c] for c in codes],
                    "called": [names[c] if c >= 0 else None for c in found.called],
                    "correct": found.correct,
                    "similarity": found.similarity,
                }
            )
        )
    return MoaAccuracy(pd.DataFrame(table), pd.DataFrame(classes), confusion, pd.concat(calls, ignore_index=True))


def _chance(queries: npt.NDArray[np.integer], codes: npt.NDArray[np.integer]) -> float:
    """Accuracy of calling each query by a random treatment."""
    if not len(queries):
        return np.nan
    share = np.bincount(codes) / len(codes)
    return float(share[queries].mean())
