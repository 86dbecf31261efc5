"""Work folders in a bucket: files, locks, metrics, shards and checkpoints in a real emulator."""

import collections
import dataclasses
import json
import threading
import urllib.error
import urllib.request

import buckets
import campaign
import fsspec
import hosts
import numpy as np
import pytest
import test_hosts
import toy

from srum_jax.core import digests, files, lock, storage
from srum_jax.core.errors import BadInput, Preempted, StorageLost, StorageRefuses
from srum_jax.data import images, shard_file, shards
from srum_jax.training import metrics
from srum_jax.training.checkpoint import Checkpoints, load_params, save_params

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def another_writes(storage, path, data):
    """As another process would: past everything that this one keeps of the bucket."""
    bucket, _, name = str(path).removeprefix("gs://").partition("/")
    address = f"{storage}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}"
    urllib.request.urlopen(urllib.request.Request(address, data=data, method="POST")).close()


def test_what_the_emulator_lacks():
    """By requests of nobody's code: what Google's service does and documents, it does not."""
    with buckets.emulator(program=("-m", "gcp_storage_emulator")) as plain:
        there = "/upload/storage/v1/b/runs/o?uploadType=media&name=a"

        def ask(path, data=None):
            request = urllib.request.Request(plain + path, data=data)
            try:
                with urllib.request.urlopen(request) as found:
                    return found.status, found.headers
            except urllib.error.HTTPError as e:
                return e.code, e.headers

        assert ask(there, b"1")[0] == 200
        assert "x-goog-generation" not in ask("/storage/v1/b/runs/o/a?alt=media")[1]
        assert ask(f"{there}&ifGenerationMatch=0", b"2")[0] == 200  # 412: there is one already
        assert ask("/storage/v1/b/runs/o/a/moveTo/o/b", b"{}")[0] == 501


def test_what_another_process_writes_is_seen_at_once(storage, bucket):
    files.write_text(bucket / "a", "1")
    assert [p.name for p in bucket.iterdir()] == ["a"] and not (bucket / "stop").exists()
    another_writes(storage, bucket / "stop", b"x")
    assert (bucket / "stop").exists() and (bucket / "stop").read_text() == "x"
    assert sorted(p.name for p in bucket.iterdir()) == ["a", "stop"]
    another_writes(storage, bucket / "a", b"22")
    assert (bucket / "a").read_text() == "22" and (bucket / "a").stat().length == 2


def test_what_fails_while_it_is_uploaded_leaves_the_old_object(bucket):
    path = bucket / "a"
    files.write_bytes(path, [b"old"])

    def chunks():
        yield b"new"
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        files.write_bytes(path, chunks())
    assert path.read_bytes() == b"old"
    large = [bytes([i]) * 3_000_000 for i in range(7)]
    files.write_bytes(path, large)
    assert path.read_bytes() == b"".join(large)
    files.write_bytes(path, [])
    assert path.read_bytes() == b""
    assert [p.name for p in bucket.iterdir()] == ["a"]


@pytest.mark.parametrize("number", [403, 429, 500, 502, 503])
def test_a_storage_that_is_gone_is_told_from_one_that_refuses(number, gone, bucket):
    kind, said = (StorageRefuses, "refuses") if number == 403 else (StorageLost, "gives no answer")
    with gone(number), pytest.raises(Exception) as raised:
        files.write_text(bucket / "a", "1")
    failed = storage.failure(raised.value, str(bucket))
    assert type(failed) is kind and f"{bucket}: the storage {said} (" in str(failed)
    assert len(str(failed)) < 400 and "\n" not in str(failed)


@pytest.mark.parametrize("error", [ValueError("a"), OSError(28, "full"), FileNotFoundError("a")])
def test_what_no_client_of_a_bucket_raises_is_left_alone(error):
    assert storage.failure(error) is None


def test_metrics_grow(bucket):
    path = bucket / "metrics.jsonl"
    writer = metrics.Writer(path, steps=10, start=0, title="toy")
    for step in range(1, 6):
        writer.write({"step": step, "loss": 1.0})
    writer.sync()
    assert [row["step"] for row in metrics.read(path)] == [1, 2, 3, 4, 5]
    writer.write({"step": 6, "loss": 1.0})  # killed: not synced
    writer = metrics.Writer(path, steps=10, start=4, title="toy")
    writer.write({"step": 5, "loss": 2.0})
    writer.close()
    found = [(row["step"], row["loss"]) for row in metrics.read(path)]
    assert found == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0)]


def test_one_writer_a_folder(bucket, monkeypatch):
    monkeypatch.setattr(lock, "SETTLE", 0.1)
    with lock.held(bucket):
        with pytest.raises(BadInput, match="is in use by process"):
            with lock.held(bucket):
                pass
    assert not (bucket / lock.FILE).exists()


def test_of_two_that_start_together_one_holds(storage, bucket, monkeypatch):
    """The other one's lock comes after this one has looked and written."""
    monkeypatch.setattr(lock, "SETTLE", 0.5)
    other = json.dumps(lock.dataclasses.asdict(lock.Holder.here())).encode()
    write = lock._write

    def both(path, holder):
        write(path, holder)
        another_writes(storage, path, other)

    monkeypatch.setattr(lock, "_write", both)
    with pytest.raises(BadInput, match="is in use by process"):
        with lock.held(bucket):
            pass
    assert (bucket / lock.FILE).read_bytes() == other


def candidates(count):
    rng = np.random.default_rng(0)
    for i in range(count):
        yield {
            "id": f"{i}-0",
            "prompt_id": i,
            "prompt": f"prompt {i}",
            "category": "shape",
            "k": 0,
            "seed": i,
            "image": images.encode_png(rng.integers(0, 255, (64, 64, 3), np.uint8)),
            "latent": rng.standard_normal((32, 32, 16), np.float32),
        }


def test_a_folder_is_moved(bucket):
    large = bytes(range(256)) * 10_000
    for name, data in {"a": b"1", "b/c/d": large, "b/e": b""}.items():
        files.write_bytes(bucket / "s" / name, [data])
    files.write_text(bucket / "s-2" / "a", "another's")
    files.move_folder(bucket / "s", bucket / "s-1")
    assert sorted(p.name for p in bucket.iterdir()) == ["s-1", "s-2"]
    assert (bucket / "s-1" / "b" / "c" / "d").read_bytes() == large
    assert [(bucket / "s-1" / name).read_bytes() for name in ("a", "b/e")] == [b"1", b""]


@pytest.fixture
def written(bucket):
    """A bucket's folder with 2 shards of 12 records, and the same on a disk."""

    def write(folder):
        features, records = shards.candidate_features((None, None, 16)), list(candidates(24))
        for i in range(2):
            shards.write_shard(folder, "c", features, records[12 * i : 12 * i + 12], i, 2)
        assert shards.shards_left(folder, "c", [12] * 3, range(3)) == [0, 1, 2]
        assert shards.shards_left(folder, "c", [12] * 2, range(2)) == []
        assert shards.shards_left(folder / "none", "c", [12], [0]) == [0]
        shards.finish(folder, "c", features, [12, 12])
        return shards.read(folder)

    return write


def test_shards_are_read_by_record(written, bucket, tmp_path, monkeypatch):
    there, here = written(bucket), written(tmp_path)
    client = type(fsspec.core.url_to_fs(str(bucket))[0])
    fetched, cat_file = collections.Counter(), client._cat_file

    async def counting(self, path, **span):
        data = await cat_file(self, path, **span)
        fetched[path.rpartition("/")[2].partition("-of")[0]] += len(data)
        return data

    monkeypatch.setattr(client, "_cat_file", counting)
    assert [r["prompt"] for r in there.summaries()] == [f"prompt {i}" for i in range(24)]
    assert not fetched  # of the shards
    for i in (17, 3, 0, 23, 11):
        a, b = there[i], here[i]
        assert a["id"] == b["id"]
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["latent"], b["latent"])
    size = there._path(0).stat().length
    assert size > 800_000 and sum(fetched.values()) < 5 * 80_000 + 4 * 2**18


def test_records_are_read_where_nobody_noted_their_places(written, bucket):
    there = written(bucket)
    for i in range(2):
        shards.summaries_path(there._path(i)).unlink()
    assert [r["id"] for r in shards.read(bucket)] == [f"{i}-0" for i in range(24)]


@pytest.mark.parametrize("number", [502, 503])
def test_a_storage_that_is_gone_has_not_damaged_what_it_holds(number, gone, written, bucket):
    there = written(bucket)
    new, opened = (lambda: there[0]), (lambda: there[1])
    for read in (new, lambda: shards.read(bucket), opened):
        with gone(number), pytest.raises(Exception) as raised:
            read()
        told = storage.failure(raised.value) or raised.value
        assert type(told) is StorageLost, told
        assert there[0]["id"] == "0-0"
    assert there[1]["id"] == "1-0"


def test_a_checkpoint_is_kept_while_the_storage_is_gone(gone, bucket, monkeypatch):
    state, _, _ = toy.start(toy.loop_config())
    checkpoints = Checkpoints(bucket / "checkpoints", keep=2)
    checkpoints.save(8, dataclasses.replace(state, step=state.step + 8), {})
    checkpoints.close()
    for asked in ("maxResults=", "commit_success", "checkpoints/&", "/8/&", "alt=media"):
        with gone(502, asked), pytest.raises(Exception) as raised:
            Checkpoints(bucket / "checkpoints", keep=2).newest(state, lambda: state, steps=8)
        told = storage.failure(raised.value) or raised.value
        assert type(told) is StorageLost, (asked, told)
    checkpoints = Checkpoints(bucket / "checkpoints", keep=2)
    monkeypatch.setattr(digests, "exist", lambda folder: True)  # it goes while they are read
    with gone(502), pytest.raises(StorageLost, match="gives no answer"):
        checkpoints.newest(state, lambda: state, steps=8)
    assert int(checkpoints.newest(state, lambda: state, steps=8).step) == 8


@pytest.mark.parametrize("number", [403, 503])
def test_tensorstore_tells_a_storage_that_is_gone_too(number, gone, bucket, monkeypatch):
    """Nothing is called damaged, or of another model, and removed: what comes back is restored."""
    from orbax.checkpoint._src.serialization import tensorstore_utils

    soon = {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}
    for context in ("_BASE_TS_CONTEXT", "_DEFAULT_OCDBT_TS_CONTEXT"):
        monkeypatch.setitem(getattr(tensorstore_utils, context), "gcs_request_retries", soon)
    state, _, _ = toy.start(toy.loop_config())
    checkpoints = Checkpoints(bucket / "checkpoints", keep=2)
    for step in (4, 8):
        checkpoints.save(step, dataclasses.replace(state, step=state.step + step), {})
    checkpoints.close()
    save_params(bucket / "params", state.params)
    checkpoints = Checkpoints(bucket / "checkpoints", keep=2)
    kind, said = (StorageRefuses, "refuses") if number == 403 else (StorageLost, "gives no answer")
    for read in (
        lambda: checkpoints.restore(8, state),
        lambda: checkpoints.newest(state, lambda: state, steps=8),
        lambda: load_params(bucket / "params", state.params),
        lambda: save_params(bucket / "more", state.params),
    ):
        with gone(number, "tensorstore="), pytest.raises(kind, match=f"the storage {said} ") as e:
            read()
        assert "\n" not in str(e.value)
    assert int(checkpoints.newest(state, lambda: state, steps=8).step) == 8
    assert list(checkpoints.manager.all_steps()) == [4, 8]


def test_a_folder_is_not_said_to_be_none_by_a_storage_that_is_gone(gone, bucket):
    files.write_text(bucket / "8" / "a", "1")
    assert (bucket / "8").is_dir() and not (bucket / "8" / "a").is_dir()
    assert not (bucket / "9").is_dir()
    for number in (403, 502):
        with gone(number), pytest.raises(OSError):
            (bucket / "8").is_dir()


def test_shards_that_were_lost_are_named(written, bucket):
    there = written(bucket)
    files.write_bytes(there._path(0), [b""])
    with pytest.raises(ValueError, match="c-train.array_record-00000-of-00002: damaged"):
        there[0]
    assert shards.is_whole(bucket)
    there._path(1).unlink()
    assert not shards.is_whole(bucket)
    with pytest.raises(FileNotFoundError, match="00001-of-00002: this shard is missing"):
        there[12]
    with pytest.raises(ValueError, match="00000-of-00002: damaged, 0 records instead of 12"):
        shards.finish(bucket, "c", there.features, [12, 12])


@pytest.mark.parametrize("sizes", [[1], [40_000, 24, 65_495, 0, 65_496, 65_497, 131_000, 7]])
def test_places_of_records_of_any_size(tmp_path, sizes):
    """Also of those that end where a block of the file does."""
    from array_record.python.array_record_module import ArrayRecordWriter

    path, rng = tmp_path / "a", np.random.default_rng(0)
    sizes = [*sizes, *rng.integers(0, 70_000, 40).tolist()]
    records = [rng.bytes(size) for size in sizes]
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    spans = shard_file.spans(path, len(records))
    shard = shard_file.BucketShard.open(path, spans)  # fsspec opens local files as well
    whole, cut = path.read_bytes(), bytearray(path.stat().st_size)
    assert shard.num_records() == len(records)
    for i, (start, end) in enumerate(spans):
        cut[:] = bytes(len(cut))
        cut[start:end], cut[-(2**17) :] = whole[start:end], whole[-(2**17) :]
        path.write_bytes(bytes(cut))  # whoever reads beyond the span finds nothing
        assert shard.read([i]) == [records[i]]


def test_a_run_goes_on_in_a_bucket(bucket, tmp_path):
    """Checkpoints, metrics and parameters: those of a run on a disk, bit for bit."""
    told = threading.Event()
    with pytest.raises(Preempted):
        toy.run(bucket, told, batches=toy.StoppingBatches(told))
    assert {p.name for p in (bucket / "checkpoints").iterdir()} <= {"2", "4", "5"}
    state, _ = toy.run(bucket, threading.Event())
    whole, _ = toy.run(tmp_path, threading.Event())
    toy.assert_same(state, whole)
    losses = [[r["loss"] for r in metrics.read(f / "metrics.jsonl")] for f in (bucket, tmp_path)]
    assert losses[0] == losses[1] and len(losses[0]) == 8
    name = next(iter(digests.files.read_json(bucket / "checkpoints/8" / digests.FILE)))
    data = (bucket / "checkpoints/8" / name).read_bytes()
    assert digests.damaged(bucket / "checkpoints/8") == []
    files.write_bytes(bucket / "checkpoints/8" / name, [data[:-1], bytes([data[-1] ^ 1])])
    assert digests.damaged(bucket / "checkpoints/8") == [name]
    save_params(bucket / "params", state.params)
    toy.assert_same(load_params(bucket / "params", state.params), state.params)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_whole_loop(processes, bucket, tmp_path):
    """It ends as one of as many processes on a disk, bit for bit, and as one of one process."""
    run = test_hosts.runner(tmp_path, 1, **test_hosts.QUICK)
    hosts.ended(run(tmp_path / "one", 1))
    printed = hosts.ended(run(bucket, processes))
    assert f"report: {bucket / 'report.html'}" in printed[0]
    test_hosts.assert_same_runs(tmp_path / "one", bucket, test_hosts.QUICK["train__steps"])
    alike = tmp_path / "one"
    if processes > 1:
        alike = tmp_path / "alike"
        hosts.ended(run(alike, processes))
    campaign.assert_same_ends(alike, bucket)
