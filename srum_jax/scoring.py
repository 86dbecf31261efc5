"""The model's own score of pictures outside a run, and the choice of the best by it.

Owns what a user gets to see of a judgement. The judges are those of the stage `score`
(`stages/judges.py`), put together as the model's `GenerationConfig.score` says.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.typing import DTypeLike

from srum_jax.config import ComputeConfig, Config, ScoreConfig
from srum_jax.core import console
from srum_jax.core.errors import BadInput
from srum_jax.generation.image_sampler import candidate_seed


@dataclasses.dataclass(frozen=True)
class RegionScore:
    """A region: box (x0, y0, x1, y1) in pixels, the upper ends excluded; score in [-1, 1], NaN
    unless status is "ok" (`rewards/judge.py` has the others)."""

    box: tuple[float, float, float, float]
    score: float
    status: str


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """How well a picture fits its prompt: score in [-1, 1], NaN unless status is "ok"."""

    score: float
    status: str
    regions: tuple[RegionScore, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
    """A loaded model as the judge of pictures.

    model: a `stages.loading.LoadedModel`, without an autoencoder · settings: who judges, and how ·
    mesh: where a batch lies · dtype: of products.
    """

    model: Any
    settings: ScoreConfig
    mesh: jax.sharding.Mesh
    dtype: DTypeLike
    _scenes: dict = dataclasses.field(default_factory=dict)  # of prompts that were decomposed

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[ImageScore]:
        """Scores of images uint8 [H,W,3], each by its prompt; none depends on the others.

        Raises BadInput where an external judge cannot be asked, FileNotFoundError or ValueError
        for weights that a proposer reads.
        """
        from srum_jax.rewards.boxes.regions import PromptedImage

        asked = [PromptedImage(*pair) for pair in zip(images, prompts, strict=True)]
        with jax.set_mesh(self.mesh):
            self._decompose(prompts)
            with self._panel.answering(len(asked)):
                judged = self._panel.judge(asked)
        return [
            ImageScore(
                one.image_score,
                one.image_status,
                tuple(RegionScore(r.bbox, r.score, r.status) for r in one.regions),
            )
            for one in judged
        ]

    def _decompose(self, prompts: Sequence[str]) -> None:
        """Has the model take apart the prompts that are new; one of few words needs it for none."""
        from srum_jax.rewards import decompose
        from srum_jax.stages import judges

        new = [prompt for prompt in prompts if prompt not in self._scenes]
        if new and not self.model.tokenizer.word_level:
            how = dict(max_tokens=judges.DECOMPOSED_TOKENS, think=False)
            text = judges.model_text(self.model, self._config, self.mesh, **how)
            self._scenes.update(decompose.decompose_prompts(new, text))

    @functools.cached_property
    def _panel(self):
        from srum_jax.stages import judges

        if "file" in self.settings.proposers:
            raise BadInput('score.proposers: "file" names candidates of a run; use another')
        cfg = judges.scores_alone(self._config)
        return judges.panel(self.model, cfg, self.mesh, scenes=self._scenes)

    @functools.cached_property
    def _config(self) -> Config:
        compute = ComputeConfig(dtype=np.dtype(self.dtype).name)
        return Config(score=self.settings, compute=compute)


def candidate_seeds(seed: int, count: int) -> list[int]:
    """Seeds of `count` candidates for the image of `seed`, 32 bits; the first is its own."""
    return [seed, *(candidate_seed(seed, "best_of", k) for k in range(1, count))]


def best(scores: Sequence[ImageScore]) -> int:
    """The place of the highest score, the first of equals; without any 0, with a warning."""
    if all(math.isnan(one.score) for one in scores):
        why = console.counted(collections.Counter(one.status for one in scores))
        logging.warning("best_of: no candidate has a score (%s); the first is taken", why)
    known = [-math.inf if math.isnan(one.score) else one.score for one in scores]
    return known.index(max(known))
