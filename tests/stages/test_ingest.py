"""The stage: given pictures as candidates and scores that `train` reads like its own."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from etils import epath

from srum_jax.core import registry
from srum_jax.core.errors import BadInput
from srum_jax.data import images, masks, shards, srum_dataset
from srum_jax.data.srum_dataset import ImageSample
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation.image_sampler import candidate_seed
from srum_jax.models.bagel import vae
from srum_jax.stages import generate, ingest, selection, train, training_set
from srum_jax.stages.manifest import (
    PUBLISHED,
    Manifest,
    Outcome,
    Workdir,
    candidates_of,
    run_stage,
    training_data,
)
from srum_jax.training import metrics

PROMPTS = ("a red circle", "two blue squares", "a red circle", "a cyan triangle", "a blue cross")
SIZES = ((32, 32), (64, 32), (16, 16), (32, 64), (32, 32))  # H, W; the third will be doubled


def picture(seed, size):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write_source(folder):
    """Five samples, the fourth with a good picture of its own, and two lines that are none."""
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for i, (prompt, size) in enumerate(zip(PROMPTS, SIZES, strict=True)):
        (folder / "pictures" / f"{i}.png").write_bytes(images.encode_png(picture(i, size)))
        h, w = size
        entries = [
            {"object": "circle", "bbox": [0, 0, w // 2, h], "score": 0.9 - 0.2 * i},
            {"object": "lost", "bbox": None, "score": 0.5},
            {"object": "global_layout_reward", "score": 0.1 * i},
        ]
        lines.append(
            {
                "bad_image_file": f"{i}.png",
                "good_image_file": f"{i}.png",
                "prompt": prompt,
                "vlm_rewards": entries,
            }
        )
    (folder / "pictures" / "good.png").write_bytes(images.encode_png(picture(9, SIZES[3])))
    lines[3]["good_image_file"] = "good.png"
    lines.insert(1, {**lines[0], "bad_image_file": "gone.png"})
    lines.append({**lines[0], "prompt": "a red elephant"})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "model")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source") / "released")


def config(weights, source, **values):
    small = {
        "stages": ("ingest", "train"),
        "ingest__source": f"published:{source / 'data.jsonl'}",
        "ingest__images": str(source / "pictures"),
        "ingest__rejects": 2.0,
        "ingest__batch": 2,
        "ingest__shard_size": 2,
        "train__steps": 2,
        "train__rows": 2,
        "train__log_every": 1,
        "train__optim__warmup": 1,
        "train__lanes__und": 24,
        "train__lanes__gen": 64,
        "compute__remat": "none",
        "train__objective": "srum_release",
    }
    return tiny.load_config(weights, **(small | values))


def run(cfg, work, stage=ingest):
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        return stage.run(cfg, mesh, work)


@pytest.fixture(scope="module")
def done(weights, source, tmp_path_factory):
    work = Workdir(tmp_path_factory.mktemp("work"))
    manifest = run(config(weights, source), work)
    return work, manifest


def posterior(image):
    """Mean and deviation of the latent tokens of a picture as it is encoded, plainly."""
    _, coder = tiny.weights()
    mean, logvar = vae.encode_moments(coder, tiny.MODEL.vae, images.to_float(image)[None])
    h, w = (side // tiny.MODEL.token_pixels for side in image.shape[:2])
    p = tiny.MODEL.latent_patch

    def tokens(z):
        z = np.asarray(z[0]).reshape(h, p, w, p, -1)
        return z.transpose(0, 2, 1, 3, 4).reshape(h, w, -1)

    return tokens(mean), tokens(np.exp(0.5 * logvar))


# ------------------------------------------------------------------------------ what it leaves


def test_records_of_the_kinds_that_generate_and_score_write(done):
    work, manifest = done
    folder = work.stage("ingest")
    drawn, scored = shards.read(folder), shards.read(folder / manifest.outputs["scores"])
    # Shards of one size, by their last pictures; the third comes to the first's size.
    assert drawn.counts == scored.counts == (1, 2, 1, 1)
    assert (
        [r["id"] for r in drawn] == [r["id"] for r in scored] == ["1-0", "0-0", "0-1", "2-0", "3-0"]
    )
    assert [r["prompt"] for r in drawn][:3] == [PROMPTS[1], PROMPTS[0], PROMPTS[2]]
    assert [r["image"].shape[:2] for r in drawn] == [SIZES[i] for i in (1, 0, 4, 3, 4)]
    ordinary = set(shards.candidate_features(tiny.GRID))
    assert set(drawn.features) == ordinary | {"target"}
    assert set(scored.features) == set(shards.score_features())
    for record in drawn:
        assert record["seed"] == candidate_seed(0, record["prompt_id"], record["k"])
        mean, _ = posterior(record["image"])
        np.testing.assert_allclose(record["latent"], mean, atol=1e-4)
        if record["id"] != "2-0":
            np.testing.assert_array_equal(record["target"], record["latent"])
    good, _ = posterior(images.latent_image(picture(9, SIZES[3]), tiny.MODEL.layout))
    np.testing.assert_allclose(drawn[3]["target"], good, atol=1e-4)
    assert np.abs(drawn[3]["target"] - drawn[3]["latent"]).max() > 0.01


def test_scores_go_with_their_pictures(done):
    work, _ = done
    scored = {r["id"]: r for r in shards.read(work.stage("ingest") / "scores")}
    third = scored["0-1"]  # its picture was doubled, and its box with it
    box, lost = third["regions"]
    assert box["bbox"].tolist() == [0, 0, 16, 32] and box["label"] == "circle"
    assert box["score"] == np.float32(0.5) and third["image_score"] == np.float32(0.2)
    assert lost["status"] == ingest.NO_BOX and np.isnan(lost["score"])
    assert scored["1-0"]["regions"][0]["bbox"].tolist() == [0, 0, 16, 64]


def test_what_is_set_aside_and_counted(done, source):
    work, manifest = done
    assert manifest.counts == {
        "prompts": 4,
        "candidates": 5,
        "sizes": 3,
        "regions": 10,
        "regions ok": 5,
        "regions no box": 5,
        "rejected": 2,
    }
    rows = (work.stage("ingest") / "rejects.jsonl").read_text().splitlines()
    first, second = map(json.loads, rows)
    assert (first["line"], second["line"]) == (2, 7)
    assert "gone.png: no such picture file" in first["error"]
    assert "'elephant'" in second["error"] and first["file"].endswith("data.jsonl")
    held = json.loads((work.stage("ingest") / "held_back.json").read_text())
    assert [r["prompt"] for r in held] == [PROMPTS[i] for i in (0, 1, 3, 4)]


def test_boxes_and_pictures_are_moved_alike():
    rng = np.random.default_rng(0)
    sample = ImageSample("x", "y", picture(0, (64, 128)), picture(1, (64, 128)))
    regions = tuple(
        srum_dataset.ScoredBox((int(x), 3, int(x) + 9, 20), 0.0, "")
        for x in rng.integers(0, 100, 5)
    )
    fitted = ingest.fitted(dataclasses.replace(sample, regions=regions), tiny.MODEL.layout)
    assert fitted.image.shape == fitted.target.shape == (32, 64, 3)
    for before, after in zip(regions, fitted.regions, strict=True):
        (there,) = masks.resize_boxes(np.array([before.bbox]), (64, 128), (32, 64))
        assert after.bbox == tuple(there)
    with pytest.raises(ValueError, match="comes to 32x32 pixels, .* to 64x32"):
        ingest.fitted(dataclasses.replace(sample, target=picture(1, (32, 32))), tiny.MODEL.layout)


# ---------------------------------------------------------------------------- going on, refusing


def test_a_killed_stage_goes_on_to_the_same_records(done, weights, source, tmp_path, monkeypatch):
    whole, _ = done
    cfg, work = config(weights, source), Workdir(tmp_path)
    tiny.killed_at_shard(monkeypatch, 3, lambda: run(cfg, work))
    monkeypatch.setattr(ingest, "make_plan", None)  # what was read and checked is not read again
    made = []
    encode = ingest.candidates
    monkeypatch.setattr(
        ingest, "candidates", lambda *args, **how: made.append(args) or encode(*args, **how)
    )
    assert run(cfg, work).counts["candidates"] == 5
    assert len(made) == 2
    for part in ("ingest", "ingest/scores"):
        pairs = zip(shards.read(work.stage(part)), shards.read(whole.stage(part)), strict=True)
        for a, b in pairs:
            np.testing.assert_equal(a, b)
    assert run(cfg, work) == Manifest.read(work.stage("ingest"))  # finished: skipped


def test_a_half_done_plan_under_its_former_name_is_gone_on_from(tmp_path, caplog):
    sample = {"place": 2, "prompt_id": 0, "k": 1, "height": 32, "width": 48}
    plan = {"units": [[sample]], "prompts": ["a red circle"], "targets": False, "rejects": []}
    (tmp_path / "plan.json").write_text(json.dumps({"key": "abc", "plan": plan}))
    found = ingest.planned(None, epath.Path(tmp_path), "abc", None, None, None)
    assert found.shards == ((ingest.PlannedSample(2, 0, 1, 32, 48),),)
    assert 'plan.json: "units" is called "shards"' in caplog.text


@pytest.mark.parametrize("left", ["", '{"key": "abc", "pl', "[]", '{"key": "abc", "plan": {}}'])
def test_a_damaged_plan_is_made_again_with_its_shards(tmp_path, monkeypatch, left):
    plan = ingest.IngestPlan(((ingest.PlannedSample(2, 0, 1, 32, 48),),), ("a",), False, ())
    monkeypatch.setattr(ingest, "make_plan", lambda *args: plan)
    (tmp_path / "plan.json").write_text(left)
    (tmp_path / "c-train.array_record-00000-of-00001").write_text("of whatever plan it was")
    for _ in range(2):
        assert ingest.planned(None, epath.Path(tmp_path), "abc", None, None, None) == plan
        assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
        monkeypatch.setattr(ingest, "make_plan", None)


def test_a_source_that_changed_is_another_run(weights, tmp_path):
    source, work = write_source(tmp_path / "released"), Workdir(tmp_path / "work")
    cfg = config(weights, source)
    run(cfg, work)
    (source / "pictures" / "0.png").write_bytes(images.encode_png(picture(77, (64, 32))))
    with pytest.raises(BadInput, match="input source: its content changed"):
        run(cfg, work)
    # Going on regardless makes a new plan, and leaves no shard of the old one.
    allowed = dataclasses.replace(work, allow_config_change=True)
    assert run(cfg, allowed).counts["sizes"] == 3
    drawn = shards.read(work.stage("ingest"))
    assert drawn.counts == (2, 1, 2)
    changed = next(r for r in drawn if r["id"] == "0-0")
    np.testing.assert_array_equal(changed["image"], picture(77, (64, 32)))


def test_too_many_faults_stop_it_before_anything_is_written(weights, source, tmp_path):
    work = Workdir(tmp_path)
    with pytest.raises(ValueError, match=r"\(2 of 7, more than the limit of 1 allows\):\n.*line 2"):
        run(config(weights, source, ingest__rejects=1.0), work)
    with pytest.raises(ValueError, match="cannot be used:\n.*line 2: .*\n.*line 7: "):
        run(config(weights, source, ingest__rejects=0.0), work)
    assert [p.name for p in work.stage("ingest").iterdir()] == ["started.json"]
    assert run(config(weights, source, ingest__rejects=0.3), work).counts["candidates"] == 5


@pytest.mark.parametrize(
    "values, message",
    [
        ({"ingest__source": "x.jsonl"}, 'must be "published:FILE.jsonl" or "parquet:GLOB"'),
        ({"ingest__source": "parquet:"}, "must be"),
        ({"stages": ("ingest", "generate", "train")}, "names ingest and generate"),
        ({"rounds": 2}, "the same data every round"),
        ({"ingest__source": "parquet:x"}, "ingest.images = .* are inside it"),
        ({"ingest__source": "parquet:x", "ingest__images": ""}, "come without scores"),
        ({"ingest__latents": "median"}, "ingest.latents = 'median'"),
        ({"ingest__rejects": -1.0}, "ingest.rejects must not be negative"),
    ],
)
def test_configs_that_do_not_hold_together(weights, source, values, message):
    with pytest.raises(BadInput, match=message):
        config(weights, source, **values)


def test_kinds_of_prompt_lists_that_a_config_may_name(weights):
    for value in (
        "mine.csv",
        "gs://bucket/mine.jsonl",
        "tfds:coco_captions?split=val&text=captions",
    ):
        assert tiny.load_config(weights, generate__prompts=value).generate.prompts == value
    for value in ("mine.tsv", "tdfs:coco?split=val&text=x"):
        with pytest.raises(BadInput, match="generate.prompts = "):
            tiny.load_config(weights, generate__prompts=value)


# ------------------------------------------------------------------------------------ the latents


def test_sampled_latents_are_one_draw_each_by_the_seed(done, weights, source, tmp_path):
    plain = {r["id"]: r for r in shards.read(done[0].stage("ingest"))}
    made = {}
    for unit in (2, 3):
        cfg = config(weights, source, ingest__latents="sampled", ingest__shard_size=unit)
        work = Workdir(tmp_path / str(unit))
        run(cfg, work)
        made[unit] = {r["id"]: r for r in shards.read(work.stage("ingest"))}
    for name, record in made[2].items():
        np.testing.assert_allclose(record["latent"], made[3][name]["latent"], atol=1e-4)
        _, std = posterior(record["image"])
        noise = (record["latent"] - plain[name]["latent"]) / std
        assert 0.6 < noise.std() < 1.4
    drawn = made[2]
    first, second = ((drawn[n]["latent"] - plain[n]["latent"]).ravel()[:8] for n in ("0-0", "0-1"))
    assert np.abs(first - second).max() > 1e-3
    same = drawn["0-0"]
    np.testing.assert_allclose(same["target"], same["latent"])  # one picture, one draw


@pytest.mark.slow
def test_resampled_latents_are_drawn_anew_at_each_use(weights, source, tmp_path, monkeypatch):
    cfg, work = config(weights, source, ingest__latents="resample"), Workdir(tmp_path)
    run(cfg, work)
    data = training_data(cfg, work)
    stored = training_set.StoredArrays(
        shards.read(data.candidates), shards.read(data.scores), PUBLISHED
    )
    found, _ = selection.candidates(stored.drawn.summaries(), stored.scored, PUBLISHED)
    c = stored.latents(next(c for c in found if c.id == "2-0"))
    mean, std = posterior(images.latent_image(picture(3, SIZES[3]), tiny.MODEL.layout))
    np.testing.assert_allclose(c.latent, mean, atol=1e-4)
    np.testing.assert_allclose(c.latent_std, std, rtol=1e-3)
    draws = [c.resampled(0, place) for place in range(400)]
    np.testing.assert_array_equal(c.resampled(0, 3).latent, draws[3].latent)
    assert np.abs(c.resampled(1, 3).latent - draws[3].latent).max() > 1e-3
    noise = np.stack([(d.latent - c.latent) / c.latent_std for d in draws])
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    other = np.stack([(d.target - c.target) / c.target_std for d in draws])
    assert abs(other.std() - 1) < 0.02 and abs((noise * other).mean()) < 0.02
    places, resampled = [], training_set.Latents.resampled
    monkeypatch.setattr(
        training_set.Latents,
        "resampled",
        lambda latents, seed, at: places.append(at) or resampled(latents, seed, at),
    )
    assert run(cfg, work, train).counts["steps"] == 2
    assert len(set(places)) == len(places) >= 4  # no use of a picture has another's draw


# -------------------------------------------------------------------------------------- training


@pytest.mark.slow
def test_train_reads_what_it_left(done, weights, source):
    work, manifest = done
    cfg = config(weights, source)
    data = training_data(cfg, work)
    assert data.candidates == work.stage("ingest") and data.inputs == {"candidates": manifest.hash}
    drawn = shards.read(data.candidates)
    found, left_out = selection.candidates(
        drawn.summaries(), shards.read(data.scores), data.proposer
    )
    assert left_out == 0 and len(found) == 5
    assert {len(c.scores) for c in found} == {1}  # the reward without a box is no region
    made = run(cfg, work, train)
    assert made.inputs["candidates"] == manifest.hash and "scores" not in made.inputs
    rows = metrics.read(work.stage("train") / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 2 and np.isfinite(losses).all()


def test_captions_alone_train_without_scores(weights, tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [
        {"image": images.encode_png(picture(i, (32, 32))), "captions": json.dumps([prompt])}
        for i, prompt in enumerate(dict.fromkeys(PROMPTS))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    plain = {
        "ingest__source": f"parquet:{tmp_path / '*.parquet'}",
        "ingest__images": "",
        "ingest__rejects": 0.0,
        "train__objective": "sft",
        "train__select": "all",
    }
    cfg, work = config(weights, tmp_path, **plain), Workdir(tmp_path / "work")
    manifest = run(cfg, work)
    assert "scores" not in manifest.outputs and manifest.counts["candidates"] == 4
    assert training_data(cfg, work).scores is None
    chosen = []

    def trained(cfg, mesh, work, folder, found, stored, counts, watched):
        assert not stored.targets and stored.scored is None
        chosen.extend(found)
        return Outcome({}, counts, 1)

    monkeypatch.setattr(train, "train", trained)
    assert run(cfg, work, train).counts["unscored"] == 0
    assert [c.prompt for c in chosen] == list(dict.fromkeys(PROMPTS))
    assert {(c.image_score, len(c.scores)) for c in chosen} == {(0.0, 0)}
    # The stage `score` judges them where the run has it.
    judged = config(weights, tmp_path, **plain, stages=("ingest", "score", "train"))
    with pytest.raises(FileNotFoundError, match="--stage score"):
        training_data(judged, work)
    assert candidates_of(judged, work) == work.stage("ingest")
    run_stage("score", judged, work, sections=(), inputs={}, body=lambda _: Outcome({}, {}, 1))
    data = training_data(judged, work)
    assert data.scores == work.stage("score") and data.proposer == judged.score.proposers[0]
    assert data.inputs["scores"] == Manifest.read(work.stage("score")).hash


def test_what_is_written_as_published_comes_back(done, weights, tmp_path):
    work, _ = done
    drawn, scored = shards.read(work.stage("ingest")), shards.read(work.stage("ingest") / "scores")
    srum_dataset.write(tmp_path / "out", drawn, scored, PUBLISHED)
    cfg = config(
        weights,
        tmp_path,
        ingest__source=f"published:{tmp_path / 'out' / srum_dataset.LINES}",
        ingest__images=str(tmp_path / "out" / srum_dataset.PICTURES),
        ingest__rejects=0.0,
    )
    again = Workdir(tmp_path / "work")
    run(cfg, again)
    prompts = {r["id"]: r["prompt"] for r in drawn}
    pairs = zip(scored, shards.read(again.stage("ingest") / "scores"), strict=True)
    for (old, new), image in zip(pairs, shards.read(again.stage("ingest")), strict=True):
        assert prompts[old["id"]] == image["prompt"]
        assert old["image_score"] == new["image_score"]
        kept = [r for r in old["regions"] if r["status"] == "ok"]
        np.testing.assert_equal(kept, new["regions"])
    np.testing.assert_array_equal(drawn[1]["image"], shards.read(again.stage("ingest"))[1]["image"])


def test_leaks_are_found_in_the_words_that_the_model_reads(source, tmp_path):
    theirs = tmp_path / "theirs.txt"
    theirs.write_text("A red circle, and a blue square.\nThere is a green cross.\n")
    cfg = config("", source, stages=("ingest", "evaluate"), evaluate__prompts=str(theirs))
    prompts = ("a red circle and a blue square", "a cyan triangle")
    plan = ingest.IngestPlan((), prompts, targets=False, rejects=())
    tokenizer = Tokenizer.from_folder(registry.base_folder("shapes"))
    (leak,) = ingest.write_beside(plan, tmp_path, cfg, tokenizer, "shapes")
    assert leak["prompt"] == prompts[0] and leak["evaluated"].endswith("theirs.txt, line 1")
    assert ingest.write_beside(plan, tmp_path, cfg, tokenizer, "") == []


# ------------------------------------------------------------------- what generate says of prompts


def test_generate_sets_faulty_lines_aside_and_finds_leaks(weights, tmp_path, monkeypatch, caplog):
    class Blank:
        def stream_prompts(self, several, *, params=None):
            for prompts, _ in several:
                images = np.zeros((len(prompts), 32, 32, 3), np.uint8)
                yield images, np.zeros((len(prompts), *tiny.GRID), np.float32)

    monkeypatch.setattr(generate.loading.LoadedModel, "image_sampler", lambda *_: Blank())
    mine, theirs = tmp_path / "mine.jsonl", tmp_path / "theirs.txt"
    mine.write_text('"a red circle"\n{\n"a red circle"\n"a blue cross"\n')
    theirs.write_text("two red circles\nA blue cross.\n")
    values = {"generate__prompts": str(mine), "generate__rejects": 0.25, "generate__candidates": 2}
    cfg = tiny.load_config(weights, evaluate__prompts=str(theirs), **values)
    work = Workdir(tmp_path / "work")
    with caplog.at_level("WARNING", logger="absl"):
        manifest = run(cfg, work, generate)
    assert manifest.counts == {
        "prompts": 2,
        "candidates": 4,
        "rejected": 1,
        "also evaluated on": 1,
        "repeated": 1,
    }
    assert "1 of 2 prompts to train on are also in evaluate.prompts" in caplog.text
    (leak,) = json.loads((work.stage("generate") / "leaks.json").read_text())
    assert leak["prompt"] == "a blue cross" and leak["evaluated"].endswith("theirs.txt, line 2")
    (line,) = (work.stage("generate") / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["line"] == 2
    theirs.unlink()
    assert generate.leaks(cfg, ()) == []
    cfg = tiny.load_config(weights, **(values | {"generate__rejects": 0.0}))
    with pytest.raises(ValueError, match="mine.jsonl, line 2: not JSON"):
        run(cfg, Workdir(tmp_path / "other"), generate)
