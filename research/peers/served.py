"""POPE's questions for programs that ask a server of ours, and what they were answered beside ours.

For interpreters that have those programs: nothing of this repository is imported.
"""

import argparse
import json
import os
import pathlib
from typing import Any

KINDS = ("random", "popular", "adversarial")


def options(description: str) -> argparse.ArgumentParser:
    """The command line that all of them share."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--url", default="http://127.0.0.1:8000/v1")
    made.add_argument("--model", required=True, help="as /v1/models names it")
    made.add_argument("--data", type=pathlib.Path, required=True, help="POPE's official folder")
    made.add_argument("--replies", type=pathlib.Path, help="of `srum evaluate`, to compare with")
    made.add_argument("--limit", type=int, default=60, help="questions of each of the three files")
    made.add_argument("-o", "--out", type=pathlib.Path, required=True)
    return made


def rows(data: pathlib.Path, most: int) -> list[dict[str, Any]]:
    """The first questions of each official file: id, question, answer, path of the picture."""
    found = []
    for kind in KINDS:
        lines = (data / f"coco_pope_{kind}.json").read_text().splitlines()
        for said in map(json.loads, lines[:most]):
            row = {"question": said["text"], "answer": said["label"], "category": kind}
            row["question_id"] = f"{kind}-{said['question_id']}"
            found.append(row | {"image": str(data / "val2014" / said["image"])})
    return found


def compared(said: dict[str, tuple[str, str]], path: pathlib.Path | None) -> dict[str, Any]:
    """Of {id: (asked, reply)} how many are as in a file of replies, and the first that is not."""
    if path is None:
        return {"questions": len(said)}
    ours = {r["id"]: r for r in map(json.loads, path.read_text().splitlines())}
    other = [
        {"id": key, "theirs": reply, "ours": ours[key]["reply"]}
        for key, (_, reply) in said.items()
        if reply.strip() != ours[key]["reply"].strip()
    ]
    asked = sum(asked == ours[key]["asked"] for key, (asked, _) in said.items())
    found = {"questions": len(said), "same words asked": asked}
    return found | {"same replies": len(said) - len(other), "other": other[:1]}


def written(out: pathlib.Path, told: dict[str, Any]) -> None:
    """Writes OUT/result.json, and says it."""
    text = json.dumps(told, indent=1)
    (out / "result.json").write_text(text + os.linesep)
    print(text)
