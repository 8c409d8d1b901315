//! Checkpoints of a chosen size with realistic values, the same on every machine.
//!
//! Llama-shaped, bf16. Weights are normal with a standard deviation of 0.02; a fine-tune is the base plus
//! normal deltas of 0.0004, so that most elements of its task vector are a few steps of bf16.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::thread;

use half::bf16;
use serde_json::json;
use weldment::checkpoint::{Checkpoint, Location};

/// A Llama's dimensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    hidden: usize,
    inner: usize,
    layers: usize,
    key_values: usize,
    vocabulary: usize,
}

/// What can be asked for, by name.
pub(crate) const SHAPES: [Shape; 5] = [
    Shape {
        name: "tiny",
        hidden: 256,
        inner: 688,
        layers: 4,
        key_values: 64,
        vocabulary: 4096,
    },
    Shape {
        name: "0.25b",
        hidden: 1024,
        inner: 2816,
        layers: 16,
        key_values: 256,
        vocabulary: 32_000,
    },
    // TinyLlama's: 1.1 billion parameters, 2.2 GB.
    Shape {
        name: "1.1b",
        hidden: 2048,
        inner: 5632,
        layers: 22,
        key_values: 256,
        vocabulary: 32_000,
    },
    Shape {
        name: "4b",
        hidden: 3072,
        inner: 9216,
        layers: 34,
        key_values: 1024,
        vocabulary: 32_000,
    },
    // Llama 2's: 6.7 billion, 13.5 GB.
    Shape {
        name: "7b",
        hidden: 4096,
        inner: 11_008,
        layers: 32,
        key_values: 4096,
        vocabulary: 32_000,
    },
];

impl Shape {
    /// The shape of that name.
    pub(crate) fn find(name: &str) -> Option<Self> {
        SHAPES.into_iter().find(|shape| shape.name == name)
    }

    /// Bytes of its weights.
    #[allow(dead_code, reason = "not every benchmark looks for room first")]
    pub(crate) fn bytes(&self) -> u64 {
        let tensors = self.tensors();
        let elements = tensors
            .iter()
            .map(|(_, dims)| dims.iter().product::<usize>());
        2 * elements.sum::<usize>() as u64
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (h, i, kv, v) = (self.hidden, self.inner, self.key_values, self.vocabulary);
        let mut tensors = vec![
            ("lm_head.weight".to_owned(), vec![v, h]),
            ("model.embed_tokens.weight".to_owned(), vec![v, h]),
        ];
        for layer in 0..self.layers {
            for (suffix, shape) in [
                ("input_layernorm.weight", vec![h]),
                ("mlp.down_proj.weight", vec![h, i]),
                ("mlp.gate_proj.weight", vec![i, h]),
                ("mlp.up_proj.weight", vec![i, h]),
                ("post_attention_layernorm.weight", vec![h]),
                ("self_attn.k_proj.weight", vec![kv, h]),
                ("self_attn.o_proj.weight", vec![h, h]),
                ("self_attn.q_proj.weight", vec![h, h]),
                ("self_attn.v_proj.weight", vec![kv, h]),
            ] {
                tensors.push((format!("model.layers.{layer}.{suffix}"), shape));
            }
        }
        tensors.push(("model.norm.weight".to_owned(), vec![h]));
        tensors
    }

    fn config(&self) -> serde_json::Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden / 64,
            "num_key_value_heads": self.key_values / 64,
            "vocab_size": self.vocabulary,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
        })
    }
}

/// Elements made at a time.
const CHUNK: usize = 1 << 20;

/// A model of that shape, made if it is not there: `seed` 0 is the base, the others are its fine-tunes.
///
/// How fast a file in the page cache is read depends on how it came there: written, or read by a program that asked
/// for one part or another first, it lies in small pages, each of which costs when it is mapped. So it is read anew
/// here as `weld` reads it for the first time, which leaves it in the largest pages that the system has for files.
pub(crate) fn model(folder: &Path, shape: Shape, seed: u64) -> io::Result<PathBuf> {
    let path = place(folder, shape, seed);
    if !is_made(folder, shape, seed) {
        write(&path, shape, seed)?;
    }
    let weights = path.join("model.safetensors");
    let file = File::open(&weights)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    let label = weights.to_string_lossy();
    let model = Checkpoint::open(&label, &Location::local(&weights)).map_err(io::Error::other)?;
    model.read_ahead();
    let stored = (0..model.tensors().len()).filter_map(|tensor| model.stored(tensor));
    // A byte of each of the smallest pages.
    let touched = stored.flat_map(|bytes| bytes.iter().step_by(4096));
    std::hint::black_box(touched.fold(0u8, |sum, byte| sum ^ byte));
    Ok(path)
}

/// A model made anew, that lies in the page cache as writing has left it.
#[allow(
    dead_code,
    reason = "not every benchmark that has this module asks for it"
)]
pub(crate) fn written(folder: &Path, shape: Shape, seed: u64) -> io::Result<PathBuf> {
    let path = place(folder, shape, seed);
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    write(&path, shape, seed)?;
    Ok(path)
}

fn write(path: &Path, shape: Shape, seed: u64) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let tensors = shape.tensors();
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, dims) in &tensors {
        let end = offset + 2 * dims.iter().product::<usize>();
        let entry = json!({"dtype": "BF16", "shape": dims, "data_offsets": [offset, end]});
        header.insert(name.clone(), entry);
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let file = File::create(path.join("model.safetensors"))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let elements = offset / 2;
    let workers = thread::available_parallelism()?.get();
    for start in (0..elements).step_by(CHUNK * workers) {
        let parts: Vec<Vec<u8>> = thread::scope(|scope| {
            let spans = (0..workers).map(|worker| {
                let from = (start + worker * CHUNK).min(elements);
                let to = (from + CHUNK).min(elements);
                scope.spawn(move || values(from, to, seed))
            });
            let spans: Vec<_> = spans.collect();
            spans
                .into_iter()
                .map(|span| span.join().expect("a worker makes values"))
                .collect()
        });
        for part in parts {
            file.write_all(&part)?;
        }
    }
    file.into_inner()?.sync_all()?;
    fs::write(path.join("config.json"), shape.config().to_string())
}

fn place(folder: &Path, shape: Shape, seed: u64) -> PathBuf {
    folder.join(format!("{}-{seed}", shape.name))
}

/// Whether the model is there: its config is written last.
pub(crate) fn is_made(folder: &Path, shape: Shape, seed: u64) -> bool {
    place(folder, shape, seed).join("config.json").exists()
}

/// The elements `from..to` of a model as bytes.
fn values(from: usize, to: usize, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2 * (to - from));
    for index in from..to {
        let mut value = 0.02 * normal(0, index as u64);
        if seed > 0 {
            value = bf16::from_f32(value).to_f32() + 0.0004 * normal(seed, index as u64);
        }
        bytes.extend(bf16::from_f32(value).to_le_bytes());
    }
    bytes
}

/// A draw that is normal enough: the sum of eight uniform bytes, standardised.
fn normal(seed: u64, index: u64) -> f32 {
    let mut word = (index + 1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(seed.wrapping_mul(0xd1b5_4a32_d192_ed03));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^= word >> 31;
    let sum: u32 = word.to_le_bytes().into_iter().map(u32::from).sum();
    // Eight bytes: mean 1020, variance 8 * (256^2 - 1) / 12.
    (sum as f32 - 1020.0) / 209.02
}
