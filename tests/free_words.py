"""The shapes base with a byte-pair tokenizer, so that it takes prompts about anything.

Its transformer, vision tower and autoencoder are the shipped ones. Of the embedding and the head
the rows of marks, yes, no and numbers are; other words have random ones, and are never said.
"""

import dataclasses
import json
import pathlib

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

import srum_jax
from srum_jax.data import tokenizer as words
from srum_jax.models.bagel import hf, model_config
from srum_jax.rewards import question_templates

BASE = pathlib.Path(srum_jax.__file__).parent / "worlds/shapes/base"
SINGLE = ("yes", "no", *question_templates.NUMBERS[:5])  # each becomes a token of its own


def write_tokenizer(path, texts, size=600):
    """A byte-level BPE trained on `texts`, with the marks at its end."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    often = [form for word in SINGLE for form in (word, word.capitalize())] * 50
    inner.train_from_iterator([*texts, *often], trainer)
    inner.add_special_tokens(list(words.MARKS))
    inner.save(str(path))
    return inner


def write_model(folder, texts):
    """The folder of such a model."""
    folder.mkdir(parents=True)
    inner = write_tokenizer(folder / "tokenizer.json", texts)
    cfg = model_config.from_folder(BASE)
    params, coder = hf.load(BASE, cfg)
    ids = {mark: inner.token_to_id(mark) for mark in words.MARKS}
    vocab = inner.get_vocab_size()
    old = words.Tokenizer.from_folder(BASE)
    rng = np.random.default_rng(0)
    embed, head = (np.asarray(x) for x in (params["embed"], params["lm_head"]["w"]))
    rows = rng.normal(embed.mean(), embed.std(), (vocab, embed.shape[1])).astype(np.float32)
    columns = np.zeros((head.shape[0], vocab), np.float32)  # what it was not taught it never says
    for word in (*words.MARKS, *SINGLE):
        for form in {word, word.capitalize()}:
            place = inner.token_to_id(form)
            rows[place], columns[:, place] = embed[old.id(word)], 3 * head[:, old.id(word)]
    params = {**params, "embed": rows, "lm_head": {"w": columns}}
    cfg = dataclasses.replace(
        cfg,
        llm=dataclasses.replace(cfg.llm, vocab=vocab),
        bos=ids[words.MARKS[0]],
        eos=ids[words.MARKS[1]],
        start_of_image=ids[words.MARKS[2]],
        end_of_image=ids[words.MARKS[3]],
    )
    made = folder.parent / "model"
    hf.save(made, cfg, params, coder, "float32", tokenizer_files=[folder / "tokenizer.json"])
    return made


def prompts_file(path, count=6):
    """Prompts as T2I-CompBench's files have them."""
    texts = [
        ("a green bench and a blue bowl", "color"),
        ("a bicycle on the left of a girl", "spatial"),
        ("seven goldfish", "numeracy"),
        ("The rectangular mirror was hung above the marble sink.", "complex"),
        ("a circular rug and a triangular throw pillow", "shape"),
        ("A dog is scratching at the door and wanting to go outside.", "non-spatial"),
    ][:count]
    records = [
        {"Question": text, "Category": category, "Question_id": i + 1}
        for i, (text, category) in enumerate(texts)
    ]
    path.write_text(json.dumps([*records, records[0] | {"Question_id": 99}]))
    return [text for text, _ in texts]
