"""The demo: the shapes base draws, judges itself, is trained on its best images and evaluated."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.train.select = "best_of_k"
    c.compute.remat = False  # the model is small: keeping activations is faster
    return c
