import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cytominer_tools.errors import InputError
from deepprofile.percentiles import Counts

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.just(2))
SHARES = st.sampled_from([0, 0.1, 1, 5, 33.3, 50, 99, 99.9, 100])


def counted(images):
    counts = Counts(images[0].shape[-1])
    for image in images:
        counts.add(image)
    return counts


def share_at_or_below(images, values):
    return np.stack([(images[..., c] <= values[c]).mean() for c in range(images.shape[-1])])


# --- parity
@pytest.mark.parametrize("kind", ["uint8", "uint16"])
@pytest.mark.parametrize("q", [(0.1, 99.9), (0, 100), (1, 50, 99), (33.3,)])
def test_percentiles_of_counts_are_exact(kind, q):
    rng = np.random.default_rng(1)
    images = rng.gamma(2, np.iinfo(kind).max / 20, (3, 61, 47, 2)).clip(0, np.iinfo(kind).max).astype(kind)
    expected = np.percentile(images, q, axis=(0, 1, 2), method="inverted_cdf")
    found = counted(images).percentiles(q)
    np.testing.assert_array_equal(found, expected)
    assert (found.shape, found.dtype) == ((len(q), 2), "float32")


def test_a_percentile_does_not_depend_on_how_it_rounds():
    image = np.arange(1000, dtype="uint16").reshape(20, 50, 1)
    found = [int(counted([image]).percentiles((tenth / 10,))[0, 0]) for tenth in range(1, 1001)]
    assert found == list(range(1000))  # n tenths of a percent of 1000 values are n values


# --- golden
def test_ten_pixels():
    image = np.array([9, 1, 1, 1, 1, 5, 5, 5, 200, 255], "uint8").reshape(2, 5, 1)
    assert counted([image]).percentiles((0, 40, 41, 70, 70.1, 90, 100)).ravel().tolist() == [1, 1, 5, 5, 9, 200, 255]


# --- property
@settings(max_examples=40, deadline=None)
@given(SHAPES.flatmap(lambda s: arrays("uint16", s)), SHARES)
def test_it_is_the_smallest_value_with_that_share_at_or_below(images, q):
    value = counted(images).percentiles((q,))[0]
    assert (share_at_or_below(images, value) * 100 >= q - 1e-9).all()
    for c in range(2):
        smaller = images[..., c][images[..., c] < value[c]]
        if smaller.size:
            assert smaller.size / images[..., c].size * 100 < q


@settings(max_examples=60, deadline=None)
@given(
    SHAPES.flatmap(
        lambda s: arrays("float32", s, elements=st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False))
    ),
    SHARES,
)
def test_float_percentiles_are_right_to_one_in_2048(images, q):
    found = counted(images).percentiles((q,))
    expected = np.percentile(images, q, axis=(0, 1, 2), method="inverted_cdf")
    ranks = np.sort(images.reshape(-1, 2), axis=0)
    near = np.abs(ranks[None] - found[:, None]) <= np.abs(ranks[None]) / 2048 + 1e-37
    assert near.any(axis=1).all()
    np.testing.assert_allclose(found[0], expected, rtol=1 / 2048, atol=1e-37)


def test_negative_numbers_and_zero():
    image = np.array([-1000, -1, -0.5, -0.0, 0, 0, 1e-3, 2, 3e9, 4], "float32").reshape(2, 5, 1)
    found = counted([image]).percentiles(tuple(range(10, 101, 10))).ravel()
    np.testing.assert_allclose(found, np.sort(image.ravel()), rtol=1 / 2048, atol=1e-38)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_the_order_of_the_images_leaves_no_trace(kind):
    images = (np.random.default_rng(0).random((5, 9, 8, 3)) * 250).astype(kind)
    q = (0.1, 50, 99.9)
    first = counted(images).percentiles(q)
    np.testing.assert_array_equal(counted(images[::-1]).percentiles(q), first)
    np.testing.assert_array_equal(counted([np.concatenate(list(images))]).percentiles(q), first)


def test_a_plate_of_two_types_and_an_empty_one():
    counts = counted([np.zeros((2, 2, 1), "uint8")])
    with pytest.raises(InputError, match="uint16 pixels after uint8 ones; the images of a plate must be of one type"):
        counts.add(np.zeros((2, 2, 1), "uint16"))
    np.testing.assert_array_equal(Counts(2).percentiles((1, 99)), np.zeros((2, 2)))
