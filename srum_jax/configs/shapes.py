"""The demo: the shapes base draws, judges itself, learns from its scores and is evaluated."""

from typing import Any

from srum_jax.configs import base


def get_config() -> Any:
    """The config of this run, a ConfigDict."""
    c = base.get_config()
    # Sized so that all of it takes some minutes on two cores; the study draws from 1600 prompts.
    c.generate.count = 500
    c.score.proposers = ("components",)
    c.train.steps = 400
    c.evaluate.questions = 500
    c.evaluate.multi_image_questions = 200
    c.evaluate.captions = 100
    c.evaluate.edits = 100
    c.evaluate.best_of_prompts = 120
    c.compute.remat = "none"  # the model is small: keeping activations is faster
    c.compute.cpu_devices = 2  # two cores then work at the same time
    c.mesh.data, c.mesh.fsdp = -1, 1  # every device holds the whole model: it is small
    return c
