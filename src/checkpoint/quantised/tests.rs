//! Each storage by hand, and what does not fit together.

use std::sync::Arc;

use safetensors::Dtype;
use serde_json::{Value, json};

use super::super::config::ModelConfig;
use super::super::error::CheckpointError;
use super::super::fixtures::{raw, write};
use super::super::in_memory::{Bytes, InMemory};
use super::super::locate::Location;
use super::super::reader::{Checkpoint, SidecarsFrom};

type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

const W: &str = "model.layers.0.up.weight";

fn f32s(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn i32s(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// A model in memory whose config says how it is quantised.
fn open(settings: Value, tensors: Vec<Tensor>) -> Result<Checkpoint, CheckpointError> {
    let tensors = tensors.into_iter().map(|(name, dtype, shape, bytes)| {
        (name.to_owned(), dtype, shape, Box::new(bytes) as Bytes)
    });
    let memory = InMemory::new(tensors).unwrap();
    let config = match settings {
        Value::Null => None,
        settings => Some(ModelConfig::made(
            "m/config.json".into(),
            json!({"torch_dtype": "bfloat16", "quantization_config": settings}),
        )),
    };
    Checkpoint::in_memory("m", config, Arc::new(memory))
}

fn message(settings: Value, tensors: Vec<Tensor>) -> String {
    match open(settings, tensors) {
        Ok(model) => panic!("{:?} was read", model.tensors()),
        Err(error) => errors::in_one_line(&error),
    }
}

fn values(model: &Checkpoint, index: usize) -> Vec<f64> {
    let mut out = vec![0f64; model.tensors()[index].elements() as usize];
    numeric::Fill::fill(&*model.elements(index).unwrap(), 0, &mut out).unwrap();
    out
}

/// E4M3: 1.0, 1.125, 1.25, ... up to 1.875, then doubled.
fn e4m3() -> Vec<u8> {
    (0..35).map(|at| 0x38 + at % 16).collect()
}

fn of_e4m3(at: usize) -> f64 {
    let (exponent, mantissa) = (at % 16 / 8, at % 8);
    (1.0 + mantissa as f64 / 8.0) * f64::from(1u8 << exponent)
}

/// A matrix of 5 x 7 in FP8 with these scales, and a norm.
fn fp8(scale: &'static str, shape: &[usize], scales: &[f32]) -> Vec<Tensor> {
    vec![
        (W, Dtype::F8_E4M3, vec![5, 7], e4m3()),
        (scale, Dtype::F32, shape.to_vec(), f32s(scales)),
        ("norm", Dtype::BF16, vec![2], vec![0x80, 0x3f, 0, 0x40]),
    ]
}

fn blocks() -> Value {
    json!({"quant_method": "fp8", "weight_block_size": [2, 3]})
}

const NINE: [f32; 9] = [0.3, 1.3, 2.3, 3.3, 4.3, 5.3, 6.3, 7.3, 8.3];

#[test]
fn blocks_of_fp8_are_scaled_and_scales_are_no_tensors() {
    let model = open(
        blocks(),
        fp8("model.layers.0.up.weight_scale_inv", &[3, 3], &NINE),
    );
    let model = model.unwrap();
    let names: Vec<&str> = (model.tensors().iter())
        .map(|entry| entry.name.as_str())
        .collect();
    assert_eq!(names, [W, "norm"]);
    let entry = &model.tensors()[0];
    assert_eq!(
        (entry.dtype, entry.stored, entry.len),
        (Dtype::BF16, Dtype::F8_E4M3, 70)
    );
    assert_eq!((model.bytes(0), model.stored(0)), (None, None));
    assert_eq!(model.bytes(1), Some([0x80, 0x3f, 0, 0x40].as_slice()));
    assert_eq!((model.bytes_read(0), model.bytes_read(1)), (35 + 36, 4));
    for (at, found) in values(&model, 0).into_iter().enumerate() {
        let block = at / 7 / 2 * 3 + at % 7 / 3;
        assert_eq!(found, of_e4m3(at) * f64::from(NINE[block]), "{at}");
    }
    assert_eq!(values(&model, 1), [1.0, 2.0]);
    // The output of a merge is plain, and so is what its config says.
    assert_eq!(model.config().unwrap().get("quantization_config"), None);
    assert!(
        model.notes()[0].contains("2 x 3 values"),
        "{:?}",
        model.notes()
    );
}

#[test]
fn a_scale_may_be_for_a_tensor_or_a_row() {
    let scale = "model.layers.0.up.weight_scale";
    let rows = open(
        json!({"quant_method": "fbgemm_fp8"}),
        fp8(scale, &[5, 1], &[1.0, 2.0, 3.0, 4.0, 5.0]),
    );
    let rows = values(&rows.unwrap(), 0);
    assert!((0..35).all(|at| rows[at] == of_e4m3(at) * (at / 7 + 1) as f64));
    for (name, shape) in [
        (scale, vec![]),
        ("model.layers.0.up.scale_weight", vec![1]),
        ("model.layers.0.up.scale", vec![1, 1]),
    ] {
        let whole = open(Value::Null, fp8(name, &shape, &[0.25])).unwrap();
        let whole = values(&whole, 0);
        assert!((0..35).all(|at| whole[at] == of_e4m3(at) * 0.25));
    }
}

#[test]
fn integers_have_zeros_and_packed_ones_the_shape_beside_them() {
    let settings = json!({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 4}}}});
    let int8: Vec<Tensor> = vec![
        (W, Dtype::I8, vec![2, 2], vec![1, 0xff, 3, 4]),
        (
            "model.layers.0.up.weight_scale",
            Dtype::F32,
            vec![2, 1],
            f32s(&[0.5, 2.0]),
        ),
        (
            "model.layers.0.up.weight_zero_point",
            Dtype::I8,
            vec![2, 1],
            vec![1, 0xfe],
        ),
    ];
    let model = open(settings.clone(), int8).unwrap();
    assert_eq!(values(&model, 0), [0.0, -1.0, 10.0, 12.0]);
    // Two rows of five codes of four bits: one word each, and two groups of which the second has one column.
    let packed: Vec<Tensor> = vec![
        (
            "m.weight_packed",
            Dtype::I32,
            vec![2, 1],
            i32s(&[0x0004_3210, 0x000f_edcb]),
        ),
        (
            "m.weight_shape",
            Dtype::I64,
            vec![2],
            [2u64, 5].iter().flat_map(|n| n.to_le_bytes()).collect(),
        ),
        (
            "m.weight_scale",
            Dtype::F32,
            vec![2, 2],
            f32s(&[1.0, 10.0, 100.0, 1000.0]),
        ),
    ];
    let model = open(settings.clone(), packed.clone()).unwrap();
    assert_eq!(model.tensors()[0].name, "m.weight");
    assert_eq!(
        values(&model, 0),
        [
            -8.0, -7.0, -6.0, -5.0, -40.0, 300.0, 400.0, 500.0, 600.0, 7000.0
        ]
    );
    // The group of each column, if it is said: the first and the last change places.
    let mut indexed = packed.clone();
    indexed.push((
        "m.weight_g_idx",
        Dtype::I32,
        vec![5],
        i32s(&[1, 0, 0, 0, 0]),
    ));
    let model = open(settings.clone(), indexed.clone()).unwrap();
    assert_eq!(values(&model, 0)[..5], [-80.0, -7.0, -6.0, -5.0, -4.0]);
    indexed[3].3 = i32s(&[2, 0, 0, 0, 0]);
    let beyond = message(settings.clone(), indexed);
    assert!(
        beyond.contains("`m.weight_g_idx`") && beyond.contains("a group from 0 to 1"),
        "{beyond}"
    );
    for (at, bytes, expected) in [
        (1, vec![0xff; 16], "2 rows and a number of columns"),
        (
            1,
            [2u64, 1 << 40]
                .iter()
                .flat_map(|n| n.to_le_bytes())
                .collect(),
            "codes of 1, 2, 4 or 8 bits",
        ),
    ] {
        let mut wrong = packed.clone();
        wrong[at].3 = bytes;
        let found = message(settings.clone(), wrong);
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn gptq_and_awq_pack_the_transpose() {
    // Eight inputs and two outputs: a word for each output, least bits first.
    let gptq = |format: &str| json!({"quant_method": "gptq", "bits": 4, "group_size": -1, "checkpoint_format": format});
    let tensors: Vec<Tensor> = vec![
        (
            "m.qweight",
            Dtype::I32,
            vec![1, 8],
            i32s(&[0x7654_3210, 0xfedc_ba98, 0, 0, 0, 0, 0, 0]),
        ),
        ("m.qzeros", Dtype::I32, vec![1, 1], i32s(&[0x0000_0021])),
        (
            "m.scales",
            Dtype::F32,
            vec![1, 8],
            f32s(&[1.0, 10.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ),
        ("m.bias", Dtype::F32, vec![8], f32s(&[0.0; 8])),
    ];
    let model = open(gptq("gptq"), tensors.clone()).unwrap();
    assert_eq!(model.tensors()[0].name, "m.weight");
    assert_eq!(model.tensors()[0].shape, [8, 8]);
    assert_eq!(
        values(&model, 0)[..8],
        [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    );
    assert_eq!(values(&model, 0)[8..10], [50.0, 60.0]);
    let second = open(gptq("gptq_v2"), tensors.clone()).unwrap();
    assert_eq!(values(&second, 0)[..3], [-1.0, 0.0, 1.0]);
    let other = message(gptq("marlin"), tensors.clone());
    assert!(
        other.contains("checkpoint_format") && other.contains("marlin"),
        "{other}"
    );
    // Eight outputs and one input: outputs 0, 2, 4, 6, 1, 3, 5, 7.
    let awq: Vec<Tensor> = vec![
        ("m.qweight", Dtype::I32, vec![1, 1], i32s(&[0x7654_3210])),
        ("m.qzeros", Dtype::I32, vec![1, 1], i32s(&[0x0000_0001])),
        ("m.scales", Dtype::F32, vec![1, 8], f32s(&[1.0; 8])),
    ];
    let settings = json!({"quant_method": "awq", "bits": 4, "group_size": 128});
    let model = open(settings, awq).unwrap();
    assert_eq!(model.tensors()[0].shape, [8, 1]);
    assert_eq!(values(&model, 0), [-1.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]);
}

#[test]
fn experts_of_gpt_oss_are_those_of_the_transpose() {
    // One expert, two outputs, 32 inputs: code 1 (0.5) first, then 2 (1.0); scales 1 and 4.
    let bytes: Vec<u8> = [vec![0x21; 16], vec![0xa9; 16]].concat();
    let tensors: Vec<Tensor> = vec![
        ("e.up_blocks", Dtype::U8, vec![1, 2, 1, 16], bytes),
        ("e.up_scales", Dtype::U8, vec![1, 2, 1], vec![127, 129]),
        ("e.up_bias", Dtype::BF16, vec![1, 2], vec![0; 4]),
    ];
    let model = open(json!({"quant_method": "mxfp4"}), tensors).unwrap();
    assert_eq!(
        (
            model.tensors()[0].name.as_str(),
            model.tensors()[0].shape.as_slice()
        ),
        ("e.up", &[1, 32, 2][..])
    );
    assert_eq!(values(&model, 0)[..4], [0.5, -2.0, 1.0, -4.0]);
}

#[test]
fn nf4_is_read_by_its_own_table() {
    let table: Vec<f32> = (0..16).map(|at| at as f32 - 8.0).collect();
    let state = br#"{"quant_type": "nf4", "blocksize": 4, "dtype": "float16", "shape": [2, 3], "nested_blocksize": 256, "nested_offset": 1.0}"#;
    let tensors = |absmax: Tensor, more: Vec<Tensor>| -> Vec<Tensor> {
        let mut tensors: Vec<Tensor> = vec![
            ("m.weight", Dtype::U8, vec![3, 1], vec![0x9a, 0xbc, 0xde]),
            ("m.weight.quant_map", Dtype::F32, vec![16], f32s(&table)),
            (
                "m.weight.quant_state.bitsandbytes__nf4",
                Dtype::U8,
                vec![state.len()],
                state.to_vec(),
            ),
            absmax,
        ];
        tensors.extend(more);
        tensors
    };
    let plain: Tensor = ("m.weight.absmax", Dtype::F32, vec![2], f32s(&[1.0, 100.0]));
    let settings = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    let model = open(settings.clone(), tensors(plain, Vec::new())).unwrap();
    assert_eq!(
        (model.tensors().len(), model.tensors()[0].dtype),
        (1, Dtype::F16)
    );
    assert_eq!(values(&model, 0), [1.0, 2.0, 3.0, 4.0, 500.0, 600.0]);
    let mut steps = vec![0f32; 256];
    (steps[7], steps[9]) = (0.5, 2.0);
    let nested: Tensor = ("m.weight.absmax", Dtype::U8, vec![2], vec![7, 9]);
    let more: Vec<Tensor> = vec![
        ("m.weight.nested_absmax", Dtype::F32, vec![1], f32s(&[2.0])),
        (
            "m.weight.nested_quant_map",
            Dtype::F32,
            vec![256],
            f32s(&steps),
        ),
    ];
    let model = open(settings.clone(), tensors(nested.clone(), more)).unwrap();
    assert_eq!(values(&model, 0), [2.0, 4.0, 6.0, 8.0, 25.0, 30.0]);
    let without = message(settings, tensors(nested, Vec::new()));
    assert!(without.contains("`m.weight.nested_quant_map`"), "{without}");
}

/// What contradicts itself, and what the message must say.
#[test]
fn what_does_not_fit_together_is_refused_by_name() {
    let inv = "model.layers.0.up.weight_scale_inv";
    let scale = "model.layers.0.up.weight_scale";
    let with = |mut tensors: Vec<Tensor>, more: Tensor| {
        tensors.push(more);
        tensors
    };
    let cases: Vec<(Value, Vec<Tensor>, &[&str])> = vec![
        (
            blocks(),
            fp8(inv, &[2, 3], &NINE[..6]),
            &["2 x 3 values", "found F32 [2, 3]"],
        ),
        (blocks(), fp8(inv, &[9], &NINE), &["found F32 [9]"]),
        (
            json!({"quant_method": "fp8", "weight_block_size": [0, 3]}),
            fp8(inv, &[3, 3], &NINE),
            &["config.json", "[0,3]"],
        ),
        (
            json!({"quant_method": "fp8", "weight_block_size": [1u64 << 40, 3]}),
            fp8(inv, &[3, 3], &NINE),
            &["1099511627776"],
        ),
        (
            json!({"quant_method": "fp8", "weight_block_size": [-1, 3]}),
            fp8(inv, &[3, 3], &NINE),
            &["[-1,3]"],
        ),
        (
            json!({"quant_method": "fp8", "weight_block_size": "x"}),
            fp8(inv, &[3, 3], &NINE),
            &["found"],
        ),
        (
            Value::Null,
            fp8(inv, &[3, 3], &NINE),
            &["need a config.json"],
        ),
        (
            json!({"quant_method": "gptq", "bits": 4}),
            fp8(inv, &[3, 3], &NINE),
            &["quant_method `gptq`"],
        ),
        // Scales without values, values without scales, scales twice.
        (
            blocks(),
            with(
                fp8(inv, &[3, 3], &NINE),
                ("x.weight_scale_inv", Dtype::F32, vec![1, 1], f32s(&[1.0])),
            ),
            &["`x.weight_scale_inv`", "expected codes"],
        ),
        (
            blocks(),
            with(
                fp8(inv, &[3, 3], &NINE),
                ("x.weight", Dtype::F8_E4M3, vec![1, 1], vec![0]),
            ),
            &["`x.weight`", "expected a scale"],
        ),
        (
            blocks(),
            with(
                fp8(inv, &[3, 3], &NINE),
                (scale, Dtype::F32, vec![], f32s(&[1.0])),
            ),
            &["one tensor of scales"],
        ),
        (
            blocks(),
            vec![
                ("a.weight", Dtype::BF16, vec![1, 1], vec![0; 2]),
                ("a.weight_scale_inv", Dtype::F32, vec![1, 1], f32s(&[1.0])),
            ],
            &["`a.weight_scale_inv`", "expected codes"],
        ),
        (
            blocks(),
            fp8_of(Dtype::I32),
            &["floats, or exponents of two"],
        ),
        // Storages that are not read.
        (
            json!({"quant_method": "hqq"}),
            fp8("x", &[1], &[1.0]),
            &["quantised", "`hqq`", "dequantise it first"],
        ),
        (
            Value::Null,
            vec![("a.W_q", Dtype::U8, vec![2, 2], vec![0; 4])],
            &["`a.W_q`"],
        ),
        (
            json!({"quant_method": "compressed-tensors"}),
            vec![
                ("m.weight_packed", Dtype::U8, vec![1, 24], vec![0; 24]),
                ("m.weight_scale", Dtype::U8, vec![1, 1], vec![0]),
            ],
            &["shape [1, 2]"],
        ),
        (
            json!({"quant_method": "compressed-tensors"}),
            vec![
                ("m.compressed", Dtype::BF16, vec![2], vec![0; 4]),
                ("m.weight_packed", Dtype::I32, vec![1, 1], vec![0; 4]),
            ],
            &["`m.weight_shape`"],
        ),
        (
            Value::Null,
            with(
                fp8(scale, &[], &[1.0]),
                (
                    "model.layers.0.up.comfy_quant",
                    Dtype::U8,
                    vec![18],
                    br#"{"format":"nvfp4"}"#.to_vec(),
                ),
            ),
            &["float8_e4m3fn", "nvfp4"],
        ),
    ];
    for (settings, tensors, expected) in cases {
        let found = message(settings.clone(), tensors);
        for part in expected {
            assert!(found.contains(part), "{settings}: {part}: {found}");
        }
        assert!(found.contains("hint"), "{found}");
    }
}

/// FP8 whose scales are of another dtype.
fn fp8_of(dtype: Dtype) -> Vec<Tensor> {
    let mut tensors = fp8("model.layers.0.up.weight_scale_inv", &[3, 3], &NINE);
    tensors[1].1 = dtype;
    tensors
}

#[test]
fn scales_of_activations_are_left_out_with_a_note() {
    let mut tensors = fp8("model.layers.0.up.weight_scale", &[], &[2.0]);
    for name in [
        "model.layers.0.up.input_scale",
        "model.layers.0.attn.k_scale",
    ] {
        tensors.push((name, Dtype::F32, vec![], f32s(&[0.5])));
    }
    let model = open(
        json!({"quant_method": "modelopt", "quant_algo": "FP8"}),
        tensors,
    )
    .unwrap();
    assert_eq!(model.tensors().len(), 2);
    assert!(
        model.notes()[0].contains("2 scales of activations"),
        "{:?}",
        model.notes()
    );
}

#[test]
fn an_adapter_lies_on_decoded_values_as_on_any() {
    let folder = tempfile::tempdir().unwrap();
    let module = "base_model.model.model.layers.0.up";
    let header = json!({
        format!("{module}.lora_A.weight"): {"dtype": "F32", "shape": [2, 7], "data_offsets": [0, 56]},
        format!("{module}.lora_B.weight"): {"dtype": "F32", "shape": [5, 2], "data_offsets": [56, 96]},
    });
    let a: Vec<f32> = (0..14).map(|at| 0.1 * at as f32 - 0.5).collect();
    let b: Vec<f32> = (0..10).map(|at| 0.7 - 0.2 * at as f32).collect();
    let data = f32s(&[a.clone(), b.clone()].concat());
    write(
        &folder.path().join("adapter_model.safetensors"),
        &raw(&header.to_string(), &data),
    );
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3});
    write(
        &folder.path().join("adapter_config.json"),
        config.to_string().as_bytes(),
    );

    let model = open(
        blocks(),
        fp8("model.layers.0.up.weight_scale_inv", &[3, 3], &NINE),
    );
    let model = model.unwrap();
    let plain = values(&model, 0);
    let source = Arc::clone(model.source());
    let model = Checkpoint::new(
        "m",
        Location::local("m"),
        None,
        SidecarsFrom::Nothing,
        source,
    );
    let model = model.adapted(&Location::local(folder.path()), 1.0).unwrap();
    assert_eq!(model.bytes(0), None);
    let entry = &model.tensors()[0];
    assert_eq!((entry.dtype, entry.stored), (Dtype::BF16, Dtype::F8_E4M3));
    assert_eq!(model.bytes_read(0), 35 + 36);
    for (at, (found, plain)) in values(&model, 0).into_iter().zip(plain).enumerate() {
        let (row, column) = (at / 7, at % 7);
        let product: f64 = (0..2)
            .map(|rank| f64::from(b[row * 2 + rank]) * f64::from(a[rank * 7 + column]))
            .sum();
        let twin = plain + 1.5 * product;
        assert!((found - twin).abs() < 1e-12, "{at}: {found} is not {twin}");
    }
    // Tensors that the adapter does not change are unchanged.
    assert_eq!(model.bytes(1), Some([0x80, 0x3f, 0, 0x40].as_slice()));
}
