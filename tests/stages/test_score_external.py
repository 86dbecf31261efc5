"""The stage `score` by an external judge that at first cannot be asked: nothing of it is final."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
from judge_server import Server, reply

from srum_jax import config
from srum_jax.configs import base
from srum_jax.core.errors import BadInput
from srum_jax.rewards import external, written
from srum_jax.rewards.boxes.regions import GridProposer
from srum_jax.rewards.external import Endpoint, ExternalText
from srum_jax.rewards.judge import OK, JudgeSettings
from srum_jax.rewards.written import WrittenJudge
from srum_jax.stages import judges, score

SCORE = config.load(base.get_config()).score
CFG = dataclasses.replace(SCORE, proposers=("grid",), shard_size=4, compare=0)


def panel(server):
    counts, reasons = collections.Counter(), {}
    source = ExternalText.connect(
        Endpoint(server.url, "m", attempts=1, concurrency=1), counts=counts, reasons=reasons
    )
    judge = WrittenJudge(source, JudgeSettings(view="coordinates", attempts=1), counts)
    return judges.JudgePanel(judge, (GridProposer(2),), None, counts, reasons)


def candidates(count=12):
    return [
        {
            "id": f"{n}-0",
            "prompt_id": n,
            "k": 0,
            "prompt": "a horse",
            "image": np.tile(np.uint8([[20] * 16 + [200] * 16])[..., None], (32, 1, 3)),
            "category": "one",
            "latent": np.zeros((4, 4, 32), np.float32),
        }
        for n in range(count)
    ]


def words(handler, number):
    return handler.server.asked[number][2]["messages"][0]["content"][1]["text"]


def right(handler):
    regions = "Region 1: 0.5\nRegion 2: 0.5"  # of the grid's cells, those that are not empty
    handler.give(reply(regions if "Region 1:" in words(handler, -1) else "Score: 0.5"))


REFUSALS = {
    "HTTP 401: no such key": lambda h: h.give({"error": {"message": "no such key"}}, 401),
    "HTTP 402: no credit": lambda h: h.give({"error": "no credit"}, 402),
    "HTTP 503": lambda h: h.give(b"", 503),
    "unreachable": lambda h: None,
}


@pytest.mark.parametrize("left", [b"", b'{"with": "wor', b"[]"])
def test_a_damaged_comparison_is_asked_for_again(tmp_path, left):
    server = Server(lambda handler, number: right(handler))
    own = panel(server)
    both = dataclasses.replace(own, other=("words", own.main))
    cfg = dataclasses.replace(CFG, compare=3)
    found = score.compare(candidates(), tmp_path, cfg, both)
    assert [one["status"] for one in found["candidates"]] == [OK] * 3
    asked = len(server.http.asked)
    assert score.compare(candidates(), tmp_path, cfg, both) == found
    assert len(server.http.asked) == asked
    (tmp_path / score.COMPARISON).write_bytes(left)
    assert score.compare(candidates(), tmp_path, cfg, both) == found
    assert len(server.http.asked) == 2 * asked
    server.close()


def test_one_host_alone_asks_for_the_comparison(tmp_path, monkeypatch):
    server = Server(lambda handler, number: right(handler))
    both = panel(server)
    both = dataclasses.replace(both, other=("words", both.main))
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert score.compare(candidates(), tmp_path, dataclasses.replace(CFG, compare=3), both) is None
    assert not server.http.asked and not list(tmp_path.iterdir())
    server.close()


@pytest.mark.parametrize("reason", REFUSALS)
def test_the_same_command_asks_again_what_failed(tmp_path, reason):
    """The first shard is judged, then the service fails, then it is put right."""

    def behave(handler, number):
        (right if number < 12 or server.mended else REFUSALS[reason])(handler)

    server = Server(behave)
    server.mended = False
    with pytest.raises(BadInput, match=reason) as error:
        score.score(candidates(), tmp_path, CFG, panel(server))
    assert error.value.exit_code == 2 and "give the same command" in str(error.value)
    assert len(str(error.value)) < 300
    before, server.mended = len(server.http.asked), True
    found = panel(server)
    outcome = score.score(candidates(), tmp_path, CFG, found)
    assert len(server.http.asked) - before == 24  # the first shard was kept
    assert outcome.counts[f"images {OK}"] == 12 and outcome.counts[f"regions {OK}"] == 24
    assert found.reasons == {}
    server.close()


def test_a_single_question_without_an_answer_is_a_status(tmp_path):
    """No picture that a server chokes on stops a run for ever."""

    def behave(handler, number):
        chokes = "a cow" in words(handler, number)
        handler.give(b"", 500) if chokes else right(handler)

    server, drawn = Server(behave), candidates(24)
    drawn[5]["prompt"] = "a cow"
    found = panel(server)
    outcome = score.score(drawn, tmp_path, dataclasses.replace(CFG, shard_size=24), found)
    broken = {k: n for k, n in outcome.counts.items() if external.SERVER_ERROR in k}
    assert broken == {f"images {external.SERVER_ERROR}": 1, f"regions {external.SERVER_ERROR}": 2}
    assert found.counts[written.UNANSWERED] == 3
    assert len(server.http.asked) == 75  # it alone was asked about again
    server.close()


def test_an_isolated_time_out_is_asked_again_at_the_end_of_its_shard(tmp_path):
    server = Server(lambda h, number: h.give(b"", 408) if number == 3 else right(h))
    cfg = dataclasses.replace(CFG, shard_size=12)
    found = panel(server)
    outcome = score.score(candidates(), tmp_path, cfg, found)
    assert outcome.counts[f"images {OK}"] == 12 and outcome.counts[f"regions {OK}"] == 24
    bodies = [body for *_, body in server.http.asked]
    assert len(bodies) == 37 and bodies[-1] == bodies[3]
    assert found.counts[written.UNANSWERED] == 0
    server.close()
