"""What every stage shares: progress, and what it says at its end."""

import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from cytominer_tools.errors import InputError

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger("deepprofile")

_PLACE = re.compile(r"^.*?[/\\][^/\\]*?: ")  # a path or a URL before what is said of it
_NUMBER = re.compile(r"\d+")
_NAMED = 3


@dataclass(frozen=True)
class Done:
    """What a stage did: counts of parts, and every input it left out as (what, why)."""

    stage: str
    made: int
    kept: int  # parts that were current
    rows: int
    unit: str  # of a row
    skipped: tuple[tuple[str, str], ...] = ()
    sites: int = 0  # of those made, where the stage counts them
    cells: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        parts = f"{self.made} made, {self.kept} current" if self.kept else f"{self.made} made"
        if self.made + self.kept == 1:  # "1 made" of 96 wells would look like one well
            parts = "made" if self.made else "current"
        left = f"; {len(self.skipped)} left out" if self.skipped else ""
        pace = ""
        if self.sites and self.seconds:
            pace = f"; {self.sites:,} sites at {speed(self.sites, self.seconds)}"
            pace += f" and {speed(self.cells, self.seconds, 'cells')}"
        return f"{self.stage}: {self.rows:,} {self.unit} ({parts}){pace}{left}"


def speed(n: int, seconds: float, unit: str = "sites") -> str:
    """How many a second, in words.

    >>> speed(7, 2.0), speed(4600, 0.5, "cells")
    ('3.5 sites/s', '9,200 cells/s')
    """
    rate = n / max(seconds, 1e-9)
    return f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.2g} {unit}/s"


def by_reason(skipped: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """What was left out as (what, why), by the reason, without the file that it names: count and the first few.

    >>> by_reason([("A01 site 1", "/a/1.tif: no such image"), ("A01 site 2", "/a/2.tif: no such image")])
    [{'reason': 'no such image', 'count': 2, 'first': ['A01 site 1', 'A01 site 2']}]
    """
    groups: dict[str, dict[str, Any]] = {}
    for what, why in skipped:
        reason = _PLACE.sub("", why)
        group = groups.setdefault(_NUMBER.sub("#", reason), {"reason": reason, "count": 0, "first": []})
        group["count"] += 1
        if len(group["first"]) < _NAMED:
            group["first"].append(what)
    return sorted(groups.values(), key=lambda group: -group["count"])


def keep_earlier(what: str, sites: Sequence[T], refusal: Callable[[T], str]) -> None:
    """Stop before finished results are replaced by nothing: a disk that is not mounted, a slip in `images.size`.

    Parameters
    ----------
    what : str
        The results, in words.
    sites : sequence
        The sites that they were made from and would be made from again.
    refusal : function of a site
        Why it would be left out, "" where it would not.

    Raises
    ------
    InputError
        There are two sites or more, and of a few spread over them none can be used.
    """
    few = sites[:: max(1, len(sites) // 5)]
    said = ""
    for site in few if len(sites) > 1 else ():
        said = refusal(site)
        if not said:
            return
    if said:
        raise InputError(
            f"{what} would be replaced by nothing, as none of {len(few)} sites looked at can be used, the last: "
            f"{said}; nothing was changed: mend that, or delete them to go on without"
        )


class Progress:
    """Counts of what is done, and a bar that shows them where somebody looks."""

    def __init__(self, show: Callable[[str], None], add: Callable[[int], None], start: Callable[[int], None]):
        self._show, self._add, self._start = show, add, start
        self.done = self.cells = self._skipped = 0
        self._began = time.monotonic()

    def skip(self, n: int) -> None:
        """Pass over `n` that need no work; the clock starts here."""
        self._skipped += n
        self._start(self._skipped + self.done)
        self._began = time.monotonic()

    def __call__(self, n: int, cells: int = 0) -> None:
        self.done += n
        self.cells += cells
        self._add(n)
        if self.cells:
            self._show(f"{speed(self.done, self.seconds)}, {speed(self.cells, self.seconds, 'cells')}")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Progress]:
    """A bar on standard error, counting `unit`, for as long as it is a terminal; yields what is called to add to it."""
    if not sys.stderr.isatty() or not total:
        yield Progress(lambda text: None, lambda n: None, lambda n: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=total, speed="")
        yield Progress(
            lambda text: bars.update(task, speed=text),
            lambda n: bars.advance(task, n),
            lambda n: bars.reset(task, completed=n, speed=""),
        )
