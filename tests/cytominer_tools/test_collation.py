"""CSV files of CellProfiler to SQLite and well profiles."""

import json
import sqlite3
import sys
from contextlib import closing

import numpy as np
import pandas as pd
import pytest

from cytominer_tools import SingleCells, collate, run_check_errors
from cytominer_tools.errors import InputError, ProfileWarning

COMPARTMENTS = ("Cells", "Cytoplasm", "Nuclei")


def workspace(base, *, munged=False):
    """Two sites of two wells; three cells in the first, two in the second."""
    rng = np.random.default_rng(0)
    for well, n in (("A01", 3), ("A02", 2)):
        folder = base / "analysis" / "b" / "p" / "analysis" / f"p-{well}-1"
        folder.mkdir(parents=True)
        image = {"ImageNumber": [1], "Metadata_Plate": ["p"], "Metadata_Well": [well], "Metadata_Site": [1]}
        pd.DataFrame(image | {"Count_Cells": [n], "Texture_a": [0.5]}).to_csv(folder / "Image.csv", index=False)
        tables = {}
        for name in COMPARTMENTS:
            table = pd.DataFrame({"ImageNumber": 1, "ObjectNumber": np.arange(n) + 1, "AreaShape_Area": rng.random(n)})
            if name == "Cytoplasm":
                table["Parent_Cells"] = table["Parent_Nuclei"] = table["ObjectNumber"]
            tables[name] = table
            if not munged:
                table.to_csv(folder / f"{name}.csv", index=False)
        if munged:
            images = tables["Cells"][["ImageNumber"]]
            parts = [
                table.drop(columns="ImageNumber").rename(columns={"ObjectNumber": "Number_Object_Number"})
                for table in tables.values()
            ]
            pd.concat([images, *parts], axis=1, keys=["Image", *tables]).to_csv(folder / "Object.csv", index=False)
    config = base / "config.ini"
    config.write_text("[filenames]\nimage = Image.csv\nobject = Object.csv\n")
    return config


def test_a_plate(tmp_path, capsys):
    config = workspace(tmp_path)
    collate("b", config, "p", tmp_path, tmp_dir=tmp_path / "tmp", image_feature_categories=["Texture"])
    assert "Ingesting" in capsys.readouterr().out
    folder = tmp_path / "backend" / "b" / "p"
    assert sorted(path.name for path in folder.iterdir()) == ["p.csv", "p.sqlite"]
    assert not any((tmp_path / "tmp" / "backend" / "b" / "p").iterdir())
    result = pd.read_csv(folder / "p.csv")
    assert result["Metadata_Well"].tolist() == ["A01", "A02"]
    assert result["Metadata_Object_Count"].tolist() == [3, 2]
    for row, well in enumerate(("A01", "A02")):
        cells = pd.read_csv(tmp_path / "analysis" / "b" / "p" / "analysis" / f"p-{well}-1" / "Cells.csv")
        assert result["Cells_AreaShape_Area"][row] == pytest.approx(cells["AreaShape_Area"].mean())
    assert "Texture_a" in str(list(result.columns))
    again = folder / "p.csv"
    again.unlink()
    collate("b", config, "p", tmp_path, aggregate_only=True, add_image_features=False, printtoscreen=False)
    assert capsys.readouterr().out == ""
    assert "Texture_a" not in again.read_text()


def test_one_file_for_all_objects_and_a_plate_by_another_column(tmp_path):
    config = workspace(tmp_path / "one")
    collate("b", config, "p", tmp_path / "one", tmp_dir=tmp_path / "t1", add_image_features=False)
    config = workspace(tmp_path / "two", munged=True)
    for path in (tmp_path / "two").rglob("Image.csv"):
        path.write_text(path.read_text().replace("Metadata_Plate", "Metadata_Barcode"))
    collate(
        "b", config, "p", tmp_path / "two", "Metadata_Barcode", True, tmp_dir=tmp_path / "t2", add_image_features=False
    )
    one, two = (pd.read_csv(tmp_path / name / "backend" / "b" / "p" / "p.csv") for name in ("one", "two"))
    shared = [name for name in one.columns if name in two.columns]
    assert {"Metadata_Plate", *(f"{name}_AreaShape_Area" for name in COMPARTMENTS)} <= set(shared)
    pd.testing.assert_frame_equal(two[shared], one[shared])


@pytest.mark.data
def test_real_sites(data, tmp_path, peer):
    """Site A01-1 has 89 cells and A02-1 36, whose mean areas the reference gives (P9)."""
    (tmp_path / "config.ini").write_text("[filenames]\n")
    place = tmp_path / "analysis" / "b"
    place.mkdir(parents=True)
    (place / "BR00121431").symlink_to(data / "cellprofiler_exports" / "BR00121431")
    collate("b", tmp_path / "config.ini", "BR00121431", tmp_path, tmp_dir=tmp_path / "t", add_image_features=False)
    folder = tmp_path / "backend" / "b" / "BR00121431"
    result = pd.read_csv(folder / "BR00121431.csv")
    np.testing.assert_allclose(result["Cells_AreaShape_Area"], [6436.393258426966, 5254.527777777777])
    assert result["Metadata_Object_Count"].tolist() == [89, 36]
    # the tables are read by pycytominer too, and give it the same profiles
    theirs = peer.SingleCells(f"sqlite:///{folder / 'BR00121431.sqlite'}", aggregation_operation="mean")
    with closing(SingleCells(str(folder / "BR00121431.sqlite"), aggregation_operation="mean")) as mine:
        pd.testing.assert_frame_equal(mine.aggregate_profiles(), theirs.aggregate_profiles(), check_dtype=False)


# --- a bucket
AWS = """#!{python}
import fnmatch, json, os, pathlib, shutil, sys

bucket = pathlib.Path(os.environ["BUCKET"])
with (bucket / "calls.jsonl").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
service, command, *options, source, target = sys.argv[1:]
source, target = (bucket / word[5:] if word.startswith("s3://") else pathlib.Path(word) for word in (source, target))
if not source.exists():
    sys.exit(f"fatal error: {{source}} does not exist")
if command == "cp":
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
else:
    assert command == "sync"
    for path in source.rglob("*"):
        name = path.relative_to(source).as_posix()
        last = [flag for flag, pattern in zip(options[::2], options[1::2]) if fnmatch.fnmatch(name, pattern)][-1:]
        if path.is_file() and last != ["--exclude"]:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
"""


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that ``aws s3`` takes for a bucket, on the path in place of the real command."""
    program = tmp_path / "bin" / "aws"
    program.parent.mkdir()
    program.write_text(AWS.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("BUCKET", str(tmp_path / "bucket"))
    return tmp_path / "bucket"


@pytest.mark.parametrize("munged", [False, True])
def test_csv_files_from_a_bucket_and_profiles_to_it(tmp_path, bucket, munged):
    config = workspace(bucket / "project" / "workspace", munged=munged)
    remote, local, options = "s3://project/workspace", tmp_path / "local", {"printtoscreen": False}
    options |= {"munge": munged, "add_image_features": False, "aws_remote": remote}
    (bucket / "project/workspace/analysis/b/p/analysis/p-A01-1/large.tiff").write_text("not wanted")
    collate("b", config, "p", local, tmp_dir=tmp_path / "tmp", **options)
    calls = [json.loads(line) for line in (bucket / "calls.jsonl").read_text().splitlines()]
    sync, up, last = calls
    source = str(local / "analysis/b/p/analysis")
    assert (sync[:4], sync[-2:]) == (
        ["s3", "sync", "--exclude", "*"],
        ["s3://project/workspace/analysis/b/p/analysis", source],
    )
    if not munged:  # the words of pycytominer 1.7.1, whose order says nothing after the first two
        wanted = {"*/Cells.csv", "*/Nuclei.csv", "*/Cytoplasm.csv", "*/Image.csv"}
        assert (set(sync[5:-2:2]), set(sync[4:-2:2])) == (wanted, {"--include"})
    built = str(tmp_path / "tmp/backend/b/p/p.sqlite")
    assert up == ["s3", "cp", built, "s3://project/workspace/backend/b/p/p.sqlite"]
    assert last == ["s3", "cp", str(local / "backend/b/p/p.csv"), "s3://project/workspace/backend/b/p/p.csv"]
    # what is there is the same as without a bucket, and here nothing is left
    assert not [path for path in [*local.rglob("*"), *(tmp_path / "tmp").rglob("*")] if path.is_file()]
    config = workspace(tmp_path / "own", munged=munged)
    collate("b", config, "p", tmp_path / "own", tmp_dir=tmp_path / "tmp", **options | {"aws_remote": None})
    made = bucket / "project/workspace/backend/b/p"
    assert (made / "p.csv").read_bytes() == (tmp_path / "own/backend/b/p/p.csv").read_bytes()
    # and from the SQLite file alone
    (made / "p.csv").unlink()
    collate("b", config, "p", local, aggregate_only=True, **options)
    assert (made / "p.csv").read_bytes() == (tmp_path / "own/backend/b/p/p.csv").read_bytes()
    assert not (local / "backend" / "b" / "p").exists()


def test_what_a_bucket_lacks(tmp_path, bucket):
    config = workspace(bucket / "project")
    with pytest.raises(
        InputError, match=r"aws s3 sync .*: fatal error: .*/project/analysis/b/q/analysis does not exist"
    ):
        collate("b", config, "q", tmp_path / "local", tmp_dir=tmp_path / "tmp", aws_remote="s3://project")
    with pytest.raises(InputError, match=r"aws s3 cp s3://project/backend/b/p/p\.sqlite .*: fatal error"):
        collate("b", config, "p", tmp_path / "local", aggregate_only=True, aws_remote="s3://project")


# --- words
def test_refuses(tmp_path):
    config = workspace(tmp_path)
    with pytest.raises(InputError, match=r"nowhere\.ini: no such file"):
        collate("b", tmp_path / "nowhere.ini", "p", tmp_path)
    with pytest.raises(InputError, match=r"q/analysis: no folder in it has a file Image\.csv"):
        collate("b", config, "q", tmp_path, tmp_dir=tmp_path / "t")
    built = tmp_path / "t" / "backend" / "b" / "q" / "q.sqlite"
    assert not built.exists()
    built.write_text("")
    with pytest.raises(InputError, match=r"q\.sqlite: is there from an earlier run; delete it, or pass overwrite=True"):
        collate("b", config, "q", tmp_path, tmp_dir=tmp_path / "t")
    with pytest.raises(InputError, match=r"q\.sqlite: no such file"):
        collate("b", config, "q", tmp_path, aggregate_only=True)
    (tmp_path / "bad.ini").write_text("image = x\n")
    with pytest.raises(InputError, match=r"bad\.ini: cannot be read as INI"):
        collate("b", tmp_path / "bad.ini", "p", tmp_path)
    path = tmp_path / "analysis" / "b" / "p" / "analysis" / "p-A02-1" / "Cells.csv"
    path.write_text(path.read_text().replace("AreaShape_Area", "AreaShape_Other"))
    with pytest.raises(InputError, match=r"p-A02-1/Cells\.csv: its columns are not those of the folders before it"):
        collate("b", config, "p", tmp_path, tmp_dir=tmp_path / "t")
    path.write_text("")
    with pytest.raises(InputError, match=r"Cells\.csv: cannot be read as text: No columns to parse"):
        collate("b", config, "p", tmp_path, tmp_dir=tmp_path / "t")


def test_commands_of_the_system():
    run_check_errors([sys.executable, "-c", ""])
    with pytest.raises(InputError, match=r"raise SystemExit.*: broken"):
        run_check_errors([sys.executable, "-c", "raise SystemExit('broken')"])
    with pytest.raises(InputError, match="no-such-command: no such command; install it"):
        run_check_errors(["no-such-command"])


def test_tables_have_the_names_of_cytominer_database(tmp_path):
    config = workspace(tmp_path)
    collate("b", config, "p", tmp_path, tmp_dir=tmp_path / "t", add_image_features=False)
    with closing(sqlite3.connect(tmp_path / "backend" / "b" / "p" / "p.sqlite")) as connection:
        names = [row[1] for row in connection.execute("pragma table_info(Nuclei)")]
        assert names == ["TableNumber", "ImageNumber", "ObjectNumber", "Nuclei_AreaShape_Area"]
        names = [row[1] for row in connection.execute("pragma table_info(Image)")]
        assert names[:3] == ["TableNumber", "ImageNumber", "Metadata_Plate"]


def test_a_first_site_without_cells_makes_no_text_of_the_others(tmp_path):
    config = workspace(tmp_path)
    folder = tmp_path / "analysis" / "b" / "p" / "analysis" / "p-A01-1"
    for name in COMPARTMENTS:
        pd.read_csv(folder / f"{name}.csv").iloc[:0].to_csv(folder / f"{name}.csv", index=False)
    collate("b", config, "p", tmp_path, tmp_dir=tmp_path / "tmp", image_feature_categories=["Texture"])
    found = pd.read_csv(tmp_path / "backend/b/p/p.csv").set_index("Metadata_Well")
    assert found.loc["A02", "Metadata_Object_Count"] == 2
    assert np.isfinite(found.loc["A02", "Cells_AreaShape_Area"])


@pytest.mark.parametrize("empty", [("Nuclei",), ("Cells", "Cytoplasm")])
@pytest.mark.filterwarnings("ignore:.*some groups have no objects; their features are missing")
def test_a_compartment_that_no_site_has_an_object_of(tmp_path, empty):
    config = workspace(tmp_path)
    for path in (tmp_path / "analysis").rglob("*.csv"):
        if path.stem in empty:
            path.write_text(path.read_text().splitlines()[0] + "\n")
    collate("b", config, "p", tmp_path, tmp_dir=tmp_path / "tmp", image_feature_categories=["Texture"])
    found = pd.read_csv(tmp_path / "backend/b/p/p.csv")
    assert found["Metadata_Well"].tolist() == ["A01", "A02"]
    for name in COMPARTMENTS:
        assert found[f"{name}_AreaShape_Area"].isna().all() == (name in empty)
    assert found["Metadata_Object_Count"].tolist() == ([0, 0] if "Cells" in empty else [3, 2])
    assert found["Metadata_Site_Count"].tolist() == [1, 1]
    assert found["Image_Texture_a"].tolist() == [0.5, 0.5]


def test_a_plate_without_any_object(tmp_path):
    config = workspace(tmp_path)
    for path in (tmp_path / "analysis").rglob("*.csv"):
        if path.stem != "Image":
            path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.warns(ProfileWarning, match="no group has an object in any compartment, and so there are no profiles"):
        collate("b", config, "p", tmp_path, tmp_dir=tmp_path / "tmp", image_feature_categories=["Texture"])
    found = pd.read_csv(tmp_path / "backend/b/p/p.csv")
    assert len(found) == 0
    assert {"Metadata_Well", "Image_Texture_a", "Nuclei_AreaShape_Area"} <= set(found)


def test_a_column_that_names_no_plate_is_refused(tmp_path):
    with pytest.raises(InputError, match="the image tables have no column Metadata_Nope; `column` names that of the"):
        collate("b", workspace(tmp_path), "p", tmp_path, tmp_dir=tmp_path / "tmp", column="Metadata_Nope")
