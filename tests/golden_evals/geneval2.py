"""GenEval2's scores from first-token probabilities, as the official code has them."""

import pytest

from srum_jax.evals.scorers import geneval2

TOLERANCE = dict(abs=1e-7, rel=0)


def _p(answer, tokens):
    """{accepted reply: probability of its first token} of {token: probability}, which has those
    of all accepted replies; the tokenizer behind it has one token for "other" and " other"."""
    first = {reply: geneval2.first_token(reply) for reply in geneval2.accepted(answer)}
    first = {reply: "other" if token == " other" else token for reply, token in first.items()}
    return {reply: tokens[token] for reply, token in first.items()}


def _prompt(item):
    answers = [answer for _, answer in item["vqa_list"]]
    asked = list(zip(answers, item["first_token_probs"], strict=True))
    return geneval2.Prompt(
        item["atom_count"],
        tuple(geneval2.soft_score(answer, _p(answer, tokens)) for answer, tokens in asked),
        tuple(geneval2.tifa(answer, max(tokens, key=tokens.get)) for answer, tokens in asked),
        tuple(item["skills"]),
    )


def check(case):
    prompts = [_prompt(item) for item in case["items"]]
    for item, ours in zip(case["items"], prompts, strict=True):
        assert list(ours.soft) == pytest.approx(item["soft_scores"], **TOLERANCE), item["prompt"]
        assert list(ours.hard) == item["tifa_scores"], item["prompt"]
        assert geneval2.arithmetic(ours.soft) == pytest.approx(item["soft_tifa_am"], **TOLERANCE)
        assert geneval2.geometric(ours.soft) == pytest.approx(item["soft_tifa_gm"], **TOLERANCE)
    assert geneval2.soft_tifa_am(prompts) == pytest.approx(case["total_soft_tifa_am"], **TOLERANCE)
    assert geneval2.soft_tifa_gm(prompts) == pytest.approx(case["total_soft_tifa_gm"], **TOLERANCE)
    assert geneval2.total_tifa(prompts) == pytest.approx(case["total_tifa"], **TOLERANCE)
    assert geneval2.per_skill(prompts) == pytest.approx(case["per_skill_am"], **TOLERANCE)
    assert list(geneval2.per_skill(prompts)) == list(case["per_skill_am"])
    by_atoms = geneval2.per_atomicity(prompts)
    assert {str(atoms) for atoms in by_atoms} == set(case["per_atomicity_gm"])
    for atoms, official in case["per_atomicity_gm"].items():
        assert by_atoms[int(atoms)] == pytest.approx(official, **TOLERANCE)
    assert geneval2.vqascore(case["vqascore_last_probs"]) == pytest.approx(
        case["vqascore"], **TOLERANCE
    )
    for edge in case["gmean_edge"]:
        assert geneval2.geometric(edge["scores"]) == pytest.approx(edge["gm"], **TOLERANCE)
    assert {word: geneval2.digit(word) for word in case["numeric_string"]} == case["numeric_string"]
