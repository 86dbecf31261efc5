"""What a server does with requests that were read: answers, drawings, scores; asyncio's side.

Work goes to the device's thread and comes back as events. Whoever stops listening, as a client that
goes away does, lets go of the device at its next step.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import numpy as np

from srum_jax import api, reading
from srum_jax.core.errors import BadInput, in_a_line
from srum_jax.data.schema import Text
from srum_jax.generation import image_request, system_prompts
from srum_jax.generation.context import Context
from srum_jax.generation.image_request import GeneratedImage, ImageRequest
from srum_jax.generation.text_rows import TextRequest, Token
from srum_jax.inputs import Conversation
from srum_jax.scoring import ImageScore
from srum_jax.serving.engine import Engine
from srum_jax.serving.fetching import Fetcher
from srum_jax.serving.limits import Limits
from srum_jax.serving.metrics import Metrics
from srum_jax.serving.refusals import Refusal
from srum_jax.serving.work import Call, Done, Drawing, Running, Work
from srum_jax.serving.writer import Piece, Writer


@dataclasses.dataclass(frozen=True)
class Written:
    """The end of an answer: stop or length; tokens that were read and written."""

    reason: str
    read: int
    written: int


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How an answer is written: tokens at most, or None for the model's own number."""

    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    probabilities: bool = False
    think: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """Images to draw: what is read before, the size, and the seed of each; negative: a prompt."""

    items: Context
    size: tuple[int, int]
    seeds: Sequence[int]
    settings: Any
    negative: Text | None = None
    think: bool = False
    shown: frozenset[int] = frozenset()


@dataclasses.dataclass(eq=False)
class Service:
    """A model that is served. running: taken by each request when it comes, and by new ones after
    `replace`."""

    running: Running
    engine: Engine
    limits: Limits
    metrics: Metrics
    name: str
    fetcher: Fetcher = Fetcher()
    draining: bool = False
    active: int = 0
    started: float = dataclasses.field(default_factory=time.time)

    def replace(self, running: Running) -> None:
        """Requests from now on get another model; those that are under way end with theirs."""
        self.running = running
        self.metrics.add("checkpoints_total")

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Around one that costs work. Raises Refusal 503 while the server ends."""
        if self.draining:
            told = "the server is ending and takes no new work"
            raise Refusal(503, told, code="draining", retry_after=5)
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    @contextlib.contextmanager
    def submitted(self, running: Running, what: Sequence[Any]) -> Iterator[asyncio.Queue]:
        """Work for the device as a queue of (place, event) of all of it, let go of at the end."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue()
        deadline = time.monotonic() + self.limits.seconds

        def telling(place: int) -> Callable[[Any], None]:
            def tell(event: Any) -> None:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(events.put_nowait, (place, event))

            return tell

        works = [Work(one, running, telling(i), deadline) for i, one in enumerate(what)]
        self.engine.submit(works)
        try:
            yield events
        finally:
            for work in works:
                work.cancelled = True

    async def call(self, running: Running, name: str, function: Callable, given: Any) -> Any:
        """What the device's thread makes of it."""
        with self.submitted(running, [Call(name, function, given)]) as events:
            _, event = await events.get()
            return _result(event).result

    async def write(
        self, running: Running, asked: Context, how: Sampling
    ) -> AsyncIterator[Piece | Written]:
        """Pieces of an answer as they come, at the end a `Written`."""
        model, began = running.model, time.monotonic()
        request = self.text_request(running, asked, how)
        writer = Writer(model.tokenizer, how.stop, how.think, bare=model.family.LEADING_BLANK)
        read, _ = running.generator.extent(request.context)
        reason = "length"
        with self.submitted(running, [request]) as events:
            while True:
                _, event = await events.get()
                if not isinstance(event, Token):
                    reason = "stop" if _result(event).result else "length"
                    break
                if not writer.count:
                    self.metrics.observe("first_token_seconds", time.monotonic() - began)
                piece = writer.add(event)
                if piece:
                    yield piece
                if writer.stopped:
                    reason = "stop"
                    break
        if piece := writer.end():
            yield piece
        yield Written(reason, read, writer.count)

    def text_request(self, running: Running, asked: Context, how: Sampling) -> TextRequest:
        """What the device is asked to write. Raises Refusal 400 where the window has no room."""
        model, limits = running.model, running.model.generation_config
        if how.think:
            asked = (thinking(model, system_prompts.THINK_UNDERSTANDING), *asked)
        most = how.max_tokens
        if most is None:
            most = limits.max_tokens + (limits.think_tokens if how.think else 0)
        slots, position = running.generator.extent(asked)
        room = min(limits.window - slots, model.cfg.max_text - position) - 1
        if room < 1:
            told = f"the request takes {slots} tokens, and the model's window is {limits.window}"
            raise Refusal(400, told, param="messages", code="context_length_exceeded")
        most = min(most, room, self.limits.tokens)
        return TextRequest(asked, most, how.temperature, how.seed, how.probabilities)

    async def thought(self, running: Running, items: Context) -> tuple[Text, str]:
        """What the model writes before it draws: as it is read, and in words."""
        model = running.model
        limit = model.generation_config.think_tokens
        system = thinking(model, system_prompts.THINK_GENERATION)
        how = Sampling(limit, seed=0)
        parts = []
        async for piece in self.write(running, (system, *items), how):
            if isinstance(piece, Piece):
                parts.append(piece.text)
        return system, "".join(parts)

    async def draw(self, running: Running, plan: Plan) -> AsyncIterator[tuple[int, Any]]:
        """(place among the seeds, what came): a `Shown`, or at the end a `GeneratedImage`; the
        thought comes first, at place -1."""
        model, system, thought = running.model, None, None
        if plan.think:
            system, words = await self.thought(running, plan.items)
            thought = model.tokenizer.text(words)
            yield -1, words
        read = image_request.guidance_contexts(
            plan.items, system=system, thought=thought, negative=plan.negative
        )
        official = model.generation_config.official
        requests = [ImageRequest(**read, size=plan.size, seed=seed) for seed in plan.seeds]
        running.sampler.check(requests[0])
        make = model.family.Job
        jobs = [Drawing(make(one, plan.settings, official), plan.shown) for one in requests]
        with self.submitted(running, jobs) as events:
            left = len(jobs)
            while left:
                place, event = await events.get()
                if isinstance(event, Done | Exception):
                    event = _result(event).result
                    left -= 1
                yield place, event

    async def images(self, running: Running, plan: Plan) -> tuple[list[GeneratedImage], str]:
        """(the images of a plan in order, what was thought before)."""
        found: dict[int, GeneratedImage] = {}
        words = ""
        async for place, event in self.draw(running, plan):
            if place < 0:
                words = event
            elif isinstance(event, GeneratedImage):
                found[place] = event
        return [found[i] for i in range(len(plan.seeds))], words

    async def score(self, running: Running, image: np.ndarray, prompt: str) -> ImageScore:
        """The model's own score of an image uint8 [H,W,3] by its prompt."""

        def scored(pairs: Sequence[tuple[np.ndarray, str]]) -> list[ImageScore]:
            images, prompts = zip(*pairs, strict=True)
            return running.model.score(list(images), list(prompts))

        self.metrics.add("scores_total")
        return await self.call(running, "score", scored, (image, prompt))

    async def read_drawing(self, running: Running, told: Conversation) -> Context:
        """What is read before an image is drawn, where it holds pictures: their latents are made on
        the device."""
        reader = running.model.reader

        def read(several: Sequence[Conversation]) -> list[Context]:
            return [reader.prompt(one) for one in several]

        if not told.images:
            return reader.prompt(told)
        return await self.call(running, "read", read, told)

    async def read_edit(
        self, running: Running, told: Conversation, noise: int | None
    ) -> tuple[Context, tuple[int, int]]:
        """What is read before the last of its images is drawn anew, and in which size."""
        reader = running.model.reader

        def read(several: Sequence[Conversation]) -> list:
            return [reader.edit(one, noise) for one in several]

        return await self.call(running, f"edit {noise}", read, told)


def thinking(model: api.Model, words: str) -> Text:
    """The request to think. Raises Refusal 422 where the model lacks its words."""
    try:
        return reading.system(model.tokenizer, words)
    except BadInput:
        told = "this model cannot think: it lacks words of the request to; leave out think"
        raise Refusal(422, told, param="think", code="unreadable") from None


def thinks(model: api.Model) -> bool:
    """Whether a model can be asked to think before it answers or draws."""
    try:
        for words in (system_prompts.THINK_UNDERSTANDING, system_prompts.THINK_GENERATION):
            thinking(model, words)
    except Refusal:
        return False
    return True


def _result(event: Any) -> Done:
    """The end of a piece of work. Raises what was told in its place, as `refusal` says it."""
    if isinstance(event, Exception):
        raise refusal(event)
    return event


def refusal(error: Exception) -> Exception:
    """What a client is told of an error: what is wrong with its request, or as it is."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, BadInput | ValueError):
        return Refusal(422, in_a_line(error, 400), code="unreadable")
    return error
