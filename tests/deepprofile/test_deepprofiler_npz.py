"""Features as DeepProfiler keeps them: written, read back, and profiles made of them."""

import json
import shutil
import zipfile

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from study_factory import configure, edit_index

from cytominer_tools.columns import CELL, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.tables import read_table
from deepprofile.cli import main
from deepprofile.deepprofiler_npz import SiteFeatures, export_npz, import_features, read_npz, write_npz
from deepprofile.deepprofiler_project import init_deepprofiler
from deepprofile.features import CARD, profile_cells
from deepprofile.locations import X, Y
from deepprofile.pipeline import run_study
from deepprofile.profiles import WELLS, aggregate_wells
from deepprofile.study import read_study

TEMPLATES = {"granular": "npz/{plate}/{well}/{site}.npz", "site": "npz/{plate}/{well}_{site}.npz"}


def cells_of(study, plate):
    table = pq.read_table(study.features / plate / "cells.parquet")
    return table.drop_columns("features").to_pandas(), np.stack(table["features"].to_pylist()).astype(np.float32)


def some(n=3, width=4, **metadata):
    rng = np.random.default_rng(n)
    about = {PLATE: "P1", WELL: "A01", SITE: 1, "Metadata_Model": "cnn", **metadata}
    return SiteFeatures(rng.normal(size=(n, width)).astype(np.float32), rng.random((n, 2)) * 99, about)


def imported(root, layout="granular", **profile):
    """The study with its features from the files in npz/."""
    return configure(root, profile={"network": "small_cnn", "files": TEMPLATES[layout], **profile}, export=None)


# --- one file
def test_a_file_comes_back(tmp_path):
    found = some(Treatment="DMSO", Concentration=1.5)
    write_npz(tmp_path / "1.npz", found)
    again = read_npz(tmp_path / "1.npz")
    np.testing.assert_array_equal(again.features, found.features)
    np.testing.assert_array_equal(again.locations, found.locations)
    assert again.metadata == found.metadata
    with np.load(tmp_path / "1.npz", allow_pickle=True) as file:  # as DeepProfiler's readers do
        assert list(file) == ["features", "metadata", "locations"]
        assert file["metadata"].shape == ()
        assert file["metadata"].item() == found.metadata
        assert (file["features"].dtype, file["locations"].dtype) == (np.float32, np.float64)


def test_a_file_of_other_types_and_without_locations(tmp_path):
    path = tmp_path / "1.npz"
    np.savez(path, features=np.arange(6, dtype=">i2").reshape(2, 3))
    found = read_npz(path)
    assert found.features.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (found.features.dtype, found.locations, found.metadata) == (np.float32, None, {})
    mixed = np.array([[1.5, 2, "round"], [3, 4, "flat"]], object)  # a location file with a column of text
    np.savez(path, features=np.zeros((2, 3)), locations=mixed, metadata=np.array({"a": np.int64(3)}, object))
    found = read_npz(path)
    assert found.locations.tolist() == [[1.5, 2], [3, 4]]
    assert found.metadata == {"a": 3}


class Evil:
    ran = False

    def __reduce__(self):
        return setattr, (Evil, "ran", True)


def damage(path, what):
    arrays = {"features": np.zeros((2, 3), np.float32), "locations": np.zeros((2, 2))}
    if what == "evil":
        arrays["metadata"] = np.array({"a": Evil()}, object)
    elif what == "objects":
        arrays["features"] = np.array([[Evil(), 1.0]], object)
    elif what == "list":
        arrays["metadata"] = np.array(["a"], object).reshape(())
    elif what == "shape":
        arrays["features"] = np.zeros(3)
    elif what == "locations":
        arrays["locations"] = np.zeros((3, 2))
    elif what == "absent":
        del arrays["features"]
    np.savez(path, **arrays)
    if what == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif what == "noise":
        path.write_bytes(b"PK\x03\x04 noise")
    elif what == "longer":
        with zipfile.ZipFile(path, "w") as file:
            header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (100000000000, 3), }"
            header += b" " * (118 - len(header) - 1) + b"\n"
            file.writestr("features.npy", b"\x93NUMPY\x01\x00\x76\x00" + header + b"\x00" * 24)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("evil", r"1\.npz: metadata: a pickle of more than plain values, .*it calls builtins.setattr"),
        ("objects", r"1\.npz: features: a pickle of more than plain values"),
        ("list", r"1\.npz: metadata is a str; expected a dict"),
        ("shape", r"1\.npz: features of shape \(3,\), float64; expected \(cells, width\) numbers"),
        ("locations", r"1\.npz: 3 locations for 2 cells"),
        ("absent", r"1\.npz: no array `features`; it holds locations"),
        ("truncated", r"1\.npz: not a \.npz file, or damaged"),
        ("noise", r"1\.npz: not a \.npz file, or damaged"),
        ("longer", r"1\.npz: features: 24 bytes for an array of \(100000000000, 3\), float64"),
    ],
)
def test_files_that_are_refused(tmp_path, what, words):
    damage(tmp_path / "1.npz", what)
    with pytest.raises(InputError, match=words):
        read_npz(tmp_path / "1.npz")
    assert not Evil.ran
    with pytest.raises(InputError, match=r"2\.npz: no such file"):
        read_npz(tmp_path / "2.npz")


# --- a study out and in again
@pytest.mark.parametrize("layout", ["granular", "site"])
def test_a_study_goes_out_and_comes_in(done, layout):
    told = export_npz(done, done.root / "npz", layout)
    assert (told.made, told.rows) == (2, 24)
    path = done.root / TEMPLATES[layout].format(plate="P1", well="B02", site="2")
    found = read_npz(path)
    assert found.metadata == {
        PLATE: "P1", WELL: "B02", SITE: 2, "Metadata_Compound": "aaa", "Metadata_MOA": "kinase",
        **{name: f"images/P1/B02_s2_{name}.tif" for name in ("DNA", "ER", "Mito")},
        "Metadata_Model": "small_cnn_untrained",
    }  # fmt: skip
    again = imported(done.root, layout)
    told = profile_cells(again)
    assert (told.made, told.rows, told.unit) == (12, 305, "cells x 16 features")
    assert again.profile.name == "deepprofiler"
    for plate in ("P1", "P2"):
        cells, features = cells_of(again, plate)
        before, expected = cells_of(done, plate)
        np.testing.assert_array_equal(features, expected)
        assert cells.equals(before[[PLATE, WELL, SITE, CELL, X, Y]])
    card = json.loads(pq.read_schema(again.features / "P1" / "cells.parquet").metadata[CARD])
    assert (card["made_by"], card["network"], card["width"]) == ("DeepProfiler", "small_cnn_untrained", 16)
    aggregate_wells(again)
    ours, theirs = (read_table(study.profiles_folder / WELLS) for study in (done, again))
    np.testing.assert_array_equal(ours.filter(like="small_cnn"), theirs.filter(like="deepprofiler_"))
    assert (profile_cells(again).made, profile_cells(again).kept) == (0, 12)


def test_all_stages_without_an_image(done, recwarn):
    export_npz(done, done.root / "npz")
    for folder in ("images", "locations", "illumination", "features"):
        shutil.rmtree(done.root / folder)
    stages = [step.stage for step in run_study(imported(done.root))]
    assert stages == ["profile", "aggregate", "normalize", "consensus", "score"]
    recwarn.clear()  # of the few controls


def test_a_channel_at_a_time_names_its_channel(done):
    write_npz_of(done, width=6)
    study = imported(done.root, mode="repeat_channel", model="effnet")
    profile_cells(study)
    aggregate_wells(study)
    names = [name for name in read_table(study.profiles_folder / WELLS) if not name.startswith("Metadata_")]
    assert names == [f"effnet_{channel}_{i}" for channel in ("DNA", "ER", "Mito") for i in (0, 1)]
    write_npz_of(done, width=7)
    with pytest.raises(InputError, match="7 features are not those of 3 channels side by side"):
        profile_cells(study)


def write_npz_of(study, width=4, sites=(1, 2), **metadata):
    for plate in ("P1", "P2"):
        for well in ("A01", "A02", "B01", "B02", "C01", "C02"):
            for site in sites:
                path = study.root / f"npz/{plate}/{well}/{site}.npz"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_npz(path, some(3, width, **{PLATE: plate, WELL: well, SITE: site, **metadata}))


# --- writing
def test_plates_that_are_current_are_left_alone(done):
    export_npz(done, done.root / "npz")
    path = done.root / "npz/P1/A01/1.npz"
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (done.root / "npz").rglob("*.npz")}
    told = export_npz(done, done.root / "npz")
    assert (told.made, told.kept, told.rows) == (0, 2, 24)
    assert path.stat().st_mtime_ns == before[path][0]
    shutil.rmtree(done.root / "npz/P1")
    assert export_npz(done, done.root / "npz").made == 1
    assert {p: p.read_bytes() for p in (done.root / "npz").rglob("*.npz")} == {p: v[1] for p, v in before.items()}
    assert export_npz(done, done.root / "npz", "site").made == 2
    assert not path.exists()
    edit_index(done.root, lambda t: t.replace({"Metadata_MOA": {"kinase": "other"}}))
    assert export_npz(done, done.root / "npz", "site").made == 2


def test_a_kill_between_plates_and_files_of_others(done, monkeypatch):
    import deepprofile.deepprofiler_npz as npz

    wells = []

    def stop(*arguments):
        wells.append(arguments)
        if len(wells) > 8:
            raise KeyboardInterrupt
        return real(*arguments)

    real = npz._write_well
    monkeypatch.setattr(npz, "_write_well", stop)
    with pytest.raises(KeyboardInterrupt):
        export_npz(done, done.root / "npz")
    assert sorted(p.name for p in (done.root / "npz").iterdir()) == ["P1", "manifest.json"]
    monkeypatch.setattr(npz, "_write_well", real)
    (done.root / "npz/P2").mkdir()  # as a kill leaves it between the folder and its record
    assert export_npz(done, done.root / "npz").made == 1
    assert read_npz(done.root / "npz/P2/C02/2.npz").features.shape[1] == 16
    (done.root / "theirs").mkdir()
    (done.root / "theirs/P1.npz").touch()
    with pytest.raises(
        InputError, match="theirs: it holds files that this command has not written; give it an empty fo"
    ):
        export_npz(done, done.root / "theirs")


def test_features_that_are_not_made(fresh):
    with pytest.raises(InputError, match="run `deepprofile profile`"):
        export_npz(fresh, fresh.root / "npz")


def test_the_command(done):
    told = CliRunner().invoke(main, ["npz", str(done.root), str(done.root / "out"), "--layout", "site"])
    assert told.exit_code == 0, told.output
    assert "npz: 24 sites in" in told.stdout
    assert (done.root / "out/P2/C02_2.npz").is_file()
    told = CliRunner().invoke(main, ["npz", str(done.root), str(done.root / "images")])
    assert told.exit_code == 2
    assert "it holds files that this command has not written" in told.stderr


# --- reading
def test_what_is_left_out_is_said(done):
    write_npz_of(done)
    (done.root / "npz/P1/A01/2.npz").unlink()
    (done.root / "npz/P1/A02/1.npz").write_bytes(b"noise")
    write_npz(done.root / "npz/P1/B01/1.npz", some(**{PLATE: "P1", WELL: "B02", SITE: 1}))
    found = some(4, **{PLATE: "P1", WELL: "C01", SITE: 1})
    found.features[1, 2] = np.nan
    write_npz(done.root / "npz/P1/C01/1.npz", found)
    study = imported(done.root)
    told = dict(profile_cells(study).skipped)
    assert told["P1 A01 site 2"].endswith("npz/P1/A01/2.npz: no such file")
    assert "not a .npz file" in told["P1 A02 site 1"]
    assert told["P1 B01 site 1"].endswith("it says that its Metadata_Well is 'B02', and is looked up for 'B01'")
    assert told["P1 C01 site 1: 1 of 4 cells"] == "their features are not finite"
    cells, _ = cells_of(study, "P1")
    assert cells.loc[(cells[WELL] == "C01") & (cells[SITE] == "1"), CELL].tolist() == [0, 2, 3]
    with pytest.raises(InputError, match="no such file"):
        profile_cells(study, strict=True)


def test_wells_and_sites_written_otherwise_and_wells_without_files(done):
    write_npz_of(done, sites=(1,))
    edit_index(done.root, lambda t: t[t[SITE] == 1].astype({SITE: str}).assign(**{SITE: "01"}))
    (done.root / "npz/P1/B01").rename(done.root / "npz/P1/b1")
    shutil.rmtree(done.root / "npz/P1/C02")
    study = imported(done.root)
    told = profile_cells(study)
    assert (told.made, told.rows, len(told.skipped)) == (12, 33, 1)
    cells, features = cells_of(study, "P1")
    assert set(cells[WELL]) == {"A01", "A02", "B01", "B02", "C01"}
    assert set(cells[SITE]) == {"01"}
    assert features.shape == (15, 4)


def test_a_file_without_locations(done):
    write_npz_of(done)
    found = some(**{PLATE: "P1", WELL: "A01", SITE: 1})
    write_npz(done.root / "npz/P1/A01/1.npz", SiteFeatures(found.features, None, found.metadata))
    study = imported(done.root)
    assert profile_cells(study).rows == 72
    cells, _ = cells_of(study, "P1")
    assert cells[X].isna().tolist()[:4] == [True, True, True, False]


def test_files_of_two_models_and_no_file(done):
    write_npz_of(done)
    write_npz(done.root / "npz/P2/C01/2.npz", some(3, 5, **{PLATE: "P2", WELL: "C01", SITE: 2}))
    study = imported(done.root)
    with pytest.raises(InputError, match=r"C01/2\.npz: 5 features a cell, where the first file has 4"):
        profile_cells(study)
    write_npz_of(done, width=5)
    assert profile_cells(study).made == 12
    shutil.move(done.root / "npz", done.root / "gone")
    with pytest.raises(InputError, match=r"no site has a file that can be used, the first: .*A01/1\.npz: no such file"):
        import_features(study)
    with pytest.raises(InputError, match=r"each site has a file; put \{site\} into the name"):
        import_features(configure(done.root, profile={"files": "npz/{plate}.npz"}))
    with pytest.raises(InputError, match="files holds features that are made; leave weights out"):
        imported(done.root, weights="imagenet")


# --- real files
@pytest.mark.data
@pytest.mark.parametrize(
    ("place", "shape", "model", "site"),
    [
        ("outputs/results/features/SQ00014812/A01_5.npz", (158, 6400), "efficientnet", 5),
        ("outputs/results/features/SQ00014812/A01_8.npz", (179, 6400), "efficientnet", 8),
        ("Week1_22123/Week1_22123_B02_s1.npz", (206, 50), "cnn", "s1"),
    ],
)
def test_real_files(data, place, shape, model, site):
    found = read_npz(data / "deepprofiler_project" / place)
    assert found.features.shape == shape
    assert (found.metadata["Metadata_Model"], found.metadata[SITE]) == (model, site)
    assert np.isfinite(found.features).all()
    assert (found.locations is None) == (model == "cnn")
    with np.load(data / "deepprofiler_project" / place, allow_pickle=True) as file:
        np.testing.assert_array_equal(found.features, file["features"])
        assert found.metadata == file["metadata"].item()


@pytest.mark.data
def test_profiles_of_a_real_project(data, tmp_path):
    root = data / "deepprofiler_project"
    made = init_deepprofiler(tmp_path, root)
    text = made.path.read_text()
    files = next(line for line in text.splitlines() if line.startswith("  # files: "))
    head, _, _ = text.partition("profile:\n")
    made.path.write_text(f"{head}profile:\n  mode: repeat_channel\n{files.replace('# files', 'files')}\n")
    study = read_study(made.path)
    told = profile_cells(study)
    assert told.rows == 158 + 179
    assert len(told.skipped) == 34
    aggregate_wells(study)
    wells = read_table(study.profiles_folder / WELLS)
    assert wells[[PLATE, WELL, "Metadata_Count"]].to_numpy().tolist() == [["SQ00014812", "A01", 337]]
    expected = np.concatenate(
        [read_npz(root / f"outputs/results/features/SQ00014812/A01_{site}.npz").features for site in (5, 8)]
    )
    features = wells.filter(like="deepprofiler_")
    np.testing.assert_allclose(features.to_numpy()[0], np.median(expected, axis=0), rtol=1e-6)
    assert features.columns[1280] == "deepprofiler_RNA_0"
    assert pd.api.types.is_float_dtype(features.dtypes.iloc[0])
