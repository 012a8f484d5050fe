"""Corrections and concatenation of tables: columns stay, keys are joined, and what cannot be done is said."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cytominer_tools.batches import PerBatch
from cytominer_tools.columns import COUNT, PLATE, WELL
from cytominer_tools.concatenation import concatenate
from cytominer_tools.correction import METHODS, correct, transform_profiles
from cytominer_tools.errors import InputError, ProfileWarning
from cytominer_tools.normalization import normalize, search_ridge, spherize
from cytominer_tools.transformers import PCA, InverseNormal, RobustMAD

pytestmark = pytest.mark.filterwarnings("ignore:spherizing learns from")


@pytest.fixture
def wells():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(96, 6)), columns=[f"m_{i}" for i in range(6)])
    names = [f"{row}{column:02d}" for row in "ABCDEF" for column in range(1, 9)]
    table.insert(0, PLATE, ["P1"] * 48 + ["P2"] * 48)
    table.insert(1, WELL, names * 2)
    table.insert(2, "Metadata_Compound", (["DMSO"] * 24 + ["x"] * 24) * 2)
    table.insert(3, COUNT, rng.integers(50, 200, 96))
    table.loc[48:, "m_0"] += 5
    return table


# --- corrections of a table
@pytest.mark.parametrize("method", METHODS)
def test_a_correction_keeps_rows_and_metadata(wells, method):
    found = correct(wells, method, batch=PLATE)
    metadata = [PLATE, WELL, "Metadata_Compound", COUNT]
    pd.testing.assert_frame_equal(found[metadata], wells[metadata])
    features = [name for name in found if name not in metadata]
    assert features == ([f"PC{i}" for i in range(1, 7)] if method == "tvn" else [f"m_{i}" for i in range(6)])
    assert not np.allclose(found[features], wells[[f"m_{i}" for i in range(6)]])
    if method not in ("well_position", "cell_count"):
        gap = found.groupby(PLATE)[features].mean().diff().iloc[1].abs().max()
        assert gap < 1.5  # of the five before


def test_a_file_is_written(wells, tmp_path):
    found = correct(wells, "combat", batch=PLATE, output_file=tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet"), found, check_dtype=False)
    other = wells[[PLATE, WELL]].assign(a=wells["m_1"])
    joined = concatenate([wells, other], output_file=tmp_path / "b.csv.gz")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "b.csv.gz"), joined, check_dtype=False)


def test_a_scope_of_its_own_for_each_plate(wells):
    by_class = transform_profiles(wells, PerBatch(RobustMAD()), samples="Metadata_Compound == 'DMSO'", batch=PLATE)
    by_name = normalize(wells, samples="Metadata_Compound == 'DMSO'", method="mad_robustize", by=PLATE)
    pd.testing.assert_frame_equal(by_class.profiles, by_name)
    assert list(by_class.transformer.batches_) == ["P1", "P2"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: correct(t, "loess"), "method='loess': expected one of tvn, combat"),
        (lambda t: correct(t, "combat"), "combat: name the column of the batch, such as batch='Metadata_Plate'"),
        (lambda t: correct(t, "combat", batch="Metadata_Run"), "profiles: no column 'Metadata_Run'"),
        (
            lambda t: correct(t.drop(columns=WELL), "median_polish"),
            "median_polish: profiles: no column 'Metadata_Well'",
        ),
        (lambda t: correct(t, "cell_count", count="n"), "cell_count: profiles: no column 'n'"),
        (lambda t: correct(t.assign(m_0=np.nan), "combat", batch=PLATE), r"missing or infinite values in 1 feature"),
        (lambda t: transform_profiles(t, PCA(), samples="m_0 > 99"), "no row is picked by samples='m_0 > 99'"),
    ],
)
def test_what_cannot_be_corrected(wells, call, words):
    with pytest.raises(InputError, match=words):
        call(wells)


# --- the recipes of JUMP, step by step, on its own plates
@pytest.fixture
def jump(data: Path) -> Path:
    return data / "jump_profiling_recipe"


def read_jump(jump: Path, paths: list[str], names: list[str]) -> pd.DataFrame:
    tables = [pd.read_parquet(jump / "tests" / "fixtures" / "inputs" / "profiles" / path) for path in paths]
    return pd.concat(tables, ignore_index=True)[[PLATE, WELL, *names]]


@pytest.mark.data
def test_mad_and_ranks_are_those_of_jump(jump):
    expected = pd.read_parquet(
        jump / "tests/fixtures/outputs/compound_trimmed_public/profiles_var_mad_int_featselect.parquet"
    )
    names = [name for name in expected if not name.startswith("Metadata_")]
    source = "source_5/workspace/profiles/JUMPCPE-20210"
    table = read_jump(
        jump,
        [
            f"{source}628-Run03_20210629_064133/APTJUM122/APTJUM122.parquet",
            f"{source}903-Run27_20210904_215148/APTJUM422/APTJUM422.parquet",
        ],
        names,
    )
    table = table.merge(expected[[PLATE, WELL, "Metadata_JCP2022"]], on=[PLATE, WELL], how="right", validate="1:1")
    scaled = normalize(table, names, samples="Metadata_JCP2022 == 'JCP2022_033924'", method="mad_robustize", by=PLATE)
    found = transform_profiles(scaled, InverseNormal(), features=names).profiles
    # equal values stand in random order there and share a rank here
    once = ~scaled[names].apply(lambda column: column.duplicated(keep=False)).to_numpy()
    assert once.mean() > 0.5
    np.testing.assert_allclose(found[names].to_numpy()[once], expected[names].to_numpy()[once], atol=1e-5)


@pytest.mark.data
def test_positions_and_counts_are_those_of_jump(jump):
    expected = pd.read_parquet(
        jump / "tests/fixtures/outputs/orf_trimmed_public/profiles_wellpos_cc_var_mad_outlier_featselect.parquet"
    )
    names = [name for name in expected if not name.startswith("Metadata_") and name != "Cells_Count_Count"]
    folder = "source_4/workspace/profiles/2021_04_26_Batch1"
    plates = [f"{folder}/{plate}/{plate}.parquet" for plate in ("BR00117037", "BR00117038")]
    table = read_jump(jump, plates, names)
    table = table.merge(expected[[PLATE, WELL]], on=[PLATE, WELL], how="right", validate="1:1")
    counts = pd.read_csv(jump / "inputs/cell_counts/orf_cell_counts.csv.gz")
    count = next(name for name in counts if "ount" in name)
    counts = counts.rename(columns={count: COUNT})[[PLATE, WELL, COUNT]]
    table = table.merge(counts, on=[PLATE, WELL], how="left", validate="1:1")
    placed = correct(table, "well_position", features=names)
    free = correct(placed, "cell_count", features=names)
    found = normalize(free, names, method="mad_robustize", by=PLATE)
    np.testing.assert_allclose(found[names] * 1.4826, expected[names], rtol=1e-3, atol=1e-3)


# --- a ridge that a scorer chooses
def test_the_best_ridge(wells):
    control = "Metadata_Compound == 'DMSO'"
    found = search_ridge(wells, lambda t: -abs(t["m_0"].std() - 0.5), (0.1, 1, 10), control)
    assert found.scores["ridge"].tolist() == [0.1, 1, 10]
    best = found.scores.loc[found.scores["score"].idxmax(), "ridge"]
    expected = spherize(wells, control, ridge=best)
    pd.testing.assert_frame_equal(found.best.profiles, expected.profiles)
    assert found.best.transformer.ridge == best
    assert search_ridge(wells, lambda t: 1.0, (1, 5, 2)).best.transformer.ridge == 5  # of equal ones the larger
    with pytest.raises(InputError, match="the scorer has no score for any of 1 ridges"):
        search_ridge(wells, lambda t: np.nan, (1,))
    with pytest.raises(InputError, match="ridges is empty"):
        search_ridge(wells, lambda t: 1.0, ())


# --- feature sets side by side
def test_sets_weigh_the_same(wells):
    other = wells[[PLATE, WELL]].assign(Cells_a=1000 * wells["m_1"], Cells_b=7.0, Metadata_Run=3).iloc[::-1]
    found = concatenate([wells, other])
    assert list(found) == [
        PLATE,
        WELL,
        "Metadata_Compound",
        COUNT,
        "Metadata_Run",
        *wells.columns[4:],
        "Cells_a",
        "Cells_b",
    ]
    assert found[WELL].tolist() == wells[WELL].tolist()
    assert found[[f"m_{i}" for i in range(6)]].var(ddof=0).sum() == pytest.approx(1)
    assert found[["Cells_a", "Cells_b"]].var(ddof=0).sum() == pytest.approx(1)
    np.testing.assert_allclose(found["Cells_a"], wells["m_1"] / wells["m_1"].std(ddof=0))
    np.testing.assert_array_equal(concatenate([wells, other], scale=False)["Cells_a"], 1000 * wells["m_1"])


def test_rows_that_one_table_lacks(wells):
    other = wells[[PLATE, WELL]].assign(Cells_a=wells["m_1"])
    with pytest.warns(ProfileWarning, match="left out, 1 of table 1, 2 of table 2"):
        found = concatenate([wells.iloc[2:], other.iloc[:-1]])
    assert len(found) == 93


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda t: t[[PLATE, WELL, "m_1"]], "m_1 is a feature of tables 1 and 2; rename the columns of one"),
        (lambda t: pd.concat([t, t])[[PLATE, WELL]].assign(a=1.0), "table 2: the key P1, A01 stands 96 time"),
        (lambda t: t[[PLATE]].assign(a=1.0), "table 2: no column 'Metadata_Well'"),
        (lambda t: t[[PLATE, WELL]].assign(a=1.0), "table 2: its features do not vary among 96 rows"),
        (
            lambda t: t[[WELL]].assign(a=t["m_1"], **{PLATE: "P9"}).iloc[:48],
            "no row in common: the first holds P1, A01, the second P9",
        ),
    ],
)
def test_what_cannot_be_joined(wells, other, words):
    with pytest.raises(InputError, match=words):
        concatenate([wells, other(wells)])
    with pytest.raises(InputError, match=r"1 table\(s\) to concatenate"):
        concatenate([wells])
