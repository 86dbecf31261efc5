"""First tokens as real servers list them: what is read, and what is refused in words."""

import copy
import json
import math
import random

import pytest
from judge_server import listed, with_logprobs

from srum_jax.rewards import logprobs

LN = {p: math.log(p) for p in (0.7, 0.2, 0.05, 0.02)}
TOP = {"Yes": LN[0.7], "No": LN[0.2], " Yes": LN[0.05]}


def entry(token, logprob, raw=(), **more):
    return {"token": token, "logprob": logprob, "bytes": list(raw or token.encode()), **more}


# Forms of servers, each with the source that was read for it.
SERVERS = {
    # OpenAI, API reference of chat completions: bytes of each token, up to 20 of them listed.
    "OpenAI": listed(TOP),
    # The same: bytes are null where a token has none of its own, and here all of them.
    "OpenAI without bytes": listed(TOP, raw=False),
    # vLLM, entrypoints/openai/chat_completion/serving.py, _create_chat_logprobs: the sampled token
    # is the first listed, and probabilities below exp(-9999) are written as that.
    "vLLM": listed(TOP | {"!": -9999.0}),
    # SGLang, entrypoints/openai/serving_chat.py, _process_logprobs_tokens: no "refusal" field, and
    # the token's own entry is told apart from the listed ones.
    "SGLang": {
        "content": [entry("Yes", LN[0.7], top_logprobs=[entry(*one) for one in TOP.items()])]
    },
    # llama.cpp, tools/server/server-task.cpp, probs_vector_to_json: ids, and for a probability of 0
    # the lowest float.
    "llama.cpp": {
        "content": [
            entry(
                "Yes",
                LN[0.7],
                id=9642,
                top_logprobs=[
                    *(entry(*one, id=i) for i, one in enumerate(TOP.items())),
                    entry("!", -3.4028234663852886e38, id=0),
                ],
            )
        ]
    },
    # Several servers, at the limit that they have: fewer than asked for, the own one not among them
    # (InternLM/lmdeploy, issue 1548).
    "own one apart": listed({"No": LN[0.2], " Yes": LN[0.05]}, own=("Yes", LN[0.7])),
    # Lists of the older completions interface inside chat completions: Together, llama-cpp-python
    # (abetlen/llama-cpp-python, issue 2) and early vLLM (vllm-project/vllm, pull request 2918).
    "older lists": {
        "text_offset": [0],
        "tokens": ["Yes", "."],
        "token_logprobs": [LN[0.7], -0.1],
        "top_logprobs": [TOP, {".": -0.1}],
    },
    # Early vLLM spelled tokens as the vocabulary does, a blank as SentencePiece or BPE do.
    "blanks of SentencePiece": listed({"Yes": LN[0.7], "No": LN[0.2], "\u2581Yes": LN[0.05]}),
    "blanks of byte-level BPE": listed({"Yes": LN[0.7], "No": LN[0.2], "\u0120Yes": LN[0.05]}),
    # JSON has no minus infinity: null in its place.
    "null for nothing": listed(TOP | {"!": None}),
}


def read(given, text="Yes", finished=False, **message):
    choice = json.loads(json.dumps(with_logprobs(given, text)))["choices"][0]
    choice["message"] |= message
    return logprobs.first_token(choice, text, finished=finished)


@pytest.mark.parametrize("server", SERVERS)
def test_forms_of_servers(server):
    found = read(SERVERS[server])
    assert found.text == "Yes"
    assert [found.p(x) for x in ("Yes", "No", " Yes")] == pytest.approx([0.7, 0.2, 0.05])
    assert found.p("yes") is None and found.p(" No") is None
    least = 0.0 if "!" in json.dumps(SERVERS[server]) else 0.05
    assert found.bound == pytest.approx(least)


def test_what_is_not_listed_is_bounded():
    assert read(listed({"Yes": LN[0.7], "No": LN[0.2]})).bound == pytest.approx(0.1)  # what is left
    assert read(listed({"Yes": LN[0.7]} | {f"{n}": LN[0.02] for n in range(5)})).bound == (
        pytest.approx(0.02)  # less likely than the least likely one
    )
    alone = read(listed({}, own=("Yes", LN[0.7])))  # TensorRT-LLM without its list
    assert alone.p("Yes") == pytest.approx(0.7) and alone.bound == pytest.approx(0.3)
    assert read(listed({"Yes": 1e-7})).bound == 0.0 and read(listed({"Yes": 1e-7})).p("Yes") == 1.0


def test_tokens_of_one_spelling_count_together():
    """Two ids of a vocabulary may be read alike; vLLM lists both."""
    given = listed(TOP)
    given["content"][0]["top_logprobs"].append(entry("Yes", LN[0.02]))
    assert read(given).p("Yes") == pytest.approx(0.72)


def test_part_of_a_letter_is_known_by_its_bytes():
    """llama.cpp cuts `token` at the last whole letter; vLLM, Ollama (issue 13497) give U+FFFD."""
    given = listed(TOP)
    given["content"][0]["top_logprobs"] += [entry("", LN[0.02], raw=(0xE6, 0x98))]
    found = read(given)
    assert found.p("") is None and found.listed[b"\xe6\x98"] == pytest.approx(0.02)
    alone = listed({"\ufffd": LN[0.7]})
    assert read(alone, text="").text == "\ufffd"


def test_an_end_in_place_of_an_answer():
    found = read(listed({"<|im_end|>": LN[0.7], "Yes": LN[0.2]}), text="", finished=True)
    assert found.text == "<|im_end|>" and found.p("Yes") == pytest.approx(0.2)


NOTHING = [
    *(None, [], {}, "no", 0.5, {"content": None}, {"content": []}, {"content": {}}),
    *({"content": [None]}, {"content": [{"token": "Yes"}]}, {"tokens": [], "token_logprobs": []}),
    {"tokens": ["Yes"], "token_logprobs": None},
    {"content": [{"token": 5, "logprob": -0.1, "bytes": None, "top_logprobs": []}]},
    *(listed({"Yes": bad}) for bad in (True, "-0.1", math.nan, 20.5, [], 10**400)),
    listed({"Yes": -9999.0}),  # a default, of a token that was never counted
    listed({"Yes": -0.1, "No": -0.2}),  # more than there is
    listed({"token_id:9642": -0.1}),  # vLLM with --return-tokens-as-token-ids
]


@pytest.mark.parametrize("given", NOTHING, ids=lambda given: str(given)[:60])
def test_what_cannot_be_read_is_refused(given):
    with pytest.raises(ValueError, match=r"logprobs|log-probability|add up|no token|token ids"):
        read(given)


def test_raw_logits_are_no_probabilities():
    """vLLM with --logprobs-mode raw_logits."""
    with pytest.raises(ValueError, match="log-probability"):
        read(listed({"Yes": 21.3, "No": 17.0}))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_thought_is_no_answer(name):
    """sgl-project/sglang, issue 25055: logprobs of the thought before those of the answer."""
    thought = listed({"<think>": -0.01, "Yes": -5.0})
    for given, text, message in (
        (thought, "Yes", {name: "Let me see."}),
        (thought, "<think>\nLet", {}),  # no parser of thoughts
        (listed({"Okay": -0.1}), "", {}),  # cut in the thought
        (listed({"Okay": -0.1}), "Yes", {name: "Okay, the user"}),
    ):
        with pytest.raises(ValueError, match="begins a thought"):
            read(given, text, **message)
    aligned = read(listed(TOP), "Yes", **{name: "Let me see."})  # servers that list the answer's
    assert aligned.p("Yes") == pytest.approx(0.7)


def test_random_damage_raises_nothing_else():
    rng = random.Random(0)
    bits = [None, [], {}, "", "x", -1, 1e400, True, {"content": 3}, [[]], -0.5]
    for _ in range(3000):
        given = copy.deepcopy(rng.choice(list(SERVERS.values())))
        place = given
        while isinstance(place, (dict, list)) and place:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if rng.random() < 0.3 or not isinstance(place[key], (dict, list)):
                place[key] = rng.choice(bits)
                break
            place = place[key]
        try:
            found = logprobs.first_token({"logprobs": given, "message": {}}, "Yes", finished=True)
        except ValueError:
            continue
        assert all(0 <= p <= 1 for p in found.listed.values()) and 0 <= found.bound <= 1
