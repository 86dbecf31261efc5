"""A two-layer BAGEL of a few thousand numbers and samples of every kind, for tests of the core."""

import functools
import zlib

import jax
import numpy as np

from srum_jax.core import param_tree
from srum_jax.data import packing
from srum_jax.data.schema import (
    CAUSAL,
    FULL,
    NOISE,
    Branch,
    Example,
    Lanes,
    Latent,
    Picture,
    Regions,
    Text,
)
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import BagelConfig, LLMConfig, VAEConfig, ViTConfig

# Tiny programs run once: plain code spares most of the seconds that their compilation takes.
PLAIN = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # later ones have no such option
    PLAIN["xla_cpu_use_fusion_emitters"] = False
jit = functools.partial(jax.jit, compiler_options=PLAIN)

CFG = BagelConfig(
    llm=LLMConfig(hidden=16, layers=2, heads=4, kv_heads=2, ffn=24, vocab=96, rope_theta=1e4),
    vit=ViTConfig(hidden=16, layers=1, heads=2, ffn=16, patch=2, positions=4),
    vae=VAEConfig(ch=32, ch_mult=(1, 1), res_blocks=1, z=2, scale=1.0, shift=0.0),
    latent_patch=2,
    max_latent=8,
    max_vit=4,
    bos=1,
    eos=2,
    start_of_image=3,
    end_of_image=4,
    max_text=512,
)


def weights(cfg=CFG, seed=0):
    """Parameters by NumPy, as jitted initialisers take seconds; no leaf is zero."""

    def draw(path, spec):
        rng = np.random.default_rng((seed, zlib.crc32(path.encode())))
        fan_in = np.prod([spec.shape[i] for i in spec.fan_in] or [16])
        values = rng.normal(0, fan_in**-0.5, spec.shape)
        return np.float32(1 + 0.3 * values if path.endswith("scale") else values)

    return param_tree.unflatten(
        {p: draw(p, s) for p, s in param_tree.flatten(bagel.specs(cfg)).items()}
    )


def sees(query, key) -> bool:
    """The mask rule, written out for one pair of (segment, split, mode, position)."""
    segment, split, mode, position = query
    other_segment, other_split, other_mode, other_position = key
    if segment != other_segment or other_split > split:
        return False
    if other_split < split:
        return other_mode in (CAUSAL, FULL)
    if mode in (FULL, NOISE):
        return True
    return other_position <= position


def rule(queries, keys):
    """bool [B,S,T]: `sees` for every pair of tokens."""

    def listed(tokens):
        fields = (tokens.segment, tokens.split, tokens.mode, tokens.position)
        return [list(zip(*row, strict=True)) for row in zip(*map(np.asarray, fields), strict=True)]

    pairs = zip(listed(queries), listed(keys), strict=True)
    return np.array([[[sees(q, k) for k in theirs] for q in mine] for mine, theirs in pairs])


def text(rng, count, **how):
    return Text(rng.integers(5, CFG.llm.vocab, count).astype(np.int32), **how)


def picture(rng, rows, columns):
    ids = (np.arange(rows)[:, None] * CFG.max_vit + np.arange(columns)).reshape(-1)
    return Picture(rng.normal(size=(len(ids), CFG.vit.patch**2 * 3)).astype(np.float32), ids)


def latent(rng, rows, columns, *, boxes=0, **how):
    """With `boxes` random regions of an image of 4 pixels a token, and its score."""
    size = (4 * rows, 4 * columns)
    if boxes:
        low = rng.uniform(0, 0.5, (boxes, 2)) * size[::-1]
        high = low + rng.uniform(0.3, 0.5, (boxes, 2)) * size[::-1]
        scores = rng.uniform(-1, 1, boxes).astype(np.float32)
        where = np.concatenate([low, high], -1).astype(np.float32)
        how["regions"] = Regions(where, scores, float(rng.uniform(-1, 1)))
    tokens = rng.normal(size=(rows, columns, CFG.token_dim)).astype(np.float32)
    return Latent(tokens, size=size, **how)


def text_to_image(seed, noise_id=0, boxes=0):
    rng = np.random.default_rng(seed)
    return Example((text(rng, 3), latent(rng, 2, 2, noise_id=noise_id, boxes=boxes)))


def edit(seed, noise_id=0, boxes=0):
    """A picture and its clean latents, an instruction, the noisy result, and text after it."""
    rng = np.random.default_rng(seed)
    return Example(
        (
            picture(rng, 2, 2),
            latent(rng, 1, 2, noisy=False, noise_id=1000),
            text(rng, 2),
            latent(rng, 2, 3, noise_id=noise_id, boxes=boxes),
            text(rng, 2, loss=True),
        )
    )


def questions(seed):
    """Two questions with answers about one picture."""
    rng = np.random.default_rng(seed)
    return Example(
        (
            picture(rng, 2, 2),
            Branch((text(rng, 2), text(rng, 1, loss=True))),
            Branch((text(rng, 3), text(rng, 1, loss=True))),
        )
    )


def talk(seed):
    rng = np.random.default_rng(seed)
    return Example((text(rng, 3), text(rng, 2, loss=True)))


def pack(rows, *, spare=0, **how):
    """Rows of examples in lanes as long as the fullest row needs, and `spare` slots more."""
    need = np.max([packing.total([packing.size(e) for e in row]) for row in rows], axis=0)
    return packing.pack(rows, Lanes(*(int(n) + spare for n in need)), CFG.layout, **how)


def as_advantages(batch):
    """The batch with its scores for advantages, as objectives that read these are given it."""
    r = batch.rewards
    return batch.replace(
        rewards=r.replace(
            scores=None, image_score=None, advantages=r.scores, image_advantage=r.image_score
        )
    )
