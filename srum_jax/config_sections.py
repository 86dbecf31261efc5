"""The sections of a run's configuration as frozen dataclasses, without defaults.

The values, with a comment for every key, are in `configs/base.py`; the checks and the way in are in
`srum_jax/config.py`, through which everything else imports these.
"""

import dataclasses
import typing
from typing import Literal

Stage = Literal[
    "autoencoder",
    "pretrain",
    "ingest",
    "generate",
    "score",
    "train",
    "evaluate",
    "export",
    "report",
]
STAGES: tuple[str, ...] = typing.get_args(Stage)  # in the order a run may name them


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int
    fsdp: int
    tensor: int
    context: int


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Seconds, between the processes of a run."""

    init_timeout: int
    heartbeat_timeout: int
    shutdown_timeout: int


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    dtype: Literal["float32", "bfloat16"]
    remat: Literal["none", "dots", "full"]
    attention: Literal["auto", "dense", "chunked", "splash", "cudnn", "pallas"]
    cpu_devices: int
    cache_dir: str


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    size: tuple[int, int]  # pixels, height and width
    steps: int
    shift: float
    guidance: float
    image_guidance: float
    image_alone: bool
    guidance_interval: tuple[float, float]
    renorm: Literal["none", "global", "channel", "text_channel", "batch"]
    renorm_min: float
    batch: int


@dataclasses.dataclass(frozen=True)
class IngestConfig:
    source: str
    images: str
    latents: Literal["mean", "sampled", "resample"]
    rejects: float
    batch: int
    shard_size: int


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    prompts: str
    rejects: float
    count: int
    candidates: int
    guidance: tuple[float, ...]  # of each round's candidates
    shard_size: int


@dataclasses.dataclass(frozen=True)
class SamConfig:
    """Segment Anything, for the proposer "sam"."""

    weights: str
    points: int
    batch: int
    min_iou: float
    min_stability: float


@dataclasses.dataclass(frozen=True)
class WrittenConfig:
    """The read-out "written"."""

    think: bool
    max_tokens: int
    attempts: int
    temperature: float
    batch: int


@dataclasses.dataclass(frozen=True)
class ExternalConfig:
    """A judge over the network."""

    url: str
    model: str
    key_env: str
    timeout: float
    attempts: int
    concurrency: int


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    judge: Literal["self", "external", "ensemble"]
    min_judges: int
    readout: Literal["logits", "written"]
    view: Literal["crop", "outline", "coordinates"]
    compare: int
    proposers: tuple[Literal["components", "grid", "sam", "self", "file"], ...]
    grid: int
    boxes: str
    verify: float
    min_area: float
    max_area: float
    overlap: float
    regions: int
    margin: int
    crop: int
    batch: int
    shard_size: int
    sam: SamConfig
    written: WrittenConfig
    external: ExternalConfig


@dataclasses.dataclass(frozen=True)
class LanesConfig:
    und: int
    gen: int
    vit: int
    labels: int
    images: int
    regions: int


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    optimizer: Literal["adamw", "muon"]
    learning_rate: float
    adam_learning_rate: float
    warmup: int
    schedule: Literal["constant", "cosine", "linear"]
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """What every training stage shares: one loop (`training/loop.py`), one optimiser."""

    steps: int
    micro_batches: int
    optim: OptimConfig
    ema: float
    checkpoint_every: int
    keep: int
    log_every: int
    max_bad_steps: int


@dataclasses.dataclass(frozen=True)
class PackedConfig(LoopConfig):
    """What `train` and `pretrain` share beyond: packed rows, one timestep distribution."""

    rows: int
    lanes: LanesConfig
    timestep_mean: float
    timestep_std: float
    timestep_shift: float
    text_dropout: float


@dataclasses.dataclass(frozen=True)
class MonitorConfig:
    """What the model in training is asked on the way, and what stops the run."""

    prompts: int
    candidates: int
    every: int
    questions: int
    min_score: float
    min_diversity: float
    min_agreement: float
    patience: int


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapters, for train.trainable "lora"."""

    rank: int
    alpha: float
    experts: Literal["gen", "all"]


@dataclasses.dataclass(frozen=True)
class TrainConfig(PackedConfig):
    objective: Literal["sft", "srum_release", "srum_paper", "srum_advantage", "nft"]
    rewards: Literal["both", "image", "regions"]
    map_sampling: Literal["centre", "area"]
    candidates: int
    select: Literal["all", "best_of_k"]
    min_gain: float
    min_score: float
    trainable: Literal["gen", "all", "lora"]
    lora: LoraConfig
    lambda_constraint: float
    repulsion_cap: float
    advantage_scale: float
    nft_beta: float
    anchor: float
    max_drift: float
    monitor: MonitorConfig


@dataclasses.dataclass(frozen=True)
class PretrainConfig(PackedConfig):
    generation_images: int
    edit_images: int
    questions: int
    multi_image_every: int
    multi_image_lanes: LanesConfig
    text_weight: float
    label_weights: Literal["token", "sample", "square"]
    latents: int
    edits: int
    evaluate_every: int


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig(LoopConfig):
    batch: int
    kl_weight: float


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    prompts: str
    count: int
    questions: int
    multi_image_questions: int
    captions: int
    edits: int
    best_of: int
    best_of_prompts: int
    batch: int
    seed: int


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    dtype: Literal["float32", "bfloat16"]
    layout: Literal["official", "sharded"]


@dataclasses.dataclass(frozen=True)
class LogConfig:
    writers: tuple[Literal["tensorboard", "wandb"], ...]
    wandb_project: str
    profile: tuple[int, int]  # first step, number of steps


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. The comment of every key is in `configs/base.py`."""

    model: Literal["shapes", "bagel_7b_mot"]
    weights: str
    weights_base: str
    seed: int
    rounds: int
    stages: tuple[Stage, ...]
    mesh: MeshConfig
    distributed: DistributedConfig
    compute: ComputeConfig
    sample: SampleConfig
    ingest: IngestConfig
    generate: GenerateConfig
    score: ScoreConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    pretrain: PretrainConfig
    autoencoder: AutoencoderConfig
    log: LogConfig
