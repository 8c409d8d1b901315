//! Where the weights of a model lie: in its folder, in the folders of its modules or components, in files beside them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::bounded::read_bounded;
use super::error::{CheckpointError, Stray};
use super::folder::file_names;
use super::format::WrittenAs;
use super::home::{Home, file_in};
use super::json::parse_json;
use super::limits::{MAX_CONFIG_BYTES, MAX_FOLDER_DEPTH, MAX_NAMED_FOLDERS, MAX_PARTS};
use super::locate::Location;
use super::unread::no_weights;
use super::weight_names::{HEADS, is_head_file, is_index, is_model};

/// Names the components of a pipeline.
pub(super) const PIPELINE: &str = "model_index.json";

/// Names the modules of a sentence-transformers model.
const MODULES: &str = "modules.json";

/// Where the weights of a model lie.
#[derive(Debug, Default)]
pub(super) struct Composition {
    /// Whether the folder itself has weights, or is a single file.
    pub(super) is_whole: bool,
    /// The parts beside those weights.
    pub(super) parts: Vec<PartPlace>,
    /// What is wrong with them.
    pub(super) problems: Vec<CheckpointError>,
    /// What was odd, but harmless.
    pub(super) notes: Vec<String>,
}

/// Where the weights of a part lie.
#[derive(Debug)]
pub(super) struct PartPlace {
    /// What the names of its tensors begin with in the model: `unet/`.
    pub(super) prefix: String,
    /// The folder of its files, from that of the model; empty for a file beside the weights.
    pub(super) folder: String,
    pub(super) location: Location,
    /// The format in which it is written.
    pub(super) format: WrittenAs,
}

impl Composition {
    /// Finds the parts of a model by what its folder says. No weight file is opened.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub(super) fn find(location: &Location) -> Result<Composition, CheckpointError> {
        let mut found = Composition {
            is_whole: true,
            ..Composition::default()
        };
        if !location.path.is_dir() || location.entry.is_some() {
            return Ok(found);
        }
        let names = file_names(&location.path)?;
        if names.contains(PIPELINE) {
            found.pipeline(location, &names);
        } else {
            found.modules(location, &names);
        }
        let count = found.parts.len();
        if count > MAX_PARTS {
            found.parts.truncate(MAX_PARTS);
            found.problems.push(CheckpointError::TooLarge {
                path: location.path.clone(),
                what: "number of parts with weights of their own",
                limit: MAX_PARTS as u64,
                found: count as u64,
            });
        }
        Ok(found)
    }

    /// The components that `model_index.json` names.
    fn pipeline(&mut self, location: &Location, names: &BTreeSet<String>) {
        self.is_whole = false;
        let components = components(&location.path).unwrap_or_else(|problem| {
            self.problems.push(problem);
            Vec::new()
        });
        for name in components {
            self.add_folder(location, &name, PIPELINE);
        }
        let beside = names.iter().find(|name| is_model(name));
        if self.parts.is_empty() && self.problems.is_empty() {
            self.problems.push(no_weights(location, names));
        }
        self.notes.extend(beside.map(|name| {
            format!(
                "{} was not read: the model is the pipeline of {PIPELINE}",
                location.path.join(name).display()
            )
        }));
    }

    /// The modules behind a sentence-transformers model, and heads beside the weights.
    fn modules(&mut self, location: &Location, names: &BTreeSet<String>) {
        let folder = &location.path;
        let (own, outside) = named_modules(folder);
        self.problems.extend(outside);
        let has_weights = names.iter().any(|name| is_model(name));
        let is_main = |name: &String| name.ends_with("_Transformer");
        for name in own.iter().filter(|name| !has_weights || !is_main(name)) {
            self.add_folder(location, name, MODULES);
        }
        // Without a model of its own a folder is put together only if its modules are all there is to it.
        self.is_whole = has_weights || !own.iter().any(is_main) || self.parts.is_empty();
        if !self.is_whole {
            return;
        }
        let other = |name: &&String| is_model(name) && !is_head_file(name);
        if !names.iter().any(|name| other(&name)) {
            return;
        }
        for (stem, ends, format) in HEADS {
            let mut files = ends.iter().map(|end| format!("{stem}{end}"));
            let Some(file) = files.find(|file| names.contains(file)) else {
                continue;
            };
            match file_in(folder, &file) {
                Ok(Some(path)) => self.parts.push(PartPlace {
                    prefix: format!("{stem}/"),
                    folder: String::new(),
                    location: Location {
                        path,
                        ..part_of(location)
                    },
                    format,
                }),
                Ok(None) => {}
                Err(problem) => self.problems.push(problem),
            }
        }
    }

    /// Adds the part in a subfolder, if it has weights. `by` is the file that names it.
    fn add_folder(&mut self, location: &Location, name: &str, by: &str) {
        let path = location.path.join(name);
        let files = match self.files_of(location, &path, by) {
            Some(files) => files,
            None => return,
        };
        let inside = Location {
            path,
            ..part_of(location)
        };
        let has_weights = files.iter().any(|file| is_model(file) || is_index(file));
        if has_weights {
            self.parts.push(PartPlace {
                prefix: format!("{name}/"),
                folder: format!("{name}/"),
                location: inside,
                format: WrittenAs::Safetensors,
            });
        } else if by == PIPELINE && files.contains("config.json") {
            self.problems.push(no_weights(&inside, &files));
        }
    }

    /// The names in a part's folder. Reports a folder that is missing from a pipeline, and what leads out of the model's.
    fn files_of(&mut self, location: &Location, path: &Path, by: &str) -> Option<BTreeSet<String>> {
        if !path.is_dir() {
            // That a module has no weights is no obstacle here: `check` knows which need them.
            if by == PIPELINE {
                self.problems.push(CheckpointError::NoComponent {
                    path: path.to_owned(),
                });
            }
            return None;
        }
        let outside = |path: PathBuf| {
            let real = fs::canonicalize(&path).ok()?;
            let home = Home::find(&location.path).ok()?;
            (!home.holds(&real)).then(|| CheckpointError::NotOfFolder {
                path,
                what: Stray::Outside(real),
                hint: "put a copy in the place of the link, if it is meant, or remove the link"
                    .into(),
            })
        };
        if let Some(problem) = outside(path.to_owned()) {
            self.problems.push(problem);
            return None;
        }
        match file_names(path) {
            Ok(names) => {
                let weights = names.iter().filter(|name| is_model(name));
                let strays: Vec<_> = weights
                    .filter_map(|name| outside(path.join(name)))
                    .collect();
                let is_sound = strays.is_empty();
                self.problems.extend(strays);
                is_sound.then_some(names)
            }
            Err(problem) => {
                self.problems.push(problem);
                None
            }
        }
    }
}

/// A location of the same snapshot, to which a part's path is added.
fn part_of(location: &Location) -> Location {
    Location {
        path: PathBuf::new(),
        entry: None,
        store: location.store.clone(),
        hub: location.hub.clone(),
        remote: location.remote.clone(),
        adapters: Vec::new(),
    }
}

/// The components of a pipeline that are not left out: their names, which are those of their folders.
///
/// # Errors
/// `model_index.json` cannot be read, or names a folder that is not in the pipeline's.
pub(super) fn components(folder: &Path) -> Result<Vec<String>, CheckpointError> {
    let path = folder.join(PIPELINE);
    let malformed = |detail| CheckpointError::JsonMalformed {
        path: path.clone(),
        detail,
    };
    let read = file_in(folder, PIPELINE)?.unwrap_or_else(|| path.clone());
    let bytes = read_bounded(&read, MAX_CONFIG_BYTES, "pipeline, in bytes")?;
    let index = parse_json(&bytes).map_err(malformed)?;
    let Some(entries) = index.as_object() else {
        return Err(malformed("expected an object".into()));
    };
    let mut components = Vec::new();
    for (name, value) in entries {
        // `["diffusers", "UNet2DConditionModel"]`; one that is left out is `[null, null]`.
        let is_class = |value: &Value| {
            let parts = value.as_array().map(Vec::as_slice).unwrap_or_default();
            parts.len() == 2 && parts.iter().all(Value::is_string)
        };
        if name.starts_with('_') || !is_class(value) {
            continue;
        }
        if !is_plain(name) {
            return Err(outside(&path, name));
        }
        components.push(name.clone());
    }
    match too_many(&path, components.len()) {
        Some(problem) => Err(problem),
        None => Ok(components),
    }
}

/// The folders of a sentence-transformers model's modules: those that its `modules.json` names, and those that are
/// called as it calls them. Also what it names outside of the folder.
pub(super) fn named_modules(folder: &Path) -> (Vec<String>, Vec<CheckpointError>) {
    let Some(path) = file_in(folder, MODULES).ok().flatten() else {
        return (Vec::new(), Vec::new());
    };
    let read = || {
        let bytes = read_bounded(&path, MAX_CONFIG_BYTES, "modules, in bytes").ok()?;
        parse_json(&bytes).ok()
    };
    let modules = read();
    let modules = modules.as_ref().and_then(Value::as_array);
    if let Some(problem) = too_many(&path, modules.map_or(0, Vec::len)) {
        return (Vec::new(), vec![problem]);
    }
    let named = modules.into_iter().flatten();
    let named = named.filter_map(|module| module.get("path")?.as_str());
    // The first module is often the folder itself.
    let (own, strays): (BTreeSet<&str>, BTreeSet<&str>) = named
        .filter(|path| !matches!(*path, "" | "." | "./"))
        .partition(|path| is_plain(path));
    let mut own: BTreeSet<String> = own.into_iter().map(str::to_owned).collect();
    let names = file_names(folder).unwrap_or_default().into_iter();
    own.extend(names.filter(|name| is_module_dir(name)));
    let strays = strays.into_iter().map(|name| outside(&path, name));
    (own.into_iter().collect(), strays.collect())
}

/// The error that a file names more folders than any model has: each is looked for.
fn too_many(path: &Path, found: usize) -> Option<CheckpointError> {
    (found > MAX_NAMED_FOLDERS).then(|| CheckpointError::TooLarge {
        path: path.to_owned(),
        what: "number of folders that it names",
        limit: MAX_NAMED_FOLDERS as u64,
        found: found as u64,
    })
}

fn outside(path: &Path, name: &str) -> CheckpointError {
    CheckpointError::NamesOutside {
        path: path.to_owned(),
        name: name.escape_debug().to_string(),
    }
}

/// Whether it names a folder within another: plain names joined by `/`.
fn is_plain(path: &str) -> bool {
    let plain =
        |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', ':']);
    path.split('/').all(plain)
        && path.split('/').count() <= MAX_FOLDER_DEPTH
        && !path.chars().any(char::is_control)
}

/// Whether a folder is called as a module of a sentence-transformers model: `1_Pooling`.
pub(super) fn is_module_dir(name: &str) -> bool {
    name.split_once('_').is_some_and(|(number, rest)| {
        let digits = number.bytes().all(|b| b.is_ascii_digit());
        !number.is_empty() && digits && !rest.is_empty()
    })
}
