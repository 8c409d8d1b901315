"""Arrays and tensors of numpy and torch, to and from bytes."""

from __future__ import annotations

import json
import math
import mmap
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# The dtypes of safetensors by the names that numpy, ml_dtypes and torch share.
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
}
NAMES = {code: name for name, code in DTYPES.items()}

# Numpy alone has no types for these; their bits are integers.
BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


def is_torch(value: Any) -> bool:
    """Whether it is a tensor of torch; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def framework_of(value: Any) -> str:
    """The framework that a tensor is of."""
    return "torch" if is_torch(value) else "numpy"


def foreign(name: str, value: Any) -> tuple[str, str, list[int], int, int, Any]:
    """A tensor for the native half: where it lies, and the object that owns it.

    Nothing is copied, unless the values are not contiguous, not little-endian, or on a GPU.
    """
    if is_torch(value):
        tensor = value.detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        where = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        return name, _code(name, dtype), list(tensor.shape), *where, tensor
    import numpy

    array = numpy.asarray(value)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    shape = list(array.shape)
    array = numpy.ascontiguousarray(array)
    return name, _code(name, array.dtype.name), shape, array.ctypes.data, array.nbytes, array


def _code(name: str, dtype: str) -> str:
    if dtype not in DTYPES:
        raise TypeError(f"tensor {name!r} has dtype {dtype}, expected one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def shaped(buffer: Any, code: str, shape: list[int], framework: str) -> Any:
    """The bytes of a buffer as a tensor, without a copy."""
    name = NAMES.get(code)
    if name is None:
        raise TypeError(f"{framework} has no type for values of {code}")
    if framework == "torch":
        import torch

        dtype = getattr(torch, name)
        if len(buffer) == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(buffer, dtype=torch.uint8).view(dtype).reshape(shape)
    import numpy

    if len(buffer) == 0:
        return numpy.empty(shape, dtype=_numpy_type(name))
    return numpy.frombuffer(buffer, dtype=_numpy_type(name)).reshape(shape)


def _numpy_type(name: str) -> Any:
    import numpy

    if name not in BITS:
        return numpy.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        return numpy.dtype(BITS[name])
    return numpy.dtype(getattr(ml_dtypes, name))


def checked(framework: str | None, default: str = "numpy") -> str:
    """A framework that is there to be used."""
    framework = framework or default
    if framework not in ("numpy", "torch"):
        raise ValueError(f"framework: expected 'numpy' or 'torch', found {framework!r}")
    __import__(framework)
    return framework


class Maps:
    """Mapped files. What is written to the memory does not reach the file."""

    def __init__(self, paths: Iterable[Any]) -> None:
        self._maps: dict[Any, mmap.mmap] = {}
        for path in paths:
            with open(path, "rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def part(self, path: Any, start: int, length: int, shape: list[int]) -> Any:
        """The bytes of a tensor: a part of its file's map, or a copy where values lie across machine words."""
        if length == 0:
            return bytearray()
        part = memoryview(self._maps[path])[start : start + length]
        if len(part) < length:
            raise OSError(f"{path} is shorter than it was when it was opened")
        size = max(1, length // max(1, math.prod(shape)))
        return part if start % size == 0 else bytearray(part)


def config_text(config: Any) -> str | None:
    """A model's config as JSON: of a dictionary, or of what transformers calls a config."""
    if config is None:
        return None
    if not isinstance(config, Mapping):
        if not hasattr(config, "to_dict"):
            raise TypeError(f"a config is a dictionary or one of transformers, not {config!r}")
        config = config.to_dict()
    return json.dumps(config)


def tensors_of(stream: Any, framework: str) -> Iterator[tuple[str, Any]]:
    """The tensors of a stream."""
    for name, code, shape, buffer in stream:
        yield name, shaped(buffer, code, shape, framework)
