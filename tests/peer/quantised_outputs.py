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
from safetensors.torch import load_file, save_file
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
    "gpt_oss": (transformers.GptOssConfig, {**SIZES, "num_local_experts": 3, "num_experts_per_tok": 2}),
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


def as_comfy_reads(folder):
    """The weights of a file, in float32: as ComfyUI's `comfy/utils.py` tells how they are stored, and decodes them."""
    state = tensors(folder)
    marker = next((name for name in state if name.rpartition(".")[2] == "scaled_fp8"), None)
    if marker is not None:
        assert state.pop(marker).dtype == torch.float8_e4m3fn
        for name in [name for name in state if name.endswith(".scale_weight")]:
            layer = name.removesuffix(".scale_weight")
            state[f"{layer}.weight_scale"] = state.pop(name)
            state[f"{layer}.comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    for name in [name for name in state if name.endswith(".comfy_quant")]:
        layer = name.removesuffix(".comfy_quant")
        said = json.loads(bytes(state.pop(name).tolist()))
        assert said["format"] == "float8_e4m3fn", said
        codes, scale = state[f"{layer}.weight"], state.pop(f"{layer}.weight_scale")
        assert codes.dtype == torch.float8_e4m3fn and scale.dtype == torch.float32 and scale.numel() == 1
        state[f"{layer}.weight"] = codes.float() * scale
    left = [name for name, value in state.items() if value.dtype == torch.float8_e4m3fn or "scale" in name.rpartition(".")[2]]
    assert not left, left
    return state


def comfy(arguments, work):
    """ComfyUI's scaled FP8, of files without a config, in both spellings."""
    linear = "merge_method: linear\nmodels: [{model: a/model.safetensors}, {model: b/model.safetensors}]\nparameters: {weight: 0.5}\n"
    plain = tensors(weld(arguments, work, "plain", linear + "out_dtype: float32\n"))
    out = weld(arguments, work, "out", linear + "quantization: comfy_fp8\n")
    codes = tensors(out)
    scales = [name for name in codes if name.endswith(".weight_scale")]
    assert scales, codes.keys()
    for name in scales:
        weight = name.removesuffix("_scale")
        scale = (plain[weight].abs().amax().double() / 448).float()
        assert torch.equal(codes[name], scale) and codes[name].shape == scale.shape, name
        expected = (plain[weight] / scale).to(torch.float8_e4m3fn)
        assert torch.equal(codes[weight].view(torch.uint8), expected.view(torch.uint8)), weight

    def is_read_alike(folder, name):
        recipe = f"merge_method: passthrough\nmodels: [{{model: {folder.name}/model.safetensors}}]\nout_dtype: float32\n"
        ours, theirs = tensors(weld(arguments, work, name, recipe)), as_comfy_reads(folder)
        assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
        assert all(torch.equal(ours[key], theirs[key].float()) for key in ours)

    is_read_alike(out, "back")
    older = {name.replace(".weight_scale", ".scale_weight"): value for name, value in codes.items() if not name.endswith(".comfy_quant")}
    (work / "older").mkdir(exist_ok=True)
    save_file({**older, "scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}, work / "older/model.safetensors")
    mixed = linear.replace("model: a/", "model: older/")
    kept = weld(arguments, work, "kept", mixed + "quantization: keep\n")
    assert {"scaled_fp8", scales[0].replace(".weight_scale", ".scale_weight")} <= tensors(kept).keys()
    is_read_alike(kept, "back")
    return f"{len(scales)} weights, two spellings"


def pack(experts):
    """Codes and scales of experts `[experts, in, out]`, by OCP Microscaling Formats 1.0, 6.3, of the float4 of its numbers."""
    grouped = experts.double().transpose(1, 2).unflatten(-1, (-1, 32))
    largest = grouped.abs().amax(-1)
    exponent = torch.where(largest > 0, torch.floor(torch.log2(largest)) - 2, 0.0).clamp(-127, 127)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    apart = (torch.ldexp(grouped, -exponent.unsqueeze(-1)).abs().unsqueeze(-1) - values).abs()
    # Of two that are as near, the even one.
    nearest = apart == apart.amin(-1, keepdim=True)
    order = torch.arange(8) + 100 * (torch.arange(8) % 2)
    codes = torch.where(nearest, order, 1000).argmin(-1) + 8 * torch.signbit(grouped)
    codes = codes.to(torch.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponent + 127).to(torch.uint8)


def mxfp4(arguments, work):
    """The experts of gpt-oss."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    linear = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n"
    plain = tensors(weld(arguments, work, "plain", linear + "out_dtype: float32\n"))
    out = weld(arguments, work, "out", linear + "quantization: mxfp4\n")

    def is_as_expected(folder, plain):
        back = weld(arguments, work, "back", f"merge_method: passthrough\nmodels: [{{model: {folder.name}}}]\n")
        codes, decoded = tensors(folder), tensors(back)
        stacks = [name.removesuffix("_blocks") for name in codes if name.endswith("_blocks")]
        for name in stacks:
            blocks, scales = pack(plain[name])
            assert torch.equal(codes[f"{name}_blocks"], blocks), name
            assert torch.equal(codes[f"{name}_scales"], scales), name
            read = convert_moe_packed_tensors(codes[f"{name}_blocks"], codes[f"{name}_scales"], dtype=torch.bfloat16)
            assert torch.equal(read, decoded[name]), name
        assert stacks and torch.equal(logits(folder), logits(back))
        return len(stacks)

    count = is_as_expected(out, plain)
    shutil.rmtree(work / "base", ignore_errors=True)
    shutil.copytree(out, work / "base")
    mixed = linear.replace("model: a", "model: base")
    plain = tensors(weld(arguments, work, "plain", mixed + "out_dtype: float32\n"))
    is_as_expected(weld(arguments, work, "kept", mixed + "quantization: keep\n"), plain)
    return f"{count} weights, and a base that keeps its scheme"


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
        if family == "gpt_oss":
            print(f"{family}: mxfp4: {mxfp4(arguments, work)}")
            continue
        print(f"{family}: fp8_block: {fp8_block(arguments, work)}")
        print(f"{family}: comfy_fp8: {comfy(arguments, work)}")
        # transformers fuses the experts of mixtures, which compressed-tensors does not know.
        for scheme in ["fp8_channel", "fp8_tensor"] if "moe" not in family else []:
            print(f"{family}: {scheme}: {compressed(arguments, work, scheme)}")


if __name__ == "__main__":
    main()
