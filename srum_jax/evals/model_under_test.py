"""A model that a suite asks: it draws, answers, writes and edits, in whole compiled calls.

Owns how each kind of request is put to a model. What it replies is a function of the request and
the weights alone; what else is asked beside it changes nothing.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from srum_jax.config import SampleConfig
from srum_jax.data import languages
from srum_jax.data.images import latent_image, picture
from srum_jax.data.schema import LayoutSizes
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.evals.suite import AnswerRequest, DrawRequest, EditRequest, TextRequest
from srum_jax.generation import context
from srum_jax.generation.answer_scorer import AnswerScorer
from srum_jax.generation.image_codec import ImageEncoder
from srum_jax.generation.image_request import ImageRequest, guidance_contexts
from srum_jax.generation.image_sampler import ImageSampler
from srum_jax.generation.system_prompts import THINK_GENERATION, THINK_UNDERSTANDING
from srum_jax.generation.text_generator import TextGenerator


@dataclasses.dataclass(frozen=True)
class ModelUnderTest:
    """A model and the ways to ask it.

    batch: requests that share a compiled call · language: the one that it reads
    (`data/languages.py`), into which requests are put · editing: how edits are drawn, None: as the
    sampler draws · think_tokens: of what it thinks before it draws or writes, at most; 0: nothing.
    """

    layout: LayoutSizes
    tokenizer: Tokenizer
    batch: int
    sampler: ImageSampler
    scorer: AnswerScorer
    generator: TextGenerator
    encoder: ImageEncoder
    language: str = ""
    editing: SampleConfig | None = None
    think_tokens: int = 0

    def answers(self, requests: Sequence[AnswerRequest]) -> list[str]:
        """The likeliest first token of each answer, as a text."""
        given: dict[int, int] = {}
        # One image, two, and clips go apart, or a clip would lengthen every row; clips of all
        # lengths go together, or each would have its own program.
        numbers = [min(len(request.images), 3) for request in requests]
        for number in sorted(set(numbers)):
            places = [i for i, n in enumerate(numbers) if n == number]
            some = [requests[i] for i in places]
            asked = [[self.read(r.question, "question")] for r in some]
            found = self.scorer.likeliest([tuple(r.images) for r in some], asked)
            given |= {i: first for i, (first,) in zip(places, found, strict=True)}
        return [self.tokenizer.decode([given[i]]) for i in range(len(requests))]

    def texts(self, requests: Sequence[TextRequest]) -> list[str]:
        """What is written about the images, by the likeliest tokens; what it thought first too."""
        written: dict[int, str] = {}
        for limit in sorted({request.max_tokens for request in requests}):
            places = [i for i, request in enumerate(requests) if request.max_tokens == limit]
            contexts = [self._context(requests[i]) for i in places]
            found = self.generator.generate(contexts, max_tokens=limit + self.think_tokens)
            written |= {i: one.text for i, one in zip(places, found, strict=True)}
        return [written[i] for i in range(len(requests))]

    def plans(self, requests: Sequence[DrawRequest | EditRequest]) -> list[str]:
        """What it means to draw for each, by the likeliest tokens."""
        system = self.tokenizer.text(THINK_GENERATION)
        contexts = [(system, *self._drawing(one)) for one in requests]
        found = self.generator.generate(contexts, max_tokens=self.think_tokens)
        return [one.text for one in found]

    def edits(
        self, requests: Sequence[EditRequest], plans: Mapping[str, str] | None = None
    ) -> list[np.ndarray]:
        """The changed images uint8 [H,W,3], in the sizes that the model's resize gives those that
        were given; plans: {id: what it thought before}, None: nothing."""
        asked = []
        for request in requests:
            items, thought = self._drawing(request), {}
            if plans is not None:
                thought["system"] = self.tokenizer.text(THINK_GENERATION)
                thought["thought"] = self.tokenizer.text(plans[request.id])
            contexts = guidance_contexts(items, **thought)
            asked.append(ImageRequest(**contexts, size=items[0].size, seed=request.seed))
        return [one.image for one in self.sampler.sample(asked, settings=self.editing)]

    def read(self, text: str, kind: languages.Kind) -> str:
        """A request as the model reads it. Raises BadInput where it has no words for it."""
        return languages.normalise(self.language, text, kind)

    def _drawing(self, request: DrawRequest | EditRequest) -> context.Context:
        """What is read before a picture is drawn, or changed: its latents come first then."""
        if isinstance(request, DrawRequest):
            return (self.tokenizer.text(self.read(request.prompt.text, "prompt")),)
        return (
            self.encoder.encode(latent_image(request.image, self.layout)),
            picture(request.image, self.layout),
            self.tokenizer.text(self.read(request.instruction, "instruction")),
        )

    def _context(self, request: TextRequest) -> context.Context:
        before = (self.tokenizer.text(THINK_UNDERSTANDING),) if self.think_tokens else ()
        pictures = (picture(one, self.layout) for one in request.images)
        said = self.read(request.instruction, "question")
        return (*before, *pictures, self.tokenizer.text(said))
