"""What keys of online learning say about each other: rounds that go on from one another, and
policy gradients over the steps by which candidates were drawn.
"""

from collections.abc import Iterator

from srum_jax.configs.base import Config


def contradictions(cfg: Config) -> Iterator[str]:
    """A line for each."""
    yield from _rounds(cfg)
    yield from _steps(cfg)


def _rounds(cfg: Config) -> Iterator[str]:
    c = cfg.train
    if c.trainable == "lora" and (c.carry or c.anchor_to == "first"):
        yield (
            'train.trainable = "lora": every round begins new adapters beside weights that hold '
            'the former ones; train.carry and train.anchor_to = "first" are for "gen" and "all"'
        )
    if c.carry and "adjust" in cfg.stages:
        yield (
            "train.carry goes on from what was trained, not from what the stage adjust chose of "
            "it: leave one of them out"
        )
    if c.carry and c.use == "best":
        yield (
            'train.carry goes on from the end of a round, and train.use = "best" leaves the '
            'weights of another step: set it to "last"'
        )


def _steps(cfg: Config) -> Iterator[str]:
    c, g = cfg.train, cfg.generate
    learns, steps = c.objective == "flow_grpo", g.steps or cfg.sample.steps
    if learns != bool(g.stochastic_steps):
        yield (
            f"generate.stochastic_steps = {g.stochastic_steps}: steps by noise are what "
            f'train.objective = "flow_grpo" learns from, got "{c.objective}": set both or none'
        )
    if g.stochastic_steps > steps:
        yield f"generate.stochastic_steps = {g.stochastic_steps} is more than the {steps} steps"
    if not learns:
        return
    # The model that learns must give a step the probability that the one that drew gave it.
    wanted = {
        "generate.guidance must be scales of at most 1.0, which is none": bool(g.guidance)
        and max(g.guidance) <= 1,
        "sample.image_guidance must be 1.0, which is none": cfg.sample.image_guidance <= 1,
        "generate.think must be off": not g.think,
        "train.text_dropout must be 0.0": c.text_dropout == 0,
        'train.rewards must be "image", whose advantage all steps of a picture share': c.rewards
        == "image",
        "ingest has no steps; leave it out": "ingest" not in cfg.stages,
        "train.replay must be 0.0: edits have no steps": c.replay == 0,
        "train.candidates or generate.candidates must be 2 or more, which are compared": (
            c.candidates or g.candidates
        )
        >= 2,
    }
    yield from (f'train.objective = "flow_grpo": {one}' for one, fits in wanted.items() if not fits)
