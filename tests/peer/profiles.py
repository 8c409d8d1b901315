"""Lets mergekit merge the recipes of recipes/ (and a few more), and `weld verify` tell whether it did.

    target/envs/peer/bin/python tests/peer/profiles.py --weld target/release/weld --work target/profiles-work [--only PART]

Each recipe is merged in float32 (written as such, and as bfloat16), step by step in bfloat16, and in float16. What mergekit
made must be exact (see expected() for the exceptions); and be refused with one element moved by several
steps, with another weight, and with two models exchanged. Random masks cannot be told: exit 3, and 1 only beyond
what they can give. Prints a table; exits 1 if a row is not as expected.

--golden DIR writes the merges that tests/it/numerics.rs verifies, small models and all.
"""

import argparse
import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True

import safetensors
import safetensors.torch
import torch
import yaml

import mergekit.merge
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

REPOSITORY = Path(__file__).resolve().parent.parent.parent
OPTIONS = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False, device="cpu")
# dtype of the arithmetic, dtype that is written.
VARIANTS = {
    "f32": ("float32", "float32"),
    "f32-bf16": ("float32", "bfloat16"),
    "bf16": ("bfloat16", "bfloat16"),
    "f16": ("float16", "float16"),
}
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
KNOWN = ("linear", "passthrough", "task_arithmetic", "ties", "slerp", "nuslerp", "model_stock")
A, B, C, D = ({"model": f"family/{name}"} for name in ("sort", "reverse", "add", "cipher"))


def weighted(*pairs):
    return [model | {"parameters": {"weight": weight}} for model, weight in pairs]


TASKS = {"base_model": "family/base"}
MORE = {
    "linear-two": {"merge_method": "linear", "models": weighted((A, 0.6), (D, 0.4))},
    "linear-raw": {
        "merge_method": "linear",
        "models": weighted((A, 0.61), (B, 0.3), (D, 0.2)),
        "parameters": {"normalize": False},
    },
    "task-normalised": TASKS
    | {
        "merge_method": "task_arithmetic",
        "models": weighted((A, 0.6), (B, 0.3), (C, -0.1), (D, 0.7)),
        "parameters": {"normalize": True, "lambda": 0.7},
    },
    "ties-sparse": TASKS
    | {
        "merge_method": "ties",
        "models": weighted((A, 0.6), (B, 0.3), (D, 0.7)),
        "parameters": {"density": 0.2},
    },
    "ties-raw": TASKS
    | {
        "merge_method": "ties",
        "models": weighted((A, 0.6), (D, 0.4)),
        "parameters": {"density": 0.5, "normalize": False},
    },
    "dare-whole": TASKS
    | {
        "merge_method": "dare_ties",
        "models": weighted((A, 0.6), (B, 0.3), (D, 0.7)),
        "parameters": {"density": 1.0},
    },
    "slerp-flat": {
        "merge_method": "slerp",
        "base_model": "family/sort",
        "models": [A, D],
        "parameters": {"t": 0.3},
    },
    "nuslerp-flat": TASKS | {"merge_method": "nuslerp", "models": weighted((A, 0.6), (D, 0.4))},
    "nuslerp-models": {
        "merge_method": "nuslerp",
        "models": weighted((A, 0.6), (D, 0.4)),
        "parameters": {"nuslerp_flatten": False},
    },
    "stock-rows": TASKS
    | {
        "merge_method": "model_stock",
        "models": [A, B, D],
        "parameters": {"filter_wise": True},
    },
}


def recipes():
    found = {}
    for path in sorted((REPOSITORY / "recipes").glob("*.yml")):
        recipe = yaml.safe_load(path.read_text())
        if recipe.get("parameters", {}).get("rescale") == "expectation":
            recipe["parameters"]["rescale"] = True  # mergekit has no other
        try:
            MergeConfiguration.model_validate(recipe)
            mergekit.merge_methods.get(recipe["merge_method"])
        except Exception:
            continue
        found[path.stem] = recipe
    known = {name: recipe for name, recipe in found.items() if recipe["merge_method"] in KNOWN + RANDOM}
    return known | MORE | {name: recipe for name, recipe in found.items() if name not in known}


def merge(recipe, out, said=None):
    """mergekit's merge of a recipe; its mergekit_config.yml says `said` instead, if that is given."""
    shutil.rmtree(out, ignore_errors=True)
    config = copy.deepcopy(recipe)
    mergekit.merge.run_merge(MergeConfiguration.model_validate(config), str(out), OPTIONS)
    (out / "mergekit_config.yml").write_text(yaml.safe_dump(said or recipe, sort_keys=False))


def verify(weld, out, *more):
    command = [weld, "verify", str(out), "--full", "--format", "json", "--quiet", *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY / "recipes")
    if done.returncode == 2:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    report = json.loads(done.stdout)
    checks = sorted({finding["check"] for finding in report["findings"] if finding["severity"] == "error"})
    return done.returncode, report, checks


def outcomes(report):
    tensors = report["details"]["tensors"]
    kinds = {}
    for tensor in tensors:
        kinds[tensor["outcome"]] = kinds.get(tensor["outcome"], 0) + 1
    return kinds


def weights_of(recipe, change):
    """The recipe with another first weight, or None if it has none to change."""
    other = copy.deepcopy(recipe)
    models = other.get("models", [])
    for model in models:
        weight = model.get("parameters", {}).get("weight")
        if isinstance(weight, (int, float)):
            model["parameters"]["weight"] = change(weight)
            return other
    shared = other.get("parameters", {})
    for key in ("weight", "t"):
        value = shared.get(key)
        if isinstance(value, (int, float)) and len(models) > 1:
            if key == "t":
                shared[key] = change(value)
                return other
            models[0].setdefault("parameters", {})[key] = change(value)
            return other
    return None


def swapped(recipe):
    """The recipe with its first and last model exchanged, if that makes another merge."""
    other = copy.deepcopy(recipe)
    models = other.get("models", [])
    if len(models) < 2 or recipe["merge_method"] in ("model_stock", "karcher"):
        return None
    models[0]["model"], models[-1]["model"] = models[-1]["model"], models[0]["model"]
    if recipe["merge_method"] == "slerp":
        other["base_model"] = models[0]["model"]
        if recipe["parameters"]["t"] == 0.5:
            return None
    weights = [model.get("parameters", {}).get("weight") for model in models]
    if recipe["merge_method"] != "slerp" and weights[0] == weights[-1]:
        return None
    return other


def tamper(out):
    """Moves one element of one tensor by seven steps."""
    [path] = out.glob("*.safetensors")
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    name = next(name for name in sorted(tensors) if "mlp.up_proj" in name)
    flat = tensors[name].reshape(-1)
    bits = flat.view(torch.int32 if flat.dtype == torch.float32 else torch.int16)
    bits[1234] += 7
    safetensors.torch.save_file(tensors, path, metadata)


def expected(recipe, variant):
    """The outcomes that a merge may have."""
    if recipe["merge_method"] in RANDOM:
        density = recipe.get("parameters", {}).get("density")
        return ["exact", "copied"] if density == 1.0 else ["exact", "copied", "not told"]
    if recipe["merge_method"] == "slerp" and variant != "f32":
        # Values of 16 bits do not tell its weights to the last digit of float32.
        return ["exact", "copied", "within a step"]
    if recipe.get("parameters", {}).get("filter_wise") and variant == "f32":
        # A row whose updates are nearly orthogonal may need a weight further off than is tried.
        return ["exact", "copied", "within a step"]
    if recipe["merge_method"] in KNOWN:
        return ["exact", "copied"]
    return None


def golden_recipes():
    """Small merges of one layer each, over the models of golden/."""

    def of(method, models, parameters=None, base=True, **more):
        def source(name, own):
            return {"model": f"../../golden/models/{name}-bf16", "layer_range": [0, 1], "parameters": own}

        sources = [source(name, own) for name, own in models.items()]
        recipe = {"merge_method": method, "slices": [{"sources": sources}], "parameters": parameters or {}}
        if base:
            recipe["base_model"] = "../../golden/models/base-bf16"
            sources.append(source("base", {}))
        return recipe | more

    three = {"a": {"weight": 0.6}, "b": {"weight": 0.3}, "c": {"weight": 0.7}}
    two = {"a": {"weight": 0.6}, "b": {"weight": 0.4}}
    coarse = {"dtype": "bfloat16"}
    fine = {"dtype": "float32"}
    return {
        "task-arithmetic-bf16": of("task_arithmetic", three, **coarse),
        "ties-bf16": of("ties", three, {"density": 0.3}, **coarse),
        "ties-f32": of("ties", three, {"density": 0.3}, **fine, out_dtype="bfloat16"),
        "slerp-f32": of("slerp", {"a": {}}, {"t": 0.3}, **fine),
        "nuslerp-bf16": of("nuslerp", two, {"nuslerp_flatten": False}, **coarse),
        "model-stock-f32": of("model_stock", {"a": {}, "b": {}, "c": {}}, **fine),
        "dare-ties-bf16": of("dare_ties", three, {"density": 0.5}, **coarse),
    }


def write_golden(folder, work):
    """The merges that `cargo test` verifies."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, recipe in golden_recipes().items():
        place = folder / name
        place.mkdir(parents=True)
        os.chdir(place)
        merge(recipe, work / "out")
        for file in ("config.json", "model.safetensors", "mergekit_config.yml"):
            shutil.copyfile(work / "out" / file, place / file)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weld")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--golden", type=Path)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if arguments.golden:
        return write_golden(arguments.golden.resolve(), work)
    weld = str(Path(arguments.weld).resolve())
    os.chdir(REPOSITORY / "recipes")
    wrong = 0
    print("| recipe | arithmetic | exit | tensors | numerics | moved | weight | swapped |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, plain in recipes().items():
        for variant, (dtype, out_dtype) in VARIANTS.items():
            if arguments.only not in f"{name} {variant}":
                continue
            recipe = plain | {"dtype": dtype, "out_dtype": out_dtype}
            if dtype == out_dtype:
                del recipe["out_dtype"]
            out = work / "out"
            merge(recipe, out)
            code, report, checks = verify(weld, out)
            kinds = outcomes(report)
            may = expected(recipe, variant)
            fine = may is None or set(kinds) <= set(may) and code == (3 if "not told" in kinds else 0)
            row = []
            for change in ("moved", "weight", "swapped"):
                if change == "moved":
                    tamper(out)
                else:
                    other = weights_of(plain, lambda w: w + 0.01) if change == "weight" else swapped(plain)
                    if other is None:
                        row.append("-")
                        continue
                    other |= {key: recipe[key] for key in ("dtype", "out_dtype") if key in recipe}
                    merge(other, out, recipe)
                other_code, _, other_checks = verify(weld, out)
                row.append(f"{other_code} {' '.join(check.removeprefix('verify.') for check in other_checks)}")
                refused = other_code == 1 or "not told" in kinds and other_code == 3
                fine &= refused
            wrong += not fine
            told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            numerics = report["summary"]["numerics"]
            mark = "" if fine else " **unexpected**"
            print(f"| {name} | {variant} | {code}{mark} | {told} | {numerics} | {' | '.join(row)} |", flush=True)
    print(f"\n{wrong} rows are not as expected")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
