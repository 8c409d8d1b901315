"""Mixtures of experts of tiny random models, loaded by transformers: identical experts give the dense model's logits.

    python tests/peer/moe.py make --weld target/release/weld --work FOLDER     # transformers 5: models, recipes, outputs
    python tests/peer/moe.py load --work FOLDER                                # any transformers: loads and compares
    python tests/peer/moe.py rows --weld target/release/weld --work FOLDER     # router rows against mergekit's, in FOLDER/rows
    python tests/peer/moe.py configs --work FOLDER                             # both must have run `load`: do they agree?
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import warnings

import torch
import transformers

warnings.filterwarnings("ignore")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(2)

SMALL = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=120, pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=128)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32, rope_theta=50000.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, rope_theta=20000.0)

# A name, the classes' beginning, options beside SMALL, and the targets that hold it exactly.
DENSE = [
    ("llama", "Llama", {}, ["mixtral", "qwen2_moe", "glm4_moe", "granitemoe", "granitemoeshared"]),
    ("llama-tied", "Llama", dict(tie_word_embeddings=True), ["mixtral", "qwen2_moe", "glm4_moe", "granitemoe"]),
    ("llama-heads", "Llama", dict(head_dim=24), ["mixtral", "glm4_moe"]),
    ("llama-rope3", "Llama", dict(rope_parameters=LLAMA3), ["mixtral", "glm4_moe", "qwen2_moe", "granitemoe"]),
    ("llama-yarn", "Llama", dict(rope_parameters=YARN), ["mixtral", "glm4_moe", "qwen2_moe"]),
    ("llama-theta", "Llama", dict(rope_parameters=dict(rope_type="default", rope_theta=777.0)),
     ["mixtral", "qwen2_moe", "glm4_moe", "granitemoe"]),
    ("llama-bias", "Llama", dict(attention_bias=True), ["granitemoe", "granitemoeshared"]),
    ("mistral", "Mistral", dict(sliding_window=None), ["mixtral"]),
    ("mistral-window", "Mistral", dict(sliding_window=5), ["mixtral"]),
    ("phi3", "Phi3", {}, ["mixtral"]),
    ("gemma", "Gemma", dict(head_dim=16), ["mixtral"]),
    ("qwen2", "Qwen2", {}, ["qwen2_moe", "glm4_moe"]),
    ("qwen2-tied", "Qwen2", dict(tie_word_embeddings=True), ["qwen2_moe"]),
    ("qwen3", "Qwen3", dict(head_dim=24), ["qwen3_moe", "glm4_moe", "dots1"]),
    ("granite", "Granite", dict(embedding_multiplier=3.0, residual_multiplier=0.7, logits_scaling=2.0,
                                attention_multiplier=0.2), ["granitemoe", "granitemoeshared"]),
    ("olmo2", "Olmo2", {}, ["flex_olmo"]),
    ("ernie4_5", "Ernie4_5", {}, ["ernie4_5_moe"]),
    ("hunyuan", "HunYuanDenseV1", dict(head_dim=16), ["hunyuan_v1_moe"]),
]

# What a recipe may add, and for which targets that is exact.
SHARED = {"qwen2_moe", "glm4_moe", "dots1", "granitemoeshared", "ernie4_5_moe", "hunyuan_v1_moe"}
PARTIAL = {"qwen2_moe": "1", "qwen3_moe": "0,2", "glm4_moe": "1-", "dots1": "2-", "ernie4_5_moe": "1-2"}


TOKENS = torch.tensor([[1, 17, 99, 3, 54, 8, 110, 42, 7, 63, 21, 5]])


def make_dense(folder, classes, options):
    """A model of larger weights than fresh ones: all parts of it must matter. Its logits are kept beside it."""
    config = getattr(transformers, classes + "Config")(**{**SMALL, **options})
    torch.manual_seed(3)
    model = getattr(transformers, classes + "ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight") or "layernorm" in name:
                weight.add_(torch.randn_like(weight) * 0.2)
            else:
                weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() == 1 else weight.shape[-1] ** -0.5))
        if config.tie_word_embeddings:
            model.tie_weights()
        torch.save(model(TOKENS).logits, folder.with_suffix(".logits"))
    model.save_pretrained(folder)


def make_normed(dense, folder):
    """The same function behind other norms: their weights are moved into the MLPs' matrices."""
    import safetensors.torch

    shutil.copytree(dense, folder)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    offset = 1.0 if config["model_type"] == "gemma" else 0.0
    torch.manual_seed(4)
    for name in list(tensors):
        if not name.endswith("post_attention_layernorm.weight"):
            continue
        factor = torch.rand_like(tensors[name]) + 0.5
        tensors[name] = (tensors[name] + offset) * factor - offset
        for matrix in ("gate_proj", "up_proj", "gate_up_proj"):
            matrix = name.replace("post_attention_layernorm", f"mlp.{matrix}")
            if matrix in tensors:
                tensors[matrix] = tensors[matrix] / factor
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def recipe(dense, target, kind, extra):
    mixture = f"base_model: {dense}-{target}-plain\n"
    if kind == "extracted":
        return mixture + "extract: 2\n"
    if kind == "edited":
        return mixture + 'experts_per_token: 3\nexperts: [{expert: 3}, {expert: "0-"}, {expert: 1}]\n'
    source = f"{dense}-normed" if kind == "folded" else dense
    experts = "".join(f"\n  - source_model: {source}" for _ in range(4))
    return f"""base_model: {dense}
architecture: {target}
gate_mode: random
router: {{seed: 5}}
dtype: float32
experts_per_token: 2
experts:{experts}
{extra}"""


def cases():
    for name, classes, options, targets in DENSE:
        for target in targets:
            yield name, target, "plain", ""
            yield name, target, "fused", ""
            yield name, target, "edited", ""
            yield name, target, "extracted", ""
            if name != "olmo2":
                yield name, target, "folded", "fold_norms: true\n"
            if target in SHARED and name in ("llama", "qwen2", "qwen3", "granite", "ernie4_5", "hunyuan"):
                yield name, target, "alpha", f"shared_experts:\n  - {{source_model: {name}, alpha: 0.3}}\n"
            if name in ("llama", "qwen3", "granite"):
                yield name, target, "granular", "upcycle: {granularity: 2, split: random}\n"
            if target in PARTIAL and name in ("llama", "qwen2", "qwen3", "ernie4_5"):
                yield name, target, "layers", f'layers: "{PARTIAL[target]}"\n'


def make(weld, work):
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for name, classes, options, _ in DENSE:
        make_dense(work / name, classes, options)
        make_normed(work / name, work / f"{name}-normed")
    failed = 0
    for name, target, kind, extra in cases():
        out = f"{name}-{target}-{kind}"
        (work / f"{out}.yml").write_text(recipe(name, target, kind, extra))
        flags = ["--fused"] if kind == "fused" else []
        done = subprocess.run([weld, "moe", "-q", f"{out}.yml", out, *flags], cwd=work, capture_output=True, text=True)
        if done.returncode:
            failed += 1
            print(f"{out}: {done.stderr}")
    return failed


def load(work):
    version = transformers.__version__
    failed, worst, seen = 0, 0.0, {}
    dense = {}
    for name, target, kind, _ in cases():
        if kind == "fused" and version < "5" and not target.startswith("granite"):
            continue
        # As transformers 5 computed them: 4.57 reads rope wrongly in the configs that 5 writes.
        if name not in dense:
            dense[name] = torch.load(work / f"{name}.logits")
        out = f"{name}-{target}-{kind}"
        try:
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                work / out, dtype=torch.float32, output_loading_info=True)
            with torch.no_grad():
                logits = model.eval()(TOKENS).logits
        except Exception as error:
            failed += 1
            print(f"{out}: {type(error).__name__}: {str(error)[:300]}")
            continue
        odd = {key: sorted(value)[:3] for key, value in info.items() if value}
        error = ((logits - dense[name]).abs().max() / dense[name].abs().max()).item()
        worst = max(worst, error)
        config = model.config.to_dict()
        rope = getattr(model.config, "rope_parameters", None) or dict(
            rope_theta=getattr(model.config, "rope_theta", None), **(getattr(model.config, "rope_scaling", None) or {}))
        seen[out] = dict(
            {key: config.get(key) for key in SMALL}, logits=logits.double().abs().sum().item(),
            theta=rope.get("rope_theta"), rope=rope.get("rope_type", "default"),
            parameters=sum(weight.numel() for weight in model.parameters()))
        if odd or not error <= 1e-5:
            failed += 1
            print(f"{out}: error {error:.2e} {odd}")
    (work / f"seen-{version}.json").write_text(json.dumps(seen))
    print(f"transformers {version}: {len(seen)} loaded, worst relative error {worst:.2e}, {failed} failed")
    return failed


def configs(work):
    files = sorted(work.glob("seen-*.json"))
    if len(files) < 2:
        print("run `load` with two versions first")
        return 1
    first, second = (json.loads(file.read_text()) for file in files[:2])
    failed = 0
    for out in sorted(first.keys() | second.keys()):
        a, b = first.get(out), second.get(out)
        if a is None or b is None:
            continue
        differing = {key: (a[key], b[key]) for key in a if key != "logits" and a[key] != b[key]}
        if differing or abs(a["logits"] - b["logits"]) > 1e-5 * a["logits"]:
            failed += 1
            print(out, differing, a["logits"], b["logits"])
    print(f"{len(first)} configs, {failed} read otherwise")
    return failed


WORDS = "the quick brown fox jumps over a lazy dog while seven wizards mix code music maths poems prose tests rust".split()
BASES = [
    ("Llama", {}, "mixtral", False),
    ("Mistral", dict(sliding_window=None), "mixtral", False),
    ("Qwen2", {}, "qwen2_moe", True),
    ("Qwen3", dict(head_dim=16), "qwen3_moe", False),
]


def save_tokenizer(folder):
    """One token for each byte: transformers 5 makes a byte-level BPE of whatever tokenizer a Qwen2 has."""
    import tokenizers

    words = ["<pad>", "<s>", "</s>", "<unk>"] + sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>", "<unk>"])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(folder)


def prompts(seed, count):
    generator = torch.Generator().manual_seed(seed)
    length = lambda: int(torch.randint(2, 9, (), generator=generator))
    pick = lambda: WORDS[int(torch.randint(len(WORDS), (), generator=generator))]
    return [" ".join(pick() for _ in range(length())) for _ in range(count)]


def peer_recipe(base, experts, mode, shared):
    one = lambda model, seed: dict(source_model=str(model), positive_prompts=prompts(seed, 3),
                                   negative_prompts=prompts(seed + 100, 2))
    recipe = dict(base_model=str(base), gate_mode=mode, dtype="float32", experts_per_token=2,
                  experts=[one(model, seed) for seed, model in enumerate(experts)])
    if shared:
        recipe["shared_experts"] = [dict(one(base, 50), residual_scale=0.1)]
    return json.dumps(recipe)


def rows(weld, work):
    """The same recipe by both tools: how near are the routers' rows?"""
    import safetensors.torch

    work = work / "rows"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    failed = 0
    for classes, options, target, shared in BASES:
        models = [work / f"{classes}-{index}" for index in range(5)]
        for index, folder in enumerate(models):
            options = dict(options, num_hidden_layers=4, hidden_size=128, intermediate_size=160, vocab_size=300)
            make_dense(folder, classes, options)
            save_tokenizer(folder)
            config = json.loads((folder / "config.json").read_text())
            if "rope_theta" not in config:
                config["rope_theta"] = config["rope_parameters"]["rope_theta"]
                (folder / "config.json").write_text(json.dumps(config))
        for mode in ("hidden", "cheap_embed"):
            recipe = work / f"{classes}-{mode}.yml"
            recipe.write_text(peer_recipe(models[0], models[1:], mode, shared))
            ours, theirs = work / f"{classes}-{mode}-weld", work / f"{classes}-{mode}-peer"
            done = subprocess.run([weld, "moe", "-q", recipe, ours], capture_output=True, text=True)
            peer = subprocess.run(
                [pathlib.Path(sys.executable).parent / "mergekit-moe", recipe, theirs, "--device", "cpu"],
                capture_output=True, text=True)
            if done.returncode or peer.returncode:
                failed += 1
                print(classes, mode, done.stderr, peer.stderr[-2000:])
                continue
            gates = lambda folder: {
                name.replace("block_sparse_moe.", "mlp.").replace("mlp.router", "mlp.gate"): tensor.double()
                for file in folder.glob("*.safetensors") for name, tensor in safetensors.torch.load_file(file).items()
                if name.endswith(("gate.weight", "expert_gate.weight"))}
            a, b = gates(ours), gates(theirs)
            if a.keys() != b.keys() or not a:
                failed += 1
                print(classes, mode, sorted(a), sorted(b))
                continue
            cosines = [torch.nn.functional.cosine_similarity(a[name], b[name], dim=-1).min().item() for name in a]
            lengths = max((a[name].norm(dim=-1) - 1).abs().max().item() for name in a)
            print(f"{classes:8} {mode:12} {len(cosines)} tensors, least cosine {min(cosines):.6f}, "
                  f"lengths within {lengths:.1e} of 1")
            failed += min(cosines) < 0.998
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["make", "load", "rows", "configs"])
    parser.add_argument("--weld", type=lambda path: str(pathlib.Path(path).resolve()))
    parser.add_argument("--work", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    if arguments.what == "make":
        failed = make(arguments.weld, arguments.work)
    elif arguments.what == "load":
        failed = load(arguments.work)
    elif arguments.what == "rows":
        failed = rows(arguments.weld, arguments.work)
    else:
        failed = configs(arguments.work)
    sys.exit(bool(failed))


main()
