"""How much control wells resemble their own batch, plate or position, before and after they are normalized."""

import warnings

import numpy as np
import pandas as pd

from cytominer_tools.columns import PLATE, WELL
from cytominer_tools.errors import InputError, ProfileWarning
from cytominer_tools.normalization import spherize
from cytominer_tools.queries import select
from deepprofile.study import Study
from evaluation.batch import WELL_COLUMN, WELL_ROW, group_association

_FOLDS = 5


def batch_scores(study: Study, wells: pd.DataFrame, fitted: pd.Series, features: list[str]) -> pd.DataFrame:
    """The control wells of `wells` by plate, batch, row, column and position, as they are and normalized.

    Normalized ones are corrected by fits that have not seen them: a fit makes the very wells that it learns from unlike
    each other, whatever their batch.

    Parameters
    ----------
    study : Study
        With controls.
    wells : DataFrame, a row a well
        Level 3.
    fitted : Series of bool, on the index of `wells`
        Those that normalization learns from.
    features : names of columns

    Returns
    -------
    DataFrame, a row a state and group
        profiles ("wells" or "normalized, held out") and the columns of `evaluation.group_association`.
    """
    control = select(wells, str(study.controls))
    places = np.flatnonzero(control)
    by = [name for name in (PLATE, study.columns.batch) if name is not None and name in wells]
    by = [name for name in by if wells.loc[control, name].nunique() > 1] + [WELL_ROW, WELL_COLUMN, WELL]

    def held_out(part: np.ndarray) -> np.ndarray:
        held = np.zeros(len(wells), dtype=bool)
        held[places[part]] = True
        learned = fitted & ~held
        table = wells[learned | held]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ProfileWarning)  # that controls are few is said of the whole fit
            made = spherize(table, control=learned[table.index], features=features).profiles
        kept = [name for name in features if name in made]
        # the order of `part` is that of the table: both go up
        return made.loc[held[table.index], kept].to_numpy(dtype=np.float64)

    chosen = wells[control]
    tables = []
    for name, function in (("wells", None), ("normalized, held out", held_out)):
        try:
            found = group_association(
                chosen, by, features=features, held_out=function, folds=min(_FOLDS, len(chosen) // 3), seed=study.seed
            )
        except InputError as error:
            found = pd.DataFrame({"by": by, "n": len(chosen), "reason": str(error).splitlines()[0]})
        found.insert(0, "profiles", name)
        tables.append(found)
    return pd.concat(tables, ignore_index=True)
