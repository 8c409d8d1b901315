"""Holds what weld makes of data to torch: statistics of activations, and the methods that read them.

    python tests/peer/data.py --weld target/release/weld --work DIR

First `weld stats` runs the small models of this repository, and each Gram matrix and mean magnitude is compared with
what forward hooks of transformers see at the linear layer, summed in float64. Then random matrices are merged by
`regmean`, `fisher` and `aim`, and compared with the functions below, which follow the papers and share nothing with
weld. Then statistics of a recipe are made together, and the merge compared with RegMean++ in torch. Last the script of `docs/statistics.md` makes Fisher information, and a merge reads it. Prints the largest error
of each, relative to the largest element, and exits with 1 if one is above its bound.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import safetensors.torch
import torch
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
# States are f32 in both.
BOUND_OF_STATS = 1e-4
# Updates are rounded to f32.
BOUND_OF_METHODS = 1e-6


def error(found, expected):
    largest = expected.abs().max().clamp_min(1e-30)
    return ((found.double() - expected.double()).abs().max() / largest).item()


def sequences(vocabulary):
    torch.manual_seed(0)
    return [torch.randint(3, vocabulary, (length,)).tolist() for length in (5, 17, 30, 9)]


def observed(model, texts):
    """X^T X, mean |X| and the number of tokens of each linear layer, by the name of its weight."""
    sums = {}

    def hook(name):
        def see(_module, inputs):
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double()
            gram, size, tokens = sums.get(name, (0, 0, 0))
            sums[name] = (gram + x.T @ x, size + x.abs().sum(0), tokens + len(x))

        return see

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(hook(f"{name}.weight"))
    with torch.no_grad():
        for tokens in texts:
            # The last token is only predicted.
            model(torch.tensor([tokens[:-1]]))
    return {name: (gram, size / tokens, tokens) for name, (gram, size, tokens) in sums.items()}


def statistics(weld, work):
    folders = sorted((ROOT / "tests/peer/states").iterdir()) + [ROOT / "recipes/family/base"]
    worst = 0.0
    for folder in folders:
        vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
        texts = sequences(vocabulary)
        (work / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        out = work / "stats.safetensors"
        command = [weld, "stats", folder, "--data", work / "texts.jsonl", "--out", out, "--force", "-q"]
        subprocess.run(command, check=True)
        found = safetensors.torch.load_file(out)
        with safetensors.safe_open(out, "pt") as file:
            inputs = json.loads(file.metadata()["weldment"])["inputs"]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        compared, most = 0, 0.0
        for name, (gram, size, tokens) in observed(model.eval(), texts).items():
            if name not in inputs:
                # Heads, and what transformers calls otherwise.
                continue
            [entry] = inputs[name]
            assert found[f"tokens/{entry}"].item() == tokens, (folder.name, name)
            most = max(most, error(found[f"gram/{entry}"], gram), error(found[f"magnitude/{entry}"], size))
            compared += 1
        assert compared >= 4, (folder.name, compared)
        print(f"stats {folder.name}: {compared} of {len(inputs)} weights, largest error {most:.1e}")
        worst = max(worst, most)
    return worst <= BOUND_OF_STATS


def regmean(weights, grams, tokens, counts, reduction):
    """As in the authors' code, in the order of its steps."""
    total, right = 0, 0
    for weight, gram, seen, count in zip(weights, grams, tokens, counts):
        gram = gram / seen * count
        gram = gram * reduction + torch.diag(gram.diag()) * (1 - reduction)
        total = total + gram
        right = right + gram @ weight.T
    return (torch.inverse(total) @ right).T


def fisher(weights, information, counts):
    sums = [f * c for f, c in zip(information, counts)]
    return sum(w * f for w, f in zip(weights, sums)) / sum(sums)


def aim(base, merged, magnitude, omega):
    importance = magnitude / magnitude.max()
    return base + (merged - base) * (1 - importance * (1 - omega))


def methods(weld, work):
    torch.manual_seed(1)
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(3)]
    shapes = [(40, 24), (24, 40), (33, 33)]
    models = [{n: torch.randn(s) for n, s in zip(names, shapes)} for _ in range(4)]
    stats = []
    for _ in range(4):
        held = {}
        for name, (rows, columns) in zip(names, shapes):
            x = torch.randn(70, columns) * torch.rand(columns)
            held[f"gram/{name}"] = x.T @ x
            held[f"magnitude/{name}"] = x.abs().mean(0)
            held[f"tokens/{name}"] = torch.tensor([70], dtype=torch.int32)
            held[f"fisher/{name}"] = torch.rand(rows, columns) ** 4 * 1e-9
        stats.append(held)
    for number, (model, held) in enumerate(zip(models, stats)):
        safetensors.torch.save_file(model, work / f"m{number}.safetensors", {"format": "pt"})
        safetensors.torch.save_file(held, work / f"s{number}.safetensors")
    counts = [1.0, 0.5, 2.0]

    def merged(head, parameters):
        entries = "".join(
            f"- {{model: m{n}.safetensors, statistics: s{n}.safetensors, parameters: {{weight: {counts[n]}}}}}\n"
            for n in range(3)
        )
        body = entries if "models" not in head else ""
        models_line = "models:\n" if body else ""
        (work / "recipe.yml").write_text(f"{head}{models_line}{body}parameters: {parameters}\nout_dtype: float64\n")
        command = [weld, "merge", "recipe.yml", "out", "--force", "-q", "--no-check"]
        subprocess.run(command, check=True, cwd=work)
        return safetensors.torch.load_file(work / "out/model.safetensors")

    wide = [{n: t.double() for n, t in model.items()} for model in models]
    of = lambda kind, name: [held[f"{kind}/{name}"].double() for held in stats]
    cases = {
        "regmean": (
            merged("merge_method: regmean\n", "{reduction: 0.9}"),
            lambda n: regmean([m[n] for m in wide[:3]], of("gram", n)[:3], [70] * 3, counts, 0.9),
        ),
        "regmean, plain": (
            merged("merge_method: regmean\n", "{reduction: 1}"),
            lambda n: regmean([m[n] for m in wide[:3]], of("gram", n)[:3], [70] * 3, counts, 1.0),
        ),
        "fisher": (
            merged("merge_method: fisher\n", "{normalize: false}"),
            lambda n: fisher([m[n] for m in wide[:3]], of("fisher", n)[:3], counts),
        ),
        "aim": (
            merged(
                "merge_method: aim\nbase_model: m3.safetensors\nstatistics: s3.safetensors\n"
                "models: [{model: m0.safetensors}]\n",
                "{omega: 0.3}",
            ),
            lambda n: aim(wide[3][n], wide[0][n], of("magnitude", n)[3], 0.3),
        ),
    }
    worst = 0.0
    for name, (found, expected) in cases.items():
        most = max(error(found[n], expected(n)) for n in names)
        print(f"{name}: largest error {most:.1e}")
        worst = max(worst, most)
    return worst <= BOUND_OF_METHODS


def together(weld, work):
    """`weld stats RECIPE` and the merge by its files, beside RegMean++ by whole forward passes of transformers: each
    model's own layer behind the merged embedding and the merged layers before it."""
    family, reduction = ROOT / "recipes/family", 0.5
    names = ("sort", "add", "cipher")
    texts = sequences(len(json.loads((family / "base/tokenizer.json").read_text())["model"]["vocab"]))
    texts = {name: [tokens[at:] + tokens[:at] for tokens in texts] for at, name in enumerate(names)}
    entries = ""
    for name in names:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[name])
        (work / f"{name}.jsonl").write_text(lines)
        entries += f"- {{model: {family / name}, statistics: {name}-gram.safetensors}}\n"
    (work / "recipe.yml").write_text(
        f"merge_method: regmean\nmodels:\n{entries}parameters: {{reduction: {reduction}}}\ndtype: float32\n"
    )
    data = [f"{name}.jsonl" for name in names]
    subprocess.run([weld, "stats", "recipe.yml", "--force", "-q", "--data", *data], check=True, cwd=work)
    subprocess.run([weld, "merge", "recipe.yml", "out", "--force", "-q"], check=True, cwd=work)
    found = safetensors.torch.load_file(work / "out/model.safetensors")

    models = [
        AutoModelForCausalLM.from_pretrained(family / name, dtype=torch.float32, attn_implementation="eager").eval()
        for name in names
    ]
    own = [{name: value.double().clone() for name, value in model.named_parameters()} for model in models]
    merged = {name: sum(values[name] for values in own) / len(own) for name in own[0]}

    def take(model, is_taken):
        with torch.no_grad():
            for name, value in model.named_parameters():
                if is_taken(name):
                    value.copy_(merged[name])

    for model in models:
        take(model, lambda name: "embed_tokens" in name)
    for layer in range(models[0].config.num_hidden_layers):
        start = f"model.layers.{layer}."
        seen = [observed(model, texts[name]) for model, name in zip(models, names)]
        for name in [name for name in seen[0] if name.startswith(start)]:
            grams, _, tokens = zip(*(entries[name] for entries in seen))
            weights = [values[name] for values in own]
            merged[name] = regmean(weights, grams, tokens, [1.0] * len(names), reduction)
        for model in models:
            take(model, lambda name: name.startswith(start))
    # The update's error is that of states in f32, which the inverse enlarges.
    worst = max(error(found[name], merged[name]) for name in found)
    print(f"statistics made together, {len(found)} tensors: largest error {worst:.1e}")
    return worst <= BOUND_OF_STATS


def script(weld, work):
    """The script of the page, on two models of the family."""
    page = (ROOT / "docs/statistics.md").read_text()
    text = re.search(r'```python title="fisher.py"\n(.*?)```', page, re.DOTALL).group(1)
    (work / "fisher.py").write_text(text)
    (work / "lines.jsonl").write_text('{"text": "add:37+45=082"}\n{"text": "sort:31425926=12234569"}\n')
    family = ROOT / "recipes/family"
    entries = ""
    for model in ("sort", "add"):
        out = work / f"{model}-fisher.safetensors"
        subprocess.run([sys.executable, work / "fisher.py", family / model, work / "lines.jsonl", out], check=True)
        assert all((values >= 0).all() for values in safetensors.torch.load_file(out).values())
        entries += f"- {{model: {family / model}, statistics: {out}}}\n"
    (work / "recipe.yml").write_text(f"merge_method: fisher\nmodels:\n{entries}out_dtype: float64\n")
    subprocess.run([weld, "merge", "recipe.yml", "out", "--force", "-q"], check=True, cwd=work)
    found = safetensors.torch.load_file(work / "out/model.safetensors")
    weights = [safetensors.torch.load_file(family / model / "model.safetensors") for model in ("sort", "add")]
    information = [safetensors.torch.load_file(work / f"{model}-fisher.safetensors") for model in ("sort", "add")]
    worst = 0.0
    for name in found:
        w = [model[name].double() for model in weights]
        f = [held[f"fisher/{name}"].double() for held in information]
        zero = (f[0] + f[1]) == 0
        expected = torch.where(zero, (w[0] + w[1]) / 2, fisher(w, f, [1.0, 1.0]))
        worst = max(worst, error(found[name], expected))
    print(f"the page's script, {len(found)} tensors: largest error {worst:.1e}")
    return worst <= BOUND_OF_METHODS


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weld", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    weld, work = arguments.weld.resolve(), arguments.work.resolve()
    fine = [statistics(weld, work), methods(weld, work), together(weld, work), script(weld, work)]
    sys.exit(0 if all(fine) else 1)


main()
