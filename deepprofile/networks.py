"""Networks by name: built by a plugin, given weights, and known by a hash of them."""

import hashlib
import inspect
import math
import warnings
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from cytominer_tools.errors import InputError
from deepprofile.registry import load

GROUP = "deepprofile.networks"


def build_network(
    name: str,
    *,
    channels: int,
    size: tuple[int, int],
    classes: int | None = None,
    weights: str | Path | None = None,
    seed: int = 0,
    **options: Any,
) -> keras.Model:
    """Build the network that is installed or registered as `name`.

    Parameters
    ----------
    name : str
        Such as "small_cnn" or "efficientnet_b0"; `deepprofile models` lists them.
    channels : int
    size : (height, width) of a crop, px
    classes : int, optional
        Width of the logits; without it the model ends in the layer named `features`.
    weights : None, "imagenet" or a file
        None: untrained, see `initialize`. "imagenet": where the network offers it. A file: .keras, .weights.h5 or a
        legacy .h5 / .hdf5.
    seed : int
        Of the untrained weights, and of a head that `weights` does not fill.
    **options
        Of that network.

    Returns
    -------
    keras.Model
        float32 (n, H, W, channels) in [0, 1] to float32 logits (n, classes) or features (n, d).

    Raises
    ------
    InputError
        Unknown name or option, or weights that cannot be had or do not fit.
    """
    build = load(GROUP, name)
    try:
        inspect.signature(build).bind(channels=channels, size=size, classes=classes, **options)
    except TypeError as error:
        raise InputError(f"{name}: {error}; `deepprofile models` lists its options") from None
    model = build(channels=channels, size=size, classes=classes, **options)
    initialize(model, seed)  # before weights too: they may lack a head of these classes
    if weights == "imagenet":
        load_imagenet(model, name)
    elif weights is not None:
        load_weights(model, Path(weights))
    return model


def initialize(model: keras.Model, seed: int) -> None:
    """Draw every kernel anew with numpy, so that untrained weights are the same on every backend and machine.

    Normal with variance 2 / fan-in (He et al. 2015, arXiv:1502.01852), fan-in of a depthwise kernel without its
    channels; vectors (biases, normalisation) stay as built.
    """
    for number, layer in enumerate(model.layers):
        rng = np.random.default_rng([seed, number])
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        for variable in layer.trainable_weights:
            if len(variable.shape) > 1:
                fan = math.prod(variable.shape[:2] if depthwise else variable.shape[:-1])
                variable.assign(rng.normal(0, math.sqrt(2 / fan), variable.shape).astype("float32"))


def load_imagenet(
    model: keras.Model,
    name: str,
    stem: Literal["replicate", "inflate"] = "replicate",
    mend: str = "set profile.weights to a file, or leave it out",
) -> None:
    """Fill `model`, but for its head, with the ImageNet weights of the network `name`; `stem` as that network has it.

    Raises
    ------
    InputError
        It has none, or they cannot be had; `mend` ends the message.
    """
    fill = getattr(load(GROUP, name), "imagenet", None)
    if fill is None:
        raise InputError(f"{name} has no ImageNet weights; {mend}")
    try:
        fill(model, stem=stem)
    except InputError as error:
        raise InputError(f"{error}, or {mend}") from error.__cause__


def load_weights(model: keras.Model, path: Path) -> None:
    """Fill `model` from a file; nothing in the file is executed.

    A .keras file and a legacy .h5 or .hdf5 file (DeepProfiler's among them) are matched by layer name, a .weights.h5
    file by structure. Every layer but a head named `logits` must be found with its shape. The head of another number of
    classes stays as it is, and so does any other that is not called `logits`, such as DeepProfiler's ClassProb.

    Raises
    ------
    InputError
        No such file, not readable, or layers that it lacks or holds in another shape.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weights file; profile.weights is imagenet or a file, and left out for none")
    try:
        if path.suffix == ".keras":
            donor = keras.saving.load_model(path, compile=False, safe_mode=True)
            _copy_by_name(model, donor, path)
        elif path.name.endswith(".weights.h5"):
            _load(model, path)
        elif path.suffix in (".h5", ".hdf5"):
            _load_legacy(model, path)
        else:
            raise InputError(f"{path}: expected a .keras, .weights.h5, .h5 or .hdf5 file")
    except (ValueError, KeyError, OSError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:300]  # Keras says what differs on a later line
        raise InputError(f"{path}: does not fit {model.name}: {reason}; check profile.network and channels") from error


def jit_compile() -> bool | str:
    """What to compile with: XLA makes convolutions on a CPU ten times slower; JAX has nothing else."""
    return False if keras.backend.backend() == "tensorflow" else "auto"


def weights_hash(model: keras.Model) -> str:
    """SHA-256 over shapes and float32 values of all weights in order; 16 hexadecimal digits."""
    sha = hashlib.sha256()
    for values in model.get_weights():
        sha.update(repr(values.shape).encode())
        sha.update(np.ascontiguousarray(values, np.float32).tobytes())
    return sha.hexdigest()[:16]


def _copy_by_name(model: keras.Model, donor: keras.Model, path: Path) -> None:
    theirs = {layer.name: layer.get_weights() for layer in donor.layers}
    _require_fit(model, {name: [v.shape for v in values] for name, values in theirs.items()}, path)
    for layer in model.layers:
        values = theirs.get(layer.name, [])
        if layer.weights and [v.shape for v in values] == _shapes(layer):
            layer.set_weights(values)
            if isinstance(layer, keras.layers.Normalization):
                layer.finalize_state()


def _load_legacy(model: keras.Model, path: Path) -> None:
    import h5py

    with h5py.File(path, "r") as file:
        _refuse_links(file, path)
        group = file.get("model_weights", file)
        theirs = {
            _text(name): [group[_text(name)][_text(w)].shape for w in group[_text(name)].attrs["weight_names"]]
            for name in group.attrs["layer_names"]
        }
    # DeepProfiler's files have no normalization of the input, and ours does nothing unless it is filled
    fixed = {layer.name: _shapes(layer) for layer in model.layers if isinstance(layer, keras.layers.Normalization)}
    _require_fit(model, fixed | theirs, path)
    _load(model, path, by_name=True)


def _require_fit(model: keras.Model, theirs: dict[str, list[tuple[int, ...]]], path: Path) -> None:
    """Refuse weights of other shapes, `theirs` by layer name, than the layers of `model` before its head have."""
    ours = {layer.name: _shapes(layer) for layer in model.layers if layer.weights and layer.name != "logits"}
    unfit = [name for name, shapes in ours.items() if theirs.get(name) != shapes]
    if unfit:
        first = unfit[0]
        there = ", ".join(map(str, theirs.get(first, []))) or "nothing"
        raise InputError(
            f"{path}: {len(unfit)} layer(s) of {model.name} are absent from it or differ in shape, first {first!r}; "
            f"it has {there} there, {', '.join(map(str, ours[first]))} here; check profile.network, its options and "
            "the number of channels"
        )


def _shapes(layer: keras.layers.Layer) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in layer.weights]


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _refuse_links(group: Any, path: Path) -> None:
    """Refuse a file that would read other files: weights from a stranger are data."""
    import h5py

    for name in group:
        link = group.get(name, getlink=True)
        item = None if isinstance(link, h5py.ExternalLink | h5py.SoftLink) else group[name]
        if item is None or (isinstance(item, h5py.Dataset) and item.external):
            raise InputError(f"{path}: {name!r} is a link to elsewhere; save the weights into one file")
        if isinstance(item, h5py.Group):
            _refuse_links(item, path)


def _load(model: keras.Model, path: Path, **how: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what Keras tries again before it raises
        try:
            model.load_weights(path, **how)
        except ValueError:
            if model.layers[-1].name != "logits":
                raise
            # perhaps the head has other classes; all before it must fit
            keras.Model(model.input, model.layers[-1].input).load_weights(path, **how)
