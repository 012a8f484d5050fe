"""Peak memory and rate of `profile` over 20, 100 and 400 sites: memory must not grow with them, nor time faster.

    python benchmarks/memory.py [NETWORK] [SIZE]

Sites of 540 x 540 x 5 (uint16 TIFF) with about 60 simulated cells; NETWORK by default small_cnn, crops of SIZE 64 px.
Each study is profiled by a process of its own, whose peak resident memory the system reports. The floor is the same
process with the network built and nothing profiled.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

STUDY = """\
images: {{index: images/index.csv, root: images, pixel_size_um: 0.6}}
channels: {{DNA: DNA, ER: ER, RNA: RNA, AGP: AGP, Mito: Mito}}
controls: "Metadata_Compound == 'DMSO'"
crops: {{size: {size}}}
profile: {{network: {network}}}
"""

CHILD = """\
import json, resource, sys, time
from deepprofile import locate_cells, measure_intensities, profile_cells, read_study
from deepprofile.extractor import load_extractor
study = read_study(sys.argv[1])
rows, start = 0, time.perf_counter()
if sys.argv[2] == "floor":
    extractor, _ = load_extractor(study)
    import numpy as np
    extractor(np.zeros((study.profile.batch, study.crops.size, study.crops.size, 5), np.float32))
elif sys.argv[2] == "before":
    measure_intensities(study), locate_cells(study)
else:
    rows = profile_cells(study).rows
print(json.dumps([rows, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def child(folder: Path, what: str) -> tuple[int, float, float]:
    answer = subprocess.run(
        [sys.executable, "-c", CHILD, folder, what], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    rows, seconds, peak = json.loads(answer.stdout.splitlines()[-1])
    return rows, seconds, peak


def main() -> None:
    from deepprofile import simulate

    network, size = (sys.argv[1:] + ["small_cnn", "64"][len(sys.argv) - 1 :])[:2]
    print("sites   cells  seconds  cells/s  peak MiB  floor MiB")
    peaks, paces = [], []
    for wells in (10, 50, 200):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            simulate(
                folder / "images", plates=1, sites=2, size=(540, 540), cells=60, moas=2,
                compounds_per_moa=(wells - 4) // 2, controls=4,
            )  # fmt: skip
            (folder / "study.yaml").write_text(STUDY.format(network=network, size=size))
            child(folder, "before")
            floor = child(folder, "floor")[2]
            rows, seconds, peak = child(folder, "profile")
            print(f"{2 * wells:5}  {rows:6,}  {seconds:7.1f}  {rows / seconds:7.0f}  {peak:8.0f}  {floor:9.0f}")
            peaks.append(peak)
            paces.append(seconds / rows)
    print(
        f"400 sites against 20: peak memory x {peaks[2] / peaks[0]:.3f}; against 100: time a cell x "
        f"{paces[2] / paces[1]:.3f}"  # of 20 sites the start of the network is a large part
    )


if __name__ == "__main__":
    main()
