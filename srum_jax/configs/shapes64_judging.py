"""How the base of the larger shapes world is made, third part: what `shapes64_drawing.py` left
learns to tell what it draws well from what it draws badly. Its generation expert stays as it is.

    python -m srum_jax.main --config configs/shapes64_judging.py --workdir runs/shapes64-base

A run that is stopped goes on by the same command.
"""

from typing import Any

from srum_jax.configs import shapes64_pretrain


def get_config() -> Any:
    """The config of this run, a ConfigDict."""
    c = shapes64_pretrain.get_config()
    c.stages = ("pretrain", "evaluate", "export", "report")
    c.weights = "runs/shapes64-drawing/round0/pretrain/model"
    c.pretrain.trainable = "und"
    c.pretrain.rows = 8
    c.pretrain.drawings = 12000
    return c
