import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import plain_network
import pytest
from study_factory import configure, derived

from cytominer_tools.columns import PLATE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.manifest import Manifest, PlateTable
from deepprofile.export import export_crops
from deepprofile.features import plate_features, profile_cells
from deepprofile.locations import locate_cells
from deepprofile.parts import Share, dealt_sites, dealt_wells
from deepprofile.processes import profile_in_processes, profile_on
from deepprofile.profiles import aggregate_wells
from deepprofile.study import read_study

CPU = {"CUDA_VISIBLE_DEVICES": ""}
# profiles a share, and kills itself when the n-th file of a name is written and not yet in its place
SCRIPT = """
import os, signal, sys
part, where, n = sys.argv[2], sys.argv[3], int(sys.argv[4])
calls = 0
fsync = os.fsync
def dying(number):
    global calls
    calls += where in os.readlink(f"/proc/self/fd/{number}")
    if calls == n:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(number)
os.fsync = dying
import plain_network
plain_network.use()
from deepprofile.features import profile_cells
from deepprofile.parts import Share
from deepprofile.study import read_study
print(profile_cells(read_study(sys.argv[1]), share=Share.parse(part)))
"""


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}


def start(study, part, where="nowhere", n=-1):
    command = [sys.executable, "-c", SCRIPT, str(study.root), part, where, str(n)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def ended(*processes):
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(err for _, err in told)
    return [out for out, _ in told]


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    plain_network.use(monkeypatch)


@pytest.fixture
def unprofiled(located):
    """A study with locations and without features."""
    return located


@pytest.fixture(scope="module")
def whole(located_once, tmp_path_factory):
    """The same, profiled by one process; not to be written to."""
    root = tmp_path_factory.mktemp("whole") / "study"
    shutil.copytree(located_once.root, root)
    study = configure(root, locate={"labels": True})
    with pytest.MonkeyPatch.context() as patch:
        plain_network.use(patch)
        profile_cells(study)
    return study


def features(root):
    return {name: sha for name, sha in derived(root).items() if name.startswith("features/")}


# --- which wells
@pytest.mark.parametrize("total", [1, 2, 3, 5, 12, 20])
def test_every_well_is_dealt_once_whatever_the_number_of_parts(total):
    wells = [
        (plate, f"{row}0{i}", site) for plate in ("P2", "P1") for row in "BA" for i in (1, 2, 3) for site in (1, 2)
    ]
    index = pd.DataFrame(wells, columns=[PLATE, WELL, "Metadata_Site"])
    dealt = [dealt_wells(index, Share(i + 1, total)) for i in range(total)]
    pairs = [(plate, well) for one in dealt for plate, names in one.items() for well in sorted(names)]
    assert pairs == [(plate, well) for plate in ("P2", "P1") for well in ("A01", "A02", "A03", "B01", "B02", "B03")]
    sizes = [dealt_sites(index, one) for one in dealt]
    assert sum(sizes) == 24
    assert max(sizes) - min(sizes) <= 2  # a well has two sites
    assert dealt_wells(index, None) == dealt_wells(index, Share(1, 1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("5/4", r"--part 5/4: expected a number from 1 to 4"),
        ("0/4", r"--part 0/4: expected a number from 1 to 4"),
        ("0/0", r"--part 0/0: expected a number from 1"),
        ("2", r"--part 2: expected which of how many, such as 2/8"),
        ("a/b", r"--part a/b: expected which"),
        ("-1/4", r"--part -1/4: expected which"),
    ],
)
def test_a_part_that_there_is_not(text, words):
    with pytest.raises(InputError, match=words):
        Share.parse(text)


# --- one after the other
@pytest.mark.parametrize("total", [2, 3, 20])
def test_parts_one_after_the_other_make_the_files_of_one_run(unprofiled, whole, total):
    told = [profile_cells(unprofiled, share=Share(i + 1, total)) for i in reversed(range(total))]
    assert sum(one.made for one in told) == 12
    assert features(unprofiled.root) == features(whole.root)
    again = profile_cells(unprofiled)
    assert (again.made, again.kept, again.rows) == (0, 12, sum(one.rows for one in told))


def test_before_the_last_part_nothing_is_taken_for_complete(unprofiled):
    profile_cells(unprofiled, share=Share(1, 4))  # half of the first plate
    assert not (unprofiled.features / "P1" / "cells.parquet").exists()
    assert sorted(plate_features(unprofiled, "P1").manifest.parts) == ["A01", "A02", "B01"]
    with pytest.raises(InputError, match=r"3 of 6 part\(s\) are not made, first B02; run `deepprofile profile`"):
        aggregate_wells(unprofiled)


def test_a_run_without_part_goes_on_from_the_parts(unprofiled, whole):
    profile_cells(unprofiled, share=Share(2, 3))
    told = profile_cells(unprofiled)
    assert (told.made, told.kept) == (8, 4)
    assert features(unprofiled.root) == features(whole.root)


def test_a_part_remakes_what_changed_and_no_more(unprofiled, whole):
    done = unprofiled
    profile_cells(done)
    path = done.root / "images" / "P1" / "A02_s1_ER.tif"
    os.utime(path, ns=(2 * 10**18, 2 * 10**18))
    assert profile_cells(done, share=Share(2, 2)).made == 0
    assert profile_cells(done, share=Share(1, 2)).made == 1
    assert (done.features / "P1" / "cells.parquet").read_bytes() == (
        whole.features / "P1" / "cells.parquet"
    ).read_bytes()
    assert sorted(p.name for p in (done.features / "P1").iterdir()) == ["cells.parquet", "manifest.json"]


def test_locate_and_export_in_parts(fresh, tmp_path):
    from deepprofile.intensities import measure_intensities

    other = tmp_path / "other"
    shutil.copytree(fresh.root, other, copy_function=shutil.copy2)
    single, parted = (configure(root, locate={"labels": True}) for root in (other, fresh.root))
    for study, shares in ((single, [None]), (parted, [Share(2, 3), Share(1, 3), Share(3, 3)])):
        measure_intensities(study)
        for stage in (locate_cells, export_crops):
            told = [stage(study, share=share) for share in shares]
            assert sum(one.made for one in told) == 12
    assert derived(parted.root) == derived(single.root)


# --- at the same time
def test_parts_at_the_same_time(unprofiled, whole):
    told = ended(*[start(unprofiled, f"{i}/3") for i in (1, 2, 3)])
    assert all("(4 made)" in out for out in told)
    assert features(unprofiled.root) == features(whole.root)
    assert not any(p.name.endswith(".part.json") for p in unprofiled.root.rglob("*"))


def test_the_same_wells_twice_at_the_same_time(unprofiled, whole):
    """Parts of other totals overlap; the work is done twice, and nothing is lost."""
    ended(start(unprofiled, "1/1"), start(unprofiled, "1/2"), start(unprofiled, "2/2"))
    assert profile_cells(unprofiled).kept == 12
    assert features(unprofiled.root) == features(whole.root)


def test_who_may_work_beside_whom(unprofiled):
    def attempt(part):
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, unprofiled.root, part, "nowhere", "-1"],
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
        )

    with unprofiled.writing(Share(1, 2)):
        same = attempt("1/2")
        assert f"1-of-2: process {os.getpid()} is working on it; wait until it ends, or stop it" in same.stderr
        with pytest.raises(InputError, match="and others, with --part, is working on it"), _other_process(unprofiled):
            pass
        assert attempt("2/2").returncode == 0
    with unprofiled.writing():
        began = time.monotonic()
        refused = attempt("1/2")
        assert f"{unprofiled.root}: process {os.getpid()} is working on it; wait until it ends" in refused.stderr
        assert time.monotonic() - began < 30


def _other_process(study):
    """`study.writing()` as another process has it, which knows nothing of the locks of this one."""
    from cytominer_tools import files

    files._held.clear()
    return study.writing()


# --- killed
@pytest.mark.parametrize(
    ("where", "n"), [("A02.parquet", 1), ("A02.part.json", 1), ("cells.parquet", 1), ("manifest.json", 1)]
)
def test_a_part_that_is_killed_loses_its_own_well_at_most(unprofiled, whole, where, n):
    ended(start(unprofiled, "2/2"))
    victim = start(unprofiled, "1/2", where, n)
    victim.communicate(timeout=120)
    assert victim.returncode == -signal.SIGKILL
    kept = {name: sha for name, sha in features(unprofiled.root).items() if "/P2/" in name}
    told = profile_cells(unprofiled, share=Share(1, 2))
    assert told.kept == (1 if "A02" in where else 6)
    assert features(unprofiled.root) == features(whole.root)
    assert kept.items() <= features(unprofiled.root).items()


def test_the_first_of_several_clears_away_what_was_left(unprofiled):
    left = unprofiled.features / "P1" / f".{'0' * 32}.A01.parquet"
    left.parent.mkdir(parents=True)
    left.touch()
    with unprofiled.writing(Share(1, 2)):
        assert not left.exists()
        left.touch()
        code = "import sys; from deepprofile.study import read_study; from deepprofile.parts import Share\n"
        code += "with read_study(sys.argv[1]).writing(Share(2, 2)): print('in')"
        out = subprocess.run([sys.executable, "-c", code, unprofiled.root], capture_output=True, text=True, check=True)
        assert out.stdout == "in\n"
        assert left.exists()  # another process may be writing it


# --- records
def test_a_record_that_is_none(unprofiled):
    profile_cells(unprofiled, share=Share(1, 6))
    path = unprofiled.features / "P1" / "A01.part.json"
    path.write_text("{")
    with pytest.raises(InputError, match=r"A01\.part\.json: not a record of a well; delete it to make the well again"):
        profile_cells(unprofiled)


def test_a_record_without_its_file_counts_for_nothing(tmp_path):
    record = {
        "well": "A01",
        "settings": {},
        "part": {"key": "k", "file": "A01.parquet", "settings": "s", "rows": 1, "skipped": []},
    }
    (tmp_path / "A01.part.json").write_text(json.dumps(record))
    assert PlateTable(tmp_path, "features").manifest.parts == {}
    (tmp_path / "A01.parquet").touch()
    assert PlateTable(tmp_path, "features").manifest.parts["A01"].key == "k"
    assert Manifest.read(tmp_path, "features").parts == {}


# --- a process a device
def test_two_processes_make_the_files_of_one(done, finished):
    shutil.rmtree(done.root / "features")
    told = profile_in_processes(done, [CPU, CPU])
    assert (told.made, told.kept, told.sites, told.cells) == (12, 0, 24, told.rows)
    assert told.unit == "cells x 16 features"
    assert features(done.root) == features(finished.root)


@pytest.mark.slow
def test_settings_reach_the_processes(unprofiled):
    study = unprofiled.model_copy(
        update={"profile": unprofiled.profile.model_copy(update={"model": "other", "dtype": "float16"})}
    )
    profile_in_processes(study, [CPU])
    card = json.loads((unprofiled.root / "features" / "other" / "card.json").read_text())
    assert (card["model"], card["dtype"]) == ("other", "float16")
    assert read_study(unprofiled.root).profile.model is None


@pytest.mark.slow
def test_the_first_error_of_a_process_is_told_and_what_others_made_is_kept(unprofiled, caplog):
    (unprofiled.root / "images" / "P2" / "C02_s1_ER.tif").unlink()
    with pytest.raises(InputError, match=r"C02_s1_ER\.tif: no such image"):
        profile_in_processes(unprofiled, [CPU, CPU], strict=True)
    assert "process 2 of 2 stopped: " in caplog.text
    assert (unprofiled.features / "P1" / "cells.parquet").exists()
    assert len(plate_features(unprofiled, "P1").manifest.parts) == 6


def test_a_process_that_dies_is_told(unprofiled):
    with pytest.raises(RuntimeError, match=r"process 1 of 1 failed:\n(?s:.*)nonesuch"):
        profile_in_processes(unprofiled, [{"KERAS_BACKEND": "nonesuch"}])


@pytest.mark.parametrize(
    ("devices", "seen", "words"),
    [
        (
            ["0", "1"],
            [],
            r"--devices 0,1: no device 0, the backend sees no GPU here; without --devices one process uses",
        ),
        (["0", "2"], ["a", "b"], r"--devices 0,2: no device 2, there are 0, 1;"),
        (["gpu"], ["a"], r"--devices gpu: no device gpu, there are 0;"),
        (["1", "1"], ["a", "b"], r"--devices 1,1: a device is named twice"),
    ],
)
def test_devices_that_are_not_there(unprofiled, monkeypatch, devices, seen, words):
    monkeypatch.setattr("deepprofile.processes._devices", lambda: seen)
    with pytest.raises(InputError, match=words):
        profile_on(unprofiled, devices)


def test_each_process_sees_its_device_alone(unprofiled, monkeypatch):
    given = []
    monkeypatch.setattr("deepprofile.processes._devices", lambda: ["a", "b", "c"])
    monkeypatch.setattr(
        "deepprofile.processes.profile_in_processes", lambda study, settings, **_: given.extend(settings)
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    profile_on(unprofiled, ["2", "0"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-8f1")
    profile_on(unprofiled, ["2", "0"])
    assert [one["CUDA_VISIBLE_DEVICES"] for one in given] == ["2", "0", "GPU-8f1", "4"]


@pytest.mark.slow
def test_the_backend_is_asked_for_its_devices():
    from deepprofile.processes import _devices

    assert all(re.search("(?i)gpu|cuda", name) for name in _devices())
