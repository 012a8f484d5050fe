"""ResNet50V2, 101 and 152 (He et al. 2016, arXiv:1603.05027) of keras.applications, for any number of channels.

Layer names are those of DeepProfiler too (conv1_conv ... post_relu).
"""

from typing import Literal

import keras

from plugins.networks.applications import Build, around, described, take_weights, with_imagenet
from plugins.networks.stems import colour_kernel


def _rename(layers: list[keras.Layer]) -> None:
    shortcuts = [layer for layer in layers if layer.name.startswith("max_pooling2d")]
    for number, layer in enumerate(shortcuts):
        layer.name = f"shortcut{number}_pool"  # not max_pooling2d_6 in the second network of a process


def _network(depth: int, last_of_conv4: int) -> Build:
    application = getattr(keras.applications, f"ResNet{depth}V2")
    name, title = f"keras_resnet{depth}v2", f"ResNet{depth}V2"

    def build(*, channels: int, size: tuple[int, int], classes: int | None = None) -> keras.Model:
        scaling = {"scale": 2.0, "offset": -1.0}  # ImageNet's weights expect [-1, 1]
        return around(application, name, scaling, _rename, channels=channels, size=size, classes=classes)

    def load_imagenet(model: keras.Model, stem: Literal["replicate", "inflate"]) -> None:
        """Give every layer of `model` but `logits` ImageNet's weights; `stem` as EfficientNet's has it.

        Raises
        ------
        InputError
            The weights are not on this machine and cannot be downloaded.
        """
        file = f"resnet{depth}v2_weights_tf_dim_ordering_tf_kernels_notop.h5"
        donor = with_imagenet(application, model, title, file)
        kernel, bias = donor.get_layer("conv1_conv").get_weights()
        take_weights(model, donor, {"conv1_conv": [colour_kernel(kernel, model.input_shape[-1], stem), bias]})

    layers = ("features", "post_relu", f"conv4_block{last_of_conv4}_out")
    source = "keras.applications; arXiv:1603.05027"
    return described(build, name, title, 2048, feature_layers=layers, source=source, imagenet=load_imagenet)


build_50, build_101, build_152 = _network(50, 6), _network(101, 23), _network(152, 36)
