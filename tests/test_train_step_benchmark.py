"""The benchmark of a training step: what is counted, that it runs, that both sides agree."""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np
import optax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # scripts: they import one another by plain names

import our_step  # noqa: E402
import train_step  # noqa: E402
import train_step_bagel as bagel  # noqa: E402
import train_step_janus as janus  # noqa: E402
from test_scoring import products  # noqa: E402

from srum_jax.models.janus import model  # noqa: E402
from srum_jax.objectives import terms  # noqa: E402
from srum_jax.training import step  # noqa: E402
from srum_jax.training.state import FrozenParams  # noqa: E402

WORK, DRAWN = bagel.WORK["quick"], janus.WORK["quick"]


@pytest.mark.slow
def test_the_flops_counted_are_those_of_the_forward_pass():
    work = dataclasses.replace(WORK, llm=dataclasses.replace(WORK.llm, layers=3))
    batch, drawn = bagel.batch(work), bagel.draws(work, 0)

    def forward(params):
        return terms.Predictor(work.cfg, "float32", work.remat)(params, batch, drawn).velocity

    traced = products(jax.make_jaxpr(forward)(bagel.weights(work)).jaxpr)
    angles = work.tokens * work.llm.head_dim  # RoPE's are a product of matrices in the trace
    assert bagel.flops(work) == 3 * (traced - angles)


@pytest.mark.parametrize(
    ("family", "marks"), [(bagel, 0), (janus, 2)], ids=["bagel", "janus"]
)  # packing's marks behind prompt and drawing, which Janus does not read
def test_every_row_is_full(family, marks):
    work = family.WORK["quick"]
    batch = family.batch(work)
    assert (np.asarray(batch.und.segment) == 1).all() and (np.asarray(batch.gen.segment) == 1).all()
    counted = batch.und.segment.size + batch.gen.segment.size
    assert counted == work.tokens + marks * work.samples


def test_janus_learns_its_drawings_by_their_cross_entropy():
    """The loss is that of one pass over prompts and codes, and what drawing does not read stays."""
    start, cfg, data = janus.weights(DRAWN), DRAWN.cfg, DRAWN.data()
    prompts = np.array([np.r_[cfg.bos, ids, cfg.start_of_image] for ids, _ in data])
    codes = np.array([one.reshape(-1) for _, one in data])
    real = np.ones_like(prompts, bool)
    logits, _ = model.predict_image_tokens(start, cfg, prompts, real, codes, dtype=np.float32)
    want = optax.softmax_cross_entropy_with_integer_labels(logits, codes).mean()
    call = janus.ours(DRAWN, start)
    losses = [call()[0] for _ in range(our_step.CHECKED)]
    assert losses[0] == pytest.approx(float(want), rel=1e-5)
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert not {"embed", "lm_head", "vit", "aligner"} & set(janus.specs(DRAWN))


def test_a_device_that_a_family_has_no_work_for_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(SystemExit):
        train_step.main(["--family", "janus"])
    assert "janus is not measured on a gpu" in capsys.readouterr().err


def test_sides_that_compute_different_things_are_refused():
    one = train_step.Measured([(1.0, 2.0)], [1.0], [1.0], 1, 1.0)
    found = {"ours": one, "PyTorch eager": dataclasses.replace(one, checked=[(1.0, 2.0001)])}
    assert train_step.compare(WORK, found) == pytest.approx(5e-5)
    for wrong in (2.01, float("nan")):
        found["PyTorch eager"] = dataclasses.replace(one, checked=[(1.0, wrong)])
        with pytest.raises(SystemExit, match="do not compute the same"):
            train_step.compare(WORK, found)


@pytest.mark.slow
@pytest.mark.parametrize("family", train_step.FAMILIES)
def test_the_script_runs(family, tmp_path, capsys):
    file, how = tmp_path / "train_step.json", ["--quick", "--repeats", "2", "--sides", "ours"]
    train_step.main(["--family", family, *how, "--json", str(file)])
    said, made = capsys.readouterr().out, json.loads(file.read_text())
    assert "| ours |" in said and "not measured" in said
    ours = made["sides"]["ours"]
    assert len(ours["seconds"]) == 2 and min(ours["seconds"]) > 0 and ours["memory"] > 0
    losses = [loss for loss, _ in ours["checked"]]
    assert len(losses) == our_step.CHECKED and len(set(losses)) == len(losses)
    assert made["peak"] >= ours["peak"] > 0


DEEP = dataclasses.replace(WORK, llm=dataclasses.replace(WORK.llm, layers=4))


def gradients(dtype):
    """Of our first step, by official names."""
    work = dataclasses.replace(DEEP, dtype=dtype)
    nothing, key = FrozenParams({}, None), jax.random.fold_in(jax.random.key(0), 0)
    given = bagel.weights(work), nothing, bagel.batch(work), key
    found = jax.jit(step.gradients, static_argnums=(0, 5))(bagel.objective(work), *given, 1)
    return bagel.official(work, found[2])


def their_gradients(dtype):
    """Of PyTorch's; it leaves them clipped to a norm of 1."""
    work = dataclasses.replace(DEEP, dtype=dtype)
    run = bagel.rival(work, bagel.weights(work), compiled=False)
    _, norm = bagel.theirs(work, run)()
    names = [name for name, p in run.model.named_parameters() if p.requires_grad]
    assert norm > run.clip_norm == 1
    return {n: norm * m.grad.numpy() for n, m in zip(names, run.masters, strict=True)}


def roundings(found, same):
    """The norm of all differences, in roundings to bfloat16 of the whole gradient."""

    def norm(of):
        return np.sqrt(sum(np.square(np.float64(of(name))).sum() for name in same))

    return 2**9 * norm(lambda name: found[name] - same[name]) / norm(same.get)


@pytest.fixture(scope="module")
def exact():
    return gradients("float32")


def test_gradients_in_bfloat16_err_by_few_roundings(exact):
    """5.7 of them, PyTorch's by the same measure 5.9."""
    assert 1 < roundings(gradients("bfloat16"), exact) < 5.85


@pytest.mark.parametrize("family", [bagel, janus], ids=["bagel", "janus"])
def test_pytorch_computes_the_same(family):
    pytest.importorskip("torch")
    work = family.WORK["quick"]
    start = family.weights(work)
    run = family.rival(work, start, compiled=False)
    calls = family.ours(work, start), family.theirs(work, run)
    ours, theirs = ([call() for _ in range(our_step.CHECKED)] for call in calls)
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)


def test_gradients_are_pytorchs_and_err_no_more_in_bfloat16(exact):
    pytest.importorskip("torch")
    theirs = {dtype: their_gradients(dtype) for dtype in ("float32", "bfloat16")}
    assert roundings(exact, theirs["float32"]) < 1e-3
    ours = roundings(gradients("bfloat16"), theirs["float32"])
    assert ours <= roundings(theirs["bfloat16"], theirs["float32"])
