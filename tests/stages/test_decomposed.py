"""Prompts decomposed: kept in parts, shared by hosts, at a cost that grows as the prompts do."""

import types

import jax
import pytest
import tiny

from srum_jax.core import files
from srum_jax.rewards import decompose
from srum_jax.rewards.question_templates import Decomposition
from srum_jax.stages import judges

PROMPTS = [f"prompt {i}" for i in range(5 * judges.AT_ONCE + 3)]
LOADED = types.SimpleNamespace(tokenizer=types.SimpleNamespace(word_level=False))


@pytest.fixture
def asked(monkeypatch):
    """The prompts that the model was asked about, call by call."""
    calls = []

    def answer(prompts, text, *, params=None):
        calls.append(list(prompts))
        return {
            p: Decomposition(caption=p, objects=(), relation=None, open=True, source="model")
            for p in prompts
        }

    monkeypatch.setattr(judges, "model_text", lambda *args, **more: None)
    monkeypatch.setattr(decompose, "decompose_prompts", answer)
    return calls


def decomposed(path, prompts=PROMPTS):
    cfg = tiny.load_config("unused")
    return judges.decomposed(prompts, LOADED, cfg, tiny.mesh(cfg), path)


def test_killed_it_goes_on_and_leaves_one_file(tmp_path, asked, monkeypatch):
    path, answer = tmp_path / "scenes.json", decompose.decompose_prompts

    def killed(prompts, text, *, params=None):
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answer(prompts, text)

    monkeypatch.setattr(decompose, "decompose_prompts", killed)
    with pytest.raises(KeyboardInterrupt):
        decomposed(path)
    assert not path.exists()
    (tmp_path / "scenes-parts" / "1.json").write_text("{}")  # of other prompts: made again
    monkeypatch.setattr(decompose, "decompose_prompts", answer)
    found = decomposed(path, PROMPTS + PROMPTS[:9])
    assert list(found) == PROMPTS and all(found[p].caption == p for p in PROMPTS)
    assert [calls[0] for calls in asked] == [PROMPTS[64 * i] for i in (0, 1, 2, 1, 3, 4, 5)]
    assert [p.name for p in tmp_path.iterdir()] == ["scenes.json"]
    asked.clear()
    assert decomposed(path) == found and not asked
    assert decomposed(path, [*PROMPTS, "one more"]).keys() == {*PROMPTS, "one more"}
    assert asked == [["one more"]]


def test_what_is_damaged_is_asked_again(tmp_path, asked):
    path = tmp_path / "scenes.json"
    found = decomposed(path)
    whole = path.read_text()
    for left in ("", whole[:-9], "[]", '{"prompt 0": {"caption": 3}}'):
        path.write_text(left)
        (tmp_path / "scenes-parts").mkdir()
        (tmp_path / "scenes-parts" / "0.json").write_text(left)
        asked.clear()
        assert decomposed(path) == found and sum(asked, []) == PROMPTS
        assert path.read_text() == whole


def test_what_is_written_grows_as_the_prompts_do(tmp_path, asked, monkeypatch):
    written = []
    write = files.write_json
    monkeypatch.setattr(
        judges, "write_json", lambda path, value: written.append(len(value)) or write(path, value)
    )
    decomposed(tmp_path / "scenes.json")
    assert sum(written) == 2 * len(PROMPTS)


def test_hosts_that_work_apart_share_the_prompts(tmp_path, asked, monkeypatch):
    """Two hosts in turn: each is asked about its own parts, both have all in the end."""
    path, found = tmp_path / "scenes.json", {}
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    class There(Exception):
        """The host waits for the other one."""

    def waits(label):
        raise There

    for host in (1, 0):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        mesh = types.SimpleNamespace(
            devices=types.SimpleNamespace(flat=[types.SimpleNamespace(process_index=host)])
        )
        monkeypatch.setattr(judges, "barrier", waits if host else lambda label: None)
        try:
            found = judges.decomposed(PROMPTS, LOADED, tiny.load_config("unused"), mesh, path)
        except There:
            assert [calls[0] for calls in asked] == [PROMPTS[64 * i] for i in (1, 3, 5)]
            asked.clear()
    assert [calls[0] for calls in asked] == [PROMPTS[64 * i] for i in (0, 2, 4)]
    assert list(found) == PROMPTS
