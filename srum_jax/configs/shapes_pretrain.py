"""How the base inside the package is made, from nothing: autoencoder, then the joint objective.

    python -m srum_jax.main --config configs/shapes_pretrain.py --workdir runs/shapes-base

A run that is stopped goes on by the same command.
"""

from typing import Any

from srum_jax.configs import base


def get_config() -> Any:
    """The config of this run, a ConfigDict."""
    c = base.get_config()
    c.stages = ("autoencoder", "pretrain", "evaluate", "export", "report")
    c.export.dtype = "float32"  # the base is small, and training goes on from it
    c.compute.remat = "none"  # the model is small: keeping activations is faster
    c.compute.cpu_devices = 2  # two cores then work at the same time
    c.mesh.data, c.mesh.fsdp = -1, 1  # every device holds the whole model: it is small
    return c
