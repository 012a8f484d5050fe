import json
import re
import time
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest
from browser import Page, chromium

import evaluation.report_parts
import evaluation.reports
from cytominer_tools.errors import InputError
from evaluation.comparison import compare_runs
from evaluation.report_parts import Result, treatment_names
from evaluation.reports import report
from evaluation.scores import score

BY = ("Metadata_Compound", "Metadata_Dose of it")
ROLES = {
    "by": BY,
    "concentration": BY[1],
    "moa": "Metadata_MOA",
    "batch": "Metadata_index",
    "controls": "Metadata_Compound == 'DMSO'",
}
EVIL = "</script><script>document.title='taken'</script>"
IMAGE = "<img src=x onerror=\"document.title='taken'\"> & <a href='http://x.example/'>co</a>"
needs_browser = pytest.mark.skipif(chromium() is None, reason="no Chromium; apt-get install chromium-headless-shell")


@pytest.fixture(autouse=True, scope="module")
def no_umap():
    """UMAP takes half a minute to import; a report says why it is not there."""

    def absent(X, *, seed=0):
        raise InputError("UMAP: install the extra umap")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation.reports, "neighbour_map", absent)
        yield


def wells(plates=3, compounds=8, width=12):
    """Plates of 96 wells, 8 controls and each compound once at four doses: strength by dose, direction by MOA."""
    rng = np.random.default_rng(1)
    places = [f"{row}{column:02d}" for row in "ABCDEFGH" for column in range(1, 13)]
    names = [EVIL, IMAGE, *(f"cpd {i}" for i in range(3, compounds + 1))][:compounds]
    doses = [0.1, 1.0, 10.0, 100.0]
    kinds = [("DMSO", np.nan, None)] * 8 + [(c, d, f"moa {i % 4}") for i, c in enumerate(names) for d in doses]
    effect = {f"moa {i}": rng.normal(size=width) for i in range(4)}
    rows, X = [], []
    for plate in range(plates):
        where = rng.permutation(96)
        for well, (compound, dose, moa) in zip(where, kinds, strict=False):
            strength = 0.0 if moa is None else 6 / (1 + 3 / dose)
            X.append(rng.normal(size=width) + (0 if moa is None else strength * effect[moa]))
            key = {"Metadata_Plate": f"P{plate + 1}", "Metadata_Well": places[well], BY[0]: compound, BY[1]: dose}
            rows.append({**key, "Metadata_MOA": moa, "Metadata_index": f"b{plate % 2}", "Metadata_Count": 90 + well})
    return pd.DataFrame(rows).join(pd.DataFrame(X).add_prefix("net_"))


def consensus(table):
    features = list(table.filter(like="net_"))
    keys = [*BY, "Metadata_MOA"]
    return table.groupby(keys, dropna=False)[features].median().reset_index()


def result(table=None, **changes):
    table = wells() if table is None else table
    treatments = consensus(table)
    levels = {"replicates": (table, BY[0]), "treatments": (treatments, "Metadata_MOA")}
    made = {
        name: score(profiles, labels=label, select="Metadata_Compound != 'DMSO'", permutations=5)
        for name, (profiles, label) in levels.items()
    }
    stacked = [
        pd.concat([getattr(one, what).assign(profiles=name) for name, one in made.items()], ignore_index=True)
        for what in ("table", "selection")
    ]
    picture = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    history = {"epoch": [1, 2], "loss": [2.0, 1.5], "val_loss": [2.1, 1.9], "accuracy": [0.1, 0.4]}
    given = {
        "raw": table,
        "scores": stacked[0],
        "selection": stacked[1],
        "queries": {name: one.queries for name, one in made.items()},
        "history": pd.DataFrame(history | {"val_accuracy": [0.1, 0.2], "learning_rate": [0.01, 0.001]}),
        "montages": {"": picture, f"{EVIL}, 100": picture, "cpd 3, 10": picture},
        "cells": "DNA blue.",
        "left_out": [{"reason": "no such image", "count": 3, "first": ["P1 A01 site 1"]}],
        "provenance": {"weights": EVIL, "model": {"width": 12}},
    }
    return Result("net, deep", table, treatments, **(given | changes))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    quality = pd.DataFrame({"plate": ["P1"], "sites": [96], "out of focus": [2]})
    runs = compare_runs({EVIL: result().treatments, "other": result().treatments}, key=BY, labels="Metadata_MOA")
    two = [result(), result(scores=None, selection=None, queries={}, history=None, montages={})]
    two[1] = Result(**(vars(two[1]) | {"name": "other"}))
    return report(path, two, **ROLES, title=IMAGE, quality=quality, comparison=runs, settings=f"seed: {EVIL}")


def payload(path):
    """What the page draws; each set with its own list of treatments, which the page holds once."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.S)[1]
    found = json.loads(text)
    for one in found["sets"]:
        one["treatments"] = found["treatments"][one["treatments"]]
    return found


# --- what is in the page ---------------------------------------------------------------------------------------------


def test_the_same_input_is_the_same_file(tmp_path, page):
    first, second = (report(tmp_path / name, result(), **ROLES).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_scores_stand_beside_baselines_with_intervals(page):
    text = page.read_text("utf-8")
    one = result()
    row = one.scores[one.scores["score"] == "precision_at_r"].iloc[0]
    assert f"<td>{row['value']:.3g}</td>" in text
    low, high = re.search(r"<td>([\d.]+) to ([\d.]+)</td>", text).groups()
    # precision at R, mean average precision and enrichment have one; what stands in the name has no column
    assert len(re.findall(r"<td>[\d.e+]+ to [\d.e+]+</td>", text)) >= 4
    assert ">Across</th>" not in text
    assert float(low) <= round(row["value"], 3) <= float(high)
    for word in (
        "Permuted: mean (95 %)",
        "Cell count",
        "Chance",
        "Comparison of runs",
        "no such image",
        "out of focus",
        "rows",
    ):
        assert word in text


def table_rows(path, start):
    """The cells of the rows of the tables whose first cell starts so."""
    found = re.findall(rf"<tr><td>{start}.*?</tr>", path.read_text("utf-8"))
    return [re.findall("<td>(.*?)</td>", row) for row in found]


def test_the_interval_of_enrichment_is_that_of_a_comparison_whatever_the_order_of_rows(tmp_path):
    table = wells(compounds=16)
    features = list(table.filter(like="net_"))
    table[features] += 6 * np.random.default_rng(0).normal(size=(len(table), len(features)))
    shuffled = table.iloc[np.random.default_rng(1).permutation(len(table))].reset_index(drop=True)
    runs = {"net": table[table[BY[0]] != "DMSO"].drop(columns="Metadata_Count")}
    compared = compare_runs(runs, key=["Metadata_Plate", "Metadata_Well"], labels=BY[0]).table
    intervals = []
    for name, rows in (("a", table), ("b", shuffled)):
        path = report(tmp_path / f"{name}.html", result(rows), **ROLES)
        intervals.append([row[:4] for row in table_rows(path, "(?:replicates|treatments) by")])
    assert intervals[0] == intervals[1]
    [drawn] = [row for row in intervals[0] if row[0] == "replicates by Compound" and row[1].startswith("Enrichment")]
    assert drawn[3] == f"{compared['enrichment_low'][0]:.3g} to {compared['enrichment_high'][0]:.3g}"


def test_enrichment_by_another_similarity_has_no_interval_of_the_cosine(tmp_path):
    one = result()
    for similarity, has in (("cosine", True), ("pearson", False)):
        scored = Result(**(vars(one) | {"scores": one.scores.assign(similarity=similarity)}))
        path = report(tmp_path / "a.html", scored, **ROLES)
        [row] = [row for row in table_rows(path, "replicates by") if row[1].startswith("Enrichment")]
        assert (" to " in row[3]) == has


def test_the_words_below_the_scores_say_which_way_mixing_goes(tmp_path, page):
    words = "low LISI: of LISI the 5th percentile of the shuffles is shown, and p is the share that score as low"
    assert words not in page.read_text("utf-8")
    one = result()
    row = {"profiles": "controls", "score": "lisi", "labels": "Metadata_Plate", "similarity": "cosine", "setting": ""}
    scores = pd.concat([one.scores, pd.DataFrame([{**row, "value": 1.5, "n": 24}])], ignore_index=True)
    path = report(tmp_path / "a.html", Result(**(vars(one) | {"scores": scores})), **ROLES)
    assert words in path.read_text("utf-8")


def test_every_part_has_its_numbers(page):
    one = payload(page)["sets"][0]
    for name in ("similarity", "replicates", "activity", "classes", "doses", "training", "montages"):
        assert "why" not in one[name], one[name]
    assert "why" not in one["curves"]["replicates"]
    assert "why" not in one["curves"]["treatments"]
    assert len(payload(page)["treatments"]) == 1  # the same in both sets
    assert len(one["treatments"]["name"]) == 33
    assert one["treatments"]["control"].count(1) == 1
    assert max(one["activity"]["map"]) == 1
    assert one["doses"]["compounds"][0]["ec50"] == pytest.approx(3, rel=1)  # half of the strength is at 3
    names = [column["name"] for column in one["wells"]["columns"]]
    assert {"control", "plate", "MOA", "index", "Count", "row", "column", "net_0", "net_0, raw"} <= set(names)
    assert "distance from controls" in names


def test_numbers_come_back_from_the_page(page):
    def codes(text):
        return np.frombuffer(b64decode(texts[text]), "<u2").astype(float)

    texts, one, table = payload(page)["texts"], payload(page)["sets"][0]["wells"], wells()
    columns = {column["name"]: column.get("numbers") for column in one["columns"]}
    count = columns["Count"]
    assert (count["lo"] + count["step"] * codes(count["data"]) == table["Metadata_Count"]).all()
    dose = columns["Dose of it"]
    raw = codes(dose["data"])
    found = np.where(raw == 65535, np.nan, dose["lo"] + dose["step"] * raw)
    np.testing.assert_allclose(found, table[BY[1]], atol=100 / 65534)


@pytest.mark.parametrize(
    ("change", "part", "words"),
    [
        ({"controls": None}, "activity", "no control well has a profile"),
        ({"controls": None}, "doses", "no control well has a profile"),
        ({"concentration": None, "by": BY[:1]}, "doses", "no column says at what concentration"),
        ({"moa": None}, "classes", "no column says which class"),
        ({}, "training", "not of a network that was trained here"),
        ({}, "montages", "no cell images were given"),
        ({}, "curves", "these profiles were not scored"),
        ({"treatments": None}, "similarity", "there are no treatment profiles"),
    ],
)
def test_what_cannot_be_drawn_says_why(tmp_path, change, part, words):
    roles = ROLES | {key: value for key, value in change.items() if key in ROLES}
    bare = {"scores": None, "queries": {}, "selection": None, "history": None, "montages": {}}
    bare |= {key: value for key, value in change.items() if key not in ROLES}
    made = Result(**(vars(result()) | bare))
    found = payload(report(tmp_path / "a.html", made, **roles))["sets"][0][part]
    assert words in (found["replicates"] if part == "curves" else found)["why"]


def test_odd_profiles_are_left_out_and_counted(tmp_path):
    table = wells()
    features = list(table.filter(like="net_"))
    table.loc[0, features] = np.nan
    table.loc[1, features] = 0.0
    table.loc[9, "net_3"] = np.inf
    table["Metadata_Empty"] = np.nan
    one = payload(report(tmp_path / "a.html", Result("net", table, consensus(table)), **ROLES))["sets"][0]
    assert one["left"] == 3
    assert "Empty" not in [column["name"] for column in one["wells"]["columns"]]
    assert "why" not in one["replicates"]


@pytest.mark.parametrize("odd", ["one class", "one plate", "duplicates", "one well"])
def test_odd_studies_make_a_page(tmp_path, odd):
    table = wells()
    if odd == "one class":
        table = table.assign(Metadata_MOA="all", **{BY[0]: "cpd", BY[1]: 1.0})
    elif odd == "one plate":
        table = table[table["Metadata_Plate"] == "P1"]
    elif odd == "duplicates":
        table = pd.concat([table, table.assign(Metadata_Plate="P9")])
    else:
        table = table.head(1)
    one = payload(report(tmp_path / "a.html", Result("net", table, consensus(table)), **ROLES))["sets"][0]
    if odd == "one class":
        assert "no control well" in one["activity"]["why"]
        assert "1 treatment: a similarity needs at least 2" in one["similarity"]["why"]
    if odd == "one plate":
        assert "no treatment has two wells" in one["replicates"]["why"]
    if odd == "one well":
        assert "components need at least 3" in one["maps"]["wells"]["why"]


@pytest.mark.parametrize(("wells_", "shape"), [("H12", [8, 12]), ("P24", [16, 24]), ("AF48", [32, 48])])
def test_plate_formats(tmp_path, wells_, shape):
    table = wells()
    table.loc[0, "Metadata_Well"] = wells_
    table = table.drop_duplicates(["Metadata_Plate", "Metadata_Well"])
    assert payload(report(tmp_path / "a.html", Result("net", table), **ROLES))["sets"][0]["wells"]["shape"] == shape


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_25_plates_of_384_wells_fit_in_10_mb(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation.report_parts, "_NULL", 50)  # p are numbers of the same length
    monkeypatch.setattr(evaluation.reports, "MOST_FITS", 1)
    monkeypatch.setattr(evaluation.report_parts.dose_responses, "__kwdefaults__", {"most_fits": 1})
    rng = np.random.default_rng(0)
    places = [f"{row}{column:02d}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)]
    tables = []
    for plate in range(25):
        layout = plate // 5
        what = [("DMSO", np.nan, None)] * 24
        for c in range(60 * layout, 60 * layout + 60):
            what += [(f"BRD-K{c:08d}-001-01-1", 10 / 3**d, f"moa {c % 60} inhibitor") for d in range(6)]
        table = pd.DataFrame(what, columns=[*BY, "Metadata_MOA"])
        where = np.random.default_rng(layout).permutation(384)
        key = {"Metadata_Plate": f"SQ{plate:08d}", "Metadata_Well": [places[i] for i in where]}
        tables.append(table.assign(**key, Metadata_index=f"b{plate % 5}", Metadata_Count=rng.poisson(1900, 384)))
    table = pd.concat(tables, ignore_index=True).join(pd.DataFrame(rng.normal(size=(9600, 96))).add_prefix("net_"))
    noise = rng.integers(0, 255, (8, 96, 96, 3), dtype=np.uint8)  # what JPEG shrinks least
    montages = {"": noise} | {f"BRD-K{c:08d}-001-01-1, 10": noise for c in range(60)}
    made = Result("net, deep", table, consensus(table), table, montages=montages)
    path = report(tmp_path / "a.html", made, **ROLES)
    one = payload(path)["sets"][0]
    assert path.stat().st_size < 10e6
    assert one["wells"]["features"][0] >= 30
    assert one["similarity"]["total"] == 1801


def test_the_nearest_are_those_of_the_cosine_itself(page):
    """Rounded to 127 steps and cut at the 99th percentile, the matrix has ties that the similarities have not."""
    found = payload(page)
    texts, near, names = (
        found["texts"],
        found["sets"][0]["similarity"]["nearest"],
        found["sets"][0]["treatments"]["name"],
    )
    of, who, steps = (
        np.frombuffer(b64decode(texts[at]), "<u2") for at in (near["of"], near["who"], near["cosine"]["data"])
    )
    how = (near["cosine"]["lo"] + near["cosine"]["step"] * steps).reshape(-1, 5)
    table = consensus(wells())
    X = table.filter(like="net_").to_numpy()
    truth = (X @ X.T) / np.linalg.norm(X, axis=1) / np.linalg.norm(X, axis=1)[:, None]
    called = treatment_names(table, BY).tolist()
    for row, treatment in enumerate(of):
        mine = truth[called.index(names[treatment])]
        best = [at for at in np.argsort(-mine) if called[at] != names[treatment]][:5]
        assert [names[at] for at in who.reshape(-1, 5)[row]] == [called[at] for at in best]
        np.testing.assert_allclose(how[row], mine[best], atol=1e-4)


def test_a_page_that_would_be_too_large_says_what_it_leaves_out(tmp_path, page, monkeypatch):
    whole = report(tmp_path / "a.html", [result(), Result(**(vars(result()) | {"name": "last"}))], **ROLES)
    assert 'role="alert"' not in whole.read_text("utf-8")
    size = whole.stat().st_size
    monkeypatch.setattr(evaluation.reports, "LARGEST", size - 1)
    cut = report(tmp_path / "b.html", [result(), Result(**(vars(result()) | {"name": "last"}))], **ROLES)
    assert cut.stat().st_size < size - 1
    assert "Left out to keep this page below" in cut.read_text("utf-8")
    first, last = payload(cut)["sets"]
    assert "why" not in first["maps"]["wells"]
    assert first["wells"]["features"] == [24, 24]
    assert last["wells"]["features"] == [0, 24]
    monkeypatch.setattr(evaluation.reports, "LARGEST", 1000)
    text = report(tmp_path / "b.html", result(), **ROLES).read_text("utf-8")
    assert "net, deep: plate heatmaps of features, maps, similarity, dose response, cells, replicates" in text
    assert "Even so it is larger than 0.001 MB" in text


@pytest.mark.parametrize("column", ["Metadata_Plate", "Metadata_Well"])
def test_a_well_without_its_place_is_refused(tmp_path, column):
    table = wells()
    table.loc[[3, 5], column] = None
    with pytest.raises(InputError, match=f"wells of net: 2 of 120 rows have no {column}; give it, or leave these rows"):
        report(tmp_path / "a.html", Result("net", table), **ROLES)


def test_wrong_input_is_refused(tmp_path, monkeypatch):
    path, one = tmp_path / "a.html", Result("net", wells())
    with pytest.raises(InputError, match="results: expected at least one Result"):
        report(path, [], **ROLES)
    with pytest.raises(InputError, match="by: name at least one column"):
        report(path, one, by=())
    with pytest.raises(InputError, match="wells of net: no column 'Metadata_X'"):
        report(path, one, **(ROLES | {"moa": "Metadata_X"}))
    with pytest.raises(InputError, match="wells of net: there are no rows"):
        report(path, Result("net", wells()[:0]), **ROLES)
    with pytest.raises(InputError, match=r"montage '': got float64 of shape \(1, 2, 2, 3\), expected uint8"):
        report(path, Result("net", wells(), montages={"": np.zeros((1, 2, 2, 3))}), **ROLES)
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(InputError, match=r"install the extra report, `pip install 'deepprofile\[report\]'`"):
        report(path, one, **ROLES)
    assert not path.exists()


# --- the page in a browser --------------------------------------------------------------------------------------------


FIGURES = ("runs", "curves", "plates", "map", "similarity", "replicates", "activity", "doses", "cells", "training")


def look(tab, name):
    """Bring a figure into sight and wait until it shows what is chosen."""
    tab.run(f"document.getElementById('{name}').scrollIntoView()")
    tab.until(f"document.getElementById('{name}').dataset.drawn === 'now'")


def see_all(tab):
    for name in FIGURES:
        look(tab, name)


def choose(tab, name, words):
    """Choose the option of a select that starts with `words`, and wait until its figure shows it."""
    tab.run(
        f"(() => {{ const s = document.getElementById('{name}');"
        f"s.value = [...s.options].find(o => o.textContent.startsWith({json.dumps(words)})).value;"
        "s.dispatchEvent(new Event('change')); })()"
    )
    if "-" in name:
        look(tab, name.split("-")[0])


def type_treatment(tab, word):
    tab.run(
        f"(() => {{ const s = document.getElementById('treatment'); s.value = {json.dumps(word)};"
        "s.dispatchEvent(new Event('change')); })()"
    )


@needs_browser
def test_the_page_works_without_a_network(page, tmp_path):
    with Page(page.as_uri()) as tab:
        see_all(tab)
        assert tab.run("[...document.querySelectorAll('.plot')].filter(p => p.data).length") >= 16
        notes = tab.run("[...document.querySelectorAll('.note')].map(n => n.textContent)")
        assert not [words for words in notes if words.startswith("Not shown")]

        # a column
        look(tab, "plates")
        choose(tab, "plates-column", "Count")
        before = tab.run("document.getElementById('plates-plot').data[0].zmax")
        choose(tab, "plates-column", "distance from controls")
        assert tab.run("document.getElementById('plates-plot').data[0].zmax") != before
        assert "Edge test among control wells" in tab.run("document.getElementById('plates-note').textContent")
        for view in ("mean by position", "P2", "each plate"):
            choose(tab, "plates-view", view)
        choose(tab, "plates-column", "MOA")

        # a colour
        look(tab, "map")
        choose(tab, "map-colour", "index")
        assert tab.run("document.getElementById('map-plot').data.map(t => t.name)")[:2] == ["b0", "b1"]
        choose(tab, "map-colour", "row")
        assert tab.run("document.getElementById('map-plot').data[0].marker.showscale") is True
        choose(tab, "map-level", "treatments")
        assert tab.run("document.getElementById('map-plot').data.at(-1).x.length") == 0

        # a treatment is marked in all figures
        type_treatment(tab, "cpd 3, 10")
        assert tab.run("document.getElementById('chosen').textContent").startswith("cpd 3, 10: moa 2, 3 wells")
        see_all(tab)
        assert tab.run("document.getElementById('map-plot').data.at(-1).x.length") == 1
        assert tab.run("document.getElementById('plates-plot').data[1].x.length") == 3
        assert (
            tab.run("document.getElementById('similarity-plot').layout.shapes.filter(s => s.line.width === 2).length")
            == 2
        )
        assert tab.run("document.getElementById('replicates-plot').layout.shapes.length") == 1
        assert tab.run("document.getElementById('activity-plot').data[2].x.length") == 1
        assert tab.run("document.getElementById('doses-plot').layout.title.text") == "cpd 3"
        assert tab.run("[...document.querySelectorAll('.strip p')].map(p => p.textContent)") == [
            "controls",
            "cpd 3, 10",
        ]
        assert "Nearest to cpd 3, 10" in tab.run("document.getElementById('similarity-note').textContent")
        look(tab, "similarity")
        choose(tab, "similarity-order", "as a tree")
        assert tab.run("document.getElementById('similarity-plot').data.length") == 2
        look(tab, "activity")
        choose(tab, "activity-level", "MOA")
        tab.run("document.getElementById('clear').click()")
        look(tab, "plates")
        assert tab.run("document.getElementById('plates-plot').data[1].x.length") == 0
        type_treatment(tab, "no such thing")
        assert tab.run("document.getElementById('chosen').textContent") == "No treatment is called no such thing."

        # other profiles
        choose(tab, "set", "other")
        see_all(tab)
        assert "Not shown: these profiles were not scored." in tab.run(
            "document.getElementById('curves-note').textContent"
        )
        assert tab.errors == []
        assert tab.requests == [page.as_uri()]


@needs_browser
def test_a_click_on_a_point_selects_its_treatment(page):
    with Page(page.as_uri()) as tab:
        see_all(tab)  # figures above push those below away when they are drawn
        look(tab, "map")
        place = tab.run(
            "(() => { const p = [...document.querySelectorAll('#map .scatterlayer .point')].at(-1)"
            ".getBoundingClientRect(); return [p.x + p.width / 2, p.y + p.height / 2] })()"
        )
        tab.click(*place)
        tab.until("document.getElementById('chosen').textContent")
        chosen = tab.run("document.getElementById('treatment').value")
        assert chosen in tab.run("[...document.querySelectorAll('#treatments option')].map(o => o.value)")
        tab.until("document.getElementById('map-plot').data.at(-1).x.length >= 1")


@needs_browser
def test_names_are_text_wherever_they_stand(page):
    with Page(page.as_uri()) as tab:
        see_all(tab)
        type_treatment(tab, f"{EVIL}, 100")
        assert tab.run("document.getElementById('chosen').textContent").startswith(EVIL)
        see_all(tab)
        look(tab, "doses")
        choose(tab, "doses-compound", EVIL)
        choose(tab, "doses-compound", IMAGE)
        time.sleep(0.3)
        assert tab.run("document.title") == IMAGE
        assert tab.run("document.querySelectorAll('script').length") == 3
        assert tab.run("[...document.images].every(i => i.src.startsWith('data:'))") is True
        assert tab.run(
            "[...document.querySelectorAll('a')].every(a => (a.href.animVal ?? a.href).includes('report.html#'))"
        )
        assert tab.errors == []
        assert tab.requests == [page.as_uri()]


@needs_browser
def test_cells_stand_in_the_order_given_whatever_treatments_are_called(tmp_path):
    table = wells()
    called = {EVIL: "constructor", IMAGE: "__proto__", "cpd 3": "10", "cpd 4": "9"}
    table[BY[0]] = table[BY[0]].replace(called)
    table = table.drop(columns=BY[1])
    treatments = table.groupby([BY[0], "Metadata_MOA"], dropna=False)[list(table.filter(like="net_"))].median()
    picture = np.zeros((4, 16, 16, 3), dtype=np.uint8)
    given = ["cpd 5", "10", "9", "cpd 6"]
    montages = {name: picture + 20 * k for k, name in enumerate(["", *given])}
    roles = {**ROLES, "by": BY[:1], "concentration": None}
    path = report(tmp_path / "a.html", Result("net", table, treatments.reset_index(), montages=montages), **roles)
    strips = "[...document.querySelectorAll('.strip p')].map(p => p.textContent)"
    with Page(path.as_uri()) as tab:
        look(tab, "cells")
        assert tab.run(strips) == ["controls", *given]
        for name in ("constructor", "__proto__"):
            type_treatment(tab, name)
            look(tab, "cells")
            assert tab.run(strips) == ["controls"]
            assert tab.run("document.getElementById('cells-note').textContent").startswith(f"No cells of {name} are")
        type_treatment(tab, "10")
        look(tab, "cells")
        assert tab.run(strips) == ["controls", "10"]
        assert tab.run("[...document.images].every(i => i.naturalWidth === 64)")
        assert tab.errors == []


@needs_browser
def test_nothing_can_be_run_or_fetched_even_if_a_name_got_through(page):
    with Page(page.as_uri()) as tab:
        tab.run(
            "document.body.appendChild(Object.assign(document.createElement('script'),"
            "{textContent: 'document.title = 1'}))"
        )
        tab.run("fetch('https://example.com/').catch(() => 0)")
        assert tab.run("document.title") == IMAGE
        assert len([words for words in tab.errors if "Content Security Policy" in words]) >= 2
        assert [url for url in tab.requests if url != page.as_uri()] == []


@needs_browser
def test_no_button_sends_the_data_away(page):
    with Page(page.as_uri()) as tab:
        see_all(tab)
        config = tab.run(
            "(({showSendToCloud, plotlyServerURL}) => [showSendToCloud, plotlyServerURL])"
            "(document.getElementById('map-plot')._context)"
        )
        assert config == [False, ""]
        assert (
            tab.run("[...document.querySelectorAll('.modebar-btn')].some(b => /share|cloud/i.test(b.dataset.title))")
            is False
        )


@needs_browser
@pytest.mark.parametrize("width", [360, 800])
def test_a_small_screen_has_no_horizontal_scroll(page, width):
    with Page(page.as_uri(), width, 780, touch=True) as tab:
        see_all(tab)
        type_treatment(tab, "cpd 3, 10")
        assert tab.run("innerWidth") == width
        assert tab.run("document.documentElement.scrollWidth") <= width
        wide = tab.run("[...document.querySelectorAll('.plot .main-svg')].map(s => s.getBoundingClientRect().right)")
        assert max(wide) <= width
        assert tab.errors == []
