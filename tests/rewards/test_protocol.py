"""Prompts taken apart, the wording of questions, and that a change of wording is noticed."""

import pytest

from srum_jax.data import shapes_language as language
from srum_jax.rewards import protocol
from srum_jax.rewards.protocol import ObjectSpec, Relation, decompose


def texts(questions):
    return [question.text for question in questions]


@pytest.mark.parametrize(
    "prompt,objects",
    [
        ("a red circle", [ObjectSpec("red", "circle")]),
        ("A Red  Circle.", [ObjectSpec("red", "circle")]),
        ("an orange box", [ObjectSpec("orange", "box")]),
        ("two red crosses", [ObjectSpec("red", "cross", 2)]),
        ("three blue squares", [ObjectSpec("blue", "square", 3)]),
        ("four pink berries", [ObjectSpec("pink", "berry", 4)]),
        (
            "one red circle and two blue glasses",
            [ObjectSpec("red", "circle"), ObjectSpec("blue", "glass", 2)],
        ),
        (
            "a red circle , a blue square and a green cross",
            [
                ObjectSpec("red", "circle"),
                ObjectSpec("blue", "square"),
                ObjectSpec("green", "cross"),
            ],
        ),
        (
            "a red circle, a blue square, and a red circle",
            [ObjectSpec("red", "circle", 2), ObjectSpec("blue", "square")],
        ),
    ],
)
def test_objects(prompt, objects):
    scene = decompose(prompt)
    assert list(scene.objects) == objects and scene.relation is None
    assert scene.total == sum(spec.count for spec in objects)


@pytest.mark.parametrize(
    "phrase,kind",
    [("left of", "left"), ("to the right of", "right"), ("above", "above"), ("below", "below")],
)
def test_relations(phrase, kind):
    scene = decompose(f"a red circle {phrase} a blue square")
    assert scene.relation == Relation(kind, 0, 1)
    assert scene.objects == (ObjectSpec("red", "circle"), ObjectSpec("blue", "square"))


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        ".",
        ",",
        "a red",
        "red circle",
        "a circle",
        "a big red circle",
        "zero red circles",
        "a red circle and",
        "and a red circle",
        "a dog chasing a cat",
        "a red circle left of",
        "two red circles left of a blue square",
        "a red circle above a red circle",
        "a red circle left of a blue square above a green cross",
        "a red circ1e",
        "a red ,",
    ],
)
def test_beyond_the_grammar(prompt):
    assert decompose(prompt) is None


def test_every_shapes_prompt_is_read_as_the_world_means_it():
    for prompt in language.prompts("validation") + language.prompts("train")[::40]:
        scene, content = decompose(prompt.text), language.parse(prompt.text)
        read = [(spec.color, spec.shape) for spec in scene.objects for _ in range(spec.count)]
        assert sorted(read) == sorted(content.pairs)
        assert bool(scene.relation) == bool(content.relation)
        assert scene.caption == prompt.text


def test_crop_questions():
    questions = protocol.crop_questions(decompose("an orange box and two red crosses"))
    assert texts(questions) == [
        "what color is this ?",
        "what shape is this ?",
        "is this an orange box ?",
        "is this a red cross ?",
    ]
    assert [question.about for question in questions] == [-1, -1, 0, 1]


def test_image_questions_of_a_count():
    questions = protocol.image_questions(decompose("two red crosses"))
    assert [(q.kind, q.text, q.answer) for q in questions] == [
        ("exists", "is there a red cross ?", "yes"),
        ("count", "how many red crosses are there ?", "two"),
        ("count_all", "how many objects are there ?", "two"),
        ("caption_right", "does the image show two red crosses ?", "yes"),
    ]


def test_image_questions_of_a_relation():
    questions = protocol.image_questions(decompose("a red circle below a blue square"))
    relation = [(q.kind, q.text, q.answer) for q in questions if q.kind.startswith("relation")]
    assert relation == [
        ("relation_yesno", "is the red circle below the blue square ?", "yes"),
        ("relation_vertical", "is the red circle above or below the blue square ?", "below"),
        ("relation_yesno", "is the blue square above the red circle ?", "yes"),
        ("relation_vertical", "is the blue square above or below the red circle ?", "above"),
    ]
    assert all(q.answer in q.choices for q in questions if q.choices)


def test_the_hash_sees_every_word(monkeypatch):
    before = protocol.protocol_hash()
    assert before == protocol.protocol_hash()
    monkeypatch.setitem(protocol.TEMPLATES, "exists", "do you see {a} ?")
    assert protocol.protocol_hash() != before
