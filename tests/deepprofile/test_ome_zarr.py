"""OME-Zarr plates of both versions, written with the zarr library by the words of the specification."""

import json
import pickle
import sys

import numpy as np
import pandas as pd
import pytest
import tifffile
from study_factory import CHANNELS, WELLS, configure, run

from cytominer_tools.errors import InputError
from deepprofile.images import read_image, read_site
from deepprofile.index import load_index
from deepprofile.ome_zarr import scan_plates
from deepprofile.references import stamps
from deepprofile.sites import site_image, site_rows

zarr = pytest.importorskip("zarr", reason="the extra zarr is not installed")
VERSIONS = ["0.4", "0.5"]
pytestmark = pytest.mark.filterwarnings("ignore:The codec `vlen-utf8`:UserWarning")


def group(store, path, attributes, version):
    written = {"ome": {"version": version, **attributes}} if version == "0.5" else attributes
    return zarr.open_group(store, path=path, mode="a", zarr_format=3 if version == "0.5" else 2, attributes=written)


def write_image(store, path, pixels, version="0.4", axes="tczyx", names=CHANNELS, **how):
    """`pixels` and a half-sized copy, as an image of the specification."""
    kinds = {"t": "time", "c": "channel"}
    described = [{"name": a, "type": kinds.get(a, "space")} for a in axes]
    scale = [
        {"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": [1.0] * len(axes)}]} for i in (0, 1)
    ]
    head = {} if version == "0.5" else {"version": version}
    attributes = {"multiscales": [{"axes": described, "datasets": scale, "name": "image", **head}]}
    attributes |= {"omero": {"channels": [{"label": n, "color": "FFFFFF"} for n in names]}} if names else {}
    made = group(store, path, attributes, version)
    for level, data in (("0", pixels), ("1", pixels[..., ::2, ::2])):
        chunks = (1,) * (pixels.ndim - 2) + tuple(max(1, n // 2) for n in data.shape[-2:])
        array = made.create_array(level, shape=data.shape, chunks=chunks, dtype=data.dtype, **how)
        array[...] = data
    return made


def write_plate(store, images, version="0.4", name="P1", **how):
    """A plate of `images`: well such as A01 -> its fields, each (t, c, z, y, x)."""
    wells = {well: f"{well[0]}/{int(well[1:])}" for well in images}
    rows, columns = ([{"name": n} for n in sorted({p.split("/")[i] for p in wells.values()})] for i in (0, 1))
    places = [
        {"path": p, "rowIndex": rows.index({"name": p[0]}), "columnIndex": columns.index({"name": p[2:]})}
        for p in wells.values()
    ]
    plate = {"name": name, "rows": rows, "columns": columns, "wells": places}
    group(store, "", {"plate": plate if version == "0.5" else {**plate, "version": version}}, version)
    for well, fields in images.items():
        group(store, wells[well][0], {}, version)
        about = {"images": [{"path": str(i), "acquisition": 0} for i in range(len(fields))]}
        group(store, wells[well], {"well": about}, version)
        for i, pixels in enumerate(fields):
            write_image(store, f"{wells[well]}/{i}", pixels, version, **how)


def pixels(shape=(1, 3, 4, 40, 60), seed=0):
    return np.random.default_rng(seed).integers(0, 60000, shape).astype("uint16")


# --- images
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("axes", ["tczyx", "czyx", "cyx", "zyx", "yx"])
def test_each_plane_is_itself(axes, version, tmp_path):
    stack = pixels((1, 3, 4, 40, 60)[5 - len(axes) :] if axes != "cyx" else (3, 40, 60))
    write_image(str(tmp_path / "a.zarr"), "", stack, version, axes, CHANNELS if "c" in axes else ())
    place = tmp_path / "a.zarr"
    whole = stack if "c" in axes else stack[None]
    whole = whole.reshape(*(whole.shape[-4:-2] if "z" in axes else (len(whole), 1)), 40, 60)
    for c in range(len(whole)):
        for z in range(whole.shape[1]):
            np.testing.assert_array_equal(read_image(f"{place}#c={c}&z={z}"), whole[c, z])
        np.testing.assert_array_equal(read_image(f"{place}#c={c}&z=max"), whole[c].max(axis=0))
    if "c" in axes:
        np.testing.assert_array_equal(read_image(f"{place}#c=Mito&z=0"), whole[2, 0])


def test_what_is_unclear_is_asked_for(tmp_path):
    place = tmp_path / "a.zarr"
    write_image(str(place), "", pixels())
    for fragment, words in {
        "": r"holds 3 channels \(DNA, ER, Mito\); name one with #c=0",
        "#c=DNA": r"holds 4 z planes; set images\.projection",
        "#c=DAN&z=0": r"no channel is called 'DAN'; is it 'DNA'\?",
        "#c=3&z=0": r"c=3, but it holds 3 channels \(0 to 2\)",
        "#c=0&z=4": r"z=4, but it holds 4 z planes",
    }.items():
        with pytest.raises(InputError, match=rf"a\.zarr: {words}"):
            read_image(f"{place}{fragment}")


@pytest.mark.parametrize("version", VERSIONS)
def test_only_the_chunks_of_one_plane_are_read(version, tmp_path, monkeypatch):
    place = tmp_path / "a.zarr"
    write_image(str(place), "", pixels(), version)
    read, get = [], zarr.storage.LocalStore.get
    monkeypatch.setattr(
        zarr.storage.LocalStore, "get", lambda self, key, *a, **k: read.append(key) or get(self, key, *a, **k)
    )
    read_image(f"{place}#c=1&z=2")
    chunks = [key for key in read if key.split("/")[-1].lstrip("c.").replace(".", "").isdigit()]
    assert len(chunks) == 4  # 2 x 2 chunks of one plane
    assert {tuple(key.replace("/", ".").split(".")[-4:-2]) for key in chunks} == {("1", "2")}


def test_names_of_older_versions(tmp_path):
    place = tmp_path / "a.zarr"
    made = write_image(str(place), "", pixels())
    about = made.attrs["multiscales"]
    made.attrs["multiscales"] = [{**about[0], "axes": list("tczyx"), "version": "0.3"}]
    np.testing.assert_array_equal(read_image(f"{place}#c=1&z=2"), pixels()[0, 1, 2])
    made.attrs["multiscales"] = [{k: v for k, v in about[0].items() if k != "axes"}]
    np.testing.assert_array_equal(read_image(f"{place}#c=1&z=2"), pixels()[0, 1, 2])
    made.attrs["multiscales"] = [{**about[0], "axes": list("tczxy")}]
    with pytest.raises(InputError, match=r"axes .* expected y and x last"):
        read_image(f"{place}#c=1&z=2")


def test_what_is_no_image(tmp_path):
    write_plate(str(tmp_path / "p.zarr"), {"A01": [pixels()]})
    for place, words in {
        "no.zarr": "no such OME-Zarr group",
        "p.zarr": "a plate, expected an image such as A/1/0",
        "p.zarr/A/1": "a well, expected an image",
        "p.zarr/A": "no OME-Zarr image, it has no multiscales",
        "p.zarr/A/1/7": "no such OME-Zarr group",
    }.items():
        with pytest.raises(InputError, match=rf"{place}: {words}"):
            read_image(tmp_path / place)
    (tmp_path / "p.zarr" / "A" / "1" / "0" / ".zattrs").write_text("{")
    with pytest.raises(InputError, match=r"p\.zarr/A/1/0: its metadata cannot be read"):
        read_image(tmp_path / "p.zarr" / "A" / "1" / "0")


def test_a_damaged_chunk(tmp_path):
    place = tmp_path / "a.zarr"
    write_image(str(place), "", pixels())
    for chunk in (place / "0").rglob("0.1.2.*"):
        chunk.write_bytes(chunk.read_bytes()[:20])
    for chunk in (place / "0" / "0" / "1" / "2").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(InputError, match=r"a\.zarr: cannot be read, truncated or damaged"):
        read_image(f"{place}#c=1&z=2")
    assert read_image(f"{place}#c=1&z=1").shape == (40, 60)


class _Run:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def test_nothing_in_a_plate_is_executed(tmp_path):
    place = tmp_path / "a.zarr"
    write_image(str(place), "", pixels((1, 3, 1, 40, 60)))
    about = json.loads((place / "0" / ".zarray").read_text())
    for change in (
        {"filters": [{"id": "pickle", "protocol": 5}], "compressor": None},
        {"compressor": {"id": "pickle"}},
    ):
        (place / "0" / ".zarray").write_text(json.dumps({**about, **change}))
        for chunk in (place / "0").rglob("*"):
            if chunk.is_file() and chunk.name[0] != ".":
                chunk.write_bytes(pickle.dumps(_Run()))
        with pytest.raises(InputError, match=r"a\.zarr: "):
            read_image(f"{place}#c=1")


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    for ask in (lambda: read_image(tmp_path / "a.zarr"), lambda: scan_plates(["a.zarr"], tmp_path, {"DNA": "0"})):
        with pytest.raises(
            InputError, match=r"a\.zarr: OME-Zarr needs the package zarr; pip install 'deepprofile\[zarr\]'"
        ):
            ask()


# --- plates
@pytest.mark.parametrize("version", VERSIONS)
def test_the_sites_of_a_plate(version, tmp_path):
    fields = [pixels(seed=i) for i in range(2)]
    write_plate(str(tmp_path / "p.zarr"), {"B12": fields, "A02": fields[1:]}, version)
    table = scan_plates(["p.zarr"], tmp_path, {"nuclei": "DNA", "er": "1"})
    assert table.to_dict("list") == {
        "Metadata_Plate": ["P1"] * 3,
        "Metadata_Well": ["B12", "B12", "A2"],
        "Metadata_Site": ["0", "1", "0"],
        "nuclei": ["p.zarr/B/12/0#c=DNA", "p.zarr/B/12/1#c=DNA", "p.zarr/A/2/0#c=DNA"],
        "er": ["p.zarr/B/12/0#c=1", "p.zarr/B/12/1#c=1", "p.zarr/A/2/0#c=1"],
    }


def test_plates_of_one_name_are_called_by_their_folders(tmp_path):
    for name in ("x", "y"):
        write_plate(str(tmp_path / f"{name}.ome.zarr"), {"A01": [pixels()]}, name="plate")
    table = scan_plates(["x.ome.zarr", "y.ome.zarr/"], str(tmp_path), {"DNA": "DNA"})
    assert table["Metadata_Plate"].tolist() == ["x", "y"]
    assert table["DNA"].tolist() == ["x.ome.zarr/A/1/0#c=DNA", "y.ome.zarr/A/1/0#c=DNA"]


def test_what_is_no_plate(tmp_path):
    write_image(str(tmp_path / "a.zarr"), "", pixels())
    write_plate(str(tmp_path / "e.zarr"), {})
    for name, words in {
        "no.zarr": "no such OME-Zarr group",
        "a.zarr": "an OME-Zarr image; expected the folder that holds the rows",
        "e.zarr": "no field of view; was the plate written to its end",
    }.items():
        with pytest.raises(InputError, match=rf"{name}: {words}"):
            scan_plates([name], tmp_path, {"DNA": "DNA"})


# --- a whole study
@pytest.mark.parametrize("version", VERSIONS)
def test_a_plate_gives_the_same_features_as_files(version, fresh, finished):
    rows = pd.read_csv(fresh.root / "index.csv")
    treatments = rows.drop_duplicates(["Metadata_Plate", "Metadata_Well"]).drop(columns=["Metadata_Site", *CHANNELS])
    treatments.to_csv(fresh.root / "wells.csv", index=False)
    for plate in ("P1", "P2"):
        images = {
            well: [
                np.stack([tifffile.imread(fresh.root / f"images/{plate}/{well}_s{s}_{c}.tif") for c in CHANNELS])[
                    None, :, None
                ]
                for s in (1, 2)
            ]
            for well in WELLS
        }
        write_plate(str(fresh.root / f"{plate}.zarr"), images, version, plate)
    study = configure(
        fresh.root,
        images={"index": None, "zarr": ["P1.zarr", "P2.zarr"], "metadata": ["wells.csv"]},
        channels={"DNA": "DNA", "ER": "1", "Mito": "Mito"},
    )
    run(study)
    for plate in ("P1", "P2"):
        made = pd.read_parquet(next((study.features / plate).glob("*.parquet")))
        expected = pd.read_parquet(next((finished.features / plate).glob("*.parquet")))
        made["Metadata_Site"] = (made["Metadata_Site"].astype(int) + 1).astype(str)  # fields are counted from 0
        pd.testing.assert_frame_equal(made.astype(expected.dtypes), expected)
    # a chunk that was written again is noticed
    assert all(done.made == 0 for done in run(study).values() if done.stage in ("illumination", "locate", "profile"))
    image = zarr.open_group(str(fresh.root / "P1.zarr" / "B" / "1" / "0"), mode="r+")
    image["0"][0, 2] = image["0"][0, 2] + 1
    assert {d.stage: d.made for d in run(study).values()}["profile"] == 1


def test_a_plate_behind_a_url():
    from zarr.storage import FsspecStore

    store = FsspecStore.from_url("memory://plates/p.zarr")
    fields = [pixels((1, 3, 1, 40, 60), seed=i) for i in range(2)]
    write_plate(store, {"A01": fields}, "0.5")
    table = scan_plates(["p.zarr"], "memory://plates", {"DNA": "DNA", "ER": "1"})
    assert table["ER"].tolist() == ["p.zarr/A/1/0#c=1", "p.zarr/A/1/1#c=1"]
    site = read_site({"a": "memory://plates/p.zarr/A/1/1#c=1", "b": "memory://plates/p.zarr/A/1/1#c=0"})
    np.testing.assert_array_equal(site, np.moveaxis(fields[1][0, [1, 0], 0], 0, -1))
    url = "memory://plates/p.zarr/A/1/1"
    assert stamps([url])[url][0] > 0
    with pytest.raises(InputError, match=r"memory://plates/q\.zarr: no such OME-Zarr group"):
        scan_plates(["q.zarr"], "memory://plates", {"DNA": "DNA"})


def test_projection_is_of_the_study(tmp_path):
    stack = pixels()
    write_plate(str(tmp_path / "p.zarr"), {"A01": [stack]})
    text = {"images": {"zarr": "p.zarr", "projection": "max"}, "channels": {"ER": "ER", "DNA": "DNA"}}
    (tmp_path / "study.yaml").write_text(json.dumps(text))
    from deepprofile import read_study

    study = read_study(tmp_path)
    image = site_image(study, site_rows(load_index(study))[0])
    np.testing.assert_array_equal(image, np.moveaxis(stack[0, [1, 0]].max(axis=1), 0, -1))
