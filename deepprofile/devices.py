"""What a backend does with its devices: several that share each batch of a training, and networks compiled for one.

The one module that knows what the backend is, as Keras 3 leaves this to its user.
"""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras
import numpy as np

from cytominer_tools.errors import InputError
from cytominer_tools.threads import map_ahead, workers
from deepprofile.work import log


class Replicas:
    """The devices that train one network together, each on its share of the batch; here only one.

    A step of several is that of one device on the whole batch; but with TensorFlow batch normalization has the mean and
    variance of a share, and dropout drops the same units in each share.
    """

    number = 1
    steps_at_once = 1  # of a training, between two of which Python has a say

    def scope(self) -> AbstractContextManager[Any]:
        """Where the network is made and its trainer compiled, and where Keras' fit and predict_on_batch run.

        The object that is fitted is made outside: of one made inside Keras draws batches to build it by, and they are
        lost where they come from a generator (keras.src.backend.tensorflow.trainer, _maybe_symbolic_build).
        """
        return nullcontext()

    def share(self, batch: np.ndarray) -> Any:
        """`batch` as predict_on_batch takes it, each device its share; the result is in the order of the batch."""
        return batch

    @contextmanager
    def feed(self, read: Callable[[int], Any], steps: int) -> Generator[Any, None, None]:
        """What Keras' fit takes to train on read(0), ..., read(steps - 1), which threads compute ahead of it."""
        batches = map_ahead(read, range(steps), 2 * workers())
        try:
            yield batches
        finally:
            batches.close()

    def agree(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Let `optimizer` clip gradients, and look for overflow in them, as if there were one device."""

    def batch(self, wanted: int, cells: int) -> int:
        """Cells of a batch: `wanted`, or all `cells` of an epoch where they are fewer, as far as they can be shared.

        Raises
        ------
        InputError
            It cannot be shared evenly.
        """
        n = self.number
        if wanted % n:
            near = sorted({max(wanted // n, 1) * n, (wanted // n + 1) * n})
            raise InputError(
                f"train.batch: {wanted} cells cannot be shared evenly by {n} devices; make it "
                f"{' or '.join(map(str, near))}, or hide devices (CUDA_VISIBLE_DEVICES)"
            )
        if cells < n:
            raise InputError(
                f"train: an epoch has {cells} cells, fewer than the {n} devices that share them; hide devices "
                "(CUDA_VISIBLE_DEVICES)"
            )
        return min(wanted, cells // n * n)


def replicas(kind: str = "GPU") -> Replicas:
    """The devices of `kind` that this process sees, where the backend can share a batch among them; else one."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        return _Mirrored(devices) if len(devices) > 1 else _TensorFlow()
    if backend == "jax":
        devices = [name for name in keras.distribution.list_devices() if name.startswith(kind.lower())]
        if len(devices) > 1:
            return _Sharded(devices)
    else:
        log.info("train: on one device, as always with the backend %s; tensorflow and jax share a batch", backend)
    return Replicas()


def device_names() -> list[str]:
    """The GPUs that the backend sees, by name."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return [device.name for device in tf.config.list_physical_devices("GPU")]
    if backend == "torch":
        import torch

        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [name for name in keras.distribution.list_devices() if name.startswith(("gpu", "cuda"))]


def compiled(network: keras.Model, shape: tuple[int, ...]) -> Callable[[np.ndarray], list[np.ndarray]]:
    """`network`, with its weights of now, as one function of a batch.

    Parameters
    ----------
    network : keras.Model
        One input, and a list of outputs; of a list of one Keras makes the output itself.
    shape : (batch, H, W, C)
        Of every batch.

    Returns
    -------
    function
        float32 array of `shape` to an array for each output.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _compiled_tensorflow(network, shape)
    return _compiled_torch(network) if backend == "torch" else _compiled_jax(network)


def frozen_graph(network: keras.Model, shape: tuple[int | None, ...]) -> Any:
    """`network`, whose outputs are a list, as a function of TensorFlow in which the weights are constants.

    Without variables TensorFlow folds batch normalization into convolutions and packs kernels once (EfficientNet-B0 on
    a CPU: a third faster), and other runtimes can read its graph.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    # without XLA, which makes convolutions on a CPU ten times slower
    function = tf.function(lambda crops: network(crops, training=False), autograph=False, jit_compile=False)
    concrete = function.get_concrete_function(tf.TensorSpec(shape, tf.float32, name="crops"))
    return convert_variables_to_constants_v2(concrete)


def _compiled_tensorflow(network: keras.Model, shape: tuple[int, ...]) -> Callable[[np.ndarray], list[np.ndarray]]:
    import tensorflow as tf

    function = frozen_graph(network, shape)
    return lambda crops: [output.numpy() for output in function(tf.convert_to_tensor(crops))]


def _compiled_torch(network: keras.Model) -> Callable[[np.ndarray], list[np.ndarray]]:
    """As it is: Keras hands torch crops whose channels come last in memory, which on a CPU is the fast way."""
    import torch

    network.eval()
    device = next(network.parameters()).device

    def run(crops: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            found = network(torch.from_numpy(crops).to(device), training=False)
            return [output.cpu().numpy() for output in keras.tree.flatten(found)]

    return run


def _compiled_jax(network: keras.Model) -> Callable[[np.ndarray], list[np.ndarray]]:
    import jax

    # given as arguments: as constants XLA would compute with them while it compiles
    weights = [[variable.value for variable in network.trainable_variables]]
    weights.append([variable.value for variable in network.non_trainable_variables])
    function = jax.jit(lambda weights, crops: network.stateless_call(*weights, crops, training=False)[0])
    return lambda crops: [np.asarray(output) for output in keras.tree.flatten(function(weights, crops))]


class _TensorFlow(Replicas):
    """TensorFlow on one device."""

    steps_at_once = 8  # as between two steps Keras holds the lock of Python for 2 ms, and the readers wait

    @contextmanager
    def feed(self, read: Callable[[int], Any], steps: int) -> Generator[Any, None, None]:
        """As above, by tf.data.

        A generator would be read by one thread, and tf.data, whenever it meets one, sets the size from which glibc
        maps memory anew to 128 KiB for the whole process: each crop that is decoded then costs 50 page faults, and a
        loader of two threads falls from 16,000 cells a second to 6,000.
        """
        import tensorflow as tf

        first = read(0)
        like = [np.asarray(one) for one in tf.nest.flatten(first)]

        def flat(number: np.ndarray) -> list[np.ndarray]:
            return tf.nest.flatten(read(int(number)) if number else first)

        def batch(number: Any) -> Any:
            parts = tf.numpy_function(flat, [number], [one.dtype for one in like])
            for part, one in zip(parts, like, strict=True):
                part.set_shape(one.shape)
            return tf.nest.pack_sequence_as(first, parts)

        numbers = tf.data.Dataset.range(steps)
        yield numbers.map(batch, num_parallel_calls=workers(), deterministic=True).prefetch(workers())


class _Mirrored(_TensorFlow):
    """TensorFlow: a copy of the variables on each device, and gradients that are summed."""

    steps_at_once = 1  # the loop of several fails where a step has a tf.cond in it (TensorFlow 2.21, Keras 3.15)

    def __init__(self, devices: list[str]) -> None:
        import tensorflow as tf

        self._strategy = tf.distribute.MirroredStrategy(devices)
        self.number = len(devices)

    def scope(self) -> AbstractContextManager[Any]:
        return self._strategy.scope()

    def share(self, batch: np.ndarray) -> Any:
        shares = np.split(batch, self.number)
        # given a plain array every device would compute all of it
        return self._strategy.experimental_distribute_values_from_function(
            lambda context: shares[context.replica_id_in_sync_group]
        )

    def agree(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Give it the mean of the gradients, which Keras would sum behind its clipping and its search for overflow.

        Each device then holds a `number`-th of the gradient of the batch, is clipped to as much of the norm, and the
        sum is what one device would have.
        """
        import tensorflow as tf

        inner = getattr(optimizer, "inner_optimizer", optimizer)  # of loss scaling
        if inner is optimizer and inner.global_clipnorm is None:
            return
        if inner.global_clipnorm is not None:
            inner.global_clipnorm /= self.number
        apply = optimizer.apply

        def apply_mean(grads: list[Any], trainable_variables: list[Any] | None = None) -> None:
            context = tf.distribute.get_replica_context()
            apply(context.all_reduce(tf.distribute.ReduceOp.MEAN, grads), trainable_variables)

        optimizer.apply = apply_mean


class _Sharded(Replicas):
    """JAX: the batch is cut up, and what is computed is that of the whole batch, batch normalization too."""

    def __init__(self, devices: list[str]) -> None:
        self._distribution = keras.distribution.DataParallel(devices=devices)
        self.number = len(devices)

    def scope(self) -> AbstractContextManager[Any]:
        return self._distribution.scope()

    def share(self, batch: np.ndarray) -> Any:
        return keras.distribution.distribute_tensor(batch, self._distribution.get_data_layout(batch.shape))
