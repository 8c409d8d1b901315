"""Loads checkpoint folders in transformers and runs a few tokens through each.

    python tests/peer/load.py FOLDER...

Fails on a missing, unexpected or mismatched tensor, on tensors of another dtype than
config.json says, on NaN or infinity in the output, and on a tokenizer that is there
but does not load.
"""

import json
import os
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


def problems(folder):
    """What is wrong with one folder, and the dtype transformers sees."""
    config = json.loads((folder / "config.json").read_text())
    masked = config["architectures"][0].endswith("ForMaskedLM")
    auto = tf.AutoModelForMaskedLM if masked else tf.AutoModelForCausalLM
    # `dtype` in transformers 5, `torch_dtype` before 4.56: 4.57 takes both.
    model, info = auto.from_pretrained(folder, dtype="auto", output_loading_info=True)
    model.eval()
    found = [
        f"{kind}: {sorted(map(str, info[kind]))}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        if info.get(kind)
    ]
    said = config.get("dtype", config.get("torch_dtype"))
    dtype = str(model.dtype).removeprefix("torch.")
    if {said} != stored_dtypes(folder):
        found.append(f"config.json says {said}, the files hold {sorted(stored_dtypes(folder))}")
    ids = torch.arange(5, 17).view(1, -1)
    if (folder / "tokenizer.json").exists():
        # Not AutoTokenizer: for some model types it swaps in a tokenizer of its own make.
        tokenizer = tf.PreTrainedTokenizerFast.from_pretrained(folder)
        ids = tokenizer("w1 w2 w3 w5", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    if not logits.isfinite().all():
        found.append(f"{int((~logits.isfinite()).sum())} of {logits.numel()} logits are not finite")
    return found, dtype


def main():
    folders = [Path(argument) for argument in sys.argv[1:]]
    if not folders:
        sys.exit(__doc__)
    bad = 0
    for folder in folders:
        try:
            found, dtype = problems(folder)
        except Exception as error:
            found, dtype = [f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"], "?"
        bad += bool(found)
        print(f"{'BAD' if found else 'ok '} {dtype:9} {folder}", *found, sep="\n      " if found else " ")
    print(f"transformers {tf.__version__}: {len(folders) - bad} of {len(folders)} load")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
