"""Which prompts a run draws, round by round, and which it holds back.

Owns the order of a list of prompts and its split. A list from a file or a data set is sampled: its
categories evenly, by the run's seed, so that whatever part of it a run draws is like the whole; a
world's list is mixed as it is made. Behind the prompts that all rounds draw come those held back,
which no round draws: the training monitor looks at them, and who chooses by `adjust.prompts =
"held_back"`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from srum_jax.config import Config
from srum_jax.core import registry
from srum_jax.data import prompts as prompt_lists
from srum_jax.data.prompt_reader import ANYBODY, PromptReader
from srum_jax.data.prompts import LoadedPrompts, Prompt

HELD_BACK = 64  # prompts at most, and no more than a tenth of a list


@dataclasses.dataclass(frozen=True)
class Rollout:
    """The prompts of a run.

    drawable: in the order in which rounds draw them · held_back: prompts that are not among those,
    but of a list `too_short` to spare any, which are · given: as read.
    """

    drawable: tuple[Prompt, ...]
    held_back: tuple[Prompt, ...]
    too_short: bool
    given: LoadedPrompts

    @classmethod
    def of(cls, cfg: Config, reader: PromptReader = ANYBODY) -> "Rollout":
        """That of a run. Raises FileNotFoundError or ValueError for a list that cannot be used."""
        c, wanted = cfg.generate, cfg.rounds * cfg.generate.count
        given = prompt_lists.read(c.prompts, limit=c.rejects, reader=reader)
        found = given.prompts
        if c.order == "sampled" and not _made(c.prompts):
            found = sampled(found, cfg.seed)
        kept = spare(len(found))
        if not kept:
            logging.warning("%s", short(c.prompts, len(found)))
            return cls(found, found[-HELD_BACK:], True, given)
        end = min(wanted, len(found) - kept)
        if end < wanted:
            logging.info(
                "generate: of the %d prompts of %s %d are held back, and %d drawn",
                *(len(found), c.prompts, kept, end),
            )
        behind = found[end : end + max(kept, min(HELD_BACK, len(found) - end))]
        return cls(found[:end] + found[end + len(behind) :], behind, False, given)

    def of_round(self, number: int, count: int) -> tuple[Prompt, ...]:
        """The `count` prompts of a round, from 0: those that follow the round's before; a list that
        ends begins again, and one of fewer gives all it has."""
        start = number * count % len(self.drawable)
        return (self.drawable[start:] + self.drawable[:start])[:count]


def spare(count: int) -> int:
    """How many of so many prompts are held back: HELD_BACK, or a tenth; 0 of too few."""
    return min(HELD_BACK, count // 10)


def short(source: str, count: int) -> str:
    """What is said of a list too short to hold prompts back."""
    return (
        f"generate.prompts: {source} has {count} prompts, too few to hold any back: the training "
        "monitor looks at prompts that are trained on; from 10 on a tenth is kept apart"
    )


def sampled(prompts: Sequence[Prompt], seed: int) -> tuple[Prompt, ...]:
    """All of the prompts, so that of the first M there are of every category its share, to within
    one; which ones and in which order, the seed says."""
    rng = np.random.default_rng((seed, 0x70))
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.category, []).append(prompt)
    placed = []
    for group in groups.values():
        begin = rng.random()  # in (0, 1): small categories do not all come first
        order = rng.permutation(len(group))
        placed += [((i + begin) / len(group), group[j]) for i, j in enumerate(order)]
    return tuple(prompt for _, prompt in sorted(placed, key=lambda one: one[0]))


def _made(source: str) -> bool:
    """Whether a world makes these prompts."""
    return source.partition(":")[0] in registry.WORLDS and ":" in source
