"""Tensors in memory: read where they are, merged to the bytes that the command writes."""

import gc
import json
import shutil
import threading
import time
from pathlib import Path

import pytest

import weldment

numpy = pytest.importorskip("numpy")

DTYPES = {"F32": "float32", "F64": "float64", "F16": "float16", "I64": "int64", "BOOL": "bool"}
RECIPE = Path(__file__).resolve().parents[2] / "recipes"


def written(folder):
    """The tensors of a written checkpoint by the plainest reader: dtype, shape, bytes."""
    found = {}
    for file in Path(folder).glob("*.safetensors"):
        data = file.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        header.pop("__metadata__", None)
        for name, row in header.items():
            start, end = (8 + size + offset for offset in row["data_offsets"])
            found[name] = row["dtype"], row["shape"], data[start:end]
    return found


def held(array):
    """An array or tensor as dtype, shape, bytes."""
    if type(array).__module__.startswith("torch"):
        import torch

        code = {"bfloat16": "BF16", "float32": "F32", "int64": "I64"}[str(array.dtype)[6:]]
        raw = array.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return code, list(array.shape), raw
    codes = {"bfloat16": "BF16", **{name: code for code, name in DTYPES.items()}}
    return codes[array.dtype.name], list(array.shape), array.tobytes()


@pytest.fixture(params=["numpy", "torch"])
def framework(request):
    if request.param == "torch":
        pytest.importorskip("torch")
    else:
        pytest.importorskip("ml_dtypes")
    return request.param


@pytest.mark.parametrize("name", ["linear", "ties", "slerp", "della", "model_stock"])
def test_models_in_memory_give_the_bytes_of_the_command(folder, framework, name):
    shutil.copy(RECIPE / f"{name}.yml", folder)
    weldment.merge(f"{name}.yml", "merged", seed=4)
    models = ["family/base", "family/sort", "family/reverse", "family/add", "family/cipher"]
    text = Path(f"{name}.yml").read_text()
    state = {model: weldment.open(model, framework=framework) for model in models if model in text}
    configs = {model: tensors.config for model, tensors in state.items()}
    shutil.rmtree("family")
    merged = weldment.merge_state_dicts(f"{name}.yml", state, configs=configs, seed=4)
    assert {key: held(value) for key, value in merged.items()} == written("merged")
    # Without configs, too, as nothing is sliced.
    merged = weldment.merge_state_dicts(f"{name}.yml", state, seed=4)
    assert {key: held(value) for key, value in merged.items()} == written("merged")


def test_what_is_iterated_is_what_is_written(framework):
    weldment.merge("recipe.yml", "merged")
    found = dict(weldment.merge_tensors("recipe.yml", framework=framework))
    assert {key: held(value) for key, value in found.items()} == written("merged")


def test_an_open_model_has_the_bytes_of_its_files(framework):
    model = weldment.open("family/sort", framework=framework)
    expected = written("family/sort")
    assert {name: held(model[name]) for name in model} == expected
    assert {row.name: (row.dtype, row.shape) for row in model.tensors} == {
        name: (dtype, shape) for name, (dtype, shape, _) in expected.items()
    }
    assert model.config.model_type == "llama" and len(model) == len(expected)
    with pytest.raises(KeyError):
        model["nothing"]


def test_writing_to_an_open_model_does_not_reach_its_file(framework):
    before = written("family/sort")
    model = weldment.open("family/sort", framework=framework)
    model["model.norm.weight"][...] = 0
    assert written("family/sort") == before


def pair(**more):
    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": "a", "parameters": {"weight": 0.25}},
            {"model": "b", "parameters": {"weight": 0.75}},
        ],
        **more,
    }
    return recipe


def test_every_dtype_layout_and_shape_is_read_as_it_is():
    rng = numpy.random.default_rng(1)
    floats = rng.standard_normal((6, 4)).astype("float32")
    a = {
        "plain": floats,
        "turned": floats.T,
        "some": floats[::2, 1:3],
        "big": floats.astype(">f4"),
        "double": floats.astype("float64"),
        "half": floats.astype("float16"),
        "scalar": numpy.float32(3).reshape(()),
        "none": numpy.zeros((0, 4), "float32"),
        "whole": numpy.arange(4),
        "yes": numpy.array([True, False]),
    }
    assert not a["turned"].flags.c_contiguous and not a["some"].flags.c_contiguous
    merged = weldment.merge_state_dicts(pair(), {"a": a, "b": a})
    assert list(merged) == list(a)
    for name, value in merged.items():
        assert value.dtype == a[name].dtype.newbyteorder("="), name
        assert value.shape == a[name].shape
        assert numpy.array_equal(value, a[name]), name
        value[...] = 0  # what is given may be written to


def test_nothing_is_copied_in():
    count = 1 << 22
    a, b = ({"w": numpy.full(count, value, "float32")} for value in (1, 2))
    from weldment import _arrays

    for array in (a["w"], b["w"]):
        assert _arrays.foreign("w", array)[3] == array.ctypes.data
    merged = weldment.merge_state_dicts(pair(dtype="float32"), {"a": a, "b": b})
    assert numpy.array_equal(merged["w"], numpy.full(count, 1.75, "float32"))


def test_models_in_memory_and_on_disk_mix():
    recipe = pair()
    recipe["models"][1]["model"] = "family/add"
    sort, add = (weldment.open(f"family/{name}") for name in ("sort", "add"))
    mixed = weldment.merge_state_dicts(recipe, {"a": sort})
    recipe["models"][1]["model"] = "b"
    both = weldment.merge_state_dicts(recipe, {"a": sort, "b": add})
    assert {name: held(value) for name, value in mixed.items()} == {
        name: held(value) for name, value in both.items()
    }


def test_tensors_live_as_long_as_the_merge_needs_them():
    def state(value):
        return {f"w{at}": numpy.full(1 << 18, value, "float32") for at in range(20)}

    merging = weldment.merge_tensors(pair(dtype="float32"), {"a": state(1), "b": state(2)})
    gc.collect()
    for name, value in merging:
        assert (value == 1.75).all(), name


def test_an_iterator_that_is_left_ends_its_work():
    state = {f"w{at}": numpy.ones(1 << 18, "float32") for at in range(50)}

    def threads():
        return sum("weldment" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))

    before = threads()
    merging = weldment.merge_tensors(pair(dtype="float32"), {"a": state, "b": state})
    next(merging)
    assert threads() > before
    del merging
    gc.collect()
    for _ in range(100):
        if threads() == before:
            break
        time.sleep(0.05)
    assert threads() == before


def test_what_is_wrong_is_said():
    one = {"w": numpy.array([1], "float32")}
    nan = {"w": numpy.array([numpy.nan], "float32")}
    with pytest.raises(weldment.Error, match="NaN") as raised:
        weldment.merge_state_dicts(pair(), {"a": one, "b": nan})
    assert (raised.value.tensor, raised.value.model) == ("w", "b")
    assert numpy.isnan(weldment.merge_state_dicts(pair(), {"a": one, "b": nan}, allow_nonfinite=True)["w"])
    with pytest.raises(weldment.Error, match="`c`"):
        weldment.merge_state_dicts(pair(), {"a": one, "b": one, "c": one})
    with pytest.raises(weldment.Error) as raised:
        weldment.merge_state_dicts(pair(), {"a": one})
    assert raised.value.model == "b"
    other = {"w": numpy.ones(2, "float32")}
    with pytest.raises(weldment.Error, match="w"):
        weldment.merge_state_dicts(pair(), {"a": one, "b": other})
    with pytest.raises(TypeError, match="complex128"):
        weldment.merge_state_dicts(pair(), {"a": {"w": numpy.ones(1, "complex128")}, "b": one})
    with pytest.raises(ValueError, match="framework"):
        weldment.open("family/sort", framework="jax")
    with pytest.raises(ValueError, match="configs"):
        weldment.merge_state_dicts(pair(), {"a": one, "b": one}, configs={"x": {}})
    with pytest.raises(TypeError, match="a config is"):
        weldment.merge_state_dicts(pair(), {"a": one, "b": one}, configs={"a": "llama"})
    with pytest.raises(weldment.Error) as raised:
        weldment.open("nowhere/at-all")
    assert raised.value.model == "nowhere/at-all"


def test_an_adapter_is_applied_when_its_model_is_opened(folder):
    rank, width = 2, numpy.asarray(weldment.open("family/sort")["model.layers.0.self_attn.q_proj.weight"])
    rows, columns = width.shape
    rng = numpy.random.default_rng(0)
    a = rng.standard_normal((rank, columns)).astype("float32")
    b = rng.standard_normal((rows, rank)).astype("float32")
    (folder / "lora").mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]}
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(config))
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    save(folder / "lora" / "adapter_model.safetensors", {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b})
    recipe = {"merge_method": "passthrough", "models": [{"model": "family/sort+lora"}]}
    weldment.merge(recipe, "merged")
    model = weldment.open("family/sort+lora")
    assert {name: held(model[name]) for name in model} == written("merged")
    # And over a model in memory.
    recipe["models"][0]["model"] = "mine+lora"
    sort = weldment.open("family/sort")
    merged = weldment.merge_state_dicts(recipe, {"mine": sort}, configs={"mine": sort.config})
    assert {name: held(value) for name, value in merged.items()} == written("merged")


def save(path, tensors):
    """Writes float32 arrays as safetensors."""
    header, data = {}, b""
    for name, array in tensors.items():
        ends = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": ends}
        data += array.tobytes()
    header = json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def test_ctrl_c_stops_an_iteration():
    import os
    import signal

    state = {f"w{at}": numpy.ones(1 << 20, "float32") for at in range(40)}
    merging = weldment.merge_tensors(
        pair(dtype="float32"), {"a": state, "b": state}, progress=lambda *_: os.kill(os.getpid(), signal.SIGINT)
    )
    with pytest.raises(KeyboardInterrupt):
        for _ in merging:
            time.sleep(0.2)
    assert threading.active_count() >= 1
