import numpy as np
import pytest

from deepprofile.soft_labels import Targets

CODES = np.array([2, -1, 0, 1, -1, 2])


# --- golden
def test_smoothing_by_hand():
    targets = Targets(CODES, 4, 0.2)(np.array([0, 3]))
    np.testing.assert_allclose(targets, [[0.05, 0.05, 0.85, 0.05], [0.05, 0.85, 0.05, 0.05]], rtol=1e-6)
    assert targets.dtype == np.float32


def test_online_labels_by_hand():
    targets = Targets(CODES, 3, 0.0, online=0.25)
    targets.follow(np.array([2, 5]), np.array([[0.2, 0.8, 0.0], [0.0, 0.4, 0.6]], np.float32))
    np.testing.assert_allclose(targets(np.array([5, 2])), [[0, 0.1, 0.9], [0.8, 0.2, 0]], atol=1e-7)
    np.testing.assert_array_equal(targets(np.array([0])), [[0, 0, 1]])  # not yet seen
    targets.follow(np.array([2]), np.array([[0.0, 0.0, 1.0]], np.float32))
    np.testing.assert_allclose(targets(np.array([2])), [[0.6, 0.15, 0.25]], atol=1e-7)


# --- parity: Keras' smoothed loss is the loss of our targets
def test_smoothing_as_keras():
    import keras

    logits = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    codes = np.array([0, 2, 1, 2])
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)(np.eye(3)[codes], logits)
    ours = keras.losses.CategoricalCrossentropy(from_logits=True)(Targets(codes, 3, 0.1)(np.arange(4)), logits)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


# --- property
def test_targets_stay_distributions():
    rng = np.random.default_rng(1)
    targets = Targets(CODES, 3, 0.1, online=0.7)
    for _ in range(20):
        targets.follow(targets.rows, rng.dirichlet(np.ones(3), len(targets.rows)).astype("float32"))
    found = targets(targets.rows)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert (found >= 0).all()
