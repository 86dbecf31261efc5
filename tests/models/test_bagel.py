"""The whole forward: who sees whom by gradients, packing that changes nothing, what comes out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import CFG, edit, jit, pack, questions, talk, text_to_image, weights

from srum_jax import flow
from srum_jax.core import param_tree
from srum_jax.data.schema import Latent, Picture, Text
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import model_config


@pytest.fixture(scope="module")
def params():
    return weights()


def forward(params, batch, dtype=jnp.float32):
    """Hidden states of both lanes at the noise and times that training would draw."""
    draws = flow.draw(batch, jax.random.key(3), mean=0.0, std=1.0, shift=2.0)
    x_t = flow.interpolate(batch.latents, draws.noise, flow.token_time(batch, draws.t))
    return bagel.forward(params, CFG, batch, x_t, draws.t, dtype=dtype)[:2]


run = jit(forward, static_argnames="dtype")


def sample(batch, und, gen, row, segment):
    """[tokens, features] of one sample in packed order, whatever its lanes."""
    parts = []
    for tokens, x in ((batch.und, und), (batch.gen, gen)):
        mine = tokens.segment[row] == segment
        parts.append((tokens.index[row][mine], np.asarray(x)[row][mine]))
    order, hidden = (np.concatenate(x) for x in zip(*parts, strict=True))
    return hidden[np.argsort(order)]


# ------------------------------------------------------------------------------------ visibility


def names(examples):
    """(example, item) of every token of a row, in packed order."""
    found = []
    for e, example in enumerate(examples):
        for i, item in enumerate(example.items):
            if isinstance(item, Text):
                count = len(item.ids) + 2
            elif isinstance(item, Picture):
                count = len(item.positions) + 2
            elif isinstance(item, Latent):
                count = item.tokens.shape[0] * item.tokens.shape[1] + 2
            else:
                count = sum(len(text.ids) + 2 for text in item.texts)
            found += [(e, i)] * count
    return np.array(found)


@pytest.fixture(scope="module")
def seen(params):
    """(names [S,2], influence [S,S]): which input token moves which hidden state of a row."""
    row = [talk(0), edit(1), questions(2)]
    batch = pack([row], spare=2)
    u, g = batch.und.index.shape[1], batch.gen.index.shape[1]
    # A word of its own at every place, so that the table's rows are the places.
    batch = batch.replace(text_ids=np.arange(u, dtype=np.int32)[None])
    assert u <= CFG.llm.vocab
    probe = np.random.default_rng(5).normal(size=CFG.llm.hidden).astype(np.float32)

    @jit
    def influence(table, patches, latents):
        def hidden(table, patches, latents):
            b = batch.replace(vit_patches=patches)
            und, gen, _ = bagel.forward(
                params | {"embed": table}, CFG, b, latents, jnp.full(batch.noisy.shape, 0.3)
            )
            return jnp.concatenate([und, gen], axis=1)[0] @ probe

        _, back = jax.vjp(hidden, table, patches, latents)
        # One query after the other: jaxlib 0.10 gets such gradients wrong under vmap on CPU.
        return jax.lax.map(
            lambda query: [jnp.any(x != 0, axis=-1) for x in back(query)], jnp.eye(u + g)
        )

    words, patches, latents = map(
        np.asarray, influence(params["embed"], batch.vit_patches, batch.latents)
    )
    by_und = words[:, :u].copy()
    slots = batch.vit_slots[0]
    assert not by_und[:, slots[slots < u]].any()  # the word under a patch is never read
    by_und[:, slots[slots < u]] = patches[:, 0][:, slots < u]
    lanes = np.concatenate([by_und, latents[:, 0]], axis=1)
    index = np.concatenate([batch.und.index[0], batch.gen.index[0]])
    padding = index < 0
    assert not lanes[~padding][:, padding].any() and not lanes[padding][:, ~padding].any()
    order = np.argsort(index)[padding.sum() :]
    return names(row), lanes[np.ix_(order, order)]


TALK, EDIT, ASK = 0, 1, 2


def block(seen, query, key):
    """The part of the influence of one (example, item) on another."""
    who, influence = seen
    return influence[np.ix_((who == query).all(1), (who == key).all(1))]


@pytest.mark.parametrize("item", [(TALK, 0), (TALK, 1), (EDIT, 2), (EDIT, 4), (ASK, 1), (ASK, 2)])
def test_text_is_causal(seen, item):
    found = block(seen, item, item)
    np.testing.assert_array_equal(found, np.tri(len(found), dtype=bool))


@pytest.mark.parametrize("item", [(EDIT, 0), (EDIT, 1), (EDIT, 3), (ASK, 0)])
def test_images_are_bidirectional(seen, item):
    assert block(seen, item, item).all()


def test_every_split_sees_the_earlier_ones_but_not_a_noisy_image(seen):
    for query in range(5):
        for key in range(5):
            if key != query:
                visible = key < query and key != 3
                assert (block(seen, (EDIT, query), (EDIT, key)) == visible).all(), (query, key)


def test_questions_read_the_picture_and_not_each_other(seen):
    assert block(seen, (ASK, 1), (ASK, 0)).all() and block(seen, (ASK, 2), (ASK, 0)).all()
    assert not block(seen, (ASK, 2), (ASK, 1)).any() and not block(seen, (ASK, 1), (ASK, 2)).any()
    assert not block(seen, (ASK, 0), (ASK, 1)).any()


def test_neighbours_in_a_row_are_invisible(seen):
    who, influence = seen
    np.testing.assert_array_equal(
        influence.any(axis=1),
        np.ones(len(who), bool),  # everyone at least sees itself
    )
    assert not influence[who[:, :1] != who[None, :, 0]].any()


# --------------------------------------------------------------------------------------- packing


def test_packing_changes_nothing(params):
    """Alone, with neighbours, in another row of longer lanes: the same hidden states."""
    examples = {
        "draw": text_to_image(1, noise_id=5),
        "edit": edit(2, noise_id=6),
        "ask": questions(3),
        "talk": talk(4),
    }
    e = examples
    alone = pack([[x] for x in e.values()])
    und, gen = run(params, alone)
    want = {n: sample(alone, und, gen, row, 1) for row, n in enumerate(e)}
    other = edit(9, noise_id=7)
    layout = [["talk", "edit", "other", "draw"], ["ask", "other", "draw", "ask"]]
    together = pack([[(e | {"other": other})[n] for n in row] for row in layout], spare=5)
    und, gen = run(params, together)
    assert np.isfinite(und).all() and np.isfinite(gen).all()  # padding too
    for row, members in enumerate(layout):
        for segment, name in enumerate(members, start=1):
            if name != "other":
                found = sample(together, und, gen, row, segment)
                np.testing.assert_allclose(found, want[name], atol=1e-5, err_msg=name)


def test_a_draw_depends_on_its_prompt_and_its_time(params):
    """The check above would pass for a model that ignored its inputs."""
    batch = pack([[text_to_image(1)], [text_to_image(1)]])
    _, (first, second) = run(params, batch)
    np.testing.assert_allclose(first, second, atol=1e-6)
    words = batch.text_ids.copy()
    words[1, 1] += 1
    _, (first, second) = run(params, batch.replace(text_ids=words))
    assert np.abs(first - second).max() > 1e-3
    cells = batch.latent_positions.copy()
    cells[1, 0] += 1
    _, (first, second) = run(params, batch.replace(latent_positions=cells))
    assert np.abs(first - second).max() > 1e-3
    _, (first, second) = run(params, batch.replace(noise_ids=batch.noise_ids + [[0], [1]]))
    assert np.abs(first - second).max() > 1e-3


def test_text_owes_nothing_to_the_gen_expert(params):
    """Row 0 is words and a picture, row 1 draws first: the gen expert reaches that row alone."""
    batch = pack([[talk(0), questions(1)], [edit(2)]])
    gen_only = ("blocks/gen", "norm/gen", "time", "vae2llm", "llm2vae")
    other = param_tree.flatten(weights(seed=1))
    changed = {
        p: other[p] if p.startswith(gen_only) else x for p, x in param_tree.flatten(params).items()
    }
    before, after = (np.asarray(run(p, batch)[0]) for p in (params, param_tree.unflatten(changed)))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 1e-2


# ----------------------------------------------------------------------------------- what is read


def test_velocities_and_logits(params):
    batch = pack([[text_to_image(1), questions(3)]], spare=1)
    und, gen = run(params, batch)
    velocity = bagel.velocity(params, gen)
    assert velocity.shape == (1, batch.gen.index.shape[1], CFG.token_dim)
    logits = bagel.logits(params, und, batch.label_slots)
    assert logits.shape == (1, batch.label_slots.shape[1], CFG.llm.vocab)
    slot = int(batch.label_slots[0, 1])
    np.testing.assert_allclose(
        logits[0, 1], np.asarray(und)[0, slot] @ params["lm_head"]["w"], atol=1e-5
    )


def test_the_big_preset_has_the_official_size():
    """BAGEL-7B-MoT: 7 B in the und path, the gen expert again 6.5 B, ViT 0.4 B."""
    specs = bagel.specs(model_config.BAGEL_7B_MOT)
    billions = {k: param_tree.count(v) / 1e9 for k, v in (*specs.items(), *specs["blocks"].items())}
    assert billions["und"] == billions["gen"] == pytest.approx(6.526, abs=0.01)
    assert billions["vit"] == pytest.approx(0.41, abs=0.02)
    assert param_tree.count(specs) / 1e9 == pytest.approx(14.6, abs=0.2)
