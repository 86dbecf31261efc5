"""Optimisers: optax chains out of the config, with Muon told which axes form a matrix."""

import functools
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from srum_jax.config import OptimConfig
from srum_jax.core import sharding
from srum_jax.core.param_tree import Params, Specs, flatten, unflatten


def schedule(kind: str, *, learning_rate: float, warmup: int, steps: int) -> optax.Schedule:
    """Linear warm-up to `learning_rate`, then "constant", "linear" to 0 or "cosine" to 1 %."""
    warmup = min(warmup, steps)
    after = max(1, steps - warmup)
    body = {
        "constant": optax.constant_schedule(learning_rate),
        "linear": optax.linear_schedule(learning_rate, 0.0, after),
        "cosine": optax.cosine_decay_schedule(learning_rate, after, alpha=0.01),
    }[kind]
    if warmup == 0:
        return body
    # The first step already moves: warm-up counts from 1.
    rise = optax.linear_schedule(learning_rate / warmup, learning_rate, max(1, warmup - 1))
    return optax.join_schedules([rise, body], [warmup])


def muon_dimensions(specs: Specs, tree: Any) -> Any:
    """Which leaves of `tree` Muon orthogonalises: matrices of stacked blocks, layer by layer.

    Inputs (`fan_in` of the spec) are the reduction axes, the rest but "layers" the outputs; None
    sends a leaf (embeddings, heads, norms, biases) to Adam.
    """
    specs = flatten(specs)

    def one(path, _):
        path = "/".join(str(key.key) for key in path)
        if "blocks" not in path.split("/") or not path.endswith("/w"):
            return None
        spec = specs[path]
        outputs = tuple(
            i for i, a in enumerate(spec.axes) if a != "layers" and i not in spec.fan_in
        )
        return MuonDimensionNumbers(reduction_axis=spec.fan_in, output_axis=outputs)

    return jax.tree_util.tree_map_with_path(one, tree)


def shard_layers(specs: Specs, updates: Params, params: Params | None = None) -> Params:
    """Gradients of stacked matrices with their layers cut over the devices that hold the same
    parameters, where these are many: each orthogonalises its part instead of all of them."""
    flat = flatten(updates)
    for path, spec in flatten(specs).items():
        if path in flat and spec.axes[:1] == ("layers",) and path.endswith("/w"):
            flat[path] = sharding.over_replicas(flat[path], 0)
    return unflatten(flat)


def make(cfg: OptimConfig, specs: Specs, *, steps: int) -> optax.GradientTransformation:
    """The optimiser of a run over the trained leaves' `specs`.

    cfg: optimizer ("adamw" | "muon"), learning_rate, warmup, schedule, b1, b2, eps, weight_decay,
    clip_norm (global norm; 0: none), adam_learning_rate (Muon's companion).
    """
    rate = schedule(cfg.schedule, learning_rate=cfg.learning_rate, warmup=cfg.warmup, steps=steps)
    if cfg.optimizer == "muon":
        adam_rate = schedule(
            cfg.schedule, learning_rate=cfg.adam_learning_rate, warmup=cfg.warmup, steps=steps
        )
        rule = muon(
            rate,
            beta=0.95,
            weight_decay=cfg.weight_decay,
            adam_b1=cfg.b1,
            adam_b2=cfg.b2,
            adam_learning_rate=adam_rate,
            # A function: sharding rules evaluate it on trees of placeholders.
            muon_weight_dimension_numbers=functools.partial(muon_dimensions, specs),
            # An update's size then does not depend on the matrix's shape.
            consistent_rms=0.2,
        )
        rule = optax.chain(optax.stateless(functools.partial(shard_layers, specs)), rule)
    else:
        rule = optax.adamw(rate, b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, weight_decay=cfg.weight_decay)
    clip = optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity()
    return optax.chain(clip, rule)


def learning_rate(cfg: OptimConfig, step: int, *, steps: int) -> float:
    """The rate that step number `step` (from 0) uses."""
    rate = schedule(cfg.schedule, learning_rate=cfg.learning_rate, warmup=cfg.warmup, steps=steps)
    return float(rate(step))
