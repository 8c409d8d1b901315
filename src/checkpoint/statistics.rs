//! Files of statistics: what activations or gradients of a model were on some data, for methods that need to know.
//!
//! Such a file is one of safetensors. Its tensors are called `KIND/NAME`: `gram/INPUT` is the sum of x' x over tokens,
//! `[features, features]`, `magnitude/INPUT` the mean of |x|, `[features]`, `tokens/INPUT` the number of tokens, and
//! `fisher/WEIGHT` a number for each element of a weight, in its shape. Several weights may have one input; which is said
//! by the metadata. A file without metadata has inputs that are called as their weights.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::reader::Checkpoint;
use super::source::TensorEntry;
use errors::{About, Refusal, printable};
use numeric::Elements;
use safetensors::Dtype;

/// The version of the format.
const FORMAT: &str = "weldment-statistics/1";

/// The key of the metadata.
const KEY: &str = "weldment";

/// A kind of statistic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Statistic {
    /// The Gram matrix of the input of a linear layer: the sum of x' x over tokens.
    Gram,
    /// The mean magnitude of each feature of the input of a linear layer.
    Magnitude,
    /// The diagonal of the Fisher information of a weight.
    Fisher,
}

impl Statistic {
    /// The name in files, and behind `--keep`.
    pub fn name(self) -> &'static str {
        match self {
            Statistic::Gram => "gram",
            Statistic::Magnitude => "magnitude",
            Statistic::Fisher => "fisher",
        }
    }
}

/// What a file of statistics says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatisticsInfo {
    format: String,
    /// The model that they are of, as its user wrote it.
    #[serde(default)]
    pub model: Option<String>,
    /// Its [fingerprint](Checkpoint::fingerprint).
    #[serde(default)]
    pub fingerprint: Option<String>,
    /// The BLAKE3 digest of the tokens that it was run on.
    #[serde(default)]
    pub data: Option<String>,
    /// How many tokens these are.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// Of statistics that were made [together](Self::together): the digest of all files' models and data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub together: Option<String>,
    /// For each weight, the names of its inputs: one, or one for each of the matrices that it stacks.
    #[serde(default)]
    pub inputs: BTreeMap<String, Vec<String>>,
}

impl StatisticsInfo {
    /// Of the version that is written.
    pub fn new() -> Self {
        Self {
            format: FORMAT.to_owned(),
            ..Self::default()
        }
    }

    /// The digest of models and data of several files, in their order. Files that each layer of a merge was run for have
    /// it: what they say of one model depends on the others.
    pub fn together<'i>(all: impl Iterator<Item = &'i StatisticsInfo>) -> Option<String> {
        let mut digest = blake3::Hasher::new();
        for info in all {
            for part in [&info.fingerprint, &info.data] {
                digest.update(part.as_ref()?.as_bytes());
                digest.update(b"\n");
            }
        }
        Some(digest.finalize().to_string())
    }

    /// The metadata of a file: a key and its value.
    pub fn metadata(&self) -> (&'static str, String) {
        // Strings, numbers and maps of strings can always be written as JSON.
        (KEY, serde_json::to_string(self).unwrap_or_default())
    }
}

/// The statistics of a model, in a file.
#[derive(Debug, Clone)]
pub struct Statistics {
    file: Arc<Checkpoint>,
    info: StatisticsInfo,
}

impl Statistics {
    /// Those of an opened file.
    ///
    /// # Errors
    /// The file holds no statistics, or those of another version.
    pub fn new(file: Arc<Checkpoint>) -> Result<Self, Refusal> {
        let label = file.label().to_owned();
        let wrong = |what: String| {
            Refusal::new(format!("`{label}` {what}"))
                .with_hint("make the file by `weld stats MODEL --data TEXTS.jsonl --out FILE`")
                .about(About::default().model(label.clone()))
        };
        let kinds = [Statistic::Gram, Statistic::Magnitude, Statistic::Fisher];
        let is_one = |tensor: &TensorEntry| {
            let kind = tensor.name.split('/').next();
            kinds.iter().any(|known| Some(known.name()) == kind)
        };
        if !file.tensors().iter().any(is_one) {
            return Err(wrong(
                "holds no statistics: no tensor is called `gram/...`, `magnitude/...` or `fisher/...`".into(),
            ));
        }
        let info = match file.source().metadata(KEY) {
            None => StatisticsInfo::new(),
            Some(text) => serde_json::from_str(&text).map_err(|error| {
                wrong(format!(
                    "has metadata that are not understood: {}",
                    printable(&error.to_string())
                ))
            })?,
        };
        let found: &StatisticsInfo = &info;
        if found.format != FORMAT {
            let found = printable(&found.format);
            return Err(wrong(format!(
                "has statistics of the form `{found}`, expected `{FORMAT}`"
            )));
        }
        Ok(Self { file, info })
    }

    /// The file.
    pub fn file(&self) -> &Arc<Checkpoint> {
        &self.file
    }

    /// What it says of itself.
    pub fn info(&self) -> &StatisticsInfo {
        &self.info
    }

    /// The tensor of a kind for a weight, or for one of the matrices that it stacks: its number in the file.
    pub fn find(&self, kind: Statistic, weight: &str, matrix: usize) -> Option<usize> {
        let name = match kind {
            Statistic::Fisher => weight,
            Statistic::Gram | Statistic::Magnitude => self.input(weight, matrix)?,
        };
        self.file.find(&format!("{}/{name}", kind.name()))
    }

    /// The input of a weight, or of one of the matrices that it stacks.
    fn input<'a>(&'a self, weight: &'a str, matrix: usize) -> Option<&'a str> {
        match self.info.inputs.get(weight) {
            Some(inputs) => inputs.get(matrix).map(String::as_str),
            None => (matrix == 0).then_some(weight),
        }
    }

    /// How many tokens entered a weight, or one of the matrices that it stacks, if the file says it.
    pub fn tokens(&self, weight: &str, matrix: usize) -> Option<u64> {
        let name = format!("tokens/{}", self.input(weight, matrix)?);
        let index = self.file.find(&name)?;
        let bytes = self.file.bytes(index)?;
        match self.file.tensors()[index].dtype {
            Dtype::I32 => u64::try_from(i32::from_le_bytes(bytes.try_into().ok()?)).ok(),
            Dtype::I64 => u64::try_from(i64::from_le_bytes(bytes.try_into().ok()?)).ok(),
            _ => None,
        }
    }

    /// The entry of a tensor.
    pub fn entry(&self, index: usize) -> &TensorEntry {
        &self.file.tensors()[index]
    }

    /// The values of a tensor; `None` if they are no floating-point numbers.
    pub fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        self.file.elements(index)
    }
}
