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
from srum_jax.training import metrics


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


def test_pairs_share_a_row_their_noise_and_whether_the_prompt_is_dropped(
    weights, tmp_path, monkeypatch
):
    """Every candidate of a pair is once in an epoch beside its partner, the better one first; the
    report's weights draw to the better ones and away from the worse ones."""
    more = dict(train__objective="dpo", train__select="all", train__text_dropout=0.5)
    cfg = config(weights, train__steps=4, train__lanes__und=88, **more)
    work = write(Workdir(tmp_path), cfg)
    batches = handed(cfg, work, monkeypatch, 4)["batches"]
    sides = []
    for batch in batches:
        for row in range(cfg.train.rows):
            ids = batch.noise_ids[row][batch.noisy[row]]
            assert len(ids) % 2 == 0 < len(ids) and (ids[::2] == ids[1::2]).all()
            tokens = np.bincount(batch.und.segment[row][batch.und.segment[row] > 0])[1:]
            assert (tokens[::2] == tokens[1::2]).all()  # with their prompt or without
            sides.append(batch.rewards.image_advantage[row][batch.noisy[row]])
    better, worse = (np.concatenate([side[at::2] for side in sides]) for at in (0, 1))
    assert len(better) > 6 and better.min() > 0 > worse.max()
    run(cfg, work)
    rows = json.loads((work.stage("train") / "examples.json").read_text())["candidates"]
    for row in rows:
        pulls = np.array(row["token_weights"])
        assert (pulls * np.sign(row["image_advantage"]) >= 0).all() and pulls.any()
    logged = metrics.read(work.stage("train") / "metrics.jsonl")
    assert {"dpo", "margin", "preferred", "drift"} <= set(logged[0])
    assert logged[0]["dpo"] == pytest.approx(np.log(2), rel=1e-5) and logged[0]["margin"] == 0
    assert logged[-1]["dpo"] != logged[0]["dpo"]
