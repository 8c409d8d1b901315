"""Quantised checkpoints, read by weld and by the package of each format.

    target/envs/peer/bin/pip install compressed-tensors bitsandbytes
    target/envs/peer/bin/python tests/peer/quantised.py --weld target/release/weld --work target/peer-quantised

Every storage that docs/formats.md names is written by its own package where that runs on a CPU (compressed-tensors,
bitsandbytes, transformers for MXFP4), else by its formula in torch (FP8 blocks, GPTQ, AWQ). A passthrough by weld must give
the package's own values bit by bit, and a linear merge must be what merging the dequantised models gives, to one rounding.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

import torch
from safetensors.torch import load_file, save_file

MODULE = "model.layers.0.mlp.up_proj"
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def normal(*shape, seed=0, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * 0.05).to(dtype)


def grid(scale, block, shape):
    """The scale of each element."""
    whole = scale.float().repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
    return whole[..., : shape[-2], : shape[-1]]


def fp8(shape, block, dtype=torch.float8_e4m3fn, scale_dtype=torch.float32, name="weight_scale_inv", powers=False):
    """Blocks of 8-bit floats. The values are those of the formula in DeepSeek-V3's README_WEIGHTS.md."""
    weight = normal(*shape, dtype=torch.float32)
    down, across = -(-shape[-2] // block[0]), -(-shape[-1] // block[1])
    padded = torch.zeros(*shape[:-2], down * block[0], across * block[1])
    padded[..., : shape[-2], : shape[-1]] = weight
    largest = padded.unflatten(-1, (across, block[1])).unflatten(-3, (down, block[0])).abs().amax((-1, -3))
    scale = largest / torch.finfo(dtype).max
    if powers:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    scale = scale.to(scale_dtype)
    codes = (weight / grid(scale, block, shape)).to(dtype)
    values = (codes.float() * grid(scale, block, shape)).to(torch.bfloat16)
    return codes, scale, values


def one(stored, values, config=None, name=f"{MODULE}.weight"):
    return {**stored, "model.norm.weight": normal(8)}, {name: values, "model.norm.weight": normal(8)}, config or {}


def fp8_case(shape, block, config=None, suffix="_scale_inv", name=f"{MODULE}.weight", flat=False, **more):
    codes, scale, values = fp8(shape, block, **more)
    scale = scale.reshape(()) if flat else scale
    if config is None:
        config = {"quant_method": "fp8", "weight_block_size": list(block)}
    return one({name: codes, name + suffix: scale}, values, config, name)


def formula_cases():
    yield "fp8 blocks", fp8_case((256, 384), (128, 128))
    yield "fp8 blocks, ragged", fp8_case((200, 300), (128, 128))
    yield "fp8 blocks by default", fp8_case((200, 300), (128, 128), {"quant_method": "fp8"})
    yield "fp8 blocks, bf16 scales", fp8_case((64, 96), (32, 32), scale_dtype=torch.bfloat16)
    yield "fp8 blocks, ue8m0", fp8_case((64, 96), (32, 32), powers=True, scale_dtype=torch.float8_e8m0fnu)
    yield "fp8 experts", fp8_case((3, 200, 300), (128, 128), name="model.layers.0.mlp.experts.gate_up_proj")
    whole = {"quant_method": "fp8", "weight_block_size": None}
    yield "fp8 per tensor", fp8_case((64, 96), (64, 96), whole, flat=True)
    yield "fp8 e5m2", fp8_case((64, 96), (64, 96), whole, flat=True, dtype=torch.float8_e5m2)
    yield "fbgemm rows", fp8_case((64, 96), (1, 96), {"quant_method": "fbgemm_fp8"}, suffix="_scale")
    codes, scale, values = fp8((64, 96), (64, 96))
    stored = {f"{MODULE}.weight": codes, f"{MODULE}.scale_weight": scale.reshape(1)}
    yield "comfy scale_weight", one({**stored, "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, values)
    said = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    stored = {f"{MODULE}.weight": codes, f"{MODULE}.weight_scale": scale.reshape(()), f"{MODULE}.comfy_quant": said}
    yield "comfy comfy_quant", one({**stored, f"{MODULE}.input_scale": torch.tensor(1.0)}, values)
    # transformers' FP4 experts: two codes a byte, exponents for 32 values.
    generator = torch.Generator().manual_seed(1)
    packed = torch.randint(0, 256, (64, 48), generator=generator, dtype=torch.uint8)
    powers = torch.randint(118, 125, (64, 3), generator=generator, dtype=torch.uint8)
    scale = torch.exp2(powers.float() - 127).repeat_interleave(32, -1)
    values = torch.stack([E2M1[(packed & 15).long()], E2M1[(packed >> 4).long()]], -1).flatten(1) * scale
    stored = {f"{MODULE}.weight": packed.view(torch.int8), f"{MODULE}.weight_scale_inv": powers}
    yield "fp8 model, fp4 experts", one(stored, values.to(torch.bfloat16), {"quant_method": "fp8"})
    for version, less in ("gptq", 1), ("gptq_v2", 0):
        for bits in 4, 8:
            yield f"{version}, {bits} bits", gptq(version, less, bits, False)
    yield "gptq, act order", gptq("gptq", 1, 4, True)
    yield "awq", awq()


def gptq(version, less, bits, act_order, rows=64, columns=96, size=32):
    """AutoGPTQ's layout: words down the inputs."""
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(0, 2**bits, (columns, rows), generator=generator)
    zeros = torch.randint(0, 2**bits - 1, (columns // size, rows), generator=generator)
    scales = (torch.rand(columns // size, rows, generator=generator) * 0.01 + 0.001).half()
    groups = torch.arange(columns) // size
    if act_order:
        groups = groups[torch.randperm(columns, generator=generator)]
    count = 32 // bits

    def words(matrix, axis):
        matrix = matrix.unflatten(axis, (-1, count)).long()
        shifts = (torch.arange(count) * bits).view([-1 if at == axis + 1 else 1 for at in range(3)])
        word = (matrix << shifts).sum(axis + 1)
        return torch.where(word >= 2**31, word - 2**32, word).int()

    stored = {
        f"{MODULE}.qweight": words(codes, 0),
        f"{MODULE}.qzeros": words(zeros, 1),
        f"{MODULE}.scales": scales,
        f"{MODULE}.g_idx": groups.int(),
    }
    values = (scales.float()[groups] * (codes - (zeros[groups] + less)).float()).T.contiguous().half()
    config = {"quant_method": "gptq", "bits": bits, "group_size": size, "checkpoint_format": version}
    tensors, expected, _ = one(stored, values)
    return tensors, expected, {**config, "desc_act": act_order, "torch_dtype": "float16"}


def awq(rows=64, columns=96, size=32):
    """AutoAWQ's layout: words along the outputs, in its order."""
    generator = torch.Generator().manual_seed(3)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    codes = torch.randint(0, 16, (columns, rows), generator=generator)
    zeros = torch.randint(0, 16, (columns // size, rows), generator=generator)
    scales = (torch.rand(columns // size, rows, generator=generator) * 0.01 + 0.001).half()

    def words(matrix):
        matrix = matrix.unflatten(1, (-1, 8))[:, :, order].long()
        word = (matrix << (torch.arange(8) * 4)).sum(-1)
        return torch.where(word >= 2**31, word - 2**32, word).int()

    stored = {f"{MODULE}.qweight": words(codes), f"{MODULE}.qzeros": words(zeros), f"{MODULE}.scales": scales}
    groups = torch.arange(columns) // size
    values = ((codes - zeros[groups]).float() * scales.float()[groups]).T.contiguous().half()
    config = {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm", "torch_dtype": "float16"}
    return one(stored, values, config)


def compressed_cases():
    """Written and read by compressed-tensors."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    def case(name, format, shape=(64, 96), **args):
        args = QuantizationArgs(**args)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        weight = normal(*shape)
        if args.strategy == "block":
            tall, wide = args.block_structure
            blocks = weight.float().unflatten(-1, (-1, wide)).unflatten(0, (-1, tall))
            least, most = blocks.amin((1, 3)), blocks.amax((1, 3))
        else:
            size = {"tensor": None, "channel": shape[1]}.get(args.strategy, args.group_size)
            groups = weight.float().reshape(1, 1, -1) if size is None else weight.float().unflatten(-1, (-1, size))
            least, most = groups.amin(-1), groups.amax(-1)
        state = {"weight": weight}
        more = {}
        if format == "nvfp4-pack-quantized":
            state["weight_global_scale"] = (448 * 6 / weight.abs().max().float()).reshape(1)
            more["global_scale"] = state["weight_global_scale"]
        scale, zero = calculate_qparams(least, most, args, **more)
        if args.strategy == "tensor":
            scale, zero = scale.reshape(1), zero.reshape(1)
        state["weight_scale"] = scale if "fp4" in format or "fp8" in format else scale.to(torch.bfloat16)
        state["weight_zero_point"] = zero
        compressor = BaseCompressor.get_value_from_registry(format)
        packed = compressor.compress(dict(state), scheme)
        values = compressor.decompress(dict(packed), scheme)["weight"]
        stored = {f"{MODULE}.{key}": value.contiguous() for key, value in packed.items()}
        weights = {"num_bits": args.num_bits, "type": args.type, "strategy": args.strategy}
        weights |= {"group_size": args.group_size, "block_structure": args.block_structure}
        config = {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": {"weights": weights}}}
        return f"{format}, {name}", one(stored, values.to(torch.bfloat16), config)

    int4 = dict(num_bits=4, type="int")
    yield case("groups", "pack-quantized", strategy="group", group_size=32, **int4)
    yield case("groups with zeros", "pack-quantized", strategy="group", group_size=32, symmetric=False, **int4)
    yield case("rows", "pack-quantized", strategy="channel", **int4)
    yield case("rows of 100", "pack-quantized", shape=(40, 100), strategy="channel", **int4)
    yield case("8 bits", "pack-quantized", strategy="group", group_size=32, num_bits=8, type="int")
    yield case("rows", "int-quantized", strategy="channel", num_bits=8, type="int")
    yield case("rows with zeros", "int-quantized", strategy="channel", num_bits=8, type="int", symmetric=False)
    yield case("tensor", "int-quantized", strategy="tensor", num_bits=8, type="int")
    yield case("tensor", "float-quantized", strategy="tensor", num_bits=8, type="float")
    yield case("rows", "float-quantized", strategy="channel", num_bits=8, type="float")
    yield case("blocks", "float-quantized", strategy="block", block_structure=[32, 32], num_bits=8, type="float")
    yield case("", "nvfp4-pack-quantized", strategy="tensor_group", group_size=16, num_bits=4, type="float")
    mx = dict(strategy="group", group_size=32, type="float", scale_dtype=torch.uint8)
    yield case("", "mxfp4-pack-quantized", num_bits=4, **mx)
    yield case("", "mxfp8-quantized", num_bits=8, **mx)


def bitsandbytes_cases():
    """Written and read by bitsandbytes."""
    import bitsandbytes.functional as functional

    for kind in "nf4", "fp4":
        for nested in False, True:
            weight = normal(72, 90)
            codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=nested)
            stored = {f"{MODULE}.weight": codes}
            for key, value in state.as_dict(packed=True).items():
                stored[f"{MODULE}.weight.{key}"] = value.contiguous()
            config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
            values = functional.dequantize_4bit(codes, state)
            yield f"bitsandbytes {kind}{', nested' if nested else ''}", one(stored, values, config)
    codes, scales, _ = functional.int8_vectorwise_quant(normal(72, 90, dtype=torch.float16))
    values = functional.int8_vectorwise_dequant(codes, scales).to(torch.bfloat16)
    stored = {f"{MODULE}.weight": codes, f"{MODULE}.SCB": scales}
    stored[f"{MODULE}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
    yield "bitsandbytes int8", one(stored, values, {"quant_method": "bitsandbytes", "load_in_8bit": True})


def mxfp4_cases():
    """gpt-oss, read by transformers."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(5)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    blocks = torch.randint(0, 256, (3, 40, 4, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(115, 125, (3, 40, 4), generator=generator, dtype=torch.uint8)
    values = convert_moe_packed_tensors(blocks, scales)
    stored = {f"{name}_blocks": blocks, f"{name}_scales": scales, f"{name}_bias": normal(3, 40)}
    tensors, expected, config = one(stored, values.contiguous(), {"quant_method": "mxfp4"}, name)
    yield "mxfp4 (gpt-oss)", (tensors, {**expected, f"{name}_bias": normal(3, 40)}, config)


def write(folder, tensors, quantisation):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = {"torch_dtype": quantisation.get("torch_dtype", "bfloat16")}
    said = {key: value for key, value in quantisation.items() if key != "torch_dtype"}
    if said:
        config["quantization_config"] = said
    (folder / "config.json").write_text(json.dumps(config, default=str))


def merged(weld, recipe, out):
    shutil.rmtree(out, ignore_errors=True)
    path = out.with_suffix(".yml")
    path.write_text(json.dumps(recipe))
    run = subprocess.run([weld, "merge", path, out, "--quiet"], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr.strip())
    config = json.loads((out / "config.json").read_text())
    if "quantization_config" in config:
        raise RuntimeError("the output's config says that it is quantised")
    return load_file(out / "model.safetensors")


def ulps(found, expected):
    """The largest distance in steps of the 16-bit format."""
    ordered = [tensor.contiguous().view(torch.int16).int() for tensor in (found, expected)]
    ordered = [torch.where(bits < 0, -32768 - bits, bits) for bits in ordered]
    return (ordered[0] - ordered[1]).abs().max().item()


def rounds(found, expected, value):
    """The largest difference, over what a rounding of the dequantised value and one of each result may do."""
    unit = torch.finfo(expected.dtype).eps
    allowed = unit * (value.float().abs() / 4 + expected.float().abs()) + torch.finfo(expected.dtype).tiny
    return ((found.float() - expected.float()).abs() / allowed).max().item()


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--weld", required=True, type=pathlib.Path)
    arguments.add_argument("--work", required=True, type=pathlib.Path)
    arguments.add_argument("--only", default="")
    arguments = arguments.parse_args()
    work, weld = arguments.work.resolve(), arguments.weld.resolve()
    failed = count = 0
    for cases in formula_cases, compressed_cases, bitsandbytes_cases, mxfp4_cases:
        for name, (tensors, expected, quantisation) in cases():
            if arguments.only not in name:
                continue
            count += 1
            folder = work / "model"
            write(folder, tensors, quantisation)
            write(work / "plain", expected, {"torch_dtype": quantisation.get("torch_dtype", "bfloat16")})
            other = {key: (value.float() * 1.25 + 0.01).to(value.dtype) for key, value in expected.items()}
            write(work / "other", other, {})
            said = []
            try:
                found = merged(weld, {"merge_method": "passthrough", "models": [{"model": str(folder)}]}, work / "out")
                if found.keys() != expected.keys():
                    said.append(f"names {sorted(found)}")
                for key, value in expected.items():
                    if key in found and not (found[key].dtype == value.dtype and torch.equal(found[key], value)):
                        distance = ulps(found[key], value) if found[key].shape == value.shape else found[key].shape
                        said.append(f"{key}: {distance} ULP from the reference")
                both = []
                for first in folder, work / "plain":
                    models = [{"model": str(path), "parameters": {"weight": 0.5}} for path in (first, work / "other")]
                    both.append(merged(weld, {"merge_method": "linear", "models": models}, work / "mean"))
                far = max(rounds(both[0][key], both[1][key], value) for key, value in expected.items())
                if far > 1:
                    said.append(f"linear: {far:.1f} times what roundings explain from the merge of the dequantised model")
            except RuntimeError as error:
                said.append(str(error))
            failed += bool(said)
            print(f"{name:45} {'; '.join(said) or 'the same'}")
    print(f"{count} storages, {failed} not as their reference")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
