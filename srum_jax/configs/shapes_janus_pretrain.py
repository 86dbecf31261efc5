"""How the small Janus inside the package is made, from nothing: codes, then reading and drawing.

    python -m srum_jax.main --config configs/shapes_janus_pretrain.py --workdir runs/janus-base

A run that is stopped goes on by the same command.
"""

from typing import Any

from srum_jax.configs import shapes_pretrain


def get_config() -> Any:
    """The config of this run, a ConfigDict."""
    c = shapes_pretrain.get_config()
    c.model = "shapes_janus"
    c.pretrain.steps = 32000
    c.pretrain.rows = 24  # drawings a step, beside half as many pictures that are read
    c.pretrain.evaluate_every = 4000
    c.pretrain.latents = 240000
    c.sample.guidance = 2.0
    c.sample.temperature = 0.7
    c.evaluate.multi_image_questions = 0  # it reads one picture at a time
    c.evaluate.edits = 0  # and cannot edit
    return c
