"""Hidden states, logits and log-probabilities: weld's decoder against transformers, family by family.

    python tests/peer/forward.py --work target/forward-work [--case NAME] [--golden tests/peer/states]

Makes a tiny random model of each case, saved by the transformers that runs this (5 or 4.57, so
that both spellings of configs are read), takes what enters each layer and each MLP, the logits
after each prompt and the log-probability of each token from it in float32, has weld compute the
same (the ignored test `states_of_folders`, built by cargo), and prints the largest error of each,
relative to the largest magnitude. More than 1e-4 is a failure. `--golden` writes the cases that
are committed instead.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.dont_write_bytecode = True

import safetensors.torch
import torch
import transformers as tf

tf.utils.logging.set_verbosity_error()
tf.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[2]
NEW = int(tf.__version__.split(".")[0]) >= 5
LIMIT = 1e-4
LENGTHS = (1, 5, 23, 90)

SIZES = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    tie_word_embeddings=False,
)
EXPERTS = dict(moe_intermediate_size=24, num_experts_per_tok=2)
GROUPS = dict(n_routed_experts=8, n_shared_experts=2, n_group=4, topk_group=2, routed_scaling_factor=1.7)
GRANITE = dict(embedding_multiplier=3.0, residual_multiplier=0.6, attention_multiplier=0.2, logits_scaling=4.0)


def rope(kind, theta=1e4, **fields):
    """Positions as this transformers spells them."""
    if NEW:
        return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **fields))
    partial = fields.pop("partial_rotary_factor", None)
    spelled = dict(rope_theta=theta)
    if kind != "default":
        spelled["rope_scaling"] = {"type" if kind == "longrope" else "rope_type": kind} | fields
    if partial is not None:
        spelled["partial_rotary_factor"] = partial
    return spelled


LONG = rope(
    "longrope",
    short_factor=[1.0, 1.1, 1.3, 1.5],
    long_factor=[1.5, 2.5, 4.0, 7.0],
)
CASES = {
    "llama": ("Llama", {}),
    "llama-biases": ("Llama", dict(attention_bias=True, mlp_bias=True, num_key_value_heads=4)),
    "llama-tied-wide": ("Llama", dict(tie_word_embeddings=True, head_dim=12, hidden_act="gelu")),
    "llama-linear": ("Llama", rope("linear", 5e3, factor=4.0)),
    "llama-dynamic": ("Llama", rope("dynamic", 1e4, factor=2.0)),
    "llama3": (
        "Llama",
        dict(head_dim=16)
        | rope(
            "llama3",
            5e5,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "mistral": ("Mistral", dict(sliding_window=None)),
    "mistral-window": ("Mistral", dict(sliding_window=7, head_dim=16)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True) | rope("default", 1e6)),
    "qwen2-window": ("Qwen2", dict(use_sliding_window=True, sliding_window=7, max_window_layers=1)),
    "qwen2-yarn": (
        "Qwen2",
        rope("yarn", 1e4, factor=4.0, original_max_position_embeddings=32),
    ),
    "qwen3": ("Qwen3", dict(head_dim=16)),
    "qwen3-layers": (
        "Qwen3",
        dict(
            head_dim=8,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=9,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
    "phi3": ("Phi3", {}),
    "phi3-partial": ("Phi3", dict(sliding_window=8) | rope("default", partial_rotary_factor=0.5)),
    "phi3-long": ("Phi3", dict(original_max_position_embeddings=32) | LONG),
    "gemma": ("Gemma", dict(head_dim=16, tie_word_embeddings=True)),
    "gemma-legacy": ("Gemma", dict(head_dim=8, hidden_act="gelu_pytorch_tanh", num_key_value_heads=1)),
    "olmo2": ("Olmo2", {}),
    "olmo2-biases": ("Olmo2", dict(attention_bias=True, num_key_value_heads=4)),
    "granite": ("Granite", GRANITE),
    "granite-biases": ("Granite", GRANITE | dict(attention_bias=True, mlp_bias=True)),
    "mixtral": ("Mixtral", dict(num_local_experts=4, num_experts_per_tok=2)),
    "mixtral-window": ("Mixtral", dict(num_local_experts=3, num_experts_per_tok=1, sliding_window=6)),
    "qwen2-moe": (
        "Qwen2Moe",
        EXPERTS | dict(num_experts=4, shared_expert_intermediate_size=20, norm_topk_prob=False),
    ),
    "qwen2-moe-dense": (
        "Qwen2Moe",
        EXPERTS
        | dict(
            num_experts=4,
            shared_expert_intermediate_size=20,
            norm_topk_prob=True,
            decoder_sparse_step=2,
            qkv_bias=False,
        ),
    ),
    "qwen3-moe": ("Qwen3Moe", EXPERTS | dict(num_experts=6, norm_topk_prob=True, head_dim=16)),
    "qwen3-moe-dense": (
        "Qwen3Moe",
        EXPERTS | dict(num_experts=4, mlp_only_layers=[1], head_dim=8, use_sliding_window=True, sliding_window=5),
    ),
    "granitemoe": ("GraniteMoe", GRANITE | dict(num_local_experts=5, num_experts_per_tok=3)),
    "granitemoeshared": (
        "GraniteMoeShared",
        GRANITE
        | dict(num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=20, attention_bias=True),
    ),
    "glm4-moe": (
        "Glm4Moe",
        EXPERTS | GROUPS | dict(first_k_dense_replace=1, attention_bias=True, use_qk_norm=True, head_dim=16),
    ),
    "glm4-moe-whole": (
        "Glm4Moe",
        EXPERTS
        | GROUPS
        | dict(first_k_dense_replace=0, norm_topk_prob=False)
        | rope("default", partial_rotary_factor=1.0),
    ),
    "dots1": ("Dots1", EXPERTS | GROUPS | dict(first_k_dense_replace=1, norm_topk_prob=True, head_dim=16)),
    "dots1-window": (
        "Dots1",
        EXPERTS | GROUPS | dict(first_k_dense_replace=0, sliding_window=6, max_window_layers=1, n_group=1, topk_group=1),
    ),
    "flex-olmo": ("FlexOlmo", dict(num_experts=5, num_experts_per_tok=2, norm_topk_prob=True)),
    "flex-olmo-raw": ("FlexOlmo", dict(num_experts=4, num_experts_per_tok=3)),
}
# Those that are committed: a rope with bands and a fused layout, a window, experts with groups.
GOLDEN = {
    "llama3": dict(hidden_size=16, intermediate_size=24, head_dim=8),
    "qwen2-window": dict(hidden_size=16, intermediate_size=24),
    "phi3-partial": dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1),
    "gemma": dict(hidden_size=16, intermediate_size=24, head_dim=8),
    "olmo2": dict(hidden_size=16, intermediate_size=24),
    "glm4-moe": dict(hidden_size=16, intermediate_size=24, moe_intermediate_size=8, head_dim=8),
    "granitemoeshared": dict(hidden_size=16, intermediate_size=8, shared_intermediate_size=12),
}
SMALL = dict(vocab_size=48, num_hidden_layers=2)


def fill(model, seed):
    """Weights by name and seed: large enough that positions, masks and biases show in the states."""
    with torch.no_grad():
        stored = model.state_dict()
        for name, tensor in stored.items():
            if not tensor.is_floating_point() or "inv_freq" in name or "embed_scale" in name:
                continue
            gen = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
            noise = torch.randn(tensor.shape, generator=gen)
            if name.endswith("bias"):
                tensor.copy_(0.3 * noise)
            elif tensor.dim() == 1:
                tensor.copy_(tensor.float().mean().round() + 0.3 * noise)
            elif "embed_tokens" in name:
                tensor.copy_(noise)
            else:
                tensor.copy_(1.5 * noise / tensor.shape[-1] ** 0.5)


def prompts(vocabulary, lengths):
    gen = torch.Generator().manual_seed(7)
    return [torch.randint(3, vocabulary, (length,), generator=gen).tolist() for length in lengths]


@torch.no_grad()
def expected(model, prompts):
    """What weld's test writes, by the same names; each prompt by itself, without padding."""
    inner = model.model
    count = len(inner.layers)
    states = {f"{kind}.{layer:02}": [] for kind in ("layer", "gate") for layer in range(count)}
    hooks = []
    for number, layer in enumerate(inner.layers):
        kept = states[f"gate.{number:02}"]
        block = getattr(layer, "mlp", None) or layer.block_sparse_moe
        hooks.append(block.register_forward_pre_hook(lambda _, given, kept=kept: kept.append(given[0][0].clone())))
    logits, given = [], []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model(ids, output_hidden_states=True, use_cache=False)
        for layer in range(count):
            states[f"layer.{layer:02}"].append(out.hidden_states[layer][0])
        logits.append(out.logits[0, -1])
        chances = torch.log_softmax(out.logits[0].double(), -1)
        given.append(chances[:-1].gather(1, ids[0, 1:, None])[:, 0])
    for hook in hooks:
        hook.remove()
    states = {name: torch.cat(kept).flatten() for name, kept in states.items()}
    states |= {"logits": torch.cat(logits), "log_probabilities": torch.cat(given)}
    return {name: kept.float().contiguous() for name, kept in states.items()}


def write(folder, case, over, lengths):
    family, fields = CASES[case]
    config = getattr(tf, f"{family}Config")(**SIZES | fields | over)
    config._attn_implementation = "eager"
    model = getattr(tf, f"{family}ForCausalLM")(config).eval()
    fill(model, case)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    given = prompts(config.vocab_size, lengths)
    (folder / "prompts.json").write_text(json.dumps(given) + "\n")
    safetensors.torch.save_file(expected(model, given), folder / "expected.safetensors")


def harness():
    """The binary of weld's tests."""
    command = ["cargo", "test", "--test", "it", "--no-run", "--message-format", "json"]
    built = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "it":
            return message["executable"]
    sys.exit("cargo named no test binary")


def compare(folder):
    """The largest error of each kind of state, relative to the largest magnitude."""
    found = safetensors.torch.load_file(folder / "found.safetensors")
    wanted = safetensors.torch.load_file(folder / "expected.safetensors")
    assert found.keys() == wanted.keys()
    worst = {}
    for name, tensor in wanted.items():
        kind = name.split(".")[0]
        off = ((found[name] - tensor).abs().max() / tensor.abs().max()).item()
        worst[kind] = max(worst.get(kind, 0.0), off if off == off else float("inf"))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--golden", type=Path)
    parser.add_argument("--keep", action="store_true", help="take the models that are in --work already")
    parser.add_argument("--case", choices=CASES, action="append")
    args = parser.parse_args()
    if args.golden:
        for case, over in GOLDEN.items():
            write(args.golden / case, case, SMALL | over, (1, 4, 14))
        return
    if not args.work:
        parser.error("--work or --golden")
    work = args.work.resolve() / ("new" if NEW else "old")
    cases = args.case or list(CASES)
    if not args.keep:
        shutil.rmtree(work, ignore_errors=True)
    for case in cases:
        if not args.keep or not (work / case / "expected.safetensors").exists():
            write(work / case, case, {}, LENGTHS)
    command = [harness(), "--ignored", "--exact", "forward::states_of_folders"]
    done = subprocess.run(command, env=os.environ | {"WELD_STATES": str(work)}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    failed = 0
    print(f"| case, transformers {tf.__version__} | layer | gate | logits | log-probabilities |")
    print("| --- | --- | --- | --- | --- |")
    for case in cases:
        worst = compare(work / case)
        kinds = ("layer", "gate", "logits", "log_probabilities")
        bad = max(worst.values()) > LIMIT
        failed += bad
        print(f"| {case}{' **differs**' if bad else ''} |", " | ".join(f"{worst[kind]:.1e}" for kind in kinds), "|")
    print(f"{len(cases)} cases, {failed} differ by more than {LIMIT:.0e}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
