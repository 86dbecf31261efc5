"""What is compiled before the first request: the shapes that plain requests have."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging

from srum_jax.generation import image_request
from srum_jax.generation.image_request import ImageRequest
from srum_jax.generation.row_group import RowGroup
from srum_jax.generation.text_rows import TextRequest
from srum_jax.inputs import Conversation, Shown, Turn
from srum_jax.serving.limits import Limits
from srum_jax.serving.service import Service
from srum_jax.serving.work import Running


async def warm(service: Service) -> None:
    """Answers about a picture and drawings of the model's own size, in all numbers of rows; one
    score. What cannot be read by the model is left out."""
    began, running = time.monotonic(), service.running

    def done(several: Sequence[Limits]) -> list[None]:
        for limits in several:
            _write(running, limits)
            _draw(running, limits)
        return [None] * len(several)

    await service.call(running, "warm", done, service.limits)
    grey = np.full((*running.model.generation_config.generate.size, 3), 128, np.uint8)
    await service.score(running, grey, _words(running))
    programs = len(running.model.programs.compiled)
    logging.info("warm: %d programs, %.1f s", programs, time.monotonic() - began)


def _write(running: Running, limits: Limits) -> None:
    """Captions of a picture, more and fewer at once."""
    config, model = running.model.generation_config, running.model
    grey = np.full((*config.generate.size, 3), 128, np.uint8)
    asked = Conversation((Turn("user", (Shown(grey), config.caption)),))
    context = model.reader.question(asked, None, None, 1)
    most = min(config.max_tokens, limits.tokens)
    requests = [TextRequest(context, most) for _ in range(limits.texts)]
    kind = model.family.TextRows
    slots = kind.slots_for(running.generator, requests[0])
    rows = kind(running.generator, slots, limits.texts)
    _grown(rows, requests, lambda: rows.step(running.writing))


def _draw(running: Running, limits: Limits) -> None:
    """Drawings of one prompt, more and fewer at once, to the end of guidance."""
    config, sampler, family = running.model.generation_config, running.sampler, running.model.family
    items = running.model.reader.prompt(_words(running))
    read = image_request.guidance_contexts(items)
    settings, official = config.generate, config.official
    count = min(limits.images, limits.together)
    jobs = [
        family.Job(ImageRequest(**read, size=settings.size, seed=seed), settings, official)
        for seed in range(count)
    ]
    first, last = (jobs[0].kind(sampler, step) for step in (0, sampler.steps(settings) - 1))
    rows = family.DrawingRows(sampler, first, limits.images)
    _grown(rows, jobs, rows.step)
    rows.join(jobs)
    if last != first:
        after = family.DrawingRows(sampler, last, limits.images)
        for job in jobs:
            rows.moved([job], after)
            after.step()
        rows = after
    latents = rows.latents(jobs)
    for several in rows.numbers:
        running.decoder.decode(latents[:several])
    for job in jobs:
        rows.leave([job])


def _grown(rows: RowGroup, requests: Sequence[Any], step: Callable[[], Any]) -> None:
    """Steps of one request, of two, …, and back; then of several that come together."""
    for one in requests:
        rows.join([one])
        step()
    for one in requests[:-1]:
        rows.leave([one])
        step()
    rows.leave(requests)
    for several in rows.numbers:
        rows.join(requests[:several])
        rows.leave(requests[:several])


def _words(running: Running) -> str:
    """A prompt that the model can read: a world's has few words."""
    for words in ("a red circle", "a picture"):
        try:
            running.model.reader.prompt(words)
        except ValueError:
            continue
        return words
    return "a"
