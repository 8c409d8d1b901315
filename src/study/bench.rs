//! Where trials are merged and scored: models stay open, and items stay cut into tokens, from one trial to the next.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::command::Commands;
use super::error::StudyError;
use super::file::Study;
use super::inputs::{Input, Inputs};
use super::search::Listener;
use checkpoint::{Checkpoint, CheckpointError, Location, Locator, ModelRef, Resolver};
use engine::Observer;
use eval::{Prepared, Scores, Split, Surroundings, Tasks};
use plan::Plan;
use run::Merged;

/// What trials are merged and scored with.
#[derive(Debug, Clone)]
pub struct Means {
    /// Finds models.
    pub locator: Locator,
    /// The options of all merges.
    pub options: plan::Options,
    /// A folder for results that several documents of a recipe read.
    pub scratch: PathBuf,
    /// That a study may run commands; none if it may not.
    pub commands: Option<Commands>,
}

/// The models that are open: the name in the recipe, where it was found, the model.
type Open = Vec<(String, Location, Arc<Checkpoint>)>;

/// Opens each model once.
struct Kept<'b> {
    locator: Locator,
    open: &'b Mutex<Open>,
}

impl Resolver for Kept<'_> {
    fn resolve(&self, model: &ModelRef) -> Result<Arc<Checkpoint>, CheckpointError> {
        let location = self.locator.locate(model)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let found = open
            .iter()
            .find(|(name, at, _)| name == model.text() && *at == location);
        if let Some((_, _, found)) = found {
            return Ok(Arc::clone(found));
        }
        let found = self.locator.resolve(model)?;
        open.push((model.text().to_owned(), location, Arc::clone(&found)));
        Ok(found)
    }
}

/// Models, which are opened once and stay open.
pub(crate) struct Models {
    means: Means,
    open: Mutex<Open>,
    inputs: Mutex<Inputs>,
}

impl Models {
    /// Of a study whose prompts may be written by chat templates.
    pub(crate) fn new(means: Means, chat_template: bool) -> Models {
        Models {
            means,
            open: Mutex::default(),
            inputs: Mutex::new(Inputs::new(chat_template)),
        }
    }

    /// Plans a merge whose random masks have this seed; the recipe's file is where relative paths of models begin.
    pub(crate) fn plan(&self, file: &Path, text: &str, seed: u64) -> Result<Plan, StudyError> {
        let name = file.display().to_string();
        let recipe = recipe::parse_with_registry(&name, text)?;
        let kept = Kept {
            locator: Locator {
                recipe_dir: file.parent().map(Path::to_owned),
                ..self.means.locator.clone()
            },
            open: &self.open,
        };
        let options = plan::Options {
            seed,
            ..self.means.options.clone()
        };
        Ok(plan::plan(&recipe, &name, &kept, &options)?)
    }

    /// The parts of the models that a plan reads, with their digests; tensors in a state of `before` are not read.
    pub(crate) fn inputs(
        &self,
        plan: &Plan,
        before: &[Input],
        listener: &dyn Listener,
    ) -> Result<Vec<Input>, StudyError> {
        let threads = self.means.options.settings.threads;
        let mut inputs = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        inputs.of(plan, before, threads, &Stops(listener))
    }
}

/// Models, tasks, and what is known of both.
pub(crate) struct Bench<'a> {
    models: Arc<Models>,
    tasks: &'a Tasks,
    split_seed: u64,
    chat_template: bool,
    prepared: Cut,
    listener: &'a dyn Listener,
}

/// Items as tokens, for a vocabulary.
#[derive(Default)]
struct Cut {
    /// The digest of the files that decide how items are cut.
    key: Option<blake3::Hash>,
    items: Vec<((Split, Option<usize>), Prepared)>,
}

/// Passes on that the work is to stop, and nothing else.
pub(crate) struct Stops<'a>(pub(crate) &'a dyn Listener);

impl Observer for Stops<'_> {
    fn advance(&self, _bytes: u64) {}

    fn cancelled(&self) -> bool {
        self.0.is_stopped()
    }
}

impl eval::Listener for Stops<'_> {
    fn scored(&self, _items: usize, _all: usize) {}

    fn is_stopped(&self) -> bool {
        self.0.is_stopped()
    }
}

impl<'a> Bench<'a> {
    pub(crate) fn new(
        means: Means,
        tasks: &'a Tasks,
        study: &Study,
        listener: &'a dyn Listener,
    ) -> Self {
        Bench {
            models: Arc::new(Models::new(means, study.chat_template)),
            tasks,
            split_seed: study.split_seed,
            chat_template: study.chat_template,
            prepared: Cut::default(),
            listener,
        }
    }

    /// Another with the same models, whose listener may be another.
    pub(crate) fn beside<'b>(&'b self, listener: &'b dyn Listener) -> Bench<'b> {
        Bench {
            models: Arc::clone(&self.models),
            tasks: self.tasks,
            split_seed: self.split_seed,
            chat_template: self.chat_template,
            prepared: Cut::default(),
            listener,
        }
    }

    /// Plans a merge whose random masks have this seed; the recipe's file is where relative paths of models begin.
    pub(crate) fn plan(&self, file: &Path, text: &str, seed: u64) -> Result<Plan, StudyError> {
        self.models.plan(file, text, seed)
    }

    /// Merges in memory.
    pub(crate) fn merge(&self, plan: &Plan, label: &str) -> Result<Merged, StudyError> {
        Ok(run::in_memory(
            plan,
            label,
            &self.models.means.scratch,
            &Stops(self.listener),
        )?)
    }

    /// The parts of the models that a plan reads, with their digests.
    pub(crate) fn inputs(&mut self, plan: &Plan) -> Result<Vec<Input>, StudyError> {
        self.models.inputs(plan, &[], self.listener)
    }

    /// The model of a plan that has this label.
    pub(crate) fn model(plan: &Plan, label: &str) -> Option<Arc<Checkpoint>> {
        plan.models
            .iter()
            .find(|model| model.label() == label)
            .map(Arc::clone)
    }

    /// Scores a merge on some items of a split: at most so many of each task.
    pub(crate) fn score(
        &mut self,
        merged: &Merged,
        split: Split,
        limit: Option<usize>,
    ) -> Result<Scores, StudyError> {
        let listener = self.listener;
        Ok(self
            .items(merged, split, limit)?
            .score(&merged.model, &Stops(listener))?)
    }

    /// Whether a limit leaves items out.
    pub(crate) fn is_limit(&mut self, merged: &Merged, limit: usize) -> Result<bool, StudyError> {
        let all = self.items(merged, Split::Validation, None)?.items();
        Ok(self.items(merged, Split::Validation, Some(limit))?.items() < all)
    }

    fn items(
        &mut self,
        merged: &Merged,
        split: Split,
        limit: Option<usize>,
    ) -> Result<&Prepared, StudyError> {
        let key = digest_of_files(&merged.files);
        if self.prepared.key != Some(key) {
            self.prepared = Cut {
                key: Some(key),
                items: Vec::new(),
            };
        }
        let known = self
            .prepared
            .items
            .iter()
            .position(|(known, _)| *known == (split, limit));
        let at = match known {
            Some(at) => at,
            None => {
                let surroundings = Surroundings::of_files(merged.model.label(), &merged.files)?;
                let options = self.options(split, limit);
                let stops = Stops(self.listener);
                let prepared = Prepared::new(&surroundings, self.tasks, &options, &stops)?;
                self.prepared.items.push(((split, limit), prepared));
                self.prepared.items.len() - 1
            }
        };
        Ok(&self.prepared.items[at].1)
    }

    fn options(&self, split: Split, limit: Option<usize>) -> eval::Options {
        let settings = &self.models.means.options.settings;
        eval::Options {
            split,
            seed: self.split_seed,
            limit,
            chat_template: self.chat_template,
            threads: settings.threads,
            memory: settings.memory.usual(),
            ..eval::Options::default()
        }
    }

    /// Scores a model as it is stored, with the files beside it.
    pub(crate) fn score_stored(
        &self,
        model: &Checkpoint,
        split: Split,
    ) -> Result<Scores, StudyError> {
        Ok(eval::score(
            model,
            self.tasks,
            &self.options(split, None),
            &Stops(self.listener),
        )?)
    }
}

fn digest_of_files(files: &BTreeMap<String, Vec<u8>>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for (name, bytes) in files {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(blake3::hash(bytes).as_bytes());
    }
    hasher.finalize()
}
