"""Pictures as codes of Janus's autoencoder, for training; drawing reads none."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from srum_jax.core.errors import BadInput
from srum_jax.core.param_tree import Params
from srum_jax.data.letterbox import levels
from srum_jax.data.schema import Latent
from srum_jax.generation.base import BaseImageEncoder
from srum_jax.generation.janus.template import ONLY_WORDS
from srum_jax.models.janus import vq
from srum_jax.models.janus.model_config import JanusConfig


@functools.partial(jax.jit, static_argnames="cfg")
def _moments(
    vae_params: Params, images: jax.Array, *, cfg: JanusConfig
) -> tuple[jax.Array, jax.Array]:
    """(codes, zeros), both float32 [N,h,w,1], of pictures float32 [N,H,W,3]."""
    codes = vq.encode(vae_params, cfg.vq, images).astype(jnp.float32)[..., None]
    return codes, jnp.zeros_like(codes)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageEncoder(BaseImageEncoder):
    """Janus's encoder: means are codes, float32 [N,h,w,1], and drawn from nothing."""

    model: JanusConfig
    floats = staticmethod(levels)

    def encode(self, image: np.ndarray, seed: int | None = None) -> Latent:
        """Raises BadInput: there is nothing that a picture's codes would be read by."""
        raise BadInput(ONLY_WORDS)

    def _call(self, rows: jax.Array, moments: bool) -> list[jax.Array]:
        return list(_moments(self.vae_params, rows, cfg=self.model))[: 1 + moments]
