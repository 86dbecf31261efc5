"""The system texts that ask BAGEL to think first (original: `inferencer.py`, to the letter), and
where its thought ends."""

THINK_UNDERSTANDING = (
    "You should first think about the reasoning process in the mind and then provide the user with "
    "the answer. \nThe reasoning process is enclosed within <think> </think> tags, i.e. <think> "
    "reasoning process here </think> answer here"
)
THINK_GENERATION = (
    "You should first think about the planning process in the mind and then generate the image. \n"
    "The planning process is enclosed within <think> </think> tags, i.e. <think> planning process "
    "here </think> image here"
)


def thought_and_answer(written: str) -> tuple[str, str] | None:
    """(what was thought, what stands behind </think>); None where the thought did not end."""
    thought, mark, answer = written.rpartition("</think>")
    return (thought.strip().removeprefix("<think>").strip(), answer.strip()) if mark else None
