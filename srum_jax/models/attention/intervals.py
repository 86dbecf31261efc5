"""Masks as intervals: where every query's keys, in packed order, lie in one run of places.

That holds where a sample shows nothing after an item that is hidden from what follows (a noisy
image, a branch of questions) while something visible came before it. Text to image, editing with
one noisy image at the end, and answers to one question at a time are so; a noisy image in
mid-sample is not.
"""

from typing import Any

import jax
import jax.numpy as jnp

from srum_jax.data.schema import Tokens
from srum_jax.models.attention.mask_rule import seen


def order(tokens: Tokens) -> jax.Array:
    """The slot of every place in packed order, int32 [B,S]; padding comes last."""
    index = tokens.index
    last = jnp.iinfo(index.dtype).max
    return jnp.argsort(jnp.where(index < 0, last, index), axis=1, stable=True)


def take(tree: Any, order: jax.Array) -> Any:
    """Every array [B,S,...] of a tree with its second axis in the given order."""

    def one(x):
        at = order.reshape(order.shape + (1,) * (x.ndim - 2))
        return jnp.take_along_axis(x, at, axis=1)

    return jax.tree.map(one, tree)


def _hull(some: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """(first, last + 1) of what is true along an axis, int32; 0, 0 for nothing."""
    shape = [1] * some.ndim
    shape[axis] = size = some.shape[axis]
    slot = jnp.arange(size, dtype=jnp.int32).reshape(shape)
    first = jnp.min(jnp.where(some, slot, size), axis=axis)
    end = jnp.max(jnp.where(some, slot + 1, 0), axis=axis)
    return jnp.minimum(first, end), end


def bounds(queries: Tokens, keys: Tokens) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(first, end, whole), each [B,S]: the keys of a query are the slots first … end - 1 of `keys`.

    first and end are int32, 0 where a query sees nothing. `whole` is False where slots between
    them are hidden: then no interval says what the query sees.
    """
    some = seen(queries, keys)
    first, end = _hull(some, -1)
    return first, end, jnp.sum(some, axis=-1, dtype=jnp.int32) == end - first
