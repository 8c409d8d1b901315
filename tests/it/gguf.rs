//! `weld export gguf`: the file read back by a reader of its own, values by hand, refusals that leave nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Bench, Spec, floats, noise, with};

/// A tensor of a file: its type, its shape as the file has it, its bytes.
type Tensor = (u32, Vec<u64>, Vec<u8>);

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

fn read(path: &Path) -> (BTreeMap<String, Value>, BTreeMap<String, Tensor>) {
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
    bench.file("m/tokenizer.json", tokenizer.to_string());
    bench.file(
        "m/tokenizer_config.json",
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

#[test]
fn what_cannot_be_written_is_refused_and_leaves_nothing() {
    let changed = |key: &str, value: Value| {
        let mut config = config();
        config[key] = value;
        config
    };
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
            changed("vocab_size", u64::MAX.into()),
            specs(),
            "vocab_size",
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
        (config(), with(specs(), nan), "NaN or infinite"),
        (config(), with(specs(), large), "too large for the type"),
        (config(), with(specs(), stray), "rel_pos.weight"),
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
}
