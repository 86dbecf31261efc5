"""What is asked of the image sampler, and what it gives."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from srum_jax.core.param_tree import Params
from srum_jax.data.schema import Text
from srum_jax.generation.context import Context


@dataclasses.dataclass(frozen=True)
class ImageRequest:
    """An image to draw after `context`, of `size` (H, W) pixels, from the noise of `seed`.

    Text guidance compares with the first `plain` items of the context or, where it is given, with
    `negative`; image guidance with `texts` (BAGEL's inferencer: the texts alone, without what the
    model thought).
    """

    context: Context
    size: tuple[int, int]
    seed: int
    plain: int = 0
    texts: Context = ()
    negative: Context | None = None

    @property
    def has_images(self) -> bool:
        """Whether the context holds more than texts."""
        return not all(isinstance(item, Text) for item in self.context)

    def branch(self, guided: bool) -> str:
        """What image guidance, if it is on, compares with: nothing ("off"), a context of its own
        ("own"), the condition ("cond") or a part of it ("shorter")."""
        if not guided:
            return "off"
        if self.has_images:
            return "own"
        return "cond" if len(self.texts) == len(self.context) else "shorter"


@dataclasses.dataclass(frozen=True)
class GeneratedImage:
    """An image uint8 [H,W,3] and its latent tokens float32 [h,w,p·p·Z]."""

    image: np.ndarray
    latent: np.ndarray


class LatentSampler(Protocol):
    """`generate_latents`, or what is called in its place with its arguments."""

    def __call__(self, params: Params, *inputs: Any, **static: Any) -> jax.Array:
        """Latents [B,G,p·p·Z] float32."""


class Denoiser(Protocol):
    """What draws step by step on the host, to be watched, stopped or begun midway."""

    def of(self, places: Sequence[int]) -> LatentSampler:
        """What draws the requests of these places in the list."""


def guidance_contexts(
    items: Context,
    *,
    system: Text | None = None,
    thought: Text | None = None,
    negative: Text | None = None,
) -> dict[str, Any]:
    """The contexts of an ImageRequest for what a user gave, in order (BAGEL `inferencer.py`).

    Everything is read by the condition, the thought last; the system text also by image guidance,
    which sees texts alone. Text guidance lacks the last text, or nothing if an image came after it;
    a negative prompt stands for it in the last text's place.
    """
    before = () if system is None else (system,)
    last = max((i for i, item in enumerate(items) if isinstance(item, Text)), default=len(items))
    images_after = any(not isinstance(item, Text) for item in items[last:])
    return {
        "context": (*before, *items, *(() if thought is None else (thought,))),
        "plain": len(before) + (len(items) if images_after else last),
        "texts": (*before, *(item for item in items if isinstance(item, Text))),
        "negative": negative and (*before, *items[:last], negative, *items[last + 1 :]),
    }
