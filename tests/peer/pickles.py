"""Checkpoints as torch.save writes them, and what weld makes of them.

    python tests/peer/pickles.py --write tests/peer/pickled        # the small files of the tests
    python tests/peer/pickles.py --weld target/release/weld --work DIR  # models, against torch.load

The second saves tiny transformers models by torch.save (one file, shards with an index, the
format before 1.6), merges each with weld by passthrough, and holds every tensor against
torch.load, bit by bit.
"""

import argparse
import json
import shutil
import subprocess
from collections import OrderedDict
from pathlib import Path

import torch

import models


def tensors():
    """Every way in which a tensor can lie in a file."""
    shared = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    state = OrderedDict(
        plain=torch.arange(6, dtype=torch.float32).reshape(2, 3) - 2.5,
        double=torch.tensor([1.0, -2.0], dtype=torch.float64),
        half=torch.tensor([1.5, -2.0, 65504.0], dtype=torch.float16),
        bf16=torch.tensor([[1.5], [-3.0]], dtype=torch.bfloat16),
        long=torch.tensor([1, -(2**40)], dtype=torch.int64),
        short=torch.tensor([-3, 300], dtype=torch.int16),
        byte=torch.tensor([7, 255], dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 4),
        shared=shared,
        same=shared,
        transposed=shared.t(),
        row=shared[1],
        column=shared[:, 1],
        expanded=torch.tensor([[1.0], [2.0]]).expand(2, 3),
        parameter=torch.nn.Parameter(torch.tensor([4.0, 5.0])),
        mask=torch.tensor([[True, False], [False, False]]).t(),
    )
    state._metadata = OrderedDict([("", {"version": 1})])
    return state


def write(folder):
    """The files of the tests, and their values as safetensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = tensors()
    saved = lambda value, name, **how: torch.save(value, folder / name, **how)
    some = {k: state[k] for k in ("plain", "shared", "same", "transposed", "row", "parameter", "long", "mask")}
    rare = ("double", "short", "byte", "scalar", "bool")
    saved({k: v for k, v in state.items() if k not in rare}, "zip.pt")
    saved(some, "protocol4.pt", pickle_protocol=4)
    saved(some, "protocol5.pt", pickle_protocol=5)
    saved(state, "legacy.bin", _use_new_zipfile_serialization=False)
    saved(some, "legacy4.bin", _use_new_zipfile_serialization=False, pickle_protocol=4)
    narrow = {"e4m3": torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn), "u16": torch.tensor([1, 65535], dtype=torch.uint16)}
    saved(narrow, "v3.pt")
    trainer = {"epoch": 3, "loss": 0.5, "best": None, "state_dict": some, "optimizer": {"state": {}, "lr": [0.1]}}
    saved(trainer, "trainer.ckpt")
    saved(some | {"version": 2, "name": "x", "_extra_state": None}, "beside.pt")
    saved({"a": some, "b": some}, "nested.pt")
    saved([state["plain"]], "list.pt")
    saved({"a": torch.tensor([1 + 2j])}, "complex.pt")
    saved({"a": torch.eye(2).to_sparse()}, "sparse.pt")
    saved({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "quantised.pt")
    saved(torch.nn.Linear(1, 1), "module.pt")
    save_file({k: v.detach().clone().contiguous() for k, v in (state | narrow).items()}, folder / "values.safetensors")
    for path in sorted(folder.iterdir()):
        print(f"{path.stat().st_size:6} {path.name}")


def save(model, folder, how):
    """A checkpoint folder whose weights are pickles."""
    model.save_pretrained(folder)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    state = model.state_dict()
    if how == "shards":
        names = list(state)
        cuts = [names[0::3], names[1::3], names[2::3]]
        weight_map = {}
        for number, part in enumerate(cuts, 1):
            file = f"pytorch_model-{number:05}-of-{len(cuts):05}.bin"
            torch.save({name: state[name] for name in part}, folder / file)
            weight_map |= dict.fromkeys(part, file)
        total = sum(t.numel() * t.element_size() for t in state.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=how == "zip")


def compare(folder, out):
    """What differs between torch.load of one folder and the safetensors of another."""
    from safetensors.torch import load_file

    expected, found = {}, {}
    for path in sorted(folder.glob("*.bin")):
        expected |= torch.load(path, weights_only=True)
    for path in sorted(out.glob("*.safetensors")):
        found |= load_file(path)
    left_out = set(expected) - set(found)
    tied = [n for n in left_out if any(torch.equal(expected[n], t) for m, t in expected.items() if m != n)]
    wrong = sorted(set(found) - set(expected)) + sorted(left_out - set(tied))
    for name, tensor in found.items():
        other = expected.get(name)
        same = other is not None and other.dtype == tensor.dtype and other.shape == tensor.shape
        bits = lambda t: t.detach().contiguous().reshape(-1).view(torch.uint8)
        if not same or not torch.equal(bits(other), bits(tensor)):
            wrong.append(name)
    return wrong, len(found), tied


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", type=Path)
    parser.add_argument("--weld", type=Path)
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    torch.manual_seed(1)
    if args.write:
        write(args.write)
    if not args.weld:
        return
    failed = 0
    for family in models.FAMILIES:
        for dtype in models.DTYPES:
            for how in ("zip", "shards", "legacy"):
                folder = args.work / family / dtype / how
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                model = models.FAMILIES[family].build().to(models.DTYPES[dtype])
                save(model, folder / "in", how)
                recipe = folder / "recipe.yml"
                recipe.write_text("merge_method: passthrough\nmodels: [{model: in}]\n")
                command = [args.weld.resolve(), "merge", recipe.name, "out"]
                ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
                if ran.returncode:
                    print(f"FAIL {family} {dtype} {how}: {ran.stderr}")
                    failed += 1
                    continue
                wrong, count, tied = compare(folder / "in", folder / "out")
                failed += bool(wrong)
                print(f"{'FAIL' if wrong else 'same'} {family} {dtype} {how}: {count} tensors {tied or ''} {wrong or ''}")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
