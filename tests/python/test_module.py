"""The module as a package: its documentation runs, its types are right, and the command is that of the wheel."""

import doctest
import importlib
import importlib.util
import inspect
import shutil
import subprocess
import sys

import pytest

import stubs
import weldment
from conftest import ROOT

COMMANDS = ["plan", "merge", "moe", "extract_lora", "check", "diff", "analyse", "stats", "eval", "verify"]
COMMANDS += ["study", "study_best"]


@pytest.mark.parametrize("name", ["", "._commands", "._error", "._models", "._results"])
def test_examples_in_docstrings_run(name):
    if name == "._models":
        pytest.importorskip("numpy")
    failed, tried = doctest.testmod(importlib.import_module(f"weldment{name}"))
    assert failed == 0
    assert tried > 0 or name == "._commands"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_function_takes_the_options_of_its_command(weld, command):
    command_line = command.split("_") if command == "study_best" else [command.replace("_", "-")]
    _, shown, _ = weld(*command_line, "--help")
    parameters = inspect.signature(getattr(weldment, command)).parameters
    for name in set(parameters) - {"progress"}:
        option = name.rstrip("_").replace("_", "-")
        assert f"--{option}" in shown or f"{option.upper()}" in shown, name
    assert "Options:" in getattr(weldment, command).__doc__


def test_the_examples_of_the_documentation_run(folder):
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    text = (ROOT / "docs" / "python.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    assert len(blocks) == 6
    numpy, loaded = pytest.importorskip("numpy"), {}

    class Held:
        """What a model of torch does, as far as the page uses it."""

        def __init__(self, value):
            self.value = value

        def state_dict(self):
            return {"w": numpy.full((2, 2), self.value, "float32")}

        def load_state_dict(self, tensors, strict):
            loaded.update(tensors)

    names = {"weldment": weldment, "base": Held(0), "tuned": Held(1), "running": Held(0)}
    if importlib.util.find_spec("torch") is None:
        blocks[5] = blocks[5].replace('framework="torch"', 'framework="numpy"')
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert list(loaded) == ["w"] and names["merged"].keys() == {"w"}
    assert names["model"]["model.norm.weight"].shape == (96,)


def test_the_types_are_those_of_the_options():
    written = stubs.FILE.read_text()
    assert written == stubs.text(), f"run: {sys.executable} {stubs.__file__}"


def test_the_command_is_there_under_each_of_its_names(weld):
    code, out, err = weld("--version")
    assert (code, err) == (0, "") and out.strip() == f"weld {weldment.__version__}"
    by_module = subprocess.run(
        [sys.executable, "-m", "weldment", "--version"], capture_output=True, text=True
    )
    assert by_module.stdout == out
    assert weld("nonsense")[0] == 2
    assert weld("check", "family/nothing")[0] == 2


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m weldment plan recipe.yml --format json | head -c 5"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_ends_the_command():
    import os
    import signal
    import time

    os.mkfifo("pipe")
    waits = subprocess.Popen(
        [sys.executable, "-m", "weldment", "sign", "family/sort", "--key", "pipe"],
        stderr=subprocess.PIPE,
    )
    time.sleep(1)
    # The first asks to stop, which nothing hears that waits for a pipe; the second ends it.
    for _ in range(2):
        os.kill(waits.pid, signal.SIGINT)
        time.sleep(0.3)
    assert waits.wait(10) == 130
