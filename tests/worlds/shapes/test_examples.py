"""The shapes world: splits, streams, balance, pictures, the tokenizer file."""

import collections
import random

import numpy as np
import pytest
import shapes_truth

from srum_jax.worlds.shapes import examples, language, question_forms, rendering, verifier
from srum_jax.worlds.shapes import questions as shapes_questions
from srum_jax.worlds.shapes.question_forms import View, ask
from srum_jax.worlds.shapes.setting import LARGE, SMALL

QUESTION = "does the image show {} ?"
GENERATED, GENERATED_SUM = "a pink square , a blue cross and a purple triangle", 223750
ASKED = ["is the yellow triangle above or below ?", "is there a yellow square ?"]
SIZE_OF_WORLD = {
    "single": 32 * 3,  # of any size, small, big
    "attr": 496,
    "size": 496 * 4,
    "spatial": 496 * 4,
    "count": 32 * 3,
    "triple": 4960,
    "quad": 35960,
}


@pytest.fixture(scope="module")
def stream():
    return [shapes_questions.understanding_example(11, i) for i in range(2500)]


def test_one_pair_of_every_color_is_held_out_and_every_shape_twice():
    colors = collections.Counter(color for color, _ in language.HELD_OUT)
    assert colors == dict.fromkeys(rendering.COLORS, 1)
    shapes_ = collections.Counter(shape for _, shape in language.HELD_OUT)
    assert shapes_ == dict.fromkeys(rendering.SHAPES, 2)


@pytest.mark.parametrize("category", SMALL.prompts)
def test_splits_are_disjoint_by_content(category):
    found = {split: set(language.contents(split, category)) for split in language.SPLITS}
    sizes = {split: len(contents) for split, contents in found.items()}
    everything = set().union(*found.values())
    assert len(everything) == sum(sizes.values()) == SIZE_OF_WORLD[category]
    assert abs(sizes["train"] / len(everything) - 0.6) < 0.02
    assert abs(sizes["test"] / len(everything) - 0.3) < 0.02
    for split, contents in found.items():
        assert {c.held_out for c in contents} == {False, True}
        plain = set(language.contents(split, category, held_out=False))
        assert plain == {c for c in contents if not set(c.pairs) & language.HELD_OUT}


def test_every_prompt_parses_back_to_its_content_and_split():
    for split in language.SPLITS:
        prompts = language.prompts(split)
        assert {p.category for p in prompts} == set(SMALL.prompts)
        assert len(prompts) == sum(len(language.contents(split, c)) for c in SMALL.prompts)
        quads = [p for p in prompts if p.category == "quad"]
        parsed = set()
        for p in [p for p in prompts if p.category != "quad"] + quads[::15]:
            content = language.parse(p.text)
            assert (content.category, content.held_out) == (p.category, p.held_out)
            assert language.split_of(content) == split
            parsed.add(content)
        assert len(parsed) == len(prompts) - len(quads) + len(quads[::15])


@pytest.mark.parametrize("category", (*SMALL.prompts, "mixed"))
def test_all_wordings_of_a_content_are_told_apart_and_mean_it(category):
    number = {"single": 1, "count": 1, "mixed": 0, "triple": 6, "quad": 24}.get(category, 2)
    contents = language.contents("validation", category)
    for content in contents[:: max(1, len(contents) // 40)]:
        said = language.wordings(content)
        assert len(said) == len(set(said)) == number == language.ways_to_say(content)
        assert {language.parse(text) for text in said} <= {content}
        assert [language.wording(content, i) for i in range(number)] == list(said)


def test_two_wordings_of_one_content_are_one():
    parse = language.parse
    assert parse("a red circle left of a blue square") == parse(
        "a blue square right of a red circle"
    )
    assert parse("a red circle above a blue square") == parse("a blue square below a red circle")
    assert parse("a red circle left of a blue square") != parse(
        "a red circle right of a blue square"
    )
    assert parse("a red circle and a blue square") == parse("A blue square and a red circle")
    assert parse("four red crosses").pairs == (("red", "cross"),) * 4
    big = parse("a small blue square and a big red circle")
    assert big == parse("a big red circle and a small blue square")
    assert (big.pairs, big.sizes) == ((("blue", "square"), ("red", "circle")), ("small", "big"))
    assert big != parse("a small red circle and a big blue square")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red",
        "red circle",
        "an orange circle",
        "a red circle and",
        "five red circles",
        "a red circle and a red circle",
        "a red circle near a blue square",
        "two red circle",
        "two big red circles",
        "a red circle , a blue square , a green cross",
        "a red circle and a blue square below",
        "a big red circle and a blue square",
        "a big red circle left of a small blue square",
        "a red big circle",
        "a huge red circle",
        "a big red circle , a small blue square and a big green cross",
    ],
)
def test_a_prompt_outside_the_grammar_is_refused(text):
    with pytest.raises(ValueError, match="is not of the shapes world"):
        language.parse(text)


def test_balanced_prompts_take_turns_and_grow():
    few, many = (language.balanced_prompts("test", n, seed=3) for n in (21, 350))
    assert many[:21] == few and len(set(many)) == 350
    counts = collections.Counter(p.category for p in many)
    assert counts["single"] == counts["count"] == 30  # all that there are
    assert max(counts.values()) - min(counts[c] for c in counts if counts[c] > 30) <= 1
    assert few != language.balanced_prompts("test", 21, seed=4)
    assert collections.Counter(p.category for p in few) == dict.fromkeys(SMALL.prompts, 3)
    with pytest.raises(ValueError, match="give 1.."):
        language.balanced_prompts("test", 10**6)


def test_streams_are_functions_of_seed_and_index():
    for make in (examples.generation_example, examples.clean_image):
        (a, x), (b, y), (_, z) = make(1, 5), make(1, 5), make(1, 6)
        assert a == b and np.array_equal(x, y) and not np.array_equal(x, z)
        assert x.shape == (32, 32, 3) and x.dtype == np.uint8
    x, asked = shapes_questions.understanding_example(1, 5)
    y, again = shapes_questions.understanding_example(1, 5)
    assert np.array_equal(x, y) and asked == again
    with pytest.raises(ValueError, match="must not be negative"):
        examples.generation_example(-1, 0)


def test_pictures_do_not_change_between_releases():
    # Published prompts, splits and figures refer to these very pictures.
    caption, image = examples.generation_example(0, 0)
    assert caption == GENERATED and int(image.astype(np.int64).sum()) == GENERATED_SUM
    asked = [q.text for q in shapes_questions.understanding_example(0, 2)[1]]
    assert asked[:2] == ASKED


def test_generation_captions_are_train_without_held_out_pairs():
    seen = collections.Counter()
    for i in range(1500):
        caption, _ = examples.generation_example(2, i)
        content = language.parse(caption)
        assert language.split_of(content) == "train" and not content.held_out
        assert not any(" ".join(pair) in caption for pair in language.HELD_OUT)
        seen[content.category] += 1
    assert {category for category, _ in SMALL.drawn} == set(SMALL.prompts)
    for category, share in SMALL.drawn:
        assert abs(seen[category] / 1500 - share) < 0.04
    assert 0 < seen["spatial"] / 1500 < 0.035  # hardly ever: what is to be learned from reward


def test_drawn_pictures_show_what_their_captions_say():
    for i in range(200):
        shares = SMALL.drawn if i % 2 else (("size", 1), ("spatial", 1), ("single", 1))
        caption, image = examples.generation_example(4, i, shares)
        assert shapes_truth.shows(shapes_truth.objects(image), caption), (i, caption)


@pytest.mark.parametrize("setting", [SMALL, LARGE], ids=lambda s: s.name)
def test_a_share_of_drawn_objects_is_malformed_whatever_the_caption(setting):
    made, whole = [], 0
    for i in range(150):
        caption, image = examples.generation_example(4, i, setting=setting, malformed=0.4)
        same, clean = examples.generation_example(4, i, setting=setting)
        assert caption == same and len(verifier.see(image)) == len(verifier.see(clean))
        found = [not one.flaw for one in verifier.see(image)]
        whole += (image == clean).all() == all(found)
        made += found
    assert abs(np.mean(made) - 0.6) < 3 * (0.24 / len(made)) ** 0.5
    assert whole == 150  # a picture differs where, and only where, an object is malformed


def test_yes_and_no_are_balanced_for_every_kind_and_word(stream):
    answers, words = (
        collections.defaultdict(collections.Counter),
        collections.defaultdict(collections.Counter),
    )
    for _, asked in stream:
        for q in asked:
            if q.answer in ("yes", "no"):
                answers[q.kind][q.answer] += 1
                for word in q.text.split():
                    words[q.kind, word][q.answer] += 1
    assert set(answers) == {"exists", "relation_yesno", "caption_right", "crop_is"}
    for kind, count in answers.items():
        assert abs(count["yes"] / count.total() - 0.5) < 0.04, (kind, count)
    for key, count in words.items():
        if count.total() > 400:
            assert abs(count["yes"] / count.total() - 0.5) < 0.1, (key, count)


def test_open_answers_are_balanced(stream):
    answers = collections.defaultdict(collections.Counter)
    for _, asked in stream:
        for q in asked:
            answers[q.kind][q.answer] += 1
    even = {"color": 8, "shape": 4, "position": 4, "size": 2}
    for kind, number in even.items():
        shares = [n / answers[kind].total() for n in answers[kind].values()]
        assert len(shares) == number and max(shares) < 1.35 / number and min(shares) > 0.65 / number
    choice = answers["relation_choice"]
    assert abs(choice["neither"] / choice.total() - 1 / 3) < 0.05
    assert max(answers["count"].values()) / answers["count"].total() < 0.4
    total = sum(c.total() for c in answers.values())
    spatial = sum(answers[k].total() for k in ("position", "relation_choice", "relation_yesno"))
    assert spatial / total > 0.35


def test_understanding_never_sees_captions_of_another_split(stream):
    held_out = 0
    for _, asked in stream:
        assert 1 <= len(asked) <= 8
        for q in asked:
            text = q.answer if q.kind == "caption" else None
            if q.kind == "caption_right":
                text = q.text.removeprefix("does the image show ").removesuffix(" ?")
            if text:
                assert language.split_of(language.parse(text)) == "train"
                held_out += language.parse(text).held_out
    assert held_out > 100


def test_the_mix_is_checked_and_followed():
    for wrong in (
        {"simple": 1.2},
        {"simple": 0.9},
        {"questions": 0},
        {"malformed": 0.8},
        {"pair_kinds": (("colour", 1.0),)},
    ):
        with pytest.raises(ValueError, match="Mix"):
            shapes_questions.Mix(**wrong)
    only_crops = shapes_questions.Mix(simple=0, pairs=0, crops=1)
    for i in range(50):
        _, asked = shapes_questions.understanding_example(0, i, only_crops)
        assert {q.kind for q in asked} == set(question_forms.CROP_KINDS)
    few = shapes_questions.Mix(questions=3)
    assert max(len(shapes_questions.understanding_example(0, i, few)[1]) for i in range(60)) == 3


def test_answers_are_true_of_the_scene():
    rng = random.Random(5)
    a = rendering.place(rng, ("red", "circle"), (0, 0), "big")
    b = rendering.place(rng, ("blue", "square"), (0, 1), "small")
    scene = rendering.Scene((a, b), (20.0, 20.0, 20.0))
    known = {
        "what color is the square ?": "blue",
        "what shape is the red object ?": "circle",
        "is there a red circle ?": "yes",
        "is there a red square ?": "no",
        "how many objects are there ?": "two",
        "how many blue squares are there ?": "one",
        "is the red circle left or right ?": "left",
        "is the blue square above or below ?": "above",
        "is the red circle left or right of the blue square ?": "left",
        "is the red circle above or below the blue square ?": "neither",
        "is the blue square left of the red circle ?": "no",
        "is the blue square right of the red circle ?": "yes",
        "is the red circle above the blue square ?": "no",
        QUESTION.format("a blue square and a red circle"): "yes",
        QUESTION.format("a blue square left of a red circle"): "no",
        QUESTION.format("a red circle left of a blue square"): "yes",
        "is the red circle big or small ?": "big",
        "is the blue square big or small ?": "small",
        QUESTION.format("a big red circle and a small blue square"): "yes",
    }
    left = dict(known)
    for split in language.SPLITS:
        for _ in range(400):
            for kind in question_forms.SCENE_KINDS:
                q = ask(rng, View(scene, split), kind)
                if q is not None and q.text in known:
                    assert q.answer == known[q.text], q
                    left.pop(q.text, None)
    assert not left


def test_answers_are_those_that_looking_gives():
    """On softened pictures as well; malformed objects and crops have no such answers."""
    asked = collections.Counter()
    for image, q in shapes_questions.qa_set("validation", 360, seed=2):
        if q.kind not in question_forms.CROP_KINDS:
            assert shapes_truth.answer(shapes_truth.objects(image), q.text) == q.answer, q
            asked[q.kind] += 1
    assert asked == dict.fromkeys(question_forms.SCENE_KINDS, 30)
    clean = shapes_questions.Mix(crops=0, flawed=0, questions=4)
    for i in range(60):
        image, questions = shapes_questions.understanding_example(3, i, clean)
        found = shapes_truth.objects(image)
        for q in questions:
            if q.kind == "caption":
                assert shapes_truth.shows(found, q.answer), q
            else:
                assert shapes_truth.answer(found, q.text) == q.answer, q


def test_qa_set_takes_kinds_in_turn_from_its_split():
    asked = shapes_questions.qa_set("test", 240, seed=1)
    assert collections.Counter(q.kind for _, q in asked) == dict.fromkeys(question_forms.KINDS, 20)
    assert shapes_questions.qa_set("test", 12, seed=1)[10][1] == asked[10][1]
    for image, q in asked:
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        if q.kind == "caption_right":
            text = q.text.removeprefix("does the image show ").removesuffix(" ?")
            assert language.split_of(language.parse(text)) == "test"


def test_scenes_to_describe_are_of_their_split_and_can_be_described():
    scenes = shapes_questions.caption_set("test", 80, seed=1)
    assert len(scenes) == 80 and scenes[:20] == shapes_questions.caption_set("test", 20, seed=1)
    number = collections.Counter(len(scene.things) for scene in scenes)
    assert set(number) == {1, 2, 3, 4}
    for scene in scenes:
        said = language.scene_contents(scene)
        assert any(language.split_of(content) == "test" for content in said)


def test_crops_are_bilinear_with_half_pixel_centres():
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 200
    same = rendering.crop(image, (0, 0, 32, 32), margin=0)
    assert np.array_equal(same, image)
    wide = rendering.crop(
        image, (14, 14, 18, 18), margin=0
    )  # 4 px to 32: the edge is a ramp of 8 px
    assert wide[0, 11, 0] == 0 and wide[0, 20, 0] == 200
    assert wide[0, 15, 0] == round(200 * 7 / 16) and (np.diff(wide[0, :, 0].astype(int)) >= 0).all()
    with pytest.raises(ValueError, match="covers no pixel"):
        rendering.crop(image, (40, 40, 44, 44))


def test_things_keep_to_their_cells():
    rng = random.Random(0)
    for _ in range(300):
        scales = [rendering.pick(rng, ("small", "big", "")) for _ in range(4)]
        scene = rendering.scatter(
            rng, [rendering.pick(rng, language.PAIRS) for _ in range(4)], scales
        )
        assert len({(t.row, t.col) for t in scene.things}) == 4
        for thing, scale in zip(scene.things, scales, strict=True):
            x0, y0, x1, y1 = thing.box
            assert x1 - x0 == y1 - y0 == thing.size
            assert thing.scale in (scale or rendering.SIZES)
            assert thing.size in SMALL.sizes(thing.scale)
            assert 16 * thing.col < x0 and x1 < 16 * (thing.col + 1)
            assert 16 * thing.row < y0 and y1 < 16 * (thing.row + 1)


def test_the_autoencoders_pictures_are_mixed_as_said(monkeypatch):
    assert sum(examples.AUTOENCODER_SHARES.values()) == pytest.approx(1)
    counts = {"flawed": 0, "softened": 0, "crop": 0}
    for kind, name in (("flawed", "draw_flawed"), ("softened", "soften"), ("crop", "crop")):
        real = getattr(examples, name)

        def counting(*args, kind=kind, real=real):
            counts[kind] += 1
            return real(*args)

        monkeypatch.setattr(examples, name, counting)
    pictures = [examples.autoencoder_image(0, i) for i in range(1500)]
    for kind, count in counts.items():
        assert count / 1500 == pytest.approx(examples.AUTOENCODER_SHARES[kind], abs=0.03), kind
    assert all(p.shape == (32, 32, 3) and p.dtype == np.uint8 for p in pictures[:50])
    np.testing.assert_array_equal(pictures[7], examples.autoencoder_image(0, 7))
    assert not np.array_equal(pictures[7], examples.autoencoder_image(1, 7))
    assert len({p.tobytes() for p in pictures}) == 1500
