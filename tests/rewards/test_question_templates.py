"""Prompts decomposed, the wording of questions, and that a change of wording is noticed."""

import pytest

from srum_jax.rewards import question_templates
from srum_jax.rewards.question_templates import ObjectSpec, Relation, decompose
from srum_jax.worlds.shapes import examples, language
from srum_jax.worlds.shapes.setting import SMALL


def texts(questions):
    return [question.text for question in questions]


@pytest.mark.parametrize(
    "prompt,objects",
    [
        ("a red circle", [ObjectSpec("red", "circle")]),
        ("A Red  Circle.", [ObjectSpec("red", "circle")]),
        ("an orange box", [ObjectSpec("orange", "box")]),
        ("two red crosses", [ObjectSpec("red", "cross", 2)]),
        ("a big red circle", [ObjectSpec("red", "circle", size="big")]),
        (
            "A small red circle and an orange box.",
            [ObjectSpec("red", "circle", size="small"), ObjectSpec("orange", "box")],
        ),
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
        "a huge red circle",
        "a red big circle",
        "two big red circles",
        "a big red circle and a small red circle",
        "a red circle and a big red circle",
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


@pytest.mark.parametrize("split", language.SPLITS)
def test_every_shapes_prompt_is_read_as_the_world_means_it(split):
    for category in SMALL.prompts:
        prompts = [p for p in language.prompts(split) if p.category == category]
        for prompt in prompts[:: max(1, len(prompts) // 80)]:
            scene, content = decompose(prompt.text), language.parse(prompt.text)
            specs = [spec for spec in scene.objects for _ in range(spec.count)]
            sizes = content.sizes or ("",) * len(content.pairs)
            read = sorted((spec.color, spec.shape, spec.size) for spec in specs)
            assert read == sorted((*p, s) for p, s in zip(content.pairs, sizes, strict=True))
            assert scene.caption == prompt.text
            if scene.relation is None:
                assert not content.relation
            else:
                named = [scene.objects[i] for i in (scene.relation.subject, scene.relation.other)]
                first, second = ((spec.color, spec.shape) for spec in named)
                assert language.spatial(first, scene.relation.kind, second) == content


def test_crop_questions():
    questions = question_templates.crop_questions(decompose("an orange box and two red crosses"))
    assert texts(questions) == [
        "what color is this ?",
        "what shape is this ?",
        "is this an orange box ?",
        "is this a red cross ?",
    ]
    assert [question.about for question in questions] == [-1, -1, 0, 1]


def test_image_questions_of_a_count():
    questions = question_templates.image_questions(decompose("two red crosses"))
    assert [(q.kind, q.text, q.answer) for q in questions] == [
        ("exists", "is there a red cross ?", "yes"),
        ("count", "how many red crosses are there ?", "two"),
        ("count_all", "how many objects are there ?", "two"),
        ("caption_right", "does the image show two red crosses ?", "yes"),
    ]


def test_image_questions_of_a_relation():
    questions = question_templates.image_questions(decompose("a red circle below a blue square"))
    relation = [(q.kind, q.text, q.answer) for q in questions if q.kind.startswith("relation")]
    assert relation == [
        ("relation_yesno", "is the red circle below the blue square ?", "yes"),
        ("relation_vertical", "is the red circle above or below the blue square ?", "below"),
        ("relation_yesno", "is the blue square above the red circle ?", "yes"),
        ("relation_vertical", "is the blue square above or below the red circle ?", "above"),
    ]
    assert all(q.answer in q.choices for q in questions if q.choices)


def test_image_questions_of_sizes():
    questions = question_templates.image_questions(
        decompose("a big red circle and a small blue square")
    )
    sizes = [(q.text, q.answer, q.choices, q.about) for q in questions if q.kind == "size"]
    assert sizes == [
        ("is the red circle big or small ?", "big", ("big", "small"), -1),
        ("is the blue square big or small ?", "small", ("big", "small"), -1),
    ]
    asked = question_templates.image_questions(decompose("a big red circle and a blue square"))
    assert [q.answer for q in asked if q.kind == "size"] == ["big"]
    assert not any(
        q.kind == "size" for q in question_templates.image_questions(decompose("a red circle"))
    )
    # Whether it is there is asked without its size: that is a question of its own.
    exists = [q.text for q in questions if q.kind in ("exists", "count")]
    assert not any(size in text for text in exists for size in question_templates.SIZES)


def test_every_question_of_a_prompt_is_in_the_worlds_words():
    words = set(examples.vocabulary())
    for prompt in language.balanced_prompts("test", 140):
        scene = decompose(prompt.text)
        for q in (
            *question_templates.crop_questions(scene),
            *question_templates.image_questions(scene),
        ):
            assert set(q.text.split()) <= words
            assert {*q.choices} <= words | {*question_templates.NUMBERS}  # it counts to four
            assert q.answer in words or not q.answer


def test_the_hash_sees_every_word(monkeypatch):
    before = question_templates.protocol_hash()
    assert before == question_templates.protocol_hash()
    with monkeypatch.context() as patch:
        patch.setattr(question_templates, "SIZES", ("small", "big"))
        assert question_templates.protocol_hash() != before
    monkeypatch.setitem(question_templates.TEMPLATES, "exists", "do you see {a} ?")
    assert question_templates.protocol_hash() != before
