import json
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import tifffile
from click.testing import CliRunner
from study_factory import configure, draw_site, edit_index

from cytominer_tools.columns import PLATE, SITE, WELL
from deepprofile.cli import main
from deepprofile.index import load_index
from deepprofile.study import read_study

COMMANDS = ["init", "check", "illumination", "locate", "profile", "aggregate", "normalize", "consensus", "score", "run"]


# CLI prints warnings by replacing warnings.showwarning for its process
@pytest.fixture(autouse=True)
def _warnings_as_they_were(monkeypatch):
    import warnings

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


pytestmark = pytest.mark.filterwarnings("ignore:spherizing learns from")


def call(*words, code=0):
    told = CliRunner().invoke(main, list(map(str, words)))
    if told.exception and not isinstance(told.exception, SystemExit):
        raise told.exception
    assert told.exit_code == code, told.output
    assert "Traceback" not in told.output
    return told


# --- help
def test_help_lists_every_command():
    text = call("--help").stdout
    for command in [*COMMANDS, "models", "demo"]:
        assert f"\n  {command} " in text
    assert [text.index(f"\n  {c} ") for c in COMMANDS[2:9]] == sorted(text.index(f"\n  {c} ") for c in COMMANDS[2:9])


@pytest.mark.parametrize("command", [*COMMANDS, "models", "demo"])
def test_every_command_explains_itself(command):
    assert len(call(command, "--help").stdout.splitlines()) > 4


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom deepprofile.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'keras', 'tensorflow', 'pandas', 'numpy', 'pyarrow', 'scipy', 'cv2', 'matplotlib', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stderr == "[]\n"


def test_version():
    assert call("--version").stdout.endswith(f"version {version('deepprofile')}\n")


# --- init
def test_init_from_an_index(images, tmp_path):
    call("init", tmp_path / "new", "--index", images / "index.csv")
    study = read_study(tmp_path / "new")
    assert list(study.channels) == ["DNA", "ER", "Mito"]
    assert study.columns.compound == "Metadata_Compound"
    assert study.columns.moa == "Metadata_MOA"
    assert study.controls == "Metadata_Compound == 'DMSO'"
    assert study.locate.channel == "DNA"
    assert study.images.size == (128, 128)
    assert len(load_index(study)) == 24
    told = call("check", tmp_path / "new")
    assert "0 error" not in told.stdout
    assert "Nothing keeps it from running." in told.stdout
    call("init", tmp_path / "new", "--index", images / "index.csv", code=2)


def write_phenix(folder):
    for row in (1, 2):
        for site in (1, 2):
            image = draw_site(np.random.default_rng([row, site]))
            for c, channel in enumerate((5, 1)):
                name = f"r{row:02d}c03f{site:02d}p01-ch{channel}sk1fk1fl1.tiff"
                folder.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(folder / name, image[..., c])


def test_init_from_images_of_a_phenix(tmp_path):
    write_phenix(tmp_path / "study" / "BR1")
    metadata = pd.DataFrame({"Metadata_Well": ["A03", "B03"], "Metadata_Compound": ["DMSO", "x"]})
    metadata.to_csv(tmp_path / "platemap.csv", index=False)
    call("init", tmp_path / "study", "--images", tmp_path / "study", "--metadata", tmp_path / "platemap.csv")
    study = read_study(tmp_path / "study")
    assert study.channels == {"ch1": "1", "ch5": "5"}
    assert study.controls == "Metadata_Compound == 'DMSO'"
    index = load_index(study)
    assert index[[PLATE, WELL, SITE]].to_numpy().tolist() == [
        ["BR1", "A03", "1"],
        ["BR1", "A03", "2"],
        ["BR1", "B03", "1"],
        ["BR1", "B03", "2"],
    ]
    assert index["Metadata_Compound"].tolist() == ["DMSO", "DMSO", "x", "x"]
    told = call("check", tmp_path / "study", code=2)
    assert "controls: 1 control well; spherizing needs two, or set profiles.fit to all" in told.stdout
    assert "1 of 1 treatments have one well" in told.stdout


def test_init_from_images_with_generic_names(images, tmp_path):
    call("init", tmp_path / "new", "--images", images / "images")
    study = read_study(tmp_path / "new")
    assert set(study.channels) == {"DNA", "ER", "Mito"}
    index = load_index(study)
    assert len(index) == 24
    assert index[WELL].unique().tolist() == ["A01", "A02", "B01", "B02", "C01", "C02"]
    told = call("check", tmp_path / "new", code=2)
    assert "study.yaml controls: no controls to learn from" in told.stdout


def test_init_from_images_with_a_pattern(images, tmp_path):
    pattern = r"(?P<plate>P1)/(?P<well>[A-C]\d\d)_s(?P<site>\d)_(?P<channel>DNA|ER)\.tif"
    call("init", tmp_path / "new", "--images", images / "images", "--pattern", pattern)
    assert len(load_index(read_study(tmp_path / "new"))) == 12


def test_init_says_what_it_lacks(images, tmp_path):
    assert "give either an index" in call("init", tmp_path / "new", code=2).stderr
    (tmp_path / "none").mkdir()
    assert "no image (" in call("init", tmp_path / "new", "--images", tmp_path / "none", code=2).stderr
    assert "no such file" in call("init", tmp_path / "new", "--index", tmp_path / "no.csv", code=2).stderr
    assert not (tmp_path / "new" / "study.yaml").exists()


# --- check
def test_check_lists_several_problems(fresh):
    (fresh.root / "images" / "P1" / "A01_s1_DNA.tif").unlink()
    path = fresh.root / "images" / "P2" / "B01_s2_ER.tif"
    path.write_bytes(path.read_bytes()[:3000])
    tifffile.imwrite(fresh.root / "images" / "P2" / "B02_s1_Mito.tif", np.full((128, 128), 9, np.uint16))
    tifffile.imwrite(fresh.root / "images" / "P2" / "C02_s1_Mito.tif", np.eye(100, dtype=np.uint16))
    configure(fresh.root, controls="Metadata_Compound == 'dmso'", profile={"network": "smal_cnn"})
    told = call("check", fresh.root, code=2)
    assert told.stdout.startswith("6 error(s)\n")
    for words in (
        "A01_s1_DNA.tif: no such image",
        "B01_s2_ER.tif: cannot be read, truncated or damaged",
        "B02_s1_Mito.tif: is flat, every pixel is 9",
        "C02_s1_Mito.tif: 100 x 100 pixels, images.size in study.yaml is 128 x 128",
        "study.yaml controls: no well is a control by \"Metadata_Compound == 'dmso'\"",
        "study.yaml profile.network: 'smal_cnn' is not installed; there are efficientnet_b0, ",
    ):
        assert words in told.stdout
    rows = json.loads(call("check", fresh.root, "--json", code=2).stdout)
    assert sum(row["level"] == "error" for row in rows) == 6
    assert set(rows[0]) == {"place", "what", "level"}


def test_check_of_a_sound_study(fresh):
    told = call("check", fresh.root)
    assert "controls: 4 control wells; spherizing is unstable under 16" in told.stdout
    assert told.stdout.endswith("Nothing keeps it from running.\n")


def test_check_asks_scores_select(fresh):
    for query, words, code in (
        ("Metadata_Compund == 'x'", "study.yaml scores.select: query \"Metadata_Compund == 'x'\": no column", 2),
        (
            "Metadata_Compound == 'x'",
            "study.yaml scores.select: \"Metadata_Compound == 'x'\" keeps none of 12 wells",
            2,
        ),
        ("Metadata_Count > 3", "Nothing keeps it from running", 0),
        ("Metadata_Plate != 'P9'", "the controls are scored too", 0),
    ):
        assert words in call("check", configure(fresh.root, scores={"select": query}).root, code=code).stdout


def test_check_sees_confounding(fresh):
    edit_index(fresh.root, lambda t: t[(t["Metadata_Well"] != "B02") & (t["Metadata_Well"] != "C02")])
    told = call("check", fresh.root)
    assert "2 of 2 replicated treatments keep one well position (first aaa)" in told.stdout


# --- the stages
def test_run_prints_what_was_done_and_the_table(fresh):
    told = call("run", fresh.root)
    lines = told.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:7]] == [*COMMANDS[2:9]]
    assert "profile: " in lines[2]
    assert "cells x 16 features (12 made)" in lines[2]
    assert any(line.startswith("profiles by") for line in lines)
    assert any(line.startswith("replicates by Compound  precision_at_r") for line in lines)
    assert "scores/small_cnn_untrained/deep/: " in told.stdout
    assert "small_cnn is untrained, a baseline rather than a result" in told.stderr
    again = call("run", fresh.root)
    assert "(0 made, 12 current)" in again.stdout


def test_a_stage_at_a_time_as_json(fresh):
    for stage in COMMANDS[2:9]:
        (row,) = json.loads(call(stage, fresh.root, "--json").stdout)
        assert row["stage"] == stage
        assert row["made"] > 0
        assert row["skipped"] == []
    rows = json.loads(call("run", fresh.root, "--json").stdout)
    assert [row["made"] for row in rows] == [0] * 7


@pytest.mark.parametrize(
    ("stage", "before"),
    [
        ("profile", "locate"),
        ("aggregate", "profile"),
        ("normalize", "aggregate"),
        ("consensus", "normalize"),
        ("score", "consensus"),
    ],
)
def test_a_stage_before_its_input_says_what_to_run(fresh, stage, before):
    told = call(stage, fresh.root, code=2)
    assert f"run `deepprofile {before}`" in told.stderr
    assert told.stderr.count("\n") <= 2


def test_profile_before_illumination_says_so(fresh):
    call("locate", fresh.root)
    assert "run `deepprofile illumination`" in call("profile", fresh.root, code=2).stderr


def test_what_was_left_out_is_shown(fresh):
    (fresh.root / "images" / "P1" / "A01_s1_DNA.tif").unlink()
    told = call("locate", fresh.root)
    assert "; 1 left out" in told.stdout
    assert "P1 A01 site 1: " in told.stdout
    assert "no such image" in told.stdout
    assert "no such image" in call("locate", fresh.root, "--strict", code=2).stderr


def test_no_study(tmp_path):
    told = call("run", tmp_path, code=2)
    assert f"{tmp_path / 'study.yaml'}: no such file; `deepprofile init` writes one" in told.stderr


# --- models
def test_models_are_listed():
    text = call("models").stdout
    assert "networks  small_cnn  (deepprofile " in text
    assert "BSD-3-Clause" in text
    assert "options: width=32, depth=4" in text
    rows = {(row["group"], row["name"]): row for row in json.loads(call("models", "--json").stdout)}
    assert rows["networks", "efficientnet_b0"]["licence"] == "Apache-2.0"
    assert rows["locators", "nuclei"]["about"].startswith("Find nuclei")


# --- shares, sets of features, plans
def test_options_that_do_not_go(done):
    for options, words in (
        (("--part", "5/4"), "--part 5/4: expected a number from 1 to 4"),
        (("--part", "1/2", "--devices", "0"), "--devices deals the wells to its processes itself"),
        (("--epoch", "a"), "--epoch a: expected numbers from 1, such as 8,16,25"),
        (("--epoch", "8"), "--epoch 8: profile.weights is none"),
    ):
        assert words in call("profile", done.root, *options, code=2).stderr
    assert "--model a: no such features" in call("aggregate", done.root, "--model", "a", code=2).stderr
    assert (
        "the layout png is written by one process"
        in call("export", done.root, "--part", "1/2", "--format", "png", code=2).stderr
    )


def test_a_part_and_a_named_set(done):
    (row,) = json.loads(call("profile", done.root, "--part", "2/3", "--json").stdout)
    assert (row["made"], row["kept"], row["left_out"]) == (0, 4, [])
    (row,) = json.loads(call("aggregate", done.root, "--model", "small_cnn_untrained", "--json").stdout)
    assert (row["made"], row["kept"]) == (0, 1)


def test_many_that_were_left_out_are_counted(fresh):
    for path in (fresh.root / "images" / "P1").glob("*_DNA.tif"):
        path.unlink()
    told = call("locate", fresh.root).stdout
    assert "Left out (12):" in told
    assert "  12 for 'no such image': P1 A01 site 1, P1 A01 site 2, P1 A02 site 1 and 9 more" in told
    assert "and with --json" in told
    (row,) = json.loads(call("locate", fresh.root, "--json").stdout)
    assert row["left_out"][0]["count"] == 12
    assert len(row["skipped"]) == 12
