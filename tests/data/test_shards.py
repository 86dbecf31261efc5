"""Shards: round trip, going on, and every kind of damage named with what to do."""

import io
import json
import math
import os
import pathlib
import pickle
import resource
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from srum_jax.core import errors
from srum_jax.data import shard_file, shards

NAME = "candidates"


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def candidate(i, rng):
    pixels = rng.integers(0, 256, (8, 6, 3), dtype=np.uint8)
    latent = rng.normal(size=(2, 3, 4)).astype(np.float32)
    return pixels, {
        "id": f"{i // 2}-{i % 2}",
        "prompt_id": i // 2,
        "prompt": f"a café {i}",
        "category": "single",
        "k": i % 2,
        "seed": 2**40 + i,
        "image": png(pixels),
        "latent": latent,
    }


def write_all(folder, records, sizes, features=None):
    features = features or shards.candidate_features((2, 3, 4))
    start = 0
    for i, size in enumerate(sizes):
        n = shards.write_shard(folder, NAME, features, records[start : start + size], i, len(sizes))
        assert n == size
        start += size
    shards.finish(folder, NAME, features, sizes)


@pytest.fixture
def written(tmp_path):
    rng = np.random.default_rng(0)
    pixels, records = zip(*(candidate(i, rng) for i in range(7)), strict=True)
    sizes = shards.shard_sizes(7, 3)
    write_all(tmp_path, records, sizes)
    return tmp_path, pixels, records, sizes


def test_unit_sizes():
    assert shards.shard_sizes(7, 3) == [3, 3, 1]
    assert shards.shard_sizes(6, 3) == [3, 3]
    assert shards.shard_sizes(0, 3) == []


def test_round_trip_is_exact(written):
    folder, pixels, records, _ = written
    read = shards.read(folder)
    assert len(read) == 7
    for have, want, image in zip(read, records, pixels, strict=True):
        np.testing.assert_array_equal(have["image"], image)
        np.testing.assert_array_equal(have["latent"], want["latent"])
        assert have["latent"].dtype == np.float32 and have["image"].dtype == np.uint8
        for key in ("id", "prompt", "category", "prompt_id", "k", "seed"):
            assert have[key] == want[key]
        assert isinstance(have["prompt"], str)
    assert read[-1]["id"] == records[-1]["id"]
    with pytest.raises(IndexError):
        read[7]
    assert pickle.loads(pickle.dumps(read))[4]["id"] == read[4]["id"]
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == []


def test_fields_and_summaries_decode_no_picture(written, monkeypatch):
    folder, pixels, records, _ = written
    read = shards.read(folder)
    plain = ("id", "prompt_id", "prompt", "category", "k", "seed")
    want = [{**{k: r[k] for k in plain}, "image": [8, 6, 3], "latent": [2, 3, 4]} for r in records]
    monkeypatch.setattr(Image.Image, "load", None)  # what decodes
    for i in (0, 5, -1):
        found = read.fields(i, ("latent", "id"))
        assert found.keys() == {"latent", "id"} and found["id"] == records[i]["id"]
        np.testing.assert_array_equal(found["latent"], records[i]["latent"])
    assert list(read.summaries()) == want
    monkeypatch.setattr(shards.ShardRecords, "_decoded", None)  # what reads the shards
    assert list(read.summaries()) == want
    monkeypatch.undo()
    monkeypatch.setattr(Image.Image, "load", None)
    shards.summaries_path(shards.shard_path(folder, NAME, 0, 3)).unlink()  # as folders of old have
    shards.summaries_path(shards.shard_path(folder, NAME, 1, 3)).write_bytes(b'{"id": "1')
    assert list(shards.read(folder).summaries()) == want


def test_more_shards_than_file_handles(tmp_path):
    """1019 shards and 256 handles, read in any order by several threads."""
    count, kinds = 1019, 3
    features = shards.reply_features("image")
    for i in range(count):
        path = shards.shard_path(tmp_path, "images", i, count)
        if i < kinds:
            record = {"id": str(i), "image": png(np.zeros((1, 1, 3), np.uint8))}
            shards.write_shard(tmp_path, "images", features, [record], i, count)
        else:
            shutil.copy(shards.shard_path(tmp_path, "images", i % kinds, count), path)
    shards.finish(tmp_path, "images", features, [1] * count)
    code = """if True:
        import concurrent.futures, os, resource, sys
        import numpy as np
        from srum_jax.core import errors
        from srum_jax.data import shards
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        read = shards.read(sys.argv[1])
        order = np.random.default_rng(0).permutation(len(read)).tolist()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i: read[i]["id"], order))
        assert found == [str(i % 3) for i in order]
        if os.path.isdir("/proc/self/fd"):
            assert len(os.listdir("/proc/self/fd")) < 3 * shards.OPEN_READERS
        others = []
        try:
            while True:
                others.append(open(os.devnull))
        except OSError:
            pass
        for ask in (lambda: shards.read(sys.argv[1]), lambda: list(read)):
            try:
                ask()
            except errors.BadInput as e:
                assert "too many open files" in str(e) and "damaged" not in str(e), e
            else:
                raise AssertionError("read without a handle")
    """
    asked = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not pathlib.Path("/proc/self/io").exists(), reason="Linux counts what is read")
def test_opening_a_shard_reads_its_end_alone(tmp_path):
    """Shards beyond the limit of open ones are opened for every record."""
    rng = np.random.default_rng(0)
    shard_file.write(tmp_path / "shard", [rng.bytes(20_000) for _ in range(64)])

    def read():
        fields = dict(line.split(": ") for line in open("/proc/self/io"))
        return int(fields["rchar"])

    before = read()
    shard_file.open_shard(tmp_path / "shard").close()
    assert read() - before < 2**18


def test_past_99999_shards_are_taken_by_number(written, monkeypatch):
    """As text "100000-of-100001" comes before "99999-of-100001"."""
    folder, _, _, _ = written
    path, count = folder / "dataset_info.json", 100_001
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"] = ["1"] * count
    path.write_text(json.dumps(info))
    monkeypatch.setattr(shard_file, "count", lambda path: 1)
    names = shards.read(folder)._names
    assert [name.partition("record-")[2] for name in names[99_998:]] == [
        f"{i}-of-100001" for i in (99_998, 99_999, 100_000)
    ]


def test_scores_round_trip_with_nan_and_no_regions(tmp_path):
    features = shards.score_features()
    region = {
        "bbox": np.array([1, 2, 9, 10], np.float32),
        "score": np.float32(0.5),
        "status": "ok",
        "label": "red circle",
        "proposer": "grid",
    }
    failed = {**region, "score": np.float32(math.nan), "status": "unparsed"}
    base = {"prompt_id": 3, "k": 0, "image_score": np.float32(-0.25), "image_status": "ok"}
    records = [
        {**base, "id": "3-0", "regions": [region, failed]},
        {**base, "id": "3-1", "regions": []},
    ]
    shards.write_shard(tmp_path, "scores", features, records, 0, 1)
    shards.finish(tmp_path, "scores", features, [2])
    first, second = shards.read(tmp_path)
    assert second["regions"] == [] and first["image_score"] == np.float32(-0.25)
    assert [r["status"] for r in first["regions"]] == ["ok", "unparsed"]
    assert math.isnan(first["regions"][1]["score"])
    np.testing.assert_array_equal(first["regions"][0]["bbox"], region["bbox"])


def test_masks_of_regions_are_bytes_and_older_records_have_none(tmp_path):
    features = shards.score_features(masks=True)
    region = {
        "bbox": np.zeros(4, np.float32),
        "score": np.float32(0.5),
        "status": "ok",
        "label": "",
        "proposer": "grid",
    }
    data = b"\x89PNG\r\n\x00\xff\x00"
    found = [{**region, "mask": data}, {**region, "mask": b""}]
    base = {"prompt_id": 3, "k": 0, "image_score": np.float32(0), "image_status": "ok"}
    records = [{**base, "id": "a", "regions": found}, {**base, "id": "b", "regions": []}]
    shards.write_shard(tmp_path / "new", "scores", features, records, 0, 1)
    shards.finish(tmp_path / "new", "scores", features, [2])
    first, second = shards.read(tmp_path / "new")
    assert [r["mask"] for r in first["regions"]] == [data, b""] and second["regions"] == []
    plain = [{**base, "id": "a", "regions": [region]}]
    shards.write_shard(tmp_path / "old", "scores", shards.score_features(), plain, 0, 1)
    shards.finish(tmp_path / "old", "scores", shards.score_features(), [1])
    assert "mask" not in shards.read(tmp_path / "old")[0]["regions"][0]
    with pytest.raises(ValueError, match="record 0: does not fit its features"):
        shards.write_shard(tmp_path / "no", "scores", features, plain, 0, 1)


def test_half_done_goes_on(tmp_path):
    rng = np.random.default_rng(1)
    records = [candidate(i, rng)[1] for i in range(4)]
    features = shards.candidate_features((2, 3, 4))
    shards.write_shard(tmp_path, NAME, features, records[:2], 0, 2)
    assert shards.shards_left(tmp_path, NAME, [2, 2], range(2)) == [1]
    assert shards.shards_left(tmp_path, NAME, [3, 2], range(2)) == [0, 1]  # it is cut
    assert shards.shards_left(tmp_path, NAME, [2, 2], [0]) == []
    assert shards.shards_left(tmp_path / "none", NAME, [2, 2], range(2)) == [0, 1]
    with pytest.raises(FileNotFoundError, match="00001-of-00002: this shard is missing"):
        shards.finish(tmp_path, NAME, features, [2, 2])
    with pytest.raises(FileNotFoundError, match="no finished records"):
        shards.read(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r.pop("seed"), r"record 1: missing \['seed'\]"),
        (lambda r: r.update(sead=1), r"record 1: .*unknown \['sead'\]"),
        (lambda r: r.update(latent=np.zeros((2, 3, 5), np.float32)), "record 1: does not fit"),
        (lambda r: r.update(latent=np.zeros((2, 3, 4))), "record 1: does not fit"),
    ],
)
def test_wrong_record_is_named_and_leaves_nothing(tmp_path, change, message):
    rng = np.random.default_rng(2)
    records = [candidate(i, rng)[1] for i in range(2)]
    change(records[1])
    with pytest.raises(ValueError, match=message):
        shards.write_shard(tmp_path, NAME, shards.candidate_features((2, 3, 4)), records, 0, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [0, 100, -200])
def test_an_empty_or_cut_shard_counts_as_absent(written, left, caplog):
    folder, _, _, sizes = written
    path = shards.shard_path(folder, NAME, 1, 3)
    path.write_bytes(path.read_bytes()[:left])
    assert shards.shards_left(folder, NAME, sizes, range(3)) == [1]
    assert not shards.is_whole(folder)
    message = "00001-of-00003: damaged, 0 records instead of 3"
    assert caplog.text.count(message) == 2
    with pytest.raises(errors.Damaged, match=f"{message}; run its stage again"):
        shards.finish(folder, NAME, shards.candidate_features((2, 3, 4)), sizes)
    with pytest.raises(errors.Damaged, match=f"{message}; run its stage again"):
        shards.read(folder)


def test_count_too_small_is_refused(written):
    folder, _, _, _ = written
    with pytest.raises(ValueError, match="3 records instead of 2"):
        shards.finish(folder, NAME, shards.candidate_features((2, 3, 4)), [2, 3, 1])


def test_flipped_bit_names_its_unit(written):
    folder, _, _, _ = written
    path = shards.shard_path(folder, NAME, 1, 3)
    data = bytearray(path.read_bytes())
    at = data.find(b"a caf")  # inside the second shard's first record, if it is stored as it is
    at = at if at >= 0 else len(data) // 3
    data[at] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(errors.Damaged, match="00001-of-00003: damaged") as raised:
        list(shards.read(folder))
    assert raised.value.path == path


@pytest.mark.parametrize("letter", [b'"a caf', b'"prompt_id": 1', b'"latent": [2'])
def test_a_flipped_bit_of_the_summaries_changes_nothing(written, letter):
    """Also one that leaves the grammar of JSON whole."""
    folder, _, _, _ = written
    want = list(shards.read(folder).summaries())
    path = shards.summaries_path(shards.shard_path(folder, NAME, 0, 3))
    whole = path.read_bytes()
    assert letter in whole
    path.write_bytes(whole.replace(letter, letter[:-1] + bytes([letter[-1] ^ 1]), 1))
    assert list(shards.read(folder).summaries()) == want


def test_damaged_metadata_and_missing_unit_are_named(written):
    folder, _, _, _ = written
    path = shards.shard_path(folder, NAME, 2, 3)
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="00002-of-00003: this shard is missing"):
        shards.read(folder)
    path.write_bytes(data)
    (folder / "features.json").write_text("{")
    with pytest.raises(ValueError, match="features.json is damaged"):
        shards.read(folder)


def test_no_tensorflow_is_imported(written):
    folder, _, _, _ = written
    code = (
        "import sys; from srum_jax.data import shards; r = shards.read(sys.argv[1]); r[0];"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_full_disk_leaves_no_shard_and_is_told_as_one(tmp_path):
    """Found where the writer closes the file, in words of its own and not as an OSError."""
    _, record = candidate(0, np.random.default_rng(0))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(OSError, match="array_record") as raised:
            shards.write_shard(tmp_path, NAME, shards.candidate_features((2, 3, 4)), [record], 0, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert errors.exit_code(raised.value) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_shard_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """And its summaries before it."""
    _, record = candidate(0, np.random.default_rng(0))
    calls, sync, replace = [], os.fsync, os.replace

    def synced(opened):
        kind = "folder" if stat.S_ISDIR(os.fstat(opened).st_mode) else "content"
        calls.append(kind)
        return sync(opened)

    def replaced(source, target):
        calls.append("summaries" if "summaries" in os.path.basename(target) else "shard")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    shards.write_shard(tmp_path, NAME, shards.candidate_features((2, 3, 4)), [record], 0, 1)
    assert calls == ["content", "summaries", "folder", "content", "shard", "folder"]
