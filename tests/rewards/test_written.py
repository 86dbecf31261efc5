"""Written scores with made-up sources: what is asked, what is asked again, what stays no score."""

import collections
import re
import types

import numpy as np
import pytest
import tiny

from srum_jax.data.schema import Text
from srum_jax.generation.text_generator import GeneratedText
from srum_jax.rewards import judge, parsing, written
from srum_jax.rewards.boxes import regions
from srum_jax.rewards.boxes.regions import PromptedImage, Proposals
from srum_jax.rewards.judge import OK, JudgeSettings
from srum_jax.rewards.written import ModelText, QuestionRequest, WrittenAnswer, WrittenJudge

COMPONENTS = regions.ComponentsProposer()
BOXES = {1: (3.0, 3.0, 15.0, 15.0), 2: (19.0, 4.0, 29.0, 14.0), 3: (4.0, 20.0, 12.0, 28.0)}


def picture(count=3):
    image = np.full((32, 32, 3), 20, np.uint8)
    for number in range(1, count + 1):
        x0, y0, x1, y1 = map(int, BOXES[number])
        image[y0:y1, x0:x1] = (220, 60 * number, 40)
    return image


class Script:
    """A source that answers by `reply(request, attempt)` and remembers what it was asked."""

    def __init__(self, reply):
        self.reply, self.calls = reply, []

    def answer(self, requests, *, temperature, params):
        self.calls.append((list(requests), temperature, [request.seed for request in requests]))
        answers = [self.reply(request, len(self.calls) - 1) for request in requests]
        return [WrittenAnswer(a) if isinstance(a, str) else a for a in answers]


def asked(request):
    """The regions that a question lists; none for the question about the whole."""
    return [int(x) for x in re.findall(r"^Region (\d+):", request.text, re.MULTILINE)]


def good(request, attempt=0):
    """A model that does as it is told: region n gets 0.n, the whole 0.9."""
    blocks = [f"Region {n}\nReason: it is there.\nScore: 0.{n}" for n in asked(request)]
    return "<think>Let me see.</think>\n" + "\n\n".join(blocks or ["Reason: fine.\nScore: 0.9"])


def judged(reply, images=None, *, counts=None, **how):
    images = [picture()] if images is None else images
    script = Script(reply)
    prompted = [PromptedImage(image, "a  red\nhorse", f"p{n}") for n, image in enumerate(images)]
    settings = JudgeSettings(**{"view": "coordinates", **how})
    counts = collections.Counter() if counts is None else counts
    result = WrittenJudge(script, settings, counts).judge(Proposals.of(COMPONENTS, prompted))
    return result, script


# -- what is asked ---------------------------------------------------------------------------------


def test_the_words_are_pinned():
    """Scores made with other words are not comparable: a change needs a new VERSION."""
    assert (written.VERSION, parsing.VERSION, written.protocol_hash()) == (
        "2",
        "2",
        "bd1e7fceaeda",
    )


def test_a_change_of_any_word_changes_the_hash(monkeypatch):
    before = written.protocol_hash()
    for table in ("TEMPLATES", "OPENINGS", "REGION"):
        for key, words in getattr(written, table).items():
            monkeypatch.setitem(getattr(written, table), key, words + " ")
            assert written.protocol_hash() != before
            monkeypatch.undo()
    assert written.protocol_hash() == before


def test_the_bands_of_the_paper_are_named():
    for words in written.TEMPLATES.values():
        for band in ("1.0:", "0.5 to 0.9:", "-0.4 to 0.4:", "-0.9 to -0.5:", "-1.0:"):
            assert f"\n{band}" in words
        assert "Reason: <" in words and "required" in words and "Score: <" in words


@pytest.mark.parametrize("view", written.OPENINGS)
def test_views(view):
    _, script = judged(good, view=view)
    ((requests, temperature, _),) = script.calls
    whole, layout, *parts = requests
    assert temperature == 0 and whole.text != layout.text
    for one in (whole, layout):
        assert asked(one) == [] and (one.image == picture()).all()
    assert [asked(part) for part in parts] == ([[1], [2], [3]] if view == "crop" else [[1, 2, 3]])
    for part in parts:
        assert '"a red horse"' in part.text and "{" not in part.text
    if view == "coordinates":
        assert "32 by 32 pixels" in parts[0].text and (parts[0].image == picture()).all()
        assert "Region 2: x from 19 to 29 and y from 4 to 14" in parts[0].text
    if view == "outline":
        assert (parts[0].image == written.outlined(picture(), BOXES)).all()
    if view == "crop":
        assert (parts[1].image == regions.crop(picture(), BOXES[2], 1)).all()


def test_outlines_frame_the_boxes_and_nothing_else():
    image = picture()
    framed = written.outlined(image, BOXES)
    factor = framed.shape[0] // 32
    assert framed.shape == (384, 384, 3) and framed.dtype == np.uint8 and factor == 12
    changed = (framed != image.repeat(factor, 0).repeat(factor, 1)).any(axis=-1)
    inside = np.zeros_like(changed)
    for number, (x0, y0, x1, y1) in BOXES.items():
        box = slice(int(y0) * factor, int(y1) * factor), slice(int(x0) * factor, int(x1) * factor)
        inside[box] = True
        rim = changed[box]
        color = tuple(bytes.fromhex(written.COLORS[number - 1][1:]))
        assert rim[-1].all() and rim[:, -1].all() and tuple(framed[box][-1, -1]) == color
        assert changed[box].mean() < 0.5
    assert changed.any() and not changed[~inside].any()


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (31, 31, 32, 32), (0, 0, 32, 32), (5, 5, 5, 5)])
def test_outlines_of_odd_boxes(box):
    assert written.outlined(picture(), {16: box}).shape == (384, 384, 3)
    big = np.zeros((600, 500, 3), np.uint8)
    assert written.outlined(big, {1: box}).shape == big.shape


def test_a_prompt_with_braces_and_its_own_regions():
    prompt = "a {horse}\nRegion 1: 1.0"
    text = written.regions_request(picture(), prompt, {2: BOXES[2]}, "coordinates").text
    assert '"a {horse} Region 1: 1.0"' in text and asked(QuestionRequest(None, text)) == [2]


# -- scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", written.OPENINGS)
def test_scores_of_ragged_images(view):
    images = [picture(3), picture(0), picture(1)]
    counts = collections.Counter()
    result, script = judged(good, images, view=view, counts=counts)
    assert len(script.calls) == 1 and [len(j.regions) for j in result] == [3, 0, 1]
    for judgement in result:
        assert judgement.image_score == pytest.approx(0.9) and judgement.image_status == OK
        kept = {answer.kind: answer.p for answer in judgement.answers}
        assert kept == {"whole": 0.95, "layout": 0.95} and judgement.coverage == 1
        assert judgement.parts == {"global": 0.95, "layout": 0.95}
        for number, region in enumerate(judgement.regions, start=1):
            assert region.bbox == BOXES[number] and region.proposer == "components"
            assert (region.score, region.status) == (number / 10, OK)
    assert counts == {
        "questions": 6 + (4 if view == "crop" else 2), "questions repeated": 0, "strangers": 0
    }  # fmt: skip


def test_only_what_is_not_read_is_asked_again():
    def reply(request, attempt):
        wanted = asked(request)
        if attempt == 0:
            return "Region 1: 0.1\nRegion 2: 95\nRegion 9: 0.5" if wanted else "Score: maybe"
        if attempt == 1:
            return "Region 1: 0.8\nRegion 3: .3" if wanted else "Score: 0.4"
        assert wanted == [2]
        return "Region 2: -0.2"

    counts = collections.Counter()
    (result,), script = judged(reply, counts=counts, attempts=4, temperature=0.6)
    assert [[asked(r) for r in requests] for requests, *_ in script.calls] == [
        [[], [], [1, 2, 3]],
        [[], [], [2, 3]],
        [[2]],
    ]
    assert [region.score for region in result.regions] == [0.1, -0.2, 0.3]
    assert result.image_score == pytest.approx(0.4)
    assert [temperature for _, temperature, _ in script.calls] == [0, 0.6, 0.6]
    assert counts == {"questions": 7, "questions repeated": 4, "strangers": 2}


def test_seeds_are_a_function_of_run_image_question_and_attempt():
    def seeds(seed=0, images=2):
        _, script = judged(lambda *_: "", [picture()] * images, seed=seed)
        return [list(seeds) for *_, seeds in script.calls]

    first = seeds()
    every = [s for call in first for s in call]
    assert len(set(every)) == len(every) == 18 and all(0 <= s < 2**32 for s in every)
    assert seeds() == first != seeds(seed=1)
    assert [call[:3] for call in first] == seeds(images=1)


@pytest.mark.parametrize(
    "answer,status",
    [
        ("", parsing.MISSING),
        ("Region 1\nRegion 2\nRegion 3", judge.UNPARSED),
        ("Region 1: 7\nRegion 2: 7\nRegion 3: 7", parsing.OUT_OF_RANGE),
        ("\n".join(f"Region {n}: 0.1\nRegion {n}: 0.2" for n in (1, 2, 3)), parsing.CONTRADICTORY),
        ("<think>Region 1: 0.1", parsing.UNFINISHED),
        (WrittenAnswer("Region 1: 0.1\nRegion 2: 0.1", finished=False), parsing.UNFINISHED),
    ],
)
def test_no_score_is_never_a_number(answer, status):
    (result,), script = judged(lambda request, _: answer if asked(request) else "0.5", attempts=2)
    assert [len(requests) for requests, *_ in script.calls] == [3, 1]
    assert [region.status for region in result.regions] == [status] * 3
    assert all(np.isnan(region.score) for region in result.regions)
    assert (result.image_score, result.image_status) == (0.5, OK)  # questions of its own


def test_one_of_the_two_questions_about_the_whole_is_enough():
    def reply(request, _):
        if "composition" in request.text:
            return "I cannot judge this."
        return good(request)

    (result,), _ = judged(reply, attempts=2)
    assert result.image_score == pytest.approx(0.9) and result.coverage == 0.5
    assert [answer.status for answer in result.answers] == [OK, judge.UNPARSED]
    (strict,), _ = judged(reply, attempts=2, min_coverage=0.6)
    assert strict.image_status == judge.LOW_COVERAGE and np.isnan(strict.image_score)


def test_a_perfect_judge_scores_a_right_picture_high_whatever_its_prompt():
    """Of a prompt that says nothing about the layout a good picture's layout is no middling one."""
    assert "if it asks for none" in written.TEMPLATES["layout"].partition("0.5 to 0.9")[0]
    (result,), _ = judged(lambda request, _: good(request).replace("0.9", "1.0"))
    assert result.image_score == pytest.approx(1.0)


def test_failures_without_a_text_are_final():
    def reply(request, _):
        return WrittenAnswer("", failure="timeout") if asked(request) else WrittenAnswer("")

    (result,), script = judged(reply, attempts=3)
    assert [len(requests) for requests, *_ in script.calls] == [3, 2, 2]
    assert {region.status for region in result.regions} == {"timeout"}
    assert result.image_status == judge.UNPARSED and np.isnan(result.image_score)


def test_many_questions_go_out_in_parts(monkeypatch):
    monkeypatch.setattr(written, "AT_ONCE", 3)
    result, script = judged(good, [picture()] * 4, attempts=1)
    assert [len(requests) for requests, *_ in script.calls] == [3, 3, 3, 3]
    assert all(r.status == OK for j in result for r in j.regions)


def test_regions_alone():
    script = Script(good)
    images = [PromptedImage(picture(n), "a horse", f"{n}") for n in (2, 0)]
    judging = WrittenJudge(script, JudgeSettings(view="coordinates"))
    found = judging.judge(Proposals.of(COMPONENTS, images), whole=False)
    assert [[r.score for r in mine.regions] for mine in found] == [[0.1, 0.2], []]
    assert {(mine.image_status, np.isnan(mine.image_score)) for mine in found} == {
        (judge.NOT_ASKED, True)
    }
    assert [asked(r) for requests, *_ in script.calls for r in requests] == [[1, 2]]


def test_wrong_calls_are_named():
    silent = types.SimpleNamespace(answer=lambda *_, **__: [])
    settings = JudgeSettings(view="coordinates")
    with pytest.raises(ValueError, match="0 answers to 3 questions"):
        proposed = Proposals.of(COMPONENTS, [PromptedImage(picture())])
        WrittenJudge(silent, settings).judge(proposed)
    with pytest.raises(ValueError, match="expected uint8"):
        Proposals.of(COMPONENTS, [PromptedImage(np.zeros((4, 4)))])


# -- the model itself ------------------------------------------------------------------------------


class Tokens:
    """Every character is a token; "ß" is not in the vocabulary."""

    def encode(self, words):
        if "ß" in words:
            raise ValueError("unknown word")
        return [1 + ord(c) % 7 for c in words]

    def text(self, words):
        return Text(np.array(self.encode(words), np.int32))


def model_text(texts, **how):
    """The model as a source, its generator giving `texts`, and the calls of that generator."""
    calls = []

    def generate(contexts, **given):
        calls.append((contexts, given))
        return [GeneratedText(text, (), finished) for text, finished in texts[: len(contexts)]]

    values = dict(window=4000, max_text=4096, max_tokens=50, think=True) | how
    generator, layout = types.SimpleNamespace(generate=generate), tiny.MODEL.layout
    return ModelText(generator, layout, Tokens(), **values), calls


def test_the_model_as_a_source():
    source, calls = model_text([("0.5", True), ("0.", False)])
    texts = ("a", "straße", "b" * 9)
    requests = [QuestionRequest(picture(), text, seed) for seed, text in enumerate(texts, 7)]
    answers = source.answer(requests, temperature=0.7, params="new")
    assert answers == [
        WrittenAnswer("0.5"),
        WrittenAnswer("", failure=judge.UNKNOWN_WORDS),
        WrittenAnswer("0.", False),
    ]
    ((contexts, given),) = calls
    assert given == dict(max_tokens=50, temperature=0.7, seeds=[7, 9], params="new")
    assert [[type(item).__name__ for item in c] for c in contexts] == [
        ["Text", "Picture", "Text"]
    ] * 2
    assert len(contexts[1][2].ids) == 9
    plain, calls = model_text([("0.5", True)], think=False)
    assert plain.answer(requests[:1], temperature=0.0, params=None) == [WrittenAnswer("0.5")]
    assert [type(item).__name__ for item in calls[0][0][0]] == ["Picture", "Text"]
    plain.answer([QuestionRequest(None, "a")], temperature=0.0, params=None)
    assert [type(item).__name__ for item in calls[1][0][0]] == ["Text"]


def test_questions_that_do_not_fit_the_window():
    source, calls = model_text([("0.5", True)], window=500, think=False)
    requests = [QuestionRequest(picture(), "a" * 600), QuestionRequest(picture(), "a")]
    assert source.answer(requests, temperature=0.0, params=None) == [
        WrittenAnswer("", failure=written.TOO_LONG),
        WrittenAnswer("0.5"),
    ]
    (answer,) = source.answer(requests[:1], temperature=0.0, params=None)
    assert answer.failure == written.TOO_LONG
    assert len(calls) == 1


def test_the_statuses_are_a_closed_set():
    assert len(set(written.STATUSES)) == len(written.STATUSES)
    assert OK not in written.AGAIN and set(written.AGAIN) < set(written.STATUSES)
