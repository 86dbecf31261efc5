"""What the judge asks: prompts decomposed by rules, and the wording of every question.

Owns the grammar that turns a prompt into required objects and a relation, and the questions asked
of crops and of whole images, as data. It knows words, not pictures: colours are a list of English
words, the noun of an object may be any word. A change here is a new `VERSION`, because scores
made with other words are not comparable.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Literal, Protocol

from srum_jax.data.tokenizer import NUMBERS

VERSION = "3"

COLORS = (
    "red",
    "green",
    "blue",
    "yellow",
    "purple",
    "cyan",
    "orange",
    "pink",
    "brown",
    "black",
    "white",
    "gray",
    "grey",
)
SIZES = ("big", "small")
RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

# The words of every question and the word(s) an answer is read from. {a} is an article and an
# object ("a red circle"), {the} an object alone, {many} a plural, {where} a relation's words.
TEMPLATES = {
    "crop_color": "what color is this ?",
    "crop_shape": "what shape is this ?",
    "crop_is": "is this {a} ?",
    "size": "is the {the} big or small ?",
    "exists": "is there {a} ?",
    "count": "how many {many} are there ?",
    "count_all": "how many objects are there ?",
    "relation_yesno": "is the {the} {where} the {other} ?",
    "relation_horizontal": "is the {the} left or right of the {other} ?",
    "relation_vertical": "is the {the} above or below the {other} ?",
    "caption_right": "does the image show {caption} ?",
}
ONE_WORD = "Answer with one word: {choices}."
ONE_NUMBER = "Answer with one number."
YES_NO = ("yes", "no")
HORIZONTAL = ("left", "right", "neither")
VERTICAL = ("above", "below", "neither")


@dataclasses.dataclass(frozen=True)
class ObjectSpec:
    """An object that the prompt demands `count` times: colour word, noun (singular), and its size
    where the prompt states one. Of a free prompt `color` holds all the words before the noun."""

    color: str
    shape: str
    count: int = 1
    size: str = ""

    @property
    def name(self) -> str:
        """ "red circle" """
        return f"{self.color} {self.shape}".strip()


@dataclasses.dataclass(frozen=True)
class Relation:
    """objects[subject] is `kind` of objects[other]: "left", "right", "above", "below", or of a free
    prompt the words between them ("on the side of", "hidden by")."""

    kind: str
    subject: int
    other: int


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """What a prompt demands: these objects, and perhaps one relation.

    open: the nouns are shapes and the colours single words, so that a crop's colour and shape can
    be asked for, and nothing else may be in the picture; False for prompts about anything, where
    every question is answered by yes, no or a number. source: who decomposed the prompt; of
    "caption" nobody could, and only the whole is asked about.
    """

    caption: str  # the prompt in lower case, words and commas separated by blanks
    objects: tuple[ObjectSpec, ...]
    relation: Relation | None = None
    open: bool = True
    source: Literal["grammar", "model", "caption"] = "grammar"

    @property
    def total(self) -> int:
        """Objects that the prompt demands, all kinds together."""
        return sum(spec.count for spec in self.objects)


@dataclasses.dataclass(frozen=True)
class Question:
    """One question and how its answer is read.

    kind: a key of TEMPLATES · text: what is asked · answer: the word whose probability speaks for
    the prompt · choices: the words a sensible answer is among (empty: an open question) ·
    about: index of the object asked about, -1 for the whole image.
    """

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()
    about: int = -1


def protocol_hash() -> str:
    """Twelve hex digits that change when any wording, list or the version does."""
    parts = [VERSION, COLORS, SIZES, NUMBERS, RELATIONS, TEMPLATES, YES_NO, HORIZONTAL, VERTICAL]
    parts += [ONE_WORD, ONE_NUMBER]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=6).hexdigest()


# ------------------------------------------------------------------------------------- the prompt


def singular(noun: str) -> str:
    """An English noun without the ending of its plural, by rule."""
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if noun.endswith(("sses", "shes", "ches", "xes")):
        return noun[:-2]
    return noun[:-1] if noun.endswith("s") and not noun.endswith("ss") else noun


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2:-1] not in tuple("aeiou"):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "sh", "ch", "x")) else "s")


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _read_object(words: list[str]) -> ObjectSpec | None:
    """ "a red circle", "a big red circle", "two red circles" -> the object; None for others."""
    size = words.pop(1) if len(words) == 4 and words[1] in SIZES else ""
    if len(words) != 3 or words[1] not in COLORS or not words[2].isalpha():
        return None
    number, color, noun = words
    if number in ("a", "an", "one"):
        return ObjectSpec(color, noun, size=size)
    if number in NUMBERS[2:] and not size:
        return ObjectSpec(color, singular(noun), NUMBERS.index(number))
    return None


def _joined(specs: list[ObjectSpec]) -> tuple[ObjectSpec, ...] | None:
    """The objects with equal ones counted together, in order of first mention.

    None where equal ones have sizes: a question could not tell them apart.
    """
    counts: dict[str, ObjectSpec] = {}
    for spec in specs:
        before = counts.get(spec.name)
        if before is not None and (before.size or spec.size):
            return None
        counts[spec.name] = (
            spec if before is None else dataclasses.replace(before, count=before.count + spec.count)
        )
    return tuple(counts.values())


@functools.lru_cache(maxsize=65536)
def decompose(prompt: str) -> Decomposition | None:
    """What a prompt demands, or None where the grammar does not reach.

    Read: "a red circle", "a big red circle", "two red circles", lists with "," and "and" in any
    mixture, and "A left of | right of | above | below B" for two different single objects; a full
    stop at the end, capitals and spacing do not matter.
    """
    words = re.findall(r"[^\s,.]+|[,.]", prompt.lower())
    if words and words[-1] == ".":
        words = words[:-1]
    caption = " ".join(words)
    for kind, phrase in RELATIONS.items():
        parts = re.split(rf" (?:to the )?{phrase} ", caption)
        if len(parts) == 2:
            pair = [_read_object(part.split()) for part in parts]
            single = all(spec is not None and spec.count == 1 for spec in pair)
            if not single or pair[0].name == pair[1].name:
                return None
            return Decomposition(caption, tuple(pair), Relation(kind, 0, 1))
    specs = [_read_object(part.split()) for part in re.split(r" , and | , | and ", caption)]
    objects = None if None in specs else _joined(specs)
    return None if objects is None else Decomposition(caption, objects)


# ---------------------------------------------------------------------------------- the questions


def crop_questions(scene: Decomposition) -> tuple[Question, ...]:
    """Asked of the crop of one region: "is this …?" for each object, before that two open questions
    or, of a free prompt, after it the same with the bare noun, which tells a wrong object from a
    region that is beside the point.

    The open ones carry no answer word: `logits.py` reads each object's colour and shape from them.
    """
    asked = [("crop_is", spec.name, i) for i, spec in enumerate(scene.objects)]
    opening = ()
    if scene.open:
        opening = tuple(Question(k, TEMPLATES[k], "") for k in ("crop_color", "crop_shape"))
    else:
        asked += [("crop_noun", spec.shape, i) for i, spec in enumerate(scene.objects)]
    return opening + tuple(
        Question(kind, TEMPLATES["crop_is"].format(a=_article(name)), "yes", YES_NO, i)
        for kind, name, i in asked
    )


def _relation_questions(scene: Decomposition) -> list[Question]:
    """The relation asked both ways round where it has an opposite, each as yes/no and, of an open
    scene, as a choice."""
    if scene.relation is None:
        return []
    kind = scene.relation.kind
    sides = (scene.relation.subject, scene.relation.other)
    horizontal = kind in HORIZONTAL
    choice = "relation_horizontal" if horizontal else "relation_vertical"
    choices = HORIZONTAL if horizontal else VERTICAL
    questions = []
    ways = [(kind, sides), *([(OPPOSITE[kind], sides[::-1])] if kind in OPPOSITE else [])]
    for word, (first, second) in ways:
        names = {"the": scene.objects[first].name, "other": scene.objects[second].name}
        where = RELATIONS.get(word, word)
        yesno = TEMPLATES["relation_yesno"].format(where=where, **names)
        questions.append(Question("relation_yesno", yesno, "yes", YES_NO))
        if scene.open:
            questions.append(Question(choice, TEMPLATES[choice].format(**names), word, choices))
    return questions


def image_questions(scene: Decomposition) -> tuple[Question, ...]:
    """Asked of the whole image: each object's existence, count and size, the total, the relation,
    the caption."""
    questions = []
    for i, spec in enumerate(scene.objects):
        exists = TEMPLATES["exists"].format(a=_article(spec.name))
        many = TEMPLATES["count"].format(many=f"{spec.color} {_plural(spec.shape)}".strip())
        questions.append(Question("exists", exists, "yes", YES_NO, i))
        questions.append(Question("count", many, _count_word(spec.count), NUMBERS, i))
        if spec.size:
            size = TEMPLATES["size"].format(the=spec.name)
            questions.append(Question("size", size, spec.size, SIZES))
    if scene.open:  # pictures of anything hold more than what was asked for
        total = _count_word(scene.total)
        questions.append(Question("count_all", TEMPLATES["count_all"], total, NUMBERS))
    questions += _relation_questions(scene)
    caption = TEMPLATES["caption_right"].format(caption=scene.caption)
    questions.append(Question("caption_right", caption, "yes", YES_NO))
    return tuple(questions)


def _count_word(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def whole(prompt: str) -> Decomposition:
    """A prompt that nobody could decompose: only the whole is asked about."""
    return Decomposition(
        " ".join(prompt.lower().split()).rstrip(" ."), (), open=False, source="caption"
    )


def natural(question: str) -> str:
    """A question of TEMPLATES as people write it: "Is there a red book?" """
    text = re.sub(r" (?=[?,.])", "", question)
    return text[:1].upper() + text[1:]


def wanted(choices: Sequence[str]) -> str:
    """What stands behind a question to be answered by one of the `choices`, after a blank: " Answer
    with one word: yes or no." """
    if not choices:
        return ""
    if set(choices) == set(NUMBERS):
        return f" {ONE_NUMBER}"
    *first, last = choices
    return f" {ONE_WORD.format(choices=', '.join(first) + f' or {last}')}"


class Encoder(Protocol):
    """What wording needs of a tokenizer: see `rewards/logits.py`."""

    word_level: bool

    def encode(self, text: str) -> list[int]:
        """Ids of a text; ValueError for a word that it does not have."""


def worded(question: Question, text: str, vocabulary: Encoder) -> str:
    """A question, its `text` or one with another word for "this" in it, as a model reads it: as it
    is by a vocabulary of words, else as people write it, and with what is `wanted` where the model
    has words for that."""
    if vocabulary.word_level:
        return text
    behind = wanted(question.choices)
    try:
        vocabulary.encode(behind)
    except ValueError:
        behind = ""
    return natural(text) + behind
