"""What EfficientNet and ResNetV2 of keras.applications have in common here, for any number of channels."""

from collections.abc import Callable
from typing import Any, Protocol

import keras
from keras import layers

from cytominer_tools.errors import InputError


class Build(Protocol):
    """What `deepprofile.networks` of setup.cfg point to."""

    def __call__(self, *, channels: int, size: tuple[int, int], classes: int | None = None) -> keras.Model: ...


def around(
    application: Callable[..., keras.Model],
    name: str,
    to_network_range: dict[str, float],
    rename: Callable[[list[keras.Layer]], None],
    *,
    channels: int,
    size: tuple[int, int],
    classes: int | None,
) -> keras.Model:
    """`application` between crops in [0, 1] and features, or logits of `classes`.

    Parameters
    ----------
    application : a function of keras.applications
    name : str
        Of the network here.
    to_network_range : dict
        `scale` and `offset` from [0, 1] to what its weights expect.
    rename : function
        Gives the layers of `application` names that do not count the networks of this process.
    channels, size, classes
        As `deepprofile.build_network` has them.

    Raises
    ------
    InputError
        Smaller than 32 px.
    """
    if min(size) < 32:
        raise InputError(f"{name} needs crops of at least 32 x 32 px, got {size[0]} x {size[1]}; set crops.size")
    inputs = keras.Input((*size, channels), name="crops")
    x = layers.Rescaling(**to_network_range, name="to_network_range")(inputs)
    base = application(include_top=False, weights=None, input_tensor=x)
    rename(base.layers)
    x = layers.GlobalAveragePooling2D(dtype="float32", name="features")(base.output)
    if classes is not None:
        x = layers.Dense(classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, x, name=name)


def with_imagenet(application: Callable[..., keras.Model], model: keras.Model, title: str, file: str) -> keras.Model:
    """The network of keras.applications with its ImageNet weights, for the crops of `model` in three colours.

    Raises
    ------
    InputError
        The weights are not on this machine and cannot be downloaded.
    """
    *size, _ = model.input_shape[1:]
    try:
        return application(include_top=False, weights="imagenet", input_shape=(*size, 3))
    except Exception as error:  # the downloader raises a bare Exception
        raise InputError(
            f"ImageNet weights of {title}: {str(error).splitlines()[0]}; put {file} of keras.applications in "
            "~/.keras/models"
        ) from error


def take_weights(model: keras.Model, donor: keras.Model, first: dict[str, list[Any]]) -> None:
    """Give `model`, but for its logits, the weights of `donor` by name of layer; but where `first` has some."""
    for layer in model.layers:
        if layer.weights and layer.name != "logits":
            layer.set_weights(first[layer.name] if layer.name in first else donor.get_layer(layer.name).get_weights())


def described(build: Build, name: str, title: str, width: int, **about: Any) -> Build:
    """`build` with what a plugin carries: its name, what it makes, its layers, source and ImageNet weights."""
    build.__name__ = f"build_{name}"  # type: ignore[attr-defined]
    build.__doc__ = f"""{title}; layer names are those of keras.applications.

    Parameters
    ----------
    channels : int
    size : (height, width) of a crop, px; at least 32.
    classes : int, optional
        Without it the model ends in its features.

    Returns
    -------
    keras.Model
        float32 (n, H, W, channels) in [0, 1] to float32 (n, classes), or to `features` (n, {width}).

    Raises
    ------
    InputError
        Smaller than 32 px.
    """
    for key, value in {"licence": "Apache-2.0", **about}.items():
        setattr(build, key, value)
    return build
