"""Golden checks of the model in use: what it answers, draws, edits and thinks.

Contexts are rebuilt from a case's own files and read by the package's prefill; a foreign request
shares every batch, and every lane and cache is longer than needed.
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from golden_cases import Case
from samples import jit

from srum_jax.core.patches import patchify, unpatchify
from srum_jax.data.schema import Latent, Picture, Text
from srum_jax.generation import context, denoising, guidance, image_request, text_generator
from srum_jax.generation.image_codec import ImageDecoder, latent_grid
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import mot, vae

TOLERANCE = dict(rtol=1e-4, atol=1e-4)
TRAJECTORY = dict(rtol=5e-4, atol=5e-4)


def _get(case: Case, key: str) -> dict:
    return {k[len(key) :]: case.inputs[k] for k in case.inputs.files if k.startswith(key)}


def _encoded(case: Case, section: str, pixels: np.ndarray, h: int, w: int) -> Latent:
    """The clean latent of a condition image [3,H,W] with the case's own posterior draw."""
    eps = rearrange(case.inputs[f"{section}/vae_eps"], "n c h w -> n h w c")
    encode = jit(functools.partial(vae.encode, cfg=case.cfg.vae))
    z = encode(case.params[1], images=rearrange(pixels, "c h w -> 1 h w c"), noise=eps)
    tokens = np.asarray(patchify(z, case.cfg.latent_patch)[0])
    return Latent(rearrange(tokens, "(h w) d -> h w d", h=h), pixels.shape[1:], noisy=False)


def _items(case: Case, section: str, entry: dict) -> list:
    """What one prefill step of the original reads, an item a request."""
    get = _get(case, entry["key"])
    if entry["kind"] == "prompts":
        ends = np.cumsum(get["text_token_lens"])[:-1]
        return [Text(ids[1:-1]) for ids in np.split(get["packed_text_ids"], ends)]
    if entry["kind"] == "vit_images":
        ends = np.cumsum(get["vit_token_seqlens"])[:-1]
        parts = (get["packed_vit_tokens"], get["packed_vit_position_ids"])
        return [Picture(*pair) for pair in zip(*(np.split(p, ends) for p in parts), strict=True)]
    grids = get["patchified_vae_latent_shapes"]
    return [
        _encoded(case, section, pixels, int(h), int(w))
        for pixels, (h, w) in zip(get["padded_images"], grids, strict=True)
    ]


def _context(case: Case, section: str, entries: list[dict]) -> tuple:
    """The items that the generation context of a section has read, in order.

    A text read a second time, into a context that lacks what came between, is image guidance's.
    """
    items, read, texts_only, previous = [], 0, 0, None
    for entry in entries:
        (item,) = _items(case, section, entry)
        again = previous is not None and entry["kind"] == "prompts"
        if again and len(previous.ids) == len(item.ids) and (previous.ids == item.ids).all():
            assert entry["kvlens_in"] == [texts_only]
            texts_only, previous = entry["kvlens_out"][0], None
            continue
        assert entry["kvlens_in"] == [read]
        read = entry["kvlens_out"][0]
        items.append(item)
        previous = item if entry["kind"] == "prompts" else None
        slots, position = context.extent(tuple(items))
        assert ([slots], [position]) == (entry["kvlens_out"], entry["rope_out"])
    return tuple(items)


def _foreign(case: Case) -> tuple:
    """A context of nobody's: text and a picture."""
    rng = np.random.default_rng(5)
    patches = rng.normal(size=(4, case.cfg.vit.patch**2 * 3)).astype(np.float32)
    return (
        Text(rng.integers(0, case.constants["n_plain_tokens"], 21)),
        Picture(patches, np.arange(4)),
    )


@functools.partial(jit, static_argnames=("cfg", "slots"))
def _prefill(params, packed, *, cfg, slots):
    return context.prefill(params, packed, cfg=cfg, slots=slots, dtype=jnp.float32)


def _read(case: Case, *contexts, more: int = 16):
    """The cache of these contexts behind a foreign one, which is row 0."""
    packed = context.pack([_foreign(case), *contexts], len(contexts) + 1, case.cfg.layout)
    return _prefill(case.params[0], packed, cfg=case.cfg, slots=context.capacity(packed, more))


def _check_cache(case: Case, section: str, cache) -> None:
    rows = [slice(0, n) for n in np.asarray(cache.length[1:])]
    for name, ours in (("cache_k", cache.k), ("cache_v", cache.v)):
        found = np.concatenate([ours[:, 1 + i, r] for i, r in enumerate(rows)], axis=1)
        np.testing.assert_allclose(found, case.outputs[f"{section}/{name}"], **TOLERANCE)


def _greedy(case: Case, cache, want: np.ndarray, returned) -> None:
    """Step logits, and the ids of the loop; the original drops the last token it computes."""
    model, cfg = case.params[0], dataclasses.replace(case.cfg, eos=-1)  # it never stopped at eos
    advance = jit(functools.partial(text_generator.step, cfg=cfg, dtype=jnp.float32))
    last, growing = jnp.full(2, case.cfg.bos), mot.WritingCache.of(cache)
    for logits in want:
        growing, found = advance(model, growing, last)
        np.testing.assert_allclose(found[1], logits, **TOLERANCE)
        last = jnp.argmax(found, axis=-1)
        assert int(last[1]) == int(np.argmax(logits))
    count = len(want) - 1
    loop = jit(
        functools.partial(
            text_generator.decode, cfg=cfg, max_tokens=len(want) + 3, dtype=jnp.float32
        )
    )
    ids, counts = loop(
        model, cache, jnp.zeros(2, jnp.uint32), jnp.zeros(2), jnp.array([count + 2, count])
    )
    assert counts.tolist() == [count + 2, count]
    assert ids[1, :count].tolist() == list(returned)


def check_und(case: Case):
    items = _context(case, "und", case.meta["und/contexts"])
    packed = context.pack([_foreign(case), items], 2, case.cfg.layout)
    forward = jit(
        lambda p: bagel.forward(
            p, case.cfg, packed, packed.latents, jnp.zeros(packed.noisy.shape), keep="hidden"
        )
    )
    und, _, (layers, _) = forward(case.params[0])
    real = packed.und.index[1] >= 0  # understanding has no gen tokens: in packed order already
    start = 0
    for entry, name in zip(case.meta["und/contexts"], ("image", "text"), strict=True):
        part = slice(start, entry["kvlens_out"][0])
        start = part.stop
        for i, hidden in enumerate([*layers, und]):
            tap = f"layer{i}" if i < len(layers) else "final"
            want = case.outputs[f"und/prefill_{name}/{tap}"]
            np.testing.assert_allclose(np.asarray(hidden)[1][real][part], want, **TOLERANCE)
    cache = _read(case, items)
    assert cache.length[1:].tolist() == case.meta["und/kv_lens"]
    assert cache.position[1:].tolist() == case.meta["und/ropes"]
    _check_cache(case, "und", cache)
    returned = case.outputs["und/returned_ids"].tolist()
    assert returned[0] == case.cfg.bos
    assert case.outputs["und/step_argmax"][:-1].tolist() == returned[1:]
    _greedy(case, cache, case.outputs["und/step_logits"], returned[1:])


def _settings(run: dict):
    """The sample section of a config that says what a run of the original did."""
    return types.SimpleNamespace(
        steps=run["num_timesteps"] - 1,
        shift=run["timestep_shift"],
        guidance=run["cfg_text_scale"],
        image_guidance=run["cfg_img_scale"],
        guidance_interval=tuple(run["cfg_interval"]),
        renorm=run["cfg_renorm_type"],
        renorm_min=run.get("cfg_renorm_min", 0.0),
    )


def _sample(case: Case, section: str, contexts: list[dict], sizes, noises, settings):
    """Rows 1.. of the trajectory [S+1,B,G,·], times, and of each step's velocities, by branch."""
    cfg, model = case.cfg, case.params[0]
    how = guidance.Guidance.of(settings, official=True)
    how = dataclasses.replace(how, renorm=settings.renorm)  # rows are requests of their own
    cond = _read(case, *(c["context"] for c in contexts), more=0)

    def part(name):
        short = [_foreign(case)[:1]] + [
            c["context"][: c["plain"]] if name == "text" else c["texts"] for c in contexts
        ]
        return short

    caches = guidance.GuidanceCaches(cond)
    if how.text:
        lengths = np.array([context.extent(c) for c in part("text")]).T
        caches = caches.replace(text=context.shortened(cond, *jnp.asarray(lengths)))
    by_cond = how.image and all(c["texts"] == c["context"] for c in contexts)
    if how.image and not by_cond:
        packed = context.pack(part("image"), len(contexts) + 1, cfg.layout)
        own = _prefill(model, packed, cfg=cfg, slots=context.capacity(packed))
        caches = caches.replace(image=own)
    rng = np.random.default_rng(3)
    foreign = rng.normal(size=(6, cfg.token_dim)).astype(np.float32)
    grids = [(2, 3), *(latent_grid(tuple(s), cfg.layout) for s in sizes)]
    grid = denoising.empty_grid(grids, len(grids), cfg.layout)
    ids = grid.positions[1:][grid.valid[1:]]
    key = f"{section}/latent_packed_vae_position_ids"
    if key in case.inputs.files:
        np.testing.assert_array_equal(ids, case.inputs[key])
    grid = jax.tree.map(lambda a: np.pad(a, ((0, 0), (0, 5), *[(0, 0)] * (a.ndim - 2))), grid)
    for row, x in zip(grid.noise, [foreign, *noises], strict=True):
        row[: len(x)] = x
    run = jit(
        functools.partial(
            denoising.sample_latents,
            cfg=cfg,
            guidance=how,
            image_by_cond=by_cond,
            dtype=jnp.float32,
            trace=True,
        )
    )
    last, traces = run(model, caches, grid, guidance.SamplingParams.of(settings))
    x = np.concatenate([*(t[0] for t in traces), last[None]])
    counts = [h * w for h, w in grids[1:]]
    return x, traces, counts, how


def _cut(a: np.ndarray, counts) -> np.ndarray:
    """[..., B, G, ·], row 0 foreign -> requests one after the other [..., sum(counts), ·]."""
    return np.concatenate([np.asarray(a)[..., 1 + i, :n, :] for i, n in enumerate(counts)], axis=-2)


@functools.cache
def _show(case: Case):
    return ImageDecoder(case.params[1], case.cfg).decode


def _check_image(case: Case, key: str, tokens: np.ndarray, size) -> None:
    h, w = latent_grid(tuple(size), case.cfg.layout)
    latent = rearrange(tokens, "(h w) d -> h w d", h=h)
    want = case.outputs[f"{key}/image_u8"]
    assert np.abs(_show(case)([latent])[0].astype(int) - want.astype(int)).max() <= 1
    if f"{key}/image_float" in case.outputs.files:
        z = unpatchify(tokens[None], case.cfg.latent_patch, h, w)
        scaled = rearrange(z / case.cfg.vae.scale + case.cfg.vae.shift, "n h w c -> n c h w")
        np.testing.assert_allclose(scaled, case.outputs[f"{key}/vae_decoder_in"], **TRAJECTORY)
        pixels = jit(functools.partial(vae.decode, cfg=case.cfg.vae))(case.params[1], latents=z)
        pixels = rearrange(pixels, "n h w c -> n c h w")
        np.testing.assert_allclose(pixels, case.outputs[f"{key}/image_float"], **TRAJECTORY)


def _check_run(case: Case, section: str, name: str, contexts: dict) -> None:
    key = f"{section}/{name}" if name else section
    run = case.meta[f"{key}/settings"] if name else case.meta[section]["settings"]
    size, settings = run["image_shape"], _settings(run)
    noise = [case.inputs[f"{section}/init_noise"]]
    x, traces, counts, how = _sample(case, section, [contexts], [size], noise, settings)
    np.testing.assert_allclose(_cut(x, counts), case.outputs[f"{key}/x_t"], **TRAJECTORY)
    if f"{key}/t" in case.outputs.files:
        times = guidance.SamplingParams.of(settings).times[:-1]
        np.testing.assert_allclose(times, case.outputs[f"{key}/t"], **TOLERANCE)
    if f"{key}/v_t" in case.outputs.files:
        guided = np.concatenate([t[2] for t in traces])
        np.testing.assert_allclose(_cut(guided, counts), case.outputs[f"{key}/v_t"], **TRAJECTORY)
        cond = np.concatenate([t[1][:, 0] for t in traces])
        np.testing.assert_allclose(_cut(cond, counts), case.outputs[f"{key}/v_cond"], **TRAJECTORY)
        others = np.concatenate(
            [t[1][:, 1:] for t, r in zip(traces, how.runs, strict=True) if r[0]]
        )
        for n, branch in enumerate(("text", "img")):
            if f"{key}/v_cfg_{branch}" in case.outputs.files:
                found = _cut(others[:, n], counts)
                want = case.outputs[f"{key}/v_cfg_{branch}"]
                np.testing.assert_allclose(found, want, **TRAJECTORY)
    _check_image(case, key, _cut(x[-1], counts), size)


def _check_contexts(case: Case, section: str, contexts: dict) -> None:
    """Lengths and positions of the three contexts are the original's."""
    parts = {
        "gen": contexts["context"],
        "cfg_text": contexts["context"][: contexts["plain"]],
        "cfg_img": contexts["texts"],
    }
    for name, part in parts.items():
        want = case.meta[f"{section}/{name}"]
        assert context.extent(part) == (want["kv_lens"][0], want["ropes"][0]), name


def _runs(case: Case, section: str) -> list[str]:
    parts = [k.split("/") for k in case.meta if k.startswith(f"{section}/")]
    return [p[1] for p in parts if p[-1] == "settings"]


def check_gen(case: Case):
    items = _context(case, "gen", case.meta["gen/contexts"])
    contexts = image_request.guidance_contexts(items)
    _check_contexts(case, "gen", contexts)
    assert _runs(case, "gen")
    for name in _runs(case, "gen"):
        _check_run(case, "gen", name, contexts)


def check_edit(case: Case):
    items = _context(case, "edit", case.meta["edit/contexts"])
    contexts = image_request.guidance_contexts(items)
    _check_contexts(case, "edit", contexts)
    _check_cache(case, "edit", _read(case, items))
    assert _runs(case, "edit")
    for name in _runs(case, "edit"):
        _check_run(case, "edit", name, contexts)


def check_think(case: Case):
    meta = case.meta["think"]
    system, *items, thought = _context(case, "think", meta["contexts"])
    cache = _read(case, (system, *items), more=32)
    written = thought.ids.tolist()
    assert "".join(f" {i}" for i in written) == meta["text"]
    _greedy(case, cache, case.outputs["think/step_logits"], written)
    contexts = image_request.guidance_contexts(tuple(items), system=system, thought=thought)
    _check_run(case, "think", "", contexts)


def check_batch(case: Case):
    meta = case.meta["batch"]
    texts = _items(case, "batch", {"key": "batch/ctx0_prompts/", "kind": "prompts"})
    pictures = _items(case, "batch", {"key": "batch/ctx1_vit/", "kind": "vit_images"})
    contexts = list(zip(texts, pictures, strict=True))
    _check_cache(case, "batch", _read(case, *contexts))
    sizes = meta["image_sizes"]
    ends = np.cumsum([np.prod(latent_grid(tuple(s), case.cfg.layout)) for s in sizes])[:-1]
    noises = np.split(case.inputs["batch/latent_packed_init_noises"], ends)
    # Here text guidance compares with nothing at all.
    requests = [{"context": c, "plain": 0, "texts": c} for c in contexts]
    settings = _settings(meta["settings"])
    x, _, counts, _ = _sample(case, "batch", requests, sizes, noises, settings)
    np.testing.assert_allclose(_cut(x, counts), case.outputs["batch/x_t"], **TRAJECTORY)
    times = guidance.SamplingParams.of(settings).times[:-1]
    np.testing.assert_allclose(times, case.outputs["batch/t"], **TOLERANCE)
