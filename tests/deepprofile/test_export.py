"""The export stage: the crops are those that profiling would feed the network, and no run is lost."""

import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from click.testing import CliRunner
from study_factory import configure, derived, edit_index, write_images

import deepprofile.export
import deepprofile.features
from cytominer_tools.columns import CELL, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.files import LEFTOVER
from deepprofile.cli import main
from deepprofile.crop_store import Crops
from deepprofile.export import eight_bits, export_crops
from deepprofile.features import profile_cells
from deepprofile.intensities import measure_intensities
from deepprofile.locations import label_path, locate_cells, read_labels

KEPT = {"labels": True}
CARD = {"weights_hash": "none", "runtime": "none", "width": 1}
KEY = [PLATE, WELL, SITE, CELL]


def stored(root):
    """Every file of the store with a hash of its bytes."""
    return {name: value for name, value in derived(root).items() if name.startswith("crops/")}


def exported(root, **changes):
    """Export under `changes`: what was done, and the crops."""
    study = configure(root, locate=KEPT, **changes)
    return export_crops(study), Crops(study.crop_store)


@pytest.fixture(scope="session")
def store(located_once, tmp_path_factory):
    """The tiny study with its crops, exported without disturbance; not to be written to."""
    root = tmp_path_factory.mktemp("exported") / "study"
    shutil.copytree(located_once.root, root)
    study = configure(root, locate=KEPT)
    export_crops(study)
    return study


@pytest.fixture
def export(store, tmp_path):
    """A copy of it."""
    root = tmp_path / "study"
    shutil.copytree(store.root, root)
    return configure(root, locate=KEPT)


# --- the crops are what profiling feeds the network
class Watcher:
    """In place of the network: keeps what it sees."""

    def __init__(self):
        self.seen = []

    def __call__(self, crops):
        self.seen.append(crops.copy())
        return (np.zeros((len(crops), 1), np.float32),)


def fed(study, monkeypatch):
    """The crops that profiling gives the network, float32 (n, H, W, C), in the order of its table."""
    watcher = Watcher()
    monkeypatch.setattr(deepprofile.features, "load_extractor", lambda study: (watcher, (CARD,)))
    shutil.rmtree(study.features, ignore_errors=True)
    rows = profile_cells(study).rows
    return np.concatenate(watcher.seen)[:rows]


@pytest.fixture(scope="module")
def two_wells(located_once, tmp_path_factory):
    """Two wells of one plate, and a size of crop that leaves the image at many cells."""
    root = tmp_path_factory.mktemp("two") / "study"
    shutil.copytree(located_once.root, root)
    edit_index(
        root, lambda t: t[(t[PLATE] == "P1") & t[WELL].isin(["A01", "B01"]) & (t[WELL] + t[SITE].astype(str) != "B012")]
    )
    study = configure(root, locate=KEPT)
    measure_intensities(study)
    locate_cells(study)
    return root


@pytest.mark.parametrize(
    ("mode", "border", "normalize", "mask"),
    [
        *itertools.product(
            ["slice", "interpolate"], ["zero", "reflect", "drop"], ["plate_control", "minmax", "none"], [False, True]
        ),
        ("slice", "zero", "percentile", False),
        ("interpolate", "reflect", "percentile", True),
        ("interpolate", "zero", "legacy_over_max", True),
        ("interpolate", "zero", "zscore", False),
    ],
)
def test_network_input_is_what_profiling_feeds(two_wells, monkeypatch, mode, border, normalize, mask):
    crops = {"size": 48, "mode": mode, "border": border, "normalize": normalize, "mask": mask}
    assert_as_profiled(two_wells, monkeypatch, crops)


@pytest.mark.parametrize(("normalize", "mask"), [("plate_control", True), ("percentile", False), ("none", False)])
def test_of_corrected_images_too(two_wells, monkeypatch, tmp_path, normalize, mask):
    root = tmp_path / "study"
    shutil.copytree(two_wells, root)
    light = {"illumination": {"method": "smooth", "window": 40}}
    study = configure(root, locate=KEPT, **light)
    measure_intensities(study)
    locate_cells(study)
    assert_as_profiled(root, monkeypatch, {"size": 48, "normalize": normalize, "mask": mask}, **light)


@pytest.mark.parametrize("normalize", ["plate_control", "percentile", "minmax", "none"])
def test_of_float_images_too(two_wells, monkeypatch, tmp_path, normalize):
    root = tmp_path / "study"
    shutil.copytree(two_wells, root)
    for path in (root / "images" / "P1").glob("*.tif"):
        tifffile.imwrite(path, tifffile.imread(path).astype(np.float32) / 65535)
    measure_intensities(configure(root, locate=KEPT))
    locate_cells(configure(root, locate=KEPT))
    assert_as_profiled(root, monkeypatch, {"size": 48, "normalize": normalize})


def assert_as_profiled(root, monkeypatch, crops, **light):
    study = configure(root, locate=KEPT, crops=crops, **light)
    expected = fed(study, monkeypatch)
    assert len(expected) >= 10
    if crops["normalize"] != "zscore":
        assert expected.min() >= 0
    assert expected.any(axis=(1, 2, 3)).all()
    _, counts = exported(root, crops=crops, export={"depth": "original"}, **light)
    np.testing.assert_array_equal(counts.network_input(slice(None)), expected)
    rows = np.random.default_rng(0).permutation(len(counts))[:9]
    np.testing.assert_array_equal(counts.network_input(rows), expected[rows])
    if crops["normalize"] == "zscore":
        with pytest.raises(InputError, match=r"zscore has no limits, and 8 bits hold 0 to 1; set export\.depth"):
            exported(root, crops=crops, export={"depth": "uint8"}, **light)
        return
    _, eight = exported(root, crops=crops, export={"depth": "uint8", "compression": "none"}, **light)
    np.testing.assert_array_equal(eight[:], np.floor(expected.astype(np.float64) * 255 + 0.5))
    found = eight.network_input(slice(None))
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 0.5 / 255 + 1e-7
    features = pq.read_table(study.features / "P1" / "cells.parquet").drop_columns("features").to_pandas()
    assert eight.table[list(features)].equals(features)


def test_plates_are_scaled_by_their_own_levels(export, monkeypatch):
    for path in (export.root / "images" / "P2").glob("*.tif"):
        tifffile.imwrite(path, tifffile.imread(path) * np.uint16(2))
    measure_intensities(export)
    locate_cells(export)
    expected = fed(export, monkeypatch)
    _, crops = exported(export.root, export={"depth": "original"})
    rows = np.random.default_rng(0).permutation(len(crops))
    np.testing.assert_array_equal(crops.network_input(rows), expected[rows])


def test_sites_are_scaled_by_their_own_levels(two_wells, monkeypatch, tmp_path):
    root = tmp_path / "study"
    shutil.copytree(two_wells, root)
    for path in (root / "images" / "P1").glob("B01*.tif"):
        tifffile.imwrite(path, tifffile.imread(path) * np.uint16(3))  # which percentiles of the site take away
    crops = {"normalize": "percentile", "percentiles": [1, 99]}
    before = fed(configure(two_wells, locate=KEPT, crops=crops), monkeypatch)
    locate_cells(configure(root, locate=KEPT))
    after = fed(configure(root, locate=KEPT, crops=crops), monkeypatch)
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert_as_profiled(root, monkeypatch, crops)


def test_eight_bit_images_without_scaling_stay_as_they_are(fresh):
    for path in (fresh.root / "images").rglob("*.tif"):
        tifffile.imwrite(path, (tifffile.imread(path) // 32).astype(np.uint8))
    found = []
    for depth in ("uint8", "original"):
        study = configure(fresh.root, locate=KEPT, crops={"normalize": "none"}, export={"depth": depth})
        locate_cells(study)
        export_crops(study)
        crops = Crops(study.crop_store)
        found.append((crops[:], crops.network_input([3])))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_eight_bits_are_rounded_half_up():
    assert eight_bits(np.array([0, 0.5, 1], np.float32)).tolist() == [0, 128, 255]  # 127.5, exact in binary
    below = np.nextafter(np.float32(0.5), np.float32(0))
    assert eight_bits(np.array([below])).tolist() == [127]
    every = np.linspace(0, 1, 200_001, dtype=np.float32)
    assert np.abs(eight_bits(every) / 255 - every).max() <= 0.5 / 255 + 1e-7
    assert (np.diff(eight_bits(every).astype(int)) >= 0).all()


# --- masks
def test_only_the_cells_own_pixels_are_left(two_wells):
    _, plain = exported(two_wells, crops={"normalize": "none"}, export={"depth": "original"})
    cells, whole = plain.table.to_dict("records"), plain[:]
    study = configure(two_wells, locate=KEPT)
    _, masked = exported(two_wells, crops={"mask": True, "normalize": "none"}, export={"depth": "original"})
    for cell, before, after in zip(cells, whole, masked[:], strict=True):
        labels = np.pad(read_labels(study, cell), 16)
        x, y = (int(np.floor(cell[f"Metadata_Location_{axis}"] + 0.5)) for axis in "XY")
        own = labels[y : y + 32, x : x + 32] == cell[CELL] + 1
        assert own.sum() == cell["Metadata_Area"]
        crop = np.zeros((32, 32, 3), np.uint16)
        crop[own] = before[own]
        np.testing.assert_array_equal(after, crop)
        assert before.all()  # there was something to mask


def test_a_mask_needs_labels(export, monkeypatch):
    monkeypatch.setattr(deepprofile.features, "load_extractor", lambda study: (Watcher(), (CARD,)))
    study = configure(export.root, crops={"mask": True})
    for stage in (export_crops, profile_cells):
        with pytest.raises(InputError, match=r"crops\.mask needs the label images: set locate\.labels to true and run"):
            stage(study)


@pytest.mark.parametrize("what", ["missing", "size"])
def test_a_label_image_that_does_not_fit_is_no_bad_site(export, what):
    study = configure(export.root, locate=KEPT, crops={"mask": True})
    path = label_path(study, {PLATE: "P1", WELL: "B01", SITE: "2"})
    if what == "missing":
        path.unlink()
    else:
        tifffile.imwrite(path, np.zeros((64, 64), np.uint16))
    want = "no label image; set locate.labels" if what == "missing" else "64 x 64 pixels, the image has 128 x 128; run"
    with pytest.raises(InputError, match=rf"B01_2\.tif: {want}"):
        export_crops(study)
    if what == "missing":
        locate_cells(study)
        export_crops(study)
        assert Crops(study.crop_store).preprocess.mask


# --- which cells
def test_what_is_selected_is_what_is_kept(export):
    every = Crops(export.crop_store)
    before = dict(zip(every.table[KEY].itertuples(index=False, name=None), every[:], strict=True))
    done, few = exported(export.root, export={"per_well": 4})
    assert (done.made, done.rows, len(few)) == (12, 48, 48)
    for row, crop in zip(few.table[KEY].itertuples(index=False, name=None), few[:], strict=True):
        np.testing.assert_array_equal(crop, before[row])


def test_only_wells_whose_cells_change_are_made_again(export):
    first = Crops(export.crop_store)
    done, same = exported(export.root, export={"per_well": 1000})
    assert (done.made, same.key) == (0, first.key)
    most = int(first.table.groupby([PLATE, WELL]).size().max())
    done, _ = exported(export.root, export={"per_well": most - 1})
    larger = (first.table.groupby([PLATE, WELL]).size() == most).sum()
    assert (done.made, done.kept) == (larger, 12 - larger)


def test_the_workers_do_not_matter(located, tmp_path, monkeypatch):
    found = []
    for n in (1, 5):
        root = tmp_path / f"with{n}"
        shutil.copytree(located.root, root)
        monkeypatch.setattr("cytominer_tools.threads.workers", lambda n=n: n)
        monkeypatch.setattr(deepprofile.export, "workers", lambda n=n: n)
        export_crops(configure(root, locate=KEPT, export={"per_treatment": 30, "fraction": 0.9}))
        found.append(stored(root))
    assert found[0] == found[1]
    assert len(found[0]) == 2 * (6 + 2) + 1


# --- what is current is left alone
def test_again_is_nothing(export):
    before = stored(export.root)
    done = export_crops(export)
    assert (done.made, done.kept, done.rows) == (0, 12, 305)
    assert stored(export.root) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"export": {"depth": "original"}}, "depth: uint8 -> original"),
        ({"export": {"compression": "none"}}, "compression: lz4 -> none"),
        ({"crops": {"size": 16}}, "preprocess.size: 32 -> 16"),
        ({"crops": {"mask": True}}, "preprocess.mask: False -> True"),
    ],
)
def test_a_changed_setting_runs_again_and_says_so(export, caplog, changes, words):
    before = Crops(export.crop_store).key
    with caplog.at_level("INFO", "deepprofile"):
        done, crops = exported(export.root, **changes)
    assert (done.made, done.kept) == (12, 0)
    assert f"export: plate P2: {words}: it runs again" in caplog.text
    assert crops.key != before
    assert len(list(export.crop_store.rglob("*.arrow"))) == 12  # none is left of before


def test_other_levels_run_again(export):
    image = export.root / "images/P1/A01_s1_DNA.tif"
    pixels = tifffile.imread(image)
    tifffile.imwrite(image, pixels * np.uint16(3))
    measure_intensities(export)
    locate_cells(export)
    done = export_crops(export)
    assert (done.made, done.kept) == (6, 6)


def test_a_new_name_of_a_treatment_makes_no_crop_again(export):
    first = Crops(export.crop_store)
    edit_index(
        export.root,
        lambda t: t.replace({"Metadata_Compound": {"aaa": "new"}}).assign(Metadata_Dose=t["Metadata_Site"] * 2),
    )
    done = export_crops(export)
    again = Crops(export.crop_store)
    assert (done.made, again.key) == (0, first.key)
    assert set(again.table["Metadata_Compound"]) == {"DMSO", "new", "bbb"}
    assert set(again.table["Metadata_Dose"]) == {2, 4}


def test_wells_that_leave_the_index_leave_the_store(export):
    edit_index(export.root, lambda t: t[~((t[PLATE] == "P1") & (t[WELL] == "B02"))])
    locate_cells(export)
    measure_intensities(export)
    done = export_crops(export)
    assert done.made == 0
    assert not list((export.crop_store / "P1").glob("B02*"))
    table = Crops(export.crop_store).table
    assert len(table[[PLATE, WELL]].drop_duplicates()) == 11
    edit_index(export.root, lambda t: t[t[PLATE] == "P2"])
    export_crops(export)
    assert set(Crops(export.crop_store).table[PLATE]) == {"P2"}


# --- cells at the border, wells without cells, bad sites
def test_border_drop_keeps_a_cell_while_its_box_is_in_the_image(export, monkeypatch):
    changes = {"crops": {"size": 64, "border": "drop"}}
    done, crops = exported(export.root, **changes)
    assert 0 < len(crops) < 305
    xy = crops.table[["Metadata_Location_X", "Metadata_Location_Y"]].to_numpy()
    assert (np.floor(xy + 0.5) >= 32).all()
    assert (np.floor(xy + 0.5) <= 96).all()
    whys = {why for _, why in done.skipped}
    assert whys == {"their box leaves the image"}
    again = export_crops(configure(export.root, locate=KEPT, **changes), strict=True)
    assert (again.made, again.skipped) == (0, done.skipped)


def test_sites_and_wells_without_cells_are_done(fresh):
    blank = np.full((128, 128, 3), 500, np.uint16)
    blank[0, 0] = 501
    for site in (1, 2):
        write_images(fresh.root, "P1", "C01", site, blank)
        for well in ("A01", "A02", "B01", "B02", "C01", "C02"):
            write_images(fresh.root, "P2", well, site, blank)
    write_images(fresh.root, "P1", "B01", 1, blank)
    measure_intensities(fresh)
    locate_cells(fresh)
    done = export_crops(fresh)
    assert (done.made, done.skipped) == (12, ())
    table = Crops(fresh.crop_store).table
    assert set(table[WELL]) == {"A01", "A02", "B01", "B02", "C02"}
    assert table.loc[table[WELL] == "B01", SITE].unique().tolist() == ["2"]
    assert len(list(fresh.crop_store.rglob("*.arrow"))) == 5
    again = export_crops(fresh)
    assert (again.made, again.kept, again.rows) == (0, 12, done.rows)


def cut_short(root, name):
    path = root / "images" / name
    path.write_bytes(path.read_bytes()[:1000])


def test_a_bad_site_is_left_out_and_strict_refuses_it(located):
    cut_short(located.root, "P1/A02_s1_ER.tif")
    done = export_crops(located)
    assert done.made == 12
    assert [what for what, _ in done.skipped] == ["P1 A02 site 1"]
    assert "A02_s1_ER.tif: cannot be read" in done.skipped[0][1]
    table = Crops(located.crop_store).table
    assert table.loc[(table[PLATE] == "P1") & (table[WELL] == "A02"), SITE].unique().tolist() == ["2"]
    assert export_crops(located).skipped == done.skipped
    with pytest.raises(InputError, match=r"A02_s1_ER\.tif: cannot be read"):
        export_crops(located, strict=True)
    assert len(Crops(located.crop_store)) == done.rows  # as it was


def test_finished_crops_are_not_replaced_by_nothing(export):
    before = stored(export.root)
    shutil.move(export.root / "images", export.root / "elsewhere")
    with pytest.raises(InputError, match=r"the crops in .*crops would be replaced by nothing, as none of"):
        export_crops(export)
    assert stored(export.root) == before


def test_what_eight_bits_cannot_hold(fresh):
    for path in (fresh.root / "images").rglob("*.tif"):
        tifffile.imwrite(path, tifffile.imread(path).astype(np.float32))
    study = configure(fresh.root, crops={"normalize": "none"})
    locate_cells(study)
    want = r"plate P1: scaled crops reach from \d+ to \d+\.?\d*, and 8 bits hold 0 to 1; set export\.depth to original"
    with pytest.raises(InputError, match=want):
        export_crops(study)
    done = export_crops(configure(fresh.root, crops={"normalize": "none"}, export={"depth": "original"}))
    assert done.made == 12


@pytest.mark.parametrize("stage", ["locate", "illumination"])
def test_stages_before_it(fresh, stage):
    if stage == "illumination":
        locate_cells(fresh)
    with pytest.raises(InputError, match=f"run `deepprofile {stage}`"):
        export_crops(fresh)


# --- the command
def test_the_command(export):
    outcome = CliRunner().invoke(main, ["export", str(export.root)])
    assert (outcome.exit_code, outcome.stdout) == (0, "export: 305 crops (0 made, 12 current)\n")
    outcome = CliRunner().invoke(main, ["export", str(export.root), "--json", "--strict"])
    assert json.loads(outcome.stdout)[0]["rows"] == 305


# --- a full disk, and a kill
@pytest.mark.parametrize(("where", "n"), [("crops/P1/", 2), ("crops/P2/", 9), (".arrow", 5), ("sites.parquet", 1)])
def test_a_full_disk_and_then_some_space(located, store, monkeypatch, where, n):
    calls = []
    fsync = os.fsync

    def full(number):
        if where in os.readlink(f"/proc/self/fd/{number}"):
            calls.append(number)
            if len(calls) >= n:
                raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"the disk is full; free some space and run the same command again"):
            export_crops(located)
    assert not leftovers(located.root)
    done = export_crops(located)
    assert 0 < done.made <= 12
    assert stored(located.root) == stored(store.root)


def test_a_disk_that_fills_up_inside_arrow(located, store, monkeypatch):
    osfile = deepprofile.crop_store.pa.OSFile
    with monkeypatch.context() as patch:
        patch.setattr(deepprofile.crop_store.pa, "OSFile", lambda path, mode: osfile("/dev/full", mode))
        with pytest.raises(InputError, match=r"-\w{8}\.arrow: the disk is full; free some space and run the same"):
            export_crops(located)
    assert not list(located.crop_store.rglob("*.arrow"))
    export_crops(located)
    assert stored(located.root) == stored(store.root)


def leftovers(root):
    return [p for p in Path(root).rglob(".*") if LEFTOVER.match(p.name)]


# exports, but kills itself when the n-th file of a name is written and not yet in its place
SCRIPT = """
import os, signal, sys, threading
where, n = sys.argv[2], int(sys.argv[3])
calls, lock, fsync = 0, threading.Lock(), os.fsync
def dying(number):
    global calls
    with lock:
        calls += where in os.readlink(f"/proc/self/fd/{number}")
        if calls == n:
            os.kill(os.getpid(), signal.SIGKILL)
    fsync(number)
os.fsync = dying
from deepprofile.export import export_crops
from deepprofile.study import read_study
export_crops(read_study(sys.argv[1]))
"""


def kill_at(study, where, n):
    command = [sys.executable, "-c", SCRIPT, str(study.root), where, str(n)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == -signal.SIGKILL, process.stderr


@pytest.mark.parametrize(
    ("where", "n"),
    [
        pytest.param("sites.parquet", 1, marks=pytest.mark.slow),  # nothing is written
        pytest.param("crops/P1/", 1, marks=pytest.mark.slow),
        (".arrow", 4),  # some wells are in place, some written and not recorded
        pytest.param("crops/P1/", 12, marks=pytest.mark.slow),
        ("cells.parquet", 1),  # all wells of a plate are recorded, their one table is not in its place
        pytest.param("crops/P2/", 17, marks=pytest.mark.slow),
    ],
)
def test_killed_at_a_write_and_run_again(located, store, where, n):
    kill_at(located, where, n)
    assert stored(located.root) != stored(store.root)
    assert leftovers(located.root)
    with pytest.raises(InputError, match="run `deepprofile export`"):
        Crops(located.crop_store)
    export_crops(located)
    assert stored(located.root) == stored(store.root)
    assert not leftovers(located.root)
    assert export_crops(located).made == 0


@pytest.mark.parametrize(
    ("where", "n"),
    [
        pytest.param(".arrow", 3, marks=pytest.mark.slow),
        ("crops/P1/", 14),
        pytest.param("crops/P2/", 6, marks=pytest.mark.slow),
    ],
)
def test_killed_while_it_runs_again_under_other_settings(export, store, where, n):
    configure(export.root, locate=KEPT, export={"depth": "original", "per_well": 9})
    kill_at(export, where, n)
    with pytest.raises(InputError, match="run `deepprofile export`"):
        Crops(export.crop_store)
    export_crops(configure(export.root, locate=KEPT))  # and back
    assert stored(export.root) == stored(store.root)


def test_what_was_complete_before_the_kill_is_kept(located):
    kill_at(located, "crops/P2/", 10)
    done = export_crops(located)
    assert 6 <= done.kept < 12
    assert done.made + done.kept == 12


# --- the page that shows how plain libraries read it
def test_the_snippets_of_the_page_run(export, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "crop-store.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(export.root.parent)
    export.root.rename(export.root.parent / "my-study")
    study = configure(export.root.parent / "my-study", locate=KEPT)
    for compression, block in zip(("none", "lz4", "lz4"), blocks, strict=True):
        export_crops(configure(study.root, locate=KEPT, export={"compression": compression}))
        names = {}
        exec(block, names)
        np.testing.assert_array_equal(names["crop"], Crops(study.crop_store)[names["row"]])
