#!/usr/bin/env python3
"""`output: adapter` beside PEFT and formulas of its own.

    adapters.py WELD    PEFT makes adapters and loads the merged ones; logits are those of the base with the sum in torch;
                        ties in core space and KnOTS is what torch computes from the papers' formulas, in f64

Needs torch, transformers and peft.
"""

import argparse
import pathlib
import sys
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from extract_lora import SMALL, weld

TEXT = torch.arange(24).reshape(2, 12)
WEIGHTS = {"x": 0.6, "y": -0.3, "z": 0.5}
MODELS = "".join(f"- {{model: base+{name}, parameters: {{weight: {weight}}}}}\n" for name, weight in WEIGHTS.items())


def recipe(method, parameters, output):
    return (f"merge_method: {method}\nbase_model: base\nparameters: {{{parameters}}}\nmodels:\n{MODELS}"
            f"output: {output}\n")


def models():
    """A name, a model, and the modules that its adapters change."""
    yield "llama", LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, tie_word_embeddings=False, **SMALL)), \
        ["q_proj", "up_proj", "down_proj"]
    gpt2 = GPT2Config(n_embd=128, n_layer=2, n_head=4, vocab_size=64, bos_token_id=1, eos_token_id=2)
    yield "gpt2", GPT2LMHeadModel(gpt2), ["c_attn", "c_fc"]


def adapters(where, targets, fan_in_fan_out):
    """Writes three adapters of the model in `base`, of ranks 4, 8 and 2."""
    for seed, (name, rank) in enumerate({"x": 4, "y": 8, "z": 2}.items()):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(where / "base")
        # One leaves modules out.
        chosen = targets[:-1] if name == "z" else targets
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=chosen, fan_in_fan_out=fan_in_fan_out,
                            task_type="CAUSAL_LM", use_rslora=name == "y")
        model = get_peft_model(base, config)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.normal_(0, 0.05)
        model.save_pretrained(where / name)


def updates(folder, base):
    """What an adapter adds to each weight, in f64, as PEFT merges it."""
    before = {name: value.clone() for name, value in base.state_dict().items()}
    merged = PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
    return {name: (merged[name].double() - value.double()) for name, value in before.items()
            if not torch.equal(merged[name], value)}


def factors(folder, scale):
    tensors = load_file(folder / "adapter_model.safetensors")
    ends = ".lora_A.weight"
    return {key.removesuffix(ends): (tensors[key.replace("lora_A", "lora_B")].double() * scale, value.double())
            for key, value in tensors.items() if key.endswith(ends)}


def ties(tasks, density):
    """Weldment's and mergekit's ties with `normalize`: the k largest of each task, weighted, by the sign of their sum."""
    kept = []
    for task, weight in tasks:
        count = int(density * task.numel())
        flat = task.flatten()
        mask = torch.zeros_like(flat, dtype=torch.bool)
        mask[flat.abs().topk(count).indices] = True
        kept.append((torch.where(mask, flat, 0).reshape(task.shape), weight))
    weighted = torch.stack([task * weight for task, weight in kept])
    sign = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agrees = (weighted.sign() == sign) & (weighted != 0)
    shares = torch.stack([torch.full_like(task, weight) for task, weight in kept])
    divisor = (shares * agrees).sum(0)
    total = (weighted * agrees).sum(0)
    return torch.where(divisor.abs() > 1e-12, total / torch.where(divisor == 0, 1.0, divisor), 0.0)


def spaces(parts):
    """Task matrices in core space and in KnOTS's, with the way back; `parts` are (B, A) of the tasks that have some."""
    left = torch.cat([b for b, _ in parts.values()], 1)
    right = torch.cat([a for _, a in parts.values()], 0)
    u = torch.linalg.svd(left, full_matrices=False)[0]
    v = torch.linalg.svd(right, full_matrices=False)[2]
    core = {name: u.T @ b @ a @ v.T for name, (b, a) in parts.items()}
    yield "core_space", core, lambda merged: u @ merged @ v
    whole = torch.cat([b @ a for b, a in parts.values()], 1)
    u2, s, vt = torch.linalg.svd(whole, full_matrices=False)
    rank = int((s > 1e-5 * s[0]).sum())
    u2, seen = u2[:, :rank], (s[:, None] * vt)[:rank]
    width = whole.shape[1] // len(parts)
    pieces = {name: seen[:, index * width:(index + 1) * width] for index, name in enumerate(parts)}
    yield "knots", pieces, lambda merged: u2 @ merged


def close(found, expected, tolerance):
    return (found - expected).norm() <= tolerance * expected.norm()


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("weld", type=lambda text: str(pathlib.Path(text).resolve()))
    command = arguments.parse_args().weld
    failed = 0

    def check(name, is_right):
        nonlocal failed
        failed += not is_right
        print(f"{'ok    ' if is_right else 'FAILED'} {name}", flush=True)

    for name, model, targets in models():
        with tempfile.TemporaryDirectory() as where:
            where = pathlib.Path(where)
            model.save_pretrained(where / "base")
            adapters(where, targets, name == "gpt2")
            load = lambda: AutoModelForCausalLM.from_pretrained(where / "base")
            sums = {}
            for adapter, weight in WEIGHTS.items():
                for tensor, update in updates(where / adapter, load()).items():
                    sums[tensor] = sums.get(tensor, 0) + weight * update
            expected = load()
            with torch.no_grad():
                for tensor, update in sums.items():
                    expected.state_dict()[tensor].add_(update.float())
                expected = expected(TEXT).logits
            for output in ("{adapter: cat}", "adapter", "{adapter: knots}", "{adapter: svd, rank: 14}"):
                (where / "merge.yml").write_text(recipe("task_arithmetic", "", output))
                weld(command, "merge", "merge.yml", "merged", "--force", "--quiet", where=where)
                found = PeftModel.from_pretrained(load(), where / "merged")(TEXT).logits
                difference = (found - expected).abs().max() / expected.abs().max()
                check(f"{name} {output}: logits differ by {difference:.1e}", difference < 1e-5)
            for method, density in (("ties", 0.5),):
                scale = {"x": 2.0, "y": 2 * 8 / 8 ** 0.5, "z": 2.0}
                tasks = {adapter: factors(where / adapter, scale[adapter]) for adapter in WEIGHTS}
                for output in ("core_space", "knots"):
                    text = recipe(method, f"density: {density}", f"{{adapter: {output}}}")
                    (where / "merge.yml").write_text(text)
                    weld(command, "merge", "merge.yml", "merged", "--force", "--quiet", where=where)
                    merged = factors(where / "merged", 1.0)
                    alike = 0
                    for module, (b, a) in merged.items():
                        parts = {task: tasks[task][module] for task in WEIGHTS if module in tasks[task]}
                        space = next(space for space in spaces(parts) if space[0] == output)
                        update = space[2](ties([(space[1][task], WEIGHTS[task]) for task in parts], density))
                        alike += bool(close(b @ a, update, 1e-4))
                    check(f"{name} {method} in {output}: {alike} of {len(merged)} modules are torch's",
                          alike == len(merged))
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
