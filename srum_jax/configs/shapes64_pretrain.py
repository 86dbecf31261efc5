"""How the base of the larger shapes world is made, first part: the small base learns to read the
larger canvas, and begins to draw on it. Then come `shapes64_drawing.py` and `shapes64_judging.py`.

    python -m srum_jax.main --config configs/shapes64_pretrain.py --workdir runs/shapes64-reading

A run that is stopped goes on by the same command.
"""

from typing import Any

from srum_jax.configs import shapes_pretrain


def get_config() -> Any:
    """The config of this run, a ConfigDict."""
    c = shapes_pretrain.get_config()
    c.model = "shapes64"
    c.stages = ("pretrain",)
    c.sample.size = (64, 64)
    c.score.crop = 32  # what the base learned to read
    c.pretrain.steps = 4000
    c.pretrain.rows = 10
    c.pretrain.evaluate_every = 500
    c.pretrain.latents = 20000
    c.pretrain.edits = 5000
    c.pretrain.checkpoint_every = 200
    c.evaluate.prompts = "shapes64:test"
    c.evaluate.multi_image_questions = 0  # pairs and clips are of the small world
    return c
