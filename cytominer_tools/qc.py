"""Which wells, sites and plates to look at before a screen is believed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cytominer_tools import arrays, layouts
from cytominer_tools.arrays import Codes
from cytominer_tools.columns import COUNT, PLATE, WELL, require_columns, well_name, well_place
from cytominer_tools.errors import InputError
from cytominer_tools.frames import Features, group_codes, names, profile_features, reference_rows, require_names, values

QC = "Metadata_QC"
DISTANCE, DISTANCE_Z = "Metadata_QC_Distance", "Metadata_QC_Z"
EFFECTS = ("edge", "row", "column")


def flag_rows(
    profiles: pd.DataFrame,
    *,
    minimum_cells: int | None = None,
    by: str | Sequence[str] = PLATE,
    features: Features = "infer",
    cutoff: float = 3.5,
    count: str = COUNT,
) -> pd.DataFrame:
    """Wells (or sites) with few cells, and those that lie far from the others of their plate.

    Nothing is dropped: ``samples="Metadata_QC == ''"`` keeps what is flagged out of a fit, and a query out of a table.
    A strong treatment lies far from its plate too, so look before you drop; among replicates (`by` the plate and the
    treatment) or sites of one well only a fault does.

    Parameters
    ----------
    profiles : DataFrame, a row a well or a site
    minimum_cells : int, optional
        A row with fewer in `count` is flagged, and so is one without a count.
    by : column name or names
        The rows that are compared with each other; none compares all. A missing value is a key of its own.
    features : list of column names, or "infer"
        Those that are missing or without spread in a group are left out there.
    cutoff : float
        The robust z from which a row is far; see `layouts.typical_distance`.

    Returns
    -------
    DataFrame, on the index of `profiles`
        Metadata_QC: why the row is flagged, or ""; Metadata_QC_Distance: the median over features of the distance from
        the median of the group, in its MADs; Metadata_QC_Z: its robust z in the group. Both are 0 in a group of one or
        two rows, where nothing says what is far.

    Raises
    ------
    InputError
        An absent column, counts that are no numbers, or a group in which no feature varies.
    """
    by, counted = names(by), [count] if minimum_cells is not None else []
    require_columns(profiles, [*by, *counted], "profiles")
    rows = values(profiles, profile_features(profiles, features, image_features=True))
    distance, z = np.zeros(len(rows)), np.zeros(len(rows))
    for which in arrays.members(group_codes(profiles, by) if by else np.zeros(len(rows), dtype=np.int64)):
        part = rows[which]
        if len(part) > 2:  # two rows are as far from each other
            distance[which], z[which] = layouts.typical_distance(layouts.robust_scores(part, part))
    group = f"its {', '.join(by)}" if by else "the others"
    why = [[f"{d:.3g} MADs from {group} (z {s:.3g})"] if s > cutoff else [] for d, s in zip(distance, z, strict=True)]
    if minimum_cells is not None:
        for reasons, cells in zip(why, values(profiles, [count])[:, 0], strict=True):
            if not cells >= minimum_cells:  # a missing count too
                reasons.insert(0, f"{cells:g} cells, under {minimum_cells}")
    return pd.DataFrame({QC: ["; ".join(one) for one in why], DISTANCE: distance, DISTANCE_Z: z}, index=profiles.index)


def control_drift(
    profiles: pd.DataFrame,
    *,
    samples: str,
    rng: np.random.Generator,
    by: str | Sequence[str] = PLATE,
    features: Features = "infer",
    permutations: int = 199,
) -> pd.DataFrame:
    """How far the controls of each plate (or batch) lie from all controls, beside what chance makes of as many.

    Parameters
    ----------
    samples : query that picks the controls
    rng : Generator
        Deals the controls to plates at random, `permutations` times.
    by : column name or names
        A plate, a batch.

    Returns
    -------
    DataFrame, a row a group
        `by`, controls (their number), drift (root mean square over features of the mean shift, in MADs of all
        controls), by_chance (its mean when controls are dealt at random) and p.

    Raises
    ------
    InputError
        No controls, no `by`, controls of one group alone, an absent column, or no feature that varies.
    """
    by = names(by)
    if not by:
        raise InputError("by is empty: name the column of the plate or batch whose controls are compared")
    require_columns(profiles, by, "profiles")
    chosen = profile_features(profiles, features, image_features=True)
    controls = profiles[reference_rows(profiles, samples)]
    codes = group_codes(controls, by)
    if codes.max() == 0:
        raise InputError(f"the controls are all of one {', '.join(by)}; there is nothing to compare them with")
    rows = values(controls, chosen)
    drift, chance, p = layouts.shift_test(layouts.robust_scores(rows, rows), codes, permutations, rng)
    _, first = np.unique(codes, return_index=True)
    table = controls[by].iloc[first].reset_index(drop=True)
    return table.assign(controls=np.bincount(codes), drift=drift, by_chance=chance, p=p)


def position_effects(
    profiles: pd.DataFrame,
    *,
    rng: np.random.Generator,
    by: str | Sequence[str] = PLATE,
    samples: str = "all",
    features: Features = "infer",
    well: str = WELL,
    permutations: int = 199,
) -> pd.DataFrame:
    """How much of the variance among the wells of a plate goes with the outer ring, the row and the column.

    Where treatments are not spread over the plate at random they make such effects too: test controls by `samples`,
    or profiles from which the mean of their treatment is subtracted.

    Parameters
    ----------
    rng : Generator
        Deals wells to places at random, `permutations` times.
    by : column name or names
        The plate; none takes all plates together.
    samples : "all", or a query
        The wells to test.

    Returns
    -------
    DataFrame, a row a plate and effect
        `by`, effect ("edge", "row", "column"), wells (their number), explained (part of the variance, the mean of all
        features), by_chance (its mean at random) and p; NaN where all wells are of one kind, or each of its own.

    Raises
    ------
    InputError
        An absent column, something that is no well, or no feature that varies.
    """
    by = names(by)
    require_columns(profiles, [*by, well], "profiles")
    chosen = profile_features(profiles, features, image_features=True)
    tested = profiles[reference_rows(profiles, samples)]
    rows, places = values(tested, chosen), _places(tested[well])
    codes = group_codes(tested, by) if by else np.zeros(len(tested), dtype=np.int64)
    shape = layouts.plate_shape(*_places(profiles[well]).T)  # wells that are not tested say how large plates are
    found = []
    for which in arrays.members(codes):
        row, column = places[which].T
        kinds = {"edge": layouts.on_edge(row, column, shape).astype(np.int64), "row": row, "column": column}
        key = tested[by].iloc[which].iloc[0].to_dict()
        for effect in EFFECTS:
            _, kind = np.unique(kinds[effect], return_inverse=True)
            result = (np.nan, np.nan, np.nan)
            if 0 < kind.max() < len(kind) - 1:
                result = layouts.effect_test(rows[which], kind, permutations, rng)
            numbers = dict(zip(("explained", "by_chance", "p"), result, strict=True))
            found.append(key | {"effect": effect, "wells": len(kind)} | numbers)
    return pd.DataFrame(found)


def plate_map(profiles: pd.DataFrame, column: str, *, well: str = WELL) -> pd.DataFrame:
    """A column of one plate as it lies on the plate: rows A, B, ..., columns 1, 2, ..., NaN where there is no well.

    Raises
    ------
    InputError
        No rows, an absent column, something that is no well, or a well that is there twice: take one plate.
    """
    require_names(profiles)
    require_columns(profiles, [column, well], "profiles")
    if len(profiles) == 0:
        raise InputError("the table has no rows")
    places = _places(profiles[well])
    if len(np.unique(places, axis=0)) < len(places):
        raise InputError(f"{well}: some well is there more than once; take the rows of one plate")
    shape = layouts.plate_shape(*places.T)
    table = np.full(shape, np.nan)
    table[tuple(places.T)] = values(profiles, [column])[:, 0]
    letters = [chr(65 + i) if i < 26 else f"A{chr(39 + i)}" for i in range(shape[0])]
    return pd.DataFrame(table, index=letters, columns=range(1, shape[1] + 1))


def missing_wells(
    profiles: pd.DataFrame,
    platemap: pd.DataFrame,
    *,
    join_on: Sequence[str] = ("Metadata_well_position", WELL),
    plate: str = PLATE,
) -> pd.DataFrame:
    """The wells that a plate map names and a plate has no profile of, such as wells without a cell.

    Parameters
    ----------
    profiles : DataFrame, annotated or not
    platemap : DataFrame
        Of all the plates in `profiles`; see `load_platemap`.
    join_on : two column names
        That of the plate map, then that of the profiles.

    Returns
    -------
    DataFrame
        `plate`, the well by the name it has in the profiles, and the columns of the plate map, in its order.

    Raises
    ------
    InputError
        An absent column.
    """
    left, right = join_on
    require_columns(platemap, [left], "platemap")
    require_columns(profiles, [plate, right], "profiles")
    parts = []
    for name, part in profiles.groupby(plate, sort=True, observed=True):
        absent = platemap[~platemap[left].map(_spelled).isin(part[right].map(_spelled))].rename(columns={left: right})
        parts.append(pd.concat([pd.Series(name, absent.index, name=plate), absent], axis=1))
    columns = [plate, *platemap.rename(columns={left: right}).columns]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _spelled(well: Any) -> Any:
    """The name of a well as others write it too: A01 for a1."""
    try:
        return well_name(str(well))
    except InputError:
        return str(well)


def _places(wells: pd.Series) -> Codes:
    """Row and column of each well, from 0; shape (n, 2)."""
    known = {well: well_place(well) for well in wells.unique()}
    return np.array([known[well] for well in wells], dtype=np.int64).reshape(-1, 2)
