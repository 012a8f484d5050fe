"""Which treatments are alike, or opposite: neighbours with p and MOA, calls of the MOA, matches with genes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cytominer_tools.columns import METADATA, feature_columns, metadata_columns, require_columns
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path
from cytominer_tools.ledger import features_of
from cytominer_tools.queries import select
from cytominer_tools.tables import read_table, write_table
from deepprofile.crop_store import Crops
from deepprofile.problems import named
from deepprofile.profiles import CONSENSUS, read_profiles
from deepprofile.study import Study
from evaluation.figures import STYLE
from evaluation.neighbours import class_calls, nearest_profiles, target_ranks, unrelated_similarities
from evaluation.scores import finite_features
from evaluation.similarity import cosine

_CELLS = 8  # of each treatment in the montage
_ROWS = 6  # the query and its first neighbours


@dataclass(frozen=True)
class Found:
    """What `find_neighbours` found, and where it wrote it.

    Attributes
    ----------
    folder : Path
        Holds neighbours.csv, neighbours.json and, where there is what they need, calls.csv, targets.csv, montage.png.
    table : DataFrame, a row a query and neighbour
        query, rank, neighbour, its other metadata (moa among them), similarity, p, q.
    calls : DataFrame or None
        The treatments without a MOA: the call, its similarity and confidence.
    accuracy : float
        Of such calls among treatments whose MOA is known, each called without its compound; NaN without any.
    targets : DataFrame or None
        The rank of the best known target of each compound, and its p.
    """

    folder: Path
    table: pd.DataFrame
    calls: pd.DataFrame | None
    accuracy: float
    targets: pd.DataFrame | None

    def lines(self, most: int = 30) -> list[str]:
        """The first neighbours and calls as text."""
        lines = []
        for row in self.table.head(most).to_dict("records"):
            moa = f"  {row['moa']}" if isinstance(row.get("moa"), str) else ""
            lines.append(
                f"{row['query']}  {row['rank']}. {row['neighbour']}  {row['similarity']:.3f}, p = {row['p']:.2g}, "
                f"q = {row['q']:.2g}{moa}"
            )
        if self.calls is not None and len(self.calls):
            lines.append(f"Calls of the MOA (right for {self.accuracy:.0%} of those that are known):")
            for row in self.calls.head(most).to_dict("records"):
                sure = "unknown" if np.isnan(row["confidence"]) else f"{row['confidence']:.0%}"
                lines.append(f"  {row['treatment']}: {row['called']}  {row['similarity']:.3f}, confidence {sure}")
        if self.targets is not None:
            hits = int((self.targets["p"] < 0.05).sum())
            lines.append(f"Targets: {hits} of {len(self.targets)} compounds rank one at p < 0.05")
        return lines


def find_neighbours(
    study: Study,
    of: str | None = None,
    *,
    k: int = 10,
    reverse: bool = False,
    among: str | Path | None = None,
    targets: str | None = None,
) -> Found:
    """Write the nearest treatments of some, or of all, to neighbours/MODEL/RECIPE/, with what is called of them.

    Similarity is the cosine of consensus profiles; p is the share of unrelated pairs (of different known MOAs; all
    pairs where MOAs are not known, or candidates come from a file) that are as similar.

    Parameters
    ----------
    study : Study
        With one set of features and one recipe.
    of : str, optional
        A treatment, or a file of profiles with the features of the study (a phenotype that is to be found, or with
        `reverse` to be undone); by default all treatments.
    k : int
        Neighbours of each.
    reverse : bool
        The most opposite instead of the nearest ones.
    among : str or Path, optional
        A file of profiles with the same features that neighbours are sought among, such as those of genes.
    targets : str, optional
        With `among`: the column of the study that names the known targets of a treatment, several joined by |.

    Raises
    ------
    InputError
        Consensus profiles are not made, or not under the settings of now; there is no such treatment; or a file lacks
        features of the study.
    """
    if targets is not None and among is None:
        raise InputError("--targets: say with --among where the profiles of the genes are")
    _, table = read_profiles(study, CONSENSUS, "deepprofile consensus")
    if study.controls is not None:  # no treatment; the median of some is where spherizing puts zero
        table = table[~select(table, study.controls)].reset_index(drop=True)
    features = features_of(table)
    keys = list(study.consensus)
    X = finite_features(table, features)
    table, X = table[np.ptp(X, axis=1) > 0].reset_index(drop=True), X[np.ptp(X, axis=1) > 0]
    names = _names(table, keys)
    moa = study.scores.labels or study.columns.moa
    codes, classes = np.full(len(table), -1, dtype=np.int64), np.array([], dtype=object)
    if moa is not None and moa in table:
        codes, classes = pd.factorize(table[moa], sort=True)
    compound = study.columns.compound or study.treatment
    group = pd.factorize(table[compound])[0].astype(np.int64) if compound in table else np.arange(len(table))

    queries, query_names, own = _queries(study, table, X, names, of)
    others, other_names, other_meta = X, names, table[metadata_columns(table)]
    exclude = None if own is None else group[own][:, None] == group[None, :]
    if among is not None:
        other = read_table(among)
        others, other_names = (
            _profiles_of(other, features, Path(among)),
            _names(other, _key_of(other, keys, Path(among))),
        )
        other_meta, exclude = other[metadata_columns(other)], None
    if among is None:
        null = unrelated_similarities(X, codes.astype(np.int64), group)
    else:
        both = cosine(np.concatenate([X, others]))
        null = both.tile(slice(0, len(X)), slice(len(X), None)).ravel().astype(np.float64)
    found = nearest_profiles(queries, others, null, k=k, reverse=reverse, exclude=exclude)
    rows = found["candidate"].to_numpy()
    shown = other_meta.iloc[rows].reset_index(drop=True)
    if moa in shown:
        shown = shown.rename(columns={moa: "moa"})
    result = pd.concat([found[["query", "rank"]], shown, found[["similarity", "p", "q"]]], axis=1)
    result["query"] = [query_names[at] for at in found["query"]]
    result.insert(2, "neighbour", [other_names[at] for at in rows])

    calls, accuracy = None, float("nan")
    if len(classes) > 1:
        called = class_calls(X, codes.astype(np.int64), list(map(str, classes)), exclude=group)
        accuracy = float(called["right"].mean())
        calls = called.assign(treatment=names)[called["known"].isna()]
        calls = calls[["treatment", "called", "similarity", "confidence"]]
        calls = calls.sort_values("similarity", ascending=False, kind="stable").reset_index(drop=True)
    ranked = None
    if targets is not None:
        require_columns(table, [targets], "--targets")
        wanted = [set(str(cell).split("|")) if pd.notna(cell) else set() for cell in table[targets]]
        hits = np.array([[name in words for name in other_names] for words in wanted], dtype=bool)
        near = cosine(np.concatenate([X, others])).tile(slice(0, len(X)), slice(len(X), None))
        ranked = target_ranks(near, hits.reshape(len(X), len(others)))
        ranked["compound"] = [names[at] for at in ranked["compound"]]
    folder = study.root / "neighbours" / study.profiles_folder.relative_to(study.root / "profiles")
    made = Found(folder, result, calls, accuracy, ranked)
    pictured = None
    if among is None and len(found):
        first = found[found["query"] == found["query"].iloc[0]]
        query = None if own is None else int(own[first["query"].iloc[0]])
        pictured = _Pictured(
            table, names, query, query_names[first["query"].iloc[0]], first["candidate"].tolist(), reverse
        )
    with study.writing():
        _write(study, made, pictured)
    return made


@dataclass(frozen=True)
class _Pictured:
    """Whose cells the montage shows: rows of `table`."""

    table: pd.DataFrame
    names: list[str]
    query: int | None  # None: it is of a file, and has no cells here
    query_name: str
    neighbours: list[int]
    opposite: bool


def _queries(
    study: Study, table: pd.DataFrame, X: np.ndarray, names: list[str], of: str | None
) -> tuple[np.ndarray, list[str], np.ndarray | None]:
    """Profiles and names of what neighbours are sought for, and their rows in `table` where they are of it."""
    if of is None:
        return X, names, np.arange(len(X))
    if Path(of).is_file():
        given = read_table(of)
        return (
            _profiles_of(given, features_of(table), Path(of)),
            _names(given, _key_of(given, list(study.consensus), Path(of))),
            None,
        )
    column = str(study.consensus[0])
    own = np.flatnonzero((table[column].astype(str) == of) | (np.array(names) == of))
    if not len(own):
        raise InputError(
            f"{of}: neither a file nor a treatment; {column} holds {named(table[column].drop_duplicates(), 8)}"
        )
    return X[own], [names[at] for at in own], own


def _profiles_of(given: pd.DataFrame, features: list[str], path: Path) -> np.ndarray:
    if absent := [name for name in features if name not in given]:
        have = named(feature_columns(given), 3)
        raise InputError(
            f"{path}: {len(absent)} of {len(features)} features of the study are not in it, first {absent[0]}; it has "
            f"{have}; profiles of the same model and recipe are needed"
        )
    return finite_features(given, features)


def _key_of(given: pd.DataFrame, keys: list[str], path: Path) -> list[str]:
    """The columns that name a row of a table from elsewhere: those of the study, or its first one of metadata."""
    if found := [name for name in keys if name in given]:
        return found
    if not (columns := metadata_columns(given)):
        raise InputError(f"{path}: no column starts with {METADATA}; one should name the profiles")
    return columns[:1]


def _names(table: pd.DataFrame, keys: list[str]) -> list[str]:
    return [" ".join("" if pd.isna(cell) else str(cell) for cell in row) for row in table[keys].itertuples(index=False)]


def _write(study: Study, found: Found, pictured: _Pictured | None) -> None:
    folder = found.folder
    write_table(found.table, folder / "neighbours.csv")
    told: dict[str, Any] = {"neighbours": json.loads(found.table.to_json(orient="records"))}
    for name, part in (("calls", found.calls), ("targets", found.targets)):
        (folder / f"{name}.csv").unlink(missing_ok=True)
        if part is not None:
            write_table(part, folder / f"{name}.csv")
            told[name] = json.loads(part.to_json(orient="records"))
    with atomic_path(folder / "neighbours.json") as path:
        path.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    (folder / "montage.png").unlink(missing_ok=True)
    if pictured is not None and study.crop_store.is_dir():
        with atomic_path(folder / "montage.png") as path:
            _montage(study, pictured).savefig(path, dpi=120, metadata={"Software": None})


def _montage(study: Study, pictured: _Pictured) -> Figure:
    """Cells of the query and of its neighbours, a treatment a row; the first three channels blue, green and red."""
    crops = Crops(study.crop_store)
    own = [] if pictured.query is None else [pictured.query]
    rows = [*own, *pictured.neighbours][:_ROWS]
    rng = np.random.default_rng(study.seed)
    size = crops.shape[0]
    shape = (len(rows), _CELLS, size, size, 3)
    picture = np.ones(shape, dtype=np.float32)
    for at, row in enumerate(rows):
        mine = np.ones(len(crops), dtype=bool)
        for key in study.consensus:
            mine &= (crops.table[key].astype(str) == str(pictured.table[key].iloc[row])).to_numpy()
        chosen = np.flatnonzero(mine)
        chosen = np.sort(rng.permutation(chosen)[:_CELLS])
        if len(chosen):
            cells = np.clip(crops.network_input(chosen), 0, 1)[..., :3]
            colours = np.zeros((*cells.shape[:-1], 3), dtype=np.float32)
            for channel in range(cells.shape[-1]):
                colours[..., 2 - channel] = cells[..., channel]
            picture[at, : len(chosen)] = colours
    whole = np.pad(picture, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1)
    whole = whole.transpose(0, 2, 1, 3, 4).reshape(len(rows) * whole.shape[2], -1, 3)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.0 * _CELLS + 2.5, 1.0 * len(rows) + 0.7), layout="constrained", facecolor="white")
        axis = figure.subplots()
        axis.imshow(whole, interpolation="nearest")
        side = size + 2
        words = [pictured.names[row][:32] for row in rows]
        if own:
            words[0] += " (query)"
        axis.set_yticks([side * (at + 0.5) for at in range(len(rows))], words, fontsize=8)
        axis.set_xticks([])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        shown = zip(list(study.channels)[:3], ("blue", "green", "red"), strict=False)
        axis.set_title(
            f"{pictured.query_name[:60]} and what is {'most opposite' if pictured.opposite else 'nearest'} to it: "
            + ", ".join(f"{channel} {colour}" for channel, colour in shown)
            + ("" if own else "\nThe query is of a file and has no cells here."),
            loc="left",
            fontsize=8,
        )
    return figure
