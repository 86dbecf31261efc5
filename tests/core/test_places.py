"""Paths that people give: what is one, and what is said of what is none."""

import pathlib

import pytest

from srum_jax.core import places
from srum_jax.core.errors import BadInput


def test_the_home_folder_is_known_by_its_sign(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(places.place("~/x", "--workdir")) == f"{tmp_path}/x"
    assert str(places.place(pathlib.Path("a b"), "-o")) == "a b"
    assert str(places.place("gs://bucket/x", "--workdir")) == "gs://bucket/x"
    assert str(places.place("a:b", "-o")) == "a:b"


@pytest.mark.parametrize(
    "given, message",
    [
        ("", "-o: an empty path"),
        ("  ", "-o: an empty path"),
        ("https://example.org/a.png", "is an address, no path; fetch it first and name the file"),
        ("HTTP://example.org/a.png", "fetch it first"),
        ("hf://ByteDance-Seed/BAGEL-7B-MoT", "hf download"),
        ("file:///a.png", "leave out file://"),
        ("gcs://a/b", "buckets begin with gs:// or s3://"),
        ("https://a/" + "b" * 9000, "is an address"),
        (None, "-o is a path, got None"),
        (b"out", "-o is a path, got b'out'"),
    ],
)
def test_what_is_no_place_is_told_shortly(given, message):
    with pytest.raises(BadInput) as error:
        places.place(given, "-o")
    assert message in str(error.value) and len(str(error.value)) < 300


def test_a_bucket_without_its_package_is_told(monkeypatch):
    monkeypatch.setattr(places, "BUCKETS", {"gs": "no_such_package"})
    with pytest.raises(BadInput, match="pip install no_such_package"):
        places.place("gs://a/b", "--workdir")
