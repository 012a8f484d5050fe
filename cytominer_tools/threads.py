"""Parts of one calculation on all cores: NumPy and Arrow sort, copy and decode without Python's lock."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Full, Queue
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_thread = threading.local()


def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, initializer=lambda: setattr(_thread, "dealt", True))


def workers() -> int:
    """Threads that compute or decode: one a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(work: Callable[[T], R], parts: Iterable[T]) -> list[R]:
    """`work` of each part, in order; large matrix products have threads of their own and do not belong in it.

    Within work that is dealt over the cores already it is one part after another.
    """
    parts = list(parts)
    if min(len(parts), workers()) < 2 or getattr(_thread, "dealt", False):
        return [work(part) for part in parts]
    with _pool(min(len(parts), workers())) as pool:
        return list(pool.map(work, parts))


def shares(n: int, least: int = 1) -> list[slice]:
    """0 .. n in consecutive slices, one a core, or fewer where there is not `least` for each."""
    parts = max(1, min(workers(), n // least))
    return [slice(n * i // parts, n * (i + 1) // parts) for i in range(parts)]


def map_ahead(
    function: Callable[[T], R], items: Iterable[T], ahead: int, threads: int | None = None
) -> Generator[R, None, None]:
    """`function` of each item, in order, computed in `threads` at most `ahead` items before it is asked for."""
    pool = _pool(threads or workers())
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_background(items: Iterable[T], ahead: int) -> Generator[T, None, None]:
    """The same items, made by one thread that stays at most `ahead` of them in front."""
    queue: Queue[tuple[bool, T | BaseException | None]] = Queue(ahead)
    stop = threading.Event()

    def put(item: tuple[bool, T | BaseException | None]) -> None:
        while not stop.is_set():
            try:
                queue.put(item, timeout=0.1)
                return
            except Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                if stop.is_set():
                    return
                put((True, item))
            put((False, None))
        except BaseException as error:
            put((False, error))
        finally:
            if hasattr(items, "close"):
                items.close()

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            more, item = queue.get()
            if more:
                yield item  # type: ignore[misc]
            elif item is None:
                return
            else:
                raise item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
