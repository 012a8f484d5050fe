import hashlib
import shutil
import threading

import numpy as np
import pandas as pd
import pytest
import skimage.exposure
import skimage.io
import tifffile
from click.testing import CliRunner
from study_factory import CHANNELS, WELLS, configure, edit_index

from cytominer_tools.columns import CELL, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.manifest import PlateTable
from deepprofile import deepprofiler_crops
from deepprofile.cli.commands import main
from deepprofile.crop_store import Crops, open_crops
from deepprofile.deepprofiler_crops import DeepProfilerCrops, eight_bit_strips, export_png
from deepprofile.export import export_crops
from deepprofile.intensities import measure_intensities
from deepprofile.locations import X, Y, locate_cells, plate_locations

SIZE = 40
THEIRS = {"size": SIZE, "mode": "interpolate", "normalize": "minmax"}
f = np.float32


@pytest.fixture(scope="module")
def located(images, tmp_path_factory):
    """A plate and two wells of the tiny study, located, with label images; not to be written to."""
    root = tmp_path_factory.mktemp("located") / "study"
    shutil.copytree(images, root)
    edit_index(root, lambda t: t[(t[PLATE] == "P1") | t[WELL].isin(["A01", "C02"])])
    study = set_up(root)
    measure_intensities(study)
    locate_cells(study)
    return root


@pytest.fixture
def study(located, tmp_path):
    shutil.copytree(located, tmp_path / "study")
    return set_up(tmp_path / "study")


@pytest.fixture(scope="module")
def exported(located, tmp_path_factory):
    """The study after an undisturbed export; not to be written to."""
    root = tmp_path_factory.mktemp("exported") / "study"
    shutil.copytree(located, root)
    study = set_up(root)
    export_png(study)
    return study


def set_up(root, **changes):
    sections = {"crops": THEIRS, "locate": {"labels": True}}
    return configure(root, **{name: {**sections.get(name, {}), **changes.get(name, {})} for name in sections | changes})


def table_of(study):
    return pd.read_csv(study.root / "single-cells" / "sc-metadata.csv", dtype={"Key": str})


def files_of(study):
    folder = study.root / "single-cells"
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- parity: DeepProfiler's steps one after another, as its documentation in ../shared/reference describes them
def crop_and_resize(plane, x, y, size):
    """tf.image.crop_and_resize of one box, pixel by pixel."""

    def line(centre, length):
        low, high = f(f(centre - size / 2) / f(length)), f(f(centre + size / 2) / f(length))
        step = f((high - low) * f(length - 1) / f(size - 1))
        return [f(low * f(length - 1)) + f(i) * step for i in range(size)]

    crop = np.zeros((size, size), np.float32)
    for i, row in enumerate(line(y, plane.shape[0])):
        for j, column in enumerate(line(x, plane.shape[1])):
            if 0 <= row <= plane.shape[0] - 1 and 0 <= column <= plane.shape[1] - 1:
                r, c = int(np.floor(row)), int(np.floor(column))
                below, right = int(np.ceil(row)), int(np.ceil(column))
                across, down = f(column - f(c)), f(row - f(r))
                top = f(plane[r, c] + f(plane[r, right] - plane[r, c]) * across)
                bottom = f(plane[below, c] + f(plane[below, right] - plane[below, c]) * across)
                crop[i, j] = top + f(bottom - top) * down
    return crop


def theirs(planes, x, y, label=None):
    crops = [crop_and_resize(plane.astype(np.float32), x, y, SIZE) for plane in planes]
    crops = [(crop - crop.min()) / (crop.max() - crop.min() + f(1e-7)) for crop in crops]
    if label is not None:
        labels, own = label
        crops.append((crop_and_resize(labels.astype(np.float32), x, y, SIZE) == own).astype(np.float32))
    strip = np.reshape(np.stack(crops, axis=-1), (SIZE, -1), order="F")
    return np.floor(skimage.exposure.rescale_intensity(strip, in_range="image", out_range="uint8")).astype(np.uint8)


def planes_of(study, plate, well, site):
    return [tifffile.imread(study.root / "images" / plate / f"{well}_s{site}_{name}.tif") for name in CHANNELS]


def test_strips_are_those_of_deepprofiler_byte_for_byte(exported):
    at_border = 0
    for plate, well, site in (("P1", "A01", 1), ("P2", "C02", 2)):
        cells = plate_locations(exported, plate).read(well).to_pandas()
        planes = planes_of(exported, plate, well, site)
        rows = table_of(exported)
        rows = rows[rows["Key"] == f"{plate}/{well}/{site}"].set_index("index")
        for cell in cells[cells[SITE] == str(site)].to_dict("records"):
            x, y = cell[X], cell[Y]
            name = rows.loc[cell[CELL], "Image_Name"]
            assert name == f"{plate}/{well}/{site}/{rows.loc[cell[CELL], 'Target']}@{x}x{y}.png"
            strip = skimage.io.imread(exported.root / "single-cells" / name)
            assert (strip.shape, strip.dtype) == ((SIZE, SIZE * 3), np.uint8)
            np.testing.assert_array_equal(strip, theirs(planes, x, y))
            at_border += min(x, y, 128 - x, 128 - y) < SIZE / 2
    assert at_border > 3


def test_masks_are_those_of_deepprofiler(study):
    masked = set_up(study.root, crops={"mask": True})
    export_png(masked)
    rows = table_of(masked)
    labels = tifffile.imread(study.root / "locations" / "P1" / "labels" / "B01_1.tif")
    planes = planes_of(study, "P1", "B01", 1)
    rows = rows[rows["Key"] == "P1/B01/1"]
    for row in rows.to_dict("records"):
        strip = skimage.io.imread(study.root / "single-cells" / row["Image_Name"])
        x, y = row["Nuclei_Location_Center_X"], row["Nuclei_Location_Center_Y"]
        np.testing.assert_array_equal(strip, theirs(planes, x, y, (labels, row["index"] + 1)))
        assert set(np.unique(strip[:, -SIZE:])) == {0, 255}


def test_reading_applies_the_mask(study):
    plain = export_png(study) and DeepProfilerCrops(study.root / "single-cells", CHANNELS)[:]
    masked = set_up(study.root, crops={"mask": True})
    export_png(masked)
    crops = DeepProfilerCrops(study.root / "single-cells", CHANNELS)
    assert crops.preprocess.mask
    name = table_of(masked).loc[7, "Image_Name"]
    mask = skimage.io.imread(study.root / "single-cells" / name)[:, -SIZE:]
    assert 0 < (mask == 0).mean() < 1
    assert not crops[7][mask == 0].any()
    inside = crops[7][mask == 255].astype(int) - plain[7][mask == 255]
    assert np.abs(inside).max() <= 1  # the 1 of a mask and the 1 - 1e-7 of a crop are stretched alike, but for rounding


# --- golden: two pixels, two channels, worked out by hand
def test_a_strip_is_stretched_as_a_whole():
    crop = np.array([[[0.25, 0.5], [0.375, 0.75]]], np.float32)  # (H, W, C) = (1, 2, 2)
    # left channel 0.25 0.375, right channel 0.5 0.75: 255 times 0, 1/4, 1/2 and 1, rounded down
    assert eight_bit_strips(crop[None])[0].tolist() == [[0, 63, 127, 255]]
    # with a mask the least is 0 and the most 1: 255 times 1/4, 3/8, 1/2 and 3/4
    assert eight_bit_strips(crop[None], np.array([[[True, False]]]))[0].tolist() == [[63, 95, 127, 191, 255, 0]]
    assert not eight_bit_strips(np.full((1, 4, 4, 2), 0.4, np.float32)).any()


# --- the table
def test_the_table_is_that_of_deepprofiler(study):
    splits = {"A01": "train", "A02": None, "B01": "validation"}  # of a column that is empty in whole wells
    edit_index(study.root, lambda t: t.assign(Metadata_Split=t[WELL].map(splits)))
    export_png(set_up(study.root))
    table = table_of(study)
    located = plate_locations(study, "P1").read("A01").column_names
    assert located[:6] == [PLATE, WELL, SITE, CELL, X, Y]
    assert list(table) == [
        *("index", "Nuclei_Location_Center_X", "Nuclei_Location_Center_Y"),
        *(name.removeprefix("Metadata_") for name in located[6:]),
        *("Key", "Target", "Compound", "Split", "Image_Name"),
    ]
    assert table["Key"].iloc[0] == "P1/A01/1"
    assert dict(zip(table["Compound"], table["Target"], strict=True)) == {"DMSO": 0, "aaa": 1, "bbb": 2}
    assert table["Target"].dtype == np.int64
    assert table.groupby("Split", dropna=False).size().index.tolist() == ["train", "validation", np.nan]
    assert not table["Image_Name"].duplicated().any()
    assert sorted(table["Image_Name"]) == [name for name in files_of(study) if name.endswith(".png")]


def test_hyphens_and_slashes_in_names_break_nothing(study):
    edit_index(study.root, lambda t: t[t[PLATE] == "P1"].assign(**{PLATE: "PK-10/B", SITE: "s-" + t[SITE].astype(str)}))
    changed = set_up(study.root)
    locate_cells(changed)
    export_png(changed)
    assert table_of(study)["Key"].iloc[0] == "PK-10%2FB/A01/s-1"
    crops = DeepProfilerCrops(study.root / "single-cells", CHANNELS)
    assert set(crops.table[PLATE]) == {"PK-10/B"}
    assert set(crops.table[SITE]) == {"s-1", "s-2"}
    assert crops[:].shape == (len(crops), SIZE, SIZE, 3)


def test_cells_at_one_point_both_stay(fresh):
    for site in (1, 2):
        (fresh.root / f"centres-{site}.csv").write_text("x,y\n40,40\n40,40\n60.5,60\n40,40\n")
    edit_index(fresh.root, lambda t: t[(t[PLATE] == "P1") & (t[WELL] == "A01")])
    study = set_up(fresh.root, locate={"files": "centres-{site}.csv", "labels": False})
    locate_cells(study)
    assert export_png(study).rows == 8
    names = [name.rpartition("/")[2] for name in table_of(study)["Image_Name"][:4]]
    assert names == ["0@40.0x40.0.png", "0@40.0x40.0-1.png", "0@60.5x60.0.png", "0@40.0x40.0-3.png"]
    crops = DeepProfilerCrops(study.root / "single-cells", CHANNELS)
    np.testing.assert_array_equal(crops[0], crops[3])
    assert crops.table[CELL].tolist() == [0, 1, 2, 3] * 2


def test_numbers_are_sorted_as_numbers_and_missing_is_a_class(study):
    doses = {"DMSO": 0.0, "aaa": 9.0, "bbb": 10.0}
    edit_index(study.root, lambda t: t.assign(Metadata_Dose=t["Metadata_Compound"].map(doses)))
    changed = set_up(study.root, train={"label": ["Metadata_Dose"]})
    export_png(changed)
    table = table_of(study)
    assert dict(zip(table["Dose"], table["Target"], strict=True)) == {0.0: 0, 9.0: 1, 10.0: 2}
    export_png(set_up(study.root, train={"label": ["MOA"]}))
    table = table_of(study)
    assert dict(zip(table["MOA"].fillna(""), table["Target"], strict=True)) == {"": 0, "kinase": 1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"columns": {"compound": None, "moa": None}},
            "from one column; there is none: name one, or set columns.treatment",
        ),
        ({"train": {"label": ["MOA", "Compound"]}}, "from one column; are MOA, Compound: name one"),
        ({"train": {"label": ["Moa"]}}, "train.label: no column 'Moa', is it 'Metadata_MOA'"),
    ],
)
def test_the_class_is_one_column(study, changes, words):
    with pytest.raises(InputError, match=words):
        export_png(set_up(study.root, **changes))


# --- the same cells as the crop store
def test_cells_are_chosen_and_reported_as_in_the_crop_store(study):
    (study.root / "images" / "P1" / "B01_s2_ER.tif").write_bytes(b"nothing")
    chosen = set_up(study.root, export={"query": "Metadata_Area > 20", "per_well": 15}, crops={"border": "drop"})
    told, stored = export_png(chosen), export_crops(chosen)
    assert (told.rows, told.skipped, told.unit) == (stored.rows, stored.skipped, stored.unit)
    assert any("B01 site 2" in what for what, _ in told.skipped)
    key = [PLATE, WELL, SITE, CELL, X, Y]
    ours, theirs = Crops(study.crop_store), open_crops(study.root / "single-cells", CHANNELS)
    assert isinstance(theirs, DeepProfilerCrops)
    pd.testing.assert_frame_equal(ours.table[key], theirs.table[key])
    # the same crops, but for the stretched strip and the rounding of both
    assert np.abs(ours.network_input([0, -1]) - theirs.network_input([0, -1])).max() <= 1.5 / 255
    with pytest.raises(InputError, match=r"B01_s2_ER\.tif"):
        export_png(chosen, strict=True)


# --- resuming
def test_a_killed_export_goes_on_with_the_same_bytes(study, exported, monkeypatch):
    write, written = PlateTable.write, []

    def killed(table, well, *rest):
        if len(written) == 7:  # one of the second plate
            raise KeyboardInterrupt
        write(table, well, *rest)
        written.append(well)

    monkeypatch.setattr(PlateTable, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        export_png(study)
    monkeypatch.undo()
    folder = study.root / "single-cells"
    assert not (folder / "sc-metadata.csv").exists()
    (folder / "P2" / f".{'0' * 32}.C02").mkdir()  # as a kill leaves it
    told = export_png(study)
    assert (told.made, told.kept) == (1, 7)
    assert files_of(study) == files_of(exported)
    assert not (folder / "P2" / f".{'0' * 32}.C02").exists()


def test_what_is_current_is_left_alone(study, exported):
    shutil.copytree(exported.root / "single-cells", study.root / "single-cells")
    folder = study.root / "single-cells"
    before = DeepProfilerCrops(folder, CHANNELS).key
    told = export_png(study)
    assert (told.made, told.kept, told.rows) == (0, 8, len(table_of(study)))
    assert DeepProfilerCrops(folder, CHANNELS).key == before
    shutil.rmtree(folder / "P1" / "A02")
    assert export_png(study).made == 1
    edit_index(study.root, lambda t: t[t[WELL] != "C02"])
    assert export_png(set_up(study.root)).made == 0  # no crop of another well depends on it
    assert not (folder / "P1" / "C02").exists()
    assert not table_of(study)["Key"].str.contains("C02").any()
    told = export_png(set_up(study.root, crops={"size": 16}))
    assert (told.made, told.kept) == (6, 0)
    crops = DeepProfilerCrops(folder, CHANNELS)
    assert crops.shape == (16, 16, 3)
    assert crops.key != before


def test_a_well_with_another_compound_is_written_anew(study, exported):
    shutil.copytree(exported.root / "single-cells", study.root / "single-cells")
    edit_index(study.root, lambda t: t.assign(Metadata_Compound=t["Metadata_Compound"].mask(t[WELL] == "A02", "bbb")))
    assert export_png(set_up(study.root)).made == 1
    table = table_of(study)
    assert set(table.loc[table["Key"].str.contains("A02"), "Target"]) == {2}


def test_somebody_elses_cells_are_not_written_over(study):
    (study.root / "single-cells").mkdir()
    (study.root / "single-cells" / "sc-metadata.csv").write_text("Key\n")
    with pytest.raises(InputError, match="single-cells: it holds cells that were exported elsewhere; move them"):
        export_png(study)


def test_sites_and_wells_without_cells_are_done(study):
    told = export_png(set_up(study.root, export={"query": "Metadata_Well != 'B02' and Metadata_Site == '1'"}))
    assert told.made == 8
    assert not table_of(study)["Key"].str.contains("B02|/2$").any()
    assert export_png(set_up(study.root, crops={"size": 256, "border": "drop"})).rows == 0  # no box is within its image
    with pytest.raises(InputError, match=r"sc-metadata\.csv: it lists no cell"):
        DeepProfilerCrops(study.root / "single-cells", CHANNELS)


# --- reading
def test_crops_are_read_by_any_rows(exported):
    crops = DeepProfilerCrops(exported.root / "single-cells", CHANNELS)
    every = crops[:]
    assert (every.shape, every.dtype) == ((len(crops), *crops.shape), crops.dtype)
    strip = skimage.io.imread(exported.root / "single-cells" / table_of(exported).loc[5, "Image_Name"])
    for channel in range(3):
        np.testing.assert_array_equal(crops[5][..., channel], strip[:, channel * SIZE : (channel + 1) * SIZE])
    np.testing.assert_array_equal(crops[[7, 2, 7]], every[[7, 2, 7]])
    np.testing.assert_array_equal(crops[np.array([-1])], every[-1:])
    assert crops[[]].shape == (0, SIZE, SIZE, 3)
    np.testing.assert_array_equal(crops.network_input([3]), every[[3]].astype(np.float32) / np.float32(255))
    assert (crops.scaled, crops.same_as_profiling, crops.illumination) == (True, False, None)
    assert crops.preprocess == exported.preprocess
    assert crops.channels == CHANNELS
    assert f"{len(crops)} crops of 40 x 40 x 3 (DNA, ER, Mito)" in repr(crops)


def test_threads_read_the_same(exported):
    crops = DeepProfilerCrops(exported.root / "single-cells", CHANNELS)
    found = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: crops[i::4]})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(found[i], crops[i::4])


def test_the_table_has_our_names(exported):
    table = DeepProfilerCrops(exported.root / "single-cells", CHANNELS).table
    wells = [*(("P1", well) for well in sorted(WELLS)), ("P2", "A01"), ("P2", "C02")]
    located = [plate_locations(exported, plate).read(well).to_pandas() for plate, well in wells]
    located = pd.concat(located, ignore_index=True)
    pd.testing.assert_frame_equal(table[list(located)], located)
    assert table["Metadata_Compound"].tolist() == located[WELL].map(WELLS).tolist()
    assert set(table) - set(located) == {"Metadata_Compound", "Metadata_Target"}


@pytest.fixture
def theirs_folder(tmp_path):
    """A folder as DeepProfiler writes it: wells in lower case, sites as numbers, two channels of 8 px and a mask."""
    rng = np.random.default_rng(0)
    rows = []
    for i, well in enumerate(["f21", "f21", "a1"]):
        key, x = f"PK/10B/{well}/1", 100 + i
        name = f"{key}/3@{x}x50.png"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        strip = rng.integers(0, 256, (8, 24), np.uint8)
        strip[:, 16:] = 255 * (np.arange(8) > 3)
        skimage.io.imsave(tmp_path / name, strip, check_contrast=False)
        cell = {"Nuclei_Location_Center_X": x, "Nuclei_Location_Center_Y": 50, "Key": key, "Target": 3}
        rows.append({**cell, "gene_name": "NO", "Split": "0", "Image_Name": name})
    pd.DataFrame(rows).to_csv(tmp_path / "sc-metadata.csv", index=False)
    return tmp_path


def edit_table(folder, edit):
    table = pd.read_csv(folder / "sc-metadata.csv", dtype=str)
    changed = edit(table)
    (table if changed is None else changed).to_csv(folder / "sc-metadata.csv", index=False)


def test_a_folder_of_deepprofiler_is_read(theirs_folder):
    crops = open_crops(theirs_folder, ("DNA", "ER"))
    assert crops.shape == (8, 8, 2)
    assert crops.table.to_dict("list") == {
        PLATE: ["PK/10B"] * 3, WELL: ["F21", "F21", "A01"], SITE: ["1"] * 3, CELL: [0, 1, 0],
        X: [100.0, 101.0, 102.0], Y: [50.0] * 3, "Metadata_Target": [3] * 3, "Metadata_gene_name": ["NO"] * 3,
        "Metadata_Split": [0] * 3,
    }  # fmt: skip
    assert not crops[1][:, :4].any()
    strip = skimage.io.imread(theirs_folder / "PK/10B/f21/1/3@101x50.png")
    np.testing.assert_array_equal(crops[1][:, 4:, 1], strip[:, 12:16])
    made_by = crops.preprocess
    assert (made_by.mode, made_by.normalize, made_by.size, made_by.mask) == ("interpolate", "minmax", 8, True)
    key = crops.key
    edit_table(theirs_folder, lambda t: t.assign(gene_name="JUN"))
    assert open_crops(theirs_folder, ("DNA", "ER")).key != key


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.drop(columns=["Key", "Image_Name"]), "no column 'Key', 'Image_Name'; it has Nuclei_Location"),
        (lambda t: t.iloc[:0], "sc-metadata.csv: it lists no cell"),
        (lambda t: t.assign(Key="f21/1"), "Key 'f21/1': expected plate/well/site"),
        (
            lambda t: t.assign(Nuclei_Location_Center_Y=["1", "here", "2"]),
            "row 3: Nuclei_Location_Center_Y is 'here', expected px",
        ),
        (lambda t: t.assign(Image_Name="gone.png"), r"gone\.png: no such file, but sc-metadata\.csv lists it"),
    ],
)
def test_a_bad_table_is_told(theirs_folder, edit, words):
    edit_table(theirs_folder, edit)
    with pytest.raises(InputError, match=words):
        DeepProfilerCrops(theirs_folder, ("DNA", "ER"))


def test_no_table_is_told(tmp_path):
    with pytest.raises(InputError, match=r"sc-metadata\.csv: no such file"):
        DeepProfilerCrops(tmp_path, ("DNA",))


@pytest.mark.parametrize("channels", [("a",), ("a", "b", "c", "d")])
def test_another_number_of_channels_is_told(theirs_folder, channels):
    words = rf"3@100x50\.png: 8 x 24 px are 3 squares, where {len(channels)} channels .* need as many, and one more for"
    with pytest.raises(InputError, match=words):
        DeepProfilerCrops(theirs_folder, channels)


def test_crops_of_an_odd_size_are_told(tmp_path):
    skimage.io.imsave(tmp_path / "a.png", np.zeros((9, 18), np.uint8), check_contrast=False)
    head = "Nuclei_Location_Center_X,Nuclei_Location_Center_Y,Key,Image_Name"
    (tmp_path / "sc-metadata.csv").write_text(f"{head}\n1,1,P1/A01/1,a.png\n")
    with pytest.raises(InputError, match=r"a\.png: crops of 9 px; expected an even number from 8 to 2048"):
        DeepProfilerCrops(tmp_path, ("a", "b"))


def test_a_last_channel_is_not_taken_for_a_mask(theirs_folder):
    path = theirs_folder / "PK/10B/f21/1/3@101x50.png"
    skimage.io.imsave(path, np.arange(8 * 24, dtype=np.uint8).reshape(8, 24))
    crops = DeepProfilerCrops(theirs_folder, ("a", "b"))
    with pytest.raises(InputError, match=r"3@101x50\.png: its last square is no mask.* name all of its 3 channels"):
        crops[:]
    assert DeepProfilerCrops(theirs_folder, ("a", "b", "c")).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"3@102x50\.png: no such file, but sc-metadata\.csv lists it; export the cells again"),
        (b"not a png", r"3@102x50\.png: cannot be read as PNG \(.*\); export the cells again"),
        ("cut", r"3@102x50\.png: cannot be read as PNG"),
        (np.zeros((8, 16), np.uint8), r"3@102x50\.png: 8 x 16 px, where the first cell has 8 x 24"),
        (np.zeros((8, 24, 3), np.uint8), r"3@102x50\.png: 8 x 24 x 3 of uint8; expected a strip of grey values"),
        (np.zeros((8, 24), np.uint16), r"3@102x50\.png: 8 x 24 of uint16; expected a strip of grey values in 8 bits"),
    ],
)
def test_a_bad_strip_is_told(theirs_folder, content, words):
    path = theirs_folder / "PK/10B/a1/1/3@102x50.png"
    whole = path.read_bytes()
    path.unlink()
    if isinstance(content, np.ndarray):
        skimage.io.imsave(path, content, check_contrast=False)
    elif content is not None:
        path.write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    crops = DeepProfilerCrops(theirs_folder, ("a", "b"))
    assert crops[:2].shape == (2, 8, 8, 2)
    with pytest.raises(InputError, match=words):
        crops[2]


# --- the command
def test_the_command_writes_them(study):
    told = CliRunner().invoke(main, ["export", "--format", "png", str(study.root)])
    assert told.exit_code == 0, told.output
    assert told.output.startswith(f"export: {len(table_of(study))} crops (8 made)")
    assert deepprofiler_crops.STAGE == "single-cells"
    assert not study.crop_store.exists()
