"""Rectified flow: timestep distribution, path and target, guidance, renorm, the Euler step, and the
step by noise that has the same marginals.

x_t = (1 − t)·x_0 + t·noise, velocity v = noise − x_0, so t = 1 is noise and t = 0 the image.
Everything is float32 and shaped by its arguments.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from srum_jax.data.schema import Batch

Array = jax.Array | np.ndarray
_TIME, _NOISE = 0, 1  # what a folded key is used for


@struct.dataclass
class Draws:
    """Random numbers of one training forward: t [B,N] in [0, 1], noise [B,G,p·p·Z]."""

    t: jax.Array
    noise: jax.Array


def shift_time(t: Array, shift: float | np.floating) -> Array:
    """s·t / (1 + (s − 1)·t) of times of any shape: pushes them towards noise for s > 1."""
    return shift * t / (1 + (shift - 1) * t)


def training_time(raw: jax.Array, shift: float) -> jax.Array:
    """A normal draw (−inf for clean images) -> t in [0, 1]: shifted sigmoid (BAGEL section 5)."""
    return shift_time(jax.nn.sigmoid(raw), shift)


def sampling_times(steps: int, shift: float) -> np.ndarray:
    """Times [steps + 1] from 1 to 0 of `steps` Euler steps, float32.

    The original counts points, not steps: its num_timesteps = steps + 1.
    """
    return shift_time(np.linspace(1, 0, steps + 1, dtype=np.float32), np.float32(shift))


def draw(batch: Batch, key: jax.Array, *, mean: float, std: float, shift: float) -> Draws:
    """Times and noise of a batch, a function of (key, noise id, token) alone.

    Where a sample sits in its row, its batch or its host changes nothing. t is the shifted sigmoid
    of N(mean, std²); clean images get t = 0.
    """
    keys = jax.vmap(jax.vmap(lambda i: jax.random.fold_in(key, i)))(batch.noise_ids)

    def time(k):
        return mean + std * jax.random.normal(jax.random.fold_in(k, _TIME))

    raw = jnp.where(batch.noisy, jax.vmap(jax.vmap(time))(keys), -jnp.inf)
    token_keys = jnp.take_along_axis(keys, batch.latent_images, axis=1)

    def noise(k, cell):
        k = jax.random.fold_in(jax.random.fold_in(k, _NOISE), cell)
        return jax.random.normal(k, batch.latents.shape[-1:])

    cells = batch.latent_cells[..., 0] * 65536 + batch.latent_cells[..., 1]
    return Draws(t=training_time(raw, shift), noise=jax.vmap(jax.vmap(noise))(token_keys, cells))


def token_time(batch: Batch, t: jax.Array) -> jax.Array:
    """Time of each latent token: t [B,N] -> [B,G]."""
    return jnp.take_along_axis(t, batch.latent_images, axis=1)


def interpolate(x_0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """x_t for x_0, noise [B,G,·] and t [B,G]."""
    return (1 - t[..., None]) * x_0 + t[..., None] * noise


def target(x_0: jax.Array, noise: jax.Array) -> jax.Array:
    """The velocity to predict."""
    return noise - x_0


RENORMS = ("none", "global", "channel", "text_channel", "batch")


def guide(
    v: jax.Array,
    v_text: jax.Array | None,
    v_image: jax.Array | None,
    *,
    text_scale: jax.Array | float,
    image_scale: jax.Array | float,
    renorm: str,
    renorm_min: jax.Array | float,
) -> jax.Array:
    """Classifier-free guidance with renorm (BAGEL section 7); all velocities [B, G, p·p·Z].

    u = v_text + s_text·(v − v_text), then u = v_image + s_image·(u − v_image); without a branch
    (None) its line is left out. Renorm scales |u| by at least renorm_min and at most 1, to |v| if
    it can: "global" over a whole image, "channel" per token, "text_channel" per token before image
    guidance, "none" not at all, "batch" over all rows at once, as the original's "global" does.
    Raises ValueError for another name.
    """
    if renorm not in RENORMS:
        raise ValueError(f"renorm must be one of {', '.join(RENORMS)}, not {renorm!r}")
    if v_text is None and v_image is None:
        return v

    def rescale(u, axes):
        def norm(x):
            return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))

        return u * jnp.clip(norm(v) / (norm(u) + 1e-8), renorm_min, 1.0)

    u = v
    if v_text is not None:
        u = v_text + text_scale * (v - v_text)
        if renorm == "text_channel":
            u = rescale(u, (-1,))
    if v_image is not None:
        u = v_image + image_scale * (u - v_image)
    axes = {"global": (-2, -1), "channel": (-1,), "batch": (-3, -2, -1)}
    return rescale(u, axes[renorm]) if renorm in axes else u


def euler(x: jax.Array, v: jax.Array, t: jax.Array, t_next: jax.Array) -> jax.Array:
    """One step from time t down to t_next."""
    return x - v * (t - t_next)


def noise_scale(t: Array, after: Array, a: Array | float) -> Array:
    """σ_t √(t − after), with σ_t = a √(t/(1 − t)): how far the noise of a `noisy_step` reaches.

    Of the first step, where t = 1, σ takes `after` in place of t in its denominator. Source:
    FlowGRPO (arXiv 2505.05470) and its code, sd3_sde_with_logprob.py.
    """
    room = jnp.where(t < 1, 1 - t, 1 - after)
    return a * jnp.sqrt(t / room * (t - after))


def noisy_step(x: jax.Array, v: jax.Array, t: Array, after: Array, deviation: Array) -> jax.Array:
    """The mean of a step from time t down to `after` by an SDE that has the ODE's marginals; to be
    added: `deviation`, σ √Δ with Δ = t − after, times standard normal noise.

    With x_t = (1 − t)·x_0 + t·n and v = E[n − x_0 | x_t], x_t + (1 − t)·v is E[n | x_t], so the
    score of the marginal p_t is s = −(x_t + (1 − t)·v)/t. Downwards in time, x' = x − [v − σ²s/2]Δ
    + σ√Δ·ε moves p by Δ·(∇·(p v) − ∇·(p σ²s/2) + ∇²(p σ²/2)); as p·s = ∇p, the last two cancel for
    every σ(t), and what is left is the ODE's. Hence the mean
    x − [v + σ²/(2t)·(x + (1 − t)·v)]Δ, as FlowGRPO (arXiv 2505.05470) has it for the same
    times. x, v [..., p·p·Z], the rest broadcast against them.
    """
    return x - v * (t - after) - jnp.square(deviation) / (2 * t) * (x + (1 - t) * v)


def log_density(x: jax.Array, mean: jax.Array, deviation: Array) -> jax.Array:
    """log N(x; mean, deviation²) number by number."""
    distance = jnp.square((x - mean) / deviation)
    return -0.5 * distance - jnp.log(deviation) - 0.5 * np.log(2 * np.pi).astype(np.float32)
