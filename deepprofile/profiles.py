"""From single cells to well profiles, normalised wells, treatments and scores: the stages after the network."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cytominer_tools.aggregation import reduced
from cytominer_tools.arrays import Floats
from cytominer_tools.columns import COUNT, METADATA, PLATE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_folder, atomic_path
from cytominer_tools.frames import with_features
from cytominer_tools.ledger import features_of, read_ledger
from cytominer_tools.manifest import Manifest, PlateTable, changes, digest
from cytominer_tools.tables import read_table, write_table
from cytominer_tools.threads import map_ahead, workers
from deepprofile.features import feature_settings, plate_features
from deepprofile.index import constant_metadata, load_index, sites_by_well
from deepprofile.recipes import Step
from deepprofile.scoring import across_columns, across_words, batch_scores, scored_rows, write_strong
from deepprofile.steps import Roles, run_steps, treatment_profiles
from deepprofile.study import Study
from deepprofile.work import Done
from evaluation.neighbourhoods import MIXING

WELLS, NORMALIZED, SELECTED, CONSENSUS = "wells.parquet", "normalized.parquet", "selected.parquet", "consensus.parquet"


@dataclass(frozen=True)
class _Made:
    """A table, what is left out of it and why, and its ledger."""

    table: pd.DataFrame
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)


def aggregate_wells(study: Study) -> Done:
    """Write wells.parquet (level 3): the cells of each well in one row, with the well's metadata.

    Metadata_Count is the number of cells. A well with fewer than `profiles.min_cells` has no row and is reported.

    Raises
    ------
    InputError
        The features of a well are not made, or no well has a cell.
    """
    index = load_index(study)
    plates = index[PLATE].unique()
    tables = {plate: plate_features(study, plate) for plate in plates}
    wells_of = {plate: list(sites_by_well(index, plate)) for plate in plates}
    _require_one_network(study, tables)
    for plate, table in tables.items():
        # all but the hash of the weights, for which the network would have to be built
        settings = table.manifest.settings | feature_settings(study)
        table.manifest.require(wells_of[plate], settings, "deepprofile profile")
    by = [PLATE, WELL]
    metadata = index.groupby(by, sort=True)[constant_metadata(index, by)].first().reset_index()
    parts = {plate: {well: tables[plate].manifest.parts[well].key for well in wells_of[plate]} for plate in plates}
    fewest = study.profiles.min_cells
    inputs = [parts, study.profiles.operation, metadata.to_json(), *([fewest] if fewest > 1 else [])]

    if _link_wells(study, digest(inputs)):
        part = Manifest.read(study.profiles_folder, "profiles").parts[WELLS]
        return Done("aggregate", 1, 0, part.rows, "wells", part.skipped)

    def make() -> _Made:
        rows, keys, left_out = [], [], []
        wells = [(plate, well) for plate in tables for well in wells_of[plate]]

        def profile(place: tuple[str, str]) -> tuple[int, Floats | None]:
            plate, well = place
            cells = tables[plate].read(well, ["features"])["features"].combine_chunks()
            values = np.asarray(cells.flatten(), np.float32).reshape(len(cells), cells.type.list_size)
            if len(cells) < fewest:
                return len(cells), None
            return len(cells), reduced(values, np.zeros(len(values), np.int64), study.profiles.operation)[0]

        with closing(map_ahead(profile, wells, workers())) as profiles:
            for (plate, well), (n, row) in zip(wells, profiles, strict=True):
                if row is not None:
                    rows.append(row)
                    keys.append((plate, well, n))
                else:
                    few = f"{n} cells, fewer than profiles.min_cells ({fewest})"
                    left_out.append((f"{plate} {well}", few if n else "no cells"))
        if not rows:
            if fewest > 1:
                raise InputError(f"{study.features}: no well has {fewest} cells; lower profiles.min_cells")
            raise InputError(f"{study.features}: no well has a cell; look at the locations and at crops.border")
        names = feature_names(study, len(rows[0]))
        table = pd.DataFrame(keys, columns=[PLATE, WELL, COUNT]).merge(metadata, on=by, how="left", validate="1:1")
        table = with_features(table, np.stack(rows), names)
        said = {"operation": study.profiles.operation, "min_cells": fewest}
        cells_of = int(table[COUNT].sum())
        step = {"step": "aggregate", "rows": [cells_of, len(table)], "features": [len(names)] * 2, "settings": said}
        return _Made(table, left_out, [{**step, "dropped": {}}])

    return _write(study, "aggregate", WELLS, inputs, make, "wells")


def _require_one_network(study: Study, tables: Mapping[str, PlateTable]) -> None:
    """Refuse plates whose features are of other weights than those of the first: profiling was stopped half way."""
    made = {
        plate: table.manifest.settings.get("weights_hash") for plate, table in tables.items() if table.manifest.parts
    }
    first = next(iter(made), "")
    if other := next((plate for plate, weights in made.items() if weights != made[first]), None):
        raise InputError(
            f"{study.features}: plates {first} and {other} were made by networks of other weights; run `deepprofile "
            "profile`"
        )


def feature_names(study: Study, width: int) -> list[str]:
    """MODEL_0, .. of all `width` features; MODEL_CHANNEL_0, .. where the network sees channel by channel."""
    model = study.profile.name
    if study.profile.mode == "multi_channel":
        return [f"{model}_{i}" for i in range(width)]
    each = width // len(study.channels)
    return [f"{model}_{channel}_{i}" for channel in study.channels for i in range(each)]


def _link_wells(study: Study, key: str) -> bool:
    """Take wells.parquet from another recipe of the same features, where it is current there and not here."""
    manifest = Manifest.read(study.profiles_folder, "profiles")
    if manifest.is_current(WELLS, key):
        return False
    for path in sorted(study.profiles_folder.parent.glob("*/manifest.json")):
        other = Manifest.read(path.parent, "profiles")
        if other.is_current(WELLS, key):
            with study.writing(), atomic_path(study.profiles_folder / WELLS) as linked:
                try:
                    linked.hardlink_to(path.parent / WELLS)  # neither is ever written to, only replaced
                except OSError:  # a file system without links
                    shutil.copyfile(path.parent / WELLS, linked)
            manifest.record(WELLS, key, WELLS, other.parts[WELLS].rows, other.parts[WELLS].skipped)
            return True
    return False


def normalize_wells(study: Study) -> Done:
    """Write normalized.parquet (level 4a) and, where the recipe selects features at its end, selected.parquet (4b).

    The steps of the recipe before its consensus, on the wells of all plates at once; see `deepprofile.recipes`.

    Raises
    ------
    InputError
        There are no wells, or a step has nothing to learn from.
    """
    manifest, wells = read_profiles(study, WELLS, "deepprofile aggregate")
    recipe, roles = study.recipe, _roles(study)

    def normalize() -> _Made:
        ledger = read_ledger(manifest.folder / WELLS)
        return _Made(run_steps(wells, recipe.of_wells, roles, ledger), ledger=ledger)

    done = _write(study, "normalize", NORMALIZED, _normalized_from(study, manifest), normalize, "wells")
    if not recipe.selection:
        manifest = Manifest.read(study.profiles_folder, "profiles")
        if manifest.parts.pop(SELECTED, None) is not None:  # of other steps under this name
            with study.writing():
                manifest.save()
                (manifest.folder / SELECTED).unlink(missing_ok=True)
        return done
    manifest, normalized = read_profiles(study, NORMALIZED, "deepprofile normalize")

    def choose() -> _Made:
        ledger = read_ledger(manifest.folder / NORMALIZED)
        return _Made(run_steps(normalized, recipe.selection, roles, ledger), ledger=ledger)

    selected = _write(study, "normalize", SELECTED, _selected_from(study, manifest), choose, "wells")
    made = int(done.made or selected.made)
    return replace(selected, made=made, kept=1 - made)


def final_wells(study: Study) -> str:
    """The file of the wells that the consensus is made of: selected.parquet, or normalized.parquet if there is none."""
    return SELECTED if study.recipe.selection else NORMALIZED


def _roles(study: Study) -> Roles:
    return Roles(study.controls, study.profiles.fit, study.columns.batch, study.root)


def consensus_profiles(study: Study) -> Done:
    """Write consensus.parquet (level 5): one profile of the wells of each treatment and concentration.

    Metadata that is the same in every well of a treatment is kept; Metadata_Count is the mean of its wells. A well
    whose treatment is not given is left out and reported.

    Raises
    ------
    InputError
        There are no normalised wells, or nothing says what a treatment is.
    """
    manifest, wells = read_profiles(study, final_wells(study), "deepprofile normalize")
    by = list(study.consensus)
    if not by:
        raise InputError("study.yaml: no column says what a treatment is; set columns.treatment or columns.compound")

    def make() -> _Made:
        named = wells[by[0]].notna() & (wells[by[0]].astype(str) != "")
        treated = wells[named]
        if treated.empty:
            raise InputError(f"no well has a {by[0]}; look at columns and at images.metadata in study.yaml")
        keep = [name for name in constant_metadata(treated, by) if name not in (PLATE, WELL, COUNT)]
        ledger = read_ledger(manifest.folder / final_wells(study))
        profiles = treatment_profiles(treated, study.recipe, by, keep, _roles(study), ledger)
        counts = treated.groupby(by, dropna=False, sort=True, observed=True)[COUNT].mean().to_numpy()
        profiles.insert(len(by) + len(keep), COUNT, counts)
        left = (wells.loc[~named, PLATE] + " " + wells.loc[~named, WELL]).tolist()
        return _Made(profiles, [(well, f"no {by[0]}") for well in left], ledger)

    return _write(study, "consensus", CONSENSUS, _consensus_from(study, manifest), make, "treatments")


def score_profiles(study: Study) -> Done:
    """Write scores.csv, scores.json, selection.csv, queries_*.csv, batch.csv and figures to scores/MODEL/RECIPE/.

    Wells by `scores.replicates` (the treatment by default) and treatments by `scores.labels` (the MOA), each score
    beside its baselines on the same rows; control wells by batch and position, where there are controls; strong.csv
    with the `scores.strongest` treatments.

    Raises
    ------
    InputError
        There are no profiles, or neither kind of label is named.
    """
    from evaluation.figures import score_figure

    manifest, treatments = read_profiles(study, CONSENSUS, "deepprofile consensus")
    wells_file = final_wells(study)
    wells = read_table(study.profiles_folder / wells_file)
    twin = study.untrained
    if twin:
        read_profiles(twin, CONSENSUS, "deepprofile run")
    labels = _labels(study)
    levels = [
        _Level("replicates", wells, wells_file, labels["replicates"], study.scores.exclude_same),
        _Level("treatments", treatments, CONSENSUS, labels["treatments"], ()),
    ]
    # a treatment that is in several batches has none
    across = {
        level.name: [name for name in across_columns(study, level.name) if name in level.profiles] for level in levels
    }
    levels = [level for level in levels if level.label]
    if not levels:
        raise InputError("study.yaml: nothing says which profiles match; set columns.treatment or columns.moa")
    done = Manifest.read(study.scores_folder, "scores")
    done.expect(_score_settings(study, manifest))
    key = done.key([])  # all that the scores depend on stands in the settings
    if done.is_current("scores.csv", key):
        return Done("score", 0, 1, done.parts["scores.csv"].rows, "scores")
    # one folder at once, so that nothing of an earlier run stays in it
    with study.writing(), atomic_folder(study.scores_folder) as folder:
        scores = [_score_level(study, twin, level, across[level.name], folder) for level in levels]
        table = _stacked(levels, [found.table for found in scores])
        write_table(_stacked(levels, [found.selection for found in scores]), folder / "selection.csv")
        batches, mixed = batch_scores(study, read_table(study.profiles_folder / WELLS))
        if batches is not None:
            write_table(batches, folder / "batch.csv")
        if mixed is not None:
            table = pd.concat([table, mixed], ignore_index=True)
        if study.scores.strongest is not None:
            write_strong(study, wells, treatments, folder / "strong.csv")
        (folder / "scores.json").write_text(table.to_json(orient="records", indent=1) + "\n", "utf-8")
        named = table[["profiles", "labels", "across"]].fillna("").astype(str).to_numpy().tolist()
        names = [f"{level}, {label.removeprefix(METADATA)}{across_words(columns)}" for level, label, columns in named]
        _save(score_figure(table, names=names), folder / "scores.png")
        write_table(table, folder / "scores.csv")
        Manifest(folder, "scores", done.settings).record("scores.csv", key, "scores.csv", len(table))
    return Done("score", 1, 0, len(table), "scores")


def _labels(study: Study) -> dict[str, str | None]:
    """The column by which the profiles of each level match."""
    return {
        "replicates": study.scores.replicates or study.treatment,
        "treatments": study.scores.labels or study.columns.moa,
    }


def _score_settings(study: Study, manifest: Manifest) -> dict[str, Any]:
    """All that the scores depend on; `manifest` is that of the profiles."""
    twin = study.untrained
    untrained = Manifest.read(twin.profiles_folder, "profiles").parts.get(CONSENSUS) if twin else None
    return {
        "profiles": manifest.parts[CONSENSUS].key,
        "untrained": untrained.key if untrained else None,
        "scores": study.scores.model_dump(mode="json"),
        "labels": _labels(study),
        "columns": {
            "batch": study.columns.batch,
            "compound": study.columns.compound or study.treatment,
            "treatment": study.treatment,
        },
        "controls": study.controls,
        "seed": study.seed,
    }


def stale_scores(study: Study, manifest: Manifest) -> str:
    """How the scores of a study differ from those that `score_profiles` would make now; empty where they do not.

    Parameters
    ----------
    study : Study
        With one recipe, that was scored.
    manifest : Manifest
        As `read_profiles` returns it for the consensus.
    """
    made, now = Manifest.read(study.scores_folder, "scores").settings, _score_settings(study, manifest)
    if made.get("profiles") != now["profiles"]:
        return "made before these profiles"
    made["untrained"], untrained = now["untrained"], made.get("untrained")
    changed = changes(made, now)
    if changed:
        return f"made under other settings ({changed[0]})"
    return "" if untrained == now["untrained"] else "made before the profiles of the untrained network"


@dataclass(frozen=True)
class _Level:
    """Profiles that are scored together: replicate wells, or treatments."""

    name: str
    profiles: pd.DataFrame
    file: str
    label: str | None
    exclude: tuple[str, ...]


def _score_level(study: Study, twin: Study | None, level: _Level, across: list[str], folder: Path) -> Any:
    from evaluation.figures import similarity_figure

    found = _score(study, level.profiles, level)
    tables = [found.table, *(_score(study, level.profiles, level, name).table for name in across)]
    if twin:
        profiles = read_table(twin.profiles_folder / level.file)
        for table, name in zip(tables, (None, *across), strict=True):
            table["untrained"] = _score(twin, profiles, level, name).table["value"]
    found = replace(found, table=pd.concat(tables, ignore_index=True))
    write_table(found.queries, folder / f"queries_{level.name}.csv")
    features = features_of(level.profiles)
    # the median of two controls is where spherizing puts zero, and zero has no direction
    drawn = level.profiles[(level.profiles[features] != 0).any(axis=1)]
    if len(drawn) > 1:
        what = "wells" if level.name == "replicates" else "treatments"
        title = f"Cosine similarity of {len(drawn)} {what}"
        _save(
            similarity_figure(drawn, str(level.label), features, title=title), folder / f"similarity_{level.name}.png"
        )
    return found


def _score(study: Study, profiles: pd.DataFrame, level: _Level, across: str | None = None) -> Any:
    from evaluation.scores import score

    chosen = study.scores
    return score(
        profiles,
        labels=str(level.label),
        features=features_of(profiles),
        metrics=[name for name in chosen.metrics if name not in MIXING],
        exclude_same=[*level.exclude, *([across] if across else [])],
        select=scored_rows(study),
        min_class_size=chosen.min_class_size,
        permutations=chosen.permutations,
        permute_within=PLATE if PLATE in profiles else None,
        baselines=[name for name in chosen.baselines if name != "untrained"],
        seed=study.seed,
    )


def read_profiles(
    study: Study, name: str, command: str, *, again: str = "deepprofile run"
) -> tuple[Manifest, pd.DataFrame]:
    """The table `name` of the study's recipe, and what is recorded of it.

    Raises
    ------
    InputError
        It is not made, with `command` as the mend, or was made under other settings or of other tables, with `again`.
    """
    manifest = Manifest.read(study.profiles_folder, "profiles")
    chain = [WELLS, NORMALIZED, *([SELECTED] if study.recipe.selection else []), CONSENSUS]
    chain = chain[: chain.index(name) + 1]
    manifest.require(chain, {}, command)
    made_from = {NORMALIZED: _normalized_from, SELECTED: _selected_from, CONSENSUS: _consensus_from}
    for table in chain[1:]:
        if manifest.parts[table].key != digest(made_from[table](study, manifest)):
            raise InputError(
                f"{manifest.folder / table} was made from other profiles or under other settings; run `{again}`"
            )
    return manifest, read_table(manifest.folder / name)


def _normalized_from(study: Study, manifest: Manifest) -> list[Any]:
    return [manifest.parts[WELLS].key, _said(study, study.recipe.of_wells)]


def _selected_from(study: Study, manifest: Manifest) -> list[Any]:
    return [manifest.parts[NORMALIZED].key, _said(study, study.recipe.selection)]


def _consensus_from(study: Study, manifest: Manifest) -> list[Any]:
    steps = _said(study, study.recipe.of_treatments)
    return [manifest.parts[final_wells(study)].key, list(study.consensus), steps]


def _said(study: Study, steps: Iterable[Step]) -> list[Any]:
    """What `steps` do in this study, as JSON values."""
    return [_roles(study).resolved(step) for step in steps]


def _write(
    study: Study,
    stage: str,
    name: str,
    inputs: Any,
    make: Callable[[], _Made],
    unit: str,
) -> Done:
    manifest = Manifest.read(study.profiles_folder, "profiles")
    key = digest(inputs)
    current = manifest.is_current(name, key)
    if not current:
        with study.writing():
            made = make()
            write_table(made.table, manifest.folder / name, made.ledger)
            manifest.record(name, key, name, len(made.table), made.skipped)
    part = manifest.parts[name]
    return Done(stage, int(not current), int(current), part.rows, unit, part.skipped)


def _stacked(levels: list[_Level], tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The tables of all levels, one below the other, a first column saying which."""
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "profiles", np.repeat([level.name for level in levels], [len(rows) for rows in tables]))
    return table


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150, metadata={"Software": None})  # no version, so that equal figures are equal files


def score_lines(study: Study) -> list[str]:
    """The score table of `study` as lines of text, each score beside its baselines on the same rows."""
    table = read_table(study.scores_folder / "scores.csv")
    head = ["profiles by", "score", "value", "permuted mean", "95 %", "p", "cell count", "n"]
    columns = ["value", "permutation_mean", "permutation_95", "p", "cell_count"]
    if "untrained" in table:
        head.insert(7, "untrained")
        columns.append("untrained")
    rows = [head]
    notes = []
    for row in table.to_dict("records"):
        name = f"{row['profiles']} by {row['labels'].removeprefix(METADATA)}{across_words(row.get('across'))}"
        rows.append([name, row["score"], *(_number(row[c]) for c in columns), f"{row['n']:,}"])
        if row["score"] not in MIXING and row["value"] <= row.get("cell_count", np.nan):
            notes.append(f"{name}, {row['score']}: no better than the cell count alone")
        notes += [
            f"{name}, {row['score']}: {row[c]}" for c in ("reason", "notes") if isinstance(row[c], str) and row[c]
        ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    similarity = table["similarity"].iloc[0]
    return [*lines, f"Similarity: {similarity}. Model: {study.profile.name}. Recipe: {study.profiles.recipe}.", *notes]


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.3g}"
