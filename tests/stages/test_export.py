"""The stage: what is exported is what is opened in the next round."""

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from srum_jax.config import section_hash
from srum_jax.core import param_tree
from srum_jax.models import lora
from srum_jax.models.bagel import hf, model_config, peft
from srum_jax.models.bagel import model as bagel
from srum_jax.stages import export, loading
from srum_jax.stages.manifest import ALL_SECTIONS, Outcome, Workdir, run_stage
from srum_jax.training import checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "model")


def run(cfg, work):
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        return export.run(cfg, mesh, work)


def same(tree, other):
    for path, leaf in param_tree.flatten(tree).items():
        np.testing.assert_array_equal(leaf, param_tree.flatten(other)[path], err_msg=path)


def test_the_trained_model_comes_back(weights, tmp_path):
    cfg = tiny.load_config(weights, stages=("train", "export"), export__dtype="float32")
    work, accepts = Workdir(tmp_path), tiny.trainable("gen")
    with pytest.raises(FileNotFoundError, match="train/manifest.json: missing"):
        run(cfg, work)
    assert not list(tmp_path.iterdir())
    new, _ = param_tree.split(tiny.weights(1)[0], accepts)

    def train(folder):
        checkpoint.save_params(folder / "params", new)
        return Outcome({}, {}, 1)

    run_stage("train", cfg, work, sections=(), inputs={}, body=train)
    manifest = run(cfg, work)
    folder = work.stage("export") / manifest.outputs["model"]
    assert folder.name == "model" and model_config.from_folder(folder) == tiny.MODEL
    old, coder = tiny.weights()
    found, found_coder = hf.load(folder, tiny.MODEL)
    same(found, param_tree.merge(new, param_tree.split(old, accepts)[1]))
    same(found_coder, coder)
    card = (folder / "README.md").read_text()
    made = f"{cfg.train.steps} steps of `{cfg.train.objective}`"
    assert section_hash(cfg, ALL_SECTIONS) in card and made in card
    assert f"{cfg.train.rows} rows a step" in card and "drawn:" not in card
    words = "tokenizer.json"
    assert (folder / words).read_bytes() == (weights / words).read_bytes()
    mesh = tiny.mesh(cfg)
    following = loading.base(cfg, Workdir(tmp_path, round=1), mesh)
    same(following.params, found)
    assert following.tokenizer.encode("a red circle")
    assert run(cfg, work) == manifest


def test_adapters_are_exported_beside_what_they_make(weights, tmp_path):
    lora_of_2 = dict(train__trainable="lora", train__lora__rank=2, train__lora__alpha=5.0)
    how = dict(stages=("train", "export"), export__dtype="float32")
    cfg = tiny.load_config(weights, **lora_of_2, **how)
    work, rng = Workdir(tmp_path), np.random.default_rng(0)
    specs = lora.specs(bagel.specs(tiny.MODEL), 2, lora.Projections("gen"))
    made = {
        path: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
        for path, leaf in param_tree.flatten(param_tree.abstract(specs)).items()
    }

    def train(folder):
        checkpoint.save_params(folder / "params", param_tree.unflatten(made))
        return Outcome({}, {}, 1)

    run_stage("train", cfg, work, sections=(), inputs={}, body=train)
    outputs, stage = run(cfg, work).outputs, work.stage("export")
    adapters = peft.load(stage / outputs["adapter"], tiny.MODEL)
    assert adapters.scale == 2.5 and len(adapters.factors) == 7
    merged, _ = hf.load(weights, tiny.MODEL, convert=peft.Merging(adapters))
    exported, _ = hf.load(stage / outputs["model"], tiny.MODEL)
    same(merged, exported)


def test_without_training_the_starting_model_in_bfloat16(weights, tmp_path):
    cfg = tiny.load_config(weights, stages=("export",))
    manifest = run(cfg, Workdir(tmp_path))
    folder = tmp_path / "round0" / "export" / "model"
    assert manifest.counts["parameters"] == sum(
        leaf.size for tree in tiny.weights() for leaf in jax.tree.leaves(tree)
    )
    found, coder = hf.load(folder, tiny.MODEL)
    old, old_coder = tiny.weights()
    same(found, jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), old))
    same(coder, old_coder)
    assert "unchanged weights" in (folder / "README.md").read_text()


def test_the_sharded_layout_and_a_base(weights, tmp_path):
    """The base's towers, words and usage are in what is exported."""
    folder = tmp_path / "short"
    folder.mkdir()
    tensors = load_file(weights / hf.MODEL_FILE)
    lacking = ("vit_model.", "connector.", "vit_pos_embed.")
    mine = {name: x + 1 for name, x in tensors.items() if not name.startswith(lacking)}
    save_file(mine, folder / "model.safetensors")
    whole = tiny.write_model(tmp_path / "whole")
    (whole / "generation_config.json").write_text("{}")
    cfg = tiny.load_config(
        folder,
        stages=("export",),
        weights_base=str(whole),
        export__layout="sharded",
        export__dtype="float32",
    )
    run(cfg, Workdir(tmp_path))
    made = tmp_path / "round0" / "export" / "model"
    assert (made / "model.safetensors.index.json").exists()
    assert not (made / hf.MODEL_FILE).exists()
    assert (made / "generation_config.json").read_text() == "{}"
    found, old = hf.load(made, tiny.MODEL)[0], tiny.weights()[0]
    same({"vit": found["vit"]}, {"vit": old["vit"]})
    same({"blocks": found["blocks"]}, {"blocks": jax.tree.map(lambda x: x + 1, old["blocks"])})
    following = loading.base(cfg, Workdir(tmp_path, round=1), tiny.mesh(cfg))
    assert following.source.folders == (made,) and following.tokenizer.encode("a red circle")
