"""One table of runs: every model, recipe and epoch of some studies, and profiles from elsewhere, on the same rows."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from cytominer_tools.aggregation import consensus
from cytominer_tools.columns import METADATA, PLATE, WELL, metadata_columns, require_columns
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path, safe_name
from cytominer_tools.frames import profile_features
from cytominer_tools.manifest import Manifest
from cytominer_tools.queries import select
from cytominer_tools.tables import read_table, write_table
from deepprofile.problems import named
from deepprofile.profiles import CONSENSUS, final_wells, read_profiles
from deepprofile.recipes import BUILT_IN
from deepprofile.schedules import best_epoch
from deepprofile.scoring import scored_rows
from deepprofile.study import Study
from deepprofile.work import log
from evaluation.comparison import SCORES, Comparison, compare_runs, comparison_figure

_WORDS = {"enrichment": "enrichment", "precision_at_r": "precision at R", "mean_average_precision": "mAP"}
Level = Literal["treatments", "replicates"]
_EPOCH = re.compile(r"(?:^|/)models/([^/]+)/(?:epochs/0*(\d+)|model|best)\.keras$")


@dataclass(frozen=True)
class Compared:
    """Where a comparison was written, and what it found.

    Attributes
    ----------
    folder : Path
        Holds compare.csv, compare.json and compare.png.
    table : DataFrame, a row a run
        run, study, model, recipe, epoch, the columns of `evaluation.comparison.Comparison.table`, train_accuracy,
        val_accuracy, and batch_before, batch_after (odds ratio of control wells that share their batch, or plate where
        there are no batches; after normalization by wells held out), batch_share_before, batch_share_after and
        batch_expected (of the top pairs, and of all).
    comparison : Comparison
    left_out : list of (run, reason)
        Runs, or what is known of them, that are not of the settings of now; the reason names the command that mends it.
    """

    folder: Path
    table: pd.DataFrame
    comparison: Comparison
    left_out: list[tuple[str, str]]

    def lines(self) -> list[str]:
        """The table as text, the tests against its first run, and the profiles that were compared."""
        head = [
            "run",
            *_WORDS.values(),
            "train acc",
            "val acc",
            "batch before",
            "batch after",
            "n",
        ]
        rows = [head]
        for row in self.table.to_dict("records"):
            scores = [_with_ends(row[s], row[f"{s}_low"], row[f"{s}_high"]) for s in SCORES]
            others = [_number(row[c]) for c in ("train_accuracy", "val_accuracy", "batch_before", "batch_after")]
            rows.append([str(row["run"]), *scores, *others, f"{row['n']:,}"])
        widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
        lines = ["  ".join(c.ljust(w) if not i else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
                 for r in rows]  # fmt: skip
        lines.append(
            "In brackets: 95 % intervals. Batch: odds ratio of sharing a batch (or plate) among the most similar "
            "control wells, before and after normalization; 1 by chance."
        )
        first, pairs = self.table["run"].iloc[0], self.comparison.pairs
        for run in self.table["run"].iloc[1:]:
            told = []
            for row in pairs[(pairs["against"] == first) & (pairs["run"] == run)].to_dict("records"):
                if np.isfinite(row["difference"]):
                    change = (
                        f"x {row['difference']:.3g}" if row["score"] == "enrichment" else f"{row['difference']:+.3g}"
                    )
                    ends = f"{_number(row['low'])} to {_number(row['high'])}"
                    told.append(f"{_WORDS[row['score']]} {change} ({ends}), p = {_number(row['p'])}")
            if told:
                lines.append(f"{run} against {first}: {'; '.join(told)}")
        selection = self.comparison.selection
        steps = list(zip(selection["rule"].tolist(), selection["rows_left"].tolist(), strict=True))
        runs = steps[: len(self.table)]  # the first ones say how many each run has
        if len(runs) > 2 and len({rows for _, rows in runs}) == 1:
            steps = [(f"profiles of each of {len(runs)} runs", runs[0][1]), *steps[len(runs) :]]
        funnel = ", ".join(f"{rule.replace(METADATA, '')}: {rows}" for rule, rows in steps)
        lines.append(f"Compared, {self.table['labels'].iloc[0].removeprefix(METADATA)}: {funnel}.")
        for reason, those in self.table.groupby("reason", sort=False)["run"]:
            if reason:
                lines.append(f"Enrichment of {named(those)}: {reason!s}")
        return [*lines, *(f"Left out: {what}: {why}" for what, why in self.left_out)]


@dataclass(frozen=True)
class _Run:
    name: str
    about: dict[str, Any]
    profiles: pd.DataFrame
    key: str = ""  # of the consensus profiles, where they are of a study


def compare_studies(
    studies: Sequence[Study],
    *,
    profiles: Mapping[str, str | Path] | None = None,
    level: Level | None = None,
    out: Path | None = None,
) -> Compared:
    """Write compare.csv, compare.json and compare.png: all runs of `studies`, on the profiles that all of them have.

    A run is a folder profiles/MODEL/RECIPE; one that was made under other settings than those of now is left out and
    reported. Labels, the query of `scores` and the key of a profile are those of the
    first study; columns of the others are named as in it.

    Parameters
    ----------
    studies : list of Study
    profiles : dict, name -> file
        Tables of profiles from elsewhere, such as those of an ImageNet network or CellProfiler. Wells become treatments
        by the median.
    level : "treatments" or "replicates", optional
        Treatments by MOA, or wells by treatment; treatments where a MOA is known.
    out : Path, optional
        The folder to write to; by default scores/ of the first study.

    Raises
    ------
    InputError
        A study has no profiles, or none of the settings of now; nothing says which of them match; or the runs have none
        in common.
    """
    if not studies:
        raise InputError("compare: name a study")
    first = studies[0]
    label = first.scores.labels or first.columns.moa
    level = level or ("treatments" if label else "replicates")
    if level == "replicates":
        label = first.scores.replicates or first.treatment
    if not label:
        raise InputError("study.yaml: nothing says which profiles match; set columns.treatment or columns.moa")
    key = list(first.consensus) if level == "treatments" else [PLATE, WELL]
    if not key:
        raise InputError("study.yaml: no column says what a treatment is; set columns.treatment or columns.compound")
    left_out: list[tuple[str, str]] = []
    runs = [run for study in studies for run in _study_runs(study, first, level, len(studies) > 1, left_out)]
    runs += [_from_file(name, Path(path), key, level) for name, path in (profiles or {}).items()]
    if twice := [run.name for at, run in enumerate(runs) if run.name in {one.name for one in runs[:at]}]:
        raise InputError(f"compare: two runs are called {twice[0]}; give the file another name, or name a study once")
    query = scored_rows(first)
    exclude = list(first.scores.exclude_same) if level == "replicates" else []
    compared = compare_runs(
        {run.name: _chosen(run, query, first.controls if level == "treatments" else None) for run in runs},
        key=key,
        labels=label,
        exclude_same=exclude,
        seed=first.seed,
    )
    about = pd.DataFrame([{"run": run.name, **run.about} for run in runs])
    table = about[["run", "study", "model", "recipe", "epoch"]].merge(compared.table, on="run", validate="1:1")
    table = table.merge(about.drop(columns=["study", "model", "recipe", "epoch"]), on="run", validate="1:1")
    folder = first.root / "scores" if out is None else out
    with first.writing():
        _write(folder, table, compared, level, {run.name: run.key for run in runs if run.key}, left_out)
    return Compared(folder, table, compared, left_out)


def _study_runs(study: Study, first: Study, level: Level, several: bool, left_out: list[tuple[str, str]]) -> list[_Run]:
    """The runs of a study that are of the settings of now; the others are added to `left_out`."""
    folders = sorted(path.parent for path in (study.root / "profiles").glob(f"*/*/{CONSENSUS}"))
    if not folders:
        raise InputError(f"{study.root / 'profiles'}: no profiles; run `deepprofile run`")
    recipes = {folder.name for folder in folders}
    names = {getattr(study.columns, role): getattr(first.columns, role) for role in type(study.columns).model_fields}
    rename = {own: theirs for own, theirs in names.items() if own is not None and theirs is not None and own != theirs}
    by_run = {one.profiles_folder for sets in study.feature_sets for one in sets.recipe_sets}
    runs: list[_Run] = []
    stale: list[tuple[str, str]] = []
    for folder in folders:
        model, recipe = folder.parent.name, folder.name
        name = " ".join([*([study.root.name] if several else []), model, *([recipe] if len(recipes) > 1 else [])])
        asked = f"--model {model} --recipe {recipe}"
        mend = f"deepprofile normalize {asked}`, then `deepprofile consensus {asked}"
        mend = "deepprofile run" if folder in by_run else mend
        try:
            one = _of_folder(study, folder)
            manifest, table = read_profiles(one, CONSENSUS, mend, again=mend)
            if level == "replicates":
                table = read_table(folder / final_wells(one))
        except InputError as error:
            why = str(error)
            if folder not in by_run and not (study.root / "features" / model / "card.json").is_file():
                gone = f"its features are gone: delete {folder.parent}, or profile with this model again"
                why = why.replace(f"run `{mend}`", gone)
            log.warning("compare: %s is left out: %s", name, why)
            stale.insert(0 if folder in by_run else len(stale), (name, why))
            continue
        about = {"study": study.root.name, "model": model, "recipe": recipe, **_training(study, model)}
        key, scored = manifest.parts[CONSENSUS].key, Manifest.read(one.scores_folder, "scores")
        about |= _batch(study, model, recipe) if scored.settings.get("profiles") == key else _NO_BATCH
        if scored.parts and scored.settings.get("profiles") != key:
            stale.append(
                (f"batch of {name}", f"its scores were made before its profiles; run `deepprofile score {asked}`")
            )
        runs.append(_Run(name, about, table.rename(columns=rename), key))
    if not runs:
        raise InputError(stale[0][1])
    left_out += stale
    return runs


def _of_folder(study: Study, folder: Path) -> Study:
    """The study with the model and the recipe of profiles/MODEL/RECIPE."""
    for recipe in [*BUILT_IN, *study.recipes]:
        if safe_name(recipe) == folder.name:
            return study.with_model(folder.parent.name).with_recipe(recipe)
    raise InputError(f"{folder}: study.yaml has no recipe of this name; write it there again, or delete the folder")


def _from_file(name: str, path: Path, key: list[str], level: Level) -> _Run:
    table = read_table(path)
    require_columns(table, key, str(path))
    table = table[[*metadata_columns(table), *profile_features(table)]]
    if level == "treatments" and table.duplicated(key).any():
        keep = [name for name in metadata_columns(table) if name not in key]
        keep = [c for c in keep if (table.groupby(key, dropna=False)[c].nunique(dropna=False) == 1).all()]
        table = consensus(table, key, keep=keep)
    about = {"study": path.name, "model": name, "recipe": None, "epoch": None}
    return _Run(name, {**about, **_NO_TRAINING, **_NO_BATCH}, table)


def _chosen(run: _Run, query: str | None, controls: str | None) -> pd.DataFrame:
    """The profiles that are scored; controls are no treatment."""
    table = run.profiles
    for asked in (query, None if controls is None else f"not ({controls})"):
        try:
            table = table if asked is None else table[select(table, asked)]
        except InputError:
            if run.about["recipe"] is not None:
                raise
            # a table from elsewhere may lack the columns of the query; only rows that the others have too are compared
    return table


_NO_TRAINING = {"train_accuracy": np.nan, "val_accuracy": np.nan}
_NO_BATCH = dict.fromkeys(
    ("batch_before", "batch_after", "batch_share_before", "batch_share_after", "batch_expected"), np.nan
)


def _training(study: Study, model: str) -> dict[str, Any]:
    """The epoch of the network behind a set of features, and its accuracies then."""
    nothing = {"epoch": None, **_NO_TRAINING}
    try:
        weights = str(json.loads((study.root / "features" / model / "card.json").read_text("utf-8")).get("weights"))
    except (FileNotFoundError, ValueError):
        return nothing
    folder, epoch = study.models / weights, None
    if match := _EPOCH.search(weights):
        folder, epoch = study.models / match[1], match[2]
    if not (folder / "history.csv").is_file():
        return nothing
    history = read_table(folder / "history.csv")
    if epoch is not None:
        number = int(epoch)
    else:
        settings = json.loads((folder / "card.json").read_text("utf-8"))["training"]["train"]
        # what training keeps: the best epoch where it may stop early, else the last
        number = best_epoch(history["val_accuracy"].tolist()) + 1 if settings.get("patience") else len(history)
    row = history[history["epoch"] == number]
    if row.empty:
        return nothing
    accuracies = {"train_accuracy": float(row["accuracy"].iloc[0]), "val_accuracy": float(row["val_accuracy"].iloc[0])}
    return {"epoch": number, **accuracies}


def _batch(study: Study, model: str, recipe: str) -> dict[str, Any]:
    path = study.root / "scores" / model / recipe / "batch.csv"
    if not path.is_file():
        return dict(_NO_BATCH)
    table = read_table(path)
    group = study.columns.batch if study.columns.batch in set(table["by"]) else PLATE
    found = dict(_NO_BATCH)
    for state, when in (("wells", "before"), ("normalized, held out", "after")):
        row = table[(table["profiles"] == state) & (table["by"] == group)]
        if len(row) and "odds_ratio" in row:
            found[f"batch_{when}"] = float(row["odds_ratio"].iloc[0])
            found[f"batch_share_{when}"] = float(row["top_share"].iloc[0])
            if when == "before":
                found["batch_expected"] = float(row["expected_share"].iloc[0])
    return found


def _write(
    folder: Path,
    table: pd.DataFrame,
    compared: Comparison,
    level: Level,
    keys: Mapping[str, str],
    left_out: Sequence[tuple[str, str]],
) -> None:
    write_table(table, folder / "compare.csv")
    told = {
        "level": level,
        "made_of": keys,
        "left_out": left_out,
        "runs": _records(table),
        "pairs": _records(compared.pairs),
        "selection": _records(compared.selection),
        "curves": {
            run: {name: _records(curve) for name, curve in curves.items()} for run, curves in compared.curves.items()
        },
    }
    with atomic_path(folder / "compare.json") as path:
        path.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", "utf-8")
    with atomic_path(folder / "compare.png") as path:
        comparison_figure(compared).savefig(path, dpi=150, metadata={"Software": None})


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values, None for what is missing or infinite; DataFrame.to_json makes 0 of a p of 1e-11."""
    known = table.notna() & ~table.isin([np.inf, -np.inf])
    values = table.astype(object).where(known, None)
    return [dict(zip(map(str, table.columns), row, strict=True)) for row in values.itertuples(index=False, name=None)]


def _with_ends(value: float, low: float, high: float) -> str:
    return "-" if pd.isna(value) else f"{_number(value)} ({_number(low)}-{_number(high)})"


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.3g}"
