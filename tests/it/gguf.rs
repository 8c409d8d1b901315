//! `weld export gguf`: the file read back by a reader of its own, values by hand, refusals that leave nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use safetensors::Dtype;
use serde_json::{Value, json};
use weldment::checkpoint::{Checkpoint, Locator, ModelRef};
use weldment::gguf::{Encoding, Export, Options};
use weldment::run::destination::{Disk, Step, Watch};
use weldment::run::{ExportError, write_gguf};

use crate::fixtures::{Bench, Spec, floats, noise, with, without};

/// A tensor of a file: its type, its shape as the file has it, its bytes.
pub(crate) type Tensor = (u32, Vec<u64>, Vec<u8>);

/// A reader that trusts nothing of the writer but the format.
struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let taken = self.bytes[self.at..self.at + N].try_into().unwrap();
        self.at += N;
        taken
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn text(&mut self) -> String {
        let len = self.u64() as usize;
        let text = String::from_utf8(self.bytes[self.at..self.at + len].to_vec()).unwrap();
        self.at += len;
        text
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            0 => self.take::<1>()[0].into(),
            4 => self.u32().into(),
            5 => i32::from_le_bytes(self.take()).into(),
            6 => f32::from_le_bytes(self.take()).into(),
            7 => (self.take::<1>() == [1]).into(),
            8 => self.text().into(),
            9 => {
                let (kind, len) = (self.u32(), self.u64());
                (0..len).map(|_| self.value(kind)).collect()
            }
            other => panic!("type {other}"),
        }
    }
}

/// The metadata and tensors of a file.
pub(crate) fn read(path: &Path) -> (BTreeMap<String, Value>, BTreeMap<String, Tensor>) {
    let bytes = fs::read(path).unwrap();
    let mut reader = Reader {
        bytes: &bytes,
        at: 0,
    };
    assert_eq!(&reader.take::<4>(), b"GGUF");
    assert_eq!(reader.u32(), 3);
    let (tensors, keys) = (reader.u64(), reader.u64());
    let metadata = (0..keys).map(|_| {
        let (key, kind) = (reader.text(), reader.u32());
        (key, reader.value(kind))
    });
    let metadata = metadata.collect();
    let infos: Vec<(String, Vec<u64>, u32, u64)> = (0..tensors)
        .map(|_| {
            let (name, dimensions) = (reader.text(), reader.u32());
            let shape = (0..dimensions).map(|_| reader.u64()).collect();
            (name, shape, reader.u32(), reader.u64())
        })
        .collect();
    let data = reader.at.next_multiple_of(32);
    let found = infos.into_iter().map(|(name, shape, kind, offset)| {
        let count: u64 = shape.iter().product();
        let len = match kind {
            0 => 4 * count,
            1 | 30 => 2 * count,
            8 => count / 32 * 34,
            other => panic!("type {other}"),
        };
        assert_eq!(offset % 32, 0);
        let start = data + offset as usize;
        (
            name,
            (kind, shape, bytes[start..start + len as usize].to_vec()),
        )
    });
    (metadata, found.collect())
}

/// A tensor's entry in the header without its place, and its bytes.
pub(crate) type Part = (Vec<u8>, Vec<u8>);

/// The metadata of a file of F32 as it stands, with the number of its keys, and the tensors.
pub(crate) fn parts_of(bytes: &[u8]) -> ((Vec<u8>, u64), Vec<Part>) {
    let mut reader = Reader { bytes, at: 8 };
    let (tensors, keys) = (reader.u64(), reader.u64());
    let start = reader.at;
    for _ in 0..keys {
        reader.text();
        let kind = reader.u32();
        reader.value(kind);
    }
    let metadata = bytes[start..reader.at].to_vec();
    let entries: Vec<(Vec<u8>, u64, u64)> = (0..tensors)
        .map(|_| {
            let start = reader.at;
            reader.text();
            let dimensions = reader.u32();
            let count: u64 = (0..dimensions).map(|_| reader.u64()).product();
            assert_eq!(reader.u32(), 0);
            let entry = bytes[start..reader.at].to_vec();
            (entry, reader.u64(), count * 4)
        })
        .collect();
    let data = reader.at.next_multiple_of(32);
    let parts = entries.into_iter().map(|(entry, offset, len)| {
        let start = data + offset as usize;
        (entry, bytes[start..start + len as usize].to_vec())
    });
    ((metadata, keys), parts.collect())
}

fn as_f32(bytes: &[u8]) -> Vec<f32> {
    let values = bytes.chunks_exact(4);
    values
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
        .collect()
}

fn config() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 1, "max_position_embeddings": 64, "vocab_size": 6,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "eos_token_id": 4
    })
}

fn spec(name: &str, seed: u64, shape: &[usize]) -> Spec {
    floats(
        name,
        Dtype::BF16,
        shape,
        noise(seed, shape.iter().product()),
    )
}

fn specs() -> Vec<Spec> {
    vec![
        spec("lm_head.weight", 1, &[6, 32]),
        spec("model.embed_tokens.weight", 2, &[6, 32]),
        spec("model.layers.0.input_layernorm.weight", 3, &[32]),
        spec("model.layers.0.self_attn.k_proj.weight", 4, &[16, 32]),
        spec("model.layers.0.self_attn.q_proj.weight", 5, &[32, 32]),
        spec("model.norm.weight", 6, &[32]),
    ]
}

fn model(bench: &Bench, config: &Value, specs: &[Spec]) {
    bench.model("m", config, specs);
    tokenizer(bench, "m");
}

pub(crate) fn tokenizer(bench: &Bench, folder: &str) {
    let added = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "special": true, "normalized": false, "single_word": false,
            "lstrip": false, "rstrip": false,
        })
    };
    let begin = "<|begin|>";
    let single = json!([
        {"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
    ]);
    let tokenizer = json!({
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
        "added_tokens": [added(3, begin), added(4, "<|end|>")],
        "post_processor": {
            "type": "TemplateProcessing", "single": single, "pair": single,
            "special_tokens": {begin: {"id": begin, "ids": [3], "tokens": [begin]}},
        },
    });
    bench.file(&format!("{folder}/tokenizer.json"), tokenizer.to_string());
    bench.file(
        &format!("{folder}/tokenizer_config.json"),
        r#"{"bos_token": "<|begin|>", "chat_template": "{{ x }}"}"#,
    );
}

const EXPORT: [&str; 6] = [
    "export",
    "gguf",
    "m",
    "m.gguf",
    "--pre-tokenizer",
    "llama-bpe",
];

fn exported(bench: &Bench, kind: &str) -> (BTreeMap<String, Value>, BTreeMap<String, Tensor>) {
    bench.passes(&[&EXPORT[..], &["--force", "--type", kind]].concat());
    read(&bench.path("m.gguf"))
}

#[test]
fn metadata_is_what_llama_cpp_reads() {
    let bench = Bench::new();
    let mut config = config();
    config["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    model(&bench, &config, &specs());
    let (metadata, tensors) = exported(&bench, "bf16");
    for (key, value) in [
        ("general.architecture", json!("llama")),
        ("general.file_type", json!(32)),
        ("llama.block_count", json!(1)),
        ("llama.attention.head_count_kv", json!(2)),
        ("llama.attention.key_length", json!(8)),
        ("llama.rope.dimension_count", json!(8)),
        ("llama.rope.freq_base", json!(500000.0)),
        ("llama.vocab_size", json!(6)),
        ("tokenizer.ggml.model", json!("gpt2")),
        ("tokenizer.ggml.pre", json!("llama-bpe")),
        (
            "tokenizer.ggml.tokens",
            json!(["a", "b", "ab", "<|begin|>", "<|end|>", "[PAD5]"]),
        ),
        ("tokenizer.ggml.token_type", json!([1, 1, 1, 3, 3, 5])),
        ("tokenizer.ggml.merges", json!(["a b"])),
        ("tokenizer.ggml.bos_token_id", json!(3)),
        ("tokenizer.ggml.eos_token_id", json!(4)),
        ("tokenizer.ggml.add_bos_token", json!(true)),
        ("tokenizer.chat_template", json!("{{ x }}")),
    ] {
        assert_eq!(metadata.get(key), Some(&value), "{key}");
    }
    // Base 500000 and heads of 8: waves of 6.3, 167, 4443 and 118144 tokens. Up to 64/4 nothing changes, from 64 on all.
    let (kind, shape, bytes) = &tensors["rope_freqs.weight"];
    assert_eq!((*kind, &shape[..]), (0, &[4][..]));
    assert_eq!(as_f32(bytes), [1.0, 8.0, 8.0, 8.0]);
}

#[test]
fn values_are_the_models_with_rows_as_llama_cpp_turns_them() {
    let bench = Bench::new();
    model(&bench, &config(), &specs());
    let (_, tensors) = exported(&bench, "f32");
    let values = |name: &str| {
        let (kind, _, bytes) = &tensors[name];
        assert_eq!(*kind, 0);
        as_f32(bytes)
    };
    // Through BF16, as the model holds them.
    let held = |seed, count| {
        noise(seed, count)
            .map(|value| half::bf16::from_f64(value).to_f32())
            .collect::<Vec<_>>()
    };
    assert_eq!(values("output.weight"), held(1, 6 * 32));
    assert_eq!(values("blk.0.attn_norm.weight"), held(3, 32));
    // Heads of eight rows: 0, 4, 1, 5, 2, 6, 3, 7.
    for (name, seed, rows) in [
        ("blk.0.attn_q.weight", 5, 32),
        ("blk.0.attn_k.weight", 4, 16),
    ] {
        let (found, held) = (values(name), held(seed, rows * 32));
        for row in 0..rows {
            let source = row / 8 * 8 + [0, 4, 1, 5, 2, 6, 3, 7][row % 8];
            assert_eq!(
                found[row * 32..][..32],
                held[source * 32..][..32],
                "{name} {row}"
            );
        }
    }
    assert_eq!(tensors["token_embd.weight"].1, [32, 6]);
}

#[test]
fn eight_bits_are_for_matrices_of_whole_blocks() {
    let bench = Bench::new();
    let ones = floats(
        "model.layers.0.mlp.up_proj.weight",
        Dtype::F32,
        &[1, 32],
        (0..32).map(|i| f64::from(i) - 16.0),
    );
    let narrow = spec("model.layers.0.mlp.down_proj.weight", 9, &[32, 48]);
    model(&bench, &config(), &with(with(specs(), ones), narrow));
    let (_, tensors) = exported(&bench, "q8_0");
    let kind = |name: &str| tensors[name].0;
    assert_eq!(kind("output.weight"), 8);
    assert_eq!(kind("blk.0.attn_norm.weight"), 0);
    assert_eq!(kind("blk.0.ffn_down.weight"), 1);
    // The largest is 16: the scale is 16/127, 0x3008 in F16, and i - 16 becomes (i - 16) * 127 / 16, to nearest.
    let (_, _, bytes) = &tensors["blk.0.ffn_up.weight"];
    assert_eq!(bytes[..2], half::f16::from_f64(16.0 / 127.0).to_le_bytes());
    let expected = (0..32).map(|i| (f64::from(i - 16) * 127.0 / 16.0).round() as i8 as u8);
    assert_eq!(bytes[2..], expected.collect::<Vec<u8>>());
}

#[test]
fn experts_lie_one_after_the_other() {
    let bench = Bench::new();
    let mut config = config();
    config["model_type"] = "mixtral".into();
    config["num_local_experts"] = 2.into();
    config["num_experts_per_tok"] = 1.into();
    let mut specs = specs();
    for (expert, seed) in [(1, 21), (0, 20)] {
        let name = format!("model.layers.0.block_sparse_moe.experts.{expert}.w2.weight");
        specs = with(specs, spec(&name, seed, &[32, 48]));
    }
    specs = with(
        specs,
        spec("model.layers.0.block_sparse_moe.gate.weight", 22, &[2, 32]),
    );
    model(&bench, &config, &specs);
    let (metadata, tensors) = exported(&bench, "bf16");
    assert_eq!(metadata["llama.expert_count"], 2);
    assert_eq!(metadata["llama.expert_used_count"], 1);
    let (kind, shape, bytes) = &tensors["blk.0.ffn_down_exps.weight"];
    assert_eq!((*kind, &shape[..]), (30, &[48, 32, 2][..]));
    let held = [20, 21].into_iter().flat_map(|seed| noise(seed, 32 * 48));
    let held = held.flat_map(|value| half::bf16::from_f64(value).to_le_bytes());
    assert_eq!(*bytes, held.collect::<Vec<u8>>());
    assert_eq!(tensors["blk.0.ffn_gate_inp.weight"].0, 0);
}

/// A config with these fields changed, and a null taken out.
fn changed(changes: Value) -> Value {
    let mut config = config();
    for (name, value) in changes.as_object().unwrap() {
        match value.is_null() {
            true => _ = config.as_object_mut().unwrap().remove(name),
            false => config[name] = value.clone(),
        }
    }
    config
}

/// A message of protobuf: a piece of a SentencePiece model.
fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
    let mut message = vec![0x0a, text.len() as u8];
    message.extend(text.as_bytes());
    message.push(0x15);
    message.extend(score.to_le_bytes());
    message.extend([0x18, kind]);
    [&[0x0a, message.len() as u8], &message[..]].concat()
}

fn pieces() -> Vec<u8> {
    let pieces = [
        piece("<unk>", 0.0, 2),
        piece("<s>", 0.0, 3),
        piece("<0x0A>", 0.0, 6),
        piece("\u{2581}a", -1.5, 1),
    ];
    // It merges, by field 3 of the second part.
    [&pieces.concat()[..], &[0x12, 2, 0x18, 2]].concat()
}

#[test]
fn a_piece_model_is_written_as_it_stands() {
    let bench = Bench::new();
    model(&bench, &config(), &specs());
    bench.file("m/tokenizer.model", pieces());
    let settings = json!({
        "add_bos_token": true, "bos_token": "<s>", "add_prefix_space": false,
        "added_tokens_decoder": {
            "4": {"content": "\u{2581}\u{2581}", "special": false}, "9": {"content": "far", "special": true},
        },
    });
    bench.file("m/tokenizer_config.json", settings.to_string());
    let (metadata, _) = exported(&bench, "f32");
    for (key, value) in [
        ("model", json!("llama")),
        ("pre", json!("default")),
        (
            "tokens",
            json!(["<unk>", "<s>", "<0x0A>", "\u{2581}a", "  ", "[PAD5]"]),
        ),
        ("scores", json!([0.0, 0.0, 0.0, -1.5, -1000.0, -10000.0])),
        ("token_type", json!([2, 3, 6, 1, 4, 5])),
        ("add_space_prefix", json!(false)),
    ] {
        let key = format!("tokenizer.ggml.{key}");
        assert_eq!(metadata.get(&key), Some(&value), "{key}");
    }
    assert_eq!(metadata.get("tokenizer.ggml.merges"), None);
    // A family whose converter reads tokenizer.json does so here.
    bench.file(
        "m/config.json",
        changed(json!({"model_type": "olmo2"})).to_string(),
    );
    let (metadata, _) = exported(&bench, "f32");
    assert_eq!(metadata["tokenizer.ggml.model"], "gpt2");
}

#[test]
fn a_hostile_piece_model_is_refused_or_read() {
    let bench = Bench::new();
    model(&bench, &config(), &specs());
    let whole = pieces();
    let mut files: Vec<Vec<u8>> = (1..whole.len()).map(|cut| whole[..cut].to_vec()).collect();
    for at in (0..whole.len()).step_by(3) {
        for byte in [0x00, 0x7f, 0xff] {
            let mut file = whole.clone();
            file[at] = byte;
            files.push(file);
        }
    }
    // Lengths and numbers without an end.
    files.extend([
        vec![],
        vec![0x0a; 3],
        vec![0xff; 64],
        [&[0x0a][..], &[0xff; 9], &[1]].concat(),
    ]);
    let mut refused = 0;
    for file in files {
        bench.file("m/tokenizer.model", &file);
        let outcome = bench.weld(&[&EXPORT[..], &["--force"]].concat());
        match outcome.code {
            Some(0) => {}
            Some(1) => {
                refused += 1;
                let said = &outcome.stderr;
                assert!(said.contains("tokenizer.model is malformed"), "{said}");
            }
            other => panic!("{other:?} for {file:02x?}: {}", outcome.stderr),
        }
    }
    assert!(refused > 60, "{refused}");
}

#[test]
fn gemmas_norms_are_one_more_and_its_head_is_the_embedding() {
    let bench = Bench::new();
    let gemma = changed(json!({"model_type": "gemma", "head_dim": 8, "rope_theta": 10000.0}));
    model(&bench, &gemma, &specs());
    let (metadata, tensors) = exported(&bench, "f32");
    let held = noise(6, 32).map(|value| half::bf16::from_f64(value).to_f32() + 1.0);
    assert_eq!(
        as_f32(&tensors["output_norm.weight"].2),
        held.collect::<Vec<_>>()
    );
    assert!(!tensors.contains_key("output.weight"));
    // What llama.cpp takes anyway is not written; another base is.
    assert_eq!(metadata.get("gemma.rope.freq_base"), None);
    bench.file(
        "m/config.json",
        changed(json!({"model_type": "gemma", "head_dim": 8, "rope_theta": 5000.0})).to_string(),
    );
    let (metadata, _) = exported(&bench, "f32");
    assert_eq!(metadata["gemma.rope.freq_base"], 5000.0);
}

#[test]
fn windows_are_written_where_llama_cpp_expects_others() {
    let bench = Bench::new();
    let sliding = |kinds: Value| {
        changed(json!({
            "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 16, "layer_types": kinds, "rope_theta": null,
            "rope_parameters": {
                "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            },
        }))
    };
    let key = "gemma3.attention.sliding_window_pattern";
    model(&bench, &sliding(json!(["sliding_attention"])), &specs());
    let (metadata, _) = exported(&bench, "f32");
    assert_eq!(metadata.get(key), None);
    for (name, value) in [
        ("rope.freq_base", json!(1e6)),
        ("rope.freq_base_swa", json!(1e4)),
        ("rope.scaling.factor", json!(8.0)),
        ("attention.sliding_window", json!(16)),
    ] {
        assert_eq!(
            metadata.get(&format!("gemma3.{name}")),
            Some(&value),
            "{name}"
        );
    }
    model(&bench, &sliding(json!(["full_attention"])), &specs());
    let (metadata, _) = exported(&bench, "f32");
    assert_eq!(metadata[key], json!([false]));
    // The class reads a period where no list is there.
    let mut period = sliding(json!(null));
    period["sliding_window_pattern"] = json!(1);
    model(&bench, &period, &specs());
    let (metadata, _) = exported(&bench, "f32");
    assert_eq!(metadata[key], json!([false]));
}

#[test]
fn divisors_for_long_texts_are_tensors() {
    let bench = Bench::new();
    let (short, long) = ([1.0, 1.5, 2.0, 2.5], [3.0, 4.0, 5.0, 6.0]);
    let config = changed(json!({
        "model_type": "phi3", "max_position_embeddings": 256, "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "longrope", "short_factor": short, "long_factor": long},
    }));
    let specs = without(
        without(specs(), "model.layers.0.self_attn.k_proj.weight"),
        "model.layers.0.self_attn.q_proj.weight",
    );
    let specs = with(
        specs,
        spec("model.layers.0.self_attn.qkv_proj.weight", 5, &[64, 32]),
    );
    model(&bench, &config, &specs);
    let (metadata, tensors) = exported(&bench, "q8_0");
    for (name, expected) in [("short", short), ("long", long)] {
        let (kind, _, bytes) = &tensors[&format!("rope_factors_{name}.weight")];
        assert_eq!(
            (*kind, as_f32(bytes)),
            (0, expected.map(|x| x as f32).to_vec())
        );
    }
    assert!(tensors.contains_key("blk.0.attn_qkv.weight"));
    // sqrt(1 + ln(4) / ln(64)).
    let expected = json!((1.0f64 + 4.0f64.ln() / 64.0f64.ln()).sqrt() as f32);
    assert_eq!(metadata["phi3.rope.scaling.attn_factor"], expected);
    assert_eq!(metadata["phi3.rope.dimension_count"], 8);
    assert_eq!(metadata["phi3.attention.sliding_window"], 0);
}

#[test]
fn experts_that_are_weighed_each_by_itself() {
    let bench = Bench::new();
    let dots = |more: Value| {
        let mut config = changed(json!({
            "model_type": "dots1", "n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32,
            "n_shared_experts": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": true, "num_key_value_heads": 4,
            "tie_word_embeddings": true,
        }));
        for (name, value) in more.as_object().unwrap() {
            config[name] = value.clone();
        }
        config
    };
    let mut specs = without(specs(), "lm_head.weight");
    specs = with(
        specs,
        spec("model.layers.0.self_attn.k_proj.weight", 4, &[32, 32]),
    );
    for (name, shape) in [
        ("gate.weight", &[2, 32][..]),
        ("gate.e_score_correction_bias", &[2]),
        ("shared_experts.up_proj.weight", &[32, 32]),
        ("experts.0.up_proj.weight", &[32, 32]),
        ("experts.1.up_proj.weight", &[32, 32]),
    ] {
        specs = with(
            specs,
            spec(&format!("model.layers.0.mlp.{name}"), 30, shape),
        );
    }
    model(&bench, &dots(json!({})), &specs);
    let (metadata, tensors) = exported(&bench, "bf16");
    for (name, value) in [
        ("expert_gating_func", json!(2)),
        ("expert_weights_scale", json!(2.5)),
        ("expert_weights_norm", json!(true)),
        ("expert_shared_count", json!(1)),
        ("expert_feed_forward_length", json!(32)),
        ("leading_dense_block_count", json!(0)),
    ] {
        assert_eq!(
            metadata.get(&format!("dots1.{name}")),
            Some(&value),
            "{name}"
        );
    }
    assert_eq!(tensors["blk.0.exp_probs_b.bias"].0, 0);
    assert_eq!(tensors["blk.0.ffn_up_shexp.weight"].1, [32, 32]);
    assert_eq!(tensors["blk.0.ffn_up_exps.weight"].1, [32, 32, 2]);
    // llama.cpp wants a head where the embedding is one.
    assert_eq!(tensors["output.weight"], tensors["token_embd.weight"]);
    for (change, named) in [
        (json!({"n_shared_experts": 0}), "a shared expert"),
        (json!({"num_key_value_heads": 2}), "as many heads of keys"),
        (
            json!({"first_k_dense_replace": 0, "moe_layer_freq": 2, "num_hidden_layers": 2}),
            "layer 1 has no experts",
        ),
        (json!({"moe_intermediate_size": [32, 64]}), "a list of 2"),
    ] {
        bench.file("m/config.json", dots(change).to_string());
        let outcome = bench.weld(&[&EXPORT[..], &["--force"]].concat());
        assert_eq!(outcome.code, Some(1), "{named}");
        assert!(
            outcome.stderr.contains(named),
            "{named}: {}",
            outcome.stderr
        );
    }
}

#[test]
fn what_llama_cpp_reads_otherwise_is_said() {
    let bench = Bench::new();
    model(&bench, &config(), &specs());
    let said = |changes: Value| {
        let config = changed(changes);
        // Fewer tokens than the vocabulary has: an embedding that is cut.
        let rows = config["vocab_size"].as_u64().unwrap() as usize;
        let specs = ["lm_head.weight", "model.embed_tokens.weight"]
            .into_iter()
            .fold(specs(), |specs, name| {
                with(without(specs, name), spec(name, 1, &[rows, 32]))
            });
        model(&bench, &config, &specs);
        let outcome = bench.weld(&[&EXPORT[..], &["--force"]].concat());
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let notes = outcome
            .stderr
            .lines()
            .filter(|line| line.contains("note: "));
        notes.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(said(json!({})), "");
    for (changes, named) in [
        (
            json!({"model_type": "mistral", "sliding_window": 16}),
            "attends to all tokens",
        ),
        (json!({"hidden_act": "gelu"}), "`gelu`"),
    ] {
        let said = said(changes);
        assert!(said.contains(named) && said.contains("llama.cpp"), "{said}");
    }
    // The file says which layers have windows.
    let gemma = json!({
        "model_type": "gemma2", "head_dim": 8, "sliding_window": 16, "layer_types": ["full_attention"],
        "rope_theta": 10000.0, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "tie_word_embeddings": true,
    });
    assert_eq!(said(gemma), "");
    bench.file("m/tokenizer.model", pieces());
    bench.file(
        "m/added_tokens.json",
        json!({"far": 3, "farther": 9}).to_string(),
    );
    assert!(
        said(json!({})).contains("have 1 ids from 6 on"),
        "{}",
        said(json!({}))
    );
    assert!(said(json!({"vocab_size": 3})).contains("have 2 ids from 3 on"));
}

#[test]
fn a_merge_writes_the_file_of_its_output_too() {
    let bench = Bench::new();
    for name in ["a", "b"] {
        bench.model(name, &config(), &specs());
        tokenizer(&bench, name);
    }
    bench.recipe(
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\ndtype: bfloat16\n",
    );
    let merge = ["merge", "recipe.yml", "out", "--gguf"];
    let named = ["--pre-tokenizer", "llama-bpe", "--gguf-type", "q8_0"];
    let with_file = |file| [&merge[..], &[file], &named[..]].concat();
    // What can be known before the work is.
    for (arguments, expected) in [
        (
            with_file("a/model.safetensors"),
            "a file of the model itself",
        ),
        (with_file("out/m.gguf"), "out/m.gguf is within out"),
        (
            [&merge[..], &["m.gguf", "--pre-tokenizer", "none-such"]].concat(),
            "none-such",
        ),
        (
            vec!["merge", "recipe.yml", "out", "--gguf-type", "f16"],
            "--gguf",
        ),
    ] {
        let outcome = bench.weld(&arguments);
        assert!(
            outcome.stderr.contains(expected),
            "{expected}: {}",
            outcome.stderr
        );
        assert!(!bench.path("out").exists(), "{expected}");
    }
    let outcome = bench.weld(&with_file("m.gguf"));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("m.gguf: 6 tensors"),
        "{}",
        outcome.stderr
    );
    let merged = fs::read(bench.path("m.gguf")).unwrap();
    bench.passes(&[
        "export",
        "gguf",
        "out",
        "again.gguf",
        "--pre-tokenizer",
        "llama-bpe",
        "--type",
        "q8_0",
    ]);
    assert!(merged == fs::read(bench.path("again.gguf")).unwrap());
    // So is what needs no value: a folder that is not there, a tokenizer that is not known, a tensor without a place.
    fs::remove_dir_all(bench.path("out")).unwrap();
    for (more, expected) in [
        (
            &["none/x.gguf", "--pre-tokenizer", "qwen2"][..],
            "none is no folder",
        ),
        (&["x.gguf"], "say it with --pre-tokenizer"),
    ] {
        let outcome = bench.weld(&[&merge[..], more].concat());
        assert_eq!(outcome.code, Some(1), "{expected}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains(expected),
            "{expected}: {}",
            outcome.stderr
        );
        assert!(!bench.path("out").exists() && !bench.path("x.gguf").exists());
    }
    // What only values tell is told after the merge, which stays.
    for name in ["a", "b"] {
        let large = floats(
            "lm_head.weight",
            Dtype::BF16,
            &[6, 32],
            (0..6 * 32).map(|_| 1e6),
        );
        bench.model(name, &config(), &with(specs(), large));
        tokenizer(&bench, name);
    }
    let types = [
        "x.gguf",
        "--pre-tokenizer",
        "llama-bpe",
        "--gguf-type",
        "f16",
    ];
    let outcome = bench.weld(&[&merge[..], &types].concat());
    assert_eq!(outcome.code, Some(1));
    for part in [
        "out is complete, but not x.gguf",
        "`weld export gguf` makes the file of out",
    ] {
        assert!(outcome.stderr.contains(part), "{part}: {}", outcome.stderr);
    }
    assert!(bench.path("out/model.safetensors").exists() && !bench.path("x.gguf").exists());
}

#[test]
#[cfg(unix)]
fn a_place_where_no_file_can_be_made_is_refused_and_left_alone() {
    use std::os::unix::fs::symlink;
    let bench = Bench::new();
    model(&bench, &config(), &specs());
    fs::create_dir(bench.path("folder")).unwrap();
    symlink("nowhere", bench.path("dangling")).unwrap();
    symlink("/dev/null", bench.path("device")).unwrap();
    symlink("m/model.safetensors", bench.path("weights")).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(bench.path("pipe"))
        .status();
    assert!(made.unwrap().success());
    for (out, expected) in [
        ("folder", "folder is a folder"),
        ("new/", "new/ is a folder"),
        ("..", "is a folder"),
        ("none/x.gguf", "none is no folder"),
        ("m/config.json/x.gguf", "Not a directory"),
        ("dangling", "dangling is a link to nothing"),
        (
            "device",
            "device is no file, but a pipe, a socket or a device",
        ),
        ("pipe", "pipe is no file"),
        ("weights", "a file of the model itself"),
    ] {
        let mut arguments = EXPORT;
        arguments[3] = out;
        let outcome = bench.weld(&[&arguments[..], &["--force"]].concat());
        assert_ne!(outcome.code, Some(0), "{out}");
        assert!(
            outcome.stderr.contains(expected),
            "{out}: {}",
            outcome.stderr
        );
    }
    assert!(bench.path("dangling").is_symlink() && !bench.path("nowhere").exists());
    // A link to an earlier export stays a link.
    let mut arguments = EXPORT;
    arguments[3] = "folder/x.gguf";
    bench.passes(&arguments);
    symlink("folder/x.gguf", bench.path("link")).unwrap();
    arguments[3] = "link";
    bench.passes(&[&arguments[..], &["--force"]].concat());
    assert!(bench.path("link").is_symlink() && !bench.path("folder/x.gguf").is_symlink());
    // A file within the model's own folder is one that `verify` does not know.
    arguments[3] = "m/x.gguf";
    let outcome = bench.weld(&arguments);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("--ignore x.gguf"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn what_a_killed_export_left_is_removed_by_the_next_and_a_running_one_is_not() {
    let bench = Bench::on_disk();
    model(&bench, &config(), &specs());
    bench.file(".weld-staged-killed", "GGUF");
    bench.file(".weld-staged-running", "GGUF");
    fs::create_dir(bench.path(".weld-staged-folder")).unwrap();
    let running = fs::File::open(bench.path(".weld-staged-running")).unwrap();
    running.try_lock().unwrap();
    bench.passes(&EXPORT);
    let is_there = |name: &str| bench.path(&format!(".weld-staged-{name}")).exists();
    assert_eq!(
        ["killed", "running", "folder"].map(is_there),
        [false, true, true]
    );
}

#[test]
fn every_step_of_an_export_fails_once() {
    let bench = Bench::on_disk();
    // Two pieces, so that it is written in several steps.
    let wide = spec("model.layers.0.mlp.up_proj.weight", 9, &[1024, 512]);
    model(&bench, &config(), &with(specs(), wide));
    let locator = Locator {
        working_dir: bench.path(""),
        ..Locator::default()
    };
    let location = locator.locate(&ModelRef::parse("m").unwrap()).unwrap();
    let checkpoint = Checkpoint::open("m", &location).unwrap();
    let options = Options {
        encoding: Encoding::Bf16,
        pretokenizer: Some("llama-bpe"),
    };
    let export = Export::plan(&checkpoint, options).unwrap();
    let out = bench.path("m.gguf");
    let write = |fails: usize| {
        let door = Arc::new(Count {
            seen: AtomicUsize::new(0),
            fails,
        });
        let disk = Disk::watched(Arc::clone(&door) as Arc<dyn Watch>);
        let done = write_gguf(&export, &disk, &out, &mut |_| true);
        (done, door.seen.load(SeqCst))
    };
    let names = || -> Vec<_> {
        let mut names: Vec<_> = fs::read_dir(bench.path(""))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let (done, steps) = write(usize::MAX);
    done.unwrap();
    let whole = fs::read(&out).unwrap();
    assert_eq!(whole.len() as u64, export.bytes());
    assert!(steps > 8, "{steps}");
    for old in [None, Some("old")] {
        for step in 0..steps {
            match old {
                Some(old) => drop(bench.file("m.gguf", old)),
                None => fs::remove_file(&out).unwrap_or_default(),
            }
            let before = names();
            let (done, _) = write(step);
            match done.unwrap_err() {
                ExportError::Disk(error) => {
                    let said = error.to_string();
                    assert!(said.contains("m.gguf"), "step {step}: {said}");
                }
                other => panic!("step {step}: {other:?}"),
            }
            assert_eq!(names(), before, "step {step}");
            assert_eq!(fs::read(&out).ok(), old.map(|old| old.as_bytes().to_vec()));
        }
        let (done, seen) = write(steps);
        assert!(done.is_ok() && seen == steps);
        assert!(fs::read(&out).unwrap() == whole);
    }
    // Stopped after the first piece, it leaves what was there.
    bench.file("m.gguf", "old");
    let stopped = write_gguf(&export, &Disk::default(), &out, &mut |_| false);
    assert!(matches!(stopped, Err(ExportError::Stopped)));
    assert_eq!(fs::read(&out).unwrap(), b"old");
}

/// Lets the step of one number fail.
struct Count {
    seen: AtomicUsize,
    fails: usize,
}

impl Watch for Count {
    fn before(&self, _: Step, _: &Path) -> io::Result<()> {
        match self.seen.fetch_add(1, SeqCst) == self.fails {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

#[test]
fn what_cannot_be_written_is_refused_and_leaves_nothing() {
    let of_family = changed;
    let changed = |key: &str, value: Value| of_family(json!({ key: value }));
    let nan = floats(
        "model.norm.weight",
        Dtype::F32,
        &[32],
        (0..32).map(|_| f64::NAN),
    );
    let large = floats(
        "lm_head.weight",
        Dtype::F32,
        &[6, 32],
        (0..6 * 32).map(|_| 1e6),
    );
    let stray = spec("model.layers.0.self_attn.rel_pos.weight", 7, &[4]);
    let norm = |layer: &str| {
        spec(
            &format!("model.layers.{layer}.input_layernorm.weight"),
            8,
            &[32],
        )
    };
    let (padded, signed) = (norm("00"), norm("+0"));
    for (config, specs, named) in [
        (changed("model_type", "bert".into()), specs(), "bert"),
        (
            changed("vocab_size", (1u64 << 31).into()),
            specs(),
            "the embedding is [6, 32]",
        ),
        (
            changed("head_dim", (1u64 << 30).into()),
            specs(),
            "features a head",
        ),
        (
            changed("num_hidden_layers", (1u64 << 31).into()),
            specs(),
            "at most 16384 layers",
        ),
        (
            of_family(json!({
                "model_type": "hunyuan_v1_dense", "head_dim": 2,
                "rope_scaling": {"type": "dynamic", "alpha": 1000.0},
            })),
            specs(),
            "finite",
        ),
        (
            changed("vocab_size", u64::MAX.into()),
            specs(),
            "vocab_size",
        ),
        (
            changed("rms_norm_eps", 1e300.into()),
            specs(),
            "`rms_norm_eps`: expected a number that is finite in float32",
        ),
        (
            changed("rope_theta", 1e-60.into()),
            specs(),
            "`rope_theta`: expected a number above one",
        ),
        (
            of_family(json!({
                "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            })),
            specs(),
            "`rope_scaling.rope_type`: expected the same as in `rope_parameters`",
        ),
        (
            of_family(json!({
                "original_max_position_embeddings": 16,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
            })),
            specs(),
            "`original_max_position_embeddings`: expected the same wherever it is said",
        ),
        (
            of_family(json!({
                "model_type": "gemma3_text", "head_dim": 8, "rope_local_base_freq": 5e4,
                "rope_parameters": {
                    "full_attention": {"rope_theta": 500000.0}, "sliding_attention": {"rope_theta": 1e4},
                },
            })),
            specs(),
            "`rope_local_base_freq`: expected the same as `rope_theta`",
        ),
        (
            of_family(json!({
                "model_type": "gemma3", "head_dim": 8, "text_config": {"num_attention_heads": 8},
            })),
            specs(),
            "`num_attention_heads`: expected 8, as the part for text says, found 4",
        ),
        (
            of_family(json!({
                "model_type": "qwen3_moe", "num_experts": 4, "num_local_experts": 8,
            })),
            specs(),
            "`num_local_experts`: expected 4, as `num_experts` says, found 8",
        ),
        (
            changed("num_hidden_layers", 2.into()),
            specs(),
            "layer 1 has no tensor",
        ),
        (
            changed("num_attention_heads", 5.into()),
            specs(),
            "q_proj.weight",
        ),
        (
            changed("rope_scaling", json!({"rope_type": "longrope"})),
            specs(),
            "rope_type",
        ),
        (
            of_family(json!({"model_type": "ernie4_5", "use_bias": true})),
            specs(),
            "llama.cpp has no biases",
        ),
        (config(), with(specs(), nan), "NaN or infinite"),
        (config(), with(specs(), large), "too large for the type"),
        (config(), with(specs(), stray), "rel_pos.weight"),
        (
            config(),
            with(specs(), padded),
            "layers.00.input_layernorm.weight",
        ),
        (
            config(),
            with(specs(), signed),
            "layers.+0.input_layernorm.weight",
        ),
    ] {
        let bench = Bench::new();
        model(&bench, &config, &specs);
        let outcome = bench.weld(&[&EXPORT[..], &["--type", "f16"]].concat());
        assert_eq!(outcome.code, Some(1), "{named}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains(named),
            "{named}: {}",
            outcome.stderr
        );
        let left: Vec<_> = fs::read_dir(bench.path("."))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["m"], "{named}");
    }
}

#[test]
fn a_tokenizer_that_is_not_known_is_refused_with_what_to_do() {
    let bench = Bench::new();
    model(&bench, &config(), &specs());
    let outcome = bench.weld(&["export", "gguf", "m", "m.gguf"]);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.contains("--pre-tokenizer"),
        "{}",
        outcome.stderr
    );
    let outcome = bench.weld(&[
        "export",
        "gguf",
        "m",
        "m.gguf",
        "--pre-tokenizer",
        "none-such",
    ]);
    assert!(
        outcome.stderr.contains("no pre-tokenizer `none-such`"),
        "{}",
        outcome.stderr
    );
    // A file that is there stays, and so does the model.
    bench.file("m.gguf", "mine");
    let outcome = bench.weld(&EXPORT);
    assert!(outcome.stderr.contains("--force"), "{}", outcome.stderr);
    assert_eq!(fs::read(bench.path("m.gguf")).unwrap(), b"mine");
    let outcome = bench.weld(&[
        "export",
        "gguf",
        "m",
        "m/model.safetensors",
        "--pre-tokenizer",
        "llama-bpe",
        "--force",
    ]);
    assert!(
        outcome.stderr.contains("a file of the model itself"),
        "{}",
        outcome.stderr
    );
    // `--force` replaces an earlier export, and nothing else.
    let config = fs::read(bench.path("m/config.json")).unwrap();
    for kept in ["m/config.json", "m.gguf"] {
        let outcome = bench.weld(&[
            "export",
            "gguf",
            "m",
            kept,
            "--pre-tokenizer",
            "llama-bpe",
            "--force",
        ]);
        assert!(
            outcome
                .stderr
                .contains("is no GGUF file, and would be lost"),
            "{}",
            outcome.stderr
        );
    }
    assert_eq!(fs::read(bench.path("m/config.json")).unwrap(), config);
    bench.file("m.gguf", "GGUF of before");
    bench.passes(&[&EXPORT[..], &["--force"]].concat());
}

/// llama.cpp reads matrices by the sizes that the file says.
#[test]
fn sizes_that_contradict_the_tensors_are_refused() {
    let bench = Bench::new();
    let down = spec("model.layers.0.mlp.down_proj.weight", 7, &[32, 48]);
    model(&bench, &config(), &with(specs(), down));
    bench.passes(&EXPORT);
    fs::remove_file(bench.path("m.gguf")).unwrap();
    for (field, value, tensor) in [
        ("num_attention_heads", json!(1), "attn_"),
        ("num_key_value_heads", Value::Null, "attn_"),
        ("head_dim", json!(26), "attn_"),
        ("intermediate_size", json!(143), "ffn_down"),
    ] {
        bench.file("m/config.json", changed(json!({field: value})).to_string());
        let outcome = bench.weld(&EXPORT);
        assert_eq!(outcome.code, Some(1), "{field}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains(tensor),
            "{field}: {}",
            outcome.stderr
        );
        assert!(!bench.path("m.gguf").exists());
    }
}
