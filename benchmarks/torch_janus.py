"""transformers' own Janus-Pro, trained to draw; nothing in the package imports it.

The class has no loss of image tokens. Here its own modules are called one after the other, and the
mean cross-entropy of a drawing's tokens is taken of what its head says.
"""

import os

import torch
import torch.nn.functional as F
import torch_train
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration


class Model(nn.Module):
    """The whole class; its language model and what is drawn by are trained, as by
    `train.trainable = "gen"`."""

    def __init__(self, made: JanusForConditionalGeneration):
        super().__init__()
        self.made = made.requires_grad_(False)
        inner = made.model
        drawing = inner.generation_embeddings, inner.generation_aligner, inner.generation_head
        for part in (inner.language_model, *drawing):
            part.requires_grad_(True)
        inner.language_model.embed_tokens.requires_grad_(False)

    def forward(self, samples: tuple[Tensor, Tensor], noise: None) -> Tensor:
        """The loss of samples: prompts [B,P] of equal length, and codes [B,n] behind them."""
        prompts, codes = samples
        drawn = self.made.prepare_embeddings_for_image_generation(codes[:, :-1])
        llm = self.made.model.language_model
        x = torch.cat([llm.embed_tokens(prompts), drawn], dim=1)
        hidden = llm(inputs_embeds=x, use_cache=False).last_hidden_state
        logits = self.made.model.generation_head(hidden[:, prompts.shape[1] - 1 :])
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten())


def trainer(folder: str | os.PathLike, optim, *, compiled: bool) -> torch_train.Trainer:
    """A trainer from a folder's weights in float32, by SDPA; optim: an OptimConfig of AdamW."""
    how = dict(dtype=torch.float32, attn_implementation="sdpa")
    model = Model(JanusForConditionalGeneration.from_pretrained(folder, **how).train())
    return torch_train.optimised(model, torch_train.trained(model), optim, compiled)
