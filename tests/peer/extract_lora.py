#!/usr/bin/env python3
"""`weld extract-lora` beside PEFT and mergekit-extract-lora.

    extract_lora.py logits WELD            PEFT loads every adapter; its logits are those of weld's merge
    extract_lora.py race WELD MERGEKIT DIR [--layers N] [--rank R]
                                           time, memory and error on a made model in the shapes of TinyLlama 1.1B

Needs torch, transformers and peft; `race` needs the command mergekit-extract-lora too.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config
from transformers import Qwen2ForCausalLM

from timed import timed

SMALL = dict(hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
# TinyLlama 1.1B, but for the number of layers.
TINY_LLAMA = dict(hidden_size=2048, intermediate_size=5632, num_attention_heads=32, num_key_value_heads=4,
                  vocab_size=32000)


def models():
    """A name, a model, and the options that save its embedding."""
    yield "llama", LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, tie_word_embeddings=False, **SMALL)), \
        ["--save", "embed_tokens", "--save", "lm_head"]
    yield "llama-tied", LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, tie_word_embeddings=True, **SMALL)), \
        ["--save", "embed_tokens"]
    yield "qwen2", Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, tie_word_embeddings=False, **SMALL)), \
        ["--save", "lm_head"]
    gpt2 = GPT2Config(n_embd=128, n_layer=2, n_head=4, vocab_size=64, bos_token_id=1, eos_token_id=2)
    yield "gpt2", GPT2LMHeadModel(gpt2), []


def tuned(model, seed, scale=0.02):
    """Changes every parameter: in matrices, what training does has few directions, and noise beside them."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draws)
            if parameter.dim() == 2:
                left = torch.randn(parameter.shape[0], 16, generator=draws)
                right = torch.randn(16, parameter.shape[1], generator=draws)
                noise = noise * 0.05 + left @ right / 4
            parameter.add_((noise * scale).to(parameter.dtype))


def weld(command, *words, where):
    done = subprocess.run([command, *map(str, words)], cwd=where, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"weld {' '.join(map(str, words))}: {done.stderr}")
    return done.stdout


def logits(command):
    text = torch.arange(24).reshape(2, 12)
    failed = 0
    for name, model, save in models():
        with tempfile.TemporaryDirectory() as where:
            where = pathlib.Path(where)
            model.save_pretrained(where / "base")
            tuned(model, 1)
            model.save_pretrained(where / "tuned")
            (where / "merge.yml").write_text("merge_method: passthrough\nmodels: [{model: base+adapter}]\n")
            for options in (["--rank", "8"], ["--energy", "0.9"], ["--rank", "8", *save],
                            ["--energy", "0.99", "--module", "layers.0.*" if name != "gpt2" else "h.0.*"],
                            ["--rank", "8", "--dtype", "bfloat16"]):
                report = weld(command, "extract-lora", "base", "tuned", "adapter", "--force", "--format", "json",
                              *options, where=where)
                weld(command, "merge", "merge.yml", "merged", "--force", "--quiet", where=where)
                base = AutoModelForCausalLM.from_pretrained(where / "base", dtype=torch.float32)
                adapted = PeftModel.from_pretrained(base, where / "adapter")
                stored = load_file(where / "adapter/adapter_model.safetensors")
                loaded = adapted.state_dict()
                lost = [key for key in stored if not any(
                    key.removesuffix(".weight") in other.replace(".default", "").replace(".modules_to_save", "")
                    for other in loaded)]
                merged = AutoModelForCausalLM.from_pretrained(where / "merged", dtype=torch.float32)
                with torch.no_grad():
                    ours, theirs = merged(text).logits, adapted(text).logits
                apart = ((ours - theirs).norm() / theirs.norm()).item()
                good = apart < 2e-6 and not lost
                failed += not good
                print(f"{'ok' if good else 'FAILED'}  {name} {' '.join(options)}: {len(stored)} tensors, logits "
                      f"{apart:.1e} apart, error {json.loads(report)['error']:.3f}{lost or ''}")
    sys.exit(failed > 0)


def said(run):
    return f"{run[0]:.1f} s, {run[1]:.1f} s of processor time, {run[2] / 1e9:.2f} GB"


def error(where, adapter):
    """The relative error of an adapter's matrices."""
    base, fine = (load_file(where / model / "model.safetensors") for model in ("base", "tuned"))
    stored = load_file(where / adapter / "adapter_model.safetensors")
    config = json.loads((where / adapter / "adapter_config.json").read_text())
    left, whole = 0.0, 0.0
    for key, a in stored.items():
        if not key.endswith("lora_A.weight"):
            continue
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = stored[key.replace("lora_A", "lora_B")]
        if module + ".weight" not in base or b.shape[0] > 30000:
            continue
        change = fine[module + ".weight"].float() - base[module + ".weight"].float()
        scale = config["lora_alpha"] / config["r"] if not config.get("rank_pattern") else 1.0
        left += (change - scale * b.float() @ a.float()).norm().item() ** 2
        whole += change.norm().item() ** 2
    return (left / whole) ** 0.5


def race(command, mergekit, where, layers, rank):
    where = pathlib.Path(where).resolve()
    where.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(num_hidden_layers=layers, tie_word_embeddings=False, **TINY_LLAMA)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    count = sum(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(where / "base", max_shard_size="100GB")
    tuned(model, 1, 0.002)
    model.save_pretrained(where / "tuned", max_shard_size="100GB")
    del model
    print(f"{count / 1e9:.2f} billion parameters, {layers} layers, rank {rank}")
    matrices = "{q,k,v,o,gate,up,down}_proj"
    ours = timed([command, "extract-lora", "base", "tuned", "ours", "--force", "--rank", rank, "--module", matrices],
                 where)
    print(f"weld: {said(ours)}, error {error(where, 'ours'):.5f}", flush=True)
    # Of a path that may be a repository, mergekit asks the Hub.
    theirs = timed([mergekit, "--model", where / "tuned", "--base-model", where / "base", "--out-path", "theirs",
                    "--max-rank", rank, "--exclude-regex", "(lm_head|embed_tokens|norm)"], where)
    print(f"mergekit: {said(theirs)}, error {error(where, 'theirs'):.5f}")
    print(f"time {theirs[0] / ours[0]:.1f}, processor time {theirs[1] / ours[1]:.1f}, memory {theirs[2] / ours[2]:.1f}")
    for folder in ("base", "tuned", "ours", "theirs"):
        shutil.rmtree(where / folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    one = commands.add_parser("logits")
    one.add_argument("weld", type=pathlib.Path)
    two = commands.add_parser("race")
    two.add_argument("weld", type=pathlib.Path)
    two.add_argument("mergekit", type=pathlib.Path)
    two.add_argument("where")
    two.add_argument("--layers", type=int, default=22)
    two.add_argument("--rank", type=int, default=32)
    given = parser.parse_args()
    command = given.weld.resolve()
    if given.what == "logits":
        logits(command)
    else:
        race(command, given.mergekit.resolve(), given.where, given.layers, given.rank)


if __name__ == "__main__":
    main()
