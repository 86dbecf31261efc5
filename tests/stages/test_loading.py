"""Opening models: which folder a round starts from, its fingerprint, and the trained leaves."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from srum_jax.core import files, in_flight, param_tree, sharding
from srum_jax.core.errors import BadInput
from srum_jax.models.bagel import cost
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
    accepts = tiny.trainable("gen")
    trained, frozen = param_tree.split(bagel.specs(tiny.MODEL), accepts)
    assert set(trained) == {"blocks", "norm", "time", "vae2llm", "llm2vae"}
    assert set(trained["blocks"]) == set(trained["norm"]) == {"gen"}
    assert set(frozen) == {"blocks", "norm", "embed", "lm_head", "connector", "vit"}
    assert not param_tree.flatten(
        param_tree.split(bagel.specs(tiny.MODEL), tiny.trainable("all"))[1]
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
    mesh, accepts = tiny.mesh(cfg), tiny.trainable("gen")
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


def test_compilations_inside_alone_count_and_calls_that_are_sent():
    with loading.measured() as spent:
        y = jax.jit(lambda x: x * 3.25)(1.0)
        assert [made for _, made in in_flight.fetched([("a", y)])] == [3.25]
        assert spent == loading.Spent()  # it is said at the end
    heard = dataclasses.replace(spent)
    jax.jit(lambda x: x * 4.25)(1.0)
    assert spent == heard and heard.compile_seconds > 0 and heard.device_seconds >= 0


@pytest.fixture
def on_eight(weights, tmp_path, monkeypatch):
    """The mesh of a stage and the model on it, of a run that trains on tensor 2, where each of
    eight devices has room for so many times the weights."""
    eights = dict(sample__batch=8, generate__shard_size=8, mesh__tensor=2)
    cfg, work = tiny.load_config(weights, **eights), Workdir(tmp_path)
    need = cost.memory(tiny.MODEL, "float32").weights

    def make(room):
        monkeypatch.setattr(sharding, "memory", lambda device: room * need)
        here = loading.own_mesh(cfg, work, sharding.make_mesh(cfg.mesh))
        return cfg, here, loading.base(cfg, work, here)

    return make


@pytest.mark.parametrize("room, cut", [(2.0, 1), (1.0, 2), (0.1, 8)])
def test_a_stage_that_draws_has_a_mesh_of_its_own(on_eight, room, cut):
    _, here, opened = on_eight(room)
    assert dict(here.shape) == dict(data=8 // cut, fsdp=cut, tensor=1, context=1)
    leaf = opened.params["blocks"]["gen"]["gate"]["w"]
    parts = {tuple(map(str, one.index)) for one in leaf.addressable_shards}
    assert len(leaf.addressable_shards) == 8 and len(parts) == cut
    coder = jax.tree.leaves(opened.vae_params)
    assert all(one.is_fully_replicated and len(one.sharding.device_set) == 8 for one in coder)


@pytest.mark.slow
def test_it_draws_and_answers_the_same_on_every_mesh(on_eight):
    def made(room):
        cfg, here, opened = on_eight(room)
        with jax.set_mesh(here):
            prompts = ["a red circle", "a blue square"]
            _, latents = opened.image_sampler(cfg, here).sample_prompts(prompts, [1, 2])
            images = [np.full((32, 32, 3), 80 * i, np.uint8) for i in range(2)]
            asked = opened.answer_scorer(cfg, here, batch=8)
            given = asked.probabilities(images, [["is this red ?"]] * 2, [[[5, 6, 7]]] * 2)
            return latents, np.array(given)

    for whole, cut in zip(made(2.0), made(0.3), strict=True):
        np.testing.assert_allclose(whole, cut, atol=1e-5)
