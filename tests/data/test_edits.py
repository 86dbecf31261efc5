"""Lists of edits: of a world and of files, and what is said of lines that are none."""

import dataclasses
import json

import numpy as np
import pytest

from srum_jax.core.errors import BadInput
from srum_jax.data import edits
from srum_jax.data.images import encode_png


def picture(path, value=3):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode_png(np.full((8, 12, 3), value, np.uint8)))


def written(folder, *lines):
    path = folder / "edits.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return str(path)


def test_a_worlds_edits_are_pictures_and_instructions():
    found = edits.read("shapes:train", 5)
    assert [one.id for one in found] == list(range(5))
    assert len({one.instruction for one in found}) > 2
    assert all(one.image().shape == (32, 32, 3) for one in found)
    assert edits.digest(found[:3]) == edits.digest(edits.read("shapes:train", 3))
    assert edits.read("shapes64:train", 1)[0].image().shape == (64, 64, 3)
    assert edits.digest(found) != edits.digest(edits.read("shapes:validation", 5))
    with pytest.raises(ValueError, match='"trian" is no split of edits'):
        edits.read("shapes:trian", 1)
    with pytest.raises(BadInput, match="the world shapes_janus has no edits"):
        edits.read("shapes_janus:train", 1)


def test_a_file_names_pictures_beside_it(tmp_path):
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "b.png", 9)
    lines = [{"image": "in/a.png", "instruction": " make it   red "}]
    lines.append({"image": "b.png", "instruction": "remove it"})
    path = written(tmp_path, *lines)
    first, second = edits.read(path, 9)
    assert (first.id, first.instruction, first.where) == (0, "make it red", f"{path}, line 1")
    assert second.image().shape == (8, 12, 3) and second.image()[0, 0, 0] == 9
    assert [one.id for one in edits.read(path, 1)] == [0]
    before = edits.digest((first, second))
    picture(tmp_path / "b.png", 10)  # other pixels under the same name
    assert edits.digest((first, second)) != before
    assert edits.digest((dataclasses.replace(first, instruction="x"), second)) != before


def test_lines_that_are_none_are_all_told(tmp_path):
    picture(tmp_path / "a.png")
    path = written(
        tmp_path,
        {"image": "../a.png", "instruction": "x"},
        {"image": "none.png", "instruction": "x"},
        {"image": "a.png", "instruction": " "},
        "[",
        {"image": "a.png", "instruction": "fine"},
    )
    with pytest.raises(ValueError) as told:
        edits.read(path, 9)
    said = str(told.value)
    for line, why in (
        *((1, "leads out of the folder"), (2, "none.png: no such picture")),
        *((3, 'no text in the field "instruction"'), (4, "")),
    ):
        assert f"line {line}: " in said and why in said
    assert "line 5" not in said
    with pytest.raises(BadInput, match="there are no edits in it"):
        edits.read(written(tmp_path), 1)
    with pytest.raises(BadInput, match="give a .jsonl file, or one of shapes:SPLIT"):
        edits.read("edits.txt", 1)
