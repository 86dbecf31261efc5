"""A config on a machine that is not here: its meshes, and rows and batches that chips can share."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from srum_jax import config
from srum_jax.config import Config
from srum_jax.core import sharding
from srum_jax.core.errors import BadInput
from srum_jax.planning.topology import Target

MeshShapes = tuple[Mapping[str, int], Mapping[str, int]]  # devices along each axis: all, a host's


def shapes(cfg: Config, target: Target) -> MeshShapes:
    """The shapes of the mesh on a machine and of one that a host's chips all have rows of their own
    on, as for drawing and scoring. Raises BadInput for a mesh it cannot form."""
    try:
        whole = sharding.mesh_shape(cfg.mesh, target.chips)
    except ValueError as e:
        raise BadInput(f"{target}: {e}") from e
    return whole, {axis: 1 for axis in whole} | {"data": target.host.chips}


def changed(cfg: Any, key: str, value: Any) -> Any:
    """`cfg` with another value at a dotted key."""
    first, _, rest = key.partition(".")
    inner = changed(getattr(cfg, first), rest, value) if rest else value
    return dataclasses.replace(cfg, **{first: inner})


def fitted(cfg: Config, target: Target) -> tuple[Config, dict[str, int]]:
    """(the config with rows and batches that the machine's chips can share, what was set).

    Numbers are raised to the next multiple, never lowered. Raises BadInput where the machine cannot
    run the config whatever its sizes.
    """
    made: dict[str, int] = {}
    on = shapes(cfg, target)

    def even(key: str, by: int):
        nonlocal cfg
        section, name = key.split(".")
        value = getattr(getattr(cfg, section), name)
        if value % by:
            made[key] = -(-value // by) * by
            cfg = changed(cfg, key, made[key])

    for key, by in config.shares(cfg, *on).items():
        even(key, by)
    if "generate" in cfg.stages:
        even("generate.shard_size", cfg.sample.batch)
    config.check_mesh(cfg, *on)
    return cfg, made
