"""Noun phrases of prompts without spaCy."""

import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srum_jax.evals.scorers import noun_phrases, t2i_compbench

GOLDEN = pathlib.Path(__file__).parents[2] / "goldens/evals/t2i_compbench.json"
SIMPLE = noun_phrases.SimpleChunker()


@pytest.mark.parametrize(
    "prompt,phrases",
    [
        ("a green bench and a blue bowl", ["a green bench", "a blue bowl"]),
        ("A man is reading the red book", ["A man", "the red book"]),
        ("two cups, one plate on the left of a vase.",
         ["two cups", "one plate", "the left", "a vase"]),
        ("a fork hidden by a plate", ["a fork", "a plate"]),
        ("yellow bird", ["yellow bird"]),
        ("", []),
    ],
)  # fmt: skip
def test_phrases(prompt, phrases):
    assert SIMPLE.phrases(prompt) == phrases


@given(st.text(max_size=60))
def test_phrases_stand_in_the_prompt_in_order(prompt):
    place = 0
    for phrase in SIMPLE.phrases(prompt):
        place = prompt.index(phrase, place) + len(phrase)


def test_most_prompts_are_asked_what_spacy_asks():
    case = json.loads(GOLDEN.read_text())
    same = [
        t2i_compbench.questions(SIMPLE.phrases(t2i_compbench.prompt_of(file))) == asked
        for file, asked in zip(case["order"], case["questions"], strict=True)
    ]
    assert sum(same) / len(same) > 0.9
