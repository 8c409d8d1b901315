"""Train a small family: one base and four fine-tunes of it, each for a skill of its own.

    python tests/family/train.py llama --out recipes/family

The base learns a mixture of all skills. Every few steps its accuracy is measured on problems drawn
for this purpose, the mixture leans towards whatever is short of the family's aim, and training stops
when every skill is inside its band: half-way, with room left above. Each fine-tune then starts from
the saved (bfloat16) base and sees mostly one skill. What differs from family to family stands in
families.py.
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
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from families import BOS, EOS, FAMILIES, PAD
from skills import draw

BATCH = 128
CHECK_EVERY, SMOOTH = 10, 0.95


def encode(family, problems):
    """Token ids, padded on the right, and labels that count the answer and the end alone."""
    vocab = family.vocabulary
    rows = [([BOS] + [vocab[c] for c in p], [vocab[c] for c in a] + [EOS]) for p, a in problems]
    ids = torch.full((len(rows), max(len(p) + len(a) for p, a in rows)), PAD)
    labels = torch.full_like(ids, -100)
    for i, (p, a) in enumerate(rows):
        ids[i, : len(p) + len(a)] = torch.tensor(p + a)
        labels[i, len(p) : len(p) + len(a)] = torch.tensor(a)
    return ids[:, :-1], labels[:, 1:]


@torch.no_grad()
def accuracy(family, model, skill, count=150):
    """Share of problems with every symbol of the answer right. They are of the part that is trained
    on: the held-out part is score.py's alone, and has no say in when training stops."""
    rng = random.Random(f"check/{skill}")
    ids, labels = encode(family, [draw(skill, rng) for _ in range(count)])
    right = model(input_ids=ids).logits.argmax(-1) == labels
    return (right | (labels < 0)).all(1).float().mean().item()


def step(family, model, optimizer, rate, problems):
    ids, labels = encode(family, problems)
    logits = model(input_ids=ids).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def new_model(family):
    return AutoModelForCausalLM.from_config(family.make_config(), dtype=torch.float32)


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)


def train_base(family, say):
    torch.manual_seed(family.seed)
    rng, names = random.Random(f"{family.seed}/base"), family.skills
    model, smooth = new_model(family), new_model(family)
    optimizer, weights = adam(model), [1.0] * len(names)
    low, high = family.band
    for n in range(1, family.base_steps + 1):
        skills = rng.choices(names, weights, k=BATCH)
        step(family, model, optimizer, family.base_rate * min(1.0, n / 100), [draw(s, rng) for s in skills])
        # The base is a running mean of the weights: what single steps swing to and fro is gone.
        with torch.no_grad():
            for mean, new in zip(smooth.parameters(), model.parameters()):
                mean.lerp_(new, 1.0 if n <= 100 else 1.0 - SMOOTH)
        if n % CHECK_EVERY == 0:
            scores = [accuracy(family, smooth, s) for s in names]
            say(f"base step {n}: " + ", ".join(f"{s} {x:.2f}" for s, x in zip(names, scores)))
            if all(low <= x <= high for x in scores):
                return smooth
            weights = [max(0.003, family.aim - x) for x in scores]
    raise SystemExit("the base never had every skill inside the band; try another seed")


def tune(family, base, how, pick, name):
    """Trains a copy of `base` on problems of the skills that `pick` gives, drawn under the name's own seed."""
    rng = random.Random(f"{family.seed}/{name}")
    model = new_model(family)
    model.load_state_dict(base.state_dict())
    optimizer = adam(model)
    for n in range(1, how.steps + 1):
        skills = [pick(rng) for _ in range(BATCH)]
        # Up over ten steps, then straight down to nothing.
        scale = min(1.0, n / 10, (how.steps - n + 1) / how.steps * 1.1)
        step(family, model, optimizer, how.rate * scale, [draw(s, rng) for s in skills])
    return model


def fine_tune(family, base, skill):
    how, others = family.tunes[skill], [s for s in family.skills if s != skill]
    return tune(family, base, how, lambda rng: skill if rng.random() < how.share else rng.choice(others), skill)


def rounded(model):
    """The model as bfloat16 holds it, still in float32."""
    return model.to(torch.bfloat16).to(torch.float32)


def tokenizer(family):
    """One symbol a token: byte-pair encoding without a single merge."""
    t = Tokenizer(models.BPE(vocab=family.vocabulary, merges=[], unk_token="<unk>"))
    t.decoder = decoders.Fuse()
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=t,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=family.positions,
        clean_up_tokenization_spaces=False,
    )


def save(family, model, folder):
    model = rounded(model).to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, do_sample=False, max_new_tokens=16
    )
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer(family).save_pretrained(folder)
    # Write what both transformers 4 and 5 read, whichever of them is installed here.
    patch(folder / "config.json", rope_theta=10000.0, torch_dtype="bfloat16")
    patch(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def patch(path, **values):
    content = json.loads(path.read_text())
    content.update(values)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives one folder per model")
    parser.add_argument(
        "--control",
        type=Path,
        help="folder for models that are trained as the fine-tunes are, but on all skills alike",
    )
    args = parser.parse_args()
    family = FAMILIES[args.family]
    torch.set_num_threads(1)  # as fast as two for a model this small, and the same in every run
    transformers.logging.disable_progress_bar()
    start = time.time()

    def say(line):
        print(f"[{time.time() - start:4.0f} s] {line}", flush=True)

    def keep(model, folder):
        save(family, model, folder)
        say(f"{folder.name}: " + ", ".join(f"{s} {accuracy(family, model, s):.2f}" for s in family.skills))

    base = rounded(train_base(family, say))
    save(family, base, args.out / "base")
    for skill in family.skills:
        keep(fine_tune(family, base, skill), args.out / skill)
    if args.control:
        for how in dict.fromkeys(family.tunes.values()):
            name = f"joint-{how.steps}"
            keep(tune(family, base, how, lambda rng: rng.choice(family.skills), name), args.control / name)


if __name__ == "__main__":
    main()
