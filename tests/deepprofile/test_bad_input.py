"""What goes wrong in a laboratory, and the words that it ends in."""

import errno
import json
import os
import re

import numpy as np
import pandas as pd
import pytest
import tifffile
from click.testing import CliRunner
from study_factory import CHANNELS, configure, derived, edit_index, made, run, write_images

import cytominer_tools.files
from cytominer_tools.columns import WELL
from cytominer_tools.errors import InputError
from cytominer_tools.tables import read_table
from deepprofile.cli import main
from deepprofile.features import profile_cells
from deepprofile.intensities import measure_intensities
from deepprofile.locations import locate_cells
from deepprofile.profiles import aggregate_wells, normalize_wells
from deepprofile.study import read_study

pytestmark = pytest.mark.filterwarnings("ignore:spherizing learns from")


def image_of(study, well="B01", site=1, channel="DNA", plate="P1"):
    return study.root / "images" / plate / f"{well}_s{site}_{channel}.tif"


def spoil(path, kind):
    """Make the image at `path` bad, and return the words that say so."""
    image = tifffile.imread(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
        return "cannot be read, truncated or damaged"
    if kind == "empty":
        path.write_bytes(b"")
        return "cannot be read, truncated or damaged"
    if kind == "text":
        path.write_text("an HTML page instead of an image")
        return "cannot be read, truncated or damaged"
    if kind == "missing":
        path.unlink()
        return "no such image"
    if kind == "size":
        tifffile.imwrite(path, image[:100])
        return "is 100 x 128 pixels, expected 128 x 128 (height x width)"
    if kind == "flat":
        tifffile.imwrite(path, np.full_like(image, 7))
        return "is flat, every pixel is 7; look at the image"
    assert kind == "nan"
    image = image.astype(np.float32)
    image[3, 4] = np.nan
    tifffile.imwrite(path, image)
    return "holds NaN or infinite pixels; export it again"


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# --- a bad site does not stop a plate
@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "missing", "size", "flat", "nan"])
@pytest.mark.parametrize("channel", ["DNA", "ER"])  # the locator sees DNA alone
def test_a_bad_image_leaves_its_site_out(fresh, finished, kind, channel):
    path = image_of(fresh, channel=channel)
    words = spoil(path, kind)
    measure_intensities(fresh)
    located, profiled = locate_cells(fresh), profile_cells(fresh)
    ((what, why),) = (located if channel == "DNA" else profiled).skipped
    assert what == "P1 B01 site 1"
    assert why.startswith(f"{path}: ")
    assert words in why
    assert "\n" not in why
    assert aggregate_wells(fresh).rows == 12
    wells = read_table(fresh.profiles_folder / "wells.parquet")
    whole = read_table(finished.profiles_folder / "wells.parquet")
    assert len(wells) == 12
    assert wells["Metadata_Count"].sum() < whole["Metadata_Count"].sum()
    same = (wells["Metadata_Plate"] != "P1") | (wells[WELL] != "B01")
    pd.testing.assert_frame_equal(wells[same], whole[same])


@pytest.mark.parametrize("kind", ["truncated", "missing", "size"])
def test_strict_makes_a_bad_site_an_error(fresh, kind):
    words = spoil(image_of(fresh), kind)
    for stage in (measure_intensities, locate_cells):
        if stage is locate_cells:
            with pytest.raises(InputError, match=re.escape(words)) as told:
                stage(fresh, strict=True)
            assert str(image_of(fresh)) in one_line(told)
        stage(fresh)
    words = spoil(image_of(fresh, well="B02", channel="Mito"), kind)
    profile_cells(fresh)
    with pytest.raises(InputError, match=re.escape(words)) as told:
        profile_cells(fresh, strict=True)  # also after a run that left it out
    assert str(image_of(fresh, well="B02", channel="Mito")) in one_line(told)


def test_a_mended_image_runs_its_well_again(fresh, finished):
    path = image_of(fresh)
    whole = path.read_bytes()
    spoil(path, "truncated")
    run(fresh)
    path.write_bytes(whole)
    os.utime(path, ns=(10**18, 10**18))
    told = run(fresh)
    assert (told["locate"].made, told["profile"].made, told["profile"].skipped) == (1, 1, ())
    assert derived(fresh.root) == derived(finished.root)


def test_a_channel_without_a_path_leaves_the_site_out(fresh):
    edit_index(fresh.root, lambda t: t.assign(Mito=t["Mito"].mask(t.index == 4)))
    told = run(fresh)
    assert [what for what, _ in told["profile"].skipped] == ["P1 B01 site 1"]


def test_no_site_of_a_plate_can_be_read(fresh, caplog):
    for path in (fresh.root / "images" / "P2").glob("*_ER.tif"):
        path.write_bytes(b"")
    told = run(fresh)
    assert "illumination: plate P2: none of its sites can be read: " in caplog.text
    assert len(told["profile"].skipped) == 12
    assert told["aggregate"].rows == 6  # the other plate goes on
    assert dict(told["aggregate"].skipped)["P2 A01"] == "no cells"


# --- cells
def test_no_cell_anywhere(fresh):
    for plate in ("P1", "P2"):
        for well in ("A01", "A02", "B01", "B02", "C01", "C02"):
            for site in (1, 2):
                blank = np.full((128, 128, 3), 500, np.uint16)
                blank[0, 0] = 501
                write_images(fresh.root, plate, well, site, blank)
    with pytest.raises(InputError, match=r"no well has a cell; look at the locations and at crops\.border") as told:
        run(fresh)
    assert str(fresh.features) in one_line(told)
    assert locate_cells(fresh).kept == 12  # done, not missing
    assert profile_cells(fresh).kept == 12


def test_all_cells_at_the_border(fresh):
    study = configure(fresh.root, crops={"size": 120, "border": "drop"})
    with pytest.raises(InputError, match=r"no well has a cell; look at the locations and at crops\.border"):
        run(study)
    told = profile_cells(study)
    assert told.rows == 0
    assert all("their box leaves the image" in why for _, why in told.skipped)


def test_a_well_without_cells_is_reported(fresh):
    blank = np.full((128, 128, 3), 500, np.uint16)
    blank[0, 0] = 501
    for site in (1, 2):
        write_images(fresh.root, "P2", "B02", site, blank)
    told = run(fresh)
    assert told["aggregate"].skipped == (("P2 B02", "no cells"),)
    assert told["aggregate"].rows == 11


# --- the index
def test_text_in_a_column_of_numbers(fresh):
    doses = ["1", "2", "high", *["3"] * 21]
    edit_index(fresh.root, lambda t: t.assign(Metadata_Dose=doses))
    study = configure(fresh.root, columns={"concentration": "Metadata_Dose"})
    with pytest.raises(InputError, match=r"row 4: Metadata_Dose is 'high', expected a number"):
        run(study)


def test_an_index_without_a_column_of_a_channel(fresh):
    edit_index(fresh.root, lambda t: t.rename(columns={"Mito": "Mitos"}))
    with pytest.raises(InputError, match=r"index\.csv: no column 'Mito', is it 'Mitos'\?.*`channels` in study\.yaml"):
        run(fresh)


def test_every_problem_of_an_index_at_once(fresh):
    edit_index(fresh.root, lambda t: pd.concat([t, t.iloc[:1]]).assign(Metadata_Well=["7", *t["Metadata_Well"]]))
    study = configure(fresh.root, columns={"batch": "Metadata_Week"})
    with pytest.raises(InputError, match=r"the index has \d problem\(s\)") as told:
        run(study)
    text = str(told.value)
    assert "columns.batch: no column 'Metadata_Week'" in text
    assert "row 2: '7' is not a well such as A01" in text


def test_no_index(fresh):
    (fresh.root / "index.csv").unlink()
    with pytest.raises(InputError, match=r"index\.csv: no such file"):
        run(fresh)


# --- study.yaml
def test_two_problems_at_once(fresh):
    configured = json.loads((fresh.root / "study.yaml").read_text())
    (fresh.root / "study.yaml").write_text(json.dumps({**configured, "sead": 3, "crops": {"sise": 32}}))
    with pytest.raises(InputError, match=r"study\.yaml has 2 problem\(s\)") as told:
        read_study(fresh.root)
    assert "sead: unknown key" in str(told.value)
    assert "crops.sise: unknown key" in str(told.value)


def test_the_command_line_says_it_in_a_line_and_exits_with_2(fresh):
    configured = json.loads((fresh.root / "study.yaml").read_text())
    (fresh.root / "study.yaml").write_text(json.dumps({**configured, "sead": 3}))
    told = CliRunner().invoke(main, ["run", str(fresh.root)])
    assert told.exit_code == 2
    assert "Traceback" not in told.output
    assert "study.yaml has 1 problem(s)" in told.output
    assert "sead: unknown key" in told.output


# --- controls and replicates
@pytest.mark.parametrize(
    ("controls", "words"),
    [
        (None, r"study\.yaml names no controls to learn from; set controls to a query .* or profiles\.fit to all"),
        ("Metadata_Compound == 'dmso'", r"no well is a control by \"Metadata_Compound == 'dmso'\"; mend controls"),
    ],
)
def test_no_controls(done, controls, words):
    study = configure(done.root, controls=controls)
    with pytest.raises(InputError, match=words) as told:
        normalize_wells(study)
    one_line(told)
    with pytest.raises(InputError, match=words):
        run(study)


NO_QUERIES = ["Metadata_Compound = 'DMSO", "Metadata_Compund == 'DMSO'", "os.system('x')", "@x"]


@pytest.mark.parametrize("controls", NO_QUERIES)
def test_controls_that_are_no_query(fresh, controls):
    study = configure(fresh.root, controls=controls)
    with pytest.raises(InputError, match="query ") as told:
        run(study)
    assert controls in one_line(told).replace("\\", "")
    told = CliRunner().invoke(main, ["run", str(fresh.root)])
    assert (told.exit_code, "Traceback" in told.output) == (2, False)
    assert "query " in told.output


def test_one_replicate(fresh):
    edit_index(
        fresh.root,
        lambda t: t[(t["Metadata_Compound"] == "DMSO") | ((t["Metadata_Plate"] == "P1") & t[WELL].str.endswith("1"))],
    )
    run(fresh)
    table = read_table(fresh.scores_folder / "scores.csv")
    selection = read_table(fresh.scores_folder / "selection.csv")
    removed = selection[selection["rule"] == "Metadata_Compound has at least 2 profiles"]
    assert removed["rows_removed"].iloc[0] == 2
    assert table["n"][0] == 4  # the controls alone are left to compare
    study = configure(fresh.root, scores={"select": "Metadata_Compound != 'DMSO'"})
    run(study)
    table = read_table(study.scores_folder / "scores.csv")
    assert np.isnan(table["value"][0])
    assert table["reason"][0] == "no profile is left: no Metadata_Compound has at least 2 profiles"


# --- the disk
@pytest.mark.parametrize("folder", ["locations", "features", "profiles", "scores"])
def test_a_file_stands_where_a_folder_should(fresh, folder):
    (fresh.root / folder).write_text("in the way")
    with pytest.raises(InputError, match="a part of this path is a file, not a folder") as told:
        run(fresh)
    assert str(fresh.root / folder) in one_line(told)


def test_a_folder_that_may_not_be_written_to(fresh, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(cytominer_tools.files.Path, "mkdir", refuse)
    with pytest.raises(InputError, match="not writable; change its permissions or choose another folder") as told:
        locate_cells(fresh)
    one_line(told)
    outcome = CliRunner().invoke(main, ["locate", str(fresh.root)])
    assert (outcome.exit_code, "Traceback" in outcome.output) == (2, False)


@pytest.mark.parametrize(
    ("folder", "n"), [("locations/P1", 3), ("locations/P2", 9), ("features/", 6), ("features/", 20), ("profiles/", 2)]
)
def test_a_full_disk_and_then_some_space(fresh, finished, monkeypatch, folder, n):
    calls = []
    fsync = os.fsync

    def full(number):
        if folder in os.readlink(f"/proc/self/fd/{number}"):
            calls.append(number)
            if len(calls) >= n:
                raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="the disk is full; free some space and run the same") as told:
            run(fresh)
    assert folder in one_line(told)
    run(fresh)
    assert derived(fresh.root) == derived(finished.root)


def test_a_disk_that_fills_up_inside_arrow(fresh, finished, monkeypatch):
    import cytominer_tools.manifest

    def full(table, path):
        path.write_bytes(b"PAR1")
        # as pyarrow says it
        raise OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cytominer_tools.manifest, "write_parquet", full)
        with pytest.raises(InputError, match=r"A01\.parquet: the disk is full; free some space"):
            locate_cells(fresh)
    assert not list((fresh.root / "locations").rglob("*.parquet"))
    run(fresh)
    assert derived(fresh.root) == derived(finished.root)


# --- images of other kinds are fine
def test_float_images(fresh):
    for path in (fresh.root / "images").rglob("*.tif"):
        tifffile.imwrite(path, tifffile.imread(path).astype(np.float32) / 65535)
    told = run(fresh)
    assert told["profile"].rows > 250
    assert told["profile"].skipped == ()


def test_channels_stay_in_the_order_of_study_yaml(fresh):
    study = configure(fresh.root, channels={name: name for name in reversed(CHANNELS)})
    assert study.preprocess.channels == tuple(reversed(CHANNELS))
    assert run(study)["profile"].made == 12
    assert aggregate_wells(study).kept == 1


# --- finished work is not replaced by nothing
def test_a_slip_in_the_size_of_images_empties_nothing(fresh):
    run(fresh)
    before = derived(fresh.root)
    slip = configure(fresh.root, images={"size": [64, 64]})
    said = (
        r"the cells of plate P1, in .*locations/P1, would be replaced by nothing, as none of 6 sites looked at can be"
    )
    with pytest.raises(InputError, match=said):
        locate_cells(slip)
    with pytest.raises(InputError, match=r"nothing was changed: mend that, or delete them to go on without"):
        run(slip)
    assert derived(fresh.root) == before


def test_images_that_are_gone_take_no_features_with_them(fresh):
    run(fresh)
    (fresh.root / "images").rename(fresh.root / "unmounted")
    with pytest.raises(InputError, match=r"would be replaced by nothing, .* no such image"):
        run(fresh)
    (fresh.root / "unmounted").rename(fresh.root / "images")
    assert not any(made(run(fresh)).values())
