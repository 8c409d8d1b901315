"""Tests the comparison itself, without weld.

    python tests/peer/selftest.py --work DIR [--all]

First plants faults in a checkpoint and sees that each is found; then puts the peer
computing in float64 in weld's place, which must pass (for every case with --all).
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.dont_write_bytecode = True

import safetensors.torch
import torch
import yaml

import compare
import models
import peer


def checkpoint(dtype):
    gen = torch.Generator().manual_seed(7)
    return {
        "big.weight": torch.randn(64, 64, generator=gen).to(dtype),
        "norm.weight": (1 + 0.1 * torch.randn(48, generator=gen)).to(dtype),
    }


def stepped(tensor, count, steps):
    """`count` elements of a 16-bit tensor moved away from zero by `steps`."""
    bits = tensor.clone().view(torch.int16).flatten()
    bits[torch.arange(count) * 37 % bits.numel()] += steps
    return bits.view(tensor.dtype).view_as(tensor)


def faults(dtype):
    """(what was planted, the planted checkpoint, a word of the expected verdict)."""
    good = checkpoint(dtype)
    big = good["big.weight"]
    yield "nothing", good, "equal"
    yield "a missing tensor", {"big.weight": big}, "missing"
    renamed = {"big.bias": big, "norm.weight": good["norm.weight"]}
    yield "a wrong name", renamed, "missing"
    yield "an extra tensor", good | {"x": big}, "not in the peer's"
    yield "a shape", good | {"big.weight": big.view(32, 128)}, "shape"
    other = torch.float16 if dtype != torch.float16 else torch.bfloat16
    yield "a dtype", good | {"big.weight": big.to(other)}, "peer"
    nan = big.clone()
    nan[3, 3] = float("nan")
    yield "a NaN", good | {"big.weight": nan}, "NaN"
    inf = big.clone()
    inf[3, 3] = float("inf")
    yield "an infinity", good | {"big.weight": inf}, "off"
    if dtype == torch.float32:
        yield "5e-6", good | {"big.weight": big + 5e-6 * big.abs().max()}, "of its largest"
        yield "3e-6", good | {"big.weight": big + 3e-6 * big.abs().max()}, "within 4e-06"
        return
    yield "two steps in one element", good | {"big.weight": stepped(big, 1, 2)}, "2 steps"
    many = round(0.015 * big.numel())
    yield "1.5 % a step off", good | {"big.weight": stepped(big, many, 1)}, "a step off"
    few = round(0.005 * big.numel())
    yield "0.5 % a step off", good | {"big.weight": stepped(big, few, 1)}, "within a step: 99.5"
    sign = big.clone()
    sign[0, 0] = -sign[0, 0]
    yield "a sign", good | {"big.weight": sign}, "steps"


def planted():
    """Whether every planted fault is found, and nothing where nothing is planted."""
    missed = 0
    for dtype in models.DTYPES.values():
        for what, got, expected in faults(dtype):
            verdict = compare.judge(checkpoint(dtype), got).verdict()
            passes = expected in verdict
            should_differ = not expected.startswith(("equal", "within"))
            passes &= verdict.startswith("differs") == should_differ
            missed += not passes
            print(f"{'ok  ' if passes else 'MISS'} {dtype} {what}: {verdict}".replace("torch.", ""))
    return missed + ties_are_judged() + excuses_are_judged() + decisions_are_judged() + rates_are_judged()


def ties_are_judged():
    """0 if at a TIES threshold only the choice of the lowest index passes."""
    notes = {"big.weight|tied": torch.zeros(64, 64, dtype=torch.bool)}
    notes["big.weight|tied"][0, :2] = True
    notes["big.weight|lowest"] = checkpoint(torch.float32)["big.weight"]
    notes["big.weight|lowest"][0, 0] += 1
    other_tie = compare.judge(checkpoint(torch.float32), checkpoint(torch.float32), notes).verdict()
    by_index = checkpoint(torch.float32) | {"big.weight": notes["big.weight|lowest"]}
    lowest = compare.judge(checkpoint(torch.float32), by_index, notes).verdict()
    passes = "lowest index" in other_tie and lowest == "equal"
    print(f"{'ok  ' if passes else 'MISS'} ties: {other_tie}; {lowest}")
    return not passes


def excuses_are_judged():
    """The number of excuses that are given where they should not be, or the reverse."""
    good = checkpoint(torch.bfloat16)
    big = good["big.weight"]
    one_off = good | {"big.weight": stepped(big, 1000, 1)}
    tiny = big.clone()
    tiny[1, 1] = 1e-9
    cancelled = {"big.weight|unrounded": big.float()}
    cancelled["big.weight|unrounded"][1, 1] = 0.0
    zero = good | {"big.weight": big.clone()}
    zero["big.weight"][1, 1] = 0.0
    cases = [
        ("rounded as float64 does", good, one_off, {"float64": one_off["big.weight"]}, True),
        ("rounded as nobody does", good, one_off, {"float64": big}, False),
        ("noise of a sum near 0", zero, good | {"big.weight": tiny}, cancelled, True),
        ("steps without noise", zero, good, cancelled, False),
    ]
    missed = 0
    for what, want, got, notes, excused in cases:
        float64 = {"big.weight": notes["float64"]} if "float64" in notes else {}
        verdict = compare.judge(want, got, notes, lambda: float64).verdict()
        passes = verdict.startswith("within a step") == excused
        missed += not passes
        print(f"{'ok  ' if passes else 'MISS'} {what}: {verdict}")
    return missed


def decisions_are_judged():
    """The number of tensors that are excused as the peer in float64 where they should not be, or the reverse."""
    good = checkpoint(torch.float32)
    other = {"big.weight": good["big.weight"].roll(1), "norm.weight": good["norm.weight"]}
    half = good["big.weight"].clone()
    half[:32] = other["big.weight"][:32]
    missed = 0
    for what, got, excused in (
        ("as the peer in float64", other, True),
        ("half as in float64, half as in float32", good | {"big.weight": half}, False),
    ):
        judgement = compare.judge(good, got, {}, lambda: other)
        passes = (not judgement.differs) == excused and judgement.decided == excused
        missed += not passes
        print(f"{'ok  ' if passes else 'MISS'} {what}: {judgement.verdict()}")
    mended = {"big.weight|mended": other["big.weight"].double()}
    for what, got, excused in (("as the mended method", other, True), ("half mended", good | {"big.weight": half}, False)):
        judgement = compare.judge(good, got, mended)
        passes = (not judgement.differs) == excused
        missed += not passes
        print(f"{'ok  ' if passes else 'MISS'} {what}: {judgement.verdict()}")
    return missed


def rates_are_judged():
    """The number of masks that are taken for fair though they are not, or the reverse."""
    gen = torch.Generator().manual_seed(7)
    p = torch.linspace(0.3, 0.7, 10_000)
    draw = torch.rand(p.shape, generator=gen)
    missed = 0
    for what, mask, fair in (
        ("fair masks", draw < p, True),
        ("masks that keep too many", draw < p + 0.05, False),
        ("masks that keep the small", draw < p.flip(0), False),
    ):
        rates = peer.Rates()
        rates.see(p, mask.byte())
        found = rates.found()
        far = max(abs(found["off"]), abs(found["lean off"])) > compare.STANDARD_DEVIATIONS
        missed += far == fair
        print(f"{'ok  ' if far != fair else 'MISS'} {what}: {found}")
    return missed


def peer_in_float64(_weld, _text, folder):
    """Stands in for weld: the peer with float64 arithmetic, ties at the lowest index."""
    tensors = peer.float64(folder, MASKS)
    shutil.rmtree(folder / "weld", ignore_errors=True)
    shutil.copytree(folder / "peer", folder / "weld", ignore=shutil.ignore_patterns("*.safetensors*"))
    safetensors.torch.save_file(tensors, folder / "weld" / "model.safetensors")


MASKS = {}


def any_masks(_weld, text, _folder):
    """Stands in for weld's masks: every second element, whatever the density."""
    MASKS.clear()
    recipe = yaml.safe_load(text)
    for place, _ in enumerate(recipe["models"]):
        for name, tensor in compare.load(recipe["base_model"])[0].items():
            gen = models.generator(name, place)
            MASKS.setdefault(name, []).append(torch.rand(tensor.shape, generator=gen).lt(0.5).byte())
    return MASKS


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--all", action="store_true", help="every family, not only llama in bf16")
    args = parser.parse_args()
    if planted():
        return 1
    compare.run_weld, compare.masks_of = peer_in_float64, any_masks
    compare.STANDARD_DEVIATIONS = float("inf")
    return compare.compare(
        argparse.Namespace(
            weld=Path("none"),
            work=args.work,
            family=None if args.all else ["llama"],
            dtype=None if args.all else ["bf16"],
            recipe="",
            table=None,
            docs=None,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
