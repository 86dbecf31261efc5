"""The stage: trained by the one loop, gated by the verifier, read by what comes after."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from srum_jax.core import param_tree, registry
from srum_jax.core.errors import Diverged
from srum_jax.data.images import to_float
from srum_jax.models.bagel import hf, model_config, vae
from srum_jax.stages.manifest import Workdir
from srum_jax.training import metrics
from srum_jax.worlds.shapes import autoencoder, examples

STEPS = 3
VAE = dataclasses.replace(tiny.MODEL.vae, ch_mult=(1,), scale=0.3, shift=5.0)


def drawn(specs, key):
    """Initial values drawn by NumPy, as jitted initialisers take seconds."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32),
        param_tree.abstract(specs),
    )


@pytest.fixture
def small(monkeypatch, tmp_path_factory):
    """A run of a few steps on few pictures, its gate wide open."""
    monkeypatch.setattr(autoencoder, "CLEAN_IMAGES", 12)
    monkeypatch.setattr(autoencoder, "CLEAN_BATCH", 6)
    monkeypatch.setattr(autoencoder, "GATE", 0.0)
    monkeypatch.setattr(param_tree, "init", drawn)
    model = dataclasses.replace(tiny.MODEL, vae=VAE)
    folder = tiny.sizes_folder(tmp_path_factory.mktemp("sizes"), model)
    monkeypatch.setattr(registry, "base_folder", {"shapes": folder}.__getitem__)
    return tiny.load_config(
        "",
        stages=("autoencoder",),
        autoencoder__steps=STEPS,
        autoencoder__batch=2,
        autoencoder__log_every=1,
        autoencoder__checkpoint_every=2,
    )


def run(cfg, folder):
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        return autoencoder.run(cfg, mesh, Workdir(folder))


@pytest.mark.slow
def test_what_is_left_behind_is_read_by_the_importer(small, tmp_path, monkeypatch):
    manifest = run(small, tmp_path)
    folder = tmp_path / "round0" / "autoencoder"
    assert manifest.counts == {"steps": STEPS, "skipped_steps": 0}
    made = folder / manifest.outputs["model"]
    assert sorted(p.name for p in made.iterdir()) == ["ae.safetensors", "ae_config.json"]
    cfg = model_config.autoencoder_from_folder(made)
    _, found = hf.load(made, dataclasses.replace(tiny.MODEL, vae=cfg), want=("vae",))
    pictures = np.concatenate([p for p, _ in autoencoder.clean(small.seed)])
    assert len(pictures) == 12
    encode = jax.jit(lambda p, images: vae.encode(p, cfg, images))
    latents = np.asarray(encode(found, to_float(pictures)))
    assert abs(latents.mean()) < 0.01 and abs(latents.std() - 1) < 0.01  # measured, not preset
    rows = metrics.read(folder / "metrics.jsonl")
    assert [r["step"] for r in rows] == [1, 2, 3]
    assert {"loss", "absolute", "square", "edge", "kl", "pixel_error"} <= set(rows[0])
    first = param_tree.flatten(drawn(vae.specs(cfg), None))
    moved = [p for p, x in param_tree.flatten(found).items() if not np.array_equal(x, first[p])]
    assert len(moved) > len(first) / 2

    # A gate that it does not pass: the trained state stays, what others would read does not come.
    monkeypatch.setattr(autoencoder, "GATE", 0.99)
    other = tmp_path / "other" / "round0" / "autoencoder"
    shutil.copytree(folder / "checkpoints", other / "checkpoints")
    shutil.copy(folder / "started.json", other)
    with pytest.raises(Diverged, match=r"autoencoder: 0.00% of 12 clean pictures .* 99% must be"):
        run(small, tmp_path / "other")
    assert not (other / "model").exists() and not (other / "manifest.json").exists()

    monkeypatch.setattr(autoencoder, "train", None)
    assert run(small, tmp_path) == manifest  # finished: nothing is done again


def test_the_gate_lets_a_faithful_one_through(small, monkeypatch):
    monkeypatch.setattr(vae, "encode", lambda p, cfg, images: images)
    monkeypatch.setattr(vae, "decode", lambda p, cfg, latents: latents)
    coder = autoencoder.FluxCoder(tiny.MODEL)
    assert autoencoder.verified({}, coder, seed=0) == 1.0
    # One object hidden in every picture.
    monkeypatch.setattr(vae, "decode", lambda p, cfg, x: x.at[:, :16].set(-0.8))
    assert autoencoder.verified({}, coder, seed=0) < 0.6


def test_a_batch_is_a_function_of_its_numbers():
    one, again = (autoencoder.batch([12, 13, 14, 15], seed=1) for _ in range(2))
    np.testing.assert_array_equal(one["images"], again["images"])
    assert one["numbers"].tolist() == [12, 13, 14, 15] and one["images"].dtype == np.float32
    np.testing.assert_array_equal(one["images"][2], to_float(examples.autoencoder_image(1, 14)))
    other = autoencoder.batch([16, 17, 18, 19], seed=1)["images"]
    assert not np.array_equal(one["images"], other)
