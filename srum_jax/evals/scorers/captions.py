"""Captions against references: BLEU 1-4, ROUGE-L and CIDEr-D as pycocoevalcap scores them.

Owns the scores of texts that are already tokenised (`ptb.py`), a space between tokens; what is
given raw is scored raw. Time is linear in the number of captions.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from srum_jax.evals.suite import Metric

MAX_N = 4
# pycocoevalcap keeps quotients defined with these; a caption without a match gets 1e-15, not 0.
_TINY, _SMALL = 1e-15, 1e-9
_BETA = 1.2  # of ROUGE-L: how many times recall weighs more than precision
_SIGMA = 6.0  # of CIDEr-D: standard deviation of the length penalty, in tokens


@dataclasses.dataclass(frozen=True)
class Bleu:
    """BLEU-`n` of sums of counts, columns of `bleu_counts`."""

    n: int

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """Sums [..., 10] to BLEU [...] in [0, 1] (a hair above for a caption without tokens)."""
        sums = np.asarray(sums, np.float64)
        matched, guessed = sums[..., : self.n], sums[..., MAX_N : MAX_N + self.n]
        product = np.prod((matched + _TINY) / (guessed + _SMALL), axis=-1)
        length = (sums[..., -2] + _TINY) / (sums[..., -1] + _SMALL)
        with np.errstate(over="ignore"):
            penalty = np.where(length < 1, np.exp(1 - 1 / length), 1.0)
        return product ** (1 / self.n) * penalty


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Metric]:
    """{"Bleu_1": ..., "Bleu_4": ...} of a corpus; the unit is the image.

    Raises:
      ValueError: lengths differ, or an image has no reference.
    """
    counts = bleu_counts(captions, references)
    return {f"Bleu_{n}": Metric(counts, Bleu(n)) for n in range(1, MAX_N + 1)}


def bleu_counts(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """What each caption adds to a corpus's BLEU, float64 [N, 10]: matched n-grams of n = 1..4
    (clipped by the reference with most of them), n-grams, tokens, tokens of the reference closest
    in length (the shorter of two)."""
    _check(captions, references)
    rows = np.zeros((len(captions), 2 * MAX_N + 2))
    for row, caption, texts in zip(rows, captions, references, strict=True):
        words = caption.split()
        split = [text.split() for text in texts]
        most: Counter[tuple[str, ...]] = Counter()
        for one in split:
            most |= _ngrams(one)
        for gram, count in _ngrams(words).items():
            row[len(gram) - 1] += min(count, most[gram])
        row[MAX_N : 2 * MAX_N] = np.maximum(len(words) - np.arange(MAX_N), 0)
        lengths = [len(one) for one in split]
        row[-2:] = len(words), min(lengths, key=lambda length: (abs(length - len(words)), length))
    return rows


def rouge_l(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """ROUGE-L of each image, float64 [N] in [0, 1]: of the best precision and the best recall, each
    over all references. An empty text is one empty token, as upstream splits it.

    Raises:
      ValueError: lengths differ, or an image has no reference.
    """
    _check(captions, references)
    return np.array([_rouge_l(c, r) for c, r in zip(captions, references, strict=True)], np.float64)


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each image, float64 [N] in [0, 10]; the corpus's is their mean.

    A rare n-gram weighs more; how rare it is, is counted in the references given here, so an image
    has no score of its own: one alone gets 0, and parts of a set must not be averaged.

    Raises:
      ValueError: lengths differ, or an image has no reference.
    """
    _check(captions, references)
    grams = [[_ngrams(text.split()) for text in texts] for texts in references]
    images_with: Counter[tuple[str, ...]] = Counter()
    for texts in grams:
        images_with.update(set().union(*texts))
    rarity = _Rarity(images_with, math.log(len(captions)) if captions else 0.0)
    return np.array(
        [
            _cider(rarity.vector(_ngrams(caption.split())), [rarity.vector(t) for t in texts])
            for caption, texts in zip(captions, grams, strict=True)
        ],
        np.float64,
    )


@dataclasses.dataclass(frozen=True)
class _Vector:
    """Weights of a text's n-grams by n, their norms, and its length: the number of its bigrams."""

    weights: tuple[Mapping[tuple[str, ...], float], ...]
    norms: tuple[float, ...]
    length: int


@dataclasses.dataclass(frozen=True)
class _Rarity:
    """In how many images' references an n-gram stands, and the logarithm of all images."""

    images_with: Mapping[tuple[str, ...], int]
    log_images: float

    def vector(self, grams: Mapping[tuple[str, ...], int]) -> _Vector:
        """TF-IDF weights of counted n-grams."""
        weights: tuple[dict, ...] = tuple({} for _ in range(MAX_N))
        for gram, count in grams.items():
            rare = self.log_images - math.log(max(1, self.images_with.get(gram, 0)))
            weights[len(gram) - 1][gram] = count * rare
        norms = tuple(math.sqrt(sum(w * w for w in of.values())) for of in weights)
        return _Vector(weights, norms, sum(n for gram, n in grams.items() if len(gram) == 2))


def _cider(caption: _Vector, references: Sequence[_Vector]) -> float:
    total = 0.0
    for reference in references:
        shorter = math.exp(-((caption.length - reference.length) ** 2) / (2 * _SIGMA**2))
        for ours, theirs, norm, other in zip(
            caption.weights, reference.weights, caption.norms, reference.norms, strict=True
        ):
            if norm and other:
                dot = sum(
                    min(weight, theirs[gram]) * theirs[gram]
                    for gram, weight in ours.items()
                    if gram in theirs
                )
                total += dot / (norm * other) * shorter
    return 10.0 * total / MAX_N / len(references)


def _rouge_l(caption: str, references: Sequence[str]) -> float:
    words = caption.split(" ")
    split = [reference.split(" ") for reference in references]
    common = [_longest_common(words, one) for one in split]
    precision = max(common) / len(words)
    recall = max(n / len(one) for n, one in zip(common, split, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence. A row of the usual table is one integer, a bit a
    word of `a` (H. Hyyrö, "Bit-parallel LCS-length computation revisited", 2004)."""
    at: dict[str, int] = {}
    for i, word in enumerate(a):
        at[word] = at.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        matched = row & at.get(word, 0)
        row = (row + matched) | (row - matched)
    return len(a) - (row & full).bit_count()


def _ngrams(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    """How often each n-gram of n = 1..4 stands in a text."""
    return Counter(
        tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1)
    )


def _check(captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(captions) != len(references):
        raise ValueError(
            f"captions: {len(captions)} captions, but references of {len(references)} images"
        )
    for i, texts in enumerate(references):
        if not len(texts):
            raise ValueError(f"captions: image {i} has no reference")
