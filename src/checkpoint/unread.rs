//! Folders without weights that can be read: what they hold instead, and what makes weights of it.

use std::collections::BTreeSet;
use std::path::Path;

use super::error::CheckpointError;
use super::folder::file_names;
use super::format::{DISTRIBUTED_END, DISTRIBUTED_METADATA};
use super::hub::snapshot_of;
use super::locate::Location;
use super::weight_names::{ADAPTERS, is_model, numbered, other_format};

/// The most subfolders that are searched for weights.
const SUBFOLDERS: usize = 1_000;

/// How to get the missing part of a model.
pub(super) fn download_hint(location: &Location) -> String {
    let hub = location.hub.as_ref();
    let snapshot = hub
        .map(|hub| (hub.repo.clone(), hub.revision.clone()))
        .or_else(|| snapshot_of(&location.path));
    match snapshot {
        Some((repo, revision)) => {
            format!("the download is not complete, run `hf download {repo} --revision {revision}`")
        }
        None => "copy or download it again".into(),
    }
}

/// The error for several weight files that are neither one file nor one set.
pub(super) fn not_one_set(location: &Location, files: &BTreeSet<&str>) -> CheckpointError {
    CheckpointError::AmbiguousFolder {
        path: location.path.clone(),
        files: files.iter().map(|file| (*file).to_owned()).collect(),
        hint: several_files_hint(&location.path, files),
    }
}

fn several_files_hint(folder: &Path, files: &BTreeSet<&str>) -> String {
    let all = |is: &dyn Fn(&str) -> bool| files.iter().all(|file| is(file));
    if all(&is_rank_of_deepspeed) {
        return deepspeed_hint(folder.parent().unwrap_or(folder));
    }
    if all(&|file| file.starts_with("consolidated.")) {
        return "each of these files holds a slice of every tensor: put them together first, for Llama by \
                transformers' `convert_llama_weights_to_hf.py`"
            .into();
    }
    if files.iter().any(|file| numbered(file).is_some()) {
        return "leave only the model's own files in the folder: one numbered set, or one file"
            .into();
    }
    let shape = |file: &str| file.replace(|c: char| c.is_ascii_digit(), "");
    let mut shapes = files.iter().map(|file| shape(file));
    let first = shapes.next().unwrap_or_default();
    let end = first.rfind('.').map_or("", |dot| &first[dot..]);
    if shapes.all(|shape| shape == first) {
        return format!(
            "if each is a whole model, name the file itself; if they are the parts of one, rename them to \
             `model-00001-of-{:05}{end}` and so on",
            files.len()
        );
    }
    "name the file itself".into()
}

/// Whether DeepSpeed names the part of one process so.
fn is_rank_of_deepspeed(file: &str) -> bool {
    file.contains("mp_rank_") && file.ends_with("_states.pt")
}

fn deepspeed_hint(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "these are DeepSpeed's parts of a model: put them together by `python -m deepspeed.utils.zero_to_fp32 {folder} \
         OUT --safe_serialization`, and name OUT"
    )
}

/// The error for a folder without weights.
pub(super) fn no_weights(location: &Location, names: &BTreeSet<String>) -> CheckpointError {
    let adapter = ADAPTERS.into_iter().find(|name| names.contains(*name));
    let others: Vec<&String> = names
        .iter()
        .filter(|name| other_format(name).is_some())
        .collect();
    let mut found: Vec<String> = match others.is_empty() {
        true => names.iter().cloned().collect(),
        false => others.into_iter().cloned().collect(),
    };
    if let Some(adapter) = adapter
        && !found.iter().any(|name| name == adapter)
    {
        found.insert(0, adapter.into());
    }
    CheckpointError::NoWeights {
        path: location.path.clone(),
        hint: no_weights_hint(location, names),
        found,
    }
}

fn no_weights_hint(location: &Location, names: &BTreeSet<String>) -> String {
    let folder = &location.path;
    if ADAPTERS.iter().any(|name| names.contains(*name)) {
        return "this is a LoRA adapter: write `model+adapter`, with the model that it was trained on"
            .into();
    }
    if names.contains("model_index.json") {
        return "this is a pipeline, and none of the components that model_index.json names has weights here".into();
    }
    if let Some(hint) = of_training_run(folder, names) {
        return hint;
    }
    if names.contains("snapshots") && names.contains("refs") {
        return match snapshot_of(&folder.join("snapshots/x")) {
            Some((repo, _)) => format!("this is the Hub's cache of a model: write `{repo}`"),
            None => "this is the Hub's cache of a model: name one of its `snapshots`".into(),
        };
    }
    if let Some(inside) = subfolder_with(&is_model, folder, names) {
        return format!("its folder `{inside}` holds weights: name that one");
    }
    if let Some(inside) = subfolder_with(&|name| ADAPTERS.contains(&name), folder, names) {
        return format!(
            "its folder `{inside}` holds a LoRA adapter: write `model+{}`, with the model that it was trained on",
            folder.join(&inside).display()
        );
    }
    let other = names.iter().find_map(|name| other_format(name));
    match other {
        Some((_, hint)) => hint.into(),
        None if location.hub.is_some() || snapshot_of(folder).is_some() => download_hint(location),
        None => "name a folder with `model.safetensors` or its shards and index".into(),
    }
}

/// What makes weights of a distributed checkpoint, which lies in the folder or in a subfolder.
fn of_training_run(folder: &Path, names: &BTreeSet<String>) -> Option<String> {
    let is_distributed = |names: &BTreeSet<String>| {
        let mut ends = names.iter().map(|name| name.ends_with(DISTRIBUTED_END));
        ends.any(|is_of_it| is_of_it)
    };
    if is_distributed(names) {
        return Some(format!(
            "the folder lacks `{}` of a distributed checkpoint of PyTorch, which says what its files hold: copy it too",
            DISTRIBUTED_METADATA
        ));
    }
    let mut distributed: Vec<_> = subfolders(folder, names)
        .filter(|(_, inside)| is_distributed(inside))
        .map(|(name, _)| name)
        .collect();
    // Trainers put the optimizer into a folder beside it.
    distributed.sort_by_key(|name| name.contains("optim"));
    if let Some(inside) = distributed.first() {
        return Some(format!(
            "its folder `{inside}` holds a distributed checkpoint of PyTorch: copy the model's config.json and tokenizer \
             into that one, and name it"
        ));
    }
    let is_step = |name: &String| name.starts_with("global_step");
    if names.iter().any(is_step) || names.contains("zero_to_fp32.py") {
        return Some(deepspeed_hint(folder));
    }
    if names.iter().any(|name| is_rank_of_deepspeed(name)) {
        return Some(deepspeed_hint(folder.parent().unwrap_or(folder)));
    }
    let of_megatron = names.contains("latest_checkpointed_iteration.txt")
        || names.iter().any(|name| name.starts_with("mp_rank_"));
    of_megatron.then(|| {
        "this is a checkpoint of Megatron: export it to a Hugging Face folder with Megatron Bridge".into()
    })
}

/// The subfolders and the names in each.
fn subfolders<'n>(
    folder: &'n Path,
    names: &'n BTreeSet<String>,
) -> impl Iterator<Item = (&'n String, BTreeSet<String>)> {
    let dirs = names.iter().filter(|name| folder.join(name).is_dir());
    dirs.take(SUBFOLDERS)
        .filter_map(|name| Some((name, file_names(&folder.join(name)).ok()?)))
}

/// Of the subfolders with such a file, the one whose name ends in the largest number: the last checkpoint of a training
/// run.
fn subfolder_with(
    is_wanted: &dyn Fn(&str) -> bool,
    folder: &Path,
    names: &BTreeSet<String>,
) -> Option<String> {
    let number = |name: &str| {
        let digits = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        name[digits..].parse::<u64>().ok()
    };
    subfolders(folder, names)
        .filter(|(_, inside)| inside.iter().any(|name| is_wanted(name)))
        .max_by_key(|(name, _)| number(name))
        .map(|(name, _)| name.clone())
}
