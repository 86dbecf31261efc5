"""What a loss function hands to the training step: sums and weights, never means.

Means do not add up: the mean over micro-batches or hosts of unequal size is not the mean over all
of them. So each term is a pair (sum, weight) of float32 scalars. The step adds sums to sums and
weights to weights over micro-batches and hosts, and divides once at the end.
"""

import functools
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp

Ratio = tuple[jax.Array, jax.Array]  # (sum, weight), float32 scalars
TINY = 1e-12  # a term without weight contributes its sum (zero), not NaN


@flax.struct.dataclass
class LossOut:
    """terms: what is minimised; metrics: what is only reported; both name -> (sum, weight).

    coefficients: ((name, coefficient), …), one per term, static so that jit may branch on it.
    """

    terms: dict[str, Ratio]
    metrics: dict[str, Ratio] = flax.struct.field(default_factory=dict)
    coefficients: tuple[tuple[str, float], ...] = flax.struct.field(pytree_node=False, default=())


def ratio(sum_: jax.Array, weight: jax.Array) -> Ratio:
    """The pair (sum, weight) as float32 scalars."""
    return jnp.asarray(sum_, jnp.float32), jnp.asarray(weight, jnp.float32)


def means(ratios: Mapping[str, Ratio]) -> dict[str, jax.Array]:
    """name -> sum / weight, float32 scalars; 0 where nothing was counted."""
    return {name: total_ / jnp.maximum(weight, TINY) for name, (total_, weight) in ratios.items()}


def total(out: LossOut) -> jax.Array:
    """The scalar to minimise, float32: sum over terms of coefficient · sum / weight.

    Raises ValueError if terms and coefficients do not name the same things.
    """
    if sorted(out.terms) != sorted(name for name, _ in out.coefficients):
        raise ValueError(
            f"terms {sorted(out.terms)} and coefficients {dict(out.coefficients)} differ in names"
        )
    values = means(out.terms)
    return functools.reduce(
        jnp.add, [c * values[name] for name, c in out.coefficients], jnp.float32(0)
    )
