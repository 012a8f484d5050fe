import subprocess
import sys

import pytest
from pydantic import ValidationError

from cytominer_tools.errors import InputError
from deepprofile.study import STAGES, read_study

SMALL = "images: {index: index.csv}\nchannels: {DNA: FileName_DNA}\n"


def read(folder, text=SMALL):
    (folder / "study.yaml").write_text(text)
    return read_study(folder)


def problems(folder, text):
    with pytest.raises(InputError) as caught:
        read(folder, text)
    head, *rows = str(caught.value).split("\n  ")
    assert head == f"{(folder / 'study.yaml').resolve()} has {len(rows)} problem(s)"
    return rows


def test_two_lines_are_a_study(tmp_path):
    study = read(tmp_path)
    assert (study.seed, study.crops.size, study.crops.normalize, study.controls) == (0, 128, "plate_control", None)
    assert (study.profile.network, study.profile.weights, study.profile.layer) == ("efficientnet_b0", None, "features")
    assert study.locate.method == "nuclei"
    assert study.scores.baselines == ("permutation", "cell_count")
    assert study.preprocess.channels == ("DNA",)


def test_a_file_its_folder_and_no_file(tmp_path):
    study = read(tmp_path)
    assert read_study(tmp_path / "study.yaml") == read_study(str(tmp_path)) == study
    (tmp_path / "other.yml").write_text(SMALL + "seed: 4\n")
    assert read_study(tmp_path / "other.yml").seed == 4
    with pytest.raises(InputError, match=r"absent/study\.yaml: no such file"):
        read_study(tmp_path / "absent")


def test_every_problem_is_listed_with_its_place(tmp_path):
    text = (
        "images: {index: a.csv, foo: 1, sise: 1}\nchannels: {}\nbar: 1\nseed: -1\n"
        "crops: {size: 33, percentiles: [99, 1], mode: cut}\nscores: {baselines: [luck]}\nprofile: {batch: many}\n"
    )
    found = problems(tmp_path, text)
    assert "images.sise: unknown key, is it size?" in found
    assert "images.foo: unknown key; docs/guide.md lists those that there are" in found
    assert "bar: unknown key; docs/guide.md lists those that there are" in found
    assert "crops.percentiles: expected two rising numbers between 0 and 100" in found
    places = {row.split(":")[0] for row in found}
    assert places == {
        *("images.foo", "images.sise", "channels", "bar", "seed", "crops.size", "crops.percentiles", "crops.mode"),
        *("scores.baselines.0", "profile.batch"),
    }
    assert next(row for row in found if row.startswith("profile.batch")).endswith("got 'many'")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("channels: {DNA: d}", "images: is missing"),
        ("images: {index: a.csv}", "channels: is missing"),
        (SMALL.replace("index: index.csv", "root: x"), "images: give either index"),
        (SMALL.replace("index: index.csv", "index: a, folder: b, pattern: c"), "images: give either index"),
        (SMALL.replace("index: index.csv", "folder: b"), "images: folder and pattern go together"),
        (SMALL + "locate: {channel: ER}", "the file: locate.channel: 'ER' is not one of DNA"),
        (SMALL + "12: a", "12: "),
        (SMALL + "controls: 5", "controls: "),
        (SMALL + "profiles: {recipe: best}", "the file: profiles.recipe: no recipe is called 'best'; there are deep, "),
        (SMALL + "columns: {compound: [a]}", "columns.compound: "),
        ("images: 5\nchannels: {DNA: d}", "images: "),
    ],
)
def test_one_problem(text, words, tmp_path):
    assert [row[: len(words)] for row in problems(tmp_path, text)] == [words]


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ("{schedule: step}", "kind step and the key steps, such as {10: 0.01, 20: 0.005}, go together"),
        ("{schedule: {kind: step, steps: {-1: 0.1}}}", "Input should be greater than or equal to 0"),
        ("{schedule: {kind: constant, warmup_epochs: 2}}", "warmup_epochs belongs to the kind cosine, and the kind is"),
        ("{schedule: {factor: 0.5}}", "factor belongs to the kind plateau, and the kind is cosine; leave it out"),
        ("{weight_decay: 0.1}", "weight_decay belongs to adamw; with sgd use l2"),
        ("{optimizer: adamw, momentum: 0.8}", "momentum belongs to sgd; with adamw leave it out"),
        ("{init: random, stem: inflate}", "stem belongs to the init imagenet, and the init is random; leave it out"),
        ("{class_weights: balanced}", "the cells of an epoch are balanced by class already"),
        ("{split: {by: plate, fraction: 0.5, train: [P1]}}", "the lists train and validation decide who validates"),
    ],
)
def test_a_setting_of_training_that_would_do_nothing_is_refused(tmp_path, train, words):
    (row,) = problems(tmp_path, SMALL + f"train: {train}\n")
    assert words in row


def test_the_root_is_where_the_file_stands(tmp_path):
    with pytest.raises(InputError, match=r"unknown key root; image paths start from images\.root"):
        read(tmp_path, SMALL + "root: /etc\n")
    study = read(tmp_path, SMALL.replace("index.csv", "index.csv, root: ../images"))
    assert study.root == tmp_path.resolve()
    assert study.image_root == tmp_path.resolve().parent / "images"
    assert study.path("/a/b").as_posix() == "/a/b"
    pattern = "images: {folder: raw, pattern: x, root: ignored}\nchannels: {DNA: '1'}\n"
    assert read(tmp_path, pattern).image_root == tmp_path.resolve() / "raw"


def test_where_results_go(tmp_path):
    study = read(tmp_path, SMALL + "profile: {network: small_cnn, weights: nets/a.b.keras}\n")
    assert study.profile.name == "small_cnn_a.b"
    assert study.features == study.root / "features" / "small_cnn_a.b"
    assert study.profiles_folder == study.root / "profiles" / "small_cnn_a.b" / "deep"
    assert study.scores_folder == study.root / "scores" / "small_cnn_a.b" / "deep"
    assert read(tmp_path).profile.name == "efficientnet_b0_untrained"
    escape = read(tmp_path, SMALL + "profile: {model: ../../etc}\n")
    assert escape.features.parent == study.root / "features"
    assert escape.features.name == "%2E.%2F..%2Fetc"


def test_a_study_is_frozen(tmp_path):
    study = read(tmp_path)
    with pytest.raises(ValidationError, match="frozen"):
        study.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        study.crops.size = 64


def test_what_a_treatment_is(tmp_path):
    assert read(tmp_path).consensus == ()
    study = read(tmp_path, SMALL + "columns: {compound: C, concentration: D}\n")
    assert (study.treatment, study.consensus) == ("C", ("C", "D"))
    study = read(tmp_path, SMALL + "columns: {compound: C, treatment: T}\nprofiles: {consensus: [X]}\n")
    assert (study.treatment, study.consensus) == ("T", ("X",))


def test_the_untrained_twin(tmp_path):
    assert read(tmp_path, SMALL + "scores: {baselines: [untrained]}\n").untrained is None
    assert read(tmp_path, SMALL + "profile: {weights: imagenet}\n").untrained is None
    study = read(tmp_path, SMALL + "profile: {weights: imagenet}\nscores: {baselines: [untrained]}\n")
    assert study.untrained.profile.weights is None
    assert study.untrained.profile.name == "efficientnet_b0_imagenet_untrained"
    assert study.untrained.crops == study.crops


def test_writing_sweeps_and_locks(tmp_path):
    study = read(tmp_path)
    left = tmp_path / "features" / "m" / f".{'0' * 32}.cells.parquet"
    mine = tmp_path / "images" / f".{'0' * 32}.mine"  # not in the folder of a stage
    for path in (left, mine):
        path.parent.mkdir(parents=True)
        path.write_text("half")
    code = "import sys; from deepprofile.study import read_study\nwith read_study(sys.argv[1]).writing(): pass"
    with study.writing():
        assert not left.exists()
        assert mine.exists()
        refused = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
        assert "is working on it" in refused.stderr
    assert "evaluation" not in STAGES
