"""Where a judge's question comes from: our words, a file of the user's, an official script."""

import json

import hypothesis_cases
import pytest
from etils import epath
from hypothesis import strategies

from srum_jax.core.errors import BadInput
from srum_jax.evals import judge_texts
from srum_jax.evals.judge_texts import OFFICIAL, OWN, JudgeText, Script

MINE = JudgeText("Is {prompt} there? {explanation}", "Be kind.")
SCRIPT = Script("judge.py", {"data['Prompt']": "prompt", "data['Explanation']": "explanation"})
SOURCE = '''
import a_package_that_is_not_there
raise SystemExit

def messages(data):
    return [
        {"role": "system", "content": [{"type": "text", "text": "You are a careful judge."}]},
        {"role": "user", "content": f"""Look: "{data['Prompt']}"
{{curly}} {data['Explanation']}."""},
        f"{data['Prompt']} alone", f"{data['Prompt']} {data['Explanation']} {other}",
    ]
'''


def test_filling_leaves_alone_what_the_values_hold():
    filled = MINE.filled(prompt="{explanation}", explanation="{prompt} {x}")
    assert filled == "Is {explanation} there? {prompt} {x}"
    assert JudgeText('{"score": 1} {prompt}').filled(prompt="a") == '{"score": 1} a'


def test_without_a_file_it_is_our_wording(tmp_path):
    assert judge_texts.find(epath.Path(tmp_path), "wise", MINE, SCRIPT) is MINE
    assert MINE.wording == OWN


def test_the_official_script_is_read_and_not_run(tmp_path):
    (tmp_path / "judge.py").write_text(SOURCE)
    (tmp_path / "data").mkdir()
    for place in (tmp_path, tmp_path / "data"):
        found = judge_texts.find(epath.Path(place), "wise", MINE, SCRIPT)
        assert found.system == "You are a careful judge." and found.wording == OFFICIAL
        assert found.filled(prompt="a cat", explanation="tame") == ('Look: "a cat"\n{curly} tame.')


@pytest.mark.parametrize("source", ["", "def f(:", 'f"{x}"', "\0", "(" * 5000])
def test_a_script_without_the_text_changes_nothing(source):
    assert judge_texts.of_script(source, SCRIPT) is None


@hypothesis_cases.counts(quick=200)
def test_any_source_is_read_or_left(cases):
    pieces = ['f"', "{data['Prompt']}", "{data['Explanation']}", '"', "{", "}", "role", "\n", ":"]

    def check(some):
        judge_texts.of_script("".join(some), SCRIPT)

    some = strategies.lists(strategies.sampled_from(pieces), max_size=12)
    hypothesis_cases.run(check, cases, some=some)


def test_a_users_file_comes_first(tmp_path):
    (tmp_path / "judge.py").write_text(SOURCE)
    given = {"wise": {"text": "{explanation}{prompt}", "system": "S"}, "other": "{prompt}"}
    (tmp_path / "judge_prompts.json").write_text(json.dumps(given))
    found = judge_texts.find(epath.Path(tmp_path), "wise", MINE, SCRIPT)
    assert found == JudgeText("{explanation}{prompt}", "S", OFFICIAL)
    only = judge_texts.find(epath.Path(tmp_path), "other", JudgeText("{prompt}!", "T"))
    assert only == JudgeText("{prompt}", "T", OFFICIAL)


@pytest.mark.parametrize("given", ["only {prompt}", 5, {"system": "x"}, {"text": "a", "system": 1}])
def test_a_users_text_without_the_places_is_refused(tmp_path, given):
    (tmp_path / "judge_prompts.json").write_text(json.dumps({"wise": given}))
    with pytest.raises(BadInput, match="judge_prompts.json, wise: "):
        judge_texts.find(epath.Path(tmp_path), "wise", MINE)
