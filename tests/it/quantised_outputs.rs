//! `quantization:`: outputs whose weights are codes and scales. How values become codes is tried where they are encoded.

use std::collections::BTreeMap;
use std::fs;

use safetensors::Dtype;
use serde_json::{Value, json};
use weldment::checkpoint::{Checkpoint, Location};
use weldment::numeric::{CodeFormat, Coding, Encoding, FloatType};
use weldment::run;

use crate::destination::planned;
use crate::fixtures::{Bench, Loaded, Spec, by_name, config_with, floats, load, noise, read_json};
use crate::sources::Silent;

pub(crate) const LINEAR: &str =
    "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n";

/// Sides of matrices: of the model, of its MLP. Blocks are whole where the third is, and ragged in the keys' rows if not.
type Sides = [usize; 3];
pub(crate) const WHOLE: Sides = [128, 256, 128];
const RAGGED: Sides = [128, 256, 64];

/// The tensors of a small mixture: attention, two experts, a router, and a head.
fn mixture(seed: u64, layers: usize, [hidden, inner, keys]: Sides) -> Vec<Spec> {
    let mut shapes: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![16, hidden])];
    for layer in 0..layers {
        let own = |name: &str, shape: &[usize]| {
            (
                format!("model.layers.{layer}.{name}.weight"),
                shape.to_vec(),
            )
        };
        shapes.extend([
            own("input_layernorm", &[hidden]),
            own("mlp.experts.0.down_proj", &[hidden, inner]),
            own("mlp.experts.0.up_proj", &[inner, hidden]),
            own("mlp.experts.1.down_proj", &[hidden, inner]),
            own("mlp.experts.1.up_proj", &[inner, hidden]),
            own("mlp.gate", &[2, hidden]),
            own("self_attn.k_proj", &[keys, hidden]),
            own("self_attn.q_proj", &[hidden, hidden]),
        ]);
    }
    shapes.extend([
        ("model.norm.weight".into(), vec![hidden]),
        ("lm_head.weight".into(), vec![16, hidden]),
    ]);
    let tensors = shapes.into_iter().zip(0..);
    tensors
        .map(|((name, shape), at)| {
            // Magnitudes differ from block to block.
            let columns = *shape.last().unwrap();
            let values = noise(seed * 1000 + at, shape.iter().product()).enumerate();
            let values = values.map(|(at, value)| {
                value * 2f64.powi((at / columns / 100 + at % columns / 100) as i32)
            });
            floats(&name, Dtype::BF16, &shape, values)
        })
        .collect()
}

fn config(layers: usize, [hidden, inner, _]: Sides, more: Value) -> Value {
    let mut config = config_with(layers, more);
    let fields = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "bfloat16",
        "hidden_size": hidden, "moe_intermediate_size": inner, "num_experts": 2, "num_experts_per_tok": 1,
    });
    config
        .as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    config
}

fn fp8_config(layers: usize, sides: Sides, more: Value) -> Value {
    let mut said = json!({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]});
    said.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    config(layers, sides, json!({"quantization_config": said}))
}

fn is_encoded(name: &str) -> bool {
    name.ends_with("_proj.weight")
}

/// A scheme: how a matrix of a shape is encoded, and how the names of its scales end.
type Scheme = (fn(&[usize]) -> Encoding, &'static str);

const BLOCK: Scheme = (of_blocks, "_scale_inv");
const POWERS: Scheme = (
    |shape| Encoding {
        powers: true,
        ..of_blocks(shape)
    },
    "_scale_inv",
);
const CHANNEL: Scheme = (
    |shape| Encoding {
        block: [1, shape[1]],
        scales: FloatType::Bf16,
        ..of_blocks(shape)
    },
    "_scale",
);
const TENSOR: Scheme = (
    |shape| Encoding {
        whole: true,
        ..CHANNEL.0(shape)
    },
    "_scale",
);

fn of_blocks(shape: &[usize]) -> Encoding {
    Encoding {
        rows: shape[0],
        columns: shape[1],
        matrices: 1,
        format: CodeFormat::Fp8,
        block: [128, 128],
        whole: false,
        powers: false,
        scales: FloatType::F32,
    }
}

/// Codes and scales of values, encoded by themselves.
fn codes_of(name: &str, shape: &[usize], values: &[f32], (encoding, end): Scheme) -> [Spec; 2] {
    let encoding = encoding(shape);
    let coding = Coding {
        largest: Encoding::largest_of(values),
        ..Coding::default()
    };
    let mut codes = vec![0; values.len()];
    let mut scales = vec![0; encoding.scale_bytes() * encoding.bands()];
    for (band, scales) in scales.chunks_mut(encoding.scale_bytes()).enumerate() {
        let places = encoding.elements(band..band + 1);
        let places = places.start as usize..(places.end as usize).min(values.len());
        encoding.encode(
            &values[places.clone()],
            0,
            coding,
            &mut codes[places],
            scales,
        );
    }
    let of_scales = encoding.scale_shape(shape);
    scales.truncate(of_scales.iter().product::<usize>() * encoding.scales.size());
    let spec = |name: String, dtype, shape, bytes| Spec {
        name,
        dtype,
        shape,
        bytes,
    };
    [
        spec(name.into(), Dtype::F8_E4M3, shape.into(), codes),
        spec(
            format!("{name}{end}"),
            encoding.scales.dtype(),
            of_scales,
            scales,
        ),
    ]
}

fn singles(spec: &Spec) -> Vec<f32> {
    crate::sources::values(spec)
        .into_iter()
        .map(|value| value as f32)
        .collect()
}

/// A model's matrices as codes and scales.
fn fp8(specs: Vec<Spec>) -> Vec<Spec> {
    let of = |spec: Spec| match is_encoded(&spec.name) {
        true => codes_of(&spec.name, &spec.shape, &singles(&spec), BLOCK).into(),
        false => vec![spec],
    };
    specs.into_iter().flat_map(of).collect()
}

/// Two plain models, and two in FP8.
pub(crate) fn bench(sides: Sides) -> Bench {
    let bench = Bench::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        bench.model(name, &config(2, sides, json!({})), &mixture(seed, 2, sides));
        let codes = fp8(mixture(seed, 2, sides));
        bench.model(
            &format!("{name}8"),
            &fp8_config(2, sides, json!({})),
            &codes,
        );
    }
    bench
}

pub(crate) fn with(recipe: &str, key: &str) -> String {
    format!("{recipe}{key}\n")
}

/// Compares a quantised output with the same merge in float32.
#[track_caller]
fn is_encoded_merge(
    plain: &BTreeMap<String, Loaded>,
    found: &BTreeMap<String, Loaded>,
    scheme: Scheme,
) {
    let mut encoded = 0;
    for (name, tensor) in plain.iter().filter(|(name, _)| is_encoded(name)) {
        let values: Vec<f32> = tensor
            .values()
            .into_iter()
            .map(|value| value as f32)
            .collect();
        for expected in codes_of(name, &tensor.shape, &values, scheme) {
            let found = &found[&expected.name];
            assert_eq!(
                (found.dtype, &found.shape),
                (expected.dtype, &expected.shape),
                "{name}"
            );
            assert!(found.bytes == expected.bytes, "{}", expected.name);
        }
        encoded += 1;
    }
    assert_eq!(found.len(), plain.len() + encoded);
    assert_eq!(encoded, 12);
}

#[test]
fn what_is_written_is_the_merge_encoded_once() {
    let bench = bench(WHOLE);
    let plain = by_name(&bench.merge(&with(LINEAR, "out_dtype: float32"), &[]));
    let bf16 = by_name(&bench.merge(LINEAR, &[]));
    let recipe = with(LINEAR, "quantization: fp8_block");
    let out = bench.merge(&recipe, &[]);
    let found = by_name(&out);
    is_encoded_merge(&plain, &found, BLOCK);
    // What is no matrix of a linear layer is as it would be, and so are routers.
    for (name, tensor) in bf16.iter().filter(|(name, _)| !is_encoded(name)) {
        assert_eq!(found[name], *tensor, "{name}");
    }
    // Scales follow their weight in the file.
    let order: Vec<String> = load(&out).into_iter().map(|(name, _)| name).collect();
    let at = order
        .iter()
        .position(|name| name.ends_with("0.down_proj.weight_scale_inv"));
    assert!(at.is_some(), "{order:?}");
    assert_eq!(
        read_json(&out.join("config.json"))["quantization_config"],
        json!({
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate"],
        })
    );
    assert_eq!(read_json(&out.join("config.json"))["dtype"], "bfloat16");
    let percent =
        read_json(&out.join("weldment.lock.json"))["outputs"]["quantization_error_percent"]
            .as_f64();
    assert!(
        percent.is_some_and(|percent| (1.0..4.0).contains(&percent)),
        "{percent:?}"
    );
    // Neither threads, memory nor shards change a byte.
    for more in [
        ["--threads", "1"],
        ["--memory", "64MiB"],
        ["--shard-size", "100KB"],
    ] {
        assert_eq!(by_name(&bench.merge(&recipe, &more)), found, "{more:?}");
    }
    let index = read_json(&out.join("model.safetensors.index.json"));
    let map = index["weight_map"].as_object().unwrap();
    assert!(map.contains_key("model.layers.1.self_attn.q_proj.weight_scale_inv"));
}

#[test]
fn an_output_is_read_checked_and_proven() {
    let bench = bench(WHOLE);
    bench.recipe(&with(LINEAR, "quantization: fp8_block"));
    let made = bench.weld(&["merge", "recipe.yml", "out"]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let said = "12 tensors were encoded with a relative error of 2.";
    assert!(
        made.stderr.contains(said) || made.stdout.contains(said),
        "{}{}",
        made.stdout,
        made.stderr
    );
    let check = bench.weld(&["check", "out"]).stdout;
    assert!(!check.contains("error[lock."), "{check}");
    assert!(
        check.contains("tensors are as they were written"),
        "{check}"
    );
    bench.passes(&["verify", "out", "--full"]);
    bench.passes(&["verify", "out", "--samples", "2"]);
    bench.passes(&["verify", "out", "--recipe", "recipe.yml"]);
    // The error that the lock states is measured again.
    let lock = bench.path("out/weldment.lock.json");
    let own = fs::read_to_string(&lock).unwrap();
    let stated = read_json(&lock)["outputs"]["quantization_error_percent"].clone();
    let changed = own.replace(&format!("percent\": {stated}"), "percent\": 0.5");
    assert_ne!(changed, own);
    fs::write(&lock, changed).unwrap();
    let verified = bench.weld(&["verify", "out", "--full"]);
    assert_eq!(verified.code, Some(1), "{}", verified.stdout);
    assert!(
        verified.stdout.contains("verify.quantization-error"),
        "{}",
        verified.stdout
    );
    fs::write(&lock, own).unwrap();
    let listed = bench.weld(&["inspect", "out"]).stdout;
    assert!(
        listed
            .contains("8 weights are stored as FP8 (E4M3) with a scale for each 128 x 128 values"),
        "{listed}"
    );
    let checked = bench.weld(&["check", "out"]).stdout;
    assert!(!checked.contains("container.codes"), "{checked}");
    // It differs from the merge in bfloat16 by its rounding alone.
    fs::rename(bench.path("out"), bench.path("codes")).unwrap();
    bench.merge(LINEAR, &[]);
    let diff = bench.weld(&["diff", "codes", "out"]).stdout;
    assert!(diff.contains("cosine     0.999"), "{diff}");
    // Another scale is found.
    bench.recipe(&with(LINEAR, "quantization: fp8_block"));
    fs::rename(bench.path("codes"), bench.path("changed")).unwrap();
    let file = bench.path("changed").join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let scale =
        &by_name(&bench.path("changed"))["model.layers.1.mlp.experts.1.up_proj.weight_scale_inv"]
            .bytes;
    let places: Vec<usize> = (0..bytes.len() - scale.len())
        .filter(|&at| bytes[at..].starts_with(scale))
        .collect();
    let [place] = places[..] else {
        panic!("{places:?}")
    };
    bytes[place + 2] ^= 1;
    fs::write(&file, bytes).unwrap();
    for coverage in ["--full", "--samples=3"] {
        let verified = bench.weld(&["verify", "changed", "--recipe", "recipe.yml", coverage]);
        assert_eq!(verified.code, Some(1), "{}", verified.stdout);
        assert!(
            verified.stdout.contains("1.up_proj.weight_scale_inv"),
            "{}",
            verified.stdout
        );
    }
}

#[test]
fn a_model_in_memory_has_the_values_of_its_codes() {
    let bench = bench(WHOLE);
    let out = bench.merge(
        &with(LINEAR, "quantization: fp8_block"),
        &["--shard-size", "100KB"],
    );
    let plan = planned(&bench, 100_000);
    let scratch = std::env::temp_dir();
    let merged = run::in_memory(&plan, "merged", &scratch, &Silent).unwrap();
    let written = Checkpoint::open("out", &Location::local(&out)).unwrap();
    assert_eq!(merged.model.tensors().len(), 19);
    for (at, entry) in merged.model.tensors().iter().enumerate() {
        let there = written.find(&entry.name).unwrap();
        let count = entry.elements() as usize;
        let (mut one, mut other) = (vec![0f32; count], vec![0f32; count]);
        merged
            .model
            .elements(at)
            .unwrap()
            .fill(0, &mut one[..])
            .unwrap();
        written
            .elements(there)
            .unwrap()
            .fill(0, &mut other[..])
            .unwrap();
        assert!(one == other, "{}", entry.name);
    }
    // A merge in parts is the same, wherever codes and scales lie.
    let parts = bench.merge(
        &with(LINEAR, "quantization: fp8_block"),
        &["--shard-size", "100KB", "--resume"],
    );
    bench.passes(&["verify", "out", "--full"]);
    let lock = read_json(&parts.join("weldment.lock.json"));
    assert!(lock["outputs"]["quantization_error_percent"].is_number());
}

#[test]
fn the_plan_says_what_is_encoded() {
    let bench = bench(WHOLE);
    bench.recipe(&with(LINEAR, "quantization: fp8_block"));
    let text = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(
        text.contains("weights  fp8_block: 12 encoded, 0 keep codes and scales"),
        "{text}"
    );
    assert!(
        text.contains("linear normalize=true, to FP8 with a scale for each 128 x 128 values"),
        "{text}"
    );
    let json: Value = serde_json::from_str(
        &bench
            .weld(&["plan", "recipe.yml", "--format", "json"])
            .stdout,
    )
    .unwrap();
    assert_eq!(
        json["quantization"],
        json!({"asked": "fp8_block", "encoded": 12, "kept": 0})
    );
    let scales =
        crate::fixtures::of_plan(&json, "model.layers.0.self_attn.q_proj.weight_scale_inv");
    assert_eq!(
        (&scales["operation"], &scales["shape"]),
        (&json!("scales"), &json!([1, 1]))
    );
}

#[test]
fn every_kind_of_program_is_encoded() {
    let bench = bench(WHOLE);
    let recipes = [
        "merge_method: ties\nbase_model: a\nmodels: [{model: b}]\nparameters: {weight: 0.7, density: 0.4}\n",
        "merge_method: della\nbase_model: a\nmodels: [{model: b}]\nparameters: {weight: 0.7, density: 0.4, epsilon: 0.1}\n",
        "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.3}\n",
        "merge_method: tsvm\nbase_model: a\nmodels: [{model: b}]\n",
        "merge_method: passthrough\nmodels: [{model: a}]\n",
    ];
    for recipe in recipes {
        let plain = by_name(&bench.merge(&with(recipe, "out_dtype: float32"), &[]));
        let found = by_name(&bench.merge(&with(recipe, "quantization: fp8_block"), &[]));
        is_encoded_merge(&plain, &found, BLOCK);
        bench.passes(&["verify", "out", "--full"]);
    }
    // Draws round codes up or down, and are made again.
    let recipe = with(recipes[0], "rounding: stochastic\nquantization: fp8_block");
    bench.merge(&recipe, &[]);
    bench.passes(&["verify", "out", "--full"]);
}

#[test]
fn rows_and_whole_tensors_may_share_a_scale() {
    // No side needs to be a multiple of anything.
    let bench = bench(RAGGED);
    let plain = by_name(&bench.merge(&with(LINEAR, "out_dtype: float32"), &[]));
    for (name, scheme, strategy) in [
        ("fp8_channel", CHANNEL, "channel"),
        ("fp8_tensor", TENSOR, "tensor"),
    ] {
        let recipe = with(LINEAR, &format!("quantization: {name}"));
        let out = bench.merge(&recipe, &[]);
        let found = by_name(&out);
        is_encoded_merge(&plain, &found, scheme);
        for more in [["--threads", "1"], ["--memory", "64MiB"]] {
            assert_eq!(by_name(&bench.merge(&recipe, &more)), found, "{more:?}");
        }
        let said = &read_json(&out.join("config.json"))["quantization_config"];
        assert_eq!(said["quant_method"], "compressed-tensors");
        assert_eq!(
            said["config_groups"]["group_0"]["weights"]["strategy"],
            strategy
        );
        let ignored = json!([
            "lm_head",
            "model.layers.0.mlp.gate",
            "model.layers.1.mlp.gate"
        ]);
        assert_eq!(said["ignore"], ignored);
        bench.passes(&["verify", "out", "--full"]);
        bench.passes(&["verify", "out", "--samples", "2"]);
        // It is a model like any other: copied as it is, and encoded again in its own way.
        fs::rename(&out, bench.path(name)).unwrap();
        let copy =
            format!("merge_method: passthrough\nmodels: [{{model: {name}}}]\nquantization: keep\n");
        assert_eq!(by_name(&bench.merge(&copy, &[])), found);
        let mixed = format!(
            "merge_method: linear\nmodels: [{{model: {name}}}, {{model: b8}}]\nparameters: {{weight: 0.5}}\n"
        );
        let plain = by_name(&bench.merge(&with(&mixed, "out_dtype: float32"), &[]));
        let found = by_name(&bench.merge(&with(&mixed, "quantization: keep"), &[]));
        is_encoded_merge(&plain, &found, scheme);
    }
}

#[test]
fn an_adapter_changes_the_codes_of_its_weights_alone() {
    let bench = bench(WHOLE);
    let key =
        |part: &str| format!("base_model.model.model.layers.1.self_attn.q_proj.lora_{part}.weight");
    let factor = |part, shape: [usize; 2], seed| {
        let values = noise(seed, shape[0] * shape[1]);
        floats(&key(part), Dtype::F32, &shape, values)
    };
    let factors = [factor("A", [2, 128], 7), factor("B", [128, 2], 8)];
    bench.tensors("lora/adapter_model.safetensors", &factors);
    bench.file(
        "lora/adapter_config.json",
        r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4}"#,
    );
    let recipe = "merge_method: passthrough\nmodels: [{model: a8+lora}]\n";
    let plain = by_name(&bench.merge(&with(recipe, "out_dtype: float32"), &[]));
    let out = bench.merge(&with(recipe, "quantization: keep"), &[]);
    let (found, given) = (by_name(&out), by_name(&bench.path("a8")));
    for (name, tensor) in &found {
        let is_changed = name.contains("layers.1.self_attn.q_proj");
        assert_eq!(*tensor != given[name], is_changed, "{name}");
    }
    let name = "model.layers.1.self_attn.q_proj.weight";
    let values: Vec<f32> = plain[name]
        .values()
        .into_iter()
        .map(|value| value as f32)
        .collect();
    for expected in codes_of(name, &[128, 128], &values, BLOCK) {
        assert!(
            found[&expected.name].bytes == expected.bytes,
            "{}",
            expected.name
        );
    }
    bench.passes(&["verify", "out", "--full"]);
}

#[test]
fn a_copy_keeps_the_bytes_of_its_codes() {
    let bench = bench(RAGGED);
    let given = by_name(&bench.path("a8"));
    let out = bench.merge(
        "merge_method: passthrough\nmodels: [{model: a8}]\nquantization: keep\n",
        &[],
    );
    assert_eq!(by_name(&out), given);
    let [own, theirs] =
        [&out, &bench.path("a8")].map(|folder| read_json(&folder.join("config.json")));
    assert_eq!(own["quantization_config"], theirs["quantization_config"]);
    bench.passes(&["verify", "out", "--full"]);
    assert!(
        read_json(&out.join("weldment.lock.json"))["outputs"]
            .get("quantization_error_percent")
            .is_none()
    );
    // The experts of one, and the rest of the other.
    let chimera = "merge_method: linear\nmodels:\n\
        - {model: a8, parameters: {weight: [{filter: experts, value: 0}, {value: 1}]}}\n\
        - {model: b8, parameters: {weight: [{filter: experts, value: 1}, {value: 0}]}}\nquantization: keep\n";
    bench.recipe(chimera);
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(
        plan.contains("weights  keep: 0 encoded, 12 keep codes and scales"),
        "{plan}"
    );
    let found = by_name(&bench.merge(chimera, &[]));
    let other = by_name(&bench.path("b8"));
    for (name, tensor) in &found {
        let from = if name.contains("experts") {
            &other
        } else {
            &given
        };
        assert_eq!(*tensor, from[name], "{name}");
    }
    bench.passes(&["verify", "out", "--full"]);
    // `except` copies too; and layers that move take their scales along.
    let stacked = "merge_method: passthrough\nslices:\n- sources: [{model: a8, layer_range: [0, 2]}]\n\
        - sources: [{model: b8, layer_range: [1, 2]}]\nquantization: keep\n";
    let found = by_name(&bench.merge(stacked, &[]));
    let name =
        |layer: usize| format!("model.layers.{layer}.mlp.experts.0.up_proj.weight_scale_inv");
    assert_eq!(found[&name(2)], other[&name(1)]);
    assert_eq!(found[&name(1)], given[&name(1)]);
    bench.passes(&["verify", "out", "--full"]);
}

#[test]
fn other_schemes_are_copied_and_never_computed() {
    let bench = Bench::new();
    let said = json!({
        "quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}},
    });
    let int8 = |seed| -> Vec<Spec> {
        let of = |spec: Spec| match is_encoded(&spec.name) {
            false => vec![spec],
            true => {
                let shape = spec.shape.clone();
                let rows = noise(seed, shape[0]);
                let scale = floats(
                    &format!("{}_scale", spec.name),
                    Dtype::BF16,
                    &[shape[0], 1],
                    rows,
                );
                let (dtype, count) = (Dtype::I8, shape.iter().product());
                let bytes = spec.bytes.into_iter().take(count).collect();
                let name = spec.name;
                vec![
                    Spec {
                        name,
                        dtype,
                        shape,
                        bytes,
                    },
                    scale,
                ]
            }
        };
        mixture(seed, 2, RAGGED).into_iter().flat_map(of).collect()
    };
    let config = config(2, RAGGED, json!({"quantization_config": said}));
    bench.model("a", &config, &int8(1));
    bench.model("b", &config, &int8(2));
    let stacked = "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 1]}]\n\
        - sources: [{model: b, layer_range: [0, 2]}]\nquantization: keep\n";
    let out = bench.merge(stacked, &[]);
    let (found, other) = (by_name(&out), by_name(&bench.path("b")));
    for part in ["weight", "weight_scale"] {
        let name = |layer| format!("model.layers.{layer}.self_attn.q_proj.{part}");
        assert!(found[&name(2)] == other[&name(1)], "{part}");
    }
    assert_eq!(
        read_json(&out.join("config.json"))["quantization_config"],
        said
    );
    bench.passes(&["verify", "out", "--full"]);
    fs::remove_dir_all(out).unwrap();
    let message = bench.refused(&with(LINEAR, "quantization: keep"), &[]);
    let expected = "can only copy weights that are stored as INT8 with a scale for each row, and these are computed";
    assert!(
        message.contains(expected) && message.contains("down_proj"),
        "{message}"
    );
    // A scheme by name writes them anew.
    let plain = by_name(&bench.merge(&with(LINEAR, "out_dtype: float32"), &[]));
    let found = by_name(&bench.merge(&with(LINEAR, "quantization: fp8_channel"), &[]));
    is_encoded_merge(&plain, &found, CHANNEL);
}

#[test]
fn what_is_computed_is_encoded_as_the_model_has_it() {
    let bench = bench(RAGGED);
    let recipe =
        "merge_method: linear\nmodels: [{model: a8}, {model: b}]\nparameters: {weight: 0.5}\n";
    let plain = by_name(&bench.merge(&with(recipe, "out_dtype: float32"), &[]));
    let out = bench.merge(&with(recipe, "quantization: keep"), &[]);
    is_encoded_merge(&plain, &by_name(&out), BLOCK);
    bench.passes(&["verify", "out", "--full"]);
    // Scales that are powers of two stay such.
    bench.model(
        "p8",
        &fp8_config(2, RAGGED, json!({"scale_fmt": "ue8m0"})),
        &fp8(mixture(3, 2, RAGGED)),
    );
    let recipe =
        "merge_method: linear\nmodels: [{model: p8}, {model: b}]\nparameters: {weight: 0.5}\n";
    let plain = by_name(&bench.merge(&with(recipe, "out_dtype: float32"), &[]));
    let out = bench.merge(&with(recipe, "quantization: keep"), &[]);
    is_encoded_merge(&plain, &by_name(&out), POWERS);
    // Codes with other scales are no copies of the donor's.
    let copied = "merge_method: linear\nmodels: [{model: p8, parameters: {weight: 0}}, {model: b8, parameters: {weight: 1}}]\nquantization: keep\n";
    bench.recipe(copied);
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(plan.contains("keep: 12 encoded, 0 keep"), "{plan}");
    // What the model stores plain stays plain, and is listed.
    let specs = fp8(mixture(1, 2, RAGGED))
        .into_iter()
        .filter(|spec| !spec.name.contains("self_attn.q_proj"));
    let plain_q = mixture(1, 2, RAGGED)
        .into_iter()
        .filter(|spec| spec.name.contains("self_attn.q_proj"));
    let listed = json!({"modules_to_not_convert": ["lm_head", "gate", "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]});
    bench.model(
        "q8",
        &fp8_config(2, RAGGED, listed.clone()),
        &specs.chain(plain_q).collect::<Vec<_>>(),
    );
    let recipe = "merge_method: linear\nmodels: [{model: q8}, {model: b8}]\nparameters: {weight: 0.5}\nquantization: keep\n";
    let out = bench.merge(recipe, &[]);
    assert_eq!(
        by_name(&out)["model.layers.1.self_attn.q_proj.weight"].dtype,
        Dtype::BF16
    );
    let said = &read_json(&out.join("config.json"))["quantization_config"];
    assert_eq!(
        said["modules_to_not_convert"],
        listed["modules_to_not_convert"]
    );
}

#[test]
fn a_module_whose_blocks_are_ragged_stays_plain() {
    let bench = bench(RAGGED);
    let out = bench.merge(&with(LINEAR, "quantization: fp8_block"), &[]);
    let found = by_name(&out);
    assert_eq!(
        found["model.layers.0.self_attn.q_proj.weight"].dtype,
        Dtype::BF16
    );
    assert_eq!(
        found["model.layers.0.mlp.experts.1.up_proj.weight"].dtype,
        Dtype::F8_E4M3
    );
    let said =
        &read_json(&out.join("config.json"))["quantization_config"]["modules_to_not_convert"];
    assert!(
        said.as_array()
            .unwrap()
            .contains(&json!("model.layers.0.self_attn.q_proj")),
        "{said}"
    );
    bench.recipe(&with(LINEAR, "quantization: fp8_block"));
    let plan = bench.weld(&["plan", "recipe.yml"]);
    let note = "4 weights of linear layers stay plain, as the sides of matrices in their module are no multiples of 128";
    assert!(
        plan.stdout.contains(note) || plan.stderr.contains(note),
        "{}",
        plan.stdout
    );
}

#[test]
fn what_cannot_be_is_refused_with_a_remedy() {
    let bench = bench(WHOLE);
    for (key, expected) in [
        ("quantization: fp8_blok", "did you mean `fp8_block`?"),
        ("quantization: [fp8_block]", "quantization"),
        ("quantization: keep", "whose weights are plain"),
    ] {
        let message = bench.refused(&with(LINEAR, key), &[]);
        assert!(
            message.contains(expected) && message.contains("recipe.yml:4"),
            "{message}"
        );
    }
    // As if the key were not there.
    for key in ["quantization: none", "quantization:", "quantization: null"] {
        let out = bench.merge(&with(LINEAR, key), &[]);
        assert!(
            by_name(&out)
                .values()
                .all(|tensor| tensor.dtype == Dtype::BF16)
        );
        fs::remove_dir_all(out).unwrap();
    }
    // No config tells what the codes are.
    let file = "merge_method: passthrough\nmodels: [{model: a/model.safetensors}]\nquantization: fp8_block\n";
    let message = bench.refused(file, &[]);
    assert!(message.contains("has no config.json"), "{message}");
    // Sides that no block fits.
    bench.llama("small", 1, Dtype::BF16);
    let small = "merge_method: passthrough\nmodels: [{model: small}]\nquantization: fp8_block\n";
    let message = bench.refused(small, &[]);
    assert!(message.contains("leaves every tensor plain"), "{message}");
    // Scales of activations belong to one model's weights.
    let mut codes = fp8(mixture(1, 2, WHOLE));
    codes.push(floats(
        "model.layers.0.self_attn.q_proj.input_scale",
        Dtype::F32,
        &[1],
        [0.5],
    ));
    bench.model("static", &fp8_config(2, WHOLE, json!({})), &codes);
    let recipe = "merge_method: passthrough\nmodels: [{model: static}]\nquantization: keep\n";
    let message = bench.refused(recipe, &[]);
    assert!(message.contains("1 scale of activations"), "{message}");
    // A document that others are made from is not written.
    let two = "name: mean\nmerge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\nquantization: fp8_block\n---\n\
        merge_method: passthrough\nmodels: [{model: mean}]\n";
    let message = bench.refused(two, &[]);
    assert!(
        message.contains("`quantization` has no place in a document"),
        "{message}"
    );
}

#[test]
fn values_that_no_code_stands_for_are_refused() {
    let bench = Bench::new();
    let mut specs = mixture(1, 2, WHOLE);
    let name = "model.layers.0.self_attn.q_proj.weight";
    let place = specs.iter().position(|spec| spec.name == name).unwrap();
    let recipe = "merge_method: passthrough\nmodels: [{model: a}]\nquantization: fp8_block\n";
    for (bits, is_number) in [
        (0x7fc0u16, false),
        (0xff80, false),
        (0x7f7f, true),
        (1, true),
    ] {
        specs[place].bytes.fill(0);
        specs[place].bytes[100..102].copy_from_slice(&bits.to_le_bytes());
        bench.model("a", &config(2, WHOLE, json!({})), &specs);
        if !is_number {
            let message = bench.refused(recipe, &[]);
            assert!(
                message.contains(name) && message.contains("--allow-nonfinite"),
                "{message}"
            );
            continue;
        }
        // The largest and the smallest numbers of bfloat16.
        let out = bench.merge(recipe, &[]);
        let found = by_name(&out);
        assert!(found[&format!("{name}_scale_inv")].values()[0].is_normal());
        let codes = &found[name].bytes;
        assert_eq!(codes.iter().filter(|code| **code != 0).count(), 1);
        fs::remove_dir_all(out).unwrap();
    }
}

#[test]
fn infinity_has_no_code_and_what_a_far_larger_value_makes_zero_is_told() {
    let bench = Bench::new();
    let mut specs = mixture(1, 1, WHOLE);
    let name = "model.layers.0.self_attn.q_proj.weight";
    let place = specs.iter().position(|spec| spec.name == name).unwrap();
    let mut with = |bits: u16| {
        specs[place].bytes[100..102].copy_from_slice(&bits.to_le_bytes());
        bench.model("a", &config(1, WHOLE, json!({})), &specs);
    };
    let recipe = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n";
    let encoded = format!("{recipe}quantization: fp8_block\n");

    with(0x7f80);
    let message = bench.refused(&encoded, &["--allow-nonfinite"]);
    assert!(
        message.contains(name) && message.contains("--saturate"),
        "{message}"
    );
    let plain = format!("{recipe}dtype: float8_e4m3fn\n");
    let message = bench.refused(&plain, &["--allow-nonfinite"]);
    assert!(
        message.contains(name) && message.contains("--saturate"),
        "{message}"
    );
    // As the largest value of its block.
    let out = bench.merge(&encoded, &["--allow-nonfinite", "--saturate"]);
    assert_eq!(by_name(&out)[name].bytes[50], 0x7e);
    fs::remove_dir_all(out).unwrap();

    bench.recipe(&encoded);
    let told = |folder: &str| {
        let done = bench.weld(&["merge", "recipe.yml", folder]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        done.stderr + &done.stdout
    };
    with(0x3f80);
    let usual = told("usual");
    assert!(
        usual.contains("relative error of 2.") && !usual.contains("became zero"),
        "{usual}"
    );
    with(0x7f00);
    let huge = told("huge");
    let said = format!("in 100.00 % of `{name}`, many values became zero");
    assert!(huge.contains(&said), "{huge}");

    // Of many blocks one.
    let sides = [1024, 128, 128];
    let mut specs = mixture(1, 1, sides);
    let place = specs.iter().position(|spec| spec.name == name).unwrap();
    specs[place].bytes[2_000_000..2_000_002].copy_from_slice(&0x7f00u16.to_le_bytes());
    bench.model("a", &config(1, sides, json!({})), &specs);
    let huge = told("one");
    let said = format!(" % of `{name}`, many values became zero");
    assert!(huge.contains(&said) && !huge.contains("100.00 %"), "{huge}");
}

#[test]
fn recipes_that_make_no_quantised_model_say_so() {
    let bench = Bench::new();
    bench.model("a", &config(1, WHOLE, json!({})), &mixture(1, 1, WHOLE));
    let of_moe = "base_model: a\ngate_mode: random\nquantization: fp8_block\nexperts: [{source_model: a}, {source_model: a}]\n";
    bench.recipe(of_moe);
    let done = bench.weld(&["moe", "recipe.yml", "out"]);
    assert!(
        done.stderr.contains("then merge it alone by `passthrough`"),
        "{}",
        done.stderr
    );
    for output in ["adapter", "{adapter: svd, rank: 2}"] {
        let message = bench.refused(
            &format!("{LINEAR}output: {output}\nquantization: keep\n"),
            &[],
        );
        assert!(message.contains("an adapter is not quantised"), "{message}");
    }
}
