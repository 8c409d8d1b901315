"""Runs small outputs of weld in the runtimes that serve models, compares logits, and holds `check --for` to the result.

    tests/runtimes/setup.sh FOLDER
    FOLDER/venv/bin/python tests/runtimes/matrix.py FOLDER [target/debug/weld] [CASE ...]

Makes small dense models with random weights, lets weld merge, restack and assemble them in F32, and runs each output in
transformers 5 and 4, mlx-lm and llama.cpp (converted by its own converter, without a tokenizer). A cell is the largest
difference of a logit from transformers 5 over the largest logit, or where the runtime gave up. vLLM is not run: its
column is what `check --for vllm` says.
Exits with 1 if `weld check --for` does not name a runtime that gives up or errs by more than 1e-5, or names one that
does neither.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

BOUND = 1e-5
# Runtimes whose GELU is a table of 16-bit numbers: for the families that compute it, this much is rounding.
TABLES = {"llama.cpp": 1e-3}
HERE = pathlib.Path(__file__).resolve()
IDS = [3, 17, 99, 250, 54, 8, 110, 42, 7, 63, 21, 5, 200, 201, 31, 77, 18, 120, 9, 300, 64, 33, 2, 90]

SIZES = dict(
    vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=2,
)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=2.0)
MULTIPLIERS = dict(attention_multiplier=0.2, embedding_multiplier=3.0, residual_multiplier=0.7, logits_scaling=2.0)
GEMMA = dict(head_dim=16, tie_word_embeddings=True)

# Dense models: a name, the beginning of their classes, and what the config has beside the sizes.
DENSE = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", dict(tie_word_embeddings=True)),
    "llama-bias": ("Llama", dict(attention_bias=True)),
    "llama-heads": ("Llama", dict(head_dim=32)),
    "llama-llama3": ("Llama", dict(rope_parameters=LLAMA3)),
    "llama-linear": ("Llama", dict(rope_parameters=LINEAR)),
    "llama-yarn": ("Llama", dict(rope_parameters=YARN)),
    "llama-gelu": ("Llama", dict(hidden_act="gelu")),
    "mistral": ("Mistral", dict(sliding_window=None)),
    "mistral-window": ("Mistral", dict(sliding_window=5)),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen2-llama3": ("Qwen2", dict(rope_parameters=LLAMA3)),
    "qwen2-window": ("Qwen2", dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)),
    "qwen3": ("Qwen3", dict(head_dim=32)),
    "qwen3-tied": ("Qwen3", dict(head_dim=32, tie_word_embeddings=True)),
    "qwen3-grouped": ("Qwen3", dict(head_dim=32, num_key_value_heads=4)),
    "qwen3-yarn": ("Qwen3", dict(head_dim=32, rope_parameters=YARN)),
    "phi3": ("Phi3", {}),
    "phi3-window": ("Phi3", dict(sliding_window=5)),
    "phi3-longrope": ("Phi3", dict(
        original_max_position_embeddings=32, rope_parameters=dict(
            rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=32, factor=4.0,
            short_factor=[1.0 + 0.1 * i for i in range(8)], long_factor=[2.0 + 0.3 * i for i in range(8)]))),
    "gemma": ("Gemma", GEMMA),
    "gemma2": ("Gemma2", dict(sliding_window=5, query_pre_attn_scalar=16, **GEMMA)),
    "gemma3": ("Gemma3Text", dict(sliding_window=5, query_pre_attn_scalar=16, num_hidden_layers=7, **GEMMA)),
    "granite": ("Granite", MULTIPLIERS),
    "olmo2": ("Olmo2", {}),
    "ernie4_5": ("Ernie4_5", {}),
    "ernie4_5-one": ("Ernie4_5", dict(num_key_value_heads=1)),
    "hunyuan": ("HunYuanDenseV1", dict(head_dim=16)),
    "gpt_neox": ("GPTNeoX", dict(rotary_pct=0.25, num_key_value_heads=4)),
}
CLASSES = {"Gemma3Text": "Gemma3ForCausalLM"}

SHARED = "shared_experts: [{source_model: NAME, alpha: 0.3}]"
ADDED = "shared_experts: [{source_model: other}]"
# Mixtures: a dense model, the target (none: the default), and what the recipe has beside the experts.
MIXTURES = [
    *[(dense, None, "") for dense in (
        "llama", "llama-tied", "llama-bias", "llama-heads", "llama-llama3", "llama-linear", "llama-yarn", "mistral",
        "mistral-window", "phi3", "gemma", "qwen2", "qwen2-tied", "qwen2-llama3", "qwen3", "qwen3-yarn", "granite", "olmo2",
        "ernie4_5", "hunyuan")],
    *[(dense, None, SHARED) for dense in ("llama", "qwen2", "qwen3", "granite", "ernie4_5-one", "ernie4_5", "hunyuan")],
    ("llama", None, "upcycle: {granularity: 2, split: random}"),
    ("llama", "granitemoe", ""),
    ("llama-llama3", "granitemoe", ""),
    ("llama-gelu", "mixtral", ""),
    ("llama", "qwen2_moe", ""),
    ("llama", "qwen2_moe", "experts_per_token: 4"),
    ("qwen2", "qwen2_moe", ""),
    ("qwen2", "qwen2_moe", "experts_per_token: 4"),
    ("qwen2", "qwen2_moe", SHARED + "\nexperts_per_token: 4"),
    ("qwen2", "qwen2_moe", 'layers: "1"'),
    ("qwen2-tied", "qwen2_moe", "experts_per_token: 4"),
    ("llama", "glm4_moe", ""),
    ("qwen2", "glm4_moe", ""),
    ("qwen3", "glm4_moe", ""),
    ("qwen3", "glm4_moe", SHARED),
    ("qwen3", "glm4_moe", 'layers: "1-"'),
    ("llama-llama3", "glm4_moe", ""),
    ("qwen3", "dots1", ""),
    ("qwen3-grouped", "dots1", ""),
    ("qwen3-grouped", "dots1", SHARED),
    ("qwen3-grouped", "dots1", 'layers: "1-"'),
    ("qwen3", "qwen3_moe", 'layers: "0,2"'),
    ("qwen3-tied", "qwen3_moe", ""),
    ("ernie4_5", "ernie4_5_moe", 'layers: "1-2"'),
    ("hunyuan", "hunyuan_v1_moe", "upcycle: {granularity: 2}"),
    *[(dense, target, "fused") for dense, target in (
        ("llama", "mixtral"), ("qwen3", "qwen3_moe"), ("qwen2", "qwen2_moe"), ("qwen3", "glm4_moe"))],
]
RESTACKED = ["llama", "qwen2", "qwen2-window", "qwen3", "gemma2", "gemma3", "granite"]


def make(name, folder, seed):
    import torch
    import transformers as t

    t.utils.logging.disable_progress_bar()
    kind, extra = DENSE[name]
    config = getattr(t, f"{kind}Config")(**{**SIZES, **extra})
    torch.manual_seed(seed)
    model = getattr(t, CLASSES.get(kind, f"{kind}ForCausalLM"))(config).float()
    with torch.no_grad():
        for weight in model.parameters():
            wide = weight.dim() > 1
            scale = weight.shape[-1] ** -0.5 if wide else 0.2
            norm = 0 if wide or kind.startswith("Gemma") else 1
            weight.copy_(torch.randn_like(weight) * scale + norm)
    model.tie_weights()
    model.save_pretrained(folder)


def outputs(weld, top):
    """The folder of each output by its name, or why weld gave none."""
    made, found = {}, {}
    for name in DENSE:
        for seed, folder in ((1, top / "dense" / name), (2, top / "other" / name)):
            make(name, folder, seed)
        made[name] = top / "dense" / name

    def run(case, command, recipe, *flags):
        folder, text = top / "out" / f"{len(found):03}", top / f"{len(found):03}.yml"
        folder.parent.mkdir(exist_ok=True)
        text.write_text(recipe)
        done = subprocess.run([weld, command, text, folder, "-q", *flags], capture_output=True, text=True)
        found[case] = folder if done.returncode == 0 else done.stderr.strip().splitlines()[0]

    for name in ("llama", "llama-llama3", "qwen3", "gemma3"):
        found[f"{name}, as transformers 5 saves it"] = made[name]
    for name, folder in made.items():
        other, layers = top / "other" / name, DENSE[name][1].get("num_hidden_layers", 3)
        pair = f"models: [{{model: {folder}, parameters: {{weight: 0.6}}}}, {{model: {other}, parameters: {{weight: 0.4}}}}]"
        run(f"{name}, merged", "merge", f"merge_method: linear\n{pair}\ndtype: float32\n")
        if name in RESTACKED:
            slices = "".join(f"\n- sources: [{{model: {folder}, layer_range: {part}}}]" for part in ([0, 2], [1, layers]))
            run(f"{name}, restacked", "merge", f"merge_method: passthrough\nslices:{slices}\n")
    for name, target, extra in MIXTURES:
        flags = ["--fused"] if extra == "fused" else []
        lines = "" if flags else extra.replace("NAME", str(made[name])).replace("other", str(top / "other" / name))
        architecture = f"architecture: {target}\n" if target else ""
        experts = "".join(f"\n- source_model: {top / who / name}" for who in ("dense", "other", "dense", "other"))
        recipe = f"base_model: {made[name]}\n{architecture}gate_mode: random\nrouter: {{seed: 0}}\n{lines}\nexperts:{experts}\n"
        short = extra.split(":")[0] if not extra.startswith("shared") else "shared" + (", all" if "per_token" in extra else "")
        short = {"experts_per_token": "all experts", "upcycle": "granular", "layers": "some layers"}.get(short, short)
        case = f"{name} as {target or 'default'}" + (f", {short}" if short else "")
        run(case, "moe", recipe, *flags)
    return found


# Workers: each runs all folders in the environment of one runtime, and leaves an array or a text for each.


def worker_transformers(folders, out):
    import torch
    import transformers as t

    t.utils.logging.disable_progress_bar()
    t.utils.logging.set_verbosity_error()
    dtype = {"dtype" if int(t.__version__.split(".")[0]) >= 5 else "torch_dtype": torch.float32}

    def logits(folder):
        model, info = t.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", output_loading_info=True, **dtype)
        odd = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
        if odd:
            raise ValueError(f"does not load: {len(odd)} tensors missing or unknown")
        with torch.no_grad():
            return model.eval()(torch.tensor([IDS])).logits[0].float().numpy()

    each(folders, out, logits)


def worker_mlx(folders, out):
    import mlx.core as mx
    import numpy
    from mlx_lm.utils import load_model

    def logits(folder):
        model, _ = load_model(pathlib.Path(folder))
        return numpy.array(model(mx.array([IDS]))[0].astype(mx.float32))

    each(folders, out, logits)


def worker_llama_cpp(folders, out):
    import numpy

    sys.path.insert(0, str(HERE.parent))
    import llama_cpp

    root = pathlib.Path(out).parents[1]
    converter = next(pathlib.Path(os.environ["RUNTIMES"]).glob("llama_cpp_python-*/vendor/llama.cpp"))
    sys.path[:0] = [str(converter), str(converter / "gguf-py")]
    import conversion
    import torch
    from conversion import base
    from gguf import LlamaFileType

    gguf = root / "model.gguf"

    def without_tokenizer(model):
        # It demands the tokenizers of the families that it knows; logits need none.
        model._set_vocab_none()
        if not any(key.endswith(".vocab_size") for key in model.gguf_writer.kv_data[0]):
            model.gguf_writer.add_vocab_size(model.hparams["vocab_size"])

    def convert(folder):
        if not (folder / "tokenizer.json").exists():  # it counts the tokens of Gemma 3 itself
            words = {f"w{at}": at for at in range(SIZES["vocab_size"])}
            (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}, "added_tokens": []}))
        parameters = base.ModelBase.load_hparams(folder, False)
        name = base.get_model_architecture(parameters, base.ModelType.TEXT)
        kind = conversion.get_model_class(name)
        kind.set_vocab = without_tokenizer
        with torch.inference_mode():
            kind(folder, LlamaFileType.ALL_F32, gguf).write()

    def logits(folder):
        gguf.unlink(missing_ok=True)
        try:
            convert(pathlib.Path(folder))
        except BaseException as error:
            raise ValueError(f"does not convert: {type(error).__name__}: {error}") from error
        try:
            return llama_cpp.logits(gguf, IDS, pathlib.Path(os.environ["RUNTIMES"]) / "lib-llama.cpp")
        except RuntimeError as error:
            raise ValueError(f"does not load: {error}") from error

    each(folders, out, logits)


def each(folders, out, logits):
    import numpy

    for name, folder in folders.items():
        at = pathlib.Path(out) / name
        try:
            rows = logits(folder)
            numpy.save(at.with_suffix(".npy"), rows)
        except BaseException as error:
            text = str(error).strip().splitlines() or [type(error).__name__]
            at.with_suffix(".txt").write_text(text[0][:300])


# By what their findings begin with: the environment in FOLDER, and the worker.
RUNTIMES = {
    "transformers 5": ("venv", "transformers"),
    "transformers 4": ("venv-transformers4", "transformers"),
    "llama.cpp": ("venv", "llama_cpp"),
    "mlx-lm": ("venv-mlx", "mlx"),
}


# It is not run: the column says what its tables say.
READ = "vLLM"


def named(weld, folder):
    """The runtimes that `check --for` has errors or warnings about."""
    command = [weld, "check", folder, "--for", "transformers,llama.cpp,mlx,vllm", "--format", "json", "-q"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = {}
    for finding in json.loads(done.stdout)["findings"]:
        # It runs without tokenizers here.
        if finding["check"].startswith("runtime.") and finding["check"] != "runtime.tokenizer":
            for name in [*RUNTIMES, READ]:
                if finding["found"].startswith(name):
                    found.setdefault(name, []).append(f"{finding['severity']} {finding['check']}: {finding['found']}")
    return found


def main():
    root = pathlib.Path(sys.argv[1]).absolute()
    weld = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "target/debug/weld").resolve()
    wanted = sys.argv[3:]
    import numpy

    wrong = 0
    with tempfile.TemporaryDirectory() as top:
        top = pathlib.Path(top)
        found = outputs(weld, top)
        found = {case: folder for case, folder in found.items() if not wanted or any(word in case for word in wanted)}
        folders = {f"{at:03}": str(folder) for at, folder in enumerate(found.values()) if isinstance(folder, pathlib.Path)}
        for name, (venv, worker) in RUNTIMES.items():
            (top / "logits" / name).mkdir(parents=True)
            command = [root / venv / "bin" / "python", HERE, "--worker", worker, top / "logits" / name]
            environment = {**os.environ, "RUNTIMES": str(root), "TOKENIZERS_PARALLELISM": "false"}
            subprocess.run(command, input=json.dumps(folders), text=True, env=environment, check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print("| output | " + " | ".join([*RUNTIMES, READ]) + " |\n|---|" + "---|" * (len(RUNTIMES) + 1))
        for at, (case, folder) in enumerate(found.items()):
            if isinstance(folder, str):
                print(f"| {case} | refused: {folder} |", flush=True)
                continue
            cells, notes, told = [], [], named(weld, folder)
            meant = top / "logits" / "transformers 5" / f"{at:03}.npy"
            for name in RUNTIMES:
                array = top / "logits" / name / f"{at:03}.npy"
                if array.exists() and meant.exists():
                    expected, rows = numpy.load(meant), numpy.load(array)
                    error = float(numpy.abs(rows - expected).max() / numpy.abs(expected).max())
                    error = error if numpy.isfinite(rows).all() else float("nan")
                    cells.append(f"{error:.1e}")
                    right = error <= (TABLES.get(name, BOUND) if case.startswith("gemma") else BOUND)
                else:
                    text = array.with_suffix(".txt")
                    why = text.read_text() if text.exists() else "nothing"
                    cells.append(why.split(":")[0] if why.startswith("does not") else "does not load")
                    notes.append(f"    {name}: {why}")
                    right = False
                if right == (name in told):
                    wrong += 1
                    notes.append(f"    {name}: " + ("named, though it is right" if right else "NOT NAMED"))
            read = [line for line in told.get(READ, []) if line.startswith("error")]
            silent = any("without a word" in line for line in read)
            cells.append("otherwise" if silent else "does not load" if read else "as meant")
            print(f"| {case} | {' | '.join(cells)} |", flush=True)
            lines = notes + [f"    told: {line}" for lines in told.values() for line in lines]
            print("\n".join(lines), end="\n" if lines else "", file=sys.stderr, flush=True)
    sys.exit(1 if wrong else 0)


if sys.argv[1:2] == ["--worker"]:
    globals()[f"worker_{sys.argv[2]}"](json.load(sys.stdin), sys.argv[3])
else:
    main()
