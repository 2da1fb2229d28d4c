"""The kernels of group window attention for NVIDIA GPUs: tokens enter groups, attend and leave inside them.

A program instance gathers the tokens of one group and one head, keeps the pairs of slots in registers, and writes each
result to the place of its token. It takes several images with one mask in turn, which share the bias.

- Every token is in one slot of one group, so instances write to distinct places and together cover the result: there
  are no atomics, and every run gives the same bits. An instance sums the gradient of the bias over its images, and XLA
  sums over instances.
- Tiles have sides that are powers of two. Rows of up to 64 slots are one tile, and one kernel does the backward pass.
  Of longer rows a tile is 16 queries by all keys, for the gradients of queries and bias, and then 16 keys by all
  queries, for those of keys and values: compiled for Hopper, larger ones do not fit the registers.

Source: written in Pallas for its Triton backend; the algorithm is that of group_attention.py, in tiles. Compare
FlashAttention-2 (arXiv 2307.08691), whose running maximum rows of this length do not need.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

MOST_SLOTS = 256
WIDTHS = (16, 32, 64, 128)
WHOLE = 64  # the longest row that is one tile
WARPS = 4096  # enough for all processors of a large GPU; more have fewer images each, and more bias to read and sum
MOST_IMAGES = 16  # of a program


class Where(NamedTuple):
    """The groups: arrays, and inside a kernel references to them."""

    bias: Any  # [g, k, s, s], or None
    token: Any  # [g, s]; None: the tokens in their order
    window: Any  # [g, s]


class Tiling(NamedTuple):
    """The share of an instance: one head and group, `rows` of its slots by all of them, and `images` images."""

    images: int
    batch: int
    tokens: int
    groups: int
    slots: int
    rows: int
    columns: int  # the number of slots, rounded up to a power of two
    heads: int
    width: int

    @staticmethod
    def of(masks: int, qkv: Array, where: Where) -> "Tiling":
        """`masks`: the number of mask groups that run at a time, each in instances of its own."""
        (batch, tokens, _, heads, width), (groups, slots) = qkv.shape, where.window.shape
        columns = max(16, pl.next_power_of_2(slots))
        rows = columns if columns <= WHOLE else 16
        tiling = Tiling(1, batch, tokens, groups, slots, rows, columns, heads, width)
        images = masks * batch * heads * groups * tiling.tiles * tiling.warps // WARPS
        return tiling._replace(images=min(max(images, 1), MOST_IMAGES))

    @property
    def tiles(self) -> int:
        return pl.cdiv(self.slots, self.rows)

    @property
    def parts(self) -> int:
        """Parts of the batch; an instance sums over the images of one."""
        return pl.cdiv(self.batch, self.images)

    def call(self, kernel: Callable[..., None], products: int, interpret: bool, **options: Any) -> Callable[..., Any]:
        """pallas_call of kernel(tiling, ...) with `products` matrix products, not counting recomputed ones."""
        pairs = self.batch * self.heads * self.groups * self.slots**2
        return pl.pallas_call(
            partial(kernel, self),
            # Two axes, because a GPU has three and jax.vmap adds one. Heads first: neighbours share lines of memory.
            grid=(self.heads, self.parts * self.groups * self.tiles),
            compiler_params=triton.CompilerParams(num_warps=self.warps, num_stages=2),
            cost_estimate=pl.CostEstimate(2 * products * pairs * self.width, pairs, 0),
            interpret=interpret,
            **options,
        )

    @property
    def warps(self) -> int:
        return 1 if self.rows * self.columns <= 1024 else 4


class Instance(NamedTuple):
    """One program instance of a kernel: the head, group, images and slots that it works on."""

    head: Array
    group: Array
    part: Array
    first: Array  # image
    end: Array
    rows: Int[Array, " r"]  # slots
    columns: Int[Array, " c"]

    @staticmethod
    def this(tiling: Tiling) -> "Instance":
        rest, tile = _divided(pl.program_id(1), tiling.tiles)
        part, group = _divided(rest, tiling.groups)
        first = part * tiling.images
        end = jnp.minimum(first + tiling.images, tiling.batch)
        rows = tile * tiling.rows + jnp.arange(tiling.rows, dtype=jnp.int32)
        return Instance(pl.program_id(0), group, part, first, end, rows, jnp.arange(tiling.columns, dtype=jnp.int32))


def _divided(index: Array, by: int) -> tuple[Array, Array]:
    by_ = jnp.int32(by)
    return jax.lax.div(index, by_), jax.lax.rem(index, by_)


class Tokens(NamedTuple):
    """The tokens of some slots of one group, by channel of a head."""

    token: Int[Array, "t d"]
    channel: Int[Array, "t d"]
    real: Bool[Array, "t d"]  # elsewhere zeros are read and nothing is written


def forward(interpret: bool, masks: int, by_image: tuple[Array, ...], where: Where) -> Array:
    """(qkv [b, n, 3, k, d],) -> [b, n, k, d]. `masks`: the number of such calls that run at a time."""
    (qkv,) = by_image
    b, n, _, heads, width = qkv.shape
    tiling = Tiling.of(masks, qkv, where)
    y = jax.ShapeDtypeStruct((b, n, heads, width), qkv.dtype)
    return tiling.call(_forward_kernel, 2, interpret, out_shape=y)(qkv, where)


def _forward_kernel(tiling: Tiling, qkv: Any, where: Where, y: Any) -> None:
    instance = Instance.this(tiling)
    queries, keys = (_tokens(tiling, instance, where, slots) for slots in (instance.rows, instance.columns))
    offset = _offsets(tiling, instance, where, instance.rows, instance.columns, of_padding=0.0)

    def image(i: Array, carry: None) -> None:
        q = _read(qkv, i, queries, 0, instance.head)
        k, v = (_read(qkv, i, keys, part, instance.head) for part in (1, 2))
        p, _ = _softmax(triton.dot(q, k, trans_b=True) * tiling.width**-0.5 + offset)
        _write(y, triton.dot(p.astype(v.dtype), v), i, queries, instance.head)

    jax.lax.fori_loop(instance.first, instance.end, image, None)


def backward(interpret: bool, masks: int, by_image: tuple[Array, ...], where: Where) -> tuple[Array, Array | None]:
    """(qkv, dy) -> the gradient of qkv, and summands [parts, g, k, s, s] of the gradient of the bias."""
    qkv, dy = by_image
    b, _, _, heads, _ = qkv.shape
    g, s = where.window.shape
    tiling = Tiling.of(masks, qkv, where)
    d_qkv = jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)
    d_bias = None if where.bias is None else jax.ShapeDtypeStruct((tiling.parts, g, heads, s, s), jnp.float32)
    if tiling.tiles == 1:
        call = tiling.call(_whole_kernel, 4, interpret, out_shape=(d_qkv, d_bias))
        return call(qkv, dy, where)
    of_rows = jax.ShapeDtypeStruct((b, heads, g, s), jnp.float32)
    by_queries = tiling.call(_queries_kernel, 2, interpret, out_shape=(d_qkv, d_bias, (of_rows, of_rows)))
    d_qkv, d_bias, statistics = by_queries(qkv, dy, where)
    # Writes the gradients of keys and values beside those of the queries, into the same array.
    by_keys = tiling.call(_keys_kernel, 2, interpret, out_shape=d_qkv, input_output_aliases={0: 0})
    return by_keys(d_qkv, qkv, dy, statistics, where), d_bias


def _whole_kernel(tiling: Tiling, qkv: Any, dy: Any, where: Where, d_qkv: Any, d_bias: Any) -> None:
    """All gradients, where a row is one tile."""
    _queries_kernel(tiling, qkv, dy, where, d_qkv, d_bias, None)


def _queries_kernel(
    tiling: Tiling, qkv: Any, dy: Any, where: Where, d_qkv: Any, d_bias: Any, statistics: tuple[Any, Any] | None
) -> None:
    """The gradients of queries and bias. Without `statistics`, also those of keys and values."""
    instance = Instance.this(tiling)
    queries, keys = (_tokens(tiling, instance, where, slots) for slots in (instance.rows, instance.columns))
    offset = _offsets(tiling, instance, where, instance.rows, instance.columns, of_padding=0.0)

    def image(i: Array, total: Array | None) -> Array | None:
        q = _read(qkv, i, queries, 0, instance.head)
        k, v = (_read(qkv, i, keys, part, instance.head) for part in (1, 2))
        dy_of_rows = _read(dy, i, queries, instance.head)
        exact, log_sum = _softmax(triton.dot(q, k, trans_b=True) * tiling.width**-0.5 + offset)
        rounded = exact.astype(v.dtype)
        p = rounded.astype(jnp.float32)
        weighted = triton.dot(dy_of_rows, v, trans_b=True) * p
        mean = weighted.sum(axis=1)
        d_logits = weighted - p * mean[:, None]
        scaled = (d_logits * tiling.width**-0.5).astype(q.dtype)
        _write(d_qkv, triton.dot(scaled, k), i, queries, 0, instance.head)
        if statistics is None:
            _write(d_qkv, triton.dot(scaled, q, trans_a=True), i, keys, 1, instance.head)
            _write(d_qkv, triton.dot(rounded, dy_of_rows, trans_a=True), i, keys, 2, instance.head)
        else:
            for reference, values in zip(statistics, (log_sum, mean)):
                rows = reference.at[i, instance.head, instance.group, instance.rows]
                triton.store(rows, values, mask=instance.rows < tiling.slots)
        return None if total is None else total + d_logits

    zeros = None if d_bias is None else jnp.zeros(offset.shape, jnp.float32)
    total = jax.lax.fori_loop(instance.first, instance.end, image, zeros)
    if d_bias is not None:
        place, real = _pairs(tiling, instance.rows, instance.columns)
        triton.store(d_bias.at[instance.part, instance.group, instance.head, *place], total, mask=real)


def _keys_kernel(
    tiling: Tiling, _: Any, qkv: Any, dy: Any, statistics: tuple[Any, Any], where: Where, d_qkv: Any
) -> None:
    """The gradients of some keys and values, from all queries and their statistics from _queries_kernel."""
    instance = Instance.this(tiling)
    keys, queries = (_tokens(tiling, instance, where, slots) for slots in (instance.rows, instance.columns))
    offset = _offsets(tiling, instance, where, instance.columns, instance.rows, of_padding=-jnp.inf).T

    def image(i: Array, carry: None) -> None:
        k, v = (_read(qkv, i, keys, part, instance.head) for part in (1, 2))
        q, dy_of_columns = _read(qkv, i, queries, 0, instance.head), _read(dy, i, queries, instance.head)
        log_sum, mean = (
            triton.load(
                reference.at[i, instance.head, instance.group, instance.columns],
                mask=instance.columns < tiling.slots,
                other=0.0,
            )[None]
            for reference in statistics
        )
        logits = triton.dot(k, q, trans_b=True) * tiling.width**-0.5 + offset
        rounded = jnp.exp(logits - log_sum).astype(v.dtype)
        d_logits = (triton.dot(v, dy_of_columns, trans_b=True) - mean) * rounded.astype(jnp.float32)
        scaled = (d_logits * tiling.width**-0.5).astype(q.dtype)
        _write(d_qkv, triton.dot(scaled, q), i, keys, 1, instance.head)
        _write(d_qkv, triton.dot(rounded, dy_of_columns), i, keys, 2, instance.head)

    jax.lax.fori_loop(instance.first, instance.end, image, None)


def _tokens(tiling: Tiling, instance: Instance, where: Where, slots: Int[Array, " t"]) -> Tokens:
    """The tokens of some slots; padding has a token number beyond the last."""
    inside = slots < tiling.slots
    if where.token is None:
        token, real = slots, inside
    else:
        token = triton.load(where.token.at[instance.group, slots], mask=inside, other=tiling.tokens)
        # Not by the window: tokens that do not exist have -1 as padding has, but rows of the result that are read.
        real = token < tiling.tokens
    channel = jnp.arange(tiling.width, dtype=jnp.int32)
    shape = slots.size, tiling.width
    return Tokens(*(jnp.broadcast_to(a, shape) for a in (token[:, None], channel[None, :], real[:, None])))


def _windows(tiling: Tiling, instance: Instance, where: Where, slots: Int[Array, " t"]) -> Int[Array, " t"]:
    return triton.load(where.window.at[instance.group, slots], mask=slots < tiling.slots, other=-1)


def _offsets(
    tiling: Tiling,
    instance: Instance,
    where: Where,
    queries: Int[Array, " q"],
    keys: Int[Array, " t"],
    of_padding: float,
) -> Float[Array, "q t"]:
    """The summand of logits: the bias; -inf where a query does not see a key; `of_padding` for padding queries."""
    of_query, of_key = (_windows(tiling, instance, where, slots) for slots in (queries, keys))
    of_query, of_key = of_query[:, None], of_key[None, :]
    place, real = _pairs(tiling, queries, keys)
    bias: Any = 0.0
    if where.bias is not None:
        bias = triton.load(where.bias.at[instance.group, instance.head, *place], mask=real, other=0.0)
    hidden = jnp.where(of_query < 0, jnp.float32(of_padding), jnp.float32(-jnp.inf))
    return jnp.where((of_query == of_key) & (of_query >= 0), bias, jnp.broadcast_to(hidden, real.shape))


def _pairs(tiling: Tiling, queries: Int[Array, " q"], keys: Int[Array, " t"]) -> tuple[tuple[Array, Array], Array]:
    """The two slots of every pair, and whether both exist."""
    shape = queries.size, keys.size
    place = jnp.broadcast_to(queries[:, None], shape), jnp.broadcast_to(keys[None, :], shape)
    return place, (place[0] < tiling.slots) & (place[1] < tiling.slots)


def _softmax(logits: Float[Array, "q t"]) -> tuple[Float[Array, "q t"], Float[Array, " q"]]:
    """The softmax of every row, and its log-sum-exp."""
    largest = logits.max(axis=1)
    powers = jnp.exp(logits - largest[:, None])
    total = powers.sum(axis=1)
    return powers / total[:, None], largest + jnp.log(total)


def _read(array: Any, image: Array, tokens: Tokens, *place: Any) -> Float[Array, "t d"]:
    """The channels of one head of some tokens; zeros for padding."""
    return triton.load(array.at[image, tokens.token, *place, tokens.channel], mask=tokens.real, other=0.0)


def _write(array: Any, values: Float[Array, "t d"], image: Array, tokens: Tokens, *place: Any) -> None:
    triton.store(array.at[image, tokens.token, *place, tokens.channel], values.astype(array.dtype), mask=tokens.real)
