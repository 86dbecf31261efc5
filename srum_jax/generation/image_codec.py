"""Pixels to latents and back, by the model's autoencoder: each picture as at its exact size."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from srum_jax.core import in_flight
from srum_jax.core.param_tree import Params
from srum_jax.core.patches import patchify, unpatchify
from srum_jax.core.sharding import fetch, put
from srum_jax.data.images import to_float
from srum_jax.data.schema import Latent, LayoutSizes
from srum_jax.generation import context
from srum_jax.generation.base import BaseImageEncoder
from srum_jax.models.bagel import vae
from srum_jax.models.bagel.model_config import BagelConfig

_PIXELS = 2**14  # that go through one call of the decoder, if it is more than one image


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


def side_bucket(side: int) -> int:
    """The next of four sides for every doubling (…, 32, 40, 48, 56, 64, …), in latent tokens.

    Pictures to edit come in many sizes: so few programs encode and decode them all.
    """
    step = max(1, 2 ** ((side - 1).bit_length() - 3))
    return -(-side // step) * step


def _padded(sides: jax.Array | None, height: int, cfg: BagelConfig) -> vae.Padded | None:
    """Of pictures of these sides in arrays of `height`, both in latent tokens."""
    p = cfg.latent_patch
    return None if sides is None else vae.Padded(p * sides, p * height)


@functools.partial(jax.jit, static_argnames=("cfg", "moments"))
def encode_images(
    vae_params: Params,
    images: jax.Array,
    noise: jax.Array | None = None,
    sides: jax.Array | None = None,
    *,
    cfg: BagelConfig,
    moments: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """float32 [N,H,W,3] in [-1, 1] -> scaled latent tokens float32 [N,h,w,p·p·Z].

    The posterior's mean, with `noise` [N,h·p,w·p,Z] a sample of it, with `moments` its mean and
    standard deviation. sides: of each picture, int32 [N,2] in latent tokens; None: they fill their
    arrays.
    """
    padded = _padded(sides, images.shape[1] // cfg.token_pixels, cfg)

    def tokens(z):
        h = images.shape[1] // cfg.token_pixels
        return rearrange(patchify(z, cfg.latent_patch), "n (h w) d -> n h w d", h=h)

    if not moments:
        return tokens(vae.encode(vae_params, cfg.vae, images, noise, padded))
    mean, logvar = vae.encode_moments(vae_params, cfg.vae, images, padded)
    scale, shift = cfg.vae.scale, cfg.vae.shift
    return tokens(scale * (mean - shift)), tokens(scale * jnp.exp(0.5 * logvar))


@functools.partial(jax.jit, static_argnames="cfg")
def decode_latents(
    vae_params: Params,
    tokens: jax.Array,
    sides: jax.Array | None = None,
    *,
    cfg: BagelConfig,
) -> tuple[jax.Array, jax.Array]:
    """Latent tokens float32 [N,h,w,p·p·Z] -> images uint8 [N,H,W,3], whether each was finite.

    sides: as of `encode_images`.
    """
    flat = rearrange(tokens, "n h w d -> n (h w) d")
    latents = unpatchify(flat, cfg.latent_patch, *tokens.shape[1:3])
    padded = _padded(sides, tokens.shape[1], cfg)
    decoded = vae.decode(vae_params, cfg.vae, latents, padded)
    return vae.to_uint8(decoded), jnp.isfinite(decoded).all(axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True, eq=False)
class ImageEncoder(BaseImageEncoder):
    """BAGEL's encoder."""

    model: BagelConfig
    floats = staticmethod(to_float)

    def encode(self, image: np.ndarray, seed: int | None = None) -> Latent:
        """uint8 [H,W,3] -> the clean Latent that stands for it, tokens float32 [h,w,p·p·Z].

        The posterior's mean; with a seed, a sample of it, as the original always draws. Sides are
        padded to buckets. Raises ValueError for a size that the model has no latent tokens for.
        """
        size, p, side = image.shape[:2], self.model.latent_patch, self.model.token_pixels
        h, w = grid = latent_grid(size, self.model.layout)
        room = tuple(map(side_bucket, grid))
        pixels = _filled([to_float(image)], (room[0] * side, room[1] * side))
        noise = None
        if seed is not None:
            drawn = jax.random.normal(jax.random.key(seed), (h * p, w * p, self.model.vae.z))
            noise = _filled([np.asarray(drawn)], (room[0] * p, room[1] * p))
        sides = None if room == grid else np.array([grid], np.int32)
        with self.programs.first("the encoder of pictures", {"size": pixels.shape[1:3]}):
            found = encode_images(self.vae_params, pixels, noise, sides, cfg=self.model)
        (tokens,) = fetch(found)
        return Latent(tokens[:h, :w], size=size, noisy=False)

    def _call(self, rows: jax.Array, moments: bool) -> list[jax.Array]:
        found = encode_images(self.vae_params, rows, cfg=self.model, moments=moments)
        return jax.tree.leaves(found)


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
        return next(self.stream([DecodeRequest(latents)]), [])

    def stream(self, several: Iterable["DecodeRequest"]) -> Iterator[list[np.ndarray]]:
        """As `decode` of each of several lists, in order, none of them empty. A wish to stop ends
        nothing here: what was drawn is seldom long to decode, and would be lost."""
        images: dict[int, np.ndarray] = {}
        for (latents, part), (decoded, finite) in in_flight.fetched(self._sent(several)):
            context.check_finite(finite[: len(part)].all(), "an image")
            for i, image in zip(part, decoded, strict=False):
                h, w = (side * self.model.token_pixels for side in latents[i].shape[:2])
                images[i] = image[:h, :w]
            if len(images) == len(latents):
                yield [images[i] for i in range(len(latents))]
                images = {}

    def _sent(
        self, several: Iterable["DecodeRequest"]
    ) -> Iterator[tuple[tuple[Sequence[np.ndarray], Sequence[int]], Any]]:
        """The calls for several lists: ((the list, places of the call's), what it makes)."""
        parts = ways(self.batch_sharding)
        for given in several:
            for room, most, part in _by_size(given.rooms(), self.model.token_pixels**2, parts):
                rows = context.rows_for(max(len(part), min(given.rows, most)), most, parts)
                some = [given.latents[i] for i in part]
                tokens = _filled(some, room, rows)
                sides = np.array([x.shape[:2] for x in some] + [room] * (rows - len(some)))
                padded = None if (sides == room).all() else sides.astype(np.int32)
                sizes = {"pictures": rows, "latent tokens": room, "padded": padded is not None}
                with self.programs.first("the decoder of pictures", sizes):
                    tokens, padded = put((tokens, padded), self.batch_sharding)
                    made = decode_latents(self.vae_params, tokens, padded, cfg=self.model)
                yield (given.latents, part), made


@dataclasses.dataclass(frozen=True)
class DecodeRequest:
    """Latent tokens float32 [h,w,p·p·Z] of several pictures that are decoded together.

    rows: that a call has at least, as far as _PIXELS allows · bucketed: sides are padded to buckets
    (`side_bucket`), otherwise pictures of one size share a call.
    """

    latents: Sequence[np.ndarray]
    rows: int = 1
    bucketed: bool = False

    def rooms(self) -> list[tuple[int, ...]]:
        """(rows, columns) of each in the array of its call."""
        sides = (x.shape[:2] for x in self.latents)
        return [tuple(map(side_bucket, one)) if self.bucketed else one for one in sides]


def _filled(
    arrays: Sequence[np.ndarray], room: tuple[int, int], rows: int | None = None
) -> np.ndarray:
    """Arrays [h,w,C] in the upper left corners of one [rows,*room,C], 0 elsewhere."""
    out = np.zeros((rows or len(arrays), *room, arrays[0].shape[2]), np.float32)
    for row, one in zip(out, arrays, strict=False):
        row[: one.shape[0], : one.shape[1]] = one
    return out


def ways(at: jax.sharding.Sharding | None) -> int:
    """Parts that the rows of an array are cut into."""
    if at is None:
        return 1
    return at.num_devices // at.shard_shape((at.num_devices,))[0]


def _by_size(shapes: Sequence[tuple], pixels: int, ways: int) -> list[tuple[tuple, int, list[int]]]:
    """Places of like-shaped pictures, in parts of which each of `ways` devices has at most _PIXELS
    pixels (one picture at least); before each its shape and how many it could hold."""
    groups: dict[tuple, list[int]] = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(i)
    parts = []
    for (h, w), members in groups.items():
        count = 1
        while 2 * count * h * w * pixels <= _PIXELS:
            count *= 2
        count *= ways
        parts += [
            ((h, w), count, members[first : first + count])
            for first in range(0, len(members), count)
        ]
    return parts
