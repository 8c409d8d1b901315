//! Writes the files of a LoRA adapter to a destination, with lock and card, as a run of a plan does for a model.
//!
//! Its tensors are not known before they are computed, so no plan lists them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use super::card::{CARD_FILE, Card, repositories};
use super::destination::{Chunks, Staged};
use super::error::RunError;
use super::lock::{LOCK_FILE, LockedOptions, Shortened, Subject};
use super::output::{SideFiles, Written};
use super::{check_unchanged, input_digests, look};
use checkpoint::{Checkpoint, ShardLayout};
use engine::Observer;
use plan::{Plan, licences_of};

/// What an adapter is made from.
pub struct AdapterOrigin<'a> {
    /// The command that makes it: `merge` or `extract-lora`.
    pub command: &'static str,
    /// The recipe's text.
    pub recipe: String,
    /// The options that the result depends on.
    pub options: LockedOptions,
    /// The seed, if the result depends on it.
    pub seed: Option<u64>,
    /// The models that are read, the one that the adapter is for first.
    pub models: Vec<&'a Checkpoint>,
    /// How it is made: a sentence for its card.
    pub made: String,
    /// Whether the lock gets the digests of the models' tensors; this reads them once more.
    pub hash_inputs: bool,
    /// Number of worker threads.
    pub threads: usize,
}

impl AdapterOrigin<'_> {
    /// The options of a plan, as a lock has them.
    pub fn options_of(plan: &Plan, models: &[&Checkpoint]) -> LockedOptions {
        LockedOptions::of_plan(plan, &Shortened::new(models))
    }
}

/// An adapter whose files are written.
pub struct AdapterFiles<'a> {
    staged: Box<dyn Staged>,
    observer: &'a dyn Observer,
    written: BTreeMap<String, Written>,
    weights: Vec<ShardLayout>,
    tensors: Vec<(String, blake3::Hash)>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// The digest of the lock.
    pub lock: blake3::Hash,
    /// Notes for the user.
    pub notes: Vec<String>,
}

impl<'a> AdapterFiles<'a> {
    /// An adapter of which nothing is written yet.
    pub fn new(staged: Box<dyn Staged>, observer: &'a dyn Observer) -> Self {
        Self {
            staged,
            observer,
            written: BTreeMap::new(),
            weights: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// An unnamed file, for tensors until all are known.
    ///
    /// # Errors
    /// It could not be created.
    pub fn scratch(&self) -> Result<File, RunError> {
        self.staged.scratch()
    }

    /// Writes the file of the weights, header first. `tensors` are their names and digests.
    ///
    /// # Errors
    /// A chunk could not be read or written.
    pub fn weights(
        &mut self,
        layout: ShardLayout,
        tensors: Vec<(String, blake3::Hash)>,
        chunks: &mut Chunks<'_>,
    ) -> Result<(), RunError> {
        self.staged.side_file(&layout.file_name, chunks)?;
        self.weights.push(layout);
        self.tensors = tensors;
        Ok(())
    }

    /// Writes another file.
    ///
    /// # Errors
    /// It could not be written.
    pub fn write(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), RunError> {
        let written = std::mem::take(&mut self.written);
        let mut files = SideFiles::new(self.staged.as_mut(), self.observer, written);
        files.write(name, bytes)?;
        self.written = files.written;
        Ok(())
    }

    /// Writes lock and card, looks at what was written, and puts all in its place: `out` is what the card calls it.
    ///
    /// # Errors
    /// A model changed meanwhile, the work was stopped, or something could not be written. The destination is
    /// unchanged.
    pub fn commit(mut self, origin: AdapterOrigin<'_>, out: &Path) -> Result<Recorded, RunError> {
        let inputs = match origin.hash_inputs {
            true => Some(input_digests(
                &origin.models,
                origin.threads,
                self.observer,
            )?),
            false => None,
        };
        check_unchanged(origin.models.iter().copied())?;
        let subject = Subject {
            command: origin.command,
            recipe: &origin.recipe,
            options: origin.options,
            models: origin.models.clone(),
            has_products: true,
        };
        let tensors = self
            .tensors
            .iter()
            .map(|(name, digest)| (name.as_str(), digest));
        let lock = subject.lock(tensors, &self.written, inputs);
        self.write(LOCK_FILE, lock.text().into_bytes())?;
        let base = origin.models.first().copied();
        let card = Card {
            out,
            hub: repositories(base.into_iter()),
            relation: "adapter",
            library: Some("peft"),
            tags: match origin.command {
                "merge" => vec!["lora", "merge"],
                _ => vec!["lora"],
            },
            made: origin.made,
            base: base.map(Checkpoint::label),
            licences: &licences_of(&origin.models),
            models: origin.models,
            seed: origin.seed,
            found: None,
        };
        self.write(CARD_FILE, card.text(&lock).into_bytes())?;
        for layout in &self.weights {
            look::check_weights(layout, self.staged.as_ref())?;
        }
        look::check_side_files(self.staged.as_ref(), &self.written)?;
        if self.observer.cancelled() {
            return Err(RunError::Cancelled);
        }
        self.staged.finish()?;
        Ok(Recorded {
            lock: lock.digest(),
            notes: self.staged.commit()?,
        })
    }
}
