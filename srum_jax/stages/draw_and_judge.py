"""Prompts drawn from given noise, and judged: the one way that stages and the monitor do both.

Owns what a candidate's record is made of and how a judge panel gets to see it. Whoever draws says
which sampler, prompts and seeds; where records are kept is the caller's own.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from srum_jax.core.param_tree import Params
from srum_jax.data import images as pictures
from srum_jax.rewards.boxes.regions import PromptedImage
from srum_jax.rewards.judge import Judgement
from srum_jax.stages.judges import JudgePanel

Record = Mapping[str, Any]  # of a candidate, as `data/shards.py` describes it


@dataclasses.dataclass(frozen=True)
class SeededPrompt:
    """Image `k` of a prompt, from the noise of `seed`, 32 bits."""

    prompt_id: int
    prompt: str
    category: str
    k: int
    seed: int


class PromptSampler(Protocol):
    """`ImageSampler`, or what draws prompts in its place (`thinking.ThinkingSampler`)."""

    def stream_prompts(
        self,
        several: Iterable[tuple[Sequence[str], Sequence[int]]],
        *,
        params: Params | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `ImageSampler.stream_prompts`."""


def draw(
    prompts: Sequence[SeededPrompt], sampler: PromptSampler, *, params: Params | None = None
) -> list[dict[str, Any]]:
    """A candidate record of each prompt, by one call of the sampler.

    "image" is uint8 [H,W,3], "latent" float32 [h,w,p·p·Z] · params: the model's, in place of the
    sampler's own. Raises ValueError for a prompt the model cannot read.
    """
    return next(drawn([prompts], sampler, params=params))


def drawn(
    several: Iterable[Sequence[SeededPrompt]],
    sampler: PromptSampler,
    *,
    params: Params | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """As `draw` of several lists, in order: the sampler begins the next one before the last
    pictures of a list are fetched."""
    wanted, asked = itertools.tee(several)
    texts = (([one.prompt for one in part], [one.seed for one in part]) for part in asked)
    found = sampler.stream_prompts(texts, params=params)
    for part, (images, latents) in zip(wanted, found, strict=False):
        yield [record(*one) for one in zip(part, images, latents, strict=True)]


def record(one: SeededPrompt, image: np.ndarray, latent: np.ndarray) -> dict[str, Any]:
    """A candidate's record: uint8 [H,W,3] and float32 [h,w,p·p·Z] of what was asked for."""
    name = f"{one.prompt_id}-{one.k}"
    return {"id": name, **dataclasses.asdict(one), "image": image, "latent": latent}


def encoded(record: Record) -> dict[str, Any]:
    """The record as shards store it, its image as PNG."""
    return {**record, "image": pictures.encode_png(record["image"])}


def prompted_images(records: Sequence[Record]) -> list[PromptedImage]:
    """Candidate records as judges and proposers get them."""
    return [PromptedImage(record["image"], record["prompt"], record["id"]) for record in records]


def judge(
    records: Sequence[Record], panel: JudgePanel, *, params: Params | None = None
) -> list[Judgement]:
    """The panel's judgement of each candidate; params as in `JudgePanel.judge`."""
    return panel.judge(prompted_images(records), params=params)
