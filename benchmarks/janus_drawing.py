"""Janus-Pro's part of `inference.py`: ours and transformers' own class draw, on the same weights.

Random weights, guidance 5, the likeliest tokens: all draw the same ids, which is checked. The
compiled side compiles the language model and the head that every token goes through.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping

import jax
import numpy as np

from srum_jax.core import param_tree
from srum_jax.generation.janus import drawing
from srum_jax.models.bagel.model_config import ViTConfig
from srum_jax.models.janus import hf, model, vq
from srum_jax.models.janus.model_config import JanusConfig, LlamaConfig, VQConfig

PROMPT = 30  # tokens
SAME = 16  # ids of a row that must be the same; later rounding may turn one and what follows it
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

Call = Callable[[], np.ndarray]  # codes [B,n] of a batch, on the host


def said(cfg: JanusConfig) -> str:
    llm = cfg.llm
    return (
        f"janus, {llm.layers} layers of width {llm.hidden}, prompts of {PROMPT + 2} tokens, "
        f"{cfg.image_tokens} guided tokens, float32"
    )


def compare(calls: Mapping[str, Call]) -> float:
    """The least share of ids that a side draws as the first does. Raises SystemExit where the sides
    begin a row differently."""
    first, *others = (call() for call in calls.values())
    if any((first[:, :SAME] != other[:, :SAME]).any() for other in others):
        raise SystemExit("the sides do not draw the same ids")
    return min([float((first == other).mean()) for other in others], default=1.0)


@dataclasses.dataclass(frozen=True)
class Drawers:
    """Sides that draw `grid` x `grid` tokens with the same random weights."""

    grid: int

    @property
    def cfg(self) -> JanusConfig:
        return dataclasses.replace(SIZES, grid=self.grid)

    @functools.cached_property
    def weights(self) -> tuple[param_tree.Params, param_tree.Params]:
        """Of the model and its autoencoder."""
        return tuple(
            jax.jit(lambda key, s=s: param_tree.init(s, key))(jax.random.key(0))
            for s in (model.specs(self.cfg), vq.specs(self.cfg.vq))
        )

    def call(self, side: str, batch: int) -> Call:
        """What `side`, one of `inference.SIDES`, does with a batch of prompts."""
        cfg = self.cfg
        prompt = np.r_[cfg.bos, np.arange(PROMPT), cfg.start_of_image]
        ids = np.tile(prompt.astype(np.int32), (batch, 1))
        if side == "ours":
            return lambda: self.ours(ids)
        made = transformers_model(self, side.endswith("compiled"))
        return lambda: _theirs(made, ids)

    def ours(self, ids: np.ndarray) -> np.ndarray:
        how = dict(cfg=self.cfg, guided=True, dtype=np.dtype(np.float32))
        scales = np.float32(0), np.float32(model.GUIDANCE)
        rows = np.ones_like(ids, bool), np.zeros(len(ids), np.uint32)
        return np.asarray(drawing.draw_codes(self.weights[0], ids, *rows, *scales, **how).codes)


@functools.cache
def transformers_model(drawers: Drawers, compiled: bool):
    """transformers' class with the weights of `drawers`."""
    import torch
    from transformers import JanusForConditionalGeneration

    how = dict(dtype=torch.float32, attn_implementation="sdpa")
    with tempfile.TemporaryDirectory() as folder:
        hf.save(folder, drawers.cfg, *drawers.weights, dtype="float32")
        made = JanusForConditionalGeneration.from_pretrained(folder, **how).eval()
    if compiled:
        for part in (made.model.language_model, made.model.generation_head):
            part.forward = torch.compile(part.forward, dynamic=False)
    return made


def _theirs(made, ids: np.ndarray) -> np.ndarray:
    import torch

    given = torch.tensor(ids).long()
    with torch.no_grad():
        return made.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            generation_mode="image",
            guidance_scale=model.GUIDANCE,
            do_sample=False,
        ).numpy()
