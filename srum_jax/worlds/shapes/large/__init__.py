"""The shapes world in its larger setting: 64x64 pictures of up to nine objects.

Owns what `core/registry.py` asks of a world; everything else is that of `worlds/shapes`, whose
`setting.py` says in what the two differ. `configs/shapes64_pretrain.py`, `_drawing.py` and
`_judging.py` make its base.
"""

import pathlib

import numpy as np

from srum_jax.core.errors import BadInput
from srum_jax.worlds import shapes
from srum_jax.worlds.shapes.setting import LARGE

STAGES = shapes.STAGES


def prompts(split: str, count: int | None, first: int = 0) -> tuple[tuple[str, str], ...]:
    """As `shapes.prompts`, of this setting."""
    return shapes.prompts(split, count, first, LARGE)


def edits(split: str, count: int) -> tuple[tuple[np.ndarray, str], ...]:
    """As `shapes.edits`, of this setting."""
    return shapes.edits(split, count, LARGE)


def write_benchmark(suite: str, folder: pathlib.Path) -> None:
    """Raises BadInput: official files are written of the small setting."""
    raise BadInput(f'"{LARGE.name}" writes no files of {suite}: "shapes" does')
