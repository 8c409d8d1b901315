//! What the values of a checkpoint show: each kind of defect is planted, and found by its own name alone.

use safetensors::Dtype;
use serde_json::{Value, json};
use weldment::audit::all_checks;

use crate::fixtures::{Bench, Spec, floats, noise};

/// Layers of the mixture of experts that defects are planted in.
const LAYERS: usize = 6;

/// A small mixture of experts with weights, norms and biases.
fn good(dtype: Dtype) -> Vec<Spec> {
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![40, 32])];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        };
        add("input_layernorm.weight", &[32]);
        add("self_attn.q_proj.weight", &[32, 32]);
        add("self_attn.q_proj.bias", &[32]);
        add("mlp.gate.weight", &[4, 32]);
        for expert in 0..4 {
            add(&format!("mlp.experts.{expert}.up_proj.weight"), &[48, 32]);
        }
    }
    shapes.push(("lm_head.weight".into(), vec![40, 32]));
    (0..)
        .zip(shapes)
        .map(|(seed, (name, shape))| {
            let count = shape.iter().product();
            let values: Vec<f64> = match name.rsplit('.').next() {
                Some("bias") => vec![0.0; count],
                _ if name.contains("norm") => vec![1.0; count],
                _ => noise(seed, count).collect(),
            };
            floats(&name, dtype, &shape, values)
        })
        .collect()
}

/// The ids of the values' findings, and their severities.
fn found(specs: &[Spec], more: &[&str]) -> Vec<(String, String)> {
    let bench = Bench::new();
    let config =
        json!({"model_type": "of_no_family", "num_hidden_layers": LAYERS, "vocab_size": 40});
    bench.model("m", &config, specs);
    let outcome = bench.weld(&[&["check", "m", "--format", "json", "-q"], more].concat());
    let report: Value = serde_json::from_str(&outcome.stdout).expect(&outcome.stderr);
    let findings = report["findings"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    findings
        .iter()
        .map(|finding| (text(&finding["check"]), text(&finding["severity"])))
        .filter(|(id, _)| id.starts_with("values."))
        .collect()
}

/// Sets the values of one tensor.
fn set(specs: &mut [Spec], name: &str, change: impl Fn(&mut Vec<f64>)) {
    let spec = specs.iter_mut().find(|spec| spec.name == name).expect(name);
    let format = weldment::numeric::FloatType::of(spec.dtype).unwrap();
    let mut values = vec![0.0; spec.bytes.len() / format.size()];
    format.decode(&spec.bytes, &mut values);
    change(&mut values);
    *spec = floats(name, spec.dtype, &spec.shape.clone(), values);
}

fn copy(specs: &mut [Spec], from: &str, to: &str) {
    let pairs: Vec<(usize, usize)> = (0..specs.len())
        .filter_map(|at| {
            let target = specs[at].name.replace(from, to);
            let other = specs.iter().position(|spec| spec.name == target)?;
            (other != at).then_some((at, other))
        })
        .collect();
    assert!(!pairs.is_empty(), "{from}");
    for (at, other) in pairs {
        specs[other].bytes = specs[at].bytes.clone();
    }
}

/// What was made so is no defect: zeros in every layer, biases of any shape, tensors of any size.
#[test]
fn beginnings_are_no_defects() {
    for dtype in [Dtype::BF16, Dtype::F32] {
        let mut specs = good(dtype);
        for layer in 0..LAYERS {
            let prefix = format!("model.layers.{layer}.self_attn");
            for name in ["relative_position_bias_table", "experts.down_proj_bias"] {
                specs.push(floats(
                    &format!("{prefix}.{name}"),
                    dtype,
                    &[4, 8],
                    vec![0.0; 32],
                ));
            }
            specs.push(floats(
                &format!("{prefix}.q_norm.weight"),
                dtype,
                &[4, 8],
                vec![1.0; 32],
            ));
        }
        assert_eq!(found(&specs, &[]), [], "{dtype:?}");
    }
}

/// Far from one, squares leave the range of f32.
#[test]
fn sizes_far_from_one_are_measured_too() {
    for (scale, dtype) in [
        (1e-25, Dtype::BF16),
        (1e25, Dtype::BF16),
        (1e-25, Dtype::F32),
        (1e25, Dtype::F32),
    ] {
        let mut specs = good(dtype);
        set(
            &mut specs,
            "model.layers.1.self_attn.q_proj.weight",
            |values| {
                values.iter_mut().for_each(|value| *value *= scale);
            },
        );
        let expected = [("values.out-of-line".to_owned(), "warning".to_owned())];
        assert_eq!(found(&specs, &[]), expected, "{scale} in {dtype:?}");
    }
}

type Plant = fn(&mut [Spec]);

const UP: &str = "model.layers.2.mlp.experts.1.up_proj.weight";
const GATE: &str = "model.layers.3.mlp.gate.weight";
const NORM: &str = "model.layers.4.input_layernorm.weight";

/// Every defect: its check, its severity, and how it is planted.
const DEFECTS: &[(&str, &str, Plant)] = &[
    ("values.nan", "error", |specs| {
        set(specs, UP, |values| values[7] = f64::NAN)
    }),
    ("values.infinite", "error", |specs| {
        set(specs, UP, |values| values[7] = f64::INFINITY)
    }),
    ("values.all-zero", "error", |specs| {
        set(specs, UP, |values| values.fill(0.0))
    }),
    ("values.all-zero", "error", |specs| {
        set(specs, NORM, |values| values.fill(0.0))
    }),
    ("values.constant", "warning", |specs| {
        set(specs, UP, |values| values.fill(0.03))
    }),
    ("values.subnormal", "warning", |specs| {
        // Only this tensor, and not so small that its size alone would tell.
        for layer in 0..LAYERS {
            let name = format!("model.layers.{layer}.self_attn.q_proj.weight");
            set(specs, &name, |values| {
                values.iter_mut().for_each(|value| *value *= 1e-3)
            });
        }
    }),
    ("values.norm-collapsed", "warning", |specs| {
        set(specs, NORM, |values| values.fill(1e-3))
    }),
    ("values.dead-rows", "note", |specs| {
        set(specs, "model.embed_tokens.weight", |values| {
            values[64..128].fill(0.0)
        });
    }),
    ("values.dead-rows", "warning", |specs| {
        set(specs, "model.embed_tokens.weight", |values| {
            values[..700].fill(0.0)
        });
    }),
    ("values.out-of-line", "warning", |specs| {
        set(specs, "model.layers.1.self_attn.q_proj.weight", |values| {
            values.iter_mut().for_each(|value| *value *= 100.0);
        });
    }),
    ("values.identical-layers", "warning", |specs| {
        copy(specs, "layers.1.", "layers.5.")
    }),
    ("values.identical-experts", "warning", |specs| {
        copy(specs, "layers.2.mlp.experts.0.", "layers.2.mlp.experts.3.");
    }),
    ("values.zero-router", "error", |specs| {
        set(specs, GATE, |values| values.fill(0.0))
    }),
    ("values.identical-router-rows", "warning", |specs| {
        set(specs, GATE, |values| values.copy_within(..32, 64));
    }),
];

#[test]
fn a_good_checkpoint_shows_nothing() {
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64] {
        assert_eq!(found(&good(dtype), &[]), [], "{dtype:?}");
    }
}

#[test]
fn every_defect_is_found_by_its_name_alone() {
    for (id, severity, plant) in DEFECTS {
        // In BF16 as in F32 nothing of this size is subnormal.
        let dtypes = match *id {
            "values.subnormal" => vec![Dtype::F16],
            _ => vec![Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64],
        };
        for dtype in dtypes {
            let mut specs = good(dtype);
            plant(&mut specs);
            let mut seen = found(&specs, &[]);
            seen.dedup();
            let expected = [((*id).to_owned(), (*severity).to_owned())];
            assert_eq!(seen, expected, "{id} in {dtype:?}");
        }
    }
}

#[test]
fn every_check_of_values_has_a_defect_and_the_other_way_round() {
    let mut planted: Vec<&str> = DEFECTS.iter().map(|(id, ..)| *id).collect();
    planted.sort_unstable();
    planted.dedup();
    let mut known: Vec<&str> = all_checks()
        .map(|check| check.id)
        .filter(|id| id.starts_with("values."))
        .collect();
    known.sort_unstable();
    assert_eq!(planted, known);
}

#[test]
fn what_is_found_does_not_depend_on_threads() {
    let bench = Bench::new();
    let specs = [
        floats(
            "model.layers.0.w",
            Dtype::BF16,
            &[700, 3000],
            noise(1, 2_100_000),
        ),
        floats(
            "model.layers.1.w",
            Dtype::F32,
            &[100, 4001],
            noise(2, 400_100),
        ),
        floats("empty", Dtype::F32, &[0, 4], []),
        floats("scalar", Dtype::F64, &[], [1.5]),
    ];
    bench.model("m", &json!({"model_type": "none"}), &specs);
    let run = |threads: &str| {
        let outcome = bench.weld(&["check", "m", "--format", "json", "-q", "--threads", threads]);
        serde_json::from_str::<Value>(&outcome.stdout).expect(&outcome.stderr)
    };
    let first = run("1");
    let tensors = first["details"]["tensors"].as_array().unwrap();
    let named = |tensor: &&Value| tensor["name"] == "model.layers.0.w";
    let tensor = tensors.iter().find(named).unwrap();
    let digest = blake3_of(&specs[0].bytes);
    assert_eq!(tensor["blake3"], digest.as_str());
    let twin = |seed, count: usize| {
        let sum: f64 = noise(seed, count).map(|value| value * value).sum();
        (sum / count as f64).sqrt()
    };
    let rms = tensor["rms"].as_f64().unwrap();
    assert!((rms / twin(1, 2_100_000) - 1.0).abs() < 1e-4, "{rms}");
    assert_eq!(first["details"], run("2")["details"]);
    assert_eq!(first["details"], run("5")["details"]);
}

/// The digest by way of the lock's own implementation.
fn blake3_of(bytes: &[u8]) -> String {
    let tree = weldment::numeric::TreeDigest::new(bytes.len() as u64);
    tree.update(0, bytes);
    tree.finish().unwrap().to_string()
}
