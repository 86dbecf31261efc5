"""Stretched RoPE: the formulas written out feature by feature, and the JSON field they are from."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import CFG, jit, pack, text_to_image, weights

from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import model_config
from srum_jax.models.bagel.model_config import RopeScaling
from srum_jax.models.layers import rope_angles

POSITIONS = np.array([[0, 1, 7, 511, 513, 40_000, 130_000]], np.int32)


def yarn(i, head_dim, theta, factor, original, fast, slow, truncate):
    """Frequency of feature i of head_dim / 2 (arXiv 2309.00071, as Hugging Face computes it)."""
    plain = theta ** (-2 * i / head_dim)

    def turning(turns):
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = turning(fast), turning(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = min(max((i - low) / (high - low), 0.0), 1.0)
    return plain / factor * ramp + plain * (1 - ramp)


def expected(frequencies, grown):
    angle = POSITIONS[:, :, None] * np.array(frequencies * 2)
    return grown * np.cos(angle), grown * np.sin(angle)


def close(found, want):
    """float32 angles of large positions are exact to about 1e-2."""
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a[:, :5], b[:, :5], atol=1e-3)
        np.testing.assert_allclose(a, b, atol=0.03)


@pytest.mark.parametrize("head_dim, theta", [(128, 1e6), (8, 1e4)])
@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_linear_divides_every_frequency(head_dim, theta, factor):
    found = rope_angles(POSITIONS, head_dim, theta, RopeScaling("linear", factor))
    plain = [theta ** (-2 * i / head_dim) / factor for i in range(head_dim // 2)]
    close(found, expected(plain, 1.0))
    shorter = rope_angles(POSITIONS / factor, head_dim, theta)
    close(found, shorter)


@pytest.mark.parametrize("head_dim, theta", [(128, 1e6), (64, 1e4), (8, 1e4)])
@pytest.mark.parametrize(
    "how",
    [
        dict(factor=4.0, original=32768),
        dict(factor=2.5, original=512, beta_fast=16.0, beta_slow=2.0),
        dict(factor=8.0, original=4096, truncate=False, attention_factor=1.25),
    ],
)
def test_yarn_is_its_formula(head_dim, theta, how):
    scaling = RopeScaling("yarn", **how)
    rest = (scaling.original, scaling.beta_fast, scaling.beta_slow, scaling.truncate)
    formula = [yarn(i, head_dim, theta, scaling.factor, *rest) for i in range(head_dim // 2)]
    grown = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1
    found = rope_angles(POSITIONS, head_dim, theta, scaling)
    close(found, expected(formula, grown))
    if head_dim > 8:  # the fastest feature stays, the slowest is interpolated in full
        assert formula[0] == pytest.approx(1.0)
        assert formula[-1] == pytest.approx(theta ** (2 / head_dim - 1) / scaling.factor)


def test_without_scaling_positions_are_plain():
    found = rope_angles(POSITIONS, 8, 1e4)
    close(found, expected([1e4 ** (-i / 4) for i in range(4)], 1.0))
    assert CFG.llm.rope_scaling is None
    assert "rope_scaling" not in model_config.to_json(CFG)["llm_config.json"]


def folder(path, **llm):
    for name, values in model_config.to_json(CFG).items():
        values = values | llm if name == "llm_config.json" else values
        (path / name).write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    "field, want, window",
    [
        (None, None, 512),
        ({"rope_type": "default"}, None, 512),
        ({"type": "linear", "factor": 2}, RopeScaling("linear", 2), 512),
        (
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
            RopeScaling("yarn", 4.0, 512),
            2048,
        ),
        (
            {"rope_type": "yarn", "factor": 2.0, "beta_fast": None, "attention_factor": 1.5},
            RopeScaling("yarn", 2.0, 512, attention_factor=1.5),
            1024,
        ),
    ],
)
def test_the_field_of_the_folder(tmp_path, field, want, window):
    found = model_config.from_folder(folder(tmp_path, rope_scaling=field))
    assert found.llm.rope_scaling == want and found.max_text == window
    for name, values in model_config.to_json(found).items():
        (tmp_path / name).write_text(json.dumps(values))
    assert model_config.from_folder(tmp_path) == found


def test_the_field_has_another_name_in_newer_folders(tmp_path):
    field = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    found = model_config.from_folder(folder(tmp_path, rope_parameters=field))
    assert found.llm.rope_scaling == RopeScaling("linear", 2.0)


@pytest.mark.parametrize(
    "field, message",
    [
        ({"type": "longrope", "factor": 2.0}, "rope_scaling of type 'longrope' is not known"),
        ({"factor": 2.0}, "type None is not known: one of default, linear, yarn"),
        ({"type": "linear"}, "rope_scaling.factor is missing"),
        ({"type": "yarn", "factor": 0.5}, "rope_scaling.factor cannot be 0.5"),
        ({"type": "yarn", "factor": "4"}, "rope_scaling.factor cannot be '4'"),
        ({"type": "yarn", "factor": 4.0, "truncate": 1}, "rope_scaling.truncate cannot be 1"),
        ({"type": "yarn", "factor": 4.0, "mscale": 1.0}, "rope_scaling.mscale is not known"),
        ({"type": "linear", "factor": 4.0, "beta_fast": 32}, "beta_fast is not known for the type"),
        ("yarn", "'rope_scaling' must be an object"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path, field, message):
    with pytest.raises(ValueError, match=f"llm_config.json: .*{message}"):
        model_config.from_folder(folder(tmp_path, rope_scaling=field))


def test_the_model_reads_it():
    """Positions times the factor under linear scaling are the plain model's."""
    batch = pack([[text_to_image(0)]])
    params, t = weights(), np.full(batch.noisy.shape, 0.4, np.float32)

    @jit
    def stretched(params, batch):
        llm = dataclasses.replace(CFG.llm, rope_scaling=RopeScaling("linear", 3.0))
        cfg = dataclasses.replace(CFG, llm=llm)
        return bagel.forward(params, cfg, batch, batch.latents, t, remat="none")[:2]

    @jit
    def plain(params, batch):
        return bagel.forward(params, CFG, batch, batch.latents, t, remat="none")[:2]

    far = jax.tree.map(jnp.asarray, batch)
    far = batch.replace(
        **{
            name: getattr(far, name).replace(position=3 * getattr(far, name).position)
            for name in ("und", "gen")
        }
    )
    want, found = plain(params, batch), stretched(params, far)
    for a, b, c in zip(found, want, stretched(params, batch), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert np.abs(b - c).max() > 1e-3
