//! `only:` and `except:`: the tensors that are not merged, and what becomes of them.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde_json::json;

use crate::fixtures::{Bench, Loaded, Spec, by_name, config_with, floats, llama, noise, with};

const MIX: &str = "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n";

#[test]
fn what_is_not_merged_is_copied_taken_from_the_base_or_dropped() {
    let bench = Bench::new();
    for (seed, name) in ["base", "a", "b"].into_iter().enumerate() {
        bench.llama(name, seed as u64, Dtype::BF16);
    }
    let (base, a) = (by_name(&bench.path("base")), by_name(&bench.path("a")));
    let all = by_name(&bench.merge(MIX, &[]));
    let recipe = format!(
        "{MIX}except:\n- {{tensors: '*.mlp.*', action: copy}}\n- {{tensors: ['*norm*', lm_head.weight], action: base}}\n\
         - {{tensors: '*.1.self_attn.*', action: drop}}\n"
    );
    let out = by_name(&bench.merge(&recipe, &[]));
    let same = |name: &str, of: &BTreeMap<String, Loaded>| {
        assert_eq!(out.get(name), of.get(name), "{name}")
    };
    same("model.layers.0.mlp.up_proj.weight", &a);
    same("model.layers.1.input_layernorm.weight", &base);
    same("lm_head.weight", &base);
    same("model.layers.0.self_attn.q_proj.weight", &all);
    assert_eq!(out.get("model.layers.1.self_attn.q_proj.weight"), None);
    assert_eq!(out.len(), all.len() - 1);
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(plan.contains("`only` or `except` says so"), "{plan}");

    let out = by_name(&bench.merge(
        &format!("{MIX}only: {{tensors: '*.mlp.*', otherwise: base}}\n"),
        &[],
    ));
    for (name, found) in &out {
        let of = if name.contains(".mlp.") { &all } else { &base };
        assert_eq!(Some(found), of.get(name), "{name}");
    }
}

#[test]
fn an_excepted_tensor_gets_the_dtype_of_the_others() {
    let bench = Bench::new();
    for (seed, name) in ["base", "a", "b"].into_iter().enumerate() {
        bench.llama(name, seed as u64, Dtype::F32);
    }
    let recipe = format!("{MIX}dtype: bfloat16\nexcept: [{{tensors: '*norm*', action: copy}}]\n");
    let out = by_name(&bench.merge(&recipe, &[]));
    assert!(out.iter().all(|(_, tensor)| tensor.dtype == Dtype::BF16));
}

#[test]
fn dropped_tensors_may_be_missing_or_differ() {
    let bench = Bench::new();
    let config = config_with(2, json!({}));
    let head = |rows: usize| {
        floats(
            "score.weight",
            Dtype::F32,
            &[rows, 8],
            noise(rows as u64, rows * 8),
        )
    };
    bench.model("base", &config, &with(llama(1, 2, Dtype::F32), head(3)));
    bench.model("a", &config, &with(llama(2, 2, Dtype::F32), head(5)));
    bench.model("b", &config, &llama(3, 2, Dtype::F32));
    assert!(bench.refused(MIX, &[]).contains("score.weight"));
    let recipe = format!("{MIX}except: [{{tensors: 'score.*', action: drop}}]\n");
    assert_eq!(
        by_name(&bench.merge(&recipe, &[])).get("score.weight"),
        None
    );
    std::fs::remove_dir_all(bench.path("out")).unwrap();
    let recipe = format!("{MIX}except: [{{tensors: 'score.*', action: base}}]\n");
    let out = by_name(&bench.merge(&recipe, &[]));
    assert_eq!(
        out.get("score.weight"),
        by_name(&bench.path("base")).get("score.weight")
    );
    std::fs::remove_dir_all(bench.path("out")).unwrap();
    // Only other models have it: not the donor's, so nothing would be written.
    bench.model("base", &config, &llama(1, 2, Dtype::F32));
    assert!(bench.refused(&recipe, &[]).contains("score.weight"));
    bench.merge(&recipe.replace("action: base", "action: drop"), &[]);
}

#[test]
fn exceptions_that_cannot_be_are_refused() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    let linear = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}]\n";
    let message = bench.refused(
        &format!("{linear}except: [{{tensors: '*', action: base}}]\n"),
        &[],
    );
    assert!(message.contains("there is none here"), "{message}");
    let message = bench.refused(
        &format!("{linear}except: [{{tensors: '*', action: drop}}]\n"),
        &[],
    );
    assert!(message.contains("leaves no tensor to write"), "{message}");
    bench.recipe(&format!(
        "{linear}except: [{{tensors: 'vision.*', action: drop}}]\n"
    ));
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(
        plan.contains("the pattern `vision.*` fits no tensor"),
        "{plan}"
    );
}

/// A BERT whose trunk has a prefix, with a head of its own.
fn bert(seed: u64, prefix: &str, head: &[&str]) -> Vec<Spec> {
    let trunk = (0..2).map(|layer| format!("{prefix}encoder.layer.{layer}.output.dense.weight"));
    let names = trunk.chain(head.iter().map(|name| (*name).to_owned()));
    (seed * 100..)
        .zip(names)
        .map(|(seed, name)| floats(&name, Dtype::F32, &[4, 4], noise(seed, 16)))
        .collect()
}

#[test]
fn heads_of_other_names_are_not_taken_for_the_same() {
    let bench = Bench::new();
    let config = json!({"model_type": "bert"});
    let pooler = ["bert.pooler.dense.weight", "bert.pooler.dense.bias"];
    let transform = [
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
    ];
    bench.model("a", &config, &bert(1, "bert.", &pooler));
    bench.model("mlm", &config, &bert(2, "bert.", &transform));
    let mix =
        "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: a}, {model: mlm}]\n";
    let message = bench.refused(mix, &[]);
    for part in [
        "`mlm` lacks 2 tensors that `a` has: `bert.pooler.dense.bias`",
        "as `cls.predictions.transform.*` in place of `bert.pooler.*`",
        r#"except: [{tensors: 'bert.pooler.dense.*', action: drop}]"#,
        "`mlm` has 2 tensors that `a` lacks: `cls.predictions.transform.dense.bias`",
        r#"except: [{tensors: 'cls.predictions.transform.dense.*', action: drop}]"#,
    ] {
        assert!(message.contains(part), "{part}\n{message}");
    }
    // What the messages say, done: the pooler is the first model's, and nothing of it is mixed with the other head.
    let recipe = format!(
        "{mix}except: [{{tensors: 'cls.*', action: drop}}, {{tensors: 'bert.pooler.*', action: copy}}]\n"
    );
    let out = by_name(&bench.merge(&recipe, &[]));
    let a = by_name(&bench.path("a"));
    for name in pooler {
        assert_eq!(out.get(name), a.get(name));
    }
    assert_eq!(out.len(), 4);
    assert!(
        !bench
            .weld(&["plan", "recipe.yml"])
            .stdout
            .contains("fits no tensor")
    );

    // Beside a trunk that has another prefix, the heads stay apart too.
    std::fs::remove_dir_all(bench.path("out")).unwrap();
    bench.model("bare", &config, &bert(3, "", &transform));
    let message = bench.refused(&mix.replace("mlm", "bare"), &[]);
    assert!(message.contains("`bare` lacks 2 tensors"), "{message}");
    let recipe = format!(
        "{}except: [{{tensors: ['cls.*', 'bert.pooler.*'], action: drop}}]\n",
        mix.replace("mlm", "bare")
    );
    let (out, bare) = (
        by_name(&bench.merge(&recipe, &[])),
        by_name(&bench.path("bare")),
    );
    assert_eq!(out.len(), 2);
    let layer = "encoder.layer.1.output.dense.weight";
    let mean: Vec<f64> = std::iter::zip(a[&format!("bert.{layer}")].values(), bare[layer].values())
        .map(|(x, y)| f64::from((0.5 * x + 0.5 * y) as f32))
        .collect();
    assert_eq!(out[&format!("bert.{layer}")].values(), mean);
}

#[test]
fn copies_reach_what_the_base_lacks() {
    let bench = Bench::new();
    let config = config_with(2, json!({}));
    let tower = |seed: u64, name: &str| floats(name, Dtype::F32, &[3, 8], noise(seed, 24));
    bench.model("base", &config, &llama(1, 2, Dtype::F32));
    let a = with(llama(2, 2, Dtype::F32), tower(5, "score.weight"));
    bench.model("a", &config, &a);
    let b = with(llama(3, 2, Dtype::F32), tower(6, "score.weight"));
    bench.model("b", &config, &with(b, tower(7, "visual.proj.weight")));
    let message = bench.refused(MIX, &[]);
    assert!(
        message.contains(r#"`except: [{tensors: 'score.weight', action: drop}]` leaves them out"#),
        "{message}"
    );
    let recipe = format!("{MIX}except: [{{tensors: ['score.*', 'visual.*'], action: copy}}]\n");
    let out = by_name(&bench.merge(&recipe, &[]));
    for (name, of) in [("score.weight", "a"), ("visual.proj.weight", "b")] {
        assert_eq!(out.get(name), by_name(&bench.path(of)).get(name), "{name}");
    }
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(
        plan.contains("1 tensor of `a` that `base` lacks: copied (`score.weight`)"),
        "{plan}"
    );
}
