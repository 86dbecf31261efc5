"""The flagship's first day: its stand-ins for weights have the layouts that the config asks for.

The run itself takes an hour and more: benchmarks/first_day.py.
"""

import json
import pathlib
import sys

import free_words
import pytest

from srum_jax import main

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))

import first_day  # noqa: E402


@pytest.mark.slow
def test_nothing_is_missing_before_anything_is_run(tmp_path, capsys):
    free_words.prompts_file(tmp_path / "given.json")
    others = [f"{n} dogs in a boat" for n in ("two", "three", "four", "five")]
    (tmp_path / "test.json").write_text(json.dumps(others))
    given, test = tmp_path / "given.json", tmp_path / "test.json"
    options = first_day.prepared(tmp_path, given, test, count=2)
    assert main.main([*options, "--check"]) == 0
    assert "16 pictures of 1024x1024" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
