"""Captions: tokens and scores of pycocoevalcap 1.2, with its Java tokeniser."""

import numpy as np

from srum_jax.evals.scorers import captions, ptb


def check(case: dict) -> None:
    """Every array of captions.json; METEOR needs Java and is there for information."""
    raw_references = [image["references"] for image in case["images"]]
    references = [[ptb.tokenize(text) for text in texts] for texts in raw_references]
    assert references == case["tokenized_references"]
    for name, raw in case["systems"].items():
        tokenized = [ptb.tokenize(text) for text in raw]
        assert tokenized == case["tokenized_systems"][name], name
        _check_scores(tokenized, references, case["scores"][f"{name}/ptb"])
        _check_scores(raw, raw_references, case["scores"][f"{name}/raw"])
    close = case["tokenized_systems"]["close"]
    few = case["cider_first20_only"]
    scores = captions.cider(close[:20], references[:20])
    np.testing.assert_allclose(scores, few["per_image"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(scores.mean(), few["CIDEr"], rtol=0, atol=1e-9)
    assert captions.cider(close[:1], references[:1]).mean() == case["cider_single_image"]


def _check_scores(texts, references, want) -> None:
    corpus = captions.bleu(texts, references)
    counts = captions.bleu_counts(texts, references)
    per_image = {
        "Bleu_1": captions.Bleu(1)(counts),
        "Bleu_4": captions.Bleu(4)(counts),
        "ROUGE_L": captions.rouge_l(texts, references),
        "CIDEr": captions.cider(texts, references),
    }
    close = dict(rtol=0, atol=1e-9)
    np.testing.assert_allclose([m.number for m in corpus.values()], want["Bleu"], **close)
    for name in ("ROUGE_L", "CIDEr"):
        np.testing.assert_allclose(per_image[name].mean(), want[name], err_msg=name, **close)
    assert set(want["per_image"]) == set(per_image)
    for name, values in want["per_image"].items():
        np.testing.assert_allclose(per_image[name], values, err_msg=name, **close)
