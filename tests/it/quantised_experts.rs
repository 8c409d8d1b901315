//! MXFP4 as gpt-oss stores its experts: columns of matrices in groups of 32 rows.

use std::collections::BTreeMap;
use std::fs;

use safetensors::Dtype;
use serde_json::{Value, json};
use weldment::numeric::{Coding, Encoding};

use crate::fixtures::{Bench, Loaded, Spec, by_name, config_with, floats, noise, read_json};
use crate::quantised_outputs::{LINEAR, with};

const EXPERTS: usize = 3;
const HIDDEN: usize = 64;
const INNER: usize = 32;

/// The experts of a layer, as they are read.
const STACKS: [(&str, [usize; 3]); 2] = [
    ("mlp.experts.gate_up_proj", [EXPERTS, HIDDEN, 2 * INNER]),
    ("mlp.experts.down_proj", [EXPERTS, INNER, HIDDEN]),
];

fn model(seed: u64) -> Vec<Spec> {
    let mut shapes: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![16, HIDDEN])];
    for layer in 0..2 {
        let own =
            |name: &str, shape: &[usize]| (format!("model.layers.{layer}.{name}"), shape.to_vec());
        shapes.extend(STACKS.map(|(name, shape)| own(name, &shape)));
        shapes.extend([
            own("input_layernorm.weight", &[HIDDEN]),
            own("mlp.experts.down_proj_bias", &[EXPERTS, HIDDEN]),
            own("mlp.experts.gate_up_proj_bias", &[EXPERTS, 2 * INNER]),
            own("mlp.router.weight", &[EXPERTS, HIDDEN]),
            own("self_attn.q_proj.weight", &[HIDDEN, HIDDEN]),
        ]);
    }
    shapes.push(("lm_head.weight".into(), vec![16, HIDDEN]));
    let tensors = shapes.into_iter().zip(0..);
    tensors
        .map(|((name, shape), at)| {
            let values = noise(seed * 100 + at, shape.iter().product()).enumerate();
            // Magnitudes differ from group to group.
            let values = values.map(|(at, value)| value * 2f64.powi((at / 32 % 5) as i32));
            floats(&name, Dtype::BF16, &shape, values)
        })
        .collect()
}

fn config(more: Value) -> Value {
    let mut config = config_with(2, more);
    let fields = json!({
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "torch_dtype": "bfloat16",
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_local_experts": EXPERTS, "num_experts_per_tok": 1,
    });
    let own = config.as_object_mut().unwrap();
    own.extend(fields.as_object().unwrap().clone());
    config
}

fn quantised() -> Value {
    config(
        json!({"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}),
    )
}

/// Codes and scales of values, encoded by themselves.
fn codes_of(name: &str, shape: [usize; 3], values: &[f32]) -> [Spec; 2] {
    let [experts, rows, columns] = shape;
    let encoding = Encoding::mxfp4(experts, rows, columns);
    let of_one = rows * columns;
    let mut codes = vec![0; values.len() / 2];
    let mut scales = vec![0; values.len() / 32];
    let parts = codes
        .chunks_mut(of_one / 2)
        .zip(scales.chunks_mut(of_one / 32));
    for (values, (codes, scales)) in values.chunks(of_one).zip(parts) {
        encoding.encode(values, 0, Coding::default(), codes, scales);
    }
    let groups = rows / 32;
    let spec = |end: &str, shape: &[usize], bytes| Spec {
        name: format!("{name}{end}"),
        dtype: Dtype::U8,
        shape: shape.into(),
        bytes,
    };
    [
        spec("_blocks", &[experts, columns, groups, 16], codes),
        spec("_scales", &[experts, columns, groups], scales),
    ]
}

fn singles(values: Vec<f64>) -> Vec<f32> {
    values.into_iter().map(|value| value as f32).collect()
}

fn shape_of(name: &str) -> Option<[usize; 3]> {
    let stack = STACKS.iter().find(|(stack, _)| name.ends_with(stack));
    stack.map(|(_, shape)| *shape)
}

pub(crate) fn bench() -> Bench {
    let bench = Bench::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        bench.model(name, &config(json!({})), &model(seed));
        let codes = model(seed)
            .into_iter()
            .flat_map(|spec| match shape_of(&spec.name) {
                Some(shape) => {
                    let values = singles(crate::sources::values(&spec));
                    codes_of(&spec.name, shape, &values).to_vec()
                }
                None => vec![spec],
            });
        bench.model(
            &format!("{name}4"),
            &quantised(),
            &codes.collect::<Vec<_>>(),
        );
    }
    bench
}

/// Compares an output with the same merge in float32.
#[track_caller]
fn is_encoded(plain: &BTreeMap<String, Loaded>, found: &BTreeMap<String, Loaded>) {
    let mut encoded = 0;
    for (name, tensor) in plain {
        let Some(shape) = shape_of(name) else {
            continue;
        };
        for expected in codes_of(name, shape, &singles(tensor.values())) {
            let found = &found[&expected.name];
            assert_eq!(
                (found.dtype, &found.shape),
                (expected.dtype, &expected.shape)
            );
            assert!(found.bytes == expected.bytes, "{}", expected.name);
        }
        encoded += 1;
    }
    assert_eq!(found.len(), plain.len() + encoded);
    assert_eq!(encoded, 4);
}

#[test]
fn experts_are_written_as_gpt_oss_has_them() {
    let bench = bench();
    let plain = by_name(&bench.merge(&with(LINEAR, "out_dtype: float32"), &[]));
    let bf16 = by_name(&bench.merge(LINEAR, &[]));
    let recipe = with(LINEAR, "quantization: mxfp4");
    let out = bench.merge(&recipe, &[]);
    let found = by_name(&out);
    is_encoded(&plain, &found);
    for (name, tensor) in bf16.iter().filter(|(name, _)| shape_of(name).is_none()) {
        assert_eq!(found[name], *tensor, "{name}");
    }
    let said = &read_json(&out.join("config.json"))["quantization_config"];
    assert_eq!(said["quant_method"], "mxfp4");
    for more in [
        ["--threads", "1"],
        ["--memory", "64MiB"],
        ["--shard-size", "9KB"],
    ] {
        assert_eq!(by_name(&bench.merge(&recipe, &more)), found, "{more:?}");
        bench.passes(&["verify", "out", "--full"]);
    }
    bench.passes(&["verify", "out", "--samples", "2"]);
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(
        plan.contains("weights  mxfp4: 4 encoded, 0 keep codes and scales"),
        "{plan}"
    );
    assert!(
        plan.contains("to MXFP4 with a scale for each 32 rows of a column"),
        "{plan}"
    );
    let lock = read_json(&bench.path("out/weldment.lock.json"));
    let percent = lock["outputs"]["quantization_error_percent"]
        .as_f64()
        .unwrap();
    assert!((5.0..20.0).contains(&percent), "{percent}");
    // Parts and a stop in between make the same.
    fs::remove_dir_all(&out).unwrap();
    for part in ["1/2", "2/2"] {
        bench.passes(&[
            "merge",
            "recipe.yml",
            "out",
            "--shard-size",
            "9KB",
            "--part",
            part,
        ]);
    }
    bench.passes(&["join", "out", "--no-check"]);
    assert_eq!(by_name(&out), found);
    let resumed = bench.merge(&recipe, &["--shard-size", "9KB", "--resume"]);
    assert_eq!(by_name(&resumed), found);
    let checked = bench.weld(&["merge", "recipe.yml", "checked", "-q"]);
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
    let listed = bench.weld(&["inspect", "checked"]).stdout;
    assert!(
        listed.contains("4 weights are stored as MXFP4 (gpt-oss)"),
        "{listed}"
    );
    let check = bench.weld(&["check", "checked"]).stdout;
    assert!(
        check.contains("tensors are as they were written"),
        "{check}"
    );
    // What it stands for is encoded as itself.
    let again = "merge_method: linear\nmodels: [{model: checked}, {model: ./checked}]\nparameters: {weight: 0.5}\nquantization: mxfp4\n";
    let once_more = by_name(&bench.merge(again, &[]));
    fs::rename(bench.path("out"), bench.path("again")).unwrap();
    assert_eq!(once_more.len(), found.len());
    let diff = bench.weld(&["diff", "again", "checked"]);
    assert_eq!(diff.code, Some(0), "{}{}", diff.stdout, diff.stderr);
    assert!(
        !diff.stdout.contains("experts.down_proj"),
        "{}",
        diff.stdout
    );
    // Another code is found.
    let file = bench.path("checked/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let name = "model.layers.1.mlp.experts.down_proj_blocks";
    let codes = &found[name].bytes;
    let place = (0..bytes.len() - codes.len())
        .find(|&at| bytes[at..].starts_with(codes))
        .unwrap();
    bytes[place + codes.len() - 1] ^= 0x10;
    fs::write(&file, bytes).unwrap();
    bench.recipe(&recipe);
    for coverage in ["--full", "--samples=3"] {
        let verified = bench.weld(&["verify", "checked", "--recipe", "recipe.yml", coverage]);
        assert_eq!(verified.code, Some(1), "{}", verified.stdout);
        assert!(verified.stdout.contains(name), "{}", verified.stdout);
    }
}

#[test]
fn a_quantised_base_keeps_its_scheme() {
    let bench = bench();
    let given = by_name(&bench.path("a4"));
    let out = bench.merge(
        "merge_method: passthrough\nmodels: [{model: a4}]\nquantization: keep\n",
        &[],
    );
    assert_eq!(by_name(&out), given);
    for other in ["b", "b4"] {
        let recipe = format!(
            "merge_method: linear\nmodels: [{{model: a4}}, {{model: {other}}}]\nparameters: {{weight: 0.5}}\n"
        );
        let plain = by_name(&bench.merge(&with(&recipe, "out_dtype: float32"), &[]));
        let out = bench.merge(&with(&recipe, "quantization: keep"), &[]);
        is_encoded(&plain, &by_name(&out));
        let said = &read_json(&out.join("config.json"))["quantization_config"];
        assert_eq!(*said, quantised()["quantization_config"]);
        bench.passes(&["verify", "out", "--full"]);
    }
    // Codes of one model, and of the other.
    let chimera = "merge_method: linear\nmodels:\n\
        - {model: a4, parameters: {weight: [{filter: experts, value: 0}, {value: 1}]}}\n\
        - {model: b4, parameters: {weight: [{filter: experts, value: 1}, {value: 0}]}}\nquantization: keep\n";
    let found = by_name(&bench.merge(chimera, &[]));
    let other = by_name(&bench.path("b4"));
    for (name, tensor) in &found {
        let from = if name.contains("experts") {
            &other
        } else {
            &given
        };
        assert_eq!(*tensor, from[name], "{name}");
    }
    bench.merge(
        &with(LINEAR, "rounding: stochastic\nquantization: mxfp4"),
        &[],
    );
    bench.passes(&["verify", "out", "--full"]);
}

#[test]
fn what_cannot_be_is_refused_with_a_remedy() {
    let bench = bench();
    bench.llama("small", 1, Dtype::BF16);
    let other = "merge_method: passthrough\nmodels: [{model: small}]\nquantization: mxfp4\n";
    let message = bench.refused(other, &[]);
    assert!(
        message.contains("`small` is no gpt_oss") && message.contains("fp8_block"),
        "{message}"
    );
    let name = "model.layers.0.mlp.experts.down_proj";
    let recipe = "merge_method: passthrough\nmodels: [{model: c}]\nquantization: mxfp4\n";
    for (bits, flag, expected) in [
        (0x7fc0u16, "--force", "--allow-nonfinite"),
        (0x7f80, "--allow-nonfinite", "too large for MXFP4"),
    ] {
        let mut specs = model(1);
        let spec = specs.iter_mut().find(|spec| spec.name == name).unwrap();
        spec.bytes[100..102].copy_from_slice(&bits.to_le_bytes());
        bench.model("c", &config(json!({})), &specs);
        let message = bench.refused(recipe, &[flag]);
        assert!(
            message.contains(name) && message.contains(expected),
            "{message}"
        );
    }
}
