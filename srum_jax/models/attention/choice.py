"""Which back-end a run takes: the one its config names, or the one that fits the machine."""

import functools

from absl import logging

from srum_jax.models.attention import splash

# Tokens of a row whose scores are best held at once; on a CPU less than a block of `chunked`.
_SHORT, _SHORT_ON_CPU = 2048, 255


def choose(
    requested: str, *, platform: str, tokens: int, head_dim: int, dtype: str, gap: str = ""
) -> str:
    """The back-end for rows of `tokens` tokens; logged with the reason, once a process.

    `requested` is the config's compute.attention; `platform` a device's, "cpu", "gpu" or "tpu";
    `dtype` that of matrix products; `gap` why some token's keys are not one interval of packed
    order, or "". Raises ValueError where a back-end is asked for by name that cannot do the run.
    """
    platform = {"cuda": "gpu"}.get(platform, platform)  # as a GPU that is not here calls itself
    if requested == "auto":
        name, reason = _fitting(platform, tokens, head_dim, dtype, gap)
    else:
        name, reason = requested, "as compute.attention says"
        for problem in _problems(name, platform, tokens, head_dim, dtype, gap):
            raise ValueError(
                f'compute.attention = "{name}": {problem}; take "auto", or "chunked", which does '
                "every mask everywhere"
            )
    _say(name, reason)
    return name


@functools.cache
def _say(name: str, reason: str) -> None:
    logging.info("attention: %s, %s", name, reason)


def _problems(name, platform, tokens, head_dim, dtype, gap):
    """What keeps a back-end from doing a run."""
    if name == "splash":
        if platform != "tpu":
            yield f"it runs on TPUs, and this is a {platform}"
        if tokens > splash.LONGEST:
            yield f"it reads rows of at most {splash.LONGEST} tokens, and these have {tokens}"
        if gap:
            yield f"it needs every token's keys in one interval. {gap}"
    if name == "cudnn":
        if platform != "gpu":
            yield f"it runs on NVIDIA GPUs, and this is a {platform}"
        if dtype not in ("bfloat16", "float16"):
            yield f"it computes in bfloat16, and compute.dtype is {dtype}"
        if head_dim % 8 or head_dim > 128:
            yield f"it has heads of a multiple of 8 up to 128 features, and these have {head_dim}"


def _fitting(platform, tokens, head_dim, dtype, gap) -> tuple[str, str]:
    def problem(name):
        return next(_problems(name, platform, tokens, head_dim, dtype, gap), "")

    own = {"tpu": "splash", "gpu": "cudnn"}.get(platform)
    if own and not problem(own):
        return own, f"the kernel of this machine ({platform})"
    because = f"not {own}: {problem(own)}" if own else f"a {platform} has no kernel of its own"
    if tokens <= (_SHORT_ON_CPU if platform == "cpu" else _SHORT):
        return "dense", f"{because}; rows of {tokens} tokens are short"
    return "chunked", f"{because}; rows of {tokens} tokens are too long for dense scores"
