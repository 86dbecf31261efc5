"""Models by their names on the hub, found in the cache as huggingface_hub keeps it: no network."""

import importlib.util
import os

import huggingface_hub
import numpy as np
import pytest
import test_api
from huggingface_hub import constants, file_download

from srum_jax import api
from srum_jax.core import hub, places
from srum_jax.core.errors import BadInput
from srum_jax.worlds.shapes import examples

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "somebody/Small-Bagel.v1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return test_api.write_model(folder, examples.write_tokenizer(folder / "words"))


@pytest.fixture
def cache(folder, tmp_path, monkeypatch):
    """The package's own layout: blobs, a snapshot of links to them, branches and tags."""
    cache = tmp_path / "cache"
    kept = cache / file_download.repo_folder_name(repo_id=NAME, repo_type="model")
    snapshot = kept / "snapshots" / COMMIT
    for part in (snapshot, kept / "blobs", kept / "refs"):
        part.mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in folder.iterdir() if p.is_file())):
        blob = kept / "blobs" / f"{number:040x}"
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    for name in ("main", "v1"):
        (kept / "refs" / name).write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (repository,) = huggingface_hub.scan_cache_dir(cache).repos
    assert repository.repo_id == NAME and len(repository.revisions) == 1
    return cache


def test_a_name_is_a_model(folder, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own, fetched = api.load(folder), api.load(NAME)
    assert fetched.generation_config == own.generation_config
    head = "lm_head"
    np.testing.assert_array_equal(fetched.params[head]["w"], own.params[head]["w"])
    for revision in ("v1", "main", COMMIT):
        found = places.model_folder(f"{NAME}@{revision}")
        assert found.name == COMMIT and (found / "llm_config.json").exists()


def test_a_folder_of_that_name_comes_first(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / NAME
    own.mkdir(parents=True)
    assert places.model_folder(NAME).resolve() == own.resolve()


def test_what_is_not_there_is_said_in_a_line(cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("somebody/else", f"{NAME}@v2"):
        with pytest.raises(BadInput) as caught:
            api.load(name)
        assert str(caught.value).startswith(f"{name}: ") and "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="x/y: no such folder, nor does the hub"):
        api.load(NAME, base="x/y")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "huggingface_hub" else found(n, *a)
    )
    with pytest.raises(BadInput, match="needs huggingface_hub: pip install huggingface_hub"):
        api.load(NAME)


def test_names_of_the_hub():
    names = ["ByteDance-Seed/BAGEL-7B-MoT", "a/b@v1.0", "a/b@refs/pr/1", f"a/b@{COMMIT}"]
    assert all(map(hub.is_name, names))
    for path in ("weights", "/a/b", "./a/b", "a/b/c", "~/a", "a/", "gs://a/b", "a/b@", "a b/c"):
        assert not hub.is_name(path)
