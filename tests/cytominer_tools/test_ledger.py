"""What became of rows and features stands in the Parquet file."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cytominer_tools import aggregate, annotate, consensus, feature_select, normalize, read_ledger
from cytominer_tools.errors import InputError
from cytominer_tools.tables import write_table

# output_type is "csv" unless it is given, and the suffix wins
pytestmark = pytest.mark.filterwarnings("ignore:.*written as parquet")


def cells():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(40, 3)), columns=["Cells_a", "Cells_b", "Cells_flat"])
    table["Cells_flat"] = 1.0
    table.insert(0, "Metadata_Plate", "p")
    table.insert(1, "Metadata_Well", np.repeat([f"A{i:02d}" for i in range(1, 11)], 4))
    return table


def test_steps_from_file_to_file(tmp_path):
    wells = aggregate(cells(), output_file=tmp_path / "wells.parquet")
    platemap = pd.DataFrame({"well_position": [f"A{i:02d}" for i in range(1, 11)], "dose": [0.0, 1.0] * 5})
    named = annotate(wells, platemap, output_file=tmp_path / "named.parquet")
    scored = normalize(named, samples="Metadata_dose == 0", output_file=tmp_path / "scored.parquet")
    chosen = feature_select(scored, min_variance=0.01, output_file=tmp_path / "chosen.parquet")
    consensus(chosen, ["Metadata_dose"], output_file=tmp_path / "consensus.parquet")
    steps = read_ledger(tmp_path / "consensus.parquet")
    assert [step["step"] for step in steps] == ["aggregate", "annotate", "normalize", "feature_select", "consensus"]
    assert [step["rows"] for step in steps] == [[40, 10], [10, 10], [10, 10], [10, 10], [10, 2]]
    assert [step["features"] for step in steps] == [[3, 3], [3, 3], [3, 3], [3, 2], [2, 2]]
    assert steps[1]["settings"] == {"platemap": "DataFrame[10, 2]"}
    assert steps[2]["settings"] == {"samples": "Metadata_dose == 0"}
    assert steps[3]["dropped"] == {"Cells_flat": "variance_threshold: variance 0, at most 0.01"}
    assert read_ledger(tmp_path / "wells.parquet") == steps[:1]
    # the table is what it is without it
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "wells.parquet"), aggregate(cells()), check_dtype=False)
    feature_select(scored, reasons=True, output_file=tmp_path / "chosen.csv")
    assert list(pd.read_csv(tmp_path / "chosen.csv")) == list(pd.read_parquet(tmp_path / "chosen.parquet"))


def test_equal_tables_and_ledgers_are_equal_files(tmp_path):
    for name in ("a", "b"):
        aggregate(cells(), output_file=tmp_path / f"{name}.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_files_without_a_ledger(tmp_path):
    path = write_table(cells(), tmp_path / "a.parquet")
    assert b"deepprofile.ledger" not in pq.read_schema(path).metadata
    assert read_ledger(path) == []
    (tmp_path / "b.parquet").write_text("no")
    for name in ("b.parquet", "nowhere.parquet"):
        with pytest.raises(InputError, match=f"{name}: cannot be read as parquet"):
            read_ledger(tmp_path / name)
