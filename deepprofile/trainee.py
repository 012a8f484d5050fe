"""What is trained: a network with augmentation before it and its loss behind it, driven by Keras on any backend."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from deepprofile.augmentation import AugmentCrops
from deepprofile.networks import jit_compile
from deepprofile.study import Train

CROPS = "crops"


class Trainee(keras.Model):
    """`network` as it is trained: crops become network input and are augmented on the device; L2 joins the loss.

    Parameters
    ----------
    network : keras.Model
        float32 (n, H, W, C) in [0, 1] to logits (n, classes).
    augment : bool
        Whether what is drawn for a batch is applied to it while training.
    l2 : float
        Times the sum of squares of all trained kernels, added to the loss (Bornholdt 2021, formula 3.1).

    It is called with {"crops": uint8 of 0..255 or float32 in [0, 1], (n, H, W, C), and what
    `deepprofile.augmentation.draw` drew}.
    """

    def __init__(self, network: keras.Model, *, augment: bool, l2: float) -> None:
        super().__init__(name="trainee", dtype="float32")  # the network alone may compute in half precision
        self.network = network
        self.augment = AugmentCrops() if augment else None
        for kernel in (v for v in network.trainable_variables if len(v.shape) > 1 and "kernel" in v.name):
            kernel.regularizer = keras.regularizers.L2(l2)  # which Keras shares out where several devices add up

    def build(self, input_shape: Any) -> None:
        """Nothing: the network came with its weights, and augmentation has none."""

    def call(self, inputs: dict[str, Any], training: bool = False) -> Any:
        drawn = dict(inputs)
        crops = drawn.pop(CROPS)
        if keras.backend.standardize_dtype(crops.dtype) == "uint8":
            crops = ops.cast(crops, "float32") / 255
        if "partner" in drawn:  # a number within the batch; a device may hold a part of it
            drawn["partner"] = drawn["partner"] % ops.shape(crops)[0]
        if training and self.augment is not None:
            crops = self.augment([crops, drawn])
        return self.network(crops, training=training)


def compile_trainee(trainee: Trainee, settings: Train, classes: int) -> None:
    """Give `trainee` the optimizer, the loss and the metrics of `settings`, and the optimizer its variables."""
    shared = {
        "learning_rate": settings.learning_rate,
        "global_clipnorm": settings.clip,
        "use_ema": settings.ema is not None,
        "ema_momentum": settings.ema or 0.99,
    }
    optimizer: keras.optimizers.Optimizer
    if settings.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(momentum=settings.momentum, nesterov=settings.momentum > 0, **shared)
    else:
        optimizer = keras.optimizers.AdamW(weight_decay=settings.weight_decay, **shared)
    if settings.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    metrics: list[Any] = [keras.metrics.CategoricalAccuracy("accuracy")]
    if classes > 5:
        metrics.append(keras.metrics.TopKCategoricalAccuracy(5, "top5"))
    trainee.compile(
        optimizer=optimizer,
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=metrics,
        jit_compile=jit_compile(),
    )
    optimizer.build(trainee.trainable_variables)


def predict_logits(
    network: keras.Model, crops: np.ndarray, batch: int, share: Callable[[np.ndarray], Any] = np.asarray
) -> np.ndarray:
    """Logits of at most `batch` crops, filled up to that number so that the network meets one shape only.

    crops : float32 (n, H, W, C); share : as of `deepprofile.devices.Replicas`. Returns float32 (n, classes).
    """
    full = np.zeros((batch, *crops.shape[1:]), np.float32)
    full[: len(crops)] = crops
    return np.asarray(network.predict_on_batch(share(full)), np.float32)[: len(crops)]
