"""Denoising step by step from the host: begun midway, watched, stopped, its path kept.

Every step is a call of its own of what `generate_latents` runs in one piece, so what is drawn is
the same up to rounding. The programs do not depend on the number of steps.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from einops import rearrange

from srum_jax.core.checked import plain
from srum_jax.core.errors import Interrupted
from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import fetch
from srum_jax.data.schema import Batch
from srum_jax.generation import context, denoising
from srum_jax.generation.denoising import LatentGrid
from srum_jax.generation.guidance import Guidance, SamplingParams


@dataclasses.dataclass(frozen=True)
class DenoisingStep:
    """A denoising step that is done.

    number: from 1, of `steps` · time: t after it, from 1 (noise) to 0 (the image) · images: places
    of the images that it was a step of, from 0, in the order in which they were asked for.
    """

    number: int
    steps: int
    time: float
    images: tuple[int, ...]
    fetched: Callable[[], list[np.ndarray]] = dataclasses.field(repr=False, compare=False)

    @property
    def latents(self) -> list[np.ndarray]:
        """What stands after the step, float32 [h,w,p·p·Z] of each image; asking for it copies it
        from the device."""
        return self.fetched()


@dataclasses.dataclass(frozen=True, eq=False)
class DenoisingOptions:
    """How denoising is begun and followed.

    start: the first step that is done, from 0 · latents: what stands before it, float32
    [h,w,p·p·Z] an image, in place of noise of the image's seed; with `clean` the latents of
    pictures, which get that noise up to the step's time · callback: called after each step, True
    from it stops · trajectory: whether what stands before and after every step is kept · progress:
    whether a bar of the steps is shown.
    """

    start: int = 0
    latents: Sequence[np.ndarray] | None = None
    clean: bool = False
    callback: Callable[[DenoisingStep], Any] | None = None
    trajectory: bool = False
    progress: bool = False

    @property
    def whole(self) -> bool:
        """Whether all steps may as well be done in one piece."""
        watched = self.callback is not None or self.trajectory or self.progress
        return not (self.start or self.latents is not None or watched)


@dataclasses.dataclass(frozen=True, eq=False)
class StepByStep:
    """Draws the images of a call of the sampler (its `Denoiser`).

    grids: latent tokens (h, w) of each image · programs: those that were announced · done: told of
    how many images a step was done · paths: trajectories by the image's place, with
    `options.trajectory`.
    """

    options: DenoisingOptions
    grids: Sequence[tuple[int, int]]
    programs: context.Programs
    done: Callable[[int], Any]
    paths: dict[int, list[np.ndarray]] = dataclasses.field(default_factory=dict)

    def of(self, places: Sequence[int]) -> "_StepwiseBatch":
        """What draws the images of these places, a batch."""
        return _StepwiseBatch(self, tuple(places))


_STATIC = ("cfg", "guidance", "image_by_cond", "dtype")
_read = functools.partial(jax.jit, static_argnames=_STATIC)(denoising.read_contexts)
_stepped = functools.partial(jax.jit, static_argnames=_STATIC)(denoising.sample_latents)


@functools.partial(jax.jit, static_argnames="clean")
def _begun(
    seeds: jax.Array,
    grid: LatentGrid,
    given: jax.Array | None,
    time: jax.Array,
    *,
    clean: bool,
) -> jax.Array:
    """x [B,G,p·p·Z] before the first step: noise, what is given, or between both at `time`."""
    if given is not None and not clean:
        return given
    noise = denoising.start_noise(seeds, grid)
    return noise if given is None else (1 - time) * given + time * noise


@dataclasses.dataclass(frozen=True, eq=False)
class _StepwiseBatch:
    """Called as `generate_latents`, draws the images of `places` in its place."""

    whole: StepByStep
    places: tuple[int, ...]

    def __call__(
        self,
        params: Params,
        packed: Batch,
        lengths: jax.Array,
        texts: Batch | None,
        seeds: jax.Array,
        grid: LatentGrid,
        sampling: SamplingParams,
        negatives: Batch | None,
        *,
        guidance: Guidance,
        **how: Any,
    ) -> jax.Array:
        first, options = self.whole.programs.first, self.whole.options
        sizes = {"pictures": len(seeds), "latent tokens": grid.valid.shape[1]}
        sizes |= context.lengths(packed) | {"renorm": guidance.renorm}
        with first("the reading before an image", sizes):
            anew = dataclasses.replace(guidance, runs=())
            caches = _read(params, packed, lengths, texts, negatives, guidance=anew, **how)
        given, start = self._given(grid), options.start
        x = _begun(seeds, grid, given, sampling.times[start], clean=options.clean)
        self._keep(x)
        guided = [flag for flag, begin, end in guidance.runs for _ in range(begin, end)]
        for i in range(start, len(guided)):
            now = sampling.replace(times=sampling.times[i : i + 2])
            one = dataclasses.replace(guidance, runs=((guided[i], 0, 1),))
            with first("a step of drawing", sizes | {"guided": guided[i]}):
                standing = grid.replace(noise=x)
                x = _stepped(params, caches, standing, now, guidance=one, **how)
            self._after(i + 1, len(guided), float(sampling.times[i + 1]), x)
        return x

    def _given(self, grid: LatentGrid) -> np.ndarray | None:
        """The latents that the images of this batch begin from, laid out as `grid`."""
        if self.whole.options.latents is None:
            return None
        laid = np.zeros(grid.noise.shape, np.float32)
        for row, place in enumerate(self.places):
            mine = rearrange(self.whole.options.latents[place], "h w d -> (h w) d")
            laid[row, : len(mine)] = mine
        return jax.device_put(laid, grid.noise.sharding)

    def _latents(self, x: jax.Array) -> list[np.ndarray]:
        rows = fetch(x).astype(np.float32)
        grids = [self.whole.grids[place] for place in self.places]
        return [
            rearrange(row[: h * w], "(h w) d -> h w d", h=h)
            for row, (h, w) in zip(rows, grids, strict=False)
        ]

    def _keep(self, x: jax.Array) -> None:
        if self.whole.options.trajectory:
            for place, latents in zip(self.places, self._latents(x), strict=True):
                self.whole.paths.setdefault(place, []).append(latents)

    def _after(self, number: int, steps: int, time: float, x: jax.Array) -> None:
        options = self.whole.options
        self._keep(x)
        if options.callback is None and not options.progress:
            return
        x.block_until_ready()  # the device is asked for steps ahead of its work otherwise
        self.whole.done(len(self.places))
        if options.callback is None:
            return
        step = DenoisingStep(number, steps, time, self.places, functools.partial(self._latents, x))
        if plain(options.callback(step)) is True:  # what NumPy compares is no bool of Python
            raise Interrupted(f"the callback stopped drawing after step {number} of {steps}")
