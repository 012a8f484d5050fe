import json

import numpy as np
import pandas as pd
import pytest
import tifffile
from click.testing import CliRunner

from cytominer_tools.errors import InputError
from deepprofile.checks import check_study
from deepprofile.cli import main
from deepprofile.deepprofiler_project import init_deepprofiler
from deepprofile.index import load_index
from deepprofile.locations import locate_cells
from deepprofile.study import read_study

CONFIG = {
    "dataset": {
        "metadata": {"label_field": "Treatment", "control_value": "DMSO"},
        "images": {"channels": ["DNA", "ER"], "file_format": "tif", "bits": 16, "width": 96, "height": 64},
        "locations": {"mode": "single_cells", "box_size": 32, "area_coverage": 0.75, "mask_objects": False},
    },
    "prepare": {
        "illumination_correction": {"down_scale_factor": 2, "median_filter_size": 24},
        "compression": {"implement": False, "scaling_factor": 1.0},
    },
    "train": {
        "partition": {"targets": ["Compound"], "split_field": "Split", "training": [0], "validation": [1]},
        "model": {"name": "efficientnet", "initialization": "ImageNet", "params": {"conv_blocks": 0}, "epochs": 3},
    },
    "profile": {"feature_layer": "block6a_activation", "checkpoint": "None", "batch_size": 8},
}
OLDEST = {  # DeepProfiler 0.1
    "image_set": {"channels": ["DNA", "ER"], "width": 96, "height": 64, "mask_objects": False},
    "model": {"type": "mixup", "alpha": 0.2},
    "sampling": {"box_size": 32, "field": "Treatment"},
    "training": {"targets": ["Compound"], "split_field": "Split", "training_values": [1], "validation_values": [2]},
    "queueing": {"queue_size": 500},
    "profiling": {"feature_layer": "pool5", "checkpoint": ""},
}


def project(root, config=CONFIG, images="inputs/images", suffix=".tif", wells=("A01", "A02")):
    """A project of one plate whose name has a hyphen; treatments DMSO and x."""
    rng = np.random.default_rng(0)
    rows = []
    for well, treatment in zip(wells, ("DMSO", "x"), strict=True):
        row = {"Metadata_Plate": "P-1", "Metadata_Well": well, "Metadata_Site": 1, "Treatment": treatment}
        for channel in ("DNA", "ER"):
            name = f"P-1/{well}_{channel}"
            row[channel] = f"{name}.tif"
            (root / images / "P-1").mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 255, (64, 96), dtype=np.uint8)
            if suffix == ".png":
                import cv2

                cv2.imwrite(str(root / images / f"{name}.png"), image)
            else:
                tifffile.imwrite(root / images / f"{name}{suffix}", image)
        (root / "inputs/locations/P-1").mkdir(parents=True, exist_ok=True)
        (root / f"inputs/locations/P-1/{well}-1-Nuclei.csv").write_text(
            "Nuclei_Location_Center_X,Nuclei_Location_Center_Y\n90,10.5\n20,60\n"
        )
        rows.append({**row, "Compound": treatment, "Concentration": 1.5, "Split": 0})
    for folder in ("config", "metadata"):
        (root / "inputs" / folder).mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(root / "inputs/metadata/index.csv", index=False)
    (root / "inputs/config/config.json").write_text(json.dumps(config))
    return root


def changed(config, **changes):
    """`config` with values at dotted keys replaced; None removes one."""
    config = json.loads(json.dumps(config))
    for key, value in changes.items():
        *path, last = key.split("__")
        section = config
        for part in path:
            section = section.setdefault(part, {})
        if value is None:
            section.pop(last, None)
        else:
            section[last] = value
    return config


def test_a_project_in_place(tmp_path):
    made = init_deepprofiler(tmp_path / "study", project(tmp_path / "dp"))
    study = read_study(made.path)
    assert made.notes == (
        "config.json: train: no counterpart for partition.split_field, partition.training, partition.validation, "
        "model.epochs",
    )
    assert (list(study.channels), study.images.size) == (["DNA", "ER"], (64, 96))
    assert study.crops.model_dump(exclude={"percentiles"}) == {
        "size": 32, "mode": "interpolate", "border": "zero", "normalize": "legacy_over_max", "mask": False
    }  # fmt: skip
    assert (study.columns.treatment, study.columns.compound) == ("Metadata_Treatment", "Metadata_Compound")
    assert study.columns.concentration == "Metadata_Concentration"
    assert study.controls == "Metadata_Treatment == 'DMSO'"
    profile = study.profile
    assert (profile.network, profile.weights, profile.batch) == ("efficientnet_b0", "imagenet", 8)
    assert profile.layer == "block6a_activation"
    assert "{method: deepprofiler, window: 48, downscale: 2}" in made.path.read_text()
    assert [p for p in check_study(study) if p.level == "error" and p.place != "controls"] == []
    assert locate_cells(study).rows == 4


@pytest.mark.parametrize("old", ["control_id", "0.1"])
def test_old_names_of_keys(old, tmp_path):
    config = OLDEST
    if old == "control_id":
        config = changed(CONFIG, dataset__metadata__control_value=None, dataset__metadata__control_id="DMSO")
    made = init_deepprofiler(tmp_path / "study", project(tmp_path / "dp", config))
    study = read_study(made.path)
    assert (list(study.channels), study.images.size, study.crops.size) == (["DNA", "ER"], (64, 96), 32)
    assert study.columns.treatment == "Metadata_Treatment"
    assert study.controls == "Metadata_Treatment == 'DMSO'"
    told = "\n".join(made.notes)
    assert "no counterpart for" in told
    if old == "0.1":
        assert "train.model.name: mixup is taken for efficientnet_b0" in told
        assert "training: no counterpart for split_field, training_values, validation_values" in told
        assert study.profile.layer == "features"


def test_compressed_images(tmp_path):
    config = changed(CONFIG, prepare__compression__implement=True)
    made = init_deepprofiler(
        tmp_path / "study", project(tmp_path / "dp", config, "outputs/compressed/images", suffix=".png")
    )
    study = read_study(made.path)
    assert made.notes[0].startswith(f"{tmp_path / 'study' / 'index.csv'}: the index with the paths of the compressed")
    assert load_index(study)["DNA"].tolist() == ["P-1/A01_DNA.png", "P-1/A02_DNA.png"]
    assert [p for p in check_study(study) if p.level == "error" and p.place != "controls"] == []


def test_what_is_missing_is_listed(tmp_path):
    root = project(tmp_path / "dp", changed(CONFIG, dataset__metadata__control_value="NA@NA"))
    (root / "inputs/images/P-1/A02_ER.tif").unlink()
    (root / "inputs/locations/P-1/A01-1-Nuclei.csv").unlink()
    made = init_deepprofiler(tmp_path / "study", root)
    assert made.notes[0] == f"1 of 4 images are not in {root / 'inputs/images'}: P-1/A02_ER.tif"
    assert made.notes[1] == f"1 of 2 location files are not in {root / 'inputs/locations'}: P-1/A01-1-Nuclei.csv"
    assert made.notes[2] == (
        "dataset.metadata.control_value: 'NA@NA' does not occur in Treatment of the index, which holds 'DMSO', 'x'; "
        "controls are guessed as Metadata_Treatment == 'DMSO'"
    )
    told = {p.what for p in check_study(read_study(made.path)) if p.level == "error"}
    assert "no such image" in told


def test_wells_and_sites_that_the_files_write_otherwise(tmp_path):
    root = project(tmp_path / "dp", wells=("a01", "f21"))
    made = init_deepprofiler(tmp_path / "study", root)
    assert not any("location files" in note for note in made.notes)
    assert locate_cells(read_study(made.path)).rows == 4
    index = pd.read_csv(root / "inputs/metadata/index.csv")
    index.assign(Metadata_Site="01").to_csv(root / "inputs/metadata/index.csv", index=False)
    made = init_deepprofiler(tmp_path / "other", root)
    assert made.notes[0] == (
        "2 location files are called otherwise than the site; rename P-1/a01-1-Nuclei.csv to "
        "P-1/A01-01-Nuclei.csv, P-1/f21-1-Nuclei.csv to P-1/F21-01-Nuclei.csv"
    )


def test_a_checkpoint_and_other_networks(tmp_path):
    config = changed(CONFIG, profile__checkpoint="checkpoint_0003.hdf5", train__model__name="densenet")
    root = project(tmp_path / "dp", config)
    made = init_deepprofiler(tmp_path / "one", root)
    told = "\n".join(made.notes)
    assert "train.model.name: densenet is taken for efficientnet_b0" in told
    assert "profile.checkpoint: no file outputs/*/checkpoint/checkpoint_0003.hdf5" in told
    assert read_study(made.path).profile.weights is None
    (root / "outputs/results/checkpoint").mkdir(parents=True)
    (root / "outputs/results/checkpoint/checkpoint_0003.hdf5").write_bytes(b"")
    weights = read_study(init_deepprofiler(tmp_path / "two", root).path).profile.weights
    assert weights == (root / "outputs/results/checkpoint/checkpoint_0003.hdf5").as_posix()


def test_the_era_is_chosen_by_name(tmp_path):
    root = project(tmp_path / "dp")
    for era in ("minmax", "zscore", "legacy_over_max"):
        assert read_study(init_deepprofiler(tmp_path / era, root, normalize=era).path).crops.normalize == era
    told = CliRunner().invoke(main, ["init", str(tmp_path / "x"), "--deepprofiler", str(root), "--normalize", "minmax"])
    assert told.exit_code == 0
    assert read_study(tmp_path / "x").crops.normalize == "minmax"
    told = CliRunner().invoke(main, ["init", str(tmp_path / "y"), "--images", str(root), "--normalize", "minmax"])
    assert told.exit_code == 2
    assert "--normalize is of a DeepProfiler project; give it with --deepprofiler" in told.stderr


def test_repeated_channels_and_another_network(tmp_path):
    config = changed(
        CONFIG,
        train__model__crop_generator="repeat_channel_crop_generator",
        train__model__name="resnet",
        train__model__params__conv_blocks=50,
        profile__use_pretrained_input_size=299,
        profile__feature_layer="avg_pool",
    )
    made = init_deepprofiler(tmp_path / "study", project(tmp_path / "dp", config))
    profile = read_study(made.path).profile
    assert (profile.network, profile.mode, profile.input_size) == ("keras_resnet50v2", "repeat_channel", 299)
    assert (profile.layer, profile.weights) == ("features", "imagenet")
    assert not any("crop_generator" in note or "train.model.name" in note for note in made.notes)
    for name, depth, ours in (("resnet", 152, "keras_resnet152v2"), ("efficientnet", 3, "efficientnet_b3")):
        config = changed(CONFIG, train__model__name=name, train__model__params__conv_blocks=depth)
        made = init_deepprofiler(tmp_path / ours, project(tmp_path / f"dp {ours}", config))
        assert read_study(made.path).profile.network == ours


def test_views_of_whole_images_are_tiles(tmp_path):
    config = changed(CONFIG, dataset__locations__mode="full_image", dataset__locations__view_size=48)
    made = init_deepprofiler(tmp_path / "study", project(tmp_path / "dp", config))
    study = read_study(made.path)
    assert (study.profile.tiles, study.crops.size) == (True, 48)
    assert "full_image becomes tiles of 48 x 48 px that cover each site; crops.size is their side" in made.notes[0]


def test_masks_need_outlines(tmp_path):
    config = changed(CONFIG, dataset__locations__mask_objects=True)
    root = project(tmp_path / "dp", config)
    made = init_deepprofiler(tmp_path / "one", root)
    assert any("mask_objects: no outlines (prepare.outlines," in note for note in made.notes)
    assert not read_study(made.path).crops.mask
    (root / "inputs/config/config.json").write_text(json.dumps(changed(config, prepare__outlines="outlines.csv")))
    (root / "inputs/metadata/outlines.csv").write_text("Metadata_Plate,Metadata_Well,Metadata_Site,Outlines\n")
    study = read_study(init_deepprofiler(tmp_path / "two", root).path)
    assert (study.crops.mask, study.locate.labels) == (True, True)
    assert study.path(study.locate.outlines.root) == (root / "inputs/outlines").resolve()


def test_a_config_that_cannot_be_read(tmp_path):
    root = project(tmp_path / "dp")
    path = root / "inputs/config/config.json"

    def told(settings, words, **given):
        path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
        with pytest.raises(InputError, match=words):
            init_deepprofiler(tmp_path / "study", root, **given)
        assert not (tmp_path / "study/study.yaml").exists()

    told("{", r"config\.json: not JSON, .*; mend it")
    told("[1]", r"config\.json: expected an object of settings, got list")
    told('{"dataset": 1, "dataset": 2}', r"config\.json: the key 'dataset' stands twice")
    told({"dataset": {}}, r"config\.json: dataset\.images\.channels: expected a list, it is absent")
    told(changed(CONFIG, dataset__locations__box_size="32"), "box_size: expected a whole number, got '32'")
    told(changed(CONFIG, dataset__images__channels=["DNA", "Tubulin"]), r"index\.csv: no column 'Tubulin'")
    told(CONFIG, r"other\.json: no such file; there is config\.json", config="other.json")
    told(CONFIG, r"no\.csv: no such file", index="no.csv")
    told({"log_type": "comet_ml"}, r"inputs/config: no config \(\.json\); name one with --config")
    path.write_text(json.dumps(CONFIG))
    (root / "inputs/config/second.json").write_text(json.dumps(CONFIG))
    with pytest.raises(InputError, match=r"2 configs \(config\.json, second\.json\); name one with --config"):
        init_deepprofiler(tmp_path / "study", root)
    init_deepprofiler(tmp_path / "study", root, config="second")
    with pytest.raises(InputError, match="is there already"):
        init_deepprofiler(tmp_path / "study", root, config="second")


def test_paths_of_the_config_and_windows_paths(tmp_path):
    root = project(tmp_path / "dp", changed(CONFIG, paths__images="/inputs/raw/"), images="inputs/raw")
    index = root / "inputs/metadata/index.csv"
    index.write_text(index.read_text().replace("P-1/A", "P-1\\A"))
    made = init_deepprofiler(tmp_path / "study", root)
    assert not any("images are not in" in note for note in made.notes)
    assert [p for p in check_study(read_study(made.path)) if p.level == "error" and p.place != "controls"] == []


def test_the_command(tmp_path):
    project(tmp_path / "dp")
    arguments = ["init", str(tmp_path / "study"), "--deepprofiler", str(tmp_path / "dp")]
    told = CliRunner().invoke(main, [*arguments, "--preset", "phenix"])
    assert told.exit_code == 2
    assert "with --deepprofiler only --config, --index (a file in inputs/metadata) and --normalize" in told.stderr
    told = CliRunner().invoke(main, arguments)
    assert told.exit_code == 0
    assert "- config.json: train: no counterpart for" in told.stdout
    assert "study.yaml: look it over" in told.stdout


# --- real data
@pytest.mark.data
def test_the_lincs_project(data, tmp_path):
    made = init_deepprofiler(tmp_path, data / "deepprofiler_project")
    study = read_study(made.path)
    told = "\n".join(made.notes)
    assert "there is no index.csv in" in told
    assert "test_index.csv is taken for it" in told
    assert "180 of 180 images are not in" in told
    assert "36 of 36 location files are not in" in told
    assert "'NA@NA' does not occur in Treatment of the index, which holds 'DMSO@NA', 'BRD-K74363950" in told
    assert (study.profile.mode, study.profile.input_size, study.profile.layer) == ("repeat_channel", 224, "features")
    assert "outputs/results/features/{plate}/{well}_{site}.npz" in made.path.read_text()
    assert "partition.training_values, partition.validation_values" in told
    assert study.controls == "Metadata_Compound == 'DMSO'"
    assert list(study.channels) == ["DNA", "RNA", "ER", "AGP", "Mito"]
    index = load_index(study)
    assert len(index) == 36
    assert index["DNA"].iloc[0] == "SQ00014812/r01c01f01p01-ch1sk1fk1fl1.png"
    problems = check_study(study)
    assert sum(p.what == "no such image" for p in problems) == 180
