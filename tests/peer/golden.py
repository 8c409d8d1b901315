"""Writes golden cases: tiny models, recipes, and what the peer makes of them.

Where the peer keeps an arbitrary one of equally large elements, the golden output
keeps the one of lowest index. No case has a sign vote that rounding decides. Where
float32's noise decides for a whole tensor, it is what the peer makes in float64; where
weld mends the method, it is the method mended.
"""

import contextlib
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
        "nuslerp-base",
        "nuslerp-rows",
        "multislerp-base",
        "karcher",
        "model-stock",
        "model-stock-rows",
        "nearswap",
        "ram-epsilon",
        "ramplus-r",
        "della-1",
        "della-linear-1",
        "breadcrumbs",
        "breadcrumbs-gamma",
        "breadcrumbs-ties-gamma",
        "arcee-fusion",
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
        "sce",
        "sce-0.1-int8",
    ),
}

# Other families: layers that the config lists one by one, a tower that looks at images,
# layers of two kinds.
FAMILIES = {
    "qwen2-tied": ("passthrough-stack", "slerp-example"),
    "gemma3-vision": ("passthrough-stack", "task-arithmetic"),
    "deepseek-v3": ("passthrough-stack", "linear-gradient"),
}

# Methods that decide for a whole tensor, so that float32's noise is more than noise.
DECIDING = ("arcee_fusion", "sce")

SMALL = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2)


@contextlib.contextmanager
def small():
    """Has models.py build smaller models."""
    text = SMALL | dict(vocab_size=VOCAB, num_key_value_heads=1, max_position_embeddings=32)
    kept = []
    for config, over in ((models.DECODER, text), (models.GEMMA3_TEXT, text), (models.VISION, SMALL)):
        kept.append((config, dict(config)))
        config.update(over)
    try:
        yield
    finally:
        for config, before in kept:
            config.update(before)


def expected(recipe_text, method, architecture=peer.THEIR_ARCHITECTURE):
    """The peer's output, which must not hang on how float32 happens to round.

    So that a plain comparison is fair, rounding may decide no sign vote, and
    computing in float64 may change 0.5 % of 16-bit elements at most, by one step.
    """
    with tempfile.TemporaryDirectory() as scratch, peer.lowest_index():
        choices = peer.Choices()
        peer.run(recipe_text, scratch, choices, architecture)
        votes = [key for key in choices.notes if key.endswith("|votes")]
        assert not votes, f"rounding decides a vote in {votes[0]}:\n{recipe_text}"
        single = peer.tensors_of(scratch)
        peer.run(peer.in_float64(recipe_text), scratch, architecture=architecture)
        double = peer.tensors_of(scratch)
    if method in DECIDING:
        return double
    for key, tensor in choices.notes.items():
        name, _, note = key.partition("|")
        if note == "mended":
            single[name] = double[name] = tensor.to(single[name].dtype)
    judgement = compare.judge(double, single)
    assert not judgement.differs, f"{judgement.verdict()}:\n{recipe_text}"
    if judgement.sixteen_bit:
        share = judgement.unequal / judgement.elements
        assert share <= 0.005, f"float64 changes {share:.2%} of elements:\n{recipe_text}"
    return single


def write_models(root, family, dtype, build):
    """Writes base, a, b, c; gives their folders by name."""
    start = "" if family == "golden" else f"{family}-"
    stored = {name: f"{start}{name}-{dtype}" for name in models.NAMES}
    models.write(
        root / "models",
        family,
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
    return stored


def write_case(root, name, recipe, dtype, stored, architecture=peer.THEIR_ARCHITECTURE):
    beside = {which: f"../models/{folder}" for which, folder in stored.items()}
    placed = {which: root / "models" / folder for which, folder in stored.items()}
    tensors = expected(recipe.texts(dtype, placed)[0], recipe.method, architecture)
    (root / name).mkdir()
    (root / name / "recipe.yml").write_text(recipe.texts(dtype, beside)[1])
    safetensors.torch.save_file(tensors, root / name / "expected.safetensors", {"format": "pt"})


def write(root, known=None):
    """Writes root/models/<name>-<dtype> and root/<recipe>-<dtype>, for the methods that are known."""
    root = Path(root)
    shutil.rmtree(root, ignore_errors=True)
    tf.utils.logging.disable_progress_bar()
    by_name = {recipe.name: recipe for recipe in recipes.RECIPES}
    with small():
        for dtype, names in CASES.items():
            stored = write_models(root, "golden", dtype, models.llama)
            for name in names:
                if known is None or by_name[name].method in known:
                    write_case(root, f"{name}-{dtype}", by_name[name], dtype, stored)
        for family, names in FAMILIES.items():
            stored = write_models(root, family, "bf16", models.FAMILIES[family].build)
            for name in names:
                aside = peer.architecture_from_tensors
                write_case(root, f"{family}-{name}", by_name[name], "bf16", stored, aside)
    asked = "".join(path.read_text() for path in root.glob("*/recipe.yml"))
    for folder in (root / "models").iterdir():
        if f"../models/{folder.name}\n" not in asked.replace("}", "\n").replace(",", "\n"):
            shutil.rmtree(folder)
    files = [path for path in root.rglob("*") if path.is_file()]
    cases = sum(path.name == "recipe.yml" for path in files)
    print(f"{cases} cases, {sum(path.stat().st_size for path in files) / 1e6:.2f} MB")
