"""Parity with the official PyTorch code, through the functions that training and inference use.

`SRUM_GOLDENS=DIR python -m pytest tests -k golden` adds further cases.
"""

import functools

import golden_janus
import golden_sam
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from einops import rearrange
from golden_cases import OURS, Case, collect, found, packed, samples, spread
from golden_evals.case import EvalsCase
from golden_inference import check_batch, check_edit, check_gen, check_think, check_und

from srum_jax import flow
from srum_jax.core import loss as losses
from srum_jax.core.param_tree import flatten
from srum_jax.models.attention import mask
from srum_jax.models.bagel import hf, vae, vit
from srum_jax.models.bagel import model as bagel
from srum_jax.objectives import srum, terms
from srum_jax.rewards import maps
from srum_jax.training import step as training_step
from srum_jax.training.state import FrozenParams, create

TOLERANCE = dict(rtol=1e-4, atol=1e-4)
LONG = {"edit", "gen", "srum", "srum_mixed", "train", "vae"}


@pytest.fixture(autouse=True)
def exact_matmuls():
    with jax.default_matmul_precision("highest"):
        yield


def _draws(case: Case, section: str, pack) -> flow.Draws:
    raw = spread(case.inputs[f"{section}/packed_timesteps"], pack.vae_at, -np.inf)
    images = np.asarray(pack.batch.latent_images)
    per_image = np.full(pack.batch.noisy.shape, -np.inf, np.float32)
    real = pack.vae_at >= 0
    rows = np.broadcast_to(np.arange(len(images))[:, None], images.shape)
    per_image[rows[real], images[real]] = raw[real]
    time = flow.training_time(jnp.asarray(per_image), case.constants["timestep_shift"])
    return flow.Draws(t=time, noise=spread(case.inputs[f"{section}/noise"], pack.vae_at))


@functools.cache
def _entries(case: Case) -> dict:
    return {e.name: e for part in hf.table(case.cfg).values() for e in part}


def _official(name: str, tree: dict, case: Case) -> np.ndarray:
    """The leaf of one of our trees under its official name and layout."""
    entry = _entries(case)[name]
    leaf = np.asarray(flatten(tree)[entry.path])
    return entry.to_official(leaf if entry.layer is None else leaf[entry.layer])


def _check_gradients(case: Case, section: str, grads) -> None:
    stored = [k for k in case.outputs.files if k.startswith(f"{section}/grad/")]
    assert stored
    for key in stored:
        want = case.outputs[key]
        ours = _official(key.split("/grad/")[1], grads, case)
        worst = np.abs(ours - want).max()
        assert worst <= 5e-4 * np.abs(want).max() + 1e-12, (key, worst)
    for name, stats in case.meta[f"{section}/grad_stats"].items():
        if name not in _entries(case):
            continue  # the fixed sin-cos tables
        ours = _official(name, grads, case)
        if stats is None or stats["absmax"] == 0:
            assert np.abs(ours).max() == 0, name
        else:
            # A key bias shifts all scores of a query alike: its gradient is rounding alone, 1e-9.
            assert np.abs(ours).max() == pytest.approx(stats["absmax"], rel=1e-3, abs=1e-7), name
            assert np.linalg.norm(ours) == pytest.approx(stats["l2"], rel=1e-3, abs=1e-7), name


def _train_loss(cfg, draws):
    def loss_fn(params, reference, batch, key):
        out = terms.Predictor(cfg, jnp.float32, "full")(params, batch, draws)
        ce, _ = terms.cross_entropy(params, out.und, batch)
        mse = srum.sft(out.velocity, batch, draws, out.trained)
        return losses.LossOut({"ce": ce, "mse": mse}, {}, (("ce", 1.0), ("mse", 1.0)))

    return loss_fn


def _gradients(loss_fn, params, batch):
    run = functools.partial(training_step.gradients, loss_fn, micro_batches=1)
    return jax.jit(run)(params, FrozenParams({}, None), batch, jax.random.key(0))


def check_vit(case: Case):
    model, _ = case.params
    get = {k.split("/")[1]: case.inputs[k] for k in case.inputs.files if k.startswith("vit/")}
    p = case.cfg.vit.patch
    rebuilt = np.concatenate(
        [
            rearrange(get[f"image_{i}"], "c (h p) (w q) -> (h w) (p q c)", p=p, q=p)
            for i in range(len(get["vit_token_seqlens"]))
        ]
    )
    np.testing.assert_array_equal(rebuilt, get["packed_pixel_values"])
    count = len(rebuilt)
    pad = 3
    patches = np.pad(rebuilt, ((0, pad), (0, 0)))[None]
    ids = np.pad(get["packed_position_ids"], (0, pad))[None]
    images = np.repeat(np.arange(len(get["vit_token_seqlens"])), get["vit_token_seqlens"])
    images = np.pad(images, (0, pad), constant_values=-1)[None].astype(np.int32)
    features = vit.encode(model["vit"], case.cfg.vit, jnp.asarray(patches), ids, images)
    np.testing.assert_allclose(features[0, :count], case.outputs["vit/features"], **TOLERANCE)
    embedded = bagel.embed_pictures(
        model, case.cfg, jnp.asarray(patches), ids, images, dtype=jnp.float32, remat="full"
    )
    np.testing.assert_allclose(embedded[0, :count], case.outputs["vit/llm_embeds"], **TOLERANCE)


def check_vae(case: Case):
    _, params = case.params
    cfg = case.cfg.vae
    image = rearrange(case.inputs["vae/image"], "n c h w -> n h w c")
    noise = rearrange(case.inputs["vae/encode_eps"], "n c h w -> n h w c")
    mean, logvar = vae.encode_moments(params, cfg, image)
    moments = rearrange(jnp.concatenate([mean, logvar], -1), "n h w c -> n c h w")
    np.testing.assert_allclose(moments, case.outputs["vae/moments"], **TOLERANCE)
    latent = rearrange(vae.encode(params, cfg, image, noise=noise), "n h w c -> n c h w")
    np.testing.assert_allclose(latent, case.outputs["vae/latent"], **TOLERANCE)
    z = rearrange(case.inputs["vae/decode_latent"], "n c h w -> n h w c")
    want = rearrange(case.outputs["vae/decoded"], "n c h w -> n h w c")
    np.testing.assert_allclose(vae.decode(params, cfg, z), want, **TOLERANCE)


def check_train(case: Case):
    model, _ = case.params
    pack = packed(case, "train")
    draws = _draws(case, "train", pack)
    out = {
        k.split("/", 1)[1]: case.outputs[k] for k in case.outputs.files if k.startswith("train/")
    }
    batch = pack.batch
    t = flow.token_time(batch, draws.t)
    real = pack.vae_at >= 0
    for tokens, at in ((batch.und, pack.und_at), (batch.gen, pack.gen_at)):
        positions = case.inputs["train/packed_position_ids"][at[at >= 0]]
        np.testing.assert_array_equal(tokens.position[at >= 0], positions)
    ids = case.inputs["train/packed_latent_position_ids"][pack.vae_at[real]]
    np.testing.assert_array_equal(batch.latent_positions[real], ids)
    np.testing.assert_allclose(np.asarray(t)[real], out["t"][pack.vae_at[real]], **TOLERANCE)
    x_t = flow.interpolate(batch.latents, draws.noise, t)
    np.testing.assert_allclose(np.asarray(x_t)[real], out["x_t"][pack.vae_at[real]], **TOLERANCE)

    und, gen, layers = jax.jit(
        lambda p: bagel.forward(p, case.cfg, batch, x_t, draws.t, keep="hidden")
    )(model)
    total, width = out["llm_final"].shape

    def assembled(u, g):
        hidden = np.full((total, width), np.nan, np.float32)
        collect(u, pack.und_at, hidden)
        collect(g, pack.gen_at, hidden)
        return hidden

    for i in range(case.cfg.llm.layers):
        hidden = assembled(layers[0][i], layers[1][i])
        np.testing.assert_allclose(hidden, out[f"llm_layer{i}"], **TOLERANCE)
    np.testing.assert_allclose(assembled(und, gen), out["llm_final"], **TOLERANCE)

    mse_at = {int(i): n for n, i in enumerate(case.inputs["train/mse_loss_indexes"])}
    slots = np.vectorize(lambda i: mse_at.get(int(i), -1))(pack.gen_at)
    velocity = np.zeros_like(out["v_theta"])
    collect(bagel.velocity(model, gen), slots, velocity)
    np.testing.assert_allclose(velocity, out["v_theta"], **TOLERANCE)
    target = np.zeros_like(out["target"])
    collect(flow.target(batch.latents, draws.noise), slots, target)
    np.testing.assert_allclose(target, out["target"], **TOLERANCE)

    loss, means, grads = _gradients(_train_loss(case.cfg, draws), model, batch)
    np.testing.assert_allclose(loss, out["loss"], **TOLERANCE)
    np.testing.assert_allclose(means["ce"], out["ce_mean"], **TOLERANCE)
    # The official MSE is elementwise; its mean over tokens and channels is what is minimised.
    np.testing.assert_allclose(means["mse"], out["mse"], **TOLERANCE)
    _check_gradients(case, "train", grads)


def _dense_rewards(case: Case, section: str, pack) -> np.ndarray:
    """Token weights [B,G] from the case's dense maps, by the sampling the losses use."""
    shapes = case.inputs[f"{section}/patchified_vae_latent_shapes"]
    if f"{section}/regional_reward_map" in case.inputs.files:
        dense = list(case.inputs[f"{section}/regional_reward_map"])
    else:
        dense = [case.inputs[f"{section}/reward_map_{i}"] for i in range(len(shapes))]
    tokens = [
        np.asarray(maps.sample_map(m, int(h), int(w))).reshape(-1)
        for m, (h, w) in zip(dense, shapes, strict=True)
    ]
    return spread(np.concatenate(tokens), pack.vae_at)


def _check_srum(case: Case, section: str, with_ce: bool):
    """Terms, loss and gradients of a section; (state after one step, its metrics, gradients)."""
    model, _ = case.params
    pack = packed(case, section)
    draws, weights = _draws(case, section, pack), _dense_rewards(case, section, pack)
    lam = case.meta[f"{section}/lambda_constraint"]
    out = {
        k.split("/", 1)[1]: case.outputs[k]
        for k in case.outputs.files
        if k.startswith(section + "/")
    }
    real = pack.vae_at >= 0
    np.testing.assert_allclose(weights[real], out["rewards"][pack.vae_at[real]], **TOLERANCE)

    def loss_fn(params, reference, batch, key):
        p = terms.Predictor(case.cfg, jnp.float32, "full")(params, batch, draws)
        reward, con = srum.release(p.velocity, batch, draws, p.trained, jnp.asarray(weights))
        found_terms = {"reward": reward, "constraint": con}
        coefficients = (("reward", 1.0), ("constraint", lam))
        if with_ce:
            found_terms["ce"] = terms.cross_entropy(params, p.und, batch)[0]
            coefficients += (("ce", 1.0),)
        return losses.LossOut(
            found_terms, {"mse": srum.sft(p.velocity, batch, draws, p.trained)}, coefficients
        )

    # One program for the gradients and the step that is made of them.
    tx = optax.chain(
        optax.snapshot("gradients", lambda updates: updates),
        optax.clip_by_global_norm(1.0),
        optax.adamw(1e-3, b1=0.9, b2=0.95, eps=1e-15, weight_decay=0.0),
    )
    advance = jax.jit(
        functools.partial(training_step.step, loss_fn=loss_fn, tx=tx, ema=0.9, micro_batches=1)
    )
    state = create(model, tx)
    state, metrics = advance(state, FrozenParams({}, None), pack.batch, jax.random.key(0))
    grads = optax.tree.get(state.opt_state, "gradients")
    reward, constraint = metrics["reward"], metrics["constraint"]
    np.testing.assert_allclose(reward, out["loss_reward"], **TOLERANCE)
    np.testing.assert_allclose(constraint, out["loss_constraint"], **TOLERANCE)
    np.testing.assert_allclose(reward + lam * constraint, out["mse"], **TOLERANCE)
    np.testing.assert_allclose(metrics["mse"], out["unweighted_mse_bad"], **TOLERANCE)
    np.testing.assert_allclose(metrics["loss"], out["loss"], **TOLERANCE)
    _check_gradients(case, section, grads)
    return state, metrics, grads


def check_srum(case: Case):
    state, metrics, grads = _check_srum(case, "srum", with_ce=False)
    first = case.meta["srum/adamw_step0"]
    assert float(metrics["grad_norm"]) == pytest.approx(first["total_norm"], rel=1e-4)
    assert float(metrics["loss"]) == pytest.approx(first["loss"], rel=1e-4)
    for key in [k for k in case.outputs.files if k.startswith("srum/adamw_step0/")]:
        name = key.split("/", 2)[2]
        gradient = _official(name, grads, case)
        clear = np.abs(gradient) > 1e-3 * np.abs(gradient).max()
        ours = _official(name, state.params, case)
        assert clear.any()
        np.testing.assert_allclose(ours[clear], case.outputs[key][clear], **TOLERANCE)


def check_srum_mixed(case: Case):
    _check_srum(case, "srum_mixed", with_ce=True)


CHECKS = {
    "vit": check_vit,
    "vae": check_vae,
    "train": check_train,
    "srum": check_srum,
    "srum_mixed": check_srum_mixed,
    "und": check_und,
    "gen": check_gen,
    "edit": check_edit,
    "think": check_think,
    "batch": check_batch,
}
CASES, _ = found()
BAGEL = [c for c in CASES if isinstance(c, Case)]


def _sections(case):
    there = case.sections()
    return [s for s in CHECKS if s in there] if isinstance(case, Case) else there


def test_golden_cases_exist():
    assert CASES, "no golden case found"


def test_folders_are_told_apart_by_their_json(tmp_path, monkeypatch):
    for name, content in (("bert", '{"model_type": "bert"}'), ("bare", '{"model_type": "sam"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text("{")
    (tmp_path / "mine").symlink_to(OURS / "samA")
    monkeypatch.setenv("SRUM_GOLDENS", str(tmp_path))
    cases, others = found()
    mine = next(c for c in cases if c.name == "mine")
    assert {"bare", "bert", "torn", "common"} <= set(others)
    assert {c.name for c in cases} >= {"caseA", "samA"} and "points_mask" in mine.sections()


def _marks(case, section):
    """The longest sections of our own second case, those of the first are the quick ones; and of
    that one what goes through the same programs as a shorter section."""
    longer = {
        OURS / "caseA": {"edit", "srum_mixed", "think"},
        OURS / "caseB": LONG | {"und", "vit"},
        OURS / "janusA": {"train", "und"},
    }
    return pytest.mark.slow if section in longer.get(case.folder, ()) else ()


@pytest.mark.parametrize(
    ("case", "section"),
    [
        pytest.param(c, s, id=f"{c.name}-{s}", marks=_marks(c, s))
        for c in CASES
        for s in _sections(c)
    ],
)
def test_golden(case, section):
    if isinstance(case, Case):
        CHECKS[section](case)
    elif isinstance(case, EvalsCase):
        case.check(section)
    elif isinstance(case, golden_janus.JanusCase):
        golden_janus.check(case, section)
    else:
        golden_sam.check(case, section)


@pytest.mark.parametrize("case", BAGEL, ids=lambda c: c.name)
def test_mask_equals_the_official_dense_masks(case):
    for section in ("train", "srum", "srum_mixed"):
        if section not in case.sections():
            continue
        pack = packed(case, section)
        tokens = jax.tree.map(
            lambda a, b: np.concatenate([a, b], axis=1), pack.batch.und, pack.batch.gen
        )
        at = np.concatenate([pack.und_at, pack.gen_at], axis=1)
        ours = np.asarray(mask(tokens, tokens))
        total = int(case.inputs[f"{section}/sequence_length"])
        official = np.zeros((total, total), bool)
        start = 0
        for i in range(len(samples(case, section))):
            dense = case.inputs[f"{section}/attn_mask_{i}"]
            official[start : start + len(dense), start : start + len(dense)] = dense
            start += len(dense)
        for b in range(len(at)):
            real = np.flatnonzero(at[b] >= 0)
            others = np.flatnonzero(at[b] < 0)
            where = at[b][real]
            np.testing.assert_array_equal(
                ours[b][np.ix_(real, real)], official[np.ix_(where, where)]
            )
            assert not ours[b][np.ix_(real, others)].any()
