//! The two files of an adapter, as PEFT reads them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use checkpoint::{Checkpoint, Dtype, WrittenAs, single_file_layout};
use errors::Refusal;
use matrix::Matrix;
use numeric::{BLOCK, FloatType};
use run::destination::{DiskError, Step};
use run::{AdapterFiles, RunError};
use serde_json::{Map, Value, json};

use super::error::ExtractError;
use super::report::Fit;

/// The stem of the weights' file.
const STEM: &str = "adapter_model";
/// The weights' file.
const WEIGHTS: &str = "adapter_model.safetensors";
/// The config's file.
const CONFIG: &str = "adapter_config.json";
/// Bytes that are copied at a time.
const CHUNK: u64 = 4 << 20;

/// The adapter's tensors, one after the other in an unnamed file: how many there are, and how large, is known when the
/// last one is.
pub(super) struct Weights {
    file: File,
    end: u64,
    tensors: Vec<(String, Dtype, Vec<usize>)>,
    /// Where each begins in the file.
    starts: Vec<u64>,
    /// The digests of those that are whole.
    digests: Vec<blake3::Hash>,
    /// The last one's, so far.
    hasher: blake3::Hasher,
}

impl Weights {
    pub(super) fn new(files: &AdapterFiles<'_>) -> Result<Self, RunError> {
        Ok(Self {
            file: files.scratch()?,
            end: 0,
            tensors: Vec::new(),
            starts: Vec::new(),
            digests: Vec::new(),
            hasher: blake3::Hasher::new(),
        })
    }

    /// Begins a tensor, whose bytes are [pushed](Self::push) next.
    pub(super) fn begin(&mut self, name: String, dtype: Dtype, shape: Vec<usize>) {
        self.end_tensor();
        self.tensors.push((name, dtype, shape));
        self.starts.push(self.end);
    }

    /// Takes the digest of the last tensor.
    fn end_tensor(&mut self) {
        if self.digests.len() < self.tensors.len() {
            self.digests.push(self.hasher.finalize());
            self.hasher.reset();
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), RunError> {
        self.hasher.update(bytes);
        let written = self.file.write_all(bytes);
        written.map_err(|error| failed(Step::Write, error))?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Adds a factor of a module, as PEFT names it.
    pub(super) fn factor(
        &mut self,
        module: &str,
        part: &str,
        mut factor: Matrix<f32>,
        format: FloatType,
    ) -> Result<(), RunError> {
        let name = format!("base_model.model.{module}.{part}.weight");
        let shape = vec![factor.rows(), factor.columns()];
        self.begin(name, format.dtype(), shape);
        for values in factor.values_mut().chunks_mut(BLOCK) {
            let mut bytes = vec![0; values.len() * format.size()];
            format.encode(values, true, &mut bytes);
            self.push(&bytes)?;
        }
        Ok(())
    }

    /// Writes the file with all of them; returns its length.
    pub(super) fn finish(mut self, files: &mut AdapterFiles<'_>) -> Result<u64, ExtractError> {
        self.end_tensor();
        let layout = single_file_layout(&self.tensors, STEM, WrittenAs::Safetensors);
        let layout = layout.map_err(|error| Refusal::from(&error))?;
        let mut ends = self.starts.clone();
        ends.push(self.end);
        let tensors = layout.tensors.iter().flat_map(|&(tensor, _)| {
            let (start, end) = (self.starts[tensor], ends[tensor + 1]);
            (start..end)
                .step_by(CHUNK as usize)
                .map(move |at| (at, (end - at).min(CHUNK)))
        });
        let chunks: Vec<(u64, u64)> = tensors.collect();
        let chunks = chunks.into_iter().map(|(at, length)| {
            let mut bytes = vec![0; length as usize];
            let read = self.file.read_exact_at(&mut bytes, at);
            read.map_err(|error| failed(Step::Read, error))?;
            Ok(bytes)
        });
        let header = std::iter::once(Ok(layout.header.clone()));
        let names = self.tensors.iter().map(|(name, ..)| name.clone());
        let digests = names.zip(self.digests.iter().copied()).collect();
        let bytes = layout.file_size;
        files.weights(layout, digests, &mut header.chain(chunks))?;
        Ok(bytes)
    }
}

fn failed(step: Step, source: io::Error) -> RunError {
    RunError::Disk(DiskError {
        step,
        path: Path::new(WEIGHTS).to_owned(),
        source,
    })
}

/// What the config says beside the ranks.
pub(super) struct Options<'a> {
    pub(super) base: &'a Checkpoint,
    /// The base by the name that the user gave it.
    pub(super) base_name: &'a str,
    /// The modules that are saved as they are, as PEFT names them.
    pub(super) saved: Vec<String>,
    /// Whether the embedding is saved, and the head is the embedding.
    pub(super) ties: bool,
    /// Whether all adapted weights are `[in, out]`.
    pub(super) fan_in_fan_out: bool,
    /// What PEFT puts before the names of the base's modules.
    pub(super) prefix: &'a str,
}

impl Options<'_> {
    /// Writes the config; returns its `r`, the rank of most modules.
    pub(super) fn write(
        &self,
        files: &mut AdapterFiles<'_>,
        fits: &[Fit],
    ) -> Result<usize, RunError> {
        let rank = usual_rank(fits);
        let patterns = rank_pattern(fits, rank);
        let alphas = patterns.clone();
        let saved = (!self.saved.is_empty()).then_some(&self.saved);
        let mut config = json!({
            "peft_type": "LORA",
            "task_type": self.task(),
            "base_model_name_or_path": self.base_name,
            "inference_mode": true,
            "r": rank,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": self.fan_in_fan_out,
            "use_rslora": false,
            "use_dora": false,
            "init_lora_weights": true,
            "target_modules": self.targets(fits),
            "rank_pattern": patterns,
            "alpha_pattern": alphas,
            "modules_to_save": saved,
        });
        if self.ties {
            config["ensure_weight_tying"] = Value::Bool(true);
        }
        let text = format!("{config:#}\n");
        files.write(CONFIG, text.into_bytes())?;
        Ok(rank)
    }

    /// The last words of modules' names where all modules that end so are adapted; otherwise their names.
    fn targets(&self, fits: &[Fit]) -> Vec<String> {
        let last = |module: &str| module.rsplit('.').next().unwrap_or_default().to_owned();
        let mut all: BTreeMap<String, usize> = BTreeMap::new();
        for tensor in self.base.tensors() {
            if let Some(module) = tensor.name.strip_suffix(".weight") {
                *all.entry(last(module)).or_default() += 1;
            }
        }
        let mut adapted: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for fit in fits {
            let modules = adapted.entry(last(&fit.module)).or_default();
            modules.push(&fit.module);
        }
        let targets = adapted.into_iter().flat_map(|(last, modules)| {
            match all.get(&last) == Some(&modules.len()) {
                true => vec![last],
                false => modules.into_iter().map(str::to_owned).collect(),
            }
        });
        targets.collect()
    }

    /// What the model is for, in PEFT's words.
    fn task(&self) -> Option<&'static str> {
        let config = self.base.config()?;
        let class = config.architectures().into_iter().next()?;
        let encodes = config.get_bool("is_encoder_decoder") == Some(true);
        [
            ("ForCausalLM", "CAUSAL_LM"),
            ("LMHeadModel", "CAUSAL_LM"),
            ("ForSequenceClassification", "SEQ_CLS"),
            ("ForTokenClassification", "TOKEN_CLS"),
            ("ForQuestionAnswering", "QUESTION_ANS"),
            ("ForConditionalGeneration", "SEQ_2_SEQ_LM"),
        ]
        .into_iter()
        .find(|(end, task)| class.ends_with(end) && (*task != "SEQ_2_SEQ_LM" || encodes))
        .map(|(_, task)| task)
    }

    /// The name of a module of the base in the model that PEFT wraps.
    pub(super) fn named(&self, module: &str) -> String {
        format!("{}{module}", self.prefix)
    }
}

/// The rank of most modules; of several, the largest.
fn usual_rank(fits: &[Fit]) -> usize {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for fit in fits {
        *counts.entry(fit.rank).or_default() += 1;
    }
    let most = counts
        .into_iter()
        .max_by_key(|&(rank, count)| (count, rank));
    most.map_or(1, |(rank, _)| rank)
}

/// The ranks of modules that have another. PEFT takes the first pattern that is a module's name or its end, so longer
/// names come first, and a module whose name ends in a pattern has one of its own.
fn rank_pattern(fits: &[Fit], rank: usize) -> Map<String, Value> {
    let other: Vec<&Fit> = fits.iter().filter(|fit| fit.rank != rank).collect();
    let ends_so = |fit: &Fit| {
        other.iter().any(|other| {
            let before = fit.module.strip_suffix(other.module.as_str());
            before.is_some_and(|before| before.ends_with('.'))
        })
    };
    let mut named: Vec<&Fit> = fits
        .iter()
        .filter(|fit| fit.rank != rank || ends_so(fit))
        .collect();
    named.sort_by_key(|fit| std::cmp::Reverse(fit.module.len()));
    named
        .into_iter()
        .map(|fit| (fit.module.clone(), fit.rank.into()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(ranks: &[(&str, usize)]) -> Vec<Fit> {
        let fit = |&(module, rank): &(&str, usize)| Fit {
            tensor: format!("{module}.weight"),
            module: module.to_owned(),
            rank,
            base: 1.0,
            change: 1.0,
            left_out: 0.0,
        };
        ranks.iter().map(fit).collect()
    }

    #[test]
    fn the_first_pattern_of_each_module_is_its_own() {
        let fits = fits(&[
            ("h.0.q", 2),
            ("vision.h.0.q", 4),
            ("h.1.q", 4),
            ("h.11.q", 1),
        ]);
        let rank = usual_rank(&fits);
        assert_eq!(rank, 4);
        let patterns: Vec<(String, Value)> = rank_pattern(&fits, rank).into_iter().collect();
        let expected = [("vision.h.0.q", 4), ("h.11.q", 1), ("h.0.q", 2)];
        let expected = expected.map(|(module, rank)| (module.to_owned(), Value::from(rank)));
        assert_eq!(patterns, expected);
    }
}
