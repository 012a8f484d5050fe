"""The classes that a network learns to tell apart: metadata columns of the cells, as numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from cytominer_tools.errors import InputError
from deepprofile.codes import class_codes, label_columns, no_value
from deepprofile.splits import NEITHER, TRAIN, VALIDATION


@dataclass(frozen=True)
class Labels:
    """The class of each cell.

    Attributes
    ----------
    classes : sorted names
        Values of several columns have " | " between them.
    codes : int64 array, shape (n_cells,)
        Places in `classes`; -1 where a cell is left out.
    left_out : (class or cells, why), in the order of classes
    """

    classes: tuple[str, ...]
    codes: np.ndarray
    left_out: tuple[tuple[str, str], ...]


def make_labels(table: pd.DataFrame, columns: Sequence[str], parts: np.ndarray, *, min_cells: int = 10) -> Labels:
    """The class of each cell, without the classes that cannot be learned.

    Left out on both sides, and named, are classes with fewer than `min_cells` training cells, and those that occur in
    validation only. Cells with an empty label are left out and counted. Classes without a cell on either side are no
    part of the split and are not named.

    Parameters
    ----------
    table : DataFrame, a row per cell
    columns : names of columns, with or without ``Metadata_``
    parts : int array, shape (n_cells,)
        The side of each cell, as `deepprofile.splits.split_cells` gives it.
    min_cells : int
        Training cells that a class needs.

    Raises
    ------
    InputError
        There is no cell, a column is unknown, every label is empty, or fewer than two classes are left.
    """
    columns = label_columns(table, columns)
    names, found = class_codes(table, columns)
    codes = np.where(parts == NEITHER, -1, found)
    train = np.bincount(codes[(parts == TRAIN) & (codes >= 0)], minlength=len(names))
    held = np.bincount(codes[(parts == VALIDATION) & (codes >= 0)], minlength=len(names))
    left_out = []
    if empty := int((found < 0).sum()):
        left_out.append((_cells(empty), f"{' or '.join(columns)} is empty"))
    for name, n, m in zip(names, train.tolist(), held.tolist(), strict=True):
        if n == 0 and m:
            left_out.append((name, f"only in validation ({_cells(m)}): there is nothing to learn it from"))
        elif 0 < n < min_cells:
            left_out.append((name, f"{_cells(n)} to train on, fewer than min_cells {min_cells}"))
    kept = np.flatnonzero(train >= max(1, min_cells))
    if len(kept) < 2:
        alone = f"only {names[kept[0]]!r}" if len(kept) else "no class"
        why = "".join(f"\n  {what}: {reason}" for what, reason in left_out[:5])
        raise InputError(
            f"train.label {', '.join(columns)}: {alone} has {_cells(min_cells)} or more to train on, and a network "
            "needs two classes; choose another train.label or train.split, keep more cells, or lower "
            f"train.min_cells{why}"
        )
    place = np.full(len(names) + 1, -1)  # the last is that of code -1
    place[kept] = np.arange(len(kept))
    return Labels(tuple(names[i] for i in kept), place[codes], tuple(left_out))


def class_weights(
    codes: np.ndarray, how: Literal["balanced"] | Mapping[str, float] | None, classes: Sequence[str]
) -> np.ndarray:
    """What the loss of a cell of each class counts, with a mean of 1 over the training cells.

    Parameters
    ----------
    codes : int array, shape (n_cells,)
        Class of each training cell, -1 for other cells; every class has one.
    how : "balanced", mapping or None
        "balanced": each class counts as much as any other, n / (k n_c) as in scikit-learn. A mapping gives the weights
        of classes relative to 1, that of the others. None: all count 1.
    classes : names of the classes

    Returns
    -------
    float32 array, shape (n_classes,)

    Raises
    ------
    InputError
        A name that is no class, or a weight that is negative, not a number, or 0 for all.
    """
    if how is None:
        return np.ones(len(classes), np.float32)
    counts = np.bincount(codes[codes >= 0], minlength=len(classes))
    if how == "balanced":
        return (counts.sum() / (len(classes) * counts)).astype(np.float32)
    place = {name: i for i, name in enumerate(classes)}
    weights = np.ones(len(classes))
    for name, weight in how.items():
        if name not in place:
            raise InputError(f"train.class_weights: {no_value(name, classes, 'class')}")
        weights[place[name]] = weight
    total = (weights * counts).sum()
    if not (np.isfinite(weights).all() and (weights >= 0).all() and total > 0):
        raise InputError(f"train.class_weights {dict(how)}: weights are numbers from 0 on, and not all of them 0")
    return (weights * counts.sum() / total).astype(np.float32)


def _cells(n: int) -> str:
    return f"{n:,} cell" if n == 1 else f"{n:,} cells"
