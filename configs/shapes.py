"""The demo: the shapes base draws, judges itself, is trained on its best images and evaluated."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.generate.count = 300
    c.train.objective = "sft"
    c.train.select = "best_of_k"
    c.train.steps = 250
    c.evaluate.count = 500
    c.evaluate.best_of_prompts = 150
    c.compute.remat = False  # the model is small: keeping activations is faster
    c.compute.cpu_devices = 2  # two cores then work at the same time
    c.mesh.data, c.mesh.fsdp = -1, 1  # every device holds the whole model: it is small
    return c
