"""Prompts that the model plans for in words before it draws them (`generate.think`).

Owns how a plan comes between a prompt and its images, as BAGEL's inferencer does it: a system text
asks for the plan, the likeliest one is written once for all images of the prompt, and the image is
drawn behind system text, prompt and plan; guidance compares with the system text alone.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from srum_jax import programs
from srum_jax.config import Config
from srum_jax.core.errors import BadInput
from srum_jax.core.param_tree import Params
from srum_jax.data.schema import Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import image_request
from srum_jax.generation.image_request import ImageRequest
from srum_jax.generation.image_sampler import ImageSampler
from srum_jax.generation.system_prompts import THINK_GENERATION
from srum_jax.generation.text_generator import TextGenerator
from srum_jax.stages.draw_and_judge import PromptSampler
from srum_jax.stages.loading import LoadedModel


def request(tokenizer: Tokenizer) -> Text:
    """The system text. Raises BadInput where the model lacks its words."""
    try:
        return tokenizer.text(THINK_GENERATION)
    except ValueError as e:
        raise BadInput(
            f"generate.think: the model lacks words of the request to think ({e}); set it to False"
        ) from e


@dataclasses.dataclass(frozen=True, eq=False)
class ThinkingSampler:
    """An `ImageSampler` of prompts that are thought about; max_tokens: of a plan."""

    sampler: ImageSampler
    writer: TextGenerator
    tokenizer: Tokenizer
    max_tokens: int

    def stream_prompts(
        self,
        several: Iterable[tuple[Sequence[str], Sequence[int]]],
        *,
        params: Params | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `ImageSampler.stream_prompts`."""
        requests = (self._requests(prompts, seeds, params) for prompts, seeds in several)
        for found in self.sampler.stream(requests, params=params):
            yield np.stack([one.image for one in found]), np.stack([one.latent for one in found])

    def _requests(
        self, prompts: Sequence[str], seeds: Sequence[int], params: Params | None
    ) -> list[ImageRequest]:
        system = request(self.tokenizer)
        texts = {prompt: self.tokenizer.text(prompt) for prompt in dict.fromkeys(prompts)}
        written = self.writer.generate(
            [(system, text) for text in texts.values()], max_tokens=self.max_tokens, params=params
        )
        read = {}
        for (prompt, text), plan in zip(texts.items(), written, strict=True):
            thought = self.tokenizer.text(plan.text)
            read[prompt] = image_request.guidance_contexts((text,), system=system, thought=thought)
        size = self.sampler.settings.size
        return [
            ImageRequest(**read[prompt], size=size, seed=seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]


def sampler(loaded: LoadedModel, cfg: Config, mesh: jax.sharding.Mesh) -> PromptSampler:
    """What draws the candidates of a run, as `generate` and `sample` say. Raises BadInput for a
    model that cannot."""
    programs.check_drawing(cfg.generate, loaded.cfg)
    drawing = loaded.image_sampler(cfg, mesh)
    if not cfg.generate.think:
        return drawing
    limit, batch = cfg.generate.think_tokens, cfg.sample.batch
    writer = loaded.text_generator(cfg, mesh, batch=batch, window=loaded.cfg.max_text)
    return ThinkingSampler(drawing, writer, loaded.tokenizer, limit)
