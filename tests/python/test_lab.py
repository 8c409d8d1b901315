"""Scores and studies from Python: what the commands give, byte by byte, in memory, with pandas and Optuna."""

import importlib.util
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

import weldment
from conftest import ROOT, files

RECIPE = {
    "merge_method": "task_arithmetic",
    "base_model": "family/base",
    "models": [{"model": "family/sort"}, {"model": "family/add"}],
    "parameters": {"weight": 0.5},
    "dtype": "bfloat16",
}
STUDY = {
    "recipe": "lab/recipe.yml",
    "tasks": ["lab/sort.jsonl", "lab/add.jsonl"],
    "space": {"models[0].parameters.weight": {"uniform": [0, 1]}},
    "strategy": "random",
    "trials": 3,
}


@pytest.fixture(autouse=True)
def lab(folder):
    """Tasks of few items, a recipe, and a study that lies beside them."""
    (folder / "lab").mkdir()
    for name in ["sort", "add"]:
        lines = (ROOT / "recipes/studies/tasks" / f"{name}.jsonl").read_text().splitlines()
        (folder / "lab" / f"{name}.jsonl").write_text("\n".join(lines[:20]) + "\n")
    (folder / "lab/recipe.yml").write_text(json.dumps(RECIPE))
    beside = STUDY | {"recipe": "recipe.yml", "tasks": ["sort.jsonl", "add.jsonl"]}
    (folder / "lab/study.yml").write_text(json.dumps(beside))
    return folder / "lab"


def records(file):
    """The lines of a file of records, without how long they took."""
    lines = map(json.loads, Path(file).read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def without_times(report):
    report = json.loads(json.dumps(report))
    for search in report["searches"]:
        search.pop("seconds")
    return report


def test_statistics_and_task_vectors_are_those_of_the_command(printed, folder):
    words = ["--data", "statistics/sort.jsonl", "--limit", "20", "--keep", "gram"]
    made = weldment.stats("family/sort", data=["statistics/sort.jsonl"], limit=20, keep="gram", out="made.safetensors")
    written = printed("stats", "family/sort", *words, "--out", "written.safetensors")
    assert (folder / "made.safetensors").read_bytes() == (folder / "written.safetensors").read_bytes()
    assert made.inputs == written["inputs"] == 16 and made.tokens == written["tokens"]
    tunes = ["family/sort", "family/add"]
    report = weldment.analyse(tunes, base="family/base")
    assert report.passed and report.to_dict() == printed("analyse", *tunes, "--base", "family/base")
    assert report.details.cosines[0][1] == report.details.cosines[1][0]


@pytest.mark.parametrize("subject", ["family/add", "lab/recipe.yml"])
def test_scores_are_those_of_the_command(printed, weld, subject):
    tasks = ["lab/sort.jsonl", "lab/add.jsonl"]
    words = ["--tasks", *tasks, "--split", "test", "--seed", "3", "--items"]
    report = weldment.eval(subject, tasks=tasks, split="test", seed=3, items="python.jsonl")
    assert report == printed("eval", subject, *words, "command.jsonl")
    assert Path("python.jsonl").read_bytes() == Path("command.jsonl").read_bytes()
    assert report.details.mean_accuracy.value == report["details"]["mean_accuracy"]["value"]
    _, text, _ = weld("eval", subject, *words, "command.jsonl", "-q", "--format", "markdown")
    assert report.to("markdown").rstrip() == text.rstrip()
    assert "srcdoc=" in report._repr_html_() and "<script" not in report._repr_html_()


def test_a_dictionary_is_scored_as_its_file(folder):
    before = files(folder)
    by_file = weldment.eval("lab/recipe.yml", tasks="lab/add.jsonl")
    by_dictionary = weldment.eval(RECIPE, tasks="lab/add.jsonl")
    assert by_dictionary.details.scores.tasks == by_file.details.scores.tasks
    assert files(folder) == before


def test_a_study_is_that_of_the_command(weld):
    told = []
    report = weldment.study("lab/study.yml", "python", progress=lambda *now: told.append(now))
    code, shown, err = weld("study", "lab/study.yml", "command")
    assert code == 0, err
    for file in ["trials.jsonl", "references.jsonl", "test.jsonl"]:
        assert records(f"python/{file}") == records(f"command/{file}"), file
    assert Path("python/study.json").read_bytes() == Path("command/study.json").read_bytes()
    assert told[-1][1:] == (3, 3) and told[-1][0] == "recipe"
    code, out, _ = weld("study", "report", "command", "--format", "json")
    assert without_times(report) == without_times(json.loads(out))
    assert report.leaderboard[0].validation.value == max(row.validation.value for row in report.leaderboard)
    assert re.fullmatch(r"<StudyReport: 3 trials scored, best 0\.\d{4}>", repr(report))


@pytest.mark.parametrize("format", ["text", "markdown", "csv", "json", "html"])
def test_the_report_of_a_study_in_every_format_is_that_of_the_command(weld, format):
    weldment.study("lab/study.yml", "found")
    report = weldment.study_report("found")
    _, out, _ = weld("study", "report", "found", "--format", format)
    # Lines of CSV end in two characters, which the fixture reads as one.
    assert report.to(format).replace("\r\n", "\n").rstrip() == out.rstrip()
    assert "srcdoc=" in report._repr_html_() and str(report) == report.to("text")
    with pytest.raises(ValueError, match="text, markdown, csv, json, html"):
        report.to("yaml")


def test_a_study_may_be_a_dictionary(folder):
    weldment.study("lab/study.yml", "by-file")
    weldment.study(STUDY, "by-dictionary")
    assert records("by-file/trials.jsonl") == records("by-dictionary/trials.jsonl")
    searches = [{"name": name, "recipe": STUDY["recipe"], "space": STUDY["space"]} for name in "ab"]
    several = {"searches": searches, "tasks": [Path("lab/add.jsonl")], "strategy": "random", "trials": 1}
    assert [search.name for search in weldment.study(several, "several").searches] == ["a", "b"]
    with pytest.raises(weldment.Error, match="<dict>:[0-9]+") as raised:
        weldment.study(STUDY | {"trails": 3}, "wrong")
    assert raised.value.file is None and "trials" in raised.value.hint


def test_the_winner_is_written_as_by_the_command(weld):
    weldment.study("lab/study.yml", "found")
    made = weldment.study_best("found", "merged", number=1)
    by_python = files("merged")
    shutil.rmtree("merged")
    code, _, err = weld("study", "best", "found", "merged", "--number", "1")
    assert code == 0, err
    assert made.out == "merged" and by_python == files("merged")
    with pytest.raises(weldment.Error, match="force=True"):
        weldment.study_best("found", "merged")
    with pytest.raises(TypeError, match=r"study_best\(\) has no option 'nummer'; 'number' is meant"):
        weldment.study_best("found", "other", nummer=1)


def test_ctrl_c_stops_scores_and_studies_and_the_study_goes_on(folder):
    def interrupt(what, done, _):
        if what in ("scoring", "recipe") and done:
            os.kill(os.getpid(), signal.SIGINT)

    tasks = [ROOT / "recipes/studies/tasks/sort.jsonl"]
    before = files(folder)
    with pytest.raises(KeyboardInterrupt):
        weldment.eval("family/add", tasks=tasks, generate=True, memory="1MB", progress=interrupt)
    assert files(folder) == before
    long = STUDY | {"trials": 40}
    with pytest.raises(KeyboardInterrupt):
        weldment.study(long, "stopped", progress=interrupt)
    stopped = records("stopped/trials.jsonl")
    assert 0 < len(stopped) < 40
    weldment.study(long | {"trials": 3}, "stopped")
    assert records("stopped/trials.jsonl")[: len(stopped)] == stopped


def test_a_command_scores_as_from_the_command_line(folder, lab, printed):
    (lab / "score").write_text("echo \"{\\\"size\\\": $(wc -c < $1/config.json)}\"")
    command = f"sh {lab}/score {{model}}"
    report = weldment.eval(RECIPE, command=command, metric={"size": "/size"}, scratch=folder)
    by_command = printed("eval", "lab/recipe.yml", "--command", command, "--metric", "size=/size")
    assert report.details == by_command["details"] and report.details.metrics[0].value > 100
    study = {key: value for key, value in STUDY.items() if key != "tasks"}
    study |= {"command": command, "metrics": {"size": "/size"}}
    with pytest.raises(weldment.Error, match="run_commands=True") as refused:
        weldment.study(study, "found")
    assert "sh " in refused.value.message
    found = weldment.study(study, "found", run_commands=True)
    assert found.leaderboard[0].validation.value == report.details.metrics[0].value
    assert not list(folder.glob("weldment-scratch-*"))


def test_pandas_reads_trials_in_one_line(lab):
    pandas = pytest.importorskip("pandas")
    weldment.study("lab/study.yml", "found")
    trials = pandas.read_json("found/trials.jsonl", lines=True)
    assert len(trials) == 3 and trials.score.between(0, 1).all()
    weights = pandas.json_normalize(trials["values"])
    assert weights["models[0].parameters.weight"].between(0, 1).all()
    # The page documents every field.
    page = (ROOT / "docs/study.md").read_text()
    documented = set(re.findall("`(\\w+)`", "".join(line for line in page.splitlines() if line.startswith("| `"))))
    assert set(trials.columns) <= documented
    assert set(trials.tasks[0][0]) <= documented


def test_optuna_drives_merges_in_memory(folder):
    pytest.importorskip("optuna", reason="optuna is not installed")
    spec = importlib.util.spec_from_file_location("example", ROOT / "recipes/studies/optuna_family.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    before = files(folder)
    study = example.search(4)
    values = [trial.value for trial in study.trials]
    assert len(values) == 4 and study.best_value == max(values)
    # The first trial has the recipe's own weights, which the command scores alike.
    tasks = dict(tasks=example.TASKS, split="validation")
    own = weldment.eval(str(ROOT / "recipes/tsvm.yml"), **tasks).details.mean_accuracy.value
    assert values[0] == own and 0.5 < own < 1
    assert files(folder) == before
