"""Merges, verifications and studies on a Ray cluster: ``pip install 'weldment[ray]'``.

Every worker needs the recipe's models and the output's folder under the same paths, as on a shared disk.

>>> import weldment.ray  # doctest: +SKIP
>>> made = weldment.ray.merge("recipe.yml", "merged", parts=16)  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import ray

from . import _commands
from ._error import Error
from ._results import Fields, StudyReport, Written

#: How often a task is started again whose worker has died.
RETRIES = 3


def merge(
    recipe: Any, out: Any, *, parts: int, task: Mapping[str, Any] | None = None, force: bool = False, **options: Any
) -> Written:
    """Merges as :func:`weldment.merge` does, in that many parts, each a task of Ray, and joins them.

    A part whose worker dies is done again; those that were done before are not. ``task`` holds options of Ray's tasks:
    ``{"num_cpus": 8, "max_retries": 5}``. The other options are those of the command.
    """
    return _in_parts(_commands.merge, recipe, out, parts, task, force, options)


def moe(
    recipe: Any, out: Any, *, parts: int, task: Mapping[str, Any] | None = None, force: bool = False, **options: Any
) -> Written:
    """Builds a mixture as :func:`weldment.moe` does, in parts as :func:`merge` does it."""
    return _in_parts(_commands.moe, recipe, out, parts, task, force, options)


def verify(model: Any, *, parts: int, task: Mapping[str, Any] | None = None, **options: Any) -> list[Fields]:
    """Verifies as :func:`weldment.verify` does, in that many parts: the fields of the report of each.

    The checkpoint is right if the ``verdict`` of each is ``"passed"``.
    """
    return _run([(_commands.verify, (_absolute(model),), more) for more in _cut(parts, options)], task)


def study(
    study: Any, dir: Any, *, workers: int, task: Mapping[str, Any] | None = None, **options: Any
) -> StudyReport:
    """Searches as :func:`weldment.study` does, with that many workers that share the folder ``dir``."""
    folder = _absolute(dir)
    calls = [(_commands.study, (_recipe(study), folder), options)] * workers
    _run(calls, task)
    return _commands.study_report(folder)


def _in_parts(
    command: Callable[..., Written],
    recipe: Any,
    out: Any,
    parts: int,
    task: Mapping[str, Any] | None,
    force: bool,
    options: dict[str, Any],
) -> Written:
    recipe, out = _recipe(recipe), _absolute(out)
    _run([(command, (recipe, out), more) for more in _cut(parts, options)], task)
    return _commands.join(out, force=force)


def _cut(parts: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    return [options | {"part": f"{number}/{parts}"} for number in range(1, parts + 1)]


def _run(calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]], task: Mapping[str, Any] | None) -> list[Any]:
    """Does each call in a task of its own. If one fails, the others are cancelled."""
    if not ray.is_initialized():
        ray.init()
    task = {"num_cpus": 1, "max_retries": RETRIES} | dict(task or {})
    remote = ray.remote(_here).options(**task)
    # A task has as many threads as Ray gives it processors.
    threads = {"threads": max(1, int(task["num_cpus"]))}
    folder = os.getcwd()
    waiting = [remote.remote(folder, command, arguments, threads | more) for command, arguments, more in calls]
    try:
        return ray.get(waiting)
    except BaseException as error:
        for one in waiting:
            ray.cancel(one)
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, Error) else error from None


def _here(folder: str, command: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Calls a command in a folder, as relative paths in recipes start there."""
    os.chdir(folder)
    return command(*arguments, **options)


def _recipe(recipe: Any) -> Any:
    """A recipe, by its whole path if it is a path."""
    is_path = isinstance(recipe, os.PathLike) or isinstance(recipe, str) and "\n" not in recipe
    return _absolute(recipe) if is_path and recipe != "-" else recipe


def _absolute(path: Any) -> str:
    return os.path.abspath(os.fsdecode(path))
