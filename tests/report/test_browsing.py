"""Items to browse: which are shown, in which order, what a filter finds, and pairs at the top."""

import io
import json

import browser
import numpy as np
import pytest
from html_page import read
from PIL import Image

from srum_jax.evals import sections as result_sections
from srum_jax.report import browsing, page
from srum_jax.report.items import items
from srum_jax.stages import report

EVIL = "\"><script>document.title='broken'</script>"
KINDS = ["far_away", "near"]
RIGHT = np.arange(80) % 4 == 0, np.arange(80) % 3 == 0


def png(shade):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 90, 30)).save(out, "PNG")
    return out.getvalue()


def record(i, pictured=False):
    row = {"question": f"question {i} ?", "kind": KINDS[i % 2], "expected": "three"}
    for name, right in zip(("base", "trained"), RIGHT, strict=True):
        row |= {f"{name}_correct": bool(right[i]), f"{name}_answer": "three" if right[i] else "two"}
    return row | ({"image": "a.png"} if pictured else {})


@pytest.fixture
def run(tmp_path):
    """Questions about pictures, 80 of them, and a text that would break a page."""
    folder = tmp_path / "round0" / "evaluate"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(png(200))
    rows = [record(i) for i in range(80)]
    rows[5]["question"] = EVIL
    (folder / "evaluation.json").write_text(json.dumps({"items": {"frogs": rows}}))
    (folder / "examples-frogs.json").write_text(json.dumps([record(i, True) for i in range(12)]))
    skill = result_sections.by_model([KINDS[i % 2] for i in range(80)], *RIGHT)
    section = {"title": "Frogs", "paired": skill.pop("paired"), "models": skill, "unit": "ponds"}
    results = {"rounds": [{"round": 0, "suites": {"frogs": section}}]}
    return report.read(results, [tmp_path / "round0"])


def test_every_item_is_listed_by_kind_with_its_verdicts_and_a_reason(run):
    found = run.rounds[0].browser("frogs")
    assert [category.name for category in found.categories] == KINDS
    assert (found.total, len(found.listed), found.left_out) == (80, 80, 0)
    for category in found.categories:
        outcomes = [item.outcome for item in category.items]
        places = [browsing._ORDER.index(outcome) for outcome in outcomes]
        assert places == sorted(places)  # what went wrong comes first
    for item in found.listed:
        for i, reply in enumerate(item.replies):
            assert item.reason(reply) and f"m{i}-{reply.verdict}" in item.marks.split()
            if not reply.right:
                assert item.reason(reply) == "said two; three is right"
    assert found.failed == int((~(RIGHT[0] & RIGHT[1])).sum())
    shown = read(page.render(run))
    assert EVIL in shown.text and len(shown.scripts) == 1
    assert found.anchors["near"] in shown.ids


def test_of_too_many_items_those_that_failed_are_listed(monkeypatch):
    monkeypatch.setattr(browsing, "MAX_LISTED", 30)
    found = browsing.browser("x", (), items([record(i) for i in range(80)], "here"))
    assert len(found.listed) == 30 and found.left_out == 50
    assert all(item.failed for item in found.listed)


def test_the_top_has_a_pair_of_every_outcome(run):
    found = page.first_pictures(run.rounds[0])
    assert sorted(one.outcome for one in found) == ["both", "first", "neither", "second"]
    assert all(one.item.outcome == one.outcome and one.section == "Frogs" for one in found)
    assert [one.n for one in found if one.outcome == "both"] == [int((RIGHT[0] & RIGHT[1]).sum())]


def marked(values):
    """Items whose pictures have marks before and after."""
    rows = [
        {"prompt": f"{a} to {b}", "base_image": "a", "trained_image": "a", "category": "x"}
        | {"base_value": a, "trained_value": b}
        for a, b in values
    ]
    picture = page.candidates.Thumbnail("data:image/png;base64,", 8, 8)
    return items(rows, "here", lambda path: picture)


def test_of_marks_the_top_has_the_largest_gain_and_loss_and_what_stayed():
    kept = marked([(0.1, 0.2), (0.9, -0.5), (-0.8, 0.7), (0.9, 0.95), (-0.9, -0.9)])
    assert [item.outcome for item in kept] == ["up", "down", "up", "up", "even"]
    chosen = {name: item.asked for name, item in page._firsts(kept)}
    assert chosen == {
        "up": "-0.8 to 0.7",
        "down": "0.9 to -0.5",
        "high": "0.9 to 0.95",
        "low": "-0.9 to -0.9",
    }
    found = browsing.browser("x", kept, kept)
    assert found.verdicts == () and [name for name, _ in found.changes] == ["up", "down", "even"]
    assert [item.asked for item in found.listed][:1] == ["0.9 to -0.5"]


def test_a_picture_that_nobody_judged_is_shown_as_such():
    (item,) = items([{"prompt": "a", "base_image": "a", "trained_image": "b"}], "here")
    assert item.outcome == "unknown" and [r.verdict for r in item.replies] == ["none", "none"]


# ----------------------------------------------------------------------------- in a real browser

needs_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "there is one"),
]
SHOWN = """return [...document.querySelectorAll('#frogs tr.item')]
    .filter(row => getComputedStyle(row).display !== 'none').length"""


def in_browser(run, folder, **how):
    path = folder / "report.html"
    path.write_text(page.render(run))
    opened = browser.browser(how.pop("width", 1280), **how)
    return opened, path.resolve().as_uri()


class TestInABrowser:
    """Chromium, as a reader has it."""

    pytestmark = needs_browser

    @pytest.mark.parametrize("dark", [False, True])
    def test_a_page_is_whole_on_a_phone(self, run, tmp_path, dark):
        opened, url = in_browser(run, tmp_path, width=360, dark=dark)
        with opened as shown:
            shown.open(url)
            shown.run("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert shown.run("return innerWidth") == 360
            assert shown.run("return document.documentElement.scrollWidth") <= 360
            colour = shown.run("return getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, colour[4:-1].split(","))) < 200) == dark
            assert shown.messages() == []

    def test_filters_work_by_mouse_keyboard_and_link(self, run, tmp_path):
        opened, url = in_browser(run, tmp_path)
        with opened as shown:
            shown.open(url)
            assert shown.run("return document.title") == "Report: run"
            assert shown.run("return document.querySelector('output').hidden") is False
            assert shown.run(SHOWN) == 80
            shown.run("document.querySelector('.pick-m1-wrong').click()")
            assert shown.run(SHOWN) == (~RIGHT[1]).sum()
            said = f"{(~RIGHT[1]).sum()} of 80 listed"
            assert shown.run("return document.querySelector('output').textContent") == said
            assert shown.run("return document.querySelector('details.every').open")
            # From "all" of the base, with the arrow key, to "right".
            shown.run("document.querySelector('.filter input').focus()")
            shown.press(browser.RIGHT)
            assert shown.run(SHOWN) == (RIGHT[0] & ~RIGHT[1]).sum()
            shown.run(
                "const s = document.querySelector('select.kind'); s.value = 'near';"
                "s.dispatchEvent(new Event('input', {bubbles: true}))"
            )
            near = np.arange(80) % 2 == 1
            assert shown.run(SHOWN) == (RIGHT[0] & ~RIGHT[1] & near).sum()
            shown.open(f"{url}#frogs-0-items-1")
            assert shown.run("return document.querySelector('details.every').open")
            assert shown.messages() == []

    def test_without_a_script_verdicts_can_be_filtered_and_the_rest_is_there(self, run, tmp_path):
        opened, url = in_browser(run, tmp_path, script=False)
        with opened as shown:
            shown.open(url)
            assert shown.run("return document.querySelector('output').hidden") is True
            shown.run("document.querySelector('.pick-m0-wrong').checked = true")
            assert shown.run(SHOWN) == (~RIGHT[0]).sum()
