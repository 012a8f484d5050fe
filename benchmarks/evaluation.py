"""How much faster the scores are than cytominer-eval's and copairs', and how much memory 50,000 profiles take.

    python benchmarks/evaluation.py [--peer PYTHON] [--wells 8818] [--activity] [--memory]

Profiles are random with a weak class effect: 1,144 x 1280 float32, 235 classes, the first 24 rows controls. Both sides
get the same numbers in the same run and the best of three times counts (the peers, which take seconds, once). copairs
runs in this process; `--peer` names a Python of cytominer-eval's git version, which needs pandas 1.5, and its
process does the timing. `--wells` adds the average precision of as many profiles, 8 a treatment, which takes copairs
minutes and gigabytes. `--activity` adds the p of treatments against controls, and curves. `--memory` adds 50,000 x 512,
or so many. The share of the matrix rate is what one product of the same profiles with themselves, in float64 and by the
same BLAS, takes of the whole.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

sys.path = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]  # my own name

from deepprofile.study import Scores  # noqa: E402
from evaluation import (  # noqa: E402
    average_precision,
    cosine,
    enrichment_curve,
    evaluate,
    fit_dose_response,
    match_ranks,
    mean_average_precision,
    precision_at_r,
    score,
)

SETTINGS = {
    "enrichment": {"replicate_groups": ["Metadata_moa"], "enrichment_percentile": 0.995},
    "hitk": {"replicate_groups": ["Metadata_moa"], "groupby_columns": ["Metadata_id"], "hitk_percent_list": [2, 5]},
    "precision_recall": {
        "replicate_groups": ["Metadata_moa"],
        "groupby_columns": ["Metadata_id"],
        "precision_recall_k": [5, 10],
    },
    "grit": {
        "replicate_groups": {"profile_col": "Metadata_id", "replicate_group_col": "Metadata_moa"},
        "grit_control_perts": [f"p{k}" for k in range(24)],
    },
    "mp_value": {
        "replicate_groups": "Metadata_moa",
        "grit_control_perts": ["moa0", "moa1", "moa2", "moa3", "moa4"],
        "mp_value_params": {"nb_permutations": 1000},
    },
}
WANTED = {"enrichment": 50, "hitk": 50, "precision_recall": 50, "grit": 50, "mp_value": 10}

# what the other interpreter runs; it has cytominer_eval and no deepprofile
PEER = """
import json, sys, time
import pandas as pd
from cytominer_eval import evaluate
table = pd.read_csv(sys.argv[1])
settings = json.load(open(sys.argv[2]))
meta = [c for c in table if c.startswith("Metadata_")]
features = [c for c in table if c not in meta]
for name, given in settings.items():
    start = time.perf_counter()
    try:
        evaluate(table, features, meta, operation=name, **given)
        print(json.dumps([name, time.perf_counter() - start]), flush=True)
    except Exception as error:  # the release 0.1 lacks operations and arguments that its repository has
        print(json.dumps([name, None, f"{type(error).__name__}: {error}"]), flush=True)
"""


def profiles(n: int, features: int, label: np.ndarray) -> np.ndarray:
    """Noise and a quarter of it as class effect; float32."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, features), dtype=np.float32)
    return X + 0.25 * rng.standard_normal((int(label.max()) + 1, features), dtype=np.float32)[label]


def best(run: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest of some runs."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def product(X: np.ndarray) -> float:
    """Seconds of one product of all profiles with each other, in float64."""
    X, other = X.astype(np.float64), X.astype(np.float64)  # two arrays, or numpy takes the symmetric product
    return best(lambda: X @ other.T)


def operations(peer: Path | None) -> None:
    label = np.arange(1144) % 235
    X = profiles(1144, 1280, label)
    table = pd.DataFrame(X).add_prefix("f")
    meta = pd.DataFrame({"Metadata_id": [f"p{k}" for k in range(1144)], "Metadata_moa": [f"moa{k}" for k in label]})
    features = list(table)
    table = pd.concat([meta, table], axis=1)
    theirs = dict.fromkeys(SETTINGS, np.nan)
    if peer is not None:
        with tempfile.TemporaryDirectory() as folder:
            data, settings = Path(folder) / "table.csv", Path(folder) / "settings.json"
            table.to_csv(data, index=False)
            settings.write_text(json.dumps(SETTINGS))
            lines = subprocess.run(
                [peer, "-W", "ignore", "-c", PEER, data, settings], check=True, capture_output=True, text=True
            ).stdout.splitlines()
            for name, seconds, *why in (json.loads(line) for line in lines if line.startswith("[")):
                theirs[name] = np.nan if seconds is None else seconds
                if why:
                    print(f"cytominer-eval, {name}: {why[0]}")
    matrix = product(X)
    print("| 1,144 x 1280, 235 classes | evaluate, s | cytominer-eval, s | times | wanted | share of matrix rate |")
    print("|---|---|---|---|---|---|")
    for name, settings in SETTINGS.items():
        ours = best(lambda n=name, s=settings: evaluate(table, features, list(meta), operation=n, **s))  # type: ignore[misc]
        ratio = f"{theirs[name] / ours:.0f} x" if theirs[name] > 0 else ""
        peer_time = f"{theirs[name]:.2f}" if theirs[name] > 0 else "not run"
        share = "" if name == "mp_value" else f"{min(matrix / ours, 1):.0%}"
        print(f"| {name} | {ours:.3f} | {peer_time} | {ratio} | {WANTED[name]} x | {share} |", flush=True)


def precision(n: int, label: np.ndarray, wanted: int) -> None:
    import copairs.map

    X = profiles(n, 1280, label)
    meta, rules = pd.DataFrame({"label": label}), (["label"], [], [], ["label"])
    matrix = product(X)
    ours = best(lambda: average_precision(meta, X, *rules), 3 if n < 5000 else 1)
    found = average_precision(meta, X, *rules)
    p = best(lambda: mean_average_precision(found, ["label"], 1000, 0.05, 0), 1)
    start = time.perf_counter()
    other = copairs.map.average_precision(meta, X, *rules, progress_bar=False)
    theirs = time.perf_counter() - start
    # float32 similarities that copairs ties to 6e-8 may come in another order
    apart = float(np.abs(found["average_precision"] - other["average_precision"]).max())
    print(
        f"| average precision, {n:,} | {ours:.3f} | {theirs:.2f} | {theirs / ours:.0f} x | {wanted} x | "
        f"{min(matrix / ours, 1):.0%} | {apart:.1e} | {p:.2f} |",
        flush=True,
    )


def activity(treatments: int) -> None:
    """Seconds of the p of treatments of five wells against 3,264 controls, and of curves through eight doses."""
    label = np.concatenate([np.repeat(np.arange(treatments), 5), np.full(3264, treatments)])
    X = profiles(len(label), 512, label)
    rows = np.where(label == treatments, np.arange(len(label)), -1)
    by = ["label", "row"]
    found = average_precision(pd.DataFrame({"label": label, "row": rows}), X, by, [], [], by)
    some = found[found["label"] < treatments]
    p = best(lambda: mean_average_precision(some, ["label"], 10_000, 0.05, 0), 1)
    rng, doses = np.random.default_rng(0), np.repeat(np.geomspace(0.01, 100, 8), 3)
    curves = [1 / (1 + 10 ** rng.uniform(-1, 1) / doses) + 0.05 * rng.normal(size=24) for _ in range(100)]
    fits = best(lambda: [fit_dose_response(doses, y, bounds=None) for y in curves], 1) / len(curves)
    print(f"\n| p of {treatments:,} treatments against 3,264 controls, s | of one, ms | a curve, ms |\n|---|---|---|")
    print(f"| {p:.1f} | {1000 * p / treatments:.0f} | {1000 * fits:.1f} |", flush=True)


def memory(n: int) -> None:
    label = np.arange(n) % (n // 10)
    X = profiles(n, 512, label)
    table = pd.DataFrame({"label": label})
    frame = pd.DataFrame(X).add_prefix("f").assign(Metadata_label=label)
    scored = {"metrics": Scores().metrics, "permutations": 20, "baselines": ["permutation"]}
    for name, run in (
        ("enrichment over 5 percentiles", lambda: enrichment_curve(cosine(X), label)),
        ("precision at R", lambda: precision_at_r(cosine(X), label)),
        ("places of matches", lambda: match_ranks(cosine(X), label)),
        ("average precision", lambda: average_precision(table, X, ["label"], [], [], ["label"])),
        ("score, as `deepprofile score` asks for it", lambda: score(frame, labels="Metadata_label", **scored)),
    ):
        before = peak()
        seconds = best(run, 1)
        print(f"| {name} | {seconds:.1f} | {peak():.2f} | {peak() - before:.2f} |", flush=True)


def peak() -> float:
    """The highest resident memory of this process so far, GiB; getrusage would count that of its parent too."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a Python with pandas 1.5 and cytominer-eval (on PyPI: 0.1)")
    parser.add_argument("--wells", type=int, help="also the average precision of so many, such as 8818")
    parser.add_argument("--activity", type=int, nargs="?", const=1143, help="also p of so many, by default 1,143")
    parser.add_argument("--memory", type=int, nargs="?", const=50_000, help="also so many x 512, by default 50,000")
    arguments = parser.parse_args()
    operations(arguments.peer)
    print("\n| | ours, s | copairs, s | times | wanted | share of matrix rate | largest difference | p of labels, s |")
    print("|---|---|---|---|---|---|---|---|")
    precision(1144, np.arange(1144) % 235, 30)
    if arguments.wells:
        precision(arguments.wells, np.arange(arguments.wells) // 8, 50)
    if arguments.activity:
        activity(arguments.activity)
    if arguments.memory:
        head = f"{arguments.memory:,} x 512 | seconds | peak of the process so far, GiB | rise of that peak, GiB"
        print(f"\n| {head} |\n|---|---|---|---|")
        sys.stdout.flush()
        alone = multiprocessing.get_context("spawn").Process(target=memory, args=(arguments.memory,))  # without copairs
        alone.start()
        alone.join()


if __name__ == "__main__":
    sys.exit(main())
