"""Drawing by Janus-Pro beside transformers' own class, on the same weights in the same process.

    pip install torch                             # beside the test extra
    python benchmarks/janus_drawing.py            # 8 layers of width 512, 144 tokens, on this CPU
    python benchmarks/janus_drawing.py --grid 24  # 576 tokens, as the released models draw

Random weights, guidance 5, the likeliest tokens: both draw the same ids, which is checked. Runs
take turns, and the best of each counts, so that what else the machine does slows both.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from srum_jax.core import param_tree
from srum_jax.generation.janus import drawing
from srum_jax.models.bagel.model_config import ViTConfig
from srum_jax.models.janus import hf, model, vq
from srum_jax.models.janus.model_config import JanusConfig, LlamaConfig, VQConfig

PROMPT = 30  # tokens
SIZES = JanusConfig(
    llm=LlamaConfig(512, layers=8, heads=8, kv_heads=8, head_dim=64, ffn=1408, vocab=1024),
    vit=ViTConfig(32, layers=2, heads=2, ffn=64, patch=4, positions=4, exact_gelu=True),
    vq=VQConfig(ch=32, ch_mult=(1, 1), res_blocks=1, z=32, code_dim=8, codes=16384),
    grid=12,
    head_hidden=512,
    image_token=1003,
    bos=1000,
    eos=1001,
    pad=1002,
    start_of_image=1004,
    end_of_image=1005,
)


def theirs_of(folder: str) -> Callable[[np.ndarray], np.ndarray]:
    """ids [B,P] -> codes [B,n] by transformers."""
    import torch
    from transformers import JanusForConditionalGeneration

    how = dict(dtype=torch.float32, attn_implementation="sdpa")
    made = JanusForConditionalGeneration.from_pretrained(folder, **how).eval()

    def draw(ids):
        given = torch.tensor(ids).long()
        with torch.no_grad():
            return made.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                generation_mode="image",
                guidance_scale=model.GUIDANCE,
                do_sample=False,
            ).numpy()

    return draw


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each batch."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--grid", type=int, default=SIZES.grid, help="tokens of a side")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    options.add_argument("--repeats", type=int, default=3)
    given = options.parse_args(argv)
    cfg = dataclasses.replace(SIZES, grid=given.grid)
    made = tuple(
        jax.jit(lambda key, s=s: param_tree.init(s, key))(jax.random.key(0))
        for s in (model.specs(cfg), vq.specs(cfg.vq))
    )
    how = dict(cfg=cfg, guided=True, dtype=np.dtype(np.float32))
    scales = np.float32(0), np.float32(model.GUIDANCE)

    def ours(ids):
        seeds = np.zeros(len(ids), np.uint32)
        drawn = drawing.draw_codes(made[0], ids, np.ones_like(ids, bool), seeds, *scales, **how)
        return np.asarray(drawn.codes)

    with tempfile.TemporaryDirectory() as folder:
        hf.save(folder, cfg, *made, dtype="float32")
        theirs = theirs_of(folder)
        for batch in given.batches:
            ids = np.tile(np.r_[cfg.bos, np.arange(PROMPT), cfg.start_of_image], (batch, 1))
            ours(ids)  # compiles
            best = {ours: np.inf, theirs: np.inf}
            for _ in range(given.repeats):
                found = {}
                for draw in best:
                    start = time.perf_counter()
                    found[draw] = draw(ids)
                    best[draw] = min(best[draw], time.perf_counter() - start)
                same = (found[ours] == found[theirs]).mean()
            print(
                f"batch {batch}: {best[ours]:.2f} s here, {best[theirs]:.2f} s in transformers, "
                f"{best[theirs] / best[ours]:.1f} times; {same:.0%} of the ids are the same"
            )


if __name__ == "__main__":
    main()
