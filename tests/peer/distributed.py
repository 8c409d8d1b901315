"""Holds distributed checkpoints of PyTorch against torch: each tensor that weld reads has the bits that torch loads.

    python tests/peer/distributed.py --weld target/debug/weld --work target/distributed

Needs torch and safetensors. torch.distributed.checkpoint writes checkpoints from one process and from several, which
talk by gloo: whole tensors, rows and columns of DTensors (FSDP's and tensor parallelism's shards, also uneven ones), a
grid of both, an optimizer beside the weights, views, integers, scalars. torch puts each together by `dcp_to_torch_save`,
and weld by a passthrough; both must have the same names and bits.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save


def noise(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def weights():
    """Names, tensors and how each is cut: along these dimensions, one for each axis of the mesh."""
    return {
        "model.embed_tokens.weight": (noise(10, 6, dtype=torch.bfloat16), (0, None)),
        "model.layers.0.q.weight": (noise(8, 6), (1, None)),
        "model.layers.0.up.weight": (noise(7, 9, dtype=torch.float16), (0, 1)),
        "model.layers.0.down.weight": (noise(9, 7), (1, 0)),
        "model.layers.0.experts": (noise(5, 4, 6, dtype=torch.bfloat16), (1, 2)),
        "model.layers.0.small.weight": (noise(1, 6), (0, None)),
        "model.norm.weight": (noise(6), (None, None)),
        "model.positions": (torch.arange(24).reshape(8, 3), (0, 1)),
        "model.scalar": (torch.tensor(2.5), (None, None)),
        "model.mask": (torch.rand(5, 4) > 0.5, (0, None)),
    }


def optimizer(state):
    return {"state": {name: {"exp_avg": torch.zeros_like(tensor)} for name, tensor in state.items()
                      if tensor.is_floating_point()}, "param_groups": [{"lr": 0.1}]}


def shapes(state):
    """What is saved, by the name of the checkpoint: dicts as trainers make them."""
    return {
        "plain": state,
        "model": {"model": state, "optim": optimizer(state), "step": torch.tensor(7), "epoch": 3},
        "app": {"app": {"model": state, "optim": optimizer(state)}},
    }


def one_process(work):
    state = {name: tensor for name, (tensor, _) in weights().items()}
    state["model.turned.weight"] = noise(6, 4).t()
    state["model.part.weight"] = noise(12, 5)[3:7, 1:4]
    for name, content in shapes(state).items():
        dcp.save(content, checkpoint_id=work / f"one-{name}")


def worker(rank, ranks, work):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29611", RANK=str(rank), WORLD_SIZE=str(ranks))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (2, ranks // 2))
    cut = lambda dim: Replicate() if dim is None else Shard(dim)
    state = {name: tensor if not tensor.dim() else distribute_tensor(tensor, mesh, [cut(dim) for dim in dims])
             for name, (tensor, dims) in weights().items()}
    for name, content in shapes(state).items():
        dcp.save(content, checkpoint_id=work / f"{ranks}-{name}")
    torch.distributed.destroy_process_group()


def flat(value):
    """The weights of what torch loads."""
    for key in ("app", "model"):
        if isinstance(value.get(key), dict):
            value = value[key]
    return value


def compare(binary, work, name):
    folder = work / name
    dcp_to_torch_save(folder, work / "all.pt")
    expected = flat(torch.load(work / "all.pt", weights_only=False))
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    recipe = work / "recipe.yml"
    recipe.write_text(f"merge_method: passthrough\nmodels: [{{model: {name}}}]\n")
    done = subprocess.run([binary, "merge", recipe, out, "--quiet"], cwd=work, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    found = {key: tensor for path in sorted(out.glob("*.safetensors"))
             for key, tensor in safetensors.torch.load_file(path).items()}
    if set(found) != set(expected):
        raise SystemExit(f"{name}: other names: {sorted(set(found) ^ set(expected))[:4]}")
    for key, tensor in expected.items():
        same = tensor.dtype == found[key].dtype and torch.equal(tensor, found[key])
        if not same:
            raise SystemExit(f"{name}: `{key}` differs")
    leftover = [path.name for path in out.iterdir() if path.name == ".metadata" or path.suffix == ".distcp"]
    if leftover:
        raise SystemExit(f"{name}: {leftover} were copied")
    parts = len(list(folder.glob("*.distcp")))
    print(f"{name:12} {len(found):3} tensors from {parts} files: the same bits")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weld", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    binary, work = arguments.weld.resolve(), arguments.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    one_process(work)
    for ranks in (2, 4):
        torch.multiprocessing.spawn(worker, (ranks, work), ranks)
    for folder in sorted(path.name for path in work.iterdir() if path.is_dir()):
        compare(binary, work, folder)


if __name__ == "__main__":
    sys.exit(main())
