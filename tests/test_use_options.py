"""The command line of a model in use: the names of Python, former names, and what comes of them."""

import dataclasses
import json

import numpy as np
import test_api
from PIL import Image
from test_use import DRAW, PROMPT, QUESTION, folder, lines, opened, picture, run  # noqa: F401

from srum_jax import api, use_options
from srum_jax.config import SampleConfig
from srum_jax.data import images


def test_the_samplers_options_are_the_fields_of_python():
    fields = {field.name for field in dataclasses.fields(SampleConfig)}
    assert use_options.SAMPLER.keys() == fields
    said = {
        "size": ["32x64"],
        "steps": ["7"],
        "shift": ["2.5"],
        "guidance": ["3"],
        "image_guidance": ["1.5"],
        "guidance_interval": ["0.1", "0.9"],
        "renorm": ["channel"],
        "renorm_min": ["0.5"],
        "batch": ["2"],
    }
    words = [word for name, values in said.items() for word in (f"--{name}", *values)]
    options = use_options.parse([*DRAW, "--prompt", PROMPT, *words], "use")
    found = use_options.sampler_options(options)
    assert found.keys() == said.keys() and found["size"] == (32, 64) and found["shift"] == 2.5
    assert found["guidance_interval"] == [0.1, 0.9] and found["batch"] == 2
    assert use_options.sampler_options(use_options.parse([*DRAW, "--prompt", PROMPT], "use")) == {}


def test_former_names_are_read_with_a_warning(caplog):
    with caplog.at_level("WARNING", logger="absl"):
        words = [*DRAW, "--prompt", PROMPT, "--cfg", "3", "--image_cfg=1.5"]
        found = use_options.sampler_options(use_options.parse(words, "use"))
    assert found == {"guidance": 3.0, "image_guidance": 1.5}
    assert "--cfg is called --guidance" in caplog.text
    assert "--image_cfg is called --image_guidance" in caplog.text


def test_the_shell_draws_what_python_draws(run, folder, picture, tmp_path):  # noqa: F811
    how = ["--negative", "two blue squares", "--from_image", picture, "--start", 1, "--progress"]
    code, _, err = run(*DRAW, "--prompt", PROMPT, *how)
    assert code == 0 and "drawing" in err
    (record,) = lines(tmp_path / "out" / "records.jsonl")
    assert (record["negative"], record["start"]) == ("two blue squares", 1)
    assert record["from_image"] == picture and record["pixels"] == images.digest(test_api.image(1))
    same = dict(negative="two blue squares", from_image=picture, start=1)
    bagel = api.load(str(folder), precision=None, base=None)
    (drawing,) = bagel.generate(PROMPT, seeds=[record["seed"]], **same)
    np.testing.assert_array_equal(images.load(tmp_path / "out" / "0-0.png"), drawing.image)
    for other in (["--from_image", picture, "--start", 1], how[:2]):
        code, _, err = run(*DRAW, "--prompt", PROMPT, *other)
        assert code == 2 and "was drawn with" in err and "name another folder" in err


def test_the_shell_streams_and_reads_conversations(run, folder, picture, tmp_path):  # noqa: F811
    ask = ["answer", "--image", picture, "--question", QUESTION]
    code, out, _ = run(*ask, "--json")
    text = json.loads(out[0])["text"]
    assert code == 0 and run(*ask, "--stream")[:2] == (0, [text])
    chat = [
        {"role": "user", "content": [{"type": "image", "image": picture}, QUESTION]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": QUESTION},
    ]
    (tmp_path / "chat.json").write_text(json.dumps(chat))
    code, out, _ = run("answer", "--messages", "chat.json", "--json")
    found = json.loads(out[0])
    assert code == 0 and found["question"] == QUESTION and found["text"]
    shown = [{"role": "user", "content": [Image.open(picture), QUESTION]}, *chat[1:]]
    assert found["text"] == api.load(str(folder), precision=None, base=None).answer(shown).text
