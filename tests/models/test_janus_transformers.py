"""transformers' own class loads an export and gives the same numbers and ids; needs torch."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_janus

from srum_jax.core.patches import patchify
from srum_jax.generation.janus import drawing, template
from srum_jax.generation.janus.template import Row
from srum_jax.models.janus import hf, llama, model, vq
from srum_jax.models.janus.model_config import VQConfig

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

CFG = tiny_janus.sizes(
    llm=dataclasses.replace(tiny_janus.CFG.llm, rope_theta=5e3),  # with grouped keys
    vit=dataclasses.replace(tiny_janus.CFG.vit, patch=8),
    vq=VQConfig(ch=32, ch_mult=(1, 2, 3), res_blocks=2, z=64, code_dim=8, codes=64),
    aligner=3,
    gen_aligner=1,
    bos=256,
    eos=257,
    start_of_image=258,
    end_of_image=259,
    pad=260,
    max_text=256,
)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(our parameters, their model) of one folder."""
    from transformers import JanusForConditionalGeneration

    folder, made = tmp_path_factory.mktemp("export"), tiny_janus.weights(CFG)
    hf.save(folder, CFG, *made, dtype="float32")
    how = dict(dtype=torch.float32, attn_implementation="eager")
    return made, JanusForConditionalGeneration.from_pretrained(folder, **how).eval()


def test_every_tensor_is_taken(both):
    (params, _), theirs = both
    head = theirs.lm_head.weight.detach().numpy()
    np.testing.assert_array_equal(head.T, params["lm_head"]["w"])
    assert theirs.lm_head.weight is not theirs.model.language_model.embed_tokens.weight


def test_reading_gives_the_same_logits(both):
    """Two rows of unlike length with a picture each."""
    (params, _), theirs = both
    rng = np.random.default_rng(0)
    shown = [*([CFG.image_token] * 16), 259]
    rows = [Row(np.array([256, 258, *shown, 1, 2, 3])), Row(np.array([256, 9, 8, 258, *shown, 4]))]
    ids, real = template.padded(rows, 2, CFG.pad)
    pictures = rng.uniform(-1, 1, (2, CFG.vit_side, CFG.vit_side, 3)).astype(np.float32)
    x = model.embed(params, CFG, ids, patchify(pictures, CFG.vit.patch), dtype=jnp.float32)
    hidden, _ = llama.stack(params, CFG.llm, x, llama.tokens(real))
    with torch.no_grad():
        found = theirs(
            input_ids=torch.tensor(ids).long(),
            attention_mask=torch.tensor(real).long(),
            pixel_values=torch.tensor(pictures.transpose(0, 3, 1, 2)),
        )
    ours = np.asarray(model.logits(params, hidden))
    np.testing.assert_allclose(ours[real], found.logits.numpy()[real], rtol=1e-3, atol=1e-4)


def test_drawing_gives_the_same_ids(both):
    """Two prompts of unlike length, padded on the left, guided, the likeliest tokens."""
    (params, _), theirs = both
    rows = [Row(np.array([256, 70, 71, 72, 258])), Row(np.array([256, 80, 258]))]
    ids, real = template.padded(rows, 2, CFG.pad)
    ids, real = ids[:, -5:], real[:, -5:]
    how = dict(cfg=CFG, guided=True, dtype=np.dtype(np.float32))
    scales = np.float32(0), np.float32(5)
    ours = drawing.draw_codes(params, ids, real, np.zeros(2, np.uint32), *scales, **how)
    theirs.generation_config.generation_kwargs = {"boi_token_id": 258}
    theirs.generation_config.pad_token_id = CFG.pad
    theirs.generation_config.bos_token_id = CFG.bos
    with torch.no_grad():
        found = theirs.generate(
            input_ids=torch.tensor(ids).long(),
            attention_mask=torch.tensor(real).long(),
            generation_mode="image",
            guidance_scale=5,
            do_sample=False,
        )
    np.testing.assert_array_equal(np.asarray(ours.codes), found.numpy())


def test_pictures_and_codes_are_the_same(both):
    """Of a network whose levels differ in width, with two blocks each."""
    (_, coder), theirs = both
    pictures = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    codes = vq.encode(coder, CFG.vq, pictures, normalised=False)
    with torch.no_grad():
        given = torch.tensor(pictures.transpose(0, 3, 1, 2))
        found = theirs.model.vqmodel.encode(given).image_tokens
        shown = theirs.model.vqmodel.decode(torch.tensor(np.array(codes)).long().reshape(2, -1))
    np.testing.assert_array_equal(np.asarray(codes).reshape(2, -1), found.numpy().reshape(2, -1))
    ours = vq.decode(coder, CFG.vq, codes)
    np.testing.assert_allclose(ours, shown.numpy().transpose(0, 2, 3, 1), rtol=1e-3, atol=1e-4)


def test_a_file_of_torch_itself_is_read(both, tmp_path):
    """`torch.save` in bfloat16, under the original's names."""
    from srum_jax.models.janus import original

    (params, _), theirs = both
    table = [e for part in hf.table(CFG).values() for e in part]
    state = theirs.state_dict()
    entries = original.ordered(table)
    tensors = original.fused(entries, (state[e.name].numpy() for e in entries))
    kinds = original.kinds(entries, "BF16")
    half = {
        name: torch.tensor(np.ascontiguousarray(x)).to(torch.bfloat16)
        for (name, _, _), x in zip(kinds, tensors, strict=True)
    }
    torch.save(half, tmp_path / "pytorch_model.bin")
    read, _ = hf.load(tmp_path, CFG)
    want = torch.tensor(np.asarray(params["embed"])).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(read["embed"], want)
