"""Keys of the stages that make a world's base; `base.py` has all others."""

import dataclasses
from typing import Literal

from srum_jax.core.constraints import Fraction, PositiveInt


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """How long and on how much a world's base is trained; the rest of the recipe is the world's."""

    steps: PositiveInt = 9500  # optimiser steps
    rows: PositiveInt = 20  # packed rows a step
    # gen: only what draws learns, by rows that read nothing; und: only what reads, by rows with
    # what the base drew before; all: both
    trainable: Literal["gen", "und", "all"] = "all"
    label_weights: Literal["token", "sample", "square"] = "token"  # alike: tokens, texts, between
    latents: PositiveInt = 60000  # scenes encoded once by the autoencoder and drawn from
    malformed: Fraction = 0.0  # of the objects in those scenes: what the model then draws so too
    edits: PositiveInt = 20000  # the same of edits
    drawings: PositiveInt = 6000  # drawn once by the base that learns to read them (und)
    evaluate_every: PositiveInt = 1000  # steps
    checkpoint_every: PositiveInt = 500  # steps
    log_every: PositiveInt = 20  # steps


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """How long a world's autoencoder is trained; the rest of the recipe is the world's."""

    steps: PositiveInt = 3000  # optimiser steps
    batch: PositiveInt = 16  # pictures a step
    checkpoint_every: PositiveInt = 300  # steps
    log_every: PositiveInt = 25  # steps
