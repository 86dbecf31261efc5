"""Edits, two pictures compared, clips: what changes is what is said, in balance, in its split."""

import collections
import random

import numpy as np
import pytest
import shapes_truth

from srum_jax.worlds.shapes import changes, language, rendering
from srum_jax.worlds.shapes.setting import SMALL

WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


def pairs_of(scene):
    return [thing.pair for thing in scene.things]


def split_of(scene):
    return language.split_of(language.content_of(pairs_of(scene)))


def splits_of(things):
    """The splits of what can be said of things drawn or seen; one alone is of its size, too."""
    pairs = [thing.pair for thing in things]
    said = [language.content_of(pairs)]
    if len(pairs) == 1:
        said.append(language.sized(pairs, [things[0].scale]))
    return {language.split_of(content) for content in said}


def cells(scene):
    return {(thing.row, thing.col): thing for thing in scene.things}


# ------------------------------------------------------------------------------------------ edits


def test_edits_take_kinds_in_turn_within_their_split():
    edits = changes.edit_set("test", 80)
    assert [e.kind for e in edits[:8]] == [*changes.EDITS, *changes.EDITS]
    assert changes.edit_set("test", 12) == edits[:12] != changes.edit_set("test", 12, seed=1)
    assert changes.edit_set("validation", 12) != edits[:12]
    for edit in edits:
        assert split_of(edit.target) == "test" and "test" in splits_of(edit.source.things)
        assert edit.source.ground == edit.target.ground
    assert any(set(pairs_of(e.source)) & language.HELD_OUT for e in edits)


def test_just_what_the_instruction_says_has_changed():
    seen = collections.Counter()
    for edit in changes.edit_set("validation", 120):
        before, after = cells(edit.source), cells(edit.target)
        same = {cell for cell in before if before[cell] == after.get(cell)}
        assert set(edit.kept) == {before[cell] for cell in same}
        gone, come = set(before) - same, set(after) - same
        words = edit.instruction.removesuffix(" .").split()
        seen[words[0], edit.kind] += 1
        if edit.kind == "add":
            (cell,) = come
            assert not gone and cell not in before
            assert words == ["add", "a", *after[cell].pair] and edit.new == after[cell].pair
            assert edit.cell is None
            continue
        (cell,) = gone
        thing = before[cell]
        assert pairs_of(edit.source).count(thing.pair) == 1  # the words name it alone
        assert words[1:4] == ["the", *thing.pair]
        if edit.kind == "remove":
            assert not come and len(words) == 4 and edit.new is None and same
            continue
        (there,) = come
        changed = after[there]
        assert (edit.new, edit.cell) == (changed.pair, there)
        assert (changed.shape, changed.size) == (thing.shape, thing.size)
        if edit.kind == "recolor":
            assert there == cell and changed.box == thing.box and words[4:] == [changed.color]
            assert changed.color != thing.color
        else:
            assert changed.pair == thing.pair and changed.tone == thing.tone
            assert np.subtract(there, cell).tolist() == list(WAYS[words[4]])
            moved = 16 * np.array(WAYS[words[4]] * 2)[[1, 0, 1, 0]]
            assert np.subtract(changed.box, thing.box).tolist() == moved.tolist()
    verbs = {"recolor": "make", "add": "add", "remove": "remove", "move": "move"}
    assert seen == {(verb, kind): 30 for kind, verb in verbs.items()}


def test_training_edits_are_train_without_held_out_pairs():
    kinds = collections.Counter()
    for i in range(300):
        edit = changes.edit_example(3, i)
        kinds[edit.kind] += 1
        assert split_of(edit.target) == "train" and "train" in splits_of(edit.source.things)
        for scene in (edit.source, edit.target):
            assert not set(pairs_of(scene)) & language.HELD_OUT
        assert not any(" ".join(pair) in edit.instruction for pair in language.HELD_OUT)
    assert set(kinds) == set(changes.EDITS) and min(kinds.values()) > 50
    assert changes.edit_example(3, 7) == changes.edit_example(3, 7) != changes.edit_example(3, 8)


def test_an_edit_that_does_not_fit_is_none():
    rng = random.Random(0)
    full = rendering.scatter(rng, language.PAIRS[:4])
    assert changes.edited(rng, full, "add") is None and changes.edited(rng, full, "move") is None
    alone = rendering.scatter(rng, language.PAIRS[:1])
    assert changes.edited(rng, alone, "remove") is None
    twins = rendering.scatter(rng, language.PAIRS[:1] * 2)
    for kind in ("recolor", "remove", "move"):
        assert changes.edited(rng, twins, kind) is None


# --------------------------------------------------------------------------- two pictures and clips


@pytest.fixture(scope="module")
def stream():
    return [changes.several_example(11, i) for i in range(1200)]


def truth(frames, q):
    """The answer to a question about pictures, from their pixels."""
    if q.kind == "pair_changed":
        return shapes_truth.change(*map(shapes_truth.objects, frames))
    if q.kind == "pair_more":
        phrase = q.text.removeprefix("which image has more ").removesuffix(" ?")
        return shapes_truth.more(*map(shapes_truth.objects, frames), phrase)
    moved = shapes_truth.motion(frames)
    if q.kind == "clip_count":
        return shapes_truth.NUMBERS[len(moved)]
    ((seen, way),) = moved
    return {"clip_color": seen.color, "clip_shape": seen.shape, "clip_way": way}[q.kind]


def test_answers_about_several_pictures_are_what_looking_gives(stream):
    checked = collections.Counter()
    for frames, asked in stream[:160]:
        for q in asked:
            assert truth(frames, q) == q.answer, q
            checked[q.kind] += 1
    assert set(checked) == {*changes.PAIR_KINDS, *changes.CLIP_KINDS} and min(checked.values()) > 15


def test_examples_of_several_pictures(stream):
    numbers = collections.Counter(len(frames) for frames, _ in stream)
    assert set(numbers) == {2, 4, 5, 6, 8}
    assert abs(numbers[2] / len(stream) - 0.5) < 0.05
    for frames, asked in stream:
        assert all(f.shape == (32, 32, 3) and f.dtype == np.uint8 for f in frames)
        assert 1 <= len(asked) <= 4 and len({q.text for q in asked}) == len(asked)
        kinds = changes.PAIR_KINDS if len(frames) == 2 else changes.CLIP_KINDS
        assert {q.kind for q in asked} <= set(kinds)
    one, again = changes.several_example(11, 5), stream[5]
    assert one[1] == again[1] and all(map(np.array_equal, one[0], again[0]))
    for i in range(40):
        assert len(changes.several_example(2, i, clips=False)[0]) == 2


def shares(asked):
    """{kind: {answer: share}}"""
    counts = collections.defaultdict(collections.Counter)
    for q in asked:
        counts[q.kind][q.answer] += 1
    return {k: {a: n / c.total() for a, n in c.items()} for k, c in counts.items()}


def test_no_answer_about_several_pictures_is_a_good_guess(stream):
    """Training: a change leaves most counts equal, so "neither" is half of what has more."""
    most = {
        "pair_changed": (5, 0.26),
        "pair_more": (3, 0.56),
        "clip_color": (8, 0.19),
        "clip_shape": (4, 0.34),
        "clip_way": (4, 0.34),
        "clip_count": (3, 0.42),
    }
    found = shares(q for _, asked in stream for q in asked)
    assert set(found) == set(most)
    for kind, (number, most_often) in most.items():
        assert len(found[kind]) == number and max(found[kind].values()) < most_often, found[kind]
    tested = shares(q for _, q in changes.several_set("test", 900))
    for kind, (number, most_often) in (most | {"pair_more": (3, 0.42)}).items():
        assert len(tested[kind]) == number and max(tested[kind].values()) < most_often + 0.03


def test_questions_of_a_split_are_about_its_contents():
    asked = changes.several_set("test", 60, seed=1)
    kinds = (*changes.PAIR_KINDS, *changes.CLIP_KINDS)
    assert collections.Counter(q.kind for _, q in asked) == dict.fromkeys(kinds, 10)
    assert [q for _, q in changes.several_set("test", 6, seed=1)] == [q for _, q in asked[:6]]
    for frames, q in asked:
        shown = frames if len(frames) == 2 else frames[:1]
        for frame in shown:
            assert "test" in splits_of(shapes_truth.objects(frame))
        assert truth(frames, q) == q.answer, q


def test_more_is_counted():
    rng = random.Random(3)
    red, blue = ("red", "circle"), ("blue", "square")
    scenes = rendering.scatter(rng, [red, blue]), rendering.scatter(rng, [red, red, blue])
    wanted = {"objects": "second", "circles": "second", "squares": "neither"}
    wanted |= {"red objects": "second", "blue objects": "neither"}
    found = [changes.more_question(rng, scenes, "") for _ in range(80)]
    assert {(q.text, q.answer) for q in found} == {
        (f"which image has more {phrase} ?", answer) for phrase, answer in wanted.items()
    }
    turned = [changes.more_question(rng, scenes[::-1], "first") for _ in range(40)]
    assert {q.answer for q in turned if q} == {"first"} and None in turned


@pytest.mark.parametrize("movers", [0, 1, 2])
def test_movers_go_one_cell_and_the_others_stay(movers):
    """Seen in pixels: every frame has all objects, none of them touching another."""
    rng, made = random.Random(movers), 0
    while made < 15:
        clip = changes.clip_of(rng, "train", movers)
        if clip is None:
            assert movers
            continue
        made += 1
        assert len(clip.frames) in (4, 5, 6, 8) and len(clip.movers) == len(clip.ways) == movers
        number = len(shapes_truth.objects(clip.frames[0]))
        assert all(len(shapes_truth.objects(frame)) == number for frame in clip.frames)
        found = shapes_truth.motion(clip.frames)
        moved = [(seen.pair, shapes_truth.cell(seen), way) for seen, way in found]
        told = [(t.pair, (t.row, t.col), w) for t, w in zip(clip.movers, clip.ways, strict=True)]
        assert sorted(moved) == sorted(told)
        ends = [tuple(np.add(cell, WAYS[way])) for _, cell, way in moved]
        start = {shapes_truth.cell(seen) for seen in shapes_truth.objects(clip.frames[0])}
        assert set(ends) <= set(SMALL.cells) - start and len(set(ends)) == movers
