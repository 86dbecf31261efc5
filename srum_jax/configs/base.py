"""Every key of a run, once: type and range, default, meaning. Whatever else is refused.

A config file starts from `get_config()`, changes a few values and returns the rest as it is; the
command line changes more by `--config.a.b=value`. `srum_jax/config.py` reads types and ranges from
here, and holds what keys say about each other. `_making.py` has the keys of `pretrain` and
`autoencoder`.
"""

import dataclasses
from typing import Annotated, Any, Literal

from srum_jax.configs._making import AutoencoderConfig, PretrainConfig
from srum_jax.core.constraints import (
    Ascending,
    AtLeast,
    Below,
    Between,
    Decay,
    DeviceCount,
    Distinct,
    Fraction,
    LimitsOfLoss,
    NonNegativeFloat,
    NonNegativeInt,
    Path,
    PositiveFloat,
    PositiveInt,
    Seed,
    Share,
    Url,
    VariableName,
)

_Before = Literal["autoencoder", "pretrain", "ingest"]  # a rollout, or in its place
Stage = Literal[_Before, "generate", "score", "train", "evaluate", "adjust", "export", "report"]
_Srum = Literal["srum_release", "srum_positive", "srum_paper", "srum_advantage"]
Objective = Literal["sft", _Srum, "nft", "dpo", "flow_grpo"]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1, at most once, takes the devices that are left."""

    data: DeviceCount = 1  # copies of the parameters; each takes its share of a batch
    fsdp: DeviceCount = -1  # parameters, moments and batch are cut over this axis
    tensor: DeviceCount = 1  # heads, MLP and vocabulary are cut over this axis
    context: DeviceCount = 1  # long sequences are cut over this axis


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How long the processes of a run wait for each other, in seconds."""

    init_timeout: PositiveInt = 300  # at the start, until all are there
    heartbeat_timeout: PositiveInt = 40  # for a sign of life; then all end, with exit code 69
    shutdown_timeout: PositiveInt = 300  # at the end, until all are finished


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How programs are compiled: precision, memory, devices."""

    dtype: Literal["float32", "bfloat16"] = "float32"  # of matrix products; losses stay float32
    # What a training step keeps of its activations for the backward pass; the rest is computed
    # again: none (all is kept) | dots (products with weights are) | full (a layer's input alone is)
    remat: Literal["none", "dots", "full"] = "full"
    # How train and pretrain compute attention: auto (what fits the machine; the log says which and
    # why) | dense (scores of a whole row) | chunked (some keys at a time: long rows, any machine
    # and mask) | splash (a kernel for TPUs, masks of one interval) | cudnn (NVIDIA GPUs, bfloat16)
    attention: Literal["auto", "dense", "chunked", "splash", "cudnn"] = "auto"
    # A CPU counts as this many devices, each with its part of a batch; 0: one. Small models leave a
    # second core idle otherwise. Without effect on accelerators.
    cpu_devices: NonNegativeInt = 0


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How images are sampled, for candidates and for evaluation alike."""

    size: tuple[PositiveInt, PositiveInt] = (32, 32)  # height, width in pixels
    steps: PositiveInt = 16  # Euler steps
    # s of t' = s t / (1 + (s - 1) t): above 1 spends more steps near noise
    shift: PositiveFloat = 4.0
    guidance: NonNegativeFloat = 2.5  # scale of classifier-free text guidance; 1.0 is none
    image_guidance: NonNegativeFloat = 1.0  # the same against the prompt alone, for edits
    # Times t in which guidance acts (1 is noise).
    guidance_interval: Annotated[tuple[Fraction, Fraction], Ascending()] = (0.0, 1.0)
    # Norm of the guided velocity: none | global (an image) | channel (a token) | text_channel |
    # batch (all images of a call at once, as the original's global does)
    renorm: Literal["none", "global", "channel", "text_channel", "batch"] = "none"
    renorm_min: Fraction = 0.0  # smallest factor renorm may apply
    batch: PositiveInt = 64  # images a compiled call
    # Of models that draw token by token, to which steps, shift and renorm say nothing: a token is
    # drawn from softmax(guided logits / temperature); 0.0: the likeliest.
    temperature: NonNegativeFloat = 1.0
    top_k: NonNegativeInt = 0  # of these models: the likeliest tokens that are drawn from; 0: all


@dataclasses.dataclass(frozen=True)
class IngestConfig:
    """Training data that is given, in place of sampled: for the stage ingest."""

    # published:FILE.jsonl (the released SRUM data set) | parquet:GLOB (pictures with captions)
    source: str = ""
    images: Path = ""  # published: folder of the pictures; "": the folder of the file
    # What of the autoencoder's posterior is kept: mean | sampled (one draw, by the seed) | resample
    # (mean and deviation, drawn anew each time a picture is trained on, as the original does)
    latents: Literal["mean", "sampled", "resample"] = "mean"
    rejects: NonNegativeFloat = 0.0  # as generate.rejects: lines that cannot be used
    batch: PositiveInt = 8  # pictures of one size a compiled call
    shard_size: PositiveInt = 64  # pictures


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """The rollout: prompts and the candidates sampled for each."""

    # shapes:train|validation|test, a .txt, .json, .jsonl or .csv file, or a TFDS data set that is
    # on this machine: tfds:NAME[/CONFIG][:VERSION]?split=SPLIT&text=FIELD[&max=NUMBER]
    prompts: str = "shapes:train"
    # Lines that cannot be used and are set aside, in rejects.jsonl, before the run stops: below 1 a
    # share of all, from 1 on a number; 0.0: none.
    rejects: NonNegativeFloat = 0.0
    # Prompts a round: the first takes them from the front, the next the following ones; a list that
    # ends begins again, with other noise. 64 more, at most a tenth of a list, are never trained on.
    count: PositiveInt = 400
    # Which come first, of files and data sets: sampled (of every category its share, by the seed)
    # | file (as they stand there). A world's are mixed as it makes them.
    order: Literal["sampled", "file"] = "sampled"
    think: bool = False  # plans in words before it draws; it is trained on prompts without plans
    think_tokens: PositiveInt = 1000  # of a plan at most
    candidates: PositiveInt = 8  # images a prompt (K)
    # Scale of text guidance of the candidates of each round, the last one for all later rounds;
    # (): sample.guidance. Training distils guidance into the weights, so later rounds need less.
    guidance: tuple[NonNegativeFloat, ...] = ()
    steps: NonNegativeInt = 0  # of a candidate; 0: sample.steps
    # Of these the first so many are by noise, and kept for flow_grpo to learn from; 0: none.
    stochastic_steps: NonNegativeInt = 0
    noise: PositiveFloat = 0.7  # a of their sigma_t = a sqrt(t / (1 - t))
    shard_size: PositiveInt = 64  # images: what is lost at most when the stage is killed
    # What is edited too, for train.replay: WORLD:SPLIT, or a .jsonl file of {"image": a picture's
    # path beside it, "instruction": text}; "": nothing.
    edits: str = ""
    edit_count: PositiveInt = 400  # the first so many of them, in every round


@dataclasses.dataclass(frozen=True)
class SamConfig:
    """Segment Anything, for the proposer "sam"."""

    weights: Path = ""  # folder with config.json and model.safetensors of ViT-B, L or H
    points: PositiveInt = 32  # a side of the grid of points that masks are asked for
    batch: PositiveInt = 64  # points a compiled call
    min_iou: Fraction = 0.88  # as Segment Anything expects it of its own mask
    min_stability: Fraction = 0.95  # intersection over union of a mask under other thresholds


@dataclasses.dataclass(frozen=True)
class WrittenConfig:
    """The read-out "written"."""

    think: bool = True  # before every answer
    max_tokens: PositiveInt = 1024  # an answer
    attempts: PositiveInt = 3  # answers asked for at most; only what has no score is asked again
    temperature: PositiveFloat = 0.7  # of the second answer and on; the first is greedy
    batch: PositiveInt = 16  # answers written at a time


@dataclasses.dataclass(frozen=True)
class ExternalConfig:
    """A judge over the network."""

    url: Url = ""  # of an OpenAI-compatible server, such as "http://localhost:8000/v1"
    model: str = ""  # its name there
    key_env: VariableName = ""  # environment variable with the key; "": no key
    timeout: PositiveFloat = 120.0  # seconds for a whole reply
    attempts: PositiveInt = 4  # requests for one answer, with growing pauses between them
    concurrency: PositiveInt = 8  # requests at a time


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """The judge: who scores, what is asked, which regions."""

    # Who scores: self (the model that drew) | external (score.external) | ensemble (both; the mean)
    judge: Literal["self", "external", "ensemble"] = "self"
    min_judges: PositiveInt = 1  # ensemble: fewer scores than so many are no score
    # How the model's own scores are read: logits (soft answers to questions made from the prompt)
    # | written (the paper's: reasons and scores in words). An external judge always writes.
    readout: Literal["logits", "written"] = "logits"
    # How a region is shown: crop | outline (drawn on the image) | coordinates (in words, the
    # paper's). A model of few words, as the shapes base, knows crops alone.
    view: Literal["crop", "outline", "coordinates"] = "crop"
    # So many candidates are scored a second way too, to be compared in the report: by the external
    # judge where score.external.url names one, else by the model's other read-out. 0: none.
    compare: NonNegativeInt = 0
    # Who finds regions: components (of the foreground, shapes only) | grid | sam (score.sam) | self
    # (the model itself, in words) | file (score.boxes). The first one's scores train; the others
    # are measured beside it.
    proposers: Annotated[
        tuple[Literal["components", "grid", "sam", "self", "file"], ...], Distinct(1)
    ] = ("components", "grid")
    grid: PositiveInt = 2  # cells a side, for the proposer "grid"
    boxes: Path = ""  # for "file": JSONL of {"id": "<prompt id>-<k>", "boxes": [[x0,y0,x1,y1]]}
    # Least probability that a region shows a kind of thing that the prompt names; others are set
    # aside as irrelevant. 0.0: all regions count. Read by the read-out logits.
    verify: Fraction = 0.0
    min_coverage: Fraction = 0.4  # an image of whose answers fewer could be read has no score
    min_area: Fraction = 0.0  # of a region, as a share of the image
    max_area: Fraction = 1.0  # the same
    overlap: Fraction = 0.9  # intersection over union from which the smaller of two is a repeat
    regions: PositiveInt = 16  # an image at most, evenly over sizes
    margin: NonNegativeInt = 1  # pixels added around a region before it is cropped
    # Longer side of a crop as the model reads it by logits; 0: as large as its image, which is
    # costly for large ones.
    crop: NonNegativeInt = 0
    batch: PositiveInt = 32  # pictures or crops a compiled call
    shard_size: PositiveInt = 64  # images
    sam: SamConfig = SamConfig()
    written: WrittenConfig = WrittenConfig()
    external: ExternalConfig = ExternalConfig()


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its learning rate over the steps."""

    optimizer: Literal["adamw", "muon"] = "muon"  # muon: of block matrices; AdamW of the rest
    learning_rate: PositiveFloat = 1e-3  # at the end of the warm-up
    adam_learning_rate: PositiveFloat = 1e-3  # muon: the same for the leaves that AdamW updates
    warmup: NonNegativeInt = 20  # steps of linear rise from 0; at most all of a short run
    # After the warm-up: constant | linear (to 0) | cosine (to 1 %).
    schedule: Literal["constant", "cosine", "linear"] = "linear"
    b1: Decay = 0.9  # decay of the mean of gradients; Muon's momentum
    b2: Decay = 0.95  # decay of the mean of squared gradients
    eps: PositiveFloat = 1e-15  # added to the root of that mean
    weight_decay: NonNegativeFloat = 0.0  # decoupled, times the learning rate
    clip_norm: NonNegativeFloat = 1.0  # largest norm of the trained gradient; 0.0: no limit


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """What every training needs of the loop (`training/loop.py`) and the optimiser."""

    steps: PositiveInt = 600  # optimiser steps
    # Gradient accumulation: parts a step's rows are cut into, to save memory; same result.
    micro_batches: PositiveInt = 1
    optim: OptimConfig = OptimConfig()
    ema: Fraction = 0.98  # decay of the averaged parameters, which are evaluated and exported
    checkpoint_every: PositiveInt = 100  # steps
    keep: PositiveInt = 2  # checkpoints kept
    log_every: PositiveInt = 10  # steps
    max_bad_steps: PositiveInt = 3  # non-finite ones skipped in a row before the run stops (code 4)


@dataclasses.dataclass(frozen=True)
class LanesConfig:
    """Fixed sizes of one packed row; what is padding is computed too, and the log says how much."""

    und: PositiveInt = 60  # text and ViT tokens (U)
    gen: PositiveInt = 64  # latent tokens (G)
    images: PositiveInt = 4  # latent images
    regions: NonNegativeInt = 4  # scored regions a latent image (R)
    vit: NonNegativeInt = 0  # patches of pictures that are edited (P), for train.replay


@dataclasses.dataclass(frozen=True)
class PackedConfig(LoopConfig):
    """What a training on packed rows needs beyond: their number, the distribution of timesteps."""

    rows: PositiveInt = 8  # packed rows a step (B)
    # Raw t = sigmoid(N(mean, std)): a mean above 0 trains more on noise, which is decisive for
    # small models.
    timestep_mean: float = 1.6
    timestep_std: PositiveFloat = 1.4  # see above
    timestep_shift: PositiveFloat = 1.0  # s of sample.shift's formula, for that t; 1.0 is none
    text_dropout: Fraction = 0.1  # share of samples trained without their prompt, for guidance


@dataclasses.dataclass(frozen=True)
class MonitorConfig:
    """Asks the model in training now and then, and stops a run that loses what it had."""

    prompts: NonNegativeInt = 24  # sampled and scored each time; 0: no monitor
    candidates: Annotated[int, AtLeast(2)] = 2  # images a prompt; their difference: the diversity
    every: PositiveInt = 100  # steps
    questions: NonNegativeInt = 64  # about pictures, to see whether understanding is kept
    min_score: NonNegativeFloat = 0.2  # how far the own score may fall below its first value
    # Share of its first value that diversity must keep. With or without a monitor, the entropy of
    # drawn tokens and the gap to prompts without words are named below it; 0.0: never.
    min_diversity: Fraction = 0.3
    min_agreement: Fraction = 0.9  # share of the first answers to the questions that must stay
    patience: PositiveInt = 2  # times in a row that a bound is broken before the run stops


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapters, for train.trainable "lora"."""

    rank: PositiveInt = 16  # of the change to every projection of attention and MLP
    alpha: PositiveFloat = 16.0  # adapters count alpha / rank times
    experts: Literal["gen", "all"] = "gen"  # whose projections: gen keeps all answers | all


@dataclasses.dataclass(frozen=True)
class TrainConfig(PackedConfig):
    """Defaults are the study's winner (research/study); the other objectives stay selectable."""

    lanes: LanesConfig = LanesConfig()
    # sft: plain flow matching | srum_release: as the authors released it | srum_positive: right
    # regions alone, each token by its score | srum_paper: as the paper writes it, signed, its
    # repulsion made bounded | srum_advantage: sft modulated by dense advantages, bounded | nft:
    # DiffusionNFT with dense advantages, bounded | dpo: Diffusion-DPO of pairs, bounded |
    # flow_grpo: policy gradient over the steps by which candidates were drawn, clipped
    objective: Objective = "sft"
    # Scores that weigh the tokens: both | image (regions are ignored) | regions (the image's score
    # is). Selection goes by the image's score whatever this says.
    rewards: Literal["both", "image", "regions"] = "both"
    # What a latent token reads of the regions' scores: centre (the four pixels at its centre, as
    # released: regions thinner than a token vanish between them) | area (its whole cell)
    map_sampling: Literal["centre", "area"] = "centre"
    dilation: NonNegativeInt = 0  # pixels that regions grow on every side before tokens read them
    # Whom scores of regions are charged to: regions (each alone) | objects (of the prompt, whose
    # relations, sizes and missing ones are charged too, each compared with its own kind)
    credit: Literal["regions", "objects"] = "regions"
    candidates: NonNegativeInt = 0  # of each prompt only the first so many count; 0: all
    # Candidates trained on: all | best_of_k (a prompt's best by self-score). Of dpo: the best and
    # the worst (best_of_k), also the second best and the second worst, and so on (all).
    select: Literal["all", "best_of_k"] = "best_of_k"
    # Prompts whose best candidate's score is not at least so far above the mean of all its
    # candidates are left out: what is gained there, the judge knows and the generator does not.
    # Scores range over 2.
    min_gain: Annotated[float, AtLeast(0), Below(2)] = 0.0
    min_gain_quantile: Annotated[float, AtLeast(0), Below(1)] = 0.0  # that share of prompts is too
    # best_of_k: a prompt whose best candidate scores less is left out; and, whatever the judge's
    # scale (with min_score = -1.0), a share of the run's prompts, those whose best scores least.
    min_score: Annotated[float, Between(-1, 1)] = 0.5
    min_score_quantile: Annotated[float, AtLeast(0), Below(1)] = 0.0  # that share
    # gen: the generation expert and its in- and outputs, so that answers cannot change | all: the
    # understanding expert too, through which the text of a prompt is read | lora: adapters alone
    # (train.lora), beside weights that stay in compute.dtype; export merges them
    trainable: Literal["gen", "all", "lora"] = "all"
    lora: LoraConfig = LoraConfig()
    lambda_constraint: NonNegativeFloat = 0.5  # srum_release, srum_paper: of the reference term
    repulsion_cap: NonNegativeFloat = 1.0  # srum_paper: a token weight is at least minus this
    advantage_scale: NonNegativeFloat = 2.0  # srum_advantage: s of alpha = 1 + s A, A in [-1, 1]
    # srum_advantage of a model that draws token by token: how bad tokens are pushed away: ratio (of
    # probabilities to the starting model's, clipped) | unlikelihood
    repulsion: Literal["ratio", "unlikelihood"] = "ratio"
    # Of ratio and flow_grpo: beyond 1 +- clip nothing pulls or pushes on. flow_grpo's ratio is of
    # densities averaged over an image's numbers, so its peers use 1e-5 to 1e-3.
    clip: PositiveFloat = 0.2
    nft_beta: PositiveFloat = 1.0  # nft: beta of alpha = beta A, kappa = beta^2
    dpo_beta: PositiveFloat = 100.0  # dpo: how far a pair is driven apart before it is enough
    # Weight of |v - v0|^2, the pull towards the starting model, added to every objective. 0.0:
    # none, and sft and srum_release then keep no copy of that model.
    anchor: NonNegativeFloat = 0.0
    # rounds > 1: that is the model that the round | the first round started from.
    anchor_to: Literal["round", "first"] = "round"
    # rounds > 1: a round goes on from parameters, moments and place in the schedule that the one
    # before ended with; what draws are the averaged parameters all the same.
    carry: bool = False
    # Share of a step's rows that are own edits (generate.edits), held to v0: against forgetting.
    replay: Annotated[float, AtLeast(0), Below(1)] = 0.0
    # Largest |v - v0|^2, in units of the target's |noise - x0|^2, before the run stops (exit code
    # 4); read where a copy of the starting model is kept. 0.0: no limit.
    max_drift: NonNegativeFloat = 1.0
    monitor: MonitorConfig = MonitorConfig()
    # Weights that the run leaves: last (of its end, or of the last good check where the monitor
    # ended it) | best (of the check with the highest own score; without a monitor the last). Few
    # prompts are drawn in a check, so the stage adjust chooses better, where the run has it.
    use: Literal["last", "best"] = "last"


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What base and trained model are asked, and how much."""

    suites: tuple[str, ...] = ("shapes",)  # NAME or NAME:PATH of its data, as core/registry.py says
    prompts: str = "shapes:test"  # as generate.prompts
    first: NonNegativeInt = 0  # place in that list, from 0, of the first that counts
    count: PositiveInt = 600  # prompts, one image each, the same noise for base and trained
    questions: NonNegativeInt = 800  # VQA: asked of base and trained about held-back pictures
    multi_image_questions: NonNegativeInt = 300  # about two pictures or the frames of a clip
    captions: NonNegativeInt = 150  # written of held-back pictures
    edits: NonNegativeInt = 150  # of held-back pictures, by an instruction
    best_of: Annotated[int, AtLeast(2)] = 4  # images a prompt for best-of-K by self-score
    best_of_prompts: PositiveInt = 200  # prompts it is measured on
    batch: PositiveInt = 100  # pictures with questions a compiled call
    seed: Seed = 1000  # of evaluation noise
    limit: NonNegativeInt = 0  # items of each benchmark, evenly over its categories; 0: all
    think_tokens: NonNegativeInt = 0  # of a thought before it draws and answers; 0: it does not
    frames: NonNegativeInt = 0  # of a clip, of benchmarks about clips; 0: as many as each takes
    # Whom benchmarks ask: self (the model that the round starts from, of both models' pictures) |
    # external (score.external) | both: the first counts, and how far they agree is told.
    judges: Annotated[tuple[Literal["self", "external"], ...], Distinct(1)] = ("self",)


@dataclasses.dataclass(frozen=True)
class AdjustConfig:
    """What is tried and measured on validation data before a model is chosen to be exported."""

    # As evaluate.suites, of data that evaluation does not have: NAME or NAME:PATH.
    suites: tuple[str, ...] = ("shapes:validation",)
    target: str = "t2i"  # what is to gain: t2i | qa | captions | edits (shapes), or a suite's name
    # What of the others may be lost, in points: hundredths of the highest value.
    floors: Annotated[tuple[str, ...], LimitsOfLoss()] = ("qa:-1", "edits:-3")
    # Of what was trained so much is added to the base: 1.0 is the trained model itself.
    shares: Annotated[tuple[Share, ...], Distinct(1)] = (0.25, 0.5, 0.75, 1.0)
    # Scales of text guidance, of drawings and edits that the model makes alike; (): that in use.
    guidance: Annotated[tuple[NonNegativeFloat, ...], Distinct()] = ()
    checkpoints: PositiveInt = 2  # of those kept: the last, the monitor's best, then the newest
    folds: Annotated[int, AtLeast(2)] = 2  # of the validation data, to measure what was chosen
    # As evaluate.prompts; held_back: those that the stage generate held back.
    prompts: str = "shapes:validation"
    first: NonNegativeInt = 0  # as evaluate's: of one list for both, those after evaluate.count
    count: PositiveInt = 300  # prompts, one image each
    questions: NonNegativeInt = 300  # as evaluate's
    multi_image_questions: NonNegativeInt = 0  # as evaluate's
    captions: NonNegativeInt = 0  # as evaluate's
    edits: NonNegativeInt = 150  # as evaluate's
    limit: NonNegativeInt = 0  # as evaluate's
    seed: Seed = 2000  # of noise and folds
    # rounds > 1: share of a round's prompts that go to the categories in which the model's own
    # scores of the round before were low, yet told its candidates apart. 0.0: none.
    focus: Fraction = 0.5


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """The trained weights as a folder in the Hugging Face layout."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the written weights
    # official: a single ema.safetensors, which the original code loads | sharded: files of at most
    # 5 GB with an index
    layout: Literal["official", "sharded"] = "official"


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What training stages tell of themselves beyond their metrics; no result depends on it."""

    # Beside metrics.jsonl: tensorboard (event files in the stage's folder) | wandb (its project is
    # WANDB_PROJECT or srum_jax). Each needs its package: pip install tensorboardX or wandb.
    writers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], Distinct()] = ()
    # (first, count): a trace of so many steps from step `first` on (from 0), for TensorBoard,
    # XProf or Perfetto, under profile/ in the stage's folder; count 0: none.
    profile: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    model: str = "shapes"  # a world, whose base it is, or a preset of sizes: bagel_7b_mot
    weights: Path = ""  # folder in the Hugging Face layout; "": the base in the package (shapes)
    # Folder with what `weights` lacks ("": nothing): training often writes `model.safetensors`
    # alone, without the vision tower, the connector, the autoencoder and the JSON files.
    weights_base: Path = ""
    seed: Seed = 0  # of candidates, training noise and orders; evaluation has its own
    rounds: PositiveInt = 1  # times the stages run, each from the weights of the one before
    # What runs, in this order. There are also autoencoder and pretrain, first; ingest, in the place
    # of generate, and of score too where its data is scored; and adjust, before export.
    stages: Annotated[tuple[Stage, ...], Distinct(1)] = (
        *("generate", "score", "train", "evaluate", "export", "report"),
    )
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    compute: ComputeConfig = ComputeConfig()
    sample: SampleConfig = SampleConfig()
    ingest: IngestConfig = IngestConfig()
    generate: GenerateConfig = GenerateConfig()
    score: ScoreConfig = ScoreConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    adjust: AdjustConfig = AdjustConfig()
    export: ExportConfig = ExportConfig()
    pretrain: PretrainConfig = PretrainConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    log: LogConfig = LogConfig()


def get_config() -> Any:
    """All keys with their defaults, as an `ml_collections.ConfigDict` to change values in."""
    from ml_collections import ConfigDict  # a program that uses the package may lack it

    c = ConfigDict(dataclasses.asdict(Config()))
    # Former sections, for config files that put values there (config_history.py).
    c.train.probe, c.autoencoder.optim = ConfigDict(), ConfigDict()
    for name in ("optim", "lanes", "multi_image_lanes", "several_lanes"):
        c.pretrain[name] = ConfigDict()
    return c
