"""The ViT tower and its patches against the official arrays, and independence between pictures."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srum_jax.core import param_tree
from srum_jax.core.patches import patchify, position_ids, unpatchify
from srum_jax.models.bagel import hf, model_config, vit

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


def _read(name):
    folder = GOLDENS / name
    cfg = model_config.from_folder(folder)
    params, _ = hf.load(folder, cfg, want=("model",))
    return cfg, params, np.load(folder / "inputs.npz"), np.load(folder / "outputs.npz")


@pytest.fixture(scope="module", params=["caseA", "caseB"])
def case(request):
    return _read(request.param)


def _row(cfg, inputs):
    """Both pictures of the case in one row, shuffled, with padding of foreign content."""
    lengths = inputs["vit/vit_token_seqlens"]
    patches, ids = inputs["vit/packed_pixel_values"], inputs["vit/packed_position_ids"]
    image = np.repeat(np.arange(len(lengths)), lengths)
    padding = np.full((3, patches.shape[1]), 7.0, np.float32)
    order = np.random.default_rng(0).permutation(len(ids) + 3)
    patches = np.concatenate([patches, padding])[order]
    ids = np.concatenate([ids, np.zeros(3, np.int32)])[order]
    image = np.concatenate([image, np.full(3, -1)])[order].astype(np.int32)
    return patches[None], ids[None], image[None], np.argsort(order)[:-3]


def test_features_match_the_official_tower(case):
    cfg, params, inputs, outputs = case
    patches, ids, image, back = _row(cfg, inputs)
    with jax.default_matmul_precision("highest"):
        features = jax.jit(vit.encode, static_argnums=1)(
            params["vit"], cfg.vit, patches, ids, image
        )
    np.testing.assert_allclose(features[0][back], outputs["vit/features"], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_gradients_pass_through_remat_and_miss_unused_positions():
    cfg, params, inputs, _ = _read("caseB")
    patches, ids, image, back = _row(cfg, inputs)

    @jax.jit
    def both(p):
        def loss(p, remat):
            features = vit.encode(p, cfg.vit, patches, ids, image, remat=remat)
            return jnp.square(features[0][back]).mean()

        return jax.grad(loss)(p, "none"), jax.grad(loss)(p, "dots")

    kept, again = both(params["vit"])
    for path, g in param_tree.flatten(kept).items():
        assert np.isfinite(g).all(), path
        np.testing.assert_allclose(g, param_tree.flatten(again)[path], atol=1e-5, err_msg=path)
    unused = np.setdiff1d(np.arange(cfg.vit.positions**2), ids[0])
    assert np.abs(kept["positions"][unused]).max() == 0


def test_pictures_cut_into_the_official_patches_and_back(case):
    cfg, _, inputs, _ = case
    rows = []
    for i in range(2):
        image = inputs[f"vit/image_{i}"].transpose(1, 2, 0)
        rows.append(patchify(image, cfg.vit.patch))
        h, w = (s // cfg.vit.patch for s in image.shape[:2])
        np.testing.assert_array_equal(unpatchify(rows[-1], cfg.vit.patch, h, w), image)
        np.testing.assert_array_equal(patchify(image[None], cfg.vit.patch)[0], rows[-1])
    np.testing.assert_array_equal(np.concatenate(rows), inputs["vit/packed_pixel_values"])


def test_latents_cut_into_the_official_tokens(case):
    cfg, _, inputs, _ = case
    h, w = inputs["train/patchified_vae_latent_shapes"][1]
    latent = inputs["train/padded_latent"][1].transpose(1, 2, 0)
    p = cfg.latent_patch
    tokens = patchify(latent[: h * p, : w * p], p)
    assert tokens.shape == (h * w, cfg.token_dim)
    # inner order (ph, pw, channel): the second channel-block is the right neighbour
    np.testing.assert_array_equal(tokens[0, cfg.vae.z : 2 * cfg.vae.z], latent[0, 1])


def test_position_ids_match_the_official_ones():
    common = np.load(GOLDENS / "common" / "common.npz")
    cases = json.loads((GOLDENS / "common" / "common.json").read_text())["posids"]
    assert len(cases) == 8
    for i, c in enumerate(cases):
        grid = c["img_h"] // c["patch"], c["img_w"] // c["patch"], c["max_per_side"]
        for kind in ("extrapolate", "interpolate"):
            ids = position_ids(*grid, interpolate=kind == "interpolate")
            assert ids.dtype == np.int32
            np.testing.assert_array_equal(ids, common[f"posid/{i}_{kind}"], f"{i} {kind}")


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="9x4 tokens does not fit positions of 8x8"):
        position_ids(9, 4, 8)
    with pytest.raises(ValueError, match="30x28 cannot be cut into patches of 14"):
        patchify(np.zeros((30, 28, 3)), 14)
    with pytest.raises(ValueError, match="5 tokens do not fill a grid of 2x3"):
        unpatchify(np.zeros((5, 12)), 2, 2, 3)
