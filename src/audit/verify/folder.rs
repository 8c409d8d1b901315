//! The folder of a checkpoint, file by file: what belongs to the merge, what loaders would read besides, and what is
//! not covered. The folder is looked at twice, as a verdict holds for the files that were there all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::adapter::{ADAPTER_CONFIG, AdapterRequest};
use super::{Request, checks};
use crate::loaders::{Role, is_apart, is_below, role_of};
use crate::{CheckInfo, Finding, Place, Report, Skipped};
use checkpoint::{
    Checkpoint, CheckpointError, FileState, Location, Part, TreeEntry, WrittenAs, folder_of,
    parse_json, read_bounded, read_sidecar, tree,
};
use errors::some_of;
use plan::Plan;
use run::{LOCK_FILE, Lock};

/// The largest index that is read; checked already when the checkpoint was opened.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// What an index says about itself in `metadata`.
const INDEX_METADATA: [&str; 2] = ["total_size", "total_parameters"];

/// The most files that a line of the report names.
const NAMES_SHOWN: usize = 12;

/// The files of a checkpoint when its verification began.
#[derive(Debug)]
pub struct FolderListing {
    root: PathBuf,
    entries: BTreeMap<String, (TreeEntry, Option<FileState>)>,
    ignored: Vec<String>,
}

impl FolderListing {
    /// Lists the files of a checkpoint before any is read. What lies at a path of `ignored`, or below it, is not
    /// judged.
    ///
    /// # Errors
    /// The folder cannot be listed, or has more files than any model.
    pub fn look(
        location: &Location,
        ignored: Vec<String>,
    ) -> Result<FolderListing, CheckpointError> {
        let entries = tree(&location.path, &is_apart)?.into_iter();
        let entries = entries.map(|entry| {
            let state = FileState::at(&entry.path).ok();
            (entry.name.clone(), (entry, state))
        });
        Ok(FolderListing {
            root: location.path.clone(),
            entries: entries.collect(),
            ignored,
        })
    }

    /// The files that loaders read, or that say what the checkpoint is, and that are no longer what they were.
    ///
    /// # Errors
    /// The folder can no longer be listed.
    pub fn changes(&self) -> Result<Vec<String>, CheckpointError> {
        let now = FolderListing::look(&Location::local(&self.root), Vec::new())?;
        let names: BTreeSet<&String> = self.entries.keys().chain(now.entries.keys()).collect();
        let matters = |name: &&String| {
            let read = role_of(name).is_some() || [".", LOCK_FILE].contains(&name.as_str());
            read && !self.ignores(name)
        };
        let state =
            |folder: &FolderListing, name: &str| folder.entries.get(name).map(|&(_, state)| state);
        let changed = |name: &&String| state(self, name) != state(&now, name);
        let names = names.into_iter().filter(matters).filter(changed);
        Ok(names.cloned().collect())
    }

    /// The finding for each file that changed since the folder was looked at.
    pub(super) fn changed(&self, model: &Checkpoint) -> Vec<Finding> {
        let finding = |name: String, found: String| {
            let expected = "the file that was read";
            Finding::new(&checks::CHANGED, Place::file(name), expected, found)
        };
        let names = match self.changes() {
            Ok(names) => names,
            Err(error) => return vec![finding(model.label().to_owned(), error.to_string())],
        };
        let mut findings: Vec<Finding> = names
            .into_iter()
            .map(|name| finding(name, "another, or none".to_owned()))
            .collect();
        // The weights may have been replaced before the folder was looked at.
        if let (Err(error), true) = (model.check_unchanged(), findings.is_empty()) {
            findings.push(finding(model.label().to_owned(), error.to_string()));
        }
        findings
    }

    fn ignores(&self, name: &str) -> bool {
        self.ignored.iter().any(|ignored| is_below(name, ignored))
    }

    /// The bytes of a file, if it is there and can be read.
    pub(super) fn read(&self, name: &str) -> Option<Result<Vec<u8>, CheckpointError>> {
        let (entry, _) = self.entries.get(name)?;
        Some(read_sidecar(&entry.path))
    }
}

/// Judges every file of an adapter's folder beside its weights: those that the lock has by their digests.
pub(super) fn judge_files(request: &AdapterRequest<'_>, weights: &str, report: &mut Report) {
    let folder = request.folder;
    let exact = request.lock.is_some();
    let mut known = BTreeSet::from([weights.to_owned()]);
    if let Some(lock) = request.lock {
        known.insert(LOCK_FILE.to_owned());
        for (name, digest) in &lock.outputs.files {
            report.extend(held_to_digest(folder, name, digest));
            known.insert(name.clone());
        }
    } else {
        known.insert(ADAPTER_CONFIG.to_owned());
    }
    for weights in Weights::of(request.weights) {
        report.extend(weights.metadata(folder, exact));
    }
    judge_others(folder, &known, exact, report);
}

/// Judges every file of the folder. `compared` are the files beside the weights that were compared with those of the
/// plan.
pub(super) fn judge(
    request: &Request<'_>,
    plan: Option<&Plan>,
    compared: &BTreeSet<String>,
    report: &mut Report,
) {
    let model = request.model;
    if model.is_single_file() {
        report.say(
            "files",
            "the weights alone; what lies beside them is not covered",
        );
        return;
    }
    if plan.is_none() && request.lock.is_none() {
        return;
    }
    let folder = request.folder;
    let exact = request.lock.is_some();
    let weights = Weights::of(model);
    let mut known: BTreeSet<String> = weights.iter().flat_map(Weights::files).collect();
    known.retain(|name| folder.entries.contains_key(name));
    known.extend(compared.iter().cloned());
    let mut by_lock = Vec::new();
    if let Some(lock) = request.lock {
        known.insert(LOCK_FILE.to_owned());
        report.extend(lock_lacks(plan, lock));
        let is_index = |name: &String| weights.iter().any(|weights| weights.index() == *name);
        let left = lock
            .outputs
            .files
            .iter()
            .filter(|(name, _)| !known.contains(*name) && !is_index(name));
        for (name, digest) in left {
            report.extend(held_to_digest(folder, name, digest));
            by_lock.push(name.clone());
        }
        known.extend(by_lock.iter().cloned());
    }
    for weights in &weights {
        report.extend(weights.missing_name(folder));
        report.extend(weights.metadata(folder, exact));
    }
    judge_others(folder, &known, exact, report);
    if plan.is_some() && !by_lock.is_empty() {
        report.skipped.push(Skipped {
            check: &checks::FILE,
            why: listed(
                "no input has what only the lock's digest was compared with",
                &by_lock,
            ),
            needed: true,
        });
    }
}

/// Judges the files that are not `known` to be of the merge.
fn judge_others(
    folder: &FolderListing,
    known: &BTreeSet<String>,
    exact: bool,
    report: &mut Report,
) {
    let mut others = Vec::new();
    let mut ignored = Vec::new();
    for (name, (entry, _)) in &folder.entries {
        if known.contains(name) {
            continue;
        }
        if folder.ignores(name) {
            ignored.push(name.clone());
        } else {
            // What is behind a link to a folder may be anything.
            let role = match entry.path.is_dir() {
                true => Some(Role::Weights),
                false => role_of(name),
            };
            match role {
                Some(role) => report.extend(foreign(entry, role, exact, &mut others)),
                None => others.push(name.clone()),
            }
        }
    }
    let here = |name: &&String| folder.entries.contains_key(*name);
    let covered = known.iter().filter(here).count();
    let mut line = format!(
        "{covered} are of the merge; {}",
        listed("not covered", &others)
    );
    if !ignored.is_empty() {
        line += &format!("; {}", listed("ignored", &ignored));
    }
    report.say("files", line);
    report.details["files"] =
        json!({"of_merge": covered, "not_covered": others, "ignored": ignored});
}

fn listed(what: &str, names: &[String]) -> String {
    match names.is_empty() {
        true => format!("{what}: none"),
        false => format!("{what}: {}", some_of(names, NAMES_SHOWN)),
    }
}

/// The weights of a checkpoint, or of a part of it that lies apart, and where loaders look for them.
pub(crate) struct Weights<'m> {
    model: &'m Checkpoint,
    /// What the paths of their files begin with: diffusers has a name of its own.
    stem: String,
    /// The format in which loaders look for them.
    format: WrittenAs,
}

impl<'m> Weights<'m> {
    /// Those of each part of a checkpoint.
    pub(crate) fn of(model: &'m Checkpoint) -> Vec<Weights<'m>> {
        let of_part = |part: &'m Part| Weights {
            model: &part.model,
            stem: part.stem.clone(),
            format: part.format,
        };
        match model.parts() {
            [] => vec![Weights {
                model,
                stem: model.stem().to_owned(),
                format: WrittenAs::Safetensors,
            }],
            parts => parts.iter().map(of_part).collect(),
        }
    }

    /// The path of the index by which loaders find safetensors.
    fn index(&self) -> String {
        format!("{}.safetensors.index.json", self.stem)
    }

    fn is_safetensors(&self) -> bool {
        self.model.shards().iter().all(|shard| shard.header_len > 0)
    }

    /// The files that were read, and their index if there are several.
    pub(crate) fn files(&self) -> BTreeSet<String> {
        let shards = self.model.shards();
        let mut names: BTreeSet<String> = shards.iter().map(|shard| shard.file_name()).collect();
        if shards.len() > 1 {
            let folder = folder_of(&self.stem);
            names.insert(match self.is_safetensors() {
                true => self.index(),
                false => format!("{folder}pytorch_model.bin.index.json"),
            });
        }
        names
    }

    /// The finding that loaders would not find them: several files without an index, or one by another name.
    fn missing_name(&self, folder: &FolderListing) -> Option<Finding> {
        let is_there = |name: &String| folder.entries.contains_key(name);
        let wanted = match self.model.shards().len() {
            0 => return None,
            // Some tools write an index for one file too.
            1 if is_there(&self.index()) => return None,
            1 => format!("{}{}", self.stem, self.format.end()),
            _ => self.index(),
        };
        (self.is_safetensors() && !is_there(&wanted)).then(|| {
            let expected = "the file, by which loaders find the weights";
            Finding::new(&checks::FILE, Place::file(wanted), expected, "none")
        })
    }

    /// Findings about what the files of weights and the index say besides tensors. Other tools write what they like.
    fn metadata(&self, folder: &FolderListing, exact: bool) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut find = |file: String, field: &str, expected: &str, found: String| {
            let place = Place::field(file, field);
            findings.push(Finding::new(&checks::METADATA, place, expected, found));
        };
        let shards = self.model.shards();
        for shard in shards.iter().filter(|shard| shard.header_len > 0) {
            let format = shard.metadata.get("format").map(String::as_str);
            let others = shard.metadata.keys().filter(|key| *key != "format");
            let others: Vec<String> = others.cloned().collect();
            if exact && !others.is_empty() {
                let found = listed("also", &others);
                find(shard.file_name(), "__metadata__", "`format` alone", found);
            }
            if let Some(format) = format.filter(|format| *format != "pt") {
                let found = format!("`{format}`");
                find(shard.file_name(), "__metadata__.format", "`pt`", found);
            }
        }
        let name = self.index();
        let index = folder
            .entries
            .get(&name)
            .filter(|_| exact && shards.len() > 1);
        let index = index.and_then(|(entry, _)| {
            read_bounded(&entry.path, MAX_INDEX_BYTES, "index, in bytes").ok()
        });
        let index = index.and_then(|bytes| parse_json(&bytes).ok());
        let Some(Value::Object(index)) = index else {
            return findings;
        };
        let mut others: Vec<String> = Vec::new();
        for (key, value) in &index {
            match (key.as_str(), value) {
                ("weight_map", _) => {}
                ("metadata", Value::Object(entries)) => {
                    let unknown = entries
                        .keys()
                        .filter(|key| !INDEX_METADATA.contains(&key.as_str()));
                    others.extend(unknown.map(|key| format!("metadata.{key}")));
                    let bytes: u64 = self.model.tensors().iter().map(|tensor| tensor.len).sum();
                    let found = entries.get("total_size");
                    if found.and_then(Value::as_u64) != Some(bytes) {
                        let found = found.map_or("none".to_owned(), Value::to_string);
                        let (bytes, name) = (bytes.to_string(), name.clone());
                        find(name, "metadata.total_size", &bytes, found);
                    }
                }
                _ => others.push(key.clone()),
            }
        }
        if !others.is_empty() {
            let found = listed("also", &others);
            find(name, "metadata", "`total_size` alone", found);
        }
        findings
    }
}

/// The finding that a lock has no digest of files that the recipe writes.
fn lock_lacks(plan: Option<&Plan>, lock: &Lock) -> Option<Finding> {
    let plan = plan?;
    let configs = plan.configs().map(|(name, ..)| name);
    let indexes = plan.indexes().into_iter().map(|(name, _)| name);
    let made = plan.made.iter().map(|(name, _)| name.clone());
    let copied = plan.sidecars.iter().map(|(_, file)| file.name.clone());
    let all = configs.chain(indexes).chain(made).chain(copied);
    let lacking = all.filter(|name| !lock.outputs.files.contains_key(name));
    let lacking: Vec<String> = lacking.collect();
    (!lacking.is_empty()).then(|| {
        let place = Place::field(LOCK_FILE, "outputs.files");
        let expected = "the digest of every file that the recipe writes";
        Finding::new(
            &checks::LOCK_INCOMPLETE,
            place,
            expected,
            listed("without", &lacking),
        )
    })
}

/// Compares a file with its digest in the lock.
fn held_to_digest(folder: &FolderListing, name: &str, digest: &str) -> Option<Finding> {
    let find = |check: &'static CheckInfo, expected: String, found: String| {
        Some(Finding::new(check, Place::file(name), expected, found))
    };
    match folder.read(name) {
        None => find(&checks::FILE, "the file".to_owned(), "none".to_owned()),
        Some(Ok(bytes)) => {
            let found = blake3::hash(&bytes).to_string();
            match found == digest {
                true => None,
                false => find(&checks::LOCK_OUTPUT, format!("BLAKE3 {digest}"), found),
            }
        }
        Some(Err(error)) => find(
            &checks::FILE,
            "a file that can be read".to_owned(),
            error.to_string(),
        ),
    }
}

/// The finding about a file that loaders read and the merge did not write. Without a lock, settings of the tokenizer
/// may be written by another tool: such a file goes to `others`, which are listed.
fn foreign(
    entry: &TreeEntry,
    role: Role,
    exact: bool,
    others: &mut Vec<String>,
) -> Option<Finding> {
    if !exact && role == Role::Settings {
        others.push(entry.name.clone());
        return None;
    }
    let found = match entry.kind.bytes() {
        Some(bytes) => format!("{}, {bytes} bytes", role.name()),
        None => match entry.path.is_dir() {
            true => "a link to a folder".to_owned(),
            false => format!("{}, not a file", role.name()),
        },
    };
    Some(Finding::new(
        &checks::FOREIGN,
        Place::file(&entry.name),
        "no such file",
        found,
    ))
}
