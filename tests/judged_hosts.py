"""A run that evaluates and adjusts one training by its own score, POPE and a judge's server; for
tests of several hosts and of buckets.

`python tests/judged_hosts.py FOLDER AFTER ARGS…` is `tests/hosts.py` with the same arguments, in
which a judge is asked two questions a shard, so that every host asks some.
"""

import base64
import collections
import io
import json
import sys

import campaign
import hosts
import jsonschema
import judge_server
import numpy as np
import tiny
from PIL import Image
from stages import test_evaluate

from srum_jax.core import param_tree
from srum_jax.data import shards
from srum_jax.models.bagel import hf_folder
from srum_jax.stages import replies
from srum_jax.stages.manifest import Outcome, run_stage
from srum_jax.training import checkpoint
from srum_jax.worlds.shapes import benchmark_files

AT_ONCE = 2  # questions to a judge a shard
STAGES = ("train", "evaluate", "adjust", "export", "report")
PROMPTS = [f"a {color} circle" for color in ("red", "green", "blue", "yellow", "cyan", "white")]
TESTED, CHOSEN_BY = 4, 5  # prompts of `evaluate`, and of `adjust`
STEPS = {6: 0.5, 4: 4.0}  # that training left: how many times the contrast of the base
# Pictures that a judge is asked about: of the base and the trained model; of the base and four that
# are tried; of the chosen one.
JUDGED = 2 * TESTED + 5 * CHOSEN_BY + TESTED
SMALL = {
    "stages": STAGES,
    "sample__batch": 2,
    "generate__shard_size": 2,
    "score__proposers": ("grid",),
    "score__shard_size": 2,
    "score__external__model": "stand-in",
    "score__external__attempts": 1,
    "evaluate__batch": 2,
    "evaluate__judges": ("external",),
    "evaluate__count": TESTED,
    "evaluate__limit": 6,
    "adjust__count": CHOSEN_BY,
    "adjust__first": TESTED,
    "adjust__limit": 6,
    "adjust__target": "mark",
    "adjust__floors": ("own_score:-100", "pope:-100"),
    "adjust__shares": (0.5, 1.0),
    "export__dtype": "float32",
}


def values(folder, server, place=None):
    """Of the config; its data, questions of two splits among it, is written to `folder` and, where
    one is given, copied to `place`, from where it is then read."""
    prompts = "\n".join([*PROMPTS, *(f"{one} and a red square" for one in PROMPTS)])
    (folder / "prompts.txt").write_text(prompts)
    found, place = {}, place or folder
    for part, split in (("evaluate", "test"), ("adjust", "validation")):
        benchmark_files.write("pope", folder / split, split=split, count=12)
        found[f"{part}__suites"] = ("own_score", f"pope:{place / split}")
        found[f"{part}__prompts"] = str(place / "prompts.txt")
    if place != folder:
        for path in folder.rglob("*"):
            if path.is_file():
                (place / path.relative_to(folder)).write_bytes(path.read_bytes())
    return SMALL | found | {"score__external__url": server.url}


def write_model(folder):
    """tiny's, which reads benchmarks' questions in the words of the shapes world."""
    tiny.write_model(folder, answers=True)
    told = {hf_folder.GENERATION_KEY: {"language": "shapes"}}
    (folder / hf_folder.GENERATION_FILE).write_text(json.dumps(told))
    return folder


def trained(cfg, work):
    """The stage `train`, finished, with the leaves of its last step and, in a checkpoint, those of
    a better one."""

    def leaves(times):
        made, _ = param_tree.split(tiny.weights()[0], tiny.trainable("gen"))
        made["llm2vae"]["w"] *= times
        return made

    def body(folder):
        last, other = STEPS
        checkpoint.save_params(folder / "params", leaves(STEPS[last]))
        saved = checkpoint.Checkpoints(folder / "checkpoints", keep=1)
        saved.save(other, {"ema": leaves(STEPS[other]), "step": other}, {})
        saved.close()
        return Outcome({"params": "params"}, {"steps": last}, 1)

    run_stage("train", cfg, work, sections=(), inputs={}, body=body)


def assert_same_ends(one, other):
    """Two work folders bit for bit: what evaluating, choosing, exporting and the report left."""
    found = [campaign.handed_over(work.root / "round0") for work in (one, other)]
    assert not (other_files := found[0].keys() ^ found[1].keys()), sorted(other_files)
    for path, content in found[0].items():
        assert content == found[1][path], path
    folders = [path.removesuffix("features.json") for path in found[0] if "features.json" in path]
    assert len(folders) > 20
    for path in folders:
        pair = (list(shards.read(work.root / f"round0{path}")) for work in (one, other))
        hosts.assert_same(*pair, where=path)
    results = [json.loads(work.results.read_text())["rounds"] for work in (one, other)]
    assert results[0] == results[1]
    (entry,) = results[0]
    chosen = entry["adjust"]["chosen"]
    assert (chosen["step"], chosen["share"], entry["adjust"]["measured_as"]) == (4, 1.0, "adjusted")
    assert "/adjust/test/pope/trained/official/coco_pope_random_answers.jsonl" in found[0]
    marked = entry["suites"]["own_score"]["sections"]["mark-1"]["judge"]
    assert (marked["name"], marked["decoding"]["served"]) == ("stand-in", ["served"])
    assert entry["suites"]["own_score"]["drawing"]["seeds"] == [1000]
    jsonschema.validate(json.loads(one.results.read_text()), test_evaluate.SCHEMA)
    return entry


def pixels(body):
    """The picture of a request to a judge's server, uint8 [H,W,3]."""
    (url,) = (
        part["image_url"]["url"]
        for part in body["messages"][-1]["content"]
        if part["type"] == "image_url"
    )
    raw = base64.b64decode(url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))


class Judge(judge_server.Server):
    """A judge's server that likes no contrast.

    failures: so many of the next requests get no reply.
    """

    def __init__(self):
        super().__init__(self.behave)
        self.failures = 0

    def behave(self, handler, number):
        with handler.server.lock:
            fails, self.failures = self.failures > 0, max(0, self.failures - 1)
        if fails:
            handler.give({"error": {"message": "busy"}}, code=500)
            return
        mark = round(100 - float(pixels(handler.server.asked[number][2]).std()), 3)
        handler.give(judge_server.reply(json.dumps({"score": mark}), model="served"))

    def asked(self):
        """How often it was asked what."""
        return collections.Counter(json.dumps(body) for _, _, body in self.http.asked)


if __name__ == "__main__":
    replies.JUDGED_AT_ONCE = AT_ONCE
    hosts.main(*sys.argv[1:])
