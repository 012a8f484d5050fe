import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from study_factory import CHANNELS, configure, edit_index

import deepprofile.crop_store
import deepprofile.export
from cytominer_tools.columns import CELL, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from deepprofile.crop_store import FORMAT_VERSION, SITES, Crops, open_crops
from deepprofile.export import export_crops
from deepprofile.locations import X, Y, locate_cells

KEPT = {"labels": True}
KEY = [PLATE, WELL, SITE, CELL]
DEPTHS = [("uint8", "none"), ("uint8", "lz4"), ("original", "none"), ("original", "lz4")]


def exported(study, depth="original", compression="lz4", **changes):
    """Write the store of `study` anew and open it."""
    study = configure(study.root, locate=KEPT, export={"depth": depth, "compression": compression}, **changes)
    export_crops(study)
    return Crops(study.crop_store)


def by_hand(study, cell):
    """The crop of one cell in counts as anybody would cut it."""
    half = study.crops.size // 2
    name = f"{cell[PLATE]}/{cell[WELL]}_s{cell[SITE]}_{{}}.tif"
    planes = [tifffile.imread(study.root / "images" / name.format(channel)) for channel in CHANNELS]
    image = np.pad(np.stack(planes, -1), ((half, half), (half, half), (0, 0)))
    x, y = int(np.floor(cell[X] + 0.5)), int(np.floor(cell[Y] + 0.5))
    return image[y : y + 2 * half, x : x + 2 * half]


def halve(root, site):
    """Make the images of `site` 8-bit ones."""
    paths = list((root / "images").glob(f"{site}_*.tif"))
    assert paths
    for path in paths:
        tifffile.imwrite(path, (tifffile.imread(path) // 64).astype(np.uint8))


def part(study, plate="P1", well="A01"):
    (path,) = (study.crop_store / plate).glob(f"{well}-*.arrow")
    return path


# --- parity: cut by hand, read by Arrow alone
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_every_crop_is_its_pixels(located, compression):
    crops = exported(located, "original", compression)
    assert (crops.shape, crops.dtype, len(crops)) == ((32, 32, 3), np.uint16, len(crops.table))
    expected = np.stack([by_hand(located, cell) for cell in crops.table.to_dict("records")])
    np.testing.assert_array_equal(crops[:], expected)


@pytest.mark.parametrize(("depth", "compression"), DEPTHS)
def test_arrow_alone_reads_the_same(located, depth, compression):
    crops = exported(located, depth, compression)
    row = 0
    for plate in ("P1", "P2"):
        for path in sorted((located.crop_store / plate).glob("*.arrow")):
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
                about = json.loads(table.schema.metadata[b"deepprofile.crops"])
                assert (about["format_version"], about["channels"]) == (1, list(CHANNELS))
                assert (about["shape"], about["dtype"]) == ([32, 32, 3], crops.dtype.name)
                cells = table.drop_columns(["crop", "image_type"]).to_pylist()
                for cell, data in zip(cells, table["crop"], strict=True):
                    raw = data.as_py() if compression == "none" else imagecodecs.blosc_decode(data.as_py())
                    np.testing.assert_array_equal(np.frombuffer(raw, crops.dtype).reshape(32, 32, 3), crops[row])
                    assert all(crops.table[name][row] == value for name, value in cell.items())
                    row += 1
    assert row == len(crops)


def test_the_table_is_that_of_the_locations_and_of_the_index(located):
    table = exported(located).table
    cells = [pq.read_table(located.root / "locations" / plate / "cells.parquet").to_pandas() for plate in ("P1", "P2")]
    assert list(table) == [*cells[0], "Metadata_Compound", "Metadata_MOA"]
    for plate, expected in zip(("P1", "P2"), cells, strict=True):
        mine = table[table[PLATE] == plate].reset_index(drop=True)
        assert mine[list(expected)].equals(expected)
    assert table.index.equals(table.reset_index(drop=True).index)
    assert not table.duplicated(KEY).any()
    wells = dict(table[[WELL, "Metadata_Compound"]].drop_duplicates().itertuples(index=False))
    assert wells == {"A01": "DMSO", "A02": "DMSO", "B01": "aaa", "B02": "aaa", "C01": "bbb", "C02": "bbb"}


def test_plates_stand_in_the_order_of_the_index_and_sites_too(fresh):
    edit_index(fresh.root, lambda t: t[t[WELL].isin(["A01", "B01"])].replace({"Metadata_Site": {1: 10, 2: 9}}))
    study = configure(fresh.root, crops={"normalize": "none"})
    locate_cells(study)
    table = exported(study, crops={"normalize": "none"}).table
    seen = table[[PLATE, WELL, SITE]].drop_duplicates().to_numpy().tolist()
    assert seen == [[plate, well, site] for plate in ("P1", "P2") for well in ("A01", "B01") for site in ("9", "10")]


# --- rows are those of an array
@pytest.mark.parametrize("compression", ["none", "lz4"])
@pytest.mark.parametrize(
    "rows",
    [
        [7, 3, 7, 0],
        np.array([200, 5, 199]),
        slice(10, 0, -3),
        slice(None),
        [],
        -1,
        np.int32(4),
        [-1, 0],
        np.array([[1, 2], [3, 1]]),
    ],
    ids=str,
)
def test_rows_are_asked_for_as_those_of_an_array(store, compression, rows):
    crops = store[compression]
    every = crops[:]
    wanted = every[np.asarray(rows, np.int64) if isinstance(rows, list) else rows]
    np.testing.assert_array_equal(crops[rows], wanted)
    assert crops[rows].shape == wanted.shape
    assert crops[rows].flags.writeable


def test_a_mask_picks_rows_too(store):
    crops = store["lz4"]
    wells = (crops.table[WELL] == "B02").to_numpy()
    np.testing.assert_array_equal(crops[wells], crops[np.flatnonzero(wells)])


def test_a_row_that_is_not_there(store):
    with pytest.raises(IndexError):
        store["none"][[len(store["none"])]]


def test_what_it_is_in_a_line(store):
    assert repr(store["none"]).endswith(
        "crops'): 305 crops of 32 x 32 x 3 uint16 (DNA, ER, Mito), 12 wells of 2 plate(s), compression none"
    )


@pytest.fixture(scope="module")
def store(located_once, tmp_path_factory):
    """A store of each compression, depth original."""
    found = {}
    for compression in ("none", "lz4"):
        root = tmp_path_factory.mktemp(compression) / "study"
        shutil.copytree(located_once.root, root)
        found[compression] = exported(configure(root, locate=KEPT), "original", compression)
    return found


# --- many threads, few files open
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_threads_that_read_with_two_files_open(store, monkeypatch, compression):
    monkeypatch.setattr(deepprofile.crop_store, "_OPEN", 2)
    crops = Crops(store[compression].path)
    every = store[compression][:]
    draws = [np.random.default_rng(i).integers(0, len(crops), 40) for i in range(60)]
    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(8) as pool:
        for rows, found in zip(draws, pool.map(crops.__getitem__, draws), strict=True):
            np.testing.assert_array_equal(found, every[rows])
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_system_that_cannot_read_at_a_place(store, monkeypatch):
    every = store["none"][:]
    monkeypatch.delattr(os, "preadv")
    crops = Crops(store["none"].path)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: crops[:], range(8)):
            np.testing.assert_array_equal(found, every)


def test_a_read_that_comes_in_pieces(store, monkeypatch):
    every, preadv = store["none"][:3], os.preadv
    monkeypatch.setattr(os, "preadv", lambda number, views, start: preadv(number, [views[0][:1000]], start))
    np.testing.assert_array_equal(Crops(store["none"].path)[:3], every)


# --- the key
def test_the_key_changes_with_any_part(located):
    first = exported(located)
    assert exported(located).key == first.key
    path = located.root / "images/P2/C02_s2_ER.tif"
    image = tifffile.imread(path)
    image[5, 5] += 1
    tifffile.imwrite(path, image)
    assert exported(located).key != first.key


# --- bad input
def test_no_store(tmp_path):
    with pytest.raises(
        InputError, match=r"crops: there is no crop store, nor .*; run `deepprofile export`, with --format png"
    ):
        Crops(tmp_path / "crops")


def test_an_empty_store(located):
    study = configure(located.root, locate=KEPT, crops={"size": 256, "border": "drop"})  # no box is within its image
    assert export_crops(study).rows == 0
    with pytest.raises(InputError, match=r"crops: the store holds no crops; look at `export` in study\.yaml"):
        Crops(study.crop_store)


def test_a_query_that_picks_nothing_leaves_the_store_as_it_is(located):
    rows = exported(located)[:]
    with pytest.raises(InputError, match="no cell is left by the query"):
        export_crops(configure(located.root, locate=KEPT, export={"query": "Metadata_Area > 1e9"}))
    np.testing.assert_array_equal(Crops(located.crop_store)[:], rows)


def test_another_format_version(located):
    exported(located)
    path = located.crop_store / SITES
    table = pq.read_table(path)
    later = json.dumps({"format_version": FORMAT_VERSION + 1})
    pq.write_table(table.replace_schema_metadata({"deepprofile.crops": later}), path)
    with pytest.raises(InputError, match=r"sites\.parquet: format version 2, this deepprofile reads 1; update it, or"):
        Crops(located.crop_store)


def test_a_plate_that_is_not_finished(located, monkeypatch):
    exported(located)
    study = configure(located.root, locate=KEPT, crops={"size": 16})
    write = deepprofile.export.write_part

    def stop(path, about, batches):
        if path.parent.name == "P2" and path.name.startswith("B02"):
            raise InputError("stopped")
        return write(path, about, batches)

    monkeypatch.setattr(deepprofile.export, "write_part", stop)
    with pytest.raises(InputError, match="stopped"):
        export_crops(study)
    want = r"crops: plate P2 is not finished, [34] of 6 wells are not as the last export wants them, first B0[12]; run"
    with pytest.raises(InputError, match=want):
        Crops(study.crop_store)
    monkeypatch.undo()
    export_crops(study)
    assert Crops(study.crop_store).shape == (16, 16, 3)


@pytest.mark.parametrize("compression", ["none", "lz4"])
@pytest.mark.parametrize("how", ["missing", "truncated", "empty"])
def test_a_file_that_is_not_whole_and_its_mend(located, compression, how):
    crops = exported(located, "uint8", compression)
    every, path = crops[:], part(located)
    bytes_ = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(bytes_[: len(bytes_) // 2 if how == "truncated" else 0])
    what = "no such file" if how == "missing" else r"is truncated, at the crop of P1 A01 \d \d+; delete the file"
    with pytest.raises(InputError, match=re.escape(str(path)) + f": {what}.* run `deepprofile export` again"):
        Crops(located.crop_store)[:]
    mended = exported(located, "uint8", compression)  # found without deleting it
    np.testing.assert_array_equal(mended[:], every)
    assert path.read_bytes() == bytes_


@pytest.mark.parametrize("damage", ["size", "frame"])
def test_a_damaged_frame_and_its_mend(located, damage):
    crops = exported(located, "uint8", "lz4")
    every, path = crops[:], part(located, "P2", "C01")
    row = int(np.flatnonzero((crops.table[PLATE] == "P2") & (crops.table[WELL] == "C01"))[2])
    start, data = int(crops._offset[row]), bytearray(path.read_bytes())
    if damage == "size":
        data[start + 4 : start + 8] = (1).to_bytes(4, "little")
    else:
        data[start + 16 : start + 40] = b"\xff" * 24
    path.write_bytes(data)
    crops = Crops(located.crop_store)
    np.testing.assert_array_equal(crops[row - 1], every[row - 1])
    with pytest.raises(InputError, match=r"C01-.*\.arrow: is damaged, at the crop of P2 C01 1 2; delete the file and"):
        crops[[row]]
    path.unlink()
    np.testing.assert_array_equal(exported(located, "uint8", "lz4")[:], every)


@pytest.mark.parametrize("name", [SITES, "P1/cells.parquet"])
def test_a_damaged_table_and_its_mend(located, name):
    every = exported(located)[:]
    path = located.crop_store / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{name}: cannot be read, .*; delete it and run `deepprofile export` again"):
        Crops(located.crop_store)
    path.unlink()
    np.testing.assert_array_equal(exported(located)[:], every)


def test_a_damaged_manifest_and_its_mend(located):
    every = exported(located)[:]
    (located.crop_store / "P1" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"P1/manifest\.json: not a manifest; delete .*P1 to make it again"):
        Crops(located.crop_store)
    shutil.rmtree(located.crop_store / "P1")
    np.testing.assert_array_equal(exported(located)[:], every)


def test_images_of_two_types(located):
    halve(located.root, "P1/A02_s1")
    study = configure(located.root, locate=KEPT, crops={"normalize": "none"})
    locate_cells(study)
    with pytest.raises(
        InputError, match=r"P\d \w+ site \d: uint\d+ images, those of P\d \w+ site \d are not; with exp"
    ):
        exported(study, crops={"normalize": "none"})
    crops = exported(study, "uint8", crops={"normalize": "none"})  # each by its own type
    rows = np.flatnonzero((crops.table[[PLATE, WELL, SITE]] == ["P1", "A02", "1"]).all(axis=1))
    first = by_hand(study, crops.table.loc[rows[0]])
    np.testing.assert_array_equal(crops[rows[0]], first)


def test_images_of_two_types_of_two_exports(located):
    edit_index(located.root, lambda t: t[t[WELL] == "A01"])
    exported(located, crops={"normalize": "none"})
    halve(located.root, "P2/A01_s?")
    study = configure(located.root, locate=KEPT, crops={"normalize": "none"})
    locate_cells(study)
    with pytest.raises(InputError, match=r"crops: crops of uint16 and uint8 images; with export\.depth original all"):
        exported(study, crops={"normalize": "none"})


def test_deepprofilers_folder_is_known_by_its_table(store, tmp_path, monkeypatch):
    import deepprofile.deepprofiler_crops

    assert isinstance(open_crops(store["lz4"].path, CHANNELS), Crops)
    monkeypatch.setattr(deepprofile.deepprofiler_crops, "DeepProfilerCrops", lambda path, channels: (path, channels))
    (tmp_path / "sc-metadata.csv").touch()
    assert open_crops(tmp_path, CHANNELS) == (tmp_path, CHANNELS)
