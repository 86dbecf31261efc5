"""Verdicts of MMMU's own scorer, of lmms-eval and of BAGEL's for replies to MMMU."""

from srum_jax.evals.scorers import letters, mmmu


def _letter(wanted):
    return "" if wanted == "RANDOM_FALLBACK" else wanted


def _check_choices(cases):
    for case in cases:
        reply, options = case["reply"], letters.lettered(case["options"])
        handed_in = mmmu.bagel_choice(reply, options)
        assert mmmu.choice(reply, options) == _letter(case["mmmu_official"]), case
        assert mmmu.choice_lmms(reply, options) == _letter(case["lmms_eval"]), case
        assert handed_in == case["bagel_post_process"], case
        assert mmmu.choice(handed_in, options) == _letter(case["bagel_post_then_parse"]), case
        assert letters.robust(reply, list(options)) == case["lmms_extract_mcq"], case


def _check_open(cases):
    for case in cases:
        answers = mmmu.open_answers(case["reply"])
        assert answers == case["official_parsed"], case
        assert mmmu.open_right(answers, case["gold"]) is case["official_correct"], case
        by_lmms = mmmu.open_right_lmms(answers, case["gold"])
        assert by_lmms is case["lmms_eval_as_coded_any_order"], case


def check(case: dict) -> None:
    """Asserts every array of `mmmu.json`; "golden only" arrays where they are."""
    _check_choices(case["multiple_choice"])
    _check_open(case["open"])
    draws = case.get("random_fallback_seed42_ABCD", [])
    blank = [""] * len(draws)
    assert mmmu.drawn_at_random(blank, [letters.lettered("1234")] * len(draws)) == draws
