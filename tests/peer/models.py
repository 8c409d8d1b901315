"""Tiny random models to merge: a base and three fine-tunes of it, by seed.

    python tests/peer/models.py DIR [--family X]

writes DIR/<family>/<dtype>/{base,a,b,c}. The numbers depend on the family, the
parameter's name and the seed alone, never on how transformers initialises.
"""

import argparse
import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as tf

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
NAMES = ("base", "a", "b", "c")
LAYERS = 4
VOCAB = 160

DECODER = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=3,
)


@dataclass
class Family:
    """How one family's models are built and stored."""

    build: callable
    # max_shard_size of base, a, b, c; None writes one file.
    shards: tuple = (None, None, None, None)


def llama(**over):
    return tf.LlamaForCausalLM(tf.LlamaConfig(**DECODER | dict(tie_word_embeddings=False) | over))


def qwen2():
    return tf.Qwen2ForCausalLM(tf.Qwen2Config(**DECODER, tie_word_embeddings=True))


def qwen3():
    config = tf.Qwen3Config(**DECODER, head_dim=16, tie_word_embeddings=False)
    return tf.Qwen3ForCausalLM(config)


def mistral():
    config = tf.MistralConfig(**DECODER, sliding_window=64, tie_word_embeddings=False)
    return tf.MistralForCausalLM(config)


def gemma3():
    config = tf.Gemma3TextConfig(
        **DECODER,
        head_dim=16,
        sliding_window=32,
        layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
        tie_word_embeddings=True,
    )
    return tf.Gemma3ForCausalLM(config)


def bert():
    config = tf.BertConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=3,
    )
    return tf.BertForMaskedLM(config)


def gpt_neox():
    config = tf.GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    return tf.GPTNeoXForCausalLM(config)


FAMILIES = {
    "llama": Family(llama),
    "llama-sharded": Family(llama, shards=("100KB", "60KB", None, "200KB")),
    "qwen2-tied": Family(qwen2),
    "qwen3": Family(qwen3),
    "mistral": Family(mistral),
    "gemma3": Family(gemma3),
    "bert": Family(bert),
    "gpt-neox": Family(gpt_neox),
}


def generator(*key):
    """A random stream of its own for each thing that is drawn."""
    return torch.Generator().manual_seed(zlib.crc32("/".join(map(str, key)).encode()))


def base_weight(name, parameter, gen):
    """Matrices are N(0, 0.05); norms and biases stay near what they start at."""
    noise = torch.randn(parameter.shape, generator=gen)
    if parameter.dim() >= 2:
        return 0.05 * noise
    start = 1.0 if parameter.float().mean() > 0.5 else 0.0
    return start + 0.1 * noise


def fine_tune_deltas(base, gen):
    """Deltas of a, b and c.

    a: 5 % of the weight's rms, a tenth of it untouched. b: 8 %, some elements
    moved just as in a, some just the other way (a tied sign vote). c: 1.2 %,
    half untouched: near enough to the base that slerp takes its linear branch.
    """
    rms = base.square().mean().sqrt()

    def normal(scale, untouched):
        delta = scale * rms * torch.randn(base.shape, generator=gen)
        return delta.masked_fill(torch.rand(base.shape, generator=gen) < untouched, 0.0)

    a = normal(0.05, 0.10)
    b = normal(0.08, 0.05)
    fate = torch.rand(base.shape, generator=gen)
    b = torch.where(fate < 0.05, a, b)
    b = torch.where(fate > 0.98, -a, b)
    c = normal(0.012, 0.50)
    return {"base": torch.zeros_like(base), "a": a, "b": b, "c": c}


def write_tokenizer(folder, vocab):
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<unk>", "<s>", "</s>", "<pad>"]
    words = special + [f"w{i}" for i in range(vocab - len(special))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "model_max_length": 128,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def write(folder, family, dtype, seed=1, names=NAMES, build=None, shards=None, vocab=VOCAB):
    """Writes one family's base and fine-tunes, as `names`, into `folder`."""
    build = build or FAMILIES[family].build
    shards = shards or FAMILIES[family].shards
    for which, name, shard in zip(NAMES, names, shards):
        model = build()
        for key, parameter in model.named_parameters():
            gen = generator(seed, family, key)
            base = base_weight(key, parameter.data, gen)
            parameter.data.copy_(base + fine_tune_deltas(base, gen)[which])
        out = Path(folder) / name
        shutil.rmtree(out, ignore_errors=True)
        options = {"max_shard_size": shard} if shard else {}
        model.to(DTYPES[dtype]).save_pretrained(out, **options)
        write_tokenizer(out, vocab)


def ensure(root, family, dtype):
    """The folder of one family's models in one dtype, made when it is not there."""
    folder = Path(root) / family / dtype
    done = folder / ".made"
    stamp = f"{zlib.crc32(Path(__file__).read_bytes())} transformers {tf.__version__}"
    if not done.exists() or done.read_text() != stamp:
        write(folder, family, dtype)
        done.write_text(stamp)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument("--family", choices=FAMILIES, action="append")
    args = parser.parse_args()
    tf.utils.logging.disable_progress_bar()
    for family in args.family or FAMILIES:
        for dtype in DTYPES:
            print(ensure(args.dir, family, dtype))
