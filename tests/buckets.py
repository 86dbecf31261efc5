"""A Google Cloud Storage emulator as a process of its own, for tests of work folders in a bucket.

gcsfs and tensorstore find it by the variables that their users set for one, and so do the processes
that a test starts. It lacks a header that Google's service sends and tensorstore asks for
(`test_buckets.py` shows it); `python tests/buckets.py ARGS…` is the emulator with that header. It
fails when a file, which the variable EMULATOR_TOLD names, says so.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request

import hosts

NAME = "runs"
VARIABLES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
FAILURES = ("503", "time-outs")
SILENT = 5.0  # seconds until a connection is closed that got no answer


@contextlib.contextmanager
def emulator(program=(__file__,), told=None):
    """Its address; it has one bucket, gs://runs, and keeps its objects in memory.

    told: the file by which `fail` tells it to.
    """
    port = hosts.free_port()
    address = f"http://127.0.0.1:{port}"
    command = ["start", "--host=127.0.0.1", f"--port={port}", "--in-memory"]
    started = subprocess.Popen(
        [sys.executable, *program, *command, f"--default-bucket={NAME}"],
        env=os.environ | {"EMULATOR_TOLD": str(told or os.devnull)},
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


def fail(told, how, seconds, only=""):
    """Every request of the next `seconds` gets this error ("503"), or, with "time-outs", no
    answer. `only`: a part of the address of those that do."""
    new = told.with_suffix(".new")
    new.write_text(json.dumps([how, time.time() + seconds, only]))
    new.replace(told)


def failing(handle, told):
    """The emulator's `handle`, which fails as `told` says."""

    def handles(router, method):
        how, until, only = json.loads(told.read_text()) if told.is_file() else ("", 0.0, "")
        if time.time() >= until or only not in router._request_handler.path:
            handle(router, method)
        elif how.isdecimal():
            router._request_handler.send_error(int(how))
        else:
            time.sleep(max(0.0, min(SILENT, until - time.time())))
            router._request_handler.close_connection = True

    return handles


def main():
    """See the module."""
    from gcp_storage_emulator import __main__ as emulator
    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers import objects

    download = objects.download

    def with_generation(request, response, storage, *args, **kwargs):
        download(request, response, storage, *args, **kwargs)
        if response.status.value < 300:
            where = request.params["bucket_name"], request.params["object_id"]
            response["x-goog-generation"] = storage.get_file_obj(*where)["generation"]

    objects.download = with_generation
    told = pathlib.Path(os.environ["EMULATOR_TOLD"])
    server.Router.handle = failing(server.Router.handle, told)
    emulator.main()


if __name__ == "__main__":
    main()
