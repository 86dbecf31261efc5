"""Pieces of the report in a notebook's cells."""

import numpy as np
from html_page import Reader

from srum_jax.report import notebook

EVIL = "<b>a red circle</b>"


def test_pictures_stand_over_their_captions_with_scored_regions():
    image = np.zeros((16, 32, 3), np.uint8)
    boxes = (((0, 0, 8, 8), 0.5), ((8, 8, 16, 16), float("nan")))
    one = notebook.Captioned(EVIL, (image, image), (("region", "+0.50"),), boxes, marked=True)
    text = str(notebook.gallery([one, notebook.Captioned("plain", (image,))], width=64))
    page = Reader(text)
    assert EVIL in page.text and "region +0.50" in page.text and "<b>a red" not in text
    assert text.count("<image") == 3 and text.count("<rect") == 2 * 2 * 2
    assert ("width", "16.0") in page.attributes and "seagreen" in text


def test_tables_and_pages_are_escaped():
    text = str(notebook.table(["", "right"], [[EVIL, "56.0 %"]]))
    assert EVIL in Reader(text).text and "<b>" not in text
    framed = Reader(str(notebook.page("<p>whole & true</p>")))
    assert ("srcdoc", "<p>whole & true</p>") in framed.attributes
