"""Mixtures merged in both layouts of experts, as transformers loads them.

    target/envs/peer/bin/python tests/peer/layouts.py --weld target/release/weld --work target/peer-layouts

Tiny mixtures of transformers are merged, fused and each expert by itself, from either layout. transformers must load all
of them without a missing or unexpected tensor, and give the same logits, those of the mean of the weights.
"""

import argparse
import pathlib
import shutil
import subprocess

import torch
import transformers

SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "dtype": "float32",
}
QWEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
FAMILIES = {
    "mixtral": (transformers.MixtralConfig, {**SIZES, "num_local_experts": 4}),
    "qwen3_moe": (transformers.Qwen3MoeConfig, {**SIZES, **QWEN}),
    "qwen2_moe": (transformers.Qwen2MoeConfig, {**SIZES, **QWEN, "shared_expert_intermediate_size": 48}),
}


def weld(arguments, work, name, recipe, *options):
    (work / "recipe.yml").write_text(recipe)
    out = work / name
    shutil.rmtree(out, ignore_errors=True)
    command = [arguments.weld, "merge", "recipe.yml", name, "-q", *options]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def load(folder):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    left = {key: value for key, value in info.items() if value and key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    assert not left, left
    return model


def logits(model):
    with torch.no_grad():
        return model(torch.arange(24).reshape(2, 12)).logits


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weld", required=True, type=lambda path: str(pathlib.Path(path).resolve()))
    parser.add_argument("--work", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    for family, (config, sizes) in FAMILIES.items():
        work = arguments.work / family
        work.mkdir(parents=True, exist_ok=True)
        models = []
        for seed, name in enumerate(["a", "b"]):
            torch.manual_seed(seed)
            model = transformers.AutoModelForCausalLM.from_config(config(**sizes), dtype=torch.float32)
            model.save_pretrained(work / name)
            models.append(model)
            for option in ["fused", "per-expert"]:
                copy = weld(arguments, work, f"{name}-{option}", f"merge_method: passthrough\nmodels: [{{model: {name}}}]\n", f"--{option}")
                assert torch.equal(logits(load(copy)), logits(model)), copy
        with torch.no_grad():
            for one, other in zip(models[0].parameters(), models[1].parameters()):
                one.copy_((one.double() * 0.5 + other.double() * 0.5).float())
        expected = logits(models[0])
        for first in ["fused", "per-expert"]:
            for second in ["fused", "per-expert"]:
                recipe = f"merge_method: linear\nmodels: [{{model: a-{first}}}, {{model: b-{second}}}]\nparameters: {{weight: 0.5}}\n"
                for option in ["fused", "per-expert"]:
                    out = weld(arguments, work, "out", recipe, f"--{option}")
                    assert torch.equal(logits(load(out)), expected), (family, first, second, option)
        print(f"{family}: 8 merges and 4 copies, the logits of torch's mean")


if __name__ == "__main__":
    main()
