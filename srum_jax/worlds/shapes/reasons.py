"""Why a reply about a shapes picture is wrong, in words.

Owns the sentences. What is right is said by `verifier.py`; a reason is made of the things that were
found and those that were wanted, and is "" only where nothing differs.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence

from srum_jax.worlds.shapes.language import NUMBERS, RELATION_WORDS, Content, name, parse, plural
from srum_jax.worlds.shapes.rendering import Box, Pair, Scene
from srum_jax.worlds.shapes.setting import SMALL, Setting

Placed = tuple[Pair, tuple[int, int]]  # a thing and its cell (row, column)


def number_of_objects(count: int) -> str:
    """ "no object", "one object", "two objects" """
    return f"{_number(count) if count else 'no'} object{'' if count in (0, 1) else 's'}"


def where(box: Box, setting: Setting = SMALL) -> str:
    """The cell of the picture in which the centre of a box, in px, lies, in words."""
    at = setting.cell_at((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    return cell_name(at, setting)


def cell_name(cell: tuple[int, int], setting: Setting = SMALL) -> str:
    """Of a cell (row, column)."""
    middle = ("middle",) * (setting.grid - 2)
    rows, columns = ("top", *middle, "bottom"), ("left", *middle, "right")
    return f"{rows[cell[0]]} {columns[cell[1]]}"


def malformed(box: Box, flaw: str, setting: Setting = SMALL) -> str:
    """Of an object that is none of the world's."""
    return f"the object at the {where(box, setting)} is malformed: {flaw}"


def of_objects(wanted: Sequence[Pair], found: Sequence[Pair]) -> str:
    """What differs between the objects wanted and found; "" where nothing does."""
    missing, extra = Counter(wanted) - Counter(found), Counter(found) - Counter(wanted)
    said = []
    if len(found) != len(wanted):
        were = "was" if len(wanted) == 1 else "were"
        said.append(f"{number_of_objects(len(found))}, {_number(len(wanted))} {were} asked for")
    if missing:
        said.append(f"missing: {listed(missing.elements())}")
    if extra:
        said.append(
            f"there instead: {listed(extra.elements())}"
            if missing
            else f"too many: {listed(extra.elements())}"
        )
    return "; ".join(said)


def of_relation(content: Content) -> str:
    """Of a picture whose two objects stand in another relation than a prompt's."""
    first, second = map(the, content.pairs)
    return f"{first} is not {RELATION_WORDS[content.relation]} {second}"


def of_edit(
    kept: Iterable[Placed],
    new: Pair | None,
    cell: tuple[int, int] | None,
    found: Iterable[Placed],
    setting: Setting = SMALL,
) -> str:
    """Of a picture without malformed objects, after an edit that keeps `kept` and makes `new` in
    `cell` (None: anywhere)."""
    kept, found = Counter(kept), Counter(found)
    lost, left = list((kept - found).elements()), list((found - kept).elements())
    named = functools.partial(cell_name, setting=setting)
    said = [f"{the(pair)} at the {named(at)} was to stay and is gone" for pair, at in lost]
    made = next((one for one in left if one[0] == new), None) if new else None
    if made:
        left.remove(made)
        if cell not in (None, made[1]):
            said.append(f"{the(new)} is at the {named(made[1])}, not the {named(cell)}")
    elif new:
        place = f" at the {named(cell)}" if cell else ""
        said.append(f"there is no {' '.join(new)}{place}")
    said += [f"{name(pair)} at the {named(at)} should not be there" for pair, at in left]
    return "; ".join(said)


def of_caption(text: str, scene: Scene) -> str:
    """Of a caption that does not say what a scene shows."""
    there = [thing.pair for thing in scene.things]
    shown = f"it shows {listed(there)}"
    try:
        content = parse(text, scene.setting)
    except ValueError:
        return f"not a caption of this world; {shown}"
    missing, extra = (
        Counter(there) - Counter(content.pairs),
        Counter(content.pairs) - Counter(there),
    )
    said = []
    if extra:
        said.append(f"there is no {' and no '.join(' '.join(pair) for pair in extra.elements())}")
    if missing:
        said.append(f"not named: {listed(missing.elements())}")
    if not said:
        wrong = "relation" if content.relation else "size" if content.sizes else "number"
        said.append(f"the {wrong} is wrong")
    return f"{'; '.join(said)}; {shown}"


def of_answer(reply: str, truth: str) -> str:
    """Of an answer that is not the one word that is right."""
    return f"said {reply.strip() or 'nothing'}; {truth} is right"


def the(pair: Pair) -> str:
    """ "the red circle" """
    return " ".join(("the", *pair))


def listed(pairs: Iterable[Pair]) -> str:
    """ "a red circle, two blue squares and a green cross" """
    counted = Counter(pairs)
    names = [
        name(pair) if n == 1 else f"{_number(n)} {pair[0]} {plural(pair[1])}"
        for pair, n in counted.items()
    ]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "nothing"


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)
