"""Merges models whose weights lie in several folders, and loads what comes out in the libraries that wrote them.

    python tests/peer/parts.py --weld target/release/weld --work target/parts-work

Needs diffusers and sentence-transformers beside torch and transformers. The models are tiny
and random: a pipeline of Stable Diffusion's kind (UNet, VAE, CLIP text encoder, tokenizer,
scheduler), whole and in shards, in safetensors and in pickles; a sentence-transformers model
with a Dense module; heads of BGE-M3 as FlagEmbedding saves them. Each pair is merged by
`linear`. The output is loaded by its own library, every value is compared with the mean that
torch computes, an image or an embedding is made, and `weld check` and `weld verify` must pass.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
sys.dont_write_bytecode = True
warnings.filterwarnings("ignore")

import diffusers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, Pooling, Transformer

transformers.utils.logging.set_verbosity_error()
diffusers.utils.logging.set_verbosity_error()

TOKENS = ["<|startoftext|>", "<|endoftext|>"] + [chr(ord("a") + at) + end for at in range(26) for end in ("", "</w>")]


def clip_tokenizer(folder):
    """A tokenizer of CLIP's kind with letters only."""
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: at for at, token in enumerate(TOKENS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def pipeline(seed, work):
    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=16)
    config = transformers.CLIPTextConfig(
        vocab_size=len(TOKENS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
    )
    return diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=transformers.CLIPTextModel(config),
        tokenizer=clip_tokenizer(work / f"clip-{seed}"),
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def embedder(seed, work):
    torch.manual_seed(seed)
    base = work / f"bert-{seed}"
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    transformers.BertModel(config).save_pretrained(base)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [chr(ord("a") + at) for at in range(25)]
    (base / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizer(str(base / "vocab.txt")).save_pretrained(base)
    modules = [Transformer(str(base)), Pooling(16), Dense(16, 4)]
    return SentenceTransformer(modules=modules, device="cpu")


class Case:
    def __init__(self, arguments, name):
        self.weld = arguments.weld
        self.folder = arguments.work / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def run(self, *command):
        done = subprocess.run([self.weld, *command], cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{self.folder.name}: weld {' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def merge(self, *more):
        recipe = "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: a}, {model: b}]\n"
        (self.folder / "recipe.yml").write_text(recipe)
        self.run("merge", "recipe.yml", "out", "--force", "-q", *more)
        for command in ["check", "verify"]:
            self.run(command, "out")
        return self.folder / "out"


def is_mean(what, a, b, out):
    """Fails unless every value of the state dict `out` is the mean of those of `a` and `b`."""
    if a.keys() != out.keys():
        sys.exit(f"{what}: other tensors: {sorted(a.keys() ^ out.keys())}")
    for name, value in out.items():
        expected = a[name]
        if value.is_floating_point():
            expected = (a[name].double() + b[name].double()) / 2
        worst = (expected - value).abs().max().item()
        if worst > 1e-6:
            sys.exit(f"{what}: {name} is off by {worst}")


def components(pipe):
    found = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {name: part.state_dict() for name, part in found.items()}


def pipelines(arguments):
    case = Case(arguments, "pipeline")
    pipes = [pipeline(seed, case.folder) for seed in (1, 2)]
    a, b = map(components, pipes)
    for how, save, more in [
        ("safetensors", {}, []),
        ("shards of the inputs", {"max_shard_size": "10KB"}, []),
        ("shards of the output", {}, ["--shard-size", "10000"]),
        ("pickles", {"safe_serialization": False}, []),
    ]:
        for name, pipe in zip("ab", pipes):
            shutil.rmtree(case.folder / name, ignore_errors=True)
            pipe.save_pretrained(case.folder / name, **save)
        out = case.merge(*more)
        loaded = diffusers.DiffusionPipeline.from_pretrained(out)
        merged = components(loaded)
        if merged.keys() != {"unet", "vae", "text_encoder"}:
            sys.exit(f"{how}: components {merged.keys()}")
        for part in merged:
            is_mean(f"{how}, {part}", a[part], b[part], merged[part])
        loaded.set_progress_bar_config(disable=True)
        image = loaded("a b c", num_inference_steps=1, output_type="np", height=16, width=16).images[0]
        print(f"pipeline, {how}: {sum(map(len, merged.values()))} tensors, an image of {image.shape}")
    # A single component merges too, and its class loads it.
    (case.folder / "recipe.yml").write_text(
        "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: a/unet}, {model: b/unet}]\n"
    )
    case.run("merge", "recipe.yml", "unet", "--force", "-q")
    is_mean("unet", a["unet"], b["unet"], diffusers.UNet2DConditionModel.from_pretrained(case.folder / "unet").state_dict())
    print("unet alone: loads")


def embedders(arguments):
    case = Case(arguments, "embedder")
    models = [embedder(seed, case.folder) for seed in (1, 2)]
    for name, model in zip("ab", models):
        model.save_pretrained(str(case.folder / name))
    loaded = SentenceTransformer(str(case.merge()), device="cpu")
    a, b, out = (model.state_dict() for model in [*models, loaded])
    is_mean("embedder", a, b, out)
    print(f"sentence-transformers: {len(out)} tensors, an embedding of {loaded.encode('a b').shape}")


def heads(arguments):
    case = Case(arguments, "heads")
    saved = {}
    for seed, name in enumerate("ab"):
        model = embedder(seed + 1, case.folder)
        model.save_pretrained(str(case.folder / name))
        for head, size in [("colbert_linear", 16), ("sparse_linear", 1)]:
            saved[name, head] = torch.nn.Linear(16, size).state_dict()
            torch.save(saved[name, head], case.folder / name / f"{head}.pt")
    out = case.merge()
    for head in ["colbert_linear", "sparse_linear"]:
        loaded = torch.load(out / f"{head}.pt", map_location="cpu", weights_only=True)
        is_mean(head, saved["a", head], saved["b", head], loaded)
        print(f"{head}.pt: {len(loaded)} tensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weld", required=True, type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--work", required=True, type=lambda path: Path(path).resolve())
    arguments = parser.parse_args()
    versions = [(module.__name__, module.__version__) for module in (diffusers, transformers, torch)]
    print(", ".join(f"{name} {version}" for name, version in versions))
    pipelines(arguments)
    embedders(arguments)
    heads(arguments)


if __name__ == "__main__":
    main()
