"""T2I-CompBench's order of files, questions, products, 3-in-1 and positions, as the official code
has them."""

import re

import pytest

from srum_jax.evals.scorers import noun_phrases, t2i_compbench


def _tokens(prompt):
    return re.findall(r"[\w-]+|[^\w\s]", prompt)


def _dropped(words, kept):
    """Which of the words are not in the official text: the parts of speech are spaCy's."""
    left = kept.split(" ")
    dropped = []
    for word in words:
        there = bool(left) and left[0] == word
        dropped.append(not there)
        left = left[1:] if there else left
    assert not left, (words, kept)
    return dropped


def _check_phrases(case):
    """The official questions themselves, where the same spaCy is installed."""
    found = noun_phrases.chunker()
    if case["spacy"] not in found.name.split():
        return
    for file, asked in zip(case["order"], case["questions"], strict=True):
        phrases = found.phrases(t2i_compbench.prompt_of(file))
        assert t2i_compbench.questions(phrases) == asked, file


def _check_blip(case):
    assert t2i_compbench.ordered(case["files"]) == case["order"]
    places = [t2i_compbench.index_of(file) for file in case["order"]]
    assert places == list(range(len(places)))
    answers = []
    for i, (file, asked, yes) in enumerate(
        zip(case["order"], case["questions"], case["yes_probabilities"], strict=True)
    ):
        prompt = t2i_compbench.prompt_of(file)
        phrases = [question[:-1] for question in asked if question]
        assert all(phrase in prompt for phrase in phrases), (file, phrases)
        places = [*t2i_compbench.NOT_ASKED, *phrases]
        assert t2i_compbench.questions(places) == asked
        score = t2i_compbench.product(asked, yes)
        official = case["blip_vqa_result"][i]
        assert official["question_id"] == i
        assert score == pytest.approx(float(official["answer"]), abs=5e-5)
        answers.append(t2i_compbench.answer(score))
    assert answers == [one["answer"] for one in case["blip_vqa_result"]]
    assert t2i_compbench.score_text(answers) == case["blip_vqa_score_txt"].rstrip("\n")


def check(case):
    _check_phrases(case)
    _check_blip(case)
    for file, text in zip(case["order"], case["clip_text_complex"], strict=True):
        words = _tokens(t2i_compbench.prompt_of(file))
        assert t2i_compbench.without_adjectives(words, _dropped(words, text)) == text
    parts = case["three_in_one"]
    total = t2i_compbench.three_in_one(
        parts["complex_val"],
        parts["complex_val_spatial"],
        parts["complex_val_action"],
        parts["scores"],
    )
    assert total == pytest.approx(parts["total"], abs=1e-9)
    assert t2i_compbench.three_in_one_text(total) == parts["score_txt"].rstrip("\n")
    for one in case["position_2d"]:
        ours = t2i_compbench.position(one["locality"], one["box1"], one["box2"])
        assert ours == pytest.approx(one["score"], abs=1e-9), one
