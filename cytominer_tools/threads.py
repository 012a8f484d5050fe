"""Parts of one calculation on all cores: NumPy sorts, copies and decodes without Python's lock."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def workers() -> int:
    """Threads that compute or decode: one a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(work: Callable[[T], R], parts: Iterable[T]) -> list[R]:
    """`work` of each part, in order; matrix products have threads of their own and do not belong in it."""
    with ThreadPoolExecutor(workers()) as pool:
        return list(pool.map(work, parts))


def shares(n: int, least: int = 1) -> list[slice]:
    """0 .. n in consecutive slices, one a core, each of at least `least`."""
    parts = max(1, min(workers(), n // least))
    return [slice(n * i // parts, n * (i + 1) // parts) for i in range(parts)]
