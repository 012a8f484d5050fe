"""EfficientNet (Tan & Le 2019, arXiv:1905.11946) of keras.applications, for any number of channels."""

from typing import Literal

import keras
import numpy as np
from keras import layers

from cytominer_tools.errors import InputError
from plugins.networks.stems import colour_kernel, colours

# of ImageNet's red, green and blue in [0, 1], as keras.applications.efficientnet uses them
_MEAN, _SD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def build_b0(*, channels: int, size: tuple[int, int], classes: int | None = None) -> keras.Model:
    """EfficientNet-B0; layer names are those of keras.applications (stem_conv ... top_activation).

    They are DeepProfiler's too, but for `features` and `logits`, its pool5 and ClassProb: its Cell Painting CNN fits.

    Parameters
    ----------
    channels : int
    size : (height, width) of a crop, px; at least 32.
    classes : int, optional
        Without it the model ends in its features.

    Returns
    -------
    keras.Model
        float32 (n, H, W, channels) in [0, 1] to float32 (n, classes), or to `features` (n, 1280).

    Raises
    ------
    InputError
        Smaller than 32 px.
    """
    if min(size) < 32:
        raise InputError(
            f"efficientnet_b0 needs crops of at least 32 x 32 px, got {size[0]} x {size[1]}; set crops.size"
        )
    inputs = keras.Input((*size, channels), name="crops")
    # keras.applications divides by 255 again, and normalizes by weights that do nothing unless they are ImageNet's
    x = layers.Rescaling(255.0, name="to_network_range")(inputs)
    base = keras.applications.EfficientNetB0(include_top=False, weights=None, input_tensor=x)
    for layer in base.layers:
        if layer.name.startswith(("rescaling", "normalization")):
            layer.name = layer.name.split("_")[0]  # not normalization_1 in the second network of a process
    x = layers.GlobalAveragePooling2D(dtype="float32", name="features")(base.output)
    if classes is not None:
        x = layers.Dense(classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, x, name="efficientnet_b0")


def load_imagenet(model: keras.Model, stem: Literal["replicate", "inflate"]) -> None:
    """Give every layer of `model` but `logits` the weights of keras.applications, and its input ImageNet's statistics.

    Three channels are red, green and blue. Of any other number

    - "replicate": channel i has the kernel and the statistics of colour i mod 3, as DeepProfiler has it; channels that
      share a colour also share its kernel (DeepProfiler lets each have the whole),
    - "inflate": every channel has the mean kernel, times 3 / channels, and the mean of the statistics.

    With at least three channels, equal ones give the activations of a grey picture: exactly those with "replicate",
    those of a picture normalized by one mean and deviation with "inflate".

    Raises
    ------
    InputError
        The weights are not on this machine and cannot be downloaded.
    """
    *size, channels = model.input_shape[1:]
    try:
        donor = keras.applications.EfficientNetB0(include_top=False, weights="imagenet", input_shape=(*size, 3))
    except Exception as error:  # the downloader raises a bare Exception
        raise InputError(
            f"ImageNet weights of EfficientNet-B0: {str(error).splitlines()[0]}; put efficientnetb0_notop.h5 of "
            "keras.applications in ~/.keras/models"
        ) from error
    kernel = colour_kernel(donor.get_layer("stem_conv").get_weights()[0], channels, stem)
    if channels != 3 and stem == "inflate":
        mean, sd = np.full(channels, _MEAN.mean()), np.full(channels, _SD.mean())
    else:
        mean, sd = _MEAN[colours(channels)], _SD[colours(channels)]
    for layer in model.layers:
        if layer.weights and layer.name not in ("normalization", "logits"):
            layer.set_weights([kernel] if layer.name == "stem_conv" else donor.get_layer(layer.name).get_weights())
    normalization = model.get_layer("normalization")
    normalization.set_weights([mean, sd**2, np.array(0)])
    normalization.finalize_state()


build_b0.feature_layers = ("features", "block6a_activation", "top_activation")  # type: ignore[attr-defined]
build_b0.source = "keras.applications; arXiv:1905.11946"  # type: ignore[attr-defined]
build_b0.licence = "Apache-2.0"  # type: ignore[attr-defined]
build_b0.imagenet = load_imagenet  # type: ignore[attr-defined]
