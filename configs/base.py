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
    # What runs, in this order. There are also autoencoder and pretrain, which come first.
    c.stages = ("generate", "score", "train", "evaluate", "export", "report")
    c.mesh = mesh()
    c.compute = compute()
    c.sample = sample()
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
    return c


def mesh() -> ConfigDict:
    """Devices along each axis; -1, at most once, takes the devices that are left."""
    c = ConfigDict()
    c.data = 1  # copies of the parameters; each takes its share of a batch
    c.fsdp = -1  # parameters, moments and batch are cut over this axis
    c.tensor = 1  # heads, MLP and vocabulary are cut over this axis
    c.context = 1  # long sequences are cut over this axis
    return c


def compute() -> ConfigDict:
    c = ConfigDict()
    c.dtype = "float32"  # of matrix products: float32 | bfloat16; losses and noise stay float32
    c.remat = True  # compute activations again in the backward pass instead of keeping them
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


def generate() -> ConfigDict:
    c = ConfigDict()
    c.prompts = "shapes:train"  # shapes:train|validation|test, or a .txt, .json or .jsonl file
    c.count = 400  # prompts taken, from the front
    c.candidates = 4  # images a prompt (K)
    c.unit = 64  # images a work unit: what is lost at most when the stage is killed
    return c


def score() -> ConfigDict:
    c = ConfigDict()
    # Who finds regions: components (of the foreground, shapes only) | grid. The first one's scores
    # train; the others are measured beside it.
    c.proposers = ("components", "grid")
    c.grid = 2  # cells a side, for the proposer "grid"
    c.margin = 1  # pixels added around a region before it is cropped
    c.batch = 32  # pictures or crops a compiled call
    c.unit = 64  # images a work unit
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
    """What `train` and `pretrain` share beyond: packed rows and the law of timesteps."""
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
    c = packed()
    # srum_advantage: dense advantages, bounded | srum_release: as the authors released it |
    # sft: plain flow matching
    c.objective = "srum_advantage"
    c.select = "all"  # candidates trained on: all | best_of_k (a prompt's best by self-score)
    c.trainable = "gen"  # gen: the generation expert and its in- and outputs | all
    c.lambda_constraint = 0.5  # srum_release: weight of the reference term
    c.advantage_scale = 2.0  # srum_advantage: s of alpha = 1 + s A, A in [-1, 1]
    c.anchor = 1.0  # srum_advantage: lambda of kappa = 1 + lambda, the pull towards the base
    return c


def evaluate() -> ConfigDict:
    c = ConfigDict()
    c.prompts = "shapes:test"  # as generate.prompts
    c.count = 600  # prompts, one image each, the same noise for base and trained
    c.questions = 1000  # asked of base and trained about held-back pictures
    c.best_of = 4  # images a prompt for best-of-K by self-score
    c.best_of_prompts = 200  # prompts it is measured on
    c.batch = 100  # pictures with questions a compiled call
    c.seed = 1000  # of evaluation noise
    return c


def pretrain() -> ConfigDict:
    """How the shapes base is made: cross-entropy on answers, flow matching on images."""
    c = packed()
    c.steps = 6000
    c.rows = 24
    c.lanes.und = 160  # one picture with its questions and two captions
    c.lanes.gen = 32
    c.lanes.vit = 16
    c.lanes.labels = 32
    c.lanes.images = 2
    c.lanes.regions = 0
    c.optim.optimizer = "muon"
    c.optim.learning_rate = 2e-3
    c.optim.adam_learning_rate = 2e-3
    c.optim.warmup = 100
    c.optim.schedule = "cosine"
    c.ema = 0.998
    c.checkpoint_every = 500
    c.log_every = 20
    c.generation_images = 48  # drawn a step
    c.understanding_images = 24  # read a step
    c.questions = 6  # about each picture read
    c.text_weight = 0.5  # of the cross-entropy beside the flow-matching loss
    # What counts the same in it: token (every one) | sample (every text) | square (in between)
    c.label_weights = "token"
    c.latents = 30000  # scenes encoded once by the autoencoder and drawn from
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
