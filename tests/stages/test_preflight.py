"""Everything that can be known before the first hour is said before it, all at once."""

import collections
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import tiny

from srum_jax import running
from srum_jax.core.errors import BadInput
from srum_jax.data import images
from srum_jax.planning import fitting, topology
from srum_jax.planning.budget import Chips
from srum_jax.stages import preflight
from srum_jax.stages.manifest import Workdir

ROOT = pathlib.Path(__file__).parents[2]
CHECK = ["-m", "srum_jax.main", "--config", "bagel_7b_srum", "--check"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "model")


def checked(folder, weights, *, stages=None, machine=None, **values):
    cfg = tiny.load_config(weights, score__proposers=("grid",), **values)
    shapes = machine and fitting.shapes(cfg, topology.parse(machine))
    return running.Run(cfg, stages or cfg.stages, str(folder / "run")).check(shapes)


def test_the_flagship_without_its_files_hears_of_all_of_them_and_no_device_is_touched(tmp_path):
    env = os.environ | {"JAX_PLATFORMS": "none at all", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *CHECK, "--workdir", tmp_path / "run", "--config.log.writers=('wandb',)"]
        + ["--plan", "h200:8", "--config.train.rows=12"],
        env=env | {"WANDB_API_KEY": "", "WANDB_MODE": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2 and done.stdout == ""
    for said in (
        "weights/BAGEL-7B-MoT/ema.safetensors: missing",
        "data/t2i_compbench_train.json: no such",
        "weights/sam-vit-huge/config.json",
        'log.writers names "wandb"',
        "train.rows = 12 by 8",
    ):
        assert said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_what_will_be_written_is_said_before_it_is(tmp_path, weights):
    found = checked(tmp_path, weights, generate__count=5, generate__candidates=3, rounds=2)
    by = {cost.stage: cost for cost in found.costs}
    height, width, dim = tiny.GRID
    assert by["generate"].what == "30 pictures of 32x32"
    assert by["generate"].bytes == 30 * (int(0.6 * 3 * 32 * 32) + 4 * height * width * dim)
    assert by["train"].bytes > 0 and by["export"].bytes > 0
    # Two rounds: 2 candidates of 3 prompts and 4 images by the base, 7 by the trained; both edit.
    assert by["evaluate"].what == "34 pictures of 32x32 and 600 edits"
    assert any(re.fullmatch("to be written in all: about .*B; .*B are free", s) for s in found.said)


def test_before_anything_is_rented_the_same_bytes_are_said(tmp_path, weights):
    cfg = tiny.load_config(weights, score__proposers=("grid",), rounds=2)
    asked = running.Run(cfg, cfg.stages, str(tmp_path / "run"))
    found = {cost.stage: cost.bytes for cost in asked.check().costs}
    budget = {one.stage: one.disk for one in asked.expected(Chips("v5e", 4)).stages}
    for stage in ("generate", "train", "evaluate", "export"):
        assert budget[stage] == found[stage] > 0, stage


def test_on_a_machine_that_is_named_the_time_is_said_too(tmp_path, weights):
    cfg = tiny.load_config(weights, score__proposers=("grid",), **ROWS)
    asked = running.Run(cfg, cfg.stages, str(tmp_path / "run"))
    assert asked.checked("v5e:4x4")[-1].startswith("computing, at 40% of the peak of 16 x v5e: ")
    assert asked.checked(None) == asked.check().said


def test_a_bucket_says_no_room_so_what_goes_there_is_said(weights):
    cfg = tiny.load_config(weights)
    found = preflight.collect(cfg, Workdir("gs://runs/new"), {})
    assert found.said == [
        "to be written in all: about 0.0 MB, to gs://runs/new; a bucket does not say how much it "
        "may still take"
    ]


def test_pictures_that_will_be_read_in_are_counted(tmp_path, weights):
    (tmp_path / "a.png").write_bytes(images.encode_png(np.zeros((64, 32, 3), np.uint8)))
    line = {"bad_image_file": "a.png", "good_image_file": "a.png", "prompt": "a", "vlm_rewards": []}
    lines = [json.dumps(line)] * 20 + ["no JSON"]
    (tmp_path / "data.jsonl").write_text("\n".join(lines[::-1]))
    values = {"stages": ("ingest",), "ingest__source": f"published:{tmp_path / 'data.jsonl'}"}
    for latents, arrays in (("mean", 1), ("resample", 2)):
        found = checked(tmp_path, weights, ingest__latents=latents, **values)
        (cost,) = found.costs
        assert cost.what == "21 pictures, their sizes as those of the first 7"
        assert cost.bytes == 21 * (int(0.6 * 3 * 64 * 32) + arrays * 4 * 2 * 16 * tiny.GRID[2])


ROWS = {"sample__batch": 4, "score__batch": 8, "evaluate__batch": 12, "train__rows": 16}


def test_rows_are_held_against_the_machine_that_is_named(tmp_path, weights):
    found = checked(tmp_path, weights, **ROWS)
    assert any("1, 2 or 4 a host and 1, 2, 4, 8 or 16 in all" in note for note in found.notes)
    found = checked(tmp_path, weights, machine="v5e:4x4", **ROWS)  # four hosts
    assert not any("a host" in note for note in found.notes)
    with pytest.raises(BadInput, match="do not divide: sample.batch = 4 by 8, eval.*= 12 by 8$"):
        checked(tmp_path, weights, machine="h200:8", **ROWS)
    with pytest.raises(BadInput, match="do not divide: train.rows = 16 by 64$"):
        checked(tmp_path, weights, machine="v5e:8x8", **ROWS)
    with pytest.raises(ValueError, match="mesh.tensor = 3, .*do not fit 8 devices"):
        checked(tmp_path, weights, machine="h200:8", mesh__tensor=3, **ROWS)


def test_a_disk_that_is_too_small_is_refused(tmp_path, weights, monkeypatch):
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda place: usage(1000))
    with pytest.raises(BadInput, match="about .* will be written and 0.0 MB are free"):
        checked(tmp_path, weights)


def test_prompts_that_fit_no_row_are_named_before_they_are_drawn(tmp_path, weights):
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle\n" + "a red circle and a blue square " * 5 + "\n")
    values = {"generate__prompts": str(path), "train__lanes__und": 24}
    with pytest.raises(BadInput, match=r"prompts.txt, line 2 does not fit one row: und needs 3\d"):
        checked(tmp_path, weights, **values)
    checked(tmp_path, weights, **values | {"train__lanes__und": 60})
    with pytest.raises(BadInput, match="an image of sample.size does not fit .* gen needs 16"):
        checked(tmp_path, weights, train__lanes__gen=8)


def test_what_judges_and_suites_read_is_looked_for_and_a_round_needs_the_one_before(
    tmp_path, weights
):
    boxes, prompts = (str(tmp_path / name) for name in ("boxes.jsonl", "suite.txt"))
    values = {"score__proposers": ("file",), "score__boxes": boxes, "evaluate__prompts": prompts}
    cfg = tiny.load_config(weights, **values, rounds=2)
    stages = [stage for stage in cfg.stages if stage != "export"]
    with pytest.raises(BadInput, match="3 problems found before anything is run") as e:
        running.Run(cfg, stages, str(tmp_path / "run")).check()
    assert f"{boxes}: " in str(e.value) and f"{prompts}: " in str(e.value)
    assert "--stage export" in str(e.value)


@pytest.fixture
def server():
    """A judge's server that answers every request with `server.code`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(self.server.code)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.code, made.asked = 200, []
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.mark.parametrize("code, refused", [(200, False), (404, False), (401, True), (403, True)])
def test_an_external_judge_is_asked_whether_it_answers(
    tmp_path, weights, server, monkeypatch, code, refused
):
    server.code = code
    monkeypatch.setenv("JUDGE_KEY", "secret-words")
    values = {
        "score__judge": "external",
        "score__external__url": f"http://127.0.0.1:{server.server_address[1]}/v1",
        "score__external__model": "judge",
        "score__external__key_env": "JUDGE_KEY",
    }
    if refused:
        with pytest.raises(BadInput, match=f"refuses the key in JUDGE_KEY .HTTP {code}") as e:
            checked(tmp_path, weights, **values)
        assert "secret-words" not in str(e.value)
    else:
        checked(tmp_path, weights, **values)
    assert set(server.asked) == {("/v1/models", "Bearer secret-words")}


def test_a_judge_that_is_not_there_and_a_key_that_is_not_set(tmp_path, weights, monkeypatch):
    values = {
        "score__judge": "external",
        "score__external__url": "http://127.0.0.1:9/v1",
        "score__external__model": "judge",
    }
    with pytest.raises(BadInput, match="the judge at http://127.0.0.1:9/v1 does not answer"):
        checked(tmp_path, weights, **values)
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(BadInput, match="not set"):
        checked(tmp_path, weights, **values | {"score__external__key_env": "JUDGE_KEY"})


def test_a_stage_whose_input_nobody_made_and_a_finished_one(tmp_path, weights):
    with pytest.raises(BadInput, match=r"2 problems(.|\n)*generate(.|\n)*--stage score"):
        checked(tmp_path, weights, stages=("train",))
    with pytest.raises(BadInput, match="holds no run to report on"):
        checked(tmp_path, weights, stages=("report",))
    done = Workdir(tmp_path / "run").stage("generate")
    done.mkdir(parents=True)
    (done / "manifest.json").write_text("{}")  # what it read is not looked at again
    found = checked(
        tmp_path, weights, generate__prompts=str(tmp_path / "gone.txt"), stages=("generate",)
    )
    assert found.costs == []
