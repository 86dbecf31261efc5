"""The stage: records as promised, going on after a kill, faults found before anything is made."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
import slow_device
import tiny
from PIL import Image
from slow_device import SlowDevice

from srum_jax.core import in_flight
from srum_jax.data import shards
from srum_jax.data.prompts import Prompt
from srum_jax.generation import image_sampler
from srum_jax.generation.image_codec import ImageDecoder
from srum_jax.stages import draw_and_judge, generate, loading, rollout
from srum_jax.stages.manifest import Workdir


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "model")


UNIT = generate.seeded


def run(cfg, work):
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        return generate.run(cfg, mesh, work)


@pytest.fixture(scope="module")
def done(weights, tmp_path_factory):
    work = Workdir(tmp_path_factory.mktemp("work"))
    jax.clear_caches()  # programs of tests before: what is compiled here is counted
    manifest = run(tiny.load_config(weights), work)
    return work, manifest, shards.read(work.stage("generate"))


def test_one_record_a_candidate(done, weights):
    work, manifest, records = done
    assert manifest.counts == {"prompts": 5, "candidates": 10}
    assert manifest.timing["items"] == 10 and manifest.timing["compile_seconds"] > 0
    assert records.counts == (4, 4, 2)
    assert [r["id"] for r in records] == [f"{p}-{k}" for p in range(5) for k in range(2)]
    for record in records:
        assert record["image"].shape == (32, 32, 3) and record["image"].dtype == np.uint8
        assert record["latent"].shape == tiny.GRID and record["latent"].dtype == np.float32
        assert record["seed"] == image_sampler.candidate_seed(0, record["prompt_id"], record["k"])
        assert record["prompt"] and record["category"]
    assert len({r["latent"].tobytes() for r in records}) == 10
    held = json.loads((work.stage("generate") / manifest.outputs["held_back"]).read_text())
    assert [r["id"] for r in held] == list(range(5, 5 + rollout.HELD_BACK))
    assert not {r["prompt"] for r in held} & {r["prompt"] for r in records}
    assert run(tiny.load_config(weights), work) == manifest  # finished: nothing is done again


def test_the_picture_is_the_latents_decoded(done):
    _, _, records = done
    _, coder = tiny.weights()
    show = ImageDecoder(coder, tiny.MODEL).decode
    shown = show([record["latent"] for record in records[:2]])
    for record, picture in zip(records, shown, strict=False):
        assert np.abs(picture.astype(int) - record["image"]).max() <= 1


def test_a_killed_stage_goes_on_to_the_same_records(done, weights, tmp_path, monkeypatch):
    _, _, whole = done
    cfg, work = tiny.load_config(weights), Workdir(tmp_path)
    tiny.killed_at_shard(monkeypatch, 2, lambda: run(cfg, work))
    drawn = []
    monkeypatch.setattr(generate, "seeded", lambda *args: drawn.append(args) or UNIT(*args))
    assert run(cfg, work).counts["candidates"] == 10
    assert len(drawn) == 2
    for a, b in zip(shards.read(work.stage("generate")), whole, strict=True):
        assert a["id"] == b["id"] and a["seed"] == b["seed"]
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["latent"], b["latent"])


def test_another_round_draws_other_prompts_from_other_noise(done, weights, tmp_path, monkeypatch):
    _, _, whole = done
    monkeypatch.setattr(loading, "source", lambda cfg, work: loading.hf.locate(weights))
    work = Workdir(tmp_path, round=1)
    path = tmp_path / "mine.txt"
    path.write_text("a red circle\na blue circle\na green circle\n")
    cfg = tiny.load_config(
        weights,
        generate__count=2,
        generate__prompts=str(path),
        generate__order="file",
        generate__guidance=(2.5, 1.0),
    )
    seen = {}

    class Blank:
        def stream_prompts(self, several, *, params=None):
            for prompts, _ in several:
                images = np.zeros((len(prompts), 32, 32, 3), np.uint8)
                yield images, np.zeros((len(prompts), *tiny.GRID), np.float32)

    def blank(self, cfg, mesh):
        seen["sample"] = cfg.sample
        return Blank()

    monkeypatch.setattr(loading.LoadedModel, "image_sampler", blank)
    run(cfg, work)
    drawn = shards.read(work.stage("generate"))
    # The prompts that follow those of the round before, and around the end the first ones again.
    assert [r["id"] for r in drawn] == ["2-0", "2-1", "0-0", "0-1"]
    assert drawn[2]["seed"] == image_sampler.candidate_seed(1, 0, 0) != whole[0]["seed"]
    assert seen["sample"] == dataclasses.replace(cfg.sample, guidance=1.0)


def test_every_round_has_its_guidance(weights):
    def scales(given):
        cfg = tiny.load_config(weights, generate__guidance=given)
        rounds = (Workdir("nowhere", round=number) for number in range(4))
        return [generate.guided(cfg, one).sample.guidance for one in rounds]

    assert scales(()) == [2.5] * 4
    assert scales((3, 2.0)) == [3.0, 2.0, 2.0, 2.0]


def test_faults_are_found_before_anything_is_written(weights, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a red circle\na red elephant\n")
    work = Workdir(tmp_path / "work")
    with pytest.raises(ValueError, match="mine.txt, line 2: .*'a red elephant'.*'elephant'"):
        run(tiny.load_config(weights, generate__prompts=str(path)), work)
    with pytest.raises(FileNotFoundError, match="llm_config.json: missing"):
        run(tiny.load_config(tmp_path / "nothing"), work)
    assert not work.root.exists()
    path.write_text("a red circle\na blue cross\n")
    manifest = run(tiny.load_config(weights, generate__prompts=str(path)), work)
    assert manifest.counts["prompts"] == 2


def test_other_weights_are_another_run(weights, tmp_path):
    work, cfg = Workdir(tmp_path / "work"), tiny.load_config(weights, generate__count=1)
    run(cfg, work)
    other = tiny.write_model(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="input model: its content changed"):
        run(tiny.load_config(other, generate__count=1), work)
    same = tiny.write_model(tmp_path / "same")
    assert run(tiny.load_config(same, generate__count=1), work).counts["prompts"] == 1


def test_a_picture_is_stored_as_png(done):
    work, _, _ = done
    data = b"".join(p.read_bytes() for p in sorted(work.stage("generate").glob("*-00000-of-*")))
    start = data.index(b"\x89PNG")
    assert Image.open(io.BytesIO(data[start:])).size == (32, 32)


@dataclasses.dataclass
class SlowSampler:
    """Pictures from a stand-in device, shard by shard."""

    device: SlowDevice

    def stream_prompts(self, several, *, params=None):
        for count, images in in_flight.fetched(self._sent(several)):
            yield images, np.zeros((count, *tiny.GRID), np.float32)

    def _sent(self, several):
        for number, (prompts, _) in enumerate(several):
            images = np.full((len(prompts), 32, 32, 3), number, np.uint8)
            yield len(prompts), self.device.call(number, images)


def test_pictures_are_encoded_while_the_next_ones_are_on_the_device(tmp_path, monkeypatch):
    """Shard n ends on the device once n-1 is encoded, which waits until n has begun there."""
    device, encode, beside = SlowDevice(), draw_and_judge.encoded, []

    def encoded(record):
        number = int(record["image"][0, 0, 0])
        if number < 3:
            beside.append(device.begun[number + 1].wait(slow_device.PATIENCE))
            device.gates[number + 1].set()
        return encode(record)

    monkeypatch.setattr(draw_and_judge, "encoded", encoded)
    device.gates[0].set()
    jobs = [(Prompt(i, f"prompt {i}", "none", ""), 0) for i in range(8)]
    features = shards.candidate_features(tiny.GRID)
    how = dict(features=features, shard_size=2, seed=0, title="generate")
    generate.draw(jobs, tmp_path, SlowSampler(device), **how)
    found = shards.read(tmp_path)
    assert [int(r["image"][0, 0, 0]) for r in found] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [r["id"] for r in found] == [f"{i}-0" for i in range(8)]
    assert beside == [True] * 6 and not device.late
