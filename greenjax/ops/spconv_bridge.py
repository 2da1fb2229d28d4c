"""spconv, a PyTorch library, as a JAX function: forward and backward by callbacks, on visible tokens.

- `callback` "pure" is `jax.pure_callback`: arrays pass through host memory. "buffer" is
  `jax.experimental.buffer_callback`: torch works on XLA's buffers and stream, without a copy. Both pass arrays by
  DLPack. On a CPU with no more threads than devices pure_callback may wait for ever; there, "pure" uses
  buffer_callback, too: `_pure_would_hang`.
- vmap adds a leading axis of mask groups. They share a kernel, so the forward pass folds them into spconv's batch
  index: one call. The backward pass is one call a mask group, because vmap wants each group's gradient of the kernel;
  it runs spconv's forward pass again, which leaves in torch what spconv's backward pass needs.
- Under a mesh (`jax.set_mesh`, or `jax.sharding.use_abstract_mesh` while tracing) each device calls spconv for its own
  mask groups, inside `jax.shard_map`. Without one JAX gathers whole arrays for one call.
- spconv returns rows in any order, and strided convolutions reach more sites than the outputs: rows are matched by
  the indices that spconv returns. Extra rows are dropped and get no gradient; sites without a row are zero.
- bfloat16, which spconv lacks, is computed in float32 and cast back.

Depth-wise convolutions never come here: spconv has no groups, and sparse_conv.py keeps them native.
Source: paper, section 3.2; spconv 2.3.8.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from greenjax.errors import InputError
from greenjax.ops import spconv_torch
from greenjax.ops.spconv_torch import Conv, torch
from greenjax.planning.sites import Footprint

try:
    from jax.experimental.buffer_callback import buffer_callback
except ImportError:
    buffer_callback = None

GRACE = 30.0  # seconds that a process on several devices lives on after a failure in spconv


def check_callback(callback: str) -> None:
    """Raises InputError for a callback that is unknown or missing."""
    if callback not in ("pure", "buffer"):
        raise InputError(f"model.spconv_callback is {callback!r}: expected pure or buffer")
    if callback == "buffer" and buffer_callback is None:
        raise InputError(
            f"model.spconv_callback is 'buffer', but jax {jax.__version__} has no jax.experimental.buffer_callback:"
            " set it to 'pure'"
        )
    if callback == "buffer" and jax.default_backend() == "gpu" and not spconv_torch.has_cuda():
        raise InputError(
            "model.spconv_callback is 'buffer' on a GPU, but the installed torch or spconv is for the CPU: install"
            " requirements-cuda12.txt or requirements-cuda13.txt, or set it to 'pure'"
        )


def conv(
    x: Float[Array, "b n i"],
    kernel: Float[Array, "kh kw i o"],
    bias: Float[Array, " o"] | None,
    inputs: Int[Array, "n 2"],
    outputs: Int[Array, "n_out 2"],
    footprint: Footprint,
    shape: tuple[int, int],
    callback: str = "pure",
) -> Float[Array, "b n_out o"]:
    """The convolution of tokens at `inputs`, (row, column), at the sites `outputs`, by spconv; groups is 1."""
    check_callback(callback)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    y: Any = _conv(Conv(footprint, shape), callback, x.astype(dtype), kernel.astype(dtype), inputs, outputs)
    return (y if bias is None else y + bias.astype(dtype)[None, None]).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv(conv: Conv, callback: str, x: Array, kernel: Array, inputs: Array, outputs: Array) -> Array:
    y = jax.ShapeDtypeStruct((x.shape[0], outputs.shape[0], kernel.shape[3]), x.dtype)
    return _in_torch(partial(spconv_torch.forward, conv), callback, (y,), x, kernel, inputs, outputs)[0]


def _conv_fwd(conv, callback, x, kernel, inputs, outputs):
    return _conv(conv, callback, x, kernel, inputs, outputs), (x, kernel, inputs, outputs)


def _conv_bwd(conv, callback, saved, dy):
    like = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in saved[:2])
    return *_in_torch(partial(spconv_torch.backward, conv), callback, like, *saved, dy), None, None


_conv.defvjp(_conv_fwd, _conv_bwd)


def _in_torch(
    function: Callable[..., tuple[Any, ...]], callback: str, results: tuple[jax.ShapeDtypeStruct, ...], *args: Array
) -> tuple[Array, ...]:
    """Calls `function(*tensors)`, which returns tensors like `results`, on each device's part of the arrays."""
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    if callback == "buffer" or _pure_would_hang(devices):
        assert buffer_callback is not None  # check_callback has checked it
        run = buffer_callback(partial(_into_buffers, devices, function), results, vmap_method="expand_dims")
    else:
        gpu = jax.default_backend() == "gpu" and spconv_torch.has_cuda()
        through_host = partial(_through_host, devices, function, "cuda" if gpu else "cpu")
        run = partial(jax.pure_callback, through_host, results, vmap_method="expand_dims")
    if mesh.empty or AxisType.Manual in mesh.axis_types:
        return tuple(run(*args))
    # Replicated specs: vmap(spmd_axis_name=...) adds the axes over which the mask groups are split.
    return tuple(jax.shard_map(run, in_specs=P(), out_specs=P(), check_vma=False)(*args))


def _pure_would_hang(devices: int) -> bool:
    """On the CPU, pure_callback copies large arguments in a thread of XLA's pool, while the callback that waits for
    them holds another. With no more threads than devices all may wait for ever (jax issue 24255).

    Raises InputError where buffer_callback, which copies nothing, is not there to take over.
    """
    if jax.default_backend() != "cpu":
        return False
    cores = len(os.sched_getaffinity(0))  # on Linux, the only system with both spconv and XLA
    # XLA counts its threads in this way.
    if max(int(os.environ.get("NPROC", cores)), jax.local_device_count()) > devices:
        return False
    if buffer_callback is None:
        raise InputError(
            f"model.sparse_conv is 'spconv' on {devices} CPU devices with {cores} cores, where callbacks may wait for"
            f" ever: set NPROC={devices + 1} in the environment, or model.sparse_conv to 'native'"
        )
    return True


def _through_host(devices: int, function: Callable, torch_device: str, *args: Any) -> tuple[np.ndarray, ...]:
    """pure_callback: arrays of the host in, arrays of the host out."""
    with _reported(devices):
        tensors = [torch.from_dlpack(a).to(torch_device) for a in args]  # waits for the arrays, hence outside the lock
        with spconv_torch.one_at_a_time():
            return tuple(np.from_dlpack(t.contiguous().cpu()) for t in function(*tensors))


def _into_buffers(devices: int, function: Callable, context: Any, results: Any, *args: Any) -> None:
    """buffer_callback: works on XLA's buffers, and on its stream, so that torch and XLA keep their order."""
    with _reported(devices):
        tensors = [torch.from_dlpack(a) for a in args]
        device = tensors[0].device
        on_gpu = device.type == "cuda"
        stream = torch.cuda.stream(torch.cuda.ExternalStream(context.stream, device)) if on_gpu else nullcontext()
        with spconv_torch.one_at_a_time(), stream:
            for result, tensor in zip(results, function(*tensors)):
                torch.from_dlpack(result).copy_(tensor)


@contextmanager
def _reported(devices: int) -> Iterator[None]:
    """Logs an error of a callback at once; JAX raises it later in the user's code.

    On a mesh JAX may never raise it, because the other devices wait in a collective for the failed device. The process
    gets GRACE seconds to end by the error, and is then ended.
    """
    try:
        yield
    except Exception as error:
        logging.error("spconv: %s: %s", type(error).__name__, error)
        if devices > 1:
            logging.error("the process ends in %g s: other devices may wait for this one for ever", GRACE)
            end = threading.Timer(GRACE, os._exit, (1,))
            end.daemon = True
            end.start()
        raise
