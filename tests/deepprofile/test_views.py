import errno
import json
import os
import shutil
import threading
import time
import weakref

import numpy as np
import pandas as pd
import plain_network
import pyarrow.parquet as pq
import pytest
import tifffile
from study_factory import CHANNELS, configure, derived, edit_index, write_images

import deepprofile.features
import deepprofile.views
from cytominer_tools.columns import CELL, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.threads import workers
from deepprofile.crop_store import Crops
from deepprofile.export import export_crops
from deepprofile.features import CARD, plate_features, profile_cells
from deepprofile.intensities import measure_intensities, read_levels
from deepprofile.locations import X, Y, locate_cells
from deepprofile.profiles import aggregate_wells
from deepprofile.views import tiles

KEPT = {"labels": True}
STORED = {"source": "crops"}


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    plain_network.use(monkeypatch)


def set_up(root, **changes):
    return configure(root, **{"locate": KEPT, **changes})


def cells_of(study, plate="P1"):
    table = pq.read_table(study.features / plate / "cells.parquet")
    return table.drop_columns("features").to_pandas(), np.stack(table["features"].to_numpy())


def card_of(study):
    (schema,) = {pq.read_schema(path).metadata[CARD] for path in study.features.rglob("cells.parquet")}
    card = json.loads(schema)
    assert card == json.loads((study.features / "card.json").read_text())
    return card


@pytest.fixture
def stored(located):
    """A study with its crops as they are, uncompressed counts."""
    study = set_up(located.root, export={"depth": "original"})
    export_crops(study)
    return study


# --- from the crop store
def test_counts_in_the_store_give_the_tables_of_the_images(stored):
    profile_cells(stored)
    before = cells_of(stored)
    assert card_of(stored)["views"] == {"source": "images", "tiles": False}
    shutil.rmtree(stored.features)
    shutil.rmtree(stored.root / "images")  # no longer asked for
    study = set_up(stored.root, export={"depth": "original"}, profile=STORED)
    told = profile_cells(study)
    after = cells_of(study)
    assert (told.made, told.sites, told.cells) == (12, 24, told.rows)
    assert after[0].equals(before[0])
    np.testing.assert_array_equal(after[1], before[1])
    assert card_of(study)["views"] == {"source": "crops", "tiles": False, "depth": "original"}
    assert profile_cells(study).made == 0


def test_eight_bits_are_half_a_step_away_and_the_card_says_so(located):
    profile_cells(located)
    before = cells_of(located)
    export_crops(located)
    study = set_up(located.root, profile=STORED)
    assert profile_cells(study).made == 12  # another source, other features
    after = cells_of(study)
    assert after[0].equals(before[0])
    off = np.abs(after[1] - before[1]).max()
    assert 0 < off <= 0.5 / 255 + 1e-6
    assert card_of(study)["views"]["depth"] == "uint8"


def test_a_store_of_some_cells_gives_their_features(located):
    study = set_up(located.root, export={"depth": "original", "per_well": 3}, profile=STORED)
    profile_cells(set_up(located.root))
    everything, values = cells_of(study)
    export_crops(study)
    profile_cells(study)
    cells, some = cells_of(study)
    assert cells.groupby(WELL).size().tolist() == [3] * 6
    key = [PLATE, WELL, SITE, CELL]
    at = everything.reset_index().merge(cells[key], on=key)["index"].to_numpy()
    np.testing.assert_array_equal(some, values[at])


def test_wells_without_a_crop_are_done(stored):
    study = set_up(
        stored.root,
        export={"depth": "original", "query": "Metadata_Plate == 'P1' and Metadata_Well != 'B01'"},
        profile=STORED,
    )
    export_crops(study)
    told = profile_cells(study)
    assert told.made == 12
    cells, _ = cells_of(study)
    assert set(cells[WELL]) == {"A01", "A02", "B02", "C01", "C02"}
    assert plate_features(study, "P1").read("B01").num_rows == 0
    assert plate_features(study, "P2").read("A01").num_rows == 0
    assert ("P2 A01", "no cells") in aggregate_wells(study).skipped


def test_a_well_that_was_exported_again_is_profiled_again(stored):
    study = set_up(stored.root, export={"depth": "original"}, profile=STORED)
    profile_cells(study)
    os.utime(study.root / "images" / "P1" / "A02_s1_ER.tif", ns=(2 * 10**18, 2 * 10**18))
    assert profile_cells(study).made == 0  # the store is what it was
    export_crops(study)
    assert profile_cells(study).made == 1


def test_a_site_that_the_store_lacks_is_told_and_with_strict_refused(located):
    (located.root / "images" / "P1" / "A02_s1_ER.tif").unlink()
    study = set_up(located.root, profile=STORED)
    export_crops(study)
    ((what, why),) = profile_cells(study).skipped
    assert what == "P1 A02 site 1"
    assert "no such image" in why
    with pytest.raises(InputError, match=r"P1 A02 site 1 is not among the crops: .*no such image"):
        profile_cells(study, strict=True)


def test_masked_cells_from_images_and_from_the_store(located):
    plain_features = profile_cells(located) and cells_of(located)[1]
    masked = set_up(located.root, crops={"mask": True}, export={"depth": "original"})
    assert profile_cells(masked).made == 12
    cells, values = cells_of(masked)
    assert np.abs(values - plain_features).max() > 0.01
    # by hand: the pixels of the cell's own label alone
    cell = cells.iloc[3]
    image = np.stack(
        [tifffile.imread(masked.root / f"images/P1/{cell[WELL]}_s{cell[SITE]}_{c}.tif") for c in CHANNELS], -1
    )
    labels = tifffile.imread(masked.root / f"locations/P1/labels/{cell[WELL]}_{cell[SITE]}.tif")
    own = image[labels == cell[CELL] + 1]
    low, high = read_levels(masked, "P1")
    sums = np.clip((own - low) / (high - low), 0, 1).sum(0) / 32**2
    np.testing.assert_allclose(
        values[3, :3], sums + (1 - len(own) / 32**2) * np.clip(-low / (high - low), 0, 1), rtol=1e-4
    )
    export_crops(masked)
    profile_cells(stored := set_up(located.root, crops={"mask": True}, export={"depth": "original"}, profile=STORED))
    np.testing.assert_array_equal(cells_of(stored)[1], values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"channels": {"ER": "ER", "DNA": "DNA", "Mito": "Mito"}},
            "its channels are DNA, ER, Mito, those of study.yaml ER",
        ),
        (
            {"crops": {"size": 24}},
            "its crops are 32 px wide, those of study.yaml 24; set crops.size to that, or export",
        ),
        ({"crops": {"border": "reflect"}}, r"exported with other crops \(border: zero -> reflect\); run"),
    ],
)
def test_a_store_of_other_crops_is_refused(stored, changes, words):
    with pytest.raises(InputError, match=words):
        profile_cells(set_up(stored.root, profile=STORED, **changes))


def test_no_store_and_one_that_is_not_finished(located, monkeypatch):
    study = set_up(located.root, profile=STORED)
    with pytest.raises(InputError, match=r"there is no crop store.*run `deepprofile export`"):
        profile_cells(study)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("deepprofile.export._finish", stop)
        with pytest.raises(KeyboardInterrupt):
            export_crops(study)
    with pytest.raises(
        InputError,
        match=r"wells of plate P2 are not as the last export wants them, first .* `deepprofile export` again",
    ):
        profile_cells(study)


@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_a_damaged_file_of_the_store_is_named(stored, how):
    study = set_up(stored.root, export={"depth": "original"}, profile=STORED)
    path = next((study.crop_store / "P1").glob("B01-*.arrow"))
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match=f"{path.name}: "):
        profile_cells(study)
    path.unlink(missing_ok=True)
    export_crops(study)
    profile_cells(study)


def test_finished_features_are_not_replaced_by_nothing(stored):
    study = set_up(stored.root, profile=STORED, export={"depth": "original"})
    profile_cells(study)
    before = derived(study.root)
    for name in ("crops", "locations"):  # which keep what they have
        shutil.rmtree(study.root / name)
    blank = np.full((128, 128, 3), 500, np.uint16)
    blank[0, 0] = 501
    for plate in ("P1", "P2"):
        for well in ("A01", "A02", "B01", "B02", "C01", "C02"):
            for site in (1, 2):
                for path in write_images(study.root, plate, well, site, blank).values():
                    os.utime(study.root / path, ns=(2 * 10**18, 2 * 10**18))
    locate_cells(study)
    measure_intensities(study)
    export_crops(study)
    with pytest.raises(InputError, match=r"would be replaced by nothing, as none of 12 wells has a crop in"):
        profile_cells(study)
    kept = {name: sha for name, sha in before.items() if name.startswith("features/")}
    assert kept.items() <= derived(study.root).items()


# --- tiles
@pytest.mark.parametrize(
    ("shape", "size", "x", "y"),
    [
        ((128, 128), 32, [16, 48, 80, 112], [16, 48, 80, 112]),  # side by side
        ((64, 100), 32, [16, 38, 61, 84], [16, 48]),  # from edge to edge, a little over each other
        ((20, 33), 32, [16, 17], [10]),  # larger than the image, by the middle
    ],
)
def test_where_tiles_are(shape, size, x, y):
    table = tiles({PLATE: "P", WELL: "A01", SITE: "1"}, (*shape, 3), size)
    assert table[[X, Y]].to_numpy().tolist() == [[a, b] for b in y for a in x]
    assert table[CELL].tolist() == list(range(len(x) * len(y)))
    covered = np.zeros(shape, int)
    for a, b in table[[X, Y]].to_numpy(int) - size // 2:
        covered[max(b, 0) : b + size, max(a, 0) : a + size] += 1
    assert covered.min() == 1


def test_tiles_need_no_locations_and_are_the_pixels_of_the_site(fresh):
    study = configure(fresh.root, crops={"size": 64, "normalize": "none"}, profile={"tiles": True})
    told = profile_cells(study)
    assert (told.rows, told.unit) == (12 * 2 * 4, "tiles x 6 features")
    cells, values = cells_of(study, "P2")
    assert list(cells) == [PLATE, WELL, SITE, CELL, X, Y]
    assert cells[[X, Y]].to_numpy()[:4].tolist() == [[32, 32], [96, 32], [32, 96], [96, 96]]
    image = np.stack([tifffile.imread(study.root / f"images/P2/A01_s1_{c}.tif") for c in CHANNELS], -1)
    np.testing.assert_allclose(values[1, :3], image[:64, 64:].mean((0, 1)) / 65535, rtol=1e-4)
    np.testing.assert_allclose(values[1, 3:], image[:64, 64:].max((0, 1)) / 65535, rtol=1e-6)
    assert card_of(study)["views"]["tiles"] is True
    assert aggregate_wells(study).rows == 12
    assert profile_cells(study).made == 0


def test_tiles_are_not_cells(located):
    profile_cells(located)
    told = profile_cells(set_up(located.root, profile={"tiles": True}))
    assert told.made == 12
    with pytest.raises(
        InputError, match=r"profile: tiles are cut from images, and the crop store holds cells; set source"
    ):
        set_up(located.root, profile={"tiles": True, "source": "crops"})
    with pytest.raises(InputError, match=r"profile\.tiles: a tile is no cell that crops\.mask could leave alone"):
        set_up(located.root, profile={"tiles": True}, crops={"mask": True})


# --- float16
def test_half_precision_on_disk(located):
    profile_cells(located)
    _, exact = cells_of(located)
    wells = aggregate_wells(located) and pd.read_parquet(located.profiles_folder / "wells.parquet")
    study = set_up(located.root, profile={"dtype": "float16"})
    assert profile_cells(study).made == 12
    _, half = cells_of(study)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, exact.astype(np.float16))
    assert card_of(study)["dtype"] == "float16"
    aggregate_wells(study)
    again = pd.read_parquet(study.profiles_folder / "wells.parquet")
    assert again.dtypes.equals(wells.dtypes)
    names = [name for name in wells if not name.startswith("Metadata_")]
    np.testing.assert_allclose(again[names], wells[names], rtol=1e-3)


def test_features_that_half_precision_does_not_hold(located, monkeypatch):
    class Large(plain_network.Plain):
        def __call__(self, crops):
            return (super().__call__(crops)[0] * 1e6,)

    monkeypatch.setattr(deepprofile.features, "load_extractor", lambda study: (Large(), (plain_network.CARD,)))
    words = r"P1 A01: features of up to 1e\+06, and float16 holds 65504 at most; set profile\.dtype to float32"
    with pytest.raises(InputError, match=words):
        profile_cells(set_up(located.root, profile={"dtype": "float16"}))
    assert profile_cells(set_up(located.root)).made == 12


# --- several sets in one pass
@pytest.fixture
def trained(located, monkeypatch):
    """A training that kept the epochs 2 and 4, and a network that adds what its weights say."""

    class Shifted(plain_network.Plain):
        def __init__(self, by):
            self.by, self.seen = by, 0

        def __call__(self, crops):
            self.seen += 1
            return (super().__call__(crops)[0] + self.by,)

    made = []

    def load(study):
        epoch = int(str(study.profile.weights).split("/")[-1].split(".")[0])
        made.append(Shifted(epoch))
        chosen = study.profile
        own = {"weights_hash": f"w{epoch}", "weights": chosen.weights, "network": chosen.network}
        return made[-1], (plain_network.CARD | own | {"options": chosen.options, "layer": chosen.layer},)

    monkeypatch.setattr(deepprofile.features, "load_extractor", load)
    epochs = located.root / "models" / "ours" / "epochs"
    epochs.mkdir(parents=True)
    for epoch in (2, 4):
        (epochs / f"{epoch:04d}.keras").touch()
    (epochs.parent / "model.keras").touch()
    return set_up(located.root, profile={"weights": "ours"}), made


def test_several_epochs_in_one_pass(trained, monkeypatch):
    study, made = trained
    read = []
    inner = deepprofile.views.read_source
    monkeypatch.setattr(deepprofile.views, "read_source", lambda *a, **k: read.append(1) or inner(*a, **k))
    told = profile_cells(study, epochs=[2, 4])
    assert told.unit == "cells x 6 + 6 features"
    assert len(read) == 24
    assert sorted(p.name for p in (study.root / "features").iterdir()) == [
        "small_cnn_ours-epoch2",
        "small_cnn_ours-epoch4",
    ]
    two, four = (study.with_features(f"small_cnn_ours-epoch{epoch}") for epoch in (2, 4))
    np.testing.assert_allclose(cells_of(four)[1] - cells_of(two)[1], 2, atol=1e-5)
    assert (card_of(two)["model"], card_of(two)["weights_hash"]) == ("small_cnn_ours-epoch2", "w2")
    for one in (two, four):
        assert aggregate_wells(one).rows == 12
        assert (study.root / "profiles" / one.profile.name / "deep" / "wells.parquet").exists()
    assert profile_cells(study, epochs=[2, 4]).made == 0
    seen = made[-2].seen
    assert seen == made[-1].seen == 0  # what is current is not computed
    with pytest.raises(InputError, match="run `deepprofile profile`"):
        aggregate_wells(study)  # its own set is not there


def test_only_the_sets_that_are_not_current_are_made(trained):
    study, made = trained
    profile_cells(study, epochs=[2])
    before = derived(study.root)
    assert profile_cells(study, epochs=[2, 4]).made == 12
    assert made[-2].seen == 0
    assert made[-1].seen > 0
    assert before.items() <= derived(study.root).items()


def test_epochs_and_sets_that_are_not_there(trained):
    study, _ = trained
    with pytest.raises(InputError, match=r"--epoch 3: .*epochs has no network of this epoch; it has 2, 4"):
        profile_cells(study, epochs=[2, 3])
    assert not (study.root / "features").exists()
    with pytest.raises(InputError, match=r"--epoch 3: profile\.weights is none; set it to the train\.name of a"):
        profile_cells(set_up(study.root), epochs=[3])
    with pytest.raises(
        InputError, match=r"--model a: no such features in .*; there are none; run `deepprofile profile`"
    ):
        study.with_features("a")
    profile_cells(study, epochs=[2])
    with pytest.raises(InputError, match=r"--model a: no such features in .*; there are small_cnn_ours-epoch2"):
        study.with_features("a")
    (study.root / "features" / "small_cnn_ours-epoch2" / "card.json").write_text("[]")
    with pytest.raises(InputError, match=r"card\.json: not a model card; run `deepprofile profile` again"):
        study.with_features("small_cnn_ours-epoch2")


def test_names_of_sets_and_of_their_baseline(located):
    study = set_up(located.root, profile={"weights": "ours", "layer": ["a", "b"]}, scores={"baselines": ["untrained"]})
    assert [one.profile.name for one in study.feature_sets] == ["small_cnn_ours-a", "small_cnn_ours-b"]
    assert [one.profile.layer for one in study.feature_sets] == ["a", "b"]
    # the baseline of a set is the set of the baseline
    ours = [one.untrained.profile.name for one in study.feature_sets]
    assert (
        ours
        == [one.profile.name for one in study.untrained.feature_sets]
        == [
            "small_cnn_ours_untrained-a",
            "small_cnn_ours_untrained-b",
        ]
    )
    single = set_up(located.root, profile={"weights": "ours"}, scores={"baselines": ["untrained"]})
    assert [one.profile.name for one in single.feature_sets] == ["small_cnn_ours"]
    epoch = single.model_copy(update={"profile": single.profile.model_copy(update={"model": "small_cnn_ours-epoch8"})})
    assert epoch.untrained.profile.name == single.untrained.profile.name == "small_cnn_ours_untrained"


def test_plates_of_other_weights_are_not_put_together(located, monkeypatch):
    profile_cells(located)
    other = plain_network.CARD | {"weights_hash": "other"}
    monkeypatch.setattr(deepprofile.features, "load_extractor", lambda study: (plain_network.Plain(), (other,)))
    edit_index(located.root, lambda table: table[table[PLATE] == "P2"])
    profile_cells(set_up(located.root))
    rows = pd.read_csv(located.root / "index.csv")
    pd.concat([rows.assign(**{PLATE: "P1"}).replace("images/P2", "images/P1", regex=True), rows]).to_csv(
        located.root / "index.csv", index=False
    )
    with pytest.raises(InputError, match=r"plates P1 and P2 were made by networks of other weights; run `deepprofile"):
        aggregate_wells(set_up(located.root))


# --- memory
class Kept:
    """How many of some objects are alive at a time."""

    def __init__(self):
        self.now = self.most = self.ever = 0
        self.lock = threading.Lock()

    def add(self, thing):
        with self.lock:
            self.now, self.ever = self.now + 1, self.ever + 1
            self.most = max(self.most, self.now)
        weakref.finalize(thing, self.gone)
        return thing

    def gone(self):
        self.now -= 1


@pytest.mark.parametrize("source", ["images", "crops"])
def test_memory_holds_a_few_images_and_batches(located, monkeypatch, source):
    """However many sites there are: what was read is let go of once the network has its cells."""
    study = set_up(located.root, profile={"source": source, "batch": 8})
    if source == "crops":
        export_crops(study)
    pieces, memory = Kept(), Kept()
    place, name = (deepprofile.views, "read_source") if source == "images" else (Crops, "network_input")
    inner = getattr(place, name)

    def read(*args, **how):
        found = inner(*args, **how)
        pieces.add(found.image if source == "images" else found)
        return found

    empty = np.empty

    def allocate(shape, *rest, **how):
        made = empty(shape, *rest, **how)
        return memory.add(made) if (made.shape, made.dtype) == ((8, 32, 32, 3), np.float32) else made

    class Slow(plain_network.Plain):
        def __call__(self, crops):
            assert crops.shape == (8, 32, 32, 3)
            time.sleep(0.01)  # the readers would run ahead as far as they can
            return super().__call__(crops)

    monkeypatch.setattr(place, name, read)
    monkeypatch.setattr(deepprofile.features.np, "empty", allocate)
    monkeypatch.setattr(deepprofile.features, "load_extractor", lambda study: (Slow(), (plain_network.CARD,)))
    rows = profile_cells(study).rows
    monkeypatch.undo()
    assert pieces.ever >= 24
    assert rows > 8 * 20
    assert pieces.most <= 4 * workers() + 3 < pieces.ever
    if source == "images":
        assert memory.ever <= 6  # batches use their memory again


# --- the end
def test_the_count_of_sites_and_cells_and_their_speed(located):
    seen = []
    told = profile_cells(located, tell=lambda sites, cells: seen.append((sites, cells)))
    assert seen[0] == (0, 0)
    assert [sum(column) for column in zip(*seen, strict=True)] == [24, told.rows]
    assert (told.sites, told.cells) == (24, told.rows)
    assert told.seconds > 0
    assert "24 sites at " in str(told)
    seen.clear()
    assert "sites at" not in str(profile_cells(located, tell=lambda sites, cells: seen.append((sites, cells))))
    assert seen == [(24, 0)]


def test_a_full_disk_is_told_and_what_was_complete_is_kept(located, monkeypatch):
    fsync, calls = os.fsync, []

    def full(number):
        calls.append(1)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"the disk is full; free some space and run the same command again"):
            profile_cells(located)
    told = profile_cells(located)
    assert 0 < told.kept < 12
