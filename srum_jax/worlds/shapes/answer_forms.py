"""What benchmarks say around a question, taken away: how to answer, headers and lists of options.

Owns the rule of what is about an answer's form alone. The shapes base answers in one word, so "in
one word", "yes or no" and "the best option" ask nothing of it that it could do otherwise. Which
letter an option has is not known to it: it answers with the option's text, and whoever scores it
has to match texts.
"""

from __future__ import annotations

import re
import string

# A sentence of these words alone, one of _ABOUT among them, says how to answer or heads a list.
_ABOUT = frozenset("answer answers respond reply option options choice choices question".split())
_BESIDE = frozenset(
    "a an the this that these those there are is of to from in on with by for and or only just "
    "please give select choose pick provide write use using based following given above below must "
    "should be several possible multiple single one word words phrase short brief briefly concise "
    "concisely directly correct right best most appropriate letter letters s number its your image "
    "picture video subtitles clip yes no b c d e f g h".split()
)
WORDS = _ABOUT | _BESIDE
_SENTENCE = re.compile(r"[^.?!:;\n]+(?:[.?!:;]+|\n|$)|[.?!:;\n]+")
_IMAGE_MARK = re.compile(r"(?:\b(?:in|of|from)\s+)?<image(?:[ _]?\d+)?>", re.IGNORECASE)
_LETTER = re.compile(r"(?:(?<=\s)|^)(?:\(([A-Z])\)|([A-Z])[.):])(?=\s)")


def question_alone(text: str) -> str:
    """A question without what says how to answer it, its headers, options and marks of images.

    "Question: What color is the circle? Options: A. red B. blue\\nAnswer in one word." becomes
    "What color is the circle?". A text of nothing else comes back as it is.
    """
    without = _without_options(_IMAGE_MARK.sub(" ", text))
    kept = "".join(part for part in _SENTENCE.findall(without) if not _about_form(part)).strip()
    return kept or text


def _about_form(sentence: str) -> bool:
    words = set(re.findall(r"[^\W_]+", sentence.casefold()))
    polar = words & {"yes", "no"}
    if len(polar) == 1 or not words <= WORDS:
        return False  # "answer no" wants an answer, not a form
    return bool(polar or words & _ABOUT)


def _without_options(text: str) -> str:
    """The text without "A. red B. blue …", each in a line of its own or all in one, which ends it.

    It is a list where its letters begin with A and follow each other, two of them at least.
    """
    marks = list(_LETTER.finditer(text))
    letters = "".join(mark[1] or mark[2] for mark in marks)
    start = letters.find("AB")
    if start < 0:
        return text
    last = start + 1
    while letters[start : last + 2] == string.ascii_uppercase[: last + 2 - start]:
        last += 1
    end = text.find("\n", marks[last].end())
    return text[: marks[start].start()] + ("" if end < 0 else text[end:])
