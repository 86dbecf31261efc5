"""Captions of COCO pictures, and of data sets in its two file formats: CIDEr, BLEU, ROUGE-L.

Chen et al., "Microsoft COCO Captions" (arXiv 1504.00325); the test split is Karpathy's, whose file
holds several data sets. Scored as pycocoevalcap does, whose tokeniser is here without Java; METEOR
and SPICE need Java and are not computed. An image's CIDEr counts how rare an n-gram is among all
images that were asked: a sample of the data has another scale than the whole. Intervals draw the
images anew and hold that fixed.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.errors import BadInput, quoted
from srum_jax.data import images
from srum_jax.evals import benchmark, official_files
from srum_jax.evals.benchmark import About, Benchmark, Data, LazySequence
from srum_jax.evals.official_files import Row
from srum_jax.evals.scorers import captions, metrics, ptb
from srum_jax.evals.suite import Metric, Record, Replies, Requests, Scored, TextRequest

KARPATHY = ("dataset_coco.json", "dataset_flickr30k.json", "dataset_flickr8k.json")
ANNOTATIONS = (
    "captions_val2017.json",
    "captions_val2014.json",
    "nocaps_val_4500_captions.json",
)
ABOUT = About(
    title="COCO captions",
    needs="dataset_coco.json (Karpathy's splits, also of Flickr30k and Flickr8k) or "
    "captions_val2017.json, captions_val2014.json, nocaps_val_4500_captions.json (COCO's format), "
    "by itself or in a folder or its annotations/; the pictures beside it, in val2017/, val2014/ "
    "or images/",
    licence="COCO annotations CC BY 4.0, pictures under their Flickr terms; pycocoevalcap's rules, "
    "not its code",
    dialect="pycocoevalcap, PTB tokens without Java; METEOR and SPICE not computed",
    unit="images",
    best=10.0,
)
PLACES = ("val2017", "val2014", "images", "Images", "flickr30k-images")
SPLIT = "test"  # of Karpathy's
PROMPT = "Provide a one-sentence caption for the provided image."  # lmms-eval's
MAX_TOKENS = 64
RESULTS = "captions_results.json"
POLICY = (
    "every image counts, one without a caption as with an empty one; intervals draw images anew, "
    "the rarity of n-grams held as it is among all images asked"
)


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A picture and what people said of it; number: its id in the file."""

    id: str
    category: str
    number: int
    references: tuple[str, ...]
    picture: epath.Path


@dataclasses.dataclass(frozen=True)
class CocoCaptions(Benchmark):
    """pictures: those that are asked about."""

    pictures: Sequence[Captioned]
    data: Data
    name = "coco_captions"
    about = ABOUT

    def requests(self, model: str) -> Requests:
        """One caption of each picture."""
        return Requests(texts=[_request(one) for one in self.pictures])

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """The results file that `COCO.loadRes` reads: a list of {image_id, caption}."""
        rows = [
            {"image_id": one.number, "caption": said}
            for one, said in zip(self.pictures, replies.texts, strict=True)
        ]
        files.write_text(folder / RESULTS, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


def make(cfg: Config, data: str, language: str) -> CocoCaptions:
    """The pictures of the file `data`, or of the first known one in that folder. Raises BadInput
    naming file and item."""
    path = _file(benchmark.data_folder("coco_captions", data))
    found, variant = read(path)
    c = cfg.evaluate
    asked = benchmark.sampled(found, [one.category for one in found], c.limit, c.seed)
    digest = benchmark.sha256(path)
    return CocoCaptions(asked, Data(str(path), digest, len(asked), len(found), variant))


def _file(folder: epath.Path) -> epath.Path:
    for place in (folder, folder / "annotations"):
        for name in (*KARPATHY, *ANNOTATIONS):
            if (place / name).is_file():
                return place / name
    return official_files.file(folder, *KARPATHY, *ANNOTATIONS)


def read(path: epath.Path) -> tuple[list[Captioned], str]:
    """The pictures of a file with their captions, and which ones they are: those of Karpathy's test
    split, or all of COCO's format. Raises BadInput."""
    value = files.read_object(path)
    if "annotations" in value:
        return _annotated(path, value), path.name
    rows = official_files.json_rows(path, "images")
    rows = [row for row in rows if row.get("split", str) == SPLIT]
    if not rows:
        raise BadInput(f'{path}: holds no picture whose "split" is "{SPLIT}"')
    field = "cocoid" if "cocoid" in rows[0].value else "imgid"
    numbers = [row.get(field, int) for row in rows]
    official_files.distinct(numbers, rows, field)
    references = [[one.get("raw", str) for one in row.rows("sentences")] for row in rows]
    return _pictures(path, rows, numbers, references, "filename"), f"Karpathy {SPLIT} split"


def _annotated(path: epath.Path, value: Mapping) -> list[Captioned]:
    """Of COCO's format: pictures by their ids, and a caption an annotation."""
    rows = official_files.json_rows(path, "images")
    numbers = [row.get("id", int) for row in rows]
    official_files.distinct(numbers, rows, "id")
    references: dict[int, list[str]] = {number: [] for number in numbers}
    for row in official_files.listed(value["annotations"], f"{path}, annotations"):
        number = row.get("image_id", int)
        if number not in references:
            raise BadInput(f'{row.where}: no picture of "images" has the id {number}')
        references[number].append(row.get("caption", str))
    return _pictures(path, rows, numbers, list(references.values()), "file_name")


def _pictures(
    path: epath.Path,
    rows: Sequence[Row],
    numbers: Sequence[int],
    references: Sequence[Sequence[str]],
    field: str,
) -> list[Captioned]:
    for row, some in zip(rows, references, strict=True):
        if not some:
            raise BadInput(f"{row.where}: nobody's caption of it is in the file")
    folder = path.parent.parent if path.parent.name == "annotations" else path.parent
    places = dict.fromkeys([*PLACES, *(row.get("filepath", str, "") for row in rows)])
    places = [place for place in places if place and not official_files.leads_out(place)]
    names = [row.get(field, str) for row in rows]
    found = official_files.pictures(folder, names, rows, *places)
    return [
        Captioned(str(number), row.get("domain", str, "all"), number, tuple(some), picture)
        for row, number, some, picture in zip(rows, numbers, references, found, strict=True)
    ]


def _request(one: Captioned) -> TextRequest:
    pictures = LazySequence((one.picture,), images.load)
    truth = {"image_id": one.number, "references": list(one.references)}
    return TextRequest(one.id, one.category, pictures, PROMPT, MAX_TOKENS, truth)


def score(records: Sequence[Record]) -> Scored:
    """CIDEr-D, BLEU 1-4 and ROUGE-L over all images, in pycocoevalcap's scales (papers print them
    times 100)."""
    said = [ptb.tokenize(r.reply) for r in records]
    references = [[ptb.tokenize(text) for text in _references(r)] for r in records]
    ciders = captions.cider(said, references)
    strict = {"CIDEr": _mean(ciders), **captions.bleu(said, references)}
    strict["ROUGE_L"] = _mean(captions.rouge_l(said, references))
    groups = [r.category for r in records]
    return Scored(
        n=len(records),
        failed=sum(not r.reply.strip() for r in records),
        as_released={name: metric.number for name, metric in strict.items()},
        strict=strict,
        units=tuple(r.id for r in records),
        by_category={
            name: {"n": groups.count(name), "CIDEr": float(ciders[_places(groups, name)].mean())}
            for name in dict.fromkeys(groups)
        },
        items=tuple(
            {"id": r.id, "category": r.category, "value": float(value), "reason": _reason(r)}
            for r, value in zip(records, ciders, strict=True)
        ),
        policy=POLICY,
    )


def _mean(values: np.ndarray) -> Metric:
    """In one group: the mean of scores that are all 0 is no share with a share's interval."""
    return metrics.mean_of_groups(values, ["all"] * len(values))


def _places(groups: Sequence[str], name: str) -> list[int]:
    return [i for i, group in enumerate(groups) if group == name]


def _references(record: Record) -> list[str]:
    match record.truth:
        case {"references": [*texts]} if texts and all(isinstance(t, str) for t in texts):
            return texts
    raise BadInput(f"the caption of {record.id} has no references, but {quoted(record.truth)}")


def _reason(record: Record) -> str:
    return f"people said: {'; '.join(_references(record)[:2])}"
