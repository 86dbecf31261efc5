"""The file format: our files are the library's, and every way a header can be wrong is told."""

import json
import re
import signal
import subprocess
import sys

import hypothesis_cases
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from hypothesis import strategies as st

from srum_jax.models import safetensors_io as format

KINDS = [("a", (5, 3), "F32"), ("b.w", (4, 2, 3), "BF16"), ("c", (7,), "F16")]


def values():
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(format.DTYPES[dtype]) for _, shape, dtype in KINDS]


@pytest.fixture
def path(tmp_path):
    path = epath.Path(tmp_path / "x.safetensors")
    format.write(path, KINDS, values())
    return path


def opened(path):
    problems = []
    return format.read_header(path, problems), problems


def test_the_library_reads_what_is_written_and_the_other_way_round(path):
    found = safetensors.numpy.load_file(path)
    for (name, _, dtype), value in zip(KINDS, values(), strict=True):
        assert found[name].dtype == format.DTYPES[dtype]
        np.testing.assert_array_equal(found[name], value)
    safetensors.numpy.save_file(found, path, {"format": "pt"})
    header, problems = opened(path)
    assert not problems and set(header) == {"a", "b.w", "c"}
    for (name, _, _), value in zip(KINDS, values(), strict=True):
        with path.open("rb") as file:
            blocks = list(format.rows(file, header[name], 0, len(value)))
        np.testing.assert_array_equal(np.concatenate([b for _, b in blocks]), value)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_blocks_are_small_and_whole_groups(path, monkeypatch):
    header, _ = opened(path)
    monkeypatch.setattr(format, "_BLOCK", 24)  # two rows of "a", two of "b.w"
    with path.open("rb") as file:
        blocks = list(format.rows(file, header["a"], 1, 5))
        assert [(first, len(b)) for first, b in blocks] == [(1, 2), (3, 2)]
        np.testing.assert_array_equal(np.concatenate([b for _, b in blocks]), values()[0][1:])
        blocks = list(format.rows(file, header["a"], 0, 5, multiple=3))
        assert [(first, len(b)) for first, b in blocks] == [(0, 3), (3, 2)]


@pytest.mark.parametrize("to", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("of", ["BF16", "F16", "F32"])
def test_assigning_casts_as_numpy_does(of, to):
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.00390625, 3e-5]
    x = np.concatenate([special, np.random.default_rng(0).normal(size=300 * 100 - 7)])
    x = x.reshape(300, 100).astype(format.DTYPES[of])
    for source in (x, x.T, x[:, 3:90].T, x[::2]):
        out = np.empty(source.shape, format.DTYPES[to])
        format.assign(out, source)
        want = source.astype(out.dtype)
        np.testing.assert_array_equal(out.astype(np.float32), want.astype(np.float32))


def broken(path, change):
    """The file with another header; its data stay."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    text = change(header)
    text = (text if isinstance(text, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda h: h["a"].update(data_offsets=[48, 108]), "b.w overlaps a"),
        (lambda h: h["c"].update(data_offsets=[108, 123]), "does not fill the bytes 108 to 123"),
        (lambda h: h["c"].update(data_offsets=[208, 222]), "ends at byte 222 of the data"),
        (lambda h: h["c"].update(data_offsets=[-14, 0]), "must be a list of whole numbers"),
        (lambda h: h["c"].update(data_offsets=[108]), "entry of 'c' is malformed"),
        (lambda h: h["c"].update(shape=[7.0]), "must be a list of whole numbers"),
        (lambda h: h["c"].update(dtype="F7"), "dtype 'F7' is unknown"),
        (lambda h: h["c"].pop("shape"), "field 'shape' is missing"),
        (lambda h: h.update(c=3), "entry of 'c' is malformed"),
        (lambda h: h.pop("c") and None, "14 bytes at the end belong to no tensor"),
        (lambda h: h.pop("b.w") and None, "48 bytes before c belong to nothing"),
        (lambda h: "[1]", "the header is not a JSON object"),
        (lambda h: "{oh", "not a readable safetensors file"),
        (lambda h: '{"a": 1, "a": 2}', "'a' stands there twice"),
        (lambda h: "[" * 100_000, "not a readable safetensors file"),
    ],
)
def test_a_wrong_header_is_told(path, change, message):
    broken(path, change)
    _, problems = opened(path)
    assert problems and all(str(path) in p for p in problems)
    assert re.search(message, "\n".join(problems))


def test_several_problems_of_a_header_are_told_at_once(path):
    def change(header):
        header["a"]["dtype"] = "F7"
        header["c"]["data_offsets"] = [60, 74]

    broken(path, change)
    found, problems = opened(path)
    assert set(found) == {"b.w", "c"} and len(problems) == 2


@pytest.mark.parametrize("length", [0, 7, 9, 60, -1, -20])
def test_a_file_cut_short_is_told(path, length):
    path.write_bytes(path.read_bytes()[:length])
    _, problems = opened(path)
    assert len(problems) == 1 and str(path) in problems[0]


def test_a_huge_header_is_not_read(path):
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    assert opened(path)[0] is None
    with path.open("wb") as file:
        file.write((10**8 + 8).to_bytes(8, "little"))
        file.truncate(2 * 10**8)
    assert "100000000 are the limit" in opened(path)[1][0]


def test_a_file_that_shrinks_while_it_is_read(path):
    header, _ = opened(path)
    path.write_bytes(path.read_bytes()[:-4])
    with path.open("rb") as file, pytest.raises(ValueError, match="ended while it was read"):
        list(format.rows(file, header["c"], 0, 7))


# ------------------------------------------------------------- what the format's library cannot do


def of_library(path):
    """What the library says when it opens the file; "" where it takes it."""
    try:
        with safetensors.safe_open(path, "np"):
            return ""
    except (safetensors.SafetensorError, OSError) as e:
        return str(e)


def test_the_library_tells_the_first_problem_alone(path):
    def change(header):
        header["a"].update(dtype="F7", shape=[16])
        header["b.w"]["dtype"] = "Q8"

    whole = path.read_bytes()
    broken(path, change)
    said, (_, problems) = of_library(path), opened(path)
    assert "F7" in said and "Q8" not in said and len(problems) == 2

    path.write_bytes(whole[:-20])  # c is gone, and a part of b.w
    said, (_, problems) = of_library(path), opened(path)
    assert said.endswith("incomplete metadata, file not fully covered")
    assert "c ends at byte 122 of the data, the file has 102" in problems[0]


def test_the_library_takes_a_name_twice(path):
    entry = '"a": {"dtype": "F32", "shape": [5, 3], "data_offsets": [0, 60]}'
    broken(path, lambda header: f"{{{entry}, {entry}}}")
    path.write_bytes(path.read_bytes()[: -(48 + 14)])
    assert of_library(path) == "" and "stands there twice" in opened(path)[1][0]


def test_the_library_reads_no_bucket():
    assert "No such file" in of_library("gs://bucket/model.safetensors")


@pytest.mark.skipif(sys.platform != "linux", reason="what a system does to a mapping differs")
def test_the_library_dies_of_a_file_that_shrinks(path):
    safetensors.numpy.save_file({"a": np.zeros(2**18, np.float32)}, path)
    program = (
        "import os, safetensors\n"
        f"with safetensors.safe_open({str(path)!r}, 'np') as file:\n"
        f"    os.truncate({str(path)!r}, 4096)\n"
        "    file.get_tensor('a')"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGBUS


# ------------------------------------------------------------------------------------- writing


def test_a_failed_write_leaves_nothing_under_the_name(tmp_path):
    path = epath.Path(tmp_path / "x.safetensors")
    with pytest.raises(ValueError):
        format.write(path, KINDS, values()[:2])
    assert not path.exists()


PLAIN = st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.floats()
OTHER = PLAIN | st.lists(PLAIN, max_size=3) | st.sampled_from([2**63, 10**400, "F32", "BF16"])
FIELDS = st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), OTHER)
NUMBERS = st.lists(st.integers(-1, 240) | st.just(2**63), max_size=3)
EDITS = st.fixed_dictionaries({}, optional={"shape": NUMBERS, "data_offsets": NUMBERS})


@hypothesis_cases.counts(quick=500)
def test_any_entries_are_tensors_or_problems(cases, path):
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + size]), whole[8 + size :]

    def check(name, fields, replace):
        made = {**header, name: fields if replace else {**header.get(name, {}), **fields}}
        text = json.dumps(made).encode()
        tried(path, len(text).to_bytes(8, "little") + text + data)

    how = dict(name=st.sampled_from(["a", "b.w", "new", ""]), fields=FIELDS | EDITS)
    hypothesis_cases.run(check, cases, **how, replace=st.booleans())


@hypothesis_cases.counts(quick=500)
def test_any_bytes_are_tensors_or_problems(cases, path):
    whole = path.read_bytes()

    def check(edits, cut):
        made = bytearray(whole)
        for place, new in edits:
            made[place % len(made) : place % len(made) + len(new)] = new
        tried(path, bytes(made[:cut]))

    places = st.integers(0, 400)
    edits = st.lists(st.tuples(places, st.binary(min_size=1, max_size=4)), max_size=3)
    hypothesis_cases.run(check, cases, edits=edits, cut=places | st.just(10**4))


def tried(path, data):
    """What a header says lies in the file and can be read; otherwise it is told in short."""
    hypothesis_cases.write(path, data)
    found, problems = hypothesis_cases.value_or_refusal(lambda: opened(path))
    assert all(str(path) in p and len(p) < 500 for p in problems)
    if problems:
        return
    with path.open("rb") as file:
        for tensor in found.values():
            if tensor.dtype in format.DTYPES and tensor.shape:
                blocks = [b for _, b in format.rows(file, tensor, 0, tensor.shape[0])]
                assert sum(len(b) for b in blocks) == tensor.shape[0]
