"""Makes a model of the shape of DeepSeek-V3 in FP8 (671 billion weights): headers are real, values are holes in the files.

    python benches/large.py OUT [SEED]

A plan reads headers, and of values some hundred bytes; so this shows what a plan of such models takes. Needs a file system
with sparse files; 450 MB are written.
"""

import json
import random
import struct
import sys
from pathlib import Path

HIDDEN, VOCABULARY, INNER, EXPERT, HEADS, LAYERS, EXPERTS = 7168, 129280, 18432, 2048, 128, 61, 256
SHARD = 5_000_000_000
BYTES = {"BF16": 2, "F8_E4M3": 1, "F32": 4}


def plain(name, shape, dtype="BF16"):
    yield name, shape, dtype


def linear(name, shape):
    yield name + ".weight", shape, "F8_E4M3"
    yield name + ".weight_scale_inv", [-(-side // 128) for side in shape], "F32"


def mlp(prefix, inner):
    yield from linear(prefix + "gate_proj", [inner, HIDDEN])
    yield from linear(prefix + "up_proj", [inner, HIDDEN])
    yield from linear(prefix + "down_proj", [HIDDEN, inner])


def tensors():
    yield from plain("model.embed_tokens.weight", [VOCABULARY, HIDDEN])
    for layer in range(LAYERS):
        own = f"model.layers.{layer}."
        attention = own + "self_attn."
        yield from plain(own + "input_layernorm.weight", [HIDDEN])
        yield from plain(own + "post_attention_layernorm.weight", [HIDDEN])
        yield from linear(attention + "q_a_proj", [1536, HIDDEN])
        yield from plain(attention + "q_a_layernorm.weight", [1536])
        yield from linear(attention + "q_b_proj", [HEADS * 192, 1536])
        yield from linear(attention + "kv_a_proj_with_mqa", [576, HIDDEN])
        yield from plain(attention + "kv_a_layernorm.weight", [512])
        yield from linear(attention + "kv_b_proj", [HEADS * 256, 512])
        yield from linear(attention + "o_proj", [HIDDEN, HEADS * 128])
        if layer < 3:
            yield from mlp(own + "mlp.", INNER)
            continue
        yield from plain(own + "mlp.gate.weight", [EXPERTS, HIDDEN])
        yield from plain(own + "mlp.gate.e_score_correction_bias", [EXPERTS], "F32")
        yield from mlp(own + "mlp.shared_experts.", EXPERT)
        for expert in range(EXPERTS):
            yield from mlp(own + f"mlp.experts.{expert}.", EXPERT)
    yield from plain("model.norm.weight", [HIDDEN])
    yield from plain("lm_head.weight", [VOCABULARY, HIDDEN])


CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": HIDDEN,
    "intermediate_size": INNER, "moe_intermediate_size": EXPERT, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "n_routed_experts": EXPERTS, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "first_k_dense_replace": 3, "moe_layer_freq": 1, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": VOCABULARY,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "hidden_act": "silu", "max_position_embeddings": 4096,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                            "weight_block_size": [128, 128]},
}


def length(shape, dtype):
    bytes = BYTES[dtype]
    for side in shape:
        bytes *= side
    return bytes


def main(out, seed):
    draw = random.Random(seed)
    out.mkdir(parents=True)
    files, held = [[]], 0
    for tensor in tensors():
        bytes = length(*tensor[1:])
        if held + bytes > SHARD and files[-1]:
            files.append([])
            held = 0
        files[-1].append(tensor)
        held += bytes
    index, total = {}, 0
    for number, file in enumerate(files, 1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for tensor, shape, dtype in file:
            start, end = end, end + length(shape, dtype)
            header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
            index[tensor] = name
        total += end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(out / name, "wb") as shard:
            shard.write(struct.pack("<Q", len(text)) + text)
            data = shard.tell()
            shard.truncate(data + end)
            # So that tensors of two models are no copies of each other.
            for tensor, _, dtype in file:
                shard.seek(data + header[tensor]["data_offsets"][0])
                shard.write(struct.pack("<f", 0.5 + draw.random()))
    index = {"metadata": {"total_size": total}, "weight_map": index}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    (out / "config.json").write_text(json.dumps(CONFIG))
    print(f"{out}: {len(index['weight_map'])} tensors, {total / 1e9:.0f} GB, {len(files)} files")


main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
