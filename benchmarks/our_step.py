"""Our side of the benchmarks of a training step, of any family: the step as the stage runs it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from srum_jax import config
from srum_jax.configs import base
from srum_jax.core import param_tree, sharding
from srum_jax.data.schema import Batch
from srum_jax.training import optim, step
from srum_jax.training.state import FrozenParams, create

CHECKED = 3  # steps whose losses are compared
Call = Callable[[], tuple]  # one step, waited for: (loss, norm of the gradients)


class Work(Protocol):
    """What is trained on what, of any family: `llm` has sizes of the language model."""

    llm: Any
    samples: int
    dtype: str  # of products
    device: str  # cpu | gpu
    devices: int  # as compute.cpu_devices: what ours takes the machine for
    tokens: int  # of all samples


def settings() -> config.TrainConfig:
    """Drawings as they are, with BAGEL's AdamW; a larger rate, so that a step shows in the loss."""
    cfg = config.load(base.get_config()).train
    adamw = dict(optimizer="adamw", b1=0.9, b2=0.95, eps=1e-15, weight_decay=0.0)
    steady = dict(learning_rate=1e-4, warmup=0, schedule="constant", clip_norm=1.0)
    rule = dataclasses.replace(cfg.optim, **adamw, **steady)
    return dataclasses.replace(cfg, objective="sft", anchor=0.0, optim=rule)


def random(specs: param_tree.Specs) -> param_tree.Params:
    """float32 NumPy arrays of parameters."""
    rng = np.random.default_rng(0)

    def draw(spec: param_tree.ParamSpec) -> np.ndarray:
        if not spec.fan_in and spec.scale is None:  # gains and biases
            return np.full(spec.shape, spec.init == "ones", np.float32)
        # What starts at zero too: it would leave the others without gradients.
        scale = spec.scale or math.prod(spec.shape[axis] for axis in spec.fan_in) ** -0.5
        return np.float32(scale) * rng.standard_normal(spec.shape, np.float32)

    return jax.tree.map(draw, specs, is_leaf=param_tree.is_spec)


def steps(
    loss_fn: Callable,
    specs: param_tree.Specs,
    start: param_tree.Params,
    batch: Batch,
    devices: int,
) -> Call:
    """Steps from `start` that train the leaves of `specs` on one batch."""
    cfg, named = settings(), param_tree.flatten(specs)
    trained, frozen = param_tree.split(start, named.__contains__)
    tx = optim.make(cfg.optim, specs, steps=10**6)
    run = step.program(loss_fn, tx, ema=cfg.ema, micro_batches=1)
    axes = config.MeshConfig(data=-1, fsdp=1, tensor=1, context=1)
    mesh = sharding.make_mesh(axes, jax.devices()[:devices])
    state = create(trained, tx, specs, mesh)
    fixed = FrozenParams(jax.tree.map(jnp.asarray, frozen), None)
    data = jax.device_put(batch, sharding.batch_sharding(mesh))

    def call():
        nonlocal state
        with jax.set_mesh(mesh):  # as a stage runs
            state, metrics = run(state, fixed, data, jax.random.key(0))
        jax.block_until_ready(state)
        return float(metrics["loss"]), float(metrics["grad_norm"])

    return call
