"""The autoencoder against the official arrays."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from tiny import SHAPES

from srum_jax.core import param_tree
from srum_jax.models.bagel import hf, model_config, vae

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
CLOSE = dict(atol=1e-4, rtol=1e-4)


def _nhwc(x):
    return rearrange(x, "n c h w -> n h w c")


@pytest.fixture(scope="module", params=["caseA", "caseB"])
def case(request):
    folder = GOLDENS / request.param
    cfg = model_config.from_folder(folder)
    _, params = hf.load(folder, cfg, want=("vae",))
    return cfg.vae, params, np.load(folder / "inputs.npz"), np.load(folder / "outputs.npz")


def test_encode_and_decode_match_the_official_autoencoder(case):
    cfg, params, inputs, outputs = case
    images, noise = _nhwc(inputs["vae/image"]), _nhwc(inputs["vae/encode_eps"])

    @jax.jit
    def run(params):
        moments = vae.encode_moments(params, cfg, images)
        decoded = vae.decode(params, cfg, _nhwc(inputs["vae/decode_latent"]))
        mean, sample = (vae.encode(params, cfg, images, n) for n in (None, noise))
        return jnp.concatenate(moments, -1), mean, sample, decoded

    with jax.default_matmul_precision("highest"):
        moments, mean, sample, decoded = run(params)
    np.testing.assert_allclose(moments, _nhwc(outputs["vae/moments"]), **CLOSE)
    np.testing.assert_allclose(sample, _nhwc(outputs["vae/latent"]), **CLOSE)
    np.testing.assert_allclose(decoded, _nhwc(outputs["vae/decoded"]), **CLOSE)
    np.testing.assert_allclose(mean, cfg.scale * (moments[..., : cfg.z] - cfg.shift), atol=1e-6)


def test_bytes_are_truncated_as_officially():
    x = np.array([-2.0, -1.0, -0.999, 0.0, 0.5, 0.9999, 1.0, 3.0], np.float32)
    official = (np.clip(x * 0.5 + 0.5, 0, 1) * 255).astype(np.uint8)
    np.testing.assert_array_equal(vae.to_uint8(x), official)
    assert official[3] == 127  # rounding would say 128


def test_specs_scale_with_the_preset():
    assert param_tree.count(vae.specs(model_config.BAGEL_7B_MOT.vae)) == 83_819_683
    assert param_tree.count(vae.specs(SHAPES.vae)) == 296_531


def test_wrong_sizes_are_refused():
    cfg = SHAPES.vae
    params = param_tree.abstract(vae.specs(cfg))
    images = jax.ShapeDtypeStruct((1, 30, 32, 3), jnp.float32)
    with pytest.raises(ValueError, match="30x32 cannot be encoded: sides must be multiples of 4"):
        jax.eval_shape(lambda p, x: vae.encode(p, cfg, x), params, images)
    with pytest.raises(ValueError, match="multiples of 32"):
        vae.specs(
            model_config.VAEConfig(ch=48, ch_mult=(1,), res_blocks=1, z=4, scale=1.0, shift=0.0)
        )
