"""Sums over sums: the total over parts equals the total over the whole."""

import jax
import jax.numpy as jnp
import pytest

from srum_jax.core.loss import LossOut, means, ratio, total


def _out(a, b):
    return LossOut(terms={"a": ratio(*a), "b": ratio(*b)}, coefficients=(("a", 1.0), ("b", 0.5)))


def test_parts_of_unequal_weight_add_up():
    whole = _out((3.0 + 8.0, 3 + 1), (2.0, 4))
    added = jax.tree.map(jnp.add, _out((3.0, 3), (2.0, 4)), _out((8.0, 1), (0.0, 0)))
    assert float(total(added)) == pytest.approx(float(total(whole)))
    assert float(total(added)) == pytest.approx(11 / 4 + 0.5 * 2 / 4)
    assert total(added).dtype == jnp.float32


def test_nothing_counted_is_zero_and_differentiable():
    def f(x):
        return total(LossOut(terms={"a": ratio(x * 0, 0)}, coefficients=(("a", 1.0),)))

    value, gradient = jax.value_and_grad(f)(2.0)
    assert value == 0 and gradient == 0
    assert means({}) == {}


def test_names_must_agree():
    with pytest.raises(ValueError, match="differ in names"):
        total(LossOut(terms={"a": ratio(1, 1)}, coefficients=(("b", 1.0),)))


def test_passes_through_jit_with_static_coefficients():
    out = jax.jit(lambda x: _out((x, 1), (x, 2)))(4.0)
    assert out.coefficients == (("a", 1.0), ("b", 0.5))
