"""Codes of Janus's autoencoder as pictures, those that are still being drawn too."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import fetch, put
from srum_jax.generation import context
from srum_jax.generation.image_codec import ways
from srum_jax.generation.janus import drawing
from srum_jax.models.janus.model_config import JanusConfig

_MOST, _GREY = 16, 127  # pictures of a call; places of a picture that are not drawn yet


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDecoder:
    """The autoencoder's decoder; arguments as of BAGEL's `ImageDecoder`."""

    vae_params: Params = dataclasses.field(repr=False)
    model: JanusConfig
    programs: context.Programs = dataclasses.field(default_factory=context.Programs, repr=False)
    batch_sharding: jax.sharding.Sharding | None = None

    def decode(self, latents: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes float32 [h,w,1] each -> images uint8 [H,W,3] each; where a code is −1 it is grey.

        Raises BadInput where one of them, or what becomes of it, is not finite.
        """
        found: list[np.ndarray] = []
        for first in range(0, len(latents), _MOST):
            codes = np.stack(latents[first : first + _MOST])[..., 0]
            context.check_finite(bool(np.isfinite(codes).all()), "an image")
            drawn = np.repeat(np.repeat(codes >= 0, self._cell, axis=1), self._cell, axis=2)
            images = self._decoded(np.maximum(codes, 0).astype(np.int32))
            found += list(np.where(drawn[..., None], images, np.uint8(_GREY)))
        return found

    @property
    def _cell(self) -> int:
        return self.model.image_side // self.model.grid

    def _decoded(self, codes: np.ndarray) -> np.ndarray:
        rows = context.rows_for(len(codes), _MOST, ways(self.batch_sharding))
        padded = np.pad(codes, ((0, rows - len(codes)), (0, 0), (0, 0)))
        with self.programs.first("the decoder of pictures", {"pictures": rows}):
            made = drawing.decode_codes(
                self.vae_params, put(padded, self.batch_sharding), cfg=self.model
            )
        images, finite = map(fetch, made)
        context.check_finite(bool(finite[: len(codes)].all()), "an image")
        return images[: len(codes)]
