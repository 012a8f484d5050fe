"""Profiling by several processes of this machine: one a device, each a share of the wells."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from queue import Queue
from typing import Any

from cytominer_tools.errors import InputError
from deepprofile.index import load_index
from deepprofile.parts import Share, dealt_sites, dealt_wells
from deepprofile.study import Study
from deepprofile.work import Done, log, progress

_CHILD = "from deepprofile.processes import child; child()"
_COUNT = "from deepprofile.devices import device_names; print(*device_names(), sep='\\n')"


def profile_on(study: Study, devices: Sequence[str], *, strict: bool = False, epochs: Sequence[int] = ()) -> Done:
    """`profile_cells` on several GPUs of this machine at once, a process each; `devices` are their numbers.

    Raises
    ------
    InputError
        There are no such devices; and whatever stops a process, in the words of the first that ended so. The others go
        on to their end, and the same command goes on from there.
    """
    there = _devices()
    numbers = [device.strip() for device in devices]
    if wrong := [one for one in numbers if not one.isdecimal() or int(one) >= len(there)]:
        said = f"there are {', '.join(map(str, range(len(there))))}" if there else "the backend sees no GPU here"
        raise InputError(
            f"--devices {','.join(devices)}: no device {wrong[0]}, {said}; without --devices one process uses what "
            "there is, a CPU with all its cores"
        )
    if len(set(numbers)) < len(numbers):
        raise InputError(f"--devices {','.join(devices)}: a device is named twice; name each once")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(len(there))]  # those that this process may use
    settings = [{"CUDA_VISIBLE_DEVICES": names[int(one)]} for one in numbers]
    return profile_in_processes(study, settings, strict=strict, epochs=epochs)


def profile_in_processes(
    study: Study, environments: Sequence[Mapping[str, str]], *, strict: bool = False, epochs: Sequence[int] = ()
) -> Done:
    """`profile_cells` in a process for each of `environments`, which are what its variables have beside our own.

    Raises
    ------
    InputError
        As `profile_on`.
    """
    index, total = load_index(study), len(environments)
    # what is unset stays so: to some sections it makes a difference
    order = {
        "root": str(study.root),
        "study": study.model_dump(mode="json", exclude_unset=True),
        "strict": strict,
        "epochs": list(epochs),
    }
    lines: Queue[tuple[int, dict[str, Any] | None]] = Queue()
    processes: list[_Process] = []
    done: dict[int, Done] = {}
    failed: Exception | None = None
    try:
        for number, environment in enumerate(environments):
            processes.append(_Process({**order, "share": f"{number + 1}/{total}"}, environment, number, lines))
        with progress("profile", dealt_sites(index, dealt_wells(index, None)), "sites") as advance:
            running = total
            while running:
                number, said = lines.get()
                who = f"process {number + 1} of {total}"
                if said is None:
                    running -= 1
                    failed = failed or processes[number].failure(who)
                elif "log" in said:
                    log.log(said["level"], "%s: %s", who, said["log"])
                elif "error" in said:
                    log.error("%s stopped: %s", who, said["error"])
                    failed = failed or InputError(said["error"])
                elif "done" in said:
                    skipped = tuple((what, why) for what, why in said["done"]["skipped"])
                    done[number] = Done(**(said["done"] | {"skipped": skipped}))
                elif "kept" in said:
                    advance.skip(said["kept"])
                else:
                    advance(said["sites"], said["cells"])
            seconds = advance.seconds
    finally:  # also on Ctrl-C
        for process in processes:
            process.end()
    if failed is not None:
        raise failed
    return _together([done[number] for number in range(total)], seconds)


def child() -> None:
    """What each process does: read its orders on standard input, and write lines of JSON to standard output."""
    out, order = sys.stdout, json.loads(sys.stdin.readline())
    lock = threading.Lock()

    def say(**said: Any) -> None:
        with lock:
            out.write(json.dumps(said) + "\n")
            out.flush()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(log=record.getMessage(), level=record.levelno)

    sys.stdout = sys.stderr  # what a library prints is no line of ours
    log.addHandler(Handler())
    log.setLevel(logging.INFO)
    told: list[int] = []

    def tell(sites: int, cells: int) -> None:
        if told:
            say(sites=sites, cells=cells)
        else:
            say(kept=sites)
        told.append(sites)

    try:
        from deepprofile.features import profile_cells

        study = Study.model_validate({"root": order["root"], **order["study"]})
        share = Share.parse(order["share"])
        done = profile_cells(study, strict=order["strict"], epochs=order["epochs"], share=share, tell=tell)
    except InputError as error:
        say(error=str(error))
        sys.exit(2)
    say(done=asdict(done))


def _devices() -> list[str]:
    """The GPUs that the backend sees, asked by a process of its own: who asks some backends takes their memory."""
    answer = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise InputError(f"--devices: the backend does not start: {(answer.stderr.splitlines() or ['?'])[-1]}")
    return answer.stdout.split("\n")[:-1] if answer.stdout.strip() else []


class _Process:
    """A process that profiles, and the lines that it says, each put into `lines` with its number; at its end None."""

    def __init__(
        self,
        order: Mapping[str, Any],
        environment: Mapping[str, str],
        number: int,
        lines: "Queue[tuple[int, dict[str, Any] | None]]",
    ):
        self._last: deque[str] = deque(maxlen=60)  # lines on standard error
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, **environment},
        )
        out, err, orders = self._popen.stdout, self._popen.stderr, self._popen.stdin
        assert out is not None
        assert err is not None
        assert orders is not None
        with suppress(BrokenPipeError), orders:  # it may end at once, which is told when its lines end
            orders.write(json.dumps(order) + "\n")

        def listen() -> None:
            with out:
                for line in out:
                    lines.put((number, json.loads(line)))
            self._errors.join()
            self._popen.wait()
            lines.put((number, None))

        def drain() -> None:
            with err:
                self._last.extend(err)

        self._errors = threading.Thread(target=drain, daemon=True)
        self._lines = threading.Thread(target=listen, daemon=True)
        self._errors.start()
        self._lines.start()

    def failure(self, who: str) -> Exception | None:
        """Why a process that has ended did not end well, where it could not say so itself."""
        code = self._popen.returncode
        if code < 0:
            return InputError(
                f"{who} was killed (signal {-code}), perhaps as memory ran out; what it completed is kept: the same "
                "command goes on from there"
            )
        return RuntimeError(f"{who} failed:\n{''.join(self._last)}") if code else None

    def end(self) -> None:
        """Stop it where it still runs, and wait for its end."""
        if self._popen.poll() is None:
            self._popen.terminate()
        self._popen.wait()
        self._lines.join()


def _together(done: Sequence[Done], seconds: float) -> Done:
    """What all processes did, as if one had."""
    first = done[0]
    return Done(
        first.stage,
        sum(one.made for one in done),
        sum(one.kept for one in done),
        sum(one.rows for one in done),
        first.unit,
        tuple(row for one in done for row in one.skipped),
        sum(one.sites for one in done),
        sum(one.cells for one in done),
        seconds,
    )
