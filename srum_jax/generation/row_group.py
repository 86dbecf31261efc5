"""Requests that go on together, each in a row of arrays on the devices; they come and go at steps.

Numbers of rows are few, so that few programs are compiled; what stands in a row depends on no other
one.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srum_jax.core.param_tree import Params


def capacity(count: int, window: int) -> int:
    """Slots of a cache for `count` tokens: the smallest of 64·2ⁿ above, or all of the window."""
    slots = 64
    while slots < count:
        slots *= 2
    return max(min(slots, window), count)


def _axis(leaf: jax.Array) -> int:
    """Which axis rows are: of a cache whose layers are stacked [L,B,T,K,C] the second."""
    return 1 if leaf.ndim == 5 else 0


@jax.jit
def _moved(state: Params, source: jax.Array) -> Params:
    """Rows `source` of a state, in this order."""
    return jax.tree.map(lambda x: jnp.take(x, source, axis=_axis(x), mode="clip"), state)


@functools.partial(jax.jit, donate_argnums=0)
def _placed(state: Params, made: Params, at: jax.Array) -> Params:
    """The state with the rows of `made` at places `at`; those past its end are left out."""

    def put(x, new):
        index = (slice(None),) * _axis(x) + (at,)
        return x.at[index].set(new.astype(x.dtype), mode="drop")

    return jax.tree.map(put, state, made)


class RowGroup:
    """Requests in rows: `state` is a tree of arrays, `held` the request in each row or None.

    rows_for(count): how many rows the arrays have for so many requests.
    """

    def __init__(self, rows_for: Callable[[int], int]):
        self.rows_for = rows_for
        self.held: list[Any] = []
        self.state: Params = None

    @property
    def requests(self) -> list[Any]:
        """Those that are in it."""
        return [one for one in self.held if one is not None]

    def place(self, requests: Sequence[Any], made: Params) -> None:
        """Takes in requests whose rows come first in the state `made`."""
        count, going = len(requests), len(self.requests)
        rows = self.rows_for(going + count)
        if not going:
            self.state = _moved(made, np.minimum(np.arange(rows), count - 1).astype(np.int32))
            self.held = [*requests, *[None] * (rows - count)]
            return
        if rows > len(self.held):
            self._resize(rows)
        free = [i for i, one in enumerate(self.held) if one is None][:count]
        new = _rows(made)
        at = np.full(new, len(self.held), np.int32)
        at[:count] = free
        self.state = _placed(self.state, made, at)
        for row, request in zip(free, requests, strict=True):
            self.held[row] = request

    def taken(self, requests: Sequence[Any]) -> Params:
        """The rows of these requests, in order, as `place` takes them; they leave."""
        source = [self.held.index(one) for one in requests]
        rows = self.rows_for(len(source))
        index = np.array([*source, *source[:1] * (rows - len(source))], np.int32)
        made = _moved(self.state, index)
        self.leave(requests)
        return made

    def leave(self, requests: Sequence[Any]) -> None:
        """Lets requests go; rows that nobody needs are given up."""
        gone = set(map(id, requests))
        self.held = [None if id(one) in gone else one for one in self.held]
        going = len(self.requests)
        if not going:
            self.held, self.state = [], None
        elif self.rows_for(going) < len(self.held):
            self._resize(self.rows_for(going))

    def _resize(self, rows: int) -> None:
        source = [i for i, one in enumerate(self.held) if one is not None]
        held = [self.held[i] for i in source]
        index = np.array([*source, *[0] * (rows - len(source))], np.int32)
        self.state = _moved(self.state, index)
        self.held = [*held, *[None] * (rows - len(held))]


def _rows(state: Params) -> int:
    leaf = jax.tree.leaves(state)[0]
    return leaf.shape[_axis(leaf)]
