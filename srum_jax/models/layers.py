"""Layers both towers and both experts share: norms, linear maps, RoPE, sin-cos positions, time.

Everything is a pure function of arrays. Norms and angles are float32 whatever the compute dtype.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from srum_jax.core.params import Params


def _over(vector: jax.Array, x: jax.Array) -> jax.Array:
    """An array of the last axes, shaped to broadcast over x."""
    return vector.reshape((1,) * (x.ndim - vector.ndim) + vector.shape)


def rms_norm(x: jax.Array, p: Params, eps: float) -> jax.Array:
    """RMSNorm over the last axis: normalised in float32, cast back, then times the gain."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return y.astype(x.dtype) * _over(p["scale"].astype(x.dtype), x)


def layer_norm(x: jax.Array, p: Params, eps: float) -> jax.Array:
    """LayerNorm over the last axis with gain and bias, computed in float32."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * _over(p["scale"], x) + _over(p["bias"], x)).astype(x.dtype)


def linear(x: jax.Array, p: Params) -> jax.Array:
    """x [..., I] · w [I, ...out] + b: the outputs keep the weight's trailing axes (split heads).

    An int8 w comes with a float32 "scale" [...out] (`models/int8.py`), which multiplies the
    product: the cast of w then is all that stands before it. The product is one plain matrix
    product: CPUs are several times slower at the gradient of a contraction over two axes.
    """
    w = p["w"].astype(x.dtype)
    y = x.reshape(-1, x.shape[-1]) @ w.reshape(w.shape[0], -1)
    y = y.reshape(x.shape[:-1] + w.shape[1:])
    if "scale" in p:
        y = (y * _over(p["scale"], y)).astype(x.dtype)
    if "b" in p:
        y = y + _over(p["b"].astype(x.dtype), y)
    return y


def merge_heads(x: jax.Array, p: Params) -> jax.Array:
    """x [B, S, H, C] · w [H, C, D] + b: the output projection of attention; w as in `linear`."""
    w = rearrange(p["w"], "h c d -> (h c) d")
    return linear(rearrange(x, "b s h c -> b s (h c)"), {**p, "w": w})


def rope_angles(position: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """(cos, sin), each [B, S, C] float32, of half-split RoPE for integer positions [B, S]."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    # HIGHEST: a bfloat16 pass would round positions above 256.
    angle = jnp.einsum(
        "bs,f->bsf", position.astype(jnp.float32), frequency, precision=jax.lax.Precision.HIGHEST
    )
    angle = jnp.concatenate([angle, angle], axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


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
