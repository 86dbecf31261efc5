"""Files that are whole or absent, and fingerprints."""

import pytest
from etils import epath

from srum_jax.core import files


def test_what_fails_while_it_is_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    files.write_bytes(path, [b"old"])

    def chunks():
        yield b"new"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        files.write_bytes(path, chunks())
    assert path.read_bytes() == b"old"
    files.write_bytes(path, [b"n", memoryview(b"ew")])
    assert path.read_bytes() == b"new"


def test_json_is_read_as_written_and_nothing_unmeasured_is(tmp_path):
    path = tmp_path / "folder" / "a.json"
    files.write_json(path, {"a": [1, 2.5], "ä": None})
    assert files.read_json(path) == {"a": [1, 2.5], "ä": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    assert files.read_json(path)["a"] == [1, 2.5]
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_fingerprints_see_names_sizes_and_content(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_SAMPLE", 4)
    monkeypatch.setattr(files, "_SAMPLES", 2)
    path = epath.Path(tmp_path / "a")

    def found(data, **how):
        path.write_bytes(data)
        return files.fingerprint(**{"sampled": [path]} | how)

    data = bytes(100)
    first = found(data)
    assert found(data) == first != found(data + b"\0")
    assert found(b"\1" + data[1:]) != first
    between = data[:30] + b"\1" + data[31:]  # lies between two samples
    assert found(between) == first
    whole = {"sampled": [], "whole": [path]}
    assert found(between, **whole) != found(data, **whole)
    other = epath.Path(tmp_path / "b")
    other.write_bytes(data)
    assert files.fingerprint([other]) != first
