import keras
import numpy as np
import pytest
from keras import layers

from deepprofile.study import Train
from deepprofile.trainee import Trainee, compile_trainee, predict_logits

CROPS = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 2)).astype(np.uint8)
TARGETS = np.eye(3, dtype=np.float32)[np.array([0, 1, 2, 0, 1, 2, 0, 1])]


def network(regularizer=None):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((16, 16, 2))
    x = layers.Conv2D(4, 3, strides=2, activation="relu", kernel_regularizer=regularizer, name="conv")(inputs)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, layers.Dense(3, kernel_regularizer=regularizer, name="logits")(x))


def trainee(settings, net=None, augment=False):
    model = Trainee(net or network(), augment=augment, l2=settings.l2)
    compile_trainee(model, settings, 3)
    return model


def step(model, crops=CROPS):
    return model.train_on_batch({"crops": crops}, TARGETS, return_dict=True)


# --- parity: Keras' regularizer in every layer
def test_l2_is_that_of_keras():
    settings = Train(l2=0.01, label_smoothing=0)
    ours = trainee(settings)
    theirs = network(keras.regularizers.L2(0.01))
    theirs.compile(
        keras.optimizers.SGD(0.02, momentum=0.9, nesterov=True),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
    )
    for _ in range(3):
        loss = step(ours)["loss"]
        other = theirs.train_on_batch(CROPS.astype(np.float32) / 255, TARGETS, return_dict=True)["loss"]
        assert float(loss) == pytest.approx(float(other), rel=1e-5)
    for a, b in zip(ours.network.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# --- golden: with a learning rate of 1 and nothing else a kernel moves by 2 lambda w
def test_the_gradient_of_l2_by_hand():
    settings = Train(l2=0.25, learning_rate=1.0, momentum=0.0)
    model = trainee(settings)
    conv = model.network.get_layer("conv")
    flat = np.zeros_like(CROPS)  # black crops: no gradient through the convolution but that of L2
    before = conv.get_weights()[0]
    step(model, flat)
    np.testing.assert_allclose(conv.get_weights()[0], before - 2 * 0.25 * before, atol=1e-6)


# --- property: eight bits and the floats they stand for are the same crops
def test_bytes_are_floats():
    settings = Train()
    one, other = trainee(settings), trainee(settings)
    step(one)
    step(other, CROPS.astype(np.float32) / np.float32(255))
    for a, b in zip(one.network.get_weights(), other.network.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)  # a compiler may multiply by 1 / 255


def test_clipping_bounds_the_step():
    settings = Train(clip=1e-3, learning_rate=1.0, momentum=0.0, l2=0)
    model = trainee(settings)
    before = [w.copy() for w in model.network.get_weights()]
    step(model)
    moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(model.network.get_weights(), before, strict=True)))
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_nothing_is_augmented_outside_of_training():
    model = Trainee(network(), augment=True, l2=0)
    plain = np.asarray(keras.ops.convert_to_numpy(model.network(CROPS.astype(np.float32) / 255)))
    found = keras.ops.convert_to_numpy(model({"crops": CROPS, "flip": np.ones(8, np.int32)}, training=False))
    np.testing.assert_allclose(found, plain, rtol=1e-5)
    flipped = keras.ops.convert_to_numpy(model({"crops": CROPS, "flip": np.ones(8, np.int32)}, training=True))
    mirrored = model.network(CROPS[:, :, ::-1].astype(np.float32) / 255)
    np.testing.assert_allclose(flipped, keras.ops.convert_to_numpy(mirrored), rtol=1e-5)


def test_a_batch_is_filled_up_and_cut_back():
    net = network()
    net.compile(jit_compile=False if keras.backend.backend() == "tensorflow" else "auto")
    crops = CROPS.astype(np.float32) / 255
    few = predict_logits(net, crops[:3], 8)
    assert few.shape == (3, 3)
    np.testing.assert_allclose(few, predict_logits(net, crops, 8)[:3], rtol=1e-6)


@pytest.mark.parametrize("precision", ["mixed_float16"])
def test_half_precision_scales_the_loss(precision):
    model = trainee(Train(precision=precision))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
