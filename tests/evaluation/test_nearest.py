import numpy as np
import pandas as pd
import pytest

from cytominer_tools.errors import InputError
from evaluation import cosine, moa_accuracy, nearest_class
from evaluation.similarity import precomputed

KEYS = ["Metadata_Compound", "Metadata_Concentration", "Metadata_moa"]


def treatments(wells):
    treated = wells[wells["Metadata_Compound"] != "DMSO"]
    features = [c for c in wells if not c.startswith("Metadata_")]
    return treated.groupby(KEYS)[features].mean().reset_index().copy()


def accuracy(table, similarity, **settings):
    got = moa_accuracy(table, labels=KEYS[2], compound=KEYS[0], similarity=similarity, **settings)
    return got.table.set_index("rule")["accuracy"]


# --- published: BBBC021's vignette printed 0.82, the feature-selected file 0.9126
@pytest.mark.data
def test_bbbc021_with_plate_scores(data):
    wells = pd.read_parquet(data / "bbbc021_profiles" / "bbbc021_wells_raw.parquet")
    features = [c for c in wells if not c.startswith("Metadata_")]
    values, control = wells[features].astype(np.float64), wells["Metadata_Compound"] == "DMSO"
    plate = wells["Metadata_Plate"]
    by_plate = values[control].groupby(plate[control])
    scored = (values - by_plate.mean().loc[plate].to_numpy()) / by_plate.std().loc[plate].to_numpy()
    scored = scored.loc[:, np.isfinite(scored).all()]
    table = treatments(pd.concat([wells[[c for c in wells if c not in features]], scored], axis=1))
    assert len(table) == 103
    assert accuracy(table, "pearson")["NSC"] == pytest.approx(0.8252, abs=5e-5)
    assert accuracy(table, "cosine")["NSC"] == pytest.approx(0.8155, abs=5e-5)


@pytest.mark.data
def test_bbbc021_feature_selected(data):
    wells = pd.read_csv(data / "bbbc021_profiles" / "BBBC021_feature_selected_mad_robustize.csv.gz").copy()
    table = treatments(wells)
    assert accuracy(table, "pearson")["NSC"] == pytest.approx(0.9126, abs=5e-5)
    # two MOAs lie in one batch and cannot be found outside it
    batch = wells.assign(Metadata_Batch=wells["Metadata_Plate"].str.split("_").str[0])
    treated = batch[batch["Metadata_Compound"] != "DMSO"]
    weeks = treated.groupby(KEYS)["Metadata_Batch"].agg(lambda week: "|".join(sorted(set(week))))
    table = table.merge(weeks.reset_index())
    got = moa_accuracy(table, labels=KEYS[2], compound=KEYS[0], batch="Metadata_Batch").table.set_index("rule")
    assert got.loc["NSC", ["n", "left_out"]].tolist() == [103, 0]
    assert got.loc["NSCB", ["n", "left_out"]].tolist() == [92, 11]
    assert got.loc["NSCB", "accuracy"] < got.loc["NSC", "accuracy"]


# --- properties
def test_what_a_compound_or_batch_alone_can_do():
    rng = np.random.default_rng(0)
    n = 60
    table = pd.DataFrame({"compound": np.arange(n) // 2, "moa": np.arange(n) // 2 % 5, "batch": np.arange(n) // 2 % 3})
    own = rng.normal(size=(30, 40))[table["compound"]] + 0.01 * rng.normal(size=(n, 40))
    by_compound = table.join(pd.DataFrame(own).add_prefix("f"))
    got = moa_accuracy(by_compound, labels="moa", compound="compound", features=[f"f{k}" for k in range(40)])
    score = got.table.set_index("rule")["accuracy"]
    assert score["all"] == 1
    assert score["NSC"] < 0.5
    moa_in_batch = table.assign(batch=table["moa"])  # each batch has one MOA, and the batch is all there is
    shift = rng.normal(size=(5, 40))[moa_in_batch["batch"]] + 0.01 * rng.normal(size=(n, 40))
    got = moa_accuracy(
        moa_in_batch.join(pd.DataFrame(shift).add_prefix("f")),
        labels="moa",
        compound="compound",
        batch="batch",
        features=[f"f{k}" for k in range(40)],
    )
    table = got.table.set_index("rule")
    assert table.loc["NSC", "accuracy"] == 1
    assert np.isnan(table.loc["NSCB", "accuracy"])
    assert table.loc["NSCB", "reason"] == "no moa has treatments that are not excluded from each other"


def test_calls_add_up_and_order_does_not_matter():
    rng = np.random.default_rng(1)
    table = pd.DataFrame(rng.normal(size=(40, 8))).add_prefix("f")
    table = table.assign(moa=rng.integers(0, 4, 40).astype(str), compound=np.arange(40) // 2)
    features = [f"f{k}" for k in range(8)]
    got = moa_accuracy(table, labels="moa", compound="compound", features=features)
    for rule, counts in got.confusion.items():
        row = got.table.set_index("rule").loc[rule]
        assert counts.to_numpy().sum() == row["n"]
        assert np.trace(counts.to_numpy()) / row["n"] == pytest.approx(row["accuracy"])
    moved = moa_accuracy(table.sample(frac=1, random_state=0), labels="moa", compound="compound", features=features)
    pd.testing.assert_frame_equal(got.table, moved.table)
    pd.testing.assert_frame_equal(got.confusion["NSC"], moved.confusion["NSC"])


def test_random_profiles_are_called_by_chance():
    rng = np.random.default_rng(2)
    shares = []
    for _ in range(30):
        table = pd.DataFrame(rng.normal(size=(60, 20))).add_prefix("f")
        table = table.assign(moa=np.arange(60) % 3, compound=np.arange(60))
        got = moa_accuracy(table, labels="moa", compound="compound", features=[f"f{k}" for k in range(20)]).table
        shares.append(got["accuracy"][0])
    assert abs(np.mean(shares) - 19 / 59) < 4 * np.std(shares) / np.sqrt(30)


# --- golden: four profiles on paper
def test_ties_and_votes():
    near = precomputed([[0, 5, 5, 1], [5, 0, 2, 3], [5, 2, 0, 4], [1, 3, 4, 0]])
    got = nearest_class(near, np.array([0, 0, 1, 1]))
    assert got.correct.tolist() == [0.5, 1.0, 0.0, 1.0]
    # one vote each way: the nearer side wins, 5 against 3, 5 against 4 (the third is called 0), 4 against 3
    votes = nearest_class(near, np.array([0, 0, 1, 1]), k=2)
    assert votes.correct.tolist() == [0.5, 1.0, 0.0, 1.0]
    missing = nearest_class(near, np.array([0, 0, -1, 1]))
    assert missing.called.tolist()[:3] == [0, 0, -1]
    assert np.isnan(missing.correct[2:]).all()


def test_words():
    with pytest.raises(InputError, match="k=0: expected 1 or more neighbours"):
        nearest_class(cosine(np.eye(3)), np.array([0, 0, 1]), k=0)
    with pytest.raises(InputError, match="treatments: no column 'compound'"):
        moa_accuracy(pd.DataFrame({"moa": ["a"], "f": [1.0]}), labels="moa", compound="compound")
