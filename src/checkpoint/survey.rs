//! Opens a checkpoint: finds every problem of its files, and the valid tensors.
//!
//! There is a single way to open. `check` reports every problem; all other callers take the model, or the first
//! problem.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::config::ModelConfig;
use super::error::CheckpointError;
use super::files::Files;
use super::folder::{FoundWeights, Weights, find_weights, other_format};
use super::format::Format;
use super::index::Index;
use super::locate::Location;
use super::quantised::{only_config_says, refuse_quantised};
use super::reader::{Beside, Checkpoint};

/// The result of opening a checkpoint file by file.
#[derive(Debug)]
pub struct Survey {
    /// The tensors of the valid files, if there are any.
    pub checkpoint: Option<Checkpoint>,
    /// Every problem found: at most one per file, and any number in the index.
    pub problems: Vec<CheckpointError>,
    /// Whether some of the weights could not be read, so that a missing tensor may be among them.
    pub partial: bool,
    /// Weight files of the folder that are not part of the checkpoint.
    pub left_aside: Vec<String>,
    /// What is wrong with the `total_size` of the index.
    pub total_size: Option<String>,
    /// The evidence that its weights are quantised.
    pub quantised: Option<CheckpointError>,
    /// Whether the evidence is config.json alone, and all weights are plain numbers.
    pub quantised_by_config_only: bool,
}

impl Checkpoint {
    /// Opens a located model, which messages call `label`; no weight is read.
    ///
    /// # Errors
    /// The first problem of its files or of its adapter, or the model is quantised.
    pub fn open(label: &str, location: &Location) -> Result<Checkpoint, CheckpointError> {
        let survey = Survey::of(label, location)?;
        let first = survey.problems.into_iter().next();
        if let Some(problem) = first.or(survey.quantised) {
            return Err(problem);
        }
        let path = location.path.clone();
        let checkpoint = (survey.checkpoint).ok_or(CheckpointError::NoTensors { path })?;
        match &location.adapter {
            Some(adapter) => checkpoint.adapted(adapter),
            None => Ok(checkpoint),
        }
    }
}

impl Survey {
    /// Opens as much as possible of a located model, which messages call `label`. An adapter is ignored.
    ///
    /// # Errors
    /// If there is nothing to open: the file or folder does not exist, or the folder has no weights.
    pub fn of(label: &str, location: &Location) -> Result<Survey, CheckpointError> {
        let path = &location.path;
        let is_dir = fs::metadata(path)
            .map_err(|source| CheckpointError::io("open", path, source))?
            .is_dir();
        let FoundWeights {
            weights,
            mut problems,
            left_aside,
        } = match is_dir {
            true => find_weights(location)?,
            false => FoundWeights {
                weights: single_file(path)?,
                problems: Vec::new(),
                left_aside: Vec::new(),
            },
        };
        let Weights {
            shards,
            index,
            format,
            mut notes,
        } = weights;
        let mut files = Files::default();
        for shard in &shards {
            let opened = Files::open(shard, format).and_then(|(one, of_file)| {
                notes.extend(of_file);
                files.append(shard, one)
            });
            problems.extend(opened.err());
        }
        if format == Format::Pickle {
            notes.extend(read_as_pickles(&shards));
        }
        let partial = !problems.is_empty();
        let config = match is_dir.then(|| ModelConfig::read(path)).transpose() {
            Ok(config) => config.flatten(),
            Err(problem) => {
                problems.push(problem);
                None
            }
        };
        if files.tensors.is_empty() && !partial {
            problems.push(CheckpointError::NoTensors { path: path.clone() });
        }
        let by_name = first_of_each(location, &files, &mut problems);
        let found = |index: &Index| index.problems(&files, &by_name);
        problems.extend(index.as_ref().map(found).unwrap_or_default());
        let total_size = index.as_ref().filter(|_| !partial);
        let total_size = total_size.and_then(|index| index.total_size_note(&files.tensors));
        notes.extend(total_size.clone());
        let quantised = refuse_quantised(label, config.as_ref(), &files, &by_name).err();
        let beside = match is_dir {
            true => Beside::Folder,
            false => Beside::Nothing,
        };
        Ok(Survey {
            partial,
            left_aside,
            total_size,
            quantised_by_config_only: quantised.is_some()
                && only_config_says(&files.tensors, &by_name),
            quantised,
            problems,
            checkpoint: (!files.tensors.is_empty()).then(|| {
                Checkpoint::new(label, location.clone(), config, beside, Arc::new(files))
                    .with_notes(notes)
            }),
        })
    }
}

/// The weights of a single file.
fn single_file(path: &Path) -> Result<Weights, CheckpointError> {
    let name = path.to_string_lossy();
    if let Some((what, hint)) = other_format(&name) {
        return Err(CheckpointError::NotSafetensors {
            path: path.into(),
            what,
            hint,
        });
    }
    Ok(Weights {
        shards: vec![path.into()],
        index: None,
        format: Format::of(&name),
        notes: Vec::new(),
    })
}

/// Notes that files were read as pickles.
fn read_as_pickles(paths: &[PathBuf]) -> Option<String> {
    let (first, others) = paths.split_first()?;
    let others = match others.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "{}{others}: read as pickles; nothing in them is executed",
        first.display()
    ))
}

/// The tensors by name; if several files have the same name, the first one's.
fn first_of_each(
    location: &Location,
    files: &Files,
    problems: &mut Vec<CheckpointError>,
) -> HashMap<String, usize> {
    let mut by_name: HashMap<String, usize> = HashMap::with_capacity(files.tensors.len());
    for (at, tensor) in files.tensors.iter().enumerate() {
        match by_name.get(&tensor.name) {
            Some(&first) => problems.push(CheckpointError::DuplicateTensor {
                path: location.path.clone(),
                tensor: tensor.name.clone(),
                first: files.shard_of(first).file_name(),
                second: files.shard_of(at).file_name(),
            }),
            None => {
                by_name.insert(tensor.name.clone(), at);
            }
        }
    }
    by_name
}
