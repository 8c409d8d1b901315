"""Merges, verifications and studies as tasks of a local Ray cluster: what one run gives, workers that die included."""

import os
import shutil
import signal
from pathlib import Path

import pytest

import weldment
from conftest import ROOT, files

ray = pytest.importorskip("ray")
import weldment.ray  # noqa: E402

SHARDS = {"shard_size": "60kB"}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Four worker processes on as many processors as there are."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def without_card(folder):
    """The files of a folder but for the card, which has the folder's name."""
    return {name: data for name, data in files(folder).items() if name != "README.md"}


def killing_once(marker):
    """Progress that kills its process the first time that it is called, and leaves a file."""

    def progress(*_):
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    return progress


RANDOM = {
    "merge_method": "dare_ties",
    "base_model": "family/base",
    "models": [{"model": "family/sort"}, {"model": "family/add"}],
    "parameters": {"weight": 0.5, "density": 0.4},
}


@pytest.mark.parametrize("recipe", ["recipe.yml", RANDOM], ids=["file", "dictionary"])
def test_a_merge_in_parts_is_that_of_one_run_though_a_worker_is_killed(folder, recipe):
    weldment.merge(recipe, "whole", **SHARDS)
    marker = folder / "killed"
    made = weldment.ray.merge(recipe, "merged", parts=4, progress=killing_once(str(marker)), **SHARDS)
    assert marker.exists()
    assert without_card("merged") == without_card("whole")
    assert Path(made.out) == folder / "merged"
    assert not (folder / "merged.weld-parts").exists()
    reports = weldment.ray.verify("merged", parts=4, full=True)
    assert [report.verdict for report in reports] == ["passed"] * 4
    assert sum(report.details.compared for report in reports) == weldment.verify("merged", full=True).details.compared


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.yml")), ids=lambda file: file.stem)
def test_every_method_gives_the_bytes_of_one_run(folder, file):
    shutil.copy(file, folder / "recipe.yml")
    command, by_ray = (weldment.moe, weldment.ray.moe) if file.stem == "moe" else (weldment.merge, weldment.ray.merge)
    command("recipe.yml", "whole", seed=5, **SHARDS)
    for parts in [1, 3]:
        by_ray("recipe.yml", "merged", parts=parts, seed=5, force=True, **SHARDS)
        assert without_card("merged") == without_card("whole")
    assert all(report.verdict == "passed" for report in weldment.ray.verify("merged", parts=3))


def test_sixteen_parts(folder):
    shards = {"shard_size": "8kB"}
    weldment.merge("recipe.yml", "whole", **shards)
    weldment.ray.merge("recipe.yml", "merged", parts=16, **shards)
    assert without_card("merged") == without_card("whole")


def test_a_worker_that_dies_again_and_again_is_an_error_and_the_other_parts_stay(folder):
    def dies(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        weldment.ray.merge("recipe.yml", "merged", parts=2, task={"max_retries": 1}, progress=dies, **SHARDS)
    assert not (folder / "merged").exists()
    weldment.ray.merge("recipe.yml", "merged", parts=2, **SHARDS)
    assert weldment.verify("merged").passed


def test_errors_are_those_of_the_module(folder):
    with pytest.raises(weldment.Error) as caught:
        weldment.ray.merge("recipe.yml", "merged", parts=900, **SHARDS)
    assert caught.value.hint and "shard" in str(caught.value)
    with pytest.raises(TypeError):
        weldment.ray.merge("recipe.yml", "merged", parts=2, no_such_option=1)


def test_a_mixture_and_a_study(folder):
    experts = [{"source_model": f"family/{name}", "positive_prompts": [name]} for name in ["sort", "add"]]
    recipe = {"base_model": "family/base", "gate_mode": "random", "architecture": "mixtral", "experts": experts}
    weldment.moe(recipe, "whole", seed=3, **SHARDS)
    weldment.ray.moe(recipe, "merged", parts=3, seed=3, **SHARDS)
    assert without_card("merged") == without_card("whole")

    tasks = ROOT / "recipes/studies/tasks/sort.jsonl"
    lines = tasks.read_text().splitlines()[:20]
    (folder / "sort.jsonl").write_text("\n".join(lines) + "\n")
    study = {
        "recipe": "recipe.yml", "tasks": ["sort.jsonl"], "strategy": "random", "trials": 6,
        "space": {"models[0].parameters.weight": {"uniform": [0, 1]}},
    }
    weldment.study(study, "alone")
    found = weldment.ray.study(study, "shared", workers=2)
    scores = lambda report: sorted(row.validation.value for row in report.leaderboard)
    assert scores(found) == scores(weldment.study_report("alone"))
