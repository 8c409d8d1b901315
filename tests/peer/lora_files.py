"""Holds LoRA files of image models against diffusers: `pipeline+file` is what diffusers fuses.

    python tests/peer/lora_files.py --weld target/debug/weld --work target/lora-files

Needs diffusers, transformers and peft. Small pipelines and transformers with noise for weights get LoRA files in three
spellings: as diffusers writes them (with its config in the header), as kohya's scripts do with the names of diffusers,
and with those of the authors. diffusers loads each and fuses it, in float64; every tensor that weld writes must be that,
rounded once to float32.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import peft
import safetensors.torch
import torch
import transformers

diffusers.utils.logging.set_verbosity_error()
transformers.utils.logging.set_verbosity_error()


def noise(model, seed, scale=0.05):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def unet():
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24, attention_head_dim=4, norm_num_groups=8,
    )


def text_encoder():
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=100, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16,
    ))


def flux():
    return diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=12, axes_dims_rope=(2, 2, 4),
    )


TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1", "conv2", "conv_shortcut", "ff.net.2", "proj_mlp",
           "norm_out.linear", "add_q_proj", "q_proj", "fc1", "downsamplers.0.conv", "upsamplers.0.conv"]


def adapt(model, seed, rank=3, alpha=5):
    """The model with PEFT's adapter; its factors by name."""
    names = [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))]
    targets = [name for name in names if any(name == end or name.endswith("." + end) for end in TARGETS)]
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
    peft.inject_adapter_in_model(config, model)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return {name.replace(".default", ""): parameter.data.clone()
            for name, parameter in model.named_parameters() if "lora_" in name}


def fused(model, factors, scale):
    """`W + scale B A` in float64, by PEFT's own merge."""
    model = model.double()
    with torch.no_grad():
        for _, module in model.named_modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.scaling = {key: scale for key in module.scaling}
                module.merge()
    return {name.replace(".base_layer", ""): tensor.float()
            for name, tensor in model.state_dict().items() if "lora_" not in name}


def kohya(prefix, factors, alpha, names=lambda name: name):
    """The same factors as kohya's scripts write them."""
    out = {}
    for name, tensor in factors.items():
        module, part = name.rsplit(".lora_", 1)
        key = prefix + names(module).replace(".", "_")
        out[f"{key}.lora_{'down' if part.startswith('A') else 'up'}.weight"] = tensor
        out[f"{key}.alpha"] = torch.tensor(float(alpha))
    return out


def weld(binary, folder, model):
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    recipe = folder / "recipe.yml"
    recipe.write_text(f"merge_method: passthrough\nmodels: [{{model: {model}}}]\n")
    done = subprocess.run([binary, "merge", recipe, out, "--quiet"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{model}: {done.stderr}")
    return out


def tensors(folder):
    return {key: tensor for path in sorted(folder.glob("*.safetensors"))
            for key, tensor in safetensors.torch.load_file(path).items()}


def compare(what, found, expected, changed):
    if set(found) != set(expected):
        raise SystemExit(f"{what}: other names: {sorted(set(found) ^ set(expected))[:4]}")
    most = max(float((found[name] - expected[name]).abs().max()) for name in found)
    # One step of float32 at these magnitudes.
    if most > 6e-8:
        worst = max(found, key=lambda name: float((found[name] - expected[name]).abs().max()))
        raise SystemExit(f"{what}: {most:.1e} apart at {worst}")
    print(f"{what:44} {len(found):4} tensors, {changed:3} modules, at most {most:.1e} apart")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weld", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    binary, work = arguments.weld.resolve(), arguments.work.resolve()
    shutil.rmtree(work, ignore_errors=True)

    # A pipeline with two parts, and a file for both.
    folder = work / "sd"
    pipe = folder / "pipe"
    parts = {"unet": noise(unet(), 1), "text_encoder": noise(text_encoder(), 2)}
    for name, part in parts.items():
        part.save_pretrained(pipe / name)
    (pipe / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], '
        '"text_encoder": ["transformers", "CLIPTextModel"]}'
    )
    factors = {name: adapt(part, seed) for seed, (name, part) in enumerate(parts.items(), 5)}
    config = peft.LoraConfig(r=3, lora_alpha=5).to_dict()
    clip = lambda name: name if name.startswith("text_model") else f"text_model.{name}"
    diffusers.StableDiffusionPipeline.save_lora_weights(
        folder / "lora", unet_lora_layers=factors["unet"],
        text_encoder_lora_layers={clip(name): tensor for name, tensor in factors["text_encoder"].items()},
        unet_lora_adapter_metadata=config, text_encoder_lora_adapter_metadata=config,
    )
    file = kohya("lora_unet_", factors["unet"], 5) | kohya("lora_te_", factors["text_encoder"], 5, clip)
    safetensors.torch.save_file({k: v.contiguous() for k, v in file.items()}, folder / "kohya.safetensors")
    expected = {name: fused(part, factors[name], 5 / 3) for name, part in parts.items()}
    for spelling in ["lora", "kohya.safetensors"]:
        out = weld(binary, folder, f"pipe+{spelling}")
        for name in parts:
            found = tensors(out / name)
            wanted = expected[name]
            if set(found) != set(wanted):
                wanted = {key if key in found else f"text_model.{key}": value for key, value in wanted.items()}
            compare(f"{spelling} on the {name}", found, wanted, len(factors[name]) // 2)

    # Flux by itself, in the spelling of diffusers; and the authors' names as diffusers reads them. For `linear1` it has
    # the sizes of the real model, so that is left out here.
    folder = work / "flux"
    model = noise(flux(), 3)
    model.save_pretrained(folder / "model")
    own = adapt(model, 9)
    plain = {f"transformer.{name}": tensor.contiguous() for name, tensor in own.items()}
    safetensors.torch.save_file(plain, folder / "aitoolkit.safetensors")
    out = weld(binary, folder, "model+aitoolkit.safetensors")
    compare("ai-toolkit's file on Flux", tensors(out), fused(model, own, 1.0), len(own) // 2)
    hidden, mlp, rank = 16, 64, 2
    generator = torch.Generator().manual_seed(4)
    draw = lambda *shape: 0.1 * torch.randn(shape, generator=generator)
    file = {}
    for name, rows in [("double_blocks_0_img_attn_qkv", 3 * hidden), ("double_blocks_0_txt_attn_qkv", 3 * hidden),
                       ("single_blocks_0_linear2", hidden),
                       ("double_blocks_0_img_mlp_0", mlp), ("double_blocks_0_img_mod_lin", 6 * hidden)]:
        width = {"single_blocks_0_linear2": hidden + mlp}.get(name, hidden)
        file[f"lora_unet_{name}.lora_down.weight"] = draw(rank, width)
        file[f"lora_unet_{name}.lora_up.weight"] = draw(rows, rank)
        file[f"lora_unet_{name}.alpha"] = torch.tensor(1.0)
    safetensors.torch.save_file(file, folder / "kohya.safetensors")
    out = weld(binary, folder, "model+kohya.safetensors")
    state, _ = diffusers.FluxPipeline.lora_state_dict({k: v.clone() for k, v in file.items()}, return_alphas=True)
    expected = {name: tensor.double() for name, tensor in tensors(folder / "model").items()}
    factors = {name.removeprefix("transformer."): tensor.double() for name, tensor in state.items()}
    modules = {name.rsplit(".lora_", 1)[0] for name in factors if ".lora_" in name}
    for module in modules:
        a, b = (factors[f"{module}.lora_{part}.weight"] for part in "AB")
        alpha = float(factors.get(f"{module}.alpha", factors.get(f"transformer.{module}.alpha", a.shape[0])))
        expected[f"{module}.weight"] += alpha / a.shape[0] * b @ a
    expected = {name: tensor.float() for name, tensor in expected.items()}
    compare("kohya's file on Flux", tensors(out), expected, len(modules))


if __name__ == "__main__":
    sys.exit(main())
