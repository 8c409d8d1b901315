"""Runs the peer and weld on the same recipes and compares every tensor.

    python tests/peer/compare.py --weld target/release/weld --work DIR
        [--family X]... [--dtype D]... [--recipe PART] [--table FILE] [--docs FILE]
    python tests/peer/compare.py --golden DIR [--weld target/release/weld]

Prints a Markdown table and leaves every output under DIR/out for a look. Exits 1
if anything differs. --golden writes the cases that `cargo test` runs by itself.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.dont_write_bytecode = True

import safetensors.torch
import torch
import yaml

import models
import recipes
import summary

F32_TOLERANCE = 4e-6  # of the tensor's largest magnitude
UNEQUAL_SHARE = 0.01  # of 16-bit elements
# What float32 arithmetic may be wrong by, of the tensor's largest magnitude. Where
# noise of this size in the peer's value before rounding explains weld's value, it may
# be more than a step off: sums that cancel to nearly nothing.
F32_NOISE = 2.0**-21
# How far the number of elements that random masks keep may be from the expected.
STANDARD_DEVIATIONS = 5
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
    decided: int = 0  # tensors in which float32's noise decides: equal to the peer in float64
    mended: int = 0  # tensors in which a defect of the peer's decides: equal to the method without it
    tied_copies: int = 0  # tensors of the peer's that repeat the embedding
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

    def take(self, other):
        """Adds what was found of one tensor."""
        self.differs += other.differs
        self.error = max(self.error, other.error)
        self.sixteen_bit |= other.sixteen_bit
        for count in ("elements", "unequal", "righter", "ties", "votes", "decided", "mended", "noise"):
            setattr(self, count, getattr(self, count) + getattr(other, count))

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
        if wrong.any() and (exact := float64()) is not None:
            self.righter += int((wrong & (got == exact)).sum())
            wrong &= got != exact
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

        def double():
            found = float64()
            return None if found is None else found[use]

        judgement.count_steps(name, want, got, unrounded, double, largest)
    else:
        error = (want.double() - got.double()).abs().max().item() / largest
        judgement.error = max(judgement.error, error)
        if not error <= F32_TOLERANCE:
            judgement.differs.append(f"{name}: off by {error:.1e} of its largest")


def judge(want, got, notes=None, float64=dict, inputs=None):
    """Compares two checkpoints, {name: tensor}; `notes` are the peer's choices.

    `inputs` are the tensors of a model that was merged: copies in it may be left out.

    `float64` gives what the peer makes when it computes in float64. A tensor that differs
    must be that one, as a whole: then it is float32's noise that decided in the peer.
    """
    notes, judgement = notes or {}, Judgement()
    lacks = [name for name in want.keys() - got if not is_tied_copy(name, inputs or {})]
    judgement.tied_copies = len(want.keys() - got) - len(lacks)
    for kind, names in (("missing", lacks), ("not in the peer's", got.keys() - want)):
        if names:
            judgement.differs.append(f"{len(names)} {kind}: {min(names)}")
    for name in sorted(want.keys() & got):
        w, g = want[name], got[name]
        if w.shape != g.shape:
            judgement.differs.append(f"{name}: shape {list(g.shape)}, peer {list(w.shape)}")
            continue
        if w.dtype != g.dtype:
            judgement.differs.append(f"{name}: {g.dtype}, peer {w.dtype}".replace("torch.", ""))
            continue
        judgement.take(judge_tensor(name, w, g, notes, float64))
    wrong = judgement.unequal - judgement.righter
    if judgement.sixteen_bit and wrong > UNEQUAL_SHARE * judgement.elements:
        judgement.differs.insert(0, f"{wrong} of {judgement.elements} elements a step off")
    return judgement


# Computed from the config, not trained: a merge carries over one model's.
BUFFER = re.compile(r"(\.attn|\.attention|\.attn\.attention)\.(bias|masked_bias)$|inv_freq$|position_ids$")


def with_buffers_of(want, model):
    """The peer's tensors with a model's own buffers, which the peer merges, scales and casts like weights."""
    import peer

    own = {peer.LAYER.sub(r"\g<1>*\3", name): tensor for name, tensor in load(model)[0].items()}
    buffers = {}
    for name in filter(BUFFER.search, want):
        buffer = own[peer.LAYER.sub(r"\g<1>*\3", name)]
        buffers[name] = buffer.to(want[name].dtype) if buffer.is_floating_point() else buffer
    return want | buffers


# Heads, and what a tied model stores in their place.
TIED = {
    "lm_head.weight": re.compile("embed_tokens.weight$"),
    "cls.predictions.decoder.weight": re.compile("word_embeddings.weight$"),
    "cls.predictions.decoder.bias": re.compile("cls.predictions.bias$"),
}


def is_tied_copy(name, inputs):
    """Whether the tensor is a head that repeats what the model stores in another place too."""
    return name in TIED and any(
        TIED[name].search(other) and torch.equal(tensor, inputs[name]) for other, tensor in inputs.items()
    )


def judge_tensor(name, want, got, notes, float64):
    """Compares one tensor: with the peer's and, if it differs, with the peer's in float64."""
    none = torch.zeros(want.shape, dtype=torch.bool)
    tied, votes = notes.get(f"{name}|tied", none), notes.get(f"{name}|votes", none)
    unrounded = notes.get(f"{name}|unrounded")
    judgement = Judgement(ties=int((tied & ~votes).sum()), votes=int(votes.sum()))

    def double():
        found = float64().get(name)
        return None if found is None else found.to(want.dtype)

    if not want.is_floating_point():
        if not torch.equal(want, got):
            judgement.differs.append(f"{name}: other values")
        return judgement
    compare_numbers(name, want, got, unrounded, double, ~tied & ~votes, judgement)
    if tied.any():
        lowest, at_ties = notes[f"{name}|lowest"], Judgement()
        use = tied & ~votes
        compare_numbers(name, lowest.to(want.dtype), got, lowest, double, use, at_ties)
        judgement.differs += [f"{d}, where ties go to the lowest index" for d in at_ties.differs]
    if judgement.differs and (mended := notes.get(f"{name}|mended")) is not None:
        again = Judgement(mended=1)
        every = torch.ones(want.shape, dtype=torch.bool)
        compare_numbers(name, mended.to(want.dtype), got, mended, lambda: mended.to(want.dtype), every, again)
        return again
    if judgement.differs and (exact := double()) is not None:
        again = Judgement(votes=judgement.votes, decided=1)
        compare_numbers(name, exact, got, None, double, ~votes, again)
        if not again.differs:
            return again
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


def run_weld(weld, text, folder, name="weld"):
    """Runs weld into folder/name. Returns what it failed on, or None."""
    recipe, out = folder / "recipe.yml", folder / name
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


def masks_of(weld, text, folder):
    """The masks that weld draws in a recipe of task vectors: for each tensor, one of each model.

    Each is read off a merge in which only that model has a weight. Raises what weld says.
    """
    import peer

    recipe = yaml.safe_load(text)
    for key in ("out_dtype", "dtype"):
        recipe.pop(key, None)
    recipe["out_dtype"] = "float32"
    shared = recipe.setdefault("parameters", {})
    shared |= {"normalize": False, "lambda": 1}
    folder.mkdir(parents=True, exist_ok=True)
    base, _ = load(recipe["base_model"])
    masks = {}
    for chosen in recipe["models"]:
        for model in recipe["models"]:
            # So large that no delta is lost in the sum with the base.
            model["parameters"]["weight"] = 4096 if model is chosen else 0
        if failed := run_weld(weld, yaml.safe_dump(recipe, sort_keys=False), folder, "weld-mask"):
            raise RuntimeError(failed)
        merged, _ = load(folder / "weld-mask")
        tuned, _ = load(chosen["model"])
        for name, tensor in merged.items():
            mask = torch.full(tensor.shape, peer.DROPPED, dtype=torch.uint8)
            mask[tensor != base[name].float()] = peer.KEPT
            mask[tuned[name] == base[name]] = peer.UNKNOWN
            masks.setdefault(name, []).append(mask)
    shutil.rmtree(folder / "weld-mask")
    return masks


LAYER_COUNTS = ("num_hidden_layers", "n_layer")


def config_differs(folder):
    """What weld's config says otherwise of the layers than its tensors, or in the lists of one entry a layer."""
    import peer

    config = json.loads((folder / "weld" / "config.json").read_text())
    config = config.get("text_config", config)
    stacks = {}
    for name in load(folder / "weld")[0]:
        if match := peer.LAYER.match(name):
            stacks.setdefault(match[1], set()).add(int(match[2]))
    if not any(key in config for key in LAYER_COUNTS):
        return []
    said = next(config[key] for key in LAYER_COUNTS if key in config)
    found = []
    if set(range(said)) not in stacks.values():
        found.append(f"config.json: {said} layers, the tensors {sorted(map(len, stacks.values()))}")
    if len(config.get("layer_types") or range(said)) != said:
        found.append(f"config.json: {said} layers, {len(config['layer_types'])} layer_types")
    return found


def row(weld, work, family, dtype, recipe):
    """Runs one case with both tools: (verdict, max error, note)."""
    import peer

    folder = models.ensure(work / "models", family, dtype)
    in_f32 = models.ensure(work / "models", family, "f32")
    paths = {name: folder / name for name in models.NAMES} | {"a_f32": in_f32 / "a"}
    peer_text, weld_text = recipe.texts(dtype, paths)
    out = work / "out" / family / dtype / recipe.name
    masks = None
    if recipe.random:
        try:
            masks = masks_of(weld, weld_text, work / "masks" / family / dtype)
        except RuntimeError as error:
            return f"differs: weld: {error}", "", ""
    wrong_with_peer = peer.merge(peer_text, out, (folder / ".made").read_text(), masks)
    weld_failed = run_weld(weld, weld_text, out)
    if weld_failed:
        return f"differs: weld: {weld_failed}", "", f"peer {wrong_with_peer}" if wrong_with_peer else ""
    got, wrong = load(out / "weld")
    if not (out / "peer").exists():
        return f"differs: {wrong[0]}" if wrong else f"peer {wrong_with_peer}", "", "not compared"
    want = with_buffers_of(load(out / "peer")[0], folder / "a")
    inputs, _ = load(folder / "a")
    judgement = judge(want, got, peer.choices(out), lambda: peer.float64(out, masks), inputs)
    judgement.differs += wrong + config_differs(out)
    notes = []
    if wrong_with_peer:
        notes.append(f"peer with its table set aside: {judgement.verdict()}")
    if masks:
        rates = peer.rates(out)
        if rates["expected"]:
            notes.append(f"masks keep {rates['kept']:.0f}, expected {rates['expected']:.0f}")
        for what in ("off", "lean off"):
            if abs(rates[what]) > STANDARD_DEVIATIONS:
                judgement.differs.append(f"masks: {rates[what]:.1f} standard deviations {what}")
    if judgement.decided:
        notes.append(f"{judgement.decided} tensors as the peer in float64, ties to the lowest index")
    if judgement.mended:
        notes.append(f"{judgement.mended} tensors as the method without the peer's floor under norms")
    if judgement.righter:
        notes.append(f"{judgement.righter} of {judgement.unequal} unequal are as in float64")
    if judgement.noise:
        notes.append(f"{judgement.noise} more than a step off by float32's noise")
    if judgement.ties:
        notes.append(f"{judgement.ties} tied at a threshold")
    if judgement.votes:
        notes.append(f"{judgement.votes} votes or thresholds undecided")
    if judgement.tied_copies:
        notes.append(f"{judgement.tied_copies} copies of tied tensors left out")
    verdict = judgement.verdict()
    if wrong_with_peer and not judgement.differs:
        verdict = f"peer {wrong_with_peer}"
    return verdict, judgement.max_error(), "; ".join(notes)


def shorten(text, work):
    """Without the machine's folders and within a table's cell."""
    text = text.replace(str(work), "DIR").replace("|", "\\|").replace("\n", " ")
    return text if len(text) <= 240 else text[:237] + "..."


def known_methods(weld):
    """The methods that weld has; None takes all for known, where something stands in for weld."""
    if not weld.exists():
        return None
    done = subprocess.run([weld, "methods", "--format", "json"], capture_output=True, check=True)
    return {method["name"] for method in json.loads(done.stdout)}


def compare(args):
    work, weld = args.work.resolve(), args.weld.resolve()
    start, lines, rows = time.time(), [], []

    def say(line):
        print(line, flush=True)
        lines.append(line)

    say("| family | dtype | recipe | verdict | max error | note |")
    say("|---|---|---|---|---|---|")
    names, dtypes = args.family or models.FAMILIES, args.dtype or models.DTYPES
    families = {name: models.FAMILIES[name] for name in names}
    known, skipped = known_methods(weld), {}
    for family, dtype, recipe in recipes.matrix(families, dtypes, args.recipe):
        if known is not None and recipe.method not in known:
            skipped[recipe.method] = skipped.get(recipe.method, 0) + 1
            continue
        verdict, error, note = row(weld, work, family, dtype, recipe)
        cells = [family, dtype, recipe.name, shorten(verdict, work), error, shorten(note, work)]
        say("| " + " | ".join(cells) + " |")
        rows.append(summary.Row(models.FAMILIES[family].title, recipe.method, verdict, note))
    say("")
    verdicts = {}
    for case in rows:
        verdicts[case.kind] = verdicts.get(case.kind, 0) + 1
    total = ", ".join(f"{count} {kind}" for kind, count in sorted(verdicts.items())) or "no such case"
    say(f"{total}; {time.time() - start:.0f} s")
    if skipped:
        say(f"{sum(skipped.values())} skipped: weld has no {', '.join(sorted(skipped))}")
    if args.table:
        args.table.write_text("\n".join(lines) + "\n")
    if args.docs:
        summary.write(args.docs, rows)
    return 1 if verdicts.get("differs") or not verdicts else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weld", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--family", action="append", choices=models.FAMILIES)
    parser.add_argument("--dtype", action="append", choices=models.DTYPES)
    parser.add_argument("--recipe", default="", help="only recipes with this in their name")
    parser.add_argument("--table", type=Path, help="write the table here too")
    parser.add_argument("--docs", type=Path, help="renew the summary in this document")
    parser.add_argument("--golden", type=Path, help="write golden cases here and stop")
    args = parser.parse_args()
    if args.golden:
        import golden

        golden.write(args.golden, known_methods(args.weld.resolve()) if args.weld else None)
        return 0
    if not args.weld or not args.work:
        parser.error("--weld and --work are needed (or --golden)")
    return compare(args)


if __name__ == "__main__":
    sys.exit(main())
