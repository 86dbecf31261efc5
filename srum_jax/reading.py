"""What a loaded model reads of a request: texts, pictures and frames as items of a context."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from srum_jax import inputs
from srum_jax.core.errors import BadInput
from srum_jax.data import images as pictures
from srum_jax.data import video as videos
from srum_jax.data.schema import Latent, LayoutSizes, Picture, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation.context import Context
from srum_jax.generation.generation_config import GenerationConfig
from srum_jax.generation.image_codec import ImageEncoder
from srum_jax.inputs import Conversation, Shown


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """A model's settings, words, sizes of pictures, and the encoder of those that drawing reads."""

    settings: GenerationConfig
    tokenizer: Tokenizer
    layout: LayoutSizes
    encoder: ImageEncoder | None

    def prompt(self, request: str | Conversation) -> Context:
        """What is to be drawn. Raises BadInput or ValueError for words that it does not know."""
        return self._read(inputs.conversation(request, None, "generate"), self.settings.prompt)

    def edit(self, told: Conversation, noise: int | None) -> tuple[Context, tuple[int, int]]:
        """What is to be changed and how, and the size (H, W) of the last image.

        noise: the seed of the latents' draw from the posterior, None: its mean.
        """
        items = self._read(told, self.settings.instruction, noise)
        return items, [item for item in items if isinstance(item, Latent)][-1].size

    def question(self, request: str | Conversation, images: Any, film: Any, frames: int) -> Context:
        """A question about images (one, several, none), or `frames` of a film, or None.

        Raises BadInput where images or a film are given beside a conversation.
        """
        told = inputs.conversation(request, images, "answer")
        if film is None:
            return self._asked(told)
        if not isinstance(request, str):
            raise BadInput("answer: a conversation has images in it, but no video")
        before = [self.picture(self.pixels(one)) for one in told.images]
        said = self.settings.question(request, True)
        return (*before, *self.frames(film, frames), self.tokenizer.text(said))

    def _asked(self, told: Conversation) -> Context:
        """A conversation as answers read it: of an image its look alone."""
        items: list[Text | Picture] = []
        for turn in told.turns:
            for part in turn.parts:
                if isinstance(part, Shown):
                    items.append(self.picture(self.pixels(part)))
                    continue
                if turn.role == "user":
                    shown = any(isinstance(item, Picture) for item in items)
                    part = self.settings.question(part, shown)
                items.append(self.tokenizer.text(part))
        return tuple(items)

    def _read(
        self, told: Conversation, say: Callable[[str], str], noise: int | None = None
    ) -> Context:
        """A conversation as drawing reads it: of an image its latents, then its look."""
        items: list[Text | Picture | Latent] = []
        for turn in told.turns:
            for part in turn.parts:
                if isinstance(part, Shown):
                    pixels = self.pixels(part)
                    items += [self.latents(pixels, noise), self.picture(pixels)]
                else:
                    said = say(part) if turn.role == "user" else part
                    items.append(self.tokenizer.text(said))
        return tuple(items)

    def pixels(self, shown: Shown) -> np.ndarray:
        """uint8 [H,W,3] of an image in any form."""
        return inputs.pixels(shown.image, released=self.settings.official)

    def latents(self, pixels: np.ndarray, noise: int | None = None) -> Latent:
        """The latents of an image uint8 [H,W,3], in its size after the resize for drawing."""
        return self.encoder.encode(pictures.latent_image(pixels, self.layout), noise)

    def picture(self, pixels: np.ndarray) -> Picture:
        """An image uint8 [H,W,3] as answers read it."""
        return pictures.picture(pixels, self.layout, twice=self.settings.official)

    def frames(self, film: Any, frames: int) -> list[Text | Picture]:
        """A video's frames, each after its label where the settings have one."""
        items: list = []
        given = isinstance(film, (list, tuple))
        shown = inputs.film(film) if given else videos.frames(film, frames)
        for number, (seconds, pixels) in enumerate(shown, start=1):
            if self.settings.frame:
                items.append(self.tokenizer.text(self.settings.label(number, seconds)))
            items.append(self.picture(self.pixels(Shown(pixels))))
        return items


def system(tokenizer: Tokenizer, words: str) -> Text:
    """The request to think. Raises BadInput where the model lacks its words."""
    try:
        return tokenizer.text(words)
    except ValueError as e:
        raise BadInput(f"this model cannot think: it lacks words of the request to ({e})") from e


@dataclasses.dataclass(frozen=True)
class DrawingRequest:
    """What the model reads, the prompt last, before it draws an image of `size` for each seed.

    negative: what the prompt is compared with · latents: what each image begins from; none: noise.
    """

    items: Context
    prompt: str
    size: tuple[int, int]
    seeds: Sequence[int]
    negative: Text | None = None
    latents: Sequence[np.ndarray] = ()

    def single(self) -> list["DrawingRequest"]:
        """A request for each image."""
        latents = [[one] for one in self.latents] or [()] * len(self.seeds)
        return [
            dataclasses.replace(self, seeds=[seed], latents=mine)
            for seed, mine in zip(self.seeds, latents, strict=True)
        ]
