//! Where the inputs of a checkpoint are looked for, and where each was found.
//!
//! What the caller names comes first, and an argument that names nothing is an error. Then comes what the merge
//! recorded on this machine, then the recipe's own paths. The report says for each input which of these it was, because
//! a verification is worth no more than the inputs that it starts from.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::checks;
use crate::{Finding, Place, Report, Table};
use checkpoint::{Checkpoint, FileState, Location, Locator, ModelRef};
use errors::{Hint, Refusal, some_of};
use recipe::{AnyRecipe, Recipe, Tokenizer, nearest};

/// The most names of models that a message lists.
const NAMES_SHOWN: usize = 8;

/// An argument that says where inputs are, and names nothing.
#[derive(Debug, thiserror::Error)]
pub enum InputsError {
    /// It names no folder.
    #[error("--inputs {}: there is no such folder", .given.escape_debug())]
    NoFolder {
        /// The argument.
        given: String,
        /// The models of the recipe.
        names: Vec<String>,
    },
    /// Two arguments name folders.
    #[error("--inputs names more than one folder")]
    TwoFolders,
    /// Nothing is at the path of a model.
    #[error("--inputs {}: there is nothing at this path", .given.escape_debug())]
    NoPath {
        /// The argument.
        given: String,
    },
    /// The recipe has no such model.
    #[error("--inputs {}: the recipe names no such model", .name.escape_debug())]
    NoModel {
        /// The name that was given.
        name: String,
        /// The models of the recipe.
        names: Vec<String>,
    },
    /// Two arguments name one model.
    #[error("--inputs names the model `{}` twice", .name.escape_debug())]
    Twice {
        /// The model.
        name: String,
    },
    /// No input is in the folder.
    #[error("--inputs {}: none of the inputs is in this folder", .given.escape_debug())]
    Unused {
        /// The argument.
        given: String,
    },
}

impl Hint for InputsError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::NoFolder { names, .. } => Cow::Owned(format!(
                "name the folder that the inputs' paths start from, or one model as NAME=PATH; {}",
                listed(names)
            )),
            Self::TwoFolders => "give the models of the other folder as NAME=PATH".into(),
            Self::NoPath { .. } => "correct the path".into(),
            Self::NoModel { name, names } => {
                match nearest(name, names.iter().map(String::as_str)) {
                    Some(near) => Cow::Owned(format!("`{}` is meant?", near.escape_debug())),
                    None => Cow::Owned(listed(names)),
                }
            }
            Self::Twice { .. } => "leave one of the two out".into(),
            Self::Unused { .. } => {
                "leave it out: the inputs were found elsewhere, as the recipe names them".into()
            }
        })
    }
}

fn listed(names: &[String]) -> String {
    let names = names
        .iter()
        .map(|name| format!("`{}`", name.escape_debug()));
    format!("the recipe's models are {}", some_of(names, NAMES_SHOWN))
}

/// Where the inputs of a checkpoint are looked for.
#[derive(Debug)]
pub struct Inputs {
    locator: Locator,
    /// Models that the caller names, and their paths.
    named: Vec<(String, PathBuf)>,
    /// The folder that the caller names: as it was given, and its path.
    folder: Option<(String, PathBuf)>,
    /// Where the merge found its inputs on this machine.
    recorded: Vec<(String, PathBuf)>,
    /// The models that the recipe names.
    names: Vec<String>,
    /// The folder that the checkpoint is in.
    around: Option<PathBuf>,
}

/// What led to an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Named,
    Recorded,
    Hub,
    Recipe,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Named => "--inputs",
            Way::Recorded => "the merge's own record",
            Way::Hub => "the Hub's cache",
            Way::Recipe => "the recipe",
        }
    }
}

/// An input, or the adapter of one, that was found.
struct Found {
    model: String,
    role: &'static str,
    place: String,
    way: Way,
    beside: bool,
    hub: Value,
}

impl Inputs {
    /// Places for the models of these names, of the checkpoint at a location: `given` are the caller's arguments, each
    /// `NAME=PATH` or the folder where relative paths start; `recorded` are the paths that the merge recorded, by the
    /// lock's names.
    ///
    /// # Errors
    /// An argument names no model, no folder, or nothing that exists.
    pub(super) fn new(
        names: Vec<String>,
        location: &Location,
        given: &[String],
        recorded: Vec<(String, PathBuf)>,
        locator: Locator,
    ) -> Result<Inputs, InputsError> {
        let around = locator.working_dir.join(&location.path);
        let around = fs::canonicalize(&around).unwrap_or(around);
        let around = around.parent().map(Path::to_owned);
        let mut inputs = Inputs {
            names,
            named: Vec::new(),
            folder: None,
            recorded: Vec::new(),
            around,
            locator,
        };
        for given in given {
            inputs.add(given)?;
        }
        // A folder that is named counts, not one that was recorded.
        if inputs.folder.is_none() {
            inputs.recorded = recorded
                .into_iter()
                .filter(|(_, path)| path.exists())
                .collect();
        }
        Ok(inputs)
    }

    fn add(&mut self, given: &str) -> Result<(), InputsError> {
        let path = |text: &str| self.locator.working_dir.join(text);
        // Names may have equals signs too: the longest that is a model's counts.
        let splits = given.match_indices('=');
        let splits: Vec<(&str, &str)> = splits
            .map(|(at, _)| (&given[..at], &given[at + 1..]))
            .collect();
        let of_model = |(name, _): &&(&str, &str)| self.names.iter().any(|known| known == name);
        if let Some((name, at)) = splits.iter().rev().find(of_model) {
            let at = path(at);
            if !at.exists() {
                return Err(InputsError::NoPath {
                    given: given.to_owned(),
                });
            }
            if self.named.iter().any(|(other, _)| other == name) {
                return Err(InputsError::Twice {
                    name: (*name).to_owned(),
                });
            }
            self.named.push(((*name).to_owned(), at));
            return Ok(());
        }
        let folder = path(given);
        if !given.is_empty() && folder.is_dir() {
            return match self.folder.replace((given.to_owned(), folder)) {
                None => Ok(()),
                Some(_) => Err(InputsError::TwoFolders),
            };
        }
        let names = self.names.clone();
        Err(match splits.first() {
            Some((name, _)) => InputsError::NoModel {
                name: (*name).to_owned(),
                names,
            },
            None => InputsError::NoFolder {
                given: given.to_owned(),
                names,
            },
        })
    }

    /// The locator that a planner resolves the models of the checkpoint at a location with.
    pub fn locator(&self, location: &Location, recipe_dir: Option<PathBuf>) -> Locator {
        let named = self.named.iter().chain(&self.recorded).cloned();
        let locator = Locator {
            elsewhere: named.collect(),
            ..self.locator.clone()
        };
        match &self.folder {
            // Relative paths start there and nowhere else.
            Some((_, folder)) => Locator {
                working_dir: folder.clone(),
                recipe_dir: None,
                ..locator
            },
            None => Locator {
                // Merges are often kept beside what they were made from.
                recipe_dir: recipe_dir.or_else(|| {
                    let model = locator.working_dir.join(&location.path);
                    model.parent().map(Into::into)
                }),
                ..locator
            },
        }
    }

    /// Checks that the folder that the caller named holds an input.
    ///
    /// # Errors
    /// It holds none: the inputs were found elsewhere.
    pub fn check_used(&self, models: &[&Checkpoint]) -> Result<(), InputsError> {
        let Some((given, folder)) = &self.folder else {
            return Ok(());
        };
        let mut parts = models.iter().flat_map(|model| model.location().paths());
        match parts.any(|path| is_in(path, folder)) {
            true => Ok(()),
            false => Err(InputsError::Unused {
                given: given.clone(),
            }),
        }
    }

    /// What led to the model or adapter at a location.
    fn way(&self, location: &Location) -> Way {
        let at = |(_, path): &(String, PathBuf)| *path == location.path;
        let in_folder = |(_, folder): &(String, PathBuf)| is_in(&location.path, folder);
        if self.named.iter().any(at) || self.folder.as_ref().is_some_and(in_folder) {
            Way::Named
        } else if location.hub.is_some() {
            Way::Hub
        } else if self.recorded.iter().any(at) {
            Way::Recorded
        } else {
            Way::Recipe
        }
    }

    /// Whether a location is below the folder that the checkpoint is in.
    fn is_beside(&self, location: &Location) -> bool {
        let real = fs::canonicalize(&location.path);
        let real = real.unwrap_or_else(|_| location.path.clone());
        let around = self
            .around
            .as_ref()
            .filter(|around| around.parent().is_some());
        location.hub.is_none() && around.is_some_and(|around| real.starts_with(around))
    }

    fn found(&self, model: &Checkpoint, role: &'static str) -> Vec<Found> {
        let location = model.location();
        let adapters = location.parts().skip(1).map(|adapter| (adapter, "adapter"));
        let parts = [(location, role)].into_iter().chain(adapters);
        let part = |(location, role): (&Location, &'static str)| Found {
            model: model.label().to_owned(),
            role,
            place: location.path.display().to_string(),
            way: self.way(location),
            beside: self.is_beside(location),
            hub: location.hub.as_ref().map_or(
                Value::Null,
                |hub| json!({"repo": hub.repo, "revision": hub.revision, "commit": hub.commit}),
            ),
        };
        parts.map(part).collect()
    }

    /// Says in the report where each input was found, and which lay beside the checkpoint though nobody named them.
    pub(super) fn report(&self, models: &[&Checkpoint], base: Option<&str>, report: &mut Report) {
        let mut rows = Vec::new();
        let mut details = Vec::new();
        for model in models {
            let role = if base == Some(model.label()) {
                "base"
            } else {
                ""
            };
            for found in self.found(model, role) {
                let unnamed = found.way == Way::Recipe && found.beside;
                if unnamed {
                    report.add(Finding::new(
                        &checks::INPUT_BESIDE,
                        Place::file(&found.model),
                        "a place that --inputs names, the merge recorded, or the Hub's cache",
                        format!("{}, beside the checkpoint", found.place),
                    ));
                }
                details.push(found.details());
                rows.push(found.row());
            }
        }
        report.details["inputs"] = details.into();
        report.tables.push(Table {
            title: "inputs".to_owned(),
            columns: ["model", "role", "found by", "at"]
                .map(str::to_owned)
                .to_vec(),
            rows,
        });
    }
}

impl Found {
    fn row(&self) -> Vec<String> {
        let at = match (self.hub.get("revision"), self.hub.get("commit")) {
            (Some(Value::String(revision)), Some(Value::String(commit))) => {
                format!("{} ({revision}, commit {commit})", self.place)
            }
            _ => self.place.clone(),
        };
        let beside = if self.beside {
            ", beside the checkpoint"
        } else {
            ""
        };
        let by = format!("{}{beside}", self.way.name());
        vec![self.model.clone(), self.role.to_owned(), by, at]
    }

    fn details(&self) -> Value {
        json!({
            "model": self.model,
            "role": self.role,
            "path": self.place,
            "found_by": self.way.name(),
            "beside": self.beside,
            "hub": self.hub,
        })
    }
}

/// Whether a path is below a folder, as it is written or as it is.
fn is_in(path: &Path, folder: &Path) -> bool {
    let real = fs::canonicalize(path)
        .ok()
        .zip(fs::canonicalize(folder).ok());
    path.starts_with(folder) || real.is_some_and(|(path, folder)| path.starts_with(folder))
}

/// Adds a model's name, unless it is there, and adapters and the model below them by themselves.
pub(super) fn add_names(model: &ModelRef, names: &mut Vec<String>) {
    for model in std::iter::once(model.clone()).chain(model.parts()) {
        if !names.iter().any(|known| known == model.text()) {
            names.push(model.text().to_owned());
        }
    }
}

/// The models that a recipe names, each once, and each adapter and the model below it by themselves.
pub(super) fn names(recipe: &AnyRecipe, tokenizer_from: Option<&ModelRef>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut add = |model: &ModelRef| add_names(model, &mut names);
    let of_merge = |recipe: &Recipe, add: &mut dyn FnMut(&ModelRef)| {
        let tokenizer = recipe.tokenizer.iter().flat_map(Tokenizer::mentions);
        recipe
            .mentions()
            .chain(tokenizer)
            .chain(recipe.statistics().map(|(_, file)| file))
            .for_each(|model| add(&model.value));
    };
    let results = match recipe {
        AnyRecipe::Merge(recipe) => {
            of_merge(recipe, &mut add);
            &recipe.results
        }
        AnyRecipe::Moe(recipe) => {
            recipe.mentions().for_each(|model| add(&model.value));
            let rows = recipe.router.file.as_ref();
            let rows = rows.and_then(|file| ModelRef::parse(&file.value).ok());
            rows.iter().for_each(&mut add);
            &recipe.results
        }
        AnyRecipe::Edit(recipe) => {
            recipe.mentions().for_each(|model| add(&model.value));
            &recipe.results
        }
    };
    results.iter().for_each(|recipe| of_merge(recipe, &mut add));
    tokenizer_from.into_iter().for_each(&mut add);
    // The results of the recipe's own documents are not looked for.
    let made = |name: &String| {
        let of_document = |result: &Recipe| result.name.as_ref().map(|of| &of.value) == Some(name);
        results.iter().any(of_document)
    };
    names.retain(|name| !made(name));
    names
}

/// The finding that an input is the checkpoint itself, for each input that is.
pub(super) fn own(models: &[&Checkpoint], model: &Checkpoint) -> Vec<Finding> {
    let states = |model: &Checkpoint| -> Vec<FileState> {
        let shards = model.shards().into_iter();
        shards
            .filter_map(|shard| FileState::at(&shard.path).ok())
            .collect()
    };
    let checkpoint = states(model);
    let is_of_checkpoint =
        |file: &FileState| checkpoint.iter().any(|own| own.is_of_same_file(file));
    let hub = |model: &Checkpoint| model.location().hub.as_ref().map(|hub| hub.commit.clone());
    let is_own = |input: &&Checkpoint| {
        // Commits of one repository share the files that did not change.
        let other_commit = hub(model).zip(hub(input)).is_some_and(|(a, b)| a != b);
        !other_commit && states(input).iter().any(is_of_checkpoint)
    };
    let found = models
        .iter()
        .copied()
        .filter(|input| is_own(input))
        .map(|input| {
            Finding::new(
                &checks::OWN_INPUT,
                Place::file(input.label()),
                "another model",
                "the checkpoint itself",
            )
        });
    found.collect()
}

/// Why a recipe has no plan: its first problem, and the number of further ones.
pub fn no_plan(error: &recipe::RecipeError) -> Refusal {
    let first = error.problems.first();
    let first = first.map_or(String::new(), |problem| problem.message.clone());
    let more = match error.problems.len() {
        0 | 1 => String::new(),
        more => format!("; and {} more problems", more - 1),
    };
    Refusal::new(format!("{first}{more}")).with_hint(
        "say where the inputs are: --inputs FOLDER if their paths start from there, --inputs NAME=PATH for one of them",
    )
}
