"""Segment Anything (SAM) as a proposer of regions: masks of everything, without a prompt.

`automatic.MaskGenerator.from_folder` opens a model in the Hugging Face layout (ViT-B, L or H) and
finds all masks of an image; the rest is what it stands on: `weights` (the table of names and the
strict reading), `config` (sizes), `vision` (the image encoder), `model` (prompt encoder and mask
decoder). No other module of the package reads the last four.
"""
