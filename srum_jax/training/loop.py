"""The only training loop.

Order within a step: evaluate, save, fetch, step, and only then the previous step's metrics are
read, so the device never waits for the host. What `save` sees is exactly what a resumed run starts
from: the state, and the step number that names the next batch.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import jax

from srum_jax.core.errors import Diverged, Preempted
from srum_jax.training import optim
from srum_jax.training.checkpoint import Checkpoints
from srum_jax.training.metrics import Writer
from srum_jax.training.state import Fixed, TrainState
from srum_jax.training.step import step as train_step


def run(
    state: TrainState,
    fixed: Fixed,
    *,
    loss_fn: Callable,
    tx,
    batches: Callable[[int], Iterator],
    key: jax.Array,
    cfg,
    checkpoints: Checkpoints,
    meta: Mapping,
    metrics_path,
    title: str,
    stop: threading.Event,
    evaluate: Callable[[int, TrainState], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
) -> tuple[TrainState, dict]:
    """Trains from the newest checkpoint (or `state`) to `cfg.steps`; returns (state, summary).

    batches(start) iterates device batches from step `start` on. cfg is a LoopConfig: steps, optim,
    ema, micro_batches, checkpoint_every, log_every, max_bad_steps. `evaluate(step, state)` is asked
    every `evaluate_every` steps, and its numbers are written among the metrics. Raises Preempted after a clean save
    when `stop` is set, Diverged after max_bad_steps bad steps in a row.
    """
    steps = cfg.steps
    latest = checkpoints.latest()
    if latest is not None:
        state = checkpoints.restore(latest, state)
    start = int(state.step)
    jitted = jax.jit(
        functools.partial(
            train_step, loss_fn=loss_fn, tx=tx, ema=cfg.ema, micro_batches=cfg.micro_batches
        ),
        donate_argnums=0,
    )
    writer = Writer(metrics_path, steps=steps, start=start, title=title)
    stream = batches(start)
    pending, began, waited = None, time.monotonic(), 0.0
    compile_seconds = 0.0

    def flush():
        nonlocal began, waited
        number, metrics = pending
        row = {k: float(v) for k, v in jax.device_get(metrics).items()}
        now = time.monotonic()
        row = {
            "step": number,
            **row,
            "learning_rate": optim.learning_rate(cfg.optim, number - 1, steps=steps),
            "seconds": round(now - began, 3),
            "data_wait_seconds": round(waited, 3),
        }
        began, waited = now, 0.0
        writer.write(row)
        if row["skipped_in_row"] >= cfg.max_bad_steps:
            raise Diverged(
                f"{title}: loss or gradient was not finite in the last "
                f"{int(row['skipped_in_row'])} steps up to step {number}. Parameters are as they "
                "were before those. Lower the learning rate, or look at the data of those steps."
            )

    try:
        for n in range(start, steps):
            if evaluate is not None and n > start and n % evaluate_every == 0:
                writer.write({"step": n, **evaluate(n, state)})
            if n > start and n % cfg.checkpoint_every == 0:
                checkpoints.save(n, state, dict(meta))
            if stop.is_set():
                checkpoints.save(n, state, dict(meta))
                raise Preempted(f"{title}: stopped at step {n} of {steps}, state saved")
            fetching = time.monotonic()
            batch = next(stream)
            waited += time.monotonic() - fetching
            called = time.monotonic()
            state, metrics = jitted(state, fixed, batch, key)
            if n == start:
                jax.block_until_ready(metrics)
                compile_seconds = time.monotonic() - called
            if pending is not None:
                flush()
                pending = None
            writer.advance(n + 1)
            if (n + 1) % cfg.log_every == 0 or n + 1 == steps or n == start:
                pending = (n + 1, metrics)
        if pending is not None:
            flush()
        checkpoints.save(steps, state, dict(meta))
    finally:
        checkpoints.close()
        writer.close()
    return state, {
        "start": start,
        "compile_seconds": round(compile_seconds, 2),
        "skipped_steps": int(state.skipped),
        "programs": jitted._cache_size() if start < steps else 0,
    }
