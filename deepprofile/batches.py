"""Batches of crops for a training: the same whoever reads them, and in which order."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deepprofile.augmentation import draw, mix_targets
from deepprofile.crop_store import Crops
from deepprofile.soft_labels import Targets
from deepprofile.study import Augment
from deepprofile.trainee import CROPS

if TYPE_CHECKING:
    from deepprofile.deepprofiler_crops import DeepProfilerCrops

_BATCH = 3  # first of the numbers that this use of the seed is known by, next to those of deepprofile.sampling
Batch = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Batches:
    """Batches as `deepprofile.trainee.Trainee` takes them.

    Parameters
    ----------
    crops : Crops or DeepProfilerCrops
    targets : Targets
        Of each row of the crops.
    class_weights : float32 array, shape (classes,)
    augment : Augment or None
    seed : int
        With the epoch and the number of a batch it decides what is random in the batch.
    shares : int
        Parts of one length that a batch is trained in, on as many devices; crops are mixed within their part.
    """

    crops: "Crops | DeepProfilerCrops"
    targets: Targets
    class_weights: np.ndarray
    augment: Augment | None
    seed: int
    shares: int = 1

    def read(self, epoch: int, number: int, rows: np.ndarray) -> Batch:
        """Batch `number` of an epoch, the crops `rows`: what goes into the network, targets, and weights of the cells.

        Crops are bytes where the store holds scaled ones, and floats where their counts have to be scaled first.
        """
        pixels = self.crops[rows] if self.crops.scaled else self.crops.network_input(rows)
        targets = self.targets(rows)
        drawn: dict[str, np.ndarray] = {}
        if self.augment is not None:
            rng = np.random.default_rng([_BATCH, self.seed, epoch, number])
            drawn = draw(self.augment, len(rows), self.crops.shape, rng)
            if "partner" in drawn:  # a permutation of the batch becomes one of each part
                part = drawn["partner"] // (len(rows) // self.shares)
                drawn["partner"] = drawn["partner"][np.argsort(part, kind="stable")]
            targets = mix_targets(targets, drawn)
        weights = mix_targets(self.class_weights[self.targets.codes[rows]][:, None], drawn)[:, 0]
        return {CROPS: pixels, **drawn}, targets, weights
