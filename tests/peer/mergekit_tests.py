"""Runs mergekit's own merging tests, their recipes unchanged, with `weld` in the place of its `run_merge`.

    git clone https://github.com/arcee-ai/mergekit target/mergekit
    target/envs/peer/bin/pip install pytest
    target/envs/peer/bin/python tests/peer/mergekit_tests.py target/mergekit --weld target/debug/weld

The tests are read where they lie; nothing of them is kept here. Every test that calls `run_merge` counts. Each runs
twice: with mergekit, and with weld. A test that weld does not pass must fail for one of REASONS, which
docs/from-mergekit.md states. The exit code is 0 if all do.

The sdist of a release has newer tests but lacks their helper `tests/common.py`; `--common` takes it from elsewhere:

    pip download --no-deps --no-binary :all: mergekit==0.1.5 && tar xzf mergekit-0.1.5.tar.gz
    ... tests/peer/mergekit_tests.py mergekit-0.1.5 --common target/mergekit/tests/common.py --weld target/debug/weld
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "from-mergekit.md"

# Why a test differs: part of its name, what weld says, and where docs/from-mergekit.md says so.
REASONS = [
    # A helper of the tests looks for the names that mergekit writes, and weld has written the input's (else it had said
    # so), which transformers loads.
    ("VLM_merge", "'NoneType' object is not iterable", "the Hub's GPT-2 and LLaVA with other names. | The names of the inputs"),
    ("truncat|takes_precedence", "unsafe-truncate-embeddings", "embeddings of different lengths are an error"),
    ("legacy_mode|do_not_truncate", "their vocabularies differ", "embeddings of different lengths are an error"),
    ("template_chatml", "marks turns with", "beside a vocabulary that lacks its tokens"),
    ("source_union", "tokens beyond", "A token whose id lies beyond the embedding"),
]


class Differs(ValueError):
    """What weld says when it refuses a merge."""


def merge_with_weld(config, out_path, options, config_source=None):
    """`mergekit.merge.run_merge`, by weld."""
    arguments = [os.environ["PEER_WELD"], "merge", "-", str(out_path), "--quiet"]
    if options.random_seed is not None:
        arguments += ["--seed", str(options.random_seed)]
    if options.unsafe_truncate_embeddings:
        arguments.append("--unsafe-truncate-embeddings")
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yml"
        recipe.write_text(config_source or config.to_yaml())
        arguments[2] = str(recipe)
        run = subprocess.run(arguments, capture_output=True, text=True)
    if run.returncode:
        raise Differs(run.stderr.strip())
    if config.models and stored_names(out_path) != stored_names(config.models[0].model.model.path):
        raise Differs("the output has other tensor names than its first input")


def stored_names(folder):
    """The tensor names of a folder's files."""
    from safetensors import safe_open

    return {name for file in Path(folder).glob("*.safetensors") for name in safe_open(file, "pt").keys()}


class Recorder:
    """A plugin of pytest: which tests merge, and how they end."""

    def __init__(self, engine, results):
        import mergekit.merge

        self.merges = 0
        self.results = open(results, "w")
        merge = merge_with_weld if engine == "weld" else mergekit.merge.run_merge

        def counted(*args, **kwargs):
            self.merges += 1
            return merge(*args, **kwargs)

        mergekit.merge.run_merge = counted

    def pytest_runtest_logreport(self, report):
        if report.when == "setup":
            self.merges = 0
        if report.when == "call" and self.merges:
            crash = getattr(report.longrepr, "reprcrash", None)
            line = {"test": report.nodeid, "passed": report.passed, "says": crash.message if crash else ""}
            print(json.dumps(line), file=self.results, flush=True)


def run_tests(engine, folder, results):
    """Runs pytest in this process, for one engine."""
    import pytest

    files = sorted(str(file) for file in Path("tests").glob("test_*.py") if "run_merge" in file.read_text()
                   or "run_and_check_merge" in file.read_text())
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "--tb=line", *files]
    pytest.main(options, plugins=[Recorder(engine, results)])


def outcomes(engine, folder, arguments):
    """Every merging test's outcome with an engine."""
    results = Path(folder) / f"{engine}.jsonl"
    environment = dict(os.environ, PEER_WELD=str(arguments.weld.resolve()), PYTHONPATH=str(folder), HF_HUB_OFFLINE="1")
    command = [sys.executable, __file__, str(arguments.source), "--engine", engine, "--results", str(results)]
    log = open(Path(folder) / f"{engine}.log", "w")
    subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return {line["test"].removeprefix("tests/"): line for line in lines}


def reason(test, says):
    """Where the docs say why weld differs, if it fails as they say."""
    for name, message, stated in REASONS:
        if re.search(name, test) and re.search(message, says, re.DOTALL):
            return stated
    return None


def judged(peer, weld, docs):
    """What a test shows, and whether that is as it should be."""
    if weld["passed"]:
        return "passes" if peer["passed"] else "passes; mergekit fails", True
    stated = reason(weld["test"], weld["says"])
    if stated is None:
        return "FAILS: " + weld["says"][:600], False
    if stated not in docs:
        return f"FAILS: docs/from-mergekit.md no longer says \"{stated}\"", False
    return f"differs: \"{stated}\"", True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="mergekit's source, with its folder tests")
    parser.add_argument("--weld", type=Path, default=Path("target/debug/weld"))
    parser.add_argument("--common", type=Path, help="tests/common.py, where the source has none")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--results", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        return run_tests(arguments.engine, os.getcwd(), arguments.results)

    with tempfile.TemporaryDirectory() as folder:
        tests = Path(folder) / "tests"
        shutil.copytree(arguments.source / "tests", tests)
        (tests / "__init__.py").touch()
        if arguments.common:
            shutil.copy(arguments.common, tests / "common.py")
        if not (tests / "common.py").exists():
            sys.exit(f"{arguments.source}/tests has no common.py: give one with --common")
        peer, weld = (outcomes(engine, folder, arguments) for engine in ["peer", "weld"])

    docs = " ".join(DOCS.read_text().split())
    right = True
    print("| test | mergekit | weld |\n|---|---|---|")
    for test in sorted(peer.keys() | weld.keys()):
        if test not in peer or test not in weld:
            print(f"| {test} | {test in peer} | {test in weld} |")
            right = False
            continue
        text, fine = judged(peer[test], weld[test], docs)
        right &= fine
        print(f"| {test} | {'passes' if peer[test]['passed'] else 'fails'} | {text} |")
    both = [weld[test] for test in weld]
    passed = sum(line["passed"] for line in both)
    print(f"\n{len(both)} tests: mergekit passes {sum(line['passed'] for line in peer.values())}, weld {passed};",
          f"{len(both) - passed} differ")
    sys.exit(0 if right and both else 1)


if __name__ == "__main__":
    main()
