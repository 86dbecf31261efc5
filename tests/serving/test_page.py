"""The page in a real browser: drawn, asked, edited, scored, on a desk and a phone, by keys."""

import browser
import pytest
from serving_host import pixels, serving
from test_api import write_model

from srum_jax import api
from srum_jax.serving.limits import Limits
from srum_jax.worlds.shapes import examples

PROMPT = "a red circle above a blue square"
READY = "document.body.dataset.ready === 'yes'"
DONE = "document.getElementById('state').textContent.startsWith('done')"
CONTROL, ENTER, TAB, RIGHT = "\ue009", "\ue007", "\ue004", "\ue014"
needs_browser = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = api.load(write_model(folder, examples.write_tokenizer(folder / "words")))
    with serving(model, Limits(images=4, texts=4)) as made:
        yield made


@pytest.fixture(scope="module")
def tab():
    with browser.browser(1280, 900) as made:
        yield made


@pytest.fixture
def page(tab, host):
    shown(tab, 1280, dark=False)
    tab.open(f"{host.url}/")
    tab.until(READY)
    yield tab
    assert complaints(tab) == []


def shown(tab, width, *, dark):
    """A screen of that width, phones' too, of a system that is dark or not."""
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    tab.devtools("Emulation.setDeviceMetricsOverride", **metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    tab.devtools("Emulation.setEmulatedMedia", features=[scheme])


def complaints(tab):
    """What the browser complains of, recommendations left out."""
    return [line for line in tab.messages() if "[DOM]" not in line]


def history(page):
    return page.run("return document.querySelectorAll('#history li').length")


def draw(page, *, seed="5"):
    before = history(page)
    page.type("#prompt", PROMPT)
    page.type("#panel-draw [name=seed]", seed)
    page.chord(CONTROL, ENTER)
    page.until(f"document.querySelectorAll('#history li').length === {before + 1}")


def test_the_page_is_strict_and_whole(host):
    with host.http() as http:
        found = http.get("/")
        policy = found.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        for part in ("/page.js", "/page.css"):
            assert http.get(part).status_code == 200
        for one in (found.text, http.get("/page.js").text, http.get("/page.css").text):
            assert "http://" not in one and "https://" not in one and "//cdn" not in one
        assert " style=" not in found.text and "onclick" not in found.text


@needs_browser
def test_a_picture_is_drawn_and_scored(page, host):
    # Every source that the picture is given, also one that the next replaces before it is shown.
    page.run(
        "window.seen = 0; new MutationObserver((found) => { window.seen += found.length; })"
        ".observe(document.getElementById('picture'), { attributeFilter: ['src'] })"
    )
    draw(page)
    (want,) = host.service.running.model.generate(PROMPT, seed=5)
    source = page.run("return document.getElementById('picture').src")
    assert abs(pixels(source.partition(",")[2]).astype(int) - want.image).max() <= 1
    assert page.run("return window.seen") > 1  # its steps
    assert "seed 5" in page.run("return document.getElementById('caption').textContent")
    assert page.run("return document.getElementById('save').download") == (
        "a-red-circle-above-a-blue-square-5.png"
    )
    page.click("#score")
    page.until("!document.getElementById('scores').hidden")
    boxes = page.run("return document.querySelectorAll('.box').length")
    assert boxes == page.run("return document.querySelectorAll('#scores td button').length") > 0


@needs_browser
@pytest.mark.slow
def test_what_was_drawn_is_asked_about_and_edited(page):
    draw(page)
    page.run("document.getElementById('tab-draw').focus()")
    page.press(RIGHT)  # tabs by keys
    assert page.run("return document.activeElement.id") == "tab-ask"
    page.type("#question", "what color is the circle ?")
    page.chord(CONTROL, ENTER)
    page.until(f"{DONE} && document.querySelector('#answers li p:last-child').textContent")
    page.run("document.getElementById('tab-ask').focus()")
    page.press(RIGHT)
    page.type("#instruction", "red circle")
    page.chord(CONTROL, ENTER)
    page.until("document.querySelectorAll('#history li').length === 2")
    page.click("#history li:last-child button")  # back to the first
    assert PROMPT in page.run("return document.getElementById('caption').textContent")


@needs_browser
@pytest.mark.slow
def test_what_is_wrong_is_said(page):
    page.type("#prompt", "a red zebra")
    page.click("#panel-draw .go")
    said = page.until("document.getElementById('wrong').textContent")
    assert "zebra" in said
    page.run("for (const one of document.querySelectorAll('#prompt')) one.value = ''")
    # What the reply 422 makes the browser say is no complaint about the page.
    assert all("422" in line for line in complaints(page))


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_it_fits_and_is_legible(page, width, dark):
    """Nothing is wider than the screen; fingers find buttons; contrast as WCAG AA asks."""
    shown(page, width, dark=dark)
    draw(page)
    assert page.run("return document.documentElement.scrollWidth <= window.innerWidth")
    heights = page.run(
        "return [...document.querySelectorAll('main button, main input, main textarea')]"
        ".filter(e => e.offsetParent && e.type !== 'checkbox' && !e.closest('table'))"
        ".map(e => e.getBoundingClientRect().height)"
    )
    assert min(heights) >= 43
    colours = page.run(
        "const s = getComputedStyle(document.documentElement);"
        "return ['ink', 'soft', 'bad', 'main', 'card', 'ground']"
        ".map(n => s.getPropertyValue(`--${n}`))"
    )
    ink, soft, bad, main, card, ground = map(luminance, colours)
    for text in (ink, soft, bad, main):
        assert contrast(text, card) >= 4.5 and contrast(text, ground) >= 4.4


def luminance(colour):
    """Relative, as WCAG defines it, of "#rrggbb"."""
    parts = (int(colour.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((one, other))
    return (high + 0.05) / (low + 0.05)
