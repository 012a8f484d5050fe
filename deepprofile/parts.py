"""A share of the wells of a study, such as 2/8, for one of several processes; by a rule that all of them know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd

from cytominer_tools.columns import PLATE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.files import safe_name

T = TypeVar("T")
LOCKS = ".parts"  # folder of a study: a lock for each part, and for each plate that several processes make


@dataclass(frozen=True)
class Share:
    """Share `number` of `total`, counted from 1."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """The share that `text` names, such as "2/8".

        Raises
        ------
        InputError
            It is no such pair, or there is no such share.

        Examples
        --------
        >>> Share.parse("2/8")
        Share(number=2, total=8)
        """
        first, _, second = text.partition("/")
        if not (first.strip().isdecimal() and second.strip().isdecimal()):
            raise InputError(f"--part {text}: expected which of how many, such as 2/8")
        share = cls(int(first), int(second))
        if not 1 <= share.number <= share.total:
            raise InputError(f"--part {text}: expected a number from 1 to {share.total or 'that of all parts'}")
        return share

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """The items that are this share's: a run of them, so that few shares meet on one plate.

        >>> [list(Share(i, 3).of("ABCDEFG")) for i in (1, 2, 3)]
        [['A', 'B'], ['C', 'D'], ['E', 'F', 'G']]
        """
        start, stop = (len(items) * n // self.total for n in (self.number - 1, self.number))
        return items[start:stop]

    def lock(self, root: Path) -> Path:
        """The folder that the process with this share of the study at `root` holds."""
        return root / LOCKS / f"{self.number}-of-{self.total}"


def plate_lock(root: Path, folder: Path) -> Path:
    """What processes hold while they complete the plate in `folder`, which is below `root`; nothing else is in it."""
    return root / LOCKS / safe_name(folder.relative_to(root).as_posix())


def dealt_wells(index: pd.DataFrame, share: Share | None) -> dict[str, set[str]]:
    """The wells of each plate of `index` that are `share`'s; all of them without one.

    Plates in the order of the index, wells sorted. A plate of which the share has no well is absent.
    """
    wells = [
        (str(plate), well) for plate, sites in index.groupby(PLATE, sort=False) for well in sorted(sites[WELL].unique())
    ]
    dealt: dict[str, set[str]] = {}
    for plate, well in wells if share is None else share.of(wells):
        dealt.setdefault(plate, set()).add(well)
    return dealt


def dealt_sites(index: pd.DataFrame, dealt: Mapping[str, set[str]]) -> int:
    """How many sites the wells that are `dealt` have."""
    plates = {str(name): sites[WELL] for name, sites in index.groupby(PLATE)}
    return sum(int(plates[name].isin(wells).sum()) for name, wells in dealt.items())
