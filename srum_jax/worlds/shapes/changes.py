"""What changes between shapes pictures: edits, two pictures compared, and short clips.

Owns the instructions of edits and the questions about several pictures at once, each with a
one-word answer that is drawn first, so that no question tells it. Pairs and clips are of the small
setting alone.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from srum_jax.worlds.shapes import language
from srum_jax.worlds.shapes import rendering as render
from srum_jax.worlds.shapes.language import name
from srum_jax.worlds.shapes.question_forms import ShapesQuestion
from srum_jax.worlds.shapes.questions import scene_of, stream_rng
from srum_jax.worlds.shapes.rendering import COLORS, Pair, Scene, Thing, pick
from srum_jax.worlds.shapes.setting import SMALL, Setting

EDITS = ("recolor", "add", "remove", "move")
WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (rows, columns)
PAIR_KINDS = ("pair_changed", "pair_more")
CLIP_KINDS = ("clip_color", "clip_shape", "clip_way", "clip_count")
FRAMES = (4, 4, 5, 6, 8)  # of a clip
CHANGES = {"recolor": "color", "add": "added", "remove": "removed", "move": "place", "": "nothing"}

_COMPARED = (("single", 0.1), ("attr", 0.35), ("count", 0.15), ("triple", 0.3), ("quad", 0.1))
_FILMED = (("single", 0.35), ("attr", 0.4), ("triple", 0.25))


@dataclass(frozen=True)
class Edit:
    """A scene, what is to change, and a scene in which just that has changed.

    `new` is the pair that the change made or moved (None: one was removed), and `cell` where it
    must be (None: in any cell that was free).
    """

    kind: str
    source: Scene
    instruction: str
    target: Scene
    new: Pair | None
    cell: tuple[int, int] | None

    @property
    def kept(self) -> tuple[Thing, ...]:
        """The things that the edit must leave as they are."""
        return tuple(t for t in self.target.things if t in self.source.things)


def edited(rng: random.Random, scene: Scene, kind: str) -> Edit | None:
    """A drawn edit of one thing that its colour and shape name uniquely; None if none fits."""
    pairs = Counter(t.pair for t in scene.things)
    things = [t for t in scene.things if pairs[t.pair] == 1]
    setting = scene.setting
    free = [c for c in setting.cells if c not in {(t.row, t.col) for t in scene.things}]
    if kind == "add":
        left = [p for p in language.PAIRS if p not in pairs]
        if not free:
            return None
        pair, cell = pick(rng, left), pick(rng, free)
        target = replace(scene, things=(*scene.things, render.place(rng, pair, cell, "", setting)))
        return Edit(kind, scene, f"add {name(pair)} .", target, pair, None)
    if not things:
        return None
    at = scene.things.index(pick(rng, things))
    thing = scene.things[at]
    rest = (scene.things[:at], scene.things[at + 1 :])
    if kind == "remove":
        if len(scene.things) == 1:
            return None
        target = replace(scene, things=rest[0] + rest[1])
        return Edit(kind, scene, f"remove the {thing.color} {thing.shape} .", target, None, None)
    if kind == "recolor":
        color = pick(rng, [c for c in COLORS if (c, thing.shape) not in pairs])
        other = render.place(rng, (color, thing.shape), (thing.row, thing.col), "", setting)
        changed = replace(thing, color=color, tone=other.tone)
        words = f"make the {thing.color} {thing.shape} {color} ."
    else:
        ways = [w for w, to in WAYS.items() if (thing.row + to[0], thing.col + to[1]) in free]
        if not ways:
            return None
        way = pick(rng, ways)
        down, right = (setting.cell * step for step in WAYS[way])
        changed = render.shifted(thing, right, down, setting)
        words = f"move the {thing.color} {thing.shape} {way} ."
    target = replace(scene, things=(*rest[0], changed, *rest[1]))
    return Edit(kind, scene, words, target, changed.pair, (changed.row, changed.col))


def _within(scene: Scene, split: str, held_out: bool) -> bool:
    """Whether the scene's content is of the split, and names no held-out pair if it must not."""
    content = language.content_of([t.pair for t in scene.things])
    return language.split_of(content) == split and (held_out or not content.held_out)


def edit_of(
    rng: random.Random,
    split: str,
    kind: str,
    held_out: bool = True,
    setting: Setting = SMALL,
) -> Edit:
    """An edit of the kind whose scenes before and after have contents of the split."""
    while True:
        scene = scene_of(rng, split, setting.edited, held_out, setting)
        edit = edited(rng, scene, kind)
        if edit and _within(edit.target, split, held_out):
            return edit


def edit_example(seed: int, index: int, setting: Setting = SMALL) -> Edit:
    """Edit `index` of the training stream: of the train split, without held-out pairs."""
    rng = stream_rng(seed, index, 8)
    return edit_of(rng, "train", pick(rng, EDITS), False, setting)


@functools.lru_cache(maxsize=4)
def edit_set(split: str, count: int, seed: int = 0, setting: Setting = SMALL) -> tuple[Edit, ...]:
    """`count` edits of the split, kinds in turn, held-out pairs among them."""
    rngs = (stream_rng(seed, i, 9 + language.SPLITS.index(split)) for i in range(count))
    return tuple(
        edit_of(rng, split, EDITS[i % len(EDITS)], setting=setting) for i, rng in enumerate(rngs)
    )


# ------------------------------------------------------------------------------- two pictures


def changed_pair(rng: random.Random, split: str, change: str) -> tuple[Scene, Scene]:
    """A scene of the split before and after a change: an edit's kind, or "" for none."""
    if change:
        edit = edit_of(rng, split, change)
        return edit.source, edit.target
    scene = scene_of(rng, split, SMALL.edited)
    return scene, scene


def changed_question(change: str) -> ShapesQuestion:
    """What changed between two scenes; `change` is a key of CHANGES."""
    return ShapesQuestion("what changed ?", CHANGES[change], "pair_changed")


def more_question(
    rng: random.Random, scenes: tuple[Scene, Scene], wanted: str
) -> ShapesQuestion | None:
    """Which of two scenes has more of something; None if the draw's answer is not the wanted one
    ("first", "second", "neither"; "" takes any)."""
    thing = pick(rng, pick(rng, scenes).things)
    draw = rng.random()
    if draw < 0.4:
        phrase, counts = "objects", [len(s.things) for s in scenes]
    elif draw < 0.7:
        phrase = language.plural(thing.shape)
        counts = [sum(t.shape == thing.shape for t in s.things) for s in scenes]
    else:
        phrase = f"{thing.color} objects"
        counts = [sum(t.color == thing.color for t in s.things) for s in scenes]
    difference = counts[0] - counts[1]
    answer = "first" if difference > 0 else "second" if difference < 0 else "neither"
    if wanted and answer != wanted:
        return None
    return ShapesQuestion(f"which image has more {phrase} ?", answer, "pair_more")


def _wanted_more(rng: random.Random, split: str) -> tuple[tuple[Scene, Scene], ShapesQuestion]:
    """Two scenes and a question whose answer is drawn first."""
    wanted = pick(rng, ("first", "second", "neither"))
    while True:
        scenes = (scene_of(rng, split, _COMPARED), scene_of(rng, split, _COMPARED))
        for _ in range(6):
            question = more_question(rng, scenes, wanted)
            if question:
                return scenes, question


# ---------------------------------------------------------------------------------------- clips


@dataclass(frozen=True)
class Clip:
    """Frames uint8 [32, 32, 3] of a scene in which `movers` (things at the start) go one cell
    each, in the direction of `ways`."""

    frames: tuple[np.ndarray, ...]
    movers: tuple[Thing, ...]
    ways: tuple[str, ...]


def clip_of(rng: random.Random, split: str, movers: int) -> Clip | None:
    """A clip of a scene of the split with so many movers (0..2); None if they have no room."""
    scene = scene_of(rng, split, _FILMED)
    taken = {(t.row, t.col) for t in scene.things}
    moves: dict[Thing, str] = {}
    for thing in render.shuffled(rng, scene.things):
        ways = [w for w, (r, c) in WAYS.items() if _free((thing.row + r, thing.col + c), taken)]
        if len(moves) < movers and ways:
            way = pick(rng, ways)
            moves[thing] = way
            taken.add((thing.row + WAYS[way][0], thing.col + WAYS[way][1]))
    if len(moves) < movers:
        return None
    number = pick(rng, FRAMES)
    frames = []
    for i in range(number):
        gone = round(scene.setting.cell * i / (number - 1))
        things = tuple(
            render.shifted(t, gone * WAYS[moves[t]][1], gone * WAYS[moves[t]][0])
            if t in moves
            else t
            for t in scene.things
        )
        frames.append(render.draw(replace(scene, things=things)))
    return Clip(tuple(frames), tuple(moves), tuple(moves.values()))


def _free(cell: tuple[int, int], taken: set[tuple[int, int]]) -> bool:
    return cell in SMALL.cells and cell not in taken


def clip_question(rng: random.Random, clip: Clip, kind: str) -> ShapesQuestion | None:
    """A question of a CLIP_KIND; None where all but the count lack their one mover."""
    if kind == "clip_count":
        return ShapesQuestion(
            "how many objects moved ?", language.NUMBERS[len(clip.movers)], "clip_count"
        )
    if len(clip.movers) != 1:
        return None
    thing = clip.movers[0]
    if kind == "clip_color":
        return ShapesQuestion("what color is the object that moved ?", thing.color, kind)
    if kind == "clip_shape":
        return ShapesQuestion("what shape is the object that moved ?", thing.shape, kind)
    return ShapesQuestion("which way did the object move ?", clip.ways[0], kind)


def _clip(rng: random.Random, split: str, movers: int) -> Clip:
    while True:
        found = clip_of(rng, split, movers)
        if found:
            return found


# -------------------------------------------------------------------------------- the two streams


def several_example(
    seed: int, index: int, split: str = "train", clips: bool = True
) -> tuple[tuple[np.ndarray, ...], tuple[ShapesQuestion, ...]]:
    """Pictures and questions about them: two compared, or (if `clips`) a clip, as often.

    A pure function of its arguments.
    """
    rng = stream_rng(seed, index, 12)
    draw = rng.random() * (1.0 if clips else 0.5)
    if draw < 0.3:
        change = pick(rng, tuple(CHANGES))
        scenes = changed_pair(rng, split, change)
        more = more_question(rng, scenes, "")
        return tuple(render.draw(s) for s in scenes), (changed_question(change), more)
    if draw < 0.5:
        scenes, first = _wanted_more(rng, split)
        more = (more_question(rng, scenes, w) for w in ("first", "second", "neither"))
        found = dict.fromkeys((first, *filter(None, more)))
        return tuple(render.draw(s) for s in scenes), tuple(found)
    if draw < 0.7:  # what was asked for first: how many moved, evenly
        clip = _clip(rng, split, pick(rng, (0, 1, 2)))
        return clip.frames, (clip_question(rng, clip, "clip_count"),)
    clip = _clip(rng, split, 1)
    kinds = render.shuffled(rng, CLIP_KINDS[:3])[: 1 if len(clip.frames) == max(FRAMES) else 3]
    return clip.frames, tuple(clip_question(rng, clip, kind) for kind in kinds)


def several_question(
    rng: random.Random, split: str, kind: str
) -> tuple[tuple[np.ndarray, ...], ShapesQuestion]:
    """Pictures uint8 [32, 32, 3] of the split and a question about them, of a PAIR_KIND (two
    pictures) or a CLIP_KIND (frames)."""
    if kind in CLIP_KINDS:
        clip = _clip(rng, split, pick(rng, (0, 1, 2)) if kind == "clip_count" else 1)
        return clip.frames, clip_question(rng, clip, kind)
    if kind == "pair_changed":
        change = pick(rng, tuple(CHANGES))
        scenes, question = changed_pair(rng, split, change), changed_question(change)
    else:
        scenes, question = _wanted_more(rng, split)
    return tuple(render.draw(s) for s in scenes), question


@functools.lru_cache(maxsize=4)
def several_set(
    split: str, count: int, seed: int = 0
) -> tuple[tuple[tuple[np.ndarray, ...], ShapesQuestion], ...]:
    """`count` questions about two pictures or a clip of the split, kinds in turn."""
    kinds, rngs = (*PAIR_KINDS, *CLIP_KINDS), (stream_rng(seed, i, 13) for i in range(count))
    return tuple(several_question(rng, split, kinds[i % len(kinds)]) for i, rng in enumerate(rngs))
