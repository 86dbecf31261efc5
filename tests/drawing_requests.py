"""Requests to draw of every kind, for `samples.CFG`."""

import functools

import numpy as np
from samples import latent, picture, text

from srum_jax.generation import image_request
from srum_jax.generation.image_request import ImageRequest


def requests():
    """Of every kind and of several sizes."""
    rng = np.random.default_rng(0)
    words, look = functools.partial(text, rng), functools.partial(picture, rng)
    clean = functools.partial(latent, rng, noisy=False)
    edit = image_request.guidance_contexts((clean(2, 2), look(2, 2), words(4)))
    system, thought = words(2), words(5)
    return {
        "draw": ImageRequest(**image_request.guidance_contexts((words(3),)), size=(8, 12), seed=1),
        "longer": ImageRequest(
            **image_request.guidance_contexts((words(11),)), size=(16, 8), seed=2
        ),
        "thought": ImageRequest(
            **image_request.guidance_contexts((words(3),), system=system, thought=thought),
            size=(12, 12),
            seed=3,
        ),
        "edit": ImageRequest(**edit, size=(8, 8), seed=4),
        "two": ImageRequest(
            **image_request.guidance_contexts(
                (look(1, 2), words(2), clean(1, 2), look(2, 1), words(3))
            ),
            size=(4, 16),
            seed=5,
        ),
        "thought edit": ImageRequest(
            **image_request.guidance_contexts(
                (clean(1, 3), look(1, 3), words(6)), system=system, thought=thought
            ),
            size=(4, 12),
            seed=2**32 - 1,
        ),
        "nothing": ImageRequest(context=(), size=(8, 8), seed=6),
        "only seen": ImageRequest(
            **image_request.guidance_contexts((look(2, 2),)), size=(8, 8), seed=7
        ),
    }


REQUESTS = requests()
