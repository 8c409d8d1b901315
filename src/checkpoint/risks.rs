//! Files in a folder that could run code, and links that lead out of it. Nothing is executed; links are only reported.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::bounded::read_bounded;
use super::error::CheckpointError;
use super::folder::file_names;
use super::format::FileFormat;
use super::home::Home;
use super::json::parse_json;
use super::limits::{MAX_CONFIG_BYTES, MAX_FOLDER_DEPTH, MAX_FOLDER_ENTRIES};
use super::locate::Location;
use super::pickle::{PickleImports, globals};
use super::shard::Shard;

/// What was found in a folder and its subfolders, by file.
#[derive(Debug, Default)]
pub struct FolderRisks {
    /// Links, and where they lead.
    pub links_outside: Vec<(String, String)>,
    /// Pickles, and what they import.
    pub pickles: Vec<(String, PickleImports)>,
    /// Configs, and the code that they name.
    pub code: Vec<(String, String)>,
    /// Subfolders that were not scanned, because there are too many files or they are too deep.
    pub left_out: Vec<String>,
}

/// The endings of pickles whose name is not that of weights.
const OTHER_PICKLES: [&str; 4] = [".pkl", ".pickle", ".joblib", ".dill"];

/// Scans the files of a model's folder; a single file has no folder.
///
/// # Errors
/// If the folder cannot be listed.
pub fn folder_risks(location: &Location) -> Result<FolderRisks, CheckpointError> {
    let folder = &location.path;
    let mut risks = FolderRisks::default();
    if !folder.is_dir() {
        return Ok(risks);
    }
    let io = |source| CheckpointError::io("open", folder, source);
    let home = Home::find(folder).map_err(io)?;
    // The folders still to scan, with the prefix of their files' names and their depth.
    let mut waiting: Vec<(PathBuf, String, usize)> = vec![(folder.clone(), String::new(), 0)];
    let mut entries = 0;
    while let Some((folder, before, depth)) = waiting.pop() {
        let names = match file_names(&folder) {
            Ok(names) => names,
            Err(error) if depth == 0 => return Err(error),
            Err(_) => {
                risks.left_out.push(before);
                continue;
            }
        };
        entries += names.len();
        for name in names {
            let path = folder.join(&name);
            let shown = format!("{before}{name}");
            let is_link = fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
            if is_link
                && let Ok(target) = fs::canonicalize(&path)
                && !home.holds(&target)
            {
                let target = target.display().to_string();
                risks.links_outside.push((shown, target));
            } else if !path.is_dir() {
                look_at(&path, shown, &mut risks);
            } else if is_link {
                // Its target is inside the folder, and is scanned there.
            } else if depth == MAX_FOLDER_DEPTH || entries > MAX_FOLDER_ENTRIES {
                risks.left_out.push(format!("{shown}/"));
            } else {
                waiting.push((path, format!("{shown}/"), depth + 1));
            }
        }
    }
    Ok(risks)
}

/// Looks at one file, which the report calls `shown`.
fn look_at(path: &Path, shown: String, risks: &mut FolderRisks) {
    let name = shown.to_ascii_lowercase();
    let is_pickle = FileFormat::from_name(&name) == FileFormat::Pickle;
    if is_pickle || OTHER_PICKLES.iter().any(|end| name.ends_with(end)) {
        let imports = match Shard::map_bytes(path) {
            Ok(bytes) => globals(path, &bytes),
            // An empty file, or something that is not a file, cannot be unpickled.
            Err(CheckpointError::Truncated { .. } | CheckpointError::NotAFile { .. }) => return,
            Err(problem) => PickleImports {
                unread: Some(problem.to_string()),
                ..PickleImports::default()
            },
        };
        risks.pickles.push((shown, imports));
    } else if name.ends_with("config.json")
        && let Ok(bytes) = read_bounded(path, MAX_CONFIG_BYTES, "config, in bytes")
        && let Ok(config) = parse_json(&bytes)
        && let Some(code) = config.get("auto_map").and_then(Value::as_object)
    {
        // A tokenizer's entry is a list of two, the slow and the fast one; either may be null.
        let classes = code.values().flat_map(|class| match class {
            Value::Array(list) => list.as_slice(),
            class => std::slice::from_ref(class),
        });
        let classes: Vec<&str> = classes.filter_map(Value::as_str).collect();
        let classes = classes.join(", ");
        risks.code.push((shown, classes));
    }
}
