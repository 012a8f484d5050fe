import gzip
import logging
import sqlite3

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from study_factory import configure, edit_index, write_images

from cytominer_tools.columns import CELL, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from deepprofile import location_files
from deepprofile.checks import check_study
from deepprofile.index import load_index
from deepprofile.location_files import LocationFiles, X, Y, exchanged, label_table, off_image, read_label_image
from deepprofile.locations import locate_cells, plate_locations
from deepprofile.sites import site_rows
from deepprofile.study import Study, read_study

WELLS = ("A01", "A02", "B01", "B02", "C01", "C02")


def key(plate="P1", well="A01", site="1"):
    return {PLATE: plate, WELL: well, SITE: site}


def reader(root, files, *sites, **locate):
    """A reader of `files` for a study whose index is `sites`, each (plate, well, site)."""
    index = pd.DataFrame(sites or [("P1", "A01", "1")], columns=[PLATE, WELL, SITE])
    locate = {"files": str(files), **locate}
    settings = {"root": root, "images": {"index": "none.csv"}, "channels": {"DNA": "DNA"}, "locate": locate}
    return LocationFiles(Study.model_validate(settings), index)


def centres(cells):
    return cells[["x", "y"]].to_numpy().tolist()


def plate_table(plate="P1", wells=WELLS, sites=(1, 2), cells=2):
    """A row a cell, of which x says the well and y the site and the cell."""
    return pd.DataFrame(
        [
            {
                PLATE: plate,
                WELL: well,
                SITE: site,
                "Nuclei_Location_Center_X": 10 * w,
                "Nuclei_Location_Center_Y": 10 * site + c,
            }
            for w, well in enumerate(wells)
            for site in sites
            for c in range(cells)
        ]
    )


def write_database(
    path, *, prefix="", objects="Nuclei", batch=True, image=True, sites=(("A01", 1), ("A01", 2), ("A02", 1))
):
    """CellProfiler's SQLite: two objects an image, none on the last one."""
    with sqlite3.connect(path) as base:
        numbers = "TableNumber TEXT, ImageNumber" if batch else "ImageNumber"
        own = (lambda n: [f"t{n}"]) if batch else (lambda n: [])
        if image:
            site = "Image_Metadata_Plate, Image_Metadata_Well, Image_Metadata_Site"
            base.execute(f'CREATE TABLE "{prefix}Image" ({numbers}, {site})')
        centre = "Nuclei_Location_Center_X REAL, Nuclei_Location_Center_Y REAL"
        base.execute(f'CREATE TABLE "{prefix}{objects}" ({numbers}, ObjectNumber, {centre})')
        marks = "?, " * batch
        for n, (well, site) in enumerate(sites):
            number = 1 if batch else n + 1  # told apart by TableNumber alone
            if image:
                base.execute(
                    f'INSERT INTO "{prefix}Image" VALUES ({marks}?, ?, ?, ?)', [*own(n), number, "P1", well, site]
                )
            for c in range(2 if n < len(sites) - 1 else 0):
                base.execute(
                    f'INSERT INTO "{prefix}{objects}" VALUES ({marks}?, ?, ?, ?)',
                    [*own(n), number, c + 1, 10 * n + c, 5],
                )
    base.close()
    return path


# --- one table of many sites
@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_rows_of_a_plate_are_picked_by_their_key(tmp_path, suffix):
    table = plate_table()
    table.to_parquet(tmp_path / "P1.parquet") if suffix == "parquet" else table.to_csv(tmp_path / f"P1.{suffix}")
    files = reader(tmp_path, "{plate}." + suffix)
    assert centres(files.read(key(well="B01", site="2")).cells) == [[20, 20], [20, 21]]
    assert files.read(key()).cells.dtypes.astype(str).tolist() == ["float64", "float64"]


def test_one_table_for_everything(tmp_path):
    both = pd.concat([plate_table("P1"), plate_table("0012").assign(Nuclei_Location_Center_X=99)])
    both.to_csv(tmp_path / "cells.csv", index=False)
    files = reader(tmp_path, "cells.csv")
    assert centres(files.read(key("0012")).cells) == [[99, 10], [99, 11]]
    assert centres(files.read(key("P1")).cells) == [[0, 10], [0, 11]]


@pytest.mark.parametrize(
    "names",
    [
        ["Image_Metadata_Plate", "Image_Metadata_Well", "Image_Metadata_Site"],
        ["Image_Metadata_Plate_x", "Image_Metadata_Well_x", "Image_Metadata_Site_x"],
        ["plate", "well", "site"],
    ],
)
def test_names_of_the_key(tmp_path, names):
    plate_table().rename(columns=dict(zip([PLATE, WELL, SITE], names, strict=True))).to_csv(tmp_path / "a.csv")
    assert centres(reader(tmp_path, "a.csv").read(key(well="A02")).cells) == [[10, 10], [10, 11]]


@pytest.mark.parametrize(("well", "site"), [("b2", "01"), ("B2", "1.0"), ("B02", " 1")])
def test_keys_are_compared_as_what_they_mean(tmp_path, well, site):
    (tmp_path / "P1.csv").write_text(f"Metadata_Well,Metadata_Site,x,y\n{well},{site},3,7\nB03,1,5,5\n")
    assert centres(reader(tmp_path, "{plate}.csv").read(key(well="B02")).cells) == [[3, 7]]


def test_a_site_without_rows_has_no_cells_but_a_well_or_plate_without_is_missing(tmp_path):
    table = plate_table()
    table[(table[WELL] != "B01") | (table[SITE] != 2)].to_csv(tmp_path / "cells.csv")
    files = reader(tmp_path, "cells.csv")
    assert files.read(key(well="B01", site="2")).cells.empty
    with pytest.raises(InputError, match=r"cells\.csv: no row of plate P1 well D01 site 1; its wells are A01, A02"):
        files.read(key(well="D01"))
    with pytest.raises(InputError, match=r"no row of plate P9 well A01 site 1; its plates are P1$"):
        files.read(key("P9"))
    table.assign(Metadata_Site="s" + table[SITE].astype(str)).to_csv(tmp_path / "named.csv")
    with pytest.raises(InputError, match=r"no row of plate P1 well A01 site 1; its sites are s1, s2$"):
        reader(tmp_path, "named.csv").read(key())
    table.iloc[:0].to_csv(tmp_path / "empty.csv")
    with pytest.raises(InputError, match=r"empty\.csv: holds no cell at all"):
        reader(tmp_path, "empty.csv").read(key())


def test_rows_that_no_column_tells_apart_are_refused(tmp_path):
    plate_table().drop(columns=SITE).to_csv(tmp_path / "P1.csv")
    sites = [("P1", "A01", "1"), ("P1", "A01", "2")]
    with pytest.raises(
        InputError, match=r"2 sites share this file, and no column .* says the site of a row; .*\{site\}"
    ):
        reader(tmp_path, "{plate}.csv", *sites).read(key())
    assert len(reader(tmp_path, "{plate}.csv", sites[0]).read(key()).cells) == 4  # one site a well: the well will do


def test_the_cells_of_two_images_are_not_mixed(tmp_path):
    (tmp_path / "A01-1.csv").write_text("ImageNumber,x,y\n1,3,7\n2,4,8\n")
    with pytest.raises(InputError, match=r"of 2 images \(ImageNumber 1, 2\), and no column says which is meant"):
        reader(tmp_path, "{well}-{site}.csv").read(key())


def test_a_table_is_read_once(tmp_path, monkeypatch):
    plate_table().to_csv(tmp_path / "P1.csv")
    reads = []
    real = location_files.pc.read_csv
    monkeypatch.setattr(
        location_files.pc, "read_csv", lambda *args, **more: reads.append(args[0]) or real(*args, **more)
    )
    files = reader(tmp_path, "{plate}.csv")
    for well in WELLS:
        files.read(key(well=well))
    assert len(reads) == 1


def test_few_tables_stay_in_memory(tmp_path):
    for n in range(9):
        plate_table(f"P{n}").to_csv(tmp_path / f"P{n}.csv")
    files = reader(tmp_path, "{plate}.csv")
    for n in range(9):
        assert len(files.read(key(f"P{n}")).cells) == 2
    assert len(files._tables) == 4


# --- an Image table says the site
@pytest.mark.parametrize(
    "made",
    [
        {},
        {"batch": False},
        {"prefix": "MyExpt_Per_", "batch": False},
        {"prefix": "Per_", "objects": "Object", "batch": False},
    ],
)
def test_a_database_is_joined_to_its_image_table(tmp_path, made):
    write_database(tmp_path / "P1.sqlite", **made)
    files = reader(tmp_path, "{plate}.sqlite")
    assert centres(files.read(key()).cells) == [[0, 5], [1, 5]]
    assert centres(files.read(key(site="2")).cells) == [[10, 5], [11, 5]]
    assert files.read(key(well="A02")).cells.empty  # its image was analysed, and had no object
    with pytest.raises(InputError, match="its Image table has no plate P1 well A03 site 1"):
        files.read(key(well="A03"))


def test_an_image_table_beside_a_csv(tmp_path):
    folder = tmp_path / "P1"
    folder.mkdir()
    (folder / "MyExpt_Nuclei.csv").write_text("ImageNumber,Location_Center_X,Location_Center_Y\n1,3,7\n3,4,8\n3,5,9\n")
    (folder / "MyExpt_Image.csv").write_text("ImageNumber,Metadata_Well,Metadata_Site\n1,A01,1\n2,A01,2\n3,A02,1\n")
    files = reader(tmp_path, "{plate}/MyExpt_Nuclei.csv")
    assert centres(files.read(key(well="A02")).cells) == [[4, 8], [5, 9]]
    assert files.read(key(site="2")).cells.empty
    assert [p.name for p in files.inputs([key(), key(well="A02")])] == ["MyExpt_Nuclei.csv", "MyExpt_Image.csv"]


def test_bad_databases(tmp_path):
    write_database(tmp_path / "no_image.db", image=False)
    sites = [("P1", "A01", "1"), ("P1", "A02", "1")]
    with pytest.raises(InputError, match=r"no_image\.db table Nuclei: 2 sites share this file, and no column"):
        reader(tmp_path, "no_image.db", *sites).read(key())
    with pytest.raises(InputError, match=r"no_image\.db: no table Cells; it has Nuclei; set locate\.object"):
        reader(tmp_path, "no_image.db", object="Cells").read(key())
    (tmp_path / "text.sqlite").write_text("x,y\n1,2\n" * 100)
    with pytest.raises(InputError, match=r"text\.sqlite: cannot be read as SQLite: file is not a database"):
        reader(tmp_path, "text.sqlite").read(key())
    whole = write_database(tmp_path / "P1.sqlite").read_bytes()
    (tmp_path / "cut.sqlite").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.sqlite: cannot be read as SQLite: database disk image is malformed"):
        reader(tmp_path, "cut.sqlite").read(key())
    with sqlite3.connect(tmp_path / "twice.sqlite") as base:
        base.execute("CREATE TABLE a_Per_Nuclei (x, y)")
        base.execute("CREATE TABLE b_Per_Nuclei (x, y)")
    base.close()
    with pytest.raises(InputError, match=r"a_Per_Nuclei and b_Per_Nuclei could both be meant"):
        reader(tmp_path, "twice.sqlite").read(key())


def test_a_database_is_only_read(tmp_path):
    path = write_database(tmp_path / "P1.sqlite")
    with sqlite3.connect(path) as base:  # a name that is a command if it is not quoted
        base.execute('ALTER TABLE Nuclei ADD COLUMN "x"" FROM Image; DROP TABLE Nuclei; --"')
    base.close()
    before = path.read_bytes()
    path.chmod(0o444)
    files = reader(tmp_path, "P1.sqlite", x='x" FROM Image; DROP TABLE Nuclei; --', y="Nuclei_Location_Center_Y")
    with pytest.raises(InputError, match="expected numbers"):
        files.read(key())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["P1.sqlite"]


# --- columns
def test_the_object_says_whose_centres_and_area(tmp_path):
    header = [
        f"{o}_{f}" for o in ("Cells", "Nuclei") for f in ("Location_Center_X", "Location_Center_Y", "AreaShape_Area")
    ]
    (tmp_path / "a.csv").write_text(",".join(header) + "\n1,2,3,4,5,6\n")
    assert reader(tmp_path, "a.csv").read(key()).cells.to_dict("list") == {"x": [4], "y": [5], "area": [6]}
    assert reader(tmp_path, "a.csv", object="Cells").read(key()).cells.to_dict("list") == {
        "x": [1],
        "y": [2],
        "area": [3],
    }
    with pytest.raises(InputError, match=r"Cells_Location_Center_X, Nuclei_Location_Center_X look like centres"):
        reader(tmp_path, "a.csv", object="Cytoplasm").read(key())


def test_centroids_come_before_the_deepest_pixel(tmp_path):
    (tmp_path / "a.csv").write_text(
        "AreaShape_Center_X,AreaShape_Center_Y,Location_Center_X,Location_Center_Y\n1,2,3,4\n"
    )
    assert centres(reader(tmp_path, "a.csv").read(key()).cells) == [[3, 4]]


def test_regionprops_gives_the_row_first(tmp_path):
    (tmp_path / "a.csv").write_text("label,centroid-0,centroid-1,area\n1,20,5,30\n")
    assert reader(tmp_path, "a.csv").read(key()).cells.to_dict("list") == {"x": [5], "y": [20], "area": [30]}


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_our_own_locations_with_their_qc_columns(fresh, suffix):
    locate_cells(fresh)
    before = plate_locations(fresh, "P2").read("B02").to_pandas()
    (fresh.root / "kept").mkdir()
    for plate in ("P1", "P2"):
        path = fresh.root / "locations" / plate / "cells.parquet"
        if suffix == "csv":
            text = pd.read_parquet(path).assign(Metadata_Note="by hand")  # text is no measure, and is left
            text.to_csv(fresh.root / "kept" / f"{plate}.csv", index=False)
        else:
            path.rename(fresh.root / "kept" / f"{plate}.parquet")
    again = configure(fresh.root, locate={"files": f"kept/{{plate}}.{suffix}"})
    assert locate_cells(again).skipped == ()
    after = plate_locations(again, "P2").read("B02").to_pandas()
    assert set(after) == set(before)
    pd.testing.assert_frame_equal(after[list(before)], before)


# --- bad input
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x;y\n1;2\n", "its header is 'x;y': not separated by commas; save it as plain CSV"),
        ("x\ty\n1\t2\n", "not separated by commas"),
        (
            "x,y\n1,2\n3;4,5\n",
            r"row 3: x, y are \['3;4', '5'\], expected numbers; is the separator a comma in every row",
        ),
        ("x,y\n1,2\n3;4\n", "cannot be read as csv: .*Row #3: Expected 2 columns, got 1: 3;4"),
        ("x,y\n30,5,60,25\n", "Expected 2 columns, got 4"),  # decimal commas
        ("x,y\n1,\n", r"row 2: x, y are \['1', ''\], expected numbers"),
        ("x,y\n1,2\nnan,3\n", "row 3: x, y are"),
        ("x,y\n1,inf\n", "row 2: x, y are"),
        ("x,y,x\n1,2,3\n", "a header of distinct column names, 'x' stands in it twice"),
        ("area,label\n1,2\n", "no columns of cell centres; it has area, label; name them in locate.x and locate.y"),
        ("", "no columns of cell centres"),
        ("x,y\n\xff,2\n", "cannot be read as csv: 'utf-8' codec"),
    ],
)
def test_bad_tables(tmp_path, text, why):
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=why) as told:
        reader(tmp_path, "a.csv").read(key())
    assert str(tmp_path / "a.csv") in str(told.value)


def test_damaged_files(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"x,y\n" + b"1,2\n" * 9999)[:60])
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    for name in ("a.csv.gz", "a.parquet"):
        with pytest.raises(InputError, match="cannot be read as"):
            reader(tmp_path, name).read(key())
    with pytest.raises(InputError, match=r"none\.parquet: no such file"):
        reader(tmp_path, "none.parquet").read(key())


def test_a_byte_order_mark_and_windows_lines_are_no_harm(tmp_path):
    (tmp_path / "a.csv").write_bytes("x,y\r\n1,2\r\n\r\n3,4\r\n".encode("utf-8-sig"))
    assert centres(reader(tmp_path, "a.csv").read(key()).cells) == [[1, 2], [3, 4]]


def test_a_bad_row_spoils_its_own_site_alone(tmp_path):
    table = plate_table().astype({"Nuclei_Location_Center_Y": float})
    table.loc[5, "Nuclei_Location_Center_Y"] = np.nan
    for suffix, row in (("csv", 7), ("parquet", 6)):
        table.to_csv(tmp_path / "P1.csv", index=False) if suffix == "csv" else table.to_parquet(tmp_path / "P1.parquet")
        files = reader(tmp_path, "{plate}." + suffix)
        assert len(files.read(key()).cells) == 2
        with pytest.raises(InputError, match=f"row {row}: Nuclei_Location_Center_X, Nuclei_Location_Center_Y are"):
            files.read(key(well="A02"))


# --- the template
@pytest.mark.parametrize(
    "name", ["{field}", "{plate.__class__}", "{plate!r}", "{}", "{well", "{site:>99999}", "{site:02}", "{site:02d}"]
)
def test_other_fields_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"only \{plate\}, \{well\} and \{site\} are filled in"):
        reader(tmp_path, name + ".csv")


def test_wells_and_sites_as_files_are_named(tmp_path):
    (tmp_path / "B7_03.csv").write_text("x,y\n1,2\n")
    assert len(reader(tmp_path, "{well}_{site:0>2}.csv").read(key(well="B07", site="3")).cells) == 1


@pytest.mark.parametrize(
    ("locate", "why"),
    [
        ({"files": "{plate}.txt"}, "locate: files '{plate}.txt': the suffix must be one of .csv"),
        ({"x": "col"}, "locate: x and y go together"),
        (
            {"files": "{plate}.csv", "labels": True},
            "locate: labels: '{plate}.csv' holds centres; label images are .tif",
        ),
    ],
)
def test_settings_that_cannot_be_meant(fresh, locate, why):
    with pytest.raises(InputError) as told:
        configure(fresh.root, locate=locate)
    assert why in str(told.value)


# --- label images
def draw_labels(shape=(40, 60)):
    labels = np.zeros(shape, np.uint16)
    labels[10:15, 20:23] = 7
    labels[0:4, 0:4] = 3
    labels[30, 50] = 300
    return labels


@pytest.mark.parametrize(
    ("suffix", "dtype"), [("tif", np.uint16), ("tif", np.int32), ("tiff", np.float32), ("png", np.uint16)]
)
def test_labels_become_cells(tmp_path, suffix, dtype):
    import cv2

    labels = draw_labels().astype(dtype)
    path = tmp_path / f"A01.{suffix}"
    cv2.imwrite(str(path), labels) if suffix == "png" else tifffile.imwrite(path, labels, compression="zlib")
    cells, kept = reader(tmp_path, "{well}." + suffix).read(key())
    assert cells.to_dict("list") == {
        "x": [1.5, 21, 50],
        "y": [1.5, 12, 30],
        "area": [16, 15, 1],
        "border": [True, False, False],
    }
    assert [(kept == i + 1).sum() for i in range(3)] == [16, 15, 1]
    assert kept.max() == 3


@pytest.mark.parametrize("value", [1, 255])
def test_the_parts_of_a_mask_are_cells(tmp_path, value, caplog):
    mask = (draw_labels() > 0).astype(np.uint8) * value
    mask[15, 23] = value  # touches by a corner
    for well in ("A01", "A02"):
        tifffile.imwrite(tmp_path / f"{well}.tif", mask)
    files = reader(tmp_path, "{well}.tif")
    with caplog.at_level(logging.INFO, "deepprofile"):
        assert sorted(files.read(key()).cells["area"]) == [1, 16, 16]
        files.read(key(well="A02"))
    (record,) = caplog.records
    assert "A01.tif holds one value besides 0: a mask" in record.getMessage()


def test_one_cell_is_no_mask(tmp_path, caplog):
    tifffile.imwrite(tmp_path / "a.tif", (draw_labels() == 7).astype(np.uint8))
    with caplog.at_level(logging.INFO, "deepprofile"):
        assert len(reader(tmp_path, "a.tif").read(key()).cells) == 1
    assert not caplog.records


def test_an_empty_label_image_is_a_site_without_cells(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 4), np.uint16))
    cells, labels = reader(tmp_path, "a.tif").read(key())
    assert (len(cells), list(cells), labels.shape) == (0, ["x", "y", "area", "border"], (4, 4))


@pytest.mark.parametrize("wrong", [0.5, -1, np.nan, 2.0**25])
def test_what_is_no_label(tmp_path, wrong):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, wrong]], np.float32))
    with pytest.raises(InputError, match=r"a\.tif: not a label image: expected whole numbers from 0 \(background\)"):
        reader(tmp_path, "a.tif").read(key())


@given(st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=1, max_size=5))
def test_the_table_of_labels_is_that_of_regionprops(rows):
    from skimage.measure import regionprops

    names = np.array(rows)
    labels = np.unique(np.append(0, names), return_inverse=True)[1][1:].reshape(names.shape).astype(np.int32)
    table = label_table(labels)
    wanted = regionprops(labels)
    np.testing.assert_allclose(table[["y", "x"]], np.reshape([r.centroid for r in wanted], (-1, 2)))
    assert table["area"].tolist() == [r.area for r in wanted]


# --- x and y exchanged
BOX = (30, 50)  # height, width


def frame(xy):
    return pd.DataFrame(xy, columns=["x", "y"], dtype=float)


def test_sizes_are_looked_at_before_there_are_illumination_functions(fresh):
    plate_table().assign(Nuclei_Location_Center_X=120, Nuclei_Location_Center_Y=10).to_csv(fresh.root / "P1.csv")
    for row in site_rows(load_index(fresh)):
        write_images(fresh.root, row[PLATE], row[WELL], int(row[SITE]), np.random.default_rng(0).random((128, 96, 3)))
    study = configure(fresh.root, images={"size": None}, illumination={"method": "smooth"}, locate={"files": "P1.csv"})
    edit_index(fresh.root, lambda index: index[index[PLATE] == "P1"])
    ((what, why),) = locate_cells(study).skipped
    assert what == "P1 A01 site 1 and 11 more site(s)"
    assert "x and y seem exchanged" in why


def test_sites_left_out_for_their_images_are_taken_once_those_are_mended(fresh):
    rows = site_rows(load_index(fresh))
    images = {row["DNA"]: tifffile.imread(fresh.root / row["DNA"]) for row in rows}
    for row in rows:
        tifffile.imwrite(fresh.root / f"{row[PLATE]}_{row[WELL]}_{row[SITE]}.tif", np.ones((128, 128), np.uint8))
        tifffile.imwrite(fresh.root / row["DNA"], images[row["DNA"]][:100])
    study = configure(fresh.root, images={"size": None}, locate={"files": "{plate}_{well}_{site}.tif"})
    assert "labels of 128 x 128 pixels, the image is 100 x 128" in locate_cells(study).skipped[0][1]
    for name, image in images.items():
        tifffile.imwrite(fresh.root / name, image)
    told = locate_cells(study)
    assert (told.made, told.rows, told.skipped) == (12, 24, ())


def test_exchanged_words():
    assert exchanged(frame([(40, 20), (49, 29)]), BOX) == ""
    assert "all 2 fit the image (30 x 50, height x width) the other way round" in exchanged(
        frame([(20, 40), (5, 5)]), BOX
    )
    assert exchanged(frame([(20, 40), (5, 99)]), BOX) == ""  # off either way: in another unit, rather
    assert exchanged(frame([(20, 30)]), BOX) == ""  # rounded up, half a pixel off
    assert exchanged(frame([]), BOX) == ""


@given(st.lists(st.tuples(st.floats(-0.4, 49.4), st.floats(-0.4, 29.4)), min_size=1))
def test_whatever_fits_is_found_if_it_leaves_the_image_exchanged(xy):
    assert exchanged(frame(xy), BOX) == ""
    other = frame([(y, x) for x, y in xy])
    assert bool(exchanged(other, BOX)) == bool(off_image(other, BOX, 1.0).any())


def test_exchanged_sites_are_left_out_and_named(fresh):
    swapped = plate_table().rename(columns={"Nuclei_Location_Center_X": "y", "Nuclei_Location_Center_Y": "x"})
    swapped.loc[swapped[WELL] == "B01", "y"] = 120
    for plate in ("P1", "P2"):
        swapped.assign(Metadata_Plate=plate).to_csv(fresh.root / f"{plate}.csv", index=False)
    study = configure(fresh.root, images={"size": [96, 128]}, locate={"files": "{plate}.csv"})
    told = locate_cells(study)
    why = dict(told.skipped)
    assert list(why) == ["P1 B01 site 1 and 1 more site(s)", "P2 B01 site 1 and 1 more site(s)"]
    assert why["P1 B01 site 1 and 1 more site(s)"] == (
        f"{fresh.root / 'P1.csv'}: x and y seem exchanged: all 2 fit the image (96 x 128, height x width) the other "
        "way round; set locate.x and locate.y"
    )
    with pytest.raises(InputError, match="x and y seem exchanged"):
        locate_cells(study, strict=True)
    mended = configure(fresh.root, images={"size": [96, 128]}, locate={"files": "{plate}.csv", "x": "y", "y": "x"})
    assert locate_cells(mended).skipped == ()


def test_the_image_says_the_size_where_study_yaml_does_not(fresh):
    for plate in ("P1", "P2"):
        for row in site_rows(load_index(fresh)):
            if row[PLATE] == plate:
                image = tifffile.imread(fresh.root / row["DNA"])[:96]
                write_images(fresh.root, plate, row[WELL], int(row[SITE]), np.stack([image] * 3, axis=-1))
        plate_table(plate).assign(x=20, y=120)[[PLATE, WELL, SITE, "x", "y"]].to_csv(fresh.root / f"{plate}.csv")
    # one image is of another size, in which they fit
    write_images(fresh.root, "P1", "A02", 1, np.random.default_rng(0).integers(0, 99, (128, 128, 3)).astype(np.uint16))
    study = configure(fresh.root, images={"size": None}, locate={"files": "{plate}.csv"})
    told = locate_cells(study)
    assert told.rows == 2
    assert [what for what, _ in told.skipped] == [
        "P1 A01 site 1 and 10 more site(s)",
        "P2 A01 site 1 and 11 more site(s)",
    ]
    assert "x and y seem exchanged: all 2 fit the image (96 x 128" in told.skipped[0][1]
    problems = [p for p in check_study(study) if "exchanged" in p.what]
    assert len(problems) == 23


# --- in a study
def test_a_missing_plate_file_is_one_problem(fresh):
    plate_table().to_csv(fresh.root / "P1.csv")
    study = configure(fresh.root, locate={"files": "{plate}.csv"})
    told = locate_cells(study)
    assert told.rows == 24
    assert told.skipped == (("P2 A01 site 1 and 11 more site(s)", f"{fresh.root / 'P2.csv'}: no such file"),)
    problems = [p for p in check_study(study) if "P2.csv" in p.what]
    assert [p.place for p in problems] == ["P2 A01 site 1 and 11 more site(s)"]
    plate_table("P2").to_csv(fresh.root / "P2.csv")
    again = locate_cells(study)
    assert (again.made, again.kept, again.rows, again.skipped) == (6, 6, 48, ())


def test_a_site_that_the_index_gains_is_looked_up_in_the_same_file(fresh):
    for plate in ("P1", "P2"):
        plate_table(plate).to_csv(fresh.root / f"{plate}.csv")
    index = pd.read_csv(fresh.root / "index.csv")
    index[(index["Metadata_Well"] != "A01") | (index["Metadata_Site"] == 1)].to_csv(
        fresh.root / "index.csv", index=False
    )
    study = configure(fresh.root, locate={"files": "{plate}.csv"})
    assert locate_cells(study).rows == 44
    index.to_csv(fresh.root / "index.csv", index=False)
    told = locate_cells(read_study(fresh.root))
    assert (told.made, told.rows) == (2, 48)


def test_another_object_runs_again(fresh):
    for plate in ("P1", "P2"):
        plate_table(plate).assign(Cells_Location_Center_X=1, Cells_Location_Center_Y=2).to_csv(
            fresh.root / f"{plate}.csv"
        )
    files = {"files": "{plate}.csv"}
    locate_cells(configure(fresh.root, locate=files))
    cells = configure(fresh.root, locate={**files, "object": "Cells"})
    assert locate_cells(cells).made == 12
    table = plate_locations(cells, "P1").read("A01").to_pandas()
    assert table[[X, Y]].to_numpy().tolist() == [[1, 2]] * 4
    assert table[CELL].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("missing", [None, ""])
def test_rows_without_a_key_belong_to_no_site(tmp_path, missing):
    table = plate_table().astype({SITE: object})
    table.loc[0, SITE] = missing
    table[SITE] = table[SITE].map(lambda v: v if v is None or v == "" else str(v))
    table.to_parquet(tmp_path / "P1.parquet")
    assert centres(reader(tmp_path, "{plate}.parquet").read(key()).cells) == [[0, 11]]


# --- golden: real exports
def at(plate, well, site):
    return {PLATE: plate, WELL: well, SITE: site}


@pytest.mark.data
def test_csvs_of_cellprofiler(data):
    folder = data / "cellprofiler_exports"
    files = reader(data, folder / "{plate}/analysis/{plate}-{well}-{site}/Nuclei.csv")
    counts = [len(files.read(at("BR00121431", well, "1")).cells) for well in ("A01", "A02")]
    assert counts == [89, 36]
    first = files.read(at("BR00121431", "A01", "1")).cells.iloc[0]
    assert first.round(3).to_dict() == {"x": 119.569, "y": 27.079, "area": 850}
    with pytest.raises(InputError, match=r"BR00121431-A01-2/Nuclei\.csv: no such file"):
        files.read(at("BR00121431", "A01", "2"))
    shared = reader(data, folder / "{plate}/analysis/BR00121431-A01-1/Cells.csv", object="Cells")  # by its Image.csv
    assert len(shared.read(at("BR00121431", "A01", "1")).cells) == 89
    with pytest.raises(InputError, match="its Image table has no plate BR00121431 well A02 site 1"):
        shared.read(at("BR00121431", "A02", "1"))


@pytest.mark.data
def test_databases_of_cellprofiler(data):
    lincs = "cellprofiler_exports/test_{plate}.sqlite"
    nuclei = [reader(data, lincs).read(at("SQ00014613", "A01", site)).cells for site in "12"]
    assert [cells.round(2).iloc[0].tolist() for cells in nuclei] == [[290.49, 39.89, 2100], [839.2, 53.86, 2903]]
    whole = reader(data, lincs, object="Cells").read(at("SQ00014613", "A01", "1")).cells
    assert whole.round(2).iloc[0].tolist() == [268.16, 31.02, 5708]
    jump = reader(data, "jump_metadata/test_{plate}.sqlite")
    pilot = [jump.read(at("BR00126114", "A01", site)).cells for site in "12"]
    assert [len(cells) for cells in pilot] == [10, 10]
    assert pilot[0].round(2).iloc[0].tolist() == [943.51, 182.79]


@pytest.mark.data
@pytest.mark.parametrize("suffix", ["csv.gz", "parquet"])
def test_a_merged_table_without_sites_is_refused(data, suffix):
    sites = [("SQ00014613", "A01", "1"), ("SQ00014613", "A01", "2")]
    template = "cellprofiler_exports/test_{plate}." + suffix
    with pytest.raises(InputError, match="2 sites share this file"):
        reader(data, template, *sites).read(at(*sites[0]))
    with pytest.raises(InputError, match=r"of 2 images \(ImageNumber 1, 2\)"):
        reader(data, template, sites[0]).read(at(*sites[0]))


@pytest.mark.data
def test_a_cytotable_table(data):
    folder = next((data / "cytotable").glob("**/joined_profiles/data"))
    (name,) = folder.glob("*.parquet")
    assert len(reader(data, name).read(key()).cells) == 289


NF1 = [("B07", "3", 28), ("D06", "2", 27), ("D07", "1", 29), ("F07", "2", 25), ("H12", "1", 23)]


@pytest.mark.data
@pytest.mark.parametrize(("well", "site", "n"), NF1)
def test_cellprofiler_counts_pixels_from_zero(data, well, site, n):
    """Its centres are the centroids of its own masks; where these lack or have a few pixels more, under 0.04 px off."""
    row = at("Plate_2", well, site)
    masks = reader(data, "nf1_plate2/masks/{well}_01_1_{site}_DAPI_001_MaskNuclei.tiff").read(row).cells
    assert len(masks) == n
    table = reader(data, "nf1_plate2/{plate}_with_image_data_shrunken.parquet").read(row).cells
    assert len(table) == 1
    x, y, area = table.iloc[0]
    distance = np.hypot(masks["x"] - x, masks["y"] - y)
    assert distance.min() < 0.04
    assert masks["area"][distance.argmin()] == pytest.approx(area, rel=0.01)
    if well == "D07":
        assert distance.min() < 1e-9
        assert masks["area"][distance.argmin()] == area


@pytest.mark.data
def test_instance_masks(data):
    table = pd.read_csv(data / "dsb2018_nuclei" / "index.csv")
    for name, n in zip(table["image_id"], table["n_masks"], strict=True):
        labels, mask = read_label_image(data / "dsb2018_nuclei" / "masks" / f"{name}.tif")
        assert (len(label_table(labels)), mask) == (n, False)
