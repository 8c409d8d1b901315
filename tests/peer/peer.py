"""Runs the peer, mergekit, in this process, and notes where its answer is arbitrary.

Two choices of the peer's TIES are not defined by the method:
- which of the elements that are equally large at the density's threshold are kept
  (an unstable sort decides);
- the vote on the sign where the weighted deltas cancel but for their rounding.
`merge` keeps the places of both beside the output, and for the first what comes
out when the elements of lowest index are kept; and of 16-bit outputs the float32
values before they were rounded, and what comes out when all is computed in float64.
"""

import contextlib
import logging
import os
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
from mergekit.architecture import auto
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache, SaveTensor
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge
from mergekit.options import MergeOptions

logging.disable(logging.WARNING)
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

OPTIONS = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False, device="cpu")

THEIR_MERGE = GeneralizedTaskArithmeticMerge.merge_group
THEIR_SAVE = SaveTensor.execute
THEIR_MAGNITUDE = mergekit.sparsify.magnitude
THEIR_ARCHITECTURE = mergekit.merge.get_architecture_info

# Tensors that follow the layers, for when the peer's own table is not used.
AFTER_LAYERS = ("model.norm.", "lm_head.", "cls.", "gpt_neox.final_layer_norm.", "embed_out.")


def kept_at_lowest_index(tensor, density, rescale_norm=None):
    """The peer's `magnitude` with equal magnitudes decided by the lowest index."""
    if density >= 1 or density <= 0:
        return THEIR_MAGNITUDE(tensor, density, rescale_norm)
    k = max(1, int(density * tensor.numel()))
    order = torch.sort(tensor.abs().flatten().float(), descending=True, stable=True).indices
    mask = torch.zeros(tensor.numel(), dtype=tensor.dtype)
    mask[order[:k]] = 1
    return mergekit.sparsify.rescaled_masked_tensor(tensor, mask.view_as(tensor), rescale_norm)


@contextlib.contextmanager
def lowest_index():
    before = mergekit.sparsify.magnitude
    mergekit.sparsify.magnitude = kept_at_lowest_index
    try:
        yield
    finally:
        mergekit.sparsify.magnitude = before


def tied_at_threshold(delta, density):
    """The elements of which the density keeps some and drops others equally large."""
    size = delta.abs().flatten()
    if not 0 < density < 1 or not size.numel():
        return torch.zeros(delta.shape, dtype=torch.bool)
    k = max(1, int(density * size.numel()))
    threshold = size.sort(descending=True).values[k - 1]
    ambiguous = threshold > 0 and int((size >= threshold).sum()) > k
    return (delta.abs() == threshold) if ambiguous else torch.zeros(delta.shape, dtype=torch.bool)


def undecided_votes(base, tensors, kept, weights):
    """Elements where rounding alone may decide the sign of the sum of weighted deltas."""
    exact, single = [], []
    certain = torch.ones(base.shape, dtype=torch.bool)
    for tensor, keep, weight in zip(tensors, kept, weights):
        delta = (tensor.double() - base.double()) * keep
        exact.append(delta * weight)
        single.append((tensor - base) * keep * torch.tensor(weight, dtype=torch.float32))
        certain &= single[-1].double() == exact[-1]
    total = sum(exact)
    for order in (single, single[::-1]):
        certain &= sum(order).double() == total
    near = total.abs() <= 1e-6 * sum(u.abs() for u in exact)
    return near & ~certain


class Choices:
    """Notes the peer's arbitrary choices, and unrounded values, while it merges."""

    def __init__(self):
        self.notes = {}

    def note(self, method, group, parameters):
        if not method.consensus_method:
            return
        name, base, entries = group.metadata.name, group.base.tensor, group.non_base
        kept, tied = [], torch.zeros(base.shape, dtype=torch.bool)
        for entry in entries:
            delta = entry.tensor - base
            density = parameters["density"][entry.id]
            tied |= tied_at_threshold(delta, density)
            kept.append(kept_at_lowest_index(delta, density) != 0)
        if tied.any():
            with lowest_index():
                self.notes[f"{name}|lowest"] = THEIR_MERGE(method, group, **parameters)
            self.notes[f"{name}|tied"] = tied
        weights = [parameters["weight"][entry.id] for entry in entries]
        if entries:
            votes = undecided_votes(base, [entry.tensor for entry in entries], kept, weights)
            if votes.any():
                self.notes[f"{name}|votes"] = votes


def architecture_from_tensors(config, options):
    """The architecture as the tensors' names tell it, in place of the peer's table."""
    auto.get_transformers_info = lambda model, options: (None, None, None, None)
    models = tuple(config.referenced_models())
    arch = auto.infer_architecture_info(models, config.base_model, options)
    (key,) = arch.modules
    module = arch.modules[key]
    loose = module.architecture.definition.pre_weights
    after = [w for w in loose if w.name.startswith(AFTER_LAYERS)]
    definition = module.architecture.definition.model_copy(
        update={"pre_weights": [w for w in loose if w not in after], "post_weights": after}
    )
    architecture = module.architecture.model_copy(update={"definition": definition})
    return arch.model_copy(
        update={"modules": {key: module.model_copy(update={"architecture": architecture})}}
    )


def run(text, out, choices=None, architecture=THEIR_ARCHITECTURE):
    """One merge by the peer into `out`; raises what the peer raises."""

    def merge_group(method, group, /, **parameters):
        if choices is not None:
            choices.note(method, group, parameters)
        return THEIR_MERGE(method, group, **parameters)

    def save(task, writer, tensor):
        if choices is not None and task.dtype and tensor is not None:
            choices.notes[f"{task.tensor_name}|unrounded"] = tensor
        return THEIR_SAVE(task, writer, tensor)

    GeneralizedTaskArithmeticMerge.merge_group = merge_group
    SaveTensor.execute = save
    mergekit.merge.get_architecture_info = architecture
    LoaderCache().loaders.clear()
    shutil.rmtree(out, ignore_errors=True)
    try:
        config = MergeConfiguration.model_validate(yaml.safe_load(text))
        mergekit.merge.run_merge(config, str(out), OPTIONS)
    finally:
        GeneralizedTaskArithmeticMerge.merge_group = THEIR_MERGE
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


def merge(text, folder, stamp):
    """Runs the peer into folder/peer, unless the same was run there before.

    Returns what it failed on, or None. When it failed, folder/peer holds what it
    does with its table of tensors set aside, if that works.
    """
    folder = Path(folder)
    key = f"{zlib.crc32(Path(__file__).read_bytes())} {stamp}\n{text}"
    done, failed = folder / "peer.done", folder / "peer.failed"
    if not done.exists() or done.read_text() != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        choices, architecture = Choices(), THEIR_ARCHITECTURE
        try:
            run(text, folder / "peer", choices)
        except Exception as error:
            failed.write_text(first_line(error))
            choices, architecture = Choices(), architecture_from_tensors
            try:
                run(text, folder / "peer", choices, architecture)
            except Exception as second:
                choices = Choices()
                shutil.rmtree(folder / "peer", ignore_errors=True)
                failed.write_text(f"{first_line(error)} (and without its table: {first_line(second)})")
        notes = {key: tensor.contiguous().clone() for key, tensor in choices.notes.items()}
        if any(key.endswith("|unrounded") for key in notes):
            with lowest_index():
                run(in_float64(text), folder / "peer64", architecture=architecture)
            for name, tensor in tensors_of(folder / "peer64").items():
                notes[f"{name}|float64"] = tensor
            shutil.rmtree(folder / "peer64")
        safetensors.torch.save_file(notes, folder / "peer.choices")
        done.write_text(key)
    return failed.read_text() if failed.exists() else None


def choices(folder):
    return safetensors.torch.load_file(Path(folder) / "peer.choices")
