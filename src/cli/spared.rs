//! What a report must not be written over: files of models, and whatever else a command reads.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::output::Failure;
use audit::is_of_checkpoint;
use checkpoint::FileState;
use errors::Refusal;
use run::destination::folder_of;

/// The most entries of a folder that are looked at to see whether it holds a model.
const MAX_ENTRIES: usize = 10_000;
/// Bytes of a file that tell whether it is a report.
const START: u64 = 256;

/// Checks that a file may be written: that it is none of those that are read, and no file of a model, whether that is
/// read or not. `option` is how it was named.
///
/// # Errors
/// It may not: what is there would be lost.
pub(super) fn check(option: &str, target: &Path, read: &[PathBuf]) -> Result<(), Failure> {
    let refused = |why: &str| {
        let why = Refusal::new(format!("{option}: {why}"));
        Err(Failure::tool(why.with_hint("name another file")))
    };
    if let Ok(state) = FileState::at(target) {
        let is_target =
            |path: &PathBuf| FileState::at(path).is_ok_and(|other| other.is_of_same_file(&state));
        if read.iter().any(is_target) {
            return refused("this is read as an input");
        }
    }
    // A link leads to what would be lost.
    let place = target.canonicalize().unwrap_or_else(|_| target.to_owned());
    let name = |path: &Path| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    let is_named_so = [target, &place]
        .into_iter()
        .filter_map(name)
        .any(|name| is_of_checkpoint(&name));
    let folder = folder_of(&place);
    let mut folders = [Some(folder), folder.parent()].into_iter().flatten();
    let mut is_model_file = || is_weights(&place) || folders.any(holds_model);
    if is_named_so && !is_report(&place) && is_model_file() {
        return refused("this is a file of a model");
    }
    Ok(())
}

/// Whether a file is a JSON report of weld's, by its beginning: a report may be written again.
fn is_report(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(START).read_to_end(&mut start));
    start.retain(|byte| !byte.is_ascii_whitespace());
    read.is_ok() && start.starts_with(br#"{"tool":{"name":"weldment","#)
}

/// Whether a file with this name is there, and is one of weights.
fn is_weights(path: &Path) -> bool {
    let end = path.extension().and_then(|end| end.to_str());
    matches!(end, Some("safetensors" | "bin" | "pt" | "pth" | "gguf")) && path.exists()
}

/// Whether a folder holds a model or an adapter.
fn holds_model(folder: &Path) -> bool {
    let is_config = |name: &str| folder.join(name).is_file();
    let configs = ["config.json", "adapter_config.json", "model_index.json"];
    let has_weights = || {
        let entries = folder.read_dir().into_iter().flatten().take(MAX_ENTRIES);
        entries.flatten().any(|entry| is_weights(&entry.path()))
    };
    configs.into_iter().any(is_config) || has_weights()
}
