"""Runs the peer and weld on the same recipes and compares every tensor.

    python tests/peer/compare.py --weld target/release/weld --work DIR
        [--family X]... [--dtype D]... [--recipe PART] [--table FILE]
    python tests/peer/compare.py --golden DIR

Prints a Markdown table and leaves every output under DIR/out for a look. Exits 1
if anything differs. --golden writes the cases that `cargo test` runs by itself.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.dont_write_bytecode = True

import safetensors.torch
import torch

import models
import recipes

F32_TOLERANCE = 4e-6  # of the tensor's largest magnitude
UNEQUAL_SHARE = 0.01  # of 16-bit elements
# What float32 arithmetic may be wrong by, of the tensor's largest magnitude. Where
# noise of this size in the peer's value before rounding explains weld's value, it may
# be more than a step off: sums that cancel to nearly nothing.
F32_NOISE = 2.0**-21
SIXTEEN_BIT = (torch.bfloat16, torch.float16)


@dataclass
class Judgement:
    """How far weld's tensors are from the peer's."""

    differs: list = field(default_factory=list)
    elements: int = 0
    unequal: int = 0
    righter: int = 0  # unequal, but as the peer in float64
    ties: int = 0
    votes: int = 0
    error: float = 0.0  # F32: of the tensor's largest; 16 bits: steps
    noise: int = 0  # elements more than a step off that float32's noise explains
    sixteen_bit: bool = False

    def verdict(self):
        if self.differs:
            more = f" (and {len(self.differs) - 1} more)" if len(self.differs) > 1 else ""
            return f"differs: {self.differs[0]}{more}"
        if not self.unequal:
            return "equal"
        if self.sixteen_bit:
            return f"within a step: {100 * (1 - self.unequal / self.elements):.3f} % equal"
        return f"within {F32_TOLERANCE:g}"

    def max_error(self):
        return f"{self.error:.0f} steps" if self.sixteen_bit else f"{self.error:.1e}"

    def count_steps(self, name, want, got, unrounded, float64, largest):
        """Counts the unequal elements of a 16-bit tensor, and what they say."""
        steps = (ordered(want) - ordered(got)).abs()
        far = steps > 1
        if unrounded is not None:
            explained = far & within_noise(unrounded, got, largest)
            self.noise += int(explained.sum())
            steps, far = steps.masked_fill(explained, 0), far & ~explained
        self.error = max(self.error, int(steps.max()))
        wrong = steps > 0
        if float64 is not None:
            self.righter += int((wrong & (got == float64)).sum())
            wrong &= got != float64
        if far.any():
            self.differs.append(f"{name}: {int(steps.max())} steps off")
        elif int(wrong.sum()) > allowed_in(want.numel()):
            self.differs.append(f"{name}: {int(wrong.sum())} of {want.numel()} a step off")


def allowed_in(elements):
    """How many elements of one tensor may be unequal: the share, and chance in small ones."""
    share = UNEQUAL_SHARE * elements
    return 2 + share + 3 * share**0.5


def ordered(tensor):
    """A 16-bit float as an integer that grows by one from each value to the next."""
    bits = tensor.contiguous().view(torch.int16).int()
    return torch.where(bits >= 0, bits, -(bits & 0x7FFF))


def within_noise(unrounded, got, largest):
    """Where float32's noise in the unrounded value explains `got`."""
    noise = F32_NOISE * largest
    low = ordered((unrounded.double() - noise).to(got.dtype))
    high = ordered((unrounded.double() + noise).to(got.dtype))
    return (low <= ordered(got)) & (ordered(got) <= high)


def compare_numbers(name, want, got, unrounded, float64, use, judgement):
    """Compares one tensor where `use` says so, as its dtype allows."""
    want_nan, got_nan = want.isnan(), got.isnan()
    if (want_nan != got_nan).any():
        judgement.differs.append(f"{name}: NaN in one only")
        return
    use = use & ~want_nan
    if not use.any():
        return
    largest = want.double().abs().max().item() or 1.0
    want, got = want[use], got[use]
    judgement.elements += want.numel()
    judgement.unequal += int((want != got).sum())
    if want.dtype in SIXTEEN_BIT:
        judgement.sixteen_bit = True
        unrounded = None if unrounded is None else unrounded[use]
        float64 = None if float64 is None else float64[use]
        judgement.count_steps(name, want, got, unrounded, float64, largest)
    else:
        error = (want.double() - got.double()).abs().max().item() / largest
        judgement.error = max(judgement.error, error)
        if not error <= F32_TOLERANCE:
            judgement.differs.append(f"{name}: off by {error:.1e} of its largest")


def judge(want, got, notes=None):
    """Compares two checkpoints, {name: tensor}; `notes` are the peer's choices."""
    notes, judgement = notes or {}, Judgement()
    for kind, names in (("missing", want.keys() - got), ("not in the peer's", got.keys() - want)):
        if names:
            judgement.differs.append(f"{len(names)} {kind}: {sorted(names)[0]}")
    for name in sorted(want.keys() & got):
        w, g = want[name], got[name]
        if w.shape != g.shape:
            judgement.differs.append(f"{name}: shape {list(g.shape)}, peer {list(w.shape)}")
            continue
        if w.dtype != g.dtype:
            judgement.differs.append(f"{name}: {g.dtype}, peer {w.dtype}".replace("torch.", ""))
            continue
        none = torch.zeros(w.shape, dtype=torch.bool)
        tied, votes = notes.get(f"{name}|tied", none), notes.get(f"{name}|votes", none)
        judgement.ties += int((tied & ~votes).sum())
        judgement.votes += int(votes.sum())
        unrounded, float64 = notes.get(f"{name}|unrounded"), notes.get(f"{name}|float64")
        compare_numbers(name, w, g, unrounded, float64, ~tied & ~votes, judgement)
        if tied.any():
            lowest, at_ties = notes[f"{name}|lowest"], Judgement()
            use = tied & ~votes
            compare_numbers(name, lowest.to(w.dtype), g, lowest, float64, use, at_ties)
            judgement.differs += [f"{d}, where ties go to the lowest index" for d in at_ties.differs]
    wrong = judgement.unequal - judgement.righter
    if judgement.sixteen_bit and wrong > UNEQUAL_SHARE * judgement.elements:
        judgement.differs.insert(0, f"{wrong} of {judgement.elements} elements a step off")
    return judgement


def load(folder):
    """All tensors of a checkpoint folder, and what is wrong with its files."""
    tensors, place, wrong = {}, {}, []
    for path in sorted(Path(folder).glob("*.safetensors")):
        for name, tensor in safetensors.torch.load_file(path).items():
            if name in tensors:
                wrong.append(f"{name} is in two shards")
            tensors[name], place[name] = tensor, path.name
    index = Path(folder) / "model.safetensors.index.json"
    if len(set(place.values())) > 1 and not index.exists():
        wrong.append("shards without an index")
    if index.exists() and json.loads(index.read_text())["weight_map"] != place:
        wrong.append("the index does not match the shards")
    return tensors, wrong


def run_weld(weld, text, folder):
    """Runs weld into folder/weld. Returns what it failed on, or None."""
    recipe, out = folder / "recipe.yml", folder / "weld"
    recipe.write_text(text)
    shutil.rmtree(out, ignore_errors=True)
    try:
        done = subprocess.run(
            [weld, "merge", str(recipe), str(out)], capture_output=True, text=True, timeout=300
        )
    except subprocess.TimeoutExpired:
        return "no end after 300 s"
    (folder / "weld.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        return f"exit {done.returncode}: {lines[0]}"
    return None


def config_differs(folder):
    """What the two configs say otherwise of the number of layers."""
    counts = []
    for tool in ("peer", "weld"):
        path = folder / tool / "config.json"
        counts.append(json.loads(path.read_text()).get("num_hidden_layers") if path.exists() else None)
    if counts[0] == counts[1] or counts[0] is None:
        return []
    return [f"config.json: num_hidden_layers {counts[1]}, peer {counts[0]}"]


def row(weld, work, family, dtype, recipe):
    """Runs one case with both tools: (verdict, max error, note)."""
    import peer

    folder = models.ensure(work / "models", family, dtype)
    in_f32 = models.ensure(work / "models", family, "f32")
    paths = {name: folder / name for name in models.NAMES} | {"a_f32": in_f32 / "a"}
    peer_text, weld_text = recipe.texts(dtype, paths)
    out = work / "out" / family / dtype / recipe.name
    peer_failed = peer.merge(peer_text, out, (folder / ".made").read_text())
    weld_failed = run_weld(weld, weld_text, out)
    if weld_failed:
        return f"differs: weld: {weld_failed}", "", f"peer: {peer_failed}" if peer_failed else ""
    got, wrong = load(out / "weld")
    if not (out / "peer").exists():
        return f"differs: {wrong[0]}" if wrong else f"peer fails: {peer_failed}", "", ""
    want, _ = load(out / "peer")
    judgement = judge(want, got, peer.choices(out))
    judgement.differs += wrong + ([] if peer_failed else config_differs(out))
    notes = []
    if judgement.righter:
        notes.append(f"{judgement.righter} of {judgement.unequal} unequal are as in float64")
    if judgement.noise:
        notes.append(f"{judgement.noise} more than a step off by float32's noise")
    if judgement.ties:
        notes.append(f"{judgement.ties} tied at a threshold")
    if judgement.votes:
        notes.append(f"{judgement.votes} votes undecided")
    verdict = judgement.verdict()
    if peer_failed and not judgement.differs:
        notes.insert(0, f"peer with its table set aside: {verdict}")
        verdict = f"peer fails: {peer_failed}"
    return verdict, judgement.max_error(), "; ".join(notes)


def shorten(text, work):
    """Without the machine's folders and within a table's cell."""
    text = text.replace(str(work), "DIR").replace("|", "\\|").replace("\n", " ")
    return text if len(text) <= 240 else text[:237] + "..."


def compare(args):
    work = args.work.resolve()
    start, differ, lines = time.time(), 0, []

    def say(line):
        print(line, flush=True)
        lines.append(line)

    say("| family | dtype | recipe | verdict | max error | note |")
    say("|---|---|---|---|---|---|")
    verdicts = {}
    families, dtypes = args.family or models.FAMILIES, args.dtype or models.DTYPES
    for family, dtype, recipe in recipes.matrix(families, dtypes, args.recipe):
        verdict, error, note = row(args.weld.resolve(), work, family, dtype, recipe)
        cells = [family, dtype, recipe.name, shorten(verdict, work), error, shorten(note, work)]
        say("| " + " | ".join(cells) + " |")
        kind = verdict.split(":")[0]
        kind = "within 4e-06" if kind.startswith("within 4") else kind
        verdicts[kind] = verdicts.get(kind, 0) + 1
    say("")
    total = ", ".join(f"{count} {kind}" for kind, count in sorted(verdicts.items())) or "no such case"
    say(f"{total}; {time.time() - start:.0f} s")
    if args.table:
        args.table.write_text("\n".join(lines) + "\n")
    return 1 if verdicts.get("differs") or not verdicts else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weld", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--family", action="append", choices=models.FAMILIES)
    parser.add_argument("--dtype", action="append", choices=models.DTYPES)
    parser.add_argument("--recipe", default="", help="only recipes with this in their name")
    parser.add_argument("--table", type=Path, help="write the table here too")
    parser.add_argument("--golden", type=Path, help="write golden cases here and stop")
    args = parser.parse_args()
    if args.golden:
        import golden

        golden.write(args.golden)
        return 0
    if not args.weld or not args.work:
        parser.error("--weld and --work are needed (or --golden)")
    return compare(args)


if __name__ == "__main__":
    sys.exit(main())
