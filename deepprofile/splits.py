"""Which cells train and which validate: by what the two must not share, or by a preset with a name in the field."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cytominer_tools.columns import CELL, PLATE, SITE, WELL, require_columns
from cytominer_tools.errors import InputError
from deepprofile.codes import class_codes, find_column, label_columns, no_value, plain_text, text_codes
from deepprofile.problems import named
from deepprofile.study import Columns, Split

TRAIN, VALIDATION, NEITHER = 1, 2, 0
_SIDES = {NEITHER: "neither", TRAIN: "train", VALIDATION: "validation"}

# what names a unit, as columns of the groups; of any other split, its column
_UNITS = {
    "cell": ("plate", "well"),
    "site": ("plate", "well", "site"),
    "well": ("plate", "well"),
    "replicate": ("replicate",),
    "plate": ("plate",),
    "batch": ("batch",),
    "compound": ("compound",),
    "concentration": ("concentration",),
}
_PRESETS = {
    "one": ("plate", "well"),
    "two": ("plate", "well"),
    "three": ("plate", "well"),
    "cross_dose": ("concentration",),
    "TD1": ("plate", "well", "site"),
    "TD2": ("plate", "well", "site"),
    "TD3": ("plate", "well", "site"),
    "TD4": ("plate", "well"),
    "TD5": ("plate", "well"),
}
_OF_CELLS = ("cell", "three", "TD4", "TD5")

# Bornholdt 2021, section 4.7.1 and Table 4.18: what the sets TD1 to TD5 are
_TOP_MOAS = 50
_VALIDATION_SITES = 2
_COMPOUNDS = 450
_CELLS_A_WELL = {"TD4": 200, "TD5": 93}


@dataclass(frozen=True)
class SplitCells:
    """The side of each cell, and what it lets a network know of the cells that it is judged by.

    Attributes
    ----------
    parts : int8 array, shape (n_cells,)
        TRAIN, VALIDATION or NEITHER. A cell without a label is on neither side.
    table : DataFrame, a row per unit and side
        The columns that name the unit (where single cells are drawn, their plate and well), ``Split`` (train,
        validation or neither) and ``Cells``; these add up to n_cells.
    shares : dict
        For well (of its plate), position (a well's name, on any plate), plate, batch, compound and concentration, as
        far as the study has them: the fraction of the validation cells whose value some training cell of the same
        class has too. 0: all that validates is new in this; 1: nothing is.
    warnings : tuple of str
        What makes the validation accuracy mean less than it seems to.
    """

    parts: np.ndarray
    table: pd.DataFrame
    shares: dict[str, float]
    warnings: tuple[str, ...]


def split_cells(
    table: pd.DataFrame,
    split: Split,
    study_columns: Columns,
    *,
    label: Sequence[str],
    seed: int,
    controls: np.ndarray | None = None,
    treatments: Sequence[str] | None = None,
) -> SplitCells:
    """Say of each cell whether it trains, validates, or neither; docs/splits.md says what each split is.

    What is drawn follows from `seed` and the names of classes, plates, wells, sites and cells. It depends on no order
    of rows, and not on how many cells other wells have.

    Parameters
    ----------
    table : DataFrame, a row per cell
        Metadata_Plate, _Well, _Site, _Cell (where single cells are drawn) and metadata columns; the cells that are
        left out of the training for another reason are better not in it.
    split : Split
        The section `train.split`.
    study_columns : Columns
        The section `columns`: which column holds the compound, the batch, ..
    label : names of columns
        Those of the class.
    seed : int
    controls : bool array, shape (n_cells,), or None
        The control cells. Where replicates are counted they go with their plate, and they are none of the compounds
        and concentrations that a preset chooses.
    treatments : names or None
        The treatments that take part, others are on neither side; all by default.

    Raises
    ------
    InputError
        A column or value is unknown, a side is empty, or the study has not what a preset needs.

    References
    ----------
    M. Bornholdt, *Profiling cellular states from images using deep neural networks*, master's thesis, TU Munich 2021,
    sections 4.7 and 4.8.3.
    """
    label = label_columns(table, label)
    require_columns(table, [PLATE, WELL, SITE], "the crops")
    classes, codes = class_codes(table, label)
    columns = _columns(table, split.by, study_columns)
    frame, group = _groups(table, columns, classes, codes, controls)
    by, said = split.by, list[str]()
    if (split.train or split.validation) and (by == "cell" or (by in _PRESETS and by != "cross_dose")):
        raise InputError(f"train.split.train and .validation: {by} draws its own sides; leave them out")
    if by == "TD3" and treatments is None:
        raise InputError("train.split.by TD3: it trains on the strong phenotypes; list them in train.treatments")
    if treatments is not None:
        frame["used"] &= _chosen(_need(frame, "treatment", "train.treatments"), treatments, said)
    if by == "TD1":
        frame["used"] &= _in_top_moas(frame, said)
    if by == "TD4":
        frame["used"] &= _in_random_compounds(frame, seed)
    if not frame["used"].any():
        raise InputError(f"train.split.by {by}: none of the cells that would take part has a label")
    if by in _OF_CELLS:
        parts = _random_cells(table, codes, frame, group, split, seed)
    else:
        parts = _sides(frame, split, study_columns, label, seed, said)[group]
    counts = np.bincount(group * len(_SIDES) + parts, minlength=len(_SIDES) * len(frame)).reshape(-1, len(_SIDES))
    for side in (TRAIN, VALIDATION):
        if not counts[:, side].any():
            raise InputError(f"train.split.by {by}: no cell is in {_SIDES[side]}; choose another split")
    if not set.intersection(*_values_of_sides(frame["class"], counts)):
        raise InputError(
            f"train.split.by {by}: no class is on both sides, so nothing that is learned is validated; split by what "
            "each class has several of, such as well or plate"
        )
    shares = _shares(frame, counts)
    units = _unit_table(frame, counts, by, columns)
    return SplitCells(parts, units, shares, (*_warnings(frame, counts, by, shares), *said))


# --- the cells as groups that no column tells apart: a million at most, where there may be a hundred million cells


def _columns(table: pd.DataFrame, by: str, columns: Columns) -> dict[str, str]:
    """The columns that a split may ask for, by their part in it, as far as the study and the table have them."""
    roles = {
        "treatment": columns.treatment or columns.compound,
        "compound": columns.compound or columns.treatment,
        "concentration": columns.concentration,
        "moa": columns.moa,
        "batch": columns.batch,
    }
    found = {"plate": PLATE, "well": WELL, "site": SITE}
    found |= {role: column for role, column in roles.items() if column is not None and column in table}
    if by not in _UNITS and by not in _PRESETS:
        found["by"] = find_column(table, by, "train.split.by", also=(*_UNITS, *_PRESETS))
    return found


def _groups(
    table: pd.DataFrame, columns: dict[str, str], classes: Sequence[str], codes: np.ndarray, controls: np.ndarray | None
) -> tuple[pd.DataFrame, np.ndarray]:
    """The distinct rows of `columns`, class and control as text ("" where empty), and the row of each cell among them.

    The column `used` says which take part: those with a class. `dose` is the treatment with its concentration.
    """
    control = np.zeros(len(table), bool) if controls is None else np.asarray(controls, bool)
    read: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for column in set(columns.values()):
        read[column] = text_codes(table[column])
    texts = {role: read[column] for role, column in columns.items()} | {"class": (tuple(classes), codes)}
    group = control.astype(np.int64)
    for names, values in texts.values():
        group = pd.factorize(group * (len(names) + 1) + values + 1)[0]
    first = np.flatnonzero(~pd.Series(group).duplicated().to_numpy())
    frame = pd.DataFrame(
        {role: np.array([*names, ""], object)[values[first]] for role, (names, values) in texts.items()}
    )
    frame["control"] = control[first]
    frame["cells"] = np.bincount(group)
    frame["used"] = frame["class"] != ""
    frame["dose"] = frame["treatment"] if "treatment" in frame else frame["class"]
    if "concentration" in frame:
        frame["dose"] += " " + frame["concentration"]
    return frame, group


def _need(frame: pd.DataFrame, role: str, key: str) -> pd.Series:
    if role not in frame:
        raise InputError(f"{key}: it needs the {role} of each cell; columns.{role} in study.yaml names its column")
    return frame[role]


def _rng(seed: int, *words: str) -> np.random.Generator:
    """Numbers for what `words` name, whatever else is drawn for."""
    digest = hashlib.blake2b("\n".join(words).encode(), digest_size=16).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "little")])


# --- who takes part


def _chosen(treatment: pd.Series, treatments: Sequence[str], said: list[str]) -> np.ndarray:
    absent = sorted(set(treatments) - set(treatment.unique()))
    if len(absent) == len(set(treatments)):
        why = no_value(absent[0], sorted(set(treatment.unique()) - {""}), "treatment") if absent else "it lists none"
        raise InputError(f"train.treatments: {why}")
    if absent:
        said.append(f"there is no crop of {named(absent)} of train.treatments")
    return _among(treatment, treatments)


def _in_top_moas(frame: pd.DataFrame, said: list[str]) -> np.ndarray:
    """Cells with one of the largest MOAs, counted in compounds, and controls; of equal ones the first by name."""
    moa, compound = (_need(frame, role, "train.split.by TD1") for role in ("moa", "compound"))
    pairs = pd.DataFrame({"moa": moa, "compound": compound})[frame["used"] & ~frame["control"] & (moa != "")]
    sizes = pairs.drop_duplicates().groupby("moa").size().sort_index().sort_values(ascending=False, kind="stable")
    if len(sizes) < _TOP_MOAS:
        raise InputError(
            f"train.split.by TD1: it trains on the {_TOP_MOAS} MOAs with most compounds, and there are {len(sizes)}; "
            "TD2 trains on all compounds"
        )
    top, rest = sizes.iloc[:_TOP_MOAS], sizes.iloc[_TOP_MOAS:]
    cut = int(top.iloc[-1])
    if lost := rest.index[rest == cut].tolist():
        said.append(
            f"the {_TOP_MOAS} largest MOAs end among {(sizes == cut).sum()} of {cut} compounds each; by name, "
            f"{(top == cut).sum()} of them are in and {named(lost)} are out"
        )
    return _among(moa, top.index) | frame["control"].to_numpy()


def _in_random_compounds(frame: pd.DataFrame, seed: int) -> np.ndarray:
    compound = _need(frame, "compound", "train.split.by TD4")
    names = sorted(set(compound[frame["used"] & ~frame["control"]].unique()) - {""})
    if len(names) < _COMPOUNDS:
        raise InputError(
            f"train.split.by TD4: it draws {_COMPOUNDS} of the compounds, and there are {len(names)}; TD5 and three "
            "train on all"
        )
    drawn = _rng(seed, "TD4").choice(len(names), _COMPOUNDS, replace=False)
    return _among(compound, [names[i] for i in drawn]) | frame["control"].to_numpy()


# --- who is on which side: an int8 array, an entry per group


def _sides(
    frame: pd.DataFrame, split: Split, columns: Columns, label: Sequence[str], seed: int, said: list[str]
) -> np.ndarray:
    if split.by == "one":
        sides = _one(frame, seed, said)
    elif split.by == "two":
        sides = _two(frame, said)
    elif split.by in ("TD1", "TD2", "TD3"):
        sides = _few_sites(frame, _two(frame, said), seed)
    elif split.by == "cross_dose":
        sides = _cross_dose(frame, split, columns, label)
    else:
        sides = _by_units(frame, split, seed, said)
    return np.where(frame["used"], sides, NEITHER).astype(np.int8)


def _by_units(frame: pd.DataFrame, split: Split, seed: int, said: list[str]) -> np.ndarray:
    by = split.by
    if by == "replicate":
        frame["replicate"] = _replicates(frame)
    units = [_need(frame, name, f"train.split.by {by}") for name in _UNITS.get(by, ("by",))]
    names = _joined(units)
    lacking = frame["used"] & (names == "")
    frame["used"] &= names != ""
    if not frame["used"].any():
        raise InputError(f"train.split.by {by}: no cell has one; choose another split")
    if lacking.any():
        said.append(f"{frame.loc[lacking, 'cells'].sum():,} cells have no {by} and are on neither side")
    if split.train or split.validation:
        return _listed([names, units[-1]], split.train, split.validation, by)
    return np.where(_among(names, _held_out(frame.assign(unit=names)[frame["used"]], split, seed)), VALIDATION, TRAIN)


def _among(texts: pd.Series, values: Iterable[str]) -> np.ndarray:
    """Which of `texts` are among `values`; pandas compares every one of a million texts with Python."""
    code, distinct = pd.factorize(texts)
    return np.isin(code, np.flatnonzero(distinct.isin(list(values))))


def _joined(parts: Sequence[pd.Series]) -> pd.Series:
    """Texts with a space between them; "" where one is empty."""
    names, whole = parts[0], parts[0] != ""
    for part in parts[1:]:
        names, whole = names + " " + part, whole & (part != "")
    return names.where(whole, "")


def _held_out(frame: pd.DataFrame, split: Split, seed: int) -> set[str]:
    """The units that validate: a fraction of those of each class.

    Where units hold several classes, as plates do, it is a fraction of those that hold the same classes, such as the
    plates of one map, and of all that hold what no other does.
    """
    pairs = frame[["class", "unit"]].drop_duplicates().sort_values(["class", "unit"])
    held: set[str] = set()
    if not pairs["unit"].duplicated().any():
        alike = {str(name): of_class.tolist() for name, of_class in pairs.groupby("class")["unit"]}
    elif split.by == "replicate":
        alike = {"": _common(frame)}
    else:
        classes = pairs.groupby("unit")["class"].agg("\n".join)
        kinds = classes.where(classes.duplicated(keep=False), "").rename("kind")
        alike = {str(kind): units.index.tolist() for kind, units in kinds.groupby(kinds)}
    for name, units in alike.items():
        held.update(_draw(units, split.fraction, _rng(seed, split.by, name)))
    if not held:
        raise InputError(
            f"train.split.by {split.by}: no class has two, of which one could validate; choose another split, or say "
            "with train.split.validation which validate"
        )
    return held


def _common(frame: pd.DataFrame) -> list[str]:
    """The replicates that half of the treatments have: what is on every plate, as a control, has many more."""
    doses = frame[~frame["control"]].groupby("unit")["dose"].nunique()
    return [str(unit) for unit in doses.index[2 * doses >= frame["dose"][~frame["control"]].nunique()]]


def _draw(units: list[str], fraction: float, rng: np.random.Generator) -> list[str]:
    """A fraction of `units`, rounded, but one at least and not all; none of a single one."""
    n = min(max(int(fraction * len(units) + 0.5 + 1e-9), 1), len(units) - 1)
    return [units[i] for i in rng.permutation(len(units))[:n]]


def _listed(names: Sequence[pd.Series], train: Sequence[str], validation: Sequence[str], by: str) -> np.ndarray:
    """Sides by the values of `by`; `names` are the full names of units and their short ones."""
    known = {value for name in names for value in name.unique()} - {""}
    short = sorted(set(names[-1].unique()) - {""})
    chosen = {}
    for key, values in (("train", train), ("validation", validation)):
        wanted = [_match(value, known, short, f"train.split.{key}", by) for value in values]
        chosen[key] = np.any([_among(name, wanted) for name in names], axis=0)
    if (both := chosen["train"] & chosen["validation"]).any():
        raise InputError(f"train.split: {by} {names[0][both].iloc[0]} is in train and in validation")
    if not train:
        chosen["train"] = ~chosen["validation"]
    if not validation:
        chosen["validation"] = ~chosen["train"]
    return np.select([chosen["train"], chosen["validation"]], [TRAIN, VALIDATION], NEITHER)


def _match(value: str, known: set[str], short: Sequence[str], key: str, by: str) -> str:
    if value in known:
        return value
    try:
        number = plain_text(float(value))
    except ValueError:
        number = ""
    if number not in known:
        raise InputError(f"{key}: {no_value(value, short, by)}")
    return number


def _plates_of_treatments(frame: pd.DataFrame) -> pd.DataFrame:
    """The plates of each treatment that is no control, those of its batch with most of them first.

    A row a treatment (`dose`) and plate; `many` counts its plates in the batch, `place` numbers them from 0.
    """
    plates = frame[frame["used"] & ~frame["control"]]
    plates = plates.assign(batch=plates.get("batch", ""))
    plates = plates[["dose", "batch", "plate"]].drop_duplicates()
    batches = plates[["plate", "batch"]].drop_duplicates()
    if (twice := batches.duplicated("plate")).any():
        plate = batches["plate"][twice].iat[0]
        found = sorted(batches["batch"][batches["plate"] == plate].astype(str))
        raise InputError(f"plate {plate} is in the batches {named(found)}; a plate has one: correct columns.batch")
    plates["many"] = plates.groupby(["dose", "batch"])["plate"].transform("size")
    plates = plates.sort_values(["dose", "many", "batch", "plate"], ascending=[True, False, True, True])
    plates["place"] = plates.groupby(["dose", "batch"]).cumcount()
    return plates.reset_index(drop=True)


def _with_controls(frame: pd.DataFrame, plates: pd.DataFrame, values: pd.Series) -> pd.Series:
    """The value of each group's treatment on its plate; a control has that of most treatments on its plate."""
    table = plates[["dose", "plate"]].assign(value=values.to_numpy())
    found = frame[["dose", "plate"]].merge(table, "left", ["dose", "plate"])["value"].set_axis(frame.index)
    often = table.groupby(["plate", "value"]).size().rename("n").reset_index()
    often = often.sort_values(["plate", "n", "value"], ascending=[True, False, True]).drop_duplicates("plate")
    return found.mask(frame["control"], frame["plate"].map(often.set_index("plate")["value"]))


def _replicates(frame: pd.DataFrame) -> pd.Series:
    """Which of its treatment's plates a group is on, counted from 1, as text."""
    plates = _plates_of_treatments(frame)
    number = _with_controls(frame, plates, plates.groupby("dose").cumcount() + 1)
    return number.fillna(0).astype(int).astype(str).replace("0", "")


def _one(frame: pd.DataFrame, seed: int, said: list[str]) -> np.ndarray:
    """Of each treatment two wells train and a third validates; of the controls two in five, and one in five."""
    wells = frame.assign(name=_joined([frame["plate"], frame["well"]]))
    sides: dict[str, int] = {}
    short = []
    for (control, dose), found in wells[wells["used"]].groupby(["control", "dose"])["name"]:
        names = sorted(set(found))
        if len(names) < 3:
            short.append(dose)
            continue
        train, held = (round(0.4 * len(names)), round(0.2 * len(names))) if control else (2, 1)
        drawn = [names[i] for i in _rng(seed, "one", str(dose)).permutation(len(names))]
        sides |= dict.fromkeys(drawn[:train], TRAIN) | dict.fromkeys(drawn[train : train + held], VALIDATION)
    what = "split one trains on two wells of a treatment and validates on a third"
    if not set(sides) & set(wells["name"][wells["used"] & ~wells["control"]].unique()):
        raise InputError(f"train.split.by one: {what}, and no treatment has three")
    if short:
        said.append(f"{what}; without part: {named(short)}")
    return wells["name"].map(sides).fillna(NEITHER).to_numpy()


def _two(frame: pd.DataFrame, said: list[str]) -> np.ndarray:
    """Of each treatment a plate of its main batch validates; two others of it and one of another batch train."""
    _need(frame, "batch", "train.split.by two")
    plates = _plates_of_treatments(frame)
    main = plates["batch"] == plates.groupby("dose")["batch"].transform("first")
    other = plates.index.isin(plates[~main].drop_duplicates("dose").index)
    skipped = np.where(plates["many"] > 3, 2, 1)  # the second of four is left out
    trains = main & (plates["place"] >= skipped) & (plates["place"] < skipped + 2)
    sides = np.select([main & (plates["place"] == 0), trains | other], [VALIDATION, TRAIN], NEITHER)
    whole = (main & (plates["many"] > 2)).groupby(plates["dose"]).transform("any")
    whole &= (~main).groupby(plates["dose"]).transform("any")
    what = "split two needs three plates of a treatment in one batch and one in another"
    if not whole.any():
        raise InputError(f"train.split.by two: {what}, and no treatment has them")
    if short := sorted(set(plates["dose"][~whole])):
        said.append(f"{what}; without part: {named(short)}")
    found = _with_controls(frame, plates, pd.Series(np.where(whole, sides, NEITHER)))
    return found.fillna(NEITHER).to_numpy()


def _few_sites(frame: pd.DataFrame, sides: np.ndarray, seed: int) -> np.ndarray:
    """`sides` with two sites of each well that validates, all where it has fewer."""
    held = frame[(sides == VALIDATION) & frame["used"]]
    kept: set[tuple[str, str, str]] = set()
    for (plate, well), found in held.groupby(["plate", "well"])["site"]:
        sites = sorted(set(found))
        drawn = _rng(seed, "sites", str(plate), str(well)).permutation(len(sites))[:_VALIDATION_SITES]
        kept.update((str(plate), str(well), sites[i]) for i in drawn)
    is_kept = pd.MultiIndex.from_frame(frame[["plate", "well", "site"]]).isin(kept)
    return np.where((sides == VALIDATION) & ~is_kept, NEITHER, sides)


def _cross_dose(frame: pd.DataFrame, split: Split, columns: Columns, label: Sequence[str]) -> np.ndarray:
    """The second highest concentration trains and the highest validates, or those that `split` lists."""
    key = "train.split.by cross_dose"
    dose = _need(frame, "concentration", key)
    if columns.concentration in label:
        raise InputError(
            f"{key}: the label holds {columns.concentration}, and a class of one dose cannot be found at another; "
            "leave it out of train.label"
        )
    train, held = split.train, split.validation
    if not (train and held):
        second, highest = _highest(frame, key)
        train, held = train or (second,), held or (highest,)
    sides = _listed([dose], train, held, "concentration")
    trained, validated = (set(frame["class"][frame["used"] & (sides == side)].unique()) for side in (TRAIN, VALIDATION))
    if not trained & validated:
        raise InputError(
            f"{key}: no class has cells at {named(train)} and at {named(held)}; train.label must be the same at each "
            "concentration, such as the compound"
        )
    return sides


def _highest(frame: pd.DataFrame, key: str) -> tuple[str, str]:
    """The two highest concentrations of those that half of the compounds have; compounds with one have no say."""
    compound = "compound" if "compound" in frame else "class"
    treated = frame[frame["used"] & ~frame["control"] & (frame["concentration"] != "")]
    pairs = treated[[compound, "concentration"]].drop_duplicates()
    pairs = pairs[pairs.groupby(compound)["concentration"].transform("size") > 1]
    numbers = pd.to_numeric(pairs["concentration"], errors="coerce")
    if numbers.isna().any():
        raise InputError(f"{key}: the concentration {pairs['concentration'][numbers.isna()].iloc[0]!r} is not a number")
    compounds = pairs.groupby("concentration")[compound].size()
    common = compounds[2 * compounds >= pairs[compound].nunique()].index
    ordered = sorted(common, key=float)
    if len(ordered) < 2:
        raise InputError(
            f"{key}: half of the compounds have {len(ordered)} concentration(s) in common, and it needs two; name them "
            "with train.split.train and .validation"
        )
    return ordered[-2], ordered[-1]


def _random_cells(
    table: pd.DataFrame, codes: np.ndarray, frame: pd.DataFrame, group: np.ndarray, split: Split, seed: int
) -> np.ndarray:
    """A fraction of the cells of each class in each well validates, and the others train; int8, an entry per cell."""
    require_columns(table, [CELL], "the crops")
    strata, names = pd.factorize(_joined([frame["plate"], frame["well"], frame["class"]]), sort=True)
    distinct = names.tolist()
    stratum, site = strata[group], pd.factorize(frame["site"], sort=True)[0][group]
    rows = np.flatnonzero(frame["used"].to_numpy()[group])
    rows = rows[np.lexsort((table[CELL].to_numpy()[rows], site[rows], stratum[rows]))]
    stratum = stratum[rows]
    many = np.bincount(stratum, minlength=len(names))
    kept = np.minimum(many, _CELLS_A_WELL.get(split.by, len(rows)))
    held = np.zeros(len(names), np.int64)
    ranks = []
    for i in np.flatnonzero(many).tolist():
        rng = _rng(seed, "cells", distinct[i])
        ranks.append(rng.permutation(many[i]))
        held[i] = split.fraction * kept[i] + rng.random()  # rounded by lot, or no cell of small wells would validate
    rank = np.concatenate(ranks)
    sides = np.where(rank < held[stratum], VALIDATION, np.where(rank < kept[stratum], TRAIN, NEITHER))
    _both_sides(sides, codes[rows])
    parts = np.zeros(len(table), np.int8)
    parts[rows] = sides
    return parts


def _both_sides(sides: np.ndarray, codes: np.ndarray) -> None:
    """Give a side without a cell of some class its first one on the other side; training goes first."""
    for side, other in ((TRAIN, VALIDATION), (VALIDATION, TRAIN)):
        counts = {s: np.bincount(codes[sides == s], minlength=codes.max(initial=-1) + 1) for s in (side, other)}
        spare = 1 if side == TRAIN else 2
        for code in np.flatnonzero((counts[side] == 0) & (counts[other] >= spare)):
            sides[np.flatnonzero((codes == code) & (sides == other))[0]] = side


# --- what is said of it


def _shares(frame: pd.DataFrame, counts: np.ndarray) -> dict[str, float]:
    found = {"well": _joined([frame["plate"], frame["well"]]), "position": frame["well"], "plate": frame["plate"]}
    found |= {role: frame[role] for role in ("batch", "compound", "concentration") if role in frame}
    train, held = counts[:, TRAIN] > 0, counts[:, VALIDATION]
    shares = {}
    for what, values in found.items():
        pair, _ = pd.factorize(frame["class"] + "\n" + values)
        shares[what] = float(held[np.isin(pair, pair[train])].sum() / held.sum())
    return shares


def _warnings(frame: pd.DataFrame, counts: np.ndarray, by: str, shares: dict[str, float]) -> list[str]:
    said = []
    trained, validated = _values_of_sides(_joined([frame["plate"], frame["well"]]), counts)
    if both := trained & validated:
        said.append(
            f"{len(both):,} of {len(validated):,} wells that validate have cells in training too: the validation "
            "accuracy says nothing about a new well"
        )
    if by == "cross_dose" and shares["plate"]:
        said.append(
            f"{shares['plate']:.0%} of the validation cells are on a plate where their class trains at the other "
            "concentration, perhaps in the next well: what they share may be the place"
        )
    trained, validated = _values_of_sides(frame["class"], counts)
    if only := sorted(trained - validated):
        said.append(f"no cell validates of {named(only)}: such classes only train")
    return said


def _values_of_sides(values: pd.Series, counts: np.ndarray) -> tuple[set[str], set[str]]:
    train, held = (set(values[counts[:, side] > 0].unique()) for side in (TRAIN, VALIDATION))
    return train, held


def _unit_table(frame: pd.DataFrame, counts: np.ndarray, by: str, columns: dict[str, str]) -> pd.DataFrame:
    keys = ["plate", "well", "replicate"] if by == "replicate" else list({**_UNITS, **_PRESETS}.get(by, ("by",)))
    group, side = np.nonzero(counts)
    sides = np.array(list(_SIDES.values()))[side]
    table = frame[keys].iloc[group].assign(Split=sides, Cells=counts[group, side])
    table = table.groupby([*keys, "Split"])["Cells"].sum().reset_index()
    table = table.sort_values([*keys, "Split"], key=_numbers_as_such, ignore_index=True)
    return table.rename(columns={**columns, "replicate": "Replicate"})


def _numbers_as_such(texts: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(texts, errors="coerce")
    return texts if (numbers.isna() & (texts != "")).any() else numbers
