"""Normalising profiles: each feature against reference rows, or all of them together (spherizing)."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytominer_tools import arrays
from cytominer_tools.batches import PerBatch, batch_codes
from cytominer_tools.columns import metadata_columns, require_columns
from cytominer_tools.compat import as_peer
from cytominer_tools.errors import InputError, ProfileWarning
from cytominer_tools.frames import (
    Features,
    features_beside,
    group_codes,
    group_labels,
    names,
    reference_rows,
    require_finite,
    values,
    with_features,
)
from cytominer_tools.loading import load_profiles
from cytominer_tools.output import options_of_suffix, output, write_to_file_if_user_specifies_output_details
from cytominer_tools.transformers import InverseNormalTransform, Robustize, RobustMAD, Scaler, Spherize, Standardize

METHODS = ("standardize", "robustize", "mad_robustize", "spherize", "inverse_normal")

RIDGES = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

_QC = "Metadata_cqc_"
_CARRIED = ("Image_", "ome_arrow_")  # image measurements and crops that pycytominer keeps beside the metadata


@write_to_file_if_user_specifies_output_details
def normalize(
    profiles: pd.DataFrame,
    features: Features = "infer",
    image_features: bool = False,
    meta_features: Features = "infer",
    samples: str = "all",
    method: str = "standardize",
    drop_cosmicqc_rows: bool = False,
    output_file: str | Path | None = None,
    output_type: str | None = "csv",
    compression_options: str | dict[str, Any] | None = None,
    float_format: str | None = None,
    mad_robustize_epsilon: float | None = 1e-18,
    spherize_center: bool = True,
    spherize_method: Literal["PCA", "ZCA", "PCA-cor", "ZCA-cor"] = "ZCA-cor",
    spherize_epsilon: float = 1e-6,
    inverse_normal_n_quantiles: int = 1000,
    *,
    by: str | Sequence[str] = (),
    compat: str | None = None,
) -> pd.DataFrame:
    """Score features against reference rows: all rows, or those that the query `samples` picks.

    Parameters
    ----------
    profiles : DataFrame, or the path of a table
        It is left alone.
    features : list of column names, or "infer"
        Missing values stay missing; a feature without any value among the reference rows is missing in all, with a
        warning.
    image_features : bool
        Whether "infer" takes the numeric Image_ columns too.
    meta_features : list of column names, or "infer"
        What comes first in the result; "infer": every ``Metadata_`` column.
    samples : "all", or a query such as ``Metadata_Compound == 'DMSO'``
    method : "standardize", "robustize", "mad_robustize", "spherize" or "inverse_normal"
        See `Standardize`, `Robustize`, `RobustMAD`, `Spherize`, `InverseNormalTransform`.
    drop_cosmicqc_rows : bool
        Leave out rows that a ``Metadata_cqc_`` column flags.
    output_file, output_type, compression_options, float_format
        As in `output`; with `output_file` the result is written and its path returned.
    mad_robustize_epsilon, spherize_center, spherize_method, spherize_epsilon, inverse_normal_n_quantiles
        As in those classes.
    by : column name or names
        Normalise each group of rows with one key by its own reference rows, such as each Metadata_Plate.
    compat : "pycytominer-1.7.1", optional
        Its results: a MAD of 0 is divided by epsilon, linearly dependent features are stretched by 1 / epsilon, and
        columns that are neither features nor metadata are dropped.

    Returns
    -------
    DataFrame
        Metadata, columns that are neither, features (PC1, PC2, ... after PCA), on the index of `profiles`.

    Raises
    ------
    InputError
        An absent or non-numeric feature, infinite values, a query or a group without reference rows, no rows.
    """
    peer = as_peer(compat)
    profiles = load_profiles(profiles)
    if drop_cosmicqc_rows:
        profiles = _without_flagged(profiles)
    if (method := method.lower()) not in METHODS:
        raise InputError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    if method == "mad_robustize" and mad_robustize_epsilon is None:
        raise InputError("mad_robustize_epsilon must be a number")
    if isinstance(meta_features, str) and meta_features != "infer":
        raise InputError(f"meta_features={meta_features!r}: expected a list of column names, or 'infer'")
    chosen = features_beside(profiles, features, names(by), image_features=image_features)
    if not chosen:
        raise InputError(
            f"there is no feature beside {', '.join([*names(by), 'the metadata'])}; name some by features="
        )
    metadata = metadata_columns(profiles) if isinstance(meta_features, str) else list(meta_features)
    require_columns(profiles, [*metadata, *names(by)], "profiles")
    others = _others(profiles, chosen, metadata, peer)
    rows, reference = values(profiles, chosen), reference_rows(profiles, samples)

    def transformer() -> Any:
        match method:
            case "standardize":
                return Standardize()
            case "robustize":
                return Robustize()
            case "mad_robustize":
                return RobustMAD(float(mad_robustize_epsilon or 0), zero_mad="epsilon" if peer else "nan")
            case "inverse_normal":
                # of more than 10,000 rows it takes some, and the same ones each time
                return InverseNormalTransform(inverse_normal_n_quantiles, random_state=0)
            case _:
                return Spherize(spherize_epsilon, spherize_center, spherize_method, True, compat=compat)

    if method == "spherize":
        require_finite(rows, chosen)
    elif method != "mad_robustize" and (infinite := _infinite(rows)).any():
        bad = [chosen[i] for i in np.flatnonzero(infinite)]
        raise InputError(f"infinite values in {len(bad)} feature(s): {', '.join(bad[:5])}; drop or replace them first")
    out, zero, lost = _by_group(profiles, rows, chosen, reference, names(by), samples, transformer)
    if lost.any() and not peer:
        some = [chosen[i] for i in np.flatnonzero(lost)]
        warnings.warn(
            f"normalize: {len(some)} feature(s) have no value among the reference rows ({', '.join(some[:3])}), and so "
            "all of their values are missing",
            ProfileWarning,
            stacklevel=3,
        )
    if zero.any():
        some = [chosen[i] for i in np.flatnonzero(zero)]
        warnings.warn(
            f"mad_robustize: {len(some)} feature(s) have a MAD of 0 among the reference rows ({', '.join(some[:3])}); "
            "values off the median are missing, where pycytominer 1.7.1 divides by its epsilon and makes 1e18 of them",
            ProfileWarning,
            stacklevel=3,
        )
    columns = chosen
    if method == "spherize" and spherize_method.startswith("PCA"):
        columns = [f"PC{i}" for i in range(1, len(chosen) + 1)]
    return with_features(profiles[[*metadata, *others]], out, columns)


def _by_group(
    profiles: pd.DataFrame,
    rows: arrays.Floats,
    chosen: list[str],
    reference: npt.NDArray[np.bool_],
    by: list[str],
    samples: str,
    transformer: Any,
) -> tuple[arrays.Floats, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """The scored rows, and which features had no scale, or no reference value for the values that they have."""
    codes = group_codes(profiles, by) if by else np.zeros(len(rows), dtype=np.int64)
    out = np.empty_like(rows)
    zero, lost = np.zeros((2, rows.shape[1]), dtype=bool)
    for which in arrays.members(codes):
        part = rows[which]
        if not reference[which].any():
            key = profiles[by].iloc[which].iloc[0]
            group = ", ".join(f"{name}={value}" for name, value in key.items())
            raise InputError(f"the group {group} has no row picked by samples={samples!r}; leave it out or mend `by`")
        fitted = transformer()
        if isinstance(fitted, RobustMAD):  # infinite values are not for scikit-learn's checks; medians survive them
            fitted._learn(part[reference[which]])
            out[which] = fitted._apply(part)
            if fitted.zero_mad == "nan":
                flat = np.flatnonzero(fitted.zero_)
                zero[flat] |= (np.isnan(out[which][:, flat]) & ~np.isnan(part[:, flat])).any(axis=0)
        elif isinstance(fitted, Spherize):  # it names the features that it cannot scale
            named = pd.DataFrame(part, columns=chosen, copy=False)
            out[which] = fitted.fit(named, control=reference[which]).transform(named)
        else:
            out[which] = fitted.fit(part, control=reference[which]).transform(part)
        if not isinstance(fitted, Spherize):
            center = fitted.center_ if isinstance(fitted, Scaler) else fitted.transformer_.quantiles_[0]
            blank = np.flatnonzero(np.isnan(center))
            lost[blank] |= ~np.isnan(part[:, blank]).all(axis=0)
    return out, zero, lost


def _others(profiles: pd.DataFrame, features: list[str], metadata: list[str], peer: bool) -> list[str]:
    """The columns that are neither: first those that pycytominer carries along, then those it drops."""
    known = {*features, *metadata}
    neither = [name for name in profiles.columns if name not in known]
    carried = [name for name in neither if name.startswith(_CARRIED)]
    dropped = [name for name in neither if not name.startswith(_CARRIED)]
    if peer:
        return carried
    if dropped:
        warnings.warn(
            f"normalize: {len(dropped)} column(s) are neither features nor metadata and stay as they are "
            f"({', '.join(dropped[:3])}); pycytominer 1.7.1 drops them",
            ProfileWarning,
            stacklevel=4,
        )
    return carried + dropped


def _without_flagged(profiles: pd.DataFrame) -> pd.DataFrame:
    flags = [name for name in metadata_columns(profiles) if name.startswith(_QC)]
    if not flags:
        raise InputError(f"drop_cosmicqc_rows: no column starts with {_QC}; annotate with the table of coSMicQC first")
    passed = profiles[~profiles[flags].any(axis="columns")]
    if passed.empty:
        raise InputError(f"drop_cosmicqc_rows: all {len(profiles)} rows are flagged by {', '.join(flags)}")
    return passed


class Spherized(NamedTuple):
    """What `spherize` did.

    Attributes
    ----------
    profiles : DataFrame
        The table with spherized features.
    dropped : list of str
        The features left out because controls do not vary in them.
    transformer : Spherize, or with `by` a PerBatch of them
        Fitted; carries the number of controls, the eigenvalues (rank) and the gains.
    """

    profiles: pd.DataFrame
    dropped: list[str]
    transformer: Any


class RidgeSearch(NamedTuple):
    """What `search_ridge` found.

    Attributes
    ----------
    scores : DataFrame
        ridge, score; in the order they were tried.
    best : Spherized
        By the ridge of the highest score, the larger one of equal ones.
    """

    scores: pd.DataFrame
    best: Spherized


def search_ridge(
    profiles: pd.DataFrame | str | Path,
    scorer: Callable[[pd.DataFrame], float],
    ridges: Sequence[float] = RIDGES,
    controls: str = "all",
    *,
    features: Features = "infer",
    method: Literal["ZCA", "ZCA-cor"] = "ZCA-cor",
    min_variance: float = 1e-6,
) -> RidgeSearch:
    """Spherize with each of `ridges`, and keep the one whose profiles `scorer` likes best.

    A score of the profiles that are looked at later is too good for having been searched: score other treatments, or
    other plates, than those that the result is reported on.

    Parameters
    ----------
    profiles, controls, features, method, min_variance
        As in `spherize`.
    scorer : function of the spherized profiles
        Returns a number, higher is better; NaN counts as none.
    ridges : list of floats over 0

    Raises
    ------
    InputError
        As in `spherize`; no ridge, or none with a score.
    """
    if not ridges:
        raise InputError("ridges is empty: name some, such as 0.01, 0.1, 1")
    first = spherize(profiles, controls, features=features, method=method, ridge=ridges[0], min_variance=min_variance)
    profiles = load_profiles(profiles)
    kept = list(first.transformer.get_feature_names_out())
    part = pd.DataFrame(values(profiles, kept), index=profiles.index, columns=kept)
    others = first.profiles.drop(columns=kept)
    best, chosen = None, (-np.inf, 0.0)
    scores = []
    for ridge in ridges:
        transformer = first.transformer.with_ridge(ridge)
        made = with_features(others, transformer.transform(part), kept)[list(first.profiles.columns)]
        scores.append(float(scorer(made)))
        if (scores[-1], ridge) > chosen and not np.isnan(scores[-1]):
            best, chosen = Spherized(made, first.dropped, transformer), (scores[-1], ridge)
    if best is None:
        raise InputError(f"the scorer has no score for any of {len(ridges)} ridges")
    return RidgeSearch(pd.DataFrame({"ridge": list(ridges), "score": scores}), best)


def spherize(
    profiles: pd.DataFrame | str | Path,
    controls: str = "all",
    *,
    control: pd.Series | None = None,
    features: Features = "infer",
    method: Literal["ZCA", "ZCA-cor"] = "ZCA-cor",
    ridge: float = 1.0,
    min_variance: float = 1e-6,
    by: str | Sequence[str] = (),
    output_file: str | Path | None = None,
) -> Spherized:
    """Drop the features in which controls do not vary, then spherize all rows by the control rows.

    Parameters
    ----------
    profiles : DataFrame, or the path of a table
        Wells of all plates of a study at once.
    controls : query, or "all"
        The rows to learn from, such as ``Metadata_Compound == 'DMSO'``.
    control : Series of bool, on the index of `profiles`, optional
        Instead of a query.
    features : list of column names, or "infer"
    method, ridge
        As in `Spherize`.
    min_variance : float
        A feature is dropped when its variance over the controls is at most this part of its variance over all rows
        (see `arrays.low_variance`); the ratio has no unit.
    by : column name or names
        Spherize each group of rows with one key by its own controls, such as each Metadata_Plate; under 16 of them it
        follows their noise, with a warning. A feature that does not vary in one group is dropped from all.
    output_file : path, optional
        Where its profiles are written too, as its suffix says.

    Returns
    -------
    Spherized
        Its `profiles` have the rows and columns of the input in their order, less the dropped features.

    Raises
    ------
    InputError
        Missing or infinite values, a `control` that is not boolean or of another index, fewer than two controls (with
        `by` in a group), a row without a key, or no feature left.
    """
    profiles = load_profiles(profiles)
    if control is None:
        control = pd.Series(reference_rows(profiles, controls), index=profiles.index, name="controls")
    if control.dtype != bool or not control.any():
        raise InputError(f"{control.name}: expected booleans, some True; got {control.unique()[:3].tolist()}")
    if not control.index.equals(profiles.index):
        raise InputError(f"{control.name}: its index is not that of the profiles; make it from the same table")
    scope = names(by)
    require_columns(profiles, scope, "profiles")
    chosen = features_beside(profiles, features, scope, image_features=True)
    matrix = values(profiles, chosen)
    require_finite(matrix, chosen)
    rows = control.to_numpy()
    batch = group_labels(profiles, scope) if scope else None
    low = np.zeros(len(chosen), dtype=bool)
    for which in arrays.members(batch_codes(batch, len(rows))[0]):
        if scope and (n := rows[which].sum()) < 2:
            group = ", ".join(f"{name}={value}" for name, value in profiles[scope].iloc[which].iloc[0].items())
            raise InputError(
                f"the group {group} has {n} control row(s); spherizing needs 2 in each, so take larger ones"
            )
        low |= arrays.low_variance(matrix[which], matrix[which][rows[which]], min_variance)
    dropped = [chosen[i] for i in np.flatnonzero(low)]
    kept = [chosen[i] for i in np.flatnonzero(~low)]
    if not kept:
        raise InputError(f"none of {len(chosen)} features varies among {rows.sum()} control rows; check the controls")
    part = pd.DataFrame(matrix[:, ~low] if dropped else matrix, index=profiles.index, columns=kept)
    transformer: Any = Spherize(method=method, ridge=ridge, return_numpy=True)
    if scope:
        transformer = PerBatch(transformer).fit(part, batch=batch, control=rows)
        made = transformer.transform(part, batch=batch)
    else:
        made = transformer.fit(part, control=rows).transform(part)
    scored = with_features(profiles.drop(columns=chosen), made, kept)
    gone = set(dropped)
    spherized = scored[[name for name in profiles.columns if name not in gone]]
    if output_file is not None:
        output(spherized, output_file, **options_of_suffix(output_file))
    return Spherized(spherized, dropped, transformer)


def _infinite(rows: arrays.Floats) -> npt.NDArray[np.bool_]:
    """Which columns hold an infinite value, missing ones left out."""
    found: npt.NDArray[np.bool_] = np.isinf(np.fmax.reduce(rows, axis=0)) | np.isinf(np.fmin.reduce(rows, axis=0))
    return found
