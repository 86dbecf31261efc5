"""The joint pretraining loss is cross-entropy on labels plus flow matching, weighted."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import CFG, edit, jit, pack, questions, text_to_image, weights

from srum_jax import flow
from srum_jax.core import loss as losses
from srum_jax.models.bagel import model as bagel
from srum_jax.objectives import joint, terms

LAW = dict(timestep_mean=0.0, timestep_std=1.0, timestep_shift=2.0)
PREDICT = terms.Predictor(CFG, jnp.float32, "full")


@pytest.fixture(scope="module")
def found():
    """(batch, params, LossOut, gradients) of the loss with text weight 0.25."""
    batch = pack([[questions(1), text_to_image(2, 5)], [edit(3, 6)]], spare=1)
    params = weights()
    cfg = types.SimpleNamespace(**LAW)
    loss = joint.JointLoss(cfg, PREDICT, text_weight=0.25)

    @jit
    def run(params, batch):
        def total(params):
            out = loss(params, None, batch, jax.random.key(1))
            return losses.total(out), out

        return jax.grad(total, has_aux=True)(params)

    gradients, out = run(params, batch)
    return batch, params, out, gradients


@pytest.fixture(scope="module")
def predicted(found):
    """What the same forward gives when it is run apart."""
    batch, params, _, _ = found

    @jit
    def run(params, batch):
        draws = flow.draw(batch, jax.random.key(1), mean=0.0, std=1.0, shift=2.0)
        out = PREDICT(params, batch, draws)
        return draws, out, bagel.logits(params, out.und, batch.label_slots)

    return run(params, batch)


def test_cross_entropy_is_over_the_labels(found, predicted):
    batch, _, out, _ = found
    logits = np.asarray(predicted[2], np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(logits, batch.label_ids[..., None].astype(int), -1)[..., 0]
    real = batch.label_weights > 0
    assert real.sum() == 2 * 2 + 3  # two answers of a word and its eos, a text of two and its eos
    assert float(out.terms["ce"][0]) == pytest.approx(-picked[real].sum(), rel=1e-4)
    assert float(out.terms["ce"][1]) == real.sum()
    right = (logits.argmax(-1) == batch.label_ids)[real]
    assert float(out.metrics["accuracy"][0]) == right.sum()


def test_both_terms_are_weighted(found, predicted):
    batch, _, out, gradients = found
    draws, prediction, _ = predicted
    error = np.square(prediction.velocity - (draws.noise - batch.latents))
    mask = np.asarray(terms.trained(batch))
    assert float(out.terms["mse"][0]) == pytest.approx(float(error[mask].sum()), rel=1e-4)
    assert dict(out.coefficients) == {"ce": 0.25, "mse": 1.0}
    means = losses.means(out.terms)
    assert float(losses.total(out)) == pytest.approx(
        0.25 * float(means["ce"]) + float(means["mse"]), rel=1e-6
    )
    for path in ("lm_head", "llm2vae", "embed", "vit", "connector", "time"):
        assert max(np.abs(g).max() for g in jax.tree.leaves(gradients[path])) > 0, path


@pytest.mark.slow
@pytest.mark.parametrize("limit", [3 * 96, 96, 1])
def test_labels_in_parts_are_the_same_loss(found, predicted, monkeypatch, limit):
    """Parts of which the last is not full, single labels, and more parts than labels."""
    batch, params, _, _ = found
    assert batch.label_ids.shape[1] % 3
    und = predicted[1].und

    def run():
        def total(head, und):
            ce, right = terms.cross_entropy({"lm_head": head}, und, batch)
            return ce[0], (ce, right)

        step = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
        return jit(step), step(params["lm_head"], und)

    _, want = run()
    monkeypatch.setattr(terms, "_LOGITS", limit)
    program, got = run()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), got, want)
    assert np.abs(want[1][0]["w"]).max() > 0.01

    # Nowhere are there as many logits as labels.
    rows, labels = batch.label_ids.shape
    text = program.lower(params["lm_head"], und).as_text()
    held = {int(n) for n in re.findall(rf"tensor<{rows}x(\d+)x{CFG.llm.vocab}xf32>", text)}
    assert held and max(held) * CFG.llm.vocab <= max(limit, CFG.llm.vocab) and max(held) < labels


def test_the_logits_of_a_small_world_are_computed_at_once(found):
    batch, params, _, _ = found
    und = jax.ShapeDtypeStruct((2, 8, CFG.llm.hidden), jnp.float32)
    lowered = jit(lambda p, und: terms.cross_entropy(p, und, batch)).lower(params, und)
    assert "while" not in lowered.as_text()
