"""The letter of an option in a reply to a multiple-choice question, as each harness finds it.

Owns the rules that several benchmarks share. Everywhere `options` is {letter: text}, in order of
letters, and "" says that a rule finds no letter; none ever draws one at random.
"""

import re
import string
from collections.abc import Collection, Mapping, Sequence

REFUSED = "Z"  # VLMEvalKit's letter for a reply that refuses
_NO_REPLY = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_CLEAR_ANSWER = re.compile(r"\b[Aa]nswer\s*(?:is|:)[\s:*(\[]*([A-Z])\b(?! [a-z]|')")
_ARTICLE = re.compile(r"\bA (?!(?:is|because|since|and|or|but)\b)(?=[a-z])")
_WORD = re.compile(r"[A-Za-z0-9\u00c0-\u024f]+")  # other scripts put no space beside a letter
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
# What stands directly before and after a letter in a word of its own, in lmms-eval's order.
_FORMS = (
    *(("", after) for after in (".", ",", ":", ")", ").")),
    *(("(", after) for after in (")", ").")),
    *((":", after) for after in ("", ",", ".", ")", ").")),
)
_SAID = (
    *("answer is", "correct answer is", "best answer is", "correct option is", "best option is"),
    *("choice is", "correct choice is"),
)
# Each is looked for by itself: a longer one may first stand further on than the one it ends with.
_PHRASES = (
    *_SAID,
    *(f"the {said}" for said in _SAID),
    *("my answer is", "my choice is", "i choose", "i select", "i pick"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def lettered(texts: Sequence[str]) -> dict[str, str]:
    """{"A": the first text, "B": the second, ...}.

    Raises ValueError for more texts than there are letters.
    """
    if len(texts) > len(string.ascii_uppercase):
        raise ValueError(f"{len(texts)} options; there are letters for 26")
    return dict(zip(string.ascii_uppercase, texts, strict=False))


def vlmevalkit(reply: str, options: Mapping[str, str]) -> str:
    """VLMEvalKit's match without a judge: a letter of `options`, "Z" for a refusal, or "".

    One letter alone as a word, its first place among the last four words; else what follows "answer
    is"; else the one option whose text is in a reply that is at most twice as long as all options.

    Source: VLMEvalKit e8e78f0, vlmeval/utils/matching_util.py, can_infer.
    """
    return _vlmevalkit_letter(reply, options) or _vlmevalkit_text(reply, options)


def _vlmevalkit_letter(reply: str, options: Mapping[str, str]) -> str:
    if _NO_REPLY in reply:
        return ""
    if any(refusal in reply for refusal in _REFUSALS):
        return REFUSED
    words = reply.translate(_SEPARATORS).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and REFUSED in words:
        return REFUSED
    said = _ANSWER_IS.search(reply)
    return said[1].upper() if said and said[1].upper() in options else ""


def _vlmevalkit_text(reply: str, options: Mapping[str, str]) -> str:
    if len(reply.lower()) > 2 * sum(map(len, options.values())):
        return ""
    return _only_text(reply, options)


def _only_text(reply: str, options: Mapping[str, str]) -> str:
    """The one option whose text a reply contains, whatever the case of letters."""
    named = [letter for letter, text in options.items() if text.lower() in reply.lower()]
    return named[0] if len(named) == 1 else ""


def lmms_eval(reply: str, options: Mapping[str, str]) -> str:
    """lmms-eval's match of MMBench without a judge: a letter of A to E, an option or not, or "".

    One letter alone as a word, where "A" counts in up to three words only; else one letter with the
    marks of `_FORMS`; else the one of the first four options whose text the reply contains.

    Source: lmms-eval 75571cf, tasks/mmbench/mmbench_evals.py, MMBench_Evaluator.can_infer.
    """
    return _lmms_eval_letter(reply) or _only_text(reply, first_four(options))


def first_four(options: Mapping[str, str]) -> dict[str, str]:
    """The options A to D: lmms-eval knows no others of MMBench."""
    return {letter: text for letter, text in options.items() if letter in "ABCD"}


def _lmms_eval_letter(reply: str) -> str:
    if _NO_REPLY in reply:
        return ""
    words = reply.split()
    letters = string.ascii_uppercase[:5]
    named = [letter for letter in letters if letter in words]
    if len(named) == 1 and not (named == ["A"] and len(words) > 3):
        return named[0]
    for before, after in _FORMS:
        named = [letter for letter in letters if f"{before}{letter}{after}" in words]
        if len(named) == 1:
            return named[0]
    return ""


def robust(reply: str, letters: Collection[str] = "ABCDEFGH") -> str:
    """lmms-eval's rule for any form of reply: one of `letters`, or "".

    Of all places where a letter stands in some form, the form that ranks highest decides, and of
    several letters in it the one that stands last: at the start of the reply, at its end, after a
    phrase such as "the answer is", "(X)", "X.", "X:", "X)", "X ", anywhere.

    Source: lmms-eval 75571cf, tasks/_task_utils/mcq_extract.py, extract_mcq_answer.
    """
    text = reply.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    text = f" {text} "
    found = [place for letter in letters for place in _places(text, letter)]
    if not found:
        found = [(0, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(found, key=lambda place: place[:2])[2] if found else ""


def _places(text: str, letter: str) -> list[tuple[int, int, str]]:
    """(rank of the form, place, letter) of every form that `letter` has in a padded text."""
    forms = {6: f"({letter})", 5: f"{letter}.", 4: f"{letter}:", 3: f"{letter})", 2: f"{letter} "}
    found = [(rank, text.rfind(form)) for rank, form in forms.items() if form in text]
    lower = text.lower()
    for phrase in _PHRASES:
        at = lower.find(phrase)
        if at >= 0 and letter in text[at + len(phrase) :]:
            found.append((7, text.find(letter, at + len(phrase))))
    bare = text.strip()
    if bare.startswith(letter) and not bare[1:2].isalpha():
        found.append((10, 0))
    if bare.endswith(letter) and not bare[-2:-1].isalpha():
        found.append((9, len(text) - 1))
    return [(rank, place, letter) for rank, place in found]


def bagel(reply: str, options: Mapping[str, str]) -> str:
    """What BAGEL's evaluation hands in for a reply, a letter or a text: "C" for an empty reply.

    The one character; else the first where it is an option's letter (of "A bridge", of "DNA"); else
    the letter of the first option whose text the reply contains; else the reply.

    Source: SRUM a53ba18, eval/vlm/eval/mmbench/evaluate_mmbench.py, post_process.
    """
    reply = reply.strip()
    if len(reply) == 1:
        return reply
    if not reply:
        return "C"
    if reply[0] in options:
        return reply[0]
    return next((letter for letter, text in options.items() if text in reply), reply)


def clear(reply: str, options: Mapping[str, str]) -> str:
    """The one option that a reply names beyond doubt, or "": what strict scores go by.

    The reply is an option's text; else the one letter said after "answer is"; else the one capital
    that stands alone among the last four words, "A" not as an article; else the one option whose
    text is in a reply at most twice as long as all options. Refusals name none.
    """
    if any(phrase in reply for phrase in (_NO_REPLY, *_REFUSALS)):
        return ""
    whole = [letter for letter, text in options.items() if _bare(text) == _bare(reply)]
    said = set(_CLEAR_ANSWER.findall(reply))
    if len(whole) == 1 or len(said) == 1:
        letter = whole[0] if len(whole) == 1 else said.pop()
        return letter if letter in options else ""
    words = _WORD.findall(_ARTICLE.sub(" ", reply))
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    return _vlmevalkit_text(reply, options)


def _bare(text: str) -> str:
    return text.strip().strip(".").lower()


def reason(said: str, answer: str) -> str:
    """Why a reply that names the option `said`, "" for none, is wrong; "" where it is right."""
    if said == answer:
        return ""
    return f"said {said}; {answer} is right" if said else f"names no option; {answer} is right"
