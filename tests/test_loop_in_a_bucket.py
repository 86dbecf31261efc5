"""The whole loop of a tiny model in a bucket, its process gone in every stage, in small.

In full, with real processes, `test_campaign.py` does it.
"""

import campaign
import jax
import orbax.checkpoint as ocp
import pytest
import test_hosts
import tiny

from srum_jax import running
from srum_jax.core import files
from srum_jax.stages.manifest import Workdir

SMALL = test_hosts.QUICK | {
    "generate__prompts": "shapes:train",
    "evaluate__count": 5,
    "evaluate__best_of_prompts": 1,
    "evaluate__questions": 0,
    "evaluate__multi_image_questions": 0,
    "evaluate__captions": 0,
    "evaluate__edits": 0,
    "train__checkpoint_every": 2,
}
ENDS = {  # by stage: what is being written as its process goes
    "generate": "generate/candidates-train.array_record-00001",
    "score": "score/scores-train.array_record-00001",
    "train": "train/checkpoints/4",
    "evaluate": "evaluate/shapes/trained/images/candidates-train.array_record-00001",
    "export": "export/model/ae.safetensors",
    "report": "report.html",
}


class Killed(BaseException):
    """Nothing catches it."""


def run(cfg, work):
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        for stage in campaign.STAGES:
            running.stage_module(cfg.model, stage).run(cfg, mesh, work)


def killed(monkeypatch, where, command):
    """Gives the command, which is gone as it writes `where`: from then on it writes nothing."""
    write, save, gone = files.write_bytes, ocp.CheckpointManager.save, []

    def reach(path):
        if gone or where in str(path):
            gone.append(path)
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", lambda path, data: reach(path) or write(path, data))
        patch.setattr(
            ocp.CheckpointManager,
            "save",
            lambda kept, step, **how: reach(kept.directory / str(step)) or save(kept, step, **how),
        )
        with pytest.raises(Killed):
            command()


def test_killed_in_every_stage_it_ends_as_if_undisturbed_on_a_disk(bucket, tmp_path, monkeypatch):
    weights = tiny.write_model(tmp_path / "model", answers=True)
    cfg, whole, work = tiny.load_config(weights, **SMALL), Workdir(tmp_path), Workdir(bucket)
    run(cfg, whole)
    left, before = campaign.Run([], bucket), {}
    for stage in campaign.STAGES:
        killed(monkeypatch, ENDS[stage], lambda: run(cfg, work))
        assert not (work.stage(stage) / "manifest.json").exists()
        assert campaign.made_again(before, found := left.whole()) == 0
        before = found
    run(cfg, work)
    assert campaign.made_again(before, left.whole()) == 0
    campaign.assert_same_ends(whole.root, bucket)
