"""Quantised outputs of weld, read by the libraries that load such models.

    target/envs/peer/bin/pip install accelerate compressed-tensors
    target/envs/peer/bin/python tests/peer/quantised_outputs.py --weld target/release/weld --work target/peer-outputs

Tiny models of transformers are merged with `quantization`. Codes and scales must be those of torch's own conversions of
the merge in float32; the library that reads them must give the values that weld reads back; and transformers must load
the folder, without a missing or unexpected tensor, and give the logits of the decoded model.
"""

import argparse
import json
import pathlib
import shutil
import subprocess

import torch
import transformers
from safetensors.torch import load_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

SIZES = {
    "vocab_size": 64, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 128, "max_position_embeddings": 64, "dtype": "bfloat16",
}
MIXTURE = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "decoder_sparse_step": 1}
FAMILIES = {
    "qwen3": (transformers.Qwen3Config, SIZES),
    "llama, tied": (transformers.LlamaConfig, {**SIZES, "tie_word_embeddings": True}),
    "qwen3_moe": (transformers.Qwen3MoeConfig, {**SIZES, **MIXTURE}),
}


def save(folder, config, seed):
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)


def weld(arguments, work, name, recipe):
    (work / "recipe.yml").write_text(recipe)
    out = work / name
    shutil.rmtree(out, ignore_errors=True)
    command = [arguments.weld, "merge", "recipe.yml", name, "-q"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def tensors(folder):
    return {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}


def grid(scale, shape, block=128):
    whole = scale.repeat_interleave(block, -2).repeat_interleave(block, -1)
    return whole[..., : shape[-2], : shape[-1]]


def twin(weight):
    """Codes and scales of a matrix whose sides are multiples of 128, by torch."""
    blocks = weight.unflatten(-1, (-1, 128)).unflatten(-3, (-1, 128))
    largest = blocks.abs().amax((-1, -3)).double()
    scale = torch.where(largest > 0, largest / 448, 1).float()
    return (weight / grid(scale, weight.shape)).to(torch.float8_e4m3fn), scale


def logits(folder):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    left = {key: value for key, value in info.items() if value and key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    assert not left, left
    with torch.no_grad():
        return model(torch.arange(24).reshape(2, 12)).logits


def fp8_block(arguments, work):
    linear = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n"
    plain = tensors(weld(arguments, work, "plain", linear + "out_dtype: float32\n"))
    out = weld(arguments, work, "out", linear + "quantization: fp8_block\n")
    back = weld(arguments, work, "back", "merge_method: passthrough\nmodels: [{model: out}]\n")
    codes, decoded = tensors(out), tensors(back)
    scales = [name for name in codes if name.endswith("weight_scale_inv")]
    assert scales, codes.keys()
    dequantise = Fp8Dequantize(None)
    for name in scales:
        weight = name.removesuffix("_scale_inv")
        expected, scale = twin(plain[weight])
        assert torch.equal(codes[name], scale), name
        assert torch.equal(codes[weight].view(torch.uint8), expected.view(torch.uint8)), weight
        read = dequantise._dequantize_one(codes[weight], codes[name], torch.bfloat16)
        assert torch.equal(read, decoded[weight]), weight
    assert torch.equal(logits(out), logits(back))
    # Kept codes are the same bytes, and load as well.
    kept = weld(arguments, work, "kept", "merge_method: passthrough\nmodels: [{model: out}]\nquantization: keep\n")
    again = tensors(kept)
    assert again.keys() == codes.keys()
    assert all(torch.equal(codes[name].view(torch.uint8), again[name].view(torch.uint8)) for name in codes)
    assert torch.equal(logits(kept), logits(back))
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    return f"{len(scales)} weights, {len(said['modules_to_not_convert'])} modules plain"


def compressed(arguments, work, scheme):
    """FP8 with a scale for each row or tensor, as compressed-tensors reads it and writes it."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    linear = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n"
    plain = tensors(weld(arguments, work, "plain", linear + "out_dtype: float32\n"))
    out = weld(arguments, work, "out", linear + f"quantization: {scheme}\n")
    back = weld(arguments, work, "back", "merge_method: passthrough\nmodels: [{model: out}]\n")
    codes, decoded = tensors(out), tensors(back)
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    group = QuantizationConfig.model_validate(said).config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(said["format"])
    scales = [name for name in codes if name.endswith("weight_scale")]
    for name in scales:
        weight = name.removesuffix("_scale")
        largest = plain[weight].abs().amax(-1, keepdim=True) if scheme == "fp8_channel" else plain[weight].abs().amax().reshape(1)
        scale = (largest.double() / 448).float().to(torch.bfloat16)
        assert torch.equal(codes[name], scale), name
        expected = (plain[weight] / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
        assert torch.equal(codes[weight].view(torch.uint8), expected.view(torch.uint8)), weight
        read = compressor.decompress({"weight": codes[weight], "weight_scale": codes[name]}, group)["weight"]
        assert torch.equal(read.to(torch.bfloat16), decoded[weight]), weight
    # transformers loads it; activations are rounded too there, so only the names are held.
    model, info = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return f"{len(scales)} weights, {len(said['ignore'])} modules plain"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weld", required=True, type=lambda path: str(pathlib.Path(path).resolve()))
    parser.add_argument("--work", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    for family, (config, sizes) in FAMILIES.items():
        work = arguments.work / family.split(",")[0]
        work.mkdir(parents=True, exist_ok=True)
        for seed, name in enumerate(["a", "b"]):
            save(work / name, config(**sizes), seed)
        print(f"{family}: fp8_block: {fp8_block(arguments, work)}")
        # transformers fuses the experts of mixtures, which compressed-tensors does not know.
        for scheme in ["fp8_channel", "fp8_tensor"] if "moe" not in family else []:
            print(f"{family}: {scheme}: {compressed(arguments, work, scheme)}")


if __name__ == "__main__":
    main()
