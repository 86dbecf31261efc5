"""Whether the PyTorch side of the benchmark is BAGEL: largest errors against tests/goldens.

python benchmarks/torch_check.py
"""

import json
import pathlib

import numpy as np
import torch
import torch_bagel
from torch_autoencoder import pixels

GOLDENS = pathlib.Path(__file__).parents[1] / "tests/goldens"


@torch.inference_mode()
def check(folder: pathlib.Path) -> dict[str, float]:
    """Largest errors against a golden case: guided trajectory, image, logits, ids."""
    model, decoder = torch_bagel.load(folder)
    given, want = np.load(folder / "inputs.npz"), np.load(folder / "outputs.npz")
    run = json.loads((folder / "meta.json").read_text())["gen/global_i1/settings"]
    settings = torch_bagel.Settings(
        run["num_timesteps"] - 1,
        run["timestep_shift"],
        run["cfg_text_scale"],
        tuple(run["cfg_interval"]),
        run["cfg_renorm_type"],
        run["cfg_renorm_min"],
    )
    grid = tuple(side // model.cfg.token_pixels for side in run["image_shape"])
    context = model.read_text(model.empty(1), [given["gen/ctx0_prompts/packed_text_ids"]])
    noise = torch.as_tensor(given["gen/init_noise"])[None]
    path = model.latents(context, noise, grid, settings)
    found = torch.stack(path)[:, 0].numpy()
    picture = pixels(decoder, model.cfg, path[-1], grid)[0].numpy().astype(int)

    patches = given["und/ctx0_vit_images/packed_vit_tokens"]
    ids = given["und/ctx0_vit_images/packed_vit_position_ids"]
    context = model.read_pictures(model.empty(1), [patches], [ids])
    context = model.read_text(context, [given["und/ctx1_prompts/packed_text_ids"]])
    cache = torch.stack(context.keys).numpy()
    steps = len(want["und/step_argmax"])
    tokens, logits = (x[0].numpy() for x in model.greedy(context, steps))
    return {
        "x_t": np.abs(found - want["gen/global_i1/x_t"]).max(),
        "pixels": np.abs(picture - want["gen/global_i1/image_u8"]).max(),
        "cache": np.abs(cache - want["und/cache_k"]).max(),
        "logits": np.abs(logits - want["und/step_logits"]).max(),
        "ids": (tokens != want["und/step_argmax"]).sum(),
    }


if __name__ == "__main__":
    for name in ("caseA", "caseB"):
        errors = check(GOLDENS / name)
        print(name, " ".join(f"{k} {v:.2g}" for k, v in errors.items()))
        if max(errors["x_t"], errors["logits"]) > 5e-4 or errors["pixels"] > 1 or errors["ids"]:
            raise SystemExit(f"{name}: the PyTorch implementation is not BAGEL")
