"""Prompts that the model plans for in words before it draws them (`generate.think`), and which
models can think at all.

Owns how a plan comes between a prompt and its images, as BAGEL's inferencer does it: a system text
asks for the plan, the likeliest one is written once for all images of the prompt, and the image is
drawn behind system text, prompt and plan; guidance compares with the system text alone.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType

import jax
import numpy as np

from srum_jax import programs
from srum_jax.config import Config
from srum_jax.core.errors import BadInput
from srum_jax.core.param_tree import Params
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import image_request
from srum_jax.generation.image_request import ImageRequest
from srum_jax.generation.image_sampler import ImageSampler
from srum_jax.generation.system_prompts import THINK_GENERATION, THINK_UNDERSTANDING
from srum_jax.generation.text_generator import TextGenerator
from srum_jax.stages.draw_and_judge import PromptSampler
from srum_jax.stages.loading import LoadedModel


def check(family: ModuleType, tokenizer: Tokenizer, what: str) -> None:
    """Raises BadInput, naming the setting `what`, for a model that draws behind nothing but a
    prompt, or that lacks the words of the requests to think."""
    if why := family.ONLY_WORDS:
        raise BadInput(f"{what}: {why}")
    for text in (THINK_GENERATION, THINK_UNDERSTANDING):
        try:
            tokenizer.text(text)
        except ValueError as e:
            raise BadInput(
                f"{what}: this model cannot think: it lacks words of the request to ({e})"
            ) from e


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedSampler:
    """An `ImageSampler` of prompts whose plans are written; plans: {prompt: plan}."""

    sampler: ImageSampler
    tokenizer: Tokenizer
    plans: Mapping[str, str]

    def stream_prompts(
        self,
        several: Iterable[tuple[Sequence[str], Sequence[int]]],
        *,
        params: Params | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `ImageSampler.stream_prompts`."""
        requests = (_requests(self, self.plans, *one) for one in several)
        yield from _streamed(self, requests, params)


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
        requests = (_requests(self, self._plans(one[0], params), *one) for one in several)
        yield from _streamed(self, requests, params)

    def _plans(self, prompts: Sequence[str], params: Params | None) -> dict[str, str]:
        system, wanted = self.tokenizer.text(THINK_GENERATION), list(dict.fromkeys(prompts))
        contexts = [(system, self.tokenizer.text(prompt)) for prompt in wanted]
        written = self.writer.generate(contexts, max_tokens=self.max_tokens, params=params)
        return {prompt: plan.text for prompt, plan in zip(wanted, written, strict=True)}


def _requests(
    of: PlannedSampler | ThinkingSampler,
    plans: Mapping[str, str],
    prompts: Sequence[str],
    seeds: Sequence[int],
) -> list[ImageRequest]:
    system, text = of.tokenizer.text(THINK_GENERATION), of.tokenizer.text
    read = {
        one: image_request.guidance_contexts((text(one),), system=system, thought=text(plans[one]))
        for one in dict.fromkeys(prompts)
    }
    size = of.sampler.settings.size
    return [
        ImageRequest(**read[prompt], size=size, seed=seed)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def _streamed(
    of: PlannedSampler | ThinkingSampler,
    requests: Iterable[Sequence[ImageRequest]],
    params: Params | None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for found in of.sampler.stream(requests, params=params):
        yield np.stack([one.image for one in found]), np.stack([one.latent for one in found])


def sampler(loaded: LoadedModel, cfg: Config, mesh: jax.sharding.Mesh) -> PromptSampler:
    """What draws the candidates of a run, as `generate` and `sample` say. Raises BadInput for a
    model that cannot."""
    programs.check_thinking(cfg, loaded.cfg)
    drawing = loaded.image_sampler(cfg, mesh)
    if not cfg.generate.think:
        return drawing
    limit, batch = cfg.generate.think_tokens, cfg.sample.batch
    writer = loaded.text_generator(cfg, mesh, batch=batch, window=loaded.cfg.max_text)
    return ThinkingSampler(drawing, writer, loaded.tokenizer, limit)
