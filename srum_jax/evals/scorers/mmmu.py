"""MMMU: the letter or the open answer in a reply, and the accuracy of subjects and domains.

Owns the official rules, MMMU bb0b95a (eval/utils/eval_utils.py), and how lmms-eval 75571cf
(tasks/_task_utils/mmmu_mcq_utils.py, tasks/mmmu/utils.py) and BAGEL's evaluation differ.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence

from srum_jax.evals.scorers import letters

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        *("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine"),
        *("Pharmacy", "Public_Health"),
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        *("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics"),
        *("Energy_and_Power", "Materials", "Mechanical_Engineering"),
    ),
}
_BEFORE_ANSWERS = (
    *("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result "),
)
_MARKS = (":", ",", ".", "!", "?", ";", "'")  # a tail of one of these alone is no answer
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # with thousands separated
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)

Answer = str | float  # a text in small letters, or a number rounded to two places


def choice(reply: str, options: Mapping[str, str]) -> str:
    """The letter that the official parser takes of a reply, "" where it draws one at random.

    Candidates are letters as "(X)", else alone between spaces, else, in more than five words, those
    whose option's text is contained; of several the one that stands last.
    """
    return _choice(reply, options, (" {} ",))


def choice_lmms(reply: str, options: Mapping[str, str]) -> str:
    """The same of lmms-eval: "X " need not follow a space, and "X." is a form as well."""
    return _choice(reply, options, ("{} ", "{}."))


def _choice(reply: str, options: Mapping[str, str], forms: Sequence[str]) -> str:
    for mark in ",.!?;:'":
        reply = reply.strip(mark)
    reply = f" {reply} "
    named = [letter for letter in options if f"({letter})" in reply]
    if named:
        return _last(named, lambda letter: reply.rfind(f"({letter})"))
    for form in forms:
        named = [letter for letter in options if form.format(letter) in reply]
        if named:  # the place is that between spaces, whatever the form: -1 if there is none
            return _last(named, lambda letter: reply.rfind(f" {letter} "))
    if len(reply.split()) <= 5:
        return ""
    lower = reply.lower()
    named = [letter for letter, text in options.items() if text.lower() in lower]
    return _last(named, lambda letter: lower.rfind(options[letter].lower())) if named else ""


def _last(named: Sequence[str], place: Callable[[str], int]) -> str:
    """The letter at the last place; the first of several at one."""
    return max(named, key=place)


def bagel_choice(reply: str, options: Mapping[str, str]) -> str:
    """What BAGEL's evaluation compares with the answer: `letters.bagel` of stripped options."""
    return letters.bagel(reply, {letter: text.strip() for letter, text in options.items()})


def drawn_at_random(
    chosen: Sequence[str], options: Sequence[Mapping[str, str]], seed: int = 42
) -> list[str]:
    """Letters with every "" replaced as the official code does it: a draw of `random.choice`, in
    order, after `random.seed(seed)`. For parity alone; a guess is no answer of the model.
    """
    draws = random.Random(seed)
    pairs = zip(chosen, options, strict=True)
    return [letter or draws.choice(list(of)) for letter, of in pairs]


def open_answers(reply: str) -> list[Answer]:
    """All that the official parser takes as the answer in a reply to an open question.

    Of each line the shortest tail after a word such as "is " (in the last line "=" too), the whole
    reply where there is none; and the numbers in these. Sorted by how they are written.
    """
    reply = reply.strip().strip(".").lower()
    lines = reply.split("\n")
    tails = [_tail(line, last=i == len(lines) - 1) for i, line in enumerate(lines)]
    tails = [tail for tail in tails if tail and tail not in _MARKS] or [reply]
    numbers = [number for tail in tails for form in _NUMBERS for number in form.findall(tail)]
    found = {answer for text in (*tails, *numbers) for answer in _normalised(text)}
    return sorted(found, key=str)


def _tail(line: str, *, last: bool) -> str:
    """What follows the last of the words before answers, the shortest of these; "" for none. An
    empty tail counts only where no later word has another."""
    best = ""
    for word in (*_BEFORE_ANSWERS, *(["="] if last else [])):
        if word in line:
            tail = line.split(word)[-1].strip()
            best = tail if not best or len(tail) < len(best) else best
    return best


def _normalised(text: str) -> list[Answer]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def open_right(answers: Sequence[Answer], gold: str | Sequence[str]) -> bool:
    """Whether one of a reply's answers is right: a text that contains a gold text, or a number that
    equals a gold number. `gold`: one text, or several that are all right.
    """
    wanted = [
        one for text in ([gold] if isinstance(gold, str) else gold) for one in _normalised(text)
    ]
    texts = [one for one in wanted if isinstance(one, str)]
    return any(
        any(text in answer for text in texts) if isinstance(answer, str) else answer in wanted
        for answer in answers
    )


def open_right_lmms(answers: Sequence[Answer], gold: str | Sequence[str]) -> bool:
    """Whether lmms-eval 75571cf can count the reply as right, whichever of the answers it takes:
    it makes a text of one of them and compares each of its characters, so in effect never.
    """
    return any(open_right(list(str(answer)), gold) for answer in answers)


def subject(name: str) -> str:
    """The subject in a question's id, "validation_Art_Theory_7".

    Raises ValueError for an id of another form.
    """
    found = re.fullmatch(r"[^_]+_(.+)_\d+", name)
    if not found:
        raise ValueError(f'id "{name}" is not "<split>_<Subject>_<number>"')
    return found[1]


def accuracies(right: Mapping[str, bool]) -> dict[str, float]:
    """{"Overall", "Overall-<domain>", subject: share right} of {id: right}.

    Domains and the whole weigh subjects by their number of questions. Subjects that are in no
    domain count in "Overall" alone; a domain without questions is absent.
    """
    of: dict[str, list[bool]] = {}
    for name, one in right.items():
        of.setdefault(subject(name), []).append(bool(one))
    groups = {"Overall": list(of)} | {f"Overall-{domain}": DOMAINS[domain] for domain in DOMAINS}
    groups |= {name: [name] for name in of}
    values = {group: [x for s in names for x in of.get(s, ())] for group, names in groups.items()}
    return {group: sum(x) / len(x) for group, x in values.items() if x}
