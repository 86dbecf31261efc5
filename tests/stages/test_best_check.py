"""The best check of the training monitor: which it is, what is kept of it, and what is left."""

import json

import jax
import jsonschema
import numpy as np
import pytest
import tiny
from stages import test_evaluate, test_train
from stages.test_monitor import BOUNDS, FIRST, LENIENT, config, row, write

from srum_jax.stages import monitor
from srum_jax.stages.manifest import Workdir
from srum_jax.training import checkpoint, metrics


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "model")


def test_the_best_check_is_the_first_good_one_of_the_highest_own_score():
    rows = [FIRST, row(1, own_score=0.7), row(2, own_score=0.7), row(3, own_score=0.9, diversity=0)]
    assert monitor.best(rows, BOUNDS)["step"] == 1
    assert monitor.best([FIRST, row(1, own_score=0.4)], BOUNDS)["step"] == 0
    assert monitor.best([], BOUNDS) is None and monitor.best([{"step": 0}], BOUNDS) is None


@pytest.mark.slow
@pytest.mark.parametrize("use, left", [("best", 1), ("last", 3)])
def test_the_best_weights_are_kept_beside_the_newest(weights, tmp_path, monkeypatch, use, left):
    """Own scores are given by the step; the run is stopped after the best check and goes on."""
    cfg = config(weights, train__use=use, train__keep=1, **LENIENT)
    work = write(Workdir(tmp_path, config_file="c"), cfg)
    true, scores = monitor.TrainingMonitor.measure, {0: 0.1, 1: 0.9, 2: 0.5, 3: 0.4}
    measured = monitor.measure

    def given(self, step, ema):
        with monkeypatch.context() as patch:
            values = {"own_score": scores[step]}
            patch.setattr(monitor, "measure", lambda *args: {**measured(*args), **values})
            return true(self, step, ema)

    monkeypatch.setattr(monitor.TrainingMonitor, "measure", given)
    test_train.stopped(monkeypatch, 2, lambda: test_train.run(cfg, work))
    test_train.run(cfg, work)
    folder = work.stage("train")
    assert list(monitor.kept(folder)) == [1, 3]
    results = json.loads(work.results.read_text())
    jsonschema.validate(results, test_evaluate.SCHEMA)
    part = results["rounds"][0]["train"]
    assert part["best"] == {"step": 1, "score": 0.9}
    assert part.get("weights_of", 3) == left
    rows = [r for r in metrics.read(folder / "metrics.jsonl") if "monitor_best_step" in r]
    assert [r["monitor_best_step"] for r in rows] == [1, 1, 1]
    kept, made = monitor.kept(folder)[left], folder / "params"
    like = checkpoint.saved_shapes(made)
    same = [checkpoint.load_params(place, like) for place in (kept, made)]
    jax.tree.map(np.testing.assert_array_equal, *same)
