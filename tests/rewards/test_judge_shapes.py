"""The judge on the shapes world: asking a model that sees well, it tells right from wrong."""

import dataclasses
import random

import numpy as np
import pytest
import shapes_truth
from chosen_tokens import chosen

from srum_jax.rewards import judge, logits, question_templates
from srum_jax.rewards.boxes import regions
from srum_jax.worlds.shapes import examples, language, rendering, verifier
from srum_jax.worlds.shapes.setting import SMALL

COMPONENTS = regions.ComponentsProposer()
VOCABULARY = list(examples.vocabulary())


class World:
    """The shapes world's words, and a model that answers what looking at the picture gives.

    Crops are known by the pictures that they are cut from.
    """

    def __init__(self, images, sureness=0.96):
        self.sureness, self.shown = sureness, {i.tobytes(): shapes_truth.objects(i) for i in images}
        for image in images:
            for box in regions.find_components(image):
                inside = [
                    one
                    for one in shapes_truth.objects(image)
                    if np.abs(np.subtract(one.box, box)).max() <= 2
                ]
                assert len(inside) == 1, (box, inside)
                self.shown[regions.crop(image, box, 1).tobytes()] = inside

    word_level = True

    def answers(self, word):
        return (VOCABULARY.index(word),)

    def encode(self, text):
        return [self.answers(word)[0] for word in text.split()]

    def answer(self, found, text):
        try:
            return shapes_truth.answer(found, text)
        except ValueError:  # it asks about what is not there, or twice
            return "neither" if " or " in text and "big" not in text else "no"

    def probabilities(self, images, questions, tokens, params=None):
        answers = []
        for image, texts in zip(images, questions, strict=True):
            rows = np.full((len(texts), len(VOCABULARY)), (1 - self.sureness) / len(VOCABULARY))
            for row, text in zip(rows, texts, strict=True):
                word = self.answer(self.shown[image.tobytes()], text)
                # Of what is not there a size is a guess.
                guess = (
                    question_templates.SIZES if "big or small" in text and word == "no" else (word,)
                )
                for one in guess:
                    row[list(self.answers(one))] += self.sureness / len(guess)
            answers.append(rows.astype(np.float32))
        return chosen(answers, tokens)


def faults(rng, scene, content):
    """(what is wrong, a scene one fault away) for all faults that a prompt's scene can have."""
    things, free = (
        scene.things,
        sorted(set(SMALL.cells) - {(t.row, t.col) for t in scene.things}),
    )

    def other(at, pair, scale):
        new = rendering.place(rng, pair, (things[at].row, things[at].col), scale)
        return dataclasses.replace(scene, things=(*things[:at], new, *things[at + 1 :]))

    at = int(rng.random() * len(things))
    thing = things[at]
    spare = [p for p in language.PAIRS if p not in content.pairs]
    color = rendering.pick(rng, [p for p in spare if p[1] == thing.shape])
    shape = rendering.pick(rng, [p for p in spare if p[0] == thing.color])
    yield "color", other(at, color, thing.scale)
    yield "shape", other(at, shape, thing.scale)
    if len(things) > 1:
        yield "missing", dataclasses.replace(scene, things=things[:at] + things[at + 1 :])
    if free:
        extra = rendering.place(rng, rendering.pick(rng, spare), free[0])
        yield "extra", dataclasses.replace(scene, things=(*things, extra))
        twin = rendering.place(rng, thing.pair, free[0], thing.scale)
        yield "twin", dataclasses.replace(scene, things=(*things, twin))
    if content.sizes:
        yield "size", other(at, thing.pair, "small" if thing.scale == "big" else "big")
    if content.relation:
        a, b = things
        swapped = [
            rendering.place(rng, a.pair, (b.row, b.col)),
            rendering.place(rng, b.pair, (a.row, a.col)),
        ]
        yield "relation", dataclasses.replace(scene, things=tuple(swapped))


@pytest.mark.parametrize("category", SMALL.prompts)
def test_a_judge_that_sees_well_tells_right_from_wrong(category):
    rng = random.Random(7)
    contents = language.contents("test", category)
    wanted = [rendering.pick(rng, contents) for _ in range(5)]
    cases = []  # (prompt, picture, fault or "")
    for content in wanted:
        prompt, scene = language.say(rng, content), examples.scene_for(rng, content)
        cases.append((prompt, rendering.draw(scene), ""))
        cases += [(prompt, rendering.draw(s), fault) for fault, s in faults(rng, scene, content)]
    prompts, images, kinds = zip(*cases, strict=True)
    world = World(images)
    prompted = list(map(regions.PromptedImage, images, prompts))
    proposed = regions.Proposals.of(COMPONENTS, prompted)
    results = logits.LogitJudge(world, world).judge(proposed)
    for result, prompt, image, fault in zip(results, prompts, images, kinds, strict=True):
        assert verifier.verify(image, prompt).right == (not fault), (prompt, fault)
        assert result.image_status == judge.OK
        assert result.image_score > 0.5 if not fault else result.image_score < -0.5, (prompt, fault)
    usual = {"color", "shape", "missing", "extra", "twin", ""} - {
        "single": {"missing"},
        "quad": {"extra", "twin"},
    }.get(category, set())
    special = {"single": {"size"}, "size": {"size"}, "spatial": {"relation"}}
    assert set(kinds) == usual | special.get(category, set())


def test_four_big_things_of_one_color_are_not_taken_for_the_ground():
    rng = random.Random(8)
    for pair in language.PAIRS:
        image = rendering.draw(rendering.scatter(rng, [pair] * 4, ["big"] * 4))
        assert len(regions.find_components(image)) == 4, pair
