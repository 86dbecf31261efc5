"""How a judge is asked: texts with places to fill, in our words or in a user's official copy.

Owns where an official wording comes from: benchmarks' texts are not shipped, but a folder of
official data may hold them, in `judge_prompts.json` or in the official script itself, whose texts
are read out of its source; nothing of it runs. Which wording was used is part of the dialect.
"""

import ast
import dataclasses
import re
from collections.abc import Mapping

from etils import epath

from srum_jax.core import files
from srum_jax.core.errors import BadInput

FILE = "judge_prompts.json"
OWN = "own wording of the judge's question"
OFFICIAL = "official wording of the judge's question"
_PLACE = re.compile(r"\{([a-z_]+)\}")


@dataclasses.dataclass(frozen=True)
class JudgeText:
    """What a judge is asked: a text with places in braces, a system prompt, whose wording it is."""

    text: str
    system: str = ""
    wording: str = OWN

    def filled(self, **values: str) -> str:
        """The text with its places filled; what the values hold is left as it is."""
        return _PLACE.sub(lambda m: values.get(m.group(1), m.group(0)), self.text)


@dataclasses.dataclass(frozen=True)
class Script:
    """An official script that holds a judge's text as an f-string.

    path: in the official repository · places: {expression in the f-string: name of our place}; an
    f-string is meant that has all of them. Its other parts must be plain text.
    """

    path: str
    places: Mapping[str, str]


def find(folder: epath.Path, name: str, own: JudgeText, *scripts: Script) -> JudgeText:
    """The official text in `folder` (a file's folder, or the one above), else our own.

    `judge_prompts.json` holds {name: {"text": ..., "system": ...}}, with the same places in braces
    as ours. Raises BadInput for such a file that does not have them.
    """
    folder = folder if folder.is_dir() else folder.parent
    for place in (folder, folder.parent):
        if (place / FILE).is_file():
            if found := _of_file(place / FILE, name, own):
                return found
        for script in scripts:
            if (place / script.path).is_file():
                if found := of_script((place / script.path).read_text(), script):
                    return found
    return own


def _of_file(path: epath.Path, name: str, own: JudgeText) -> JudgeText | None:
    given = files.read_object(path).get(name)
    if given is None:
        return None
    text = given.get("text") if isinstance(given, dict) else given
    system = given.get("system", "") if isinstance(given, dict) else own.system
    places = set(_PLACE.findall(own.text))
    if not isinstance(text, str) or not isinstance(system, str):
        raise BadInput(f'{path}, {name}: must be a text, or an object with "text" and "system"')
    if missing := places - set(_PLACE.findall(text)):
        raise BadInput(f"{path}, {name}: the text has no {{{'}, {'.join(sorted(missing))}}}")
    return JudgeText(text, system, OFFICIAL)


def of_script(source: str, script: Script) -> JudgeText | None:
    """The f-string of a Python source that has all places, and the text under the role "system" if
    there is one; None where there is no such f-string."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None
    nodes = list(ast.walk(tree))
    texts = [_template(node, script.places) for node in nodes if isinstance(node, ast.JoinedStr)]
    found = next((text for text in texts if text is not None), None)
    systems = [_system(node) for node in nodes if isinstance(node, ast.Dict)]
    system = next((text for text in systems if text is not None), "")
    return None if found is None else JudgeText(found, system, OFFICIAL)


def _template(node: ast.JoinedStr, places: Mapping[str, str]) -> str | None:
    parts, seen = [], set()
    for part in node.values:
        if isinstance(part, ast.Constant):
            parts.append(part.value)
            continue
        expression = ast.unparse(part.value)
        if expression not in places:
            return None
        seen.add(expression)
        parts.append("{" + places[expression] + "}")
    return "".join(parts) if seen == set(places) else None


def _system(node: ast.Dict) -> str | None:
    """The longest text in a message of the role "system"."""
    pairs = zip(node.keys, node.values, strict=True)
    named = {k.value: v for k, v in pairs if isinstance(k, ast.Constant)}
    role = named.get("role")
    if not isinstance(role, ast.Constant) or role.value != "system" or "content" not in named:
        return None
    texts = [x.value for x in ast.walk(named["content"]) if isinstance(x, ast.Constant)]
    return max((x for x in texts if isinstance(x, str)), key=len, default=None)
