//! Whether a snapshot in the Hub's cache has all that a merge reads, as far as the snapshot itself can tell.

use std::fs;
use std::path::Path;

use super::composition::PIPELINE;
use super::folder::find_weights;
use super::hub::listed_names;
use super::locate::Location;
use super::sidecars::is_carried;
use super::weight_names::ADAPTERS;

/// Whether nothing that a merge reads is missing from a snapshot: no link leads to nothing, the files beside the weights
/// are those that the Hub lists, if its list is there, and there are weights.
pub fn is_complete(snapshot: &Path) -> bool {
    let there = |name: &str| snapshot.join(name).exists();
    let listed = listed_names(snapshot).unwrap_or_default();
    no_dangling_links(snapshot)
        && listed.iter().all(|name| !is_carried(name) || there(name))
        && (ADAPTERS.iter().any(|name| there(name)) || there(PIPELINE) || has_weights(snapshot))
}

fn has_weights(snapshot: &Path) -> bool {
    find_weights(&Location::local(snapshot)).is_ok_and(|found| found.problems.is_empty())
}

/// Whether every link in a snapshot and its subfolders leads to something.
fn no_dangling_links(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else {
        return false;
    };
    entries.flatten().all(|entry| {
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        path.exists() && (!is_folder || no_dangling_links(&path))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::fixtures::{safetensors, write};
    use super::*;

    #[test]
    fn a_snapshot_is_complete_when_its_weights_and_its_links_are_there() {
        let root = tempfile::tempdir().unwrap();
        let repo = root.path().join("models--org--name");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let snapshot = repo.join("snapshots").join(commit);
        write(&snapshot.join("config.json"), b"{}");
        assert!(!is_complete(&snapshot));
        write(
            &snapshot.join("model.safetensors"),
            &safetensors(&[("w", "F32", &[2])]),
        );
        assert!(is_complete(&snapshot));
        let list = repo.join(format!("trees/{commit}.json"));
        let file = r#"{"size": 2, "blob_id": "x"}"#;
        let files =
            |name: &str| format!(r#"{{"format_version": 1, "files": {{"{name}": {file}}}}}"#);
        write(&list, files("README.md").as_bytes());
        assert!(is_complete(&snapshot));
        write(&list, files("tokenizer.json").as_bytes());
        assert!(!is_complete(&snapshot));
        fs::remove_file(&list).unwrap();
        symlink("../../blobs/gone", snapshot.join("notes.txt")).unwrap();
        assert!(!is_complete(&snapshot));
    }
}
