"""Train the small family: one base and four light fine-tunes of it, each for a skill of its own.

    python tests/family/train.py --out recipes/family

The base learns a mixture of all skills. Every few steps its accuracy is measured on problems drawn
for this purpose, the mixture leans towards whatever is short of AIM, and training stops when every
skill is inside BAND: half-way, with room left above. Each fine-tune then starts from the saved (bfloat16)
base and sees mostly one skill, for a few steps at a low rate.
"""

import sys

sys.dont_write_bytecode = True

import argparse
import json
import random
import time
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from skills import SKILLS, SYMBOLS, draw

SEED = 7
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
VOCAB = {token: i for i, token in enumerate(SPECIAL + list(SYMBOLS))}
PAD, BOS, EOS = VOCAB["<pad>"], VOCAB["<s>"], VOCAB["</s>"]
BATCH = 128
BASE_RATE, BASE_STEPS, CHECK_EVERY, SMOOTH = 1.5e-3, 1000, 10, 0.95
BAND, AIM = (0.40, 0.78), 0.55
TUNE_RATE, TUNE_STEPS, TUNE_SHARE = 3e-4, 100, 0.97


def config():
    return LlamaConfig(
        vocab_size=len(VOCAB),
        hidden_size=96,
        intermediate_size=144,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def encode(problems):
    """Token ids, padded on the right, and labels that count the answer and the end alone."""
    rows = [([BOS] + [VOCAB[c] for c in p], [VOCAB[c] for c in a] + [EOS]) for p, a in problems]
    ids = torch.full((len(rows), max(len(p) + len(a) for p, a in rows)), PAD)
    labels = torch.full_like(ids, -100)
    for i, (p, a) in enumerate(rows):
        ids[i, : len(p) + len(a)] = torch.tensor(p + a)
        labels[i, len(p) : len(p) + len(a)] = torch.tensor(a)
    return ids[:, :-1], labels[:, 1:]


@torch.no_grad()
def accuracy(model, skill, count=150):
    """Share of problems with every symbol of the answer right. They are of the part that is trained
    on: the held-out part is score.py's alone, and has no say in when training stops."""
    rng = random.Random(f"check/{skill}")
    ids, labels = encode([draw(skill, rng) for _ in range(count)])
    right = model(input_ids=ids).logits.argmax(-1) == labels
    return (right | (labels < 0)).all(1).float().mean().item()


def step(model, optimizer, rate, problems):
    ids, labels = encode(problems)
    logits = model(input_ids=ids).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)


def train_base(say):
    torch.manual_seed(SEED)
    rng, names = random.Random(f"{SEED}/base"), list(SKILLS)
    model, smooth = LlamaForCausalLM(config()), LlamaForCausalLM(config())
    optimizer, weights = adam(model), [1.0] * len(names)
    low, high = BAND
    for n in range(1, BASE_STEPS + 1):
        skills = rng.choices(names, weights, k=BATCH)
        step(model, optimizer, BASE_RATE * min(1.0, n / 100), [draw(s, rng) for s in skills])
        # The base is a running mean of the weights: what single steps swing to and fro is gone.
        with torch.no_grad():
            for mean, new in zip(smooth.parameters(), model.parameters()):
                mean.lerp_(new, 1.0 if n <= 100 else 1.0 - SMOOTH)
        if n % CHECK_EVERY == 0:
            scores = [accuracy(smooth, s) for s in names]
            say(f"base step {n}: " + ", ".join(f"{s} {x:.2f}" for s, x in zip(names, scores)))
            if all(low <= x <= high for x in scores):
                return smooth
            weights = [max(0.003, AIM - x) for x in scores]
    raise SystemExit("the base never had every skill inside the band; try another seed")


def tune(base, skill, rate=TUNE_RATE, steps=TUNE_STEPS, share=TUNE_SHARE):
    rng, others = random.Random(f"{SEED}/{skill}"), [s for s in SKILLS if s != skill]
    model = LlamaForCausalLM(config())
    model.load_state_dict(base.state_dict())
    optimizer = adam(model)
    for n in range(1, steps + 1):
        skills = [skill if rng.random() < share else rng.choice(others) for _ in range(BATCH)]
        # Up over ten steps, then straight down to nothing.
        scale = min(1.0, n / 10, (steps - n + 1) / steps * 1.1)
        step(model, optimizer, rate * scale, [draw(s, rng) for s in skills])
    return model


def rounded(model):
    """The model as bfloat16 holds it, still in float32."""
    return model.to(torch.bfloat16).to(torch.float32)


def tokenizer():
    """One symbol a token: byte-pair encoding without a single merge."""
    t = Tokenizer(models.BPE(vocab=VOCAB, merges=[], unk_token="<unk>"))
    t.decoder = decoders.Fuse()
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=t,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def save(model, folder):
    model = rounded(model).to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, do_sample=False, max_new_tokens=16
    )
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer().save_pretrained(folder)
    # Write what both transformers 4 and 5 read, whichever of them is installed here.
    patch(folder / "config.json", rope_theta=10000.0, torch_dtype="bfloat16")
    patch(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def patch(path, **values):
    content = json.loads(path.read_text())
    content.update(values)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder that receives one folder per model")
    out = parser.parse_args().out
    torch.set_num_threads(1)  # as fast as two for a model this small, and the same in every run
    transformers.logging.disable_progress_bar()
    start = time.time()

    def say(line):
        print(f"[{time.time() - start:4.0f} s] {line}", flush=True)

    base = rounded(train_base(say))
    save(base, out / "base")
    for skill in SKILLS:
        model = tune(base, skill)
        save(model, out / skill)
        say(f"{skill}: " + ", ".join(f"{s} {accuracy(model, s):.2f}" for s in SKILLS))


if __name__ == "__main__":
    main()
