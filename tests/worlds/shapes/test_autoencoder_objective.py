"""The autoencoder's loss counts what it says, adds up over parts, and can be lowered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srum_jax.core import param_tree
from srum_jax.core.loss import means, total
from srum_jax.models.bagel import vae
from srum_jax.models.bagel.model_config import VAEConfig
from srum_jax.worlds.shapes import autoencoder_objective

CFG = VAEConfig(ch=32, ch_mult=(1,), res_blocks=1, z=2, scale=0.7, shift=0.1)


@pytest.fixture(scope="module")
def params():
    return param_tree.init(vae.specs(CFG), jax.random.key(0))


def _images():
    images = np.full((1, 8, 8, 3), -0.9, np.float32)
    images[:, 2:5, 1:4, 0] = 0.8
    return images


@jax.jit  # one program for all tests: compiling it is what they cost
def _run(params, images, key):
    """Loss, gradients, and the posterior and reconstruction made anew."""

    def loss(p):
        batch = {"images": images, "numbers": jnp.full(len(images), 7, jnp.uint32)}
        out = autoencoder_objective.AutoencoderLoss(CFG, 1e-5)(p, None, batch, key)
        return total(out), out

    (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    mean, logvar = vae.encode_moments(params, CFG, images)
    noise = jax.random.normal(jax.random.fold_in(key, 7), mean.shape[1:])[None]
    z = mean + jnp.exp(0.5 * logvar) * noise
    decoded = vae.decode(params, CFG, CFG.scale * (z - CFG.shift))
    return out, gradients, mean, logvar, decoded


@pytest.mark.slow
def test_terms_are_what_they_say(params):
    out, _, mean, logvar, decoded = _run(params, _images(), jax.random.key(3))
    error = np.asarray(decoded) - _images()
    weights = np.ones((1, 8, 8, 1), np.float32)
    weights[:, 2:5, 1:4] += autoencoder_objective.CONTRAST_WEIGHT * 0.85
    got = {k: float(v) for k, v in means({**out.terms, **out.metrics}).items()}
    rows, columns = np.diff(error, axis=1), np.diff(error, axis=2)
    by_hand = {
        "absolute": (weights * np.abs(error)).sum() / (3 * weights.sum()),
        "square": (weights * error**2).sum() / (3 * weights.sum()),
        "edge": (np.abs(rows).sum() + np.abs(columns).sum()) / (rows.size + columns.size),
        "kl": 0.5 * float((mean**2 + jnp.exp(logvar) - 1 - logvar).mean()),
        "pixel_error": np.abs(error).mean(),
        "latent_variance": float(jnp.exp(logvar).mean()),
    }
    assert got == pytest.approx(by_hand, rel=1e-4)
    assert float(total(out)) == pytest.approx(
        got["absolute"] + 0.5 * got["square"] + 0.5 * got["edge"] + 1e-5 * got["kl"], rel=1e-5
    )


@pytest.mark.slow
def test_sums_add_up_over_micro_batches(params):
    # pictures differ in weight, so the mean of means would be wrong
    pictures = np.full_like(_images(), -0.9), _images()
    pair = [_run(params, x, jax.random.key(0))[0] for x in pictures]
    added = jax.tree.map(jnp.add, *pair)
    sums, weights = zip(*(o.terms["absolute"] for o in pair), strict=True)
    assert weights[0] != weights[1]
    assert float(means(added.terms)["absolute"]) == pytest.approx(float(sum(sums) / sum(weights)))


def test_a_few_steps_lower_the_loss(params):
    now, values = params, []
    for i in range(15):
        out, gradients, *_ = _run(now, _images(), jax.random.key(i))
        now = jax.tree.map(lambda p, g: p - 3e-3 * jnp.sign(g), now, gradients)
        values.append(float(total(out)))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert values[-1] < 0.7 * values[0]


def test_latent_statistics_normalise(params):
    rng = np.random.default_rng(0)
    batches = [rng.uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32) for _ in range(2)]
    scale, shift = autoencoder_objective.latent_statistics(params, CFG, batches)
    z = np.stack([np.asarray(_run(params, x, jax.random.key(0))[2]) for x in batches])
    latents = scale * (z - shift)
    assert abs(latents.mean()) < 1e-4 and abs(latents.std() - 1) < 1e-4
    with pytest.raises(ValueError, match="at least one picture"):
        autoencoder_objective.latent_statistics(params, CFG, [])
