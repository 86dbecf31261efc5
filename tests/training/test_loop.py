"""The loop: stopped, killed or left alone, a run ends in the same numbers."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest
import toy

from srum_jax.config import MeshConfig
from srum_jax.core import sharding
from srum_jax.core.errors import BadInput, Diverged, Preempted
from srum_jax.training import callbacks, loop, metrics, optim
from srum_jax.training.checkpoint import Checkpoints


def rows(folder):
    found = metrics.read(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in metrics.CLOCKS} for row in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbs: (folder, state, summary)."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *toy.run(folder, threading.Event())


def test_an_undisturbed_run(whole):
    folder, state, summary = whole
    assert int(state.step) == 8
    assert summary.start == summary.skipped_steps == 0 and summary.programs == 1
    assert summary.compile_seconds > 0
    found = metrics.read(folder / "metrics.jsonl")
    assert [row["step"] for row in found] == list(range(1, 9))
    assert found[-1]["loss"] < 0.9 * found[0]["loss"]
    assert all(row["seconds"] >= 0 and row["data_wait_seconds"] >= 0 for row in found)
    assert set(metrics.CLOCKS) & set(found[0]) == set(metrics.CLOCKS) - {
        "tokens_per_second",
        "flops_utilisation",
    }
    cfg = toy.loop_config()
    assert found[5]["learning_rate"] == pytest.approx(optim.learning_rate(cfg.optim, 5, steps=8))
    saved = Checkpoints(folder / "checkpoints", keep=2)
    assert saved.latest() == 8 and saved.meta(8)["stage"] == "toy"
    toy.assert_same(saved.restore(8, state), state)
    saved.close()


def stopping(event, at):
    """Batches during whose making somebody asks to stop, once `at` steps were asked for."""

    def batches(start):
        for n, batch in enumerate(toy.batches(start), start + 1):
            if n == at:
                event.set()
            yield batch

    return batches


@pytest.mark.parametrize("at", [1, 5])
def test_stopped_and_resumed(whole, tmp_path, at):
    """Also between two checkpoints, and right after the start."""
    stop = threading.Event()
    with pytest.raises(Preempted, match=f"toy: stopped at step {at} of 8, state saved"):
        toy.run(tmp_path, stop, batches=stopping(stop, at))
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, at + 1))
    state, summary = toy.run(tmp_path, threading.Event())
    assert summary.start == at and summary.programs == 1
    toy.assert_same(state, whole[1])
    assert rows(tmp_path) == rows(whole[0])


def test_asked_to_stop_before_the_start(whole, tmp_path):
    stop = threading.Event()
    stop.set()
    for _ in range(2):  # nothing is lost by asking again
        with pytest.raises(Preempted, match="step 0 of 8"):
            toy.run(tmp_path, stop)
    state, _ = toy.run(tmp_path, threading.Event())
    toy.assert_same(state, whole[1])
    assert rows(tmp_path) == rows(whole[0])


KILLED = """
import os, signal, sys, threading
import conftest, toy

def batches(start):
    for n, batch in enumerate(toy.batches(start)):
        if n == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

toy.run(sys.argv[1], threading.Event(), batches=batches)
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", [6, 7])
def test_killed_and_resumed(whole, tmp_path, at):
    """At 6 in the middle of a save, at 7 after it."""
    paths = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(at)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    saved = [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    newest = max(map(int, saved))  # a save that was under way leaves nothing behind
    assert newest in (4, 6)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # torn, as a kill may leave it
    state, summary = toy.run(tmp_path, threading.Event())
    assert summary.start == newest
    toy.assert_same(state, whole[1])
    assert rows(tmp_path) == rows(whole[0])


def test_finished_runs_are_not_run_again(whole, tmp_path):
    toy.run(tmp_path, threading.Event())
    state, summary = toy.run(tmp_path, threading.Event(), batches=lambda start: iter(()))
    assert summary.start == 8 and summary.programs == 0
    toy.assert_same(state, whole[1])
    assert rows(tmp_path) == rows(whole[0])
    with pytest.raises(BadInput, match="at step 8, beyond the 4 steps of the config"):
        toy.run(tmp_path, threading.Event(), cfg=toy.loop_config(steps=4))


def poisoned(bad):
    """Batches of which those of the steps in `bad` hold a number that is none."""

    def batches(start):
        for n, batch in enumerate(toy.batches(start), start + 1):
            if n in bad:
                batch["y"][1, 0] = np.nan
            yield batch

    return batches


def test_bad_steps_in_a_row_end_the_run(tmp_path):
    """At once, whether or not the step is one of those that are logged."""
    cfg = toy.loop_config(steps=50, log_every=20, max_bad_steps=3)
    with pytest.raises(Diverged, match="toy: .* in the last 3 steps up to step 5. Parameters are"):
        toy.run(tmp_path, threading.Event(), cfg=cfg, batches=poisoned({1, 3, 4, 5, 6}))
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [1, 5]
    assert found[-1]["loss"] == "nan" and found[-1]["skipped_in_row"] == 3


def test_a_metric_over_its_limit_ends_the_run(whole, tmp_path):
    """At the first logged step above it, which is written before; at the limit a run goes on."""
    found = [row["size"] for row in rows(whole[0])]
    at = max(i for i in range(2, len(found)) if found[i] > max(found[:i]))  # a new record
    limit = callbacks.MetricLimit("size", max(found[:at]), "toy.largest", "Take smaller steps.")
    said = f"toy: size = {found[at]:.3g} at step {at + 1} is above toy.largest = {limit.largest:g}."
    with pytest.raises(Diverged, match=re.escape(said + " Take smaller steps.")):
        toy.run(tmp_path, threading.Event(), limits=(limit,))
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, at + 2))


def test_a_few_bad_steps_are_counted(whole, tmp_path):
    bad = {2, 4, 5}
    state, summary = toy.run(tmp_path, threading.Event(), batches=poisoned(bad))
    assert summary.skipped_steps == 3 and int(state.step) == 8
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    found = {row["step"]: row for row in rows(tmp_path)}
    assert {n for n, row in found.items() if row["loss"] == "nan"} == bad
    assert [found[n]["skipped_steps"] for n in (1, 2, 3, 5, 8)] == [0, 1, 1, 3, 3]
    # The schedule waits for steps that do something.
    rate = optim.learning_rate(toy.loop_config().optim, 7 - 3, steps=8)
    assert found[8]["learning_rate"] == pytest.approx(rate)


def test_which_steps_are_logged_does_not_depend_on_stops(tmp_path):
    cfg, stop = toy.loop_config(log_every=3), threading.Event()
    with pytest.raises(Preempted):
        toy.run(tmp_path, stop, cfg=cfg, batches=stopping(stop, 4))
    toy.run(tmp_path, threading.Event(), cfg=cfg)
    assert [row["step"] for row in rows(tmp_path)] == [1, 3, 6, 8]


def test_evaluated_every_few_steps_and_at_the_end(tmp_path):
    seen, stop = [], threading.Event()

    def evaluate(step, state):
        assert int(state.step) == step
        seen.append(step)
        return {"accuracy": step / 8}

    more = dict(evaluate=evaluate, evaluate_every=3)
    with pytest.raises(Preempted):
        toy.run(tmp_path, stop, batches=stopping(stop, 6), **more)
    toy.run(tmp_path, threading.Event(), **more)
    toy.run(tmp_path, threading.Event(), **more)
    assert seen == [3, 6, 8]
    found = metrics.read(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in found if "accuracy" in r] == [3, 6, 8]
    assert [r["step"] for r in found if "loss" in r] == list(range(1, 9))
    assert [r["step"] for r in found] == sorted(r["step"] for r in found)


def test_stopped_in_an_evaluation_the_state_is_saved_and_evaluated_by_the_next_run(tmp_path):
    stop = threading.Event()

    def stopped(step, state):
        if step == 6:
            raise Preempted("stopped")
        return {"accuracy": step / 8}

    how = dict(evaluate_every=3)
    with pytest.raises(Preempted, match="toy: stopped at step 6 of 8, state saved"):
        toy.run(tmp_path, stop, evaluate=stopped, **how)
    toy.run(tmp_path, stop, evaluate=lambda step, state: {"accuracy": int(state.step) / 8}, **how)
    found = metrics.read(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["accuracy"]) for r in found if "accuracy" in r] == [
        (3, 3 / 8),
        (6, 6 / 8),
        (8, 1.0),
    ]
    assert [r["step"] for r in found if "loss" in r] == list(range(1, 9))


def test_a_run_may_have_enough(whole, tmp_path):
    """At an evaluation, whose step is saved; started again, it has enough without a step."""
    looked = []

    def evaluate(step, state):
        looked.append(step)
        return {"seen": float(state.step)}

    how = dict(evaluate=evaluate, evaluate_every=3, enough=lambda step: step in looked[1:])
    state, summary = toy.run(tmp_path, threading.Event(), **how)
    assert looked == [3, 6] and summary.steps == int(state.step) == 6
    found = rows(tmp_path)
    assert [r["seen"] for r in found if "seen" in r] == looked
    assert [r for r in found if "seen" not in r] == rows(whole[0])[:6]
    again, summary = toy.run(tmp_path, threading.Event(), **how)
    assert looked == [3, 6] and summary.start == summary.steps == 6
    toy.assert_same(again, state)


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    toy.run(tmp_path, threading.Event(), cfg=toy.loop_config(steps=4))
    numbers = [p for p in (tmp_path / "checkpoints/4/state").rglob("d/*") if p.is_file()]
    numbers[0].write_bytes(numbers[0].read_bytes()[:-1])
    state, summary = toy.run(tmp_path, threading.Event(), cfg=toy.loop_config(steps=4))
    assert (summary.start, summary.steps) == (2, 4)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]
    again, _ = toy.run(tmp_path / "again", threading.Event(), cfg=toy.loop_config(steps=4))
    toy.assert_same(state, again)


@pytest.mark.slow
def test_on_many_devices_one_program(whole, tmp_path):
    """Also after a restart: a restored state lies as a fresh one does."""
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2, context=1), jax.devices())
    at = sharding.batch_sharding(mesh)
    stop = threading.Event()

    def placed(batches):
        return lambda start: (jax.device_put(batch, at) for batch in batches(start))

    with jax.set_mesh(mesh):
        with pytest.raises(Preempted):
            toy.run(tmp_path, stop, mesh=mesh, batches=placed(stopping(stop, 5)))
        state, summary = toy.run(
            tmp_path, threading.Event(), mesh=mesh, batches=placed(toy.batches)
        )
    assert summary.programs == 1 and summary.start == 5
    w = state.params["out"]["w"]
    where = sharding.shardings(toy.TRAINED, mesh)["out"]["w"]
    assert w.sharding.is_equivalent_to(where, 2) and w.sharding == state.ema["out"]["w"].sharding
    for one, other in zip(rows(tmp_path), rows(whole[0]), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_one_program_where_every_cut_is_of_one_piece(tmp_path):
    """On one device every sharding is the same, whatever it is called."""
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=1, tensor=1, context=1), jax.devices()[:1])
    at = sharding.batch_sharding(mesh)
    with jax.set_mesh(mesh):
        _, summary = toy.run(
            tmp_path,
            threading.Event(),
            mesh=mesh,
            batches=lambda start: (jax.device_put(batch, at) for batch in toy.batches(start)),
        )
    assert summary.programs == 1


def test_speeds_are_told(tmp_path, monkeypatch):
    """Those of the steps alone: evaluations, slow ones, are left out."""

    def slow(start):
        for batch in toy.batches(start):
            time.sleep(0.01)
            yield batch

    def evaluate(step, state):
        time.sleep(0.5)
        return {}

    monkeypatch.setattr(metrics, "peak_flops", lambda kind: 1e9)
    cost = callbacks.StepCost(tokens=100.0, flops=4e6)
    cfg = toy.loop_config(log_every=2, checkpoint_every=9)
    how = dict(cost=cost, batches=slow, evaluate=evaluate, evaluate_every=5)
    toy.run(tmp_path, threading.Event(), cfg=cfg, **how)
    found = {row["step"]: row for row in metrics.read(tmp_path / "metrics.jsonl") if "loss" in row}
    assert found[6]["seconds"] > 0.5 > 2 * 100 / found[6]["tokens_per_second"]
    for row in (found[4], found[6], found[8]):
        assert 0.01 <= row["data_wait_seconds"] and 0 < row["data_wait_share"] <= 1
        assert row["tokens_per_second"] <= 2 * 100 / 0.01
        utilisation = row["tokens_per_second"] / 100 * 4e6 / (1e9 * jax.device_count())
        assert row["flops_utilisation"] == pytest.approx(utilisation, rel=0.01, abs=1e-4)
        assert row["peak_memory_gib"] > 0.05


def log_config(**values):
    return types.SimpleNamespace(**({"writers": (), "profile": (0, 0)} | values))


@pytest.mark.slow
def test_chosen_steps_are_traced(tmp_path):
    traced = [tmp_path / name for name in ("some", "rest", "none")]
    for folder, profile in zip(traced, [(2, 3), (6, 50), (9, 2)], strict=True):
        toy.run(folder, threading.Event(), log=log_config(profile=profile))
        assert bool(list(folder.glob("profile/**/*.xplane.pb"))) == (folder != traced[-1])
    assert not (traced[-1] / "profile").exists()


class Spy:
    """In place of a package: what is called, with what."""

    def __init__(self):
        self.rows, self.opened, self.closed = [], [], 0

    def SummaryWriter(self, folder):
        self.opened.append(folder)
        return self

    def add_scalar(self, name, value, step):
        self.rows.append((step, {name: value}))

    def init(self, **how):
        self.opened.append(how)
        return self

    def log(self, row, step):
        self.rows.append((step, row))

    def close(self):
        self.closed += 1

    finish = close


def test_writers_are_handed_every_row(tmp_path, monkeypatch):
    board, bias = Spy(), Spy()
    monkeypatch.setitem(sys.modules, "tensorboardX", board)
    monkeypatch.setitem(sys.modules, "wandb", bias)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    wanted = log_config(writers=("tensorboard", "wandb"))
    stop = threading.Event()
    with pytest.raises(Preempted):
        toy.run(tmp_path, stop, batches=stopping(stop, 3), log=wanted)
    assert board.closed == bias.closed == 1
    toy.run(tmp_path, threading.Event(), log=wanted)
    assert board.opened == [str(tmp_path / "tensorboard")] * 2
    first, second = bias.opened
    assert first == second and first["project"] == "mine" and first["resume"] == "allow"
    assert first["id"] and first["dir"] == str(tmp_path)
    found = [dict(row) for row in metrics.read(tmp_path / "metrics.jsonl")]
    assert bias.rows == [(row.pop("step"), row) for row in found]
    assert {step for step, _ in board.rows} == set(range(1, 9))
    assert dict(pair for step, row in board.rows if step == 4 for pair in row.items()) == found[3]


@pytest.mark.parametrize("writer, package", [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_writer_that_is_not_installed(tmp_path, monkeypatch, writer, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadInput, match=rf'"{writer}".* pip install {package}$'):
        toy.run(tmp_path, threading.Event(), log=log_config(writers=(writer,)))


class Noting(callbacks.Callback):
    """Notes what the loop asks of it."""

    def __init__(self, said, name, enough=99, fails=None):
        self.said, self.name, self.enough, self.fails = said, name, enough, fails

    def before_step(self, n, state, last):
        assert int(state.step) == n
        self.said.append((f"{self.name} before", n, last))
        if n == self.fails:
            raise KeyError("broken")
        return n >= self.enough

    def after_step(self, n, metrics, waited):
        assert "loss" in metrics and waited >= 0
        self.said.append((f"{self.name} after", n))

    def close(self):
        self.said.append((f"{self.name} closed",))


def looped(hooks, steps=8, batches=lambda start: map(jax.device_put, toy.batches(start))):
    cfg = toy.loop_config(steps=steps)
    state, frozen, tx = toy.start(cfg)
    key = jax.random.key(7)
    step = loop.Step.of(state, frozen, loss_fn=toy.loss_fn, tx=tx, key=key, cfg=cfg)
    return loop.run(state, step, batches(0), hooks, steps=steps)


def test_callbacks_are_asked_in_order_and_always_closed():
    said = []
    state, summary = looped([Noting(said, "a", enough=1), Noting(said, "b")])
    assert summary.steps == int(state.step) == 1
    assert said == [
        *[("a before", 0, False), ("b before", 0, False), ("a after", 1), ("b after", 1)],
        *[("a before", 1, False), ("b before", 1, True)],  # b hears that a has enough
        *[("a closed",), ("b closed",)],
    ]
    said.clear()
    with pytest.raises(KeyError, match="broken"):
        looped([Noting(said, "a", fails=2), Noting(said, "b")])
    assert said[-2:] == [("a closed",), ("b closed",)] and ("b before", 2, False) not in said


def test_a_step_moves_nothing_between_host_and_device_unsaid(tmp_path):
    """Batches of NumPy arrays would be moved while the device waits, in every step."""
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        looped([], batches=toy.batches)
    assert looped([], steps=2)[1].steps == 2


def test_steps_have_their_names_and_numbers_in_a_trace(tmp_path):
    toy.run(tmp_path, threading.Event(), log=log_config(profile=(2, 3)))
    (file,) = (tmp_path / "profile").glob("**/*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(file))
    steps = [
        dict(event.stats)["step_num"]
        for plane in data.planes
        for line in plane.lines
        for event in line.events
        if event.name == "train" and "step_num" in dict(event.stats)
    ]
    assert sorted(steps) == [2, 3, 4]


def test_a_checkpoint_that_fails_at_the_end_does_not_cost_the_metrics(tmp_path, monkeypatch):
    closed, close = [], metrics.Writer.close

    def fails(self):
        raise BadInput("the disk is full")

    monkeypatch.setattr(Checkpoints, "close", fails)
    monkeypatch.setattr(metrics.Writer, "close", lambda self: (close(self), closed.append(1)))
    with pytest.raises(BadInput, match="the disk is full"):
        toy.run(tmp_path, threading.Event())
    assert closed == [1] and len(metrics.read(tmp_path / "metrics.jsonl")) == 8
