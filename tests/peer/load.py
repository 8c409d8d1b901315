"""Loads checkpoint folders in transformers and runs a few tokens through each.

    python tests/peer/load.py [--inputs DIR/models] DIR/out/<family>/<dtype>/<recipe>/weld...

Fails on a missing, unexpected or mismatched tensor, on tensors of another dtype than
config.json says, on NaN or infinity in the output, on a tokenizer that is there but does
not load, and on weights that are not those in the files. A class that this transformers
does not have is passed over, and said. With --inputs, so is what the merged models
themselves do not pass in this transformers: a pooler that nobody asks for, a layout that
only newer ones know.
"""

import argparse
import json
import os
import re
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.dont_write_bytecode = True
warnings.filterwarnings("ignore")

import safetensors
import torch
import transformers as tf

tf.utils.logging.set_verbosity_error()
tf.utils.logging.disable_progress_bar()


def stored_dtypes(folder):
    """The dtypes of the floats in the files, as torch names them."""
    found = set()
    for path in folder.glob("*.safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            found |= {file.get_tensor(name).dtype for name in file.keys()}
    return {str(dtype).removeprefix("torch.") for dtype in found if dtype.is_floating_point}


def inputs_of(model, folder):
    """Something for the model to work on."""
    config = model.config
    text = {}
    ids = torch.arange(5, 17).view(1, -1)
    if (folder / "tokenizer.json").exists():
        # Not AutoTokenizer: for some model types it swaps in a tokenizer of its own make.
        tokenizer = tf.PreTrainedTokenizerFast.from_pretrained(folder)
        ids = tokenizer("w1 w2 w3 w5", return_tensors="pt").input_ids
    if model.main_input_name == "pixel_values":
        return {"pixel_values": noise(1, 3, config.image_size, config.image_size)}
    if model.main_input_name == "input_features":
        features = noise(1, config.num_mel_bins, 2 * config.max_source_positions)
        return {"input_features": features, "decoder_input_ids": ids}
    if hasattr(config, "vision_config") and hasattr(model, "logit_scale"):
        size = config.vision_config.image_size
        return {"input_ids": ids, "pixel_values": noise(1, 3, size, size)}
    if config.is_encoder_decoder:
        text["decoder_input_ids"] = ids
    return text | {"input_ids": ids}


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def other_values(model, folder):
    """The tensors that transformers holds under the name of the file with other values."""
    held = model.state_dict()
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, "pt") as file:
            for name in file.keys():
                if name in held and not torch.equal(file.get_tensor(name), held[name]):
                    yield name


def problems(folder):
    """What is wrong with one folder, and the dtype transformers sees."""
    config = json.loads((folder / "config.json").read_text())
    kind = getattr(tf, config["architectures"][0], None)
    if kind is None:
        return [], "unknown"
    # `dtype` in transformers 5, `torch_dtype` before 4.56: 4.57 takes both.
    model, info = kind.from_pretrained(folder, dtype="auto", output_loading_info=True)
    model.eval()
    found = [
        f"{kind}: {sorted({re.sub(r'[.][0-9]+[.]', '.N.', str(key)) for key in info[kind]})}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        if info.get(kind)
    ]
    if wrong := list(other_values(model, folder)):
        found.append(f"other values than the file's: {wrong[:3]}")
    said = config.get("dtype", config.get("torch_dtype"))
    dtype = str(model.dtype).removeprefix("torch.")
    if {said} != stored_dtypes(folder):
        found.append(f"config.json says {said}, the files hold {sorted(stored_dtypes(folder))}")
    inputs = {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in inputs_of(model, folder).items()
    }
    with torch.no_grad():
        output = model(**inputs)
    logits = output.logits_per_text if hasattr(output, "logits_per_text") else output.logits
    if not logits.isfinite().all():
        found.append(f"{int((~logits.isfinite()).sum())} of {logits.numel()} logits are not finite")
    return found, dtype


def attempt(folder):
    try:
        return problems(folder)
    except Exception as error:
        return [f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"], "?"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--inputs", type=Path, help="the models that were merged, by family and dtype")
    args = parser.parse_args()
    of_inputs, counts = {}, {"ok": 0, "as its input": 0, "unknown": 0, "BAD": 0}
    for folder in args.folders:
        found, dtype = attempt(folder)
        verdict = "unknown" if dtype == "unknown" else "BAD" if found else "ok"
        if found and args.inputs:
            family, width = folder.parts[-4:-2]
            if (family, width) not in of_inputs:
                of_inputs[family, width] = attempt(args.inputs / family / width / "a")[0]
            # The output has no problem that the input does not have.
            if set(found) <= set(of_inputs[family, width]):
                verdict = "as its input"
        counts[verdict] += 1
        print(f"{verdict:12} {dtype:9} {folder}", *found, sep="\n      " if found else " ", flush=True)
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    print(f"transformers {tf.__version__}: {len(args.folders)} outputs: {said}")
    return 1 if counts["BAD"] else 0


if __name__ == "__main__":
    sys.exit(main())
