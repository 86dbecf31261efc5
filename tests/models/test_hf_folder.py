"""What a folder may lack, where it then comes from, and every way it can be wrong, told at once."""

import grp
import json
import pwd
import shutil

import jax
import numpy as np
import pytest
import tiny
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from srum_jax.core import param_tree
from srum_jax.models.bagel import hf, hf_folder
from srum_jax.stages import loading

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
        f"model-2.safetensors: '{moved}' is missing here and listed in model.safetensors.index",
        f"model-0.safetensors: '{moved}' is here and not listed so in model.safetensors.index",
        f"model-1.safetensors: '{unlisted}' is here and not listed so",
        "model-1.safetensors: 'ghost' is missing here",
    ):
        assert part in message, part
    (folder / "model-2.safetensors").unlink()
    assert "model-2.safetensors: the file is missing" in told(folder, tiny.MODEL)
    for text in ("{oh", "[]", '{"weight_map": 3}', "{}"):
        (folder / hf_folder.INDEX_FILE).write_text(text)
        assert "not an index of safetensors files" in told(folder, tiny.MODEL), text


def test_files_of_a_user_that_this_machine_does_not_know_are_read(folder, monkeypatch):
    def nobody(number):
        raise KeyError(f"uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(grp, "getgrgid", nobody)
    with pytest.raises(KeyError):  # what reading must not ask for
        epath.Path(folder / MODEL).stat()
    equal(hf.load(folder, tiny.MODEL)[0], tiny.weights()[0])
    assert len(loading.fingerprint(folder)) == 16


def test_halves_are_kept_where_all_are_halves(folder, tmp_path):
    params, coder = hf.load(folder, tiny.MODEL)
    hf.save(tmp_path / "half", tiny.MODEL, params, coder, "bfloat16")
    parts = hf.locate(tmp_path / "half")
    assert hf_folder.stored_dtype(parts, tiny.MODEL) == "bfloat16"
    assert parts.folders == (epath.Path(tmp_path / "half"),)


def rewritten(path, change):
    """The file with every tensor's name and value as `change` gives them."""
    save_file(dict(change(n, x) for n, x in load_file(path).items()), path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_a_wrappers_prefix_is_left_out(folder, prefix, caplog):
    for name in (MODEL, hf.VAE_FILE):
        rewritten(folder / name, lambda n, x: (prefix + n, x))
    found, coder = hf.load(folder, tiny.MODEL)
    equal(found, tiny.weights()[0])
    equal(coder, tiny.weights()[1])
    assert f"ema.safetensors: tensors' names are read without '{prefix}'" in caplog.text
    # In a tower that the base has, and on one tensor only, where it is another name.
    short = trained(folder.parent / "short", load_file(folder / MODEL))
    save_file({"x": np.zeros(1)}, short / "model.safetensors")
    assert "of another model: none of its 1 tensors" in told(short, tiny.MODEL, base=folder)
    rewritten(folder / MODEL, lambda n, x: (n.removeprefix(prefix) if "bias" in n else n, x))
    assert f"unknown tensor {prefix}" in told(folder, tiny.MODEL)


def test_the_weights_of_another_model_are_one_line(folder):
    rewritten(folder / MODEL, lambda n, x: ("transformer.h." + n.upper(), x))
    message = told(folder, tiny.MODEL)
    assert message.count("\n") == 2 and "of another model: none of its " in message
    assert "'transformer.h.CONNECTOR.FC1.BIAS'" in message


def test_shards_that_belong_elsewhere_are_a_line_each(folder):
    shard(folder)
    (folder / "model-1.safetensors").write_bytes((folder / "model-2.safetensors").read_bytes())
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    (folder / hf.VAE_FILE).write_bytes(pointer)
    message = told(folder, tiny.MODEL)
    assert message.count("model-1.safetensors") == 2 and "model-0" not in message
    assert "ae.safetensors: not a readable safetensors file (a Git LFS pointer" in message
    (folder / hf_folder.INDEX_FILE).write_bytes(pointer)
    assert "index.json: a Git LFS pointer" in told(folder, tiny.MODEL)
    (folder / hf_folder.INDEX_FILE).write_text('{"weight_map": {"a": {"b": 1}}}')
    assert "{'b': 1} is not the name of a file" in told(folder, tiny.MODEL)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_numbers_that_are_none_are_found_and_named(folder, value, dtype):
    import ml_dtypes

    bad = ("llm2vae.bias", "language_model.model.layers.0.mlp.gate_proj.weight")
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))

    def change(name, x):
        x = x.astype(dtype)
        if name in bad:
            x.reshape(-1)[-1] = value
        return name, x

    rewritten(folder / MODEL, change)
    message = told(folder, tiny.MODEL)
    assert "NaN or infinite numbers in 2 of its tensors" in message
    assert all(f"\n  {name}" in message for name in bad) and message.count("\n") == 3
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    at = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tiny.weights())
    assert told(folder, tiny.MODEL, shardings=at, dtype=np.float32) == message
    rewritten(folder / hf.VAE_FILE, lambda n, x: (n, x * np.float32(value)))
    assert "NaN" in told(folder, tiny.MODEL, want=("vae",))
