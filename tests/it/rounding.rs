//! How computed values become values of a narrower dtype, and how much of an update survives it.

use safetensors::Dtype;
use serde_json::Value;

use crate::fixtures::{
    Bench, Outcome, Spec, by_name, files, floats, llama, llama_config, load, noise, read_json,
};

/// A base of weights about 0.02 in bfloat16, and a fine-tune in float32 whose update is about `size`.
fn bench(size: f64) -> Bench {
    let bench = Bench::new();
    let base = llama(1, 2, Dtype::BF16);
    let tuned: Vec<Spec> = (base.iter().enumerate())
        .map(|(number, spec)| {
            let values = decoded(&spec.bytes);
            let update = noise(100 + number as u64, values.len());
            let moved = values
                .iter()
                .zip(update)
                .map(|(value, by)| value + size * by / 0.03);
            floats(&spec.name, Dtype::F32, &spec.shape, moved)
        })
        .collect();
    bench.model("base", &llama_config(2), &base);
    bench.model("tuned", &llama_config(2), &tuned);
    bench
}

fn decoded(bytes: &[u8]) -> Vec<f64> {
    let wide = |pair: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*pair)) << 16);
    let pairs = bytes.as_chunks::<2>().0.iter();
    pairs.map(|pair| f64::from(wide(pair))).collect()
}

fn recipe(more: &str) -> String {
    format!(
        "merge_method: task_arithmetic\nbase_model: base\nmodels: [{{model: tuned}}]\nparameters: {{weight: 1}}\n{more}"
    )
}

fn merged(bench: &Bench, recipe: &str, more: &[&str]) -> (Outcome, Value) {
    bench.recipe(recipe);
    let mut arguments = vec!["merge", "recipe.yml", "out", "--force", "--format", "json"];
    arguments.extend(more);
    let outcome = bench.weld(&arguments);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let result = serde_json::from_str(&outcome.stdout).unwrap();
    (outcome, result)
}

/// The projection of what was kept on what was meant, from the files.
fn kept(bench: &Bench, tuned: &str, weight: f64) -> f64 {
    let (base, meant, found) = (
        by_name(&bench.path("base")),
        by_name(&bench.path(tuned)),
        by_name(&bench.path("out")),
    );
    let (mut kept, mut energy) = (0.0, 0.0);
    for (name, tensor) in &base {
        let others = meant[name].values().into_iter().zip(found[name].values());
        for (base, (meant, found)) in tensor.values().into_iter().zip(others) {
            let update = weight * (meant - base);
            kept += (found - base) * update;
            energy += update * update;
        }
    }
    kept / energy
}

#[test]
fn an_update_that_the_dtype_swallows_is_measured_and_warned_of() {
    for (dtype, size) in [("bfloat16", 1e-5), ("float16", 1e-6)] {
        let bench = bench(size);
        let (outcome, result) = merged(&bench, &recipe(&format!("dtype: {dtype}\n")), &[]);
        let expected = kept(&bench, "tuned", 1.0);
        let fraction = result["update_kept"]["fraction"].as_f64().unwrap();
        assert!((fraction - expected).abs() < 1e-3, "{fraction} {expected}");
        assert!(fraction < 0.6, "{dtype} {fraction}");
        for remedy in [
            "`out_dtype: float32`",
            "a larger `lambda`",
            "`rounding: stochastic`",
        ] {
            assert!(outcome.stderr.contains(remedy), "{}", outcome.stderr);
        }
        let lock = read_json(&bench.path("out/weldment.lock.json"));
        let locked = lock["outputs"]["update_kept_percent"].as_f64().unwrap();
        assert!((locked - 100.0 * fraction).abs() < 0.051);
        // What the hint says helps.
        for remedy in [
            "out_dtype: float32\n".to_owned(),
            format!("dtype: {dtype}\nrounding: stochastic\n"),
        ] {
            let (outcome, result) = merged(&bench, &recipe(&remedy), &[]);
            let fraction = result["update_kept"]["fraction"].as_f64().unwrap();
            assert!((fraction - 1.0).abs() < 0.2, "{remedy} {fraction}");
            assert!(!outcome.stderr.contains("survives"), "{}", outcome.stderr);
        }
    }
}

/// Two fine-tunes of a low rate in bfloat16, each one unit in the last place from the base, at a third.
#[test]
fn a_small_weight_loses_the_update_of_a_bfloat16_fine_tune() {
    let bench = bench(0.0);
    let tuned: Vec<Spec> = llama(1, 2, Dtype::BF16)
        .into_iter()
        .map(|mut spec| {
            for pair in spec.bytes.chunks_mut(2) {
                pair[0] ^= 1;
            }
            spec
        })
        .collect();
    bench.model("near", &llama_config(2), &tuned);
    let recipe = "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: near}]\nparameters: {weight: 0.3}\n";
    let (outcome, result) = merged(&bench, recipe, &[]);
    assert_eq!(result["update_kept"]["fraction"], 0.0);
    assert_eq!(kept(&bench, "near", 0.3), 0.0);
    assert!(
        outcome
            .stderr
            .contains("0.0 % of the update of the base survives")
    );
    let (outcome, result) = merged(&bench, &format!("{recipe}rounding: stochastic\n"), &[]);
    let fraction = result["update_kept"]["fraction"].as_f64().unwrap();
    assert!((fraction - 1.0).abs() < 0.3, "{fraction}");
    assert!(!outcome.stderr.contains("survives"), "{}", outcome.stderr);
}

#[test]
fn an_update_that_survives_is_no_reason_for_a_note() {
    let bench = bench(2e-3);
    let (outcome, result) = merged(&bench, &recipe("dtype: bfloat16\n"), &[]);
    assert!(result["update_kept"]["fraction"].as_f64().unwrap() > 0.98);
    assert!(!outcome.stderr.contains("survives"), "{}", outcome.stderr);
    let text = bench.weld(&["merge", "recipe.yml", "text"]).stderr;
    assert!(
        text.contains(" % of the update of the base survives the rounding"),
        "{text}"
    );
    // Without a base there is no update.
    let linear =
        "merge_method: linear\nmodels: [{model: base}, {model: tuned}]\nparameters: {weight: 1}\n";
    assert_eq!(merged(&bench, linear, &[]).1["update_kept"], Value::Null);
}

/// Numbers so coarse that rounding the base alone changes more than the update.
#[test]
fn an_update_that_the_rounding_drowns_is_not_said_to_survive() {
    let bench = bench(1e-5);
    let (outcome, result) = merged(&bench, &recipe("dtype: float8_e4m3fn\n"), &[]);
    let fraction = result["update_kept"]["fraction"].as_f64().unwrap();
    assert!(!(0.0..1.5).contains(&fraction), "{fraction}");
    let warning = "the rounding to F8_E4M3 changes more than the update of the base does";
    assert!(outcome.stderr.contains(warning), "{}", outcome.stderr);
    let text = bench.weld(&["merge", "recipe.yml", "text"]);
    assert!(!text.stderr.contains("survives"), "{}", text.stderr);
}

#[test]
fn what_a_lock_says_of_the_update_is_measured_again() {
    let bench = bench(1e-5);
    merged(&bench, &recipe("dtype: bfloat16\n"), &[]);
    let path = bench.path("out/weldment.lock.json");
    let lock = std::fs::read_to_string(&path).unwrap();
    let field = "\"update_kept_percent\": ";
    let (before, after) = lock.split_once(field).unwrap();
    let (_, after) = after.split_once('\n').unwrap();
    bench.passes(&["verify", "out", "--full"]);
    let sample = bench.weld(&["verify", "out"]);
    assert_eq!(sample.code, Some(0), "{}", sample.stdout);
    assert!(
        sample.stdout.contains("verify.update-kept") && sample.stdout.contains("--full"),
        "{}",
        sample.stdout
    );
    std::fs::write(&path, format!("{before}{field}99.9\n{after}")).unwrap();
    let forged = bench.weld(&["verify", "out", "--full"]);
    assert_eq!(forged.code, Some(1), "{}", forged.stdout);
    for said in ["verify.update-kept", "found 99.9 %"] {
        assert!(forged.stdout.contains(said), "{}", forged.stdout);
    }
}

#[test]
fn stochastic_rounding_is_computed_again_by_verify_and_depends_on_the_seed() {
    let bench = bench(1e-5);
    let stochastic = recipe("dtype: bfloat16\nrounding: stochastic\n");
    merged(&bench, &stochastic, &["--seed", "3"]);
    let first = files(&bench.path("out"));
    for more in [["verify", "out", "--full"], ["verify", "out", "--strict"]] {
        bench.passes(&more);
    }
    merged(&bench, &stochastic, &["--seed", "4"]);
    let other = by_name(&bench.path("out"));
    merged(&bench, &stochastic, &["--seed", "3"]);
    assert!(files(&bench.path("out")) == first);
    assert!(by_name(&bench.path("out")) != other);
    let plan = bench.weld(&["plan", "recipe.yml", "--seed", "3"]).stdout;
    assert!(plan.contains("rounding stochastic, seed 3"), "{plan}");
}

#[test]
fn another_rounding_is_refused_with_the_choices() {
    let bench = bench(1e-5);
    let message = bench.refused(&recipe("rounding: up\n"), &[]);
    assert!(message.contains("unknown rounding `up`"), "{message}");
    assert!(message.contains("`nearest` and `stochastic`"), "{message}");
}

/// A tied tensor that is stored twice gets the same draws, so that it stays tied.
#[test]
fn copies_stay_copies() {
    let bench = bench(1e-5);
    for model in ["base", "tuned"] {
        let mut specs = Vec::new();
        for (name, tensor) in load(&bench.path(model)) {
            let spec = |name: &str| Spec {
                name: name.to_owned(),
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                bytes: tensor.bytes.clone(),
            };
            if name == "lm_head.weight" {
                specs.push(spec("model.shared.weight"));
            }
            specs.push(spec(&name));
        }
        bench.model(model, &llama_config(2), &specs);
    }
    merged(
        &bench,
        &recipe("dtype: bfloat16\nrounding: stochastic\n"),
        &[],
    );
    let out = by_name(&bench.path("out"));
    assert_eq!(
        out["model.shared.weight"].bytes,
        out["lm_head.weight"].bytes
    );
    merged(&bench, &recipe("dtype: bfloat16\n"), &[]);
    assert_ne!(
        by_name(&bench.path("out"))["lm_head.weight"],
        out["lm_head.weight"]
    );
}
