"""Proposers that need a model or a file: what they find, and what they refuse."""

import json
import types

import numpy as np
import pytest

from srum_jax.rewards.boxes import proposers, regions
from srum_jax.rewards.boxes.proposers import FileProposer, ModelProposer, SamProposer
from srum_jax.rewards.boxes.regions import Limits, PromptedImage
from srum_jax.rewards.written import WrittenAnswer

IMAGE = np.zeros((50, 100, 3), np.uint8)


def boxes(proposer, *images):
    return [[region.box for region in found] for found in regions.propose(proposer, images)]


def test_the_model_is_asked_for_every_noun_and_its_boxes_are_scaled():
    asked = []

    def answer(requests, *, temperature, params):
        asked.extend((r.text, params) for r in requests)
        said = {
            "circle": "Box: 0, 0, 500, 500",
            "cross": "box: [500,0,1000,1000]\nBox: 0, 500, 100, 1000",
        }
        return [WrittenAnswer(next(v for k, v in said.items() if k in r.text)) for r in requests]

    proposer = ModelProposer(types.SimpleNamespace(answer=answer))
    images = [PromptedImage(IMAGE, "a red circle and two blue crosses")]
    (regions_,) = regions.propose(proposer, images, params="new")
    found = [[region.box for region in regions_]]
    assert len(asked) == 2 and {params for _, params in asked} == {"new"}
    assert found == [[(50.0, 0.0, 100.0, 50.0), (0.0, 0.0, 50.0, 25.0), (0.0, 25.0, 10.0, 50.0)]]


@pytest.mark.parametrize(
    "answer",
    [
        WrittenAnswer(""),
        WrittenAnswer("I see a cat."),
        WrittenAnswer("Box: 0, 0, 500"),
        WrittenAnswer("Box: 0, 0, 1500, 500"),
        WrittenAnswer("Box: 500, 0, 500, 500"),
        WrittenAnswer("Box: -5, 0, 500, 500"),
        WrittenAnswer("Box: 0, 0, 500, 500\nand so on"),
        WrittenAnswer("Box: 0, 0, 500, 500", finished=False),
        WrittenAnswer("Box: 0, 0, 500, 500", failure="timeout"),
    ],
)
def test_an_answer_that_names_no_boxes_gives_none(answer):
    source = types.SimpleNamespace(answer=lambda requests, **_: [answer] * len(requests))
    assert boxes(ModelProposer(source), PromptedImage(IMAGE, "a dream")) == [[]]


def test_none_is_an_answer():
    assert proposers.parse_boxes("None.") == []


def test_masks_come_with_their_boxes():
    mask = np.zeros((50, 100), bool)
    mask[10:20, 30:60] = True
    made = types.SimpleNamespace(boxes=np.array([[30, 10, 60, 20]]), masks=mask[None])
    generator = types.SimpleNamespace(generate=lambda images: [made] * len(images))
    ((region,),) = regions.propose(SamProposer(generator), [PromptedImage(IMAGE)])
    assert region.box == (30.0, 10.0, 60.0, 20.0) and (region.mask == mask).all()
    bad = types.SimpleNamespace(boxes=made.boxes, masks=mask[None, :, :50])
    generator = types.SimpleNamespace(generate=lambda images: [bad])
    with pytest.raises(ValueError, match="mask of"):
        regions.propose(SamProposer(generator), [PromptedImage(IMAGE)])


def write_lines(path, *lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def test_a_file_of_boxes(tmp_path):
    path = write_lines(
        tmp_path / "boxes.jsonl",
        {"id": "3-0", "boxes": [[0, 0, 10, 10], [5, 5, 500, 40.5]]},
        "",
        {"id": "3-1", "boxes": []},
    )
    proposer = FileProposer(proposers.read_boxes(path))
    images = [PromptedImage(IMAGE, id=name) for name in ("3-0", "3-1", "4-0")]
    assert boxes(proposer, *images) == [[(5.0, 5.0, 100.0, 40.5), (0.0, 0.0, 10.0, 10.0)], [], []]


@pytest.mark.parametrize(
    "line,why",
    [
        ("{", "line 2"),
        ([1], "an object"),
        ({"boxes": []}, "id"),
        ({"id": "1-1"}, "boxes"),
        ({"id": "1-1", "boxes": [[0, 0, 10]]}, "four"),
        ({"id": "1-1", "boxes": [[0, 0, 0, 10]]}, "x0 < x1"),
        ({"id": "1-1", "boxes": [[-1, 0, 10, 10]]}, "below 0"),
        ('{"id": "1-1", "boxes": [[0, 0, NaN, 10]]}', "four"),
        ({"id": "1-1", "boxes": [[0, 0, True, 10]]}, "four"),
        ({"id": "0-0", "boxes": []}, "before"),
        ("[" * 100_000, "line 2"),
    ],
)
def test_a_bad_file_of_boxes_is_refused_with_its_line(tmp_path, line, why):
    path = write_lines(tmp_path / "boxes.jsonl", {"id": "0-0", "boxes": []}, line)
    with pytest.raises(ValueError, match=why) as error:
        proposers.read_boxes(path)
    assert "boxes.jsonl, line 2" in str(error.value)


def test_a_file_of_boxes_as_others_save_it(tmp_path):
    line = '{"id": "1-1", "boxes": []}'
    path = tmp_path / "boxes.json"
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n".encode())
    assert proposers.read_boxes(path) == {"1-1": ()}
    path.write_bytes(line.encode() + '\r{"id": "é", "boxes": []}'.encode("latin-1"))
    with pytest.raises(ValueError, match="boxes.json, line 2: not UTF-8"):
        proposers.read_boxes(path)
    for read in (proposers.read_boxes, proposers.digest):
        with pytest.raises(ValueError, match="a folder; score.boxes names a JSONL file"):
            read(tmp_path)


def test_no_file_of_boxes(tmp_path):
    with pytest.raises(FileNotFoundError, match="score.boxes"):
        proposers.read_boxes(tmp_path / "none.jsonl")


def test_limits_hold_for_every_proposer(tmp_path):
    many = [[0, 0, 100, 50], [0, 0, 2, 2], *([i, 0, i + 20, 20] for i in range(0, 80, 20))]
    path = write_lines(tmp_path / "b.jsonl", {"id": "a", "boxes": many})
    given, image = proposers.read_boxes(path), PromptedImage(IMAGE, id="a")
    banded = boxes(FileProposer(given, Limits(min_area=0.01, max_area=0.9)), image)
    assert len(banded[0]) == 4
    few = boxes(FileProposer(given, Limits(max_regions=3)), image)[0]
    assert few[0] == (0.0, 0.0, 100.0, 50.0) and few[-1] == (0.0, 0.0, 2.0, 2.0) and len(few) == 3
