"""Counted operations, against the compiler's own count of programs without loops."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from srum_jax.core import param_tree
from srum_jax.data import packing
from srum_jax.data.schema import Lanes
from srum_jax.models.bagel import cost, vae
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import BAGEL_7B_MOT

# Wide enough for products to dominate; one layer each, as the compiler counts a loop once.
WIDE = dataclasses.replace(
    tiny.MODEL,
    llm=dataclasses.replace(tiny.MODEL.llm, hidden=256, heads=4, kv_heads=2, ffn=512),
    vit=dataclasses.replace(tiny.MODEL.vit, hidden=128, heads=2, ffn=256),
)


def test_a_forward_pass_as_the_compiler_counts_it():
    # Every part is more than 5 % of all: none can be left out unnoticed.
    lanes = Lanes(und=96, gen=64, vit=96, labels=384, images=64, regions=0)
    params = param_tree.abstract(bagel.specs(WIDE))
    batch = packing.pack([[], []], lanes, WIDE.layout)

    def run(params, batch, t):
        und, gen, _ = bagel.forward(params, WIDE, batch, batch.latents, t, remat="none")
        return bagel.logits(params, und, batch.label_slots), bagel.velocity(params, gen)

    t = np.zeros(batch.noisy.shape, np.float32)
    compiled = jax.jit(run).lower(params, batch, t).compile()
    work = cost.RowTokens(und=96, gen=64, vit=96, times=64, labels=384)
    counted = compiled.cost_analysis()["flops"]
    assert 2 * cost.forward(WIDE, work) == pytest.approx(counted, rel=0.03)


def test_the_share_of_a_step():
    work = cost.RowTokens(und=256, gen=8192, times=2)
    specs = bagel.specs(BAGEL_7B_MOT)
    gen, _ = param_tree.split(specs, lambda path: path.startswith("blocks/gen/"))
    ahead = cost.forward(BAGEL_7B_MOT, work)
    products, pairs = cost.products(specs, work), cost.attention(BAGEL_7B_MOT, work)
    assert ahead == products + pairs
    # 6.5 billion numbers of an expert's matrices, twice for each of its 8192 tokens.
    assert cost.products(gen, work) == pytest.approx(2 * 6.5e9 * 8192, rel=0.02)

    def of(remat, compared=0, trained=specs):
        return cost.step(BAGEL_7B_MOT, work, trained=trained, remat=remat, compared=compared)

    kept, needed = of("none")
    assert needed == 3 * ahead  # the rule of thumb: a backward pass is two forward ones
    assert kept - needed == pairs // 2
    assert of("full")[0] - kept == ahead and of("dots")[0] - kept == pairs
    assert of("full", compared=1)[1] - needed == ahead
    assert needed - of("full", trained=gen)[1] == products - cost.products(gen, work)


def test_matrices_are_those_that_tokens_go_through():
    llm = BAGEL_7B_MOT.llm
    expert = 28 * (2 * llm.hidden**2 + 2 * llm.hidden * 4 * 128 + 3 * llm.hidden * llm.ffn)
    assert cost.matrices(BAGEL_7B_MOT, cost.RowTokens(7, 0)) == expert
    head = llm.hidden * llm.vocab
    assert cost.matrices(BAGEL_7B_MOT, cost.RowTokens(7, 0, labels=3)) == expert + head


def test_the_decoder_as_the_compiler_counts_it():
    cfg = dataclasses.replace(tiny.MODEL.vae, ch=32, ch_mult=(1, 2), res_blocks=1)
    params = param_tree.abstract(vae.specs(cfg))
    # As few rows as attention takes at once; the compiler leaves out the padding around a picture.
    latents = np.zeros((1, 8, 32, cfg.z), np.float32)
    compiled = jax.jit(lambda p, x: vae.decode(p, cfg, x)).lower(params, latents).compile()
    counted = compiled.cost_analysis()["flops"]
    assert cost.decode(cfg, (16, 64)) == pytest.approx(counted, rel=0.1)
