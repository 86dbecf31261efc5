"""Examples out of words and pictures: text-to-image, and questions about a picture.

Owns what a sample of each kind looks like in BAGEL's format; `data/packing.py` lays it into rows.
"""

from collections.abc import Iterable

import numpy as np

from srum_jax.data.images import picture
from srum_jax.data.schema import Branch, Example, Latent, Regions, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.models.config import BagelConfig


def text(tokenizer: Tokenizer, words: str, *, loss: bool = False) -> Text:
    """Words as a text item. Raises ValueError naming an unknown word."""
    return Text(np.array(tokenizer.encode(words), np.int32), loss=loss)


def text_to_image(
    tokenizer: Tokenizer,
    prompt: str | None,
    latent: np.ndarray,
    *,
    size: tuple[int, int],
    noise_id: int,
    regions: Regions | None = None,
) -> Example:
    """[prompt | noisy image]; without a prompt the image alone (what guidance compares with).

    latent: float32 [h, w, p·p·Z]; size (H, W) in pixels.
    """
    image = Latent(latent, size=size, noise_id=noise_id, regions=regions)
    return Example((image,) if prompt is None else (text(tokenizer, prompt), image))


def questions(
    tokenizer: Tokenizer,
    cfg: BagelConfig,
    image: np.ndarray,
    pairs: Iterable[tuple[str, str]],
) -> Example:
    """[picture | question, answer | question, answer …]: every pair a branch of its own.

    image: uint8 [H,W,3]; pairs of question and answer; the answers are targets.
    """
    branches = (Branch((text(tokenizer, q), text(tokenizer, a, loss=True))) for q, a in pairs)
    return Example((picture(image, cfg), *branches))


def dropped(seed: int, number: int, share: float) -> bool:
    """Whether sample `number` of the endless sequence is trained without its text."""
    return bool(np.random.default_rng((seed, number, 1)).random() < share)
