"""What a first convolution made for red, green and blue becomes where there are other channels."""

from typing import Literal

import numpy as np


def colours(channels: int) -> np.ndarray:
    """The colour, 0 to 2, of each channel: they take turns; int (channels,)."""
    return np.arange(channels) % 3


def colour_kernel(kernel: np.ndarray, channels: int, stem: Literal["replicate", "inflate"]) -> np.ndarray:
    """A kernel (h, w, 3, f) of colours as one of `channels`, (h, w, channels, f).

    Three channels are red, green and blue. Of any other number

    - "replicate": channel i has the kernel of colour i mod 3; channels that share a colour also share its kernel,
    - "inflate": every channel has the mean kernel, times 3 / channels.

    Either way, with at least three channels, equal ones give what a grey picture gives.
    """
    if channels == 3:
        return kernel
    if stem == "inflate":
        return np.repeat(kernel.mean(axis=2, keepdims=True) * 3 / channels, channels, axis=2)
    colour = colours(channels)
    sharing = np.bincount(colour)[colour]
    return kernel[:, :, colour] / sharing[:, None] * 3 / min(channels, 3)
