"""What a check of the monitor measures of pictures and their judgements."""

import types

import numpy as np
import pytest
import tiny
from stages import test_monitor

from srum_jax.rewards import judge
from srum_jax.stages import monitor, train
from srum_jax.stages.manifest import Workdir


def test_measures():
    judged = [
        test_monitor.judgement(0.5, 2),
        test_monitor.judgement(0.1, 1),
        test_monitor.judgement(float("nan"), 0, judge.NO_REGIONS),
        test_monitor.judgement(float("nan"), 3, judge.UNDECOMPOSED),
    ]
    texts = ["two red circles"] * 2 + ["a red circle", "a dog that sleeps"]
    images = np.zeros((2, 2, 1, 1, 3), np.uint8)
    images[0, 1] = [200, 100, 200]
    found = monitor.measure(judged, texts, images, True)
    assert found == {
        "own_score": pytest.approx(0.3),
        "counts_right": pytest.approx(1 / 3),
        "counted": 3,
        "distance": pytest.approx(np.sqrt(3e4) / 2),
        "status": {"ok": 2, "no regions": 1, "undecomposed": 1},
    }
    nothing = monitor.measure(judged[3:], texts[3:], images[:1], False)
    apart = pytest.approx(np.sqrt(3e4))
    assert nothing == {"counted": 0, "distance": apart, "status": {"undecomposed": 1}}
    three = np.array([[[0], [1], [255]]], np.uint8)
    assert monitor.distance(three) == pytest.approx((1 + 255 + 254) / 3)


def test_the_distance_is_of_pictures_whatever_their_latents_are(tmp_path):
    """Codes are numbers: far from each other they may stand for the same colour."""
    weights = tiny.write_model(tmp_path / "model")
    cfg = test_monitor.config(weights, train__trainable="gen")
    work, mesh = test_monitor.write(Workdir(tmp_path / "work"), cfg), tiny.mesh(cfg)
    opened, held = train.loading.base(cfg, work, mesh), monitor.prompts(work.stage("generate"), 3)
    watch = monitor.TrainingMonitor(cfg, mesh, work.stage("train"), opened, {}, held)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 32, 32, 3), np.uint8)
    codes = rng.integers(0, 2**14, (6, *tiny.GRID)).astype(np.float32)
    drawn = [codes]
    watch.sampler = types.SimpleNamespace(
        stream_prompts=lambda several, params: ((images, drawn[0]) for _ in several)
    )
    watch.panel = types.SimpleNamespace(proposers=[types.SimpleNamespace(separates=True)])
    watch.judge = lambda records, params: [test_monitor.judgement(0.5, 1)] * len(records)
    watch.measure(0, opened.params)
    drawn[0] = codes / 7  # other numbers, the same pictures
    watch.measure(1, opened.params)
    images = images // 2
    watch.measure(2, opened.params)
    assert watch.rows[1]["diversity"] == 1.0
    assert watch.rows[2]["diversity"] == pytest.approx(0.5, rel=0.01)
