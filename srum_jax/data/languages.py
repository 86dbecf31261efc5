"""Plain English for models that read the language of a world and nothing else.

Which language that is, a checkpoint says in its generation settings; most read any text.
"""

from typing import Literal

from srum_jax.core import registry

Kind = Literal["prompt", "question", "instruction"]


def normalise(language: str, text: str, kind: Kind) -> str:
    """`text` in the words of `language`, a key of `registry.LANGUAGES`; "": as it is.

    Raises BadInput naming what cannot be said there, and what is near.
    """
    return registry.load(registry.LANGUAGES, language).normalise(text, kind) if language else text
