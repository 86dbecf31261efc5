"""MVBench's files: a JSON file a task, clips and folders of frames."""

import json

import choice_suites as made
import numpy as np
import pytest
from PIL import Image

from srum_jax.core.errors import BadInput
from srum_jax.evals.suites import mvbench

PLACE = {"action_count": "perception/videos", "episodic_reasoning": "tvqa/video_fps3_hq_segment"}


def rows(task, count=3, video="clip{}.gif"):
    return [
        {
            "video": video.format(i),
            "question": f"How many {i}?",
            "candidates": ["one", "two", "three"],
            "answer": "two",
        }
        for i in range(count)
    ]


def write(folder):
    """A task of clips, and one of folders of frames whose numbers are not padded."""
    tasks = {"action_count": rows("action_count"), "episodic_reasoning": rows("", 1, "frames{}")}
    (folder / "json").mkdir()
    for task, some in tasks.items():
        (folder / "json" / f"{task}.json").write_text(json.dumps(some))
    place = folder / "video" / PLACE["action_count"]
    place.mkdir(parents=True)
    for i in range(3):
        first, *others = [Image.fromarray(made.picture(20 * j + i)) for j in range(4)]
        first.save(place / f"clip{i}.gif", save_all=True, append_images=others, duration=100)
    for j in range(12):
        made.save(
            folder / "video" / PLACE["episodic_reasoning"] / "frames0" / f"{j}.png",
            made.picture(10 * j),
        )
    return folder


def suite(folder, **how):
    return mvbench.make(made.config(**how), str(folder), "")


def test_frames_come_in_their_order_and_the_question_as_the_harness_asks(tmp_path):
    asked = suite(write(tmp_path)).requests("model").texts
    assert [r.id for r in asked] == [
        *("episodic_reasoning-0", "action_count-0", "action_count-1", "action_count-2"),
    ]
    assert asked[1].instruction == (
        "Question:How many 0?\nOption:\n(A) one\n(B) two\n(C) three\nOnly give the best option.\n"
    )
    assert len(asked[1].images) == 4 and len(asked[0].images) == 8
    shades = [int(frame[0, 0, 0]) for frame in asked[0].images]
    assert shades == sorted(shades) and shades[0] == 0 and shades[-1] == 110
    np.testing.assert_array_equal(asked[0].images[0], made.picture(0))


def test_the_number_of_frames_can_be_chosen(tmp_path):
    asked = suite(write(tmp_path), frames=3)
    images = asked.requests("model").texts[0].images
    assert [int(frame[0, 0, 0]) for frame in images] == [0, 60, 110]
    assert asked.settings == {"frames": 3}


def test_a_task_counts_as_much_as_another(tmp_path):
    asked = suite(write(tmp_path))
    words = {
        "episodic_reasoning-0": "(B)",
        "action_count-0": "B. two",
        "action_count-1": "",
        "action_count-2": "a pair, so A is right",
    }
    scored = made.scored(asked, words)
    assert scored.strict["accuracy"].number == pytest.approx((100 + 100 / 3) / 2)
    # As released the empty reply is left out.
    assert scored.as_released == pytest.approx({"accuracy": (100 + 50) / 2})
    assert scored.by_category["action_count"] == pytest.approx(
        {"n": 3, "accuracy": 100 / 3, "as_released": 50}
    )
    assert scored.failed == 1
    section = made.check_folder(asked, words, tmp_path)
    assert section["settings"] == {"frames": 8} and section["best"] == 100


def test_official_files_hold_what_was_said(tmp_path):
    folder = made.official(suite(write(tmp_path)), "B", tmp_path / "official")
    found = json.loads((folder / "action_count.json").read_text())
    assert found[0] == rows("")[0] | {"pred": "B", "gt": "(B) two"}


def test_a_limit_is_even_over_tasks(tmp_path):
    asked = suite(write(tmp_path), limit=2).requests("m").texts
    assert {r.category for r in asked} == set(PLACE)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"answer": "four"}, '"answer" is \'four\', none of "candidates"'),
        ({"candidates": "one"}, "'candidates' is 'one', no list"),
        ({"candidates": [1]}, "must be a list of texts"),
        ({"video": "no.gif"}, "the clip 'no.gif' is not there"),
        ({"video": "../../json/action_count.json"}, "is not there"),
        ({"question": None}, "'question'"),
    ],
)
def test_a_bad_item_is_named(tmp_path, change, message):
    path = write(tmp_path) / "json" / "action_count.json"
    some = rows("")
    some[1] |= change
    path.write_text(json.dumps(some))
    with pytest.raises(BadInput) as e:
        suite(tmp_path)
    assert message in str(e.value) and "action_count.json, item 2" in str(e.value)


def test_missing_files_and_damaged_clips_are_named(tmp_path):
    with pytest.raises(BadInput, match="holds no json/<task>.json"):
        suite(tmp_path)
    write(tmp_path)
    clip = tmp_path / "video" / PLACE["action_count"] / "clip0.gif"
    clip.write_bytes(b"GIF89a")
    asked = suite(tmp_path).requests("m").texts
    with pytest.raises(ValueError, match="clip0.gif"):
        len(asked[1].images)
    for frame in (tmp_path / "video" / PLACE["episodic_reasoning"] / "frames0").iterdir():
        frame.unlink()
    with pytest.raises(BadInput, match="frames0: holds no frames"):
        len(asked[0].images)
