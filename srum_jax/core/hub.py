"""Models of the Hugging Face Hub by name, through `huggingface_hub` where that is installed.

What was fetched lies in its cache (`HF_HOME`); the files of a model that are read here are fetched,
no others.
"""

import importlib.util
import re

from etils import epath

from srum_jax.core.errors import BadInput, in_a_line

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_FILES = ["*.json", "*.safetensors", "merges.txt"]


def is_name(text: str) -> bool:
    """Whether `text` may name a repository: "org/name", or "org/name@revision"."""
    return _NAME.fullmatch(text) is not None


def folder(name: str) -> epath.Path:
    """The local copy of a repository, fetched where it is not there yet.

    revision: a branch, a tag or a commit, default "main". Without a network what the cache has of
    it is taken. Raises BadInput where the package is not installed, or the hub has none of that
    name, or does not give it.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise BadInput(
            f"{name}: no such folder; as a name on the Hugging Face Hub it needs huggingface_hub: "
            "pip install huggingface_hub"
        )
    import huggingface_hub
    from huggingface_hub import errors

    repository, _, revision = name.partition("@")
    try:
        found = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=_FILES
        )
    except errors.GatedRepoError as e:
        raise BadInput(
            f"{name}: its owner wants to be asked: do so on its page, then `hf auth login`"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise BadInput(f"{name}: the repository has no revision {revision or 'main'}") from e
    except errors.RepositoryNotFoundError as e:
        raise BadInput(
            f"{name}: no such folder, and no such repository on the Hugging Face Hub, or a private "
            "one (`hf auth login`)"
        ) from e
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as e:
        raise BadInput(f"{name}: no such folder, nor does the hub give it: {in_a_line(e)}") from e
    return epath.Path(found)
