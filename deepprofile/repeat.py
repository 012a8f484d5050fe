"""Networks of colour pictures on crops of any channels: each channel is a grey picture, their features side by side.

As DeepProfiler's repeat-channel mode does it (0.3.1, repeat_channel_crop_generator.py), so that the features of an
ImageNet network are comparable with those that it made.
"""

from typing import Any

import keras
from keras import ops

COLOURS = 3
# mean, variance and number, which nothing reads, of a normalization that makes [-1, 1] of [0, 1]
_STATISTICS = (0.5, 0.25, 0)


def repeat_channels(crops: Any, size: int) -> Any:
    """Each channel of each crop as a grey picture in red, green and blue.

    Parameters
    ----------
    crops : float32 array or tensor, shape (n, H, W, C)
    size : int
        Side of a picture, px. Resizing is bilinear as TensorFlow 1 has it: sample i stands at ``i * H / size``, and
        what lies beyond the last pixel is that pixel.

    Returns
    -------
    float32 tensor, shape (C * n, size, size, 3)
        All crops of the first channel, then all of the second. From -1, the lowest value of a picture, to 1, the
        highest; a flat picture is -1 everywhere, where DeepProfiler has NaN.
    """
    height, width = crops.shape[1:3]
    planes = ops.reshape(ops.transpose(crops, (3, 0, 1, 2)), (-1, height, width))
    planes = _resize(_resize(planes, 2, size), 1, size)
    low, high = (extreme(planes, axis=(1, 2), keepdims=True) for extreme in (ops.min, ops.max))
    span = high - low
    # as it is written there, and not 2 / span * x: the same rounding
    planes = (planes - low) / ops.where(span > 0, span, ops.ones_like(span)) * 2.0 - 1.0
    return ops.repeat(planes[..., None], COLOURS, axis=3)


def see_each_channel(network: keras.Model, shape: tuple[int, int, int]) -> keras.Model:
    """`network`, which sees colours, on crops of `shape` (H, W, C), one channel after the other.

    Parameters
    ----------
    network : keras.Model
        float32 (n, size, size, 3) in [0, 1] to features (n, F), or to several of them.
    shape : (H, W, C)

    Returns
    -------
    keras.Model
        float32 (n, H, W, C) to float32 (n, C * F): the F features of the first channel, those of the second, ..
    """
    crops = keras.Input(shape, name="channels")
    found = network(_Pictures(network.input_shape[1])(crops))
    several = isinstance(found, list | tuple)
    beside = [_SideBySide(shape[2], i)(features) for i, features in enumerate(found if several else [found])]
    return keras.Model(crops, beside if several else beside[0], name=network.name)


def see_minus_one_to_one(model: keras.Model) -> None:
    """Let what follows the normalization of `model`, which has [0, 1] before it, see [-1, 1].

    DeepProfiler feeds [-1, 1] to the first convolution of EfficientNet, where keras.applications takes off the mean of
    each ImageNet colour; ResNetV2 is made for [-1, 1] and has no normalization.
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            before = layer.get_weights()
            layer.set_weights([weight * 0 + value for weight, value in zip(before, _STATISTICS, strict=True)])
            layer.finalize_state()


class _Pictures(keras.layers.Layer):
    """Crops (n, H, W, C) to pictures (C * n, size, size, 3) in [0, 1], in which networks take their input."""

    def __init__(self, size: int) -> None:
        super().__init__(name="pictures", dtype="float32")
        self.size = size

    def call(self, crops: Any) -> Any:
        return (repeat_channels(crops, self.size) + 1.0) / 2.0

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (None, self.size, self.size, COLOURS)


class _SideBySide(keras.layers.Layer):
    """Features (C * n, F) of all channels to (n, C * F)."""

    def __init__(self, channels: int, number: int = 0) -> None:
        super().__init__(name=f"side_by_side_{number}", dtype="float32")
        self.channels = channels

    def call(self, features: Any) -> Any:
        width = features.shape[1]
        return ops.reshape(
            ops.transpose(ops.reshape(features, (self.channels, -1, width)), (1, 0, 2)), (-1, self.channels * width)
        )

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (None, self.channels * int(shape[1] or 0))


def _resize(planes: Any, axis: int, size: int) -> Any:
    """`planes`, (m, H, W), with one of their sides as long as `size`, by what stands at 0, H / size, 2 H / size, .."""
    length = planes.shape[axis]
    at = ops.arange(size, dtype="float32") * (length / size)
    low = ops.floor(at)
    share = ops.reshape(at - low, (1, size, 1) if axis == 1 else (1, 1, size))
    first = ops.cast(low, "int32")
    here = ops.take(planes, first, axis=axis)
    return here + (ops.take(planes, ops.minimum(first + 1, length - 1), axis=axis) - here) * share
