//! Where trials are merged and scored: models stay open, and items stay cut into tokens, from one trial to the next.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::StudyError;
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

/// Models, tasks, and what is known of both.
pub(crate) struct Bench<'a> {
    means: Means,
    open: Mutex<Open>,
    digests: Vec<(Arc<Checkpoint>, String)>,
    tasks: &'a Tasks,
    split_seed: u64,
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
struct Stops<'a>(&'a dyn Listener);

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
        split_seed: u64,
        listener: &'a dyn Listener,
    ) -> Self {
        Bench {
            means,
            open: Mutex::default(),
            digests: Vec::new(),
            tasks,
            split_seed,
            prepared: Cut::default(),
            listener,
        }
    }

    /// Plans a merge; the recipe's file is where relative paths of models begin.
    pub(crate) fn plan(&self, file: &Path, text: &str) -> Result<Plan, StudyError> {
        let name = file.display().to_string();
        let recipe = recipe::parse_with_registry(&name, text)?;
        let kept = Kept {
            locator: Locator {
                recipe_dir: file.parent().map(Path::to_owned),
                ..self.means.locator.clone()
            },
            open: &self.open,
        };
        Ok(plan::plan(&recipe, &name, &kept, &self.means.options)?)
    }

    /// Merges in memory.
    pub(crate) fn merge(&self, plan: &Plan, label: &str) -> Result<Merged, StudyError> {
        Ok(run::in_memory(
            plan,
            label,
            &self.means.scratch,
            &Stops(self.listener),
        )?)
    }

    /// The models that a plan reads, each with the digest of all that it holds.
    pub(crate) fn inputs(&mut self, plan: &Plan) -> Result<Vec<(String, String)>, StudyError> {
        let mut inputs = Vec::new();
        for model in plan.models.iter().filter(|model| model.is_stored()) {
            let known = self
                .digests
                .iter()
                .find(|(known, _)| Arc::ptr_eq(known, model));
            let digest = match known {
                Some((_, digest)) => digest.clone(),
                None => {
                    let digest = self.digest(model)?;
                    self.digests.push((Arc::clone(model), digest.clone()));
                    digest
                }
            };
            inputs.push((model.label().to_owned(), digest));
        }
        Ok(inputs)
    }

    fn digest(&self, model: &Checkpoint) -> Result<String, StudyError> {
        let digests = run::all_digests(
            model,
            self.means.options.settings.threads,
            &Stops(self.listener),
        )?;
        let mut hasher = blake3::Hasher::new();
        for (tensor, digest) in model.tensors().iter().zip(digests) {
            let digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
            hasher.update(
                format!(
                    "{:?} {:?} {:?} {digest}\n",
                    tensor.name, tensor.dtype, tensor.shape
                )
                .as_bytes(),
            );
        }
        if let Some(config) = model.config() {
            hasher.update(config.value().to_string().as_bytes());
        }
        if let Some(adapter) = &model.location().adapter {
            hash_folder(&adapter.path, &mut hasher)?;
        }
        Ok(hasher.finalize().to_string())
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
                let prepared =
                    Prepared::new(&surroundings, self.tasks, &self.options(split, limit))?;
                self.prepared.items.push(((split, limit), prepared));
                self.prepared.items.len() - 1
            }
        };
        Ok(&self.prepared.items[at].1)
    }

    fn options(&self, split: Split, limit: Option<usize>) -> eval::Options {
        let settings = &self.means.options.settings;
        eval::Options {
            split,
            seed: self.split_seed,
            limit,
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

/// The names and bytes of the files of an adapter.
fn hash_folder(folder: &Path, hasher: &mut blake3::Hasher) -> Result<(), StudyError> {
    let failed = || StudyError::file("read", folder);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    for path in files {
        let failed = || StudyError::file("read", &path);
        hasher.update(
            path.file_name()
                .map(|name| name.as_encoded_bytes())
                .unwrap_or_default(),
        );
        let mut of_file = blake3::Hasher::new();
        of_file
            .update_reader(File::open(&path).map_err(failed())?)
            .map_err(failed())?;
        hasher.update(of_file.finalize().as_bytes());
    }
    Ok(())
}
