"""The stage: which model it takes, what it asks for that, and what the others make of it."""

import contextlib
import dataclasses
import json
import random
import zlib
from types import SimpleNamespace

import html_page
import jax
import jsonschema
import numpy as np
import pytest
import tiny
from stages import test_evaluate

from srum_jax import programs
from srum_jax.core import param_tree
from srum_jax.core.errors import BadInput
from srum_jax.data import shards
from srum_jax.evals.suite import Requests
from srum_jax.generation import generation_config
from srum_jax.models import lora
from srum_jax.report.page import render
from srum_jax.stages import (
    adjust,
    adjusted,
    asking,
    evaluate,
    export,
    generate,
    loading,
    preflight,
    replies,
    report,
    score,
)
from srum_jax.stages.manifest import Outcome, Workdir, run_stage
from srum_jax.training import checkpoint
from srum_jax.worlds.shapes import rendering

EDITS, QUESTIONS, PROMPTS = 20, 24, 40
SMALL = {
    "stages": ("train", "evaluate", "adjust", "export"),
    "evaluate__multi_image_questions": 0,
    "evaluate__captions": 0,
    "evaluate__edits": 4,
    "adjust__count": PROMPTS,
    "adjust__questions": QUESTIONS,
    "adjust__edits": EDITS,
    "export__dtype": "float32",
    "train__trainable": "gen",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "model")


def run(cfg, work, *stages):
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        return [stage.run(cfg, mesh, work) for stage in stages][-1]


def train(cfg, work, seed=1):
    """A train stage that leaves the leaves of another model, as if after 6 steps."""

    def body(folder):
        made, _ = param_tree.split(tiny.weights(seed)[0], tiny.trainable(cfg.train.trainable))
        checkpoint.save_params(folder / "params", made)
        return Outcome({"params": "params"}, {"steps": 6}, 1)

    run_stage("train", cfg, work, sections=(), inputs={}, body=body)


def share_of(params, start=0, end=1):
    """How much of what training changed is in a model."""
    a, b, x = (
        np.asarray(p["vae2llm"]["b"])[0]
        for p in (tiny.weights(start)[0], tiny.weights(end)[0], params)
    )
    return float((x - a) / (b - a))


@dataclasses.dataclass
class Skills:
    """What models can do, in hundredths, by the share of training that is in them, or by that and
    the guidance.

    asked: what was asked of which share, in order.
    """

    draws: dict
    edits: dict
    asked: list = dataclasses.field(default_factory=list)

    def model(self, loaded, cfg, mesh):
        share = round(share_of(loaded.params), 3)
        guidance, skills = cfg.sample.guidance, self

        def able(table, what, seed):
            skills.asked.append((what, share, guidance))
            skill = table.get((share, guidance), table.get(share, 0))
            return zlib.crc32(f"{what} {seed}".encode()) % 100 < skill

        class Sampler:
            def stream_prompts(self, several, *, params=None):
                empty = rendering.draw(rendering.Scene((), rendering.ground(random.Random(0))))
                for prompts, seeds in several:
                    images = [
                        test_evaluate.scene(p, s) if able(skills.draws, "draw", s) else empty
                        for p, s in zip(prompts, seeds, strict=True)
                    ]
                    yield np.stack(images), np.zeros((len(prompts), *tiny.GRID), np.float32)

        def edited(requests):
            return [
                rendering.draw(
                    r.truth.target if able(skills.edits, "edit", r.id) else r.truth.source
                )
                for r in requests
            ]

        def answers(requests):
            skills.asked += [("answer", share, guidance)] * len(requests)
            return [r.truth for r in requests]

        return SimpleNamespace(
            batch=11,
            think_tokens=0,
            sampler=Sampler(),
            answers=answers,
            texts=lambda requests: [""] * len(requests),
            edits=edited,
            read=lambda text, kind: text,
        )


GOOD = Skills(
    {0.0: 40, 0.25: 50, 0.5: 65, 0.75: 75, 1.0: 80}, {0.0: 90, 0.25: 90, 0.5: 90, 0.75: 70, 1.0: 50}
)
BAD = Skills({0.0: 60, 0.25: 50, 0.5: 40, 0.75: 30, 1.0: 20}, {0.0: 90, 0.25: 90, 1.0: 90})


@contextlib.contextmanager
def able(skills):
    with pytest.MonkeyPatch.context() as patch:
        fresh = dataclasses.replace(skills, asked=[])
        patch.setattr(replies, "model_under_test", fresh.model)
        patch.setattr(
            loading.LoadedModel,
            "image_sampler",
            lambda self, cfg, mesh: fresh.model(self, cfg, mesh).sampler,
        )
        yield fresh


@pytest.fixture(scope="module")
def done(weights, tmp_path_factory):
    """A run whose trained model draws better and edits worse the more of it there is."""
    work = Workdir(tmp_path_factory.mktemp("work"), config_file="c")
    cfg = tiny.load_config(weights, **SMALL)
    train(cfg, work)
    with able(GOOD) as skills:
        run(cfg, work, evaluate)
        skills.asked.clear()
        manifest = run(cfg, work, adjust)
    return cfg, work, manifest, skills


def test_results_are_as_the_contract_says(done):
    cfg, work, manifest, _ = done
    results = json.loads(work.results.read_text())
    jsonschema.validate(results, test_evaluate.SCHEMA)
    part = results["rounds"][0]["adjust"]
    assert [(row["step"], row["share"]) for row in part["tried"]] == [
        (6, share) for share in cfg.adjust.shares
    ]
    assert [row["allowed"] for row in part["tried"]] == [True, True, False, False]
    gains = [row["target"] for row in part["tried"]]
    assert gains == sorted(gains) and gains[0] > 0
    assert part["tried"][3]["floors"]["edits"] < -0.03 and part["tried"][3]["floors"]["qa"] == 0
    assert part["chosen"]["share"] == 0.5 and part["chosen"]["target"] == gains[1]
    assert "gains most on t2i of 2" in part["why"] and "edits -3.0" in part["rule"]
    assert part["crossfitted"]["t2i"]["n"] == PROMPTS
    assert part["crossfitted"]["edits"]["n"] == EDITS
    assert part["measured_as"] == "adjusted" and part["next"] == {"guidance": 2.5}
    assert manifest.counts == {"tried": 4, "allowed": 2}


def test_the_chosen_model_is_measured_on_the_test_data_once(done):
    _, work, _, skills = done
    entry = json.loads(work.results.read_text())["rounds"][0]
    found = entry["adjusted"]
    assert found["t2i"]["base"] == entry["t2i"]["base"]  # the replies that evaluate kept
    assert found["t2i"]["trained"]["n"] == 7 and found["qa"]["trained"]["n"] == 22
    assert found["suites"]["shapes"]["models"].keys() == {"base", "trained"}
    counts = {
        share: sum(what == "draw" and s == share for what, s, _ in skills.asked)
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    }
    assert counts == dict.fromkeys((0.0, 0.25, 0.75, 1.0), PROMPTS) | {0.5: PROMPTS + 7}
    assert (work.stage("adjust") / "pairs.json").exists()


def test_what_is_chosen_is_exported_and_the_next_round_starts_from_it(done):
    cfg, work, _, _ = done
    run(cfg, work, export)
    opened = loading.base(cfg, dataclasses.replace(work, round=1), tiny.mesh(cfg))
    old, new = (param_tree.flatten(tiny.weights(seed)[0]) for seed in (0, 1))
    accepts = tiny.trainable("gen")
    for path, leaf in param_tree.flatten(opened.params).items():
        want = (old[path] + new[path]) / 2 if accepts(path) else old[path]
        np.testing.assert_allclose(leaf, want, atol=1e-6, err_msg=path)
    card = (work.stage("export") / "model" / "README.md").read_text()
    assert "50% of what step 6 had changed" in card


def test_nothing_is_asked_twice(done):
    cfg, work, manifest, _ = done
    with able(GOOD) as skills:
        assert run(cfg, work, adjust) == manifest
        (work.stage("adjust") / "manifest.json").unlink()
        assert run(cfg, work, adjust).results == manifest.results
    assert not skills.asked


@pytest.mark.parametrize("shard", [3, 25, 44, 60])
def test_killed_and_started_again_it_goes_on(done, weights, tmp_path, monkeypatch, shard):
    cfg, whole, manifest, skills = done
    work = Workdir(tmp_path, config_file="c")
    train(cfg, work)
    with able(GOOD) as again:
        run(cfg, work, evaluate)
        again.asked.clear()
        tiny.killed_at_shard(monkeypatch, shard, lambda: run(cfg, work, adjust))
        assert len(again.asked) < len(skills.asked)
        assert run(cfg, work, adjust).results == manifest.results
    assert len(again.asked) <= len(skills.asked) + 44  # the shard that was lost


def test_what_cannot_gain_is_not_asked_about_floors(weights, tmp_path):
    cfg, work = tiny.load_config(weights, **SMALL), Workdir(tmp_path, config_file="c")
    train(cfg, work)
    with able(BAD) as skills:
        run(cfg, work, evaluate)
        skills.asked.clear()
        run(cfg, work, adjust, export)
    part = json.loads(work.results.read_text())["rounds"][0]
    jsonschema.validate(json.loads(work.results.read_text()), test_evaluate.SCHEMA)
    assert "adjusted" not in part
    part = part["adjust"]
    assert not any(row["allowed"] for row in part["tried"])
    assert part["chosen"]["share"] == part["chosen"]["step"] == 0 and part["measured_as"] == "base"
    assert "none of 4 gains on t2i: the base stays" in part["why"]
    worst = [(what, share) for what, share, _ in skills.asked if share == 1.0]
    assert set(worst) == {("draw", 1.0)} and part["tried"][-1]["floors"] == {}
    opened = loading.base(cfg, dataclasses.replace(work, round=1), tiny.mesh(cfg))
    for path, leaf in param_tree.flatten(opened.params).items():
        np.testing.assert_array_equal(leaf, param_tree.flatten(tiny.weights()[0])[path])
    card = (work.stage("export") / "model" / "README.md").read_text()
    assert "of that nothing, by validation" in card


def test_the_trained_model_itself_is_not_measured_again(weights, tmp_path):
    values = SMALL | {"adjust__floors": ("qa:-1",), "adjust__edits": 0, "evaluate__edits": 0}
    cfg, work = tiny.load_config(weights, **values), Workdir(tmp_path, config_file="c")
    train(cfg, work)
    with able(GOOD):
        run(cfg, work, evaluate, adjust)
    entry = json.loads(work.results.read_text())["rounds"][0]
    assert entry["adjust"]["chosen"]["share"] == 1 and entry["adjust"]["measured_as"] == "trained"
    assert "adjusted" not in entry


def test_by_the_own_score_of_prompts_that_come_after_those_of_the_test(tmp_path):
    """Without a verifier: the base judges all models, also the one that is measured afterwards."""
    weights = tiny.write_model(tmp_path / "model", answers=True)
    prompts = tmp_path / "prompts.json"
    texts = [one.text for one in generate.prompt_lists.load("shapes:test", 12)]
    prompts.write_text(json.dumps(texts))
    own = {"suites": ("own_score",), "prompts": str(prompts)}
    values = {
        f"{part}__{key}": value for part in ("evaluate", "adjust") for key, value in own.items()
    }
    values |= {"evaluate__count": 5, "adjust__count": 7, "adjust__first": 5}
    values |= {"adjust__target": "own_score", "adjust__floors": (), "adjust__shares": (0.5, 1.0)}
    cfg, work = tiny.load_config(weights, **(SMALL | values)), Workdir(tmp_path / "w")
    train(cfg, work)
    with able(GOOD) as skills:
        run(cfg, work, evaluate, adjust)
    part = json.loads(work.results.read_text())["rounds"][0]
    assert part["suites"]["own_score"]["models"].keys() == {"base", "trained"}
    assert part["adjust"]["crossfitted"]["own_score"]["n"] == 7
    assert part["adjust"]["base"].keys() == {"own_score"}
    drawn = [share for what, share, _ in skills.asked if what == "draw"]
    assert drawn.count(0.0) == 5 + 7
    scores = shards.read(work.stage("adjust") / "own_score/base/guidance-2.5/scores")
    assert len(scores) == 7
    wrong = {"adjust__first": 4}
    found = preflight.Checks(cfg.stages)
    adjust.check(tiny.load_config(weights, **(SMALL | values | wrong)), work, found)
    assert any("1 of the prompts to choose by are evaluated on" in p for p in found.problems)


@pytest.mark.parametrize("unscored", ["every model", "the trained ones"])
def test_what_nothing_was_scored_of_has_no_number_and_is_not_chosen(
    weights, tmp_path, monkeypatch, unscored
):
    """The stage ends, and says so: nothing else of a run has to wait for a score."""

    def own_scores(loaded, records, folder, *_):
        scored = unscored != "every model" and "base" in str(folder)
        one = (0.5, "ok") if scored else (np.nan, "no answer")
        return [dict(zip(("image_score", "image_status"), one, strict=True)) for _ in records]

    monkeypatch.setattr(replies, "own_scores", own_scores)
    values = {"stages": ("train", "adjust", "export"), "adjust__suites": ("own_score",)}
    values |= {"adjust__target": "own_score", "adjust__floors": (), "adjust__count": 4}
    cfg, work = tiny.load_config(weights, **(SMALL | values)), Workdir(tmp_path, config_file="c")
    train(cfg, work)
    with able(GOOD):
        run(cfg, work, adjust, export)
    results = json.loads(work.results.read_text())
    jsonschema.validate(results, test_evaluate.SCHEMA)
    part = results["rounds"][0]["adjust"]
    assert not any("target" in row or row["allowed"] for row in part["tried"])
    assert part["chosen"]["share"] == 0 and "measured_as" not in part
    if unscored == "every model":
        assert "nothing of what the base did could be scored on own_score" in part["why"]
        assert part["base"] == {} and part["crossfitted"] == {}
    else:
        assert "none of 4 gains" in part["why"] and part["base"] == {"own_score": 0.5}
    page = html_page.read(render(report.read(results, []))).text
    assert "Kept: the base as it was." in page and "2.5 not measured no" in page


# --------------------------------------------------------------------------------- several rounds


def test_a_worse_round_is_rolled_back_and_the_next_draws_what_is_weak(tmp_path):
    """Round 0 gains and chooses another guidance; round 1 loses; round 2 would start as it did."""
    weights = tiny.write_model(tmp_path / "model", answers=True)
    stages = ("generate", "score", "train", "adjust", "export")
    values = {"stages": stages, "rounds": 3, "adjust__guidance": (1.5, 2.5), "generate__count": 6}
    cfg = tiny.load_config(weights, **(SMALL | values))
    first, second, third = (Workdir(tmp_path, round=r, config_file="c") for r in range(3))
    better = Skills({0.0: 40, (0.5, 1.5): 80, (0.5, 2.5): 50}, {0.0: 90, 0.5: 90})
    with able(better):
        run(cfg, first, generate, score)
        train(cfg, first)
        run(cfg, first, adjust, export)
        choice = json.loads(first.results.read_text())["rounds"][0]["adjust"]
        assert (choice["chosen"]["share"], choice["chosen"]["guidance"]) == (0.5, 1.5)
        shares = choice["next"]["prompts"]
        assert sum(shares.values()) == pytest.approx(1) and choice["next"]["categories"]
        folder = first.stage("export") / "model"
        assert generation_config.from_folder(folder).generate.guidance == 1.5
        # The second round draws with that guidance, by these shares, what was not drawn yet.
        assert adjusted.in_use(cfg, second).sample.guidance == 1.5
        assert generate.guided(cfg, second).sample.guidance == 1.5
        run(cfg, second, generate, score)
        drawn = [{r["prompt"] for r in shards.read(w.stage("generate"))} for w in (first, second)]
        assert len(drawn[1]) == 6 and not drawn[0] & drawn[1]
        held = json.loads((second.stage("generate") / "held_back.json").read_text())
        assert not drawn[1] & {record["prompt"] for record in held}
        train(cfg, second, seed=2)
        start = param_tree.flatten(loading.base(cfg, second, tiny.mesh(cfg)).params)
        run(cfg, second, adjust, export)
    results = json.loads(first.results.read_text())
    jsonschema.validate(results, test_evaluate.SCHEMA)
    choice = results["rounds"][1]["adjust"]
    assert choice["chosen"] | {"floors": 0} == {
        "step": 0,
        "share": 0.0,
        "guidance": 1.5,
        "target": 0.0,
        "floors": 0,
    }
    after = param_tree.flatten(loading.base(cfg, third, tiny.mesh(cfg)).params)
    for path, leaf in start.items():
        np.testing.assert_array_equal(leaf, after[path], err_msg=path)
    assert adjusted.in_use(cfg, third).sample.guidance == 1.5
    folder = second.stage("export") / "model"
    assert generation_config.from_folder(folder).generate.guidance == 1.5


# ------------------------------------------------------------------------------------- its pieces


def test_kept_checkpoints(weights, tmp_path):
    """The last, the monitor's best, then the newest; of a whole state its average is read."""
    cfg, work = tiny.load_config(weights, **SMALL, adjust__checkpoints=9), Workdir(tmp_path)
    folder, accepts = work.stage("train"), tiny.trainable("gen")
    leaves = [param_tree.split(tiny.weights(seed)[0], accepts)[0] for seed in range(3)]

    def body(folder):
        checkpoint.save_params(folder / "params", leaves[0])
        checkpoint.save_params(folder / "monitor" / "2" / "params", leaves[1])
        rows = [{"step": step, "own_score": 0.5} for step in (0, 2, 4)]
        (folder / "monitor.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        saved = checkpoint.Checkpoints(folder / "checkpoints", keep=3)
        for step in (4, 5):
            saved.save(step, {"ema": leaves[2], "params": leaves[0], "step": step}, {})
        saved.close()
        part = {"train": {"best": {"step": 2, "score": 0.5}}}
        return Outcome({"params": "params"}, {"steps": 6}, 1, results=part)

    run_stage("train", cfg, work, sections=(), inputs={}, body=body)
    found = adjust.kept(cfg, work)
    assert [one.step for one in found] == [6, 2, 5, 4]
    assert [one.whole for one in found] == [False, False, True, True]
    few = dataclasses.replace(cfg, adjust=dataclasses.replace(cfg.adjust, checkpoints=2))
    assert [one.step for one in adjust.kept(few, work)] == [6, 2]
    mesh = tiny.mesh(cfg)
    loaded = loading.base(cfg, work, mesh, want=("model",))
    for one, want in zip(found, (0, 1, 2, 2), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.read(loaded, cfg, mesh), leaves[want])
    (folder / "checkpoints" / "5" / "state").rename(folder / "checkpoints" / "5" / "gone")
    with pytest.raises(BadInput, match="checkpoints/5"):
        found[2].read(loaded, cfg, mesh)


def test_a_share_of_adapters_changes_the_model_by_that_share(weights, tmp_path):
    cfg = tiny.load_config(weights, train__trainable="lora", train__lora__rank=2)
    mesh = tiny.mesh(cfg)
    loaded = loading.base(cfg, Workdir(tmp_path), mesh, want=("model",))
    specs, rng = programs.training(cfg, loaded.cfg).trained, np.random.default_rng(0)
    made = jax.tree.map(
        lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), param_tree.abstract(specs)
    )
    scale = programs.lora_scale(cfg.train)
    start, whole, part = (
        param_tree.flatten(p)
        for p in (
            loaded.params,
            lora.merge(loaded.params, made, scale),
            lora.merge(loaded.params, loading.shared(loaded, cfg, made, 0.25), scale),
        )
    )
    changed = [p for p in start if not np.array_equal(start[p], whole[p])]
    assert changed
    for path in start:
        want = 0.75 * start[path] + 0.25 * whole[path]
        np.testing.assert_allclose(part[path], want, atol=1e-5, err_msg=path)


def test_only_some_kinds_of_requests():
    every = Requests(images=(1,), answers=(2,), texts=(3,), edits=(4,), scored=1)
    assert asking.only(every, ("images",)) == Requests(images=(1,))
    assert asking.only(every, ("edits", "answers")) == Requests(answers=(2,), edits=(4,))
