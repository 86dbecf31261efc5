"""The flagship's first day: `configs/bagel_7b_srum.py` as it is, from prompts to the report.

Only weights are stood in for: random numbers in BAGEL's and Segment Anything's official layouts,
with BAGEL's vocabulary, patches, latents and tables of positions and Segment Anything's input of
1024 pixels; widths and depths are small. So that there is something to train on, the model answers
"yes" or "one", which scores well, and Segment Anything's masks are smooth and sure of themselves.

    python benchmarks/first_day.py --prompts t2i_compbench_train.json \\
        --test_prompts t2i_compbench_val.json --folder DIR [--count 3]

The prompts are T2I-CompBench's files, all of which is checked; the first ones drawn are from all
over the one. Beside places numbers are overridden, because a picture of 1024x1024 takes a core half
a minute to draw and as long to cut into masks: of prompts, those of the monitor, of the evaluation
and of the stage adjust, and of training steps.
Given again, it goes on where it was stopped. Prints minutes and memory of every stage.
"""

import argparse
import dataclasses
import json
import pathlib

import jax
import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

from srum_jax import main as srum
from srum_jax.core import param_tree
from srum_jax.data.tokenizer import QWEN_ADDED
from srum_jax.models.bagel import hf, vae
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import BAGEL_7B_MOT
from srum_jax.rewards import question_templates
from srum_jax.rewards.boxes.sam import model as sam_model
from srum_jax.rewards.boxes.sam import weights as sam_weights
from srum_jax.rewards.boxes.sam.sizes import DecoderConfig, PromptConfig, SamSizes, VisionConfig

ROOT = pathlib.Path(__file__).parents[1]
BAGEL = dataclasses.replace(
    BAGEL_7B_MOT,
    llm=dataclasses.replace(BAGEL_7B_MOT.llm, hidden=32, layers=1, heads=1, kv_heads=1, ffn=64),
    vit=dataclasses.replace(BAGEL_7B_MOT.vit, hidden=32, layers=1, heads=1, ffn=64),
    vae=dataclasses.replace(BAGEL_7B_MOT.vae, ch=32, ch_mult=(1, 1, 1, 1), res_blocks=1),
)
SAM = SamSizes(
    VisionConfig(hidden=32, layers=3, heads=2, ffn=64, out=32, global_layers=(2,), frequencies=16),
    PromptConfig(hidden=32),
    DecoderConfig(hidden=32, heads=4, ffn=64, iou_hidden=32),
)


def random_weights(specs: param_tree.Specs) -> dict[str, np.ndarray]:
    """Initial values, path -> array that may be written to."""
    made = param_tree.init(specs, jax.random.key(0))
    return {path: np.array(leaf) for path, leaf in param_tree.flatten(made).items()}


def write_words(folder: pathlib.Path, texts: list[str]) -> tokenizers.Tokenizer:
    """Qwen2's files: byte pairs learnt from `texts`, filled up to Qwen2.5's number of words."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator([*texts, *["yes no one two"] * 1000], trainer)
    folder.mkdir(parents=True)
    inner.model.save(str(folder))
    words = json.loads((folder / "vocab.json").read_text())
    first = BAGEL.bos - QWEN_ADDED.index("<|im_start|>")  # the id after the vocabulary's last
    words |= {f"<unused {i}>": i for i in range(len(words), first)}
    (folder / "vocab.json").write_text(json.dumps(words))
    return inner


def write_bagel(folder: pathlib.Path, texts: list[str]) -> None:
    """A model that answers every question with "yes" or "one"."""
    words = write_words(folder, texts)
    params, coder = random_weights(bagel.specs(BAGEL)), random_weights(vae.specs(BAGEL.vae))
    for path in params:
        if path.startswith("blocks/") and path.split("/")[2] in ("o", "down"):
            params[path] *= 0.1
    params["embed"][:, 0] = 20 * params["embed"].std()  # what all words share, and blocks leave
    params["llm2vae/w"] = np.random.default_rng(0).normal(0, 0.1, params["llm2vae/w"].shape)
    # Far above all other words; "yes" by a last bit of bfloat16, as the judge takes an answer whose
    # words have half of the probability.
    for word, weight in (("yes", 4.28125), ("one", 4.25)):
        params["lm_head/w"][:, words.token_to_id(word)] = 0
        params["lm_head/w"][0, words.token_to_id(word)] = weight
    trees = (param_tree.unflatten(tree) for tree in (params, coder))
    hf.save(folder, BAGEL, *trees)


def write_sam(folder: pathlib.Path) -> None:
    """Segment Anything whose masks are a few smooth patches, the same in every picture."""
    v, d, rng = SAM.vision, SAM.decoder, np.random.default_rng(0)
    params = random_weights(sam_model.specs(SAM))
    for path in params:
        if path.startswith("vision/blocks/") and "/ln" not in path:
            params[path] *= 0.1
    at = (np.arange(v.grid) + 0.5) / v.grid
    centres = rng.uniform(0, 1, (v.hidden, 2))
    near = [np.exp(-((at - centres[:, k, None]) ** 2) / 0.02) for k in (0, 1)]
    params["vision/positions"][0] = 10 * np.einsum("dh,dw->hwd", *near)
    for name in ("up1", "up2"):  # the same for the four pixels that come of one
        params[f"decoder/{name}/w"][:] = params[f"decoder/{name}/w"][:, :1, :1]
    last = max(p for p in params if p.startswith("decoder/mask_heads/") and p.endswith("/w"))
    params[last] *= 1000
    params["decoder/iou_head/2/w"][:] = 0
    params["decoder/iou_head/2/b"][:] = (0.5, 0.95, 0.5, 0.5)
    folder.mkdir(parents=True)
    tensors = {}
    for entry in sam_weights.table(SAM):
        leaf = params[entry.path] if entry.layer is None else params[entry.path][entry.layer]
        tensors[entry.name] = np.ascontiguousarray(entry.to_official(leaf))
    save_file(tensors, folder / "model.safetensors")
    sizes = {
        "model_type": "sam",
        "vision_config": {
            "hidden_size": v.hidden,
            "num_hidden_layers": v.layers,
            "num_attention_heads": v.heads,
            "mlp_dim": v.ffn,
            "output_channels": v.out,
            "global_attn_indexes": v.global_layers,
            "num_pos_feats": v.frequencies,
        },
        "prompt_encoder_config": {"hidden_size": SAM.prompt.hidden},
        "mask_decoder_config": {
            "hidden_size": d.hidden,
            "num_attention_heads": d.heads,
            "mlp_dim": d.ffn,
            "iou_head_hidden_dim": d.iou_hidden,
        },
    }
    (folder / "config.json").write_text(json.dumps(sizes))


def prepared(
    folder: pathlib.Path, prompts: pathlib.Path, test_prompts: pathlib.Path, count: int
) -> list[str]:
    """The command's options, with what they name written into `folder` unless it is there."""
    records = json.loads(prompts.read_text())
    step = len(records) // count
    first = range(step // 2, len(records), step)
    spread = [*(records[i] for i in first), *(r for i, r in enumerate(records) if i not in first)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.json").write_text(json.dumps(spread))
    if not (folder / "bagel").exists():
        asked = [t.replace("{a}", "a dog") for t in question_templates.TEMPLATES.values()]
        write_bagel(folder / "bagel", [*(r["Question"] for r in records), *asked])
    if not (folder / "sam").exists():
        write_sam(folder / "sam")
    values = {
        "weights": folder / "bagel",
        "score.sam.weights": folder / "sam",
        "generate.prompts": folder / "prompts.json",
        "generate.count": count,
        "train.steps": 2,
        "train.monitor.prompts": 2,
        "evaluate.prompts": test_prompts,
        "evaluate.count": count,
        "adjust.count": count,
    }
    config = ROOT / "configs/bagel_7b_srum.py"
    flags = (f"--config.{name}={value}" for name, value in values.items())
    return ["srum", "--config", str(config), "--workdir", str(folder / "run"), *flags]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=pathlib.Path, required=True)
    parser.add_argument("--test_prompts", type=pathlib.Path, required=True)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--count", type=int, default=3)
    options = parser.parse_args()
    code = srum.main(prepared(options.folder, options.prompts, options.test_prompts, options.count))
    print(f"exit code {code}")
    for path in sorted(options.folder.glob("run/round0/*/manifest.json")):
        timing = json.loads(path.read_text())["timing"]
        minutes, memory = timing["seconds"] / 60, timing["peak_rss_mb"] / 1000
        print(f"{path.parent.name}: {minutes:.1f} minutes, {memory:.1f} GB at most")


if __name__ == "__main__":
    main()
