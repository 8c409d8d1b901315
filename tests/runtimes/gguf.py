"""Compares `weld export gguf` with llama.cpp's converter, key by key and tensor by tensor, and runs both files.

    tests/runtimes/setup.sh FOLDER
    FOLDER/venv/bin/python tests/runtimes/gguf.py FOLDER [target/debug/weld] [FAMILY ...]

Makes a small model of each family with random weights and a tokenizer trained here, converts it by both to F32, F16,
BF16 and Q8_0, and prints what differs. The converter knows tokenizers by a digest, which no small one has: it is told
the name, as weld is by --pre-tokenizer.
The F32 files of both are run in llama.cpp, and the model in transformers. The last two columns are the largest
difference of a logit over the largest logit: between the two files, and between ours and transformers.
"""

import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(sys.argv[1]).resolve()
WELD = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "target/debug/weld").resolve()
CONVERTER = next(ROOT.glob("llama_cpp_python-*/vendor/llama.cpp"))
sys.path.insert(0, str(CONVERTER / "gguf-py"))

import gguf  # noqa: E402
import llama_cpp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers as t  # noqa: E402
t.utils.logging.disable_progress_bar()
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402

VOCABULARY = 320
SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64)
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=2.0)
EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2)

# A name, its classes, and what its config has beside the sizes.
CASES = {
    "llama": ("Llama", {}),
    "llama-bias": ("Llama", dict(attention_bias=True, tie_word_embeddings=True)),
    "llama-llama3": ("Llama", dict(rope_parameters=LLAMA3, head_dim=32)),
    "llama-linear": ("Llama", dict(rope_parameters=LINEAR)),
    "llama-yarn": ("Llama", dict(rope_parameters=YARN)),
    "mistral": ("Mistral", dict(head_dim=32)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3", dict(head_dim=32)),
    "granite": ("Granite", dict(attention_multiplier=0.1, embedding_multiplier=3.0, logits_scaling=2.0)),
    "olmo2": ("Olmo2", {}),
    "mixtral": ("Mixtral", EXPERTS),
    # llama.cpp ignores `norm_topk_prob: false` of qwen3_moe, and `true` of qwen2_moe.
    "qwen3_moe": (
        "Qwen3Moe",
        dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=32, norm_topk_prob=True),
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=64),
    ),
    "granitemoe": ("GraniteMoe", EXPERTS),
    "granitemoeshared": ("GraniteMoeShared", dict(shared_intermediate_size=64, **EXPERTS)),
}


def tokenizer(folder):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    # Transformers loads the tokenizer of a qwen2 by a class that adds `<|endoftext|>` where it is not there.
    special = ["<|begin|>", "<|end|>", "<|pad|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(["the quick brown fox jumps over the lazy dog", "then there"] * 20, trainer)
    made.add_tokens(["▁tool", "plain"])
    made.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B:1", special_tokens=[("<|begin|>", 0)]
    )
    fast = t.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>",
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
    )
    fast.save_pretrained(folder)


def make(name, folder):
    kind, extra = CASES[name]
    torch.manual_seed(0)
    config = getattr(t, f"{kind}Config")(**{**SIZES, **extra})
    model = getattr(t, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.05 + (1 if tensor.dim() == 1 else 0))
    model.generation_config.top_k = 40
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = True
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer(folder)


# All types in one process, as it takes seconds to start. The model is read once more for each.
PATCHED = """
import runpy, sys
folder, model, out = sys.argv[1:]
sys.path[:0] = [folder, folder + "/gguf-py"]
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"
for kind in ["f32", "f16", "bf16", "q8_0"]:
    sys.argv = ["convert", model, "--outfile", out + "/theirs-" + kind + ".gguf", "--outtype", kind]
    runpy.run_path(folder + "/convert_hf_to_gguf.py", run_name="__main__")
"""


def convert(folder, out):
    command = [sys.executable, "-c", PATCHED, str(CONVERTER), str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def export(folder, out, kind):
    command = [WELD, "export", "gguf", folder, out, "--type", kind, "--pre-tokenizer", "llama-bpe", "-q"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip()


def read(path):
    reader = gguf.GGUFReader(str(path))
    # What the reader adds of the container itself is no metadata.
    fields = {k: (f.types, f.contents()) for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    tensors = {
        x.name: (x.tensor_type.name, tuple(int(n) for n in x.shape), np.asarray(x.data).tobytes())
        for x in reader.tensors
    }
    return fields, tensors


def differences(ours, theirs):
    for what, a, b in [("key", ours[0], theirs[0]), ("tensor", ours[1], theirs[1])]:
        for name in sorted(set(a) | set(b)):
            if a.get(name) != b.get(name):
                short = [str(side.get(name, "absent"))[:120] for side in (a, b)]
                yield f"{what} {name}: weld {short[0]}, converter {short[1]}"


def distance(one, other):
    return float(np.abs(one - other).max() / np.abs(other).max())


def run(folder, ours, theirs):
    """How far our file is from the converter's in llama.cpp, and from the model in transformers."""
    ids = np.random.default_rng(0).integers(3, VOCABULARY - 40, 24).tolist()
    model = t.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        meant = model(torch.tensor([ids])).logits[0].numpy()
    found, expected = (llama_cpp.logits(path, ids, ROOT / "lib-llama.cpp") for path in (ours, theirs))
    return distance(found, expected), distance(found, meant)


def main():
    wrong = 0
    print("| model | f32 | f16 | bf16 | q8_0 | converter | transformers |\n|---|---|---|---|---|---|---|")
    for name in sys.argv[3:] or CASES:
        row, details, runs = [], [], ["", ""]
        with tempfile.TemporaryDirectory() as top:
            # One word, so that the converter takes nothing from the folder's name but the title.
            folder = pathlib.Path(top, "model")
            make(name, folder)
            failed = convert(folder, top)
            for kind in ["f32", "f16", "bf16", "q8_0"]:
                ours, theirs = (pathlib.Path(top, f"{whose}-{kind}.gguf") for whose in ("ours", "theirs"))
                failed = failed or export(folder, ours, kind)
                found = [failed] if failed else list(differences(read(ours), read(theirs)))
                row.append("same" if not found else f"{len(found)} differ")
                details += [f"  {kind}: {line}" for line in found[:8]]
                if kind == "f32" and not failed:
                    try:
                        distances = run(folder, ours, theirs)
                    except RuntimeError as error:
                        distances = (1.0, 1.0)
                        details.append(f"  llama.cpp: {error}")
                    runs = [f"{x:.1e}" for x in distances]
                    wrong += distances[0] != 0.0 or distances[1] > 1e-5
        wrong += bool(details)
        print(f"| {name} | {' | '.join(row + runs)} |", flush=True)
        print("\n".join(details), end="\n" if details else "", file=sys.stderr)
    sys.exit(1 if wrong else 0)


main()
