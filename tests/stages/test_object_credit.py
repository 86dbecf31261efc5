"""Scores of regions charged to objects: from records to the advantages of a row."""

import json
import types

import numpy as np
import pytest
import tiny
from stages.test_train import config, run, write

from srum_jax.core.errors import BadInput
from srum_jax.rewards.question_templates import Decomposition, ObjectSpec
from srum_jax.stages import object_credit, selection, training_set
from srum_jax.stages import train as training
from srum_jax.stages.manifest import Workdir
from srum_jax.stages.preflight import Checks
from srum_jax.training import metrics

PROMPT = "a red circle left of a blue square"
LEFT, RIGHT, MIDDLE = (0, 0, 10, 10), (20, 0, 30, 10), (10, 0, 20, 10)


def made(*images, prompt=PROMPT, answers=()):
    """(candidates, what is stored) of one prompt: of each image regions (label, score, box)."""
    drawn, scored = [], []
    for k, regions in enumerate(images):
        ids = {"id": f"0-{k}", "prompt_id": 0, "k": k}
        drawn.append({**ids, "prompt": prompt, "latent": tiny.GRID, "image": [32, 32, 3]})
        said = [
            {
                "bbox": np.array(box, np.float32),
                "score": np.float32(score),
                "status": "ok",
                "label": label,
                "proposer": "components",
            }
            for label, score, box in regions
        ]
        rows = json.dumps(answers[k] if answers else [])
        scored.append(
            {**ids, "regions": said, "image_score": 0.0, "image_status": "ok", "answers": rows}
        )

    def fields(place, names):
        return {name: scored[place][name] for name in names}

    records = types.SimpleNamespace(features=("regions", "answers"), fields=fields)
    stored = training_set.StoredArrays(types.SimpleNamespace(features=()), records, "components")
    found, _ = selection.candidates(drawn, scored, "components")
    return found, stored


def test_a_relation_that_fails_is_charged_to_both_objects():
    both = [("red circle", 0.8, LEFT), ("blue square", 0.6, RIGHT)]
    holds = [[-1, "relation_yesno", 0, 1.0, "ok"], [-1, "relation_horizontal", 0, 1.0, "ok"]]
    fails = [[-1, "relation_yesno", 0, 0.0, "ok"], [-1, "relation_horizontal", 0, 0.5, "ok"]]
    unknown = [[-1, "relation_yesno", 0, None, "unparsed"], [0, "relation_yesno", 0, 0.0, "ok"]]
    found = object_credit.by_object(*made(both, both, both, answers=[holds, fails, unknown]))
    np.testing.assert_allclose(found[0].scores, [0.8, 0.6], atol=1e-6)
    np.testing.assert_allclose(found[1].scores, [2 * 0.9 * 0.25 - 1, 2 * 0.8 * 0.25 - 1], atol=1e-6)
    np.testing.assert_allclose(found[2].scores, [0.8, 0.6], atol=1e-6)
    chosen = selection.advantages(found, found)
    assert (chosen[1].advantages < 0).all() and (chosen[0].advantages > 0).all()


def test_a_size_that_is_wrong_is_charged_to_its_object():
    sized = "a big red circle and a small blue square"
    both = [("red circle", 0.8, LEFT), ("blue square", 0.6, RIGHT)]
    said = [[-1, "size", -1, 1.0, "ok"], [-1, "size", -1, 0.0, "ok"]]
    found = object_credit.by_object(*made(both, prompt=sized, answers=[said]))
    np.testing.assert_allclose(found[0].scores, [0.8, -1], atol=1e-6)


def test_a_size_does_not_hide_a_relation_that_fails():
    prompt = "a big red circle left of a blue square"
    both = [("red circle", 0.8, LEFT), ("blue square", 0.6, RIGHT)]
    fails = [[-1, "relation_yesno", 0, 0.0, "ok"], [-1, "relation_horizontal", 0, 0.5, "ok"]]
    sizes = [[[-1, "size", -1, 1.0, "ok"]], [[-1, "size", -1, 0.5, "ok"]]]
    found = object_credit.by_object(
        *made(both, both, prompt=prompt, answers=[fails + size for size in sizes])
    )
    square = 2 * 0.8 * 0.25 - 1
    np.testing.assert_allclose(found[0].scores, [2 * 0.9 * 0.25 - 1, square], atol=1e-6)
    np.testing.assert_allclose(found[1].scores, [2 * 0.9 * 0.125 - 1, square], atol=1e-6)


def test_a_missing_object_is_charged_where_the_others_have_it():
    there = [("red circle", 0.8, LEFT), ("blue square", 0.6, RIGHT)]
    bad = [("red circle", 0.8, LEFT), ("blue square", -0.6, MIDDLE)]  # no place to learn from
    found = object_credit.by_object(*made(there, [("red circle", 0.8, LEFT)], bad))
    assert found[1].boxes.tolist() == [list(LEFT), list(RIGHT)]
    np.testing.assert_allclose(found[1].scores, [0.8, -1], atol=1e-6)
    assert [len(one.scores) for one in found] == [2, 2, 2]
    found = object_credit.by_object(*made([("red circle", 0.8, LEFT)], []))
    assert [len(one.scores) for one in found] == [1, 1]  # nobody has the square: nobody knows


def test_advantages_have_a_baseline_per_object():
    easy, hard = ("red circle", 0.9, LEFT), ("blue square", -0.9, RIGHT)
    found = object_credit.by_object(*made([easy, hard], [easy, hard], [easy, hard]))
    assert all((one.advantages == 0).all() for one in selection.advantages(found, found))
    plain, _ = made([easy, hard], [easy, hard], [easy, hard])
    plain = selection.advantages(plain, plain)
    assert all(one.advantages.tolist() == [1, -1] for one in plain)


def test_prompts_that_nobody_decomposed_keep_their_regions_and_scenes_are_read():
    dogs = [("dog", 0.5, LEFT), ("dog", 0.9, RIGHT)]
    found, stored = made(dogs, prompt="dogs at play")
    kept = object_credit.by_object(found, stored)
    np.testing.assert_allclose(kept[0].scores, [0.5, 0.9], atol=1e-6)
    scene = Decomposition("dogs at play", (ObjectSpec("", "dog"),), open=False, source="model")
    one = object_credit.by_object(found, stored, {"dogs at play": scene})
    np.testing.assert_allclose(one[0].scores, [-1, 0.9], atol=1e-6)  # one too many
    with pytest.raises(BadInput, match="needs the scores"):
        bare = training_set.StoredArrays(stored.drawn, None, "components")
        object_credit.by_object(found, bare)


def test_regions_behind_the_judge_s_have_no_mask():
    there = [("red circle", 0.8, LEFT), ("blue square", 0.6, RIGHT)]
    found, stored = made(there, [("red circle", 0.8, LEFT)])
    found = object_credit.by_object(found, stored)
    found.scores.masked[:] = True
    assert stored.masks(found[1]) == (None, None)


@pytest.mark.parametrize("values", [{"objective": "sft"}, {"rewards": "image"}])
def test_credit_that_nothing_reads_is_refused(tmp_path, values):
    weights = tmp_path / "nothing"
    told = dict(train__objective="nft", train__credit="objects")
    cfg = tiny.load_config(weights, **told | {f"train__{k}": v for k, v in values.items()})
    found = Checks(("generate", "score", "train"))
    training.check(cfg, Workdir(tmp_path), found)
    assert any('set it to "regions"' in problem for problem in found.problems)
    cfg, found = tiny.load_config(weights, **told), Checks(("generate", "score", "train"))
    training.check(cfg, Workdir(tmp_path), found)
    assert not any("train.credit" in problem for problem in found.problems)


def test_a_run_trains_by_objects(tmp_path):
    folder = tiny.write_model(tmp_path / "model")
    values = dict(train__credit="objects", train__dilation=2, train__select="all")
    values |= dict(train__min_score=-1.0, train__objective="srum_advantage", train__steps=1)
    cfg = config(folder, **values)
    work = write(Workdir(tmp_path / "run"), cfg)
    run(cfg, work)
    (row,) = metrics.read(work.stage("train") / "metrics.jsonl")
    assert 0 < row["within_image_variance"] <= 1
