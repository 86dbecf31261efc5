"""A case of benchmarks' scorers: a folder of JSON files, each with replies and official scores.

`check(content)` of the module that is called like a file asserts everything in it.
"""

import dataclasses
import importlib
import json
import pathlib

SECTIONS = (
    *("vqav2", "textvqa", "gqa_anls_relaxed", "pope", "mme", "mmbench", "mmmu", "video_mcq"),
    *("captions", "geneval", "geneval2", "t2i_compbench", "compbench_srum", "wise", "gedit"),
    "imgedit",
)


@dataclasses.dataclass(frozen=True)
class EvalsCase:
    """The folder of the files."""

    folder: pathlib.Path

    @property
    def name(self) -> str:
        return self.folder.name

    @classmethod
    def is_case(cls, folder: pathlib.Path) -> bool:
        return any((folder / f"{name}.json").is_file() for name in SECTIONS)

    def sections(self) -> list[str]:
        return [name for name in SECTIONS if (self.folder / f"{name}.json").is_file()]

    def check(self, section: str) -> None:
        content = json.loads((self.folder / f"{section}.json").read_text())
        importlib.import_module(f"golden_evals.{section}").check(content)
