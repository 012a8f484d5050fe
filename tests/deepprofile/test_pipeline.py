import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from study_factory import WELLS, configure, derived, draw_site, edit_index, made, make_wells, run, write_images

from cytominer_tools.columns import PLATE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.tables import read_table
from deepprofile.pipeline import run_study

NOTHING = {"illumination": 0, "locate": 0, "profile": 0, "aggregate": 0, "normalize": 0, "consensus": 0, "score": 0}
ALL = {"illumination": 2, "locate": 12, "profile": 12, "aggregate": 1, "normalize": 1, "consensus": 1, "score": 1}
AFTER_CELLS = {"aggregate": 1, "normalize": 1, "consensus": 1, "score": 1}


# --- all of it
def test_two_fresh_runs_give_the_same_bytes(finished, fresh):
    assert made(run(fresh)) == ALL
    assert derived(fresh.root) == derived(finished.root)


def test_nothing_runs_again_while_it_is_current(done):
    before = derived(done.root)
    index = (done.root / "index.parquet").stat().st_mtime_ns
    assert made(run(done)) == NOTHING
    assert derived(done.root) == before
    assert (done.root / "index.parquet").stat().st_mtime_ns == index


def test_a_stage_at_a_time_is_the_same_as_all_at_once(fresh, finished):
    from deepprofile.features import profile_cells
    from deepprofile.intensities import measure_intensities
    from deepprofile.locations import locate_cells

    for stage in (measure_intensities, locate_cells, profile_cells):
        stage(fresh)
    assert made(run(fresh)) == {**NOTHING, **AFTER_CELLS}
    assert derived(fresh.root) == derived(finished.root)


def test_a_study_that_moved_is_still_current(done, tmp_path):
    shutil.move(done.root, tmp_path / "elsewhere")
    assert made(run(configure(tmp_path / "elsewhere"))) == NOTHING


# --- what a changed setting runs again, and what it leaves
@pytest.mark.parametrize(
    ("changes", "again", "said"),
    [
        ({"locate": {"params": {"min_contrast": 0.2}}}, {"locate": 12, "profile": 12}, "params.min_contrast: none"),
        ({"locate": {"channel": "ER"}}, {"locate": 12, "profile": 12}, "channel: DNA -> ER"),
        ({"crops": {"size": 16}}, {"profile": 12}, "preprocess.size: 32 -> 16"),
        ({"crops": {"percentiles": [1.0, 99.0]}}, {"illumination": 2, "profile": 12}, "percentiles: [0.1, 99.9] -> "),
        ({"profile": {"options": {"width": 3, "depth": 3}}}, {"profile": 12}, "options.width: 4 -> 3"),
        ({"profile": {"layer": "block3_activation"}}, {"profile": 12}, "layer: features -> block3_activation"),
        ({"seed": 4}, {"profile": 12}, "weights_hash: "),
    ],
)
def test_a_changed_setting_runs_what_depends_on_it(done, changes, again, said, caplog):
    study = configure(done.root, **changes)
    with caplog.at_level(logging.INFO, "deepprofile"):
        told = run(study)
    assert made(told) == {**NOTHING, **again, **AFTER_CELLS}
    assert said in caplog.text
    assert "it runs again" in caplog.text
    assert made(run(study)) == NOTHING


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"profiles": {"operation": "mean"}}, ["aggregate", "normalize", "consensus", "score"]),
        ({"profiles": {"fit": "all"}}, ["normalize", "consensus", "score"]),
        ({"profiles": {"consensus": ["Metadata_Compound", "Metadata_MOA"]}}, ["consensus", "score"]),
        ({"scores": {"permutations": 30}}, ["score"]),
        ({"scores": {"min_class_size": 3}}, ["score"]),
    ],
)
def test_a_setting_of_profiles_leaves_the_cells_alone(done, changes, again):
    assert made(run(configure(done.root, **changes))) == {**NOTHING, **dict.fromkeys(again, 1)}


def test_a_setting_put_back_gives_the_first_bytes(done, finished):
    run(configure(done.root, crops={"size": 16}))
    run(configure(done.root))
    assert derived(done.root) == derived(finished.root)


def test_other_controls_run_what_is_scaled_by_them(done):
    study = configure(done.root, controls="Metadata_Compound in ['DMSO', 'aaa']")
    told = made(run(study))
    assert told["illumination"] == 2
    assert told["locate"] == 0
    assert told["normalize"] == 1


# --- what a changed input runs again
def test_a_changed_image_runs_its_well_alone(done):
    write_images(done.root, "P1", "B02", 2, draw_site(np.random.default_rng(77), "aaa", n=9))
    path = done.root / "images" / "P1" / "B02_s2_DNA.tif"
    for name in path.parent.glob("B02_s2_*.tif"):
        os.utime(name)
    told = run(done)
    assert made(told) == {**NOTHING, "locate": 1, "profile": 1, **AFTER_CELLS}
    assert made(run(done)) == NOTHING


def test_a_changed_control_image_runs_the_plate_that_is_scaled_by_it(done):
    write_images(done.root, "P2", "A01", 1, draw_site(np.random.default_rng(78), n=9) * np.uint16(2))
    os.utime(done.root / "images" / "P2" / "A01_s1_ER.tif")
    told = made(run(done))
    assert (told["illumination"], told["locate"], told["profile"]) == (1, 0, 6)


def test_an_added_well_runs_alone(done, finished):
    rows = make_wells(done.root, "P1", {"D05": "aaa"})
    edit_index(done.root, lambda t: pd.concat([t, pd.DataFrame(rows)]))
    before = read_table(done.profiles_folder / "wells.parquet")
    told = run(done)
    assert made(told) == {**NOTHING, "locate": 1, "profile": 1, **AFTER_CELLS}
    wells = read_table(done.profiles_folder / "wells.parquet")
    old = wells[(wells[PLATE] != "P1") | (wells[WELL] != "D05")].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, before)


def test_an_added_plate_runs_alone(done):
    rows = make_wells(done.root, "P0", dict(list(WELLS.items())[:4]))
    edit_index(done.root, lambda t: pd.concat([t, pd.DataFrame(rows)]))
    assert made(run(done)) == {"illumination": 1, "locate": 4, "profile": 4, **AFTER_CELLS}
    assert read_table(done.profiles_folder / "wells.parquet")[PLATE].tolist()[:4] == ["P0"] * 4


def test_a_well_that_left_the_index_leaves_every_table(done):
    edit_index(done.root, lambda t: t[(t["Metadata_Plate"] != "P2") | (t["Metadata_Well"] != "C02")])
    assert made(run(done)) == {**NOTHING, **AFTER_CELLS}
    for name in ("wells.parquet", "normalized.parquet"):
        assert len(read_table(done.profiles_folder / name)) == 11
    cells = pq.read_table(done.features / "P2" / "cells.parquet", columns=[WELL])
    assert "C02" not in cells[WELL].to_pylist()
    assert made(run(done)) == NOTHING


def test_a_plate_that_left_the_index_leaves_the_profiles(done):
    edit_index(done.root, lambda t: t[t["Metadata_Plate"] == "P1"])
    assert made(run(done)) == {**NOTHING, **AFTER_CELLS}
    assert read_table(done.profiles_folder / "wells.parquet")[PLATE].unique().tolist() == ["P1"]


def test_a_lost_file_is_made_again(done, finished):
    (done.features / "P1" / "cells.parquet").unlink()
    (done.profiles_folder / "normalized.parquet").unlink()
    told = made(run(done))
    assert (told["profile"], told["aggregate"], told["normalize"]) == (6, 0, 1)
    assert derived(done.root) == derived(finished.root)


# --- one process at a time
def test_a_second_process_is_told_that_the_study_is_held(done):
    script = (
        "import sys\nfrom deepprofile.study import read_study\nfrom deepprofile.locations import locate_cells\n"
        "from cytominer_tools.errors import InputError\n"
        "try:\n    locate_cells(read_study(sys.argv[1]))\nexcept InputError as e:\n    print(e)\n"
    )
    steps = run_study(configure(done.root, locate={"params": {"noise": 6.0}}))
    next(steps)
    try:
        other = subprocess.run([sys.executable, "-c", script, str(done.root)], capture_output=True, text=True)
    finally:
        steps.close()
    assert other.stdout == f"{done.root}: process {os.getpid()} is working on it; wait until it ends, or stop it\n"
    assert made(run(configure(done.root)))["locate"] == 0  # and free again


def test_a_run_that_stops_at_an_error_lets_go_of_the_study(fresh):
    study = configure(fresh.root, controls="Metadata_Compound == 'nobody'")
    with pytest.raises(InputError, match="no well is a control"):
        run(study)
    assert made(run(configure(fresh.root)))["normalize"] == 1
