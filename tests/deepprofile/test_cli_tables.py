"""Commands on a table of profiles: each is one call of a public function."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from cytominer_tools import aggregate, consensus, correct, feature_select, normalize, spherize
from deepprofile.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:spherizing learns from")
QUERY = "Metadata_Compound == 'DMSO'"


@pytest.fixture(autouse=True)
def _warnings_as_they_were(monkeypatch):
    import warnings

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


@pytest.fixture
def wells(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(48, 4)), columns=[f"m_{i}" for i in range(4)])
    table.insert(0, "Metadata_Plate", ["P1"] * 24 + ["P2"] * 24)
    table.insert(1, "Metadata_Well", [f"{row}{column:02d}" for row in "ABC" for column in range(1, 9)] * 2)
    table.insert(2, "Metadata_Compound", (["DMSO"] * 16 + ["x", "y"] * 4) * 2)
    table["m_3"] = table["m_0"] * 2
    table.to_parquet(tmp_path / "wells.parquet")
    return table


def call(tmp_path, *words, code=0):
    told = CliRunner().invoke(main, [str(word) for word in words])
    if told.exception and not isinstance(told.exception, SystemExit):
        raise told.exception
    assert told.exit_code == code, told.output
    return told


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["aggregate", "--by", "Metadata_Plate", "--operation", "mean"],
            lambda t: aggregate(t, "Metadata_Plate", operation="mean"),
        ),
        (
            ["normalize", "--method", "mad_robustize", "--by", "Metadata_Plate", "--samples", QUERY],
            lambda t: normalize(t, method="mad_robustize", by="Metadata_Plate", samples=QUERY),
        ),
        (["spherize", "--controls", QUERY, "--ridge", "0.5"], lambda t: spherize(t, QUERY, ridge=0.5).profiles),
        (
            ["spherize", "--controls", QUERY, "--by", "Metadata_Plate"],
            lambda t: spherize(t, QUERY, by="Metadata_Plate").profiles,
        ),
        (
            ["select", "--operation", "variance_threshold", "--operation", "correlation_threshold"],
            lambda t: feature_select(t, operation=["variance_threshold", "correlation_threshold"]),
        ),
        (["consensus", "--by", "Metadata_Compound"], lambda t: consensus(t, "Metadata_Compound")),
        (
            ["correct", "--method", "combat", "--batch", "Metadata_Plate"],
            lambda t: correct(t, "combat", batch="Metadata_Plate"),
        ),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else "",
)
def test_a_command_is_its_function(wells, tmp_path, words, expected):
    path = tmp_path / "out.parquet"
    told = call(tmp_path, words[0], tmp_path / "wells.parquet", *words[1:], "--output", path)
    assert told.stdout == f"{path}\n"
    pd.testing.assert_frame_equal(pd.read_parquet(path), expected(wells), check_dtype=False)


def test_annotate_and_recipe(wells, tmp_path):
    pd.DataFrame({"well_position": wells["Metadata_Well"].unique(), "dose": 3.0}).to_csv(
        tmp_path / "m.csv", index=False
    )
    path = tmp_path / "a.csv"
    call(tmp_path, "annotate", tmp_path / "wells.parquet", "--platemap", tmp_path / "m.csv", "--output", path)
    assert pd.read_csv(path)["Metadata_dose"].tolist() == [3.0] * 48
    words = ["recipe", tmp_path / "wells.parquet", "--recipe", "deep", "--controls", QUERY, "--by", "Metadata_Compound"]
    call(tmp_path, *words, "--output", tmp_path / "made")
    assert len(pd.read_parquet(tmp_path / "made" / "consensus.parquet")) == 3


def test_what_a_table_lacks(wells, tmp_path):
    told = call(tmp_path, "spherize", tmp_path / "wells.parquet", code=2)
    assert "Error: --output: say where the result is to be written" in told.stderr
    told = call(tmp_path, "normalize", tmp_path / "none.csv", "--output", tmp_path / "a.csv", code=2)
    assert "none.csv: no such file" in told.stderr
    told = call(tmp_path, "normalize", tmp_path, "--output", tmp_path / "a.csv", code=2)
    assert "output_file: for a table of profiles; what a study does stands in its study.yaml" in told.stderr
    (tmp_path / "study.yaml").touch()
    assert "is a study, and spherize takes a table" in call(tmp_path, "spherize", tmp_path, code=2).stderr
    told = call(
        tmp_path, "recipe", tmp_path / "wells.parquet", "--recipe", "dep", "--by", "m_0", "--output", tmp_path, code=2
    )
    assert "'dep'" in told.stderr
