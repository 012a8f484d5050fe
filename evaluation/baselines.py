"""What a score is when labels mean nothing: permutations of labels within groups, and their summary."""

from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from cytominer_tools.errors import InputError
from evaluation.metrics import Codes
from evaluation.similarity import Floats


@dataclass(frozen=True)
class Null:
    """The values of one score over label permutations; inf where a value is infinite, NaN where it is undefined.

    Attributes
    ----------
    values : float array, shape (n_permutations,)
    """

    values: Floats

    @property
    def mean(self) -> float:
        """Mean of the finite values; NaN if there is none."""
        finite = self.values[np.isfinite(self.values)]
        return float(finite.mean()) if len(finite) else np.nan

    @property
    def mark_95(self) -> float:
        """The smallest value that at least 95 % of the defined ones do not exceed; NaN if that is infinite."""
        known = np.sort(self.values[~np.isnan(self.values)])
        mark = known[ceil(0.95 * len(known)) - 1] if len(known) else np.nan
        return float(mark) if np.isfinite(mark) else np.nan

    def p(self, value: float) -> float:
        """(1 + permutations that reach `value`) / (1 + permutations); an undefined one counts as reaching it."""
        if np.isnan(value) or not len(self.values):
            return np.nan
        # means over the same queries in another order differ in the last bit, and that is no difference
        mark = value - 1e-12 * abs(value) if np.isfinite(value) else value
        return (1 + int((~(self.values < mark)).sum())) / (1 + len(self.values))

    @property
    def note(self) -> str:
        """How many permutations have no finite value, in words; empty if all have."""
        lost = int((~np.isfinite(self.values)).sum())
        return (
            f"{lost} of {len(self.values)} have no finite value: left out of the mean, above it for p" if lost else ""
        )


def permuted_labels(
    labels: npt.ArrayLike, groups: npt.ArrayLike | None = None, *, n: int = 100, rng: np.random.Generator
) -> Codes:
    """Labels shuffled among the rows of each group.

    Parameters
    ----------
    labels : int array, shape (n_rows,)
        Missing ones (negative) move like the others.
    groups : int array, shape (n_rows,), optional
        Codes such as the plate; equal codes, negative ones included, are one group. None: all rows are one.
    n : int
        Number of permutations.

    Returns
    -------
    int array, shape (n, n_rows)

    Raises
    ------
    InputError
        Lengths differ, or `n` is negative.
    """
    labels = np.asarray(labels, dtype=np.int64)
    where = np.zeros(len(labels), dtype=np.int64) if groups is None else np.asarray(groups, dtype=np.int64)
    if where.shape != labels.shape:
        raise InputError(f"groups: expected {len(labels)} codes, one a row; got shape {where.shape}")
    if n < 0:
        raise InputError(f"permutations={n}: expected 0 or more, such as 100")
    home = np.argsort(where, kind="stable")
    permuted = np.empty((n, len(labels)), dtype=np.int64)
    for row in permuted:
        row[home] = labels[np.lexsort((rng.random(len(labels)), where))]
    return permuted


def can_move(labels: Codes, groups: Codes | None) -> bool:
    """Whether a permutation within `groups` can change any label."""
    if groups is None:
        return len(np.unique(labels)) > 1
    return len(np.unique(np.stack([groups, labels], axis=1), axis=0)) > len(np.unique(groups))
