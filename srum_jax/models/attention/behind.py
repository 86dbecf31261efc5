"""Attention of new tokens that all see each other, behind what their rows have read.

As the tokens of noisy images do, with the marks around them. No mask is made: which keys are real
says everything. The branches of a row (of guidance) have caches of their own, each of its length.
"""

import functools
from collections.abc import Sequence
from types import ModuleType

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import struct
from jax.sharding import PartitionSpec

from srum_jax.models.attention import lanes
from srum_jax.models.attention.keys import Keys


@struct.dataclass
class Past:
    """What one branch of every row has read: keys and values k, v [B,T,K,C] of which each row has
    the first `length` [B]."""

    k: jax.Array
    v: jax.Array
    length: jax.Array

    def keys(self) -> Keys:
        """The slots in use."""
        return Keys(self.k, self.v, jnp.arange(self.k.shape[1])[None] < self.length[:, None])


def behind(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    real: jax.Array | None,
    pasts: Sequence[Past],
    name: str,
) -> jax.Array:
    """Attention of new tokens to the real ones among them and to their row's past.

    q [B·n,S,H,C] (`scaled`), k, v [B·n,S,K,C], real bool [B·n,S] (None: all): row b·n + i is branch
    i of row b, behind row b of `pasts[i]`. `name`: of a back-end. Returns [B·n,S,H,C], without
    meaning where a token is not real. Inference only. Raises ValueError for another name.
    """
    backend = lanes.named(name)
    attend = functools.partial(_attend, backend)
    axes = lanes.cut_by_mesh(pasts[0].length.shape[0], [])
    if axes is None or name not in lanes.OPAQUE:
        return attend(q, k, v, real, tuple(pasts))
    rows = PartitionSpec(axes.rows)
    heads = PartitionSpec(axes.rows, None, axes.heads(k.shape[2]))
    cut = tuple(Past(heads, heads, rows) for _ in pasts)
    specs = (heads, heads, heads, rows, cut)
    run = lanes.shard_map(attend, in_specs=specs, out_specs=heads)
    return run(q, k, v, real, tuple(pasts))


def _attend(backend: ModuleType, q, k, v, real, pasts: tuple[Past, ...]) -> jax.Array:
    def branch(x, i):
        return None if x is None else x[i :: len(pasts)]

    def read(i, past):
        own = Keys(*(branch(x, i) for x in (k, v, real)))
        return backend.read(branch(q, i), [own, past.keys()] if past.k.shape[1] else [own])

    found = [read(i, past) for i, past in enumerate(pasts)]
    return rearrange(jnp.stack(found), "n b ... -> (b n) ...")
