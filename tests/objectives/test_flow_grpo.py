"""The policy gradient over stored steps: densities, ratios, clipping, and what it adds up to."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import CFG, as_advantages, latent, pack, talk, text

from configs import base
from srum_jax import config as run_config
from srum_jax.core import loss as losses
from srum_jax.data.schema import Example, Transition
from srum_jax.objectives import flow_grpo, terms
from srum_jax.objectives.flow_grpo import FlowGrpo
from srum_jax.training import step
from srum_jax.training.state import FrozenParams

CLIP = 0.1


def drawn(seed, rows, columns):
    """A prompt and an image at a step by noise."""
    rng = np.random.default_rng(seed)
    image = latent(rng, rows, columns, boxes=1, noise_id=seed)
    t, after = sorted(rng.uniform(0.2, 0.95, 2), reverse=True)
    moved = image.tokens + 0.3 * rng.normal(size=image.tokens.shape).astype(np.float32)
    said = Transition(moved, (t, after), rng.uniform(0.2, 0.6), rng.uniform(-2, 0))
    return Example((text(rng, 2), dataclasses.replace(image, transition=said)))


@pytest.fixture(scope="module")
def batch():
    """Two images in a row, one in the next, none in the third, one in the fourth; padding."""
    rows = [[drawn(1, 2, 2), drawn(2, 2, 3)], [drawn(3, 1, 2)], [talk(4)], [drawn(5, 2, 2)]]
    made = as_advantages(pack(rows, spare=2, rewards=True, transitions=True))
    return jax.tree.map(jnp.asarray, made)


@dataclasses.dataclass(frozen=True)
class Linear:
    """In the model's place: velocities a x + b t + c, number by number."""

    def at(self, params, batch, x, t):
        times = jnp.take_along_axis(t, batch.latent_images, axis=1)[..., None]
        v = params["a"] * x + params["b"] * times + params["c"]
        return terms.Predicted(v, None, terms.trained(batch))


def params(seed):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(0, 0.5, (1, 1, CFG.token_dim)).astype(np.float32) for k in "abc"}


def objective(**values):
    values = {"objective": "flow_grpo", "clip": CLIP, "anchor": 0.0} | values
    cfg = dataclasses.replace(run_config.load(base.get_config()).train, **values)
    return FlowGrpo(cfg, Linear())


def images(batch):
    """(row, image) of every image."""
    return list(zip(*np.nonzero(np.asarray(batch.noisy)), strict=True))


def log_prob(batch, velocity, row, image, xp=np):
    """Of one image's step, token by token as the paper writes it."""
    moved, found = batch.transitions, []
    t, after = moved.times[row, image]
    sigma = moved.deviation[row, image] / xp.sqrt(t - after)
    for g in range(batch.latents.shape[1]):
        if batch.gen.segment[row, g] == 0 or batch.latent_images[row, g] != image:
            continue
        x, v = batch.latents[row, g], velocity[row, g]
        mean = x + (v + sigma**2 / (2 * t) * (x + (1 - t) * v)) * (after - t)
        deviation = sigma * xp.sqrt(t - after)
        distance = (moved.after[row, g] - mean) ** 2 / (2 * deviation**2)
        found.append(-distance - xp.log(deviation) - xp.log(xp.sqrt(2 * np.pi)))
    return xp.mean(xp.stack(found))


def by(params, batch):
    """The batch as if the model of `params` had drawn it."""
    out = Linear().at(params, batch, batch.latents, batch.transitions.times[..., 0])
    found = flow_grpo.log_probs(out.velocity, batch, out.trained)
    return batch.replace(transitions=batch.transitions.replace(log_prob=found))


def mean(ratio):
    return float(ratio[0] / ratio[1])


def test_log_probabilities_are_those_of_the_formula(batch):
    velocity = np.random.default_rng(0).normal(size=batch.latents.shape).astype(np.float32)
    found = flow_grpo.log_probs(velocity, batch, terms.trained(batch))
    assert len(images(batch)) == 4
    for row, image in images(batch):
        wanted = log_prob(jax.tree.map(np.asarray, batch), velocity, row, image)
        assert float(found[row, image]) == pytest.approx(wanted, rel=1e-4)
    assert not np.asarray(found)[~np.asarray(batch.noisy)].any()


def test_at_the_model_that_drew_the_ratio_is_one_and_the_gradient_the_policys(batch):
    """−Σ A ∇ log p over images, divided by their number; whatever the clip."""
    mine, key = params(0), jax.random.key(0)
    given, advantages = by(mine, batch), np.asarray(batch.rewards.image_advantage)

    def loss(p):
        out = objective()(p, None, given, key)
        return losses.total(out), out

    (value, out), found = jax.value_and_grad(loss, has_aux=True)(mine)
    assert mean(out.metrics["ratio"]) == pytest.approx(1, abs=1e-6)
    assert mean(out.metrics["clip_fraction"]) == 0
    ours = np.array([advantages[at] for at in images(batch)])
    assert float(value) == pytest.approx(-ours.mean(), rel=1e-5)

    def weighted(p):
        t = given.transitions.times[..., 0]
        v = Linear().at(p, given, given.latents, t).velocity
        return -sum(advantages[at] * log_prob(given, v, *at, xp=jnp) for at in images(batch)) / len(
            images(batch)
        )

    wanted = jax.grad(weighted)(mine)
    for name in mine:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-3, atol=1e-6)
        assert np.abs(found[name]).max() > 1e-3


@pytest.mark.parametrize("advantage", [-0.5, 0.8])
def test_beyond_the_clip_nothing_pulls_on(advantage):
    """Where the ratio went as the advantage wants, and too far; where it went the other way, it is
    pulled back however far it is."""
    values = jnp.log(jnp.array([0.5, 0.85, 0.95, 1.0, 1.05, 1.15, 3.0]))
    pull = jax.vmap(jax.grad(lambda r: flow_grpo.surrogate(r, advantage, CLIP)))(values)
    rho = np.exp(np.asarray(values))
    beyond = rho > 1 + CLIP if advantage > 0 else rho < 1 - CLIP
    np.testing.assert_allclose(pull, np.where(beyond, 0, rho * advantage), rtol=1e-5)
    bound = (1 + CLIP if advantage > 0 else 1 - CLIP) * advantage
    assert float(flow_grpo.surrogate(values, advantage, CLIP).max()) == pytest.approx(bound)


def test_another_model_s_ratios_are_reported_and_clipped(batch):
    given, other = by(params(0), batch), params(1)
    out = objective()(other, None, given, jax.random.key(0))
    t = given.transitions.times[..., 0]
    v = np.asarray(Linear().at(other, given, given.latents, t).velocity)
    host = jax.tree.map(np.asarray, given)
    rho = np.exp([log_prob(host, v, *at) - host.transitions.log_prob[at] for at in images(batch)])
    assert mean(out.metrics["ratio"]) == pytest.approx(rho.mean(), rel=1e-3)
    assert mean(out.metrics["clip_fraction"]) == np.mean(np.abs(rho - 1) > CLIP) > 0
    a = np.array([host.rewards.image_advantage[at] for at in images(batch)])
    wanted = -np.minimum(rho * a, np.clip(rho, 1 - CLIP, 1 + CLIP) * a).mean()
    assert mean(out.terms["policy"]) == pytest.approx(wanted, rel=1e-3)


def test_parts_of_a_batch_add_up_to_it(batch):
    """Rows have two images, one or none."""
    trained, given = params(1), by(params(0), batch)
    fixed = FrozenParams({}, reference=params(2))
    run = functools.partial(
        step.gradients, objective(anchor=0.3), trained, fixed, given, jax.random.key(0)
    )
    (loss, means, grads), (whole, wanted, want) = (run(micro_batches=n) for n in (2, 1))
    assert float(loss) == pytest.approx(float(whole), rel=1e-5)
    for name in trained:
        np.testing.assert_allclose(grads[name], want[name], rtol=1e-4, atol=1e-6)
    assert {k: float(v) for k, v in means.items()} == pytest.approx(
        {k: float(v) for k, v in wanted.items()}, rel=1e-4
    )


def test_the_anchor_is_the_velocities_distance_at_the_stored_latents(batch):
    mine, old, first = (params(seed) for seed in range(3))
    t = batch.transitions.times[..., 0]
    v, of_old, of_first = (
        np.asarray(Linear().at(p, batch, batch.latents, t).velocity) for p in (mine, old, first)
    )
    mask, run = np.asarray(terms.trained(batch)), objective(anchor=0.3)
    out = run(mine, old, batch, None)
    assert mean(out.terms["anchor"]) == pytest.approx(((v - of_old)[mask] ** 2).mean(), rel=1e-5)
    relative = ((v - of_old)[mask] ** 2).mean() / (of_old[mask] ** 2).mean()
    assert mean(out.metrics["relative_drift"]) == pytest.approx(relative, rel=1e-5)
    policy = mean(out.terms["policy"])
    assert float(losses.total(out)) == pytest.approx(policy + 0.3 * mean(out.terms["anchor"]))
    to_first = run(mine, None, batch, None, first=first)
    wanted = ((v - of_first)[mask] ** 2).mean()
    assert mean(to_first.terms["anchor"]) == pytest.approx(wanted, rel=1e-5)


def test_another_batch_is_refused(batch):
    for bad in (batch.replace(transitions=None), batch.replace(
        rewards=batch.rewards.replace(image_advantage=None))):  # fmt: skip
        with pytest.raises(ValueError, match="flow_grpo reads steps by noise, and advantages"):
            objective()(params(0), None, bad, None)
