"""What a checkpoint of DeepProfiler does not say itself: which channels it was trained on, in which order."""

from collections.abc import Sequence
from pathlib import Path

from cytominer_tools.errors import InputError
from deepprofile.deepprofiler_project import project_channels
from deepprofile.study import Study
from deepprofile.work import log

CELL_PAINTING_CNN = ("DNA", "RNA", "ER", "AGP", "Mito")
# Cell Painting CNN v1 (doi:10.5281/zenodo.7114558), as it is published and as its authors called it before
_KNOWN = ("cell_painting_cnn_v1.hdf5", "combinedset_cellsout_e30.hdf5")
# of the eras of DeepProfiler: each crop by itself
_ALONE = ("legacy_over_max", "minmax")


def trained_channels(weights: Path) -> tuple[tuple[str, ...], str] | None:
    """The channels that the checkpoint `weights` was trained on, in their order, and who says so; None: nobody does.

    Cell Painting CNN v1 is known by the name of its file. Any other below outputs/ of a DeepProfiler project was
    trained on what the configs of the project say, if all of them say the same.
    """
    if weights.name.lower() in _KNOWN:
        return CELL_PAINTING_CNN, "the order of Cell Painting CNN v1"
    folder = weights.resolve().parent
    if folder.name != "checkpoint" or folder.parents[1].name != "outputs":
        return None
    orders = project_channels(folder.parents[2])
    return (next(iter(orders)), "by the config of its project") if len(orders) == 1 else None


def require_channels(study: Study, weights: Path) -> None:
    """Refuse to give the checkpoint `weights` of DeepProfiler other channels than it knows, or in another order.

    Raises
    ------
    InputError
        It names the right order.
    """
    if (found := trained_channels(weights)) is None:
        return
    require_order(str(weights), found[0], tuple(study.channels), f" ({found[1]})")
    if weights.name.lower() in _KNOWN and study.crops.normalize not in _ALONE:
        log.warning(
            "%s: it was trained on crops that were stretched one by one; crops.normalize is %s, legacy_over_max is "
            "nearest to its training",
            weights,
            study.crops.normalize,
        )


def require_order(weights: str, theirs: Sequence[str], ours: Sequence[str], why: str = "") -> None:
    """Refuse the channels `ours` for `weights` that were trained on `theirs`; case does not count.

    Raises
    ------
    InputError
        It says which channels, in which order, and what to do.
    """
    if [name.casefold() for name in theirs] != [name.casefold() for name in ours]:
        raise InputError(
            f"{weights} was trained on the channels {', '.join(theirs)}, in this order{why}; study.yaml has "
            f"{', '.join(ours)}: write `channels` in that order and with those names"
        )
