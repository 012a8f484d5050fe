"""Names as microscopes write them, from public repositories and manuals, and what they say."""

import pytest

from cytominer_tools.errors import InputError
from deepprofile.patterns import PRESETS, guess_pattern, parse_name, scan_folder

GUID = "A52B1177-9DC7-4534-9623-9DCA396EFA00"
# preset, name, (plate, well, site, channel, z, time); plate None: the folder that is scanned
NAMES = [
    ("phenix", "r01c01f01p01-ch1sk1fk1fl1.tiff", (None, "A01", "1", "1", "1", "1")),
    ("phenix", "BR00116991/Images/r16c24f09p03-ch5sk2fk1fl1.tiff", ("BR00116991", "P24", "9", "5", "3", "2")),
    ("phenix", "BR00116991__2020-11-05T19_51_35-Measurement1/Images/r02c10f10p01-ch5sk1fk1fl1.tiff",
     ("BR00116991", "B10", "10", "5", "1", "1")),
    ("phenix", "P-1__2021-09-01T15_39_48-Measurement 2/Images/r32c48f01p01-ch2sk1fk1fl1.tiff",
     ("P-1", "AF48", "1", "2", "1", "1")),
    ("phenix", "raw/r04c09f001p01-ch1.tiff", ("raw", "D09", "1", "1", "1", None)),
    ("imagexpress", f"SQ1/2015-07-31/4014/val screen_B02_s1_w1{GUID}.tif", ("SQ1", "B02", "1", "1", None, None)),
    ("imagexpress", "P/TimePoint_1/ZStep_2/plate_A01_s10_w2.TIF", ("P", "A01", "10", "2", "2", "1")),
    ("imagexpress", "TimePoint_1/A549-20X-DB_B02_s1_w12DE5D0E6-1639-40D4-8654-9A6247B4B8CD.tif",
     ("A549-20X-DB", "B02", "1", "1", None, "1")),
    ("imagexpress", "Week10_200907_B02_s1_w107447158-AC92-4844-8374-8F19A7F2D3C6.tif",
     ("Week10_200907", "B02", "1", "1", None, None)),
    ("imagexpress", "Week1_22123/Week1_150607_B02_s4_w3CB51C8DA-5F0F-4A09-B1B2-4B5AA0A0D2B6.tif",
     ("Week1_22123", "B02", "4", "3", None, None)),
    ("imagexpress", "41744/taoe005-u2os-72h-cp-a-au00044859_f21_s1_w1.tif", ("41744", "f21", "1", "1", None, None)),
    ("imagexpress", "A01_s1_w2.tif", (None, "A01", "1", "2", None, None)),
    ("imagexpress", "P/TimePoint_1/A01_s1_w1_z12.tif", ("P", "A01", "1", "1", "12", "1")),
    ("imagexpress", "exp/timepoint0/screen_t0_C05_s0_w0_z2.tif", ("exp", "C05", "0", "0", "2", "0")),
    ("opera", "001002-1-001001001.tif", (None, "A02", "1", "1", "001", "001")),
    ("opera", "P1/003007-10-012001003.tiff", ("P1", "C07", "10", "3", "012", "001")),
    ("incarta", "A - 01(fld 1 wv 390 - Blue).tif", (None, "A01", "1", "390 - Blue", None, None)),
    ("incarta", "A - 01(fld 1 wv Green - dsRed z 3).tif", (None, "A01", "1", "Green - dsRed", "3", None)),
    ("incarta", "P/B - 2(fld 01 wv Cy3 - Cy3 wix 1).tif", ("P", "B02", "1", "Cy3 - Cy3", None, None)),
    ("incarta", "B - 02(fld 12 wv Blue - FITC - time 01 - 0 ms).tif", (None, "B02", "12", "Blue - FITC", None, "1")),
    ("incarta", "H - 12(fld 1 wv DAPI - DAPI z 1- time 50 - 1470000 ms).tif",
     (None, "H12", "1", "DAPI - DAPI", "1", "50")),
    ("incarta", "Plate1_HA41_F - 001(fld 1 wv TL-Brightfield - DAPI).tif",
     (None, "F01", "1", "TL-Brightfield - DAPI", None, None)),
    ("yokogawa", "Dest210809-141456/Dest210809-141456_K06_T0001F001L01A03Z01C04.tif",
     ("Dest210809-141456", "K06", "1", "4", "1", "1")),
    ("yokogawa", "AssayPlate_Greiner_#655090_C02_T0002F012L01A01Z03C01.tif",
     ("AssayPlate_Greiner_#655090", "C02", "12", "1", "3", "2")),
    ("yokogawa", "MIG-Exp03-CP-40X-bin1X1_K07_T0001F001L01A01Z01C10.png",
     ("MIG-Exp03-CP-40X-bin1X1", "K07", "1", "10", "1", "1")),
    ("generic", "P-1/A01_s1_DNA.tif", ("P-1", "A01", "1", "DNA", None, None)),
    ("generic", "plaque_é/b2_03_Mito.png", ("plaque_é", "b2", "3", "Mito", None, None)),
]  # fmt: skip
OTHERS = [  # images, but not of a scheme
    ("imagexpress", f"SQ1/4014/val screen_B02_s1_w1_thumb{GUID}.tif"),
    ("imagexpress", "P/TimePoint_1/plate_A01_s1.tif"),
    ("phenix", "r01c01f01-ch1sk1fk1fl1.tiff"),
    ("opera", "001002-1.tif"),
    ("incarta", "A01(fld 1 wv 390 - Blue).tif"),
    ("yokogawa", "W1F001T0001Z00C1.tif"),
]


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


def fields(found):
    return (found.plate, found.well, found.site, found.channel, found.z, found.time)


@pytest.mark.parametrize(("preset", "name", "expected"), NAMES)
def test_a_name_of_each_scheme(preset, name, expected):
    found = [parse_name(name, form) for form in PRESETS[preset]]
    assert expected in [fields(one) for one in found if one]


@pytest.mark.parametrize(("preset", "name", "expected"), NAMES)
def test_the_form_that_is_guessed_reads_the_name(preset, name, expected, tmp_path):
    touch(tmp_path / "raw", name)
    for form in (guess_pattern(tmp_path / "raw", preset), guess_pattern(tmp_path / "raw")):
        assert fields(parse_name(name, form)) == expected
    (row,) = scan_folder(tmp_path / "raw", form).to_numpy().tolist()
    assert row == [expected[0] or "raw", expected[1], expected[2], name]


@pytest.mark.parametrize(("preset", "name"), OTHERS)
def test_what_is_no_image_of_a_scheme(preset, name):
    assert [parse_name(name, form) for form in PRESETS[preset]] == [None] * len(PRESETS[preset])


def test_thumbnails_are_left_out(tmp_path):
    names = [f"P/x_A01_s1_w{c}{kind}{GUID}.tif" for c in (1, 2) for kind in ("", "_thumb")]
    touch(tmp_path, *names)
    table = scan_folder(tmp_path, guess_pattern(tmp_path))
    assert table[["1", "2"]].to_numpy().tolist() == [[names[0], names[2]]]


def test_planes_stand_in_the_order_of_z(tmp_path):
    names = [f"P/r01c01f01p{z:02d}-ch1sk1fk1fl1.tiff" for z in (2, 10, 1)]
    touch(tmp_path, *names, "P/r01c01f02p01-ch1sk1fk1fl1.tiff")
    table = scan_folder(tmp_path, guess_pattern(tmp_path), {"DNA": "1"})
    assert table["DNA"].tolist() == ["|".join([names[2], names[0], names[1]]), "P/r01c01f02p01-ch1sk1fk1fl1.tiff"]
    picked = scan_folder(tmp_path, guess_pattern(tmp_path), {"DNA": "1#z=max"})
    assert picked["DNA"].tolist() == [f"{path}#z=max" for path in table["DNA"]]


def test_several_time_points_say_how_to_choose_one(tmp_path):
    touch(tmp_path, *(f"P_A01_T000{t}F001L01A01Z01C01.tif" for t in (1, 2)))
    pattern = guess_pattern(tmp_path)
    words = r"P_A01_T0001F.* and P_A01_T0002F.* are time points 1 and 2; write one of them in place of the group time"
    with pytest.raises(InputError, match=words):
        scan_folder(tmp_path, pattern)
    assert len(scan_folder(tmp_path, pattern.replace(r"(?P<time>\d+)", "2"))) == 1
    with pytest.raises(InputError, match=r"are the same site and channel; narrow images\.pattern to one plane"):
        scan_folder(tmp_path, pattern.replace(r"(?P<time>\d+)", r"\d+"))


def test_files_that_hold_all_channels(tmp_path):
    touch(tmp_path, "P/A01_1.ome.tif")
    pattern = r"(?P<plate>\w+)/(?P<well>[A-P]\d\d)_(?P<site>\d)\.ome\.tif"
    table = scan_folder(tmp_path, pattern, {"DNA": "#c=0", "ER": "#c=ER"})
    assert table[["DNA", "ER"]].to_numpy().tolist() == [["P/A01_1.ome.tif#c=0", "P/A01_1.ome.tif#c=ER"]]
    for channels in ({"DNA": "1"}, None):
        with pytest.raises(InputError, match="expected named groups channel and well"):
            scan_folder(tmp_path, pattern, channels)


def test_presets_and_planes_that_do_not_work(tmp_path):
    touch(tmp_path, "P/A01_s1_DNA.tif")
    with pytest.raises(InputError, match=r"no preset is called 'phoenix'; there are phenix, imagexpress, opera"):
        guess_pattern(tmp_path, "phoenix")
    with pytest.raises(InputError, match=r"no pattern of opera matches names like P/A01_s1_DNA\.tif; give --pattern"):
        guess_pattern(tmp_path, "opera")
    with pytest.raises(InputError, match=r"the group z is 'DNA' in P/A01_s1_DNA\.tif, expected a number"):
        scan_folder(tmp_path, r"(?P<well>A01)_(?P<channel>s1)_(?P<z>\w+)\.tif")


def test_ten_channels_stand_in_their_order(tmp_path):
    touch(tmp_path, *(f"P/r01c01f01p01-ch{c}sk1fk1fl1.tiff" for c in range(1, 12)))
    assert scan_folder(tmp_path, guess_pattern(tmp_path)).columns[3:].tolist() == [str(c) for c in range(1, 12)]
