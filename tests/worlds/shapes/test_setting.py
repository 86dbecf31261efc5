"""The larger setting of the shapes world: the same code on 64x64 pictures of up to nine objects."""

import collections
import random

import jax
import numpy as np
import pytest
import tiny

from srum_jax import api, config
from srum_jax.configs import shapes64_drawing, shapes64_judging
from srum_jax.core import param_tree, registry
from srum_jax.core.errors import BadInput
from srum_jax.data import packing, prompts
from srum_jax.data.images import to_float
from srum_jax.data.schema import Branch, Picture
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import bagel as family
from srum_jax.models.bagel import hf, model_config, vae
from srum_jax.models.bagel import model as bagel
from srum_jax.rewards import question_templates
from srum_jax.stages.manifest import Workdir
from srum_jax.worlds.shapes import (
    changes,
    exam,
    examples,
    language,
    own_drawings,
    pretrain,
    question_forms,
    rendering,
    verifier,
)
from srum_jax.worlds.shapes.questions import qa_set, understanding_example
from srum_jax.worlds.shapes.quick_evaluation import Exam
from srum_jax.worlds.shapes.setting import LARGE, SETTINGS, SMALL, of_side

BASE = registry.base_folder(LARGE.name)


def made(category, count, seed=0):
    """(prompt, scene) of a category in the large setting."""
    rng = random.Random(seed)
    for _ in range(count):
        content = language.draw(rng, "test", category)
        yield language.say(rng, content), examples.scene_for(rng, content, LARGE)


def test_settings_are_worlds_and_told_apart_by_their_pictures():
    assert set(SETTINGS) <= set(registry.WORLDS)
    assert [of_side(pixels) for pixels in (32, 64, 48)] == [SMALL, LARGE, None]
    sizes = [size for one in SETTINGS.values() for size in (*one.small, *one.big)]
    assert len(set(sizes)) == len(sizes)  # a size is small or big whatever the setting
    for one in SETTINGS.values():
        assert one.cell * one.grid <= one.side and max(one.big) < one.cell
        corners = {one.cell_at(x, y) for x in (0, one.side - 1) for y in (0, one.side - 1)}
        assert corners == {(r, c) for r in (0, one.grid - 1) for c in (0, one.grid - 1)}


@pytest.mark.parametrize("category", LARGE.prompts)
def test_clean_pictures_are_right_and_spoilt_ones_are_not(category):
    for prompt, scene in made(category, 6):
        image = rendering.draw(scene)
        assert image.shape == (64, 64, 3)
        verdict = verifier.verify(image, prompt)
        assert verdict.right, (prompt, verdict.reason)
        assert len(verdict.objects) == len(scene.things) == len(verdict.found)
        for thing in scene.things:
            assert verifier.verify_region(image, thing.box, prompt)
        less = rendering.Scene(scene.things[1:], scene.ground, LARGE)
        missing = verifier.verify(rendering.draw(less), prompt)
        assert not missing.right and sum(missing.objects) == len(scene.things) - 1


def test_regions_are_labelled_with_the_object_that_they_show():
    (prompt, scene), *_ = made("quad", 1)
    image = rendering.draw(scene)
    for thing in scene.things:
        assert verifier.region_shows(image, thing.box, prompt) == thing.pair
    others = [p for p in language.PAIRS if p not in [t.pair for t in scene.things]]
    wrong = rendering.scatter(random.Random(0), others[:1], setting=LARGE)
    assert verifier.region_shows(rendering.draw(wrong), wrong.things[0].box, prompt) is None


def test_what_a_prompt_states_of_its_objects_besides_is_told_apart():
    for prompt, scene in made("spatial", 8):
        assert verifier.stated(rendering.draw(scene), prompt) == {"relation": True}
        content = language.parse(prompt, LARGE)
        other = language.spatial(content.pairs[1], content.relation, content.pairs[0])
        opposite = rendering.draw(examples.scene_for(random.Random(1), other, LARGE))
        assert verifier.stated(opposite, prompt) == {"relation": False}
        alone = rendering.Scene(scene.things[:1], scene.ground, LARGE)
        assert verifier.stated(rendering.draw(alone), prompt) == {}
    for prompt, scene in made("size", 8):
        pairs = {thing.pair: thing for thing in scene.things}
        assert verifier.stated(rendering.draw(scene), prompt) == dict.fromkeys(pairs, True)
        first = scene.things[0]
        changed = rendering.place(
            random.Random(2),
            first.pair,
            (first.row, first.col),
            "big" if first.scale == "small" else "small",
            LARGE,
        )
        image = rendering.draw(rendering.Scene((changed, *scene.things[1:]), scene.ground, LARGE))
        wanted = {pair: pair != first.pair for pair in pairs}
        assert verifier.stated(image, prompt) == wanted
        assert not verifier.verify(image, prompt).right


def test_outlines_that_are_moved_a_little_stay_right():
    for prompt, scene in made("six", 30, seed=5):
        picture = rendering.draw(scene).astype(np.float32)
        moved = rendering.finish(rendering.warped(random.Random(1), picture, 0.6))
        assert (moved != rendering.draw(scene)).any()
        assert verifier.verify(moved, prompt).right


@pytest.mark.parametrize("flaw", sorted(set(LARGE.flaws)))
def test_malformed_things_are_none_of_the_world(flaw):
    wrong = 0
    for prompt, scene in made("six", 40, seed=3):
        image = rendering.draw_flawed(random.Random(0), scene, 2, flaw)
        wrong += not verifier.verify_region(image, scene.things[2].box, prompt)
        others = [t for i, t in enumerate(scene.things) if i != 2]
        assert all(verifier.verify_region(image, t.box, prompt) for t in others)
    assert wrong >= (32 if flaw == "blurred" else 40)  # the least blur is of decoded pictures too


@pytest.mark.parametrize("category", LARGE.prompts)
def test_prompts_mean_what_they_say_to_world_and_judge(category):
    rng = random.Random(1)
    for _ in range(20):
        content = language.draw(rng, "train", category, held_out=False)
        assert not content.held_out and language.split_of(content) == "train"
        text = language.say(rng, content)
        assert language.parse(text, LARGE) == content and content.category == category
        scene = question_templates.decompose(text)
        asked = [(spec.color, spec.shape) for spec in scene.objects for _ in range(spec.count)]
        assert sorted(asked) == sorted(content.pairs)
        if len(content.pairs) > SMALL.most:
            with pytest.raises(ValueError, match="not of the shapes world"):
                language.parse(text)
            assert not exam.readable((32, 32), text)
        assert exam.readable((64, 64), text) and not exam.readable((48, 48), text)


@pytest.mark.parametrize(
    "text",
    [
        "ten red circles",
        "five red circles and five blue squares",
        "two red circles and two blue squares",
        "six red circles and a blue square",
        "five red circles and two red circles",
        "five red circles ,",
        "three red circles and three blue squares and three pink crosses",
    ],
)
def test_counts_outside_the_grammar_are_refused(text):
    with pytest.raises(ValueError, match="not of the shapes world"):
        language.parse(text, LARGE)


def test_splits_of_long_lists_follow_the_hash_alone():
    rng = random.Random(2)
    found = collections.Counter(
        language.split_of(language.content_of(rendering.shuffled(rng, language.PAIRS)[:7]))
        for _ in range(3000)
    )
    for split, share in (("train", 0.6), ("validation", 0.1), ("test", 0.3)):
        assert abs(found[split] / 3000 - share) < 0.03
    listed = {s: set(language.contents(s, "six")) for s in language.SPLITS}
    assert [len(listed[s]) for s in language.SPLITS] == list(language.LISTED.values())
    assert all(language.split_of(c) == s for s, some in listed.items() for c in some)


def test_the_small_world_has_no_prompt_of_the_large_one():
    assert {p.category for p in language.prompts("validation")} == set(SMALL.prompts)
    found = prompts.load("shapes64:validation", 24)
    assert [p.category for p in found[:12]] == list(LARGE.prompts)
    assert len({p.text for p in found}) == 24
    with pytest.raises(BadInput, match="writes no files"):
        registry.load(registry.WORLDS, LARGE.name).write_benchmark("pope", BASE)


def test_a_middle_cell_is_neither_left_nor_right():
    said = collections.Counter()
    rng = random.Random(4)
    for _, scene in made("attr", 60):
        asked = question_forms.position_question(rng, question_forms.View(scene, "test"))
        pairs = {f"the {t.color} {t.shape}": t for t in scene.things}
        thing = next(t for name, t in pairs.items() if name in asked.text)
        sides = {0: "left", 1: "neither", 2: "right"}
        rows = {0: "above", 1: "neither", 2: "below"}
        at = sides[thing.col] if "left" in asked.text else rows[thing.row]
        assert asked.answer == at
        said[asked.answer] += 1
    assert len(said) == 5


def test_questions_captions_and_edits_are_of_the_large_canvas():
    for image, question in qa_set("test", 24, setting=LARGE):
        assert image.shape[0] == (32 if question.kind.startswith("crop") else 64)
    assert len(exam.questions("test", 6, 6, LARGE)) == 6  # pairs and clips: of the small one alone
    for request in exam.captions("test", 12, LARGE):
        assert request.images[0].shape == (64, 64, 3)
        said = language.say(random.Random(0), language.scene_contents(request.truth)[0])
        assert verifier.verify_caption(said, request.truth)
        assert len(said.split()) < request.max_tokens
    for edit in changes.edit_set("test", 16, setting=LARGE):
        assert verifier.verify_edit(rendering.draw(edit.target), edit)
        assert not verifier.verify_edit(rendering.draw(edit.source), edit)


def test_yes_and_no_are_balanced_of_large_pictures():
    answers = collections.defaultdict(collections.Counter)
    mix = pretrain.PLANS[LARGE.name].usual.mix
    for i in range(700):
        for question in understanding_example(6, i, mix, setting=LARGE)[1]:
            if question.answer in ("yes", "no"):
                answers[question.kind][question.answer] += 1
    for kind, counts in answers.items():
        share = counts["yes"] / counts.total()
        assert abs(share - 0.5) < 0.09, (kind, counts)


def test_the_large_base_has_the_words_and_the_sizes_of_its_canvas():
    words = Tokenizer.from_folder(BASE)
    sizes = model_config.from_folder(BASE)
    assert sizes.layout.token_pixels * sizes.layout.max_latent == LARGE.side
    for prompt, _ in made("nine", 2):
        words.encode(prompt)
    words.encode("nine red circles")
    assert len(examples.vocabulary(LARGE)) <= examples.VOCAB_SIZE
    small = examples.vocabulary()
    assert dict(list(examples.vocabulary(LARGE).items())[: len(small)]) == small


@pytest.mark.slow
def test_the_large_base_reads_draws_and_knows_what_it_drew_badly():
    model = api.load(LARGE.name)
    asked = exam.questions("validation", 200, 0, LARGE)
    answers = model.answer([one.question for one in asked], [one.images[0] for one in asked])
    verdicts = exam.judge_answers(asked, [answer.text for answer in answers])
    assert np.mean([one.right for one in verdicts]) > 0.9

    texts = [text for text, _ in made("attr", 16)]
    drawings = model.generate(texts, n=2, seed=0)
    seen = [verifier.verify(one.image, one.prompt) for one in drawings]
    assert np.mean([right for one in seen for right in one.objects]) > 0.6
    scored = model.score(drawings, [one.prompt for one in drawings])
    scores = np.array([one.score for one in scored])
    right = np.array([one.right for one in seen])
    assert np.mean(scores[right][:, None] > scores[~right]) > 0.75


def drawn_badly(captions, seeds):
    """Pictures of the captions, each second with one object malformed."""
    images = []
    for text, seed in zip(captions, seeds, strict=True):
        rng = random.Random(seed)
        scene = rendering.scatter(rng, language.parse(text, LARGE).pairs, setting=LARGE)
        flawed = rendering.draw_flawed(rng, scene, 0, "blend")
        images.append(flawed if seed % 2 else rendering.draw(scene))
    return np.stack(images)


@pytest.mark.parametrize("kind", ["usual", "other", "drawn", "judged"])
def test_rows_of_the_large_base_fit_their_lanes(kind):
    plan = getattr(pretrain.PLANS[LARGE.name], kind)
    sizes, words = model_config.from_folder(BASE), Tokenizer.from_folder(BASE)
    grid = (8, 8, sizes.layout.token_dim)
    captions = [examples.generation_example(0, i, setting=LARGE)[0] for i in range(20)]
    edits = [changes.edit_example(0, i, LARGE) for i in range(4)]
    pool = pretrain.Pool(
        captions,
        np.zeros((20, *grid), np.float32),
        [e.instruction for e in edits],
        np.stack([rendering.draw(e.source) for e in edits]),
        *np.zeros((2, 4, *grid), np.float32),
        own_drawings.looked_at(**own_drawings.drawn(drawn_badly, 24, 0, LARGE)),
    )
    how = dict(seed=0, layout=sizes.layout, tokenizer=words, pool=pool, setting=LARGE)
    rows = [pretrain.row(i, plan, **how) for i in range(12)]
    fitted = [pretrain.fitted(row, plan.lanes) for row in rows]
    assert sum(a == b for a, b in zip(rows, fitted, strict=True)) >= 9
    batch = packing.pack(fitted, plan.lanes, sizes.layout)
    assert (np.asarray(batch.gen.segment) > 0).mean() > 0.9
    asked = sum(type(item) is Branch for row in fitted for one in row for item in one.items)
    assert (asked == 0) == (kind == "drawn")
    if kind == "judged":  # a picture, a crop, what was drawn itself: whole and six crops
        assert sum(type(one.items[0]) is Picture for one in rows[0]) == 9


@pytest.mark.slow
@pytest.mark.parametrize("made", [shapes64_drawing, shapes64_judging])
def test_one_expert_stays_where_the_other_learns(tmp_path, monkeypatch, made):
    monkeypatch.setattr(pretrain, "EXAM", Exam(2, 0, 2, 2, 2))
    values = made.get_config()
    small = registry.base_folder(SMALL.name)
    values.weights = str(small)
    values.pretrain.update(steps=2, rows=1, latents=5, edits=2, drawings=4, evaluate_every=2)
    cfg, work = config.load(values), Workdir(tmp_path)
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        pretrain.run(cfg, mesh, work)
    sizes = model_config.from_folder(BASE)
    found, _ = hf.load(work.stage("pretrain") / "model", sizes, want=("model",))
    begun = param_tree.flatten(pretrain.begun(bagel.specs(sizes), cfg.seed, small))
    moved = {
        path
        for path, leaf in param_tree.flatten(found).items()
        if not np.array_equal(leaf, np.asarray(begun[path].astype("bfloat16"), np.float32))
    }
    drawing = made is shapes64_drawing
    assert all(path.startswith(family.DRAWS) == drawing for path in moved)
    assert {
        path for path in begun if path.startswith(f"blocks/{'gen' if drawing else 'und'}/")
    } & moved


@pytest.mark.slow
def test_the_small_base_s_autoencoder_keeps_large_pictures():
    folder = registry.base_folder(SMALL.name)
    cfg = model_config.from_folder(folder)
    _, params = hf.load(folder, cfg, want=("vae",))
    texts, pictures = zip(*(examples.clean_image(0, i, LARGE) for i in range(128)), strict=True)

    @jax.jit
    def coded(images):
        return vae.to_uint8(vae.decode(params, cfg.vae, vae.encode(params, cfg.vae, images)))

    right = exam.right_drawings(np.asarray(coded(to_float(np.stack(pictures)))), texts)
    assert right.mean() >= 0.97  # .992 of 512


def test_the_large_base_begins_with_what_the_small_one_knows():
    small, specs = registry.base_folder(SMALL.name), bagel.specs(model_config.from_folder(BASE))
    known, _ = hf.load(small, model_config.from_folder(small), want=("model",))
    begun = pretrain.begun(specs, 0, small)
    assert jax.tree.map(np.shape, begun) == jax.tree.map(lambda spec: spec.shape, specs)
    other = jax.tree.map(lambda b, k: b.shape != k.shape or bool((b != k).any()), begun, known)
    paths = [
        jax.tree_util.keystr(at) for at, new in jax.tree_util.tree_leaves_with_path(other) if new
    ]
    assert paths == ["['vit']['positions']"] and np.std(begun["vit"]["positions"]) > 0
