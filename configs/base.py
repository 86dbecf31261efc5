"""Every key of a run, once, with its default and its meaning; srum_jax/config.py checks them.

A config file starts from here, changes a few lines and returns the rest as it is.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.model = "shapes"  # preset of sizes: shapes | bagel_7b_mot
    c.weights = ""  # folder in the Hugging Face layout; "": the base in the package (shapes only)
    # Folder with what `weights` lacks ("": nothing): training often writes `model.safetensors`
    # alone, without the vision tower, the connector, the autoencoder and the JSON files.
    c.weights_base = ""
    c.seed = 0  # of candidates, training noise and orders; evaluation has its own
    c.rounds = 1  # times the stages run, each round from the weights the one before trained
    # What runs, in this order. There are also autoencoder and pretrain, which come first, and
    # ingest, which stands in the place of generate, and of score too where its data is scored.
    c.stages = ("generate", "score", "train", "evaluate", "export", "report")
    c.mesh = mesh()
    c.distributed = distributed()
    c.compute = compute()
    c.sample = sample()
    c.ingest = ingest()
    c.generate = generate()
    c.score = score()
    c.train = train()
    c.evaluate = evaluate()
    c.export = ConfigDict()
    c.export.dtype = "bfloat16"  # of the written weights: float32 | bfloat16
    # official: a single ema.safetensors, which the original code loads | sharded: files of at most
    # 5 GB with an index
    c.export.layout = "official"
    c.pretrain = pretrain()
    c.autoencoder = autoencoder()
    c.log = log()
    return c


def mesh() -> ConfigDict:
    """Devices along each axis; -1, at most once, takes the devices that are left."""
    c = ConfigDict()
    c.data = 1  # copies of the parameters; each takes its share of a batch
    c.fsdp = -1  # parameters, moments and batch are cut over this axis
    c.tensor = 1  # heads, MLP and vocabulary are cut over this axis
    c.context = 1  # long sequences are cut over this axis
    return c


def distributed() -> ConfigDict:
    """How long the processes of a run wait for each other, in seconds."""
    c = ConfigDict()
    c.init_timeout = 300  # at the start, until all are there
    c.heartbeat_timeout = 100  # for a sign of life; then the run ends everywhere
    c.shutdown_timeout = 300  # at the end, until all are finished
    return c


def compute() -> ConfigDict:
    c = ConfigDict()
    c.dtype = "float32"  # of matrix products: float32 | bfloat16; losses and noise stay float32
    # What a training step keeps of its activations for the backward pass; the rest is computed
    # again: none (all is kept) | dots (products with weights are) | full (a layer's input alone is)
    c.remat = "full"
    # How training computes attention: auto (what fits the machine; the log says which and why) |
    # dense (scores of a whole row) | chunked (some keys at a time: long rows, any machine and mask)
    # | splash (a kernel for TPUs, masks of one interval) | cudnn (NVIDIA GPUs, bfloat16) | pallas
    # (our kernels for NVIDIA GPUs, masks of one interval; not yet run on a card, so never by auto)
    c.attention = "auto"
    # A CPU counts as this many devices, each with its part of a batch; 0: one. Small models leave a
    # second core idle otherwise. Without effect on accelerators.
    c.cpu_devices = 0
    c.cache_dir = ""  # of compiled programs; "": srum_jax/ in the user's cache folder
    return c


def sample() -> ConfigDict:
    """How images are drawn, for candidates and for evaluation alike."""
    c = ConfigDict()
    c.size = (32, 32)  # height, width in pixels
    c.steps = 16  # Euler steps
    c.shift = 4.0  # s of t' = s t / (1 + (s - 1) t): above 1 spends more steps near noise
    c.guidance = 2.5  # scale of text guidance; 1.0 is none
    c.image_guidance = 1.0  # scale of image guidance, against the prompt alone; 1.0 is none
    c.image_alone = True  # image guidance also where guidance is 1.0; the original ignores it there
    c.guidance_interval = (0.0, 1.0)  # times t in which guidance acts (1 is noise)
    # Norm of the guided velocity: none | global (an image) | channel (a token) | text_channel |
    # batch (all images of a call at once, as the original's global does)
    c.renorm = "none"
    c.renorm_min = 0.0  # smallest factor renorm may apply, in [0, 1]
    c.batch = 64  # images a compiled call
    return c


def ingest() -> ConfigDict:
    """Training data that is given, in place of drawn: for the stage ingest."""
    c = ConfigDict()
    # published:FILE.jsonl (the released SRUM data set) | parquet:GLOB (pictures with captions)
    c.source = ""
    c.images = ""  # published: folder of the pictures; "": the folder of the file
    # What of the autoencoder's posterior is kept: mean | sampled (one draw, by the seed) | resample
    # (mean and deviation, drawn anew each time a picture is trained on, as the original does)
    c.latents = "mean"
    c.rejects = 0.0  # as generate.rejects: lines that cannot be used
    c.batch = 8  # pictures of one size a compiled call
    c.shard_size = 64  # pictures a shard
    return c


def generate() -> ConfigDict:
    c = ConfigDict()
    # shapes:train|validation|test, a .txt, .json, .jsonl or .csv file, or a TFDS data set that is
    # on this machine: tfds:NAME[/CONFIG][:VERSION]?split=SPLIT&text=FIELD[&max=NUMBER]
    c.prompts = "shapes:train"
    # Lines that cannot be used and are set aside, in rejects.jsonl, before the run stops: below 1 a
    # share of all, from 1 on a number; 0.0: none.
    c.rejects = 0.0
    # Prompts a round: the first round takes them from the front, the next the following ones; a
    # list that ends begins again, with other noise.
    c.count = 400
    c.candidates = 8  # images a prompt (K)
    # Scale of text guidance of the candidates of each round, the last one for all later rounds;
    # (): sample.guidance. Training distils guidance into the weights, so later rounds need less.
    c.guidance = ()
    c.shard_size = 64  # images a shard: what is lost at most when the stage is killed
    return c


def score() -> ConfigDict:
    c = ConfigDict()
    # Who scores: self (the model that drew) | external (score.external) | ensemble (both; the mean)
    c.judge = "self"
    c.min_judges = 1  # ensemble: fewer scores than so many are no score
    # How the model's own scores are read: logits (soft answers to questions made from the prompt)
    # | written (the paper's: reasons and scores in words). An external judge always writes.
    c.readout = "logits"
    # How a region is shown: crop | outline (drawn on the image) | coordinates (in words, the
    # paper's). A model of few words, as the shapes base, knows crops alone.
    c.view = "crop"
    # So many candidates are scored a second way too, to be compared in the report: by the external
    # judge where score.external.url names one, else by the model's other read-out. 0: none.
    c.compare = 0
    # Who finds regions: components (of the foreground, shapes only) | grid | sam (score.sam) | self
    # (the model itself, in words) | file (score.boxes). The first one's scores train; the others
    # are measured beside it.
    c.proposers = ("components", "grid")
    c.grid = 2  # cells a side, for the proposer "grid"
    c.boxes = ""  # for "file": a JSONL file of {"id": "<prompt id>-<k>", "boxes": [[x0,y0,x1,y1]]}
    # Least probability that a region shows a kind of thing that the prompt names; others are set
    # aside as irrelevant. 0.0: all regions count. Read by the read-out logits.
    c.verify = 0.0
    c.min_area = 0.0  # of a region, as a share of the image
    c.max_area = 1.0  # the same
    c.overlap = 0.9  # intersection over union from which the smaller of two boxes is a repeat
    c.regions = 16  # an image at most, evenly over sizes
    c.margin = 1  # pixels added around a region before it is cropped
    # Longer side of a crop as the model reads it by logits; 0: as large as its image, which is
    # costly for large ones.
    c.crop = 0
    c.batch = 32  # pictures or crops a compiled call
    c.shard_size = 64  # images a shard
    c.sam = ConfigDict()
    c.sam.weights = ""  # folder with config.json and model.safetensors of ViT-B, L or H
    c.sam.points = 32  # a side of the grid of points that masks are asked for
    c.sam.batch = 64  # points a compiled call
    c.sam.min_iou = 0.88  # as Segment Anything expects it of its own mask
    c.sam.min_stability = 0.95  # intersection over union of a mask under other thresholds
    c.written = ConfigDict()
    c.written.think = True  # before every answer
    c.written.max_tokens = 1024  # an answer
    c.written.attempts = 3  # answers asked for at most; only what has no score is asked again
    c.written.temperature = 0.7  # of the second answer and on; the first is greedy
    c.written.batch = 16  # answers written at a time
    c.external = ConfigDict()
    c.external.url = ""  # of an OpenAI-compatible server, such as "http://localhost:8000/v1"
    c.external.model = ""  # its name there
    c.external.key_env = ""  # environment variable with the key; "": no key
    c.external.timeout = 120.0  # seconds for a whole reply
    c.external.attempts = 4  # requests for one answer, with growing pauses between them
    c.external.concurrency = 8  # requests at a time
    return c


def loop() -> ConfigDict:
    """The keys of the training loop, which `train`, `pretrain` and `autoencoder` share."""
    c = ConfigDict()
    c.steps = 300  # optimiser steps
    c.micro_batches = 1  # parts a step's rows are cut into, to save memory; same result
    c.optim = optim()
    c.ema = 0.98  # decay of the averaged parameters, which are what is evaluated and exported
    c.checkpoint_every = 100  # steps
    c.keep = 2  # checkpoints kept
    c.log_every = 10  # steps
    c.max_bad_steps = 3  # non-finite steps skipped in a row before the run stops (exit code 4)
    return c


def packed() -> ConfigDict:
    """What `train` and `pretrain` share beyond: packed rows and the timestep distribution."""
    c = loop()
    c.rows = 16  # packed rows a step (B)
    c.lanes = lanes()
    c.timestep_mean = 1.6  # raw t = sigmoid(N(mean, std)): a mean above 0 trains more on noise,
    c.timestep_std = 1.4  # which is decisive for small models
    c.timestep_shift = 1.0  # s of the shift above, applied to the drawn t; 1.0 is none
    c.text_dropout = 0.1  # share of samples trained without their prompt, for guidance
    return c


def lanes() -> ConfigDict:
    """Fixed sizes of one packed row; a fill under 60 % is refused, with the sizes to use."""
    c = ConfigDict()
    c.und = 60  # text and ViT tokens (U)
    c.gen = 64  # latent tokens (G)
    c.vit = 0  # ViT patches among the und tokens; 0: no pictures are read
    c.labels = 0  # text tokens with a cross-entropy loss
    c.images = 4  # latent images
    c.regions = 4  # scored regions a latent image (R)
    return c


def optim() -> ConfigDict:
    c = ConfigDict()
    c.optimizer = "adamw"  # adamw | muon (block matrices by Muon, the rest by AdamW)
    c.learning_rate = 4e-4  # at the end of the warm-up
    c.adam_learning_rate = 4e-4  # muon: the same for the leaves that AdamW updates
    c.warmup = 20  # steps of linear rise from 0; at most all of a short run
    c.schedule = "linear"  # after the warm-up: constant | linear (to 0) | cosine (to 1 %)
    c.b1 = 0.9
    c.b2 = 0.95
    c.eps = 1e-15
    c.weight_decay = 0.0
    c.clip_norm = 1.0  # largest norm of the gradient over the trained parameters; 0.0: no limit
    return c


def train() -> ConfigDict:
    """The defaults are the study's winner (docs/study.md); the other objectives stay selectable."""
    c = packed()
    c.steps = 600
    c.rows = 8
    c.optim.optimizer = "muon"
    c.optim.learning_rate = 1e-3
    c.optim.adam_learning_rate = 1e-3
    # sft: plain flow matching | srum_release: as the authors released it | srum_paper: as the paper
    # writes it, signed, its repulsion made bounded | srum_advantage: sft modulated by dense
    # advantages, bounded | nft: DiffusionNFT with dense advantages, bounded
    c.objective = "sft"
    # Scores that weigh the tokens: both | image (regions are ignored) | regions (the image's score
    # is). Selection goes by the image's score whatever this says.
    c.rewards = "both"
    # What a latent token reads of the regions' scores: centre (the four pixels at its centre, as
    # released: regions thinner than a token vanish between them) | area (its whole cell)
    c.map_sampling = "centre"
    c.candidates = 0  # of each prompt only the first so many count; 0: all
    c.select = "best_of_k"  # candidates trained on: all | best_of_k (a prompt's best by self-score)
    # Prompts whose best candidate's score is not at least so far above the mean of all its
    # candidates are left out: what is gained there, the judge knows and the generator does not.
    c.min_gain = 0.0
    c.min_score = 0.5  # best_of_k: a prompt whose best candidate scores less is left out
    # gen: the generation expert and its in- and outputs, so that answers cannot change | all: the
    # understanding expert too, through which the text of a prompt is read | lora: adapters alone
    # (train.lora), beside weights that stay in compute.dtype; export merges them
    c.trainable = "all"
    c.lora = ConfigDict()
    c.lora.rank = 16  # of the change to every projection of attention and MLP
    c.lora.alpha = 16.0  # adapters count alpha / rank times
    c.lora.experts = "gen"  # whose projections: gen, so that answers cannot change | all
    c.lambda_constraint = 0.5  # srum_release, srum_paper: weight of the reference term
    c.repulsion_cap = 1.0  # srum_paper: a negative token weight counts as at least minus this
    c.advantage_scale = 2.0  # srum_advantage: s of alpha = 1 + s A, A in [-1, 1]
    c.nft_beta = 1.0  # nft: beta of alpha = beta A, kappa = beta^2
    # Weight of |v - v0|^2, the pull towards the starting model, added to every objective. 0.0:
    # none, and sft and srum_release then keep no copy of that model.
    c.anchor = 0.0
    # Largest |v - v0|^2, in units of the target's |noise - x0|^2, before the run stops (exit code
    # 4); read where a copy of the starting model is kept. 0.0: no limit.
    c.max_drift = 1.0
    c.monitor = monitor()
    return c


def log() -> ConfigDict:
    """What training stages tell of themselves beyond their metrics; no result depends on it."""
    c = ConfigDict()
    # Beside metrics.jsonl: tensorboard (event files in the stage's folder) | wandb (Weights &
    # Biases); pip install "srum_jax[tensorboard]" or "srum_jax[wandb]".
    c.writers = ()
    c.wandb_project = "srum_jax"  # its name there
    # (first, count): a trace of so many steps from step `first` on (from 0), for TensorBoard,
    # XProf or Perfetto, under profile/ in the stage's folder; count 0: none.
    c.profile = (0, 0)
    return c


def monitor() -> ConfigDict:
    """Asks the model in training now and then, and stops a run that loses what it had."""
    c = ConfigDict()
    c.prompts = 24  # drawn and scored at each check; 0: no monitor
    c.candidates = 2  # images a prompt, whose difference is the diversity
    c.every = 100  # steps
    c.questions = 64  # asked about pictures, to see whether understanding is kept
    c.min_score = 0.2  # how far the own score may fall below its first value
    c.min_diversity = 0.3  # share of its first value that diversity must keep
    c.min_agreement = 0.9  # share of the first answers to the questions that must stay
    c.patience = 2  # monitor checks in a row that break a bound before the run stops
    return c


def evaluate() -> ConfigDict:
    c = ConfigDict()
    c.prompts = "shapes:test"  # as generate.prompts
    c.count = 600  # prompts, one image each, the same noise for base and trained
    c.questions = 800  # asked of base and trained about held-back pictures
    c.multi_image_questions = 300  # asked about two pictures or the frames of a clip
    c.captions = 150  # written of held-back pictures
    c.edits = 150  # of held-back pictures, by an instruction
    c.best_of = 4  # images a prompt for best-of-K by self-score
    c.best_of_prompts = 200  # prompts it is measured on
    c.batch = 100  # pictures with questions a compiled call
    c.seed = 1000  # of evaluation noise
    return c


def pretrain() -> ConfigDict:
    """How the shapes base is made: cross-entropy on answers, flow matching on images."""
    c = packed()
    c.steps = 9500
    c.rows = 20
    c.lanes.und = 168  # one picture with its questions, two captions and an edit
    c.lanes.gen = 64
    c.lanes.vit = 32
    c.lanes.labels = 40
    c.lanes.images = 4
    c.lanes.regions = 0
    c.multi_image_every = 3  # every so many steps read a clip or two pairs of pictures in every row
    c.multi_image_lanes = lanes()  # of those steps, which have no edits
    c.multi_image_lanes.und = 176
    c.multi_image_lanes.gen = 32
    c.multi_image_lanes.vit = 128
    c.multi_image_lanes.labels = 24
    c.multi_image_lanes.images = 2
    c.multi_image_lanes.regions = 0
    c.optim.optimizer = "muon"
    c.optim.learning_rate = 2e-3
    c.optim.adam_learning_rate = 2e-3
    c.optim.warmup = 100
    c.optim.schedule = "cosine"
    c.ema = 0.998
    c.checkpoint_every = 500
    c.log_every = 20
    c.generation_images = 40  # drawn a step from captions
    c.edit_images = 20  # drawn a step from instructions, where one picture is read
    c.questions = 6  # about each picture read alone
    c.text_weight = 0.5  # of the cross-entropy beside the flow-matching loss
    # What counts the same in it: token (every one) | sample (every text) | square (in between)
    c.label_weights = "token"
    c.latents = 60000  # scenes encoded once by the autoencoder and drawn from
    c.edits = 20000  # the same of edits
    c.evaluate_every = 1000  # steps
    return c


def autoencoder() -> ConfigDict:
    """How the shapes world's autoencoder is made."""
    c = loop()
    c.steps = 3000
    c.batch = 16  # pictures a step
    c.optim.learning_rate = 2e-3
    c.optim.warmup = 100
    c.optim.schedule = "cosine"
    c.optim.b2 = 0.99
    c.optim.eps = 1e-8
    c.ema = 0.999
    c.checkpoint_every = 300
    c.log_every = 25
    c.kl_weight = 1e-5  # of the KL term beside the pixel error
    return c
