"""A piece of work for the device, and what is told of it: the only thing that crosses threads."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from srum_jax import api
from srum_jax.core.param_tree import Params
from srum_jax.generation.text_rows import TextRequest


@dataclasses.dataclass(frozen=True, eq=False)
class Running:
    """A model as the device's thread runs it, by what its family has (`generation/families.py`);
    writing: what texts' steps read · step: of the training that made it, or None."""

    model: api.Model
    generator: Any
    writing: Params = dataclasses.field(repr=False)
    sampler: Any
    decoder: Any
    step: int | None = None

    @classmethod
    def of(cls, model: api.Model, step: int | None = None) -> "Running":
        """What runs a loaded model."""
        parts = dict(programs=model.programs, batch_sharding=model.sampler.batch_sharding)
        decoder = model.family.ImageDecoder(model.vae_params, model.cfg, **parts)
        writing = model.family.writing_params(model.generator, model.sampler)
        return cls(model, model.generator, writing, model.sampler, decoder, step)


@dataclasses.dataclass(frozen=True)
class Shown:
    """How an image looks after `number` steps: what the model then takes it to become, or what it
    has of it, uint8 [H,W,3]."""

    number: int
    image: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
    """An image to draw, its family's `Job`, and the numbers of steps, from 1, after which it is
    shown."""

    job: Any
    shown: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """Something else that the device does: `function` of a list of what several gave, a result for
    each; calls of the same name that wait together are one."""

    name: str
    function: Callable[[Sequence[Any]], Sequence[Any]]
    given: Any


@dataclasses.dataclass(eq=False)
class Work:
    """what: to do · running: the model that does it · tell: called in the device's thread with a
    `Token`, a `Shown`, at the end the result or an exception · deadline: by `time.monotonic`.

    cancelled: set by who asked for it, from any thread; nothing is told after that.
    """

    what: TextRequest | Drawing | Call
    running: Running
    tell: Callable[[Any], None]
    deadline: float
    cancelled: bool = False
    began: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def lane(self) -> str:
        """Of which kind it is."""
        kinds = {TextRequest: "text", Drawing: "image", Call: "call"}
        return kinds[type(self.what)]


@dataclasses.dataclass(frozen=True)
class Done:
    """The end of a piece of work, with what came of it."""

    result: Any = None
