import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from cytominer_tools.errors import InputError
from evaluation.figures import score_figure, similarity_figure
from evaluation.scores import score


def profiles(n, classes):
    rng = np.random.default_rng(0)
    label = np.arange(n) % classes
    X = rng.normal(size=(n, 9)) + rng.normal(size=(classes, 9))[label]
    return pd.DataFrame(X).add_prefix("net_").assign(Metadata_MOA=[f"moa {i}" for i in label], Metadata_Count=9)


def words(figure):
    figure.canvas.draw()
    found = [text.get_text() for axis in figure.axes for text in [*axis.texts, *axis.get_yticklabels()]]
    return found + [word for axis in figure.axes for word in (axis.get_title(loc="left"), axis.get_xlabel())]


def test_every_defined_score_shows_its_value():
    table = score(profiles(60, 6), labels="Metadata_MOA", permutations=9, percentile=90).table
    shown = words(score_figure(table))
    for value in table["value"]:
        assert f"{value:.3g}" in shown
    assert {"Precision at R", "Enrichment (odds ratio)"} <= set(shown)


@pytest.mark.parametrize("classes", [4, 12])
def test_an_undefined_score_shows_its_reason(classes, tmp_path):
    table = score(profiles(12, classes), labels="Metadata_MOA", permutations=9).table
    figure = score_figure(table)
    shown = " ".join(words(figure)).replace("\n", " ")
    for reason in table.loc[table["value"].isna(), "reason"]:
        assert f"undefined: {reason}" in shown
    figure.savefig(tmp_path / "scores.png")


def test_rows_take_given_names():
    table = score(profiles(60, 6), labels="Metadata_MOA", permutations=0, baselines=()).table
    assert "my model" in words(score_figure(table, names=["my model", "the same"]))


@pytest.mark.parametrize(("n", "classes", "named"), [(12, 4, True), (300, 30, True), (300, 150, False), (2, 2, True)])
def test_class_names_appear_where_they_fit(n, classes, named, tmp_path):
    figure = similarity_figure(profiles(n, classes), "Metadata_MOA")
    shown = words(figure)
    assert ("moa 1" in shown) == named
    assert any(f"{classes} classes" in text for text in shown) != named
    figure.savefig(tmp_path / "similarity.png")


def test_names_count_up_and_no_label_comes_last():
    table = profiles(36, 12)
    table.loc[0, "Metadata_MOA"] = None
    shown = [text for text in words(similarity_figure(table, "Metadata_MOA")) if text.startswith(("moa", "("))]
    assert shown == [f"moa {i}" for i in range(12)] + ["(no label)"]


def test_many_profiles_share_pixels():
    image = similarity_figure(profiles(2500, 5), "Metadata_MOA").axes[0].images[0].get_array()
    assert image.shape == (1000, 1000)
    assert image[:200, :200].mean() > image[:200, 200:].mean() + 0.2


def test_no_global_state():
    code = "import sys, evaluation; evaluation.score_figure; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wrong_input_is_refused():
    table = score(profiles(12, 4), labels="Metadata_MOA", permutations=0).table
    with pytest.raises(InputError, match="no rows; score some profiles first"):
        score_figure(table[:0])
    with pytest.raises(InputError, match="names: got 1 for 2 rows"):
        score_figure(table, names=["a"])
    with pytest.raises(InputError, match="score table: no column 'reason'"):
        score_figure(table.drop(columns="reason"))
    with pytest.raises(InputError, match="labels: no column 'moa'"):
        similarity_figure(profiles(12, 4), "moa")
    with pytest.raises(InputError, match="1 profile: a similarity needs at least 2"):
        similarity_figure(profiles(1, 1), "Metadata_MOA")
