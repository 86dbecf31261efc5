"""The model in use from Python: every form of a request, alone and in company, and what it refuses.

A model of a few thousand random numbers, so large that what is asked and shown matters; some tests
ask the base that ships with the package.
"""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import thinking_model
import tiny
from PIL import Image
from safetensors.numpy import load_file, save_file

from srum_jax import api
from srum_jax.core import param_tree
from srum_jax.core.errors import BadInput
from srum_jax.data import images as pictures
from srum_jax.data import video
from srum_jax.generation import text_generator
from srum_jax.generation.image_sampler import candidate_seed
from srum_jax.models.bagel import hf, vae
from srum_jax.models.bagel import model as bagel_model
from srum_jax.worlds.shapes import examples, verifier

PROMPTS = ["a red circle", "a red circle , a blue square and a green cross", "two blue squares"]
QUESTIONS = [
    "what color is the circle ?",
    "is there a red square ?",
    "how many circles are there ?",
]
SETTINGS = {
    "generate": {"size": [32, 32], "steps": 3, "guidance": 2.5, "renorm": "channel", "batch": 4},
    "edit": {"image_guidance": 1.5},
    "max_tokens": 6,
    "think_tokens": 6,
    "batch": 4,
    "window": 256,
    "caption": "describe the image .",
    "frame": "",
}


def write_model(folder, tokenizer, cfg=tiny.MODEL, seed=0):
    rng = np.random.default_rng(seed)
    trees = [param_tree.abstract(s) for s in (bagel_model.specs(cfg), vae.specs(cfg.vae))]
    weights = jax.tree.map(lambda x: np.float32(rng.normal(0, 0.7, x.shape)), trees)
    hf.save(folder, cfg, *weights, "float32", tokenizer_files=[tokenizer])
    (folder / "generation_config.json").write_text(json.dumps({"srum_jax": SETTINGS}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return write_model(folder, examples.write_tokenizer(folder / "words"))


@pytest.fixture(scope="module")
def bagel(folder):
    return api.load(folder)


@pytest.fixture(scope="module")
def base():
    return api.load()


def image(seed, size=(32, 32)):
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize(size[::-1], Image.Resampling.NEAREST))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.gif"
    first, *rest = (Image.fromarray(image(i)) for i in range(5))
    first.save(path, save_all=True, append_images=rest, duration=100)
    return path


def near(a, b):
    """Equal pictures, rounding apart."""
    return a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 1


def test_drawings_do_not_depend_on_their_company(bagel):
    every = bagel.generate(PROMPTS[:2], n=2, seed=3)
    assert [d.prompt for d in every] == [p for p in PROMPTS[:2] for _ in range(2)]
    assert [d.seed for d in every] == [candidate_seed(3, i, k) for i in (0, 1) for k in (0, 1)]
    assert all(d.image.shape == (32, 32, 3) and d.image.dtype == np.uint8 for d in every)
    assert len({d.image.tobytes() for d in every}) == 4
    for drawing in every:
        (alone,) = bagel.generate(drawing.prompt, seeds=[drawing.seed])
        assert near(alone.image, drawing.image)
    assert near(bagel.generate(PROMPTS[0], seed=3)[0].image, every[0].image)
    assert bagel.generate([]) == []


def test_the_same_request_is_the_same_to_the_bit(bagel):
    first, again, other = (bagel.generate(PROMPTS[:1], seed=s)[0] for s in (0, 0, 1))
    np.testing.assert_array_equal(first.image, again.image)
    assert not near(first.image, other.image)


def test_settings_of_a_call(bagel):
    (plain,) = bagel.generate(PROMPTS[0])
    (strong,) = bagel.generate(PROMPTS[0], guidance=4.0)
    assert not near(plain.image, strong.image)
    (wide,) = bagel.generate(PROMPTS[0], size=(32, 64))
    assert wide.image.shape == (32, 64, 3)


def test_a_drawing_is_saved_as_it_is(bagel, tmp_path):
    (drawing,) = bagel.generate(PROMPTS[0])
    drawing.save(tmp_path / "one.png")
    np.testing.assert_array_equal(pictures.load(tmp_path / "one.png"), drawing.image)
    assert drawing._repr_png_() == (tmp_path / "one.png").read_bytes()
    assert len(repr(drawing)) < 200 and "a red circle" in repr(drawing) and "32x32" in repr(drawing)


@pytest.mark.slow
def test_edits_do_not_depend_on_their_company(bagel):
    given = [image(0), image(2, (20, 40)), [image(1), image(2, (20, 40))]]
    every = bagel.edit(given, [PROMPTS[0], PROMPTS[1], PROMPTS[1]], seeds=[1, 2, 2])
    assert [d.image.shape[:2] for d in every] == [(32, 32), (32, 64), (32, 64)]
    assert not near(every[1].image, every[2].image)  # the first of two images was seen
    (alone,) = bagel.edit(given[0], PROMPTS[0], seeds=[1])
    assert near(alone.image, every[0].image)
    with pytest.raises(BadInput, match="in its own size"):
        bagel.edit(image(0), PROMPTS[0], size=(32, 32))


def test_an_image_may_be_given_in_every_form(bagel, tmp_path):
    pixels = image(5)
    path = tmp_path / "one.png"
    path.write_bytes(pictures.encode_png(pixels))
    turned = Image.fromarray(np.rot90(pixels))  # counter-clockwise; the record turns it back
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    forms = [pixels, str(path), path, Image.open(path), Image.open(tmp_path / "turned.png")]
    forms += [tmp_path / "turned.png", jax.numpy.asarray(pixels), api.Drawing(pixels, "", 0)]
    want, *others = (bagel.edit(form, PROMPTS[0])[0].image for form in forms)
    assert not near(want, bagel.edit(image(6), PROMPTS[0])[0].image)
    for found in others:
        np.testing.assert_array_equal(found, want)


def test_latents_drawn_from_the_posterior_belong_to_an_image(bagel, monkeypatch):
    plain = bagel.generation_config
    drawn = dataclasses.replace(plain, parity="official")
    seen = []
    monkeypatch.setattr(api.Model, "_draw", lambda self, requests, *_: seen.append(requests))
    for settings, seeds in ((plain, [1, 5]), (drawn, [1, 5]), (drawn, [2, 5])):
        dataclasses.replace(bagel, generation_config=settings).edit(
            image(0), PROMPTS[0], n=2, seeds=seeds
        )
    (mean,), one, other = seen
    assert mean.seeds == [1, 5] and [r.seeds for r in one] == [[1], [5]]
    latents = [r.items[0].tokens for r in (mean, *one, *other)]
    np.testing.assert_array_equal(latents[2], latents[4])
    assert len({x.tobytes() for x in latents}) == 4


def test_answers_do_not_depend_on_their_company(bagel):
    given = [None, image(1), [image(1), image(2)]]
    every = bagel.answer(QUESTIONS, given)
    assert len({a.text for a in every}) > 1
    assert bagel.answer(QUESTIONS[2], given[2]) == every[2]
    assert bagel.answer(QUESTIONS[2], given[2][:1]) != every[2]
    assert bagel.answer([]) == []


def test_a_video_is_its_frames(bagel, clip):
    found = video.frames(clip, 2)
    frames = [pixels for _, pixels in found]
    assert len(frames) == 2 and np.abs(frames[0].astype(int) - frames[1]).max() > 100
    answer = bagel.answer(QUESTIONS[0], frames)
    assert bagel.answer(QUESTIONS[0], video=clip, frames=2) == answer
    assert bagel.answer(QUESTIONS[0], video=found) == answer
    assert bagel.answer(QUESTIONS[:1], video=[clip], frames=2) == [answer]
    assert bagel.answer(QUESTIONS[0], frames[:1]) != answer


def test_times_of_frames_are_told_where_the_model_wants_them(folder, clip):
    told = api.load(folder, frame="a {number}")
    with pytest.raises(ValueError, match="text 'a 1'"):  # not in this vocabulary
        told.answer(QUESTIONS[0], video=clip)


def test_captions_are_answers(bagel):
    want = bagel.answer("describe the image .", image(1))
    assert bagel.caption(image(1)) == want and bagel.caption([image(1)]) == [want]
    assert bagel.caption([]) == []


def test_lengths_and_temperatures(bagel):
    whole = bagel.answer(QUESTIONS[0], image(1))
    short = bagel.answer(QUESTIONS[0], image(1), max_tokens=2)
    assert whole.text.startswith(short.text) and not short.finished
    drawn = {bagel.answer(QUESTIONS[0], image(1), temperature=3.0, seed=s).text for s in range(4)}
    assert len(drawn) > 1
    warm, again = (bagel.answer(QUESTIONS[0], image(1), temperature=3.0, seed=1) for _ in "ab")
    assert warm == again


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_smaller_weights(folder, bagel, precision):
    """Every number is the nearest there is; pictures are those of the numbers that are kept."""
    small = api.load(folder, precision=precision)
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(small.params)}
    assert kinds == {"bfloat16": {"bfloat16"}, "int8": {"bfloat16", "int8", "float32"}}[precision]
    kept, specs = param_tree.flatten(small.params), param_tree.flatten(bagel_model.specs(bagel.cfg))
    stood_for = {}
    for path, whole in param_tree.flatten(bagel.params).items():
        half = np.asarray(whole.astype("bfloat16"))
        if kept[path].dtype == "int8":
            scale = np.expand_dims(kept[path[:-1] + "scale"], specs[path].fan_in)
            stood_for[path] = np.float32(kept[path]) * scale
            assert (np.abs(stood_for[path] - np.float32(half)) <= 0.5001 * scale).all(), path
        else:
            np.testing.assert_array_equal(kept[path], half, err_msg=path)
            stood_for[path] = np.float32(half)
    same = dataclasses.replace(bagel, params=param_tree.unflatten(stood_for))
    for want, found in zip(*(b.generate(PROMPTS) for b in (same, small)), strict=True):
        assert near(want.image, found.image)


def test_a_base_has_what_the_folder_lacks(folder, bagel, tmp_path):
    """As SRUM's training writes: the model without its vision tower, and nothing beside it."""
    tensors = load_file(folder / "ema.safetensors")
    own = {n: x for n, x in tensors.items() if not n.startswith(("vit_model", "connector"))}
    assert len(own) < len(tensors)
    save_file(own, tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="llm_config.json.*missing"):
        api.load(tmp_path)
    whole = api.load(tmp_path, base=folder)
    jax.tree.map(np.testing.assert_array_equal, whole.params, bagel.params)
    assert whole.generation_config == bagel.generation_config


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    """A model whose vocabulary has the words of the requests to think."""
    folder = tmp_path_factory.mktemp("thinker")
    return api.load(write_model(folder, *thinking_model.words(folder / "words"), seed=9))


def test_a_thought_is_written_once_and_read_before_drawing(thinker, monkeypatch):
    asked = [PROMPTS[0], PROMPTS[0], PROMPTS[1]]
    drawings = thinker.generate(asked, seeds=[1, 1, 1], think=True)
    first, second, other = (d.thought for d in drawings)
    assert first and first == second != other
    np.testing.assert_array_equal(drawings[0].image, drawings[1].image)
    writes = []
    monkeypatch.setattr(api.Model, "_write", lambda self, contexts, *_: writes.append(contexts))
    with pytest.raises(TypeError):
        thinker.generate(asked, think=True)
    assert [len(w) for w in writes] == [2]
    plain = text_generator.GeneratedText("two red squares", (), True)
    monkeypatch.setattr(api.Model, "_write", lambda self, contexts, *_: [plain] * len(contexts))
    changed = thinker.generate(asked, seeds=[1, 1, 1], think=True)
    assert changed[0].thought == "two red squares"
    assert not near(changed[0].image, drawings[0].image)


@pytest.mark.parametrize(
    "written, answer",
    [
        ("<think> it is round </think> red", api.Answer("red", "it is round", True)),
        ("<think> it is", api.Answer("", "<think> it is", False)),
    ],
)
def test_a_thought_is_split_off_the_answer(thinker, monkeypatch, written, answer):
    real = thinker.answer(QUESTIONS[0], image(0), think=True)
    assert real.thought and not real.finished  # it never writes the closing mark
    found = [text_generator.GeneratedText(written, (), True)]
    monkeypatch.setattr(api.Model, "_write", lambda *_: found)
    assert thinker.answer(QUESTIONS[0], image(0), think=True) == answer


@pytest.mark.parametrize(
    "how, message",
    [
        (dict(model="nowhere"), "nowhere: no such folder; give one, or one of shapes"),
        (dict(model=None), "the model is a path, got None"),
        (dict(adapter=5), "the adapter is a path, got 5"),
        (dict(base="nowhere"), "nowhere: no such folder"),
        (dict(precision="fp8"), "precision must be one of float32, bfloat16, int8, not 'fp8'"),
        (dict(windw=5), 'api.load: unknown key "windw": did you mean "window"?'),
        (dict(window="big"), "api.load: window must be int, got 'big'"),
        (dict(batch=0), "api.load: batch must be at least 1, got 0"),
        (dict(frame="{name}"), "may hold {seconds} and {number}"),
        (dict(generate={"stpes": 3}), 'api.load, generate: unknown key "stpes"'),
        (dict(edit={"steps": 0}), "api.load, edit: steps must be above 0"),
    ],
)
def test_a_model_is_not_opened(folder, how, message):
    with pytest.raises(BadInput) as caught:
        api.load(**({"model": folder} | how))
    assert message in str(caught.value)


def test_faults_of_a_folder_name_their_file(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="ema.safetensors"):
        api.load(tmp_path)
    for source in folder.iterdir():
        if source.is_file():
            (tmp_path / source.name).write_bytes(source.read_bytes())
    path = tmp_path / "generation_config.json"
    path.write_text('{"srum_jax": {"windw": 3}}')
    with pytest.raises(BadInput, match='generation_config.json, srum_jax: unknown key "windw"'):
        api.load(tmp_path)
    path.unlink()
    assert api.load(tmp_path).generation_config.generate.size == (1024, 1024)  # the original's own


def test_options_change_one_load(folder):
    changed = api.load(folder, window=77, generate={"steps": 9}).generation_config
    want = api.load(folder).generation_config
    assert changed.window == 77 and changed.generate.steps == 9
    assert changed.generate.batch == want.generate.batch and changed.edit == want.edit


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda b: b.generate("a orange circle"), "'orange'"),
        (lambda b: b.generate(5), "generate: a prompt is a text, or give a list of texts; got 5"),
        (lambda b: b.generate(None), "generate: a prompt is a text, or give a list"),
        (lambda b: b.generate(["a red circle", None]), "list of texts; got ['a red circle', None]"),
        (lambda b: b.edit(image(0), None), "edit: an instruction is a text"),
        (lambda b: b.answer(5), "answer: a question is a text"),
        (lambda b: b.caption(None), "caption: give an image, or a list of images; got None"),
        (lambda b: b.caption([image(0), None]), "got None"),
        (lambda b: b.generate(PROMPTS[0], n=0), "n must be at least 1"),
        (lambda b: b.generate(PROMPTS[0], seeds=[1, 2]), "seeds must be 1 numbers"),
        (lambda b: b.generate(PROMPTS[0], seeds=[2**32]), "from 0 to 2"),
        (lambda b: b.generate(PROMPTS[0], size=(32, 36)), "multiples of 8"),
        (lambda b: b.generate(PROMPTS[0], size=(32, 128)), "positions for 8 a side"),
        (lambda b: b.generate(PROMPTS[0], stpes=3), 'generate: unknown key "stpes"'),
        (lambda b: b.generate(PROMPTS[0], renorm="most"), "renorm"),
        (lambda b: b.generate("a " * 600), "the context window is 256"),
        (lambda b: b.edit(None, PROMPTS[0]), "no image for 'a red circle'"),
        (lambda b: b.edit([], PROMPTS[0]), "no image for"),
        (lambda b: b.edit(image(0), PROMPTS), "images must be a list as long as the 3 requests"),
        (lambda b: b.edit([image(0)], PROMPTS), "images must be a list as long as the 3"),
        (lambda b: b.answer(QUESTIONS, [image(0)]), "images must be a list as long as the 3"),
        (lambda b: b.answer(QUESTIONS[0], [image(0)] * 16), "the context window is 256"),
        (lambda b: b.answer(QUESTIONS[0], max_tokens=0), "max_tokens must be at least 1"),
        (lambda b: b.answer(QUESTIONS[0], temperature=-1.0), "temperature must be"),
        (lambda b: b.answer(QUESTIONS[0], np.zeros((8, 8))), "uint8 [H,W,3]; got ndarray float64"),
        (lambda b: b.answer(QUESTIONS[0], np.zeros((8, 900, 3), np.uint8)), "the array: 900x8"),
        (lambda b: b.answer(QUESTIONS[0], Image.new("F", (8, 8))), "the PIL image: not a readable"),
        (lambda b: b.answer(QUESTIONS[0], "nowhere.png"), "nowhere.png"),
        (lambda b: b.answer(QUESTIONS[0], video="nowhere.gif"), "nowhere.gif"),
        (lambda b: b.answer(QUESTIONS[0], video=[]), "video has no frames"),
        (lambda b: b.answer(QUESTIONS[0], video=[image(0)]), "each frame is (seconds, image)"),
        (lambda b: b.answer(QUESTIONS[0], video=[("1", image(0))]), "got ('1', "),
    ],
)
def test_a_request_is_refused(bagel, ask, message):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        ask(bagel)
    assert message in str(caught.value)


def test_a_model_shows_itself_shortly(bagel):
    assert len(repr(bagel)) < 3000 and "window=256" in repr(bagel)


@pytest.mark.slow  # test_use.py draws with this base and asks it
def test_the_shapes_base_draws_and_sees(base):
    things = ["red circle", "blue square", "green triangle", "yellow cross"]
    drawings = base.generate([f"a {thing}" for thing in things])
    assert sum(verifier.verify(d.image, d.prompt).right for d in drawings) >= 3
    asked = [f"what color is the {thing.split()[1]} ?" for thing in things]
    answers = base.answer(asked, drawings)
    assert sum(a.text == t.split()[0] for a, t in zip(answers, things, strict=True)) >= 3
    assert all(a.finished for a in answers)
    captions = base.caption(drawings)
    assert sum(t in c.text for c, t in zip(captions, things, strict=True)) >= 3


@pytest.mark.slow
def test_the_shapes_base_takes_plain_english(base):
    said = base.generate(["Draw two red circles, please!", "A large red disc"], seeds=[3, 4])
    meant = base.generate(["two red circles", "a big red circle"], seeds=[3, 4])
    for one, other in zip(said, meant, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    wanted = base.answer("what color is the circle ?", said[1])
    assert base.answer("What colour is the circle?", said[1]) == wanted
    (said,) = base.edit(meant[1], "Please change the red circle to blue", seeds=[5])
    (meant,) = base.edit(meant[1], "make the red circle blue .", seeds=[5])
    np.testing.assert_array_equal(said.image, meant.image)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda b: b.generate(["a red circle", "a red star"]), "the word 'star'.*near are circle"),
        (lambda b: b.generate("no red circle"), "'no red circle' cannot be said"),
        (lambda b: b.generate(""), "a prompt is empty"),
        (lambda b: b.generate("what changed ?"), "no prompt of the shapes world"),
        (lambda b: b.edit(image(0), "a red circle"), "no instruction of the shapes world"),
        (lambda b: b.answer("how many circles are there ?"), "answers about pictures"),
        (lambda b: b.answer("a red circle", image(0)), "no question of the shapes world"),
    ],
)
def test_what_the_shapes_base_has_no_words_for_is_refused(base, call, message):
    with pytest.raises(BadInput, match=message):
        call(base)


def test_a_model_without_the_words_to_think_says_so(base):
    with pytest.raises(BadInput, match="this model cannot think: it lacks words .*'you'"):
        base.answer("how many circles are there ?", think=True)
    with pytest.raises(BadInput, match="this model cannot think"):
        base.generate("a red circle", think=True)


def test_arrays_and_columns_are_lists(bagel):
    texts = np.array([PROMPTS[0], "two blue squares"])
    one, two = bagel.generate(texts, seeds=np.arange(2), steps=np.int64(2), guidance=np.float32(3))
    same = bagel.generate(list(texts), seeds=range(2), steps=2, guidance=3.0)
    assert [d.prompt for d in same] == list(texts) and (one.seed, two.seed) == (0, 1)
    np.testing.assert_array_equal(two.image, same[1].image)
    answers = bagel.caption(np.stack([image(0), image(1)]))
    assert answers == bagel.caption([image(0), image(1)])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda b: b.generate(None), "a prompt is a text, or give a list of texts; got None"),
        (lambda b: b.generate(5), "got 5"),
        (lambda b: b.generate(["a red circle", ""]), "a prompt is empty"),
        (lambda b: b.generate(PROMPTS[0], seed=5.0), "seed must be a whole number, got 5.0"),
        (lambda b: b.generate(PROMPTS[0], seeds=[1.9]), "each of seeds must be a whole number"),
        (lambda b: b.generate(PROMPTS[0], seeds=7), "seeds must be a list of numbers"),
        (lambda b: b.generate(PROMPTS[0], n="2"), "n must be a whole number, got '2'"),
        (lambda b: b.generate(PROMPTS[0], best_of=True), "best_of must be a whole number"),
        (lambda b: b.generate(PROMPTS[0], think="no"), "think must be True or False, got 'no'"),
        (lambda b: b.answer(QUESTIONS[0], think=None), "think must be True or False, got None"),
        (lambda b: b.generate(PROMPTS[0], temperature=0.5), "temperature says nothing to this"),
        (lambda b: b.edit(image(0), PROMPTS[0], top_k=5), "edit: top_k says nothing to this"),
        (lambda b: b.generate(PROMPTS[0], guidance=np.float32("nan")), "a finite number"),
        (lambda b: b.caption(None), "give an image, or a list of images"),
        (lambda b: b.caption("gs+x://a/b.png"), "is an address, no path"),
        (lambda b: b.answer("", image(0)), "a question is empty"),
        (
            lambda b: b.answer("is there a red square ?", image(0), temperature="0"),
            "temperature must be a number",
        ),
        (
            lambda b: b.answer("is there a red square ?", image(0), max_tokens=1.5),
            "max_tokens must be a whole",
        ),
    ],
)
def test_arguments_that_mean_nothing(bagel, call, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        call(bagel)


def test_a_drawing_is_a_png_and_shows_itself_shortly(tmp_path):
    drawing = api.Drawing(image(0), PROMPTS[0], 7)
    assert repr(drawing) == f"Drawing(32x32 pixels, {PROMPTS[0]!r}, seed=7)"
    drawing.save(tmp_path / "a.PNG")
    for name, error in (("a.jpg", BadInput), ("https://a/b.png", BadInput), ("x/y.png", OSError)):
        with pytest.raises(error, match="y.png|PNG|address"):
            drawing.save(tmp_path / name if "://" not in name else name)
    assert [p.name for p in tmp_path.iterdir()] == ["a.PNG"]
