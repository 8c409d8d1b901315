"""Writes the types of the module's functions from the options of the commands: `python tests/python/stubs.py`."""

from pathlib import Path

from weldment import _weldment

FILE = Path(__file__).resolve().parents[2] / "src/python/weldment/_commands.pyi"

HEAD = '''\
# Written by tests/python/stubs.py from the options of the commands.
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any, TypeAlias

from ._results import Plan, Report, StudyReport, Written

Path: TypeAlias = str | PathLike[str]
Recipe: TypeAlias = Path | Mapping[str, Any]
Value: TypeAlias = str | int | PathLike[str]
Progress: TypeAlias = Callable[[str, int, int], object]

def recipe_in_a_file(recipe: Any) -> AbstractContextManager[Any]: ...
def words(command: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> list[str]: ...
'''

RESULTS = {
    "plan": "Plan",
    "merge": "Written",
    "moe": "Written",
    "join": "Written",
    "extract-lora": "Written",
    "stats": "Written",
    "study": "StudyReport",
    "study report": "StudyReport",
    "study best": "Written",
}
TYPES = {
    "recipe": "Recipe",
    "eval.model": "Recipe",
    "study.study": "Recipe",
    "analyse.models": "Path | Sequence[Path]",
}
# These have nothing to tell while they work.
WITHOUT_PROGRESS = {"plan", "stats", "study report"}


def text() -> str:
    """What the file holds."""
    return HEAD + "".join(_function(command) for command in _commands())


def _commands() -> list[str]:
    commands = ["plan", "merge", "moe", "extract-lora", "join", "check", "diff", "analyse"]
    return [*commands, "stats", "eval", "verify", "study", "study report", "study best"]


def _function(command: str) -> str:
    rows = _weldment.options(command)
    typed = lambda name: TYPES.get(f"{command}.{name}", TYPES.get(name, "Path"))
    lines = [f"    {name}: {typed(name)}," for name, _, positional, *_ in rows if positional]
    if command != "study report":
        lines.append("    *,")
    if command not in WITHOUT_PROGRESS:
        lines.append("    progress: Progress | None = None,")
    for name, _, positional, takes_value, repeats in rows:
        if positional:
            continue
        name = "for_" if name == "for" else name.replace("-", "_")
        kind = "Value | Sequence[Value] | Mapping[str, Path] | None" if repeats else "Value | None"
        lines.append(f"    {name}: {kind} = None," if takes_value else f"    {name}: bool = False,")
    result = RESULTS.get(command, "Report")
    name = command.replace("-", "_").replace(" ", "_")
    return f"\ndef {name}(\n" + "\n".join(lines) + f"\n) -> {result}: ...\n"


if __name__ == "__main__":
    FILE.write_text(text())
