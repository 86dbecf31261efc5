"""Files that are whole or absent, and fingerprints."""

import errno
import os
import pwd
import stat

import pytest
from etils import epath

from srum_jax.core import errors, files


def test_what_fails_while_it_is_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    files.write_bytes(path, [b"old"])

    def chunks():
        yield b"new"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        files.write_bytes(path, chunks())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    files.write_bytes(path, [b"n", memoryview(b"ew")])
    assert path.read_bytes() == b"new"


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else a loss of power may leave an empty file under the name."""
    calls, fsync, replace = [], os.fsync, os.replace
    names = {"a": "name"}

    def synced(opened):
        calls.append("folder" if stat.S_ISDIR(os.fstat(opened).st_mode) else "content")
        return fsync(opened)

    def replaced(source, target):
        calls.append(names[os.path.basename(target)])
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    files.write_text(tmp_path / "a", "new")
    assert calls == ["content", "name", "folder"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no full disk to lend")
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    path = tmp_path / "a"
    (tmp_path / f".a.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"No space left on device: '{path}'") as caught:
        files.write_bytes(path, [bytes(2**20)])
    assert errors.exit_code(caught.value) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error, code",
    [
        (errors.Preempted("a"), 75),
        (errors.FileLost("a"), errors.HostLost.exit_code),
        (OSError(errno.EROFS, "read-only"), 2),
        (OSError(errno.ENAMETOOLONG, "long"), 2),
        (PermissionError("no"), 2),
        (ValueError("no"), 2),
        (OSError(errno.EIO, "a disk dies"), None),
        (ConnectionResetError(errno.ECONNRESET, "gone"), None),
        (KeyError("a bug"), None),
    ],
)
def test_what_a_person_can_mend_is_bad_input(error, code):
    assert errors.exit_code(error) == code


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


def test_a_fingerprint_of_an_unknown_users_files_is_remembered(tmp_path, monkeypatch):
    def nobody(number):
        raise KeyError(f"uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    path, kept = epath.Path(tmp_path / "a"), epath.Path(tmp_path / "kept.json")
    path.write_bytes(b"one")
    first = files.remembered_fingerprint([path], [], kept)
    monkeypatch.setattr(files, "fingerprint", lambda *_: "read again")
    assert files.remembered_fingerprint([path], [], kept) == first
    path.write_bytes(b"other")
    assert files.remembered_fingerprint([path], [], kept) == "read again"
