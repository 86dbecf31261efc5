"""The demo: the shapes base draws, judges itself, learns from its scores and is evaluated."""

from typing import Any

from srum_jax.configs import base


def get_config() -> Any:
    """The config of this run, a ConfigDict."""
    c = base.get_config()
    # Sized for three minutes on two cores (docs/shapes.md, "The demo's recipe"); the study draws 8
    # candidates of each of 1600 prompts.
    c.generate.count = 300
    c.generate.candidates = 4
    c.score.proposers = ("components",)
    c.train.steps = 120
    c.train.checkpoint_every = 120  # a checkpoint takes as long as twenty steps
    c.train.monitor.prompts = 0
    # The world's own examination, and official benchmarks on the files that it writes.
    c.evaluate.suites = ("shapes", "vqav2:shapes", "pope:shapes", "coco_captions:shapes")
    c.evaluate.limit = 96
    c.evaluate.count = 300
    c.evaluate.questions = 200
    c.evaluate.multi_image_questions = 0
    c.evaluate.captions = 100
    c.evaluate.edits = 150
    c.evaluate.best_of_prompts = 50
    # Training costs edits more than drawings gain: adjust takes as much of it as they bear.
    c.stages = ("generate", "score", "train", "evaluate", "adjust", "export", "report")
    c.adjust.questions = 200
    c.compute.remat = "none"  # the model is small: keeping activations is faster
    c.compute.cpu_devices = 2  # two cores then work at the same time
    c.mesh.data, c.mesh.fsdp = -1, 1  # every device holds the whole model: it is small
    return c
