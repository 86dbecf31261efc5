"""The study: its plan is checked, what is there is not made again, its figures come from files."""

import copy
import dataclasses
import json
import pathlib
import sys
import xml.etree.ElementTree as xml

import jax
import numpy as np
import pytest
import tiny

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE))  # scripts: they import one another by plain names

import study  # noqa: E402
import study_plan  # noqa: E402
import study_plots  # noqa: E402
import study_tables  # noqa: E402

from srum_jax.core.errors import BadInput, Diverged  # noqa: E402
from srum_jax.core.files import read_json, write_json  # noqa: E402
from srum_jax.data import shards  # noqa: E402
from srum_jax.data.images import encode_png  # noqa: E402
from srum_jax.evals import stats  # noqa: E402
from srum_jax.rewards import judge  # noqa: E402
from srum_jax.stages import generate  # noqa: E402
from srum_jax.stages import train as training  # noqa: E402
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, run_stage  # noqa: E402
from srum_jax.worlds.shapes import examples, language  # noqa: E402

PROMPTS, RULED = 40, ["sft", "best"]
WHOLE = {"all": np.ones(PROMPTS, bool)}


def listed(split, count, seed=0):
    return {"split": split, "count": count, "seed": seed}


def phase(name="choose", split="validation", **changes):
    arms = [
        {"name": "sft", "what": "no reward", "overrides": {"train.objective": "sft"}},
        {"name": "best", "what": "chosen", "overrides": {"train.select": "best_of_k"}},
        {"name": "truth", "what": "at most", "overrides": {"train.steps": 7}, "reward": "oracle"},
    ]
    return {
        "name": name,
        "what": "Which.",
        "seeds": [0, 1],
        "fresh": False,
        "measure": {
            "prompts": listed(split, PROMPTS),
            "tuning": listed("validation", 10),
            "questions": listed(split, 10),
            "scale": 2.5,
            "grid": [1, 2.5, 4],
            "own_prompts": 4,
            "own_draws": 2,
            "best_of": 6,
        },
        "against": ["sft"],
        "rule": {"words": "the highest", "at": "best", "over": "all", "gain": 0.0, "among": RULED},
        "arms": arms,
    } | changes


def values(*phases):
    common = {"train.objective": "sft", "train.select": "all", "train.trainable": "gen"}
    common["train.min_score"] = -1.0
    plan = {"config": "shapes", "variants": 3, "seeded_prompts": False, "evaluated": 600}
    return plan | {"common": common, "phases": list(phases) or [phase()]}


def load(folder, content):
    write_json(folder / "plan.json", content)
    return study_plan.load_plan(folder / "plan.json")


@pytest.fixture
def plan(tmp_path):
    return load(tmp_path, values())


# -------------------------------------------------------------------------------------- the plan


def test_the_plan_of_the_project_is_sound():
    plan = study_plan.load_plan(HERE / "study_plan.json")
    assert [p.name for p in plan.phases] == ["oracle", "choose", "final"]
    for one in plan.phases:
        assert one.arms[0].name == study_plan.BASE
    final = plan.phase("final")
    assert final.fresh and final.measure.prompts.split == "test"
    assert final.measure.prompts.count >= 2000 and len(final.seeds) >= 3
    with pytest.raises(BadInput, match='did you mean "choose"'):
        plan.phase("chose")


def broken(path, value):
    """The plan's values with one of them replaced; a path of keys and places."""
    content = copy.deepcopy(values())
    part = content
    for key in path[:-1]:
        part = part[key]
    if value is KeyError:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return content


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("variants",), 2, "the plan alone has 3"),
        (("variants",), KeyError, "missing .'variants'"),
        (("common", "train.stepz"), 3, "arm base: train.stepz is no key"),
        (("common", "train.steps"), "many", "train.steps must be int"),
        (("phases", 0, "seeds"), [1, 1], "seeds must be different"),
        (("phases", 0, "measure", "grid"), [0.5], "guidance scales from 1"),
        (("phases", 0, "measure", "scale"), "high", "measure.scale must be float"),
        (("phases", 0, "measure", "prompts", "split"), "tests", "did you mean"),
        (("phases", 0, "measure", "own_prompts"), PROMPTS + 1, "exceed prompts.count"),
        (("phases", 0, "measure", "own_draws"), 1, "at least 2"),
        (("phases", 0, "rule", "among"), ["sft", "bets"], "must name arms, unlike bets"),
        (("phases", 0, "rule", "at"), "better", "did you mean"),
        (("phases", 0, "against"), ["srum"], "must name arms, unlike srum"),
        (("phases", 0, "arms", 1, "name"), "sft", "arm names must differ: sft"),
        (("phases", 0, "arms", 2, "name"), "a b", "letters, digits"),
        (("phases", 0, "arms", 1, "why"), "because", "unknown .'why'"),
        (("phases", 0, "arms", 2, "reward"), "judge", "reward must be self or oracle"),
        (
            ("phases", 0, "arms", 1, "overrides"),
            {"train.select": "k"},
            "(?s)arm best: .*train.select",
        ),
        (("phases", 0, "rules"), {}, 'unknown key "rules"'),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path, path, value, message):
    with pytest.raises(BadInput, match=message):
        load(tmp_path, broken(path, value))


def test_overrides_reach_the_config(plan):
    arms = {arm.name: arm for arm in plan.phases[0].arms}
    cfg = study_plan.config_of(plan, arms["best"], seed=5)
    assert (cfg.seed, cfg.train.objective, cfg.train.select) == (5, "sft", "best_of_k")
    assert study_plan.config_of(plan, arms["base"], seed=5).train.select == "all"


def test_prompts_are_drawn_by_one_phase_only(tmp_path):
    fresh = phase("final", "validation", fresh=True)
    plan = load(tmp_path, values(phase(), fresh))
    first, last = plan.phases
    lists = [
        study_plan.drawn_prompts(plan, first),
        study_plan.tuning_prompts(plan, first),
        study_plan.drawn_prompts(plan, last),
    ]
    assert [len(x) for x in lists] == [PROMPTS, 10, PROMPTS]
    texts = [p.text for part in lists for p in part]
    assert len(set(texts)) == len(texts)
    many = phase(measure=phase()["measure"] | {"prompts": listed("validation", 10**6)})
    plan = load(tmp_path, values(many))
    with pytest.raises(BadInput, match="phase choose, prompts: 1000000 of split validation"):
        study_plan.drawn_prompts(plan, plan.phases[0])


# --------------------------------------------------------------------------- what is made, what not


@pytest.fixture
def faked(monkeypatch):
    """`study.run` with a made-up result a combination; the list of those that were made."""
    made = []

    def fake(plan, phase, arm, seed, mesh, workdir):
        made.append((arm.name, seed))
        return {"work": {}, "seconds": {"total": 100.0}}

    one = study.sharding.make_mesh
    monkeypatch.setattr(study, "made", fake)
    monkeypatch.setattr(
        study.sharding,
        "make_mesh",
        lambda sizes: one(dataclasses.replace(sizes, data=1, fsdp=1), jax.devices()[:1]),
    )
    return made


def run(plan, tmp_path, **how):
    return study.run(
        plan, plan.phases[0], results=tmp_path / "results", workdir=tmp_path / "work", **how
    )


def test_finished_arms_are_skipped(plan, faked, tmp_path):
    assert run(plan, tmp_path, arms=["best"], seeds=[1])
    assert faked == [("best", 1)]
    assert run(plan, tmp_path)
    names = [arm.name for arm in plan.phases[0].arms]
    left = [(name, seed) for seed in (0, 1) for name in names if (name, seed) != ("best", 1)]
    assert faked[1:] == left  # seeds outermost, arms in the plan's order
    assert run(plan, tmp_path) and len(faked) == 8
    with pytest.raises(BadInput, match="--arm worst is none of phase choose's"):
        run(plan, tmp_path, arms=["worst"])


def test_a_changed_arm_is_refused(plan, faked, tmp_path):
    run(plan, tmp_path, arms=["best"], seeds=[0])
    path = tmp_path / "results/choose-best-s0.json"
    other = values()
    other["phases"][0]["arms"][1]["overrides"]["train.steps"] = 9
    with pytest.raises(BadInput, match="(?s)train.steps: was None, is 9.*remove the file"):
        run(load(tmp_path, other), tmp_path)
    assert len(faked) == 1
    # A default that changed since, though no plan names it; a key that is new changes nothing.
    result = read_json(path)
    del result["identity"]["config"]["train"]["ema"]
    write_json(path, result)
    assert run(plan, tmp_path, arms=["best"], seeds=[0]) and len(faked) == 1
    result["identity"]["config"]["train"]["steps"] = 1
    write_json(path, result)
    with pytest.raises(BadInput, match="config.train.steps: was 1"):
        run(plan, tmp_path)


def test_nothing_is_started_that_would_not_end_in_time(plan, faked, tmp_path):
    assert not run(plan, tmp_path, minutes=1.5)  # the second would take 100 s as the first did
    assert len(faked) == 1
    assert not run(plan, tmp_path, minutes=1.5) and len(faked) == 1
    assert run(plan, tmp_path, minutes=2, arms=["sft"], seeds=[0]) and len(faked) == 2


def test_a_diverged_arm_is_a_result(plan, monkeypatch, tmp_path):
    def diverge(*args):
        raise Diverged("the loss left all bounds")

    monkeypatch.setattr(study, "train", diverge)
    one = plan.phases[0]
    result = study.made(plan, one, one.arms[1], 0, None, tmp_path)
    assert result["diverged"] == "the loss left all bounds" and "right" not in result


# ------------------------------------------------------------------------------------- the oracle


def test_the_oracle_scores_as_the_stage_does(tmp_path):
    cfg = tiny.load_config("unused", generate__candidates=2, score__shard_size=3)
    work = Workdir(tmp_path)
    clean = [examples.clean_image(0, i) for i in range(4)]
    ground = np.zeros_like(clean[0][1])
    records = [
        {
            **{"id": f"{p}-{k}", "prompt_id": p, "k": k, "seed": 1, "category": "any"},
            "prompt": clean[p][0],
            "image": encode_png(clean[p][1] if k else ground),
            "latent": np.zeros(tiny.GRID, np.float32),
        }
        for p in range(4)
        for k in range(2)
    ]
    features = shards.candidate_features(tiny.GRID)

    def body(folder):
        shards.write_shard(folder, generate.NAME, features, records, 0, 1)
        shards.finish(folder, generate.NAME, features, [len(records)])
        return Outcome({}, {"candidates": 8}, 8)

    run_stage("generate", cfg, work, sections=(), inputs={}, body=body)
    study.oracle_scores(cfg, work)
    assert Manifest.read(work.stage("score")).counts["candidates"] == 8
    scored = shards.read(work.stage("score"))
    drawn = shards.read(work.stage("generate"))
    found, left_out = training.candidates(drawn.summaries(), scored, "components")
    found = list(found)
    assert left_out == 0 and [c.image_score for c in found] == [-1, 1] * 4
    for c, (text, _) in zip(found[1::2], clean, strict=True):
        assert len(c.scores) == len(language.parse(text).pairs) and (c.scores == 1).all()
    assert all(len(c.scores) == 0 for c in found[::2])
    assert {r["status"] for s in scored for r in s["regions"]} == {judge.OK}


# ---------------------------------------------------------------------------------- the intervals


def test_the_interval_of_one_seed_is_that_of_the_evaluation():
    rng = np.random.default_rng(0)
    base, arm = rng.random((2, 500)) < [[0.5], [0.6]]
    want, (low, high) = stats.paired_bootstrap(base, arm)
    mean, lo, hi = study_tables.interval((arm * 1.0 - base)[None])
    assert mean == pytest.approx(want)
    assert [lo, hi] == pytest.approx([low, high], abs=0.004)


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    alike = (rng.random((3, 800)) < 0.6) * 1.0
    apart = (rng.random((3, 800)) < [[0.5], [0.6], [0.7]]) * 1.0
    widths = [hi - lo for _, lo, hi in map(study_tables.interval, (alike, apart))]
    assert widths[1] > 2 * widths[0]
    # Two seeds .2 apart: their mean has the standard error .1.
    _, drawn = study_tables.bootstrap(np.repeat([[0.4], [0.6]], 50, axis=1))
    assert drawn.std() == pytest.approx(0.1, rel=0.05)


# ------------------------------------------------------------------------------ tables from files


def result(plan, arm, seed, right, **more):
    """A result whose pictures are right where `right` says, at every guidance."""
    one = plan.phases[0]
    rows = "".join("01"[int(x)] for x in right)
    return {
        "identity": {"prompts": study_plan.prompts_digest(plan, one)},
        "at": {"one": 1.0, "fixed": 2.5, "best": 4.0},
        "right": {"1.0": "0" * len(rows), "2.5": rows, "4.0": rows},
        "guidance": {"best": 4.0, "grid": {"1.0": "0000000000", "4.0": "1010101010"}},
        "own": {"score": 0.25, "right": 0.5, "surplus": -0.5, "diversity": 0.2},
        "work": {} if arm == "base" else dict(rounds=1, drawn=80, trained=20, steps=300),
        "seconds": {"draw": 3.0, "total": 4.0},
        **more,
    }


@pytest.fixture
def filled(plan, tmp_path):
    """Results of base (right in 10 of 40), sft (12) and best (20); truth diverged."""
    folder = tmp_path / "results"
    best = {"k": 2, "random": "000000", "self": "111000", "oracle": "111111"}
    for seed in (0, 1):
        for arm, count in (("base", 10), ("sft", 12), ("best", 20)):
            more = {"answers": {"color": "1100", "count": "11"}}
            more |= {"best_of": best} if arm == "base" else {}
            one = result(plan, arm, seed, np.arange(PROMPTS) < count, **more)
            write_json(folder / f"choose-{arm}-s{seed}.json", one)
    lost = {"identity": {"prompts": study_plan.prompts_digest(plan, plan.phases[0])}}
    write_json(folder / "choose-truth-s0.json", lost | {"diverged": "it left", "seconds": {}})
    return folder


def cells(page, row, place=0):
    """The cells of the `place`-th line of a table that begins with `row`."""
    lines = [line for line in page.splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in lines[place].split("|")[2:-1]]


def test_tables_come_from_the_files(plan, filled, tmp_path):
    page = tmp_path / "study.md"
    lines = study_tables.write(plan, filled, page)
    assert lines[0].startswith("choose: best: +25.0 [")
    text = page.read_text()
    assert "3 tried in all" in text and "Rule: the highest" in text
    assert "Not there yet: truth (seed 1)" in text and "truth (seed 0: it left)" in text
    assert cells(text, "base", 1)[2].startswith("25.0 [")  # at the fixed guidance
    assert cells(text, "best", 1)[1:2] == ["0.0 [0.0, 0.0]"]  # at guidance 1
    against = cells(text, "best", 2)
    assert against[0].startswith("+0.0") and against[2].startswith("+25.0 [+1")
    assert against[-1].startswith("+20.0 [")  # against sft
    assert cells(text, "base, best by own score")[0].startswith("50.0")
    assert "| best, one picture | 100.0 [100.0, 100.0] | +50.0 [" in text
    assert "| sft | 66.7 [" in text  # questions
    assert "| best | 1 | 80 | 20 | 300 |" in text
    for name in ("accuracy", "guidance"):
        assert xml.fromstring((filled / f"choose-{name}.svg").read_text()).tag.endswith("svg")
    # What is written around the tables stays, and the same files give the same page.
    page.write_text(text.replace("## Phase choose", "## Phase choose\n\nBy hand."))
    before = page.read_text()
    study_tables.write(plan, filled, page)
    assert page.read_text() == before and "By hand." in before


def test_categories_and_held_out_pairs_are_told_apart(plan, filled, tmp_path):
    found = study_tables.gather(plan, plan.phases[0], filled)
    prompts = study_plan.drawn_prompts(plan, plan.phases[0])
    held = np.array([p.held_out for p in prompts])
    text = study_tables.accuracy_table(found)
    first20 = np.arange(PROMPTS) < 20
    assert f"| {100 * first20[~held].mean():.1f} [" in text
    assert f"| {100 * first20[held].mean():.1f} [" in text
    name = prompts[0].category
    member = np.array([p.category == name for p in prompts])
    assert f"{name} ({member.sum()})" in study_tables.category_table(found)
    assert f"{100 * first20[member].mean():.1f} (" in study_tables.category_table(found)


def test_results_on_other_prompts_are_refused(plan, filled, tmp_path):
    path = filled / "choose-sft-s0.json"
    write_json(path, read_json(path) | {"identity": {"prompts": "another"}})
    with pytest.raises(BadInput, match="choose-sft-s0.json was made on other prompts"):
        study_tables.write(plan, filled, tmp_path / "study.md")


@pytest.mark.parametrize(
    "best, gain, chosen, words",
    [
        (20, 0.0, "best", "best: +25.0"),
        (20, 0.3, None, "none: best: +25.0"),
        (12, 0.0, "sft", "sft: +5.0"),  # equal: the simpler
    ],
)
def test_the_rule_picks_the_winner(tmp_path, best, gain, chosen, words):
    rule = phase()["rule"] | {"gain": gain}
    plan = load(tmp_path, values(phase(rule=rule)))
    counts = {"base": 10, "sft": 12, "best": best}
    results = {
        arm: {s: result(plan, arm, s, np.arange(PROMPTS) < count) for s in (0, 1)}
        for arm, count in counts.items()
    }
    found = study_tables.Found(plan.phases[0], results, np.array([]), np.array([]), WHOLE)
    name, sentence = study_tables.winner(found)
    assert name == chosen and sentence.startswith(words)


def test_an_arm_within_a_standard_error_loses_to_the_simpler(tmp_path):
    plan = load(tmp_path, values())
    right = {arm: np.arange(PROMPTS) < 12 for arm in ("base", "sft", "best")}
    right["best"] = right["best"].copy()
    right["best"][[0, 1, 20, 21, 22]] = [False, False, True, True, True]  # one more, five differ
    results = {a: {s: result(plan, a, s, r) for s in (0, 1)} for a, r in right.items()}
    found = study_tables.Found(plan.phases[0], results, np.array([]), np.array([]), WHOLE)
    name, sentence = study_tables.winner(found)
    assert name == "sft" and "best is within one standard error" in sentence
    del found.results["sft"]
    assert study_tables.winner(found) == (None, "undecided: no results of sft")


def test_half_a_pair_of_markers_is_refused():
    with pytest.raises(BadInput, match="once each"):
        study_tables.placed("<!-- study:begin final -->", "final", "text")
    page = study_tables.placed("Head.\n", "final", "one")
    assert study_tables.placed(page, "final", "two") == page.replace("\none\n", "\ntwo\n")


@pytest.mark.parametrize("low, high", [(0.0, 0.0), (0.513, 0.517), (0.0, 1.0), (0.247, 0.683)])
def test_ticks_hold_the_values(low, high):
    marks = study_plots.ticks(low, high)
    assert marks[0] <= 100 * low and marks[-1] >= 100 * high and 2 <= len(marks) <= 12


def test_the_command_needs_something_to_do(capsys, tmp_path):
    with pytest.raises(SystemExit):
        study.main([])
    assert "--phase NAME or --tables" in capsys.readouterr().err
    assert study.main(["--tables", "--plan", str(tmp_path / "none.json")]) == 2
    assert "no such file" in capsys.readouterr().err


# -------------------------------------------------------------------------------- all of it, small


@pytest.mark.slow
def test_arms_are_trained_and_measured(tmp_path, monkeypatch):
    weights = tiny.write_model(tmp_path / "weights" / "model")
    content = values(phase(seeds=[0]))
    content["common"] |= {
        "weights": str(weights),
        **{
            "generate.count": 3,
            "generate.candidates": 2,
            "generate.shard_size": 4,
            "sample.steps": 2,
        },
        **{"sample.batch": 4, "score.shard_size": 4, "score.batch": 4, "evaluate.batch": 4},
        **{"train.steps": 2, "train.rows": 2, "train.optim.warmup": 1, "train.monitor.prompts": 0},
        **{"train.lanes.gen": 32, "train.lanes.und": 16},
        "generate.prompts": str(tmp_path / "prompts.txt"),
    }
    colours = ("red", "green", "blue")  # prompts of one length: rows of two are full
    (tmp_path / "prompts.txt").write_text("".join(f"a {c} circle\n" for c in colours))
    arms = content["phases"][0]["arms"]
    arms[1]["overrides"] |= {"rounds": 2}
    plan = load(tmp_path, content)
    one = study.sharding.make_mesh
    monkeypatch.setattr(
        study.sharding,
        "make_mesh",
        lambda sizes: one(dataclasses.replace(sizes, data=1, fsdp=1), jax.devices()[:1]),
    )
    # A model of random numbers answers nothing that could be read as a score.
    monkeypatch.setattr(study.score, "run", lambda cfg, _, work: study.oracle_scores(cfg, work))
    assert run(plan, tmp_path)
    results = {
        arm.name: json.loads((tmp_path / f"results/choose-{arm.name}-s0.json").read_text())
        for arm in plan.phases[0].arms
    }
    assert {len(r) for x in results.values() for r in x["right"].values()} == {PROMPTS}
    assert results["sft"]["work"] == {"rounds": 1, "drawn": 6, "trained": 6, "steps": 2}
    assert results["best"]["work"]["rounds"] == 2 and results["best"]["work"]["drawn"] == 12
    assert set(results["base"]) - set(results["sft"]) == {"answers", "best_of"}
    pools = list((tmp_path / "work/pool").iterdir())
    assert len(pools) == 1  # drawn and scored once
    assert (tmp_path / "work/choose-best-s0/round0/generate").is_symlink()
    assert not (tmp_path / "work/choose-truth-s0/round0/score").is_symlink()
    assert not list((tmp_path / "work").glob("*/round*/train/checkpoints"))
    study_tables.write(plan, tmp_path / "results", tmp_path / "study.md")
    assert "Winner by the rule" in (tmp_path / "study.md").read_text()
