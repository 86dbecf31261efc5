"""What a run wrote and a disk changed: the same command, given again, makes it again by itself."""

import signal
import sys
import types

import numpy as np
import pytest

from srum_jax import main, running
from srum_jax.configs import shapes
from srum_jax.core import console, preemption
from srum_jax.core.errors import Damaged
from srum_jax.data import shards
from srum_jax.stages import shard_worker
from srum_jax.stages.manifest import Outcome, run_stage
from srum_jax.training import checkpoint

SIZES = (3, 3, 1)
TRAINED = {"a": np.arange(50_000, dtype=np.float32)}


class Stages:
    """Stages without a model: shards, whoever reads their records, and parameters."""

    def __init__(self):
        self.made, self.read = [], []

    def shards(self, cfg, mesh, work):
        features = shards.score_features()

        def make(first, count):
            self.made.append(first)
            blank = {"regions": [], "image_score": np.float32(1), "image_status": "ok"}
            return [
                {"id": f"{i} " * 99, "prompt_id": i, "k": 0, **blank}
                for i in range(first, first + count)
            ]

        def body(folder):
            each = shard_worker.one_by_one(make)
            shard_worker.make_all(folder, "c", features, SIZES, each, title="generate")
            return Outcome({"candidates": "."}, {}, items=7)

        return run_stage("generate", cfg, work, sections=(), inputs={}, body=body)

    def parameters(self, cfg, mesh, work):
        self.read.append([r["prompt_id"] for r in shards.read(work.stage("generate"))])

        def body(folder):
            self.made.append("params")
            checkpoint.save_params(folder / "params", TRAINED)
            return Outcome({"params": "params"}, {}, items=1)

        return run_stage("train", cfg, work, sections=(), inputs={}, body=body)

    def reader(self, cfg, mesh, work):
        like = {"a": np.zeros(50_000, np.float32)}
        found = checkpoint.load_params(work.stage("train") / "params", like)
        np.testing.assert_array_equal(found["a"], TRAINED["a"])
        self.read.append("params")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """run() gives the command; run.stages its stages, run.root its work folder."""
    stages = Stages()
    for name, does in (
        ("generate", stages.shards),
        ("train", stages.parameters),
        ("evaluate", stages.reader),
    ):
        module = types.SimpleNamespace(run=does, check=lambda cfg, work, found: None)
        monkeypatch.setitem(sys.modules, running.STAGES[name], module)
    monkeypatch.setattr(console, "cache_compiled_programs", lambda: None)
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    rows = [f"--config.{s}=64" for s in ("evaluate.batch", "train.rows")]
    words = ["main", "--config", shapes.__file__, *rows, "--stage=generate,train,evaluate"]
    root = tmp_path / "run"
    yield types.SimpleNamespace(
        again=lambda: main.main([*words, "--workdir", str(root)]), stages=stages, root=root
    )
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(-1)
    preemption.stop.clear()


def flip(path, at=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 16
    path.write_bytes(bytes(data))


def test_a_flipped_bit_of_a_record_costs_its_shard_alone(run, capsys):
    assert run.again() == 0 and run.stages.made == [0, 3, 6, "params"]
    path = shards.shard_path(run.root / "round0/generate", "c", 1, 3)
    whole = path.read_bytes()
    (first, _), *_ = shards.shard_file.spans(path, 3)
    flip(path, first + 60)
    with pytest.raises(Damaged, match="c-train.array_record-00001-of-00003"):
        list(shards.read(path.parent))
    assert run.again() == 69
    said = capsys.readouterr().err
    assert f"error: {path} was damaged: the same command makes it again" in said
    run.stages.made.clear()
    assert run.again() == 0
    assert run.stages.made == [3] and path.read_bytes() == whole
    assert run.stages.read[-2:] == [list(range(7)), "params"]


def test_parameters_that_changed_are_written_again(run, capsys):
    assert run.again() == 0
    folder = run.root / "round0/train/params"
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    flip(path)
    assert run.again() == 69
    assert f"{folder}: damaged, not as they were written" in capsys.readouterr().err
    run.stages.made.clear()
    assert run.again() == 0
    assert run.stages.made == ["params"] and run.stages.read[-1] == "params"


def test_what_lies_elsewhere_is_not_removed(run, tmp_path, capsys):
    path = tmp_path / "mine"
    path.write_text("x")

    def reads(*_):
        raise Damaged(path, "flipped")

    sys.modules[running.STAGES["evaluate"]].run = reads
    assert run.again() == 2
    assert f"error: {path}: damaged, flipped" in capsys.readouterr().err and path.exists()
