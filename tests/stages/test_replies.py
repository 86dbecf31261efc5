"""What judges say of replies is kept in shards of their own, whatever the judge is called."""

import dataclasses

import numpy as np
import pytest

from srum_jax.data import shards
from srum_jax.evals.suite import EditRequest, JudgeReply, JudgeRequest, Replies, Requests, Suite
from srum_jax.stages import replies


class Edits(Suite):
    """A suite that asks one question about each edit."""

    name = "edits"

    def judge_requests(self, requests, replies):
        return [JudgeRequest(r.id, "c", (), f"right, {r.id}?") for r in requests.edits]


@dataclasses.dataclass
class Judge:
    """Counts what it is asked; what it has no words for it refuses."""

    name: str
    asked: int = 0

    def ask(self, requests):
        self.asked += len(requests)
        return [JudgeReply(r.text) if r.id != "b" else JudgeReply("", "refused") for r in requests]


@pytest.mark.parametrize("name", ["self-judge", "Qwen/Qwen2.5-VL-7B: v1", "--"])
def test_a_judge_is_asked_once(tmp_path, name):
    picture = np.zeros((4, 4, 3), np.uint8)
    requests = Requests(edits=[EditRequest(id, "c", picture, "do", 0) for id in ("a", "b")])
    judge, said = Judge(name), Replies(edits=[picture] * 2)
    folder = replies.epath.Path(tmp_path)
    for _ in range(2):
        found = replies.judged(Edits(), requests, said, folder, {"m": judge}, title="model")
        assert list(found.judged) == [name]
        assert list(found.judged[name]) == [JudgeReply("right, a?"), JudgeReply("", "refused")]
    assert judge.asked == 2


class Server(Judge):
    """Does not reply to some requests."""

    def __init__(self, *lost):
        super().__init__("m")
        self.lost = lost

    def ask(self, requests):
        self.asked += len(requests)
        return [
            JudgeReply("", "timeout") if r.id in self.lost else JudgeReply("") for r in requests
        ]


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Puts six questions, two a shard, to a judge; the statuses of its replies."""
    monkeypatch.setattr(replies, "JUDGED_AT_ONCE", 2)
    picture = np.zeros((4, 4, 3), np.uint8)
    requests = Requests(edits=[EditRequest(id, "c", picture, "do", 0) for id in "abcdef"])
    folder = replies.epath.Path(tmp_path)

    def ask(judge, **how):
        said, asked = Replies(edits=[picture] * 6), {"external": judge}
        found = replies.judged(Edits(), requests, said, folder, asked, title="model", **how)
        return [one.status for one in found.judged["m"]]

    ask.folder = folder / "judged_m"
    return ask


def test_lost_replies_alone_are_asked_for_again(judged):
    assert judged(Server("b", "f")) == ["ok", "timeout", "ok", "ok", "ok", "timeout"]
    assert judged(final := Server(), final=True).count("timeout") == 2 and not final.asked
    assert judged(again := Server("b")).count("timeout") == 1 and again.asked == 2
    assert judged(again := Server()) == ["ok"] * 6 and again.asked == 1
    assert judged(again := Server()) == ["ok"] * 6 and not again.asked


def test_of_judged_replies_a_shard_that_a_disk_lost_is_made_again_it_alone(judged):
    judged(Server("b"))
    shards.shard_path(judged.folder, "judged_m", 2, 3).unlink()
    assert judged(again := Server()).count("ok") == 5 and again.asked == 2
    assert judged(again := Server()) == ["ok"] * 6 and again.asked == 1


def test_a_suite_says_which_judges_it_asks(tmp_path):
    class Some(Edits):
        def asks(self, judge):
            return judge == "external"

    picture = np.zeros((4, 4, 3), np.uint8)
    requests = Requests(edits=[EditRequest("a", "c", picture, "do", 0)])
    panel = {"self": Judge("own"), "external": Judge("other")}
    how = dict(panel=panel, title="model", folder=replies.epath.Path(tmp_path))
    found = replies.judged(Some(), requests, Replies(edits=[picture]), **how)
    assert list(found.judged) == ["other"] and panel["self"].asked == 0
