"""Candidates drawn by noise: their records have the steps that `flow_grpo` learns from.

Owns the names and shapes of what is kept of them beside the latent. Where a config has no such
steps, candidates are drawn as always (`draw_and_judge.py`).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from srum_jax.config import GenerateConfig
from srum_jax.generation.image_sampler import ImageSampler
from srum_jax.generation.stochastic import NoisySteps
from srum_jax.stages import draw_and_judge
from srum_jax.stages.draw_and_judge import SeededPrompt

FIELDS = ("trajectory", "log_probs", "times", "deviations")


def shapes(c: GenerateConfig, latent: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """{field: shape} beside a latent of this shape; {} of candidates without steps by noise."""
    count = c.stochastic_steps
    if not count:
        return {}
    return dict(zip(FIELDS, ((count + 1, *latent), (count,), (count + 1,), (count,)), strict=True))


@dataclasses.dataclass(frozen=True)
class NoisyDrawing:
    """Draws prompts by noise in the way of `draw_and_judge.drawn`."""

    sampler: ImageSampler
    steps: int
    noise: float

    def records(self, several: Iterable[Sequence[SeededPrompt]]) -> Iterator[list[dict[str, Any]]]:
        """Candidate records of each list, with FIELDS."""
        for part in several:
            drawing = NoisySteps(self.steps, self.noise)
            texts, seeds = [one.prompt for one in part], [one.seed for one in part]
            found = self.sampler.sample(self.sampler.plain(texts, seeds), denoiser=drawing)
            kept = drawing.records(found[0].latent.shape[:2])
            yield [
                {**draw_and_judge.record(one, image.image, image.latent), **more}
                for one, image, more in zip(part, found, kept, strict=True)
            ]
