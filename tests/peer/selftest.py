"""Tests the comparison itself, without weld.

    python tests/peer/selftest.py --work DIR [--all]

First plants faults in a checkpoint and sees that each is found; then puts the peer
computing in float64 in weld's place, which must pass (for every case with --all).
"""

import argparse
import sys
from pathlib import Path

sys.dont_write_bytecode = True

import torch

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
    return missed + ties_are_judged() + excuses_are_judged()


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
        notes = {key if "|" in key else f"big.weight|{key}": note for key, note in notes.items()}
        verdict = compare.judge(want, got, notes).verdict()
        passes = verdict.startswith("within a step") == excused
        missed += not passes
        print(f"{'ok  ' if passes else 'MISS'} {what}: {verdict}")
    return missed


def peer_in_float64(_weld, _text, folder):
    """Stands in for weld: the peer with float64 arithmetic, ties at the lowest index."""
    text = peer.in_float64((folder / "peer.done").read_text().split("\n", 1)[1])
    with peer.lowest_index():
        try:
            peer.run(text, folder / "weld")
        except Exception:
            peer.run(text, folder / "weld", architecture=peer.architecture_from_tensors)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--all", action="store_true", help="every family, not only llama in bf16")
    args = parser.parse_args()
    if planted():
        return 1
    compare.run_weld = peer_in_float64
    return compare.compare(
        argparse.Namespace(
            weld=Path("none"),
            work=args.work,
            family=None if args.all else ["llama"],
            dtype=None if args.all else ["bf16"],
            recipe="",
            table=None,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
