"""Judges that suites ask: a loaded model and a server, what they reply and what they cannot."""

import dataclasses
import json
import math
import os
import re
from unittest import mock

import jax
import numpy as np
import pytest
import tiny
from judge_server import Server, listed, reply, with_logprobs

from srum_jax.core.errors import BadInput
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.evals import suite_judges
from srum_jax.evals.suite import JudgeReply, JudgeRequest
from srum_jax.evals.suite_judges import (
    NO_LOGPROBS,
    ExternalJudge,
    SelfJudge,
    cost,
    said_first,
)
from srum_jax.generation.answer_scorer import AnswerScorer
from srum_jax.generation.text_generator import TextGenerator
from srum_jax.rewards import external, written
from srum_jax.rewards.judge import UNKNOWN_WORDS
from srum_jax.worlds.shapes import examples, questions

PICTURES = [questions.understanding_example(5, i)[0] for i in range(4)]
ASK, SYSTEM = "is there a red circle ?", "describe the image ."
FORMS = ("yes", "Yes", "no", "two")


def request(number=0, text=ASK, images=1, **more):
    shown = tuple(PICTURES[(number + i) % 4] for i in range(images))
    return JudgeRequest(f"r{number}", "c", shown, text, **more)


# ---------------------------------------------------------------------------------- a loaded model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(examples.write_tokenizer(tmp_path_factory.mktemp("words")).parent)


def self_judge(tokenizer, params, **how):
    scorer = AnswerScorer(params, tiny.MODEL, tokenizer, 4)
    generator = TextGenerator(params, tiny.MODEL, tokenizer, 4, how.pop("window", 512))
    return SelfJudge(generator, scorer, tokenizer, tiny.MODEL.layout, **how)


@pytest.fixture(scope="module")
def judge(tokenizer):
    return self_judge(tokenizer, tiny.weights(scale=0.7)[0])  # what is asked and shown matters


@pytest.fixture(scope="module")
def mixed(judge):
    """Requests of all kinds, and what they get when all are asked together."""
    some = [
        request(0, max_tokens=6),
        request(1, first_token=FORMS),
        request(2, images=2, max_tokens=6),
        request(3, "the weather ?", max_tokens=6),
        request(0, first_token=FORMS, system=SYSTEM),
        request(1, max_tokens=3, system=SYSTEM),
        request(1, images=4, first_token=FORMS),
        request(0, images=0, first_token=("no",)),
        request(3, images=0, max_tokens=6),
        request(2, first_token=FORMS),
    ]
    return some, judge.ask(some)


def test_every_request_has_a_reply_in_order(mixed):
    requests, replies = mixed
    assert [one.status for one in replies] == [
        UNKNOWN_WORDS if "weather" in r.text else "ok" for r in requests
    ]
    for asked, given in zip(requests, replies, strict=True):
        assert set(given.p) == (set(asked.first_token) if given.status == "ok" else set())
        assert given.bound == 0.0
        if asked.first_token:
            assert all(0 <= p <= 1 for p in given.p.values()) and sum(given.p.values()) > 0
            assert len(given.text.split()) <= 1
        else:
            assert len(given.text.split()) <= asked.max_tokens


def test_what_else_is_asked_changes_nothing(judge, mixed):
    requests, replies = mixed
    for asked, given in zip(requests, replies, strict=True):
        (alone,) = judge.ask([asked])
        assert (alone.text, alone.status) == (given.text, given.status)
        assert alone.p == pytest.approx(given.p, abs=1e-6)
    backwards = judge.ask(requests[::-1])[::-1]
    assert [one.text for one in backwards] == [one.text for one in replies]


def test_parts_in_memory_change_nothing(judge, mixed, monkeypatch):
    requests, replies = mixed
    monkeypatch.setattr(suite_judges, "AT_ONCE", 3)
    for again, given in zip(judge.ask(requests), replies, strict=True):
        assert again.text == given.text and again.p == pytest.approx(given.p, abs=1e-6)


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("system", ["", SYSTEM])
def test_the_likeliest_first_token_is_the_first_word_written(judge, images, system):
    """Both ways read the system prompt, the images and the text in this order."""
    how = dict(images=images, system=system)
    words, first = judge.ask(
        [request(1, max_tokens=1, **how), request(1, first_token=("no",), **how)]
    )
    assert words.text == first.text


def test_images_text_and_system_prompt_matter(judge):
    kinds = [dict(), dict(number=2), dict(system=SYSTEM), dict(images=2), dict(images=0)]
    kinds += [dict(text="how many objects are there ?")]
    found = judge.ask([request(**{"first_token": FORMS, **kind}) for kind in kinds])
    numbers = [tuple(np.round(list(one.p.values()), 6)) for one in found]
    assert len(set(numbers)) == len(kinds)


def test_texts_with_one_first_token_both_have_its_probability(judge, tokenizer):
    texts = ("yes", "Yes", " yes", "yes no", "no", "2", "")
    (given,) = judge.ask([request(first_token=texts)])
    assert tokenizer.encode("yes no")[0] == tokenizer.id("yes")
    assert given.p["yes"] == given.p["Yes"] == given.p[" yes"] == given.p["yes no"] > 0
    assert given.p["no"] > 0 and given.p["2"] == given.p[""] == 0  # words cannot say them
    direct = judge.scorer.probabilities([PICTURES[0]], [[ASK]], [[[tokenizer.id("no")]]])
    assert given.p["no"] == pytest.approx(float(direct[0][0][0]))


def test_words_that_a_vocabulary_lacks(judge):
    cases = [
        request(text="a zebra ?"),
        request(system="You are a judge."),
        request(first_token=("2", "seven")),
        request(text="a zebra ?", first_token=FORMS),
        request(text="<|im_end|>"),
        request(text="\ud800"),
    ]
    assert judge.ask(cases) == [JudgeReply(status=UNKNOWN_WORDS)] * len(cases)
    assert judge.ask([]) == []


def test_requests_that_do_not_fit_the_window(tokenizer, judge):
    small = self_judge(tokenizer, judge.generator.params, window=40)
    fits, long, many = small.ask(
        [request(max_tokens=6), request(max_tokens=60), request(images=4, first_token=FORMS)]
    )
    assert fits.status == "ok" and long.status == many.status == written.TOO_LONG


def test_a_world_s_model_is_asked_in_its_language(tokenizer, judge):
    """Plain English becomes the sentence that the model was trained on."""
    speaks = dataclasses.replace(judge, language="shapes")
    plain = "What is the circle's colour, please?"
    said = speaks.ask([request(text=plain, max_tokens=4), request(text=plain, first_token=FORMS)])
    own = speaks.ask(
        [
            request(text="what color is the circle ?", max_tokens=4),
            request(text="what color is the circle ?", first_token=FORMS),
        ]
    )
    assert said == own and all(one.status == "ok" for one in said)
    (lost,) = speaks.ask([request(text="Rate the image from 0 to 100.")])
    assert lost == JudgeReply(status=UNKNOWN_WORDS)


def test_broken_weights_are_no_reply(tokenizer):
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), tiny.weights()[0])
    judge = self_judge(tokenizer, broken)
    for one in (request(max_tokens=4), request(first_token=FORMS)):
        with pytest.raises(BadInput, match="NaN or infinite"):
            judge.ask([one])


def test_it_says_who_it_is(judge):
    assert judge.name == "self-judge" and json.loads(json.dumps(dict(judge.decoding)))
    assert re.search(r"at most \d+ pixels", judge.decoding["images"])
    assert "params" not in repr(judge)


# ---------------------------------------------------------------------------------------- a server


@pytest.fixture
def serve():
    servers = []

    def start(behave):
        servers.append(Server(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def external_judge(server, tokenizer=None, **how):
    return ExternalJudge(server.endpoint(**how), tokenizer=tokenizer, sleep=server.waits.append)


def test_words_of_a_server(serve):
    def behave(handler, number):
        handler.give(reply(f"Score: {number}", model="m-0526"))

    server = serve(behave)
    judge = external_judge(server, concurrency=1)
    some = [request(n, images=n, system="Judge.", max_tokens=100 + n) for n in range(3)]
    assert judge.ask(some) == [JudgeReply(f"Score: {n}", served="m-0526") for n in range(3)]
    for n, (_, _, body) in enumerate(server.http.asked):
        system, user = body["messages"]
        assert system["content"] == "Judge." and body["max_tokens"] == 100 + n
        assert [part["type"] for part in user["content"]] == ["image_url"] * n + ["text"]
        assert user["content"][-1]["text"] == ASK and body["temperature"] == 0
    assert judge.name == "m"
    assert judge.ask([]) == []


def test_first_tokens_of_a_server(serve):
    given = listed({"Yes": math.log(0.6), " yes": math.log(0.2), "No": math.log(0.1)})
    server = serve(lambda handler, _: handler.give(with_logprobs(given)))
    texts = ("Yes", "yes", " yes", " Yes", "No")
    (said,) = external_judge(server).ask([request(first_token=texts)])
    assert said.text == "Yes" and said.status == "ok"
    assert said.p == pytest.approx({"Yes": 0.6, "yes": 0, " yes": 0.2, " Yes": 0, "No": 0.1})
    assert said.bound == pytest.approx(0.1)  # of "yes" and " Yes", which are not listed
    (every,) = external_judge(server).ask([request(first_token=("Yes", "No"))])
    assert every.bound == 0.0
    assert server.http.asked[0][2]["max_tokens"] == suite_judges.FEW_WORDS


class Cut:
    """A vocabulary in which a blank before a digit is a token of its own, as Qwen's."""

    def encode(self, text):
        if text == "":
            raise ValueError("nothing")
        return [ord(text[0])] if text[0] == " " and text[1:].isdigit() else [1000 + len(text), 7]

    def decode(self, ids):
        return {32: " ", 1001: "4", 1004: "four"}[ids[0]]


def test_a_tokenizer_says_how_texts_begin(serve):
    given = listed({"4": math.log(0.6), " ": math.log(0.2), "four": math.log(0.1)})
    server = serve(lambda handler, _: handler.give(with_logprobs(given, "4")))
    texts = ("4", " 4", "four", "")
    (said,) = external_judge(server, Cut()).ask([request(first_token=texts)])
    assert said.p == pytest.approx({"4": 0.6, " 4": 0.2, "four": 0.1, "": 0})
    (alone,) = external_judge(server).ask([request(first_token=texts)])
    assert alone.p == pytest.approx({"4": 0.6, " 4": 0, "four": 0.1, "": 0})


def test_without_logprobs_the_words_are_kept_and_marked(serve):
    server = serve(lambda handler, _: handler.give(reply("Yes.")))
    judge = external_judge(server)
    (said,) = judge.ask([request(first_token=FORMS)])
    assert said == JudgeReply("Yes.", NO_LOGPROBS)
    assert judge.source.reasons == {NO_LOGPROBS: "the reply has no logprobs"}
    assert said_first(said.text, ("Yes", " Yes", "yes", "No")) == {
        **{"Yes": 1.0, " Yes": 0.0, "yes": 0.0, "No": 0.0}
    }


@pytest.mark.parametrize(
    "words,right",
    [
        *(("4", "4"), ("**four**", "four"), ("Four apples", ""), ("", ""), ("...", "")),
        *(("Nobody", ""), (" no, there", "no"), ("42", "")),
    ],
)
def test_words_begin_with_whole_words_alone(words, right):
    texts = ("4", " 4", "four", "no", "")
    assert said_first(words, texts) == {
        text: float(text == right and bool(right)) for text in texts
    }


FAILURES = {
    external.TIMEOUT: lambda h: h.give(b"", 408),
    external.RATE_LIMITED: lambda h: h.give(b"", 429),
    external.SERVER_ERROR: lambda h: h.give(b"", 502),
    external.DENIED: lambda h: h.give(b"", 401),
    external.REFUSED: lambda h: h.give(b"", 413),
    external.FILTERED: lambda h: h.give(reply(why="content_filter")),
    external.UNREACHABLE: lambda h: None,
    external.BAD_REPLY: lambda h: h.give(b"{"),
}


@pytest.mark.parametrize("status", FAILURES)
def test_whatever_a_server_does_is_a_status(serve, status):
    """Of the second request alone: the others are replied to."""

    def behave(handler, number):
        body = handler.server.asked[number][2]
        if body["messages"][0]["content"][-1]["text"] != "bad":
            return handler.give(with_logprobs(listed({"Yes": -0.1})))
        FAILURES[status](handler)

    server = serve(behave)
    some = [request(), request(1, "bad", first_token=FORMS), request(2, first_token=("Yes",))]
    good, bad, last = external_judge(server, attempts=2).ask(some)
    assert good == JudgeReply("Yes") and bad == JudgeReply(status=status)
    assert last.p == {"Yes": pytest.approx(math.exp(-0.1))}
    assert set(FAILURES) == set(external.STATUSES)


def test_few_images_lie_in_memory_at_a_time(serve, monkeypatch):
    monkeypatch.setattr(suite_judges, "AT_ONCE", 2)
    server = serve(lambda handler, _: handler.give(reply()))
    ahead = []

    class Lazy(list):
        def __getitem__(self, i):
            ahead.append(i - len(server.http.asked))
            return super().__getitem__(i)

    said = external_judge(server).ask(Lazy(request(n) for n in range(5)))
    assert said == [JudgeReply("0.5")] * 5 and max(ahead) <= 1


def test_a_missing_key_is_told_before_anything_is_asked(serve):
    server = serve(lambda handler, _: handler.give(reply()))
    with pytest.raises(BadInput, match="that key_env names is not set"):
        external_judge(server, key_env="NO_SUCH_KEY")
    with mock.patch.dict(os.environ, {"JUDGE_KEY": "sk-sesame"}):
        judge = external_judge(server, key_env="JUDGE_KEY")
    assert judge.ask([request()]) == [JudgeReply("0.5")]  # kept, though the variable is gone
    assert "sesame" not in repr(judge) + str(judge.decoding)


# ----------------------------------------------------------------------------------- what it costs


def test_cost_is_told_before_it_starts():
    image = np.zeros((56, 280, 3), np.uint8)  # 20 tokens of 28 by 28 pixels
    some = [JudgeRequest(f"{n}", "c", (image, image), "x" * 40, max_tokens=10) for n in range(3)]
    found = cost(some)
    assert (found.requests, found.images, found.read, found.written) == (3, 6, 150, 30)
    assert found.tokens_estimate == 180
    assert str(found) == "3 requests with 6 images: about 150 tokens read and at most 30 written"
    first = cost([dataclasses.replace(some[0], first_token=("yes",))])
    assert first.written == suite_judges.FEW_WORDS
    twice = cost(some, 2)
    assert (twice.requests, twice.images, twice.read, twice.written) == (6, 12, 300, 60)
    assert cost([]).tokens_estimate == cost([], 2).requests == 0


def test_cost_looks_at_few_of_many():
    seen = []

    class Lazy(list):
        def __getitem__(self, i):
            seen.append(i)
            return super().__getitem__(i)

    many = Lazy(JudgeRequest(f"{n}", "c", (), "x" * 40, max_tokens=1) for n in range(6012))
    found = cost(many)
    assert len(seen) == 200 and seen[0] == 0 and seen[-1] == 6011
    assert (found.requests, found.read, found.written) == (6012, 60120, 6012)
    assert str(found).startswith("6,012 requests with 0 images: about 60,120 tokens read")
