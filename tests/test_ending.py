"""How errors end commands: whichever it is, a line and the same exit code."""

import numpy as np
import pytest
import test_convert

from srum_jax import cli
from srum_jax.core import console, ending, errors
from srum_jax.data import images

weights = test_convert.weights  # a folder with a small model


@pytest.fixture
def place(weights, tmp_path, bucket, monkeypatch):
    """What words of a command line in braces stand for."""
    monkeypatch.setenv(console.NO_PROGRESS, "")  # which --quiet sets, is as it was afterwards
    (tmp_path / "a.png").write_bytes(images.encode_png(np.zeros((8, 8, 3), np.uint8)))
    return {"there": bucket, "model": weights, "here": tmp_path, "picture": tmp_path / "a.png"}


@pytest.mark.parametrize(
    "number, code, said",
    [(503, 69, "the storage gives no answer"), (403, 2, "the storage refuses")],
)
@pytest.mark.parametrize(
    "words",
    [
        "run --quiet --config=shapes --workdir={there}/run",
        "run --workdir={there}/run",
        "generate --model={there}/model --prompt=red -o {here}/out",
        "generate --model={model} --prompts={there}/p.txt -o {here}/out",
        "edit --model={model} --base={there}/model --instruction=red --image={picture} -o {here}/o",
        "answer --model={there}/model --image={picture} --question=what",
        "caption --model={there}/model {picture}",
        "convert {there}/model {here}/out",
        "convert {model} {there}/out",
        "export-dataset {there}/run/round0 {here}/out",
        "export-dataset {here}/round0 {there}/out",
    ],
)
def test_every_command_tells_a_storage_that_is_gone(words, number, code, said, place, gone, capsys):
    with gone(number):
        assert cli.main([word.format(**place) for word in words.split()]) == code
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("error: ") and said in err, err


def test_what_a_storage_that_is_gone_holds_is_no_problem_of_the_config(place, gone, capsys):
    words = (
        "run --check --config=shapes --workdir={here}/run --config.generate.prompts={there}/a.txt"
    )
    for number, code, said in ((502, 69, "gives no answer"), (403, 2, "the storage refuses")):
        with gone(number):
            assert cli.main([word.format(**place) for word in words.split()]) == code
        assert said in capsys.readouterr().err


def test_a_fault_of_the_program_is_not_told_in_a_line(capsys):
    assert ending.told(TypeError("a bug"))[1] is None
    assert ending.told(errors.Preempted("stopped at step 3"))[1] == 75
    assert capsys.readouterr().err == "stopped at step 3: the same command goes on from there\n"
