//! Opening a checkpoint: every problem of its files, and what of them is sound.
//!
//! There is one way to open. `check` reports all that it finds; everyone else takes the model, or the first problem.

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

/// What opening a checkpoint file by file gives.
#[derive(Debug)]
pub struct Survey {
    /// The tensors of the files that are sound, if there are any.
    pub checkpoint: Option<Checkpoint>,
    /// Every problem that was met: at most one for each file, and any number of the index.
    pub problems: Vec<CheckpointError>,
    /// Whether something of the weights could not be read, so that a tensor that is not there may be in it.
    pub partial: bool,
    /// Weight files of the folder that are no part of the checkpoint.
    pub left_aside: Vec<String>,
    /// What the matter is with the `total_size` of the index.
    pub total_size: Option<String>,
    /// What shows that its weights are quantised.
    pub quantised: Option<CheckpointError>,
    /// Whether that is config.json alone, and all weights are plain numbers.
    pub quantised_by_config_only: bool,
}

impl Checkpoint {
    /// Opens a located model, which messages will call `label`; no weight is read.
    ///
    /// # Errors
    /// The first problem of its files or of its adapter, or that it is quantised.
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
    /// Opens what can be opened of a located model, which messages will call `label`. An adapter is not looked at.
    ///
    /// # Errors
    /// If there is nothing to look at: no such file or folder, or one without weights.
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

/// A file that is named itself.
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

/// Says that files were read as pickles.
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

/// The tensors by name: the first of those that several files have.
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
