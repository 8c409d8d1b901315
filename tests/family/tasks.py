"""Writes problems of a family's skills as files of tasks for `weld eval` and `weld study`, one for each skill.

    python tests/family/tasks.py qwen2 --out recipes/studies/tasks

They are of the held-out tenth that nothing was trained on. weld itself splits a file into validation, to
choose by, and test.
"""

import sys

sys.dont_write_bytecode = True

import argparse
import json
from pathlib import Path

from families import FAMILIES
from skills import test_set

COUNT, SEED = 400, 3


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the files")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for skill in FAMILIES[args.family].skills:
        lines = [json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in test_set(skill, COUNT, SEED)]
        (args.out / f"{skill}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
