"""Penn-Treebank tokens of captions, equal to what pycocoevalcap's Java tokeniser leaves of them.

Owns how a caption becomes lower-case tokens without punctuation, without Java: the lexer of CoreNLP
3.4.1 with the options `-preserveLines -lowerCase`, without what pycocoevalcap drops. Written from
what the Java program answers, not from its grammar.
"""

from __future__ import annotations

import re

# Lower-casing comes first, so that brackets (-lrb-, -rsb-, ...) are kept.
DROPPED = frozenset(
    "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- --- ---- ... .... ..... ;".split()
)

# Words that a period belongs to: always; when they have a capital; before a number.
_ABBREVIATIONS = (
    "adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig"
    " bros calif capt cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs"
    " elec ens esq est etc ext feb fla fri ft ga gen gov hon inc ind insp intl invt jan jos jr jul"
    " jun kan ky lieut lt ltd maj mar md messrs mfg mich minn mme mo mon mont mr mrs ms msgr mt mtg"
    " natl neb nev nov oct okla penn pfc ph plc pres prof profs pte pty ptys pvt rd rep reps rev rt"
    " sen sens sep sept seq sfc sgt spc sq sr st ste supt supts sys tel tenn thu thurs tue tues"
    " univ va vs vt wed wis wisc wm wyo"
)
_WITH_CAPITAL = "ark az del ill la mass miss ore pa tex wash"
_BEFORE_NUMBER = "art ca fig figs no nos op pp prop"
_STARTERS = (
    "a about according additionally after an as at but earlier he her here however if in it last"
    " many more now once one other our she since so some such that the their then there these they"
    " this we what when while yet you"
)

# Letters: Unicode's, and marks that combine with them; digits that are not \d are no letters.
_NO_LETTERS = "\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u207e\u2080-\u208e\u2150-\u215e\u2190-\u2bff"
_L = rf"(?:[^\W\d_{_NO_LETTERS}]|[\u0300-\u036f])"
_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_VALUE = "(?:'[^']*'|\"[^\"]*\")"
_LD = rf"(?:{_L}|\d)"
_APOSTROPHE = "['\u2019]"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])*"
_PART = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_MAIL = r"[A-Za-z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+"
_PATH = '(?:/[^\\s"<>|()]+[^\\s"<>|.!?(){},-])?'
# Characters that are tokens by themselves; what is neither these nor in another token vanishes.
_SYMBOLS = (
    "[#$%&*+<=>\\\\^|~/@_\u00a1\u00a5-\u00a9\u00ac\u00ae-\u00b1\u00b4\u00b6-\u00b8\u00bf\u00d7\u00f7"
    "\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u207a-\u207e\u208a-\u208e"
    "\u2100-\u2101\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e"
    "\u2140-\u2144\u214a-\u214d\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f"
    "\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)
_RENAMED = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "\u00a2": "cents", "\u00a3": "#", "\u20ac": "$", "\u00bc": "1/4", "\u00bd": "1/2",
    "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3", "&lt;": "<", "&gt;": ">", "&amp;": "&",
    "&quot;": "''",
    "&apos;": "'", "&nbsp;": "", "&mdash;": "--", "&ndash;": "--",
}  # fmt: skip


def _any_case(words: str) -> str:
    return "(?i:" + "|".join(words.split()) + ")"


def _capitals(words: str) -> str:
    return "|".join(form for w in words.split() for form in (w.capitalize(), w.upper()))


# Of all that match at a place the longest wins; of equally long ones the first. The token is the
# first group where there is one: what follows it counts for the length.
_TOKENS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"<(?:[!?][A-Za-z-][^>]*|{_NAME}(?:\s+(?:{_NAME}(?:\s*=\s*{_VALUE})?|{_VALUE}|/))*\s*/?"
        rf"|/{_NAME})\s*>",
        r"&(?:lt|gt|amp|quot|apos|nbsp|[mn]dash|#\d+);",
        # Words that are two tokens; words before n't, 's, 'll, ...; these endings.
        rf"(?i:(can)not|(gon)na|(got)ta|(lem)me|(gim)me|(wan)na|('t)is|('t)was)(?!{_LD})",
        rf"({_L}+)(?i:n['\u2019`]t)",
        rf"(?i:n['\u2019`]t){_L}*",
        rf"{_APOSTROPHE}(?i:[msd]|re|ve|ll|n)(?!{_L})|\u2019(?i:[msd]|re|ve|ll)",
        rf"{_APOSTROPHE}(?i:n{_APOSTROPHE}|em|til|cause)",
        # Apostrophes inside words and before years.
        rf"(?i:(?:[doln]|qu){_APOSTROPHE}{_L}{{2,}}|[en]?e{_APOSTROPHE}er|ma{_APOSTROPHE}am)",
        rf"(?i:[dlj]{_APOSTROPHE}|y{_APOSTROPHE}(?={_L}))",
        rf"{_APOSTROPHE}(?:[1-9]0s|\d\d(?=\s|$))",
        # Words: foo.bar is one; so are well-known, mid-1990s, 1,000-foot, non-U.S., left/right.
        rf"{_L}{_LD}*(?:[.!?]{_L}{_LD}*)*(?:\.(?=[,;:]))?",
        rf"{_LD}+(?:[-_]{_LD}+)*(?:\.(?=[,;:]))?",
        rf"[A-Za-z0-9][A-Za-z0-9%.,]*(?:-(?:{_INITIALS}\.(?<=\..\.)|[A-Za-z0-9]+))+",
        rf"{_PART}(?:\\?/{_PART}){{1,2}}",
        r"[A-Z]+(?:[+&][A-Z]+)+",
        r"[Cc]\+\+|[CcFf]#",
        r"https?://[^\s\"<>|()]+[^\s\"<>|.!?(){},-]",
        rf"www\.(?:[^\s\"<>|.!?(){{}},]+\.)+[A-Za-z]{{2,4}}{_PATH}",
        rf"(?:[^\s\"`'<>|.!?(){{}}\[\],_$/:+-]+\.)+(?:com|net|org|edu)(?!{_LD}){_PATH}",
        rf"{_MAIL}|<{_MAIL}>",
        rf"@[A-Za-z_][A-Za-z_0-9]*|#{_L}+",
        # A letter before a word that often begins a sentence is no abbreviation.
        rf"([A-Za-z])\.\s+(?:{_capitals(_STARTERS)})(?=\s|$)",
        rf"{_INITIALS}\.|(?i:ph|ed)\.[Dd]\.",
        rf"(?:{_any_case(_ABBREVIATIONS)}|{_capitals(_WITH_CAPITAL)})\.",
        rf"{_any_case(_BEFORE_NUMBER)}\.(?=\s*\d)",
        r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)",
        rf"\d+(?:\.\d+)*\.[xX](?!{_LD})",
        r"(?:\d{1,4}[-\s])?\d{1,4}\\?/\d{1,4}",
        r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",
        r"[A-Z]*\$",
        r"[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+",
        r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?![A-Za-z0-9])",
        r"[-^x=~<>']_[-^x=~<>']",
        r"(?i:-[lr]rb-)|''|-+|[?!]+|\.{3,5}|\*+|\\\*|@+|_+|#+|>>?|<<?",
        rf"[()\[\]{{}}\u00a2\u00a3\u20ac\u00bc-\u00be\u2153\u2154]|{_SYMBOLS}",
    )
)
# Most words, of which the rules above say the same.
_PLAIN = re.compile(r"(?!(?:cannot|gonna|gotta|lemme|gimme|wanna)\b)[a-z]+(?=\s|$)", re.IGNORECASE)


def tokenize(text: str) -> str:
    """A caption's tokens with a space between them, lower-case and without punctuation.

    Equal to pycocoevalcap's `PTBTokenizer` on a file of this one caption. (In a file of several,
    Java looks at the next line's first letter: "plan B." keeps its period before a small one.)
    """
    tokens: list[str] = []
    at = 0
    while at < len(text):
        token, at = _next(text, at)
        if token and token not in DROPPED:
            tokens.append(token)
    return " ".join(tokens)


def _next(text: str, at: int) -> tuple[str, int]:
    """The token at a place, "" for nothing, and where to go on."""
    if text[at].isspace():
        return "", at + 1
    if plain := _PLAIN.match(text, at):
        return plain.group().lower(), plain.end()
    found = [match for match in (token.match(text, at) for token in _TOKENS) if match]
    if not found:
        return "", at + 1
    longest = max(found, key=lambda match: match.end())
    token = next((group for group in longest.groups() if group), longest.group())
    return _written(token), at + len(token)


def _written(token: str) -> str:
    """How a token is written: brackets by name, also in smileys."""
    if token in _RENAMED:
        return _RENAMED[token]
    if token[0] == "\u2019" and token[1:].lower() in ("s", "m", "d", "re", "ve", "ll"):
        return "'" + token[1:].lower()
    if token[0] in ":;=<>" and token[-1] in "()":
        return token[:-1] + _RENAMED[token[-1]]
    if token.lower() == "n\u2019t":
        return "n't"
    return token.lower()
