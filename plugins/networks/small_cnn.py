"""A small convolutional network for a laptop, a demo or a test."""

import keras
from keras import layers


def build(
    *, channels: int, size: tuple[int, int], classes: int | None = None, width: int = 32, depth: int = 4
) -> keras.Model:
    """`depth` blocks of convolution, batch normalisation, ReLU and halving, then the mean over the image.

    Parameters
    ----------
    channels : int
    size : (height, width) of a crop, px; at least 2 ** depth.
    classes : int, optional
        Without it the model ends in its features.
    width : int
        Filters of the first block; each block has twice those of the one before it.
    depth : int

    Returns
    -------
    keras.Model
        float32 (n, H, W, channels) in [0, 1] to float32 (n, classes), or to `features` (n, width * 2 ** (depth - 1)).
    """
    x = inputs = keras.Input((*size, channels), name="crops")
    for block in range(depth):
        x = layers.Conv2D(width << block, 3, padding="same", use_bias=False, name=f"block{block + 1}_conv")(x)
        x = layers.BatchNormalization(name=f"block{block + 1}_bn")(x)
        x = layers.ReLU(name=f"block{block + 1}_activation")(x)
        x = layers.MaxPooling2D(name=f"block{block + 1}_pool")(x)
    x = layers.GlobalAveragePooling2D(dtype="float32", name="features")(x)
    if classes is not None:
        x = layers.Dense(classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, x, name="small_cnn")


build.feature_layers = ("features", "block3_activation", "block4_activation")  # type: ignore[attr-defined]
build.source = "deepprofile"  # type: ignore[attr-defined]
build.licence = "BSD-3-Clause"  # type: ignore[attr-defined]
