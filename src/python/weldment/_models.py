"""Tensors in memory: open a model, merge what a program holds, iterate over what a merge gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from . import _arrays, _weldment
from ._commands import Progress, recipe_in_a_file, words
from ._results import Fields


class Model(Mapping):
    """The tensors of a model by name, each made when it is asked for.

    What lies in a file as it is is mapped; adapters and block scales are applied as in a merge. Writing to a tensor
    does not reach the file.
    """

    def __init__(self, native: _weldment.Model, framework: str) -> None:
        self._native = native
        self._framework = framework
        rows = native.tensors()
        self._places = [native.place(at) for at in range(len(rows))]
        # At once, so that files that are replaced later are still those that were opened.
        self._maps = _arrays.Maps({place[0] for place in self._places if place and place[2]})
        self._index = {name: at for at, (name, _, _) in enumerate(rows)}
        #: Name, dtype (as in safetensors) and shape of each tensor.
        self.tensors = [Fields(name=name, dtype=dtype, shape=shape) for name, dtype, shape in rows]

    @property
    def config(self) -> Fields | None:
        """Its ``config.json``."""
        text = self._native.config()
        return None if text is None else Fields.of_json(text)

    def __getitem__(self, name: str) -> Any:
        at = self._index[name]
        tensor = self.tensors[at]
        place = self._places[at]
        if place is None:
            buffer = self._native.values(at)
        else:
            buffer = self._maps.part(*place, tensor.shape)
        return _arrays.shaped(buffer, tensor.dtype, tensor.shape, self._framework)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return f"<Model: {len(self)} tensors>"


def open(model: Any, *, framework: str = "numpy") -> Model:
    """Opens a model: a folder, a file, or an id in the Hub's cache; ``+ADAPTER`` adds a LoRA adapter.

    >>> import weldment
    >>> model = weldment.open("family/sort")
    >>> model["model.norm.weight"].shape
    (96,)

    ``framework`` is ``numpy`` or ``torch``. Numpy has bfloat16 and 8-bit floats with the package ml_dtypes alone;
    without it these are their bits, as unsigned integers.
    """
    framework = _arrays.checked(framework)
    return Model(_weldment.open(str(model)), framework)


def merge_tensors(
    recipe: Any,
    models: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    configs: Mapping[str, Any] | None = None,
    framework: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Iterator[tuple[str, Any]]:
    """Merges, and gives the name and the values of each tensor as soon as it is computed. Nothing is written.

    ``models`` are state dictionaries of numpy or torch by the models' names in the recipe; the recipe's other models
    are found as always. Tensors are read where they are, so do not write to them meanwhile. ``configs`` are the
    models' configs, which recipes with slices need. ``options`` are those of :func:`weldment.plan`. Results are of
    ``framework``, by default that of the first tensor given.

    >>> import weldment
    >>> names = [name for name, values in weldment.merge_tensors("recipe.yml")]
    >>> len(names)
    38

    Tensors come about in the order of the output, not quite.
    """
    stream, framework = _stream(recipe, models, configs, framework, progress, options)
    return _arrays.tensors_of(stream, framework)


def merge_state_dicts(
    recipe: Any,
    models: Mapping[str, Mapping[str, Any]],
    *,
    configs: Mapping[str, Any] | None = None,
    framework: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Merges state dictionaries into one. The arguments are those of :func:`merge_tensors`.

    >>> import numpy, weldment
    >>> recipe = {"merge_method": "linear", "dtype": "float32", "models": [
    ...     {"model": "a", "parameters": {"weight": 0.25}}, {"model": "b", "parameters": {"weight": 0.75}}]}
    >>> zeros, ones = numpy.zeros(2, "float32"), numpy.ones(2, "float32")
    >>> weldment.merge_state_dicts(recipe, {"a": {"w": zeros}, "b": {"w": ones}})
    {'w': array([0.75, 0.75], dtype=float32)}
    """
    stream, framework = _stream(recipe, models, configs, framework, progress, options)
    merged = dict(_arrays.tensors_of(stream, framework))
    return {name: merged[name] for name in stream.names()}


def _stream(
    recipe: Any,
    models: Mapping[str, Mapping[str, Any]] | None,
    configs: Mapping[str, Any] | None,
    framework: str | None,
    progress: Progress | None,
    options: Mapping[str, Any],
) -> tuple[_weldment.Stream, str]:
    models, configs = models or {}, configs or {}
    unknown = sorted(set(configs) - set(models))
    if unknown:
        raise ValueError(f"configs has {unknown[0]!r}, which is not in models")
    first = next((tensor for tensors in models.values() for tensor in tensors.values()), None)
    framework = _arrays.checked(framework, _arrays.framework_of(first))
    held = [
        (
            name,
            [_arrays.foreign(tensor, values) for tensor, values in tensors.items()],
            _arrays.config_text(configs.get(name)),
        )
        for name, tensors in models.items()
    ]
    with recipe_in_a_file(recipe) as file:
        return _weldment.streamed(words("plan", [file], options), held, progress), framework
