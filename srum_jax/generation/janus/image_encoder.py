"""Pictures as codes of Janus's autoencoder, for training; drawing reads none."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from srum_jax.core.errors import BadInput
from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import fetch, put
from srum_jax.data.letterbox import levels
from srum_jax.data.schema import Latent
from srum_jax.generation import context
from srum_jax.generation.janus.template import WORDS_ALONE
from srum_jax.models.janus import vq
from srum_jax.models.janus.model_config import JanusConfig

_codes = jax.jit(vq.encode, static_argnums=1)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageEncoder:
    """The autoencoder's encoder; arguments as of BAGEL's `ImageEncoder`."""

    vae_params: Params = dataclasses.field(repr=False)
    model: JanusConfig
    batch: int = 1
    batch_sharding: jax.sharding.Sharding | None = None
    programs: context.Programs = dataclasses.field(default_factory=context.Programs, repr=False)

    def encode(self, image: np.ndarray, seed: int | None = None) -> Latent:
        """Raises BadInput: there is nothing that a picture's codes would be read by."""
        raise BadInput(WORDS_ALONE)

    def means(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 [H,W,3] each, of one size -> their codes, float32 [N,h,w,1]."""
        found = []
        for first in range(0, len(images), self.batch):
            part = images[first : first + self.batch]
            full = np.zeros((self.batch, *part[0].shape), np.float32)
            full[: len(part)] = [levels(image) for image in part]
            sizes = {"pictures": self.batch, "size": full.shape[1:3]}
            with self.programs.first("the encoder of pictures", sizes):
                made = _codes(self.vae_params, self.model.vq, put(full, self.batch_sharding))
            found.append(fetch(made)[: len(part)])
        return np.concatenate(found).astype(np.float32)[..., None]

    def moments(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """As `means`, and zeros: codes are not drawn from anything."""
        codes = self.means(images)
        return codes, np.zeros_like(codes)
