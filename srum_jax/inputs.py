"""What a user gives the API, in whatever form: one thing or many, read as lists and checked.

Every fault is a BadInput that names the argument.
"""

import operator
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from srum_jax.core.checked import plain
from srum_jax.core.errors import BadInput, quoted
from srum_jax.data import images as pictures
from srum_jax.generation.image_sampler import candidate_seed
from srum_jax.outputs import Drawing

AnyImage = Any  # path, PIL.Image.Image, Drawing or uint8 [H,W,3]
AnyVideo = Any  # path, or (seconds, image) of each frame, or None


def listed(given: Any) -> list | None:
    """What is given for several requests: a list, a tuple, an array of texts or of images, a column
    of a table; None for anything else."""
    if getattr(getattr(given, "dtype", None), "kind", "O") not in "OU":  # an array of pixels
        return list(given) if given.ndim == 4 else None
    found = plain(given)
    return list(found) if isinstance(found, (list, tuple)) else None


def several(x: Any) -> list:
    """A list as it is, one thing as a list of one, None as no thing."""
    found = listed(x)
    return found if found is not None else [] if x is None else [x]


def texts(given: str | Sequence[str], what: str) -> list[str]:
    """A text or a list of texts as a list. Raises BadInput naming `what` for anything else."""
    found = [given] if isinstance(given, str) else listed(given)
    if found is None or not all(isinstance(x, str) for x in found):
        raise BadInput(f"{what} is a text, or give a list of texts; got {quoted(given)}")
    if not all(map(str.strip, found)):
        raise BadInput(f"{what} is empty")
    return found


def each(given: Any, requests: str | Sequence[str], name: str) -> list:
    """What is given for each request: for a single one all of it. Raises BadInput naming `name` for
    a list of another length."""
    if isinstance(requests, str):
        return [given]
    if given is None:
        return [None] * len(requests)
    found = listed(given)
    if found is None or len(found) != len(requests):
        raise BadInput(f"{name} must be a list as long as the {len(requests)} requests")
    return found


def whole(value: Any, name: str, least: int | None = None) -> int:
    """A whole number of Python, NumPy or JAX, not below `least`. Raises BadInput naming it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise BadInput(f"{name} must be a whole number, got {quoted(value)}") from None
    if least is not None and number < least:
        raise BadInput(f"{name} must be at least {least}, got {number}")
    return number


def seeds(requests: int, n: int, seed: int, seeds: Sequence[int] | None) -> list[list[int]]:
    """`n` seeds of 32 bits for each of so many requests: `seeds` in order, or functions of `seed`,
    the request's place and k. Raises BadInput for seeds of another number or range."""
    n, seed = whole(n, "n", 1), whole(seed, "seed")
    if seeds is None:
        return [[candidate_seed(seed, i, k) for k in range(n)] for i in range(requests)]
    seeds = plain(seeds)
    if not isinstance(seeds, Sequence):
        raise BadInput(f"seeds must be a list of numbers, got {quoted(seeds)}")
    told = [whole(one, "each of seeds") for one in seeds]
    if len(told) != requests * n or any(not 0 <= one < 2**32 for one in told):
        raise BadInput(f"seeds must be {requests * n} numbers from 0 to 2³²−1, one an image")
    return [told[i * n : (i + 1) * n] for i in range(requests)]


def pixels(given: AnyImage) -> np.ndarray:
    """uint8 [H,W,3] of a path, a PIL image, a drawing or an array. Raises BadInput for others,
    FileNotFoundError or ValueError for a file that is none or cannot be read."""
    if isinstance(given, Drawing):
        return given.image
    if isinstance(given, Image.Image):
        return pictures.from_pil(given, name="the PIL image")
    if isinstance(given, (str, os.PathLike)):
        return pictures.load(given)
    found = np.asarray(given)
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3:
        raise BadInput(
            "an image is a path, a PIL image, a drawing or an array uint8 [H,W,3]; got "
            f"{type(given).__name__} {found.dtype} {list(found.shape)}"
        )
    pictures.check_size(found.shape[1], found.shape[0], name="the array")
    return found
