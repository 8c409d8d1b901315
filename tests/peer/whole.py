"""Holds the methods on whole matrices to the formulas of their papers in torch, tensor by tensor.

    python tests/peer/whole.py --weld target/release/weld --work DIR
    python tests/peer/whole.py --time 4096x4096,14336x4096 --models 4

The first makes random matrices in F32 and BF16, merges them with `weld` (output in
float64) and with the functions below in float64, and prints for each method the largest
error, relative to the largest element of the update. Exits 1 if one is above the bound:
weld holds matrices in float32, and what it decomposes in float64. The second prints how
long torch takes for each method in float32, from matrices in memory to the update, and
with `--weld` and `--work` how long `weld merge` takes, from BF16 files to a file. Both have
one thread, as those of torch that wait for others count as busy. `cargo
bench --bench methods -- matrices` times weld without files.

The functions follow the authors' code in their order of steps, with `torch.linalg.svd`
where weld has eigenvectors of a square, and share nothing with weld.
"""

import argparse
import math
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import safetensors.torch
import torch
import yaml

BOUND = 1e-5
SHAPES = {"square": (48, 48), "tall": (96, 40), "wide": (40, 96)}


def svd(matrix):
    return torch.linalg.svd(matrix, full_matrices=False)


def orthogonal(matrix):
    u, _, v = svd(matrix)
    return u @ v


def tsvm(tasks):
    rank = min(tasks[0].shape) // len(tasks)
    parts = [svd(task) for task in tasks]
    u = torch.cat([u[:, :rank] for u, _, _ in parts], 1)
    s = torch.cat([s[:rank] for _, s, _ in parts])
    v = torch.cat([v[:rank] for _, _, v in parts])
    return torch.linalg.multi_dot((orthogonal(u), s.diag(), orthogonal(v)))


def iso_c(tasks):
    u, s, v = svd(sum(tasks))
    return s.mean() * u @ v


def iso_cts(tasks, common_space_fraction):
    least = min(tasks[0].shape)
    rest = least - int(least * common_space_fraction)
    rest = round(rest / len(tasks)) * len(tasks)
    common, each = least - rest, rest // len(tasks)
    u, s, v = svd(sum(tasks))
    uc, sc, vc = u[:, :common], s[:common], v[:common]
    parts = [svd(task - uc @ uc.T @ task) for task in tasks]
    u = torch.cat([u[:, :each] for u, _, _ in parts] + [uc], 1)
    s = torch.cat([s[:each] for _, s, _ in parts] + [sc])
    v = torch.cat([v[:each] for _, _, v in parts] + [vc])
    return s.mean() * orthogonal(u) @ orthogonal(v)


def cart(tasks, rank_ratio, scale=1.0):
    mean = sum(tasks) / len(tasks)
    rank = math.ceil(rank_ratio * min(mean.shape))
    total = mean.clone()
    for task in tasks:
        u, s, v = svd(task - mean)
        total += scale * (u[:, :rank] * s[:rank]) @ v[:rank]
    return total


def star(tasks, eta):
    total = 0
    for task in tasks:
        u, s, v = svd(task)
        rank = int((s.cumsum(0) < eta * s.sum()).sum()) + 1
        factor = s.sum() / s[:rank].sum()
        total = total + factor * (u[:, :rank] * s[:rank]) @ v[:rank]
    return total / len(tasks)


def subspace_boosting(tasks, beta):
    u, s, v = svd(sum(tasks))
    share = s.cumsum(0) / s.sum()
    cut = int((share >= beta).nonzero()[0])
    return (u * s.clamp(min=s[cut].item())) @ v


def sums(tasks, normalised):
    factors = [1 / task.square().sum() if normalised else 1 for task in tasks]
    square = sum(f * task.T @ task for f, task in zip(factors, tasks))
    right = sum(f * task @ (task.T @ task) for f, task in zip(factors, tasks))
    return square, right, sum(tasks)


def filtered(tasks, filter_of):
    square, right, start = sums(tasks, True)
    w, q = torch.linalg.eigh(square)
    w = w.clamp(min=1e-8)
    f = filter_of(w)
    return start - (start @ q * f) @ q.T + (right @ q * (f / w)) @ q.T


def strongest(w, count):
    kept = torch.zeros_like(w)
    kept[w.argsort(descending=True)[:count]] = 1
    return kept


def wudi(tasks, time, keep):
    kept = math.ceil(keep * tasks[0].shape[1])
    return filtered(tasks, lambda w: strongest(w, kept) * -torch.expm1(-w * time))


def wudi_adam(tasks):
    square, right, start = sums(tasks, True)
    merged = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.Adam([merged], lr=1e-5)
    for _ in range(300):
        optimiser.zero_grad()
        merged.grad = 2 * (merged.detach() @ square - right)
        optimiser.step()
    return merged.detach()


def participation(w):
    roots = w.sqrt()
    return math.ceil((roots.sum().square() / w.sum()).item())


def swudi_a(tasks):
    rank = min(tasks[0].shape[1], sum(min(task.shape) for task in tasks))
    return filtered(tasks, lambda w: strongest(w, min(participation(w), rank)))


def actmat(tasks):
    square, right, _ = sums(tasks, False)
    return right @ torch.linalg.pinv(square, hermitian=True, rtol=1e-10)


def resmerge(tasks, head_budget):
    heads = []
    for task in tasks:
        u, s, v = svd(task)
        heads.append(s[0] * torch.outer(u[:, 0], v[0]))
    rests = [(task - head).flatten() for task, head in zip(tasks, heads)]
    heads = [head.flatten() for head in heads]
    pairs = [(i, j) for i in range(len(tasks)) for j in range(i)]
    cosine = lambda a, b: torch.dot(a, b) / a.norm() / b.norm()
    q = sum(rest / rest.norm() for rest in rests)
    c = sum(cosine(rest, q) for rest in rests) / len(rests)
    if c <= 1 / math.sqrt(len(rests)):
        backbone = sum(rests) / len(rests)
    else:
        s = sum(cosine(rests[i], rests[j]) for i, j in pairs) / len(pairs)
        beta = 1 - 0.3 * ((s + 1) / 2 + (c + 1) / 2) / 2
        size = sum(rest.norm() for rest in rests) / len(rests)
        backbone = c**beta * size * q / q.norm()
    agreement = sum(cosine(heads[i], heads[j]).clamp(min=0) for i, j in pairs) / len(pairs)
    head = sum(heads)
    merged = backbone + head / head.norm() * head_budget * agreement * backbone.norm()
    return merged.reshape(tasks[0].shape)


# method, its function, parameters of the recipe, the same for the function
CASES = [
    ("tsvm", tsvm, {}, {}),
    ("iso_c", iso_c, {"lambda": 1.3}, {}),
    ("iso_cts", iso_cts, {"common_space_fraction": 0.8}, None),
    ("iso_cts", iso_cts, {"common_space_fraction": 0.3}, None),
    ("cart", cart, {"rank_ratio": 0.04}, None),
    ("cart", cart, {"rank_ratio": 0.3, "lambda": 0.5}, {"rank_ratio": 0.3, "scale": 0.5}),
    ("star", star, {"eta": 0.4}, None),
    ("subspace_boosting", subspace_boosting, {"beta": 0.2, "lambda": 0.3}, {"beta": 0.2}),
    ("wudi", wudi, {"time": 300, "keep": 0.85}, None),
    ("wudi", wudi_adam, {"form": "adam"}, {}),
    ("swudi_a", swudi_a, {}, {}),
    ("actmat", actmat, {"lambda": 0.75}, {}),
    ("resmerge", resmerge, {"head_budget": 0.3}, None),
]
WEIGHTS = [1.0, 0.8, 1.3]


def lines(base, models, alpha, beta):
    """Of one model, by the name of each tensor."""
    (model,) = models
    merged = {}
    for name, weight in base.items():
        layer = name.split(".")[2] if ".layers." in name else 0
        scale = alpha + beta * int(layer) / (LAYERS - 1)
        merged[name] = weight + scale * (model[name] - weight)
    return merged


def localize_stitch(base, models, sparsity):
    """Without data: the authors' mask, but that it keeps what is as large as the threshold."""
    updates = [{name: model[name] - base[name] for name in base} for model in models]
    masks = []
    for update in updates:
        flat = torch.cat([update[name].abs().flatten() for name in base])
        threshold = torch.topk(flat, int(sparsity * flat.numel())).values[-1]
        masks.append({name: (update[name].abs() >= threshold) & (update[name] != 0) for name in base})
    merged = {}
    for name, weight in base.items():
        count = sum(mask[name] for mask in masks).clamp(min=1)
        parts = zip(WEIGHTS, masks, updates)
        merged[name] = weight + sum(w * mask[name] * update[name] for w, mask, update in parts) / count
    return merged


LAYERS = 5
# Method, function of the whole models, parameters, how many models it takes.
WHOLE_MODELS = [
    ("lines", lines, {"alpha": 0.4, "beta": 0.35}, 1),
    ("localize_stitch", localize_stitch, {"sparsity": 0.1}, 3),
    ("localize_stitch", localize_stitch, {"sparsity": 0.45}, 3),
]


def layered(dtype):
    """A base and three models of several layers, whose updates grow with depth."""
    random = torch.Generator().manual_seed(4)
    made = [{} for _ in range(4)]
    names = [("model.embed_tokens.weight", 0)]
    names += [(f"model.layers.{layer}.mlp.up_proj.weight", layer) for layer in range(LAYERS)]
    for name, layer in names:
        base = torch.randn((24, 40), generator=random) * 0.05
        made[0][name] = base.to(dtype)
        for model in made[1:]:
            size = 0.002 * (layer + 1)
            update = torch.randn(base.shape, generator=random) * size
            model[name] = (base + update).to(dtype)
    return made


def models(dtype):
    """A base and three models whose updates share something, by tensor name."""
    random = torch.Generator().manual_seed(3)
    made = [{} for _ in range(4)]
    for name, shape in SHAPES.items():
        base = torch.randn(shape, generator=random) * 0.05
        common = torch.randn(shape, generator=random) * 0.004
        made[0][f"{name}.weight"] = base.to(dtype)
        for model in made[1:]:
            update = common + torch.randn(shape, generator=random) * 0.005
            model[f"{name}.weight"] = (base + update).to(dtype)
    return made


def merged_by_weld(weld, folder, method, parameters, sources, weights=None, more=()):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for index, model in enumerate(sources):
        safetensors.torch.save_file(model, folder / f"m{index}.safetensors")
    weights = WEIGHTS if weights is None else weights
    entries = [
        {"model": f"m{index}.safetensors"}
        | ({} if weight is None else {"parameters": {"weight": weight}})
        for index, weight in enumerate(weights, 1)
    ]
    recipe = {
        "merge_method": method,
        "base_model": "m0.safetensors",
        "models": entries,
        "parameters": parameters,
        "out_dtype": "float64",
    }
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
    subprocess.run([weld, "merge", "recipe.yml", "out", "-q", *more], cwd=folder, check=True)
    return safetensors.torch.load_file(folder / "out/model.safetensors")


def compare(weld, work):
    bad = 0
    print("| method | parameters | F32 | BF16 |\n| --- | --- | --- | --- |")
    for number, (method, function, parameters, own) in enumerate(CASES):
        cells = []
        for dtype in (torch.float32, torch.bfloat16):
            sources = models(dtype)
            folder = work / f"{number}-{method}"
            found = merged_by_weld(weld, folder, method, parameters, sources)
            worst = 0.0
            for name, base in sources[0].items():
                base = base.double()
                pairs = zip(WEIGHTS, sources[1:])
                tasks = [weight * (model[name].double() - base) for weight, model in pairs]
                scale = parameters.get("lambda", 1.0) if method != "cart" else 1.0
                update = scale * function(tasks, **(parameters if own is None else own))
                error = (found[name] - base - update).abs().max() / update.abs().max()
                worst = max(worst, error.item() if error.isfinite() else float("inf"))
            bad += not worst <= BOUND
            cells.append(f"{worst:.1e}" + ("" if worst <= BOUND else " **too far**"))
        words = ", ".join(f"{key}: {value}" for key, value in parameters.items())
        print(f"| {method} | {words} | {' | '.join(cells)} |", flush=True)
    for number, (method, function, parameters, count) in enumerate(WHOLE_MODELS):
        cells = []
        for dtype in (torch.float32, torch.bfloat16):
            sources = layered(dtype)[: 1 + count]
            # `lines` has no weights.
            weights = WEIGHTS[:count] if count > 1 else [None]
            folder = work / f"whole-{number}-{method}"
            found = merged_by_weld(weld, folder, method, parameters, sources, weights)
            base, *tuned = [{k: v.double() for k, v in model.items()} for model in sources]
            expected = function(base, tuned, **parameters)
            updates = [(expected[name] - base[name]).abs().max() for name in base]
            errors = [(found[name] - expected[name]).abs().max() for name in base]
            worst = (max(errors) / max(updates)).item()
            bad += not worst <= BOUND
            cells.append(f"{worst:.1e}" + ("" if worst <= BOUND else " **too far**"))
        words = ", ".join(f"{key}: {value}" for key, value in parameters.items())
        print(f"| {method} | {words} | {' | '.join(cells)} |", flush=True)
    return 1 if bad else 0


def processor(who):
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def times(shapes, count, threads, only, weld, work):
    """Wall and processor seconds of torch, and of `weld` on the same models if it is given."""
    torch.set_num_threads(threads)
    for shape in shapes:
        rows, columns = map(int, shape.split("x"))
        random = torch.Generator().manual_seed(1)
        base = torch.randn(rows, columns, generator=random) * 0.02
        tasks = [torch.randn(rows, columns, generator=random) * 1e-3 for _ in range(count)]
        models = [base] + [base + task for task in tasks]
        models = [{"up.weight": model.bfloat16()} for model in models]
        for method, function, parameters, own in CASES:
            if function is wudi_adam or (only and method not in only):
                continue
            start, before = time.perf_counter(), processor(resource.RUSAGE_SELF)
            function(tasks, **(parameters if own is None else own))
            wall, used = time.perf_counter() - start, processor(resource.RUSAGE_SELF) - before
            line = f"{shape} {method}: torch {wall:.1f} s, {used:.1f} s of processor time"
            if weld:
                before = processor(resource.RUSAGE_CHILDREN)
                start = time.perf_counter()
                merged_by_weld(
                    weld, work / method, method, parameters, models, [1.0] * count, ["--threads", str(threads)]
                )
                wall = time.perf_counter() - start
                used = processor(resource.RUSAGE_CHILDREN) - before
                line += f"; weld {wall:.1f} s, {used:.1f} s"
            print(line, flush=True)
    return 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weld", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--time", help="shapes, with commas between")
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", help="only these, with commas between")
    arguments = parser.parse_args()
    if arguments.time:
        only = arguments.methods and arguments.methods.split(",")
        shapes = arguments.time.split(",")
        weld = arguments.weld and arguments.weld.resolve()
        return times(shapes, arguments.models, arguments.threads, only, weld, arguments.work)
    return compare(arguments.weld.resolve(), arguments.work)


if __name__ == "__main__":
    sys.exit(main())
