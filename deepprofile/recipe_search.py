"""Which recipe suits a study: all are run on its wells and ranked, and the winner is scored where it had no say."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cytominer_tools.columns import METADATA, PLATE, WELL, require_columns
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path
from cytominer_tools.ledger import features_of
from cytominer_tools.queries import select
from cytominer_tools.tables import read_table, write_table
from deepprofile.profiles import CONSENSUS, aggregate_wells, consensus_profiles, final_wells, normalize_wells
from deepprofile.recipes import BUILT_IN
from deepprofile.scoring import scored_rows
from deepprofile.study import Study
from deepprofile.work import log
from evaluation.nested import Search, nested_search
from evaluation.scores import finite_features
from evaluation.similarity import Similarity, cosine


@dataclass(frozen=True)
class RecipeSearch:
    """What `search_recipes` found, and where it wrote it.

    Attributes
    ----------
    path : Path
        The table, recipes.csv in scores/MODEL; recipes.json beside it also holds the splits.
    search : evaluation.nested.Search
    labels : str
        The column by which profiles match.
    left_out : list of (recipe, reason)
    """

    path: Path
    search: Search
    labels: str
    left_out: list[tuple[str, str]]

    def lines(self) -> list[str]:
        """The ranking and the winner's honest score as text."""
        table, splits = self.search.table, len(self.search.splits)
        lines = []
        for rank, row in enumerate(table.to_dict("records"), 1):
            score = f"{row['mean_average_precision']:.3f}"
            lines.append(f"{rank}. {row['name']}  mAP {score}, best in {row['chosen']} of {splits} splits")
        lines.append(
            f"{table['name'].iloc[0]} was chosen by its own score (mAP by {self.labels.removeprefix(METADATA)}), which "
            f"flatters it. On compounds that had no say the choice scores {self.search.held_out:.3f}."
        )
        return [*lines, *(f"{name} is left out: {why}" for name, why in self.left_out)]


def search_recipes(study: Study, names: Sequence[str] = (), *, folds: int = 5, repeats: int = 3) -> RecipeSearch:
    """Run recipes on the wells of `study`, rank them by mean average precision, and say what the choice is worth.

    Treatments match by MOA; where no MOA is known, wells by treatment. In each split the compounds outside of a fold
    choose the recipe, and those in it are scored. Recipes learn from wells without looking at labels, so that each is
    run once, on all wells.

    Parameters
    ----------
    study : Study
        With one set of features, profiled.
    names : recipes; by default the built-in ones and the study's own
    folds, repeats : int
        Of the splits by compound.

    Raises
    ------
    InputError
        There are no features, nothing says which profiles match, fewer than two recipes can be run, or there are fewer
        compounds than folds.
    """
    names = list(dict.fromkeys(names or [*BUILT_IN, *study.recipes]))
    label = study.scores.labels or study.columns.moa
    of_wells = label is None
    key = [PLATE, WELL] if of_wells else list(study.consensus)
    label = label or study.scores.replicates or study.treatment
    compound = study.columns.compound or study.treatment
    if label is None or compound is None:
        raise InputError("study.yaml: nothing says which profiles match; set columns.treatment or columns.moa")
    tables: dict[str, pd.DataFrame] = {}
    left_out = []
    for name in names:
        one = study.with_recipe(name)
        try:
            for stage in (aggregate_wells, normalize_wells, consensus_profiles):
                stage(one)
            table = _rows(one, of_wells)
            finite_features(table, features_of(table))
            tables[name] = table
        except InputError as error:
            log.warning("recipe search: %s is left out: %s", name, error)
            left_out.append((name, str(error).splitlines()[0]))
    most = max(tables.values(), key=len, default=None)
    for name in [name for name, table in tables.items() if most is not None and not table[key].equals(most[key])]:
        del tables[name]
        left_out.append((name, "it leaves out profiles that others have"))
    if len(tables) < 2:
        raise InputError(f"recipe search: {len(tables)} of {len(names)} recipes could be run; two are needed to choose")
    first = next(iter(tables.values()))
    known = first[label].notna() & first[compound].notna()
    for table in tables.values():
        known &= np.ptp(finite_features(table, features_of(table)), axis=1) > 0
    rows = np.flatnonzero(known)
    ways: dict[str, Similarity] = {
        name: cosine(finite_features(table.iloc[rows], features_of(table))) for name, table in tables.items()
    }
    search = nested_search(
        ways,
        pd.factorize(first[label].iloc[rows])[0].astype(np.int64),
        pd.factorize(first[compound].iloc[rows])[0],
        exclude=_codes(first.iloc[rows], study.scores.exclude_same if of_wells else ()),
        folds=folds,
        repeats=repeats,
        rng=np.random.default_rng(study.seed),
    )
    path = study.with_recipe(names[0]).scores_folder.parent / "recipes.csv"
    with study.writing():
        write_table(search.table, path)
        told = {
            "labels": label,
            "held_out": None if np.isnan(search.held_out) else search.held_out,
            "recipes": json.loads(search.table.to_json(orient="records")),
            "splits": json.loads(search.splits.to_json(orient="records")),
            "left_out": left_out,
        }
        with atomic_path(path.with_suffix(".json")) as part:
            part.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    return RecipeSearch(path, search, label, left_out)


def _codes(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray | None:
    """Numbers that are equal where the values of a column are, (n, n_columns)."""
    require_columns(table, columns, "scores.exclude_same")
    return np.stack([pd.factorize(table[name])[0] for name in columns], axis=1) if columns else None


def _rows(study: Study, of_wells: bool) -> pd.DataFrame:
    """The profiles that are scored, without controls."""
    table = read_table(study.profiles_folder / (final_wells(study) if of_wells else CONSENSUS))
    for query in (scored_rows(study), None if study.controls is None else f"not ({study.controls})"):
        table = table if query is None else table[select(table, query)]
    return table.reset_index(drop=True)
