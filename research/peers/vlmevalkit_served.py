"""VLMEvalKit's request code asks a server of ours POPE's questions: its class `OpenAIWrapper`.

    srum serve &                                                   # http://127.0.0.1:8000
    git clone https://github.com/open-compass/VLMEvalKit theirs/VLMEvalKit
    .venv-peers/bin/python research/peers/vlmevalkit_served.py --checkout theirs/VLMEvalKit \\
        --model shapes --data POPE_FOLDER --replies runs/pope/replies.jsonl -o runs/pope-vlmevalkit

The class is run as it is, with VLMEvalKit's own encoding of pictures (JPEG) and its retries, but
without the package's start, which imports every model that it knows. Writes OUT/result.json: how
many questions were answered in the very same words as in --replies.
"""

import concurrent.futures
import importlib
import pathlib
import sys
import time
import types

from served import compared, options, rows, written

SUFFIX = "\nAnswer the question using a single word or phrase."


def wrapper(checkout: pathlib.Path) -> type:
    """`OpenAIWrapper` of a checkout; its packages are there, their `__init__` is not run."""
    for name in ("vlmeval", "vlmeval.api"):
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    return importlib.import_module("vlmeval.api.gpt").OpenAIWrapper


def main() -> None:
    """Runs the command line."""
    made = options(__doc__.partition("\n")[0])
    made.add_argument("--checkout", type=pathlib.Path, required=True)
    made.add_argument("--key", default="sk-local", help="the server's, if it has one")
    o = made.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    how = dict(model=o.model, key=o.key, api_base=f"{o.url}/chat/completions", img_size=-1)
    asks = wrapper(o.checkout.resolve())(retry=3, timeout=120, **how)

    def asked(row: dict) -> tuple[str, str]:
        text = row["question"] + SUFFIX
        picture = {"type": "image", "value": row["image"]}
        return text, asks.generate([picture, {"type": "text", "value": text}])

    began, questions = time.monotonic(), rows(o.data, o.limit)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        pairs = list(pool.map(asked, questions))
    said = {row["question_id"]: pair for row, pair in zip(questions, pairs, strict=True)}
    told = {"version": "VLMEvalKit", "seconds": round(time.monotonic() - began, 1)}
    written(o.out, told | compared(said, o.replies))


if __name__ == "__main__":
    main()
