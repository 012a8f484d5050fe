"""A network of one's own, registered for this process and profiled on simulated images.

python examples/own_network.py
"""

import tempfile
from pathlib import Path

import keras

from deepprofile import read_study, register, run_study, simulate
from deepprofile.profiles import score_lines

STUDY = """\
images: {index: images/index.csv, root: images, pixel_size_um: 0.6}
channels: {DNA: DNA, ER: ER, Mito: Mito}
columns: {compound: Metadata_Compound, moa: Metadata_MOA}
controls: "Metadata_Compound == 'DMSO'"
crops: {size: 48}
profile: {network: patches, options: {filters: 32}, batch: 128}
scores: {select: "Metadata_Compound != 'DMSO'"}
"""


def patches(*, channels: int, size: tuple[int, int], classes: int | None = None, filters: int = 64) -> keras.Model:
    """Means of rectified random patches: the least that is a network."""
    inputs = keras.Input((*size, channels))
    x = keras.layers.Conv2D(filters, 7, activation="relu", name="patches")(inputs)
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    if classes is not None:
        x = keras.layers.Dense(classes, name="logits")(x)
    return keras.Model(inputs, x)


def main() -> None:
    register("deepprofile.networks", "patches", patches)
    with tempfile.TemporaryDirectory() as folder:
        simulate(Path(folder, "images"), plates=2, sites=1, moas=4, compounds_per_moa=3)
        Path(folder, "study.yaml").write_text(STUDY)
        study = read_study(folder)
        for done in run_study(study):
            print(done)
        print("", *score_lines(study), sep="\n")


if __name__ == "__main__":
    main()
