"""Runs one task of lmms-eval on replies that are there already. For the interpreter that has it.

    python lmms_eval_run.py FOLDER

FOLDER holds task.json, {"base": a task's file in lmms-eval, "split", "changes", "draws": a module
of it whose random letters are left out, or ""}, and rows.jsonl, a row of its data a line, with the
reply in "kept_reply" and an id in "kept_id". Writes result.json:
{"version", "results": {metric: number}, "asked": {id: what lmms-eval would have asked}}. Task,
scores and prompts are lmms-eval's own; the model is one that says what it said before. Nothing is
downloaded.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import pathlib
import sys
import types


def main(folder: pathlib.Path) -> None:
    """Everything; the environment is set before lmms-eval reads it."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"
    os.environ["HF_HOME"] = os.environ["LMMS_EVAL_HOME"] = str(folder / "cache")
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache" / "datasets")
    import lmms_eval
    from lmms_eval import evaluator
    from lmms_eval.api.model import lmms
    from lmms_eval.tasks import TaskManager

    class KeptReplies(lmms):
        """Says what the rows say; keeps what it was asked."""

        is_simple = True

        def __init__(self):
            super().__init__()
            self.asked = {}

        def generate_until(self, requests):
            said = []
            for text, _, _, place, task, split in (request.args for request in requests):
                row = self.task_dict[task][split][place]
                self.asked[row["kept_id"]] = text
                said.append(row["kept_reply"])
            return said

        def loglikelihood(self, requests):
            raise NotImplementedError("replies are words")

        def generate_until_multi_round(self, requests):
            raise NotImplementedError("replies are to one question each")

    task = json.loads((folder / "task.json").read_text())
    base = pathlib.Path(lmms_eval.__file__).parent / "tasks" / task["base"]
    (folder / "tasks").mkdir(exist_ok=True)
    config = {
        "include": str(base),
        "task": "kept_replies",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {task["split"]: str(folder / "rows.jsonl")}},
        "process_docs": None,
        **task["changes"],
    }
    (folder / "tasks" / "kept_replies.yaml").write_text(json.dumps(config))  # JSON is YAML
    if task["draws"]:
        importlib.import_module(task["draws"]).random = types.SimpleNamespace(choice=lambda _: "")
    model = KeptReplies()
    found = evaluator.simple_evaluate(
        model,
        tasks=["kept_replies"],
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        batch_size=1,
        bootstrap_iters=0,
        log_samples=False,
        cli_args=argparse.Namespace(
            output_path=str(folder / "output"), process_with_media=False, verbosity="ERROR"
        ),
    )
    results = {
        name.partition(",")[0]: value
        for name, value in found["results"]["kept_replies"].items()
        if isinstance(value, (int, float)) and "stderr" not in name
    }
    version = importlib.metadata.version("lmms_eval")
    told = {"version": version, "results": results, "asked": model.asked}
    (folder / "result.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve())
