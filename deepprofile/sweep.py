"""A training for each setting of a grid, profiled and scored; their table is that of `compare`."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from cytominer_tools.errors import InputError
from cytominer_tools.files import safe_name
from deepprofile.features import profile_cells
from deepprofile.profiles import aggregate_wells, consensus_profiles, normalize_wells, score_profiles
from deepprofile.study import NAME, Study, study_from
from deepprofile.training import train_network, train_section
from deepprofile.work import Done, log
from deepprofile.yaml import read_yaml

# what a training is made of; everything else would make other crops, or be the same for all
_KEYS = ("train.", "profile.network", "profile.options.", "seed")
_FIXED = ("train.name", "train.crops", "train.track", "train.checkpoint_every", "train.score_every")


@dataclass(frozen=True)
class Setting:
    """One point of a grid.

    Attributes
    ----------
    name : str
        Of its model, such as ``trained-learning_rate0.01-batch32``.
    study : Study
        The study with these settings, which profiles with that model.
    """

    name: str
    study: Study


def read_sweep(study: Study, path: str | Path) -> list[Setting]:
    """Every combination of the values that a YAML file lists, in the order of its keys, the last one fastest.

    The file names keys of study.yaml, each with a list of values, such as ``train.learning_rate: [0.01, 0.02]``.

    Raises
    ------
    InputError
        A key makes no other weights or is unknown, a list is empty, a value is not one that study.yaml takes, or two
        settings are the same.
    """
    path = Path(path)
    grid = read_yaml(path)
    train = train_section(study)
    base = read_yaml(study.root / NAME)
    for key, values in grid.items():
        if not str(key).startswith(_KEYS) or key in _FIXED:
            raise InputError(
                f"{path}: {key} is not swept; a sweep takes keys of train (but {', '.join(_FIXED)}), profile.network, "
                "profile.options.NAME and seed"
            )
        if not isinstance(values, list) or not values:
            raise InputError(f"{path}: {key}: expected a list of values, such as [0.01, 0.02], got {str(values)[:60]}")
    if not grid:
        raise InputError(f"{path}: it lists no setting; write a line such as `train.learning_rate: [0.01, 0.02]`")
    found: dict[str, Setting] = {}
    for values in product(*grid.values()):
        settings = deepcopy(base)
        words = []
        for key, value in zip(grid, values, strict=True):
            _put(settings, str(key).split("."), value)
            words.append(_word(str(key), value, grid[key]))
        name = "-".join([train.name, *words])
        if name in found:
            raise InputError(f"{path}: {name} is listed twice")
        _put(settings, ["train", "name"], name)
        _put(settings, ["profile", "weights"], name)
        settings["profile"].pop("model", None)
        found[name] = Setting(name, study_from(study.root / NAME, settings, said=f"{path}: {name}"))
    return list(found.values())


def run_sweep(study: Study, path: str | Path) -> Iterator[Done]:
    """Train, profile and score each setting of the grid in `path`; what is current is left alone.

    Crops are those of `train.crops`, which have to be there. A setting that cannot be trained is left out and reported;
    the others go on. Killed and called again, it goes on where it was.

    Raises
    ------
    InputError
        As in `read_sweep`; or no setting could be trained.
    """
    settings = read_sweep(study, path)
    failed: list[tuple[str, str]] = []
    made = 0
    for number, setting in enumerate(settings, 1):
        log.info("sweep: %d of %d: %s", number, len(settings), setting.name)
        try:
            stages = []
            for done in _stages(setting.study):
                stages.append(done)
                yield done
            made += any(done.made for done in stages)
        except InputError as error:
            log.warning("sweep: %s is left out: %s", setting.name, error)
            failed.append((setting.name, str(error).splitlines()[0]))
    if len(failed) == len(settings):
        raise InputError(f"sweep: none of {len(settings)} settings could be trained and scored; first {failed[0][1]}")
    yield Done("sweep", made, len(settings) - len(failed) - made, len(settings), "settings", tuple(failed))


def _stages(study: Study) -> Iterator[Done]:
    yield train_network(study)
    yield profile_cells(study)
    for features in study.feature_sets:
        for one in features.recipe_sets:
            for stage in (aggregate_wells, normalize_wells, consensus_profiles, score_profiles):
                yield stage(one.without_untrained)


def _put(settings: dict[str, Any], place: list[str], value: Any) -> None:
    *sections, last = place
    for name in sections:
        if not isinstance(settings.get(name), dict):  # absent, or empty as in `train:`
            settings[name] = {}
        settings = settings[name]
    settings[last] = value


def _word(key: str, value: Any, values: list[Any]) -> str:
    """What a value is called in the name of a model.

    >>> _word("train.batch", 32, [32]), _word("train.init", "imagenet", []), _word("train.split", ["a"], [["b"], ["a"]])
    ('batch32', 'imagenet', 'split2')
    """
    short = key.rsplit(".", 1)[-1]
    if isinstance(value, str):
        return safe_name(value)
    if isinstance(value, dict | list):
        return f"{short}{values.index(value) + 1}"
    return f"{short}{value}"
