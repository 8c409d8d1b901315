"""Compares `weld export gguf` with llama.cpp's converter, key by key and tensor by tensor, and runs both files.

    tests/runtimes/setup.sh FOLDER
    FOLDER/venv/bin/python tests/runtimes/gguf.py FOLDER [target/debug/weld] [FAMILY ...]

Makes a small model of each family with random weights and a tokenizer trained here, converts it by both to F32, F16,
BF16 and Q8_0, and prints what differs. The converter knows tokenizers by a digest, which no small one has: it is told
the name, as weld is by --pre-tokenizer.
The F32 files of both are run in llama.cpp, and the model in transformers. The last two columns are the largest
difference of a logit over the largest logit: between the two files, and between ours and transformers.
"""

import io
import json
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
import sentencepiece  # noqa: E402
from sentencepiece import sentencepiece_model_pb2  # noqa: E402
import torch  # noqa: E402
import transformers as t  # noqa: E402
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

t.utils.logging.disable_progress_bar()

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

SIGMOID = dict(
    n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_shared_experts=1, first_k_dense_replace=1,
    norm_topk_prob=True, routed_scaling_factor=1.5, head_dim=16, scoring_func="sigmoid",
)
LONG = dict(
    rope_type="longrope", rope_theta=10000.0, short_factor=[1.0 + 0.1 * i for i in range(8)],
    long_factor=[2.0 + i for i in range(8)], original_max_position_embeddings=512,
)
GEMMA = dict(head_dim=16, hidden_activation="gelu_pytorch_tanh", bos_token_id=1, eos_token_id=2, pad_token_id=3)
GEMMA3 = dict(sliding_window=8, query_pre_attn_scalar=16, num_hidden_layers=6, **GEMMA)
PIECES = dict(bos_token_id=1, eos_token_id=2, pad_token_id=3)

# A name, its classes, what its config has beside the sizes, and its tokenizer.
CASES = {
    "llama": ("Llama", {}, "bytes"),
    "llama-bias": ("Llama", dict(attention_bias=True, tie_word_embeddings=True), "bytes"),
    "llama-llama3": ("Llama", dict(rope_parameters=LLAMA3, head_dim=32), "bytes"),
    "llama-linear": ("Llama", dict(rope_parameters=LINEAR), "bytes"),
    "llama-yarn": ("Llama", dict(rope_parameters=YARN), "bytes"),
    "llama-pieces": ("Llama", PIECES, "pieces"),
    "llama-unigram-pieces": ("Llama", PIECES, "unigram pieces"),
    "llama-fallback": ("Llama", PIECES, "fallback"),
    "llama-unigram": ("Llama", PIECES, "unigram"),
    "llama-words": ("Llama", PIECES, "words"),
    "mistral": ("Mistral", dict(head_dim=32), "bytes"),
    "mistral-pieces": ("Mistral", PIECES, "pieces"),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True), "bytes"),
    "qwen3": ("Qwen3", dict(head_dim=32), "bytes"),
    "granite": ("Granite", dict(attention_multiplier=0.1, embedding_multiplier=3.0, logits_scaling=2.0), "bytes"),
    "olmo2": ("Olmo2", {}, "bytes"),
    "gemma": ("Gemma", GEMMA, "pieces without a space"),
    "gemma2": ("Gemma2", dict(sliding_window=8, query_pre_attn_scalar=16, **GEMMA), "pieces without a space"),
    "gemma3": ("Gemma3", GEMMA3, "pieces without a space"),
    "gemma3-restacked": (
        "Gemma3",
        {**GEMMA3, "layer_types": ["full_attention", "sliding_attention"] * 3},
        "pieces without a space",
    ),
    "phi3": ("Phi3", PIECES, "pieces"),
    "phi3-long": ("Phi3", dict(
        rope_parameters=LONG, max_position_embeddings=1024, original_max_position_embeddings=512, **PIECES
    ), "pieces"),
    "ernie4_5": ("Ernie4_5", dict(head_dim=32, **PIECES), "pieces"),
    "ernie4_5_moe": (
        "Ernie4_5_Moe",
        dict(
            moe_num_experts=4, moe_k=2, moe_intermediate_size=32, moe_num_shared_experts=1, moe_layer_start_index=1,
            num_key_value_heads=1, intermediate_size=32, **PIECES,
        ),
        "pieces",
    ),
    "hunyuan_v1_dense": ("HunYuanDenseV1", dict(head_dim=16, eod_token_id=1), "bytes"),
    "hunyuan_v1_moe": (
        "HunYuanMoEV1",
        dict(
            num_experts=4, moe_topk=[2, 2], moe_intermediate_size=[96, 96], num_shared_expert=[1, 1], head_dim=16,
            eod_token_id=1,
        ),
        "bytes",
    ),
    "mixtral": ("Mixtral", EXPERTS, "bytes"),
    # llama.cpp ignores `norm_topk_prob: false` of qwen3_moe, and `true` of qwen2_moe.
    "qwen3_moe": (
        "Qwen3Moe",
        dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=32, norm_topk_prob=True),
        "bytes",
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=64),
        "bytes",
    ),
    "granitemoe": ("GraniteMoe", EXPERTS, "bytes"),
    "granitemoeshared": ("GraniteMoeShared", dict(shared_intermediate_size=64, **EXPERTS), "bytes"),
    "glm4_moe": (
        "Glm4Moe",
        dict(use_qk_norm=True, num_nextn_predict_layers=0, partial_rotary_factor=0.5, **SIGMOID),
        "bytes",
    ),
    "dots1": ("Dots1", {**SIGMOID, "num_key_value_heads": 4}, "bytes"),
}

# Where a config has another name than the class.
CONFIGS = {"Gemma3": "Gemma3TextConfig"}

# llama.cpp looks GELU up in a table of F16, so that a last bit may become a step of F16, and another in each layer.
NEAR = {"gemma2": 1e-4, "gemma3": 1e-3, "gemma3-restacked": 1e-3}

# What we write otherwise than the converter, on purpose.
OTHERWISE = {
    # It gives all tokens the score -1000, so that llama.cpp merges them in the order of the text.
    "llama-fallback": {"key tokenizer.ggml.scores"},
    # It knows this kind from encoders, of which llama.cpp ends each text.
    "llama-unigram": {"key tokenizer.ggml.add_space_prefix", "key tokenizer.ggml.add_eos_token"},
    # It leaves out which layers have a window, and llama.cpp takes every sixth for one without.
    "gemma3-restacked": {"key gemma3.attention.sliding_window_pattern"},
}

TEXTS = ["the quick brown fox jumps over the lazy dog", "then  there, dog\nfox", "caf\u00e9 \u732b <tool> 42"]
CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"


def samples():
    words = "the quick brown fox jumps over the lazy dog then there tool plain".split()
    return [" ".join(words[i % 13 :] + words[: i % 7]) for i in range(60)]


def save(folder, made, **settings):
    """Writes a tokenizer as it stands."""
    pathlib.Path(folder, "tokenizer.json").write_text(made if isinstance(made, str) else made.to_str())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT, **settings}
    pathlib.Path(folder, "tokenizer_config.json").write_text(json.dumps(settings))


def bytes_tokenizer(folder):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    # Transformers loads the tokenizer of a qwen2 by a class that adds `<|endoftext|>` where it is not there; the
    # converter wants the others of a glm4_moe.
    special = ["<|begin|>", "<|end|>", "<|pad|>", "<|endoftext|>", "[gMASK]", "<|user|>", "<|observation|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(samples(), trainer)
    made.add_tokens(["▁tool", "plain"])
    made.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B:1", special_tokens=[("<|begin|>", 0)]
    )
    fast = t.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>", chat_template=CHAT
    )
    fast.save_pretrained(folder)
    return None


def pieces_tokenizer(folder, kind="bpe", prefix=True):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(samples()), model_writer=model, vocab_size=300, model_type=kind, byte_fallback=True,
        pad_id=3, hard_vocab_limit=False, control_symbols=["<turn>"], minloglevel=2, add_dummy_prefix=prefix,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
    )
    pathlib.Path(folder, "tokenizer.model").write_bytes(model.getvalue())
    size = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()
    added = {size: ("<|call|>", False), size + 1: ("▁▁tool", False), size + 2: ("<extra>", True)}
    settings = {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>",
        "add_bos_token": True, "add_prefix_space": prefix, "chat_template": CHAT,
        "added_tokens_decoder": {id: {"content": text, "special": special} for id, (text, special) in added.items()},
    }
    pathlib.Path(folder, "tokenizer_config.json").write_text(json.dumps(settings))
    pathlib.Path(folder, "added_tokens.json").write_text(json.dumps({"<|call|>": size}))
    read = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return (lambda text: [1] + read.encode(text)) if kind == "bpe" else None


def fallback_tokenizer(folder):
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    held = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=held + [f"<0x{i:02X}>" for i in range(256)])
    made.train_from_iterator(samples(), trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 1)]
    )
    described = json.loads(made.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in held]
    save(folder, json.dumps(described), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    read = Tokenizer.from_str(json.dumps(described))
    return lambda text: read.encode(text).ids


def unigram_tokenizer(folder):
    made = Tokenizer(models.Unigram())
    # The table by which SentencePiece normalises.
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(samples()), model_writer=model, vocab_size=30, minloglevel=2, hard_vocab_limit=False
    )
    described = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    made.normalizer = normalizers.Precompiled(described.normalizer_spec.precompiled_charsmap)
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>", "<pad>"], unk_token="<unk>"
    )
    made.train_from_iterator(samples(), trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 1)]
    )
    save(folder, made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    return lambda text: made.encode(text).ids


def words_tokenizer(folder):
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    made.train_from_iterator(samples(), trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]"}
    save(folder, made, **{f"{name}_token": text for name, text in names.items()})
    return lambda text: made.encode(text).ids


TOKENIZERS = {
    "bytes": bytes_tokenizer,
    "pieces": pieces_tokenizer,
    "pieces without a space": lambda folder: pieces_tokenizer(folder, prefix=False),
    "unigram pieces": lambda folder: pieces_tokenizer(folder, "unigram"),
    "fallback": fallback_tokenizer,
    "unigram": unigram_tokenizer,
    "words": words_tokenizer,
}


def make(name, folder):
    kind, extra, tokenizer = CASES[name]
    torch.manual_seed(0)
    config = getattr(t, CONFIGS.get(kind, f"{kind}Config"))(**{**SIZES, **extra})
    model = getattr(t, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.05 + (1 if tensor.dim() == 1 else 0))
    model.generation_config.top_k = 40
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = True
    model.to(torch.bfloat16).save_pretrained(folder)
    return TOKENIZERS[tokenizer](folder)


# All types in one process, as it takes seconds to start. The model is read once more for each.
# Tokenizers that the converter takes for other families only, or only with code from the Hub, are read as there.
PATCHED = """
import runpy, sys
folder, model, out, tokenizer = sys.argv[1:]
sys.path[:0] = [folder, folder + "/gguf-py"]
from conversion import base, bert, hunyuan, llama
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"
hunyuan.HunYuanMoEModel.set_vocab = base.TextModel.set_vocab
if tokenizer == "words":
    llama.LlamaModel.set_vocab = bert.BertModel.set_vocab
if tokenizer == "unigram":
    llama.LlamaModel.set_vocab = bert.BertModel._xlmroberta_set_vocab
for kind in ["f32", "f16", "bf16", "q8_0"]:
    sys.argv = ["convert", model, "--outfile", out + "/theirs-" + kind + ".gguf", "--outtype", kind]
    runpy.run_path(folder + "/convert_hf_to_gguf.py", run_name="__main__")
"""


def convert(folder, out, tokenizer):
    command = [sys.executable, "-c", PATCHED, str(CONVERTER), str(folder), str(out), tokenizer]
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


class Gelu(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()


def run(folder, ours, theirs):
    """How far our file is from the converter's in llama.cpp, and from the model in transformers."""
    ids = np.random.default_rng(0).integers(3, VOCABULARY - 40, 24).tolist()
    model = t.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for module in model.modules():
        # llama.cpp looks GELU up in a table of F16.
        if "gelu" in type(getattr(module, "act_fn", None)).__name__.lower():
            module.act_fn = Gelu()
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
            cut = make(name, folder)
            failed = convert(folder, top, CASES[name][2])
            for kind in ["f32", "f16", "bf16", "q8_0"]:
                ours, theirs = (pathlib.Path(top, f"{whose}-{kind}.gguf") for whose in ("ours", "theirs"))
                failed = failed or export(folder, ours, kind)
                found = [failed] if failed else list(differences(read(ours), read(theirs)))
                found = [line for line in found if line.split(":")[0] not in OTHERWISE.get(name, ())]
                row.append("same" if not found else f"{len(found)} differ")
                details += [f"  {kind}: {line}" for line in found[:8]]
                if kind == "f32" and not failed:
                    try:
                        distances = run(folder, ours, theirs)
                    except RuntimeError as error:
                        distances = (1.0, 1.0)
                        details.append(f"  llama.cpp: {error}")
                    runs = [f"{x:.1e}" for x in distances]
                    for text in TEXTS if cut else []:
                        if (ids := llama_cpp.tokens(ours, text, ROOT / "lib-llama.cpp")) != cut(text):
                            details.append(f"  {text!r} is cut into {ids}, and must be {cut(text)}")
                    wrong += name not in OTHERWISE and distances[0] != 0.0 or distances[1] > NEAR.get(name, 1e-5)
        wrong += bool(details)
        print(f"| {name} | {' | '.join(row + runs)} |", flush=True)
        print("\n".join(details), end="\n" if details else "", file=sys.stderr)
    sys.exit(1 if wrong else 0)


main()
