"""Reads a page of HTML and holds it to being whole and to working offline."""

import html.parser
import re

VOID = {"meta", "img", "br"}


class Reader(html.parser.HTMLParser):
    """Checks that tags close in order; collects tags, attributes and the visible text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.ids, self.text = [], set(), [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, self.open
        self.text = re.sub(r"[ \n]+", " ", self.text)  # as it is seen

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
