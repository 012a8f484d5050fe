"""What computes features: Keras on its backend, or ONNX Runtime and OpenVINO on the CPU from an exported network."""

import io
import json
import logging
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path
from cytominer_tools.manifest import changes
from cytominer_tools.threads import workers
from deepprofile.devices import compiled, device_names, frozen_graph
from deepprofile.work import log

if TYPE_CHECKING:
    import keras

Run = Callable[[np.ndarray], list[np.ndarray]]  # float32 (batch, H, W, C) to float32 (batch, width) of each output

FORMAT_VERSION = 1
EXTRAS = {"onnx": ("onnxruntime", "tf2onnx"), "openvino": ("openvino",)}  # the packages of each
# pixels that one core computes at a time: what they need stays in its caches. EfficientNet-B0: 8 cells of 128 px are
# 15 % faster than 64; one cell of five times 224 px, repeat-channel, is a quarter faster than 8
PART = 8 * 128 * 128
_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}  # of OpenVINO
_CAPABILITIES = {"bfloat16": "BF16", "float16": "FP16"}
_ABOUT = "about.json"


def require_runtime(runtime: str, precision: str) -> None:
    """Refuse a runtime that is not installed, and a precision that it or this machine does not compute in.

    Raises
    ------
    InputError
        It says what to install or to set.
    """
    import keras

    backend = keras.backend.backend()
    if runtime == "keras":
        if precision == "float16" and not device_names():
            raise InputError(
                f"profile.precision: float16 with the runtime keras needs a GPU, and {backend} sees none; set bfloat16 "
                "or float32"
            )
        return
    if missing := [name for name in EXTRAS[runtime] if find_spec(name) is None]:
        raise InputError(
            f"profile.runtime: {runtime} needs {' and '.join(missing)}: python -m pip install 'deepprofile[{runtime}]'"
        )
    if backend != "tensorflow":
        raise InputError(
            f"profile.runtime: {runtime} takes networks from TensorFlow, and KERAS_BACKEND is {backend}; leave "
            "KERAS_BACKEND out, or set profile.runtime to keras"
        )
    if runtime == "onnx" and precision != "float32":
        raise InputError(
            f"profile.precision: on a CPU ONNX Runtime computes in float32 whatever it is given, got {precision}; set "
            "float32, or profile.runtime to openvino"
        )
    if runtime == "openvino" and precision != "float32":
        import openvino

        if _CAPABILITIES[precision] not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise InputError(
                f"profile.precision: this CPU has no instructions for {precision}; set float32, or run where it has"
            )


def runtime_versions(runtime: str) -> dict[str, str]:
    """Versions of what computes in `runtime`, by package, for a model card."""
    import keras

    backend = keras.backend.backend()
    return {name: version(name) for name in EXTRAS.get(runtime, (backend,))}


def keras_runtime(network: "keras.Model", shape: tuple[int, int, int, int]) -> Run:
    """`network`, one input and a list of outputs, compiled by its backend for batches of `shape` (batch, H, W, C)."""
    run = compiled(network, shape)
    return lambda crops: [np.asarray(output, np.float32) for output in run(np.ascontiguousarray(crops, np.float32))]


def exported_runtime(
    network: "keras.Model",
    batch: int,
    runtime: str,
    precision: str,
    *,
    pixels: int,
    folder: Path,
    name: str,
    about: dict[str, Any],
) -> Run:
    """`network` on the CPU by ONNX Runtime or OpenVINO, exported unless `folder` has it already.

    Parameters
    ----------
    network : keras.Model
        float32 (n, H, W, C) to a list of float32 (n, width).
    batch : int
        Cells of a batch.
    runtime : "onnx" or "openvino"
    precision : "float32", or with openvino "bfloat16" or "float16"
        The exported network is float32 whatever this says.
    pixels : int
        Of a cell, as the layers after any resizing see them.
    folder : Path
        Of the exported networks: a file each, NAME-RUNTIME-KEY.zip.
    name : str
        Of the model. When it is exported its files of other keys are deleted: they have other weights.
    about : dict
        What makes the network, as JSON values, its weights by a hash; the key is a digest of this, of its layers and
        of the versions of the packages.

    Raises
    ------
    InputError
        A file in `folder` is damaged, or of another network than its name says; the network cannot be exported.
    """
    about = {
        "format_version": FORMAT_VERSION,
        "runtime": runtime,
        **about,
        "architecture": sha256(network.to_json().encode()).hexdigest()[:16],
        "shape": list(network.input_shape[1:]),
        "versions": {package: version(package) for package in ("keras", "tensorflow", *EXTRAS[runtime])},
    }
    about = json.loads(json.dumps(about))
    key = sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{name}-{runtime}-{key}.zip"
    if not path.exists():
        log.info("profile: %s is exported for %s", name, runtime)
        _write(path, about, (_onnx if runtime == "onnx" else _openvino)(network))
        _sweep(path, f"{name}-{runtime}")
    graph = _read(path, about)
    widths = [int(output.shape[-1]) for output in network.outputs]
    part = max(1, min(PART // pixels, batch // workers()))
    try:
        run = _run_onnx(graph) if runtime == "onnx" else _run_openvino(graph, (part, *about["shape"]), precision)
    except RuntimeError as error:  # onnxruntime's are no subclasses, and are told from bugs by nothing
        raise _damaged(path, error) from error
    return _Parts(run, part, widths)


class _Parts:
    """A batch in parts, each computed by one core from beginning to end.

    No core waits for another after each layer, so that one which is reading files holds none of the others up.
    """

    def __init__(self, run: Run, part: int, widths: list[int]) -> None:
        self._run, self._part, self._widths = run, part, widths
        self._pool = ThreadPoolExecutor(workers(), thread_name_prefix="runtime")

    def __call__(self, crops: np.ndarray) -> list[np.ndarray]:
        crops = np.ascontiguousarray(crops, np.float32)
        found = [np.empty((len(crops), width), np.float32) for width in self._widths]

        def compute(start: int) -> None:
            cells = crops[start : start + self._part]
            n = len(cells)
            if n < self._part:
                cells = np.concatenate([cells, np.zeros((self._part - n, *crops.shape[1:]), np.float32)])
            for into, features in zip(found, self._run(cells), strict=True):
                into[start : start + n] = features[:n]

        for _ in self._pool.map(compute, range(0, len(crops), self._part)):
            pass
        return found


def _onnx(network: "keras.Model") -> dict[str, bytes]:
    import tf2onnx

    function = frozen_graph(network, (None, *network.input_shape[1:]))
    with _quiet():
        model, _ = tf2onnx.convert.from_graph_def(
            function.graph.as_graph_def(),
            input_names=[one.name for one in function.inputs],
            output_names=[one.name for one in function.outputs],
            opset=17,
        )
    return {"network.onnx": model.SerializeToString()}


def _openvino(network: "keras.Model") -> dict[str, bytes]:
    import openvino

    function = frozen_graph(network, (None, *network.input_shape[1:]))
    with TemporaryDirectory() as name:
        graph = Path(name) / "network.pb"
        graph.write_bytes(function.graph.as_graph_def().SerializeToString())
        read = openvino.Core().read_model(graph)
        outputs = [read.output(one.name) for one in function.outputs]
        # in their order, and in float32: halving the weights is what OpenVINO does by default
        model = openvino.Model(outputs, read.get_parameters())
        openvino.save_model(model, graph.with_suffix(".xml"), compress_to_fp16=False)
        return {path.name: path.read_bytes() for path in (graph.with_suffix(".xml"), graph.with_suffix(".bin"))}


def _run_onnx(graph: dict[str, bytes]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph["network.onnx"], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda crops: session.run(None, {name: crops})


def _run_openvino(graph: dict[str, bytes], shape: tuple[int, ...], precision: str) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(graph["network.xml"], graph["network.bin"])
    model.reshape(list(shape))
    cores = workers()
    how = {
        # asked for always: by default it is bfloat16 on a CPU that has it
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "NUM_STREAMS": cores,
        "INFERENCE_NUM_THREADS": cores,
        "ENABLE_CPU_PINNING": False,  # which would take the cores that this process may use for others
    }
    network = core.compile_model(model, "CPU", how)
    free: SimpleQueue[Any] = SimpleQueue()
    for _ in range(cores):
        free.put(network.create_infer_request())

    def run(crops: np.ndarray) -> list[np.ndarray]:
        request = free.get()
        try:
            request.infer([crops], share_inputs=True)
            return [request.get_output_tensor(i).data.copy() for i in range(len(network.outputs))]
        finally:
            free.put(request)

    # once by this thread alone: two threads making the first inferences of a process were seen to wait for each other
    # for ever, in what OpenVINO sets up there for numpy types (2026.4)
    run(np.zeros(shape, np.float32))
    return run


def _write(path: Path, about: dict[str, Any], files: dict[str, bytes]) -> None:
    with atomic_path(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name, data in {_ABOUT: json.dumps(about, indent=1).encode(), **files}.items():
            archive.writestr(zipfile.ZipInfo(name), data)


def _read(path: Path, about: dict[str, Any]) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}  # which compares checksums
        found = json.loads(files.pop(_ABOUT))
    except (OSError, zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, NotImplementedError) as error:
        raise _damaged(path, error) from error
    if found != about:
        what = changes(found, about) if isinstance(found, dict) else []
        raise InputError(
            f"{path} holds another network than its name says ({'; '.join(what) or 'other settings'}); delete it, and "
            "it is exported anew"
        )
    return files


def _damaged(path: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"{path}: the exported network cannot be read ({reason}); delete it, and it is exported anew")


def _sweep(kept: Path, prefix: str) -> None:
    """Delete the exports of a model that `kept` takes the place of."""
    of_it = re.compile(re.escape(prefix) + r"-[0-9a-f]{16}\.zip")
    for path in kept.parent.iterdir():
        if path != kept and of_it.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what tf2onnx says of itself, and TensorFlow of what tf2onnx calls."""
    talkers = [logging.getLogger(name) for name in ("tensorflow", "tf2onnx")]
    levels = [talker.level for talker in talkers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for talker in talkers:
            talker.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for talker, level in zip(talkers, levels, strict=True):
                talker.setLevel(level)
