"""Which cells an epoch shows to the network: as many of each class, drawn anew each epoch."""

from typing import Literal

import numpy as np
import pandas as pd

from cytominer_tools.errors import InputError

# apart from the streams of augmentation, which are keyed by (seed, epoch, batch): a missing number counts as 0
_EPOCH, _VALIDATION = 0x726F7773, 0x68656C64


def epoch_rows(
    codes: np.ndarray,
    *,
    balance: Literal["class", "class_plate", "none"],
    plates: np.ndarray | None,
    size: int | None,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """The cells of one epoch, shuffled.

    Parameters
    ----------
    codes : int array, shape (n_cells,)
        The class of each training cell; -1 for every other cell.
    balance : "class", "class_plate" or "none"
        "class": as many cells of each class. "class_plate": and, within a class, as many of each plate that holds it.
        "none": all cells once, or `size` of them.
    plates : array, shape (n_cells,), needed for "class_plate"
        The plate of each cell, any values.
    size : int or None
        Cells of the epoch, spread evenly; what does not divide goes to classes (and plates) drawn by the seed. None:
        the median count of a class times the number of classes, as DeepProfiler has it.
    seed, epoch : int
        The same two give the same rows; another epoch draws anew.

    Returns
    -------
    int64 array: row numbers
        A class (or class on a plate) with enough cells is drawn without replacement. Of one with fewer, each cell
        comes equally often, or once more: it is drawn as whole permutations, so that no cell of a rare class is missed.

    Raises
    ------
    InputError
        There is no training cell.

    References
    ----------
    DeepProfiler 0.3.1, plugins/crop_generators/sampled_crop_generator.py, which draws rare classes with replacement.
    """
    rng = np.random.default_rng([_EPOCH, seed, epoch])
    rows, classes = _rows(codes)
    if balance == "none":
        return rng.permutation(rows)[: len(rows) if size is None else size]
    counts = np.bincount(classes)
    quotas = _spread(_size(counts, size), np.zeros(len(counts), np.int64), rng)
    if balance == "class_plate":
        if plates is None:
            raise ValueError("balance class_plate needs the plate of each cell")
        plate, names = pd.factorize(np.asarray(plates)[rows])
        classes, pairs = _compact(classes * len(names) + plate)
        quotas = _spread(quotas, pairs // len(names), rng)
    return rng.permutation(_draw(rows, classes, quotas, rng))


def validation_rows(codes: np.ndarray, *, seed: int, size: int | None = None) -> np.ndarray:
    """The cells that validate, the same in every epoch.

    Parameters
    ----------
    codes : int array, shape (n_cells,)
        The class of each validation cell; -1 for every other cell.
    seed : int
    size : int or None
        Cells at most, spread evenly over the classes; by default the median count of a class times their number.

    Returns
    -------
    int64 array: row numbers, ascending, none twice
        As many of each class, or all of a class that has fewer.

    Raises
    ------
    InputError
        There is no validation cell.
    """
    rng = np.random.default_rng([_VALIDATION, seed])
    rows, classes = _rows(codes)
    counts = np.bincount(classes)
    quotas = _spread(_size(counts, size), np.zeros(len(counts), np.int64), rng)
    return np.sort(_draw(rows, classes, np.minimum(quotas, counts), rng))


def _rows(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that have a class, and their classes counted from 0 without gaps."""
    rows = np.flatnonzero(np.asarray(codes) >= 0)
    if not len(rows):
        raise InputError("there is no cell to draw from: none has a class")
    return rows, _compact(np.asarray(codes)[rows])[0]


def _compact(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`values` from 0 on as places among those that occur, and these."""
    occurs = np.bincount(values) > 0
    return (np.cumsum(occurs) - 1)[values], np.flatnonzero(occurs)


def _size(counts: np.ndarray, size: int | None) -> np.ndarray:
    return np.array([int(np.median(counts)) * len(counts) if size is None else size])


def _spread(totals: np.ndarray, owner: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each of `totals` spread over those that it owns (`owner`: of each, its total); the rest falls by lot."""
    lot = rng.permutation(len(owner))
    turn, many = _turns(owner, lot)
    return totals[owner] // many[owner] + (turn < (totals % many)[owner])


def _draw(rows: np.ndarray, strata: np.ndarray, quotas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`quotas` of the `rows` of each stratum: each row comes floor or ceil of quota / count times."""
    turn, counts = _turns(strata, rng.permutation(len(rows)))
    times = quotas // counts
    return np.repeat(rows, times[strata] + (turn < (quotas % counts)[strata]))


def _turns(groups: np.ndarray, lot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of each member within its group when all are called in the order `lot`, and the size of each group."""
    counts = np.bincount(groups)
    order = lot
    for shift in range(0, max(1, int(len(counts) - 1).bit_length()), 16):  # numpy sorts 16 bits in linear time
        order = order[np.argsort((groups[order] >> shift).astype(np.uint16), kind="stable")]
    turn = np.empty(len(groups), np.int64)
    turn[order] = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    return turn, counts
