"""Holds single methods to the peer's own arithmetic in float64, tensor by tensor.

    python tests/peer/methods.py --weld target/release/weld --work DIR

Makes random tensors of one, two and three dimensions in F32 and BF16, merges them with
`weld` (output in float64) and with `mergekit.merge_methods.merge_tensors` in float64,
and prints for each method and case the largest error, relative to the tensor's largest
magnitude. Exits 1 if one is above the bound: weld computes BF16 in float32, F32 in
float64.

Cases in which weld departs from the peer on purpose (`weld methods NAME` says where)
are not among them.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import safetensors.torch
import torch
import yaml
from mergekit.merge_methods import merge_tensors

BOUNDS = {torch.float32: 1e-12, torch.bfloat16: 1e-6}
# There the peer divides its counts in float32, whatever the dtype.
FLOAT32_INSIDE = {"ramplus_tl": 1e-7}
SHAPES = {"one": (331,), "two": (60, 331), "three": (3, 20, 17), "wide": (40, 1100)}

# method, models besides the base, whether there is a base, shared parameters, weights
CASES = [
    ("slerp", 1, True, {"t": 0.3}, None),
    ("nuslerp", 2, False, {}, [0.3, 0.5]),
    ("nuslerp", 2, True, {}, [1.0, 3.0]),
    ("nuslerp", 2, True, {}, [0.0, 0.0]),
    ("nuslerp", 2, False, {"nuslerp_flatten": False}, [0.3, 0.5]),
    ("nuslerp", 2, True, {"nuslerp_flatten": False}, [0.3, 0.5]),
    ("nuslerp", 2, False, {"nuslerp_flatten": False, "nuslerp_row_wise": True}, [0.3, 0.5]),
    ("nuslerp", 2, True, {"nuslerp_flatten": False, "nuslerp_row_wise": True}, [0.3, 0.5]),
    ("multislerp", 2, False, {}, [0.3, 0.5]),
    ("multislerp", 3, False, {}, [0.3, 0.5, 0.4]),
    ("multislerp", 3, True, {}, [0.3, 0.5, 0.4]),
    ("multislerp", 3, True, {"normalize_weights": False}, [0.3, -0.5, 0.4]),
    ("karcher", 2, False, {}, None),
    ("karcher", 3, False, {}, None),
    ("karcher", 4, True, {"max_iter": 3, "tol": 1e-9}, None),
    ("model_stock", 2, True, {}, None),
    ("model_stock", 4, True, {}, None),
    ("model_stock", 2, True, {"filter_wise": True}, None),
    ("model_stock", 3, True, {"filter_wise": True}, None),
    ("nearswap", 1, True, {"t": 0.004}, None),
    ("nearswap", 1, True, {"t": 0.0}, None),
    ("ram", 3, True, {"epsilon": 0.004}, None),
    ("ram", 1, True, {}, None),
    ("ramplus_tl", 3, True, {"epsilon": 0.004}, None),
    ("ramplus_tl", 3, True, {"epsilon": 0.006, "r": 0.7, "alpha": 3.0}, None),
]


def tensors(count, dtype):
    """A base and models whose updates lean one way, by tensor name."""
    random = torch.Generator().manual_seed(count)
    made = [{} for _ in range(count + 1)]
    for name, shape in SHAPES.items():
        base = torch.randn(shape, generator=random) * 0.05
        common = torch.randn(shape, generator=random) * 0.01
        made[0][name] = base.to(dtype)
        for model in made[1:]:
            update = common + torch.randn(shape, generator=random) * 0.005
            model[name] = (base + update).to(dtype)
    return made


def merged_by_weld(weld, folder, case, models):
    method, count, with_base, shared, weights = case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entries = []
    for index, model in enumerate(models):
        safetensors.torch.save_file(model, folder / f"m{index}.safetensors")
        if index:
            entry = {"model": f"m{index}.safetensors"}
            if weights:
                entry["parameters"] = {"weight": weights[index - 1]}
            entries.append(entry)
    recipe = {"merge_method": method, "models": entries, "out_dtype": "float64"}
    if with_base:
        recipe["base_model"] = "m0.safetensors"
    if shared:
        recipe["parameters"] = shared
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
    command = [weld, "merge", "recipe.yml", "out", "-q"]
    subprocess.run(command, cwd=folder, check=True)
    return safetensors.torch.load_file(folder / "out/model.safetensors")


def merged_by_peer(case, models, name):
    method, count, with_base, shared, weights = case
    # A base that is not listed comes last, as in recipes.
    order = models[1:] + (models[:1] if with_base else [])
    parameters = dict(shared, **({"weight": weights} if weights else {}))
    return merge_tensors(
        [model[name] for model in order],
        method,
        parameters=parameters,
        base_index=count if with_base and method != "karcher" else None,
        dtype=torch.float64,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weld", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    weld = arguments.weld.resolve()
    bad = 0
    print("| method | models | parameters | F32 | BF16 |\n| --- | --- | --- | --- | --- |")
    for number, case in enumerate(CASES):
        method, count, with_base, shared, weights = case
        cells = []
        for dtype, bound in BOUNDS.items():
            bound = max(bound, FLOAT32_INSIDE.get(method, 0))
            models = tensors(count, dtype)
            found = merged_by_weld(weld, arguments.work / f"{number}-{method}", case, models)
            worst = 0.0
            for name in SHAPES:
                wanted = merged_by_peer(case, models, name)
                assert found[name].dtype == torch.float64, found[name].dtype
                error = (found[name] - wanted).abs().max() / wanted.abs().max()
                worst = max(worst, error.item() if error.isfinite() else float("inf"))
            bad += not worst <= bound
            cells.append(f"{worst:.1e}" + ("" if worst <= bound else " **too far**"))
        listed = f"{count} and a base" if with_base else str(count)
        said = dict(shared, **({"weight": weights} if weights else {}))
        words = ", ".join(f"{key}: {value}" for key, value in said.items())
        print(f"| {method} | {listed} | {words} | {' | '.join(cells)} |", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
