import json
import logging
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from study_factory import CHANNELS, configure, edit_index, write_images

from cytominer_tools.columns import CELL, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from deepprofile.features import CARD, plate_features, profile_cells
from deepprofile.intensities import measure_intensities, read_levels
from deepprofile.locations import X, Y, locate_cells, plate_locations
from deepprofile.networks import build_network, weights_hash

KEY = [PLATE, WELL, SITE, CELL]

# of keras.Model.save
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def cells_of(study, plate):
    """Level 2 of a plate and its features, float32 (n, d)."""
    table = pq.read_table(study.features / plate / "cells.parquet")
    features = table["features"].combine_chunks()
    width = features.type.list_size
    return table.drop_columns("features").to_pandas(), np.asarray(features.flatten()).reshape(len(table), width)


def network_of(study):
    options = study.profile.options
    return build_network("small_cnn", channels=3, size=(study.crops.size,) * 2, seed=study.seed, **options)


def straightforward(study, plate):
    """Features of a plate as anybody would compute them: each cell cut by hand, all through the model at once."""
    half = study.crops.size // 2
    low, high = read_levels(study, plate)
    crops = []
    located = plate_locations(study, plate)
    for well in sorted(located.manifest.parts):
        for cell in located.read(well).to_pandas().to_dict("records"):
            name = f"{plate}/{cell[WELL]}_s{cell[SITE]}_{{}}.tif"
            planes = [tifffile.imread(study.root / "images" / name.format(channel)) for channel in CHANNELS]
            image = np.pad(np.stack(planes, -1), ((half, half), (half, half), (0, 0)))
            x, y = int(np.floor(cell[X] + 0.5)), int(np.floor(cell[Y] + 0.5))
            crops.append(image[y : y + 2 * half, x : x + 2 * half])
    scaled = np.clip((np.array(crops, np.float32) - low) / (high - low), 0, 1)
    return np.asarray(network_of(study)(scaled))


# --- parity: one computation, no engine
@pytest.mark.parametrize("plate", ["P1", "P2"])
def test_features_equal_a_straightforward_computation(finished, plate):
    cells, features = cells_of(finished, plate)
    assert features.dtype == np.float32
    assert np.abs(features).max() > 0.01
    np.testing.assert_allclose(features, straightforward(finished, plate), rtol=1e-4, atol=1e-5)
    assert len(cells) == len(features)


def test_keys_and_columns_are_those_of_the_locations(finished):
    for plate in ("P1", "P2"):
        cells, _ = cells_of(finished, plate)
        located = pq.read_table(finished.root / "locations" / plate / "cells.parquet").to_pandas()
        assert list(cells) == list(located)
        assert cells.equals(located)
        assert not cells.duplicated(KEY).any()


def test_the_card_says_what_makes_features_comparable(finished):
    schema = pq.read_schema(finished.features / "P1" / "cells.parquet")
    card = json.loads(schema.metadata[CARD])
    assert card == json.loads((finished.features / "card.json").read_text())
    assert card["network"] == "small_cnn"
    assert card["options"] == {"width": 4, "depth": 3}
    assert card["width"] == schema.field("features").type.list_size == 16
    assert card["weights_hash"] == weights_hash(network_of(finished))
    assert card["weights"] == "untrained, seed 3"
    assert card["preprocess"]["channels"] == list(CHANNELS)
    assert card["preprocess"]["normalize"] == "plate_control"
    assert card["runtime"].endswith(" float32")
    assert card["licence"] == "BSD-3-Clause"


# --- batches
@pytest.mark.parametrize("batch", [5, 64, 1000])  # smaller than a site, larger than a well, larger than a plate
def test_the_batch_does_not_matter(finished, tmp_path, batch):
    shutil.copytree(finished.root, tmp_path / "study")
    shutil.rmtree(tmp_path / "study" / "features")
    study = configure(tmp_path / "study", profile={"batch": batch})
    told = profile_cells(study)
    assert (told.made, told.rows) == (12, sum(len(cells_of(finished, plate)[0]) for plate in ("P1", "P2")))
    for plate in ("P1", "P2"):
        cells, features = cells_of(study, plate)
        expected, values = cells_of(finished, plate)
        assert cells.equals(expected)
        np.testing.assert_allclose(features, values, rtol=1e-4, atol=1e-6)


def test_another_batch_is_not_another_setting(done):
    told = profile_cells(configure(done.root, profile={"batch": 7}))
    assert (told.made, told.kept) == (0, 12)


# --- cells at the border
@pytest.fixture
def border(fresh):
    """Cells whose 32 px box ends at the edge, leaves it by a pixel, has its centre off the image, lies within."""
    rows = ["16,16", "15,40", "112.4,112.4", "112.5,60", "-0.6,60", "127.6,64", "64,64"]
    for plate in ("P1", "P2"):
        for well in ("A01", "A02", "B01", "B02", "C01", "C02"):
            for site in (1, 2):
                path = fresh.root / "centres" / f"{plate}_{well}_{site}.csv"
                path.parent.mkdir(exist_ok=True)
                path.write_text("\n".join(["x,y", *rows]) + "\n")
    return {"locate": {"files": "centres/{plate}_{well}_{site}.csv"}, "profile": {"batch": 16}}


def test_border_zero_keeps_a_cell_while_its_centre_is_in_the_image(fresh, border):
    study = configure(fresh.root, crops={"border": "zero"}, **border)
    measure_intensities(study)
    locate_cells(study)
    told = profile_cells(study)
    cells, features = cells_of(study, "P1")
    assert cells[CELL].tolist() == [0, 1, 2, 3, 6] * 12
    assert told.rows == 5 * 24
    assert ("P1 A01 site 1: 2 of 7 cells", "their centre is off the image") in told.skipped
    assert np.isfinite(features).all()


def test_border_drop_keeps_a_cell_while_its_box_is_in_the_image(fresh, border):
    study = configure(fresh.root, crops={"border": "drop"}, **border)
    measure_intensities(study)
    locate_cells(study)
    told = profile_cells(study)
    cells, _ = cells_of(study, "P2")
    assert cells[CELL].tolist() == [0, 2, 6] * 12  # numbered before the filter
    assert told.rows == 3 * 24
    assert ("P2 C02 site 2: 4 of 7 cells", "their box leaves the image") in told.skipped
    again = profile_cells(study)
    assert (again.made, again.kept, again.skipped) == (0, 12, told.skipped)
    assert profile_cells(study, strict=True).made == 0  # a cell at the border is no bad site


# --- wells without cells
def test_sites_and_wells_without_cells_are_done(fresh):
    blank = np.full((128, 128, 3), 500, np.uint16)
    blank[0, 0] = 501
    write_images(fresh.root, "P1", "B01", 1, blank)
    for site in (1, 2):
        write_images(fresh.root, "P1", "C01", site, blank)
        for well in ("A01", "A02", "B01", "B02", "C01", "C02"):
            write_images(fresh.root, "P2", well, site, blank)
    measure_intensities(fresh)
    locate_cells(fresh)
    told = profile_cells(fresh)
    assert (told.made, told.skipped) == (12, ())
    cells, _ = cells_of(fresh, "P1")
    assert cells.loc[cells[WELL] == "B01", SITE].unique().tolist() == ["2"]
    assert set(cells[WELL]) == {"A01", "A02", "B01", "B02", "C02"}
    assert plate_features(fresh, "P1").read("C01").num_rows == 0
    assert cells_of(fresh, "P2")[1].shape == (0, 16)
    again = profile_cells(fresh)
    assert (again.made, again.kept, again.rows) == (0, 12, told.rows)


# --- what can be chosen
def test_a_layer_of_an_image_is_averaged(done):
    study = configure(done.root, profile={"layer": "block2_activation"})
    assert profile_cells(study).made == 12
    _, features = cells_of(study, "P1")
    assert features.shape[1] == 8
    with pytest.raises(InputError, match=r"small_cnn has no layer 'block9_pool'; the nearest are block3_pool, "):
        profile_cells(configure(done.root, profile={"layer": "block9_pool"}))


def test_weights_from_a_file_give_other_features(done):
    other = build_network("small_cnn", channels=3, size=(32, 32), seed=99, width=4, depth=3)
    other.save(done.root / "trained.keras")
    study = configure(done.root, profile={"weights": "trained.keras"})
    assert study.profile.name == "small_cnn_trained"
    told = profile_cells(study)
    assert told.made == 12
    assert json.loads((study.features / "card.json").read_text())["weights_hash"] == weights_hash(other)
    assert not np.allclose(cells_of(study, "P1")[1], cells_of(done, "P1")[1])


def test_changed_weights_run_again_and_say_so(done, caplog):
    for seed, made in ((5, 12), (5, 0), (6, 12)):
        model = build_network("small_cnn", channels=3, size=(32, 32), seed=seed, width=4, depth=3)
        model.save(done.root / "trained.keras")
        with caplog.at_level(logging.INFO, "deepprofile"):
            assert profile_cells(configure(done.root, profile={"weights": "trained.keras"})).made == made
    assert "profile: plate P1: weights_hash: " in caplog.text


def test_an_untrained_network_is_said(done, caplog):
    profile_cells(done)
    assert "profile.weights is none: small_cnn is untrained, a baseline rather than a result" in caplog.text


@pytest.mark.parametrize("normalize", ["none", "minmax"])
def test_without_levels_no_illumination_is_needed(fresh, normalize):
    edit_index(fresh.root, lambda t: t[t["Metadata_Plate"] == "P1"])
    study = configure(fresh.root, crops={"normalize": normalize})
    locate_cells(study)
    assert profile_cells(study).made == 6


def test_weights_that_explode_are_told(done):
    model = build_network("small_cnn", channels=3, size=(32, 32), width=4, depth=3)
    kernel = model.get_layer("block3_conv").kernel
    kernel.assign(np.full(kernel.shape, 3e38))
    model.save(done.root / "bad.keras")
    with pytest.raises(InputError, match=r"P1 A01: \d+ cells have features that are not finite; check the weights"):
        profile_cells(configure(done.root, profile={"weights": "bad.keras"}))
