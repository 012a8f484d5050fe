import os
import pickle
import zipfile

import numpy as np
import pytest

from cytominer_tools import AggregateDeepProfiler, DeepProfilerData, SingleCellDeepProfiler, load_npz_features
from cytominer_tools.errors import InputError, ProfileWarning
from cytominer_tools.npz import load_npz_locations, read_npz

PEER = "pycytominer-1.7.1"


def site(path, n=4, d=3, metadata=None, seed=0, **others):
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Metadata_Model": "net", "Plate": "p", "Well": path.stem.split("_")[0]} | (metadata or {})
    features = rng.normal(size=(n, d)).astype("float32")
    arrays = {"features": features, "metadata": metadata, "locations": rng.random((n, 2))} | others
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture
def project(tmp_path):
    for well, number in (("A01", 1), ("A01", 2), ("A02", 1)):
        site(tmp_path / "features" / "p" / f"{well}_{number}.npz", metadata={"Site": number}, seed=number)
    (tmp_path / "index.csv").write_text("Metadata_Plate,Metadata_Well,Metadata_Site\np,A01,1\np,A01,2\np,A02,1\n")
    return DeepProfilerData(tmp_path / "index.csv", tmp_path / "features")


# --- nothing is executed
class Harmful:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


def test_pickled_code_is_refused(tmp_path):
    path = site(tmp_path / "A01_1.npz", metadata={"x": Harmful()})
    with pytest.raises(InputError, match=r"A01_1\.npz: metadata: a pickle of more than plain .*it calls .*system"):
        load_npz_features(path)


def test_plain_data_comes_back(tmp_path):
    given = {"a": 1, "b": "x", "c": [1.5, None], "d": {"e": True}, "f": np.float32(2.5), "g": np.int64(3)}
    path = tmp_path / "a.npz"
    np.savez(path, metadata=given, x=np.arange(6.0).reshape(2, 3), y=np.asfortranarray(np.ones((2, 3), "int16")))
    found = read_npz(path)
    assert found["metadata"] == given | {"f": 2.5, "g": 3}
    np.testing.assert_array_equal(found["x"], np.arange(6.0).reshape(2, 3))
    assert found["y"].dtype == "int16"
    assert set(read_npz(path, ("x",))) == {"x"}


def test_damage_is_found(tmp_path):
    path = site(tmp_path / "A01_1.npz", 400)
    data = bytearray(path.read_bytes())
    data[200] ^= 255  # within the features
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"A01_1\.npz: not a \.npz file, or damaged"):
        read_npz(path, ("features",))


def test_other_files(tmp_path):
    (tmp_path / "a.npz").write_text("no")
    with pytest.raises(InputError, match=r"a\.npz: not a \.npz file, or damaged"):
        load_npz_features(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.ones(3))
    with pytest.raises(InputError, match=r"no array `features`; it holds nothing"):
        load_npz_features(tmp_path / "b.npz")
    with pytest.raises(InputError, match=r"expected locations of shape \(cells, 2\)"):
        load_npz_locations(tmp_path / "b.npz")
    with pytest.raises(IndexError, match="OutOfBounds indexing via location_y_col_index"):
        load_npz_locations(site(tmp_path / "c_1.npz"), 0, 2)
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("features.npy", pickle.dumps([1]))
    with pytest.raises(InputError, match=r"d\.npz: not a \.npz file, or damaged"):
        load_npz_features(tmp_path / "d.npz")


# --- aggregates
def test_wells_of_three_sites(project, tmp_path):
    result = AggregateDeepProfiler(project, "mean", output_file=tmp_path / "out").aggregate_deep()
    assert result["Metadata_Well_Position"].tolist() == ["p/A01", "p/A02"]
    assert "Metadata_Site" not in result  # A01 has two
    parts = [load_npz_features(path).filter(like="net_") for path in project.filenames]
    np.testing.assert_allclose(result.filter(like="net_").iloc[1], parts[2].mean(), rtol=1e-6)
    rows = np.concatenate(parts[:2])
    np.testing.assert_allclose(result.filter(like="net_").iloc[0], rows.mean(axis=0), rtol=1e-6)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["p_A01.csv", "p_A02.csv"]


def test_a_feature_that_is_missing_in_one_well_stays(project, tmp_path):
    features = np.full((4, 3), 2.0, dtype="float32")
    features[:, 1] = np.nan
    site(tmp_path / "features" / "p" / "A02_1.npz", features=features)
    with pytest.warns(ProfileWarning, match=r"1 feature\(s\) are missing in some well \(net_1\); they are kept"):
        result = AggregateDeepProfiler(project).aggregate_deep()
    assert result["net_1"].isna().tolist() == [False, True]
    assert "net_1" not in AggregateDeepProfiler(project, compat=PEER).aggregate_deep()


def test_files_that_are_absent_or_of_another_model(project, tmp_path):
    (tmp_path / "features" / "p" / "A02_1.npz").unlink()
    with pytest.warns(ProfileWarning, match="No files for the key p/A02 could be found"):
        assert len(AggregateDeepProfiler(project).aggregate_deep()) == 1
    with pytest.warns(ProfileWarning, match="No features could be found at .*A02_1"):
        assert len(SingleCellDeepProfiler(project).get_single_cells()) == 8
    site(tmp_path / "features" / "p" / "A02_1.npz", d=5)
    with pytest.raises(InputError, match=r"A02_1\.npz: holds net_0 \.\. net_4, other files net_0 \.\. net_2"):
        AggregateDeepProfiler(project).aggregate_deep()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"aggregate_operation": "max"}, "aggregate_operation is incorrect, it must be median or mean"),
        ({"aggregate_on": "cell"}, "aggregate_on is incorrect, it must be site or well or plate"),
    ],
)
def test_refuses(project, options, words):
    with pytest.raises(InputError, match=words):
        AggregateDeepProfiler(project, **options)
    with pytest.raises(InputError, match="expected a file called WELL_SITE"):
        project.extract_filename_metadata("p/A01.npz")


def test_arrays_that_are_too_large(tmp_path, monkeypatch):
    path = site(tmp_path / "A01_1.npz", 400)
    monkeypatch.setattr("cytominer_tools.npz._LARGEST", 1000)
    with pytest.raises(InputError, match=r"A01_1\.npz: features: 4,928 bytes, more than 1,000; it is not what Deep"):
        read_npz(path, ("features",))
