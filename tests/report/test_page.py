"""The report page: whole, self-contained, escaped, and honest about what it says."""

import io
import json
import re

import numpy as np
import pytest
from html_page import read
from PIL import Image, PngImagePlugin
from stages.test_manifest import RUN

from srum_jax import config
from srum_jax.configs import base
from srum_jax.evals import sections as result_sections
from srum_jax.report import page as report_page
from srum_jax.report import pictures, suite_sections, training, verdict
from srum_jax.stages import report
from srum_jax.stages.manifest import Manifest, Workdir

MANIFEST = {
    **dict.fromkeys(("stage", "config_hash"), "train"),
    **dict.fromkeys(("inputs", "outputs", "versions", "timing"), {}),
    "allowed_changes": [],
}
EVIL = "<script>alert(1)</script> & a \"red\" 'circle'"


def png(folder, name, size=32, color=(200, 30, 30)):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), color).save(folder / name)


def build(results, folders):
    return report_page.render(report.read(results, folders))


def t2i(base, trained):
    categories = ["attr", "spatial"] * (len(base) // 2)
    return {
        "base": result_sections.accuracy_section(base, categories),
        "trained": result_sections.accuracy_section(trained, categories),
        "paired": result_sections.paired_section(base, trained),
    }


@pytest.fixture
def full(tmp_path):
    """A clearly made-up run with every piece."""
    rng = np.random.default_rng(0)
    base, trained = np.arange(200) % 5 < 2, np.arange(200) % 5 < 3
    right = rng.random((50, 4)) < 0.5
    judged = result_sections.ScoredItems(
        right.ravel() + rng.normal(0, 0.3, 200), right.ravel(), ["ok"] * 200
    )
    grid = result_sections.ScoredItems(
        np.r_[np.nan, np.arange(7.0)], np.arange(8) % 2 == 0, ["unparsed"] + ["ok"] * 7
    )
    results = {
        "schema": 1,
        "run": {**RUN, "config": "configs/fake.py", "config_hash": "cafe0123", "seed": 7},
        "rounds": [
            {
                "round": 0,
                "t2i": {
                    **t2i(base, trained),
                    "best_of_k": result_sections.best_of_k_section(
                        right, right + rng.normal(0, 0.1, right.shape), categories=["attr"] * 50
                    ),
                },
                "qa": result_sections.by_model(["color", "count"] * 100, trained, trained),
                "captions": result_sections.by_model(["attr", "triple"] * 100, base, trained),
                "edits": result_sections.by_model(["add", "move"] * 100, base, trained),
                "scores": result_sections.scores_section(
                    {"components": judged, "grid": grid}, "components", judged, np.arange(200) // 4
                ),
                "train": {
                    "objective": "srum_advantage",
                    "steps": 300,
                    "loss_first": 0.5,
                    "loss_last": 0.25,
                    "skipped_steps": 0,
                },
            }
        ],
        "stages": {
            "generate": {
                "seconds": 38.2,
                "compile_seconds": 9.1,
                "items": 1600,
                "items_per_second": 55.0,
                "peak_rss_mb": 1210.4,
                "device_idle": 0.125,
            },
            "evaluate": {"seconds": 3700.0},
        },
    }
    folder = tmp_path / "round0"
    lines = [
        {"step": s, "loss": 1 / s, "learning_rate": 1e-4, "grad_norm": float(s)}
        for s in (1, 2, 3, 2, 3, 4)
    ]
    lines[2]["loss"] = float("nan")
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "metrics.jsonl").write_text(
        "\n".join(map(json.dumps, lines)) + '\n{"step": 5, "lo'
    )
    for name in ("a-base.png", "a-trained.png"):
        png(folder / "evaluate" / "images", name)
    (folder / "evaluate" / "pairs.json").write_text(
        json.dumps(
            [
                {
                    "prompt": EVIL,
                    "category": EVIL,
                    "base_image": "images/a-base.png",
                    "trained_image": "images/a-trained.png",
                    "base_correct": False,
                    "trained_correct": True,
                },
                {
                    "prompt": "a blue square",
                    "category": "single",
                    "base_image": "images/gone.png",
                    "trained_image": "images/a-trained.png",
                    "base_correct": True,
                    "trained_correct": True,
                },
            ]
        )
    )
    edit = {
        "kind": "add",
        "instruction": EVIL,
        "image": "images/a-base.png",
        "base_image": "images/a-base.png",
        "base_correct": False,
        "trained_image": "images/gone.png",
        "trained_correct": True,
    }
    (folder / "evaluate" / "examples-edits.json").write_text(json.dumps([edit, edit]))
    caption = {"image": "images/a-base.png", "base_caption": EVIL, "base_correct": True}
    caption |= {"trained_caption": "a green cross", "trained_correct": False}
    (folder / "evaluate" / "examples-captions.json").write_text(json.dumps([caption]))
    items = [
        {"prompt": EVIL, "category": EVIL, "base_correct": False, "trained_correct": True}
        | {"base_reason": "there is no red cross", "trained_reason": ""},
        {"prompt": "a blue square", "category": "single", "base_correct": True}
        | {"base_reason": "", "trained_correct": True, "trained_reason": ""},
        {"prompt": "a brown cross", "category": "single", "base_correct": False}
        | {"base_reason": "a cross is red", "trained_correct": False, "trained_reason": "empty"},
        {"prompt": "two crosses", "category": "single", "base_correct": True}
        | {"base_reason": "", "trained_correct": False, "trained_reason": "1 of 2"},
    ]
    (folder / "evaluate" / "evaluation.json").write_text(json.dumps({"prompts": items}))
    (folder / "train" / "manifest.json").write_text(
        json.dumps(
            MANIFEST
            | {
                "sections": {"train": {"select": "best_of_k"}},
                "counts": {
                    "candidates": 90,
                    "unscored": 7,
                    "prompts of too little gain": 3,
                    "best scored too low": 0,
                },
            }
        )
    )
    png(folder / "score", "0-0.png")
    box = {
        "bbox": [2, 3, 14, 15],
        "score": 0.8312,
        "status": "ok",
        "label": EVIL,
        "proposer": "components",
    }
    silent = {"bbox": [16, 0, 32, 16], "status": "unparsed", "label": "", "proposer": "grid"}
    (folder / "score" / "examples.json").write_text(
        json.dumps(
            [
                {
                    "id": "0-0",
                    "prompt": EVIL,
                    "image": "0-0.png",
                    "latent_grid": [2, 2],
                    "boxes": [box, silent],
                    "image_score": -0.4371,
                    "token_weights": [[0.5, 1], [1, 2.75]],
                },
                {
                    "id": "0-1",
                    "prompt": EVIL,
                    "image": "0-0.png",
                    "latent_grid": [2, 2],
                    "boxes": [],
                    "image_status": "unparsed",
                },
            ]
        )
    )
    return results, folder


def test_full_page(full):
    results, folder = full
    text = build(results, [folder])
    page = read(text)
    assert page.sections == [
        "t2i",
        "best_of_k",
        "qa",
        "captions",
        "edits",
        "judging",
        "scored",
        "training",
        "stages",
        "run",
    ]
    assert "<script>alert" not in text and page.text.count(EVIL) >= 4 + 3
    top = page.text[: page.text.index("Share of test pictures")]
    for shown in (
        "40.0\u00a0%",
        "60.0\u00a0%",
        "+20.0",
        "cafe0123",
        "38.2",
        "55",
        "1 h 02 min",
        "+0.83",
        "\u22120.44",
        "no score (unparsed)",
        "2.75",
        "picture missing",
        "\u2713 right",
        "\u2717 wrong",
        f"{results['rounds'][0]['scores']['region_auc']:.3f}",
        "unparsed 1",
        "highest here",
        "Objective: a loss that counts more or less by how a region scores",
        "Trained against base on the same captions: +20.0 points",
        "Trained against base on the same edits: +20.0 points",
        "a green cross",
        "The first 2 in the order of the test",
        "Every one of 4 pictures, by kind; 3 not right every time",
        f"{EVIL} {EVIL}",  # a prompt and its category
        "✗ wrong there is no red cross",  # the reason, from evaluation.json
        "It is shown for comparison: this run trained otherwise.",
        "released SRUM weights, not used",
        "Trained on 90 pictures: each prompt's best by the model's own score. Left out: 7 pictures "
        "without a score, 3 prompts whose best picture hardly beats the others.",
    ):
        assert shown in page.text, shown
    for shown in (
        "Better after training: drawing, describing pictures and editing pictures. Nothing is "
        "clearly worse. No clear change: answering questions.",
        "Drawing 40.0\u00a0% → 60.0\u00a0%, 200 pictures +20.0 points",
        "Right only when trained 40",
        "Own choice against the average candidate",
    ):
        assert shown in top, shown
    assert text.count("<path") == 5  # loss and gradient norm raw and smooth, learning rate
    # Two on top, as one is missing; the pairs; before and base of two edits, a caption; two
    # proposers and a map, one empty card.
    assert text.count("data:image/png") == 3 + 3 + 2 * 2 + 1 + 5


def test_minimal_page_says_that_nothing_was_measured(tmp_path):
    page = read(build({}, []))
    assert page.sections == [] and "No accuracy was measured" in page.text
    page = read(build({"rounds": [{"round": 0}], "stages": {}}, [tmp_path / "round0"]))
    assert page.sections == []


def test_a_stage_without_its_time_is_shown_and_counts_for_nothing():
    stages = {"generate": {"seconds": 30.0, "items": 5}, "train": {"items": 7}}
    page = read(build({"stages": stages}, []))
    assert page.sections == ["stages"]
    assert "All stages together: 30.0\u00a0s." in page.text and "7" in page.text


def test_base_alone():
    section = {"base": result_sections.accuracy_section(np.arange(10) < 3)}
    page = read(build({"rounds": [{"round": 0, "t2i": section}]}, []))
    assert page.sections == ["t2i"]
    assert "Drawing, base: 30.0\u00a0% right (95 % interval 10.8–60.3)." in page.text
    assert "trained" not in page.text


def test_captions_and_edits_of_the_base_alone(full):
    """Measured or shown, each without the other."""
    results, folder = full
    part = results["rounds"][0]
    del part["captions"], part["edits"]["trained"], part["edits"]["paired"]
    for name in ("captions", "edits"):
        path = folder / "evaluate" / f"examples-{name}.json"
        alone = [
            {key: value for key, value in record.items() if not key.startswith("trained")}
            for record in json.loads(path.read_text())
        ]
        path.write_text(json.dumps(alone))
    page = read(build(results, [folder]))
    assert "same captions" not in page.text and "same edits" not in page.text
    assert "a green cross" not in page.text and "Examples: describing pictures" in page.text
    assert {"captions", "edits"} <= set(page.sections)
    page = read(build(results, []))
    assert "edits" in page.sections and "captions" not in page.sections


def test_headline_claims_a_change_only_if_the_interval_excludes_zero():
    def headline(measured):
        return verdict.headline(suite_sections.of_round({"t2i": measured}))

    base = np.arange(200) % 2 == 0
    assert headline(t2i(base, base | (np.arange(200) < 60))).startswith("Training raised")
    assert headline(t2i(base | (np.arange(200) < 60), base)).startswith("Training lowered")
    swapped = base.copy()
    swapped[:6] = ~swapped[:6]
    swapped[7] = True
    sentence = headline(t2i(base, swapped))
    assert sentence.startswith("No clear change") and "includes 0" in sentence
    alone = t2i(base, swapped)
    del alone["paired"]
    assert "nothing can be concluded" in headline(alone)


def test_what_fell_is_said_first_of_the_rest(full):
    results, _ = full
    part = results["rounds"][0]
    right = np.arange(200) % 4 > 0
    part["edits"] = result_sections.by_model(
        ["add", "move"] * 100, right, right & (np.arange(200) > 30)
    )
    page = read(build(results, []))
    assert "Better after training: drawing and describing pictures. Worse: editing" in page.text
    table = page.text[page.text.index("change, 95 % interval") :]
    worse, better, unclear = map(table.index, ("Worse 1", "Better 2", "No clear change 1"))
    assert worse < table.index("Editing pictures 75.0") < better < unclear
    assert "\u221211.5 points" in table[worse:better]


def test_rounds_are_told_apart(full):
    results, folder = full
    second = {**results["rounds"][0], "round": 1}
    page = read(build({**results, "rounds": [*results["rounds"], second]}, [folder]))
    assert page.text.count("Round 1") == 7 and "600 steps in 2 rounds" in page.text


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("evaluate/pairs.json", "{", "pairs.json: not valid JSON"),
        ("evaluate/pairs.json", "{}", "pairs.json: expected a list"),
        ("evaluate/pairs.json", '[{"prompt": "a"}]', "pairs.json: record 0 .*'<model>_correct'"),
        ("evaluate/examples-edits.json", "[{}]", "edits.json: record 0 .*'<model>_correct'"),
        (
            "evaluate/examples-captions.json",
            '[{"base_correct": true}]',
            "captions.json: record 0 .*'prompt' or 'image'",
        ),
        ("evaluate/evaluation.json", '{"items": {"t2i": 3}}', "evaluation.json: t2i: .* a list"),
        ("score/calibration.json", "[]", "calibration.json: expected a dict"),
        (
            "score/examples.json",
            '[{"id": "0-0", "prompt": "a", "image": "0-0.png", "boxes": [{}]}]',
            "examples.json: 0-0: .*'bbox'",
        ),
    ],
)
def test_broken_files_are_named(full, file, content, message):
    results, folder = full
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        build(results, [folder])


def test_a_damaged_picture_or_row_is_named_and_left_out(full, caplog):
    results, folder = full
    (folder / "score/0-0.png").write_text("no picture")
    (folder / "train/metrics.jsonl").write_text("{}\n{}")
    build(results, [folder])
    assert "0-0.png: not a readable image" in caplog.text
    assert "metrics.jsonl, line 1: damaged" in caplog.text


def test_texts_of_any_size_do_not_reach_the_page():
    """Pillow refuses a PNG whose texts inflate to more than a megabyte."""
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "x" * 2**24, zip=True)
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (255, 0, 0)).save(out, "PNG", pnginfo=info)
    assert len(out.getvalue()) > 10_000
    shown = pictures.picture(out.getvalue(), "a.png")
    assert (shown.width, shown.height) == (8, 6)
    assert shown.uri.startswith("data:image/png") and len(shown.uri) < 200


def test_large_pictures_are_shrunk():
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (600, 900, 3), np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    shown = pictures.picture(out.getvalue(), "a.png")
    assert (shown.width, shown.height) == (900, 600) and not shown.pixelated
    assert shown.uri.startswith("data:image/jpeg") and len(shown.uri) < 200_000


def test_stage_writes_the_page_and_makes_it_anew(full):
    results, folder = full
    cfg, work = config.load(base.get_config()), Workdir(folder.parent)
    work.results.write_text(json.dumps(results))
    manifest = report.run(cfg, None, work)
    assert (work.stage("report") / manifest.outputs["report"]).resolve() == work.report.resolve()
    read(work.report.read_text())
    work.report.write_text("an older page")
    report.run(cfg, None, work)
    assert "Objective: a loss that counts" in read(work.report.read_text()).text
    assert Manifest.read(work.stage("report")).stage == "report"


MONITORED = [
    {"step": 0, "own_score": 0.0, "verified": 0.25, "diversity": 1.0, "agreement": 1.0},
    {"step": 50, "own_score": 0.5, "verified": 0.125, "diversity": 0.5, "agreement": 1.0},
    {"step": 100, "own_score": 1.0, "diversity": 0.125, "agreement": 1.0},
]


def test_the_monitor_is_drawn_and_an_early_stop_is_said(full):
    results, folder = full
    train = results["rounds"][0]["train"] | {"monitor": MONITORED}
    results["rounds"][0]["train"] = train
    text = build(results, [folder])
    page = read(text)
    assert "own score, \u22121 to 1 drawn" in page.text and "right by the checker" in page.text
    assert "as many regions" not in page.text  # was not measured
    assert "topped early" not in page.text and "stopped it early" not in page.text
    lines = re.findall(r'<path d="([^"]*)" class="line ([a-z]+)"', text)
    assert [kind for _, kind in lines] == ["trained", "oracle", "trained", "oracle"]
    points = [[float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", d)] for d, _ in lines]
    assert [len(y) for y in points] == [3, 2, 3, 3]
    own, verified, diversity, _ = points
    assert own[0] - own[1] == pytest.approx(own[1] - own[2], abs=0.11)  # 1/2, 3/4, 1
    assert verified[1] - verified[0] == pytest.approx((own[0] - own[2]) / 4, abs=0.11)
    assert diversity[0] == own[2]
    train |= {"stopped_at": 100, "weights_of": 50, "stopped_why": EVIL}
    page = read(build(results, [folder]))
    assert f"Stopped early at step 100, with the weights of step 50: {EVIL}." in page.text
    assert "The monitor stopped it early." in page.text
    train["collapse"] = [f"{EVIL} fell", "the gap fell"]
    page = read(build(results, [folder]))
    assert f"A sign of collapse: {EVIL} fell. A sign of collapse: the gap fell." in page.text


def test_a_row_of_the_monitor_among_the_metrics_hides_no_loss():
    rows = [{"step": 1, "loss": 2.0}, {"step": 1, "monitor_diversity": 1.0}]
    found = training.series([*rows, {"step": 1, "loss": 3.0}])
    assert found["loss"][1].tolist() == [3.0] and found["monitor_diversity"][1].tolist() == [1.0]


def test_everything_that_went_wrong_is_listed_with_its_reason(full):
    results, folder = full
    page = read(build(results, [folder]))
    listed = page.text[page.text.index("Every one of 4 pictures") :]
    assert f"{EVIL} 1; wrong: base 1, trained 0 {EVIL} ✗ there is no red cross ✓" in listed
    kind = listed[listed.index("single 3; wrong: base 1, trained 2") :]
    first, neither, both = map(kind.index, ("two crosses", "a brown cross", "a blue square"))
    assert first < neither < both  # what failed comes first
    assert "✓ ✗ 1 of 2" in kind[first:neither]
    assert "✗ a cross is red ✗ empty" in kind[neither:both]


def test_many_pictures_are_grouped_by_what_became_of_them(full):
    results, folder = full
    path = folder / "evaluate" / "pairs.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:1] * 20))
    page = read(build(results, [folder]))
    assert "Right only when trained 20 kept, the first 16 shown" in page.text


def test_a_monitor_under_its_former_name_is_drawn_with_a_warning(caplog):
    made = [training.training({name: MONITORED}, {}, {}) for name in ("probe", "monitor")]
    assert made[0].monitored and made[0].monitored == made[1].monitored
    assert [r.message for r in caplog.records if "former name" in r.message] == [
        'results.json: "probe" is the former name of "monitor"; it is still read'
    ]
