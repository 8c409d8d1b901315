"""Writes the lists of what runtimes know, from their sources: tables.py llama.cpp|mlx|transformers|vllm > FILE

    FOLDER/venv/bin/python tests/runtimes/tables.py llama.cpp FOLDER/llama_cpp_python-*/vendor/llama.cpp
    FOLDER/venv-mlx/bin/python tests/runtimes/tables.py mlx
    FOLDER/venv/bin/python tests/runtimes/tables.py transformers
    python tests/runtimes/tables.py vllm .../vllm/model_executor/models/registry.py

The lists lie in src/architecture/runtimes. One name a line: a class, or a model type; behind those of mlx-lm stand the
fields of a config that it does not load without.
"""

import ast
import contextlib
import pathlib
import sys


def llama_cpp(folder):
    tree = ast.parse(pathlib.Path(folder, "conversion/__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and node.target.id == "TEXT_MODEL_MAP":
            return [key.value for key in node.value.keys]


def mlx():
    import dataclasses
    import importlib
    import pkgutil

    from mlx_lm import models, utils

    types = {}
    for module in pkgutil.iter_modules(models.__path__):
        try:
            loaded = importlib.import_module(f"mlx_lm.models.{module.name}")
        except SystemExit:  # what it lacks it says by ending
            types[module.name] = module.name
            continue
        if hasattr(loaded, "Model") and hasattr(loaded, "ModelArgs"):
            missing = dataclasses.MISSING
            fields = dataclasses.fields(loaded.ModelArgs)
            wanted = [f.name for f in fields if f.default is missing and f.default_factory is missing]
            types[module.name] = " ".join([module.name, *wanted])
    for name, other in utils.MODEL_REMAPPING.items():
        types[name] = types[other].replace(other, name, 1)
    return types.values()


def transformers():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return CONFIG_MAPPING_NAMES


def vllm(registry):
    tree = ast.parse(pathlib.Path(registry).read_text())
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Dict):
            name = (node.targets[0] if isinstance(node, ast.Assign) else node.target).id
            prefix = "-" if name == "_PREVIOUSLY_SUPPORTED_MODELS" else ""
            yield from (prefix + key.value for key in node.value.keys if isinstance(key, ast.Constant))


what = {"llama.cpp": llama_cpp, "mlx": mlx, "transformers": transformers, "vllm": vllm}[sys.argv[1]]
with contextlib.redirect_stdout(sys.stderr):
    names = sorted(set(what(*sys.argv[2:])))
print("\n".join(names))
