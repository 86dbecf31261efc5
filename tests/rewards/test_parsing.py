"""Written answers: a clear one is read, an unclear one is no number, and nothing is ever raised.

The fuzz test writes answers from pieces whose meaning it knows; `careful` reads the pieces, never
the text, so it shares no code with the reader under test.
"""

import math
import random
import time
from decimal import Decimal

import pytest

from srum_jax.rewards import parsing
from srum_jax.rewards.judge import OK, UNPARSED
from srum_jax.rewards.parsing import CONTRADICTORY, MISSING, OUT_OF_RANGE, UNFINISHED, WHOLE, parse


def one(text, number=1, **how):
    """(score, status) of a single region among two asked for."""
    return parse(text, (number, 99), **how).scores[number]


def scored(notation):
    return one(f"Region 1\nReason: a horse with 4 legs.\nScore: {notation}")


CLEAR = {
    "0.5": 0.5,
    ".5": 0.5,
    "+0.5": 0.5,
    "-0.5": -0.5,
    "\u22120.5": -0.5,
    "\u20130.5": -0.5,
    "\u2011.5": -0.5,
    "**0.5**": 0.5,
    "[0.5]": 0.5,
    "`-0.75`": -0.75,
    "0.5.": 0.5,
    "0.5,": 0.5,
    "1": 1.0,
    "-1.": -1.0,
    "1.000": 1.0,
    "0": 0.0,
    "-0.0": 0.0,
    "0,25": 0.25,
    "-0,5": -0.5,
    "1,0": 1.0,
    "\u00a00.5\t": 0.5,
    "0.5 Reason: it has 2 heads": 0.5,
    "-0.5 - **Reason:** fine": -0.5,
}
UNCLEAR = [
    *("", "N/A", "none", "nan", "inf", "-inf", "null", "high", "zero", "½", "0.5²", "²"),
    *("0.9/1.0", "9/10", "0.9 / 1.0", "1 of 1", "0.5-0.9", "0.5 to 0.9", "0.5 or 0.6"),
    *("1e-1", "1E0", "0x1", "5%", "0.5 %", "1,00,0", "1,000", "0.5.5", "0..5", "00.5", "--0.5"),
    *("- 0.5", "— 0.5", "—0.5", "~0.5", "<0.5", "(0.5)", "not 0.5", "0.5 (or less)", "0.5?"),
    *("٠.٥", "०.५", "０．５", "0.٥", "0 .5", "0.\u200b5", "~~0.5~~ 0.7", "[0.5](0.7)", "0.5*0.5"),
    *("0.5 Score: 0.7", "0.5 Score: 0.5", "0.5|0.7", "0.5;0.7", "_", "-", "+", ".", ","),
]
OUTSIDE = ["95", "-1.5", "1.01", "2", "10.", "9" * 5000, "1." + "0" * 300 + "1", "-1.0000001"]


@pytest.mark.parametrize("notation", CLEAR)
def test_clear_numbers(notation):
    assert scored(notation) == (CLEAR[notation], OK)
    assert math.copysign(1, scored(notation)[0]) == (-1 if CLEAR[notation] < 0 else 1)


@pytest.mark.parametrize("notation", UNCLEAR)
def test_unclear_numbers_are_no_numbers(notation):
    score, status = scored(notation)
    assert math.isnan(score) and status == UNPARSED


@pytest.mark.parametrize("notation", OUTSIDE)
def test_numbers_outside_the_scale(notation):
    score, status = scored(notation)
    assert math.isnan(score) and status == OUT_OF_RANGE


@pytest.mark.parametrize(
    "answer",
    [
        "Region 1: -0.5",
        "Region 1\nScore: -0.5",
        "region 1\nscore = -0.5",
        "**Region 1**\n\n**Score:** -0.5",
        "**Region 1:** Score: -0.5",
        "### Region ID: 1\n- Reason: bad legs, 3 of them\n- **Score**: **-0.5**",
        "1. Region #1 (the horse): [-0.5]",
        "> Region [1] – the horse\n> Score：-0.5",
        "| Region 1 | -0.5 |",
        "Region 1 (3, 3, 13, 13)\nReason: a score of 0.9 would be too much.\nScore: -.5",
        "Region 1 - Reason: blurred. Score: -0.5",
        "Region 1 Score: -0.5, Reason: blurred",
        "Region 1\r\nReason: unlike region 2 it is blurred\r\nScore: -0.5\r\n---\r\nRegion 2: 1",
        "Region 1: -0.5\nRegion 2: 0.5\nRegion 1: -0.50",
        "Here is what I see:\nRegion 1: -0.5",
        "<think>Region 1: 0.9, or 0.8?</think>\nRegion 1: -0.5",
        "<THINK>a<think>b</think>Score: 1</ think >Region 1: -0.5",
        "Region 1: 0.9\n</think>\nRegion 1: -0.5",
    ],
)
def test_layouts_that_are_clear(answer):
    assert one(answer) == (-0.5, OK)


@pytest.mark.parametrize(
    "answer,status",
    [
        ("", MISSING),
        ("Score: 0.5", MISSING),  # of which of the two?
        ("0.5", MISSING),
        ("Region 11: 0.5", MISSING),
        ("Region two: 0.5\nRegion I: 0.5", MISSING),
        ("Region -1: 0.5", MISSING),
        ("Region 1.0: 0.5", MISSING),
        ("Region 1-3: 0.5", MISSING),
        ("Region 1, 2: 0.5", MISSING),
        ("Regions 1 and 2: 0.5", MISSING),
        ("Region 1 is a horse: 0.5", MISSING),
        ("Region 1's score: 0.5", MISSING),
        ("Region ١: 0.5", MISSING),
        ("Rеgion 1: 0.5", MISSING),  # a Cyrillic letter
        ("Region 1", UNPARSED),
        ("Region 1 -0.5", MISSING),
        ("Region 1 - 0.5", MISSING),
        ("Region 1: same as region 2\nScore: 0.5", UNPARSED),
        ("Region 1: 0.9 horse\nScore: 0.5", UNPARSED),
        ("Region 1 (score 0.9)\nScore: 0.5", UNPARSED),
        ("Region 1\n0.5", UNPARSED),
        ("Region 1\n1.\nlooks good", UNPARSED),
        ("Region 1\nScore - 0.5", UNPARSED),
        ("Region 1\nScore -0.5", UNPARSED),
        ("Region 1\nScore is 0.5", UNPARSED),
        ("Region 1\nConfidence score: 0.5", UNPARSED),
        ("Region 1\nReason: not a good score: 0.5", UNPARSED),
        ("Region 1\nReason: blurred. Region 2: Score: 0.5", UNPARSED),
        ("Region 1\nReason: blurred\nRegion 2 is fine. Score: 0.5", UNPARSED),
        ("Region 1\nReason: blurred\nObject 2\nScore: 0.5", UNPARSED),
        ("Region 1\nReason: blurred\nSecond region\nScore: 0.5", UNPARSED),
        ("Region 1\nReason: blurred\n2. a horse\nScore: 0.5", UNPARSED),
        ("Region 1\nReason: blurred\nThe horse:\nScore: 0.5", UNPARSED),
        ("Region 1\nReason: blurred\n区域 2：\nScore: 0.5", UNPARSED),
        ("Region 1: 0.5\nRegion 1: 0.6", CONTRADICTORY),
        ("Region 1: 0.5\nScore: -0.5", CONTRADICTORY),
        ("Region 1: 0.5\nRegion 1: 95", CONTRADICTORY),
        ("Region 1: 0.5\nRegion 1: good", OK),  # a name
        ("Region 1: 0.5\nRegion 1\nScore: good", UNPARSED),
        ("<think>Region 1: 0.5", UNFINISHED),
        ("<think>a<think>b</think>Region 1: 0.5", UNFINISHED),
        ("Region 1: 0.5 <think>or 0.6", UNFINISHED),
        ("<think Region 1: 0.5", UNFINISHED),
        ("Region 1: 0.5 <think>or not</think>", UNPARSED),
        ("<think>a</think>Region 1: 0.5<think>b</think>Region 1: 0.5", UNPARSED),
        ("a</think>Region 1: 0.5</think>Region 1: 0.6", UNPARSED),
    ],
)
def test_layouts_that_are_not(answer, status):
    score, found = one(answer)
    assert found == status and math.isnan(score) == (status != OK)


def test_nothing_is_read_of_an_answer_cut_off():
    found = parse("Region 1: 0.5\nRegion 2: 0.9", (1, 2), finished=False).scores
    assert {status for _, status in found.values()} == {UNFINISHED}


def test_strangers_are_ignored_and_counted():
    result = parse("Region 1: 0.5\nRegion 7: 0.9\nRegion 7: 0.8\nRegion 0: 1", (1, 2))
    assert (
        result.scores[1] == (0.5, OK) and result.scores[2][1] == MISSING and result.strangers == 2
    )


@pytest.mark.parametrize(
    "answer,expected",
    [
        ("Reason: as asked.\nScore: 0.5", (0.5, OK)),
        ("Reason: 2 horses, as asked. **Score:** 0.5", (0.5, OK)),
        ("Here it is:\n\nScore: 0.5\nReason: as asked", (0.5, OK)),
        ("<think>0.9</think> **0.5**", (0.5, OK)),
        ("1", (1.0, OK)),
        ("95", OUT_OF_RANGE),
        ("Score: 0.5\nScore: 0.6", CONTRADICTORY),
        ("Reason: as asked.", UNPARSED),
        ("Horse 1:\nScore: 0.5", UNPARSED),
        ("", UNPARSED),
    ],
)
def test_the_whole(answer, expected):
    found = parse(answer, (WHOLE,)).scores[WHOLE]
    assert found == expected if isinstance(expected, tuple) else found[1] == expected


def test_a_single_region_need_not_be_named():
    assert parse("Reason: fine.\nScore: 0.5", (3,)).scores[3] == (0.5, OK)
    assert parse("[0.5]", (3,)).scores[3] == (0.5, OK)
    assert parse("3", (3,)).scores[3][1] == UNPARSED  # its name, or a score?
    assert parse("1", (1,)).scores[1][1] == UNPARSED
    assert parse("Region 4\nScore: 0.5", (3,)).scores[3][1] == MISSING
    assert parse("", (3,)).scores[3][1] == MISSING


HOSTILE = [
    *("<", "< ", "<think>", "</think>", ":", "_", "*", "|", "(", "Region 1 (", "Region 1: 0.5\n"),
    *("score: ", "score   ", "reason ", "a 1;", "9", "0.", "\n", "region", "-", "\ud800", "\0"),
]


def test_reading_takes_linear_time():
    begun = time.process_time()
    for piece in HOSTILE:
        for start in ("", "Region 1: ", "Score: ", "Reason: ", "Region 1\nScore: 0.5"):
            parse(start + piece * (20_000 // len(piece)) + "x", (1, 2))
    assert time.process_time() - begun < 5  # a quadratic pattern alone takes longer


# ------------------------------------------------------------------------------------ the fuzz test

ASKED = (1, 2, 3, 4)
HEADS = [
    "Region {}",
    "Region {}:",
    "**Region {}**",
    "**Region {}:**",
    "### Region ID: {}",
    "- region #{}",
    "Region {} (the horse)",
    "> Region [{}]",
    "REGION NUMBER {}",
    "Region {} – a horse",
]
INLINE_HEADS = ["Region {}: ", "**Region {}:** ", "- Region {} = ", "Region {} (a horse): "]
LABELS = ["Score: ", "**Score:** ", "score = ", "- Score: ", "Score:", "*Score* : ", "`Score`: "]
HARMLESS = [
    "Reason: it shows a horse with 4 legs.",
    "**Reason:** unlike region 2, it is sharp",
    "Reason: I would not score it 0.9",
    "Reason: 质量很好，५ von ५",
    "Reason: ½ of it is hidden 👀",
    "",
    "---",
    "***",
    "It is well drawn.",
    "The region shows what was asked for.",
]
FOREIGN = [
    "Object {}:",
    "Region {} and others",
    "{}. the horse",
    "Rеgion {}",
    "# Area {}",
    "[{}] it",
]
THOUGHTS = ["<think>{}</think>", "<think>a <think>{}</think> b</think>\n", "{}\n</think>"]
ENDLESS = ["<think>{}", "<think>{} <think> </think>", "<thinking >{}", "<think"]


def number_and_notation(rng):
    """(what a reader takes it for: Decimal or None, the text)."""
    kind = rng.random()
    if kind < 0.15:
        return None, rng.choice([n for n in UNCLEAR if "Score" not in n])
    if kind < 0.25:
        notation = rng.choice(OUTSIDE)
        return Decimal(notation), notation
    places = rng.randint(0, 3)
    value = Decimal(rng.randint(-(10**places), 10**places)).scaleb(-places)
    digits = f"{abs(value):f}"
    if digits.startswith("0.") and rng.random() < 0.2:
        digits = digits[1:]
    elif digits.startswith("0.") and rng.random() < 0.1:
        digits = digits.replace(".", ",")
    sign = rng.choice("-\u2212\u2013\u2010") if value < 0 else rng.choice(["", "", "+"])
    left, right = rng.choice([("", ""), ("", ""), ("**", "**"), ("[", "]"), ("`", "`"), ("", ".")])
    return value, f"{left}{sign}{digits}{right}"


def pieces(rng):
    """A made-up answer: [(kind, id, value, text)], kinds "name", "score", "lost", "prose"."""
    made = []
    for _ in range(rng.randint(0, 6)):
        number = rng.choice((1, 1, 2, 2, 3, 4, 7, 23))
        value, notation = number_and_notation(rng)
        layout = rng.random()
        if layout < 0.3:
            if value is None and not any(c.isnumeric() for c in notation):
                notation = "½"  # words there would be a name
            made.append(("name", number, None, rng.choice(INLINE_HEADS).format(number) + notation))
            made.append(("score", number, value, None))
        elif layout < 0.85:
            made.append(("name", number, None, rng.choice(HEADS).format(number)))
            made += [("prose", None, None, rng.choice(HARMLESS)) for _ in range(rng.randint(0, 2))]
            if rng.random() < 0.9:
                made.append(("score", number, value, rng.choice(LABELS) + notation))
        else:
            made.append(("prose", None, None, rng.choice(FOREIGN).format(number)))
            made.append(("lost", None, value, rng.choice(LABELS) + notation))
        made += [("prose", None, None, rng.choice(HARMLESS)) for _ in range(rng.randint(0, 1))]
    return made


def careful(made, number):
    """The statuses that are right for a region, and its score, from the pieces alone."""
    named = any(kind == "name" and who == number for kind, who, *_ in made)
    values = [value for kind, who, value, _ in made if kind == "score" and who == number]
    if not named:
        return {MISSING}, None
    if not values or None in values:
        return {UNPARSED}, None
    if any(value != values[0] for value in values):
        return {CONTRADICTORY}, None
    if not -1 <= values[0] <= 1:
        return {OUT_OF_RANGE}, None
    return {OK}, values[0]


def written(made):
    return "\n".join(text for *_, text in made if text is not None)


def test_fuzz_structured_answers():
    rng = random.Random(0)
    seen = dict.fromkeys(parsing.STATUSES, 0)
    for _ in range(10_000):
        made, thought = pieces(rng), rng.random()
        text = written(made)
        ended = True
        if thought < 0.2:
            text = rng.choice(THOUGHTS).format(written(pieces(rng))) + text
        elif thought < 0.25:
            text = rng.choice(ENDLESS).format(text)
        elif thought < 0.3:
            ended = False
        result = parse(text, ASKED, finished=ended)
        for number in ASKED:
            score, status = result.scores[number]
            right, value = ({UNFINISHED}, None) if 0.2 <= thought < 0.3 else careful(made, number)
            assert status in right, (number, status, right, text)
            assert score == float(value) if value is not None else math.isnan(score), text
            seen[status] += 1
        strangers = {who for kind, who, *_ in made if kind == "name"} - set(ASKED)
        assert result.strangers == (0 if 0.2 <= thought < 0.3 else len(strangers)), text
    assert min(seen.values()) > 500, seen


FRAGMENTS = [
    *("Region ", "region", "Region ID: ", "REGION", "1", "2", "3", "4", "01", "١", "１"),
    *("Score", "Score: ", "**Score:**", "score", "Reason: ", "Reason", ":", "=", "-", "–", "—"),
    *("0.5", ".5", "-0.5", "\u22120.5", "+1", "95", "1e-1", "0.9/1.0", "½", "٠.٥", "0,5", "nan"),
    *("9" * 400, "0." + "3" * 400, "**", "[", "]", "(", ")", "|", "`", "#", " ", "  ", "\n", "\n"),
    *("\n\n", "\r\n", "\t", ".", ",", "<think>", "</think>", "<", ">", "\u200b", "\u202e", "\x00"),
    *(
        "\ud800",
        "horse",
        "区域",
        "region 2 is",
        "to",
        "or",
        "%",
        "e",
        "\u2028",
        "---",
        "{",
        "}",
        '"',
    ),
]


CORE = ["Region 1", "Region 2", ": ", "\n", "Score: ", "0.5", "-0.5\n", "\nRegion 1\nScore: "]


def soup(rng):
    return "".join(
        rng.choice(CORE if rng.random() < 0.85 else FRAGMENTS) for _ in range(rng.randint(0, 40))
    )


def runs(text, wanted):
    """Maximal runs of characters in `wanted`."""
    cut = "".join(c if c in wanted else "\n" for c in text)
    return [run for run in cut.split("\n") if run]


def possible(text, number, score):
    """Whether a reader could find the score of a region at all: its name and the number occur."""
    low = text.lower()
    low = low[low.rfind("</think>") + 1 :]
    if low.rfind("<think>") >= 0:
        return False
    names = {
        run.lstrip("0") for part in low.split("region")[1:] for run in runs(part, "0123456789")
    }
    numbers = set()
    for run in runs(low, "0123456789.,+-\u2212\u2013\u2010\u2011"):
        plain = run.strip(",").rstrip(".").replace(",", ".")
        for dash in "\u2212\u2013\u2010\u2011":
            plain = plain.replace(dash, "-")
        try:
            numbers.add(float(plain))
        except ValueError:
            continue
    return str(number) in names and score in numbers


def test_fuzz_soup():
    rng = random.Random(1)
    read_at_all = 0
    for _ in range(10_000):
        text = soup(rng)
        result = parse(text, ASKED)
        for number, (score, status) in result.scores.items():
            assert status in parsing.STATUSES and math.isnan(score) == (status != OK)
            if status == OK:
                read_at_all += 1
                assert -1 <= score <= 1 and possible(text, number, score), (number, score, text)
        whole = parse(text, (WHOLE,)).scores[WHOLE]
        assert math.isnan(whole[0]) == (whole[1] != OK) and not abs(whole[0]) > 1
    assert read_at_all > 200


def test_fuzz_damaged_answers():
    rng = random.Random(2)
    for _ in range(3000):
        text = written(pieces(rng))
        for _ in range(rng.randint(1, 5)):
            at = rng.randint(0, len(text))
            text = text[:at] + rng.choice(["", "", *FRAGMENTS]) + text[at + rng.randint(0, 3) :]
        for number, (score, status) in parse(text, ASKED).scores.items():
            assert math.isnan(score) == (status != OK)
            assert status != OK or (-1 <= score <= 1 and possible(text, number, score)), text
        assert all(math.isnan(s) for s, _ in parse(text, ASKED, finished=False).scores.values())


@pytest.mark.parametrize(
    "answer, scores",
    [
        ('{"score": 0.5}', {WHOLE: 0.5}),
        ('```json\n{"reason": "one horse, {2} legs", "score": -0.25}\n```', {WHOLE: -0.25}),
        ('```json {"score": "0.5"} ```', {WHOLE: 0.5}),
        ('{\n "reason": "a",\n "score": 1\n}', {WHOLE: 1.0}),
        ('[{"region": 1, "score": 0.5}, {"Region": "2", "Score": -1}]', {1: 0.5, 2: -1.0}),
        ('<think>a</think>{"region": 1, "score": 0.5}', {1: 0.5}),
    ],
)
def test_json_is_read(answer, scores):
    found = parse(answer, list(scores)).scores
    assert found == {i: (score, OK) for i, score in scores.items()}


@pytest.mark.parametrize(
    "answer, status",
    [
        ('{"score": 0.5, "score": 0.7}', CONTRADICTORY),
        ('{"score": 5}', OUT_OF_RANGE),
        ('{"score": true}', UNPARSED),
        ('{"score": NaN}', UNPARSED),
        ('{"score": 1e-1}', UNPARSED),
        ('{"score": {"score": 0.5}}', UNPARSED),
        ('{"answer": {"score": 0.5}}', UNPARSED),
        ('{"region": "one", "score": 0.5}', UNPARSED),
        ("[0.5, 0.5]", UNPARSED),
        ("{}", UNPARSED),
        ("Reason: dark.\nScore: 0.1\nActually, I cannot judge this.", UNPARSED),
        ("I can't really assess it.\nScore: 0.1", UNPARSED),
        *((f"{tag} a horse\nScore: 0.5", UNFINISHED) for tag in ("[THINK]", "<reasoning>")),
        ("<thought>Score: 0.1", UNFINISHED),
    ],
)
def test_what_is_no_clear_score_is_none(answer, status):
    assert parse(answer, (WHOLE,)).scores[WHOLE][1] == status


def test_thinking_in_other_tags_is_no_part_of_the_answer():
    for opening, closing in (("[THINK]", "[/THINK]"), ("<reasoning>", "</reasoning>")):
        answer = f"{opening}Score: 0.1{closing}\nReason: I cannot see a tail.\nScore: 0.5"
        assert parse(answer, (WHOLE,)).scores[WHOLE] == (0.5, OK)
    for reason in ("I cannot judge its color, it is dark.", "unable to determine the rest."):
        assert one(f"Region 1\nReason: {reason}\nScore: -0.5") == (-0.5, OK)
