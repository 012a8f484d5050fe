"""What a training starts from: random, ImageNet's or somebody's weights, and the layers that keep them."""

from difflib import get_close_matches
from math import prod

import keras

from cytominer_tools.errors import InputError
from deepprofile.deepprofiler_weights import require_channels
from deepprofile.networks import build_network, load_imagenet, load_weights
from deepprofile.study import Study, Train

_SUFFIXES = (".keras", ".weights.h5", ".h5", ".hdf5")
_MEND = "set train.init to random or to a file"


def initial_network(study: Study, classes: int) -> keras.Model:
    """Build the network of `study` with a head of `classes`, and the weights that `train.init` names.

    random
        Of the seed, see `deepprofile.networks.initialize`; so is the head where the weights lack one of these classes.
    imagenet
        `train.stem` says how three channels become those of the study.
    a file, relative to study.yaml
        .keras, .weights.h5, or a legacy .h5 or .hdf5 by layer name, such as DeepProfiler's Cell Painting CNN
        (doi:10.5281/zenodo.7114558; five channels: DNA, RNA, ER, AGP, Mito), whose head ClassProb is not taken over.

    Raises
    ------
    InputError
        Weights that cannot be had or do not fit.
    """
    settings, chosen = study.train or Train(), study.profile
    model = build_network(
        chosen.network,
        channels=len(study.channels),
        size=(study.crops.size, study.crops.size),
        classes=classes,
        seed=study.seed,
        **chosen.options,
    )
    if settings.init == "imagenet":
        load_imagenet(model, chosen.network, settings.stem, _MEND)
    elif settings.init != "random":
        path = study.path(settings.init)
        if not path.name.endswith(_SUFFIXES):
            raise InputError(
                f"train.init: {settings.init!r} is neither random nor imagenet nor a file ({', '.join(_SUFFIXES)})"
            )
        if not path.is_file():
            raise InputError(f"{path}: no such weights file; {_MEND} that is there, or to imagenet")
        require_channels(study, path)
        load_weights(model, path)
    return model


def freeze(model: keras.Model, layer: str) -> int:
    """Let `layer` and every layer that it depends on, from the input on, keep its weights in training.

    Batch normalization among them uses the means and variances it has.

    Returns
    -------
    int
        The numbers in their weights, as far as they would have been trained.

    Raises
    ------
    InputError
        No such layer, or none after it that learns.
    """
    names = [one.name for one in model.layers]
    if layer not in names:
        near = get_close_matches(layer, names, n=3)
        known = f"did you mean {', '.join(near)}?" if near else f"it begins with {', '.join(names[:6])}"
        raise InputError(f"train.freeze: {model.name} has no layer {layer!r}; {known}")
    before = _trained(model)
    for one in keras.Model(model.input, model.get_layer(layer).output).layers:
        one.trainable = False
    if not model.trainable_weights:
        raise InputError(
            f"train.freeze: nothing is trained after {layer!r}, the last is {names[-1]!r}; name one before it"
        )
    return before - _trained(model)


def _trained(model: keras.Model) -> int:
    return sum(prod(weight.shape) for weight in model.trainable_weights)
