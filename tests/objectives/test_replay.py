"""Rows of own edits are held to the starting model, and everything else is as without them."""

import types

import jax
import numpy as np
import pytest
from objectives.test_dpo import Linear
from objectives.test_srum import config, mean
from samples import as_advantages, edit, pack, rule, text_to_image

from srum_jax import flow
from srum_jax.core import loss as losses
from srum_jax.data.schema import Example
from srum_jax.objectives import srum, terms
from srum_jax.training import step
from srum_jax.training.state import FrozenParams

SHARE = 0.25
CANDIDATES = [[text_to_image(1, 5, boxes=2), text_to_image(2, 6)], [text_to_image(3, 7, boxes=1)]]
EDITS = [[edit(4, 50), edit(5, 51)], [edit(6, 52)]]


@pytest.fixture(scope="module")
def params():
    """(weights, starting weights) of a model of one matrix."""
    w, start = np.random.default_rng(1).normal(size=(2, 8, 8)).astype(np.float32)
    return {"w": w}, {"w": start}


def packed(*places):
    """Rows of candidates (0, 1) and of edits (2, 3), in the lanes of them all."""
    every = pack([*CANDIDATES, *EDITS], spare=1, rewards=True)
    return jax.tree.map(lambda x: x[list(places)], every)


def loss_of(objective, replay, **values):
    cfg = types.SimpleNamespace(**vars(config(objective, **values)) | {"replay": replay})
    return srum.SrumLoss(cfg, Linear())


@pytest.mark.parametrize("objective", ["sft", "srum_positive", "nft", "dpo"])
def test_edits_count_by_themselves_and_nothing_else_sees_them(params, objective):
    def given(batch):
        return as_advantages(batch) if objective in srum.BY_ADVANTAGE else batch

    key, both = jax.random.key(2), packed(0, 1, 2, 3)
    out = loss_of(objective, SHARE, anchor=0.5)(*params, given(both), key)
    plain = loss_of(objective, 0.0, anchor=0.5)(*params, given(packed(0, 1)), key)
    for name, value in {**plain.terms, **plain.metrics}.items():
        found = {**out.terms, **out.metrics}[name]
        np.testing.assert_allclose(found, value, rtol=1e-5, err_msg=name)
    draws = flow.draw(both, key, mean=0.0, std=1.0, shift=2.0)
    x_t = flow.interpolate(both.latents, draws.noise, flow.token_time(both, draws.t))
    moved = np.square(np.asarray(x_t @ params[0]["w"] - x_t @ params[1]["w"], np.float64))
    mask = np.asarray(terms.trained(both)) & (np.arange(4) > 1)[:, None]
    assert mask.sum() == 3 * 6  # what is drawn in each edit, not the picture that is read
    assert mean(out.terms["replay"]) == pytest.approx(moved[mask].mean(), rel=1e-4)
    assert dict(out.coefficients)["replay"] == pytest.approx(SHARE / (1 - SHARE))
    more = SHARE / (1 - SHARE) * moved[mask].mean()
    assert losses.total(out) == pytest.approx(float(losses.total(plain)) + more, rel=1e-4)
    assert "replay" not in plain.terms


def test_at_the_start_it_pulls_nowhere_and_then_back(params):
    """No gradient where training starts; elsewhere a step along it comes nearer to the start."""
    batch, key = packed(2, 3), jax.random.key(2)
    objective = loss_of("sft", SHARE)

    def value(w, start):
        return losses.total(objective({"w": w}, {"w": start}, batch, key))

    w, start = params[0]["w"], params[1]["w"]
    assert np.abs(jax.grad(value)(start, start)).max() == 0  # edits are all there is
    gradient = jax.grad(value)(w, start)
    nearer = w - 0.01 * np.asarray(gradient)
    assert np.abs(nearer - start).sum() < np.abs(w - start).sum()
    assert np.abs(jax.grad(value, argnums=1)(w, start)).max() == 0


def test_parts_of_a_step_add_up_to_it(params):
    """Candidates in one part of a step and edits in the other."""
    batch = packed(0, 2, 1, 3)
    fixed = FrozenParams({}, params[1])

    def run(parts):
        objective, key = loss_of("srum_positive", SHARE), jax.random.key(0)
        return step.gradients(objective, params[0], fixed, batch, key, parts)

    want, means, gradient = run(1)
    assert means["replay"] > 0 < means["reward"]
    found, others, pieces = run(2)
    assert float(found) == pytest.approx(float(want), rel=1e-5)
    np.testing.assert_allclose(pieces["w"], gradient["w"], rtol=1e-4, atol=1e-5)
    for name, value in means.items():
        assert float(others[name]) == pytest.approx(float(value), rel=1e-4), name


def test_every_token_of_an_edit_sees_one_interval_of_its_row():
    """So the stage `train` may take any attention for these rows too (`programs.attending`)."""
    row = [Example(edit(seed, 50 + seed).items[:4]) for seed in (4, 5)]  # nothing behind the image
    batch = pack([row], spare=1)
    lanes = jax.tree.map(lambda *x: np.concatenate(x, axis=1), batch.und, batch.gen)
    order = np.argsort(lanes.index[0])[np.sum(lanes.index[0] < 0) :]
    tokens = jax.tree.map(lambda x: x[:, order], lanes)
    for sees in rule(tokens, tokens)[0]:
        places = np.flatnonzero(sees)
        assert len(places) == places[-1] - places[0] + 1


def test_the_starting_model_is_kept_for_it():
    assert not srum.needs_reference("sft", 0.0) and srum.needs_reference("sft", SHARE)
