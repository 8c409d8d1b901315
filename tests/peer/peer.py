"""Runs the peer, mergekit, in this process, and notes where its answer is arbitrary.

These choices of the peer's are not defined by the method:
- which of the elements that are equally large at a density's threshold are kept
  (an unstable sort decides);
- the vote on the sign where the deltas cancel but for their rounding, and whether an
  importance is at least as large as a threshold that it equals but for its rounding.
Where weld mends the method (Model Stock's floor under norms), the mended tensor is kept.
`merge` keeps the places of these beside the output, and for the first what comes
out when the elements of lowest index are kept; and of 16-bit outputs the float32
values before they were rounded. `float64` is what comes out when all is computed in
float64. The masks of random methods can be given: then nothing is left to chance.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import warnings
import zlib
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import mergekit.merge
import mergekit.sparsify
import safetensors.torch
import torch
import transformers
import yaml
from mergekit.architecture.base import ModelArchitecture, ModuleDefinition, WeightInfo
from mergekit.architecture.json_definitions import (
    JsonLayerTemplates,
    JsonModuleArchDef,
    JsonModuleArchitecture,
)
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache, SaveTensor
from mergekit.merge_methods import arcee_fusion, generalized_task_arithmetic, sce
from mergekit.merge_methods.base import FunctionalGroupMergeMethod
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge
from mergekit.options import MergeOptions

logging.disable(logging.WARNING)
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

OPTIONS = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False, device="cpu")

THEIR_MERGE = GeneralizedTaskArithmeticMerge.merge_group
THEIR_FUNCTION = FunctionalGroupMergeMethod.merge_group
THEIR_SAVE = SaveTensor.execute
THEIR_MAGNITUDE = mergekit.sparsify.magnitude
THEIR_OUTLIERS = mergekit.sparsify.magnitude_outliers
THEIR_SPARSIFY = generalized_task_arithmetic.sparsify
THEIR_BERNOULLI = torch.bernoulli
THEIR_SELECTION = sce.sce_mask
THEIR_ARCHITECTURE = mergekit.merge.get_architecture_info

# The name of a tensor in a stack of layers: what stands before the number, it, the rest.
LAYER = re.compile(r"^((?:.*?\.)?(?:layers|layer|h|blocks|block)\.)(\d+)(\..+)$")

# The least that the peer's Model Stock divides by, in place of the product of two norms.
STOCK_FLOOR = 1e-6

# Tensors that come before the layers: embeddings, and the towers that look at images.
BEFORE_LAYERS = re.compile(r"^(?!embed_out).*embed|(^|\.)w[tp]e\.|^(vision_tower|visual|multi_modal_projector)\.")


def ranked(sizes):
    """Indices from the largest to the smallest; of equal ones the lowest first."""
    return torch.sort(sizes.flatten(), descending=True, stable=True).indices


def kept_at_lowest_index(tensor, density, rescale_norm=None):
    """The peer's `magnitude` with equal magnitudes decided by the lowest index."""
    if density >= 1 or density <= 0:
        return THEIR_MAGNITUDE(tensor, density, rescale_norm)
    k = max(1, int(density * tensor.numel()))
    mask = torch.zeros(tensor.numel(), dtype=tensor.dtype)
    mask[ranked(tensor.abs().float())[:k]] = 1
    return mergekit.sparsify.rescaled_masked_tensor(tensor, mask.view_as(tensor), rescale_norm)


def between_at_lowest_index(tensor, density, rescale_norm=None, gamma=0.01):
    """The peer's `magnitude_outliers` with equal magnitudes decided by the lowest index."""
    if density >= 1:
        return tensor
    dropped, k = outliers(tensor.numel(), density, gamma)
    sizes = tensor.abs().float().flatten()
    # At either threshold those of lowest index stay: of the largest, the highest indices are dropped.
    gone = sizes.numel() - 1 - ranked(sizes.flip(0))[:dropped]
    sizes[gone] = -1.0
    mask = torch.zeros(tensor.numel(), dtype=tensor.dtype)
    mask[ranked(sizes)[:k]] = 1
    return mergekit.sparsify.rescaled_masked_tensor(tensor, mask.view_as(tensor), rescale_norm)


def outliers(elements, density, gamma):
    """How many of the largest are dropped, and how many of the next are kept."""
    k = int(density * elements)
    return min(int(gamma * elements), elements - k), k


def selected_at_lowest_index(deltas, density, mask_dtype=None):
    """The peer's `sce_mask` with equal variances decided by the lowest index.

    Standard deviations are compared in float32, so that the order of the models does not
    decide, and an element on which all models agree has none.
    """
    if not 0 < density < 1:
        return THEIR_SELECTION(deltas, density, mask_dtype)
    spread = torch.std(deltas.double() - deltas[0].double(), dim=0, unbiased=False).float()
    k = int(torch.count_nonzero(spread) * density)
    mask = torch.zeros(spread.numel(), dtype=mask_dtype)
    mask[ranked(spread)[:k]] = 1
    return mask.view_as(spread)


@contextlib.contextmanager
def lowest_index():
    before = (mergekit.sparsify.magnitude, mergekit.sparsify.magnitude_outliers, sce.sce_mask)
    mergekit.sparsify.magnitude = kept_at_lowest_index
    mergekit.sparsify.magnitude_outliers = between_at_lowest_index
    sce.sce_mask = selected_at_lowest_index
    try:
        yield
    finally:
        mergekit.sparsify.magnitude, mergekit.sparsify.magnitude_outliers, sce.sce_mask = before


def tied_at(sizes, k):
    """The elements that are as large as the k-th largest, where only some of them are among the first k."""
    if not 0 < k < sizes.numel():
        return torch.zeros(sizes.shape, dtype=torch.bool)
    threshold = sizes.flatten().sort(descending=True).values[k - 1]
    ambiguous = threshold > 0 and int((sizes >= threshold).sum()) > k
    return (sizes == threshold) if ambiguous else torch.zeros(sizes.shape, dtype=torch.bool)


def tied_at_threshold(method, delta, density, gamma=None):
    """The elements of which the density keeps some and drops others equally large."""
    size, n = delta.abs(), delta.numel()
    if not 0 < density < 1 or not n:
        return torch.zeros(delta.shape, dtype=torch.bool)
    if method == "magnitude":
        return tied_at(size, max(1, int(density * n)))
    if method == "magnitude_outliers":
        dropped, k = outliers(n, density, gamma)
        return tied_at(size, dropped) | tied_at(size, dropped + k)
    return torch.zeros(delta.shape, dtype=torch.bool)


def undecided_votes(single, exact):
    """Elements where rounding alone may decide the sign of the sum of deltas.

    `single` are the deltas as the peer has them in float32, `exact` in float64.
    """
    total = sum(exact)
    certain = torch.ones(total.shape, dtype=torch.bool)
    for rounded, true in zip(single, exact):
        certain &= rounded.double() == true
    for order in (single, single[::-1]):
        certain &= sum(order).double() == total
    near = total.abs() <= 1e-6 * sum(u.abs() for u in exact)
    return near & ~certain


class Choices:
    """Notes the peer's arbitrary choices, and unrounded values, while it merges."""

    def __init__(self):
        self.notes = {}

    def note(self, method, group, parameters, masks):
        """A tensor of the task-arithmetic family."""
        sparsifier = method.sparsification_method and method.sparsification_method.value
        name, base, entries = group.metadata.name, group.base.tensor, group.non_base
        if not entries:
            return
        tied = torch.zeros(base.shape, dtype=torch.bool)
        for entry in entries:
            gamma = parameters["gamma"][entry.id] if "gamma" in parameters else None
            density = parameters["density"][entry.id]
            tied |= tied_at_threshold(sparsifier, entry.tensor - base, density, gamma)
        if tied.any():
            with lowest_index():
                self.notes[f"{name}|lowest"] = THEIR_MERGE(method, group, **parameters)
            self.notes[f"{name}|tied"] = tied
        if method.consensus_method:
            weighted = []
            for dtype in (torch.float32, torch.float64):
                deltas = sparse_deltas(method, group, parameters, masks, dtype)
                weights = [torch.tensor(parameters["weight"][e.id], dtype=dtype) for e in entries]
                weighted.append([delta * weight for delta, weight in zip(deltas, weights)])
            self.vote(name, *weighted)

    def note_sce(self, group, parameters):
        """A tensor of SCE, whose signs are elected without weights."""
        base, entries = group.base.tensor, group.non_base
        if not entries:
            return
        chosen = []
        for dtype in (torch.float32, torch.float64):
            deltas = torch.stack([entry.tensor.to(dtype) - base.to(dtype) for entry in entries])
            if parameters["select_topk"] < 1:
                deltas = deltas * selected_at_lowest_index(deltas, parameters["select_topk"], dtype)
            chosen.append(list(deltas))
        self.vote(group.metadata.name, *chosen)

    def note_fusion(self, group):
        """A tensor of Arcee Fusion: where importance and threshold are equal but for rounding."""
        base, tuned = group.base.tensor.double(), group.non_base[0].tensor.double()
        importance = arcee_fusion._compute_importance(tuned, base)
        threshold = arcee_fusion.DynamicThresholdFusion().calculate_dynamic_threshold(importance)
        near = (importance - threshold).abs() <= 1e-9 * threshold.abs()
        near &= (importance != 0) & (tuned != base)
        if near.any():
            self.notes[f"{group.metadata.name}|votes"] = near

    def note_stock(self, group, parameters):
        """A tensor of Model Stock where the peer's floor under norms, or its lack of one under t, decides."""
        base = group.base.tensor.double()
        tuned = [entry.tensor.double() for entry in group.non_base]
        shape = (-1,) if not parameters["filter_wise"] else (-1, base.shape[-1] if base.dim() else 1)
        offsets = torch.stack([(model - base).reshape(shape) for model in tuned])
        norms = offsets.norm(dim=-1)
        cosines, floored = [], False
        for i in range(len(tuned)):
            for j in range(i + 1, len(tuned)):
                product = norms[i] * norms[j]
                floored |= bool((product < STOCK_FLOOR * (1 + 1e-6)).any())
                dot = (offsets[i] * offsets[j]).sum(dim=-1)
                cosines.append(torch.where(product > 0, dot / product, 0.0).clamp(-1, 1))
        cosine = torch.stack(cosines).mean(dim=0)
        if not floored and not bool((cosine < 1e-6).any()):
            return
        n, cosine = len(tuned), cosine.clamp(min=0).unsqueeze(-1)
        t = n * cosine / (1 + (n - 1) * cosine)
        merged = base.reshape(shape) + t * offsets.mean(dim=0)
        self.notes[f"{group.metadata.name}|mended"] = merged.reshape(base.shape)

    def vote(self, name, single, exact):
        votes = undecided_votes(single, exact)
        if votes.any():
            self.notes[f"{name}|votes"] = votes


# What a given mask says of an element. Unknown: its delta is zero, so that it does not matter.
DROPPED, KEPT, UNKNOWN = 0, 1, 2


class Rates:
    """Whether masks keep as many elements as they should, and with DELLA the larger ones more often."""

    def __init__(self):
        self.kept = self.expected = self.variance = self.slope = self.slope_variance = 0.0

    def see(self, probabilities, chosen):
        known = chosen != UNKNOWN
        p, kept = probabilities[known].double(), (chosen[known] == KEPT).double()
        if not p.numel():
            return
        lean = p - p.mean()
        self.kept += kept.sum().item()
        self.expected += p.sum().item()
        self.variance += (p * (1 - p)).sum().item()
        self.slope += ((kept - p) * lean).sum().item()
        self.slope_variance += (lean.square() * p * (1 - p)).sum().item()

    def found(self):
        """How many elements are kept, how many should be, and how many standard deviations off that is;
        the same of the lean to larger ones."""

        def off(difference, variance):
            return difference / variance**0.5 if variance > 1e-9 else 0.0

        return {
            "kept": self.kept,
            "expected": self.expected,
            "off": off(self.kept - self.expected, self.variance),
            "lean off": off(self.slope, self.slope_variance),
        }


def sparse_deltas(method, group, parameters, masks, dtype):
    """The sparsified deltas of a group in a dtype, equal magnitudes decided by the lowest index."""
    deltas = []
    with lowest_index(), given(masks):
        for place, entry in enumerate(group.non_base):
            delta = entry.tensor.to(dtype) - group.base.tensor.to(dtype)
            if method.sparsification_method:
                extra = {key: parameters[key][entry.id] for key in ("gamma", "epsilon") if key in parameters}
                norm = mergekit.sparsify.RescaleNorm.l1 if parameters["rescale"] else None
                density = parameters["density"][entry.id]
                given.place = place
                delta = THEIR_SPARSIFY(delta, density, method.sparsification_method, rescale_norm=norm, **extra)
            deltas.append(delta)
    return deltas


@contextlib.contextmanager
def given(masks, rates=None):
    """Has the random masks of one tensor's task vectors decided: by place, or by chance if None."""

    def in_turn(*arguments, **named):
        given.place += 1
        return THEIR_SPARSIFY(*arguments, **named)

    def mask(probabilities):
        chosen = masks[given.place].view_as(probabilities)
        if rates is not None:
            rates.see(probabilities, chosen)
        return (chosen == KEPT).to(probabilities.dtype)

    if masks is None:
        yield
        return
    given.place = -1
    generalized_task_arithmetic.sparsify, torch.bernoulli = in_turn, mask
    try:
        yield
    finally:
        generalized_task_arithmetic.sparsify, torch.bernoulli = THEIR_SPARSIFY, THEIR_BERNOULLI


def architecture_from_tensors(config, options):
    """The architecture as the tensors' names tell it, in place of the peer's table.

    Where there are several stacks of layers, each is a module; but slices cut the
    deepest alone, and other towers go with the embeddings, before it.
    """
    model = config.referenced_models()[0]
    names = list(model.lazy_loader(cache_dir=None, lazy_unpickle=False).index.tensor_paths)
    stacks = {}
    for name in names:
        if match := LAYER.match(name):
            prefix, layer, suffix = match.groups()
            stacks.setdefault(prefix, {}).setdefault(suffix, set()).add(int(layer))
    depths = {prefix: 1 + max(map(max, suffixes.values())) for prefix, suffixes in stacks.items()}
    if len(stacks) > 1 and config.slices:
        deepest = max(depths, key=depths.get)
        stacks, depths = {deepest: stacks[deepest]}, {deepest: depths[deepest]}

    def module(before, prefix, after):
        weights = [
            WeightInfo(name=f"{prefix}${{layer_index}}{suffix}", optional=len(has) < depths[prefix])
            for suffix, has in stacks.get(prefix, {}).items()
        ]
        definition = JsonModuleArchDef(
            model_type="",
            architectures=[],
            pre_weights=[WeightInfo(name=name) for name in before],
            layer_templates=JsonLayerTemplates(weights=weights),
            post_weights=[WeightInfo(name=name) for name in after],
            num_layers_config_key=None,
            override_num_layers=depths.get(prefix, 0),
        )
        return ModuleDefinition(architecture=JsonModuleArchitecture(definition=definition))

    loose = [name for name in names if not name.startswith(tuple(stacks))]
    if len(stacks) == 1:
        first = [name for name in loose if BEFORE_LAYERS.search(name)]
        last = [name for name in loose if name not in first]
        return ModelArchitecture(
            modules={"default": module(first, *stacks, last)}, architectures=[], model_type=""
        )
    modules = {prefix.strip("."): module([], prefix, []) for prefix in stacks}
    modules["default"] = module(loose, None, [])
    return ModelArchitecture(modules=modules, architectures=[], model_type="")


def run(text, out, choices=None, architecture=THEIR_ARCHITECTURE, masks=None, rates=None):
    """One merge by the peer into `out`; raises what the peer raises.

    `masks` are those of random methods: for each tensor's name, one of each task vector.
    """

    def merge_group(method, group, /, **parameters):
        chosen = masks and masks.get(group.metadata.name)
        if choices is not None:
            choices.note(method, group, parameters, chosen)
        with given(chosen, rates):
            return THEIR_MERGE(method, group, **parameters)

    def merge_function(method, group, /, **parameters):
        if choices is not None and method.spec.name == "sce":
            choices.note_sce(group, parameters)
        if choices is not None and method.spec.name == "arcee_fusion" and len(group.entries) == 2:
            choices.note_fusion(group)
        if choices is not None and method.spec.name == "model_stock" and len(group.entries) > 2:
            choices.note_stock(group, parameters)
        return THEIR_FUNCTION(method, group, **parameters)

    def save(task, writer, tensor):
        if choices is not None and task.dtype and tensor is not None:
            choices.notes[f"{task.tensor_name}|unrounded"] = tensor
        return THEIR_SAVE(task, writer, tensor)

    GeneralizedTaskArithmeticMerge.merge_group = merge_group
    FunctionalGroupMergeMethod.merge_group = merge_function
    SaveTensor.execute = save
    mergekit.merge.get_architecture_info = architecture
    LoaderCache().loaders.clear()
    shutil.rmtree(out, ignore_errors=True)
    try:
        config = MergeConfiguration.model_validate(yaml.safe_load(text))
        mergekit.merge.run_merge(config, str(out), OPTIONS)
    finally:
        GeneralizedTaskArithmeticMerge.merge_group = THEIR_MERGE
        FunctionalGroupMergeMethod.merge_group = THEIR_FUNCTION
        SaveTensor.execute = THEIR_SAVE
        mergekit.merge.get_architecture_info = THEIR_ARCHITECTURE


def in_float64(text):
    """The same recipe, written in the same dtype but computed in float64."""
    recipe = yaml.safe_load(text)
    written = recipe.get("out_dtype", recipe["dtype"])
    return yaml.safe_dump(recipe | {"dtype": "float64", "out_dtype": written}, sort_keys=False)


def first_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {line}"


def tensors_of(folder):
    """All tensors of the peer's output."""
    tensors = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors |= safetensors.torch.load_file(path)
    return tensors


def layout(names):
    """Names without the numbers of layers, so that stacks of other depths compare."""
    return {LAYER.sub(r"\g<1>*\3", name) for name in names}


def departs(text, written):
    """What is wrong with the names that the peer wrote, or None: a part of the model, or other names."""
    model = MergeConfiguration.model_validate(yaml.safe_load(text)).referenced_models()[0]
    index = model.lazy_loader(cache_dir=None, lazy_unpickle=False).index
    ours, theirs = layout(index.tensor_paths), layout(written)
    if theirs - ours:
        return f"other names: {min(theirs - ours)} for {min(ours - theirs)}"
    if ours - theirs:
        return f"drops: {len(ours - theirs)} of {len(ours)} kinds of tensors, {min(ours - theirs)} among them"
    return None


def merge(text, folder, stamp, masks=None):
    """Runs the peer into folder/peer, unless the same was run there before.

    Returns what is wrong with what it did, or None: "fails: ...", "drops: ..." or
    "other names: ...". Then folder/peer holds what it does with its table of tensors set
    aside, if that works.
    """
    folder = Path(folder)
    drawn = 0
    for name in sorted(masks or {}):
        for mask in masks[name]:
            drawn = zlib.crc32(mask.numpy().tobytes(), drawn)
    key = f"{zlib.crc32(Path(__file__).read_bytes())} {drawn} {stamp}\n{text}"
    done, failed = folder / "peer.done", folder / "peer.failed"
    if not done.exists() or done.read_text() != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        choices, rates = Choices(), Rates()
        try:
            run(text, folder / "peer", choices, masks=masks, rates=rates)
            wrong = departs(text, tensors_of(folder / "peer"))
        except Exception as error:
            wrong = f"fails: {first_line(error)}"
        if wrong:
            failed.write_text(wrong)
            choices, rates = Choices(), Rates()
            try:
                run(text, folder / "peer", choices, architecture_from_tensors, masks, rates)
            except Exception as error:
                choices = Choices()
                shutil.rmtree(folder / "peer", ignore_errors=True)
                failed.write_text(f"{wrong} (and without its table: {first_line(error)})")
        notes = {key: tensor.contiguous().clone() for key, tensor in choices.notes.items()}
        safetensors.torch.save_file(notes, folder / "peer.choices")
        (folder / "peer.rates").write_text(json.dumps(rates.found()))
        done.write_text(key)
    return failed.read_text() if failed.exists() else None


def float64(folder, masks=None):
    """What the peer makes of the merge in `folder` when it computes in float64."""
    folder = Path(folder)
    stored = folder / "peer64.safetensors"
    if not stored.exists():
        text = (folder / "peer.done").read_text().split("\n", 1)[1]
        table = THEIR_ARCHITECTURE if not (folder / "peer.failed").exists() else architecture_from_tensors
        with lowest_index():
            run(in_float64(text), folder / "peer64", architecture=table, masks=masks)
        safetensors.torch.save_file(tensors_of(folder / "peer64"), stored)
        shutil.rmtree(folder / "peer64")
    return safetensors.torch.load_file(stored)


def choices(folder):
    return safetensors.torch.load_file(Path(folder) / "peer.choices")


def rates(folder):
    return json.loads((Path(folder) / "peer.rates").read_text())
