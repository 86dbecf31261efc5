"""Free prompts decomposed: the grammar first, the model's answer only where it keeps the rules."""

import types

import pytest

from srum_jax.rewards import decompose, question_templates
from srum_jax.rewards.question_templates import ObjectSpec, Relation
from srum_jax.rewards.written import WrittenAnswer

PROMPT = "Three fluffy cats sit on the left of a green wooden bench."
GOOD = (
    "Object: 3 | fluffy | cat\nObject: 1 | green wooden | bench\nRelation: 1 | on the left of | 2"
)


def test_a_good_answer_is_read():
    scene = decompose.parse(PROMPT, GOOD)
    assert scene.objects == (ObjectSpec("fluffy", "cat", 3), ObjectSpec("green wooden", "bench"))
    assert scene.relation == Relation("left", 0, 1)
    assert scene.source == "model" and not scene.open
    assert scene.caption == "three fluffy cats sit on the left of a green wooden bench"


def test_other_relations_keep_their_words():
    answer = "Object: 1 | - | microwave\nObject: 1 | - | horse\nRelation: 1 | hidden by | 2"
    scene = decompose.parse("a microwave hidden by a horse", answer)
    assert scene.relation.kind == "hidden by" and scene.objects[0].name == "microwave"


@pytest.mark.parametrize(
    "answer,why",
    [
        ("", "0 objects"),
        ("Here you are:\n" + GOOD, "form"),
        (GOOD.replace("cat", "dog"), "'dog'"),
        (GOOD.replace("fluffy", "black"), "'black'"),
        (GOOD.replace("Object: 3", "Object: 2"), "say 2"),
        (GOOD.replace("Object: 3", "Object: 1"), "'three'"),
        (GOOD.replace("Object: 3", "Object: many"), "many"),
        (GOOD.replace("green wooden", "wooden"), "'green'"),
        (GOOD.replace("on the left of", "on the right of"), "right of"),
        (GOOD.replace("| 2", "| 7"), "'7'"),
        (GOOD.replace("| 2", "| 1"), "two of"),
        (GOOD + "\nRelation: 2 | on the left of | 1", "more than one"),
        (GOOD + "\nObject: 1 | - | bench", "after it"),
        ("Object: 1 | green | bench\nObject: 1 | green | bench", "twice"),
        ("Object: 1 | fluffy |", "noun"),
        ("Object: 1 | fluffy | cat | bench", "form"),
    ],
)
def test_an_answer_that_breaks_a_rule_is_refused(answer, why):
    with pytest.raises(ValueError, match=why):
        decompose.parse(PROMPT, answer)


def test_grammar_first_then_the_model_then_the_whole():
    asked = []

    def answer(requests, *, temperature, params):
        assert temperature == 0 and params == "new"
        asked.extend(request.text for request in requests)
        assert all(request.image is None for request in requests)
        fluffy = ["fluffy" in request.text.rsplit(":", 1)[1] for request in requests]
        return [WrittenAnswer(GOOD if one else "no idea") for one in fluffy]

    prompts = ["a green bench and a blue bowl", PROMPT, "A dream.", PROMPT]
    source = types.SimpleNamespace(answer=answer)
    found = decompose.decompose_prompts(prompts, source, params="new")
    assert [scene.source for scene in found.values()] == ["grammar", "model", "caption"]
    assert len(asked) == 2 and asked[0].endswith(f"Description: {PROMPT}\n")
    assert not any(scene.open for scene in found.values())
    assert found["A dream."].objects == () and found["A dream."].caption == "a dream"


def test_an_answer_that_never_ended_is_not_read():
    for answer in (WrittenAnswer(GOOD, finished=False), WrittenAnswer("", failure="too long")):
        source = types.SimpleNamespace(answer=lambda requests, a=answer, **_: [a] * len(requests))
        found = decompose.decompose_prompts([PROMPT], source)
        assert found[PROMPT].source == "caption"


def test_questions_about_free_scenes_need_yes_no_and_numbers_alone():
    scene = decompose.parse(PROMPT, GOOD)
    crop, image = (
        question_templates.crop_questions(scene),
        question_templates.image_questions(scene),
    )
    assert [q.text for q in crop] == [
        "is this a fluffy cat ?",
        "is this a green wooden bench ?",
        "is this a cat ?",
        "is this a bench ?",
    ]
    texts = [q.text for q in image]
    assert (
        "how many fluffy cats are there ?" in texts and "how many objects are there ?" not in texts
    )
    assert "is the fluffy cat left of the green wooden bench ?" in texts
    assert "is the green wooden bench right of the fluffy cat ?" in texts
    answers = {word for q in image for word in (q.answer, *q.choices)}
    assert answers == {"yes", "no", *question_templates.NUMBERS}
    assert [
        q.kind for q in question_templates.image_questions(question_templates.whole("A dream."))
    ] == ["caption_right"]
    natural = [question_templates.natural(q.text) + question_templates.wanted(q.choices)
               for q in image]  # fmt: skip
    assert question_templates.natural(texts[0]) == "Is there a fluffy cat?"
    assert natural[0] == "Is there a fluffy cat? Answer with one word: yes or no."
    assert natural[1] == "How many fluffy cats are there? Answer with one number."
