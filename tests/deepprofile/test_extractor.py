import json
import logging
from importlib.util import find_spec

import keras
import numpy as np
import pytest
from study_factory import configure
from test_features import cells_of

from cytominer_tools.errors import InputError
from deepprofile.extractor import cosine_agreement, feature_network, load_extractor, sample_cells
from deepprofile.features import profile_cells
from deepprofile.networks import build_network, weights_hash
from deepprofile.runtimes import EXTRAS
from deepprofile.study import read_study

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def needs(runtime):
    missing = [name for name in EXTRAS[runtime] if find_spec(name) is None]
    return pytest.param(
        runtime, marks=pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")
    )


@pytest.fixture(scope="module")
def model():
    return build_network("small_cnn", channels=2, size=(16, 16), width=4, depth=2)


# --- layers
def test_images_are_averaged_and_vectors_stay(model):
    x = np.random.default_rng(0).random((3, 16, 16, 2), np.float32)
    found = feature_network(model, ("features", "block1_activation", "block2_bn"))(x)
    image = keras.Model(model.input, model.get_layer("block1_activation").output)(x)
    assert image.shape == (3, 16, 16, 4)
    np.testing.assert_allclose(found[0], model(x), rtol=1e-6)
    np.testing.assert_allclose(found[1], np.asarray(image).mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    assert [tuple(features.shape) for features in found] == [(3, 8), (3, 4), (3, 8)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("block1_activatoin", r"small_cnn has no layer 'block1_activatoin'; the nearest are block1_activation, "),
        ("feature", r"no layer 'feature'; the nearest are features"),
        ("xyz", r"no layer 'xyz'; its last are block1_pool, block2_conv, .*, features"),
    ],
)
def test_a_layer_that_does_not_exist_names_the_nearest(model, name, words):
    with pytest.raises(InputError, match=r"profile\.layer: .*" + words):
        feature_network(model, ("features", name))


def test_a_layer_of_neither_image_nor_vector_is_refused():
    inputs = keras.Input((4, 4, 1))
    sequence = keras.layers.Reshape((4, 4), name="lines")(inputs)
    with pytest.raises(InputError, match=r"'lines' of .* has the shape \(None, 4, 4\); features come from an image"):
        feature_network(keras.Model(inputs, sequence), ("lines",))


def test_several_layers_are_one_pass_with_a_card_each(done):
    study = configure(done.root, profile={"layer": ["block2_activation", "features"]})
    extractor, cards = load_extractor(study)
    assert (extractor.layers, extractor.widths) == (("block2_activation", "features"), (8, 16))
    crops = sample_cells(study, 16)
    found = extractor(crops)
    assert [features.shape for features in found] == [(16, 8), (16, 16)]
    for layer, features in zip(study.profile.layer, found, strict=True):
        alone, (card,) = load_extractor(configure(done.root, profile={"layer": layer}))
        np.testing.assert_allclose(features, alone(crops)[0], rtol=1e-5, atol=1e-6)
        assert card["model"] == "small_cnn_untrained"  # one alone keeps its name
    names = [(card["model"], card["layer"], card["width"]) for card in cards]
    assert names == [
        ("small_cnn_untrained-block2_activation", "block2_activation", 8),
        ("small_cnn_untrained-features", "features", 16),
    ]
    own = {"model", "layer", "width"}
    assert {k: v for k, v in cards[0].items() if k not in own} == {k: v for k, v in cards[1].items() if k not in own}


@pytest.mark.parametrize(("layer", "came"), [([], "none"), (["features", "features"], "features, features")])
def test_layers_that_say_nothing_are_refused(fresh, layer, came):
    with pytest.raises(InputError, match=f"layer: name one layer or several different ones, got {came}"):
        configure(fresh.root, profile={"layer": layer})


# --- runtimes
@pytest.mark.parametrize("runtime", [needs(name) for name in EXTRAS])
def test_a_study_profiled_by(done, runtime):
    study = configure(done.root, profile={"runtime": runtime})
    expected, values = cells_of(done, "P1")
    told = profile_cells(study)
    assert (told.made, told.kept) == (12, 0)  # features of another runtime are not mixed
    cells, features = cells_of(study, "P1")
    assert cells.equals(expected)
    np.testing.assert_allclose(features, values, rtol=1e-4, atol=1e-5)
    card = json.loads((study.features / "card.json").read_text())
    assert card["runtime"] == f"{runtime} float32"
    assert set(card["versions"]) == {"keras", "python", *EXTRAS[runtime]}
    assert "agreement" not in card
    assert profile_cells(study).made == 0
    assert len(list((study.models / "exported").iterdir())) == 1


@pytest.mark.parametrize("runtime", ["keras", needs("openvino")])
def test_the_agreement_of_a_lower_precision_is_measured_and_kept(done, runtime, caplog):
    if runtime == "openvino":
        import openvino

        if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("this CPU has no bfloat16")
    _, exact = cells_of(done, "P1")
    study = configure(done.root, profile={"runtime": runtime, "precision": "bfloat16"})
    with caplog.at_level(logging.INFO, "deepprofile"):
        assert profile_cells(study).made == 12
    _, near = cells_of(study, "P1")
    assert not np.allclose(near, exact, rtol=1e-5)
    card = json.loads((study.features / "card.json").read_text())
    assert card["runtime"].endswith(" bfloat16")
    agreement = cosine_agreement(near, exact)
    both = np.concatenate([cells_of(study, plate)[1] for plate in ("P1", "P2")])
    assert agreement["least"] > 0.99
    assert card["agreement"]["cells"] == min(256, len(both))
    assert 0.99 < card["agreement"]["least"] <= card["agreement"]["mean"] <= 1
    assert "features in bfloat16: cosine to float32 " in caplog.text
    assert profile_cells(study).made == 0  # and the next run measures the same


def test_a_study_without_cells_has_no_agreement(fresh):
    from deepprofile.intensities import measure_intensities
    from deepprofile.locations import locate_cells

    (fresh.root / "none.csv").write_text("x,y\n")
    study = configure(fresh.root, locate={"files": "none.csv"}, profile={"precision": "bfloat16"})
    measure_intensities(study)
    locate_cells(study)
    _, (card,) = load_extractor(study)
    assert card["agreement"] == {"cells": 0}
    assert profile_cells(study).rows == 0


def test_cosines_by_hand():
    found = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], np.float32)
    exact = np.array([[4.0, 3.0], [1.0, 0.0], [0.0, 0.0], [0.0, 2.0]], np.float32)
    # 24/25, 1, two zeros agree, a zero and a vector do not
    assert cosine_agreement(found, exact) == {"cells": 4, "mean": 0.74, "least": 0.0}


def test_the_cells_that_precision_is_measured_on_are_the_first_of_the_study(done):
    every = sample_cells(done, 10**6)
    assert len(every) == sum(len(cells_of(done, plate)[0]) for plate in ("P1", "P2"))
    np.testing.assert_array_equal(sample_cells(done, 20), every[:20])
    features = np.concatenate([cells_of(done, plate)[1] for plate in ("P1", "P2")])
    model = build_network("small_cnn", channels=3, size=(32, 32), seed=done.seed, width=4, depth=3)
    np.testing.assert_allclose(model.predict_on_batch(every), features, rtol=1e-4, atol=1e-5)


# --- weights and cards that do not fit
def test_weights_of_another_architecture_are_refused(done):
    build_network("small_cnn", channels=3, size=(32, 32), width=8, depth=3).save(done.root / "wide.keras")
    with pytest.raises(InputError, match=r"wide\.keras: 6 layer\(s\) of small_cnn are absent from it or differ in sh"):
        load_extractor(configure(done.root, profile={"weights": "wide.keras"}))


def trained(root, **changes):
    """Weights with the card that training leaves beside them."""
    folder = root / "models" / "m"
    folder.mkdir(parents=True)
    model = build_network("small_cnn", channels=3, size=(32, 32), seed=8, width=4, depth=3)
    model.save(folder / "model.keras")
    study = read_study(root)
    card = {
        "network": "small_cnn",
        "preprocess": json.loads(study.preprocess.model_dump_json()),
        "illumination": None,
        "training": {"classes": []},
    }
    (folder / "card.json").write_text(json.dumps({k: v for k, v in (card | changes).items() if v != "gone"}))
    return configure(root, profile={"weights": "m"}), weights_hash(model)


def test_the_card_of_a_training_goes_on(done):
    study, hashed = trained(done.root)
    _, (card,) = load_extractor(study)
    assert card["training"] == {"classes": []}
    assert card["weights_hash"] == hashed


def test_a_card_of_another_network_is_refused(done):
    study, _ = trained(done.root, network="efficientnet_b0")
    words = r"was trained as efficientnet_b0, and profile\.network is small_cnn; set it to efficientnet_b0, or"
    with pytest.raises(InputError, match=words):
        load_extractor(study)


@pytest.mark.parametrize("lacks", ["network", "preprocess", "illumination"])
def test_a_card_that_lacks_what_it_must_say_is_refused(done, lacks):
    study, _ = trained(done.root, **{lacks: "gone"})
    with pytest.raises(InputError, match=r"card\.json: not a model card; delete it to profile without one"):
        load_extractor(study)


@pytest.mark.parametrize("text", ["{", "[]", '"card"'])
def test_a_card_that_is_none_is_refused(done, text):
    study, _ = trained(done.root)
    (done.root / "models/m/card.json").write_text(text)
    with pytest.raises(InputError, match=r"card\.json: not a model card"):
        load_extractor(study)
