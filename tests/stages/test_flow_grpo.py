"""FlowGRPO through the stages: what is drawn by noise is stored, and trained on."""

import jax
import numpy as np
import pytest
import tiny

from srum_jax import disk
from srum_jax.core.errors import BadInput
from srum_jax.data import shards
from srum_jax.objectives import srum
from srum_jax.rewards import judge
from srum_jax.stages import export, generate, train, training_set, trajectories
from srum_jax.stages.manifest import Outcome, Workdir, run_stage
from srum_jax.training import metrics

STEPS, NOISY = 3, 2
VALUES = dict(
    generate__count=4,
    generate__candidates=2,
    generate__steps=STEPS,
    generate__stochastic_steps=NOISY,
    generate__guidance=(1.0,),
    sample__steps=6,
    train__objective="flow_grpo",
    train__rewards="image",
    train__clip=1e-3,
    train__anchor=0.1,
    train__text_dropout=0.0,
    train__steps=4,
    train__rows=2,
    train__log_every=1,
    train__optim__learning_rate=1e-2,
    train__optim__warmup=0,
    train__lanes__und=44,
    train__carry=True,
    train__anchor_to="first",
    compute__remat="none",
    rounds=2,
    stages=("generate", "score", "train", "export"),
)


def scored(cfg, work):
    """Scores as the stage `score` leaves them: the brighter candidate is the better one."""
    drawn = shards.read(work.stage("generate"))
    rows = [
        {
            **{name: record[name] for name in ("id", "prompt_id", "k")},
            "regions": [],
            "image_score": np.float32(record["image"].mean() / 128 - 1),
            "image_status": judge.OK,
        }
        for record in drawn
    ]

    def body(folder):
        features = shards.score_features()
        shards.write_shard(folder, "scores", features, rows, 0, 1)
        shards.finish(folder, "scores", features, [len(rows)])
        return Outcome({}, {}, 1)

    run_stage("score", cfg, work, sections=(), inputs={}, body=body)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(config, work folder) of two rounds."""
    folder = tmp_path_factory.mktemp("grpo")
    cfg = tiny.load_config(tiny.write_model(folder / "model"), **VALUES)
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        for number in range(cfg.rounds):
            work = Workdir(folder / "work", round=number)
            generate.run(cfg, mesh, work)
            scored(cfg, work)
            train.run(cfg, mesh, work)
            export.run(cfg, mesh, work)
    return cfg, folder / "work"


def test_records_hold_the_steps(done):
    cfg, root = done
    records = list(shards.read(Workdir(root).stage("generate")))
    assert len(records) == 8
    for record in records:
        assert record["trajectory"].shape == (NOISY + 1, *tiny.GRID)
        assert {len(record[name]) for name in ("log_probs", "deviations")} == {NOISY}
        assert record["times"][0] == 1 and len(record["times"]) == NOISY + 1
    latents = 1 + len(records[0]["trajectory"])
    assert disk.candidate_latents(cfg.generate) == latents
    assert set(trajectories.shapes(cfg.generate, tiny.GRID)) == set(trajectories.FIELDS)


@pytest.mark.parametrize("number", [0, 1])
def test_the_model_that_drew_gives_its_steps_the_probability_they_had(done, number):
    """One program draws, behind caches, and another trains, on packed rows: the ratio is 1. In the
    second round the averaged model drew and the one before averaging goes on, so it is near 1."""
    _, root = done
    work = Workdir(root, round=number)
    rows = metrics.read(work.stage("train") / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(np.isfinite(row["loss"]) for row in rows)
    first = rows[0]
    if number == 0:
        assert first["ratio"] == pytest.approx(1, abs=1e-4)
        assert first["clip_fraction"] == 0 == first["drift"]
    else:
        assert first["ratio"] != 1 and first["drift"] > 0
    assert rows[-1]["drift"] > 0 and first["advantage_size"] > 0
    assert np.ptp([row["ratio"] for row in rows]) > 1e-4  # it has learned


def test_a_row_has_a_step_that_is_chosen_by_its_number():
    rng = np.random.default_rng(0)
    latents = training_set.Latents(
        latent=np.zeros(tiny.GRID, np.float32),
        trajectory=rng.normal(size=(4, *tiny.GRID)).astype(np.float32),
        log_probs=np.array([1.0, 2.0, 3.0], np.float32),
        times=np.array([1.0, 0.9, 0.7, 0.4], np.float32),
        deviations=np.array([0.7, 0.5, 0.3], np.float32),
    )
    found = [latents.resampled(0, use) for use in range(60)]
    steps = [int(one.transition.log_prob) - 1 for one in found]
    assert [int(latents.resampled(0, use).transition.log_prob) - 1 for use in range(60)] == steps
    assert min(np.bincount(steps, minlength=3)) > 10
    for one, step in zip(found, steps, strict=True):
        np.testing.assert_array_equal(one.latent, latents.trajectory[step])
        np.testing.assert_array_equal(one.transition.after, latents.trajectory[step + 1])
        assert one.transition.times == tuple(map(float, latents.times[step : step + 2]))
        assert one.transition.deviation == latents.deviations[step]


@pytest.mark.parametrize(
    "values,said",
    [
        ({"generate__stochastic_steps": 0}, "set both or none"),
        ({"train__objective": "nft"}, "set both or none"),
        ({"generate__stochastic_steps": 7}, "more than the 3 steps"),
        ({"generate__guidance": ()}, "generate.guidance must be"),
        ({"generate__guidance": (1.0, 2.0)}, "generate.guidance must be"),
        ({"sample__image_guidance": 2.0}, "image_guidance must be 1.0"),
        ({"generate__think": True}, "think must be off"),
        ({"train__text_dropout": 0.1}, "text_dropout must be 0.0"),
        ({"train__rewards": "both"}, 'must be "image"'),
        ({"train__replay": 0.5}, "edits have no steps"),
        ({"train__candidates": 1}, "2 or more, which are compared"),
    ],
)
def test_what_contradicts_is_refused(values, said):
    with pytest.raises(BadInput, match=said):
        tiny.load_config("", **(VALUES | values))


def test_it_reads_advantages_and_no_region():
    cfg = tiny.load_config("", **VALUES)
    assert "flow_grpo" in srum.BY_ADVANTAGE and srum.STEPWISE == ("flow_grpo",)
    assert train.training_examples.reads_regions(cfg.train) is False
