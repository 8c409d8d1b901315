//! What runtimes read otherwise than a checkpoint means it: `check --for`, and notes where weld made it so.

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Bench, llama, llama_config, read_json};

/// The ids of the findings about runtimes, with their severity and what was found.
fn told(bench: &Bench, model: &str, runtimes: &str) -> Vec<[String; 3]> {
    let outcome = bench.weld(&["check", model, "--for", runtimes, "--format", "json", "-q"]);
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap().iter();
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    findings
        .filter(|finding| text(finding, "check").starts_with("runtime."))
        .map(|finding| ["check", "severity", "found"].map(|key| text(finding, key)))
        .collect()
}

fn ids(told: &[[String; 3]]) -> Vec<&str> {
    told.iter().map(|[id, ..]| id.as_str()).collect()
}

#[test]
fn a_runtime_that_is_asked_for_is_told_by_name_and_others_are_not() {
    let bench = Bench::new();
    bench.dense(
        "mistral",
        "mistral",
        1,
        json!({"sliding_window": 3, "architectures": ["MistralForCausalLM"]}),
    );
    let [[id, severity, found]] = &told(&bench, "mistral", "llama.cpp")[..] else {
        panic!("one finding");
    };
    assert_eq!(
        (id.as_str(), severity.as_str()),
        ("runtime.window", "warning")
    );
    assert_eq!(found, "llama.cpp 0.5.0 attends to all tokens");
    assert_eq!(told(&bench, "mistral", "vllm,transformers"), [[""; 3]; 0]);
    let plain = bench.weld(&["check", "mistral"]).stdout;
    assert!(!plain.contains("runtime."), "{plain}");

    // Errors fail the check, and a typing error is none.
    bench.dense(
        "gelu",
        "llama",
        1,
        json!({"hidden_act": "gelu", "architectures": ["LlamaForCausalLM"]}),
    );
    let outcome = bench.weld(&["check", "gelu", "--for", "llama.cpp,mlx"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stdout);
    let gelu = told(&bench, "gelu", "llama.cpp,mlx");
    let all = ids(&gelu);
    let activations = all.iter().filter(|id| **id == "runtime.activation");
    assert_eq!(activations.count(), 2, "{gelu:?}");
    assert!(
        gelu[0][2].ends_with("computes `silu`, without a word"),
        "{gelu:?}"
    );
    let outcome = bench.weld(&["check", "gelu", "--for", "ollama"]);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("llama.cpp"), "{}", outcome.stderr);

    // By the config alone: without it nobody knows.
    std::fs::remove_file(bench.path("gelu/config.json")).unwrap();
    assert_eq!(bench.weld(&["check", "gelu", "--for", "mlx"]).code, Some(3));
}

#[test]
fn a_gate_of_zeros_is_seen_in_the_values() {
    let bench = Bench::new();
    bench.dense("dense", "qwen2", 3, json!({}));
    let recipe = "base_model: dense\narchitecture: qwen2_moe\ngate_mode: random\nexperts_per_token: 2\n\
                  experts: [{source_model: dense}, {source_model: dense}]\n";
    bench.moe(recipe, &[]);
    assert_eq!(ids(&told(&bench, "out", "llama.cpp")), [""; 0]);
    let config = read_json(&bench.path("out/config.json"));
    let tensors = crate::fixtures::by_name(&bench.path("out")).into_iter();
    let specs = tensors.map(|(name, mut tensor)| {
        if name.ends_with("layers.1.mlp.shared_expert_gate.weight") {
            tensor.bytes.fill(0);
        }
        crate::edit::spec(&name, tensor.dtype, &tensor.shape, tensor.bytes)
    });
    bench.model("zero", &config, &specs.collect::<Vec<_>>());
    let zero = told(&bench, "zero", "llama.cpp");
    assert_eq!(ids(&zero), ["runtime.experts"]);
    assert!(zero[0][2].contains("gives NaN"), "{zero:?}");
}

/// What `weld plan` notes.
fn planned(bench: &Bench, recipe: &str) -> String {
    bench.recipe(recipe);
    let outcome = bench.weld(&["plan", "recipe.yml"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    outcome.stdout + &outcome.stderr
}

#[test]
fn a_mixture_that_a_runtime_cannot_run_is_noted_in_a_line() {
    let bench = Bench::new();
    for (family, class, more, lines, others) in [
        (
            "llama",
            "LlamaForCausalLM",
            json!({}),
            &[][..],
            &["llama.cpp", "mlx-lm", "vLLM", "transformers 4"][..],
        ),
        (
            "gemma",
            "GemmaForCausalLM",
            json!({"tie_word_embeddings": true, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}),
            &[
                "llama.cpp 0.5.0 computes something else than the output means, without a word: `gelu_pytorch_tanh`, and it \
                 computes `silu`",
                "mlx-lm 0.32.2 computes something else",
            ],
            &["transformers 4"],
        ),
        (
            "olmo2",
            "Olmo2ForCausalLM",
            json!({}),
            &[
                "llama.cpp 0.5.0 does not load the output: it has no `FlexOlmoForCausalLM`",
                "mlx-lm 0.32.2 does not load the output: it has no `flex_olmo`",
            ],
            &["vLLM"],
        ),
        (
            "qwen2",
            "Qwen2ForCausalLM",
            json!({}),
            &[
                "vLLM 0.33.0 does not load the output: biases in attention, and it has no place for them",
            ],
            &["llama.cpp", "mlx-lm"],
        ),
    ] {
        let mut more = more;
        more["architectures"] = json!([class]);
        bench.dense("dense", family, 3, more);
        let two = "base_model: dense\ngate_mode: random\nexperts: [{source_model: dense}, {source_model: dense}]\n";
        let plan = planned(&bench, two);
        for line in lines {
            assert!(plan.contains(line), "{family}: {plan}");
        }
        for other in others {
            assert!(!plan.contains(other), "{family}: {plan}");
        }
    }
}

#[test]
fn a_restack_that_breaks_a_period_is_noted_and_one_that_keeps_it_is_not() {
    let bench = Bench::new();
    let kinds = [
        "sliding_attention",
        "sliding_attention",
        "sliding_attention",
        "full_attention",
    ];
    let mut config = llama_config(8);
    config["model_type"] = json!("cohere2");
    config["architectures"] = json!(["Cohere2ForCausalLM"]);
    config["layer_types"] = json!([kinds, kinds].concat());
    bench.model("a", &config, &llama(1, 8, Dtype::F32));
    let slices = |ranges: &[[usize; 2]]| {
        let sources = ranges
            .iter()
            .map(|range| format!("\n- sources: [{{model: a, layer_range: {range:?}}}]"));
        format!(
            "merge_method: passthrough\nslices:{}\n",
            sources.collect::<String>()
        )
    };
    for (ranges, broken) in [
        (&[[0, 8]][..], false),
        (&[[0, 4], [0, 8]], false),
        (&[[0, 6], [4, 8]], true),
        (&[[1, 8]], true),
    ] {
        let plan = planned(&bench, &slices(ranges));
        let noted = plan.contains(
            "llama.cpp 0.5.0 computes something else than the output means, without a word: layer",
        );
        assert_eq!(noted, broken, "{ranges:?}: {plan}");
    }
    // In a document whose result another one merges.
    let chain = format!(
        "name: stack\n{}---\nmerge_method: linear\nmodels: [{{model: stack}}]\nparameters: {{weight: 1}}\n",
        slices(&[[1, 8]])
    );
    let plan = planned(&bench, &chain);
    assert!(
        plan.contains("llama.cpp 0.5.0 computes something else"),
        "{plan}"
    );
    bench.recipe(&slices(&[[1, 8]]));
    bench.passes(&["merge", "recipe.yml", "out", "-q"]);
    assert_eq!(ids(&told(&bench, "out", "llama.cpp")), ["runtime.layers"]);
    assert_eq!(ids(&told(&bench, "a", "llama.cpp")), [""; 0]);
}
