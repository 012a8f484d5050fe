"""What the steps of a recipe do to a table of profiles."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
from pydantic import ValidationError

from cytominer_tools import aggregation, correction, normalization, selection
from cytominer_tools.batches import PerBatch
from cytominer_tools.columns import PLATE, WELL, metadata_columns, require_columns
from cytominer_tools.concatenation import concatenate
from cytominer_tools.errors import InputError
from cytominer_tools.frames import names, profile_features
from cytominer_tools.ledger import features_of, ledger_step
from cytominer_tools.loading import load_profiles
from cytominer_tools.manifest import fingerprint
from cytominer_tools.queries import select
from cytominer_tools.tables import write_table
from cytominer_tools.transformers import PCA, InverseNormal
from deepprofile.index import constant_metadata
from deepprofile.recipes import (
    AnyStep,
    Concatenate,
    Correct,
    Normalize,
    Pca,
    Recipe,
    Scope,
    Select,
    Spherize,
    Step,
    find_recipe,
)
from deepprofile.work import log
from deepprofile.yaml import read_yaml


@dataclass(frozen=True)
class Roles:
    """What the words of a recipe mean in a table.

    Parameters
    ----------
    controls : str, optional
        A pandas query that picks the control wells.
    fit : "controls" or "all"
        The wells that a step learns from where it does not say.
    batch : str, optional
        The column of the batch.
    root : Path
        Where the paths of tables start.
    """

    controls: str | None = None
    fit: Literal["controls", "all"] = "controls"
    batch: str | None = None
    root: Path = Path()

    def columns(self, by: Scope) -> list[str]:
        """The columns whose values together are the scope `by`; none for all rows at once."""
        if by == "all":
            return []
        if by == "plate":
            return [PLATE]
        if by == "batch":
            if self.batch is None:
                raise InputError("a step is `by: batch`, and nothing says what a batch is; set columns.batch")
            return [self.batch]
        return [by] if isinstance(by, str) else list(by)

    def samples(self, fit: str | None) -> str:
        """The query for the wells that are learnt from, or "all"."""
        if (fit or self.fit) == "all":
            return "all"
        if self.controls is None:
            raise InputError(
                "study.yaml names no controls to learn from; set controls to a query such as "
                "\"Metadata_Compound == 'DMSO'\", or profiles.fit to all (of a table: --controls, or --fit all)"
            )
        return self.controls

    def resolved(self, step: Step) -> dict[str, Any]:
        """What `step` does, with the columns and the query that its words stand for; JSON values."""
        said = step.model_dump(mode="json")
        if isinstance(step, Correct) and not step.batched:
            del said["by"]
        if "by" in said:
            said["by"] = self.columns(said["by"])
        if "fit" in said:
            said["fit"] = self.samples("all" if isinstance(step, Correct) and step.method == "harmony" else said["fit"])
        if isinstance(step, Concatenate):
            said["made"] = fingerprint([self.root / step.table], self.root)
        return said


def run_steps(
    profiles: pd.DataFrame, steps: Iterable[AnyStep], roles: Roles, ledger: list[dict[str, Any]] | None = None
) -> pd.DataFrame:
    """`profiles` after all `steps`, none of them a consensus; rows and metadata stay as they are.

    What each step did is added to `ledger`; see `cytominer_tools.read_ledger`.

    Raises
    ------
    InputError
        What a step cannot do, with the words of its function.
    """
    for step in steps:
        before = profiles
        profiles, reasons = _selected(step, before) if isinstance(step, Select) else (run_step(step, before, roles), {})
        settings = {name: value for name, value in roles.resolved(step).items() if name != "step"}
        said = ledger_step(step.step, before, profiles, settings, reasons)
        had, has = said["features"]
        if len(said["dropped"]) == had:  # all go where others take their place
            log.info("%s: %d features take the place of %d", step.step, has, had)
        elif said["dropped"]:
            log.info("%s: %d of %d features are dropped", step.step, len(said["dropped"]), had)
        if ledger is not None:
            ledger.append(said)
    return profiles


@functools.singledispatch
def run_step(step: Step, profiles: pd.DataFrame, roles: Roles) -> pd.DataFrame:
    """`profiles` after one `step`."""
    raise TypeError(f"{type(step).__name__} is no step on a table")


@run_step.register
def _(step: Normalize, profiles: pd.DataFrame, roles: Roles) -> pd.DataFrame:
    if step.method == "inverse_normal":
        transformer, batch = InverseNormal(), roles.columns(step.by)
        return _transformed(step, profiles, PerBatch(transformer) if batch else transformer, roles, batch)
    return normalization.normalize(
        profiles,
        features_of(profiles),
        samples=roles.samples(step.fit),
        method=step.method,
        by=roles.columns(step.by),
    )


@run_step.register
def _(step: Spherize, profiles: pd.DataFrame, roles: Roles) -> pd.DataFrame:
    control = _control(roles.samples(step.fit), profiles)
    result = normalization.spherize(
        profiles,
        control=control,
        features=features_of(profiles),
        method=step.method,
        ridge=step.ridge,
        by=roles.columns(step.by),
    )
    return result.profiles


@run_step.register
def _(step: Pca, profiles: pd.DataFrame, roles: Roles) -> pd.DataFrame:
    return _transformed(step, profiles, PCA(step.components), roles, [])


@run_step.register
def _(step: Correct, profiles: pd.DataFrame, roles: Roles) -> pd.DataFrame:
    return correction.correct(
        profiles,
        step.method,
        features=features_of(profiles),
        samples="all" if step.method == "harmony" else roles.samples(step.fit),
        batch=roles.columns(step.by) if step.batched else (),
        n_components=step.components,
    )


@run_step.register
def _(step: Concatenate, profiles: pd.DataFrame, roles: Roles) -> pd.DataFrame:
    return concatenate(
        [profiles, roles.root / step.table], samples=roles.samples(step.fit), features=features_of(profiles)
    )


def _selected(step: Select, profiles: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """`profiles` without the features that `step` drops, and why each is dropped."""
    found: Any = selection.feature_select(
        profiles,
        features_of(profiles),
        operation=list(step.operation),
        min_variance=step.min_variance,
        freq_cut=step.freq_cut,
        unique_cut=step.unique_cut,
        corr_threshold=step.corr_threshold,
        na_cutoff=step.na_cutoff,
        outlier_cutoff=step.outlier_cutoff,
        reasons=True,
    )
    kept, reasons = found
    return kept, dict(zip(reasons["feature"], reasons["operation"] + ": " + reasons["reason"], strict=True))


class Applied(NamedTuple):
    """What a recipe makes of a table of wells: the wells after its steps, and the treatments."""

    wells: pd.DataFrame
    treatments: pd.DataFrame


def apply_recipe(
    profiles: pd.DataFrame | str | Path,
    recipe: str | Path | Recipe | Sequence[Any] = "deep",
    *,
    by: str | Sequence[str],
    controls: str | None = None,
    fit: Literal["controls", "all"] = "controls",
    batch: str | None = None,
    output_folder: str | Path | None = None,
) -> Applied:
    """All steps of a recipe on a table of wells, without a study.

    Parameters
    ----------
    profiles : DataFrame, or the path of a table
        A row a well, with Metadata_Plate and Metadata_Well where a step asks for them.
    recipe : name, list of steps, or the path of a .yaml file that holds the list under ``steps``
    by : column name or names
        Whose values together name a treatment.
    controls, fit, batch
        As in `Roles`.
    output_folder : path, optional
        Where wells.parquet and consensus.parquet are written.

    Raises
    ------
    InputError
        No such recipe, steps that are wrong, each with its place, or what a step raises.
    """
    read = load_profiles(profiles)
    require_columns(read, names(by), "profiles")
    table = read[[*metadata_columns(read), *profile_features(read)]]
    if left := [str(name) for name in read.columns if name not in set(table.columns)]:
        log.info("recipe: %d columns are neither metadata nor features and are left out: %s", len(left), left[:3])
    steps, roles = _recipe(recipe), Roles(controls, fit, batch)
    ledger: list[dict[str, Any]] = []
    wells = run_steps(table, [*steps.of_wells, *steps.selection], roles, ledger)
    of_wells = list(ledger)
    named = wells[wells[names(by)[0]].notna()]
    keep = [name for name in constant_metadata(named, names(by)) if name not in (PLATE, WELL)]
    treatments = treatment_profiles(named, steps, names(by), keep, roles, ledger)
    if output_folder is not None:
        write_table(wells, Path(output_folder) / "wells.parquet", of_wells)
        write_table(treatments, Path(output_folder) / "consensus.parquet", ledger)
    return Applied(wells, treatments)


def _recipe(recipe: str | Path | Recipe | Sequence[Any]) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str) and not recipe.endswith((".yaml", ".yml")):
        return find_recipe(recipe, {})
    path = Path(recipe) if isinstance(recipe, str | Path) else None
    try:
        return Recipe.model_validate(read_yaml(path) if path else recipe)
    except ValidationError as bad:
        rows = [f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in bad.errors()]
        raise InputError("\n  ".join([f"{path or 'recipe'}: {len(rows)} problem(s)", *rows])) from None


def treatment_profiles(
    wells: pd.DataFrame,
    recipe: Recipe,
    by: list[str],
    keep: list[str],
    roles: Roles,
    ledger: list[dict[str, Any]] | None = None,
) -> pd.DataFrame:
    """The profile of each treatment: `by`, `keep` and features, after the consensus of `recipe` and what follows it.

    `ledger` as in `run_steps`.
    """
    features = features_of(wells)
    if recipe.operation != "modz":
        profiles = aggregation.consensus(wells, by, recipe.operation, features, keep=keep)
    else:  # which cannot keep further columns
        keys = aggregation.aggregate(wells, by, features[:1], keep=keep)[[*by, *keep]]
        profiles = aggregation.consensus(wells, by, "modz", features)
        profiles = pd.concat([keys, profiles[features]], axis=1)
    if ledger is not None:
        ledger.append(ledger_step("consensus", wells, profiles, {"by": by, "operation": recipe.operation}, {}))
    return run_steps(profiles, recipe.of_treatments[1:], roles, ledger)


def _transformed(
    step: Normalize | Pca, profiles: pd.DataFrame, transformer: Any, roles: Roles, batch: list[str]
) -> pd.DataFrame:
    samples = roles.samples(step.fit)
    return correction.transform_profiles(
        profiles, transformer, features=features_of(profiles), samples=samples, batch=batch
    ).profiles


def _control(samples: str, profiles: pd.DataFrame) -> pd.Series:
    """Which rows are learnt from, at least two."""
    if samples == "all":
        if len(profiles) < 2:
            raise InputError("there is one well with cells; spherizing needs two to learn from")
        return pd.Series(True, index=profiles.index, name="profiles.fit")
    control = select(profiles, samples).rename("controls")
    if not control.any():
        raise InputError(f"no well is a control by {samples!r}; mend controls, or set profiles.fit to all")
    if control.sum() < 2:
        raise InputError("one control well has cells; spherizing needs two; set profiles.fit to all")
    return control
