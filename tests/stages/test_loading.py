"""Opening models: which folder a round starts from, its fingerprint, and the trained leaves."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from srum_jax import programs
from srum_jax.core import files, param_tree
from srum_jax.core.errors import BadInput
from srum_jax.models.bagel import model as bagel
from srum_jax.stages import loading
from srum_jax.stages.manifest import Outcome, Workdir, run_stage
from srum_jax.training import checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "model")


def finish(name, cfg, work, body):
    run_stage(name, cfg, work, sections=(), inputs={}, body=body)


def test_what_gen_trains():
    accepts = programs.Trainable("gen")
    trained, frozen = param_tree.split(bagel.specs(tiny.MODEL), accepts)
    assert set(trained) == {"blocks", "norm", "time", "vae2llm", "llm2vae"}
    assert set(trained["blocks"]) == set(trained["norm"]) == {"gen"}
    assert set(frozen) == {"blocks", "norm", "embed", "lm_head", "connector", "vit"}
    assert not param_tree.flatten(
        param_tree.split(bagel.specs(tiny.MODEL), programs.Trainable("all"))[1]
    )


def test_the_folder_of_a_round(weights, tmp_path):
    cfg, work = tiny.load_config(weights), Workdir(tmp_path)
    assert loading.source(cfg, work).folder == weights
    second = Workdir(tmp_path, round=1)
    with pytest.raises(FileNotFoundError, match="round0/export/manifest.json"):
        loading.source(cfg, second)

    def export(folder):
        tiny.write_model(folder / "mine")
        return Outcome({"model": "mine"}, {}, 1)

    finish("export", cfg, work, export)
    assert loading.source(cfg, second).folder == tmp_path / "round0" / "export" / "mine"
    made = tiny.load_config(weights, stages=("pretrain", "evaluate"))
    with pytest.raises(FileNotFoundError, match="round0/pretrain/manifest.json"):
        loading.source(made, work)
    finish("pretrain", made, work, export)
    assert loading.source(made, work).folder == tmp_path / "round0" / "pretrain" / "mine"


def test_a_base_has_what_the_folder_lacks(weights, tmp_path):
    folder = tmp_path / "trained"
    folder.mkdir()
    tensors = load_file(weights / "ema.safetensors")
    lacking = ("vit_model.", "connector.", "vit_pos_embed.")
    mine = {name: x + 1 for name, x in tensors.items() if not name.startswith(lacking)}
    save_file(mine, folder / "model.safetensors")
    work = Workdir(tmp_path / "work")
    with pytest.raises(FileNotFoundError, match="ae.safetensors.*missing; .*weights_base"):
        loading.source(tiny.load_config(folder), work)
    cfg = tiny.load_config(folder, weights_base=str(weights))
    opened = loading.base(cfg, work, tiny.mesh(cfg))
    assert opened.tokenizer.encode("a red circle")
    old, old_coder = tiny.weights()
    found = param_tree.flatten(opened.params)
    for path, leaf in param_tree.flatten(old).items():
        ours = path.startswith(("vit/", "connector/"))
        np.testing.assert_array_equal(found[path], leaf if ours else leaf + 1, err_msg=path)
    for path, leaf in param_tree.flatten(old_coder).items():
        np.testing.assert_array_equal(
            param_tree.flatten(opened.vae_params)[path], leaf, err_msg=path
        )
    other = tiny.write_model(tmp_path / "other", 1)
    same = loading.source(cfg, work).folders
    assert opened.hash == loading.fingerprint(*same) != loading.fingerprint(folder, other)
    assert loading.fingerprint(folder) != opened.hash != loading.fingerprint(weights)


def test_a_folder_without_weights_is_named(weights, tmp_path):
    for name in ("ae.safetensors", "ema.safetensors", "llm_config.json"):
        folder = tiny.write_model(tmp_path / name / "model")
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"{name}: missing; weights must name"):
            loading.source(tiny.load_config(folder), Workdir(tmp_path / "work"))


def test_a_fingerprint_is_of_content_alone(weights, tmp_path, monkeypatch):
    same, other = tiny.write_model(tmp_path / "same"), tiny.write_model(tmp_path / "other", 1)
    (same / "README.md").write_text("another card")
    assert loading.fingerprint(same) == loading.fingerprint(weights) != loading.fingerprint(other)
    names = json.loads((same / "llm_config.json").read_text())
    (same / "llm_config.json").write_text(json.dumps(names | {"rope_theta": 5.0}))
    assert loading.fingerprint(same) != loading.fingerprint(weights)
    monkeypatch.setattr(files, "_SAMPLE", 64)  # as with a large file: samples only
    assert loading.fingerprint(weights) != loading.fingerprint(other)


def test_trained_leaves_take_the_place_of_the_old(weights, tmp_path):
    cfg, work = tiny.load_config(weights, compute__dtype="bfloat16"), Workdir(tmp_path)
    mesh, accepts = tiny.mesh(cfg), programs.Trainable("gen")
    old, new = tiny.weights()[0], tiny.weights(1)[0]
    opened = loading.base(cfg, work, mesh, dtype="float32")
    with pytest.raises(FileNotFoundError, match="train/manifest.json: missing"):
        loading.trained(opened, cfg, work, mesh)

    def train(folder):
        checkpoint.save_params(folder / "params", param_tree.split(new, accepts)[0])
        return Outcome({}, {}, 1)

    finish("train", cfg, work, train)
    assert opened.hash == loading.fingerprint(weights)
    found = param_tree.flatten(loading.trained(opened, cfg, work, mesh).params)
    for path, leaf in found.items():
        want = param_tree.flatten(new if accepts(path) else old)[path]
        np.testing.assert_array_equal(leaf, want, err_msg=path)
        assert leaf.sharding.mesh == mesh
    small = loading.trained(loading.base(cfg, work, mesh, want=("model",)), cfg, work, mesh)
    assert small.vae_params is None
    assert {x.dtype for x in jax.tree.leaves(small.params)} == {np.dtype(ml_dtypes.bfloat16)}
    other = tiny.load_config(weights, train__trainable="all")
    with pytest.raises(BadInput, match="not the parameters of this model"):
        loading.trained(opened, other, work, mesh)


def test_the_clock_hears_compilations_inside_alone():
    with loading.compile_clock() as seconds:
        jax.jit(lambda x: x * 3.25)(1.0)
    heard = len(seconds)
    jax.jit(lambda x: x * 4.25)(1.0)
    assert heard == len(seconds) > 0 and sum(seconds) > 0
