"""Scores: `weld eval` against transformers and lm-eval, item by item.

    python tests/peer/eval.py --weld target/release/weld --work target/eval-work [--lm-eval PYTHON] [--time]

Takes the problems that tests/family/score.py asks, choices and texts of the same symbols, has weld score models of the
small family, and computes the same with transformers in float32: the verdict of greedy decoding, the log-likelihood
of each answer, choice and text. Any other verdict is a failure, and so is a log-likelihood more than 1e-4 off. The same again with `--chat-template`, by
a template of the family's symbols.
`--lm-eval` is a Python that has lm-eval: it scores the same files, by tasks of its own, and its verdicts, acc,
acc_norm and bits per byte must be the same. `--time` prints how long both take for the problems.
"""

import sys

sys.dont_write_bytecode = True

import argparse
import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/family"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

LIMIT = 1e-4
MODELS = ("base", "sort", "add")
COUNT, SEED, FEW = 500, 1, 100


def write(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))


def make_tasks(work):
    """The files of tasks, by name: problems of each skill, choices, texts."""
    from skills import SKILLS, test_set

    rng, tasks = random.Random(7), {}
    for skill in SKILLS:
        tasks[skill] = [{"prompt": p, "answer": a} for p, a in test_set(skill, COUNT, SEED)]
    choices, texts = [], []
    for skill in SKILLS:
        for prompt, answer in test_set(skill, FEW, SEED + 1):
            wrong = {answer[:-1] + c for c in rng.sample("abcdefghij0123456789", 4)} - {answer}
            wrong = sorted(wrong)[:2] + [answer[: len(answer) // 2]]
            options = wrong + [answer]
            rng.shuffle(options)
            choices.append({"prompt": prompt, "choices": options, "answer": options.index(answer)})
            texts.append({"text": prompt + answer})
    texts.append({"text": "".join(text["text"] for text in texts)[:150]})  # longer than the model takes
    tasks |= {"choices": choices, "texts": texts}
    paths = {name: work / f"{name}.jsonl" for name in tasks}
    for name, items in tasks.items():
        write(paths[name], items)
    return tasks, paths


def weld(program, model, paths, work, *more):
    """The result of each item, by task."""
    items = work / "items.jsonl"
    command = [program, "eval", str(model), "--tasks", *map(str, paths), "--items", str(items), "-q", *more]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds, found = time.perf_counter() - started, {}
    for line in items.read_text().splitlines():
        item = json.loads(line)
        found.setdefault(item["task"], []).append(item)
    return found, seconds


def likelihoods(model, rows, size=64):
    """Of each row, tokens and where to begin: the log-probability of the tokens from there on."""
    import torch

    order, found = sorted(range(len(rows)), key=lambda at: len(rows[at][0])), [0.0] * len(rows)
    for start in range(0, len(order), size):
        batch = [rows[at] for at in order[start : start + size]]
        ids = torch.zeros(len(batch), max(len(row) for row, _ in batch), dtype=torch.long)
        for line, (row, _) in zip(ids, batch):
            line[: len(row)] = torch.tensor(row)  # what follows changes nothing before it
        with torch.no_grad():
            logits = model(ids).logits.double().log_softmax(-1)
        for place, at in enumerate(order[start : start + size]):
            row, first = rows[at]
            found[at] = sum(logits[place, index - 1, row[index]].item() for index in range(first, len(row)))
    return found


CHAT = """{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- message['content'].rstrip('=') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '=' }}
{%- endif %}
"""


def chat_model(folder, work):
    """A model of the family with a chat template."""
    copy = work / f"chat-{folder.name}"
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    (copy / "chat_template.jinja").write_text(CHAT)
    return copy


def chats_of_transformers(folder, items):
    """The log-likelihood of each answer, or choice, after the prompt that the model's template writes."""
    from score import load

    model, tokenizer = load(folder)
    rows = []
    for item in items:
        turn = [{"role": "user", "content": item["prompt"]}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        first = tokenizer.apply_chat_template(turn, tokenize=True, add_generation_prompt=True, return_dict=False)
        for answer in item.get("choices", [item["answer"]]):
            rows.append((tokenizer(prompt + answer, add_special_tokens=False)["input_ids"], len(first)))
    return likelihoods(model, rows)


def compare_chats(outcome, args, tasks, paths, work):
    """Prompts by a chat template: log-likelihoods of transformers, and of lm-eval if it is there."""
    folder = chat_model(ROOT / "recipes/family/add", work)
    names = ("add", "choices")
    found, _ = weld(args.weld, folder, [paths[name] for name in names], work, "--chat-template")
    for name in names:
        expected = iter(chats_of_transformers(folder, tasks[name]))
        for item in found[name]:
            for one in item.get("choices", [item["log_likelihood"]]):
                outcome.near(f"chat {name}:{item['line']}", one, next(expected))
    if args.lm_eval:
        chosen = {name: paths[name] for name in names}
        samples = with_lm_eval(args.lm_eval, folder, chosen, work, "--apply_chat_template")
        compare_lm_eval(outcome, "chat", found, samples)


def with_transformers(folder, tasks):
    """The same by transformers: verdicts of greedy decoding, and log-likelihoods; and the seconds of the former."""
    from score import answers, load

    model, tokenizer = load(folder)
    encode = lambda text: tokenizer(text)["input_ids"]
    longest = model.config.max_position_embeddings
    verdicts, likely, seconds = {}, {}, 0.0
    for name, items in tasks.items():
        if name == "texts":
            rows, counts = [], []
            for item in items:
                ids = encode(item["text"])
                ends = [(at, min(at + longest, len(ids))) for at in range(1, len(ids), longest)]
                starts = [max(0, end - 1 - longest) for _, end in ends]
                rows += [(ids[start:end], at - start) for start, (at, end) in zip(starts, ends)]
                counts.append(len(ends))
            pieces = iter(likelihoods(model, rows))
            likely[name] = [sum(next(pieces) for _ in range(count)) for count in counts]
        elif name == "choices":
            rows = [
                (encode(item["prompt"] + choice), len(encode(item["prompt"]))) for item in items for choice in item["choices"]
            ]
            each = iter(likelihoods(model, rows))
            likely[name] = [[next(each) for _ in item["choices"]] for item in items]
            best = [max(range(len(choices)), key=choices.__getitem__) for choices in likely[name]]
            verdicts[name] = [at == item["answer"] for at, item in zip(best, items)]
        else:
            started = time.perf_counter()
            written = answers(model, tokenizer, [item["prompt"] for item in items])
            seconds += time.perf_counter() - started
            verdicts[name] = [written[item["prompt"]] == item["answer"] for item in items]
            likely[name] = likelihoods(
                model, [(encode(item["prompt"] + item["answer"]), len(encode(item["prompt"]))) for item in items]
            )
    return verdicts, likely, seconds


TASKS = {
    "choices": """
task: weld_choices
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "texts": """
task: weld_texts
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
    "answers": """
task: weld_%s
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
generation_kwargs: {until: ["</s>"], max_gen_toks: 16, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


def with_lm_eval(python, folder, paths, work, *options):
    """lm-eval's samples, by task."""
    definitions, out = work / "lm-eval-tasks", work / "lm-eval-out"
    definitions.mkdir(exist_ok=True)
    for name, path in paths.items():
        text = TASKS[name] % path if name in TASKS else TASKS["answers"] % (name, path)
        (definitions / f"{name}.yaml").write_text(text)
    environment = os.environ | {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hf")}
    # Of a tokenizer that begins texts with a token, lm-eval scores that token too, after itself, unless it is told not to.
    for names, more in ([name for name in paths if name != "texts"], ""), (["texts"] if "texts" in paths else [], ",add_bos_token=False"):
        if not names:
            continue
        command = [python, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "64"]
        command += ["--model_args", f"pretrained={folder},dtype=float32{more}", "--include_path", str(definitions)]
        command += ["--tasks", ",".join(f"weld_{name}" for name in names), "--output_path", str(out), "--log_samples", *options]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    samples = {}
    for name in paths:
        newest = max(out.rglob(f"samples_weld_{name}_*.jsonl"), key=lambda path: path.stat().st_mtime)
        rows = [json.loads(line) for line in newest.read_text().splitlines()]
        samples[name] = sorted(rows, key=lambda row: row["doc_id"])
    return samples


class Outcome:
    """Counts what was compared, and what differs."""

    def __init__(self):
        self.compared, self.failed, self.worst = 0, 0, 0.0

    def same(self, what, found, expected):
        self.compared += 1
        if found != expected:
            self.failed += 1
            print(f"{what}: {found}, expected {expected}")

    def near(self, what, found, expected):
        self.compared += 1
        off = abs(found - expected)
        self.worst = max(self.worst, off)
        if not off <= LIMIT:
            self.failed += 1
            print(f"{what}: {found}, expected {expected}")


def compare_transformers(outcome, model, found, verdicts, likely):
    for name, items in found.items():
        for at, item in enumerate(items):
            what = f"{model} {name}:{item['line']}"
            if name in verdicts:
                outcome.same(what, item["correct"], verdicts[name][at])
            if at < len(likely[name]):
                expected = likely[name][at]
                if name == "choices":
                    for one, other in zip(item["choices"], expected):
                        outcome.near(what, one, other)
                else:
                    outcome.near(what, item["log_likelihood"], expected)


def compare_lm_eval(outcome, model, found, samples):
    for name, rows in samples.items():
        for item, row in zip(found[name], rows, strict=True):
            what = f"{model} {name}:{item['line']} (lm-eval)"
            if name == "texts":
                bits = row["bits_per_byte"]
                outcome.near(what, item["log_likelihood"], bits[0] if isinstance(bits, list) else bits)
            elif name == "choices":
                outcome.same(what, item["correct"], row["acc"] == 1)
                outcome.same(what, item["correct_normalised"], row["acc_norm"] == 1)
                for one, (other, *_) in zip(item["choices"], (response[0] for response in row["resps"])):
                    outcome.near(what, one, float(other))
            else:
                outcome.same(what, item["correct"], row["exact_match"] == 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weld", required=True, help="the program")
    parser.add_argument("--work", type=Path, required=True, help="a folder for files on the way")
    parser.add_argument("--lm-eval", help="a Python that has lm-eval")
    parser.add_argument("--models", nargs="+", default=MODELS, help="models of the family")
    parser.add_argument("--time", action="store_true", help="print times")
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    tasks, paths = make_tasks(work)
    import torch

    torch.set_num_threads(os.cpu_count())
    outcome = Outcome()
    for name in args.models:
        folder = ROOT / "recipes/family" / name
        found, _ = weld(args.weld, folder, paths.values(), work)
        verdicts, likely, seconds = with_transformers(folder, tasks)
        compare_transformers(outcome, name, found, verdicts, likely)
        problems = [path for task, path in paths.items() if task not in ("choices", "texts")]
        written, _ = weld(args.weld, folder, problems, work, "--generate", "--max-tokens", "16")
        for task, items in written.items():
            for item, once in zip(items, found[task]):
                outcome.same(f"{name} {task}:{item['line']} (--generate)", item["correct"], once["correct"])
        if args.time:
            once = min(weld(args.weld, folder, problems, work)[1] for _ in range(3))
            token = min(weld(args.weld, folder, problems, work, "--generate", "--max-tokens", "16")[1] for _ in range(3))
            print(f"{name}: {4 * COUNT} problems, transformers {seconds:.2f} s, weld {once:.2f} s ({seconds / once:.1f} times as fast), "
                  f"with --generate {token:.2f} s ({seconds / token:.1f})")
        if args.lm_eval and name == args.models[0]:
            compare_lm_eval(outcome, name, found, with_lm_eval(args.lm_eval, folder, paths, work))
    compare_chats(outcome, args, tasks, paths, work)
    print(f"{outcome.compared} compared, {outcome.failed} differ; log-likelihoods at most {outcome.worst:.1e} off")
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
