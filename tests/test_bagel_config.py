"""The whole road of configs/bagel_7b_srum.py, with the shapes weights in the place of BAGEL-7B.

Sizes and counts are smaller; lanes of text are the config's own.
"""

import json
import pathlib

import free_words
import numpy as np
import pytest

from srum_jax import main
from srum_jax.configs import bagel_7b_srum
from srum_jax.data import shards
from srum_jax.rewards import judge, question_templates
from srum_jax.training import metrics

ROOT = pathlib.Path(__file__).parents[1]
SMALL = {
    "model": "shapes",
    "stages": "('generate', 'score', 'train', 'export', 'report')",
    "compute.dtype": "float32",
    "sample.size": "(32, 32)",
    "sample.steps": 2,
    "sample.batch": 8,
    "generate.count": 6,
    "generate.candidates": 2,
    "generate.shard_size": 8,
    "score.shard_size": 4,
    "score.batch": 8,
    "score.sam.weights": ROOT / "tests/goldens/samA",
    "score.sam.points": 3,
    "score.sam.batch": 9,
    "score.sam.min_iou": 0.0,
    "score.sam.min_stability": 0.0,
    "score.verify": 0.0,
    "score.written.batch": 8,
    "train.rows": 8,
    "train.steps": 2,
    "train.lanes.gen": 32,  # two images of 16 tokens, as 8192 are two of 4096
    "train.min_score": -1.0,
    "train.monitor.prompts": 0,
    "export.dtype": "float32",
}


pytestmark = pytest.mark.slow


def go(folder, name, **values):
    """(exit code, work folder) of the config's road, with these values in SMALL's place."""
    prompts = free_words.prompts_file(folder / "prompts.json")
    asked = [t.replace("{a}", "a dog") for t in question_templates.TEMPLATES.values()]
    model = free_words.write_model(folder / "words", [*prompts, *asked])
    more = {"weights": model, "generate.prompts": folder / "prompts.json", **values}
    flags = [f"--config.{key}={value}" for key, value in (SMALL | more).items()]
    work = folder / "work"
    config = str(ROOT / f"configs/{name}.py")
    code = main.main(["srum_jax", "--config", config, "--workdir", str(work), *flags])
    return code, work


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return go(tmp_path_factory.mktemp("road"), "bagel_7b_srum")


def test_it_trains_on_regions(tmp_path):
    """With the shapes base's own words and regions, so that answers mean something (the small SAM
    of the goldens sees whole images): the weights of tokens differ inside an image."""
    values = {"generate.prompts": "shapes:train", "weights": "", "sample.steps": 16}
    values |= {"score.proposers": "('components',)", "score.margin": 1}
    code, work = go(tmp_path, "bagel_7b_srum", **values, **{"generate.count": 12})
    assert code == 0
    found = json.loads((work / "round0/train/manifest.json").read_text())
    assert found["results"]["train"]["objective"] == "srum_release"
    examples = json.loads((work / "round0/score/examples.json").read_text())
    assert any(np.ptp(one["token_weights"]) > 0.05 for one in examples)  # inside an image
    rows = metrics.read(work / "round0/train/metrics.jsonl")
    assert all(0.01 < row["token_weight"] < 1 for row in rows if "loss" in row)


def test_the_papers_road_thinks_before_it_draws(tmp_path):
    """One picture a prompt, drawn behind a plan; without thinking it is another one."""
    values = {"stages": "('generate',)", "generate.candidates": 1, "generate.think_tokens": 6}
    thought = go(tmp_path, "bagel_7b_srum_paper", **values)
    (tmp_path / "plain").mkdir()
    plain = go(tmp_path / "plain", "bagel_7b_srum_paper", **values, **{"generate.think": False})
    assert thought[0] == plain[0] == 0
    pairs = zip(*(shards.read(w / "round0/generate") for _, w in (thought, plain)), strict=True)
    found = [(a["id"] == b["id"], (a["latent"] != b["latent"]).any()) for a, b in pairs]
    assert len(found) == 6 and all(same and other for same, other in found)


def test_it_ends_well_and_counts_what_it_met(run):
    code, work = run
    assert code == 0
    drawn = json.loads((work / "round0/generate/manifest.json").read_text())
    assert drawn["counts"]["prompts"] == 6 and drawn["counts"]["repeated"] == 1
    scored = json.loads((work / "round0/score/manifest.json").read_text())["counts"]
    assert scored["candidates"] == 12
    by = {key: n for key, n in scored.items() if key.startswith("prompts by ")}
    assert sum(by.values()) == 6 and by["prompts by grammar"] >= 1
    scenes = json.loads((work / "round0/score/scenes.json").read_text())
    assert scenes["a green bench and a blue bowl"]["source"] == "grammar"
    assert not any(scene["open"] for scene in scenes.values())


def test_regions_have_masks_and_scores_or_a_reason(run):
    _, work = run
    scored = shards.read(work / "round0/score")
    found = [region for record in scored for region in record["regions"]]
    assert found and all(region["proposer"] == "sam" for region in found)
    assert all(len(region["mask"]) > 0 for region in found)
    assert {record["image_status"] for record in scored} <= {*judge.STATUSES}
    assert any(record["image_status"] == judge.OK for record in scored)


def test_the_report_shows_calibration_and_regions(run):
    _, work = run
    page = (work / "report.html").read_text()
    assert "histogram-all" in page and "What the model scored" in page
    assert (work / "round0/export").exists()


def test_it_is_evaluated_and_adjusted(tmp_path):
    """The stages that the config names, on prompts that nothing was trained on."""
    stages = ("generate", "score", "train", "evaluate", "adjust", "export", "report")
    assert bagel_7b_srum.get_config().stages == stages
    values = {"stages": repr(stages), "generate.prompts": "shapes:train", "weights": ""}
    values |= {"score.proposers": "('components',)", "score.margin": 1, "generate.count": 12}
    values |= {"evaluate.prompts": "shapes:test", "evaluate.count": 6}
    values |= {"adjust.prompts": "shapes:validation", "adjust.first": 0, "adjust.count": 6}
    code, work = go(tmp_path, "bagel_7b_srum", **values)
    assert code == 0
    part = json.loads((work / "results.json").read_text())["rounds"][0]
    own = part["suites"]["own_score"]
    assert set(own["models"]) == {"base", "trained"} and own["models"]["base"]["n"] == 6
    assert own["paired"]["of"] == ["trained", "base"]
    tried = part["adjust"]["tried"]
    assert len(tried) == 2 and {one["share"] for one in tried} == {0.5, 1.0}
    assert part["adjust"]["why"]
    page = (work / "report.html").read_text()
    assert "Held-back prompts" in page and ">own_score" not in page
