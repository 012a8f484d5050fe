"""EfficientNet-B0 to B7 (Tan & Le 2019, arXiv:1905.11946) of keras.applications, for any number of channels.

Layer names are DeepProfiler's too, but for `features` and `logits`, its pool5 and ClassProb: its Cell Painting CNN fits
EfficientNet-B0.
"""

from typing import Literal

import keras
import numpy as np

from plugins.networks.applications import Build, around, described, take_weights, with_imagenet
from plugins.networks.stems import colour_kernel, colours

# of ImageNet's red, green and blue in [0, 1], as keras.applications.efficientnet uses them
_MEAN, _SD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
_WIDTHS = (1280, 1280, 1408, 1536, 1792, 2048, 2304, 2560)


def _rename(layers: list[keras.Layer]) -> None:
    for layer in layers:
        if layer.name.startswith(("rescaling", "normalization")):
            layer.name = layer.name.split("_")[0]  # not normalization_1 in the second network of a process


def _network(number: int) -> Build:
    application = getattr(keras.applications, f"EfficientNetB{number}")
    name, title = f"efficientnet_b{number}", f"EfficientNet-B{number}"

    def build(*, channels: int, size: tuple[int, int], classes: int | None = None) -> keras.Model:
        # keras.applications divides by 255 again, and normalizes by weights that do nothing unless they are ImageNet's
        scaling = {"scale": 255.0}
        return around(application, name, scaling, _rename, channels=channels, size=size, classes=classes)

    def load_imagenet(model: keras.Model, stem: Literal["replicate", "inflate"]) -> None:
        """Give every layer of `model` but `logits` ImageNet's weights, and its input ImageNet's statistics.

        Three channels are red, green and blue. Of any other number

        - "replicate": channel i has the kernel and the statistics of colour i mod 3, as DeepProfiler has it; channels
          that share a colour also share its kernel (DeepProfiler lets each have the whole),
        - "inflate": every channel has the mean kernel, times 3 / channels, and the mean of the statistics.

        With at least three channels, equal ones give the activations of a grey picture: exactly those with
        "replicate", those of a picture normalized by one mean and deviation with "inflate".

        Raises
        ------
        InputError
            The weights are not on this machine and cannot be downloaded.
        """
        channels = model.input_shape[-1]
        donor = with_imagenet(application, model, title, f"efficientnetb{number}_notop.h5")
        kernel = colour_kernel(donor.get_layer("stem_conv").get_weights()[0], channels, stem)
        if channels != 3 and stem == "inflate":
            mean, sd = np.full(channels, _MEAN.mean()), np.full(channels, _SD.mean())
        else:
            mean, sd = _MEAN[colours(channels)], _SD[colours(channels)]
        take_weights(model, donor, {"stem_conv": [kernel], "normalization": [mean, sd**2, np.array(0)]})
        model.get_layer("normalization").finalize_state()

    layers = ("features", "block6a_activation", "top_activation")
    source = "keras.applications; arXiv:1905.11946"
    return described(build, name, title, _WIDTHS[number], feature_layers=layers, source=source, imagenet=load_imagenet)


build_b0, build_b1, build_b2, build_b3, build_b4, build_b5, build_b6, build_b7 = map(_network, range(8))
