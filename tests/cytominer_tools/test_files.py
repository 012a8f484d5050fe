import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytominer_tools import files
from cytominer_tools.errors import InputError
from cytominer_tools.files import LEFTOVER, atomic_folder, atomic_path, locked, locked_together, safe_name, sweep

HOLD = """
import sys, time; from cytominer_tools.files import locked
with locked(sys.argv[1]): print('held', flush=True); time.sleep(60)
"""
TRY = "import sys; from cytominer_tools.files import locked\nwith locked(sys.argv[1]): print('held')"


def write(path, text="new"):
    with atomic_path(path) as part:
        part.write_text(text)


def write_folder(path, text="new"):
    with atomic_folder(path) as part:
        (part / "a.txt").write_text(text)


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- a file that exists is complete
def test_a_file_appears_with_its_content_and_suffix(tmp_path):
    path = tmp_path / "a" / "b" / "t.csv.gz"
    with atomic_path(path) as part:
        assert part.name.endswith(".t.csv.gz")
        assert part.parent == path.parent
        part.write_text("new")
        assert not path.exists()
    assert tree(tmp_path) == {"a/b/t.csv.gz": "new"}


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_a_block_that_fails_leaves_what_was_there(stop, tmp_path):
    write(tmp_path / "t", "old")
    write_folder(tmp_path / "d", "old")
    for atomic in (atomic_path, atomic_folder):
        with pytest.raises(stop), atomic(tmp_path / ("t" if atomic is atomic_path else "d")) as part:  # noqa: PT012
            (part if atomic is atomic_path else part / "a.txt").write_text("half")
            raise stop
    assert tree(tmp_path) == {"t": "old", "d/a.txt": "old"}


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "t"):
        pass
    assert tree(tmp_path) == {}


def test_a_folder_takes_the_place_of_an_older_one(tmp_path):
    write_folder(tmp_path / "x" / "d", "old")
    (tmp_path / "x" / "d" / "gone").write_text("")
    write_folder(tmp_path / "x" / "d", "new")
    assert tree(tmp_path) == {"x/d/a.txt": "new"}
    assert len(list((tmp_path / "x").iterdir())) == 1


def test_the_older_folder_is_back_where_the_new_one_cannot_be_named(tmp_path, monkeypatch):
    write_folder(tmp_path / "d", "old")
    rename, calls = Path.replace, []

    def fail_second(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "rename")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fail_second)
    with pytest.raises(OSError, match="rename"):
        write_folder(tmp_path / "d", "new")
    assert tree(tmp_path) == {"d/a.txt": "old"}


def test_content_reaches_the_disk_before_the_name_does(tmp_path, monkeypatch):
    said = []
    fsync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda n: (said.append("sync"), fsync(n)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (said.append("rename"), rename(self, to)))
    write(tmp_path / "t")
    assert said == ["sync", "rename", "sync"]


# --- what the user can mend
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "not writable"),
        (errno.EROFS, "read-only"),
    ],
)
@pytest.mark.parametrize("writer", [atomic_path, atomic_folder])
def test_a_disk_that_refuses_in_the_block(number, words, writer, tmp_path):
    write(tmp_path / "other")
    with pytest.raises(InputError, match=rf"out\.x: .*{words}.*same command again"), writer(tmp_path / "out.x"):
        raise OSError(number, os.strerror(number))
    assert tree(tmp_path) == {"other": "new"}
    assert not list(tmp_path.glob(".*"))


def test_an_error_whose_number_is_only_in_its_text(tmp_path):
    with pytest.raises(InputError, match="disk is full"), atomic_path(tmp_path / "t"):
        raise OSError(f"[Errno {errno.ENOSPC}] Error writing bytes to file")  # as pyarrow puts it


def test_a_disk_that_is_full_when_the_file_is_flushed(tmp_path, monkeypatch):
    write(tmp_path / "t", "old")

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="disk is full"):
        write(tmp_path / "t")
    assert tree(tmp_path) == {"t": "old"}
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")
    for path in (tmp_path / "file" / "t", tmp_path / "file" / "deeper" / "t"):
        for writer in (atomic_path, atomic_folder, locked):
            with pytest.raises(InputError, match="is a file, not a folder; choose another"), writer(path):
                pass
    assert tree(tmp_path) == {"file": "old"}

    def denied(self, **_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    for writer in (atomic_path, atomic_folder, locked):
        with pytest.raises(InputError, match="not writable; change its permissions"), writer(tmp_path / "x" / "t"):
            pass


def test_another_error_of_the_disk_keeps_its_traceback(tmp_path):
    with pytest.raises(OSError, match="Input/output"), atomic_path(tmp_path / "t"):
        raise OSError(errno.EIO, "Input/output error")


# --- what a kill leaves behind
def test_sweep_takes_what_killed_writers_left_and_nothing_else(tmp_path):
    kill = (
        "import os, sys; from cytominer_tools.files import atomic_path, atomic_folder; from pathlib import Path\n"
        "with atomic_folder(Path(sys.argv[1], 'a', 'd')) as f, atomic_path(Path(sys.argv[1], 'a', 't')) as p:\n"
        "    (f / 'x').write_text('half'); p.write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", kill, tmp_path], check=False)
    assert len([p for p in tmp_path.rglob(".*") if LEFTOVER.match(p.name)]) == 2
    for name in ("a/.hidden", "a/.lock", "a/" + "0" * 32 + ".x", "a/.0123.x"):
        (tmp_path / name).write_text("kept")
    assert sweep(tmp_path) == 2
    assert sorted(tree(tmp_path)) == sorted(["a/.hidden", "a/.lock", "a/" + "0" * 32 + ".x", "a/.0123.x"])
    assert sweep(tmp_path) == 0
    assert sweep(tmp_path / "absent") == 0


# --- one writer
def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    def attempt():
        return subprocess.run([sys.executable, "-c", TRY, tmp_path], capture_output=True, text=True, check=False)

    with locked(tmp_path), locked(tmp_path):  # as often as this process asks
        refused = attempt()
        assert f"process {os.getpid()} is working on it; wait" in refused.stderr
        assert "InputError" in refused.stderr
    assert attempt().stdout == "held\n"
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {holder.pid} is working on it"), locked(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    with locked(tmp_path):
        assert "InputError" in attempt().stderr
    with locked(tmp_path):  # the lock of a process that ended by itself
        pass


def test_another_may_come_between_clearing_away_and_sharing(tmp_path, monkeypatch):
    """A change from alone to shared lets go first; who comes between is first then, and shares later."""
    lock, asked, cleared = files._lock, [], []

    def between(number, *, shared=False):
        asked.append(shared)
        if asked == [False, True]:
            with (tmp_path / ".lock").open("a+") as file:  # another open file: another holder
                assert lock(number, shared=True)
                assert lock(file.fileno(), shared=True)
                return False
        return lock(number, shared=shared)

    monkeypatch.setattr(files, "_lock", between)
    with locked_together(tmp_path, lambda: cleared.append(True)):
        assert asked == [False, True, False, True]
    assert cleared == [True, True]


def test_a_lock_is_let_go_of_when_the_block_fails(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    assert not files._held
    assert subprocess.run([sys.executable, "-c", TRY, tmp_path], check=False, capture_output=True).returncode == 0


# --- names
CHARACTERS = st.text(st.sampled_from('aA0.%25EFx/\\:* "<>|?\n\x00ü'), min_size=1)


@given(CHARACTERS, CHARACTERS)
def test_different_names_are_different_files(one, other):
    assert (safe_name(one) == safe_name(other)) == (one == other)


@given(CHARACTERS | st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_name_is_one_visible_file_everywhere(name):
    safe = safe_name(name)
    assert not set(safe) & set('/\\:*?"<>|')
    assert min(map(ord, safe)) >= 32
    assert safe[0] != "."
    assert safe[-1] not in ". "


def test_usual_names_stay_as_they_are():
    assert [safe_name(n) for n in ("BR00116991", "PK-10B-pl1", "plate 1.2_ü")] == [
        "BR00116991",
        "PK-10B-pl1",
        "plate 1.2_ü",
    ]
    assert [safe_name(n) for n in (".", "..", "../x", "%2E", "a.")] == ["%2E", "%2E%2E", "%2E.%2Fx", "%252E", "a%2E"]
