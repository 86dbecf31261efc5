"""The judge with a made-up model: what raises a score, what lowers it, what is no score at all."""

import dataclasses
import itertools
import types

import numpy as np
import pytest
from chosen_tokens import chosen

from srum_jax.rewards import judge, logits, question_templates
from srum_jax.rewards.boxes import regions
from srum_jax.rewards.boxes.regions import Proposals
from srum_jax.rewards.judge import JudgeSettings
from srum_jax.rewards.logits import LogitJudge

WORDS = sorted(
    {
        word
        for part in (
            question_templates.COLORS,
            question_templates.NUMBERS,
            question_templates.SIZES,
            question_templates.YES_NO,
            question_templates.HORIZONTAL,
            question_templates.VERTICAL,
            (
                "circle",
                "square",
                "cross",
                "circles",
                "squares",
                "crosses",
                "none",
                "a",
                "an",
                "and",
                ",",
                "?",
                "of",
                "or",
            ),
            *(template.split() for template in question_templates.TEMPLATES.values()),
        )
        for word in part
        if "{" not in word
    }
)
TONES = {"red": (228, 48, 44), "blue": (52, 92, 236), "green": (44, 176, 68)}
SHAPE_OF = {"red": "circle", "blue": "square", "green": "cross"}  # all there is in this world
COMPONENTS, GRID = regions.ComponentsProposer(), regions.GridProposer()
TOP_LEFT, TOP_RIGHT, LOW_LEFT = (3, 3, 13, 13), (19, 4, 29, 14), (4, 18, 14, 28)
BIG_SIDE = 10  # from how many pixels a thing is big


def size_of(box):
    return "big" if box[2] - box[0] >= BIG_SIDE else "small"


class Words:
    """A vocabulary of WORDS."""

    word_level = True

    def answers(self, word):
        if word not in WORDS:
            raise ValueError(f"token {word!r}")
        return (WORDS.index(word),)

    def encode(self, text):
        return [self.answers(word)[0] for word in text.split()]


def picture(*things):
    image = np.full((32, 32, 3), 20, np.uint8)
    for color, (x0, y0, x1, y1) in things:
        image[y0:y1, x0:x1] = TONES[color]
    return image


def seen(image):
    """[(colour, box)] of a picture or crop of this world."""
    found = []
    for box in regions.find_components(image):
        x0, y0, x1, y1 = map(int, box)
        tone = np.median(image[y0:y1, x0:x1].reshape(-1, 3), axis=0)
        found.append((min(TONES, key=lambda c: np.abs(tone - TONES[c]).sum()), box))
    return found


def truth(image, text):
    """The right one-word answer."""
    things, words = seen(image), text.split()
    colors = [color for color, _ in things]
    named = [word for word in words if word in TONES]
    count = sum(c == named[0] and SHAPE_OF[c] in text for c in colors) if named else len(colors)
    if text == "what color is this ?":
        return colors[0]
    if text == "what shape is this ?":
        return SHAPE_OF[colors[0]]
    if text.startswith("how many"):
        return question_templates.NUMBERS[count]
    if text.startswith("does the image show"):
        scene = question_templates.decompose(" ".join(words[4:-1]))
        wanted = sorted(s.name for s in scene.objects for _ in range(s.count))
        right = wanted == sorted(f"{c} {SHAPE_OF[c]}" for c in colors)
        if right:
            place = dict(things)
            right = all(s.size in ("", size_of(place[s.color])) for s in scene.objects)
        if right and scene.relation:
            right = logits.holds(scene.relation.kind, *(place[s.color] for s in scene.objects))
        return "yes" if right else "no"
    if text.startswith(("is there", "is this")):
        return "yes" if count else "no"
    if text.endswith("big or small ?"):
        return size_of(dict(things)[named[0]]) if count else "none"
    if not set(named) <= set(colors):
        return "neither" if " or " in text else "no"
    place = dict(things)
    boxes = [place[color] for color in named]
    true = [kind for kind in question_templates.RELATIONS if logits.holds(kind, *boxes)]
    if " or " in text:
        return next((word for word in words if word in true), "neither")
    return "yes" if any(question_templates.RELATIONS[kind] in text for kind in true) else "no"


class Scorer:
    """A model that answers by `ask(images, questions)`; whatever parameters come are kept."""

    def __init__(self, ask):
        self.ask, self.params = ask, []

    def probabilities(self, images, questions, tokens, params=None):
        self.params.append(params)
        return chosen(self.ask(images, questions), tokens)


def knowing(sureness=0.96, calls=None):
    """A model that knows the truth; the rest of its probability is spread over all words."""

    def ask(images, questions):
        if calls is not None:
            calls.append(len(images))
        answers = []
        for image, texts in zip(images, questions, strict=True):
            rows = np.full((len(texts), len(WORDS)), (1 - sureness) / len(WORDS))
            for row, text in zip(rows, texts, strict=True):
                row[WORDS.index(truth(image, text))] += sureness
            answers.append(rows.astype(np.float32))
        return answers

    return ask


def prompted(images, prompts, proposer=COMPONENTS):
    """Images with prompts and the regions that `proposer` finds."""
    made = [regions.PromptedImage(i, prompt) for i, prompt in zip(images, prompts, strict=True)]
    return Proposals.of(proposer, made)


def judging(ask, vocabulary=None, scenes=None, **settings):
    vocabulary = Words() if vocabulary is None else vocabulary
    return LogitJudge(Scorer(ask), vocabulary, JudgeSettings(**settings), scenes)


def judged(prompt, *things, ask=None, proposer=COMPONENTS):
    images = prompted([picture(*things)], [prompt], proposer)
    return judging(ask or knowing()).judge(images)[0]


def test_a_right_picture_scores_high():
    result = judged("a red circle and a blue square", ("red", TOP_LEFT), ("blue", LOW_LEFT))
    assert result.image_status == judge.OK and result.image_score > 0.7
    assert set(result.parts) == {"global", "questions", "assembled"}
    assert all(0 <= part <= 1 for part in result.parts.values())
    assert {region.label for region in result.regions} == {"red circle", "blue square"}
    for region in result.regions:
        assert region.status == judge.OK and 0.8 < region.score <= 1
        assert region.proposer == "components" and len(region.p) == 2


@pytest.mark.parametrize(
    "prompt,things",
    [
        ("a red circle and a blue square", [("red", TOP_LEFT)]),  # missing
        (
            "a red circle and a blue square",
            [("red", TOP_LEFT), ("blue", LOW_LEFT), ("red", TOP_RIGHT)],
        ),  # extra
        ("a red circle and a blue square", [("red", TOP_LEFT), ("green", LOW_LEFT)]),  # another
        ("a red circle and a blue cross", [("red", TOP_LEFT), ("blue", LOW_LEFT)]),  # wrong shape
        ("two red circles", [("red", TOP_LEFT)]),
        ("a red circle left of a blue square", [("red", TOP_RIGHT), ("blue", TOP_LEFT)]),
        ("a red circle left of a blue square", [("red", TOP_LEFT), ("blue", LOW_LEFT)]),
        ("a big red circle", [("red", (3, 3, 12, 12))]),  # a small one
        ("a big red circle", [("red", TOP_LEFT), ("blue", LOW_LEFT)]),
        (
            "a big red circle and a small blue square",
            [("red", (3, 3, 12, 12)), ("blue", LOW_LEFT)],  # the sizes swapped
        ),
    ],
)
def test_every_fault_lowers_every_part(prompt, things):
    right = {
        "a red circle and a blue square": [("red", TOP_LEFT), ("blue", LOW_LEFT)],
        "two red circles": [("red", TOP_LEFT), ("red", LOW_LEFT)],
        "a red circle left of a blue square": [("red", TOP_LEFT), ("blue", TOP_RIGHT)],
        "a big red circle": [("red", TOP_LEFT)],
        "a big red circle and a small blue square": [
            ("red", TOP_LEFT),
            ("blue", (4, 18, 13, 27)),
        ],
    }.get(prompt, [("red", TOP_LEFT), ("green", LOW_LEFT)])
    good = judged(prompt if "cross" not in prompt else "a red circle and a green cross", *right)
    bad = judged(prompt, *things)
    assert bad.image_status == judge.OK and bad.image_score < -0.4 < 0.5 < good.image_score
    assert all(bad.parts[name] < 0.3 for name in bad.parts)


def test_a_wrong_region_beside_a_right_one():
    result = judged("a red circle and a blue square", ("red", TOP_LEFT), ("green", LOW_LEFT))
    scores = {region.bbox[:2]: region.score for region in result.regions}
    assert scores[3.0, 3.0] > 0.8 and scores[4.0, 18.0] < -0.5


def test_unsure_models_give_middling_scores():
    def unsure(images, questions):
        return [np.full((len(texts), len(WORDS)), 0.25, np.float32) for texts in questions]

    result = judged("a red circle", ("red", TOP_LEFT), ask=unsure)
    assert -0.7 < result.regions[0].score < 0.1 and -0.9 < result.image_score < 0.1


def test_grid_boxes_are_not_counted_as_objects():
    wide = (3, 3, 29, 13)  # one object over two cells
    result = judged("a red circle", ("red", wide), proposer=GRID)
    assert len(result.regions) == 2 and set(result.parts) == {"global", "questions"}
    assert result.image_score > 0.7


# -- scores follow the probabilities ---------------------------------------------------------------


class Table:
    """A model whose probability of the wanted answer is `p[(which, text, word)]`, drawn once."""

    def __init__(self, seed):
        self.rng, self.p = np.random.default_rng(seed), {}

    def __call__(self, images, questions):
        answers = []
        for n, texts in enumerate(questions):
            rows = np.full((len(texts), len(WORDS)), 0.3, np.float32)
            for row, text in zip(rows, texts, strict=True):
                for word in self.words(text):
                    key = (int("this" in text), n, text, word)
                    row[WORDS.index(word)] = self.p.setdefault(key, self.rng.uniform(0.25, 1))
            answers.append(rows)
        return answers

    def words(self, text):
        if text == "what color is this ?":
            return ["red", "blue"]
        if text == "what shape is this ?":
            return ["circle", "square"]
        if text.startswith("how many"):
            return ["one"] if "red" in text or "blue" in text else ["two"]
        if " or " in text:
            return ["left"] if text.startswith("is the red") else ["right"]
        return ["yes"]


@pytest.mark.parametrize("seed", range(12))
def test_raising_a_supporting_probability_never_lowers_a_score(seed):
    table = Table(seed)
    things = [("red", TOP_LEFT), ("blue", TOP_RIGHT), ("red", LOW_LEFT)][: 2 + seed % 2]
    relational = seed % 3 == 0
    prompt = f"a red circle {'left of' if relational else 'and'} a blue square"
    before = judged(prompt, *things, ask=table)
    known = dict(table.p)
    for key in known:
        if relational and key[0] == 1:
            continue  # which crop is which may change with it, and with that the geometry
        table.p = {**known, key: known[key] + 0.5 * (1 - known[key])}
        after = judged(prompt, *things, ask=table)
        assert after.image_score >= before.image_score - 1e-6
        for old, new in zip(before.regions, after.regions, strict=True):
            assert new.score >= old.score - 1e-6
        assert key[0] == 1 or after.image_score > before.image_score


@pytest.mark.parametrize("counts", list(itertools.product((1, 2, 3), repeat=2)))
def test_assemble_counts_missing_and_extra(counts):
    red, blue = counts
    scene = question_templates.decompose("two red circles and two blue squares")
    boxes = [(0.0, 0.0, 1.0, 1.0)] * (red + blue)
    p = np.array([(0.9, 0.05)] * red + [(0.05, 0.9)] * blue)
    whole = logits.assemble(scene, boxes, p)
    wrong = abs(red - 2) + abs(blue - 2)
    assert whole == pytest.approx(0.9**4) if not wrong else whole < 0.9**4 * 0.15
    for gone in range(red + blue):  # one fewer of what is demanded lowers it
        if (red if gone < red else blue) <= 2:
            kept = [i for i in range(red + blue) if i != gone]
            assert logits.assemble(scene, boxes[1:], p[kept]) < whole


def test_assemble_finds_the_best_assignment_and_the_relation():
    scene = question_templates.decompose("a red circle above a blue square")
    high, low = (0.0, 0.0, 9.0, 9.0), (2.0, 16.0, 11.0, 25.0)
    p = np.array([(0.2, 0.9), (0.8, 0.3)])
    assert logits.assemble(scene, [low, high], p, 0.9) == pytest.approx(0.9 * 0.8 * 0.95)
    assert logits.assemble(scene, [high, low], p, 0.1) == pytest.approx(0.9 * 0.8 * 0.05)
    assert logits.assemble(scene, [high], p[1:], 0.9) == pytest.approx(0.8 * 0.1 * 0.45)


@pytest.mark.parametrize(
    "kind,first,second,expected",
    [
        ("left", (0, 0, 9, 9), (16, 0, 25, 9), True),
        ("right", (0, 0, 9, 9), (16, 0, 25, 9), False),
        ("left", (0, 0, 12, 9), (10, 0, 25, 9), True),  # boxes that touch a little
        ("left", (0, 0, 9, 9), (3, 16, 12, 25), False),  # one column, shifted
        ("above", (0, 0, 9, 9), (3, 16, 12, 25), True),
        ("below", (3, 16, 12, 25), (0, 0, 9, 9), True),
    ],
)
def test_holds(kind, first, second, expected):
    assert logits.holds(kind, first, second) is expected


# -- no score is never a number -------------------------------------------------------------------


def assert_no_score(result, status):
    assert result.image_status == status and np.isnan(result.image_score) and not result.parts


def test_prompts_and_words_out_of_reach_cost_no_question():
    calls = []
    images = [picture(("red", TOP_LEFT))] * 3
    prompts = ["a dog chasing a cat", "a red teapot", "a red circle"]
    results = judging(knowing(calls=calls)).judge(prompted(images, prompts))
    assert calls == [1, 1]
    assert_no_score(results[0], judge.UNKNOWN_WORDS)
    assert_no_score(results[1], judge.UNKNOWN_WORDS)
    for result in results[:2]:
        assert len(result.regions) == 1 and np.isnan(result.regions[0].score)
        assert result.regions[0].status == result.image_status
    assert results[2].image_status == judge.OK


def test_nothing_to_look_at():
    assert_no_score(judged("a red circle"), judge.NO_REGIONS)
    assert_no_score(judged("a red circle", proposer=GRID), judge.NO_REGIONS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5, 3.0])
def test_numbers_that_are_no_probabilities(bad):
    things = ("red", TOP_LEFT), ("blue", LOW_LEFT)

    def broken(texts_with):
        def ask(images, questions):
            answers = knowing()(images, questions)
            for answer, texts in zip(answers, questions, strict=True):
                if any(part in text for part in texts_with for text in texts):
                    answer[0] = bad
            return answers

        return ask

    crops = judged("a red circle and a blue square", *things, ask=broken(["is this"]))
    assert_no_score(crops, judge.NOT_FINITE)
    assert {region.status for region in crops.regions} == {judge.NOT_FINITE}
    whole = judged("a red circle and a blue square", *things, ask=broken(["is there"]))
    assert_no_score(whole, judge.NOT_FINITE)
    assert {region.status for region in whole.regions} == {judge.OK}


def test_a_closed_question_answered_with_other_words():
    def chatty(images, questions):
        answers = knowing()(images, questions)
        for answer, texts in zip(answers, questions, strict=True):
            for row, text in zip(answer, texts, strict=True):
                if text.startswith("does"):
                    row[:] = 0
                    row[WORDS.index("red")] = 1
        return answers

    result = judged("a red circle", ("red", TOP_LEFT), ask=chatty)
    assert [a.status for a in result.answers if a.kind == "caption_right"] == [judge.UNPARSED]
    assert result.image_status == judge.OK and set(result.parts) == {"questions", "assembled"}
    assert result.coverage == pytest.approx(2 / 3) and result.image_score > 0.7
    images = prompted([picture(("red", TOP_LEFT))], ["a red circle"])
    (strict,) = judging(chatty, min_coverage=0.7).judge(images)
    assert_no_score(strict, judge.LOW_COVERAGE)


def test_one_call_for_all_crops_and_one_for_all_images():
    calls = []
    images = [picture(("red", TOP_LEFT), ("blue", LOW_LEFT)), picture(), picture(("red", TOP_LEFT))]
    prompts = ["a red circle and a blue square"] * 2 + ["a red circle"]
    results = judging(knowing(calls=calls)).judge(prompted(images, prompts))
    assert calls == [3, 2]
    one = judging(knowing())
    alone = one.judge(prompted(images[2:], prompts[2:]))
    assert results[2] == alone[0]
    (parts,) = one.judge(prompted(images[:1], prompts[:1]), whole=False)
    assert parts.regions == results[0].regions
    assert (parts.image_status, parts.parts) == (judge.NOT_ASKED, {})
    assert np.isnan(parts.image_score)
    assert one.judge(prompted([], [])) == []


def test_parameters_of_a_call_reach_the_model_and_the_proposer():
    found = []

    class Proposer(regions.ComponentsProposer):
        def find(self, images, *, params=None):
            found.append(params)
            return super().find(images, params=params)

    images = [regions.PromptedImage(picture(("red", TOP_LEFT)), "a red circle")]
    one = judging(knowing())
    one.judge(Proposals.of(Proposer(), images, params="new"), params="new")
    assert one.scorer.params == ["new", "new"] and found == ["new"]


def test_wrong_calls_are_named():
    image = picture(("red", TOP_LEFT))
    for given, message in (
        (lambda i, q, tokens, params: [], "answered 0 of 1"),
        (lambda i, q, tokens, params: [[np.zeros(5)] * len(t) for t in q], "5 probabilities of 1"),
    ):
        one = dataclasses.replace(judging(None), scorer=types.SimpleNamespace(probabilities=given))
        with pytest.raises(ValueError, match=message):
            one.judge(prompted([image], ["a red circle"]))
    for wrong in (dict(view="crops"), dict(attempts=0), dict(temperature=0.0)):
        with pytest.raises(ValueError, match="none of|at least 1"):
            JudgeSettings(**wrong)


def test_verification_of_shapes_goes_by_the_shape_alone():
    things = ("green", TOP_LEFT), ("blue", LOW_LEFT)  # a cross and a square
    images = prompted([picture(*things)], ["a red cross"])
    (found,) = judging(knowing(), verify=0.5).judge(images, whole=False)
    status = {region.bbox[:2]: region.status for region in found.regions}
    assert status == {(3.0, 3.0): judge.OK, (4.0, 18.0): judge.IRRELEVANT}
