#!/usr/bin/env python3
"""`weld transplant` beside mergekit-tokensurgeon, on small random models with byte-level tokenizers.

    transplant.py WELD MERGEKIT_TOKENSURGEON

Every tensor is compared: `omp` at two sizes, `mean` and `zero`; heads tied and not. The row of `eos_token` is left out:
weld takes that of the model's, and mergekit approximates it.
"""

import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TABLES = ["model.embed_tokens.weight", "lm_head.weight"]
HERE = pathlib.Path(__file__).parent


def tokenizer(texts, size, special):
    """A byte-level BPE of that many tokens; the first special one ends a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=letters)
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=special[0])


def model(folder, texts, size, special, hidden, seed, tied):
    made = tokenizer(texts, size, special)
    torch.manual_seed(seed)
    config = LlamaConfig(hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=len(made), tie_word_embeddings=tied,
                         eos_token_id=made.eos_token_id, bos_token_id=None)
    LlamaForCausalLM(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return made


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{words}\n{done.stdout}{done.stderr}")


def difference(ours, theirs):
    """The largest difference, as a share of the largest magnitude."""
    if ours.shape != theirs.shape:
        sys.exit(f"shapes {tuple(ours.shape)} and {tuple(theirs.shape)}")
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def compare(where, ours, theirs, left):
    """The largest difference of all tensors."""
    if ours.keys() != theirs.keys():
        sys.exit(f"{where}: other tensors: {ours.keys() ^ theirs.keys()}")
    worst = 0.0
    for name in ours:
        a, b = ours[name].double(), theirs[name].double()
        if name in TABLES:
            a[left] = b[left]
        found = difference(a, b)
        if found > (1e-4 if name in TABLES else 0.0):
            sys.exit(f"{where}: {name}: {found}")
        worst = max(worst, found)
    return worst


def main():
    weld, mergekit = sys.argv[1:]
    code = [path.read_text() for path in sorted(HERE.glob("*.py"))]
    prose = [path.read_text() for path in sorted(HERE.glob("../../docs/*.md"))]
    for tied in [False, True]:
        with tempfile.TemporaryDirectory() as work:
            work = pathlib.Path(work)
            own = model(work / "model", code, 700, ["<|end|>"], 96, 1, tied)
            donor = model(work / "donor", prose, 900, ["<|stop|>", "<|more|>"], 64, 2, tied)
            shared = len(own.get_vocab().keys() & donor.get_vocab().keys())
            for method, k in [("omp", 8), ("omp", 32), ("mean", 8), ("zero", 8)]:
                ours, theirs = work / f"weld-{method}-{k}", work / f"mergekit-{method}-{k}"
                pair = (work / "model", work / "donor")
                run(weld, "transplant", *pair, ours, "--method", method, "-k", k, "--no-check")
                run(mergekit, *pair, theirs, "-a", method, "-k", k)
                where = f"{method} {k}, {'tied' if tied else 'own head'}"
                tensors = [load_file(folder / "model.safetensors") for folder in (ours, theirs)]
                worst = compare(where, *tensors, donor.eos_token_id)
                print(f"{where}: {shared} of {len(donor)} tokens shared, largest difference {worst:.1e}", flush=True)


main()
