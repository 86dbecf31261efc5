"""Which candidates are trained on, and with which scores, masks and advantages."""

import contextlib
import dataclasses
import tracemalloc

import numpy as np
import pytest
import tiny
from stages.test_train import PROMPTS, UNSCORED, config, records, summaries, write

from srum_jax import programs
from srum_jax.core.errors import BadInput
from srum_jax.data import masks, packing, shards, sources
from srum_jax.data.schema import Lanes
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.stages import loading, selection, training_set
from srum_jax.stages.manifest import Workdir
from srum_jax.worlds.shapes.examples import write_tokenizer


def test_candidates_without_a_score_are_left_out_and_counted():
    drawn, scored = records()
    drawn = summaries(drawn, (32, 24))
    found, left_out = selection.candidates(drawn, scored[::-1], "components")
    assert left_out == 1 and len(found) == len(drawn) - 1
    assert UNSCORED not in {c.id for c in found}
    c = next(c for c in found if c.id == "3-2")
    assert (c.prompt_id, c.prompt, c.size, c.grid) == (3, PROMPTS[3], (32, 24), tiny.GRID)
    assert drawn[c.place]["id"] == scored[::-1][c.judged]["id"] == c.id
    assert c.image_score == pytest.approx(0.3)
    # Regions of the first proposer that have a score.
    np.testing.assert_allclose(c.scores, [-0.6, -0.5, -0.4, -0.3], rtol=1e-5)
    assert c.boxes[:, 0].tolist() == [0, 1, 2, 3]
    found, _ = selection.candidates(drawn, scored, "grid")
    assert {len(c.scores) for c in found} == {1}
    found, _ = selection.candidates(drawn, scored, "nobody")
    assert found[0].boxes.shape == (0, 4)
    found, left_out = selection.candidates(drawn, scored, "components", first=1)
    assert left_out == 0 and [c.id for c in found] == [f"{p}-0" for p in range(len(PROMPTS))]


def test_candidates_and_scores_must_belong_together():
    drawn, scored = records()
    drawn = summaries(drawn)
    with pytest.raises(ValueError, match="candidate 4-2 has no score record: run the score stage"):
        selection.candidates(drawn[-1:], scored[:-1], "components")
    with pytest.raises(ValueError, match="none of the 1 candidates has a score"):
        of_2 = [r for r in drawn if r["id"] == UNSCORED]
        selection.candidates(of_2, scored, "components")


def group(scores):
    """Candidates of {id: (image score, scores of regions)}."""
    drawn, scored = [], []
    for name, (whole, regions) in scores.items():
        prompt, k = map(int, name.split("-"))
        drawn.append({"id": name, "prompt_id": prompt, "prompt": "", "k": k, "image": [32, 32, 3]})
        drawn[-1]["latent"] = tiny.GRID
        of = {"bbox": np.zeros(4), "status": "ok", "proposer": "grid"}
        regions = [{**of, "score": score} for score in regions]
        whole = {"image_score": whole, "image_status": "ok"}
        scored.append({"id": name, "regions": regions, **whole})
    return selection.candidates(drawn, scored, "grid")[0]


def test_masks_travel_from_the_records_to_the_example(tmp_path):
    """Of the second prompt: its first region, which is the strongest, has one."""
    mask = np.tri(32, dtype=bool)
    work = write(Workdir(tmp_path), tiny.load_config("unused"), masks.encode(mask))
    drawn, scored = (shards.read(work.stage(name)) for name in ("generate", "score"))
    found, _ = selection.candidates(drawn.summaries(), scored, "components")
    assert [c.masked for c in found] == [c.prompt_id == 1 for c in found]
    stored = training_set.StoredArrays(drawn, scored, "components")
    assert stored.masks(found[-1]) is None
    last = next(c for c in found if c.id == "1-2")  # regions -.6, -.5
    made = training_set.example(
        last,
        stored.latents(last),
        3,
        prompts=sources.Prompts(None),
        regions=4,
        dropped=True,
        region_masks=stored.masks(last),
    )
    shown = made.items[0].regions.masks
    assert [m is None for m in shown] == [False, True]
    np.testing.assert_array_equal(shown[0], mask)
    np.testing.assert_array_equal(made.items[0].tokens, drawn[last.place]["latent"])
    wrong = dataclasses.replace(last, size=(32, 9))
    with pytest.raises(ValueError, match="candidate 1-2, region 0: mask: .* 32x32 pixels for an i"):
        stored.masks(wrong)


def test_nothing_heavy_is_read_before_the_first_step(tmp_path, monkeypatch):
    """No picture is decoded and no latent fetched until a row is packed, and then its own alone."""
    cfg = config(tiny.write_model(tmp_path / "model"))
    work = write(Workdir(tmp_path / "work"), cfg)
    fetched = []
    decoded = shards.ShardRecords._decoded

    def watched(self, index, names, how):
        fetched.append((self.folder.name, names))
        return decoded(self, index, names, how)

    monkeypatch.setattr(shards.ShardRecords, "_decoded", watched)
    drawn, scored = (shards.read(work.stage(name)) for name in ("generate", "score"))
    found, _ = selection.candidates(drawn.summaries(), scored, "components")
    examples = training_set.TrainingSet(
        found,
        training_set.StoredArrays(drawn, scored, "components"),
        loading.prompts(loading.source(cfg, work)),
        programs.lanes(cfg.train),
        tiny.MODEL.layout,
        cfg.train,
        seed=0,
    )
    assert examples.sizes.shape == (len(found), 6) and examples.order.first
    assert {name for name, _ in fetched} == {"score"}
    fetched.clear()
    made = examples.row(0)
    assert fetched == [("generate", ("latent",))] * len(made)
    for one, i in zip(made, examples.order(0)[1], strict=True):
        np.testing.assert_array_equal(one.items[-1].tokens, drawn[found[i].place]["latent"])
        assert (packing.size(one) <= examples.sizes[i]).all()


SCORES = {
    "0-0": (0.2, [0.9]),
    "1-0": (-0.9, []),
    "0-1": (0.95, [0.1, 0.5]),
    "1-1": (-0.3, []),
    "0-2": (0.9, []),
    "0-3": (-0.9, []),
    "0-4": (-0.9, []),
}
FLAT = {f"5-{k}": (0.1, []) for k in range(3)}
GROUPS = group(SCORES)


def test_the_best_of_each_prompt_is_selected():
    assert [c.id for c in selection.select(GROUPS, "all")] == list(SCORES)
    best = selection.select(GROUPS, "best_of_k")
    assert [c.id for c in best] == ["0-1", "1-1"]
    # Prompts in the order in which they come, the first of equals.
    turned = group(FLAT | dict(reversed(SCORES.items())) | {"0-5": (0.95, [])})
    assert [c.id for c in selection.select(turned, "best_of_k")] == ["5-0", "0-1", "1-1"]


def test_a_candidate_takes_a_few_hundred_bytes():
    """Not the kilobyte and more of an object with arrays of its own."""
    records = {f"{i}-0": (0.5, [0.1] * 6) for i in range(3000)}
    tracemalloc.start()
    found = group(records)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found[2999].boxes) == 6 and held / len(found) < 400


def test_prompts_and_candidates_that_teach_too_little_are_left_out():
    """Prompt 0 gains 0.9 over its mean and has 0.95, prompt 1 gains 0.3 and has -0.3."""
    base = tiny.load_config("", train__select="best_of_k").train
    assert selection.gains(GROUPS)[1] == selection.gains(GROUPS)[3] == pytest.approx(0.3)
    assert (selection.gains(group(FLAT)) == 0).all()  # not below by rounding of the mean
    more = group(SCORES | FLAT)

    def chosen(found=GROUPS, **values):
        c = dataclasses.replace(base, **values)
        picked, counts = selection.choose(found, c)
        return [c.id for c in picked], tuple(counts.values())

    assert chosen(more) == (["0-1", "1-1", "5-0"], (0, 0))
    assert chosen(more, min_gain=0.01) == (["0-1", "1-1"], (1, 0))
    assert chosen(min_gain=0.5) == (["0-1"], (1, 0))
    assert chosen(min_gain=0.5, select="all") == ([f"0-{k}" for k in range(5)], (1, 0))
    assert chosen(min_score=-0.3) == (["0-1", "1-1"], (0, 0))
    assert chosen(min_score=0.0) == (["0-1"], (0, 1))
    with pytest.raises(
        ValueError, match="min_gain = 1.5 .* none of 7 .* gain of a prompt is 0.900"
    ):
        chosen(min_gain=1.5)
    with pytest.raises(ValueError, match="min_score = 0.99 .* best score 0.950; lower them"):
        chosen(min_score=0.99)


def test_advantages_are_centred_in_the_prompts_whole_group():
    made = selection.advantages(GROUPS, GROUPS)
    assert [c.id for c in made] == [c.id for c in GROUPS]
    first = {c.id: c for c in made}
    scores = np.array([0.2, 0.95, 0.9, -0.9, -0.9])
    want = np.clip((scores - scores.mean()) / scores.std(), -1, 1)
    got = [first[f"0-{k}"].image_advantage for k in range(5)]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert got[1] == got[2] == 1  # clipped: the best cannot be told any more
    regions = np.array([0.9, 0.1, 0.5])
    centred = (regions - regions.mean()) / regions.std()
    np.testing.assert_allclose(first["0-0"].advantages, np.clip(centred[:1], -1, 1), rtol=1e-5)
    np.testing.assert_allclose(first["0-1"].advantages, np.clip(centred[1:], -1, 1), atol=1e-6)
    chosen = GROUPS.take([2, 1])
    assert [(c.id, c.image_advantage) for c in selection.advantages(GROUPS, chosen)] == [
        (c.id, first[c.id].image_advantage) for c in chosen
    ]
    assert [c.image_score for c in made] == [c.image_score for c in GROUPS]  # scores stay
    assert GROUPS[0].advantages is None is GROUPS[0].image_advantage


# -- thresholds relative to the run, and what the first scores say of them -------------------------


def test_quantiles_leave_out_a_share_whatever_the_scale():
    base = tiny.load_config("", train__select="best_of_k").train
    rng = np.random.default_rng(0)
    values = {f"{p}-{k}": float(rng.uniform(-1, 1)) for p in range(40) for k in range(4)}
    for scale, shift in ((1.0, 0.0), (0.05, -0.8)):  # a judge that never says more than -0.75
        found = group({name: (scale * s + shift, []) for name, s in values.items()})

        def chosen(found=found, **how):
            c = dataclasses.replace(base, **{"min_score": -1.0, **how})
            return selection.choose(found, c)

        kept, counts = chosen(min_score_quantile=0.25)
        assert len(kept) == 30 and counts["best scored too low"] == 10
        bests = selection.select(found, "best_of_k").rows["image_score"]
        assert kept.rows["image_score"].min() == np.sort(bests)[10]
        kept, counts = chosen(min_gain_quantile=0.5)
        assert len(kept) == 20 and counts["prompts of too little gain"] == 20
        with pytest.raises(ValueError, match="leave none") if shift else contextlib.nullcontext():
            chosen(min_score=0.5)  # the absolute one is of one scale


def test_the_first_scores_tell_of_a_threshold_that_lets_nothing_or_everything_pass():
    def check(scores, prompts=8, statuses=None, **how):
        c = dataclasses.replace(tiny.load_config("").train, select="best_of_k", **how)
        scores = np.resize(np.asarray(scores, float), 8 * prompts)
        statuses = tuple(statuses or np.where(np.isnan(scores), "unparsed", "ok").tolist())
        ids = np.repeat(np.arange(prompts), 8)
        selection.check_thresholds(selection.PromptScores(ids, scores, statuses), c)

    check([0.9, -0.9], min_score=0.5)
    with pytest.raises(BadInput, match="none pass: .* largest\\) are -0.90, .*, 0.40.*quantile"):
        check([0.4, -0.9], min_score=0.5)
    check([0.4, -0.9], prompts=7, min_score=0.5)  # few prompts say little
    check([0.4, -0.9], min_score=-1.0, min_score_quantile=0.3)
    with pytest.raises(BadInput, match="would let every one of them pass"):
        check([0.6, 0.9], min_score=0.5)
    check([0.6, 0.9], min_score=-1.0)
    with pytest.raises(BadInput, match="none has a score \\(64 unparsed\\)"):
        check([np.nan], min_score=0.5)
    with pytest.raises(BadInput, match="largest gain of a prompt is 0.90"):
        check([0.9, -0.9], min_score=0.5, min_gain=1.2)


def test_choosing_goes_by_ranks_where_several_judges_scored():
    drawn, scored = [], []
    for name, score, rank in (("0-0", 0.9, 0.4), ("0-1", 0.2, 0.8), ("0-2", np.nan, np.nan)):
        prompt, k = map(int, name.split("-"))
        drawn.append({"id": name, "prompt_id": prompt, "prompt": "", "k": k, "image": [32, 32, 3]})
        drawn[-1]["latent"] = tiny.GRID
        status = "ok" if np.isfinite(score) else "too few judges"
        whole = {"image_score": score, "image_status": status, "image_rank": rank}
        scored.append({"id": name, "regions": [], **whole})
    found, left_out = selection.candidates(drawn, scored, "grid")
    assert left_out == 1 and [c.rank for c in found] == [0.4, 0.8]
    assert [c.id for c in selection.select(found, "best_of_k")] == ["0-1"]
    made = selection.advantages(found, found)
    assert made[0].image_advantage < 0 < made[1].image_advantage
    assert [c.id for c in selection.pairs(found, "all")] == ["0-1", "0-0"]


def test_pairs_are_the_best_with_the_worst_on_both_sides_of_the_mean():
    """Prompt 0: 0.95, 0.9, 0.2, -0.9, -0.9; prompt 1: -0.3, -0.9; prompt 5: alike."""
    found = group(SCORES | FLAT)

    def pairs(**values):
        c = dataclasses.replace(tiny.load_config("").train, objective="dpo", **values)
        picked, counts = selection.choose(found, c)
        return [c.id for c in picked], tuple(counts.values())

    best = dict(select="best_of_k")
    assert pairs(**best) == (["0-1", "0-4", "1-1", "1-0"], (0, 0))
    both = ["0-1", "0-4", "0-2", "0-3", "1-1", "1-0"]
    assert pairs(select="all") == (both, (0, 0))
    # The bound is the better one's, and takes its partner with it; a prompt's gain is as ever.
    assert pairs(min_score=0.0, **best) == (["0-1", "0-4"], (0, 2))
    assert pairs(min_gain=0.5, **best) == (["0-1", "0-4"], (2, 0))
    assert pairs(min_score_quantile=0.5, **best) == (["0-1", "0-4"], (0, 2))
    # Of two wrong ones beside a right one none is better than the other.
    three = group({"0-0": (-0.8, []), "0-1": (0.9, []), "0-2": (-0.9, []), "0-3": (-0.85, [])})
    assert [c.id for c in selection.pairs(three, "all")] == ["0-1", "0-2"]
    made = selection.advantages(found, selection.pairs(found, "all"))
    assert [c.id for c in made] == both
    assert all((c.image_advantage > 0) == (i % 2 == 0) for i, c in enumerate(made))
    with pytest.raises(ValueError, match="of 3 candidates none is better .* learns from pairs"):
        selection.pairs(group(FLAT), "all")


def test_lanes_must_hold_both_of_a_pair(tmp_path):
    words = write_tokenizer(tmp_path / "words").parent
    reads, layout = sources.Prompts(Tokenizer.from_folder(words)), tiny.MODEL.layout
    asked = [("a red circle", "mine.txt, line 7")]

    def check(count, **lanes):
        room = Lanes(**(dict(und=60, gen=32, vit=0, labels=0, images=2, regions=0) | lanes))
        training_set.check_lanes(asked, reads, room, layout, (32, 32), count)

    assert training_set.together(tiny.load_config("", train__objective="dpo").train) == 2
    assert training_set.together(tiny.load_config("").train) == 1
    check(2)
    check(1, gen=16, images=1)
    with pytest.raises(ValueError, match="2 images of sample.size does not fit one row: gen needs"):
        check(2, gen=16)
    check(1, und=8)
    with pytest.raises(ValueError, match="mine.txt, line 7 does not fit one row: und needs 1"):
        check(2, und=8)


def test_pictures_of_prompts_held_back_are_left_out_where_there_are_enough():
    found = group({f"{p}-{k}": (0.5, []) for p in range(20) for k in range(2)})
    kept, left_out = selection.spared(found, {18, 19})
    assert left_out == 4 and {c.prompt_id for c in kept} == set(range(18))
    assert selection.spared(found, {17, 18, 19}) == (found, 0)  # more than a tenth: too few prompts
    assert selection.spared(found, {90}) == (found, 0) == selection.spared(found, ())
