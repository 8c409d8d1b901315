//! Which files of a folder make up the checkpoint: an index's shards, one file, or a complete numbered set.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::error::CheckpointError;
use super::format::Format;
use super::index::Index;
use super::limits::{MAX_FOLDER_ENTRIES, MAX_SHARDS};
use super::locate::Location;

const ADAPTERS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// Whether a trainer keeps the file to resume from: it ends like a pickle, but holds no weights.
fn is_of_training(name: &str) -> bool {
    let starts = [
        "optimizer",
        "scheduler",
        "scaler",
        "rng_state",
        "random_states",
        "training_args",
    ];
    starts.iter().any(|start| name.starts_with(start)) || name.contains("optim_states")
}

/// How many numbers of an incomplete set are searched for the one to name.
const MISSING_SHOWN: usize = 3;

/// The files that make up a checkpoint.
#[derive(Debug)]
pub(super) struct Weights {
    /// In name order.
    pub(super) shards: Vec<PathBuf>,
    /// The index that names them, if one does.
    pub(super) index: Option<Index>,
    /// The format of the shards.
    pub(super) format: Format,
    /// Notes on files that were ignored.
    pub(super) notes: Vec<String>,
}

/// The weights of a folder, and every problem with the set of its files.
#[derive(Debug)]
pub(super) struct FoundWeights {
    /// The files that exist.
    pub(super) weights: Weights,
    /// An index that cannot be read, and missing files.
    pub(super) problems: Vec<CheckpointError>,
    /// Weight files of the same format that are not part of the checkpoint.
    pub(super) left_aside: Vec<String>,
}

/// Finds the weights of a folder: safetensors if there are any, else pickles. After a problem it continues with the
/// files that exist.
pub(super) fn find_weights(location: &Location) -> Result<FoundWeights, CheckpointError> {
    let names = file_names(&location.path)?;
    for format in [Format::Safetensors, Format::Pickle] {
        if let Some(mut found) = find_format(location, &names, format) {
            if format == Format::Safetensors {
                found.weights.notes.extend(unread_pickles(location, &names));
            }
            return Ok(found);
        }
    }
    Err(no_weights(location, &names))
}

/// The note on pickled weights that are ignored because the folder also has safetensors.
fn unread_pickles(location: &Location, names: &BTreeSet<String>) -> Option<String> {
    let mut pickles = names
        .iter()
        .filter(|name| Format::of(name) == Format::Pickle)
        .filter(|name| !is_of_training(name) && !ADAPTERS.contains(&name.as_str()));
    let first = pickles.next()?;
    let more = match pickles.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "{}{more} not read: the safetensors files beside it are",
        location.path.join(first).display()
    ))
}

/// Finds the weights of one format.
fn find_format(
    location: &Location,
    names: &BTreeSet<String>,
    format: Format,
) -> Option<FoundWeights> {
    let folder = &location.path;
    let (adapters, files): (BTreeSet<&str>, BTreeSet<&str>) = names
        .iter()
        .map(String::as_str)
        .filter(|name| format.ends().iter().any(|end| name.ends_with(end)))
        .filter(|name| !is_of_training(name) || format == Format::Safetensors)
        .partition(|name| ADAPTERS.contains(name));
    let mut problems = Vec::new();
    let chosen_index = choose_index(names, &files, format);
    let index = chosen_index.and_then(|name| {
        let read = Index::read(&folder.join(name), format);
        let index = read.and_then(|index| index.shards().map(drop).map(|()| index));
        index.map_err(|problem| problems.push(problem)).ok()
    });
    let mut chosen: BTreeSet<String> = BTreeSet::new();
    if let Some(index) = &index {
        let by_index = chosen_index.unwrap_or_default();
        for shard in index.shards().unwrap_or_default() {
            match check_present(location, shard, by_index) {
                Ok(()) => chosen.extend([shard.to_owned()]),
                Err(problem) => problems.push(problem),
            }
        }
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
    }
    let others = || files.iter().filter(|file| !chosen.contains(**file));
    let by_index = chosen_index.filter(|_| index.is_some());
    let chosen_by = by_index.or(chosen.first().map(String::as_str));
    let not_read = |file: &&str| {
        format!(
            "{} was not read: it is not part of {}",
            folder.join(file).display(),
            chosen_by.unwrap_or("the checkpoint")
        )
    };
    let unread: BTreeSet<&str> = others().copied().chain(adapters).collect();
    let left_aside = others().filter(|file| !is_of_training(file));
    Some(FoundWeights {
        left_aside: left_aside.map(|file| (*file).to_owned()).collect(),
        weights: Weights {
            shards: chosen.iter().map(|name| folder.join(name)).collect(),
            notes: unread.iter().map(not_read).collect(),
            index,
            format,
        },
        problems,
    })
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
    format: Format,
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

/// Without an index: `model.safetensors`, the only file, or the files of one complete set.
fn choose_files(
    location: &Location,
    files: &BTreeSet<&str>,
    format: Format,
) -> Result<BTreeSet<String>, CheckpointError> {
    if files.contains(format.single()) {
        return Ok([format.single().to_owned()].into());
    }
    let mut sets: BTreeMap<Option<(&str, usize, &str)>, BTreeSet<usize>> = BTreeMap::new();
    for file in files {
        match numbered(file) {
            Some((stem, number, of, end)) => {
                let set = sets.entry(Some((stem, of, end))).or_default();
                set.insert(number)
            }
            None => sets.entry(None).or_default().insert(0),
        };
    }
    let chosen = || files.iter().map(|file| (*file).to_owned()).collect();
    match sets.first_key_value() {
        None => Ok(BTreeSet::new()),
        Some((None, _)) if files.len() == 1 => Ok(chosen()),
        Some((Some((stem, of, end)), numbers)) if sets.len() == 1 => {
            check_complete(location, stem, *of, end, numbers)?;
            Ok(chosen())
        }
        _ => Err(CheckpointError::AmbiguousFolder {
            path: location.path.clone(),
            files: chosen()
                .into_iter()
                .collect::<BTreeSet<String>>()
                .into_iter()
                .collect(),
        }),
    }
}

/// Parses `model-00002-of-00003.safetensors`: number 2 of the 3 files of `model` that end in `.safetensors`.
fn numbered(file: &str) -> Option<(&str, usize, usize, &str)> {
    let (rest, end) = file.split_at(file.rfind('.')?);
    let (rest, of) = rest.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let count = |digits: &str| {
        digits
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| digits.parse().ok())
            .flatten()
    };
    Some((stem, count(number)?, count(of)?, end))
}

fn check_complete(
    location: &Location,
    stem: &str,
    of: usize,
    end: &str,
    numbers: &BTreeSet<usize>,
) -> Result<(), CheckpointError> {
    if of > MAX_SHARDS {
        return Err(CheckpointError::TooLarge {
            path: location.path.clone(),
            what: "number of shards",
            limit: MAX_SHARDS as u64,
            found: of as u64,
        });
    }
    let mut missing = (1..=of)
        .filter(|number| !numbers.contains(number))
        .peekable();
    if missing.peek().is_none() {
        return Ok(());
    }
    let missing: Vec<String> = missing
        .take(MISSING_SHOWN)
        .map(|number| format!("{stem}-{number:05}-of-{of:05}{end}"))
        .collect();
    Err(CheckpointError::ShardMissing {
        path: location.path.clone(),
        shard: missing.join(", "),
        expected_by: "the names of the others".into(),
        hint: download_hint(location),
    })
}

fn check_present(location: &Location, shard: &str, index: &str) -> Result<(), CheckpointError> {
    // Follows links: a snapshot's link may outlive its blob.
    match fs::metadata(location.path.join(shard)) {
        Ok(_) => Ok(()),
        Err(_) => Err(CheckpointError::ShardMissing {
            path: location.path.clone(),
            shard: shard.into(),
            expected_by: index.into(),
            hint: download_hint(location),
        }),
    }
}

fn download_hint(location: &Location) -> String {
    match &location.hub {
        Some(hub) => format!(
            "the download is not complete, run `hf download {} --revision {}`",
            hub.repo, hub.revision
        ),
        None => "copy or download it again".into(),
    }
}

/// Weights of other formats, by the endings of their names.
const OTHER_FORMATS: [(&[&str], &str, &str); 4] = [
    (
        &[".pkl", ".pickle"],
        "a pickle, which torch.save does not name so",
        "convert it to safetensors",
    ),
    (
        &[".gguf", ".ggml"],
        "a GGUF file",
        "use the safetensors it was made from",
    ),
    (
        &[".h5", ".msgpack"],
        "a TensorFlow or Flax file",
        "convert it to safetensors",
    ),
    (
        &[".onnx"],
        "an ONNX file",
        "use the safetensors it was exported from",
    ),
];

/// The unsupported format that a file's name indicates, and what to do.
pub(super) fn other_format(name: &str) -> Option<(&'static str, &'static str)> {
    OTHER_FORMATS
        .into_iter()
        .find(|(ends, ..)| ends.iter().any(|end| name.ends_with(end)))
        .map(|(_, what, hint)| (what, hint))
}

fn no_weights(location: &Location, names: &BTreeSet<String>) -> CheckpointError {
    let adapter = ADAPTERS.into_iter().find(|name| names.contains(*name));
    let weights: Vec<(&String, &str)> = names
        .iter()
        .filter_map(|name| Some((name, other_format(name)?.1)))
        .collect();
    let hint = if adapter.is_some() {
        "this is a LoRA adapter: write `model+adapter`, with the model that it was trained on"
            .into()
    } else if let Some((_, hint)) = weights.first() {
        (*hint).into()
    } else if names.contains("model_index.json") {
        "this is a pipeline, name the folder of one component".into()
    } else if location.hub.is_some() {
        download_hint(location)
    } else {
        "name a folder with `model.safetensors` or its shards and index".into()
    };
    let mut found: Vec<String> = match weights.is_empty() {
        true => names.iter().cloned().collect(),
        false => weights.into_iter().map(|(name, _)| name.clone()).collect(),
    };
    if let Some(adapter) = adapter
        && !found.iter().any(|name| name == adapter)
    {
        found.insert(0, adapter.into());
    }
    CheckpointError::NoWeights {
        path: location.path.clone(),
        found,
        hint,
    }
}
