//! Own memory stays within the budget and does not grow with the model.

use std::fs::File;
use std::io::{BufWriter, Write};

use safetensors::Dtype;
use serde_json::Value;

use crate::fixtures::{Bench, Outcome, floats, llama_config, noise};

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
        let bench = Bench::on_disk();
        for (salt, name) in ["base", "a", "b"].into_iter().enumerate() {
            // 4 MiB in each layer: 8 MiB and 48 MiB for each model.
            model(&bench, name, salt as u32, layers, 2 << 20);
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

/// Methods on whole matrices hold what the plan states, and are refused where they may not.
#[test]
#[cfg(target_os = "linux")]
fn matrices_are_held_within_what_the_plan_states() {
    let bench = Bench::new();
    for (seed, name) in [(1, "base"), (2, "a"), (3, "b")] {
        let [wide, tall] = [[250, 500], [500, 250]];
        let of = |name: &str, shape: [usize; 2]| {
            floats(name, Dtype::BF16, &shape, noise(seed, shape[0] * shape[1]))
        };
        let tensors = [of("up.weight", wide), of("down.weight", tall)];
        bench.tensors(&format!("{name}.safetensors"), &tensors);
    }
    for (seed, name) in [(1, "a.safetensors"), (2, "b.safetensors")] {
        bench.statistics(name, seed);
    }
    for method in weldment::methods::all().iter().map(|method| method.info()) {
        let recipe = match method.name {
            "regmean" => "merge_method: regmean\nmodels:\n- {model: a.safetensors, statistics: a.safetensors.stats}\n- {model: b.safetensors, statistics: b.safetensors.stats}\n".to_owned(),
            _ if !method.params.iter().any(|param| param.name == "others") => continue,
            name => format!(
                "merge_method: {name}\nbase_model: base.safetensors\nmodels: [{{model: a.safetensors}}, {{model: b.safetensors}}]\n"
            ),
        };
        let held = peak(&bench, &recipe, &[]);
        let bound = bound(&bench);
        assert!(held <= bound, "{}: {held} bytes of {bound}", method.name);
        let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
        assert!(plan.contains("of it for a whole matrix"), "{plan}");
        let refused = bench.weld(&["merge", "recipe.yml", "out", "--force", "--memory", "36MiB"]);
        assert_eq!(refused.code, Some(1));
        assert!(
            refused.stderr.contains("for all of `"),
            "{}",
            refused.stderr
        );
        assert!(refused.stderr.contains("--memory"), "{}", refused.stderr);
    }
}

/// A matrix that needs more than the usual memory is merged without a word; a limit is kept to, and each remedy that
/// the refusal names works.
#[test]
#[cfg(target_os = "linux")]
fn memory_grows_to_what_a_matrix_needs_unless_it_is_limited() {
    const USUAL: u64 = 256 << 20;
    let bench = Bench::new();
    for (seed, name) in [(1, "base"), (2, "a"), (3, "b")] {
        let shape = [6000, 750];
        let values = noise(seed, shape[0] * shape[1]).map(|value| value / 64.0);
        let tensors = [
            floats("h.up.weight", Dtype::BF16, &shape, values),
            floats("h.norm.weight", Dtype::BF16, &[750], noise(seed, 750)),
        ];
        bench.tensors(&format!("{name}.safetensors"), &tensors);
    }
    let recipe = "merge_method: actmat\nbase_model: base.safetensors\nmodels: [{model: a.safetensors}, {model: b.safetensors}]\n";
    let held = peak(&bench, recipe, &[]);
    let stated = bound(&bench);
    assert!(stated > USUAL && held <= stated, "{held} bytes of {stated}");
    let merge = ["merge", "recipe.yml", "out", "--force", "--threads", "2"];
    let limited = bench.weld(&[&merge[..], &["--memory", "256MiB"]].concat());
    assert_eq!(limited.code, Some(1), "{}", limited.stderr);
    let told = limited.stderr.replace('\n', " ");
    assert!(told.contains("for all of `h.up.weight`"), "{told}");
    // It is said whether the limit or the machine is too small.
    assert!(told.contains("the limit is 256.0 MiB"), "{told}");
    let memory = told.split("--memory ").nth(1).unwrap();
    let memory = memory.split(',').next().unwrap();
    let held = peak(&bench, recipe, &["--memory", memory]);
    assert!(held <= stated, "{held} bytes of {stated}");
    let (_, except) = told.split_once("`except: ").unwrap();
    let except = format!("{recipe}except: {}\n", except.split('`').next().unwrap());
    peak(&bench, &except, &["--memory", "256MiB"]);
}

/// Runs `weld` with so many MiB of own memory and no more.
fn limited(bench: &Bench, mib: usize, arguments: &[&str]) -> Outcome {
    let script = format!("ulimit -d {}; exec \"$0\" \"$@\"", mib << 10);
    let output = std::process::Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_weld")])
        .args(arguments)
        .current_dir(bench.path("."))
        .env("XDG_CACHE_HOME", bench.path("no-cache"))
        .output()
        .expect("sh starts");
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Writes a file of so many empty tensors.
fn empties(bench: &Bench, file: &str, count: usize, name: impl Fn(usize) -> String) {
    let entry = r#"{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#;
    let entries: Vec<String> = (0..count)
        .map(|at| format!("\"{}\":{entry}", name(at)))
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bench.file(file, bytes);
}

/// A header costs its reader some hundred times what it costs its writer: as much as a real one may have is bounded in
/// memory, and more is refused by name.
#[test]
#[cfg(target_os = "linux")]
fn headers_of_any_length_are_read_in_bounded_memory() {
    const MOST: usize = 1 << 18;
    /// Own memory that looking at any header may take.
    const MIB: usize = 896;
    let bench = Bench::on_disk();
    bench.file("m/config.json", llama_config(2).to_string());
    let layered = |at: usize| format!("model.layers.{}.w{}.weight", at % 4, at / 4);
    empties(&bench, "m/model.safetensors", MOST, layered);
    let ran = |arguments: &[&str], codes: &[i32]| {
        let outcome = limited(&bench, MIB, arguments);
        let code = outcome.code.unwrap_or(-1);
        assert!(
            codes.contains(&code),
            "{arguments:?}: {code} {}",
            outcome.stderr
        );
        outcome.stdout
    };
    ran(&["inspect", "m"], &[0]);
    ran(&["check", "m", "-q", "--format", "json"], &[1]);
    ran(&["diff", "m", "m", "-q", "--format", "json"], &[0]);

    empties(&bench, "m/model.safetensors", 1 << 20, layered);
    let told = ran(&["check", "m", "-q"], &[1]);
    assert!(
        told.contains("container.header") && told.contains("more than 262144 tensors"),
        "{told}"
    );
    ran(&["inspect", "m"], &[1, 2]);
    ran(&["diff", "m", "m", "-q"], &[2]);

    std::fs::remove_file(bench.path("m/model.safetensors")).unwrap();
    for shard in 1..=3 {
        let name = format!("m/model-0000{shard}-of-00003.safetensors");
        empties(&bench, &name, MOST / 2, |at| format!("{shard}.{at}"));
    }
    let told = ran(&["check", "m", "-q"], &[1]);
    assert!(
        told.contains("container.too-large") && told.contains("number of tensors"),
        "{told}"
    );
    ran(&["inspect", "m"], &[1, 2]);
}

/// Few tensors of many rows.
#[test]
#[cfg(target_os = "linux")]
fn embeddings_of_any_height_are_read_in_bounded_memory() {
    const ROWS: u64 = 20_000_000;
    /// Less than eight bytes for each row.
    const MIB: usize = 128;
    let bench = Bench::on_disk();
    bench.file("m/config.json", llama_config(2).to_string());
    let header = format!(
        r#"{{"model.embed_tokens.weight":{{"dtype":"F8_E4M3","shape":[{ROWS},2],"data_offsets":[0,{}]}}}}"#,
        2 * ROWS
    );
    let path = bench.file("m/model.safetensors", (header.len() as u64).to_le_bytes());
    let mut file = File::options().append(true).open(&path).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    // A row that is none of zeros; the others take no room on the disk.
    file.write_all(&[0x38; 2]).unwrap();
    file.set_len(8 + header.len() as u64 + 2 * ROWS).unwrap();
    let told = limited(&bench, MIB, &["check", "m", "-q"]).stdout;
    assert!(
        told.contains("19999999 of 20000000 rows are zeros"),
        "{told}"
    );
    let outcome = limited(&bench, MIB, &["diff", "m", "m", "-q"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(limited(&bench, MIB, &["inspect", "m"]).code, Some(0));
}
