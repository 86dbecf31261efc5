"""Classifier-free guidance of a sampler's call: which branches, in which steps, by what scales."""

import dataclasses
import itertools

import jax
import numpy as np
from flax import struct

from srum_jax import flow
from srum_jax.config import SampleConfig
from srum_jax.models.bagel import mot


@struct.dataclass
class GuidanceCaches:
    """What each row has read, with everything, without its last text, and without its images.

    text and image are the contexts that text and image guidance compare with; None: that guidance
    is off. Rows are the same in all three, slots as many as each needs.
    """

    cond: mot.Cache
    text: mot.Cache | None = None
    image: mot.Cache | None = None

    def branches(self) -> list[mot.Cache]:
        """Those that are there, the condition's first."""
        return [one for one in (self.cond, self.text, self.image) if one is not None]


@struct.dataclass
class SamplingParams:
    """What changes without compiling anew: times [S+1] from 1 to 0, and float32 scales."""

    times: jax.Array
    text_scale: jax.Array
    image_scale: jax.Array
    renorm_min: jax.Array

    @classmethod
    def of(cls, settings: SampleConfig) -> "SamplingParams":
        """Of the `sample` section of a config."""
        return cls(
            times=flow.sampling_times(settings.steps, settings.shift),
            text_scale=np.float32(settings.guidance),
            image_scale=np.float32(settings.image_guidance),
            renorm_min=np.float32(settings.renorm_min),
        )


@dataclasses.dataclass(frozen=True)
class Guidance:
    """What is compiled in: which guidance is on, in which runs of steps (as `guided_runs` gives),
    how the guided velocity is renormed (`flow.guide`), and the slots that caches of text and of
    image guidance take where they are a part of the condition's (None: as many as that has)."""

    text: bool
    image: bool
    runs: tuple
    renorm: str
    slots: tuple[int | None, int | None] = (None, None)

    @classmethod
    def of(cls, settings: SampleConfig, official: bool = False) -> "Guidance":
        """Of the `sample` section of a config; official: as the original, which does not guide by
        images alone and norms all images of a call as one."""
        text = settings.guidance > 1
        image = settings.image_guidance > 1 and (text or not official)
        joint = official and settings.renorm == "global"
        times = flow.sampling_times(settings.steps, settings.shift)
        runs = guided_runs(times, settings.guidance_interval, text or image)
        return cls(text, image, runs, "batch" if joint else settings.renorm)


def guided_runs(
    times: np.ndarray, interval: tuple[float, float], on: bool = True
) -> tuple[tuple[bool, int, int], ...]:
    """((guided, first step, one past the last), …): guidance, if on, holds while lo < t <= hi."""
    lo, hi = interval
    guided = [bool(on and lo < t <= hi) for t in times[:-1]]
    runs, start = [], 0
    for flag, steps in itertools.groupby(guided):
        count = len(list(steps))
        runs.append((flag, start, start + count))
        start += count
    return tuple(runs)
