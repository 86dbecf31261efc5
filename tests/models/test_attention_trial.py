"""A kernel that is wrong on a device, or does not run there, is not taken unasked."""

import types

import numpy as np
import pytest
from samples import CFG

from srum_jax.config import SampleConfig
from srum_jax.generation.image_sampler import ImageSampler
from srum_jax.models import attention
from srum_jax.models.attention import cudnn, trial


@pytest.fixture(autouse=True)
def forgotten():
    """Each test tries anew."""
    trial.passes.cache_clear()
    yield
    trial.passes.cache_clear()


def tried(name="cudnn", dtype="float32"):
    return trial.passes(name, 4, 2, 8, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_equals_dense_attention_passes(monkeypatch, dtype):
    monkeypatch.setattr(cudnn, "_IMPLEMENTATION", "xla")
    assert tried(dtype=dtype) and tried("chunked", dtype)


def test_one_key_too_many_is_noticed(monkeypatch, caplog):
    monkeypatch.setattr(cudnn, "_IMPLEMENTATION", "xla")
    given = cudnn.jax.nn.dot_product_attention

    def wrong(q, k, v, *, key_value_seq_lengths=None, **how):
        count = key_value_seq_lengths
        return given(q, k, v, key_value_seq_lengths=None if count is None else count + 1, **how)

    nn = types.SimpleNamespace(dot_product_attention=wrong)
    monkeypatch.setattr(cudnn, "jax", types.SimpleNamespace(nn=nn))
    assert not tried()
    assert "attention: cudnn is wrong here by" in caplog.text


def test_a_kernel_that_does_not_run_here_is_another(caplog):
    """cuDNN's on a CPU."""
    assert not tried(dtype="bfloat16")
    assert "attention: cudnn does not run here, another is taken" in caplog.text


def test_a_sampler_takes_a_kernel_unasked_only_if_it_passes(monkeypatch):
    monkeypatch.setattr(attention, "choose", lambda name, **_: "cudnn")
    how = dict(window=64, dtype=np.float32)
    settings = SampleConfig(size=(16, 16))
    sampler = ImageSampler(None, {}, CFG, None, settings, **how)
    assert sampler.attending(5000).attention == "chunked"
    asked = ImageSampler(None, {}, CFG, None, settings, **how, attention="cudnn")
    assert asked.attending(5000).attention == "cudnn"
