"""Layers both towers and both experts share: norms, linear maps, RoPE, sin-cos positions, time.

Everything is a pure function of arrays. Norms and angles are float32 whatever the compute dtype;
a result is rounded to it once, at the end, or stays float32 where a caller computes on.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

from srum_jax.core import sharding
from srum_jax.core.param_tree import Params
from srum_jax.models.bagel.model_config import RopeScaling

REMAT = {  # what of a block its backward pass finds kept, by name; the rest is computed again
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # products with weights
}


def rematerialised(block: Callable, how: str) -> Callable:
    """`block` that keeps for its backward pass what `REMAT[how]` says, its inputs always."""
    policy = REMAT[how]
    return block if how == "none" else jax.checkpoint(block, policy=policy)


def apart(params: Params) -> Params:
    """Parameters whose layers are apart, a tuple in place of `[L, ...]`, if they are not already.

    For programs that run the stack many times: what cuts a layer out of stacked weights copies it
    each time, and several chips gather each layer of a scan again.
    """
    if isinstance(params["blocks"], tuple):
        return params
    return {**params, "blocks": cut(params["blocks"])}


def cut(stacked: Params) -> tuple[Params, ...]:
    """The layers of leaves `[L, ...]`, each a copy."""
    layers = len(jax.tree.leaves(stacked)[0])
    return tuple(jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(layers))


def _over(vector: jax.Array, x: jax.Array) -> jax.Array:
    """An array of the last axes, shaped to broadcast over x."""
    return vector.reshape((1,) * (x.ndim - vector.ndim) + vector.shape)


def rms_norm(x: jax.Array, p: Params, eps: float, dtype: DTypeLike | None = None) -> jax.Array:
    """RMSNorm over the last axis with gain, computed in float32; in `dtype`, or that of x."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * _over(p["scale"], x)).astype(dtype or x.dtype)


def layer_norm(x: jax.Array, p: Params, eps: float) -> jax.Array:
    """LayerNorm over the last axis with gain and bias, computed in float32."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * _over(p["scale"], x) + _over(p["bias"], x)).astype(x.dtype)


def linear(x: jax.Array, p: Params, dtype: DTypeLike | None = None) -> jax.Array:
    """x [..., I] · w [I, ...out] + b: the outputs keep the weight's trailing axes (split heads).

    Factors are of x's dtype, and so is the result; `dtype` float32 leaves it as it was summed. An
    int8 w comes with a float32 "scale" [...out] (`models/int8.py`), which multiplies the float32
    product: the cast of w then is all that stands before it. "lora" {"a" [I, r], "b" [r, ...out]}
    adds (x·a)·b (`models/lora.py`). The product is one plain matrix product: CPUs are several times
    slower at the gradient of a contraction over two axes. Only where rows are cut over "context"
    are rows and tokens left apart: as one axis they could not be cut, and would be gathered.
    """
    dtype = dtype or x.dtype
    summed = jnp.float32 if "scale" in p else dtype
    w = p["w"].astype(x.dtype)
    flat = w.reshape(w.shape[0], -1)
    if sharding.axis_size("context") > 1:
        y = jnp.tensordot(x, flat, axes=1, preferred_element_type=summed)
    else:
        y = jnp.matmul(x.reshape(-1, x.shape[-1]), flat, preferred_element_type=summed)
    y = y.reshape(x.shape[:-1] + w.shape[1:])
    if "scale" in p:
        y = y * _over(p["scale"], y)
    if "b" in p:
        y = y + _over(p["b"].astype(y.dtype), y)
    if "lora" in p:
        y = y + linear(linear(x, {"w": p["lora"]["a"]}), {"w": p["lora"]["b"]}, y.dtype)
    return y.astype(dtype)


def merge_heads(x: jax.Array, p: Params, dtype: DTypeLike | None = None) -> jax.Array:
    """x [B, S, H, C] · w [H, C, D] + b: the output projection of attention; w and `dtype` as in
    `linear`."""
    p = {**p, "w": rearrange(p["w"], "h c d -> (h c) d")}
    if "lora" in p:
        p["lora"] = {**p["lora"], "a": rearrange(p["lora"]["a"], "h c r -> (h c) r")}
    return linear(rearrange(x, "b s h c -> b s (h c)"), p, dtype)


def _stretched(frequency: jax.Array, theta: float, scaling: RopeScaling) -> tuple[jax.Array, float]:
    """(RoPE frequencies [C/2] after scaling, what queries and keys grow by)."""
    slow = frequency / scaling.factor
    if scaling.kind == "linear":
        return slow, 1.0
    half = frequency.shape[0]

    def feature(turns):  # whose wave turns so often over the positions trained on
        return half * math.log(scaling.original / (turns * 2 * math.pi)) / math.log(theta)

    low, high = feature(scaling.beta_fast), feature(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    high += 0.001 * (low == high)
    share = jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / (high - low), 0, 1)
    grown = scaling.attention_factor
    if grown is None:
        grown = 0.1 * math.log(scaling.factor) + 1.0
    return slow * share + frequency * (1 - share), grown


def rope_angles(
    position: jax.Array, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """(cos, sin), each [B, S, C] float32, of half-split RoPE for integer positions [B, S].

    `scaling` stretches the positions (`RopeScaling`); cos and sin then carry its growth.
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    grown = 1.0
    if scaling is not None:
        frequency, grown = _stretched(frequency, theta, scaling)
    # HIGHEST: a bfloat16 pass would round positions above 256.
    angle = jnp.einsum(
        "bs,f->bsf", position.astype(jnp.float32), frequency, precision=jax.lax.Precision.HIGHEST
    )
    angle = jnp.concatenate([angle, angle], axis=-1)
    if grown == 1.0:
        return jnp.cos(angle), jnp.sin(angle)
    return grown * jnp.cos(angle), grown * jnp.sin(angle)


def rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates x [B, S, H, C] by angles [B, S, C] (rotate-half convention), in float32."""
    y = x.astype(jnp.float32)
    a, b = jnp.split(y, 2, axis=-1)
    rotated = jnp.concatenate([-b, a], axis=-1)
    return (y * cos[:, :, None] + rotated * sin[:, :, None]).astype(x.dtype)


def sincos_2d(position: jax.Array, side: int, dim: int) -> jax.Array:
    """Fixed 2-D sin-cos embedding of ids row·side + column: [...] int32 -> [..., dim] float32.

    The first half of the features comes from the column, the second from the row; each half is
    [sin, cos] (BAGEL `modeling_utils.py`, get_2d_sincos_pos_embed). Computed, never stored.
    """
    frequency = 10000.0 ** (-jnp.arange(dim // 4, dtype=jnp.float32) / (dim / 4))

    def half(k):
        angle = k[..., None].astype(jnp.float32) * frequency.reshape((1,) * k.ndim + (-1,))
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)

    return jnp.concatenate([half(position % side), half(position // side)], axis=-1)


def timestep_sinusoid(t: jax.Array, dim: int = 256) -> jax.Array:
    """[cos, sin] features of t in [0, 1] (not scaled by 1000): [...] -> [..., dim] float32."""
    half = dim // 2
    frequency = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = t[..., None].astype(jnp.float32) * frequency.reshape((1,) * t.ndim + (-1,))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
