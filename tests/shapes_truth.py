"""The shapes world's questions answered by looking: apart from the package's own code of them.

Objects are what the verifier sees in a picture (it knows nothing of scenes or questions); captions
are read by the judge's grammar.
"""

import collections

import numpy as np

from srum_jax.rewards import question_templates
from srum_jax.worlds.shapes import verifier

NUMBERS = ("zero", "one", "two", "three", "four")


def middle(seen):
    """(x, y) of the object's box."""
    x0, y0, x1, y1 = seen.box
    return (x0 + x1) / 2, (y0 + y1) / 2


def cell(seen):
    """(row, column) of the object."""
    x, y = middle(seen)
    return int(y // 16), int(x // 16)


def objects(image):
    """The objects of a picture; all must be well made."""
    found = verifier.see(image)
    assert not any(seen.flaw for seen in found), found
    return found


def standing(first, second):
    """The relations that hold from the first to the second."""
    (row, column), (other_row, other_column) = cell(first), cell(second)
    signs = {
        "left": column < other_column,
        "right": column > other_column,
        "above": row < other_row,
        "below": row > other_row,
    }
    return {word for word, true in signs.items() if true}


def many(found, phrase):
    """How many "objects", "red objects", "circles" or "red circles" there are."""
    *color, noun = phrase.split()
    shape = noun.removesuffix("es") if noun == "crosses" else noun.removesuffix("s")
    return sum(shape in ("object", seen.shape) and color in ([], [seen.color]) for seen in found)


def shows(found, caption):
    """Whether these objects are exactly what the caption says."""
    said = question_templates.decompose(caption)
    pairs = collections.Counter(seen.pair for seen in found)
    if pairs != {(spec.color, spec.shape): spec.count for spec in said.objects}:
        return False
    one = {seen.pair: seen for seen in found}
    named = [one[spec.color, spec.shape] for spec in said.objects]
    sizes = all(
        spec.size in ("", seen.scale) for spec, seen in zip(said.objects, named, strict=True)
    )
    return sizes and (said.relation is None or said.relation.kind in standing(*named))


def answer(found, question):
    """The right word for a question about a picture or a crop that shows these objects."""
    words = question.removesuffix(" ?").split()
    text = " ".join(words)
    if text.startswith("does the image show "):
        return "yes" if shows(found, text.removeprefix("does the image show ")) else "no"
    if text.startswith("how many "):
        phrase = text.removeprefix("how many ").removesuffix(" are there")
        return NUMBERS[many(found, phrase)]
    if text.startswith(("is there a ", "is this a ")):
        return "yes" if tuple(words[-2:]) in {seen.pair for seen in found} else "no"
    if text in ("what color is this", "what shape is this"):
        return getattr(found[0], words[1]) if found else "none"
    if text.startswith(("what color is the ", "what shape is the ")):
        (seen,) = (s for s in found if {s.color, s.shape} & set(words[4 - 1 :]))
        return getattr(seen, words[1])
    assert words[:2] == ["is", "the"], question
    (seen,) = (s for s in found if s.pair == tuple(words[2:4]))
    if text.endswith(" big or small"):
        return seen.scale
    if words[4:] == ["left", "or", "right"]:
        return ("left", "right")[cell(seen)[1]]
    if words[4:] == ["above", "or", "below"]:
        return ("above", "below")[cell(seen)[0]]
    (other,) = (s for s in found if s.pair == tuple(words[-2:]))
    true = standing(seen, other)
    if "or" in words:
        return next((word for word in (words[4], words[6]) if word in true), "neither")
    return "yes" if words[4] in true else "no"


def change(before, after):
    """What changed between two pictures' objects."""
    if len(before) != len(after):
        return "added" if len(before) < len(after) else "removed"
    cells = [{cell(s): s.pair for s in found} for found in (before, after)]
    if cells[0] == cells[1]:
        return "nothing"
    return "color" if cells[0].keys() == cells[1].keys() else "place"


def more(first, second, phrase):
    """Which of two pictures' objects has more of something."""
    sign = np.sign(many(first, phrase) - many(second, phrase))
    return {1: "first", -1: "second", 0: "neither"}[int(sign)]


def motion(frames):
    """{pair: the ways it moved} from the first frame to the last, matched by pair and path.

    Every object must be in every frame, and each step must be straight and onwards.
    """
    tracks = []
    for seen in objects(frames[0]):
        track = [seen]
        for frame in frames[1:]:
            near = min(
                (s for s in objects(frame) if s.pair == seen.pair),
                key=lambda s: np.abs(np.subtract(middle(s), middle(track[-1]))).sum(),
            )
            track.append(near)
        tracks.append(np.array([middle(s) for s in track]))
    found = []
    for seen, track in zip(objects(frames[0]), tracks, strict=True):
        steps = np.diff(track, axis=0)
        total = steps.sum(0)
        assert (np.abs(steps) > 0.6).any(1).all() or np.abs(track - track[0]).max() <= 0.5
        if np.abs(total).max() > 1:
            axis = int(np.abs(total).argmax())
            assert abs(abs(total[axis]) - 16) <= 1 and np.abs(steps[:, 1 - axis]).max() <= 0.5
            assert (steps[:, axis] * np.sign(total[axis]) > 0).all()
            found.append((seen, (("left", "right"), ("up", "down"))[axis][int(total[axis] > 0)]))
    return found
