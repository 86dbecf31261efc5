"""Requests that go on together, each in a row of arrays on the devices; they come and go at steps.

Numbers of rows are few, and arrays grow and shrink from one number to the next, so that few
programs are compiled; what stands in a row depends on no other one.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srum_jax.core.param_tree import Params


def row_numbers(most: int, least: int = 1, *, finely: bool = False) -> tuple[int, ...]:
    """The numbers of rows that arrays may have: least·(1, 2, 4, 8, …) up to `most` in multiples of
    least; finely: least·(1, 2, 3, 4, 6, 8, 12, …), where a step costs as much as it has rows."""
    most = -(-most // least)
    found, power = {most}, 1
    while power < most:
        found |= {power} | ({3 * power // 2} if finely and power > 1 else set())
        power *= 2
    return tuple(least * count for count in sorted(found) if count <= most)


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
def _taken(state: Params, source: jax.Array) -> Params:
    """Rows `source` of a state, in this order."""
    return jax.tree.map(lambda x: jnp.take(x, source, axis=_axis(x), mode="clip"), state)


@functools.partial(jax.jit, donate_argnums=0)
def _placed(state: Params, row: Params, at: jax.Array) -> Params:
    """The state with a row, itself a state of one, in place of row number `at`."""

    def put(x, new):
        return jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), at, _axis(x))

    return jax.tree.map(put, state, row)


class RowGroup:
    """Requests in rows: `state` is a tree of arrays, `held` the request in each row or None.

    numbers: of rows that the arrays may have, from few to many.
    """

    def __init__(self, numbers: Sequence[int]):
        self.numbers = tuple(numbers)
        self.held: list[Any] = []
        self.state: Params = None

    @property
    def requests(self) -> list[Any]:
        """Those that are in it."""
        return [one for one in self.held if one is not None]

    def rows_for(self, count: int) -> int:
        """The least number of rows for so many requests."""
        return next(number for number in self.numbers if number >= count)

    def place(self, requests: Sequence[Any], made: Params) -> None:
        """Takes in requests whose rows come first in the state `made`."""
        rows = _rows(made)
        if not self.requests and rows in self.numbers:
            self.state = made
            self.held = [*requests, *[None] * (rows - len(requests))]
            return
        for i, request in enumerate(requests):
            self._put(request, made if rows == 1 else _taken(made, _index([i])))

    def _put(self, request: Any, row: Params) -> None:
        if None not in self.held:
            self._resized(self.rows_for(len(self.held) + 1))
        at = self.held.index(None)
        self.state = _placed(self.state, row, np.int32(at))
        self.held[at] = request

    def moved(self, requests: Sequence[Any], to: "RowGroup") -> None:
        """Hands requests over to a group whose state has the same leaves."""
        for one in requests:
            row = self.passed(_taken(self.state, _index([self.held.index(one)])), to)
            to.place([one], row)
        self.leave(requests)

    def wait(self) -> None:
        """Returns when the devices are done with what was asked of them: until then they compute,
        and what is asked next waits."""
        jax.block_until_ready(self.state)

    def passed(self, row: Params, to: "RowGroup") -> Params:
        """What of a row another group has."""
        return row

    def leave(self, requests: Sequence[Any]) -> None:
        """Lets requests go; rows that nobody needs are given up."""
        gone = set(map(id, requests))
        self.held = [None if id(one) in gone else one for one in self.held]
        going = len(self.requests)
        if not going:
            self.held, self.state = [], None
            return
        while (less := self._below()) and less >= going:
            self._resized(less)

    def _below(self) -> int:
        """The number of rows before the one that the arrays have; 0: there is none."""
        return max((n for n in self.numbers if n < len(self.held)), default=0)

    def _resized(self, rows: int) -> None:
        """The requests in arrays of so many rows, one number up or down."""
        source = [i for i, one in enumerate(self.held) if one is not None]
        held = [self.held[i] for i in source]
        self.state = _taken(self.state, _index([*source, *[0] * (rows - len(source))]))
        self.held = [*held, *[None] * (rows - len(held))]


def _index(rows: Sequence[int]) -> np.ndarray:
    return np.array(rows, np.int32)


def _rows(state: Params) -> int:
    leaf = jax.tree.leaves(state)[0]
    return leaf.shape[_axis(leaf)]
