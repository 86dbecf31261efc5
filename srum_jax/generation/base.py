"""What runs a model of any family: requests go into compiled calls, results come back in order.

A family's own classes say how a request is read, which of them share a call, and what it computes.
"""

import abc
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from srum_jax.core import in_flight, preemption
from srum_jax.core.param_tree import Params
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context
from srum_jax.generation.context import Context, Programs


def cut(
    groups: Iterable[Sequence[int]], batch: int, min_rows: int = 1
) -> Iterator[tuple[Sequence[int], int]]:
    """(places of a call's requests, its rows) of groups whose members may share one, in order.

    batch: requests of a call at most · min_rows: rows are a multiple of it. Raises Preempted where
    a stop is asked for.
    """
    for members in groups:
        # The last call of a group takes the rows of the others: the program is there.
        rows = context.rows_for(len(members), batch, min_rows)
        for first in range(0, len(members), batch):
            preemption.check()
            yield members[first : first + batch], rows


@dataclasses.dataclass(frozen=True)
class GeneratedText:
    """What the model wrote: text, its token ids without marks, whether it ended by itself."""

    text: str
    ids: tuple[int, ...]
    finished: bool


BROKEN = -2  # in place of a token where the logits are not finite: the row ends there


@dataclasses.dataclass(frozen=True, eq=False)
class BaseTextGenerator(abc.ABC):
    """A model writing behind contexts.

    params: None where every call brings its own · batch: contexts a compiled call at most, those of
    like length together · window: tokens of a context with what may be written · min_rows: rows of
    a call are a multiple of it · batch_sharding: where rows lie, None: on the default device ·
    dtype: of products.
    """

    params: Params | None = dataclasses.field(repr=False)
    model: Any
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    batch: int
    window: int
    min_rows: int = 1
    batch_sharding: jax.sharding.Sharding | None = None
    dtype: DTypeLike = jnp.float32
    programs: Programs = dataclasses.field(default_factory=Programs, repr=False)

    def generate(
        self,
        contexts: Sequence[Context],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        stop: str = "each",
        params: Params | None = None,
    ) -> list[GeneratedText]:
        """The text that continues each context, in order; company in a batch changes nothing.

        max_tokens: written at most · temperature 0: the likeliest tokens · seeds: uint32, one a
        context (default 0) · stop: "each" row by itself, or "first": all of a call when its first
        row does, where the family's original does so · params: in place of the generator's own.
        Raises ValueError for a context that exceeds the window with what may be written, BadInput
        where the model's numbers are not finite.
        """
        seeds = [0] * len(contexts) if seeds is None else seeds
        if len(seeds) != len(contexts):
            raise ValueError(f"{len(contexts)} contexts, but {len(seeds)} seeds")
        read = [self.read(one, max_tokens) for one in contexts]
        how = max_tokens, stop, self.params if params is None else params
        calls = self._sent(read, seeds, temperature, *how)
        written: dict[int, GeneratedText] = {}
        for part, (ids, counts) in in_flight.fetched(calls):
            for row, i in enumerate(part):
                context.check_finite(BROKEN not in ids[row, : counts[row] + 1], "a text")
                mine = tuple(ids[row, : counts[row]].tolist())
                ended = counts[row] < max_tokens and ids[row, counts[row]] == self.model.eos
                written[i] = GeneratedText(self.decode(mine), mine, bool(ended))
        return [written[i] for i in range(len(contexts))]

    def _sent(
        self,
        read: Sequence[Any],
        seeds: Sequence[int],
        temperature: float,
        max_tokens: int,
        stop: str,
        params: Params,
    ) -> Iterator[tuple[Sequence[int], tuple[jax.Array, jax.Array]]]:
        for part, rows in cut(self._groups(read, stop), self.batch, self.min_rows):
            seed, limit = np.zeros(rows, np.uint32), np.zeros(rows, np.int32)
            seed[: len(part)], limit[: len(part)] = [seeds[i] for i in part], max_tokens
            per_row = seed, np.full(rows, temperature, np.float32), limit
            yield part, self._call([read[i] for i in part], per_row, max_tokens, stop, params)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of what was written."""
        return self.tokenizer.decode(ids)

    @abc.abstractmethod
    def read(self, one: Context, max_tokens: int) -> Any:
        """What a call reads of a context. Raises ValueError where it exceeds the window."""

    @abc.abstractmethod
    def _groups(self, read: Sequence[Any], stop: str) -> Iterable[Sequence[int]]:
        """Places of the contexts that may share a call, together."""

    @abc.abstractmethod
    def _call(
        self,
        read: Sequence[Any],
        per_row: tuple[np.ndarray, np.ndarray, np.ndarray],
        max_tokens: int,
        stop: str,
        params: Params,
    ) -> tuple[jax.Array, jax.Array]:
        """One compiled call, which may be in the making: as `text_generator.decode`, rows of no
        context behind the others; per_row: seeds, temperatures and limits."""
