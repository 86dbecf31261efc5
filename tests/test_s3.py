"""Buckets at s3://, on moto's server: what of `test_buckets.py` holds there; what is refused."""

import urllib.request
import uuid

import pytest
from etils import epath
from moto.server import ThreadedMotoServer
from test_buckets import (  # noqa: F401
    test_a_folder_is_moved,
    test_metrics_grow,
    test_one_writer_a_folder,
    test_records_are_read_where_nobody_noted_their_places,
    test_shards_are_read_by_record,
    test_shards_that_were_lost_are_named,
    test_what_fails_while_it_is_uploaded_leaves_the_old_object,
    written,
)
from test_convert import weights  # noqa: F401

from srum_jax import cli
from srum_jax.core import digests, files, storage
from srum_jax.core.errors import BadInput, StorageLost, StorageRefuses
from srum_jax.training.checkpoint import Checkpoints, save_params


@pytest.fixture(scope="module")
def server():
    """An address with one bucket, s3://runs, and who may use it."""
    started = ThreadedMotoServer("127.0.0.1", port=0)
    started.start()
    address = "http://{}:{}".format(*started.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        urllib.request.urlopen(urllib.request.Request(f"{address}/runs", method="PUT")).close()
        yield address
    started.stop()


@pytest.fixture
def bucket(server):
    return epath.Path(f"s3://runs/{uuid.uuid4().hex}")


def test_what_another_process_writes_is_seen_at_once(server, bucket):
    files.write_text(bucket / "a", "1")
    assert [p.name for p in bucket.iterdir()] == ["a"] and not (bucket / "stop").exists()
    address = f"{server}/{str(bucket).removeprefix('s3://')}/stop"
    plain = {"Content-Type": "text/plain"}
    request = urllib.request.Request(address, data=b"x", method="PUT", headers=plain)
    urllib.request.urlopen(request).close()
    assert (bucket / "stop").read_text() == "x"
    assert sorted(p.name for p in bucket.iterdir()) == ["a", "stop"]
    digests.write(bucket)
    assert digests.damaged(bucket) == []
    files.write_text(bucket / "a", "2")
    assert digests.damaged(bucket) == ["a"]


def test_arrays_are_refused_before_anything_is_done(bucket, weights, capsys):  # noqa: F811
    where = "arrays are saved on a disk or in a gs:// bucket"
    assert cli.main(["run", "--config=shapes", f"--workdir={bucket}", "--check"]) == 2
    assert f"{bucket}: {where}" in capsys.readouterr().err
    assert cli.main(["convert", str(weights), str(bucket / "orbax")]) == 2
    assert f"{bucket / 'orbax'}: {where}" in capsys.readouterr().err
    for save in (lambda: Checkpoints(bucket, keep=1), lambda: save_params(bucket / "params", {})):
        with pytest.raises(BadInput, match=where):
            save()
    assert not bucket.exists()


def test_a_storage_that_is_gone_is_told_from_one_that_refuses():
    from botocore import exceptions
    from s3fs.errors import translate_boto_error

    def answered(number, code):
        said = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": number}}
        return translate_boto_error(exceptions.ClientError(said, "PutObject"))

    def failure(error):
        return type(storage.failure(error))

    assert failure(answered(403, "AccessDenied")) is StorageRefuses
    assert failure(exceptions.NoCredentialsError()) is StorageRefuses
    assert failure(answered(503, "SlowDown")) is StorageLost
    assert failure(answered(500, "InternalError")) is StorageLost
    assert failure(exceptions.EndpointConnectionError(endpoint_url="http://a")) is StorageLost
    assert storage.failure(answered(404, "NoSuchKey")) is None
