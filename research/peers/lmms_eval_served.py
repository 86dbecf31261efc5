"""lmms-eval asks a server of ours: its task POPE, its model class `openai`, its scores.

    srum serve &                                                   # http://127.0.0.1:8000
    srum evaluate --suite pope --data shapes -o runs/pope          # to compare with
    .venv-peers/bin/python research/peers/lmms_eval_served.py --model shapes --data POPE_FOLDER \\
        --replies runs/pope/replies.jsonl -o runs/pope-served

For the interpreter that has lmms-eval. Writes OUT/result.json: lmms-eval's numbers, and how many
questions were asked and answered in the very same words as in --replies. Nothing is downloaded.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import time
from typing import Any

from served import compared, options, rows, written


def evaluated(o: argparse.Namespace, out: pathlib.Path) -> dict[str, Any]:
    """What lmms-eval's evaluator gives."""
    import datasets
    import lmms_eval
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    table = datasets.Dataset.from_list(rows(o.data, o.limit))
    table.cast_column("image", datasets.Image()).to_parquet(str(out / "rows.parquet"))
    base = pathlib.Path(lmms_eval.__file__).parent / "tasks" / "pope" / "pope.yaml"
    config = {
        "include": str(base),
        "task": "pope_served",
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(out / "rows.parquet")}},
    }
    (out / "tasks" / "pope_served.yaml").write_text(json.dumps(config))  # JSON is YAML
    how = f"model_version={o.model},base_url={o.url},num_concurrent=16,timeout=120"
    return evaluator.simple_evaluate(
        model="openai",
        model_args=how,
        tasks=["pope_served"],
        task_manager=TaskManager(include_path=str(out / "tasks"), include_defaults=False),
        batch_size=1,
        bootstrap_iters=0,
        cli_args=argparse.Namespace(
            output_path=str(out / "output"), process_with_media=False, verbosity="ERROR"
        ),
    )


def main() -> None:
    """Runs the command line; the environment is set before lmms-eval reads it."""
    o = options(__doc__.partition("\n")[0]).parse_args()
    out = o.out.resolve()
    (out / "tasks").mkdir(parents=True, exist_ok=True)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"
    os.environ["HF_HOME"] = os.environ["LMMS_EVAL_HOME"] = str(out / "cache")
    os.environ["HF_DATASETS_CACHE"] = str(out / "cache" / "datasets")
    os.environ.setdefault("OPENAI_API_KEY", "none")
    began = time.monotonic()
    found = evaluated(o, out)
    samples = found["samples"]["pope_served"]
    numbers = {
        name.partition(",")[0]: value
        for name, value in found["results"]["pope_served"].items()
        if isinstance(value, (int, float)) and "stderr" not in name
    }
    # What a sample was asked with begins with the words.
    said = {s["doc"]["question_id"]: (s["arguments"][0], s["filtered_resps"][0]) for s in samples}
    told = {"version": f"lmms-eval {importlib.metadata.version('lmms_eval')}", "results": numbers}
    told["seconds"] = round(time.monotonic() - began, 1)
    written(out, told | compared(said, o.replies))


if __name__ == "__main__":
    main()
