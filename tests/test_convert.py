"""The command that converts: bytes come back, every bad wish is refused before anything is made."""

import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import tiny
import tiny_janus
from safetensors.numpy import load_file, save_file
from torch_writer import torch_save

from srum_jax import conversion, convert
from srum_jax.core import param_tree
from srum_jax.generation import janus
from srum_jax.models.bagel import hf
from srum_jax.models.janus import hf as janus_hf
from srum_jax.models.janus import original
from srum_jax.training import checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tiny.write_model(tmp_path_factory.mktemp("weights") / "model")
    (folder / "generation_config.json").write_text("{}")
    return folder


def run(*words):
    return convert.main([str(word) for word in words])


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "README.md"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back_gives_the_same_bytes(dtype, weights, tmp_path, capsys):
    start = tmp_path / "start"
    assert run(weights, start, "--to", "hf", "--dtype", dtype) == 0
    assert run(start, tmp_path / "orbax") == 0
    assert run(tmp_path / "orbax", tmp_path / "back") == 0
    assert files(tmp_path / "back") == files(start)
    assert "generation_config.json" in files(start)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and all(dtype in line for line in said)
    assert f"values as {dtype}" in (tmp_path / "back" / "README.md").read_text()


def test_another_dtype_and_layout_on_the_way(weights, tmp_path):
    assert run(weights, tmp_path / "orbax") == 0
    other = tmp_path / "other"
    assert run(tmp_path / "orbax", other, "--dtype", "bfloat16", "--layout", "sharded") == 0
    assert (other / "model.safetensors.index.json").exists()
    assert run(other, tmp_path / "half", "--to", "hf") == 0
    assert run(weights, tmp_path / "direct", "--to", "hf", "--dtype", "bfloat16") == 0
    assert files(tmp_path / "half") == files(tmp_path / "direct")


def test_what_training_wrote_is_completed_from_its_base(weights, tmp_path, capsys):
    tensors = load_file(weights / hf.MODEL_FILE)
    lacking = ("vit_model.", "connector.", "vit_pos_embed.")
    (tmp_path / "short").mkdir()
    save_file(
        {n: x for n, x in tensors.items() if not n.startswith(lacking)},
        tmp_path / "short" / "model.safetensors",
    )
    assert run(tmp_path / "short", tmp_path / "no", "--to", "hf") == 2
    assert "ae.safetensors: missing" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert run(tmp_path / "short", tmp_path / "whole", "--to", "hf", "--base", weights) == 0
    assert files(tmp_path / "whole") == files(weights)


def test_the_parameters_that_a_run_trained(weights, tmp_path, capsys):
    accepts = tiny.trainable("gen")
    new = param_tree.split(tiny.weights(1)[0], accepts)[0]
    checkpoint.save_params(tmp_path / "train" / "params", new)
    assert run(tmp_path / "train", tmp_path / "out") == 2
    assert "name the weights it started from by --base" in capsys.readouterr().err
    assert run(tmp_path / "train", tmp_path / "out", "--base", weights) == 0
    found = param_tree.flatten(hf.load(tmp_path / "out", tiny.MODEL)[0])
    old = param_tree.flatten(tiny.weights()[0])
    for path, leaf in found.items():
        want = param_tree.flatten(new)[path] if accepts(path) else old[path]
        np.testing.assert_array_equal(leaf, want, err_msg=path)
    wide = {**new, "llm2vae": {"w": np.zeros((3, 3), np.float32)}}
    checkpoint.save_params(tmp_path / "wide" / "params", wide)
    assert run(tmp_path / "wide", tmp_path / "never", "--base", weights) == 2
    assert "llm2vae/w has shape (3, 3)" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["hf", "orbax"])
def test_what_cannot_be_written_whole_is_not_there(weights, tmp_path, capsys, form):
    """The system's limit of a file's size stands for the disk: JSON fits, weights do not."""
    convert = f"exec {sys.executable} -m srum_jax.convert {weights} {tmp_path}/full --to {form}"
    found = subprocess.run(["sh", "-c", f"ulimit -f 8; {convert}"], capture_output=True, text=True)
    assert found.returncode == 2, found.stderr
    said = [line for line in found.stderr.splitlines() if "warn" not in line.lower()]
    assert said[-1].startswith("error: ") and len(said) == 1, found.stderr
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to("/nowhere/scratch")
    for target in ("file/x", "gone", "a" * 300, "/proc/x", "https://a/b", ""):
        target = target if "://" in target or not target else tmp_path / target
        assert run(weights, target, "--to", form) == 2, target
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1, said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "gone"]


@pytest.mark.parametrize("form, there", [("hf", False), ("orbax", True)])
def test_a_killed_command_leaves_nothing_that_passes_for_a_model(weights, tmp_path, form, there):
    """Killed when the first large file is whole; the same command then makes all of it."""
    target = tmp_path / "made"
    if there:
        target.mkdir()
    code = """
import os, signal, sys
from srum_jax import convert
from srum_jax.models import safetensors_io
from srum_jax.training import checkpoint
for module, name in ((safetensors_io, "write"), (checkpoint, "save_params")):
    def then_killed(*args, does=getattr(module, name)):
        does(*args)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, name, then_killed)
convert.main(sys.argv[1:])
"""
    words = [str(weights), str(target), "--to", form]
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True)
    assert ended.returncode == -9, ended.stderr
    assert [p.name for p in target.iterdir()] == [".partial"]
    assert len(list((target / ".partial").iterdir())) > 2
    assert run(*words) == 0
    assert run(weights, tmp_path / "other", "--to", form) == 0
    names = [
        {str(p.relative_to(folder)) for p in folder.iterdir()}
        for folder in (target, tmp_path / "other")
    ]
    assert names[0] == names[1] and not (target / ".partial").exists()
    if form == "hf":
        assert files(target) == files(tmp_path / "other")
    else:
        assert run(target, tmp_path / "back") == 0
        assert files(tmp_path / "back") == files(weights)


def test_bad_wishes_are_refused(weights, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "tree" / "params").mkdir(parents=True)
    for words, message in [
        ((weights, tmp_path / "full"), "exists and is not an empty folder"),
        ((tmp_path / "none", tmp_path / "t"), "none: no such folder"),
        ((tmp_path / "empty", tmp_path / "t"), "llm_config.json"),
        ((tmp_path / "tree", tmp_path / "t"), "not a saved parameter tree"),
        ((tmp_path / "tree", tmp_path / "t", "--to", "orbax"), "is an Orbax folder already"),
        ((weights, tmp_path / "t", "--layout", "sharded"), "says nothing with --to orbax"),
        ((weights, tmp_path / "t", "--base", tmp_path / "empty", "--to", "hf"), None),
    ]:
        assert run(*words) == (2 if message else 0), words
        assert message is None or message in capsys.readouterr().err
    assert (tmp_path / "full" / "x").read_text() == "mine"


@pytest.mark.parametrize("words, code", [(["--help"], 0), (["a", "b", "--layout", "round"], 2)])
def test_help_and_wrong_flags(words, code, capsys):
    with pytest.raises(SystemExit) as e:
        run(*words)
    assert e.value.code == code
    said = capsys.readouterr()
    assert "--base" in said.out + said.err and ("examples" in said.out or code)


def test_janus_goes_from_its_original_layout_to_hugging_faces_and_back(tmp_path):
    source, made, again = tmp_path / "source", tmp_path / "made", tmp_path / "again"
    folder = tiny_janus.save(tmp_path / "tiny")
    source.mkdir()
    cfg, params, coder, _ = janus.load(
        folder, mesh=tiny.mesh(tiny.load_config("")), dtype="float32"
    )
    table = [e for part in janus_hf.table(cfg).values() for e in part]
    entries, stored = original.ordered(table), load_file(folder / "model.safetensors")
    half = (stored[e.name].astype(ml_dtypes.bfloat16) for e in entries)
    names = (name for name, *_ in original.kinds(entries, "BF16"))
    tensors = dict(zip(names, original.fused(entries, half), strict=True))
    tensors[original.POOLING + "latent"] = np.ones((1, 2), ml_dtypes.bfloat16)
    torch_save(source / "pytorch_model.bin", tensors)
    for name in ("config.json", "tokenizer.json"):  # its own config cannot say such small sizes
        shutil.copy(folder / name, source / name)
    with pytest.raises(ValueError, match="--to hf"):
        conversion.convert(str(source), str(made))
    assert "bfloat16" in conversion.convert(str(source), str(made), to="hf")
    assert (made / "model.safetensors").exists() and not (made / "pytorch_model.bin").exists()
    read, _ = janus_hf.load(made, cfg)
    np.testing.assert_allclose(read["embed"], params["embed"], rtol=1e-2)
    with pytest.raises(ValueError, match="attn_pool"):
        conversion.convert(str(made), str(again), to="hf", layout="multi_modality")
    assert not again.exists()
    conversion.convert(str(source), str(again), to="hf", layout="multi_modality")
    found = load_file(again / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in found)
