"""Answers and texts: what the training forward says, whatever else is in the same call."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samples
import tiny
from samples import jit

from srum_jax.core import param_tree, preemption
from srum_jax.core.errors import BadInput, Preempted
from srum_jax.data import packing
from srum_jax.data.images import picture
from srum_jax.data.schema import Example, Lanes, Picture, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import answer_scorer, context, text_generator
from srum_jax.generation.answer_scorer import AnswerScorer
from srum_jax.models.bagel import model as bagel
from srum_jax.worlds.shapes import examples, questions

# --------------------------------------------------------------------------------------- answers

CFG = tiny.MODEL
ASKED = [questions.understanding_example(5, i) for i in range(7)]
IMAGES = [image for image, _ in ASKED]
QUESTIONS = [[q.text for q in asked if q.kind != "caption"] for _, asked in ASKED]
PAIR = IMAGES[:2]


@jit
def first_answer(params, batch):
    und, _, _ = bagel.forward(params, CFG, batch, batch.latents, jnp.zeros((1, 0)), remat="none")
    return jax.nn.softmax(bagel.logits(params, und, batch.label_slots))[0, 0]


@pytest.fixture(scope="module")
def params():
    return tiny.weights(scale=0.7)[0]  # so large that what is asked and shown matters


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(examples.write_tokenizer(tmp_path_factory.mktemp("words")).parent)


WANTED = tuple(range(CFG.llm.vocab))[5:40]  # tokens; of every one the probability is known


def rows_of(scorer):
    """Probabilities [Q,35] of the tokens WANTED, of each image."""

    def ask(images, asked):
        tokens = [[WANTED] * len(texts) for texts in asked]
        found = scorer.probabilities(images, asked, tokens)
        return [np.array(row).reshape(-1, len(WANTED)) for row in found]

    return ask


@pytest.fixture(scope="module")
def ask(params, tokenizer):
    return rows_of(AnswerScorer(params, CFG, tokenizer, 4))


@pytest.fixture(scope="module")
def answers(ask):
    return ask(IMAGES, QUESTIONS)


def test_probabilities_of_the_tokens_that_are_wanted(params, tokenizer, answers):
    assert [a.shape for a in answers] == [(len(q), len(WANTED)) for q in QUESTIONS]
    assert len({len(q) for q in QUESTIONS}) > 1  # rows of different length
    assert all(a.dtype == np.float32 and (a >= 0).all() and (a.sum(-1) < 1).all() for a in answers)
    scorer = AnswerScorer(params, CFG, tokenizer, 4)
    few = [[WANTED[n : n + 1 + n % 3] for n in range(len(q))] for q in QUESTIONS]
    for row, wanted, all_ in zip(
        scorer.probabilities(IMAGES, QUESTIONS, few), few, answers, strict=True
    ):
        for n, (p, ids) in enumerate(zip(row, wanted, strict=True)):
            np.testing.assert_allclose(p, all_[n, n : n + len(ids)], atol=1e-6)


@pytest.mark.parametrize("vocab", [CFG.llm.vocab, 4 * CFG.llm.vocab])
def test_what_leaves_the_device_does_not_grow_with_the_vocabulary(vocab):
    cfg = dataclasses.replace(CFG, llm=dataclasses.replace(CFG.llm, vocab=vocab))
    packed = packing.pack([[]], Lanes(48, 0, 16, 8, 0, 0), cfg.layout)
    given = jax.eval_shape(
        functools.partial(answer_scorer.first_tokens, cfg=cfg, dtype=jnp.float32),
        *(param_tree.abstract(bagel.specs(cfg)), packed, np.zeros((1, 8, 16), np.int32)),
    )
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(given)) == 8 * (16 * 4 + 4 + 1)


@pytest.fixture
def packed(monkeypatch):
    """Rows of examples and their lanes, as calls of the scorer pack them."""
    seen = []
    pack = packing.pack

    def watch(rows, lanes, *rest):
        seen.append((rows, lanes))
        return pack(rows, lanes, *rest)

    monkeypatch.setattr(answer_scorer.packing, "pack", watch)
    return seen


def test_rows_of_like_length_go_together_and_a_picture_is_read_once(ask, answers, packed):
    """In whatever order they come, and however often a picture does."""
    wide = tuple(PAIR)
    images = [IMAGES[0], wide, IMAGES[0].copy(), IMAGES[2], wide, IMAGES[3], IMAGES[0], IMAGES[4]]
    asked = [QUESTIONS[i][:1] for i in (0, 0, 2, 2, 1, 3, 4, 4)]
    found = ask(images, asked)
    rows = [[e for (e,) in filter(None, part)] for part, _ in packed]
    assert [len(part) for part in rows] == [4, 1]  # five different pictures
    pictures = [
        item for part in rows for e in part for item in e.items if isinstance(item, Picture)
    ]
    assert len(pictures) == 4 + 2
    assert [lanes.vit for _, lanes in packed] == [16, 32]  # two pictures lengthen their row alone
    order = [4, 0, 7, 2, 5, 1, 6, 3]
    turned = ask([images[i] for i in order], [asked[i] for i in order])
    for row, i in zip(turned, order, strict=True):
        np.testing.assert_allclose(row, found[i], atol=1e-6)
    np.testing.assert_allclose(found[0], answers[0][:1], atol=1e-5)
    np.testing.assert_allclose(found[3], answers[2][:1], atol=1e-5)
    for image, questions_, row in zip(images, asked, found, strict=True):
        np.testing.assert_allclose(row, ask([image], [questions_])[0], atol=1e-5)


def test_the_likeliest_token(params, tokenizer):
    scorer = AnswerScorer(params, CFG, tokenizer, 4)
    every = [[range(CFG.llm.vocab)] * len(q) for q in QUESTIONS[:2]]
    found = scorer.probabilities(PAIR, QUESTIONS[:2], every)
    np.testing.assert_allclose([p.sum() for row in found for p in row], 1, atol=1e-5)
    likeliest = scorer.likeliest(PAIR, QUESTIONS[:2])
    assert likeliest == [[int(p.argmax()) for p in row] for row in found]


def test_told_to_stop_nothing_more_is_asked(ask, answers):
    told = functools.partial(next, iter([False, True]))
    with preemption.agreeing(told), pytest.raises(Preempted):
        ask(IMAGES, QUESTIONS)


def test_an_answer_is_the_training_forward(params, tokenizer, answers):
    """One question behind its picture, as an ordinary sample of a training row."""
    lanes = Lanes(und=48, gen=0, vit=16, labels=2, images=0, regions=0)
    for i, n in ((0, 0), (0, 2), (5, 1)):
        question = Text(np.array(tokenizer.encode(QUESTIONS[i][n]), np.int32))
        answer = Text(np.zeros(0, np.int32), loss=True)
        example = Example((picture(IMAGES[i], CFG.layout), question, answer))
        want = first_answer(params, packing.pack([[example]], lanes, CFG.layout))
        np.testing.assert_allclose(answers[i][n], np.asarray(want)[list(WANTED)], atol=1e-5)


def test_other_questions_change_nothing(ask, answers):
    alone = ask(IMAGES, [q[-1:] for q in QUESTIONS])
    turned = ask(IMAGES, [q[::-1] for q in QUESTIONS])
    for a, one, back in zip(answers, alone, turned, strict=True):
        np.testing.assert_allclose(one, a[-1:], atol=1e-5)
        np.testing.assert_allclose(back, a[::-1], atol=1e-5)


def test_other_images_change_nothing(ask, answers):
    order = [6, 2]
    few = ask([IMAGES[i] for i in order], [QUESTIONS[i] for i in order])
    for found, i in zip(few, order, strict=True):
        np.testing.assert_allclose(found, answers[i], atol=1e-5)


def test_the_image_and_the_question_both_matter(ask, answers):
    swapped = ask(IMAGES[1:2], QUESTIONS[:1])[0]
    assert np.abs(swapped - answers[0]).max() > 1e-2
    assert np.abs(answers[0][0] - answers[0][1]).max() > 1e-2


def test_several_pictures_are_read_together_in_order(params, tokenizer, ask):
    """As an ordinary sample of a training row: both pictures, then one question."""
    about = ["what changed ?", "which image has more objects ?", *QUESTIONS[0][:1]]
    found, turned, single = ask([tuple(PAIR), tuple(PAIR[::-1]), (PAIR[0],)], [about] * 3)
    lanes = Lanes(und=64, gen=0, vit=32, labels=2, images=0, regions=0)
    for n in (0, 1):
        question = Text(np.array(tokenizer.encode(about[n]), np.int32))
        answer = Text(np.zeros(0, np.int32), loss=True)
        example = Example((*(picture(i, CFG.layout) for i in PAIR), question, answer))
        want = first_answer(params, packing.pack([[example]], lanes, CFG.layout))
        np.testing.assert_allclose(found[n], np.asarray(want)[list(WANTED)], atol=1e-5)
    assert np.abs(found - turned).max() > 1e-3 and np.abs(found - single).max() > 1e-2
    # One picture is one, in a tuple or not, whatever company makes its row longer.
    np.testing.assert_allclose(single, ask(PAIR[:1], [about])[0], atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_give_no_answer(params, tokenizer, value):
    broken = params | {"lm_head": {"w": params["lm_head"]["w"].copy()}}
    broken["lm_head"]["w"][0, 7] = value
    ask = rows_of(AnswerScorer(broken, CFG, tokenizer, 4))
    with pytest.raises(BadInput, match="for an answer are NaN or infinite"):
        ask(IMAGES[:1], QUESTIONS[:1])


def test_nothing_asked_and_faults(ask):
    assert ask([], []) == []
    with pytest.raises(ValueError, match="2 images, but questions for 1"):
        ask(IMAGES[:2], QUESTIONS[:1])
    with pytest.raises(ValueError, match="'mauve'"):
        ask(IMAGES[:1], [["is this mauve ?"]])


# ----------------------------------------------------------------------------------- written texts

SMALL = samples.CFG
WINDOW = 64
LIMIT = 12


def random_contexts():
    rng = np.random.default_rng(0)
    words, look = functools.partial(samples.text, rng), functools.partial(samples.picture, rng)
    return [
        (words(3),),
        (words(12),),
        (look(2, 3), words(4)),
        (words(9),),
        (look(2, 2), words(2), look(1, 2), words(5)),
        (),
        (look(1, 1),),
        (words(5),),
    ]


CONTEXTS = random_contexts()


@pytest.fixture(scope="module")
def model():
    """One that likes to end: its greedy texts are of many lengths."""
    params = samples.weights()
    params["lm_head"]["w"][:, SMALL.eos] *= 4
    return params


@pytest.fixture(scope="module")
def generator(model, tokenizer):
    @functools.cache
    def make(batch, min_rows=1):
        how = dict(batch=batch, window=WINDOW, min_rows=min_rows)
        return text_generator.TextGenerator(model, SMALL, tokenizer, **how).generate

    return make


@pytest.fixture(scope="module")
def write(generator):
    """Eight rows a call."""
    return generator(8, 8)


@pytest.fixture(scope="module")
def greedy(write):
    return write(CONTEXTS, max_tokens=LIMIT)


@jit
def teacher(params, batch):
    t = jnp.zeros(batch.noisy.shape)
    und, _, _ = bagel.forward(params, SMALL, batch, batch.latents, t, remat="none")
    return bagel.logits(params, und, batch.label_slots)


def training_logits(params, contexts, texts):
    """[V] logits before each id of each text and after its last, by the training forward."""
    given = [
        (*c, Text(np.array(ids, np.int32), loss=True))
        for c, ids in zip(contexts, texts, strict=True)
    ]
    need = np.max([packing.size(Example(c)) for c in given], axis=0)
    batch = packing.pack([[Example(c)] for c in given], Lanes(*map(int, need)), SMALL.layout)
    logits = np.asarray(teacher(params, batch))
    return [row[: len(ids) + 1] for row, ids in zip(logits, texts, strict=True)]


def test_greedy_text_is_the_argmax_of_the_training_forward(model, greedy):
    """Every token, and the end mark where a text ended by itself."""
    lengths = [len(w.ids) for w in greedy]
    assert len(set(lengths)) > 3 and max(lengths) == LIMIT
    assert len({i for w in greedy for i in w.ids}) > 10
    logits = training_logits(model, CONTEXTS, [w.ids for w in greedy])
    for written, row in zip(greedy, logits, strict=True):
        want = np.argmax(row, axis=-1).tolist()
        if written.finished:
            assert [*written.ids, SMALL.eos] == want
        else:
            assert list(written.ids) == want[:-1] and len(written.ids) == LIMIT


def test_words_are_those_of_the_ids(tokenizer, greedy):
    for written in greedy:
        assert written.text == tokenizer.decode(written.ids)
        assert SMALL.eos not in written.ids
    assert any(w.text for w in greedy)


@pytest.mark.slow
def test_company_order_and_batch_change_no_text(generator, write, greedy):
    order = [4, 1, 6, 0, 2, 7]
    assert write([CONTEXTS[i] for i in order], max_tokens=LIMIT) == [greedy[i] for i in order]
    assert write(CONTEXTS[4:5], max_tokens=LIMIT) == greedy[4:5]
    assert generator(2)(CONTEXTS[2:5], max_tokens=LIMIT) == greedy[2:5]
    assert write([], max_tokens=LIMIT) == []


def test_padding_changes_no_text(write, greedy):
    """A long neighbour makes all lanes and the cache longer."""
    longer = (samples.text(np.random.default_rng(1), 40),)
    found = write([*CONTEXTS[:5], longer], max_tokens=LIMIT)
    assert found[:5] == greedy[:5]


def test_a_picture_is_read_once_for_all_its_questions(generator, monkeypatch):
    """And gives the texts of one question at a time, in whatever order they come."""
    rng = np.random.default_rng(3)
    two, one = (samples.picture(rng, 2, 2), samples.picture(rng, 1, 2)), samples.picture(rng, 2, 3)
    same = Picture(one.patches.copy(), one.positions.copy())
    asked = [samples.text(rng, n) for n in (3, 6, 2, 4, 5)]
    contexts = [
        (one, asked[0]),
        (*two, asked[1]),
        (same, asked[2], asked[3]),
        (asked[4],),
        (*two, asked[0]),
        (one, asked[4]),
        (two[0], asked[1]),
    ]
    alone = [generator(1)([c], max_tokens=LIMIT)[0] for c in contexts]
    assert len({w.ids for w in alone}) > 3
    read = []
    pack = context.pack
    monkeypatch.setattr(
        context, "pack", lambda c, *rest: read.append((c, rest[0])) or pack(c, *rest)
    )
    assert generator(8)(contexts, max_tokens=LIMIT) == alone
    ((rows, count),) = read
    assert (len(rows), count) == (4, 4)  # one, both of two, the first of two, none
    assert sum(isinstance(item, Picture) for row in rows for item in row) == 1 + 2 + 1
    order = [5, 2, 6, 0, 4, 3, 1]
    turned = generator(8)([contexts[i] for i in order], max_tokens=LIMIT)
    assert turned == [alone[i] for i in order]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_give_no_text(model, write, value):
    broken = model | {"lm_head": {"w": model["lm_head"]["w"].copy()}}
    broken["lm_head"]["w"][:, 7] = value
    with pytest.raises(BadInput, match="for a text are NaN or infinite"):
        write(CONTEXTS, max_tokens=LIMIT, params=broken)


def test_told_to_stop_nothing_more_is_written(write, greedy):
    told = functools.partial(next, iter([False, True]))
    with preemption.agreeing(told), pytest.raises(Preempted):
        write(CONTEXTS * 2, max_tokens=LIMIT)


def test_the_limit_is_kept(write, greedy):
    for limit in (1, 3):
        found = write(CONTEXTS, max_tokens=limit)
        for short, whole in zip(found, greedy, strict=True):
            assert short.ids == whole.ids[:limit]
            assert short.finished == (len(whole.ids) < limit)


def test_the_first_row_may_end_all(write, greedy):
    """As the original: its steps are those of row 0; a row that ended before stays as it was."""
    order = [4, 0, 1, 2, 3, 5, 6, 7]
    found = write([CONTEXTS[i] for i in order], max_tokens=LIMIT, stop="first")
    steps = len(greedy[4].ids) + 1  # the last is its end mark
    assert greedy[4].finished and {len(greedy[i].ids) < steps for i in order} == {True, False}
    for short, whole in zip(found, (greedy[i] for i in order), strict=True):
        assert short.ids == whole.ids[:steps]
        assert short.finished == (whole.finished and len(whole.ids) < steps)
    with pytest.raises(ValueError, match="stop must be each or first, not 'last'"):
        write(CONTEXTS[:1], max_tokens=LIMIT, stop="last")


def test_a_request_past_the_window_is_refused(write):
    fits = (Text(np.full(WINDOW - LIMIT - 3, 7, np.int32)),)
    assert len(write([fits], max_tokens=LIMIT)) == 1
    with pytest.raises(ValueError, match=f"up to {LIMIT + 2} more .* window is {WINDOW}"):
        write([CONTEXTS[0], fits], max_tokens=LIMIT + 1)


# ---------------------------------------------------------------------------------- drawn at random


def test_drawn_text_is_a_function_of_the_seed(write, greedy):
    warm = functools.partial(write, max_tokens=LIMIT, temperature=2.0)
    seeds = [5, 6, 7, 8, 9, 10, 2**32 - 1, 0]
    found = warm(CONTEXTS, seeds=seeds)
    assert warm(CONTEXTS, seeds=seeds) == found
    order = [6, 1, 3]
    alone = warm([CONTEXTS[i] for i in order], seeds=[seeds[i] for i in order])
    assert alone == [found[i] for i in order]
    other = warm(CONTEXTS, seeds=[s ^ 1 for s in seeds])
    assert sum(a.ids != b.ids for a, b in zip(found, other, strict=True)) >= 7
    assert sum(a.ids != b.ids for a, b in zip(found, greedy, strict=True)) >= 7
    cold = write(CONTEXTS, max_tokens=LIMIT, temperature=1e-4, seeds=seeds)
    assert cold == greedy


def surprise(ids, logits):
    """Chi-square of drawn ids against softmax(logits), less its mean, in standard deviations."""
    p = np.exp(logits - logits.max())
    want = p / p.sum() * len(ids)
    count = np.bincount(ids, minlength=len(p))
    often = want > 5
    pairs = np.array([*zip(count[often], want[often], strict=True)])
    pairs = np.concatenate([pairs, [[count[~often].sum(), want[~often].sum()]]])
    chi = np.sum(np.square(pairs[:, 0] - pairs[:, 1]) / pairs[:, 1])
    degrees = len(pairs) - 1
    assert degrees > 5
    return (chi - degrees) / np.sqrt(2 * degrees)


@pytest.mark.slow
def test_drawn_tokens_follow_the_softmax(model):
    """The first token of many seeds, and the second of those whose first is the commonest."""
    rows, warmth = 4096, 0.7
    cfg = dataclasses.replace(SMALL, eos=-1)
    packed = context.pack([CONTEXTS[0]], 1, SMALL.layout)

    @jit
    def draw(params, seeds, warmth):
        cache = context.prefill(params, packed, cfg=SMALL, slots=24, dtype=jnp.float32)
        wide = jax.tree.map(lambda x: jnp.repeat(x, rows, axis=max(0, x.ndim - 4)), cache)
        how = dict(cfg=cfg, max_tokens=2, dtype=jnp.float32)
        return text_generator.decode(params, wide, seeds, warmth, jnp.full(rows, 2), **how)

    warm = np.where(np.arange(rows) % 8 == 0, 0, warmth).astype(np.float32)
    ids, counts = draw(model, np.arange(rows, dtype=np.uint32), warm)
    ids = np.asarray(ids)
    assert (np.asarray(counts) == 2).all()
    cold, drawn = ids[warm == 0], ids[warm > 0]
    assert (cold == cold[0]).all()  # rows of temperature 0 beside warm ones
    first = int(np.bincount(drawn[:, 0]).argmax())
    (logits,) = training_logits(model, [CONTEXTS[0]], [[first]])
    assert cold[0, 0] == np.argmax(logits[0])
    assert abs(surprise(drawn[:, 0], logits[0] / warmth)) < 4
    second = drawn[drawn[:, 0] == first, 1]
    assert len(second) > 200 and abs(surprise(second, logits[1] / warmth)) < 4
    assert surprise(drawn[:, 0], logits[0]) > 6  # another temperature would be seen
