"""Reads a page of HTML and holds it to being whole and to working offline."""

import base64
import hashlib
import html.parser
import re

VOID = {"meta", "img", "br", "input"}


class Reader(html.parser.HTMLParser):
    """Checks that tags close in order; collects tags, attributes and the visible text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.ids, self.text = [], set(), [], [], ""
        self.sections, self.scripts = [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open
        self.text = re.sub(r"[ \n]+", " ", self.text)  # as it is seen

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "section":
            self.sections.append(dict(attrs)["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data


def read(text):
    """Parses a page and holds it to working offline: the one script in it is named by its hash."""
    page = Reader(text)
    assert not page.tags & {"link", "iframe", "object", "base", "form"}
    assert len(page.ids) == len(set(page.ids))
    policy = next((value for name, value in page.attributes if "script-src" in (value or "")), "")
    hashes = re.findall(r"'sha256-([^']+)'", policy)
    assert hashes == [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in page.scripts
    ]
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy.split("script-src")[-1]
    for name, value in page.attributes:
        if name == "href" and value.startswith("#"):
            assert value[1:] in page.ids, value
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "srcset", "data"):
            assert value.startswith(("data:image/", "#")), value[:80]
    assert "url(" not in text and "@import" not in text and "http://" not in text
    assert "https://" not in text
    return page
