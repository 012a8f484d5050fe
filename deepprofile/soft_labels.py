"""The targets of a training: smoothed labels, or labels that follow what the network says of each cell."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Targets:
    """A distribution over the classes for each training cell.

    Parameters
    ----------
    codes : int array, shape (n,)
        Class of each row of the crop store; -1 where a cell does not train.
    classes : int
    smoothing : float
        Share s that is spread evenly over all classes: ``s / classes + (1 - s) onehot``.
    online : float, optional
        Weight of an epoch's predictions in the targets of the next.
    """

    codes: np.ndarray
    classes: int
    smoothing: float
    online: float | None = None
    soft: np.ndarray | None = None  # float32 (training cells, classes), once epochs have moved it

    def __post_init__(self) -> None:
        self.rows = np.flatnonzero(self.codes >= 0)  # those that `soft` holds

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """float32 (len(rows), classes); every row sums to 1."""
        if self.soft is not None:
            return self.soft[np.searchsorted(self.rows, rows)]
        targets = np.full((len(rows), self.classes), self.smoothing / self.classes, np.float32)
        targets[np.arange(len(rows)), self.codes[rows]] += np.float32(1 - self.smoothing)
        return targets

    def follow(self, rows: np.ndarray, probabilities: np.ndarray) -> None:
        """Move the targets of `rows` to what the network says: ``(1 - online) targets + online probabilities``.

        probabilities : float32 (len(rows), classes).

        References
        ----------
        DeepProfiler 0.3.1, plugins/crop_generators/online_labels_cropgen.py, as it was before it was lost.
        """
        assert self.online is not None
        if self.soft is None:
            self.soft = self(self.rows)
        at = np.searchsorted(self.rows, rows)
        self.soft[at] = np.float32(1 - self.online) * self.soft[at] + np.float32(self.online) * probabilities
