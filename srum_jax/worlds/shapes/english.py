"""Plain English turned into the sentences of the shapes world, or refused with what is near.

Owns the synonyms, the ways of asking and the refusals. A sentence of the world comes back as it is.
Another way of saying it comes back as that sentence, so that the model reads what it was trained
on. What the world cannot say (other things, negation, a count beside other objects) is a `BadInput`
that names the word or the phrase and what is near. What benchmarks say around a question is taken
away first (`answer_forms`). It knows words alone: no picture, no model.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass

from srum_jax.core.errors import BadInput, quoted
from srum_jax.data.languages import Kind
from srum_jax.worlds.shapes import answer_forms, language
from srum_jax.worlds.shapes.language import RELATION_WORDS, name, plural
from srum_jax.worlds.shapes.question_forms import DESCRIBE
from srum_jax.worlds.shapes.rendering import COLORS, SHAPES, SIZES, Pair

MOST_OBJECTS = language.FEW
NUMBERS = language.NUMBERS[: MOST_OBJECTS + 1]
COUNTS = NUMBERS[2:]  # what may be asked for
SINGULAR = {plural(shape): shape for shape in SHAPES}
_NOUNS = (*SHAPES, *SINGULAR)

SYNONYMS = {  # other word: the world's own
    word: own
    for own, words in {
        "big": "large huge giant enormous bigger larger",
        "small": "little tiny smaller",
        "red": "scarlet crimson",
        "purple": "violet lilac",
        "cyan": "turquoise aqua",
        "circle": "disc disk dot",
        "circles": "discs disks dots",
        "square": "box",
        "squares": "boxes",
        "color": "colour colors colours",
        "colored": "coloured",
        "object": "thing item figure",
        "objects": "things items figures shapes",
        "image": "picture photo pic drawing painting scene illustration",
        "images": "pictures photos pics drawings frames",
        "a": "an",
        "and": "& +",
        "remove": "delete erase",
        "add": "insert place put",
        "make": "turn paint recolor recolour change",
        "move": "shift push slide",
        "above": "over atop",
        "below": "under beneath underneath",
        "left": "leftward leftwards",
        "right": "rightward rightwards",
        "up": "upward upwards",
        "down": "downward downwards",
        "is": "'s",
    }.items()
    for word in words.split()
} | {str(number): word for number, word in enumerate(NUMBERS)}
POLITE = frozenset("please kindly just simply only exactly hey hi hello thanks".split())
_COLOR, _SHAPE, _SHAPES = "|".join(COLORS), "|".join(SHAPES), "|".join(SINGULAR)
# Read in this order on words of which synonyms are gone, whole words only.
PHRASES = (
    (r"what is the color of", "what color is"),
    (r"(?:on |to |at )?(?:the )?(left|right) side", r"\1"),
    (r"(?:on|to|at) the (left|right)", r"\1"),
    (r"(?:on|at) (?:the )?top(?: of)?", "above"),
    (r"(?:on|at) the bottom(?: of)?", "below"),
    (r"get rid of|take away", "remove"),
    (r"(?:a )?(?:pair|couple) of", "two"),
    (r"(?:a )?single", "one"),
    (rf"({_COLOR}) plus(?: sign)?", r"\1 cross"),
    (r"as well as|along with|together with|and also|with|plus", "and"),
    (rf"({_COLOR}) (?:color|colored)", r"\1"),
)
# What may stand before a prompt; taken away until nothing of it is left.
_ASKING = re.compile(r"(?:can|could|would|will) you (?!see)")
_REQUEST = re.compile(
    r"(?:i (?:want|need|would like|would love)"
    r"(?: you)?(?: to (?:see|have|get|draw))?"
    r"|(?:draw|show|make|create|generate|sketch|render|give|produce|design|display)(?: me| us)?"
    r"|(?:(?:a|the|one) )?image (?:of|and|showing|containing|that (?:shows|has|contains)|in which)"
    r"|there (?:is|are|should be|must be)) "
)
_PLACE = re.compile(
    r"^in (?:the|this|that) (?:image|video|clip)(?: ,)? "
    r"| (?:in|on|to|of|from|into) (?:the|this|that) (?:image|video|clip)$"
)
_NO_PROMPT = re.compile(
    r"(?:what|which|how|is|are|does|do|where|who|why|describe|count|add|move|remove)\b"
)
LARGER = tuple("five six seven eight nine ten several some many few".split())
NEGATIONS = frozenset("no not without never nothing except none neither nor".split())

_PARTS = {  # of the patterns below: "the" is an object that is there, "other" another one
    "the": rf"(?:the |a |that |this )?(?P<c>{_COLOR}) (?P<s>{_SHAPE})",
    "other": rf"(?:the |a |that |this )?(?P<d>{_COLOR}) (?P<t>{_SHAPE})",
    "a": rf"(?:a |the |any |one |some |another )?(?P<c>{_COLOR}) (?P<s>{_SHAPE}|{_SHAPES})",
    "s": rf"(?:the |a |that |this )?(?P<s>{_SHAPE})",
    "c": rf"(?P<c>{_COLOR})",
    "d": rf"(?P<d>{_COLOR})",
    "many": rf"(?:the |all |all the )?(?P<many>(?:(?:{_COLOR}) )?(?:{_SHAPES}|{_SHAPE})|objects?)",
    "more": rf"(?P<many>{_SHAPES}|objects|(?:{_COLOR}) objects)",
    "which": r"(?:what|which)",
    "top": r"(?:above|top)",
    "bottom": r"(?:below|bottom)",
    "where": r"(?P<where>left of|right of|above|below)",
    "mover": r"(?:the )?(?:object that (?:moved|moves|is moving)|moving object)",
}
# A sentence of the world: the ways of saying it, without commas and the closing mark. Objects in
# them are as in _PARTS; "does the image show …?" and prompts are read apart.
WAYS = {
    DESCRIBE: (
        "describe (?:(?:the|this) image|it|this|what you see|what is in the image)"
        "(?: briefly| in (?:a|one) sentence)?",
        "what (?:do|can) you see|what is (?:in|on) (?:the|this) image",
        "what does (?:the|this) image show",
        "(?:(?:write|give|provide) )?(?:a |one )?(?:(?:short|brief|one sentence|sentence) )?caption"
        "(?: for| of)? (?:the|this) (?:(?:given|provided) )?image",
    ),
    "what color is the {s} ?": ("{which} color is {s}", "{which} color does {s} have"),
    "what shape is the {c} object ?": (
        "{which} shape is (?:the |that )?{c}(?: object| one)?",
        "{which} shape does the {c} object have",
        "what is the (?:shape of the )?{c} object",
    ),
    "is the {c} {s} big or small ?": (
        "is {the} (?:big or small|small or big)",
        "{which} size is {the}",
        "{which} size does {the} have",
        "what is the size of {the}",
        "how (?:big|small) is {the}",
    ),
    "is there a {c} {s} ?": (
        "(?:is|are) there {a}(?: present| visible)?",
        "(?:do|can) you see {a}",
        "does (?:the|this) image (?:have|contain|include) {a}",
        "is {s} {c}",
    ),
    "how many {many} are there ?": (
        "how many {many}(?: (?:are|is) (?:there|visible|in (?:the|this) image))?",
        "how many {many} (?:do|can) you see",
        "how many {many} does (?:the|this) image (?:have|show|contain)",
        "(?:what is )?the number of {many}",
        "count {many}",
    ),
    "is the {c} {s} left or right ?": (
        "is {the} (?:left or (?:the )?right|right or (?:the )?left)",
    ),
    "is the {c} {s} above or below ?": ("is {the} (?:{top} or {bottom}|{bottom} or {top})",),
    "is the {c} {s} left or right of the {d} {t} ?": (
        "is {the} (?:left or right of|right or left of|left of or right of) {other}",
    ),
    "is the {c} {s} above or below the {d} {t} ?": (
        "is {the} (?:above or below|below or above) {other}",
    ),
    "is the {c} {s} {where} the {d} {t} ?": ("is {the} {where} {other}",),
    "what color is this ?": ("{which} color is (?:this|it)",),
    "what shape is this ?": ("{which} shape is (?:this|it)",),
    "is this a {c} {s} ?": ("is (?:this|it) {a}",),
    "what changed ?": (
        "what (?:has |is |was )?changed(?: between the (?:two )?images)?",
        "what is (?:the )?(?:difference|different)(?: between the (?:two )?images)?",
    ),
    "which image has more {many} ?": (
        "which (?:image|of the (?:two )?images) (?:has|shows|contains) more {more}",
    ),
    "how many objects moved ?": ("how many objects (?:have )?(?:moved|move|are moving)",),
    "what color is the object that moved ?": ("{which} color is {mover}",),
    "what shape is the object that moved ?": (
        "{which} shape is {mover}",
        "what is the shape of {mover}",
    ),
    "which way did the object move ?": (
        "(?:in )?{which} (?:way|direction) (?:did|does|has) the object (?:move|moved|go)",
        "where (?:did|does) the object (?:move|go)",
    ),
    "add a {c} {s} .": ("add {a}",),
    "remove the {c} {s} .": ("remove {the}",),
    "make the {c} {s} {d} .": (
        "make (?:the color of )?{the} (?:to |into |in )?{d}",
        "color {the} {d}",
    ),
    "move the {c} {s} {way} .": (
        "move {the} (?:one cell |a cell )?(?:to )?(?P<way>left|right|up|down)",
    ),
}
_COMPILED = tuple(
    (sentence, re.compile(re.sub(r"{(\w+)}", lambda part: _PARTS[part[1]], way)))
    for sentence, ways in WAYS.items()
    for way in ways
)
ONE, SIZED, ALIKE, RELATED = (
    "a red circle",
    "a big red circle and a small blue square",
    "two red circles",
    "a red circle left of a blue square",
)
EXAMPLES = (
    *(ONE, SIZED, ALIKE, RELATED),
    "does the image show a red circle and a blue square ?",
    *(
        sentence.format(
            c="red", s="circle", d="blue", t="square", many="circles", where="left of", way="left"
        )
        for sentence in WAYS
    ),
)
_SPOKEN = " ".join(
    (_ASKING.pattern, _REQUEST.pattern, _PLACE.pattern, _NO_PROMPT.pattern, *_PARTS.values())
)
KNOWN = (
    frozenset(
        re.findall(
            r"\b[a-z]{2,}\b|\b[ai]\b",
            " ".join(
                [
                    _SPOKEN,
                    *EXAMPLES,
                    *SIZES,
                    *NUMBERS,
                    *(way for ways in WAYS.values() for way in ways),
                ]
            ),
        )
    )
    | NEGATIONS
    | {*LARGER, "another", ","}
)


@dataclass(frozen=True)
class Named:
    """What a phrase of a prompt names: `count` objects of a pair, of a size or of any ("")."""

    phrase: str
    pair: Pair
    count: int
    size: str


def normalise(text: str, kind: Kind | None = None) -> str:
    """A prompt, a question or an instruction in the words of the shapes world.

    Its own sentences come back unchanged, up to case and spacing; a lone "a red circle?" asks
    whether there is one. kind: what it must be; None takes all. Raises BadInput naming the first
    word or phrase without a meaning there, and what is nearest to it.
    """
    asked = answer_forms.question_alone(text) if kind in (None, "question") else text
    said = _words(asked)
    if asks := _ASKING.match(said):
        said = said[asks.end() :]
    if not said:
        raise BadInput(f"{quoted(text)} says nothing; say for example {_example(kind)!r}")
    found = _sentence(said) or _sentence(_PLACE.sub("", said))
    if not found and kind in (None, "question") and asked.endswith("?"):
        found = _sentence(f"is there {said}")
    if not found:
        _refuse_unknown(text, said, kind)
        shown = re.fullmatch(r"(?:does (?:the|this) image show|is this a image of) (.+)", said)
        if shown:
            found = f"does the image show {_prompt(text, shown[1])} ?"
    if not found and kind in (None, "prompt"):
        wanted = _PLACE.sub("", said)
        while before := _REQUEST.match(wanted):
            wanted = wanted[before.end() :]
        if not _NO_PROMPT.match(wanted):
            return _prompt(text, wanted)
    if not found or kind not in (None, kind_of(found)):
        wrong = f"is no {kind or 'sentence'} of the shapes world"
        near = [example for example in EXAMPLES if kind in (None, kind_of(example))]
        near.sort(key=lambda e: -difflib.SequenceMatcher(None, said, e).ratio())
        raise BadInput(f"{quoted(text)} {wrong}; the nearest are {near[0]!r} and {near[1]!r}")
    return found


def kind_of(sentence: str) -> Kind:
    """What a sentence of the shapes world is."""
    if sentence.endswith("?") or sentence == DESCRIBE:
        return "question"
    return "instruction" if sentence.endswith(".") else "prompt"


def _example(kind: Kind | None) -> str:
    return next(example for example in EXAMPLES[1:] if kind in (None, kind_of(example)))


# --------------------------------------------------------------------------------------- the words


def _words(text: str) -> str:
    """The text in lower case without politeness and marks but commas, synonyms replaced."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    text = re.sub(r"\b(?:the )?((?:\w+ )?\w+)'s (colou?r|shape|size)\b", r"the \2 of the \1", text)
    text = text.replace("i'd", "i would").replace("can't", "can not").replace("n't", " not")
    words = re.findall(r"'s\b|[^\W_]+|[^\w\s]", text.replace("-", " "))
    kept = [SYNONYMS.get(word, word) for word in words if word not in POLITE]
    said = " ".join(word for word in kept if word not in ".?!;:\"'“”()")
    for phrase, own in PHRASES:
        said = re.sub(rf"(?<!\S)(?:{phrase})(?!\S)", own, said)
    return re.sub(r"(?: ,)+(?= |$)", " ,", said).strip(" ,")


def _sentence(said: str) -> str | None:
    """The sentence of WAYS that `said` is a way of saying; None where there is none."""
    flat = said.replace(" ,", "")
    for sentence, way in _COMPILED:
        if found := way.fullmatch(flat):
            parts = found.groupdict()
            if "s" in parts:
                parts["s"] = SINGULAR.get(parts["s"], parts["s"])
            if "many" in parts:
                *color, noun = parts["many"].split()
                many = noun if noun in SINGULAR or noun == "objects" else plural(noun)
                parts["many"] = " ".join((*color, many))
            return sentence.format(**parts)
    return None


def _refuse_unknown(text: str, said: str, kind: Kind | None) -> None:
    """Raises BadInput for the first word that no sentence and no way of saying one has."""
    words = said.split()
    known = KNOWN | (answer_forms.WORDS if kind == "question" else frozenset())
    for i, word in enumerate(words):
        if word in known or word.isdecimal():
            continue
        near = difflib.get_close_matches(word, sorted({*KNOWN, *SYNONYMS}), n=3, cutoff=0.75)
        if not near and words[i + 1 : i + 2] and words[i + 1] in _NOUNS:
            near = COLORS
        elif not near and i and words[i - 1] in (*COLORS, *SIZES):
            near = SHAPES
        raise BadInput(
            f"{quoted(text)}: the word {quoted(word)} has no meaning in the shapes world; "
            + (f"near are {', '.join(near)}" if near else f"say for example {_example(kind)!r}")
        )


# ------------------------------------------------------------------------------------- the prompts


def _prompt(text: str, words: str) -> str:
    """A drawing prompt's wording. Raises BadInput as `normalise`, which gives the whole `text`."""
    if missing := re.search(rf"\b(?:{'|'.join(sorted(NEGATIONS))})\b.*?(?= ,| and |$)", words):
        raise BadInput(
            f"{quoted(text)}: {quoted(missing[0])} cannot be said; prompts of the shapes world "
            "say what is there, and nothing else is then drawn"
        )
    links = "|".join(RELATION_WORDS.values())
    first, *rest = re.split(rf" (?:(?:that |which )?(?:is|are) )?({links}) ", words)
    if len(rest) > 2 or (rest and re.search(" and | , ", f"{first} {rest[1]}")):
        raise BadInput(
            f"{quoted(text)}: {rest[-2]!r} beside other objects cannot be said; a relation is one "
            f"of two objects, for example {RELATED!r}"
        )
    if rest:
        objects = _named(text, first), _named(text, rest[1])
        for one in objects:
            if one.count > 1 or one.size:
                what = "a size" if one.size else "a count"
                raise BadInput(
                    f"{quoted(text)}: {quoted(one.phrase)} has {what} beside a relation, which "
                    f"cannot be said; say for example {RELATED!r}"
                )
        if objects[0].pair == objects[1].pair:
            raise BadInput(f"{quoted(text)}: the two objects of a relation must differ")
        return f" {rest[0]} ".join(name(one.pair) for one in objects)
    objects = [_named(text, phrase) for phrase in re.split(" , and | and , | , | and ", words)]
    return _list(text, objects)


def _list(text: str, objects: list[Named]) -> str:
    """The wording of objects that stand in no relation."""
    total = sum(one.count for one in objects)
    kinds = {one.pair for one in objects}
    if total > MOST_OBJECTS:
        raise BadInput(
            f"{quoted(text)} names {total} objects; the shapes world has {MOST_OBJECTS} at most"
        )
    for one in objects:
        if one.size and total > 2:
            raise BadInput(
                f"{quoted(text)}: the size of {quoted(one.phrase)} cannot be said here; "
                f"sizes are for one or two objects, for example {SIZED!r}"
            )
        if len(kinds) > 1 and (one.count > 1 or sum(one.pair == o.pair for o in objects) > 1):
            raise BadInput(
                f"{quoted(text)}: {quoted(one.phrase)} beside other objects cannot be said; "
                f"several alike stand alone, for example {ALIKE!r}"
            )
    if len(kinds) == 1 and total > 1:
        one = next((one for one in objects if one.size), None)
        if one:
            raise BadInput(
                f"{quoted(text)}: the size of {quoted(one.phrase)} cannot be said of several "
                f"alike; say for example {ALIKE!r}"
            )
        color, shape = objects[0].pair
        return f"{NUMBERS[total]} {color} {plural(shape)}"
    *others, last = (name(one.pair, one.size) for one in objects)
    return f"{' , '.join(others)} and {last}" if others else last


def _named(text: str, phrase: str) -> Named:
    """What "a big red circle" or "two red circles" names. Raises BadInput naming the phrase."""
    words = phrase.split()
    articles = ("a", "the", "another", "one")
    counts = (*NUMBERS, *LARGER)
    number = (
        words.pop(0) if words and (words[0] in (*articles, *counts) or words[0].isdecimal()) else ""
    )
    found = {
        kind: [word for word in words if word in known]
        for kind, known in (("color", COLORS), ("size", SIZES), ("shape", _NOUNS))
    }
    problem = ""
    if number and number not in (*articles, *COUNTS):
        problem = f"the counts are one, {', '.join(COUNTS)}"
    elif sum(map(len, found.values())) < len(words) or len(found["size"]) > 1:
        problem = f"an object is said as {ONE!r} or 'a big red circle'"
    elif len(found["color"]) != 1:
        problem = f"an object has one colour, of {', '.join(COLORS)}"
    elif len(found["shape"]) != 1 or words[-1] not in found["shape"]:
        problem = f"an object has one shape, of {', '.join(SHAPES)}"
    elif not number and found["shape"][0] in SINGULAR:
        problem = f"say how many, for example {ALIKE!r}"
    if problem:
        raise BadInput(f"{quoted(text)}: {quoted(phrase)} cannot be said; {problem}")
    noun = found["shape"][0]
    count = 1 if number in ("", *articles) else NUMBERS.index(number)
    pair = (found["color"][0], SINGULAR.get(noun, noun))
    return Named(phrase, pair, count, *(found["size"] or ("",)))
