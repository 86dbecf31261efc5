"""A suite that the package does not know: one module, one line in the registry, and it is run."""

import json

import jax
import jsonschema
import numpy as np
import pytest
import tiny
from stages import test_evaluate

from srum_jax.core import registry
from srum_jax.core.errors import BadInput
from srum_jax.evals import stats
from srum_jax.stages import evaluate, report
from srum_jax.stages.manifest import Workdir

SUITE = '''
"""Is it dark? A question about black pictures, and two prompts to draw."""

import numpy as np

from srum_jax.data.prompts import Prompt
from srum_jax.evals.sections import section
from srum_jax.evals.suite import AnswerRequest, DrawRequest, Findings, Requests, Suite, Verdict

BLACK, ASKED = np.zeros((32, 32, 3), np.uint8), "is there a circle ?"


class Dark(Suite):
    name, prompts = "dark", (Prompt(0, "a red circle", "one"), Prompt(1, "two blue squares", "two"))

    def __init__(self, limit):
        self.limit = limit

    def requests(self, model):
        asked = [AnswerRequest(str(i), f"k{i % 2}", (BLACK,), ASKED, "no") for i in range(4)]
        return Requests(images=[DrawRequest(prompt) for prompt in self.prompts], answers=asked)

    def verdicts(self, requests, replies):
        said = zip(requests.answers, replies.answers, strict=True)
        drawn = [(r["id"], r["category"], r["image"].mean() < self.limit) for r in replies.images]
        answers = [Verdict(r.id, r.category, reply == r.truth) for r, reply in said]
        return answers, [Verdict(*one) for one in drawn]

    def findings(self, outputs):
        said, drawn = ({name: o.verdicts[i] for name, o in outputs.items()} for i in (0, 1))
        found = section("Dark answers", said) | {"sections": {"d": section("Dark drawings", drawn)}}
        correct = {f"{name}_correct": verdicts[0].right for name, verdicts in said.items()}
        shown = [{"question": ASKED, "image": BLACK, **correct}]
        return Findings(found, examples={"examples-dark": shown})


def make(cfg, data, language):
    return Dark(float(data))
'''


@pytest.fixture
def dark(tmp_path, monkeypatch):
    """The one module and the one line."""
    (tmp_path / "dark_suite.py").write_text(SUITE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.SUITES, "dark", "dark_suite")


def run(cfg, work):
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        return evaluate.run(cfg, mesh, work)


def test_a_new_suite_is_one_module_and_one_line(dark, tmp_path):
    weights = tiny.write_model(tmp_path / "weights" / "model")
    cfg = tiny.load_config(
        weights, stages=("train", "evaluate"), evaluate__suites=("dark:300",), model="shapes"
    )
    work = Workdir(tmp_path / "work", config_file="c")
    test_evaluate.train(cfg, work)
    manifest = run(cfg, work)
    assert manifest.counts == {"prompts": 2, "images": 4, "answers": 8, "edits": 0}
    results = json.loads(work.results.read_text())
    jsonschema.validate(results, test_evaluate.SCHEMA)
    part = results["rounds"][0]
    assert set(part) == {"round", "suites"} and set(part["suites"]) == {"dark"}
    found = part["suites"]["dark"]
    base, trained = found["models"]["base"], found["models"]["trained"]
    assert base["n"] == trained["n"] == 4 and base["by_category"].keys() == {"k0", "k1"}
    assert base["ci95"] == list(stats.wilson(base["correct"], 4))
    assert found["paired"]["diff"] == trained["accuracy"] - base["accuracy"]
    drawing = found["sections"]["d"]
    assert drawing["models"]["base"]["accuracy"] == 1 and drawing["paired"]["ci95"] == [0, 0]
    (shown,) = json.loads((work.stage("evaluate") / "examples-dark.json").read_text())
    assert (work.stage("evaluate") / shown["image"]).exists()
    # The report shows it without knowing it.
    report.run(cfg, tiny.mesh(cfg), work)
    page = work.report.read_text()
    assert "Dark answers" in page and "Dark drawings" in page
    # What was asked is not asked again, and other data is another examination.
    assert run(cfg, work) == manifest
    other = tiny.load_config(
        weights, stages=("train", "evaluate"), evaluate__suites=("dark:0",), model="shapes"
    )
    with pytest.raises(BadInput, match="evaluate.suites"):
        run(other, work)


@pytest.mark.parametrize(
    "suites, message",
    [
        (("darc",), 'did you mean "dark"'),
        (("dark:1", "dark:2"), "twice"),
        (("nothing like it",), "known: "),
    ],
)
def test_wrong_names_are_refused(dark, suites, message):
    with pytest.raises(BadInput, match=message):
        tiny.load_config("", evaluate__suites=suites)


@pytest.mark.slow
def test_two_suites_stand_beside_each_other(dark, tmp_path):
    weights = tiny.write_model(tmp_path / "weights" / "model")
    few = {"questions": 2, "multi_image_questions": 1, "captions": 1, "edits": 1, "count": 2}
    cfg = tiny.load_config(
        weights,
        stages=("evaluate",),
        evaluate__suites=("shapes", "dark:300"),
        evaluate__best_of_prompts=1,
        **{f"evaluate__{name}": n for name, n in few.items()},
    )
    work = Workdir(tmp_path / "work", config_file="c")
    counts = run(cfg, work).counts
    assert counts == {"prompts": 4, "images": 3 + 2, "answers": 2 + 1 + 1 + 4, "edits": 1}
    found = json.loads(work.results.read_text())["rounds"][0]["suites"]
    assert set(found) == {"shapes", "dark"} and "paired" not in found["dark"]
    assert np.isclose(found["shapes"]["models"]["base"]["n"], 2)
