"""A network that is ready to extract features, and the card that says what makes them comparable."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import keras
import numpy as np

from cytominer_tools.columns import PLATE
from cytominer_tools.errors import InputError
from cytominer_tools.manifest import changes
from deepprofile.deepprofiler_weights import require_channels, require_order
from deepprofile.index import load_index
from deepprofile.networks import GROUP, build_network, weights_hash
from deepprofile.registry import load, package
from deepprofile.repeat import COLOURS, see_each_channel, see_minus_one_to_one
from deepprofile.runtimes import Run, exported_runtime, keras_runtime, require_runtime, runtime_versions
from deepprofile.study import Study
from deepprofile.views import open_views
from deepprofile.work import log

AGREEING = 256  # cells that a precision below float32 is measured on


@dataclass(frozen=True)
class Extractor:
    """A network cut at some of its layers, computed by a runtime; made by `load_extractor`."""

    layers: tuple[str, ...]
    widths: tuple[int, ...]  # features a cell, by layer
    run: Run

    def __call__(self, crops: np.ndarray) -> tuple[np.ndarray, ...]:
        """float32 (batch, H, W, C), always of the one batch shape, to a float32 (batch, width) of each layer."""
        return tuple(self.run(crops))


def feature_network(model: keras.Model, layers: Sequence[str]) -> keras.Model:
    """`model` up to `layers`, whose outputs are float32 (n, width) each, in a list; images are averaged.

    Raises
    ------
    InputError
        It has no such layer, the nearest names are told; or a layer is neither an image nor a vector.
    """
    known = {layer.name: layer for layer in model.layers}
    outputs = []
    for name in layers:
        if name not in known:
            near = get_close_matches(name, known, 3, 0.5)
            nearest = f"the nearest are {', '.join(near)}" if near else f"its last are {', '.join([*known][-6:])}"
            raise InputError(f"profile.layer: {model.name} has no layer {name!r}; {nearest}")
        output = known[name].output
        if len(output.shape) == 4:
            output = keras.layers.GlobalAveragePooling2D(dtype="float32", name=f"mean_of_{name}")(output)
        elif len(output.shape) == 2:
            output = keras.layers.Activation("linear", dtype="float32", name=f"float32_of_{name}")(output)
        else:
            raise InputError(
                f"profile.layer: {name!r} of {model.name} has the shape {tuple(output.shape)}; features come from an "
                "image (n, H, W, C) or a vector (n, d)"
            )
        outputs.append(output)
    return keras.Model(model.input, outputs, name=model.name)


def load_extractor(study: Study) -> tuple[Extractor, tuple[dict[str, Any], ...]]:
    """The network of `study`, ready to extract, and a model card for each layer: all that makes features comparable.

    Raises
    ------
    InputError
        The runtime, the precision, the network, its weights or a layer cannot be had, or the weights were trained on
        other crops.
    """
    chosen, preprocess = study.profile, study.preprocess
    require_runtime(chosen.runtime, chosen.precision)
    weights = study.weights
    trained = None if weights is None else trained_card(Path(weights))
    if trained is not None:
        require_as_trained(study, trained, str(weights))
    elif isinstance(weights, Path) and chosen.mode == "multi_channel":
        require_channels(study, weights)
    model = _network(study, "float32")
    network = _cut(study, model)
    if weights is None:
        log.warning(
            "profile: profile.weights is none: %s is untrained, a baseline rather than a result", chosen.network
        )
    hashed = weights_hash(model)
    build = load(GROUP, chosen.network)
    made_by = {
        "network": chosen.network,
        "options": chosen.options,
        "package": package(GROUP, chosen.network),
        "source": getattr(build, "source", None),
        "licence": getattr(build, "licence", None),
    }
    run, agreement = _runtime(study, network, {**made_by, "weights_hash": hashed, "layers": list(chosen.layers)})
    widths = tuple(int(output.shape[-1]) for output in network.outputs)
    name = f"keras-{keras.backend.backend()}" if chosen.runtime == "keras" else chosen.runtime
    versions = {"keras": keras.__version__, "python": platform.python_version()}
    card = {
        "model": chosen.name,
        **made_by,
        "weights": chosen.weights or f"untrained, seed {study.seed}",
        "weights_hash": hashed,
        "preprocess": json.loads(preprocess.model_dump_json()),
        "illumination": study.correction,
        **study.channel_mode,
        "runtime": f"{name} {chosen.precision}",
        "versions": versions | runtime_versions(chosen.runtime),
    } | ({} if trained is None else {"training": trained["training"]})
    cards = []
    for i, (layer, width) in enumerate(zip(chosen.layers, widths, strict=True)):
        own = {"layer": layer, "width": width} | ({"agreement": agreement[i]} if agreement else {})
        cards.append(card | own | ({"model": f"{chosen.name}-{layer}"} if len(widths) > 1 else {}))
    return Extractor(chosen.layers, widths, run), tuple(cards)


def _network(study: Study, policy: str) -> keras.Model:
    """The network with its weights, built under a dtype policy of Keras; variables are float32 under all of them."""
    chosen, preprocess = study.profile, study.preprocess
    repeat = chosen.mode == "repeat_channel"
    side, channels = (chosen.input_size, COLOURS) if repeat else (preprocess.size, len(preprocess.channels))
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = build_network(
            chosen.network,
            channels=channels,
            size=(side, side),
            weights=study.weights,
            seed=study.seed,
            **chosen.options,
        )
    finally:
        keras.config.set_dtype_policy(before)
    # but for files that were saved with what the network is to see
    if repeat and not str(study.weights).endswith((".keras", ".weights.h5")):
        see_minus_one_to_one(model)
    return model


def _cut(study: Study, model: keras.Model) -> keras.Model:
    """From crops to the features of each layer."""
    network = feature_network(model, study.profile.layers)
    if study.profile.mode == "multi_channel":
        return network
    size = study.preprocess.size
    return see_each_channel(network, (size, size, len(study.channels)))


def _runtime(study: Study, network: keras.Model, about: dict[str, Any]) -> tuple[Run, list[dict[str, Any]]]:
    """What computes `network`, and with a precision below float32 how far its features agree, by layer."""
    chosen, preprocess = study.profile, study.preprocess
    repeat = chosen.mode == "repeat_channel"
    pixels = len(preprocess.channels) * chosen.input_size**2 if repeat else preprocess.size**2

    def run(precision: str) -> Run:
        if chosen.runtime != "keras":
            return exported_runtime(
                network,
                chosen.batch,
                chosen.runtime,
                precision,
                pixels=pixels,
                folder=study.models / "exported",
                name=chosen.name,
                about=about,
            )
        cut = network if precision == "float32" else _cut(study, _network(study, f"mixed_{precision}"))
        return keras_runtime(cut, (chosen.batch, preprocess.size, preprocess.size, len(preprocess.channels)))

    ours = run(chosen.precision)
    if chosen.precision == "float32":
        return ours, []
    crops = sample_cells(study, AGREEING)
    if not len(crops):
        return ours, [{"cells": 0}] * len(chosen.layers)
    found, exact = (_features(one, crops, chosen.batch) for one in (ours, run("float32")))
    agreement = [cosine_agreement(a, b) for a, b in zip(found, exact, strict=True)]
    for layer, one in zip(chosen.layers, agreement, strict=True):
        log.info(
            "profile: %s in %s: cosine to float32 %.5f in the mean of %d cells, %.5f at least",
            layer,
            chosen.precision,
            one["mean"],
            one["cells"],
            one["least"],
        )
    return ours, agreement


def _features(run: Run, crops: np.ndarray, batch: int) -> list[np.ndarray]:
    """Of all `crops`, in batches of one shape."""
    found = []
    for start in range(0, len(crops), batch):
        full = np.zeros((batch, *crops.shape[1:]), np.float32)
        full[: len(crops) - start] = crops[start : start + batch]
        found.append([features[: len(crops) - start].copy() for features in run(full)])
    return [np.concatenate(rows) for rows in zip(*found, strict=True)]


def cosine_agreement(found: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """The cosine of each cell's features, (n, width), to those in float32: its mean and its least, to 5 digits.

    Two cells of zeros agree; one alone does not.
    """
    found, exact = found.astype(np.float64), exact.astype(np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(exact, axis=1)
    same = (found == exact).all(axis=1)
    with np.errstate(invalid="ignore"):  # features that are not finite are refused when they are written
        cosines = np.where(same, 1.0, (found * exact).sum(axis=1) / np.where(norms > 0, norms, 1.0))
    return {"cells": len(cosines), "mean": round(float(cosines.mean()), 5), "least": round(float(cosines.min()), 5)}


def sample_cells(study: Study, number: int) -> np.ndarray:
    """The first cells of the study as its network sees them, float32 (at most `number`, H, W, C).

    Raises
    ------
    InputError
        The locations or intensities are not made.
    """
    index = load_index(study)
    shape = (study.crops.size, study.crops.size, len(study.channels))
    crops = [np.empty((0, *shape), np.float32)]
    for plate in index[PLATE].unique():
        views = open_views(study, index, [plate])[plate]
        for job in (job for well in views.sites for job in views.jobs(well)):
            if sum(map(len, crops)) >= number:
                return np.concatenate(crops)[:number]
            view = job.read()
            if view.cells is not None and view.fill is not None:
                crops.append(np.empty((len(view.cells), *shape), np.float32))
                view.fill(0, crops[-1])
    return np.concatenate(crops)[:number]


def trained_card(weights: Path) -> dict[str, Any] | None:
    """The model card that training left beside `weights`, or above the epochs; None where there is none."""
    for folder in (weights.parent, weights.parent.parent):
        path = folder / "card.json"
        if weights.is_file() and path.is_file():
            try:
                card = json.loads(path.read_text("utf-8"))
            except ValueError:
                card = None
            needed = {"network", "preprocess", "illumination"}
            if not isinstance(card, dict) or ("training" in card and not needed <= set(card)):
                raise InputError(f"{path}: not a model card; delete it to profile without one")
            return card if "training" in card else None
    return None


def require_as_trained(study: Study, card: dict[str, Any], weights: str) -> None:
    """Refuse to profile with another network, or with other channels or crops than it was trained on.

    Raises
    ------
    InputError
        It says what differs and how to mend it.
    """
    if card["network"] != study.profile.network:
        raise InputError(
            f"{weights} was trained as {card['network']}, and profile.network is {study.profile.network}; set it to "
            f"{card['network']}, or profile.weights to other weights"
        )
    found, wanted = card["preprocess"], json.loads(study.preprocess.model_dump_json())
    require_order(weights, found["channels"], wanted["channels"])
    if study.profile.mode == "repeat_channel":
        raise InputError(
            f"{weights} was trained on {', '.join(found['channels'])} together; repeat_channel is for networks of "
            "pictures in red, green and blue: set profile.mode to multi_channel"
        )
    found, wanted = found | {"illumination": card["illumination"]}, wanted | {"illumination": study.correction}
    if not card.get("same_as_profiling", True):  # then the size alone has to be that of the training
        found, wanted = {"size": found["size"]}, {"size": wanted["size"]}
    if changed := changes(found, wanted):
        raise InputError(f"{weights} was trained on other crops ({'; '.join(changed)}); set them as they were there")
