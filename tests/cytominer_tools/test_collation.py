"""CSV files of CellProfiler to SQLite and well profiles."""

import sqlite3
import sys
from contextlib import closing

import numpy as np
import pandas as pd
import pytest

from cytominer_tools import SingleCells, collate, run_check_errors
from cytominer_tools.errors import InputError

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


def test_a_column_that_names_no_plate_is_refused(tmp_path):
    with pytest.raises(InputError, match="the image tables have no column Metadata_Nope; `column` names that of the"):
        collate("b", workspace(tmp_path), "p", tmp_path, tmp_dir=tmp_path / "tmp", column="Metadata_Nope")
