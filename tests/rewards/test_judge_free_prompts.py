"""The judge asked about anything: prompts that a model decomposed, regions shown in other views."""

import numpy as np
import pytest
from rewards.test_judge import GRID, LOW_LEFT, TOP_LEFT, judging, picture, prompted

from srum_jax.rewards import judge, question_templates


class Anything:
    """A vocabulary of every word, whose words are asked about in plain English."""

    word_level = False

    def __init__(self):
        self.known = {}

    def answers(self, word):
        return tuple(self.known.setdefault(w, len(self.known)) for w in (word, word.capitalize()))

    def encode(self, text):
        return [0]


def answering(vocabulary, truth, asked=None):
    """A model that says yes to the questions in `truth` and no to others, half with a capital."""

    def ask(images, questions):
        rows = []
        for image, texts in zip(images, questions, strict=True):
            row = np.zeros((len(texts), 64), np.float32)
            for place, text in enumerate(texts):
                text, _, wanted = text.partition(" Answer with ")
                assert wanted in ("one word: yes or no.", "one number.")
                if asked is not None:
                    asked.append((image, text))
                word = truth.get(text, "no")
                row[place, list(vocabulary.answers(word))] = 0.5
            rows.append(row)
        return rows

    return ask


FREE = question_templates.Decomposition(
    "a green bench hidden by a dog",
    (question_templates.ObjectSpec("green", "bench"), question_templates.ObjectSpec("", "dog")),
    question_templates.Relation("hidden by", 0, 1),
    open=False,
    source="model",
)


def free(truth, scene=FREE, prompt="A green bench hidden by a dog.", asked=None, **how):
    vocabulary = Anything()
    ask = answering(vocabulary, truth, asked)
    images = prompted([picture(("red", TOP_LEFT), ("blue", LOW_LEFT))], [prompt], GRID)
    scenes = {prompt: scene} if scene else None
    return judging(ask, vocabulary, scenes, **how).judge(images)[0]


def test_free_prompts_are_asked_by_yes_no_and_numbers_in_plain_english():
    asked = []
    truth = {
        "Is this a green bench?": "yes",
        "Is this a bench?": "yes",
        "Is there a green bench?": "yes",
        "How many green benches are there?": "one",
        "Is there a dog?": "yes",
        "How many dogs are there?": "one",
        "Is the green bench hidden by the dog?": "yes",
        "Does the image show a green bench hidden by a dog?": "yes",
    }
    result = free(truth, asked=asked)
    assert result.image_status == judge.OK and result.image_score == pytest.approx(1.0)
    assert {region.label for region in result.regions} == {"green bench"}
    assert all(region.score == pytest.approx(1.0) for region in result.regions)
    assert set(truth) <= {text for _, text in asked}
    without = free({k: v for k, v in truth.items() if "hidden by the" not in k})
    assert without.image_score < 0.5


def test_regions_of_no_kind_that_the_prompt_names_are_set_aside():
    result = free({"Is there a dog?": "yes"}, verify=0.5)
    assert {region.status for region in result.regions} == {judge.IRRELEVANT}
    assert all(np.isnan(region.score) for region in result.regions)
    assert result.image_status == judge.OK
    wrong = free({"Is this a bench?": "yes"}, verify=0.5)  # a bench, but not green
    assert {region.status for region in wrong.regions} == {judge.OK}
    assert all(region.score == pytest.approx(-1.0) for region in wrong.regions)


def test_a_prompt_that_nobody_decomposed_is_scored_as_a_whole():
    result = free({"Does the image show a dream?": "yes"}, scene=None, prompt="A dream.")
    assert result.image_status == judge.OK and result.image_score == pytest.approx(1.0)
    assert set(result.parts) == {"global"}
    assert {region.status for region in result.regions} == {judge.UNDECOMPOSED}


@pytest.mark.parametrize("view", ["outline", "coordinates"])
def test_other_views_show_the_whole_image_and_name_the_region(view):
    asked = []
    free({}, asked=asked, view=view)
    crops = [(image, text) for image, text in asked if "object" in text]
    assert len(crops) == 2 * 4
    name = "outlined object" if view == "outline" else "object at (0, 0, 16, 16)"
    assert any(text == f"Is the {name} a green bench?" for _, text in crops)
    plain = picture(("red", TOP_LEFT), ("blue", LOW_LEFT))
    assert all((image == plain).all() == (view == "coordinates") for image, _ in crops)


def test_coordinates_on_an_image_are_asked_about_in_one_call_with_the_whole():
    """Whose pictures all are the image, which a scorer reads once."""
    vocabulary, calls, prompt = Anything(), [], "A green bench hidden by a dog."
    ask = answering(vocabulary, {})

    def counted(images, questions):
        calls.append(images)
        return ask(images, questions)

    shown = picture(("red", TOP_LEFT), ("blue", LOW_LEFT))
    judging(counted, vocabulary, {prompt: FREE}, view="coordinates").judge(
        prompted([shown], [prompt], GRID)
    )
    (pictures,) = calls
    assert len(pictures) == 2 + 1 and all((one == shown).all() for one in pictures)
