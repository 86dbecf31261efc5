"""Latents to pictures and back: each at its own size, whatever shares its batch."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest
import tiny
from einops import rearrange
from samples import CFG, jit

from srum_jax.core import preemption, sharding
from srum_jax.core.errors import Preempted
from srum_jax.core.patches import patchify, unpatchify
from srum_jax.data.images import to_float
from srum_jax.generation import image_codec
from srum_jax.generation.image_codec import DecodeRequest, ImageDecoder, ImageEncoder, side_bucket
from srum_jax.models.bagel import vae
from srum_jax.planning import hlo


@pytest.fixture(scope="module")
def coder():
    """The autoencoder's parameters."""
    return tiny.weights()[1]


def test_latents_are_decoded_at_their_own_size(coder):
    """No padding: a picture's border is its own, whoever comes along."""
    rng = np.random.default_rng(0)
    sizes = [(2, 3), (3, 2), (2, 3), (2, 3)]
    latents = [rng.normal(size=(*s, CFG.token_dim)).astype(np.float32) for s in sizes]
    show = ImageDecoder(coder, CFG).decode
    found = show(latents)
    decode = jit(functools.partial(vae.decode, cfg=CFG.vae))
    for (h, w), tokens, shown in zip(sizes, latents, found, strict=True):
        flat = rearrange(tokens, "h w d -> 1 (h w) d")
        pixels = decode(coder, latents=unpatchify(flat, CFG.latent_patch, h, w))[0]
        want = np.clip(np.asarray(pixels) / 2 + 0.5, 0, 1) * 255
        assert shown.shape == (4 * h, 4 * w, 3) and shown.dtype == np.uint8
        assert np.abs(shown - want).max() <= 1.01
    assert show([]) == []


def test_each_device_decodes_pictures_of_its_own(coder):
    """The same pictures, cut over the devices; nothing is sent between these."""
    sizes = types.SimpleNamespace(data=2, fsdp=2, tensor=2, context=1)
    mesh = sharding.make_mesh(sizes)
    at = sharding.batch_sharding(mesh)
    rng = np.random.default_rng(0)
    latents = [rng.normal(size=(*s, CFG.token_dim)).astype(np.float32) for s in [(2, 3)] * 5]
    want = ImageDecoder(coder, CFG).decode(latents)
    placed = jax.device_put(coder, sharding.replicated(mesh))
    found = ImageDecoder(placed, CFG, batch_sharding=at).decode(latents)
    for a, b in zip(found, want, strict=True):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1

    tokens = jax.ShapeDtypeStruct((8, 2, 3, CFG.token_dim), np.float32, sharding=at)
    made = image_codec.decode_latents.lower(placed, tokens, cfg=CFG).compile()
    assert hlo.collectives(made.as_text()) == {}
    assert made.output_shardings[0].shard_shape((8, 8, 12, 3)) == (2, 8, 12, 3)


def test_a_picture_is_encoded_to_the_mean_or_a_seeds_sample(coder):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    encode = ImageEncoder(coder, CFG).encode
    mean = encode(pixels)
    assert mean.tokens.shape == (2, 3, CFG.token_dim) and mean.size == (8, 12) and not mean.noisy
    moments = jit(functools.partial(vae.encode_moments, cfg=CFG.vae))
    want, logvar = moments(coder, images=to_float(pixels)[None])
    flat = rearrange(mean.tokens, "h w d -> (h w) d")
    np.testing.assert_allclose(flat, patchify(want, CFG.latent_patch)[0], atol=1e-5)
    drawn = [encode(pixels, seed=i).tokens for i in range(64)]
    np.testing.assert_array_equal(drawn[3], encode(pixels, seed=3).tokens)
    spread = patchify(np.exp(0.5 * logvar), CFG.latent_patch)[0].reshape(mean.tokens.shape)
    errors = (np.array(drawn) - mean.tokens) / spread
    assert abs(errors.mean()) < 0.1 and abs(errors.std() - 1) < 0.1
    with pytest.raises(ValueError, match="8x10.*multiples of 4"):
        encode(np.zeros((8, 10, 3), np.uint8))


def test_moments_of_many_are_those_of_each(coder):
    """Pictures of a batch, padded or not, are encoded alone; `means` is the first of the pair."""
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (5, 8, 12, 3), np.uint8))
    encoder = ImageEncoder(coder, CFG, batch=2)
    mean, std = encoder.moments(images)
    assert mean.shape == std.shape == (5, 2, 3, CFG.token_dim) and (std > 0).all()
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(encoder.means(images), mean, atol=1e-5)
    told = functools.partial(next, iter([False, True]))  # to stop, after the first batch
    with preemption.agreeing(told), pytest.raises(Preempted):
        encoder.moments(images)
    for one, want in zip(images, mean, strict=True):
        np.testing.assert_allclose(encoder.encode(one).tokens, want, atol=1e-5)


@pytest.mark.parametrize("given, room", [(1, 1), (8, 8), (9, 10), (33, 40), (45, 48), (64, 64)])
def test_sides_are_padded_to_four_for_every_doubling(given, room):
    assert side_bucket(given) == room
    assert len({side_bucket(side) for side in range(33, 65)}) == 4
    assert all(side_bucket(side) <= 1.25 * side for side in range(1, 65))


def test_pictures_of_many_sizes_share_a_program_and_are_what_they_are_at_their_own(coder):
    """What pads them changes nothing: at most the rounding of a sum."""
    rng = np.random.default_rng(0)
    sizes = [(9, 10), (10, 9), (9, 9), (9, 10)]
    latents = [rng.normal(size=(*s, CFG.token_dim)).astype(np.float32) for s in sizes]
    decoder, before = ImageDecoder(coder, CFG), image_codec.decode_latents._cache_size()
    (shared,) = decoder.stream([DecodeRequest(latents, bucketed=True)])
    assert image_codec.decode_latents._cache_size() == before + 1
    for (h, w), image, alone in zip(sizes, shared, decoder.decode(latents), strict=True):
        assert image.shape == (4 * h, 4 * w, 3)
        assert np.abs(image.astype(int) - alone).max() <= 1


def test_pictures_of_many_sizes_are_encoded_by_one_program(coder):
    rng = np.random.default_rng(0)
    encoder = ImageEncoder(coder, dataclasses.replace(CFG, max_latent=16))
    before = image_codec.encode_images._cache_size()
    images = [rng.integers(0, 256, (4 * h, 4 * w, 3), np.uint8) for h, w in ((9, 10), (9, 9))]
    found = [encoder.encode(image).tokens for image in images]
    assert image_codec.encode_images._cache_size() == before + 1
    for image, tokens in zip(images, found, strict=True):
        (alone,) = encoder.means([image])
        np.testing.assert_allclose(tokens, alone, atol=1e-5)
