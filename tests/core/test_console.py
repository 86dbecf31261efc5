"""Compiled programs are kept, by the command line and by `api.load` alike."""

import jax
import pytest

from srum_jax import api
from srum_jax.core import console


@pytest.fixture
def cache():
    """The folder that is set; put back after the test."""
    before = jax.config.jax_compilation_cache_dir
    yield before
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_folder_that_a_program_has_set_stays(cache):
    console.cache_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == cache


def test_loading_a_model_sets_one_in_the_users_cache(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    with pytest.raises(ValueError, match="precision"):
        api.load(precision="float7")  # found wrong before anything is loaded
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "srum_jax" / "compiled")
