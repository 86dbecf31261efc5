"""Which prompts are drawn, in which order, and which never are; plans in words before them."""

import collections
import json
import types

import numpy as np
import pytest
import tiny

from srum_jax.core.errors import BadInput
from srum_jax.data.schema import Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import bagel
from srum_jax.stages import generate, preflight, rollout, thinking
from srum_jax.stages.manifest import Workdir
from srum_jax.stages.rollout import Rollout

SIZES = {"color": 400, "shape": 120, "spatial": 60, "rare": 20}  # as such files are: in blocks


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    rows = [
        {"prompt": f"{name} {i}", "category": name} for name in SIZES for i in range(SIZES[name])
    ]
    path.write_text(json.dumps(rows))
    return path


def planned(path, **values):
    return Rollout.of(tiny.load_config("", generate__prompts=str(path), **values))


def shares(prompts):
    counts = collections.Counter(prompt.category for prompt in prompts)
    return {name: counts[name] for name in SIZES}


@pytest.mark.parametrize("count", [30, 60, 150])
def test_every_category_has_its_share_of_what_is_drawn(blocks, count):
    """The first prompts of the file are all of one category."""
    first = planned(blocks, generate__count=count, generate__order="file").of_round(0, count)
    assert shares(first) == dict.fromkeys(SIZES, 0) | {"color": count}
    drawn = planned(blocks, generate__count=count).of_round(0, count)
    for name, size in SIZES.items():
        assert abs(shares(drawn)[name] - count * size / 600) <= 1
    assert len({p.id for p in drawn}) == count


def test_the_seed_says_which(blocks):
    ids = [[p.id for p in planned(blocks, seed=seed).drawable] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2] and sorted(ids[0][:400]) != sorted(ids[2][:400])


@pytest.mark.parametrize("count,rounds", [(100, 1), (100, 5), (200, 3), (600, 1), (10_000, 2)])
def test_what_is_held_back_is_never_drawn(blocks, count, rounds):
    plan = planned(blocks, generate__count=count, rounds=rounds)
    held = {p.id for p in plan.held_back}
    drawn = [p.id for number in range(rounds + 2) for p in plan.of_round(number, count)]
    assert 60 <= len(held) <= rollout.HELD_BACK and not held & set(drawn) and not plan.too_short
    assert len(set(drawn[: count * rounds])) == min(count * rounds, 600 - len(held))
    assert shares(plan.held_back)["color"] < 50  # of all categories too


def test_a_list_too_short_to_hold_any_back_says_so(tmp_path, caplog):
    path = tmp_path / "few.txt"
    path.write_text("".join(f"a horse {i}\n" for i in range(9)))
    plan = planned(path, generate__count=9)
    assert plan.too_short and len(plan.drawable) == 9 == len(plan.held_back)
    assert "9 prompts, too few to hold any back" in caplog.text
    path.write_text("".join(f"a horse {i}\n" for i in range(10)))
    plan = planned(path, generate__count=10)
    assert (len(plan.drawable), len(plan.held_back), plan.too_short) == (9, 1, False)


# -- thinking --------------------------------------------------------------------------------------


class Letters:
    """Every letter is a token."""

    def text(self, words):
        return Text(np.array([ord(c) % 90 for c in words], np.int32))


def test_a_prompt_is_planned_once_and_drawn_behind_its_plan():
    asked, drawn = [], []

    def write(contexts, *, max_tokens, params):
        asked.append((contexts, max_tokens, params))
        plans = [f"plan of {len(prompt.ids)}" for _, prompt in contexts]
        return [types.SimpleNamespace(text=plan) for plan in plans]

    def stream(several, *, params):
        for requests in several:
            drawn.append((requests, params))
            shown = types.SimpleNamespace(image=np.zeros((8, 8, 3)), latent=np.zeros((1, 1, 4)))
            yield [shown] * len(requests)

    sampler = types.SimpleNamespace(stream=stream, settings=types.SimpleNamespace(size=(8, 8)))
    writer = types.SimpleNamespace(generate=write)
    made = thinking.ThinkingSampler(sampler, writer, Letters(), 50)
    ((images, latents),) = made.stream_prompts([(["ab", "ab", "abc"], [1, 2, 3])], params="new")
    assert images.shape == (3, 8, 8, 3) and latents.shape == (3, 1, 1, 4)
    ((contexts, limit, params),) = asked
    assert (len(contexts), limit, params) == (2, 50, "new")
    ((requests, params),) = drawn
    assert [r.seed for r in requests] == [1, 2, 3] and params == "new"
    for request, prompt in zip(requests, ("ab", "ab", "abc"), strict=True):
        system, text, plan = request.context
        assert len(system.ids) > 100 and text.ids.tolist() == Letters().text(prompt).ids.tolist()
        assert plan.ids.tolist() == Letters().text(f"plan of {len(prompt)}").ids.tolist()
        assert request.plain == 1 and len(request.texts) == 2  # guidance knows no plan


def test_plans_are_told_before_they_are_written(tmp_path, monkeypatch):
    folder = tiny.write_model(tmp_path / "model")
    monkeypatch.setattr(thinking, "check", lambda *_: None)  # as of a model with the words
    cfg = tiny.load_config(folder, generate__think=True, generate__think_tokens=1200, rounds=2)
    found = preflight.Checks(("generate",))
    generate.check(cfg, Workdir(tmp_path / "run"), found)
    assert "generate: 10 plans in words, of at most 1,200 tokens each" in found.notes


def test_a_model_of_few_words_cannot_think(tmp_path):
    folder = tiny.write_model(tmp_path / "model", answers=True)
    with pytest.raises(BadInput, match="generate.think: this model cannot think: it lacks words"):
        thinking.check(bagel, Tokenizer.from_folder(folder), "generate.think")
