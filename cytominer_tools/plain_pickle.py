"""Values out of a pickle from a stranger: text, numbers, lists, dicts and arrays of them; nothing else, nothing is run.

Loading a pickle calls whatever it names. Here it may name only what numpy makes its arrays and scalars of, and even
these are not called: stand-ins take their place, as a dtype with flags of the pickle's own choice would let numpy read
any memory.
"""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from cytominer_tools.errors import InputError

_PLAIN = (str, int, float, bool, type(None))
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|[SU][1-9]\d{0,4}")
_DEEPEST = 20  # lists in lists
_MEND = "it is not what DeepProfiler writes; get it from somebody you trust, or leave it out"


def read_plain(data: bytes, what: str) -> Any:
    """The value that the pickle `data` holds.

    Parameters
    ----------
    data : bytes
    what : str
        The file, for the message.

    Returns
    -------
    str, int, float, bool, None, or dicts, lists, tuples and numpy arrays of them
        A scalar of numpy is one of Python.

    Raises
    ------
    InputError
        It is damaged, or holds or calls anything else.
    """
    try:
        # the index of a memo is how much memory the unpickler takes
        if any(
            isinstance(arg, int) and "PUT" in op.name and arg > len(data) for op, arg, _ in pickletools.genops(data)
        ):
            raise pickle.UnpicklingError("a memo larger than the file")
        return _plain(_Unpickler(io.BytesIO(data)).load(), 0, {})
    except Exception as error:  # a pickle can fail with any
        reason = str(error) or type(error).__name__
        raise InputError(f"{what}: a pickle of more than plain values, or a damaged one ({reason}); {_MEND}") from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _NAMES.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return known


class _Name:
    """Stands for a name of numpy in a pickle. What has a __dict__ or free slots could be changed from there."""

    __slots__ = ("_act",)

    def __init__(self, act: Callable[..., Any]):
        self._act = act

    def __call__(self, *args: Any) -> Any:
        return self._act(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")


class _Dtype:
    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any):
        self.code, self.order = str(code), ""

    def __setstate__(self, state: Any) -> None:
        _, order, *inner = state[:5]
        if inner != [None, None, None] or order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("an array of more than numbers or text")
        self.order = order.replace("|", "")

    @property
    def holds_objects(self) -> bool:
        return self.code in ("O", "O4", "O8")

    def plain(self) -> np.dtype:
        if not _DTYPE.fullmatch(self.code):
            raise pickle.UnpicklingError(f"an array of {self.code}")
        return np.dtype(self.order + self.code)


class _Array:
    __slots__ = ("value",)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise pickle.UnpicklingError("an array without a type or a shape")
        n = math.prod(shape)
        if dtype.holds_objects:
            if not isinstance(data, list) or len(data) != n:
                raise pickle.UnpicklingError("an array of another length than it says")
            flat = np.empty(n, object)
            for i, value in enumerate(data):
                flat[i] = value
        else:
            flat = _buffer(dtype, data, n)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _buffer(dtype: Any, data: Any, n: int) -> np.ndarray:
    kind = dtype.plain()
    if not isinstance(data, bytes) or len(data) != n * kind.itemsize:
        raise pickle.UnpicklingError("an array of another length than it says")
    return np.frombuffer(data, kind).copy()


def _reconstruct(*_: Any) -> _Array:
    return _Array()  # its shape and values come with its state


def _scalar(dtype: Any, data: Any) -> Any:
    return _buffer(dtype, data, 1)[0].item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes of another encoding")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""


_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _Name(_reconstruct),
    ("numpy.core.multiarray", "scalar"): _Name(_scalar),
    ("numpy", "ndarray"): _Name(_reconstruct),
    ("numpy", "dtype"): _Name(_Dtype),
    # bytes in a pickle that Python 2 could read, and none of them
    ("_codecs", "encode"): _Name(_encode),
    ("__builtin__", "bytes"): _Name(_no_bytes),
}


def _plain(value: Any, depth: int, done: dict[int, tuple[Any, Any]]) -> Any:
    """`value` with arrays for their stand-ins; what stands in several places is looked at once."""
    if type(value) in _PLAIN:
        return value
    if depth > _DEEPEST:
        raise pickle.UnpicklingError("lists in lists without end")
    if id(value) in done:
        return done[id(value)][1]

    def inner(one: Any) -> Any:
        return _plain(one, depth + 1, done)

    found: Any
    if type(value) is dict:
        if not all(type(key) in _PLAIN for key in value):
            raise pickle.UnpicklingError("a dict whose keys are not text or numbers")
        found = {key: inner(one) for key, one in value.items()}
    elif type(value) in (list, tuple):
        found = type(value)(map(inner, value))
    elif type(value) is _Array:
        found = value.value
        if found.dtype == object:
            flat = found.reshape(-1)
            for i, one in enumerate(flat.tolist()):
                flat[i] = inner(one)
            found = flat.reshape(found.shape)
    else:
        raise pickle.UnpicklingError(f"it holds {type(value).__name__.lstrip('_').lower()}")
    done[id(value)] = value, found  # with the value, so that its id is not given to another
    return found
