"""The HTML of a report: tables as text, a place for each figure, and the scripts that draw them."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from cytominer_tools.columns import METADATA
from evaluation.comparison import SCORES, Comparison
from evaluation.figures import TITLES
from evaluation.neighbourhoods import MIXING
from evaluation.report_parts import Result, score_interval


def body_of(
    results: Sequence[Result],
    sets: Sequence[Mapping[str, Any]],
    *,
    quality: pd.DataFrame | None,
    comparison: Comparison | None,
    settings: str,
    seed: int,
) -> str:
    """The links and the sections; `sets` is what report.js draws of `results`, the rest as in `evaluation.report`."""
    parts = [
        _scores(results, sets, seed),
        *(() if comparison is None else (_comparison(comparison),)),
        *_FIGURES,
        _quality(quality),
        _selection(results),
        _left_out(results),
        _provenance(results, settings),
    ]
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in parts)
    sections = "\n".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>\n{html}\n</section>' for name, heading, html in parts
    )
    return f"<nav>{links}</nav>\n<noscript><p>The figures need JavaScript; the tables do not.</p></noscript>\n" + (
        f"<main>\n{sections}\n</main>"
    )


def page_of(title: str, body: str, data: str, plotly: str, *, warnings: Sequence[str], several: bool) -> str:
    """The page; `data` is what report.js draws, as JSON that ends no element, `plotly` the text of plotly.js."""
    code = files("evaluation").joinpath("report.js").read_text("utf-8")
    style = files("evaluation").joinpath("report.css").read_text("utf-8")
    plotly = plotly.replace("</script", "<\\/script")
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in (plotly, code)
    )
    # whatever a name or a setting holds, only these two scripts run, and nothing is fetched
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "form-action 'none'; base-uri 'none'"
    )
    told = "".join(f"<p>{escape(words)}</p>" for words in warnings)
    told = f'<div class="warning" role="alert">{told}</div>\n' if told else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<div class="controls">
<label{"" if several else " hidden"}>Profiles <select id="set"></select></label>
<label>Treatment
<input id="treatment" list="treatments" autocomplete="off" placeholder="name, or click a point"></label>
<datalist id="treatments"></datalist>
<button id="clear" type="button" disabled>Clear</button>
</div>
<p id="chosen" role="status"></p>
</header>
{told}{body}
<script type="application/json" id="data">{data}</script>
<script>{plotly}</script>
<script>{code}</script>
</body>
</html>
"""


def short(column: str | None) -> str:
    """A column as a heading.

    >>> short("Metadata_broad_sample")
    'broad sample'
    """
    return "" if column is None else column.removeprefix(METADATA).replace("_", " ")


def _figure(name: str, heading: str, caption: str, controls: str = "", panels: int = 1) -> tuple[str, str, str]:
    plots = "".join(f'<div class="plot" id="{name}-plot{i or ""}"></div>' for i in range(panels))
    kind = ' class="panels"' if panels != 1 else ""
    chosen = f'<div class="controls">{controls}</div>' if controls else ""
    note = f'<p class="note" id="{name}-note"></p>'
    return name, heading, f"<figure>{chosen}<div{kind}>{plots}</div>{note}<figcaption>{caption}</figcaption></figure>"


def _choice(name: str, words: str) -> str:
    return f'<label>{words} <select id="{name}"></select></label>'


_LONG = 40  # rows of a table that has a scroll of its own
_SCORES = {
    "enrichment": "Enrichment",
    "precision_at_r": "Precision at R",
    "mean_average_precision": "Mean average precision",
}
_OF_RUNS = {
    "epoch": "Epoch",
    "train_accuracy": "Training accuracy",
    "val_accuracy": "Validation accuracy",
    "batch_before": "Batch before",
    "batch_after": "Batch after",
}
_FIGURES = (
    _figure(
        "curves",
        "Score curves",
        "First: of each profile's k nearest others by cosine, the share with its label (precision), and of its matches "
        "the share among them (recall); means over profiles; dotted: precision of random order. Second: odds ratio of "
        "sharing a label above each percentile of similarity over below, half a pair added to each count; the band is "
        "its 95 % interval if pairs were independent, which they are not: the true one is wider; dotted: 1, chance. "
        "Third: matches found within a share of the list of neighbours, beyond those of random order (0, dotted).",
        _choice("curves-level", "Profiles"),
        3,
    ),
    _figure(
        "plates",
        "Plates",
        "Each square is a well where it stands on its plate, empty where there is none. “Mean by position” is the"
        " mean over all plates. A plate alone has its letters and numbers. The edge test compares the outermost "
        "rows and columns with the other wells of the same plate (van Elteren's test, two-sided); without an "
        "effect, an edge well is the higher one in 50 % of pairs.",
        _choice("plates-column", "Column") + _choice("plates-view", "Show"),
    ),
    _figure(
        "map",
        "Map of profiles",
        "Each point is a normalized well, or a treatment (median of its wells). PCA keeps distances as far as the "
        "shares of variance on its axes say. In UMAP near points are alike; distances between far ones mean nothing.",
        _choice("map-level", "Points") + _choice("map-method", "Axes") + _choice("map-colour", "Colour"),
    ),
    _figure(
        "similarity",
        "Similarity of treatments",
        "Cosine similarity of treatment profiles: 1 is the same direction, 0 unrelated (white), -1 the opposite. "
        "Colours end at the 99th percentile of what is off the diagonal. Ordered by class, or as a tree of "
        "average linkage shows them; the height of a bracket is the cosine distance at which its two branches meet.",
        _choice("similarity-order", "Order"),
    ),
    _figure(
        "replicates",
        "Replicates",
        "Median Pearson correlation between the wells of each treatment (blue), and the same after shuffling five "
        "times which well had which treatment (grey), as shares of all values. Controls are left out. Percent "
        "replicating counts treatments above the 95th percentile of as many random wells of different treatments.",
    ),
    _figure(
        "activity",
        "Activity",
        "Mean average precision: 1 if all wells of a treatment find each other before any control (all treatments of a "
        "class before any other); of more than 200 control wells 200 drawn at random. p is of exchanging "
        "labels; the dotted line is p = 0.05; coloured where "
        "Benjamini-Hochberg's q is below 0.05.",
        _choice("activity-level", "Show"),
    ),
    _figure(
        "doses",
        "Dose response",
        "Distance of each well from the mean control (after spherizing in standard deviations of the controls), and a "
        "logistic curve of four parameters. Grey: the middle 90 % of the controls. Bar: EC50 with its 95 % interval.",
        _choice("doses-compound", "Compound"),
        6,
    ),
    (
        "cells",
        "Cells",
        '<figure><div id="cells-plot"></div><p class="note" id="cells-note"></p><figcaption>The cells nearest to the '
        "mean profile of the treatment, beside those nearest to the mean of the controls; the same scale of brightness "
        "in all.</figcaption></figure>",
    ),
    _figure(
        "training",
        "Training",
        "Loss and accuracy of single cells by epoch, and the learning rate. The loss of validation is plain: without "
        "label smoothing and L2. Validation accuracy says how well cells are told apart, not how good profiles are.",
        "",
        3,
    ),
)


_OF_MIXING = (
    " Controls before and controls: control wells as they are, and corrected by a fit that has not seen them, each "
    "beside shuffles among all wells that are compared. Their label is a batch, which they should not tell. kBET: the "
    "share of wells whose neighbours hold other shares of batches than all wells do. LISI: how many batches there are "
    "around a well, in effect. The share of variance is that of the first components. A batch effect is a high kBET "
    "and share and a low LISI: of LISI the 5th percentile of the shuffles is shown, and p is the share that score as "
    "low."
)


def _scores(results: Sequence[Result], sets: Sequence[Mapping[str, Any]], seed: int) -> tuple[str, str, str]:
    rows: list[list[str]] = []
    notes: list[str] = []
    extra: list[str] = []
    known = [
        *("profiles", "score", "labels", "similarity", "setting", "value", "n", "reason", "chance"),
        *("permutation_mean", "permutation_95", "p", "cell_count", "notes", "low", "high", "across"),
    ]
    for result in results:
        if result.scores is not None:
            extra += [name for name in map(str, result.scores.columns) if name not in [*known, *extra]]
    head = ["Profiles", "Score", "Value", "95 % interval", "Chance", "Permuted: mean (95 %)", "p", "Cell count"]
    head += [short(name).capitalize() for name in extra] + ["n"]
    for result, drawn in zip(results, sets, strict=True):
        for row in (result.scores if result.scores is not None else pd.DataFrame()).to_dict("records"):
            level = str(row.get("profiles", ""))
            across = row.get("across")
            beyond = short(across) if isinstance(across, str) and across else ""
            what = f"{level} by {short(str(row['labels']))}{f', across {beyond}' if beyond else ''}".strip()
            name = f"{result.name}: {what}" if len(results) > 1 else what
            low, high = row.get("low", np.nan), row.get("high", np.nan)
            value, called = row["value"], TITLES.get(str(row["score"]), short(str(row["score"])))
            if level in result.queries and not beyond and pd.isna(low) and pd.notna(value):
                found = score_interval(result.queries[level], str(row["score"]), seed=seed)
                low, high = found.low, found.high
                ends = drawn["curves"].get(level, {}).get("interval")  # by cosine
                same = row["score"] == "enrichment" and row["similarity"] == "cosine" and "99.5" in str(row["setting"])
                if same and ends and None not in ends:
                    low, high = min(ends[0], value), max(ends[1], value)  # draws count half a pair more than the value
            count = row.get("cell_count", np.nan)
            rows.append(
                [
                    name,
                    called if str(row["setting"]) in called else f"{called} ({row['setting']})",
                    _said_number(value),
                    "–" if pd.isna(low) else f"{_said_number(low)} to {_said_number(high)}",
                    _said_number(row.get("chance", np.nan)),
                    f"{_said_number(row.get('permutation_mean', np.nan))} "
                    f"({_said_number(row.get('permutation_95', np.nan))})",
                    _said_number(row.get("p", np.nan)),
                    _said_number(count),
                    *(_said_number(row.get(column, np.nan)) for column in extra),
                    _said_number(row["n"]),
                ]
            )
            if row["score"] not in MIXING and pd.notna(value) and pd.notna(count) and value <= count:
                notes.append(f"{name}, {called}: no better than the cell count alone")
            said = [
                str(row[key]).replace("cell_count", "cell count")
                for key in ("reason", "notes")
                if _is_text(row.get(key))
            ]
            notes += [f"{name}, {called}: {words}" for words in said]
    if not rows:
        return "scores", "Scores", "<p>These profiles were not scored.</p>"
    caption = (
        "Profiles match if they share a label. Precision at R: of the R profiles nearest to one that has R "
        "matches, the share that match. Enrichment: odds ratio of matching among the most similar pairs over the "
        "others. Mean average precision: how far matches come first in the list of neighbours. Hit@k: how early "
        "in that list matches are found. Each score stands beside its baselines on the same rows. Chance: the "
        "expected value of random profiles. Permuted: labels shuffled (within plates for wells), mean and 95th "
        "percentile; p is the share of shuffles that score as high. Cell count: similarity by the number of cells"
        " alone. Untrained: the same network before training. The interval redraws whole classes (bootstrap). n "
        "counts profiles for precision, pairs of profiles for enrichment; – is undefined."
    )
    if any(result.scores is not None and result.scores["score"].isin(MIXING).any() for result in results):
        caption += _OF_MIXING
    return "scores", "Scores", _table(head, rows, caption) + _list(notes)


def _comparison(comparison: Comparison) -> tuple[str, str, str]:
    table = comparison.table
    about = [name for name in _OF_RUNS if name in table]
    head = ["Run", *(f"{_SCORES[score]} (95 %)" for score in SCORES), *(_OF_RUNS[name] for name in about), "n"]
    rows = []
    for row in table.to_dict("records"):
        scores = [
            "–" if pd.isna(row[s]) else f"{_said_number(row[s])} ({_span(row[f'{s}_low'], row[f'{s}_high'])})"
            for s in SCORES
        ]
        others = [_said_number(row[name]) for name in about]
        rows.append([str(row["run"]), *scores, *others, _said_number(row["n"])])
    caption = (
        f"All runs on the same {rows[0][-1]} profiles, by {short(str(table['labels'].iloc[0]))}. Enrichment is the "
        "odds ratio of sharing a label among the most similar 0.5 % of pairs; intervals redraw whole classes. Batch "
        "before and after normalization: the odds ratio of sharing a batch among the most similar pairs of controls; "
        "1 is chance, more is a batch effect. – is not known or undefined."
    )
    body = _table(head, rows, caption)
    lines = []
    for reason, runs in table.groupby("reason", sort=False)["run"]:
        if reason:
            more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
            lines.append(f"Enrichment of {', '.join(map(str, runs[:3]))}{more}: {reason!s}")
    body += _list(lines)
    first = str(table["run"].iloc[0])
    tests = comparison.pairs[(comparison.pairs["against"] == first) & comparison.pairs["difference"].notna()]
    if len(tests):
        pairs = [
            [
                str(row["run"]),
                _SCORES[str(row["score"])],
                ("× " if row["score"] == "enrichment" else "") + _said_number(row["difference"]),
                _span(row["low"], row["high"]),
                _said_number(row["p"]),
                str(row["test"]),
            ]
            for row in tests.to_dict("records")
        ]
        body += _table(
            ["Run", "Score", f"Difference from {first}", "95 % interval", "p", "Test"],
            pairs,
            "On the same profiles, each with itself; of enrichment the ratio (×). p is not corrected for how many runs "
            "there are.",
        )
    _, _, figure = _figure(
        "runs",
        "",
        "Above: each score with its 95 % interval. Below: the curves behind them, in the same colours and shapes, as "
        "under Score curves. Dotted: chance.",
        "",
        6,
    )
    return "runs", "Comparison of runs", figure + body


def _span(low: Any, high: Any) -> str:
    return "–" if pd.isna(low) else f"{_said_number(low)} to {_said_number(high)}"


def _quality(quality: pd.DataFrame | None) -> tuple[str, str, str]:
    if quality is None or quality.empty:
        return "quality", "Image quality", "<p>Focus and saturation of the sites were not measured; "
        "illumination.qc in study.yaml asks for them.</p>"
    head = [short(str(name)) for name in quality.columns]
    rows = [[_said_number(value) for value in row] for row in quality.itertuples(index=False)]
    return "quality", "Image quality", _table(head, rows, "Sites of each plate. Nothing is left out by these numbers.")


def _selection(results: Sequence[Result]) -> tuple[str, str, str]:
    rows = []
    for result in results:
        for row in (result.selection if result.selection is not None else pd.DataFrame()).to_dict("records"):
            level = str(row.get("profiles", ""))
            name = f"{result.name}: {level}" if len(results) > 1 else level
            rows.append(
                [name, *(_said_number(row[key]) for key in ("rule", "rows_removed", "rows_left", "classes_left"))]
            )
    if not rows:
        return "selection", "Selection before scoring", "<p>Nothing was scored, so nothing was selected.</p>"
    head = ["Profiles", "Rule", "Removed", "Left", "Classes left"]
    return "selection", "Selection before scoring", _table(head, rows, "Rules in the order in which they were applied.")


def _left_out(results: Sequence[Result]) -> tuple[str, str, str]:
    rows = []
    for result in results:
        for group in result.left_out:
            first = ", ".join(map(str, group["first"]))
            more = group["count"] - len(group["first"])
            rows.append(
                [str(group["reason"]), f"{group['count']:,}", first + (f" and {more:,} more" if more > 0 else "")]
            )
    rows = [list(row) for row in dict.fromkeys(map(tuple, rows))]
    if not rows:
        return "left", "Left out", "<p>Nothing was left out.</p>"
    return (
        "left",
        "Left out",
        _table(["Why", "Count", "What"], rows, "Sites, cells and wells that no result is made of."),
    )


def _provenance(results: Sequence[Result], settings: str) -> tuple[str, str, str]:
    parts = []
    for result in results:
        rows = [[name, value] for name, value in _flat(result.provenance)]
        if rows:
            heading = f"<h3>{escape(result.name)}</h3>" if len(results) > 1 else ""
            parts.append(heading + _table(["Setting", "Value"], rows, "How these profiles were made."))
    if settings:
        parts.append(f"<details><summary>study.yaml</summary><pre>{escape(settings)}</pre></details>")
    return "provenance", "Provenance", "\n".join(parts) or "<p>No settings were given.</p>"


def _flat(found: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in found.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            rows.append((f"{prefix}{name}", text))
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    top = "".join(f'<th scope="col">{escape(word)}</th>' for word in head)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    kind = "table long" if len(rows) > _LONG else "table"
    return (
        f'<div class="{kind}"><table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
        f'<p class="caption">{escape(caption)}</p>'
    )


def _list(notes: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(notes))
    return f"<ul>{lines}</ul>" if lines else ""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _said_number(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or pd.isna(value):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.3g}"
