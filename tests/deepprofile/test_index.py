import pandas as pd
import pytest

from cytominer_tools.errors import InputError
from cytominer_tools.tables import write_table
from deepprofile.images import read_site
from deepprofile.index import constant_metadata, load_index, read_index, sites_by_well, write_index
from deepprofile.patterns import PRESETS, guess_pattern, scan_folder
from deepprofile.sites import site_paths
from deepprofile.study import read_study

PLATE, WELL, SITE = "Metadata_Plate", "Metadata_Well", "Metadata_Site"


def rows(*sites, **more):
    """Index rows from "P1 A01 1" strings."""
    keys = [site.split() for site in sites]
    paths = {channel: [f"{'_'.join(key)}_{channel}.tif" for key in keys] for channel in ("DNA", "ER")}
    return pd.DataFrame(
        {PLATE: [k[0] for k in keys], WELL: [k[1] for k in keys], SITE: [k[2] for k in keys], **paths, **more}
    )


def study(folder, table=None, images="index: index.csv", channels="{DNA: DNA, ER: ER}", more=""):
    if table is not None:
        write_table(table, folder / "index.csv")
    (folder / "study.yaml").write_text(f"images: {{{images}}}\nchannels: {channels}\n{more}\n")
    return read_study(folder)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


def keys(table):
    return [" ".join(key) for key in table[[PLATE, WELL, SITE]].itertuples(index=False)]


# --- our own table
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_table_with_a_row_per_site(suffix, tmp_path):
    table = rows("0012 b2 1", "0012 A1 2", "0012 a01 1", Metadata_Compound=["0012", "NA", "x"], Dose=[1.5, 2, 3])
    write_table(table, tmp_path / f"index{suffix}")
    index = load_index(study(tmp_path, images=f"index: index{suffix}"))
    assert index.columns.tolist() == [PLATE, WELL, SITE, "Metadata_Compound", "Metadata_Dose", "DNA", "ER"]
    assert keys(index) == ["0012 A01 1", "0012 A01 2", "0012 B02 1"]
    assert index["Metadata_Compound"].tolist() == ["x", "NA", "0012"]
    assert index["Metadata_Dose"].tolist() == [3, 2, 1.5]
    assert index["DNA"].tolist() == ["0012_a01_1_DNA.tif", "0012_A1_2_DNA.tif", "0012_b2_1_DNA.tif"]


def test_an_unprefixed_identifier_keeps_its_zeros(tmp_path):
    index = load_index(study(tmp_path, rows("P A01 1", "P A02 1", compound=["0012", "NA"])))
    assert index["Metadata_compound"].tolist() == ["0012", "NA"]


def test_keys_that_are_numbers_in_parquet_are_text(tmp_path):
    table = rows("1 A01 1", "1 A01 2").assign(**{PLATE: [7, 7], SITE: [10, 9]})
    table.to_parquet(tmp_path / "index.parquet")
    assert keys(load_index(study(tmp_path, images="index: index.parquet"))) == ["7 A01 9", "7 A01 10"]


def test_site_10_comes_after_site_9(tmp_path):
    index = load_index(study(tmp_path, rows("P A10 10", "P A10 9", "P A09 1", "P A10 1", "O B01 1")))
    assert keys(index) == ["O B01 1", "P A09 1", "P A10 1", "P A10 9", "P A10 10"]


def test_a_channel_has_the_name_that_the_study_gives_it(tmp_path):
    table = rows("P A01 1").rename(columns={"DNA": "FileName_DNA"})
    made = study(tmp_path, table, channels="{nuclei: FileName_DNA}", images="index: index.csv, root: ../raw")
    index = load_index(made)
    assert "nuclei" in index
    assert "FileName_DNA" not in index
    assert site_paths(made, index.iloc[0]) == {"nuclei": str(tmp_path.resolve().parent / "raw" / "P_A01_1_DNA.tif")}


def test_without_sites_a_well_is_one_image(tmp_path):
    table = rows("P A01 1", "P A02 1").drop(columns=SITE)
    assert keys(load_index(study(tmp_path, table))) == ["P A01 1", "P A02 1"]
    with pytest.raises(InputError, match=r"row 4: site P A01 1 stands in an earlier row too; remove one"):
        load_index(study(tmp_path, pd.concat([table, table.iloc[:1]])))


# --- what keeps a table from being an index
def test_every_problem_is_listed_with_its_row(tmp_path):
    table = rows("P A01 1", "P AAA1 1", "P A02 1", "P A2 1", "P A03 1")
    table.loc[4, [PLATE, SITE]] = ""
    with pytest.raises(InputError) as caught:
        load_index(study(tmp_path, table, more="columns: {moa: Metadata_MOA}"))
    place = f"{(tmp_path / 'index.csv').resolve()} row"
    assert str(caught.value).split("\n  ") == [
        "the index has 5 problem(s)",
        f"study.yaml columns.moa: no column 'Metadata_MOA' in {place[:-4]}; it has {PLATE}, {WELL}, {SITE}",
        f"{place} 3: 'AAA1' is not a well such as A01",
        f"{place} 6: Metadata_Plate is empty",
        f"{place} 6: Metadata_Site is empty",
        f"{place} 5: site P A02 1 stands in an earlier row too; remove one",
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_keys_that_are_missing(suffix, tmp_path):
    table = rows("P A01 1", "P A02 1")
    table.loc[1, [PLATE, WELL, SITE]] = None
    write_table(table, tmp_path / f"i{suffix}")
    _, problems = read_index(study(tmp_path, images=f"index: i{suffix}"))
    said = [str(problem).split("row ")[1] for problem in problems]
    assert said == ["3: '' is not a well such as A01", "3: Metadata_Plate is empty", "3: Metadata_Site is empty"]


def test_many_problems_are_counted(tmp_path):
    with pytest.raises(InputError) as caught:
        load_index(study(tmp_path, rows(*[f"P well{i} 1" for i in range(30)])))
    said = str(caught.value).split("\n  ")
    assert (said[0], len(said)) == ("the index has 30 problem(s)", 12)
    assert said[-1] == "... and 20 more like it, 30 in all: 'well0' is not a well such as A01"


def test_a_channel_that_is_no_column(tmp_path):
    with pytest.raises(InputError, match=r"no column 'DNa', is it 'DNA'\?; no column 'Tubulin'; `channels` in"):
        load_index(study(tmp_path, rows("P A01 1"), channels="{a: DNa, b: Tubulin, c: ER}"))


def test_plate_and_well_are_needed(tmp_path):
    table = rows("P A01 1").drop(columns=[PLATE, WELL])
    write_table(pd.DataFrame({WELL: ["A01"], "x": [1]}), tmp_path / "map.csv")
    for images in ("index: index.csv", "index: index.csv, metadata: [map.csv]"):
        with pytest.raises(
            InputError, match=r"index\.csv: no column 'Metadata_Plate', 'Metadata_Well'; it has Metadata_Site"
        ):
            load_index(study(tmp_path, table, images=images))


def test_a_site_without_an_image_is_a_warning(tmp_path):
    table = rows("P A01 1", "P A02 1")
    table.loc[1, "ER"] = None
    index, problems = read_index(study(tmp_path, table))
    assert [(p.level, p.what) for p in problems] == [("warning", "no image for channel ER; this site is left out")]
    assert index["ER"].tolist() == ["P_A01_1_ER.tif", ""]
    assert len(load_index(study(tmp_path))) == 2


def test_a_concentration_with_text_in_it(tmp_path):
    table = rows("P A01 1", "P A02 1", "P A03 1", Metadata_Dose=["1", "10 uM", None])
    with pytest.raises(InputError, match=r"1 problem\(s\)\n  index row 3: Metadata_Dose is '10 uM', expected a number"):
        load_index(study(tmp_path, table, more="columns: {concentration: Metadata_Dose}"))
    table.loc[1, "Metadata_Dose"] = "10"
    index = load_index(study(tmp_path, table, more="columns: {concentration: Metadata_Dose}"))
    assert index["Metadata_Dose"].tolist()[:2] == [1, 10]


def test_a_column_with_the_name_of_the_cell_count(tmp_path):
    with pytest.raises(
        InputError, match=r"index\.csv: Metadata_Count is what the number of cells .*; rename that column"
    ):
        load_index(study(tmp_path, rows("P1 A01 1", Metadata_Count=[5])))


@pytest.mark.parametrize(
    "more",
    ["columns: {compound: Metadata_X}", "columns: {moa: Metadata_X}", "scores: {exclude_same: [Metadata_X]}"],
)
def test_a_well_has_one_treatment(more, tmp_path):
    table = rows("P1 A01 1", "P1 A01 2", "P1 A02 1", Metadata_X=["a", None, "b"])
    with pytest.raises(InputError, match=r"Metadata_X has several values in 1 well.s., first P1 A01; .* one value"):
        load_index(study(tmp_path, table, more=more))
    load_index(study(tmp_path, table, more="columns: {batch: Metadata_X}"))  # nothing is made by it


def test_two_columns_of_one_name(tmp_path):
    with pytest.raises(InputError, match=r"index\.csv: two columns for Metadata_Plate; remove one, or rename it"):
        load_index(study(tmp_path, rows("P A01 1", Plate=["Q"])))


# --- metadata tables
def test_a_plate_map_is_joined_by_well(tmp_path):
    write_table(pd.DataFrame({"well_position": ["A1", "b2"], "broad_sample": ["0012", "NA"]}), tmp_path / "map.csv")
    made = study(tmp_path, rows("P A01 1", "Q B02 1", "Q C03 1"), images="index: index.csv, metadata: [map.csv]")
    found = load_index(made)["Metadata_broad_sample"]
    assert found.tolist()[:2] == ["0012", "NA"]
    assert pd.isna(found[2])


@pytest.mark.parametrize("header", ["Metadata_Plate,Metadata_Well", "plate,well", "plate,Metadata_well_position"])
def test_a_table_of_wells_is_joined_by_plate_and_well(header, tmp_path):
    (tmp_path / "map.csv").write_text(f"{header},moa\n12,A01,x\n13,A01,y\n")
    made = study(tmp_path, rows("13 A01 1", "12 A01 1"), images="index: index.csv, metadata: [map.csv]")
    index = load_index(made)
    assert keys(index) == ["12 A01 1", "13 A01 1"]
    assert index["Metadata_moa"].tolist() == ["x", "y"]


def test_a_plate_map_that_names_a_well_twice_or_never(tmp_path):
    write_table(pd.DataFrame({"well": ["A01", "B01", "A1", "B1"], "x": [1, 2, 3, 4]}), tmp_path / "map.csv")
    made = study(tmp_path, rows("P A01 1"), images="index: index.csv, metadata: [map.csv]")
    with pytest.raises(InputError, match=r"map\.csv: well A1 stands in it more than once; keep one row a well"):
        load_index(made)
    write_table(pd.DataFrame({"position": ["A01"], "x": [1]}), tmp_path / "map.csv")
    with pytest.raises(InputError, match=r"map\.csv: no column 'Metadata_Well'"):
        load_index(made)


# --- names of files
def test_names_as_phenix_writes_them(tmp_path):
    names = [
        f"raw/P1__x/Images/r{r:02d}c03f{f:02d}p01-ch{c}sk1fk1fl1.tiff" for r in (1, 16) for f in (1, 10) for c in (1, 5)
    ]
    touch(tmp_path, *names, "raw/P1__x/Images/r01c03f01p02-ch1sk1fk1fl1.tiff", "raw/P1__x/Index.xml")
    assert guess_pattern(tmp_path / "raw") == PRESETS["phenix"][0]
    pattern = guess_pattern(tmp_path / "raw")
    made = study(tmp_path, images=f"folder: raw, pattern: '{pattern}'", channels="{AGP: '1', DNA: '5'}")
    index = load_index(made)
    assert keys(index) == ["P1__x A03 1", "P1__x A03 10", "P1__x P03 1", "P1__x P03 10"]
    assert site_paths(made, index.iloc[1])["DNA"] == str((tmp_path / names[3]).resolve())


@pytest.mark.parametrize("name", ["A01_s1_DNA.tif", "P/a1_01_DNA.png", "x/P/A01_s1_DNA.jpeg", "P/A01_1_w-1.TIF"])
def test_generic_names(name, tmp_path):
    touch(tmp_path, f"raw/{name}")
    pattern = guess_pattern(tmp_path / "raw")
    channel = "w-1" if "w-1" in name else "DNA"
    made = study(tmp_path, images=f"folder: raw, pattern: '{pattern}'", channels=f"{{D: {channel}}}")
    index = load_index(made)
    assert keys(index) == [f"{'P' if 'P/' in name else 'raw'} A01 1"]
    assert index["D"].tolist() == [name]


def test_a_site_that_lacks_a_channel_is_kept_with_an_empty_path(tmp_path):
    touch(tmp_path, "P/A01_s1_DNA.tif", "P/A01_s1_ER.tif", "P/A02_s1_DNA.tif")
    table = scan_folder(tmp_path, guess_pattern(tmp_path))
    assert table.to_dict("list") == {
        PLATE: ["P", "P"],
        WELL: ["A01", "A02"],
        SITE: ["1", "1"],
        "DNA": ["P/A01_s1_DNA.tif", "P/A02_s1_DNA.tif"],
        "ER": ["P/A01_s1_ER.tif", ""],
    }


def test_hidden_files_are_no_images(tmp_path):
    touch(tmp_path, "raw/P1/A01_s1_DNA.tif", "raw/P1/._A01_s1_DNA.tif", f"raw/P1/.{'0' * 32}.A02_s1_DNA.tif")
    assert keys(scan_folder(tmp_path / "raw", PRESETS["generic"][0])) == ["P1 A01 1"]


def test_folders_of_names_that_do_not_work(tmp_path):
    with pytest.raises(InputError, match="raw: no such folder"):
        guess_pattern(tmp_path / "raw")
    (tmp_path / "raw").mkdir()
    with pytest.raises(InputError, match=r"no image \(\.tif, .*\) in it or below"):
        guess_pattern(tmp_path / "raw")
    touch(tmp_path, "raw/IMG_7.tif")
    with pytest.raises(InputError, match=r"no known pattern matches names like IMG_7\.tif; give --pattern"):
        guess_pattern(tmp_path / "raw")
    generic = PRESETS["generic"][0]
    with pytest.raises(InputError, match=r"none of 1 image names matches .*; one is IMG_7\.tif"):
        scan_folder(tmp_path / "raw", generic)
    with pytest.raises(InputError, match=r"images\.pattern: .*unterminated"):
        scan_folder(tmp_path / "raw", "(?P<well>x")
    with pytest.raises(InputError, match="expected named groups channel and well"):
        scan_folder(tmp_path / "raw", "(?P<well>x)")
    touch(tmp_path, "raw/A01_s1_DNA.tif")
    with pytest.raises(InputError, match=r"no image of channel nuclei \('Hoechst'\); the names hold DNA"):
        scan_folder(tmp_path / "raw", generic, {"nuclei": "Hoechst"})
    touch(tmp_path, "raw/A01_s01_DNA.tif")
    with pytest.raises(InputError, match=r"A01_s01_DNA\.tif and A01_s1_DNA\.tif are the same site and channel; narrow"):
        scan_folder(tmp_path / "raw", generic)


# --- what is done with an index
def test_the_index_is_kept_and_written_only_where_it_differs(tmp_path):
    made = study(tmp_path, rows("P A01 1", "P A02 1"))
    write_index(made, load_index(made))
    first = (tmp_path / "index.parquet").stat().st_mtime_ns
    write_index(made, load_index(made))
    assert (tmp_path / "index.parquet").stat().st_mtime_ns == first
    write_index(made, load_index(study(tmp_path, rows("P A01 1"))))
    assert len(pd.read_parquet(tmp_path / "index.parquet")) == 1


def test_sites_by_well_and_what_is_the_same_in_a_well():
    index = rows(
        "P A02 1", "P A01 2", "P A01 1", "Q A01 1", Metadata_MOA=["a", None, None, "a"], Metadata_Time=[1, 2, 3, 4]
    )
    wells = sites_by_well(index, "P")
    assert list(wells) == ["A01", "A02"]
    assert keys(wells["A01"]) == ["P A01 2", "P A01 1"]
    assert constant_metadata(index, [PLATE, WELL]) == ["Metadata_MOA"]


# --- real data
@pytest.mark.data
def test_the_kinase_screen(data, tmp_path):
    folder = data / "imagehts_submorph"
    channels = "{DNA: FileName_Hoechst, tubulin: FileName_FITC, actin: FileName_Tritc}"
    more = "columns: {treatment: Metadata_GeneID}\ncontrols: \"Metadata_Content == 'neg'\""
    made = study(tmp_path, images=f"index: {folder}/index.csv, root: {folder}", channels=channels, more=more)
    index = load_index(made)
    assert index[PLATE].unique().tolist() == ["PK-10B-pl1", "PK-11B-pl1"]
    assert index[WELL].tolist() == ["A03", "A05", "B03", "B05", "C03", "D03"] * 2
    genes = index.groupby("Metadata_GeneID")[WELL].unique().map(list).to_dict()
    assert {name: genes[name] for name in ("UBC", "AAK1", "PLK3")} == {
        "UBC": ["A03", "B03"],
        "AAK1": ["A05"],
        "PLK3": ["B05"],
    }
    for row in index.to_dict("records"):
        assert read_site(site_paths(made, row)).shape == (510, 1024, 3)


@pytest.mark.data
def test_the_nf1_plate(data, tmp_path):
    folder = data / "nf1_plate2"
    channels = "{DAPI: FileName_DAPI, GFP: FileName_GFP, RFP: FileName_RFP}"
    images = f"index: {folder}/index.csv, root: {folder}/images, metadata: [{folder}/platemap_NF1_plate2.csv]"
    made = study(tmp_path, images=f"{images}, size: [904, 1224]", channels=channels)
    index = load_index(made)
    assert dict(zip(index[WELL], index["Metadata_genotype"], strict=True)) == {
        "D06": "NF1_WT", "B07": "NF1_Null", "D07": "NF1_Null", "F07": "NF1_Null", "H12": "NF1_Null"
    }  # fmt: skip
    assert (index["Metadata_gene_name"] == "NF1").all()
    for row in index.to_dict("records"):
        image = read_site(site_paths(made, row), made.images.size)
        assert (image.shape, image.dtype) == ((904, 1224, 3), "uint16")
