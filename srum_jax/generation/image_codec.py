"""Pixels to latents and back, by the model's autoencoder, each picture at its exact size."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from srum_jax.core import preemption
from srum_jax.core.param_tree import Params
from srum_jax.core.patches import patchify, unpatchify
from srum_jax.core.sharding import fetch, put
from srum_jax.data.images import to_float
from srum_jax.data.schema import Latent, LayoutSizes
from srum_jax.generation import context
from srum_jax.models.bagel import vae
from srum_jax.models.bagel.model_config import BagelConfig

_PIXELS = 2**14  # that a device decodes in one call, if it is more than one image


def latent_grid(size: tuple[int, int], layout: LayoutSizes) -> tuple[int, int]:
    """Latent tokens (h, w) of an image of `size` pixels. Raises ValueError for other sizes."""
    pixels = layout.token_pixels
    if any(s < pixels or s % pixels for s in size):
        raise ValueError(f"an image of {size[0]}x{size[1]}: sides must be multiples of {pixels}")
    if max(size) > pixels * layout.max_latent:
        raise ValueError(
            f"an image of {size[0]}x{size[1]} pixels is {size[0] // pixels}x{size[1] // pixels} "
            f"latent tokens; the model has positions for {layout.max_latent} a side "
            f"({pixels * layout.max_latent} pixels)"
        )
    return size[0] // pixels, size[1] // pixels


@functools.partial(jax.jit, static_argnames=("cfg", "moments"))
def encode_images(
    vae_params: Params,
    images: jax.Array,
    noise: jax.Array | None = None,
    *,
    cfg: BagelConfig,
    moments: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """float32 [N,H,W,3] in [-1, 1] -> scaled latent tokens float32 [N,h,w,p·p·Z].

    The posterior's mean, with `noise` [N,h·p,w·p,Z] a sample of it, with `moments` its mean and
    standard deviation.
    """

    def tokens(z):
        h = images.shape[1] // cfg.token_pixels
        return rearrange(patchify(z, cfg.latent_patch), "n (h w) d -> n h w d", h=h)

    if not moments:
        return tokens(vae.encode(vae_params, cfg.vae, images, noise))
    mean, logvar = vae.encode_moments(vae_params, cfg.vae, images)
    scale, shift = cfg.vae.scale, cfg.vae.shift
    return tokens(scale * (mean - shift)), tokens(scale * jnp.exp(0.5 * logvar))


@functools.partial(jax.jit, static_argnames="cfg")
def decode_latents(
    vae_params: Params, tokens: jax.Array, *, cfg: BagelConfig
) -> tuple[jax.Array, jax.Array]:
    """Latent tokens float32 [N,h,w,p·p·Z] -> images uint8 [N,H,W,3], whether each was finite."""
    flat = rearrange(tokens, "n h w d -> n (h w) d")
    latents = unpatchify(flat, cfg.latent_patch, *tokens.shape[1:3])
    decoded = vae.decode(vae_params, cfg.vae, latents)
    return vae.to_uint8(decoded), jnp.isfinite(decoded).all(axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True, eq=False)
class ImageEncoder:
    """The autoencoder's encoder.

    batch: images a call of `means` and `moments` · batch_sharding: where their rows lie.
    """

    vae_params: Params = dataclasses.field(repr=False)
    model: BagelConfig
    batch: int = 1
    batch_sharding: jax.sharding.Sharding | None = None
    programs: context.Programs = dataclasses.field(default_factory=context.Programs, repr=False)

    def encode(self, image: np.ndarray, seed: int | None = None) -> Latent:
        """uint8 [H,W,3] -> the clean Latent that stands for it, tokens float32 [h,w,p·p·Z].

        The posterior's mean; with a seed, a sample of it, as the original always draws. Raises
        ValueError for a size that the model has no latent tokens for.
        """
        size, p = image.shape[:2], self.model.latent_patch
        h, w = latent_grid(size, self.model.layout)
        noise = None
        if seed is not None:
            noise = jax.random.normal(jax.random.key(seed), (1, h * p, w * p, self.model.vae.z))
        pixels = to_float(image)[None]
        with self.programs.first("the encoder of pictures", {"size": size}):
            found = encode_images(self.vae_params, pixels, noise, cfg=self.model)
        (tokens,) = fetch(found)
        return Latent(tokens, size=size, noisy=False)

    def means(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 [H,W,3] each, of one size -> the posteriors' means, float32 [N,h,w,p·p·Z]."""
        (mean,) = self._batches(images, moments=False)
        return mean

    def moments(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """As `means`, with the posteriors' standard deviations beside them."""
        mean, std = self._batches(images, moments=True)
        return mean, std

    def _batches(self, images: Sequence[np.ndarray], *, moments: bool) -> list[np.ndarray]:
        parts = []
        for first in range(0, len(images), self.batch):
            preemption.check()
            part = images[first : first + self.batch]
            full = np.zeros((self.batch, *part[0].shape), np.float32)
            full[: len(part)] = [to_float(image) for image in part]
            rows = put(full, self.batch_sharding)
            sizes = {"pictures": self.batch, "size": full.shape[1:3]}
            with self.programs.first("the encoder of pictures", sizes):
                found = encode_images(self.vae_params, rows, cfg=self.model, moments=moments)
            parts.append([fetch(x)[: len(part)] for x in jax.tree.leaves(found)])
        return [np.concatenate(x) for x in zip(*parts, strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDecoder:
    """The autoencoder's decoder.

    batch_sharding: where pictures of a call lie, None: on the default device.
    """

    vae_params: Params = dataclasses.field(repr=False)
    model: BagelConfig
    programs: context.Programs = dataclasses.field(default_factory=context.Programs, repr=False)
    batch_sharding: jax.sharding.Sharding | None = None

    def decode(self, latents: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Latent tokens float32 [h,w,p·p·Z] each, of any sizes -> images uint8 [H,W,3] each.

        Raises BadInput where one of them, or what becomes of it, is not finite.
        """
        images: dict[int, np.ndarray] = {}
        ways = _ways(self.batch_sharding)
        for part in _by_size([x.shape[:2] for x in latents], self.model.token_pixels**2, ways):
            preemption.check()
            rows = context.rows_for(len(part), 2**30, ways)
            tokens = np.zeros((rows, *latents[part[0]].shape), np.float32)
            tokens[: len(part)] = [latents[i] for i in part]
            sizes = {"pictures": rows, "latent tokens": tokens.shape[1:3]}
            with self.programs.first("the decoder of pictures", sizes):
                placed = put(tokens, self.batch_sharding)
                found = decode_latents(self.vae_params, placed, cfg=self.model)
            decoded, finite = map(fetch, found)
            context.check_finite(finite[: len(part)].all(), "an image")
            images.update(zip(part, decoded, strict=False))
        return [images[i] for i in range(len(latents))]


def _ways(at: jax.sharding.Sharding | None) -> int:
    """Parts that the rows of an array are cut into."""
    if at is None:
        return 1
    return at.num_devices // at.shard_shape((at.num_devices,))[0]


def _by_size(shapes: Sequence[tuple], pixels: int, ways: int) -> list[list[int]]:
    """Numbers of like-shaped pictures, in parts of which each of `ways` devices has at most _PIXELS
    pixels (one picture at least)."""
    groups: dict[tuple, list[int]] = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(i)
    parts = []
    for (h, w), members in groups.items():
        count = 1
        while 2 * count * h * w * pixels <= _PIXELS:
            count *= 2
        count *= ways
        parts += [members[first : first + count] for first in range(0, len(members), count)]
    return parts
