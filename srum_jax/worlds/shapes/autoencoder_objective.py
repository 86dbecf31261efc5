"""How an autoencoder is trained, and the statistics that scale its latents afterwards.

Pictures of few objects on a flat ground are lost first at the objects and their outlines, which
cover few pixels; so pixels that stand out from the picture's ground weigh more, and errors in the
differences of neighbouring pixels count as well. No adversary and no perceptual network: the
small worlds this trains for do not need them.
"""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from srum_jax.core.loss import LossOut, Ratio, ratio
from srum_jax.core.param_tree import Params
from srum_jax.models.bagel import vae
from srum_jax.models.bagel.model_config import VAEConfig

SQUARE_WEIGHT = 0.5
EDGE_WEIGHT = 0.5
CONTRAST_WEIGHT = 4.0  # a pixel as far from the ground as can be weighs 1 + this


def _differences(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Vertical and horizontal differences of neighbouring pixels."""
    return images[:, 1:] - images[:, :-1], images[:, :, 1:] - images[:, :, :-1]


def _pixel_weights(images: jax.Array) -> jax.Array:
    """[B, H, W, 1]: 1 on the ground (the picture's median colour), more the further from it."""
    ground = jnp.median(images, axis=(1, 2), keepdims=True)
    contrast = jnp.abs(images - ground).max(-1, keepdims=True) / 2.0
    return 1.0 + CONTRAST_WEIGHT * contrast


PIXELS = (("absolute", 1.0), ("square", SQUARE_WEIGHT), ("edge", EDGE_WEIGHT))  # terms of `pixels`


def pixels(error: jax.Array, images: jax.Array) -> dict[str, Ratio]:
    """The terms of what is wrong in pictures made anew: error = made − images, both
    [B, H, W, 3]. Averages per pixel (weighted by contrast) and channel."""
    edges, weights = _differences(error), _pixel_weights(images)
    return {
        "absolute": ratio((weights * jnp.abs(error)).sum(), 3 * weights.sum()),
        "square": ratio((weights * jnp.square(error)).sum(), 3 * weights.sum()),
        "edge": ratio(sum(jnp.abs(e).sum() for e in edges), sum(e.size for e in edges)),
    }


@dataclasses.dataclass(frozen=True)
class AutoencoderLoss:
    """Absolute, squared and edge error of a sampled reconstruction, and KL to N(0, 1).

    Errors are those of `pixels`, KL in nats per latent number; `kl_weight` (about 1e-6 … 1e-5)
    only keeps the latents' range in hand. `cfg`'s scale and shift cancel out.
    """

    cfg: VAEConfig
    kl_weight: float

    def __call__(
        self, params: Params, reference: Params | None, batch: dict, key: jax.Array
    ) -> LossOut:
        """Terms and metrics of {"images": float32 [B, H, W, 3] in [-1, 1], "numbers": uint32 [B]}.

        The posterior's noise is a function of (key, number), so cutting the batch changes nothing.
        There is no reference to compare with.
        """
        cfg, images = self.cfg, batch["images"]
        mean, logvar = vae.encode_moments(params, cfg, images)
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(batch["numbers"])
        noise = jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:]))(keys)
        z = mean + jnp.exp(0.5 * logvar) * noise
        error = vae.decode(params, cfg, cfg.scale * (z - cfg.shift)) - images
        kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
        return LossOut(
            terms=pixels(error, images) | {"kl": ratio(kl.sum(), kl.size)},
            metrics={
                "pixel_error": ratio(jnp.abs(error).sum(), error.size),
                "latent_variance": ratio(jnp.exp(logvar).sum(), logvar.size),
            },
            coefficients=(*PIXELS, ("kl", self.kl_weight)),
        )


def latent_statistics(
    params: Params, cfg: VAEConfig, batches: Iterable[np.ndarray]
) -> tuple[float, float]:
    """(scale, shift) that give the latents of a picture set mean 0 and deviation 1.

    batches: float32 [B, H, W, 3] in [-1, 1], any number (at least one picture, else ValueError).
    shift is the posterior means' average over pictures, places and channels, scale 1 / standard
    deviation: what belongs in `VAEConfig`. float64 sums.
    """
    moments = jax.jit(functools.partial(vae.encode_moments, cfg=cfg))
    count, first, second = 0, 0.0, 0.0
    for images in batches:
        z = np.asarray(moments(params, images=images)[0], np.float64)
        count, first, second = count + z.size, first + z.sum(), second + np.square(z).sum()
    if not count:
        raise ValueError("latent statistics need at least one picture")
    shift = first / count
    deviation = max(second / count - shift**2, 1e-12) ** 0.5
    return 1.0 / deviation, shift
