"""Everything that is wrong with a study, and what its layout cannot tell apart, before hours are spent."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from cytominer_tools.columns import CELL, COUNT, PLATE, SITE, WELL, require_columns
from cytominer_tools.errors import InputError
from cytominer_tools.files import safe_name
from cytominer_tools.queries import select
from cytominer_tools.threads import map_ahead, workers
from deepprofile.codes import plain_text
from deepprofile.crop_selection import read_treatments
from deepprofile.deepprofiler_weights import require_channels
from deepprofile.export import EIGHT_BITS
from deepprofile.images import read_image
from deepprofile.index import other_machine, read_index
from deepprofile.labels import make_labels
from deepprofile.location_files import LocationFiles, misfit, off_image
from deepprofile.problems import Problem, named
from deepprofile.recipes import Correct, Normalize, Spherize, find_recipe
from deepprofile.references import parse
from deepprofile.registry import names
from deepprofile.scoring import across_columns
from deepprofile.sites import site_paths, site_rows
from deepprofile.splits import split_cells
from deepprofile.steps import Roles
from deepprofile.study import Study
from deepprofile.work import progress
from evaluation.neighbourhoods import MIXING

_FEW_CONTROLS = 16
_FEW_TREATMENTS = 16


def check_study(study: Study) -> list[Problem]:
    """Read every image and location file of `study` and list what is wrong, each with its file or row.

    Errors: missing, unreadable, flat or odd-sized images, absent channels, duplicate sites, location files that are
    missing or point off the image, no controls. Warnings: wells without treatment, few controls, and confounding:
    treatments without replicates, replicates that share a well position, treatments that occur in one batch only.

    Raises
    ------
    InputError
        There is no index to look at.
    """
    index, problems = read_index(study)
    shapes: dict[tuple[str, str, str], tuple[int, ...]] = {}
    problems += other_machine(study, index)
    problems += [*_plugins(study), *_images(study, index, shapes), *_locations(study, index, shapes)]
    problems += [*_controls(study, index), *_treatments(study, index), *_score_roles(study), *_scored(study, index)]
    problems += [*_scopes(study, index), *_exported(study, index), *_trained(study, index)]
    return problems


def _plugins(study: Study) -> Iterator[Problem]:
    for place, group, name in (
        ("profile.network", "deepprofile.networks", study.profile.network),
        ("locate.method", "deepprofile.locators", study.locate.method),
    ):
        if name not in names(group):
            yield Problem(f"study.yaml {place}", f"{name!r} is not installed; there are {', '.join(names(group))}")
    weights = study.weights
    to_come = study.train is not None and weights == study.models / safe_name(study.train.name) / "model.keras"
    if weights not in (None, "imagenet") and not to_come and not Path(weights).is_file():
        yield Problem("study.yaml profile.weights", f"{weights}: no such file")
    elif isinstance(weights, Path) and study.profile.mode == "multi_channel":
        try:
            require_channels(study, weights)
        except InputError as error:
            yield Problem("study.yaml channels", str(error))
    init = None if study.train is None else study.train.init
    if init not in (None, "random", "imagenet") and not study.path(init).is_file():
        yield Problem("study.yaml train.init", f"{study.path(init)}: no such file")


def _exported(study: Study, index: pd.DataFrame) -> Iterator[Problem]:
    if study.crops.mask and not study.locate.labels:
        yield Problem("study.yaml crops.mask", "it needs the label images: set locate.labels to true")
    if study.train is not None and study.crops.normalize == "zscore" and study.export.depth == "uint8":
        yield Problem("study.yaml export.depth", EIGHT_BITS)
    lists = {"export": study.export.treatments, "train": None if study.train is None else study.train.treatments}
    for section, file in lists.items():
        if file is None or study.treatment is None or study.treatment not in index:
            continue
        try:
            listed = read_treatments(study.path(file), study.treatment)
        except InputError as error:
            yield Problem(f"study.yaml {section}.treatments", str(error))
            continue
        known = {plain_text(value) for value in index[study.treatment].dropna().unique()}
        if absent := [name for name in listed if name not in known]:
            said = f"{len(absent)} of {len(listed)} treatments in {file} are not in {study.treatment}: {named(absent)}"
            level: Literal["error", "warning"] = "error" if len(absent) == len(listed) else "warning"
            yield Problem(f"study.yaml {section}.treatments", said, level)


def _trained(study: Study, index: pd.DataFrame) -> Iterator[Problem]:
    """What keeps the wells of the index from being split and labelled for training, as if each site had two cells."""
    if study.train is None or not len(index):
        return
    settings = study.train
    cells = index.loc[np.repeat(index.index, 2)].reset_index(drop=True).assign(**{CELL: np.tile([0, 1], len(index))})
    if settings.select is not None:
        try:
            cells = cells[select(cells, settings.select)].reset_index(drop=True)
        except InputError:
            return  # it may ask for what cells have; training says what it lacks
    try:
        controls = None if study.controls is None else select(cells, study.controls).to_numpy()
        treatments = None
        if settings.treatments is not None and study.treatment is not None:
            treatments = read_treatments(study.path(settings.treatments), study.treatment)
        split = split_cells(
            cells,
            settings.split,
            study.columns,
            label=study.label,
            seed=study.seed,
            controls=controls,
            treatments=treatments,
        )
        make_labels(cells, study.label, split.parts, min_cells=1)
    except InputError as error:
        yield Problem("study.yaml train", str(error))
        return
    for warning in split.warnings:
        yield Problem("study.yaml train.split", warning, "warning")


def _images(study: Study, index: pd.DataFrame, shapes: dict[tuple[str, str, str], tuple[int, ...]]) -> list[Problem]:
    problems: list[Problem] = []
    found: list[tuple[str, tuple[int, ...], np.dtype, str]] = []

    def read(row: dict[str, str]) -> list[tuple[str, tuple[int, ...] | None, np.dtype | None, str]]:
        answers: list[tuple[str, tuple[int, ...] | None, np.dtype | None, str]] = []
        for channel, path in site_paths(study, row).items():
            if not row[channel]:
                continue  # the index has said so
            try:
                image = read_image(path)
            except InputError as error:
                place = next((one for one in (path, *parse(path).files) if str(error).startswith(f"{one}: ")), path)
                answers.append((place, None, None, str(error).removeprefix(f"{place}: ")))
                continue
            low, high = image.min(), image.max()
            why = ""
            if not (np.isfinite(low) and np.isfinite(high)):
                why = "holds NaN or infinite pixels; export it again"
            elif low == high:
                why = f"is flat, every pixel is {low}; look at the image"
            answers.append((path, image.shape, image.dtype, why))
        return answers

    rows = site_rows(index)
    with progress("check", len(rows), "sites") as advance:
        for row, answers in zip(rows, map_ahead(read, rows, 2 * workers()), strict=True):
            advance(1)
            for path, shape, dtype, why in answers:
                if why:
                    problems.append(Problem(path, why))
                if shape is not None and dtype is not None:
                    found.append((path, shape, dtype, row[PLATE]))
                    shapes.setdefault((row[PLATE], row[WELL], row[SITE]), shape)
    if found:
        expected = "images.size in study.yaml is" if study.images.size else "the others are"
        size = study.images.size or Counter(shape for _, shape, _, _ in found).most_common(1)[0][0]
        problems += [
            Problem(path, f"{shape[0]} x {shape[1]} pixels, {expected} {size[0]} x {size[1]} (height x width)")
            for path, shape, _, _ in found
            if shape != tuple(size)
        ]
        for plate in index[PLATE].unique():
            types = sorted({str(dtype) for _, _, dtype, p in found if p == plate})
            if len(types) > 1:
                problems.append(Problem(f"plate {plate}", f"images of {' and '.join(types)}; expected one type"))
    return problems


def _locations(
    study: Study, index: pd.DataFrame, shapes: dict[tuple[str, str, str], tuple[int, ...]]
) -> Iterator[Problem]:
    if not study.locate.files:
        return
    files = LocationFiles(study, index)
    unread: dict[str, list[str]] = {}  # what is wrong with a file of many sites is said once
    for row in site_rows(index):
        place = f"{row[PLATE]} {row[WELL]} site {row[SITE]}"
        try:
            cells, labels = files.read(row)
        except InputError as error:
            unread.setdefault(str(error), []).append(place)
            continue
        shape = shapes.get((row[PLATE], row[WELL], row[SITE]))
        if cells.empty:
            yield Problem(place, f"{files.path(row)} holds no cell of it", "warning")
        elif shape is not None:
            off = off_image(cells, shape)
            if why := misfit(cells, labels, shape):
                yield Problem(place, f"{files.path(row)}: {why}")
            elif off.any():
                x, y = cells.loc[off, ["x", "y"]].iloc[0]
                yield Problem(
                    place,
                    f"{off.sum()} of {len(cells)} locations lie off the image ({shape[0]} x {shape[1]}), first "
                    f"x = {x:g}, y = {y:g}; are x and y in pixels, and not swapped?",
                )
    for why, places in unread.items():
        more = f" and {len(places) - 1} more site(s)" if len(places) > 1 else ""
        yield Problem(places[0] + more, f"no locations: {why}")


def _controls(study: Study, index: pd.DataFrame) -> Iterator[Problem]:
    if study.profiles.fit == "all" and len(index.drop_duplicates([PLATE, WELL])) < 2:
        yield Problem("wells", "1 well; spherizing needs two (stages up to aggregate do not)")
    if study.controls is None:
        if _learns_from_controls(study):
            yield Problem(
                "study.yaml controls", "no controls to learn from; set a pandas query, or profiles.fit to all"
            )
        return
    try:
        wells = index[select(index, study.controls)].drop_duplicates([PLATE, WELL])
    except InputError as error:
        yield Problem("study.yaml controls", str(error))
        return
    if wells.empty:
        column = study.treatment if study.treatment in index else None
        values = f"; {column} holds {', '.join(map(str, index[column].dropna().unique()[:5]))}" if column else ""
        yield Problem("study.yaml controls", f"no well is a control by {study.controls!r}{values}")
        return
    if bare := sorted(set(index[PLATE]) - set(wells[PLATE])):
        yield Problem(
            "controls",
            f"{len(bare)} plate(s) without a control well, first {bare[0]}; scaled over all wells",
            "warning",
        )
    if _learns_from_controls(study):
        if len(wells) < 2:
            yield Problem("controls", "1 control well; spherizing needs two, or set profiles.fit to all")
        elif len(wells) < _FEW_CONTROLS:
            yield Problem(
                "controls", f"{len(wells)} control wells; spherizing is unstable under {_FEW_CONTROLS}", "warning"
            )


def _learns_from_controls(study: Study) -> bool:
    """Whether a step of the recipes does, of those that go by some of the wells."""
    steps = [step for name in study.profiles.recipes for step in find_recipe(name, study.recipes).steps]
    fits = [getattr(step, "fit", "all") for step in steps if getattr(step, "method", "") != "harmony"]
    return "controls" in [study.profiles.fit if fit is None else fit for fit in fits]


def _scopes(study: Study, index: pd.DataFrame) -> Iterator[Problem]:
    """Whether each plate or batch has what the steps of the recipes learn from it."""
    wells = index.drop_duplicates([PLATE, WELL])
    try:
        control = select(wells, study.controls) if study.controls else pd.Series(False, index=wells.index)
    except InputError:
        return  # said above
    roles = Roles(study.controls, study.profiles.fit, study.columns.batch)
    said = {}
    for recipe in study.profiles.recipes:
        for step in find_recipe(recipe, study.recipes).steps:
            if isinstance(step, Normalize | Spherize | Correct):
                try:
                    for words in _scope_words(step, roles, wells, control, study.treatment):
                        said[recipe, words] = Problem(f"study.yaml recipe {recipe}", words, "warning")
                except InputError as error:
                    said[recipe, str(error)] = Problem(f"study.yaml recipe {recipe}", str(error))
    yield from said.values()


def _scope_words(
    step: Normalize | Spherize | Correct, roles: Roles, wells: pd.DataFrame, control: pd.Series, treatment: str | None
) -> Iterator[str]:
    what = f"{step.step} by {step.method}"
    treated = wells[~control]
    if isinstance(step, Correct) and step.method == "well_position":
        if treatment is not None and treatment in wells and len(treated):
            fixed = treated.groupby(treatment, observed=True)[WELL].nunique() == 1
            if fixed.mean() > 0.5:
                yield (
                    f"{what} takes out what wells at one position share, and {fixed.sum()} of {len(fixed)} treatments "
                    "keep theirs: it takes them out too"
                )
        return
    by = step.by
    if isinstance(step, Correct):
        by = {"median_polish": "plate", "cell_count": "all"}.get(step.method, step.by)
    columns = roles.columns(by)
    if not columns:
        return
    require_columns(wells, columns, "the index")
    scope = " and ".join(name.removeprefix("Metadata_") for name in columns)
    mend = "take a larger scope (by: all), or a recipe that spherizes over all plates, such as deep"
    if (step.fit or roles.fit) == "controls" and not (isinstance(step, Correct) and step.method == "harmony"):
        counts = control.groupby([wells[name] for name in columns]).sum()
        if isinstance(step, Spherize) and (none := counts < 2).any():
            raise InputError(
                f"{what} learns from the controls of each {scope}, and {none.sum()} of {len(counts)} have fewer than "
                f"2, which spherizing needs; {mend}"
            )
        if (few := counts < _FEW_CONTROLS).any():
            yield (
                f"{what} learns from the controls of each {scope}, and {few.sum()} of {len(counts)} have fewer than "
                f"{_FEW_CONTROLS}, down to {counts.min()}: its scale is noise; {mend}"
            )
    elif treatment is not None and treatment in wells and len(treated):
        each = treated.groupby(columns, observed=True)[treatment].nunique()
        if (few := each < _FEW_TREATMENTS).any():
            yield (
                f"{what} learns from all wells of each {scope}, and {few.sum()} of {len(each)} hold fewer than "
                f"{_FEW_TREATMENTS} treatments, down to {each.min()}: it takes a part of them for the {scope}; {mend}"
            )


def _treatments(study: Study, index: pd.DataFrame) -> Iterator[Problem]:
    column = study.treatment
    if column is None:
        yield Problem("study.yaml columns", "no treatment or compound column; profiles of wells only", "warning")
        return
    if column not in index:
        return  # the index has said so
    wells = index.drop_duplicates([PLATE, WELL])
    blank = wells[column].isna() | (wells[column].astype(str) == "")
    if blank.any():
        first = wells[blank].iloc[0]
        yield Problem(
            "treatments",
            f"{blank.sum()} of {len(wells)} wells without {column}, first {first[PLATE]} {first[WELL]}",
            "warning",
        )
    try:
        control = select(wells, study.controls) if study.controls else pd.Series(False, index=wells.index)
    except InputError:
        return  # said above
    treated = wells[~blank & ~control]
    by = [name for name in study.consensus if name in index]
    if treated.empty or not by:
        return
    groups = treated.groupby(by, dropna=False, observed=True)
    wells_each = groups.size()
    total = len(wells_each)
    single = wells_each[wells_each == 1]
    if len(single):
        yield Problem(
            "design", f"{len(single)} of {total} treatments have one well: no replicate to compare it with", "warning"
        )
    repeated = wells_each > 1
    same = groups[WELL].nunique()[repeated] == 1
    if same.any():
        example = _named(same.index[same.to_numpy()][0])
        yield Problem(
            "design",
            f"{same.sum()} of {len(same)} replicated treatments keep one well position (first {example}): "
            "replicate scores may come from the position; randomise the layout, or compare with scores of position",
            "warning",
        )
    batch = study.columns.batch
    if batch is not None and batch in index and treated[batch].nunique() > 1:
        alone = groups[batch].nunique()[repeated] == 1
        if alone.any():
            example = _named(alone.index[alone.to_numpy()][0])
            yield Problem(
                "design",
                f"{alone.sum()} of {len(alone)} replicated treatments occur in one batch only (first {example}): "
                "their likeness may be the batch's",
                "warning",
            )


def _score_roles(study: Study) -> Iterator[Problem]:
    """What the scores ask for and study.yaml does not name; they come last, when all else is computed."""
    chosen = study.scores
    if study.controls is None:
        mixed = [name for name in chosen.metrics if name in MIXING]
        asked = {"metrics": mixed, "compounds_only": chosen.compounds_only, "strongest": chosen.strongest}
        for name, value in asked.items():
            if value:
                what = f"{mixed[0]} is of control wells" if name == "metrics" else "it needs the control wells"
                yield Problem(f"study.yaml scores.{name}", f"{what}; say which, in controls of study.yaml")
    try:
        across_columns(study, "replicates")
    except InputError as error:
        yield Problem("study.yaml scores.across", str(error).removeprefix("scores.across: "))


def _scored(study: Study, index: pd.DataFrame) -> Iterator[Problem]:
    """Whether scores.select can be asked, and leaves out the controls that spherizing is fitted on."""
    wells = index.drop_duplicates([PLATE, WELL])
    chosen = pd.Series(True, index=wells.index)
    if study.scores.select is not None:
        try:  # the number of cells is not known yet
            chosen = select(wells.assign(**{COUNT: 1}), study.scores.select)
        except InputError as error:
            yield Problem("study.yaml scores.select", str(error))
            return
        if COUNT in study.scores.select:
            return
        if not chosen.any():
            yield Problem("study.yaml scores.select", f"{study.scores.select!r} keeps none of {len(wells)} wells")
            return
    if study.controls is not None and study.profiles.fit == "controls":
        try:
            controls = select(wells, study.controls)
        except InputError:
            return  # said above
        if (chosen & controls).any():
            yield Problem(
                "study.yaml scores.select",
                "the controls are scored too, which spherizing makes unlike each other; leave them out by "
                f"not ({study.controls})",
                "warning",
            )


def _named(key: object) -> str:
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)
