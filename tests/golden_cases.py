"""Golden cases: folders of arrays from the official PyTorch code, and their samples as Examples.

`tests/goldens/` holds ours; `SRUM_GOLDENS=DIR` adds the sub-folders of DIR. Everything about a case
(sizes, ids, splits) is read from the case's own files. Those of Segment Anything are in
`golden_sam.py`, those of Janus in `golden_janus.py`.
"""

import dataclasses
import functools
import json
import os
import pathlib

import golden_janus
import numpy as np
from einops import rearrange
from golden_arrays import GoldenArrays
from golden_evals.case import EvalsCase
from golden_janus import JanusCase
from golden_sam import SamCase, is_case

from srum_jax.data import packing
from srum_jax.data.schema import Batch, Example, Lanes, Latent, Picture, Text
from srum_jax.models.bagel import hf, model_config

OURS = pathlib.Path(__file__).parent / "goldens"


class Case(GoldenArrays):
    """One BAGEL case; arrays are read when first used."""

    @functools.cached_property
    def meta(self) -> dict:
        return json.loads((self.folder / "meta.json").read_text())

    @functools.cached_property
    def constants(self) -> dict:
        return json.loads((self.folder / "bagel_config.json").read_text())

    @functools.cached_property
    def cfg(self) -> model_config.BagelConfig:
        return model_config.from_folder(self.folder)

    @functools.cached_property
    def params(self):
        """(model, autoencoder) parameters, float32, through the importer users go through."""
        return hf.load(self.folder, self.cfg)

    def sections(self) -> set[str]:
        return {key.split("/")[0] for key in self.outputs.files if "/" in key}


def found() -> tuple[list[Case | SamCase | JanusCase | EvalsCase], list[str]]:
    """(cases of BAGEL, Segment Anything, Janus and of benchmarks' scorers, names of sub-folders
    that are none)."""
    roots = [OURS] + (
        [pathlib.Path(os.environ["SRUM_GOLDENS"])] if "SRUM_GOLDENS" in os.environ else []
    )
    cases, others = {}, []
    for root in roots:
        for folder in sorted(p for p in root.iterdir() if p.is_dir()):
            if (folder / "bagel_config.json").exists():
                cases[folder.name] = Case(folder)
            elif is_case(folder):
                cases[folder.name] = SamCase(folder)
            elif golden_janus.is_case(folder):
                cases[folder.name] = JanusCase(folder)
            elif EvalsCase.is_case(folder):
                cases[folder.name] = EvalsCase(folder)
            else:
                others.append(folder.name)
    return list(cases.values()), others


def samples(case: Case, section: str) -> list[Example]:
    """The packed samples of a section, rebuilt from its splits and arrays."""
    get = {
        k.split("/", 1)[1]: case.inputs[k] for k in case.inputs.files if k.startswith(section + "/")
    }
    splits = case.meta[f"{section}/splits"]
    text = dict(
        zip(get["packed_text_indexes"].tolist(), get["packed_text_ids"].tolist(), strict=True)
    )
    vae_at = {i: n for n, i in enumerate(get["packed_vae_token_indexes"].tolist())}
    vit_at = {
        i: n for n, i in enumerate(get.get("packed_vit_token_indexes", np.zeros(0, int)).tolist())
    }
    labels = _labels(case, section)
    shapes = get["patchified_vae_latent_shapes"]
    p = case.cfg.latent_patch
    pixels = case.cfg.token_pixels
    good = get.get("packed_latent_clean_gt")
    trained = set(get["mse_loss_indexes"].tolist())
    examples, at, image = [], 0, 0

    def cut(latents, h, w):
        return rearrange(latents[:, : h * p, : w * p], "c (h a) (w b) -> h w (a b c)", a=p, b=p)

    for sample in splits:
        items = []
        for length, mode in zip(sample["split_lens"], sample["attn_modes"], strict=True):
            if mode == "causal":
                ids = [text[i] for i in range(at + 1, at + length - 1)]
                items.append(Text(np.array(ids), loss=at in labels))
            elif at + 1 in vae_at:
                h, w = (int(v) for v in shapes[image])
                items.append(
                    Latent(
                        tokens=cut(get["padded_latent"][image], h, w),
                        size=(h * pixels, w * pixels),
                        noisy=at + 1 in trained,
                        noise_id=image,
                        target=None if good is None else cut(good[image], h, w),
                    )
                )
                image += 1
            else:
                rows = [vit_at[i] for i in range(at + 1, at + length - 1)]
                items.append(
                    Picture(get["packed_vit_tokens"][rows], get["packed_vit_position_ids"][rows])
                )
            at += length
        examples.append(Example(tuple(items)))
    return examples


def _labels(case: Case, section: str) -> dict[int, int]:
    """What the official code wants to follow a token, by official index."""
    inputs = case.inputs
    if f"{section}/ce_loss_indexes" not in inputs.files:
        return {}
    pair = (
        inputs[f"{section}/{name}"].tolist() for name in ("ce_loss_indexes", "packed_label_ids")
    )
    return dict(zip(*pair, strict=True))


def _with_closing_labels(batch: Batch, und_at: np.ndarray, labels: dict[int, int]) -> Batch:
    """`batch` with the official labels at the ends of texts, which our packing has no use for."""
    slots, ids, weights = (
        np.array(x) for x in (batch.label_slots, batch.label_ids, batch.label_weights)
    )
    for b, row in enumerate(und_at):
        count = int((weights[b] > 0).sum())
        ours = set(slots[b, :count].tolist())
        for slot in np.flatnonzero(row >= 0):
            if int(row[slot]) in labels and int(slot) not in ours:
                slots[b, count], ids[b, count] = slot, labels[int(row[slot])]
                weights[b, count] = 1
                count += 1
    return batch.replace(label_slots=slots, label_ids=ids, label_weights=weights)


@dataclasses.dataclass(frozen=True)
class Packed:
    """A section's samples in our lanes, and where each real token stands in the official pack.

    und_at, gen_at: official index per lane slot, −1 for padding and foreign tokens; vae_at: number
    among the official VAE tokens per gen slot, −1 likewise.
    """

    batch: Batch
    und_at: np.ndarray
    gen_at: np.ndarray
    vae_at: np.ndarray


def _foreign(case: Case, with_picture: bool) -> Example:
    """A sample that belongs to nobody: text, a clean latent and, with one, a picture."""
    rng = np.random.default_rng(7)
    z = case.cfg.token_dim
    items = [
        Text(rng.integers(0, case.constants["n_plain_tokens"], 5)),
        Latent(
            rng.normal(size=(2, 3, z)).astype(np.float32), size=(32, 48), noisy=False, noise_id=99
        ),
    ]
    if with_picture:
        patches = rng.normal(size=(4, case.cfg.vit.patch**2 * 3)).astype(np.float32)
        items.insert(0, Picture(patches, np.arange(4)))
    return Example(tuple(items))


def packed(case: Case, section: str) -> Packed:
    """Two rows: [foreign, half the samples], [the rest, foreign]; every lane longer than needed."""
    examples = samples(case, section)
    pictures = any(isinstance(i, Picture) for e in examples for i in e.items)
    foreign, half = _foreign(case, pictures), len(examples) // 2
    rows = [[foreign, *examples[:half]], [*examples[half:], foreign]]
    real = [[-1, *range(half)], [*range(half, len(examples)), -1]]
    need = np.max([sum(packing.size(e) for e in r) for r in rows], axis=0)
    labels = _labels(case, section)
    lanes = Lanes(*(int(n) for n in need + np.array([5, 3, 2, 3 + len(labels), 1, 0])))
    targets = any(getattr(i, "target", None) is not None for e in examples for i in e.items)
    batch = packing.pack(rows, lanes, case.cfg.layout, targets=targets)
    lengths = [sum(s["split_lens"]) for s in case.meta[f"{section}/splits"]]
    starts = np.concatenate([[0], np.cumsum(lengths)])

    def official(tokens):
        where = np.full(tokens.index.shape, -1)
        for b, numbers in enumerate(real):
            for segment, number in enumerate(numbers, start=1):
                mine = tokens.segment[b] == segment
                if number >= 0:
                    first = min(
                        t.index[b][t.segment[b] == segment].min()
                        for t in (batch.und, batch.gen)
                        if (t.segment[b] == segment).any()
                    )
                    where[b][mine] = starts[number] + tokens.index[b][mine] - first
        return where

    gen_at = official(batch.gen)
    order = {int(i): n for n, i in enumerate(case.inputs[f"{section}/packed_vae_token_indexes"])}
    vae_at = np.vectorize(lambda i: order.get(int(i), -1))(gen_at)
    und_at = official(batch.und)
    return Packed(_with_closing_labels(batch, und_at, labels), und_at, gen_at, vae_at)


def spread(values: np.ndarray, at: np.ndarray, fill: float = 0.0) -> np.ndarray:
    """Official rows `values` -> our slots: out[b, s] = values[at[b, s]], `fill` where at is −1."""
    out = values[np.maximum(at, 0)]
    return np.where((at >= 0).reshape(at.shape + (1,) * (out.ndim - 2)), out, fill).astype(
        values.dtype
    )


def collect(ours: np.ndarray, at: np.ndarray, into: np.ndarray) -> None:
    """Inverse of `spread`: writes our slots into the official order."""
    into[at[at >= 0]] = np.asarray(ours)[at >= 0]
