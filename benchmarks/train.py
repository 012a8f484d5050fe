"""Training: the loader alone, the whole loop with a network that does nothing, and EfficientNet-B0 against a bare loop.

    python benchmarks/train.py [--seconds 20] [--compression lz4]      # KERAS_BACKEND=torch or jax too

The store holds 4,096 crops of 128 x 128 x 5, 8 bit, cut from simulated sites and written by `export`. Everything is
read from the page cache, in random order. The bare loop is Keras' train_on_batch on one batch of random numbers that is
in memory already. Where there is a GPU, the loops run in float32 and bfloat16.
"""

import argparse
import os
import resource
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SIZE, CHANNELS, CLASSES, CROPS = 128, 5, 100, 4096
STUDY = """\
images: {{index: images/index.csv, root: images, pixel_size_um: 0.3}}
channels: {{DNA: DNA, ER: ER, RNA: RNA, AGP: AGP, Mito: Mito}}
controls: "Metadata_Compound == 'DMSO'"
crops: {{size: 128}}
export: {{compression: {compression}}}
train: {{}}
"""


def make_store(folder: Path, compression: str):
    """Crops of a simulated study, exported."""
    from deepprofile import Crops, export_crops, locate_cells, measure_intensities, read_study, simulate

    simulate(
        folder / "images", plates=1, sites=4, size=(1080, 1080), cells=110, pixel_size_um=0.3, moas=2,
        compounds_per_moa=2, controls=6, seed=0,
    )  # fmt: skip
    (folder / "study.yaml").write_text(STUDY.format(compression=compression))
    study = read_study(folder)
    measure_intensities(study)
    locate_cells(study)
    export_crops(study)
    return Crops(folder / "crops")


def rate(batches, seconds: float, batch: int) -> float:
    """Cells a second of an iterator, after a first batch that is not counted."""
    next(batches)
    n, start = 0, time.perf_counter()
    for _ in batches:
        n += batch
        if (took := time.perf_counter() - start) > seconds:
            break
    batches.close()
    return n / took


def idle():
    """What looks at one pixel of each crop: the loop and nothing else."""
    import keras
    from keras import layers, ops

    from deepprofile.trainee import CROPS, Trainee

    class Idle(Trainee):
        def call(self, inputs, training=False):
            return self.network(ops.cast(inputs[CROPS][:, 0, 0], "float32"))

    pixel = keras.Input((CHANNELS,))
    return Idle(keras.Model(pixel, layers.Dense(CLASSES)(pixel)), augment=False, l2=0.0)


def loop(trainee, batches, settings, steps: int, batch: int) -> float:
    """Cells a second of `deepprofile.training`'s loop over `steps` batches; the compilation is not counted."""
    import numpy as np

    from deepprofile.devices import replicas
    from deepprofile.trainee import compile_trainee
    from deepprofile.training import fit_epoch

    compile_trainee(trainee, settings, CLASSES)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(batches.crops), (steps, batch))
    devices = replicas()
    fit_epoch(trainee, lambda i: batches.read(0, i, rows[i]), 2, devices=devices)
    start = time.perf_counter()
    fit_epoch(trainee, lambda i: batches.read(1, i, rows[i]), steps, devices=devices)
    return steps * batch / (time.perf_counter() - start)


def bare(network, settings, steps: int, batch: int) -> float:
    """Cells a second of train_on_batch on random numbers: nothing is read, cast or augmented."""
    import numpy as np
    from keras import losses, optimizers

    from deepprofile.networks import jit_compile

    network.compile(
        optimizers.SGD(settings.learning_rate, settings.momentum, nesterov=True),
        losses.CategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile(),
    )
    rng = np.random.default_rng(0)
    crops = rng.random((batch, SIZE, SIZE, CHANNELS), np.float32)
    targets = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, batch)]
    for _ in range(2):
        network.train_on_batch(crops, targets)
    start = time.perf_counter()
    for _ in range(steps):
        network.train_on_batch(crops, targets)
    return steps * batch / (time.perf_counter() - start)


def has_gpu() -> bool:
    import keras

    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.is_available()
    return bool(keras.distribution.list_devices("gpu"))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=float, default=20.0, help="for each rate of the loader")
    options.add_argument("--compression", default="lz4", choices=["lz4", "none"])
    options.add_argument("--steps", type=int, default=12, help="of EfficientNet-B0 a round")
    chosen = options.parse_args()
    import keras
    import numpy as np

    from cytominer_tools.threads import map_ahead, workers
    from deepprofile import build_network
    from deepprofile.batches import Batches
    from deepprofile.soft_labels import Targets
    from deepprofile.study import Augment, Train
    from deepprofile.trainee import Trainee

    print(f"keras {keras.__version__} on {keras.backend.backend()}, {workers()} cores, GPU: {has_gpu()}")
    batch = 64
    with tempfile.TemporaryDirectory() as name:
        crops = make_store(Path(name), chosen.compression)
        print(f"{crops!r}")
        codes = np.random.default_rng(0).integers(0, CLASSES, len(crops))
        crops[np.arange(len(crops))]  # into the page cache

        def batches(augment):
            return Batches(crops, Targets(codes, CLASSES, 0.1), np.ones(CLASSES, np.float32), augment, 0)

        def loader(augment):
            rows = np.random.default_rng(1).integers(0, len(crops), (10**6 // batch, batch))
            read = partial(batches(augment).read, 0)
            ahead = map_ahead(lambda i: read(i, rows[i]), range(len(rows)), 2 * workers())
            return rate(ahead, chosen.seconds / 2, batch)

        plain = Train(l2=0.0)
        alone = [loader(None), loader(Augment())]
        print(f"loader alone                    {alone[0]:8,.0f} cells/s; with augmentation drawn {alone[1]:8,.0f}")
        steps = int(max(alone[0] * chosen.seconds / batch, 4))
        whole = loop(idle(), batches(None), plain, steps, batch)
        again = loader(None)
        print(
            f"loop, network that does nothing {whole:8,.0f} cells/s: {whole / again:.0%} of the loader ({again:,.0f})"
        )

        def b0(precision):
            before = keras.config.dtype_policy()
            keras.config.set_dtype_policy(precision)
            network = build_network("efficientnet_b0", channels=CHANNELS, size=(SIZE, SIZE), classes=CLASSES)
            keras.config.set_dtype_policy(before)
            return network

        for precision in ("float32", "mixed_bfloat16") if has_gpu() else ("float32",):
            ratios, rates = [], []
            for _ in range(3):  # by turns, as the machine may be shared
                base = bare(b0(precision), plain, chosen.steps, batch)
                ours = loop(Trainee(b0(precision), augment=False, l2=0.0), batches(None), plain, chosen.steps, batch)
                full = loop(
                    Trainee(b0(precision), augment=True, l2=1e-4), batches(Augment()), Train(), chosen.steps, batch
                )
                ratios.append((ours / base, full / base))
                rates.append((base, ours, full))
            middle = np.median(rates, axis=0)
            share = np.median(ratios, axis=0)
            print(f"EfficientNet-B0, {precision}, batch {batch}: bare loop {middle[0]:,.1f} cells/s")
            print(f"  from the store                {middle[1]:8,.1f} cells/s: {share[0]:.1%} of the bare loop")
            print(f"  with augmentation and L2      {middle[2]:8,.1f} cells/s: {share[1]:.1%}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
