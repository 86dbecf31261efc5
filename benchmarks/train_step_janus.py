"""Janus-Pro's part of `train_step.py`: what it trains on what, ours and transformers' own class.

Drawings behind their prompts, by the cross-entropy of their tokens (objective "sft"); what drawing
reads is trained, embeddings of words are not. `torch_janus.py` says how transformers does it.

On CPU: float32, hidden size 512, 8 layers, two drawings of 576 tokens, nothing computed again.
"""

import dataclasses
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import our_step
from janus_drawing import PROMPT, SIZES

from srum_jax.core import param_tree
from srum_jax.data import packing
from srum_jax.data.schema import Batch, Example, Lanes, Latent, Text
from srum_jax.generation import janus as family
from srum_jax.models import attention
from srum_jax.models.bagel.cost import RowTokens
from srum_jax.models.janus import cost, hf, vq
from srum_jax.models.janus import model as janus
from srum_jax.models.janus.model_config import JanusConfig, LlamaConfig
from srum_jax.objectives import autoregressive

TORCH, BESIDE = "torch_janus", ("transformers",)


@dataclasses.dataclass(frozen=True)
class Work:
    """Samples of a prompt, `text` ids between its two marks, and a drawing."""

    cfg: JanusConfig
    samples: int = 2
    text: int = PROMPT
    dtype: str = "float32"
    device: str = "cpu"
    devices: int = 2

    @property
    def llm(self) -> LlamaConfig:
        return self.cfg.llm

    @property
    def prompt(self) -> int:
        """Tokens of a prompt with its marks."""
        return self.text + 2

    @property
    def tokens(self) -> int:
        return self.samples * (self.prompt + self.cfg.image_tokens)

    def data(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, codes [h,w]) of every sample, at random."""
        rng, side = np.random.default_rng(1), self.cfg.grid
        ids = rng.integers(0, self.text, (self.samples, self.text))
        codes = rng.integers(0, self.cfg.vq.codes, (self.samples, side, side))
        return list(zip(ids, codes, strict=True))


_TINY = dataclasses.replace(
    SIZES,
    llm=dataclasses.replace(SIZES.llm, hidden=32, layers=1, heads=2, kv_heads=2, head_dim=16),
    vq=dataclasses.replace(SIZES.vq, codes=64),
    head_hidden=32,
    grid=4,
)
WORK = {"cpu": Work(dataclasses.replace(SIZES, grid=24)), "quick": Work(_TINY, text=4)}


def specs(work: Work) -> param_tree.Specs:
    """Of what is trained."""
    return param_tree.split(janus.specs(work.cfg), lambda path: path.startswith(family.DRAWS))[0]


def flops(work: Work) -> int:
    """Of a step, forward and backward, nothing computed again."""
    row = RowTokens(und=work.prompt, gen=work.cfg.image_tokens)
    how = dict(trained=specs(work), remat="none", compared=0)
    return work.samples * cost.step(work.cfg, row, **how)[1]


def weights(work: Work) -> param_tree.Params:
    """float32 NumPy arrays of the whole model, at random."""
    return our_step.random(janus.specs(work.cfg))


def batch(work: Work) -> Batch:
    """The packed batch, a sample a row; packing puts a mark behind each prompt and drawing."""
    lanes = Lanes(
        und=work.prompt + 2, gen=work.cfg.image_tokens, vit=0, labels=0, images=1, regions=0
    )
    pixels = (work.cfg.image_side, work.cfg.image_side)
    rows = [
        [Example((Text(ids), Latent(codes[..., None].astype(np.float32), pixels, noise_id=i)))]
        for i, (ids, codes) in enumerate(work.data())
    ]
    return jax.tree.map(jnp.asarray, packing.pack(rows, lanes, work.cfg.layout))


def ours(work: Work, start: param_tree.Params) -> our_step.Call:
    tokens, width = work.tokens // work.samples + 2, work.llm.head_dim
    how = dict(platform=work.device, tokens=tokens, head_dim=width, dtype=work.dtype)
    cfg = dataclasses.replace(work.cfg, attention=attention.choose("auto", **how))
    loss = autoregressive.loss(our_step.settings(), cfg, dtype=jnp.float32, remat="none")
    return our_step.steps(loss, specs(work), start, batch(work), work.devices)


def rival(work: Work, start: param_tree.Params, compiled: bool):
    """transformers' side: a `torch_train.Trainer`, from a folder of the weights."""
    import torch_janus

    with tempfile.TemporaryDirectory() as folder:
        coder = our_step.random(vq.specs(work.cfg.vq))  # a folder has it; nothing trains it
        hf.save(folder, work.cfg, start, coder, dtype="float32")
        return torch_janus.trainer(folder, our_step.settings().optim, compiled=compiled)


def theirs(work: Work, run) -> our_step.Call:
    """A `rival`'s steps on the same samples."""
    import torch

    marked = [np.r_[work.cfg.bos, ids, work.cfg.start_of_image] for ids, _ in work.data()]
    prompts = torch.as_tensor(np.stack(marked))
    codes = torch.as_tensor(np.stack([codes.reshape(-1) for _, codes in work.data()]))

    def call():
        loss, norm = run((prompts, codes))
        return float(loss), float(norm)

    return call
