"""Examples out of words and pictures: text-to-image, edits, and questions about pictures.

Owns what a sample of each kind looks like in BAGEL's format; `data/packing.py` lays it into rows.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from srum_jax.data.images import picture
from srum_jax.data.schema import (
    Branch,
    Example,
    Latent,
    LayoutSizes,
    Regions,
    Text,
    Transition,
)
from srum_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Prompts:
    """How a model reads a prompt before the image that it learns to draw: its words alone, and
    nothing where the words are dropped."""

    tokenizer: Tokenizer | None

    def items(self, prompt: str, dropped: bool = False) -> tuple[Text, ...]:
        """What stands before the image. Raises ValueError naming an unknown word."""
        return () if dropped else (self.tokenizer.text(prompt),)


def behind(
    said: Sequence[Text],
    latent: np.ndarray,
    *,
    size: tuple[int, int],
    noise_id: int,
    regions: Regions | None = None,
    target: np.ndarray | None = None,
    transition: Transition | None = None,
) -> Example:
    """[what is said | noisy image].

    latent: float32 [h, w, p·p·Z], target the same of the "good" image; size (H, W) in pixels ·
    transition: the step that was taken from `latent`, of a stepwise objective.
    """
    more = dict(regions=regions, target=target, transition=transition)
    image = Latent(latent, size=size, noise_id=noise_id, **more)
    return Example((*said, image))


def text_to_image(
    tokenizer: Tokenizer, prompt: str | None, latent: np.ndarray, **image: Any
) -> Example:
    """[prompt | noisy image]; without a prompt the image alone (what guidance compares with).

    latent, image: as of `behind`.
    """
    said = () if prompt is None else Prompts(tokenizer).items(prompt)
    return behind(said, latent, **image)


def questions(
    tokenizer: Tokenizer,
    layout: LayoutSizes,
    images: Sequence[np.ndarray],
    pairs: Iterable[tuple[str, str]],
) -> Example:
    """[pictures | question, answer | question, answer …]: every pair a branch of its own.

    images: uint8 [H,W,3], one or several in order (frames of a clip); pairs of question and
    answer; the answers are targets.
    """
    branches = (Branch((tokenizer.text(q), tokenizer.text(a, loss=True))) for q, a in pairs)
    return Example((*(picture(image, layout) for image in images), *branches))


def edit(
    tokenizer: Tokenizer,
    layout: LayoutSizes,
    source: np.ndarray,
    source_latent: np.ndarray,
    instruction: str | None,
    latent: np.ndarray,
    *,
    size: tuple[int, int],
    noise_id: int,
) -> Example:
    """[clean latents, picture of the source | instruction | noisy image], the order of BAGEL.

    source: uint8 [H,W,3]; latents float32 [h, w, p·p·Z], the second the target's; size (H, W) in
    pixels. Without an instruction: what text guidance compares with.
    """
    seen = (Latent(source_latent, size=size, noisy=False), picture(source, layout))
    words = () if instruction is None else (tokenizer.text(instruction),)
    return Example((*seen, *words, Latent(latent, size=size, noise_id=noise_id)))


def dropped(seed: int, number: int, share: float) -> bool:
    """Whether sample `number` of the endless sequence is trained without its text."""
    return bool(np.random.default_rng((seed, number, 1)).random() < share)
