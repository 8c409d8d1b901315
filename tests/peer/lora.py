"""Holds `model+adapter` against PEFT's own merge, over tiny models with adapters that PEFT wrote.

    python tests/peer/lora.py --weld target/release/weld --work target/lora-work [--case NAME]

Needs peft beside transformers (`pip install peft`). For each case and dtype of the model, weld
copies `model+adapter` by passthrough, and PEFT merges (`merge_and_unload`) in float32 and in
float64. What is expected: every tensor of F32 is the float64 result rounded once, within one
step; every tensor of BF16 too. Where PEFT's merge does not compute what the adapted model
computes (a head and its embedding, tied, of which one is adapted), the logits of the adapted model are the measure.
"""

import argparse
import copy
import os
import shutil
import subprocess
import sys
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.dont_write_bytecode = True
warnings.filterwarnings("ignore")

import peft
import safetensors.torch
import torch
import transformers as tf

tf.utils.logging.set_verbosity_error()
tf.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
FUSED = int(tf.__version__.split(".")[0]) >= 5
SIZES = dict(vocab_size=160, hidden_size=48, num_hidden_layers=3, num_attention_heads=4)
LLAMA = SIZES | dict(intermediate_size=96, num_key_value_heads=2, max_position_embeddings=64)
MIXERS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]


def llama(**over):
    return tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA | dict(tie_word_embeddings=False) | over))


def qwen2():
    return tf.Qwen2ForCausalLM(tf.Qwen2Config(**LLAMA, tie_word_embeddings=True))


def gpt2():
    config = tf.GPT2Config(vocab_size=160, n_embd=48, n_layer=3, n_head=4, n_positions=64)
    return tf.GPT2LMHeadModel(config)


def bert():
    config = tf.BertConfig(**SIZES, intermediate_size=96, max_position_embeddings=64)
    return tf.BertForMaskedLM(config)


def bert_bare():
    config = tf.BertConfig(**SIZES, intermediate_size=96, max_position_embeddings=64)
    return tf.BertModel(config)


def mixtral():
    config = tf.MixtralConfig(**LLAMA, num_local_experts=4, tie_word_embeddings=False)
    return tf.MixtralForCausalLM(config)


def qwen3_moe(**over):
    sizes = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=40, head_dim=12)
    return tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**LLAMA, **sizes | over, tie_word_embeddings=False))


def gpt_oss():
    config = tf.GptOssConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2, head_dim=12, tie_word_embeddings=False)
    return tf.GptOssForCausalLM(config)


def vit():
    config = tf.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        image_size=16, patch_size=4, num_labels=5,
    )
    return tf.ViTForImageClassification(config)


@dataclass
class Case:
    """A model, and what its adapter is."""

    build: callable
    adapter: dict
    # "merge": every tensor is PEFT's merged one. "logits": the result computes what the adapted model does.
    measure: str = "merge"
    # What weld must say, if it is to refuse.
    refused: str = ""
    # How many tokens the model has once some were added, before it was adapted.
    tokens: int = 0
    # The adapter as torch.save writes it.
    pickled: bool = False


CASES = {
    "llama": Case(llama, dict(r=8, lora_alpha=16, target_modules=MIXERS)),
    "llama-high-rank": Case(llama, dict(r=40, lora_alpha=7, target_modules=MIXERS)),
    "llama-rslora": Case(llama, dict(r=8, lora_alpha=16, use_rslora=True, target_modules=MIXERS)),
    "llama-dora": Case(llama, dict(r=4, lora_alpha=8, use_dora=True, target_modules=MIXERS)),
    "llama-dora-rslora": Case(
        llama, dict(r=4, lora_alpha=8, use_dora=True, use_rslora=True, target_modules=MIXERS)
    ),
    "llama-patterns": Case(
        llama,
        dict(
            r=8, lora_alpha=16, target_modules=MIXERS,
            rank_pattern={r"layers\.[01]\.mlp\.up_proj": 3, "down_proj": 5, "^model.layers.2.self_attn.q_proj": 2},
            alpha_pattern={"self_attn.q_proj": 32, r".*\.1\..*": 4.5},
        ),
    ),
    "llama-some-layers": Case(
        llama, dict(r=8, lora_alpha=16, target_modules=["q_proj"], layers_to_transform=[1])
    ),
    "llama-saved-modules": Case(
        llama, dict(r=8, lora_alpha=16, target_modules=MIXERS, modules_to_save=["lm_head", "norm"])
    ),
    "llama-embedding": Case(
        llama, dict(r=8, lora_alpha=16, target_modules=["embed_tokens", "lm_head", "q_proj"])
    ),
    "llama-embedding-dora": Case(
        llama, dict(r=8, lora_alpha=16, use_dora=True, target_modules=["embed_tokens", "q_proj"])
    ),
    "llama-bias": Case(
        lambda: llama(attention_bias=True, mlp_bias=True),
        dict(r=8, lora_alpha=16, target_modules=MIXERS, lora_bias=True),
    ),
    "llama-all-biases": Case(
        lambda: llama(attention_bias=True),
        dict(r=8, lora_alpha=16, target_modules=["q_proj", "up_proj"], bias="all"),
    ),
    "llama-regex-targets": Case(
        llama, dict(r=8, lora_alpha=16, target_modules=r".*layers\.0.*(q|v)_proj")
    ),
    "llama-gaussian": Case(
        llama, dict(r=8, lora_alpha=16, target_modules=MIXERS, init_lora_weights="gaussian")
    ),
    "llama-pissa": Case(
        llama,
        dict(r=8, lora_alpha=16, target_modules=MIXERS, init_lora_weights="pissa"),
        refused="init_lora_weights: pissa",
    ),
    "llama-token-rows": Case(
        llama,
        dict(r=8, lora_alpha=16, target_modules=MIXERS, trainable_token_indices=[7, 2]),
    ),
    "llama-token-rows-of-both": Case(
        llama,
        dict(
            r=8, lora_alpha=16, target_modules=MIXERS,
            trainable_token_indices={"embed_tokens": [7, 2], "lm_head": [3]},
        ),
    ),
    "qwen2-tied-token-rows": Case(
        qwen2,
        dict(r=8, lora_alpha=16, target_modules=MIXERS, trainable_token_indices=[7, 2]),
        measure="logits",
    ),
    "llama-new-tokens": Case(
        llama,
        dict(r=8, lora_alpha=16, target_modules=MIXERS, modules_to_save=["embed_tokens", "lm_head"]),
        tokens=167,
    ),
    "llama-fewer-tokens": Case(
        llama,
        dict(r=8, lora_alpha=16, target_modules=MIXERS, modules_to_save=["embed_tokens", "lm_head"]),
        tokens=151,
    ),
    "llama-new-tokens-adapted": Case(
        llama, dict(r=8, lora_alpha=16, target_modules=["embed_tokens", "lm_head", "q_proj"]), tokens=167
    ),
    "qwen2-tied-new-tokens": Case(
        qwen2,
        dict(
            r=8, lora_alpha=16, target_modules=MIXERS, modules_to_save=["embed_tokens"], ensure_weight_tying=True
        ),
        measure="logits",
        tokens=167,
    ),
    "llama-pickled": Case(
        llama, dict(r=8, lora_alpha=16, target_modules=MIXERS, modules_to_save=["lm_head"]), pickled=True
    ),
    "gpt2": Case(gpt2, dict(r=8, lora_alpha=16, target_modules=["c_attn", "c_proj", "c_fc"])),
    "gpt2-square-only": Case(gpt2, dict(r=8, lora_alpha=16, target_modules=["attn.c_proj"])),
    "gpt2-flag-flipped": Case(
        gpt2,
        dict(r=8, lora_alpha=16, target_modules=["attn.c_proj", "lm_head"]),
        measure="logits",
    ),
    "gpt2-dora": Case(
        gpt2, dict(r=8, lora_alpha=16, use_dora=True, target_modules=["c_attn", "c_proj", "c_fc"])
    ),
    "gpt2-wte": Case(gpt2, dict(r=8, lora_alpha=16, target_modules=["wte", "c_attn"]), measure="logits"),
    "bert": Case(bert, dict(r=8, lora_alpha=16, target_modules=["query", "value", "dense"])),
    "bert-bare": Case(bert_bare, dict(r=8, lora_alpha=16, target_modules=["query", "value"])),
    "qwen2-tied": Case(qwen2, dict(r=8, lora_alpha=16, target_modules=MIXERS)),
    "qwen2-tied-embedding": Case(
        qwen2, dict(r=8, lora_alpha=16, target_modules=["embed_tokens", "q_proj"]), measure="logits"
    ),
    "qwen2-tied-saved-embedding": Case(
        qwen2,
        dict(r=8, lora_alpha=16, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
        measure="logits",
    ),
    "qwen2-tied-head": Case(
        qwen2, dict(r=8, lora_alpha=16, target_modules=["lm_head", "q_proj"]), measure="logits"
    ),
    "qwen2-tied-both": Case(
        qwen2,
        dict(r=8, lora_alpha=16, target_modules=["embed_tokens", "lm_head", "q_proj"]),
        measure="logits",
    ),
    "qwen2-tied-together": Case(
        qwen2,
        dict(
            r=8, lora_alpha=16, target_modules=["embed_tokens", "lm_head", "q_proj"],
            ensure_weight_tying=True,
        ),
        measure="logits",
    ),
    "qwen2-tied-saved-head": Case(
        qwen2,
        dict(r=8, lora_alpha=16, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        measure="logits",
    ),
    # transformers 5 fuses the experts, and PEFT adapts the fused parameters.
    "mixtral-experts": Case(
        mixtral,
        dict(r=8, lora_alpha=16, target_modules=["w1", "w2", "w3", "q_proj", "gate"]),
    ),
    "mixtral-some-experts": Case(mixtral, dict(r=8, lora_alpha=16, target_modules=["w2", "q_proj"])),
    **({
        "qwen3-moe-parameters": Case(
            qwen3_moe,
            dict(
                r=4, lora_alpha=16, target_modules=["q_proj"], rank_pattern={r".*\.down_proj": 3},
                target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"],
            ),
        ),
        "qwen3-moe-square": Case(
            lambda: qwen3_moe(moe_intermediate_size=48),
            dict(r=4, lora_alpha=16, target_modules=[], target_parameters=["experts.down_proj"]),
        ),
        "gpt-oss-parameters": Case(
            gpt_oss,
            dict(
                r=4, lora_alpha=16, target_modules=["q_proj"],
                target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
            ),
        ),
    } if FUSED else {}),
    "vit-convolution": Case(
        vit, dict(r=8, lora_alpha=16, target_modules=["projection", "classifier"])
    ),
    "vit-convolution-dora": Case(
        vit, dict(r=8, lora_alpha=16, use_dora=True, target_modules=["projection", "classifier"])
    ),
}


def randomise(model, name, only=None):
    """Fills parameters with noise, by name alone; norms stay near one."""
    for key, parameter in model.named_parameters():
        if only is not None and not only(key):
            continue
        seed = zlib.crc32(f"{name}/{key}".encode())
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        if "magnitude" in key:
            parameter.data *= 1 + 0.1 * noise.to(parameter.dtype)
        elif "norm" in key.lower():
            parameter.data.copy_(1 + 0.1 * noise)
        else:
            parameter.data.copy_(0.05 * noise)


def make(case, name, folder):
    """Writes the model in each dtype, and its adapter; gives the adapted model."""
    torch.manual_seed(0)
    model = case.build()
    randomise(model, name)
    for dtype, torch_dtype in DTYPES.items():
        other = copy.deepcopy(model).to(torch_dtype)
        other.save_pretrained(folder / dtype / "model")
    if case.tokens:
        model.resize_token_embeddings(case.tokens, mean_resizing=False)
        randomise(model, name + "/resized", lambda key: "embed_tokens" in key or "lm_head" in key)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**case.adapter))
    # Tied adapters (`ensure_weight_tying`) share their parameters, which named_parameters gives once.
    trained = {key for key, parameter in adapted.named_parameters() if parameter.requires_grad}
    randomise(adapted, name + "/adapter", trained.__contains__)
    adapted.save_pretrained(folder / "adapter", safe_serialization=not case.pickled)
    return adapted


def load(case, folder, dtype):
    """The model from its files, in the dtype that arithmetic shall have."""
    return type(case.build()).from_pretrained(folder).to(dtype)


def load_base(case, folder, dtype):
    """The model that the adapter was trained on: with rows for the tokens that were added."""
    model = load(case, folder, dtype)
    if case.tokens:
        model.resize_token_embeddings(case.tokens, mean_resizing=False)
    return model


def merged(case, folder, adapter, dtype, stored):
    """PEFT's merge in a dtype, as its tensors by name; rounded once to what is stored."""
    base = load_base(case, folder, dtype)
    model = peft.PeftModel.from_pretrained(base, adapter, autocast_adapter_dtype=False).to(dtype)
    # Saved, as transformers 5 has other names in memory than in files.
    out = folder.parent / "peft"
    shutil.rmtree(out, ignore_errors=True)
    model.merge_and_unload().save_pretrained(out)
    state = tensors_of(out)
    return {key: tensor.to(stored) if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def weld(binary, folder, dtype, adapter):
    """Copies `model+adapter` by passthrough; gives the error, or nothing."""
    recipe = folder / "recipe.yml"
    recipe.write_text(f"merge_method: passthrough\nmodels:\n  - model: {dtype}/model+{adapter}\n")
    out = folder / dtype / "weld"
    shutil.rmtree(out, ignore_errors=True)
    done = subprocess.run(
        [binary, "merge", recipe, out, "--quiet", "--threads", "2"],
        cwd=folder, capture_output=True, text=True, check=False,
    )
    return done.stderr if done.returncode else ""


def tensors_of(folder):
    return {
        key: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for key, tensor in safetensors.torch.load_file(path).items()
    }


def steps(found, expected):
    """How many representable values lie between two of one dtype, element by element."""
    kind = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[found.dtype]
    low = torch.iinfo(kind).min
    ordered = [
        torch.where((bits := x.contiguous().view(kind).long()) < 0, low - bits, bits)
        for x in (found, expected)
    ]
    return (ordered[0] - ordered[1]).abs()


def compare(found, expected):
    """Tensors, elements, those that differ, the largest difference in steps and relative to the tensor."""
    total = differ = most = 0
    relative = 0.0
    for key, tensor in found.items():
        if key not in expected:
            raise AssertionError(f"{key} is not in PEFT's merge")
        theirs = expected[key]
        assert tensor.shape == theirs.shape and tensor.dtype == theirs.dtype, key
        apart = steps(tensor, theirs)
        total += apart.numel()
        differ += int((apart > 0).sum())
        most = max(most, int(apart.max()))
        scale = float(theirs.abs().max()) or 1.0
        relative = max(relative, float((tensor.double() - theirs.double()).abs().max()) / scale)
    return total, differ, most, relative


def logits(model, case):
    model.eval()
    ids = torch.arange(5, 25).view(1, -1)
    with torch.no_grad():
        return model(input_ids=ids).logits


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weld", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--case")
    arguments = parser.parse_args()
    binary = arguments.weld.resolve()
    print(f"peft {peft.__version__}, transformers {tf.__version__}")
    print(f"{'case':26} {'model':5} {'tensors':>7} {'elements':>9}  "
          f"{'!= f64':>7} {'steps':>6}  {'!= f32':>7} {'steps':>6} {'relative':>9}")
    failed = []
    for name, case in CASES.items():
        if arguments.case and name != arguments.case:
            continue
        folder = arguments.work.resolve() / name
        shutil.rmtree(folder, ignore_errors=True)
        try:
            adapted = make(case, name, folder)
        except ValueError as error:
            print(f"{name:26} left out: {str(error)[:90]}")
            continue
        for dtype, stored in DTYPES.items():
            row = f"{name:26} {dtype:5}"
            error = weld(binary, folder, dtype, "adapter")
            if error or case.refused:
                good = bool(case.refused) and case.refused in error
                print(f"{row} {'refused, as it should' if good else 'FAILS: ' + error[-600:]}")
                failed += [] if good else [row]
                continue
            out = folder / dtype / "weld"
            found = tensors_of(out)
            if case.measure == "logits":
                base = load_base(case, folder / dtype / "model", torch.float32)
                reference = peft.PeftModel.from_pretrained(base, folder / "adapter")
                wanted = logits(reference, case)
                ours = logits(load(case, out, torch.float32), case)
                theirs = logits(reference.merge_and_unload(), case)
                scale = float(wanted.abs().max())
                of_weld = float((ours - wanted).abs().max()) / scale
                of_peft = float((theirs - wanted).abs().max()) / scale
                # BF16 weights are rounded once more than the adapted model's.
                good = of_weld < {"f32": 1e-5, "bf16": 2e-2}[dtype]
                print(f"{row} {len(found):7}  logits against the adapted model: weld {of_weld:.1e}, "
                      f"PEFT's merge {of_peft:.1e}{'' if good else '  FAILS'}")
                failed += [] if good else [row]
                continue
            model = folder / dtype / "model"
            exact = compare(found, merged(case, model, folder / "adapter", torch.float64, stored))
            single = compare(found, merged(case, model, folder / "adapter", torch.float32, stored))
            # Rounded once, from f64; by way of f32 for 16 bits, which one element in thousands may show.
            good = exact[2] <= 1 and exact[1] <= 1e-3 * exact[0] and single[3] < {"f32": 4e-6, "bf16": 8e-3}[dtype]
            print(f"{row} {len(found):7} {exact[0]:9}  {exact[1]:7} {exact[2]:6}  {single[1]:7} {single[2]:6} "
                  f"{single[3]:9.1e}{'' if good else '  FAILS'}")
            failed += [] if good else [row]
    if failed:
        sys.exit(f"{len(failed)} fail")


if __name__ == "__main__":
    main()
