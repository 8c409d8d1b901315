"""Times a merge in parts, and one that goes on after it was killed, against one run.

    python benches/parts.py --weld target/release/weld --work DIR [--size 6.0] [--rounds 2]

A base and two models of so many gigabytes each in DIR, whose `ties` has 32 weight files. In each round, each after one
run: 16 parts one after the other and the join; the same parts, four at a time; and a run with `--resume` that is killed
once half of its weight files are there, and the same command again. Prints the medians of what each takes over the one run
before it. Every result is compared with that run's. The disk is synced before each.
"""

import argparse
import array
import filecmp
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import time
from pathlib import Path

COLUMNS = 2048
PARTS = 16


def model(folder, gigabytes, seed):
    """Layers of one matrix each, of normally distributed bfloat16."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    drawn = random.Random(seed)
    values = array.array("f", (drawn.gauss(0, 0.02) for _ in range(1 << 20)))
    halves = array.array("H", memoryview(values).cast("B").cast("H")[1::2].tolist()).tobytes()
    rows = int(gigabytes * 1e9) // (2 * COLUMNS * 32)
    header, at = {}, 0
    for layer in range(32):
        length = rows * COLUMNS * 2
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        header[name] = {"dtype": "BF16", "shape": [rows, COLUMNS], "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(32):
            left = rows * COLUMNS * 2
            while left:
                start = drawn.randrange(0, len(halves) // 2, 2)
                left -= file.write(halves[start : start + min(left, len(halves) // 2)])


def used():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def timed(work):
    os.sync()
    wall, before = time.perf_counter(), used()
    work()
    return time.perf_counter() - wall, used() - before


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weld", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    weld, work = arguments.weld.resolve(), arguments.work
    for seed, name in enumerate(["base", "a", "b"]):
        model(work / name, arguments.size, seed)
    entries = [{"model": f"{name}/model.safetensors", "parameters": {"weight": 0.5, "density": 0.5}} for name in "ab"]
    recipe = {"merge_method": "ties", "base_model": "base/model.safetensors", "models": entries}
    (work / "recipe.yml").write_text(json.dumps(recipe))
    shard = int(arguments.size * 1e9 / 32 * 1.01)
    words = [str(weld), "merge", "recipe.yml", "merged", "--shard-size", str(shard), "-q", "--no-check"]
    join = [str(weld), "join", "merged", "-q", "--no-check"]
    call = lambda words: subprocess.run(words, cwd=work, check=True)

    def part(number, more=()):
        return [*words, "--part", f"{number}/{PARTS}", *more]

    def one_after_the_other():
        for number in range(1, PARTS + 1):
            call(part(number))
        call(join)

    def four_at_a_time():
        for first in range(1, PARTS + 1, 4):
            running = [subprocess.Popen(part(first + at, ["--threads", "1"]), cwd=work) for at in range(4)]
            assert all(process.wait() == 0 for process in running)
        call(join)

    def killed_at_half():
        process = subprocess.Popen([*words, "--resume"], cwd=work)
        folder = work / "merged.weld-parts"
        finished = lambda: [name for name in os.listdir(folder) if name.endswith("-of-32")] if folder.exists() else []
        while len(finished()) < 16:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()

    rows = {"16 parts, one after the other": [], "16 parts, four at a time": [], "going on after a kill at half": []}
    works = [one_after_the_other, four_at_a_time, lambda: call([*words, "--resume"])]
    for _ in range(arguments.rounds):
        for row, run in zip(rows, works):
            for left in ["merged", "merged.weld-parts", "whole"]:
                shutil.rmtree(work / left, ignore_errors=True)
            wall, cpu = timed(lambda: call(words))
            print(f"one run: {wall:.2f} s, {cpu:.2f} s of processor time", flush=True)
            (work / "merged").rename(work / "whole")
            if row.startswith("going on"):
                killed_at_half()
            own_wall, own_cpu = timed(run)
            rows[row].append((own_wall / wall, own_cpu / cpu))
            names = [file.name for file in (work / "whole").iterdir()]
            _, different, lacking = filecmp.cmpfiles(work / "whole", work / "merged", names, shallow=False)
            assert not different and not lacking, (row, different, lacking)
    for row, ratios in rows.items():
        wall, cpu = (statistics.median(column) for column in zip(*ratios))
        print(f"{row}: {wall:.2f} of its time, {cpu:.2f} of its processor time")


if __name__ == "__main__":
    main()
