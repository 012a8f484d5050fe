import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepprofile.schedules import best_epoch, is_over, learning_rate
from deepprofile.study import Schedule


def rates(schedule, base, epochs, losses=None):
    losses = [1.0] * epochs if losses is None else losses
    return [learning_rate(schedule, base, epochs, losses[:epoch]) for epoch in range(epochs)]


# --- golden: the numbers of the thesis, in units of the base rate
def test_cosine_with_a_linear_warmup():
    found = rates(Schedule(kind="cosine"), 1.0, 30)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [found[t] for t in (5, 15, 25, 29)] == pytest.approx([0.933, 0.5, 0.067, 0.003], abs=5e-4)


def test_the_peers_warmup():
    found = rates(Schedule(kind="cosine", warmup="harmonic"), 0.02, 30)
    assert found[:5] == pytest.approx([0.004, 0.005, 0.02 / 3, 0.01, 0.02])


def test_steps_count_from_their_epoch_on():
    # run 1103 of the thesis
    schedule = Schedule(kind="step", steps={10: 0.01, 20: 0.005, 25: 0.002})
    found = rates(schedule, 0.02, 30)
    assert [found[t] for t in (0, 9, 10, 19, 20, 24, 25, 29)] == [0.02, 0.02, 0.01, 0.01, 0.005, 0.005, 0.002, 0.002]


def test_plateau_waits_its_patience_after_each_step():
    schedule = Schedule(kind="plateau", patience=2, factor=0.1, minimum=0.0005)
    losses = [1.0, 0.9, 0.95, 0.9, 0.9, 0.9, 0.8, 0.9]
    #    next:  0    1    2     3    4 (two without)   6 (two more: below the minimum)
    found = rates(schedule, 0.01, 9, losses)
    assert found == pytest.approx([0.01, 0.01, 0.01, 0.01, 0.001, 0.001, 0.0005, 0.0005, 0.0005])


def test_a_plateau_never_raises_a_rate_that_starts_below_the_minimum():
    schedule = Schedule(kind="plateau", patience=1, minimum=1e-4)
    assert rates(schedule, 1e-5, 3) == pytest.approx([1e-5, 1e-5, 1e-5])


# --- parity: Keras' own callback on the same losses
def test_plateau_as_keras():
    keras = pytest.importorskip("keras")
    losses = [1.0, 0.7, 0.8, 0.75, 0.72, 0.6, 0.61, 0.62, 0.63, 0.64, 0.65, 0.66]
    callback = keras.callbacks.ReduceLROnPlateau(patience=3, factor=0.5, min_lr=0.001, min_delta=0, verbose=0)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    callback.set_model(model)
    callback.on_train_begin()
    theirs = []
    for epoch, loss in enumerate(losses):
        theirs.append(float(model.optimizer.learning_rate.numpy()))
        callback.on_epoch_end(epoch, {"val_loss": loss})
    schedule = Schedule(kind="plateau", patience=3, factor=0.5, minimum=0.001)
    assert rates(schedule, 0.01, len(losses), losses) == pytest.approx(theirs)


# --- property
@given(st.sampled_from(["linear", "harmonic"]), st.integers(0, 8), st.integers(1, 60), st.floats(1e-5, 1))
def test_a_cosine_stays_between_zero_and_its_base(warmup, warm, epochs, base):
    found = rates(Schedule(kind="cosine", warmup=warmup, warmup_epochs=warm), base, epochs)
    assert all(0 < rate <= base * (1 + 1e-12) for rate in found)
    assert found[:warm] == sorted(found[:warm])


# --- when to stop
def test_the_best_epoch_is_the_first_of_equals():
    assert best_epoch([0.1, 0.5, 0.3, 0.5]) == 1


def test_it_stops_when_patience_is_over():
    seen = [0.1, 0.5, 0.3, 0.5]
    assert [is_over(30, 2, seen[:n]) for n in range(5)] == [False, False, False, False, True]
    assert not is_over(30, None, seen)
    assert is_over(4, None, seen)


def test_steps_without_their_kind_are_refused():
    with pytest.raises(ValueError, match="kind step and the key steps"):
        Schedule(kind="cosine", steps={3: 0.1})
