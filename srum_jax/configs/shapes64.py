"""The larger shapes world's base draws, judges itself, learns from right objects and is evaluated.

Every candidate is trained on where it is right: objects of pictures that are wrong as a whole teach
too, which is what this world is for. research/study/study64_plan.json compares that with choosing
whole pictures.
"""

from typing import Any

from srum_jax.configs import shapes


def get_config() -> Any:
    """The config of this run, a ConfigDict."""
    c = shapes.get_config()
    c.model = "shapes64"
    c.sample.size = (64, 64)
    c.generate.prompts = "shapes64:train"
    c.generate.candidates = 8
    c.score.crop = 32  # what the base learned to read
    c.train.objective = "srum_positive"
    c.train.select = "all"
    c.train.min_score = -1.0
    c.train.credit = "objects"
    c.train.map_sampling = "area"
    c.train.dilation = 4
    # Two images of 64 latent tokens a row, and captions of up to 36 words.
    c.train.lanes.und = 88
    c.train.lanes.gen = 128
    c.train.lanes.images = 2
    c.train.lanes.regions = 12
    c.train.anchor = 0.25  # what no right object covers stays as it was
    c.evaluate.suites = ("shapes",)  # the files of official benchmarks are of the small world
    c.evaluate.prompts = "shapes64:test"
    c.adjust.suites = ("shapes:validation",)
    c.adjust.prompts = "shapes64:validation"
    return c
