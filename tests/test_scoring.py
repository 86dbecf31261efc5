"""What a scored image costs: what is counted is what is computed, and the script runs."""

import json
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.extend.core import jaxprs_in_params
from tiny import SHAPES

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # scripts: they import one another by plain names

import inference  # noqa: E402
import scoring  # noqa: E402

from srum_jax.core import param_tree  # noqa: E402
from srum_jax.data import packing  # noqa: E402
from srum_jax.data.schema import Example, Lanes, Picture, Text  # noqa: E402
from srum_jax.data.tokenizer import Tokenizer  # noqa: E402
from srum_jax.generation import text_generator  # noqa: E402
from srum_jax.models.bagel import model as bagel  # noqa: E402
from srum_jax.models.bagel import mot  # noqa: E402
from srum_jax.models.bagel.model_config import BAGEL_7B_MOT  # noqa: E402
from srum_jax.rewards import parsing  # noqa: E402


@pytest.fixture(scope="module")
def model():
    loaded, vae_params = jax.tree.map(jnp.asarray, tiny.weights())
    words = Tokenizer.from_folder(inference.base())
    return scoring.Model("tiny", tiny.MODEL, loaded, words, 32), vae_params


def products(jaxpr) -> int:
    """FLOPs of the matrix products of a traced program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(products(inside) for inside in jaxprs_in_params(equation.params))
    return total


def test_the_assumed_answers_are_read_and_count_as_stated():
    ids = tuple(range(1, scoring.REGIONS + 1))
    parsed = parsing.parse(scoring.answer("regions", scoring.REGIONS), ids)
    assert parsed.scores == {i: (0.5, parsing.OK) for i in ids}
    assert parsing.parse(scoring.answer("whole"), (parsing.WHOLE,)).scores == {
        parsing.WHOLE: (0.5, parsing.OK)
    }
    assert len(scoring.Lengths(9).encode(scoring.REASON)) == 20
    tokens = scoring.answer_tokens()
    # "Reason", ":", 20, "Score", ":", " ", "0", ".", "5"; before them "Region", " ", "1", an end.
    assert tokens["whole"] == 28
    assert 5 * (4 + 28) <= tokens["regions"] <= 5 * (4 + 28) + 4


@pytest.mark.slow
def test_rows_are_those_that_are_packed(model, monkeypatch):
    model, _ = model
    packed, pack = [], packing.pack

    def noted(rows, *args, **kwargs):
        packed.extend(packing.total([packing.size(e) for e in row]) for row in rows if row)
        return pack(rows, *args, **kwargs)

    monkeypatch.setattr(packing, "pack", noted)
    scoring.logits_call(model, 1)()
    rows = scoring.logits_rows(model.cfg, model.words, model.side)
    assert sorted((r.tokens, r.patches, r.labels) for r in rows) == sorted(
        (u, p, y) for u, _, p, y, *_ in packed
    )
    assert len(rows) == scoring.REGIONS + 1
    packed.clear()
    scoring.written_call(model, 1, scoring.Writing("written", 2, think=True))()
    rows, behind = scoring.written_rows(model.cfg, model.side, think=True)
    assert sorted((r.tokens, r.patches) for r in rows) == sorted((u, p) for u, _, p, *_ in packed)
    assert (len(rows), len(behind)) == (1, 3)


def test_flops_are_those_of_the_program():
    cfg, abstract = SHAPES, param_tree.abstract(bagel.specs(SHAPES))
    counter = scoring.Counter(cfg, 4)
    shown = Picture(jnp.zeros((16, cfg.vit.patch**2 * 3)), jnp.arange(16))
    example = Example((shown, Text(jnp.full(20, 9), loss=True)))
    batch = packing.pack([[example]], Lanes(40, 0, 16, 21, 0, 0), cfg.layout)

    def forward(weights):
        how = dict(dtype=jnp.float32, remat="none")
        und, _, _ = bagel.forward(weights, cfg, batch, batch.latents, jnp.zeros((1, 0)), **how)
        return bagel.logits(weights, und, batch.label_slots)

    traced = products(jax.make_jaxpr(forward)(abstract).jaxpr)
    assert traced == pytest.approx(counter.read(scoring.Row(16, 40, 21)), rel=1e-3)

    slots, llm = 50, cfg.llm
    kv = jnp.zeros((llm.layers, 1, slots + 1, llm.kv_heads, llm.head_dim))  # and for itself
    cache = mot.WritingCache.of(mot.Cache(kv, kv, jnp.array([slots]), jnp.array([slots])))
    step = jax.make_jaxpr(
        lambda w: text_generator.step(w, cache, jnp.array([5]), cfg=cfg, dtype=kv.dtype)[1]
    )
    row = scoring.Row(16, slots)
    cost = counter.written([row], [slots], 1)
    traced = products(step(abstract).jaxpr)
    assert traced == pytest.approx(cost.flops - counter.read(row), rel=1e-3)
    assert cost.cache == 2 * kv[:, :, 1:].nbytes


def test_costs_of_bagel():
    cfg, ways = BAGEL_7B_MOT, [scoring.Writing("written", 100)]
    costs = scoring.counted(cfg, scoring.Lengths(cfg.llm.vocab), 1024, 2, ways)
    rows = scoring.logits_rows(cfg, scoring.Lengths(cfg.llm.vocab), 1024)
    assert {row.patches for row in rows} == {70 * 70}  # 980 pixels a side
    written = costs["written"]
    # The published 7B: 7.07 of its 7.6 are the layers and the head, the rest the embedding table.
    assert written.weights / 2 / 101 == pytest.approx(7.07e9, rel=0.01)
    assert (written.steps, written.passes, costs["logits"].steps) == (100, 101, 0)
    assert costs["logits"].passes == 6
    bound = 6 * 4900 * 2 * 6.53e9  # the layers alone, for the patches alone
    assert bound < costs["logits"].flops < 1.5 * bound


@pytest.mark.slow
def test_it_runs(model, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scoring, "shapes_base", lambda: model)
    monkeypatch.setattr(inference, "TURN", 0.0)
    scoring.main(["--quick", "--json", str(tmp_path / "scoring.json")])
    made = json.loads((tmp_path / "scoring.json").read_text())
    (record,) = made["measured"]
    assert list(record["seconds"]) == ["logits", "written", "written, thinking"]
    assert all(seconds > 0 for seconds in record["seconds"].values())
    assert made["written_tokens"]["written, thinking"] == 8
    assert set(made["counted"]) == {"shapes base", "BAGEL-7B-MoT"}
    assert set(made["images_per_second"]) == {"generate", "score"}
    said = capsys.readouterr().out
    assert said.count("\n|---|") == 3 and "10× less time at batch 1" in said


def test_another_number_of_steps_is_no_measurement(model, monkeypatch):
    model, _ = model
    short = [text_generator.GeneratedText("", (5,), True)] * 2
    monkeypatch.setattr(text_generator.TextGenerator, "generate", lambda *_, **__: short)
    with pytest.raises(RuntimeError, match="has not 3 tokens"):
        scoring.written_call(model, 1, scoring.Writing("written", 3))()
