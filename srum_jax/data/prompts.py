"""Lists of prompts: what the model is asked to draw, from the shapes world or from a file.

A file is .txt (a prompt a line), .jsonl (a record a line) or .json (a list of records); a record is
a text or an object with the prompt, and perhaps a category and an id, under the names in `FIELDS`.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging
from etils import epath

from srum_jax.config import hash_json
from srum_jax.data.tokenizer import Tokenizer

SHAPES = "shapes:"  # followed by a split of the shapes world
# Names a field may have, the second those of T2I-CompBench's files.
FIELDS = {
    "text": ("prompt", "Question"),
    "category": ("category", "Category"),
    "id": ("id", "Question_id"),
}
NO_CATEGORY = "uncategorised"
MAX_SHOWN = 10  # faults listed in one message
MAX_ID = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt. Its `id` names its candidates and their noise; `where` is its file and line."""

    id: int
    text: str
    category: str
    where: str = ""


def load(source: str, count: int | None = None, first: int = 0) -> tuple[Prompt, ...]:
    """`count` different prompts of "shapes:<split>" or of a file, without a count all.

    From place `first` of the list on, which begins again where it ends. An id that a record does
    not give is its place in the file, from 0. A text that was there before is left out; a file with
    fewer prompts gives all it has; both are logged.
    Raises FileNotFoundError, or ValueError listing the faulty lines of the file.
    """
    if source.startswith(SHAPES):
        from srum_jax.data import shapes_language  # only here: the judge's side reads no shapes

        split = source.removeprefix(SHAPES)
        everything = len(shapes_language.prompts(split))
        wanted = everything if count is None else count
        made = shapes_language.balanced_prompts(split, max(wanted, everything) if first else wanted)
        found = tuple(
            Prompt(i, p.text, p.category, f"{source}, prompt {i}") for i, p in enumerate(made)
        )
    else:
        found = _read(epath.Path(source))
        if count is not None and len(found) < count:
            logging.info("%s: %d prompts, %d were asked for", source, len(found), count)
    start = first % len(found)
    return (found[start:] + found[:start])[:count]


def digest(prompts: Sequence[Prompt]) -> str:
    """16 hex digits of the prompts' content, wherever they came from."""
    return hash_json([[p.id, p.text, p.category] for p in prompts])


def check(prompts: Sequence[Prompt], tokenizer: Tokenizer) -> None:
    """Raises ValueError naming the file and line of the prompts with words the model lacks."""
    faults = []
    for prompt in prompts:
        try:
            tokenizer.encode(prompt.text)
        except ValueError as e:
            faults.append(f"{prompt.where}: {e}")
    _refuse(faults, "the model cannot read these prompts")


def _refuse(faults: Sequence[str], what: str) -> None:
    if faults:
        more = len(faults) - MAX_SHOWN
        lines = [*faults[:MAX_SHOWN], *([f"... and {more} more"] if more > 0 else [])]
        raise ValueError(f"{what}:\n  " + "\n  ".join(lines))


def _read(path: epath.Path) -> tuple[Prompt, ...]:
    """Every different prompt of a file, in its order."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such prompts file")
    found: dict[str, Prompt] = {}
    ids: dict[int, str] = {}
    faults, repeated = [], 0
    for place, (line, value) in enumerate(_records(path)):
        where = f"{path}, line {line}"
        try:
            prompt = _prompt(value, place, where)
            if prompt.text in found:
                repeated += 1
                continue
            if prompt.id in ids:
                raise ValueError(f"id {prompt.id} is also that of {ids[prompt.id]}")
        except ValueError as e:
            faults.append(f"{where}: {e}")
            continue
        found[prompt.text], ids[prompt.id] = prompt, f"line {line}"
    _refuse(faults, "these prompts cannot be used")
    if not found:
        raise ValueError(f"{path}: no prompts in it")
    if repeated:
        logging.info("%s: %d repeated prompts left out, %d kept", path, repeated, len(found))
    return tuple(found.values())


def _prompt(value: Any, place: int, where: str) -> Prompt:
    """One record as a Prompt. Raises ValueError naming the field."""
    if isinstance(value, ValueError):
        raise value
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise ValueError("neither a text nor an object with a prompt")
    got = {
        field: next((value[name] for name in names if name in value), None)
        for field, names in FIELDS.items()
    }
    if not isinstance(got["text"], str) or not got["text"].strip():
        raise ValueError(f'no text in the field "prompt" (or "{FIELDS["text"][1]}")')
    category = NO_CATEGORY if got["category"] is None else got["category"]
    number = place if got["id"] is None else got["id"]
    if not isinstance(category, str):
        raise ValueError(f"the category must be a text, got {category!r}")
    if type(number) is not int or not 0 <= number <= MAX_ID:
        raise ValueError(f"the id must be a whole number from 0, got {number!r}")
    return Prompt(number, " ".join(got["text"].split()), category or NO_CATEGORY, where)


def _records(path: epath.Path) -> Iterator[tuple[int, Any]]:
    """(line from 1, value) of every record; a line that cannot be read has its ValueError."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from e
    if path.suffix == ".json":
        yield from _elements(path, text)
        return
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            yield line, content if path.suffix == ".txt" else _json_line(content)


def _json_line(content: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as e:
        return ValueError(f"not JSON ({e.msg})")


def _elements(path: epath.Path, text: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of each element of a JSON list."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}, line {e.lineno}: not JSON ({e.msg})") from e
    if not isinstance(values, list):
        raise ValueError(f"{path}: must hold a list of prompts, not a {type(values).__name__}")
    at = text.index("[") + 1
    line = text.count("\n", 0, at) + 1
    for value in values:
        start = re.compile(r"[\s,]*").match(text, at).end()
        line += text.count("\n", at, start)
        yield line, value
        _, end = json.JSONDecoder().raw_decode(text, start)
        line, at = line + text.count("\n", start, end), end
