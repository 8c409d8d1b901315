"""Writes golden cases: tiny models, recipes, and what the peer makes of them.

Where the peer's TIES keeps an arbitrary one of equally large elements, the golden
output keeps the one of lowest index. No case has a sign vote that rounding decides.
"""

import shutil
import tempfile
from pathlib import Path

import safetensors.torch
import transformers as tf

import compare
import models
import peer
import recipes

VOCAB = 32
SEED = 1

# Which recipes, for which dtype of the models.
CASES = {
    "f32": (
        "linear",
        "linear-filters",
        "slerp-example",
        "slerp-nearly-parallel",
        "task-arithmetic-negative",
        "ties-0.5",
        "ties-density-gradient",
        "ties-rescaled",
        "ties-tiny-density",
        "dare-linear-1",
        "passthrough-scaled",
        "slices-linear",
        "to-bf16",
    ),
    "bf16": (
        "linear-gradient",
        "slerp",
        "task-arithmetic-lambda-gradient",
        "ties-1-unit",
        "ties-0.5-unit-lambda",
        "ties-example",
        "dare-ties-1-normalised",
        "passthrough-stack",
        "slices-slerp",
        "slices-ties",
        "to-f16",
    ),
}


def build():
    return models.llama(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )


def expected(recipe_text):
    """The peer's output, which must not hang on how float32 happens to round.

    So that a plain comparison is fair, rounding may decide no sign vote, and
    computing in float64 may change 0.5 % of 16-bit elements at most, by one step.
    """
    with tempfile.TemporaryDirectory() as scratch, peer.lowest_index():
        choices = peer.Choices()
        peer.run(recipe_text, scratch, choices)
        votes = [key for key in choices.notes if key.endswith("|votes")]
        assert not votes, f"rounding decides a vote in {votes[0]}:\n{recipe_text}"
        single = peer.tensors_of(scratch)
        peer.run(peer.in_float64(recipe_text), scratch)
        double = peer.tensors_of(scratch)
    judgement = compare.judge(double, single)
    assert not judgement.differs, f"{judgement.verdict()}:\n{recipe_text}"
    if judgement.sixteen_bit:
        share = judgement.unequal / judgement.elements
        assert share <= 0.005, f"float64 changes {share:.2%} of elements:\n{recipe_text}"
    return single


def write(root):
    """Writes root/models/<name>-<dtype> and root/<recipe>-<dtype>."""
    root = Path(root)
    shutil.rmtree(root, ignore_errors=True)
    tf.utils.logging.disable_progress_bar()
    by_name = {recipe.name: recipe for recipe in recipes.RECIPES}
    for dtype, names in CASES.items():
        stored = {name: f"{name}-{dtype}" for name in models.NAMES}
        models.write(
            root / "models",
            "golden",
            dtype,
            seed=SEED,
            names=stored.values(),
            build=build,
            shards=(None,) * len(stored),
            vocab=VOCAB,
        )
        for folder in stored.values():
            for extra in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
                (root / "models" / folder / extra).unlink(missing_ok=True)
        for name in names:
            case = root / f"{name}-{dtype}"
            case.mkdir()
            beside = {which: f"../models/{folder}" for which, folder in stored.items()}
            placed = {which: root / "models" / folder for which, folder in stored.items()}
            (case / "recipe.yml").write_text(by_name[name].texts(dtype, beside)[1])
            tensors = expected(by_name[name].texts(dtype, placed)[0])
            safetensors.torch.save_file(tensors, case / "expected.safetensors", {"format": "pt"})
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    print(f"{sum(map(len, CASES.values()))} cases, {size / 1e6:.2f} MB")
