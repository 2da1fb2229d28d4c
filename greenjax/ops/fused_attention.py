"""Group window attention in one kernel for NVIDIA GPUs, as JAX sees it: gradients, mask groups, meshes.

XLA writes the intermediate results of attention (separate heads, logits, probabilities, joined heads) to memory and
reads them back, which is most of its cost on a GPU. The kernel (fused_attention_kernel.py) gathers tokens into groups,
attends, and writes each result to the place of its token. The backward pass stores qkv only and recomputes the
probabilities.

XLA cannot split a kernel over a mesh. Each device runs it on its own mask groups, or its own images.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from greenjax.errors import InputError
from greenjax.ops.fused_attention_kernel import MOST_SLOTS, WIDTHS, Where, backward, forward
from greenjax.planning import Grouping


def fused_group_attention(
    qkv: Float[Array, "b n qkv"],
    bias: Float[Array, "#g k s s"] | None,
    grouping: Grouping,
    num_heads: int,
    interpret: bool = False,
) -> Float[Array, "b n c"]:
    """Attention of ungrouped tokens inside their groups: enter_groups, split_heads, attend, merge_heads, leave_groups.

    `interpret` runs the kernel's arithmetic without a GPU, slowly. Raises InputError for rows and heads that do not
    fit.
    """
    b, n, channels = qkv.shape
    slots, width = np.shape(grouping.window)[1], channels // (3 * num_heads)
    if slots > MOST_SLOTS:
        raise InputError(f"model.attention is 'pallas' and a group has {slots} slots: expected at most {MOST_SLOTS}")
    if width not in WIDTHS:
        raise InputError(f"model.attention is 'pallas' and a head has {width} channels: expected one of {WIDTHS}")
    if bias is not None:
        bias = jnp.broadcast_to(bias, (np.shape(grouping.window)[0], *bias.shape[1:]))
    token = None if grouping.token is None else jnp.asarray(grouping.token)
    apart = qkv.reshape(b, n, 3, num_heads, width)
    y: Any = _attend(interpret, apart, bias, token, jnp.asarray(grouping.window))
    return y.reshape(b, n, channels // 3)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    interpret: bool,
    qkv: Float[Array, "b n 3 k d"],
    bias: Float[Array, "g k s s"] | None,
    token: Int[Array, "g s"] | None,
    window: Int[Array, "g s"],
) -> Float[Array, "b n k d"]:
    return _spread(partial(forward, interpret), (qkv,), Where(bias, token, window))


def _attend_fwd(interpret, qkv, bias, token, window):
    return _attend(interpret, qkv, bias, token, window), (qkv, Where(bias, token, window))


def _attend_bwd(interpret, saved, dy):
    qkv, where = saved
    d_qkv, d_bias = _spread(partial(backward, interpret), (qkv, dy), where)
    return d_qkv, None if d_bias is None else d_bias.sum(axis=0).astype(where.bias.dtype), None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _spread(run: Callable[..., Any], by_image: tuple[Array, ...], where: Where) -> Any:
    """Runs the kernel for one mask, `run(1, by_image, where)`, or under jax.vmap for all, `run(masks, ...)`.

    On a mesh each device takes its share of the mask groups or of the images, the leading axis of every result.
    """
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or AxisType.Manual in mesh.axis_types

    def part(size: int) -> P:
        return P(mesh.axis_names) if size % mesh.size == 0 else P()  # else each device does all

    @custom_vmap
    def of_images(by_image: tuple[Array, ...], where: Where) -> Any:
        one = partial(run, 1)
        if alone:
            return one(by_image, where)
        spec = part(by_image[0].shape[0])
        return jax.shard_map(one, in_specs=(spec, P()), out_specs=spec, check_vma=False)(by_image, where)

    @of_images.def_vmap
    def of_mask_groups(size: int, mapped: Any, *args: Any) -> Any:
        axes = jax.tree.map(lambda is_mapped: 0 if is_mapped else None, tuple(mapped))
        masks = size if alone or part(size) == P() else size // mesh.size
        mapped_run: Any = jax.vmap(partial(run, masks), in_axes=axes)
        if not alone:
            specs = jax.tree.map(lambda is_mapped: part(size) if is_mapped else P(), tuple(mapped))
            mapped_run = jax.shard_map(mapped_run, in_specs=specs, out_specs=part(size), check_vma=False)
        results = mapped_run(*args)
        return results, jax.tree.map(lambda _: True, results)

    return of_images(by_image, where)
