"""What is compiled before the first request: the shapes that plain requests have."""

import asyncio
import contextlib
import time

import numpy as np
from absl import logging

from srum_jax.generation.image_request import GeneratedImage
from srum_jax.inputs import Conversation, Shown, Turn
from srum_jax.serving.service import Plan, Sampling, Service


async def warm(service: Service) -> None:
    """Draws, answers and edits in all numbers of rows, so that the programs for it are made."""
    began, model = time.monotonic(), service.running.model
    config = model.generation_config
    grey = np.full((*config.generate.size, 3), 128, np.uint8)
    asked = Conversation((Turn("user", (Shown(grey), config.caption)),))
    context = model.reader.question(asked, None, None, 1)
    limits, running = service.limits, service.running
    items = await service.read_drawing(running, Conversation((Turn("user", (_words(model),)),)))

    async def write() -> None:
        async for _ in service.write(running, context, Sampling()):
            pass

    async def draw(count: int) -> None:
        plan = Plan(items, config.generate.size, list(range(count)), config.generate)
        async for _, found in service.draw(running, plan):
            assert not isinstance(found, GeneratedImage) or found.image.size

    for several in _numbers(limits.texts):
        await asyncio.gather(*(write() for _ in range(several)))
    for several in _numbers(min(limits.images, limits.together)):
        await draw(several)
    with contextlib.suppress(Exception):
        await service.score(running, grey, _words(model))
    programs = len(model.programs.compiled)
    logging.info("warm: %d programs, %.1f s", programs, time.monotonic() - began)


def _numbers(most: int) -> list[int]:
    """1, 2, 4, … and the most."""
    found, count = [], 1
    while count < most:
        found.append(count)
        count *= 2
    return [*found, most]


def _words(model) -> str:
    """A prompt that the model can read: a world's has few words."""
    for words in ("a red circle", "a picture"):
        try:
            model.generation_config.prompt(words)
            model.tokenizer.text(words)
        except ValueError:
            continue
        return words
    return "a"
