import gzip

import numpy as np
import pandas as pd
import pytest

from cytominer_tools import aggregate, load_profiles, normalize, output, write_gct
from cytominer_tools.errors import InputError, ProfileWarning


def table():
    return pd.DataFrame({"Metadata_Well": ["A01", "A02"], "Cells_a": [0.5, 1.25], "Cells_b": [1.0, np.nan]})


# --- the suffix says what is written
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet", "a.h5ad"])
@pytest.mark.filterwarnings("ignore::cytominer_tools.errors.ProfileWarning")
def test_every_suffix_is_read_back(tmp_path, name):
    path = output(table(), tmp_path / name)
    assert path == str(tmp_path / name)
    pd.testing.assert_frame_equal(load_profiles(path), table())
    first = (tmp_path / name).read_bytes()
    if name != "a.h5ad":  # HDF5 keeps times
        output(table(), tmp_path / name)
        assert (tmp_path / name).read_bytes() == first


def test_functions_write_and_return_the_path(tmp_path):
    path = tmp_path / "wells.parquet"
    with pytest.warns(ProfileWarning, match=r"wells\.parquet: written as parquet, as its suffix says"):
        assert aggregate(table(), "Metadata_Well", output_file=path) == str(path)
    pd.testing.assert_frame_equal(load_profiles(path), aggregate(table(), "Metadata_Well"))
    assert normalize(table(), output_file=tmp_path / "b.csv") == str(tmp_path / "b.csv")
    with pytest.warns(ProfileWarning, match=r"c\.csv\.gz: written as csv with gzip, as its suffix says"):
        normalize(table(), output_file=tmp_path / "c.csv.gz", float_format="%.1f")
    assert "0.5" not in gzip.decompress((tmp_path / "c.csv.gz").read_bytes()).decode()


def test_as_pycytominer_writes(tmp_path, peer):
    for name, options in (("a.csv.gz", {}), ("a.parquet", {}), ("b.csv", {"compression_options": "gzip"})):
        normalize(table(), output_file=tmp_path / name, compat="pycytominer-1.7.1", **options)
        ours = (tmp_path / name).read_bytes()
        peer.normalize(table(), output_file=str(tmp_path / name), **options)
        theirs = (tmp_path / name).read_bytes()
        unpack = gzip.decompress if options else bytes
        assert unpack(ours) == unpack(theirs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output_type": "xlsx"}, "output_type='xlsx': expected one of csv, parquet"),
        ({"compression_options": "zip"}, "compression 'zip' is not supported, select one of gzip, None"),
    ],
)
def test_refuses(tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        output(table(), tmp_path / "a.csv", **options)


def test_gct(tmp_path):
    write_gct(table(), tmp_path / "a.gct")
    assert (tmp_path / "a.gct").read_text().splitlines() == [
        "#1.3",
        "2\t2\t1\t1",
        "id\tcp_feature_name\tSAMPLE_0\tSAMPLE_1",
        "Well\tnan\tA01\tA02",
        "Cells_a\tCells_a\t0.5\t1.25",
        "Cells_b\tCells_b\t1.0\tnan",
    ]
    with pytest.raises(InputError, match=r"only version #1\.3"):
        write_gct(table(), tmp_path / "b.gct", version="#1.2")
    with pytest.raises(InputError, match="no row 'id'"):
        write_gct(table(), tmp_path / "b.gct", feature_metadata=pd.DataFrame({"x": [1]}))
