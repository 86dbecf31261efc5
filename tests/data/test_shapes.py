"""The shapes world: splits, streams, balance, pictures, the tokenizer file and the TFDS builder."""

import collections
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from srum_jax.data import shapes

QUESTION = "does the image show {} ?"
GENERATED, GENERATED_SUM = "a cyan square , a blue square and a yellow circle", 276241
ASKED = [
    "is the green cross left or right of the red square ?",
    "does the image show a green cross and a red square ?",
]


@pytest.fixture(scope="module")
def stream():
    return [shapes.understanding_example(11, i) for i in range(2500)]


def test_six_pairs_are_held_out_with_every_color_and_shape():
    colors = collections.Counter(color for color, _ in shapes.HELD_OUT)
    assert colors == dict.fromkeys(shapes.COLORS, 1)
    assert {shape for _, shape in shapes.HELD_OUT} == set(shapes.SHAPES)


def test_splits_are_disjoint_by_content_and_have_all_categories():
    contents = {}
    for split in shapes.SPLITS:
        prompts = shapes.prompts(split)
        contents[split] = {shapes.parse(p.text) for p in prompts}
        assert len(contents[split]) == len(prompts)
        cells = {(p.category, p.held_out) for p in prompts}
        assert cells == {(c, h) for c in shapes.CATEGORIES for h in (False, True)}
        for p in prompts:
            content = shapes.parse(p.text)
            assert (content.category, content.held_out) == (p.category, p.held_out)
    sizes = {split: len(found) for split, found in contents.items()}
    assert (
        len(set().union(*contents.values())) == sum(sizes.values()) == 24 + 276 + 1104 + 48 + 2024
    )
    assert abs(sizes["train"] / sum(sizes.values()) - 0.6) < 0.01
    assert abs(sizes["test"] / sum(sizes.values()) - 0.3) < 0.01


def test_two_wordings_of_one_content_are_one():
    parse = shapes.parse
    assert parse("a red circle left of a blue square") == parse(
        "a blue square right of a red circle"
    )
    assert parse("a red circle above a blue square") == parse("a blue square below a red circle")
    assert parse("a red circle left of a blue square") != parse(
        "a red circle right of a blue square"
    )
    assert parse("a red circle and a blue square") == parse("A blue square and a red circle")
    assert parse("three red crosses").pairs == (("red", "cross"),) * 3
    for split in shapes.SPLITS:
        for content in map(shapes.parse, (p.text for p in shapes.prompts(split)[::17])):
            assert {shapes.parse(text) for text in shapes.wordings(content)} == {content}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red",
        "red circle",
        "a pink circle",
        "a red circle and",
        "four red circles",
        "a red circle and a red circle",
        "a red circle near a blue square",
        "two red circle",
        "a red circle , a blue square , a green cross",
        "a red circle and a blue square below",
    ],
)
def test_a_prompt_outside_the_grammar_is_refused(text):
    with pytest.raises(ValueError, match="is not of the shapes world"):
        shapes.parse(text)


def test_balanced_prompts_take_turns_and_grow():
    few, many = (shapes.balanced_prompts("test", n, seed=3) for n in (20, 200))
    assert many[:20] == few and len(set(many)) == 200
    counts = collections.Counter(p.category for p in many)
    assert counts["attr"] == counts["spatial"] == counts["triple"] > 40
    assert few != shapes.balanced_prompts("test", 20, seed=4)
    assert set(collections.Counter(p.category for p in few).values()) == {4}
    with pytest.raises(ValueError, match="give 1.."):
        shapes.balanced_prompts("test", 10**6)


def test_streams_are_functions_of_seed_and_index():
    for make in (shapes.generation_example, shapes.clean_image):
        (a, x), (b, y), (_, z) = make(1, 5), make(1, 5), make(1, 6)
        assert a == b and np.array_equal(x, y) and not np.array_equal(x, z)
        assert x.shape == (32, 32, 3) and x.dtype == np.uint8
    x, asked = shapes.understanding_example(1, 5)
    y, again = shapes.understanding_example(1, 5)
    assert np.array_equal(x, y) and asked == again
    with pytest.raises(ValueError, match="must not be negative"):
        shapes.generation_example(-1, 0)


def test_pictures_do_not_change_between_releases():
    # Published prompts, splits and figures refer to these very pictures.
    caption, image = shapes.generation_example(0, 0)
    assert caption == GENERATED and int(image.astype(np.int64).sum()) == GENERATED_SUM
    asked = [q.text for q in shapes.understanding_example(0, 2)[1]]
    assert asked[:2] == ASKED


def test_generation_captions_are_train_without_held_out_pairs():
    seen = collections.Counter()
    for i in range(1500):
        caption, _ = shapes.generation_example(2, i)
        content = shapes.parse(caption)
        assert shapes.split_of(content) == "train" and not content.held_out
        seen[content.category] += 1
    for category, share in shapes.GENERATION_SHARES.items():
        assert abs(seen[category] / 1500 - share) < 0.05


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
    even = {"color": 6, "shape": 4, "position": 4}
    for kind, number in even.items():
        shares = [n / answers[kind].total() for n in answers[kind].values()]
        assert len(shares) == number and max(shares) < 1.35 / number and min(shares) > 0.7 / number
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
                assert shapes.split_of(shapes.parse(text)) == "train"
                held_out += shapes.parse(text).held_out
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
            shapes.Mix(**wrong)
    only_crops = shapes.Mix(simple=0, pairs=0, crops=1)
    for i in range(50):
        _, asked = shapes.understanding_example(0, i, only_crops)
        assert {q.kind for q in asked} == set(shapes.CROP_KINDS)
    few = shapes.Mix(questions=3)
    assert max(len(shapes.understanding_example(0, i, few)[1]) for i in range(60)) == 3


def test_answers_are_true_of_the_scene():
    from srum_jax.data.shapes_questions import View, ask

    rng = random.Random(5)
    a, b = (
        shapes.place(rng, pair, cell)
        for pair, cell in ((("red", "circle"), (0, 0)), (("blue", "square"), (0, 1)))
    )
    scene = shapes.Scene((a, b), (20.0, 20.0, 20.0))
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
    }
    left = dict(known)
    for split in shapes.SPLITS:
        for _ in range(400):
            for kind in shapes.SCENE_KINDS:
                q = ask(rng, View(scene, split), kind)
                if q is not None and q.text in known:
                    assert q.answer == known[q.text], q
                    left.pop(q.text, None)
    assert not left


def test_qa_set_takes_kinds_in_turn_from_its_split():
    asked = shapes.qa_set("test", 220, seed=1)
    assert collections.Counter(q.kind for _, q in asked) == dict.fromkeys(shapes.KINDS, 20)
    assert shapes.qa_set("test", 11, seed=1)[10][1] == asked[10][1]
    for image, q in asked:
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        if q.kind == "caption_right":
            text = q.text.removeprefix("does the image show ").removesuffix(" ?")
            assert shapes.split_of(shapes.parse(text)) == "test"


def test_crops_are_bilinear_with_half_pixel_centres():
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 200
    same = shapes.crop(image, (0, 0, 32, 32), margin=0)
    assert np.array_equal(same, image)
    wide = shapes.crop(image, (14, 14, 18, 18), margin=0)  # 4 px to 32: the edge is a ramp of 8 px
    assert wide[0, 11, 0] == 0 and wide[0, 20, 0] == 200
    assert wide[0, 15, 0] == round(200 * 7 / 16) and (np.diff(wide[0, :, 0].astype(int)) >= 0).all()
    with pytest.raises(ValueError, match="covers no pixel"):
        shapes.crop(image, (40, 40, 44, 44))


def test_things_keep_to_their_cells():
    rng = random.Random(0)
    for _ in range(300):
        for thing in shapes.scatter(rng, [shapes.pick(rng, shapes.PAIRS) for _ in range(3)]).things:
            x0, y0, x1, y1 = thing.box
            assert x1 - x0 == y1 - y0 == thing.size
            assert 16 * thing.col < x0 and x1 < 16 * (thing.col + 1)
            assert 16 * thing.row < y0 and y1 < 16 * (thing.row + 1)


def test_the_builder_makes_a_tfds_data_set_without_tensorflow(tmp_path):
    code = f"""
    import sys
    import numpy as np
    from srum_jax.data import shapes, shapes_tfds
    assert "tensorflow_datasets" not in sys.modules
    builder = shapes_tfds.build({str(tmp_path)!r}, train=30, validation=5, test=5)
    import tensorflow_datasets as tfds
    assert isinstance(builder, tfds.core.GeneratorBasedBuilder)
    loaded = tfds.builder_from_directory(builder.data_dir)
    assert {{k: v.num_examples for k, v in loaded.info.splits.items()}} == dict(
        train=30, validation=5, test=5)
    for split in shapes.SPLITS:
        for row in loaded.as_data_source(split):
            made = shapes_tfds.record(split, 0, int(row["id"].decode().split("-")[1]))
            caption = row["caption"].decode()
            assert caption == made["caption"]
            assert shapes.split_of(shapes.parse(caption)) == split
            assert row["image"].shape == (32, 32, 3)
            kinds = [shapes.SCENE_KINDS[k] for k in row["questions"]["kind"]]
            assert kinds == [q["kind"] for q in made["questions"]]
            boxes = np.array(row["objects"]["bbox"]) * 32
            for (y0, x0, y1, x1), color in zip(boxes.astype(int), row["objects"]["color"]):
                middle = row["image"][(y0 + y1) // 2, (x0 + x1) // 2].astype(float)
                assert np.abs(middle - shapes.PALETTE[color]).max() <= 12
    assert "tensorflow" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_builder_refuses_empty_splits(tmp_path):
    from srum_jax.data import shapes_tfds

    with pytest.raises(ValueError, match="validation is 0"):
        shapes_tfds.build(tmp_path, validation=0)


def test_the_autoencoders_pictures_are_mixed_as_said(monkeypatch):
    assert sum(shapes.AUTOENCODER_SHARES.values()) == pytest.approx(1)
    counts = {"flawed": 0, "softened": 0, "crop": 0}
    for kind, name in (("flawed", "draw_flawed"), ("softened", "soften"), ("crop", "crop")):
        real = getattr(shapes, name)

        def counting(*args, kind=kind, real=real):
            counts[kind] += 1
            return real(*args)

        monkeypatch.setattr(shapes, name, counting)
    pictures = [shapes.autoencoder_image(0, i) for i in range(1500)]
    for kind, count in counts.items():
        assert count / 1500 == pytest.approx(shapes.AUTOENCODER_SHARES[kind], abs=0.03), kind
    assert all(p.shape == (32, 32, 3) and p.dtype == np.uint8 for p in pictures[:50])
    np.testing.assert_array_equal(pictures[7], shapes.autoencoder_image(0, 7))
    assert not np.array_equal(pictures[7], shapes.autoencoder_image(1, 7))
    assert len({p.tobytes() for p in pictures}) == 1500
