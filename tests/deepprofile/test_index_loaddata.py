"""LoadData tables, plate maps and compound tables of the Cell Painting Gallery, and paths of other machines."""

import logging

import numpy as np
import pandas as pd
import pytest
import tifffile

from cytominer_tools.errors import InputError
from cytominer_tools.tables import write_table
from deepprofile.checks import check_study
from deepprofile.index import load_index, other_machine, read_index
from deepprofile.loaddata import image_column, image_names
from deepprofile.problems import problem_lines
from deepprofile.study import read_study
from deepprofile.template import init_study

PLATE, WELL, SITE = "Metadata_Plate", "Metadata_Well", "Metadata_Site"
S3 = "s3://cellpainting-gallery/cpg0016-jump/source_4/images/B1"


def load_data(*sites, folder="/home/ubuntu/bucket/P1", kind="Path"):
    """A LoadData table of two channels with illumination functions, from "P1 A01 1" strings."""
    keys = [site.split() for site in sites]
    table = pd.DataFrame(keys, columns=[PLATE, WELL, SITE])
    for stem in ("OrigDNA", "OrigER", "IllumDNA"):
        names = [f"{'_'.join(key)}_{stem}{'.npy' if 'Illum' in stem else '.tif'}" for key in keys]
        if kind == "Path":
            table[f"FileName_{stem}"], table[f"PathName_{stem}"] = names, folder
        else:
            table[f"URL_{stem}"] = [f"{folder}/{name}" for name in names]
    return table


def study(folder, table=None, images="index: index.csv", channels="{DNA: OrigDNA, ER: OrigER}", more=""):
    if table is not None:
        write_table(table, folder / "index.csv")
    (folder / "study.yaml").write_text(f"images: {{{images}}}\nchannels: {channels}\n{more}\n", "utf-8")
    return read_study(folder)


def words(problems, level="warning"):
    return [problem.what for problem in problems if problem.level == level]


# --- LoadData
@pytest.mark.parametrize("folder", ["/home/ubuntu/bucket/P1", "/home/ubuntu/bucket/P1/", f"{S3}/P1"])
def test_path_and_file_name_make_a_path(folder, tmp_path):
    index = load_index(study(tmp_path, load_data("P1 A01 1", folder=folder)))
    assert index.columns.tolist() == [PLATE, WELL, SITE, "DNA", "ER"]  # paths are no metadata
    assert index["DNA"].tolist() == [f"{folder.rstrip('/')}/P1_A01_1_OrigDNA.tif"]


def test_the_url_comes_first_and_may_be_absent_in_a_row():
    table = load_data("P1 A01 1", "P1 A02 1", "P1 A03 1")
    table["URL_OrigDNA"] = [f"{S3}/a.tif", None, "file:///home/u/a%20b.tif"]
    table.loc[1, "FileName_OrigER"] = None
    assert image_names(table) == ["OrigDNA", "OrigER", "IllumDNA"]
    assert image_column(table, "OrigDNA").tolist() == [
        f"{S3}/a.tif",
        "/home/ubuntu/bucket/P1/P1_A02_1_OrigDNA.tif",
        "/home/u/a b.tif",
    ]
    assert image_column(table, "OrigER")[1] == ""  # a folder alone is no image
    assert image_column(table, "IllumDNA")[0] == "/home/ubuntu/bucket/P1/P1_A01_1_IllumDNA.npy"


def test_a_channel_that_load_data_does_not_have(tmp_path):
    with pytest.raises(InputError, match=r"no column 'OrigDAPI', is it 'OrigDNA'\?; `channels` in"):
        load_index(study(tmp_path, load_data("P1 A01 1"), channels="{DNA: OrigDAPI}"))


def test_a_file_name_alone_is_said_to_miss_its_folder(tmp_path):
    index, problems = read_index(study(tmp_path, load_data("P1 A01 1"), channels="{DNA: FileName_OrigDNA}"))
    assert words(problems) == ["FileName_OrigDNA is read without PathName_OrigDNA; write OrigDNA to use both"]
    assert index["DNA"].tolist() == ["P1_A01_1_OrigDNA.tif"]


def test_a_plane_is_chosen_after_the_name(tmp_path):
    index = load_index(study(tmp_path, load_data("P1 A01 1"), channels="{DNA: OrigDNA#c=0, ER: 'OrigDNA#c=1&z=max'}"))
    assert index["ER"].tolist() == ["/home/ubuntu/bucket/P1/P1_A01_1_OrigDNA.tif#c=1&z=max"]


def test_a_table_per_plate(tmp_path):
    for plate in ("P-2", "P-1"):
        write_table(load_data(f"{plate} A01 1"), tmp_path / "csv" / plate / "load_data.csv")
    made = study(tmp_path, images="index: csv/*/load_data.csv")
    assert load_index(made)[PLATE].tolist() == ["P-1", "P-2"]
    write_table(load_data("P-1 B99 1", "P-1 ZZZ 1"), tmp_path / "csv/P-2/load_data.csv")
    with pytest.raises(InputError, match=r"P-2/load_data\.csv row 3: 'ZZZ' is not a well"):
        load_index(made)
    write_table(load_data("P-1 B01 1").assign(Metadata_x=1), tmp_path / "csv/P-2/load_data.csv")
    with pytest.raises(
        InputError, match=r"P-2/load_data\.csv: its columns are not those of .*; one alone has 'Metadata_x"
    ):
        load_index(made)
    with pytest.raises(InputError, match=r"no/\*\.csv: no such file"):
        load_index(study(tmp_path, images="index: no/*.csv"))


# --- roots of other machines
@pytest.mark.parametrize(
    ("folder", "roots", "expected"),
    [
        ("/home/ubuntu/bucket/P1", "{/home/ubuntu/bucket/: /data/jump/}", "/data/jump/P1/"),
        ("/home/ubuntu/bucket/P1", "{/home/ubuntu/bucket: raw, /home: no}", "raw/P1/"),
        ("/home/ubuntu/bucket2/P1", "{/home/ubuntu/bucket: raw}", "/home/ubuntu/bucket2/P1/"),
        (r"C:\Plates\P 1", r"{'C:\plates': plates}", "plates/P 1/"),
        (r"\\server\share\P1", r"{'\\server\share\': ''}", "P1/"),
        (f"{S3}/P1", f"{{'{S3}/': /mnt/gallery}}", "/mnt/gallery/P1/"),
        ("C:/a/P1", "{D:/a: x}", "C:/a/P1/"),
        (r"sub\P1", "{}", "sub/P1/"),
    ],
)
def test_roots(folder, roots, expected, tmp_path):
    made = study(tmp_path, load_data("P1 A01 1", folder=folder), images=f"index: index.csv, roots: {roots}")
    assert load_index(made)["DNA"].tolist() == [f"{expected}P1_A01_1_OrigDNA.tif"]


def test_paths_of_another_machine_are_one_problem(tmp_path):
    table = load_data("P1 A01 1", "P1 A02 1")
    made = study(tmp_path, table)
    (problem,) = other_machine(made, load_index(made))
    assert problem.what == (
        "4 of 4 image paths start with /home/ubuntu/bucket/P1/, where this machine has no such folder "
        "(/home/ubuntu/bucket/P1); say where they are with images.roots: {'/home/ubuntu/bucket/P1/': 'folder/'}"
    )
    lines = problem_lines(check_study(made))
    assert sum("no such image" in line for line in lines) == 4
    (tmp_path / "here").mkdir()
    made = study(tmp_path, table, images="index: index.csv, roots: {/home/ubuntu/bucket/P1: here}")
    assert other_machine(made, load_index(made)) == []
    urls = study(tmp_path, load_data("P1 A01 1", folder=S3))
    assert other_machine(urls, load_index(urls)) == []


def test_thousands_of_missing_files_do_not_hide_one_flat_image(tmp_path):
    sites = [f"P1 A01 {i}" for i in range(1500)]
    table = load_data(*sites, folder="raw")
    (tmp_path / "raw").mkdir()
    tifffile.imwrite(tmp_path / "raw" / "P1_A01_7_OrigER.tif", np.full((8, 8), 3, np.uint16))
    lines = problem_lines(p for p in check_study(study(tmp_path, table)) if p.level == "error")
    missing = [line for line in lines if "no such image" in line]
    assert len(missing) == 11
    assert missing[-1] == "... and 2989 more like it, 2999 in all: no such image"
    assert any("is flat, every pixel is 3" in line for line in lines)


def test_a_query_that_cannot_be_answered_is_said_before_the_run(tmp_path):
    table = load_data("P1 A01 1").assign(Metadata_Dose=[1.5])
    places = []
    for query in ("Metadata_Dos > 1", "Metadata_Dose > 1 and Metadata_Count > 10"):
        made = study(tmp_path, table, more=f"scores: {{select: '{query}'}}")
        places += [str(p) for p in check_study(made) if "scores" in p.place]
    (said,) = places
    assert said.startswith("study.yaml scores.select: query 'Metadata_Dos > 1': no column 'Metadata_Dos'")


# --- plate maps
def platemaps(folder, maps="plate,name\n", separator="\t"):
    (folder / "platemap").mkdir(exist_ok=True)
    rows = "Assay_Plate_Barcode,Plate_Map_Name\n" + "".join(f"P{i},map_{'ab'[i % 2]}\n" for i in (1, 2, 3))
    (folder / "barcode_platemap.csv").write_text(rows)
    for name in "ab":
        lines = [["well_position", "broad_sample", "solvent"], ["A01", f"BRD-{name}1", "DMSO"], ["a2", "", "DMSO"]]
        text = "\n".join(separator.join(line) for line in lines)
        (folder / f"platemap/map_{name}.txt").write_text(f"\ufeff{text}\n", "utf-8")
    return "index: index.csv, platemaps: {barcodes: barcode_platemap.csv, folder: platemap}"


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
def test_a_map_for_each_plate(separator, tmp_path):
    images = platemaps(tmp_path, separator=separator)
    index = load_index(study(tmp_path, load_data("P1 A01 1", "P1 A02 1", "P2 A01 1"), images=images))
    assert index["Metadata_Plate_Map_Name"].tolist() == ["map_b", "map_b", "map_a"]
    assert index["Metadata_broad_sample"].fillna("").tolist() == ["BRD-b1", "", "BRD-a1"]
    assert index["Metadata_solvent"].tolist() == ["DMSO"] * 3


def test_barcodes_that_are_numbers_beside_an_empty_row(tmp_path):
    images = platemaps(tmp_path)
    (tmp_path / "barcode_platemap.csv").write_text("Assay_Plate_Barcode,Plate_Map_Name\n41744,map_a\n,map_b\n,map_a\n")
    index = load_index(study(tmp_path, load_data("41744 A01 1"), images=images))
    assert index["Metadata_broad_sample"].tolist() == ["BRD-a1"]


def test_plates_without_a_map_are_named(tmp_path):
    images = platemaps(tmp_path)
    table = load_data("P1 A01 1", "P1 A02 1", *(f"X-{i:02d} A01 1" for i in range(12)))
    with pytest.raises(InputError) as told:
        load_index(study(tmp_path, table, images=images))
    assert "no plate map for 12 of 13 plates: X-00, X-01, X-02, X-03, X-04, X-05, X-06, X-07, X-08, X-09 and 2" in str(
        told.value
    )
    (tmp_path / "platemap/map_b.txt").unlink()
    with pytest.raises(InputError, match=r"no file map_b\.txt, \.tsv or \.csv, the map of P1, P3"):
        load_index(study(tmp_path, load_data("P1 A01 1", "P3 A01 1", "P2 A01 1"), images=images))


def test_wells_that_a_map_lacks_are_named(tmp_path):
    images = platemaps(tmp_path)
    _, problems = read_index(study(tmp_path, load_data("P1 A01 1", "P1 B07 1", "P1 B07 2"), images=images))
    assert words(problems) == [
        "no row of it has the plate and well of 1 of 2 wells: P1 B07",
        "1 of its 2 rows are not used, plate and well P1 A02",
    ]


@pytest.mark.parametrize(
    ("barcodes", "said"),
    [
        ("Assay_Plate_Barcode,Plate_Map_Name\nP1,a\nP1,b\n", "plate P1 has more than one map; keep one row a plate"),
        ("Barcode,Plate_Map_Name\nP1,a\n", "no column 'Metadata_Plate'; it has Metadata_Barcode"),
        ("Assay_Plate_Barcode,map\nP1,a\n", "no column 'Metadata_Plate_Map_Name'"),
    ],
)
def test_barcodes_that_do_not_work(barcodes, said, tmp_path):
    images = platemaps(tmp_path)
    (tmp_path / "barcode_platemap.csv").write_text(barcodes)
    with pytest.raises(InputError, match=said):
        load_index(study(tmp_path, load_data("P1 A01 1"), images=images))


def test_maps_that_do_not_work(tmp_path):
    images = platemaps(tmp_path)
    (tmp_path / "platemap/map_b.txt").write_text("well_position\tx\nA01\t1\nA1\t2\n")
    with pytest.raises(InputError, match=r"map_b\.txt: well A1 stands in it more than once; keep one row a well"):
        load_index(study(tmp_path, load_data("P1 A01 1"), images=images))
    (tmp_path / "platemap/map_b.txt").write_text("position\tx\nA01\t1\n")
    with pytest.raises(InputError, match=r"map_b\.txt: no column 'Metadata_Well'; it has Metadata_position"):
        load_index(study(tmp_path, load_data("P1 A01 1"), images=images))


# --- compound tables
def test_a_table_of_compounds_names_what_it_loses(tmp_path, caplog):
    images = platemaps(tmp_path)
    compounds = "broad_sample\tpert_iname\tsolvent\nBRD-b1\taspirin\twater\n\tDMSO\tDMSO\nBRD-x\tx\tx\nBRD-y\ty\ty\n"
    (tmp_path / "compounds.tsv").write_text(compounds)
    entry = "metadata: [{table: compounds.tsv, on: [broad_sample]}]"
    made = study(tmp_path, load_data("P1 A01 1", "P1 A02 1", "P2 A01 1"), images=f"{images}, {entry}")
    index, problems = read_index(made)
    # a well without a compound gets the row without one, as pandas and the Gallery's own scripts do
    assert index["Metadata_pert_iname"].fillna("none").tolist() == ["aspirin", "DMSO", "none"]
    assert index["Metadata_solvent"].tolist() == ["DMSO"] * 3
    assert [w for p, w in zip(problems, words(problems), strict=True) if p.place.endswith("compounds.tsv")] == [
        "no row of it has the broad_sample of 1 of 3 wells: P2 A01",
        "2 of its 4 rows are not used, broad_sample BRD-x, BRD-y",
        "its Metadata_solvent differs from that of the index in 1 of 3 rows and is not used",
    ]
    with caplog.at_level(logging.INFO, logger="deepprofile"):
        load_index(made)
        assert caplog.text == ""
        load_index(made, tell=True)
    (record,) = caplog.records
    assert "no row of it has the broad_sample of 1 of 3 wells: P2 A01; " in record.message


def test_tables_that_cannot_be_joined(tmp_path):
    table = load_data("P1 A01 1").assign(Metadata_dose=[1])
    (tmp_path / "t.csv").write_text("dose,x\n1,a\n1,b\n")

    def told(said, on):
        with pytest.raises(InputError, match=said):
            load_index(study(tmp_path, table, images=f"index: index.csv, metadata: [{{table: t.csv, on: [{on}]}}]"))

    told(r"t\.csv: dose 1 stands in it more than once; keep one row a dose", "Metadata_dose")
    told("the index and what was joined before: no column 'Metadata_y'", "y")
    told(r"t\.csv: no column 'Metadata_Plate'", "plate")


def test_numbers_and_text_are_the_same_key(tmp_path):
    table = load_data("P1 A01 1", "P1 A02 1").assign(Metadata_id=["7", "x"])
    (tmp_path / "t.csv").write_text("id,name\n7,seven\n8,eight\n")
    entry = "index: index.csv, metadata: [{table: t.csv, on: [id]}]"
    assert load_index(study(tmp_path, table, images=entry))["Metadata_name"].fillna("").tolist() == ["seven", ""]


def test_a_table_of_plates(tmp_path):
    (tmp_path / "t.csv").write_text("Assay_Plate_Barcode,Cell_type\nP1,A549\nP2,U2OS\n")
    made = study(tmp_path, load_data("P2 A01 1", "P1 A01 1"), images="index: index.csv, metadata: [t.csv]")
    assert load_index(made)["Metadata_Cell_type"].tolist() == ["A549", "U2OS"]


# --- files as laboratories have them
def test_semicolons_a_bom_and_names_that_are_not_ascii(tmp_path):
    text = "Metadata_Plate;Metadata_Well;Metadata_Site;DNA;ER;Wirkstoff\nPlatte-ä;a1;1;ä/DNA.tif;ä/ER.tif;Größe, 5\n"
    (tmp_path / "index.csv").write_bytes(text.encode("utf-8-sig"))
    index = load_index(study(tmp_path, channels="{DNA: DNA, ER: ER}"))
    assert index.iloc[0].tolist() == ["Platte-ä", "A01", "1", "Größe, 5", "ä/DNA.tif", "ä/ER.tif"]
    (tmp_path / "index.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"index\.csv: cannot be read as csv: it is not UTF-8; save it as UTF-8"):
        load_index(study(tmp_path))


def test_a_header_separated_otherwise_than_its_rows(tmp_path):
    (tmp_path / "index.csv").write_text("Metadata_Plate,Metadata_Well,DNA,ER\nP;A01;a.tif;b.tif\n")
    with pytest.raises(InputError, match="its header is separated by commas and the rows by semicolons; separate both"):
        load_index(study(tmp_path, channels="{DNA: DNA, ER: ER}"))


def test_duplicate_sites_in_load_data(tmp_path):
    with pytest.raises(InputError, match=r"row 3: site P1 A01 1 stands in an earlier row too; remove one"):
        load_index(study(tmp_path, load_data("P1 A01 1", "P1 a1 1")))


# --- init
def test_init_from_load_data_and_the_gallery_s_metadata(tmp_path):
    platemaps(tmp_path)
    (tmp_path / "compounds.tsv").write_text("broad_sample\tcontrol_type\nBRD-b1\t\n\tnegcon\nBRD-a1\t\n")
    write_table(load_data("P1 A01 1", "P1 A02 1", folder=S3), tmp_path / "load_data.csv")
    metadata = [tmp_path / "compounds.tsv"]
    path = init_study(tmp_path / "new", index=tmp_path / "load_data.csv", platemaps=tmp_path, metadata=metadata)
    made = read_study(path)
    assert made.channels == {"DNA": "OrigDNA", "ER": "OrigER"}
    assert made.columns.compound == "Metadata_broad_sample"
    assert made.controls == "Metadata_control_type == 'negcon'"
    assert made.images.metadata[0].on == ("Metadata_broad_sample",)
    assert load_index(made)["Metadata_control_type"].tolist()[1] == "negcon"
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"odd\.csv: none of its columns \(a, b\) is one of the index"):
        init_study(tmp_path / "odd", index=tmp_path / "load_data.csv", metadata=tmp_path / "odd.csv")


# --- real data
@pytest.mark.data
def test_the_jump_pilot(data, tmp_path):
    folder = data / "jump_metadata"
    loaded = folder / "test_BR00126114_load_data_with_illum.parquet"
    table = pd.read_parquet(loaded).assign(Metadata_Plate="BR00116991")  # a plate of the pilot's maps
    table.to_parquet(tmp_path / "load_data.parquet")
    wells = [f"{row}{column:02d}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)]
    whole = pd.concat([table.iloc[:1].assign(Metadata_Well=well) for well in wells])
    whole.to_parquet(tmp_path / "plate.parquet")
    (tmp_path / "maps").mkdir()
    for name in ("barcode_platemap.csv", "JUMP-Target-1_compound_platemap.txt"):
        (tmp_path / "maps" / name).write_bytes((folder / name).read_bytes())
    compounds = folder / "JUMP-Target-1_compound_metadata_targets.tsv"
    made = init_study(
        tmp_path / "study", index=tmp_path / "plate.parquet", platemaps=tmp_path / "maps", metadata=compounds
    )
    read = read_study(made)
    assert sorted(read.channels.values()) == ["OrigAGP", "OrigDNA", "OrigER", "OrigMito", "OrigRNA"]
    assert read.controls == "Metadata_control_type == 'negcon'"
    index, problems = read_index(read)
    assert words(problems, "error") == []
    assert len(index) == 384
    assert (index["Metadata_control_type"] == "negcon").sum() == 64
    assert index["Metadata_pert_iname"].notna().all()
    start = "s3://cellpainting-gallery/cpg0016-jump/source_4/images/2021_08_23_Batch12/images/BR00126114__"
    assert index["DNA"].iloc[0].startswith(start)
    assert index["DNA"].iloc[0].endswith("-Measurement1/Images/r01c01f01p01-ch5sk1fk1fl1.tiff")
    assert not [name for name in index.columns if "FileName" in name or "PathName" in name]


@pytest.mark.data
def test_the_jump_plate_is_in_no_map_of_the_pilot(data, tmp_path):
    folder = data / "jump_metadata"
    images = (
        f"index: {folder}/test_BR00126114_load_data_with_illum.parquet, "
        f"platemaps: {{barcodes: {folder}/barcode_platemap.csv, folder: {folder}}}"
    )
    with pytest.raises(InputError, match=r"no plate map for 1 of 1 plates: BR00126114; add them"):
        load_index(study(tmp_path, images=images))


@pytest.mark.data
def test_a_load_data_table_of_the_image_that_is_here(data, tmp_path):
    table = load_data("BR00116991 A01 1", folder="/home/ubuntu/bucket/BR00116991")
    for stem, channel in (("OrigDNA", 5), ("OrigER", 4)):
        table[f"FileName_{stem}"] = f"r01c01f01p01-ch{channel}sk1fk1fl1.tiff"
    there = (data / "cpg0000_BR00116991" / "A01-1").resolve()
    made = study(tmp_path, table, images=f"index: index.csv, roots: {{/home/ubuntu/bucket/BR00116991: {there}}}")
    assert [p for p in check_study(made) if p.level == "error" and "control" not in p.place] == []
