//! `rename:`: tensors that a model calls by other names than the merge.

use safetensors::Dtype;
use serde_json::json;

use crate::fixtures::{Bench, Spec, by_name, config_with, floats, llama, noise, read_json};

const MEAN: &str =
    "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: a}, {model: b}]\n";

/// A llama in which some names have other parts.
fn spelled(seed: u64, changes: &[(&str, &str)]) -> Vec<Spec> {
    let mut specs = llama(seed, 2, Dtype::F32);
    for spec in &mut specs {
        for (old, new) in changes {
            spec.name = spec.name.replace(old, new);
        }
    }
    specs
}

/// Two llamas, `a` and `b`, of which `b` has other names, and `plain`, which is `b` with the names of `a`.
fn bench(changes: &[(&str, &str)]) -> Bench {
    let bench = Bench::new();
    let config = config_with(2, json!({}));
    bench.model("a", &config, &llama(1, 2, Dtype::F32));
    bench.model("b", &config, &spelled(2, changes));
    bench.model("plain", &config, &llama(2, 2, Dtype::F32));
    bench
}

/// The rules that a refusal proposes.
fn proposed(message: &str) -> &str {
    let from = message.find("`rename: ").expect(message) + 1;
    let len = message[from..].find('`').expect(message);
    &message[from..from + len]
}

#[test]
fn proposed_rules_make_the_merge_that_equal_names_make() {
    for changes in [
        [("lm_head.weight", "classifier_out.weight")].as_slice(),
        &[("self_attn.q_proj", "attention.query")],
        &[("mlp.up_proj", "ff.w1"), ("mlp.down_proj", "ff.w2")],
    ] {
        let bench = bench(changes);
        let message = bench.refused(MEAN, &[]);
        let rules = proposed(&message).to_owned();
        let out = bench.merge(&format!("{MEAN}{rules}\n"), &[]);
        bench.passes(&["verify", "--full", "out"]);
        let renamed = by_name(&out);
        let plain = bench.merge(&MEAN.replace("model: b", "model: plain"), &[]);
        assert_eq!(renamed, by_name(&plain), "{rules}");
    }
}

#[test]
fn tensors_of_other_shapes_are_no_reason_to_propose_a_rule() {
    let bench = bench(&[]);
    let mut specs = spelled(2, &[("lm_head.weight", "classifier_out.weight")]);
    for spec in specs
        .iter_mut()
        .filter(|spec| spec.name == "classifier_out.weight")
    {
        spec.shape.reverse();
    }
    bench.model("b", &config_with(2, json!({})), &specs);
    let message = bench.refused(MEAN, &[]);
    assert!(message.contains("no output head"), "{message}");
    assert!(!message.contains("rename"), "{message}");
}

#[test]
fn every_model_is_renamed_if_none_is_named_and_the_output_has_the_new_names() {
    let bench = bench(&[]);
    let config = config_with(2, json!({}));
    for (seed, name) in [(1, "a"), (2, "b")] {
        bench.model(name, &config, &spelled(seed, &[("model.", "trunk.")]));
    }
    let recipe = format!("{MEAN}rename: [{{from: 'trunk.*', to: 'model.*'}}]\n");
    let out = bench.merge(&recipe, &[]);
    let lock = read_json(&out.join("weldment.lock.json")).to_string();
    assert!(lock.contains("trunk.*"), "{lock}");
    let names = by_name(&out);
    assert!(names.keys().all(|name| !name.starts_with("trunk.")));
    assert!(names.contains_key("model.norm.weight"));
    bench.passes(&["verify", "--full", "out"]);
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(plan.contains("`rename` gives"), "{plan}");
}

#[test]
fn rules_that_fit_nothing_or_clash_are_refused_with_their_line() {
    let bench = bench(&[("lm_head", "head")]);
    let said = |rules: &str| {
        let message = bench.refused(&format!("{MEAN}rename:\n{rules}\n"), &[]);
        assert!(message.contains("recipe.yml:"), "{message}");
        message
    };
    for (rules, expected) in [
        (
            "- {from: 'haed.*', to: 'lm_head.*'}",
            "renames no tensor of any model",
        ),
        (
            "- {model: a, from: 'head.*', to: 'lm_head.*'}",
            "renames no tensor of `a`",
        ),
        // The first rule takes the name, so the second has none.
        (
            "- {from: 'head.*', to: 'lm_head.*'}\n- {from: head.weight, to: x}",
            "recipe.yml:6",
        ),
        (
            "- {model: b, from: head.weight, to: model.norm.weight}",
            "would both be `model.norm.weight`",
        ),
        (
            "- {model: b, from: 'model.layers.0.*', to: 'model.layers.1.*'}",
            "would both be `model.layers.1.",
        ),
        (
            "- {model: c, from: 'head.*', to: 'lm_head.*'}",
            "none of the models",
        ),
        ("- {from: 'a.*.*', to: 'b.*.*'}", "cannot be renamed to"),
        ("- {from: 'a.*', to: b}", "cannot be renamed to"),
        ("- {from: a, to: a}", "cannot be renamed to"),
        ("- {from: '', to: a}", "cannot be renamed to"),
        ("- {from: a}", "missing `to`"),
    ] {
        let message = said(rules);
        assert!(message.contains(expected), "{rules}: {message}");
    }
}

#[test]
fn names_may_change_places_and_exceptions_see_the_new_ones() {
    let bench = bench(&[
        ("lm_head", "swap"),
        ("model.embed_tokens", "lm_head"),
        ("swap", "model.embed_tokens"),
    ]);
    let recipe = format!(
        "{MEAN}rename:\n\
         - {{model: b, from: 'model.embed_tokens.*', to: 'lm_head.*'}}\n\
         - {{model: b, from: lm_head.weight, to: model.embed_tokens.weight}}\n\
         - {{from: model.norm.weight, to: model.last.weight}}\n\
         except: [{{tensors: model.last.weight, action: drop}}]\n"
    );
    let out = bench.merge(&recipe, &[]);
    let renamed = by_name(&out);
    let mut plain = by_name(&bench.merge(&MEAN.replace("model: b", "model: plain"), &[]));
    plain.remove("model.norm.weight");
    assert_eq!(renamed, plain);
}

/// What makes a `b` of other names an `a` in these tests.
const QUERY: &str =
    "{model: b, from: \"*.attention.query.weight\", to: \"*.self_attn.q_proj.weight\"}";

/// Merges by two recipes, of which the second knows no other names, and compares what comes out.
#[track_caller]
fn same_as_plain(bench: &Bench, recipe: &str, plain: &str) {
    let renamed = by_name(&bench.merge(recipe, &[]));
    bench.passes(&["verify", "--full", "out"]);
    assert_eq!(renamed, by_name(&bench.merge(plain, &[])));
}

#[test]
fn slices_are_cut_from_renamed_layers() {
    let bench = bench(&[("self_attn.q_proj", "attention.query")]);
    let slices = |model: &str| {
        format!(
            "merge_method: passthrough\nslices:\n- sources: [{{model: a, layer_range: [0, 2]}}]\n- sources: [{{model: \
             {model}, layer_range: [1, 2]}}]\n"
        )
    };
    let renamed = format!("{}rename: [{QUERY}]\n", slices("b"));
    same_as_plain(&bench, &renamed, &slices("plain"));
}

#[test]
fn results_of_other_documents_are_renamed_too() {
    let bench = bench(&[("self_attn.q_proj", "attention.query")]);
    let documents = |model: &str, rules: &str| {
        format!(
            "name: x\nmerge_method: passthrough\nmodels: [{{model: {model}, parameters: {{scale: 2}}}}]\n---\n\
             merge_method: linear\nparameters: {{weight: 0.5}}\nmodels: [{{model: a}}, {{model: x}}]\n{rules}"
        )
    };
    let of_result = QUERY.replace("model: b", "model: x");
    let renamed = documents("b", &format!("rename: [{of_result}]\n"));
    same_as_plain(&bench, &renamed, &documents("plain", ""));
    // In the document that makes the result, its names are those that it has from then on.
    let first = documents("b", "").replacen("---", &format!("rename: [{QUERY}]\n---"), 1);
    same_as_plain(&bench, &first, &documents("plain", ""));
}

#[test]
fn a_model_is_renamed_after_its_adapter_is_applied() {
    let bench = bench(&[("self_attn.q_proj", "attention.query")]);
    for (adapter, module) in [
        ("lora-b", "attention.query"),
        ("lora-plain", "self_attn.q_proj"),
    ] {
        let config =
            json!({"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": [module]});
        bench.file(
            &format!("{adapter}/adapter_config.json"),
            config.to_string(),
        );
        let factor = |name: &str, seed: u64, shape: [usize; 2]| {
            let name = format!("base_model.model.model.layers.1.{module}.{name}.weight");
            floats(&name, Dtype::F32, &shape, noise(seed, 8))
        };
        bench.tensors(
            &format!("{adapter}/adapter_model.safetensors"),
            &[factor("lora_A", 7, [1, 8]), factor("lora_B", 8, [8, 1])],
        );
    }
    let with = |model: &str| MEAN.replace("model: b", &format!("model: {model}"));
    let rules = QUERY.replace("model: b", "model: b+lora-b");
    let renamed = format!("{}rename: [{rules}]\n", with("b+lora-b"));
    same_as_plain(&bench, &renamed, &with("plain+lora-plain"));
}
