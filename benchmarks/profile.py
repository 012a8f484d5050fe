"""How fast features are extracted, against a predict loop and the bare runtimes: python benchmarks/profile.py

EfficientNet-B0 with random weights on crops of 128 x 128 x 5, from sites of 1080 x 1080 x 5 (uncompressed uint16 TIFF,
about 230 cells each: one site, rolled and mirrored anew; a real JUMP site where DEEPPROFILE_DATA has it). Each figure
is of a process of its own, after the network was compiled; the figures take turns in rounds, and ratios are the medians
of ratios within a round, so that a busy machine is unfair to all of them alike.

"predict loop" reads a site with scikit-image, cuts and scales its cells with numpy, and calls Keras' predict on them,
site by site. "bare" is the same compiled network on random numbers in memory, where nothing is read. "Work" is in
cells a second of a core's time: on a machine that others use too, its ratios hold where those of the clock do not.

    --sites 20 100 400         whether the time is linear in sites, and the memory flat
    --peer-python              the interpreter (Python 3.11 with TensorFlow 2.15) of DeepProfiler, which is then run on
                               the same project at block6a_activation; the one installed there (pip install
                               deepprofiler, 0.5.1), or by --peer-source a checkout of it (0.3)
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# cProfile, which others import, asks for a module of the name of this file
sys.path[:] = [name for name in sys.path if Path(name or ".").resolve() != Path(__file__).resolve().parent]

IMAGES, CELLS, BATCH, SIZE = 20, 230, 64, 128
PEER_LAYER = "block6a_activation"
CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
SITE = "cpg0000_BR00116991/A01-1"
STUDY: dict[str, Any] = {
    "images": {"index": "index.csv", "root": "../images"},
    "channels": {name: name for name in CHANNELS},
    "columns": {"compound": "Metadata_Compound"},
    "locate": {"files": "../centres/{well}-{site}.csv"},
}


# --- the sites
def make(folder: Path, numbers: list[int]) -> str:
    """Images, centres, and a study of each number of sites; returns where the pixels are from."""
    import numpy as np
    import tifffile

    data = Path(os.environ.get("DEEPPROFILE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    names, what = sorted((data / SITE).glob("*.tif*")), "a real JUMP site"
    if not names:
        from deepprofile import simulate

        simulate(
            folder / "simulated", plates=1, sites=1, moas=1, compounds_per_moa=1, controls=1, size=(1080, 1080),
            cells=110,
        )  # fmt: skip
        names, what = sorted((folder / "simulated/images").rglob("*.tif"))[:5], "a simulated site"
    planes = [tifffile.imread(name) for name in names]
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "centres").mkdir()
    for number in range(IMAGES):
        shift, mirror = rng.integers(0, 1080, 2), rng.integers(2)
        for channel, plane in zip(CHANNELS, planes, strict=True):
            moved = np.roll(plane, shift, (0, 1))[:, :: 1 - 2 * mirror]
            tifffile.imwrite(folder / f"images/{number}-{channel}.tif", moved, metadata=None)
    rows = [f"Metadata_Plate,Metadata_Well,Metadata_Site,Metadata_Compound,{','.join(CHANNELS)}"]
    for number in range(max(numbers)):
        well, site = f"{chr(65 + number // 48)}{number // 2 % 24 + 1:02}", number % 2 + 1
        xy = rng.uniform(0, 1079, (CELLS + int(rng.integers(-30, 31)), 2)).tolist()
        (folder / f"centres/{well}-{site}.csv").write_text("\n".join(["x,y", *(f"{x:.2f},{y:.2f}" for x, y in xy)]))
        images = ",".join(f"{number % IMAGES}-{channel}.tif" for channel in CHANNELS)
        rows.append(f"P1,{well},{site},c{number // 2 % 4},{images}")
    for sites in numbers:
        study = folder / f"study{sites}"
        study.mkdir()
        (study / "index.csv").write_text("\n".join(rows[: sites + 1]) + "\n")
        from deepprofile import locate_cells, measure_intensities

        measure_intensities(configure(study))
        locate_cells(configure(study))
    return what


def configure(folder: Path, **profile: Any) -> Any:
    from deepprofile import read_study

    settings = {**STUDY, "profile": {"network": "efficientnet_b0", "batch": BATCH, **profile}}
    (folder / "study.yaml").write_text(json.dumps(settings))  # JSON is YAML
    return read_study(folder)


# --- what is measured, each by a process of its own
def loaded(study: Any) -> Any:
    """The network of `study`, compiled and warm."""
    import numpy as np

    from deepprofile.extractor import load_extractor

    extractor, cards = load_extractor(study)
    zeros = np.zeros((study.profile.batch, SIZE, SIZE, len(CHANNELS)), np.float32)
    for _ in range(3):
        extractor(zeros)
    return extractor, cards


class Clock:
    """Rates since it was made."""

    def __init__(self) -> None:
        self._start, self._work = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def rates(self, cells: int) -> list[float]:
        """Cells a second, and cells a second of a core's time."""
        return [cells / self.seconds(), cells / (time.process_time() - self._work)]


def bare(folder: Path, runtime: str, precision: str, batch: int, **more: Any) -> list[Any]:
    """Rates of the network alone, on random numbers; peak MiB; its agreement to float32."""
    import numpy as np

    study = configure(folder, runtime=runtime, precision=precision, batch=batch, **more)
    extractor, (card,) = loaded(study)
    crops = np.random.default_rng(0).random((batch, SIZE, SIZE, len(CHANNELS)), np.float32)
    clock, done = Clock(), 0
    while clock.seconds() < 6:
        extractor(crops)
        done += batch
    return [*clock.rates(done), peak(), card.get("agreement")]


def engine(folder: Path, runtime: str, precision: str, batch: int, **more: Any) -> list[Any]:
    """Rates of `deepprofile profile`, and its peak MiB."""
    from deepprofile import features

    study = configure(folder, runtime=runtime, precision=precision, batch=batch, **more)
    ready = loaded(study)
    features.load_extractor = lambda study: ready
    shutil.rmtree(study.features, ignore_errors=True)
    clock = Clock()
    rows = features.profile_cells(study).rows
    return [*clock.rates(rows), peak()]


def predict_loop(folder: Path) -> list[Any]:
    """Rates of the plain way, site by site, and its peak MiB."""
    import numpy as np
    import skimage.io

    from deepprofile import build_network, load_index
    from deepprofile.intensities import read_levels

    study = configure(folder)
    network = build_network("efficientnet_b0", channels=len(CHANNELS), size=(SIZE, SIZE))
    network.compile(jit_compile=False)
    for n in (7, 130, 128):  # Keras traces anew until it has met another number
        network.predict(np.zeros((n, SIZE, SIZE, len(CHANNELS)), np.float32), batch_size=128, verbose=0)
    low, high = read_levels(study, "P1")
    half, cells = SIZE // 2, 0
    clock = Clock()
    for row in load_index(study).to_dict("records"):
        names = [study.image_root / row[channel] for channel in CHANNELS]
        image = np.pad(np.stack([skimage.io.imread(name) for name in names], -1), ((half, half), (half, half), (0, 0)))
        crops = []
        path = folder.parent / f"centres/{row['Metadata_Well']}-{row['Metadata_Site']}.csv"
        for line in path.read_text().split()[1:]:
            x, y = (int(np.floor(float(value) + 0.5)) for value in line.split(","))
            crops.append(np.clip((image[y : y + SIZE, x : x + SIZE].astype(np.float32) - low) / (high - low), 0, 1))
        found = network.predict(np.array(crops), batch_size=128, verbose=0)
        np.savez_compressed(folder / "site.npz", features=found)
        cells += len(found)
    return [*clock.rates(cells), peak()]


def stored(folder: Path) -> int:
    from deepprofile import export_crops

    return export_crops(configure(folder)).rows


def device(folder: Path) -> tuple[str, list[str], list[str]]:
    """The machine in words, the GPUs, and the keys of the section `profile`."""
    import keras

    from cytominer_tools.threads import workers
    from deepprofile.devices import device_names
    from deepprofile.study import ProfileModel

    what = f"{workers()} cores, keras {keras.__version__} on {keras.backend.backend()}"
    return what, device_names(), list(ProfileModel.model_fields)


def refused(folder: Path, runtime: str, precision: str) -> str:
    """Why a runtime cannot be measured here, "" where it can."""
    from cytominer_tools.errors import InputError
    from deepprofile.runtimes import require_runtime

    try:
        require_runtime(runtime, precision)
    except InputError as error:
        return str(error)
    return ""


def peer_version(interpreter: str) -> str:
    words = [interpreter, "-c", "from importlib.metadata import version; print(version('deepprofiler'))"]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.strip() or "of a checkout"


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


MODES = {f.__name__: f for f in (make, bare, engine, predict_loop, stored, device, refused)}
RUNTIMES = [("keras", "float32"), ("onnx", "float32"), ("openvino", "float32"), ("openvino", "bfloat16")]


def child(mode: str, folder: Path, *more: Any, **named: Any) -> Any:
    """What `mode` answers in a process of its own."""
    command = [sys.executable, __file__, "--child", mode, str(folder), json.dumps(more), json.dumps(named)]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


# --- the tables
def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def cpu(folder: Path, chosen: argparse.Namespace) -> None:
    usable = []
    for runtime, precision in RUNTIMES:
        if why := child("refused", folder, runtime, precision):
            print(f"not run: {runtime} {precision}: {why}")
        else:
            usable.append((runtime, precision))
    study = folder / f"study{chosen.sites[0]}"
    loops: list[list[float]] = []
    found: dict[tuple[str, str], list[tuple[list[Any], list[Any]]]] = {what: [] for what in usable}
    for _ in range(chosen.rounds):
        loops.append(child("predict_loop", study))
        for what in usable:
            found[what].append((child("bare", study, *what, chosen.batch), child("engine", study, *what, chosen.batch)))
    print(
        f"\n| {chosen.sites[0]} sites from TIFF | cells/s | x loop | bare cells/s | share | work "
        "| x loop | bare work | share | peak MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    loop = [middle([loop[i] for loop in loops]) for i in range(3)]
    print(f"| predict loop | {loop[0]:.0f} | 1.0 | | | {loop[1]:.0f} | 1.0 | | | {loop[2]:.0f} |")
    for (runtime, precision), rounds in found.items():
        cells = [f"{runtime} {precision}"]
        for i in (0, 1):
            alone, ours = (middle([pair[which][i] for pair in rounds]) for which in (0, 1))
            times = middle([pair[1][i] / base[i] for pair, base in zip(rounds, loops, strict=True)])
            share = middle([pair[1][i] / pair[0][i] for pair in rounds])
            cells += [f"{ours:.0f}", f"{times:.2f}", f"{alone:.0f}", f"{share:.0%}"]
        print(f"| {' | '.join(cells)} | {rounds[-1][1][2]:.0f} |")
    for (runtime, precision), rounds in found.items():
        if agreement := rounds[-1][0][3]:
            print(
                f"\n{runtime} {precision}: cosine to float32 {agreement['mean']:.5f} in the mean of "
                f"{agreement['cells']} cells, {agreement['least']:.5f} at least"
            )
    if len(chosen.sites) > 1:
        runtime, precision = usable[-1]
        print(f"\n| sites, {runtime} {precision} | cells/s | work | peak MiB |\n|---|---|---|---|")
        for sites in chosen.sites:
            rate, work, most = child("engine", folder / f"study{sites}", runtime, precision, chosen.batch)
            print(f"| {sites} | {rate:.0f} | {work:.0f} | {most:.0f} |", flush=True)


def gpu(folder: Path, chosen: argparse.Namespace, keys: list[str]) -> None:
    """Keras on the backend that is chosen (KERAS_BACKEND), whole batches on the first GPU."""
    study = folder / f"study{chosen.sites[-1]}"
    kinds: list[tuple[str, dict[str, str]]] = [("TIFF", {})]
    if "source" in keys:
        child("stored", study)
        kinds.append(("crop store", {"source": "crops"}))
    if "mode" in keys:
        kinds.append(("TIFF, repeat-channel, 5 passes a cell", {"mode": "repeat_channel"}))
    print(f"\n| on the GPU, batches of {chosen.gpu_batch} | cells/s | sites/s | bare cells/s | share | least cosine |")
    print("|---|---|---|---|---|---|")
    for precision in ("float32", "bfloat16", "float16"):
        for what, key in kinds:
            network = {name: value for name, value in key.items() if name != "source"}
            alone, _, _, agreement = child("bare", study, "keras", precision, chosen.gpu_batch, **network)
            rate, *_ = child("engine", study, "keras", precision, chosen.gpu_batch, **key)
            least = f"{agreement['least']:.5f}" if agreement else ""
            found = f"{rate:.0f} | {rate / CELLS:.1f} | {alone:.0f} | {rate / alone:.0%} | {least}"
            print(f"| {what}, {precision} | {found} |", flush=True)


def peer(folder: Path, chosen: argparse.Namespace) -> None:
    """DeepProfiler and `deepprofile profile`, each as a command on the same images, centres and layer."""
    sites = chosen.sites[0]
    root, study = folder / "peer", folder / f"study{sites}"
    lines = (study / "index.csv").read_text().splitlines()
    for name in ("config", "metadata", "locations/P1"):
        (root / "inputs" / name).mkdir(parents=True)
    (root / "inputs/images").symlink_to(folder / "images")
    (root / "outputs/results/checkpoint").mkdir(parents=True)
    (root / "inputs/metadata/index.csv").write_text(
        "\n".join([lines[0].replace("Metadata_Compound", "Treatment"), *lines[1:]])
    )
    for line in lines[1:]:
        _, well, site, *_ = line.split(",")
        text = (folder / f"centres/{well}-{site}.csv").read_text()
        header = "Nuclei_Location_Center_X,Nuclei_Location_Center_Y"
        (root / f"inputs/locations/P1/{well}-{site}-Nuclei.csv").write_text(text.replace("x,y", header, 1))
    config = {
        "dataset": {
            "metadata": {"label_field": "Treatment", "control_value": "c0"},
            "images": {"channels": CHANNELS, "file_format": "tif", "bits": 16, "width": 1080, "height": 1080},
            "locations": {"mode": "single_cells", "box_size": SIZE, "area_coverage": 1.0, "mask_objects": False},
        },
        "prepare": {"compression": {"implement": False, "scaling_factor": 1.0}},
        "train": {
            "partition": {"targets": ["Treatment"], "split_field": "Treatment", "training": [], "validation": []},
            "model": {
                "name": "efficientnet", "crop_generator": "crop_generator", "metrics": ["accuracy"], "epochs": 1,
                "initialization": "random",
                "params": {"learning_rate": 0.1, "batch_size": 64, "conv_blocks": 0, "label_smoothing": 0.0},
            },
            "sampling": {"factor": 1, "cache_size": 100, "workers": 1},
            "validation": {"batch_size": 128, "frequency": 1, "top_k": 5},
        },
        "profile": {"feature_layer": PEER_LAYER, "checkpoint": "None", "batch_size": 128},
    }  # fmt: skip
    (root / "inputs/config/config.json").write_text(json.dumps(config))
    command = [chosen.peer_python, "-m", "deepprofiler", f"--root={root}", "--config=config.json", "profile"]
    ours = [sys.executable, "-c", "from deepprofile.cli import main; main()", "profile", str(study)]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    version = peer_version(chosen.peer_python)
    usable = [what for what in RUNTIMES if not child("refused", folder, *what)]
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = {what: [] for what in usable}

    def timed(words: list[str], place: Path) -> float:
        start = time.perf_counter()
        done = subprocess.run(words, cwd=place, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(f"{' '.join(words)}\n{done.stderr[-3000:]}")
        return time.perf_counter() - start

    for _ in range(chosen.rounds):
        shutil.rmtree(root / "outputs/results/features", ignore_errors=True)
        theirs = timed(command, chosen.peer_source or folder)
        if len(list((root / "outputs/results/features").rglob("*.npz"))) != sites:
            sys.exit("DeepProfiler did not write a file a site")
        for runtime, precision in usable:
            configure(study, layer=PEER_LAYER, runtime=runtime, precision=precision)
            shutil.rmtree(study / "features", ignore_errors=True)
            seconds[runtime, precision].append((theirs, timed(ours, Path.cwd())))
    print(f"\n| as a process, {sites} sites at {PEER_LAYER} | s | DeepProfiler {version}, s | x |\n|---|---|---|---|")
    for (runtime, precision), pairs in seconds.items():
        theirs, mine = (middle([pair[i] for pair in pairs]) for i in (0, 1))
        print(f"| {runtime} {precision} | {mine:.1f} | {theirs:.1f} | {middle([a / b for a, b in pairs]):.2f} |")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sites", type=int, nargs="+", default=[20])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--batch", type=int, default=BATCH)
    options.add_argument("--gpu-batch", type=int, default=512)
    options.add_argument("--peer-python", help="an interpreter with TensorFlow 2.15 and DeepProfiler")
    options.add_argument("--peer-source", type=Path, help="a checkout of DeepProfiler, in place of the one installed")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        machine, gpus, keys = child("device", folder)
        pixels = child("make", folder, chosen.sites)
        print(f"{machine}; sites of {pixels}, about {CELLS} cells each; load {os.getloadavg()[0]:.1f}", flush=True)
        cpu(folder, chosen) if not gpus else print("not run: the tables of the CPU, as there is a GPU (hide it)")
        gpu(folder, chosen, keys) if gpus else print("\nnot run: no GPU")
        if chosen.peer_python:
            peer(folder, chosen)
        else:
            print("\nnot run: DeepProfiler as a process, without --peer-python")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        mode, name, more, named = sys.argv[2:]
        print(json.dumps(MODES[mode](Path(name), *json.loads(more), **json.loads(named))))
    else:
        main()
