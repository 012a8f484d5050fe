"""Killed at any moment and started again, a study ends with the bytes of an undisturbed run."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from study_factory import derived, made, run

from cytominer_tools.files import LEFTOVER

# makes everything, but kills itself when the n-th file of a name is written and not yet in its place
SCRIPT = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
where, n = sys.argv[2], int(sys.argv[3])
calls = 0
fsync = os.fsync
def dying(number):
    global calls
    calls += where in os.readlink(f"/proc/self/fd/{number}")
    if calls == n:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(number)
os.fsync = dying
from deepprofile.pipeline import run_study
from deepprofile.study import read_study
for done in run_study(read_study(sys.argv[1])):
    print(done, flush=True)
"""


def start(study, where="nowhere", n=-1):
    command = [sys.executable, "-c", SCRIPT, str(study.root), where, str(n)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def leftovers(root):
    return [p for p in root.rglob(".*") if LEFTOVER.match(p.name)]


def require_same(study, finished):
    assert leftovers(study.root) == []
    assert derived(study.root) == derived(finished.root)


# --- at a chosen write
@pytest.mark.parametrize(
    ("where", "n"),
    [
        ("locations/P1/", 5),  # a few wells are located
        ("features/small_cnn_untrained/P1/", 8),  # in the middle of a plate
        ("cells.parquet", 2),  # all wells of a plate are located, their one file is not in its place
        ("cells.parquet", 4),  # the same of their features
        ("profiles/", 5),
        ("scores/", 4),
    ],
)
def test_killed_at_a_write(fresh, finished, where, n):
    process = start(fresh, where, n)
    _, said = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, said
    before = derived(fresh.root)
    assert set(derived(finished.root)) - set(before)  # it was not done
    assert leftovers(fresh.root)
    run(fresh)
    require_same(fresh, finished)
    assert not any(made(run(fresh)).values())


def test_what_was_complete_before_the_kill_is_kept(fresh, finished):
    process = start(fresh, "features/small_cnn_untrained/P2/", 6)
    _, said = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, said
    told = made(run(fresh))
    assert (told["illumination"], told["locate"]) == (0, 0)
    assert 0 < told["profile"] < 6
    require_same(fresh, finished)


# --- at any time
@pytest.mark.slow
def test_killed_again_and_again(fresh, finished):
    delays = random.Random(0)
    kills = 0
    for _ in range(8):
        process = start(fresh)
        try:
            process.wait(timeout=2.5 + 3 * delays.random())
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
    assert kills
    run(fresh)
    require_same(fresh, finished)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_while_parts_appear(fresh, finished, seed):
    chance = random.Random(seed)
    stage, wanted = chance.choice(["locations", "features"]), chance.randrange(1, 12)
    process = start(fresh)
    parts = re.compile(r"[A-C]0\d\.parquet|cells\.parquet")
    while process.poll() is None:
        if sum(bool(parts.fullmatch(p.name)) for p in (fresh.root / stage).rglob("*.parquet")) >= wanted:
            break
        time.sleep(0.001)
    time.sleep(0.02 * chance.random())
    process.kill()
    process.communicate()
    run(fresh)
    require_same(fresh, finished)
