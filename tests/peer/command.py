"""Merges scored by lm-eval as a command: `weld eval --command` and a study, offline, against weld's own scores.

    python tests/peer/command.py --weld target/release/weld --work target/command-work --lm-eval PYTHON

lm-eval scores the small family and merges of it on task files of its own: problems (exact match), choices (acc) and texts
(bits per byte). weld scores the same items itself. The numbers must be the same, those of texts to 1e-4; and a study whose
trials lm-eval scores must find the scores that weld gives its winner, and leave no merge behind.
"""

import sys

sys.dont_write_bytecode = True

import argparse
import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/family"))
sys.path.insert(0, str(ROOT / "tests/peer"))

from eval import TASKS, make_tasks, write

KEPT = ("add", "choices", "texts")
FEW = 60


def definitions(work, paths):
    """lm-eval's own tasks, for all items or, as `weld_NAME_SPLIT`, for a part of them."""
    folder = work / "tasks"
    folder.mkdir(exist_ok=True)
    for name, path in paths.items():
        text = TASKS[name] % path if name in TASKS else TASKS["answers"] % (name, path)
        (folder / f"{name}.yaml").write_text(text)
    return folder


def command(python, folder, names):
    tasks = ",".join(f"weld_{name}" for name in names)
    # weld scores a text after a beginning token, and not that token.
    bos = ",add_bos_token=False" if names == ("texts",) else ""
    return (
        f"{python} -m lm_eval --model hf --device cpu --batch_size 64 --model_args pretrained={{model}},dtype=float32{bos} "
        f"--include_path {folder} --tasks {tasks} --output_path {{out}}"
    )


def weld(program, *words):
    environment = os.environ | {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stderr}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weld", required=True, help="the program")
    parser.add_argument("--work", type=Path, required=True, help="a folder for files on the way")
    parser.add_argument("--lm-eval", required=True, help="a Python that has lm-eval")
    args = parser.parse_args()
    work = args.work.resolve()
    scratch = work / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ["HF_HOME"] = str(work / "hf")
    tasks, paths = make_tasks(work)
    for name in KEPT:
        # Some of every skill.
        write(paths[name], tasks[name][:: len(tasks[name]) // FEW][:FEW])
    paths = {name: paths[name] for name in KEPT}
    folder = definitions(work, paths)
    recipe = ROOT / "recipes/task_arithmetic.yml"
    failed = 0
    for subject in (ROOT / "recipes/family/add", recipe):
        own = json.loads(weld(args.weld, "eval", subject, "--tasks", *paths.values(), "-q", "--format", "json"))
        own = {row["task"]: {one["name"]: one for one in row["metrics"]} for row in own["details"]["metrics"]}
        found = {}
        for names in (("add", "choices"), ("texts",)):
            words = ["eval", subject, "--command", command(args.lm_eval, folder, names), "--scratch", scratch]
            report = json.loads(weld(args.weld, *words, "-q", "--format", "json"))
            found |= {one["name"]: one for one in report["details"]["metrics"]}
        for name, metric in (("add", "accuracy"), ("choices", "accuracy"), ("texts", "bits_per_byte")):
            one, expected = found[f"weld_{name}"], own[name][metric]
            off = abs(one["value"] - expected["value"])
            lower = metric == "bits_per_byte"
            same = off <= (1e-4 if lower else 1e-9) and one["items"] == FEW and one["larger_is_better"] != lower
            failed += not same
            print(f"{subject.name} {name}: lm-eval {one['value']:.6f} ± {one['standard_error']}, weld {expected['value']:.6f}",
                  "" if same else "DIFFERENT")
    study = work / "study.yml"
    line = command(args.lm_eval, folder, ("add",))
    study.write_text(
        f"recipe: {recipe}\ncommand: {json.dumps(line)}\ntrials: 3\nstrategy: random\nscratch: {scratch}\n"
        "space: {'models[2].parameters.weight': {uniform: [0, 1]}}\n"
    )
    subprocess.run(["rm", "-rf", work / "found", work / "best"], check=True)
    weld(args.weld, "study", study, work / "found", "--run-commands")
    trials = [json.loads(line) for line in (work / "found/trials.jsonl").read_text().splitlines()]
    best = max(trials, key=lambda trial: trial["score"])
    weld(args.weld, "study", "best", work / "found", work / "best", "-q")
    own = json.loads(weld(args.weld, "eval", work / "best", "--tasks", paths["add"], "-q", "--format", "json"))
    own = own["details"]["metrics"][0]["metrics"][0]["value"]
    print(f"study: best of {len(trials)} by lm-eval {best['score']:.6f}, weld {own:.6f}")
    failed += abs(best["score"] - own) > 1e-9 or len(trials) != 3
    left = list(scratch.iterdir())
    print(f"{failed} differ, {len(left)} merges left")
    return 1 if failed or left else 0


if __name__ == "__main__":
    sys.exit(main())
