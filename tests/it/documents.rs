//! Several documents in one file: what they write is what merging one after the other writes.

use safetensors::Dtype;
use serde_json::json;

use crate::determinism::{self, RECIPES};
use crate::fixtures::{
    Bench, by_name, config_with, files, floats, integers, llama, read_json, with,
};

/// The weights and the config of what `recipe.yml` gives.
fn merged(bench: &Bench, recipe: &str, more: &[&str]) -> Vec<(String, Vec<u8>)> {
    let mut files = files(&bench.merge(recipe, more));
    // The card and the lock tell the recipe, and the two have not the same.
    files.retain(|(name, _)| name != "README.md" && name != "weldment.lock.json");
    files
}

#[test]
fn two_documents_write_what_two_merges_write() {
    let cases = [
        (Dtype::BF16, "float32"),
        (Dtype::F32, "bfloat16"),
        (Dtype::F16, "float16"),
    ];
    let benches = cases.map(|(dtype, _)| determinism::bench(dtype));
    let named = |wanted: &str| *RECIPES.iter().find(|(name, _)| *name == wanted).unwrap();
    // An apply alone, a histogram and a Gram matrix.
    let seconds = ["linear", "ties", "slerp"].map(named);
    for (index, (name, first)) in RECIPES.iter().enumerate() {
        let ((dtype, other), bench) = (cases[index % 3], &benches[index % 3]);
        let (last, second) = seconds[index / 3 % 3];
        let first = format!("{first}dtype: {other}\n");
        let second = second.replace("model: a", "model: first");
        // One after the other, by way of a folder.
        let out = bench.merge(&first, &[]);
        let folder = bench.path("first");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::rename(out, &folder).unwrap();
        let apart = merged(bench, &second, &[]);
        std::fs::remove_dir_all(&folder).unwrap();
        let both = format!("{second}---\nname: first\n{first}");
        for more in [["--threads", "1"], ["--threads", "3"]] {
            let together = merged(bench, &both, &more);
            assert!(
                together == apart,
                "{name}, then {last}, in {dtype:?}, {more:?}"
            );
        }
    }
}

#[test]
fn results_of_results_are_read_through() {
    let bench = Bench::new();
    for (seed, name) in ["a", "b", "c"].into_iter().enumerate() {
        bench.llama(name, seed as u64, Dtype::F32);
    }
    let linear = |name: &str, x: &str, y: &str| {
        format!(
            "name: {name}\nmerge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {x}}}, {{model: {y}}}]\n---\n"
        )
    };
    let recipe = linear("ab", "a", "b")
        + &linear("cab", "ab", "c")
        + &linear("all", "cab", "ab").replace("name: all\n", "");
    let out = bench.merge(&recipe, &[]);
    // ab = (a+b)/2, cab = ab/2 + c/2, all = cab/2 + ab/2 = 3/4 ab + 1/4 c.
    let (a, b, c) = (
        by_name(&bench.path("a")),
        by_name(&bench.path("b")),
        by_name(&bench.path("c")),
    );
    for (name, tensor) in by_name(&out) {
        let (a, b, c) = (a[&name].values(), b[&name].values(), c[&name].values());
        for (index, value) in tensor.values().into_iter().enumerate() {
            let expected = 0.375 * (a[index] + b[index]) + 0.25 * c[index];
            assert!((value - expected).abs() < 1e-7, "{name}[{index}]");
        }
    }
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(plan.contains("first    `cab`, not written:"), "{plan}");
    assert!(plan.contains("(the result of another document)"), "{plan}");
    // The card names the models that files hold.
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    for model in ["- `a`", "- `b`", "- `c`"] {
        assert!(card.contains(model), "{card}");
    }
}

#[test]
fn slices_of_results_and_their_config_follow() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::BF16);
    bench.llama("b", 2, Dtype::BF16);
    let recipe = "
name: tall
merge_method: passthrough
slices:
- sources: [{model: a, layer_range: [0, 2]}]
- sources: [{model: b, layer_range: [0, 2]}]
---
merge_method: passthrough
slices:
- sources: [{model: tall, layer_range: [1, 4]}]
- sources: [{model: tall, layer_range: [3, 4]}]
";
    let out = bench.merge(recipe, &[]);
    assert_eq!(
        read_json(&out.join("config.json"))["num_hidden_layers"],
        json!(4)
    );
    let (out, b) = (by_name(&out), by_name(&bench.path("b")));
    let name = |layer: usize| format!("model.layers.{layer}.mlp.up_proj.weight");
    assert_eq!(out[&name(1)], b[&name(0)]);
    assert_eq!(out[&name(3)], b[&name(1)]);
}

#[test]
fn what_the_weights_of_a_result_show_is_an_error() {
    let bench = Bench::new();
    let nan = floats(
        "model.norm.weight",
        Dtype::F32,
        &[8],
        [1.0, 2.0, f64::NAN, 0.0, 0.0, 0.0, 0.0, 0.0],
    );
    bench.llama("a", 1, Dtype::F32);
    bench.model(
        "bad",
        &config_with(2, json!({})),
        &with(llama(2, 2, Dtype::F32), nan),
    );
    let recipe = |method: &str| {
        format!(
            "name: mixed\nmerge_method: {method}\nbase_model: a\nparameters: {{weight: 1, density: 0.1}}\n\
             models: [{{model: bad}}]\n---\nmerge_method: passthrough\nmodels: [{{model: mixed}}]\n"
        )
    };
    // With a measure the model itself is seen, without one its trace in the result.
    let message = bench.refused(&recipe("ties"), &[]);
    assert!(
        message.contains("`model.norm.weight`") && message.contains("`bad`"),
        "{message}"
    );
    let message = bench.refused(
        &recipe("task_arithmetic").replace(", density: 0.1", ""),
        &[],
    );
    assert!(
        message.contains("`model.norm.weight`") && message.contains("`mixed`"),
        "{message}"
    );

    let ids = |first: i64| integers("model.position_list", &[first, 1, 2]);
    bench.model(
        "x",
        &config_with(2, json!({})),
        &with(llama(2, 2, Dtype::F32), ids(0)),
    );
    bench.model(
        "y",
        &config_with(2, json!({})),
        &with(llama(3, 2, Dtype::F32), ids(5)),
    );
    let linear = "name: mixed\nmerge_method: linear\nparameters: {weight: 1}\nmodels: [{model: x}, {model: y}]\n\
                  ---\nmerge_method: passthrough\nmodels: [{model: mixed}]\n";
    let message = bench.refused(linear, &[]);
    assert!(message.contains("`model.position_list`"), "{message}");
}

#[test]
fn results_have_neither_revisions_nor_adapters() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    let message = bench.refused(
        "name: one\nmerge_method: passthrough\nmodels: [{model: a}]\n---\nmerge_method: passthrough\nmodels: [{model: one+lora}]\n",
        &[],
    );
    assert!(
        message.contains("`one` is the result of another document"),
        "{message}"
    );
    let message = bench.refused(
        "name: one\nmerge_method: passthrough\nmodels: [{model: missing}]\n---\nmerge_method: passthrough\nmodels: [{model: one}]\n",
        &[],
    );
    assert!(
        message.contains("`missing`") || message.contains("missing"),
        "{message}"
    );
    assert!(message.contains("recipe.yml:3"), "{message}");
}

/// Documents of which each is the mean of the two before it, the first of `a` and `b`; the last has no name.
fn chain(length: usize) -> Vec<String> {
    let mut names = vec!["a".to_owned(), "b".to_owned()];
    let mut documents = Vec::new();
    for number in 1..=length {
        let [x, y] = [&names[number - 1], &names[number]];
        documents.push(format!(
            "merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {x}}}, {{model: {y}}}]\n"
        ));
        names.push(format!("d{number}"));
    }
    documents
}

fn in_one_file(documents: &[String]) -> String {
    let (last, named) = documents.split_last().unwrap();
    let named = (1..)
        .zip(named)
        .map(|(number, text)| format!("---\nname: d{number}\n{text}"));
    last.clone() + &named.collect::<String>()
}

/// Merging one after the other by way of folders; gives the weights and the config of the last.
fn step_by_step(bench: &Bench, documents: &[String]) -> Vec<(String, Vec<u8>)> {
    let (last, named) = documents.split_last().unwrap();
    for (number, text) in (1..).zip(named) {
        let out = bench.merge(text, &[]);
        std::fs::rename(out, bench.path(&format!("d{number}"))).unwrap();
    }
    let apart = merged(bench, last, &[]);
    for number in 1..documents.len() {
        std::fs::remove_dir_all(bench.path(&format!("d{number}"))).unwrap();
    }
    apart
}

#[test]
fn results_that_several_read_are_made_once() {
    let bench = Bench::new();
    for (seed, name) in ["a", "b"].into_iter().enumerate() {
        bench.llama(name, seed as u64, Dtype::BF16);
    }
    let documents = chain(24);
    let apart = step_by_step(&bench, &documents);
    let recipe = in_one_file(&documents);
    let more = ["--memory", "96MiB", "--threads", "2"];
    assert!(merged(&bench, &recipe, &more) == apart);
    // A pass over two models for each document: what one alone reads is computed where that reads it.
    let arguments = ["merge", "recipe.yml", "again", "--format", "json"];
    let outcome = bench.weld(&[&arguments[..], &more].concat());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let summary: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let tensors = by_name(&bench.path("a")).into_values();
    let model: u64 = tensors.map(|tensor| tensor.bytes.len() as u64).sum();
    let read = summary["bytes_read"].as_u64().unwrap();
    assert!(
        read <= 24 * 2 * model,
        "{read} bytes read of models of {model}"
    );
    assert_eq!(summary["bytes_written"], model);
    // No more is left than was asked for, and it can be computed again.
    assert!(!bench.staging().exists());
    bench.passes(&["verify", "again", "--full"]);
    let plan = bench
        .weld(&["plan", "recipe.yml", "--format", "json"])
        .stdout;
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    assert!(plan["bytes_read"].as_u64().unwrap() <= 24 * 2 * model);
    assert!(plan["scratch_bytes"].as_u64().unwrap() <= 22 * model);
    let shown = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(
        shown.contains("first    `d22`, made once for all that read it"),
        "{shown}"
    );
    assert!(shown.contains("first    `d23`, not written:"), "{shown}");
}

/// Methods that measure, copies, whole numbers and slices, on results that two documents read.
#[test]
fn whatever_reads_a_result_that_was_made_reads_what_would_have_been_written() {
    let bench = Bench::new();
    for (seed, name) in ["a", "b"].into_iter().enumerate() {
        let specs = with(
            llama(seed as u64, 2, Dtype::BF16),
            integers("model.position_list", &[3, 1, 2]),
        );
        bench.model(name, &config_with(2, json!({})), &specs);
    }
    let documents = [
        "merge_method: slerp\nbase_model: a\nparameters: {t: 0.4}\ndtype: float32\nmodels: [{model: a}, {model: b}]\n",
        "merge_method: ties\nbase_model: a\nparameters: {density: 0.5, weight: 1}\nmodels: [{model: b}, {model: d1}]\n",
        "merge_method: passthrough\nslices:\n- sources: [{model: d1, layer_range: [0, 1]}]\n\
         - sources: [{model: d2, layer_range: [0, 2]}]\n",
        "merge_method: passthrough\nslices:\n- sources: [{model: d2, layer_range: [0, 2]}]\n\
         - sources: [{model: d1, layer_range: [1, 2]}]\n",
        "merge_method: dare_ties\nbase_model: d3\nparameters: {density: 0.5, weight: 1}\ndtype: bfloat16\n\
         models: [{model: d3}, {model: d4}]\n",
    ]
    .map(str::to_owned);
    let apart = step_by_step(&bench, &documents);
    let recipe = in_one_file(&documents);
    for threads in ["1", "3"] {
        let together = merged(&bench, &recipe, &["--threads", threads]);
        assert!(together == apart, "{threads} threads");
    }
}

#[test]
fn what_the_weights_show_while_a_result_is_made_is_an_error_of_its_own_document() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    let nan = floats(
        "model.norm.weight",
        Dtype::F32,
        &[8],
        [f64::NAN, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    );
    bench.model(
        "bad",
        &config_with(2, json!({})),
        &with(llama(2, 2, Dtype::F32), nan),
    );
    let recipe = in_one_file(&chain(4)).replace("model: b}", "model: bad}");
    let message = bench.refused(&recipe, &[]);
    assert!(
        message.contains("`model.norm.weight`") && message.contains("`bad`"),
        "{message}"
    );
}
