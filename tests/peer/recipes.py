"""The recipes that both tools run, as templates over a base and fine-tunes a, b, c.

A template says nothing of dtypes: `Recipe.texts` adds those lines, for the peer
always so that it computes in float32. `{base}`, `{a}`, `{b}`, `{c}` stand for
model folders of four layers; `{a_f32}` for `a` stored as F32, whatever the others
are stored as.
"""

import re
from dataclasses import dataclass
from typing import Optional

TORCH_NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


@dataclass(frozen=True)
class Recipe:
    name: str
    body: str
    # Which dtype is written: None is the inputs' own.
    written: Optional[str] = None
    # What weld's copy says of dtypes: "both" lines as the peer's copy, only
    # "dtype", only "out_dtype", or "nothing".
    says: str = "both"
    # Which families run it beside the thorough ones: none, all in the dtypes of `USUAL`, or
    # all in BF16 alone.
    everywhere: bool | str = False
    # Only for these input dtypes.
    inputs: tuple = ("f32", "bf16", "f16")

    @property
    def method(self):
        return re.search(r"^merge_method: (\S+)", self.body, re.MULTILINE)[1]

    @property
    def random(self):
        """Whether masks are drawn."""
        return self.method.startswith(("dare_", "della"))

    @property
    def mixes(self):
        """Whether layers of different numbers are merged with each other."""
        return self.sliced and self.name in ("slices-linear", "slices-slerp", "slices-ties")

    @property
    def sliced(self):
        return "slices:" in self.body

    def written_from(self, inputs):
        return self.written or inputs

    def texts(self, inputs, models):
        """The recipe's text for the peer and for weld."""
        body = self.body.strip("\n") + "\n"
        for key, folder in models.items():
            body = body.replace("{" + key + "}", str(folder))
        out = TORCH_NAMES[self.written_from(inputs)]
        both = "dtype: float32\n" + ("" if out == "float32" else f"out_dtype: {out}\n")
        weld = {
            "both": both,
            "dtype": f"dtype: {out}\n",
            "out_dtype": f"out_dtype: {out}\n",
            "nothing": "",
        }[self.says]
        return body + both, body + weld


def linear(name, parameters, weights=(0.5, 0.3, 0.2), **more):
    models = "".join(
        f"  - model: {{{m}}}\n    parameters:\n      weight: {w}\n" for m, w in zip("abc", weights)
    )
    return Recipe(name, f"merge_method: linear\nmodels:\n{models}{parameters}", **more)


def task_vectors(name, method, per_model, parameters="", **more):
    """A recipe of the task-arithmetic family; `per_model` is YAML flow of a, b, c."""
    models = "".join(
        f"  - model: {{{m}}}\n" + (f"    parameters: {{{p}}}\n" if p else "")
        for m, p in zip("abc", per_model)
    )
    if parameters:
        parameters = f"parameters: {{{parameters}}}\n"
    body = f"merge_method: {method}\nbase_model: {{base}}\nmodels:\n{models}{parameters}"
    return Recipe(name, body, **more)


LINEAR = [
    linear("linear", "", everywhere=True),
    linear("linear-not-normalised", "parameters:\n  normalize: false\n", weights=(0.7, 0.4, -0.2)),
    linear("linear-normalised-sum-3", "parameters:\n  normalize: true\n", weights=(1.5, 1, 0.5)),
    linear("linear-gradient", "", weights=("[0, 0.5, 1]", "[1.0, 0.2]", 0.3), everywhere=True),
    linear("linear-scientific", "", weights=("5e-1", "1e0", 0.25)),
    linear(
        "linear-filters",
        "",
        weights=(
            "[{filter: self_attn, value: 0.8}, {filter: mlp, value: [0.1, 0.9]}, {value: 0.4}]",
            "[{filter: down_proj, value: 1}, {filter: norm, value: 0.25}, {value: 0.5}]",
            "[{filter: lm_head, value: 2}, {filter: '*', value: 0.3}]",
        ),
    ),
    Recipe(
        "linear-fall-through",
        """
merge_method: linear
models:
  - model: {a}
    parameters:
      weight:
        - filter: mlp
          value: 0.9
  - model: {b}
  - model: {c}
    parameters:
      weight: 0.1
parameters:
  weight:
    - filter: q_proj
      value: 0.7
    - value: 0.3
""",
    ),
    Recipe(
        "linear-with-base-as-a-member",
        """
merge_method: linear
base_model: {base}
models:
  - model: {a}
  - model: {b}
    parameters:
      weight: 0.5
parameters:
  weight: 1.0
""",
    ),
    Recipe(
        "linear-one-model", "merge_method: linear\nmodels:\n  - model: {a}\n    parameters: {weight: 0.3}"
    ),
]

SLERP_EXAMPLE = """
slices:
  - sources:
      - model: {a}
        layer_range: [0, 4]
      - model: {b}
        layer_range: [0, 4]
merge_method: slerp
base_model: {a}
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
"""

SLERP = [
    Recipe(
        "slerp",
        "merge_method: slerp\nbase_model: {a}\nmodels:\n  - model: {a}\n  - model: {b}\nparameters:\n  t: 0.35",
        everywhere="bf16",
    ),
    Recipe("slerp-example", SLERP_EXAMPLE, everywhere=True),
    Recipe(
        "slerp-base-second",
        "merge_method: slerp\nbase_model: {b}\nmodels:\n  - model: {a}\n  - model: {b}\nparameters:\n  t: 0.25",
    ),
    Recipe(
        "slerp-base-not-listed",
        "merge_method: slerp\nbase_model: {base}\nmodels:\n  - model: {b}\nparameters:\n  t: 0.6",
    ),
    # c is within 0.9995 of the base in cosine: the linear branch.
    Recipe(
        "slerp-nearly-parallel",
        "merge_method: slerp\nbase_model: {base}\nmodels:\n  - model: {c}\nparameters:\n  t: 0.6",
    ),
    Recipe(
        "slerp-ends",
        "merge_method: slerp\nbase_model: {a}\nmodels:\n  - model: {a}\n  - model: {b}\n"
        "parameters:\n  t:\n    - filter: mlp\n      value: 0\n    - value: 1",
    ),
    Recipe(
        "slerp-beyond-one",
        "merge_method: slerp\nbase_model: {a}\nmodels:\n  - model: {a}\n  - model: {b}\nparameters:\n  t: 1.3",
    ),
]

WEIGHTS = ("weight: 0.6", "weight: 0.3", "weight: 0.4")
UNIT = ("weight: 1", "weight: 1", "weight: 1")

TASK_ARITHMETIC = [
    task_vectors("task-arithmetic", "task_arithmetic", WEIGHTS, everywhere=True),
    task_vectors("task-arithmetic-lambda", "task_arithmetic", WEIGHTS, "lambda: 0.7"),
    task_vectors("task-arithmetic-lambda-gradient", "task_arithmetic", WEIGHTS, "lambda: [0.2, 1.4]"),
    task_vectors("task-arithmetic-normalised", "task_arithmetic", UNIT, "normalize: true"),
    task_vectors(
        "task-arithmetic-negative",
        "task_arithmetic",
        ("weight: 1.2", "weight: -0.5", "weight: [0, 1]"),
    ),
    task_vectors(
        "task-arithmetic-filters",
        "task_arithmetic",
        (
            "weight: [{filter: self_attn, value: [0, 1]}, {filter: mlp, value: 0.5}, {value: 0}]",
            "weight: 0.3",
            "weight: [{filter: norm, value: 1}, {value: 0.1}]",
        ),
    ),
]


def ties_densities(*densities):
    return tuple(f"{w}, density: {d}" for w, d in zip(WEIGHTS, densities))


TIES = [
    task_vectors("ties-1", "ties", ties_densities(1, 1, 1)),
    task_vectors("ties-1-unit", "ties", UNIT),
    task_vectors("ties-0.5", "ties", ties_densities(0.5, 0.5, 0.5)),
    task_vectors("ties-0.3", "ties", ties_densities(0.3, 0.3, 0.3)),
    task_vectors(
        "ties-0.5-unit-lambda",
        "ties",
        tuple(f"{w}, density: 0.5" for w in UNIT),
        "normalize: true, lambda: 1.1",
    ),
    task_vectors("ties-not-normalised", "ties", ties_densities(0.7, 0.2, 0.5), "normalize: false"),
    task_vectors("ties-int8", "ties", ties_densities(0.53, 0.53, 0.53), "int8_mask: true, normalize: true"),
    task_vectors("ties-lambda", "ties", ties_densities(0.5, 0.9, 0.1), "lambda: 0.6"),
    task_vectors("ties-rescaled", "ties", ties_densities(0.5, 0.4, 0.3), "rescale: true"),
    task_vectors(
        "ties-density-gradient",
        "ties",
        ("weight: 0.6, density: [1, 0.7, 0.1]", "weight: 0.3, density: [0.1, 0.9]", "weight: 0.4, density: 0.5"),
    ),
    # One element at least is kept of a small tensor, none at density 0.
    task_vectors("ties-tiny-density", "ties", ties_densities(0.001, 0, 0.002)),
    Recipe(
        "ties-example",
        """
models:
  - model: {base}
  - model: {a}
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: {b}
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
  - model: {c}
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: {base}
parameters:
  normalize: true
  int8_mask: true
""",
        everywhere=True,
    ),
    Recipe(
        "ties-one-model",
        "merge_method: ties\nbase_model: {base}\nmodels:\n  - model: {a}\n    parameters: {weight: 0.7, density: 0.4}",
    ),
]

DARE = [
    task_vectors("dare-linear-1", "dare_linear", ties_densities(1, 1, 1)),
    task_vectors("dare-ties-1", "dare_ties", ties_densities(1, 1, 1)),
    task_vectors("dare-ties-1-normalised", "dare_ties", UNIT, "normalize: true, lambda: 1.2"),
]

# The masks are weld's own: the peer is given them, so that the rest can be compared.
DARE += [
    task_vectors("dare-linear", "dare_linear", ties_densities(0.5, 0.3, 0.8)),
    task_vectors("dare-linear-normalised", "dare_linear", ties_densities(0.6, 0.6, 0.6), "normalize: true"),
    task_vectors("dare-linear-not-rescaled", "dare_linear", ties_densities(0.5, 0.3, 0.8), "rescale: false"),
    task_vectors("dare-ties", "dare_ties", ties_densities(0.5, 0.3, 0.8), everywhere=True),
    task_vectors(
        "dare-ties-gradient",
        "dare_ties",
        ("weight: 0.6, density: [0.9, 0.1]", "weight: [0.3, 0.7], density: 0.5", "weight: 0.4"),
        "normalize: true, lambda: 0.8",
    ),
]

DELLA = [
    task_vectors("della-1", "della", WEIGHTS),
    task_vectors("della", "della", ties_densities(0.5, 0.4, 0.7), everywhere="bf16"),
    task_vectors(
        "della-epsilon",
        "della",
        tuple(f"{w}, density: 0.6, epsilon: {e}" for w, e in zip(WEIGHTS, (0.3, 0.01, 0.1))),
        "normalize: false, lambda: 1.1",
    ),
    task_vectors("della-not-rescaled", "della", ties_densities(0.5, 0.4, 0.7), "rescale: false"),
    task_vectors("della-linear-1", "della_linear", WEIGHTS),
    task_vectors("della-linear", "della_linear", ties_densities(0.5, 0.4, 0.7), everywhere="bf16"),
    task_vectors(
        "della-linear-gradient",
        "della_linear",
        ("weight: 0.6, density: [0.7, 0.3]", "weight: 0.3, density: 0.5, epsilon: 0.2", "weight: 0.4"),
        "lambda: 0.8",
    ),
]


def outliers(density, gamma=None):
    gamma = "" if gamma is None else f", gamma: {gamma}"
    return tuple(f"{w}, density: {density}{gamma}" for w in WEIGHTS)


BREADCRUMBS = [
    task_vectors("breadcrumbs", "breadcrumbs", outliers(0.7), everywhere="bf16"),
    task_vectors("breadcrumbs-gamma", "breadcrumbs", outliers(0.4, 0.2), "lambda: 1.2"),
    task_vectors("breadcrumbs-gamma-0", "breadcrumbs", outliers(0.5, 0)),
    task_vectors("breadcrumbs-crowded", "breadcrumbs", outliers(0.9, 0.3)),
    task_vectors("breadcrumbs-normalised", "breadcrumbs", outliers(0.6, 0.05), "normalize: true"),
    task_vectors("breadcrumbs-rescaled", "breadcrumbs", outliers(0.6, 0.05), "rescale: true"),
    task_vectors(
        "breadcrumbs-gradient",
        "breadcrumbs",
        ("weight: 0.6, density: [0.9, 0.2]", "weight: 0.3, gamma: [0, 0.4], density: 0.5", "weight: 0.4"),
    ),
    task_vectors("breadcrumbs-ties", "breadcrumbs_ties", outliers(0.7), everywhere="bf16"),
    task_vectors("breadcrumbs-ties-gamma", "breadcrumbs_ties", outliers(0.4, 0.2), "normalize: true"),
]

SCE = [
    task_vectors("sce", "sce", ("", "", ""), everywhere="bf16"),
    task_vectors("sce-0.5", "sce", ("", "", ""), "select_topk: 0.5", everywhere="bf16"),
    task_vectors("sce-0.1-int8", "sce", ("", "", ""), "select_topk: 0.1, int8_mask: true"),
    task_vectors("sce-0", "sce", ("", "", ""), "select_topk: 0"),
    task_vectors("sce-gradient", "sce", ("", "", ""), "select_topk: [0.9, 0.2]"),
]


def pair(name, method, parameters="", **more):
    """A recipe of the base and one model."""
    parameters = f"parameters: {{{parameters}}}\n" if parameters else ""
    body = f"merge_method: {method}\nbase_model: {{base}}\nmodels:\n  - model: {{b}}\n{parameters}"
    return Recipe(name, body, **more)


FUSION = [
    pair("arcee-fusion", "arcee_fusion", everywhere="bf16"),
    Recipe(
        "arcee-fusion-slices",
        """
merge_method: arcee_fusion
base_model: {a}
slices:
  - sources:
      - model: {a}
        layer_range: [0, 4]
      - model: {b}
        layer_range: [0, 4]
""",
    ),
]

NEARSWAP = [
    pair("nearswap", "nearswap", "t: 0.001", everywhere="bf16"),
    pair("nearswap-gradient", "nearswap", "t: [0.0001, 0.01]"),
    pair("nearswap-large", "nearswap", "t: 10"),
]

RAM = [
    task_vectors("ram", "ram", ("", "", "")),
    task_vectors("ram-epsilon", "ram", ("", "", ""), "epsilon: 0.0015", everywhere="bf16"),
    task_vectors("ramplus", "ramplus_tl", ("", "", ""), "epsilon: 0.0015", everywhere="bf16"),
    task_vectors("ramplus-r", "ramplus_tl", ("", "", ""), "epsilon: 0.001, r: 0.4, alpha: 0.6"),
    task_vectors("ramplus-gradient", "ramplus_tl", ("", "", ""), "epsilon: 0.001, r: [0, 1]"),
]


def members(name, method, weights, parameters="", base="", **more):
    """A recipe of as many of a, b, c as there are weights; None is no weight."""
    models = "".join(
        f"  - model: {{{m}}}\n" + ("" if w is None else f"    parameters: {{weight: {w}}}\n")
        for m, w in zip("abc", weights)
    )
    parameters = f"parameters: {{{parameters}}}\n" if parameters else ""
    base = f"base_model: {{{base}}}\n" if base else ""
    return Recipe(name, f"merge_method: {method}\n{base}models:\n{models}{parameters}", **more)


NUSLERP = [
    members("nuslerp", "nuslerp", (0.7, 0.3), everywhere="bf16"),
    members("nuslerp-base", "nuslerp", (0.6, 0.9), base="base", everywhere="bf16"),
    members("nuslerp-gradient", "nuslerp", ("[0.1, 0.9]", 0.5), base="base"),
    members("nuslerp-rows", "nuslerp", (0.6, 0.4), "nuslerp_flatten: false", base="base"),
    members("nuslerp-columns", "nuslerp", (0.6, 0.4), "nuslerp_flatten: false, nuslerp_row_wise: true"),
    members("nuslerp-beyond-one", "nuslerp", (-0.3, 1.1), base="base"),
]

MULTISLERP = [
    members("multislerp", "multislerp", (0.5, 0.3, 0.4), everywhere="bf16"),
    members("multislerp-base", "multislerp", (0.5, 0.3, 0.4), base="base", everywhere="bf16"),
    members("multislerp-raw", "multislerp", (0.5, 0.3, 0.4), "normalize_weights: false", base="base"),
    members("multislerp-gradient", "multislerp", ("[0, 1]", "[1, 0.5]", 0.4), "eps: 1e-6", base="base"),
    members("multislerp-two", "multislerp", (1, 2)),
    members("multislerp-one", "multislerp", (0.7,), base="base"),
]

KARCHER = [
    members("karcher", "karcher", (None, None, None), everywhere="bf16"),
    members("karcher-two", "karcher", (None, None)),
    members("karcher-base", "karcher", (None, None), base="base"),
    members("karcher-one-step", "karcher", (None, None, None), "max_iter: 1, tol: 1e-4"),
]

MODEL_STOCK = [
    members("model-stock", "model_stock", (None, None, None), base="base", everywhere="bf16"),
    members("model-stock-two", "model_stock", (None, None), base="base"),
    members("model-stock-rows", "model_stock", (None, None, None), "filter_wise: true", base="base"),
]

STACKS = [
    Recipe(
        "passthrough-stack",
        """
merge_method: passthrough
slices:
  - sources:
      - model: {a}
        layer_range: [0, 3]
  - sources:
      - model: {b}
        layer_range: [1, 4]
""",
        everywhere=True,
    ),
    Recipe(
        "passthrough-scaled",
        """
merge_method: passthrough
slices:
  - sources:
      - model: {a}
        layer_range: [0, 3]
  - sources:
      - model: {a}
        layer_range: [1, 3]
        parameters:
          scale:
            - filter: o_proj
              value: 0.0
            - filter: down_proj
              value: 0.0
            - value: 1.0
  - sources:
      - model: {a}
        layer_range: [3, 4]
        parameters:
          scale: 0.7
""",
        everywhere=True,
    ),
    Recipe("passthrough-one-model", "merge_method: passthrough\nmodels:\n  - model: {b}"),
    Recipe(
        "passthrough-prune",
        """
merge_method: passthrough
slices:
  - sources: [{model: {b}, layer_range: [0, 1]}]
  - sources: [{model: {b}, layer_range: [3, 4]}]
""",
    ),
    Recipe(
        "slices-linear",
        """
merge_method: linear
slices:
  - sources:
      - model: {a}
        layer_range: [0, 2]
        parameters: {weight: [0.2, 0.8]}
      - model: {b}
        layer_range: [2, 4]
        parameters: {weight: 0.5}
  - sources:
      - model: {c}
        layer_range: [1, 4]
        parameters: {weight: 0.9}
      - model: {a}
        layer_range: [0, 3]
        parameters: {weight: [0.1, 0.5, 0.3]}
""",
        everywhere=True,
    ),
    Recipe(
        "slices-slerp",
        """
merge_method: slerp
base_model: {a}
slices:
  - sources:
      - model: {a}
        layer_range: [0, 3]
      - model: {b}
        layer_range: [1, 4]
    parameters:
      t: [0.1, 0.9]
  - sources:
      - model: {b}
        layer_range: [3, 4]
      - model: {a}
        layer_range: [3, 4]
parameters:
  t: [0.2, 0.6]
""",
    ),
    Recipe(
        "slices-ties",
        """
merge_method: ties
base_model: {base}
slices:
  - sources:
      - model: {base}
        layer_range: [0, 2]
      - model: {a}
        layer_range: [0, 2]
        parameters: {weight: 0.5, density: [0.9, 0.2]}
      - model: {b}
        layer_range: [2, 4]
        parameters: {weight: 0.5}
    parameters:
      density: 0.6
  - sources:
      - model: {base}
        layer_range: [3, 4]
      - model: {c}
        layer_range: [3, 4]
        parameters: {density: 0.5}
parameters:
  weight: 0.8
  normalize: false
""",
    ),
    Recipe(
        "slices-own-base",
        """
merge_method: task_arithmetic
base_model: {base}
slices:
  - sources:
      - model: {base}
        layer_range: [0, 2]
      - model: {a}
        layer_range: [0, 2]
  - base_model: {b}
    sources:
      - model: {b}
        layer_range: [2, 4]
      - model: {c}
        layer_range: [2, 4]
parameters:
  weight: 0.4
""",
    ),
]

LINEAR_BODY = LINEAR[0].body
TIES_BODY = TIES[2].body

DTYPES = [
    # Another dtype written than read.
    Recipe("to-bf16", LINEAR_BODY, written="bf16", inputs=("f32", "f16")),
    Recipe("to-f16", LINEAR_BODY, written="f16", inputs=("f32", "bf16")),
    Recipe("to-f32", TIES_BODY, written="f32", inputs=("bf16", "f16")),
    # `dtype` names what weld writes, not what it computes in.
    Recipe("dtype-line", TIES_BODY, says="dtype"),
    Recipe("dtype-line-bf16", TIES_BODY, written="bf16", says="dtype", inputs=("f32", "f16")),
    Recipe("out-dtype-line", LINEAR_BODY, says="out_dtype"),
    Recipe("out-dtype-line-f16", LINEAR_BODY, written="f16", says="out_dtype", inputs=("f32", "bf16")),
    Recipe("no-dtype-line", SLERP_EXAMPLE, says="nothing", everywhere=True),
    # The inputs' dtypes are promoted when nothing is said.
    Recipe(
        "mixed-inputs",
        "merge_method: linear\nmodels:\n"
        "  - model: {a_f32}\n    parameters: {weight: 0.3}\n"
        "  - model: {b}\n    parameters: {weight: 0.7}",
        written="f32",
        says="nothing",
    ),
]

RECIPES = (
    LINEAR
    + SLERP
    + NUSLERP
    + MULTISLERP
    + KARCHER
    + MODEL_STOCK
    + NEARSWAP
    + TASK_ARITHMETIC
    + TIES
    + DARE
    + DELLA
    + BREADCRUMBS
    + SCE
    + RAM
    + FUSION
    + STACKS
    + DTYPES
)

# The families that run every recipe in every dtype; the others run those marked `everywhere`.
THOROUGH = ("llama", "qwen2-tied", "gpt2")
USUAL = ("f32", "bf16")


def runs(name, family, dtype, recipe):
    """Whether the matrix has this case."""
    if recipe.sliced and not family.stacked or recipe.mixes and not family.alike:
        return False
    if name in THOROUGH:
        return True
    return dtype == "bf16" if recipe.everywhere == "bf16" else recipe.everywhere and dtype in USUAL


def matrix(families, dtypes, pattern=""):
    """Every (family's name, dtype, recipe) to run, in order; `families` are those of models.py by name."""
    for name, family in families.items():
        for dtype in dtypes:
            for recipe in RECIPES:
                if dtype in recipe.inputs and pattern in recipe.name and runs(name, family, dtype, recipe):
                    yield name, dtype, recipe
