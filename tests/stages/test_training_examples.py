"""What is shown of what was trained on is what was trained on."""

import json

import numpy as np
import pytest
import tiny
from stages.test_train import config, handed, run, write

from srum_jax.data import shards
from srum_jax.objectives import srum
from srum_jax.stages import selection, training_examples
from srum_jax.stages.manifest import Workdir


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "model")


@pytest.mark.parametrize("objective, cap", [("srum_release", 2), ("srum_advantage", 4), ("sft", 4)])
def test_examples_show_the_weights_that_training_used(
    weights, tmp_path, monkeypatch, objective, cap
):
    more = dict(train__objective=objective, train__lanes__regions=cap, train__steps=12)
    cfg = config(weights, train__rows=1, train__text_dropout=0.0, **more)
    batches = handed(cfg, write(Workdir(tmp_path / "a"), cfg), monkeypatch, 12)["batches"]
    work = write(Workdir(tmp_path / "b"), cfg)
    run(cfg, work)
    written = json.loads((work.stage("train") / "examples.json").read_text())
    rows = written["candidates"]
    assert (written["objective"], written["regions"]) == (objective, objective != "sft")
    scores = [row["image_score"] for row in rows]
    assert len(rows) == training_examples.COUNT and scores == sorted(scores, reverse=True)
    drawn = shards.read(work.stage("generate"))
    found, _ = selection.candidates(
        drawn.summaries(), shards.read(work.stage("score")), "components"
    )
    seen = 0
    for batch in batches:
        real = batch.gen.segment[0] > 0
        attraction = np.asarray(srum.attraction(cfg.train, batch))[0]
        for n in range(int(batch.noisy[0].sum())):
            one = found[batch.noise_ids[0, n]]
            for row in (row for row in rows if row["id"] == one.id):
                used = attraction[real & (batch.latent_images[0] == n)].reshape(tiny.GRID[:2])
                np.testing.assert_allclose(row["token_weights"], used, atol=1e-4)
                assert sum(box["used"] for box in row["boxes"]) == min(len(one.scores), cap)
                assert ("image_advantage" in row) == (objective == "srum_advantage")
                assert (work.stage("train") / row["image"]).exists()
                seen += 1
    assert seen >= len(rows)
