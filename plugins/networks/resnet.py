"""ResNetV2 (He et al. 2016, arXiv:1603.05027) of keras.applications, for any number of channels."""

from typing import Literal

import keras
from keras import layers

from cytominer_tools.errors import InputError
from plugins.networks.stems import colour_kernel


def build_50(*, channels: int, size: tuple[int, int], classes: int | None = None) -> keras.Model:
    """ResNet50V2; layer names are those of keras.applications, and DeepProfiler's (conv1_conv ... post_relu).

    Parameters
    ----------
    channels : int
    size : (height, width) of a crop, px; at least 32.
    classes : int, optional
        Without it the model ends in its features.

    Returns
    -------
    keras.Model
        float32 (n, H, W, channels) in [0, 1] to float32 (n, classes), or to `features` (n, 2048).

    Raises
    ------
    InputError
        Smaller than 32 px.
    """
    if min(size) < 32:
        raise InputError(
            f"keras_resnet50v2 needs crops of at least 32 x 32 px, got {size[0]} x {size[1]}; set crops.size"
        )
    inputs = keras.Input((*size, channels), name="crops")
    x = layers.Rescaling(2.0, offset=-1.0, name="to_network_range")(inputs)  # ImageNet's weights expect [-1, 1]
    base = keras.applications.ResNet50V2(include_top=False, weights=None, input_tensor=x)
    shortcuts = [layer for layer in base.layers if layer.name.startswith("max_pooling2d")]
    for number, layer in enumerate(shortcuts):
        layer.name = f"shortcut{number}_pool"  # not max_pooling2d_6 in the second network of a process
    x = layers.GlobalAveragePooling2D(dtype="float32", name="features")(base.output)
    if classes is not None:
        x = layers.Dense(classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, x, name="keras_resnet50v2")


def load_imagenet(model: keras.Model, stem: Literal["replicate", "inflate"]) -> None:
    """Give every layer of `model` but `logits` the weights of keras.applications; `stem` as EfficientNet's has it.

    Raises
    ------
    InputError
        The weights are not on this machine and cannot be downloaded.
    """
    *size, channels = model.input_shape[1:]
    try:
        donor = keras.applications.ResNet50V2(include_top=False, weights="imagenet", input_shape=(*size, 3))
    except Exception as error:  # the downloader raises a bare Exception
        raise InputError(
            f"ImageNet weights of ResNet50V2: {str(error).splitlines()[0]}; put "
            "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5 of keras.applications in ~/.keras/models"
        ) from error
    kernel, bias = donor.get_layer("conv1_conv").get_weights()
    first = [colour_kernel(kernel, channels, stem), bias]
    for layer in model.layers:
        if layer.weights and layer.name != "logits":
            layer.set_weights(first if layer.name == "conv1_conv" else donor.get_layer(layer.name).get_weights())


build_50.feature_layers = ("features", "post_relu", "conv4_block6_out")  # type: ignore[attr-defined]
build_50.source = "keras.applications; arXiv:1603.05027"  # type: ignore[attr-defined]
build_50.licence = "Apache-2.0"  # type: ignore[attr-defined]
build_50.imagenet = load_imagenet  # type: ignore[attr-defined]
