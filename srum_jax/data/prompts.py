"""Lists of prompts: what the model is asked to draw.

From a world of `core/registry.py`, from a file of `data/records.py` (.txt, .json, .jsonl, .csv), or
from a TFDS data set that is on this machine. A record of a file is a text or an object with the
prompt, and perhaps a category and an id, under the names in `FIELDS`, which are also those of
T2I-CompBench.
"""

import dataclasses
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import logging

from srum_jax.config import hash_json
from srum_jax.core import places, registry
from srum_jax.core.errors import quoted
from srum_jax.data import records, tfds_texts
from srum_jax.data.prompt_reader import ANYBODY, PromptReader
from srum_jax.data.records import FileRecord, Reject

# Names a field may have, the second those of T2I-CompBench's files.
FIELDS = {
    "text": ("prompt", "Question"),
    "category": ("category", "Category"),
    "id": ("id", "Question_id"),
}
NO_CATEGORY = "uncategorised"
MAX_ID = 2**63 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt. Its `id` names its candidates and their noise; `where` is its file and line."""

    id: int
    text: str
    category: str
    where: str = ""


@dataclasses.dataclass(frozen=True)
class LoadedPrompts:
    """Prompts, the records that are none, and the prompts left out because they were there before.

    `rejects` and `duplicates` are those of the whole source, whatever part of it was asked for.
    """

    prompts: tuple[Prompt, ...]
    rejects: tuple[Reject, ...] = ()
    duplicates: tuple[Prompt, ...] = ()


def load(
    source: str,
    count: int | None = None,
    first: int = 0,
    *,
    limit: float = 0.0,
    reader: PromptReader = ANYBODY,
) -> tuple[Prompt, ...]:
    """The prompts of `read`."""
    return read(source, count, first, limit=limit, reader=reader).prompts


def read(
    source: str,
    count: int | None = None,
    first: int = 0,
    *,
    limit: float = 0.0,
    reader: PromptReader = ANYBODY,
) -> LoadedPrompts:
    """`count` different prompts of a source, without a count all.

    source: "WORLD:SPLIT", a file, or a text field of a TFDS data set (`data/tfds_texts.py`).
    From place `first` of the list on, which begins again where it ends. An id that a record does
    not give is its place in the source, from 0. A text that was there before is left out; a source
    with fewer prompts gives all it has; both are logged.
    limit: of faulty records, as in `records.check_limit`. reader: as whom the texts of files and
    data sets are read; what it cannot read is faulty. Raises FileNotFoundError, or ValueError
    listing the faulty records.
    """
    world, colon, split = source.partition(":")
    if colon and world in registry.WORLDS:
        made = registry.load(registry.WORLDS, world).prompts(split, count, first)
        found = LoadedPrompts(
            tuple(Prompt(i, *one, f"{source}, prompt {i}") for i, one in enumerate(made))
        )
    else:
        in_file = not source.startswith(tfds_texts.PREFIX)
        rows = _file(source) if in_file else tfds_texts.read(source)
        found = _collect(source, rows, limit, reader)
        if count is not None and len(found.prompts) < count:
            logging.info("%s: %d prompts, %d were asked for", source, len(found.prompts), count)
    start = first % len(found.prompts)
    turned = found.prompts[start:] + found.prompts[:start]
    return dataclasses.replace(found, prompts=turned[:count])


def digest(prompts: Sequence[Prompt]) -> str:
    """16 hex digits of the prompts' content, wherever they came from."""
    return hash_json([[p.id, p.text, p.category] for p in prompts])


def check(prompts: Sequence[Prompt], reader: PromptReader) -> None:
    """Raises ValueError naming the file and line of the prompts that the model cannot read."""
    faults = []
    for prompt in prompts:
        try:
            reader.check(prompt.text)
        except ValueError as e:
            faults.append(f"{prompt.where}: {e}")
    records.refuse(faults, "the model cannot read these prompts")


def same_text(text: str) -> str:
    """What prompts are compared by: without case, spacing and closing marks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".!? ")


def leaks(a: Iterable[Prompt], b: Iterable[Prompt]) -> tuple[tuple[Prompt, Prompt], ...]:
    """Pairs of a prompt of `a` and the first of `b` with the same text, by `same_text`.

    What a list to train on (`a`) gives away of one to evaluate on (`b`).
    """
    known: dict[str, Prompt] = {}
    for prompt in b:
        known.setdefault(same_text(prompt.text), prompt)
    found = ((p, known.get(same_text(p.text))) for p in a)
    return tuple((p, other) for p, other in found if other is not None)


# ---------------------------------------------------------------------------------------- sources


def _file(source: str) -> Iterator[FileRecord]:
    path = places.place(source, "prompts")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such prompts file")
    for record in records.read(path):
        if path.suffix == ".csv" and isinstance(record.value, dict):
            record = dataclasses.replace(record, value=_numbered(record.value))
        yield record


def _numbered(row: dict[str, str]) -> dict[str, Any]:
    """A CSV record with its id as a number, where it is one."""
    return {
        k: int(v) if k in FIELDS["id"] and v.isascii() and v.isdigit() and len(v) < 20 else v
        for k, v in row.items()
    }


def _collect(
    name: str, rows: Iterable[FileRecord], limit: float, reader: PromptReader
) -> LoadedPrompts:
    """The different prompts of `rows`, in their order."""
    found: dict[str, Prompt] = {}
    ids: dict[int, int] = {}
    rejects, repeated, total = [], [], 0
    for place, record in enumerate(rows):
        total += 1
        try:
            prompt = _prompt(record.value, place, f"{name}, line {record.line}")
            prompt = dataclasses.replace(prompt, text=reader.read(prompt.text))
            if prompt.text in found:
                repeated.append(prompt)
                continue
            if prompt.id in ids:
                raise ValueError(f"id {prompt.id} is also that of line {ids[prompt.id]}")
        except ValueError as e:
            rejects.append(records.reject(name, record, e))
            continue
        found[prompt.text], ids[prompt.id] = prompt, record.line
    records.check_limit(rejects, total, limit, "these prompts cannot be used")
    if not found:
        raise ValueError(f"{name}: no prompts in it")
    if repeated:
        logging.info("%s: %d repeated prompts left out, %d kept", name, len(repeated), len(found))
    if rejects:
        logging.warning(
            "%s: %d of %d prompts cannot be used and are set aside", name, len(rejects), total
        )
    return LoadedPrompts(tuple(found.values()), tuple(rejects), tuple(repeated))


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
    text = records.usable_text(got["text"], f'field "prompt" (or "{FIELDS["text"][1]}")')
    category = NO_CATEGORY if got["category"] is None else got["category"]
    number = place if got["id"] is None else got["id"]
    if not isinstance(category, str):
        raise ValueError(f"the category must be a text, got {quoted(category)}")
    if type(number) is not int or not 0 <= number <= MAX_ID:
        raise ValueError(f"the id must be a whole number from 0, got {quoted(number)}")
    stated = bool(category.strip())
    category = records.usable_text(category, 'field "category"') if stated else NO_CATEGORY
    return Prompt(number, text, category, where)
