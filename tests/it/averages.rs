//! Averages of a run's checkpoints, which a recipe names by a pattern.

use safetensors::Dtype;
use serde_json::Value;

use crate::fixtures::{Bench, by_name, files, llama_config, quick_bf16, read_json};

/// A run of `count` checkpoints, one each hundred steps.
fn run(bench: &Bench, count: usize) -> Vec<String> {
    let names = (1..=count).map(|number| format!("run/checkpoint-{}", number * 100));
    names
        .enumerate()
        .map(|(seed, name)| {
            bench.llama(&name, seed as u64, Dtype::F32);
            name
        })
        .collect()
}

const LAST: &str =
    "merge_method: linear\nmodels: {glob: \"run/checkpoint-*\", last: 4, schedule: sqrt}\n";

#[test]
fn a_schedule_gives_the_last_checkpoints_their_weights_in_the_order_of_their_numbers() {
    let bench = Bench::new();
    let names = run(&bench, 12);
    let out = by_name(&bench.merge(LAST, &[]));
    let models: Vec<_> = names[8..]
        .iter()
        .map(|name| by_name(&bench.path(name)))
        .collect();
    for (name, tensor) in &out {
        for (index, value) in tensor.values().into_iter().enumerate() {
            let share = |place: usize| (place as f64 / 4.0).sqrt();
            let parts = models.iter().enumerate().map(|(place, model)| {
                (share(place + 1) - share(place)) * model[name].values()[index]
            });
            let expected: f64 = parts.sum();
            assert!((value - expected).abs() < 1e-8, "{name}[{index}]");
        }
    }
}

#[test]
fn the_lock_names_the_models_that_were_found_and_verify_takes_these() {
    let bench = Bench::new();
    run(&bench, 5);
    let plan = bench
        .checked(&["plan", bench.recipe(LAST).to_str().unwrap()])
        .stdout;
    for weight in ["weight=0.5", "weight=0.207107", "weight=0.133975"] {
        assert!(plan.contains(weight), "{plan}");
    }
    let out = bench.merge(LAST, &[]);
    let before = files(&out);
    // A later checkpoint is none of the merge's.
    bench.llama("run/checkpoint-600", 77, Dtype::F32);
    bench.passes(&["verify", out.to_str().unwrap()]);
    let lock = read_json(&out.join("weldment.lock.json"));
    let inputs = lock["inputs"].as_array().unwrap().iter();
    let inputs: Vec<&Value> = inputs.map(|input| &input["model"]).collect();
    let expected = [200, 300, 400, 500].map(|step| Value::from(format!("run/checkpoint-{step}")));
    assert_eq!(inputs, expected.iter().collect::<Vec<_>>());
    // What is recorded is a recipe, and gives the same.
    let again = bench.merge(lock["recipe"].as_str().unwrap(), &[]);
    assert_eq!(files(&again), before);
}

#[test]
fn adapters_of_a_run_are_averaged_over_their_base() {
    let bench = Bench::new();
    bench.llama("base", 77, Dtype::F32);
    let names = run(&bench, 3);
    for name in &names {
        let adapter = name.replace("checkpoint", "lora");
        bench.passes(&[
            "extract-lora",
            "base",
            name,
            &adapter,
            "--rank",
            "8",
            "--exclude",
            "lm_head",
        ]);
    }
    let pattern = bench.merge(
        "merge_method: linear\nmodels: {glob: base+run/lora-*, schedule: mean}\n",
        &[],
    );
    let pattern = by_name(&pattern);
    let listed = "merge_method: linear\nparameters: {weight: 1}\nmodels:\n\
                  - {model: base+run/lora-100}\n- {model: base+run/lora-200}\n- {model: base+run/lora-300}\n";
    let listed = by_name(&bench.merge(listed, &[]));
    assert!(pattern == listed);
}

#[test]
fn sixty_checkpoints_are_merged_with_few_open_files_and_little_memory() {
    let bench = Bench::new();
    for number in 0..60 {
        let name = format!("run/checkpoint-{number}");
        let specs = [quick_bf16("model.norm.weight", number, &[1 << 17])];
        bench.model(&name, &llama_config(1), &specs);
    }
    let recipe = bench.recipe("merge_method: linear\nmodels: {glob: run/*, schedule: ema}\n");
    let limited = format!(
        "ulimit -n 64; exec {} merge {} out --memory 64MiB --no-check",
        env!("CARGO_BIN_EXE_weld"),
        recipe.display()
    );
    let mut shell = std::process::Command::new("sh");
    let outcome = shell
        .args(["-c", &limited])
        .current_dir(bench.path(""))
        .output()
        .unwrap();
    assert!(outcome.status.success(), "{outcome:?}");
    let out = by_name(&bench.path("out"));
    let models: Vec<Vec<f64>> = (0..60)
        .map(|number| by_name(&bench.path(&format!("run/checkpoint-{number}"))))
        .map(|model| model["model.norm.weight"].values())
        .collect();
    for (index, value) in out["model.norm.weight"].values().into_iter().enumerate() {
        let mean = models.iter().map(|model| model[index]);
        let mean = mean.reduce(|mean, value| 0.8 * mean + 0.2 * value).unwrap();
        assert!((value - mean).abs() <= mean.abs() / 256.0 + 1e-7, "{index}");
    }
}

/// A link to a checkpoint that is found by its own name adds no second one.
#[test]
fn a_checkpoint_is_taken_once() {
    let bench = Bench::new();
    run(&bench, 3);
    let recipe = "merge_method: linear\nmodels: {glob: \"run/*\", schedule: mean}\n";
    let out = bench.merge(recipe, &[]);
    let before = files(&out);
    std::os::unix::fs::symlink("checkpoint-300", bench.path("run/latest")).unwrap();
    std::os::unix::fs::symlink("../run/checkpoint-100", bench.path("run/best")).unwrap();
    let plan = bench.checked(&["plan", bench.recipe(recipe).to_str().unwrap()]);
    let said = plan.stdout + &plan.stderr;
    for expected in [
        "`run/latest` is `run/checkpoint-300` by another name: it is taken once",
        "`run/best` is `run/checkpoint-100` by another name: it is taken once",
        "weight=0.333333",
    ] {
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(files(&bench.merge(recipe, &[])), before);
    // Of links alone, the first stands for the model.
    let links = recipe.replace("run/*", "run/{latest,best,again}");
    std::os::unix::fs::symlink("checkpoint-300", bench.path("run/again")).unwrap();
    let plan = bench.checked(&["plan", bench.recipe(&links).to_str().unwrap()]);
    assert!(plan.stdout.contains("weight=0.5"), "{}", plan.stdout);
}

/// A weight for all models has no effect beside a schedule: a warning says so.
#[test]
fn a_weight_beside_a_schedule_is_told() {
    let bench = Bench::new();
    run(&bench, 2);
    let told = "`weight` has no effect: `schedule` gives each model one of its own";
    let said = |recipe: &str| {
        let plan = bench.checked(&["plan", bench.recipe(recipe).to_str().unwrap()]);
        let said = plan.stdout + &plan.stderr;
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let whole = "merge_method: linear\nmodels: {glob: \"run/*\", schedule: mean}\n";
    assert!(!said(whole).contains(told));
    let with = said(&format!("{whole}parameters: {{weight: 2}}\n"));
    assert!(with.contains(told), "{with}");
    let listed = whole.replace(", schedule: mean", "");
    assert!(!said(&format!("{listed}parameters: {{weight: 2}}\n")).contains(told));
}
