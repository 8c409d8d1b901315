"""Runs the study of all methods, and writes docs/leaderboard.md and the table in README.md.

    python recipes/studies/leaderboard.py [--weld target/release/weld] [--dir target/studies/family]

The study goes on where it was if it was stopped. `--dir` may name a folder that holds its trials already.
"""

import argparse
import json
import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STUDY = "recipes/studies/family.yml"
SHOWN = 8
HEAD = """\
# Leaderboard: every method on the small family

Every method that merges the small family, with the same budget of trials: chosen on the validation half of the tasks, the
best merge of each scored once on the test half. Made by one command from [`family.yml`](../recipes/studies/family.yml):

<!-- not run: it takes minutes, and the release binary -->
```sh
python recipes/studies/leaderboard.py
```

How the models were made, and what training on all skills together reaches: [the family](../recipes/family/README.md).
It is one small family of light fine-tunes. [Run a study](study.md) on yours before you believe a rank. `slerp`, `nuslerp`,
`nearswap`, `karcher`, `model_stock`, `ram`, `ramplus_tl` and `arcee_fusion` merge fewer than four of the models here.
`regmean`, `fisher` and `aim` know more than the weights: [statistics](../recipes/statistics/README.md) of problems that the
models were trained on, none of them a problem of the tasks.

"""
START, END = "<!-- leaderboard -->\n", "<!-- end of leaderboard -->\n"


def weld(binary, *words):
    return subprocess.run([binary, *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def percent(interval):
    if interval is None:
        return ""
    return f"{100 * interval['value']:.1f} ± {100 * interval['half_width']:.1f}"


def table(report):
    """The best methods, the base and the best single model, for the README."""
    lines = ["| method | validation | test |", "| --- | ---: | ---: |"]
    for row in report["leaderboard"][:SHOWN]:
        name = row["name"]
        lines.append(f"| [`{name}`](recipes/{name}.yml) | {percent(row['validation'])} | {percent(row['test'])} |")
    names = {row["name"]: row for row in report["references"]}
    best = max((row for row in report["references"]), key=lambda row: row["validation"]["value"])
    for title, row in [("the best fine-tune", best), ("the base", names["family/base"])]:
        label = f"{title} (`{row['name'].removeprefix('family/')}`)" if row is best else title
        lines.append(f"| {label} | {percent(row['validation'])} | {percent(row['test'])} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weld", default="target/release/weld")
    parser.add_argument("--dir", default="target/studies/family")
    args = parser.parse_args()
    binary, folder = os.path.abspath(args.weld), os.path.abspath(args.dir)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    subprocess.run([binary, "study", STUDY, folder], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    page = weld(binary, "study", "report", folder, "--format", "markdown")
    # How long it took is another number each time.
    page = re.sub(r", [0-9.]+ s of merging and scoring", "", page)
    (ROOT / "docs/leaderboard.md").write_text(HEAD + page)
    report = json.loads(weld(binary, "study", "report", folder, "--format", "json"))
    readme = ROOT / "README.md"
    new = START + "\n" + table(report) + "\n" + END
    text, count = re.subn(re.escape(START) + ".*?" + re.escape(END), lambda _: new, readme.read_text(), flags=re.S)
    assert count == 1, "README.md has no place for the table"
    readme.write_text(text)


if __name__ == "__main__":
    main()
