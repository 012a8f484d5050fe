"""Features that are known to be noise, by list."""

import warnings
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cytominer_tools.errors import InputError
from cytominer_tools.tables import read_table

DEFAULT = "default"

_CHANNELS = ("AGP", "DNA", "ER", "Mito", "RNA")


def _default() -> list[str]:
    """Way 2019, doi:10.6084/m9.figshare.10255811: colocalisation of every two channels, coarse granularity of each."""
    pairs = [
        f"Nuclei_Correlation_{measure}_{one}_{other}"
        for measure in ("Manders", "RWC")
        for one, other in permutations(_CHANNELS, 2)
    ]
    return pairs + [f"Nuclei_Granularity_{scale}_{channel}" for scale in (14, 15, 16) for channel in _CHANNELS]


class Blocklist:
    """Names of features to leave out: those of named lists, then those given.

    Parameters
    ----------
    blocklist_name : str or list of str, optional
        "default" is the one that comes with the package.
    features_to_block : list of str, optional
    blocklists_file : path, optional
        A YAML file that maps names of lists to lists of features, in place of the package's.

    Attributes
    ----------
    blocklist_name
        As given.
    features : list of str

    Raises
    ------
    InputError
        An unknown name, or a file of another shape.
    """

    def __init__(
        self,
        blocklist_name: str | list[str] | None = None,
        features_to_block: list[str] | None = None,
        blocklists_file: str | Path | None = None,
    ):
        self.blocklist_name = blocklist_name
        self.features: list[str] = []
        if blocklist_name is not None and not isinstance(blocklist_name, str | list):
            raise TypeError("blocklist_name must be a string, a list of strings, or None.")
        chosen = [blocklist_name] if isinstance(blocklist_name, str) else blocklist_name or []
        for name in map(str, chosen):
            self.features += _named(name, blocklists_file)
        if features_to_block is not None:
            self.add(features_to_block)

    def add(self, features: list[str]) -> None:
        """Put further names at the end of the list."""
        if not isinstance(features, list):
            raise TypeError("Blocklist.add() requires a list of feature names.")
        self.features = [*self.features, *map(str, features)]

    def to_list(self) -> list[str]:
        """A copy of the names."""
        return list(self.features)

    def __iter__(self) -> Iterator[str]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)


def get_blocklist_features(
    blocklist: str | Sequence[str] | Blocklist | None = None,
    blocklist_name: str | list[str] | None = None,
    population_df: pd.DataFrame | None = None,
    blocklist_file: str | Path | None = None,
) -> list[str]:
    """The names to leave out, those that are columns of `population_df` if it is given.

    Parameters
    ----------
    blocklist : name, list of names or Blocklist, optional
        Goes before `blocklist_name`; without either it is the list "default".
    blocklist_file : path, optional
        A table with a column ``blocklist``; deprecated by pycytominer too.

    Raises
    ------
    InputError
        An unknown list, or a file without that column.
    """
    if blocklist_file is not None:
        warnings.warn(
            "blocklist_file is deprecated; pass the names as blocklist=[...], or Blocklist(blocklists_file=...)",
            DeprecationWarning,
            stacklevel=2,
        )
        table = read_table(blocklist_file)
        if "blocklist" not in table:
            raise InputError(f"{blocklist_file}: must contain a column named 'blocklist'")
        blocklist = table["blocklist"].astype(str).tolist()
    if blocklist is None:
        found = Blocklist(DEFAULT if blocklist_name is None else blocklist_name).to_list()
    elif isinstance(blocklist, str):
        found = [blocklist]
    elif isinstance(blocklist, Blocklist | list):
        found = [str(name) for name in blocklist]
    else:
        raise TypeError("blocklist must be a feature-name string, a list of feature names, or a Blocklist.")
    if population_df is None:
        return found
    present = set(population_df.columns)
    return [name for name in found if name in present]


def _named(name: str, path: str | Path | None) -> list[str]:
    lists = {DEFAULT: _default()} if path is None else _read(Path(path))
    if name not in lists:
        raise InputError(f"Unknown blocklist name {name!r}. Choose one of: {', '.join(sorted(lists))}")
    return lists[name]


def _read(path: Path) -> dict[str, list[str]]:
    try:
        found = YAML(typ="safe", pure=True).load(path)
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict) or not all(isinstance(entry, list) for entry in found.values()):
        raise InputError(f"{path}: must be a mapping of blocklist names to feature lists")
    return {str(name): [str(feature) for feature in entry] for name, entry in found.items()}
