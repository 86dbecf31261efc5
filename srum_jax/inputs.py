"""What a user gives the API, in whatever form: one thing or many, read as lists and checked.

Every fault is a BadInput that names the argument.
"""

import dataclasses
import operator
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from srum_jax.config import SampleConfig
from srum_jax.core.checked import plain, suggest, unknown_key
from srum_jax.core.errors import BadInput, quoted
from srum_jax.data import images as pictures
from srum_jax.generation import generation_config
from srum_jax.generation.image_sampler import candidate_seed
from srum_jax.generation.step_by_step import DenoisingOptions, DenoisingStep
from srum_jax.outputs import Drawing

AnyImage = Any  # path, PIL.Image.Image, Drawing or uint8 [H,W,3]
AnyVideo = Any  # path, or (seconds, image) of each frame, or None
AnyRequest = str | Sequence[Mapping[str, Any]]  # a text, or the messages of a conversation
ROLES = ("system", "user", "assistant")


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """An image in any form that `pixels` takes."""

    image: AnyImage


@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
    """A message of a conversation: who says it (of ROLES), texts and images in their order."""

    role: str
    parts: tuple[str | Shown, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Conversation:
    """Messages in their order; as a text, the last thing that the user says."""

    turns: tuple[Turn, ...]

    def __str__(self) -> str:
        return [part for part in self.turns[-1].parts if isinstance(part, str)][-1]

    @property
    def images(self) -> list[Shown]:
        """All images in it."""
        return [part for turn in self.turns for part in turn.parts if isinstance(part, Shown)]


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


def single(given: Any) -> bool:
    """Whether one request is given, a text or the messages of a conversation, and no list."""
    messages = isinstance(given, (list, tuple)) and given
    return isinstance(given, str) or bool(messages and all(isinstance(m, Mapping) for m in given))


def requests(given: AnyRequest | Sequence[AnyRequest], what: str) -> list[str | Conversation]:
    """A request or a list of them as a list. Raises BadInput naming `what` for anything else."""
    several = [given] if single(given) else listed(given)
    if several is None or not any(single(one) and not isinstance(one, str) for one in several):
        return texts(given, what)
    if not all(map(single, several)):
        raise BadInput(f"{what} is a text, or a list of messages; got {quoted(given)}")
    return [one if isinstance(one, str) else _conversation(one, what) for one in several]


def conversation(request: str | Conversation, images: Any, what: str) -> Conversation:
    """A request with the images given beside it, which a text follows.

    Raises BadInput for images beside a conversation.
    """
    shown = several(images)
    if isinstance(request, str):
        return Conversation((Turn("user", (*map(Shown, shown), request)),))
    if shown:
        raise BadInput(f"{what}: images of a conversation belong into its messages")
    return request


def _conversation(messages: Sequence[Mapping[str, Any]], what: str) -> Conversation:
    turns = []
    for number, message in enumerate(messages, start=1):
        where = f"{what}: message {number}"
        for key in message:
            if key not in ("role", "content"):
                raise BadInput(f"{where}: {unknown_key('', key, ('role', 'content'))}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise BadInput(f"{where}: role = {quoted(role)} is not known: {suggest(role, ROLES)}")
        parts = tuple(_part(part, where) for part in several(content))
        if not parts:
            raise BadInput(f"{where} has no content")
        turns.append(Turn(role, parts))
    if turns[-1].role != "user" or not any(isinstance(x, str) for x in turns[-1].parts):
        raise BadInput(f"{what}: the last message must be the user's, with a text in it")
    return Conversation(tuple(turns))


def _part(given: Any, where: str) -> str | Shown:
    """A text, an image, or one of them as {"type": "text", "text": …}, {"type": "image", …}."""
    if isinstance(given, Mapping):
        kind = given.get("type")
        if kind not in ("text", "image") or set(given) != {"type", kind}:
            raise BadInput(
                f'{where}: a part is {{"type": "text", "text": …}} or {{"type": "image", "image": '
                f"…}}, a text or an image; got {quoted(given)}"
            )
        if kind == "image":
            return Shown(given["image"])
        given = given["text"]
        if not isinstance(given, str):
            raise BadInput(f"{where}: the text of a part must be a text, got {quoted(given)}")
    if isinstance(given, str) and not given.strip():
        raise BadInput(f"{where}: a text is empty")
    return given if isinstance(given, str) else Shown(given)


def each(given: Any, requests: AnyRequest | Sequence[AnyRequest], name: str) -> list:
    """What is given for each request: for a single one all of it. Raises BadInput naming `name` for
    a list of another length."""
    if single(requests):
        return [given]
    if given is None:
        return [None] * len(requests)
    found = listed(given)
    if found is None or len(found) != len(requests):
        raise BadInput(f"{name} must be a list as long as the {len(requests)} requests")
    return found


def shared(given: Any, requests: AnyRequest | Sequence[AnyRequest], name: str) -> list:
    """As `each`; what is no list is given for every request."""
    if listed(given) is None and not single(requests):
        return [given] * len(requests)
    return each(given, requests, name)


def whole(value: Any, name: str, least: int | None = None) -> int:
    """A whole number of Python, NumPy or JAX, not below `least`. Raises BadInput naming it."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(plain(value), bool):
        raise BadInput(f"{name} must be a whole number, got {quoted(value)}")
    if least is not None and number < least:
        raise BadInput(f"{name} must be at least {least}, got {number}")
    return number


def flag(value: Any, name: str) -> bool:
    """True or False, of NumPy or JAX too. Raises BadInput naming it for anything else."""
    found = plain(value)
    if not isinstance(found, bool):
        raise BadInput(f"{name} must be True or False, got {quoted(value)}")
    return found


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


def sampling(
    given: SampleConfig | None,
    default: SampleConfig,
    changes: Mapping[str, Any],
    where: str,
    read: Collection[str],
) -> SampleConfig:
    """The sampler's settings: those given, else the default, with some fields changed. Raises
    BadInput for what is none of its fields, or out of range, and for a change of what is none of
    the fields `read` by the model's sampler."""
    if not isinstance(given, SampleConfig | None):
        raise BadInput(f"{where}: sampling must be a SampleConfig, got {quoted(given)}")
    start = given or default
    made = generation_config.changed(start, dict(changes), where=where)
    for name in (field.name for field in dataclasses.fields(SampleConfig)):
        if name not in read and getattr(made, name) != getattr(start, name):
            raise BadInput(f"{where}: {name} says nothing to this model; it has {', '.join(read)}")
    return made


def denoising(
    start: int,
    steps: int,
    callback: Callable[[DenoisingStep], Any] | None,
    trajectory: bool,
    progress: bool,
) -> DenoisingOptions:
    """How drawing in so many steps is begun and followed. Raises BadInput."""
    start = whole(start, "start", 0)
    if start >= steps:
        raise BadInput(f"start must be below steps = {steps}, got {start}")
    if callback is not None and not callable(callback):
        raise BadInput(f"callback must be a function of a step, got {quoted(callback)}")
    trajectory, progress = flag(trajectory, "trajectory"), flag(progress, "progress")
    return DenoisingOptions(start, callback=callback, trajectory=trajectory, progress=progress)


def latents(given: Any, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Latents float32 of these shapes, one an image. Raises BadInput for others."""
    found = listed(given)
    if found is None or len(found) != len(shapes):
        raise BadInput(f"latents must be a list of {len(shapes)} arrays, one an image")
    arrays = [np.asarray(one) for one in found]
    for one, shape in zip(arrays, shapes, strict=True):
        if one.dtype.kind != "f" or one.shape != shape or not np.isfinite(one).all():
            raise BadInput(
                f"latents must be finite floating-point numbers {list(shape)} of each image, got "
                f"{one.dtype} {list(one.shape)}"
            )
    return [one.astype(np.float32) for one in arrays]


def film(given: Sequence, what: str = "video") -> list[tuple[float, AnyImage]]:
    """The frames (seconds, image) of a film that was read elsewhere. Raises BadInput."""
    found = list(given)
    for frame in found:
        pair = isinstance(frame, (list, tuple)) and len(frame) == 2
        if not pair or type(plain(frame[0])) not in (int, float):
            raise BadInput(f"{what}: each frame is (seconds, image), got {quoted(frame)}")
    if not found:
        raise BadInput(f"{what} has no frames")
    return found


def pixels(given: AnyImage, *, released: bool = False) -> np.ndarray:
    """uint8 [H,W,3] of a path, a PIL image, a drawing or an array; released: of files and PIL
    images as the original reads them (`data.images.decode`).

    Raises BadInput for others, FileNotFoundError or ValueError for a file that is none or cannot be
    read.
    """
    if isinstance(given, Drawing):
        return given.image
    if isinstance(given, Image.Image):
        return pictures.from_pil(given, name="the PIL image", released=released)
    if isinstance(given, (str, os.PathLike)):
        return pictures.load(given, released=released)
    found = np.asarray(given)
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3:
        raise BadInput(
            "an image is a path, a PIL image, a drawing or an array uint8 [H,W,3]; got "
            f"{type(given).__name__} {found.dtype} {list(found.shape)}"
        )
    pictures.check_size(found.shape[1], found.shape[0], name="the array")
    return found
