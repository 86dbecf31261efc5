"""Own edits: drawn beside the candidates, and rows of them among those of a step."""

import dataclasses
import os

import jax
import numpy as np
import pytest
import tiny
from stages.test_train import config, handed, run, write

from srum_jax.core.errors import BadInput
from srum_jax.data import edits, packing, shards
from srum_jax.data.images import encode_png
from srum_jax.stages import generate, loading, own_edits, replay, train
from srum_jax.stages.manifest import Manifest, Workdir
from srum_jax.stages.preflight import Checks
from srum_jax.training import metrics

COUNT = 6
ROOM = dict(train__lanes__und=60, train__lanes__vit=32)  # two edits a row
DRAWN = dict(generate__edits="shapes:train", generate__edit_count=COUNT)
REPLAY = dict(train__replay=0.5, train__rows=4, **ROOM, **DRAWN)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "model")


def drawn(cfg, work):
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        manifest = generate.run(cfg, mesh, work)
    return manifest, shards.read(work.stage("generate") / replay.NAME)


@pytest.fixture(scope="module")
def done(weights, tmp_path_factory):
    work = Workdir(tmp_path_factory.mktemp("work"))
    cfg = tiny.load_config(weights, generate__count=1, **DRAWN)
    return (cfg, work, *drawn(cfg, work))


def with_edits(work, cfg, done):
    """What the stages before leave, with the edits that were drawn."""
    write(work, cfg)
    made = done[1].stage("generate") / replay.NAME
    os.symlink(made, work.stage("generate") / replay.NAME)
    return work


def test_every_edit_is_drawn_once_by_the_model_that_is_there(done, weights):
    cfg, work, manifest, found = done
    assert manifest.counts["edits"] == COUNT and manifest.counts["candidates"] == 2
    assert found.counts == (4, 2)
    asked = edits.read("shapes:train", COUNT)
    for one, record in zip(asked, found, strict=True):
        assert (record["id"], record["instruction"]) == (str(one.id), one.instruction)
        np.testing.assert_array_equal(record["source"], one.image())
        assert record["image"].shape == (32, 32, 3) and record["latent"].shape == tiny.GRID
        assert record["source_latent"].shape == tiny.GRID
    assert len({record["latent"].tobytes() for record in found}) == COUNT
    assert drawn(cfg, work)[0] == manifest  # finished: nothing is done again
    latents = [record["latent"] for record in found]
    shards.shard_path(work.stage("generate") / replay.NAME, replay.NAME, 1, 2).unlink()
    again, same = drawn(cfg, work)
    assert again.hash == manifest.hash
    for latent, other in zip(latents, same, strict=True):
        np.testing.assert_array_equal(latent, other["latent"])
    fewer = dataclasses.replace(cfg.generate, edit_count=3)
    with pytest.raises(BadInput, match="edit_count: was 6, is 3"):
        drawn(dataclasses.replace(cfg, generate=fewer), work)


def test_the_last_rows_of_a_step_are_edits(done, weights, tmp_path, monkeypatch):
    cfg = config(weights, train__text_dropout=0.0, train__steps=4, **REPLAY)
    work = with_edits(Workdir(tmp_path), cfg, done)
    batches = handed(cfg, work, monkeypatch, 4)["batches"]
    alone = {**REPLAY, "train__replay": 0.0, "train__rows": 2}
    plain = config(weights, train__text_dropout=0.0, train__steps=4, **alone)
    others = handed(plain, write(Workdir(tmp_path / "b"), plain), monkeypatch, 4)["batches"]
    records, seen = done[3], []
    for batch, other in zip(batches, others, strict=True):
        same = jax.tree.map(lambda a, b: np.array_equal(a[:2], b), batch, other)
        assert all(jax.tree.leaves(same))  # candidates as without edits
        for row in (2, 3):
            drawn = np.flatnonzero(batch.noisy[row])
            assert len(drawn)
            for image in drawn:
                number = int(batch.noise_ids[row, image]) - replay.FIRST_NOISE
                record, at = records[number], batch.latent_images[row] == image
                tokens = batch.latents[row][at & (batch.gen.segment[row] > 0)]
                np.testing.assert_array_equal(tokens, record["latent"].reshape(tokens.shape))
                read = batch.latents[row][batch.latent_images[row] == image - 1]
                np.testing.assert_array_equal(read, record["source_latent"].reshape(read.shape))
                assert not batch.noisy[row, image - 1]
                seen.append(number)
        assert (batch.vit_images[2:] >= 0).any(axis=1).all() and (batch.vit_images[:2] < 0).all()
    assert set(seen) == set(range(COUNT)) and len(seen) > COUNT


def test_edits_are_held_to_the_start(done, weights, tmp_path):
    """The first step's distance is 0, and it is logged from then on; the run is resumable, as its
    rows are a function of the step."""
    cfg = config(weights, train__objective="sft", **REPLAY)
    work = with_edits(Workdir(tmp_path), cfg, done)
    found = Checks(("train",))
    train.check(cfg, work, found)
    assert not found.problems
    run(cfg, work)
    rows = metrics.read(work.stage("train") / "metrics.jsonl")
    assert rows[0]["replay"] < 1e-8 < rows[-1]["replay"] and rows[-1]["drift"] > 0
    assert Manifest.read(work.stage("train")).sections["train"]["replay"] == 0.5


@pytest.mark.parametrize(
    "values, told",
    [
        ({"generate__edits": ""}, "draws none: name their list in generate.edits"),
        ({"train__replay": 0.1}, "train.replay = 0.1 of train.rows = 4 is 0 rows"),
        ({"train__replay": 0.95}, "train.replay = 0.95 of train.rows = 4 is 4 rows"),
    ],
)
def test_what_cannot_be_replayed_is_told_first(weights, tmp_path, values, told):
    cfg, found = config(weights, **{**REPLAY, **values}), Checks(("generate", "score", "train"))
    replay.check(cfg, Workdir(tmp_path), found)
    assert len(found.problems) == 1 and told in found.problems[0]


def test_lanes_and_words_are_checked_before_anything_is_drawn(weights, tmp_path):
    work = Workdir(tmp_path)

    def problems(**values):
        cfg, found = config(weights, **{**REPLAY, **values}), Checks(("generate", "score", "train"))
        with found.noting():
            own_edits.check(cfg, loading.source(cfg, work), found)
        return found

    fine = problems()
    assert not fine.problems and f"{COUNT} edits" in str(fine.costs[0])
    (told,) = problems(train__lanes__vit=1).problems
    assert "train.lanes: shapes:train, edit 0 does not fit one row: vit needs" in told
    (tmp_path / "mine.jsonl").write_text('{"image": "a.png", "instruction": "paint the sky"}\n')
    (tmp_path / "a.png").write_bytes(encode_png(np.zeros((32, 32, 3), np.uint8)))
    (told,) = problems(generate__edits=str(tmp_path / "mine.jsonl")).problems
    assert "line 1: " in told


def test_an_edit_takes_of_a_row_what_was_said_before_it_was_drawn(done, weights):
    cfg, work, _, found = done
    lanes = dataclasses.replace(train.programs.lanes(config(weights, **ROOM).train))
    parts = loading.source(cfg, work)
    sizes, tokenizer = loading.described(parts)
    rows = replay.ReplaySet(found, tokenizer, lanes, sizes.layout, 0.0, 0)
    for one, size in zip(edits.read("shapes:train", COUNT), rows.sizes, strict=True):
        alone = own_edits.shape_alone(one, sizes.layout, tokenizer, loading.language(parts))
        assert packing.size(alone).tolist() == size.tolist()
