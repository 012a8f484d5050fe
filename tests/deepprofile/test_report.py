import json
import re

import pandas as pd
import pytest
from click.testing import CliRunner
from study_factory import configure, run

import evaluation.reports
from cytominer_tools.errors import InputError
from deepprofile.cli import main
from deepprofile.compare import compare_studies
from deepprofile.profiles import consensus_profiles, normalize_wells, score_profiles
from deepprofile.report import write_report
from deepprofile.study import read_study


@pytest.fixture(autouse=True, scope="module")
def no_umap():
    def absent(X, *, seed=0):
        raise InputError("UMAP: install the extra umap")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation.reports, "neighbour_map", absent)
        yield


def payload(path):
    """What the page draws; each set with its own list of treatments, which the page holds once."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.S)[1]
    found = json.loads(text)
    for one in found["sets"]:
        one["treatments"] = found["treatments"][one["treatments"]]
    return found


def test_a_finished_study_has_a_page(finished, tmp_path):
    ran = CliRunner().invoke(main, ["report", str(finished.root), "--out", str(tmp_path / "a.html")])
    assert ran.exit_code == 0, ran.output
    assert "open it in a browser" in ran.output
    [one] = payload(tmp_path / "a.html")["sets"]
    assert one["treatments"]["name"] == ["DMSO", "aaa", "bbb"]
    assert one["treatments"]["moa"] == ["", "kinase", "kinase"]
    assert one["treatments"]["control"] == [1, 0, 0]
    names = [name for name, _ in one["montages"]["strips"]]
    assert names[0] == ""
    assert set(names) == {"", "aaa", "bbb"}
    assert one["montages"]["about"] == "Crops as the network sees them: DNA blue, ER green, Mito red."
    text = (tmp_path / "a.html").read_text("utf-8")
    assert "weights_hash" in text
    assert "locate" in text
    write_report(finished, tmp_path / "b.html")
    assert (tmp_path / "b.html").read_bytes() == (tmp_path / "a.html").read_bytes()


def warnings_of(path):
    found = re.search(r'<div class="warning" role="alert">(.*?)</div>', path.read_text("utf-8"))
    return re.findall("<p>(.*?)</p>", found[1]) if found else []


def test_the_page_stands_in_the_study_and_shows_what_was_compared(done):
    compare_studies([done], level="replicates")
    path = write_report(done)
    assert path == done.root / "report.html"
    assert "Comparison of runs" in path.read_text("utf-8")
    runs = payload(path)["runs"]
    assert runs["names"] == ["small_cnn_untrained"]
    table = pd.read_csv(done.root / "scores" / "compare.csv")
    assert runs["scores"]["precision_at_r"][0] == pytest.approx(table["precision_at_r"].tolist(), abs=1e-4)
    assert len(runs["curves"]["hits"][0]["share"]) == 101
    assert warnings_of(path) == []


# twelve wells are few to spherize by
@pytest.mark.filterwarnings("ignore::cytominer_tools.errors.ProfileWarning")
def test_what_is_older_than_the_profiles_is_told(done):
    compare_studies([done], level="replicates")
    now = configure(done.root, profiles={"fit": "all"})
    for stage in (normalize_wells, consensus_profiles):
        stage(now)
    assert warnings_of(write_report(now)) == [
        "The scores of small_cnn_untrained, deep were made before these profiles: run `deepprofile score`.",
        "The comparison was made before the profiles of small_cnn_untrained: run `deepprofile compare`.",
    ]
    score_profiles(now)
    compare_studies([now], level="replicates")
    assert warnings_of(write_report(now)) == []
    other = configure(done.root, profiles={"fit": "all"}, scores={"permutations": 10})
    [words] = warnings_of(write_report(other))
    assert "made under other settings (scores.permutations: 20 -&gt; 10): run `deepprofile score`" in words


def test_a_comparison_without_a_pair_that_matches_is_shown(done):
    study = configure(done.root, scores={"exclude_same": ["Metadata_Compound"]})
    compare_studies([study], level="replicates")
    runs = payload(write_report(study))["runs"]
    assert set(runs["curves"]["precision_recall"][0]["precision"]) == {None}
    assert runs["scores"]["precision_at_r"] == [[None]] * 3


def test_a_comparison_that_cannot_be_read_is_refused(done):
    (done.root / "scores" / "compare.json").write_text("[]")
    with pytest.raises(
        InputError, match=r"compare\.json: not a comparison of this version; run `deepprofile compare` a"
    ):
        write_report(done)


def test_what_was_not_made_is_told(fresh):
    with pytest.raises(InputError, match="run `deepprofile run`"):
        write_report(fresh)


def test_a_study_without_treatments_is_refused(finished, tmp_path):
    bare = finished.model_copy(update={"columns": type(finished.columns)()})
    with pytest.raises(InputError, match=r"set columns\.treatment or columns\.compound"):
        write_report(bare, tmp_path / "a.html")


def test_images_that_are_gone_leave_a_page_without_cells(done):
    for path in (done.root / "images").rglob("*.tif"):
        path.unlink()
    assert payload(write_report(read_study(done.root)))["sets"][0]["montages"] == {"why": "no cell images were given"}


def test_every_recipe_can_be_chosen(done):
    study = configure(
        done.root,
        profiles={"recipe": ["deep", "robust"]},
        recipes={"robust": [{"normalize": {"method": "standardize"}}, "consensus"]},
    )
    run(study)
    one, other = payload(write_report(study))["sets"]
    assert one["name"].endswith(", deep")
    assert other["name"].endswith(", robust")
    assert one["treatments"] == other["treatments"]
