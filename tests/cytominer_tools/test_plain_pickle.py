"""Plain values come out of a pickle; anything else is refused, and nothing is run."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from cytominer_tools.errors import InputError
from cytominer_tools.plain_pickle import read_plain


def read(value, protocol=4):
    return read_plain(pickle.dumps(value, protocol), "x.npz")


def refused(data, words):
    with pytest.raises(InputError, match=words) as told:
        read_plain(data, "x.npz: metadata")
    assert str(told.value).startswith("x.npz: metadata: a pickle of more than plain values, or a damaged one (")


# --- what is plain
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back(protocol):
    value = {"a": "text", "b": 5, "c": 0.5, "d": None, "e": True, "f": [1, ("x", {"y": -3})], 7: 2**80, "g": ""}
    assert read(value, protocol) == value


@pytest.mark.parametrize("protocol", range(2, 5))
def test_scalars_and_arrays_of_numpy(protocol):
    value = {
        "a": np.float64(1.5),
        "b": np.int32(-4),
        "c": np.bool_(True),
        "d": np.str_("SQ00014812"),
        "e": np.float16(2),
    }
    found = read(value, protocol)
    assert found == {"a": 1.5, "b": -4, "c": True, "d": "SQ00014812", "e": 2.0}
    assert {type(one) for one in found.values()} == {float, int, bool, str}
    for array in (
        np.arange(6, dtype=">i2").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["a", "bcd"]),
        np.array(3.5, np.float32),
        np.empty((0, 2)),
    ):
        again = read(array, protocol)
        np.testing.assert_array_equal(again, array)
        assert again.dtype == array.dtype


def test_arrays_of_objects():
    inner = np.array([{"a": np.float32(2)}, ["b", None], "c", np.arange(2)], object).reshape(2, 2)
    found = read(inner)
    assert found.shape == (2, 2)
    assert found[0, 0] == {"a": 2.0}
    assert found[0, 1] == ["b", None]
    np.testing.assert_array_equal(found[1, 1], [0, 1])
    assert read(np.array({"x": 1}, object)).item() == {"x": 1}


def test_what_numpy_1_wrote():
    data = pickle.dumps(np.array({"x": np.int64(3)}, object), 3).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )
    assert b"numpy._core" not in data
    assert read_plain(data, "x").item() == {"x": 3}


def test_a_list_that_stands_in_many_places_is_looked_at_once():
    value = ["x"]
    for _ in range(18):
        value = [value] * 50  # 50 ** 18 elements, were they all looked at
    found = read(value)
    for _ in range(18):
        assert len(found) == 50
        found = found[-1]
    assert found == ["x"]


# --- what is not
class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def test_nothing_is_run(tmp_path):
    mark = tmp_path / "ran"
    for function, arguments in (
        (os.system, (f"touch {mark}",)),
        (eval, (f"open({str(mark)!r}, 'w')",)),
        (Path.touch, (mark,)),
        (getattr, ("", "join")),
        (np.load, (str(mark),)),
        (np.fromfile, (str(mark),)),
    ):
        for value in (
            Call(function, *arguments),
            {"a": [Call(function, *arguments)]},
            np.array(Call(function, *arguments)),
        ):
            for protocol in (0, 2, 4):
                refused(pickle.dumps(value, protocol), "it calls ")
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", [b"numpy\nload", b"numpy.core.multiarray\nfrombuffer", b"builtins\nobject", b"os\nsystem", b"numpy\nmemmap"]
)
def test_other_names_are_refused(name):
    refused(b"c" + name + b"\n.", "it calls ")
    refused(b"(i" + name + b"\n.", "it calls ")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": {1, 2}}, "it calls|it holds set"),
        (b"bytes", "it holds bytes"),
        (1j, "it calls builtins.complex"),
        ({("a",): 1}, "a dict whose keys are not text or numbers"),
        (Path("x"), "it calls pathlib"),
        (np.datetime64("2024-01-01"), "an array of M8"),
        (np.zeros(2, [("a", "f4")]), "an array of more than numbers or text"),
        (np.array([1 + 2j]), "an array of c16"),
    ],
)
def test_values_that_are_not_plain(value, words):
    refused(pickle.dumps(value, 4), words)


def test_a_list_in_itself():
    value = []
    value.append(value)
    refused(pickle.dumps(value), "lists in lists without end")


def test_a_function_is_no_value():
    refused(b"cnumpy\nndarray\n.", "it holds name")
    refused(b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8K\x00K\x01\x87R.", "it holds dtype")


def test_functions_cannot_be_changed():
    """A state for the stand-in itself, by which its action would become another."""
    state = b"}X\x04\x00\x00\x00_act" + b"K\x01s"
    refused(b"\x80\x02cnumpy\nndarray\n" + state + b"b.", "it changes a function")
    refused(b"\x80\x02cnumpy\nndarray\nN" + state + b"\x86b.", "it changes a function")
    assert read(np.arange(3)).tolist() == [0, 1, 2]


def forged(shape, code, data, flags=63):
    """An array of numpy with a state of one's own."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 2)

    class Forged:
        def __reduce__(self):
            dtype = np.dtype(code)
            kind = _Reduced(np.dtype, (code, False, True), (3, dtype.byteorder, None, None, None, -1, -1, flags))
            return np.ndarray.__reduce__(np.empty(0))[0], (np.ndarray, (0,), b"b"), (1, shape, kind, False, data)

    pickler.dump(Forged())
    return stream.getvalue()


class _Reduced:
    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


def test_a_forged_array_reads_no_memory():
    """numpy would take these bytes for addresses of objects: the flag that says otherwise is the pickle's."""
    refused(forged((1,), "O", b"\x41" * 8, flags=0), "an array of another length than it says")
    refused(forged((10**12,), "O", [1]), "an array of another length than it says")
    refused(forged((10**12,), "f8", b"\x00" * 8), "an array of another length than it says")
    refused(forged((-1,), "f8", b"\x00" * 8), "an array without a type or a shape")
    assert read_plain(forged((1,), "f8", b"\x00" * 8), "x").tolist() == [0.0]


def test_damage_and_bombs():
    data = pickle.dumps({"a": "b" * 50}, 4)
    for cut in (0, 1, 5, len(data) - 1):
        refused(data[:cut], "it is not what DeepProfiler writes")
    refused(b"\x80\x02}r\xff\xff\xff\x7f.", "a memo larger than the file")
    refused(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "it is not")
    refused(b"\x80\x02Pabc\n.", "it is not")  # a persistent id
    refused(b"\x80\x02\x82\x01.", "it is not")  # the registry of extensions
