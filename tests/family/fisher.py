"""Writes what recipes/statistics holds: problems that a family was trained on, and the Fisher information of its fine-tunes.

    python tests/family/fisher.py llama --models recipes/family --out recipes/statistics

For each fine-tune `NAME.jsonl` has problems of its skill as a file of tasks, drawn from what is trained on: no problem of
the tasks is among them. `NAME-fisher.safetensors` has the mean, over these problems, of the squared gradient of the answer's
log-likelihood, in bfloat16. Gram matrices and magnitudes are made of the same problems by `weld stats`.
"""

import sys

sys.dont_write_bytecode = True

import argparse
import json
import random
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from families import FAMILIES
from skills import draw
from train import encode

COUNT, SEED = 400, 5


def problems(skill):
    """Different problems to train on, always the same ones."""
    rng, found = random.Random(f"{SEED}/{skill}"), {}
    while len(found) < COUNT:
        prompt, answer = draw(skill, rng)
        found[prompt] = answer
    return list(found.items())


def fisher(family, model, found):
    information = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for problem in found:
        ids, labels = encode(family, [problem])
        logits = model(input_ids=ids).logits
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum").backward()
        for name, weight in model.named_parameters():
            information[name] += weight.grad**2 / len(found)
    return information


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--models", type=Path, required=True, help="folder with a folder for each fine-tune")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the files")
    args = parser.parse_args()
    family = FAMILIES[args.family]
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    args.out.mkdir(parents=True, exist_ok=True)
    for skill in family.skills:
        found = problems(skill)
        lines = [json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in found]
        (args.out / f"{skill}.jsonl").write_text("".join(lines))
        model = AutoModelForCausalLM.from_pretrained(args.models / skill, dtype=torch.float32)
        information = fisher(family, model, found)
        tensors = {f"fisher/{name}": value.to(torch.bfloat16) for name, value in information.items()}
        save_file(tensors, args.out / f"{skill}-fisher.safetensors")
        (args.out / f"{skill}-fisher.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
