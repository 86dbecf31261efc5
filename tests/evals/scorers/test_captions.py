"""BLEU, ROUGE-L and CIDEr-D: by hand, by their definition, and on odd captions."""

import collections
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srum_jax.evals.scorers import captions

WORDS = st.lists(st.sampled_from("a b c d e".split()), max_size=9).map(" ".join)
IMAGES = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=6)


def split(images):
    return [caption for caption, _ in images], [texts for _, texts in images]


@given(IMAGES)
def test_scores_stay_in_their_scales(images):
    said, references = split(images)
    assert all(-1e-9 <= m.number <= 1 + 1e-6 for m in captions.bleu(said, references).values())
    for scores, best in ((captions.rouge_l, 1), (captions.cider, 10)):
        found = scores(said, references)
        assert ((found >= 0) & (found <= best + 1e-9)).all()


@given(IMAGES)
def test_bleu_of_a_corpus_is_of_its_sums(images):
    said, references = split(images)
    counts = captions.bleu_counts(said, references)
    assert counts.shape == (len(said), 10)
    for n, (name, metric) in enumerate(captions.bleu(said, references).items(), 1):
        assert name == f"Bleu_{n}"
        assert metric.number == captions.Bleu(n)(counts.sum(axis=0))
    for k, caption in enumerate(said):
        length = len(caption.split())
        assert counts[k, 4:8].tolist() == [max(length - n, 0) for n in range(4)]
        assert counts[k, 8] == length


@given(WORDS, WORDS)
def test_rouge_is_of_the_longest_common_subsequence(one, other):
    a, b = one.split(" "), other.split(" ")
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            longer = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else longer
    p, r = table[-1][-1] / len(a), table[-1][-1] / len(b)
    want = 0 if not p else (1 + 1.44) * p * r / (r + 1.44 * p)
    assert captions.rouge_l([one], [[other]])[0] == pytest.approx(want)


@given(IMAGES)
def test_cider_is_its_definition(images):
    said, references = split(images)

    def grams(text, n):
        words = text.split()
        return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    def weights(text, n):
        found = {}
        for gram, count in grams(text, n).items():
            df = sum(any(gram in grams(t, n) for t in texts) for texts in references)
            found[gram] = count * (math.log(len(said)) - math.log(max(1, df)))
        return found

    for score, caption, texts in zip(
        captions.cider(said, references), said, references, strict=True
    ):
        want = 0.0
        for text in texts:
            lengths = [max(len(t.split()) - 1, 0) for t in (caption, text)]
            penalty = math.exp(-((lengths[0] - lengths[1]) ** 2) / 72)
            for n in (1, 2, 3, 4):
                h, r = weights(caption, n), weights(text, n)
                norm = math.sqrt(sum(x * x for x in h.values()) * sum(x * x for x in r.values()))
                dot = sum(min(x, r.get(g, 0)) * r.get(g, 0) for g, x in h.items())
                want += penalty * dot / norm if norm else 0
        assert score == pytest.approx(10 * want / 4 / len(texts), abs=1e-9)


def test_the_right_caption_is_best():
    references = [["a dog runs", "the dog runs fast"], ["two red apples"], ["a man on a horse"]]
    good = captions.cider([texts[0] for texts in references], references)
    bad = captions.cider(["two red apples", "a man", "a dog runs"], references)
    assert (good > bad).all() and good.min() > 1
    assert captions.bleu([texts[0] for texts in references], references)["Bleu_1"].number > 0.99


def test_empty_captions_score_nothing():
    said, references = ["", "a dog"], [["a cat sits"], ["a dog"]]
    assert captions.cider(said, references)[0] == captions.rouge_l(said, references)[0] == 0
    assert captions.Bleu(1)(captions.bleu_counts(said, references))[0] == pytest.approx(0, abs=1e-9)
    assert captions.cider([], []).shape == (0,)


def test_one_image_alone_has_no_cider():
    assert captions.cider(["a dog"], [["a dog"]])[0] == 0


@pytest.mark.parametrize("score", [captions.bleu, captions.rouge_l, captions.cider])
def test_what_does_not_fit_is_refused(score):
    with pytest.raises(ValueError, match="1 captions, but references of 2"):
        score(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="image 1 has no reference"):
        score(["a", "b"], [["a"], []])


def test_thousands_of_captions_take_seconds():
    said = [f"a dog number {i} runs over the green field near {i % 7} trees" for i in range(3000)]
    scores = captions.cider(said, [[text, text + " today"] for text in said])
    assert np.isfinite(scores).all() and scores.min() > 5
