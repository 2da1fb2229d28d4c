"""spconv's convolutions of torch tensors, forward and backward. This module does not import JAX.

It works around two faults of spconv 2.3.8:

- the backward pass asks for a CUDA stream on a CPU, too: `_stream`;
- the CPU kernels give wrong sums in more than one torch thread: `one_at_a_time`.

Arrays may have leading axes, equal or of length 1: the mask groups m, from vmap.
"""

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from logging import getLogger
from typing import Any, NamedTuple

from absl import logging

from greenjax.errors import InputError
from greenjax.planning.sites import Footprint

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spconv imports deprecated names
        import spconv.pytorch as sp
        import torch
        from spconv.core import ConvAlgo
        from spconv.cppconstants import CPU_ONLY_BUILD
        from spconv.pytorch import ops
except (ImportError, OSError) as error:  # OSError: a CUDA library is missing
    raise InputError(
        f"model.sparse_conv is 'spconv', which does not import ({error}): install torch and spconv (requirements.txt;"
        " on NVIDIA GPUs requirements-cuda12.txt or requirements-cuda13.txt), or set model.sparse_conv to 'native'"
    ) from error


def _stream() -> int:
    """The CUDA stream for spconv; 0 without CUDA, where spconv's own function raises in every backward pass."""
    return torch.cuda.current_stream().cuda_stream if torch.cuda.is_available() else 0


ops.get_current_stream = _stream

# Torch warns once of the way in which spconv makes its tensors.
getLogger("torch.fx._symbolic_trace").setLevel("ERROR")


def warn_of_two_packages(names: list[str]) -> None:
    """Warns of spconv beside spconv-cu*: both install into the same folders, and the later overwrites the earlier."""
    found = sorted({name for name in names if re.fullmatch(r"spconv(-cu\d+)?", name)})
    if len(found) > 1:
        logging.warning("%s are installed into the same folders: uninstall all, then install one", " and ".join(found))


warn_of_two_packages([distribution.name for distribution in metadata.distributions()])

_lock = threading.Lock()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Runs one call at a time, in one torch thread. The devices of a mesh call concurrently."""
    with _lock:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def has_cuda() -> bool:
    """Whether torch and spconv both compute on a GPU."""
    return torch.cuda.is_available() and not CPU_ONLY_BUILD


class Conv(NamedTuple):
    """The static parameters of a convolution."""

    footprint: Footprint
    shape: tuple[int, int]  # rows and columns of the input grid


def forward(conv: Conv, x: Any, kernel: Any, inputs: Any, outputs: Any) -> tuple[Any]:
    """[m, b, n, i], [m, kh, kw, i, o], [m, n, 2], [m, n_out, 2] -> ([m, b, n_out, o],)"""
    (b, n_out), o = (x.shape[-3], outputs.shape[-2]), kernel.shape[-1]
    lead, x, inputs, outputs = _by_group(kernel.shape[:-4], (x, 3), (inputs, 2), (outputs, 2))
    kernels = kernel.reshape(-1, *kernel.shape[-4:])
    if len(kernels) == 1:  # all mask groups in one call
        parts = [(x, kernels[0], inputs, outputs)]
    else:
        kernels = kernel.expand(*lead, *kernel.shape[-4:]).reshape(len(x), *kernel.shape[-4:])
        parts = list(zip(x[:, None], kernels, inputs[:, None], outputs[:, None]))
    with torch.no_grad():
        y = torch.cat([_forward_part(conv, *part) for part in parts])
    return (y.reshape(*lead, b, n_out, o),)


def _forward_part(conv: Conv, x: Any, kernel: Any, inputs: Any, outputs: Any) -> Any:
    out = _convolve(conv, x, _to_spconv(kernel), inputs, training=False)
    rows = _matching_rows(out, _sites(outputs, x.shape[1]))
    return torch.cat([out.features, out.features.new_zeros(1, kernel.shape[-1])])[rows]


def backward(conv: Conv, x: Any, kernel: Any, inputs: Any, outputs: Any, dy: Any) -> tuple[Any, Any]:
    """The gradients of x and, for every mask group, of the kernel."""
    lead, x, kernel, inputs, outputs, dy = _by_group((), (x, 3), (kernel, 4), (inputs, 2), (outputs, 2), (dy, 3))
    parts = zip(x[:, None], kernel, inputs[:, None], outputs[:, None], dy[:, None])
    with torch.enable_grad():
        dx, d_kernel = zip(*(_backward_part(conv, *part) for part in parts))
    return torch.stack(dx).reshape(*lead, *dx[0].shape), torch.stack(d_kernel).reshape(*lead, *d_kernel[0].shape)


def _backward_part(conv: Conv, x: Any, kernel: Any, inputs: Any, outputs: Any, dy: Any) -> tuple[Any, Any]:
    x = x.detach().requires_grad_()
    weight = _to_spconv(kernel).detach().requires_grad_()
    out = _convolve(conv, x, weight, inputs, training=True)
    rows = _matching_rows(out, _sites(outputs, x.shape[1]))
    d_out = out.features.new_zeros(len(out.features) + 1, dy.shape[-1])
    d_out[rows] = dy.flatten(0, 2)
    dx, d_weight = torch.autograd.grad(out.features, (x, weight), d_out[:-1])
    return dx[0], d_weight.permute(1, 2, 3, 0)


def _by_group(lead: Any, *tensors: tuple[Any, int]) -> tuple[Any, ...]:
    """The common leading shape, and every (tensor, number of its own axes) with one leading axis of that size."""
    lead = torch.broadcast_shapes(lead, *(t.shape[: t.ndim - axes] for t, axes in tensors))
    own = [t.shape[t.ndim - axes :] for t, axes in tensors]
    return lead, *(t.expand(*lead, *shape).reshape(-1, *shape) for (t, _), shape in zip(tensors, own))


def _to_spconv(kernel: Any) -> Any:
    """[kh, kw, i, o] -> [o, kh, kw, i]."""
    return kernel.permute(3, 0, 1, 2).contiguous()


def _sites(coordinates: Any, images: int) -> Any:
    """[m, n, 2] (row, column) -> [m * images * n, 3] (image, row, column), the order of spconv."""
    m, n, _ = coordinates.shape
    image = torch.arange(m * images, dtype=torch.int32, device=coordinates.device).reshape(m, images, 1, 1)
    repeated = coordinates.to(torch.int32)[:, None].expand(m, images, n, 2)
    return torch.cat([image.expand(m, images, n, 1), repeated], dim=-1).reshape(-1, 3).contiguous()


def _convolve(conv: Conv, x: Any, weight: Any, inputs: Any, training: bool) -> Any:
    """[m, b, n, i] at sites [m, n, 2] -> spconv's sparse tensor of all sites that the kernel reaches."""
    low, high = inputs.amin((0, 1)).tolist(), inputs.amax((0, 1)).tolist()
    if min(low) < 0 or high[0] >= conv.shape[0] or high[1] >= conv.shape[1]:
        # spconv does not check, and would write outside its arrays.
        raise ValueError(f"sites from {low} to {high} lie outside the grid {conv.shape} of the sparse convolution")
    m, b, _, i = x.shape
    tensor = sp.SparseConvTensor(x.flatten(0, 2), _sites(inputs, b), list(conv.shape), m * b)
    layer = _layer(conv.footprint, i, len(weight), x.is_cuda).train(training)
    return torch.func.functional_call(layer, {"weight": weight}, (tensor,))


@cache
def _layer(footprint: Footprint, i: int, o: int, on_gpu: bool) -> Any:
    """A layer of spconv without weights of its own; on a GPU spconv chooses the algorithm."""
    kernel, stride, padding, is_submanifold = footprint
    settings: dict[str, Any] = dict(bias=False, algo=None if on_gpu else ConvAlgo.Native)
    if not is_submanifold:
        settings |= dict(stride=stride, padding=padding)
    with torch.device("meta"):
        return (sp.SubMConv2d if is_submanifold else sp.SparseConv2d)(i, o, kernel, **settings)


def _matching_rows(out: Any, wanted: Any) -> Any:
    """The row of `out` for every wanted site, by the indices that spconv returns; len(out) where there is none."""
    count, (h, w) = len(out.features), out.spatial_shape
    image, row, column = out.indices.long().T
    table = torch.full((out.batch_size * h * w,), count, device=wanted.device)
    table[(image * h + row) * w + column] = torch.arange(count, device=wanted.device)
    image, row, column = wanted.long().T
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    place = torch.where(inside, (image * h + row) * w + column, 0)
    return torch.where(inside, table[place], count)
