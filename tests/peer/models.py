"""Tiny random models to merge: a base and three fine-tunes of it, by seed.

    python tests/peer/models.py DIR [--family X] [--dtype D]

writes DIR/<family>/<dtype>/{base,a,b,c}. The numbers depend on the family, the
parameter's name and the seed alone, never on how transformers initialises.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import safetensors.torch
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


ENCODER = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    max_position_embeddings=64,
    pad_token_id=3,
)

VISION = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=16,
    patch_size=8,
)

# The ids of images in the vision-language models: the last ones of the vocabulary.
IMAGE_IDS = dict(image_token_id=150, video_token_id=151, vision_start_token_id=152, vision_end_token_id=153)


@dataclass
class Family:
    """How one family's models are built and stored."""

    # What the table calls it.
    title: str
    build: callable
    # max_shard_size of base, a, b, c; None writes one file.
    shards: tuple = (None, None, None, None)
    # Turns the tensors that transformers saves into those of another age.
    restore: callable = None
    # Saved by transformers 4.57, in an environment of its own.
    old: bool = False
    # Whether it has one stack of layers that slices can cut.
    stacked: bool = True
    # Whether all layers have the same tensors.
    alike: bool = True


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


def gemma2():
    return tf.Gemma2ForCausalLM(tf.Gemma2Config(**DECODER, head_dim=16, sliding_window=32))


GEMMA3_TEXT = DECODER | dict(
    head_dim=16,
    sliding_window=32,
    layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
)


def gemma3():
    return tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**GEMMA3_TEXT, tie_word_embeddings=True))


def gemma3_vision():
    config = tf.Gemma3Config(
        text_config=GEMMA3_TEXT,
        vision_config=VISION,
        mm_tokens_per_image=1,
        image_token_index=150,
        boi_token_index=151,
        eoi_token_index=152,
    )
    return tf.Gemma3ForConditionalGeneration(config)


def phi3():
    config = tf.Phi3Config(**DECODER, original_max_position_embeddings=128, tie_word_embeddings=False)
    return tf.Phi3ForCausalLM(config)


def olmo2():
    return tf.Olmo2ForCausalLM(tf.Olmo2Config(**DECODER, tie_word_embeddings=False))


def gpt2():
    config = tf.GPT2Config(
        vocab_size=VOCAB,
        n_embd=48,
        n_layer=LAYERS,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    return tf.GPT2LMHeadModel(config)


def falcon(**over):
    config = dict(
        vocab_size=VOCAB,
        hidden_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    return tf.FalconForCausalLM(tf.FalconConfig(**config | over))


def falcon_new():
    """The decoder of Falcon 40B: two norms in a layer, grouped queries."""
    return falcon(new_decoder_architecture=True, num_kv_heads=2)


def mamba():
    config = tf.MambaConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        num_hidden_layers=LAYERS,
        state_size=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    return tf.MambaForCausalLM(config)


def mixtral():
    config = tf.MixtralConfig(
        **DECODER, num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False
    )
    return tf.MixtralForCausalLM(config)


def qwen3_moe():
    config = tf.Qwen3MoeConfig(
        **DECODER,
        head_dim=16,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        tie_word_embeddings=False,
    )
    return tf.Qwen3MoeForCausalLM(config)


def deepseek_v3():
    config = tf.DeepseekV3Config(
        **DECODER | dict(num_key_value_heads=4),
        moe_intermediate_size=24,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=12,
        tie_word_embeddings=False,
    )
    return tf.DeepseekV3ForCausalLM(config)


def bert():
    return tf.BertForMaskedLM(tf.BertConfig(**ENCODER))


def roberta():
    return tf.RobertaForMaskedLM(tf.RobertaConfig(**ENCODER))


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


def t5():
    config = tf.T5Config(
        vocab_size=VOCAB,
        d_model=48,
        d_kv=12,
        d_ff=96,
        num_layers=LAYERS,
        num_decoder_layers=LAYERS,
        num_heads=4,
        pad_token_id=3,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    return tf.T5ForConditionalGeneration(config)


def whisper():
    config = tf.WhisperConfig(
        vocab_size=VOCAB,
        num_mel_bins=8,
        d_model=48,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_source_positions=16,
        max_target_positions=32,
        pad_token_id=3,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return tf.WhisperForConditionalGeneration(config)


def vit():
    config = tf.ViTConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
        num_labels=5,
    )
    return tf.ViTForImageClassification(config)


def clip():
    text = ENCODER | dict(bos_token_id=1, eos_token_id=2)
    return tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24))


def qwen2_vl():
    config = tf.Qwen2VLConfig(
        text_config=DECODER | dict(rope_scaling=dict(type="mrope", mrope_section=[2, 2, 2])),
        vision_config=dict(
            depth=2,
            embed_dim=32,
            hidden_size=48,
            num_heads=2,
            mlp_ratio=2,
            patch_size=4,
            spatial_merge_size=2,
        ),
        **IMAGE_IDS,
        tie_word_embeddings=False,
    )
    return tf.Qwen2VLForConditionalGeneration(config)


def causal_mask(size):
    return torch.tril(torch.ones(size, size)).view(1, 1, size, size)


def gpt2_of_the_hub(tensors):
    """As openai-community/gpt2 is stored: no prefix, and the causal masks."""
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    masks = {f"h.{layer}.attn.bias": causal_mask(64) for layer in range(LAYERS)}
    return tensors | masks


def gpt_neox_of_the_hub(tensors):
    """As Pythia is stored: masks of truth values, and the rotary frequencies."""
    for layer in range(LAYERS):
        attention = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{attention}.bias"] = causal_mask(128).bool()
        tensors[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{attention}.rotary_emb.inv_freq"] = 10000.0 ** (-torch.arange(0, 3) / 3)
    return tensors


def bert_of_the_hub(tensors):
    """As older transformers stored it: with a pooler, the positions, and both copies of the tied head."""
    gen = generator("pooler")
    tensors["bert.pooler.dense.weight"] = 0.05 * torch.randn(48, 48, generator=gen)
    tensors["bert.pooler.dense.bias"] = 0.1 * torch.randn(48, generator=gen)
    tensors["bert.embeddings.position_ids"] = torch.arange(64).view(1, -1)
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    return tensors


FAMILIES = {
    "llama": Family("Llama", llama),
    "llama-sharded": Family("Llama, sharded", llama, shards=("100KB", "60KB", None, "200KB")),
    "qwen2-tied": Family("Qwen2, tied", qwen2),
    "qwen3": Family("Qwen3", qwen3),
    "mistral": Family("Mistral", mistral),
    "gemma2": Family("Gemma 2", gemma2),
    "gemma3": Family("Gemma 3", gemma3),
    "gemma3-vision": Family("Gemma 3, vision", gemma3_vision),
    "gemma3-vision-old": Family("Gemma 3, vision, saved by 4.57", gemma3_vision, old=True),
    "phi3": Family("Phi-3", phi3),
    "olmo2": Family("OLMo 2", olmo2),
    "falcon": Family("Falcon", falcon),
    "falcon-new": Family("Falcon, new decoder", falcon_new),
    "gpt2": Family("GPT-2", gpt2),
    "gpt2-hub": Family("GPT-2, as on the Hub", gpt2, restore=gpt2_of_the_hub),
    "gpt-neox": Family("GPT-NeoX", gpt_neox),
    "gpt-neox-hub": Family("GPT-NeoX, as on the Hub", gpt_neox, restore=gpt_neox_of_the_hub),
    "mamba": Family("Mamba", mamba),
    "mixtral": Family("Mixtral", mixtral),
    "qwen3-moe": Family("Qwen3-MoE", qwen3_moe),
    "deepseek-v3": Family("DeepSeek-V3", deepseek_v3, alike=False),
    "bert": Family("BERT", bert),
    "bert-hub": Family("BERT, as on the Hub", bert, restore=bert_of_the_hub),
    "roberta": Family("RoBERTa", roberta),
    "t5": Family("T5", t5, stacked=False),
    "whisper": Family("Whisper", whisper, stacked=False),
    "vit": Family("ViT", vit),
    "clip": Family("CLIP", clip, stacked=False),
    "qwen2-vl": Family("Qwen2-VL", qwen2_vl),
}

# transformers 4.57, where tests/peer/setup.sh puts it.
OLD_PYTHON = Path(sys.prefix).parent / "tf457" / "bin" / "python"


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


def trained(model):
    """All that a fine-tune moves: parameters, and float buffers that are stored."""
    stored = model.state_dict().keys()
    yield from model.named_parameters()
    for name, buffer in model.named_buffers():
        if name in stored and buffer.is_floating_point():
            yield name, buffer


def write(folder, family, dtype, seed=1, names=NAMES, build=None, shards=None, vocab=VOCAB):
    """Writes one family's base and fine-tunes, as `names`, into `folder`."""
    build = build or FAMILIES[family].build
    shards = shards or FAMILIES[family].shards
    for which, name, shard in zip(NAMES, names, shards):
        model = build()
        for key, parameter in trained(model):
            gen = generator(seed, family, key)
            base = base_weight(key, parameter.data, gen)
            parameter.data.copy_(base + fine_tune_deltas(base, gen)[which])
        out = Path(folder) / name
        shutil.rmtree(out, ignore_errors=True)
        options = {"max_shard_size": shard} if shard else {}
        model.to(DTYPES[dtype]).save_pretrained(out, **options)
        if family in FAMILIES and FAMILIES[family].restore:
            path = out / "model.safetensors"
            tensors = FAMILIES[family].restore(safetensors.torch.load_file(path))
            floats = {n: t.to(DTYPES[dtype]) for n, t in tensors.items() if t.is_floating_point()}
            safetensors.torch.save_file(tensors | floats, path, {"format": "pt"})
        write_tokenizer(out, vocab)


def ensure(root, family, dtype):
    """The folder of one family's models in one dtype, made when it is not there."""
    folder = Path(root) / family / dtype
    done = folder / ".made"
    version = "4.57" if FAMILIES[family].old else tf.__version__
    stamp = f"{zlib.crc32(Path(__file__).read_bytes())} transformers {version}"
    if not done.exists() or done.read_text() != stamp:
        if FAMILIES[family].old and not tf.__version__.startswith("4."):
            options = ["--family", family, "--dtype", dtype]
            subprocess.run([OLD_PYTHON, __file__, root, *options], check=True, capture_output=True)
        else:
            write(folder, family, dtype)
        done.write_text(stamp)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    args = parser.parse_args()
    tf.utils.logging.disable_progress_bar()
    for family in args.family or FAMILIES:
        for dtype in args.dtype or DTYPES:
            print(ensure(args.dir, family, dtype))
