"""GGUF files, read by weld, by the package gguf, and by transformers.

    target/envs/peer/bin/pip install gguf
    target/envs/peer/bin/python tests/peer/gguf_input.py --weld target/release/weld --work target/peer-gguf-input

For each type a small Llama is written by the package gguf, its matrices in blocks of random codes. A passthrough by weld in
F32 must give the values of `gguf.quants.dequantize` bit by bit, with the rows of queries and keys as a checkpoint has them,
and a linear merge must be that of the dequantised models, to one rounding. transformers must read the same tensors from the
file, and load the checkpoint that weld writes to the same logits.
"""

import argparse
import json
import pathlib
import subprocess

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HIDDEN, HEADS, KEYS, WIDTH, VOCABULARY, LAYERS = 256, 4, 2, 512, 32, 2
SHARE = HIDDEN // HEADS
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4"]
# Where a block has numbers in F16: any other byte may be anything.
HALVES = {
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}


def shapes():
    yield "token_embd.weight", "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    yield "output_norm.weight", "model.norm.weight", (HIDDEN,)
    yield "output.weight", "lm_head.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        for theirs, ours, shape in [
            ("attn_norm", "input_layernorm", (HIDDEN,)),
            ("ffn_norm", "post_attention_layernorm", (HIDDEN,)),
            ("attn_q", "self_attn.q_proj", (HIDDEN, HIDDEN)),
            ("attn_k", "self_attn.k_proj", (KEYS * SHARE, HIDDEN)),
            ("attn_v", "self_attn.v_proj", (KEYS * SHARE, HIDDEN)),
            ("attn_output", "self_attn.o_proj", (HIDDEN, HIDDEN)),
            ("ffn_gate", "mlp.gate_proj", (WIDTH, HIDDEN)),
            ("ffn_up", "mlp.up_proj", (WIDTH, HIDDEN)),
            ("ffn_down", "mlp.down_proj", (HIDDEN, WIDTH)),
        ]:
            yield f"blk.{layer}.{theirs}.weight", f"model.layers.{layer}.{ours}.weight", shape


def blocks(random, kind, shape):
    """Random blocks of a type, as bytes for each row."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    raw = random.integers(0, 256, (np.prod(shape) // values, size), dtype=np.uint8)
    for at in HALVES.get(kind.name, []):
        scale = (random.standard_normal(len(raw)) * 1e-3).astype(np.float16)
        raw[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
    if kind.name == "MXFP4":
        raw[:, 0] = random.integers(100, 128, len(raw))
    return raw.reshape(shape[0], -1)


def write(path, name, seed):
    """A file of a Llama; the tensors that a checkpoint of it has, in F32."""
    random = np.random.default_rng(seed)
    kind = gguf.GGMLQuantizationType[name]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(SHARE)
    writer.add_vocab_size(VOCABULARY)
    values = {}
    for theirs, ours, shape in shapes():
        if len(shape) == 1:
            # As converters widen norms: their values are BF16's.
            norm = torch.from_numpy(random.standard_normal(shape)).bfloat16().float()
            writer.add_tensor(theirs, norm.numpy())
            values[ours] = norm
            continue
        if name in ("F32", "F16"):
            raw = (random.standard_normal(shape) * 0.05).astype(np.float32 if name == "F32" else np.float16)
            found = raw.astype(np.float32)
            writer.add_tensor(theirs, raw)
        else:
            if name == "BF16":
                weight = torch.from_numpy(random.standard_normal(shape) * 0.05).bfloat16()
                raw = weight.view(torch.int16).numpy().view(np.uint8)
            else:
                raw = blocks(random, kind, shape)
            found = gguf.quants.dequantize(raw, kind)
            writer.add_tensor(theirs, raw, raw_dtype=kind)
        found = torch.from_numpy(np.ascontiguousarray(found, np.float32).reshape(shape))
        heads = {"attn_q": HEADS, "attn_k": KEYS}.get(theirs.split(".")[-2])
        if heads:
            # The converter lets the rows of a head's halves take turns; this is its way back.
            found = found.reshape(heads, SHARE // 2, 2, HIDDEN).swapaxes(1, 2).reshape(shape)
        values[ours] = found.contiguous()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def weld(arguments, work):
    done = subprocess.run(arguments, cwd=work, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}\n{done.stderr}")


def merge(binary, work, recipe, out):
    (work / "recipe.yml").write_text(recipe)
    weld([binary, "merge", "recipe.yml", out, "--force"], work)
    return load_file(work / out / "model.safetensors")


def same_bits(one, other):
    as_bits = lambda tensor: tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(as_bits(one), as_bits(other))


def try_type(binary, work, name, other):
    work.mkdir(parents=True, exist_ok=True)
    values = write(work / "m.gguf", name, 7)
    found = merge(binary, work, "merge_method: passthrough\nmodels: [{model: m.gguf}]\ndtype: float32\n", "plain")
    assert found.keys() == values.keys(), found.keys() ^ values.keys()
    wrong = [tensor for tensor in values if not same_bits(found[tensor], values[tensor])]
    assert not wrong, wrong
    save_file({tensor: value.bfloat16() for tensor, value in other.items()}, work / "other.safetensors")
    recipe = (
        "merge_method: linear\nparameters: {normalize: false}\nmodels:\n- {model: m.gguf, parameters: {weight: 0.375}}\n"
        "- {model: other.safetensors, parameters: {weight: 0.625}}\ndtype: bfloat16\n"
    )
    merged = merge(binary, work, recipe, "merged")
    equal = total = 0
    for tensor, value in values.items():
        exact = value.double() * 0.375 + other[tensor].bfloat16().double() * 0.625
        rounded = exact.bfloat16().view(torch.int16).int()
        apart = (merged[tensor].view(torch.int16).int() - rounded).abs()
        assert apart.max() <= 1, tensor
        equal += int((apart == 0).sum())
        total += apart.numel()
    load = lambda *place, **file: AutoModelForCausalLM.from_pretrained(
        *place, **file, dtype=torch.float32, attn_implementation="eager"
    )
    tokens = torch.arange(16).reshape(1, -1)
    logits = load(work / "plain")(tokens).logits
    note = ""
    if name != "MXFP4":
        # transformers reads the file by itself: its names, rows, values and config.
        model = load(work, gguf_file="m.gguf")
        for tensor, value in model.state_dict().items():
            assert torch.equal(value, values[tensor]), f"transformers: {tensor}"
        gap = (model(tokens).logits - logits).abs().max().item()
        assert gap == 0, gap
        note = "; transformers: the same tensors and logits"
    config = json.loads((work / "plain" / "config.json").read_text())
    assert config["model_type"] == "llama" and config["num_key_value_heads"] == KEYS, config
    print(f"{name:6} {len(values)} tensors bit for bit; merge: {equal} of {total} as rounded once, none further{note}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weld", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    random = np.random.default_rng(3)
    other = {ours: torch.from_numpy(random.standard_normal(shape) * 0.05) for _, ours, shape in shapes()}
    for name in TYPES:
        try_type(arguments.weld.resolve(), arguments.work.resolve() / name, name, other)


main()
