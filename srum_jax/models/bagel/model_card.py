"""The model card, README.md of an exported folder: YAML front matter and Markdown."""

from srum_jax.core import param_tree
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import vae
from srum_jax.models.bagel.model_config import BAGEL_7B_MOT, BagelConfig

PUBLISHED = "ByteDance-Seed/BAGEL-7B-MoT"


def text(cfg: BagelConfig, *, model_file: str, vae_file: str, dtype: str, notes: str) -> str:
    """The card of a model of sizes `cfg`; `notes` (Markdown) say how it was made."""
    official = cfg.vae == BAGEL_7B_MOT.vae and cfg.latent_patch == BAGEL_7B_MOT.latent_patch
    original = (_ORIGINAL if model_file.startswith("ema") else _SHARDED) if official else _OTHER
    grown = f"base_model: {PUBLISHED}\n" if cfg.llm == BAGEL_7B_MOT.llm else ""
    return f"""---
license: apache-2.0
library_name: srum_jax
pipeline_tag: any-to-any
{grown}tags:
- bagel
- text-to-image
- image-to-text
- jax
---

# A BAGEL checkpoint

A unified multimodal model (Mixture-of-Transformers, BAGEL architecture) that understands and draws
pictures, in the layout of BAGEL-7B-MoT; written by srum_jax.

| part | file | parameters | stored as |
|---|---|---|---|
| model | `{model_file}` | {param_tree.count(bagel.specs(cfg)):,} | {dtype} |
| autoencoder | `{vae_file}` | {param_tree.count(vae.specs(cfg.vae)):,} | float32 |

{cfg.llm.layers} layers of {cfg.llm.hidden} features, a vocabulary of {cfg.llm.vocab}; a latent
token covers {cfg.token_pixels} x {cfg.token_pixels} pixels. All sizes are in the JSON files.

{notes.strip()}

## How to load it

With srum_jax, where `DIR` is this folder:

```python
from srum_jax import api

model = api.load("DIR")
```

or from the shell: `srum generate --model DIR --prompt "a red circle" -o out`.

{original.strip()}
""".replace("\n\n\n\n", "\n\n")


_ORIGINAL = f"""
With the original code: give this folder as the model path in place of `{PUBLISHED}`; it has the
same files under the same names.
"""
_SHARDED = f"""
The original code opens a single `ema.safetensors`. Point the `checkpoint` argument of its
`load_checkpoint_and_dispatch` at `model.safetensors.index.json`, or write the single file with
`srum convert DIR NEW --to hf --layout official`; the rest is as in `{PUBLISHED}`.
"""
_OTHER = """
The original code cannot load it: the sizes of the autoencoder are constants there, and this model
has others.
"""
