"""Keys and values that all queries of a row read, in pieces: what is new, what a cache holds."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Keys:
    """A piece: k, v [B,T,K,C], and which of its tokens are real, bool [B,T]; None: all of them."""

    k: jax.Array
    v: jax.Array
    real: jax.Array | None = None


def joined(pieces: Sequence[Keys]) -> Keys:
    """The pieces one behind the other, as one."""
    real = None
    if any(piece.real is not None for piece in pieces):
        shapes = [piece.k.shape[:2] for piece in pieces]
        every = [piece.real for piece in pieces]
        real = [jnp.ones(s, bool) if x is None else x for s, x in zip(shapes, every, strict=True)]
        real = jnp.concatenate(real, axis=1)
    k, v = ([getattr(piece, name) for piece in pieces] for name in ("k", "v"))
    return Keys(jnp.concatenate(k, axis=1), jnp.concatenate(v, axis=1), real)
