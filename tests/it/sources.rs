//! Where tensors come from: a plan and a run take any source, and what is merged does not tell from which it came.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use safetensors::Dtype;
use serde_json::{Value, json};
use weldment::checkpoint::{
    Bytes, Checkpoint, CheckpointError, InMemory, Location, ModelConfig, ModelRef, Resolver,
    SidecarsFrom, TensorSource,
};
use weldment::engine::{Budget, Observer, Settings};
use weldment::numeric::FloatType;
use weldment::plan::{self, Options};
use weldment::recipe;
use weldment::run::{self, RunOptions, destination::Memory};

use crate::fixtures::{Bench, Spec, floats, llama, llama_config, load};

/// Models by name. It knows no place on a disk.
pub(crate) struct Held(pub(crate) BTreeMap<String, Arc<Checkpoint>>);

impl Resolver for Held {
    fn resolve(&self, model: &ModelRef) -> Result<Arc<Checkpoint>, CheckpointError> {
        let found = self.0.get(&model.to_string()).cloned();
        found.ok_or_else(|| CheckpointError::NotFound {
            model: model.to_string(),
            looked_in: vec!["memory".to_owned()],
            hint: "hold it".to_owned(),
            near: None,
            download: None,
        })
    }
}

pub(crate) struct Silent;

impl Observer for Silent {
    fn advance(&self, _: u64) {}

    fn cancelled(&self) -> bool {
        false
    }
}

/// The tensors in the order in which files have them.
pub(crate) fn in_memory(mut specs: Vec<Spec>) -> InMemory {
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    let tensor = |spec: Spec| {
        (
            spec.name,
            spec.dtype,
            spec.shape,
            Box::new(spec.bytes) as Bytes,
        )
    };
    InMemory::new(specs.into_iter().map(tensor)).unwrap()
}

pub(crate) fn model(name: &str, tensors: impl TensorSource + 'static) -> Checkpoint {
    model_of(name, llama_config(2), tensors)
}

/// A model with this config and no files.
pub(crate) fn model_of(
    name: &str,
    config: Value,
    tensors: impl TensorSource + 'static,
) -> Checkpoint {
    let config = ModelConfig::made("config.json".into(), config);
    let beside = SidecarsFrom::Files(Vec::new());
    Checkpoint::new(
        name,
        Location::local(name),
        Some(config),
        beside,
        Arc::new(tensors),
    )
}

/// Two threads, and all else as the command line has it.
pub(crate) fn options() -> Options {
    Options {
        settings: Settings {
            threads: 2,
            memory: Budget::Limit(256 << 20),
            allow_non_finite: false,
            saturate: false,
        },
        seed: 0,
        shard_size: 5_000_000_000,
        tokenizer_from: None,
    }
}

/// What a recipe makes of models that nobody wrote, in memory.
fn merged(recipe: &str, models: Vec<Checkpoint>) -> BTreeMap<String, Vec<u8>> {
    let held = models
        .into_iter()
        .map(|model| (model.label().to_owned(), Arc::new(model)));
    let recipe = recipe::parse_with_registry("recipe.yml", recipe).unwrap();
    let planned = plan::plan(&recipe, "recipe.yml", &Held(held.collect()), &options());
    let out = Memory::new("out");
    run::run(&planned.unwrap(), &out, RunOptions::default(), &Silent).unwrap();
    out.into_files()
}

#[test]
fn models_in_memory_give_the_bytes_of_models_in_files() {
    let bench = Bench::new();
    // The second merge reads a result that is made once, the third one that is computed where it is read.
    let recipe = "merge_method: slerp\nbase_model: one\nparameters: {t: 0.3}\nmodels: [{model: one}, {model: two}]\n\
                  ---\nname: one\nmerge_method: ties\nbase_model: a\nparameters: {weight: 1, density: 0.5}\n\
                  models: [{model: b}]\n\
                  ---\nname: two\nmerge_method: linear\nparameters: {weight: 1}\nmodels: [{model: one}, {model: a}]\n";
    let models = [("a", 1), ("b", 2)].map(|(name, seed)| {
        bench.llama(name, seed, Dtype::BF16);
        model(name, in_memory(llama(seed, 2, Dtype::BF16)))
    });
    let out = bench.merge(recipe, &[]);
    let files = merged(recipe, models.into());
    let written = |name: &str| fs::read(out.join(name)).unwrap();
    assert!(files["model.safetensors"] == written("model.safetensors"));
    // A config keeps the text of its file, which one in memory has not: they are equal by value.
    let value = |bytes: &[u8]| -> serde_json::Value { serde_json::from_slice(bytes).unwrap() };
    assert_eq!(value(&files["config.json"]), value(&written("config.json")));
}

/// Matrices as E4M3 codes with a scale for each block of 3 x 5, and what they stand for.
pub(crate) fn quantised(specs: Vec<Spec>) -> (Vec<Spec>, Vec<Spec>) {
    let (mut codes, mut plain) = (Vec::new(), Vec::new());
    for spec in specs {
        let &[rows, columns] = spec.shape.as_slice() else {
            plain.push(floats(&spec.name, Dtype::F32, &spec.shape, values(&spec)));
            codes.push(spec);
            continue;
        };
        let across = columns.div_ceil(5);
        let count = rows.div_ceil(3) * across;
        let scales = floats(
            &format!("{}_scale_inv", spec.name),
            Dtype::F32,
            &[rows.div_ceil(3), across],
            (0..count).map(|block| 1e-3 + 1e-4 * block as f64),
        );
        let of_block = values(&scales);
        let scale = |at: usize| of_block[at / columns / 3 * across + at % columns / 5];
        let divided = values(&spec)
            .into_iter()
            .enumerate()
            .map(|(at, value)| value / scale(at));
        let code = floats(&spec.name, Dtype::F8_E4M3, &spec.shape, divided);
        let products = values(&code)
            .into_iter()
            .enumerate()
            .map(|(at, value)| value * scale(at));
        plain.push(floats(&spec.name, Dtype::F32, &spec.shape, products));
        codes.extend([code, scales]);
    }
    (codes, plain)
}

pub(crate) fn values(spec: &Spec) -> Vec<f64> {
    let format = FloatType::from_dtype(spec.dtype).unwrap();
    let mut values = vec![0.0; spec.bytes.len() / format.size()];
    format.decode(&spec.bytes, &mut values);
    values
}

#[test]
fn an_adapter_on_scaled_codes_is_merged_as_on_what_they_stand_for() {
    let bench = Bench::new();
    let (codes, plain) = quantised(llama(1, 2, Dtype::BF16));
    bench.model("plain", &llama_config(2), &plain);
    bench.llama("b", 2, Dtype::BF16);
    let key =
        |part: &str| format!("base_model.model.model.layers.1.mlp.up_proj.lora_{part}.weight");
    let factors = [
        floats(
            &key("A"),
            Dtype::F32,
            &[2, 8],
            (0..16).map(|at| 0.1 - 0.01 * f64::from(at)),
        ),
        floats(
            &key("B"),
            Dtype::F32,
            &[12, 2],
            (0..24).map(|at| 0.02 * f64::from(at) - 0.2),
        ),
    ];
    bench.tensors("adapter/adapter_model.safetensors", &factors);
    bench.file(
        "adapter/adapter_config.json",
        r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4}"#,
    );
    let linear = |first: &str| {
        format!(
            "merge_method: linear\nparameters: {{weight: 1}}\ndtype: bfloat16\nmodels: [{{model: {first}}}, {{model: b}}]\n"
        )
    };
    let expected = load(&bench.merge(&linear("plain+adapter"), &[]));

    let mut config = llama_config(2);
    config["quantization_config"] = json!({"quant_method": "fp8", "weight_block_size": [3, 5]});
    bench.model("codes", &config, &codes);
    let found = bench.merge(&linear("codes+adapter"), &[]);
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(found.join("config.json")).unwrap()).unwrap();
    assert_eq!(config.get("quantization_config"), None);
    let found = load(&found);
    assert_eq!(found.len(), expected.len());
    for (name, found) in &found {
        let (_, expected) = expected.iter().find(|(other, _)| other == name).unwrap();
        assert_eq!(
            (found.dtype, &found.shape),
            (expected.dtype, &expected.shape),
            "{name}"
        );
        // The one is computed in float32 and the other in float64: a rounding to BF16 may fall to the other side.
        for (found, expected) in found.values().into_iter().zip(expected.values()) {
            assert!(
                (found - expected).abs() <= expected.abs() / 128.0,
                "{name}: {found}, {expected}"
            );
        }
    }
}
