"""The stage: shards, going on, statuses counted, examples a report can show."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from chosen_tokens import chosen

from srum_jax import config
from srum_jax.configs import base
from srum_jax.core import param_tree, registry, sharding
from srum_jax.core.errors import BadInput
from srum_jax.data import shards
from srum_jax.data.images import decode, encode_png
from srum_jax.models.bagel import hf, model_config, vae
from srum_jax.models.bagel import model as bagel
from srum_jax.report.candidates import scored_pictures
from srum_jax.report.pictures import picture
from srum_jax.rewards import judge, maps
from srum_jax.rewards.boxes import regions
from srum_jax.rewards.logits import LogitJudge
from srum_jax.stages import calibration, judges, score
from srum_jax.stages.manifest import Outcome, Workdir, run_stage

CFG = dataclasses.replace(config.load(base.get_config()).score, batch=4, shard_size=3)
PROMPTS = ["a red circle", "two red circles", "a dog chasing a cat"]
WORDS = {"yes": 0, "no": 1, "red": 2, "circle": 3, "one": 4, "two": 5, "blue": 6}


class Words:
    word_level = True

    def encode(self, text):
        if "dog" in text:
            raise ValueError("dog")
        return [0]

    def answers(self, word):
        if word not in WORDS:
            raise ValueError(word)
        return (WORDS[word],)


def panel(scorer):
    """A judge that reads the answers of `scorer`, and both proposers of pixels."""
    proposers = (regions.ComponentsProposer(), regions.GridProposer())
    return judges.JudgePanel(LogitJudge(scorer, Words()), proposers)


def candidates():
    """Four candidates a prompt; candidate k shows k red squares, so the judge errs."""
    made = []
    for n, prompt in enumerate(PROMPTS):
        for k in range(4):
            image = np.full((32, 32, 3), 20, np.uint8)
            for i in range(k):
                image[
                    2 + 16 * (i // 2) : 12 + 16 * (i // 2), 3 + 16 * (i % 2) : 13 + 16 * (i % 2)
                ] = (228, 48, 44)
            made.append(
                {
                    "id": f"{n}-{k}",
                    "prompt_id": n,
                    "k": k,
                    "prompt": prompt,
                    "image": image,
                    "category": ["single", "count", "other"][n],
                    "latent": np.zeros((4, 4, 32), np.float32),
                }
            )
    return made


class Scorer:
    """Says one word, surely, to every question; counts the images."""

    def __init__(self):
        self.images = 0

    def probabilities(self, images, questions, tokens, params=None):
        self.images += len(images)
        answers = []
        for image, texts in zip(images, questions, strict=True):
            red = float((image[..., 0] > 120).mean())
            rows = np.zeros((len(texts), len(WORDS)), np.float32)
            rows[:, WORDS["yes"]], rows[:, WORDS["no"]] = red, 1 - red
            rows[:, WORDS["red"]] = rows[:, WORDS["circle"]] = red
            rows[:, WORDS["one"]] = rows[:, WORDS["two"]] = 0.5
            answers.append(rows)
        return chosen(answers, tokens)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "score"
    outcome = score.score(candidates(), folder, CFG, panel(Scorer()))
    return folder, outcome, shards.read(folder)


def test_one_record_a_candidate_in_order(done):
    _, outcome, scored = done
    assert outcome.items == len(scored) == 12
    assert [record["id"] for record in scored] == [c["id"] for c in candidates()]
    proposers = [region["proposer"] for region in scored[3]["regions"]]
    assert proposers == ["components"] * 3 + ["grid"] * 3
    right = scored[2]
    assert right["image_status"] == judge.OK and -1 <= right["image_score"] <= 1
    for region in right["regions"]:
        assert region["status"] == judge.OK and region["label"] == "red circle"
        assert -1 <= region["score"] <= 1 and region["bbox"].shape == (4,)
    rows = json.loads(right["answers"])
    assert {row[0] for row in rows} == {-1, *range(len(right["regions"]))}  # the whole, each region
    assert {row[1] for row in rows if row[0] == -1} >= {"exists", "count_all", "caption_right"}
    assert {row[1] for row in rows if row[0] == 3} == {"crop_color", "crop_shape", "crop_is"}
    assert all(0 <= p <= 1 and status == judge.OK for *_, p, status in rows)
    assert scored[9]["answers"] == "[]"


def test_no_score_is_nan_beside_its_status(done):
    _, outcome, scored = done
    assert scored[0]["image_status"] == judge.NO_REGIONS and np.isnan(scored[0]["image_score"])
    assert scored[9]["image_status"] == judge.UNKNOWN_WORDS
    assert {region["status"] for region in scored[9]["regions"]} == {judge.UNKNOWN_WORDS}
    assert all(np.isnan(region["score"]) for region in scored[9]["regions"])
    assert outcome.counts == {
        "candidates": 12,
        "regions": 18,
        "regions ok": 12,
        "regions unknown words": 6,
        "images ok": 6,
        "images no regions": 2,
        "images unknown words": 4,
    }


def test_examples_hold_what_the_report_needs(done):
    folder, _, scored = done
    text = (folder / "examples.json").read_text()
    examples = json.loads(text)
    assert [e["id"].split("-")[0] for e in examples] == ["0", "0", "1", "1"]
    assert "NaN" not in text
    by_id = {record["id"]: record for record in scored}
    for example in examples:
        record = by_id[example["id"]]
        kept = decode((folder / example["image"]).read_bytes(), name="example")
        original = candidates()[int(example["id"][0]) * 4 + record["k"]]["image"]
        np.testing.assert_array_equal(kept, original)
        assert len(example["boxes"]) == len(record["regions"])
        own = [r for r in record["regions"] if r["proposer"] == "components"]
        dense = maps.release_map(
            np.stack([r["bbox"] for r in own]),
            [r["score"] for r in own],
            [True] * len(own),
            example["image_score"],
            (32, 32),
        )
        np.testing.assert_allclose(
            example["token_weights"], maps.sample_map(dense, 4, 4), atol=1e-4
        )
    assert examples[0]["image_score"] > examples[1]["image_score"]
    shown = scored_pictures(examples, "examples", lambda p: picture((folder / p).read_bytes(), p))
    assert sum(len(group) for _, group in shown.prompts) == len(examples)
    assert all(c.boxes and c.weights for _, group in shown.prompts for c in group)


def test_goes_on_where_it_stopped(done, tmp_path):
    folder, outcome, scored = done
    records = candidates()
    first = Scorer()
    made = [score.score_record(one) for one in score.score_shard(records[3:6], panel(first))]
    shards.write_shard(tmp_path, score.NAME, shards.score_features(answers=True), made, 1, 4)
    again = score.score(records, tmp_path, CFG, panel(second := Scorer()))
    whole = Scorer()
    score.score(records, tmp_path / "whole", CFG, panel(whole))
    assert first.images and second.images == whole.images - first.images
    assert again.counts == outcome.counts
    for a, b in zip(shards.read(tmp_path), scored, strict=True):
        assert a["id"] == b["id"]
        np.testing.assert_array_equal(a["image_score"], b["image_score"])


def test_thresholds_are_checked_before_the_rest_is_scored(tmp_path):
    """Eight prompts of four candidates a shard: the first one tells, and is kept."""
    records = [
        {**c, "id": f"{4 * n + i // 4}-{c['k']}", "prompt_id": 4 * n + i // 4}
        for n in range(8)
        for i, c in enumerate([*candidates()[:4]] * 4)
    ]
    sized = dataclasses.replace(CFG, shard_size=32)
    train = dataclasses.replace(config.load(base.get_config()).train, min_score=0.99)
    scorer = Scorer()
    with pytest.raises(BadInput, match="the first 32 candidates are scored, .* none pass"):
        score.score(records, tmp_path, sized, panel(scorer), train)
    assert len(shards.shards_left(tmp_path, score.NAME, [32] * 4, range(4))) == 3
    seen = scorer.images
    relative = dataclasses.replace(train, min_score=-1.0, min_score_quantile=0.5)
    outcome = score.score(records, tmp_path, sized, panel(scorer), relative)
    assert outcome.items == 128 and scorer.images == 4 * seen  # and goes on from there


def test_regions_are_proposed_once_for_all_judges(done, tmp_path):
    """A second judge is shown the regions that the scores are of."""
    folder, _, scored = done
    asked = []

    class Other:
        def judge(self, proposed, *, whole=True, params=None):
            asked.append(proposed)
            return [judge.Judgement((), 0.5, judge.OK, {})] * len(proposed.images)

    class Never(regions.ComponentsProposer):
        def find(self, images, *, params=None):
            raise AssertionError("proposed again")

    with_other = dataclasses.replace(
        panel(Scorer()), proposers=(Never(),), other=("another", Other())
    )
    compared = dataclasses.replace(CFG, compare=5)
    made = score.compare(candidates(), folder, compared, with_other)
    (folder / score.COMPARISON).unlink()
    assert len(made["candidates"]) == 5 and asked[0].separates
    for record, found in zip(scored, asked[0].regions, strict=False):
        own = [r["bbox"].tolist() for r in record["regions"] if r["proposer"] == "components"]
        assert [list(region.box) for region in found] == own


def test_records_say_how_much_was_read(done):
    _, _, scored = done
    assert scored[2]["coverage"] == 1 and np.isnan(scored[2]["image_rank"])
    partly = judge.Judgement((), 0.5, judge.OK, {}, coverage=0.75)
    ids = {"id": "0-0", "prompt_id": 0, "k": 0}
    record = score.score_record((ids, partly))
    assert record["coverage"] == np.float32(0.75)
    assert score.count_statuses([record], "grid")["images of some answers"] == 1
    said = judge.SoftAnswer("whole", -1, 0.9, judge.OK, "external")
    record = score.score_record((ids, dataclasses.replace(partly, answers=(said,))))
    assert json.loads(record["answers"]) == [[-1, "whole", -1, 0.9, "ok", "external"]]
    assert calibration.judgement(record).answers == (said,)
    assert calibration.calibration([record])["coverage"] == {"mean": 0.75, "least": 0.75}


def test_examples_take_categories_in_turn_and_the_widest_prompts_first():
    scores = {0: (0.9, -0.9), 1: (0.8, -0.9), 2: (0.1, 0.0), 3: (np.nan, np.nan), 4: (np.nan, 0.3)}
    scored = [{"prompt_id": p, "image_score": s} for p, pair in scores.items() for s in pair]
    category = ["a", "a", "a", "a", "b", "b", "a", "a", "c", "c"]
    assert score.choose_examples(scored, category.__getitem__) == [0, 1, 4, 5, 9, 2, 3]
    assert score.choose_examples(scored, category.__getitem__, 2) == [0, 1]
    assert score.choose_examples([], category.__getitem__) == []


def test_a_whole_stage_with_a_tiny_untrained_model(tmp_path):
    """From files to files, through the loader, the tokenizer and the model itself."""
    tokenizer = registry.base_folder("shapes") / "tokenizer.json"
    shapes = model_config.from_folder(tokenizer.parent)
    tiny = dataclasses.replace(
        shapes,
        llm=dataclasses.replace(shapes.llm, hidden=16, layers=1, heads=2, kv_heads=2, ffn=16),
        vit=dataclasses.replace(shapes.vit, hidden=16, layers=1, heads=2, ffn=16),
        vae=dataclasses.replace(shapes.vae, ch=32),
    )
    rng = np.random.default_rng(0)  # no jitted initialisers: compiling them takes the longest
    model, coder = (
        jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), tree)
        for tree in (
            param_tree.abstract(bagel.specs(tiny)),
            param_tree.abstract(vae.specs(tiny.vae)),
        )
    )
    hf.save(tmp_path / "model", tiny, model, coder, tokenizer_files=[tokenizer])
    values = base.get_config()
    values.weights = str(tmp_path / "model")
    values.score.shard_size = 8
    values.score.batch = 8
    cfg = config.load(values)
    work = Workdir(tmp_path / "work")

    def generated(folder):
        features = shards.candidate_features((4, 4, 32))
        rows = [{**c, "seed": 0, "image": encode_png(c["image"])} for c in candidates()]
        shards.write_shard(folder, "candidates", features, rows, 0, 1)
        shards.finish(folder, "candidates", features, [12])
        return Outcome({}, {}, 12)

    run_stage("generate", cfg, work, sections=(), inputs={}, body=generated)
    mesh = sharding.make_mesh(cfg.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        manifest = score.run(cfg, mesh, work)
    assert manifest.counts["candidates"] == 12 and manifest.counts["images unknown words"] == 4
    assert manifest.counts.get("images ok", 0) + manifest.counts.get("images unparsed", 0) == 6
    assert score.run(cfg, mesh, work) == manifest  # finished: nothing is done again
