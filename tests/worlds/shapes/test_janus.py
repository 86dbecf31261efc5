"""The small Janus of the world: its folder, the rows it learns from, the stages that make it."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from srum_jax import api
from srum_jax.core import param_tree, registry
from srum_jax.core.loss import means, total
from srum_jax.generation import families, janus
from srum_jax.generation.janus.answer_scorer import AnswerScorer
from srum_jax.models.janus import model, vq
from srum_jax.models.janus.model_config import LlamaConfig, VQConfig
from srum_jax.objectives.autoregressive import JointLoss, JointRows
from srum_jax.stages.manifest import Workdir
from srum_jax.training import metrics
from srum_jax.worlds.shapes import autoencoder as autoencoder_stage
from srum_jax.worlds.shapes import language, questions
from srum_jax.worlds.shapes.janus import autoencoder, base_files, pretrain, rows

BASE = registry.base_folder("shapes_janus")


@pytest.fixture(scope="module")
def described():
    return janus.describe(BASE)


@pytest.fixture(scope="module")
def maker(described):
    return rows.Maker(*described, seed=3)


@pytest.fixture(scope="module")
def params(described):
    return param_tree.init(model.specs(described[0]), jax.random.key(0))


# -------------------------------------------------------------------------------- its folder


def test_the_files_that_ship_are_those_that_are_written(tmp_path):
    base_files.write(tmp_path)
    for made in tmp_path.iterdir():
        assert json.loads(made.read_text()) == json.loads((BASE / made.name).read_text())


def test_it_is_a_janus_of_few_numbers_with_the_worlds_words(described):
    cfg, tokenizer = described
    assert families.find(BASE) is janus
    count = param_tree.count(model.specs(cfg)) + param_tree.count(vq.specs(cfg.vq))
    assert count < 3e6 and cfg.image_side == cfg.vit_side == 32
    for split in registry.SPLITS:
        for prompt in language.prompts(split)[::500]:
            assert tokenizer.decode(tokenizer.encode(prompt.text)) == prompt.text
    # What the template says and the model has no words for is read as nothing.
    assert tokenizer.encode(f"{base_files.SYSTEM}\n\n: a red circle\n\n") == tokenizer.encode(
        "a red circle"
    )
    with pytest.raises(ValueError, match="'purring' is not in"):
        tokenizer.encode("a purring circle")


# ---------------------------------------------------------------------------------- its rows


def test_rows_that_are_read_are_as_the_judge_asks(maker, described, params):
    """Logits at a row's slots are those that the answer scorer sees at the same questions."""
    cfg, tokenizer = described
    loss = JointLoss(cfg, jnp.float32, "none", 1.0)
    made = maker.read([5, 6])
    words = jax.nn.softmax(jax.jit(loss.words)(params, made))
    scorer = AnswerScorer(params, cfg, tokenizer, batch=2)
    for b, number in enumerate((5, 6)):
        image, asked = questions.understanding_example(
            3, number, questions.Mix(questions=rows.QUESTIONS)
        )
        starts = [
            int(np.flatnonzero(made.lane.split[b] == n + 1)[0])
            for n in range(int(made.lane.split[b].max()))
        ]
        texts = [q.text for q in asked][: len(starts)]
        first = [tokenizer.encode(q.answer)[0] for q in asked]
        (found,) = scorer.probabilities([image], [texts], [[(i,) for i in first[: len(texts)]]])
        for n, text in enumerate(texts):
            said = len(maker.template.question(text, True))
            slot = list(made.slots[b]).index(starts[n] + said - 1)
            assert made.labels[b, slot] == first[n] and made.weights[b, slot] == 1
            np.testing.assert_allclose(words[b, slot, first[n]], found[n][0], rtol=1e-4)
        ends = made.labels[b][made.weights[b] > 0]
        assert (ends == cfg.eos).sum() == len(texts)  # each answer learns to end


def test_rows_that_are_drawn_are_as_the_sampler_reads(maker, described):
    cfg, _ = described
    captions = [p.text for p in language.balanced_prompts("train", 40)]
    codes = np.arange(40 * 64).reshape(40, 64) % 1024
    made = maker.drawn(range(40), captions, codes, 0.3)
    kept = maker.drawn(range(40), captions, codes, 0.0)
    bare = np.asarray(model.unconditional(kept.prompts, kept.real, cfg.pad))
    dropped = (made.prompts != kept.prompts).any(axis=1)
    assert 4 <= dropped.sum() <= 20
    np.testing.assert_array_equal(made.prompts[dropped], bare[dropped])
    np.testing.assert_array_equal(made.real, kept.real)
    text = maker.tokenizer.text(captions[0])
    np.testing.assert_array_equal(
        kept.prompts[0][kept.real[0]], maker.template.drawing((text,)).ids
    )
    every = [
        maker.template.drawing((maker.tokenizer.text(p.text),)).ids
        for p in language.prompts("test")
    ]
    assert max(map(len, every)) <= rows.PROMPT
    again = maker.drawn([7], [captions[7]], codes[7:8], 0.3)
    np.testing.assert_array_equal(again.prompts[0], made.prompts[7])


def test_the_joint_loss_is_the_mean_over_words_and_over_codes(maker, described, params):
    cfg, _ = described
    captions = ["a red circle", "two blue squares"]
    codes = np.random.default_rng(0).integers(0, 1024, (2, 64))
    batch = JointRows(maker.read([1, 2]), maker.drawn([0, 1], captions, codes, 0.0))
    loss = JointLoss(cfg, jnp.float32, "none", 0.5)
    out = jax.jit(lambda p: loss(p, None, batch, jax.random.key(0)))(params)
    got = {k: float(v) for k, v in means({**out.terms, **out.metrics}).items()}
    words = jax.nn.log_softmax(loss.words(params, batch.read))
    chosen = np.take_along_axis(np.asarray(words), batch.read.labels[..., None], 2)[..., 0]
    real = batch.read.weights > 0
    assert got["ce"] == pytest.approx(-chosen[real].mean(), rel=1e-4)
    logits, _ = model.predict_image_tokens(
        params, cfg, batch.drawn.prompts, batch.drawn.real, codes, dtype=jnp.float32
    )
    log_p = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), codes[..., None], 2)
    assert got["image_ce"] == pytest.approx(-log_p.mean(), rel=1e-4)
    assert float(total(out)) == pytest.approx(0.5 * got["ce"] + got["image_ce"], rel=1e-5)


# -------------------------------------------------------------------------------- its stages

SMALL = dataclasses.replace(
    base_files.SIZES,
    llm=LlamaConfig(16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=16, vocab=96),
    vit=dataclasses.replace(base_files.SIZES.vit, hidden=16, layers=1, heads=2, ffn=16),
    vq=VQConfig(ch=32, ch_mult=(1, 1), res_blocks=1, z=32, code_dim=4, codes=16),
    grid=16,
    head_hidden=16,
)


def test_the_quantised_loss_is_what_it_says():
    model = dataclasses.replace(SMALL, vq=dataclasses.replace(SMALL.vq, ch_mult=(1,)))
    params = param_tree.init(vq.specs(model.vq), jax.random.key(0))
    images = autoencoder_stage.batch([1, 2], seed=0)["images"][:, :8, :8]
    loss = autoencoder.QuantisedLoss(model)

    def run(p):
        out = loss(p, None, {"images": images}, jax.random.key(0))
        return total(out), out

    (value, out), gradients = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    got = {k: float(v) for k, v in means({**out.terms, **out.metrics}).items()}
    found = np.asarray(vq.unit(vq.features(params, model.vq, images)[1]))
    codes = np.asarray(vq.unit(params["quantize"]["embedding"]))
    cosines = found.reshape(-1, 4) @ codes.T
    chosen = codes[cosines.argmax(-1)]
    made = vq.decode(params, model.vq, vq.encode(params, model.vq, images))
    assert got["pixel_error"] == pytest.approx(float(np.abs(made - images).mean()), rel=1e-4)
    pull = np.square(found.reshape(-1, 4) - chosen).mean()
    assert got["codebook"] == got["commitment"] == pytest.approx(pull, rel=1e-4)
    p = np.exp(cosines / autoencoder.TEMPERATURE)
    p /= p.sum(-1, keepdims=True)
    each, spread = -(p * np.log(p)).sum(-1).mean(), -(p.mean(0) * np.log(p.mean(0))).sum()
    assert got["entropy"] == pytest.approx(each - spread, rel=1e-3)
    assert got["codes_used"] == len(set(cosines.argmax(-1)))
    assert float(value) == pytest.approx(sum(c * got[k] for k, c in out.coefficients), rel=1e-4)
    # Straight through: the encoder learns from the pixels, the codebook from its vectors alone.
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradients["encoder"]["conv_in"]))
    assert np.abs(gradients["quantize"]["embedding"]).max() > 0


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The config of a run of a few steps, on a base of small sizes."""
    folder = tmp_path / "base"
    base_files.write(folder, SMALL)
    monkeypatch.setattr(registry, "base_folder", {"shapes_janus": folder}.__getitem__)
    for name, value in (("CLEAN_IMAGES", 4), ("CLEAN_BATCH", 4), ("GATE", 0.0)):
        monkeypatch.setattr(autoencoder_stage, name, value)
    monkeypatch.setattr(pretrain, "EXAM", pretrain.Exam(6, 0, 4, 2, 0))
    monkeypatch.setattr(pretrain, "ENCODE_BATCH", 4)
    return tiny.load_config(
        "",
        model="shapes_janus",
        stages=("autoencoder", "pretrain"),
        evaluate__edits=0,
        autoencoder__steps=2,
        autoencoder__batch=2,
        pretrain__steps=4,
        pretrain__rows=2,
        pretrain__latents=6,
        pretrain__checkpoint_every=2,
        pretrain__log_every=1,
        pretrain__evaluate_every=4,
    )


@pytest.mark.slow
def test_it_is_made_by_its_stages_and_goes_on_when_killed(small, tmp_path, monkeypatch):
    mesh, whole = tiny.mesh(small), Workdir(tmp_path / "a", config_file="c")

    def run(stage, work, cfg=small):
        with jax.set_mesh(mesh):
            return stage.run(cfg, mesh, work)

    run(autoencoder, whole)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    made = run(pretrain, whole)
    folder = whole.stage("pretrain")
    seen = set().union(*metrics.read(folder / "metrics.jsonl"))
    assert {"ce", "image_ce", "accuracy", "t2i", "qa", "captions"} <= seen
    cfg, params, coder, _ = janus.load(folder / made.outputs["model"], mesh=mesh, dtype=np.float32)
    assert cfg == janus.describe(registry.base_folder("shapes_janus"))[0]
    kept = autoencoder.load(whole.stage("autoencoder") / "model", cfg)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.01), coder, kept)
    (drawn,) = api.load(folder / "model").generate("a red circle", seed=1)
    assert drawn.image.shape == (32, 32, 3)

    torn, true, steps = Workdir(tmp_path / "b", config_file="c"), rows.Maker.read, []

    def killed(self, numbers):
        steps.append(numbers)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return true(self, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(rows.Maker, "read", killed)
        with pytest.raises(KeyboardInterrupt):
            run(pretrain, torn)
    run(pretrain, torn)
    _, again, _, _ = janus.load(torn.stage("pretrain") / "model", mesh=mesh, dtype=np.float32)
    jax.tree.map(np.testing.assert_array_equal, params, again)

    # Another run begins with these weights: a step of warming up leaves them nearly as they were.
    # With those of an autoencoder alone it begins with random ones.
    how = dataclasses.replace(small.pretrain, steps=1, malformed=0.5)
    others = {"more": folder / "model", "anew": whole.stage("autoencoder") / "model"}
    for name, weights in others.items():
        begun = {"weights": str(weights), "stages": ("pretrain",), "pretrain": how}
        work = Workdir(tmp_path / name, config_file="c")
        run(pretrain, work, dataclasses.replace(small, **begun))
        _, left, _, _ = janus.load(work.stage("pretrain") / "model", mesh=mesh, dtype=np.float32)
        apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, left)
        assert (max(jax.tree.leaves(apart)) < 5e-3) == (name == "more"), apart
