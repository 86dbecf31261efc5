"""BAGEL's part of `train_step.py`: what it trains on what, ours and in plain PyTorch.

Text-to-image samples (a prompt and a noisy image each), flow matching, every weight of both experts
trained. `torch_train.py` says how PyTorch does it; its first steps take the noise of ours.

On CPU: float32, hidden size 256, 8 layers, 2048 packed tokens, nothing computed again. On a GPU:
bfloat16, 4 layers of the 7B model (2.4 B parameters), two images of 1024 pixels, layers computed
again in the backward pass on both sides.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import our_step

from srum_jax import flow
from srum_jax.core import param_tree
from srum_jax.data import packing
from srum_jax.data.schema import Example, Lanes, Latent, Text
from srum_jax.models import attention
from srum_jax.models.bagel import cost, hf_table
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import BAGEL_7B_MOT, BagelConfig, LLMConfig
from srum_jax.objectives import srum, terms

TORCH, BESIDE = "torch_train", ()  # the other side's module, and its libraries beside torch
UNUSED = ("lm_head", "vit", "connector")  # text-to-image training runs none of them


@dataclasses.dataclass(frozen=True)
class Work:
    """What is trained on what: sizes of the language model, of a sample, and how it is computed."""

    llm: LLMConfig
    samples: int
    text: int  # ids of a prompt
    grid: tuple[int, int]  # latent tokens of an image
    dtype: str  # of products
    remat: str  # none | full (layers are computed again in the backward pass)
    device: str = "cpu"  # | gpu
    devices: int = 1  # as compute.cpu_devices: what ours takes the machine for

    @property
    def cfg(self) -> BagelConfig:
        marks = dict(bos=1, eos=2, start_of_image=3, end_of_image=4)  # small vocabularies have them
        return dataclasses.replace(BAGEL_7B_MOT, llm=self.llm, **marks)

    @property
    def gen(self) -> int:
        """Latent tokens of a sample."""
        return self.grid[0] * self.grid[1]

    @property
    def und(self) -> int:
        """Other tokens: the prompt's with two marks, and two of the image."""
        return self.text + 4

    @property
    def tokens(self) -> int:
        return self.samples * (self.und + self.gen)

    def data(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, latents [h,w,p·p·Z]) of every sample, at random."""
        rng = np.random.default_rng(1)
        ids = rng.integers(5, self.llm.vocab, (self.samples, self.text))
        latents = rng.standard_normal((self.samples, *self.grid, self.cfg.token_dim), np.float32)
        return list(zip(ids, latents, strict=True))


_SLICE = dataclasses.replace(BAGEL_7B_MOT.llm, layers=4)
WORK = {
    "cpu": Work(LLMConfig(256, 8, 8, 4, 704, 8192), 2, 60, (30, 32), "float32", "none", devices=2),
    "gpu": Work(_SLICE, 2, 60, (64, 64), "bfloat16", "full", "gpu"),
    "quick": Work(LLMConfig(32, 1, 4, 2, 64, 128), 2, 4, (4, 6), "float32", "none", devices=2),
}


def flops(work: Work) -> int:
    """Of a step, forward and backward, nothing computed again."""
    row = cost.RowTokens(und=work.und, gen=work.gen, times=1)
    how = dict(trained=specs(work), remat=work.remat, compared=0)
    return work.samples * cost.step(work.cfg, row, **how)[1]


def specs(work: Work) -> param_tree.Specs:
    return {k: s for k, s in bagel.specs(work.cfg).items() if k not in UNUSED}


def weights(work: Work) -> param_tree.Params:
    """float32 NumPy arrays of everything that is trained, at random."""
    return our_step.random(specs(work))


def batch(work: Work):
    """The packed batch, a sample a row."""
    lanes = Lanes(und=work.und, gen=work.gen, vit=0, labels=0, images=1, regions=0)
    pixels = tuple(side * work.cfg.token_pixels for side in work.grid)
    rows = [
        [Example((Text(ids), Latent(latent, size=pixels, noise_id=i)))]
        for i, (ids, latent) in enumerate(work.data())
    ]
    return jax.tree.map(jnp.asarray, packing.pack(rows, lanes, work.cfg.layout))


def draws(work: Work, number: int) -> flow.Draws:
    """What our step `number` (from 0) draws."""
    c, at = our_step.settings(), jax.random.fold_in(jax.random.key(0), number)
    rule = dict(mean=c.timestep_mean, std=c.timestep_std, shift=c.timestep_shift)
    return flow.draw(batch(work), at, **rule)


def objective(work: Work) -> srum.SrumLoss:
    how = dict(platform=work.device, tokens=work.und + work.gen, head_dim=work.llm.head_dim)
    backend = attention.choose("auto", **how, dtype=work.dtype)
    sizes = dataclasses.replace(work.cfg, attention=backend)
    return srum.SrumLoss(
        our_step.settings(), terms.Predictor(sizes, jnp.dtype(work.dtype), work.remat)
    )


def ours(work: Work, start: param_tree.Params) -> our_step.Call:
    return our_step.steps(objective(work), specs(work), start, batch(work), work.devices)


def official(work: Work, tree: param_tree.Params) -> dict[str, np.ndarray]:
    """Leaves of the parameters' tree by their official names, in official layout."""
    flat, entries = param_tree.flatten(tree), hf_table.table(work.cfg)[hf_table.MODEL_FILE]
    return {
        e.name: e.to_official(flat[e.path] if e.layer is None else flat[e.path][e.layer])
        for e in entries
        if e.path in flat
    }


def rival(work: Work, start: param_tree.Params, compiled: bool):
    """PyTorch's side: a `torch_train.Trainer`."""
    import torch
    import torch_train

    table = hf_table.position_table(work.cfg.max_latent, work.cfg.llm.hidden)
    given = official(work, start) | {"latent_pos_embed.pos_embed": table}
    how = dict(remat=work.remat == "full", compiled=compiled, dtype=getattr(torch, work.dtype))
    device = {"gpu": "cuda"}.get(work.device, "cpu")
    return torch_train.trainer(work.cfg, given, our_step.settings().optim, device=device, **how)


def theirs(work: Work, run) -> our_step.Call:
    """A `rival`'s steps: the first take the draws of ours, the later ones draw their own noise."""
    import torch
    import torch_train

    p = run.model.llm2vae.weight

    def given(drawn: flow.Draws):
        times = np.asarray(drawn.t)[:, 0]
        data = torch_train.pack(work.data(), times, work.cfg, device=p.device, dtype=p.dtype)
        noise = np.array(drawn.noise).reshape(data.latents.shape)
        return data, torch.as_tensor(noise, device=p.device)

    first = [given(draws(work, number)) for number in range(our_step.CHECKED)]
    data, _ = first[0]

    def call():
        loss, norm = run(*first.pop(0)) if first else run(data)
        return float(loss), float(norm)

    return call
