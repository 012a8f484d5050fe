import json
import zipfile

import numpy as np
import pandas as pd
import pytest

from cytominer_tools.batches import TVN, Harmony, PerBatch
from cytominer_tools.errors import InputError
from cytominer_tools.fitted import load_transformer, save_transformer
from cytominer_tools.positions import CellCountRegression, MedianPolish, WellPosition
from cytominer_tools.transformers import (
    PCA,
    InverseNormal,
    InverseNormalTransform,
    Robustize,
    RobustMAD,
    Spherize,
    Standardize,
)

pytestmark = pytest.mark.filterwarnings("ignore:spherizing learns from")
BATCH, WELLS = np.array(["a", "b"]).repeat(20), np.array([f"{r}{c:02d}" for r in "ABCD" for c in range(1, 6)] * 2)
SCOPES = {PerBatch: {"batch": BATCH}, TVN: {"batch": BATCH}, WellPosition: {"well": WELLS}}
SCOPES[MedianPolish] = {"batch": BATCH, "well": WELLS}


def table():
    return pd.DataFrame(np.random.default_rng(0).normal(size=(40, 5)), columns=list("abcde"))


@pytest.mark.parametrize(
    "transformer",
    [
        *(Standardize(), Robustize(), RobustMAD(zero_mad="zero"), InverseNormal(), PCA(3), TVN(4)),
        *(InverseNormalTransform(random_state=0), Spherize(ridge=0.1), Spherize(method="PCA", center=False)),
        *(PerBatch(RobustMAD()), WellPosition(), CellCountRegression(2), MedianPolish()),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_is_loaded_does_the_same(transformer, tmp_path):
    x, scope = table(), SCOPES.get(type(transformer), {})
    fitted = transformer.fit(x, **scope)
    again = load_transformer(save_transformer(fitted, tmp_path / "a.npz"))
    assert repr(again) == repr(fitted)
    np.testing.assert_array_equal(again.transform(x, **scope), fitted.transform(x, **scope))
    with pytest.raises(ValueError, match="feature names"):
        again.transform(x[list("edcba")], **scope)
    assert save_transformer(again, tmp_path / "b.npz").read_bytes() == (tmp_path / "a.npz").read_bytes()


def test_the_file_is_arrays_and_json(tmp_path):
    path = save_transformer(Standardize().fit(table()), tmp_path / "a.npz")
    with np.load(path, allow_pickle=False) as arrays:
        assert any(np.array_equal(arrays[name], table().mean()) for name in arrays.files if name.isdigit())
    with zipfile.ZipFile(path) as file:
        assert json.loads(file.read("state.json"))["transformer"]["class"] == "Standardize"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda state: state | {"format_version": 9}, "format version 9, this reads 1"),
        (lambda state: state | {"transformer": {"class": "Popen", "state": {}}}, "'Popen' is not a transformer"),
        (lambda state: state | {"transformer": {"class": "PCA", "state": {"__class__": {"value": 1}}}}, "not a fitted"),
        (lambda state: [], "not a fitted transformer; write it with save_transformer"),
    ],
)
def test_a_strange_file(tmp_path, edit, words):
    path = save_transformer(Standardize().fit(table()), tmp_path / "a.npz")
    with zipfile.ZipFile(path) as file:
        state = edit(json.loads(file.read("state.json")))
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as file:
        file.writestr("state.json", json.dumps(state))
    with pytest.raises(InputError, match=words):
        load_transformer(tmp_path / "b.npz")


def test_what_cannot_be_saved_or_read(tmp_path):
    with pytest.raises(InputError, match="Harmony cannot be saved; there are Standardize"):
        save_transformer(Harmony(), tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"expected the suffix \.npz"):
        save_transformer(Standardize(), tmp_path / "a.pkl")
    with pytest.raises(InputError, match=r"a\.npz: no such file"):
        load_transformer(tmp_path / "a.npz")
    (tmp_path / "c.npz").write_text("a")
    with pytest.raises(InputError, match="not a fitted transformer"):
        load_transformer(tmp_path / "c.npz")
