"""What the stage `adjust` refuses, and what it says it will cost, before anything runs."""

import dataclasses

import judge_server
import pytest
import tiny
from stages import test_adjust

from srum_jax.core.errors import BadInput
from srum_jax.data import prompts as prompt_lists
from srum_jax.stages import adjust, evaluate, preflight
from srum_jax.stages.manifest import Workdir
from srum_jax.worlds.shapes import benchmark_files, changes


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "model")


@pytest.mark.parametrize(
    "values, fault",
    [
        ({"adjust__suites": ("shapes",)}, "adjust.suites: 'shapes' must name validation data"),
        ({"adjust__suites": ("shapes:test",)}, "must name validation data"),
        ({"adjust__suites": ("shapes:train", "shapes:validation")}, "names 'shapes' twice"),
        ({"adjust__target": "t3i"}, "adjust: 't3i' is measured by no suite of adjust.suites"),
        ({"adjust__floors": ("pope:-1",)}, "'pope' is measured by no suite of adjust.suites"),
        ({"adjust__prompts": "shapes:test"}, "7 of the prompts to choose by are evaluated on"),
        ({"adjust__prompts": "shapes:train"}, "'shapes:train' are trained on: choose by others"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(weights, tmp_path, values, fault):
    cfg = tiny.load_config(weights, **(test_adjust.SMALL | values))
    found = preflight.Checks(cfg.stages)
    adjust.check(cfg, Workdir(tmp_path), found)
    assert any(fault in problem for problem in found.problems), found.problems
    test_adjust.train(cfg, Workdir(tmp_path))
    with pytest.raises(BadInput, match="adjust"):
        test_adjust.run(cfg, Workdir(tmp_path), adjust)
    assert not Workdir(tmp_path).stage("adjust").exists()


def test_prompts_that_are_evaluated_on_are_refused(weights, tmp_path):
    path = tmp_path / "mine.txt"
    test = prompt_lists.load("shapes:test", 3)
    path.write_text("\n".join(["a red circle", test[1].text]))
    cfg = tiny.load_config(weights, **test_adjust.SMALL, adjust__prompts=str(path))
    found = preflight.Checks(cfg.stages)
    adjust.check(cfg, Workdir(tmp_path), found)
    assert any("1 of the prompts to choose by are evaluated on" in p for p in found.problems)


def test_what_it_costs_is_said_before(weights, tmp_path):
    cfg = tiny.load_config(weights, **test_adjust.SMALL, adjust__guidance=(1.0, 2.5))
    found = preflight.Checks(cfg.stages)
    adjust.check(cfg, Workdir(tmp_path), found)
    assert not found.problems
    (cost,) = found.costs
    models = 2 * 4 * 2
    assert f"at most {models} models" in cost.what
    assert f"{(1 + models) * test_adjust.PROMPTS} pictures" in cost.what.replace(",", "")
    assert cost.bytes > 0


@pytest.fixture
def pope(tmp_path):
    """(folder, "pope:FOLDER") of questions of a split."""

    def written(split, name=None):
        folder = tmp_path / (name or split)
        benchmark_files.write("pope", folder, split=split, count=6)
        return f"pope:{folder}"

    return written


def test_a_benchmark_s_file_under_another_name_is_that_file(weights, tmp_path, pope):
    tested = {"evaluate__suites": ("shapes", pope("test"))}
    for chosen_by, fault in ((pope("test", "again"), "again holds what"), (pope("train"), None)):
        suites = ("shapes:validation", chosen_by)
        cfg = tiny.load_config(weights, **(test_adjust.SMALL | tested), adjust__suites=suites)
        found = preflight.Checks(cfg.stages)
        adjust.check(cfg, Workdir(tmp_path), found)
        assert any(fault in p for p in found.problems) if fault else not found.problems


def test_what_judges_will_cost_is_said_and_whether_they_answer(weights, tmp_path):
    values = {"adjust__suites": ("shapes:validation", "own_score"), "adjust__target": "mark"}
    values |= {"evaluate__judges": ("external",), "score__external__model": "m"}
    server = judge_server.Server(lambda handler, _: handler.give({}))
    url = {"score__external__url": server.url}
    cfg = tiny.load_config(weights, **(test_adjust.SMALL | values | url))
    found = preflight.Checks(cfg.stages)
    adjust.check(cfg, Workdir(tmp_path), found)
    (said,) = found.notes
    assert "adjust, at most: own_score, judge external" in said and not found.problems
    assert f"{(1 + 2 * 4) * test_adjust.PROMPTS} requests" in said.replace(",", "")
    server.close()
    adjust.check(cfg, Workdir(tmp_path), found)
    assert any("does not answer" in problem for problem in found.problems)
    by_own = tiny.load_config(
        weights, **(test_adjust.SMALL | values | url | {"adjust__target": "own_score"})
    )
    found = preflight.Checks(by_own.stages)
    adjust.check(by_own, Workdir(tmp_path), found)
    assert not found.notes and not found.problems  # nobody is asked


def test_the_shapes_suite_of_another_split():
    cfg = tiny.load_config("", adjust__edits=3)
    (suite,) = adjust.validation(cfg, Workdir("nowhere"), "shapes")
    found = suite.requests("trained")
    assert [r.truth for r in found.edits] == list(changes.edit_set("validation", 3))
    with pytest.raises(ValueError, match=r'say "shapes\[:train \| validation \| test\]"'):
        evaluate.named(
            dataclasses.replace(
                cfg, evaluate=dataclasses.replace(cfg.evaluate, suites=("shapes:elsewhere",))
            ),
            "shapes",
        )
