"""What the tests share: small models, a recipe, and the command line that the module is held to."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = (ROOT / "recipes" / "linear.yml").read_text()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with the models of `recipes/family` and their statistics, a recipe, and a cache of its own."""
    for name in ("family", "statistics"):
        shutil.copytree(ROOT / "recipes" / name, tmp_path / name)
    (tmp_path / "recipe.yml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def weld():
    """Runs the installed command; gives its exit code, stdout and stderr."""

    def run(*words, **more):
        beside_python = Path(sys.executable).with_name("weld")
        done = subprocess.run(
            [beside_python, *words], capture_output=True, text=True, env=os.environ, **more
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def printed(weld):
    """The JSON that the command prints."""

    def run(*words):
        code, out, err = weld(*words, "--format", "json")
        assert out, (code, err)
        return json.loads(out)

    return run


def files(folder):
    """Every file of a folder, by its path in it."""
    folder = Path(folder)
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
