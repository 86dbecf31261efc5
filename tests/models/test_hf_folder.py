"""What a folder may lack, where it then comes from, and every way it can be wrong, told at once."""

import json
import shutil

import numpy as np
import pytest
import tiny
from etils import epath
from safetensors.numpy import load_file, save_file

from srum_jax.core import param_tree
from srum_jax.models.bagel import hf, hf_folder

MODEL = hf.MODEL_FILE
LACKING = ("vit_model.", "connector.", "vit_pos_embed.", "latent_pos_embed.")


@pytest.fixture
def folder(tmp_path):
    return tiny.write_model(tmp_path / "model")


def trained(folder, tensors):
    """A folder as training writes it: the model without its towers, nothing else."""
    folder.mkdir()
    kept = {name: x + 1 for name, x in tensors.items() if not name.startswith(LACKING)}
    save_file(kept, folder / "model.safetensors")
    return folder


def told(*args, **kwargs):
    with pytest.raises(ValueError) as e:
        hf.load(*args, **kwargs)
    return str(e.value)


def shard(folder, parts=3):
    """Cuts ema.safetensors into files with an index, as the hub's tools do."""
    tensors = load_file(folder / MODEL)
    places = {name: f"model-{i % parts}.safetensors" for i, name in enumerate(tensors)}
    for part in set(places.values()):
        save_file({n: x for n, x in tensors.items() if places[n] == part}, folder / part)
    (folder / MODEL).unlink()
    write_index(folder, places)
    return places


def write_index(folder, places):
    (folder / hf_folder.INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def equal(tree, other):
    for path, leaf in param_tree.flatten(tree).items():
        np.testing.assert_array_equal(leaf, param_tree.flatten(other)[path], err_msg=path)


def test_all_problems_of_both_files_are_told_at_once(folder):
    tensors = load_file(folder / MODEL)
    del tensors["vae2llm.bias"]
    tensors["something.else"] = np.zeros(3, np.float32)
    tensors["llm2vae.bias"] = np.zeros(32, np.int32)
    tensors["vit_pos_embed.pos_embed"] = np.zeros((9, 64), np.float32)
    save_file(tensors, folder / MODEL)
    (folder / hf.VAE_FILE).write_bytes(b"not a checkpoint at all")
    message = told(folder, tiny.MODEL)
    for part in (
        "ema.safetensors: tensor vae2llm.bias (16,) is missing",
        "unknown tensor something.else",
        "llm2vae.bias is I32",
        "vit_pos_embed.pos_embed has shape (9, 64), expected (16, 16)",
        "ae.safetensors: not a readable safetensors file",
    ):
        assert part in message, part


def test_missing_files_and_wrong_wishes_are_named(folder):
    (folder / hf.VAE_FILE).unlink()
    (folder / MODEL).rename(folder / "other.safetensors")
    message = told(folder, tiny.MODEL)
    assert "ema.safetensors: the file is missing" in message
    assert "ae.safetensors: the file is missing" in message and "weights_base" in message
    with pytest.raises(FileNotFoundError, match="ema.safetensors.*ae.safetensors: missing"):
        hf.locate(folder)
    with pytest.raises(ValueError, match="want may name"):
        hf.load(folder, tiny.MODEL, want=("models",))


def test_ema_goes_before_model_before_an_index(folder):
    save_file(load_file(folder / MODEL), folder / "model.safetensors")
    shard(folder)
    assert hf.locate(folder).model.name == "model.safetensors"
    (folder / "model.safetensors").rename(folder / MODEL)
    assert hf.locate(folder).model.name == MODEL
    (folder / MODEL).unlink()
    assert hf.locate(folder).model.name == hf_folder.INDEX_FILE


def test_towers_that_training_left_out_come_from_the_base(folder, tmp_path):
    short = trained(tmp_path / "short", load_file(folder / MODEL))
    message = told(short, tiny.MODEL)
    assert "the vision tower is missing (vit_model.*, " in message
    assert "the connector is missing (connector.*, 4 tensors)" in message
    assert "ae.safetensors: the file is missing" in message and "base=" in message
    assert "language_model" not in message
    params, coder = hf.load(short, tiny.MODEL, base=folder)
    old, old_coder = tiny.weights()
    towers = {"vit": old["vit"], "connector": old["connector"]}
    equal({k: params[k] for k in towers}, towers)
    rest = {k: v for k, v in old.items() if k not in towers}
    equal({k: v for k, v in params.items() if k not in towers}, mapped(lambda x: x + 1, rest))
    equal(coder, old_coder)
    parts = hf.locate(short, folder)
    assert parts.model == short / "model.safetensors" and parts.sizes == parts.words == folder
    assert {p.name for p in parts.beside()} >= {"llm_config.json", "tokenizer.json"}


def mapped(f, tree):
    return param_tree.unflatten({path: f(leaf) for path, leaf in param_tree.flatten(tree).items()})


def test_the_base_is_checked_too_and_never_gives_the_model(folder, tmp_path):
    short = trained(tmp_path / "short", load_file(folder / MODEL))
    tensors = load_file(folder / MODEL)
    del tensors["connector.fc2.bias"]
    tensors["vit_model.vision_model.post_layernorm.bias"] = np.zeros(3, np.float32)
    save_file(tensors, folder / MODEL)
    message = told(short, tiny.MODEL, base=folder)
    assert f"{folder / MODEL}: tensor connector.fc2.bias (16,) is missing" in message
    assert f"{folder / MODEL}: vit_model.vision_model.post_layernorm.bias has shape (3,)" in message
    # Half a tower is a damaged file, not a tower left out.
    del tensors["vit_model.vision_model.post_layernorm.bias"]
    save_file(tensors, short / "model.safetensors")
    message = told(short, tiny.MODEL, base=folder)
    assert f"{short}/model.safetensors: tensor vit_model" in message
    (short / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="short/ema.safetensors: missing"):
        hf.locate(short, folder)


def test_a_sharded_folder_is_the_same_model(folder):
    whole = hf.load(folder, tiny.MODEL)
    shard(folder)
    for tree, other in zip(hf.load(folder, tiny.MODEL), whole, strict=True):
        equal(tree, other)
    assert hf_folder.stored_dtype(hf.locate(folder), tiny.MODEL) == "float32"


@pytest.mark.parametrize(
    "place", ["../model-0.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "x.bin", 3, [1]]
)
def test_an_index_stays_in_its_folder(folder, place):
    places = shard(folder)
    shutil.copy(folder / "model-0.safetensors", folder.parent / "model-0.safetensors")
    write_index(folder, {n: place if p.startswith("model-0") else p for n, p in places.items()})
    assert "is not the name of a file beside it" in told(folder, tiny.MODEL, want=("model",))


def test_a_wrong_index_is_told(folder):
    places = shard(folder)
    names = sorted(places)
    moved = next(n for n in names if places[n] == "model-0.safetensors")
    unlisted = next(n for n in names if places[n] == "model-1.safetensors")
    wrong = {n: p for n, p in places.items() if n != unlisted} | {moved: "model-2.safetensors"}
    write_index(folder, wrong | {"ghost": "model-1.safetensors"})
    message = told(folder, tiny.MODEL)
    for part in (
        f"model-2.safetensors: {moved} is missing",
        f"model-0.safetensors: {moved} is there, model.safetensors.index.json lists it in model-2",
        f"model-1.safetensors: {unlisted} is there, model.safetensors.index.json lists it nowhere",
        "model-1.safetensors: ghost is missing",
    ):
        assert part in message, part
    (folder / "model-2.safetensors").unlink()
    assert "model-2.safetensors: the file is missing" in told(folder, tiny.MODEL)
    for text in ("{oh", "[]", '{"weight_map": 3}', "{}"):
        (folder / hf_folder.INDEX_FILE).write_text(text)
        assert "not an index of safetensors files" in told(folder, tiny.MODEL), text


def test_halves_are_kept_where_all_are_halves(folder, tmp_path):
    params, coder = hf.load(folder, tiny.MODEL)
    hf.save(tmp_path / "half", tiny.MODEL, params, coder, "bfloat16")
    parts = hf.locate(tmp_path / "half")
    assert hf_folder.stored_dtype(parts, tiny.MODEL) == "bfloat16"
    assert parts.folders == (epath.Path(tmp_path / "half"),)
