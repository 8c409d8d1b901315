//! Methods that read statistics from data: from the model and its texts to the merge, its lock and its verification.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use safetensors::Dtype;
use serde_json::Value;

use crate::fixtures::{Bench, Loaded, Spec, by_name, floats, llama_config, load, noise, read_json};

const REGMEAN: &str = "merge_method: regmean
models:
- {model: family/sort, statistics: sort.safetensors}
- {model: family/add, statistics: add.safetensors}
";

/// A folder with the family and some texts of two skills.
fn bench() -> Bench {
    let bench = Bench::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    symlink(root.join("recipes/family"), bench.path("family")).unwrap();
    let sums = (0..60u32).map(|at| {
        let (a, b) = (at * 29 % 100, at * 53 % 100);
        format!(
            "{{\"prompt\": \"add:{a:02}+{b:02}=\", \"answer\": \"{:03}\"}}\n",
            a + b
        )
    });
    bench.file("add.jsonl", sums.collect::<String>());
    let digits = (0..60u32).map(|at| format!("{:08}", at * 7_919_317 % 100_000_000));
    let sorted = |digits: String| {
        let mut sorted: Vec<char> = digits.chars().collect();
        sorted.sort_unstable();
        let sorted: String = sorted.into_iter().collect();
        format!("{{\"prompt\": \"sort:{digits}=\", \"answer\": \"{sorted}\"}}\n")
    };
    bench.file("sort.jsonl", digits.map(sorted).collect::<String>());
    bench
}

fn stats(bench: &Bench, model: &str, texts: &str, out: &str) {
    bench.passes(&["stats", model, "--data", texts, "--out", out, "--force"]);
}

fn both(bench: &Bench) {
    stats(bench, "family/sort", "sort.jsonl", "sort.safetensors");
    stats(bench, "family/add", "add.jsonl", "add.safetensors");
}

/// How much outputs of a merged layer differ from those of the models, on the inputs that each had.
fn loss(bench: &Bench, merged: &Path, weight: &str) -> f64 {
    let merged = by_name(merged)[weight].values();
    let of = |model: &str| {
        let model_weight = by_name(&bench.path(&format!("family/{model}")))[weight].values();
        let gram = by_name(&bench.path(&format!("{model}.safetensors")));
        let gram = &gram[&format!("gram/{weight}")];
        let (size, values) = (gram.shape[0], gram.values());
        let rows = merged.chunks(size).zip(model_weight.chunks(size));
        rows.map(|(merged, own)| {
            let change: Vec<f64> = merged.iter().zip(own).map(|(a, b)| a - b).collect();
            let product = |row: &[f64]| row.iter().zip(&change).map(|(a, b)| a * b).sum::<f64>();
            let products = values.chunks(size).map(product);
            products.zip(&change).map(|(a, b)| a * b).sum::<f64>()
        })
        .sum::<f64>()
    };
    of("sort") + of("add")
}

#[test]
fn regmean_loses_less_of_each_layer_s_outputs_than_the_mean() {
    let bench = bench();
    both(&bench);
    let recipe = format!("{REGMEAN}dtype: float32\n");
    let merged = bench.merge(&recipe, &["--threads", "2"]);
    let kept = bench.path("regmean");
    fs::rename(merged, &kept).unwrap();
    let linear = "merge_method: linear\nmodels: [{model: family/sort}, {model: family/add}]\nparameters: {weight: 1}\ndtype: float32\n";
    let mean = bench.merge(linear, &[]);
    for layer in [0, 3] {
        // Inputs are called as the first weight that has them.
        for weight in [
            "self_attn.q_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.down_proj",
        ] {
            let weight = format!("model.layers.{layer}.{weight}.weight");
            let (ours, theirs) = (loss(&bench, &kept, &weight), loss(&bench, &mean, &weight));
            assert!(ours < theirs, "{weight}: {ours}, {theirs}");
        }
    }
    // What is no linear layer takes the mean.
    let (ours, theirs) = (by_name(&kept), by_name(&mean));
    for name in ["model.embed_tokens.weight", "model.norm.weight"] {
        assert!(ours[name] == theirs[name], "{name}");
    }
}

/// Makes the files of a recipe together, and merges by them; the merged model as a folder.
fn together(bench: &Bench, recipe: &str, texts: &[&str], out: &str) -> std::path::PathBuf {
    bench.recipe(recipe);
    bench.passes(&[&["stats", "recipe.yml", "--force", "--data"], texts].concat());
    let merged = bench.merge(recipe, &["--threads", "2"]);
    let kept = bench.path(out);
    fs::rename(merged, &kept).unwrap();
    kept
}

/// The sums of a layer's inputs are those of the model's own layer, on what the merged layers before it give: so of a model
/// that has the merged layers before it, and its own from there on, `weld stats` finds the same.
#[test]
fn statistics_of_a_recipe_are_those_of_the_merged_layers_before() {
    let bench = bench();
    for recipe in [
        format!("{REGMEAN}dtype: float32\n"),
        // Weights, parts of it by other means, and rounded.
        format!(
            "{REGMEAN}parameters: {{weight: [{{filter: mlp, value: [0.2, 1]}}, {{value: 1}}], reduction: 0.5}}\nexcept: [{{tensors: '*.1.*.o_proj.weight', action: copy}}]\ndtype: bfloat16\n"
        ),
    ] {
        let merged = together(&bench, &recipe, &["sort.jsonl", "add.jsonl"], "kept");
        let (all, merged_values) = (by_name(&bench.path("add.safetensors")), by_name(&merged));
        for layer in [1, 3] {
            // The model with its first layers, and the embedding, from the merge.
            let before = |name: &str| {
                let number = name
                    .strip_prefix("model.layers.")
                    .and_then(|rest| rest.split('.').next());
                name.contains("embed_tokens")
                    || number.is_some_and(|at| at.parse::<usize>().unwrap() < layer)
            };
            let mut mixed = Vec::new();
            for (name, own) in by_name(&bench.path("family/add")) {
                let tensor = if before(&name) {
                    &merged_values[&name]
                } else {
                    &own
                };
                let Loaded {
                    dtype,
                    shape,
                    bytes,
                } = tensor.clone();
                mixed.push(Spec {
                    name,
                    dtype,
                    shape,
                    bytes,
                });
            }
            let config = read_json(&bench.path("family/add/config.json"));
            bench.model("mixed", &config, &mixed);
            for file in ["tokenizer.json", "tokenizer_config.json"] {
                fs::copy(
                    bench.path("family/add").join(file),
                    bench.path("mixed").join(file),
                )
                .unwrap();
            }
            stats(&bench, "mixed", "add.jsonl", "mixed.safetensors");
            let alone = by_name(&bench.path("mixed.safetensors"));
            let mut compared = 0;
            for (name, tensor) in &all {
                if name.contains(&format!("layers.{layer}.")) {
                    assert!(*tensor == alone[name], "{name} of {recipe}");
                    compared += 1;
                }
            }
            assert_eq!(compared, 8);
        }
        bench.passes(&["verify", "kept", "--full"]);
        fs::remove_dir_all(merged).unwrap();
    }
}

/// The same bytes at any number of threads; files that belong together are not mixed with others.
#[test]
fn files_that_are_made_together_stay_together() {
    let bench = bench();
    let texts = ["sort.jsonl", "add.jsonl"];
    bench.recipe(REGMEAN);
    let make = |threads: &str| {
        bench.passes(&[
            "stats",
            "recipe.yml",
            "--force",
            "--threads",
            threads,
            "--data",
            texts[0],
            texts[1],
        ]);
        ["sort", "add"].map(|name| fs::read(bench.path(&format!("{name}.safetensors"))).unwrap())
    };
    let once = make("1");
    assert!(make("3") == once);
    let words = [
        "stats",
        "recipe.yml",
        "--force",
        "--format",
        "json",
        "--data",
        texts[0],
        texts[1],
    ];
    let made: Value = serde_json::from_str(&bench.weld(&words).stdout).unwrap();
    if cfg!(target_os = "linux") {
        assert!(
            made["peak_memory"].as_u64() <= made["memory"].as_u64(),
            "{made}"
        );
    }
    bench.passes(&["plan", "recipe.yml"]);
    stats(&bench, "family/add", "add.jsonl", "alone.safetensors");
    stats(&bench, "family/base", "add.jsonl", "base.safetensors");
    let one = "{model: family/sort, statistics: sort.safetensors}";
    let two = "{model: family/add, statistics: add.safetensors}";
    let third = "{model: family/base, statistics: base.safetensors}";
    let alone = "{model: family/add, statistics: alone.safetensors}";
    let others = "was made together with other files than those of this recipe";
    for (models, expected) in [
        (
            format!("{one}, {alone}"),
            "`alone.safetensors` was not made together with the other",
        ),
        (format!("{one}, {two}, {third}"), others),
        (one.to_owned(), others),
        (format!("{two}, {one}"), others),
    ] {
        let recipe = format!("merge_method: regmean\nmodels: [{models}]\n");
        let message = bench.refused(&recipe, &[]);
        assert!(message.contains(expected), "{message}");
        assert!(
            message.contains("weld stats recipe.yml --force"),
            "{message}"
        );
    }
    // Their own refusals.
    let refused = |words: &[&str], expected: &str| {
        let outcome = bench.weld(&[&["stats"], words].concat());
        assert!(matches!(outcome.code, Some(1 | 2)), "{words:?}");
        let told: Vec<&str> = outcome.stderr.split_whitespace().collect();
        assert!(told.join(" ").contains(expected), "{}", outcome.stderr);
    };
    bench.recipe(REGMEAN);
    refused(
        &["recipe.yml", "--data", "sort.jsonl", "add.jsonl"],
        "sort.safetensors is there already",
    );
    let data = ["recipe.yml", "--force", "--data", "sort.jsonl", "add.jsonl"];
    refused(&data[..4], "in this order: family/sort, family/add");
    refused(&[&data[..], &["--out", "x"]].concat(), "leave --out out");
    refused(
        &[&data[..], &["--keep", "magnitude"]].concat(),
        "leave --keep out",
    );
    refused(
        &[&data[..], &["--memory", "1MB"]].concat(),
        "of memory, and 976.6 KiB may be used",
    );
    refused(&["family/sort", "--data", "sort.jsonl"], "--out is missing");
    bench.recipe(&REGMEAN.replace("add.safetensors", "sort.safetensors"));
    refused(&data, "two models have the statistics `sort.safetensors`");
    bench.recipe("merge_method: linear\nmodels: [{model: family/sort}, {model: family/add}]\nparameters: {weight: 1}\n");
    refused(&data, "a recipe of `linear`, not of `regmean`");
    bench.recipe("merge_method: regmean\nslices:\n- sources:\n  - {model: family/sort, layer_range: [0, 2], statistics: sort.safetensors}\n  - {model: family/add, layer_range: [0, 2], statistics: add.safetensors}\n");
    refused(&data, "a recipe of slices");
    // Files of a recipe elsewhere lie where a merge finds them: beside it.
    fs::create_dir_all(bench.path("recipes/sums")).unwrap();
    let elsewhere = REGMEAN.replace("statistics: ", "statistics: sums/");
    bench.file("recipes/recipe.yml", &elsewhere);
    bench.passes(&[
        "stats",
        "recipes/recipe.yml",
        "--data",
        "sort.jsonl",
        "add.jsonl",
    ]);
    assert!(bench.path("recipes/sums/add.safetensors").exists());
    bench.passes(&["plan", "recipes/recipe.yml"]);
    // What was there is still there.
    assert!(fs::read(bench.path("sort.safetensors")).unwrap() == once[0]);
}

/// The lock has the files; verify finds them again, and tells others.
#[test]
fn a_merge_by_data_is_locked_and_verified() {
    let bench = bench();
    both(&bench);
    let out = bench.merge(REGMEAN, &[]);
    let lock = read_json(&out.join("weldment.lock.json"));
    let inputs: Vec<&str> = lock["inputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|input| input["model"].as_str().unwrap())
        .collect();
    for name in [
        "family/sort",
        "family/add",
        "sort.safetensors",
        "add.safetensors",
    ] {
        assert!(inputs.contains(&name), "{inputs:?}");
    }
    bench.passes(&["verify", "out", "--full"]);
    // Statistics of other texts are another input.
    stats(&bench, "family/add", "sort.jsonl", "add.safetensors");
    let verified = bench.weld(&["verify", "out", "--full"]);
    assert_eq!(
        verified.code,
        Some(1),
        "{}{}",
        verified.stdout,
        verified.stderr
    );
    // They may lie where nobody sees where: absolute paths are shortened.
    both(&bench);
    let absolute = REGMEAN.replace(
        "statistics: sort",
        &format!(
            "statistics: {}/sort",
            bench.path(".").canonicalize().unwrap().display()
        ),
    );
    let out = bench.merge(&absolute, &[]);
    let lock = fs::read_to_string(out.join("weldment.lock.json")).unwrap();
    assert!(!lock.contains(&*bench.path(".").canonicalize().unwrap().to_string_lossy()));
    bench.passes(&["verify", "out", "--full"]);
}

#[test]
fn what_is_wrong_with_statistics_is_told_before_work() {
    let bench = bench();
    both(&bench);
    stats(&bench, "family/base", "add.jsonl", "base.safetensors");
    bench.passes(&[
        "stats",
        "family/sort",
        "--data",
        "sort.jsonl",
        "--keep",
        "magnitude",
        "--out",
        "mean.safetensors",
    ]);
    let refused = |recipe: &str, expected: &[&str]| {
        let message = bench.refused(recipe, &[]);
        let words: Vec<&str> = message.split_whitespace().collect();
        let message = words.join(" ");
        for expected in expected {
            assert!(message.contains(expected), "{expected}: {message}");
        }
    };
    let with = |from: &str, to: &str| REGMEAN.replace(from, to);
    refused(
        &with("sort.safetensors", "nowhere.safetensors"),
        &[
            "file of statistics `nowhere.safetensors` not found; looked in",
            "make it with: weld stats family/sort --data TEXTS.jsonl --keep gram --out nowhere.safetensors",
        ],
    );
    refused(
        &with("sort.safetensors", "srt.safetensors"),
        &["did you mean `sort.safetensors`? If not: make it with: weld stats"],
    );
    let fisher =
        "merge_method: fisher\nmodels: [{model: family/sort, statistics: f.safetensors}]\n";
    refused(
        fisher,
        &[
            "file of statistics `f.safetensors` not found",
            "the script in docs/statistics.md",
        ],
    );
    refused(
        &with("sort.safetensors", "add.safetensors"),
        &["`add.safetensors` has statistics of `family/add`, not of `family/sort`"],
    );
    refused(
        &with(", statistics: sort.safetensors", ""),
        &[
            "`regmean` needs `statistics` of the model `family/sort`",
            "weld stats family/sort --data",
        ],
    );
    refused(
        &with("sort.safetensors", "mean.safetensors"),
        &["holds no statistics of the kind `gram/`", "--keep gram"],
    );
    refused(
        &with("sort.safetensors", "family/sort/model.safetensors"),
        &["holds no statistics"],
    );
    refused(
        &with("sort.safetensors", "nowhere.safetensors"),
        &["nowhere.safetensors"],
    );
    refused(
        &format!("{REGMEAN}base_model: family/base\n"),
        &["`regmean` needs `statistics` of the model `family/base`"],
    );
    refused(
        &format!("{REGMEAN}base_model: family/sort\nstatistics: sort.safetensors\n"),
        &[
            "`regmean` reads no statistics of the base",
            "beside `model`",
        ],
    );
    refused(
        "merge_method: linear\nmodels: [{model: family/sort, statistics: sort.safetensors}]\nparameters: {weight: 1}\n",
        &[
            "`linear` reads no statistics of its models",
            "remove `statistics`",
        ],
    );
    refused(
        "merge_method: aim\nbase_model: family/base\nmodels: [{model: family/sort}]\n",
        &["`aim` needs `statistics` of the base", "--keep magnitude"],
    );
    refused(
        "merge_method: aim\nbase_model: family/base\nmodels: [{model: family/sort, statistics: sort.safetensors}]\n",
        &["beside `base_model`"],
    );
    refused(
        "merge_method: aim\nstatistics: base.safetensors\nslices:\n- base_model: family/base\n  sources:\n  - {model: family/base, layer_range: [0, 4]}\n  - {model: family/sort, layer_range: [0, 4]}\n",
        &["another base than the recipe"],
    );
    let documents = "name: x\nmerge_method: linear\nmodels: [{model: family/sort}]\nparameters: {weight: 1}\n---\nmerge_method: regmean\nmodels:\n- {model: x, statistics: sort.safetensors}\n- {model: family/add, statistics: add.safetensors}\n";
    refused(documents, &["`x` is the result of another document"]);
}

/// Files from elsewhere: without metadata, of the wrong shape, with other metadata.
#[test]
fn hostile_files_of_statistics_are_refused() {
    let bench = Bench::new();
    for (seed, name) in [(1, "a"), (2, "b")] {
        let matrix = floats(
            "model.layers.0.up.weight",
            Dtype::F32,
            &[6, 4],
            noise(seed, 24),
        );
        bench.model(name, &llama_config(1), &[matrix]);
    }
    let recipe = |method: &str| {
        format!(
            "merge_method: {method}\nmodels:\n- {{model: a, statistics: a.st.safetensors}}\n- {{model: b, statistics: b.st.safetensors}}\n"
        )
    };
    let write = |name: &str, tensor: &str, shape: &[usize], values: Vec<f64>| {
        let spec = floats(tensor, Dtype::F32, shape, values);
        bench.tensors(&format!("{name}.st.safetensors"), &[spec]);
    };
    let input = "model.layers.0.up.weight";
    let unit = || {
        (0..16)
            .map(|at| f64::from(u8::from(at % 5 == 0)))
            .collect::<Vec<f64>>()
    };
    let fine = |name: &str| write(name, &format!("gram/{input}"), &[4, 4], unit());
    fine("a");
    fine("b");
    // A unit matrix each: the mean. That nothing says of which model they are is noted.
    let out = bench.merge(&recipe("regmean"), &[]);
    let plan = bench.weld(&["plan", "recipe.yml"]);
    assert!((plan.stdout + &plan.stderr).contains("could not be"));
    let merged = load(&out)[0].1.values();
    fs::remove_dir_all(&out).unwrap();
    let (a, b) = (
        load(&bench.path("a"))[0].1.values(),
        load(&bench.path("b"))[0].1.values(),
    );
    for (merged, (a, b)) in merged.iter().zip(a.iter().zip(&b)) {
        assert!((merged - (a + b) / 2.0).abs() < 1e-6);
    }
    let refused = |method: &str, expected: &str| {
        let message = bench.refused(&recipe(method), &[]);
        let words: Vec<&str> = message.split_whitespace().collect();
        assert!(words.join(" ").contains(expected), "{expected}: {message}");
    };
    write("b", &format!("gram/{input}"), &[6, 6], vec![1.0; 36]);
    refused("regmean", "of shape [4, 4], found F32 of shape [6, 6]");
    write("b", "gram/other", &[4, 4], unit());
    refused("regmean", "lack 1 tensor that others have");
    write("b", &format!("gram/{input}"), &[4, 4], vec![f64::NAN; 16]);
    refused("regmean", "NaN or infinity");
    write("b", &format!("fisher/{input}"), &[6, 4], vec![-1.0; 24]);
    write("a", &format!("fisher/{input}"), &[6, 4], vec![1.0; 24]);
    refused("fisher", "24 values of its Fisher information");
    write("b", &format!("fisher/{input}"), &[24], vec![1.0; 24]);
    refused("fisher", "of shape [6, 4], found F32 of shape [24]");
    // Metadata of another version, and none that can be read.
    let header = |metadata: &str| {
        let json = format!(
            "{{\"__metadata__\":{{\"weldment\":{}}},\"fisher/{input}\":{{\"dtype\":\"F32\",\"shape\":[6,4],\"data_offsets\":[0,96]}}}}",
            Value::from(metadata)
        );
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.extend([0; 96]);
        bench.file("b.st.safetensors", bytes);
    };
    header("{\"format\": \"weldment-statistics/9\"}");
    refused(
        "fisher",
        "of the form `weldment-statistics/9`, expected `weldment-statistics/1`",
    );
    header("{");
    refused("fisher", "metadata that are not understood");
    header("{\"format\": \"weldment-statistics/1\"}");
    fs::remove_dir_all(bench.merge(&recipe("fisher"), &[])).unwrap();
    header(
        "{\"format\": \"weldment-statistics/1\", \"fingerprint\": \"00\", \"model\": \"\\u001b[2J\"}",
    );
    let message = bench.refused(&recipe("fisher"), &[]);
    assert!(!message.contains('\u{1b}'), "{message}");
    assert!(message.contains("not of `b`"), "{message}");
}

/// Statistics go by the names in the model's own file, and by the layers that a slice takes.
#[test]
fn statistics_follow_renamed_tensors_and_slices() {
    let bench = bench();
    both(&bench);
    let whole = load(&bench.merge(REGMEAN, &[]));
    let slices = "merge_method: regmean
slices:
- sources:
  - {model: family/sort, layer_range: [0, 4], statistics: sort.safetensors}
  - {model: family/add, layer_range: [0, 4], statistics: add.safetensors}
";
    assert!(load(&bench.merge(slices, &[])) == whole);
    // A model whose names are others.
    fs::create_dir(bench.path("other")).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let (from, to) = (format!("family/add/{file}"), format!("other/{file}"));
        fs::copy(bench.path(&from), bench.path(&to)).unwrap();
    }
    let specs: Vec<_> = load(&bench.path("family/add"))
        .into_iter()
        .map(|(name, tensor)| {
            floats(
                &name.replace("mlp", "ffn"),
                tensor.dtype,
                &tensor.shape,
                tensor.values(),
            )
        })
        .collect();
    bench.tensors("other/model.safetensors", &specs);
    let bytes = fs::read(bench.path("add.safetensors")).unwrap();
    bench.file("other.safetensors", replaced(&bytes, b"mlp", b"ffn"));
    let recipe = REGMEAN.replace("family/add", "other");
    let recipe = recipe.replace("add.safetensors", "other.safetensors");
    let recipe = format!("{recipe}rename: [{}]\n", renames().join(", "));
    assert!(load(&bench.merge(&recipe, &[])) == whole);
}

/// Rules that give `ffn` its usual name.
fn renames() -> Vec<String> {
    let layers = 0..4;
    layers
        .map(|layer| format!("{{from: 'model.layers.{layer}.ffn.*', to: 'model.layers.{layer}.mlp.*', model: other}}"))
        .collect()
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for at in 8..header - from.len() {
        if out[at..].starts_with(from) {
            out[at..at + to.len()].copy_from_slice(to);
        }
    }
    out
}

#[test]
fn the_result_of_aim_stays_nearer_to_the_base_where_its_inputs_are_large() {
    let bench = bench();
    stats(&bench, "family/base", "add.jsonl", "base.safetensors");
    let recipe = "merge_method: aim\nbase_model: family/base\nstatistics: base.safetensors\nmodels: [{model: family/add}]\nparameters: {omega: 0}\ndtype: float32\n";
    let merged = by_name(&bench.merge(recipe, &[]));
    let (base, add) = (
        by_name(&bench.path("family/base")),
        by_name(&bench.path("family/add")),
    );
    let magnitudes = by_name(&bench.path("base.safetensors"));
    let input = "model.layers.2.self_attn.q_proj.weight";
    // Values share the input of queries.
    let name = "model.layers.2.self_attn.v_proj.weight";
    let magnitudes = magnitudes[&format!("magnitude/{input}")].values();
    let most = magnitudes.iter().fold(0f64, |most, x| most.max(*x));
    let values = [&merged, &base, &add].map(|model| model[name].values());
    for (at, merged) in values[0].iter().enumerate() {
        let (base, add) = (values[1][at], values[2][at]);
        let expected = base + (add - base) * (1.0 - magnitudes[at % 96] / most);
        assert!((merged - expected).abs() < 1e-6, "{merged}, {expected}");
    }
    for name in ["model.embed_tokens.weight", "model.norm.weight"] {
        assert!(merged[name].values() == add[name].values(), "{name}");
    }
}
