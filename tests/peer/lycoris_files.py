"""Holds LoHa and LoKr against LyCORIS and PEFT: `model+adapter` is what each of them computes.

    python tests/peer/lycoris_files.py --weld target/debug/weld --work target/lycoris-files

Needs lycoris_lora, diffusers, transformers and peft. A small UNet gets a file with modules of LyCORIS: flat, by Tucker's
form, whole and in factors. A small Llama and the UNet get adapters of PEFT, which merges them. All is computed in float64;
every tensor that weld writes must be that, rounded once to float32. Of LyCORIS the update is taken that its modules
compute with (`get_weight`): its own merge multiplies with the scale twice.
"""

import argparse
import copy
import shutil
from pathlib import Path

import diffusers
import peft
import safetensors.torch
import torch
import transformers
from lora_files import compare, noise, tensors, unet, weld
from lycoris.modules import LohaModule, LokrModule


def fill(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def lycoris(model, prefix, kind, ends, **options):
    """The parts of a file, and the weights with them, of the modules whose names end so."""
    parts, weights = {}, {}
    for seed, (name, module) in enumerate(model.named_modules()):
        if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) or not name.endswith(ends):
            continue
        flat = prefix + name.replace(".", "_")
        update = kind(flat, module, 1.0, lora_dim=3, alpha=2, **options)
        fill(update.parameters(), seed)
        for part, tensor in update.custom_state_dict().items():
            parts[f"{flat}.{part}"] = tensor.detach().clone().float().contiguous()
        update.double()
        with torch.no_grad():
            shape = module.weight.shape
            weights[f"{name}.weight"] = (module.weight.double() + update.get_weight(shape)).float()
    return parts, weights


LINEAR, CONV = ("to_q", "ff.net.2", "proj_in"), ("conv1", "conv2")
MODULES = {
    "LoHa": (LohaModule, LINEAR + CONV, {}),
    "LoHa by Tucker": (LohaModule, CONV, {"use_tucker": True}),
    "LoKr": (LokrModule, LINEAR + CONV, {"factor": 4}),
    "LoKr in square factors": (LokrModule, LINEAR + CONV, {"factor": -1}),
    "LoKr with both in factors": (LokrModule, LINEAR + CONV, {"factor": 8, "decompose_both": True}),
    "LoKr by Tucker": (LokrModule, CONV, {"use_tucker": True, "factor": 2}),
    "LoKr whole": (LokrModule, LINEAR + CONV, {"full_matrix": True}),
    "LoKr unbalanced": (LokrModule, LINEAR, {"factor": 2, "unbalanced_factorization": True}),
}


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=False,
    ))


PATTERNS = {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {r".*\.1\.self_attn\.q_proj": 1}}
OF_LLAMA = {"target_modules": ["q_proj", "down_proj", "lm_head"], "r": 4, "alpha": 6, **PATTERNS}
OF_UNET = {"target_modules": ["to_q", "conv1", "proj_in"], "r": 3, "alpha": 5}
ADAPTERS = {
    "PEFT: LoHa": (llama, peft.LoHaConfig(**OF_LLAMA)),
    "PEFT: LoKr": (llama, peft.LoKrConfig(**OF_LLAMA)),
    "PEFT: LoKr with both in factors": (
        llama, peft.LoKrConfig(**OF_LLAMA | {"r": 2}, decompose_both=True, decompose_factor=8)),
    "PEFT: LoHa, kernels": (unet, peft.LoHaConfig(**OF_UNET)),
    "PEFT: LoHa, kernels by Tucker": (unet, peft.LoHaConfig(**OF_UNET, use_effective_conv2d=True)),
    "PEFT: LoKr, kernels": (unet, peft.LoKrConfig(**OF_UNET)),
    "PEFT: LoKr, kernels by Tucker": (
        unet, peft.LoKrConfig(**OF_UNET | {"r": 2}, use_effective_conv2d=True, decompose_factor=2)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weld", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    binary, work = arguments.weld.resolve(), arguments.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)

    model = noise(unet(), 1)
    model.save_pretrained(work / "unet")
    for what, (kind, ends, options) in MODULES.items():
        parts, weights = lycoris(model, "lora_unet_", kind, ends, **options)
        safetensors.torch.save_file(parts, work / "file.safetensors")
        expected = {name: tensor for name, tensor in model.state_dict().items()} | weights
        compare(what, tensors(weld(binary, work, "unet+file.safetensors")), expected, len(weights))

    # Two of them at once, each with a weight.
    both = [lycoris(model, "lora_unet_", *MODULES[what][:2], **MODULES[what][2]) for what in ("LoHa", "LoKr")]
    for name, (parts, _) in zip("ab", both):
        safetensors.torch.save_file(parts, work / f"{name}.safetensors")
    base = {name: tensor.double() for name, tensor in model.state_dict().items()}
    expected = {name: tensor.float() for name, tensor in base.items()}
    for name in both[0][1]:
        one, other = (weights[name].double() - base[name] for _, weights in both)
        expected[name] = (base[name] + 0.7 * one + 0.3 * other).float()
    found = tensors(weld(binary, work, "unet+a.safetensors@0.7+b.safetensors@0.3"))
    # The differences were rounded to float32 above.
    apart = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    if apart > 5e-7:
        raise SystemExit(f"two at once: {apart:.1e} apart")
    print(f"two at once: at most {apart:.1e} apart")

    for what, (make, config) in ADAPTERS.items():
        shutil.rmtree(work / "model", ignore_errors=True)
        shutil.rmtree(work / "adapter", ignore_errors=True)
        model = noise(make(), 2)
        model.save_pretrained(work / "model")
        adapted = peft.get_peft_model(copy.deepcopy(model), copy.deepcopy(config))
        fill((parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad), 3)
        adapted.save_pretrained(work / "adapter")
        changed = sum(1 for module in adapted.modules() if isinstance(module, peft.tuners.lycoris_utils.LycorisLayer))
        merged = adapted.double().merge_and_unload()
        expected = {name: tensor.float() for name, tensor in merged.state_dict().items()}
        compare(what, tensors(weld(binary, work, "model+adapter")), expected, changed)


if __name__ == "__main__":
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    main()
