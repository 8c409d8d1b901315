//! Edits of mixtures: experts kept, left out, doubled, moved, replaced and added; dense models taken out.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Bench, Loaded, Spec, by_name, read_json};
use crate::moe::{HIDDEN, LAYERS, PAIRS, assert_equal, assert_same_logits, logits};

/// What the pairs of [`PAIRS`] need beside their names.
fn more(family: &str, extra: &str) -> Value {
    match family {
        "granite" if !extra.starts_with('#') => {
            json!({"embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 2.0,
                   "attention_multiplier": 0.2})
        }
        "mistral" => json!({"sliding_window": 3}),
        _ => json!({}),
    }
}

impl Bench {
    /// A mixture of three dense models, in the folder `name`.
    fn mixture(&self, name: &str, family: &str, target: &str, extra: &str, flags: &[&str]) {
        for (model, seed) in [("dense", 3), ("one", 4), ("two", 5)] {
            self.dense(model, family, seed, more(family, extra));
        }
        let recipe = format!(
            "base_model: dense\narchitecture: {target}\ngate_mode: random\nrouter: {{seed: 4}}\n{extra}\nexperts: \
             [{{source_model: one}}, {{source_model: two}}, {{source_model: dense}}]\n"
        );
        self.moe(&recipe, flags);
        std::fs::rename(self.path("out"), self.path(name)).unwrap();
    }

    /// Runs an edit; gives the tensors of the output.
    #[track_caller]
    fn edit(&self, recipe: &str, flags: &[&str]) -> BTreeMap<String, Loaded> {
        self.moe(recipe, flags);
        by_name(&self.path("out"))
    }

    /// Writes a mixture again with other values for some of its tensors.
    fn rewrite(&self, name: &str, change: impl Fn(&str, &mut Loaded)) {
        let config = read_json(&self.path(&format!("{name}/config.json")));
        let mut tensors = by_name(&self.path(name));
        for (name, tensor) in &mut tensors {
            change(name, tensor);
        }
        let specs: Vec<Spec> = tensors
            .into_iter()
            .map(|(name, tensor)| spec(&name, tensor.dtype, &tensor.shape, tensor.bytes))
            .collect();
        self.model(name, &config, &specs);
    }
}

pub(crate) fn spec(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Spec {
    Spec {
        name: name.into(),
        dtype,
        shape: shape.into(),
        bytes,
    }
}

fn f32s(tensor: &Loaded) -> Vec<f32> {
    assert_eq!(tensor.dtype, Dtype::F32);
    let values = tensor.bytes.chunks_exact(4);
    values
        .map(|value| f32::from_le_bytes(value.try_into().unwrap()))
        .collect()
}

#[test]
fn to_keep_all_changes_no_byte() {
    for (family, target, extra) in PAIRS {
        let bench = Bench::new();
        bench.mixture("mixture", family, target, extra, &[]);
        let out = bench.edit("base_model: mixture\nexperts: [{expert: \"0-\"}]\n", &[]);
        let mixture = by_name(&bench.path("mixture"));
        assert_eq!(
            out.keys().collect::<Vec<_>>(),
            mixture.keys().collect::<Vec<_>>(),
            "{target}"
        );
        for (name, tensor) in &mixture {
            assert_equal(&out[name], tensor);
        }
        assert_eq!(
            read_json(&bench.path("out/config.json")),
            read_json(&bench.path("mixture/config.json")),
            "{target}"
        );
    }
}

#[test]
fn experts_in_another_order_compute_the_same() {
    for (family, target, extra) in PAIRS
        .into_iter()
        .filter(|(.., extra)| !extra.contains("upcycle"))
    {
        for flags in [&[][..], &["--fused"]] {
            let bench = Bench::new();
            bench.mixture("mixture", family, target, extra, flags);
            let expected = logits(&bench.path("mixture"));
            bench.edit(
                "base_model: mixture\nexperts: [{expert: 2}, {expert: \"0-2\"}]\n",
                flags,
            );
            let found = logits(&bench.path("out"));
            assert_same_logits(
                &expected,
                &found,
                &format!("{target} turned round {flags:?}"),
            );
            // Each twice, and twice as many for each token: the copies share their expert's weight.
            bench.edit(
                "base_model: mixture\nexperts_per_token: 4\nexperts: [{expert: \"0-\"}, {expert: \"0-3\"}]\n",
                flags,
            );
            let config = read_json(&bench.path("out/config.json"));
            assert!(
                config
                    .as_object()
                    .unwrap()
                    .values()
                    .any(|value| *value == 6),
                "{config}"
            );
            let found = logits(&bench.path("out"));
            assert_same_logits(&expected, &found, &format!("{target} doubled {flags:?}"));
        }
    }
}

#[test]
fn the_layout_of_transformers_5_and_the_hubs_are_turned_into_each_other() {
    for (family, target, extra) in PAIRS
        .into_iter()
        .filter(|(.., extra)| !extra.contains("upcycle"))
    {
        let bench = Bench::new();
        bench.mixture("hub", family, target, extra, &[]);
        bench.mixture("held", family, target, extra, &["--fused"]);
        assert_same_logits(
            &logits(&bench.path("hub")),
            &logits(&bench.path("held")),
            target,
        );
        let checked = bench.weld(&["check", "held", "--strict"]);
        assert_eq!(checked.code, Some(0), "{target}\n{}", checked.stdout);
        for (from, to, flags) in [("hub", "held", &["--fused"][..]), ("held", "hub", &[])] {
            let recipe = format!("base_model: {from}\nexperts: [{{expert: \"0-\"}}]\n");
            let (out, expected) = (bench.edit(&recipe, flags), by_name(&bench.path(to)));
            assert_eq!(
                out.keys().collect::<Vec<_>>(),
                expected.keys().collect::<Vec<_>>(),
                "{target}"
            );
            for (name, tensor) in &expected {
                assert_equal(&out[name], tensor);
            }
        }
    }
}

#[test]
fn experts_are_moved_replaced_and_left_out_with_their_rows() {
    let bench = Bench::new();
    bench.mixture("mixture", "llama", "mixtral", "", &[]);
    bench.mixture(
        "other",
        "llama",
        "mixtral",
        "layers: \"0-\"\ndtype: float32",
        &[],
    );
    // Rows that can be told apart.
    bench.rewrite("other", |name, tensor| {
        if name.ends_with("gate.weight") {
            tensor.bytes.rotate_left(1);
            tensor.bytes.iter_mut().for_each(|byte| *byte &= 0x3f);
        }
    });
    let out = bench.edit(
        "base_model: mixture\nexperts:\n  - {expert: 2}\n  - {expert: 1, of: other}\n  - {expert: 0, source_model: \
         two, residual_scale: 0.5}\n",
        &[],
    );
    let (mixture, other, two) = (
        by_name(&bench.path("mixture")),
        by_name(&bench.path("other")),
        by_name(&bench.path("two")),
    );
    for layer in 0..LAYERS {
        let start = format!("model.layers.{layer}.block_sparse_moe.");
        for matrix in ["w1", "w2", "w3"] {
            let of = |expert: usize| format!("{start}experts.{expert}.{matrix}.weight");
            assert_equal(&out[&of(0)], &mixture[&of(2)]);
            assert_equal(&out[&of(1)], &other[&of(1)]);
        }
        let dense = |matrix: &str| &two[&format!("model.layers.{layer}.mlp.{matrix}_proj.weight")];
        assert_equal(&out[&format!("{start}experts.2.w1.weight")], dense("gate"));
        assert_equal(&out[&format!("{start}experts.2.w3.weight")], dense("up"));
        let halved: Vec<f32> = f32s(dense("down"))
            .iter()
            .map(|value| value / 2.0)
            .collect();
        assert_eq!(f32s(&out[&format!("{start}experts.2.w2.weight")]), halved);
        let row = |model: &BTreeMap<String, Loaded>, row: usize| {
            f32s(&model[&format!("{start}gate.weight")])[row * HIDDEN..][..HIDDEN].to_vec()
        };
        assert_eq!(row(&out, 0), row(&mixture, 2));
        assert_eq!(row(&out, 1), row(&other, 1));
        assert_eq!(row(&out, 2), row(&mixture, 0));
    }
    assert_eq!(bench.weld(&["check", "out", "-q"]).code, Some(0));
    bench.passes(&["verify", "out", "--full"]);
}

#[test]
fn an_added_expert_gets_rows_as_long_as_the_others() {
    let bench = Bench::new();
    bench.mixture("mixture", "qwen3", "glm4_moe", "", &[]);
    bench.rewrite("mixture", |name, tensor| {
        if name.ends_with("e_score_correction_bias") {
            let values = [0.5f32, -0.25, 2.0];
            tensor.bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
        }
    });
    let recipe = |mode: &str, router: &str| {
        format!(
            "base_model: mixture\ngate_mode: {mode}\nrouter: {{{router}}}\nexperts:\n  - {{expert: \"1-\"}}\n  - \
             {{source_model: two, positive_prompts: [\"abca\", \"ce\"], negative_prompts: [\"b\"]}}\n"
        )
    };
    let length = |row: &[f32]| {
        row.iter()
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>()
            .sqrt()
    };
    for mode in [
        "hidden",
        "hidden_avg",
        "gate_input",
        "cheap_embed",
        "random",
        "uniform_random",
    ] {
        let out = bench.edit(&recipe(mode, "seed: 3"), &[]);
        let mixture = by_name(&bench.path("mixture"));
        for layer in 0..LAYERS {
            let start = format!("model.layers.{layer}.mlp.gate.");
            let (old, new) = (
                f32s(&mixture[&format!("{start}weight")]),
                f32s(&out[&format!("{start}weight")]),
            );
            assert_eq!(new[..2 * HIDDEN], old[HIDDEN..], "rows that are kept");
            let mean = old.chunks_exact(HIDDEN).map(length).sum::<f64>() / 3.0;
            let found = length(&new[2 * HIDDEN..]);
            assert!((found / mean - 1.0).abs() < 1e-6, "{mode}: {found}, {mean}");
            let bias = f32s(&out[&format!("{start}e_score_correction_bias")]);
            assert_eq!(bias, [-0.25, 2.0, 0.75]);
        }
    }
    // In the first layer states are embeddings: the row is the one of an assembly on the same base.
    let out = bench.edit(&recipe("hidden", ""), &[]);
    let name = "model.layers.0.mlp.gate.weight";
    let added = f32s(&out[name])[2 * HIDDEN..].to_vec();
    bench.moe(
        "base_model: dense\narchitecture: glm4_moe\nexperts:\n  - {source_model: one, positive_prompts: [\"d\"]}\n  - \
         {source_model: two, positive_prompts: [\"abca\", \"ce\"], negative_prompts: [\"b\"]}\n",
        &[],
    );
    let assembled = f32s(&by_name(&bench.path("out"))[name])[HIDDEN..].to_vec();
    for (a, b) in added.iter().zip(&assembled) {
        assert!((f64::from(*a) / length(&added) - f64::from(*b)).abs() < 1e-6);
    }
    // Rows from a file are taken as they are.
    let row: Vec<u8> = (0..HIDDEN).flat_map(|x| (x as f32).to_le_bytes()).collect();
    let rows = spec("rows", Dtype::F32, &[1, HIDDEN], row.clone());
    bench.model("rows", &json!({}), &[rows]);
    let file = recipe("file", "file: rows/model.safetensors").replace(
        ", positive_prompts: [\"abca\", \"ce\"], negative_prompts: [\"b\"]",
        "",
    );
    let out = bench.edit(&file, &[]);
    assert_eq!(out[name].bytes[8 * HIDDEN..], row);
    assert_eq!(bench.weld(&["check", "out", "-q"]).code, Some(0));
}

#[test]
fn noise_tells_copies_apart() {
    let bench = Bench::new();
    bench.mixture("mixture", "qwen3", "qwen3_moe", "", &[]);
    let recipe = "base_model: mixture\nrouter: {seed: 7}\nexperts: [{expert: \"0-3\"}, {expert: \"0-3\", noise_scale: 0.01}]\n";
    let out = bench.edit(recipe, &[]);
    let of =
        |expert: usize| f32s(&out[&format!("model.layers.1.mlp.experts.{expert}.up_proj.weight")]);
    let deviation = |a: &[f32], b: &[f32]| {
        let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
        (squares.sum::<f64>() / a.len() as f64).sqrt()
    };
    let off = deviation(&of(0), &of(3));
    assert!((0.008..0.012).contains(&off), "{off}");
    let noises: Vec<f32> = of(0).iter().zip(of(3)).map(|(a, b)| a - b).collect();
    let others: Vec<f32> = of(1).iter().zip(of(4)).map(|(a, b)| a - b).collect();
    assert!(deviation(&noises, &others) > 0.01, "each has its own");
}

#[test]
fn what_was_assembled_of_one_model_is_taken_out_again() {
    // The gate of a shared expert is no part of a dense MLP.
    let gated = |target: &str, extra: &str| target == "qwen2_moe" && extra.contains("shared");
    for (family, target, extra) in PAIRS {
        for flags in [&[][..], &["--fused"]] {
            if gated(target, extra) {
                continue;
            }
            let bench = Bench::new();
            bench.dense("dense", family, 3, more(family, extra));
            let recipe = format!(
                "base_model: dense\narchitecture: {target}\ngate_mode: random\n{extra}\nexperts: [{{source_model: \
                 dense}}, {{source_model: dense}}, {{source_model: dense}}]\n"
            );
            bench.moe(&recipe, flags);
            std::fs::rename(bench.path("out"), bench.path("mixture")).unwrap();
            let parts = match extra {
                _ if extra.contains("granularity: 4") => "\"4-8\"",
                _ if extra.contains("granularity: 3") => "\"3-6\"",
                _ if extra.contains("granularity: 2") => "\"2-4\"",
                _ => "1",
            };
            let mut out = bench.edit(&format!("base_model: mixture\nextract: {parts}\n"), &[]);
            let (expected, found) = (logits(&bench.path("dense")), logits(&bench.path("out")));
            assert_same_logits(
                &expected,
                &found,
                &format!("{family} from {target} {extra}"),
            );
            let plain = !extra.contains("upcycle") && !extra.contains("alpha");
            if plain && family != "phi3" {
                let dense = by_name(&bench.path("dense"));
                // Granite has all biases of attention or none: a Qwen2 got one of zeros.
                out.retain(|name, tensor| {
                    let zeros = || tensor.bytes.iter().all(|byte| *byte == 0);
                    !(family == "qwen2" && name.ends_with("o_proj.bias") && zeros())
                });
                assert_eq!(
                    out.keys().collect::<Vec<_>>(),
                    dense.keys().collect::<Vec<_>>()
                );
                for (name, tensor) in &dense {
                    assert_equal(&out[name], tensor);
                }
                let config = read_json(&bench.path("out/config.json"));
                // Granite's class holds a Llama, whose multipliers are one.
                let held = match target.starts_with("granite") {
                    true => "granite",
                    false => family,
                };
                assert_eq!(config["model_type"], held, "from {target}");
            }
            assert_eq!(
                bench.weld(&["check", "out", "-q"]).code,
                Some(0),
                "{family} from {target} {extra}"
            );
            bench.passes(&["verify", "out", "--full"]);
        }
    }
}

#[test]
fn a_dense_model_of_two_experts_is_their_mean() {
    let bench = Bench::new();
    bench.mixture("mixture", "llama", "mixtral", "", &[]);
    // Routers of zeros give the first two experts half of the weight each.
    bench.rewrite("mixture", |name, tensor| {
        if name.ends_with("gate.weight") {
            tensor.bytes.fill(0);
        }
    });
    let expected = logits(&bench.path("mixture"));
    bench.edit("base_model: mixture\nextract: \"0-2\"\n", &[]);
    assert_same_logits(
        &expected,
        &logits(&bench.path("out")),
        "two experts side by side",
    );
    let config = read_json(&bench.path("out/config.json"));
    assert_eq!(config["intermediate_size"], 2 * crate::moe::WIDTH);
}

#[test]
fn what_cannot_be_edited_is_refused() {
    let bench = Bench::new();
    bench.mixture("mixture", "llama", "mixtral", "", &[]);
    bench.mixture("glm", "llama", "glm4_moe", "", &[]);
    bench.mixture(
        "gated",
        "qwen2",
        "qwen2_moe",
        "shared_experts: [{source_model: dense, alpha: 0.3}]",
        &[],
    );
    bench.dense("dense", "llama", 3, json!({}));
    bench.dense("rope", "llama", 3, json!({"rope_theta": 700.0}));
    bench.dense("act", "llama", 3, json!({"hidden_act": "gelu"}));
    bench.file(
        "silent/config.json",
        "{\"model_type\": \"mixtral\", \"rms_norm_eps\": 1e-5}",
    );
    std::fs::copy(
        bench.path("dense/model.safetensors"),
        bench.path("silent/model.safetensors"),
    )
    .unwrap();
    for (recipe, expected) in [
        (
            "base_model: mixture\nexperts: [{expert: 3}, {expert: 0}]\n",
            "`mixture` has 3 experts, and they are counted from 0",
        ),
        (
            "base_model: mixture\nexperts: [{expert: \"1-5\"}]\n",
            "`mixture` has 3 experts",
        ),
        (
            "base_model: mixture\nexperts: [{expert: 1}]\n",
            "a token goes through 2 experts, and there are 1",
        ),
        (
            "base_model: mixture\nexperts_per_token: 4\nexperts: [{expert: \"0-\"}]\n",
            "a token goes through 4 experts",
        ),
        (
            "base_model: dense\nexperts: [{expert: 0}, {expert: 1}]\n",
            "`dense` is of the family `llama`, expected a mixture of experts",
        ),
        (
            "base_model: mixture\nexperts: [{expert: 0}, {expert: 1, of: glm}]\n",
            "`glm` is a `glm4_moe`, expected `mixtral`",
        ),
        (
            "base_model: mixture\nexperts: [{expert: 0}, {expert: 1, of: dense}]\n",
            "expected a mixture of experts",
        ),
        (
            "base_model: mixture\nexperts: [{expert: 0}, {source_model: glm, positive_prompts: [a]}]\n",
            "`glm` is of the family `glm4_moe`",
        ),
        (
            "base_model: mixture\nexperts: [{expert: 0}, {source_model: dense}]\n",
            "the expert `dense` has no `positive_prompts`",
        ),
        (
            "base_model: mixture\nexperts: [{expert: 0, positive_prompts: [a]}, {expert: 1}]\n",
            "prompts have no effect",
        ),
        (
            "base_model: mixture\nexperts: [{expert: 0}, {expert: 1, source_model: rope}]\n",
            "trained with other rotary positions",
        ),
        (
            "base_model: mixture\nexperts: [{expert: 0}, {expert: 1, source_model: act}]\n",
            "`hidden_act` `gelu`, expected `silu`",
        ),
        (
            "base_model: mixture\nexperts: [{expert: 0}, {of: glm}]\n",
            "neither `expert`",
        ),
        (
            "base_model: mixture\nexperts: [{expert: 0, of: glm, source_model: dense}, {expert: 1}]\n",
            "both are named",
        ),
        (
            "base_model: mixture\ngate_mode: orthogonal\nexperts: [{expert: 0}, {source_model: dense}]\n",
            "makes all rows of a router",
        ),
        (
            "base_model: mixture\ngate_mode: file\nexperts: [{expert: 0}, {source_model: dense}]\n",
            "`gate_mode: file` has no file",
        ),
        (
            "base_model: mixture\nexperts: [{expert: 0}, {expert: x}]\n",
            "expected ranges of experts, found `x`",
        ),
        (
            "base_model: mixture\nshared_experts: []\nexperts: [{expert: 0}, {expert: 1}]\n",
            "unknown key `shared_experts`",
        ),
        (
            "base_model: mixture\nextract: 0\nexperts: [{expert: 0}]\n",
            "keep one of them",
        ),
        (
            "base_model: mixture\nextract: 3\n",
            "`mixture` has 3 experts",
        ),
        (
            "base_model: gated\nextract: 0\n",
            "a shared expert of 24 neurons with a gate of its own",
        ),
        (
            "base_model: silent\nextract: 0\n",
            "the config of `silent` has no `num_key_value_heads`",
        ),
        ("extract: 0\n", "missing `base_model`"),
    ] {
        let message = bench.moe_refused(recipe);
        assert!(message.contains(expected), "{expected}\n{message}");
    }
}

#[test]
fn a_plan_and_a_refused_merge_say_what_an_edit_is() {
    let bench = Bench::new();
    bench.mixture("mixture", "llama", "mixtral", "", &[]);
    bench.recipe("base_model: mixture\ngate_mode: random\nexperts: [{expert: \"0-2\"}, {source_model: two}]\n");
    let plan = bench.weld(&["plan", "recipe.yml"]);
    assert!(
        plan.stdout
            .contains("mixtral of 3 experts, 1 of them added, their routers by random"),
        "{}",
        plan.stdout
    );
    let merged = bench.weld(&["merge", "recipe.yml", "no"]);
    assert!(
        merged.stderr.contains("run it with `weld moe`"),
        "{}",
        merged.stderr
    );
    bench.recipe("base_model: mixture\nextract: 1\n");
    let plan = bench.weld(&["plan", "recipe.yml"]);
    assert!(
        plan.stdout
            .contains("llama from 1 expert of the mixtral's 3"),
        "{}",
        plan.stdout
    );
}

/// Experts that are one tensor have shapes too.
#[test]
fn a_fused_expert_of_another_shape_is_found() {
    for (family, target) in [("llama", "mixtral"), ("qwen3", "qwen3_moe")] {
        let bench = Bench::new();
        bench.mixture("held", family, target, "", &["--fused"]);
        bench.rewrite("held", |name, tensor| {
            if name.ends_with("layers.1.mlp.experts.down_proj") {
                tensor.shape.swap(1, 2);
            }
        });
        let checked = bench.weld(&["check", "held"]);
        assert_eq!(checked.code, Some(1), "{}", checked.stdout);
        assert!(
            checked.stdout.contains("structure.shape"),
            "{}",
            checked.stdout
        );
    }
}

/// No size of a config is believed: not by an assembly, nor by an edit.
#[test]
fn sizes_that_no_model_has_are_refused() {
    let bench = Bench::new();
    bench.mixture("mixture", "phi3", "mixtral", "", &[]);
    bench.mixture("held", "llama", "mixtral", "", &["--fused"]);
    for (model, recipe) in [
        (
            "dense",
            "base_model: dense\ngate_mode: random\nexperts: [{source_model: dense}, {source_model: dense}]\n",
        ),
        (
            "mixture",
            "base_model: mixture\nexperts: [{expert: 0}, {expert: 1}]\n",
        ),
        (
            "held",
            "base_model: held\nexperts: [{expert: 0}, {expert: 1}]\n",
        ),
        ("held", "base_model: held\nextract: \"0-2\"\n"),
    ] {
        let path = bench.path(&format!("{model}/config.json"));
        let config = read_json(&path);
        for field in [
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "num_local_experts",
        ] {
            // Twice the second is what is there, if nobody looks at what is carried.
            for value in [1u64 << 40, (1 << 63) + 24, u64::MAX] {
                if config.get(field).is_none() || field.starts_with("head") && model != "dense" {
                    continue;
                }
                let mut wrong = config.clone();
                wrong[field] = json!(value);
                bench.file(&format!("{model}/config.json"), wrong.to_string());
                bench.recipe(recipe);
                let outcome = bench.weld(&["moe", "recipe.yml", "refused"]);
                assert_eq!(
                    outcome.code,
                    Some(1),
                    "{model} {field} {value}: {}",
                    outcome.stderr
                );
                assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
                assert!(!bench.path("refused").exists(), "{model} {field} {value}");
            }
        }
        bench.file(&format!("{model}/config.json"), config.to_string());
    }
    let many = "0-,".repeat(100_000) + "0";
    let message = bench.moe_refused(&format!(
        "base_model: mixture\nexperts: [{{expert: \"{many}\"}}]\n"
    ));
    assert!(message.len() < 2_000_000 && message.contains("has 3 experts"));
    let items = "{expert: \"0-\"},".repeat(400);
    let message = bench.moe_refused(&format!("base_model: mixture\nexperts: [{items}]\n"));
    assert!(message.contains("expected at most 1024 experts, found 1200"));
}

/// The class of these wants a shared expert, and the width is that of one expert.
const ALWAYS_SHARED: [(&str, &str, &str, usize); 5] = [
    ("llama", "qwen2_moe", "layers: \"1\"", crate::moe::WIDTH),
    ("llama", "glm4_moe", "", crate::moe::WIDTH),
    (
        "qwen3",
        "dots1",
        "upcycle: {granularity: 2}",
        crate::moe::WIDTH / 2,
    ),
    ("hunyuan_v1_dense", "hunyuan_v1_moe", "", crate::moe::WIDTH),
    (
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
        "upcycle: {granularity: 2}",
        crate::moe::WIDTH / 2,
    ),
];

#[test]
fn a_shared_expert_of_zeros_has_the_width_of_an_expert_and_is_left_out_of_dense_models() {
    for (family, target, extra, width) in ALWAYS_SHARED {
        let bench = Bench::new();
        bench.mixture("mixture", family, target, extra, &[]);
        let mixture = by_name(&bench.path("mixture"));
        let is_down =
            |name: &&String| name.contains("shared") && name.ends_with("down_proj.weight");
        let shared: Vec<&String> = mixture.keys().filter(is_down).collect();
        assert!(!shared.is_empty(), "{target}");
        for name in &shared {
            assert_eq!(mixture[*name].shape, [HIDDEN, width], "{target}");
            assert!(mixture[*name].bytes.iter().all(|byte| *byte == 0));
        }
        let config = read_json(&bench.path("mixture/config.json"));
        match target {
            "qwen2_moe" => assert_eq!(config["shared_expert_intermediate_size"], width),
            "hunyuan_v1_moe" => assert_eq!(config["num_shared_expert"], json!(vec![1; LAYERS])),
            _ => assert_eq!(config["n_shared_experts"], 1, "{target}"),
        }
        bench.passes(&["check", "mixture"]);
        // The dense model of one expert has none of its neurons, with or without a gate.
        if extra.is_empty() {
            let out = bench.edit("base_model: mixture\nextract: 0\n", &[]);
            let expert = &by_name(&bench.path("one"))["model.layers.1.mlp.down_proj.weight"];
            assert_equal(&out["model.layers.1.mlp.down_proj.weight"], expert);
        }
    }
    // Weights in any layer are no zeros.
    let bench = Bench::new();
    bench.mixture("mixture", "llama", "qwen2_moe", "", &[]);
    bench.rewrite("mixture", |name, tensor| {
        if name
            == format!(
                "model.layers.{}.mlp.shared_expert.down_proj.weight",
                LAYERS - 1
            )
        {
            *tensor.bytes.last_mut().unwrap() = 0x3f;
        }
    });
    let told = bench.moe_refused("base_model: mixture\nextract: 0\n");
    assert!(told.contains("has a shared expert of"), "{told}");
}

#[test]
fn lists_with_an_entry_for_each_layer_are_read_edited_and_restacked() {
    let bench = Bench::new();
    bench.mixture("mixture", "hunyuan_v1_dense", "hunyuan_v1_moe", "", &[]);
    let config = |name: &str| read_json(&bench.path(&format!("{name}/config.json")));
    let lists = |name: &str| {
        let config = config(name);
        ["moe_topk", "moe_intermediate_size", "num_shared_expert"].map(|key| config[key].clone())
    };
    let of = |topk: usize, layers: usize| {
        [topk, crate::moe::WIDTH, 1].map(|entry| json!(vec![entry; layers]))
    };
    assert_eq!(lists("mixture"), of(2, LAYERS));
    bench.edit(
        "base_model: mixture\nexperts_per_token: 1\nexperts: [{expert: \"1-\"}]\n",
        &[],
    );
    assert_eq!(lists("out"), of(1, LAYERS));
    assert_eq!(config("out")["num_experts"], 2);
    // A number in place of each list, as transformers writes it, is the same model.
    let mut plain = config("mixture");
    plain["moe_topk"] = json!(2);
    plain["num_experts"] = json!(vec![3; LAYERS]);
    bench.file("mixture/config.json", plain.to_string());
    bench.passes(&["check", "mixture"]);
    let kept = bench.edit(
        "base_model: mixture\nexperts: [{expert: 0}, {expert: 2}]\n",
        &[],
    );
    assert!(!kept.is_empty());
    assert_eq!(config("out")["num_experts"], json!(vec![2; LAYERS]));
    bench.recipe("merge_method: passthrough\nslices:\n- sources: [{model: out, layer_range: [0, 2]}]\n- sources: [{model: out, layer_range: [0, 2]}]\n");
    bench.passes(&["merge", "recipe.yml", "stack", "-q"]);
    assert_eq!(config("stack")["num_experts"], json!(vec![2; 4]));
    assert_eq!(lists("stack")[1..], of(2, 4)[1..]);
    bench.passes(&["check", "stack"]);
    // Of layers that differ, the one that wants the most experts counts.
    plain["moe_topk"] = json!([1, 3, 2]);
    bench.file("mixture/config.json", plain.to_string());
    let told = bench.moe_refused("base_model: mixture\nexperts: [{expert: 0}, {expert: 2}]\n");
    assert!(
        told.contains("a token goes through 3 experts, and there are 2"),
        "{told}"
    );
}
