"""Work one step ahead: the next call is on the device before the results of the last are fetched.

Owns how many calls are under way at once. Calls are sent by the one thread that asks for results,
in order, so that all devices of a mesh get them in the same order.
"""

import collections
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax

from srum_jax.core import device_clock
from srum_jax.core.errors import Preempted
from srum_jax.core.sharding import fetch

AHEAD = 1  # calls that are sent before the results of one are fetched: their memory is held

T, Key = TypeVar("T"), TypeVar("Key")


def ahead(things: Iterable[T]) -> Iterator[T]:
    """The same things in order, each given once AHEAD more were asked for.

    Preempted, where the things raise it, waits until those that came before are given.
    """
    waiting: collections.deque[T] = collections.deque()
    stopped = None
    try:
        for thing in things:
            waiting.append(thing)
            if len(waiting) > AHEAD:
                yield waiting.popleft()
    except Preempted as e:
        stopped = e
    while waiting:
        yield waiting.popleft()
    if stopped:
        raise stopped


def fetched(calls: Iterable[tuple[Key, Any]]) -> Iterator[tuple[Key, Any]]:
    """What calls make, on this host: (key, tree of NumPy arrays) each, in order.

    calls: key and results of each call, a tree of arrays that may still be in the making; the
    iterable sends a call when it is asked for the next item.
    """
    for key, results in ahead(_told(calls)):
        yield key, jax.tree.map(fetch, results)


def _told(calls: Iterable[tuple[Key, Any]]) -> Iterator[tuple[Key, Any]]:
    for key, results in calls:
        device_clock.sent(results)
        yield key, results
