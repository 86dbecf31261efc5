"""Every benchmark, end to end: the shapes world's own files, the base in the package, a judge's
server that somebody else could have written, the official folder, and scores from replies alone.
"""

import json
import re

import fsspec
import judge_server
import pytest

from srum_jax import use
from srum_jax.core import registry

pytestmark = pytest.mark.slow

BENCHMARKS = [
    name for name in registry.SUITES if hasattr(registry.load(registry.SUITES, name), "ABOUT")
]
LIMIT = {"mmbench": 4, "wise": 6, "wise_legacy": 6}
WORDS = {  # of the judge of a suite; the suite's name is the judge's model
    "wise": "Score: 1",
    "wise_legacy": "Consistency: 2\nRealism: 2\nAesthetic Quality: 1",
    "gedit": '{"score": [8, 7], "reasoning": "as asked"}',
    "imgedit": "Brief reasoning: as asked.\nPrompt Compliance: 4\nVisual Naturalness: 4\n"
    "Physical and Detail Integrity: 4",
    "srum_compbench": '{"score": 80, "explanation": "as asked"}',
}


def behave(handler, number):
    """An OpenAI-compatible server: words, and the first token's probabilities where asked."""
    body = handler.server.asked[number][2]
    asked = body["messages"][-1]["content"][-1]["text"]
    marks = [1] * len(re.findall(r"'q\d+'", asked))
    words = WORDS.get(body["model"], json.dumps({"reason": "as asked", "score": marks}))
    choice = {"message": {"content": words}, "finish_reason": "stop"}
    if body.get("logprobs"):
        choice["message"]["content"] = "Yes"
        token = {"token": "Yes", "logprob": -0.1, "bytes": list(b"Yes"), "top_logprobs": []}
        token["top_logprobs"] = [{k: token[k] for k in ("token", "logprob", "bytes")}]
        choice["logprobs"] = {"content": [token]}
    handler.give({"choices": [choice], "model": "stand-in"})


@pytest.fixture(scope="module")
def server():
    made = judge_server.Server(behave)
    yield made
    made.close()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_in(folder):
    """{path: content}, of a disk or a bucket."""
    storage, root = fsspec.core.url_to_fs(str(folder))
    return {path.removeprefix(f"{root}/"): storage.cat_file(path) for path in storage.find(root)}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs_on_the_shapes_world(name, server, tmp_path, capsys, monkeypatch, bucket):
    """In a bucket, from the same replies, every file is that of a disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    module = registry.load(registry.SUITES, name)
    asked = ["--suite", name, "--data", "shapes", "--limit", str(LIMIT.get(name, 6))]
    if module.ABOUT.judge:
        asked += ["--judge", "external", "--judge_url", server.url, "--judge_model", name]
    out = tmp_path / "out"
    code = use.main(["use", "evaluate", *asked, "-o", str(out)])
    said, err = capsys.readouterr()
    assert code == 0, err
    scores = json.loads((out / "scores.json").read_text())
    assert scores["suite"] == name and scores["data"]["n"] >= 1, said
    found = scores["models"]["model"]
    assert found["n"] >= 1 and found["failed"] < found["n"], scores
    metric = scores["metric"]
    assert 0 <= found["strict"][metric] <= scores["best"]
    low, high = found["ci95"][metric]
    assert low <= high
    replies = lines(out / "replies.jsonl")
    assert replies and all(r["asked"] for r in replies)
    told = lines(out / "generations.jsonl")
    assert told and all((out / row["file"]).is_file() for row in told if "file" in row)
    assert any(p.is_file() for p in (out / "official" / name).rglob("*"))
    if module.ABOUT.judge:
        assert scores["judge"]["name"] == name
    before = (out / "scores.json").read_text()
    assert use.main(["use", "evaluate", "--rescore", str(out)]) == 0
    assert (out / "scores.json").read_text() == before
    capsys.readouterr()
    assert use.main(["use", "evaluate", *asked, "-o", str(out)]) == 0  # nothing is asked again
    requests = len(server.http.asked)
    assert use.main(["use", "evaluate", *asked, "-o", str(out)]) == 0
    assert len(server.http.asked) == requests
    assert (out / "scores.json").read_text() == before
    written = files_in(out)
    for path, content in written.items():
        if path.startswith("kept/") or path == "settings.json":
            (bucket / path).write_bytes(content)
    code = use.main(["use", "evaluate", *asked, "-o", str(bucket)])
    assert code == 0, capsys.readouterr().err
    assert len(server.http.asked) == requests
    found = files_in(bucket)
    assert found.keys() == written.keys()
    pair = str(out).encode(), str(bucket).encode()  # GenEval2's file names its pictures' places
    moved = {path: content.replace(*pair) for path, content in written.items()}
    assert [path for path, content in moved.items() if content != found[path]] == []
