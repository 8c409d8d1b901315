//! Which files of a folder make up the checkpoint: an index's shards, one file, or a complete numbered set.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::config::ModelConfig;
use super::error::CheckpointError;
use super::format::{DIFFUSERS_STEM, DISTRIBUTED_END, DISTRIBUTED_METADATA, FileFormat};
use super::index::Index;
use super::limits::{MAX_FOLDER_ENTRIES, MAX_SHARDS};
use super::locate::Location;
use super::unread::{download_hint, no_weights, not_one_set};
use super::weight_names::{
    ADAPTERS, NumberedSet, is_head_file, is_index, is_model, is_of_training, numbered,
};

/// The files that make up a checkpoint.
#[derive(Debug)]
pub(super) struct WeightFiles {
    /// In name order.
    pub(super) shards: Vec<PathBuf>,
    /// The index that names them, if one does.
    pub(super) index: Option<Index>,
    /// The format of the shards.
    pub(super) format: FileFormat,
    /// Notes on files that were ignored.
    pub(super) notes: Vec<String>,
}

/// The weights of a folder, and every problem with the set of its files.
#[derive(Debug)]
pub(super) struct FoundWeights {
    /// The files that exist.
    pub(super) weights: WeightFiles,
    /// An index that cannot be read, and missing files.
    pub(super) problems: Vec<CheckpointError>,
    /// Weight files of the same format that are not part of the checkpoint.
    pub(super) left_aside: Vec<String>,
    /// An index that is not read because a whole file lies beside it; its shards are not among `left_aside`.
    pub(super) unread_index: Option<String>,
    /// The first pickle of weights that is not read because there are safetensors.
    pub(super) unread_pickle: Option<String>,
}

/// Finds the weights of a folder: safetensors if there are any, else pickles. After a problem it continues with the
/// files that exist.
pub(super) fn find_weights(location: &Location) -> Result<FoundWeights, CheckpointError> {
    let mut names = file_names(&location.path)?;
    // A head beside the weights is a part of its own, unless there is nothing else.
    if names
        .iter()
        .any(|name| is_model(name) && !is_head_file(name))
    {
        names.retain(|name| !is_head_file(name));
    }
    let passed_over = of_other_library(location, &names)?;
    names.retain(|name| !passed_over.contains(name));
    let formats = [
        FileFormat::Safetensors,
        FileFormat::Distributed,
        FileFormat::Pickle,
    ];
    for format in formats {
        if format == FileFormat::Distributed {
            match find_distributed(location, &names) {
                Some(found) => return Ok(found),
                None => continue,
            }
        }
        if let Some(mut found) = find_format(location, &names, format) {
            let weights = passed_over.into_iter().filter(|name| is_model(name));
            for name in weights {
                found.weights.notes.push(format!(
                    "{} was not read: the library of the model, by its config.json, looks for another name",
                    location.path.join(&name).display()
                ));
                found.left_aside.push(name);
            }
            if format == FileFormat::Safetensors {
                let unread = unread_pickles(&names);
                let note = unread.map(|(first, more)| pickles_note(location, first, more));
                found.weights.notes.extend(note);
                found.unread_pickle = unread.map(|(first, _)| first.to_owned());
            }
            return Ok(found);
        }
    }
    let gguf = find_format(location, &names, FileFormat::Gguf);
    gguf.ok_or_else(|| no_weights(location, &names))
}

/// Finds a distributed checkpoint. Pickles beside it are what trainers keep of themselves.
fn find_distributed(location: &Location, names: &BTreeSet<String>) -> Option<FoundWeights> {
    let is_there = names.contains(DISTRIBUTED_METADATA)
        && names.iter().any(|name| name.ends_with(DISTRIBUTED_END));
    is_there.then(|| FoundWeights {
        weights: WeightFiles {
            shards: vec![location.path.join(DISTRIBUTED_METADATA)],
            index: None,
            format: FileFormat::Distributed,
            notes: Vec::new(),
        },
        problems: Vec::new(),
        left_aside: Vec::new(),
        unread_index: None,
        unread_pickle: None,
    })
}

/// The weights and indexes under the name by which the library of the model does not look for them, where there are some
/// under each: transformers reads `model.safetensors`, diffusers `diffusion_pytorch_model.safetensors`.
fn of_other_library(
    location: &Location,
    names: &BTreeSet<String>,
) -> Result<BTreeSet<String>, CheckpointError> {
    let called = |stems: &[&str]| -> BTreeSet<String> {
        let is_called = |name: &&String| {
            let rest = stems.iter().find_map(|stem| name.strip_prefix(stem));
            let ends = [".safetensors", ".bin", ".index.json"];
            rest.is_some_and(|rest| rest.starts_with(['.', '-']))
                && ends.iter().any(|end| name.ends_with(end))
                && (is_model(name) || is_index(name))
        };
        names.iter().filter(is_called).cloned().collect()
    };
    let transformers = called(&["model", "pytorch_model"]);
    let diffusers = called(&[DIFFUSERS_STEM]);
    if transformers.is_empty() || diffusers.is_empty() {
        return Ok(BTreeSet::new());
    }
    let config = ModelConfig::read(&location.path)?;
    match config.and_then(|config| config.is_of_diffusers()) {
        Some(true) => Ok(transformers),
        Some(false) => Ok(diffusers),
        None => Err(CheckpointError::AmbiguousFolder {
            path: location.path.clone(),
            files: transformers.into_iter().chain(diffusers).collect(),
            hint: "transformers reads those of the first name and diffusers those of the other, and config.json does not \
                   say which of them the model is for (`model_type` or `_class_name`): remove the others"
                .into(),
        }),
    }
}

/// Pickled weights that are ignored because the folder also has safetensors: the first, and how many more.
fn unread_pickles(names: &BTreeSet<String>) -> Option<(&str, usize)> {
    let mut pickles = names
        .iter()
        .filter(|name| FileFormat::from_name(name) == FileFormat::Pickle)
        .filter(|name| !is_of_training(name) && !ADAPTERS.contains(&name.as_str()));
    Some((pickles.next()?, pickles.count()))
}

/// The note on them.
fn pickles_note(location: &Location, first: &str, more: usize) -> String {
    let more = match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "{}{more} not read: the safetensors files beside it are",
        location.path.join(first).display()
    )
}

/// Finds the weights of one format.
fn find_format(
    location: &Location,
    names: &BTreeSet<String>,
    format: FileFormat,
) -> Option<FoundWeights> {
    let folder = &location.path;
    let (adapters, files): (BTreeSet<&str>, BTreeSet<&str>) = weight_files(names, format)
        .into_iter()
        .partition(|name| ADAPTERS.contains(name));
    let IndexChoice {
        index,
        unread: unread_index,
        passed_over,
        mut problems,
    } = IndexChoice::new(folder, names, &files, format);
    let mut chosen: BTreeSet<String> = BTreeSet::new();
    if let Some((name, index)) = &index {
        chosen = present_shards(location, names, format, (index, name), &mut problems);
    } else if files.is_empty() {
        // A broken index without any shard beside it still counts as the folder's checkpoint.
        if problems.is_empty() {
            return None;
        }
    } else {
        match choose_files(location, &files, format) {
            Ok(files) => chosen = files,
            Err(problem) => {
                // Numbered files belong together; nothing says so about others.
                let together = files.iter().filter(|file| numbered(file).is_some());
                chosen = together.map(|file| (*file).to_owned()).collect();
                problems.push(problem);
            }
        }
        for file in std::mem::take(&mut chosen) {
            match check_link(location, &file) {
                Ok(()) => chosen.extend([file]),
                Err(problem) => problems.push(problem),
            }
        }
    }
    let others = || files.iter().filter(|file| !chosen.contains(**file));
    let by_index = index.as_ref().map(|(name, _)| *name);
    let chosen_by = by_index.or(chosen.first().map(String::as_str));
    let not_read = |file: &&str| {
        format!(
            "{} was not read: it is not part of {}",
            folder.join(file).display(),
            chosen_by.unwrap_or("the checkpoint")
        )
    };
    let unread = others().filter(|file| !passed_over.contains(**file));
    let unread: BTreeSet<&str> = unread.copied().chain(adapters).collect();
    let left_aside = others()
        .filter(|file| !is_of_training(file) && !passed_over.contains(**file))
        .map(|file| (*file).to_owned());
    let index_note = unread_index.map(|name| {
        format!(
            "{} and the shards that it names were not read: {} beside it is what transformers reads; remove those \
             that are not meant",
            folder.join(name).display(),
            format.single()
        )
    });
    Some(FoundWeights {
        left_aside: left_aside.collect(),
        unread_index: unread_index.map(str::to_owned),
        unread_pickle: None,
        weights: WeightFiles {
            shards: chosen.iter().map(|name| folder.join(name)).collect(),
            notes: index_note
                .into_iter()
                .chain(unread.iter().map(not_read))
                .collect(),
            index: index.map(|(_, index)| index),
            format,
        },
        problems,
    })
}

/// What an index has to say about the files of a folder.
struct IndexChoice<'n> {
    /// The index that is followed, and its name.
    index: Option<(&'n str, Index)>,
    /// The name of one that is not, as a whole file lies beside it.
    unread: Option<&'n str>,
    /// The shards that this one names.
    passed_over: BTreeSet<String>,
    /// Why an index cannot be read.
    problems: Vec<CheckpointError>,
}

impl<'n> IndexChoice<'n> {
    fn new(
        folder: &Path,
        names: &'n BTreeSet<String>,
        files: &BTreeSet<&str>,
        format: FileFormat,
    ) -> Self {
        let mut choice = IndexChoice {
            index: None,
            unread: None,
            passed_over: BTreeSet::new(),
            problems: Vec::new(),
        };
        let Some(name) = choose_index(names, files, format) else {
            return choice;
        };
        let read = Index::read(&folder.join(name), format);
        let index = read.and_then(|index| index.shards().map(drop).map(|()| index));
        // transformers looks for the single file first, and reads no index if it is there.
        let single = files.contains(format.single());
        match index {
            Ok(index) if single && !index.names_only(format.single()) => {
                choice.unread = Some(name);
                let shards = index.shards().unwrap_or_default();
                choice.passed_over = shards.into_iter().map(str::to_owned).collect();
            }
            Ok(index) => choice.index = Some((name, index)),
            Err(_) if single => choice.unread = Some(name),
            Err(problem) => choice.problems.push(problem),
        }
        choice
    }
}

/// The shards of an index that are there; the others, and those that it leaves out, are problems.
fn present_shards(
    location: &Location,
    names: &BTreeSet<String>,
    format: FileFormat,
    (index, name): (&Index, &str),
    problems: &mut Vec<CheckpointError>,
) -> BTreeSet<String> {
    // Follows links: a snapshot's link may outlive its blob.
    let is_there = |shard: &&str| fs::metadata(location.path.join(shard)).is_ok();
    let shards = index.shards().unwrap_or_default();
    let (present, missing): (Vec<&str>, Vec<&str>) = shards.into_iter().partition(is_there);
    if missing.is_empty() {
        problems.extend(index.left_out());
    } else {
        let hint = stale_index_hint(location, names, format, (index, name));
        problems.extend(
            missing
                .into_iter()
                .map(|shard| CheckpointError::ShardMissing {
                    path: location.path.clone(),
                    shard: shard.into(),
                    expected_by: name.into(),
                    hint: hint.clone(),
                }),
        );
    }
    present.into_iter().map(str::to_owned).collect()
}

/// The UTF-8 names in a folder; a file with any other name cannot belong to a checkpoint.
pub(super) fn file_names(folder: &Path) -> Result<BTreeSet<String>, CheckpointError> {
    let io = |source| CheckpointError::io("list", folder, source);
    let mut names = BTreeSet::new();
    for (count, entry) in fs::read_dir(folder).map_err(io)?.enumerate() {
        if count == MAX_FOLDER_ENTRIES {
            return Err(CheckpointError::TooLarge {
                path: folder.into(),
                what: "number of files in the folder",
                limit: MAX_FOLDER_ENTRIES as u64,
                found: count as u64 + 1,
            });
        }
        if let Ok(name) = entry.map_err(io)?.file_name().into_string()
            && !name.chars().any(char::is_control)
        {
            names.insert(name);
        }
    }
    Ok(names)
}

/// `model.safetensors.index.json`; or, if there is no `model.safetensors`, the only other index.
fn choose_index<'a>(
    names: &'a BTreeSet<String>,
    files: &BTreeSet<&str>,
    format: FileFormat,
) -> Option<&'a str> {
    if let Some(name) = names.get(format.index()) {
        return Some(name);
    }
    let mut others = names
        .iter()
        .filter(|name| name.ends_with(format.index_end()));
    match (others.next(), others.next()) {
        (Some(only), None) if !files.contains(format.single()) => Some(only),
        _ => None,
    }
}

/// Without an index: `model.safetensors` or what diffusers calls it, the only file, or the files of one complete set.
fn choose_files(
    location: &Location,
    files: &BTreeSet<&str>,
    format: FileFormat,
) -> Result<BTreeSet<String>, CheckpointError> {
    let singles = [format.single(), format.single_of_diffusers()];
    if let Some(single) = singles.into_iter().find(|single| files.contains(single)) {
        return Ok([single.to_owned()].into());
    }
    let mut sets: BTreeMap<Option<NumberedSet<'_>>, BTreeSet<usize>> = BTreeMap::new();
    for file in files {
        let (set, number) = match numbered(file) {
            Some((set, number)) => (Some(set), number),
            None => (None, 0),
        };
        sets.entry(set).or_default().insert(number);
    }
    let chosen = || files.iter().map(|file| (*file).to_owned()).collect();
    match sets.first_key_value() {
        None => Ok(BTreeSet::new()),
        Some((None, _)) if files.len() == 1 => Ok(chosen()),
        Some((Some(set), numbers)) if sets.len() == 1 => {
            check_complete(location, set, numbers)?;
            Ok(chosen())
        }
        _ => Err(not_one_set(location, files)),
    }
}

/// An error if the folder's file of that name is a link to a file that is not there.
pub(super) fn check_link(location: &Location, name: &str) -> Result<(), CheckpointError> {
    let path = location.path.join(name);
    let is_link = fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
    match fs::metadata(&path) {
        Err(error) if is_link && error.kind() == ErrorKind::NotFound => {
            Err(CheckpointError::BrokenLink {
                path,
                hint: download_hint(location),
            })
        }
        _ => Ok(()),
    }
}

fn check_complete(
    location: &Location,
    set: &NumberedSet<'_>,
    numbers: &BTreeSet<usize>,
) -> Result<(), CheckpointError> {
    if set.of > MAX_SHARDS {
        return Err(CheckpointError::TooLarge {
            path: location.path.clone(),
            what: "number of shards",
            limit: MAX_SHARDS as u64,
            found: set.of as u64,
        });
    }
    let missing = set.missing(numbers);
    if missing.is_empty() {
        return Ok(());
    }
    Err(CheckpointError::ShardMissing {
        path: location.path.clone(),
        shard: missing.join(", "),
        expected_by: "the names of the others".into(),
        hint: download_hint(location),
    })
}

/// What to do about an index that names a shard that is not there: other weights of the folder may be whole.
fn stale_index_hint(
    location: &Location,
    names: &BTreeSet<String>,
    format: FileFormat,
    (index, index_name): (&Index, &str),
) -> String {
    let download = download_hint(location);
    let named = index.shards().unwrap_or_default();
    let left = names.iter().any(|name| named.contains(name.as_str()));
    let formats = [format, FileFormat::Pickle];
    // Pickles are read only if there are no safetensors.
    let formats = &formats[..if left { 1 } else { 2 }];
    let whole = formats.iter().find_map(|format| {
        let files = weight_files(names, *format);
        let others: BTreeSet<&str> = files
            .into_iter()
            .filter(|file| !named.contains(file) && !ADAPTERS.contains(file))
            .collect();
        let chosen = choose_files(location, &others, *format).ok()?;
        let first = chosen.first()?.clone();
        Some(match chosen.len() {
            1 => format!("{first} is"),
            count => format!("the {count} shards from {first} on are"),
        })
    });
    match whole {
        Some(whole) => format!(
            "if {whole} the model, remove {index_name}{}; otherwise {download}",
            if left {
                " and the shards that it names"
            } else {
                ""
            }
        ),
        None => download,
    }
}

/// The files with names of that format, without what trainers keep to resume from.
fn weight_files(names: &BTreeSet<String>, format: FileFormat) -> BTreeSet<&str> {
    names
        .iter()
        .map(String::as_str)
        .filter(|name| format.ends().iter().any(|end| name.ends_with(end)))
        .filter(|name| !is_of_training(name) || format == FileFormat::Safetensors)
        .collect()
}

#[cfg(test)]
mod tests;
