use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use errors::Refusal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::fixtures::{safetensors, write};
use super::super::locate::{Location, Locator};
use super::super::model_ref::ModelRef;
use super::super::reader::Checkpoint;
use super::super::remote::RemoteFile;
use super::super::scratch_file::{Origin, ScratchFile, ScratchUse};
use super::super::scratch_folder::ScratchFolder;

mod peft;

/// A tensor to be written: name, dtype, shape.
type Spec<'a> = (&'a str, &'a str, &'a [usize]);

const MODEL: [Spec<'static>; 5] = [
    ("model.embed_tokens.weight", "F32", &[7, 4]),
    ("model.layers.0.q.weight", "F32", &[4, 4]),
    ("model.layers.0.up.weight", "F32", &[6, 4]),
    ("model.layers.0.up.bias", "F32", &[6]),
    ("lm_head.weight", "F32", &[7, 4]),
];

const UP: [Spec<'static>; 2] = [
    (
        "base_model.model.model.layers.0.up.lora_A.weight",
        "F32",
        &[2, 4],
    ),
    (
        "base_model.model.model.layers.0.up.lora_B.weight",
        "F32",
        &[6, 2],
    ),
];

fn lora() -> Value {
    json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3})
}

fn with(mut config: Value, more: Value) -> Value {
    for (option, value) in more.as_object().unwrap() {
        config[option] = value.clone();
    }
    config
}

/// A folder with the model in `model` and the adapter in `adapter`.
fn folder(model: &[Spec<'_>], config: &Value, adapter: &[Spec<'_>], options: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| write(&folder.path().join(name), bytes);
    file("model/model.safetensors", &safetensors(model));
    file("model/config.json", config.to_string().as_bytes());
    file("adapter/adapter_model.safetensors", &safetensors(adapter));
    file(
        "adapter/adapter_config.json",
        options.to_string().as_bytes(),
    );
    folder
}

fn open(folder: &Path) -> Result<Checkpoint, String> {
    open_as(folder, "model+adapter")
}

fn open_as(folder: &Path, name: &str) -> Result<Checkpoint, String> {
    let locator = Locator {
        working_dir: folder.into(),
        ..Locator::default()
    };
    let model = ModelRef::parse(name).unwrap();
    let location = locator
        .locate(&model)
        .map_err(|e| errors::in_one_line(&e))?;
    Checkpoint::open(name, &location).map_err(|e| errors::in_one_line(&e))
}

fn attach(adapter: &[Spec<'_>], options: Value) -> Result<Checkpoint, String> {
    open(folder(&MODEL, &json!({"model_type": "llama"}), adapter, &options).path())
}

fn values(model: &Checkpoint, name: &str) -> Vec<f64> {
    let index = model.find(name).unwrap();
    let mut out = vec![0f64; model.tensors()[index].elements() as usize];
    let elements = model.elements(index).unwrap();
    numeric::Fill::<f64>::fill(elements.as_ref(), 0, &mut out).unwrap();
    out
}

#[test]
fn what_is_adapted_has_values_and_no_bytes() {
    let model = attach(&UP, lora()).unwrap();
    let up = model.find("model.layers.0.up.weight").unwrap();
    let q = model.find("model.layers.0.q.weight").unwrap();
    assert!(model.bytes(up).is_none());
    assert!(model.bytes(q).is_some());
    assert_eq!(model.stored(up).map(<[u8]>::len), Some(96));
    let adapter = model.only_adapter().unwrap();
    assert_eq!(adapter.changed().collect::<Vec<_>>(), [up]);
    assert_eq!(
        (adapter.ranks(), adapter.is_dora(), model.held()),
        (Some((2, 2)), false, 0)
    );
    assert_eq!(model.shards().len(), 2, "the adapter's file is watched too");
    assert!(model.notes().is_empty(), "{:?}", model.notes());
}

#[test]
fn a_model_without_the_adapter_is_as_it_was() {
    let folder = folder(&MODEL, &json!({}), &UP, &lora());
    let location = Location::local(folder.path().join("model"));
    let model = Checkpoint::open("model", &location).unwrap();
    assert!(model.only_adapter().is_none());
    assert_eq!(model.shards().len(), 1);
    assert!((0..5).all(|tensor| model.bytes(tensor).is_some()));
}

#[test]
fn an_adapter_that_does_not_fit_is_an_error_that_names_it() {
    let a = UP[0];
    let b = UP[1];
    let at =
        |name: &'static str, shape: &'static [usize]| -> Spec<'static> { (name, "F32", shape) };
    let up_a = "base_model.model.model.layers.0.up.lora_A.weight";
    let up_b = "base_model.model.model.layers.0.up.lora_B.weight";
    let magnitude = "base_model.model.model.layers.0.up.lora_magnitude_vector";
    let dora = || with(lora(), json!({"use_dora": true}));
    let cases: Vec<(Vec<Spec<'_>>, Value, &[&str])> = vec![
        (
            vec![a],
            lora(),
            &["lora_A.weight` is there without its lora_B"],
        ),
        (
            vec![b],
            lora(),
            &["lora_B.weight` is there without its lora_A"],
        ),
        (
            vec![at(magnitude, &[6])],
            lora(),
            &["without its lora_A and lora_B"],
        ),
        (
            vec![at(up_a, &[3, 4]), b],
            lora(),
            &["has shape [3, 4], expected [2, ...]", "rank 2"],
        ),
        (
            vec![a, at(up_b, &[6, 3])],
            lora(),
            &["has shape [6, 3], expected [..., 2]"],
        ),
        (
            vec![at(up_a, &[2, 5]), b],
            lora(),
            &["has shape [2, 5]", "of shape [6, 4]"],
        ),
        (vec![at(up_a, &[2]), b], lora(), &["has shape [2]"]),
        (vec![at(up_a, &[]), b], lora(), &["has shape []"]),
        (
            vec![a, at(up_b, &[6, 2, 2])],
            lora(),
            &["has shape [6, 2, 2]"],
        ),
        (
            vec![a, b],
            with(lora(), json!({"r": 4})),
            &["as adapter_config.json gives `model.layers.0.up` rank 4"],
        ),
        (
            vec![a, b],
            with(lora(), json!({"rank_pattern": {"up": 1}})),
            &["gives `model.layers.0.up` rank 1"],
        ),
        (
            vec![(up_a, "I64", &[2, 4]), b],
            lora(),
            &["lora_A.weight` is I64, expected a float"],
        ),
        (
            vec![
                a,
                b,
                at(
                    "base_model.model.model.layers.0.up.lora_A.x.weight",
                    &[2, 4],
                ),
            ],
            lora(),
            &["are both that part of the same module"],
        ),
        (
            vec![
                a,
                b,
                at(
                    "base_model.model.model.layers.0.up.lora_embedding_A",
                    &[2, 4],
                ),
            ],
            lora(),
            &["lora_embedding_A` is there without its lora_embedding_B"],
        ),
        (
            vec![
                at("base_model.model.model.layers.1.up.lora_A.weight", &[2, 4]),
                at("base_model.model.model.layers.1.up.lora_B.weight", &[6, 2]),
            ],
            lora(),
            &[
                "`model.layers.1.up.weight`, which the model does not have",
                "`model.layers.0.up.weight`",
            ],
        ),
        (
            vec![at("base_model.model.score.weight", &[2, 4])],
            lora(),
            &["`score.weight`"],
        ),
        (
            vec![a, b, at("base_model.model.q.lora_E", &[2])],
            lora(),
            &["q.lora_E` is no part"],
        ),
        (vec![a, b], dora(), &["without its lora_magnitude_vector"]),
        (
            vec![a, b, at(magnitude, &[6])],
            lora(),
            &["though `use_dora` is not set"],
        ),
        (
            vec![a, b, at(magnitude, &[4])],
            dora(),
            &["has shape [4], expected [6]"],
        ),
        (
            vec![a, b, at(magnitude, &[3, 2])],
            dora(),
            &["has shape [3, 2], expected [6]"],
        ),
        (
            vec![at("base_model.model.lm_head.weight", &[9, 4])],
            lora(),
            &[
                "rows of the new tokens for `model.embed_tokens.weight` too",
                "resize_token_embeddings",
            ],
        ),
        (
            vec![("base_model.model.lm_head.weight", "I32", &[7, 4])],
            lora(),
            &["is I32, expected F32"],
        ),
        (
            vec![at("base_model.model.model.layers.0.up.lora_B.bias", &[6])],
            lora(),
            &["without its lora_A and lora_B"],
        ),
        (
            vec![
                at("base_model.model.model.layers.0.q.lora_A.weight", &[2, 4]),
                at("base_model.model.model.layers.0.q.lora_B.weight", &[4, 2]),
                at("base_model.model.model.layers.0.q.lora_B.bias", &[4]),
            ],
            lora(),
            &["q.lora_B.bias` is for tensor `model.layers.0.q.bias`"],
        ),
        (
            vec![at(
                "base_model.model.model.layers.0.up.experts.base_layer.lora_A.weight",
                &[2, 4],
            )],
            lora(),
            &["one of several parameters of a module"],
        ),
    ];
    for (adapter, options, parts) in cases {
        let message = attach(&adapter, options).unwrap_err();
        for part in parts {
            assert!(message.contains(part), "expected {part:?} in: {message}");
        }
        assert!(message.contains("model `model+adapter`"), "{message}");
        assert!(
            message.contains("adapter/adapter_model.safetensors"),
            "{message}"
        );
        assert!(message.contains("; hint: "), "{message}");
    }
}

#[test]
fn hostile_files_are_errors() {
    let model = json!({});
    let check = |change: &dyn Fn(&Path), parts: &[&str]| {
        let folder = folder(&MODEL, &model, &UP, &lora());
        change(&folder.path().join("adapter"));
        let message = open(folder.path()).unwrap_err();
        for part in parts {
            assert!(message.contains(part), "expected {part:?} in: {message}");
        }
    };
    let remove =
        |name: &'static str| move |folder: &Path| std::fs::remove_file(folder.join(name)).unwrap();
    let put = |name: &'static str, text: &'static str| {
        move |folder: &Path| write(&folder.join(name), text.as_bytes())
    };
    check(
        &remove("adapter_config.json"),
        &["no adapter_config.json in", "save_pretrained"],
    );
    check(
        &remove("adapter_model.safetensors"),
        &["no adapter_model.safetensors in", "incomplete"],
    );
    check(
        &|folder| {
            remove("adapter_model.safetensors")(folder);
            put("adapter_model.bin", "x")(folder);
        },
        &["adapter_model.bin", "no file of torch.save"],
    );
    for text in ["", "[]", "{", "{\"r\": NaN}", "{\"lora_alpha\": 1e999}"] {
        check(
            &put("adapter_config.json", text),
            &["adapter_config.json is malformed"],
        );
    }
    for (option, value) in [
        ("r", "0"),
        ("r", "18446744073709551615"),
        ("lora_alpha", "\"NaN\""),
    ] {
        check(
            &|folder| {
                let options = with(
                    lora(),
                    json!({option: serde_json::from_str::<Value>(value).unwrap()}),
                );
                write(
                    &folder.join("adapter_config.json"),
                    options.to_string().as_bytes(),
                );
            },
            &["adapter_config.json", option],
        );
    }
    check(&put("adapter_model.safetensors", "xx"), &["truncated"]);
    check(
        &|folder| {
            std::fs::remove_dir_all(folder).unwrap();
            write(folder, b"a file");
        },
        &["no adapter_config.json", "name the adapter's folder"],
    );
    // A file that claims more data than it has.
    let lying = r#"{"m.lora_A.weight":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}"#;
    let bytes = super::super::fixtures::raw(lying, &[0; 16]);
    check(
        &|folder| write(&folder.join("adapter_model.safetensors"), &bytes),
        &["truncated"],
    );
    #[cfg(unix)]
    check(
        &|folder| {
            remove("adapter_config.json")(folder);
            std::os::unix::fs::symlink("/dev/zero", folder.join("adapter_config.json")).unwrap();
        },
        &["expected a regular file"],
    );
}

#[test]
fn square_matrices_lie_as_their_model_or_their_neighbours_do() {
    // The fixture's values count up, so that a matrix differs from its transpose.
    let model = [
        ("transformer.h.0.attn.c_attn.weight", "F8_E4M3", &[2, 6][..]),
        ("transformer.h.0.attn.c_proj.weight", "F8_E4M3", &[2, 2]),
    ];
    let c_proj = [
        (
            "base_model.model.transformer.h.0.attn.c_proj.lora_A.weight",
            "F8_E4M3",
            &[1, 2][..],
        ),
        (
            "base_model.model.transformer.h.0.attn.c_proj.lora_B.weight",
            "F8_E4M3",
            &[2, 1],
        ),
    ];
    let c_attn = [
        (
            "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight",
            "F8_E4M3",
            &[1, 2][..],
        ),
        (
            "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight",
            "F8_E4M3",
            &[6, 1],
        ),
    ];
    let both: Vec<Spec<'_>> = c_proj.iter().chain(&c_attn).copied().collect();
    let options = |flag: bool| json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1e6, "fan_in_fan_out": flag});
    let delta = |config: Value, adapter: &[Spec<'_>], flag| {
        let folder = folder(&model, &config, adapter, &options(flag));
        let with = open(folder.path()).unwrap();
        values(&with, "transformer.h.0.attn.c_proj.weight")
    };
    let gpt2 = json!({"model_type": "gpt2"});
    let other = json!({"model_type": "novel"});
    let stored_out_in = delta(other.clone(), &c_proj, false);
    let stored_in_out = delta(other.clone(), &c_proj, true);
    assert_ne!(stored_out_in, stored_in_out);
    // GPT-2's c_proj is a Conv1D whatever the flag says; PEFT leaves the flag at the value for its last module.
    assert_eq!(delta(gpt2.clone(), &c_proj, false), stored_in_out);
    assert_eq!(delta(gpt2, &c_proj, true), stored_in_out);
    // c_attn, which is not square, shows how this model's matrices are stored.
    let shown = delta(other.clone(), &both, false);
    assert_eq!(shown, delta(other, &both, true));
    assert_eq!(shown, stored_in_out);
}

#[test]
fn replaced_tensors_keep_the_models_type() {
    let head = "base_model.model.lm_head.modules_to_save.default.weight";
    let model = attach(&[(head, "F32", &[7, 4])], lora()).unwrap();
    let index = model.find("lm_head.weight").unwrap();
    // The fixture's bytes count up from zero in each file.
    let expected: Vec<u8> = (0..112).collect();
    assert_eq!(model.bytes(index), Some(expected.as_slice()));
    assert_eq!(model.only_adapter().unwrap().ranks(), None);

    let model = attach(&[(head, "BF16", &[7, 4])], lora()).unwrap();
    let index = model.find("lm_head.weight").unwrap();
    assert_eq!(model.bytes(index), None, "F32 can't be copied from BF16");
    assert_eq!(
        (model.tensors()[index].len, model.bytes_read(index)),
        (112, 56)
    );
    let mut narrow = vec![0f64; 28];
    let bytes: Vec<u8> = (0..56).collect();
    numeric::FloatType::Bf16.decode(&bytes, &mut narrow);
    assert_eq!(values(&model, "lm_head.weight"), narrow);
}

const TIED: [Spec<'static>; 2] = [
    ("model.embed_tokens.weight", "F32", &[7, 4]),
    ("model.layers.0.q.weight", "F32", &[4, 4]),
];
const HEAD: [Spec<'static>; 2] = [
    ("base_model.model.lm_head.lora_A.weight", "F32", &[2, 4]),
    ("base_model.model.lm_head.lora_B.weight", "F32", &[7, 2]),
];
const EMBEDDING: [Spec<'static>; 2] = [
    (
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "F32",
        &[2, 7],
    ),
    (
        "base_model.model.model.embed_tokens.lora_embedding_B",
        "F32",
        &[4, 2],
    ),
];

fn tied(more: Value) -> Value {
    let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": true});
    with(config, more)
}

#[test]
fn a_tied_pair_of_which_one_is_adapted_is_untied() {
    let both: Vec<Spec<'_>> = HEAD.iter().chain(&EMBEDDING).copied().collect();
    let changed = |adapter: &[Spec<'_>], config: Value, options: Value| {
        let folder = folder(&TIED, &config, adapter, &options);
        let model = open(folder.path()).unwrap();
        let names: Vec<String> = (model.only_adapter().unwrap().changed())
            .map(|tensor| model.tensors()[tensor].name.clone())
            .collect();
        let tie = model.config().unwrap().tie_word_embeddings();
        let head = model
            .find("lm_head.weight")
            .map(|head| model.stored(head).unwrap().to_vec());
        let embedding = model.stored(0).unwrap().to_vec();
        assert!(head.as_ref().is_none_or(|head| *head == embedding));
        (names, tie, head.is_some(), model.notes().join("\n"))
    };
    let (embed, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let (names, tie, untied, notes) = changed(&HEAD, tied(json!({})), lora());
    assert_eq!((names, tie, untied), (vec![head.into()], Some(false), true));
    assert!(notes.contains("untied"), "{notes}");
    let (names, tie, untied, notes) = changed(&EMBEDDING, tied(json!({})), lora());
    assert_eq!(
        (names, tie, untied),
        (vec![embed.into()], Some(false), true)
    );
    assert!(notes.contains("untied"), "{notes}");
    let (names, tie, untied, _) = changed(&both, tied(json!({})), lora());
    assert_eq!(
        (names, tie, untied),
        (vec![embed.into(), head.into()], Some(false), true)
    );
    // Where the config says nothing, a decoder without a head is tied.
    let (names, tie, untied, _) =
        changed(&HEAD, tied(json!({"tie_word_embeddings": null})), lora());
    assert_eq!((names, tie, untied), (vec![head.into()], Some(false), true));
    // One update for both.
    let together = || with(lora(), json!({"ensure_weight_tying": true}));
    for adapter in [&both[..], &EMBEDDING] {
        let (names, tie, untied, notes) = changed(adapter, tied(json!({})), together());
        assert_eq!(
            (names, tie, untied),
            (vec![embed.into()], Some(true), false)
        );
        assert!(notes.is_empty(), "{notes}");
    }
    // A head with an unknown name changes together with its embedding.
    let other = tied(json!({"architectures": ["NovelForConditionalGeneration"]}));
    let (names, tie, untied, notes) = changed(&EMBEDDING, other, lora());
    assert_eq!(
        (names, tie, untied),
        (vec![embed.into()], Some(true), false)
    );
    assert!(notes.contains("both change"), "{notes}");
}

#[test]
fn a_pair_that_can_not_be_untied_is_an_error() {
    let encoder_decoder = tied(json!({"is_encoder_decoder": true}));
    let message = open(folder(&TIED, &encoder_decoder, &HEAD, &lora()).path()).unwrap_err();
    assert!(
        message.contains("an encoder-decoder computes otherwise"),
        "{message}"
    );
    let larger = [
        HEAD[0],
        ("base_model.model.lm_head.lora_B.weight", "F32", &[9, 2][..]),
    ];
    let message = open(folder(&TIED, &tied(json!({})), &larger, &lora()).path()).unwrap_err();
    assert!(message.contains("were tokens added?"), "{message}");
    // Untied by its config and without a head: not repaired here.
    let untied = tied(json!({"tie_word_embeddings": false}));
    let message = open(folder(&TIED, &untied, &HEAD, &lora()).path()).unwrap_err();
    assert!(
        message.contains("`lm_head.weight`, which the model does not have"),
        "{message}"
    );
}

#[test]
fn what_is_odd_is_noted() {
    let options = with(
        lora(),
        json!({"base_model_name_or_path": "org/Other-1B", "use_novelty": true}),
    );
    let notes = attach(&UP, options).unwrap().notes().join("\n");
    assert!(notes.contains("trained on `org/Other-1B`"), "{notes}");
    assert!(notes.contains("`use_novelty` is not known"), "{notes}");
    let same = with(
        lora(),
        json!({"base_model_name_or_path": "some/where/Model/"}),
    );
    assert!(attach(&UP, same).unwrap().notes().is_empty());

    let other = [
        (
            "base_model.model.language_model.layers.0.up.lora_A.weight",
            "F32",
            &[2, 4][..],
        ),
        (
            "base_model.model.language_model.layers.0.up.lora_B.weight",
            "F32",
            &[6, 2],
        ),
    ];
    let notes = attach(&other, lora()).unwrap().notes().join("\n");
    assert!(
        notes.contains("`language_model.` are taken for the model's that start with `model.`"),
        "{notes}"
    );
}

/// A file of F32 tensors with these values.
fn file(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, shape, values) in tensors {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        let start = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert((*name).into(), entry);
    }
    super::super::fixtures::raw(&Value::Object(header).to_string(), &data)
}

/// `W + 1.5 B A` with values computed by hand, for each way that a tensor is adapted.
#[test]
fn updates_by_hand() {
    let model = file(&[
        ("up.weight", &[2, 2], &[1.0, 2.0, 3.0, 4.0]),
        ("up.bias", &[2], &[10.0, 20.0]),
        ("embed_tokens.weight", &[2, 1], &[5.0, 6.0]),
        ("conv.weight", &[1, 2, 1, 1], &[7.0, 8.0]),
        ("norm.weight", &[1], &[9.0]),
    ]);
    let adapter = file(&[
        ("base_model.model.up.lora_A.weight", &[1, 2], &[1.0, 10.0]),
        ("base_model.model.up.lora_B.weight", &[2, 1], &[2.0, 4.0]),
        ("base_model.model.up.lora_B.bias", &[2], &[1.0, 2.0]),
        (
            "base_model.model.embed_tokens.lora_embedding_A",
            &[1, 2],
            &[1.0, -1.0],
        ),
        (
            "base_model.model.embed_tokens.lora_embedding_B",
            &[1, 1],
            &[2.0],
        ),
        (
            "base_model.model.embed_tokens.base_layer.weight",
            &[2, 1],
            &[50.0, 60.0],
        ),
        (
            "base_model.model.conv.lora_A.weight",
            &[1, 2, 1, 1],
            &[2.0, 4.0],
        ),
        ("base_model.model.conv.lora_B.weight", &[1, 1, 1, 1], &[1.0]),
        ("base_model.model.norm.weight", &[1], &[-9.0]),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| write(&folder.path().join(name), bytes);
    put("model/model.safetensors", &model);
    put("adapter/adapter_model.safetensors", &adapter);
    let options = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1.5});
    put(
        "adapter/adapter_config.json",
        options.to_string().as_bytes(),
    );
    let model = open(folder.path()).unwrap();
    // 1.5 * [[2, 20], [4, 40]] is added.
    assert_eq!(values(&model, "up.weight"), [4.0, 32.0, 9.0, 64.0]);
    assert_eq!(values(&model, "up.bias"), [11.5, 23.0]);
    // The adapter's own copy of the embedding, and 1.5 * [2, -2].
    assert_eq!(values(&model, "embed_tokens.weight"), [53.0, 57.0]);
    assert_eq!(values(&model, "conv.weight"), [10.0, 14.0]);
    assert_eq!(values(&model, "norm.weight"), [-9.0]);
}

/// PEFT shares one of the factors between the groups, so their product has not the shape of the kernel.
#[test]
fn updates_of_grouped_convolutions_are_refused_as_what_they_are() {
    let conv = |shape| safetensors(&[("conv.weight", "F32", shape)]);
    let adapter = |a, b| {
        safetensors(&[
            ("base_model.model.conv.lora_A.weight", "F32", a),
            ("base_model.model.conv.lora_B.weight", "F32", b),
        ])
    };
    let cases: [(&[usize], &[usize], &[usize]); 2] = [
        // The ranks of `B` are those of one of two groups.
        (&[4, 1, 3, 3], &[2, 2, 3, 3], &[4, 1, 1, 1]),
        // `A` sees the inputs of all four.
        (&[4, 2, 1], &[2, 8, 1], &[4, 2, 1]),
    ];
    for (kernel, a, b) in cases {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| write(&folder.path().join(name), bytes);
        put("model/model.safetensors", &conv(kernel));
        put("adapter/adapter_model.safetensors", &adapter(a, b));
        let options = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2});
        put(
            "adapter/adapter_config.json",
            options.to_string().as_bytes(),
        );
        let message = open(folder.path()).unwrap_err();
        for part in [
            "`conv.weight` is a grouped convolution",
            "merge the adapter with PEFT",
        ] {
            assert!(message.contains(part), "{message}");
        }
        assert!(!message.contains("download"), "{message}");
    }
}

/// Where the bytes of a file are that is fetched later.
#[derive(Debug)]
struct Elsewhere(Vec<u8>, Arc<AtomicUsize>);

impl Origin for Elsewhere {
    fn name(&self) -> String {
        "the adapter".to_owned()
    }

    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>, Refusal> {
        Ok(self.0[range.start as usize..range.end as usize].to_vec())
    }

    fn fetch(&self, file: &File, _: &Path, _: &(dyn Fn() -> bool + Sync)) -> Result<(), Refusal> {
        self.1.fetch_add(1, SeqCst);
        file.write_all_at(&self.0, 0)
            .map_err(|error| Refusal::new(error.to_string()))
    }
}

/// Only models are fetched while they are used: of an adapter the header alone would be read, and zeros.
#[test]
fn an_adapter_that_lies_elsewhere_is_fetched_before_it_is_read() {
    let folder = folder(&MODEL, &json!({"model_type": "llama"}), &UP, &lora());
    let name = "model.layers.0.up.weight";
    let bits = |model: &Checkpoint| -> Vec<u64> {
        values(model, name).into_iter().map(f64::to_bits).collect()
    };
    let expected = bits(&open(folder.path()).unwrap());
    let weights = folder.path().join("adapter/adapter_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;

    let locator = Locator {
        working_dir: folder.path().into(),
        ..Locator::default()
    };
    let model = ModelRef::parse("model+adapter").unwrap();
    let mut location = locator.locate(&model).unwrap();
    let fetched = Arc::new(AtomicUsize::new(0));
    let scratch = Arc::new(ScratchFolder::new(folder.path()).unwrap());
    let origin = Box::new(Elsewhere(bytes.clone(), Arc::clone(&fetched)));
    let used = ScratchUse::Fetched(scratch);
    let file = ScratchFile::new(weights.clone(), &bytes[..header], origin, used).unwrap();
    let remote: Vec<(PathBuf, Arc<dyn RemoteFile>)> = vec![(weights, Arc::new(file))];
    location.adapters[0].location.remote = remote.into_iter().collect();
    let opened = Checkpoint::open("model+adapter", &location).unwrap();
    assert_eq!(bits(&opened), expected);
    Checkpoint::open("model+adapter", &location).unwrap();
    assert_eq!(fetched.load(SeqCst), 1);
}
