"""Stages: skipped when finished, gone on with when half done, refused when the config changed."""

import copy
import dataclasses
import json
import pathlib

import jsonschema
import numpy as np
import pytest

from srum_jax import config, config_history
from srum_jax.configs import base
from srum_jax.core.errors import BadInput
from srum_jax.core.files import read_json, write_json
from srum_jax.data import images, shards
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, run_stage

SCHEMA = json.loads((pathlib.Path(__file__).parents[1] / "results.schema.json").read_text())


def make(**train):
    c = base.get_config()
    c.train.update(train)
    return config.load(c)


class Body:
    """A stage's body that counts its calls and goes on from the file it wrote before."""

    def __init__(self, fail=False):
        self.calls, self.fail = 0, fail

    def __call__(self, folder):
        self.calls += 1
        done = folder / "half.txt"
        done.write_text("x" * (len(done.read_text()) + 1 if done.exists() else 1))
        if self.fail:
            raise RuntimeError("killed")
        return Outcome({"half": "half.txt"}, {"images": 3}, items=3, compile_seconds=0.25)


def run(work, body, cfg=None, inputs=None, sections=("train", "seed")):
    return run_stage(
        "train",
        cfg or make(),
        work,
        sections=sections,
        inputs=inputs or {"score": "abc"},
        body=body,
    )


@pytest.fixture
def work(tmp_path):
    return Workdir(tmp_path / "run", config_file="configs/shapes.py")


@pytest.mark.parametrize("left", [None, "", "{", "[]", '{"sections": {}, "inputs": 3}'])
def test_files_that_nobody_says_what_they_are_for_are_moved_aside(work, left, caplog):
    """Nothing is gone on from that may be of another config, and nothing is lost."""
    folder = work.stage("train")
    for number in (1, 2):
        with pytest.raises(RuntimeError):
            run(work, Body(fail=True))
        (folder / "started.json").unlink()
        if left is not None:
            (folder / "started.json").write_text(left)
        caplog.clear()
        run(work, Body())
        aside = folder.parent / f"train-aside-{number}"
        assert f"they are moved to {aside}" in caplog.text
        assert (aside / "half.txt").exists() and (folder / "half.txt").read_text() == "x"
        (folder / "manifest.json").unlink()
        (folder / "half.txt").unlink()


def test_they_are_moved_aside_in_a_bucket(bucket, caplog):
    work = Workdir(bucket / "run", config_file="configs/shapes.py")
    test_files_that_nobody_says_what_they_are_for_are_moved_aside(work, "{", caplog)


def test_finished_is_skipped_and_read_back(work):
    body = Body()
    first = run(work, body)
    assert run(work, body) == first and body.calls == 1
    assert Manifest.read(work.stage("train")) == first
    assert first.counts == {"images": 3} and first.timing["compile_seconds"] == 0.25
    assert first.hash == Manifest.read(work.stage("train")).hash
    assert not [p for p in work.stage("train").iterdir() if p.name.endswith(".partial")]


def test_the_share_in_which_devices_had_no_work_is_told_where_it_was_measured(work):
    def busy(seconds):
        return run_stage(
            "score",
            make(),
            dataclasses.replace(work, root=work.root / str(seconds)),
            sections=(),
            inputs={},
            body=lambda folder: Outcome({}, {}, items=1, device_seconds=seconds),
        ).timing.get("device_idle")

    assert (busy(0.0), busy(1e9), busy(None)) == (1.0, 0.0, None)


def test_half_done_goes_on(work):
    with pytest.raises(RuntimeError):
        run(work, Body(fail=True))
    assert not (work.stage("train") / "manifest.json").exists()
    run(work, Body())
    assert (work.stage("train") / "half.txt").read_text() == "xx"


def test_what_a_killed_writer_left_is_gone_and_nothing_else_is(work):
    with pytest.raises(RuntimeError):
        run(work, Body(fail=True))
    (inner := work.stage("train") / "pope").mkdir()
    left = [work.stage("train") / ".examples.json.7.partial", inner / ".replies.jsonl.7.partial"]
    for path in (*left, inner / ".other", inner / "a.partial"):
        path.write_text("{")
    run(work, Body())
    assert {path.name for path in inner.iterdir()} == {".other", "a.partial"}
    assert not left[0].exists()


def test_lost_outputs_are_made_again(work):
    run(work, Body())
    (work.stage("train") / "half.txt").unlink()
    body = Body()
    run(work, body)
    assert body.calls == 1


@pytest.mark.parametrize("left", ["", "{", '{"stage": "tra', "null", "{}", '{"stage": 3}'])
def test_an_empty_or_cut_manifest_is_made_again(work, left):
    first = run(work, Body())
    (work.stage("train") / "manifest.json").write_text(left)
    body = Body()
    assert run(work, body).hash == first.hash == Manifest.read(work.stage("train")).hash
    assert body.calls == 1


def test_a_damaged_json_file_among_the_outputs_is_made_again(work):
    def body(folder):
        write_json(folder / "held_back.json", [1, 2])
        return Outcome({"held_back": "held_back.json"}, {}, items=1)

    run(work, body)
    path = work.stage("train") / "held_back.json"
    whole = path.read_bytes()
    for left in (b"", whole[:-3], b"\xff" + whole):
        path.write_bytes(left)
        run(work, body)
        assert path.read_bytes() == whole


def test_a_cut_shard_of_a_finished_stage_is_made_again(work):
    features = shards.reply_features("image")

    def body(folder):
        made = shards.shards_left(folder, "a", [1, 1], range(2))
        for i in made:
            record = {"id": str(i), "image": images.encode_png(np.zeros((2, 2, 3), np.uint8))}
            shards.write_shard(folder, "a", features, [record], i, 2)
        shards.finish(folder, "a", features, [1, 1])
        return Outcome({"images": "."}, {"made": len(made)}, items=1)

    assert run(work, body).counts["made"] == run(work, body).counts["made"] == 2
    path = shards.shard_path(work.stage("train"), "a", 1, 2)
    whole = path.read_bytes()
    for left in (b"", whole[:-100]):
        path.write_bytes(left)
        assert run(work, body).counts["made"] == 1
        assert path.read_bytes() == whole
    path.unlink()
    assert run(work, body).counts["made"] == 1


@pytest.mark.parametrize("fail", [True, False])
def test_changed_config_is_refused_and_nothing_is_overwritten(work, fail):
    try:
        run(work, Body(fail=fail))
    except RuntimeError:
        pass
    before = {p: p.read_bytes() for p in pathlib.Path(work.root).rglob("*") if p.is_file()}
    body = Body()
    with pytest.raises(BadInput) as e:
        run(work, body, make(steps=200, rows=4))
    was = base.get_config().train
    for key, value in {"rows": 4, "steps": 200}.items():
        assert f"config train.{key}: was {was[key]}, is {value}" in str(e.value)
    assert "--allow_config_change" in str(e.value) and str(work.stage("train")) in str(e.value)
    assert body.calls == 0
    assert before == {p: p.read_bytes() for p in pathlib.Path(work.root).rglob("*") if p.is_file()}


def under_former_names(values, path=""):
    """Recorded config values as version 0.1 named them."""
    former = {new: old.split(".")[-1] for old, new in config_history.RENAMED.items()}
    return {
        former.get(path + key, key): (
            under_former_names(value, f"{path}{key}.") if isinstance(value, dict) else value
        )
        for key, value in values.items()
    }


@pytest.mark.parametrize("name", ["manifest.json", "started.json"])
def test_names_of_keys_that_changed_are_no_change_of_the_run(work, name, caplog):
    run(work, Body())
    folder = work.stage("train")
    if name == "started.json":
        (folder / "manifest.json").unlink()
    recorded = json.loads((folder / name).read_text())
    recorded["sections"] = under_former_names(recorded["sections"])
    recorded["sections"]["train"]["lanes"]["vit"] = 0
    assert "monitor" not in recorded["sections"]["train"]
    (folder / name).write_text(json.dumps(recorded))
    body = Body()
    run(work, body)
    assert body.calls == (name == "started.json")
    assert "train.probe.every is called train.monitor.every" in caplog.text


def under_former_inputs(work, former):
    """The manifest as version 0.1 wrote it, with other names of inputs."""
    path = work.stage("train") / "manifest.json"
    recorded = json.loads(path.read_text())
    inputs = {former.get(name, name): value for name, value in recorded["inputs"].items()}
    path.write_text(json.dumps({**recorded, "inputs": inputs}))


def test_an_input_under_its_former_name_is_no_change_of_the_run(work, caplog):
    inputs = {"monitor": "abc", "suite shapes": "def"}
    run(work, Body(), inputs=inputs)
    under_former_inputs(work, {"monitor": "probe", "suite shapes": "prompts"})
    body = Body()
    run(work, body, inputs=inputs)
    assert body.calls == 0
    assert 'the input "probe" is called "monitor"' in caplog.text
    assert 'the input "prompts" is called "suite shapes"' in caplog.text
    with pytest.raises(BadInput, match="input monitor: its content changed"):
        run(work, body, inputs={**inputs, "monitor": "def"})


def test_a_former_name_that_a_stage_still_has_is_its_own(work, caplog):
    run(work, Body(), inputs={"prompts": "abc"})
    body = Body()
    run(work, body, inputs={"prompts": "abc"})
    assert body.calls == 0 and "is called" not in caplog.text
    with pytest.raises(BadInput, match="input prompts: its content changed"):
        run(work, body, inputs={"prompts": "def"})


def test_a_key_that_a_record_lacks_is_as_it_always_was(work):
    """Version 0.1 had one suite and no key for it."""
    run(work, Body(), sections=("evaluate",))
    path = work.stage("train") / "manifest.json"
    recorded = json.loads(path.read_text())
    del recorded["sections"]["evaluate"]["suites"]
    path.write_text(json.dumps(recorded))
    c = base.get_config()
    c.evaluate.suites = ()
    with pytest.raises(BadInput, match="evaluate.suites: was .'shapes'., is "):
        run(work, Body(), config.load(c), sections=("evaluate",))
    body = Body()
    run(work, body, sections=("evaluate",))
    assert body.calls == 0


def test_changed_input_is_refused_and_other_sections_are_not(work):
    run(work, Body())
    with pytest.raises(BadInput, match="input score: its content changed"):
        run(work, Body(), inputs={"score": "def"})
    c = base.get_config()
    c.evaluate.count = 10
    body = Body()
    run(work, body, config.load(c))
    assert body.calls == 0


def test_allowed_change_goes_on_and_is_remembered(work):
    first = run(work, Body())
    allowing = Workdir(work.root, allow_config_change=True)
    second = run(allowing, Body(), make(steps=200))
    assert (work.stage("train") / "half.txt").read_text() == "xx"
    was = base.get_config().train.steps
    assert second.allowed_changes == (f"config train.steps: was {was}, is 200",)
    assert second.hash != first.hash
    body = Body()
    assert run(work, body, make(steps=200)) == second and body.calls == 0


def test_missing_and_damaged_manifests_are_named(work):
    with pytest.raises(FileNotFoundError, match="train/manifest.json: missing.*--stage train"):
        Manifest.read(work.stage("train"))
    run(work, Body())
    path = work.stage("train") / "manifest.json"
    values = read_json(path)
    write_json(path, {k: v for k, v in values.items() if k != "counts"})
    with pytest.raises(ValueError, match="manifest.json: counts is missing; .*--stage train"):
        Manifest.read(work.stage("train"))
    path.write_text("{")
    with pytest.raises(ValueError, match="manifest.json: not valid JSON.*; .*--stage train"):
        Manifest.read(work.stage("train"))


def test_hash_follows_config_and_inputs(work, tmp_path):
    hashes = {
        run(Workdir(tmp_path / str(i)), Body(), cfg, {"score": score}).hash
        for i, (cfg, score) in enumerate([(make(), "a"), (make(), "b"), (make(steps=2), "a")])
    }
    assert len(hashes) == 3
    assert run(Workdir(tmp_path / "again"), Body(), make(), {"score": "a"}).hash in hashes


def test_results_hold_run_and_stages_and_validate(work):
    run(work, Body())
    results = read_json(work.results)
    jsonschema.validate(results, SCHEMA)
    assert results["run"]["config"] == "configs/shapes.py" and results["run"]["seed"] == 0
    assert results["stages"]["train"]["items"] == 3


def measure(work, number, name, **parts):
    """A stage of a round whose body measures `parts`."""
    return run_stage(
        name,
        make(),
        dataclasses.replace(work, round=number),
        sections=("seed",),
        inputs={},
        body=lambda folder: Outcome({}, {}, items=1, results=parts),
    )


def measure_all(work):
    measure(work, 1, "train", train={"steps": 3})
    measure(work, 0, "train", train={"steps": 1, "monitor": [1]}, scores={"a": 1})
    measure(work, 1, "evaluate", qa={"base": 1}, scores={"b": 1})
    measure(work, 0, "evaluate", train={"monitor": [2]})


def test_rounds_are_kept_in_order_and_parts_of_one_name_become_one(work):
    measure_all(work)
    assert read_json(work.results)["rounds"] == [
        {"round": 0, "train": {"steps": 1, "monitor": [2]}, "scores": {"a": 1}},
        {"round": 1, "train": {"steps": 3}, "qa": {"base": 1}, "scores": {"b": 1}},
    ]


@pytest.mark.parametrize("left", [None, b"", b'{"schema": 1, "rou', b"[]", b"\0" * 40])
def test_damaged_results_are_made_again_and_nothing_is_measured_twice(work, left):
    measure_all(work)
    before = read_json(work.results)
    work.results.unlink()
    if left is not None:
        work.results.write_bytes(left)
    run_stage("train", make(), work, sections=("seed",), inputs={}, body=None)  # skipped
    assert read_json(work.results) == before


def test_results_of_stages_that_kept_none_stay(work):
    """As version 0.1 left them."""
    measure(work, 0, "train")
    results = read_json(work.results)
    path = work.stage("train") / "manifest.json"
    write_json(path, {k: v for k, v in read_json(path).items() if k != "results"})
    results["rounds"][0]["train"] = {"steps": 5}
    write_json(work.results, results)
    measure(work, 0, "evaluate", qa={"base": 1})
    assert read_json(work.results)["rounds"] == [
        {"round": 0, "train": {"steps": 5}, "qa": {"base": 1}}
    ]


def test_unmeasured_numbers_are_refused_and_old_results_stay(work):
    run(work, Body())
    before = work.results.read_text()
    with pytest.raises(ValueError):
        measure(work, 0, "evaluate", scores={"region_auc": float("nan")})
    assert work.results.read_text() == before


def test_results_of_another_schema_are_refused(work):
    write_json(work.results, {"schema": 2})
    with pytest.raises(ValueError, match='results.json: field "schema" is not 1'):
        run(work, Body())


ARM = {
    "n": 600,
    "correct": 201,
    "accuracy": 0.335,
    "ci95": [0.3, 0.37],
    "by_category": {"single": {"n": 100, "correct": 70}},
}
RUN = {
    "config": "configs/shapes.py",
    "config_hash": "0123456789abcdef",
    "seed": 0,
    "srum_jax": "0.1.0",
    "jax": "0.10.2",
    "python": "3.11",
    "device": "cpu x2",
}
EXAMPLE = {
    "schema": 1,
    "run": RUN,
    "rounds": [
        {
            "round": 0,
            "t2i": {
                "base": ARM,
                "trained": ARM,
                "paired": {
                    "n": 600,
                    "base_only": 76,
                    "trained_only": 118,
                    "diff": 0.07,
                    "ci95": [0.02, 0.12],
                },
                "best_of_k": {"k": 4, "self": ARM, "random": ARM, "oracle": ARM},
            },
            "qa": {"base": ARM, "trained": ARM},
            "scores": {
                "region_auc": 0.87,
                "region_n": 3800,
                "image_auc": 0.95,
                "image_n": 1600,
                "proposer": "components",
                "status": {"ok": 3700, "unparsed": 100},
            },
            "train": {
                "objective": "srum_advantage",
                "steps": 300,
                "loss_first": 0.5,
                "loss_last": 0.4,
                "skipped_steps": 0,
            },
        }
    ],
    "stages": {
        "generate": {
            "seconds": 10.0,
            "compile_seconds": 2.0,
            "items": 1600,
            "items_per_second": 160.0,
            "peak_rss_mb": 900.0,
        }
    },
}


def test_schema_takes_the_documented_example():
    jsonschema.validate(EXAMPLE, SCHEMA)


@pytest.mark.parametrize(
    "path, value",
    [
        ("schema", 2),
        ("run/config_hash", None),
        ("run/python", 3.11),
        ("rounds/0/t2i/base/accuracy", 33.5),
        ("rounds/0/t2i/base/correct", None),
        ("rounds/0/t2i/base/ci95", [0.3]),
        ("rounds/0/t2i/paired", "absent"),
        ("rounds/0/t2i/best_of_k/k", 1),
        ("rounds/0/scores/region_auc", None),
        ("rounds/0/scores/region_n", "absent"),
        ("rounds/0/train/loss_last", "absent"),
        ("stages/generate/peak_rss_mb", 0),
        ("stages", "absent"),
    ],
)
def test_schema_is_strict(path, value):
    results = copy.deepcopy(EXAMPLE)
    *parents, key = path.split("/")
    at = results
    for parent in parents:
        at = at[int(parent)] if isinstance(at, list) else at[parent]
    if value == "absent":
        del at[key]
    else:
        at[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(results, SCHEMA)


def test_a_stage_that_failed_before_it_made_anything_takes_a_corrected_config(work):
    def broken(folder):
        raise ValueError("sample.size is wrong")

    with pytest.raises(ValueError, match="sample.size"):
        run(work, broken)
    body = Body()
    run(work, body, make(steps=200))
    assert body.calls == 1
