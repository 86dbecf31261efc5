"""Free prompts decomposed by the model: objects with attributes and counts, and a relation.

Owns the request that has the model do it, and the rules its answer must keep: nothing may be in it
that the prompt does not say, and no colour or number of the prompt may be missing. Prompts that the
grammar of `question_templates.py` reads are not asked about. What neither reaches is asked about as
a whole; who read a prompt stands in `Decomposition.source`, and is counted.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence

from srum_jax.core.param_tree import Params
from srum_jax.rewards import question_templates
from srum_jax.rewards.question_templates import COLORS, NUMBERS, Decomposition, ObjectSpec, Relation
from srum_jax.rewards.written import QuestionRequest, TextSource

VERSION = "1"
MOST_OBJECTS = 8
MOST_WORDS = 6  # of an object's name
REQUEST = """\
Take a description of a picture apart. Write one line for every kind of object it names:
Object: <how many, in digits> | <words that describe it, or -> | <noun, singular>
If the description says how one object stands to another, write one more line, with the numbers of \
the two Object lines and only the words that stand between them in the description:
Relation: <number> | <words> | <number>
Use no words that are not in the description.

Description: two small brown dogs next to a wooden bench
Object: 2 | small brown | dog
Object: 1 | wooden | bench
Relation: 1 | next to | 2

Description: {prompt}
"""
# Ways of saying the four relations that have an opposite; other words are kept as they are.
PHRASES = {
    "left": ("left of", "to the left of", "on the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right of", "on the right side of"),
    "above": ("above", "on top of"),
    "below": ("below", "under", "underneath", "beneath", "on the bottom of"),
}
_WORD = re.compile(r"[\w'-]+")


def decompose_hash() -> str:
    """Twelve hex digits that change when the request or a rule does."""
    parts = [VERSION, MOST_OBJECTS, MOST_WORDS, REQUEST, PHRASES]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=6).hexdigest()


def decompose_prompts(
    prompts: Sequence[str], source: TextSource, *, params: Params | None = None
) -> dict[str, Decomposition]:
    """{prompt: what it demands}, closed (`open` False), one for every different prompt.

    By the grammar, else by the answer of `source`, which continues texts without a picture, where
    it keeps the rules, else as a whole. params: the model's, see `TextSource`.
    """
    found = {prompt: by_grammar(prompt) for prompt in dict.fromkeys(prompts)}
    left = [prompt for prompt, scene in found.items() if scene is None]
    requests = [
        QuestionRequest(None, REQUEST.format(prompt=" ".join(prompt.split()))) for prompt in left
    ]
    answers = []
    if requests:
        answers = source.answer(requests, temperature=0.0, params=params)
    for prompt, answer in zip(left, answers, strict=True):
        try:
            found[prompt] = parse(prompt, answer.text if answer.finished else "")
        except ValueError:
            found[prompt] = question_templates.whole(prompt)
    return found


def by_grammar(prompt: str) -> Decomposition | None:
    """What the rules read, as a closed scene; None where they do not reach."""
    scene = question_templates.decompose(prompt)
    return None if scene is None else dataclasses.replace(scene, open=False)


def parse(prompt: str, answer: str) -> Decomposition:
    """The model's answer to REQUEST as a scene. Raises ValueError saying which rule it breaks."""
    prompt_words = _WORD.findall(prompt.lower())
    objects: list[ObjectSpec] = []
    relation = None
    for line in filter(None, map(str.strip, answer.lower().splitlines())):
        name, _, rest = line.partition(":")
        fields = [field.strip() for field in rest.split("|")]
        if name not in ("object", "relation") or len(fields) != 3:
            raise ValueError(f"{line!r} is no line of the form asked for")
        if name == "object" and relation is None:
            objects.append(_object(fields, prompt_words))
        elif relation is None:
            relation = _relation(fields, len(objects), prompt)
        else:
            raise ValueError("more than one relation, or an object after it")
    if not 1 <= len(objects) <= MOST_OBJECTS:
        raise ValueError(f"{len(objects)} objects: from 1 to {MOST_OBJECTS} are expected")
    if len({spec.name for spec in objects}) < len(objects):
        raise ValueError("the same object twice")
    named = {word for spec in objects for word in spec.name.split()}
    lost = [word for word in prompt_words if word in COLORS and word not in named]
    counts = [spec.count for spec in objects]
    lost += [w for w in prompt_words if w in NUMBERS[2:] and NUMBERS.index(w) not in counts]
    if lost:
        raise ValueError(f"{lost[0]!r} of the prompt is nowhere")
    caption = question_templates.whole(prompt).caption
    return Decomposition(caption, tuple(objects), relation, open=False, source="model")


def _object(fields: Sequence[str], prompt_words: Sequence[str]) -> ObjectSpec:
    number, attributes, noun = fields
    attributes = "" if attributes == "-" else attributes
    if not re.fullmatch(r"[1-9]|10", number):
        raise ValueError(f"{number!r} is no number from 1 to 10")
    words = f"{attributes} {noun}".split()
    if not noun or len(words) > MOST_WORDS:
        raise ValueError(f"{noun!r}: a noun, and at most {MOST_WORDS} words with it")
    forms = {form for word in prompt_words for form in (word, question_templates.singular(word))}
    strange = [word for word in words if word not in forms]
    if strange:
        raise ValueError(f"{strange[0]!r} is not in the prompt")
    count = int(number)
    if count > 1 and not {number, NUMBERS[count]} & set(prompt_words):
        raise ValueError(f"the prompt does not say {number}")
    return ObjectSpec(attributes, noun, count)


def _relation(fields: Sequence[str], objects: int, prompt: str) -> Relation:
    first, words, second = fields
    places = [int(x) if re.fullmatch(r"[1-9]", x) else 0 for x in (first, second)]
    if not all(1 <= place <= objects for place in places) or places[0] == places[1]:
        raise ValueError(f"{first!r} and {second!r} are not two of {objects} objects")
    text = " ".join(_WORD.findall(prompt.lower()))
    if not words or f" {words} " not in f" {text} ":
        raise ValueError(f"{words!r} is not in the prompt")
    kind = next((kind for kind, ways in PHRASES.items() if words in ways), words)
    return Relation(kind, places[0] - 1, places[1] - 1)
