"""Vocabularies aligned by token: weld against the peer, row by row by token string.

    python tests/peer/tokenizer.py --weld target/release/weld --work target/peer-work [--other PYTHON]

Makes tiny models whose tokenizers (byte-level BPE, Unigram, WordPiece) differ in their
added tokens and in what they were trained on, merges them with both tools in float32,
and compares: the same tokens; for each token the same row in every tensor that has one
(within 4e-6 of the largest magnitude); the same tokens for sample texts, from the
tokenizers that both wrote, in this transformers and in that of --other.
"""

import argparse
import json
import subprocess
import sys
import zlib
from pathlib import Path

sys.dont_write_bytecode = True

if "--encode" not in sys.argv:
    import peer

import safetensors.torch
import tokenizers as tk
import torch
import transformers as tf
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

CORPORA = {
    "common": ["the cat sat on the mat", "a dog and a cat", "over the lazy dog", "no news is good news"] * 4,
    "other": ["le chat est sur la table", "un chien et un chat", "pas de nouvelles", "the table is a dog"] * 4,
}
ADDED = {"base": ["<pad>"], "a": ["<pad>", "<a>", "<both>"], "b": ["<both>", "<b>", "<pad>"], "c": ["<c>"]}
SAMPLES = [
    "the cat sat on the mat",
    "le chat est sur la table",
    "<a>the <both>dog<b> and<pad>",
    "news <c> nouvelles <new> <zero>x",
    "ünïcode, and  spaces\nlines",
]
RECIPES = {
    "union": "tokenizer: {{source: union}}",
    "union short": "tokenizer_source: union",
    "base": "tokenizer_source: base",
    "model": "tokenizer_source: {b}",
    "padded": "tokenizer: {{source: union, pad_to_multiple_of: 64}}",
    "rules": """tokenizer:
  source: union
  tokens:
    <zero>: {{source: {{kind: zero}}}}
    <both>: {{source: {{kind: model_token, model: {b}, token: <b>}}, force: true}}
    <a>: {{source: {a}}}
    <new>: {{source: {{kind: model_token, model: {a}, token_id: 7}}}}
    <pad>: {{source: {b}, force: true}}""",
    "rules of base": """tokenizer:
  source: base
  tokens:
    <a>: {{source: {a}}}
    <b>: {{source: {{kind: model_token, model: {a}, token: <a>}}}}""",
}
METHODS = {
    "linear": "merge_method: linear\nmodels:\n- {{model: {base}, parameters: {{weight: 0.2}}}}\n"
    "- {{model: {a}, parameters: {{weight: 0.5}}}}\n- {{model: {b}, parameters: {{weight: 0.3}}}}\n",
    "linear with a base": "merge_method: linear\nbase_model: {base}\nmodels:\n- {{model: {base}, parameters: {{weight: 0.2}}}}\n"
    "- {{model: {a}, parameters: {{weight: 0.5}}}}\n- {{model: {b}, parameters: {{weight: 0.3}}}}\n",
    "task_arithmetic": "merge_method: task_arithmetic\nbase_model: {base}\nmodels:\n"
    "- {{model: {a}, parameters: {{weight: 0.5}}}}\n- {{model: {b}, parameters: {{weight: 0.3}}}}\n",
}


def trained(kind, corpus):
    """A tokenizer of one kind, trained in memory."""
    special = ["<unk>", "<s>", "</s>"]
    if kind == "bpe":
        tokenizer = tk.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    elif kind == "unigram":
        tokenizer = tk.Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>")
    else:
        tokenizer = tk.Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=80, special_tokens=special)
    tokenizer.train_from_iterator(CORPORA[corpus], trainer)
    return tokenizer


def make(folder, kind, name, corpus, tied):
    """One model with its tokenizer."""
    tokenizer = trained(kind, corpus)
    tokenizer.add_special_tokens([tk.AddedToken(token, normalized=False) for token in ADDED[name]])
    wrapped = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    wrapped.save_pretrained(folder)
    size = tokenizer.get_vocab_size()
    config = dict(
        vocab_size=size, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2, pad_token_id=None,
    )
    model = tf.Qwen2ForCausalLM(tf.Qwen2Config(**config)) if tied else tf.LlamaForCausalLM(tf.LlamaConfig(**config))
    generator = torch.Generator().manual_seed(zlib.crc32(f"{kind} {name}".encode()))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)


def tensors(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= safetensors.torch.load_file(path)
    return found


def vocabulary(folder):
    return tk.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()


def compared(theirs, ours):
    """What differs between two outputs, and the largest difference of a row, in parts of the largest magnitude."""
    found, worst = [], 0.0
    their_ids, our_ids = vocabulary(theirs), vocabulary(ours)
    if set(their_ids) != set(our_ids):
        return [f"tokens: {sorted(set(their_ids) ^ set(our_ids))[:8]}"], worst
    expected, made = tensors(theirs), tensors(ours)
    if set(expected) != set(made):
        return [f"tensors: {sorted(set(expected) ^ set(made))}"], worst
    order = sorted(their_ids)
    for name, tensor in expected.items():
        other = made[name]
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            if len(tensor) != len(other):
                found.append(f"{name}: {len(tensor)} rows and {len(other)}")
            padding = (tensor[len(order) :], other[len(order) :])
            tensor, other = tensor[[their_ids[t] for t in order]], other[[our_ids[t] for t in order]]
            if len(padding[0]) and not torch.allclose(*padding, atol=1e-5):
                found.append(f"{name}: other padding")
        difference = float((tensor.double() - other.double()).abs().max() / tensor.abs().max())
        worst = max(worst, difference)
        if difference > 4e-6:
            found.append(f"{name}: off by {difference:.1e}")
    sizes = [json.loads((folder / "config.json").read_text())["vocab_size"] for folder in (theirs, ours)]
    if len(set(sizes)) > 1:
        found.append(f"vocab_size: {sizes}")
    return found, worst


def encode(folders):
    """For each folder, the tokens of each sample."""
    result = []
    for folder in folders:
        tokenizer = tf.PreTrainedTokenizerFast.from_pretrained(folder)
        ids = [tokenizer(sample, add_special_tokens=False).input_ids for sample in SAMPLES]
        result.append([tokenizer.convert_ids_to_tokens(sample) for sample in ids])
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weld", type=Path, default=Path("target/release/weld"))
    parser.add_argument("--work", type=Path, default=Path("target/peer-work"))
    parser.add_argument("--other", help="a Python with another transformers")
    parser.add_argument("--encode", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.encode is not None:
        print(json.dumps(encode(arguments.encode)))
        return 0
    work, bad, pairs, lines = arguments.work.resolve() / "tokenizer", 0, [], []
    for kind in ("bpe", "unigram", "wordpiece"):
        for same, tied in ((True, False), (False, False), (True, True)):
            if tied and kind != "bpe":
                continue
            family = f"{kind}-{'added' if same else 'trained'}{'-tied' if tied else ''}"
            paths = {name: work / family / name for name in ("base", "a", "b")}
            for name, folder in paths.items():
                make(folder, kind, name, "other" if name == "b" and not same else "common", tied)
            for method, head in METHODS.items():
                for recipe, key in RECIPES.items():
                    based = "base_model" in head
                    if recipe.endswith("base") and not based:
                        continue  # the peer takes another model for the base in each run
                    text = (head + key).format(**paths) + "\ndtype: float32\n"
                    out = work / family / "out" / f"{method} {recipe}".replace(" ", "-")
                    out.mkdir(parents=True, exist_ok=True)
                    (out / "recipe.yml").write_text(text)
                    label = f"{family:18} {method:18} {recipe:14}"
                    try:
                        peer.run(text, out / "peer")
                        failed = None
                    except Exception as error:
                        failed = peer.first_line(error)
                    run = subprocess.run(
                        [arguments.weld, "merge", out / "recipe.yml", out / "weld", "--force", "-q"],
                        capture_output=True, text=True,
                    )
                    if run.returncode:
                        bad += 1
                        lines.append(f"BAD {label} weld: {run.stderr.strip()} (peer: {failed or 'merges'})")
                    elif failed:
                        lines.append(f"    {label} peer fails: {failed}")
                        pairs.append((label, None, out / "weld"))
                    else:
                        found, worst = compared(out / "peer", out / "weld")
                        bad += bool(found)
                        lines.append(f"{'BAD' if found else 'ok '} {label} {worst:.0e} {'; '.join(found)}")
                        # Its added tokens, too, are those of another model.
                        pairs.append((label, out / "peer" if based else None, out / "weld"))
                    print(lines[-1], flush=True)
    for python in [sys.executable, arguments.other]:
        if not python:
            continue
        folders = [str(folder) for _, theirs, ours in pairs for folder in (theirs or ours, ours)]
        run = subprocess.run(
            [python, __file__, "--encode", *folders], capture_output=True, text=True, check=True
        )
        encoded = json.loads(run.stdout.splitlines()[-1])
        differ = 0
        for (label, _, _), theirs, ours in zip(pairs, encoded[::2], encoded[1::2]):
            for sample, expected, found in zip(SAMPLES, theirs, ours):
                if expected != found:
                    differ += 1
                    print(f"BAD {label} {sample!r}: {expected} and {found}")
        bad += differ
        print(f"{python}: {len(pairs) * len(SAMPLES)} samples encoded, {differ} differ")
    print(f"{len(lines)} merges, {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
