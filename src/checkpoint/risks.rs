//! What in a folder could run code, or leads out of it; nothing is executed and no link followed but to be told.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use super::bounded::read_bounded;
use super::error::CheckpointError;
use super::folder::{Format, file_names};
use super::limits::MAX_CONFIG_BYTES;
use super::locate::Location;
use super::pickle::globals;
use super::shard::Shard;

/// What was found in a folder, by file.
#[derive(Debug, Default)]
pub struct FolderRisks {
    /// Links and where they lead.
    pub links_outside: Vec<(String, String)>,
    /// Pickles and what they import, as `module.name`.
    pub pickles: Vec<(String, BTreeSet<String>)>,
    /// Configs and the code that they name.
    pub code: Vec<(String, String)>,
}

/// The ends of pickles that are no weights by their name.
const OTHER_PICKLES: [&str; 3] = [".pkl", ".pickle", ".joblib"];

/// Looks at the files of a model's folder; a single file has no folder.
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
    let home = fs::canonicalize(folder).map_err(io)?;
    // Snapshots of the Hub's cache are links to `../../blobs`.
    let blobs = home.parent().and_then(|snapshots| {
        let is_cache = snapshots.file_name()? == "snapshots";
        is_cache.then(|| snapshots.parent().map(|repo| repo.join("blobs")))?
    });
    for name in file_names(folder)? {
        let path = folder.join(&name);
        let is_link = fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
        if is_link && let Ok(target) = fs::canonicalize(&path) {
            let in_blobs = blobs
                .as_ref()
                .is_some_and(|blobs| target.starts_with(blobs));
            if !target.starts_with(&home) && !in_blobs {
                risks
                    .links_outside
                    .push((name, target.display().to_string()));
                continue;
            }
        }
        let is_pickle = Format::of(&name) == Format::Pickle;
        if is_pickle || OTHER_PICKLES.iter().any(|end| name.ends_with(end)) {
            if let Ok(bytes) = Shard::map_bytes(&path) {
                risks.pickles.push((name, globals(&path, &bytes)));
            }
        } else if name.ends_with("config.json")
            && let Ok(bytes) = read_bounded(&path, MAX_CONFIG_BYTES, "config, in bytes")
            && let Ok(config) = serde_json::from_slice::<Value>(&bytes)
            && let Some(code) = config.get("auto_map").and_then(Value::as_object)
        {
            let classes = code.values().filter_map(Value::as_str);
            risks
                .code
                .push((name, classes.collect::<Vec<&str>>().join(", ")));
        }
    }
    Ok(risks)
}
