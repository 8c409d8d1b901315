//! What slices and configs say of layers: kinds, layers that predict further tokens, tensors that keep their dtype.

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Bench, Spec, config_with, floats, llama, load, noise, of_plan, read_json};

fn matrix(name: &str, seed: u64, shape: &[usize]) -> Spec {
    floats(name, Dtype::F32, shape, noise(seed, shape.iter().product()))
}

fn names(bench: &Bench, model: &str) -> Vec<String> {
    let tensors = load(&bench.path(model)).into_iter();
    tensors.map(|(name, _)| name).collect()
}

/// What `weld check` finds with ids that begin so.
fn checked(bench: &Bench, model: &str, start: &str) -> Vec<String> {
    let outcome = bench.weld(&["check", model, "--format", "json", "-q"]);
    let report: Value = serde_json::from_str(&outcome.stdout).expect(&outcome.stderr);
    let found = report["findings"].as_array().unwrap().iter();
    let ids = found.map(|found| found["check"].as_str().unwrap().to_owned());
    ids.filter(|id| id.starts_with(start)).collect()
}

/// A decoder of so many layers with one behind it that predicts a further token.
fn with_mtp(seed: u64, layers: usize) -> Vec<Spec> {
    let mut specs = llama(seed, layers + 1, Dtype::F32);
    specs.push(matrix(
        &format!("model.layers.{layers}.eh_proj.weight"),
        seed + 50,
        &[8, 16],
    ));
    specs
}

#[test]
fn layers_that_predict_further_tokens_are_no_layers_of_the_decoder() {
    let bench = Bench::new();
    let config = config_with(3, json!({"num_nextn_predict_layers": 1}));
    bench.model("a", &config, &with_mtp(1, 3));
    bench.model("b", &config, &with_mtp(2, 3));
    assert_eq!(checked(&bench, "a", "structure.missing-mtp"), [""; 0]);
    let recipe = "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: [0, 1]}\n";
    bench.recipe(recipe);
    let plan = bench.weld(&["plan", "--all", "recipe.yml", "--format", "json"]);
    let plan: Value = serde_json::from_str(&plan.stdout).expect(&plan.stderr);
    let t = |layer: usize| {
        let tensor = of_plan(&plan, &format!("model.layers.{layer}.mlp.up_proj.weight"));
        tensor["parameters"]["t"].as_f64().unwrap()
    };
    assert_eq!([0, 1, 2, 3].map(t), [0.0, 0.5, 1.0, 0.0]);

    let slices = |first: [usize; 2], second: [usize; 2]| {
        format!(
            "merge_method: passthrough\nslices:\n- sources: [{{model: a, layer_range: {first:?}}}]\n- sources: \
             [{{model: b, layer_range: {second:?}}}]\n"
        )
    };
    let message = bench.refused(&slices([0, 3], [1, 4]), &[]);
    assert!(
        message.contains("goes beyond `b`, which has 3 layers"),
        "{message}"
    );
    let out = bench.merge(&slices([0, 3], [1, 3]), &[]);
    let of = |model: &str, name: &str| {
        load(&bench.path(model))
            .into_iter()
            .find(|(own, _)| own == name)
            .unwrap()
            .1
    };
    assert_eq!(
        of("out", "model.layers.5.eh_proj.weight"),
        of("b", "model.layers.3.eh_proj.weight")
    );
    assert_eq!(
        of("out", "model.layers.4.mlp.up_proj.weight"),
        of("b", "model.layers.2.mlp.up_proj.weight")
    );
    let config = read_json(&out.join("config.json"));
    assert_eq!(
        (
            &config["num_hidden_layers"],
            &config["num_nextn_predict_layers"]
        ),
        (&json!(5), &json!(1))
    );
}

#[test]
fn the_config_follows_the_further_layers_that_are_written() {
    let bench = Bench::new();
    let config = config_with(2, json!({"num_nextn_predict_layers": 1}));
    for (name, seed) in [("a", 1), ("b", 2)] {
        let mut specs = llama(seed, 2, Dtype::F32);
        specs.push(matrix("mtp.fc.weight", seed + 7, &[8, 16]));
        specs.push(matrix(
            "mtp.layers.0.mlp.up_proj.weight",
            seed + 8,
            &[12, 8],
        ));
        bench.model(name, &config, &specs);
    }
    let linear =
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n";
    let out = bench.merge(linear, &[]);
    assert_eq!(
        read_json(&out.join("config.json"))["num_nextn_predict_layers"],
        1
    );
    let dropped = format!("{linear}except: [{{tensors: 'mtp.*', action: drop}}]\n");
    let out = bench.merge(&dropped, &[]);
    assert_eq!(
        read_json(&out.join("config.json"))["num_nextn_predict_layers"],
        0
    );
    bench.model("c", &config, &llama(3, 2, Dtype::F32));
    assert_eq!(
        checked(&bench, "c", "structure.missing-mtp"),
        ["structure.missing-mtp"]
    );
    assert_eq!(checked(&bench, "a", "structure.missing-mtp"), [""; 0]);
}

#[test]
fn parts_for_each_layer_that_slices_do_not_cut_are_refused() {
    let recipe = "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 2]}]\n- sources: \
                  [{model: a, layer_range: [1, 2]}]\n";
    for (name, shape, expected) in [
        (
            "model.embed_tokens_per_layer.weight",
            [16, 16],
            "has a part for each of the 2 layers",
        ),
        (
            "model.per_layer_model_projection.weight",
            [16, 8],
            "has a part for each of the 2 layers",
        ),
        (
            "model.layer_norm1.0.weight",
            [1, 8],
            "keeps parts of its 2 layers",
        ),
    ] {
        let bench = Bench::new();
        let mut specs = llama(1, 2, Dtype::F32);
        specs.push(matrix(name, 9, &shape));
        if name.contains("norm1") {
            specs.push(matrix("model.layer_norm1.1.weight", 10, &shape));
        }
        bench.model("a", &config_with(2, json!({})), &specs);
        let message = bench.refused(recipe, &[]);
        assert!(message.contains(expected), "{message}");
        let whole =
            "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 2]}]\n";
        assert!(
            names(&bench, bench.merge(whole, &[]).to_str().unwrap()).contains(&name.to_owned())
        );
    }
}

/// What stands outside of the stack and must follow its layers is named, wherever it is.
#[test]
fn stacks_and_entries_that_slices_leave_behind_are_refused() {
    let stack = |prefix: &str, seed| -> Vec<Spec> {
        let layer =
            |layer: u64| matrix(&format!("{prefix}{layer}.q.weight"), seed + layer, &[4, 4]);
        (0..4).map(layer).collect()
    };
    let cut = "{slices: [{sources: [{model: a, layer_range: [0, 4]}]}, {sources: [{model: a, layer_range: [2, 4]}]}]}";
    let two = format!("modules:\n  low: {cut}\n  high: {{models: [{{model: a}}]}}\n");
    let mut tables = stack("layers.", 1);
    tables.extend((0..4).map(|at| matrix(&format!("mixing.queries.{at}"), 20 + at, &[3])));
    let cases = [
        (
            [stack("low.layers.", 1), stack("high.layers.", 9)]
                .into_iter()
                .flatten()
                .collect::<Vec<Spec>>(),
            two.clone(),
            "counts the 4 layers",
        ),
        (
            tables,
            format!("modules:\n  layers: {cut}\n  mixing: {{models: [{{model: a}}]}}\n"),
            "`mixing.queries`",
        ),
        (
            [stack("layers.", 1), vec![matrix("layer_weights", 30, &[5])]]
                .into_iter()
                .flatten()
                .collect::<Vec<Spec>>(),
            format!("modules:\n  layers: {cut}\n  layer_weights: {{models: [{{model: a}}]}}\n"),
            "`layer_weights` of `a` has 5 entries",
        ),
        (
            [
                stack("layers.", 1),
                vec![matrix("contacts.weight", 30, &[1, 8])],
            ]
            .into_iter()
            .flatten()
            .collect::<Vec<Spec>>(),
            format!("modules:\n  layers: {cut}\n  contacts: {{models: [{{model: a}}]}}\n"),
            "a column for each attention head",
        ),
    ];
    for (specs, modules, expected) in cases {
        let bench = Bench::new();
        bench.model(
            "a",
            &json!({"num_hidden_layers": 4, "num_attention_heads": 2}),
            &specs,
        );
        let message = bench.refused(&format!("merge_method: passthrough\n{modules}"), &[]);
        assert!(message.contains(expected), "{message}");
    }
    // Cut alike, both follow the one field; counted by parts of their own, each stands by itself.
    let specs = [stack("low.layers.", 1), stack("high.layers.", 9)]
        .into_iter()
        .flatten()
        .collect::<Vec<Spec>>();
    let alike = format!("merge_method: passthrough\nmodules:\n  low: {cut}\n  high: {cut}\n");
    let bench = Bench::new();
    bench.model("a", &json!({"num_hidden_layers": 4}), &specs);
    let out = bench.merge(&alike, &[]);
    assert_eq!(read_json(&out.join("config.json"))["num_hidden_layers"], 6);
    let bench = Bench::new();
    let four = json!({"num_hidden_layers": 4});
    bench.model(
        "a",
        &json!({"low_config": four, "high_config": four}),
        &specs,
    );
    let config = read_json(
        &bench
            .merge(&format!("merge_method: passthrough\n{two}"), &[])
            .join("config.json"),
    );
    assert_eq!(config["low_config"]["num_hidden_layers"], 6);
    assert_eq!(config["high_config"]["num_hidden_layers"], 4);
}

#[test]
fn a_config_that_counts_no_layers_is_refused_and_unknown_fields_are_noted() {
    let bench = Bench::new();
    let recipe = "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 2]}]\n- sources: \
                  [{model: a, layer_range: [1, 2]}]\n";
    let mut config = config_with(2, json!({"foo_layer_interval": 2}));
    bench.model("a", &config, &llama(1, 2, Dtype::F32));
    bench.recipe(recipe);
    let plan = bench.weld(&["plan", "recipe.yml"]);
    assert!(plan.stdout.contains(
        "may speak of layers by their numbers, and stay as they are: `foo_layer_interval`"
    ));
    config.as_object_mut().unwrap().remove("num_hidden_layers");
    bench.model("a", &config, &llama(1, 2, Dtype::F32));
    let message = bench.refused(recipe, &[]);
    assert!(
        message.contains("no field that is known to count the 2 layers of `model.layers.`"),
        "{message}"
    );
    config["depth"] = json!(2);
    bench.model("a", &config, &llama(1, 2, Dtype::F32));
    assert_eq!(
        read_json(&bench.merge(recipe, &[]).join("config.json"))["depth"],
        3
    );
    // Nemotron-H counts its layers by the length of a list alone.
    let fields = config.as_object_mut().unwrap();
    fields.remove("depth");
    fields.insert("layers_block_type".into(), json!(["mamba", "attention"]));
    bench.model("a", &config, &llama(1, 2, Dtype::F32));
    let written = read_json(&bench.merge(recipe, &[]).join("config.json"));
    assert_eq!(
        written["layers_block_type"],
        json!(["mamba", "attention", "attention"])
    );
    assert_eq!(written.get("num_hidden_layers"), None);
}

/// A model of a family in no table, whose layers with a number in `experts` have some.
fn mixed(bench: &Bench, name: &str, config: Value, experts: &[usize]) {
    let mut specs = llama(1, 4, Dtype::F32);
    for layer in experts {
        specs.push(matrix(
            &format!("model.layers.{layer}.mlp.experts.0.up_proj.weight"),
            3,
            &[12, 8],
        ));
    }
    let mut whole = config_with(4, config);
    whole["model_type"] = json!("unheard_of");
    bench.model(name, &whole, &specs);
}

#[test]
fn layers_must_be_of_the_kind_that_the_config_names() {
    let bench = Bench::new();
    let kind = |name: &str| checked(&bench, name, "structure.layer-kind");
    mixed(&bench, "right", json!({"moe_layers": [1, 3]}), &[1, 3]);
    mixed(&bench, "more", json!({"moe_layers": [1]}), &[1, 3]);
    mixed(
        &bench,
        "moved",
        json!({"expert_layer_period": 2, "expert_layer_offset": 0}),
        &[1, 3],
    );
    mixed(&bench, "none", json!({"moe_layers": [1, 3]}), &[]);
    let types = json!({"layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]});
    mixed(&bench, "windows", types, &[1, 3]);
    assert_eq!(kind("right"), [""; 0]);
    assert_eq!(kind("more"), ["structure.layer-kind"]);
    assert_eq!(kind("moved"), ["structure.layer-kind"]);
    assert_eq!(kind("none"), [""; 0]);
    assert_eq!(kind("windows"), [""; 0]);
    let moved =
        "merge_method: passthrough\nslices:\n- sources: [{model: right, layer_range: [1, 4]}]\n";
    bench.recipe(moved);
    let plan = bench.weld(&["plan", "recipe.yml"]);
    let expected = "layer 0 of the output is layer 1 of `right`, which has other tensors than its layer 0, and so 2 more \
                    layers";
    assert!(plan.stdout.contains(expected), "{}", plan.stdout);
    assert_eq!(
        read_json(&bench.merge(moved, &[]).join("config.json"))["moe_layers"],
        json!([0, 2])
    );
    assert_eq!(kind("out"), [""; 0]);
}

#[test]
fn tensors_that_a_model_needs_wide_keep_their_dtype() {
    let bench = Bench::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        let mut specs = llama(seed, 1, Dtype::F32);
        specs.push(matrix(
            "model.layers.0.mlp.gate.e_score_correction_bias",
            seed,
            &[64],
        ));
        specs.push(matrix("model.layers.0.mixer.A_log", seed, &[4]));
        bench.model(name, &config_with(1, json!({})), &specs);
    }
    let recipe = |more: &str| {
        format!(
            "merge_method: linear\nmodels: [{{model: a}}, {{model: b}}]\nparameters: {{weight: 0.5}}\n{more}"
        )
    };
    let dtypes = |bench: &Bench| -> Vec<(String, Dtype)> {
        let wide = load(&bench.path("out")).into_iter();
        wide.filter(|(_, tensor)| tensor.dtype != Dtype::BF16)
            .map(|(name, tensor)| (name, tensor.dtype))
            .collect()
    };
    let kept = [
        "model.layers.0.mixer.A_log",
        "model.layers.0.mlp.gate.e_score_correction_bias",
    ];
    for more in ["dtype: bfloat16\n", "dtype: float32\nout_dtype: bfloat16\n"] {
        bench.merge(&recipe(more), &[]);
        let mut found = dtypes(&bench);
        found.sort();
        assert_eq!(found, kept.map(|name| (name.to_owned(), Dtype::F32)));
        assert_eq!(
            read_json(&bench.path("out/config.json"))["dtype"],
            "bfloat16"
        );
        assert_eq!(bench.weld(&["verify", "out", "--full"]).code, Some(0));
    }
    let all = recipe("dtype: bfloat16\nkeep_dtype: false\n");
    bench.merge(&all, &[]);
    assert_eq!(dtypes(&bench), []);
    let plan = bench.weld(&["plan", "recipe.yml"]);
    assert!(
        plan.stdout.contains("`keep_dtype: false` rounds tensors"),
        "{}",
        plan.stdout
    );
}
