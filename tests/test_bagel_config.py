"""The whole road of configs/bagel_7b_srum.py, with the shapes weights in the place of BAGEL-7B.

Sizes and counts are smaller; lanes of text are the config's own.
"""

import json
import pathlib

import free_words
import pytest

from srum_jax import main
from srum_jax.data import shards
from srum_jax.rewards import judge, question_templates

ROOT = pathlib.Path(__file__).parents[1]
SMALL = {
    "model": "shapes",
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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("road")
    prompts = free_words.prompts_file(folder / "prompts.json")
    asked = [t.replace("{a}", "a dog") for t in question_templates.TEMPLATES.values()]
    model = free_words.write_model(folder / "words", [*prompts, *asked])
    more = {"weights": model, "generate.prompts": folder / "prompts.json"}
    flags = [f"--config.{key}={value}" for key, value in (SMALL | more).items()]
    work = folder / "work"
    config = str(ROOT / "configs/bagel_7b_srum.py")
    code = main.main(["srum_jax", "--config", config, "--workdir", str(work), *flags])
    return code, work


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
