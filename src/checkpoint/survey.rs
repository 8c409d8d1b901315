//! A checkpoint that may be broken: every problem of its files, and what of it is sound.

use std::collections::HashMap;
use std::fs;

use super::config::ModelConfig;
use super::error::CheckpointError;
use super::folder::{FoundWeights, survey_weights};
use super::index::Index;
use super::locate::Location;
use super::quantised::{only_config_says, refuse_quantised};
use super::reader::{Checkpoint, Opened, open_one, single_file};

/// What opening a checkpoint file by file gives, where [`Checkpoint::open`] stops at the first problem.
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

impl Survey {
    /// Opens what can be opened of a located model, which messages will call `label`.
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
            true => survey_weights(location)?,
            false => FoundWeights {
                weights: single_file(path)?,
                problems: Vec::new(),
                left_aside: Vec::new(),
            },
        };
        let mut opened = Opened::default();
        for shard in &weights.shards {
            let one = open_one(shard, weights.format);
            let one = one.and_then(|one| {
                opened.check_count(shard, one.tensors.len())?;
                Ok(one)
            });
            match one {
                Ok(one) => opened.append(one),
                Err(problem) => problems.push(problem),
            }
        }
        let partial = !problems.is_empty();
        let config = match is_dir.then(|| ModelConfig::read(path)).transpose() {
            Ok(config) => config.flatten(),
            Err(problem) => {
                problems.push(problem);
                None
            }
        };
        if opened.tensors.is_empty() && !partial {
            problems.push(CheckpointError::NoTensors { path: path.clone() });
        }
        let by_name = first_of_each(location, &mut opened, &mut problems);
        let index = weights.index.as_ref();
        let found = |index: &Index| index.problems(&opened.shards, &opened.tensors, &by_name);
        problems.extend(index.map(found).unwrap_or_default());
        let total_size = index.filter(|_| !partial);
        let total_size = total_size.and_then(|index| index.total_size_note(&opened.tensors));
        let (shards, tensors) = (&opened.shards, &opened.tensors);
        let quantised = refuse_quantised(label, config.as_ref(), shards, tensors, &by_name).err();
        Ok(Survey {
            partial,
            left_aside,
            total_size,
            quantised_by_config_only: quantised.is_some() && only_config_says(tensors, &by_name),
            quantised,
            problems,
            checkpoint: (!opened.tensors.is_empty())
                .then(|| Checkpoint::of_opened(label, location, !is_dir, config, opened, by_name)),
        })
    }
}

/// The tensors by name: the first of those that several files have.
fn first_of_each(
    location: &Location,
    opened: &mut Opened,
    problems: &mut Vec<CheckpointError>,
) -> HashMap<String, usize> {
    let mut by_name: HashMap<String, usize> = HashMap::with_capacity(opened.tensors.len());
    for (at, tensor) in opened.tensors.iter().enumerate() {
        match by_name.get(&tensor.name) {
            Some(&first) => problems.push(CheckpointError::DuplicateTensor {
                path: location.path.clone(),
                tensor: tensor.name.clone(),
                first: opened.shards[opened.tensors[first].shard].file_name(),
                second: opened.shards[tensor.shard].file_name(),
            }),
            None => {
                by_name.insert(tensor.name.clone(), at);
            }
        }
    }
    by_name
}
