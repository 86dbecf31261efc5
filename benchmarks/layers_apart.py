"""What a written token costs with layers apart, and with layers scanned, in turn in one process.

    python benchmarks/layers_apart.py                     # 12 layers of width 1024, one row
    python benchmarks/layers_apart.py --layers 28 --width 512 --rows 4

The weights are random, in float32. Scanned is the stack behind a stacked cache, as drawing runs it,
which does not put the token into the cache. Both read one token after the other in a loop that is
one program; cutting the layers apart before it counts.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp

from srum_jax.core import param_tree
from srum_jax.models.bagel import mot
from srum_jax.models.bagel.model_config import LLMConfig


def scanned(params, cfg: LLMConfig, x: jax.Array, cache: mot.Cache) -> tuple[jax.Array, mot.Cache]:
    """`mot.next_token` by a scan over stacked layers."""
    x, _ = mot.stack_behind(params, cfg, x, x[:, :0], [cache])
    return x, cache


@functools.partial(jax.jit, static_argnames=("cfg", "tokens", "apart"))
def write(params, cache: mot.Cache, x: jax.Array, *, cfg: LLMConfig, tokens: int, apart: bool):
    """`tokens` steps, each on what the one before gave."""
    if apart:
        params, cache = mot.apart(params), mot.WritingCache.of(cache)
    step = mot.next_token if apart else scanned

    def turn(_, state):
        return step(params, cfg, *state)

    return jax.lax.fori_loop(0, tokens, turn, (x, cache))[0]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sizes = {"layers": 12, "width": 1024, "rows": 1, "slots": 256, "tokens": 16, "repeats": 7}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    cfg = LLMConfig(a.width, a.layers, heads=8, kv_heads=2, ffn=11 * a.width // 4, vocab=1)
    params = param_tree.init(mot.specs(cfg), jax.random.key(0))
    kv = jnp.zeros((a.layers, a.rows, a.slots, cfg.kv_heads, cfg.head_dim))
    cache = mot.Cache(kv, kv, jnp.zeros(a.rows, jnp.int32), jnp.zeros(a.rows, jnp.int32))
    x = jax.random.normal(jax.random.key(1), (a.rows, 1, a.width))
    calls, compiling, took = {}, {}, {"scanned": [], "apart": []}
    for name in took:
        start = time.perf_counter()
        given = (params, cache, x)
        how = dict(cfg=cfg, tokens=a.tokens, apart=name == "apart")
        calls[name] = write.lower(*given, **how).compile()
        compiling[name] = time.perf_counter() - start
    one = {
        name: write(params, cache, x, cfg=cfg, tokens=1, apart=name == "apart") for name in calls
    }
    off = float(jnp.max(jnp.abs(one["scanned"] - one["apart"])))
    for _ in range(a.repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(params, cache, x))
            took[name].append(1000 * (time.perf_counter() - start) / a.tokens)
    print(f"{a.layers} layers of width {a.width}, {a.rows} rows, float32, {jax.default_backend()}")
    print(f"largest difference of the two after a token {off:.1e}\n")
    print("| layers | ms a token | range | compiling, s |\n|---|--:|--:|--:|")
    for name, each in took.items():
        low, middle, high = min(each), statistics.median(each), max(each)
        print(f"| {name} | {middle:.1f} | {low:.1f}–{high:.1f} | {compiling[name]:.1f} |")
    ratios = [a / b for a, b in zip(took["scanned"], took["apart"], strict=True)]
    print(f"\nscanned / apart, turn by turn: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
