"""Answers that fail: what they cost, and which forms of an answer are one."""

import dataclasses

import numpy as np
import pytest
from chosen_tokens import chosen

from srum_jax.rewards import judge, logits, question_templates
from srum_jax.rewards.boxes.regions import PromptedImage, Proposals, ProposedRegion
from srum_jax.rewards.judge import JudgeSettings, Part, SoftAnswer, of_parts
from srum_jax.rewards.logits import LogitJudge
from srum_jax.rewards.question_templates import Decomposition, ObjectSpec, Relation

PROMPT = "a green bench, two dogs and a kite"
SCENE = Decomposition(
    PROMPT,
    (ObjectSpec("green", "bench"), ObjectSpec("", "dog", 2), ObjectSpec("", "kite")),
    Relation("next to", 0, 1),
    open=False,
    source="model",
)
FOUR = Decomposition("four dogs", (ObjectSpec("", "dog", 4),), open=False, source="model")


class Forms:
    """A byte-pair vocabulary's answers: each written form is a token of its own."""

    word_level = False

    def __init__(self):
        self.ids = {"There": 0}

    def forms(self, word):
        spelt = [word, word.capitalize(), word.upper()]
        if word in question_templates.NUMBERS:
            spelt.append(str(question_templates.NUMBERS.index(word)))
        return [blank + one for one in spelt for blank in ("", " ")]

    def answers(self, word):
        return tuple(self.ids.setdefault(form, len(self.ids)) for form in self.forms(word))

    def encode(self, text):
        return [0]


class Said:
    """A model that writes `say(image, text)` as its first token, at 0.98."""

    def __init__(self, vocabulary, say):
        self.vocabulary, self.say = vocabulary, say

    def probabilities(self, images, questions, tokens, params=None):
        rows = []
        for n, texts in enumerate(questions):
            answers = np.zeros((len(texts), 400), np.float32)
            for row, text in zip(answers, texts, strict=True):
                row[self.vocabulary.ids[self.say(n, text)]] = 0.98
            rows.append(answers)
        return chosen(rows, tokens)


def judging(say, scene, count, images=1, **settings):
    """Judgements of images with `count` regions each."""
    vocabulary = Forms()
    for word in (*question_templates.NUMBERS, "yes", "no"):
        vocabulary.answers(word)
    regions = tuple(ProposedRegion((4.0 * i, 0.0, 4.0 * i + 4, 8.0)) for i in range(count))
    pictures = [PromptedImage(np.zeros((8, 64, 3), np.uint8), scene.caption, f"{n}-0")
                for n in range(images)]  # fmt: skip
    proposed = Proposals(pictures, [regions] * images, "sam", False)
    scorer, scenes = Said(vocabulary, say), {scene.caption: scene}
    return LogitJudge(scorer, vocabulary, JudgeSettings(**settings), scenes).judge(proposed)


def right(text):
    """What is said of a picture that shows the prompt: two dogs, of others one."""
    if text.startswith("How many"):
        return "two" if "dogs" in text else "one"
    return "yes"


def questions(scene, regions):
    crop, image = map(len, (question_templates.crop_questions(scene),
                            question_templates.image_questions(scene)))  # fmt: skip
    return regions * crop + image


@pytest.mark.parametrize("failing,before", [(0.005, 0.29), (0.03, 0.87)])
def test_of_68_questions_a_few_that_fail_cost_no_image(failing, before):
    """One failed answer among the 68 left an image without a score: so many were lost."""
    rng, count, images = np.random.default_rng(0), 10, 600
    assert questions(SCENE, count) == 68
    assert 1 - (1 - failing) ** 68 == pytest.approx(before, abs=0.01)

    def chatty(n, text):
        return "There" if rng.random() < failing else right(text)

    found = judging(chatty, SCENE, count, images)
    touched = np.mean([any(a.status != judge.OK for r in (j, *j.regions) for a in r.answers)
                       for j in found])  # fmt: skip
    lost = np.mean([j.image_status != judge.OK for j in found])
    assert touched == pytest.approx(before, abs=0.05)
    assert lost == 0.0 if failing < 0.01 else lost < 0.003
    (clean,) = judging(lambda n, text: right(text), SCENE, count)
    scores = [j.image_score for j in found if j.image_status == judge.OK]
    assert np.abs(np.array(scores) - clean.image_score).max() < 1e-6
    coverage = [j.coverage for j in found]
    assert np.mean(coverage) == pytest.approx(1 - failing, abs=failing) and min(coverage) < 1
    kept = np.mean([r.status == judge.OK for j in found for r in j.regions])
    assert kept > 0.99  # an answer that fails costs a region little too


def test_failed_answers_neither_help_nor_hurt_on_average():
    """A picture without its kite, at ever more unread answers."""

    def without(n, text):
        return ("zero" if "How many" in text else "no") if "kite" in text else right(text)

    (clean,) = judging(without, SCENE, 3)
    rng = np.random.default_rng(1)
    for failing in (0.02, 0.1):

        def chatty(n, text, failing=failing):
            return "There" if rng.random() < failing else without(n, text)

        scores = [j.image_score for j in judging(chatty, SCENE, 3, 300)]
        assert np.nanmean(scores) == pytest.approx(clean.image_score, abs=0.12)
        assert np.nanmax(scores) <= 0.0 or failing > 0.05


@pytest.mark.parametrize("form", ["four", " four", "Four", " Four", "FOUR", "4", " 4"])
def test_every_written_form_of_a_count_is_the_count(form):
    def say(n, text):
        return form if text.startswith("How many") else " Yes"

    (found,) = judging(say, FOUR, 2)
    assert found.image_score == pytest.approx(1.0) and found.coverage == 1
    (wrong,) = judging(lambda n, text: "5" if "How many" in text else "yes", FOUR, 2)
    assert wrong.image_score < 0.55


def test_the_beginning_of_a_sentence_is_no_answer():
    """ "There are four" begins with a word that says nothing: the score of the rest stands."""
    (found,) = judging(lambda n, text: "There" if "How many" in text else "Yes", FOUR, 2)
    status = {a.kind: a.status for a in found.answers}
    assert status == {"exists": judge.OK, "count": judge.UNPARSED, "caption_right": judge.OK}
    assert found.image_score == pytest.approx(1.0) and found.coverage == pytest.approx(0.75)
    (silent,) = judging(lambda n, text: "There", FOUR, 2)
    assert silent.image_status == judge.UNPARSED and silent.coverage == 0
    assert {r.status for r in silent.regions} == {judge.UNPARSED}


def test_a_region_in_doubt_has_no_score():
    """The object that a region may show was not answered for: no low score is made of the rest."""
    shown = iter(["no", "There", "no"] * 2 + ["yes"] * 3)

    def say(n, text):
        return next(shown) if text.startswith("Is this") else right(text)

    (found,) = judging(say, SCENE, 1)
    assert found.regions[0].status == judge.UNPARSED and found.image_status == judge.OK
    shown = iter(["yes", "There", "no"] * 2)
    (found,) = judging(say, SCENE, 1)
    assert found.regions[0].status == judge.OK and found.regions[0].score > 0.9
    assert found.regions[0].label == "green bench"


def test_a_score_is_the_mean_of_its_parts_by_what_was_read():
    answers = [SoftAnswer("whole", -1, 0.9, judge.OK)]
    made = of_parts({"global": Part(0.9, 1.0), "layout": Part(0.6, 0.5)}, answers, 0.5)
    assert made.image_score == pytest.approx(2 * (0.9 + 0.3) / 1.5 - 1)
    assert made.coverage == 0.75 and made.parts == {"global": 0.9, "layout": 0.6}
    one = of_parts({"global": Part(0.9, 1.0), "layout": Part(np.nan, 0.0)}, answers, 0.5)
    assert one.image_score == pytest.approx(0.8) and set(one.parts) == {"global"}
    assert of_parts({"a": Part(0.9, 0.3)}, answers, 0.4).image_status != judge.OK


@pytest.mark.parametrize("seed", range(5))
def test_no_score_is_never_a_number_and_a_score_always_is(seed):
    """Whichever answers fail, of regions that are objects too."""
    rng = np.random.default_rng(seed)
    scene = question_templates.decompose("a red circle left of a blue square")
    scene = dataclasses.replace(scene, open=False)  # every question is a choice

    class Answers:
        def probabilities(self, images, questions, tokens, params=None):
            return [
                [rng.dirichlet(np.ones(len(ids))) * rng.choice([1.0, 0.1]) for ids in wanted]
                for wanted in tokens
            ]

    class Words(Forms):
        word_level = True

        def forms(self, word):
            return [word]

    images = [PromptedImage(np.zeros((8, 64, 3), np.uint8), scene.caption, f"{n}-0")
              for n in range(60)]  # fmt: skip
    found = tuple(ProposedRegion((8.0 * i, 0.0, 8.0 * i + 6, 8.0)) for i in range(3))
    proposed = Proposals(images, [found[: 1 + n % 3] for n in range(60)], "components", True)
    how = JudgeSettings(min_coverage=0.1), {scene.caption: scene}
    for one in LogitJudge(Answers(), Words(), *how).judge(proposed):
        assert (one.image_status == judge.OK) == (-1 <= one.image_score <= 1)
        assert 0 <= one.coverage <= 1
        for region in one.regions:
            assert (region.status == judge.OK) == (-1 <= region.score <= 1)


def test_products_count_a_missing_factor_as_the_mean_of_the_others():
    assert logits._product([0.5, np.nan, 0.5]) == pytest.approx(0.125)
    assert logits._product([]) == 1 and np.isnan(logits._product([np.nan]))
    scene = question_templates.decompose("a red circle and a blue square")
    boxes = [(0.0, 0.0, 9.0, 9.0), (16.0, 0.0, 25.0, 9.0)]
    whole = logits.assemble(scene, boxes, np.array([(0.9, 0.1), (0.1, np.nan)]))
    assert whole == pytest.approx(0.81)
