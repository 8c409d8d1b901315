//! Own memory stays within the budget and does not grow with the model.

use std::fs::File;
use std::io::{BufWriter, Write};

use serde_json::Value;

use crate::fixtures::{Bench, llama_config};

/// Writes a model of one bf16 tensor per layer, straight to the file.
fn model(bench: &Bench, name: &str, salt: u32, layers: usize, elements: usize) {
    bench.file(
        &format!("{name}/config.json"),
        llama_config(layers).to_string(),
    );
    let mut header = serde_json::Map::new();
    for layer in 0..layers {
        let at = layer * elements * 2;
        let entry = serde_json::json!({"dtype": "BF16", "shape": [elements], "data_offsets": [at, at + elements * 2]});
        header.insert(format!("model.layers.{layer}.w"), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = BufWriter::with_capacity(
        1 << 20,
        File::create(bench.path(&format!("{name}/model.safetensors"))).unwrap(),
    );
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(&header).unwrap();
    let mut state = salt;
    let mut chunk = Vec::with_capacity(elements * 2);
    for _ in 0..elements {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Values of both signs from about 0.004 to 0.06.
        chunk.extend(
            ((0x3b80 + (state >> 16 & 0x1ff)) as u16 | (state >> 31 << 15) as u16).to_le_bytes(),
        );
    }
    for _ in 0..layers {
        file.write_all(&chunk).unwrap();
    }
}

fn peak(bench: &Bench, recipe: &str, more: &[&str]) -> u64 {
    bench.recipe(recipe);
    let mut arguments = vec![
        "merge",
        "recipe.yml",
        "out",
        "-q",
        "--force",
        "--threads",
        "2",
        "--format",
        "json",
    ];
    arguments.extend(more);
    let outcome = bench.weld(&arguments);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let summary: Value = serde_json::from_str(&outcome.stdout).unwrap();
    summary["peak_memory"].as_u64().expect("Linux tells")
}

/// What `weld plan` says that it takes at most.
fn bound(bench: &Bench) -> u64 {
    let arguments = ["plan", "recipe.yml", "--threads", "2", "--format", "json"];
    let outcome = bench.weld(&arguments);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let plan: Value = serde_json::from_str(&outcome.stdout).unwrap();
    plan["peak_memory"].as_u64().unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn own_memory_is_bounded_whatever_the_size() {
    const MIB: u64 = 1 << 20;
    let recipes = [
        "merge_method: linear\nmodels: [{model: base}, {model: a}, {model: b}]\nparameters: {weight: 1}\n",
        "merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, density: 0.3}\n",
        "merge_method: dare_ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, density: 0.3}\n",
    ];
    let mut bounds = Vec::new();
    for layers in [2, 12] {
        let bench = Bench::new();
        for (salt, name) in ["base", "a", "b"].into_iter().enumerate() {
            // 8 MiB in each layer: 16 MiB and 96 MiB for each model.
            model(&bench, name, salt as u32, layers, 4 << 20);
        }
        for recipe in recipes {
            let tight = peak(&bench, recipe, &["--memory", "48MiB"]);
            assert!(
                tight <= 48 * MIB,
                "{tight} bytes with --memory 48MiB\n{recipe}"
            );
            // How much of it is used depends on the disk: chunks wait for it.
            let (usual, bound) = (peak(&bench, recipe, &[]), bound(&bench));
            assert!(usual <= bound, "{usual} bytes of {bound}\n{recipe}");
            assert!(bound <= 256 * MIB, "{bound} bytes by default\n{recipe}");
            bounds.push(bound);
        }
    }
    let (small, large) = bounds.split_at(recipes.len());
    assert_eq!(small, large, "the bound grows with the model");
}
