"""The only training loop: a state, a step, the data, and a list of callbacks.

Order within a step: evaluate, save (callbacks, before the step), fetch, step, and only then the
previous step's metrics are read (callbacks, after it), so the device never waits for the host. What
is saved is exactly what a resumed run starts from: the state, the metrics up to it, and the step
number that names the next batch.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import optax
from absl import logging

from srum_jax.config import LoopConfig
from srum_jax.core import preemption
from srum_jax.training.callbacks import Callback
from srum_jax.training.state import FrozenParams, TrainState
from srum_jax.training.step import program


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled training step, with what it reads and never changes.

    program: `training.step.program` · frozen: leaves that are not trained · key: of all noise, on
    the devices of the state.
    """

    program: Callable
    frozen: FrozenParams
    key: jax.Array

    @classmethod
    def of(
        cls,
        state: TrainState,
        frozen: FrozenParams,
        *,
        loss_fn: Callable,
        tx: optax.GradientTransformation,
        key: jax.Array,
        cfg: LoopConfig,
    ) -> "Step":
        """The step of a run that starts at `state`, whose layout every later state keeps.

        loss_fn(params, reference, batch, key) -> LossOut; cfg is a LoopConfig: ema,
        micro_batches.
        """
        committed = state.step.committed
        if committed:
            # By a program: device_put does not reach the devices of other processes.
            key = jax.jit(lambda k: k, out_shardings=state.step.sharding)(key)
        shardings = jax.tree.map(lambda x: x.sharding, state) if committed else None
        return cls(
            program(loss_fn, tx, ema=cfg.ema, micro_batches=cfg.micro_batches, shardings=shardings),
            frozen,
            key,
        )

    def __call__(self, state: TrainState, batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """(the next state, the step's metrics); `state` is used up."""
        return self.program(state, self.frozen, batch, self.key)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run did: its first and last step, seconds of the first step (compilation in it), bad
    steps in all, and how many programs its steps were compiled to."""

    start: int
    steps: int
    compile_seconds: float
    skipped_steps: int
    programs: int


def run(
    state: TrainState,
    step: Step,
    batches: Iterator,
    callbacks: Sequence[Callback],
    *,
    steps: int,
) -> tuple[TrainState, Summary]:
    """Trains from `state`, which is used up, to step number `steps`, or until a callback ends it.

    `batches` begins with the batch of the step that `state` counts. A step that moves an array
    between host and device without saying so raises: it would wait for the device every time.
    Callbacks are closed in any case; they raise Preempted and Diverged.
    """
    start, compile_seconds = int(state.step), 0.0
    with contextlib.ExitStack() as kept, contextlib.ExitStack() as open_callbacks:
        for callback in reversed(callbacks):
            open_callbacks.callback(callback.close)
        for n in range(start, steps + 1):
            last = n == steps
            for callback in callbacks:
                last |= callback.before_step(n, state, last)
            if last:
                break
            if n == start:
                logging.info(
                    "compiling the training step: seconds to 2 minutes for a small model, 2 to 9 "
                    "minutes for BAGEL-7B, less where it is kept from an earlier run"
                )
            annotation = jax.profiler.StepTraceAnnotation("train", step_num=n)
            with annotation, jax.transfer_guard("disallow"):
                called = time.monotonic()
                batch = next(batches)
                fetched = time.monotonic()
                state, metrics = step(state, batch)
            if n == start:
                jax.block_until_ready(metrics)
                compile_seconds = time.monotonic() - fetched
                logging.info("step %d is done, after %.0f s with compiling", n + 1, compile_seconds)
                kept.enter_context(preemption.saving())  # before, there is nothing to lose
            for callback in callbacks:
                callback.after_step(n + 1, metrics, fetched - called)
    return state, Summary(
        start=start,
        steps=n,
        compile_seconds=round(compile_seconds, 2),
        skipped_steps=int(state.skipped),
        programs=step.program._cache_size() if start < steps else 0,
    )
