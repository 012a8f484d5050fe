"""Files and folders that are complete or absent, and a lock for the one process that writes them."""

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4

from cytominer_tools.errors import InputError

# what a killed process leaves behind; uuid4().hex is 32 digits, so nothing a user names looks like it
LEFTOVER = re.compile(r"^\.[0-9a-f]{32}\.")

_held: set[Path] = set()  # locks of this process
_TOGETHER = "and others, with --part,"  # how the holder of a lock that several hold calls itself
_GRACE = 2.0  # s that the holder of a lock has to say who it is
_CLEARING = 60.0  # s that the first of several may take to clear away

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EACCES: "not writable; change its permissions or choose another folder",
    errno.EPERM: "not writable; change its permissions or choose another folder",
    errno.EROFS: "on a read-only disk; choose another folder",
    errno.EEXIST: "a part of this path is a file, not a folder; choose another folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another folder",
}


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn the disk errors that a user can mend into an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        # pyarrow and h5py raise OSError without errno, the number only in the text
        number = error.errno or next((n for n in _REASONS if f"[Errno {n}]" in str(error)), None)
        if number not in _REASONS:
            raise
        raise InputError(
            f"{path}: {_REASONS[number]} and run the same command again; what was complete is kept"
        ) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a sibling with the same suffix; it becomes `path` only if the block succeeds.

    Raises
    ------
    InputError
        The disk is full or the folder cannot be written to.
    """
    path = Path(path)
    part = path.with_name(f".{uuid4().hex}.{path.name}")
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(path.parent)
        finally:  # also on Ctrl-C
            part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty sibling folder; it becomes `path`, in place of an older one, only if the block succeeds.

    Raises
    ------
    InputError
        The disk is full or the parent folder cannot be written to.
    """
    path = Path(path)
    part, old = (path.with_name(f".{uuid4().hex}.{path.name}") for _ in range(2))
    with _told(path):
        part.mkdir(parents=True)
        try:
            yield part
            if path.exists():
                path.replace(old)
            part.replace(path)
            _sync_folder(path.parent)
        finally:
            if old.exists() and not path.exists():  # the second rename failed
                old.replace(path)
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path, *, below: bool = True) -> int:
    """Delete what killed writers left in `folder` (and `below` it) and return how many things that was.

    Call it under `locked`: a file that another process is writing looks the same.
    """
    entries = Path(folder).rglob(".*") if below else Path(folder).glob(".*")
    left = [entry for entry in entries if LEFTOVER.match(entry.name)]
    for entry in left:
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return len(left)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process, as often as it asks; the system lets go of it however the process ends.

    Raises
    ------
    InputError
        Another process holds it.
    """
    path = Path(folder).resolve() / ".lock"
    if path in _held:
        yield
        return
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        if not _lock(file.fileno()):
            raise _refusal(folder, file)
        _sign(file, "")
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


@contextmanager
def locked_together(folder: Path, alone: Callable[[], None]) -> Iterator[None]:
    """Hold `folder` along with other processes that hold it so, and against those that want it by `locked`.

    `alone` is called while nobody else holds it, by whoever comes first.

    Raises
    ------
    InputError
        Another process holds it alone, or this system has no shared locks.
    """
    path = Path(folder).resolve() / ".lock"
    if path in _held:
        yield
        return
    if os.name != "posix":
        raise InputError("--part needs the shared file locks of Linux or macOS; run the command without it")
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        began = time.monotonic()
        while (first := _lock(file.fileno())) or not _lock(file.fileno(), shared=True):
            if first:
                _sign(file, f" {_TOGETHER}")
                alone()
                # the system lets go before it shares, so another may come between, who is first then
                if _lock(file.fileno(), shared=True):
                    break
            # one of many that start at once holds it alone for a moment
            if time.monotonic() - began > (_CLEARING if _TOGETHER in _holder(file) else _GRACE):
                raise _refusal(folder, file)
            time.sleep(0.02)
        yield


@contextmanager
def waited_for(folder: Path) -> Iterator[None]:
    """Hold `folder` for the moment, after whoever holds it so; the system lets go of it however a process ends."""
    path = Path(folder) / ".lock"
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        while not _lock(file.fileno()):
            time.sleep(0.02)
        yield


def safe_name(name: str) -> str:
    """`name` as one file or folder name on every system, and different for different names.

    >>> safe_name("PK-10B-pl1"), safe_name("a/b")
    ('PK-10B-pl1', 'a%2Fb')
    """
    quoted = "".join(f"%{ord(c):02X}" if c in '%/\\:*?"<>|' or ord(c) < 32 else c for c in name)
    quoted = "%2E" + quoted[1:] if quoted.startswith(".") else quoted
    # Windows drops a dot or a space at the end
    return f"{quoted[:-1]}%{ord(quoted[-1]):02X}" if quoted.endswith((".", " ")) else quoted


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # a rename is on disk only when its folder is
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip()


def _sign(file: IO[str], also: str) -> None:
    file.truncate(0)
    file.write(f"process {os.getpid()}{also}")
    file.flush()


def _refusal(folder: Path, file: IO[str]) -> InputError:
    holder = _holder(file) or "another process"
    return InputError(f"{folder}: {holder} is working on it; wait until it ends, or stop it")


def _lock(number: int, *, shared: bool = False) -> bool:
    """Take the lock of an open file, or leave it where another process has it."""
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(number, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    return True
