"""A Google Cloud Storage emulator as a process of its own, for tests of work folders in a bucket.

gcsfs and tensorstore find it by the variables that their users set for one, and so do the processes
that a test starts. It lacks a header that Google's service sends and tensorstore asks for
(`test_buckets.py` shows it); `python tests/buckets.py ARGS…` is the emulator with that header.
"""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request

import hosts

NAME = "runs"
VARIABLES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")


@contextlib.contextmanager
def emulator(program=(__file__,)):
    """Its address; it has one bucket, gs://runs, and keeps its objects in memory."""
    port = hosts.free_port()
    address = f"http://127.0.0.1:{port}"
    command = ["start", "--host=127.0.0.1", f"--port={port}", "--in-memory"]
    started = subprocess.Popen(
        [sys.executable, *program, *command, f"--default-bucket={NAME}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    before = dict(os.environ)
    os.environ |= dict.fromkeys(VARIABLES, address)
    # There are no credentials with which gcsfs could ask for the kind of the bucket.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    try:
        limit = time.monotonic() + hosts.PATIENCE
        while True:
            try:
                urllib.request.urlopen(address).close()
                break
            except OSError:
                assert started.poll() is None and time.monotonic() < limit
                time.sleep(0.05)
        yield address
    finally:
        hosts.kill([started])
        for name in VARIABLES:
            os.environ.pop(name)
        os.environ |= {name: before[name] for name in VARIABLES if name in before}


def main():
    """See the module."""
    from gcp_storage_emulator import __main__ as emulator
    from gcp_storage_emulator.handlers import objects

    download = objects.download

    def with_generation(request, response, storage, *args, **kwargs):
        download(request, response, storage, *args, **kwargs)
        if response.status.value < 300:
            where = request.params["bucket_name"], request.params["object_id"]
            response["x-goog-generation"] = storage.get_file_obj(*where)["generation"]

    objects.download = with_generation
    emulator.main()


if __name__ == "__main__":
    main()
