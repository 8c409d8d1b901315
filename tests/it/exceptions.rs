//! `only:` and `except:`: the tensors that are not merged, and what becomes of them.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde_json::json;

use crate::fixtures::{Bench, Loaded, by_name, config_with, floats, llama, noise, with};

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
