"""Contexts that begin with the same pictures: read once, in one row, what differs as branches.

A branch sees what the row begins with and itself, as the training forward's questions about a
picture do. Each context's cache is then put together from the slots of the row.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import struct

from srum_jax.data.schema import Branch, Text
from srum_jax.generation import context
from srum_jax.generation.context import Context
from srum_jax.models.bagel import mot


@struct.dataclass
class Places:
    """Where contexts lie among packed rows: arrays int32 [R], one a context.

    row: its row · shared: slots of the row's beginning · start: where its own tokens begin ·
    length: its tokens, the shared ones among them · position: RoPE's, which comes next · slots: of
    the caches that are made of them.
    """

    row: np.ndarray
    shared: np.ndarray
    start: np.ndarray
    length: np.ndarray
    position: np.ndarray
    slots: int = struct.field(pytree_node=False)


def spread(cache: mot.Cache, at: Places) -> mot.Cache:
    """The cache of each context, from that of the rows, in packed order, that they lie in."""
    slot = jnp.arange(at.slots)[None]
    shared, start = at.shared[:, None], at.start[:, None]
    source = jnp.where(slot < shared, slot, start + slot - shared)
    source = jnp.minimum(source, cache.k.shape[2] - 1)
    k, v = (x[:, at.row[:, None], source] for x in (cache.k, cache.v))
    return mot.Cache(k, v, jnp.asarray(at.length), jnp.asarray(at.position))


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What a context begins with, up to its last picture: how many items, and what they hold."""

    items: int
    content: tuple[bytes, ...]

    @classmethod
    def of(cls, one: Context) -> "Beginning":
        """That of a context; of a text alone nothing."""
        pictures = [i for i, item in enumerate(one) if not isinstance(item, Text)]
        items = pictures[-1] + 1 if pictures else 0
        return cls(items, tuple(map(_digest, one[:items])))


def _digest(item) -> bytes:
    """What two equal items share, and others do not."""
    found = hashlib.blake2b(type(item).__name__.encode())
    for field in dataclasses.fields(item):
        value = np.asarray(getattr(item, field.name))
        found.update(f"{field.name} {value.dtype} {value.shape}".encode())
        found.update(value.tobytes())
    return found.digest()


def grouped(begins: Sequence[Beginning]) -> list[list[int]]:
    """Numbers of contexts that begin with the same pictures; each one without any is alone."""
    groups: dict[object, list[int]] = {}
    for i, one in enumerate(begins):
        groups.setdefault(one if one.items else i, []).append(i)
    return list(groups.values())


def rows(
    contexts: Sequence[Context], begins: Sequence[Beginning], count: int, slots: int
) -> tuple[list[Context], Places]:
    """(a row for each beginning, where the contexts lie in them); Places of `count` contexts, those
    past the last of nothing. slots: as of `Places`."""
    made: list[Context] = []
    place = np.zeros((5, count), np.int32)
    for row, group in enumerate(grouped(begins)):
        items = begins[group[0]].items
        shared_items = contexts[group[0]][:items]
        start = shared = context.extent(shared_items)[0]
        for i in group:
            length, position = context.extent(contexts[i])
            place[:, i] = row, shared, start, length, position
            start += length - shared
        own = (contexts[i][items:] for i in group)
        made.append((*shared_items, *(Branch(texts) for texts in own if texts)))
    return made, Places(*place, slots=slots)
