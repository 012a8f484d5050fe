"""A DeepProfiler project in place gives the features that DeepProfiler gives, by its pipeline written again.

Read, boxes in units of the image, ``tf.image.crop_and_resize``, stretch of each crop, predict, mean over the image.
"""

import json

import cv2
import h5py
import keras
import numpy as np
import pandas as pd
import pytest
import skimage.measure
import tifffile

from cytominer_tools.errors import InputError
from deepprofile.checks import check_study
from deepprofile.deepprofiler_project import init_deepprofiler
from deepprofile.deepprofiler_weights import CELL_PAINTING_CNN, trained_channels
from deepprofile.features import profile_cells
from deepprofile.initialization import initial_network
from deepprofile.locations import locate_cells
from deepprofile.networks import build_network
from deepprofile.study import Train, read_study

tf = pytest.importorskip("tensorflow")

HEIGHT, WIDTH, BOX, COLOUR_SIDE = 150, 180, 128, 64
CPCNN = "Cell_Painting_CNN_v1.hdf5"
# one in the middle, two whose box leaves the image, one at a whole pixel
CENTRES = {"A01": [(90.3, 75.8), (20.0, 20.0), (179.0, 149.2)], "A02": [(100, 80)]}


def their_graph(channels, side, classes=None):
    """EfficientNet-B0 of the package efficientnet 1.1.1; there the stem sees 1 / 255 of what is given here."""
    inputs = keras.Input((side, side, channels))
    base = keras.applications.EfficientNetB0(include_top=False, weights=None, input_tensor=inputs)
    x = keras.layers.GlobalAveragePooling2D(name="pool5")(base.output)
    if classes:
        x = keras.layers.Dense(classes, activation="softmax", name="ClassProb")(x)
    return keras.Model(inputs, x)


def write_checkpoint(model, path, head=()):
    """Weights as Keras 2 kept them: every layer by name, its weights by theirs; no normalization of the input."""
    rng = np.random.default_rng(1)
    ends = {"gamma": (0.5, 1.5), "beta": (-0.5, 0.5), "moving_mean": (-0.2, 0.2), "moving_variance": (0.5, 1.5)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        layers = [one for one in model.layers if not one.name.startswith(("rescaling", "normalization"))]
        file.attrs["layer_names"] = np.array([one.name for one in layers], "S")
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.5.0"
        for layer in layers:
            group = file.create_group(layer.name)
            kinds = [weight.path.rsplit("/", 1)[-1] for weight in layer.weights]
            if isinstance(layer, keras.layers.DepthwiseConv2D):
                kinds = ["depthwise_kernel"]
            group.attrs["weight_names"] = np.array([f"{layer.name}/{kind}:0" for kind in kinds], "S")
            for kind, weight in zip(kinds, layer.weights, strict=True):
                if kind in ends:
                    values = rng.uniform(*ends[kind], weight.shape)
                    if layer.name == "top_bn" and kind in ("gamma", "beta"):
                        values /= 10  # so that features are as large as real ones are
                else:
                    fan = np.prod(weight.shape[:2] if kind == "depthwise_kernel" else weight.shape[:-1])
                    values = rng.normal(0, np.sqrt(2 / fan), weight.shape)
                group[f"{layer.name}/{kind}:0"] = values.astype(np.float32)


@pytest.fixture(scope="module")
def cpcnn(tmp_path_factory):
    """The file of Cell Painting CNN v1 in its layout, and the network that reads it; weights are random."""
    path = tmp_path_factory.mktemp("weights") / CPCNN
    network = their_graph(5, BOX, classes=490)
    write_checkpoint(network, path)
    network.load_weights(path, by_name=True)
    return path, network


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """The file that keras.applications would download, and DeepProfiler's network of it."""
    path = tmp_path_factory.mktemp("imagenet") / "efficientnetb0_notop.h5"
    donor = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(COLOUR_SIDE, COLOUR_SIDE, 3)
    )
    layer = next(one for one in donor.layers if isinstance(one, keras.layers.Normalization))
    network = their_graph(3, COLOUR_SIDE)
    write_checkpoint(network, path)
    network.load_weights(path, by_name=True)
    for one in donor.layers:
        if one.weights and one is not layer:
            one.set_weights(network.get_layer(one.name).get_weights())
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, donor)
    return path, network


def project(root, bits=16, channels=CELL_PAINTING_CNN, masked=False, **profile):
    """A project of two sites; their cells lie in squares of 40 px, between lines."""
    rng, rows = np.random.default_rng(bits), []
    for well, centres in CENTRES.items():
        row = {"Metadata_Plate": "P1", "Metadata_Well": well, "Metadata_Site": 1, "Treatment": "DMSO"}
        for number, channel in enumerate(CELL_PAINTING_CNN):
            row[channel] = f"P1/{well}_{channel}.tif"
            low, high = (100, 4000) if bits == 16 else (3, 250)
            image = rng.integers(low, high - 300 * (bits == 16) * number, (HEIGHT, WIDTH))
            path = root / "inputs/images" / row[channel]
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, image.astype(f"uint{bits}"))
        rows.append(row)
        place = root / f"inputs/locations/P1/{well}-1-Nuclei.csv"
        place.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(centres, columns=["Nuclei_Location_Center_X", "Nuclei_Location_Center_Y"]).to_csv(
            place, index=False
        )
    for folder in ("config", "metadata"):
        (root / "inputs" / folder).mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(root / "inputs/metadata/index.csv", index=False)
    if masked:
        lines = np.zeros((HEIGHT, WIDTH), np.uint8)
        lines[::40] = lines[:, ::40] = 1
        for row in rows:
            row["Outlines"] = f"P1/{row['Metadata_Well']}.png"
            (root / "inputs/outlines/P1").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / "inputs/outlines" / row["Outlines"]), lines)
        columns = ["Metadata_Plate", "Metadata_Well", "Metadata_Site", "Outlines"]
        pd.DataFrame(rows)[columns].to_csv(root / "inputs/metadata/outlines.csv", index=False)
    write_config(root, channels, masked=masked, **profile)
    return root


def write_config(root, channels=CELL_PAINTING_CNN, generator="sampled_crop_generator", masked=False, **profile):
    config = {
        "dataset": {
            "metadata": {"label_field": "Treatment", "control_value": "DMSO"},
            "images": {"channels": list(channels), "file_format": "tif", "bits": 16, "width": WIDTH, "height": HEIGHT},
            "locations": {"mode": "single_cells", "box_size": BOX, "mask_objects": masked},
        },
        "prepare": {"compression": {"implement": False}, "outlines": "outlines.csv" if masked else ""},
        "train": {
            "partition": {"targets": ["Treatment"]},
            "model": {"name": "efficientnet", "crop_generator": generator, "params": {"conv_blocks": 0}},
        },
        "profile": {"feature_layer": "block6a_activation", "checkpoint": CPCNN, "batch_size": 4, **profile},
    }
    (root / "inputs/config/config.json").write_text(json.dumps(config))


# --- their pipeline
def their_crops(root, well, stretch, masked=False):
    planes = [tifffile.imread(root / f"inputs/images/P1/{well}_{name}.tif") for name in CELL_PAINTING_CNN]
    image = np.stack(planes, axis=-1).astype(np.float32)
    x, y = np.array(CENTRES[well], np.float64).T
    half = BOX / 2
    edges = np.stack([y - half, x - half, y + half, x + half], axis=1).astype(np.float32)
    edges /= np.array([HEIGHT, WIDTH, HEIGHT, WIDTH], np.float32)
    crops = tf.image.crop_and_resize(image[None], edges, np.zeros(len(x), int), (BOX, BOX)).numpy()
    if masked:
        lines = cv2.imread(str(root / f"inputs/outlines/P1/{well}.png"), cv2.IMREAD_UNCHANGED)
        labels = skimage.measure.label(lines, background=1)
        own = []
        for column, row in zip(x.astype(int), y.astype(int), strict=True):
            own.append(np.median(labels[max(row - 5, 0) : row + 5, max(column - 5, 0) : column + 5]))
        cut = tf.image.crop_and_resize(
            labels[None, ..., None].astype(np.float32), edges, np.zeros(len(x), int), (BOX, BOX)
        ).numpy()
        crops = crops * (cut == np.array(own, int)[:, None, None, None])
    low, high = crops.min(axis=(1, 2), keepdims=True), crops.max(axis=(1, 2), keepdims=True)
    if stretch == "legacy_over_max":
        return (crops - low) / high
    if stretch == "minmax":
        return (crops - low) / (high - low + 1e-7)
    crops = crops.astype(np.float64)  # or the mean of 16,384 counts would be off by its rounding
    scores = (crops - crops.mean(axis=(1, 2), keepdims=True)) / crops.std(axis=(1, 2), keepdims=True)
    return scores.astype(np.float32)


def their_features(network, layer, crops):
    found = keras.Model(network.input, network.get_layer(layer).output).predict(255 * crops, verbose=0)
    while found.ndim > 2:
        found = found.mean(axis=1)
    return found


def their_channels(network, layer, crops):
    small = tf.compat.v1.image.resize_images(crops, (COLOUR_SIDE, COLOUR_SIDE)).numpy()
    grey = small.transpose(3, 0, 1, 2).reshape(-1, COLOUR_SIDE, COLOUR_SIDE, 1)
    low, high = grey.min(axis=(1, 2), keepdims=True), grey.max(axis=(1, 2), keepdims=True)
    pictures = np.repeat((grey - low) / (high - low) * 2 - 1, 3, axis=3)
    found = their_features(network, layer, pictures).reshape(crops.shape[3], len(crops), -1)
    return np.concatenate(found, axis=-1)


def ours(study):
    import pyarrow.parquet as pq

    locate_cells(study)
    profile_cells(study)
    table = pq.read_table(study.features / "P1" / "cells.parquet")
    values = np.asarray(table["features"].combine_chunks().flatten()).reshape(len(table), -1)
    wells = np.array(table["Metadata_Well"].to_pylist())
    return {well: values[wells == well] for well in CENTRES}


def as_theirs(study, theirs):
    found = ours(study)
    for well, features in found.items():
        expected = theirs(well)
        assert np.ptp(expected, axis=1).min() > 0.1
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-4)


def with_checkpoint(root, path):
    place = root / "outputs/results/checkpoint" / CPCNN
    place.parent.mkdir(parents=True)
    place.symlink_to(path)
    return place


@pytest.mark.parametrize(
    ("bits", "stretch", "layer", "width"),
    [
        (16, "legacy_over_max", "block6a_activation", 672),
        pytest.param(8, "minmax", "pool5", 1280, marks=pytest.mark.slow),
        pytest.param(16, "zscore", "block6a_activation", 672, marks=pytest.mark.slow),
    ],
)
def test_features_of_cell_painting_cnn(tmp_path, cpcnn, bits, stretch, layer, width):
    path, network = cpcnn
    root = project(tmp_path / "dp", bits, feature_layer=layer)
    with_checkpoint(root, path)
    chosen = {} if stretch == "legacy_over_max" else {"normalize": stretch}  # the default
    made = init_deepprofiler(tmp_path / "study", root, **chosen)
    study = read_study(made.path)
    assert study.crops.normalize == stretch
    as_theirs(study, lambda well: their_features(network, layer, their_crops(root, well, stretch)))
    card = json.loads((study.features / "card.json").read_text())
    assert card["width"] == width
    assert card["preprocess"]["channels"] == list(CELL_PAINTING_CNN)


@pytest.mark.parametrize(
    ("layer", "width"), [("avg_pool", 5 * 1280), pytest.param("block6a_activation", 5 * 672, marks=pytest.mark.slow)]
)
def test_features_of_imagenet_channel_by_channel(tmp_path, imagenet, monkeypatch, layer, width):
    from keras.src.applications import efficientnet

    path, network = imagenet
    monkeypatch.setattr(efficientnet.file_utils, "get_file", lambda *_, **__: str(path))
    root = project(tmp_path / "dp")
    settings = {"checkpoint": "None", "use_pretrained_input_size": COLOUR_SIDE, "feature_layer": layer}
    write_config(root, generator="repeat_channel_crop_generator", **settings)
    made = init_deepprofiler(tmp_path / "study", root)
    study = read_study(made.path)
    assert (study.profile.mode, study.profile.input_size) == ("repeat_channel", COLOUR_SIDE)
    theirs = "pool5" if layer == "avg_pool" else layer
    as_theirs(study, lambda well: their_channels(network, theirs, their_crops(root, well, "legacy_over_max")))
    assert json.loads((study.features / "card.json").read_text())["width"] == width


def test_masked_cells_are_masked_as_there(tmp_path, cpcnn):
    path, network = cpcnn
    root = project(tmp_path / "dp", masked=True)
    with_checkpoint(root, path)
    study = read_study(init_deepprofiler(tmp_path / "study", root).path)
    assert (study.crops.mask, study.locate.labels) == (True, True)
    crops = their_crops(root, "A01", "legacy_over_max", masked=True)
    assert ((crops > 0).sum(axis=(1, 2)) < 41**2).all()
    assert ((crops > 0).sum(axis=(1, 2)) > 400).all()

    def theirs(well):
        return their_features(network, "block6a_activation", their_crops(root, well, "legacy_over_max", masked=True))

    as_theirs(study, theirs)


# --- the checkpoint
def test_the_layout_of_the_checkpoint(cpcnn):
    path, network = cpcnn
    with h5py.File(path) as file:
        names = [name.decode() for name in file.attrs["layer_names"]]
        assert file["ClassProb/ClassProb/kernel:0"].shape == (1280, 490)
        assert file["stem_conv/stem_conv/kernel:0"].shape == (3, 3, 5, 32)
        assert sum(len(file[name].attrs["weight_names"]) > 0 for name in names) == 131
    assert names[-3:] == ["top_activation", "pool5", "ClassProb"]
    model = build_network("efficientnet_b0", channels=5, size=(BOX, BOX), weights=path)
    for name in ("stem_conv", "block1a_dwconv", "block6a_bn", "top_conv"):
        for mine, theirs in zip(
            model.get_layer(name).get_weights(), network.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)


def test_the_input_of_the_checkpoint_is_not_rescaled(cpcnn):
    """The stem sees the crop itself, in [0, 1]."""
    path, _ = cpcnn
    model = build_network("efficientnet_b0", channels=5, size=(BOX, BOX), weights=path)
    x = np.random.default_rng(0).random((1, BOX, BOX, 5), np.float32)
    seen = np.asarray(keras.Model(model.input, model.get_layer("stem_conv").input)(x))
    np.testing.assert_allclose(seen[0, :BOX, :BOX], x[0], atol=1e-5)


def test_a_self_trained_head_and_a_lacking_layer(cpcnn, tmp_path):
    path, _ = cpcnn
    changed = tmp_path / "checkpoint_0003.hdf5"
    changed.write_bytes(path.read_bytes())
    with h5py.File(changed, "a") as file:
        del file["ClassProb"]
        names = [name for name in file.attrs["layer_names"] if name != b"ClassProb"]
        file.attrs["layer_names"] = np.array(names)
    build_network("efficientnet_b0", channels=5, size=(64, 64), weights=changed)
    with h5py.File(changed, "a") as file:
        file.attrs["layer_names"] = np.array([name for name in names if name != b"block6a_bn"])
    with pytest.raises(
        InputError, match=r"1 layer\(s\) of efficientnet_b0 are absent.*first 'block6a_bn'; it has nothing"
    ):
        build_network("efficientnet_b0", channels=5, size=(64, 64), weights=changed)


# --- the order of the channels
WRONG = ("DNA", "ER", "RNA", "AGP", "Mito")
WORDS = (
    r"was trained on the channels DNA, RNA, ER, AGP, Mito, in this order \(the order of Cell Painting CNN v1\); "
    r"study\.yaml has DNA, ER, RNA, AGP, Mito: write `channels` in that order and with those names"
)


def test_the_wrong_order_of_channels_is_refused_with_the_right_one(tmp_path, cpcnn):
    root = project(tmp_path / "dp", channels=WRONG)
    with_checkpoint(root, cpcnn[0])
    made = init_deepprofiler(tmp_path / "study", root)
    assert any(
        "profile.checkpoint: " in note and "DNA, RNA, ER, AGP, Mito, in this order" in note for note in made.notes
    )
    study = read_study(made.path)
    with pytest.raises(InputError, match=WORDS):
        profile_cells(study)
    told = [problem.what for problem in check_study(study) if problem.place == "study.yaml channels"]
    assert len(told) == 1
    assert "in this order (the order of Cell Painting CNN v1)" in told[0]
    study = study.model_copy(update={"train": Train(init=str(cpcnn[0]))})
    with pytest.raises(InputError, match=WORDS):
        initial_network(study, 3)


def test_a_checkpoint_of_a_project_knows_its_order(tmp_path, cpcnn):
    root = project(tmp_path / "dp", channels=WRONG, checkpoint="checkpoint_0030.hdf5")
    place = root / "outputs/results/checkpoint/checkpoint_0030.hdf5"
    place.parent.mkdir(parents=True)
    place.write_bytes(cpcnn[0].read_bytes())
    assert trained_channels(place) == (WRONG, "by the config of its project")
    made = init_deepprofiler(tmp_path / "study", root)
    text = made.path.read_text()
    made.path.write_text(text.replace('  "ER": "ER"\n  "RNA": "RNA"\n', '  "RNA": "RNA"\n  "ER": "ER"\n'))
    with pytest.raises(
        InputError, match=r"trained on the channels DNA, ER, RNA, AGP, Mito, in this order \(by the config"
    ):
        profile_cells(read_study(made.path))
    write_config(root)
    (root / "inputs/config/other.json").write_text(json.dumps({"dataset": {"images": {"channels": ["DNA"]}}}))
    assert trained_channels(place) is None  # its configs disagree
    assert trained_channels(tmp_path / "anywhere.hdf5") is None


def test_case_of_channel_names_does_not_count_and_plate_scaling_is_said(tmp_path, cpcnn, caplog):
    root = project(tmp_path / "dp")
    with_checkpoint(root, cpcnn[0])
    made = init_deepprofiler(tmp_path / "study", root)
    text = made.path.read_text()
    made.path.write_text(text.replace('"Mito": ', '"mito": ').replace("legacy_over_max\n", "none\n"))
    study = read_study(made.path)
    locate_cells(study)
    assert profile_cells(study).rows == 4
    assert "trained on crops that were stretched one by one; crops.normalize is none" in caplog.text
