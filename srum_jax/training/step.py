"""One optimisation step: gradients of the trained sub-tree, sums over sums, one update.

Knows no model and no objective: it is handed `loss_fn(params, reference, batch, key) -> LossOut`,
which takes `first=` too where there are leaves of the first round.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from srum_jax.core import loss as losses
from srum_jax.core.param_tree import Params, merge
from srum_jax.data.schema import Batch
from srum_jax.training.state import FrozenParams, TrainState


def _split_rows(batch, parts: int):
    # Rows b·m: each micro-batch takes every m-th row, so a row stays on its device.
    return jax.tree.map(lambda x: rearrange(x, "(b m) ... -> m b ...", m=parts), batch)


def _weights(loss_fn, params, reference, batches, key):
    """Total weight of every term over the micro-batches; the forward pass in it is dead code."""

    def one(batch):
        return {k: w for k, (_, w) in loss_fn(params, reference, batch, key).terms.items()}

    return jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.lax.map(one, batches))


def gradients(
    loss_fn: Callable,
    trained: Params,
    fixed: FrozenParams,
    batch: Batch,
    key: jax.Array,
    micro_batches: int,
) -> tuple[jax.Array, dict[str, jax.Array], Params]:
    """(loss, means of terms and metrics, gradients of `trained`) of a batch in micro-batches.

    With more than one this is gradient accumulation: a scan over parts of the batch. The loss is
    sum over terms of coefficient · (Σ sums / Σ weights): a mean over everything, not a mean of
    means, so splitting the batch changes nothing but the order of addition.
    """
    reference = None if fixed.reference is None else merge(fixed.reference, fixed.frozen)
    if fixed.first is not None:
        loss_fn = functools.partial(loss_fn, first=merge(fixed.first, fixed.frozen))

    def whole(trained, batch):
        out = loss_fn(merge(trained, fixed.frozen), reference, batch, key)
        return losses.total(out), out

    if micro_batches == 1:
        (loss, out), grads = jax.value_and_grad(whole, has_aux=True)(trained, batch)
        return loss, losses.means({**out.metrics, **out.terms}), grads

    batches = _split_rows(batch, micro_batches)
    weights = _weights(loss_fn, merge(trained, fixed.frozen), reference, batches, key)

    def part(trained, batch):
        out = loss_fn(merge(trained, fixed.frozen), reference, batch, key)
        shared = {k: (s, weights[k]) for k, (s, _) in out.terms.items()}
        return losses.total(out.replace(terms=shared)), out

    def body(carry, batch):
        (loss, out), grads = jax.value_and_grad(part, has_aux=True)(trained, batch)
        ratios = {**out.metrics, **out.terms}
        return jax.tree.map(jnp.add, carry, (loss, ratios, grads)), None

    first = jax.tree.map(lambda x: x[0], batches)
    shapes = jax.eval_shape(
        lambda b: (jnp.float32(0), {**part(trained, b)[1].metrics, **part(trained, b)[1].terms}),
        first,
    )
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    start = (*zeros, jax.tree.map(jnp.zeros_like, trained))
    (loss, ratios, grads), _ = jax.lax.scan(body, start, batches)
    return loss, losses.means(ratios), grads


def program(
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    *,
    ema: float,
    micro_batches: int,
    shardings: TrainState | None = None,
) -> Callable:
    """`step(state, fixed, batch, key)` as it is compiled: the old state makes room for the new.

    `shardings`: of every array of the state, which the new one then has as well. Left to the
    compiler they may be the same in other words, for which the second step would compile anew.
    Equal arguments give one program, so that the rounds of a run trace and compile it once.
    """
    leaves, form = jax.tree.flatten(shardings)
    return _program(loss_fn, tx, ema, micro_batches, tuple(leaves), form)


@functools.lru_cache(maxsize=1)
def _program(loss_fn, tx, ema, micro_batches, leaves, form) -> Callable:
    how = dict(loss_fn=loss_fn, tx=tx, ema=ema, micro_batches=micro_batches)
    laid = {"out_shardings": (form.unflatten(leaves), None)} if leaves else {}
    return jax.jit(functools.partial(step, **how), donate_argnums=0, **laid)


def step(
    state: TrainState,
    fixed: FrozenParams,
    batch: Batch,
    key: jax.Array,
    *,
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    ema: float,
    micro_batches: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The next state and the step's metrics (float32 scalars).

    Noise is a function of (key, step, noise id). A step whose loss or gradient is not finite
    leaves parameters, moments and average as they were and is counted.
    """
    key = jax.random.fold_in(key, state.step)
    loss, means, grads = gradients(loss_fn, state.params, fixed, batch, key, micro_batches)
    norm = optax.tree.norm(grads)
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    # The average is young at first: a long memory would keep the initial values.
    decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))

    def moved(params, opt_state, average):
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
        return params, opt_state, average, optax.tree.norm(updates)

    def kept(*old):
        return *old, jnp.zeros_like(norm)

    # A branch, not a choice between two states: for that XLA copies the old one ahead of the step.
    params, opt_state, average, moved_by = jax.lax.cond(
        good, moved, kept, state.params, state.opt_state, state.ema
    )
    bad = 1 - good.astype(jnp.int32)
    new = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ema=average,
        skipped=state.skipped + bad,
        skipped_in_row=(state.skipped_in_row + 1) * bad,
    )
    metrics = {
        "loss": loss,
        "grad_norm": norm,
        "update_norm": moved_by,
        "skipped_steps": new.skipped.astype(jnp.float32),
        "skipped_in_row": new.skipped_in_row.astype(jnp.float32),
        **means,
    }
    return new, metrics
