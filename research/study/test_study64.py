"""The second study: its plan, its judge that knows, and guidance chosen inside the interval."""

import random
import sys
import types
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import study  # noqa: E402
import study_measure  # noqa: E402
import study_plan  # noqa: E402
import study_tables  # noqa: E402
from study_crossfit import cross_fitted, crossed, halves, over_seeds, t_interval  # noqa: E402

from srum_jax import programs  # noqa: E402
from srum_jax.core import registry  # noqa: E402
from srum_jax.data import edits, packing  # noqa: E402
from srum_jax.data.tokenizer import Tokenizer  # noqa: E402
from srum_jax.models.bagel import model_config  # noqa: E402
from srum_jax.rewards.boxes import regions  # noqa: E402
from srum_jax.stages import own_edits  # noqa: E402
from srum_jax.worlds.shapes import changes, exam, examples, language, rendering  # noqa: E402
from srum_jax.worlds.shapes.setting import LARGE  # noqa: E402

ALL = np.ones(400, bool)


def noise(scales=5, seeds=2, prompts=400, p=0.5, seed=0):
    """Verdicts of a model whose accuracy does not change with guidance."""
    return (np.random.default_rng(seed).random((seeds, scales, prompts)) < p) * 1.0


def test_no_prompt_chooses_for_itself():
    """The best of five equal scales is above chance on the prompts that chose it, and cross-fitted
    it is not."""
    half = halves(400)
    assert half.sum() == 200
    assert abs(half[::12].mean() - 0.5) < 0.2  # categories come in turn
    chosen, fitted = [], []
    for seed in range(100):
        grid = noise(seed=seed)
        chosen.append(grid.mean(2).max(1).mean())
        fitted.append(crossed(grid).mean())
    assert np.mean(chosen) > 0.52
    assert abs(np.mean(fitted) - 0.5) < 0.007


def test_a_scale_that_is_better_is_chosen():
    grid = noise(p=0.3)
    grid[:, 3] = noise(scales=1, p=0.8, seed=1)[:, 0]
    np.testing.assert_array_equal(crossed(grid), grid[:, 3])
    mean, drawn = cross_fitted(grid, ALL, study_tables._weights(400, 0))
    np.testing.assert_allclose(mean, grid[:, 3].mean(1))
    bare = grid[:, 3] @ study_tables._weights(400, 0)
    np.testing.assert_allclose(drawn, bare, atol=1e-6)  # always the same choice


def test_the_choice_is_inside_the_interval():
    """Where scales hardly differ, drawing prompts anew draws other choices: a wider interval than
    that of the verdicts once chosen."""
    grid = noise(scales=9, seeds=1, seed=4)
    mean, drawn = cross_fitted(grid, ALL, study_tables._weights(400, 0))
    np.testing.assert_allclose(mean, crossed(grid).mean(1))
    fixed = crossed(grid) @ study_tables._weights(400, 0)
    assert drawn.std() > 1.1 * fixed.std()


def test_parts_are_measured_with_the_choice_of_all():
    grid, part = noise(), np.arange(400) < 100
    mean, drawn = cross_fitted(grid, part, study_tables._weights(400, 0))
    np.testing.assert_allclose(mean, crossed(grid)[:, :100].mean(1))
    assert drawn.shape == (2, study_tables.DRAWS) and abs(drawn.mean() - mean.mean()) < 0.07


def test_students_interval():
    low, high = t_interval(np.array([0.135, 0.088, 0.139]))  # what docs/results.md says of three
    assert [100 * low, 100 * high] == pytest.approx([5.1, 19.1], abs=0.15)
    assert t_interval(np.array([0.1])) is None
    one = np.full((1, 8), 0.25)
    np.testing.assert_array_equal(over_seeds(one, np.ones((1, 8))), one[0])


def test_the_plan_of_the_larger_world_is_sound():
    plan = study_plan.load_plan(study_plan.HERE / "study64_plan.json")
    assert plan.setting == LARGE and plan.seeded_prompts
    gate, *_, final = plan.phases
    assert gate.rule.gain == 0.08 and gate.rule.over == "without relations"
    assert {arm.reward for arm in gate.arms[1:]} == {"oracle"}
    assert len(final.seeds) >= 3 and final.fresh and final.measure.prompts.split == "test"
    for phase in plan.phases:
        assert phase.measure.cross_fitted and not study_plan.tuning_prompts(plan, phase)
        for arm in phase.arms[1:]:  # equal drawings, steps and anchor
            cfg = study_plan.config_of(plan, arm, phase.seeds[0])
            drawn = cfg.rounds * cfg.generate.count, cfg.generate.candidates
            trained = cfg.rounds * cfg.train.steps, cfg.train.rows, cfg.train.anchor
            assert drawn + trained == (600, 8, 600, 16, 0.25), arm.name
            online = cfg.rounds == 20 and cfg.train.carry and cfg.train.anchor_to == "first"
            assert online == (cfg.rounds > 1), arm.name
    twins = {arm.name: dict(arm.overrides) for arm in plan.phase("choose").arms}
    for arm in gate.arms[1:]:
        assert twins[arm.name.removeprefix("oracle_")] == dict(arm.overrides)


def test_the_plan_of_the_small_janus_is_sound():
    plan = study_plan.load_plan(study_plan.HERE / "janus_plan.json")
    choose, final = plan.phases
    seen = {p.text for p in study_plan.drawn_prompts(plan, choose)}
    drawn = {p.text for p in study_plan.drawn_prompts(plan, final)}
    assert len(drawn) == 600 and not seen & drawn
    assert choose.measure.cross_fitted and final.measure.cross_fitted and len(final.seeds) == 3
    assert not study_plan.config_of(plan, choose.arms[0], 0).evaluate.edits  # it cannot edit


def test_another_seed_trains_on_other_prompts_and_none_that_are_measured():
    plan = study_plan.load_plan(study_plan.HERE / "study64_plan.json")
    final = plan.phase("final")
    drawn = []
    for seed in final.seeds:
        cfg = study_plan.config_of(plan, final.arms[1], seed)
        prompts = study_plan.trained_prompts(plan, cfg)
        assert len({p.text for p in prompts}) == len(prompts) == 600 + study_plan.HELD_BACK
        drawn.append({p.text for p in prompts})
    assert len(drawn[0] & drawn[1]) < 0.5 * len(drawn[0])
    measured = study_plan.drawn_prompts(plan, final)
    assert not {p.text for p in measured} & set.union(*drawn)
    many = study_plan.part_of(LARGE, measured, "five and more")
    assert 0.5 < np.mean(many) < 0.65
    assert not any(
        p.category == "spatial"
        for p, inside in zip(
            measured, study_plan.part_of(LARGE, measured, "without relations"), strict=True
        )
        if inside
    )
    assert language.parse(measured[many.index(True)].text, LARGE)


def judged(text, content):
    """The oracle's judgement of a clean picture of `content`, asked for `text`."""
    image = rendering.draw(examples.scene_for(random.Random(3), content, LARGE))
    asked = [regions.PromptedImage(image, text)]
    proposed = regions.Proposals.of(regions.ComponentsProposer(), asked)
    return study.OracleJudge().judge(proposed)[0]


def test_the_oracle_labels_objects_and_answers_for_relation_and_sizes():
    spatial = language.draw(random.Random(0), "train", "spatial")
    text = language.say(random.Random(0), spatial)
    first, second = spatial.pairs
    for content, holds in (
        (spatial, 1.0),
        (language.spatial(second, spatial.relation, first), 0.0),
    ):
        found = judged(text, content)
        assert {one.label for one in found.regions} == {" ".join(first), " ".join(second)}
        assert [(a.kind, a.p) for a in found.answers] == [("relation_yesno", holds)]
        assert [one.score for one in found.regions] == [1.0, 1.0]  # each is well made
        assert found.image_score == 2 * holds - 1
    others = language.content_of([p for p in language.PAIRS if p not in spatial.pairs][:2])
    found = judged(text, others)
    assert {(one.label, one.score) for one in found.regions} == {("", -1.0)} and not found.answers
    sized = language.draw(random.Random(1), "train", "size")
    wrong = language.sized(sized.pairs, [{"big": "small", "small": "big"}[s] for s in sized.sizes])
    text = language.say(random.Random(0), sized)
    assert [(a.kind, a.about, a.p) for a in judged(text, sized).answers] == [
        ("size", 0, 1.0),
        ("size", 1, 1.0),
    ]
    assert [a.p for a in judged(text, wrong).answers] == [0.0, 0.0]


def test_edits_are_measured_by_kind_and_compared_with_the_base(monkeypatch):
    requests = exam.edits("validation", 8, LARGE)

    def measured(replies):
        asked = types.SimpleNamespace(edits=lambda requests: replies)
        monkeypatch.setattr(study_measure.replies, "model_under_test", lambda *_: asked)
        return study_measure.edits(types.SimpleNamespace(opened=0, cfg=0, mesh=0), requests)

    right = measured([rendering.draw(one.truth.target) for one in requests])
    wrong = measured([one.image for one in requests])
    assert right == dict.fromkeys(sorted(changes.EDITS), "11") and set(wrong) == set(right)
    assert set("".join(wrong.values())) == {"0"}
    results = {"base": {0: {"edits": wrong}}, "arm": {0: {"edits": right}}, "old": {0: {}}}
    found = types.SimpleNamespace(arms=list(results), results=results, seeds=lambda *_: [0])
    lines = study_tables.edit_table(found).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["base", "arm"]
    assert "+100.0" in lines[3] and study_tables.answer_table(found) == ""


def test_rows_of_the_plan_hold_an_edit_that_is_replayed():
    plan = study_plan.load_plan(study_plan.HERE / "study64_plan.json")
    arms = {arm.name: arm for phase in plan.phases for arm in phase.arms}
    for name in ("positive_replay", "positive_lora_replay"):
        cfg = study_plan.config_of(plan, arms[name], 0)
        folder = registry.base_folder("shapes64")
        layout, words = model_config.from_folder(folder).layout, Tokenizer.from_folder(folder)
        for one in edits.read(cfg.generate.edits, 40):
            shape = own_edits.shape_alone(one, layout, words)
            packing.check_fits(packing.size(shape), programs.lanes(cfg.train), what=one.where)


def test_the_first_study_s_results_are_of_its_plan():
    """Whatever else changed in the package: its prompts are those that were drawn."""
    plan = study_plan.load_plan(study_plan.HERE / "study_plan.json")
    for phase in plan.phases:
        found = study_tables.gather(plan, phase, study.RESULTS)
        assert len(found.results) == len(phase.arms)
