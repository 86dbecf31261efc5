"""Drawing by noise: the first steps are a policy's; their latents and log-probabilities are kept.

The other steps, and what is drawn, are those of the sampler: same contexts, same start, and the
marginals of every step (`flow.noisy_step`). Only the condition is read: what learns from these
steps predicts without guidance, and its probabilities must be those that drew.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import struct
from jax.typing import DTypeLike

from srum_jax import flow
from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import fetch
from srum_jax.data.schema import Batch
from srum_jax.generation import denoising
from srum_jax.generation.denoising import LatentGrid
from srum_jax.generation.guidance import Guidance, GuidanceCaches, SamplingParams
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import BagelConfig


@struct.dataclass
class Trajectory:
    """The steps by noise of B images, S of them. All float32.

    latents [S+1,B,G,p·p·Z]: before each and after the last · log_probs [S,B]: mean over an image's
    tokens and numbers of the log-density of what came out · times [S+1] · deviations [S]: of the
    noise
    """

    latents: jax.Array
    log_probs: jax.Array
    times: jax.Array
    deviations: jax.Array


def noisy_steps(
    params: Params,
    caches: GuidanceCaches,
    grid: LatentGrid,
    seeds: jax.Array,
    times: jax.Array,
    scale: jax.Array,
    *,
    cfg: BagelConfig,
    dtype: DTypeLike,
) -> Trajectory:
    """Steps by noise through `times` [S+1] from `grid.noise`, behind `caches.cond`.

    seeds uint32 [B]: of the noise, apart from that of the start · scale: a of `flow.noise_scale`.
    """
    deviations = flow.noise_scale(times[:-1], times[1:], scale)
    keys = jax.vmap(jax.random.key)(seeds)
    count = jnp.sum(grid.valid, axis=1) * grid.noise.shape[-1]

    def step(x, now):
        number, t, after, deviation, time = now
        (v,) = denoising.velocity(params, cfg, [caches.cond], grid, x, time[None, None], dtype)
        mean = flow.noisy_step(x, v, t, after, deviation)
        mine = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(mine)
        new = mean + deviation * noise
        densities = jnp.where(grid.valid[..., None], flow.log_density(new, mean, deviation), 0.0)
        return new, (x, jnp.sum(densities, axis=(1, 2)) / jnp.maximum(count, 1))

    numbers = jnp.arange(1, len(times))
    embedded = bagel.embed_time(params, times[:-1], dtype)
    each = (numbers, times[:-1], times[1:], deviations, embedded)
    last, (before, log_probs) = jax.lax.scan(step, grid.noise, each)
    return Trajectory(jnp.concatenate([before, last[None]]), log_probs, times, deviations)


@functools.partial(jax.jit, static_argnames=("steps", "cfg", "guidance", "image_by_cond", "dtype"))
def generate_trajectory(
    params: Params,
    packed: Batch,
    lengths: jax.Array,
    texts: Batch | None,
    seeds: jax.Array,
    grid: LatentGrid,
    sampling: SamplingParams,
    negatives: Batch | None,
    scale: jax.Array,
    *,
    steps: int,
    cfg: BagelConfig,
    guidance: Guidance,
    image_by_cond: bool,
    dtype: DTypeLike,
) -> tuple[jax.Array, Trajectory]:
    """As `generate_latents`, the first `steps` of its steps by noise: what is drawn, and they.

    scale: a of `flow.noise_scale`. Raises ValueError where guidance is on.
    """
    if guidance.text or guidance.image:
        raise ValueError("steps by noise are drawn without guidance: set its scales to 1.0")
    how = dict(cfg=cfg, guidance=guidance, image_by_cond=image_by_cond, dtype=dtype)
    caches = denoising.read_contexts(params, packed, lengths, texts, negatives, **how)
    filled = grid.replace(noise=denoising.start_noise(seeds, grid))
    times = sampling.times[: steps + 1]
    path = noisy_steps(params, caches, filled, seeds, times, scale, cfg=cfg, dtype=dtype)
    count = guidance.runs[-1][2]
    rest = dataclasses.replace(guidance, runs=((False, steps, count),) if steps < count else ())
    left = grid.replace(noise=path.latents[-1])
    how["guidance"] = rest
    return denoising.sample_latents(params, caches, left, sampling, **how), path


@dataclasses.dataclass(frozen=True, eq=False)
class NoisySteps:
    """Draws images of a sampler's calls by noise (its `Denoiser`), and keeps the steps.

    steps: the first so many · scale: a of `flow.noise_scale` · kept: of each call, the places of
    its images and their steps.
    """

    steps: int
    scale: float
    kept: list[tuple[tuple[int, ...], Trajectory]] = dataclasses.field(default_factory=list)

    def of(self, places: Sequence[int]) -> "_Call":
        """What draws the images of these places, a batch."""
        return _Call(self, tuple(places))

    def records(self, grid: tuple[int, int]) -> list[dict[str, np.ndarray]]:
        """Of each image that was drawn, in order, all of `grid` (h, w) latent tokens: "trajectory"
        [S+1,h,w,p·p·Z], "log_probs" and "deviations" [S], "times" [S+1], float32."""
        h, w = grid
        found = {}
        for places, path in self.kept:
            path = jax.tree.map(fetch, path)
            for row, place in enumerate(places):
                latents = rearrange(path.latents[:, row, : h * w], "s (h w) d -> s h w d", h=h)
                found[place] = {
                    "trajectory": latents,
                    "log_probs": path.log_probs[:, row],
                    "times": path.times,
                    "deviations": path.deviations,
                }
        return [found[place] for place in sorted(found)]


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """Called as `generate_latents`, draws the images of `places` in its place."""

    whole: NoisySteps
    places: tuple[int, ...]

    def __call__(self, params: Params, *inputs: Any, **how: Any) -> jax.Array:
        scale = np.float32(self.whole.scale)
        x, path = generate_trajectory(params, *inputs, scale, steps=self.whole.steps, **how)
        self.whole.kept.append((self.places, path))
        return x
