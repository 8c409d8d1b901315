"""The functions do what the commands do: the same files, the same JSON, the same texts."""

import json
import pickle
import shutil
import threading
from pathlib import Path

import pytest

import weldment
from conftest import RECIPE, ROOT, files

# What differs from run to run.
MEASURED = {"seconds", "peak_memory"}


def merged_by_both(weld, command, recipe, *words, **options):
    function = getattr(weldment, command)
    made = function(recipe, "merged", **options)
    by_python = files("merged")
    shutil.rmtree("merged")
    Path("m.gguf").unlink(missing_ok=True)
    code, out, err = weld(command, recipe, "merged", *words, "--format", "json")
    assert code == 0, err
    assert by_python == files("merged")
    kept = lambda fields: {key: fields[key] for key in fields if key not in MEASURED}
    assert kept(made) == kept(json.loads(out))
    return made


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (ROOT / "recipes").glob("*.yml") if path.name != "moe.yml")
)
def test_a_merge_writes_the_files_of_the_command(weld, folder, name):
    shutil.copy(ROOT / "recipes" / name, folder / name)
    made = merged_by_both(weld, "merge", name, "--seed", "5", seed=5)
    assert made.out == made["out"] == "merged"


def test_a_mixture_is_that_of_the_command(weld, folder):
    shutil.copy(ROOT / "recipes" / "moe.yml", folder)
    merged_by_both(weld, "moe", "moe.yml", "--fused", "--threads", "1", fused=True, threads=1)


def test_other_options_reach_the_command(weld):
    words = ["--shard-size", "100KB", "--gguf", "m.gguf", "--pre-tokenizer", "gpt-2", "--no-check"]
    options = {"shard_size": "100KB", "gguf": "m.gguf", "pre_tokenizer": "gpt-2", "no_check": True}
    made = merged_by_both(weld, "merge", "recipe.yml", *words, **options)
    assert len(list(files("merged"))) > 8 and made.gguf == "m.gguf"


def test_an_adapter_is_that_of_the_command(weld):
    pair = "family/base", "family/sort"
    options = {"module": ["q_proj", "v_proj"], "rank": 2, "dtype": "bfloat16"}
    made = weldment.extract_lora(*pair, "adapter", **options)
    by_python = files("adapter")
    words = ["--module", "q_proj", "--module", "v_proj", "--rank", "2", "--dtype", "bfloat16"]
    code, out, err = weld("extract-lora", *pair, "adapter", *words, "--force", "--format", "json")
    assert code == 0, err
    assert by_python == files("adapter")
    kept = lambda fields: {key: fields[key] for key in fields if key not in MEASURED}
    assert kept(made) == kept(json.loads(out))
    adapted = {"model": "family/base+adapter", "parameters": {"weight": 1}}
    assert weldment.merge({"merge_method": "linear", "models": [adapted]}, "m").out == "m"


def test_reports_and_plans_are_those_of_the_command(printed):
    weldment.merge("recipe.yml", "merged")
    assert weldment.plan("recipe.yml", seed=3) == printed("plan", "recipe.yml", "--seed", "3")
    assert weldment.check("merged") == printed("check", "merged")
    runtimes = weldment.check("merged", for_=["vllm", "mlx"])
    assert runtimes == printed("check", "merged", "--for", "vllm,mlx")
    pair = "family/sort", "family/add"
    assert weldment.diff(*pair, base="family/base") == printed("diff", *pair, "--base", "family/base")
    verified = weldment.verify("merged", sample_seed=1, samples=3)
    assert verified == printed("verify", "merged", "--sample-seed", "1", "--samples", "3")
    assert verified.passed and verified.verdict == "passed"
    named = {"family/sort": "family/reverse"}
    wrong = weldment.verify("merged", full=True, inputs=named)
    words = "--full", "--inputs", "family/sort=family/reverse"
    assert wrong == printed("verify", "merged", *words)
    assert not wrong.passed and wrong.findings[0].severity == "error"


@pytest.mark.parametrize("format", ["text", "json", "junit", "sarif", "github", "markdown", "html"])
def test_a_report_in_every_format_is_that_of_the_command(weld, format):
    report = weldment.diff("family/sort", "family/add")
    code, out, _ = weld("diff", "family/sort", "family/add", "-q", "--format", format)
    assert report.to(format).rstrip() == out.rstrip()
    assert code == 1 and not report.passed
    with pytest.raises(ValueError, match="junit"):
        report.to("yaml")


def test_a_policy_judges(folder):
    (folder / "policy.toml").write_text('[severity]\n"diff.values" = "off"\n')
    strict = weldment.diff("family/sort", "family/add")
    mild = weldment.diff("family/sort", "family/add", policy="policy.toml")
    assert mild.policy and mild.policy != strict.policy
    (folder / "policy.toml").write_text("nonsense")
    with pytest.raises(weldment.Error, match="policy.toml"):
        weldment.diff("family/sort", "family/add", policy="policy.toml")


def test_notebooks_show_plans_and_reports(weld):
    plan = weldment.plan("recipe.yml")
    assert "srcdoc=" in plan._repr_html_() and "linear" in plan._repr_html_()
    assert plan.to_html().rstrip() == weld("plan", "recipe.yml", "--format", "html")[1].rstrip()
    assert str(plan).rstrip() == weld("plan", "recipe.yml")[1].rstrip()
    report = weldment.check("family/sort")
    assert "srcdoc=" in report._repr_html_() and "<script" not in report._repr_html_()
    assert repr(report) == "<Report of check: passed, 0 findings>"
    assert repr(plan).startswith("<Plan: ")


def test_a_recipe_may_be_a_dictionary_or_text():
    recipe = {"merge_method": "linear", "models": [{"model": "family/sort", "parameters": {"weight": 1}}]}
    assert weldment.plan(recipe).method == "linear"
    assert weldment.plan(RECIPE).method == "linear"
    assert weldment.merge(recipe, "merged").tensors == 38
    assert weldment.verify("merged").passed


def test_results_are_plain_data_too():
    plan = weldment.plan("recipe.yml")
    plain = plan.to_dict()
    assert type(plain) is dict and type(plain["tensors"][0]) is dict and plain == plan
    assert plan.tensors[0].name == plan["tensors"][0]["name"]
    assert "method" in dir(plan)
    with pytest.raises(AttributeError, match="methud"):
        plan.methud
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_errors_say_what_they_are_about(weld, folder):
    with pytest.raises(weldment.Error) as raised:
        weldment.merge("recipe.yml", "family/sort")
    error = raised.value
    assert Path(error.file) == Path("family/sort").resolve() and error.exit_code == 1 and error.hint
    assert str(error).endswith(f"hint: {error.hint}")
    (folder / "recipe.yml").write_text(RECIPE.replace("family/add", "family/ad"))
    with pytest.raises(weldment.Error) as raised:
        weldment.plan("recipe.yml")
    error = raised.value
    line = RECIPE[: RECIPE.index("family/add")].count("\n") + 1
    assert (error.file, error.line, error.model) == ("recipe.yml", line, "family/ad")
    code, _, err = weld("plan", "recipe.yml")
    assert code == error.exit_code and err.strip() == str(error).strip()
    copy = pickle.loads(pickle.dumps(error))
    assert vars(copy) == vars(error) and str(copy) == str(error)


def test_hints_name_keywords_and_recipes_that_are_no_files(monkeypatch):
    Path("taken").mkdir()
    Path("taken/file").touch()
    with pytest.raises(weldment.Error) as raised:
        weldment.merge("recipe.yml", "taken")
    assert "force=True" in raised.value.hint and "--force" not in str(raised.value)
    with pytest.raises(weldment.Error) as raised:
        weldment.plan("recipe.yml", memory="1KB")
    assert "memory=" in raised.value.hint and "--memory" not in str(raised.value)
    with pytest.raises(weldment.Error, match="'seed='") as raised:
        weldment.plan("recipe.yml", seed="many")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = {"model": "family/sotr", "parameters": {"weight": 1}}
    recipe = {"merge_method": "linear", "models": [model]}
    for given, name in [(recipe, "<dict>"), (RECIPE.replace("family/sort", "family/sotr"), "<text>")]:
        tensors = lambda it: list(weldment.merge_tensors(it))
        for call in [weldment.plan, lambda it: weldment.merge(it, "m"), tensors]:
            with pytest.raises(weldment.Error) as raised:
                call(given)
            error = raised.value
            assert error.file is None and error.line and error.model == "family/sotr"
            assert f"{name}:{error.line}" in str(error) and "weldment-" not in str(error)


def test_options_that_are_not_there_are_type_errors():
    with pytest.raises(TypeError, match="'seed' is meant"):
        weldment.plan("recipe.yml", sede=3)
    with pytest.raises(TypeError, match="True or False"):
        weldment.merge("recipe.yml", "merged", force="yes")
    with pytest.raises(weldment.Error, match="whole number") as raised:
        weldment.plan("recipe.yml", seed="many")
    assert raised.value.exit_code == 2
    # What is about printing is no option of a function, and a name cannot become one.
    for name in ["format", "quiet", "lazy_unpickle", "help"]:
        with pytest.raises(TypeError):
            weldment.plan("recipe.yml", **{name: True})
    with pytest.raises(weldment.Error, match="--help"):
        weldment.check("--help")


def test_progress_is_told_and_may_stop_the_work(big, folder):
    told = []
    weldment.merge(big, "merged", progress=lambda *now: told.append(now))
    what, done, total = told[-1]
    assert what == "della" and 0 < done <= total
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)

    def fails(*_):
        raise LookupError("enough")

    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(LookupError, match="enough"):
        weldment.merge(big, "other", progress=fails)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_ctrl_c_stops_a_merge_and_leaves_nothing(big, folder):
    import os
    import signal

    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(KeyboardInterrupt):
        weldment.merge(big, "merged", progress=lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert sorted(path.name for path in folder.iterdir()) == before


def test_other_threads_go_on_meanwhile(big):
    counted, ended = 0, threading.Event()

    def work():
        weldment.merge(big, "merged")
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not ended.wait(0.001):
        counted += 1
    thread.join()
    assert counted > 20


@pytest.fixture
def big(folder):
    """A recipe of models that take a second to merge."""
    numpy = pytest.importorskip("numpy")
    count = 1 << 24
    for seed, name in enumerate(["base", "tuned"]):
        values = numpy.random.default_rng(seed).standard_normal(count, dtype="float32")
        header = {"w": {"dtype": "F32", "shape": [64, count // 64], "data_offsets": [0, values.nbytes]}}
        header = json.dumps(header).encode()
        (folder / name).mkdir()
        with open(folder / name / "model.safetensors", "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            values.tofile(file)
    text = "merge_method: della\nbase_model: base\nparameters: {density: 0.5, epsilon: 0.1, weight: 1}\n"
    (folder / "big.yml").write_text(text + "models: [{model: tuned}]\n")
    return "big.yml"


def test_a_model_and_a_recipe_are_scored(folder):
    sums = [(a, 7 * a % 100) for a in range(30)]
    lines = [json.dumps({"prompt": f"add:{a:02}+{b:02}=", "answer": f"{a + b:03}"}) for a, b in sums]
    tasks = folder / "sums.jsonl"
    tasks.write_text("\n".join(lines))
    before = files(folder)
    accuracy = lambda report: report["details"]["metrics"][0]["metrics"][0]["value"]
    add = weldment.eval("family/add", tasks=[tasks])
    assert accuracy(add) > 0.6 and add.passed
    models = [{"model": "family/base", "parameters": {"weight": 1.0}}]
    base = weldment.eval({"merge_method": "linear", "models": models, "dtype": "bfloat16"}, tasks=tasks)
    assert accuracy(base) == accuracy(weldment.eval("family/base", tasks=tasks))
    worse = weldment.eval("family/base", tasks=tasks, baseline="family/add", max_drop=0.01)
    assert not worse.passed and worse["findings"][0]["check"] == "eval.drop"
    assert files(folder) == before
