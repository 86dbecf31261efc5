"""How many bytes the files of a run take, about."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from srum_jax.config import GenerateConfig, LoopConfig
from srum_jax.core import param_tree
from srum_jax.data.schema import LayoutSizes
from srum_jax.programs import Training
from srum_jax.training.state import fresh

# Bytes of a drawn picture as PNG, as a share of its pixels': photographs take about half.
PNG_SHARE = 0.6
GB = 10**9


def picture_bytes(size: tuple[int, int], sizes: LayoutSizes, *, latents: int = 1) -> int:
    """Bytes of a stored candidate of `size` (height, width) pixels: PNG and float32 latents, so
    many arrays of them."""
    height, width = size
    tokens = (height // sizes.token_pixels) * (width // sizes.token_pixels)
    return int(PNG_SHARE * 3 * height * width) + latents * 4 * sizes.token_dim * tokens


def candidate_latents(c: GenerateConfig) -> int:
    """How many latents a candidate's record has: its own, and those around its steps by noise."""
    return 1 + (c.stochastic_steps + 1 if c.stochastic_steps else 0)


def training_bytes(c: LoopConfig, program: Training) -> int:
    """Bytes of a training stage's checkpoints and of the averaged parameters it leaves."""
    params = param_tree.abstract(program.trained)
    state = _nbytes(jax.eval_shape(functools.partial(fresh, tx=program.tx), params))
    kept = min(c.keep, math.ceil(c.steps / c.checkpoint_every)) + 1  # one more while it is saved
    return kept * state + _nbytes(params)


def weight_bytes(specs: Sequence[param_tree.Specs], dtype: str) -> int:
    """Bytes of models as files."""
    return sum(map(param_tree.count, specs)) * jnp.dtype(dtype).itemsize


def amount(count: int) -> str:
    """Bytes in words."""
    return f"{count / GB:,.1f} GB" if count >= GB / 10 else f"{count / 10**6:,.1f} MB"


def _nbytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
