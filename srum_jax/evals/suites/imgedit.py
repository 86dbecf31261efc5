"""ImgEdit (Basic): edits of nine types, each marked by a judge with three marks from 1 to 5.

Ye et al., "ImgEdit" (arXiv 2505.20275). The judge sees the pictures before and after and is asked
by a text of the edit's type. `as_released` follows the official scripts, which average whatever
marks they find, round to two decimals and drop edits without any; they have no overall number, so
that BAGEL's (over edits) and that of many papers (over types) stand beside each other. `strict`
wants three marks. The judge's questions are our own words unless the data folder holds the official
`prompts.json`. The official program sends the text before the pictures; here it comes after.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence

from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.errors import BadInput, quoted
from srum_jax.evals import benchmark, edited, official_files
from srum_jax.evals.benchmark import OK, About, Benchmark, Data, LazySequence
from srum_jax.evals.edited import Edit, Pair
from srum_jax.evals.official_files import Row
from srum_jax.evals.scorers import imgedit, metrics
from srum_jax.evals.suite import JudgeRequest, Record, Replies, Requests, Scored

ABOUT = About(
    title="ImgEdit, edits of nine types",
    needs="a folder with basic_edit.json and the pictures that it names (in it, in singleturn/ or "
    "in images/); the official prompts.json in it replaces our wording of what a judge is asked",
    licence="no licence file with the code; the data set's own terms for pictures",
    dialect="official; overall as BAGEL has it",
    unit="edits",
    best=imgedit.HIGHEST,
    judge="words",
)
EDITS, PROMPTS, RESULTS = "basic_edit.json", "prompts.json", "result.json"
PLACES = ("singleturn", "images")
MAX_TOKENS = 512
_WANTED = {
    "replace": "puts one thing in the place of another",
    "add": "adds a thing",
    "adjust": "changes how a thing looks: its color, size, material or state",
    "remove": "takes a thing away",
    "style": "changes the style of the whole picture",
    "action": "changes what a person or an animal does",
    "extract": "cuts a thing out and shows it alone",
    "background": "changes what is behind the things",
    "compose": "changes several things at once",
}
_OWN_WORDING = (
    "The first picture was edited, the second one is what came of it. The edit {wanted}. The "
    "editor was told: <edit_prompt>\n"
    "Give three whole marks from 1 to 5, 5 the best: how well the instruction was followed, how "
    "natural and free of seams the edited part looks, and how well light, shapes and details are "
    "right and everything else was kept. The second and the third mark must not be above the "
    "first.\n"
    "Reply with four lines and nothing else:\n"
    "Brief reasoning: why, in at most twenty words\n"
    "Prompt Compliance: the first mark\n"
    "Visual Naturalness: the second mark\n"
    "Physical & Detail Integrity: the third mark"
)
POLICY = "an edit counts 1, the lowest mark, unless its reply gives three marks from 1 to 5"


@dataclasses.dataclass(frozen=True)
class Imgedit(Benchmark):
    """edits: those that are made · texts: what a judge is asked, by type · seed: of the noise."""

    edits: Sequence[Edit]
    texts: Mapping[str, str]
    data: Data
    about: About
    seed: int
    name = "imgedit"

    def requests(self, model: str) -> Requests:
        """Every edit once."""
        return edited.requests(self.edits, self.seed)

    def judge_requests(self, requests: Requests, replies: Replies) -> Sequence[JudgeRequest]:
        """One question about each edit."""
        return LazySequence(edited.pairs(self.edits, replies), self._request)

    def _request(self, pair: Pair) -> JudgeRequest:
        edit = pair.edit
        text = self.texts[edit.category].replace("<edit_prompt>", edit.instruction)
        return JudgeRequest(
            edit.id, edit.category, pair.both(), text, max_tokens=MAX_TOKENS, truth=edit.category
        )

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """<key>.png of every edit, and result.json, the words of the judge that counts."""
        for edit, image in zip(self.edits, replies.edits, strict=True):
            edited.write(folder / f"{edit.key}.png", image)
        for said in list(replies.judged.values())[:1]:
            words = {
                edit.key: one.text
                for edit, one in zip(self.edits, said, strict=True)
                if one.status == OK
            }
            text = json.dumps(words, ensure_ascii=False, indent=4)
            files.write_text(folder / RESULTS, text + "\n")


# -------------------------------------------------------------------------------------- reading


def make(cfg: Config, data: str, language: str) -> Imgedit:
    """The edits of the folder `data`. Raises BadInput naming file and item."""
    folder = benchmark.data_folder("imgedit", data)
    path = official_files.file(folder, EDITS)
    edits = read(path, language)
    c = cfg.evaluate
    asked = benchmark.sampled(edits, [edit.category for edit in edits], c.limit, c.seed)
    texts, wording = judge_texts(path.parent, {edit.category for edit in edits})
    about = dataclasses.replace(ABOUT, dialect=f"{ABOUT.dialect}; judge asked in {wording}")
    told = Data(str(path), benchmark.sha256(path), len(asked), len(edits), wording)
    return Imgedit(asked, texts, told, about, c.seed)


def judge_texts(folder: epath.Path, types: set[str]) -> tuple[Mapping[str, str], str]:
    """What a judge is asked about edits of each type, and whose words these are: those of
    `prompts.json` in the folder, or our own. Raises BadInput."""
    path = folder / PROMPTS
    if not path.is_file():
        own = {name: _OWN_WORDING.replace("{wanted}", said) for name, said in _WANTED.items()}
        return own, "our own words"
    row = Row(files.read_object(path), str(path))
    texts = {name: row.get(name, str) for name in sorted(types)}
    for name, text in texts.items():
        if "<edit_prompt>" not in text:
            raise BadInput(
                f"{path}: {quoted(name)} holds no <edit_prompt>, in whose place the instruction "
                "comes"
            )
    return texts, f"the words of {PROMPTS} {benchmark.sha256(path)[:8]}"


def read(path: epath.Path, language: str = "") -> list[Edit]:
    """The edits of `basic_edit.json`; language: that the model reads. Raises BadInput."""
    items = official_files.json_items(path)
    rows = [row for _, row in items]
    pictures = official_files.pictures(path, [row.get("id", str) for row in rows], rows, *PLACES)
    found = []
    for (key, row), picture in zip(items, pictures, strict=True):
        if official_files.leads_out(key) or "/" in key:
            raise BadInput(f"{row.where}: the key is no name of a file: {key!r}")
        source = edited.File(picture)
        found.append(
            Edit(
                id=key,
                category=row.choice("edit_type", imgedit.TYPES),
                key=key,
                instruction=edited.readable(language, row.get("prompt", str), row.where),
                source=source,
                before=source,
            )
        )
    return found


# ------------------------------------------------------------------------------ what it is worth


def score(records: Sequence[Record]) -> Scored:
    """Means of marks over edits and over types; from 1 to 5."""
    marks = [imgedit.marks(r.reply) if r.status == OK else None for r in records]
    values = [sum(m) / len(m) if m else float(imgedit.LOWEST) for m in marks]
    types = [r.category for r in records]
    by_type = {name: [v for v, t in zip(values, types, strict=True) if t == name] for name in types}
    return Scored(
        n=len(records),
        failed=sum(m is None for m in marks),
        as_released=_as_released(records),
        strict={
            # In one group: the mean of marks that are all 1 is no share with a share's interval.
            "overall": metrics.mean_of_groups(values, ["all"] * len(values)),
            "mean_of_types": metrics.mean_of_groups(values, types),
        },
        units=tuple(r.id for r in records),
        by_category={
            name: {"n": len(some), "overall": sum(some) / len(some)}
            for name, some in by_type.items()
        },
        items=tuple(
            {"id": r.id, "category": r.category, "value": v, "reason": _reason(r, m)}
            for r, v, m in zip(records, values, marks, strict=True)
        ),
        policy=POLICY,
    )


def _as_released(records: Sequence[Record]) -> dict[str, float]:
    """The official types, BAGEL's mean over edits, that over types, and lmms-eval's mean over
    edits. Where the official script raises at a reply, it gives no numbers at all."""
    given = [r for r in records if r.status == OK]
    found = {}
    lmms = [sum(imgedit.lmms_marks(r.reply)) / imgedit.MARKS for r in given]
    if records:  # an edit without a reply counts 0 there
        found["lmms_eval"] = sum(lmms) / len(records)
    averages = {r.id: imgedit.average(r.reply) for r in given}
    if any(one.status not in (imgedit.OK, imgedit.DROPPED) for one in averages.values()):
        return found
    scores = {id: one.value for id, one in averages.items() if one.value is not None}
    means = imgedit.type_means(scores, {r.id: r.category for r in records})
    overall = imgedit.overall(scores)
    if overall is None:
        return found
    return {"overall": overall, "mean_of_types": imgedit.mean_of_types(means), **means, **found}


def _reason(record: Record, marks: tuple[int, int, int] | None) -> str:
    if record.status != OK:
        return f"no reply: {record.status}"
    if marks is None:
        return "no three marks of 1 to 5 in the reply"
    lines = [line for line in record.reply.splitlines() if "reasoning:" in line.lower()]
    why = lines[0].partition(":")[2].strip(" *") if lines else ""
    return f"{', '.join(map(str, marks))} of 5. {why}".strip()
