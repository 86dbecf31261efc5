"""Where metrics go: one JSON object a line in a file, and a progress bar with the time left."""

import json
import math
from collections.abc import Mapping

from etils import epath
from tqdm import tqdm


class Writer:
    """Appends rows to `path` (JSONL) and shows the latest in a progress bar on stderr.

    Resuming at `start` drops rows of later steps first, so that no step stands twice.
    """

    def __init__(self, path, *, steps: int, start: int, title: str):
        self.path = epath.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [r for r in read(self.path) if r["step"] <= start] if self.path.exists() else []
        temporary = self.path.parent / f".{self.path.name}.tmp"
        temporary.write_text("".join(json.dumps(r) + "\n" for r in rows))
        temporary.replace(self.path)
        self.file = self.path.open("a")
        self.bar = tqdm(total=steps, initial=start, desc=title, unit="step", mininterval=1.0)

    def advance(self, step: int) -> None:
        """Moves the bar to `step` finished steps."""
        self.bar.update(step - self.bar.n)

    def write(self, row: Mapping[str, float]) -> None:
        """One row; a number that is not finite is written as a string ("nan"), as JSON has none."""
        clean = {
            k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in row.items()
        }
        self.file.write(json.dumps(clean) + "\n")
        self.file.flush()
        shown = {k: f"{v:.4g}" for k, v in row.items() if k in ("loss", "ce", "mse", "accuracy")}
        self.bar.set_postfix(shown, refresh=False)

    def close(self) -> None:
        self.file.close()
        self.bar.close()


def read(path) -> list[dict]:
    """Rows of a metrics file; a torn last line (a killed run) is left out."""
    rows = []
    for line in epath.Path(path).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
