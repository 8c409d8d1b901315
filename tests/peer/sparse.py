"""Holds weld's sparse methods to mergekit's arithmetic in float64, tensor by tensor.

    pip install blake3   # beside what setup.sh installs: the keys of weld's random masks
    target/envs/peer/bin/python tests/peer/sparse.py --weld target/release/weld --work target/peer-work/sparse

Where the peer's answer is not defined or known to be wrong, it is given weld's:
- DELLA: the draws of weld's masks in the place of torch's, and a stable sort; what is compared is ranks,
  chances and rescaling.
  Tensors of three dimensions and more are given as the matrix of all their rows, which is what weld ranks.
- breadcrumbs: elements whose magnitude equals a threshold at which not all stay are left out, and counted.
- votes on the sign: elements where weighted differences cancel but for their rounding are left out, and counted.
- sce: weights relative to their sum however small that is; `select_topk` of a power of two, as the peer
  counts in float32.
- arcee_fusion: importances within 1e-6 of the threshold are left out, and counted.
"""

import argparse
import itertools
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import blake3
import mergekit.merge_methods.arcee_fusion as arcee
import mergekit.merge_methods.sce as sce
import numpy as np
import torch
from mergekit.merge_methods import merge_tensors
from safetensors.torch import load_file, save_file

SHAPES = {
    "matrix": (300, 257),
    "wide": (3, 20_000),
    "stack": (4, 30, 50),
    "conv": (16, 3, 5, 5),
    "vector": (999,),
    "two": (2,),
}
SEED = 7
SPLIT = np.uint64(0x9E3779B97F4A7C15)


def models(work, dtype, scale):
    """base and three fine-tunes of it, as files; gives their values as they are stored."""
    generator = torch.Generator().manual_seed(1)
    noise = lambda shape: torch.randn(shape, generator=generator)
    base = {name: (noise(shape) * 0.05).to(dtype) for name, shape in SHAPES.items()}
    values = {"base": base}
    for number, model in enumerate("abc"):
        values[model] = {
            name: (tensor.float() + noise(tensor.shape) * scale * (number + 1)).to(dtype)
            for name, tensor in base.items()
        }
    for model, tensors in values.items():
        save_file(tensors, work / f"{model}.safetensors")
    return values


def weld(binary, work, method, models, parameters):
    """What weld makes of the files."""
    lines = [f"merge_method: {method}", "base_model: base.safetensors", "models:"]
    lines += [f"- {{model: {model}.safetensors, parameters: {{{per}}}}}" for model, per in models]
    lines += ["parameters: {" + ", ".join(f"{k}: {v}" for k, v in parameters.items()) + "}", "dtype: float32"]
    (work / "recipe.yml").write_text("\n".join(lines) + "\n")
    command = [binary, "merge", "recipe.yml", "out", "--force", "-q", "--seed", str(SEED)]
    subprocess.run(command, cwd=work, check=True)
    return load_file(next((work / "out").glob("*.safetensors")))


def mix(word):
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def draws(name, slot, count):
    """weld's draws for the mask of one model's tensor, from 0 to 2^32."""
    hasher = blake3.blake3(derive_key_context="weldment 2026-11 mask key")
    hasher.update(SEED.to_bytes(8, "little") + slot.to_bytes(8, "little") + name.encode())
    key = np.uint64(int.from_bytes(hasher.digest()[:8], "little"))
    index = np.arange(count, dtype=np.uint64)
    word = mix(key + (index // np.uint64(2) + np.uint64(1)) * SPLIT)
    return (word >> (np.uint64(32) * (index & np.uint64(1)))) & np.uint64(0xFFFFFFFF)


def with_our_draws(name, run):
    """Runs the peer with weld's draws, one model after the other."""
    slots = itertools.count()

    def bernoulli(chances):
        ours = draws(name, next(slots), chances.numel()).astype(np.float64)
        bounds = np.round(chances.double().flatten().numpy() * 2.0**32)
        return torch.from_numpy(ours < bounds).to(chances.dtype).view_as(chances)

    def argsort(*arguments, **options):
        return their_sort(*arguments, **options | {"stable": True})

    theirs, their_sort = torch.bernoulli, torch.argsort
    torch.bernoulli, torch.argsort = bernoulli, argsort
    try:
        return run()
    finally:
        torch.bernoulli, torch.argsort = theirs, their_sort


def tied(delta, density, gamma):
    """The elements at a threshold of breadcrumbs where not all that are equal stay."""
    size = delta.abs().flatten().float()
    count, kept = size.numel(), int(density * size.numel())
    bottom = max(0, count - kept - int(gamma * count))
    order = size.sort().values
    undecided = torch.zeros(count, dtype=torch.bool)
    if density < 1 and kept:
        for inside, outside in ((bottom, bottom - 1), (bottom + kept - 1, bottom + kept)):
            if 0 <= outside < count and order[inside] == order[outside]:
                undecided |= size == order[inside]
    return undecided.view_as(delta)


def cancels(deltas, weights):
    """The elements where some of the weighted differences cancel but for their rounding."""
    votes = [delta * weight for delta, weight in zip(deltas, weights)]
    undecided = torch.zeros(votes[0].shape, dtype=torch.bool)
    for size in range(2, len(votes) + 1):
        for some in map(torch.stack, itertools.combinations(votes, size)):
            undecided |= some.sum(dim=0).abs() < 1e-6 * some.abs().sum(dim=0)
    return undecided


def relative_weights(vectors):
    energy = vectors.square().reshape(vectors.shape[0], -1).sum(dim=1)
    return energy / energy.sum() if energy.sum() > 0 else torch.ones_like(energy) / len(energy)


CASES = [
    ("breadcrumbs", dict(weight=[0.3, 0.5, 0.4], density=[0.9, 0.5, 0.7], gamma=[0.01, 0.2, 0.0]), {}),
    ("breadcrumbs", dict(weight=[0.3, 0.5, 0.4], density=[0.8] * 3, gamma=[0.3] * 3), dict(rescale="true", normalize="true")),
    ("breadcrumbs_ties", dict(weight=[0.3, 0.5, -0.4], density=[0.9, 0.5, 1.0], gamma=[0.01, 0.2, 0.5]), {"lambda": 0.7}),
    ("breadcrumbs_ties", dict(weight=[1.0] * 3, density=[0.3] * 3), dict(normalize="true")),
    ("della", dict(weight=[1.0, 0.5, 0.7], density=[0.5] * 3, epsilon=[0.2] * 3), {}),
    ("della", dict(weight=[1.0, 0.5, 0.7], density=[0.5, 0.7, 1.0]), dict(rescale="false", normalize="false")),
    ("della_linear", dict(weight=[0.3] * 3, density=[0.6] * 3, epsilon=[0.3] * 3), {"lambda": 1.5}),
    ("sce", {}, {}),
    ("sce", {}, dict(select_topk=0.5)),
    ("sce", {}, dict(select_topk=0.125)),
    ("arcee_fusion", {}, {}),
]


def compare(ours, theirs, left_out):
    """The largest difference relative to the tensor's largest value."""
    off = (ours.double() - theirs.double()).abs()
    off[left_out] = 0
    return (off / theirs.double().abs().max()).max().item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weld", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    np.seterr(over="ignore")
    sce.sce_weight = relative_weights
    worst, failed = 0.0, 0
    for dtype, scale in ((torch.float32, 0.05), (torch.float32, 2e-4), (torch.bfloat16, 0.02)):
        values = models(arguments.work, dtype, scale)
        for method, each, shared in CASES:
            names = "a" if method == "arcee_fusion" else "abc"
            per = [", ".join(f"{key}: {value[i]}" for key, value in each.items()) for i in range(len(names))]
            merged = weld(arguments.weld.absolute(), arguments.work, method, list(zip(names, per)), shared)
            error, left, elements, lost = 0.0, 0, 0, []
            for name, shape in SHAPES.items():
                tensors = [values[model][name].double() for model in ("base", *names)]
                if method.startswith("della"):
                    tensors = [tensor.reshape(-1, shape[-1]) for tensor in tensors]
                parameters = dict(each)
                parameters |= {key: {"true": True, "false": False}.get(value, value) for key, value in shared.items()}
                run = lambda: merge_tensors(
                    tensors, method, parameters=parameters, base_index=0, dtype=torch.float64
                ).view(shape)
                theirs = with_our_draws(name, run)
                ours = merged[name]
                base, deltas = tensors[0], [tensor - tensors[0] for tensor in tensors[1:]]
                skip = torch.zeros(shape, dtype=torch.bool)
                if method.startswith("breadcrumbs"):
                    gammas = each.get("gamma", [0.01] * 3)
                    for delta, density, gamma in zip(deltas, each["density"], gammas):
                        skip |= tied(delta, density, gamma)
                if method in ("della", "breadcrumbs_ties"):
                    skip |= cancels(deltas, each["weight"]).view(shape)
                if method == "arcee_fusion":
                    importance = arcee._compute_importance(tensors[1], base)
                    threshold = arcee.DynamicThresholdFusion().calculate_dynamic_threshold(importance)
                    skip = (importance - threshold).abs() <= 1e-6 * threshold
                elif method == "sce" and shared.get("select_topk", 1) < 1:
                    spread = torch.stack(deltas).var(dim=0, unbiased=False).flatten()
                    count = int(spread.count_nonzero() * shared["select_topk"])
                    if count:
                        least = spread.sort(descending=True).values[count - 1]
                        skip = ((spread - least).abs() <= 1e-6 * least).view(shape)
                found = compare(ours, theirs, skip)
                error, left, elements = max(error, found), left + int(skip.sum()), elements + skip.numel()
                if found > 4e-6:
                    lost.append(f"{name} {found:.1e}")
            worst = max(worst, error)
            failed += bool(lost) or left * 5 > elements
            label = ", ".join(f"{key} {value}" for key, value in (each | shared).items())
            print(f"{str(dtype)[6:]:9}{scale:<7}{method:17}{error:8.1e}  left out {left:6} of {elements}  {label}  {'; '.join(lost)}")
    print(f"largest difference {worst:.1e} of a tensor's largest value; {failed} rows failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
