"""Parameter specifications: one table for a model's shapes, axes, initial values and counts.

A model describes itself as a nested dict of `ParamSpec`. Everything else is derived from that tree:
initial values, abstract shapes, shardings (`core/sharding.py`), the Hugging Face table's check
(`models/bagel/hf.py`) and the parameter count. Parameters themselves are nested dicts of arrays of
the same structure; nothing here knows a particular model.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

Params = Any  # nested dict of arrays
Specs = Any  # nested dict of ParamSpec


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One parameter: `shape`, a logical axis name (or None) per dimension, initialiser, dtype.

    `init` is "normal" (standard deviation `scale`), "zeros" or "ones". `scale=None` means
    1/sqrt(fan_in), fan_in being the product of the dimensions named in `fan_in`.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: str = "normal"
    scale: float | None = None
    fan_in: tuple[int, ...] = ()
    dtype: Any = jnp.float32

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} and axes {self.axes} differ in length")
        if self.init not in ("normal", "zeros", "ones"):
            raise ValueError(f"unknown init {self.init!r}")


def is_spec(x: Any) -> bool:
    """Whether `x` is a leaf of a tree of specs."""
    return isinstance(x, ParamSpec)


def linear(
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
    *,
    bias: bool,
    stack: int | None = None,
    zero: bool = False,
) -> Specs:
    """Spec of y = x·w + b. `inputs` and `outputs` map axis names to sizes (several: split heads).

    Returns {"w": [*inputs, *outputs]} and, with `bias`, {"b": [*outputs]}; with `stack`, every
    leaf gets a leading "layers" axis of that size.
    """
    lead_shape, lead_axes = ((stack,), ("layers",)) if stack is not None else ((), ())
    first = len(lead_shape)
    w = ParamSpec(
        lead_shape + tuple(inputs.values()) + tuple(outputs.values()),
        lead_axes + tuple(inputs) + tuple(outputs),
        init="zeros" if zero else "normal",
        fan_in=tuple(range(first, first + len(inputs))),
    )
    specs = {"w": w}
    if bias:
        specs["b"] = ParamSpec(
            lead_shape + tuple(outputs.values()), lead_axes + tuple(outputs), init="zeros"
        )
    return specs


def vector(size: int, axis: str | None, *, init: str, stack: int | None = None) -> ParamSpec:
    """A gain or bias vector of one axis, stacked over layers if `stack` is given."""
    if stack is None:
        return ParamSpec((size,), (axis,), init=init)
    return ParamSpec((stack, size), ("layers", axis), init=init)


def norm(size: int, axis: str | None, *, bias: bool, stack: int | None = None) -> Specs:
    """Gain (ones) and optional bias (zeros) of a normalisation layer: {"scale", "bias"}."""
    specs = {"scale": vector(size, axis, init="ones", stack=stack)}
    if bias:
        specs["bias"] = vector(size, axis, init="zeros", stack=stack)
    return specs


def flatten(tree: Any) -> dict[str, Any]:
    """Nested dict -> {"a/b/c": leaf}."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> Any:
    """Inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def _draw(spec: ParamSpec, key: jax.Array, dtype: Any) -> jax.Array:
    if spec.init == "zeros":
        return jnp.zeros(spec.shape, dtype)
    if spec.init == "ones":
        return jnp.ones(spec.shape, dtype)
    scale = spec.scale
    if scale is None:
        scale = 1.0 / math.sqrt(max(1, math.prod(spec.shape[i] for i in spec.fan_in)))
    return (scale * jax.random.normal(key, spec.shape, jnp.float32)).astype(dtype)


def init(specs: Specs, key: jax.Array, dtype: Any = None) -> Params:
    """Initial values. Each leaf's key depends on its path alone, so adding one moves no other."""
    flat = flatten(specs)
    return unflatten(
        {
            path: _draw(
                spec,
                jax.random.fold_in(key, np.uint32(zlib.crc32(path.encode()))),
                dtype or spec.dtype,
            )
            for path, spec in flat.items()
        }
    )


def abstract(specs: Specs, dtype: Any = None) -> Any:
    """`jax.ShapeDtypeStruct` of every leaf; nothing is allocated."""
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, dtype or s.dtype), specs, is_leaf=is_spec
    )


def count(specs: Specs) -> int:
    """Number of parameters."""
    return sum(math.prod(s.shape) for s in jax.tree.leaves(specs, is_leaf=is_spec))


def check(params: Params, specs: Specs, *, where: str) -> None:
    """Raises ValueError listing every missing, extra or misshapen leaf of `params`."""
    want, have = flatten(specs), flatten(params)
    problems = [f"missing {p} {want[p].shape}" for p in want if p not in have]
    problems += [f"unexpected {p}" for p in have if p not in want]
    problems += [
        f"{p} has shape {tuple(have[p].shape)}, expected {want[p].shape}"
        for p in want
        if p in have and tuple(have[p].shape) != want[p].shape
    ]
    if problems:
        raise ValueError(f"{where}: parameters do not fit the model:\n  " + "\n  ".join(problems))


def split(params: Params, trainable: Callable[[str], bool]) -> tuple[Params, Params]:
    """(trained, frozen) sub-trees by path; `merge` is the inverse."""
    flat = flatten(params)
    trained = {p: x for p, x in flat.items() if trainable(p)}
    frozen = {p: x for p, x in flat.items() if p not in trained}
    return unflatten(trained), unflatten(frozen)


def merge(trained: Params, frozen: Params) -> Params:
    """The whole tree out of the two parts of `split`."""
    return unflatten({**flatten(frozen), **flatten(trained)})
