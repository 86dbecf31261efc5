"""How the base of the larger shapes world is made, second part: what `shapes64_pretrain.py` left
learns to draw. Its generation expert alone is trained, by rows of five captions and an edit.

    python -m srum_jax.main --config configs/shapes64_drawing.py --workdir runs/shapes64-drawing

A run that is stopped goes on by the same command.
"""

from typing import Any

from srum_jax.configs import shapes64_pretrain


def get_config() -> Any:
    """The config of this run, a ConfigDict."""
    c = shapes64_pretrain.get_config()
    c.weights = "runs/shapes64-reading/round0/pretrain/model"
    c.pretrain.trainable = "gen"
    c.pretrain.rows = 8
    c.pretrain.latents = 30000
    c.pretrain.edits = 6000
    return c
