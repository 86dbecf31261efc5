"""The page in a real browser: drawn, asked, edited, scored, on a desk and a phone, by keys."""

import time
from base64 import b64encode

import browser
import numpy as np
import pytest
from serving_host import pixels, png, serving
from test_api import write_model

from srum_jax import api
from srum_jax.serving import lanes
from srum_jax.serving.limits import Limits
from srum_jax.worlds.shapes import examples

PROMPT = "a red circle above a blue square"
READY = "document.body.dataset.ready === 'yes'"
DONE = "document.getElementById('state').textContent.startsWith('done')"
CONTROL, ENTER, RIGHT, ESCAPE = "\ue009", "\ue007", "\ue014", "\ue00c"
needs_browser = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return api.load(write_model(folder, examples.write_tokenizer(folder / "words")))


@pytest.fixture(scope="module")
def host(model):
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
    hidden = "return document.querySelector('#panel-ask [name=think]').closest('label').hidden"
    assert page.run(hidden)  # this model lacks the words to think
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


def picture(page):
    return pixels(page.run("return document.getElementById('picture').src").partition(",")[2])


@needs_browser
@pytest.mark.slow
def test_a_picture_of_chance_is_drawn_again_by_its_seed_and_kept(page):
    draw(page, seed="")
    page.until(DONE)
    first = picture(page)
    assert page.run(
        "return document.getElementById('save').href === document.getElementById('picture').src"
    )
    page.click("#again")
    page.click("#panel-draw .go")
    page.until("document.querySelectorAll('#history li').length === 2")
    np.testing.assert_array_equal(picture(page), first)
    page.run("document.querySelector('#panel-draw [name=seed]').value = '1234567890123456789'")
    assert not page.run("return document.getElementById('panel-draw').checkValidity()")  # rounded


@needs_browser
@pytest.mark.slow
def test_a_picture_is_opened_and_scored_by_words_under_draw(page, tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    page.driver.find_element("id", "file").send_keys(str(tmp_path / "a.png"))
    page.until("document.querySelectorAll('#history li').length === 1")
    np.testing.assert_array_equal(picture(page), pixels(png(1)))
    page.click("#score")
    assert "What should it show?" in page.until("document.getElementById('wrong').textContent")
    page.type("#prompt", PROMPT)
    page.click("#score")
    page.until("!document.getElementById('scores').hidden")


PASTED = "document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }))"
DROPPED = """document.getElementById('frame').dispatchEvent(
    new DragEvent('drop', { dataTransfer: data, cancelable: true })
)"""


@needs_browser
@pytest.mark.parametrize("comes", [PASTED, DROPPED], ids=["paste", "drop"])
def test_a_picture_is_pasted_or_dropped(page, comes):
    held = f"""
        const bytes = Uint8Array.from(atob("{b64encode(png(1)).decode()}"), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], KIND, {{ type: KIND }}));
        return {comes};
    """
    page.run(held.replace("KIND", "'text/plain'"))  # no picture: left alone
    taken = page.run(held.replace("KIND", "'image/png'"))
    page.until("document.getElementById('picture').src.startsWith('data:image/png')")
    assert history(page) == 1
    np.testing.assert_array_equal(picture(page), pixels(png(1)))
    if comes == DROPPED:
        assert not taken  # the browser itself does not open the file in the page's place


@needs_browser
@pytest.mark.slow
def test_escape_stops_what_is_drawn(page, host, monkeypatch):
    step = lanes.Images.step

    def slow(self, group):
        time.sleep(0.05)
        step(self, group)

    monkeypatch.setattr(lanes.Images, "step", slow)
    page.type("#prompt", PROMPT)
    page.run("document.querySelector('#panel-draw [name=num_inference_steps]').value = 250")
    page.chord(CONTROL, ENTER)
    page.until("!document.getElementById('way').hidden")
    page.press(ESCAPE)
    page.until("document.getElementById('state').textContent === 'stopped'")
    limit = time.monotonic() + 8  # all steps would take longer
    while host.service.active:
        assert time.monotonic() < limit
        time.sleep(0.02)
    assert history(page) == 0


@needs_browser
@pytest.mark.slow
def test_the_theme_is_chosen(page):
    def ground():
        return page.run("return getComputedStyle(document.body).backgroundColor")

    system = ground()
    page.click("#theme")
    assert ground() == system  # light, as the system is
    page.click("#theme")
    assert ground() != system
    page.open(page.driver.current_url)
    page.until(READY)
    assert ground() != system  # as it was left
    page.click("#theme")
    assert ground() == system


@needs_browser
@pytest.mark.slow
def test_a_key_is_asked_for(tab, model):
    with serving(model, Limits(images=1, texts=1), key="open sesame") as host:
        tab.open(f"{host.url}/")
        tab.until("document.getElementById('ask-key').open")
        tab.type("#key", "open sesame")
        tab.press(ENTER)
        tab.until(READY)
        assert "tiny" in tab.run("return document.getElementById('model').textContent")
    assert all("401" in line for line in complaints(tab))


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
