"""Makes sam_masks.npz: what transformers' mask-generation pipeline finds with the weights of samA.

Run where torch, torchvision and transformers 5.23 are: python tests/goldens/make_sam_masks.py
The thresholds are far from the defaults, so that random weights give masks of many sizes.
"""

import json
import pathlib

import numpy as np
import torch
from PIL import Image
from transformers import SamImageProcessor, SamModel, pipeline

HERE = pathlib.Path(__file__).parent
SETTINGS = {
    "points_per_crop": 7,
    "points_per_batch": 16,
    "pred_iou_thresh": 0.1,
    "stability_score_thresh": 0.6,
    "stability_score_offset": 0.01,
    "mask_threshold": 0.25,
    "crops_nms_thresh": 0.85,
}
SIZES = ((48, 80), (90, 61), (40, 40))


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Discs of random colours on a random ground, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
    y, x = np.mgrid[:height, :width]
    for _ in range(7):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(5, 16)
        image[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.integers(0, 256, 3)
    return image


def main():
    side = json.loads((HERE / "samA" / "config.json").read_text())["vision_config"]["image_size"]
    model = SamModel.from_pretrained(HERE / "samA", dtype=torch.float32).eval()
    processor = SamImageProcessor(
        size={"longest_edge": side}, pad_size={"height": side, "width": side}
    )
    generate = pipeline("mask-generation", model=model, image_processor=processor, device="cpu")
    arrays = {"settings": np.array(json.dumps(SETTINGS))}
    for i, size in enumerate(SIZES):
        image = picture(*size, seed=i)
        found = generate(Image.fromarray(image), output_bboxes_mask=True, **SETTINGS)
        arrays[f"{i}/image"] = image
        arrays[f"{i}/pixels"] = processor(image, return_tensors="np")["pixel_values"][0]
        arrays[f"{i}/masks"] = np.stack([np.asarray(mask, bool) for mask in found["masks"]])
        arrays[f"{i}/scores"] = np.asarray(found["scores"], np.float32)
        arrays[f"{i}/boxes"] = np.asarray(found["bounding_boxes"], np.float32)  # ends included
        areas = arrays[f"{i}/masks"].mean((1, 2))
        print(f"{size}: {len(areas)} masks, shares of the image {np.round(areas, 2)}")
    np.savez_compressed(HERE / "sam_masks.npz", **arrays)


if __name__ == "__main__":
    main()
