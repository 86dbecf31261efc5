"""Golden cases of Janus-Pro: a folder in transformers' layout with inputs and outputs of its class.

Sections are "und" (reading pictures and words), "gen" (drawing), "vq" (the quantised autoencoder),
"train" (loss, gradients and a step on image tokens) and "prep" (pictures into the square).
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_arrays import GoldenArrays

from srum_jax.core import loss as losses
from srum_jax.core.param_tree import flatten
from srum_jax.core.patches import patchify
from srum_jax.data import letterbox, packing
from srum_jax.data.schema import Batch, Example, Lanes, Latent, Text
from srum_jax.generation.janus import drawing, writing
from srum_jax.models.janus import hf, llama, model, model_config, vq
from srum_jax.models.janus.model_config import JanusConfig
from srum_jax.objectives import autoregressive
from srum_jax.training import step as training_step
from srum_jax.training.state import FrozenParams, create

TOLERANCE = dict(rtol=1e-4, atol=1e-4)
SECTIONS = ("und", "gen", "vq", "train", "prep")


def is_case(folder: pathlib.Path) -> bool:
    """Whether a folder has a config.json of Janus, and outputs."""
    return model_config.model_type(folder) == "janus" and (folder / "outputs.npz").exists()


class JanusCase(GoldenArrays):
    """One case; arrays are read when first used."""

    @functools.cached_property
    def meta(self) -> dict:
        return json.loads((self.folder / "meta.json").read_text())

    @functools.cached_property
    def cfg(self) -> JanusConfig:
        special = self.meta["special"]
        marks = {
            "start_of_image": special["boi_token_id"],
            "image_token": special["image_token_id"],
        }
        marks |= {name: special[name] for name in ("bos", "eos", "pad")}
        return dataclasses.replace(model_config.from_folder(self.folder), **marks)

    @functools.cached_property
    def params(self):
        """(model, autoencoder) parameters, float32, through the importer users go through."""
        return hf.load(self.folder, self.cfg)

    def sections(self) -> list[str]:
        there = {key.split("/")[0] for key in (*self.outputs.files, *self.inputs.files)}
        return [name for name in SECTIONS if name in there]

    def given(self, section: str) -> dict[str, np.ndarray]:
        """A section's inputs by name."""
        return {
            k.split("/", 1)[1]: self.inputs[k] for k in self.inputs.files if k.startswith(section)
        }

    def wanted(self, section: str) -> dict[str, np.ndarray]:
        """A section's outputs by name."""
        names = (k for k in self.outputs.files if k.startswith(section + "/"))
        return {k.split("/", 1)[1]: self.outputs[k] for k in names}

    def pixels(self) -> np.ndarray:
        """The pictures of "und", channels last."""
        return self.inputs["und/pixel_values"].transpose(0, 2, 3, 1)


def check(case: JanusCase, section: str) -> None:
    """Asserts every array of a section."""
    {"und": _und, "gen": _gen, "vq": _vq, "train": _train, "prep": _prep}[section](case)


def close(ours, want, name: str) -> None:
    np.testing.assert_allclose(np.asarray(ours), want, **TOLERANCE, err_msg=name)


def _und(case: JanusCase):
    params, cfg = case.params[0], case.cfg
    given, want = case.given("und"), case.wanted("und")
    patches = patchify(case.pixels(), cfg.vit.patch)
    real = given["attention_mask"].astype(bool)
    seen = functools.partial(model.vision, params, cfg, dtype=jnp.float32)
    close(jax.jit(seen)(patches), want["vision_last_hidden"], "vision")
    embed = functools.partial(model.embed_pictures, params, cfg, dtype=jnp.float32)
    close(jax.jit(embed)(patches), want["image_features"], "features")

    @jax.jit
    def forward(params):
        x = model.embed(params, cfg, given["input_ids"], patches, dtype=jnp.float32)
        hidden, kept = llama.stack(params, cfg.llm, x, llama.tokens(real), keep="hidden")
        return x, hidden, kept, model.logits(params, hidden)

    x, hidden, kept, logits = forward(params)
    layers = [x, *list(kept)[:-1], hidden]
    for i, ours in enumerate(layers):
        close(ours[real], want[f"hidden{i}"][real], f"hidden{i}")
    close(logits[real], want["logits"][real], "logits")
    np.testing.assert_array_equal(
        np.asarray(llama.tokens(real).position)[real], given["position_ids"][real]
    )
    steps, rows = case.meta["greedy_tokens"], len(real)
    endless = dataclasses.replace(cfg, eos=-1)
    how = dict(cfg=endless, words=cfg.llm.vocab, max_tokens=steps, dtype=np.dtype(np.float32))
    zeros = np.zeros(rows, np.uint32), np.zeros(rows, np.float32), np.full(rows, steps)
    asked = params, given["input_ids"], real, patches
    ids, counts, kept = writing.write_texts(*asked, *zeros, trace=True, **how)
    np.testing.assert_array_equal(ids, want["greedy_ids"])
    np.testing.assert_array_equal(counts, steps)
    close(np.swapaxes(kept, 0, 1), want["greedy_logits"], "greedy_logits")


def _gen(case: JanusCase):
    (params, vq_params), cfg = case.params, case.cfg
    given, want = case.given("gen"), case.wanted("gen")
    real, scale = given["attention_mask"].astype(bool), case.meta["guidance_scale"]
    rows = len(real)
    inputs = params, given["input_ids"], real, np.zeros(rows, np.uint32), jnp.float32(0)
    how = dict(cfg=cfg, guided=True, dtype=np.dtype(np.float32), trace=True)
    drawn = drawing.draw_codes(*inputs, jnp.float32(scale), **how)
    np.testing.assert_array_equal(drawn.codes, want["image_tokens"])
    assert np.asarray(drawn.finite).all()
    raw = jnp.swapaxes(drawn.raw, 0, 1)
    close(raw, want["raw_logits"], "raw_logits")
    # Of log-probabilities of each branch; it differs from guided logits by a constant a row.
    branches = jax.nn.log_softmax(raw[:rows]), jax.nn.log_softmax(raw[rows:])
    close(model.guided(branches, scale), want["guided_scores"], "guided_scores")
    codes = want["image_tokens"].reshape(rows, cfg.grid, cfg.grid)
    close(vq.decode(vq_params, cfg.vq, codes), want["decoded"], "decoded")
    if "image_u8" in want:
        images, finite = drawing.decode_codes(vq_params, codes, cfg=cfg)
        assert np.abs(np.asarray(images).astype(int) - want["image_u8"]).max() <= 1
        assert np.asarray(finite).all()


def _vq(case: JanusCase):
    params, cfg = case.params[1], case.cfg.vq
    want, pixels = case.wanted("vq"), case.pixels()
    encoded, vectors = jax.jit(vq.features, static_argnums=1)(params, cfg, pixels)
    close(np.moveaxis(encoded, -1, 1), want["encoder_out"], "encoder_out")
    close(np.moveaxis(vectors, -1, 1), want["pre_quant"], "pre_quant")
    for suffix, normalised in (("", False), ("_original", True)):
        if f"indices{suffix}" not in want:
            continue
        codes = vq.encode(params, cfg, pixels, normalised=normalised)
        indices = want[f"indices{suffix}"].reshape(codes.shape)
        np.testing.assert_array_equal(codes, indices, err_msg=f"indices{suffix}")
        quantized = vq.vectors(params, codes, normalised=normalised)
        close(np.moveaxis(quantized, -1, 1), want[f"quantized{suffix}"], f"quantized{suffix}")
        decoded = np.moveaxis(vq.decode(params, cfg, codes), -1, 1)
        close(decoded, want[f"decoded{suffix}"], f"decoded{suffix}")
        if not suffix:
            loss = 1.25 * jnp.mean(jnp.square(quantized - vectors))
            close(loss, want["loss"], "loss")


def _entries(case: JanusCase) -> dict:
    return {e.name: e for e in hf.table(case.cfg)["model"]}


def _official(name: str, tree: dict, case: JanusCase) -> np.ndarray:
    entry = _entries(case)[name]
    leaf = np.asarray(flatten(tree)[entry.path])
    return entry.to_official(leaf if entry.layer is None else leaf[entry.layer])


def _packed(case: JanusCase, given: dict) -> tuple[Batch, np.ndarray, JanusConfig]:
    """(the samples as training packs them: a row each, beside a foreign one, in lanes longer than
    needed; where the tokens of each sample stand in the lane of images, int [B,n] of flattened
    rows; sizes with a mark behind images, which these cases have none of)."""
    prompts, real = given["prompt_ids"], given["attention_mask"].astype(bool)
    free = set(range(case.cfg.llm.vocab)) - {*prompts[real].tolist(), case.cfg.eos}
    cfg = dataclasses.replace(case.cfg, end_of_image=min(free))
    side = given["weights"].shape[-1]
    codes = given["image_tokens"].reshape(-1, side, side, 1).astype(np.float32)
    size = (side * cfg.vq.downsample,) * 2

    def sample(text, image, noisy):
        return Example((Text(text), Latent(image, size=size, noisy=noisy)))

    own = [sample(p[r][1:-1], c, True) for p, r, c in zip(prompts, real, codes, strict=True)]
    foreign = sample(np.array([1, 2, 3]), codes[0, :1, :2], False)
    need = np.max([packing.total([packing.size(foreign), packing.size(e)]) for e in own], axis=0)
    lanes = Lanes(*(int(n) for n in need + np.array([3, 5, 0, 0, 1, 0])))
    rows = [[foreign, e] if b % 2 == 0 else [e, foreign] for b, e in enumerate(own)]
    batch = packing.pack(rows, lanes, cfg.layout)
    at = [np.flatnonzero(batch.gen.segment[b] == 2 - b % 2) for b in range(len(rows))]
    return batch, np.stack(at) + np.arange(len(rows))[:, None] * lanes.gen, cfg


def _train(case: JanusCase):
    params, cfg, want = case.params[0], case.cfg, case.wanted("train")
    given = case.given("train")
    real = given["attention_mask"].astype(bool)
    predict = jax.jit(
        functools.partial(model.predict_image_tokens, cfg=cfg, dtype=jnp.float32, remat="full")
    )
    how = dict(real=real, codes=given["image_tokens"])
    logits, hidden = predict(params, prompts=given["prompt_ids"], **how)
    seen = np.concatenate([real, np.ones((len(real), hidden.shape[1] - real.shape[1]), bool)], 1)
    close(hidden[seen], want["hidden"][seen], "hidden")
    close(logits, want["logits"], "logits")
    dropped = model.unconditional(jnp.asarray(given["prompt_ids"]), real, cfg.pad)
    np.testing.assert_array_equal(dropped, given["dropped_prompt_ids"])
    plain, _ = predict(params, prompts=dropped, **how)
    close(plain, want["logits_dropped"], "logits_dropped")
    guided = model.guided((logits, plain), case.meta["guidance_scale"])
    codes = jnp.asarray(given["image_tokens"])
    for name, found in (("ce", logits), ("ce_dropped", plain), ("ce_guided", guided)):
        close(-autoregressive.log_probs(found, codes), want[name], name)
    _check_step(case, given, want)


def _check_step(case: JanusCase, given: dict, want: dict):
    """Loss, gradients and a step of the optimiser, through rows as training packs them."""
    batch, at, cfg = _packed(case, given)
    predictor = autoregressive.Predictor(cfg, jnp.float32, "full")
    flat = np.zeros(batch.latents.shape[0] * batch.latents.shape[1], np.float32)
    flat[at] = given["weights"].reshape(at.shape)
    weights = jnp.asarray(flat.reshape(batch.latents.shape[:2]))

    def loss_fn(params, reference, batch, key):
        out = predictor(params, batch)
        ce = autoregressive.token_mean(-out.log_probs, out.trained)
        rewarded = autoregressive.token_mean(-out.log_probs, out.trained, weights)
        return losses.LossOut({"reward": rewarded}, {"ce": ce}, (("reward", 1.0),))

    found = jax.jit(predictor)(case.params[0], batch)
    close(-np.asarray(found.log_probs).reshape(-1)[at], want["ce"], "ce, packed")
    tx = optax.chain(
        optax.snapshot("gradients", lambda updates: updates),
        optax.clip_by_global_norm(1.0),
        optax.adamw(1e-3, b1=0.9, b2=0.95, eps=1e-15, weight_decay=0.0),
    )
    advance = jax.jit(
        functools.partial(training_step.step, loss_fn=loss_fn, tx=tx, ema=0.9, micro_batches=1)
    )
    state = create(case.params[0], tx)
    args = FrozenParams({}, None), batch, jax.random.key(0)
    state, metrics = advance(state, *args)
    grads = optax.tree.get(state.opt_state, "gradients")
    close(metrics["loss"], want["loss"], "loss")
    close(metrics["ce"], want["loss_unweighted"], "loss_unweighted")
    by_weight = want["loss_by_weight_sum"] * np.mean(given["weights"])
    close(metrics["loss"], by_weight, "loss_by_weight_sum")
    for key in [k for k in want if k.startswith("grad/")]:
        ours = _official(key.removeprefix("grad/"), grads, case)
        worst = np.abs(ours - want[key]).max()
        assert worst <= 5e-4 * np.abs(want[key]).max() + 1e-12, (key, worst)
    for name, stats in case.meta.get("train/grad_stats", {}).items():
        if name not in _entries(case):
            continue  # the autoencoder, which the step never sees
        ours = _official(name, grads, case)
        if stats is None or stats["absmax"] == 0:
            assert np.abs(ours).max() == 0, name
        else:
            assert np.abs(ours).max() == pytest.approx(stats["absmax"], rel=1e-3, abs=1e-7), name
            assert np.linalg.norm(ours) == pytest.approx(stats["l2"], rel=1e-3, abs=1e-7), name
    first = case.meta["train/adamw_step0"]
    assert float(metrics["grad_norm"]) == pytest.approx(first["total_norm"], rel=1e-4)
    for key in [k for k in want if k.startswith("adamw_step0/")]:
        name = key.split("/", 1)[1]
        gradient = _official(name, grads, case)
        clear = np.abs(gradient) > 1e-3 * np.abs(gradient).max()
        assert clear.any()
        close(_official(name, state.params, case)[clear], want[key][clear], key)
    _, after = advance(state, *args)
    close(after["loss"], want["loss_after_step0"], "loss_after_step0")


def _prep(case: JanusCase):
    given, want = case.given("prep"), case.wanted("prep")
    side, least = int(given["image_size"]), int(given["min_size"])
    rules = {"": "transformers", "_pil": "transformers_pil", "_original": "original"}
    for i in range(sum(name.endswith("_u8") for name in given)):
        for suffix, rule in rules.items():
            boxed = letterbox.letterbox(given[f"{i}_u8"], side, least=least, rule=rule)
            found = want[f"{i}_pixel_values{suffix}"].transpose(1, 2, 0)
            levels = np.round((found * 0.5 + 0.5) * 255)
            np.testing.assert_array_equal(boxed, levels, err_msg=f"{i}{suffix}")
            close(letterbox.levels(boxed), found, f"{i}{suffix}")
