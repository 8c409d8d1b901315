//! What the values of a checkpoint show: what is no defect, and how bad one is; defects one by one are in `mutate`.

use safetensors::Dtype;
use serde_json::{Value, json};

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
    let format = weldment::numeric::FloatType::from_dtype(spec.dtype).unwrap();
    let mut values = vec![0.0; spec.bytes.len() / format.size()];
    format.decode(&spec.bytes, &mut values);
    change(&mut values);
    *spec = floats(name, spec.dtype, &spec.shape.clone(), values);
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

/// Some models begin with biases of a millionth, which F16 has no normal numbers for.
/// I-BERT keeps the integers of each weight in a buffer that is zeros until it is quantised.
#[test]
fn zeros_in_a_buffer_beside_a_weight_are_no_defect() {
    let mut specs = good(Dtype::F32);
    for name in [
        "model.embed_tokens.weight_integer",
        "model.layers.0.self_attn.q_proj.weight_integer",
    ] {
        let shape = match name.contains("embed") {
            true => [40, 32],
            false => [32, 32],
        };
        specs.push(floats(
            name,
            Dtype::F32,
            &shape,
            vec![0.0; shape[0] * shape[1]],
        ));
    }
    assert_eq!(found(&specs, &[]), found(&good(Dtype::F32), &[]));
    // A matrix that is beside no weight of its shape is one itself.
    specs.push(floats(
        "model.extra.weight_integer",
        Dtype::F32,
        &[4, 4],
        vec![0.0; 16],
    ));
    let error = ("values.all-zero".to_owned(), "error".to_owned());
    assert!(found(&specs, &[]).contains(&error));
}

#[test]
fn biases_that_are_hardly_there_are_only_worth_a_note() {
    let mut specs = good(Dtype::F16);
    for layer in 0..LAYERS {
        let name = format!("model.layers.{layer}.self_attn.q_proj.bias");
        set(&mut specs, &name, |values| {
            let small = noise(layer as u64, values.len()).map(|value| value * 1e-5);
            values.copy_from_slice(&small.collect::<Vec<f64>>());
        });
    }
    let note = ("values.subnormal".to_owned(), "note".to_owned());
    assert_eq!(found(&specs, &[]), vec![note; LAYERS]);
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

#[test]
fn a_good_checkpoint_shows_nothing() {
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64] {
        assert_eq!(found(&good(dtype), &[]), [], "{dtype:?}");
    }
}

/// Rows for padding are harmless; an embedding that is mostly zeros is not.
#[test]
fn many_dead_rows_are_worse_than_a_few() {
    for (rows, severity) in [(2, "note"), (21, "warning")] {
        let mut specs = good(Dtype::BF16);
        set(&mut specs, "model.embed_tokens.weight", |values| {
            values[..rows * 32].fill(0.0);
        });
        let expected = [("values.dead-rows".to_owned(), severity.to_owned())];
        assert_eq!(found(&specs, &[]), expected);
    }
}

const Q_PROJ: &str = "model.layers.3.self_attn.q_proj.weight";

/// The end of a file that never arrived, or a part in its middle, reads as zeros.
#[test]
fn runs_of_zeros_are_holes_where_other_layers_have_weights() {
    let one = |severity: &str| vec![("values.hole".to_owned(), severity.to_owned())];
    for dtype in [Dtype::BF16, Dtype::F32] {
        for run in [0..512, 256..768, 700..1024, 100..400] {
            let mut specs = good(dtype);
            set(&mut specs, Q_PROJ, |values| values[run.clone()].fill(0.0));
            assert_eq!(found(&specs, &[]), one("error"), "{dtype:?} {run:?}");
        }
        // Where most layers have them, they are padding, or pruned.
        let mut specs = good(dtype);
        for layer in 0..LAYERS {
            let name = format!("model.layers.{layer}.self_attn.q_proj.weight");
            set(&mut specs, &name, |values| values[512..].fill(0.0));
        }
        assert_eq!(found(&specs, &[]), vec![one("note")[0].clone(); LAYERS]);
        // A row that begins with weights and ends in zeros is no row for padding.
        let mut specs = good(dtype);
        set(&mut specs, "lm_head.weight", |values| {
            values[20 * 32 + 5..].fill(0.0)
        });
        assert!(found(&specs, &[]).contains(&one("warning")[0]));
    }
}

#[test]
fn zeros_that_are_meant_are_no_holes() {
    let mut specs = good(Dtype::BF16);
    // Sparse by chance, in one layer only.
    set(&mut specs, Q_PROJ, |values| {
        let keep: Vec<f64> = noise(77, values.len()).collect();
        for (value, draw) in values.iter_mut().zip(keep) {
            *value = if draw.abs() < 0.045 { 0.0 } else { *value };
        }
    });
    // Some filters, a table of positions, a mask.
    for (name, shape) in [
        ("model.conv.weight", vec![40, 3, 3]),
        ("model.embed_positions.weight", vec![64, 32]),
        ("model.layers.2.causal_mask", vec![64, 64]),
    ] {
        let count: usize = shape.iter().product();
        let zeros = if name.contains("conv") {
            3 * 9
        } else {
            count / 2
        };
        let values = noise(5, count).enumerate();
        let values = values.map(|(at, value)| if at < zeros { 0.0 } else { value });
        specs.push(floats(name, Dtype::BF16, &shape, values));
    }
    assert_eq!(found(&specs, &[]), []);
}

/// One flipped bit of an exponent, and values that no weight has.
#[test]
fn values_far_outside_of_their_tensor_are_found() {
    for (dtype, value, severity) in [
        (Dtype::BF16, 2.4e35, "error"),
        (Dtype::F32, -1e7, "error"),
        (Dtype::F16, 30_000.0, "error"),
        (Dtype::BF16, 600.0, "warning"),
    ] {
        let mut specs = good(dtype);
        set(&mut specs, Q_PROJ, |values| values[37] = value);
        let expected = [("values.outlier".to_owned(), severity.to_owned())];
        assert_eq!(found(&specs, &[]), expected, "{value} in {dtype:?}");
    }
    // Without other layers to compare with.
    let mut specs = good(Dtype::BF16);
    set(&mut specs, "lm_head.weight", |values| values[37] = 1e30);
    let expected = [("values.outlier".to_owned(), "error".to_owned())];
    assert_eq!(found(&specs, &[]), expected);
    // A mask may hold what it adds.
    let mut specs = good(Dtype::BF16);
    let mask = (0..64 * 64).map(|at| if at % 65 == 0 { 0.0 } else { -3e38 });
    specs.push(floats("model.layers.2.mask", Dtype::BF16, &[64, 64], mask));
    assert_eq!(found(&specs, &[]), []);
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
