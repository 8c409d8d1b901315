"""Greedy exact-match accuracy per skill of any checkpoints of a small family, as a Markdown table.

    python tests/family/score.py recipes/family/* merged

An answer counts when the model, given the prompt alone, writes exactly it and then ends. The problems
are the same in every run and none of them was ever trained on. The vocabulary tells which family the
checkpoints are of. Arguments that are not checkpoint folders (a README, say) are skipped, as long as
one is left.
"""

import sys

sys.dont_write_bytecode = True

import argparse
from collections import defaultdict
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from families import FAMILIES
from skills import test_set


def load(folder):
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except TypeError:  # older transformers
        model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def answers(model, tokenizer, prompts):
    """What the model writes for each prompt, up to its end mark; None where it never ends."""
    by_length, written = defaultdict(list), {}
    for prompt in prompts:
        by_length[len(prompt)].append(prompt)
    for same in by_length.values():  # prompts of one length need no padding
        ids = tokenizer(same, return_tensors="pt", return_token_type_ids=False)
        out = model.generate(
            **ids,
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        for prompt, row in zip(same, out[:, ids["input_ids"].shape[1] :].tolist()):
            ended = tokenizer.eos_token_id in row
            row = row[: row.index(tokenizer.eos_token_id)] if ended else []
            written[prompt] = tokenizer.decode(row) if ended else None
    return written


def skills_of(folder):
    """What a checkpoint was taught, by its vocabulary."""
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    for family in FAMILIES.values():
        if family.vocabulary == vocabulary:
            return family.skills
    raise SystemExit(f"{folder}: its vocabulary is that of none of the families {', '.join(FAMILIES)}")


def score(skills, model, tokenizer, count, seed):
    scores = []
    for skill in skills:
        problems = test_set(skill, count, seed)
        written = answers(model, tokenizer, [p for p, _ in problems])
        scores.append(100 * sum(written[p] == a for p, a in problems) / count)
    return scores


def row(name, scores):
    return f"| {name} | " + " | ".join(f"{x:.1f}" for x in scores + [sum(scores) / len(scores)]) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, help="checkpoint folders")
    parser.add_argument("--count", type=int, default=500, help="problems per skill (default 500)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the problems (default 1)")
    args = parser.parse_args()
    folders = [m for m in args.models if (m / "config.json").is_file()]
    if not folders:
        parser.error("none of these is a checkpoint folder")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    skills = skills_of(folders[0])
    if any(skills_of(folder) != skills for folder in folders):
        parser.error("these are checkpoints of several families; score each family by itself")
    print("| model | " + " | ".join(skills) + " | mean |")
    print("|---|" + "---:|" * (len(skills) + 1))
    for folder in folders:
        print(row(folder.name or folder, score(skills, *load(folder), args.count, args.seed)), flush=True)


if __name__ == "__main__":
    main()
