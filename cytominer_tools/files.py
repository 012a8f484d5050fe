"""Files and folders that are complete or absent, and a lock for the one process that writes them."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from cytominer_tools.errors import InputError

# what a killed process leaves behind; uuid4().hex is 32 digits, so nothing a user names looks like it
LEFTOVER = re.compile(r"^\.[0-9a-f]{32}\.")

_held: set[Path] = set()  # locks of this process

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
        try:
            _lock(file.fileno())
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InputError(f"{folder}: {holder} is working on it; wait until it ends, or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


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


def _lock(number: int) -> None:
    if os.name == "posix":
        import fcntl

        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
