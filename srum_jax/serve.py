"""The model as a server, `srum serve`: OpenAI's addresses, a score, a page to look at.

Says `serving MODEL on http://HOST:PORT` on stdout when it answers; logs on stderr.
"""

import argparse
import asyncio
import importlib.util
import os
import sys
from collections.abc import Sequence

from absl import flags

from srum_jax import use_options
from srum_jax.core import console, ending
from srum_jax.core.errors import BadInput

EXAMPLES = """\
examples
  %(prog)s                                        the small shapes base, on this machine alone
  %(prog)s --model weights/BAGEL-7B-MoT --warm    a BAGEL folder, its programs made at the start
  %(prog)s --model runs/mine                      what a run has trained so far
  %(prog)s --host 0.0.0.0 --api_key_env SRUM_KEY  for others, who must give the key

  curl http://127.0.0.1:8000/v1/images/generations -H "Content-Type: application/json" \\
    -d '{"prompt": "a red circle above a blue square", "seed": 1}'

SIGTERM or Ctrl-C: no new work, what runs is finished (again: ends at once).
Exit codes: 0 ended as told, 2 bad input, 3 not enough device memory.
"""


def parser(program: str = "python -m srum_jax.serve") -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        program,
        description="Serve a model: chat, images, edits and scores for OpenAI's clients.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    use_options.loading(made, "a run's folder, ")
    made.add_argument("--name", help="of the model, for clients (default: its folder's)")
    made.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    made.add_argument("--port", type=_port, default=8000, help="0: any that is free")
    made.add_argument("--api_key_env", metavar="VARIABLE", help="that holds the clients' key")
    made.add_argument("--allow_host", action="append", default=[], help="another name of this host")
    made.add_argument(
        "--allow_urls",
        metavar="HOST",
        action="append",
        default=[],
        help="open http and https addresses of this host in requests, HOST or HOST:PORT",
    )
    made.add_argument("--step", type=_count, help="of a run: this checkpoint (default: the newest)")
    made.add_argument("--watch", action="store_true", help="take each new checkpoint of the run")
    made.add_argument("--watch_seconds", type=_count, default=10, help="between two looks")
    made.add_argument("--warm", action="store_true", help="compile before the first request")
    made.add_argument("--log_prompts", action="store_true", help="with the words of requests")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    limits = made.add_argument_group("limits")
    limits.add_argument("--queue", type=_count, default=64, help="pieces of work that wait")
    limits.add_argument("--texts", type=_count, default=16, help="answers written at once")
    limits.add_argument("--images", type=_count, help="images drawn at once (default: the model's)")
    limits.add_argument("--max_tokens", type=_count, default=4096, help="of an answer")
    limits.add_argument("--max_steps", type=_count, default=250, help="of a drawing")
    limits.add_argument("--max_body", type=_count, default=32, help="MiB of a request")
    limits.add_argument("--max_seconds", type=_count, default=600, help="of a request")
    return made


def main(argv: Sequence[str], *, program: str = "python -m srum_jax.serve") -> int:
    """Runs a command line (without the program's name) and returns its exit code; in the help the
    program is called `program`."""
    options = parser(program).parse_args(argv)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # absl's logging asks for it
    console.log_to_stderr(debug=options.debug)
    try:
        return _serve(options)
    except KeyboardInterrupt:
        return 130
    except Exception as e:
        _, code = ending.told(e, debug=options.debug)
        if code is None:
            raise
        return code


def _serve(options: argparse.Namespace) -> int:
    if not all(map(importlib.util.find_spec, ("starlette", "uvicorn", "python_multipart"))):
        raise BadInput('a server needs the extra serve: pip install "srum_jax[serve]"')
    key = _key(options.api_key_env)
    from srum_jax.serving import running  # jax and what needs it: help comes at once

    return asyncio.run(running.serve(options, key))


def _key(variable: str | None) -> str:
    """The clients' key. Raises BadInput for a variable that holds none."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise BadInput(f"--api_key_env: the environment variable {variable} is not set")
    return key


def _count(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is no whole number from 1")
    return int(value)


def _port(value: str) -> int:
    if not value.isdecimal() or int(value) > 65535:
        raise argparse.ArgumentTypeError(f"{value!r} is no port from 0 to 65535")
    return int(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
