"""Short answers compared with those of ten people: VQAv2, OK-VQA, TextVQA.

Owns how answers are normalised and how many people have to agree, in the dialects of three programs
that print different numbers for the same replies: "official" (VQA `vqaEval.py`), "lmms-eval" and
"vlmevalkit"; and the EvalAI form that TextVQA and OK-VQA are scored by.
"""

import dataclasses
import functools
import re
from collections.abc import Hashable, Sequence

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = {"a", "an", "the"}
_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_DIGITS = {"none": "0"} | {word: str(i) for i, word in enumerate(_NUMBERS)}
# Written rightly. A form is recognised where one of its apostrophes is missing.
_FORMS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
    mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't
    what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd
    you'd've you'll you're you've
""".split()
_CONTRACTIONS = {
    form[:i] + form[i + 1 :]: form
    for form in _FORMS
    for i, letter in enumerate(form)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the one entry of the official table that takes it away
_MOST_PERIODS = 32  # the original passes a flag where the count of replacements stands


@dataclasses.dataclass(frozen=True)
class Normaliser:
    """A dialect of normalising answers.

    comma: its occurrence anywhere has every mark deleted rather than replaced by a space · period:
    what is deleted of full stops.
    """

    comma: re.Pattern[str]
    period: re.Pattern[str]

    def punctuation(self, text: str) -> str:
        """`text` without marks: `processPunctuation` of the original."""
        joined = self.comma.search(text) is not None
        out = text
        for mark in _MARKS:
            beside_space = f"{mark} " in text or f" {mark}" in text
            out = out.replace(mark, "" if joined or beside_space else " ")
        return self.period.sub("", out, count=_MOST_PERIODS)

    def normal(self, text: str) -> str:
        """`text` as it is compared: cleaned, without marks and articles, lower-case, numbers up to
        ten as digits, apostrophes restored."""
        return _normal(self, text)


@functools.lru_cache(maxsize=2**16)  # people answer much alike
def _normal(by: Normaliser, text: str) -> str:
    words = (_DIGITS.get(w, w) for w in by.punctuation(cleaned(text)).lower().split())
    return " ".join(_CONTRACTIONS.get(w, w) for w in words if w not in _ARTICLES)


# The look-behind of the official pattern is malformed: a digit before a full stop keeps nothing.
OFFICIAL = Normaliser(re.compile(r"\d,\d"), re.compile(r"\.(?!\d)"))
LMMS_EVAL = Normaliser(re.compile(r"\d,+\d"), re.compile(r"\.(?!\d)"))
VLMEVALKIT = Normaliser(re.compile(r"\d,\d"), re.compile(r"(?<!\d)\.(?!\d)"))


def cleaned(text: str) -> str:
    """`text` with line ends and tabs as spaces, none at its ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def eval_ai_normal(text: str) -> str:
    """`text` as EvalAI's processor compares it: lower-case, without `,` and `?`, `'s` a word of its
    own, then as lmms-eval normalises."""
    lower = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return LMMS_EVAL.normal(lower.strip())


def agreement(
    prediction: str, answers: Sequence[str], records: Sequence[Hashable] | None = None
) -> float:
    """How far people agree with a prediction, in [0, 1]: for each answer, a third a person among
    the others who said just that, at most 1; the mean of it.

    Args:
      prediction, answers: compared as they are.
      records: what else stands beside each answer (its number, its confidence). The others of an
        answer are those whose answer or record differs, as the original compares whole records:
        equal ones without a number drop out together. None: the others by position.

    Raises:
      ValueError: no answers, or not a record for each.
    """
    if not answers:
        raise ValueError("agreement: no answers to compare with")
    keys = range(len(answers)) if records is None else records
    pairs = list(zip(answers, keys, strict=True))
    same = [pair for pair in pairs if pair[0] == prediction]
    counts = (len(same) - same.count(pair) for pair in pairs)
    return sum(min(1.0, count / 3) for count in counts) / len(pairs)


def official(
    prediction: str, answers: Sequence[str], records: Sequence[Hashable] | None = None
) -> float:
    """VQAv2's official score in [0, 1]. Where all people wrote the same, nothing is normalised, the
    prediction included: "Yes" against ten "yes" is 0."""
    answers = [cleaned(answer) for answer in answers]
    prediction = cleaned(prediction)
    if len(set(answers)) > 1:
        answers = [OFFICIAL.normal(answer) for answer in answers]
        prediction = OFFICIAL.normal(prediction)
    return agreement(prediction, answers, records)


def lmms_eval(
    prediction: str, answers: Sequence[str], records: Sequence[Hashable] | None = None
) -> float:
    """VQAv2's score in lmms-eval (`vqav2_process_results`), in [0, 1]: always normalised."""
    normal = LMMS_EVAL.normal
    return agreement(normal(prediction), [normal(answer) for answer in answers], records)


def vlmevalkit(prediction: str, answers: Sequence[str]) -> float:
    """The score of VLMEvalKit (`process_line('vqa_score')`), in [0, 1]: always normalised."""
    normal = VLMEVALKIT.normal
    return agreement(normal(prediction), [normal(answer) for answer in answers])


def eval_ai(prediction: str, answers: Sequence[str]) -> float:
    """The score of TextVQA and OK-VQA in [0, 1]: lmms-eval's, and BAGEL's copy of EvalAI's."""
    normal = eval_ai_normal
    return agreement(normal(prediction), [normal(answer) for answer in answers])


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """VQAv2's official accuracy in percent with two decimals: of all, by type of question, by type
    of answer."""

    overall: float
    by_question_type: dict[str, float]
    by_answer_type: dict[str, float]


def official_accuracy(
    scores: Sequence[float], question_types: Sequence[str], answer_types: Sequence[str]
) -> Accuracy:
    """What the official program prints of scores in [0, 1], [N]; there is at least one."""
    by_question, by_answer = _grouped(scores, question_types), _grouped(scores, answer_types)
    return Accuracy(
        _percent(scores),
        {name: _percent(part) for name, part in by_question.items()},
        {name: _percent(part) for name, part in by_answer.items()},
    )


def _grouped(scores: Sequence[float], names: Sequence[str]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for score, name in zip(scores, names, strict=True):
        groups.setdefault(name, []).append(score)
    return groups


def _percent(scores: Sequence[float]) -> float:
    return round(100 * float(sum(scores)) / len(scores), 2)
