"""Rounds that go on from each other: what a round starts from, and what it compares with."""

import dataclasses
import types

import jax
import numpy as np
import pytest
import tiny
from stages.test_train import config, handed, run, weights, write  # noqa: F401

from srum_jax import programs
from srum_jax.core import param_tree
from srum_jax.core.errors import BadInput
from srum_jax.stages import export, loading, train
from srum_jax.stages.manifest import Workdir
from srum_jax.training import checkpoint, metrics, optim, step
from srum_jax.training.checkpoint import Checkpoints

STEPS = 3
VALUES = dict(
    rounds=3,
    stages=("generate", "score", "train", "export"),
    train__objective="nft",
    train__anchor=0.5,
    train__steps=STEPS,
    train__ema=0.5,
    export__dtype="float32",
)


def exported(cfg, work):
    """Trains a round on what the stages before leave, and exports it."""
    run(cfg, write(work, cfg))
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        export.run(cfg, mesh, work)


def first_round(cfg, root):
    """The round after one that is finished."""
    exported(cfg, Workdir(root))
    return write(Workdir(root, round=1), cfg)


def leaves(cfg, folder):
    """{path: trained leaf} of a folder of weights."""
    loaded = loading.families.find(folder).load(
        folder, None, mesh=tiny.mesh(cfg), dtype="float32", want=("model",)
    )
    trained, _ = param_tree.split(loaded[1], programs.Trainable.of(cfg.train, loaded[0]))
    return param_tree.flatten(trained)


def assert_same(one, other):
    one, other = param_tree.flatten(one), param_tree.flatten(other)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


def differ(one, other):
    one, other = param_tree.flatten(one), param_tree.flatten(other)
    return any(not np.array_equal(one[path], other[path]) for path in one)


def test_a_round_goes_on_from_the_one_before(weights, tmp_path, monkeypatch):  # noqa: F811
    """Parameters and moments are those that it ended with; the model compared with is the averaged
    one, which drew; the anchor pulls to the very first one."""
    cfg = config(weights, **VALUES, train__carry=True, train__anchor_to="first")
    work = first_round(cfg, tmp_path)
    compiled = step._program.cache_info()
    seen = handed(cfg, work, monkeypatch, 1)
    state, fixed = seen["state"], seen["frozen"]
    saved = Checkpoints(tmp_path / "round0" / "train" / "checkpoints", keep=2)
    ended = saved.restore(STEPS, state)
    saved.close()
    assert_same(state.params, ended.params)
    same = zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(ended.opt_state), strict=True)
    assert all(np.array_equal(a, b) for a, b in same)
    assert (int(state.step), int(ended.step)) == (0, STEPS)
    drew = leaves(cfg, tmp_path / "round0" / "export" / "model")
    assert_same(fixed.reference, drew)
    assert_same(fixed.first, leaves(cfg, weights))
    assert differ(state.params, fixed.reference) and differ(fixed.reference, fixed.first)
    # One program for both rounds, which is what tracing and compiling cost.
    again = step._program.cache_info()
    assert (again.hits, again.misses) == (compiled.hits + 1, compiled.misses)
    run(cfg, work)
    rates = [row["learning_rate"] for row in metrics.read(work.stage("train") / "metrics.jsonl")]
    wanted = [
        optim.learning_rate(cfg.train.optim, STEPS + n, steps=3 * STEPS) for n in range(STEPS)
    ]
    assert rates == pytest.approx(wanted)
    assert step._program.cache_info().misses == compiled.misses


def test_without_that_it_begins_anew_from_the_averaged_weights(weights, tmp_path, monkeypatch):  # noqa: F811
    cfg = config(weights, **VALUES)
    seen = handed(cfg, first_round(cfg, tmp_path), monkeypatch, 1)
    drew = leaves(cfg, tmp_path / "round0" / "export" / "model")
    assert_same(seen["state"].params, drew)
    assert_same(seen["frozen"].reference, drew)
    assert seen["frozen"].first is None
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(seen["state"].opt_state))


def test_an_anchor_alone_needs_the_first_model_alone(weights, tmp_path, monkeypatch):  # noqa: F811
    values = VALUES | dict(train__objective="sft", train__select="all")
    cfg = config(weights, **values, train__anchor_to="first")
    work = first_round(cfg, tmp_path)
    row = metrics.read(tmp_path / "round0" / "train" / "metrics.jsonl")[0]
    assert row["drift"] == 0 == row["anchor"]  # in the first step of the first round
    seen = handed(cfg, work, monkeypatch, 1)
    assert seen["frozen"].reference is None
    assert_same(seen["frozen"].first, leaves(cfg, weights))
    run(cfg, work)
    row = metrics.read(work.stage("train") / "metrics.jsonl")[0]
    assert row["drift"] > 0  # from the first round's start, which this one's is not


def test_what_the_monitor_ended_is_not_carried_on(tmp_path, monkeypatch, caplog):
    fresh = object()
    before = types.SimpleNamespace(counts={"stopped_at": 2})
    monkeypatch.setattr(train.Manifest, "read", lambda folder: before)
    with caplog.at_level("WARNING"):
        found = train.carried(None, Workdir(tmp_path, round=1), None, lambda: fresh)
    assert found is fresh and "ended by the monitor" in caplog.text


def test_a_lost_checkpoint_is_told(tmp_path, monkeypatch):
    before = types.SimpleNamespace(counts={})
    monkeypatch.setattr(train.Manifest, "read", lambda folder: before)
    c = types.SimpleNamespace(keep=1, steps=7)
    with pytest.raises(BadInput, match="checkpoint of step 7 is missing.*trains that round again"):
        train.carried(c, Workdir(tmp_path, round=2), None, None)
    assert checkpoint.steps(tmp_path / "round1" / "train" / "checkpoints") == []


@pytest.mark.parametrize(
    "values,said",
    [
        (dict(train__trainable="lora", train__carry=True), "new adapters"),
        (dict(train__trainable="lora", train__anchor_to="first"), "new adapters"),
        (dict(train__carry=True, train__use="best"), 'set it to "last"'),
        (dict(train__carry=True, stages=("train", "adjust", "export")), "adjust chose"),
    ],
)
def test_what_contradicts_is_refused(values, said):
    with pytest.raises(BadInput, match=said):
        tiny.load_config("", rounds=2, **({"stages": ("train", "export")} | values))


def test_the_schedule_spans_rounds_that_go_on_from_each_other():
    cfg = tiny.load_config("", rounds=4, train__steps=5)
    assert programs.planned_steps(cfg) == 5
    train_ = dataclasses.replace(cfg.train, carry=True)
    assert programs.planned_steps(dataclasses.replace(cfg, train=train_)) == 20
