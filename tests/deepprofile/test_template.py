import numpy as np
import pytest
import tifffile

from cytominer_tools.errors import InputError
from cytominer_tools.queries import select
from deepprofile.index import load_index
from deepprofile.study import read_study
from deepprofile.template import init_study


def images(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / name, np.arange(number, number + 24, dtype=np.uint16).reshape(4, 6))
    return folder


def test_a_preset_and_names_of_channels(tmp_path):
    raw = images(tmp_path / "raw", *(f"P/A - 01(fld 1 wv {c}).tif" for c in ("390 - Blue", "473 - Green")))
    study = read_study(init_study(tmp_path / "study", images=raw, preset="incarta"))
    assert study.channels == {"Blue": "390 - Blue", "Green": "473 - Green"}
    assert study.images.size == (4, 6)
    assert load_index(study)["Blue"].tolist() == ["P/A - 01(fld 1 wv 390 - Blue).tif"]


def test_planes_are_projected(tmp_path):
    raw = images(tmp_path / "raw", *(f"P/r01c01f01p0{z}-ch1sk1fk1fl1.tiff" for z in (1, 2)))
    study = read_study(init_study(tmp_path / "study", images=raw))
    assert study.images.projection == "max"
    assert study.images.size == (4, 6)


def test_what_does_not_go_together(tmp_path):
    raw = images(tmp_path / "raw", "P/A01_s1_DNA.tif")
    for given, words in (
        ({"images": raw, "pattern": "x", "preset": "opera"}, "give either a pattern or a preset"),
        ({"index": raw / "i.csv", "preset": "opera"}, "give the folder of images with it"),
        ({"images": raw, "preset": "zeiss"}, "no preset is called 'zeiss'"),
        ({"images": raw, "preset": "opera"}, "no pattern of opera matches names like"),
        ({"images": raw, "index": raw / "i.csv"}, "give either an index"),
    ):
        with pytest.raises(InputError, match=words):
            init_study(tmp_path / "study", **given)
    assert not (tmp_path / "study").exists()


def test_an_image_that_cannot_be_read_is_left_to_check(tmp_path):
    raw = images(tmp_path / "raw", "P/A01_s1_DNA.tif", "P/A01_s1_ER.tif")
    (raw / "P/A01_s1_DNA.tif").write_bytes(b"no image")
    assert read_study(init_study(tmp_path / "study", images=raw)).images.size == (4, 6)


def test_a_table_of_wells_that_differ_is_refused(tmp_path):
    raw = images(tmp_path / "raw", "P/A01_s1_DNA.tif")
    (tmp_path / "wells.csv").write_text("well,x\nA01,1\na1,2\n")
    with pytest.raises(InputError, match="stands in it more than once"):
        init_study(tmp_path / "study", images=raw, metadata=tmp_path / "wells.csv")


def test_controls_in_a_column_with_a_space(tmp_path):
    images(tmp_path, "a.tif")
    (tmp_path / "index.csv").write_text(
        "Metadata_Plate,Metadata_Well,Metadata_Compound Name,DNA\nP,A01,DMSO,a.tif\nP,A02,x,a.tif\n"
    )
    study = read_study(init_study(tmp_path / "study", index=tmp_path / "index.csv"))
    assert select(load_index(study), study.controls).tolist() == [True, False]
    assert select(load_index(study), study.scores.select).tolist() == [False, True]
