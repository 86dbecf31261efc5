"""What people write, in many cases: a right value or a refusal, never anything else, never slowly.

Files of prompts and boxes, settings of a checkpoint, a judge's replies and answers, values of a
config.
"""

import dataclasses
import json
import math

import hypothesis_cases
import pytest
from hypothesis import strategies as st

from srum_jax import config
from srum_jax.configs import base
from srum_jax.data import prompts
from srum_jax.data.srum_dataset import SrumDataset
from srum_jax.generation import generation_config
from srum_jax.rewards import external, parsing
from srum_jax.rewards.boxes import proposers
from srum_jax.rewards.boxes.sam import sizes as sam_sizes
from srum_jax.rewards.judge import OK

ENDS = [b"\n", b"\r\n", b"\r", b"\x0b", b"\x0c", "\x85\u2028\u2029".encode()]
PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *ENDS,
                *(
                    b"\xef\xbb\xbf",
                    b"\xff\xfe",
                    b"\x00",
                    b"\xe9",
                    b'"',
                    b",",
                    b"[",
                    b"]",
                    b"{",
                    b"}",
                ),
                *(b"prompt", b"id", b"Category", b'{"prompt": "a dog"}', b'"a"', b"null", b"NaN"),
                *(b'{"prompt": "a", "id": ', b"1e999", b"9" * 5000, b"[" * 3000, b"\\ud800", b":"),
            ]
        ),
        st.binary(max_size=9),
        st.text(max_size=9).map(lambda text: text.encode("utf-8", "surrogatepass")),
    ),
    max_size=20,
).map(b"".join)
JSON = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
        st.sampled_from(["prompt", "x" * 5000, 2**63, -1, 10**400]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["prompt", "Question", "id", "category", "boxes", "x"]), inner
        ),
    ),
    max_leaves=12,
)


def written(value):
    return json.dumps(value).encode()


@hypothesis_cases.counts(quick=300)
def test_a_file_of_prompts_is_read_or_refused(cases, tmp_path):
    def check(data, ending, limit):
        path = tmp_path / f"p{ending}"
        hypothesis_cases.write(path, data)
        found = hypothesis_cases.value_or_refusal(
            lambda: prompts.read(str(path), limit=limit), names=path.name
        )
        for prompt in found.prompts if found else ():
            assert prompt.text == " ".join(prompt.text.split()) and prompt.text
            assert 0 <= prompt.id <= prompts.MAX_ID and "\0" not in prompt.text
            prompt.text.encode()

    rows = st.lists(JSON, max_size=4)
    hypothesis_cases.run(
        check,
        cases,
        data=st.one_of(
            PIECES, rows.map(written), rows.map(lambda some: b"\r".join(map(written, some)))
        ),
        ending=st.sampled_from([".txt", ".json", ".jsonl", ".csv"]),
        limit=st.sampled_from([0.0, 0.5, 9.0]),
    )


@hypothesis_cases.counts(quick=300)
def test_a_file_of_boxes_is_read_or_refused(cases, tmp_path):
    path = tmp_path / "boxes.jsonl"

    def check(data):
        hypothesis_cases.write(path, data)
        found = hypothesis_cases.value_or_refusal(
            lambda: proposers.read_boxes(path), names=path.name
        )
        for x0, y0, x1, y1 in (box for boxes in (found or {}).values() for box in boxes):
            assert 0 <= x0 < x1 < 2**24 and 0 <= y0 < y1 < 2**24

    numbers = st.one_of(st.integers(-1, 9), st.floats(), st.booleans(), st.text(max_size=3))
    box = st.lists(numbers, min_size=3, max_size=5)
    record = st.fixed_dictionaries({"id": JSON, "boxes": st.one_of(JSON, st.lists(box))})
    lines = st.lists(st.one_of(record, JSON), max_size=4)
    hypothesis_cases.run(
        check, cases, data=st.one_of(PIECES, lines.map(lambda x: b"\n".join(map(written, x))))
    )


SETTINGS = [field.name for field in dataclasses.fields(generation_config.GenerationConfig)]
DRAWING = [field.name for field in dataclasses.fields(config.SampleConfig)]


@hypothesis_cases.counts(quick=150)
def test_settings_of_a_checkpoint_are_read_or_refused(cases, tmp_path):
    def check(values):
        text = json.dumps({"srum_jax": values})
        hypothesis_cases.write(tmp_path / "generation_config.json", text)
        found = hypothesis_cases.value_or_refusal(
            lambda: generation_config.from_folder(tmp_path), names="generation_config.json"
        )
        assert found is None or isinstance(found, generation_config.GenerationConfig)

    key = st.text(max_size=3) | st.just("k" * 5000)
    drawing = st.dictionaries(st.sampled_from(DRAWING) | key, JSON, max_size=3)
    one = st.sampled_from(SETTINGS) | key
    values = st.dictionaries(one, JSON | drawing, max_size=3)
    hypothesis_cases.run(check, cases, values=values | JSON)


HUGE = "x" * 2**20
SAM = {"model_type": "sam"}


@pytest.mark.parametrize(
    "name, content, read",
    [
        *(
            ("config.json", content, sam_sizes.read)
            for content in (
                {"model_type": HUGE},
                SAM | {"vision_config": HUGE},
                SAM | {"vision_config": {"hidden_size": HUGE}},
                SAM | {"vision_config": {"hidden_act": HUGE}},
            )
        ),
        *(
            ("data.jsonl", content, lambda folder: SrumDataset(folder / "data.jsonl", folder)[0])
            for content in (
                HUGE,
                {"prompt": "a", "bad_image_file": f"/{HUGE}"},
                *(
                    {"prompt": "a", "bad_image_file": "a", "good_image_file": "a"}
                    | {"vlm_rewards": rewards}
                    for rewards in (
                        [HUGE],
                        [{"score": HUGE}],
                        [{"object": [HUGE]}],
                        [{"bbox": HUGE}],
                        [{"bbox": [HUGE] * 4}],
                    )
                ),
            )
        ),
        *(
            ("boxes.jsonl", content, lambda folder: proposers.read_boxes(folder / "boxes.jsonl"))
            for content in (HUGE, {"id": HUGE}, {"id": "a", "boxes": [HUGE]})
        ),
        *(
            ("generation_config.json", {"srum_jax": content}, generation_config.from_folder)
            for content in (
                HUGE,
                {HUGE: 1},
                {"generate": HUGE},
                {"generate": {HUGE: 1}},
                {"generate": {f"key {n}": 1 for n in range(5000)}},
                {"window": HUGE},
                {"language": HUGE},
                {"frame": f"{{{HUGE}"},
            )
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_of_a_megabyte_is_refused_in_few_words(tmp_path, name, content, read):
    (tmp_path / name).write_text(json.dumps(content))
    assert hypothesis_cases.value_or_refusal(lambda: read(tmp_path)) is None


@hypothesis_cases.counts(quick=300)
def test_a_reply_of_a_judge_is_an_answer_or_a_failure(cases):
    def check(data, first_token):
        asked = external.ChatRequest((), "a question", first_token=first_token)
        try:
            answer = hypothesis_cases.value_or_refusal(lambda: external._read(data, asked))
        except external._Failed as failed:
            assert failed.status in external.STATUSES and len(str(failed.reason)) < 200
        else:
            assert isinstance(answer, external.ChatReply) and isinstance(answer.text, str)
            assert first_token or answer.first is None

    part = st.fixed_dictionaries({}, optional={"type": st.just("text") | JSON, "text": JSON})
    message = st.fixed_dictionaries({"content": JSON | st.lists(part, max_size=3)})
    token = st.fixed_dictionaries(
        {}, optional={"token": JSON | st.text(), "logprob": JSON | st.floats(), "bytes": JSON}
    )
    place = st.fixed_dictionaries({"top_logprobs": st.lists(token | JSON, max_size=3) | JSON})
    listed = st.fixed_dictionaries({"content": st.lists(place | token | JSON, max_size=2) | JSON})
    choice = st.fixed_dictionaries(
        {"message": message | JSON, "finish_reason": st.just("stop") | JSON},
        optional={"logprobs": listed | JSON},
    )
    reply = st.fixed_dictionaries({"choices": st.lists(choice | JSON, max_size=2) | JSON})
    data = PIECES | reply.map(written) | JSON.map(written)
    hypothesis_cases.run(check, cases, data=data, first_token=st.booleans())


WORDS = st.sampled_from(
    [
        *("Region 1", "Region 2:", "Score:", "score", "Reason: a horse", "0.5", "-1", "9/10", "95"),
        *("\n", "\n", " ", "**", "```json", "```", "{", "}", '"score": ', '"region": 1', ",", "["),
        *("<think>", "</think>", "[THINK]", "[/THINK]", "<reasoning>", "I cannot judge this.", "]"),
    ]
)


@hypothesis_cases.counts(quick=300)
def test_an_answer_has_a_score_or_says_why_not(cases):
    def check(parts, ids, finished):
        text = "".join(parts)
        found = hypothesis_cases.value_or_refusal(
            lambda: parsing.parse(text, ids, finished=finished)
        )
        assert list(found.scores) == list(ids)
        for score, status in found.scores.values():
            assert status in parsing.STATUSES
            assert (status == OK) == (not math.isnan(score)) and not abs(score) > 1

    hypothesis_cases.run(
        check,
        cases,
        parts=st.lists(st.one_of(WORDS, WORDS, st.text(max_size=5)), max_size=30),
        ids=st.sampled_from([(parsing.WHOLE,), (1,), (1, 2)]),
        finished=st.booleans(),
    )


KEYS = sorted(config.key_names(config.Config))


@hypothesis_cases.counts(quick=200)
def test_a_config_is_whole_or_refused(cases):
    plain = base.get_config().to_dict()

    def check(key, value):
        values = json.loads(json.dumps(plain))
        *parents, last = key.split(".")
        section = values
        for parent in parents:
            section = section[parent]
        section[last] = value
        found = hypothesis_cases.value_or_refusal(lambda: config.load(values))
        assert found is None or isinstance(found, config.Config)

    odd = st.sampled_from(["", "sk-" + "a" * 5000, 2**31, 2**64, -1, math.inf, math.nan, "a\0b"])
    hypothesis_cases.run(check, cases, key=st.sampled_from(KEYS), value=JSON | odd)


@hypothesis_cases.counts(quick=300)
def test_a_word_of_the_command_line_is_an_override_or_refused(cases):
    def check(name, value):
        said = hypothesis_cases.value_or_refusal(
            lambda: config._override(f"--config.{name}={value}"), names="--config"
        )
        assert said is None or said.startswith("--config")

    names = st.sampled_from(KEYS) | st.text(max_size=12) | st.just("a." * 300)
    hypothesis_cases.run(check, cases, name=names, value=st.text(max_size=9))
