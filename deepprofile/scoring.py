"""What the section `scores` asks for: which profiles are compared, control wells by batch, and strong treatments."""

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cytominer_tools.columns import COUNT, METADATA, PLATE, WELL
from cytominer_tools.errors import InputError, ProfileWarning
from cytominer_tools.ledger import features_of
from cytominer_tools.queries import select
from deepprofile.platemaps import PLATE_MAP
from deepprofile.steps import Roles, run_steps
from deepprofile.study import Study
from evaluation.batch import WELL_COLUMN, WELL_ROW, group_association
from evaluation.neighbourhoods import MIXING, SETTINGS, mixing_scores
from evaluation.subsets import phenotype_strength, strongest, write_treatments

_FOLDS = 5
_HELD = "Metadata_Held_Out"


def across_columns(study: Study, level: str) -> list[str]:
    """The columns of `scores.across` that profiles of a level have: "replicates" or "treatments".

    Raises
    ------
    InputError
        study.yaml does not name the column of batches or compounds.
    """
    columns = {
        "plates": PLATE,
        "batches": study.columns.batch,
        "layouts": PLATE_MAP,
        "positions": WELL,
        "compounds": study.columns.compound or study.treatment,
    }
    if lacking := [word for word in study.scores.across if columns[word] is None]:
        raise InputError(f"scores.across: name the column of the {lacking[0]} in columns of study.yaml")
    here = {"replicates": ("plates", "batches", "layouts", "positions"), "treatments": ("batches", "compounds")}[level]
    return [str(columns[word]) for word in study.scores.across if word in here]


def across_words(columns: object) -> str:
    """What the column `across` of a score table adds to the name of a score.

    >>> across_words("Metadata_Plate"), across_words("")
    (', across Plate', '')
    """
    return f", across {columns.replace(METADATA, '')}" if isinstance(columns, str) and columns else ""


def scored_rows(study: Study) -> str | None:
    """The query for the profiles that `scores` asks for; None for all.

    Raises
    ------
    InputError
        `scores.compounds_only` without controls.
    """
    chosen = study.scores
    if not chosen.compounds_only:
        return chosen.select
    if study.controls is None:
        raise InputError("scores.compounds_only: say which wells are controls, in controls of study.yaml")
    return f"not ({study.controls})" + (f" and ({chosen.select})" if chosen.select else "")


class _Unseen(Roles):
    """Steps learn from no well that is held out."""

    def samples(self, fit: str | None) -> str:
        learned = super().samples(fit)
        return f"{_HELD} == 0" + ("" if learned == "all" else f" and ({learned})")


def batch_scores(study: Study, wells: pd.DataFrame) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """The control wells of `wells` by plate, batch, row, column and position, as they are and normalized.

    Normalized ones are corrected by a fit of the study's recipe that has not seen them: a fit makes the very wells that
    it learns from unlike each other, whatever their batch. Feature selection and Harmony, which have no wells that they
    learn from, see all.

    Parameters
    ----------
    study : Study
        With one recipe.
    wells : DataFrame, a row a well
        Level 3.

    Returns
    -------
    association : DataFrame, a row a state and group
        profiles ("wells" or "normalized, held out") and the columns of `evaluation.group_association`; None without
        controls.
    mixing : DataFrame, a row a state, group and metric
        profiles ("controls before" or "controls") and the columns of `evaluation.mixing_scores`; None where
        `scores.metrics` names none of its metrics.

    Raises
    ------
    InputError
        `scores.metrics` names one, and there are no controls.
    """
    metrics = [name for name in study.scores.metrics if name in MIXING]
    control = None if study.controls is None else select(wells, study.controls)
    if control is None or not control.any():
        if metrics:
            raise InputError(f"scores.metrics: {metrics[0]} is of control wells; say which, in controls of study.yaml")
        return None, None
    places = np.flatnonzero(control)
    roles = _Unseen(study.controls, study.profiles.fit, study.columns.batch, study.root)
    steps = [*study.recipe.of_wells, *study.recipe.selection]
    by = [name for name in (PLATE, study.columns.batch) if name is not None and name in wells]
    by = [name for name in by if wells.loc[control, name].nunique() > 1] + [WELL_ROW, WELL_COLUMN, WELL]

    @cache
    def corrected(part: tuple[int, ...]) -> np.ndarray:
        held = np.zeros(len(wells), dtype=np.int64)
        held[places[list(part)]] = 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ProfileWarning)  # that controls are few is said of the whole fit
            made = run_steps(wells.assign(**{_HELD: held}), steps, roles)
        if len(made) < len(wells):
            raise InputError("the recipe leaves out wells that another table lacks")
        made = made[held == 1]  # `part` goes up, as the rows do
        return made[features_of(made)].to_numpy(dtype=np.float64)

    def held_out(part: np.ndarray) -> np.ndarray:
        return corrected(tuple(part.tolist()))

    chosen, count = wells[control], int(control.sum())
    tables, mixed = [], []
    for name, level, function in (("wells", "controls before", None), ("normalized, held out", "controls", held_out)):
        shared: dict[str, Any] = {"features": features_of(wells), "held_out": function, "seed": study.seed}
        shared["folds"] = min(_FOLDS, count // 3)
        try:
            found = group_association(chosen, by, **shared)
        except InputError as error:
            found = pd.DataFrame({"by": by, "n": count, "reason": str(error).splitlines()[0]})
        found.insert(0, "profiles", name)
        tables.append(found)
        if metrics:
            shuffles = study.scores.permutations if "permutation" in study.scores.baselines else 0
            baseline = COUNT if "cell_count" in study.scores.baselines else None
            try:
                scores = mixing_scores(chosen, by, metrics=metrics, permutations=shuffles, counts=baseline, **shared)
            except InputError as error:
                rows = [{"score": one, "labels": label, "setting": SETTINGS[one]} for label in by for one in metrics]
                scores = pd.DataFrame(rows).assign(similarity="cosine", n=count, reason=str(error).splitlines()[0])
            scores.insert(0, "profiles", level)
            mixed.append(scores)
    return pd.concat(tables, ignore_index=True), pd.concat(mixed, ignore_index=True) if mixed else None


def write_strong(study: Study, wells: pd.DataFrame, treatments: pd.DataFrame, path: Path) -> None:
    """Write the `scores.strongest` treatments that lie farthest from the mean control to `path`.

    The file is one that `export.treatments` and `train.treatments` take.

    Parameters
    ----------
    wells, treatments : DataFrames
        As the recipe makes them: levels 4 and 5.

    Raises
    ------
    InputError
        There are no controls, or fewer treatments.
    """
    if study.controls is None:
        raise InputError("scores.strongest: say which wells are controls, in controls of study.yaml")
    features = features_of(treatments)
    treated = treatments[~select(treatments, study.controls)].reset_index(drop=True)
    controls = wells.loc[select(wells, study.controls), features]
    strength = phenotype_strength(treated[features], controls)
    chosen = strongest(strength, int(study.scores.strongest or 0))
    write_treatments(path, treated, strength, chosen, str(study.treatment))
