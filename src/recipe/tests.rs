//! The grammar by example: recipes, and the messages on them.

use std::fmt::Write;

use proptest::prelude::*;

use super::*;
use methods::{Arity, BaseRule, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue};

const fn method(
    name: &'static str,
    models: Arity,
    base: BaseRule,
    params: &'static [ParamInfo],
) -> MethodInfo {
    MethodInfo {
        name,
        summary: "",
        formula: "",
        when: "",
        departs: "",
        source: "",
        models,
        base,
        params,
        random: false,
        statistics: None,
    }
}

const fn param(name: &'static str, kind: ParamKind, scope: ParamScope) -> ParamInfo {
    ParamInfo {
        name,
        kind,
        scope,
        default: None,
        required: false,
        doc: "",
    }
}

const fn required(param: ParamInfo) -> ParamInfo {
    ParamInfo {
        required: true,
        ..param
    }
}

const UNIT: ParamKind = ParamKind::Range { min: 0.0, max: 1.0 };
const RESCALE: ParamKind = ParamKind::Word {
    words: &["l1", "expectation", "false"],
    booleans: Some(("l1", "false")),
};

static LINEAR: MethodInfo = method(
    "linear",
    Arity { min: 1, max: None },
    BaseRule::OneOfModels,
    &[
        required(param("weight", ParamKind::Number, ParamScope::EachModel)),
        ParamInfo {
            default: Some(ParamValue::Bool(true)),
            ..param("normalize", ParamKind::Bool, ParamScope::Tensor)
        },
    ],
);
static SLERP: MethodInfo = method(
    "slerp",
    Arity {
        min: 2,
        max: Some(2),
    },
    BaseRule::Required,
    &[required(param("t", UNIT, ParamScope::Tensor))],
);
static TIES: MethodInfo = method(
    "ties",
    Arity { min: 2, max: None },
    BaseRule::Required,
    &[
        required(param("weight", ParamKind::Number, ParamScope::EachButBase)),
        ParamInfo {
            default: Some(ParamValue::Number(1.0)),
            ..param("density", UNIT, ParamScope::EachButBase)
        },
        param("normalize", ParamKind::Bool, ParamScope::Tensor),
        param("rescale", RESCALE, ParamScope::Tensor),
    ],
);
static PASSTHROUGH: MethodInfo = method(
    "passthrough",
    Arity {
        min: 1,
        max: Some(1),
    },
    BaseRule::OneOfModels,
    &[param("scale", ParamKind::Number, ParamScope::EachModel)],
);

static NUSLERP: MethodInfo = method(
    "nuslerp",
    Arity {
        min: 2,
        max: Some(2),
    },
    BaseRule::Optional,
    &[required(param(
        "weight",
        ParamKind::Number,
        ParamScope::EachButBase,
    ))],
);

const METHODS: &[&MethodInfo] = &[&LINEAR, &SLERP, &TIES, &PASSTHROUGH];

fn recipe(text: &str) -> Recipe {
    match parse("r.yml", text, METHODS) {
        Ok(recipe) => recipe,
        Err(error) => panic!("{error}"),
    }
}

/// The messages on a recipe: its problems, or its warnings.
fn said(text: &str) -> String {
    match parse("r.yml", text, METHODS) {
        Ok(recipe) if recipe.warnings.is_empty() => "sound".into(),
        Ok(recipe) => format!("sound\n{}", recipe.error(recipe.warnings.clone())),
        Err(error) => error.to_string(),
    }
}

/// The same for an entry of `parameters:` of a `ties` recipe.
fn said_of(parameters: &str) -> String {
    said(&format!(
        "merge_method: ties\nbase_model: b\nmodels:\n- model: x\nparameters:\n  weight: 1\n  {parameters}\n"
    ))
}

const GRADIENT_SLERP: &str = "\
slices:
  - sources:
      - model: psmathur/orca_mini_v3_13b
        layer_range: [0, 40]
      - model: garage-bAInd/Platypus2-13B@main
        layer_range: [0, 40]
merge_method: slerp
base_model: psmathur/orca_mini_v3_13b
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: float16
";

#[test]
fn a_gradient_slerp_is_read() {
    let recipe = recipe(GRADIENT_SLERP);
    assert_eq!(recipe.method.name, "slerp");
    assert_eq!(recipe.dtype, Some(safetensors::Dtype::F16));
    assert_eq!(recipe.out_dtype, None);
    let Inputs::Slices(slices) = &recipe.modules[0].inputs else {
        panic!("no slices");
    };
    assert_eq!(slices[0].sources[1].layer_range, 0..40);
    assert_eq!(slices[0].sources[1].model.at.line, 5);
    assert_eq!(recipe.base_of(&slices[0]), recipe.base_model.as_ref());
    let t = |tensor: &str, depth| resolve(&SLERP.params[0], &[&recipe.parameters], tensor, depth);
    let number = |value| Some(ParamValue::Number(value));
    assert_eq!(
        t("model.layers.3.self_attn.q_proj.weight", 0.25),
        number(0.5)
    );
    assert_eq!(t("model.layers.3.mlp.up_proj.weight", 1.0), number(0.0));
    assert_eq!(t("model.norm.weight", 0.3), number(0.5));
    let filters: Vec<&str> = recipe
        .parameters
        .get("t")
        .into_iter()
        .flat_map(Setting::filters)
        .map(|filter| filter.value.as_str())
        .collect();
    assert_eq!(filters, ["self_attn", "mlp"]);
}

#[test]
fn a_passthrough_stack_of_44_layers_is_read() {
    let mut text = "merge_method: passthrough\nslices:\n".to_owned();
    for (model, from, to) in [("a", 0, 16), ("b", 4, 16), ("a", 8, 24)] {
        writeln!(
            text,
            "- sources:\n  - {{model: org/{model}, layer_range: [{from}, {to}], parameters: {{scale: 0.5}}}}"
        )
        .unwrap();
    }
    let recipe = recipe(&text);
    let Inputs::Slices(slices) = &recipe.modules[0].inputs else {
        panic!("no slices");
    };
    let layers: usize = slices.iter().map(|s| s.sources[0].layer_range.len()).sum();
    assert_eq!(layers, 44);
    let models: Vec<&str> = recipe.mentions().map(|model| model.value.text()).collect();
    assert_eq!(models, ["org/a", "org/b", "org/a"]);
}

#[test]
fn precedence_is_source_slice_recipe_default() {
    let recipe = recipe(
        "
merge_method: ties
base_model: base
slices:
- sources:
  - {model: base, layer_range: [0, 2]}
  - model: x
    layer_range: [0, 2]
    parameters: {weight: [{filter: mlp, value: 1}]}
  parameters: {weight: [{filter: mlp, value: 2}, {filter: norm, value: 3}]}
parameters:
  weight: [{filter: norm, value: 4}, {filter: '*', value: 5}]
",
    );
    let Inputs::Slices(slices) = &recipe.modules[0].inputs else {
        panic!("no slices");
    };
    let levels = [
        &slices[0].sources[1].parameters,
        &slices[0].parameters,
        &recipe.parameters,
    ];
    let check = |param: &ParamInfo, tensor: &str, expected: f64| {
        let value = resolve(param, &levels, tensor, 0.0);
        assert_eq!(value, Some(ParamValue::Number(expected)), "{tensor}");
    };
    check(&TIES.params[0], "layers.0.mlp.up", 1.0);
    check(&TIES.params[0], "layers.0.norm", 3.0);
    check(&TIES.params[0], "layers.0.attn", 5.0);
    check(&TIES.params[1], "layers.0.attn", 1.0);
    assert_eq!(resolve(&TIES.params[2], &levels, "x", 0.0), None);
}

#[test]
fn a_base_that_is_not_listed_is_referenced_last() {
    let recipe = recipe(
        "{merge_method: ties, base_model: b, models: [{model: y}, {model: x}], parameters: {weight: 1}}",
    );
    let models: Vec<&str> = recipe.mentions().map(|model| model.value.text()).collect();
    assert_eq!(models, ["y", "x", "b"]);
}

#[test]
fn mergekits_leniences_that_mean_something_are_kept() {
    let sound = |text: &str| assert_eq!(said(text), "sound", "{text}");
    sound(
        "merge_method: linear\nmodels:\n- model: a\n  parameters: {weight: 1e-3}\n- model: b\n  parameters: {weight: '5e-1'}\n",
    );
    sound(
        "merge_method: linear\nmodels: [{model: {model: {path: a, revision: main}}}, {model: {path: b}}, {model: {model: c@x}}]\nparameters: {weight: 1}\n",
    );
    sound(
        "merge_method: linear\nmodels: [{model: a, parameters: }]\nparameters: {weight: 1}\nbase_model: ~\ndtype:\nslices: null\ntokenizer_source: null\n",
    );
    sound(
        "merge_method: linear\nmodels: [{model: a, parameters: &d {weight: 1}}, {model: b, parameters: *d}, {model: c, parameters: {<<: *d}}]\n",
    );
    sound(
        "\u{feff}merge_method: linear\r\nmodels:\r\n- model: a\r\nparameters:\r\n  weight: 1\r\n",
    );
    for dtype in [
        "torch.bfloat16",
        "float16",
        "float32",
        "float64",
        "float8_e4m3fn",
        "float8_e5m2",
    ] {
        sound(&format!(
            "merge_method: linear\nmodels: [{{model: a}}]\nparameters: {{weight: 1}}\ndtype: {dtype}\nout_dtype: {dtype}"
        ));
    }
    for truth in [
        "true",
        "yes",
        "on",
        "1",
        "1.0",
        "'True'",
        "false",
        "no",
        "Off",
        "0",
        "[true, false]",
    ] {
        assert_eq!(said_of(&format!("normalize: {truth}")), "sound", "{truth}");
    }
    for word in [
        "l1",
        "expectation",
        "'false'",
        "true",
        "false",
        "no",
        "[l1, false]",
    ] {
        assert_eq!(said_of(&format!("rescale: {word}")), "sound", "{word}");
    }
    for density in [
        "0",
        "1",
        "0.5",
        "[0, 1]",
        "'0.5'",
        "{value: 0.5}",
        "{filter: ~, value: [0, 1]}",
        "[{filter: mlp, value: 1}]",
    ] {
        assert_eq!(
            said_of(&format!("density: {density}")),
            "sound",
            "{density}"
        );
    }
}

#[test]
fn a_word_reads_booleans_by_its_table() {
    let value = |word: &str| {
        let recipe = recipe(&format!(
            "merge_method: ties\nbase_model: b\nmodels: [{{model: x}}]\nparameters: {{weight: 1, rescale: {word}}}\n"
        ));
        recipe
            .parameters
            .get("rescale")
            .and_then(|s| s.value_at("x", 0.0))
    };
    assert_eq!(value("true"), Some(ParamValue::Word("l1")));
    assert_eq!(value("no"), Some(ParamValue::Word("false")));
    assert_eq!(value("expectation"), Some(ParamValue::Word("expectation")));
}

#[test]
fn whole_recipes_are_refused_with_reasons() {
    insta::assert_snapshot!(said(""), @"
    r.yml: the recipe is empty
      hint: a recipe has at least `merge_method:` and `models:` or `slices:`
    ");
    insta::assert_snapshot!(said("- a\n- b\n"), @r"
    r.yml:1:1: expected a recipe, found a list
      hint: a recipe has at least `merge_method:` and `models:` or `slices:`
    ");
    insta::assert_snapshot!(said("models: [{model: a}]\n"), @r"
    r.yml: missing `merge_method`
      hint: the methods are `linear`, `slerp`, `ties`, `passthrough`
    ");
    insta::assert_snapshot!(said("merge_method: linear\n"), @r"
    r.yml: missing `models` or `slices`
      hint: list the models to merge under `models:`
    ");
    insta::assert_snapshot!(said("merge_method: linear\nmodels: [{model: a}]\nslices: []\nparameters: {weight: 1}"), @"
    r.yml:3:1: expected one of `models`, `slices` and `modules`, found more
    r.yml:3:9: expected a list for `slices`, found an empty list
    ");
    insta::assert_snapshot!(said("merge_method: linear\nmodels: []\n"), @"r.yml:2:9: expected a list for `models`, found an empty list");
    insta::assert_snapshot!(said("merge_method: linaer\nmodels: [{model: a}]\nparameters: {wieght: 1}\n"), @r"
    r.yml:1:15: unknown merge method `linaer`
      hint: did you mean `linear`? the methods are `linear`, `slerp`, `ties`, `passthrough`
    ");
    insta::assert_snapshot!(said("merge_method: 3\nmodels: [{model: a}]\n"), @r"
    r.yml:1:15: expected text for `merge_method`, found `3`
      hint: if text is meant, put it in quotes
    ");
    insta::assert_snapshot!(said("merge_method: linear\nmodules: {}\ntokenizer: {source: union}\ntokenizer_source: base\nchat_template: auto\n"), @r"
    r.yml:2:10: expected the modules of the model, found none
      hint: write a module's name, such as `text_decoder:`, and under it `models:` or `slices:`
    r.yml:4:1: expected one of `tokenizer` and `tokenizer_source`, found `tokenizer` too
    ");
    insta::assert_snapshot!(said("merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\ndtype: bf16\nout_dtype: auto\n"), @r"
    r.yml:4:8: unknown dtype `bf16` for `dtype`
      hint: did you mean `bfloat16`?
    r.yml:5:12: unknown dtype `auto` for `out_dtype`
      hint: the dtypes are `bfloat16`, `float16`, `float32`, `float64`, `float8_e4m3fn`, `float8_e5m2`
    ");
    insta::assert_snapshot!(said("merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\nnormalize: true\nbasemodel: x\nsources: []\n\"\\e[31m\": 1\n"), @r"
    r.yml:4:1: unknown key `normalize` in a recipe
      hint: `normalize` is a parameter of `linear`: put it under `parameters:`
    r.yml:5:1: unknown key `basemodel` in a recipe
      hint: did you mean `base_model`? the keys are `name`, `merge_method`, `models`, `slices`, `modules`, `base_model`, `statistics`, `parameters`, `dtype`, `out_dtype`, `output`, `quantization`, `expert_layout`, `rounding`, `keep_dtype`, `only`, `except`, `rename`, `allow_config_differences`, `tokenizer`, `tokenizer_source`, `chat_template`
    r.yml:6:1: unknown key `sources` in a recipe
      hint: `sources` is a key of a slice
    r.yml:7:1: unknown key `\u{1b}[31m` in a recipe
      hint: the keys are `name`, `merge_method`, `models`, `slices`, `modules`, `base_model`, `statistics`, `parameters`, `dtype`, `out_dtype`, `output`, `quantization`, `expert_layout`, `rounding`, `keep_dtype`, `only`, `except`, `rename`, `allow_config_differences`, `tokenizer`, `tokenizer_source`, `chat_template`
    ");
}

#[test]
fn models_are_refused_with_reasons() {
    let models = |models: &str| {
        said(&format!(
            "merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n{models}\n"
        ))
    };
    insta::assert_snapshot!(models("- ./a"), @r"
    r.yml:4:3: expected an entry of `models`, found `./a`
      hint: write `- model:` and then the model
    ");
    insta::assert_snapshot!(models("- model: 7\n- model: no\n- model:\n- parameters: {}\n- model: [a]"), @r"
    r.yml:4:10: expected a model, found `7`
      hint: if this is a model's name, put it in quotes
    r.yml:6:3: expected a model, found nothing
    r.yml:7:3: missing `model` in an entry of `models`
    r.yml:8:10: expected a model, found a list
    ");
    insta::assert_snapshot!(models("- model: a@b@c\n- model: ''"), @r"
    r.yml:4:10: expected `path@revision`, found more than one `@` in `a@b@c`
    r.yml:5:10: expected a model, found nothing
    ");
    insta::assert_snapshot!(models("- model: {model: a, lora: {}}\n- model: {model: c, override_architecture: 3}\n- model: {path: e, revison: f}\n- model: {revision: x}"), @r"
    r.yml:4:27: missing `path`
    r.yml:5:44: expected text for `override_architecture`, found `3`
      hint: if text is meant, put it in quotes
    r.yml:6:20: unknown key `revison` in a model's path
      hint: did you mean `revision`? the keys are `path`, `revision`
    r.yml:7:11: unknown key `revision` in a model
      hint: the keys are `model`, `lora`, `override_architecture`
    ");
    insta::assert_snapshot!(models("- model: a\n  layer_range: [0, 4]\n- model: b\n  paramters: {weight: 1}\n  weights: 3"), @r"
    r.yml:5:3: unknown key `layer_range` in an entry of `models`
      hint: `layer_range` is a key of a source of a slice
    r.yml:7:3: unknown key `paramters` in an entry of `models`
      hint: did you mean `parameters`? the keys are `model`, `parameters`, `statistics`
    r.yml:8:3: unknown key `weights` in an entry of `models`
      hint: `weight` is a parameter of `linear`: put it under `parameters:`
    ");
    insta::assert_snapshot!(models("- model: a\n- model: b\n- model: a"), @r"
    r.yml:6:10: the model `a` is listed twice in `models`
      hint: list it once
    ");
}

#[test]
fn slices_are_refused_with_reasons() {
    let slices = |slices: &str| {
        said(&format!(
            "merge_method: slerp\nbase_model: a\nparameters: {{t: 0.5}}\nslices:\n{slices}\n"
        ))
    };
    insta::assert_snapshot!(slices("- sources: []\n- {}\n- model: a\n  layer_range: [0, 2]"), @r"
    r.yml:5:12: expected a list for `sources`, found an empty list
    r.yml:6:3: missing `sources` in a slice
    r.yml:7:3: unknown key `model` in a slice
      hint: `model` is a key of a source of a slice
    r.yml:7:3: missing `sources` in a slice
    r.yml:8:3: unknown key `layer_range` in a slice
      hint: `layer_range` is a key of a source of a slice
    ");
    insta::assert_snapshot!(slices("- sources:\n  - {model: a, layer_range: [0, 4]}\n  - {model: b, layer_range: [4, 12]}"), @"r.yml:7:29: expected as many layers as in the other sources: 8 of `b`, but 4 of `a`");
    insta::assert_snapshot!(slices(
        "- sources:\n  - {model: a, layer_range: [4, 4]}\n  - {model: b, layer_range: [4, 2]}\n  - {model: c, layer_range: [-1, 2]}\n  - {model: d, layer_range: [0, 1.5]}\n  - {model: e, layer_range: [0, 99999999999999999999]}\n  - {model: f, layer_range: 0-4}\n  - {model: g, layer_range: [1, 2, 3]}\n  - {model: h}"
    ), @r"
    r.yml:6:29: the layer range `[4, 4]` is empty
      hint: a range is half-open: `[0, 32]` is 32 layers, 0 to 31
    r.yml:7:29: the layer range `[4, 2]` runs backwards
      hint: a range is half-open: `[0, 32]` is 32 layers, 0 to 31
    r.yml:8:29: negative layer in the range `[-1, 2]`
      hint: a range is half-open: `[0, 32]` is 32 layers, 0 to 31
    r.yml:9:29: expected a layer number, found `1.5`
      hint: a range is half-open: `[0, 32]` is 32 layers, 0 to 31
    r.yml:10:29: expected a layer number, found `1e20`
      hint: a range is half-open: `[0, 32]` is 32 layers, 0 to 31
    r.yml:11:29: expected a range of layers, found `0-4`
      hint: a range is half-open: `[0, 32]` is 32 layers, 0 to 31
    r.yml:12:29: expected a range of two layers, found 3 items
      hint: a range is half-open: `[0, 32]` is 32 layers, 0 to 31
    r.yml:13:5: missing `layer_range` in a source of a slice
    ");
    insta::assert_snapshot!(slices("- sources:\n  - {model: c, layer_range: [0, 4]}\n  - {model: b, layer_range: [0, 4]}\n  residual_weight: 0.1"), @"
    r.yml:5:3: the base `a` is none of the sources of this slice
      hint: `slerp` needs its base in every slice: add it to `sources` with its `layer_range`
    ");
    insta::assert_snapshot!(slices("- sources:\n  - {model: a, layer_range: [0, 4]}\n  - {model: a, layer_range: [4, 8]}"), @r"
    r.yml:7:13: the model `a` is listed twice in this slice
      hint: list it once
    ");
    insta::assert_snapshot!(slices("- sources:\n  - {model: a, layer_range: [0, 4], parameters: {t: 1}}\n  - {model: b, layer_range: [0, 4]}\n  parameters: {t: 2}"), @r"
    r.yml:6:50: `t` has one value for a tensor, not one for each model
      hint: move it to the `parameters` of the slice or of the recipe
    r.yml:8:19: expected `t` between 0 and 1, found `2`
    ");
}

#[test]
fn parameters_are_refused_with_reasons() {
    insta::assert_snapshot!(said_of("denisty: 1"), @r"
    r.yml:7:3: `ties` has no parameter `denisty`
      hint: did you mean `density`? the parameters of `ties` are `weight`, `density`, `normalize`, `rescale`
    ");
    insta::assert_snapshot!(said_of("density: 1.5"), @"r.yml:7:12: expected `density` between 0 and 1, found `1.5`");
    insta::assert_snapshot!(said_of("density: [0, -1, x, .nan]"), @r"
    r.yml:7:16: expected `density` between 0 and 1, found `-1`
    r.yml:7:20: expected a number for `density`, found `x`
    r.yml:7:23: expected a finite number for `density`, found `NaN`
    ");
    insta::assert_snapshot!(said_of("density: []"), @"r.yml:7:12: expected values for `density`, found an empty list");
    insta::assert_snapshot!(said_of("density:"), @"r.yml:7:3: expected a number for `density`, found nothing");
    insta::assert_snapshot!(said_of("density: true"), @"r.yml:7:12: expected a number for `density`, found `true`");
    insta::assert_snapshot!(said_of("density: .inf"), @"r.yml:7:12: expected a finite number for `density`, found `inf`");
    insta::assert_snapshot!(said_of("density: 1e999"), @"r.yml:7:12: expected a finite number for `density`, found `inf`");
    insta::assert_snapshot!(said_of("density: [[0, 1]]"), @"r.yml:7:13: expected a number for `density`, found a list");
    insta::assert_snapshot!(said_of("density: [0, {value: 1}]"), @r"
    r.yml:7:13: expected `filter` and `value` in this list of `density`, found `0`
      hint: a list holds either values over depth or conditional values, not both
    ");
    insta::assert_snapshot!(said_of("density: {filter: mlp}"), @r"
    r.yml:7:12: missing `value` in a conditional value of `density`
      hint: write `- filter: part_of_a_tensor_name` and under it `value: ...`
    ");
    insta::assert_snapshot!(said_of("density: {mlp: 0.5}"), @r"
    r.yml:7:12: missing `value` in a conditional value of `density`
      hint: write `- filter: part_of_a_tensor_name` and under it `value: ...`
    r.yml:7:13: unknown key `mlp` in a conditional value
      hint: the keys are `filter`, `value`
    ");
    insta::assert_snapshot!(said_of("density: [{filter: 3, value: 1}, {filter: x, value: {}}, {filter: y, value: []}, {flter: z, value: 1}]"), @r"
    r.yml:7:22: expected text for `filter`, found `3`
      hint: if text is meant, put it in quotes
    r.yml:7:55: expected a number for `density`, found a mapping
    r.yml:7:79: expected values for `density`, found an empty list
    r.yml:7:85: unknown key `flter` in a conditional value
      hint: did you mean `filter`? the keys are `filter`, `value`
    ");
    insta::assert_snapshot!(said_of("normalize: 2"), @"r.yml:7:14: expected `true` or `false` for `normalize`, found `2`");
    insta::assert_snapshot!(said_of("rescale: l2"), @r"
    r.yml:7:12: unknown word `l2` for `rescale`
      hint: did you mean `l1`? the words are `l1`, `expectation`, `false`
    ");
    insta::assert_snapshot!(said_of("rescale: 0.5"), @"r.yml:7:12: expected one of `l1`, `expectation`, `false` for `rescale`, found `0.5`");
    insta::assert_snapshot!(said("merge_method: ties\nbase_model: b\nmodels: [{model: x}]\nparameters: 3\n"), @r"
    r.yml:4:13: expected a mapping of parameters, found `3`
      hint: write `name: value`, one to a line
    ");
    insta::assert_snapshot!(said("merge_method: passthrough\nmodels: [{model: x, parameters: {t: 0, foo: 1}}]\n"), @r"
    r.yml:2:40: `passthrough` has no parameter `foo`
      hint: the parameters of `passthrough` are `scale`
    ");
    insta::assert_snapshot!(said("merge_method: linear\nmodels: [{model: x, parameters: {weight: 1, normalize: false}}]\n"), @r"
    r.yml:2:45: `normalize` has one value for a tensor, not one for each model
      hint: move it to the `parameters` of the recipe
    ");
}

#[test]
fn contracts_are_held() {
    insta::assert_snapshot!(said("merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}, {model: c}]\nparameters: {t: 1}\n"), @r"
    r.yml:3:1: `slerp` takes 2 models, found 3, the base included
      hint: list fewer models, or choose a method that takes more: `weld methods` has them all
    ");
    insta::assert_snapshot!(said("merge_method: slerp\nbase_model: a\nmodels: [{model: a}]\nparameters: {t: 1}\n"), @r"
    r.yml:3:1: `slerp` takes 2 models, found 1, the base included
      hint: list more models
    ");
    insta::assert_snapshot!(said("merge_method: passthrough\nbase_model: b\nmodels: [{model: a}]\n"), @r"
    r.yml:3:1: `passthrough` takes 1 model, found 2, with the base that `models` does not list
      hint: list fewer models, or choose a method that takes more: `weld methods` has them all
    ");
    insta::assert_snapshot!(said("merge_method: slerp\nmodels: [{model: a}, {model: b}]\n"), @r"
    r.yml:1:15: `slerp` needs a `base_model`
      hint: add `base_model:` and the model that the others are measured from
    r.yml:1:15: missing required parameter `t` of `slerp`
      hint: add `t` to the `parameters` of the recipe
    ");
    insta::assert_snapshot!(said("merge_method: linear\nbase_model: c\nmodels: [{model: a, parameters: {weight: 1}}, {model: b}]\n"), @r"
    r.yml:2:13: missing required parameter `weight` for the model `c`
      hint: `models` does not list the base, so it joins them: list it with a `weight`, or add `weight` to the `parameters` of the recipe
    r.yml:3:55: missing required parameter `weight` for the model `b`
      hint: add `weight` to its `parameters`, or to those of the recipe
    ");
    insta::assert_snapshot!(said("merge_method: ties\nbase_model: a\nmodels: [{model: a}, {model: b}, {model: c, parameters: {weight: 1}}]\n"), @r"
    r.yml:3:30: missing required parameter `weight` for the model `b`
      hint: add `weight` to its `parameters`, or to those of the recipe
    ");
    // Only the plan knows the tensors, and whether the filter leaves some without a value.
    insta::assert_snapshot!(said("merge_method: linear\nmodels: [{model: a, parameters: {weight: {filter: mlp, value: 1}}}]\n"), @"sound");
    // A base or a parameter that is wrong is not reported as missing too.
    insta::assert_snapshot!(said("merge_method: ties\nbase_model: [a]\nmodels: [{model: a}, {model: b, parameters: {weight: x}}]\n"), @r"
    r.yml:2:13: expected a model, found a list
    r.yml:3:54: expected a number for `weight`, found `x`
    ");
}

#[test]
fn what_has_no_effect_is_warned_of() {
    insta::assert_snapshot!(said("merge_method: ties\nbase_model: a\nmodels: [{model: a, parameters: {weight: 1, density: 0.5}}, {model: b}]\nparameters: {weight: 1}\n"), @r"
    sound
    r.yml:3:42: `weight` of the base `a` has no effect
      hint: `ties` takes it of every model but the base
    r.yml:3:54: `density` of the base `a` has no effect
      hint: `ties` takes it of every model but the base
    ");
    insta::assert_snapshot!(said_of("density: [{value: 1}, {filter: mlp, value: 0}, {filter: norm, value: 0}]"), @r"
    sound
    r.yml:7:25: this value of `density` and those after it are never used
      hint: the one before it has no filter and takes every tensor: put it last
    ");
    insta::assert_snapshot!(said_of("density: [{filter: 'layers.*.mlp', value: 1}]"), @r"
    sound
    r.yml:7:22: the filter `layers.*.mlp` matches no tensor
      hint: a filter is a part of a tensor's name, taken literally: `*` stands for all names only when it is the whole filter
    ");
}

#[test]
fn every_problem_is_reported_at_once_in_order() {
    insta::assert_snapshot!(said("
merge_method: ties
modells:
models:
  - model: a
    parameters:
      wieght: 0.5
      normalize: true
  - model: b
    parameters: {weight: [0.1, oops], density: 7}
dtype: bfloat
parameters:
  lambda: 1
"), @"
    r.yml:2:15: `ties` needs a `base_model`
      hint: add `base_model:` and the model that the others are measured from
    r.yml:3:1: unknown key `modells` in a recipe
      hint: did you mean `models`? the keys are `name`, `merge_method`, `models`, `slices`, `modules`, `base_model`, `statistics`, `parameters`, `dtype`, `out_dtype`, `output`, `quantization`, `expert_layout`, `rounding`, `keep_dtype`, `only`, `except`, `rename`, `allow_config_differences`, `tokenizer`, `tokenizer_source`, `chat_template`
    r.yml:7:7: `ties` has no parameter `wieght`
      hint: did you mean `weight`? the parameters of `ties` are `weight`, `density`, `normalize`, `rescale`
    r.yml:8:7: `normalize` has one value for a tensor, not one for each model
      hint: move it to the `parameters` of the recipe
    r.yml:10:32: expected a number for `weight`, found `oops`
    r.yml:10:48: expected `density` between 0 and 1, found `7`
    r.yml:11:8: unknown dtype `bfloat` for `dtype`
      hint: did you mean `bfloat16`? the dtypes are `bfloat16`, `float16`, `float32`, `float64`, `float8_e4m3fn`, `float8_e5m2`
    r.yml:13:3: `ties` has no parameter `lambda`
      hint: the parameters of `ties` are `weight`, `density`, `normalize`, `rescale`
    ");
}

#[test]
fn problems_are_drawn_with_their_lines() {
    let text = "merge_method: ties\nbase_model: ./base\nmodels:\n  - model: ./a\n    parameters:\n      weight: 0.5\n      denisty: 0.5 # ünïcode\n\tignored: by nobody\n";
    let Err(error) = parse("dir/r.yml", text, METHODS) else {
        panic!("it is wrong");
    };
    insta::assert_snapshot!(render(&error, false), @r"
    error: invalid YAML: tabs disallowed within this context (block indentation)
     --> dir/r.yml:8:2
      |
    8 |     ignored: by nobody
      |     ^
      |
      = hint: indent with spaces
    ");

    let text = "merge_method: ties\nmodels:\n  - model: ./a\n    parameters:\n      weight: 0.5\n      denisty: 0.5 # ünïcode\n";
    let Err(error) = parse("dir/r.yml", text, METHODS) else {
        panic!("it is wrong");
    };
    insta::assert_snapshot!(render(&error, false), @r"
    error: `ties` needs a `base_model`
     --> dir/r.yml:1:15
      |
    1 | merge_method: ties
      |               ^^^^
      |
      = hint: add `base_model:` and the model that the others are measured from

    error: `ties` has no parameter `denisty`
     --> dir/r.yml:6:7
      |
    6 |       denisty: 0.5 # ünïcode
      |       ^^^^^^^
      |
      = hint: did you mean `density`? the parameters of `ties` are `weight`, `density`, `normalize`, `rescale`

    2 problems in dir/r.yml
    ");
    assert!(render(&error, true).contains("\u{1b}["));
    let Err(error) = parse("r.yml", "dtype: float32", METHODS) else {
        panic!("it is wrong");
    };
    insta::assert_snapshot!(render(&error, false), @r"
    error: missing `merge_method`
    --> r.yml
     = hint: the methods are `linear`, `slerp`, `ties`, `passthrough`

    error: missing `models` or `slices`
    --> r.yml
     = hint: list the models to merge under `models:`

    2 problems in r.yml
    ");
}

#[test]
fn files_that_are_no_recipes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let check = |name: &str, bytes: Option<&[u8]>| {
        let path = folder.path().join(name);
        if let Some(bytes) = bytes {
            std::fs::write(&path, bytes).unwrap();
        }
        let error = read(&path).unwrap_err();
        assert_eq!(error.problems[0].kind, ProblemKind::Unreadable);
        render(&error, false);
        error
            .to_string()
            .replace(&path.display().to_string(), "PATH")
    };
    insta::assert_snapshot!(check("absent.yml", None), @"PATH: cannot read the recipe: No such file or directory (os error 2)");
    insta::assert_snapshot!(check("", None), @r"
    PATH: expected a recipe, found a folder
      hint: a recipe is a YAML file, such as `recipe.yml`
    ");
    insta::assert_snapshot!(check("latin1.yml", Some(b"a: 1\nb: \xe9\n")), @r"
    PATH: the recipe is not UTF-8 text: see line 2
      hint: save the file as UTF-8
    ");
    insta::assert_snapshot!(check("large.yml", Some(&vec![b' '; (1 << 20) + 1])), @r"
    PATH: expected a recipe of at most 1048576 bytes, found more
      hint: is this the recipe, and not one of the models?
    ");
}

#[test]
fn mergekits_recipes_are_read_with_the_registry() {
    let read = |text: &str| {
        let registry: Vec<&'static MethodInfo> = methods::all().iter().map(|m| m.info()).collect();
        let recipe = parse("r.yml", text, &registry);
        recipe.map(|recipe| recipe.error(recipe.warnings.clone()).to_string())
    };
    assert_eq!(read(GRADIENT_SLERP), Ok(String::new()));
    let ties = "
models:
  - model: psmathur/orca_mini_v3_13b
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - model: garage-bAInd/Platypus2-13B
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1]
  - model: WizardLM/WizardMath-13B-V1.0
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: TheBloke/Llama-2-13B-fp16
parameters:
  normalize: true
  int8_mask: true
dtype: float16
";
    assert_eq!(read(ties), Ok(String::new()));
}

#[test]
fn ten_thousand_problems_are_drawn_soon() {
    let mut text =
        "merge_method: ties\nbase_model: b\nmodels: [{model: a}]\nparameters: {weight: 1}\n"
            .to_owned();
    for key in 0..10_000 {
        writeln!(text, "unknown{key}: 1").unwrap();
    }
    let error = parse("r.yml", &text, METHODS).unwrap_err();
    assert_eq!(error.problems.len(), 10_000);
    assert!(render(&error, false).ends_with("10000 problems in r.yml, the first 50 shown"));
}

/// Reads a recipe and draws the result: neither may panic.
fn exercise(text: &str) {
    match parse("r.yml", text, METHODS) {
        Ok(recipe) => {
            let _ = recipe.mentions().count();
            let _ = render(&recipe.error(recipe.warnings.clone()), true);
        }
        Err(error) => {
            for problem in &error.problems {
                if let Some(at) = problem.at {
                    assert!(
                        error.text.get(at.start..at.end).is_some(),
                        "{at:?} in {text:?}"
                    );
                }
            }
            let _ = error.to_string();
            render(&error, false);
            render(&error, true);
        }
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        exercise(&text);
    }

    #[test]
    fn no_yaml_like_text_panics(text in "[-:\\[\\]{},&*!|>'\"#%@ \t\r\nab0.é\u{feff}\u{85}\u{2028}]{0,60}") {
        exercise(&text);
    }

    /// A recipe with a piece replaced by another.
    #[test]
    fn no_damaged_recipe_panics(
        cut in 0..GRADIENT_SLERP.len(),
        length in 0..40usize,
        piece in "[-:\\[\\]{},&*!|>'\"# \nat0.ü]{0,6}",
    ) {
        let end = (cut + length).min(GRADIENT_SLERP.len());
        exercise(&format!("{}{piece}{}", &GRADIENT_SLERP[..cut], &GRADIENT_SLERP[end..]));
    }

    #[test]
    fn no_position_from_outside_panics(start in 0..40usize, end in 0..40usize) {
        let at = Position { line: 1, column: 1, start, end };
        let problem = Problem::new(ProblemKind::Invalid, at, "x");
        render(&RecipeError::new("r.yml", "ünï\ncode\r\n", vec![problem]), false);
    }
}

#[test]
fn a_model_in_full_is_the_model_in_short() {
    let recipe = recipe(
        "
merge_method: linear
parameters: {weight: 1}
models:
- model: {model: {path: org/a, revision: main}, lora: {path: org/l, revision: v2}}
- model: {model: b, lora: null, override_architecture: MistralForCausalLM}
- model: {model: c, lora: [{path: l, weight: 0.7}, org/m@v2, {path: n, revision: '2.0'}, {path: o, revision: v1, weight: -1}]}
",
    );
    let models: Vec<&str> = recipe.mentions().map(|model| model.value.text()).collect();
    assert_eq!(
        models,
        [
            "org/a@main+org/l@v2",
            "b",
            "c+l@0.7+org/m@v2+n@2.0@1+o@v1@-1"
        ]
    );
    let weights = recipe.mentions().last().unwrap().value.adapters.iter();
    let weights: Vec<f64> = weights.map(|adapter| adapter.weight()).collect();
    assert_eq!(weights, [0.7, 1.0, 1.0, -1.0]);
    assert_eq!(recipe.architectures[0].0.text(), "b");
    assert_eq!(recipe.architectures[0].1, "MistralForCausalLM");
}

#[test]
fn modules_have_inputs_and_settings_of_their_own() {
    let recipe = recipe(
        "
merge_method: linear
modules:
  text_decoder:
    slices:
    - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [1, 3]}]
    parameters: {weight: 2}
  vision_tower:
    models: [{model: a, parameters: {weight: 1}}]
",
    );
    let names: Vec<_> = recipe
        .modules
        .iter()
        .filter_map(|module| module.name.as_ref())
        .collect();
    assert_eq!(names[0].value, "text_decoder");
    assert_eq!(names[1].at.line, 8);
    assert!(recipe.is_sliced());
    insta::assert_snapshot!(said("merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}]\nmodules: {x: {models: [{model: a}]}}\n"), @"r.yml:4:1: expected one of `models`, `slices` and `modules`, found more");
    insta::assert_snapshot!(said("merge_method: linear\nmodules: {x: {models: [{model: a}], slices: []}, y: {}, z: 3}\n"), @"
    r.yml:2:37: expected one of `models` and `slices`, found both
    r.yml:2:45: expected a list for `slices`, found an empty list
    r.yml:2:50: missing `models` or `slices` in the module `y`
    r.yml:2:60: expected a module, found `3`
    ");
}

#[test]
fn documents_are_put_in_order() {
    let recipe = recipe(
        "
merge_method: linear
models: [{model: second}, {model: a}]
parameters: {weight: 1}
---
name: second
merge_method: linear
models: [{model: first}, {model: b}]
parameters: {weight: 1}
---
name: first
merge_method: linear
models: [{model: a}, {model: b}]
parameters: {weight: 1}
",
    );
    let names: Vec<_> = recipe
        .results
        .iter()
        .filter_map(|result| result.name.as_ref())
        .collect();
    assert_eq!(names[0].value, "first");
    assert_eq!(names[1].value, "second");
    assert!(recipe.name.is_none());

    let one = |name: &str, model: &str| {
        let name = if name.is_empty() {
            String::new()
        } else {
            format!("name: {name}\n")
        };
        format!(
            "{name}merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {model}}}]\n---\n"
        )
    };
    let documents = |list: &[(&str, &str)]| {
        let texts: Vec<String> = list.iter().map(|(name, model)| one(name, model)).collect();
        said(&texts.concat())
    };
    insta::assert_snapshot!(documents(&[("a", "b"), ("b", "a"), ("", "a")]), @"
    r.yml:1:7: `a` is made from its own result
      hint: a document may use the results of others that do not use its own
    r.yml:6:7: `b` is made from its own result
      hint: a document may use the results of others that do not use its own
    ");
    insta::assert_snapshot!(documents(&[("a", "a"), ("", "a")]), @"
    r.yml:1:7: `a` is made from its own result
      hint: a document may use the results of others that do not use its own
    ");
    insta::assert_snapshot!(documents(&[("a", "x"), ("a", "x"), ("", "a")]), @"r.yml:6:7: two documents have the name `a`");
    insta::assert_snapshot!(documents(&[("", "x"), ("", "y")]), @"
    r.yml:5:15: two documents have no name, and only one result is written
      hint: give the documents that others use a `name:`; the other one stands at line 1
    ");
    insta::assert_snapshot!(documents(&[("a", "x"), ("b", "y")]), @"
    r.yml:6:7: no other document uses `a` and `b`, and only one result is written
      hint: leave out the `name:` of the last merge, and use the others in it
    ");
    insta::assert_snapshot!(documents(&[("a", "x"), ("", "y")]), @"
    r.yml:1:7: the result `a` is not used
      hint: use it as a model, or remove the document: only one result is written
    ");
    insta::assert_snapshot!(documents(&[("a+b", "x")]), @"
    r.yml:1:7: `a+b` can't name a result
      hint: a name has letters, digits, `-`, `_`, `.` and `/`
    ");
    let last = parse("r.yml", &(one("a", "x") + &one("b", "a")), METHODS).unwrap();
    assert_eq!(last.name.unwrap().value, "b");
    assert!(
        parse("r.yml", &one("", "x").repeat(300), METHODS)
            .unwrap_err()
            .to_string()
            .contains("at most 256 documents")
    );
}

#[test]
fn exceptions_name_tensors_and_what_becomes_of_them() {
    let recipe = recipe(
        "
merge_method: linear
parameters: {weight: 1}
models: [{model: a}]
only: {tensors: ['*.mlp.*', '*.self_attn.*'], otherwise: copy}
except:
- {tensors: '*.mlp.gate*', action: drop}
",
    );
    let fallback = |name: &str| recipe.exception(name).map(|exception| exception.fallback);
    assert_eq!(fallback("model.layers.0.mlp.up_proj.weight"), None);
    assert_eq!(
        fallback("model.layers.0.mlp.gate_proj.weight"),
        Some(Fallback::Drop)
    );
    assert_eq!(fallback("model.norm.weight"), Some(Fallback::Copy));
    let idle: Vec<&str> = recipe
        .exceptions
        .iter()
        .flat_map(|exception| exception.idle(&["model.layers.0.mlp.gate_proj.weight"]))
        .map(|pattern| pattern.value.as_str())
        .collect();
    assert_eq!(idle, ["*.self_attn.*"]);
    insta::assert_snapshot!(said("merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}]\nonly: {tensors: '[', otherwise: skip}\nexcept: [{tensors: 3}, {action: drop, otherwise: copy}, x]\n"), @"
    r.yml:4:17: `[` is no pattern: unclosed character class; missing ']'
    r.yml:4:33: unknown word `skip` for `otherwise`
      hint: the words are `copy`, `base`, `drop`
    r.yml:5:10: missing `action` in an entry of `except`
      hint: what shall become of these tensors: `copy` (of the first model), `base` (of the base model) or `drop`?
    r.yml:5:20: expected a pattern, found `3`
      hint: a pattern is a tensor's name, in which `*` stands for any characters: `*.mlp.*`
    r.yml:5:24: missing `tensors` in an entry of `except`
    r.yml:5:39: unknown key `otherwise` in an entry of `except`
      hint: the keys are `tensors`, `action`
    r.yml:5:57: expected an entry of `except`, found `x`
    ");
}

#[test]
fn an_optional_base_is_not_one_of_the_models() {
    let said = |rest: &str| match parse(
        "r.yml",
        &format!("merge_method: nuslerp\nparameters: {{weight: 1}}\n{rest}\n"),
        &[&NUSLERP],
    ) {
        Ok(recipe) => assert_sound(&recipe),
        Err(error) => error.to_string(),
    };
    fn assert_sound(recipe: &Recipe) -> String {
        assert!(recipe.warnings.is_empty());
        "sound".into()
    }
    assert_eq!(said("models: [{model: a}, {model: b}]"), "sound");
    assert_eq!(
        said("base_model: c\nmodels: [{model: a}, {model: b}]"),
        "sound"
    );
    let listed = "base_model: c\nmodels: [{model: a}, {model: b}, {model: c}]";
    assert_eq!(said(listed), "sound");
    let one = said("base_model: a\nmodels: [{model: a}, {model: b}]");
    assert!(
        one.contains("takes 2 models, found 1 besides the base"),
        "{one}"
    );
    let three = said("models: [{model: a}, {model: b}, {model: c}]");
    assert!(three.contains("takes 2 models, found 3"), "{three}");
    let slice = "slices:\n- sources:\n  - {model: a, layer_range: [0, 4]}\n  - {model: b, layer_range: [0, 4]}";
    assert_eq!(said(slice), "sound");
    let without = said(&format!("base_model: c\n{slice}"));
    assert!(
        without.contains("is none of the sources of this slice"),
        "{without}"
    );
    assert!(without.contains("or name no `base_model`"), "{without}");
}

#[test]
fn a_base_that_joins_the_models_is_noted() {
    let joined = said(
        "merge_method: linear\nbase_model: c\nmodels: [{model: a}]\nparameters: {weight: 1}\n",
    );
    assert!(
        joined.contains("is merged as one of the models"),
        "{joined}"
    );
    let listed = said(
        "merge_method: linear\nbase_model: a\nmodels: [{model: a}]\nparameters: {weight: 1}\n",
    );
    assert_eq!(listed, "sound");
}

#[test]
fn vocabularies_are_read_in_both_forms() {
    let read = |more: &str| {
        recipe(&format!(
            "merge_method: linear\nmodels: [{{model: a}}]\nparameters: {{weight: 1}}\n{more}\n"
        ))
    };
    let source = |more: &str| match read(more).tokenizer.map(|tokenizer| tokenizer.source) {
        Some(VocabularySource::Union) => "union".to_owned(),
        Some(VocabularySource::Base) => "base".to_owned(),
        Some(VocabularySource::Model(model)) => model.value.to_string(),
        None => "none".to_owned(),
    };
    for (more, expected) in [
        ("tokenizer: {}", "union"),
        ("tokenizer: {source: base}", "base"),
        ("tokenizer: {source: org/name}", "org/name"),
        ("tokenizer: {source: {model: {path: org/name}}}", "org/name"),
        ("tokenizer:", "none"),
        ("tokenizer_source: union", "union"),
        ("tokenizer_source: base", "base"),
        ("tokenizer_source: model:org/name", "org/name"),
        ("tokenizer_source: ~\ntokenizer: {source: b}", "b"),
    ] {
        assert_eq!(source(more), expected, "{more}");
    }
    let found = read(
        "chat_template: auto\ntokenizer:\n  pad_to_multiple_of: 64\n  tokens:\n    <a>: {source: b}\n    <b>: {source: {kind: zero}, force: true}\n    <c>: {source: {kind: model_token, model: c, token_id: 7}}\n    <d>: {source: {kind: model_token, model: c, token: <q>}}\n    <e>: {}\n",
    );
    assert_eq!(
        found
            .chat_template
            .map(|template| template.value)
            .as_deref(),
        Some("auto")
    );
    let tokenizer = found.tokenizer.expect("a tokenizer");
    assert_eq!(tokenizer.pad_to_multiple_of, Some(64));
    let mentions: Vec<String> = tokenizer
        .mentions()
        .map(|model| model.value.to_string())
        .collect();
    assert_eq!(mentions, ["b", "c", "c"]);
    let forced: Vec<bool> = tokenizer.tokens.iter().map(|rule| rule.force).collect();
    assert_eq!(forced, [false, true, false, false, false]);
    assert!(matches!(tokenizer.tokens[1].source, Some(RowSource::Zero)));
    assert!(matches!(
        tokenizer.tokens[2].source,
        Some(RowSource::Token(_, TokenName::Id(7)))
    ));
    assert!(tokenizer.tokens[4].source.is_none());
}

#[test]
fn vocabularies_are_refused_with_reasons() {
    insta::assert_snapshot!(said(
        "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\nchat_template: ' '\ntokenizer:\n  sauce: union\n  \
         pad_to_multiple_of: 0\n  tokens:\n    <a>: b\n    <b>: {force: true}\n    <c>: {source: {kind: one}}\n    <d>: {source: \
         {kind: model_token, token: a}}\n    <e>: {source: {kind: model_token, model: a}}\n    <f>: {source: {kind: model_token, \
         model: a, token: a, token_id: 1}}\n    <g>: {source: {kind: zero, model: a}}\n    <h>: {source: {kind: model_token, model: \
         a, token_id: -1}}\n    <i>: {source: 3}\n    <j>: {source: a, force: 1}\n    '': {source: a}\n"
    ), @r"
    r.yml:4:16: expected a chat template, found ` `
      hint: `auto`, a template's name, or the template itself
    r.yml:6:3: unknown key `sauce` in `tokenizer`
      hint: did you mean `source`? the keys are `source`, `tokens`, `pad_to_multiple_of`, `beyond_embedding`
    r.yml:7:23: expected a whole number from 1 to 1048576 for `pad_to_multiple_of`, found `0`
    r.yml:9:10: expected a mapping for the token `<a>`, found `b`
      hint: such as `{source: {kind: zero}}`
    r.yml:10:11: `force` has no source to force
      hint: a source is a model, `{kind: zero}`, or `{kind: model_token, model: ..., token: ...}`
    r.yml:11:26: unknown kind `one` of a source
      hint: a source is a model, `{kind: zero}`, or `{kind: model_token, model: ..., token: ...}`
    r.yml:12:19: missing `model` in the source of a token
    r.yml:13:19: missing `token` or `token_id` in the source of a token
    r.yml:14:59: expected one of `token` and `token_id`, found both
    r.yml:15:32: zeros need no model and no token
    r.yml:16:59: expected a token's number for `token_id`, found `-1`
    r.yml:17:19: expected the source of a token, found `3`
      hint: a source is a model, `{kind: zero}`, or `{kind: model_token, model: ..., token: ...}`
    r.yml:18:29: expected `true` or `false` for `force`, found `1`
    r.yml:19:5: a token can't be empty
    ");
    insta::assert_snapshot!(said("merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\ntokenizer: union\n"), @r"
    r.yml:4:12: expected a mapping for `tokenizer`, found `union`
      hint: write `tokenizer: {source: ...}`, or `tokenizer_source: ...`
    ");
    insta::assert_snapshot!(said("merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\ntokenizer_source: [a]\n"), @r"
    r.yml:4:19: expected `union`, `base` or a model, found a list
    ");
}

#[test]
fn keys_that_only_hold_anchors_are_noted() {
    let warned = |text: &str| -> Vec<String> {
        let recipe = parse_with_registry("r.yml", text).map_err(|error| error.to_string());
        let warnings = recipe.unwrap().warnings.into_iter();
        warnings.map(|warning| warning.message).collect()
    };
    let merge = "merge_method: linear\nmodels: [{model: a}]\n";
    assert_eq!(
        warned(&format!(
            "const_tag: &x 0.7\n{merge}parameters: {{weight: *x}}\n"
        )),
        ["`const_tag` is not read"]
    );
    assert_eq!(
        warned(&format!("{merge}parameters: &p {{weight: 1}}\n")),
        Vec::<String>::new()
    );
    let nested = "defaults:\n  small: &small 0.3\n  list: [&big 0.9]\n";
    assert_eq!(
        warned(&format!(
            "{nested}{merge}parameters: {{weight: [*small, *big]}}\n"
        )),
        ["`defaults` is not read"]
    );
    assert_eq!(
        warned(&format!(
            "x-notes: tried on Monday\n{merge}parameters: {{weight: 1}}\n"
        )),
        ["`x-notes` is not read"]
    );
    // An anchor that nobody uses is no reason for a key.
    let idle = format!("const_tag: &x 0.7\n{merge}parameters: {{weight: 1}}\n");
    assert!(parse_with_registry("r.yml", &idle).is_err());
}

#[test]
fn parameters_of_other_methods_are_noted_and_names_of_none_refused() {
    let slerp = |more: &str| {
        let text = format!(
            "merge_method: slerp\nbase_model: a\nmodels: [{{model: a}}, {{model: b, parameters: {{weight: 0.5}}}}]\n\
             parameters: {{t: 0.5{more}}}\n"
        );
        parse_with_registry("r.yml", &text)
    };
    let warnings = slerp(", density: 0.3").unwrap().warnings;
    let said: Vec<&str> = warnings
        .iter()
        .map(|warning| warning.message.as_str())
        .collect();
    assert_eq!(
        said,
        [
            "`slerp` has no parameter `weight`: ignored",
            "`slerp` has no parameter `density`: ignored"
        ]
    );
    assert!(slerp(", wieght: 0.3").is_err());
    for (key, hint) in [
        ("random_seed: 3", "say `--seed` when you run it"),
        ("normalize: true", "put it under `parameters:`"),
        ("int8_mask: true", "put it under `parameters:`"),
    ] {
        let text = format!(
            "{key}\nmerge_method: slerp\nbase_model: a\nmodels: [{{model: a}}, {{model: b}}]\nparameters: {{t: 1}}\n"
        );
        let error = parse_with_registry("r.yml", &text).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    }
}
