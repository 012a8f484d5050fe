import numpy as np
import pandas as pd
import pytest

from cytominer_tools import is_anndata, load_profiles, read_anndata, write_anndata
from cytominer_tools.errors import InputError

KINDS = [("anndata_h5ad", "a.h5ad", "h5ad"), ("anndata_zarr", "a.zarr", "zarr")]


def table():
    return pd.DataFrame(
        {
            "Cells_first": np.array([1.5, np.nan, 3], "float32"),
            "Metadata_Well": ["A01", "A02", np.nan],
            "Metadata_dose": [0.1, np.nan, 3.0],
            "Metadata_control": [True, False, True],
            "Cells_double": [1 / 3, 2 / 3, 1.0],
            "Cells_whole": [1, 2, 3],
        }
    )


@pytest.mark.parametrize(("kind", "name", "found"), KINDS)
@pytest.mark.parametrize("index", [None, ["x", "y", "z"], [7, 5, 3]])
def test_the_same_frame_comes_back(tmp_path, kind, name, found, index):
    frame = table() if index is None else table().set_index(pd.Index(index))
    path = write_anndata(frame, tmp_path / name, kind)
    assert is_anndata(path) == found
    pd.testing.assert_frame_equal(read_anndata(path), frame)
    pd.testing.assert_frame_equal(load_profiles(path), frame)


@pytest.mark.data
@pytest.mark.parametrize(("kind", "name", "found"), KINDS)
def test_a_real_plate(tmp_path, lincs, kind, name, found):
    pd.testing.assert_frame_equal(read_anndata(write_anndata(lincs, tmp_path / name, kind)), lincs)


def test_what_is_no_anndata(tmp_path):
    (tmp_path / "a.h5ad").write_text("no")
    assert is_anndata(tmp_path / "a.h5ad") is None
    assert is_anndata(tmp_path / "absent") is None
    with pytest.raises(InputError, match=r"a\.h5ad: is not AnnData"):
        read_anndata(tmp_path / "a.h5ad")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Metadata_x": [1, "a", None]}, "column Metadata_x: expected numbers, booleans or text"),
        ({"Metadata_a/b": ["x", "y", "z"]}, "column Metadata_a/b: AnnData takes no / in the names of obs"),
    ],
)
def test_refuses(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        write_anndata(table().assign(**change), tmp_path / "a.h5ad")
    assert not list(tmp_path.iterdir())
