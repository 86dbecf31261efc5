"""The report page: whole, self-contained, escaped, and honest about what it says."""

import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from srum_jax import config
from srum_jax.configs import base
from srum_jax.evals import sections as result_sections
from srum_jax.stages import report, report_html
from srum_jax.stages.manifest import Manifest, Workdir

EVIL = "<script>alert(1)</script> & a \"red\" 'circle'"
VOID = {"meta", "img", "br"}


class Reader(html.parser.HTMLParser):
    """Checks that tags close in order; collects tags, attributes and the visible text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.ids, self.text = [], set(), [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def read(text):
    """Parses a page and holds it to working offline."""
    page = Reader(text)
    assert not page.tags & {"script", "link", "iframe", "object", "base", "form"}
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "srcset", "data"):
            assert value.startswith(("data:image/", "#")), value[:80]
    assert "url(" not in text and "@import" not in text and "http://" not in text
    assert "https://" not in text
    return page


def png(folder, name, size=32, color=(200, 30, 30)):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), color).save(folder / name)


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
    judged = result_sections.Judged(
        right.ravel() + rng.normal(0, 0.3, 200), right.ravel(), ["ok"] * 200
    )
    grid = result_sections.Judged(
        np.r_[np.nan, np.arange(7.0)], np.arange(8) % 2 == 0, ["unparsed"] + ["ok"] * 7
    )
    results = {
        "schema": 1,
        "run": {
            "config": "configs/fake.py",
            "config_hash": "cafe0123",
            "seed": 7,
            "srum_jax": "0.1.0",
            "jax": "0.10.2",
            "python": "3.11",
            "device": "cpu x2",
        },
        "rounds": [
            {
                "round": 0,
                "t2i": {
                    **t2i(base, trained),
                    "best_of_k": result_sections.best_of_k_section(
                        right, right + rng.normal(0, 0.1, right.shape), categories=["attr"] * 50
                    ),
                },
                "qa": result_sections.qa_section(["color", "count"] * 100, trained, trained),
                "captions": result_sections.qa_section(["attr", "triple"] * 100, base, trained),
                "edits": result_sections.qa_section(["add", "move"] * 100, base, trained),
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
    text = report.build(results, [folder])
    page = read(text)
    assert page.ids == [
        "drawing",
        "choice",
        "questions",
        "captions",
        "edits",
        "judge",
        "pictures",
        "scores",
        "training",
        "stages",
        "run",
    ]
    assert "<script" not in text and page.text.count(EVIL) >= 4 + 3
    for shown in (
        "40.0\u00a0%",
        "60.0\u00a0%",
        "+20.0",
        "cafe0123",
        "srum_advantage",
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
        "1 of the 2 kept",
        f"{results['rounds'][0]['scores']['region_auc']:.3f}",
        "unparsed 1",
        "highest here",
        "objective srum_advantage",
        "of 200 questions; captions 60.0\u00a0%; edits 60.0\u00a0%",
        "Trained against base on the same captions: +20.0 points",
        "Trained against base on the same edits: +20.0 points",
        "a green cross",
        "The first 2 in the order of the test",
    ):
        assert shown in page.text, shown
    assert text.count("<path") == 5  # loss and gradient norm raw and smooth, learning rate
    # Pairs; before and base of two edits, a caption; two proposers and a map, one empty card.
    assert text.count("data:image/png") == 3 + 2 * 2 + 1 + 5


def test_minimal_page_says_that_nothing_was_measured(tmp_path):
    page = read(report.build({}, []))
    assert page.ids == [] and "No drawing accuracy was measured" in page.text
    page = read(report.build({"rounds": [{"round": 0}], "stages": {}}, [tmp_path / "round0"]))
    assert page.ids == []


def test_base_alone():
    section = {"base": result_sections.accuracy_section(np.arange(10) < 3)}
    page = read(report.build({"rounds": [{"round": 0, "t2i": section}]}, []))
    assert page.ids == ["drawing"]
    assert "base model draws 30.0\u00a0% of the test pictures right" in page.text
    assert "trained model" not in page.text


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
    page = read(report.build(results, [folder]))
    assert "same captions" not in page.text and "same edits" not in page.text
    assert "a green cross" not in page.text and "edits 40.0\u00a0%" in page.text
    assert {"captions", "edits"} <= set(page.ids)
    page = read(report.build(results, []))
    assert "edits" in page.ids and "captions" not in page.ids


def test_verdict_claims_a_change_only_if_the_interval_excludes_zero():
    base = np.arange(200) % 2 == 0
    assert report.verdict(t2i(base, base | (np.arange(200) < 60))).startswith("Training raised")
    assert report.verdict(t2i(base | (np.arange(200) < 60), base)).startswith("Training lowered")
    swapped = base.copy()
    swapped[:6] = ~swapped[:6]
    swapped[7] = True
    sentence = report.verdict(t2i(base, swapped))
    assert sentence.startswith("No clear change") and "includes 0" in sentence
    alone = t2i(base, swapped)
    del alone["paired"]
    assert "nothing can be concluded" in report.verdict(alone)


def test_rounds_are_told_apart(full):
    results, folder = full
    second = {**results["rounds"][0], "round": 1}
    page = read(report.build({**results, "rounds": [*results["rounds"], second]}, [folder]))
    assert page.text.count("Round 1") == 7 and "600 steps in 2 rounds" in page.text


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("evaluate/pairs.json", "{", "pairs.json: not valid JSON"),
        ("evaluate/pairs.json", "{}", "pairs.json: expected a list"),
        ("evaluate/pairs.json", '[{"prompt": "a"}]', "pairs.json: record 0 .*'base_image'"),
        ("evaluate/examples-edits.json", "[{}]", "edits.json: record 0 .*'instruction'"),
        ("evaluate/examples-captions.json", "[{}]", "captions.json: record 0 .*'image'"),
        (
            "score/examples.json",
            '[{"id": "0-0", "prompt": "a", "image": "0-0.png", "boxes": [{}]}]',
            "examples.json: 0-0: .*'bbox'",
        ),
        ("score/0-0.png", "no picture", "0-0.png: not a readable image"),
        ("train/metrics.jsonl", "{}\n{}", "metrics.jsonl, line 1: .*'step'"),
    ],
)
def test_broken_files_are_named(full, file, content, message):
    results, folder = full
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        report.build(results, [folder])


def test_large_pictures_are_shrunk():
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (600, 900, 3), np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    shown = report_html.picture(out.getvalue())
    assert (shown.width, shown.height) == (900, 600) and shown.style is None
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
    assert "srum_advantage" in read(work.report.read_text()).text
    assert Manifest.read(work.stage("report")).stage == "report"


MONITOR_ROWS = [
    {"step": 0, "own_score": 0.0, "verified": 0.25, "diversity": 1.0, "agreement": 1.0},
    {"step": 50, "own_score": 0.5, "verified": 0.125, "diversity": 0.5, "agreement": 1.0},
    {"step": 100, "own_score": 1.0, "diversity": 0.125, "agreement": 1.0},
]


def test_probes_are_drawn_and_an_early_stop_is_said(full):
    results, folder = full
    train = results["rounds"][0]["train"] | {"monitor": MONITOR_ROWS}
    results["rounds"][0]["train"] = train
    text = report.build(results, [folder])
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
    page = read(report.build(results, [folder]))
    assert f"Stopped early at step 100, with the weights of step 50: {EVIL}." in page.text
    assert "The training monitor stopped it early." in page.text


def test_a_probes_row_among_the_metrics_hides_no_loss(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 1, "monitor_diversity": 1.0}\n{"step": 1, "loss": 3.0}'
    )
    found = report._metrics(tmp_path / "metrics.jsonl")
    assert found["loss"][1].tolist() == [3.0] and found["monitor_diversity"][1].tolist() == [1.0]
