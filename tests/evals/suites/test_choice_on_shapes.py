"""The shapes world's own files of the multiple-choice benchmarks are read as the official ones."""

import choice_suites as made
import pytest

from srum_jax.core import registry
from srum_jax.evals.suites import mmbench


@pytest.mark.parametrize("name", ["mmbench", "mmmu", "mvbench", "videomme"])
def test_letters_and_words_of_options_are_right_alike(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    suite = registry.load(registry.SUITES, name).make(made.config(limit=12), "shapes", "")
    right = made.answers(suite)
    texts = {r.id: r.truth["options"].get(right[r.id], right[r.id]) for r in _asked(suite)}
    for words in (right, texts):
        scored = made.scored(suite, words)
        assert next(iter(scored.strict.values())).number == suite.about.best
        assert scored.failed == 0 and all(item["right"] for item in scored.items)
    assert made.scored(suite, "").failed == len(_asked(suite))
    assert all(len(r.images) for r in _asked(suite)[:3])
    assert suite.data.n == 12 < suite.data.total


def _asked(suite):
    return suite.requests("model").texts


def test_rotations_of_the_world_are_those_of_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    scored = made.scored(mmbench.make(made.config(limit=4), "shapes", ""), "A")
    assert scored.strict["circular"].number == 0 < scored.n - len(scored.units)
