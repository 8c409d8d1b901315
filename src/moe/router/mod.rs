//! Routers: tensors of an assembly that no model has, made before the others are written.

mod directions;
mod drawn;
mod modes;
mod report;
mod rows;
mod states;

use std::fmt;
use std::sync::{Arc, OnceLock};

use checkpoint::{Checkpoint, CheckpointError, TensorEntry, TensorSource};
use errors::Refusal;
use numeric::{Elements, FloatType, Stored, Zeros};
use recipe::{GateMode, PromptTokens};

use super::split::Splits;
pub(super) use directions::{Changed, Changes};
use rows::Rows;

/// What a tensor that no model has is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Invented {
    /// The rows of the router of the layer with this place among those with experts.
    Rows(usize),
    /// The row that the shared expert of that layer is gated by.
    SharedGate(usize),
    /// What is added to the scores of the rows of that layer when experts are chosen.
    Correction(usize),
    /// Zeros.
    Zeros,
}

/// How rows are made.
pub(super) struct Recipe {
    pub(super) mode: GateMode,
    /// The names of the routers' tensors, by layer: they key what is drawn.
    pub(super) names: Vec<String>,
    /// Width of a row.
    pub(super) hidden: usize,
    /// How many experts.
    pub(super) experts: usize,
    /// Into how many parts each expert is cut; they have the same row.
    pub(super) parts: usize,
    /// Whether the shared expert has a row of its own, behind those of the experts.
    pub(super) shared_gate: bool,
    pub(super) seed: u64,
    pub(super) center: bool,
    pub(super) normalize: bool,
    pub(super) temperature: f64,
    /// The file that rows are read from.
    pub(super) file: Option<Arc<Checkpoint>>,
    /// The layers of the routers, ascending.
    pub(super) layers: Vec<usize>,
    /// The prompts, cut into tokens.
    pub(super) prompts: Vec<Prompt>,
    /// Which of their tokens count.
    pub(super) tokens: PromptTokens,
    /// The dense model whose states or embeddings are taken.
    pub(super) model: Option<Arc<Checkpoint>>,
    /// Tokens whose states may be held at a time.
    pub(super) most_tokens: usize,
    /// The models whose differences are taken.
    pub(super) changes: Option<Changes>,
    /// Of rows that are added to the routers of `model`: what else is made for them.
    pub(super) beside: Option<Beside>,
    /// Cuts of experts, which are decided in the same go.
    pub(super) splits: Option<Splits>,
}

/// A mixture that gets more rows: as long as its own are in the mean, with the mean of their corrections.
pub(super) struct Beside {
    /// The names of its routers, by layer.
    pub(super) routers: Vec<String>,
    /// The names of the tensors of corrections, by layer.
    pub(super) corrections: Option<Vec<String>>,
}

/// A prompt, cut into tokens.
pub(super) struct Prompt {
    /// The expert that it is of; the shared one comes last.
    pub(super) row: usize,
    /// One over the number of the expert's prompts of its kind; negative for those that it is not for.
    pub(super) weight: f64,
    /// Whether its first token only says that a text begins.
    pub(super) begins: bool,
    pub(super) tokens: Vec<u32>,
}

impl Recipe {
    /// The models that rows are made from.
    fn models(&self) -> impl Iterator<Item = &Arc<Checkpoint>> {
        let changes = self.changes.iter().flat_map(Changes::models);
        let splits = self.splits.iter().flat_map(|splits| splits.models.values());
        self.model.iter().chain(changes).chain(splits)
    }

    /// Rows of each layer.
    fn rows(&self) -> usize {
        self.experts + usize::from(self.shared_gate)
    }

    /// Bytes of all rows while they are made, and of cuts.
    fn bytes(&self) -> u64 {
        let rows = self.rows() * size_of::<f64>() + self.rows() * self.parts * size_of::<f32>();
        let splits = self.splits.as_ref().map_or(0, Splits::bytes);
        (self.names.len() * self.hidden * rows) as u64 + splits
    }
}

/// The tensors that no model has.
pub(super) struct Routers {
    recipe: Recipe,
    entries: Vec<TensorEntry>,
    /// What each of them is.
    tensors: Vec<Invented>,
    made: OnceLock<Finished>,
}

/// What was made.
#[derive(Debug)]
struct Finished {
    /// For each layer, the bytes of its rows as f32.
    rows: Vec<Vec<u8>>,
    /// For each layer, those of their corrections.
    corrections: Vec<Vec<u8>>,
    /// What there is to be said of them.
    notes: Vec<String>,
}

impl fmt::Debug for Routers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routers").finish_non_exhaustive()
    }
}

impl Routers {
    pub(super) fn new(recipe: Recipe, made: Vec<(TensorEntry, Invented)>) -> Self {
        let (entries, tensors) = made.into_iter().unzip();
        Routers {
            recipe,
            entries,
            tensors,
            made: OnceLock::new(),
        }
    }

    /// The bytes of some rows of a layer.
    fn rows(&self, layer: usize, rows: std::ops::Range<usize>) -> Option<Box<dyn Elements + '_>> {
        let row = self.recipe.hidden * size_of::<f32>();
        let bytes = self.made.get()?.rows.get(layer)?;
        Some(Box::new(Stored {
            bytes: bytes.get(rows.start * row..rows.end * row)?,
            format: FloatType::F32,
        }))
    }
}

impl TensorSource for Routers {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn bytes(&self, _index: usize) -> Option<&[u8]> {
        None
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        let experts = self.recipe.experts * self.recipe.parts;
        match *self.tensors.get(index)? {
            Invented::Zeros => Some(Box::new(Zeros)),
            Invented::Correction(layer) => Some(Box::new(Stored {
                bytes: self.made.get()?.corrections.get(layer)?,
                format: FloatType::F32,
            })),
            Invented::Rows(layer) => self.rows(layer, 0..experts),
            Invented::SharedGate(layer) => self.rows(layer, experts..experts + 1),
        }
    }

    fn prepare(
        &self,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Refusal> {
        if self.made.get().is_some() {
            return Ok(());
        }
        if let Some(splits) = &self.recipe.splits {
            splits.decide(threads, cancelled)?;
        }
        let layers = modes::make(&self.recipe, threads, cancelled)?;
        let notes = match self.recipe.mode {
            // All alike, and meant to be.
            GateMode::Zero => Vec::new(),
            _ => report::notes(&layers, &self.recipe),
        };
        let Recipe { experts, parts, .. } = self.recipe;
        let bytes = |rows: Rows| {
            let mut bytes = Vec::with_capacity(rows.values.len() * parts * size_of::<f32>());
            for (number, row) in rows.values.chunks_exact(rows.hidden).enumerate() {
                let times = if number < experts { parts } else { 1 };
                for value in std::iter::repeat_n(row, times).flatten() {
                    bytes.extend((*value as f32).to_le_bytes());
                }
            }
            bytes
        };
        let corrections = modes::corrections(&self.recipe)?;
        let repeated = |mean: f64| (mean as f32).to_le_bytes().repeat(experts);
        // A second call would have made the same.
        let _ = self.made.set(Finished {
            rows: layers.into_iter().map(bytes).collect(),
            corrections: corrections.into_iter().map(repeated).collect(),
            notes,
        });
        Ok(())
    }

    fn reads_results(&self) -> bool {
        self.recipe.models().any(|model| !model.is_stored())
    }

    fn said(&self) -> Vec<String> {
        self.made
            .get()
            .map_or(Vec::new(), |made| made.notes.clone())
    }

    fn held(&self) -> u64 {
        self.recipe.bytes()
    }

    fn check_unchanged(&self) -> Result<(), CheckpointError> {
        let mut files = self.recipe.file.iter().chain(self.recipe.models());
        files.try_for_each(|model| model.check_unchanged())
    }
}

/// The entry of a tensor that no model has.
pub(super) fn entry(name: String, shape: Vec<usize>) -> TensorEntry {
    let elements: usize = shape.iter().product();
    TensorEntry {
        name,
        dtype: checkpoint::Dtype::F32,
        shape,
        len: (elements * size_of::<f32>()) as u64,
    }
}
