"""What is wrong with a study, as its owner reads it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

_MOST = 10


@dataclass(frozen=True)
class Problem:
    """Something in a study that its owner should look at."""

    place: str
    what: str
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def problem_lines(problems: Iterable[Problem], most: int = _MOST) -> list[str]:
    """A line per problem, but of those of one kind only the first `most`, with a count of the others.

    Problems are of one kind where their words differ in numbers, paths and quoted values alone, so that ten thousand
    missing files do not hide the one flat image among them. Kinds stand in the order of their first problem.
    """
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(re.sub(r"'[^']*'|\S*[/\\]\S*|\d[\d.]*", "#", problem.what), []).append(problem)
    lines: list[str] = []
    for found in kinds.values():
        lines += map(str, found[:most])
        if len(found) > most:
            lines.append(f"... and {len(found) - most} more like it, {len(found)} in all: {found[0].what}")
    return lines


def named(values: Iterable[object], most: int = 3) -> str:
    """The first `most` values, and how many there are beyond them.

    >>> named(["A01", "A02", "A03", "A04", "A05"])
    'A01, A02, A03 and 2 more'
    """
    words = [str(value) for value in values]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
