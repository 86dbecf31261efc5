"""Time, disk and money before anything is rented: hand counts, the programs' own counts, ranges."""

import math

import jax
import pytest
import tiny

from srum_jax import config, disk, main, programs, running
from srum_jax.configs import bagel_7b_srum
from srum_jax.core import registry
from srum_jax.core.errors import BadInput
from srum_jax.planning import budget, evaluation_requests, lowering, topology, workload
from srum_jax.planning.budget import Assumptions, Chips
from srum_jax.planning.workload import Calls, Work, Workload

H200 = topology.KINDS["h200"]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A config of the tiny model, whose sizes are all that is read."""
    folder = tiny.sizes_folder(tmp_path / "sizes")
    monkeypatch.setattr(registry, "base_folder", {"shapes": folder}.__getitem__)
    return lambda **values: tiny.load_config("", **values)


def flagship(**changes):
    values = bagel_7b_srum.get_config()
    values.update_from_flattened_dict(changes)
    return config.load(values)


def of_flagship(target="h200:8", price=None, utilisation=0.4, **changes):
    chips = Chips.of(topology.parse(target))
    found = budget.estimate(flagship(**changes), chips, Assumptions(utilisation, price))
    return {one.stage: one for one in found.stages}, found


# ------------------------------------------------------------------------------------- by hand


def test_a_call_takes_its_arithmetic_or_its_memory_whichever_is_longer():
    def taken(flops, read, *, count=1, chips=1, beside=1, dtype="bfloat16", utilisation=1.0):
        calls = Calls("a", count, Work(flops, read), chips, beside, dtype)
        return budget.seconds(calls, H200, utilisation)

    second, full = 989 * 10**12, 4800 * 10**9  # of an H200: operations, bytes
    assert taken(second, full // 2) == pytest.approx(1)
    assert taken(second // 2, full) == pytest.approx(1)
    assert taken(second, 0, utilisation=0.25) == pytest.approx(4)
    assert taken(8 * second, 0, chips=8) == pytest.approx(1)
    assert taken(second, 0, dtype="float32") == pytest.approx(2)  # TF32
    assert taken(second, 0, count=9, beside=4) == pytest.approx(3)  # the last round is not full


def test_drawing_by_a_tiny_model_as_counted_by_hand(small):
    """10 images in shards of 4, 4 a call: 3 calls of 3 steps, each step once with and once without
    the prompt; 32x32 pixels are 16 latent tokens of 32 numbers."""
    cfg = small(sample__guidance=4.0, sample__guidance_interval=(0.0, 1.0))
    sample, decode = Workload(cfg, tiny.MODEL, 1).of("generate")
    assert sample.count == 3 and decode.count == 10
    hidden, ffn, kv, numbers = 16, 16, 8, tiny.MODEL.token_dim
    expert = 2 * hidden**2 + 2 * hidden * kv + 3 * hidden * ffn  # q o, k v, the MLP; one layer
    read, latent, texts = 2 * expert * 96, 2 * numbers * hidden, 96  # of 66 tokens a bucket: 96
    seen = texts + 16 + 2
    step = 2 * 2 * expert + 16 * (2 * expert + 2 * latent) + 4 * 18 * seen * hidden
    assert sample.work.flops == 4 * (read + 4 * texts**2 * hidden + 2 * 3 * step)
    bytes_ = 4 * (expert + 3 * (2 * expert + latent))  # once the prompt, then both experts a step
    assert sample.work.bytes == bytes_
    assert Workload(cfg, tiny.MODEL, 8).of("generate")[0].work.bytes == 8 * bytes_  # all gather

    found = budget.estimate(cfg, Chips("v5e", 1), Assumptions(0.5))
    drawn = 3 * max(sample.work.flops / 197e12, sample.work.bytes / 0.819e12) / 0.5
    decoded = 10 * max(decode.work.flops / 197e12, decode.work.bytes / 0.819e12) / 0.5
    assert found.stages[0].seconds == pytest.approx(drawn + decoded)


def test_a_training_step_against_the_rule_of_thumb():
    """Six operations a token and number of its expert, a training of everything; and attention."""
    cfg = flagship(**{"train.trainable": "all", "compute.remat": "none"})
    sizes = lowering.sizes_of(cfg)
    _, needed = workload.step(cfg, sizes, programs.training(cfg, sizes))
    tokens, expert, llm = 8 * (256 + 8192), 6.53e9, sizes.llm
    pairs = 3 * 4 * 8 * (256 + 8192) ** 2 * llm.hidden * llm.layers
    assert needed == pytest.approx(6 * expert * tokens + pairs, rel=0.01)


def test_drawing_of_the_flagship_against_the_rule_of_thumb():
    """Two operations a latent token and number of its expert in each of 49 to 98 passes."""
    sample, _ = Workload(flagship(), lowering.sizes_of(flagship()), 8).of("generate")
    assert sample.count == 5559 * 8 // 8
    a_pass = 8 * (2 * 6.53e9 * 4096 + 4 * 4096 * 4200 * 3584 * 28)
    assert 49 * a_pass < sample.work.flops < 98 * a_pass


# --------------------------------------------------------------------- as the programs themselves


def test_operations_are_those_of_the_programs_that_are_compiled(small):
    for values in ({}, {"score__readout": "written"}):
        cfg = small(**values)
        mesh = tiny.mesh(cfg)
        work = Workload(cfg, tiny.MODEL, 1)
        calls = {c.program: c for stage in cfg.stages for c in work.of(stage) or ()}
        names = ["sample", "decode", "train_step", "score"]
        for name in names:
            made = lowering.PROGRAMS[name].make(cfg, tiny.MODEL, mesh)
            counted = calls["write" if values and name == "score" else name]
            assert counted.work.flops == made.flops > 0, name


def test_plans_in_words_are_programs_that_are_planned_too(small):
    """What writes them, and a sampler whose cache holds them."""
    cfg = small(generate__think=True, generate__think_tokens=40)
    mesh, made = tiny.mesh(cfg), {}
    calls = {c.program: c for c in Workload(cfg, tiny.MODEL, 1).of("generate")}
    for name, counted in (("think", "write"), ("sample", "sample")):
        made[name] = lowering.PROGRAMS[name].make(cfg, tiny.MODEL, mesh)
        assert calls[counted].work.flops == made[name].flops > 0, name
        with jax.set_mesh(mesh):
            made[name].lower()
    assert made["think"].more == {"answers": 4, "tokens": 48}
    plain = lowering.PROGRAMS["sample"].make(small(), tiny.MODEL, mesh)
    slots = [one.arguments[1].und.segment.shape[1] for one in (plain, made["sample"])]
    assert slots == [96, 192]  # 66 tokens; 66, 66 and 42


def test_writing_reads_the_weights_for_every_token():
    words = {"score.readout": "written", "score.view": "coordinates", "score.verify": 0.0}
    cfg = flagship(**words)
    (write,) = Workload(cfg, lowering.sizes_of(cfg), 8).of("score")
    assert write.count == -(-5559 * 8 * 3 // 16)  # two of the whole, one of its regions, 16 a call
    _, one = workload.written_rows(lowering.sizes_of(cfg), (1024, 1024), 1024)
    assert 4900 + 1024 < one.keys < 1.5 * (4900 + 1024)  # a picture's patches, the words; padded
    weights, cache = 2 * (6.53e9 + 3584 * 152064), 16 * one.keys * 2 * 2 * 28 * 4 * 128
    assert write.work.bytes == pytest.approx(1024 * (weights + cache), rel=0.01)
    taken = budget.seconds(write, H200, 1.0) / write.count
    assert taken == pytest.approx(write.work.bytes / (8 * 4.8e12))  # not arithmetic


# ------------------------------------------------------------------------------- ranges and rules


def test_the_flagship_is_mostly_drawing_and_takes_a_day_of_eight_h200s():
    stages, found = of_flagship()
    assert 20 < stages["generate"].seconds / 3600 < 24
    assert stages["generate"].seconds > 0.87 * found.seconds
    assert stages["export"].seconds == 0 == stages["report"].seconds
    assert stages["generate"].disk == 5559 * 8 * disk.picture_bytes(
        (1024, 1024), lowering.sizes_of(flagship()).layout
    )
    slower = of_flagship(utilisation=0.2)[1]
    assert slower.seconds == pytest.approx(2 * found.seconds)


def test_time_is_linear_in_prompts_and_money_in_the_price():
    one, _ = of_flagship(**{"generate.count": 800})
    two, dear = of_flagship(**{"generate.count": 1600}, price=5.0)
    for stage in ("generate", "score"):
        assert two[stage].seconds == pytest.approx(2 * one[stage].seconds)
    assert two["generate"].disk == 2 * one["generate"].disk
    assert two["train"].seconds == one["train"].seconds
    cheap = of_flagship(**{"generate.count": 1600}, price=2.5)[1].json()
    assert dear.json()["money"] == pytest.approx(2 * cheap["money"])
    assert cheap["money"] == pytest.approx(2.5 * 8 * cheap["hours"], rel=1e-3)
    twice, _ = of_flagship(**{"generate.count": 800, "rounds": 2})
    assert twice["train"].seconds == pytest.approx(2 * one["train"].seconds)


def test_hosts_work_beside_each_other():
    cfg = flagship(**{"generate.count": 800})
    together, apart = (
        Workload(cfg, lowering.sizes_of(cfg), 16, hosts).of("generate")[0] for hosts in (1, 4)
    )
    assert (together.chips, together.beside) == (16, 1) and (apart.chips, apart.beside) == (4, 4)
    kind = topology.KINDS["v5e"]
    assert budget.seconds(apart, kind, 0.4) == pytest.approx(budget.seconds(together, kind, 0.4))


def test_what_decides_the_scoring():
    """No regions of their own where a grid has four; nothing of the model's with another judge."""
    work = Workload(flagship(**{"score.proposers": ("grid",)}), lowering.sizes_of(flagship()), 8)
    whole, regions = work.of("score")
    assert (whole.count, regions.count) == (5559 * 8 // 64 * 2 + 2, 5559 * 8 // 64 * 8 + 7)
    outside = {"score.judge": "external", "score.external.url": "http://localhost:1/v1"}
    outside |= {"score.external.model": "a", "score.verify": 0.0}
    assert of_flagship(**outside)[0]["score"].seconds == 0
    assert not of_flagship(**outside)[0]["train"].flops == 0


def test_suites_whose_files_are_not_here_are_not_counted(small):
    lost = "pope:no/such/folder"
    found = budget.estimate(small(evaluate__suites=(lost,)), Chips("v5e", 4), Assumptions())
    assert found.uncounted == ["evaluate"] and "not counted: evaluate" in found.said()
    assert "hours" not in found.json()["stages"]["evaluate"]
    shown = "\n".join(budget.lines(found))
    assert "evaluate  not counted" in shown and "money" not in shown
    both = small(evaluate__suites=("shapes", lost))
    found = budget.estimate(both, Chips("v5e", 4), Assumptions())
    shown = "\n".join(budget.lines(found))
    assert found.uncounted == ["evaluate: pope"] and "not counted: evaluate: pope" in found.said()
    assert "17 decode" in shown and "pope not counted" in shown


ASKED = [f"evaluate__{n}" for n in ("questions", "multi_image_questions", "captions", "edits")]


def test_an_evaluation_is_counted_by_what_its_suites_ask(small):
    """By the base 2 candidates of 3 prompts, which it scores, and 4 images; by the trained 7."""
    cfg = small(**dict.fromkeys(ASKED, 0))
    asked = evaluation_requests.of_stage(cfg, "evaluate")
    assert (asked.images, asked.scored, asked.answers, asked.edits) == (17, 6, 0, 0)
    work = Workload(cfg, lowering.sizes_of(cfg), 1)
    counts = {one.program: one.count for one in work.of("evaluate")}
    assert counts == {"sample": 5, "decode": 17, "score": 2, "score regions": 12}
    (sample, *_), (evaluating, *_) = work.of("generate"), work.of("evaluate")
    assert sample.work == evaluating.work
    each = disk.picture_bytes(cfg.sample.size, work.sizes.layout)
    stages = budget.estimate(cfg, Chips("v5e", 4), Assumptions()).stages
    assert {one.stage: one.disk for one in stages}["evaluate"] == 17 * each


def test_questions_captions_and_edits_are_counted():
    """Of the shapes base that ships with the package, which reads them."""
    cfg = tiny.load_config("", evaluate__captions=3, evaluate__edits=5)
    asked = evaluation_requests.of_stage(cfg, "evaluate")
    two = cfg.evaluate.multi_image_questions
    assert asked.answers >= 2 * (22 + 2 * two) and asked.edits == 10
    assert list(asked.texts.values()) == [6]
    calls = {c.program: c for c in Workload(cfg, lowering.sizes_of(cfg), 1).of("evaluate")}
    assert calls["edit"].count == 3 and calls["answer"].count == -(-asked.answers // 11)
    assert calls["edit"].work.flops > calls["sample"].work.flops  # pictures are read before


def test_what_is_chosen_from_is_counted_at_most():
    """Of the flagship: the base and four models draw 150 prompts, and what is chosen 300."""
    assert evaluation_requests.of_stage(flagship(), "evaluate").images == 2 * 300
    assert evaluation_requests.of_stage(flagship(), "adjust").images == (1 + 2 * 2) * 150 + 300
    three = {"adjust.guidance": (2.0, 3.0, 4.0), "stages": ("train", "adjust")}
    assert evaluation_requests.of_stage(flagship(**three), "adjust").images == (1 + 2 * 2 * 3) * 150
    stages, found = of_flagship()
    assert 0 < stages["evaluate"].seconds < stages["adjust"].seconds < 3600
    assert found.uncounted == [] and "adjust about" in found.said()


@pytest.mark.parametrize("share", [0, -0.1, 1.1, math.nan])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(BadInput, match="--utilisation"):
        Assumptions(share)


@pytest.mark.parametrize("price", [-1, math.inf, math.nan])
def test_a_price_that_is_none_is_refused(price):
    with pytest.raises(BadInput, match="--price"):
        Assumptions(price=price)


def test_chips_are_known_by_what_jax_calls_them():
    assert topology.kind_of("NVIDIA H200") == "h200" and topology.kind_of("TPU v5 lite") == "v5e"
    for other in ("cpu", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB", ""):
        assert topology.kind_of(other) is None
    names = [name for kind in topology.KINDS.values() for name in kind.devices]
    assert len(names) == len(set(names))
    assert jax.devices()[0].platform != "cpu" or Chips.here() is None  # of a CPU nothing is guessed


# -------------------------------------------------------------------------- where people see it


def test_a_run_says_what_its_unfinished_stages_take(small, tmp_path, caplog):
    cfg = small()
    asked = running.Run(cfg, cfg.stages, str(tmp_path / "run"), assumed=Assumptions(price=2.0))
    said = asked.expected(Chips("h200", 8)).said()
    assert said.startswith("computing, at 40% of the peak of 8 x h200: generate less than a minute")
    assert "at 2 a chip-hour" in said
    stage = asked.round(0).stage("generate")
    stage.mkdir(parents=True)
    (stage / "manifest.json").write_text("{}")
    assert "generate" not in asked.expected(Chips("h200", 8)).said()


@pytest.mark.parametrize(
    "option, said",
    [("--utilisation=0", "--utilisation 0"), ("--price=-1", "--price -1"), ("--price=x", "price")],
)
def test_the_command_line_refuses_them_too(option, said, tmp_path, capsys):
    for more in (["--plan", "h200:8"], ["--workdir", str(tmp_path / "run"), "--check"]):
        assert main.main(["main", "--config", "bagel_7b_srum", option, *more]) == 2
        assert said in capsys.readouterr().err


def test_without_a_compiler_time_and_cost_are_said_all_the_same(monkeypatch, capsys):
    monkeypatch.setattr(topology, "_importable", lambda module: False)
    asked = ["main", "--config", "bagel_7b_srum", "--plan", "v5e:4x4", "--price", "1.2"]
    assert main.main(asked) == 2
    shown = capsys.readouterr()
    assert "5,559 sample + 44,472 decode" in shown.out and "money" in shown.out
    assert "plan-tpu" in shown.err


def test_plans_in_words_are_counted():
    """Once a prompt, whatever its candidates are: as long as they may be. Images are drawn behind
    them."""
    plain, thinking = (flagship(**{"generate.think": think}) for think in (False, True))
    sizes = lowering.sizes_of(plain)
    (write, *drawn), without = (Workload(c, sizes, 8).of("generate") for c in (thinking, plain))
    assert write.program == "write" and drawn[1:] == without[1:]
    assert 1.02 < drawn[0].work.flops / without[0].work.flops < 1.1
    assert "think" in lowering.of_stages(thinking) and "think" not in lowering.of_stages(plain)
    examined = flagship(**{"evaluate.think_tokens": 1000})
    thoughts, again, *_ = Workload(examined, sizes, 8).of("evaluate")
    assert thoughts.count == 600 / examined.evaluate.batch and again.work == drawn[0].work
    assert Workload(examined, sizes, 8).of("generate")[0] == without[0]
    assert "think" in lowering.of_stages(examined)
    assert write.count == -(-5559 // thinking.sample.batch) and write.work.flops > 0
