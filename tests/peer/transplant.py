#!/usr/bin/env python3
"""`weld transplant` beside mergekit-tokensurgeon, on small random models with byte-level tokenizers.

    transplant.py WELD MERGEKIT_TOKENSURGEON
    transplant.py WELD MERGEKIT_TOKENSURGEON --race DIR [--missing N] [--tokens N] [--layers N]

Every tensor is compared: `omp` at two sizes, `mean`, `zero` and `subword`; heads tied and not. The row of `eos_token` is
left out: weld takes that of the model's, and mergekit approximates it. With `subword` tokens are compared that are ASCII:
of others mergekit cuts the letters that stand for their bytes (`Ċ`, `Ã©`), and weld the text.

With `--race`, time and memory of `omp` on two made models of 1024 features, 0.3 billion parameters by default.
"""

import argparse
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from timed import timed

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


def other_texts(donor):
    """The ids of tokens that are not written as their text is, but for a space before it."""
    return [id for token, id in donor.get_vocab().items() if not (token.removeprefix("Ġ") or "Ġ").isascii()]


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


def words(seed, count):
    """That many words of lower-case letters."""
    draws = random.Random(seed)
    found = {}
    while len(found) < count:
        found["".join(draws.choices("abcdefghijklmnopqrstuvwxyz", k=draws.randint(4, 9)))] = None
    return list(found)


def large(folder, vocabulary, layers, seed):
    """A model of 1024 features with a token for each word."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: id for id, token in enumerate(["<|end|>", *letters, *vocabulary])}
    made = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")
    torch.manual_seed(seed)
    config = LlamaConfig(hidden_size=1024, intermediate_size=2816, num_hidden_layers=layers, num_attention_heads=16,
                         vocab_size=len(tokens), tie_word_embeddings=True, eos_token_id=0, bos_token_id=None)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def race(weld, mergekit, where, missing, tokens, layers):
    where.mkdir(parents=True, exist_ok=True)
    vocabulary = words(1, tokens + missing)
    count = large(where / "model", vocabulary[:tokens], layers, 1)
    large(where / "donor", vocabulary[missing:], 1, 2)
    print(f"{count / 1e9:.2f} billion parameters, {tokens} tokens, {missing} of them new, k 64", flush=True)
    runs = {}
    for name, line in [
        ("weld", [weld, "transplant", where / "model", where / "donor", where / "ours", "--force"]),
        ("mergekit", [mergekit, where / "model", where / "donor", where / "theirs"]),
    ]:
        runs[name] = timed(line)
        seconds, busy, memory = runs[name]
        print(f"{name}: {seconds:.1f} s, {busy:.1f} s of processor time, {memory / 1e9:.2f} GB", flush=True)
    tables = [load_file(where / folder / "model.safetensors")[TABLES[0]].float() for folder in ("ours", "theirs")]
    # The outputs are BF16, so rows that are equal but for rounding are within a hundredth.
    apart = (tables[0] - tables[1])[1:].norm(dim=1) / tables[1][1:].norm(dim=1)
    shares = [theirs / ours for ours, theirs in zip(runs["weld"], runs["mergekit"])]
    print("time {:.1f}, processor time {:.1f}, memory {:.1f};".format(*shares),
          f"{(apart > 0.01).sum()} of {missing} new rows are others, by {apart.max():.2f} at the most")
    for folder in ("model", "donor", "ours", "theirs"):
        shutil.rmtree(where / folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weld", type=pathlib.Path)
    parser.add_argument("mergekit", type=pathlib.Path)
    parser.add_argument("--race", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--missing", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=32000)
    parser.add_argument("--layers", type=int, default=21)
    given = parser.parse_args()
    commands = given.weld.resolve(), given.mergekit.resolve()
    if given.race:
        race(*commands, given.race.resolve(), given.missing, given.tokens, given.layers)
    else:
        compare_all(*commands)


def compare_all(weld, mergekit):
    code = [path.read_text() for path in sorted(HERE.glob("*.py"))]
    prose = [path.read_text() for path in sorted(HERE.glob("../../docs/*.md"))]
    for tied in [False, True]:
        with tempfile.TemporaryDirectory() as work:
            work = pathlib.Path(work)
            own = model(work / "model", code, 700, ["<|end|>"], 96, 1, tied)
            donor = model(work / "donor", prose, 900, ["<|stop|>", "<|more|>"], 64, 2, tied)
            shared = len(own.get_vocab().keys() & donor.get_vocab().keys())
            for method, k in [("omp", 8), ("omp", 32), ("mean", 8), ("zero", 8), ("subword", 8)]:
                ours, theirs = work / f"weld-{method}-{k}", work / f"mergekit-{method}-{k}"
                pair = (work / "model", work / "donor")
                run(weld, "transplant", *pair, ours, "--method", method, "-k", k, "--no-check")
                run(mergekit, *pair, theirs, "-a", method, "-k", k)
                where = f"{method} {k}, {'tied' if tied else 'own head'}"
                tensors = [load_file(folder / "model.safetensors") for folder in (ours, theirs)]
                left = [donor.eos_token_id] + (other_texts(donor) if method == "subword" else [])
                worst = compare(where, *tensors, left)
                print(f"{where}: {shared} of {len(donor)} tokens shared, {len(left)} rows left out, "
                      f"largest difference {worst:.1e}", flush=True)


main()
