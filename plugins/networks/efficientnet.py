"""EfficientNet (Tan & Le 2019, arXiv:1905.11946) of keras.applications, for any number of channels."""

from typing import Literal

import keras
import numpy as np
from keras import layers

from cytominer_tools.errors import InputError

# of ImageNet's red, green and blue in [0, 1], as keras.applications.efficientnet uses them
_MEAN, _SD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def build_b0(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int | None = None,
    weights: Literal["imagenet"] | None = None,
) -> keras.Model:
    """EfficientNet-B0; layer names are those of keras.applications (stem_conv ... top_activation).

    Parameters
    ----------
    channels : int
    size : (height, width) of a crop, px; at least 32.
    classes : int, optional
        Without it the model ends in its features.
    weights : "imagenet" or None
        With "imagenet" and other than three channels the stem's kernel is the mean over red, green and blue, times
        3 / channels, so that equal channels give the activations of a grey picture; every other layer is copied.

    Returns
    -------
    keras.Model
        float32 (n, H, W, channels) in [0, 1] to float32 (n, classes), or to `features` (n, 1280).

    Raises
    ------
    InputError
        Smaller than 32 px, or the ImageNet weights are not on this machine and cannot be downloaded.
    """
    if min(size) < 32:
        raise InputError(
            f"efficientnet_b0 needs crops of at least 32 x 32 px, got {size[0]} x {size[1]}; set crops.size"
        )
    inputs = keras.Input((*size, channels), name="crops")
    scale, offset = np.full(channels, 255.0), np.zeros(channels)  # what keras.applications expects: 0 to 255
    if weights == "imagenet":
        mean, sd = (_MEAN, _SD) if channels == 3 else (np.full(channels, _MEAN.mean()), np.full(channels, _SD.mean()))
        scale, offset = 255 / sd, -255 * mean / sd
    x = layers.Rescaling(scale.tolist(), offset.tolist(), name="to_network_range")(inputs)
    base = keras.applications.EfficientNetB0(include_top=False, weights=None, input_tensor=x)
    if weights == "imagenet":
        _copy_imagenet(base, channels, size)
    x = layers.GlobalAveragePooling2D(dtype="float32", name="features")(base.output)
    if classes is not None:
        x = layers.Dense(classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, x, name="efficientnet_b0")


build_b0.feature_layers = ("features", "block6a_activation", "top_activation")  # type: ignore[attr-defined]
build_b0.source = "keras.applications; arXiv:1905.11946"  # type: ignore[attr-defined]
build_b0.licence = "Apache-2.0"  # type: ignore[attr-defined]


def _copy_imagenet(base: keras.Model, channels: int, size: tuple[int, int]) -> None:
    try:
        donor = keras.applications.EfficientNetB0(include_top=False, weights="imagenet", input_shape=(*size, 3))
    except Exception as error:  # the downloader raises a bare Exception
        raise InputError(
            f"ImageNet weights of EfficientNet-B0: {str(error).splitlines()[0]}; put efficientnetb0_notop.h5 of "
            "keras.applications in ~/.keras/models, or give profile.weights a file"
        ) from error
    for layer in base.layers:
        # the donor's normalisation is in to_network_range
        if layer.weights and not isinstance(layer, layers.Normalization):
            values = donor.get_layer(layer.name).get_weights()
            if layer.name == "stem_conv" and channels != 3:
                values = [np.repeat(values[0].mean(axis=2, keepdims=True) * 3 / channels, channels, axis=2)]
            layer.set_weights(values)
