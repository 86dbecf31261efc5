"""What a loaded model reads of a request: texts, pictures and frames as items of a context."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from srum_jax import inputs
from srum_jax.core.errors import BadInput
from srum_jax.data import images as pictures
from srum_jax.data import video as videos
from srum_jax.data.schema import LayoutSizes, Picture, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation.context import Context
from srum_jax.generation.generation_config import GenerationConfig
from srum_jax.generation.image_codec import ImageEncoder


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """A model's eyes: its settings, words, and sizes of pictures; the encoder of what it edits."""

    settings: GenerationConfig
    tokenizer: Tokenizer
    layout: LayoutSizes
    encoder: ImageEncoder

    def prompt(self, text: str) -> Context:
        """A prompt to draw. Raises BadInput or ValueError where the model has no words for it."""
        return (self.tokenizer.text(self.settings.prompt(text)),)

    def question(self, text: str, images: Any, film: Any, frames: int) -> Context:
        """A question about images (one, several, none) and `frames` of a film or None."""
        items: list = [self.picture(inputs.pixels(one)) for one in inputs.several(images)]
        if film is not None:
            items += self.frames(film, frames)
        said = self.settings.question(text, bool(items))
        return (*items, self.tokenizer.text(said))

    def edit(
        self, images: Sequence[np.ndarray], instruction: str, noise: int | None
    ) -> tuple[Context, tuple[int, int]]:
        """Images uint8 [H,W,3] to be changed as told, and the size (H, W) of the last.

        noise: the seed of the latents' draw from the posterior, None: its mean.
        """
        items: list = []
        for one in images:
            items += self.seen(one, noise)
        said = self.settings.instruction(instruction)
        return (*items, self.tokenizer.text(said)), items[-2].size

    def seen(self, pixels: np.ndarray, noise: int | None) -> Context:
        """An image uint8 [H,W,3] as drawing reads it: its latents, then its look."""
        fitted = pictures.latent_image(pixels, self.layout)
        return self.encoder.encode(fitted, noise), self.picture(pixels)

    def picture(self, pixels: np.ndarray) -> Picture:
        """An image uint8 [H,W,3] as answers read it."""
        return pictures.picture(pixels, self.layout, twice=self.settings.resize_twice)

    def frames(self, film: Any, frames: int) -> list[Text | Picture]:
        """A video's frames, each after its label where the settings have one."""
        items: list = []
        shown = film if isinstance(film, (list, tuple)) else videos.frames(film, frames)
        for number, (seconds, pixels) in enumerate(shown, start=1):
            if self.settings.frame:
                items.append(self.tokenizer.text(self.settings.label(number, seconds)))
            items.append(self.picture(inputs.pixels(pixels)))
        return items


def system(tokenizer: Tokenizer, words: str) -> Text:
    """The request to think. Raises BadInput where the model lacks its words."""
    try:
        return tokenizer.text(words)
    except ValueError as e:
        raise BadInput(f"this model cannot think: it lacks words of the request to ({e})") from e
