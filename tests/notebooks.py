"""Runs the notebooks of launch/colab from a clean kernel.

`python tests/notebooks.py [NAME…]` stores them with what they show, as readers find them.
"""

import os
import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).parents[1] / "launch" / "colab"


def execute(name, folder, **settings):
    """The notebook of that name with its outputs, run in `folder`; `settings` go on top of the
    environment."""
    import nbclient
    import nbformat

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # and of a line that was written over, its last state
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=os.environ | settings)
    return notebook


def shown(notebook):
    """The outputs of each code cell as one string: text and markup."""
    found = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            outputs = [output.get("data", output) for output in cell["outputs"]]
            parts = [o.get("text/html") or o.get("text") or "" for o in outputs]
            found.append("".join(p if isinstance(p, str) else "".join(p) for p in parts))
            plain = [o["text/plain"] for o in outputs if "text/html" not in o and "text/plain" in o]
            assert not plain, f"a bare value is shown: {plain}"
    return found


def settled(text):
    """A log without the progress bars that its lines ran into."""
    return re.sub(r"^[^\n]*\|[^\n|]*\](?=\d\d:\d\d:\d\d )", "", text, flags=re.MULTILINE)


def store(name):
    """Runs the notebook where it lies and writes it there."""
    import nbformat

    notebook = execute(name, FOLDER)
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = settled(output.text)
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        store(name)
