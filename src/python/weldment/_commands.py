"""Commands as functions. What options there are, the native half says."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import _weldment
from ._error import Error
from ._results import Plan, Report, StudyReport, Written

Progress = Callable[[str, int, int], object]


def plan(recipe: Any, **options: Any) -> Plan:
    """Shows what a recipe would do. Reads headers, computes nothing and writes nothing.

    ``recipe`` is the path of a recipe; or the recipe itself, as a dictionary or as YAML of several lines: then
    relative paths of models start in the working folder.
    """
    with recipe_in_a_file(recipe) as file:
        return Plan(_run("plan", [file], options))


def merge(recipe: Any, out: Any, *, progress: Progress | None = None, **options: Any) -> Written:
    """Merges models by a recipe and writes a checkpoint folder: the whole of it, or nothing.

    ``recipe`` is what :func:`plan` takes. ``progress`` is called some times a second with what is done, the bytes so
    far, and all bytes; by :func:`eval` with items as they are scored, by :func:`study` with trials.
    """
    with recipe_in_a_file(recipe) as file:
        return Written(_run("merge", [file, out], options, progress))


def moe(recipe: Any, out: Any, *, progress: Progress | None = None, **options: Any) -> Written:
    """Builds a mixture of experts from dense models, or edits one. The arguments are those of :func:`merge`."""
    with recipe_in_a_file(recipe) as file:
        return Written(_run("moe", [file, out], options, progress))


def join(out: Any, *, progress: Progress | None = None, **options: Any) -> Written:
    """Makes a checkpoint of the parts that :func:`merge` wrote with ``part``."""
    return Written(_run("join", [out], options, progress))


def check(model: Any, *, progress: Progress | None = None, **options: Any) -> Report:
    """Finds defects in a checkpoint: files, config, structure, values, tokenizer, safety."""
    return Report(_run("check", [model], options, progress))


def diff(a: Any, b: Any, *, progress: Progress | None = None, **options: Any) -> Report:
    """Compares two checkpoints: tensors, configs, tokenizers."""
    return Report(_run("diff", [a, b], options, progress))


def analyse(models: Any, *, progress: Progress | None = None, **options: Any) -> Report:
    """Compares fine-tunes of one base before they are merged: ``models`` is a list of them, ``base`` the base."""
    models = [models] if isinstance(models, (str, bytes, os.PathLike)) else list(models)
    return Report(_run("analyse", models, options, progress))


def stats(model: Any, **options: Any) -> Written:
    """Writes statistics of a model's activations: ``data`` is a file of texts or a list of them, ``out`` the file to write."""
    return Written(_run("stats", [model], options))


def eval(model: Any, *, progress: Progress | None = None, **options: Any) -> Report:
    """Scores a model on files of tasks: ``tasks`` is one or a list of them.

    ``model`` may be a recipe, as :func:`plan` takes it: then it is merged in memory, and nothing is written.
    """
    with recipe_in_a_file(model) as file:
        return Report(_run("eval", [file], options, progress))


def verify(model: Any, *, progress: Progress | None = None, **options: Any) -> Report:
    """Computes a merged checkpoint again from its recipe and inputs, and compares; or checks its signature."""
    return Report(_run("verify", [model], options, progress))


def extract_lora(
    base: Any, finetune: Any, out: Any, *, progress: Progress | None = None, **options: Any
) -> Written:
    """Writes what a fine-tune changed in its base as a LoRA adapter, a folder that PEFT loads."""
    return Written(_run("extract-lora", [base, finetune, out], options, progress))


def study(study: Any, dir: Any, *, progress: Progress | None = None, **options: Any) -> StudyReport:
    """Searches for the values of a recipe whose merge scores best, and returns what the folder's report says.

    ``study`` is the path of a study; or the study itself, as a dictionary: then relative paths of its recipes and tasks
    start in the working folder. Its command is run in a temporary folder, so name files in it by whole paths. If
    it is stopped, the same call goes on where it was.
    """
    with recipe_in_a_file(_in_this_folder(study) if isinstance(study, Mapping) else study) as file:
        return StudyReport(_run("study", [file, dir], options, progress))


def study_report(dir: Any) -> StudyReport:
    """Reads what a study found, or has found so far."""
    return StudyReport(_run("study report", [dir], {}))


def study_best(dir: Any, out: Any, *, progress: Progress | None = None, **options: Any) -> Written:
    """Merges by the values that scored best on the validation split, and writes a checkpoint folder."""
    return Written(_run("study best", [dir, out], options, progress))


def _in_this_folder(study: Mapping[str, Any]) -> dict[str, Any]:
    """A study whose paths do not depend on where its file lies."""
    study = dict(study)
    absolute = lambda path: os.path.abspath(os.fsdecode(path))
    if "recipe" in study:
        study["recipe"] = absolute(study["recipe"])
    if "tasks" in study:
        study["tasks"] = [absolute(file) for file in study["tasks"]]
    if "searches" in study:
        study["searches"] = [_in_this_folder(search) for search in study["searches"]]
    return study


class _Options:
    """The options of a command, asked for once."""

    _known: dict[str, dict[str, tuple[str, bool]]] = {}

    @classmethod
    def of(cls, command: str) -> dict[str, tuple[str, bool]]:
        """The name of each as a Python name, with its help and whether it takes a value."""
        if command not in cls._known:
            rows = _weldment.options(command)
            named = [row for row in rows if not row[2]]
            cls._known[command] = {_python_name(row[0]): (row[1], row[3]) for row in named}
        return cls._known[command]


def _python_name(option: str) -> str:
    return "for_" if option == "for" else option.replace("-", "_").replace(" ", "_")


def words(command: str, arguments: list[Any], options: Mapping[str, Any]) -> list[str]:
    """The words of a command line."""
    known = _Options.of(command)
    function = _python_name(command)
    line = command.split()
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f"; {near[0]!r} is meant?" if near else ""
            raise TypeError(f"{function}() has no option {name!r}{meant}")
        takes_value = known[name][1]
        flag = "--" + name.rstrip("_").replace("_", "-")
        if not takes_value:
            if not isinstance(value, bool):
                raise TypeError(f"{function}(): {name} is True or False, not {value!r}")
            line += [flag] * value
        elif isinstance(value, Mapping):
            line += [f"{flag}={key}={_word(one)}" for key, one in value.items()]
        elif isinstance(value, (list, tuple)):
            line += [f"{flag}={_word(one)}" for one in value]
        elif value is not None:
            line.append(f"{flag}={_word(value)}")
    return [*line, "--", *(_word(argument) for argument in arguments)]


def _word(value: Any) -> str:
    return os.fsdecode(value) if isinstance(value, (bytes, os.PathLike)) else str(value)


@contextlib.contextmanager
def recipe_in_a_file(recipe: Any) -> Iterator[Any]:
    """The path of a recipe, which is written to a file for as long as it is needed if it is none."""
    text = json.dumps(recipe, indent=2) if isinstance(recipe, Mapping) else recipe
    if not isinstance(text, str) or (text is recipe and "\n" not in text):
        yield recipe
        return
    with tempfile.TemporaryDirectory(prefix="weldment-") as folder:
        file = Path(folder, "recipe.yml")
        file.write_text(text, encoding="utf-8")
        try:
            yield file
        except Error as error:
            raise error.of_recipe(str(file), "<dict>" if text is not recipe else "<text>") from None


def _run(
    command: str,
    arguments: list[Any],
    options: Mapping[str, Any],
    progress: Progress | None = None,
) -> _weldment.Answer:
    return _weldment.call(words(command, arguments, options), progress)


def _with_signature(command: str, function: Callable[..., Any]) -> None:
    """Lets `help()` and editors show the options of a command."""
    known = _Options.of(command)
    own = inspect.signature(function)
    fixed = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter(name, keyword, default=None if takes_value else False)
        for name, (_, takes_value) in known.items()
    ]
    function.__signature__ = own.replace(parameters=[*fixed, *more])  # type: ignore[attr-defined]
    lines = [f"    {name}: {help}" for name, (help, _) in known.items()]
    function.__doc__ = "\n".join([function.__doc__ or "", "    Options:", *lines, ""])


for _command, _function in {
    "plan": plan,
    "merge": merge,
    "moe": moe,
    "join": join,
    "extract-lora": extract_lora,
    "check": check,
    "diff": diff,
    "analyse": analyse,
    "stats": stats,
    "eval": eval,
    "verify": verify,
    "study": study,
    "study best": study_best,
}.items():
    _with_signature(_command, _function)
