"""Steps by noise: the marginals are those of the ODE, and densities the normal distribution's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srum_jax import flow

MEAN, STD = 1.5, 0.4  # of x_0 in a world of one number a picture
COUNT, STEPS = 20_000, 240


def marginal(t):
    """(mean, standard deviation) of x_t."""
    return (1 - t) * MEAN, np.hypot((1 - t) * STD, t)


def velocity(x, t):
    """E[n − x_0 | x_t = x], exactly."""
    mean, std = (1 - t) * MEAN, jnp.hypot((1 - t) * STD, t)
    noise = t * (x - mean) / std**2
    return noise - (MEAN + (1 - t) * STD**2 * (x - mean) / std**2)


def drawn(a, until, corrected=True):
    """COUNT numbers at time `until`, by steps with noise of scale a; without what makes up for the
    noise, if not `corrected`."""
    times = jnp.linspace(1, until, STEPS + 1)
    key = jax.random.key(0)

    def step(x, now):
        number, t, after = now
        deviation = flow.noise_scale(t, after, a)
        v = velocity(x, t)
        mean = flow.noisy_step(x, v, t, after, deviation if corrected else 0.0)
        noise = jax.random.normal(jax.random.fold_in(key, number), x.shape)
        return mean + deviation * noise, None

    start = jax.random.normal(jax.random.fold_in(key, STEPS + 1), (COUNT,))
    each = (jnp.arange(STEPS), times[:-1], times[1:])
    return np.asarray(jax.lax.scan(step, start, each)[0], np.float64)


@pytest.mark.parametrize("until", [0.6, 0.25, 0.05])
@pytest.mark.parametrize("a", [0.0, 0.7, 1.2])
def test_the_marginals_are_those_of_the_ode(a, until):
    """a = 0 is the ODE; mean and deviation within sampling error and a step's own."""
    x = drawn(a, until)
    mean, std = marginal(until)
    assert x.mean() == pytest.approx(mean, abs=4 * std / COUNT**0.5 + 0.01)
    assert x.std() == pytest.approx(std, rel=4 / (2 * COUNT) ** 0.5 + 0.02)


def test_noise_without_what_makes_up_for_it_is_seen():
    """The check above can fail: noise alone widens the marginals."""
    _, std = marginal(0.25)
    assert drawn(0.7, 0.25, corrected=False).std() > 1.15 * std


def test_the_first_step_has_noise_of_scale_a():
    times = flow.sampling_times(16, 4.0)
    scales = np.asarray(flow.noise_scale(times[:-1], times[1:], 0.7))
    assert np.isfinite(scales).all() and scales[0] == pytest.approx(0.7, rel=1e-5)
    t, after = times[5], times[6]
    assert scales[5] == pytest.approx(0.7 * np.sqrt(t / (1 - t)) * np.sqrt(t - after), rel=1e-5)


def test_without_noise_it_is_eulers_step():
    x, v = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    found = flow.noisy_step(x, v, 0.75, 0.5, 0.0)
    np.testing.assert_allclose(found, flow.euler(x, v, 0.75, 0.5), rtol=1e-6)


def test_densities_are_the_normal_distributions():
    x, mean = np.random.default_rng(1).normal(size=(2, 50)).astype(np.float32)
    wanted = -((x - mean) ** 2) / (2 * 0.3**2) - np.log(0.3 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(flow.log_density(x, mean, np.float32(0.3)), wanted, rtol=1e-4)
    grid = np.linspace(-3, 3, 6001, dtype=np.float32)
    total = np.exp(np.asarray(flow.log_density(grid, 0.5, np.float32(0.3)), np.float64)).sum()
    assert total * 0.001 == pytest.approx(1, abs=1e-3)
