"""How long a person waits for `deepprofile --help`, and what an import costs.

    python benchmarks/startup.py

Each command runs in a process of its own, nine times; the median counts. `python -c pass` is the floor.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import click": [sys.executable, "-c", "import click"],
    "import deepprofile, cytominer_tools, evaluation": [
        sys.executable,
        "-c",
        "import deepprofile, cytominer_tools, evaluation, sys; "
        "assert not {'keras', 'tensorflow', 'pandas'} & set(sys.modules), sys.modules",
    ],
    "deepprofile --help": [str(Path(sys.executable).with_name("deepprofile")), "--help"],
    "import pandas": [sys.executable, "-c", "import pandas"],
    "import keras": [sys.executable, "-c", "import keras"],
}


def main() -> None:
    print(f"{'command':50}  seconds  x floor")
    floor = None
    for name, command in COMMANDS.items():
        times = []
        for _ in range(9 if "keras" not in name[-5:] else 3):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times)
        floor = floor or seconds
        print(f"{name:50}  {seconds:7.3f}  {seconds / floor:7.1f}")


if __name__ == "__main__":
    main()
