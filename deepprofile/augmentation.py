"""Augmentation: numpy draws what happens to each crop of a batch, and keras.ops does it where the network computes.

In this order, as DeepProfiler does it (Bornholdt 2021, section 3.2): a square is cut out and resized back, the crop is
flipped and turned, its channels become brighter or darker and gain or lose contrast. Before the light, each channel may
be multiplied by a factor; after everything, crops may be mixed with one another (Zhang et al. 2018, arXiv:1710.09412).
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from deepprofile.study import Augment


def draw(settings: Augment, n: int, shape: tuple[int, int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw what `AugmentCrops` does to each of `n` crops.

    Parameters
    ----------
    settings : Augment
        They alone decide which keys there are.
    n : int
    shape : (height, width, channels) of a crop, px; square

    Returns
    -------
    dict of arrays
        box : int32 (n, 3)
            Top, left and side of the square that is cut out, px; (0, 0, width) where the crop stays whole.
        flip : int32 (n,)
            1 where left and right change places.
        turn : int32 (n,)
            Quarter turns against the clock, 0 to 3, after the flip.
        gain, contrast, brightness : float32 (n, channels)
            x becomes gain * x, then contrast * (x - mean) + mean + brightness, mean being that of the channel.
        partner : int32 (n,)
            The crop of the batch that each is mixed with, a permutation.
        share : float32 (n,)
            What each keeps of itself, in [0, 1].
    """
    height, width, channels = shape
    assert height == width, shape
    drawn: dict[str, np.ndarray] = {}
    if settings.crop < 1 and settings.crop_probability:
        cropped = rng.random(n) < settings.crop_probability
        side = np.where(cropped, rng.integers(max(int(settings.crop * width), 1), width, n), width)
        drawn["box"] = np.stack([*rng.integers(0, width - side + 1, (2, n)), side], axis=1).astype(np.int32)
    if settings.flip:
        drawn["flip"] = rng.integers(0, 2, n, np.int32)
    if settings.rotate:
        drawn["turn"] = rng.integers(0, 4, n, np.int32)
    if settings.jitter or settings.contrast or settings.brightness:
        for name, centre, most in (
            ("gain", 1, settings.jitter),
            ("contrast", 1, settings.contrast),
            ("brightness", 0, settings.brightness),
        ):
            drawn[name] = rng.uniform(centre - most, centre + most, (n, channels)).astype(np.float32)
    if settings.mixup:
        drawn["partner"] = rng.permutation(n).astype(np.int32)
        drawn["share"] = rng.beta(settings.mixup, settings.mixup, n).astype(np.float32)
    return drawn


def mix_targets(targets: np.ndarray, drawn: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the network shall answer for mixed crops: targets, float (n, classes), mixed as the crops are."""
    if "share" not in drawn:
        return targets
    share = drawn["share"][:, None].astype(targets.dtype)
    return share * targets + (1 - share) * targets[drawn["partner"]]


class AugmentCrops(keras.layers.Layer):
    """Do to crops what `draw` drew.

    Called with [crops, drawn]: float32 (n, H, H, C) in [0, 1], and the arrays of `draw`; returns float32 (n, H, H, C),
    which the light may take out of [0, 1]. It computes in float32 whatever the policy.

    Resizing is bilinear between pixel centres within the square, as in `tf.image.resize`: rows are resampled, then
    columns. Flips and turns are the order in which they are read, so where nothing is cut out no value changes.
    """

    def __init__(self) -> None:
        super().__init__(name="augment", dtype="float32")

    def call(self, inputs: tuple[Any, Mapping[str, Any]]) -> Any:
        crops, drawn = inputs
        if drawn.keys() & {"box", "flip", "turn"}:
            crops = _move(crops, drawn)
        if "gain" in drawn:
            mean = ops.mean(crops, axis=(1, 2), keepdims=True)
            gain, contrast, brightness = (drawn[name][:, None, None] for name in ("gain", "contrast", "brightness"))
            factor = contrast * gain
            crops = factor * crops + ((gain - factor) * mean + brightness)
        if "share" in drawn:
            share = drawn["share"][:, None, None, None]
            crops = share * crops + (1 - share) * ops.take(crops, drawn["partner"], axis=0)
        return crops


def _move(crops: Any, drawn: Mapping[str, Any]) -> Any:
    """Cut out, flip and turn: rows and columns by themselves, the diagonal only for odd turns."""
    width = crops.shape[1]
    order = ops.arange(width, dtype="int32")[None]
    rows, columns = order, order
    if "turn" in drawn:
        turn = drawn["turn"][:, None]
        rows = ops.where(turn >= 2, width - 1 - rows, rows)
        columns = ops.where((turn == 1) | (turn == 2), width - 1 - columns, columns)
    if "flip" in drawn:
        columns = ops.where(drawn["flip"][:, None] == 1, width - 1 - columns, columns)
    box = drawn.get("box")
    crops = _transpose(_resample(crops, rows, None if box is None else (box[:, 0], box[:, 2])))
    crops = _resample(crops, columns, None if box is None else (box[:, 1], box[:, 2]))
    if "turn" not in drawn:
        return _transpose(crops)
    return ops.where(turn[:, :, None, None] % 2 == 1, crops, _transpose(crops))


def _transpose(crops: Any) -> Any:
    return ops.transpose(crops, (0, 2, 1, 3))


def _resample(crops: Any, order: Any, span: tuple[Any, Any] | None) -> Any:
    """The rows of each crop in `order`, int32 (n or 1, H), of the rows that `span`, first and number (n,), become."""
    n, (height, width, channels) = ops.shape(crops)[0], crops.shape[1:]
    flat = ops.reshape(crops, (-1, width * channels))  # a row of a crop is one piece of memory
    base = ops.arange(n, dtype="int32")[:, None] * height

    def read(row: Any) -> Any:
        return ops.reshape(ops.take(flat, base + row, axis=0), (-1, height, width, channels))

    if span is None:
        return read(order)
    first, number = (ops.cast(value, "float32")[:, None] for value in span)
    place = (ops.cast(order, "float32") + 0.5) * (number / height) - 0.5
    place = first + ops.clip(place, 0.0, number - 1)
    lower = ops.floor(place)
    upper_share = (place - lower)[:, :, None, None]
    lower = ops.cast(lower, "int32")
    below = read(lower)
    return below + (read(ops.minimum(lower + 1, height - 1)) - below) * upper_share
